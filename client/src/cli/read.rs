//! `cairn get`, `cairn predict`: features and predictions by key.

use super::Session;
use super::args::{EntityArg, GetArgs, LevelArg, PredictArgs, ReadArgs};
use super::failure::{Failure, Outcome};
use super::output;
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use cairn_client::command::{GetOnlineFeatures, Level, Predict, Read, ReadReply};
use cairn_client::registry::VersionOf;
use cairn_client::{Error, ErrorKind, read};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub async fn get(session: &Session, args: GetArgs) -> Outcome {
    let (feature_service, features) = service_or_features(&args.features)?;
    let ask = GetOnlineFeatures {
        feature_service,
        features,
        read: args.read.read(Level::Bounded)?,
        as_of: args.as_of,
        known_as_of: args.read.known_as_of,
        statuses: args.statuses,
        full_feature_names: args.full_feature_names,
        entities: Some(entities(&args.entities)?),
        ..read::online(session.project())
    };
    let (rows, reply) = session.client.get_online_features(ask).await.map_err(unknown_name)?;
    show(session, &rows, &reply, None)
}

pub async fn predict(session: &Session, args: PredictArgs) -> Outcome {
    let keys = entities(&args.entities)?;
    let mut ask = Predict {
        deployment: args.deployment,
        read: args.read.read(Level::Bounded)?,
        as_of: args.as_of,
        known_as_of: args.read.known_as_of,
        features: args.features,
        entities: Some(keys.clone()),
        ..read::predict(session.project())
    };
    if let Some(model) = args.model {
        match model.which {
            Some(VersionOf::Number(version)) => ask.version = Some(version),
            Some(VersionOf::Alias(alias)) => ask.alias = Some(alias),
            None => {
                let name = model.name;
                return Err(Failure::input(format!(
                    "which version of `{name}`? write `{name}@1` or `{name}:champion`"
                )));
            }
        }
        ask.model = Some(model.name);
    }
    let (rows, reply) = session.client.get_predictions(ask).await.map_err(unknown_name)?;
    show(session, &rows, &reply, Some(&keys))
}

impl ReadArgs {
    pub(super) fn read(&self, default: Level) -> Result<Read, Failure> {
        let level = match self.level {
            Some(LevelArg::Linearizable) => Level::Linearizable,
            Some(LevelArg::Session) => Level::Session,
            Some(LevelArg::Bounded) => Level::Bounded,
            Some(LevelArg::Stale) => Level::Stale,
            // A token asks for its write, not for everybody's newest.
            None if self.token.is_some() => Level::Session,
            None => default,
        };
        if level == Level::Session && self.token.is_none() {
            return Err(Failure::input("`--level session` needs `--token`, the token a write printed"));
        }
        Ok(Read { level, bounded_ms: self.bounded_ms, token: self.token.clone() })
    }
}

/// A name is a service; anything with `:` or `,` is a list of features, in which `view:` means the whole view.
pub(super) fn service_or_features(text: &str) -> Result<(Option<String>, Option<Vec<String>>), Failure> {
    if !text.contains([':', ',']) {
        return Ok((Some(text.to_owned()), None));
    }
    // The node calls a whole view by its bare name, which here is a service's.
    let feature = |name: &str| name.strip_suffix(':').filter(|view| !view.contains(':')).unwrap_or(name).to_owned();
    let features: Vec<_> = text.split(',').map(str::trim).map(feature).filter(|name| !name.is_empty()).collect();
    if features.is_empty() {
        return Err(Failure::input(format!(
            "`{text}` names no feature; write VIEW:FEATURE,VIEW:FEATURE, or VIEW: for all"
        )));
    }
    Ok((None, Some(features)))
}

/// Columns of keys of equal length; a single value counts for all rows. The node turns text into the keys' types.
fn entities(args: &[EntityArg]) -> Result<Map<String, Value>, Failure> {
    let rows = args.iter().map(|arg| arg.values.len()).max().unwrap_or_default();
    let mut columns = Map::new();
    for arg in args {
        let values = match arg.values.as_slice() {
            [one] => vec![one.clone(); rows],
            many if many.len() == rows => many.to_vec(),
            many => {
                return Err(Failure::input(format!(
                    "`{}` has {} values where another key has {rows}; give as many, or one for all rows",
                    arg.key,
                    many.len()
                )));
            }
        };
        if columns.insert(arg.key.clone(), Value::from(values)).is_some() {
            return Err(Failure::input(format!("entity key `{0}` is given twice; write `--entity {0}=A,B`", arg.key)));
        }
    }
    Ok(columns)
}

pub(super) fn unknown_name(error: Error) -> Failure {
    Failure::from(error).hint_when(ErrorKind::NotFound, "`cairn definitions` and `cairn model list` show what there is")
}

/// Prints rows with what is said of the read. `keys` are those that the rows do not carry themselves.
fn show(session: &Session, rows: &RecordBatch, reply: &ReadReply, keys: Option<&Map<String, Value>>) -> Outcome {
    let table = match keys {
        Some(keys) => output::batches(&[with_keys(rows, keys)])?,
        None => output::batches(std::slice::from_ref(rows))?,
    };
    let listed = output::batches_json(std::slice::from_ref(rows))?;
    let text = || match &reply.model {
        Some(model) => format!(
            "{table}answered by {}@{} ({}), features of {}@{}, token {}\n",
            model.model, model.version, model.arm, model.feature_service, model.feature_service_version, reply.token
        ),
        None => table,
    };
    let document = || match keys {
        Some(keys) => json!({"entities": keys, "rows": listed, "read": reply}),
        None => json!({"rows": listed, "read": reply}),
    };
    output::answer(session.global.output, text, document)
}

/// Rows with the keys they were asked by before them, as they were typed.
fn with_keys(rows: &RecordBatch, keys: &Map<String, Value>) -> RecordBatch {
    let named = keys.iter().filter_map(|(name, values)| Some((name.as_str(), values.as_array()?)));
    let columns = named.map(|(name, values)| {
        let texts: StringArray = values.iter().map(Value::as_str).collect();
        (name.to_owned(), Arc::new(texts) as ArrayRef, true)
    });
    let schema = rows.schema();
    let names = schema.fields().iter().map(|field| (field.name().clone(), field.is_nullable()));
    let own = names.zip(rows.columns()).map(|((name, nullable), column)| (name, Arc::clone(column), nullable));
    // An answer of another length than was asked for is shown as it came.
    RecordBatch::try_from_iter_with_nullable(columns.chain(own)).unwrap_or_else(|_| rows.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(key: &str, values: &[&str]) -> EntityArg {
        EntityArg { key: key.into(), values: values.iter().map(|value| (*value).to_owned()).collect() }
    }

    #[test]
    fn one_value_counts_for_all_rows() {
        let columns = entities(&[arg("carrier", &["UA", "AA"]), arg("origin", &["EWR"])]).unwrap();
        assert_eq!(Value::Object(columns), json!({"carrier": ["UA", "AA"], "origin": ["EWR", "EWR"]}));
        let error = format!("{:?}", entities(&[arg("a", &["1", "2", "3"]), arg("b", &["1", "2"])]).unwrap_err());
        assert!(error.contains("`b` has 2 values where another key has 3"), "{error}");
        let error = format!("{:?}", entities(&[arg("a", &["1"]), arg("a", &["2"])]).unwrap_err());
        assert!(error.contains("`a` is given twice; write `--entity a=A,B`"), "{error}");
    }

    #[test]
    fn a_plain_name_is_a_service() {
        let read = |text: &str| service_or_features(text).unwrap();
        assert_eq!(read("eta"), (Some("eta".into()), None));
        assert_eq!(read("v:a, w"), (None, Some(vec!["v:a".into(), "w".into()])));
        assert_eq!(read("v@2:a"), (None, Some(vec!["v@2:a".into()])));
        for text in [",", ":", ":,"] {
            assert!(service_or_features(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_view_with_a_colon_is_the_whole_view() {
        let read = |text: &str| service_or_features(text).unwrap().1.unwrap();
        assert_eq!(read("v:"), ["v"]);
        assert_eq!(read("v@2:"), ["v@2"]);
        assert_eq!(read("v:, w:a"), ["v", "w:a"]);
        assert_eq!(read("v:a:"), ["v:a:"], "the node refuses it, in full");
    }

    #[test]
    fn a_token_makes_a_session_read() {
        let args = |level, token: Option<&str>| ReadArgs {
            level,
            bounded_ms: 500,
            token: token.map(str::to_owned),
            known_as_of: None,
        };
        let level = |args: ReadArgs| args.read(Level::Linearizable).map(|read| read.level).ok();
        assert_eq!(level(args(None, None)), Some(Level::Linearizable));
        assert_eq!(level(args(None, Some("1@2"))), Some(Level::Session));
        assert_eq!(level(args(Some(LevelArg::Stale), Some("1@2"))), Some(Level::Stale));
        assert_eq!(level(args(Some(LevelArg::Session), None)), None);
    }
}
