//! Vote durability: a node never gives a vote lower than one it gave before, whatever crash lies between.
//!
//! Source: Ongaro (2014), §3.8 ("the current term and vote must be persisted"); openraft, `io_ordering`. Votes are
//! ordered by (term, node), see election safety.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
pub struct VoteDurability {
    greatest: BTreeMap<(NodeId, GroupId), (LeaderId, Duration)>,
}

impl Invariant for VoteDurability {
    fn name(&self) -> &'static str {
        "vote durability"
    }

    fn see(&mut self, now: Duration, event: &Event) -> Result<(), String> {
        let (voter, group, vote) = match event {
            Event::Granted { voter, group, vote } => (voter, group, vote.leader_id),
            // A leader voted for itself.
            Event::Leads { node, group, vote, .. } => (node, group, vote.leader_id),
            _ => return Ok(()),
        };
        let (greatest, when) = self.greatest.entry((*voter, *group)).or_insert((vote, now));
        // Answers that one fsync lets go may be seen in another order than they were given.
        if vote < *greatest && *when == now {
            return Ok(());
        }
        if vote < *greatest {
            return Err(format!("node {voter} votes {vote:?} in group {group} after it had voted {greatest:?}"));
        }
        (*greatest, *when) = (vote, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn votes_never_go_back() {
        let granted = |term, to| Event::Granted { voter: 1, group: 0, vote: vote(term, to) };
        let check = |events| last_of(VoteDurability::default(), events);
        check(vec![granted(1, 2), granted(1, 2), granted(1, 3), granted(2, 1)]).unwrap();
        check(vec![granted(2, 2), granted(1, 3)]).unwrap_err();
        check(vec![granted(2, 3), granted(2, 2)]).unwrap_err();
    }
}
