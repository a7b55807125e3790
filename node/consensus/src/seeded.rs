//! Bugs on purpose, for the self-test of `jepsen/`: only there with the feature `seeded-bugs`.
//!
//! - `ack-before-quorum`: a follower says that it has entries, and takes them in 300 ms later, if it lives and they fit
//! - `skip-fsync`: nothing waits for the disk, and kill -9 loses what a second ago was written, as power loss would
//! - `lose-unsynced`, no bug: kill -9 loses what was not fsynced, and everything waits for fsync as it must

use crate::types::*;
use crate::wal::{File, Files, RealFiles};
use cairn_storage::seeded::awake;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LATER: Duration = Duration::from_millis(300);

/// Appends on their way, in order.
struct Lane {
    appends: mpsc::UnboundedSender<(Instant, AppendRequest)>,
    /// Not taken in yet.
    waiting: Arc<AtomicUsize>,
    /// The last one did not fit: the next answer is a true one.
    honest: Arc<AtomicBool>,
}

/// The lie told for a request with entries, or behind one; `None` = be honest.
pub(crate) fn append_later(raft: &Raft, group: GroupId, request: &AppendRequest) -> Option<AppendResponse> {
    static LANES: OnceLock<Mutex<BTreeMap<GroupId, Lane>>> = OnceLock::new();
    if !awake("ack-before-quorum") {
        return None;
    }
    let mut lanes = LANES.get_or_init(Mutex::default).lock();
    let lane = lanes.entry(group).or_insert_with(|| lane(raft.clone()));
    let nothing_new = request.entries.is_empty() && lane.waiting.load(Ordering::Relaxed) == 0;
    if nothing_new || lane.honest.swap(false, Ordering::Relaxed) {
        return None;
    }
    lane.waiting.fetch_add(1, Ordering::Relaxed);
    lane.appends.send((Instant::now() + LATER, request.clone())).ok()?;
    Some(AppendResponse::Success)
}

fn lane(raft: Raft) -> Lane {
    let (appends, mut queue) = mpsc::unbounded_channel::<(Instant, AppendRequest)>();
    let (waiting, honest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (left, truth) = (waiting.clone(), honest.clone());
    tokio::spawn(async move {
        while let Some((due, request)) = queue.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if !matches!(raft.append_entries(request).await, Ok(AppendResponse::Success)) {
                truth.store(true, Ordering::Relaxed);
            }
            left.fetch_sub(1, Ordering::Relaxed);
        }
    });
    Lane { appends, waiting, honest }
}

/// The disk under the log, if not the one it would be.
pub(crate) fn files(files: Arc<dyn Files>) -> Arc<dyn Files> {
    match awake("skip-fsync") || awake("lose-unsynced") {
        true => Arc::new(ForgetfulFiles),
        false => files,
    }
}

/// The real disk, but what was not synced is only in this process.
#[derive(Debug)]
struct ForgetfulFiles;

struct Forgetful {
    file: Arc<dyn File>,
    unsynced: Mutex<Unsynced>,
}

#[derive(Default)]
struct Unsynced {
    pieces: Vec<(u64, Vec<u8>)>,
    since: Option<Instant>,
}

impl Forgetful {
    fn flush(&self, unsynced: &mut Unsynced) -> io::Result<()> {
        for (offset, piece) in unsynced.pieces.drain(..) {
            self.file.write_all_at(&[IoSlice::new(&piece)], offset)?;
        }
        unsynced.since = None;
        Ok(())
    }
}

impl File for Forgetful {
    fn write_all_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock();
        // The system writes back by itself, after a while.
        if unsynced.since.is_some_and(|since| since.elapsed() > Duration::from_secs(1)) {
            self.flush(&mut unsynced)?;
        }
        let bytes = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        unsynced.pieces.push((offset, bytes));
        unsynced.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let unsynced = self.unsynced.lock();
        let mut read = self.file.read_at(buffer, offset)?;
        for (start, piece) in &unsynced.pieces {
            for (at, byte) in (*start..).zip(piece) {
                let place = at.checked_sub(offset).and_then(|place| usize::try_from(place).ok());
                if let Some(place) = place.filter(|place| *place < buffer.len()) {
                    buffer[place] = *byte;
                    read = read.max(place + 1);
                }
            }
        }
        Ok(read)
    }

    fn sync_data(&self) -> io::Result<()> {
        if awake("skip-fsync") {
            return Ok(());
        }
        self.flush(&mut self.unsynced.lock())?;
        self.file.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        let ends = self.unsynced.lock().pieces.iter().map(|(offset, piece)| offset + piece.len() as u64).max();
        Ok(self.file.size()?.max(ends.unwrap_or(0)))
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.flush(&mut self.unsynced.lock())?;
        self.file.truncate(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.file.allocate(size)
    }
}

impl Files for ForgetfulFiles {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealFiles.create_dir_all(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        RealFiles.lock(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Forgetful { file: RealFiles.open(path)?, unsynced: Mutex::default() }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Forgetful { file: RealFiles.create(path)?, unsynced: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFiles.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFiles.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFiles.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealFiles.sync_dir(dir)
    }
}
