//! Committed commands to one atomic write: decode, deduplicate, decide the last writers, write.
//!
//! No clock, no chance, no configuration: the same entries after the same state give the same bytes and outcomes on
//! every replica, however they are cut into calls. What is wrong with a command's content is a refusal, an outcome
//! like any other; an `Err` stops this replica.

use super::dedup::{Dedup, Seen};
use super::merged::{history_iter, seek_slot};
use super::records::{ChangeRef, ProducerKey, SLOTS_KEY, STATE_KEY, TIERS_KEY, change_key, changes_of, encode_state};
use super::rows::Rows;
use super::slots::{Segment, Slots};
use super::tiers::{Tiers, Trimmed};
use super::{COMMAND_VERSION, HISTORY, SEQUENCE_WINDOW, SYSTEM, UPSERT_VERSION};
use crate::block::read_block;
use crate::engine::{Batch, Cf, Db, end_of_prefix};
use crate::keys::{push_prefix, slot_of};
use crate::replica::{Applied, Entry};
use crate::{Fatal, Result};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{
    AppliedSequence, Refusal, ShardCommand, ShardOutcome, UpsertRows, shard_command::Change,
};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest producer name.
const PRODUCER_BYTES_MAX: usize = 256;

/// What an apply leads to, not yet written.
pub(super) struct Prepared<'a> {
    pub batch: Batch<'a>,
    pub outcomes: Vec<Vec<u8>>,
    pub applied: Applied,
    pub slots: Arc<Slots>,
    pub tiers: Arc<Tiers>,
    /// Rows by storage id that came when segments already had what is as old.
    pub late: BTreeMap<u32, u64>,
}

pub(super) fn apply<'a>(
    db: &'a Db,
    before: Applied,
    slots: Arc<Slots>,
    tiers: Arc<Tiers>,
    entries: &[Entry<'_>],
    position: &[u8],
) -> Result<Prepared<'a>, Fatal> {
    let (decoded, applied) = decode(before, entries)?;
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut working = Working::new(db, slots, tiers);
    for entry in &decoded {
        let outcome = match &entry.ask {
            Ask::Nothing => None,
            Ask::Refused(message) => Some(refused(message.clone())),
            Ask::Tick => Some(ShardOutcome::default()),
            Ask::Upsert(upsert) => Some(working.take_rows(upsert, entry.at, outcomes.len())?),
            Ask::Slots(change) => Some(working.change_slots(change, entry.at)?),
        };
        outcomes.push(outcome.map(|mut outcome| {
            outcome.applied_us = entry.at.time_us;
            if outcome.index == 0 {
                outcome.index = entry.at.index;
            }
            outcome
        }));
    }
    let mut batch = db.batch()?;
    let late = std::mem::take(&mut working.late);
    let (slots, tiers) = working.write(&mut batch, &mut outcomes)?;
    batch.put(SYSTEM, STATE_KEY, &encode_state(applied, position));
    let encode = |outcome: Option<ShardOutcome>| outcome.map(|outcome| outcome.encode_to_vec()).unwrap_or_default();
    Ok(Prepared { batch, outcomes: outcomes.into_iter().map(encode).collect(), applied, slots, tiers, late })
}

struct Decoded {
    at: Applied,
    ask: Ask,
}

enum Ask {
    /// Applied before, or of no concern to the shard.
    Nothing,
    Refused(String),
    Tick,
    Upsert(UpsertRows),
    /// A step of a move of slots.
    Slots(Box<Change>),
}

fn decode(before: Applied, entries: &[Entry<'_>]) -> Result<(Vec<Decoded>, Applied), Fatal> {
    let mut at = before;
    let mut decoded = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.index <= at.index {
            decoded.push(Decoded { at, ask: Ask::Nothing });
            continue;
        }
        at.index = entry.index;
        let ask = match entry.command.map(ShardCommand::decode) {
            None => Ask::Nothing,
            Some(Err(error)) => Ask::Refused(format!("the shard command does not decode: {error}")),
            Some(Ok(command)) if !(UPSERT_VERSION..=COMMAND_VERSION).contains(&command.version) => {
                return Err(Fatal(format!(
                    "log entry {} holds a shard command of version {}, and this node knows up to version {COMMAND_VERSION}: \
                     run the newer version of cairnd that the others run",
                    entry.index, command.version
                )));
            }
            Some(Ok(command)) => {
                // The leader's clock may be behind its predecessor's.
                at.time_us = at.time_us.max(command.proposed_at_us);
                match command.change {
                    Some(Change::UpsertRows(upsert)) => Ask::Upsert(upsert),
                    Some(Change::TimeTick(_)) => Ask::Tick,
                    // Who knows version 1 only sees no change in one of these.
                    Some(change) if command.version > UPSERT_VERSION => {
                        if let Change::ActivateSlots(ask) = &change {
                            at.time_us = at.time_us.max(ask.time_floor_us);
                        }
                        Ask::Slots(Box::new(change))
                    }
                    _ => Ask::Refused("the shard command holds no change".to_owned()),
                }
            }
        };
        decoded.push(Decoded { at, ask });
    }
    Ok((decoded, at))
}

fn refused(message: String) -> ShardOutcome {
    let kind = ErrorKind::InvalidArgument.as_str().to_owned();
    ShardOutcome { refused: Some(Refusal { kind, message }), ..ShardOutcome::default() }
}

/// Everything that the entries of one apply change; later entries see what earlier ones did.
pub(super) struct Working<'c, 'd> {
    pub slots: Arc<Slots>,
    pub slots_changed: bool,
    pub dedup: Dedup<'d>,
    pub rows: Rows<'c>,
    db: &'d Db,
    /// What a copy under way needs: (move, key, value).
    changes: Vec<(u64, Vec<u8>, Vec<u8>)>,
    /// Deleted before anything is put.
    cleared: Vec<(Cf, Vec<u8>, Vec<u8>)>,
    pub tiers: Arc<Tiers>,
    pub tiers_changed: bool,
    /// History keys that are in a segment.
    trimmed: Vec<Vec<u8>>,
    late: BTreeMap<u32, u64>,
}

impl<'c, 'd> Working<'c, 'd> {
    fn new(db: &'d Db, slots: Arc<Slots>, tiers: Arc<Tiers>) -> Self {
        Self {
            slots,
            slots_changed: false,
            dedup: Dedup::new(db),
            rows: Rows::default(),
            db,
            changes: Vec::new(),
            cleared: Vec::new(),
            tiers,
            tiers_changed: false,
            trimmed: Vec::new(),
            late: BTreeMap::new(),
        }
    }

    /// Takes the rows of one command, or says why not. `slot`: the place of its outcome.
    fn take_rows(&mut self, upsert: &'c UpsertRows, at: Applied, slot: usize) -> Result<ShardOutcome> {
        let UpsertRows { storage_id, producer, sequence, .. } = upsert;
        if producer.len() > PRODUCER_BYTES_MAX {
            return Ok(refused(format!(
                "the producer's name has {} bytes, over the limit of {PRODUCER_BYTES_MAX}",
                producer.len()
            )));
        }
        let segments = match self.segments(upsert) {
            Ok(Some(segments)) => segments,
            Ok(None) => return Ok(moved()),
            Err(error) => return Ok(refused(error.to_string())),
        };
        let mut outcome = ShardOutcome::default();
        let mut fresh: Vec<(Segment, u32)> = Vec::with_capacity(segments.len());
        for (segment, rows) in segments {
            if producer.is_empty() {
                fresh.push((segment, rows));
                continue;
            }
            match self.dedup.check(&ProducerKey::new(segment, *storage_id, producer), *sequence)? {
                Seen::No => fresh.push((segment, rows)),
                Seen::Yes(first) => {
                    outcome.rows_duplicate += if self.slots.are_plain() { first.rows } else { rows };
                    outcome.index = outcome.index.max(first.index).max(self.slots.activated(segment));
                }
                Seen::Unknown { highest } => {
                    return Ok(refused(format!(
                        "sequence {sequence} of producer `{producer}` is below the window: its highest is {highest}, and \
                         only the last {SEQUENCE_WINDOW} sequences are remembered; continue above {highest}"
                    )));
                }
            }
        }
        if fresh.is_empty() {
            return Ok(outcome);
        }
        outcome.index = 0; // this entry's own
        let slots = &self.slots;
        let wanted = |slot| {
            slots.are_plain() || slots.segment(slot).is_some_and(|segment| fresh.iter().any(|(it, _)| *it == segment))
        };
        let commit = at.index.saturating_add(slots.commit_offset());
        let before = self.rows.len();
        match self.rows.take(upsert, at, commit, slot, &wanted) {
            Ok(taken) => outcome.rows_accepted = taken,
            Err(error) => return Ok(refused(error.to_string())),
        }
        if !producer.is_empty() {
            for (segment, rows) in &fresh {
                let rows = if slots.are_plain() { outcome.rows_accepted } else { *rows };
                let applied = AppliedSequence { sequence: *sequence, index: at.index, rows };
                self.dedup.add(ProducerKey::new(*segment, *storage_id, producer), applied);
            }
        }
        self.note_changes(upsert, at, before, &fresh);
        self.note_late(*storage_id, before);
        Ok(outcome)
    }

    /// Counts the rows from `before` on that came too late for the segments there are.
    fn note_late(&mut self, storage_id: u32, before: usize) {
        let Some(edge_us) =
            self.tiers.of(storage_id, 0, u16::MAX).filter(|it| it.load.is_none()).map(|it| it.before_us).max()
        else {
            return;
        };
        let late = (before..self.rows.len()).filter(|row| self.rows.event_us(*row) < edge_us).count();
        if late > 0 {
            *self.late.entry(storage_id).or_default() += late as u64;
        }
    }

    /// The segments that a command's rows are in, with how many rows each; `None` when some slot takes none.
    fn segments(&self, upsert: &UpsertRows) -> Result<Option<Vec<(Segment, u32)>>> {
        if self.slots.are_plain() {
            return Ok(Some(vec![(Segment::Home, 0)]));
        }
        let mut segments: Vec<(Segment, u32)> = Vec::new();
        for row in read_block(&upsert.rows) {
            let Some(segment) = self.slots.segment(slot_of(row?.entity_key)) else { return Ok(None) };
            match segments.iter_mut().find(|(known, _)| *known == segment) {
                Some((_, rows)) => *rows += 1,
                None => segments.push((segment, 1)),
            }
        }
        if segments.is_empty() {
            segments.push((Segment::Home, 0));
        }
        Ok(Some(segments))
    }

    /// Writes down what a copy under way needs of the rows from `before` on, and of their sequence.
    fn note_changes(&mut self, upsert: &UpsertRows, at: Applied, before: usize, fresh: &[(Segment, u32)]) {
        let copying = self.slots.copying();
        let Some((id, first, last)) = copying else { return };
        let mut number = 0;
        let mut note = |change: ChangeRef<'_>| {
            self.changes.push((id, change_key(id, at.index, number), change.encode()));
            number += 1;
        };
        let mut history_key = Vec::new();
        for row in before..self.rows.len() {
            if (first..=last).contains(&self.rows.slot(row)) {
                self.rows.history_key(row, &mut history_key);
                note(ChangeRef::Row { history_key: &history_key });
            }
        }
        if upsert.producer.is_empty() {
            return;
        }
        for (origin, _, segment) in self.slots.pieces(first, last) {
            if let Some((_, rows)) = fresh.iter().find(|(it, _)| *it == segment) {
                let producer = ProducerKey::new(segment, upsert.storage_id, &upsert.producer).name;
                note(ChangeRef::Sequence { origin, sequence: upsert.sequence, rows: *rows, producer: &producer });
            }
        }
    }

    /// Deletes the rows of a range of slots.
    pub(super) fn purge_rows(&mut self, first: u16, last: u16) {
        self.rows.purge(first, last);
        let (from, to) = (first.to_be_bytes().to_vec(), last.saturating_add(1).to_be_bytes().to_vec());
        for cf in [super::LATEST, super::HISTORY] {
            self.cleared.push((cf, from.clone(), to.clone()));
        }
        self.forget_slots(first, last);
    }

    /// Deletes rows that a segment holds: on disk, and those that this very apply would write.
    pub(super) fn trim_rows(&mut self, trimmed: Trimmed) -> Result<()> {
        let mut iter = history_iter(self.db, Some(trimmed.to.clone()))?;
        let (storage_id, mut slots) = trimmed.slots();
        while let Some(slot) = seek_slot(&mut iter, storage_id, slots.clone(), &trimmed.from)? {
            let mut prefix = Vec::new();
            push_prefix(slot, storage_id, &mut prefix);
            while let Some((key, _)) = iter.entry().filter(|(key, _)| key.starts_with(&prefix)) {
                if trimmed.has(key) {
                    self.trimmed.push(key.to_vec());
                }
                iter.advance()?;
            }
            slots.start = slot.saturating_add(1);
        }
        self.rows.trim(trimmed);
        Ok(())
    }

    /// Deletes the sequences of a segment that is gone for good.
    pub(super) fn purge_segment(&mut self, segment: Segment) {
        self.dedup.forget(segment);
        for prefix in [super::records::states_of(segment), super::records::sequences_of(segment)] {
            self.clear_prefix(prefix);
        }
    }

    /// Deletes the changes that were written down for a copy.
    pub(super) fn purge_changes(&mut self, id: u64) {
        self.changes.retain(|(of, ..)| *of != id);
        self.clear_prefix(changes_of(id));
    }

    fn clear_prefix(&mut self, prefix: Vec<u8>) {
        if let Some(end) = end_of_prefix(&prefix) {
            self.cleared.push((SYSTEM, prefix, end));
        }
    }

    fn write(self, batch: &mut Batch<'_>, outcomes: &mut [Option<ShardOutcome>]) -> Result<(Arc<Slots>, Arc<Tiers>)> {
        for (cf, from, to) in &self.cleared {
            batch.delete_range(*cf, from, to);
        }
        self.trimmed.iter().for_each(|key| batch.delete(HISTORY, key));
        self.rows.write(self.db, batch, outcomes)?;
        self.dedup.write(batch);
        for (_, key, value) in &self.changes {
            batch.put(SYSTEM, key, value);
        }
        if self.slots_changed {
            batch.put(SYSTEM, SLOTS_KEY, &self.slots.encode());
        }
        if self.tiers_changed {
            batch.put(SYSTEM, TIERS_KEY, &self.tiers.encode());
        }
        Ok((self.slots, self.tiers))
    }
}

/// A command whose slots are not all this shard's, as of now. Nothing of it was done.
fn moved() -> ShardOutcome {
    let message = "some of the rows' slots are moving to another shard; send the same again".to_owned();
    let kind = ErrorKind::Unavailable.as_str().to_owned();
    ShardOutcome { refused: Some(Refusal { kind, message }), slots_moved: true, ..ShardOutcome::default() }
}
