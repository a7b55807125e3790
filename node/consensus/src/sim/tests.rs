//! Runs: one that explains itself, many that search, those that once failed, and those that must fail.

use super::run::{Plan, Report, run, run_here};
use crate::bugs::Bug;
use std::time::Duration;

/// Seeds of all [`search`]es together, unless `CAIRN_SIM_SEEDS` asks for more.
const SEEDS: u64 = 200;
const SEARCHES: u64 = 4;
/// A bug made on purpose must show within so many seeds.
const SELF_TEST_SEEDS: u64 = 60;

/// Seeds that found something once, and what. They run first. A change of what clients or faults draw makes other runs of
/// them; where a unit test is named, it keeps the case itself.
const REGRESSIONS: &[(u64, &str)] = &[
    (
        54,
        "a read round spun for ever when its group's core had ended: `a_group_that_has_ended_is_not_waited_for_hotly`",
    ),
    (81, "a node that joined while its cluster was founded was refused for ever"),
    (80, "the same, with more nodes"),
    (717, "no bug: entries of a leader of old, for which a snapshot had been installed, were taken for the log"),
    (2072, "no bug: an entry that was replaced and purged between two looks was taken for the log"),
    (192, "no bug: the log of a leader whose disk has just failed was taken for all it has"),
    (2070, "a leader that left found only draining voters, chose one and then refused it: the removal never ended"),
    (167, "a node removed before any leader had told it anything knew nobody to hear that from: it asks at `--join`"),
];

fn faulty(seed: u64) -> Plan {
    Plan { seed, faults: true, wire: false, bug: None }
}

fn explain(seed: u64, report: &Report) -> String {
    let violation = report.violation.as_deref().unwrap_or("nothing");
    format!("seed {seed}: {violation}\n  again, with its last events: make sim SEED={seed}\n")
}

/// One run: the plan of a parent process, or the seed of `CAIRN_SIM_SEED`.
#[test]
fn one_run() {
    let report = run_here();
    println!("{report:#?}");
    assert_eq!(report.violation, None, "{}", report.tail);
}

#[test]
fn without_faults_everything_is_acknowledged() {
    let report = run(Plan { faults: false, ..faulty(0) });
    assert_eq!(report.violation, None, "{}", report.tail);
    assert_eq!(report.unknown, 0, "{report:?}");
    assert!(report.acknowledged > 100 && report.reads > 100, "{report:?}");
}

/// Every event and every byte on the network, twice the same.
#[test]
fn a_seed_is_a_run_bit_for_bit() {
    for seed in [3, 4, 5] {
        let plan = Plan { wire: true, ..faulty(seed) };
        let (first, second) = (run(plan), run(plan));
        assert_eq!(first, second, "seed {seed} made two runs");
        assert!(first.messages > 1000 && first.crashes > 0, "{first:?}");
    }
    assert_ne!(run(faulty(3)).digest, run(faulty(6)).digest);
}

#[test]
fn seeds_that_once_failed() {
    for (seed, found) in REGRESSIONS {
        let report = run(faulty(*seed));
        assert_eq!(report.violation, None, "{}once: {found}\n{}", explain(*seed, &report), report.tail);
    }
}

/// Searches every fourth seed.
fn search(nth: u64) {
    let asked = std::env::var("CAIRN_SIM_SEEDS").ok().map(|seeds| seeds.parse().expect("CAIRN_SIM_SEEDS is a number"));
    let seeds = asked.unwrap_or(SEEDS);
    let began = std::time::Instant::now();
    let (mut sum, mut failed, mut runs) = (Report::default(), String::new(), 0u32);
    for seed in (nth..seeds).step_by(SEARCHES as usize) {
        let report = run(faulty(seed));
        if report.violation.is_some() {
            failed += &explain(seed, &report);
        }
        runs += 1;
        sum.add(&report);
    }
    println!("{runs} runs in {:?}: {sum:?}", began.elapsed());
    assert!(failed.is_empty(), "\n{failed}");
    // A search in which little happened has shown nothing.
    let each = |count: u64| count / u64::from(runs.max(1));
    assert!(each(sum.acknowledged) >= 50 && each(sum.reads) >= 50, "clients got little done: {sum:?}");
    assert!(each(sum.crashes) >= 2 && each(sum.network_faults) >= 2, "little went wrong: {sum:?}");
    assert!(sum.orders > 0 && sum.renewals > 0, "no node was drained, removed or given a lead: {sum:?}");
    assert!(sum.disk_crashes > 0 && sum.installs > 0 && sum.unknown > 0, "something never happened: {sum:?}");
    assert!(sum.simulated >= Duration::from_secs(10) * runs, "runs were short: {sum:?}");
}

#[test]
fn search_1_of_4() {
    search(0);
}

#[test]
fn search_2_of_4() {
    search(1);
}

#[test]
fn search_3_of_4() {
    search(2);
}

#[test]
fn search_4_of_4() {
    search(3);
}

/// The search can fail: each mistake made on purpose is found, by an invariant that should find it.
fn finds(bug: Bug, invariants: &[&str]) {
    let mut others = Vec::new();
    for seed in 0..SELF_TEST_SEEDS {
        let Some(violation) = run(Plan { bug: Some(bug), ..faulty(seed) }).violation else { continue };
        if invariants.iter().any(|name| violation.starts_with(name)) {
            println!("{bug:?} found by seed {seed}: {violation}");
            return;
        }
        others.push(format!("seed {seed}: {violation}"));
    }
    panic!("{bug:?} was not found in {SELF_TEST_SEEDS} seeds; what was: {others:#?}");
}

#[test]
fn selftest_acknowledging_before_the_fsync_is_found() {
    finds(Bug::AckBeforeSync, &["leader completeness", "state machine safety", "durability", "log matching"]);
}

#[test]
fn selftest_forgetting_a_vote_is_found() {
    finds(Bug::ForgetVote, &["vote durability", "election safety"]);
}

#[test]
fn selftest_reading_without_a_quorum_is_found() {
    finds(Bug::StaleRead, &["linearizability"]);
}

#[test]
fn selftest_not_noting_who_votes_is_found() {
    let broken = ["leader completeness", "state machine safety", "durability", "log matching", "linearizability"];
    finds(Bug::StaleMembership, &broken);
}

#[test]
fn selftest_sending_again_what_may_be_done_is_found() {
    finds(Bug::RetryUnknown, &["at most once"]);
}
