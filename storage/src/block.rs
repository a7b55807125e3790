//! Many rows in one command: what a shard command carries, and what each row is before it is stored.
//!
//! ```text
//! version u8 = 1, then for each row:
//! entity key length varint | entity key | event time i64 | created time i64 | packed row length varint | packed row
//! ```
//! Integers little endian; times in microseconds. Rows keep their order: it decides between equal times. A new version
//! of this comes with a new command version, so that a node never meets one it does not know. An empty packed row deletes
//! its entity as of its times: a row that wins like any other, and stands for no row.

use crate::keys::ENTITY_KEY_BYTES_MAX;
use crate::row::PACKED_BYTES_MAX;
use crate::{Error, Result};

/// Version of the layout above.
const VERSION: u8 = 1;

/// Rows in, bytes out.
pub struct BlockWriter {
    bytes: Vec<u8>,
    rows: usize,
}

impl Default for BlockWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl BlockWriter {
    pub fn new() -> Self {
        Self { bytes: vec![VERSION], rows: 0 }
    }

    pub fn push(&mut self, entity_key: &[u8], event_us: i64, created_us: i64, packed: &[u8]) {
        push_varint(entity_key.len(), &mut self.bytes);
        self.bytes.extend_from_slice(entity_key);
        self.bytes.extend_from_slice(&event_us.to_le_bytes());
        self.bytes.extend_from_slice(&created_us.to_le_bytes());
        push_varint(packed.len(), &mut self.bytes);
        self.bytes.extend_from_slice(packed);
        self.rows += 1;
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Bytes so far.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// One row of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRow<'a> {
    pub entity_key: &'a [u8],
    pub event_us: i64,
    pub created_us: i64,
    pub packed: &'a [u8],
}

/// The rows of a block, in order. After an error there are no more.
///
/// Each error is `InvalidArgument`: the block came with a command, whose sender is told.
pub fn read_block(bytes: &[u8]) -> impl Iterator<Item = Result<BlockRow<'_>>> {
    let mut rest = None;
    let mut row = 0;
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let read = match rest {
            None => start(bytes),
            Some(rest) => Ok(rest),
        };
        let result = read.and_then(|here: &[u8]| {
            if here.is_empty() {
                return Ok(None);
            }
            let (found, after) = take_row(here)
                .ok_or_else(|| Error::InvalidArgument(format!("row {row} of the block of rows is cut short")))?;
            let (key_bytes, packed_bytes) = (found.entity_key.len(), found.packed.len());
            if key_bytes == 0 || key_bytes > ENTITY_KEY_BYTES_MAX {
                return Err(Error::InvalidArgument(format!(
                    "row {row} has an entity key of {key_bytes} bytes; 1 to {ENTITY_KEY_BYTES_MAX} are allowed"
                )));
            }
            if packed_bytes > PACKED_BYTES_MAX {
                return Err(Error::InvalidArgument(format!(
                    "row {row} is {packed_bytes} bytes packed, over the limit of {PACKED_BYTES_MAX}"
                )));
            }
            rest = Some(after);
            row += 1;
            Ok(Some(found))
        });
        failed = result.is_err();
        result.transpose()
    })
}

fn start(bytes: &[u8]) -> Result<&[u8]> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => {
            Err(Error::InvalidArgument(format!("the block of rows has version {version}; this node reads {VERSION}")))
        }
        None => Err(Error::InvalidArgument("the block of rows is empty".to_owned())),
    }
}

fn take_row(bytes: &[u8]) -> Option<(BlockRow<'_>, &[u8])> {
    let (key_bytes, rest) = take_varint(bytes)?;
    let (entity_key, rest) = rest.split_at_checked(key_bytes)?;
    let (event, rest) = rest.split_first_chunk::<8>()?;
    let (created, rest) = rest.split_first_chunk::<8>()?;
    let (packed_bytes, rest) = take_varint(rest)?;
    let (packed, rest) = rest.split_at_checked(packed_bytes)?;
    let (event_us, created_us) = (i64::from_le_bytes(*event), i64::from_le_bytes(*created));
    Some((BlockRow { entity_key, event_us, created_us, packed }, rest))
}

fn push_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most five bytes: lengths fit in 32 bits.
fn take_varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows_of(bytes: &[u8]) -> Result<Vec<BlockRow<'_>>> {
        read_block(bytes).collect()
    }

    proptest! {
        #[test]
        fn blocks_read_what_they_write(
            rows: Vec<(Vec<u8>, i64, i64, Vec<u8>)>,
        ) {
            let rows: Vec<_> = rows.into_iter().filter(|row| !row.0.is_empty()).collect();
            let mut writer = BlockWriter::new();
            for (key, event_us, created_us, packed) in &rows {
                writer.push(key, *event_us, *created_us, packed);
            }
            prop_assert_eq!(writer.len(), rows.len());
            let length = writer.bytes_len();
            let bytes = writer.finish();
            prop_assert_eq!(length, bytes.len());
            let expected: Vec<_> = rows.iter().map(|(key, event_us, created_us, packed)| BlockRow {
                entity_key: key, event_us: *event_us, created_us: *created_us, packed,
            }).collect();
            prop_assert_eq!(rows_of(&bytes).unwrap(), expected);
        }

        #[test]
        fn broken_blocks_are_errors(mut bytes: Vec<u8>, version_right: bool) {
            if version_right && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let mut after_error = read_block(&bytes).skip_while(Result::is_ok);
            after_error.next();
            prop_assert!(after_error.next().is_none());
        }
    }

    #[test]
    fn the_fault_of_a_block_is_named() {
        let check = |bytes: &[u8], expected: &str| {
            let error = rows_of(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[], "empty");
        check(&[9], "version 9");
        let mut writer = BlockWriter::new();
        writer.push(b"k", 1, 2, b"row");
        let bytes = writer.finish();
        for length in 2..bytes.len() {
            check(&bytes[..length], "row 0 of the block of rows is cut short");
        }
        let mut writer = BlockWriter::new();
        writer.push(b"", 1, 2, b"row");
        check(&writer.finish(), "entity key of 0 bytes");
    }

    #[test]
    fn block_bytes_never_change() {
        let mut writer = BlockWriter::new();
        writer.push(b"key", 1_700_000_000_000_000, -1, b"packed");
        writer.push(&[7; 200], i64::MIN, i64::MAX, b"");
        crate::testing::check_golden("block.v1.txt", &format!("{}\n", crate::testing::hex(&writer.finish())));
    }
}
