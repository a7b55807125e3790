//! Loads: segments whose rows were committed by naming them, and never were in the database.
//!
//! A load is written from somewhere else (a backfill's files), copied to a quorum, and named by `AddSegment`: from there on
//! history has its rows, all with the commit of that one entry. What is the newest of an entity reaches `latest` after
//! that, by [`LoadNewest`]: any replica can find those rows in the segment, as often as need be.
//!
//! What always holds:
//! - of a chunk of a job no slot is loaded twice, wherever slots move meanwhile: what was loaded stays on record where it
//!   was, and what moves takes its rows along
//! - once a load says so, `latest` knows its newest rows

use super::apply::Working;
use super::records::RowRef;
use super::tiers::{file_of, has_slot};
use super::{Shard, store};
use crate::block::{BlockWriter, read_block};
use crate::keys::slot_of;
use crate::row::RowEncoder;
use crate::segment::SegmentFile;
use crate::{Error, Result};
use cairn_proto::record::v1::{LoadNewest, Segment};
use std::sync::Arc;

/// A command ends with the row in which it reaches so many bytes.
const BLOCK_BYTES: usize = if cfg!(test) { 64 } else { 2 << 20 };

impl Shard {
    /// A load of which `latest` may not know all yet: of several that with the latest event times, which spares the others.
    pub fn unfinished_load(&self, storage_id: u32) -> Option<Segment> {
        let tiers = self.tiers();
        let loads = tiers.of(storage_id, 0, u16::MAX).filter(|it| it.load.is_some_and(|load| !load.newest));
        loads.max_by_key(|it| (it.event_max_us, it.id)).cloned()
    }

    /// Row groups of a segment.
    ///
    /// # Errors
    /// `Unavailable` while it is not on this node; `Corrupt`, `Io`.
    pub fn groups_of(&self, segment: &Segment) -> Result<usize> {
        Ok(self.file(segment)?.groups())
    }

    fn file(&self, segment: &Segment) -> Result<Arc<SegmentFile>> {
        store(self.segment_store())?.open(&file_of(segment)?)
    }

    /// What `latest` lacks of a row group of a load, as far as this replica knows.
    ///
    /// # Errors
    /// As [`Self::groups_of`].
    pub fn newest_of(&self, segment: &Segment, group: usize) -> Result<Vec<LoadNewest>> {
        let load = segment.load.unwrap_or_default();
        let file = self.file(segment)?;
        let columns = file.columns(group)?;
        let mut firsts = Vec::with_capacity(columns.entities());
        for entity in 0..columns.entities() {
            let (slot, key) = columns.entity(entity);
            if has_slot(segment, slot) {
                firsts.push((key, columns.rows(entity).start));
            }
        }
        let keys: Vec<&[u8]> = firsts.iter().map(|(key, _)| *key).collect();
        let version = |row: usize| {
            let (event_us, created_us) = (columns.event_us.get(row).copied(), columns.created_us.get(row).copied());
            (event_us.unwrap_or(i64::MIN), created_us.unwrap_or(i64::MIN), load.commit)
        };
        let mut wanted = Vec::new();
        self.latest(segment.storage_id, &keys, &mut |at, newest| {
            if let Some((key, row)) = firsts.get(at)
                && newest.is_none_or(|newest| newest.version() < version(*row))
            {
                wanted.push((*key, *row));
            }
        })?;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let schema = &file.layout().row;
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let encoder = RowEncoder::new(schema, &columns.features(&all)?)?;
        let mut found = Vec::new();
        let mut block = BlockWriter::new();
        let mut packed = Vec::new();
        let mut finish = |block: BlockWriter| {
            let row_count = u32::try_from(block.len()).unwrap_or(u32::MAX);
            found.push(LoadNewest { id: segment.id, rows: block.finish().into(), row_count, last: false });
        };
        for (key, row) in wanted {
            packed.clear();
            encoder.encode(row, &mut packed)?;
            let (event_us, created_us, _) = version(row);
            block.push(key, event_us, created_us, &packed);
            if block.bytes_len() >= BLOCK_BYTES {
                finish(std::mem::take(&mut block));
            }
        }
        if !block.is_empty() {
            finish(block);
        }
        Ok(found)
    }
}

impl<'c> Working<'c, '_> {
    pub(super) fn load_newest(&mut self, ask: &'c LoadNewest) -> Result<()> {
        let segment = self.tiers.segments().iter().find(|it| it.id == ask.id);
        let found = segment.and_then(|it| Some((it.storage_id, it.load?)));
        let (storage_id, load) = found.ok_or_else(|| Error::Conflict(format!("load {} is not here", ask.id)))?;
        if load.newest {
            return Err(Error::Conflict(format!("of load {} everything is known already", ask.id)));
        }
        // Slots that were given away took these rows along; those about to go may come back.
        if self.slots.export().is_some() || self.slots.import().is_some() {
            return Err(Error::Unavailable("a move of slots is under way; send the same again".to_owned()));
        }
        let rows: Vec<_> =
            if ask.rows.is_empty() { Vec::new() } else { read_block(&ask.rows).collect::<Result<_>>()? };
        if rows.len() != ask.row_count as usize {
            let message = format!("the command says {} rows and holds {}", ask.row_count, rows.len());
            return Err(Error::InvalidArgument(message));
        }
        for row in rows.into_iter().filter(|row| self.slots.has(slot_of(row.entity_key))) {
            let loaded = RowRef {
                event_us: row.event_us,
                created_us: row.created_us,
                commit: load.commit,
                committed_us: load.committed_us,
                packed: row.packed,
            };
            self.rows.load(storage_id, row.entity_key, loaded);
        }
        if ask.last {
            self.tiers_change(|record| {
                let segment = record.segments.iter_mut().find(|it| it.id == ask.id);
                if let Some(load) = segment.and_then(|it| it.load.as_mut()) {
                    load.newest = true;
                }
            });
        }
        Ok(())
    }
}
