//! Rows of a segment for lookups in key order.

use super::SegmentRef;
use super::reader::{Group, SegmentFile};
use super::store::SegmentStore;
use crate::Result;
use crate::keys::{VERSION_BYTES, push_version};
use crate::shard::{Lookup, RowRef};
use std::sync::Arc;

/// A row that a lookup found.
pub struct Hit {
    group: Arc<Group>,
    row: usize,
    version: RowRef<'static>,
}

impl Hit {
    /// Its times and commit; what it packs is not there yet.
    pub fn version(&self) -> RowRef<'static> {
        self.version
    }

    /// Appends what it packs.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn packed(&self, out: &mut Vec<u8>) -> Result<()> {
        self.group.packed(self.row, out)
    }
}

/// Cheapest when lookups come in key order.
pub struct SegmentSeeker<'s> {
    store: &'s SegmentStore,
    segment: Arc<SegmentFile>,
    at: Option<(usize, Arc<Group>)>,
    target: Vec<u8>,
}

impl<'s> SegmentSeeker<'s> {
    /// # Errors
    /// `Unavailable` while the segment is not on this node; `Corrupt`, `Io`.
    pub fn new(store: &'s SegmentStore, segment: &SegmentRef) -> Result<Self> {
        Ok(Self { store, segment: store.open(segment)?, at: None, target: Vec::new() })
    }

    /// The row that answers `lookup`, as far as this segment knows. `prefix` is the entity's `latest` key.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn find(&mut self, prefix: &[u8], lookup: &Lookup<'_>) -> Result<Option<Hit>> {
        self.target.clear();
        self.target.extend_from_slice(prefix);
        push_version(lookup.event_us, lookup.created_us, u64::MAX, &mut self.target);
        let mut number = self.segment.group_of(&self.target);
        let mut group = self.group(number)?;
        let mut row = group.lower_bound(&self.target);
        loop {
            let Some(version) = group.version(row) else {
                number += 1;
                if number >= self.segment.groups() {
                    return Ok(None);
                }
                (group, row) = (self.group(number)?, 0);
                continue;
            };
            let key = group.key(row);
            if key.len() != prefix.len() + VERSION_BYTES || !key.starts_with(prefix) {
                return Ok(None);
            }
            if version.created_us <= lookup.created_us && version.committed_us <= lookup.committed_us {
                return Ok(Some(Hit { group, row, version }));
            }
            row += 1;
            if version.created_us > lookup.created_us {
                // Corrections of this event that were made too late: past all of them.
                self.target.truncate(prefix.len());
                push_version(version.event_us, lookup.created_us, u64::MAX, &mut self.target);
                row = row.max(group.lower_bound(&self.target));
            }
        }
    }

    fn group(&mut self, number: usize) -> Result<Arc<Group>> {
        if let Some((at, group)) = &self.at
            && *at == number
        {
            return Ok(Arc::clone(group));
        }
        let group = self.store.group(&self.segment, number)?;
        self.at = Some((number, Arc::clone(&group)));
        Ok(group)
    }
}
