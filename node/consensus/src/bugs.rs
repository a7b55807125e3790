//! Bugs on purpose, by name: what must be caught by the simulation, by `jepsen/`, or by both.
//!
//! Only in tests, where a simulation's plan wakes one, and with the feature `seeded-bugs`, where `CAIRN_SEED_BUG` does.
//! Those that need a disk or a transport of their own are in [`seeded`](crate::seeded); storage has its own.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bug {
    /// Entries count as durable when they are queued.
    AckBeforeSync,
    /// A restarted node does not remember whom it voted for.
    ForgetVote,
    /// A leader takes its own word for it that it leads, for ever: a lease that nothing checks again.
    StaleRead,
    /// Bounded reads do not look how old they are.
    StaleBounded,
    /// The state machine does not note who votes: behind a snapshot and a restart, it is who voted first.
    StaleMembership,
    /// What may have been accepted is sent again, though it may not be.
    RetryUnknown,
}

impl Bug {
    /// As `CAIRN_SEED_BUG` and the table of `make jepsen-selftest` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AckBeforeSync => "ack-before-sync",
            Self::ForgetVote => "forget-vote",
            Self::StaleRead => "stale-read",
            Self::StaleBounded => "stale-bounded",
            Self::StaleMembership => "stale-membership",
            Self::RetryUnknown => "retry-unknown",
        }
    }
}

/// Whether that bug is to be made here and now.
pub fn awake(bug: Bug) -> bool {
    #[cfg(test)]
    if SEEDED.get() == Some(bug) {
        return true;
    }
    #[cfg(feature = "seeded-bugs")]
    if cairn_storage::seeded::awake(bug.name()) {
        return true;
    }
    let _ = bug.name();
    false
}

#[cfg(test)]
thread_local! {
    static SEEDED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Wakes a bug in the simulation on this thread.
#[cfg(test)]
pub fn seed(bug: Option<Bug>) {
    SEEDED.set(bug);
}
