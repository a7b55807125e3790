//! kill -9 and nothing else: a cluster, clients, kills, and one check in the end.
//!
//! - [`workload`]: what the clients do, and what they were told
//! - [`nemesis`]: kill -9 and restart
//! - [`check`]: what must hold in the end

pub mod check;
pub mod nemesis;
pub mod workload;

use workload::Told;

use crate::Result;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, Options};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub cairnd: PathBuf,
    pub nodes: usize,
    pub kills: usize,
    pub writers: i64,
    /// Decides when whom is killed. The processes' own timing is not replayed.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Verdict {
    pub plan: Plan,
    pub took: Duration,
    pub told: Told,
    pub violations: Vec<String>,
}

impl Verdict {
    /// Why the run proves nothing; `None` = it does.
    pub fn too_little(&self) -> Option<String> {
        let rows = self.told.rows_ok.len();
        let least = self.plan.kills * 16;
        if self.plan.kills == 0 || rows < least {
            return Some(format!(
                "{rows} rows acknowledged over {} kills; at least {least} are needed",
                self.plan.kills
            ));
        }
        if self.told.moves_ok.is_empty() || self.told.artifacts_ok.is_empty() {
            return Some("no alias move or no artifact was acknowledged".to_owned());
        }
        None
    }

    pub fn holds(&self) -> bool {
        self.violations.is_empty() && self.too_little().is_none()
    }

    /// A table for people.
    pub fn print(&self) -> String {
        let told = &self.told;
        let mut out = format!(
            "{} nodes, {} kills in {:.1} s, seed {}\n  rows       {:>8} acknowledged {:>6} unknown\n  aliases    {:>8} acknowledged \
             {:>6} unknown {:>6} refused\n  artifacts  {:>8} acknowledged {:>6} unknown\n",
            self.plan.nodes,
            self.plan.kills,
            self.took.as_secs_f64(),
            self.plan.seed,
            told.rows_ok.len(),
            told.rows_unknown.len(),
            told.moves_ok.len(),
            told.moves_unknown,
            told.moves_refused,
            told.artifacts_ok.len(),
            told.artifacts_unknown,
        );
        for violation in self.violations.iter().take(20) {
            out.push_str(&format!("  VIOLATION  {violation}\n"));
        }
        let verdict = match (self.violations.len(), self.too_little()) {
            (0, None) => "  nothing acknowledged was lost\n".to_owned(),
            (0, Some(why)) => format!("  proves nothing: {why}\n"),
            (count, _) => format!("  {count} violations\n"),
        };
        out + &verdict
    }
}

/// Runs `plan` with data and logs under `folder`.
///
/// # Errors
/// Trouble of the harness: a binary that does not start, a node that does not come back.
pub async fn run(plan: Plan, folder: &Path) -> Result<Verdict> {
    let started = Instant::now();
    let mut cluster = LocalCluster::start(&plan.cairnd, folder, plan.nodes, &[]).await?;
    let options = Options { deadline: Duration::from_secs(20), ..Options::default() };
    let client = Client::with_options(&cluster.addresses(), options).await?;
    workload::prepare(&client).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..plan.writers {
        clients.spawn(workload::write_rows(client.clone(), number, Arc::clone(&stop)));
    }
    clients.spawn(workload::move_alias(client.clone(), Arc::clone(&stop)));
    clients.spawn(workload::upload(client.clone(), plan.seed, Arc::clone(&stop)));
    let mut random = StdRng::seed_from_u64(plan.seed);
    let killed = nemesis::kill(&mut cluster, plan.kills, &mut random).await;
    stop.store(true, Ordering::Relaxed);
    let mut told = Told::default();
    while let Some(done) = clients.join_next().await {
        told.merge(done?);
    }
    killed?;
    let violations = check::all(&cluster, &told).await?;
    cluster.stop().await?;
    Ok(Verdict { plan, took: started.elapsed(), told, violations })
}
