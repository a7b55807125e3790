//! Election safety: a leader has the votes of a majority, and a vote makes one leader.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014), §3.4 and figure 3.2. openraft orders votes by (term,
//! node), so a second leader may follow in the same term if its node id is greater; what is won once is therefore not the
//! term but the vote (openraft, `leader_id_adv`).

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Default)]
pub struct ElectionSafety {
    granted: BTreeMap<(GroupId, LeaderId), BTreeSet<NodeId>>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Granted { voter, group, vote } => {
                self.granted.entry((*group, vote.leader_id)).or_default().insert(*voter);
            }
            Event::Leads { node, group, vote, voters, .. } => {
                let leader = vote.leader_id;
                if leader.node_id != *node {
                    return Err(format!("node {node} leads group {group} by a vote for node {}", leader.node_id));
                }
                let granted = self.granted.entry((*group, leader)).or_default();
                granted.insert(*node);
                let short = |set: &&BTreeSet<NodeId>| set.intersection(granted).count() * 2 <= set.len();
                if let Some(set) = voters.iter().find(short) {
                    return Err(format!(
                        "node {node} leads group {group} in term {} with votes of {granted:?} among {set:?}",
                        leader.term
                    ));
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
    fn a_minority_makes_no_leader() {
        let leads = |node| {
            let voters = vec![BTreeSet::from([1, 2, 3])];
            Event::Leads { node, group: 1, vote: vote(4, 1), voters, last: 0 }
        };
        let granted = Event::Granted { voter: 2, group: 1, vote: vote(4, 1) };
        let other = Event::Granted { voter: 3, group: 1, vote: vote(5, 1) };
        last_of(ElectionSafety::default(), vec![granted.clone(), leads(1)]).unwrap();
        last_of(ElectionSafety::default(), vec![other, leads(1)]).unwrap_err();
        last_of(ElectionSafety::default(), vec![granted, leads(2)]).unwrap_err();
    }
}
