//! A range of slots as a move reads it: rows, then producers' sequences, then what changed meanwhile, part by part.
//!
//! ```text
//! cursor   empty = the beginning
//!          00 | history key of the last row
//!          01 | piece u16 BE | system key of its last sequence, or nothing
//!          02 | log index u64 BE | n u32 BE        of the last change
//! rows     version u8 = 1, then for each row: key length u32 | history key | value length u32 | history value
//! ```
//! What always holds: a part ends where the next one begins, on whatever replica it is read, because every change since
//! the export began is written down, and a cursor names keys and not places.

use super::merged::{history_iter, in_slots, merged};
use super::records::{ChangeRef, changes_of, sequences_of, split_sequence};
use super::slots::Segment;
use super::{HISTORY, SYSTEM, Shard};
use crate::engine::{Db, IterOptions, end_of_prefix};
use crate::{Error, Result};
use cairn_proto::record::v1::{AppliedSequence, ImportedSequence};
use prost::Message;

/// Version of the layout of rows.
const VERSION: u8 = 1;

/// Where a part ends, bytes and records; unit tests have few, and still want many parts.
const PART_BYTES: usize = 1 << 20;
const PART_RECORDS: usize = if cfg!(test) { 4 } else { 8192 };

/// A part of what a move copies.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Where the next part begins.
    pub next_cursor: Vec<u8>,
    pub rows: Vec<u8>,
    pub row_count: usize,
    pub sequences: Vec<ImportedSequence>,
    /// Nothing is behind it, in the state it was read from.
    pub is_last: bool,
    /// Read from what changed since the export began.
    pub is_change: bool,
}

impl Shard {
    /// The part of an export that begins at `cursor`.
    ///
    /// # Errors
    /// `Conflict` when move `id` takes nothing from here; `Corrupt`, `Io`.
    pub fn export_part(&self, id: u64, cursor: &[u8]) -> Result<Part> {
        let slots = self.slots();
        let db = self.group.db();
        let export = slots.export().filter(|export| export.id == id);
        let export = export.ok_or_else(|| Error::Conflict(format!("move {id} takes nothing from this shard now")))?;
        let (first, last) = (export.first as u16, export.last as u16);
        let mut reader = Reader { shard: self, db: &db, part: Part::new(cursor), records: 0, bytes: 0 };
        let bad = || Error::InvalidArgument(format!("a cursor of move {id} is not understood"));
        let mut at = cursor;
        if at.is_empty() || at[0] == 0 {
            if !reader.rows(first, last, at.get(1..).unwrap_or_default())? {
                return Ok(reader.part);
            }
            at = &[1, 0, 0];
        }
        let pieces = slots.pieces(first, last);
        if at[0] == 1 {
            let (piece, key) = at[1..].split_first_chunk::<2>().ok_or_else(bad)?;
            let begin = usize::from(u16::from_be_bytes(*piece));
            for (number, (origin, _, segment)) in pieces.iter().enumerate().skip(begin) {
                let behind = if number == begin { key } else { &[] };
                if !reader.sequences(number as u16, *origin, *segment, behind)? {
                    return Ok(reader.part);
                }
            }
            at = &[2];
        }
        if at[0] != 2 || (at.len() != 1 && at.len() != 13) {
            return Err(bad());
        }
        reader.changes(id, &at[1..])?;
        Ok(reader.part)
    }
}

impl Part {
    fn new(cursor: &[u8]) -> Self {
        Self {
            next_cursor: cursor.to_vec(),
            rows: vec![VERSION],
            row_count: 0,
            sequences: Vec::new(),
            is_last: false,
            is_change: cursor.first() == Some(&2),
        }
    }
}

struct Reader<'a> {
    shard: &'a Shard,
    db: &'a Db,
    part: Part,
    records: usize,
    bytes: usize,
}

impl Reader<'_> {
    fn is_full(&self) -> bool {
        self.bytes >= PART_BYTES || self.records >= PART_RECORDS
    }

    fn push_row(&mut self, key: &[u8], value: &[u8]) {
        for bytes in [key, value] {
            self.part.rows.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            self.part.rows.extend_from_slice(bytes);
        }
        self.part.row_count += 1;
        self.count(key.len() + value.len());
    }

    fn count(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes + 8;
    }

    /// Whether all rows behind `behind` fitted.
    fn rows(&mut self, first: u16, last: u16, behind: &[u8]) -> Result<bool> {
        let upper = Some(last.saturating_add(1).to_be_bytes().to_vec());
        let iter = history_iter(self.db, upper.clone())?;
        let tiers = self.shard.tiers();
        let mut iter = merged(iter, self.shard.segment_store(), in_slots(&tiers, first, last))?;
        iter.seek(if behind.is_empty() { first.to_be_bytes().to_vec() } else { behind.to_vec() }.as_slice())?;
        while let Some((key, value)) = iter.entry() {
            if upper.as_ref().is_some_and(|upper| key >= &upper[..]) {
                break;
            }
            if key != behind {
                if self.is_full() {
                    return Ok(false);
                }
                self.part.next_cursor = [&[0], key].concat();
                self.push_row(key, value);
            }
            iter.advance()?;
        }
        self.part.next_cursor = vec![1, 0, 0];
        Ok(true)
    }

    fn sequences(&mut self, number: u16, origin: u16, segment: Segment, behind: &[u8]) -> Result<bool> {
        let prefix = sequences_of(segment);
        let db = self.db;
        let options = IterOptions { upper: end_of_prefix(&prefix), fill_cache: false, ..IterOptions::default() };
        let mut iter = db.iter(SYSTEM, options)?;
        iter.seek(if behind.is_empty() { &prefix } else { behind })?;
        while let Some((key, value)) = iter.entry() {
            if key != behind {
                if self.is_full() {
                    return Ok(false);
                }
                let corrupt = || Error::Corrupt("the record of a producer's sequence is broken".to_owned());
                let (producer, sequence) = split_sequence(&key[prefix.len()..]).ok_or_else(corrupt)?;
                let rows = AppliedSequence::decode(value).map_err(|_| corrupt())?.rows;
                self.part.next_cursor = [&[1], &number.to_be_bytes()[..], key].concat();
                self.count(key.len());
                self.push_sequence(origin, producer, sequence, rows);
            }
            iter.advance()?;
        }
        self.part.next_cursor = [&[1], &(number + 1).to_be_bytes()[..]].concat();
        Ok(true)
    }

    fn push_sequence(&mut self, origin: u16, producer: &[u8], sequence: u64, rows: u32) {
        let (origin, producer) = (u32::from(origin), producer.to_vec().into());
        self.part.sequences.push(ImportedSequence { origin, producer, sequence, rows });
    }

    fn changes(&mut self, id: u64, behind: &[u8]) -> Result<()> {
        let prefix = changes_of(id);
        let db = self.db;
        // One moment: a change and the row it names.
        let snapshot = db.snapshot();
        let options = IterOptions { upper: end_of_prefix(&prefix), fill_cache: false, ..IterOptions::default() };
        let mut iter = snapshot.iter(SYSTEM, options)?;
        let begin = [&prefix[..], behind].concat();
        iter.seek(&begin)?;
        self.part.next_cursor = [&[2], behind].concat();
        while let Some((key, value)) = iter.entry() {
            if behind.is_empty() || key != begin {
                if self.is_full() {
                    return Ok(());
                }
                self.part.next_cursor = [&[2], &key[prefix.len()..]].concat();
                match ChangeRef::decode(value)? {
                    ChangeRef::Row { history_key } => {
                        let row = snapshot.get(HISTORY, history_key)?;
                        let row = row.ok_or_else(|| Error::Corrupt("a row that changed is not there".to_owned()))?;
                        self.push_row(history_key, &row);
                    }
                    ChangeRef::Sequence { origin, sequence, rows, producer } => {
                        self.count(value.len());
                        self.push_sequence(origin, producer, sequence, rows);
                    }
                }
            }
            iter.advance()?;
        }
        self.part.is_last = true;
        Ok(())
    }
}

/// The (history key, value) pairs of a part.
pub(super) fn read_pairs(bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8])>> {
    let mut rest = match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        _ => Err(Error::InvalidArgument("the rows of a part have a layout this node does not know".to_owned())),
    };
    std::iter::from_fn(move || {
        let here = match &rest {
            Ok([]) => return None,
            Ok(here) => *here,
            Err(_) => return Some(Err(std::mem::replace(&mut rest, Ok(&[])).err()?)),
        };
        let taken = take_bytes(here).and_then(|(key, here)| take_bytes(here).map(|(value, here)| ((key, value), here)));
        rest = Ok(taken.map_or(&[][..], |(_, here)| here));
        Some(
            taken.map(|(pair, _)| pair).ok_or_else(|| Error::InvalidArgument("a part's rows are cut short".to_owned())),
        )
    })
}

fn take_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}
