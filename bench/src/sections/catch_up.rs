//! A node that missed a million rows comes back while writes go on: what it costs them, how long it takes, what memory.
//!
//! Snapshots are made often enough that the log no longer holds what the node missed, so it must get snapshots.

use super::ingest::{prepared_keys, table};
use super::{Bench, discard};
use crate::cairn::{EventTimes, Ring, Table};
use crate::error::{Error, Result};
use crate::load::Turn;
use crate::machine::resident_mib;
use crate::noise::CpuTimes;
use crate::report::{count, time};
use crate::stats::ratio;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, api};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SYSTEM: &str = "cairnd";
const WRITERS: usize = 8;
const BATCH_ROWS: usize = 100;
/// Entries a group makes between two snapshots. A batch is one entry of each shard it has rows for.
const SNAPSHOT_ENTRIES: usize = 2_000;
/// The node has caught up when no group of it is further behind than this, entries.
const BEHIND: u64 = 128;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(240);
const STAYS_DOWN: usize = 2;

/// What the writers did, and whether they wait.
#[derive(Debug, Default)]
struct Written {
    rows: AtomicU64,
    held: AtomicBool,
}

/// # Errors
/// The first failure of a write, or a node that does not catch up.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let missed = bench.plan.missed_rows;
    // At least two snapshots of what is missed.
    let entries = SNAPSHOT_ENTRIES.min(missed / BATCH_ROWS / 4).max(1);
    let folder = bench.subfolder("catch-up")?;
    let entries_text = entries.to_string();
    let mut cluster = LocalCluster::start(&bench.cairnd, &folder, 3, &["--snapshot-entries", &entries_text]).await?;
    let (table, times) = (table(), EventTimes::new());
    let addresses: Vec<String> = cluster.nodes().iter().map(|node| node.address.clone()).collect();
    table.define(&addresses, &times).await?;
    let admin = Client::connect(&addresses[..STAYS_DOWN].join(",")).await?;
    cluster.kill(STAYS_DOWN).await?;

    let written = Arc::new(Written::default());
    let (stop, stopped) = watch::channel(false);
    let mut writers = JoinSet::new();
    start_writers(&mut writers, &table, &addresses[..STAYS_DOWN], &times, &written, &stopped).await?;
    let outcome = tokio::select! {
        outcome = measure(bench, &mut cluster, &admin, &written) => outcome,
        ended = first_failure(&mut writers) => Err(ended),
    };
    let _ = stop.send(true);
    while writers.join_next().await.is_some() {}
    outcome?;
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

async fn start_writers(
    writers: &mut JoinSet<Result<()>>,
    table: &Table,
    addresses: &[String],
    times: &EventTimes,
    written: &Arc<Written>,
    stopped: &watch::Receiver<bool>,
) -> Result<()> {
    let batches: Result<Vec<_>> = prepared_keys(BATCH_ROWS).iter().map(|keys| table.columns.batch(keys, 0)).collect();
    let batches: Arc<[_]> = batches?.into();
    for (at, address) in (0..WRITERS).zip(addresses.iter().cycle()) {
        let mut writer = table.writer(address, Ring { batches: batches.clone(), at }, times).await?;
        let (written, stopped) = (written.clone(), stopped.clone());
        writers.spawn(async move {
            while !*stopped.borrow() {
                if written.held.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                let rows = writer.turn().await?;
                written.rows.fetch_add(rows as u64, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    Ok(())
}

async fn first_failure(writers: &mut JoinSet<Result<()>>) -> Error {
    match writers.join_next().await {
        Some(Ok(Err(error))) => error,
        ended => Error::Internal(format!("a writer ended: {ended:?}")),
    }
}

/// Rows/s of all writers while `work` runs.
async fn rate_during<T>(written: &Written, work: impl Future<Output = T>) -> (f64, Duration, T) {
    let (began, before) = (Instant::now(), written.rows.load(Ordering::Relaxed));
    let done = work.await;
    let elapsed = began.elapsed();
    let rows = written.rows.load(Ordering::Relaxed).saturating_sub(before);
    (rows as f64 / elapsed.as_secs_f64(), elapsed, done)
}

async fn measure(bench: &mut Bench, cluster: &mut LocalCluster, admin: &Client, written: &Written) -> Result<()> {
    let missed = bench.plan.missed_rows as u64;
    let other = CpuTimes::now();
    let (filling, _, ()) = rate_during(written, async {
        while written.rows.load(Ordering::Relaxed) < missed {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
    let (undisturbed, _, ()) = rate_during(written, tokio::time::sleep(bench.plan.undisturbed)).await;

    let by_snapshot = admin.status().await?.groups.iter().filter(|it| it.group > 0 && it.purged_index > 0).count();
    let processes = |cluster: &LocalCluster| -> Vec<f64> {
        (0..3).map(|at| cluster.process_id(at).and_then(resident_mib).unwrap_or(0.0)).collect()
    };
    let before = processes(cluster);
    written.held.store(!bench.plan.writes_go_on, Ordering::Relaxed);
    cluster.spawn(STAYS_DOWN)?;
    let back = Client::connect(&cluster.nodes()[STAYS_DOWN].address).await?;
    let mut most = before.clone();
    let started = Instant::now();
    let (catching_up, took, caught) = rate_during(written, async {
        loop {
            for (most, now) in most.iter_mut().zip(processes(cluster)) {
                *most = f64::max(*most, now);
            }
            if let (Ok(here), Ok(there)) = (back.status().await, admin.status().await)
                && behind(&here, &there) <= BEHIND
            {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::peer(SYSTEM, format!("a node does not catch up within {PATIENCE:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
    caught?;
    written.held.store(false, Ordering::Relaxed);
    let (after, _, ()) = rate_during(written, tokio::time::sleep(bench.plan.undisturbed)).await;
    let other_cores = other.and_then(|before| before.other_cores_since()).unwrap_or(0.0);

    let share = ratio(catching_up, undisturbed).unwrap_or(0.0);
    let report = &mut bench.report;
    report
        .say(&format!("\n## Catching up: a node that missed {missed} rows, {WRITERS} writers of {BATCH_ROWS} rows\n"));
    report.say(&format!("- rows/s with two nodes: {} while filling, then {}", count(filling), count(undisturbed)));
    report.say(&format!(
        "- rows/s while the third caught up: {}, {:.0} % of that (goal 70 %); with three nodes after: {}",
        count(catching_up),
        share * 100.0,
        count(after)
    ));
    report.say(&format!("- start of its process to caught up: {}; {by_snapshot} shards by snapshot", time(took)));
    let memory = |at: usize| format!("{:.0} MiB, at most {:.0} MiB", before[at], most[at]);
    report.say(&format!("- memory of the senders before and during: {}; {}", memory(0), memory(1)));
    report.say(&format!("- memory of the receiver: at most {:.0} MiB", most[STAYS_DOWN]));
    let line = json!({"missed_rows": missed, "filling_rows_per_s": filling, "undisturbed_rows_per_s": undisturbed,
                      "catching_up_rows_per_s": catching_up, "after_rows_per_s": after, "share": share,
                      "seconds": took.as_secs_f64(), "shards_by_snapshot": by_snapshot, "resident_mib_before": before,
                      "resident_mib_most": most, "other_cores": other_cores});
    report.note("catch_up", line)
}

/// Entries of the group that is furthest behind.
fn behind(here: &api::StatusReply, there: &api::StatusReply) -> u64 {
    let applied = |group: u32| here.groups.iter().find(|it| it.group == group).map_or(0, |it| it.applied_index);
    let lag = |it: &api::GroupStatus| it.committed_index.saturating_sub(applied(it.group));
    there.groups.iter().map(lag).max().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_group_counts() {
        let group = |group, applied_index| api::GroupStatus {
            group,
            applied_index,
            committed_index: applied_index,
            ..api::GroupStatus::default()
        };
        let node = |groups| api::StatusReply { groups, ..api::StatusReply::default() };
        let there = node(vec![group(0, 10), group(1, 500)]);
        assert_eq!(behind(&node(vec![group(0, 9), group(1, 100)]), &there), 400);
        assert_eq!(behind(&node(vec![]), &there), 500);
        assert_eq!(behind(&there, &node(vec![])), u64::MAX);
    }
}
