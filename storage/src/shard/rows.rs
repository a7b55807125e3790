//! The rows of one apply: taken in log order, the last writer of each entity decided at the end, written at once.

use super::records::{RowRef, decode_latest, encode_history, encode_latest};
use super::tiers::Trimmed;
use super::{HISTORY, LATEST};
use crate::block::read_block;
use crate::engine::{Batch, Db};
use crate::keys::{push_latest_key, push_version, split_latest_key};
use crate::replica::Applied;
use crate::{Error, Result};
use cairn_proto::record::v1::{ShardOutcome, UpsertRows};
use std::ops::Range;

/// Keys read at once.
const KEYS_AT_ONCE: usize = 1024;

/// The place of an outcome that counts no rows.
const NOWHERE: usize = usize::MAX;

/// The rows of all commands of one apply, in order.
#[derive(Default)]
pub(super) struct Rows<'c> {
    /// `latest` keys, side by side.
    keys: Vec<u8>,
    rows: Vec<Row<'c>>,
    /// (rows before it, first slot, last slot): those rows, and all older ones of these slots, are gone.
    purges: Vec<(usize, u16, u16)>,
    /// (rows before it, what a segment holds of them).
    trims: Vec<(usize, Trimmed)>,
}

struct Row<'c> {
    key: Range<usize>,
    row: RowRef<'c>,
    /// Place of its command's outcome.
    slot: usize,
    /// A segment has it: it is no row of the history here, and may be the newest of its entity.
    in_segment: bool,
}

impl<'c> Rows<'c> {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Takes all rows of a command in `wanted` slots or, when one is bad, none.
    pub(super) fn take(
        &mut self,
        upsert: &'c UpsertRows,
        at: Applied,
        commit: u64,
        slot: usize,
        wanted: &dyn Fn(u16) -> bool,
    ) -> Result<u32> {
        let (keys_before, rows_before) = (self.keys.len(), self.rows.len());
        let taken = self.take_all(upsert, at, commit, slot, wanted);
        if taken.is_err() {
            self.keys.truncate(keys_before);
            self.rows.truncate(rows_before);
        }
        taken
    }

    fn take_all(
        &mut self,
        upsert: &'c UpsertRows,
        at: Applied,
        commit: u64,
        slot: usize,
        wanted: &dyn Fn(u16) -> bool,
    ) -> Result<u32> {
        let before = self.rows.len();
        let mut held = 0;
        for row in read_block(&upsert.rows) {
            let row = row?;
            held += 1;
            let start = self.keys.len();
            push_latest_key(upsert.storage_id, row.entity_key, &mut self.keys);
            if !wanted(slot_at(&self.keys[start..])) {
                self.keys.truncate(start);
                continue;
            }
            let stored = RowRef {
                event_us: row.event_us,
                created_us: row.created_us,
                commit,
                committed_us: at.time_us,
                packed: row.packed,
            };
            self.rows.push(Row { key: start..self.keys.len(), row: stored, slot, in_segment: false });
        }
        if held != upsert.row_count {
            return Err(Error::InvalidArgument(format!("the command says {} rows and holds {held}", upsert.row_count)));
        }
        Ok((self.rows.len() - before) as u32)
    }

    /// Takes a row as another shard stored it.
    pub(super) fn bring(&mut self, latest_key: &[u8], row: RowRef<'c>) {
        let start = self.keys.len();
        self.keys.extend_from_slice(latest_key);
        self.rows.push(Row { key: start..self.keys.len(), row, slot: NOWHERE, in_segment: false });
    }

    /// Takes a row of a segment, which may be the newest of its entity.
    pub(super) fn load(&mut self, storage_id: u32, entity_key: &[u8], row: RowRef<'c>) {
        let start = self.keys.len();
        push_latest_key(storage_id, entity_key, &mut self.keys);
        self.rows.push(Row { key: start..self.keys.len(), row, slot: NOWHERE, in_segment: true });
    }

    /// Drops all rows of these slots, those on disk too.
    pub(super) fn purge(&mut self, first: u16, last: u16) {
        self.purges.push((self.rows.len(), first, last));
    }

    /// Leaves rows that a segment holds out of the history; they may be the newest of their entity all the same.
    pub(super) fn trim(&mut self, trimmed: Trimmed) {
        self.trims.push((self.rows.len(), trimmed));
    }

    pub(super) fn event_us(&self, row: usize) -> i64 {
        self.rows[row].row.event_us
    }

    /// The slot of a row.
    pub(super) fn slot(&self, row: usize) -> u16 {
        slot_at(self.key(row))
    }

    /// Writes a row's `history` key over what is in `out`.
    pub(super) fn history_key(&self, row: usize, out: &mut Vec<u8>) {
        let RowRef { event_us, created_us, commit, .. } = self.rows[row].row;
        out.clear();
        out.extend_from_slice(self.key(row));
        push_version(event_us, created_us, commit, out);
    }

    fn is_purged(&self, row: usize) -> bool {
        let slot = self.slot(row);
        self.purges.iter().any(|(before, first, last)| row < *before && (*first..=*last).contains(&slot))
    }

    fn key(&self, row: usize) -> &[u8] {
        &self.keys[self.rows[row].key.clone()]
    }

    /// Decides the last writer of each entity and puts all rows into `batch`.
    pub(super) fn write(&self, db: &Db, batch: &mut Batch<'_>, outcomes: &mut [Option<ShardOutcome>]) -> Result<()> {
        // Entities in key order; each row knows its entity.
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        order.sort_by(|&a, &b| self.key(a).cmp(self.key(b)));
        let mut entities: Vec<usize> = Vec::with_capacity(order.len()); // a row that has the key
        let mut entity_of = vec![0; self.rows.len()];
        for &row in &order {
            if entities.last().is_none_or(|&last| self.key(last) != self.key(row)) {
                entities.push(row);
            }
            entity_of[row] = entities.len() - 1;
        }
        let mut newest: Vec<Option<(i64, i64, u64)>> = Vec::with_capacity(entities.len());
        for keys in entities.chunks(KEYS_AT_ONCE) {
            for value in db.multi_get(LATEST, keys.iter().map(|&row| self.key(row)))? {
                newest.push(value.map(|value| decode_latest(&value).map(|row| row.version())).transpose()?);
            }
        }
        // In log order, so that each row meets what was newest at its turn. Equal times of one command: the later row.
        let mut winners: Vec<Option<usize>> = vec![None; entities.len()];
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let mut purges = self.purges.iter().peekable();
        for (index, row) in self.rows.iter().enumerate() {
            while let Some((_, first, last)) = purges.next_if(|(before, ..)| *before <= index) {
                for (entity, &row) in entities.iter().enumerate() {
                    if (*first..=*last).contains(&self.slot(row)) {
                        (newest[entity], winners[entity]) = (None, None);
                    }
                }
            }
            let entity = entity_of[index];
            let wins = Some(row.row.version()) >= newest[entity];
            #[cfg(feature = "seeded-bugs")]
            let wins = wins || crate::seeded::awake("last-arrival");
            if wins {
                newest[entity] = Some(row.row.version());
                winners[entity] = Some(index);
                if let Some(Some(outcome)) = outcomes.get_mut(row.slot) {
                    outcome.rows_updated += 1;
                }
            }
        }
        // In key order, which the memtable takes with fewer cache misses.
        for &row in &order {
            if self.rows[row].in_segment || !self.purges.is_empty() && self.is_purged(row) {
                continue;
            }
            self.history_key(row, &mut key);
            if self.trims.iter().any(|(before, trimmed)| row < *before && trimmed.has(&key)) {
                continue;
            }
            encode_history(&self.rows[row].row, &mut value);
            batch.put(HISTORY, &key, &value);
        }
        for &winner in winners.iter().flatten() {
            if !self.purges.is_empty() && self.is_purged(winner) {
                continue;
            }
            encode_latest(&self.rows[winner].row, &mut value);
            #[cfg(feature = "seeded-bugs")]
            if crate::seeded::awake("torn-batch") {
                let mut early = db.batch()?;
                early.put(LATEST, self.key(winner), &value);
                db.write(early)?;
                std::thread::park_timeout(std::time::Duration::from_millis(3)); // so that a read falls between
            }
            batch.put(LATEST, self.key(winner), &value);
        }
        Ok(())
    }
}

fn slot_at(latest_key: &[u8]) -> u16 {
    split_latest_key(latest_key).map_or(0, |(slot, ..)| slot)
}
