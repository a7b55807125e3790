//! The log's bytes: segment header and records, version 1. Golden bytes: `tests/golden/wal_v1.hex`.
//!
//! All integers are little endian. Segment header, 64 bytes:
//! ```text
//! magic "CAIRNWAL" | version u32 | 0 u32 | sequence u64 | previous_end u64 | previous_seed u32 | 0 … | crc32c u32
//! ```
//! Record, starting at a multiple of 8 and padded with zeros to one:
//! ```text
//! len u32 | crc32c u32 | kind u8 | version u8 | flags u16 | group u32 | index u64 | payload (len bytes)
//! ```
//! The header's checksum is the *seed* of every record checksum in the segment, and each record's offset is mixed in:
//! bytes left over from another segment or another place never pass for a record. Magic, version and header
//! checksum keep their places in every later version.

pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
pub(super) const RECORD_HEADER_BYTES: usize = 24;
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const RECORD_VERSION: u8 = 1;

/// Everything before this record was durable when it was written: the first record of each fsynced batch. A damaged
/// record with such a one behind it was once durable, so it is damage and no torn tail.
pub(super) const FLAG_SYNCED_BEFORE: u16 = 1;

const MAGIC: [u8; 8] = *b"CAIRNWAL";
const ALIGN: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// `index`, the entry as payload.
    Append = 1,
    Vote = 2,
    Committed = 3,
    /// Entries from `index` on are gone.
    Truncate = 4,
    /// Entries up to `index` are gone; the payload is the log id of the last of them.
    Purge = 5,
    /// State of every group, at the start of each segment; `index` counts the groups.
    Checkpoint = 6,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Append,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Checkpoint,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Counts up by one from segment to segment, from 1.
    pub(super) sequence: u64,
    /// Where the records of the segment before end; 0 for the first segment.
    pub(super) previous_end: u64,
    pub(super) previous_seed: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Damaged(&'static str),
    Newer(u32),
}

impl SegmentHeader {
    /// The bytes and the seed for the segment's records.
    pub(super) fn encode(&self) -> ([u8; SEGMENT_HEADER_BYTES], u32) {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.previous_seed.to_le_bytes());
        let seed = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&seed.to_le_bytes());
        (bytes, seed)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderFault> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            return Err(HeaderFault::Damaged("the segment header is cut short"));
        };
        if bytes[..8] != MAGIC {
            return Err(HeaderFault::Damaged("this is no log segment (wrong magic)"));
        }
        let seed = u32_at(bytes, 60);
        if crc32c::crc32c(&bytes[..60]) != seed {
            return Err(HeaderFault::Damaged("the segment header fails its checksum"));
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => {}
            0 => return Err(HeaderFault::Damaged("the segment header has version 0")),
            newer => return Err(HeaderFault::Newer(newer)),
        }
        let header =
            Self { sequence: u64_at(bytes, 16), previous_end: u64_at(bytes, 24), previous_seed: u32_at(bytes, 32) };
        Ok((header, seed))
    }
}

/// A record whose checksum holds. `kind` and `version` are not yet judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) flags: u16,
    pub(super) group: u32,
    pub(super) index: u64,
    pub(super) payload: &'a [u8],
}

/// Bytes a record with such a payload takes in the file.
pub(super) fn record_bytes(payload_bytes: usize) -> usize {
    padded(RECORD_HEADER_BYTES + payload_bytes)
}

/// Zeros that follow such a payload.
pub(super) fn padding(payload_bytes: usize) -> usize {
    record_bytes(payload_bytes) - RECORD_HEADER_BYTES - payload_bytes
}

/// The header of a record that will stand at `offset` in the segment with that seed.
pub(super) fn record_header(
    seed: u32,
    offset: u64,
    kind: Kind,
    flags: u16,
    group: u32,
    index: u64,
    payload: &[u8],
) -> [u8; RECORD_HEADER_BYTES] {
    let mut bytes = [0; RECORD_HEADER_BYTES];
    bytes[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[8] = kind as u8;
    bytes[9] = RECORD_VERSION;
    bytes[10..12].copy_from_slice(&flags.to_le_bytes());
    bytes[12..16].copy_from_slice(&group.to_le_bytes());
    bytes[16..].copy_from_slice(&index.to_le_bytes());
    let crc = checksum(seed, offset, &bytes, payload);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Decodes the record at the start of `bytes`, which stand at `offset` in their segment.
pub(super) fn decode_record(bytes: &[u8], seed: u32, offset: u64) -> Result<Record<'_>, &'static str> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err("the record is cut short");
    };
    let length = u32_at(header, 0) as usize;
    let (Some(payload), true) = (rest.get(..length), record_bytes(length) <= bytes.len()) else {
        return Err("the record's length reaches past the end");
    };
    if checksum(seed, offset, header, payload) != u32_at(header, 4) {
        return Err("the record fails its checksum");
    }
    if header[8] == 0 {
        return Err("the record has no kind");
    }
    Ok(Record {
        kind: header[8],
        version: header[9],
        flags: u16::from_le_bytes([header[10], header[11]]),
        group: u32_at(header, 12),
        index: u64_at(header, 16),
        payload,
    })
}

/// Offset of the first sound record behind `from` that was written after everything at `from` was durable.
pub(super) fn find_synced_after(segment: &[u8], from: usize, seed: u32) -> Option<usize> {
    let mut offset = padded(from + 1);
    while let Some(bytes) = segment.get(offset..).filter(|bytes| bytes.len() >= RECORD_HEADER_BYTES) {
        // The cheap looks first: most of what comes by is zeros or payload.
        let plausible = bytes[8] != 0 && bytes[9] != 0 && bytes[10] & FLAG_SYNCED_BEFORE as u8 != 0;
        if plausible && decode_record(bytes, seed, offset as u64).is_ok() {
            return Some(offset);
        }
        offset += ALIGN;
    }
    None
}

fn checksum(seed: u32, offset: u64, header: &[u8; RECORD_HEADER_BYTES], payload: &[u8]) -> u32 {
    let mut covered = [0; 28];
    covered[..8].copy_from_slice(&offset.to_le_bytes());
    covered[8..12].copy_from_slice(&header[..4]);
    covered[12..].copy_from_slice(&header[8..]);
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &covered), payload)
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(seed: u32, offset: u64, flags: u16, group: u32, index: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = record_header(seed, offset, Kind::Append, flags, group, index, payload).to_vec();
        bytes.extend_from_slice(payload);
        bytes.resize(record_bytes(payload.len()), 0);
        bytes
    }

    proptest! {
        #[test]
        fn records_round_trip(
            seed: u32, offset: u64, flags: u16, group: u32, index: u64,
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = whole(seed, offset, flags, group, index, &payload);
            prop_assert_eq!(bytes.len() % 8, 0);
            let found = decode_record(&bytes, seed, offset).unwrap();
            let wanted = Record { kind: 1, version: 1, flags, group, index, payload: &payload };
            prop_assert_eq!(found, wanted);
            // The same bytes in another segment or at another place are no record.
            prop_assert!(decode_record(&bytes, seed ^ 1, offset).is_err());
            prop_assert!(decode_record(&bytes, seed, offset ^ 8).is_err());
        }

        #[test]
        fn one_flipped_bit_is_seen(payload in proptest::collection::vec(any::<u8>(), 0..40), bit in 0usize..512) {
            let mut bytes = whole(7, 64, 0, 1, 2, &payload);
            let bit = bit % ((RECORD_HEADER_BYTES + payload.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_record(&bytes, 7, 64).is_err());
        }
    }

    #[test]
    fn headers_round_trip_and_newer_ones_are_told_from_damage() {
        let header = SegmentHeader { sequence: 9, previous_end: 4096, previous_seed: 77 };
        let (mut bytes, seed) = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok((header, seed)));
        bytes[8] = 2;
        assert!(matches!(SegmentHeader::decode(&bytes), Err(HeaderFault::Damaged(_))));
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderFault::Newer(2)));
        assert!(matches!(SegmentHeader::decode(&[0; 64]), Err(HeaderFault::Damaged(_))));
        assert!(matches!(SegmentHeader::decode(&bytes[..63]), Err(HeaderFault::Damaged(_))));
    }

    #[test]
    fn zeros_are_no_record() {
        assert!(decode_record(&[0; 64], 5, 0).is_err());
        assert_eq!(find_synced_after(&[0; 4096], 0, 5), None);
    }
}
