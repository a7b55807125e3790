//! Keys as bytes that sort: entity keys, and the database keys built from them.
//!
//! ```text
//! latest    slot u16 | storage id u32 | entity key
//! history   slot u16 | storage id u32 | entity key | newest first: event time, created time, commit index (8 each)
//! ```
//! All big endian. What always holds: byte order is value order, component by component; no entity key of a storage
//! id is the beginning of another, so a history key splits in one way only.

use crate::types::{check_key_type, coerce, type_name};
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow_buffer::NullBuffer;
use cairn_proto::record::v1::{Field, ValueKind};
use std::sync::Arc;
use twox_hash::XxHash3_64;

/// Longest entity key, encoded.
pub const ENTITY_KEY_BYTES_MAX: usize = 1 << 10;

/// Bytes before the entity key: slot and storage id.
pub const PREFIX_BYTES: usize = 6;

/// Bytes after it in a history key.
pub const VERSION_BYTES: usize = crate::engine::VERSION_SUFFIX_BYTES;

/// The slot of an entity: never changes for a key, on any cluster.
pub fn slot_of(entity_key: &[u8]) -> u16 {
    let mask = cairn_proto::SLOTS as u64 - 1;
    (XxHash3_64::oneshot(entity_key) & mask) as u16
}

/// The keys of the slots `first` to `last`: from, inclusive, and to, exclusive (`None` = the end).
pub fn slots_range(first: u32, last: u32) -> (Vec<u8>, Option<Vec<u8>>) {
    let start = |slot: u32| u16::try_from(slot).ok().map(|slot| slot.to_be_bytes().to_vec());
    (start(first).unwrap_or_else(|| vec![0xff; PREFIX_BYTES]), last.checked_add(1).and_then(start))
}

/// Appends slot and storage id.
pub fn push_prefix(slot: u16, storage_id: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&slot.to_be_bytes());
    out.extend_from_slice(&storage_id.to_be_bytes());
}

/// Appends the `latest` key of an entity.
pub fn push_latest_key(storage_id: u32, entity_key: &[u8], out: &mut Vec<u8>) {
    push_prefix(slot_of(entity_key), storage_id, out);
    out.extend_from_slice(entity_key);
}

/// Appends what makes a `latest` key a `history` key.
pub fn push_version(event_us: i64, created_us: i64, commit: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&newest_first(event_us));
    out.extend_from_slice(&newest_first(created_us));
    out.extend_from_slice(&(!commit).to_be_bytes());
}

/// Appends the order key of a row: its slot, entity key and times. Order keys of a view sort as its history keys do.
pub fn push_order_key(entity_key: &[u8], event_us: i64, created_us: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&slot_of(entity_key).to_be_bytes());
    out.extend_from_slice(entity_key);
    out.extend_from_slice(&newest_first(event_us));
    out.extend_from_slice(&newest_first(created_us));
}

/// The slot of an order key.
pub fn slot_of_order(order_key: &[u8]) -> u16 {
    order_key.first_chunk::<2>().map_or(0, |slot| u16::from_be_bytes(*slot))
}

/// Appends the least history key there may be for an order key: that of the greatest commit.
pub fn push_order_as_history(storage_id: u32, order_key: &[u8], out: &mut Vec<u8>) {
    push_prefix(slot_of_order(order_key), storage_id, out);
    out.extend_from_slice(order_key.get(2..).unwrap_or_default());
    out.extend_from_slice(&(!u64::MAX).to_be_bytes());
}

fn newest_first(time_us: i64) -> [u8; 8] {
    // Flipping the sign bit makes byte order time order, and inverting makes it descending, because what is asked
    // for is always the newest row at or before a time.
    (!sortable(time_us)).to_be_bytes()
}

fn sortable(value: i64) -> u64 {
    value as u64 ^ (1 << 63)
}

fn from_sortable(bits: u64) -> i64 {
    (bits ^ (1 << 63)) as i64
}

/// A history key, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryKey<'a> {
    pub slot: u16,
    pub storage_id: u32,
    pub entity_key: &'a [u8],
    pub event_us: i64,
    pub created_us: i64,
    pub commit: u64,
}

/// Takes a history key apart; `None` when it is too short to be one.
pub fn split_history_key(key: &[u8]) -> Option<HistoryKey<'_>> {
    let (latest, version) = key.split_at_checked(key.len().checked_sub(VERSION_BYTES)?)?;
    let (slot, storage_id, entity_key) = split_latest_key(latest)?;
    let (event, rest) = version.split_first_chunk::<8>()?;
    let (created, rest) = rest.split_first_chunk::<8>()?;
    let (commit, _) = rest.split_first_chunk::<8>()?;
    Some(HistoryKey {
        slot,
        storage_id,
        entity_key,
        event_us: from_sortable(!u64::from_be_bytes(*event)),
        created_us: from_sortable(!u64::from_be_bytes(*created)),
        commit: !u64::from_be_bytes(*commit),
    })
}

/// Slot, storage id and entity key of a `latest` key; `None` when it is too short to be one.
pub fn split_latest_key(key: &[u8]) -> Option<(u16, u32, &[u8])> {
    let (slot, rest) = key.split_first_chunk::<2>()?;
    let (storage_id, entity_key) = rest.split_first_chunk::<4>()?;
    Some((u16::from_be_bytes(*slot), u32::from_be_bytes(*storage_id), entity_key))
}

/// The entity keys of a batch: one flat buffer.
#[derive(Debug, Clone)]
pub struct EntityKeys {
    bytes: Vec<u8>,
    /// `len + 1` of them.
    offsets: Vec<usize>,
    /// Rows with a null component are not valid.
    valid: Option<NullBuffer>,
}

impl EntityKeys {
    /// Encodes the join key columns, given in the order of `join_keys`.
    ///
    /// # Errors
    /// `InvalidArgument` naming the column (and row) that is missing, of another type, or does not fit. A key over
    /// [`ENTITY_KEY_BYTES_MAX`] is no error: nothing is ever stored under it, so who reads finds nothing, and who
    /// writes leaves out that row alone.
    pub fn encode(join_keys: &[Field], columns: &[ArrayRef]) -> Result<Self> {
        if join_keys.is_empty() || join_keys.len() != columns.len() {
            return Err(Error::InvalidArgument(format!(
                "{} join key columns given, {} needed",
                columns.len(),
                join_keys.len()
            )));
        }
        let rows = columns.first().map_or(0, |column| column.len());
        let mut parts = Vec::with_capacity(columns.len());
        let mut valid: Option<NullBuffer> = None;
        for (field, column) in join_keys.iter().zip(columns) {
            if column.len() != rows {
                return Err(Error::InvalidArgument(format!(
                    "column `{}` has {} rows and others {rows}",
                    field.name,
                    column.len()
                )));
            }
            let part = KeyColumn::new(field, column)?;
            valid = NullBuffer::union(valid.as_ref(), part.nulls());
            parts.push(part);
        }
        let mut keys = Self {
            bytes: Vec::with_capacity(rows.saturating_mul(parts.len() * 9)),
            offsets: Vec::with_capacity(rows + 1),
            valid,
        };
        keys.offsets.push(0);
        for row in 0..rows {
            if keys.valid.as_ref().is_none_or(|valid| valid.is_valid(row)) {
                for part in &parts {
                    part.push(row, &mut keys.bytes);
                }
            }
            keys.offsets.push(keys.bytes.len());
        }
        Ok(keys)
    }

    /// The rows whose key is not that of the row above, ascending: the first, and each where another entity begins.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn heads(join_keys: &[Field], columns: &[ArrayRef]) -> Result<Vec<u32>> {
        let rows = columns.first().map_or(0, |column| column.len());
        let mut differs = vec![false; rows];
        differs.iter_mut().take(1).for_each(|first| *first = true);
        for (field, column) in join_keys.iter().zip(columns) {
            if column.len() != rows || column.null_count() > 0 {
                return Err(Error::InvalidArgument(format!("join key `{}` misses values", field.name)));
            }
            KeyColumn::new(field, column)?.mark(&mut differs);
        }
        Ok((0..).zip(differs).filter(|(_, differs)| *differs).map(|(row, _)| row).collect())
    }

    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key of a row; `None` when a component is null (it equals no key), or past the end.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        if self.valid.as_ref().is_some_and(|valid| row >= valid.len() || valid.is_null(row)) {
            return None;
        }
        let (start, end) = (self.offsets.get(row)?, self.offsets.get(row + 1)?);
        self.bytes.get(*start..*end)
    }
}

/// A join key column, downcast once.
enum KeyColumn {
    Bool(BooleanArray),
    Int32(Int32Array),
    Int64(Int64Array),
    Date(Date32Array),
    Timestamp(TimestampMicrosecondArray),
    String(StringArray),
    Bytes(BinaryArray),
}

impl KeyColumn {
    fn new(field: &Field, column: &ArrayRef) -> Result<Self> {
        let feature_type = field.r#type.unwrap_or_default();
        check_key_type(&feature_type)
            .map_err(|message| Error::InvalidArgument(format!("join key `{}`: {message}", field.name)))?;
        let column = coerce(&field.name, column, &feature_type)?;
        Ok(match feature_type.kind() {
            ValueKind::Bool => Self::Bool(column.as_boolean().clone()),
            ValueKind::Int32 => Self::Int32(column.as_primitive::<Int32Type>().clone()),
            ValueKind::Int64 => Self::Int64(column.as_primitive::<Int64Type>().clone()),
            ValueKind::Date => Self::Date(column.as_primitive::<Date32Type>().clone()),
            ValueKind::Timestamp => Self::Timestamp(column.as_primitive::<TimestampMicrosecondType>().clone()),
            ValueKind::String => Self::String(column.as_string::<i32>().clone()),
            ValueKind::Bytes => Self::Bytes(column.as_binary::<i32>().clone()),
            ValueKind::Float32 | ValueKind::Float64 | ValueKind::Unspecified => return Err(not_a_key(field)),
        })
    }

    fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Bool(array) => array.nulls(),
            Self::Int32(array) => array.nulls(),
            Self::Int64(array) => array.nulls(),
            Self::Date(array) => array.nulls(),
            Self::Timestamp(array) => array.nulls(),
            Self::String(array) => array.nulls(),
            Self::Bytes(array) => array.nulls(),
        }
    }

    /// Marks the rows that differ from the one above them.
    fn mark(&self, differs: &mut [bool]) {
        fn values<T: PartialEq>(values: &[T], differs: &mut [bool]) {
            for (pair, differs) in values.windows(2).zip(differs.iter_mut().skip(1)) {
                *differs |= matches!(pair, [above, here] if above != here);
            }
        }
        fn others<T: PartialEq>(value: impl Fn(usize) -> T, differs: &mut [bool]) {
            for (row, differs) in differs.iter_mut().enumerate().skip(1) {
                *differs |= value(row - 1) != value(row);
            }
        }
        match self {
            Self::Bool(array) => others(|row| array.value(row), differs),
            Self::Int32(array) => values(array.values(), differs),
            Self::Int64(array) => values(array.values(), differs),
            Self::Date(array) => values(array.values(), differs),
            Self::Timestamp(array) => values(array.values(), differs),
            Self::String(array) => others(|row| array.value(row), differs),
            Self::Bytes(array) => others(|row| array.value(row), differs),
        }
    }

    fn push(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bool(array) => out.push(u8::from(array.value(row))),
            Self::Int32(array) => push_i32(array.value(row), out),
            Self::Int64(array) => out.extend_from_slice(&sortable(array.value(row)).to_be_bytes()),
            Self::Date(array) => push_i32(array.value(row), out),
            Self::Timestamp(array) => out.extend_from_slice(&sortable(array.value(row)).to_be_bytes()),
            Self::String(array) => push_escaped(array.value(row).as_bytes(), out),
            Self::Bytes(array) => push_escaped(array.value(row), out),
        }
    }
}

fn not_a_key(field: &Field) -> Error {
    let name = type_name(&field.r#type.unwrap_or_default());
    Error::InvalidArgument(format!("join key `{}`: `{name}` cannot be a join key", field.name))
}

fn push_i32(value: i32, out: &mut Vec<u8>) {
    out.extend_from_slice(&(value as u32 ^ (1 << 31)).to_be_bytes());
}

/// Ends text by 00 00, and a zero byte inside becomes 00 FF: so "a" sorts before "a\0", and both before "ab".
pub(crate) fn push_escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&[0, 0xff]);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 0]);
}

/// Reads what [`push_escaped`] wrote into `out`; gives what follows.
pub(crate) fn take_escaped<'a>(mut bytes: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let zero = bytes.iter().position(|byte| *byte == 0)?;
        out.extend_from_slice(&bytes[..zero]);
        let (mark, rest) = bytes[zero + 1..].split_first()?;
        bytes = rest;
        match mark {
            0 => return Some(bytes),
            0xff => out.push(0),
            _ => return None,
        }
    }
}

/// Join key columns from encoded entity keys, one row a push.
pub struct EntityKeyDecoder {
    parts: Vec<KeyBuilder>,
    names: Vec<String>,
}

enum KeyBuilder {
    Bool(Vec<bool>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Date(Vec<i32>),
    Timestamp(Vec<i64>),
    String(Vec<String>),
    Bytes(Vec<Vec<u8>>),
}

impl EntityKeyDecoder {
    /// # Errors
    /// `InvalidArgument` for a type that cannot be a join key.
    pub fn new(join_keys: &[Field]) -> Result<Self> {
        let part = |field: &Field| match field.r#type.unwrap_or_default() {
            feature_type if feature_type.list => Err(not_a_key(field)),
            feature_type => Ok(match feature_type.kind() {
                ValueKind::Bool => KeyBuilder::Bool(Vec::new()),
                ValueKind::Int32 => KeyBuilder::Int32(Vec::new()),
                ValueKind::Int64 => KeyBuilder::Int64(Vec::new()),
                ValueKind::Date => KeyBuilder::Date(Vec::new()),
                ValueKind::Timestamp => KeyBuilder::Timestamp(Vec::new()),
                ValueKind::String => KeyBuilder::String(Vec::new()),
                ValueKind::Bytes => KeyBuilder::Bytes(Vec::new()),
                ValueKind::Float32 | ValueKind::Float64 | ValueKind::Unspecified => return Err(not_a_key(field)),
            }),
        };
        let parts = join_keys.iter().map(part).collect::<Result<_>>()?;
        Ok(Self { parts, names: join_keys.iter().map(|field| field.name.clone()).collect() })
    }

    /// # Errors
    /// `Corrupt` when `key` was not encoded from these join keys. The decoder is of no more use then.
    pub fn push(&mut self, key: &[u8]) -> Result<()> {
        let mut rest = key;
        for (part, name) in self.parts.iter_mut().zip(&self.names) {
            rest = part
                .take(rest)
                .ok_or_else(|| Error::Corrupt(format!("an entity key does not decode at join key `{name}`")))?;
        }
        if rest.is_empty() { Ok(()) } else { Err(Error::Corrupt("an entity key has bytes left over".to_owned())) }
    }

    /// The columns, in join key order.
    pub fn finish(self) -> Vec<ArrayRef> {
        let array = |part| -> ArrayRef {
            match part {
                KeyBuilder::Bool(values) => Arc::new(BooleanArray::from(values)),
                KeyBuilder::Int32(values) => Arc::new(Int32Array::from(values)),
                KeyBuilder::Int64(values) => Arc::new(Int64Array::from(values)),
                KeyBuilder::Date(values) => Arc::new(Date32Array::from(values)),
                KeyBuilder::Timestamp(values) => Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")),
                KeyBuilder::String(values) => Arc::new(StringArray::from(values)),
                KeyBuilder::Bytes(values) => Arc::new(BinaryArray::from_iter_values(values)),
            }
        };
        self.parts.into_iter().map(array).collect()
    }
}

impl KeyBuilder {
    /// Reads one component off `bytes` and gives what follows.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        fn take_i32(bytes: &[u8]) -> Option<(i32, &[u8])> {
            let (value, rest) = bytes.split_first_chunk::<4>()?;
            Some(((u32::from_be_bytes(*value) ^ (1 << 31)) as i32, rest))
        }
        fn take_i64(bytes: &[u8]) -> Option<(i64, &[u8])> {
            let (value, rest) = bytes.split_first_chunk::<8>()?;
            Some((from_sortable(u64::from_be_bytes(*value)), rest))
        }
        match self {
            Self::Bool(values) => {
                let (value, rest) = bytes.split_first()?;
                values.push(match value {
                    0 => false,
                    1 => true,
                    _ => return None,
                });
                Some(rest)
            }
            Self::Int32(values) | Self::Date(values) => {
                let (value, rest) = take_i32(bytes)?;
                values.push(value);
                Some(rest)
            }
            Self::Int64(values) | Self::Timestamp(values) => {
                let (value, rest) = take_i64(bytes)?;
                values.push(value);
                Some(rest)
            }
            Self::String(values) => {
                let mut text = Vec::new();
                let rest = take_escaped(bytes, &mut text)?;
                values.push(String::from_utf8(text).ok()?);
                Some(rest)
            }
            Self::Bytes(values) => {
                let mut text = Vec::new();
                let rest = take_escaped(bytes, &mut text)?;
                values.push(text);
                Some(rest)
            }
        }
    }
}

/// The join key values of one entity, as columns of one row.
///
/// # Errors
/// `Corrupt` when `key` was not encoded from `join_keys`.
pub fn decode_entity_key(join_keys: &[Field], key: &[u8]) -> Result<Vec<ArrayRef>> {
    let mut decoder = EntityKeyDecoder::new(join_keys)?;
    decoder.push(key)?;
    Ok(decoder.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{KEY_TYPES, assert_same, batch, check_golden, field, hex};
    use proptest::prelude::*;
    use std::cmp::Ordering;

    /// Compares two rows column by column, as values.
    fn compare(columns: &[ArrayRef], a: usize, b: usize) -> Ordering {
        let one = |column: &ArrayRef| match column.data_type() {
            arrow_schema::DataType::Boolean => column.as_boolean().value(a).cmp(&column.as_boolean().value(b)),
            arrow_schema::DataType::Int32 => {
                column.as_primitive::<Int32Type>().value(a).cmp(&column.as_primitive::<Int32Type>().value(b))
            }
            arrow_schema::DataType::Int64 => {
                column.as_primitive::<Int64Type>().value(a).cmp(&column.as_primitive::<Int64Type>().value(b))
            }
            arrow_schema::DataType::Date32 => {
                column.as_primitive::<Date32Type>().value(a).cmp(&column.as_primitive::<Date32Type>().value(b))
            }
            arrow_schema::DataType::Timestamp(..) => {
                let times = column.as_primitive::<TimestampMicrosecondType>();
                times.value(a).cmp(&times.value(b))
            }
            arrow_schema::DataType::Utf8 => column.as_string::<i32>().value(a).cmp(column.as_string::<i32>().value(b)),
            _ => column.as_binary::<i32>().value(a).cmp(column.as_binary::<i32>().value(b)),
        };
        columns.iter().map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    proptest! {
        /// Scans and as-of reads rest on this.
        #[test]
        fn entity_key_bytes_sort_like_their_values((fields, columns) in batch(&KEY_TYPES, 1..4, 1..12)) {
            let keys = EntityKeys::encode(&fields, &columns).unwrap();
            for a in 0..keys.len() {
                let null = columns.iter().any(|column| column.is_null(a));
                prop_assert_eq!(keys.get(a).is_none(), null);
                let Some(key) = keys.get(a) else { continue };
                for b in 0..keys.len() {
                    let Some(other) = keys.get(b) else { continue };
                    prop_assert_eq!(key.cmp(other), compare(&columns, a, b));
                    prop_assert!(key == other || !other.starts_with(key), "a key begins another");
                }
            }
            prop_assert_eq!(keys.get(keys.len()), None);
        }

        #[test]
        fn entity_keys_decode_to_their_values((fields, columns) in batch(&KEY_TYPES, 1..4, 1..6)) {
            let keys = EntityKeys::encode(&fields, &columns).unwrap();
            for row in 0..keys.len() {
                let Some(key) = keys.get(row) else { continue };
                for (found, expected) in decode_entity_key(&fields, key).unwrap().iter().zip(&columns) {
                    assert_same(found, &expected.slice(row, 1), "key");
                }
            }
        }

        #[test]
        fn broken_entity_keys_are_errors(
            (fields, _) in batch(&KEY_TYPES, 1..4, 0..1),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(columns) = decode_entity_key(&fields, &bytes) {
                let keys = EntityKeys::encode(&fields, &columns).unwrap();
                prop_assert_eq!(keys.get(0), Some(&bytes[..]), "what decodes is what would be encoded");
            }
        }

        /// Newest first inside an entity, entities in order, and apart.
        #[test]
        fn history_keys_sort_newest_first(
            a: (i64, i64, u64), b: (i64, i64, u64), key in proptest::collection::vec(any::<u8>(), 1..9),
        ) {
            let encode = |(event_us, created_us, commit)| {
                let mut out = Vec::new();
                push_latest_key(7, &key, &mut out);
                push_version(event_us, created_us, commit, &mut out);
                out
            };
            prop_assert_eq!(encode(a).cmp(&encode(b)), b.cmp(&a));
            let bytes = encode(a);
            let split = split_history_key(&bytes).unwrap();
            prop_assert_eq!((split.event_us, split.created_us, split.commit), a);
            prop_assert_eq!((split.slot, split.storage_id, split.entity_key), (slot_of(&key), 7, &key[..]));
        }
    }

    #[test]
    fn bad_key_columns_are_named() {
        let check = |fields: &[Field], columns: &[ArrayRef], expected: &str| {
            let error = EntityKeys::encode(fields, columns).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let driver = [field("driver_id", "int32")];
        check(&driver, &[Arc::new(Int64Array::from(vec![1, 1 << 40]))], "column `driver_id`, row 1");
        check(&driver, &[Arc::new(StringArray::from(vec!["1"]))], "column `driver_id` is Utf8");
        check(&driver, &[], "0 join key columns given, 1 needed");
        check(&[field("x", "float64")], &[Arc::new(Int64Array::from(vec![1]))], "join key `x`: `float64`");
        let widened = EntityKeys::encode(&driver, &[Arc::new(arrow_array::Int8Array::from(vec![1]))]).unwrap();
        let same = EntityKeys::encode(&driver, &[Arc::new(Int32Array::from(vec![1]))]).unwrap();
        assert_eq!(widened.get(0), same.get(0));
    }

    #[test]
    fn a_key_over_the_limit_is_a_key_that_nothing_has() {
        let long = "x".repeat(ENTITY_KEY_BYTES_MAX);
        let text: ArrayRef = Arc::new(StringArray::from(vec!["short", &long]));
        let keys = EntityKeys::encode(&[field("name", "string")], &[text]).unwrap();
        assert_eq!(keys.get(0).map(<[u8]>::len), Some(7));
        assert_eq!(keys.get(1).map(<[u8]>::len), Some(ENTITY_KEY_BYTES_MAX + 2));
    }

    #[test]
    fn key_bytes_never_change() {
        let mut text = String::new();
        let mut add = |name: &str, fields: &[Field], columns: &[ArrayRef]| {
            let keys = EntityKeys::encode(fields, columns).unwrap();
            for row in 0..keys.len() {
                let key = keys.get(row).unwrap();
                text += &format!("{name} {} slot {}\n", hex(key), slot_of(key));
            }
        };
        add("bool", &[field("k", "bool")], &[Arc::new(BooleanArray::from(vec![false, true]))]);
        add("int32", &[field("k", "int32")], &[Arc::new(Int32Array::from(vec![i32::MIN, -1, 0, 7]))]);
        add("int64", &[field("k", "int64")], &[Arc::new(Int64Array::from(vec![i64::MIN, -1, 0, 1001]))]);
        add("date", &[field("k", "date")], &[Arc::new(Date32Array::from(vec![-1, 20_000]))]);
        let times = TimestampMicrosecondArray::from(vec![-1, 1_700_000_000_000_000]);
        add("timestamp", &[field("k", "timestamp")], &[Arc::new(times)]);
        add("string", &[field("k", "string")], &[Arc::new(StringArray::from(vec!["", "a\0b", "é"]))]);
        let bytes: Vec<&[u8]> = vec![b"", b"\x00", b"\xff\x00\x01"];
        add("bytes", &[field("k", "bytes")], &[Arc::new(BinaryArray::from(bytes))]);
        let composite: [ArrayRef; 2] = [Arc::new(StringArray::from(vec!["a"])), Arc::new(Int64Array::from(vec![7]))];
        add("composite", &[field("a", "string"), field("b", "int64")], &composite);

        let mut key = Vec::new();
        push_latest_key(0x0102_0304, b"entity", &mut key);
        text += &format!("latest {}\n", hex(&key));
        push_version(1_700_000_000_000_000, -1, 42, &mut key);
        text += &format!("history {}\n", hex(&key));
        check_golden("keys.v1.txt", &text);
    }
}
