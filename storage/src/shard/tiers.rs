//! Which segments hold history of this shard, and the steps by which rows go there.
//!
//! A segment is written from a replica, copied to a quorum, and then named by [`AddSegment`]; from there on readers merge
//! it with the database. Its rows leave the database by [`TrimHistory`], range by range, so that no step takes long.
//!
//! What always holds:
//! - every row is in the database or in a segment or, between the steps, in both, where it is the same row
//! - a row that came after the segment was read stays in the database: its commit is above the segment's
//! - segments are added while no slot is on its way to or from here; what slots take along when they move is rows
//! - rows of a load ([`super::loads`]) were never in the database, and nothing of it is trimmed

use super::apply::Working;
use super::slots::covers;
use crate::blob::Hash;
use crate::keys::{HistoryKey, split_history_key};
use crate::replica::Applied;
use crate::segment::{SegmentRef, Stamp};
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{AddSegment, Load, Segment, ShardSegments, SlotRange, TrimHistory};
use prost::Message;
use std::ops::Range;
use std::sync::Arc;

/// Version byte of the stored record.
const VERSION: u8 = 1;

/// Segments of one shard. More are merged or refused: every reader walks through this list.
pub const SEGMENTS_MAX: usize = 4096;

/// The segments of a shard at one position of its log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tiers {
    record: ShardSegments,
    /// Segments are in it beside those that take their place.
    between: bool,
}

impl Tiers {
    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let corrupt = || Error::Corrupt("the record of a shard's segments is broken".to_owned());
        match value.split_first() {
            Some((&VERSION, message)) => {
                Ok(Self { record: ShardSegments::decode(message).map_err(|_| corrupt())?, between: false })
            }
            _ => Err(corrupt()),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend(self.record.encode_to_vec());
        value
    }

    /// In the order they were added.
    pub fn segments(&self) -> &[Segment] {
        &self.record.segments
    }

    /// Counts what happened to the segments.
    pub fn changes(&self) -> u64 {
        self.record.changes
    }

    /// The segments that may hold rows of a storage id in these slots.
    pub(super) fn of(&self, storage_id: u32, first: u16, last: u16) -> impl Iterator<Item = &Segment> {
        let meets = move |it: &&Segment| {
            it.storage_id == storage_id && it.first_slot <= u32::from(last) && it.last_slot >= u32::from(first)
        };
        self.record.segments.iter().filter(meets)
    }

    /// What was loaded of a chunk of a job, wherever the slots are now.
    pub fn load_of(&self, job: u64, chunk: u32) -> impl Iterator<Item = &Segment> {
        let of = move |it: &&Segment| it.load.is_some_and(|load| load.job == job && load.chunk == chunk);
        self.record.segments.iter().filter(of)
    }

    /// As before, with what a write adds: where it takes rows away, a reader needs that before it is done. What it says of
    /// segments that are known holds only then.
    pub(super) fn before_write(&self, after: &Self) -> Self {
        let mut record = self.record.clone();
        let knows = |of: &[Segment], id: u64| of.iter().any(|it| it.id == id);
        let added = after.segments().iter().filter(|it| !knows(&self.record.segments, it.id)).cloned();
        record.segments.extend(added);
        let (before, all) = (self.segments(), record.segments.len());
        let between = all > before.len() && before.iter().any(|it| !knows(after.segments(), it.id));
        Self { record, between }
    }

    /// Segments are in it beside those that take their place.
    pub(super) fn is_between(&self) -> bool {
        self.between
    }

    /// Whether `latest` may lack rows of a storage id that history has.
    pub(super) fn has_unfinished_load(&self, storage_id: u32) -> bool {
        self.of(storage_id, 0, u16::MAX).any(|it| it.load.is_some_and(|load| !load.newest))
    }
}

/// The file of a segment.
///
/// # Errors
/// `Corrupt` when its root is no BLAKE3 hash.
pub(super) fn file_of(segment: &Segment) -> Result<SegmentRef> {
    let root: Hash =
        segment.root[..].try_into().map_err(|_| Error::Corrupt("a segment's root is no hash".to_owned()))?;
    let stamp = segment.load.map(|Load { commit, committed_us, .. }| Stamp { commit, committed_us });
    Ok(SegmentRef { root, stamp })
}

/// Whether a segment still holds the rows of a slot.
pub(super) fn has_slot(segment: &Segment, slot: u16) -> bool {
    covers(segment.first_slot, segment.last_slot, slot)
        && !segment.gone.iter().any(|gone| covers(gone.first, gone.last, slot))
}

/// The rows that a trim takes out of the database.
#[derive(Debug, Clone)]
pub(super) struct Trimmed {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
    segment: Segment,
}

impl Trimmed {
    /// Storage id and slots of the segment.
    pub(super) fn slots(&self) -> (u32, Range<u16>) {
        let Segment { storage_id, first_slot, last_slot, .. } = self.segment;
        (storage_id, first_slot as u16..(last_slot as u16).saturating_add(1))
    }

    /// Whether the row of this history key goes.
    pub(super) fn has(&self, history_key: &[u8]) -> bool {
        let within = history_key >= &self.from[..] && history_key < &self.to[..];
        let Segment { storage_id, before_us, through_commit, .. } = self.segment;
        let belongs = |key| belongs(&key, storage_id, before_us, through_commit) && has_slot(&self.segment, key.slot);
        within && split_history_key(history_key).is_some_and(belongs)
    }
}

/// What a segment of these bounds would take.
pub(super) fn belongs(key: &HistoryKey<'_>, storage_id: u32, before_us: i64, through_commit: u64) -> bool {
    key.storage_id == storage_id && key.event_us < before_us && key.commit <= through_commit
}

impl Working<'_, '_> {
    pub(super) fn tiers_change(&mut self, change: impl FnOnce(&mut ShardSegments)) {
        let record = &mut Arc::make_mut(&mut self.tiers).record;
        change(record);
        record.changes += 1;
        self.tiers_changed = true;
    }

    pub(super) fn add_segment(&mut self, ask: &AddSegment, at: Applied) -> Result<()> {
        let segment = ask.segment.clone().unwrap_or_default();
        let invalid = |what: &str| Err(Error::InvalidArgument(format!("a segment cannot be added: {what}")));
        let Segment { first_slot, last_slot, .. } = segment;
        if first_slot > last_slot || last_slot as usize >= SLOTS {
            return invalid("its slots are no range");
        }
        if segment.root.len() != size_of::<Hash>() || segment.rows == 0 || segment.event_max_us >= segment.before_us {
            return invalid("it does not say what it holds");
        }
        if ask.expected_changes != self.tiers.changes() {
            return Err(Error::Conflict("the segments of the shard have changed since".to_owned()));
        }
        if self.slots.export().is_some() || self.slots.import().is_some() {
            return Err(Error::Conflict("a move of slots is under way".to_owned()));
        }
        if let Some(slot) = (first_slot as u16..=last_slot as u16).find(|slot| self.slots.segment(*slot).is_none()) {
            return Err(Error::Conflict(format!("slot {slot} is not this shard's")));
        }
        let commit = at.index.saturating_add(self.slots.commit_offset());
        let segment = match segment.load {
            Some(load) => {
                if self
                    .tiers
                    .load_of(load.job, load.chunk)
                    .any(|it| it.first_slot <= last_slot && it.last_slot >= first_slot)
                {
                    return Err(Error::Conflict("some of these rows are loaded already".to_owned()));
                }
                let load = Load { commit, committed_us: at.time_us, newest: false, ..load };
                Segment { load: Some(load), through_commit: commit, trimmed: true, ..segment }
            }
            None if segment.through_commit >= commit => return invalid("it holds rows from after it"),
            None if self.came_since(&segment) => {
                return Err(Error::Conflict(
                    "slots came here since it was written, with rows that it lacks".to_owned(),
                ));
            }
            None => Segment { trimmed: false, ..segment },
        };
        if self.tiers.segments().len() >= SEGMENTS_MAX {
            return Err(Error::Conflict(format!("the shard has {SEGMENTS_MAX} segments, and takes no more")));
        }
        let segment = Segment { id: at.index, trimmed_to: Vec::new().into(), gone: Vec::new(), ..segment };
        self.tiers_change(|record| record.segments.push(segment));
        Ok(())
    }

    /// Whether slots of a segment that was written here came later. Their rows may be older than what it was written through.
    fn came_since(&self, segment: &Segment) -> bool {
        let offset = self.slots.commit_offset();
        self.slots.record().held.iter().any(|held| {
            let meets = held.first <= segment.last_slot && held.last >= segment.first_slot;
            meets && segment.through_commit < held.activated_index.saturating_add(offset)
        })
    }

    pub(super) fn trim_history(&mut self, ask: &TrimHistory) -> Result<()> {
        let segment = self.tiers.segments().iter().find(|it| it.id == ask.id);
        let segment = segment.ok_or_else(|| Error::Conflict(format!("segment {} is not here", ask.id)))?.clone();
        if segment.trimmed || segment.trimmed_to != ask.from || ask.to < ask.from {
            return Err(Error::Conflict(format!("this part of segment {} is not the next one to trim", ask.id)));
        }
        let begin = (segment.first_slot as u16).to_be_bytes().to_vec();
        self.trim_rows(Trimmed { from: begin.max(ask.from.to_vec()), to: ask.to.to_vec(), segment })?;
        self.tiers_change(|record| {
            if let Some(segment) = record.segments.iter_mut().find(|it| it.id == ask.id) {
                segment.trimmed_to = ask.to.clone();
                segment.trimmed = ask.last;
            }
        });
        Ok(())
    }

    /// The rows of these slots are no longer this shard's.
    pub(super) fn forget_slots(&mut self, first: u16, last: u16) {
        let (first, last) = (u32::from(first), u32::from(last));
        let meets = |it: &Segment| it.first_slot <= last && it.last_slot >= first;
        if !self.tiers.segments().iter().any(meets) {
            return;
        }
        self.tiers_change(|record| {
            for segment in record.segments.iter_mut().filter(|it| meets(it)) {
                segment.gone.push(SlotRange { first, last });
            }
            // What was loaded is known by its record: the same may be asked for again.
            let has_any = |it: &Segment| (it.first_slot as u16..=it.last_slot as u16).any(|slot| has_slot(it, slot));
            record.segments.retain(|it| it.load.is_some() || has_any(it));
        });
    }
}
