//! Many segments made into few, and what retention gave up left out: what is due, its rows, and the swap.
//!
//! A merge reads segments alone, in key order, and writes others with the same rows; one entry swaps them. Rows of slots
//! that went elsewhere are left behind.
//!
//! Retention has a floor. Of each entity's rows before it the newest is kept: so reads of any time from the floor on give
//! what they gave before.
//!
//! What always holds: a swap changes no answer at or above the floors it was made with; it happens only where nothing
//! else has happened to the shard's segments since the merge began.

use super::apply::Working;
use super::merged::merged;
use super::records::decode_history;
use super::tiers::{SEGMENTS_MAX, file_of, has_slot};
use super::{Progress, Shard, store};
use crate::blob::Hash;
use crate::keys::{VERSION_BYTES, split_history_key};
use crate::replica::Applied;
use crate::segment::{SegmentLayout, SegmentWriter, Written};
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{ReplaceSegments, Segment, SlotRange};
use std::io::Write;

/// Segments of about one size that are worth a merge; as many are read at once.
const MERGED_AT_ONCE: usize = if cfg!(test) { 3 } else { 8 };
/// Segments of fewer rows count as of this size.
const ROWS_MIN: u64 = if cfg!(test) { 2 } else { 1 << 14 };
/// A merged segment ends with the slot in which it reaches so many rows, and those of so many are not merged again.
const ROWS_MAX: u64 = if cfg!(test) { 32 } else { 1 << 20 };
/// A size is the last one times this, up to [`ROWS_MAX`].
const GROWTH: u64 = 4;
/// Where the number of the n-th segment of one entry begins in its id.
const NTH_SHIFT: u32 = 48;

/// Segments that are to become others.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    segments: Vec<Segment>,
    floor_us: Option<i64>,
    changes: u64,
}

impl Merge {
    /// How many it reads.
    pub fn inputs(&self) -> usize {
        self.segments.len()
    }

    fn slots(&self) -> (u16, u16) {
        let first = self.segments.iter().map(|it| it.first_slot).min().unwrap_or(0);
        let last = self.segments.iter().map(|it| it.last_slot).max().unwrap_or(0);
        (first as u16, last as u16)
    }

    /// The first slot to be merged.
    pub fn first_slot(&self) -> u16 {
        self.slots().0
    }

    /// The command that swaps its segments for `made`.
    pub fn into_command(self, made: Vec<Segment>) -> ReplaceSegments {
        let ids = self.segments.iter().map(|it| it.id).collect();
        ReplaceSegments { ids, segments: made, expected_changes: self.changes }
    }
}

/// Whether a segment may be merged at all: nothing is still to be done with it.
fn is_settled(segment: &Segment, is_open: &dyn Fn(u64) -> bool) -> bool {
    segment.trimmed && segment.load.is_none_or(|load| load.newest && !is_open(load.job))
}

impl Shard {
    /// Segments of a storage id that should be merged now.
    ///
    /// - `floor_us`: what retention gives up is before it
    /// - `step_us`: by so much a floor must have risen before segments are written anew for it
    /// - `is_open`: whether a job may still load something again
    pub fn merge_due(
        &self,
        storage_id: u32,
        floor_us: Option<i64>,
        step_us: i64,
        is_open: &dyn Fn(u64) -> bool,
    ) -> Option<Merge> {
        let Progress { slots, tiers, .. } = self.progress.read().clone();
        if slots.export().is_some() || slots.import().is_some() {
            return None;
        }
        let all = tiers.of(storage_id, 0, u16::MAX).filter(|it| is_settled(it, is_open));
        let mut all: Vec<&Segment> = all.collect();
        all.sort_by_key(|it| (it.event_min_us, it.id));
        let merge = |found: Vec<&Segment>, floor_us| Merge {
            segments: found.into_iter().cloned().collect(),
            floor_us,
            changes: tiers.changes(),
        };
        if let Some(floor_us) = floor_us {
            let old: Vec<&Segment> = all.iter().filter(|it| it.event_min_us < floor_us).copied().collect();
            let since = |it: &&Segment| it.retained_us == 0 || it.retained_us.saturating_add(step_us) <= floor_us;
            if old.iter().any(since) {
                // First those that lag behind, of these the newest: what they have of an entity makes older rows needless.
                let (lagging, done): (Vec<&Segment>, Vec<&Segment>) = old.iter().rev().copied().partition(since);
                let due = lagging.into_iter().chain(done).take(MERGED_AT_ONCE).collect();
                return Some(merge(due, Some(floor_us)));
            }
        }
        let nothing_left = |it: &&Segment| !(it.first_slot as u16..=it.last_slot as u16).any(|slot| has_slot(it, slot));
        let empty: Vec<&Segment> = all.iter().filter(|it| nothing_left(it)).copied().collect();
        if !empty.is_empty() {
            return Some(merge(empty, None));
        }
        let mut size = ROWS_MIN;
        let mut from = 0;
        while size <= ROWS_MAX {
            let alike = all.iter().filter(|it| it.rows < ROWS_MAX && (from..size).contains(&it.rows));
            let alike: Vec<&Segment> = alike.copied().take(MERGED_AT_ONCE).collect();
            if alike.len() == MERGED_AT_ONCE {
                return Some(merge(alike, None));
            }
            (from, size) = (size, size.saturating_mul(GROWTH));
        }
        None
    }

    /// The columns of what a merge writes.
    ///
    /// # Errors
    /// `Unavailable` while a segment is not on this node; `Corrupt`, `Io`.
    pub fn merge_layout(&self, merge: &Merge) -> Result<SegmentLayout> {
        let first = merge.segments.first().ok_or_else(|| Error::Internal("a merge of nothing".to_owned()))?;
        let file = store(self.segment_store())?.open(&file_of(first)?)?;
        Ok(SegmentLayout { load: false, ..file.layout().clone() })
    }

    /// Writes the segment of a merge that begins with slot `from`, and says where the next begins. `None` when there is no
    /// row from there on.
    ///
    /// # Errors
    /// As [`Self::merge_layout`].
    pub fn merge<W: Write + Send>(
        &self,
        merge: &Merge,
        from: u16,
        layout: SegmentLayout,
        out: W,
    ) -> Result<(Option<(Segment, W)>, u16)> {
        let storage_id = layout.storage_id;
        let mut iter = merged(None, self.segment_store(), merge.segments.iter())?;
        let mut writer = SegmentWriter::new(layout, out)?;
        iter.seek(&from.to_be_bytes())?;
        let end = merge.slots().1;
        let mut last = end;
        let mut floor = Floor { floor_us: merge.floor_us, entity: Vec::new(), kept: false };
        let mut reached = from;
        while let Some((key, value)) = iter.entry() {
            let parts = split_history_key(key)
                .ok_or_else(|| Error::Corrupt(format!("a key of {} bytes is cut short", key.len())))?;
            if parts.slot != reached && writer.rows() >= ROWS_MAX {
                last = parts.slot.saturating_sub(1);
                break;
            }
            reached = parts.slot;
            if floor.keeps(key, parts.event_us) {
                writer.push(key, &decode_history(key, value)?)?;
            }
            iter.advance()?;
        }
        if writer.rows() == 0 {
            return Ok((None, last.saturating_add(1)));
        }
        let (Written { rows, event_min_us, event_max_us }, out) = writer.finish()?;
        let before_us = (from..=last).filter(|slot| self.slots().has(*slot)).map(|slot| merge.taken_before(slot)).min();
        let segment = Segment {
            storage_id,
            rows,
            first_slot: u32::from(from),
            last_slot: u32::from(last),
            before_us: before_us.unwrap_or(i64::MIN),
            through_commit: merge.segments.iter().map(|it| it.through_commit).max().unwrap_or(0),
            event_min_us,
            event_max_us,
            trimmed: true,
            gone: self.not_here(from, last),
            retained_us: merge.retained_us(),
            ..Segment::default()
        };
        Ok((Some((segment, out)), last.saturating_add(1)))
    }

    /// The slots in a range that are not this shard's.
    fn not_here(&self, first: u16, last: u16) -> Vec<SlotRange> {
        let slots = self.slots();
        let mut gone: Vec<SlotRange> = Vec::new();
        for slot in (first..=last).filter(|slot| !slots.has(*slot)).map(u32::from) {
            match gone.last_mut() {
                Some(range) if range.last + 1 == slot => range.last = slot,
                _ => gone.push(SlotRange { first: slot, last: slot }),
            }
        }
        gone
    }
}

impl Merge {
    /// Event time before which the database gave a slot's rows to one of the segments.
    fn taken_before(&self, slot: u16) -> i64 {
        let taken = self.segments.iter().filter(|it| it.load.is_none() && has_slot(it, slot)).map(|it| it.before_us);
        taken.max().unwrap_or(i64::MIN)
    }

    fn retained_us(&self) -> i64 {
        let before = self.segments.iter().map(|it| it.retained_us).min().unwrap_or(0);
        self.floor_us.unwrap_or(before)
    }
}

/// What retention keeps of rows in key order.
struct Floor {
    floor_us: Option<i64>,
    entity: Vec<u8>,
    /// A row of the entity before the floor is kept already: all others are older.
    kept: bool,
}

impl Floor {
    fn keeps(&mut self, history_key: &[u8], event_us: i64) -> bool {
        let Some(floor_us) = self.floor_us else { return true };
        let entity = history_key.get(..history_key.len().saturating_sub(VERSION_BYTES)).unwrap_or_default();
        if entity != self.entity {
            self.entity.clear();
            self.entity.extend_from_slice(entity);
            self.kept = false;
        }
        if event_us >= floor_us {
            return true;
        }
        !std::mem::replace(&mut self.kept, true)
    }
}

impl Working<'_, '_> {
    pub(super) fn replace_segments(&mut self, ask: &ReplaceSegments, at: Applied) -> Result<()> {
        if ask.expected_changes != self.tiers.changes() {
            return Err(Error::Conflict("the segments of the shard have changed since".to_owned()));
        }
        if self.slots.export().is_some() || self.slots.import().is_some() {
            return Err(Error::Conflict("a move of slots is under way".to_owned()));
        }
        let invalid = |what: &str| Err(Error::InvalidArgument(format!("segments cannot be replaced: {what}")));
        let found: Vec<&Segment> = self.tiers.segments().iter().filter(|it| ask.ids.contains(&it.id)).collect();
        let storage_id = match found.first() {
            Some(first) if found.len() == ask.ids.len() => first.storage_id,
            _ => return invalid("one of them is not here, or named twice"),
        };
        if found.iter().any(|it| it.storage_id != storage_id || !is_settled(it, &|_| false)) {
            return invalid("they are of several views, or something is still to be done with one");
        }
        for made in &ask.segments {
            let slots = made.first_slot <= made.last_slot && (made.last_slot as usize) < SLOTS;
            let whole = made.root.len() == size_of::<Hash>() && made.rows > 0 && made.trimmed && made.load.is_none();
            if made.storage_id != storage_id || !slots || !whole {
                return invalid("a new one does not say what it holds");
            }
        }
        if self.tiers.segments().len() - found.len() + ask.segments.len() > SEGMENTS_MAX {
            return Err(Error::Conflict(format!("the shard would have over {SEGMENTS_MAX} segments")));
        }
        self.tiers_change(|record| {
            record.segments.retain(|it| !ask.ids.contains(&it.id));
            for (nth, made) in (0u64..).zip(&ask.segments) {
                record.segments.push(Segment { id: at.index | nth << NTH_SHIFT, ..made.clone() });
            }
        });
        Ok(())
    }
}
