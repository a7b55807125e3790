//! It must be able to fail: every seeded bug must be caught, or the harness is worth nothing.
//!
//! A `cairnd` built with the feature `seeded-bugs` carries them all; the environment variable `CAIRN_SEED_BUG` wakes one.
//! Each is given runs of growing seeds until a promise breaks or its time is over. Bugs that show on real processes once
//! in hours are looked for by the simulation instead, which is a test of cairn-consensus: one line more in the same table.
//! Runs without a bug must be clean, on disks that lose what was not synced at kill -9 as well.

use crate::Result;
use crate::mixed::Plan;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Wakes a bug in a `cairnd` that carries them.
pub const VARIABLE: &str = "CAIRN_SEED_BUG";

/// A bug, and who must catch it.
#[derive(Debug)]
pub struct Bug {
    pub name: &'static str,
    pub what: &'static str,
    by: By,
}

#[derive(Debug)]
enum By {
    /// Runs with these faults.
    Processes(&'static [&'static str]),
    /// The test of that name.
    Simulation(&'static str),
}

pub const BUGS: [Bug; 12] = [
    Bug {
        name: "ack-before-quorum",
        what: "a follower says that it has entries which it throws away",
        by: By::Processes(&["kill", "leader-alone", "majority", "storm"]),
    },
    Bug {
        name: "skip-fsync",
        what: "the log does not wait for the disk, and a kill loses it",
        by: By::Processes(&["storm", "kill"]),
    },
    Bug {
        name: "ack-before-sync",
        what: "entries count as durable when they are queued",
        by: By::Simulation("selftest_acknowledging_before_the_fsync_is_found"),
    },
    Bug {
        name: "forget-vote",
        what: "votes are not kept over a restart",
        by: By::Simulation("selftest_forgetting_a_vote_is_found"),
    },
    Bug {
        name: "stale-read",
        what: "a leader answers reads on its own word: a lease without re-check",
        by: By::Processes(&["leader-alone", "majority", "pause"]),
    },
    Bug {
        name: "stale-bounded",
        what: "bounded reads do not look how old they are",
        by: By::Processes(&["majority", "pause", "leader-alone"]),
    },
    Bug {
        name: "stale-membership",
        what: "behind a snapshot and a restart the first voters count",
        by: By::Processes(&["storm", "kill"]),
    },
    Bug {
        name: "stale-membership",
        what: "the same, by the simulation",
        by: By::Simulation("selftest_not_noting_who_votes_is_found"),
    },
    Bug {
        name: "lost-dedup",
        what: "a snapshot leaves out which sequences were applied",
        // A node that joins as a new one starts from a snapshot.
        by: By::Processes(&["renew", "majority", "transfers"]),
    },
    Bug { name: "torn-batch", what: "a batch is written in two steps", by: By::Processes(&["kill"]) },
    Bug { name: "last-arrival", what: "the row that arrives last wins", by: By::Processes(&["kill"]) },
    Bug {
        name: "retry-unknown",
        what: "what may have been accepted is sent again",
        by: By::Simulation("selftest_sending_again_what_may_be_done_is_found"),
    },
];

/// What must be clean: `lose-unsynced` is a disk that does what power loss does, and no bug.
const CLEAN: [(&str, &str, &[&str]); 2] = [
    ("", "no bug", &["kill", "majority", "pause"]),
    ("lose-unsynced", "no bug, kill -9 loses what was not synced", &["kill", "storm"]),
];

/// One run may last this long, and all runs of one bug this long.
const RUN: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(240);

/// Tries every bug (or those in `only`) against `plan`; prints what caught it after how long. Returns whether all were.
///
/// - `simulation`: the test binary of cairn-consensus; without it the bugs that it looks for are named as not tried
///
/// # Errors
/// Trouble of the harness.
pub fn run(plan: &Plan, only: &[String], simulation: Option<&Path>, folder: &Path) -> Result<bool> {
    let mut all = true;
    println!("{:<20} {:>8}  caught by", "bug", "seconds");
    for bug in BUGS.iter().filter(|bug| only.is_empty() || only.iter().any(|name| name == bug.name)) {
        let began = Instant::now();
        let caught = match (&bug.by, simulation) {
            (By::Processes(nemeses), _) => by_processes(plan, bug.name, nemeses, folder)?,
            (By::Simulation(test), Some(binary)) => by_simulation(binary, test)?,
            (By::Simulation(_), None) => {
                println!("{:<20} {:>8}  not tried: needs --simulation ({})", bug.name, "", bug.what);
                continue;
            }
        };
        let seconds = began.elapsed().as_secs();
        let by = caught.as_deref().unwrap_or("NOT CAUGHT");
        println!("{:<20} {seconds:>8}  {by} ({})", bug.name, bug.what);
        all &= caught.is_some();
    }
    for (bug, what, nemeses) in CLEAN.iter().filter(|_| only.is_empty()) {
        let began = Instant::now();
        let broken = one(plan, bug, nemeses, plan.seed, &folder.join(format!("clean-{bug}")))?;
        let verdict = if broken.is_empty() { "clean".to_owned() } else { broken.join(", ") };
        println!("{:<20} {:>8}  {verdict} ({what})", "", began.elapsed().as_secs());
        all &= broken.is_empty();
    }
    Ok(all)
}

/// The promises that broke, in the first run in which any did.
fn by_processes(plan: &Plan, bug: &str, nemeses: &[&str], folder: &Path) -> Result<Option<String>> {
    let began = Instant::now();
    for seed in plan.seed.. {
        let broken = one(plan, bug, nemeses, seed, &folder.join(format!("{bug}-{seed}")))?;
        if !broken.is_empty() {
            return Ok(Some(broken.join(", ")));
        }
        if began.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(None)
}

/// The invariant that broke, in the words of the test.
fn by_simulation(binary: &Path, test: &str) -> Result<Option<String>> {
    let test = format!("sim::tests::{test}");
    let output = Command::new(binary).args(["--exact", &test, "--nocapture", "--test-threads=1"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| {
        let (_, found) = line.split_once(" found by ")?;
        let mut words = found.split(": ");
        Some(format!("simulation, {}: {}", words.next()?, words.next()?))
    });
    match (output.status.success(), found) {
        (true, Some(found)) => Ok(Some(found)),
        // A test that does not exist passes too.
        (true, None) => Err(format!("`{}` has no test `{test}`", binary.display()).into()),
        (false, _) => Ok(None),
    }
}

/// One run in a process of its own, because its nodes inherit its environment. Returns the promises that broke.
fn one(plan: &Plan, bug: &str, nemeses: &[&str], seed: u64, folder: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(folder)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--cairnd").arg(&plan.cairnd).arg("--folder").arg(folder).env(VARIABLE, bug);
    command.args(["--minutes", &(RUN.as_secs_f64() / 60.0).to_string(), "--seed", &seed.to_string()]);
    command.args(["--nodes", &plan.nodes.to_string(), "--nemesis", &nemeses.join(",")]);
    command.args(["--workload", &plan.workloads.join(",")]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
    let verdict: serde_json::Value = match std::fs::read_to_string(folder.join("verdict.json")) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) => return Err(format!("the run with `{bug}` ended with {status} and without a verdict").into()),
    };
    let broken = |promise: &serde_json::Value| {
        let violations = promise["violations"].as_array().is_some_and(|violations| !violations.is_empty());
        violations.then(|| promise["name"].as_str().map(str::to_owned)).flatten()
    };
    let promises = verdict["promises"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(promises.iter().filter_map(broken).collect())
}
