//! YAML files to definitions. Every complaint names file, line and column.

use cairn_proto::api::v1::SourceFile;
use cairn_proto::record::v1 as record;
use cairn_storage::near::nearest;
use record::definition::Kind;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;
use std::cell::RefCell;
use std::fmt;

/// Where something stands in the user's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: String,
    /// From 1; 0 = the file as a whole.
    pub line: u64,
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}", self.path)
        } else {
            write!(f, "{}:{}:{}", self.path, self.line, self.column)
        }
    }
}

/// What is wrong with the files: one line each, `path:line:column: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A definition and where it was written.
#[derive(Debug, Clone)]
pub struct Placed {
    pub place: Place,
    pub kind: Kind,
    /// Where its parts were written: references, features, keys, by their text or name.
    pub parts: Vec<(String, Place)>,
}

impl Placed {
    /// The place of a part, or else of the whole.
    pub fn place_of(&self, part: Option<&str>) -> &Place {
        let found = part.and_then(|part| self.parts.iter().find(|(name, _)| name == part));
        found.map_or(&self.place, |(_, place)| place)
    }
}

/// The part of a feature view that says where its rows come from; no feature or entity has this name.
pub const SOURCE: &str = "source:";

/// Limits on what one plan may carry.
const FILES_MAX: usize = 10_000;
const BYTES_MAX: usize = 16 << 20;

/// Reads all documents of all files.
///
/// # Errors
/// Every problem found, in file order.
pub fn parse(files: &[SourceFile]) -> Result<Vec<Placed>, Vec<Problem>> {
    let whole =
        |path: &str, message: String| Problem { place: Place { path: path.to_owned(), line: 0, column: 0 }, message };
    let bytes: usize = files.iter().map(|file| file.text.len()).sum();
    if files.len() > FILES_MAX || bytes > BYTES_MAX {
        let message = format!(
            "{} files of {bytes} bytes are over the limit of {FILES_MAX} files, {BYTES_MAX} bytes",
            files.len()
        );
        return Err(vec![whole("definitions", message)]);
    }
    let mut placed = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        match serde_saphyr::from_multiple::<Document>(&file.text) {
            Ok(documents) => {
                for document in documents {
                    match Reader::new(&file.path).document(document) {
                        Ok(one) => placed.push(one),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            Err(error) => problems.push(yaml_problem(&file.path, &error)),
        }
    }
    if problems.is_empty() { Ok(placed) } else { Err(problems) }
}

fn yaml_problem(path: &str, error: &serde_saphyr::Error) -> Problem {
    let location = error.location();
    let place = Place {
        path: path.to_owned(),
        line: location.map_or(0, |at| at.line()),
        column: location.map_or(0, |at| at.column()),
    };
    let text = error.without_snippet().to_string();
    // The library ends its message with the place, which already stands in front of ours.
    let message = text.split(" at line ").next().unwrap_or(&text).trim_end_matches(" at").to_owned();
    let message = message.lines().next().unwrap_or("not valid YAML");
    Problem { place, message: near_field(message).unwrap_or_else(|| message.to_owned()) }
}

/// A misspelt field with the one that was meant, instead of all fields there are.
fn near_field(message: &str) -> Option<String> {
    let (unknown, known) = message.split_once(", expected one of ")?;
    let name = unknown.strip_prefix("unknown field `")?.strip_suffix('`')?;
    let near = nearest(name, known.split(", ").map(|name| name.trim_matches('`')))?;
    Some(format!("{unknown}; did you mean `{near}`?"))
}

// ---------------------------------------------------------------- the YAML shapes

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kind: Spanned<String>,
    name: Spanned<String>,
    spec: Option<Spanned<Spec>>,
}

/// The fields of every kind; [`Reader`] refuses those that are not of the kind at hand.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    description: Option<Spanned<String>>,
    join_keys: Option<Spanned<Vec<Spanned<FieldItem>>>>,
    entities: Option<Spanned<Vec<Spanned<String>>>>,
    ttl: Option<Spanned<String>>,
    hot_window: Option<Spanned<String>>,
    retention: Option<Spanned<String>>,
    source: Option<Spanned<SourceItem>>,
    features: Option<Spanned<Vec<Spanned<FeatureItem>>>>,
    sources: Option<Spanned<Vec<Spanned<String>>>>,
    request_data: Option<Spanned<Vec<Spanned<FieldItem>>>>,
    feature_service: Option<Spanned<String>>,
    model: Option<Spanned<String>>,
    champion: Option<Spanned<ArmItem>>,
    challengers: Option<Spanned<Vec<Spanned<ArmItem>>>>,
    shadows: Option<Spanned<Vec<Spanned<ArmItem>>>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldItem {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    description: String,
    sql: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArmItem {
    alias: Option<String>,
    version: Option<u32>,
    weight: Option<f64>,
}

/// Where rows come from: a note for people, or files that a backfill reads.
#[derive(Debug, Clone)]
enum SourceItem {
    Note(String),
    Files(FilesItem),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilesItem {
    path: String,
    #[serde(default)]
    sql: String,
    #[serde(default)]
    event_timestamp: String,
}

impl<'de> Deserialize<'de> for SourceItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SourceItem;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a mapping with `path` and perhaps `sql` and `event_timestamp`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SourceItem, E> {
                Ok(SourceItem::Note(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SourceItem, A::Error> {
                FilesItem::deserialize(de::value::MapAccessDeserializer::new(map)).map(SourceItem::Files)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A feature: a reference (`view:feature`) or a field with a type.
#[derive(Debug, Clone)]
enum FeatureItem {
    Reference(String),
    Field(FieldItem),
}

impl<'de> Deserialize<'de> for FeatureItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FeatureItem;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a reference such as `view:feature`, or a mapping with `name` and `type`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FeatureItem, E> {
                Ok(FeatureItem::Reference(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FeatureItem, A::Error> {
                FieldItem::deserialize(de::value::MapAccessDeserializer::new(map)).map(FeatureItem::Field)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

// ---------------------------------------------------------------- shapes to records

struct Reader<'a> {
    path: &'a str,
    parts: RefCell<Vec<(String, Place)>>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a str) -> Self {
        Self { path, parts: RefCell::default() }
    }

    /// Notes where a part stands.
    fn part<T>(&self, name: &str, spanned: &Spanned<T>) {
        self.parts.borrow_mut().push((name.to_owned(), self.at(spanned)));
    }

    fn texts(&self, items: Vec<Spanned<String>>) -> Vec<String> {
        items.iter().for_each(|item| self.part(&item.value, item));
        items.into_iter().map(|item| item.value).collect()
    }

    fn at<T>(&self, spanned: &Spanned<T>) -> Place {
        Place { path: self.path.to_owned(), line: spanned.referenced.line(), column: spanned.referenced.column() }
    }

    fn problem<T>(&self, spanned: &Spanned<T>, message: impl Into<String>) -> Problem {
        Problem { place: self.at(spanned), message: message.into() }
    }

    fn document(&self, document: Document) -> Result<Placed, Problem> {
        let place = self.at(&document.kind);
        self.check_name(&document.name, true)?;
        let name = document.name.value.clone();
        let kind_name = document.kind.value.as_str();
        let mut spec = match document.spec {
            Some(spec) => spec.value,
            None if kind_name == "Model" => Spec::default(),
            None => return Err(self.problem(&document.name, format!("{kind_name} `{name}` has no `spec`"))),
        };
        let description = spec.description.take().map(|text| text.value).unwrap_or_default();
        let missing = |field: &str| self.problem(&document.kind, format!("{kind_name} `{name}` needs `{field}`"));
        let kind = match kind_name {
            "Entity" => {
                let keys = spec.join_keys.take().ok_or_else(|| missing("join_keys"))?;
                let join_keys = self.fields(keys.value)?;
                Kind::Entity(record::Entity { name: name.clone(), join_keys, description })
            }
            "FeatureView" => {
                let entities = spec.entities.take().ok_or_else(|| missing("entities"))?;
                let features = spec.features.take().ok_or_else(|| missing("features"))?;
                let ttl_us = spec.ttl.take().map(|text| self.duration(&text)).transpose()?.unwrap_or(0);
                let hot_window_us = spec.hot_window.take().map(|text| self.duration(&text)).transpose()?.unwrap_or(0);
                let retention_us = self.retention(spec.retention.take().as_ref(), hot_window_us)?;
                let (source, files) = self.source(spec.source.take());
                Kind::FeatureView(record::FeatureView {
                    name: name.clone(),
                    entities: self.texts(entities.value),
                    ttl_us,
                    features: self.typed_features(features.value)?,
                    description,
                    source,
                    files,
                    hot_window_us,
                    retention_us,
                })
            }
            "OnDemandFeatureView" => {
                let features = spec.features.take().ok_or_else(|| missing("features"))?;
                let sources = spec.sources.take().map(|list| list.value).unwrap_or_default();
                let request_data = spec.request_data.take().map(|list| list.value).unwrap_or_default();
                Kind::OnDemandFeatureView(record::OnDemandFeatureView {
                    name: name.clone(),
                    sources: self.texts(sources),
                    request_data: self.fields(request_data)?,
                    features: self.sql_features(features.value)?,
                    description,
                    resolved: Vec::new(),
                })
            }
            "FeatureService" => {
                let features = spec.features.take().ok_or_else(|| missing("features"))?;
                Kind::FeatureService(record::FeatureService {
                    name: name.clone(),
                    features: self.references(features.value)?,
                    description,
                    resolved: Vec::new(),
                })
            }
            "Model" => Kind::Model(record::Model {
                name: name.clone(),
                description,
                feature_service: self
                    .texts(spec.feature_service.take().into_iter().collect())
                    .pop()
                    .unwrap_or_default(),
            }),
            "Deployment" => {
                let model = spec.model.take().ok_or_else(|| missing("model"))?;
                let champion = spec.champion.take().ok_or_else(|| missing("champion"))?;
                let challengers = spec.challengers.take().map(|list| list.value).unwrap_or_default();
                let shadows = spec.shadows.take().map(|list| list.value).unwrap_or_default();
                let deployment = record::Deployment {
                    name: name.clone(),
                    model: self.texts(vec![model]).pop().unwrap_or_default(),
                    champion: Some(self.arm(&champion, false)?),
                    challengers: challengers.iter().map(|arm| self.arm(arm, true)).collect::<Result<_, _>>()?,
                    shadows: shadows.iter().map(|arm| self.arm(arm, false)).collect::<Result<_, _>>()?,
                    description,
                };
                let weights: f64 = deployment.challengers.iter().map(|arm| arm.weight).sum();
                if weights > 1.0 {
                    let message = format!("the challengers' weights add up to {weights}, over 1");
                    return Err(self.problem(&document.name, message));
                }
                Kind::Deployment(deployment)
            }
            other => {
                let message = format!(
                    "`{other}` is not a kind; the kinds are Entity, FeatureView, OnDemandFeatureView, FeatureService, \
                     Model, Deployment"
                );
                return Err(self.problem(&document.kind, message));
            }
        };
        self.nothing_left(kind_name, &spec)?;
        Ok(Placed { place, kind, parts: self.parts.take() })
    }

    /// Fields that another kind has and this one has not.
    fn nothing_left(&self, kind: &str, spec: &Spec) -> Result<(), Problem> {
        let refuse = |place: Place, field: &str| {
            Err(Problem { place, message: format!("{kind} has no field `{field}`; remove it") })
        };
        macro_rules! none_left {
            ($($field:ident),*) => {$(
                if let Some(found) = &spec.$field { return refuse(self.at(found), stringify!($field)); }
            )*};
        }
        none_left!(
            join_keys,
            entities,
            ttl,
            hot_window,
            retention,
            source,
            features,
            sources,
            request_data,
            feature_service,
            model
        );
        none_left!(champion, challengers, shadows);
        Ok(())
    }

    /// Definition names may hold `-`; feature and join key names may not (they are SQL identifiers).
    fn check_name(&self, name: &Spanned<String>, dash: bool) -> Result<(), Problem> {
        check_name(&name.value, dash).map_err(|message| self.problem(name, message))
    }

    fn fields(&self, items: Vec<Spanned<FieldItem>>) -> Result<Vec<record::Field>, Problem> {
        items.iter().map(|item| self.field(item, &item.value)).collect()
    }

    fn field<T>(&self, place: &Spanned<T>, item: &FieldItem) -> Result<record::Field, Problem> {
        if item.sql.is_some() {
            return Err(self.problem(
                place,
                format!("`{}` has `sql`, which only an OnDemandFeatureView's features have", item.name),
            ));
        }
        check_name(&item.name, false).map_err(|message| self.problem(place, message))?;
        let kind = cairn_storage::types::parse_type(&item.kind)
            .map_err(|message| self.problem(place, format!("`{}`: {message}", item.name)))?;
        self.part(&item.name, place);
        Ok(record::Field { name: item.name.clone(), r#type: Some(kind), description: item.description.clone() })
    }

    fn typed_features(&self, items: Vec<Spanned<FeatureItem>>) -> Result<Vec<record::Field>, Problem> {
        let typed = |item: &Spanned<FeatureItem>| match &item.value {
            FeatureItem::Field(field) => self.field(item, field),
            FeatureItem::Reference(text) => {
                let message = format!("a feature of a FeatureView is written {{name: {text}, type: float64}}");
                Err(self.problem(item, message))
            }
        };
        items.iter().map(typed).collect()
    }

    fn source(&self, source: Option<Spanned<SourceItem>>) -> (String, Option<record::FileSource>) {
        let Some(source) = source else { return Default::default() };
        self.part(SOURCE, &source);
        match source.value {
            SourceItem::Note(text) => (text, None),
            SourceItem::Files(FilesItem { path, sql, event_timestamp }) => {
                (String::new(), Some(record::FileSource { path, sql, event_timestamp }))
            }
        }
    }

    fn sql_features(&self, items: Vec<Spanned<FeatureItem>>) -> Result<Vec<record::OnDemandFeature>, Problem> {
        let mut features = Vec::new();
        for item in &items {
            let FeatureItem::Field(field) = &item.value else {
                return Err(
                    self.problem(item, "an on-demand feature is written {name: x, type: float64, sql: \"a / b\"}")
                );
            };
            let Some(sql) = field.sql.clone() else {
                return Err(self.problem(item, format!("on-demand feature `{}` needs `sql`", field.name)));
            };
            let plain = self.field(item, &FieldItem { sql: None, ..field.clone() })?;
            features.push(record::OnDemandFeature {
                name: plain.name,
                r#type: plain.r#type,
                sql,
                description: plain.description,
            });
        }
        Ok(features)
    }

    fn references(&self, items: Vec<Spanned<FeatureItem>>) -> Result<Vec<String>, Problem> {
        let reference = |item: &Spanned<FeatureItem>| match &item.value {
            FeatureItem::Reference(text) => {
                self.part(text, item);
                Ok(text.clone())
            }
            FeatureItem::Field(field) => {
                let message =
                    format!("a feature of a FeatureService is a reference, such as `some_view:{}`", field.name);
                Err(self.problem(item, message))
            }
        };
        items.iter().map(reference).collect()
    }

    fn arm(&self, arm: &Spanned<ArmItem>, weighted: bool) -> Result<record::Arm, Problem> {
        let ArmItem { alias, version, weight } = &arm.value;
        match (alias, version) {
            (Some(_), Some(_)) => return Err(self.problem(arm, "an arm names an `alias` or a `version`, not both")),
            (None, None) => return Err(self.problem(arm, "an arm needs an `alias` or a `version`")),
            (None, Some(0)) => return Err(self.problem(arm, "model versions start at 1")),
            _ => {}
        }
        let weight = match (weighted, weight) {
            (true, Some(weight)) if (0.0..=1.0).contains(weight) => *weight,
            (true, Some(weight)) => return Err(self.problem(arm, format!("weight {weight} is not between 0 and 1"))),
            (true, None) => return Err(self.problem(arm, "a challenger needs a `weight` between 0 and 1")),
            (false, Some(_)) => return Err(self.problem(arm, "only challengers have a `weight`")),
            (false, None) => 0.0,
        };
        Ok(record::Arm { alias: alias.clone().unwrap_or_default(), version: version.unwrap_or(0), weight })
    }

    /// How long history is kept; 0 = for ever.
    fn retention(&self, text: Option<&Spanned<String>>, hot_window_us: i64) -> Result<i64, Problem> {
        let Some(text) = text else { return Ok(0) };
        let retention_us = self.duration(text)?;
        let message = match (retention_us, hot_window_us) {
            (0, _) => "`retention` is no time at all; leave it out to keep history for ever",
            (_, 0) => "`retention` needs a `hot_window`: rows go from the segments that it makes",
            (retention_us, hot_window_us) if retention_us < hot_window_us => "`retention` is shorter than `hot_window`",
            _ => return Ok(retention_us),
        };
        Err(self.problem(text, message.to_owned()))
    }

    fn duration(&self, text: &Spanned<String>) -> Result<i64, Problem> {
        duration_us(&text.value).ok_or_else(|| {
            let message =
                format!("`{}` is not a duration; write a number with ms, s, m, h, d or w, such as `30d`", text.value);
            self.problem(text, message)
        })
    }
}

/// `[A-Za-z_][A-Za-z0-9_-]{0,127}`, without `-` where `dash` is false.
pub fn check_name(name: &str, dash: bool) -> Result<(), String> {
    let good_start = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let good_rest = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (dash && c == '-'));
    if good_start && good_rest && name.len() <= 128 {
        return Ok(());
    }
    let also = if dash { " or -" } else { "" };
    Err(format!("`{name}` is not a name: at most 128 letters, digits, _{also}, and no digit first"))
}

/// `30d`, `90s`, `500ms`: microseconds. `None` when it does not read so, is negative or overflows.
pub fn duration_us(text: &str) -> Option<i64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit_us: i64 = match unit.trim() {
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "w" => 604_800_000_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit_us)
}
