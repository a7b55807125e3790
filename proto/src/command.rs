//! The JSON commands of Arrow Flight: `FlightDescriptor.cmd` and `Ticket` carry one [`Command`].
//!
//! ```
//! use cairn_proto::command::Command;
//! let text = r#"{"op":"ingest","project":"default","feature_view":"driver_stats","producer":"etl","sequence":7}"#;
//! assert!(matches!(Command::parse(text.as_bytes()).unwrap(), Command::Ingest(_)));
//! ```

use crate::DEFAULT_PROJECT;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What a Flight call asks for. Unknown fields are refused, so a typo is an error and not a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Command {
    /// `DoPut`: rows into a feature view.
    Ingest(Ingest),
    /// `DoExchange` / `DoGet`: newest (or as-of) features by entity key.
    GetOnlineFeatures(GetOnlineFeatures),
    /// `DoExchange`: point-in-time join of an uploaded spine.
    GetHistoricalFeatures(GetHistoricalFeatures),
    /// `DoExchange`: entity rows up, predictions down.
    Predict(Predict),
    /// `DoExchange`: a spine with labels up; model versions are scored over it, and how they did is kept.
    Backtest(Box<Backtest>),
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// A sentence that names the field at fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "the Flight command is not understood: {error}; it is JSON such as \
                 {{\"op\":\"get_online_features\",\"project\":\"default\",\"feature_service\":\"eta\"}}"
            )
        })
    }

    /// The command as the bytes of a descriptor or ticket.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn default_project() -> String {
    DEFAULT_PROJECT.to_owned()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    #[serde(default = "default_project")]
    pub project: String,
    pub feature_view: String,
    /// With `sequence`: applied exactly once. The batches of one stream count up from `sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The rows have a key, times and no features: each deletes its entity as of its event time. Reads as of before see
    /// what was there; a row with a later event time, or made later for the same one, brings the entity back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
}

impl Ingest {
    /// Rows into a feature view, without a producer.
    pub fn new(project: impl Into<String>, feature_view: impl Into<String>) -> Self {
        let (project, feature_view) = (project.into(), feature_view.into());
        Self { project, feature_view, producer: None, sequence: None, delete: false }
    }
}

/// Reply metadata of each ingested batch (`PutResult.app_metadata`, JSON), and of all of them summed up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ingested {
    pub rows_accepted: u64,
    /// Became the newest row of their entity.
    pub rows_updated: u64,
    /// Their (producer, sequence) had been applied before.
    pub rows_duplicate: u64,
    pub rows_rejected: u64,
    /// At most [`REJECTIONS_MAX`] of them; `rows_rejected` counts all.
    pub rejections: Vec<Rejection>,
    pub token: String,
}

/// Rejections spelled out per batch.
pub const REJECTIONS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// Row number inside the batch, from 0.
    pub row: u64,
    pub reason: String,
}

/// How fresh an answer must be (DESIGN: consistency).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    #[serde(default)]
    pub level: Level,
    /// For `bounded`: oldest acceptable state, milliseconds.
    #[serde(default = "default_bounded_ms")]
    pub bounded_ms: u64,
    /// At least this token, whatever the level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

fn default_bounded_ms() -> u64 {
    500
}

impl Default for Read {
    fn default() -> Self {
        Self { level: Level::default(), bounded_ms: default_bounded_ms(), token: None }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Linearizable,
    /// At least the given token.
    Session,
    #[default]
    Bounded,
    Stale,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetOnlineFeatures {
    #[serde(default = "default_project")]
    pub project: String,
    /// Either a service …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_service: Option<String>,
    /// … or `view:feature` references (`view` alone = all its features; `view@3:feature` pins a version).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    #[serde(default)]
    pub read: Read,
    /// Event time the answer is about; absent = now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    /// Commit time: only what Cairn knew then; absent = all it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as_of: Option<Timestamp>,
    /// Adds a string column `<feature>__status` beside each feature.
    #[serde(default)]
    pub statuses: bool,
    /// Names columns `view__feature`.
    #[serde(default)]
    pub full_feature_names: bool,
    /// `DoGet` only: `{"driver_id": [1, 2]}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetHistoricalFeatures {
    #[serde(default = "default_project")]
    pub project: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_service: Option<String>,
    /// Version of the service; absent = the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_service_version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    #[serde(default)]
    pub read: Read,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as_of: Option<Timestamp>,
    /// Created-time cutoff for all rows instead of each spine row's own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_as_of: Option<Timestamp>,
    /// `true`: corrections created after a spine row's time count too.
    #[serde(default)]
    pub ignore_created: bool,
    /// Spine column with the time of each row.
    #[serde(default = "default_event_timestamp")]
    pub event_timestamp: String,
    #[serde(default)]
    pub statuses: bool,
    #[serde(default)]
    pub full_feature_names: bool,
}

fn default_event_timestamp() -> String {
    EVENT_TIMESTAMP.to_owned()
}

/// Column with the event time of ingested rows, and of a spine unless named otherwise.
pub const EVENT_TIMESTAMP: &str = "event_timestamp";
/// Optional column with the created time of ingested rows.
pub const CREATED_TIMESTAMP: &str = "created_timestamp";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    #[serde(default = "default_project")]
    pub project: String,
    /// Either a deployment …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// … or a model with `version` or `alias`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(default)]
    pub read: Read,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as_of: Option<Timestamp>,
    /// Also returns the feature values the model saw.
    #[serde(default)]
    pub features: bool,
    /// Asks for attributions; refused as unsupported until executors offer them.
    #[serde(default)]
    pub explain: bool,
    /// `DoGet` only: the entity rows, `{"driver_id": [1, 2]}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Model versions over a past interval: each row of the uploaded spine with the features known at its own time, all models at
/// one moment of commit time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backtest {
    #[serde(default = "default_project")]
    pub project: String,
    pub models: Vec<BacktestModel>,
    /// Event time of the first row that counts …
    pub from: Timestamp,
    /// … and of the first one after it that does not.
    pub to: Timestamp,
    /// Length of a window, microseconds. Windows begin at `from`; the last one ends at `to`. Absent = one window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_us: Option<i64>,
    /// Spine column with what really happened: true or false, or a number.
    pub label: String,
    /// Leaves out rows without a label, and counts them, instead of refusing them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_null_labels: bool,
    /// Spine column with the time of each row.
    #[serde(default = "default_event_timestamp")]
    pub event_timestamp: String,
    /// Root of the artifact that holds the spine, so that others can do it again.
    pub spine_root: String,
    /// Its name, whose end tells the format.
    pub spine_file: String,
    /// Only what was committed by then; absent = now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as_of: Option<Timestamp>,
    /// Metrics beyond those that are always there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<BacktestMetric>,
    /// Also sends back the rows that were scored, each with one column of scores a model, named `model@version`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub predictions: bool,
    /// Who asks, for those who read the evidence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// One of the models of a backtest, with `version` or `alias`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BacktestModel {
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Output that holds the score; absent = the only one that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Where the output has several values a row: the class whose value is the score, by its label, or by its number
    /// from 0 where the model names none. Absent = the positive one of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// A SQL aggregate over the columns `label`, `prediction` and those of the spine, such as `avg(abs(label - prediction))`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BacktestMetric {
    pub name: String,
    pub sql: String,
}

/// What a backtest says while it goes on (`app_metadata`, JSON): how far it is, and at the end what it is kept as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacktestReply {
    /// Of the spine: scored or left out.
    pub rows_done: u64,
    /// Id of the evidence, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtest: Option<u64>,
    /// Sees the evidence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// What a read reply says of itself (`app_metadata`, JSON), one entry a shard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadReply {
    /// The caller's own id of the request, given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub level: Option<Level>,
    pub shards: Vec<ShardPosition>,
    /// All positions as a token.
    pub token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelServed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardPosition {
    pub shard: u32,
    pub applied_index: u64,
    pub applied_time: Timestamp,
}

/// Which model answered a predict.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelServed {
    pub model: String,
    pub version: u32,
    pub arm: String,
    pub artifact_root: String,
    pub feature_service: String,
    pub feature_service_version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_named() {
        let error = Command::parse(br#"{"op":"ingest","feature_view":"v","sequnce":1}"#).unwrap_err();
        assert!(error.contains("sequnce"), "{error}");
        let error = Command::parse(br#"{"op":"ingst"}"#).unwrap_err();
        assert!(error.contains("ingst"), "{error}");
        assert!(Command::parse(b"\xff\x00").is_err());
    }

    #[test]
    fn commands_read_what_they_write() {
        let text = r#"{"op":"get_online_features","features":["v:f"],"as_of":"2013-01-01T00:00:00Z","statuses":true}"#;
        let command = Command::parse(text.as_bytes()).unwrap();
        assert_eq!(Command::parse(&command.to_bytes()).unwrap(), command);
        let Command::GetOnlineFeatures(read) = command else { panic!("wrong op") };
        assert_eq!(read.as_of, Some(Timestamp(1_356_998_400_000_000)));
        assert_eq!(read.read, Read::default());
    }
}
