//! The way to the disk: take everything queued, one vectored write, one `fdatasync`, then all callbacks.
//!
//! The first write or fsync that fails poisons the log: what the disk holds then is unknown, and a second fsync that
//! succeeds would not say otherwise (the kernel forgets pages it could not write).

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::WalOptions;
use super::error::WalError;
use super::files::{File, Files};
use super::format::{self, FLAG_SYNCED_BEFORE, Kind, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::state::{Counters, Done, Op, Segment, State};

/// Payloads from this size on are written from where they are; smaller ones are cheaper to copy than to name.
const COPY_BYTES_MAX: usize = 16 << 10;
/// What is gathered before it is handed to the file: bounds the copy, not the batch.
const GATHER_BYTES_MAX: usize = 4 << 20;
/// Pieces of one vectored write.
const PIECES_MAX: usize = 512;

/// The state, the end of the log on disk, and the bells between callers and writer.
pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) options: WalOptions,
    pub(super) files: Arc<dyn Files>,
    pub(super) state: Mutex<State>,
    /// Locked before `state`, by the writer only.
    pub(super) tail: Mutex<Tail>,
    /// The writer waits here for work, callers for room in the queue.
    pub(super) work: Condvar,
    pub(super) room: Condvar,
}

/// The segment being written.
pub(super) struct Tail {
    segment: Segment,
    offset: u64,
    gathered: Gathered,
    /// Nothing was written since the last fsync.
    clean: bool,
    counters: Counters,
}

/// Bytes for the next vectored write: small things copied into `copied`, large payloads by reference.
#[derive(Default)]
struct Gathered {
    copied: Vec<u8>,
    /// Each stands behind that many bytes of `copied`.
    payloads: Vec<(usize, Bytes)>,
    bytes: u64,
}

impl Core {
    /// Writes what is queued and tells the callers. `false` if there was nothing, or the log is poisoned.
    pub(super) fn step(&self) -> bool {
        let mut tail = self.tail.lock();
        let batch = {
            let mut state = self.state.lock();
            if state.failed.is_some() {
                return false;
            }
            match state.take() {
                Some(batch) => batch,
                None => return false,
            }
        };
        let mut dones = Vec::new();
        let outcome = self.write(&mut tail, batch.ops, &mut dones);
        if outcome.is_ok() {
            let mut state = self.state.lock();
            state.queue_bytes -= batch.bytes;
            state.appended_durable = batch.appended;
            state.counters = tail.counters;
            state.sweep(self.options.cache_bytes_max);
            self.room.notify_all();
        }
        drop(tail);
        match outcome {
            Ok(()) => {
                for done in dones {
                    call(done, Ok(()));
                }
                self.delete_segments_before(batch.oldest_needed);
                true
            }
            Err(error) => {
                self.fail(error, dones);
                false
            }
        }
    }

    /// The writer thread: until the log is closed and its queue is on disk, or it is poisoned.
    pub(super) fn run(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                while self.step() {}
                let mut state = self.state.lock();
                if state.failed.is_some() || (state.closing && state.queue.is_empty()) {
                    return;
                }
                if state.queue.is_empty() {
                    self.work.wait(&mut state);
                }
            }
        }));
        if outcome.is_err() {
            self.fail(WalError::WriterStopped("it panicked".to_owned()), Vec::new());
        }
    }

    /// Poisons the log with its first error and answers everybody who waits.
    fn fail(&self, error: WalError, mut dones: Vec<Done>) {
        tracing::error!(%error, dir = %self.dir.display(), "the raft log failed and takes no more writes");
        let first = {
            let mut state = self.state.lock();
            for op in std::mem::take(&mut state.queue) {
                if let Op::Done(done) = op {
                    dones.push(done);
                }
            }
            state.queue_bytes = 0;
            state.waiting_bytes = 0;
            self.room.notify_all();
            state.failed.get_or_insert(error).clone()
        };
        for done in dones {
            call(done, Err(first.clone().into()));
        }
    }

    /// Writes the operations and makes them durable. Callbacks are handed out even if that fails.
    fn write(&self, tail: &mut Tail, ops: Vec<Op>, dones: &mut Vec<Done>) -> Result<(), WalError> {
        let mut outcome = Ok(());
        for op in ops {
            match op {
                Op::Done(done) => dones.push(done),
                _ if outcome.is_err() => {}
                Op::Record { kind, group, index, payload } => outcome = tail.record(kind, group, index, payload),
                Op::Rotate { sequence, checkpoint } => outcome = self.rotate(tail, sequence, &checkpoint),
            }
        }
        outcome?;
        tail.counters.batches += 1;
        tail.sync()
    }

    fn rotate(&self, tail: &mut Tail, sequence: u64, checkpoint: &[u8]) -> Result<(), WalError> {
        tail.sync()?;
        let header = SegmentHeader { sequence, previous_end: tail.offset, previous_seed: tail.segment.seed };
        let (segment, offset) = create_segment(&*self.files, &self.dir, &self.options, &header, checkpoint)?;
        // The new header says where the old segment ends, so giving back its unused blocks needs no fsync.
        tail.segment.file.truncate(tail.offset).map_err(WalError::io("shorten", &tail.segment.path))?;
        self.state.lock().segments.insert(sequence, segment.clone());
        tail.counters.bytes += offset;
        tail.counters.syncs += 1;
        tail.segment = segment;
        tail.offset = offset;
        Ok(())
    }

    /// Oldest first. A file that stays behind harms nothing; the next start deletes it.
    pub(super) fn delete_segments_before(&self, sequence: u64) {
        let dropped = {
            let mut state = self.state.lock();
            let kept = state.segments.split_off(&sequence);
            std::mem::replace(&mut state.segments, kept)
        };
        for segment in dropped.into_values() {
            if let Err(error) = self.files.remove(&segment.path) {
                tracing::warn!(%error, path = %segment.path.display(), "cannot delete a log segment");
            }
        }
    }
}

impl Tail {
    pub(super) fn new(segment: Segment, offset: u64) -> Self {
        let gathered = Gathered::default();
        Self { segment, offset, gathered, clean: true, counters: Counters::default() }
    }

    fn record(&mut self, kind: Kind, group: u32, index: u64, payload: Bytes) -> Result<(), WalError> {
        let flags = if self.clean { FLAG_SYNCED_BEFORE } else { 0 };
        let offset = self.offset + self.gathered.bytes;
        let header = format::record_header(self.segment.seed, offset, kind, flags, group, index, &payload);
        let (length, padding) = (payload.len(), format::padding(payload.len()));
        let gathered = &mut self.gathered;
        gathered.copied.extend_from_slice(&header);
        if length < COPY_BYTES_MAX {
            gathered.copied.extend_from_slice(&payload);
        } else {
            gathered.payloads.push((gathered.copied.len(), payload));
        }
        gathered.copied.extend_from_slice(&[0; 8][..padding]);
        gathered.bytes += format::record_bytes(length) as u64;
        self.clean = false;
        self.counters.records += 1;
        if self.gathered.copied.len() >= GATHER_BYTES_MAX || self.gathered.payloads.len() >= PIECES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands what is gathered to the file.
    fn flush(&mut self) -> Result<(), WalError> {
        if self.gathered.bytes == 0 {
            return Ok(());
        }
        self.gathered
            .with_slices(|slices| self.segment.file.write_all_at(slices, self.offset))
            .map_err(WalError::io("write to", &self.segment.path))?;
        self.offset += self.gathered.bytes;
        self.counters.bytes += self.gathered.bytes;
        self.gathered.clear();
        Ok(())
    }

    /// One fsync for everything since the last; none if there was nothing.
    fn sync(&mut self) -> Result<(), WalError> {
        self.flush()?;
        if self.clean {
            return Ok(());
        }
        let started = Instant::now();
        self.segment.file.sync_data().map_err(WalError::io("fsync", &self.segment.path))?;
        self.counters.sync_time += started.elapsed();
        self.counters.syncs += 1;
        self.clean = true;
        Ok(())
    }
}

impl Gathered {
    fn with_slices<T>(&self, use_slices: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = Vec::with_capacity(self.payloads.len() * 2 + 1);
        let mut from = 0;
        for (upto, payload) in &self.payloads {
            slices.push(IoSlice::new(&self.copied[from..*upto]));
            slices.push(IoSlice::new(payload));
            from = *upto;
        }
        slices.push(IoSlice::new(&self.copied[from..]));
        use_slices(&slices)
    }

    fn clear(&mut self) {
        self.copied.clear();
        self.copied.shrink_to(GATHER_BYTES_MAX);
        self.payloads.clear();
        self.bytes = 0;
    }
}

/// Makes a segment that holds header and checkpoint, durable before it has its name. Also returns where its records go.
pub(super) fn create_segment(
    files: &dyn Files,
    dir: &Path,
    options: &WalOptions,
    header: &SegmentHeader,
    checkpoint: &[u8],
) -> Result<(Segment, u64), WalError> {
    let path = segment_path(dir, header.sequence);
    let unnamed = path.with_extension("new");
    let file = files.create(&unnamed).map_err(WalError::io("create", &unnamed))?;
    match file.allocate(options.segment_bytes) {
        // A nearly full disk must not keep a node from starting, if only to be read: the segment grows as it is written.
        Err(full) if full.kind() == std::io::ErrorKind::StorageFull => {
            file.truncate(0).map_err(WalError::io("shorten", &unnamed))?;
        }
        allocated => allocated.map_err(WalError::io("reserve space for", &unnamed))?,
    }
    let (bytes, seed) = header.encode();
    let start = SEGMENT_HEADER_BYTES as u64;
    let groups = checkpoint.first_chunk().map_or(0, |count| u64::from(u32::from_le_bytes(*count)));
    let record = format::record_header(seed, start, Kind::Checkpoint, FLAG_SYNCED_BEFORE, 0, groups, checkpoint);
    let padding = &[0; 8][..format::padding(checkpoint.len())];
    let pieces = [&bytes[..], &record, checkpoint, padding].map(IoSlice::new);
    file.write_all_at(&pieces, 0).map_err(WalError::io("write to", &unnamed))?;
    file.sync_data().map_err(WalError::io("fsync", &unnamed))?;
    files.rename(&unnamed, &path).map_err(WalError::io("rename", &unnamed))?;
    files.sync_dir(dir).map_err(WalError::io("fsync", dir))?;
    Ok((Segment { file, path, seed }, start + format::record_bytes(checkpoint.len()) as u64))
}

pub(super) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.wal"))
}

/// The sequence number in a segment's name; `None` for other files.
pub(super) fn segment_sequence(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|sequence| format!("{sequence:016x}") == digits)
}

/// A callback that panics must not take the log with it.
pub(super) fn call(done: Done, outcome: std::io::Result<()>) {
    if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
        tracing::error!("a completion callback of the raft log panicked");
    }
}

/// Reads `length` bytes at `offset`, or fewer at the end of the file.
pub(super) fn read_exact_at(file: &dyn File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
