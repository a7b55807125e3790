//! A disk in memory that forgets: unsynced writes and names are lost, kept or torn at a crash. For tests and simulation.
//!
//! Harsher than real disks: each 32 bytes of an unsynced write survive or not on their own, whatever their order, and
//! after a failed fsync the lost pages still read as if they were there, until the power goes.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::{File, Files};

const SECTOR_BYTES: usize = 32;

/// Clones share one disk.
#[derive(Clone, Default)]
pub struct MemFiles {
    disk: Arc<Mutex<Disk>>,
}

impl std::fmt::Debug for MemFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemFiles").field("changes", &self.changes()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Disk {
    /// Counts restarts: handles of an earlier life fail.
    life: u64,
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Since the last `sync_dir`.
    name_changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    changes: u64,
    syncs: u64,
    changes_left: Option<u64>,
    syncs_left: Option<u64>,
    capacity: Option<u64>,
}

/// Removes the first name and adds the second.
type NameChange = (Option<PathBuf>, Option<(PathBuf, usize)>);

#[derive(Default)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

impl MemFiles {
    /// The power goes: what was not synced survives in part, as `seed` has it (0 keeps nothing, 1 everything).
    pub fn crash(&self, seed: u64) {
        let mut disk = self.disk.lock();
        let mut chance = Chance::new(seed);
        let changes = std::mem::take(&mut disk.name_changes);
        for (removed, added) in changes {
            if chance.keeps() {
                change_names(&mut disk.durable_names, removed, added);
            }
        }
        disk.names = disk.durable_names.clone();
        for node in &mut disk.nodes {
            for change in std::mem::take(&mut node.pending) {
                match change {
                    Change::Write(offset, bytes) => {
                        for (nth, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                            if chance.keeps() {
                                write(&mut node.durable, offset + nth * SECTOR_BYTES, sector);
                            }
                        }
                    }
                    Change::Size(size) => {
                        if chance.keeps() {
                            node.durable.resize(size, 0);
                        }
                    }
                }
            }
            node.live.clone_from(&node.durable);
        }
        disk.restart();
    }

    /// An empty disk in its place.
    pub fn wipe(&self) {
        let mut disk = self.disk.lock();
        *disk = Disk { life: disk.life + 1, ..Disk::default() };
    }

    /// The process ends and starts again; what it wrote can still be read, synced or not.
    pub fn restart(&self) {
        self.disk.lock().restart();
    }

    /// The `changes + 1`st change from now fails, a write in part, and so does everything after it.
    pub fn fail_after(&self, changes: Option<u64>) {
        self.disk.lock().changes_left = changes;
    }

    /// The `syncs + 1`st `sync_data` from now fails and loses what it should have made durable; others work.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.disk.lock().syncs_left = Some(syncs);
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity = bytes;
    }

    /// Writes, syncs, creations, renames, removals and size changes so far.
    pub fn changes(&self) -> u64 {
        self.disk.lock().changes
    }

    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk.lock().names.keys().cloned().collect()
    }

    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        disk.nodes.get(*disk.names.get(path)?).map(|node| node.live.clone())
    }

    /// Puts a file there, durably, whatever it held.
    pub fn replace(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.disk.lock();
        disk.nodes.push(Node { live: bytes.clone(), durable: bytes, pending: Vec::new() });
        let node = disk.nodes.len() - 1;
        disk.names.insert(path.to_owned(), node);
        disk.durable_names.insert(path.to_owned(), node);
    }
}

impl Disk {
    fn restart(&mut self) {
        self.life += 1;
        self.locks.clear();
        self.changes_left = None;
        self.syncs_left = None;
    }

    /// Counts a change, and fails when the disk is to be dead by now.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("simulated I/O error")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change_names(&mut self, removed: Option<PathBuf>, added: Option<(PathBuf, usize)>) {
        change_names(&mut self.names, removed.clone(), added.clone());
        self.name_changes.push((removed, added));
    }

    fn node(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_room(&self, node: usize, size: usize) -> io::Result<()> {
        let others = self.names.values().filter(|other| **other != node).map(|other| self.nodes[*other].live.len());
        match self.capacity {
            Some(capacity) if (others.sum::<usize>() + size) as u64 > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

fn change_names(names: &mut BTreeMap<PathBuf, usize>, removed: Option<PathBuf>, added: Option<(PathBuf, usize)>) {
    if let Some(removed) = removed {
        names.remove(&removed);
    }
    if let Some((path, node)) = added {
        names.insert(path, node);
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// SplitMix64 with a temper: some crashes keep all or nothing, some lose a little, some lose most.
struct Chance {
    state: u64,
    keeps_of_eight: u64,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let keeps_of_eight = match seed % 6 {
            0 => 0,
            1 => 8,
            2 => 7,
            3 => 6,
            4 => 4,
            _ => 2,
        };
        Self { state: seed, keeps_of_eight }
    }

    fn keeps(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) >> 61 < self.keeps_of_eight
    }
}

struct MemFile {
    disk: Arc<Mutex<Disk>>,
    node: usize,
    life: u64,
}

impl MemFile {
    fn with<T>(&self, use_disk: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        if disk.life != self.life {
            return Err(io::Error::other("a file handle from before the restart"));
        }
        use_disk(&mut disk)
    }
}

impl File for MemFile {
    fn write_all_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.with(|disk| {
            disk.check_room(self.node, disk.nodes[self.node].live.len().max(offset as usize + bytes.len()))?;
            let outcome = disk.change();
            if outcome.is_err() {
                bytes.truncate(bytes.len() / 2);
            }
            let node = &mut disk.nodes[self.node];
            write(&mut node.live, offset as usize, &bytes);
            node.pending.push(Change::Write(offset as usize, bytes));
            outcome
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|disk| {
            let rest = disk.nodes[self.node].live.get(offset as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|disk| {
            disk.syncs += 1;
            disk.change()?;
            let fails = disk.syncs_left == Some(0);
            disk.syncs_left = disk.syncs_left.and_then(|left| left.checked_sub(1));
            let node = &mut disk.nodes[self.node];
            let pending = std::mem::take(&mut node.pending);
            if fails {
                return Err(io::Error::other("simulated fsync failure"));
            }
            for change in pending {
                match change {
                    Change::Write(offset, bytes) => write(&mut node.durable, offset, &bytes),
                    Change::Size(size) => node.durable.resize(size, 0),
                }
            }
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|disk| Ok(disk.nodes[self.node].live.len() as u64))
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.change()?;
            let node = &mut disk.nodes[self.node];
            node.live.resize(size as usize, 0);
            node.pending.push(Change::Size(size as usize));
            Ok(())
        })
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let size = self.size()?.max(size);
        self.with(|disk| disk.check_room(self.node, size as usize))?;
        self.truncate(size)
    }
}

struct MemLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
    life: u64,
}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.life == self.life {
            disk.locks.remove(&self.path);
        }
    }
}

impl Files for MemFiles {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut disk = self.disk.lock();
        if !disk.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(MemLock { disk: Arc::clone(&self.disk), path: path.to_owned(), life: disk.life })))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let disk = self.disk.lock();
        Ok(Arc::new(MemFile { disk: Arc::clone(&self.disk), node: disk.node(path)?, life: disk.life }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.change()?;
        disk.nodes.push(Node::default());
        let node = disk.nodes.len() - 1;
        disk.change_names(None, Some((path.to_owned(), node)));
        Ok(Arc::new(MemFile { disk: Arc::clone(&self.disk), node, life: disk.life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.change()?;
        let node = disk.node(from)?;
        disk.change_names(Some(from.to_owned()), Some((to.to_owned(), node)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.change()?;
        disk.node(path)?;
        disk.change_names(Some(path.to_owned()), None);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        let here = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.change()?;
        for (removed, added) in std::mem::take(&mut disk.name_changes) {
            change_names(&mut disk.durable_names, removed, added);
        }
        Ok(())
    }
}
