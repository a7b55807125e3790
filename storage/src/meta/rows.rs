//! The rows of the meta group: typed keys that sort, values with a version byte before their record.
//!
//! ```text
//! key    tag u8 | parts; a text part ends in 0x00; integers are big endian
//! value  0x01 | record.v1 message, encoded the one way of `canonical`
//!        0x02 | a Node in another state than active; a ClusterInfo whose slots move or have moved; a FeatureView with files
//! 00                                  position: 0x01 | index u64 | time i64 | what consensus says
//! 01                                  ClusterInfo
//! 02 id                               Node
//! 03 project                          Project
//! 04 project, kind u8, name, version  DefinitionVersion
//! 05 project, model, version          ModelVersion
//! 06 project, model, alias            AliasMove: the last one; to_version 0 = removed
//! 07 project, model, index            AliasMove: every one
//! 08 from, to, kind                   LineageEdge; 09 to, from, kind: the same, for the way up
//! 0a request id                       MetaOutcome: the first one
//! 0b slot u32                         request id whose turn to be forgotten this slot is
//! 0c                                  MetaCounters
//! 0d project, name                    Dataset
//! 10 id                               Job
//! 11 project, storage id              Filled
//! 18 project, !id u64                 Backtest, without windows: the newest first
//! 19 project, id u64                  BacktestWindows
//! 1a project, model, version, !id u64 BacktestOf
//! ```
//! Golden files: `tests/golden/meta_rows_v1.hex`, `tests/golden/meta_rows_v2.hex`,
//! `tests/golden/meta_clusters_v2.hex`, `tests/golden/meta_definitions_v2.hex`, `tests/golden/meta_jobs_v3.hex`.

use super::canonical;
use crate::catalog::DefinitionKind;
use crate::{Error, Result};
use cairn_proto::record::v1::{
    AliasMove, Backtest, BacktestOf, BacktestWindows, ClusterInfo, Dataset, Definition, DefinitionVersion, Filled, Job,
    LineageEdge, MetaCounters, ModelVersion, Node, NodeState, Project, definition::Kind, job,
};
use prost::Message;

/// Of values. A newer one is refused.
const VALUE_VERSION: u8 = 1;
/// Of nodes that are not simply active, and of a cluster whose slots are not where they were at first: a cairnd that
/// knows no states must not take the nodes for active ones, nor look for rows where they were. Also of a feature view with
/// files, which an older one would lose.
const STATES_VERSION: u8 = 2;
/// Of jobs that load: an older cairnd would go on with their chunks row by row.
const LOADS_VERSION: u8 = 3;

/// Where the position is kept; not part of the state that replicas compare.
pub const POSITION_KEY: &[u8] = &[tag::POSITION];

/// What the keys of all datasets, and of all edges from where they come, begin with.
pub const DATASETS: &[u8] = &[tag::DATASET];
pub const EDGES: &[u8] = &[tag::LINEAGE_DOWN];

mod tag {
    pub const POSITION: u8 = 0x00;
    pub const CLUSTER: u8 = 0x01;
    pub const NODE: u8 = 0x02;
    pub const PROJECT: u8 = 0x03;
    pub const DEFINITION: u8 = 0x04;
    pub const MODEL_VERSION: u8 = 0x05;
    pub const ALIAS: u8 = 0x06;
    pub const ALIAS_HISTORY: u8 = 0x07;
    pub const LINEAGE_DOWN: u8 = 0x08;
    pub const LINEAGE_UP: u8 = 0x09;
    pub const REQUEST: u8 = 0x0a;
    pub const REQUEST_SLOT: u8 = 0x0b;
    pub const COUNTERS: u8 = 0x0c;
    pub const DATASET: u8 = 0x0d;
    pub const JOB: u8 = 0x10;
    pub const FILLED: u8 = 0x11;
    pub const BACKTEST: u8 = 0x18;
    pub const BACKTEST_WINDOWS: u8 = 0x19;
    pub const BACKTEST_OF: u8 = 0x1a;
}

/// One row. Its key follows from its content.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    Cluster(ClusterInfo),
    Node(Node),
    Project(Project),
    Definition(DefinitionVersion),
    ModelVersion(Box<ModelVersion>),
    Alias(AliasMove),
    AliasHistory(AliasMove),
    LineageDown(LineageEdge),
    LineageUp(LineageEdge),
    Request { id: String, outcome: Vec<u8> },
    RequestSlot { slot: u32, id: String },
    Counters(MetaCounters),
    Dataset(Box<Dataset>),
    Job(Box<Job>),
    Filled(Filled),
    Backtest(Box<Backtest>),
    BacktestWindows(BacktestWindows),
    BacktestOf(BacktestOf),
}

impl Row {
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::Cluster(_) => Key::new(tag::CLUSTER).done(),
            Self::Node(node) => Key::new(tag::NODE).u64(node.id).done(),
            Self::Project(project) => Key::new(tag::PROJECT).text(&project.name).done(),
            Self::Definition(version) => {
                let of = version.definition.as_ref().and_then(DefinitionKind::of);
                let (kind, name) = of.map_or((0, ""), |(kind, name)| (kind as u8, name));
                Key::new(tag::DEFINITION).text(&version.project).u8(kind).text(name).u32(version.version).done()
            }
            Self::ModelVersion(version) => {
                Key::new(tag::MODEL_VERSION).text(&version.project).text(&version.model).u32(version.version).done()
            }
            Self::Alias(moved) => {
                Key::new(tag::ALIAS).text(&moved.project).text(&moved.model).text(&moved.alias).done()
            }
            Self::AliasHistory(moved) => {
                Key::new(tag::ALIAS_HISTORY).text(&moved.project).text(&moved.model).u64(moved.index).done()
            }
            Self::LineageDown(edge) => {
                Key::new(tag::LINEAGE_DOWN).text(&edge.from).text(&edge.to).text(&edge.kind).done()
            }
            Self::LineageUp(edge) => Key::new(tag::LINEAGE_UP).text(&edge.to).text(&edge.from).text(&edge.kind).done(),
            Self::Request { id, .. } => request_key(id),
            Self::RequestSlot { slot, .. } => request_slot_key(*slot),
            Self::Counters(_) => counters_key(),
            Self::Dataset(dataset) => dataset_key(&dataset.project, &dataset.name),
            Self::Job(job) => job_key(job.id),
            Self::Filled(filled) => Key::new(tag::FILLED).text(&filled.project).u32(filled.storage_id).done(),
            Self::Backtest(backtest) => backtest_key(&backtest.project, backtest.id),
            Self::BacktestWindows(windows) => backtest_windows_key(&windows.project, windows.id),
            Self::BacktestOf(of) => {
                let of_version = Key(backtests_of_version_prefix(&of.project, &of.model, of.version));
                of_version.u64(!of.id).done()
            }
        }
    }

    pub fn value(&self) -> Vec<u8> {
        let mut value = vec![self.version()];
        match self {
            Self::Cluster(it) => value.extend(it.encode_to_vec()),
            Self::Node(it) => value.extend(it.encode_to_vec()),
            Self::Project(it) => value.extend(it.encode_to_vec()),
            Self::Definition(it) => value.extend(it.encode_to_vec()),
            Self::ModelVersion(it) => value.extend(canonical::model_version(it)),
            Self::Alias(it) | Self::AliasHistory(it) => value.extend(it.encode_to_vec()),
            Self::LineageDown(it) | Self::LineageUp(it) => value.extend(it.encode_to_vec()),
            Self::Request { outcome, .. } => value.extend(outcome),
            Self::RequestSlot { id, .. } => value.extend(id.as_bytes()),
            Self::Counters(it) => value.extend(it.encode_to_vec()),
            Self::Dataset(it) => value.extend(it.encode_to_vec()),
            Self::Job(it) => value.extend(it.encode_to_vec()),
            Self::Filled(it) => value.extend(it.encode_to_vec()),
            Self::Backtest(it) => value.extend(it.encode_to_vec()),
            Self::BacktestWindows(it) => value.extend(it.encode_to_vec()),
            Self::BacktestOf(it) => value.extend(it.encode_to_vec()),
        }
        value
    }

    fn version(&self) -> u8 {
        match self {
            Self::Node(node) if node.state() != NodeState::Active => STATES_VERSION,
            Self::Cluster(cluster) if cluster.slot_move.is_some() || cluster.slot_map_epoch > 1 => STATES_VERSION,
            Self::Definition(version) if version.definition.as_ref().is_some_and(is_newer) => STATES_VERSION,
            Self::Job(job) if loads(job) => LOADS_VERSION,
            _ => VALUE_VERSION,
        }
    }

    /// Reads a row back; `None` for the position.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of a newer version, `Corrupt` for anything not understood.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Option<Self>> {
        let corrupt = || Error::Corrupt(format!("a row of the meta group is not understood (key {key:02x?})"));
        let has_states = matches!(key.first(), Some(&tag::NODE | &tag::CLUSTER | &tag::DEFINITION));
        let message = match value.split_first() {
            Some((&STATES_VERSION, message)) if has_states => message,
            Some((&LOADS_VERSION, message)) if key.first() == Some(&tag::JOB) => message,
            _ => payload(value)?,
        };
        fn read<M: Message + Default>(message: &[u8], wrap: fn(M) -> Row) -> Result<Row, prost::DecodeError> {
            M::decode(message).map(wrap)
        }
        let row = match *key.first().ok_or_else(corrupt)? {
            tag::POSITION => return Ok(None),
            tag::CLUSTER => read(message, Self::Cluster),
            tag::NODE => read(message, Self::Node),
            tag::PROJECT => read(message, Self::Project),
            tag::DEFINITION => read(message, Self::Definition),
            tag::MODEL_VERSION => read(message, |version| Self::ModelVersion(Box::new(version))),
            tag::ALIAS => read(message, Self::Alias),
            tag::ALIAS_HISTORY => read(message, Self::AliasHistory),
            tag::LINEAGE_DOWN => read(message, Self::LineageDown),
            tag::LINEAGE_UP => read(message, Self::LineageUp),
            tag::COUNTERS => read(message, Self::Counters),
            tag::DATASET => read(message, |dataset| Self::Dataset(Box::new(dataset))),
            tag::JOB => read(message, |job| Self::Job(Box::new(job))),
            tag::FILLED => read(message, Self::Filled),
            tag::BACKTEST => read(message, |backtest| Self::Backtest(Box::new(backtest))),
            tag::BACKTEST_WINDOWS => read(message, Self::BacktestWindows),
            tag::BACKTEST_OF => read(message, Self::BacktestOf),
            tag::REQUEST => {
                let id = key[1..].strip_suffix(&[0]).and_then(|id| std::str::from_utf8(id).ok()).ok_or_else(corrupt)?;
                let id = id.to_owned();
                Ok(Self::Request { id, outcome: message.to_vec() })
            }
            tag::REQUEST_SLOT => {
                let slot = key[1..].try_into().map(u32::from_be_bytes).map_err(|_| corrupt())?;
                let id = std::str::from_utf8(message).map_err(|_| corrupt())?.to_owned();
                Ok(Self::RequestSlot { slot, id })
            }
            _ => return Err(corrupt()),
        };
        let row = row.map_err(|_| corrupt())?;
        if row.key() != key || Some(&row.version()) != value.first() { Err(corrupt()) } else { Ok(Some(row)) }
    }

    /// Whether the first such row stays when it is written again.
    pub fn keeps_first(&self) -> bool {
        matches!(self, Self::LineageDown(_) | Self::LineageUp(_))
    }
}

/// What a row's key starts with: all edges out of a node, or into it.
pub fn lineage_prefix(node: &str, up: bool) -> Vec<u8> {
    Key::new(if up { tag::LINEAGE_UP } else { tag::LINEAGE_DOWN }).text(node).0
}

/// All alias moves of a model, oldest first.
pub fn alias_history_prefix(project: &str, model: &str) -> Vec<u8> {
    Key::new(tag::ALIAS_HISTORY).text(project).text(model).0
}

pub fn request_key(id: &str) -> Vec<u8> {
    Key::new(tag::REQUEST).text(id).done()
}

pub fn request_slot_key(slot: u32) -> Vec<u8> {
    Key::new(tag::REQUEST_SLOT).u32(slot).done()
}

pub fn counters_key() -> Vec<u8> {
    Key::new(tag::COUNTERS).done()
}

pub fn dataset_key(project: &str, name: &str) -> Vec<u8> {
    Key::new(tag::DATASET).text(project).text(name).done()
}

/// All datasets of a project, by name.
pub fn datasets_prefix(project: &str) -> Vec<u8> {
    Key::new(tag::DATASET).text(project).0
}

pub fn job_key(id: u64) -> Vec<u8> {
    Key::new(tag::JOB).u64(id).done()
}

/// Whether a definition is one that older nodes would not see whole: a feature view with files, a hot window or retention.
pub fn is_newer(definition: &Definition) -> bool {
    let Some(Kind::FeatureView(view)) = &definition.kind else { return false };
    view.files.is_some() || view.hot_window_us != 0 || view.retention_us != 0
}

/// Whether a job writes segments instead of rows.
pub fn loads(job: &Job) -> bool {
    matches!(&job.kind, Some(job::Kind::Backfill(fill)) if fill.loads)
}

/// Keys from the first on and below the second are of the catalog too.
pub fn catalog_rest() -> (Vec<u8>, Vec<u8>) {
    (vec![tag::JOB], vec![tag::BACKTEST])
}

pub fn backtest_key(project: &str, id: u64) -> Vec<u8> {
    Key(backtests_prefix(project)).u64(!id).done()
}

/// Of a backtest's key, its id.
pub fn backtest_id(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|id| !u64::from_be_bytes(*id))
}

/// All backtests of a project, the newest first.
pub fn backtests_prefix(project: &str) -> Vec<u8> {
    Key::new(tag::BACKTEST).text(project).0
}

pub fn backtest_windows_key(project: &str, id: u64) -> Vec<u8> {
    Key::new(tag::BACKTEST_WINDOWS).text(project).u64(id).done()
}

/// Which backtests a model is in: by version, then the newest first.
pub fn backtests_of_prefix(project: &str, model: &str) -> Vec<u8> {
    Key::new(tag::BACKTEST_OF).text(project).text(model).0
}

/// Which backtests a model version is in, the newest first.
pub fn backtests_of_version_prefix(project: &str, model: &str, version: u32) -> Vec<u8> {
    Key(backtests_of_prefix(project, model)).u32(version).0
}

/// Keys below this make up the catalog.
pub fn catalog_end() -> Vec<u8> {
    vec![tag::ALIAS_HISTORY]
}

/// The bytes behind the version of a value.
pub fn payload(value: &[u8]) -> Result<&[u8]> {
    match value.split_first() {
        Some((&VALUE_VERSION, message)) => Ok(message),
        Some((version, _)) if *version > VALUE_VERSION => Err(Error::InvalidArgument(format!(
            "the meta group holds values of format {version}, written by a newer Cairn; this one reads up to \
             {LOADS_VERSION}: start the newer cairnd"
        ))),
        _ => Err(Error::Corrupt("a value of the meta group is damaged".to_owned())),
    }
}

/// Builds a key. Text parts hold no 0x00: names and lineage nodes are checked before they get here.
struct Key(Vec<u8>);

impl Key {
    fn new(tag: u8) -> Self {
        Self(vec![tag])
    }

    fn text(mut self, part: &str) -> Self {
        self.0.extend(part.bytes());
        self.0.push(0);
        self
    }

    fn u8(mut self, part: u8) -> Self {
        self.0.push(part);
        self
    }

    fn u32(mut self, part: u32) -> Self {
        self.0.extend(part.to_be_bytes());
        self
    }

    fn u64(mut self, part: u64) -> Self {
        self.0.extend(part.to_be_bytes());
        self
    }

    fn done(self) -> Vec<u8> {
        self.0
    }
}
