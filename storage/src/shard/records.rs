//! Values and system keys as bytes. Little endian; every value starts with its version.
//!
//! ```text
//! latest value     1 | event time i64 | created time i64 | commit index u64 | commit time i64 | packed row
//! history value    1 | commit time i64 | packed row                 (the rest is in its key)
//! system key       00                       value  1 | applied index u64 | commit time i64 | position
//!                  01 | storage id u32 BE | producer, escaped   value  ProducerState
//!                  02 | storage id u32 BE | producer, escaped | sequence u64 BE   value  AppliedSequence
//!                  03                       value  1 | ShardSlots
//!                  04 | segment | as 01     value  ProducerState     (segment: move id u64 BE | first slot u16 BE)
//!                  05 | segment | as 02     value  AppliedSequence
//!                  06 | move id u64 BE | log index u64 BE | n u32 BE     value  a change that a copy under way needs:
//!                       00 | history key;   01 | segment's first slot u16 BE | sequence u64 BE | rows u32 BE | as in 01
//!                  07                       value  1 | ShardSegments
//! ```
//! A row that deletes has an empty packed row. 03 and above are there only once slots moved (ADR-0009).

use super::slots::Segment;
use crate::keys::{push_escaped, split_history_key};
use crate::replica::Applied;
use crate::{Error, Result};

const VERSION: u8 = 1;

/// A stored row, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef<'a> {
    pub event_us: i64,
    pub created_us: i64,
    /// Log index of the entry that wrote it; where its slot moved, what its shards then counted on with.
    pub commit: u64,
    /// Commit time of that entry.
    pub committed_us: i64,
    /// Empty where the row deletes its entity.
    pub packed: &'a [u8],
}

impl RowRef<'_> {
    /// What decides the last writer.
    pub fn version(&self) -> (i64, i64, u64) {
        (self.event_us, self.created_us, self.commit)
    }

    /// It stands for no row: the entity is gone as of its event time, until a row that wins over it.
    pub fn is_deletion(&self) -> bool {
        self.packed.is_empty()
    }
}

/// Writes a `latest` value over what is in `out`.
pub(super) fn encode_latest(row: &RowRef<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.push(VERSION);
    out.extend_from_slice(&row.event_us.to_le_bytes());
    out.extend_from_slice(&row.created_us.to_le_bytes());
    out.extend_from_slice(&row.commit.to_le_bytes());
    out.extend_from_slice(&row.committed_us.to_le_bytes());
    out.extend_from_slice(row.packed);
}

pub(super) fn decode_latest(value: &[u8]) -> Result<RowRef<'_>> {
    let rest = check_version(value, "latest")?;
    let split = || {
        let (event, rest) = rest.split_first_chunk::<8>()?;
        let (created, rest) = rest.split_first_chunk::<8>()?;
        let (commit, rest) = rest.split_first_chunk::<8>()?;
        let (committed, packed) = rest.split_first_chunk::<8>()?;
        Some(RowRef {
            event_us: i64::from_le_bytes(*event),
            created_us: i64::from_le_bytes(*created),
            commit: u64::from_le_bytes(*commit),
            committed_us: i64::from_le_bytes(*committed),
            packed,
        })
    };
    split().ok_or_else(|| cut_short("latest", value))
}

/// Writes a `history` value over what is in `out`.
pub(super) fn encode_history(row: &RowRef<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.push(VERSION);
    out.extend_from_slice(&row.committed_us.to_le_bytes());
    out.extend_from_slice(row.packed);
}

pub(super) fn decode_history<'a>(key: &[u8], value: &'a [u8]) -> Result<RowRef<'a>> {
    let rest = check_version(value, "history")?;
    let (committed, packed) = rest.split_first_chunk::<8>().ok_or_else(|| cut_short("history", value))?;
    let key = split_history_key(key).ok_or_else(|| cut_short("history", key))?;
    Ok(RowRef {
        event_us: key.event_us,
        created_us: key.created_us,
        commit: key.commit,
        committed_us: i64::from_le_bytes(*committed),
        packed,
    })
}

fn check_version<'a>(value: &'a [u8], family: &str) -> Result<&'a [u8]> {
    match value.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => {
            Err(Error::Corrupt(format!("a `{family}` value has version {version}; this node reads {VERSION}")))
        }
        None => Err(cut_short(family, value)),
    }
}

fn cut_short(family: &str, bytes: &[u8]) -> Error {
    Error::Corrupt(format!("a `{family}` record of {} bytes is cut short", bytes.len()))
}

pub(super) const STATE_KEY: &[u8] = &[0];

pub(super) fn encode_state(applied: Applied, position: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(17 + position.len());
    out.push(VERSION);
    out.extend_from_slice(&applied.index.to_le_bytes());
    out.extend_from_slice(&applied.time_us.to_le_bytes());
    out.extend_from_slice(position);
    out
}

pub(super) fn decode_state(value: &[u8]) -> Option<(Applied, &[u8])> {
    let (version, rest) = value.split_first()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let (time_us, position) = rest.split_first_chunk::<8>()?;
    let applied = Applied { index: u64::from_le_bytes(*index), time_us: i64::from_le_bytes(*time_us) };
    (*version == VERSION).then_some((applied, position))
}

pub(super) const SLOTS_KEY: &[u8] = &[3];

pub(super) const TIERS_KEY: &[u8] = &[7];

/// A producer of one view, in one segment: what it calls sequence 7 elsewhere is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProducerKey {
    pub segment: Segment,
    /// Storage id and name.
    pub name: Vec<u8>,
}

impl ProducerKey {
    pub(super) fn new(segment: Segment, storage_id: u32, producer: &str) -> Self {
        let mut name = storage_id.to_be_bytes().to_vec();
        push_escaped(producer.as_bytes(), &mut name);
        Self { segment, name }
    }

    pub(super) fn state(&self) -> Vec<u8> {
        let mut key = states_of(self.segment);
        key.extend_from_slice(&self.name);
        key
    }

    pub(super) fn sequence(&self, sequence: u64) -> Vec<u8> {
        let mut key = sequences_of(self.segment);
        key.extend_from_slice(&self.name);
        key.extend_from_slice(&sequence.to_be_bytes());
        key
    }
}

/// What the keys of a segment's producers begin with.
pub(super) fn states_of(segment: Segment) -> Vec<u8> {
    of_segment(1, 4, segment)
}

/// What the keys of a segment's sequences begin with.
pub(super) fn sequences_of(segment: Segment) -> Vec<u8> {
    of_segment(2, 5, segment)
}

fn of_segment(home: u8, moved: u8, segment: Segment) -> Vec<u8> {
    match segment {
        Segment::Home => vec![home],
        Segment::Moved { id, origin } => {
            let mut key = vec![moved];
            key.extend_from_slice(&id.to_be_bytes());
            key.extend_from_slice(&origin.to_be_bytes());
            key
        }
    }
}

/// Producer and sequence of a key behind [`sequences_of`].
pub(super) fn split_sequence(rest: &[u8]) -> Option<(&[u8], u64)> {
    let (name, sequence) = rest.split_last_chunk::<8>()?;
    Some((name, u64::from_be_bytes(*sequence)))
}

/// What the keys of a move's changes begin with.
pub(super) fn changes_of(id: u64) -> Vec<u8> {
    let mut key = vec![6];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

pub(super) fn change_key(id: u64, index: u64, number: u32) -> Vec<u8> {
    let mut key = changes_of(id);
    key.extend_from_slice(&index.to_be_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// A change that a copy under way needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeRef<'a> {
    Row { history_key: &'a [u8] },
    Sequence { origin: u16, sequence: u64, rows: u32, producer: &'a [u8] },
}

impl<'a> ChangeRef<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Row { history_key } => [&[0], *history_key].concat(),
            Self::Sequence { origin, sequence, rows, producer } => {
                [&[1], &origin.to_be_bytes()[..], &sequence.to_be_bytes(), &rows.to_be_bytes(), producer].concat()
            }
        }
    }

    pub(super) fn decode(value: &'a [u8]) -> Result<Self> {
        let split = || {
            let (kind, rest) = value.split_first()?;
            if *kind == 0 {
                return Some(Self::Row { history_key: rest });
            }
            let (origin, rest) = rest.split_first_chunk::<2>()?;
            let (sequence, rest) = rest.split_first_chunk::<8>()?;
            let (rows, producer) = rest.split_first_chunk::<4>()?;
            let (origin, sequence) = (u16::from_be_bytes(*origin), u64::from_be_bytes(*sequence));
            (*kind == 1).then_some(Self::Sequence { origin, sequence, rows: u32::from_be_bytes(*rows), producer })
        };
        split().ok_or_else(|| cut_short("change", value))
    }
}
