//! The segments of a node, and what was read of them lately.

use super::SegmentRef;
use super::reader::{Group, SegmentFile};
use crate::blob::{BlobStore, Hash, hex};
use crate::{Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Open segments; an open one holds its footer in memory.
const OPEN_MAX: usize = 256;

/// Segments are blobs. One store a node.
pub struct SegmentStore {
    blobs: Arc<BlobStore>,
    cache_bytes: usize,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    /// Counts uses: what was used longest ago goes first.
    clock: u64,
    open: BTreeMap<SegmentRef, (u64, Arc<SegmentFile>)>,
    groups: BTreeMap<(SegmentRef, usize), (u64, Arc<Group>)>,
    groups_bytes: usize,
}

impl SegmentStore {
    /// `cache_bytes`: for row groups that point reads met.
    pub fn new(blobs: Arc<BlobStore>, cache_bytes: usize) -> Arc<Self> {
        Arc::new(Self { blobs, cache_bytes, cached: Mutex::default() })
    }

    pub fn blobs(&self) -> &Arc<BlobStore> {
        &self.blobs
    }

    /// # Errors
    /// `Unavailable` while the segment is not on this node yet.
    pub fn check(&self, root: &Hash) -> Result<()> {
        match self.blobs.contains(root) {
            true => Ok(()),
            false => Err(Error::Unavailable(format!(
                "segment `{}` of the history is still on its way to this node; try again, or ask another node",
                hex(root)
            ))),
        }
    }

    /// # Errors
    /// `Unavailable` while the segment is not on this node yet; `Corrupt`, `Io`.
    pub fn open(&self, segment: &SegmentRef) -> Result<Arc<SegmentFile>> {
        {
            let mut cached = self.cached.lock();
            cached.clock += 1;
            let now = cached.clock;
            if let Some((used, file)) = cached.open.get_mut(segment) {
                *used = now;
                return Ok(Arc::clone(file));
            }
        }
        self.check(&segment.root)?;
        let file = Arc::new(SegmentFile::open(&self.blobs, segment)?);
        let mut cached = self.cached.lock();
        if cached.open.len() >= OPEN_MAX {
            let oldest = cached.open.iter().min_by_key(|(_, (used, _))| *used).map(|(it, _)| *it);
            oldest.map(|it| cached.open.remove(&it));
        }
        let now = cached.clock;
        cached.open.insert(*segment, (now, Arc::clone(&file)));
        Ok(file)
    }

    /// A row group, kept for the next who wants it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn group(&self, file: &Arc<SegmentFile>, number: usize) -> Result<Arc<Group>> {
        let key = (file.segment(), number);
        {
            let mut cached = self.cached.lock();
            cached.clock += 1;
            let now = cached.clock;
            if let Some((used, group)) = cached.groups.get_mut(&key) {
                *used = now;
                return Ok(Arc::clone(group));
            }
        }
        let group = Arc::new(file.group(number)?);
        let mut cached = self.cached.lock();
        let now = cached.clock;
        if let Some((_, before)) = cached.groups.insert(key, (now, Arc::clone(&group))) {
            cached.groups_bytes -= before.bytes_len();
        }
        cached.groups_bytes += group.bytes_len();
        while cached.groups_bytes > self.cache_bytes && cached.groups.len() > 1 {
            let oldest = cached.groups.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            match oldest.and_then(|key| cached.groups.remove(&key)) {
                Some((_, gone)) => cached.groups_bytes -= gone.bytes_len(),
                None => break,
            }
        }
        Ok(group)
    }
}
