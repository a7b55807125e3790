//! What an operator does after faults: undoes them, and helps nodes on that cannot come back by themselves.
//!
//! - a node whose replica was damaged names its way out, `--rebuild`: that is what it gets, until it has worked
//! - a node that was removed finds out and stops: its data is taken away, and it joins as a new one
//! - a node that was drained may lead again
//!
//! Always true: no other node gets help; one that ends by itself is a violation.

use crate::Result;
use crate::disk::SmallDisks;
use crate::fleet::Fleet;
use cairn_client::ErrorKind;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long nodes may take to be whole again once nothing hinders them.
pub const RECOVERY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// More runnable threads a core than this, over a minute, and a node's delay says nothing about it.
const LOAD_MAX: f64 = 5.0;

/// Who needs help, and what was done.
#[derive(Debug, Default)]
pub struct Care {
    /// Nodes with damaged files, and the groups they asked to be made new.
    damaged: BTreeMap<usize, BTreeSet<u32>>,
    /// Nodes that are being removed; whether the cluster has said yes.
    leaving: BTreeMap<usize, bool>,
    /// Nodes that lost their data and join as new ones.
    joining: BTreeSet<usize>,
    drained: BTreeSet<usize>,
    /// Replicas made new from a peer's.
    pub rebuilt: usize,
    /// Nodes that were removed and have come back as new ones.
    pub renewed: usize,
}

impl Care {
    /// A node is not what it was: another one must not lose its files too.
    pub fn is_needed(&self) -> bool {
        !self.damaged.is_empty() || !self.leaving.is_empty() || !self.joining.is_empty()
    }

    /// Its replicas of `groups` are to be made new.
    pub fn was_damaged(&mut self, at: usize, groups: &BTreeSet<u32>) {
        self.damaged.entry(at).or_default().extend(groups);
    }

    /// From here on its drain is not undone: that would call off the removal.
    pub fn was_removed(&mut self, at: usize, certainly: bool) {
        self.drained.remove(&at);
        self.leaving.insert(at, certainly);
    }

    pub fn was_drained(&mut self, at: usize) {
        self.drained.insert(at);
    }

    pub fn is_leaving(&self, at: usize) -> bool {
        self.leaving.contains_key(&at)
    }
}

/// Why nodes are not whole.
#[derive(Debug)]
pub enum Trouble {
    Violation(String),
    /// The machine is too busy to tell.
    Overload(String),
}

impl Fleet {
    /// Undoes everything: links healed, clocks right, disks emptied, processes continued and started. What fails after it fails by
    /// itself.
    ///
    /// # Errors
    /// Trouble of the harness.
    pub async fn mend(&mut self) -> Result<()> {
        self.network.heal()?;
        self.set_clocks_right().await?;
        self.disks.iter().for_each(SmallDisks::empty);
        for at in 0..self.size() {
            self.resume(at)?;
            if self.cluster.process_id(at).is_none() {
                self.start_node(at)?;
            }
        }
        Ok(())
    }

    /// Waits until every node has a leader and a quorum in every group, and helps those on that need it.
    ///
    /// # Errors
    /// Which node is not whole again within [`RECOVERY`], or ended by itself.
    pub async fn recovered(&mut self) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            let mut waiting = self.orders().await;
            for at in 0..self.size() {
                let ended = self.cluster.has_ended(at).map_err(|error| Trouble::Violation(error.to_string()))?;
                if ended {
                    self.help(at).map_err(Trouble::Violation)?;
                }
                let whole = !ended && !self.care.is_leaving(at) && self.is_whole(at).await;
                match whole {
                    true => self.discharge(at),
                    false => waiting = waiting.or_else(|| Some(format!("{} is not whole again", self.name(at)))),
                }
            }
            let Some(why) = waiting else { return Ok(()) };
            if began.elapsed() > RECOVERY {
                let why = format!("{why} within {RECOVERY:?}");
                return Err(match overload() {
                    Some(load) => Trouble::Overload(format!("{why}, but {load}")),
                    None => Trouble::Violation(why),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Orders to the cluster that are still to be given; why that is not over yet.
    async fn orders(&mut self) -> Option<String> {
        let mut waiting = None;
        for at in self.care.drained.clone() {
            match self.hand.drain_node(&self.name(at), true).await {
                Ok(_) => drop(self.care.drained.remove(&at)),
                // It is being removed, or somebody else by now.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => {
                    self.care.drained.remove(&at);
                }
                Err(error) => waiting = Some(format!("the drain of {} is not undone: {error}", self.name(at))),
            }
        }
        let unsure: Vec<usize> = self.care.leaving.iter().filter(|(_, sure)| !**sure).map(|(at, _)| *at).collect();
        for at in unsure {
            match self.hand.remove_node(&self.name(at), false).await {
                Ok(_) => drop(self.care.leaving.insert(at, true)),
                Err(error) if error.kind() == ErrorKind::NotFound => drop(self.care.leaving.insert(at, true)),
                Err(error) => waiting = Some(format!("{} is not removed: {error}", self.name(at))),
            }
        }
        waiting
    }

    /// Starts a node again that has ended by itself, in the way it named.
    fn help(&mut self, at: usize) -> Result<(), String> {
        let (name, said) = (self.name(at), self.said(at));
        let broke = |error: Box<dyn std::error::Error + Send + Sync>| format!("{name}: {error}");
        if self.care.is_leaving(at) && said.contains("was removed from th") {
            self.wipe(at).map_err(broke)?;
            self.care.leaving.remove(&at);
            self.care.joining.insert(at);
            return self.start_node(at).map_err(broke);
        }
        if let Some(groups) = self.care.damaged.get_mut(&at) {
            groups.extend(groups_to_rebuild(&said));
            let groups = groups.clone();
            return self.rebuild(at, &groups).map_err(broke);
        }
        // The node that it joins through may be away for a moment, and so may a quorum.
        if self.care.joining.contains(&at) && !self.data_dir(at).join("identity").exists() {
            return self.start_node(at).map_err(broke);
        }
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
        Err(format!("{name} ended by itself; its log ends:\n{tail}"))
    }

    /// A node that is whole needs no more help.
    fn discharge(&mut self, at: usize) {
        self.care.rebuilt += self.care.damaged.remove(&at).map_or(0, |groups| groups.len());
        self.care.renewed += usize::from(self.care.joining.remove(&at));
    }

    async fn is_whole(&self, at: usize) -> bool {
        let voters = self.size().min(3);
        let Ok(status) = self.eyes[at].status().await else { return false };
        let has_quorum = |group: &cairn_client::api::GroupStatus| group.leader != 0 && group.voters.len() >= voters;
        !status.groups.is_empty() && status.groups.iter().all(has_quorum)
    }
}

/// The groups that a node says it would make new with `--rebuild`.
pub fn groups_to_rebuild(said: &str) -> BTreeSet<u32> {
    let digits = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    said.split("`--rebuild ").skip(1).filter_map(digits).collect()
}

/// What the machine is busy with, if it is too much.
pub fn overload() -> Option<String> {
    let load: f64 = std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().ok()?.get();
    let too_much = load > LOAD_MAX * cores as f64;
    too_much.then(|| format!("{load:.0} threads wanted {cores} cores in the last minute; run it again alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_read_from_the_log() {
        let said = "damaged: start it with `--rebuild 12 --join HOST:PEERPORT`; damaged: `--rebuild 3 --join …`";
        assert_eq!(groups_to_rebuild(said), BTreeSet::from([3, 12]));
        assert_eq!(groups_to_rebuild("damaged"), BTreeSet::new());
    }

    #[test]
    fn help_is_needed_until_it_was_given() {
        let mut care = Care::default();
        assert!(!care.is_needed());
        care.was_drained(0);
        assert!(!care.is_needed(), "a drained node has all it had");
        care.was_damaged(1, &BTreeSet::from([2]));
        assert!(care.is_needed());
    }
}
