//! Reading entries back from segments: neighbours with one system call, each record's checksum verified.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::error::WalError;
use super::format::{self, Kind};
use super::group::Place;
use super::state::Segment;
use super::writer::read_exact_at;

/// Entries less far apart than this are fetched together; a run's length, unless one entry is longer.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// One entry to fetch, and where its payload goes in the caller's list.
pub(super) struct Wanted {
    pub(super) slot: usize,
    pub(super) index: u64,
    pub(super) place: Place,
}

/// Fetches the payloads of a group's entries, given in index order, and hands each to `found` with its slot.
pub(super) fn fetch(
    segments: &BTreeMap<u64, Segment>,
    group: u32,
    wanted: &[Wanted],
    mut found: impl FnMut(usize, Bytes),
) -> Result<(), WalError> {
    let mut rest = wanted;
    while let Some(first) = rest.first() {
        let Some(segment) = segments.get(&first.place.segment) else {
            let what =
                format!("segment {:016x} of entry {} of group {group} is gone", first.place.segment, first.index);
            return Err(WalError::Refused(what));
        };
        let start = u64::from(first.place.offset);
        let in_run =
            |entry: &&Wanted| entry.place.segment == first.place.segment && end(entry) <= start + RUN_BYTES_MAX;
        let count = rest.iter().take_while(in_run).count().max(1);
        let (run, behind) = rest.split_at(count);
        rest = behind;
        let length = run.last().map_or(0, end) - start;
        let bytes =
            read_exact_at(&*segment.file, start, length as usize).map_err(WalError::io("read", &segment.path))?;
        let bytes = Bytes::from(bytes);
        for entry in run {
            let offset = u64::from(entry.place.offset);
            let payload = verified(&bytes, (offset - start) as usize, segment.seed, group, entry).map_err(|what| {
                let what = format!("entry {} of group {group}: {what}", entry.index);
                WalError::Corrupt { path: segment.path.clone(), offset, what }
            })?;
            found(entry.slot, payload);
        }
    }
    Ok(())
}

fn end(entry: &Wanted) -> u64 {
    u64::from(entry.place.offset) + format::record_bytes(entry.place.length as usize) as u64
}

fn verified(run: &Bytes, at: usize, seed: u32, group: u32, entry: &Wanted) -> Result<Bytes, &'static str> {
    let record = format::decode_record(run.get(at..).unwrap_or_default(), seed, u64::from(entry.place.offset))?;
    let is_the_one = record.kind == Kind::Append as u8
        && record.group == group
        && record.index == entry.index
        && record.payload.len() == entry.place.length as usize;
    if !is_the_one {
        return Err("another record stands in its place");
    }
    Ok(run.slice_ref(record.payload))
}
