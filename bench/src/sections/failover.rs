//! The leader of every group is killed under load, over and over: how long until writes flow again, what clients notice.
//!
//! Writers and readers use the ordinary client with the addresses of all nodes. A write is a batch that reaches every
//! shard, with a producer and a sequence; half of the readers ask for linearizable reads, half for the default. After a
//! kill, writes flow again when every writer has the answer to a write it began after the kill.

use super::ingest::table;
use super::{Bench, discard};
use crate::cairn::{EventTimes, Table};
use crate::error::{Error, Result};
use crate::report::time;
use crate::stats::{Latencies, spread};
use crate::workload::question;
use cairn_client::command::Ingest;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, read};
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SYSTEM: &str = "cairnd";
const WRITERS: usize = 8;
const READERS: usize = 8;
/// Rows of a write: with this many, each of four shards has some.
const ROWS: i64 = 32;
/// Between two calls of a client: the cores are busy, not full.
const PAUSE: Duration = Duration::from_millis(10);
/// Writes each writer makes between a restart and the next kill.
const CALM_WRITES: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    calls: AtomicU64,
    failures: Mutex<Vec<String>>,
    longest_ns: AtomicU64,
}

impl Seen {
    fn note(&self, what: &str, began: Instant, outcome: cairn_client::Result<()>) {
        let took = began.elapsed();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.longest_ns.fetch_max(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Err(error) = outcome {
            let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failures.push(format!("{what} after {}: {error}", time(took)));
        }
    }
}

/// A writer's last answered write: how many there were, and when the last one began.
type Progress = watch::Receiver<(u64, Instant)>;

/// # Errors
/// A cluster that does not come back.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let folder = bench.subfolder("failover")?;
    let mut cluster = LocalCluster::start(&bench.cairnd, &folder, 3, &[]).await?;
    let (table, times) = (Arc::new(table()), EventTimes::new());
    let addresses: Vec<String> = cluster.nodes().iter().map(|node| node.address.clone()).collect();
    table.define(&addresses, &times).await?;

    let seen = Arc::new(Seen::default());
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    let mut progress = Vec::new();
    for at in 0..WRITERS {
        let client = Client::connect(&rotated(&addresses, at)).await?;
        let (told, writer) = watch::channel((0, Instant::now()));
        progress.push(writer);
        clients.spawn(write(at, client, table.clone(), times.clone(), seen.clone(), told, stopped.clone()));
    }
    for at in 0..READERS {
        let client = Client::connect(&rotated(&addresses, at)).await?;
        clients.spawn(ask(at, client, table.clone(), seen.clone(), stopped.clone()));
    }
    let kills = bench.plan.kills;
    let outcome = tokio::select! {
        outcome = kill_leaders(&mut cluster, kills, &progress) => outcome,
        // Clients only end early with a bug of this program.
        Some(ended) = clients.join_next() => Err(Error::Internal(format!("a client ended: {ended:?}"))),
    };
    let _ = stop.send(true);
    while clients.join_next().await.is_some() {}
    let gaps = outcome?;

    let failures = seen.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let calls = seen.calls.load(Ordering::Relaxed);
    let longest = Duration::from_nanos(seen.longest_ns.load(Ordering::Relaxed));
    let mut all = Latencies::new();
    gaps.iter().for_each(|gap| all.record(*gap));
    let [least, _, most] = spread(gaps.clone()).unwrap_or_default();
    let (p50, p99) = (all.at(0.5), all.at(0.99));
    bench.report.say(&format!(
        "\n## Failover: kill -9 of the leader of all groups, {kills} times, {WRITERS} writers and {READERS} readers\n"
    ));
    bench.report.say(&format!(
        "- kill to writes of all writers flowing again: p50 {}, p99 {} ({} to {})",
        time(p50),
        time(p99),
        time(least),
        time(most)
    ));
    bench.report.say(&format!(
        "- client calls: {calls}, failed {}, the longest took {}",
        failures.len(),
        time(longest)
    ));
    for failure in failures.iter().take(5) {
        bench.report.say(&format!("  - {failure}"));
    }
    let ms: Vec<f64> = gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect();
    let line = json!({"kills": kills, "gaps_ms": ms, "p50_ms": p50.as_secs_f64() * 1e3, "p99_ms": p99.as_secs_f64() * 1e3,
                      "calls": calls, "failed": failures.len(), "failures": failures,
                      "longest_call_ms": longest.as_secs_f64() * 1e3});
    bench.report.note("failover", line)?;
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

/// All addresses, another one first for each client.
fn rotated(addresses: &[String], at: usize) -> String {
    let mut addresses = addresses.to_vec();
    let start = at % addresses.len().max(1);
    addresses.rotate_left(start);
    addresses.join(",")
}

/// Returns how long each kill held up the writers.
async fn kill_leaders(cluster: &mut LocalCluster, kills: usize, progress: &[Progress]) -> Result<Vec<Duration>> {
    let admin = Client::connect(&cluster.addresses()).await?;
    let mut gaps = Vec::new();
    for kill in 0..kills {
        let at = kill % cluster.nodes().len();
        gather_leads(&admin, cluster, at).await?;
        let goal: Vec<u64> = progress.iter().map(|writer| writer.borrow().0 + CALM_WRITES).collect();
        for (writer, goal) in progress.iter().zip(goal) {
            until(writer, |(writes, _)| *writes >= goal).await?;
        }
        let killed = Instant::now();
        cluster.kill(at).await?;
        for writer in progress {
            until(writer, |(_, began)| *began >= killed).await?;
        }
        gaps.push(killed.elapsed());
        cluster.spawn(at)?;
        cluster.ready(at, 3).await?;
    }
    Ok(gaps)
}

async fn until(writer: &Progress, holds: impl FnMut(&(u64, Instant)) -> bool) -> Result<()> {
    let mut writer = writer.clone();
    match tokio::time::timeout(PATIENCE, writer.wait_for(holds)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Error::Internal("a writer ended".to_owned())),
        Err(_) => Err(Error::peer(SYSTEM, format!("writes do not flow again within {PATIENCE:?}"))),
    }
}

/// Makes node `at` the leader of every group; a node that is not ready for one is asked again.
async fn gather_leads(admin: &Client, cluster: &LocalCluster, at: usize) -> Result<()> {
    let started = Instant::now();
    let name = cluster.nodes().get(at).map(|node| node.name.clone()).unwrap_or_default();
    loop {
        let status = admin.status().await?;
        let id = status.nodes.iter().find(|node| node.name == name).map_or(0, |node| node.id);
        let others: Vec<u32> = status.groups.iter().filter(|it| it.leader != id).map(|it| it.group).collect();
        if others.is_empty() && !status.groups.is_empty() {
            return Ok(());
        }
        for group in others {
            if let Err(error) = admin.transfer_leader(group, &name).await
                && started.elapsed() > PATIENCE
            {
                return Err(error.into());
            }
        }
        if started.elapsed() > 2 * PATIENCE {
            return Err(Error::peer(SYSTEM, format!("node {name} does not get the lead of every group")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn write(
    at: usize,
    client: Client,
    table: Arc<Table>,
    times: EventTimes,
    seen: Arc<Seen>,
    told: watch::Sender<(u64, Instant)>,
    stop: watch::Receiver<bool>,
) {
    let keys: Vec<i64> = (0..ROWS).map(|key| at as i64 * ROWS + key).collect();
    let mut sequence = 0;
    while !*stop.borrow() {
        let Ok(rows) = table.columns.batch(&keys, times.take(keys.len())) else { return };
        sequence += 1;
        let ask = Ingest { producer: Some(format!("writer-{at}")), sequence: Some(sequence), ..table.ingest() };
        let began = Instant::now();
        let outcome = client.ingest_batch(ask, rows).await;
        let answered = outcome.is_ok();
        seen.note("write", began, outcome.map(|_| ()));
        if answered {
            told.send_modify(|(writes, last)| (*writes, *last) = (*writes + 1, began));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(at: usize, client: Client, table: Arc<Table>, seen: Arc<Seen>, stop: watch::Receiver<bool>) {
    let keys: Vec<i64> = (0..ROWS).collect();
    while !*stop.borrow() {
        let Ok(question) = question(&keys) else { return };
        let mut ask = table.online();
        if at.is_multiple_of(2) {
            ask.read = read::linearizable();
        }
        let began = Instant::now();
        let outcome = client.online_features(ask).read(&question).await;
        seen.note(if at.is_multiple_of(2) { "linearizable read" } else { "read" }, began, outcome.map(|_| ()));
        tokio::time::sleep(PAUSE).await;
    }
}
