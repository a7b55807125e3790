//! When a failed request may be sent again, and how long to wait before.
//!
//! Always true: a request that could take effect twice is not repeated unless it certainly took no effect yet.

use crate::error::Error;
use cairn_proto::ErrorKind;
use rand::Rng;
use std::time::Duration;

/// What happens when a request is carried out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Nothing: a read, or a write the cluster recognises.
    Harmless,
    /// It may do the work twice: repeated only when the first try was certainly not carried out.
    Once,
}

/// Whether the same request may be sent again after `error`.
pub(crate) fn may_repeat(error: &Error, repeat: Repeat) -> bool {
    match error {
        // Nothing was sent.
        Error::Connect { .. } => true,
        // A node says so before it takes a request in.
        Error::Refused { kind: ErrorKind::Overloaded | ErrorKind::Unavailable, .. } => true,
        Error::Interrupted { .. } => repeat == Repeat::Harmless,
        // The node's own deadline ran out, ours may not have.
        Error::Refused { kind: ErrorKind::Timeout, .. } => repeat == Repeat::Harmless,
        _ => false,
    }
}

/// The error a caller is told when the last of several attempts ended with `last`, and an earlier one with `lost`, whose
/// outcome nobody knows: a later attempt that was turned away says nothing about it.
pub(crate) fn final_error(lost: Option<Error>, last: Error) -> Error {
    let turned_away = matches!(last.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::ReadOnly);
    match lost {
        Some(lost) if turned_away => lost,
        _ => last,
    }
}

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// Growing pauses with jitter, so that many clients do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST }
    }

    /// The next pause: between half of the current ceiling and all of it; the ceiling doubles up to one second.
    pub(crate) fn pause(&mut self) -> Duration {
        let share = rand::rng().random_range(0.5..=1.0);
        let pause = self.ceiling.mul_f64(share);
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        pause
    }
}

/// 128 random bits from the operating system, as hex: names one request for ever.
pub(crate) fn request_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_safe_is_sent_again() {
        let refused = |kind| Error::Refused { kind, message: String::new() };
        let connect = Error::Connect { address: String::new(), reason: String::new() };
        let interrupted = Error::Interrupted { address: String::new(), reason: String::new() };
        for repeat in [Repeat::Harmless, Repeat::Once] {
            assert!(may_repeat(&connect, repeat));
            for kind in ErrorKind::ALL {
                let expected = match kind {
                    ErrorKind::Overloaded | ErrorKind::Unavailable => true,
                    ErrorKind::Timeout => repeat == Repeat::Harmless,
                    _ => false,
                };
                assert_eq!(may_repeat(&refused(kind), repeat), expected, "{kind} {repeat:?}");
            }
        }
        assert!(may_repeat(&interrupted, Repeat::Harmless));
        assert!(!may_repeat(&interrupted, Repeat::Once));
    }

    #[test]
    fn an_unknown_outcome_stays_unknown() {
        let lost = || Error::Interrupted { address: String::new(), reason: String::new() };
        let connect = Error::Connect { address: String::new(), reason: String::new() };
        let refused = |kind| Error::Refused { kind, message: String::new() };
        for turned_away in [connect, refused(ErrorKind::Unavailable), refused(ErrorKind::ReadOnly)] {
            assert_eq!(final_error(None, turned_away.clone()), turned_away);
            assert_eq!(final_error(Some(lost()), turned_away), lost());
        }
        // The cluster recognised the repetition and gave the answer of the first attempt.
        assert_eq!(final_error(Some(lost()), refused(ErrorKind::Conflict)), refused(ErrorKind::Conflict));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..12).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses[11] >= LONGEST / 2 && pauses[11] <= LONGEST);
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(request_id(), request_id());
        assert_eq!(request_id().len(), 32);
    }
}
