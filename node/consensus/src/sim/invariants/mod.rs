//! What must hold in every run, each in a file of its own that names its source.

mod at_most_once;
mod election_safety;
mod leader_completeness;
mod linearizability;
mod log_matching;
mod monotonic_applied;
mod removed_stays_out;
mod state_machine_safety;
mod vote_durability;

use super::history::Event;
use std::time::Duration;

/// Watches a run. What it sees is in the order in which it happened.
pub trait Invariant: Send {
    fn name(&self) -> &'static str;

    /// # Errors
    /// What is broken.
    fn see(&mut self, now: Duration, event: &Event) -> Result<(), String>;
}

pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<election_safety::ElectionSafety>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<leader_completeness::LeaderCompleteness>::default(),
        Box::<state_machine_safety::StateMachineSafety>::default(),
        Box::<linearizability::Linearizability>::default(),
        Box::<at_most_once::AtMostOnce>::default(),
        Box::<monotonic_applied::MonotonicApplied>::default(),
        Box::<removed_stays_out::RemovedStaysOut>::default(),
        Box::<vote_durability::VoteDurability>::default(),
    ]
}

/// A command of a client: `i7` may be sent again, `n7` may not. `None` for what no client proposed.
pub fn operation(command: &[u8]) -> Option<(bool, u64)> {
    let (kind, number) = command.split_first()?;
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    matches!(kind, b'i' | b'n').then_some((*kind == b'i', number))
}

#[cfg(test)]
mod testing {
    use super::*;
    use crate::types::*;

    pub fn leader(term: u64, node_id: NodeId) -> LeaderId {
        LeaderId { term, node_id }
    }

    pub fn vote(term: u64, node_id: NodeId) -> Vote {
        Vote { leader_id: leader(term, node_id), committed: false }
    }

    /// What the invariant says to the last event; the ones before must be fine.
    pub fn last_of(mut invariant: impl Invariant, events: Vec<Event>) -> Result<(), String> {
        let mut outcome = Ok(());
        for (at, event) in events.iter().enumerate() {
            outcome.unwrap();
            outcome = invariant.see(Duration::from_secs(at as u64), event);
        }
        outcome
    }
}
