//! Log matching: entries of two logs with the same index and leader are the same, and so is everything before them.
//!
//! Source: Ongaro (2014), §3.5 and figure 3.2. By induction it is enough that each such entry has one content and one
//! predecessor.

use super::Invariant;
use crate::sim::history::Event;
use crate::types::*;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::time::Duration;

type Place = (GroupId, u64, LeaderId);

#[derive(Default)]
pub struct LogMatching {
    digests: BTreeMap<Place, u64>,
    previous: BTreeMap<Place, LeaderId>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        let Event::Log { node, group, first, entries } = event else { return Ok(()) };
        let mut before = None;
        for (index, (leader, digest)) in (*first..).zip(entries) {
            let place = (*group, index, *leader);
            let known = *self.digests.entry(place).or_insert(*digest);
            if known != *digest {
                return Err(format!("entry {index} of group {group} by {leader:?} has another content on node {node}"));
            }
            if let Some(before) = before {
                match self.previous.entry(place) {
                    Slot::Occupied(known) if *known.get() != before => {
                        let known = known.get();
                        return Err(format!(
                            "entry {index} of group {group} by {leader:?} follows {before:?} on node {node} and \
                             {known:?} elsewhere"
                        ));
                    }
                    slot => drop(slot.or_insert(before)),
                }
            }
            before = Some(*leader);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn equal_entries_have_equal_pasts() {
        let log = |node, entries: &[(u64, u64)]| {
            let entries = entries.iter().map(|(term, digest)| (leader(*term, 1), *digest)).collect();
            Event::Log { node, group: 1, first: 1, entries }
        };
        let one = || log(1, &[(1, 10), (1, 11), (2, 12)]);
        last_of(LogMatching::default(), vec![one(), log(2, &[(1, 10), (2, 20)])]).unwrap();
        last_of(LogMatching::default(), vec![one(), log(2, &[(1, 10), (1, 99)])]).unwrap_err();
        last_of(LogMatching::default(), vec![one(), log(2, &[(1, 10), (2, 20), (2, 12)])]).unwrap_err();
    }
}
