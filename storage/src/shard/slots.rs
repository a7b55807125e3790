//! Which slots a shard has, beside those the cluster began with: what moves took away, brought, or are about to.
//!
//! What always holds: a slot is written in at most one shard at a time. One that no record names belongs to its home
//! shard, the one the cluster began with. Whoever reads takes, of the shards that claim a slot, the one with the
//! highest epoch; the claim of a shard ends with the purge of its rows, so no claim is ever empty-handed.

use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{GivenSlots, HeldSlots, ShardSlots, SlotExport, SlotExportState, SlotImport};
use prost::Message;

/// Version byte of the stored record.
const VERSION: u8 = 1;

/// The epoch of every slot before its first move.
const HOME_EPOCH: u64 = 1;

/// The shard (1…N) that has a slot before anything moves.
pub fn home_shard(slot: u16, shards: u32) -> u32 {
    1 + u32::from(slot) * shards / SLOTS as u32
}

/// Whose sequences a slot's producers count in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    Home,
    /// Of a move that brought the slots.
    Moved {
        id: u64,
        origin: u16,
    },
}

/// What one slot is to writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Home,
    /// By its place in `held`.
    Held(u16),
    /// Given away, or about to be.
    Closed,
}

/// The slots of a shard at one position of its log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slots {
    record: ShardSlots,
    /// One a slot; empty where nothing ever moved.
    places: Vec<Place>,
}

/// What a shard says of each slot to whoever looks for its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// [`UNNAMED`], [`NONE`] or an epoch; empty = all unnamed.
    epochs: Vec<u64>,
}

const UNNAMED: u64 = 0;
const NONE: u64 = u64::MAX;

impl Claims {
    /// The epoch at which the shard has the slot, if it does.
    pub fn epoch(&self, slot: u16, home: bool) -> Option<u64> {
        match self.epochs.get(usize::from(slot)).copied().unwrap_or(UNNAMED) {
            UNNAMED => home.then_some(HOME_EPOCH),
            NONE => None,
            epoch => Some(epoch),
        }
    }

    /// What both say alike.
    pub(super) fn both(&self, other: &Self) -> Self {
        if self == other {
            return self.clone();
        }
        let at = |claims: &Self, slot: usize| claims.epochs.get(slot).copied().unwrap_or(UNNAMED);
        let one = |slot| if at(self, slot) == at(other, slot) { at(self, slot) } else { NONE };
        Self { epochs: (0..SLOTS).map(one).collect() }
    }
}

impl Slots {
    pub(super) fn new(record: ShardSlots) -> Self {
        let mut slots = Self { record, places: Vec::new() };
        slots.place();
        slots
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let corrupt = || Error::Corrupt("the record of a shard's slots is broken".to_owned());
        match value.split_first() {
            Some((&VERSION, message)) => Ok(Self::new(ShardSlots::decode(message).map_err(|_| corrupt())?)),
            Some((version, _)) if *version > VERSION => Err(Error::InvalidArgument(format!(
                "the record of a shard's slots has format {version}, written by a newer Cairn; this one reads {VERSION}: \
                 start the newer cairnd"
            ))),
            _ => Err(corrupt()),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend(self.record.encode_to_vec());
        value
    }

    /// Nothing was ever moved from here or to here.
    pub(super) fn are_plain(&self) -> bool {
        self.places.is_empty()
    }

    pub fn record(&self) -> &ShardSlots {
        &self.record
    }

    /// The export under way.
    pub fn export(&self) -> Option<&SlotExport> {
        self.record.export.as_ref()
    }

    /// The import under way.
    pub fn import(&self) -> Option<&SlotImport> {
        self.record.import.as_ref()
    }

    /// Whether this shard was the new one of a move that is complete here.
    pub fn has_of(&self, id: u64) -> bool {
        self.record.held.iter().any(|held| held.id == id)
    }

    pub(super) fn commit_offset(&self) -> u64 {
        self.record.commit_offset
    }

    /// The segment that a row of the slot is written in; `None` when it must not be.
    pub(super) fn segment(&self, slot: u16) -> Option<Segment> {
        match self.places.get(usize::from(slot)) {
            None | Some(Place::Home) => Some(Segment::Home),
            Some(Place::Held(at)) => self.record.held.get(usize::from(*at)).map(segment_of),
            Some(Place::Closed) => None,
        }
    }

    /// Whether rows of the slot are written here.
    pub fn has(&self, slot: u16) -> bool {
        // Without any move the home slots are known to the map alone, and no other slot ever has a row.
        self.segment(slot).is_some()
    }

    /// The entry that made a segment's rows visible here; 0 for those that were here from the start.
    pub(super) fn activated(&self, segment: Segment) -> u64 {
        let held = self.record.held.iter().find(|held| segment_of(held) == segment);
        held.map_or(0, |held| held.activated_index)
    }

    /// The move that copies from here, and its range: what changes in it must be written down.
    pub(super) fn copying(&self) -> Option<(u64, u16, u16)> {
        let export = self.export().filter(|export| export.state() == SlotExportState::Copying)?;
        Some((export.id, export.first as u16, export.last as u16))
    }

    /// Whether the slot's rows are still being brought here.
    pub(super) fn is_importing(&self, slot: u16) -> bool {
        self.import().is_some_and(|import| covers(import.first, import.last, slot))
    }

    /// Where the runs of one segment in a range begin, in order.
    pub fn origins(&self, first: u16, last: u16) -> Vec<u32> {
        self.pieces(first, last).into_iter().map(|(first, _, _)| u32::from(first)).collect()
    }

    /// As it is written in, or was before it was closed.
    fn owner(&self, slot: u16) -> Segment {
        let held = self.record.held.iter().find(|held| covers(held.first, held.last, slot));
        held.map_or(Segment::Home, segment_of)
    }

    /// The runs of one segment in a range, in order: (first, last, segment).
    pub(super) fn pieces(&self, first: u16, last: u16) -> Vec<(u16, u16, Segment)> {
        let mut pieces: Vec<(u16, u16, Segment)> = Vec::new();
        for slot in first..=last {
            let segment = self.owner(slot);
            match pieces.last_mut() {
                Some((_, end, of)) if *of == segment => *end = slot,
                _ => pieces.push((slot, slot, segment)),
            }
        }
        pieces
    }

    pub fn claims(&self) -> Claims {
        let mut epochs = Vec::new();
        if !self.are_plain() {
            epochs = vec![UNNAMED; SLOTS];
            let mut set = |first: u32, last: u32, to: u64| {
                epochs.iter_mut().take(last as usize + 1).skip(first as usize).for_each(|epoch| *epoch = to);
            };
            self.record.given.iter().for_each(|given| set(given.first, given.last, NONE));
            self.record.held.iter().for_each(|held| set(held.first, held.last, held.epoch));
        }
        Claims { epochs }
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut ShardSlots)) {
        change(&mut self.record);
        self.place();
    }

    /// Takes a range out of what is held. Gives back the segments of which nothing is left.
    pub(super) fn give(&mut self, first: u16, last: u16, epoch: u64) -> Vec<Segment> {
        let mut gone = Vec::new();
        self.change(|record| {
            let (low, high) = (u32::from(first), u32::from(last));
            let before: Vec<HeldSlots> = std::mem::take(&mut record.held);
            for held in &before {
                if held.last < low || held.first > high {
                    record.held.push(*held);
                    continue;
                }
                if held.first < low {
                    record.held.push(HeldSlots { last: low - 1, ..*held });
                }
                if held.last > high {
                    record.held.push(HeldSlots { first: high + 1, ..*held });
                }
            }
            let left = |segment| record.held.iter().any(|held| segment_of(held) == segment);
            gone = before.iter().map(segment_of).filter(|segment| !left(*segment)).collect();
            gone.dedup();
            take_given(record, low, high);
            record.given.push(GivenSlots { first: low, last: high, epoch });
            record.given.sort_by_key(|given| given.first);
        });
        gone
    }

    /// Adds what an import brought.
    pub(super) fn hold(&mut self, import: &SlotImport, activated_index: u64) {
        self.change(|record| {
            take_given(record, import.first, import.last);
            let ends = import.origins.iter().skip(1).map(|next| next.saturating_sub(1)).chain([import.last]);
            for (first, last) in import.origins.iter().copied().zip(ends) {
                let SlotImport { id, epoch, .. } = *import;
                record.held.push(HeldSlots { id, origin: first, first, last, epoch, activated_index });
            }
            record.held.sort_by_key(|held| held.first);
        });
    }

    fn place(&mut self) {
        self.places.clear();
        let record = &self.record;
        if *record == ShardSlots::default() {
            return;
        }
        self.places.resize(SLOTS, Place::Home);
        let mut set = |first: u32, last: u32, to: Place| {
            self.places.iter_mut().take(last as usize + 1).skip(first as usize).for_each(|place| *place = to);
        };
        record.given.iter().for_each(|given| set(given.first, given.last, Place::Closed));
        for (at, held) in record.held.iter().enumerate() {
            set(held.first, held.last, Place::Held(at as u16));
        }
        if let Some(import) = &record.import {
            set(import.first, import.last, Place::Closed);
        }
        if let Some(export) = record.export.as_ref().filter(|export| export.state() != SlotExportState::Copying) {
            set(export.first, export.last, Place::Closed);
        }
    }
}

pub(super) fn covers(first: u32, last: u32, slot: u16) -> bool {
    (first..=last).contains(&u32::from(slot))
}

fn segment_of(held: &HeldSlots) -> Segment {
    Segment::Moved { id: held.id, origin: held.origin as u16 }
}

/// Takes a range out of what was given away.
fn take_given(record: &mut ShardSlots, first: u32, last: u32) {
    for given in std::mem::take(&mut record.given) {
        if given.last < first || given.first > last {
            record.given.push(given);
            continue;
        }
        if given.first < first {
            record.given.push(GivenSlots { last: first - 1, ..given });
        }
        if given.last > last {
            record.given.push(GivenSlots { first: last + 1, ..given });
        }
    }
}
