//! The meta group as consensus uses it: the same entries give the same state, whatever happens in between.

mod commands;
mod jobs;
mod properties;
mod stored;

use super::*;
use crate::engine::EngineOptions;
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::meta_command::Change;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    AddNode, ApplyDefinitions, Arm, Backtest, BacktestMetric, BacktestModel, BacktestScores, BacktestValue,
    BeginSlotMove, BlobRef, CancelSlotMove, ChangeNodeState, Definition, DefinitionVersion, Deployment, EndSlotMove,
    Entity, FeatureService, FeatureType, FeatureView, Field, InitCluster, MetaCommand, MetaOutcome, Model,
    ModelVersion, MoveAlias, Node, NodeState, OnDemandFeature, OnDemandFeatureView, RecordBacktest, RegisterDataset,
    RegisterModelVersion, SlotMove, SlotMoveState, SwitchSlotMap, TimeTick, UpdateNode, ValueKind,
};
use prost::Message;
use tempfile::TempDir;

/// A meta group in a directory of its own, fed entry by entry.
struct Bench {
    meta: Arc<Meta>, // closed before its directory goes
    engine: Arc<Engine>,
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = EngineOptions { cache_bytes: 8 << 20, write_buffer_bytes: 4 << 20, background_jobs: 2 };
        let engine = Engine::new(options);
        let meta = Meta::open(&engine, &root.path().join("meta")).unwrap();
        Self { root, engine, meta }
    }

    fn apply_at(&self, index: u64, command: &[u8]) -> MetaOutcome {
        let outcomes = self.meta.apply(&[Entry { index, command: Some(command) }], &index.to_be_bytes()).unwrap();
        MetaOutcome::decode(&*outcomes[0]).unwrap()
    }

    /// Applies the next entry.
    fn ask(&self, change: Change) -> MetaOutcome {
        self.apply_at(self.meta.applied().index + 1, &command(change, ""))
    }

    fn ok(&self, change: Change) -> Outcome {
        match self.ask(change).outcome.unwrap() {
            Outcome::Refused(refusal) => panic!("refused: {} {}", refusal.kind, refusal.message),
            outcome => outcome,
        }
    }

    /// Checks that the next entry is refused with this kind, and a message with this text in it.
    fn refused(&self, change: Change, kind: &str, message: &str) {
        let before = self.meta.checksum().unwrap();
        match self.ask(change).outcome.unwrap() {
            Outcome::Refused(refusal) => {
                assert_eq!(refusal.kind, kind, "{}", refusal.message);
                assert!(refusal.message.contains(message), "{}", refusal.message);
            }
            other => panic!("not refused: {other:?}"),
        }
        assert_eq!(self.meta.checksum().unwrap(), before, "a refusal changed something");
    }

    /// Applies definitions to project `p`, on top of what is there.
    fn define(&self, definitions: &[Definition]) -> Vec<DefinitionVersion> {
        match self.ok(self.definitions(definitions)) {
            Outcome::DefinitionsApplied(applied) => applied.versions,
            other => panic!("{other:?}"),
        }
    }

    fn definitions(&self, definitions: &[Definition]) -> Change {
        let expected = self.meta.catalog().project("p").map_or(0, |project| project.catalog_version());
        apply_definitions("p", expected, definitions)
    }

    fn restart(self) -> Self {
        let Self { root, engine, meta } = self;
        drop(meta);
        let meta = Meta::open(&engine, &root.path().join("meta")).unwrap();
        Self { root, engine, meta }
    }
}

fn command(change: Change, request_id: &str) -> Vec<u8> {
    let request_id = request_id.to_owned();
    MetaCommand { version: COMMAND_VERSION, proposed_at_us: 1_000, change: Some(change), request_id }.encode_to_vec()
}

fn apply_definitions(project: &str, expected_catalog_version: u64, definitions: &[Definition]) -> Change {
    Change::ApplyDefinitions(ApplyDefinitions {
        project: project.to_owned(),
        definitions: definitions.to_vec(),
        expected_catalog_version,
    })
}

fn of(kind: Kind) -> Definition {
    Definition { kind: Some(kind) }
}

fn field(name: &str, kind: ValueKind) -> Field {
    let r#type = Some(FeatureType { kind: kind as i32, list: false, length: 0 });
    Field { name: name.to_owned(), r#type, description: String::new() }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn entity(name: &str, keys: &[(&str, ValueKind)]) -> Definition {
    let join_keys = keys.iter().map(|(name, kind)| field(name, *kind)).collect();
    of(Kind::Entity(Entity { name: name.to_owned(), join_keys, ..Default::default() }))
}

fn driver() -> Definition {
    entity("driver", &[("driver_id", ValueKind::Int64)])
}

fn view(name: &str, ttl_us: i64, features: &[&str]) -> Definition {
    let features = features.iter().map(|name| field(name, ValueKind::Float32)).collect();
    let entities = strings(&["driver"]);
    of(Kind::FeatureView(FeatureView { name: name.to_owned(), entities, ttl_us, features, ..Default::default() }))
}

fn on_demand(name: &str, sources: &[&str]) -> Definition {
    let r#type = Some(FeatureType { kind: ValueKind::Float64 as i32, ..Default::default() });
    let feature = OnDemandFeature { name: "ratio".to_owned(), r#type, sql: "1.0".to_owned(), ..Default::default() };
    let (sources, features) = (strings(sources), vec![feature]);
    of(Kind::OnDemandFeatureView(OnDemandFeatureView {
        name: name.to_owned(),
        sources,
        features,
        ..Default::default()
    }))
}

fn service(name: &str, features: &[&str]) -> Definition {
    let features = strings(features);
    of(Kind::FeatureService(FeatureService { name: name.to_owned(), features, ..Default::default() }))
}

fn model(name: &str, feature_service: &str) -> Definition {
    let (name, feature_service) = (name.to_owned(), feature_service.to_owned());
    of(Kind::Model(Model { name, feature_service, ..Default::default() }))
}

fn deployment(name: &str, model: &str, champion: Arm) -> Definition {
    let (name, model, champion) = (name.to_owned(), model.to_owned(), Some(champion));
    of(Kind::Deployment(Deployment { name, model, champion, ..Default::default() }))
}

/// A dataset of features.
fn dataset(project: &str, name: &str, features: &[&str]) -> Dataset {
    Dataset {
        project: project.into(),
        name: name.into(),
        spine: Some(BlobRef { root: vec![7; 32].into(), size: 9, sha256: vec![8; 32].into() }),
        spine_file: "spine.csv".into(),
        event_timestamp: "event_timestamp".into(),
        features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        known_us: 300,
        created_as_of_us: Some(-2),
        content: vec![9; 32].into(),
        file_format: "parquet".into(),
        rows: 4,
        token: "1@258".into(),
        ..Default::default()
    }
}

/// A backtest of these versions of model `eta`, which read `eta@1`: ten rows in windows of 4 from -5 to 5.
fn backtest(project: &str, versions: &[u32]) -> Backtest {
    let scores = |(from_us, to_us): (i64, i64), rows| BacktestScores {
        from_us,
        to_us,
        rows,
        positives: Some(rows / 2),
        auc: (rows > 2).then_some(0.75),
        rmse: Some(0.5),
        metrics: vec![BacktestValue { value: None }],
        ..Default::default()
    };
    let model = |version: &u32| BacktestModel {
        model: "eta".into(),
        version: *version,
        alias: if *version == 1 { "champion".into() } else { String::new() },
        feature_service: "eta".into(),
        feature_service_version: 1,
        output: "p".into(),
        class: String::new(),
        overall: Some(scores((-5, 5), 10)),
        windows: vec![scores((-5, -1), 6), scores((-1, 3), 0), scores((3, 5), 4)],
    };
    Backtest {
        project: project.into(),
        models: versions.iter().map(model).collect(),
        from_us: -5,
        to_us: 5,
        window_us: 4,
        label: "late".into(),
        event_timestamp: "event_timestamp".into(),
        spine: Some(BlobRef { root: vec![7; 32].into(), size: 9, sha256: vec![8; 32].into() }),
        spine_file: "spine.csv".into(),
        known_us: 300,
        rows: 10,
        rows_outside: 2,
        content: vec![9; 32].into(),
        metrics: vec![BacktestMetric { name: "mae".into(), sql: "avg(abs(label - prediction))".into() }],
        token: "1@258".into(),
        author: "ann".into(),
        ..Default::default()
    }
}

fn register(project: &str, model: &str, feature_service: &str, create_model: bool) -> Change {
    let artifact = Some(BlobRef { root: vec![7; 32].into(), size: 9, sha256: vec![8; 32].into() });
    let model_version = ModelVersion {
        project: project.to_owned(),
        model: model.to_owned(),
        artifact,
        feature_service: feature_service.to_owned(),
        metrics: [("auc".to_owned(), 0.75), ("loss".to_owned(), 0.5)].into_iter().collect(),
        tags: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into_iter().collect(),
        ..Default::default()
    };
    let model_version = Some(model_version);
    Change::RegisterModelVersion(RegisterModelVersion { model_version, create_model, input_features: Vec::new() })
}

fn move_alias(alias: &str, expected: Option<u32>, to_version: u32) -> Change {
    Change::MoveAlias(MoveAlias {
        project: "p".to_owned(),
        model: "eta".to_owned(),
        alias: alias.to_owned(),
        to_version,
        check_expected: expected.is_some(),
        expected_version: expected.unwrap_or(0),
        author: "ann".to_owned(),
        reason: String::new(),
    })
}

fn init_cluster(id: &str, shards: u32) -> Change {
    let first = Node {
        name: "n1".to_owned(),
        peer_address: "a:1".to_owned(),
        client_address: "a:2".to_owned(),
        ..Default::default()
    };
    Change::InitCluster(InitCluster {
        cluster_id: id.to_owned(),
        shards,
        replication_factor: 0,
        first_node: Some(first),
    })
}

fn add_node(name: &str) -> Change {
    let (peer_address, client_address) = ("b:1".to_owned(), "b:2".to_owned());
    Change::AddNode(AddNode { name: name.to_owned(), peer_address, client_address })
}

fn node_state(id: u64, state: NodeState, forced: bool) -> Change {
    Change::ChangeNodeState(ChangeNodeState { id, state: state as i32, forced })
}

/// The catalog as a restart would build it.
fn rebuilt(meta: &Meta) -> Catalog {
    Catalog::clone(&load(&meta.group.db()).unwrap().catalog)
}
