//! Opening the log: read every segment in order and rebuild each group's state.
//!
//! - Only the end of the last segment may be torn. A damaged record that was durable once (in an older segment, or with
//!   a later batch behind it) is damage: the log stays shut, with file and offset in the message.
//! - Whether the last batch ever reached the disk is unknown after a failed fsync, even if it can be read. So it is
//!   written once more and fsynced before anything is reported.
//! - A log goes on in a new segment, whose header says where the one before ends. Nothing is written behind a tear.

use std::collections::BTreeMap;
use std::path::Path;

use super::WalOptions;
use super::error::WalError;
use super::files::Files;
use super::format::{
    self, FLAG_SYNCED_BEFORE, FORMAT_VERSION, HeaderFault, Kind, RECORD_VERSION, Record, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use super::group::{self, GroupLog, Place};
use super::read::{self, Wanted};
use super::state::{Segment, State};
use super::writer::{Tail, create_segment, read_exact_at, segment_path, segment_sequence};

pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) tail: Tail,
    /// No log stood here before.
    pub(super) created: bool,
}

struct Found {
    header: SegmentHeader,
    segment: Segment,
    /// Where the records behind the checkpoint start; known once the segment is read.
    records_start: u64,
}

pub(super) fn recover(files: &dyn Files, dir: &Path, options: &WalOptions) -> Result<Recovered, WalError> {
    let names = files.list(dir).map_err(WalError::io("list", dir))?;
    for name in names.iter().filter(|name| name.ends_with(".new")) {
        // Was being made when the process ended: never held anything.
        files.remove(&dir.join(name)).map_err(WalError::io("remove", &dir.join(name)))?;
    }
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
    sequences.sort_unstable();
    let mut found = last_run(&sequences)
        .iter()
        .map(|sequence| open_segment(files, dir, *sequence))
        .collect::<Result<Vec<_>, _>>()?;

    let mut groups = BTreeMap::new();
    let mut end = 0;
    for nth in 0..found.len() {
        let next = found.get(nth + 1).map(|next| (next.header, next.segment.path.clone()));
        let Some(this) = found.get_mut(nth) else { break };
        if let Some((header, path)) = &next
            && header.previous_seed != this.segment.seed
        {
            let what = "it does not follow the segment before it".to_owned();
            return Err(WalError::Corrupt { path: path.clone(), offset: 0, what });
        }
        end = replay(&mut groups, this, nth == 0, next.map(|(header, _)| header.previous_end))?;
    }
    let mut segments: BTreeMap<u64, Segment> =
        found.iter().map(|found| (found.header.sequence, found.segment.clone())).collect();
    for (group, log) in &mut groups {
        load_last(&segments, *group, log, dir)?;
    }

    let last = found.last();
    let header = match last {
        None => SegmentHeader { sequence: 1, previous_end: 0, previous_seed: 0 },
        // Nothing but its checkpoint: made anew in its place, so that restarts pile up no segments.
        Some(last) if end == last.records_start => last.header,
        Some(last) => {
            SegmentHeader { sequence: last.header.sequence + 1, previous_end: end, previous_seed: last.segment.seed }
        }
    };
    let checkpoint = group::encode_checkpoint(&groups);
    let (segment, floor) = create_segment(files, dir, options, &header, &checkpoint)?;
    if let Some(last) = last.filter(|last| last.header.sequence < header.sequence) {
        last.segment.file.truncate(end).map_err(WalError::io("shorten", &last.segment.path))?;
    }
    segments.insert(header.sequence, segment.clone());
    let mut state = State::new(groups, segments, header.sequence, floor);
    let needed = state.oldest_needed();
    state.segments.retain(|sequence, _| *sequence >= needed);
    for sequence in sequences.iter().filter(|sequence| **sequence < needed) {
        let path = segment_path(dir, *sequence);
        if let Err(error) = files.remove(&path) {
            tracing::warn!(%error, path = %path.display(), "cannot delete a log segment");
        }
    }
    Ok(Recovered { state, tail: Tail::new(segment, floor), created: sequences.is_empty() })
}

/// The newest segments without a gap. Those before a gap were being deleted: had any been needed, the checkpoint of the
/// first one here names entries that nothing purges, which is found at the end.
fn last_run(sequences: &[u64]) -> &[u64] {
    let gap = sequences.windows(2).rposition(|pair| pair[1] != pair[0].wrapping_add(1));
    &sequences[gap.map_or(0, |gap| gap + 1)..]
}

fn open_segment(files: &dyn Files, dir: &Path, sequence: u64) -> Result<Found, WalError> {
    let path = segment_path(dir, sequence);
    let file = files.open(&path).map_err(WalError::io("open", &path))?;
    let bytes = read_exact_at(&*file, 0, SEGMENT_HEADER_BYTES).map_err(WalError::io("read", &path))?;
    match SegmentHeader::decode(&bytes) {
        Ok((header, seed)) if header.sequence == sequence => {
            Ok(Found { header, segment: Segment { file, path, seed }, records_start: 0 })
        }
        Ok((header, _)) => {
            let what = format!("its header says it is segment {:016x}", header.sequence);
            Err(WalError::Corrupt { path, offset: 16, what })
        }
        Err(HeaderFault::Damaged(what)) => Err(WalError::Corrupt { path, offset: 0, what: what.to_owned() }),
        Err(HeaderFault::Newer(found)) => {
            Err(WalError::NewerFormat { path, found: found.to_string(), supported: FORMAT_VERSION })
        }
    }
}

/// Applies a segment's records and returns where they end. `ends_at`: what the next segment says, if there is one.
fn replay(
    groups: &mut BTreeMap<u32, GroupLog>,
    found: &mut Found,
    is_first: bool,
    ends_at: Option<u64>,
) -> Result<u64, WalError> {
    let segment = &found.segment.clone();
    let size = segment.file.size().map_err(WalError::io("read", &segment.path))?;
    if let Some(end) = ends_at.filter(|end| *end > size) {
        return Err(corrupt(segment, size, &format!("the file ends here, its records at {end}")));
    }
    let limit = ends_at.unwrap_or(size);
    let bytes = read_exact_at(&*segment.file, 0, limit as usize).map_err(WalError::io("read", &segment.path))?;
    let mut offset = SEGMENT_HEADER_BYTES;
    let mut batch_start = offset;
    while offset < bytes.len() || offset == SEGMENT_HEADER_BYTES {
        let record = match format::decode_record(bytes.get(offset..).unwrap_or_default(), segment.seed, offset as u64) {
            Ok(record) => record,
            Err(what) if ends_at.is_some() || offset == SEGMENT_HEADER_BYTES => {
                return Err(corrupt(segment, offset as u64, what));
            }
            Err(what) => match format::find_synced_after(&bytes, offset, segment.seed) {
                Some(later) => {
                    let what = format!("{what}, and a batch written after it was durable stands at {later}");
                    return Err(corrupt(segment, offset as u64, &what));
                }
                None => break,
            },
        };
        let is_checkpoint = offset == SEGMENT_HEADER_BYTES;
        let kind = known_kind(segment, &record)?;
        if is_checkpoint != (kind == Kind::Checkpoint) {
            return Err(corrupt(segment, offset as u64, "a checkpoint belongs at the start, and only there"));
        }
        if record.flags & FLAG_SYNCED_BEFORE != 0 {
            batch_start = offset;
        }
        let place =
            Place { segment: found.header.sequence, offset: offset as u32, length: record.payload.len() as u32 };
        let applied =
            if is_checkpoint { check_point(groups, &record, is_first) } else { apply(groups, kind, &record, place) };
        applied.map_err(|what| corrupt(segment, offset as u64, &what))?;
        offset += format::record_bytes(record.payload.len());
        if is_checkpoint {
            found.records_start = offset as u64;
        }
    }
    if ends_at.is_none() {
        let batch = std::io::IoSlice::new(&bytes[batch_start..offset]);
        let file = &segment.file;
        file.write_all_at(&[batch], batch_start as u64).map_err(WalError::io("write to", &segment.path))?;
        file.sync_data().map_err(WalError::io("fsync", &segment.path))?;
        if bytes[offset..].iter().any(|byte| *byte != 0) {
            tracing::warn!(path = %segment.path.display(), offset, "cut a torn tail off the raft log");
        }
    }
    Ok(offset as u64)
}

fn known_kind(segment: &Segment, record: &Record<'_>) -> Result<Kind, WalError> {
    let kind = Kind::from_byte(record.kind);
    match kind {
        Some(kind) if record.version == RECORD_VERSION && record.flags & !FLAG_SYNCED_BEFORE == 0 => Ok(kind),
        _ => Err(WalError::NewerFormat {
            path: segment.path.clone(),
            found: format!("record kind {} version {} flags {}", record.kind, record.version, record.flags),
            supported: FORMAT_VERSION,
        }),
    }
}

/// The first checkpoint is where the state begins; every later one must say what the records before it said.
fn check_point(groups: &mut BTreeMap<u32, GroupLog>, record: &Record<'_>, is_first: bool) -> Result<(), String> {
    if !is_first {
        return match group::encode_checkpoint(groups) == record.payload {
            true => Ok(()),
            false => Err("the checkpoint contradicts the segments before it".to_owned()),
        };
    }
    *groups = group::decode_checkpoint(record.payload).ok_or("the checkpoint cannot be decoded")?;
    Ok(())
}

fn apply(groups: &mut BTreeMap<u32, GroupLog>, kind: Kind, record: &Record<'_>, place: Place) -> Result<(), String> {
    let log = groups.entry(record.group).or_default();
    let payload = || bytes::Bytes::copy_from_slice(record.payload);
    match kind {
        Kind::Append => {
            log.check_append(record.index, 1).map_err(|refusal| format!("group {}: {refusal}", record.group))?;
            log.append(record.index, place, None);
        }
        Kind::Vote => log.vote = Some(payload()),
        Kind::Committed => {
            log.committed = Some(payload());
            log.committed_logged = log.committed.clone();
        }
        Kind::Truncate => log.truncate(record.index, None),
        Kind::Purge => log.purge(record.index, payload()),
        Kind::Checkpoint => return Err("a checkpoint inside a segment".to_owned()),
    }
    Ok(())
}

/// Every entry the group still has must stand somewhere; the last one is kept in memory.
fn load_last(segments: &BTreeMap<u64, Segment>, group: u32, log: &mut GroupLog, dir: &Path) -> Result<(), WalError> {
    if let Some((first, last)) = log.absent() {
        let what = format!("entries {first} to {last} of group {group} stood in segments that are missing");
        return Err(WalError::Corrupt { path: dir.to_owned(), offset: 0, what });
    }
    let Some(index) = log.last_index() else { return Ok(()) };
    let Some(place) = log.place(index) else { return Ok(()) };
    let mut last = None;
    read::fetch(segments, group, &[Wanted { slot: 0, index, place }], |_, payload| last = Some(payload))?;
    log.last = last;
    Ok(())
}

fn corrupt(segment: &Segment, offset: u64, what: &str) -> WalError {
    WalError::Corrupt { path: segment.path.clone(), offset, what: what.to_owned() }
}
