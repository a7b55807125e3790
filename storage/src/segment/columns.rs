//! A row group as columns: for whoever walks a segment from one end to the other.

use super::reader::SegmentFile;
use crate::keys::{EntityKeys, slot_of};
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt64Type};
use arrow_array::{ArrayRef, BooleanArray};
use arrow_buffer::ScalarBuffer;
use parquet::file::statistics::Statistics;
use std::ops::Range;
use std::sync::Arc;

/// The keys and times of a row group; other columns are read when they are asked for.
pub struct GroupColumns {
    segment: Arc<SegmentFile>,
    number: usize,
    /// One an entity, in history order.
    keys: EntityKeys,
    slots: Vec<u16>,
    /// First row of each entity, then the number of rows.
    heads: Vec<u32>,
    /// Newest first within an entity.
    pub event_us: ScalarBuffer<i64>,
    pub created_us: ScalarBuffer<i64>,
}

impl SegmentFile {
    /// Reads the keys and times of a row group.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn columns(self: &Arc<Self>, number: usize) -> Result<GroupColumns> {
        let join_keys = &self.layout().join_keys;
        let wanted: Vec<usize> = (1..join_keys.len() + 3).collect();
        let mut columns = self.read(number, &wanted)?;
        let mut times = || -> Result<ScalarBuffer<i64>> {
            let column = columns.pop().ok_or_else(|| self.corrupt(number, "a column is missing"))?;
            Ok(column.as_primitive::<TimestampMicrosecondType>().values().clone())
        };
        let (created_us, event_us) = (times()?, times()?);
        let mut heads = EntityKeys::heads(join_keys, &columns)?;
        let at = arrow_array::UInt32Array::from(heads.clone());
        let taken = columns.iter().map(|column| arrow_select::take::take(column, &at, None));
        let taken: Vec<ArrayRef> =
            taken.collect::<Result<_, _>>().map_err(|error| self.corrupt(number, &error.to_string()))?;
        let keys = EntityKeys::encode(join_keys, &taken)?;
        let mut slots = Vec::with_capacity(keys.len());
        for entity in 0..keys.len() {
            let key = keys.get(entity).ok_or_else(|| self.corrupt(number, "a key is null"))?;
            slots.push(slot_of(key));
        }
        let ascends = (1..slots.len()).all(|at| (slots[at - 1], keys.get(at - 1)) < (slots[at], keys.get(at)));
        if !ascends || event_us.len() != created_us.len() {
            return Err(self.corrupt(number, "its keys are out of order"));
        }
        heads.push(u32::try_from(event_us.len()).map_err(|_| self.corrupt(number, "it has too many rows"))?);
        Ok(GroupColumns { segment: Arc::clone(self), number, keys, slots, heads, event_us, created_us })
    }
}

impl GroupColumns {
    pub fn entities(&self) -> usize {
        self.slots.len()
    }

    /// Slot and key of an entity; they ascend.
    pub fn entity(&self, entity: usize) -> (u16, &[u8]) {
        (self.slots.get(entity).copied().unwrap_or(u16::MAX), self.keys.get(entity).unwrap_or_default())
    }

    /// The rows of an entity.
    pub fn rows(&self, entity: usize) -> Range<usize> {
        let head = |at: usize| self.heads.get(at).map_or(self.event_us.len(), |head| *head as usize);
        head(entity)..head(entity + 1)
    }

    /// The commit times, when some are above `committed_us`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn committed_above(&self, committed_us: i64) -> Result<Option<ScalarBuffer<i64>>> {
        if let Some(stamp) = self.segment.stamp() {
            let all = || ScalarBuffer::from(vec![stamp.committed_us; self.event_us.len()]);
            return Ok((stamp.committed_us > committed_us).then(all));
        }
        let at = self.first() + 2;
        if let Some(Statistics::Int64(range)) = self.segment.statistics(self.number, at)
            && range.max_opt().is_some_and(|newest| *newest <= committed_us)
        {
            return Ok(None);
        }
        Ok(Some(self.one(at)?.as_primitive::<TimestampMicrosecondType>().values().clone()))
    }

    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn commits(&self) -> Result<ScalarBuffer<u64>> {
        if let Some(stamp) = self.segment.stamp() {
            return Ok(vec![stamp.commit; self.event_us.len()].into());
        }
        Ok(self.one(self.first() + 3)?.as_primitive::<UInt64Type>().values().clone())
    }

    /// Which rows delete, when some do.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn deleted(&self) -> Result<Option<BooleanArray>> {
        let at = self.first() + 4;
        if let Some(Statistics::Boolean(range)) = self.segment.statistics(self.number, at)
            && range.max_opt() == Some(&false)
        {
            return Ok(None);
        }
        Ok(Some(self.one(at)?.as_boolean().clone()))
    }

    /// Features of all rows, in the order of `projection`; null where a row deletes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; `Internal` for a feature that the view does not have.
    pub fn features(&self, projection: &[usize]) -> Result<Vec<ArrayRef>> {
        let leading = self.segment.layout().leading();
        let mut sorted: Vec<usize> = projection.iter().map(|feature| leading + feature).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let columns = self.segment.read(self.number, &sorted)?;
        let of = |feature: &usize| {
            let at = sorted.binary_search(&(leading + feature)).ok();
            at.and_then(|at| columns.get(at)).cloned()
        };
        let found: Option<Vec<ArrayRef>> = projection.iter().map(of).collect();
        found.ok_or_else(|| Error::Internal("a segment was asked for a feature that it does not have".to_owned()))
    }

    /// The column of event times; the others of the system follow it.
    fn first(&self) -> usize {
        self.segment.layout().join_keys.len() + 1
    }

    fn one(&self, column: usize) -> Result<ArrayRef> {
        let mut columns = self.segment.read(self.number, &[column])?;
        columns.pop().ok_or_else(|| self.segment.corrupt(self.number, "a column is missing"))
    }
}
