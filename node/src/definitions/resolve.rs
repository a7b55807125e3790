//! All definitions of a plan checked together, over what the project has, with the place of each fault.
//!
//! Always true: versions, bound references and what changes come from [`preview`], the code that applies the command; the
//! checks here only find faults earlier, all at once, where they were written, and in the words of the files. Beyond
//! what `preview` refuses, they refuse SQL that does not compile, pinned versions, names of status and time columns,
//! and arms that are not served.

use super::diff;
use super::parse::{Place, Placed, Problem, SOURCE};
use cairn_proto::api::v1::Change;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1 as record;
use cairn_query::backfill;
use cairn_query::expr::OnDemandProgram;
use cairn_storage::catalog::{Catalog, DefinitionKind, Project};
use cairn_storage::meta::preview;
use cairn_storage::near::nearest;
use record::definition::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Kind and name. Feature views and on-demand feature views share one name space.
pub type Key = (DefinitionKind, String);

/// `None` for a definition without content.
fn key_of(definition: &record::Definition) -> Option<Key> {
    DefinitionKind::of(definition).map(|(kind, name)| (kind, name.to_owned()))
}

/// What would change, and the command that changes it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub command: record::ApplyDefinitions,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.command.definitions.is_empty()
    }
}

/// Checks `placed` over what `project` has in `catalog` and works out what changes.
///
/// # Errors
/// Every problem found, in the order of the files.
pub fn plan(catalog: &Catalog, project: &str, placed: Vec<Placed>) -> Result<Plan, Vec<Problem>> {
    let mut world = World::new(catalog.project(project).ok().map(AsRef::as_ref));
    let mut problems = Vec::new();
    for one in placed {
        if let Err(problem) = world.add(one) {
            problems.push(problem);
        }
    }
    for (key, kind) in &world.now {
        if let Err(complaint) = world.check(kind) {
            problems.push(Problem { place: world.place(key, complaint.part.as_deref()), message: complaint.message });
        }
    }
    if !problems.is_empty() {
        problems.sort_by(|a, b| (&a.place.path, a.place.line).cmp(&(&b.place.path, b.place.line)));
        problems.dedup();
        return Err(problems);
    }
    world.bind(catalog, project).map_err(|problem| vec![problem])
}

struct World<'a> {
    /// `None` before its first definitions.
    existing: Option<&'a Project>,
    /// Everything as it will be: written now, or already there.
    now: BTreeMap<Key, Kind>,
    written: BTreeMap<Key, Placed>,
}

/// What is wrong with a definition, and with which part of it.
#[derive(Debug)]
struct Complaint {
    message: String,
    part: Option<String>,
}

impl From<String> for Complaint {
    fn from(message: String) -> Self {
        Self { message, part: None }
    }
}

/// Blames a part, by the text it was written as.
fn about(part: &str) -> impl Fn(String) -> Complaint {
    move |message| Complaint { message, part: Some(part.to_owned()) }
}

impl<'a> World<'a> {
    fn new(existing: Option<&'a Project>) -> Self {
        let newest = existing.into_iter().flat_map(Project::definitions).filter_map(|version| version.definition);
        let now = newest.filter_map(|definition| Some((key_of(&definition)?, definition.kind?)));
        Self { existing, now: now.collect(), written: BTreeMap::new() }
    }

    fn add(&mut self, placed: Placed) -> Result<(), Problem> {
        let problem = |message: String| Problem { place: placed.place.clone(), message };
        let Some(key) = key_of(&record::Definition { kind: Some(placed.kind.clone()) }) else { return Ok(()) };
        if let Some(first) = self.written.get(&key) {
            let first = &first.place;
            return Err(problem(format!("{} `{}` is defined twice; first at {first}", key.0.as_str(), key.1)));
        }
        let twin = match key.0 {
            DefinitionKind::FeatureView => Some(DefinitionKind::OnDemandFeatureView),
            DefinitionKind::OnDemandFeatureView => Some(DefinitionKind::FeatureView),
            _ => None,
        };
        if let Some(twin) = twin
            && self.now.contains_key(&(twin, key.1.clone()))
        {
            let article = if twin == DefinitionKind::OnDemandFeatureView { "an" } else { "a" };
            return Err(problem(format!("`{}` is already {article} {}; choose another name", key.1, twin.as_str())));
        }
        self.now.insert(key.clone(), placed.kind.clone());
        self.written.insert(key, placed);
        Ok(())
    }

    fn names(&self, kind: DefinitionKind) -> Vec<String> {
        self.now.keys().filter(|key| key.0 == kind).map(|key| key.1.clone()).collect()
    }

    /// Where a part of a definition was written, or else where all of it was.
    fn place(&self, key: &Key, part: Option<&str>) -> Place {
        let elsewhere =
            || Place { path: format!("{} `{}` (already applied)", key.0.as_str(), key.1), line: 0, column: 0 };
        self.written.get(key).map_or_else(elsewhere, |placed| placed.place_of(part).clone())
    }

    fn check(&self, kind: &Kind) -> Result<(), Complaint> {
        match kind {
            Kind::Entity(entity) => check_entity(entity),
            Kind::FeatureView(view) => self.check_view(view),
            Kind::OnDemandFeatureView(view) => self.check_on_demand(view),
            Kind::FeatureService(service) => self.check_service(service),
            Kind::Model(model) => self.check_model(model),
            Kind::Deployment(deployment) => self.check_deployment(deployment),
        }
    }

    fn entity(&self, name: &str) -> Option<&record::Entity> {
        match self.now.get(&(DefinitionKind::Entity, name.to_owned()))? {
            Kind::Entity(entity) => Some(entity),
            _ => None,
        }
    }

    fn view(&self, name: &str) -> Option<&record::FeatureView> {
        match self.now.get(&(DefinitionKind::FeatureView, name.to_owned()))? {
            Kind::FeatureView(view) => Some(view),
            _ => None,
        }
    }

    fn on_demand(&self, name: &str) -> Option<&record::OnDemandFeatureView> {
        match self.now.get(&(DefinitionKind::OnDemandFeatureView, name.to_owned()))? {
            Kind::OnDemandFeatureView(view) => Some(view),
            _ => None,
        }
    }

    fn missing(&self, kind: DefinitionKind, name: &str) -> String {
        let names = self.names(kind);
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("{} `{name}` not found; did you mean `{near}`?", kind.as_str()),
            None => format!("{} `{name}` not found; define it in these files", kind.as_str()),
        }
    }

    fn check_view(&self, view: &record::FeatureView) -> Result<(), Complaint> {
        unique(view.entities.iter().map(String::as_str), "entity")?;
        let mut columns = Vec::new();
        for name in &view.entities {
            let entity = self.entity(name).ok_or_else(|| about(name)(self.missing(DefinitionKind::Entity, name)))?;
            columns.extend(entity.join_keys.iter().map(|key| key.name.as_str()));
        }
        columns.extend(view.features.iter().map(|feature| feature.name.as_str()));
        view.features.iter().try_for_each(|it| reserved(&it.name).map_err(about(&it.name)))?;
        unique(columns.into_iter(), "column")?;
        let Some(files) = &view.files else { return Ok(()) };
        let blame = |message: String| about(SOURCE)(format!("`source` of feature view `{}`: {message}", view.name));
        backfill::check_path(&files.path).map_err(|error| blame(error.to_string()))?;
        if files.sql.is_empty() {
            return Ok(());
        }
        let tables = backfill::check_sql(&files.sql).map_err(|error| blame(error.to_string()))?;
        match tables.iter().find(|table| *table != backfill::TABLE) {
            Some(table) => Err(blame(self.no_table(&view.name, table))),
            None => Ok(()),
        }
    }

    /// Why a source's SQL cannot read this table.
    fn no_table(&self, view: &str, table: &str) -> String {
        let mut path = vec![view.to_owned()];
        let mut next = Some(table.to_owned());
        while let Some(name) = next {
            let again = path.contains(&name);
            path.push(name.clone());
            if again {
                return format!(
                    "its sql reads `{table}`, and that is a cycle: {}; a source reads its files alone, as table `{}`",
                    path.join(" → "),
                    backfill::TABLE
                );
            }
            let read = self.view(&name).and_then(|it| backfill::check_sql(&it.files.as_ref()?.sql).ok());
            next = read.and_then(|tables| tables.into_iter().find(|table| *table != backfill::TABLE));
        }
        format!("its sql reads `{table}`; it can read one table, `{}`, the rows of its files", backfill::TABLE)
    }

    fn check_on_demand(&self, view: &record::OnDemandFeatureView) -> Result<(), Complaint> {
        unique(view.features.iter().map(|feature| feature.name.as_str()), "feature")?;
        let mut inputs = Vec::new();
        for reference in &view.sources {
            let blame = about(reference);
            let (name, feature) = split_reference(reference).map_err(&blame)?;
            let source = self.view(name).ok_or_else(|| blame(self.missing(DefinitionKind::FeatureView, name)))?;
            inputs.extend(pick(source, feature).map_err(&blame)?.into_iter().cloned());
        }
        inputs.extend(view.request_data.iter().cloned());
        view.request_data.iter().try_for_each(|it| reserved(&it.name).map_err(about(&it.name)))?;
        unique(inputs.iter().map(|field| field.name.as_str()), "input")?;
        for feature in &view.features {
            let compiled = OnDemandProgram::compile(&view.name, &inputs, std::slice::from_ref(feature));
            compiled.map_err(|error| about(&feature.name)(error.to_string()))?;
        }
        Ok(())
    }

    fn check_service(&self, service: &record::FeatureService) -> Result<(), Complaint> {
        let mut seen = BTreeSet::new();
        for reference in &service.features {
            let blame = about(reference);
            let (name, feature) = split_reference(reference).map_err(&blame)?;
            let features: Vec<String> = if let Some(view) = self.view(name) {
                pick(view, feature).map_err(&blame)?.iter().map(|field| field.name.clone()).collect()
            } else if let Some(view) = self.on_demand(name) {
                let names: Vec<String> = view.features.iter().map(|field| field.name.clone()).collect();
                pick_name(name, &names, feature).map_err(&blame)?
            } else {
                let both: Vec<String> =
                    [self.names(DefinitionKind::FeatureView), self.names(DefinitionKind::OnDemandFeatureView)].concat();
                return Err(blame(match nearest(name, both.iter().map(String::as_str)) {
                    Some(near) => format!("feature view `{name}` not found; did you mean `{near}`?"),
                    None => format!("feature view `{name}` not found; define it in these files"),
                }));
            };
            for feature in features {
                if !seen.insert((name, feature.clone())) {
                    let twice = format!("`{name}:{feature}` stands twice in FeatureService `{}`", service.name);
                    return Err(blame(twice));
                }
            }
        }
        Ok(())
    }

    fn check_model(&self, model: &record::Model) -> Result<(), Complaint> {
        if !model.feature_service.is_empty()
            && !self.now.contains_key(&(DefinitionKind::FeatureService, model.feature_service.clone()))
        {
            return Err(about(&model.feature_service)(
                self.missing(DefinitionKind::FeatureService, &model.feature_service),
            ));
        }
        Ok(())
    }

    fn check_deployment(&self, deployment: &record::Deployment) -> Result<(), Complaint> {
        if !self.now.contains_key(&(DefinitionKind::Model, deployment.model.clone())) {
            return Err(about(&deployment.model)(self.missing(DefinitionKind::Model, &deployment.model)));
        }
        if !deployment.challengers.is_empty() || !deployment.shadows.is_empty() {
            return Err(format!(
                "Deployment `{}`: challengers and shadows are not served by this version; leave them empty",
                deployment.name
            )
            .into());
        }
        Ok(())
    }

    /// What applying it would make, and the command for exactly that.
    ///
    /// Readers of views go along, written or not, because a new version of a view makes a new one of them.
    fn bind(&self, catalog: &Catalog, project: &str) -> Result<Plan, Problem> {
        let reads = |kind: &Kind| matches!(kind, Kind::OnDemandFeatureView(_) | Kind::FeatureService(_));
        let concerned = self.now.iter().filter(|(key, kind)| self.written.contains_key(*key) || reads(kind));
        let definitions: Vec<_> = concerned.map(|(_, kind)| record::Definition { kind: Some(kind.clone()) }).collect();
        let versions = preview(catalog, project, &definitions).map_err(|refused| self.refusal(&refused.to_string()))?;

        let mut changes: BTreeMap<Key, Change> =
            self.written.keys().map(|key| (key.clone(), self.unchanged(key))).collect();
        for version in &versions {
            let Some(definition) = &version.definition else { continue };
            let (Some(key), Some(after)) = (key_of(definition), &definition.kind) else { continue };
            let before = self.newest(&key);
            let kind = before.as_ref().and_then(|before| before.definition.as_ref()?.kind.as_ref());
            let change = Change {
                action: if before.is_some() { "update" } else { "create" }.to_owned(),
                to_version: version.version,
                details: diff::details(kind, after),
                loses_rows: before.as_ref().is_some_and(|before| before.storage_id != version.storage_id),
                ..self.unchanged(&key)
            };
            changes.insert(key, change);
        }
        let command = record::ApplyDefinitions {
            project: project.to_owned(),
            definitions: versions.into_iter().filter_map(|version| version.definition).collect(),
            expected_catalog_version: self.existing.map_or(0, Project::catalog_version),
        };
        Ok(Plan { changes: changes.into_values().collect(), command })
    }

    fn newest(&self, key: &Key) -> Option<record::DefinitionVersion> {
        self.existing?.definition(key.0, &key.1)
    }

    fn unchanged(&self, key: &Key) -> Change {
        let version = self.newest(key).map_or(0, |newest| newest.version);
        Change {
            kind: key.0.as_str().to_owned(),
            name: key.1.clone(),
            action: "unchanged".to_owned(),
            from_version: version,
            to_version: version,
            details: Vec::new(),
            loses_rows: false,
        }
    }

    /// A refusal begins with the definition at fault: so it finds its place.
    fn refusal(&self, message: &str) -> Problem {
        let at_fault = |key: &&Key| message.starts_with(&format!("{} `{}`: ", key.0.words(), key.1));
        let key = self.written.keys().chain(self.now.keys()).find(at_fault);
        let whole = || Place { path: "definitions".to_owned(), line: 0, column: 0 };
        Problem { place: key.map_or_else(whole, |key| self.place(key, None)), message: message.to_owned() }
    }
}

fn check_entity(entity: &record::Entity) -> Result<(), Complaint> {
    unique(entity.join_keys.iter().map(|key| key.name.as_str()), "join key")?;
    for key in &entity.join_keys {
        reserved(&key.name).map_err(about(&key.name))?;
        let kind = key.r#type.unwrap_or_default();
        let allowed = !kind.list && !matches!(kind.kind(), record::ValueKind::Float32 | record::ValueKind::Float64);
        if !allowed {
            let name = cairn_storage::types::type_name(&kind);
            return Err(about(&key.name)(format!(
                "join key `{}` is {name}; a key is an integer, string, bytes, bool, date or timestamp",
                key.name
            )));
        }
    }
    Ok(())
}

/// `view` or `view:feature`. A pinned version (`view@3`) is refused in definitions: they follow the newest.
fn split_reference(reference: &str) -> Result<(&str, Option<&str>), String> {
    let (view, feature) = match reference.split_once(':') {
        Some((view, feature)) => (view, Some(feature)),
        None => (reference, None),
    };
    if view.contains('@') {
        return Err(format!("`{reference}` pins a version; definitions follow the newest: leave the `@` part out"));
    }
    super::parse::check_name(view, true)?;
    if let Some(feature) = feature {
        super::parse::check_name(feature, false)?;
    }
    Ok((view, feature))
}

fn pick<'v>(view: &'v record::FeatureView, feature: Option<&str>) -> Result<Vec<&'v record::Field>, String> {
    let Some(wanted) = feature else { return Ok(view.features.iter().collect()) };
    match view.features.iter().find(|field| field.name == wanted) {
        Some(field) => Ok(vec![field]),
        None => Err(no_feature(&view.name, view.features.iter().map(|field| field.name.as_str()), wanted)),
    }
}

fn pick_name(view: &str, names: &[String], feature: Option<&str>) -> Result<Vec<String>, String> {
    match feature {
        None => Ok(names.to_vec()),
        Some(wanted) if names.iter().any(|name| name == wanted) => Ok(vec![wanted.to_owned()]),
        Some(wanted) => Err(no_feature(view, names.iter().map(String::as_str), wanted)),
    }
}

fn no_feature<'n>(view: &str, names: impl Iterator<Item = &'n str> + Clone, wanted: &str) -> String {
    match nearest(wanted, names.clone()) {
        Some(near) => format!("feature view `{view}` has no feature `{wanted}`; did you mean `{near}`?"),
        None => {
            format!("feature view `{view}` has no feature `{wanted}`; it has {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

fn unique<'n>(names: impl Iterator<Item = &'n str>, what: &str) -> Result<(), Complaint> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(about(name)(format!("{what} `{name}` stands twice")));
        }
    }
    Ok(())
}

fn reserved(name: &str) -> Result<(), String> {
    if [EVENT_TIMESTAMP, CREATED_TIMESTAMP].contains(&name) {
        return Err(format!("`{name}` is the name of a time column; choose another"));
    }
    if name.ends_with("__status") {
        return Err(format!("`{name}` ends in `__status`, which names status columns; choose another"));
    }
    Ok(())
}
