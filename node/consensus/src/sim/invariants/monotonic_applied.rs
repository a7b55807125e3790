//! Monotonic applied index: a replica applies every entry in order, none twice and none left out; a snapshot takes it
//! forward, and only a restart takes it back, to what it had on disk.
//!
//! Source: openraft's turmoil suite ("applied is monotonic") and the contract of `Replica::apply`.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
pub struct MonotonicApplied {
    applied: BTreeMap<(NodeId, GroupId), u64>,
}

impl Invariant for MonotonicApplied {
    fn name(&self) -> &'static str {
        "monotonic applied index"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        let (node, group, index, fits): (_, _, _, fn(u64, u64) -> bool) = match event {
            Event::Applied { node, group, index, .. } => (node, group, index, |last, index| index == last + 1),
            Event::Installed { node, group, index } => (node, group, index, |last, index| index >= last),
            Event::Opened { node, group, index } => (node, group, index, |last, index| index <= last),
            _ => return Ok(()),
        };
        let last = self.applied.entry((*node, *group)).or_default();
        if !fits(*last, *index) {
            return Err(format!("{event:?} after entry {last} on node {node}, group {group}"));
        }
        *last = *index;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn entries_come_one_after_the_other() {
        let applied = |index| Event::Applied { node: 1, group: 0, index, leader: None, command: None };
        let installed = |index| Event::Installed { node: 1, group: 0, index };
        let opened = |index| Event::Opened { node: 1, group: 0, index };
        let check = |events| last_of(MonotonicApplied::default(), events);
        check(vec![applied(1), applied(2), installed(9), applied(10), opened(9), applied(10)]).unwrap();
        check(vec![applied(1), applied(3)]).unwrap_err();
        check(vec![applied(1), applied(1)]).unwrap_err();
        check(vec![installed(9), installed(8)]).unwrap_err();
        check(vec![applied(1), opened(2)]).unwrap_err();
    }
}
