//! Story 13: history that is no longer hot goes to Parquet segments, and nobody who asks can tell, whatever is killed.

use crate::pyarrow::python;
use crate::support::rows::{batch, ints, now_us, only, times};
use crate::support::sql::{moved_on, number, settled};
use crate::support::{Story, TestResult, features, into, join, training};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use cairn_client::command::{GetHistoricalFeatures, GetOnlineFeatures, Ingest};
use cairn_client::{Client, DEFAULT_PROJECT, Timestamp};
use std::path::PathBuf;
use std::time::Duration;

pub const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], hot_window: 1h, features: [{name: trips, type: int64}]}
"#;
pub const KEYS: i64 = 500;
const DAY_US: i64 = 86_400_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Every driver's row of a day, where the last of ten days is today.
pub fn rows_of(day: i64, now: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|key| now - (9 - day) * DAY_US - key))),
        ("trips", ints((0..KEYS).map(|key| key * 100 + day))),
    ])
}

/// A spine row a driver and day, a second behind what was stored then.
fn spine(now: i64) -> RecordBatch {
    let each = || (0..10_i64).flat_map(|day| (0..KEYS).map(move |key| (day, key)));
    batch(&[
        ("driver_id", ints(each().map(|(_, key)| key))),
        ("event_timestamp", times(each().map(move |(day, _)| now - (9 - day) * DAY_US + 1_000_000))),
    ])
}

/// Every way to ask gives every row, on this node.
pub async fn check(client: &Client, now: i64, late: Option<i64>) -> TestResult {
    let expected = |key: i64, day: i64| if late == Some(day) { -key } else { key * 100 + day };
    let (joined, _) = join(client, &training(&["stats:trips"]), &[spine(now)]).await?;
    let trips = only(&joined, &["trips"]);
    let trips = trips.column(0).as_primitive::<Int64Type>();
    let all: Vec<i64> = (0..10).flat_map(|day| (0..KEYS).map(move |key| expected(key, day))).collect();
    assert_eq!(trips.values().to_vec(), all);
    let keys = batch(&[("driver_id", ints([0, 7, KEYS - 1]))]);
    for day in [0, 4, 9] {
        let ask = GetOnlineFeatures {
            as_of: Some(Timestamp(now - (9 - day) * DAY_US + 1_000_000)),
            ..features(&["stats:trips"])
        };
        let (found, _) = client.online_features(ask).read(&keys).await?;
        let found = only(&found, &["trips"]);
        let found = found.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(found, [expected(0, day), expected(7, day), expected(KEYS - 1, day)], "day {day}");
    }
    let rows = KEYS * (10 + i64::from(late.is_some()));
    assert_eq!(number(client, "select count(*) from history('stats')").await?, rows);
    let distinct = "select count(distinct (driver_id, event_timestamp, committed_timestamp)) from history('stats')";
    assert_eq!(number(client, distinct).await?, rows);
    assert_eq!(
        number(client, "select sum(trips) from stats").await?,
        (0..KEYS).map(|key| expected(key, 9)).sum::<i64>()
    );
    Ok(())
}

/// Of what is older than the retention one row of each driver stays, in few segments; the others are gone for good.
#[tokio::test]
async fn what_retention_gives_up_goes() -> TestResult {
    let story = Story::nodes(1, &["--tiering-interval-s", "1"]).await?;
    let view = |more: &str| DRIVERS.replace("hot_window: 1h", &format!("hot_window: 10s{more}"));
    for (bad, why) in [(", retention: 0s", "no time at all"), (", retention: 1s", "shorter than `hot_window`")] {
        let refused = story.apply(&view(bad)).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    story.apply(&view("")).await?;
    let now = now_us();
    for day in 0..10 {
        story.store("stats", rows_of(day, now)).await?;
    }
    settled(&story.client, 9 * KEYS).await?;
    check(&story.client, now, None).await?;
    // A bit over four days: the rows of the last five stay, and one before for each driver.
    story.apply(&view(", retention: 100h")).await?;
    let left = "select count(*) from history('stats')";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    while number(&story.client, left).await? != 6 * KEYS {
        looks.tick().await;
        assert!(tokio::time::Instant::now() < deadline, "{} rows are left", number(&story.client, left).await?);
    }
    let ask = |day: i64| GetOnlineFeatures {
        as_of: Some(Timestamp(now - (9 - day) * DAY_US + 1_000_000)),
        ..features(&["stats:trips"])
    };
    let keys = batch(&[("driver_id", ints([0, 7, KEYS - 1]))]);
    for day in 4..10 {
        let (found, _) = story.client.online_features(ask(day)).read(&keys).await?;
        let found = only(&found, &["trips"]);
        let found = found.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(found, [day, 700 + day, (KEYS - 1) * 100 + day], "day {day}");
    }
    let (gone, _) = story.client.online_features(ask(3)).read(&keys).await?;
    assert_eq!(only(&gone, &["trips"]).column(0).null_count(), 3);
    assert!(number(&story.client, "select count(*) from system.segments").await? < 9, "they are merged");
    story.end().await
}

#[tokio::test]
async fn old_history_leaves_the_database_and_every_answer_stays() -> TestResult {
    let mut story = Story::nodes(3, &["--tiering-interval-s", "1"]).await?;
    // Short, so that today's rows go too, and the late ones in their turn.
    story.apply(&DRIVERS.replace("1h", "10s")).await?;
    let now = now_us();
    for day in 0..10 {
        story.store("stats", rows_of(day, now)).await?;
    }
    let known = Some(Timestamp(now_us()));
    let pinned = GetHistoricalFeatures { known_as_of: known, ..training(&["stats:trips"]) };
    let (before, _) = story.historical(&pinned, &[spine(now)]).await?;
    let clients = [story.client_of(0).await?, story.client_of(1).await?, story.client_of(2).await?];
    for client in &clients {
        settled(client, 9 * KEYS).await?;
        check(client, now, None).await?;
    }
    // Late, and so newer than the segment: it wins where it is newer, and is moved in its turn.
    let late = batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|_| now - 5 * DAY_US + 1))),
        ("trips", ints((0..KEYS).map(|key| -key))),
    ]);
    story.store("stats", late).await?;
    for client in &clients {
        check(client, now, Some(4)).await?;
        settled(client, 11 * KEYS).await?;
        check(client, now, Some(4)).await?;
    }
    // All at once, and as they come back.
    story.restart_all().await?;
    for node in 0..3 {
        check(&story.client_of(node).await?, now, Some(4)).await?;
    }
    // A node that was never there has everything.
    story.cluster.add().await?;
    story.cluster.ready(3, 3).await?;
    let newcomer = story.client_of(3).await?;
    check(&newcomer, now, Some(4)).await?;
    // What was known before the late rows came is what it was, from wherever it is read now.
    let (after, _) = join(&newcomer, &pinned, &[spine(now)]).await?;
    assert_eq!(after, before);
    story.end().await
}

#[tokio::test]
async fn a_leader_killed_in_the_middle_of_it_loses_and_doubles_nothing() -> TestResult {
    let mut story = Story::nodes(3, &["--tiering-interval-s", "1"]).await?;
    story.apply(DRIVERS).await?;
    let now = now_us();
    for day in 0..10 {
        story.store("stats", rows_of(day, now)).await?;
    }
    // One after another, so that whoever moves rows is killed: just after a segment was named and its rows are to go, or
    // as soon as the last one is back and begins.
    let mut known = 0;
    for round in 0..6 {
        let node = round % 3;
        let other = story.client_of((node + 1) % 3).await?;
        if round % 2 == 0 {
            known = moved_on(&other, known, 9 * KEYS).await?;
        }
        story.cluster.kill(node).await?;
        check(&other, now, None).await?;
        story.cluster.spawn(node)?;
        story.cluster.ready(node, 3).await?;
    }
    for node in 0..3 {
        let client = story.client_of(node).await?;
        settled(&client, 9 * KEYS).await?;
        check(&client, now, None).await?;
    }
    story.end().await
}

/// The files are plain Parquet: two engines that know nothing of us add up the same.
#[tokio::test]
async fn duckdb_and_polars_read_the_segments() -> TestResult {
    let story = Story::nodes(1, &["--tiering-interval-s", "1"]).await?;
    story.apply(DRIVERS).await?;
    let now = now_us();
    for day in 0..10 {
        story.store("stats", rows_of(day, now)).await?;
    }
    let gone = batch(&[("driver_id", ints(0..10)), ("event_timestamp", times((0..10).map(|_| now - DAY_US / 2)))]);
    story.client.ingest_batch(Ingest { delete: true, ..into("stats") }, gone).await?;
    settled(&story.client, 9 * KEYS + 10).await?;
    let folder = story.folder().join("segments");
    let node = &story.cluster.nodes()[0].address;
    std::fs::create_dir(&folder)?;
    let mut listed = story.client.sql("select artifact from system.segments", DEFAULT_PROJECT).await?;
    let mut files = 0;
    while let Some(rows) = listed.next().await? {
        for root in rows.column(0).as_string::<i32>().iter().flatten() {
            story.client.download_file(root, &folder.join(format!("{root}.parquet")), None).await?;
            files += 1;
        }
    }
    assert!(files > 0);
    let examples: PathBuf = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../client/examples");
    let mut script = tokio::process::Command::new(python());
    script.arg(examples.join("read_segments.py")).arg(&folder).env("CAIRN_NODE", node).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, script.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    let sum: i64 = (0..9).flat_map(|day| (0..KEYS).map(move |key| key * 100 + day)).sum();
    let rows = 9 * KEYS + 10;
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            format!("duckdb {rows} rows, 10 deleted, trips {sum}"),
            format!("polars {rows} rows, 10 deleted, trips {sum}")
        ],
        "{errors}"
    );
    story.end().await
}
