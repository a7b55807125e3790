//! What all calls share under one lock: the groups, the queue to the disk, and where the next record will stand.
//!
//! A record's place is fixed when it is queued, so entries can be read, and checkpoints taken, before any byte is
//! written. Memory is bounded: the queue by `queue_bytes_max` plus one call, the cache by `cache_bytes_max` plus an
//! eighth, the index by 16 bytes for each entry that is not purged.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::error::WalError;
use super::files::File;
use super::format::{self, Kind, SEGMENT_HEADER_BYTES};
use super::group::{self, GroupLog, Place};
use super::{PAYLOAD_BYTES_MAX, POINTER_BYTES_MAX, WalOptions};

/// Called once, with the outcome, when everything queued before it is durable.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

pub(super) enum Op {
    Record {
        kind: Kind,
        group: u32,
        index: u64,
        payload: Bytes,
    },
    /// The segment is full: make it durable and start this one.
    Rotate {
        sequence: u64,
        checkpoint: Vec<u8>,
    },
    Done(Done),
}

/// An open segment. A reader keeps it alive though its file be deleted.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    pub(super) seed: u32,
}

/// A place in the log: segments in order, then bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// What the writer takes at once: everything queued.
pub(super) struct Batch {
    pub(super) ops: Vec<Op>,
    pub(super) bytes: u64,
    /// Once the batch is durable: no group needs a segment before this one …
    pub(super) oldest_needed: u64,
    /// … and entries appended before the log had this length can be read from disk.
    pub(super) appended: u64,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counters {
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) syncs: u64,
    pub(super) bytes: u64,
    pub(super) sync_time: Duration,
}

pub(super) struct State {
    pub(super) groups: BTreeMap<u32, GroupLog>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) queue: Vec<Op>,
    /// Bytes queued or being written.
    pub(super) queue_bytes: u64,
    /// Bytes among them that the writer has not taken.
    pub(super) waiting_bytes: u64,
    pub(super) next: Position,
    /// Where the records of `next.segment` begin, behind header and checkpoint.
    pub(super) floor: u64,
    /// Length of the log, all bytes ever queued: the cache's measure of age.
    pub(super) appended: u64,
    pub(super) appended_durable: u64,
    pub(super) swept: u64,
    /// Groups whose `committed` waits for the next record to ride along with.
    pub(super) committed_waiting: Vec<u32>,
    /// The first failure, for good.
    pub(super) failed: Option<WalError>,
    pub(super) closing: bool,
    pub(super) counters: Counters,
}

impl State {
    pub(super) fn new(
        groups: BTreeMap<u32, GroupLog>,
        segments: BTreeMap<u64, Segment>,
        sequence: u64,
        floor: u64,
    ) -> Self {
        Self {
            groups,
            segments,
            queue: Vec::new(),
            queue_bytes: 0,
            waiting_bytes: 0,
            next: Position { segment: sequence, offset: floor },
            floor,
            appended: 0,
            appended_durable: 0,
            swept: 0,
            committed_waiting: Vec::new(),
            failed: None,
            closing: false,
            counters: Counters::default(),
        }
    }

    pub(super) fn append(
        &mut self,
        options: &WalOptions,
        group: u32,
        entries: Vec<(u64, Bytes)>,
    ) -> Result<(), WalError> {
        let Some((first, _)) = entries.first() else { return Ok(()) };
        let empty = GroupLog::default();
        let log = self.groups.get(&group).unwrap_or(&empty);
        log.check_append(*first, entries.len())
            .map_err(|refusal| WalError::Refused(format!("group {group}: {refusal}")))?;
        for (wanted, (index, payload)) in (*first..).zip(&entries) {
            if *index != wanted {
                return Err(WalError::Refused(format!("group {group}: entry {index} stands where {wanted} belongs")));
            }
            check_payload(payload.len())?;
        }
        for (index, payload) in entries {
            let place = self.push(options, Kind::Append, group, index, payload.clone());
            let appended = self.appended;
            self.groups.entry(group).or_default().append(index, place, Some((appended, payload)));
        }
        self.sweep(options.cache_bytes_max);
        Ok(())
    }

    pub(super) fn save_vote(&mut self, options: &WalOptions, group: u32, vote: Bytes) -> Result<(), WalError> {
        check_pointer(vote.len())?;
        self.push(options, Kind::Vote, group, 0, vote.clone());
        self.groups.entry(group).or_default().vote = Some(vote);
        Ok(())
    }

    pub(super) fn save_committed(&mut self, group: u32, committed: Bytes) {
        let log = self.groups.entry(group).or_default();
        log.committed = Some(committed);
        if !self.committed_waiting.contains(&group) {
            self.committed_waiting.push(group);
        }
    }

    /// Queues the `committed` pointers that wait, ahead of the caller's own record.
    pub(super) fn queue_committed(&mut self, options: &WalOptions) {
        for group in std::mem::take(&mut self.committed_waiting) {
            let Some(committed) = self.groups.get(&group).and_then(|log| log.committed.clone()) else { continue };
            self.push(options, Kind::Committed, group, 0, committed.clone());
            self.groups.entry(group).or_default().committed_logged = Some(committed);
        }
    }

    /// `last`: payload of the entry that becomes the last one.
    pub(super) fn truncate(&mut self, options: &WalOptions, group: u32, from: u64, last: Option<Bytes>) {
        self.push(options, Kind::Truncate, group, from, Bytes::new());
        self.groups.entry(group).or_default().truncate(from, last);
    }

    pub(super) fn purge(&mut self, options: &WalOptions, group: u32, upto: u64, log_id: Bytes) -> Result<(), WalError> {
        check_pointer(log_id.len())?;
        self.push(options, Kind::Purge, group, upto, log_id.clone());
        self.groups.entry(group).or_default().purge(upto, log_id);
        Ok(())
    }

    /// Everything queued, for the writer. `None` if nothing is.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.queue.is_empty() {
            return None;
        }
        Some(Batch {
            ops: std::mem::take(&mut self.queue),
            bytes: std::mem::take(&mut self.waiting_bytes),
            oldest_needed: self.oldest_needed(),
            appended: self.appended,
        })
    }

    /// The oldest segment that holds an entry of some group, or else the newest.
    pub(super) fn oldest_needed(&self) -> u64 {
        let newest = self.next.segment;
        self.groups.values().filter_map(GroupLog::oldest_segment).fold(newest, u64::min)
    }

    /// Fixes the record's place and queues it, starting a new segment when this one is full.
    fn push(&mut self, options: &WalOptions, kind: Kind, group: u32, index: u64, payload: Bytes) -> Place {
        let bytes = format::record_bytes(payload.len()) as u64;
        if self.next.offset + bytes > options.segment_bytes && self.next.offset > self.floor {
            let checkpoint = group::encode_checkpoint(&self.groups);
            let checkpoint_bytes = format::record_bytes(checkpoint.len()) as u64;
            self.floor = SEGMENT_HEADER_BYTES as u64 + checkpoint_bytes;
            self.next = Position { segment: self.next.segment + 1, offset: self.floor };
            self.queue_more(checkpoint_bytes);
            self.queue.push(Op::Rotate { sequence: self.next.segment, checkpoint });
        }
        // Segment and payload limits keep offsets far below 4 GiB (checked in `Wal::open` and on each call).
        let place = Place { segment: self.next.segment, offset: self.next.offset as u32, length: payload.len() as u32 };
        self.next.offset += bytes;
        self.queue_more(bytes);
        self.queue.push(Op::Record { kind, group, index, payload });
        place
    }

    fn queue_more(&mut self, bytes: u64) {
        self.queue_bytes += bytes;
        self.waiting_bytes += bytes;
        self.appended += bytes;
    }

    /// Forgets payloads older than the cache is long, now and then, and never one that is not durable.
    pub(super) fn sweep(&mut self, cache_bytes_max: u64) {
        if self.appended - self.swept < cache_bytes_max / 8 {
            return;
        }
        let keep_from = self.appended.saturating_sub(cache_bytes_max).min(self.appended_durable);
        for log in self.groups.values_mut() {
            log.forget_before(keep_from);
        }
        self.swept = self.appended;
    }
}

fn check_payload(bytes: usize) -> Result<(), WalError> {
    if bytes <= PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    Err(WalError::Refused(format!("a log entry of {bytes} bytes is over the limit of {PAYLOAD_BYTES_MAX}")))
}

fn check_pointer(bytes: usize) -> Result<(), WalError> {
    if bytes <= POINTER_BYTES_MAX {
        return Ok(());
    }
    Err(WalError::Refused(format!("a vote or log id of {bytes} bytes is over the limit of {POINTER_BYTES_MAX}")))
}
