//! The durable log of all Raft groups of a node: one stream of records, one fsync for everybody who waits.
//!
//! In reading order:
//! - [`files`]: the file calls it makes, as traits; [`mem`]: a disk that loses what was not fsynced
//! - `format`: the bytes; `group`: one group's part in memory; `state`: the queue and where records will stand
//! - `writer`: queue to disk, group commit, segments; `read`: entries back from disk; `recovery`: opening
//!
//! Always true (simulated in `crash_tests`):
//! - `done(Ok)` means durable: no crash loses it, nor anything queued before it by any group
//! - what a log shows after a crash is its state after some prefix of the calls made
//! - damage to bytes that were durable keeps the log shut; only the end of the last segment may be torn
//! - after the first failed write or fsync every call fails with that error
//!
//! A group's calls must come one after the other. Not here: Raft, what votes and log ids mean, threads of tokio.

mod error;
pub mod files;
mod format;
mod group;
pub mod mem;
mod read;
mod recovery;
mod state;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

pub use error::WalError;
pub use files::{File, Files, RealFiles};
pub use state::Done;

use read::Wanted;
use state::State;
use writer::{Core, call};

/// Longest payload of one record.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 20;
/// Longest vote, committed pointer or log id: each segment starts with those of every group.
pub const POINTER_BYTES_MAX: usize = 4 << 10;

/// Who moves queued records to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// A thread of the log: calls return at once.
    Thread,
    /// Each call writes, syncs and calls back before it returns: for simulation on one thread.
    Inline,
    /// Nobody, until [`Wal::step`] is called: for tests that choose the batches.
    Stepped,
}

#[derive(Debug, Clone)]
pub struct WalOptions {
    /// Length of a segment file, reserved when it is made (4 KiB to 1 GiB). Only a longer record makes a longer one.
    pub segment_bytes: u64,
    /// A call waits while more than this is queued or being written; so memory is bounded by it plus one call.
    pub queue_bytes_max: u64,
    /// Newest part of the log whose entries stay in memory, for followers and for applying.
    pub cache_bytes_max: u64,
    pub writer: Writer,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, queue_bytes_max: 64 << 20, cache_bytes_max: 128 << 20, writer: Writer::Thread }
    }
}

/// What the log holds of one group. Votes, ids and entries are the caller's bytes, untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupState {
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    /// Index and log id of the last entry purged.
    pub purged: Option<(u64, Vec<u8>)>,
    pub first_index: Option<u64>,
    /// Index and payload of the last entry.
    pub last: Option<(u64, Vec<u8>)>,
}

/// A group that keeps old segments from being deleted: snapshot it and purge its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinningGroup {
    pub group: u32,
    pub first_index: u64,
    /// Segments from its oldest entry's to the newest.
    pub segments: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalStats {
    pub groups: usize,
    /// Entries that are not purged.
    pub entries: u64,
    pub segments: usize,
    /// Bytes queued or being written.
    pub queue_bytes: u64,
    /// Since the log was opened:
    pub batches: u64,
    pub records: u64,
    pub syncs: u64,
    pub bytes: u64,
    pub sync_time: Duration,
}

pub struct Wal {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
    writer_id: OnceLock<ThreadId>,
    created: bool,
    /// Keeps other processes out until the log is closed.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl Wal {
    /// Opens the log in `dir`, or makes one.
    ///
    /// # Errors
    /// `Corrupt` for bytes that were durable and are not what was written, `NewerFormat`, `Locked`, `DiskFull`, `Io`.
    pub fn open(dir: &Path, options: WalOptions, io: Arc<dyn Files>) -> Result<Arc<Self>, WalError> {
        if !(4 << 10..=1 << 30).contains(&options.segment_bytes) {
            let found = options.segment_bytes;
            return Err(WalError::Refused(format!("a log segment of {found} bytes is not between 4 KiB and 1 GiB")));
        }
        io.create_dir_all(dir).map_err(WalError::io("create", dir))?;
        let lock_path = dir.join("LOCK");
        let lock = io.lock(&lock_path).map_err(WalError::io("lock", &lock_path))?;
        let lock = lock.ok_or_else(|| WalError::Locked(dir.to_owned()))?;
        let recovered = recovery::recover(&*io, dir, &options)?;
        let core = Arc::new(Core {
            dir: dir.to_owned(),
            options,
            files: io,
            state: Mutex::new(recovered.state),
            tail: Mutex::new(recovered.tail),
            work: Condvar::new(),
            room: Condvar::new(),
        });
        let wal = Self {
            core: Arc::clone(&core),
            thread: Mutex::new(None),
            writer_id: OnceLock::new(),
            created: recovered.created,
            lock: Mutex::new(Some(lock)),
        };
        if core.options.writer == Writer::Thread {
            let thread = std::thread::Builder::new()
                .name("wal".to_owned())
                .spawn(move || core.run())
                .map_err(WalError::io("start the writer of", dir))?;
            let _ = wal.writer_id.set(thread.thread().id());
            *wal.thread.lock() = Some(thread);
        }
        Ok(Arc::new(wal))
    }

    /// Whether no log stood in the directory when it was opened.
    pub fn created(&self) -> bool {
        self.created
    }

    /// The groups that ever wrote something, in order.
    pub fn groups(&self) -> Vec<u32> {
        self.core.state.lock().groups.keys().copied().collect()
    }

    /// The group's state with everything queued so far; empty for a group never seen.
    pub fn group(&self, group: u32) -> GroupState {
        let state = self.core.state.lock();
        let Some(log) = state.groups.get(&group) else { return GroupState::default() };
        GroupState {
            vote: log.vote.as_ref().map(|vote| vote.to_vec()),
            committed: log.committed.as_ref().map(|committed| committed.to_vec()),
            purged: log.purged.as_ref().map(|(index, log_id)| (*index, log_id.to_vec())),
            first_index: log.first_index(),
            last: log.last_index().zip(log.last.as_ref().map(|payload| payload.to_vec())),
        }
    }

    /// Adds entries behind the group's last one. They can be read when this returns; `done` is called when they are
    /// durable. Waits while more than `queue_bytes_max` is queued (never inside a `done`).
    ///
    /// `done` gets `InvalidInput`, and nothing changes, if the indexes leave a hole or a payload is over
    /// [`PAYLOAD_BYTES_MAX`]. A `done` must be quick: it runs on the writer.
    pub fn append(&self, group: u32, entries: Vec<(u64, Bytes)>, done: Done) {
        self.submit(done, |state, options| state.append(options, group, entries));
    }

    pub fn save_vote(&self, group: u32, vote: Vec<u8>, done: Done) {
        self.submit(done, |state, options| state.save_vote(options, group, vote.into()));
    }

    /// Remembers the pointer (at most [`POINTER_BYTES_MAX`]) at once and writes it with the next record of any group, or on [`Self::close`].
    pub fn save_committed(&self, group: u32, committed: Vec<u8>) {
        let mut state = self.core.state.lock();
        if state.failed.is_none() && !state.closing && committed.len() <= POINTER_BYTES_MAX {
            state.save_committed(group, committed.into());
        }
    }

    /// Drops the entries behind `index`, or all of them.
    pub fn truncate_after(&self, group: u32, index: Option<u64>, done: Done) {
        let Some(from) = index.map_or(Some(0), |index| index.checked_add(1)) else {
            return self.submit(done, |_, _| Ok(())); // nothing stands behind the greatest index
        };
        self.submit(done, |state, options| {
            let last = payload_before(state, group, from)?;
            state.truncate(options, group, from, last);
            Ok(())
        });
    }

    /// Drops the entries up to `upto`, whose log id is kept. Going backwards changes nothing.
    pub fn purge(&self, group: u32, upto: u64, log_id: Vec<u8>, done: Done) {
        self.submit(done, |state, options| state.purge(options, group, upto, log_id.into()));
    }

    /// The entries of `range` that the log has, at most `bytes_max` of payload but at least one.
    ///
    /// # Errors
    /// `Corrupt` if an entry on disk fails its checksum; the first failure if the log is poisoned.
    pub fn read(&self, group: u32, range: Range<u64>, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, WalError> {
        let mut entries = Vec::new();
        let mut wanted = Vec::new();
        let mut segments = BTreeMap::new();
        {
            let state = self.core.state.lock();
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            let Some(log) = state.groups.get(&group) else { return Ok(entries) };
            let Some(first) = log.first_index() else { return Ok(entries) };
            let mut bytes = 0;
            for index in range.start.max(first)..range.end.min(log.end()) {
                let Some(place) = log.place(index) else { break };
                bytes += place.length as usize;
                if bytes > bytes_max && !entries.is_empty() {
                    break;
                }
                match log.recent(index) {
                    Some(payload) => entries.push((index, payload.clone())),
                    None => {
                        if !segments.contains_key(&place.segment)
                            && let Some(segment) = state.segments.get(&place.segment)
                        {
                            segments.insert(place.segment, segment.clone());
                        }
                        wanted.push(Wanted { slot: entries.len(), index, place });
                        entries.push((index, Bytes::new()));
                    }
                }
            }
        }
        read::fetch(&segments, group, &wanted, |slot, payload| {
            if let Some(entry) = entries.get_mut(slot) {
                entry.1 = payload;
            }
        })?;
        Ok(entries)
    }

    /// Why the log takes no more writes, if it does not.
    pub fn failure(&self) -> Option<String> {
        self.failed().map(|error| error.to_string())
    }

    /// The first failure, which answers every later call. `DiskFull` says: read-only until somebody makes room.
    pub fn failed(&self) -> Option<WalError> {
        self.core.state.lock().failed.clone()
    }

    /// Groups whose oldest entry stands more than `segments_max` segments back, the farthest first.
    pub fn pinning_groups(&self, segments_max: u64) -> Vec<PinningGroup> {
        let state = self.core.state.lock();
        let newest = state.next.segment;
        let mut pinning: Vec<PinningGroup> = state
            .groups
            .iter()
            .filter_map(|(group, log)| {
                let segments = newest - log.oldest_segment()? + 1;
                let first_index = log.first_index()?;
                (segments > segments_max).then_some(PinningGroup { group: *group, first_index, segments })
            })
            .collect();
        pinning.sort_by_key(|pinning| (std::cmp::Reverse(pinning.segments), pinning.group));
        pinning
    }

    pub fn stats(&self) -> WalStats {
        let state = self.core.state.lock();
        WalStats {
            groups: state.groups.len(),
            entries: state.groups.values().map(|log| log.entries() as u64).sum(),
            segments: state.segments.len(),
            queue_bytes: state.queue_bytes,
            batches: state.counters.batches,
            records: state.counters.records,
            syncs: state.counters.syncs,
            bytes: state.counters.bytes,
            sync_time: state.counters.sync_time,
        }
    }

    /// Writes everything queued as one batch. `false` if nothing was, or if the log failed. Only for `Writer::Stepped`.
    pub fn step(&self) -> bool {
        self.core.step()
    }

    /// Makes everything queued durable and ends the writer, so that the directory can be opened again. Waits for
    /// the disk. Later changes fail with `Closed`; reading goes on.
    pub fn close(&self) {
        {
            let mut state = self.core.state.lock();
            if !state.closing {
                state.closing = true;
                if state.failed.is_none() {
                    state.queue_committed(&self.core.options);
                }
            }
            self.core.work.notify_all();
            self.core.room.notify_all();
        }
        if self.core.options.writer != Writer::Thread {
            while self.core.step() {}
        } else if self.on_writer() {
            return; // from a callback: the thread goes on until the queue is empty
        } else if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join(); // its panic was caught and poisoned the log
        }
        drop(self.lock.lock().take());
    }

    /// Queues a change and its callback, or calls back with the reason why not.
    fn submit(&self, done: Done, change: impl FnOnce(&mut State, &WalOptions) -> Result<(), WalError>) {
        let options = &self.core.options;
        let mut state = self.core.state.lock();
        while options.writer == Writer::Thread
            && state.failed.is_none()
            && !state.closing
            && state.queue_bytes > options.queue_bytes_max
            && !self.on_writer()
        {
            self.core.room.wait(&mut state);
        }
        let refusal = match &state.failed {
            Some(failed) => Err(failed.clone()),
            None if state.closing => Err(WalError::Closed),
            None => {
                state.queue_committed(options);
                change(&mut state, options)
            }
        };
        if let Err(refusal) = refusal {
            drop(state);
            return call(done, Err(refusal.into()));
        }
        state.queue.push(state::Op::Done(done));
        self.core.work.notify_one();
        drop(state);
        if options.writer == Writer::Inline {
            while self.core.step() {}
        }
    }

    fn on_writer(&self) -> bool {
        self.writer_id.get() == Some(&std::thread::current().id())
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if self.core.options.writer != Writer::Stepped {
            self.close();
        }
    }
}

/// Payload of the entry in front of `from`, from memory or from disk; `None` if there is no such entry.
fn payload_before(state: &State, group: u32, from: u64) -> Result<Option<Bytes>, WalError> {
    let Some(log) = state.groups.get(&group) else { return Ok(None) };
    let Some(index) = from.checked_sub(1) else { return Ok(None) };
    let Some(place) = log.place(index) else { return Ok(None) };
    if let Some(payload) = log.recent(index) {
        return Ok(Some(payload.clone()));
    }
    let mut last = None;
    read::fetch(&state.segments, group, &[Wanted { slot: 0, index, place }], |_, payload| last = Some(payload))?;
    Ok(last)
}
