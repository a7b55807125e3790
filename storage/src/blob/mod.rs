//! Artifacts: files kept as content-defined chunks, named by the BLAKE3 hash of their whole content (the root).
//!
//! In reading order: `format` (the bytes of each file), `pack` (chunks, appended), `index` (where each chunk is),
//! `manifest` (which chunks make a file), `writer`, `reader`.
//!
//! Always true:
//! - a blob is visible only once its chunks, their index and its manifest are on disk, directories included
//! - bytes leave only after their chunk's hash was checked, and the last ones only after the root was
//! - memory does not grow with the size of a file; the index takes about 70 bytes a chunk (1 MB per GB stored)
//! - nothing acknowledged is ever cut off or rewritten: a torn tail after a crash lies behind the last index entry
//!
//! One process opens a store at a time; the node holds its data directory's lock.

mod format;
mod index;
mod manifest;
mod pack;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::BlobReader;
pub use writer::BlobWriter;

use crate::engine::sync_dir;
use crate::{Error, Result};
use index::ChunkIndex;
use manifest::Manifest;
use pack::{OpenPack, Pack};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// BLAKE3 of a file's or a chunk's bytes.
pub type Hash = [u8; 32];

/// A stored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub root: Hash,
    pub sha256: Hash,
    /// Bytes.
    pub size: u64,
}

/// What [`BlobWriter::finish`] stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    pub root: Hash,
    pub sha256: Hash,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that were not there before, chunks only.
    pub bytes_stored: u64,
}

/// All blobs of one node, in one directory: `packs/`, `manifests/` and `tmp/`.
pub struct BlobStore {
    dir: PathBuf,
    chunks: RwLock<ChunkIndex>,
    packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    blobs: RwLock<BTreeSet<Hash>>,
    appendable: Mutex<Appendable>,
    temporaries: AtomicU64,
}

/// Packs that no writer holds, and the id of the next one.
struct Appendable {
    idle: Vec<OpenPack>,
    next_id: u32,
}

impl BlobStore {
    /// Opens the store in `dir`, or makes it. Tails that no finished write covers are dropped.
    ///
    /// # Errors
    /// `InvalidArgument` for a store written by a newer version, `Corrupt` for files that are something else.
    pub fn open(dir: &Path) -> Result<Arc<Self>> {
        for child in [dir.to_owned(), dir.join(PACKS), dir.join(MANIFESTS)] {
            fs::create_dir_all(&child).map_err(Error::io(format!("making `{}`", child.display())))?;
        }
        let tmp = dir.join(TMP);
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(Error::io(format!("emptying `{}`", tmp.display())))?;
        }
        fs::create_dir(&tmp).map_err(Error::io(format!("making `{}`", tmp.display())))?;
        sync_dir(dir)?;

        let mut chunks = ChunkIndex::default();
        let mut packs = BTreeMap::new();
        let mut idle = Vec::new();
        for id in pack::ids_in(&dir.join(PACKS))? {
            let (pack, open) = pack::recover(dir, id, &mut chunks)?;
            packs.insert(id, pack);
            idle.extend(open);
        }
        // Renames of a process that was killed may not be on disk yet; they must be before `contains` says so.
        sync_dir(&dir.join(PACKS))?;
        sync_dir(&dir.join(MANIFESTS))?;
        let blobs = manifest::roots_in(&dir.join(MANIFESTS))?;
        let next_id = packs.keys().next_back().map_or(1, |last| last + 1);
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            chunks: RwLock::new(chunks),
            packs: RwLock::new(packs),
            blobs: RwLock::new(blobs),
            appendable: Mutex::new(Appendable { idle, next_id }),
            temporaries: AtomicU64::new(0),
        }))
    }

    /// Starts storing a file whose root is not known yet. Dropped before [`BlobWriter::finish`], it leaves nothing visible.
    ///
    /// # Errors
    /// `ReadOnly` on a full disk.
    pub fn writer(self: &Arc<Self>) -> Result<BlobWriter> {
        BlobWriter::new(self.clone(), None)
    }

    /// Starts storing a file that must turn out to be `root`, as when it comes from another node.
    ///
    /// # Errors
    /// `ReadOnly` on a full disk. The writer's `finish` fails with `InvalidArgument` when the bytes are others.
    pub fn writer_expecting(self: &Arc<Self>, root: Hash) -> Result<BlobWriter> {
        BlobWriter::new(self.clone(), Some(root))
    }

    /// Whether every byte of `root` is on disk here.
    pub fn contains(&self, root: &Hash) -> bool {
        self.blobs.read().contains(root)
    }

    /// What is known of `root`.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when its manifest is damaged.
    pub fn get(&self, root: &Hash) -> Result<Blob> {
        Ok(self.manifest(root)?.blob())
    }

    /// Reads `root` from byte `offset` on, each chunk verified; from 0, the whole against the root too.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for an offset behind the end; `Corrupt` when the manifest is damaged.
    pub fn reader(self: &Arc<Self>, root: &Hash, offset: u64) -> Result<BlobReader> {
        BlobReader::new(self.clone(), self.manifest(root)?, offset)
    }

    /// All blobs, by root.
    ///
    /// # Errors
    /// `Corrupt` when a manifest is damaged.
    pub fn list(&self) -> Result<Vec<Blob>> {
        let roots: Vec<Hash> = self.blobs.read().iter().copied().collect();
        roots.iter().map(|root| self.get(root)).collect()
    }

    fn manifest(&self, root: &Hash) -> Result<Manifest> {
        if !self.contains(root) {
            return Err(Error::NotFound(format!("artifact `{}` not found on this node", hex(root))));
        }
        Manifest::open(&self.manifest_path(root), root)
    }

    fn manifest_path(&self, root: &Hash) -> PathBuf {
        self.dir.join(MANIFESTS).join(hex(root))
    }

    /// A path for a file that is not finished; `tmp/` is emptied at open.
    fn temporary(&self) -> PathBuf {
        temporary(&self.dir, self.temporaries.fetch_add(1, Ordering::Relaxed))
    }

    /// A pack for one writer alone, with room for at least one chunk.
    fn take_pack(&self) -> Result<OpenPack> {
        let id = {
            let mut appendable = self.appendable.lock();
            if let Some(pack) = appendable.idle.pop() {
                return Ok(pack);
            }
            let id = appendable.next_id;
            appendable.next_id += 1;
            id
        };
        let open = pack::create(&self.dir, id, &self.temporary(), &self.temporary())?;
        self.packs.write().insert(id, open.pack().clone());
        Ok(open)
    }

    /// Gives a pack back; a full one is only read from now on.
    fn give_pack(&self, pack: OpenPack) {
        if !pack.is_full() {
            self.appendable.lock().idle.push(pack);
        }
    }
}

const PACKS: &str = "packs";
const MANIFESTS: &str = "manifests";
const TMP: &str = "tmp";

fn temporary(dir: &Path, number: u64) -> PathBuf {
    dir.join(TMP).join(number.to_string())
}

/// Lowercase hexadecimal, as roots are written everywhere.
pub fn hex(hash: &Hash) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads what [`hex`] wrote.
///
/// # Errors
/// `InvalidArgument` naming the text.
pub fn parse_hex(text: &str) -> Result<Hash> {
    let bad = || Error::InvalidArgument(format!("`{text}` is not an artifact root; it has 64 hexadecimal digits"));
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(bad());
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            value = value << 4 | char::from(*digit).to_digit(16).ok_or_else(bad)?;
        }
        *byte = value as u8;
    }
    Ok(hash)
}
