//! What goes into a segment next, and what then leaves the database: asked by whoever drives it, on any replica.

use super::merged::{history_iter, seek_slot};
use super::records::decode_history;
use super::tiers::{Tiers, belongs, has_slot};
use super::{Progress, Shard};
use crate::keys::{push_prefix, split_history_key};
use crate::segment::{SegmentLayout, SegmentWriter, Written};
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{Segment, TrimHistory};
use std::io::Write;

/// History keys that one trim looks at.
const TRIM_KEYS: usize = if cfg!(test) { 4 } else { 4096 };

/// History of one storage id that may leave the database: all rows with event times before `before_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cold {
    pub storage_id: u32,
    pub before_us: i64,
    /// A segment ends with the slot in which it reaches so many rows.
    pub rows_max: u64,
    /// Slots that segments have up to there already are looked at once more, for what came late.
    pub again: bool,
}

impl Cold {
    /// Whether a segment has what is this cold in the slot.
    fn is_done(&self, tiers: &Tiers, slot: u16) -> bool {
        !self.again
            && tiers
                .of(self.storage_id, slot, slot)
                .any(|it| it.load.is_none() && it.before_us >= self.before_us && has_slot(it, slot))
    }
}

/// A segment that was written and nobody knows of yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Extract {
    /// Root and size are still to be filled in.
    pub segment: Segment,
    /// For [`cairn_proto::record::v1::AddSegment`].
    pub expected_changes: u64,
}

impl Shard {
    /// The first slot from `from` on that is this shard's and in no segment up to `before_us` yet.
    pub fn cold_slot(&self, cold: &Cold, from: u16) -> Option<u16> {
        let Progress { slots, tiers, .. } = self.progress.read().clone();
        (from..SLOTS as u16).find(|slot| slots.has(*slot) && !cold.is_done(&tiers, *slot))
    }

    /// Writes a segment of the rows of `cold` in the slots from `from` on: as many slots as follow each other here. `None`
    /// when there is no such row; the slot behind those that were looked at.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; `Conflict` while slots move, or rows of an earlier segment are still to leave the database.
    pub fn extract<W: Write + Send>(
        &self,
        cold: &Cold,
        from: u16,
        layout: SegmentLayout,
        out: W,
    ) -> Result<(Option<(Extract, W)>, u16)> {
        let db = self.group.db();
        // Before the iterator, which then has all rows up to it.
        let Progress { applied, slots, tiers, .. } = self.progress.read().clone();
        if slots.export().is_some() || slots.import().is_some() {
            return Err(Error::Conflict("a move of slots is under way".to_owned()));
        }
        // What is in one segment is in no other.
        if tiers.segments().iter().any(|it| it.storage_id == cold.storage_id && !it.trimmed) {
            return Err(Error::Conflict("a segment has just been added".to_owned()));
        }
        let through_commit = applied.index.saturating_add(slots.commit_offset());
        let mut iter = history_iter(&db, None)?;
        let mut writer = SegmentWriter::new(layout, out)?;
        // What is to be looked at: slots that follow each other here.
        let in_segment_or_away = |slot: &u16| !slots.has(*slot) || cold.is_done(&tiers, *slot);
        let end = (from..SLOTS as u16).find(in_segment_or_away).unwrap_or(SLOTS as u16);
        let mut next = from;
        let mut prefix = Vec::new();
        while writer.rows() < cold.rows_max {
            let Some(slot) = seek_slot(&mut iter, cold.storage_id, next..end, &[])? else {
                next = end;
                break;
            };
            prefix.clear();
            push_prefix(slot, cold.storage_id, &mut prefix);
            while let Some((key, value)) = iter.entry() {
                if !key.starts_with(&prefix) {
                    break;
                }
                let parts = split_history_key(key)
                    .ok_or_else(|| Error::Corrupt(format!("a key of {} bytes is cut short", key.len())))?;
                if belongs(&parts, cold.storage_id, cold.before_us, through_commit) {
                    writer.push(key, &decode_history(key, value)?)?;
                }
                iter.advance()?;
            }
            next = slot + 1;
        }
        if writer.rows() == 0 {
            return Ok((None, next.max(from.saturating_add(1))));
        }
        let (Written { rows, event_min_us, event_max_us }, out) = writer.finish()?;
        let segment = Segment {
            storage_id: cold.storage_id,
            rows,
            // All slots that were looked at: those before have nothing for it.
            first_slot: u32::from(from),
            last_slot: u32::from(next - 1),
            before_us: cold.before_us,
            through_commit,
            event_min_us,
            event_max_us,
            ..Segment::default()
        };
        Ok((Some((Extract { segment, expected_changes: tiers.changes() }, out)), next))
    }

    /// Rows of a storage id that came, since this replica started, when segments already had what is as old: they stay
    /// in the database until the next extract of their slots.
    pub fn late_rows(&self, storage_id: u32) -> u64 {
        self.late.lock().get(&storage_id).copied().unwrap_or(0)
    }

    /// So many late rows were seen to.
    pub fn forget_late(&self, storage_id: u32, rows: u64) {
        if let Some(late) = self.late.lock().get_mut(&storage_id) {
            *late = late.saturating_sub(rows);
        }
    }

    /// The next rows to leave the database, if any still have to.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn next_trim(&self) -> Result<Option<TrimHistory>> {
        let tiers = self.tiers();
        let Some(segment) = tiers.segments().iter().find(|it| !it.trimmed) else { return Ok(None) };
        let db = self.group.db();
        let mut iter = history_iter(&db, None)?;
        let mut prefix = Vec::new();
        let mut slots = segment.first_slot as u16..(segment.last_slot as u16).saturating_add(1);
        let mut seen = 0;
        let mut to = segment.trimmed_to.to_vec();
        while let Some(slot) = seek_slot(&mut iter, segment.storage_id, slots.clone(), &segment.trimmed_to)? {
            prefix.clear();
            push_prefix(slot, segment.storage_id, &mut prefix);
            while let Some((key, _)) = iter.entry() {
                if !key.starts_with(&prefix) || !has_slot(segment, slot) {
                    break;
                }
                seen += 1;
                to.clear();
                to.extend_from_slice(key);
                to.push(0); // just behind it
                if seen >= TRIM_KEYS {
                    let (id, from) = (segment.id, segment.trimmed_to.clone());
                    return Ok(Some(TrimHistory { id, from, to: to.into(), last: false }));
                }
                iter.advance()?;
            }
            slots.start = slot.saturating_add(1);
        }
        Ok(Some(TrimHistory { id: segment.id, from: segment.trimmed_to.clone(), to: to.into(), last: true }))
    }
}
