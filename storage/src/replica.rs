//! A replicated state machine, as consensus sees it: entries in, outcomes out, checkpoints.

use crate::Fatal;
use crate::digest::Digest;
use std::path::Path;

/// One committed entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Raft log index, from 1.
    pub index: u64,
    /// An encoded `MetaCommand` or `ShardCommand`; `None` for entries that only concern consensus.
    pub command: Option<&'a [u8]>,
}

/// How far a replica is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index of the last applied entry, 0 = none.
    pub index: u64,
    /// Its commit time, microseconds since 1970; never goes back.
    pub time_us: i64,
}

/// The state machine of one group on one node. Methods block; call them off the async runtime's core threads.
pub trait Replica: Send + Sync + 'static {
    /// Applies `entries` in order and stores `position` (opaque to storage), all in one atomic write.
    ///
    /// Returns one outcome an entry, in order: an encoded `MetaOutcome` or `ShardOutcome`, empty for `None` commands.
    /// Entries at or below [`Self::applied`] are skipped with an empty outcome (replay).
    ///
    /// # Errors
    /// `Fatal` stops this replica: an unknown command version, a failed write, a broken invariant.
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal>;

    /// The `position` of the last apply or install. Right after open: the one found on disk.
    fn position(&self) -> Option<Vec<u8>>;

    fn applied(&self) -> Applied;

    /// What is wrong with this replica's files, once a read or write has found it; it never gets better.
    fn damage(&self) -> Option<String> {
        None
    }

    /// Notes that this replica's state is not that of the others: [`Self::damage`] says so from now on, also after a
    /// restart, until its files are replaced.
    fn condemn(&self, _why: &str) {}

    /// A command that changes nothing and makes every replica take the digest of one part of its state; `round` chooses
    /// the part. `None`: there is nothing to compare.
    fn audit(&self, _round: u64, _now_us: i64) -> Option<Vec<u8>> {
        None
    }

    /// Whether `command` came from [`Self::audit`]. Such an entry must be the last of its [`Self::apply`], so that the
    /// state is the one right after it.
    fn is_audit(&self, _command: &[u8]) -> bool {
        false
    }

    /// The last digests taken, oldest first; one that is still being hashed is not among them.
    fn digests(&self) -> Vec<Digest> {
        Vec::new()
    }

    /// Writes everything applied to disk and hard-links it into the new directory `dir` (same file system).
    /// Returns the `position` inside it, which may be ahead of the one at the call.
    ///
    /// # Errors
    /// `Fatal` when the files cannot be made.
    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal>;

    /// Compares every block of a checkpoint of this replica, in `dir`, with its checksum, on disk and not in any cache: what
    /// does not pass must not reach another node. [`Self::damage`] says so then, because the files are this replica's own.
    ///
    /// # Errors
    /// `Fatal` naming the file.
    fn verify(&self, _dir: &Path) -> Result<(), Fatal> {
        Ok(())
    }

    /// Replaces the whole state by the checkpoint in `dir`, which is moved away. A crash at any moment leaves either
    /// the old state or the new one. Reads under way finish on the state they started with.
    ///
    /// # Errors
    /// `Fatal` when the checkpoint does not open or its files cannot be moved.
    fn install(&self, dir: &Path) -> Result<(), Fatal>;
}
