//! A snapshot on its way in, and what of it stays when the way breaks.
//!
//! ```text
//! incoming/OF             crc32c and the encoded position of the last snapshot that was begun
//! incoming/<blake3>       a whole file: verified and durable before it has this name
//! incoming/<blake3>.part  the beginning of one
//! ```
//! Files are kept by what is in them, so the next try goes on where this one stopped, and one of a newer checkpoint finds
//! the files that are in both. Always true: there is nothing here but files of the last list that was begun, so at most
//! one snapshot; one transfer writes at a time, the youngest; the beginning of a file counts for nothing until the whole
//! has its hash; what is of a snapshot that the replica has passed goes as soon as no transfer writes it.

use super::{read_checked, sync_dir, write_checked};
use crate::codec;
use crate::error::{Error, Result};
use crate::types::*;
use bytes::Bytes;
use cairn_proto::peer::v1::{SnapshotFile, SnapshotFrame, SnapshotPart, SnapshotStart, snapshot_frame::Part};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const FILES_MAX: usize = 1 << 18;
const OF: &str = "OF";
const PART: &str = ".part";
const NOTHING: u64 = u64::MAX;

/// Bytes of snapshots that came in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Over the connection.
    pub sent: u64,
    /// Already here from a transfer that broke, and not sent again.
    pub kept: u64,
}

/// What came of a group's snapshots so far and is not installed.
#[derive(Debug)]
pub struct Parts {
    root: PathBuf,
    turn: Mutex<Turn>,
    /// Index of the snapshot that is here in part; [`NOTHING`] when none is.
    of: AtomicU64,
    /// Index that the replica has come to.
    applied: AtomicU64,
    sent: AtomicU64,
    kept: AtomicU64,
}

#[derive(Debug, Default)]
struct Turn {
    /// Of the transfer that may write.
    number: u64,
    /// Whether it still does.
    under_way: bool,
}

impl Turn {
    fn next(&mut self, under_way: bool) -> u64 {
        *self = Self { number: self.number + 1, under_way };
        self.number
    }
}

impl Parts {
    /// Keeps what an interrupted transfer left under `root`, if it is known what of.
    pub fn open(root: PathBuf) -> Result<Self> {
        let parts = Self {
            root,
            turn: Mutex::default(),
            of: AtomicU64::new(NOTHING),
            applied: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        };
        match parts.read_of()? {
            Some(of) => parts.of.store(index_or_zero(of.last_log_id.as_ref()), Ordering::Release),
            None => parts.remove_all()?,
        }
        Ok(parts)
    }

    pub fn received(&self) -> Received {
        Received { sent: self.sent.load(Ordering::Relaxed), kept: self.kept.load(Ordering::Relaxed) }
    }

    /// What is here, for the sender. Blocks.
    pub fn have(&self) -> Result<Vec<SnapshotPart>> {
        let _turn = self.turn.lock();
        let list = || -> std::io::Result<Vec<SnapshotPart>> {
            let mut have = Vec::new();
            for (path, name) in self.list()? {
                let whole = !name.ends_with(PART);
                let Some(blake3) = hash_of(name.trim_end_matches(PART)) else { continue };
                have.push(SnapshotPart { blake3, bytes: fs::metadata(path)?.len(), whole });
            }
            Ok(have)
        };
        list().map_err(self.cannot("list"))
    }

    /// Begins the transfer of a snapshot at `meta` of `files`. Whatever is not of it goes; an older transfer ends. Blocks.
    pub fn begin(self: &Arc<Self>, meta: &SnapshotMeta, files: Vec<SnapshotFile>) -> Result<Incoming> {
        check(&files)?;
        let mut turn = self.turn.lock();
        let number = turn.next(false);
        let begin = || -> std::io::Result<()> {
            fs::create_dir_all(&self.root)?;
            let wanted: BTreeSet<String> = files.iter().map(|file| hex(&file.blake3)).collect();
            for (path, name) in self.list()? {
                if name != OF && !wanted.contains(name.trim_end_matches(PART)) {
                    fs::remove_file(path)?;
                }
            }
            self.of.store(index_or_zero(meta.last_log_id.as_ref()), Ordering::Release);
            write_checked(&self.root.join(OF), &codec::encode_meta(meta))
        };
        begin().map_err(self.cannot("begin a snapshot in"))?;
        turn.under_way = true;
        Ok(Incoming { parts: self.clone(), turn: number, files, open: None, sent: 0 })
    }

    /// The replica has come to `index`. Blocks when that ends the use of what is here.
    pub fn passed(&self, index: u64) -> Result<()> {
        self.applied.fetch_max(index, Ordering::AcqRel);
        if self.of.load(Ordering::Acquire) > index {
            return Ok(());
        }
        let turn = self.turn.lock();
        // The sender learns from the end of its transfer how far this replica is, and would begin a broken one anew.
        if turn.under_way { Ok(()) } else { self.forget_passed() }
    }

    /// The holder of the turn calls.
    fn forget_passed(&self) -> Result<()> {
        let passed = self.of.load(Ordering::Acquire) <= self.applied.load(Ordering::Acquire);
        if passed { self.remove_all() } else { Ok(()) }
    }

    /// Removes what is of a snapshot no newer than `position`, because the replica has come that far. A transfer of it
    /// that is under way ends. Blocks.
    pub fn forget_upto(&self, position: Option<&LogId>) -> Result<()> {
        let mut turn = self.turn.lock();
        let index = index_or_zero(position);
        self.applied.fetch_max(index, Ordering::AcqRel);
        if self.of.load(Ordering::Acquire) > index {
            return Ok(());
        }
        turn.next(false);
        self.remove_all()
    }

    /// The snapshot that the files are of.
    fn read_of(&self) -> Result<Option<SnapshotMeta>> {
        let path = self.root.join(OF);
        let Some(bytes) = read_checked(&path)? else { return Ok(None) };
        // Written by another version: of no use to this one.
        Ok(codec::decode_meta(bytes.into()).ok())
    }

    fn remove_all(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.cannot("remove")(error)),
            _ => {
                self.of.store(NOTHING, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Files and their names, in order of these.
    fn list(&self) -> std::io::Result<Vec<(PathBuf, String)>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
        }
        found.sort();
        Ok(found)
    }

    fn cannot(&self, what: &str) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.root.display()))
    }

    fn whole(&self, file: &SnapshotFile) -> PathBuf {
        self.root.join(hex(&file.blake3))
    }

    fn part(&self, file: &SnapshotFile) -> PathBuf {
        self.root.join(hex(&file.blake3) + PART)
    }
}

/// A list of files that may be received: plain names, each once, hashes of the right length.
fn check(files: &[SnapshotFile]) -> Result<()> {
    if files.len() > FILES_MAX {
        let count = files.len();
        return Err(Error::TooLarge(format!("a snapshot of {count} files is over the limit of {FILES_MAX}")));
    }
    let mut names = BTreeSet::new();
    for file in files {
        let name = file.name.as_str();
        let plain = !name.is_empty()
            && name.len() <= 255
            && name != "."
            && name != ".."
            && !name.contains(['/', '\\', '\0'])
            && names.insert(name);
        if !plain {
            return Err(Error::InvalidArgument("a snapshot file has no plain name of its own".into()));
        }
        if file.blake3.len() != blake3::OUT_LEN {
            return Err(Error::InvalidArgument(format!("snapshot file `{name}` has no BLAKE3")));
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash_of(name: &str) -> Option<Bytes> {
    blake3::Hash::from_hex(name).ok().map(|hash| Bytes::copy_from_slice(hash.as_bytes()))
}

/// A snapshot on its way in. What it brought stays when it is dropped.
#[derive(Debug)]
pub struct Incoming {
    parts: Arc<Parts>,
    turn: u64,
    files: Vec<SnapshotFile>,
    open: Option<Open>,
    sent: u64,
}

#[derive(Debug)]
struct Open {
    of: SnapshotFile,
    file: File,
    left: u64,
    hasher: Box<blake3::Hasher>,
}

impl Incoming {
    /// Takes the next frame after the header. Blocks.
    pub fn accept(&mut self, frame: SnapshotFrame) -> Result<()> {
        let parts = self.parts.clone();
        let turn = parts.turn.lock();
        self.check_turn(turn.number)?;
        let taken = match frame.part {
            Some(Part::Start(start)) => self.start(&start),
            Some(Part::Data(data)) => self.append(&data),
            Some(Part::Header(_)) | None => Err(Error::InvalidArgument("a snapshot frame is out of place".into())),
        };
        if let Err(Error::Io { .. }) = &taken {
            // A full disk gets its room back.
            parts.remove_all()?;
        }
        taken
    }

    fn check_turn(&self, turn: u64) -> Result<()> {
        match turn == self.turn {
            true => Ok(()),
            false => Err(Error::Unavailable("another snapshot has taken the place of this one".into())),
        }
    }

    fn start(&mut self, start: &SnapshotStart) -> Result<()> {
        if self.open.is_some() {
            return Err(Error::InvalidArgument("a snapshot file began before the one before it ended".into()));
        }
        let file = usize::try_from(start.file).ok().and_then(|number| self.files.get(number)).cloned();
        let Some(of) = file else {
            return Err(Error::InvalidArgument("a snapshot has more files than announced".into()));
        };
        let Some(left) = of.size.checked_sub(start.offset) else {
            return Err(Error::InvalidArgument(format!("snapshot file `{}` begins behind its end", of.name)));
        };
        let (whole, part) = (self.parts.whole(&of), self.parts.part(&of));
        let open = || -> std::io::Result<Option<(File, Box<blake3::Hasher>)>> {
            // It was finished since the sender asked.
            if whole.exists() {
                fs::rename(&whole, &part)?;
            }
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
            if file.metadata()?.len() < start.offset {
                return Ok(None);
            }
            file.set_len(start.offset)?;
            let mut hasher = Box::new(blake3::Hasher::new());
            std::io::copy(&mut Read::by_ref(&mut file).take(start.offset), &mut hasher)?;
            file.seek(std::io::SeekFrom::Start(start.offset))?;
            Ok(Some((file, hasher)))
        };
        let opened = open().map_err(Error::io(format!("cannot make {}", part.display())))?;
        let Some((file, hasher)) = opened else {
            return Err(Error::Unavailable(format!("the beginning of snapshot file `{}` is gone", of.name)));
        };
        self.open = Some(Open { of, file, left, hasher });
        self.close_when_whole()
    }

    fn append(&mut self, data: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::InvalidArgument("snapshot data came before its file".into()));
        };
        let Some(left) = open.left.checked_sub(data.len() as u64) else {
            return Err(Error::InvalidArgument(format!("snapshot file `{}` is longer than announced", open.of.name)));
        };
        open.left = left;
        open.hasher.update(data);
        let name = &open.of.name;
        open.file.write_all(data).map_err(Error::io(format!("cannot write snapshot file {name}")))?;
        self.sent += data.len() as u64;
        self.parts.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.close_when_whole()
    }

    fn close_when_whole(&mut self) -> Result<()> {
        let Some(open) = self.open.take_if(|open| open.left == 0) else { return Ok(()) };
        let (name, part) = (&open.of.name, self.parts.part(&open.of));
        let failed = |what: &str| Error::io(format!("cannot {what} snapshot file {name}"));
        if open.hasher.finalize().as_bytes().as_slice() != open.of.blake3.as_ref() {
            // Whichever half is wrong: the next try begins anew.
            fs::remove_file(&part).map_err(failed("remove"))?;
            return Err(Error::Corrupt(format!("snapshot file `{name}` does not match its BLAKE3")));
        }
        open.file.sync_all().map_err(failed("sync"))?;
        fs::rename(&part, self.parts.whole(&open.of)).map_err(failed("name"))
    }

    /// Puts the whole snapshot together in `data`, an empty directory; durable when this returns. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when files are missing.
    pub fn finish(self, data: &Path) -> Result<Received> {
        let turn = self.parts.turn.lock();
        self.check_turn(turn.number)?;
        let lacking = |file: &&SnapshotFile| !self.parts.whole(file).exists();
        if self.open.is_some() || self.files.iter().any(|file| lacking(&file)) {
            return Err(Error::Unavailable("a snapshot transfer ended before its last file".into()));
        }
        let assemble = || -> std::io::Result<()> {
            sync_dir(&self.parts.root)?;
            for file in &self.files {
                put(&self.parts.whole(file), &data.join(&file.name))?;
            }
            sync_dir(data)
        };
        assemble().map_err(Error::io(format!("cannot put a snapshot together in {}", data.display())))?;
        let total: u64 = self.files.iter().map(|file| file.size).sum();
        let received = Received { sent: self.sent, kept: total.saturating_sub(self.sent) };
        self.parts.kept.fetch_add(received.kept, Ordering::Relaxed);
        Ok(received)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut turn = self.parts.turn.lock();
        if turn.number != self.turn {
            return;
        }
        turn.under_way = false;
        if let Err(error) = self.parts.forget_passed() {
            tracing::warn!(%error, "what came of a snapshot stays, though it is of no use");
        }
    }
}

/// The same file under a second name: table files never change and are linked, the rest is copied.
pub(super) fn put(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.extension().is_some_and(|extension| extension == "sst") {
        return fs::hard_link(from, to);
    }
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}
