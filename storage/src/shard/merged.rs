//! History in key order, from the database and from segments, each row once.

use super::HISTORY;
use super::records::encode_history;
use super::tiers::{Tiers, file_of, has_slot};
use crate::engine::{Db, Iter, IterOptions};
use crate::keys::{push_prefix, split_latest_key};
use crate::segment::{SegmentCursor, SegmentStore};
use crate::{Error, Result};
use cairn_proto::record::v1::Segment;
use std::ops::Range;

/// Walks `history`. Stands nowhere at first: seek.
pub(super) struct Merged<'a> {
    /// `None`: segments alone.
    db: Option<Iter<'a>>,
    segments: Vec<Part<'a>>,
    /// Which of them stands at the smallest key; `None` = the database.
    least: Option<usize>,
    value: Vec<u8>,
    /// The key that [`Self::advance`] leaves.
    left: Vec<u8>,
}

struct Part<'a> {
    cursor: SegmentCursor,
    segment: &'a Segment,
}

impl Part<'_> {
    /// Past the rows of slots that moved away.
    fn settle(&mut self) -> Result<()> {
        while !self.segment.gone.is_empty()
            && let Some((group, row)) = self.cursor.entry()
        {
            let slot = split_latest_key(group.key(row)).map_or(0, |(slot, ..)| slot);
            if has_slot(self.segment, slot) {
                break;
            }
            match slot.checked_add(1) {
                Some(next) => self.cursor.seek(&next.to_be_bytes())?,
                None => self.cursor.advance()?,
            }
        }
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.cursor.entry().map(|(group, row)| group.key(row))
    }
}

/// The rows of the database and of `segments`. The iterator must be of an earlier moment than the list of segments: what
/// leaves the database in between is in a segment by then.
pub(super) fn merged<'a>(
    db: impl Into<Option<Iter<'a>>>,
    store: Option<&SegmentStore>,
    segments: impl Iterator<Item = &'a Segment>,
) -> Result<Merged<'a>> {
    let mut parts = Vec::new();
    for segment in segments {
        let cursor = SegmentCursor::new(super::store(store)?.open(&file_of(segment)?)?);
        parts.push(Part { cursor, segment });
    }
    Ok(Merged { db: db.into(), segments: parts, least: None, value: Vec::new(), left: Vec::new() })
}

/// An iterator over all history keys of `db` below `upper`.
pub(super) fn history_iter(db: &Db, upper: Option<Vec<u8>>) -> Result<Iter<'_>> {
    db.iter(HISTORY, IterOptions { upper, fill_cache: false, ..IterOptions::default() })
}

/// Moves to the first row of a view in `slots` at or after `from`, and tells its slot. Keys that were deleted, of whichever view,
/// are passed once on the way: a seek for each slot would pass those up to the next key that is there again and again.
pub(super) fn seek_slot(
    iter: &mut Iter<'_>,
    storage_id: u32,
    mut slots: Range<u16>,
    from: &[u8],
) -> Result<Option<u16>> {
    let mut prefix = Vec::new();
    while !slots.is_empty() {
        prefix.clear();
        push_prefix(slots.start, storage_id, &mut prefix);
        iter.seek(from.max(&prefix))?;
        let Some((key, _)) = iter.entry() else { break };
        let Some((slot, found, _)) = split_latest_key(key) else {
            return Err(Error::Corrupt(format!("a key of {} bytes is cut short", key.len())));
        };
        if found == storage_id && slots.contains(&slot) {
            return Ok(Some(slot));
        }
        slots.start = if found < storage_id { slot } else { slot.saturating_add(1) };
    }
    Ok(None)
}

/// All segments that may meet these slots, whatever they hold.
pub(super) fn in_slots(tiers: &Tiers, first: u16, last: u16) -> impl Iterator<Item = &Segment> {
    let meets = move |it: &&Segment| it.first_slot <= u32::from(last) && it.last_slot >= u32::from(first);
    tiers.segments().iter().filter(meets)
}

impl Merged<'_> {
    /// Moves to the first row at or after `key`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Unavailable` while a segment is not here.
    pub(super) fn seek(&mut self, key: &[u8]) -> Result<()> {
        if let Some(db) = &mut self.db {
            db.seek(key)?;
        }
        for part in &mut self.segments {
            part.cursor.seek(key)?;
            part.settle()?;
        }
        self.choose()
    }

    /// Moves to the next row.
    ///
    /// # Errors
    /// As [`Self::seek`].
    pub(super) fn advance(&mut self) -> Result<()> {
        if self.segments.is_empty() {
            return self.db.as_mut().map_or(Ok(()), |db| db.advance().map(drop));
        }
        let mut left = std::mem::take(&mut self.left);
        let Some((key, _)) = self.entry() else { return Ok(()) };
        left.clear();
        left.extend_from_slice(key);
        if let Some(db) = &mut self.db
            && db.entry().is_some_and(|(key, _)| key == left)
        {
            db.advance()?;
        }
        for part in &mut self.segments {
            if part.key() == Some(&left[..]) {
                part.cursor.advance()?;
                part.settle()?;
            }
        }
        self.left = left;
        self.choose()
    }

    /// The history key and value here; `None` at the end.
    pub(super) fn entry(&self) -> Option<(&[u8], &[u8])> {
        match self.least {
            None => self.db.as_ref()?.entry(),
            Some(at) => Some((self.segments.get(at)?.key()?, &self.value)),
        }
    }

    fn choose(&mut self) -> Result<()> {
        let mut least = None;
        let mut smallest = self.db.as_ref().and_then(|db| db.entry()).map(|(key, _)| key);
        for (at, part) in self.segments.iter().enumerate() {
            // Of equal rows that of the database: it is packed already.
            if let Some(key) = part.key()
                && smallest.is_none_or(|smallest| key < smallest)
            {
                (least, smallest) = (Some(at), Some(key));
            }
        }
        self.least = least;
        if let Some((group, row)) = least.and_then(|at| self.segments.get(at)).and_then(|part| part.cursor.entry())
            && let Some(version) = group.version(row)
        {
            encode_history(&version, &mut self.value);
            group.packed(row, &mut self.value)?;
        }
        Ok(())
    }
}
