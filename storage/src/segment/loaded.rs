//! Rows of a load into a file: as columns from beginning to end, never packed.

use super::writer::{GROUP_BYTES, GROUP_ROWS, SegmentWriter};
use crate::keys::{push_order_as_history, slot_of_order};
use crate::types::coerce;
use crate::{Error, Result};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt16Array, new_null_array,
};
use arrow_schema::DataType;
use cairn_proto::record::v1::Field;
use std::io::Write;
use std::sync::Arc;

/// Rows of a load: N of them, in key order, no two with the same key and times.
#[derive(Debug, Clone, Copy)]
pub struct LoadedRows<'a> {
    /// The order key of each row ([`crate::keys::push_order_key`]).
    pub order: &'a BinaryArray,
    /// In the order of the layout, each of its type or one that converts to it.
    pub join_keys: &'a [ArrayRef],
    /// Without nulls, as the created times.
    pub event_us: &'a TimestampMicrosecondArray,
    pub created_us: &'a TimestampMicrosecondArray,
    /// As the join keys.
    pub features: &'a [ArrayRef],
}

impl<W: Write + Send> SegmentWriter<W> {
    /// Appends rows; all must be above those before.
    ///
    /// # Errors
    /// `InvalidArgument` for a column that does not convert; `Internal` out of order, or in a segment of another kind; `Io`.
    pub fn push_loaded(&mut self, rows: &LoadedRows<'_>) -> Result<()> {
        let internal = |what: &str| Err(Error::Internal(format!("a load's rows for a segment: {what}")));
        let total = rows.order.len();
        let lengths = rows.join_keys.iter().chain(rows.features).map(|column| column.len());
        let times = [rows.event_us, rows.created_us];
        if !self.layout.load || !lengths.chain(times.map(Array::len)).all(|length| length == total) {
            return internal("they are not what the layout says");
        }
        if rows.order.null_count() > 0 || times.iter().any(|times| times.null_count() > 0) {
            return internal("a key or time is null");
        }
        for row in 0..total {
            let before = if row == 0 { &self.last_key } else { rows.order.value(row - 1) };
            if rows.order.value(row) <= before {
                return internal("they are out of order");
            }
        }
        let Some(last) = total.checked_sub(1) else { return Ok(()) };
        let columns = self.columns(rows)?;
        let row_bytes = columns.iter().map(|column| column.get_array_memory_size()).sum::<usize>().div_ceil(total);
        let group_rows = (GROUP_BYTES / row_bytes.max(1)).clamp(1, GROUP_ROWS);
        let mut from = 0;
        while from < total {
            if self.group_rows == 0 {
                let mut key = Vec::new();
                push_order_as_history(self.layout.storage_id, rows.order.value(from), &mut key);
                self.group_keys.push(key);
            }
            let taken = group_rows.saturating_sub(self.group_rows).max(1).min(total - from);
            let part = columns.iter().map(|column| column.slice(from, taken)).collect();
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), part)
                .map_err(|error| Error::Internal(format!("the columns of a segment: {error}")))?;
            self.write(&batch)?;
            self.group_rows += taken;
            if self.group_rows >= group_rows {
                self.end_group()?;
            }
            from += taken;
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(rows.order.value(last));
        let written = &mut self.written;
        written.rows += total as u64;
        let events = rows.event_us.values();
        written.event_min_us = events.iter().copied().min().unwrap_or(i64::MAX).min(written.event_min_us);
        written.event_max_us = events.iter().copied().max().unwrap_or(i64::MIN).max(written.event_max_us);
        Ok(())
    }

    /// The columns of the file.
    fn columns(&self, rows: &LoadedRows<'_>) -> Result<Vec<ArrayRef>> {
        let total = rows.order.len();
        let typed =
            |(field, column): (&Field, &ArrayRef)| coerce(&field.name, column, &field.r#type.unwrap_or_default());
        let utc = |times: &TimestampMicrosecondArray| -> ArrayRef { Arc::new(times.clone().with_timezone("UTC")) };
        let slots = rows.order.iter().map(|order| order.map_or(0, slot_of_order));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt16Array::from_iter_values(slots))];
        for column in self.layout.join_keys.iter().zip(rows.join_keys) {
            columns.push(typed(column)?);
        }
        columns.push(utc(rows.event_us));
        columns.push(utc(rows.created_us));
        columns.push(utc(&TimestampMicrosecondArray::new_null(total)));
        columns.push(new_null_array(&DataType::UInt64, total));
        columns.push(Arc::new(BooleanArray::from(vec![false; total])));
        for column in self.layout.row.fields().iter().zip(rows.features) {
            columns.push(typed(column)?);
        }
        Ok(columns)
    }
}
