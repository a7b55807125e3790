//! Rows by entity key: the newest, or the newest at or before given times.
//!
//! Keys are sorted before they meet the database and answers are shown in the order asked. One call sees one moment.

use super::records::{RowRef, decode_history, decode_latest};
use super::tiers::{Tiers, file_of, has_slot};
use super::{HISTORY, LATEST, Shard};
use crate::Result;
use crate::engine::{Iter, IterOptions, Snapshot};
use crate::keys::{VERSION_BYTES, push_latest_key, push_version, split_latest_key};
use crate::segment::{Hit, SegmentSeeker, SegmentStore};
use cairn_proto::record::v1::Segment;
use std::ops::Range;
use std::sync::Arc;

/// Keys of one batched read; more are read in several, from one snapshot.
const KEYS_AT_ONCE: usize = 1024;

/// Lookups sorted and answered together; bounds the rows copied at once.
const LOOKUPS_AT_ONCE: usize = 16_384;

/// Lookups of a batch by which it is decided whether newest rows are looked at first.
const PROBES: usize = 4;

/// Steps before a seek is cheaper.
const STEPS_MAX: usize = 8;

/// Which row of an entity: the greatest (event time, created time, commit) within all three bounds, each inclusive.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Entity key.
    pub key: &'a [u8],
    pub event_us: i64,
    pub created_us: i64,
    /// `i64::MAX` = no limit.
    pub committed_us: i64,
}

impl Shard {
    /// Shows `visit` the newest row of each entity, by its place in `keys`, in that order.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; some may have been visited.
    pub fn latest(
        &self,
        storage_id: u32,
        keys: &[&[u8]],
        visit: &mut dyn FnMut(usize, Option<RowRef<'_>>),
    ) -> Result<()> {
        let db = self.group.db();
        if let [key] = keys {
            let mut full = Vec::with_capacity(64);
            push_latest_key(storage_id, key, &mut full);
            match db.get(LATEST, &full)? {
                Some(value) => visit(0, Some(decode_latest(&value)?)),
                None => visit(0, None),
            }
            return Ok(());
        }
        let snapshot = (keys.len() > KEYS_AT_ONCE).then(|| db.snapshot());
        let mut sorted = SortedKeys::default();
        for (chunk, keys) in keys.chunks(KEYS_AT_ONCE).enumerate() {
            sorted.fill(storage_id, keys.iter().copied());
            let values = match &snapshot {
                Some(snapshot) => snapshot.multi_get(LATEST, sorted.iter())?,
                None => db.multi_get(LATEST, sorted.iter())?,
            };
            let mut place_of = vec![0; keys.len()];
            sorted.order.iter().enumerate().for_each(|(place, &index)| place_of[index] = place);
            for (index, &place) in place_of.iter().enumerate() {
                let row = values.get(place).and_then(Option::as_ref).map(|value| decode_latest(value)).transpose()?;
                visit(chunk * KEYS_AT_ONCE + index, row);
            }
        }
        Ok(())
    }

    /// Shows `visit` the row of each lookup, by its place in `lookups`, in that order.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; some may have been visited.
    pub fn as_of(
        &self,
        storage_id: u32,
        lookups: &[Lookup<'_>],
        visit: &mut dyn FnMut(usize, Option<RowRef<'_>>),
    ) -> Result<()> {
        let db = self.group.db();
        // `latest` has all there is to know where no load is under way, before the snapshot and still after it.
        let before = self.tiers();
        let snapshot = db.snapshot();
        let mut finder = Finder::new(&snapshot)?;
        // Of a later moment than the iterator: what leaves the database meanwhile is in a segment by then.
        let tiers = self.tiers();
        let latest_knows = Arc::ptr_eq(&before, &tiers) && !tiers.has_unfinished_load(storage_id);
        let mut colder = Colder::new(self.segment_store(), &tiers, storage_id);
        let mut sorted = SortedKeys::default();
        for (chunk, lookups) in lookups.chunks(LOOKUPS_AT_ONCE).enumerate() {
            let first = chunk * LOOKUPS_AT_ONCE;
            if let ([lookup], true) = (lookups, colder.is_empty()) {
                sorted.fill(storage_id, [lookup.key]);
                finder.find(sorted.key(0), lookup, &mut |row| visit(first, row))?;
                continue;
            }
            sorted.fill(storage_id, lookups.iter().map(|lookup| lookup.key));
            // Within an entity newest first, as the rows stand.
            let newest_first = |index: usize| {
                let lookup = &lookups[index];
                (std::cmp::Reverse(lookup.event_us), std::cmp::Reverse(lookup.created_us))
            };
            let SortedKeys { bytes, keys, order } = &mut sorted;
            order.sort_by(|&a, &b| {
                let by_key = bytes[keys[a].clone()].cmp(&bytes[keys[b].clone()]);
                by_key.then_with(|| newest_first(a).cmp(&newest_first(b)))
            });
            let mut copies = Vec::new();
            let mut found: Vec<Option<(RowRef<'static>, Range<usize>)>> = vec![None; lookups.len()];
            let mut copy = |row: RowRef<'_>| {
                let start = copies.len();
                copies.extend_from_slice(row.packed);
                (without_packed(&row), start..copies.len())
            };
            let mut known = vec![false; lookups.len()];
            if latest_knows && !colder.is_empty() && are_recent(&snapshot, &sorted, lookups)? {
                for order in sorted.order.chunks(KEYS_AT_ONCE) {
                    let values = snapshot.multi_get(LATEST, order.iter().map(|&index| sorted.key(index)))?;
                    for (&index, value) in order.iter().zip(&values) {
                        if let Newest::Answers(row) = Newest::of(value.as_deref(), &lookups[index])? {
                            found[index] = row.map(&mut copy);
                            known[index] = true;
                        }
                    }
                }
            }
            let unknown = sorted.order.iter().copied().filter(|&index| !known[index]);
            for index in unknown.clone() {
                finder.find(sorted.key(index), &lookups[index], &mut |row| found[index] = row.map(&mut copy))?;
            }
            for index in unknown {
                let hot = found[index].as_ref().map(|(row, _)| row.version());
                if let Some(hit) = colder.find(sorted.key(index), &lookups[index], hot)? {
                    let start = copies.len();
                    hit.packed(&mut copies)?;
                    found[index] = Some((hit.version(), start..copies.len()));
                }
            }
            for (index, found) in found.into_iter().enumerate() {
                let row = found.map(|(row, packed)| RowRef { packed: &copies[packed], ..row });
                visit(first + index, row);
            }
        }
        Ok(())
    }
}

/// What an entity's newest row says of a lookup.
enum Newest<'a> {
    /// It is the answer; without any there is no row at all.
    Answers(Option<RowRef<'a>>),
    /// An older one may be.
    IsTooNew,
}

impl<'a> Newest<'a> {
    /// - `value`: of the entity in `latest`
    fn of(value: Option<&'a [u8]>, lookup: &Lookup<'_>) -> Result<Self> {
        let Some(row) = value.map(decode_latest).transpose()? else { return Ok(Self::Answers(None)) };
        let within = row.event_us <= lookup.event_us
            && row.created_us <= lookup.created_us
            && row.committed_us <= lookup.committed_us;
        Ok(if within { Self::Answers(Some(row)) } else { Self::IsTooNew })
    }
}

/// Whether newest rows answer most of the lookups, by a few of them.
fn are_recent(snapshot: &Snapshot<'_>, sorted: &SortedKeys, lookups: &[Lookup<'_>]) -> Result<bool> {
    let step = sorted.order.len().div_ceil(PROBES).max(1);
    let (mut answered, mut asked) = (0, 0);
    for &index in sorted.order.iter().step_by(step) {
        let value = snapshot.get(LATEST, sorted.key(index))?;
        asked += 1;
        answered += usize::from(matches!(Newest::of(value.as_deref(), &lookups[index])?, Newest::Answers(_)));
    }
    Ok(answered * 2 > asked)
}

fn without_packed(row: &RowRef<'_>) -> RowRef<'static> {
    let RowRef { event_us, created_us, commit, committed_us, .. } = *row;
    RowRef { event_us, created_us, commit, committed_us, packed: &[] }
}

/// `latest` keys of a request, and their ascending order.
#[derive(Default)]
struct SortedKeys {
    bytes: Vec<u8>,
    keys: Vec<Range<usize>>,
    order: Vec<usize>,
}

impl SortedKeys {
    fn fill<'k>(&mut self, storage_id: u32, entity_keys: impl IntoIterator<Item = &'k [u8]>) {
        self.bytes.clear();
        self.keys.clear();
        for entity_key in entity_keys {
            let start = self.bytes.len();
            push_latest_key(storage_id, entity_key, &mut self.bytes);
            self.keys.push(start..self.bytes.len());
        }
        self.order.clear();
        self.order.extend(0..self.keys.len());
        let Self { bytes, keys, order } = self;
        order.sort_by(|&a, &b| bytes[keys[a].clone()].cmp(&bytes[keys[b].clone()]));
    }

    fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.keys[index].clone()]
    }

    /// In ascending order.
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.order.iter().map(|&index| self.key(index))
    }
}

/// The segments that a batch of lookups may need.
struct Colder<'a> {
    store: Option<&'a SegmentStore>,
    /// That with the newest rows first: a hit there spares the others. Opened when first needed.
    segments: Vec<(&'a Segment, Option<SegmentSeeker<'a>>)>,
}

impl<'a> Colder<'a> {
    fn new(store: Option<&'a SegmentStore>, tiers: &'a Tiers, storage_id: u32) -> Self {
        let mut segments: Vec<_> = tiers.of(storage_id, 0, u16::MAX).map(|it| (it, None)).collect();
        segments.sort_by_key(|(it, _)| std::cmp::Reverse(it.event_max_us));
        Self { store, segments }
    }

    fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// A row that wins over `best`, the version of one found elsewhere. `prefix` is the entity's `latest` key.
    fn find(&mut self, prefix: &[u8], lookup: &Lookup<'_>, best: Option<(i64, i64, u64)>) -> Result<Option<Hit>> {
        let (mut best, mut winner) = (best, None);
        let slot = split_latest_key(prefix).map_or(0, |(slot, ..)| slot);
        for (segment, seeker) in &mut self.segments {
            let newer = best.is_none_or(|(event_us, ..)| segment.event_max_us >= event_us);
            if !newer || segment.event_min_us > lookup.event_us || !has_slot(segment, slot) {
                continue;
            }
            let seeker = match seeker {
                Some(seeker) => seeker,
                None => seeker.insert(SegmentSeeker::new(super::store(self.store)?, &file_of(segment)?)?),
            };
            if let Some(hit) = seeker.find(prefix, lookup)?
                && Some(hit.version().version()) > best
            {
                best = Some(hit.version().version());
                winner = Some(hit);
            }
        }
        Ok(winner)
    }
}

/// One iterator over `history` for many lookups. Cheapest when they come in key order.
struct Finder<'a> {
    iter: Iter<'a>,
    /// What was last sought.
    target: Vec<u8>,
    /// Length of the entity's part of `target`; 0 before the first seek.
    prefix: usize,
    /// The iterator stands at the first row at or after `target`.
    exact: bool,
}

impl<'a> Finder<'a> {
    fn new(snapshot: &'a Snapshot<'_>) -> Result<Self> {
        let iter = snapshot.iter(HISTORY, IterOptions { same_prefix: true, ..IterOptions::default() })?;
        Ok(Self { iter, target: Vec::new(), prefix: 0, exact: false })
    }

    /// `prefix` is the entity's `latest` key.
    fn find(&mut self, prefix: &[u8], lookup: &Lookup<'_>, visit: &mut dyn FnMut(Option<RowRef<'_>>)) -> Result<()> {
        self.go_to(prefix, lookup.event_us, lookup.created_us)?;
        let mut steps = 0;
        while let Some((key, value)) = self.iter.entry() {
            if key.len() != prefix.len() + VERSION_BYTES || !key.starts_with(prefix) {
                break;
            }
            let row = decode_history(key, value)?;
            if row.created_us <= lookup.created_us && row.committed_us <= lookup.committed_us {
                visit(Some(row));
                return Ok(());
            }
            self.exact = false;
            if row.created_us > lookup.created_us && steps >= STEPS_MAX {
                // Many corrections of this event: jump over them.
                let event_us = row.event_us;
                self.seek(prefix, event_us, lookup.created_us)?;
                self.exact = false;
                steps = 0;
            } else {
                self.iter.advance()?;
                steps += 1;
            }
        }
        visit(None);
        Ok(())
    }

    /// Moves to the first row at or before these times: by stepping when it is likely near, else by a seek.
    fn go_to(&mut self, prefix: &[u8], event_us: i64, created_us: i64) -> Result<()> {
        let near = self.exact && self.prefix > 0 && self.target.get(..self.prefix) == Some(prefix);
        if !near {
            return self.seek(prefix, event_us, created_us);
        }
        let mut target = Vec::with_capacity(self.target.len());
        target.extend_from_slice(prefix);
        push_version(event_us, created_us, u64::MAX, &mut target);
        if target < self.target {
            return self.seek(prefix, event_us, created_us);
        }
        for _ in 0..STEPS_MAX {
            match self.iter.entry() {
                Some((key, _)) if *key < *target => self.iter.advance()?,
                _ => {
                    self.target = target;
                    return Ok(());
                }
            };
        }
        self.seek(prefix, event_us, created_us)
    }

    fn seek(&mut self, prefix: &[u8], event_us: i64, created_us: i64) -> Result<()> {
        self.target.clear();
        self.target.extend_from_slice(prefix);
        push_version(event_us, created_us, u64::MAX, &mut self.target);
        self.prefix = prefix.len();
        self.iter.seek(&self.target)?;
        self.exact = true;
        Ok(())
    }
}
