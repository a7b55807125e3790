//! Mistakes that can be made on purpose, to show that the simulation finds them.

use std::cell::Cell;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Bug {
    /// Entries count as durable when they are queued.
    AckBeforeSync,
    /// A restarted node does not remember whom it voted for.
    ForgetVote,
    /// A leader takes its own word for it that it leads.
    ReadWithoutQuorum,
    /// What may have been accepted is sent again, though it may not be.
    RetryUnknown,
}

thread_local! {
    static SEEDED: Cell<Option<Bug>> = const { Cell::new(None) };
}

pub fn seed(bug: Option<Bug>) {
    SEEDED.set(bug);
}

/// Whether the simulation on this thread has that mistake in it.
pub fn seeded(bug: Bug) -> bool {
    SEEDED.get() == Some(bug)
}
