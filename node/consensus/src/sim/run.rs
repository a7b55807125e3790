//! One run: machines are switched on, clients work while things break, everything is healed, and then it must all be
//! there: a leader for every group, new writes, and equal replicas with everything that was acknowledged.

use super::clients::GROUP;
use super::history::{History, note};
use super::host::{Machine, SHARDS, World, name};
use super::nemesis::Nemesis;
use super::observer::Observer;
use super::wire::Wire;
use super::{chance, invariants};
use crate::bugs::{self, Bug};
use crate::options::{SnapshotOptions, Timers};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use turmoil::Sim;

const TICK: Duration = Duration::from_millis(2);
/// Steps between two looks at the logs.
const LOOK_STEPS: u64 = 10;
/// The machines find each other before anything breaks, in most runs.
const FOUNDING: Duration = Duration::from_secs(4);
const FAULTY: Duration = Duration::from_secs(10);
/// After the last fault: leaders, and a write through every node, within this …
const RECOVERY_MAX: Duration = Duration::from_secs(25);
/// … and equal replicas within that much more.
const CONVERGENCE_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub faults: bool,
    /// Whether the digest covers every byte on the network. Slow.
    pub wire: bool,
    pub bug: Option<Bug>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub violation: Option<String>,
    /// Of all events in order.
    pub digest: String,
    pub events: u64,
    pub messages: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub crashes: u64,
    pub disk_crashes: u64,
    pub network_faults: u64,
    pub orders: u64,
    pub renewals: u64,
    pub simulated: Duration,
    pub installs: u64,
    pub recovered_in: Duration,
    /// The last events.
    pub tail: String,
}

impl Report {
    /// Sums up what happened; times to recover are not summed, the longest counts.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.messages += other.messages;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.installs += other.installs;
        self.crashes += other.crashes;
        self.disk_crashes += other.disk_crashes;
        self.network_faults += other.network_faults;
        self.orders += other.orders;
        self.renewals += other.renewals;
        self.simulated += other.simulated;
        self.recovered_in = self.recovered_in.max(other.recovered_in);
    }
}

/// The variable that holds the plan of a process, and what its report begins with.
const PLAN: &str = "CAIRN_SIM_PLAN";
const REPORT: &str = "SIM-REPORT ";

/// Runs `plan` in a process of its own. Only so is a run the same each time: tokio and others count what they make,
/// over all runs of a process, and draw on the count.
pub fn run(plan: Plan) -> Report {
    let failed = |what: String| Report { violation: Some(what), ..Report::default() };
    let plan = serde_json::to_string(&plan).expect("a plan is text");
    let child = std::env::current_exe().and_then(|this| {
        let arguments = ["--exact", "sim::tests::one_run", "--nocapture", "--test-threads=1"];
        std::process::Command::new(this).args(arguments).env(PLAN, plan).output()
    });
    let output = match child {
        Ok(output) => output,
        Err(error) => return failed(format!("a run does not start: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().find_map(|line| line.split_once(REPORT));
    match report.map(|(_, report)| serde_json::from_str(report)) {
        Some(Ok(report)) => report,
        _ => failed(format!("a run ended without a report: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The other end of [`run`]: the plan of this process, or that of the seed in `CAIRN_SIM_SEED`.
pub fn run_here() -> Report {
    let plan = std::env::var(PLAN).ok().map(|plan| serde_json::from_str(&plan).expect("a plan"));
    let asked = plan.is_some();
    let seed = std::env::var("CAIRN_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let plan = plan.unwrap_or(Plan {
        seed: seed.unwrap_or_default(),
        faults: true,
        wire: std::env::var_os("CAIRN_SIM_TRACE").is_some(),
        bug: None,
    });
    let report = run_on_a_thread(plan);
    if asked {
        println!("\n{REPORT}{}", serde_json::to_string(&report).expect("a report is text"));
    }
    report
}

/// Runs `plan` on a thread of its own.
fn run_on_a_thread(plan: Plan) -> Report {
    // A name of chance must not be in any message, so paths are relative. A run has its process for itself.
    let dirs = data_dirs();
    std::env::set_current_dir(dirs.path()).expect("a new directory can be gone to");
    let on_its_own = move || {
        chance::enter(plan.seed);
        bugs::seed(plan.bug);
        Run::new(plan).run()
    };
    let thread = std::thread::Builder::new().name(format!("sim-{}", plan.seed)).stack_size(16 << 20);
    match thread.spawn(on_its_own).expect("a thread starts").join() {
        Ok(report) => report,
        Err(_) => Report { violation: Some("the harness panicked".into()), ..Report::default() },
    }
}

struct Run {
    plan: Plan,
    world: Arc<World>,
    history: Arc<Mutex<History>>,
    machines: Vec<Arc<Machine>>,
    observer: Observer,
    nemesis: Nemesis,
    sim: Sim<'static>,
    steps: u64,
    recovered_in: Duration,
    /// When each machine is switched on.
    switches: BTreeMap<Duration, usize>,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let mut chance = SmallRng::seed_from_u64(plan.seed);
        let history = History::begin();
        let machines = 3 + (plan.seed % 3) as usize;
        let world = Arc::new(World {
            machines,
            replication_factor: if machines == 5 && chance.random() { 5 } else { 3 },
            busy: AtomicBool::new(true),
            operations: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        });
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(8))
            .repair_rate(0.2)
            .tcp_capacity(1 << 16)
            .simulation_duration(Duration::from_secs(3600))
            .enable_random_order()
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
            .build();
        let snapshots = SnapshotOptions { every_entries: 40, keep_entries: 5, bytes_per_second: 0 };
        let mut switches = BTreeMap::new();
        let machines: Vec<Arc<Machine>> = (1..=machines)
            .map(|number| {
                // Clocks that run up to a quarter too fast or too slow.
                let rate = if plan.faults { chance.random_range(0.8..1.25) } else { 1.0 };
                let scaled = |ms: u64| (ms as f64 * rate) as u64;
                let timers =
                    Timers { heartbeat_ms: scaled(100), election_min_ms: scaled(600), election_max_ms: scaled(1200) };
                let dir = Path::new(".").join(name(number));
                let machine = Arc::new(Machine::new(number, world.clone(), dir, timers, snapshots));
                let at = match number {
                    1..=3 => chance.random_range(0..200),
                    _ => chance.random_range(0..(FOUNDING + FAULTY).as_millis() as u64),
                };
                switches.insert(Duration::from_micros(at * 1000 + number as u64), number - 1);
                let runs = machine.clone();
                sim.host(machine.name(), move || {
                    let machine = runs.clone();
                    async move {
                        machine.run().await;
                        Ok(())
                    }
                });
                machine
            })
            .collect();
        let begins = if chance.random_ratio(1, 4) { Duration::from_millis(300) } else { FOUNDING };
        let nemesis = Nemesis::new(plan.seed, &machines, begins);
        Self {
            plan,
            world,
            history,
            machines,
            observer: Observer::default(),
            nemesis,
            sim,
            steps: 0,
            recovered_in: Duration::ZERO,
            switches,
        }
    }

    fn run(mut self) -> Report {
        let outcome = match self.plan.wire {
            true => tracing::subscriber::with_default(Wire::new(self.history.clone()), || self.phases()),
            false => self.phases(),
        };
        let mut history = self.history.lock();
        if let Err(violation) = outcome {
            history.fail(violation);
        }
        let counts = history.counts();
        let mut report = Report {
            violation: history.violation().map(str::to_owned),
            digest: history.digest(),
            events: history.events(),
            messages: history.messages(),
            acknowledged: counts.acknowledged,
            unknown: counts.unknown,
            reads: counts.reads,
            installs: counts.installs,
            recovered_in: self.recovered_in,
            crashes: self.nemesis.crashes,
            disk_crashes: self.nemesis.disk_crashes,
            network_faults: self.nemesis.network_faults,
            orders: self.nemesis.orders,
            renewals: self.nemesis.renewals,
            simulated: self.sim.elapsed(),
            ..Report::default()
        };
        if report.violation.is_some() {
            report.tail = history.tail();
        }
        report
    }

    /// # Errors
    /// What did not hold.
    fn phases(&mut self) -> Result<(), String> {
        while self.sim.elapsed() < FOUNDING + FAULTY {
            self.step(self.plan.faults)?;
        }
        let now = self.sim.elapsed();
        self.nemesis.heal(&mut self.sim, now);
        let before: Vec<u64> = self.machines.iter().map(|m| m.acknowledged.load(Ordering::Relaxed)).collect();
        self.until("every group has a leader and every node takes writes", RECOVERY_MAX, |run| {
            run.switches.is_empty()
                && run.nemesis.is_settled()
                && run.machines.iter().zip(&before).all(|(machine, before)| {
                    let leads = machine
                        .process()
                        .is_some_and(|process| (0..=SHARDS).all(|group| process.cluster.leader(group).is_some()));
                    leads && machine.acknowledged.load(Ordering::Relaxed) > *before
                })
        })?;
        self.recovered_in = self.sim.elapsed() - now;
        self.world.busy.store(false, Ordering::Relaxed);
        note("clients stop");
        self.until("all replicas are equal", CONVERGENCE_MAX, |run| {
            let mut states = run.machines.iter().map(|machine| {
                let process = machine.process()?;
                let applied: Vec<u64> = (0..=SHARDS).map(|group| process.host.applied(group)).collect();
                let last: Vec<u64> = process.cluster.status().iter().map(|group| group.last_index).collect();
                (applied == last).then_some(applied)
            });
            let first = states.next().flatten();
            first.is_some() && states.all(|state| state == first)
        })?;
        self.check_replicas()
    }

    fn until(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = self.sim.elapsed() + within;
        while !holds(self) {
            if self.sim.elapsed() > deadline {
                let states = self.machines.iter().map(|machine| match machine.process() {
                    Some(process) => format!("{}: {:?}", machine.name(), process.cluster.status()),
                    None => format!("{} does not run", machine.name()),
                });
                let states: Vec<String> = states.collect();
                return Err(format!("liveness: not within {within:?}: {what}\n{}", states.join("\n")));
            }
            self.step(false)?;
        }
        Ok(())
    }

    fn step(&mut self, faulty: bool) -> Result<(), String> {
        let now = self.sim.elapsed();
        chance::set_elapsed(now);
        self.history.lock().set_now(now);
        while let Some(due) = self.switches.first_entry().filter(|first| *first.key() <= now) {
            let machine = &self.machines[due.remove()];
            machine.switched_on.store(true, Ordering::Relaxed);
            note(format!("{} is switched on", machine.name()));
        }
        self.sim.step().map_err(|error| format!("the simulation ended: {error}"))?;
        self.steps += 1;
        let now = self.sim.elapsed();
        {
            let mut history = self.history.lock();
            history.set_now(now);
            self.observer.look(&self.machines, &mut history, self.steps.is_multiple_of(LOOK_STEPS));
        }
        self.nemesis.act(&mut self.sim, now, faulty)?;
        match self.history.lock().violation() {
            Some(violation) => Err(violation.to_owned()),
            None => Ok(()),
        }
    }

    /// All replicas hold the same commands, among them every one that was acknowledged.
    fn check_replicas(&self) -> Result<(), String> {
        let states: Vec<_> = self
            .machines
            .iter()
            .filter_map(|m| m.process())
            .map(|p| (p.host.commands(0), p.host.commands(GROUP)))
            .collect();
        if let Some(at) = states.windows(2).position(|pair| pair[0] != pair[1]) {
            return Err(format!("convergence: machines {} and {} hold different states", at + 1, at + 2));
        }
        let held: std::collections::BTreeSet<u64> =
            states[0].1.iter().filter_map(|command| invariants::operation(command)).map(|(_, number)| number).collect();
        match self.history.lock().acknowledged().find(|operation| !held.contains(operation)) {
            Some(lost) => Err(format!("durability: acknowledged command {lost} is gone")),
            None => Ok(()),
        }
    }
}

/// Data directories in memory where there is such a place: what is not the log is synced by the real code, often.
fn data_dirs() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("cairn-sim-").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).expect("a directory can be made")
}
