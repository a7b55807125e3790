//! One group's share of the node's log, as openraft's log storage.
//!
//! Votes, truncations and purges are durable when they return; appends call back. All of them stand in one stream, so
//! a vote and an entry never change places. The committed pointer is saved (ADR-0002) and rides along with the next
//! record: losing the newest ones only means fewer entries applied before the leader is heard again.

#[cfg(any(test, feature = "seeded-bugs"))]
use crate::bugs::{Bug, awake};
use crate::codec;
use crate::machine;
use crate::types::*;
use crate::wal::Wal;
use bytes::Bytes;
use futures::{Stream, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// Payload of one append request, unless a single entry is longer.
const APPEND_BYTES_MAX: usize = 4 << 20;
/// Entries are read for applying in pieces of this size.
const APPLY_BYTES_MAX: usize = 1 << 20;
/// Entries no further behind the last one than this are taken to be in memory.
const RECENT_ENTRIES: u64 = 4096;

#[derive(Clone)]
pub struct LogStore {
    wal: Arc<Wal>,
    group: GroupId,
    seen: Arc<Seen>,
}

/// What this process appended: older entries come from disk, so they are read on a blocking thread.
#[derive(Debug)]
struct Seen {
    first: AtomicU64,
    last: AtomicU64,
}

impl LogStore {
    pub fn new(wal: Arc<Wal>, group: GroupId) -> Self {
        let seen = Arc::new(Seen { first: AtomicU64::new(u64::MAX), last: AtomicU64::new(0) });
        Self { wal, group, seen }
    }

    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let in_memory = range.start >= self.seen.first.load(Ordering::Relaxed)
            && range.start.saturating_add(RECENT_ENTRIES) >= self.seen.last.load(Ordering::Relaxed);
        let found = if in_memory {
            self.wal.read(self.group, range, bytes_max)
        } else {
            let (wal, group) = (self.wal.clone(), self.group);
            let read = machine::blocking(move || wal.read(group, range, bytes_max));
            read.await.map_err(io::Error::other)?
        };
        let entries = found.map_err(io::Error::from)?.into_iter();
        entries.map(|(index, bytes)| Ok(codec::decode_entry(index, bytes)?)).collect()
    }

    /// Runs a change and waits until it is durable.
    async fn durably(&self, change: impl FnOnce(crate::wal::Done)) -> io::Result<()> {
        let (sender, done) = oneshot::channel();
        change(Box::new(move |result| {
            let _ = sender.send(result);
        }));
        done.await.map_err(|_| io::Error::other("the log stopped"))?
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(bounds(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, APPEND_BYTES_MAX).await
    }

    /// A piece at a time, so that catching up takes no more memory than a piece.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = (self.clone(), bounds(&range), Vec::new().into_iter());
        let stream = stream::try_unfold(start, |(store, mut left, mut piece)| async move {
            loop {
                if let Some(entry) = piece.next() {
                    return Ok(Some((entry, (store, left, piece))));
                }
                let entries: Vec<Entry> = store.read(left.clone(), APPLY_BYTES_MAX).await?;
                let Some(last) = entries.last() else { return Ok(None) };
                left.start = last.log_id.index.saturating_add(1);
                piece = entries.into_iter();
            }
        });
        Box::pin(stream)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        #[cfg(any(test, feature = "seeded-bugs"))]
        if awake(Bug::ForgetVote) {
            return Ok(None);
        }
        let vote = self.wal.group(self.group).vote;
        Ok(vote.map(|bytes| codec::decode_vote(bytes.into())).transpose()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.wal.group(self.group);
        let last_purged_log_id = match state.purged {
            Some((_, log_id)) => codec::decode_log_id(log_id.into())?,
            None => None,
        };
        let last_log_id = match state.last {
            Some((index, entry)) => Some(codec::decode_entry_log_id(index, &entry.into())?),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = codec::encode_vote(vote);
        self.durably(|done| self.wal.save_vote(self.group, bytes.to_vec(), done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.wal.save_committed(self.group, codec::encode_log_id(committed.as_ref()).to_vec());
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let Some(bytes) = self.wal.group(self.group).committed else { return Ok(None) };
        Ok(codec::decode_log_id(bytes.into())?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(u64, Bytes)> =
            entries.into_iter().map(|entry| (entry.log_id.index, codec::encode_entry(&entry))).collect();
        if let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) {
            self.seen.first.fetch_min(*first, Ordering::Relaxed);
            self.seen.last.store(*last, Ordering::Relaxed);
        }
        #[cfg(any(test, feature = "seeded-bugs"))]
        if awake(Bug::AckBeforeSync) {
            callback.io_completed(Ok(()));
            self.wal.append(self.group, entries, Box::new(|_| ()));
            return Ok(());
        }
        self.wal.append(self.group, entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let index = last_log_id.map(|log_id| log_id.index);
        self.durably(|done| self.wal.truncate_after(self.group, index, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let bytes = codec::encode_log_id(Some(&log_id)).to_vec();
        self.durably(|done| self.wal.purge(self.group, log_id.index, bytes, done)).await
    }
}
