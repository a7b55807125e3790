//! How fast an empty node is there, and how much memory it takes to do nothing.

use super::{Bench, discard};
use crate::error::{Error, Result};
use crate::machine::resident_mib;
use crate::report::time;
use crate::stats::spread;
use cairn_client::local::free_addresses;
use cairn_client::{Client, Options};
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const SYSTEM: &str = "cairnd";
/// The line a node prints when it listens.
const READY: &str = "cairnd ready:";
const READY_WITHIN: Duration = Duration::from_secs(60);

struct Started {
    process: Child,
    /// From the spawn to the line that says it listens.
    ready: Duration,
    /// From the spawn to the first status in which every group has a leader.
    serving: Duration,
}

/// # Errors
/// A node that does not start.
pub async fn run(bench: &mut Bench) -> Result<()> {
    bench.report.say("\n## Cold start and idle memory of an empty node\n");
    let (mut ready, mut serving) = (Vec::new(), Vec::new());
    let mut memory = None;
    for round in 0..bench.plan.starts {
        let folder = bench.subfolder("start")?;
        let started = tokio::time::timeout(READY_WITHIN, start(&bench.cairnd, &folder)).await;
        let mut started = started.map_err(|_| Error::Stuck { seconds: READY_WITHIN.as_secs() })??;
        ready.push(started.ready);
        serving.push(started.serving);
        if round + 1 == bench.plan.starts {
            tokio::time::sleep(bench.plan.idle).await;
            memory = started.process.id().and_then(resident_mib);
        }
        started.process.kill().await.map_err(Error::system(SYSTEM))?;
        discard(&folder);
    }
    for (name, what, durations) in [
        ("ready", "spawn to the line that says it listens", ready),
        ("serving", "spawn to the first status with a leader in every group", serving),
    ] {
        let Some([least, median, most]) = spread(durations) else { continue };
        let (starts, range) = (bench.plan.starts, format!("{} to {}", time(least), time(most)));
        bench.report.say(&format!("- {what}: {} (median of {starts}; {range})", time(median)));
        let ms = |it: Duration| it.as_secs_f64() * 1e3;
        let line = json!({"what": name, "median_ms": ms(median), "least_ms": ms(least), "most_ms": ms(most), "starts": starts});
        bench.report.note("start", line)?;
    }
    if let Some(mib) = memory {
        let idle = bench.plan.idle.as_secs_f64();
        bench.report.say(&format!("- resident memory after {idle:.0} s without requests: {mib:.1} MiB"));
        bench.report.note("memory", json!({"what": "idle", "resident_mib": mib}))?;
    }
    Ok(())
}

async fn start(cairnd: &Path, folder: &Path) -> Result<Started> {
    let [address, peer_address] = free_addresses()?;
    let log = File::create(folder.join("log")).map_err(Error::file(folder))?;
    let mut command = Command::new(cairnd);
    command.arg("--data-dir").arg(folder.join("data"));
    command.args(["--listen", &address, "--peer-listen", &peer_address]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
    let spawned = Instant::now();
    let mut process = command.spawn().map_err(Error::system(cairnd.display().to_string()))?;
    let output = process.stdout.take().ok_or_else(|| Error::Internal("a node has no output".to_owned()))?;
    let mut lines = BufReader::new(output).lines();
    loop {
        match lines.next_line().await.map_err(Error::system(SYSTEM))? {
            Some(line) if line.starts_with(READY) => break,
            Some(_) => {}
            None => return Err(Error::peer(SYSTEM, "ended before it was ready")),
        }
    }
    let ready = spawned.elapsed();
    let client = Client::with_options(&address, Options { deadline: READY_WITHIN, ..Options::default() }).await?;
    loop {
        let status = client.status().await?;
        if !status.groups.is_empty() && status.groups.iter().all(|group| group.leader != 0) {
            return Ok(Started { process, ready, serving: spawned.elapsed() });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
