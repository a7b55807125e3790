//! Damaged files: found out when they are read, never served, and made whole again from another node.

use crate::faults_support::DEFINITIONS;
use crate::faults_support::process::refused_start;
use crate::support::rows::{at, batch, floats32, ints, show, times};
use crate::support::{Story, TestResult, files, into, service};
use arrow_array::RecordBatch;
use cairn_client::command::{GetOnlineFeatures, Level, Read};
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind};
use std::path::{Path, PathBuf};

const DRIVERS: i64 = 16_000;
/// Rows of one log entry or two.
const BATCH: i64 = 2_000;

fn rows(first: i64) -> RecordBatch {
    let drivers = first..first + BATCH;
    batch(&[
        ("driver_id", ints(drivers.clone())),
        ("event_timestamp", times(drivers.clone().map(|_| at(0)))),
        ("rating", floats32(drivers.clone().map(|id| id as f32))),
        ("trips", ints(drivers)),
    ])
}

/// Everything, from the node itself.
async fn read_all(client: &Client) -> cairn_client::Result<RecordBatch> {
    let ask = GetOnlineFeatures { read: Read { level: Level::Stale, ..Read::default() }, ..service("eta") };
    let keys = batch(&[("driver_id", ints(0..DRIVERS))]);
    Ok(client.online_features(ask).read(&keys).await?.0)
}

/// The table files of a group's database, largest first.
fn tables(group: &Path) -> TestResult<Vec<PathBuf>> {
    let live = group.join(std::fs::read_to_string(group.join("CURRENT_DB"))?.trim_end());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(live)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            found.push((std::cmp::Reverse(std::fs::metadata(&path)?.len()), path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Turns bytes over near the start of every table but the smallest, where its rows are, or at its end, where a table says
/// what it is.
fn damage(tables: &[PathBuf], end: bool) -> TestResult {
    for table in tables {
        let mut bytes = std::fs::read(table)?;
        if bytes.len() < 4 << 10 {
            continue;
        }
        let start = if end { bytes.len() - 200 } else { 100 };
        let length = (bytes.len() / 4).min(2_000);
        for byte in bytes.iter_mut().skip(start).take(length).step_by(10) {
            *byte ^= 0x55;
        }
        std::fs::write(table, bytes)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_replica_stops_and_is_rebuilt_from_a_peer() -> TestResult {
    // Every entry makes a snapshot soon, so rows lie in tables and not in memory only.
    let mut story = Story::nodes(3, &["--snapshot-entries", "5"]).await?;
    story.client.apply(DEFAULT_PROJECT, files(DEFINITIONS)).await?;
    for first in (0..DRIVERS).step_by(BATCH as usize) {
        assert_eq!(story.client.ingest_batch(into("stats"), rows(first)).await?.rows_accepted, BATCH as u64);
    }
    let expected = show(&read_all(&story.client).await?);
    let group = story.folder().join("n2/groups/1");
    story.cluster.kill(1).await?;
    let tables = tables(&group)?;
    assert!(!tables.is_empty(), "no tables in {}", group.display());
    damage(&tables, false)?;

    // The node starts, finds out as soon as it reads, answers nothing of it, and stops naming file and fix.
    story.cluster.spawn(1)?;
    let second = story.client_of(1).await?;
    // Whether a compaction, an entry or this read finds it first is chance.
    while !story.cluster.has_ended(1)? {
        match read_all(&second).await {
            Err(error) => assert!(
                [ErrorKind::Corrupt, ErrorKind::Unavailable, ErrorKind::Timeout].contains(&error.kind()),
                "{error}"
            ),
            Ok(read) => panic!("damaged rows were read: {} rows", read.num_rows()),
        }
    }
    let log = story.cluster.ended(1).await?;
    assert!(log.contains("replica of group 1 is damaged") && log.contains(".sst"), "{log}");
    assert!(log.contains("`--rebuild 1 --join HOST:PEERPORT`"), "{log}");
    assert_eq!(show(&read_all(&story.client).await?), expected, "the others serve");

    let peer = story.cluster.nodes()[0].peer_address.clone();
    story.cluster.spawn_with(1, &["--rebuild", "1"])?;
    story.cluster.ready(1, 3).await?;
    assert_eq!(show(&read_all(&second).await?), expected);
    // A table that does not even open: told at the start, with the same way out.
    story.cluster.kill(1).await?;
    damage(&self::tables(&group)?, true)?;
    story.cluster.spawn(1)?;
    let log = story.cluster.ended(1).await?;
    assert!(
        log.contains("replica of group 1 is damaged") && log.contains("`--rebuild 1 --join HOST:PEERPORT`"),
        "{log}"
    );
    story.cluster.spawn_with(1, &["--rebuild", "1"])?;
    story.cluster.ready(1, 3).await?;
    assert_eq!(show(&read_all(&second).await?), expected);
    // It takes part again: with another node down, writes go on, and it has them.
    story.cluster.kill(2).await?;
    let token = second.ingest_batch(into("stats"), rows(0)).await?.token;
    assert!(!token.is_empty());

    // Nonsense is refused by name, and nothing is changed by it.
    let data = story.folder().join("n3");
    let error = refused_start(&data, &["--rebuild", "9", "--join", &peer]).await?;
    assert_eq!(error, "cannot rebuild group 9; groups are 0 to 2");
    story.cluster.spawn(2)?;
    story.cluster.ready(2, 3).await?;
    story.end().await
}
