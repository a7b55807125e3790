//! Snapshots of one group: checkpoint directories on disk, and their way to another node.
//!
//! ```text
//! snapshots/<group>/snap-<n>/META        crc32c and the encoded position, written last
//!                           /data/…      the checkpoint, plain files
//!                   /incoming/…          what came of a snapshot that is not all here yet
//!                   /tmp-<n>, incoming-<n>   half made; removed at start
//! ```
//! A snapshot is there exactly when its META is. The newest one survives a restart. A replaced snapshot loses its META
//! at once and its files when the last transfer of it ends. What was received is verified file by file (BLAKE3) and
//! fsynced before anything is done with it; when a transfer breaks it stays, and the next one goes on from there
//! ([`receive`]), until a snapshot is installed or the replica has come as far by itself.

mod receive;
mod send;

pub use receive::{Incoming, Received};
pub use send::send;

use crate::codec;
use crate::error::{Error, Result};
use crate::types::*;
use bytes::Bytes;
use cairn_proto::peer::v1::{SnapshotFile, SnapshotPart};
use cairn_storage::replica::Replica;
use parking_lot::Mutex;
use receive::{Parts, put};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Largest piece of a file in one frame, bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
const META: &str = "META";
const DATA: &str = "data";
const INCOMING: &str = "incoming";

pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// A checkpoint directory that stays as long as someone holds it.
#[derive(Debug, Clone)]
pub struct SnapshotDir(Arc<Held>);

#[derive(Debug)]
struct Held {
    root: PathBuf,
    /// Removed when the last holder lets go.
    temporary: AtomicBool,
    /// Names, sizes and hashes of its files, once they were asked for.
    files: Mutex<Option<Arc<Vec<SnapshotFile>>>>,
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
        Self(Arc::new(Held { root, temporary: AtomicBool::new(temporary), files: Mutex::default() }))
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
    parts: Arc<Parts>,
}

impl SnapshotStore {
    /// Finds the newest whole snapshot under `root` and what came of a newer one, and removes everything else there.
    pub fn open(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).map_err(Error::io(format!("cannot make {}", root.display())))?;
        let list = || -> std::io::Result<Vec<PathBuf>> { fs::read_dir(&root)?.map(|e| Ok(e?.path())).collect() };
        let mut newest: Option<(SnapshotMeta, PathBuf)> = None;
        let mut next = 1;
        for path in list().map_err(Error::io(format!("cannot list {}", root.display())))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == INCOMING {
                continue;
            }
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
        let parts = Arc::new(Parts::open(root.join(INCOMING))?);
        if let Some((meta, _)) = &newest {
            parts.forget_upto(meta.last_log_id.as_ref())?;
        }
        let current = newest.map(|(meta, path)| (meta, SnapshotDir::new(path, false)));
        Ok(Self { root, next: AtomicU64::new(next), work: Mutex::new(()), current: Mutex::new(current), parts })
    }

    /// What is here of a snapshot that did not come whole. Blocks.
    pub fn have(&self) -> Result<Vec<SnapshotPart>> {
        self.parts.have()
    }

    /// Bytes of snapshots that came in since the start.
    pub fn received(&self) -> Received {
        self.parts.received()
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
        self.parts.forget_upto(meta.last_log_id.as_ref())?;
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
        self.parts.forget_upto(meta.last_log_id.as_ref())
    }

    /// Invalid from now on, removed when nobody reads it any more.
    fn discard(&self, old: &SnapshotDir) -> std::io::Result<()> {
        fs::remove_file(old.0.root.join(META))?;
        sync_dir(&old.0.root)?;
        old.0.temporary.store(true, Ordering::Release);
        Ok(())
    }

    /// A second directory with the same content.
    fn link(&self, from: &SnapshotDir) -> std::io::Result<SnapshotDir> {
        let to = self.incoming()?;
        for entry in fs::read_dir(from.data())? {
            let path = entry?.path();
            let Some(name) = path.file_name() else { continue };
            put(&path, &to.data().join(name))?;
        }
        Ok(to)
    }

    fn incoming(&self) -> std::io::Result<SnapshotDir> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = SnapshotDir::new(self.root.join(format!("incoming-{number}")), true);
        fs::create_dir_all(dir.data())?;
        Ok(dir)
    }

    /// The replica has come to `index` by itself. Blocks, when that makes what came of a snapshot useless.
    pub fn passed(&self, index: u64) -> Result<()> {
        self.parts.passed(index)
    }

    /// Starts to receive a snapshot at `meta` of `files`; another that is under way ends. Blocks.
    pub fn receive(&self, meta: &SnapshotMeta, files: Vec<SnapshotFile>) -> Result<Incoming> {
        self.parts.begin(meta, files)
    }

    /// The snapshot that came in whole. Blocks.
    pub fn received_whole(&self, incoming: Incoming) -> Result<SnapshotDir> {
        let dir = self.incoming().map_err(Error::io(format!("cannot make a directory in {}", self.root.display())))?;
        let Received { sent, kept } = incoming.finish(&dir.data())?;
        tracing::info!(dir = %dir.0.root.display(), sent, kept, "a snapshot came in");
        Ok(dir)
    }
}

fn write_meta(root: &Path, meta: &SnapshotMeta) -> std::io::Result<()> {
    write_checked(&root.join(META), &codec::encode_meta(meta))?;
    sync_dir(root)
}

/// `None` when there is no META or it was cut short: then the directory is no snapshot.
fn read_meta(root: &Path) -> Result<Option<SnapshotMeta>> {
    let path = root.join(META);
    let Some(meta) = read_checked(&path)? else { return Ok(None) };
    let meta = codec::decode_meta(meta.into());
    meta.map(Some).map_err(|error| Error::Unsupported(format!("{}: {error}", path.display())))
}

/// A small file that is recognised when it was cut short.
fn write_checked(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&crc32c::crc32c(bytes).to_be_bytes())?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// `None` when there is none, or not all of it.
fn read_checked(path: &Path) -> Result<Option<Vec<u8>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { context: format!("cannot read {}", path.display()), source }),
    };
    let Some((crc, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    Ok((u32::from_be_bytes(*crc) == crc32c::crc32c(rest)).then(|| rest.to_vec()))
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
