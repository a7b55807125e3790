//! What is on disk: golden bytes, and data of other versions.

use super::*;
use cairn_proto::record::v1::{
    AliasMove, Backfill, BacktestOf, BacktestWindows, ChunkRange, ClusterInfo, FileSource, Filled, Job, LineageEdge,
    MetaCounters, NodeState, Project, SourceFile, job,
};
use std::fmt::Write;

fn one_of_each() -> Vec<Row> {
    let text = |text: &str| text.to_owned();
    let moved = AliasMove {
        project: text("p"),
        model: text("eta"),
        alias: text("champion"),
        from_version: 1,
        to_version: 2,
        moved_us: -5,
        index: 77,
        author: text("ann"),
        reason: text("better"),
    };
    let edge = LineageEdge {
        from: text("entity:p/e@1"),
        to: text("feature_view:p/v@1"),
        kind: text("keys"),
        index: 7,
        at_us: 8,
    };
    let Change::RegisterModelVersion(register) = register("p", "eta", "eta", true) else { panic!() };
    let node = Node {
        id: 3,
        name: text("n1"),
        peer_address: text("a:1"),
        client_address: text("a:2"),
        joined_us: 4,
        ..Default::default()
    };
    let cluster = ClusterInfo {
        cluster_id: text("c"),
        shards: 2,
        slot_map_epoch: 1,
        slot_shard: vec![1, 2],
        ..Default::default()
    };
    let definition = DefinitionVersion {
        project: text("p"),
        version: 258,
        definition: Some(view("rides", 60, &["rating"])),
        storage_id: 5,
        index: 6,
        applied_us: 7,
    };
    let fill = Backfill {
        view: text("rides"),
        view_version: 2,
        storage_id: 258,
        from_us: -10,
        to_us: 300,
        chunk_us: 7,
        lanes: 2,
        files: vec![SourceFile { path: text("/data/a.csv"), size: 258, content: vec![5; 32].into() }],
        done: vec![ChunkRange { first: 0, last: 3 }, ChunkRange { first: 5, last: 5 }],
        rows: 1_000,
        batch_rows: 64,
        loads: false,
    };
    let job = Job {
        id: 77,
        project: text("p"),
        state: 1,
        message: text("why"),
        revision: 78,
        begun_us: 1,
        changed_us: 2,
        ended_us: 3,
        author: text("ann"),
        node: 4,
        kind: Some(job::Kind::Backfill(fill)),
    };
    vec![
        Row::Cluster(cluster),
        Row::Node(node),
        Row::Project(Project { name: text("p"), catalog_version: 300, created_us: 1, created_index: 2 }),
        Row::Definition(definition),
        Row::ModelVersion(Box::new(ModelVersion { version: 2, ..register.model_version.unwrap() })),
        Row::Alias(moved.clone()),
        Row::AliasHistory(moved),
        Row::LineageDown(edge.clone()),
        Row::LineageUp(edge),
        Row::Request { id: text("request-1"), outcome: vec![1, 2, 3] },
        Row::RequestSlot { slot: 258, id: text("request-1") },
        Row::Counters(MetaCounters { requests: 259 }),
        Row::Dataset(Box::new(dataset("p", "may", &["rides@1:rating"]))),
        Row::Job(Box::new(job)),
        Row::Filled(Filled { project: text("p"), storage_id: 258, job: 77, index: 300, at_us: -9 }),
        Row::Backtest(Box::new(Backtest { id: 258, created_us: 7, ..backtest("p", &[1, 2]) })),
        Row::BacktestWindows(BacktestWindows {
            project: text("p"),
            id: 258,
            windows: backtest("p", &[1]).models.remove(0).windows,
        }),
        Row::BacktestOf(BacktestOf { project: text("p"), model: text("eta"), version: 2, id: 258 }),
    ]
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What version 1 wrote is read for ever.
#[test]
fn golden_rows_hold() {
    let mut golden = String::new();
    for row in one_of_each() {
        let (key, value) = (row.key(), row.value());
        assert_eq!(Row::decode(&key, &value).unwrap().unwrap(), row);
        let name: String = format!("{row:?}").chars().take_while(char::is_ascii_alphanumeric).collect();
        writeln!(golden, "{name}: {} = {}", digits(&key), digits(&value)).unwrap();
    }
    let position = encode_position(Applied { index: 258, time_us: -2 }, b"position");
    writeln!(golden, "Position: {} = {}", digits(rows::POSITION_KEY), digits(&position)).unwrap();
    expect_test::expect_file!["../../../tests/golden/meta_rows_v1.hex"].assert_eq(&golden);
}

/// What a version that knows moves of slots wrote.
#[test]
fn golden_clusters_of_version_2_hold() {
    let mut golden = String::new();
    let it = SlotMove { id: 300, epoch: 2, first: 0, last: 99, from: 1, to: 2, state: 1, begun_us: 7 };
    for (slot_map_epoch, slot_move) in [(1, Some(it)), (2, Some(SlotMove { state: 2, ..it })), (2, None)] {
        let Row::Cluster(cluster) = one_of_each().remove(0) else { panic!() };
        let row = Row::Cluster(ClusterInfo { slot_map_epoch, slot_move, ..cluster });
        let (key, mut value) = (row.key(), row.value());
        assert_eq!(Row::decode(&key, &value).unwrap().unwrap(), row);
        writeln!(golden, "Cluster: {} = {}", digits(&key), digits(&value)).unwrap();
        value[0] = 1;
        assert_eq!(Row::decode(&key, &value).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
    }
    expect_test::expect_file!["../../../tests/golden/meta_clusters_v2.hex"].assert_eq(&golden);
}

/// What a version that knows feature views with files wrote.
#[test]
fn golden_definitions_of_version_2_hold() {
    let Some(Kind::FeatureView(view)) = view("rides", 60, &["rating"]).kind else { panic!() };
    let text = |text: &str| text.to_owned();
    let files = FileSource { path: text("/data/*.csv"), sql: text("select 1"), event_timestamp: text("at") };
    let definition = Some(of(Kind::FeatureView(FeatureView { files: Some(files), ..view })));
    let row = Row::Definition(DefinitionVersion {
        project: text("p"),
        version: 2,
        definition,
        storage_id: 5,
        index: 6,
        applied_us: 7,
    });
    let (key, mut value) = (row.key(), row.value());
    assert_eq!(Row::decode(&key, &value).unwrap().unwrap(), row);
    let golden = format!("Definition: {} = {}\n", digits(&key), digits(&value));
    expect_test::expect_file!["../../../tests/golden/meta_definitions_v2.hex"].assert_eq(&golden);
    value[0] = 1;
    assert_eq!(Row::decode(&key, &value).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
}

/// What a version that knows loads wrote.
#[test]
fn golden_jobs_of_version_3_hold() {
    let mut found = one_of_each().into_iter().filter_map(|row| if let Row::Job(job) = row { Some(job) } else { None });
    let mut job = found.next().unwrap();
    let Some(job::Kind::Backfill(fill)) = &mut job.kind else { panic!() };
    fill.loads = true;
    let row = Row::Job(job);
    let (key, mut value) = (row.key(), row.value());
    assert_eq!(Row::decode(&key, &value).unwrap().unwrap(), row);
    let golden = format!("Job: {} = {}\n", digits(&key), digits(&value));
    expect_test::expect_file!["../../../tests/golden/meta_jobs_v3.hex"].assert_eq(&golden);
    value[0] = 1;
    assert_eq!(Row::decode(&key, &value).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
}

/// What a version that knows node states wrote. A row of version 2 is a node in another state than active, or a cluster
/// whose slots move or have moved, and no other.
#[test]
fn golden_nodes_of_version_2_hold() {
    let mut golden = String::new();
    for state in [NodeState::Draining, NodeState::Removing, NodeState::Removed] {
        let forced = state == NodeState::Removing;
        let (name, peer_address, client_address) = ("n1".to_owned(), "a:1".to_owned(), "a:2".to_owned());
        let state = state as i32;
        let row =
            Row::Node(Node { id: 3, name, peer_address, client_address, joined_us: 4, state, state_us: 258, forced });
        let (key, mut value) = (row.key(), row.value());
        assert_eq!(Row::decode(&key, &value).unwrap().unwrap(), row);
        writeln!(golden, "Node: {} = {}", digits(&key), digits(&value)).unwrap();
        value[0] = 1;
        assert_eq!(Row::decode(&key, &value).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
    }
    expect_test::expect_file!["../../../tests/golden/meta_rows_v2.hex"].assert_eq(&golden);
    for row in one_of_each() {
        let (key, mut value) = (row.key(), row.value());
        value[0] = 2;
        assert!(Row::decode(&key, &value).is_err(), "{row:?}");
    }
}

#[test]
fn rows_that_are_not_understood_are_named() {
    for row in one_of_each() {
        let (key, mut value) = (row.key(), row.value());
        value[0] = 4;
        let error = Row::decode(&key, &value).unwrap_err();
        assert!(error.to_string().contains("values of format 4, written by a newer Cairn"), "{error}");
        value[0] = 0;
        assert_eq!(Row::decode(&key, &value).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
        let mut other = key.clone();
        other.push(1);
        assert_eq!(Row::decode(&other, &row.value()).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);
    }
    assert!(Row::decode(&[0xee], &[1]).is_err());
    assert!(Row::decode(&[], &[1]).is_err());
    assert!(Row::decode(&[1], &[]).is_err());
}

#[test]
fn rows_of_a_newer_version_are_refused_at_open() {
    let bench = Bench::new();
    bench.define(&[driver()]);
    let db = bench.meta.group.db();
    let mut batch = db.batch().unwrap();
    let row = &one_of_each()[1];
    batch.put(ROWS, &row.key(), &[&[4], &row.value()[1..]].concat());
    db.write(batch).unwrap();
    drop(db);
    let Bench { root, engine, meta } = bench;
    drop(meta);
    let error = Meta::open(&engine, &root.path().join("meta")).err().unwrap();
    assert!(error.to_string().contains("written by a newer Cairn"), "{error}");
}
