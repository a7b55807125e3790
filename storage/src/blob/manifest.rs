//! Manifests: which chunks make a file, in order. Written and read as a stream; a file's name is its root.

use super::format::{CHUNK_LEN, HEADER_LEN, Kind, ManifestChunk, TRAILER_LEN, Trailer};
use super::{Blob, Hash, parse_hex};
use crate::engine::sync_dir;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A manifest under way, in a temporary file.
#[derive(Debug)]
pub struct ManifestWriter {
    path: PathBuf,
    output: BufWriter<File>,
    checksum: blake3::Hasher,
    chunks: u64,
}

impl ManifestWriter {
    pub fn new(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io(format!("making `{}`", path.display())))?;
        let output = BufWriter::with_capacity(1 << 16, file);
        let mut writer = Self { path, output, checksum: blake3::Hasher::new(), chunks: 0 };
        writer.put(&Kind::Manifest.header())?;
        Ok(writer)
    }

    pub fn push(&mut self, chunk: ManifestChunk) -> Result<()> {
        self.chunks += 1;
        self.put(&chunk.encode())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.checksum.update(bytes);
        self.output.write_all(bytes).map_err(|error| Error::io(format!("writing `{}`", self.path.display()))(error))
    }

    /// Puts the manifest in its place, durably.
    pub fn finish(mut self, blob: &Blob, path: &Path, dir: &Path) -> Result<()> {
        let trailer = Trailer { root: blob.root, sha256: blob.sha256, size: blob.size, chunks: self.chunks };
        self.put(&trailer.encode())?;
        let checksum = *self.checksum.finalize().as_bytes();
        self.put(&checksum)?;
        let io = || Error::io(format!("making `{}`", path.display()));
        self.output.flush().map_err(io())?;
        self.output.get_ref().sync_all().map_err(io())?;
        fs::rename(&self.path, path).map_err(io())?;
        sync_dir(dir)
    }

    /// Removes the temporary file. Should that fail, the next open does it.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A manifest that passed its checksum.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    file: File,
    trailer: Trailer,
}

impl Manifest {
    /// Opens and checks the whole manifest (40 bytes a chunk).
    pub fn open(path: &Path, root: &Hash) -> Result<Self> {
        let io = || Error::io(format!("reading `{}`", path.display()));
        let damaged = |what: &str| {
            Error::Corrupt(format!("the manifest of artifact `{}`, `{}`, {what}", super::hex(root), path.display()))
        };
        let file = File::open(path).map_err(io())?;
        let len = file.metadata().map_err(io())?.len();
        let body = len.checked_sub((HEADER_LEN + TRAILER_LEN) as u64).ok_or_else(|| damaged("is too short"))?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(io())?;
        Kind::Manifest.check(&header, path)?;

        let mut checksum = blake3::Hasher::new();
        let mut input = BufReader::with_capacity(1 << 16, &file);
        std::io::copy(&mut (&mut input).take(len - TRAILER_LEN as u64), &mut checksum).map_err(io())?;
        let mut end = [0; TRAILER_LEN];
        input.read_exact(&mut end).map_err(io())?;
        checksum.update(&end[..TRAILER_LEN - 32]);
        let (trailer, sum) = Trailer::decode(&end);
        if checksum.finalize().as_bytes() != &sum {
            return Err(damaged("fails its checksum"));
        }
        if trailer.root != *root || trailer.chunks.checked_mul(CHUNK_LEN as u64) != Some(body) {
            return Err(damaged("is another file's"));
        }
        Ok(Self { path: path.to_owned(), file, trailer })
    }

    pub fn blob(&self) -> Blob {
        let Trailer { root, sha256, size, .. } = self.trailer;
        Blob { root, sha256, size }
    }

    /// The chunks from the one that holds byte `offset` on, and where that one starts in the file.
    pub fn chunks_from(self, offset: u64) -> Result<(ManifestChunks, u64)> {
        // Ends ascend: binary search for the first chunk that ends behind the offset.
        let (mut low, mut high) = (0, self.trailer.chunks);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.chunk(middle)?.end <= offset { low = middle + 1 } else { high = middle }
        }
        let start = if low == 0 { 0 } else { self.chunk(low - 1)?.end };
        let (path, left) = (self.path, self.trailer.chunks - low);
        let mut file = self.file;
        file.seek(SeekFrom::Start(HEADER_LEN as u64 + low * CHUNK_LEN as u64))
            .map_err(Error::io(format!("reading `{}`", path.display())))?;
        Ok((ManifestChunks { input: BufReader::with_capacity(1 << 13, file), path, left }, start))
    }

    fn chunk(&self, number: u64) -> Result<ManifestChunk> {
        let mut bytes = [0; CHUNK_LEN];
        self.file
            .read_exact_at(&mut bytes, HEADER_LEN as u64 + number * CHUNK_LEN as u64)
            .map_err(Error::io(format!("reading `{}`", self.path.display())))?;
        Ok(ManifestChunk::decode(&bytes))
    }
}

/// The chunks of one file, in order.
#[derive(Debug)]
pub struct ManifestChunks {
    input: BufReader<File>,
    path: PathBuf,
    left: u64,
}

impl ManifestChunks {
    pub fn next_chunk(&mut self) -> Result<Option<ManifestChunk>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = [0; CHUNK_LEN];
        self.input
            .read_exact(&mut bytes)
            .map_err(|error| Error::io(format!("reading `{}`", self.path.display()))(error))?;
        Ok(Some(ManifestChunk::decode(&bytes)))
    }
}

/// Roots of the manifests in a directory. Files with other names are left alone.
pub fn roots_in(manifests: &Path) -> Result<BTreeSet<Hash>> {
    let io = || Error::io(format!("listing `{}`", manifests.display()));
    let mut roots = BTreeSet::new();
    for entry in fs::read_dir(manifests).map_err(io())? {
        let name = entry.map_err(io())?.file_name();
        roots.extend(name.to_str().and_then(|name| parse_hex(name).ok()));
    }
    Ok(roots)
}
