//! Leader completeness: what was committed stands in the log of every later leader. So nothing acknowledged is lost.
//!
//! Source: Ongaro (2014), §3.6.3 and figure 3.2. Committed is here what some replica has applied, and what a client was
//! told to be; the end of a run besides looks for every acknowledged command on every replica.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
pub struct LeaderCompleteness {
    /// The last entry known to be committed under each leader.
    committed: BTreeMap<(GroupId, LeaderId), u64>,
    logs: BTreeMap<(NodeId, GroupId), BTreeMap<u64, LeaderId>>,
}

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Log { node, group, first, entries } => {
                let log = self.logs.entry((*node, *group)).or_default();
                log.split_off(first);
                log.extend((*first..).zip(entries.iter().map(|(leader, _)| *leader)));
            }
            // A snapshot takes the place of what stood before it, whoever had written that.
            Event::Installed { node, group, index } => {
                let log = self.logs.entry((*node, *group)).or_default();
                *log = log.split_off(&(index + 1));
            }
            Event::Purged { node, group, first } => {
                let log = self.logs.entry((*node, *group)).or_default();
                *log = log.split_off(first);
            }
            Event::Applied { group, index, leader: Some(leader), .. } => {
                let last = self.committed.entry((*group, *leader)).or_default();
                *last = (*last).max(*index);
            }
            Event::Leads { node, group, vote, last, .. } => {
                let log = self.logs.entry((*node, *group)).or_default();
                let first = LeaderId { term: 0, node_id: 0 };
                for ((_, by), index) in self.committed.range((*group, first)..(*group, vote.leader_id)) {
                    // What is not in the log any more is in a snapshot.
                    let found = log.get(index).is_none_or(|found| found == by);
                    if last < index || !found {
                        return Err(format!(
                            "node {node} leads group {group} by {:?} with {last} entries, and entry {index} of {by:?} \
                             was committed before",
                            vote.leader_id
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_later_leader_has_what_was_committed() {
        let applied = Event::Applied { node: 1, group: 1, index: 7, leader: Some(leader(2, 1)), command: None };
        let leads = |vote, last| Event::Leads { node: 3, group: 1, vote, voters: Vec::new(), last };
        let log = |by| Event::Log { node: 3, group: 1, first: 7, entries: vec![(by, 0)] };
        let last_of = |events| last_of(LeaderCompleteness::default(), events);
        last_of(vec![applied.clone(), leads(vote(3, 3), 7)]).unwrap();
        last_of(vec![applied.clone(), leads(vote(1, 3), 6)]).unwrap();
        last_of(vec![applied.clone(), leads(vote(3, 3), 6)]).unwrap_err();
        last_of(vec![applied.clone(), log(leader(2, 1)), leads(vote(3, 3), 7)]).unwrap();
        let other = log(leader(1, 2));
        last_of(vec![applied.clone(), other.clone(), leads(vote(3, 3), 7)]).unwrap_err();
        let installed = |index| Event::Installed { node: 3, group: 1, index };
        last_of(vec![applied.clone(), other.clone(), installed(7), leads(vote(3, 3), 8)]).unwrap();
        last_of(vec![applied.clone(), other.clone(), installed(6), leads(vote(3, 3), 8)]).unwrap_err();
        let purged = |first| Event::Purged { node: 3, group: 1, first };
        last_of(vec![applied.clone(), other.clone(), purged(8), leads(vote(3, 3), 8)]).unwrap();
        last_of(vec![applied, other, purged(7), leads(vote(3, 3), 8)]).unwrap_err();
    }
}
