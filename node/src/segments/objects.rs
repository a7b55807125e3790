//! The folder of one cluster in an object store: whether the store answers, segment files in and out.
//!
//! Always true:
//! - an object is named by the BLAKE3 root of its bytes, and appears whole or not at all
//! - memory does not grow with the size of a file: `PARTS_MAX` parts of `PART_BYTES` on their way in, two on their way out
//! - a store that failed is left alone for a while, which doubles up to `PAUSE_MAX`

use super::place::{Place, place};
use crate::artifacts::{Pieces, Root};
use crate::error::{Error, Result};
use bytes::Bytes;
use cairn_consensus::Error as PeerError;
use cairn_proto::ErrorKind;
use cairn_storage::blob::{hex, parse_hex};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What one request carries. S3 wants 5 MiB or more of each part but the last, and at most 10,000 of them.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way to the store.
const PARTS_MAX: usize = 4;
/// Parts of one file that came from the store and wait for the disk.
const PARTS_AHEAD: usize = 1;
/// How long a store that failed is left alone: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Says whose folder it is, and is written to see whether the store takes anything. Engines that read a folder skip names
/// that begin so.
const MARKER: &str = "_cairn.json";
const ABOUT: &str = "old rows of feature views, a Parquet file a segment; system.segments says whose";

/// A store as this node sees it.
pub struct Objects {
    /// For people.
    name: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    folder: Path,
    cluster: String,
    /// Set when the store is the file system: the prefix must be there, and what is written is synced.
    files: Option<LocalFileSystem>,
    health: Mutex<Health>,
    /// Roots that are known to be in the folder.
    has: Mutex<BTreeSet<Root>>,
    /// Said already that a segment is not in the folder.
    told: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Health {
    /// It did when it was last asked.
    answers: bool,
    /// Why it does not: the first reason since it last did.
    trouble: Option<String>,
    pause: Duration,
    again: Option<Instant>,
}

#[derive(Debug, Default)]
struct Counts {
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
    failures: AtomicU64,
}

/// For the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectsState {
    /// The store answered when it was last asked.
    pub up: bool,
    pub written_bytes: u64,
    pub read_bytes: u64,
    pub failures: u64,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Objects {
    /// Whether a store can be meant by `url`, with the options in the environment. Asks nobody.
    ///
    /// # Errors
    /// A sentence with the fix.
    pub fn check(url: &str) -> Result<(), String> {
        place(url, &environment()).map(drop)
    }

    /// The folder of `cluster` below `url`. Asks nobody.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn open(url: &str, cluster: &str) -> Result<Arc<Self>, String> {
        let Place { name, store, prefix, files } = place(url, &environment())?;
        let folder = prefix.clone().join(cluster);
        Ok(Arc::new(Self {
            name,
            store,
            prefix,
            folder,
            cluster: cluster.to_owned(),
            files,
            health: Mutex::default(),
            has: Mutex::default(),
            told: AtomicBool::new(false),
            counts: Counts::default(),
        }))
    }

    /// The URL, and the endpoint where one is set.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn state(&self) -> ObjectsState {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ObjectsState {
            up: self.health.lock().answers,
            written_bytes: read(&self.counts.written_bytes),
            read_bytes: read(&self.counts.read_bytes),
            failures: read(&self.counts.failures),
        }
    }

    /// Whether the store takes files, as far as is known. One that was never asked, or failed a while ago, is asked.
    ///
    /// # Errors
    /// `Unavailable` with the reason, in the same words for as long as it lasts.
    pub async fn ready(&self) -> Result<()> {
        if self.health.lock().answers {
            return Ok(());
        }
        self.rested()?;
        let about = serde_json::json!({ "cluster_id": self.cluster, "about": ABOUT }).to_string();
        self.noted(self.write(&self.folder.clone().join(MARKER), about.into_bytes().into()).await)
    }

    /// Whether `root` is known to be in the folder.
    pub fn has(&self, root: &Root) -> bool {
        self.has.lock().contains(root)
    }

    /// A segment that is named and not in the folder: said once, because it is so for all of them when the nodes of a
    /// cluster do not have the same store.
    pub fn lacks(&self, root: &Root) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                segment = %hex(root),
                store = self.name,
                "a segment of the history is not in the object store; nodes are asked for it. Do all nodes of the cluster \
                 have the same `segments-url`?"
            );
        }
    }

    /// Finds out what the folder has.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self) -> Result<()> {
        self.rested()?;
        let listed = match self.there().await {
            Ok(()) => {
                let objects = self.store.list(Some(&self.folder)).map_ok(|it| root_of(&it.location));
                objects.try_collect::<Vec<_>>().await.map_err(|error| why(&error))
            }
            Err(away) => Err(away),
        };
        let listed = listed.map_err(|why| self.failed(why))?;
        self.has.lock().extend(listed.into_iter().flatten());
        Ok(())
    }

    /// Puts the file `root` of `size` bytes; it is durable when this returns.
    ///
    /// # Errors
    /// `Unavailable`; the error that came instead of a piece.
    pub async fn put(&self, root: Root, size: u64, mut pieces: Pieces) -> Result<()> {
        let path = self.path(&root);
        let mut upload = None;
        match self.send(&path, size, &mut pieces, &mut upload).await {
            Ok(()) => {
                self.has.lock().insert(root);
                self.noted(Ok(()))
            }
            Err(failed) => {
                if let Some(mut upload) = upload {
                    upload.abort().await;
                }
                match failed {
                    Failed::Source(error) => Err(error.into()),
                    Failed::Store(why) => self.noted(Err(why)),
                }
            }
        }
    }

    /// The file `root` as it is stored, unverified, with its size; `None` when the store has no such file.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get(self: &Arc<Self>, root: Root) -> Result<Option<(u64, Pieces)>> {
        self.rested()?;
        let path = self.path(&root);
        let found = match self.there().await {
            Ok(()) => match self.store.head(&path).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                found => found.map_err(|error| why(&error)),
            },
            Err(away) => Err(away),
        };
        let size = found.map_err(|why| self.failed(why))?.size;
        let (pieces, stream) = mpsc::channel(PARTS_AHEAD);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let mut at = 0;
            while at < size {
                let end = size.min(at + PART_BYTES as u64);
                let part = this.store.get_range(&path, at..end).await.map_err(|error| why(&error));
                let part = part.map_err(|why| PeerError::Unavailable(this.failed(why).message));
                at = end;
                this.counts.read_bytes.fetch_add(part.as_ref().map_or(0, |it| it.len() as u64), Ordering::Relaxed);
                let last = part.is_err();
                if pieces.send(part).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Some((size, stream)))
    }

    /// Sends a small file at once and a large one in parts. What is begun is left in `upload` when it fails.
    async fn send(
        &self,
        path: &Path,
        size: u64,
        pieces: &mut Pieces,
        upload: &mut Option<Upload>,
    ) -> Result<(), Failed> {
        let mut parts = Parts::of(PART_BYTES);
        let mut left = size;
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(Failed::Source)?;
            left = left.wrapping_sub(piece.len() as u64);
            parts.push(piece);
            while let Some(part) = parts.take() {
                let begun = match upload {
                    Some(begun) => begun,
                    None => upload.insert(self.begin(path).await?),
                };
                let bytes = part.content_length();
                begun.add(part).await?;
                self.counts.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        if left != 0 {
            let why = "a segment did not come whole from this node's disk";
            return Err(Failed::Source(PeerError::Internal(why.to_owned())));
        }
        let rest = parts.rest();
        let bytes = rest.content_length();
        match upload {
            None => self.write(path, rest).await?,
            Some(begun) => {
                begun.add(rest).await?;
                begun.finish().await?;
                self.sync(path).await?;
            }
        }
        self.counts.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn begin(&self, path: &Path) -> Result<Upload, String> {
        self.there().await?;
        let upload = self.store.put_multipart(path).await.map_err(|error| why(&error))?;
        Ok(Upload { upload, under_way: JoinSet::new() })
    }

    /// Writes a small object.
    async fn write(&self, path: &Path, payload: PutPayload) -> Result<(), String> {
        self.there().await?;
        self.store.put(path, payload).await.map_err(|error| why(&error))?;
        self.sync(path).await
    }

    /// A directory is never made: one that is gone was not mounted, say, and what is below it is another disk.
    async fn there(&self) -> Result<(), String> {
        let Some(files) = &self.files else { return Ok(()) };
        let directory = files.path_to_filesystem(&self.prefix).map_err(|error| why(&error))?;
        match tokio::fs::metadata(&directory).await {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(format!("`{}` is not a directory", directory.display())),
            Err(error) => Err(format!("`{}`: {error}; make the directory, or mount it", directory.display())),
        }
    }

    /// Other stores answer when they have it; of a file system's file, the folder and the prefix are to be synced.
    async fn sync(&self, path: &Path) -> Result<(), String> {
        let Some(files) = self.files.clone() else { return Ok(()) };
        let all = [path, &self.folder, &self.prefix].map(|it| files.path_to_filesystem(it));
        let work = move || {
            for path in all {
                let path = path.map_err(|error| why(&error))?;
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(|error| format!("syncing `{}`: {error}", path.display()))?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("a worker stopped: {error}")))
    }

    fn path(&self, root: &Root) -> Path {
        self.folder.clone().join(format!("{}.parquet", hex(root)))
    }

    /// Whether it is time to ask a store that failed.
    fn rested(&self) -> Result<()> {
        let health = self.health.lock();
        match (&health.trouble, health.again) {
            (Some(trouble), Some(again)) if Instant::now() < again => Err(self.away(trouble)),
            _ => Ok(()),
        }
    }

    fn away(&self, trouble: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("the object store {} does not answer: {trouble}", self.name))
    }

    /// Keeps in mind how a write ended. A read that succeeds says nothing of writes.
    fn noted(&self, done: Result<(), String>) -> Result<()> {
        done.map_err(|why| self.failed(why))?;
        let mut health = self.health.lock();
        if !health.answers {
            tracing::info!(store = self.name, "the object store answers");
        }
        *health = Health { answers: true, ..Health::default() };
        Ok(())
    }

    /// Keeps in mind that the store failed; the log says it when that is news.
    fn failed(&self, why: String) -> Error {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        let mut health = self.health.lock();
        if health.trouble.is_none() {
            tracing::warn!(store = self.name, %why, "the object store does not answer; it is tried again");
        }
        let pause = (health.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        let trouble = health.trouble.take().unwrap_or(why);
        let error = self.away(&trouble);
        *health = Health { answers: false, trouble: Some(trouble), pause, again: Some(Instant::now() + pause) };
        error
    }
}

/// Why a file is not in the store.
enum Failed {
    Source(PeerError),
    Store(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Store(why)
    }
}

/// A file that is sent in parts.
struct Upload {
    upload: Box<dyn MultipartUpload>,
    under_way: JoinSet<Result<(), object_store::Error>>,
}

impl Upload {
    /// Waits for a place first.
    async fn add(&mut self, part: PutPayload) -> Result<(), String> {
        while self.under_way.len() >= PARTS_MAX {
            self.one_done().await?;
        }
        self.under_way.spawn(self.upload.put_part(part));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), String> {
        while !self.under_way.is_empty() {
            self.one_done().await?;
        }
        self.upload.complete().await.map(drop).map_err(|error| why(&error))
    }

    async fn one_done(&mut self) -> Result<(), String> {
        match self.under_way.join_next().await {
            Some(Ok(done)) => done.map_err(|error| why(&error)),
            Some(Err(error)) => Err(format!("a worker stopped: {error}")),
            None => Ok(()),
        }
    }

    /// Parts that stay behind are nobody's; a store cleans them up by a rule of its own.
    async fn abort(&mut self) {
        self.under_way.shutdown().await;
        if let Err(error) = self.upload.abort().await {
            tracing::debug!(%error, "parts of a file may be left in the object store");
        }
    }
}

/// Pieces cut to equal parts, uncopied.
#[derive(Debug)]
struct Parts {
    part_bytes: usize,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Parts {
    fn of(part_bytes: usize) -> Self {
        Self { part_bytes, pieces: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    /// A whole part that more follows, if there is one: the last may be the only one.
    fn take(&mut self) -> Option<PutPayload> {
        let over = self.bytes.checked_sub(self.part_bytes).filter(|over| *over > 0)?;
        let mut rest = Vec::new();
        let mut left = over;
        while left > 0 {
            let mut last = self.pieces.pop()?;
            if last.len() > left {
                rest.push(last.split_off(last.len() - left));
                self.pieces.push(last);
                break;
            }
            left -= last.len();
            rest.push(last);
        }
        rest.reverse();
        self.bytes = over;
        Some(std::mem::replace(&mut self.pieces, rest).into_iter().collect())
    }

    fn rest(self) -> PutPayload {
        self.pieces.into_iter().collect()
    }
}

/// What a name in the folder stands for; other names are not ours.
fn root_of(path: &Path) -> Option<Root> {
    parse_hex(path.filename()?.strip_suffix(".parquet")?).ok()
}

/// An error of a store in a few words: what S3 says in XML, else the innermost reason. The outer ones tell of tries and
/// times, so that no two are the same.
fn why(error: &object_store::Error) -> String {
    let text = error.to_string();
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.to_owned())
    };
    if let (Some(code), Some(message)) = (tag("Code"), tag("Message")) {
        return format!("{code}: {message}");
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests;
