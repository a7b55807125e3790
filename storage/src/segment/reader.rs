//! Row groups of a segment: keys and times as bytes that compare, features only where a row is wanted.

use super::layout::{HEAD_KEY, SegmentLayout};
use super::{SegmentRef, Stamp};
use crate::blob::{BlobStore, Hash, hex};
use crate::keys::{EntityKeys, push_prefix, push_version};
use crate::row::RowEncoder;
use crate::shard::RowRef;
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt16Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchReader};
use arrow_select::concat::concat_batches;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use std::io::Read;
use std::sync::Arc;

/// Largest row group, unpacked, that is read.
const GROUP_ROWS_MAX: usize = 1 << 20;

/// The bytes of a segment: a blob.
#[derive(Clone)]
struct File {
    blobs: Arc<BlobStore>,
    root: Hash,
    size: u64,
}

impl Length for File {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for File {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let reader = self.blobs.reader(&self.root, start).map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(Box::new(reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut reader =
            self.blobs.reader(&self.root, start).map_err(|error| ParquetError::External(Box::new(error)))?;
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            let chunk = reader.next_chunk().map_err(|error| ParquetError::External(Box::new(error)))?;
            let chunk = chunk.ok_or_else(|| ParquetError::EOF("a segment is cut short".to_owned()))?;
            let wanted = chunk.len().min(length - bytes.len());
            bytes.extend_from_slice(&chunk[..wanted]);
        }
        Ok(bytes.freeze())
    }
}

/// Columns of a row group, fetched at once: they lie side by side, and each read of a blob begins with a search.
struct Window {
    file: File,
    start: u64,
    bytes: Bytes,
}

impl Window {
    fn new(segment: &SegmentFile, number: usize, columns: &[usize]) -> Result<Self, ParquetError> {
        let metadata = segment.metadata.metadata();
        let schema = metadata.file_metadata().schema_descr();
        let leaves = metadata.row_groups().get(number).map_or(&[][..], |group| group.columns());
        let wanted = leaves.iter().enumerate().filter(|(at, _)| columns.contains(&schema.get_column_root_idx(*at)));
        let ranges: Vec<(u64, u64)> = wanted.map(|(_, leaf)| leaf.byte_range()).collect();
        let start = ranges.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let end = ranges.iter().map(|(start, length)| start.saturating_add(*length)).max().unwrap_or(0);
        let needed: u64 = ranges.iter().map(|(_, length)| *length).sum();
        let file = segment.file.clone();
        // Of columns far apart each is fetched by itself.
        let bytes = match usize::try_from(end.saturating_sub(start)) {
            Ok(length) if end - start <= needed.saturating_mul(2) && end <= file.size => {
                file.get_bytes(start, length)?
            }
            _ => Bytes::new(),
        };
        Ok(Self { file, start, bytes })
    }

    fn slice(&self, start: u64, length: usize) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(length)?;
        (to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.file.size
    }
}

impl ChunkReader for Window {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        match start.checked_sub(self.start).and_then(|from| self.bytes.get(usize::try_from(from).ok()?..)) {
            Some(rest) if !rest.is_empty() => Ok(Box::new(self.bytes.slice_ref(rest).reader())),
            _ => self.file.get_read(start),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.slice(start, length).map_or_else(|| self.file.get_bytes(start, length), Ok)
    }
}

/// An open segment.
pub struct SegmentFile {
    file: File,
    stamp: Option<Stamp>,
    metadata: ArrowReaderMetadata,
    layout: SegmentLayout,
    /// History key of the first row of each row group.
    group_keys: Vec<Vec<u8>>,
}

impl SegmentFile {
    /// # Errors
    /// `NotFound` when it is not on this node; `InvalidArgument` for one of a newer version; `Corrupt`; `Io`.
    pub fn open(blobs: &Arc<BlobStore>, segment: &SegmentRef) -> Result<Self> {
        let SegmentRef { root, stamp } = segment;
        let file = File { blobs: Arc::clone(blobs), root: *root, size: blobs.get(root)?.size };
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(Error::parquet)?;
        let corrupt = |what: &str| Error::Corrupt(format!("segment `{}`: {what}", hex(root)));
        let pairs = metadata.metadata().file_metadata().key_value_metadata();
        let head = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == HEAD_KEY));
        let head = head.and_then(|head| head.value.as_deref()).ok_or_else(|| corrupt("it has no head"))?;
        let (layout, group_keys) = SegmentLayout::read_head(head)?;
        if layout.load != stamp.is_some() {
            return Err(corrupt("whether it is a load is said one way here and another in the shard's record"));
        }
        if metadata.schema().fields() != layout.arrow_schema().fields() {
            return Err(corrupt("its columns are not those of its head"));
        }
        let groups = metadata.metadata().row_groups();
        if groups.len() != group_keys.len()
            || groups.iter().any(|group| group.num_rows() < 1 || group.num_rows() as usize > GROUP_ROWS_MAX)
        {
            return Err(corrupt("its row groups are not those of its head"));
        }
        Ok(Self { file, stamp: *stamp, metadata, layout, group_keys })
    }

    /// What it was opened as.
    pub fn segment(&self) -> SegmentRef {
        SegmentRef { root: self.file.root, stamp: self.stamp }
    }

    /// When all rows were committed, for a load.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    pub fn layout(&self) -> &SegmentLayout {
        &self.layout
    }

    pub fn groups(&self) -> usize {
        self.group_keys.len()
    }

    /// The row group in which `key` is, or would be.
    pub fn group_of(&self, key: &[u8]) -> usize {
        self.group_keys.partition_point(|first| first.as_slice() <= key).saturating_sub(1)
    }

    /// History key of a row group's first row; `None` behind the last group.
    pub fn first_key(&self, number: usize) -> Option<&[u8]> {
        self.group_keys.get(number).map(Vec::as_slice)
    }

    /// What is known of a column of a row group without reading it; `column` stands before the features.
    pub(super) fn statistics(&self, number: usize, column: usize) -> Option<&Statistics> {
        self.metadata.metadata().row_groups().get(number)?.columns().get(column)?.statistics()
    }

    /// All rows of some columns of a row group; `columns` ascend.
    pub(super) fn read(&self, number: usize, columns: &[usize]) -> Result<Vec<ArrayRef>> {
        let window = Window::new(self, number, columns).map_err(Error::parquet)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(window, self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
        let rows = self.metadata.metadata().row_groups().get(number).map_or(0, |group| group.num_rows() as usize);
        let reader = builder.with_row_groups(vec![number]).with_projection(mask).with_batch_size(rows.max(1));
        let reader = reader.build().map_err(Error::parquet)?;
        let schema = RecordBatchReader::schema(&reader);
        let batches: Vec<RecordBatch> =
            reader.collect::<Result<_, _>>().map_err(|error| self.corrupt(number, &error.to_string()))?;
        let batch = match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) => batch,
            Err(batches) => {
                concat_batches(&schema, &batches).map_err(|error| self.corrupt(number, &error.to_string()))?
            }
        };
        match batch.num_rows() == rows && batch.num_columns() == columns.len() {
            true => Ok(batch.columns().to_vec()),
            false => Err(self.corrupt(number, "rows are missing")),
        }
    }

    pub(super) fn corrupt(&self, number: usize, what: &str) -> Error {
        Error::Corrupt(format!("row group {number} of segment `{}`: {what}", hex(&self.file.root)))
    }

    /// Reads the keys and times of a row group.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn group(self: &Arc<Self>, number: usize) -> Result<Group> {
        let columns: Vec<usize> = (0..self.layout.leading()).collect();
        let columns = self.read(number, &columns)?;
        let column = |at: usize| columns.get(at).ok_or_else(|| self.corrupt(number, "a column is missing"));
        let keys = self.layout.join_keys.len();
        let join_keys: Vec<ArrayRef> = (1..=keys).map(|at| column(at).cloned()).collect::<Result<_>>()?;
        let entities = EntityKeys::encode(&self.layout.join_keys, &join_keys)?;
        let slots = column(0)?.as_primitive::<UInt16Type>().values();
        let times = |at| -> Result<_> { Ok(column(at)?.as_primitive::<TimestampMicrosecondType>().values().clone()) };
        let (event_us, created_us) = (times(keys + 1)?, times(keys + 2)?);
        let (commits, committed_us) = match self.stamp {
            Some(stamp) => (vec![stamp.commit; slots.len()], vec![stamp.committed_us; slots.len()]),
            None => {
                let commits = column(keys + 4)?.as_primitive::<UInt64Type>().values();
                (commits.to_vec(), times(keys + 3)?.to_vec())
            }
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(slots.len());
        for row in 0..slots.len() {
            let entity = entities.get(row).ok_or_else(|| self.corrupt(number, "a key is null"))?;
            push_prefix(slots[row], self.layout.storage_id, &mut bytes);
            bytes.extend_from_slice(entity);
            push_version(event_us[row], created_us[row], commits[row], &mut bytes);
            ends.push(u32::try_from(bytes.len()).map_err(|_| self.corrupt(number, "its keys are too long"))?);
        }
        let group = Group {
            segment: Arc::clone(self),
            number,
            keys: bytes,
            ends,
            event_us: event_us.to_vec(),
            created_us: created_us.to_vec(),
            commits,
            committed_us,
            deleted: column(keys + 5)?.as_boolean().iter().map(|deleted| deleted == Some(true)).collect(),
            features: Mutex::default(),
        };
        let ascends = (1..group.len()).all(|row| group.key(row - 1) < group.key(row));
        let first = self.group_keys.get(number).map_or(&[][..], Vec::as_slice);
        let begins = match self.stamp {
            Some(_) => first.len() == group.key(0).len() && first <= group.key(0),
            None => first == group.key(0),
        };
        match ascends && begins {
            true => Ok(group),
            false => Err(self.corrupt(number, "its keys are out of order")),
        }
    }
}

/// A row group: the keys of all rows; the features once somebody wants one.
pub struct Group {
    segment: Arc<SegmentFile>,
    number: usize,
    /// History keys, side by side.
    keys: Vec<u8>,
    ends: Vec<u32>,
    event_us: Vec<i64>,
    created_us: Vec<i64>,
    commits: Vec<u64>,
    committed_us: Vec<i64>,
    deleted: Vec<bool>,
    features: Mutex<Option<Arc<RowEncoder>>>,
}

impl Group {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// History key of a row; nothing past the end.
    pub fn key(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends.get(row - 1).copied().unwrap_or(u32::MAX) };
        let end = self.ends.get(row).copied().unwrap_or(start);
        self.keys.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The first row at or after `key`; `len()` when there is none.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Times and commit of a row, without what it packs; `None` past the end.
    pub fn version(&self, row: usize) -> Option<RowRef<'static>> {
        Some(RowRef {
            event_us: *self.event_us.get(row)?,
            created_us: *self.created_us.get(row)?,
            commit: *self.commits.get(row)?,
            committed_us: *self.committed_us.get(row)?,
            packed: &[],
        })
    }

    /// Appends what a row packs: nothing for one that deletes.
    ///
    /// # Errors
    /// `Corrupt`, `Io` when the features cannot be read.
    pub fn packed(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.deleted.get(row) == Some(&true) {
            return Ok(());
        }
        self.features()?.encode(row, out)
    }

    fn features(&self) -> Result<Arc<RowEncoder>> {
        let mut features = self.features.lock();
        if let Some(features) = &*features {
            return Ok(Arc::clone(features));
        }
        let leading = self.segment.layout.leading();
        let columns: Vec<usize> = (leading..leading + self.segment.layout.row.fields().len()).collect();
        let columns = self.segment.read(self.number, &columns)?;
        let encoder = Arc::new(RowEncoder::new(&self.segment.layout.row, &columns)?);
        *features = Some(Arc::clone(&encoder));
        Ok(encoder)
    }

    /// Bytes in memory once the features are there too, about.
    pub fn bytes_len(&self) -> usize {
        let groups = self.segment.metadata.metadata().row_groups();
        let stored = groups.get(self.number).map_or(0, |group| usize::try_from(group.total_byte_size()).unwrap_or(0));
        self.keys.len() + self.len() * 40 + stored
    }
}
