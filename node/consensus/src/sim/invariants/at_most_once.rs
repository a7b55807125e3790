//! At most once: a command that may not be sent again takes effect once or never; one that was refused, never; one that
//! was acknowledged, at the index its client was told.
//!
//! Source: C2 of this crate (`lib.rs`), and the documentation of `Cluster::propose`.

use super::{Invariant, operation};
use crate::sim::history::Event;
use crate::types::GroupId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Default)]
pub struct AtMostOnce {
    applied: BTreeMap<u64, BTreeSet<(GroupId, u64)>>,
    refused: BTreeSet<u64>,
    acknowledged: BTreeMap<u64, u64>,
}

impl Invariant for AtMostOnce {
    fn name(&self) -> &'static str {
        "at most once"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        let number = match event {
            Event::Applied { group, index, command: Some(command), .. } => {
                let Some((idempotent, number)) = operation(command) else { return Ok(()) };
                let places = self.applied.entry(number).or_default();
                places.insert((*group, *index));
                if !idempotent && places.len() > 1 {
                    return Err(format!("command {number} may not be sent again, and was applied at {places:?}"));
                }
                number
            }
            Event::Refused { operation } => {
                self.refused.insert(*operation);
                *operation
            }
            Event::Acknowledged { operation, index } => {
                self.acknowledged.insert(*operation, *index);
                *operation
            }
            _ => return Ok(()),
        };
        let Some(places) = self.applied.get(&number) else { return Ok(()) };
        if self.refused.contains(&number) {
            return Err(format!("command {number} was refused, and was applied at {places:?}"));
        }
        match self.acknowledged.get(&number) {
            Some(told) if !places.iter().any(|(_, index)| index == told) => {
                Err(format!("command {number} was acknowledged at {told}, and was applied at {places:?}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn commands_take_effect_where_and_as_often_as_told() {
        let applied = |command: &str, index| {
            let command = Some(command.as_bytes().to_vec());
            Event::Applied { node: 1, group: 1, index, leader: None, command }
        };
        let check = |events| last_of(AtMostOnce::default(), events);
        check(vec![applied("n1", 4), applied("n1", 4), applied("i2", 5), applied("i2", 6)]).unwrap();
        check(vec![applied("n1", 4), applied("n1", 5)]).unwrap_err();
        check(vec![applied("n1", 4), Event::Refused { operation: 1 }]).unwrap_err();
        check(vec![Event::Refused { operation: 1 }, applied("i1", 4)]).unwrap_err();
        check(vec![applied("n1", 4), Event::Acknowledged { operation: 1, index: 5 }]).unwrap_err();
    }
}
