//! Rows in key order into a file.

use super::layout::{HEAD_KEY, SegmentLayout, time_type};
use crate::keys::{EntityKeyDecoder, split_history_key};
use crate::row::RowDecoder;
use crate::shard::RowRef;
use crate::{Error, Result};
use arrow_array::{
    ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt16Array, UInt64Array,
};
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::io::Write;
use std::sync::Arc;

/// A row group ends at so many rows, or packed bytes: what a read of any of its rows takes into memory.
pub(super) const GROUP_ROWS: usize = if cfg!(test) { 16 } else { 64 << 10 };
pub(super) const GROUP_BYTES: usize = 32 << 20;
/// Rows handed to Parquet together.
const BATCH_ROWS: usize = if cfg!(test) { 8 } else { 8 << 10 };

/// What [`SegmentWriter::finish`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub rows: u64,
    pub event_min_us: i64,
    pub event_max_us: i64,
}

/// Writes one segment.
pub struct SegmentWriter<W: Write + Send> {
    pub(super) layout: SegmentLayout,
    pub(super) schema: SchemaRef,
    projection: Vec<usize>,
    out: Out<W>,
    batch: Batch,
    /// History key of the last row; of a load its order key.
    pub(super) last_key: Vec<u8>,
    pub(super) group_keys: Vec<Vec<u8>>,
    pub(super) group_rows: usize,
    group_bytes: usize,
    pub(super) written: Written,
}

/// The file, which begins with the first rows: how columns are encoded follows from what they hold.
enum Out<W: Write + Send> {
    Waiting(W),
    Begun(Box<ArrowWriter<W>>),
    /// An earlier write failed.
    Broken,
}

impl<W: Write + Send> Out<W> {
    fn begun(&mut self, layout: &SegmentLayout, first: &RecordBatch) -> Result<&mut ArrowWriter<W>> {
        if let Self::Waiting(_) = self
            && let Self::Waiting(out) = std::mem::replace(self, Self::Broken)
        {
            let plain = incompressible(layout, first)?;
            let properties = properties(layout, &plain)?;
            let writer = ArrowWriter::try_new(out, first.schema(), Some(properties)).map_err(Error::parquet)?;
            *self = Self::Begun(Box::new(writer));
        }
        match self {
            Self::Begun(writer) => Ok(writer),
            _ => Err(Error::Internal("a segment was written on after a failure".to_owned())),
        }
    }
}

struct Batch {
    keys: EntityKeyDecoder,
    slots: Vec<u16>,
    event_us: Vec<i64>,
    created_us: Vec<i64>,
    committed_us: Vec<i64>,
    commits: Vec<u64>,
    deleted: Vec<bool>,
    features: RowDecoder,
}

impl Batch {
    fn new(layout: &SegmentLayout, projection: &[usize]) -> Result<Self> {
        Ok(Self {
            keys: EntityKeyDecoder::new(&layout.join_keys)?,
            slots: Vec::with_capacity(BATCH_ROWS),
            event_us: Vec::with_capacity(BATCH_ROWS),
            created_us: Vec::with_capacity(BATCH_ROWS),
            committed_us: Vec::with_capacity(BATCH_ROWS),
            commits: Vec::with_capacity(BATCH_ROWS),
            deleted: Vec::with_capacity(BATCH_ROWS),
            features: RowDecoder::new(&layout.row, projection, BATCH_ROWS),
        })
    }
}

impl<W: Write + Send> SegmentWriter<W> {
    /// # Errors
    /// `InvalidArgument` when the layout has a join key that cannot be one.
    pub fn new(layout: SegmentLayout, out: W) -> Result<Self> {
        let schema = layout.arrow_schema();
        let projection: Vec<usize> = (0..layout.row.fields().len()).collect();
        Ok(Self {
            batch: Batch::new(&layout, &projection)?,
            layout,
            schema,
            projection,
            out: Out::Waiting(out),
            last_key: Vec::new(),
            group_keys: Vec::new(),
            group_rows: 0,
            group_bytes: 0,
            written: Written { rows: 0, event_min_us: i64::MAX, event_max_us: i64::MIN },
        })
    }

    /// Appends a row; `history_key` must be above the last one.
    ///
    /// # Errors
    /// `Corrupt` for a key or row of another layout; `Internal` out of order; `Io`.
    pub fn push(&mut self, history_key: &[u8], row: &RowRef<'_>) -> Result<()> {
        let key = split_history_key(history_key)
            .filter(|key| key.storage_id == self.layout.storage_id)
            .ok_or_else(|| Error::Corrupt("a row of another storage id, for a segment".to_owned()))?;
        if self.layout.load || history_key <= &self.last_key[..] {
            return Err(Error::Internal("the rows of a segment must come in key order".to_owned()));
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(history_key);
        if self.group_rows == 0 {
            self.group_keys.push(history_key.to_vec());
        }
        let batch = &mut self.batch;
        batch.keys.push(key.entity_key)?;
        batch.slots.push(key.slot);
        batch.event_us.push(key.event_us);
        batch.created_us.push(key.created_us);
        batch.committed_us.push(row.committed_us);
        batch.commits.push(key.commit);
        batch.deleted.push(row.is_deletion());
        match row.is_deletion() {
            true => batch.features.push_null(),
            false => batch.features.push(row.packed)?,
        }
        self.written.rows += 1;
        self.written.event_min_us = self.written.event_min_us.min(key.event_us);
        self.written.event_max_us = self.written.event_max_us.max(key.event_us);
        self.group_rows += 1;
        self.group_bytes += row.packed.len() + history_key.len();
        let group_is_full = self.group_rows >= GROUP_ROWS || self.group_bytes >= GROUP_BYTES;
        if self.batch.slots.len() >= BATCH_ROWS || group_is_full {
            self.write_batch()?;
        }
        if group_is_full {
            self.end_group()?;
        }
        Ok(())
    }

    pub(super) fn end_group(&mut self) -> Result<()> {
        if let Out::Begun(out) = &mut self.out {
            out.flush().map_err(Error::parquet)?;
        }
        (self.group_rows, self.group_bytes) = (0, 0);
        Ok(())
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.out.begun(&self.layout, batch)?.write(batch).map_err(Error::parquet)
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.written.rows
    }

    fn write_batch(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, Batch::new(&self.layout, &self.projection)?);
        let rows = batch.slots.len();
        let times =
            |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt16Array::from(batch.slots))];
        columns.extend(batch.keys.finish());
        columns.push(times(batch.event_us));
        columns.push(times(batch.created_us));
        columns.push(times(batch.committed_us));
        columns.push(Arc::new(UInt64Array::from(batch.commits)));
        columns.push(Arc::new(BooleanArray::from(batch.deleted)));
        columns.extend(batch.features.finish()?);
        let exact = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &exact)
            .map_err(|error| Error::Internal(format!("the columns of a segment: {error}")))?;
        self.write(&batch)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<(Written, W)> {
        if !self.batch.slots.is_empty() || matches!(self.out, Out::Waiting(_)) {
            self.write_batch()?;
        }
        let head = self.layout.head(std::mem::take(&mut self.group_keys));
        match self.out {
            Out::Begun(mut out) => {
                out.append_key_value_metadata(KeyValue::new(HEAD_KEY.to_owned(), head));
                Ok((self.written, out.into_inner().map_err(Error::parquet)?))
            }
            _ => Err(Error::Internal("a segment was ended after a failure".to_owned())),
        }
    }
}

/// The columns of features that zstd would not shrink by a quarter, by what it does to the first rows: measurements and
/// embeddings are mostly noise, and take longer to unpack than to read.
fn incompressible(layout: &SegmentLayout, first: &RecordBatch) -> Result<Vec<ColumnPath>> {
    let properties = properties(layout, &[])?;
    let mut out = ArrowWriter::try_new(Vec::new(), first.schema(), Some(properties)).map_err(Error::parquet)?;
    out.write(first).map_err(Error::parquet)?;
    let metadata = out.finish().map_err(Error::parquet)?;
    let schema = metadata.file_metadata().schema_descr();
    let leaves = metadata.row_groups().first().map_or(&[][..], |group| group.columns());
    let features = leaves.iter().enumerate().filter(|(at, _)| schema.get_column_root_idx(*at) >= layout.leading());
    let noise = features.filter(|(_, leaf)| leaf.compressed_size() * 4 > leaf.uncompressed_size() * 3);
    Ok(noise.map(|(_, leaf)| leaf.column_path().clone()).collect())
}

/// - `plain`: columns of features that are not compressed
fn properties(layout: &SegmentLayout, plain: &[ColumnPath]) -> Result<WriterProperties> {
    let schema = layout.arrow_schema();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(Error::parquet)?))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_dictionary_enabled(false)
        // A read takes whole row groups anyway: one page a column.
        .set_data_page_row_count_limit(GROUP_ROWS)
        .set_created_by("cairn".to_owned());
    // Of an entity with many rows its key is written once, in a dictionary.
    for field in &layout.join_keys {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(field.name.clone()), true);
    }
    // Exponents beside exponents compress; mantissas mostly do not, and are passed over quickly.
    for field in schema.fields().iter().skip(layout.leading()).filter(|field| field.data_type().is_floating()) {
        let column = ColumnPath::from(field.name().clone());
        properties = properties.set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
    }
    let leading = schema.fields().iter().enumerate().take(layout.leading());
    for (_, field) in leading.filter(|(at, _)| *at == 0 || *at > layout.join_keys.len()) {
        let column = ColumnPath::from(field.name().clone());
        if field.data_type() == &time_type() || field.name().ends_with("commit") {
            properties = properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        } else if field.data_type().is_integer() {
            properties = properties.set_column_dictionary_enabled(column, true);
        }
    }
    for column in plain {
        properties = properties
            .set_column_compression(column.clone(), Compression::UNCOMPRESSED)
            .set_column_encoding(column.clone(), Encoding::PLAIN);
    }
    Ok(properties.build())
}
