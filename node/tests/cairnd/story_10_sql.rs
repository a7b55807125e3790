//! Story 10: questions in SQL, from our client and from a stock driver: they see what was acknowledged, and nothing they
//! ask harms the node.

use crate::pyarrow::python;
use crate::support::rows::{at, batch, ints, times};
use crate::support::sql::number;
use crate::support::{Story, TestResult, into};
use arrow_array::RecordBatch;
use cairn_client::command::Ingest;
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], features: [{name: trips, type: int64}]}
"#;
const KEYS: i64 = 1_000;
/// Counts for ever.
const ENDLESS: &str =
    "with recursive n as (select 1 as i union all select i + 1 from n where i > 0) select count(*) as c from n";

fn drivers(event_us: i64, trips: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|_| event_us))),
        ("trips", ints((0..KEYS).map(|key| key + trips))),
    ])
}

async fn ask(client: &Client, sql: &str) -> cairn_client::Result<Vec<RecordBatch>> {
    let mut rows = client.sql(sql, DEFAULT_PROJECT).await?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.next().await? {
        assert_eq!(batch.schema().fields(), rows.schema().fields());
        batches.push(batch);
    }
    Ok(batches)
}

#[tokio::test]
async fn a_query_on_any_node_sees_what_was_acknowledged() -> TestResult {
    let story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    let clients = [story.client_of(0).await?, story.client_of(1).await?, story.client_of(2).await?];
    for round in 0..6 {
        let writer = &clients[round % 3];
        writer.ingest_batch(into("stats"), drivers(at(round as i64), round as i64)).await?;
        let reader = &clients[(round + 1) % 3];
        let sum = KEYS * (KEYS - 1) / 2 + KEYS * round as i64;
        assert_eq!(number(reader, "select sum(trips) from stats").await?, sum);
        let rows = KEYS * (round as i64 + 1);
        assert_eq!(number(reader, "select count(*) from history('stats')").await?, rows);
    }
    let deletion = Ingest { delete: true, ..into("stats") };
    let gone = batch(&[("driver_id", ints(0..10)), ("event_timestamp", times((0..10).map(|_| at(100))))]);
    clients[0].ingest_batch(deletion, gone).await?;
    assert_eq!(number(&clients[2], "select count(*) from stats").await?, KEYS - 10);
    let deleted = "select count(*) from history('stats') where deleted";
    assert_eq!(number(&clients[1], deleted).await?, 10);
    let before = "select count(*) from as_of('stats', '1970-01-01') union all select count(*) from stats";
    assert_eq!(ask(&clients[1], before).await?.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    story.end().await
}

#[tokio::test]
async fn a_query_that_nobody_reads_ends() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(1), 0)).await?;
    // More than may run side by side; each is let go when it has begun.
    for _ in 0..9 {
        let rows = story.client.sql(ENDLESS, DEFAULT_PROJECT).await?;
        assert_eq!(rows.schema().fields().len(), 1);
    }
    assert_eq!(number(&story.client, "select count(*) from stats").await?, KEYS);
    story.end().await
}

#[tokio::test]
async fn a_reader_that_stalls_keeps_no_place_for_ever() -> TestResult {
    let story = Story::nodes(1, &["--sql-timeout-s", "2"]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(1), 0)).await?;
    // More than may run side by side, each with far more to send than anybody takes in advance.
    let mut stalled = Vec::new();
    for _ in 0..5 {
        let client = story.client_of(0).await?;
        stalled.push(client.sql("select repeat('x', 1000) from stats a, stats b", DEFAULT_PROJECT).await?);
    }
    assert_eq!(number(&story.client, "select count(*) from stats").await?, KEYS);
    drop(stalled);
    story.end().await
}

#[tokio::test]
async fn time_and_rows_are_limited() -> TestResult {
    let story = Story::nodes(1, &["--sql-timeout-s", "2", "--sql-rows-max", "1500"]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(1), 0)).await?;
    story.store("stats", drivers(at(2), 1)).await?;
    let refused = async |sql: &str| {
        let error = ask(&story.client, sql).await.unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, message) = refused(ENDLESS).await;
    assert_eq!(kind, ErrorKind::Timeout, "{message}");
    assert!(message.contains("longer than 2 s, the limit of this node (--sql-timeout-s)"), "{message}");
    let (kind, message) = refused("select * from history('stats')").await;
    assert_eq!(kind, ErrorKind::TooLarge, "{message}");
    assert!(message.contains("the answer is over 1500 rows, the limit of this node (--sql-rows-max)"), "{message}");
    let (kind, message) = refused("select * from stats where trips = 'seven'").await;
    assert_eq!(kind, ErrorKind::InvalidArgument, "{message}");
    let (kind, message) = refused("update stats set trips = 1").await;
    assert_eq!(kind, ErrorKind::InvalidArgument, "{message}");
    assert_eq!(number(&story.client, "select count(*) from stats").await?, KEYS);
    // Another project: its header is a name, and what is not there is said.
    let error = story.client.sql("select * from stats", "other").await.unwrap_err();
    assert!(error.to_string().contains("table 'cairn.other.stats' not found"), "{error}");
    story.end().await
}

#[tokio::test]
async fn a_stock_adbc_driver_browses_and_asks() -> TestResult {
    let python = python();
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let rows = |time: i64, trips: i64| {
        batch(&[("driver_id", ints(7..9)), ("event_timestamp", times([time; 2])), ("trips", ints([trips; 2]))])
    };
    let june = 1_370_044_800_000_000;
    story.store("stats", rows(june, 1)).await?;
    story.store("stats", rows(june + 20_000_000, 2)).await?;
    let examples: PathBuf = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../client/examples");
    let mut script = tokio::process::Command::new(python);
    let address = &story.cluster.nodes()[0].address;
    script.arg(examples.join("adbc_sql.py")).env("CAIRN_NODE", address).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), script.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "tables ['stats']",
            "columns ['driver_id', 'event_timestamp', 'created_timestamp', 'committed_timestamp', 'trips']",
            "newest [{'driver_id': 7, 'trips': 2}, {'driver_id': 8, 'trips': 2}]",
            "then [(7, 1), (8, 1)]",
            "features [('trips', 'int64')]",
        ],
        "{out}\n{errors}"
    );
    assert!(lines[5].contains("SQL here reads and changes nothing"), "{out}");
    story.end().await
}
