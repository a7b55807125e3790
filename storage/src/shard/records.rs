//! Values and system keys as bytes. Little endian; every value starts with its version.
//!
//! ```text
//! latest value     1 | event time i64 | created time i64 | commit index u64 | commit time i64 | packed row
//! history value    1 | commit time i64 | packed row                 (the rest is in its key)
//! system key       00                       value  1 | applied index u64 | commit time i64 | position
//!                  01 | storage id u32 BE | producer, escaped   value  ProducerState
//!                  02 | storage id u32 BE | producer, escaped | sequence u64 BE   value  AppliedSequence
//! ```

use crate::keys::{push_escaped, split_history_key};
use crate::replica::Applied;
use crate::{Error, Result};

const VERSION: u8 = 1;

/// A stored row, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef<'a> {
    pub event_us: i64,
    pub created_us: i64,
    /// Log index of the entry that wrote it.
    pub commit: u64,
    /// Commit time of that entry.
    pub committed_us: i64,
    pub packed: &'a [u8],
}

impl RowRef<'_> {
    /// What decides the last writer.
    pub fn version(&self) -> (i64, i64, u64) {
        (self.event_us, self.created_us, self.commit)
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

/// A producer of one view: what it calls sequence 7 elsewhere is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProducerKey(Vec<u8>);

impl ProducerKey {
    pub(super) fn new(storage_id: u32, producer: &str) -> Self {
        let mut key = storage_id.to_be_bytes().to_vec();
        push_escaped(producer.as_bytes(), &mut key);
        Self(key)
    }

    pub(super) fn state(&self) -> Vec<u8> {
        [&[1], self.0.as_slice()].concat()
    }

    pub(super) fn sequence(&self, sequence: u64) -> Vec<u8> {
        [&[2], self.0.as_slice(), &sequence.to_be_bytes()].concat()
    }
}
