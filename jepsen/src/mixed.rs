//! One run: a cluster, all workloads at once, mixed faults, healing, and the verdict on each promise.

use crate::fleet::Fleet;
use crate::history::{Fault, History, Outcome, Stamp};
use crate::nemesis;
use crate::site::Site;
use crate::workloads::{self, Workload};
use crate::{Result, clock, net, operator, timeline};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub cairnd: PathBuf,
    pub nodes: usize,
    pub network: net::Kind,
    /// Each node has a disk of its own, which can be filled; needs root.
    pub small_disks: bool,
    pub lasts: Duration,
    pub seed: u64,
    /// Kinds of faults, out of [`nemesis::ALL`].
    pub nemeses: Vec<String>,
    /// Promises, out of [`workloads::ALL`].
    pub workloads: Vec<String>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub seed: u64,
    pub took_s: f64,
    pub promises: Vec<Promise>,
    /// How often each kind of fault struck.
    pub faults: BTreeMap<&'static str, usize>,
    /// Damaged files that nodes refused by name.
    pub damage_detected: usize,
    /// Replicas made new from a peer.
    pub rebuilt: usize,
    /// Nodes that were removed and came back as new ones.
    pub renewed: usize,
    /// Faults that could not be made here, and why.
    pub left_out: Vec<String>,
    /// Why the run proves nothing; empty = it does.
    pub too_little: Vec<String>,
}

/// One line of the verdict.
#[derive(Debug, Serialize)]
pub struct Promise {
    pub name: &'static str,
    pub ok: usize,
    pub failed: usize,
    pub unknown: usize,
    pub violations: Vec<String>,
}

/// Fewer faults a minute than this prove nothing.
const FAULTS_PER_MINUTE: f64 = 3.0;
/// A final check may take this long; this long where nodes are down for good.
const CHECK_PATIENCE: Duration = Duration::from_secs(300);
const BROKEN_CHECK_PATIENCE: Duration = Duration::from_secs(10);
/// Violations printed of one promise.
const PRINTED: usize = 5;

impl Verdict {
    pub fn holds(&self) -> bool {
        self.too_little.is_empty() && self.promises.iter().all(|promise| promise.violations.is_empty())
    }

    /// A table for people.
    pub fn print(&self) -> String {
        let mut out =
            format!("{:<10} {:>8} {:>8} {:>8}  {:<14} which says\n", "promise", "ok", "failed", "unknown", "verdict");
        for Promise { name, ok, failed, unknown, violations } in &self.promises {
            let verdict = match violations.len() {
                0 => "holds".to_owned(),
                count => format!("{count} VIOLATIONS"),
            };
            let says = says(name);
            out.push_str(&format!("{name:<10} {ok:>8} {failed:>8} {unknown:>8}  {verdict:<14} {says}\n"));
        }
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        out.push_str(&format!(
            "faults: {}\ndamaged files refused by name: {}, replicas made new: {}, nodes removed and joined as new: {}\n\
             seed {}, {:.0} s in all\n",
            faults.join(", "),
            self.damage_detected,
            self.rebuilt,
            self.renewed,
            self.seed,
            self.took_s
        ));
        for left_out in &self.left_out {
            out.push_str(&format!("left out: {left_out}\n"));
        }
        let broken = self.promises.iter().filter(|promise| !promise.violations.is_empty()).count();
        let faults: usize = self.faults.values().sum();
        out.push_str(&match (broken, self.too_little.is_empty()) {
            (0, true) => format!("verdict: every promise held under {faults} faults\n"),
            (0, false) => "verdict: none, because too little happened\n".to_owned(),
            (broken, _) => format!("verdict: {broken} of {} promises BROKEN\n", self.promises.len()),
        });
        for promise in &self.promises {
            for violation in promise.violations.iter().take(PRINTED) {
                out.push_str(&format!("VIOLATION of {}: {violation}\n", promise.name));
            }
        }
        for why in &self.too_little {
            out.push_str(&format!("proves nothing: {why}\n"));
        }
        out
    }
}

/// The promise in a few words, for who meets the table without its documentation.
fn says(promise: &str) -> &'static str {
    match promise {
        "register" => "an alias is one register, whichever node is asked",
        "set" => "no acknowledged row is lost, and the newest wins",
        "batch" => "rows of one batch are seen together or not at all",
        "once" => "what is sent twice takes effect once",
        "session" => "a token is honoured on every node",
        "fresh" => "linearizable and bounded reads are as fresh as they say",
        "as-of" => "what was known at a moment never changes",
        "artifact" => "a file is the same everywhere, and stays",
        _ => "nodes come back whole, and hide no damage (ok: faults)",
    }
}

/// Runs `plan` with data, logs, `history.jsonl`, `timeline.html` and `verdict.json` under `folder`.
///
/// # Errors
/// Trouble of the harness, which is no verdict: a binary that does not start, a name that is not known.
pub async fn run(plan: &Plan, folder: &Path) -> Result<Verdict> {
    let started = Instant::now();
    let own_clocks = plan.nemeses.iter().any(|kind| nemesis::CLOCKS.contains(&kind.as_str()));
    // Small snapshots, so that a short run meets many of them; and replicas that compare themselves all the time.
    let mut fleet = Fleet::start(
        &plan.cairnd,
        folder,
        plan.nodes,
        plan.network,
        plan.small_disks,
        own_clocks,
        &["--snapshot-entries", "40", "--cache-mib", "64", "--audit-interval-s", "5"],
    )
    .await?;
    let history = Arc::new(History::new(folder)?);
    let nodes: Vec<(String, String)> =
        fleet.cluster.nodes().iter().map(|node| (node.name.clone(), node.address.clone())).collect();
    let site = Site::new(&nodes, Arc::clone(&history), plan.seed).await?;
    let workloads = workloads::prepare(&site, &plan.workloads).await?;

    let mut clients = tokio::task::JoinSet::new();
    for workload in &workloads {
        for client in 0..workload.clients() {
            clients.spawn(Arc::clone(workload).work(site.clone(), client));
        }
    }
    let mut random = StdRng::seed_from_u64(plan.seed);
    let until = Instant::now() + plan.lasts;
    let mut nemeses = plan.nemeses.clone();
    let mut left_out = Vec::new();
    if own_clocks && !fleet.has_clocks() {
        nemeses.retain(|kind| !nemesis::CLOCKS.contains(&kind.as_str()));
        left_out.push(format!("{}: {}", nemesis::CLOCKS.join(", "), clock::MISSING));
    }
    let raged = nemesis::rage(&mut fleet, &nemeses, &mut random, &history, until).await;
    fleet.mend().await?;
    let mut recovery = raged?;
    let whole = fleet.recovered().await.map_err(|trouble| recovery.trouble("in the end", trouble)).is_ok();
    site.stop();
    while let Some(done) = clients.join_next().await {
        done?;
    }

    let (stamps, faults) = history.so_far();
    let judged = workloads.iter().map(|workload| judge(workload, &site, &stamps, whole));
    let mut promises = futures::future::join_all(judged).await;
    let whole = Promise { name: "recovery", ok: faults.len(), failed: 0, unknown: 0, violations: recovery.violations };
    promises.push(whole);
    let mut too_little = too_little(plan, &workloads, &promises, &faults);
    too_little.append(&mut recovery.too_little);
    let mut counted: BTreeMap<&'static str, usize> = BTreeMap::new();
    faults.iter().for_each(|fault| *counted.entry(fault.kind).or_default() += 1);
    let verdict = Verdict {
        seed: plan.seed,
        took_s: started.elapsed().as_secs_f64(),
        promises,
        faults: counted,
        damage_detected: recovery.detected,
        rebuilt: fleet.care.rebuilt,
        renewed: fleet.care.renewed,
        left_out,
        too_little,
    };
    let (stamps, faults) = history.so_far();
    std::fs::write(folder.join("timeline.html"), timeline::page(&verdict, &stamps, &faults))?;
    std::fs::write(folder.join("verdict.json"), serde_json::to_string_pretty(&verdict)?)?;
    Ok(verdict)
}

/// `whole`: every node serves, so that a check which cannot read is a violation too. Else that is said already, and a
/// check has this long to find more.
async fn judge(workload: &Arc<dyn Workload>, site: &Site, stamps: &[Stamp], whole: bool) -> Promise {
    let name = workload.name();
    let count = |outcome| stamps.iter().filter(|stamp| stamp.workload == name && stamp.outcome == outcome).count();
    let patience = if whole { CHECK_PATIENCE } else { BROKEN_CHECK_PATIENCE };
    let violations = match tokio::time::timeout(patience, Arc::clone(workload).check(site.clone())).await {
        Ok(Ok(violations)) => violations,
        Ok(Err(error)) if whole => vec![format!("the state in the end cannot be read: {error}")],
        Err(_) if whole => vec![format!("the state in the end cannot be read within {patience:?}")],
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let (ok, failed, unknown) = (count(Outcome::Ok), count(Outcome::Failed), count(Outcome::Unknown));
    Promise { name, ok, failed, unknown, violations }
}

fn too_little(plan: &Plan, workloads: &[Arc<dyn Workload>], promises: &[Promise], faults: &[Fault]) -> Vec<String> {
    let minutes = plan.lasts.as_secs_f64() / 60.0;
    let mut why = Vec::new();
    for workload in workloads {
        let least = (workload.least_ok_per_minute() as f64 * minutes) as usize;
        let ok = promises.iter().find(|promise| promise.name == workload.name()).map_or(0, |promise| promise.ok);
        if ok < least {
            why.push(format!("{} operations of `{}` succeeded; at least {least} are needed", ok, workload.name()));
        }
    }
    let least = (FAULTS_PER_MINUTE * minutes) as usize;
    if !plan.nemeses.is_empty() && faults.len() < least.max(1) {
        why.push(format!("{} faults struck; at least {} are needed", faults.len(), least.max(1)));
    }
    let busy = operator::overload().filter(|_| !why.is_empty());
    why.extend(busy.map(|busy| format!("the machine was too busy: {busy}")));
    why
}
