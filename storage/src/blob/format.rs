//! The bytes of packs, their indexes and manifests. All integers are little endian.
//!
//! ```text
//! every file   magic 8 | version u8 | zero 7
//! pack         … then records:  hash 32 | length u32 | encoding u8 (0 = as is) | zero 7 | crc32c u32 | bytes
//! index        … then entries:  hash 32 | record offset u64 | length u32 | crc32c u32
//! manifest     … then chunks:   hash 32 | end offset in the file u64
//!              … then trailer:  root 32 | sha256 32 | size u64 | chunks u64 | BLAKE3 of all before 32
//! ```
//! Each crc covers the fields before it in its record or entry. Golden files: `tests/golden/blob_v1.hex`.

use super::Hash;
use crate::{Error, Result};
use std::path::Path;

pub const HEADER_LEN: usize = 16;
pub const RECORD_LEN: usize = 48;
pub const ENTRY_LEN: usize = 48;
pub const CHUNK_LEN: usize = 40;
pub const TRAILER_LEN: usize = 112;

/// Chunk sizes, bytes. Changing one only costs deduplication against older chunks; `CHUNK_MAX` may only grow.
pub const CHUNK_MIN: usize = 16 << 10;
pub const CHUNK_AVG: usize = 64 << 10;
pub const CHUNK_MAX: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pack,
    Index,
    Manifest,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Pack => b"CAIRNPAK",
            Self::Index => b"CAIRNIDX",
            Self::Manifest => b"CAIRNMAN",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Index => "pack index",
            Self::Manifest => "artifact manifest",
        }
    }

    /// Newest version this program reads, and the one it writes.
    const VERSION: u8 = 1;

    pub fn header(self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(self.magic());
        header[8] = Self::VERSION;
        header
    }

    /// # Errors
    /// `InvalidArgument` for a newer version, `Corrupt` for anything else that is not this header.
    pub fn check(self, header: &[u8; HEADER_LEN], path: &Path) -> Result<()> {
        let (name, path) = (self.name(), path.display());
        if &header[..8] != self.magic() || header[8] == 0 {
            return Err(Error::Corrupt(format!("`{path}` is not a {name} of Cairn: its header is damaged")));
        }
        if header[8] > Self::VERSION {
            return Err(Error::InvalidArgument(format!(
                "`{path}` has {name} format {}, written by a newer Cairn; this one reads up to {}: start the newer cairnd",
                header[8],
                Self::VERSION
            )));
        }
        if self.header() != *header {
            return Err(Error::Corrupt(format!("`{path}`: the header of this {name} is damaged")));
        }
        Ok(())
    }
}

/// Head of a chunk inside a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub hash: Hash,
    pub len: u32,
}

impl Record {
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..32].copy_from_slice(&self.hash);
        bytes[32..36].copy_from_slice(&self.len.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// `None`: torn, damaged, or of an encoding this version does not know.
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let len = u32_at(bytes, 32);
        let plain = bytes[36..44].iter().all(|byte| *byte == 0);
        (sealed(bytes) && plain && len != 0 && len as usize <= CHUNK_MAX).then(|| Self { hash: hash_at(bytes, 0), len })
    }
}

/// Line of a pack's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub hash: Hash,
    /// Of the record's head in the pack.
    pub offset: u64,
    pub len: u32,
}

impl IndexEntry {
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..32].copy_from_slice(&self.hash);
        bytes[32..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.len.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        sealed(bytes).then(|| Self { hash: hash_at(bytes, 0), offset: u64_at(bytes, 32), len: u32_at(bytes, 40) })
    }

    /// Offset behind the record.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(RECORD_LEN as u64 + u64::from(self.len))
    }
}

/// One chunk of a file, in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestChunk {
    pub hash: Hash,
    /// Offset in the file behind the chunk.
    pub end: u64,
}

impl ManifestChunk {
    pub fn encode(&self) -> [u8; CHUNK_LEN] {
        let mut bytes = [0; CHUNK_LEN];
        bytes[..32].copy_from_slice(&self.hash);
        bytes[32..].copy_from_slice(&self.end.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; CHUNK_LEN]) -> Self {
        Self { hash: hash_at(bytes, 0), end: u64_at(bytes, 32) }
    }
}

/// End of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    pub root: Hash,
    pub sha256: Hash,
    pub size: u64,
    pub chunks: u64,
}

impl Trailer {
    /// All but the closing BLAKE3.
    pub fn encode(&self) -> [u8; TRAILER_LEN - 32] {
        let mut bytes = [0; TRAILER_LEN - 32];
        bytes[..32].copy_from_slice(&self.root);
        bytes[32..64].copy_from_slice(&self.sha256);
        bytes[64..72].copy_from_slice(&self.size.to_le_bytes());
        bytes[72..].copy_from_slice(&self.chunks.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; TRAILER_LEN]) -> (Self, Hash) {
        let trailer = Self {
            root: hash_at(bytes, 0),
            sha256: hash_at(bytes, 32),
            size: u64_at(bytes, 64),
            chunks: u64_at(bytes, 72),
        };
        (trailer, hash_at(bytes, 80))
    }
}

/// Writes the crc of all before it into the last four bytes.
fn seal(bytes: &mut [u8; 48]) {
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..].copy_from_slice(&crc.to_le_bytes());
}

fn sealed(bytes: &[u8; 48]) -> bool {
    crc32c::crc32c(&bytes[..44]) == u32_at(bytes, 44)
}

// Offsets are constants inside fixed arrays, checked by the round-trip and golden tests.
fn hash_at(bytes: &[u8], at: usize) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    hash
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}
