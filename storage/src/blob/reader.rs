//! Reading a file back, chunk by chunk, each verified before it leaves.

use super::manifest::{Manifest, ManifestChunks};
use super::{Blob, BlobStore, Hash, hex};
use crate::{Error, Result};
use bytes::{Buf, Bytes};
use std::io::Read;
use std::sync::Arc;

/// A file being read. Holds one chunk in memory.
pub struct BlobReader {
    store: Arc<BlobStore>,
    blob: Blob,
    chunks: ManifestChunks,
    /// Offset in the file of the next chunk.
    at: u64,
    /// Bytes of the next chunk to leave out: the reader started inside it.
    skip: usize,
    /// Of all bytes so far; only when read from the start.
    root: Option<blake3::Hasher>,
    /// Left over by [`Read`].
    rest: Bytes,
}

impl BlobReader {
    pub(super) fn new(store: Arc<BlobStore>, manifest: Manifest, offset: u64) -> Result<Self> {
        let blob = manifest.blob();
        if offset > blob.size {
            return Err(Error::InvalidArgument(format!(
                "offset {offset} is behind the end of artifact `{}`, which has {} bytes",
                hex(&blob.root),
                blob.size
            )));
        }
        let (chunks, at) = manifest.chunks_from(offset)?;
        let skip = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
        let root = (offset == 0).then(blake3::Hasher::new);
        Ok(Self { store, blob, chunks, at, skip, root, rest: Bytes::new() })
    }

    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The next verified bytes, at most 256 KiB; `None` at the end. Blocks on the disk.
    ///
    /// # Errors
    /// `Corrupt` naming file and chunk; a reader from the start gives its last chunk only when the root fits too.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(chunk) = self.chunks.next_chunk()? else { return Ok(None) };
        let bytes = self.read_chunk(&chunk.hash)?;
        self.at += bytes.len() as u64;
        if self.at != chunk.end {
            return Err(self.corrupt("its manifest and its chunks differ in length"));
        }
        if let Some(root) = &mut self.root {
            root.update(&bytes);
            if self.at == self.blob.size && root.finalize().as_bytes() != &self.blob.root {
                return Err(self.corrupt("its chunks do not add up to its root"));
            }
        }
        let skip = std::mem::take(&mut self.skip).min(bytes.len());
        Ok(Some(bytes.slice(skip..)))
    }

    /// Any good copy of a chunk; damaged ones are forgotten, so that sending the file again repairs it.
    fn read_chunk(&self, hash: &Hash) -> Result<Bytes> {
        let copies = self.store.chunks.read().locations(hash);
        let mut failure = format!("chunk `{}` is missing", hex(hash));
        for location in copies {
            let pack = self.store.packs.read().get(&location.pack).cloned();
            let Some(pack) = pack else { continue };
            match pack.read(hash, location) {
                Ok(bytes) => return Ok(Bytes::from(bytes)),
                Err(Error::Corrupt(message)) => {
                    tracing::error!(%message, "a stored chunk is damaged");
                    self.store.chunks.write().forget(hash, location);
                    failure = message;
                }
                Err(error) => return Err(error),
            }
        }
        Err(self.corrupt(&failure))
    }

    fn corrupt(&self, what: &str) -> Error {
        let root = hex(&self.blob.root);
        Error::Corrupt(format!("artifact `{root}` cannot be read: {what}; send the file again to repair it"))
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.next_chunk().map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let len = out.len().min(self.rest.len());
        out[..len].copy_from_slice(&self.rest[..len]);
        self.rest.advance(len);
        Ok(len)
    }
}
