//! What groups cost that nobody uses: CPU and memory of every node, without a request.

use super::{Bench, discard};
use crate::error::{Error, Result};
use crate::machine::resident_mib;
use crate::noise::{CpuTimes, process_cpu};
use cairn_client::local::LocalCluster;
use serde_json::json;
use std::time::{Duration, Instant};

const SYSTEM: &str = "cairnd";
/// After the last voter is in: elections, moves of leads and first flushes end.
const SETTLE: Duration = Duration::from_secs(8);

/// # Errors
/// A cluster that does not start, or `/proc` without its processes.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let watch = bench.plan.idle_watch;
    bench.report.say(&format!(
        "\n## Idle: share of one core and resident memory of each node over {:.0} s without a request\n",
        watch.as_secs_f64()
    ));
    bench.report.say("| nodes | groups | cores of a node, most |  mean | memory of a node, most |");
    bench.report.say("|------:|-------:|----------------------:|------:|-----------------------:|");
    for nodes in [1, 3] {
        for shards in bench.plan.idle_shards.clone() {
            let folder = bench.subfolder("idle")?;
            let cluster =
                LocalCluster::start(&bench.cairnd, &folder, nodes, &["--shards", &shards.to_string()]).await?;
            tokio::time::sleep(SETTLE.min(watch)).await;
            let before = CpuTimes::now();
            let (started, first) = (Instant::now(), spent(&cluster)?);
            tokio::time::sleep(watch).await;
            let (elapsed, last) = (started.elapsed(), spent(&cluster)?);
            let other_cores = before.and_then(|before| before.other_cores_since()).unwrap_or(0.0);
            let cores: Vec<f64> = first
                .iter()
                .zip(&last)
                .map(|(a, b)| b.saturating_sub(*a).as_secs_f64() / elapsed.as_secs_f64())
                .collect();
            let most = cores.iter().copied().fold(0.0, f64::max);
            let mean = cores.iter().sum::<f64>() / cores.len().max(1) as f64;
            let memory = (0..nodes).filter_map(|at| resident_mib(cluster.process_id(at)?)).fold(0.0, f64::max);
            let groups = shards + 1;
            bench.report.say(&format!(
                "| {nodes:>5} | {groups:>6} | {:>20.1}% | {:>4.1}% | {memory:>18.0} MiB |",
                most * 100.0,
                mean * 100.0
            ));
            let line = json!({"nodes": nodes, "groups": groups, "seconds": elapsed.as_secs_f64(), "cores": cores,
                              "cores_most": most, "resident_mib_most": memory, "other_cores": other_cores});
            bench.report.note("idle", line)?;
            cluster.stop().await?;
            discard(&folder);
        }
    }
    Ok(())
}

/// CPU time of each node's process so far.
fn spent(cluster: &LocalCluster) -> Result<Vec<Duration>> {
    let of = |at| cluster.process_id(at).and_then(process_cpu);
    let found = (0..cluster.nodes().len()).map(of).collect::<Option<Vec<_>>>();
    found.ok_or_else(|| Error::peer(SYSTEM, "a node's process is not in /proc"))
}
