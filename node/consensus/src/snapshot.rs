//! Snapshots of one group: checkpoint directories on disk, and their way to another node.
//!
//! ```text
//! snapshots/<group>/snap-<n>/META        crc32c and the encoded position, written last
//!                           /data/…      the checkpoint, plain files
//!                   /tmp-<n>, incoming-<n>   half made; removed at start
//! ```
//! A snapshot is there exactly when its META is. The newest one survives a restart. A replaced snapshot loses its META
//! at once and its files when the last transfer of it ends. What was received is verified file by file (BLAKE3) and
//! fsynced before anything is done with it.

use crate::codec;
use crate::error::{Error, Result};
use crate::machine;
use crate::types::*;
use bytes::Bytes;
use cairn_proto::peer::v1::{SnapshotFile, SnapshotFrame, SnapshotHeader, snapshot_frame::Part};
use cairn_storage::replica::Replica;
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Largest piece of a file in one frame, bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
const FILES_MAX: u32 = 1 << 20;
const META: &str = "META";
const DATA: &str = "data";

pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// A checkpoint directory that stays as long as someone holds it.
#[derive(Debug, Clone)]
pub struct SnapshotDir(Arc<Held>);

#[derive(Debug)]
struct Held {
    root: PathBuf,
    /// Removed when the last holder lets go.
    temporary: AtomicBool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.temporary.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.root)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.root.display(), %error, "cannot remove an old snapshot");
        }
    }
}

impl SnapshotDir {
    fn new(root: PathBuf, temporary: bool) -> Self {
        Self(Arc::new(Held { root, temporary: AtomicBool::new(temporary) }))
    }

    fn data(&self) -> PathBuf {
        self.0.root.join(DATA)
    }
}

/// The snapshots of one group on this node.
#[derive(Debug)]
pub struct SnapshotStore {
    root: PathBuf,
    next: AtomicU64,
    /// Building and installing exclude each other, so an older state never replaces a newer snapshot.
    work: Mutex<()>,
    current: Mutex<Option<(SnapshotMeta, SnapshotDir)>>,
}

impl SnapshotStore {
    /// Finds the newest whole snapshot under `root` and removes everything else there.
    pub fn open(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).map_err(Error::io(format!("cannot make {}", root.display())))?;
        let list = || -> std::io::Result<Vec<PathBuf>> { fs::read_dir(&root)?.map(|e| Ok(e?.path())).collect() };
        let mut newest: Option<(SnapshotMeta, PathBuf)> = None;
        let mut next = 1;
        for path in list().map_err(Error::io(format!("cannot list {}", root.display())))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(number) = name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok()) {
                next = next.max(number.saturating_add(1));
            }
            let meta = if name.starts_with("snap-") { read_meta(&path)? } else { None };
            let stale = match (meta, &mut newest) {
                (None, _) => Some(path),
                (Some(meta), Some((best, best_path))) if meta.last_log_id > best.last_log_id => {
                    *best = meta;
                    Some(std::mem::replace(best_path, path))
                }
                (Some(_), Some(_)) => Some(path),
                (Some(meta), None) => {
                    newest = Some((meta, path));
                    None
                }
            };
            if let Some(path) = stale {
                fs::remove_dir_all(&path).map_err(Error::io(format!("cannot remove {}", path.display())))?;
            }
        }
        let current = newest.map(|(meta, path)| (meta, SnapshotDir::new(path, false)));
        Ok(Self { root, next: AtomicU64::new(next), work: Mutex::new(()), current: Mutex::new(current) })
    }

    pub fn current(&self) -> Option<Snapshot> {
        let current = self.current.lock();
        current.as_ref().map(|(meta, dir)| Snapshot { meta: meta.clone(), snapshot: dir.clone() })
    }

    /// Makes a checkpoint of `replica` the current snapshot. Blocks.
    pub fn build(&self, replica: &dyn Replica) -> Result<Snapshot> {
        let _working = self.work.lock();
        self.checkpoint(replica)
    }

    fn checkpoint(&self, replica: &dyn Replica) -> Result<Snapshot> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let building = SnapshotDir::new(self.root.join(format!("tmp-{number}")), true);
        let context = || format!("cannot make a snapshot in {}", self.root.display());
        fs::create_dir(&building.0.root).map_err(Error::io(context()))?;
        let fatal = |fatal: cairn_storage::Fatal| Error::Internal(format!("{}: {fatal}", context()));
        let position = replica.checkpoint(&building.data()).map_err(fatal)?;
        let meta = codec::decode_meta(Bytes::from(position)).map_err(|error| Error::Corrupt(error.to_string()))?;
        let path = self.root.join(format!("snap-{number}"));
        let publish = || -> std::io::Result<()> {
            sync_dir(&building.data())?;
            write_meta(&building.0.root, &meta)?;
            fs::rename(&building.0.root, &path)?;
            sync_dir(&self.root)
        };
        publish().map_err(Error::io(context()))?;
        let dir = SnapshotDir::new(path, false);
        let replaced = self.current.lock().replace((meta.clone(), dir.clone()));
        if let Some((_, old)) = replaced {
            self.discard(&old).map_err(Error::io(context()))?;
        }
        Ok(Snapshot { meta, snapshot: dir })
    }

    /// Replaces the state of `replica` by `snapshot` and makes that the current snapshot. Blocks.
    ///
    /// A crash on the way leaves the old or the new state, and no snapshot older than the state.
    pub fn install(&self, replica: &dyn Replica, snapshot: &SnapshotDir) -> Result<Snapshot> {
        let _working = self.work.lock();
        let context = || format!("cannot install a snapshot from {}", snapshot.0.root.display());
        let keep = !snapshot.0.temporary.load(Ordering::Acquire);
        let source = if keep { self.link(snapshot).map_err(Error::io(context()))? } else { snapshot.clone() };
        let old = self.current.lock().take();
        if let Some((_, old)) = old {
            self.discard(&old).map_err(Error::io(context()))?;
        }
        let fatal = |fatal: cairn_storage::Fatal| Error::Internal(format!("{}: {fatal}", context()));
        replica.install(&source.data()).map_err(fatal)?;
        self.checkpoint(replica)
    }

    /// Makes `received` the current snapshot and forgets the one before, whatever it holds. Blocks.
    pub fn replace(&self, received: &SnapshotDir, meta: &SnapshotMeta) -> Result<()> {
        let _working = self.work.lock();
        let context = || format!("cannot keep a snapshot in {}", self.root.display());
        let old = self.current.lock().take();
        if let Some((_, old)) = old {
            self.discard(&old).map_err(Error::io(context()))?;
        }
        let path = self.root.join(format!("snap-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let publish = || -> std::io::Result<()> {
            write_meta(&received.0.root, meta)?;
            fs::rename(&received.0.root, &path)?;
            sync_dir(&self.root)
        };
        publish().map_err(Error::io(context()))?;
        *self.current.lock() = Some((meta.clone(), SnapshotDir::new(path, false)));
        Ok(())
    }

    /// Invalid from now on, removed when nobody reads it any more.
    fn discard(&self, old: &SnapshotDir) -> std::io::Result<()> {
        fs::remove_file(old.0.root.join(META))?;
        sync_dir(&old.0.root)?;
        old.0.temporary.store(true, Ordering::Release);
        Ok(())
    }

    /// A second directory with the same content: table files never change and are linked, the rest is copied.
    fn link(&self, from: &SnapshotDir) -> std::io::Result<SnapshotDir> {
        let to = self.incoming()?;
        for entry in fs::read_dir(from.data())? {
            let path = entry?.path();
            let Some(name) = path.file_name() else { continue };
            let target = to.data().join(name);
            if path.extension().is_some_and(|extension| extension == "sst") {
                fs::hard_link(&path, &target)?;
            } else {
                fs::copy(&path, &target)?;
            }
        }
        Ok(to)
    }

    fn incoming(&self) -> std::io::Result<SnapshotDir> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = SnapshotDir::new(self.root.join(format!("incoming-{number}")), true);
        fs::create_dir_all(dir.data())?;
        Ok(dir)
    }

    /// Starts to receive a snapshot of `files` files. Blocks.
    pub fn receive(&self, files: u32) -> Result<Incoming> {
        if files > FILES_MAX {
            return Err(Error::TooLarge(format!("a snapshot of {files} files is over the limit of {FILES_MAX}")));
        }
        let dir = self.incoming().map_err(Error::io(format!("cannot make a directory in {}", self.root.display())))?;
        Ok(Incoming { dir, left: files, file: None })
    }
}

fn write_meta(root: &Path, meta: &SnapshotMeta) -> std::io::Result<()> {
    let bytes = codec::encode_meta(meta);
    let mut file = File::create(root.join(META))?;
    file.write_all(&crc32c::crc32c(&bytes).to_be_bytes())?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    sync_dir(root)
}

/// `None` when there is no META or it was cut short: then the directory is no snapshot.
fn read_meta(root: &Path) -> Result<Option<SnapshotMeta>> {
    let path = root.join(META);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { context: format!("cannot read {}", path.display()), source }),
    };
    let Some((crc, meta)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if u32::from_be_bytes(*crc) != crc32c::crc32c(meta) {
        return Ok(None);
    }
    let meta = codec::decode_meta(Bytes::copy_from_slice(meta));
    meta.map(Some).map_err(|error| Error::Unsupported(format!("{}: {error}", path.display())))
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

// ---------------------------------------------------------------- sending

/// Reads `dir` into frames beside everything else, at most `bytes_per_second` of them (0 = no limit).
///
/// The stream ends early when reading fails; the receiver then misses files and refuses the whole.
pub fn send(dir: SnapshotDir, header: SnapshotHeader, bytes_per_second: u64) -> mpsc::Receiver<SnapshotFrame> {
    let (frames, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        if let Err(error) = send_files(&dir, header, bytes_per_second, &frames).await {
            tracing::warn!(dir = %dir.0.root.display(), %error, "a snapshot transfer stopped");
        }
    });
    receiver
}

async fn send_files(
    dir: &SnapshotDir,
    mut header: SnapshotHeader,
    bytes_per_second: u64,
    frames: &mpsc::Sender<SnapshotFrame>,
) -> std::io::Result<()> {
    let data = dir.data();
    let paths = machine::blocking(move || list(&data)).await??;
    header.files = u32::try_from(paths.len()).map_err(std::io::Error::other)?;
    push(frames, Part::Header(header)).await?;
    let started = Instant::now();
    let mut sent = 0u64;
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| std::io::Error::other("a file name is not UTF-8"))?.to_owned();
        let (mut file, size, blake3) = machine::blocking(move || open_hashed(&path)).await??;
        push(frames, Part::File(SnapshotFile { name, size, blake3 })).await?;
        let mut left = size;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES_MAX);
            let read = move || {
                let mut piece = vec![0; length];
                file.read_exact(&mut piece).map(|()| (file, piece))
            };
            let piece;
            (file, piece) = machine::blocking(read).await??;
            push(frames, Part::Data(piece.into())).await?;
            left -= length as u64;
            sent += length as u64;
            if bytes_per_second > 0 {
                let due = started + Duration::from_secs_f64(sent as f64 / bytes_per_second as f64);
                tokio::time::sleep_until(due).await;
            }
        }
    }
    Ok(())
}

async fn push(frames: &mpsc::Sender<SnapshotFrame>, part: Part) -> std::io::Result<()> {
    let gone = |_| std::io::Error::other("the receiver went away");
    frames.send(SnapshotFrame { part: Some(part) }).await.map_err(gone)
}

/// The files of a checkpoint, in order of their names.
fn list(data: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(data)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// A file at its start, its length and its BLAKE3.
fn open_hashed(path: &Path) -> std::io::Result<(File, u64, Bytes)> {
    let mut hasher = blake3::Hasher::new();
    let size = std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((File::open(path)?, size, Bytes::copy_from_slice(hasher.finalize().as_bytes())))
}

// ---------------------------------------------------------------- receiving

/// A snapshot on its way in. Dropping it removes what came so far.
#[derive(Debug)]
pub struct Incoming {
    dir: SnapshotDir,
    left: u32,
    file: Option<IncomingFile>,
}

#[derive(Debug)]
struct IncomingFile {
    name: String,
    file: File,
    left: u64,
    blake3: Bytes,
    hasher: Box<blake3::Hasher>,
}

impl Incoming {
    /// Takes the next frame after the header. Blocks.
    pub fn accept(&mut self, frame: SnapshotFrame) -> Result<()> {
        match frame.part {
            Some(Part::File(file)) => self.begin(file),
            Some(Part::Data(data)) => self.append(&data),
            Some(Part::Header(_)) | None => Err(Error::InvalidArgument("a snapshot frame is out of place".into())),
        }
    }

    fn begin(&mut self, file: SnapshotFile) -> Result<()> {
        if self.file.is_some() {
            return Err(Error::InvalidArgument("a snapshot file began before the one before it ended".into()));
        }
        let plain = !file.name.is_empty()
            && file.name.len() <= 255
            && file.name != "."
            && file.name != ".."
            && !file.name.contains(['/', '\\', '\0']);
        if !plain {
            return Err(Error::InvalidArgument("a snapshot file has no plain name".into()));
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Err(Error::InvalidArgument("a snapshot has more files than announced".into()));
        };
        self.left = left;
        let path = self.dir.data().join(&file.name);
        let opened = File::create_new(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        self.file = Some(IncomingFile {
            name: file.name,
            file: opened,
            left: file.size,
            blake3: file.blake3,
            hasher: Box::new(blake3::Hasher::new()),
        });
        self.close_when_whole()
    }

    fn append(&mut self, data: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Err(Error::InvalidArgument("snapshot data came before its file".into()));
        };
        let Some(left) = file.left.checked_sub(data.len() as u64) else {
            return Err(Error::InvalidArgument(format!("snapshot file `{}` is longer than announced", file.name)));
        };
        file.left = left;
        file.hasher.update(data);
        let name = &file.name;
        file.file.write_all(data).map_err(Error::io(format!("cannot write snapshot file {name}")))?;
        self.close_when_whole()
    }

    fn close_when_whole(&mut self) -> Result<()> {
        let Some(file) = self.file.take_if(|file| file.left == 0) else { return Ok(()) };
        if file.hasher.finalize().as_bytes().as_slice() != file.blake3.as_ref() {
            return Err(Error::Corrupt(format!("snapshot file `{}` does not match its BLAKE3", file.name)));
        }
        file.file.sync_all().map_err(Error::io(format!("cannot sync snapshot file {}", file.name)))
    }

    /// The whole snapshot, durable.
    pub fn finish(self) -> Result<SnapshotDir> {
        if self.left > 0 || self.file.is_some() {
            return Err(Error::Unavailable("a snapshot transfer ended before its last file".into()));
        }
        sync_dir(&self.dir.data()).map_err(Error::io("cannot sync a received snapshot"))?;
        Ok(self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryReplica;
    use cairn_storage::replica::Entry as ReplicaEntry;

    fn replica(commands: &[&[u8]]) -> MemoryReplica {
        let replica = MemoryReplica::default();
        for (at, command) in commands.iter().enumerate() {
            let index = at as u64 + 1;
            let meta = SnapshotMeta {
                last_log_id: Some(LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index: index - 1 }),
                ..SnapshotMeta::default()
            };
            let entry = ReplicaEntry { index, command: Some(command) };
            replica.apply(&[entry], &codec::encode_meta(&meta)).unwrap();
        }
        replica
    }

    fn header() -> SnapshotHeader {
        SnapshotHeader::default()
    }

    fn receive(store: &SnapshotStore, frames: Vec<SnapshotFrame>) -> Result<SnapshotDir> {
        let mut frames = frames.into_iter();
        let Some(Part::Header(header)) = frames.next().and_then(|frame| frame.part) else { panic!("no header") };
        let mut incoming = store.receive(header.files)?;
        for frame in frames {
            incoming.accept(frame)?;
        }
        incoming.finish()
    }

    async fn frames(dir: SnapshotDir) -> Vec<SnapshotFrame> {
        let mut receiver = send(dir, header(), 0);
        let mut frames = Vec::new();
        while let Some(frame) = receiver.recv().await {
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn the_newest_snapshot_survives_a_restart_and_half_made_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("0");
        let store = SnapshotStore::open(root.clone()).unwrap();
        assert!(store.current().is_none());
        store.build(&replica(&[b"a"])).unwrap();
        let built = store.build(&replica(&[b"a", b"b"])).unwrap();
        assert_eq!(built.meta.last_log_id.map(|id| id.index), Some(1));
        fs::create_dir_all(root.join("tmp-77/data")).unwrap();
        fs::create_dir_all(root.join("incoming-78/data")).unwrap();
        let reopened = SnapshotStore::open(root.clone()).unwrap();
        assert_eq!(reopened.current().unwrap().meta, built.meta);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
        reopened.build(&replica(&[b"a", b"b", b"c"])).unwrap();
        assert!(root.join("snap-79").exists());
    }

    #[test]
    fn a_replaced_snapshot_stays_until_its_reader_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().join("0")).unwrap();
        let old = store.build(&replica(&[b"a"])).unwrap().snapshot;
        store.build(&replica(&[b"a", b"b"])).unwrap();
        let path = old.data();
        assert!(path.exists() && !old.0.root.join(META).exists());
        drop(old);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_snapshot_travels_and_installs() {
        let dir = tempfile::tempdir().unwrap();
        let left = SnapshotStore::open(dir.path().join("left")).unwrap();
        let right = SnapshotStore::open(dir.path().join("right")).unwrap();
        let source = replica(&[b"a", b"b", b"c"]);
        let built = left.build(&source).unwrap();
        let received = receive(&right, frames(built.snapshot).await).unwrap();
        let target = replica(&[b"x"]);
        let installed = right.install(&target, &received).unwrap();
        assert_eq!(installed.meta, built.meta);
        assert_eq!(target.commands(), source.commands());
        assert_eq!(right.current().unwrap().meta, built.meta);
        drop(received);
        assert_eq!(fs::read_dir(dir.path().join("right")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_transfer_keeps_its_rate() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().join("left")).unwrap();
        let row = vec![b'x'; 2000];
        let built = store.build(&replica(&[&row])).unwrap();
        let bytes = fs::metadata(built.snapshot.data().join("state.sst")).unwrap().len();
        let began = Instant::now();
        let mut receiver = send(built.snapshot, header(), bytes * 10);
        while receiver.recv().await.is_some() {}
        assert!(began.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_damaged_or_short_transfer_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let left = SnapshotStore::open(dir.path().join("left")).unwrap();
        let right = SnapshotStore::open(dir.path().join("right")).unwrap();
        let whole = frames(left.build(&replica(&[b"a", b"b"])).unwrap().snapshot).await;

        let mut damaged = whole.clone();
        for frame in &mut damaged {
            if let Some(Part::Data(data)) = &mut frame.part {
                *data = data.iter().map(|byte| byte ^ 1).collect();
            }
        }
        assert_eq!(receive(&right, damaged).unwrap_err().kind(), cairn_proto::ErrorKind::Corrupt);

        let short = whole[..whole.len() - 1].to_vec();
        assert_eq!(receive(&right, short).unwrap_err().kind(), cairn_proto::ErrorKind::Unavailable);

        let mut escaping = whole;
        for frame in &mut escaping {
            if let Some(Part::File(file)) = &mut frame.part {
                file.name = "../escaped".into();
            }
        }
        assert_eq!(receive(&right, escaping).unwrap_err().kind(), cairn_proto::ErrorKind::InvalidArgument);
        assert_eq!(fs::read_dir(dir.path().join("right")).unwrap().count(), 0);
    }
}
