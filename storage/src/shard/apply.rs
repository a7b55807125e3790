//! Committed commands to one atomic write: decode, deduplicate, decide the last writers, write.
//!
//! No clock, no chance, no configuration: the same entries after the same state give the same bytes and outcomes on
//! every replica, however they are cut into calls. What is wrong with a command's content is a refusal, an outcome
//! like any other; an `Err` stops this replica.

use super::dedup::{Dedup, Seen};
use super::records::{ProducerKey, RowRef, STATE_KEY, decode_latest, encode_history, encode_latest, encode_state};
use super::{COMMAND_VERSION, HISTORY, LATEST, SEQUENCE_WINDOW, SYSTEM};
use crate::block::read_block;
use crate::engine::{Batch, Db};
use crate::keys::{push_latest_key, push_version};
use crate::replica::{Applied, Entry};
use crate::{Error, Fatal, Result};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{
    AppliedSequence, Refusal, ShardCommand, ShardOutcome, UpsertRows, shard_command::Change,
};
use prost::Message;
use std::ops::Range;

/// Longest producer name.
const PRODUCER_BYTES_MAX: usize = 256;

/// Keys read at once.
const KEYS_AT_ONCE: usize = 1024;

pub(super) fn apply(
    db: &Db,
    before: Applied,
    entries: &[Entry<'_>],
    position: &[u8],
) -> Result<(Vec<Vec<u8>>, Applied), Fatal> {
    let (decoded, applied) = decode(before, entries)?;
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut dedup = Dedup::new(db);
    let mut rows = Rows::default();
    for entry in &decoded {
        let outcome = match &entry.ask {
            Ask::Nothing => None,
            Ask::Refused(message) => Some(refused(message.clone())),
            Ask::Tick => Some(ShardOutcome::default()),
            Ask::Upsert(upsert) => Some(take_rows(upsert, entry.at, outcomes.len(), &mut dedup, &mut rows)?),
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
    rows.write(db, &mut batch, &mut outcomes)?;
    dedup.write(&mut batch);
    batch.put(SYSTEM, STATE_KEY, &encode_state(applied, position));
    db.write(batch)?;
    let encode = |outcome: Option<ShardOutcome>| outcome.map(|outcome| outcome.encode_to_vec()).unwrap_or_default();
    Ok((outcomes.into_iter().map(encode).collect(), applied))
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
            Some(Ok(command)) if command.version != COMMAND_VERSION => {
                return Err(Fatal(format!(
                    "log entry {} holds a shard command of version {}, and this node knows version {COMMAND_VERSION}: \
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
                    None => Ask::Refused("the shard command holds no change".to_owned()),
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

/// Adds the rows of one command to `rows`, or says why not. `slot`: the place of its outcome.
fn take_rows<'c>(
    upsert: &'c UpsertRows,
    at: Applied,
    slot: usize,
    dedup: &mut Dedup<'_>,
    rows: &mut Rows<'c>,
) -> Result<ShardOutcome> {
    let UpsertRows { storage_id, producer, sequence, .. } = upsert;
    if producer.len() > PRODUCER_BYTES_MAX {
        return Ok(refused(format!(
            "the producer's name has {} bytes, over the limit of {PRODUCER_BYTES_MAX}",
            producer.len()
        )));
    }
    let key = (!producer.is_empty()).then(|| ProducerKey::new(*storage_id, producer));
    if let Some(key) = &key {
        match dedup.check(key, *sequence)? {
            Seen::No => {}
            Seen::Yes(first) => {
                return Ok(ShardOutcome { rows_duplicate: first.rows, index: first.index, ..ShardOutcome::default() });
            }
            Seen::Unknown { highest } => {
                return Ok(refused(format!(
                    "sequence {sequence} of producer `{producer}` is below the window: its highest is {highest}, and \
                     only the last {SEQUENCE_WINDOW} sequences are remembered; continue above {highest}"
                )));
            }
        }
    }
    let taken = match rows.take(upsert, at, slot) {
        Ok(taken) => taken,
        Err(error) => return Ok(refused(error.to_string())),
    };
    if let Some(key) = key {
        dedup.add(key, AppliedSequence { sequence: *sequence, index: at.index, rows: taken });
    }
    Ok(ShardOutcome { rows_accepted: taken, ..ShardOutcome::default() })
}

/// The rows of all commands of one apply, in order.
#[derive(Default)]
struct Rows<'c> {
    /// `latest` keys, side by side.
    keys: Vec<u8>,
    rows: Vec<Row<'c>>,
}

struct Row<'c> {
    key: Range<usize>,
    row: RowRef<'c>,
    /// Place of its command's outcome.
    slot: usize,
}

impl<'c> Rows<'c> {
    /// Takes all rows of a command or, when one is bad, none.
    fn take(&mut self, upsert: &'c UpsertRows, at: Applied, slot: usize) -> Result<u32> {
        let (keys_before, rows_before) = (self.keys.len(), self.rows.len());
        let taken = self.take_all(upsert, at, slot);
        if taken.is_err() {
            self.keys.truncate(keys_before);
            self.rows.truncate(rows_before);
        }
        taken
    }

    fn take_all(&mut self, upsert: &'c UpsertRows, at: Applied, slot: usize) -> Result<u32> {
        let before = self.rows.len();
        for row in read_block(&upsert.rows) {
            let row = row?;
            let start = self.keys.len();
            push_latest_key(upsert.storage_id, row.entity_key, &mut self.keys);
            let stored = RowRef {
                event_us: row.event_us,
                created_us: row.created_us,
                commit: at.index,
                committed_us: at.time_us,
                packed: row.packed,
            };
            self.rows.push(Row { key: start..self.keys.len(), row: stored, slot });
        }
        let taken = self.rows.len() - before;
        if taken != upsert.row_count as usize {
            return Err(Error::InvalidArgument(format!(
                "the command says {} rows and holds {taken}",
                upsert.row_count
            )));
        }
        Ok(upsert.row_count)
    }

    fn key(&self, row: usize) -> &[u8] {
        &self.keys[self.rows[row].key.clone()]
    }

    /// Decides the last writer of each entity and puts all rows into `batch`.
    fn write(&self, db: &Db, batch: &mut Batch<'_>, outcomes: &mut [Option<ShardOutcome>]) -> Result<()> {
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
        for (index, row) in self.rows.iter().enumerate() {
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
            key.clear();
            key.extend_from_slice(self.key(index));
            push_version(row.row.event_us, row.row.created_us, row.row.commit, &mut key);
            encode_history(&row.row, &mut value);
            batch.put(HISTORY, &key, &value);
        }
        for &winner in winners.iter().flatten() {
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
