//! What goes wrong, when and to whom: drawn from the seed, undone after a while, all of it at the end.

use super::history::note;
use super::host::{Machine, SHARDS, name};
use super::operator::Order;
use crate::options::Host;
use crate::types::NodeId;
use cairn_proto::record::v1::NodeState;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use turmoil::Sim;

const LATENCY_MAX: Duration = Duration::from_millis(8);
/// Orders get lost with the machine they were given to: they are repeated until they are carried out.
const REPEAT: Duration = Duration::from_millis(700);

/// A link between two machines, and what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nothing arrives; what was under way waits.
    Hold,
    /// What was under way is lost too, and so is every connection.
    Drop,
    /// Only from the first to the second.
    OneWay,
}

pub struct Nemesis {
    chance: SmallRng,
    machines: Vec<Arc<Machine>>,
    next: Duration,
    cuts: Vec<(usize, usize, Cut)>,
    network_heals: Option<Duration>,
    /// When a machine that is down comes back.
    down: Vec<Option<Duration>>,
    /// Machines whose disk is going to fail.
    doomed: Vec<bool>,
    /// The machine whose node is being removed, and the node.
    leaving: Option<(usize, NodeId)>,
    drained: BTreeMap<usize, NodeId>,
    next_orders: Duration,
    pub crashes: u64,
    pub disk_crashes: u64,
    pub network_faults: u64,
    pub orders: u64,
    /// Nodes that were removed and came back as new ones.
    pub renewals: u64,
}

impl Nemesis {
    pub fn new(seed: u64, machines: &[Arc<Machine>], begins: Duration) -> Self {
        Self {
            chance: SmallRng::seed_from_u64(seed ^ 0x6e65_6d65_7369_7300),
            machines: machines.to_vec(),
            next: begins,
            cuts: Vec::new(),
            network_heals: None,
            down: vec![None; machines.len()],
            doomed: vec![false; machines.len()],
            leaving: None,
            drained: BTreeMap::new(),
            next_orders: Duration::ZERO,
            crashes: 0,
            disk_crashes: 0,
            network_faults: 0,
            orders: 0,
            renewals: 0,
        }
    }

    /// What is due at `now`: faults only while `faulty`, repairs always.
    pub fn act(&mut self, sim: &mut Sim<'_>, now: Duration, faulty: bool) -> Result<(), String> {
        self.bury(sim, now)?;
        for at in 0..self.machines.len() {
            if self.down[at].is_some_and(|back| back <= now) {
                self.down[at] = None;
                note(format!("{} is switched on again", name(at + 1)));
                sim.bounce(name(at + 1));
            }
        }
        if self.network_heals.is_some_and(|heals| heals <= now) {
            self.heal_network(sim);
        }
        if faulty && self.next <= now {
            self.next = now + self.millis(100..1500);
            self.strike(sim, now);
        }
        if self.next_orders <= now {
            self.next_orders = now + REPEAT;
            self.repeat_orders(faulty);
        }
        Ok(())
    }

    /// Nobody is leaving or drained any more.
    pub fn is_settled(&self) -> bool {
        self.leaving.is_none() && self.drained.is_empty()
    }

    fn repeat_orders(&mut self, faulty: bool) {
        if let Some((_, node)) = self.leaving {
            self.order(Order::Become { node, state: NodeState::Removing });
        }
        if faulty {
            return;
        }
        let known = self.machines.iter().filter_map(|machine| machine.process()).map(|process| process.host.nodes());
        let known: Vec<_> = known.flatten().collect();
        let seen = |node: NodeId, state| known.iter().any(|it| it.id == node && it.state() == state);
        self.drained.retain(|_, node| !seen(*node, NodeState::Active) || seen(*node, NodeState::Draining));
        for node in self.drained.values().copied().collect::<Vec<_>>() {
            self.order(Order::Become { node, state: NodeState::Active });
        }
    }

    /// Gives an order to a machine that runs, whichever it is.
    fn order(&mut self, order: Order) {
        let running: Vec<usize> = (0..self.machines.len()).filter(|at| self.node_of(*at).is_some()).collect();
        if let Some(at) = running.choose(&mut self.chance) {
            self.machines[*at].order(order);
        }
    }

    fn node_of(&self, at: usize) -> Option<NodeId> {
        self.machines[at].process().map(|process| process.cluster.node_id())
    }

    /// Ends all faults; machines that are down come back at once.
    pub fn heal(&mut self, sim: &mut Sim<'_>, now: Duration) {
        self.heal_network(sim);
        for at in 0..self.machines.len() {
            self.machines[at].disk.fail_after(None);
            self.down[at] = self.down[at].map(|_| now);
        }
        note("everything is healed");
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.chance.random_range(range))
    }

    /// A process that cannot go on is taken off the power; without a broken disk it has no reason to stop.
    fn bury(&mut self, sim: &mut Sim<'_>, now: Duration) -> Result<(), String> {
        for at in 0..self.machines.len() {
            let machine = self.machines[at].clone();
            let stopped = machine.failed_start.lock().as_ref().map(ToString::to_string);
            let stopped =
                stopped.or_else(|| machine.process().and_then(|process| process.cluster.failure().borrow().clone()));
            let Some(reason) = stopped else { continue };
            let is_leaving = self.leaving.is_some_and(|(leaving, _)| leaving == at);
            if is_leaving && reason.contains("was removed from th") {
                self.renew(sim, at, now);
                continue;
            }
            if !self.doomed[at] {
                return Err(format!("{} stopped, and its disk is fine: {reason}", machine.name()));
            }
            note(format!("the disk of {} failed: {reason}", machine.name()));
            self.disk_crashes += 1;
            self.crash(sim, at, now);
        }
        Ok(())
    }

    fn crash(&mut self, sim: &mut Sim<'_>, at: usize, now: Duration) {
        let machine = self.machines[at].clone();
        let temper = self.chance.random();
        machine.forget_process();
        sim.crash(machine.name());
        machine.disk.crash(temper);
        self.doomed[at] = false;
        self.crashes += 1;
        let away = if self.chance.random_ratio(1, 3) { self.millis(10..100) } else { self.millis(100..3000) };
        note(format!("{} loses power for {away:?}, its disk keeps by {temper}", machine.name()));
        self.down[at] = Some(now + away);
    }

    /// A node that was removed is gone for good; its machine gets new disks and joins.
    fn renew(&mut self, sim: &mut Sim<'_>, at: usize, now: Duration) {
        let machine = self.machines[at].clone();
        machine.forget_process();
        sim.crash(machine.name());
        machine.renew();
        (self.leaving, self.doomed[at]) = (None, false);
        self.renewals += 1;
        let away = self.millis(20..1500);
        note(format!("{} is out, and gets new disks in {away:?}", machine.name()));
        self.down[at] = Some(now + away);
    }

    fn strike(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let up: Vec<usize> = (0..self.machines.len())
            .filter(|at| self.down[*at].is_none() && self.machines[*at].switched_on.load(Ordering::Relaxed))
            .collect();
        let Some(victim) = up.choose(&mut self.chance).copied() else { return };
        match self.chance.random_range(0..13) {
            10 => {
                for _ in 0..self.chance.random_range(2..9) {
                    let to = up.choose(&mut self.chance).and_then(|at| self.node_of(*at));
                    let group = self.chance.random_range(0..=SHARDS);
                    if let Some(to) = to {
                        self.order(Order::Transfer { group, to });
                        self.orders += 1;
                    }
                }
            }
            11 => self.drain(victim),
            12 if self.chance.random_ratio(1, 3) => {
                self.order(Order::Rebalance);
                self.orders += 1;
            }
            12 => self.remove(victim),
            0..2 => self.crash(sim, victim, now),
            2..5 => {
                let changes = self.chance.random_range(0..12);
                note(format!("the disk of {} fails after {changes} changes", name(victim + 1)));
                self.doomed[victim] = true;
                self.machines[victim].disk.fail_after(Some(changes));
            }
            5 => {
                // The leader, wherever it is, alone.
                let leads = |at: &&usize| {
                    let process = self.machines[**at].process();
                    process.is_some_and(|p| p.cluster.leader(1) == Some(p.cluster.node_id()))
                };
                let leader = up.iter().find(leads).copied().unwrap_or(victim);
                self.cut_off(sim, &[leader], now);
            }
            6..8 => {
                let mut side: Vec<usize> = (0..self.machines.len()).collect();
                side.shuffle(&mut self.chance);
                side.truncate(self.chance.random_range(1..self.machines.len()));
                self.cut_off(sim, &side, now);
            }
            8 => {
                let latency = self.millis(50..400);
                note(format!("messages take up to {latency:?}"));
                sim.set_max_message_latency(latency);
                self.network_fault(now);
            }
            _ => {
                let rate = self.chance.random_range(0.001..0.05);
                note(format!("links break at random, {rate:.3} a message"));
                sim.set_fail_rate(rate);
                self.network_fault(now);
            }
        }
    }

    /// A node leads nothing from now on; the next time, it may again.
    fn drain(&mut self, at: usize) {
        let Some(node) = self.node_of(at).filter(|node| self.leaving.is_none_or(|(_, leaving)| leaving != *node))
        else {
            return;
        };
        let state = match self.drained.remove(&at) {
            Some(drained) if drained == node => NodeState::Active,
            _ => {
                self.drained.insert(at, node);
                NodeState::Draining
            }
        };
        note(format!("{} shall be {state:?}", name(at + 1)));
        self.orders += 1;
        self.order(Order::Become { node, state });
    }

    /// A node leaves for good; one at a time.
    fn remove(&mut self, at: usize) {
        let Some(node) = self.node_of(at).filter(|_| self.leaving.is_none()) else { return };
        note(format!("{}, node {node}, shall leave", name(at + 1)));
        self.drained.remove(&at);
        self.leaving = Some((at, node));
        self.orders += 1;
        self.order(Order::Become { node, state: NodeState::Removing });
    }

    /// Cuts `side` off from everybody else.
    fn cut_off(&mut self, sim: &mut Sim<'_>, side: &[usize], now: Duration) {
        let cut = *[Cut::Hold, Cut::Drop, Cut::Drop, Cut::OneWay].choose(&mut self.chance).unwrap_or(&Cut::Drop);
        let outwards = self.chance.random();
        note(format!("{:?} cut off by {cut:?} outwards {outwards}", side.iter().map(|at| at + 1).collect::<Vec<_>>()));
        for &inside in side {
            for outside in (0..self.machines.len()).filter(|at| !side.contains(at)) {
                let (from, to) = if outwards { (inside, outside) } else { (outside, inside) };
                let (from_name, to_name) = (name(from + 1), name(to + 1));
                match cut {
                    Cut::Hold => sim.hold(from_name, to_name),
                    Cut::Drop => sim.partition(from_name, to_name),
                    Cut::OneWay => sim.partition_oneway(from_name, to_name),
                }
                self.cuts.push((from, to, cut));
            }
        }
        self.network_fault(now);
    }

    fn network_fault(&mut self, now: Duration) {
        self.network_faults += 1;
        let heals = now + self.millis(300..4000);
        self.network_heals = Some(self.network_heals.map_or(heals, |before| before.max(heals)));
    }

    fn heal_network(&mut self, sim: &mut Sim<'_>) {
        if self.network_heals.take().is_none() {
            return;
        }
        note("the network is well again");
        sim.set_max_message_latency(LATENCY_MAX);
        sim.set_fail_rate(0.0);
        self.cuts.clear();
        // Random breaks leave links broken too: all of them are mended.
        for from in 1..=self.machines.len() {
            for to in from + 1..=self.machines.len() {
                sim.release(name(from), name(to));
            }
        }
    }
}
