//! A node that was removed never leads again.
//!
//! Source: C6, and Ongaro (2014), §4.2.3 (a server that is not in the configuration any more, and does not know it yet).
//! It may still grant votes; nobody counts them.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use cairn_proto::record::v1::{self as record, NodeState, meta_command::Change};
use prost::Message;
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Default)]
pub struct RemovedStaysOut {
    /// Written down as removed, as some replica of meta applied it.
    removed: BTreeSet<NodeId>,
}

impl Invariant for RemovedStaysOut {
    fn name(&self) -> &'static str {
        "removed stays out"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Applied { group: 0, command: Some(command), .. } => {
                if let Ok(command) = record::MetaCommand::decode(command.as_slice())
                    && let Some(Change::ChangeNodeState(change)) = command.change
                    && change.state() == NodeState::Removed
                {
                    self.removed.insert(change.id);
                }
                Ok(())
            }
            Event::Leads { node, group, .. } if self.removed.contains(node) => {
                Err(format!("node {node} was removed, and leads group {group}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn removed(id: NodeId) -> Event {
        let change = record::ChangeNodeState { id, state: NodeState::Removed as i32, forced: false };
        let change = Some(Change::ChangeNodeState(change));
        let command = record::MetaCommand { version: 1, change, ..record::MetaCommand::default() };
        Event::Applied { node: 1, group: 0, index: 9, leader: None, command: Some(command.encode_to_vec()) }
    }

    fn leads(node: NodeId) -> Event {
        Event::Leads { node, group: 1, vote: vote(2, node), voters: Vec::new(), last: 0 }
    }

    #[test]
    fn a_removed_node_does_not_lead() {
        assert_eq!(last_of(RemovedStaysOut::default(), vec![leads(4), removed(5), leads(4)]), Ok(()));
        let broken = last_of(RemovedStaysOut::default(), vec![leads(4), removed(4), leads(4)]);
        assert_eq!(broken.unwrap_err(), "node 4 was removed, and leads group 1");
    }
}
