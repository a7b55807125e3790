//! Linearizability: a read shows every write acknowledged before it began, and never less than a read that had ended;
//! a write stands behind both. A bounded read may be that much older, a session read no older than its token.
//!
//! Source: Herlihy and Wing, "Linearizability" (1990). The state is the sequence of commands itself, and equal indexes are
//! equal states (state machine safety), so comparing indexes in real-time order decides it.

use super::Invariant;
use crate::sim::history::{Event, Level};
use std::collections::BTreeMap;
use std::time::Duration;

/// How far the clocks of two nodes are apart inside one tick of the simulation, and more.
const SLACK: Duration = Duration::from_millis(10);

#[derive(Default)]
pub struct Linearizability {
    /// The greatest index that anybody was shown.
    shown: u64,
    /// When which index was acknowledged, both growing.
    acknowledged: Vec<(Duration, u64)>,
    /// What a write or read under way must not fall behind of.
    floors: BTreeMap<u64, u64>,
    reads: BTreeMap<u64, (Level, u64)>,
}

impl Invariant for Linearizability {
    fn name(&self) -> &'static str {
        "linearizability"
    }

    fn see(&mut self, now: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Proposed { operation, .. } => drop(self.floors.insert(*operation, self.shown)),
            Event::Acknowledged { operation, index } => {
                let floor = self.floors.remove(operation).unwrap_or_default();
                if *index <= floor {
                    return Err(format!("write {operation} stands at {index}, and {floor} was shown before it began"));
                }
                self.shown = self.shown.max(*index);
                if self.acknowledged.last().is_none_or(|(_, last)| last < index) {
                    self.acknowledged.push((now, *index));
                }
            }
            Event::ReadBegan { read, level } => {
                let floor = match level {
                    Level::Linearizable => self.shown,
                    Level::AtLeast(index) => *index,
                    Level::Bounded(age) => {
                        let known = self.acknowledged.partition_point(|(at, _)| *at + *age + SLACK <= now);
                        known.checked_sub(1).map_or(0, |last| self.acknowledged[last].1)
                    }
                };
                self.reads.insert(*read, (*level, floor));
            }
            Event::ReadEnded { read, seen } => {
                let Some((level, floor)) = self.reads.remove(read) else { return Ok(()) };
                if *seen < floor {
                    return Err(format!("read {read} ({level:?}) saw {seen}, and had to see {floor}"));
                }
                self.shown = self.shown.max(*seen);
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
    fn reads_and_writes_keep_real_time_order() {
        let wrote = |index| Event::Acknowledged { operation: index, index };
        let began = |level| Event::ReadBegan { read: 1, level };
        let ended = |seen| Event::ReadEnded { read: 1, seen };
        let check = |events| last_of(Linearizability::default(), events);
        check(vec![wrote(5), began(Level::Linearizable), ended(5)]).unwrap();
        check(vec![began(Level::Linearizable), wrote(5), ended(4)]).unwrap();
        check(vec![wrote(5), began(Level::Linearizable), ended(4)]).unwrap_err();
        check(vec![wrote(5), began(Level::Bounded(Duration::from_secs(3))), ended(4)]).unwrap();
        check(vec![wrote(5), wrote(6), began(Level::Bounded(Duration::from_millis(1500))), ended(4)]).unwrap_err();
        check(vec![began(Level::AtLeast(3)), ended(2)]).unwrap_err();
        check(vec![wrote(5), Event::Proposed { operation: 9, idempotent: true }, {
            Event::Acknowledged { operation: 9, index: 5 }
        }])
        .unwrap_err();
    }
}
