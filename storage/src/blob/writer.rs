//! Storing a file: cut into chunks by content, hashed once, new chunks appended, then index, then manifest.

use super::format::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN, ManifestChunk};
use super::manifest::ManifestWriter;
use super::pack::OpenPack;
use super::{Blob, BlobInfo, BlobStore, Hash, MANIFESTS, hex};
use crate::{Error, Result};
use fastcdc::v2020::{Normalization, cut, select_masks};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Bytes held back to find cut points in.
const BUFFER_BYTES: usize = 1 << 20;
/// New chunks made durable at one time at most, bytes: bounds memory (a line a chunk) and the last sync.
const PUBLISH_BYTES: u64 = if cfg!(test) { 400 << 10 } else { 256 << 20 };

/// One file being stored. Any number may be at it at once, each on a pack of its own.
pub struct BlobWriter {
    store: Arc<BlobStore>,
    expected: Option<Hash>,
    buffer: Vec<u8>,
    cutter: Cutter,
    /// `None` after a failure.
    parts: Option<Parts>,
    root: blake3::Hasher,
    sha256: Sha256,
    size: u64,
    cut_to: u64,
    bytes_stored: u64,
}

struct Parts {
    manifest: ManifestWriter,
    pack: OpenPack,
}

impl BlobWriter {
    pub(super) fn new(store: Arc<BlobStore>, expected: Option<Hash>) -> Result<Self> {
        let manifest = ManifestWriter::new(store.temporary())?;
        let pack = store.take_pack()?;
        Ok(Self {
            store,
            expected,
            buffer: Vec::new(),
            cutter: Cutter::default(),
            parts: Some(Parts { manifest, pack }),
            root: blake3::Hasher::new(),
            sha256: Sha256::new(),
            size: 0,
            cut_to: 0,
            bytes_stored: 0,
        })
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes. Blocks on the disk.
    ///
    /// # Errors
    /// `ReadOnly` on a full disk. After an error nothing more is taken, and nothing was stored.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.root.update(bytes);
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= BUFFER_BYTES {
                self.cut(false)?;
            }
        }
        Ok(())
    }

    /// Makes the file durable and visible. When this returns, everything of it is synced, directories too.
    ///
    /// # Errors
    /// `InvalidArgument` when another root was expected; `ReadOnly` on a full disk. Nothing is visible then.
    pub fn finish(mut self) -> Result<BlobInfo> {
        self.cut(true)?;
        let root = *self.root.finalize().as_bytes();
        if let Some(expected) = self.expected.filter(|expected| *expected != root) {
            return Err(Error::InvalidArgument(format!(
                "the bytes received are artifact `{}`, not the expected `{}`; send the file again",
                hex(&root),
                hex(&expected)
            )));
        }
        let blob = Blob { root, sha256: self.sha256.clone().finalize().into(), size: self.size };
        if let Some(parts) = &mut self.parts {
            parts.pack.publish(&self.store.chunks)?;
        }
        let Some(Parts { manifest, pack }) = self.parts.take() else { return Err(failed_before()) };
        self.store.give_pack(pack);
        // Written even when the root is there already: a damaged manifest is repaired by sending the file again.
        manifest.finish(&blob, &self.store.manifest_path(&root), &self.store.dir.join(MANIFESTS))?;
        self.store.blobs.write().insert(root);
        Ok(BlobInfo { root, sha256: blob.sha256, size: blob.size, bytes_stored: self.bytes_stored })
    }

    /// Cuts chunks off the buffer while the next cut cannot depend on bytes to come; to the end if `last`.
    fn cut(&mut self, last: bool) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut start = 0;
        while let Some(rest) = buffer.get(start..).filter(|rest| rest.len() >= CHUNK_MAX || (last && !rest.is_empty()))
        {
            let len = self.cutter.cut(rest);
            if let Err(error) = self.store_chunk(&rest[..len]) {
                self.abandon();
                return Err(error);
            }
            start += len;
        }
        buffer.drain(..start);
        self.buffer = buffer;
        Ok(())
    }

    fn store_chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Err(failed_before()) };
        let hash = *blake3::hash(bytes).as_bytes();
        self.cut_to += bytes.len() as u64;
        parts.manifest.push(ManifestChunk { hash, end: self.cut_to })?;
        // Only durable chunks of others count: theirs may still be taken back.
        if parts.pack.has_pending(&hash) || self.store.chunks.read().contains(&hash) {
            return Ok(());
        }
        if parts.pack.is_full() {
            parts.pack.publish(&self.store.chunks)?;
            let full = std::mem::replace(&mut parts.pack, self.store.take_pack()?);
            self.store.give_pack(full);
        }
        parts.pack.append(hash, bytes)?;
        self.bytes_stored += bytes.len() as u64;
        if parts.pack.pending_bytes() >= PUBLISH_BYTES {
            parts.pack.publish(&self.store.chunks)?;
        }
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(Parts { manifest, mut pack }) = self.parts.take() {
            manifest.discard();
            if pack.discard() {
                self.store.give_pack(pack);
            }
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn failed_before() -> Error {
    Error::Internal("this upload failed before; start it again".to_owned())
}

/// Finds where a chunk ends (FastCDC 2020): equal content is cut alike wherever it stands.
struct Cutter {
    mask_small: u64,
    mask_large: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        let (mask_small, mask_large) = select_masks(CHUNK_AVG, Normalization::Level1);
        Self { mask_small, mask_large }
    }
}

impl Cutter {
    /// Length of the first chunk of `bytes`, at least 1 when there are any.
    fn cut(&self, bytes: &[u8]) -> usize {
        let (small, large) = (self.mask_small, self.mask_large);
        let (_, len) = cut(bytes, CHUNK_MIN, CHUNK_AVG, CHUNK_MAX, small, large, small << 1, large << 1);
        len.clamp(1, bytes.len().max(1))
    }
}
