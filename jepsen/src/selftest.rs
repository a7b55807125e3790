//! It must be able to fail: every seeded bug must be caught, or the harness is worth nothing.
//!
//! A `cairnd` built with the feature `seeded-bugs` carries them all; the environment variable `CAIRN_SEED_BUG` wakes one.
//! Each is given runs of growing seeds until a promise breaks or its time is over. One run without a bug must be clean.

use crate::Result;
use crate::mixed::Plan;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Wakes a bug in a `cairnd` that carries them.
pub const VARIABLE: &str = "CAIRN_SEED_BUG";

/// A bug, the faults that bring it out, and the promises it may break.
#[derive(Debug)]
pub struct Bug {
    pub name: &'static str,
    pub what: &'static str,
    nemeses: &'static [&'static str],
}

pub const BUGS: [Bug; 8] = [
    Bug {
        name: "ack-before-quorum",
        what: "a follower says that it has entries which it throws away",
        nemeses: &["kill", "leader-alone", "majority", "storm"],
    },
    Bug {
        name: "skip-fsync",
        what: "the log does not wait for the disk, and a kill loses it",
        nemeses: &["storm", "kill"],
    },
    Bug { name: "forget-vote", what: "votes are not kept over a restart", nemeses: &["storm", "kill", "majority"] },
    Bug {
        name: "stale-read",
        what: "a leader answers reads without asking a quorum",
        nemeses: &["leader-alone", "majority", "pause"],
    },
    Bug {
        name: "lost-dedup",
        what: "a snapshot leaves out which sequences were applied",
        nemeses: &["majority", "pause", "kill"],
    },
    Bug { name: "torn-batch", what: "a batch is written in two steps", nemeses: &["kill"] },
    Bug { name: "last-arrival", what: "the row that arrives last wins", nemeses: &["kill"] },
    Bug {
        name: "stale-bounded",
        what: "bounded reads do not look how old they are",
        nemeses: &["majority", "pause", "delay"],
    },
];

/// One run may last this long, and all runs of one bug this long.
const RUN: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(240);

/// Tries every bug (or those in `only`) against `plan`; prints what caught it after how long. Returns whether all were.
///
/// # Errors
/// Trouble of the harness.
pub fn run(plan: &Plan, only: &[String], folder: &Path) -> Result<bool> {
    let mut all = true;
    println!("{:<20} {:>8}  caught by", "bug", "seconds");
    for bug in BUGS.iter().filter(|bug| only.is_empty() || only.iter().any(|name| name == bug.name)) {
        let began = Instant::now();
        let mut seed = plan.seed;
        let caught = loop {
            let promises = one(plan, bug.name, bug.nemeses, seed, &folder.join(format!("{}-{seed}", bug.name)))?;
            if !promises.is_empty() {
                break Some(promises);
            }
            if began.elapsed() > PATIENCE {
                break None;
            }
            seed += 1;
        };
        let seconds = began.elapsed().as_secs();
        match &caught {
            Some(promises) => println!("{:<20} {seconds:>8}  {} ({})", bug.name, promises.join(", "), bug.what),
            None => println!("{:<20} {seconds:>8}  NOT CAUGHT ({})", bug.name, bug.what),
        }
        all &= caught.is_some();
    }
    if only.is_empty() {
        let promises = one(plan, "", &["kill", "majority", "pause"], plan.seed, &folder.join("no-bug"))?;
        println!(
            "{:<20} {:>8}  {}",
            "no bug",
            RUN.as_secs(),
            if promises.is_empty() { "clean".to_owned() } else { promises.join(", ") }
        );
        all &= promises.is_empty();
    }
    Ok(all)
}

/// One run in a process of its own, because its nodes inherit its environment. Returns the promises that broke.
fn one(plan: &Plan, bug: &str, nemeses: &[&str], seed: u64, folder: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(folder)?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
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
