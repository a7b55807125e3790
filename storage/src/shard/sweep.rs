//! Many as-of lookups of one view in a single walk over its history, as a point-in-time join asks them.
//!
//! Lookups are sorted as history lies, so that the database and every segment are walked once, from one end to the
//! other. What lies in segments stays in columns: keys are compared once an entity, versions are sought among the times
//! of the entity's rows, and of the features only those asked for are read, where a row of the row group is an answer.

use super::merged::history_iter;
use super::records::decode_history;
use super::tiers::{file_of, has_slot};
use super::{Shard, store};
use crate::engine::Iter;
use crate::keys::{EntityKeys, VERSION_BYTES, push_prefix, push_version, slot_of, split_history_key};
use crate::row::{RowDecoder, RowSchema};
use crate::segment::{GroupColumns, SegmentFile};
use crate::{Error, Result};
use arrow_array::{ArrayRef, UInt32Array};
use cairn_proto::record::v1::Segment;
use std::cmp::{Ordering, Reverse};
use std::ops::Range;
use std::sync::Arc;

/// Steps before a seek is cheaper.
const STEPS_MAX: usize = 8;

/// What all lookups of a sweep share.
#[derive(Clone, Copy)]
pub struct Sweep<'a> {
    pub storage_id: u32,
    pub schema: &'a RowSchema,
    /// Features to answer with.
    pub projection: &'a [usize],
    pub keys: &'a EntityKeys,
    /// Latest commit time; `i64::MAX` = no limit.
    pub committed_us: i64,
    /// Rows with event times before it may be taken for none.
    pub oldest_us: i64,
}

/// One lookup: the greatest (event time, created time, commit) within its bounds, each inclusive.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Sorts as history does, as far as it goes: slot, first 8 bytes of the entity key, event time from the newest on.
    order: u128,
    pub event_us: i64,
    pub created_us: i64,
    /// Its place among the keys.
    pub row: u32,
    pub slot: u16,
    /// The key goes on behind its first 8 bytes.
    long: bool,
}

/// Bits of the event time in [`Target::order`].
const TIME_BITS: u32 = 48;

impl Target {
    /// `None` when the row has no key.
    pub fn new(keys: &EntityKeys, row: u32, event_us: i64, created_us: i64) -> Option<Self> {
        let key = keys.get(row as usize)?;
        let mut head = [0; 8];
        head.iter_mut().zip(key).for_each(|(head, byte)| *head = *byte);
        let (slot, long) = (slot_of(key), key.len() > head.len());
        let newest_first = !(event_us.cast_unsigned() ^ (1 << 63)) >> (u64::BITS - TIME_BITS);
        let entity = u128::from(slot) << u64::BITS | u128::from(u64::from_be_bytes(head));
        Some(Self { order: entity << TIME_BITS | u128::from(newest_first), event_us, created_us, row, slot, long })
    }

    fn key<'k>(&self, keys: &'k EntityKeys) -> &'k [u8] {
        keys.get(self.row as usize).unwrap_or_default()
    }

    fn is_of_same(&self, other: &Self, keys: &EntityKeys) -> bool {
        // No key is the beginning of another, so short ones are told apart by their first bytes alone.
        self.order >> TIME_BITS == other.order >> TIME_BITS && (!self.long || self.key(keys) == other.key(keys))
    }

    fn compare(&self, other: &Self, keys: &EntityKeys) -> Ordering {
        let newest_first = |it: &Self| (Reverse(it.event_us), Reverse(it.created_us), it.row);
        let by_entity = match self.long {
            true => (self.order >> TIME_BITS)
                .cmp(&(other.order >> TIME_BITS))
                .then_with(|| self.key(keys).cmp(other.key(keys))),
            false => self.order.cmp(&other.order),
        };
        by_entity.then_with(|| newest_first(self).cmp(&newest_first(other)))
    }
}

/// Sorts lookups as history lies: by slot and entity, newest first.
pub fn sort_targets(targets: &mut [Target], keys: &EntityKeys) {
    targets.sort_unstable_by(|a, b| a.compare(b, keys));
}

/// Where the answer to a lookup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub event_us: i64,
    created_us: i64,
    commit: u64,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is no row within the bounds, or one that deletes the entity.
    Nowhere,
    /// A row of a part of the answer.
    In { part: u32, row: u32 },
}

impl Found {
    const NOTHING: Self = Self { event_us: i64::MIN, created_us: i64::MIN, commit: 0, place: Place::Nowhere };

    fn version(&self) -> (i64, i64, u64) {
        (self.event_us, self.created_us, self.commit)
    }
}

/// The answers of a sweep.
pub struct Swept {
    /// One a lookup, in its order.
    pub found: Vec<Found>,
    /// The features of the rows that answer, in parts of any number of rows; of each the columns asked for.
    pub parts: Vec<Vec<ArrayRef>>,
}

impl Shard {
    /// Answers sorted lookups ([`sort_targets`]). Of an entity's lookups none may have a later created time than one
    /// with a later event time.
    ///
    /// # Errors
    /// `Unavailable` while a segment is not on this node; `Corrupt`, `Io`.
    pub fn sweep(&self, ask: &Sweep<'_>, targets: &[Target]) -> Result<Swept> {
        let (Some(first), Some(last)) = (targets.first(), targets.last()) else {
            return Ok(Swept { found: Vec::new(), parts: Vec::new() });
        };
        let db = self.group.db();
        // Of an earlier moment than the list of segments: what leaves the database meanwhile is in a segment by then.
        let iter = history_iter(&db, None)?;
        let tiers = self.tiers();
        let mut walk = Walk { ask, targets, found: vec![Found::NOTHING; targets.len()], parts: Vec::new() };
        walk.database(iter)?;
        let hot = walk.parts.first().and_then(|part| part.first()).is_some_and(|column| !column.is_empty());
        let mut segments: Vec<&Segment> = tiers.of(ask.storage_id, first.slot, last.slot).collect();
        // That with the newest rows first: what is found there spares the others.
        segments.sort_by_key(|it| Reverse(it.event_max_us));
        for segment in &segments {
            if segment.event_max_us < ask.oldest_us {
                continue;
            }
            let file = store(self.segment_store())?.open(&file_of(segment)?)?;
            let alone = !hot && segments.iter().all(|other| other.id == segment.id || !may_tie(segment, other));
            walk.segment(segment, &file, alone)?;
        }
        Ok(Swept { found: walk.found, parts: walk.parts })
    }
}

/// Whether both may have rows of an entity and event time.
fn may_tie(a: &Segment, b: &Segment) -> bool {
    let slots = a.first_slot <= b.last_slot && b.first_slot <= a.last_slot;
    slots && a.event_min_us <= b.event_max_us && b.event_min_us <= a.event_max_us
}

struct Walk<'a> {
    ask: &'a Sweep<'a>,
    targets: &'a [Target],
    found: Vec<Found>,
    parts: Vec<Vec<ArrayRef>>,
}

impl Walk<'_> {
    /// The lookups of the entity of lookup `from`.
    fn entity(&self, from: usize) -> Range<usize> {
        let Some(first) = self.targets.get(from) else { return from..from };
        let rest = self.targets.get(from..).unwrap_or_default();
        let same = rest.iter().take_while(|it| it.is_of_same(first, self.ask.keys));
        from..from + same.count()
    }

    /// The first part: what the database has.
    fn database(&mut self, mut iter: Iter<'_>) -> Result<()> {
        let mut decoder = RowDecoder::new(self.ask.schema, self.ask.projection, 0);
        let (mut prefix, mut target) = (Vec::new(), Vec::new());
        let mut sought = false;
        let mut at = 0;
        while let Some(first) = self.targets.get(at) {
            let entity = self.entity(at);
            at = entity.end;
            prefix.clear();
            push_prefix(first.slot, self.ask.storage_id, &mut prefix);
            prefix.extend_from_slice(first.key(self.ask.keys));
            // Where the iterator stands already there is nothing of this entity, or its rows.
            match iter.entry() {
                None if sought => break,
                Some((key, _)) if sought && key > &prefix[..] => {
                    if !key.starts_with(&prefix) {
                        continue;
                    }
                }
                _ => {
                    target_of(&prefix, first, &mut target);
                    iter.seek(&target)?;
                    sought = true;
                }
            }
            let mut hit = None;
            for place in entity {
                let (Some(lookup), Some(found)) = (self.targets.get(place), self.found.get_mut(place)) else { break };
                if step(&mut iter, &prefix, lookup, self.ask.committed_us, &mut target)? {
                    hit = None;
                }
                let Some((key, value)) = iter.entry().filter(|(key, _)| is_of(key, &prefix)) else { break };
                let row = decode_history(key, value)?;
                let answer = match hit {
                    Some(place) => place,
                    None if row.is_deletion() => Place::Nowhere,
                    None => {
                        decoder.push(row.packed)?;
                        Place::In { part: 0, row: number(decoder.len() - 1)? }
                    }
                };
                hit = Some(answer);
                let (event_us, created_us, commit) = row.version();
                *found = Found { event_us, created_us, commit, place: answer };
            }
        }
        self.parts.push(decoder.finish()?);
        Ok(())
    }

    /// `alone`: no other source can have a row of the same entity and times.
    fn segment(&mut self, segment: &Segment, file: &Arc<SegmentFile>, alone: bool) -> Result<()> {
        let entity_of = |number: usize| {
            let key = split_history_key(file.first_key(number)?)?;
            Some((key.slot, key.entity_key))
        };
        let mut from = 0;
        // Lookups before this entity, or up to it.
        let before = |from: usize, entity: Option<(u16, &[u8])>, inclusive: bool| {
            let Some(entity) = entity else { return self.targets.len() };
            from + self.targets.get(from..).unwrap_or_default().partition_point(|it| {
                let here = (it.slot, it.key(self.ask.keys));
                if inclusive { here <= entity } else { here < entity }
            })
        };
        let mut pieces = Vec::new();
        for number in 0..file.groups() {
            from = before(from, entity_of(number), false);
            // The next one may begin in the middle of an entity that begins here.
            let to = before(from, entity_of(number + 1), true);
            if from < to {
                pieces.push((number, from..to));
            }
        }
        for (number, range) in pieces {
            self.group(segment, &file.columns(number)?, range, alone)?;
        }
        Ok(())
    }

    fn group(&mut self, segment: &Segment, group: &GroupColumns, range: Range<usize>, alone: bool) -> Result<()> {
        let commits = if alone { None } else { Some(group.commits()?) };
        let committed = group.committed_above(self.ask.committed_us)?;
        let hidden =
            |row: usize| committed.as_ref().is_some_and(|at| at.get(row).is_none_or(|at| *at > self.ask.committed_us));
        // Answers, and of which lookups.
        let mut rows: Vec<u32> = Vec::new();
        let mut won: Vec<(usize, u32)> = Vec::new();
        let (mut entity, mut at) = (0, range.start);
        while at < range.end && entity < group.entities() {
            let Some(first) = self.targets.get(at) else { break };
            match group.entity(entity).cmp(&(first.slot, first.key(self.ask.keys))) {
                Ordering::Less => {
                    entity += 1;
                    continue;
                }
                Ordering::Greater => {
                    at = self.entity(at).end;
                    continue;
                }
                Ordering::Equal => {}
            }
            let lookups = self.entity(at);
            at = lookups.end;
            let mut rest = group.rows(entity);
            entity += 1;
            if !has_slot(segment, first.slot) {
                continue;
            }
            for place in lookups {
                let (Some(lookup), Some(found)) = (self.targets.get(place), self.found.get_mut(place)) else { break };
                if found.event_us > segment.event_max_us {
                    continue;
                }
                let times = group.event_us.get(rest.clone()).unwrap_or_default();
                rest.start += times.partition_point(|event_us| *event_us > lookup.event_us);
                let too_late = |row: usize| group.created_us.get(row).is_some_and(|at| *at > lookup.created_us);
                while !rest.is_empty() && (too_late(rest.start) || hidden(rest.start)) {
                    rest.start += 1;
                }
                let row = rest.start;
                let (Some(event_us), Some(created_us), false) =
                    (group.event_us.get(row).copied(), group.created_us.get(row).copied(), rest.is_empty())
                else {
                    break;
                };
                let commit = commits.as_ref().and_then(|commits| commits.get(row).copied()).unwrap_or_default();
                let wins = (event_us, created_us, commit) > found.version() || *found == Found::NOTHING;
                if wins {
                    let row = number(row)?;
                    if rows.last() != Some(&row) {
                        rows.push(row);
                    }
                    won.push((place, number(rows.len() - 1)?));
                    *found = Found { event_us, created_us, commit, place: Place::Nowhere };
                }
            }
        }
        if won.is_empty() {
            return Ok(());
        }
        let deleted = group.deleted()?;
        let part = number(self.parts.len())?;
        for (place, row) in won {
            let deletes = |deleted: &arrow_array::BooleanArray| {
                rows.get(row as usize).is_some_and(|row| deleted.value(*row as usize))
            };
            if let Some(found) = self.found.get_mut(place).filter(|_| !deleted.as_ref().is_some_and(deletes)) {
                found.place = Place::In { part, row };
            }
        }
        let rows = UInt32Array::from(rows);
        let taken = group.features(self.ask.projection)?;
        let taken = taken.iter().map(|column| arrow_select::take::take(column, &rows, None));
        self.parts.push(taken.collect::<Result<_, _>>().map_err(|error| Error::Internal(error.to_string()))?);
        Ok(())
    }
}

fn number(at: usize) -> Result<u32> {
    u32::try_from(at).map_err(|_| Error::Internal("too many rows for one sweep".to_owned()))
}

fn is_of(history_key: &[u8], prefix: &[u8]) -> bool {
    history_key.len() == prefix.len() + VERSION_BYTES && history_key.starts_with(prefix)
}

fn target_of(prefix: &[u8], lookup: &Target, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(prefix);
    push_version(lookup.event_us, lookup.created_us, u64::MAX, out);
}

/// Moves on to the row that answers, or past the entity's rows; whether it moved.
fn step(iter: &mut Iter<'_>, prefix: &[u8], lookup: &Target, committed_us: i64, target: &mut Vec<u8>) -> Result<bool> {
    let (mut moved, mut steps) = (false, 0);
    target_of(prefix, lookup, target);
    loop {
        let Some((key, value)) = iter.entry() else { return Ok(true) };
        if !is_of(key, prefix) {
            return Ok(true);
        }
        let before = key < &target[..];
        if !before {
            let row = decode_history(key, value)?;
            if row.created_us <= lookup.created_us && row.committed_us <= committed_us {
                return Ok(moved);
            }
            if row.created_us > lookup.created_us && steps >= STEPS_MAX {
                // Many corrections of this event: jump over them.
                target.truncate(prefix.len());
                push_version(row.event_us, lookup.created_us, u64::MAX, target);
            }
        }
        moved = true;
        if steps >= STEPS_MAX && key < &target[..] {
            iter.seek(target)?;
            steps = 0;
        } else {
            iter.advance()?;
            steps += 1;
        }
    }
}
