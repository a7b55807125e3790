//! Pack files: chunks one after the other, appended by one writer at a time, read by anybody.
//!
//! A chunk counts once its record is synced and then its index entry: what lies behind the last index entry was never
//! acknowledged. At open such a tail is searched for whole chunks and then cut off; a pack whose index is missing or
//! damaged is searched too, gets a new index, and if bytes are left over it is never appended to again.

use super::format::{CHUNK_MAX, ENTRY_LEN, HEADER_LEN, IndexEntry, Kind, RECORD_LEN, Record};
use super::index::{ChunkIndex, Location};
use super::{Hash, PACKS};
use crate::engine::sync_dir;
use crate::{Error, Result};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pack that has reached this takes no more chunks, bytes. Tests fill several.
const PACK_BYTES_MAX: u64 = if cfg!(test) { 1 << 20 } else { 1 << 30 };
/// Records gathered before one write, bytes.
const STAGE_BYTES: usize = 1 << 20;

/// A pack, for reading.
#[derive(Debug)]
pub struct Pack {
    id: u32,
    path: PathBuf,
    file: File,
}

impl Pack {
    /// The chunk at `location` if its bytes are what `hash` says.
    ///
    /// # Errors
    /// `Corrupt` naming file and chunk.
    pub fn read(&self, hash: &Hash, location: Location) -> Result<Vec<u8>> {
        let mut bytes = vec![0; location.len as usize];
        let read = self.file.read_exact_at(&mut bytes, location.offset + RECORD_LEN as u64);
        match read {
            Ok(()) if blake3::hash(&bytes).as_bytes() == hash => Ok(bytes),
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                Err(Error::io(format!("reading `{}`", self.path.display()))(error))
            }
            _ => Err(Error::Corrupt(format!(
                "chunk `{}` at byte {} of `{}` is damaged",
                super::hex(hash),
                location.offset,
                self.path.display()
            ))),
        }
    }
}

/// A pack in the hands of its one writer.
#[derive(Debug)]
pub struct OpenPack {
    pack: Arc<Pack>,
    index: File,
    /// Behind the last acknowledged record.
    durable: u64,
    /// Behind the last byte written to the file.
    written: u64,
    stage: Vec<u8>,
    /// Chunks since `durable`.
    entries: Vec<IndexEntry>,
    known: HashSet<Hash>,
    /// A sync or an index write failed: what is on disk is not known any more.
    broken: bool,
}

impl OpenPack {
    fn new(pack: Arc<Pack>, index: File, durable: u64) -> Self {
        let (stage, entries, known) = (Vec::new(), Vec::new(), HashSet::new());
        Self { pack, index, durable, written: durable, stage, entries, known, broken: false }
    }

    pub fn pack(&self) -> &Arc<Pack> {
        &self.pack
    }

    pub fn is_full(&self) -> bool {
        self.end() >= PACK_BYTES_MAX
    }

    /// Bytes appended since the last [`Self::publish`].
    pub fn pending_bytes(&self) -> u64 {
        self.end() - self.durable
    }

    /// Whether the chunk was appended since the last [`Self::publish`].
    pub fn has_pending(&self, hash: &Hash) -> bool {
        self.known.contains(hash)
    }

    fn end(&self) -> u64 {
        self.written + self.stage.len() as u64
    }

    /// Appends a chunk, in memory at first.
    ///
    /// # Errors
    /// Failed writes; the caller then [`Self::discard`]s.
    pub fn append(&mut self, hash: Hash, bytes: &[u8]) -> Result<()> {
        let len = u32::try_from(bytes.len()).map_err(|_| Error::Internal("a chunk over 4 GiB".to_owned()))?;
        self.entries.push(IndexEntry { hash, offset: self.end(), len });
        self.known.insert(hash);
        self.stage.extend_from_slice(&Record { hash, len }.encode());
        self.stage.extend_from_slice(bytes);
        if self.stage.len() >= STAGE_BYTES {
            self.write_stage()?;
        }
        Ok(())
    }

    fn write_stage(&mut self) -> Result<()> {
        let context = || format!("appending to `{}`", self.pack.path.display());
        self.pack.file.write_all_at(&self.stage, self.written).map_err(|error| Error::io(context())(error))?;
        start_writeback(&self.pack.file, self.written, self.stage.len() as u64);
        self.written += self.stage.len() as u64;
        self.stage.clear();
        Ok(())
    }

    /// Makes everything appended durable: the chunks first, then their index entries; then tells `index`.
    ///
    /// # Errors
    /// Failed writes and syncs; the caller then [`Self::discard`]s.
    pub fn publish(&mut self, chunks: &parking_lot::RwLock<ChunkIndex>) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        self.write_stage()?;
        self.stage = Vec::new();
        let context = format!("syncing `{}`", self.pack.path.display());
        self.broken = true;
        self.pack.file.sync_data().map_err(Error::io(&context))?;
        append_index(&mut self.index, &self.entries).map_err(Error::io(&context))?;
        self.broken = false;
        self.durable = self.written;
        let mut chunks = chunks.write();
        for entry in self.entries.drain(..) {
            chunks.insert(entry.hash, location(self.pack.id, &entry));
        }
        self.known.clear();
        Ok(())
    }

    /// Drops what was appended since the last publish. `false`: the pack must not be appended to again.
    pub fn discard(&mut self) -> bool {
        self.stage = Vec::new();
        self.entries.clear();
        self.known.clear();
        self.written = self.durable;
        !self.broken && self.pack.file.set_len(self.durable).is_ok()
    }
}

fn location(pack: u32, entry: &IndexEntry) -> Location {
    Location { pack, len: entry.len, offset: entry.offset }
}

fn append_index(index: &mut File, entries: &[IndexEntry]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_LEN);
    for entry in entries {
        bytes.extend_from_slice(&entry.encode());
    }
    index.write_all(&bytes)?;
    index.sync_data()
}

/// Asks the kernel to start writing a range, so that the sync at the end finds little left. Only a hint.
#[cfg(target_os = "linux")]
fn start_writeback(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: a system call on a descriptor that `file` keeps open; it touches no memory of ours.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(not(target_os = "linux"))]
fn start_writeback(_file: &File, _offset: u64, _len: u64) {}

/// Makes an empty pack; its header is on disk before it has its name.
pub fn create(dir: &Path, id: u32, pack_tmp: &Path, index_tmp: &Path) -> Result<OpenPack> {
    let packs = dir.join(PACKS);
    // The index first: a pack without one would look like a pack that lost it.
    make_file(index_tmp, &index_path(&packs, id), &Kind::Index.header())?;
    make_file(pack_tmp, &pack_path(&packs, id), &Kind::Pack.header())?;
    sync_dir(&packs)?;
    let pack = Arc::new(open_pack(&packs, id)?);
    let index = open_index(&packs, id)?;
    Ok(OpenPack::new(pack, index, HEADER_LEN as u64))
}

/// Opens a pack after a stop of any kind, and adds its chunks to `chunks`. `None`: not to be appended to.
pub fn recover(dir: &Path, id: u32, chunks: &mut ChunkIndex) -> Result<(Arc<Pack>, Option<OpenPack>)> {
    let packs = dir.join(PACKS);
    let pack = Arc::new(open_pack(&packs, id)?);
    let io = |doing: &str| Error::io(format!("{doing} `{}`", pack.path.display()));
    let pack_len = pack.file.metadata().map_err(io("opening"))?.len();

    let (indexed, index_whole) = read_index(&index_path(&packs, id), pack_len)?;
    let covered = indexed.last().map_or(HEADER_LEN as u64, IndexEntry::end);
    let (found, durable) = scan(&pack, covered, pack_len)?;
    if !found.is_empty() {
        // They may still be only in the page cache of a process that was killed.
        pack.file.sync_data().map_err(io("syncing"))?;
    }
    let left_over = durable < pack_len && !index_whole;
    if left_over {
        // Somebody may want these bytes: searched again at every open, never cut, never appended to.
        tracing::warn!(pack = %pack.path.display(), bytes = pack_len - durable, "a pack and its index are damaged");
    } else if !found.is_empty() || !index_whole {
        tracing::warn!(pack = %pack.path.display(), chunks = found.len(), index_whole, "rebuilt the index of a pack");
        let mut bytes = Kind::Index.header().to_vec();
        indexed.iter().chain(&found).for_each(|entry| bytes.extend_from_slice(&entry.encode()));
        make_file(&super::temporary(dir, u64::from(id)), &index_path(&packs, id), &bytes)?;
    }
    for entry in indexed.iter().chain(&found) {
        chunks.insert(entry.hash, location(id, entry));
    }
    if durable < pack_len && !left_over {
        pack.file.set_len(durable).map_err(io("cutting the torn tail of"))?;
    }
    if durable >= PACK_BYTES_MAX || left_over {
        return Ok((pack, None));
    }
    let open = OpenPack::new(pack.clone(), open_index(&packs, id)?, durable);
    Ok((pack, Some(open)))
}

/// Ids of the packs in a directory, ascending.
pub fn ids_in(packs: &Path) -> Result<Vec<u32>> {
    let io = || Error::io(format!("listing `{}`", packs.display()));
    let mut ids = Vec::new();
    for entry in fs::read_dir(packs).map_err(io())? {
        let name = entry.map_err(io())?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(".pack")).and_then(|id| id.parse::<u32>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// The index's valid entries, and whether that is all there is in it.
fn read_index(path: &Path, pack_len: u64) -> Result<(Vec<IndexEntry>, bool)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
        Err(error) => return Err(Error::io(format!("opening `{}`", path.display()))(error)),
    };
    let mut input = BufReader::with_capacity(1 << 16, file);
    let io = || Error::io(format!("reading `{}`", path.display()));
    let mut header = [0; HEADER_LEN];
    if read_whole(&mut input, &mut header).map_err(io())? != HEADER_LEN {
        return Ok((Vec::new(), false));
    }
    match Kind::Index.check(&header, path) {
        Ok(()) => {}
        Err(Error::Corrupt(_)) => return Ok((Vec::new(), false)),
        Err(newer) => return Err(newer),
    }
    let mut entries: Vec<IndexEntry> = Vec::new();
    let mut bytes = [0; ENTRY_LEN];
    loop {
        match read_whole(&mut input, &mut bytes).map_err(io())? {
            0 => return Ok((entries, true)),
            ENTRY_LEN => {}
            _ => return Ok((entries, false)),
        }
        let after = entries.last().map_or(HEADER_LEN as u64, IndexEntry::end);
        match IndexEntry::decode(&bytes) {
            Some(entry) if entry.offset >= after && entry.end() <= pack_len => entries.push(entry),
            _ => return Ok((entries, false)),
        }
    }
}

/// Whole chunks from `from` on, each verified, and the offset behind the last one.
fn scan(pack: &Pack, from: u64, pack_len: u64) -> Result<(Vec<IndexEntry>, u64)> {
    let io = || Error::io(format!("reading `{}`", pack.path.display()));
    let (mut found, mut durable, mut at) = (Vec::new(), from, from);
    let mut bytes = Vec::with_capacity(CHUNK_MAX);
    while at + RECORD_LEN as u64 <= pack_len {
        let mut head = [0; RECORD_LEN];
        pack.file.read_exact_at(&mut head, at).map_err(io())?;
        let Some(record) = Record::decode(&head) else { break };
        let entry = IndexEntry { hash: record.hash, offset: at, len: record.len };
        if entry.end() > pack_len {
            break;
        }
        bytes.resize(record.len as usize, 0);
        pack.file.read_exact_at(&mut bytes, at + RECORD_LEN as u64).map_err(io())?;
        at = entry.end();
        if blake3::hash(&bytes).as_bytes() == &record.hash {
            durable = at;
            found.push(entry);
        }
    }
    Ok((found, durable))
}

/// Reads until `bytes` is full or the input ends; returns how many.
fn read_whole(input: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

/// A file that has all its bytes when it gets its name. The caller syncs the directory.
fn make_file(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let io = || Error::io(format!("making `{}`", path.display()));
    let mut file = File::create(tmp).map_err(io())?;
    file.write_all(bytes).map_err(io())?;
    file.sync_all().map_err(io())?;
    fs::rename(tmp, path).map_err(io())
}

fn open_pack(packs: &Path, id: u32) -> Result<Pack> {
    let path = pack_path(packs, id);
    let io = || Error::io(format!("opening `{}`", path.display()));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io())?;
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).map_err(io())?;
    Kind::Pack.check(&header, &path)?;
    Ok(Pack { id, path, file })
}

fn open_index(packs: &Path, id: u32) -> Result<File> {
    let path = index_path(packs, id);
    OpenOptions::new().append(true).open(&path).map_err(Error::io(format!("opening `{}`", path.display())))
}

fn pack_path(packs: &Path, id: u32) -> PathBuf {
    packs.join(format!("{id:08}.pack"))
}

fn index_path(packs: &Path, id: u32) -> PathBuf {
    packs.join(format!("{id:08}.index"))
}
