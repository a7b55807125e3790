//! State machine safety: no two replicas apply different commands at the same index.
//!
//! Source: Ongaro (2014), §3.6.3 and figure 3.2.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
pub struct StateMachineSafety {
    applied: BTreeMap<(GroupId, u64), Option<Vec<u8>>>,
}

impl Invariant for StateMachineSafety {
    fn name(&self) -> &'static str {
        "state machine safety"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        let Event::Applied { node, group, index, command, .. } = event else { return Ok(()) };
        let known = self.applied.entry((*group, *index)).or_insert_with(|| command.clone());
        if known != command {
            let text = |command: &Option<Vec<u8>>| {
                command.as_ref().map_or("nothing".to_owned(), |command| String::from_utf8_lossy(command).into_owned())
            };
            return Err(format!(
                "node {node} applied {} at {index} of group {group}, another {}",
                text(command),
                text(known)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn one_command_an_index() {
        let applied = |node, command: &str| {
            let command = Some(command.as_bytes().to_vec());
            Event::Applied { node, group: 1, index: 3, leader: None, command }
        };
        last_of(StateMachineSafety::default(), vec![applied(1, "n1"), applied(2, "n1")]).unwrap();
        last_of(StateMachineSafety::default(), vec![applied(1, "n1"), applied(2, "n2")]).unwrap_err();
    }
}
