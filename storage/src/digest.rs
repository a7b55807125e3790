//! Digests of a replica's state right after one entry, so that replicas can be compared while they go on.
//!
//! An audit is an entry that changes nothing. Consensus ends a batch with it; the apply that brought it fixes the state at
//! that moment, and a thread of its own hashes it at leisure. Replicas that applied the same entries have equal digests;
//! a replica with another one has lost or changed something that no checksum of a block could see.

use crate::Result;
use crate::engine::{Cf, Db, IterOptions, Snapshot};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Digests a replica remembers.
const KEPT_MAX: usize = 8;
/// Held by the one audit of a process that hashes; the others have their states fixed and wait.
static TURN: Mutex<()> = Mutex::new(());
/// Bytes hashed a second: one core's spare time, so that reads and writes do not notice.
const BYTES_PER_SECOND: u64 = 128 << 20;
/// Bytes between two looks at the clock.
const STRIDE_BYTES: u64 = 4 << 20;
/// An audit command has at most this many bytes.
pub(crate) const COMMAND_BYTES_MAX: usize = 64;

/// What a part of the state hashes to right after entry `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub index: u64,
    pub blake3: [u8; 32],
}

/// Keys of one column family, in order.
pub(crate) struct Span {
    pub cf: Cf,
    /// Inclusive; `None` = from the first key.
    pub lower: Option<Vec<u8>>,
    /// Exclusive; `None` = to the last key.
    pub upper: Option<Vec<u8>>,
    /// What each node keeps for itself.
    pub skip: Option<&'static [u8]>,
}

impl Span {
    pub fn all(cf: Cf) -> Self {
        Self { cf, lower: None, upper: None, skip: None }
    }
}

/// BLAKE3 over all keys and values of `spans`.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn digest(snapshot: &Snapshot<'_>, spans: &[Span], mut pace: impl FnMut(u64)) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut unpaced = 0;
    for span in spans {
        let options = IterOptions {
            lower: span.lower.clone(),
            upper: span.upper.clone(),
            fill_cache: false,
            ..IterOptions::default()
        };
        let mut iter = snapshot.iter(span.cf, options)?;
        iter.seek_to_first()?;
        while let Some((key, value)) = iter.entry() {
            if span.skip != Some(key) {
                for part in [key, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                }
                unpaced += (key.len() + value.len()) as u64;
            }
            if unpaced >= STRIDE_BYTES {
                pace(std::mem::take(&mut unpaced));
            }
            iter.advance()?;
        }
        hasher.update(&u64::MAX.to_le_bytes());
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The last digests of one replica.
#[derive(Debug, Clone, Default)]
pub(crate) struct Digests(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    taken: Mutex<VecDeque<Digest>>,
    busy: AtomicBool,
}

impl Digests {
    pub fn list(&self) -> Vec<Digest> {
        self.0.taken.lock().iter().copied().collect()
    }

    /// Fixes the state as it is now, which must be that right after entry `index`, and hashes it beside whatever comes.
    /// Does nothing while an older audit of this replica is still hashed: a node that is too slow compares less often.
    pub fn take(&self, db: Arc<Db>, index: u64, spans: Vec<Span>) {
        if self.0.busy.swap(true, Ordering::AcqRel) {
            tracing::info!(index, "an audit is left out: the one before is not done yet");
            return;
        }
        let (fixed, when_fixed) = mpsc::sync_channel::<()>(1);
        let inner = self.0.clone();
        let work = move || {
            let snapshot = db.snapshot();
            let _ = fixed.send(());
            let turn = TURN.lock();
            match digest(&snapshot, &spans, Pace::new(BYTES_PER_SECOND).wait()) {
                Ok(blake3) => {
                    let mut taken = inner.taken.lock();
                    if taken.len() == KEPT_MAX {
                        taken.pop_front();
                    }
                    taken.push_back(Digest { index, blake3 });
                }
                // Damage is noted where it was met; the replica's owner looks for it.
                Err(error) => tracing::error!(index, %error, "an audit could not read the whole state"),
            }
            drop((turn, snapshot));
            inner.busy.store(false, Ordering::Release);
        };
        match std::thread::Builder::new().name("audit".into()).spawn(work) {
            // A thread that dies early drops its end.
            Ok(_) => drop(when_fixed.recv()),
            Err(error) => {
                tracing::warn!(index, %error, "an audit is left out");
                self.0.busy.store(false, Ordering::Release);
            }
        }
    }
}

/// Holds a thread back to a rate.
struct Pace {
    rate: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, began: Instant::now(), bytes: 0 }
    }

    fn wait(mut self) -> impl FnMut(u64) {
        move |bytes| {
            self.bytes += bytes;
            let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
            if let Some(early) = due.checked_sub(self.began.elapsed()) {
                std::thread::park_timeout(early);
            }
        }
    }
}
