//! Packed rows to Arrow columns: one growing buffer per projected feature, no cell objects in between.

use super::{Layout, LittleEndian, Number, Parts, Place, RowSchema, Shape};
use crate::types::list_item;
use crate::{Error, Result};
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, ListArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType};
use std::sync::Arc;

/// Collects the projected features of many packed rows.
pub struct RowDecoder {
    layout: Arc<Layout>,
    columns: Vec<Column>,
    rows: usize,
    /// A row failed half way: the columns are uneven.
    broken: bool,
}

struct Column {
    feature: usize,
    place: Place,
    nulls: NullBufferBuilder,
    values: Values,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int32(Vec<i32>),
    Date(Vec<i32>),
    Int64(Vec<i64>),
    Timestamp(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    String(Vec<i32>, Vec<u8>),
    Bytes(Vec<i32>, Vec<u8>),
    List(Vec<i32>, Items),
    FixedList(usize, Items),
}

enum Items {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
}

impl RowDecoder {
    /// `projection`: numbers of features, in the order wanted; a feature may come twice. `capacity`: rows expected.
    pub fn new(schema: &RowSchema, projection: &[usize], capacity: usize) -> Self {
        let layout = schema.layout.clone();
        let column = |&feature: &usize| {
            let place = *layout.places.get(feature)?;
            let nulls = NullBufferBuilder::new(capacity);
            Some(Column { feature, place, nulls, values: Values::new(place.shape, capacity) })
        };
        let columns: Vec<Column> = projection.iter().filter_map(column).collect();
        let broken = columns.len() != projection.len();
        Self { layout, columns, rows: 0, broken }
    }

    /// Appends a packed row.
    ///
    /// # Errors
    /// `Corrupt` when it is broken or of another schema, `TooLarge` when a column would pass 2 GiB. The decoder is of
    /// no more use then.
    pub fn push(&mut self, packed: &[u8]) -> Result<()> {
        let row = self.layout.open(packed).inspect_err(|_| self.broken = true)?;
        for column in &mut self.columns {
            if row.is_null(column.feature) {
                column.push_null();
            } else if let Err(error) = column.push(row) {
                self.broken = true;
                let name = self.layout.fields.get(column.feature).map_or("?", |field| &field.name);
                return Err(match error {
                    Bad::Bytes => Error::Corrupt(format!("a packed row does not decode at feature `{name}`")),
                    Bad::Length => Error::TooLarge(format!("column `{name}` passes 2 GiB; read fewer rows at a time")),
                });
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Appends a row of nulls.
    pub fn push_null(&mut self) {
        for column in &mut self.columns {
            column.push_null();
        }
        self.rows += 1;
    }

    /// Whether the feature of this number (of the schema, not of the projection) is null in `packed`.
    pub fn is_null_in(&self, packed: &[u8], feature: usize) -> bool {
        match self.layout.open(packed) {
            Ok(row) if feature < self.layout.fields.len() => row.is_null(feature),
            _ => true,
        }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The columns, in the order of the projection.
    ///
    /// # Errors
    /// `Corrupt` when a string is not UTF-8; `Internal` after a failed push or for a feature that is not there.
    pub fn finish(self) -> Result<Vec<ArrayRef>> {
        if self.broken {
            return Err(Error::Internal("columns asked of a row decoder that failed".to_owned()));
        }
        let rows = self.rows;
        let layout = self.layout;
        let finish = |column: Column| {
            let feature = column.feature;
            column.finish(rows).map_err(|error| {
                let name = layout.fields.get(feature).map_or("?", |field| &field.name);
                Error::Corrupt(format!("the packed rows do not decode at feature `{name}`: {error}"))
            })
        };
        self.columns.into_iter().map(finish).collect()
    }
}

/// Why a cell was not appended.
enum Bad {
    Bytes,
    Length,
}

impl Column {
    fn push(&mut self, row: Parts<'_>) -> Result<(), Bad> {
        let at = self.place.offset;
        let fixed = &row.fixed[at..at + self.place.shape.fixed_bytes()];
        match &mut self.values {
            Values::Bool(values) => match fixed[0] {
                0 => values.append(false),
                1 => values.append(true),
                _ => return Err(Bad::Bytes),
            },
            Values::Int32(values) | Values::Date(values) => values.push(i32::read(fixed)),
            Values::Int64(values) | Values::Timestamp(values) => values.push(i64::read(fixed)),
            Values::Float32(values) => values.push(f32::read(fixed)),
            Values::Float64(values) => values.push(f64::read(fixed)),
            Values::FixedList(_, items) => items.extend(fixed),
            Values::String(offsets, data) | Values::Bytes(offsets, data) => {
                data.extend_from_slice(variable(row, self.place)?);
                offsets.push(i32::try_from(data.len()).map_err(|_| Bad::Length)?);
            }
            Values::List(offsets, items) => {
                let bytes = variable(row, self.place)?;
                if bytes.len() % items.bytes() != 0 {
                    return Err(Bad::Bytes);
                }
                items.extend(bytes);
                offsets.push(i32::try_from(items.len()).map_err(|_| Bad::Length)?);
            }
        }
        self.nulls.append_non_null();
        Ok(())
    }

    fn push_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.append(false),
            Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp(values) => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::FixedList(length, items) => items.extend_zero(*length),
            Values::String(offsets, _) | Values::Bytes(offsets, _) | Values::List(offsets, _) => {
                offsets.push(offsets.last().copied().unwrap_or(0));
            }
        }
        self.nulls.append_null();
    }

    fn finish(mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        Ok(match self.values {
            Values::Bool(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int32(values) => Arc::new(PrimitiveArray::<Int32Type>::try_new(values.into(), nulls)?),
            Values::Date(values) => Arc::new(PrimitiveArray::<Date32Type>::try_new(values.into(), nulls)?),
            Values::Int64(values) => Arc::new(PrimitiveArray::<Int64Type>::try_new(values.into(), nulls)?),
            Values::Timestamp(values) => {
                let times = PrimitiveArray::<TimestampMicrosecondType>::try_new(values.into(), nulls)?;
                Arc::new(times.with_timezone("UTC"))
            }
            Values::Float32(values) => Arc::new(PrimitiveArray::<Float32Type>::try_new(values.into(), nulls)?),
            Values::Float64(values) => Arc::new(PrimitiveArray::<Float64Type>::try_new(values.into(), nulls)?),
            Values::String(offsets, data) => {
                Arc::new(StringArray::try_new(offset_buffer(offsets), Buffer::from_vec(data), nulls)?)
            }
            Values::Bytes(offsets, data) => {
                Arc::new(BinaryArray::try_new(offset_buffer(offsets), Buffer::from_vec(data), nulls)?)
            }
            Values::List(offsets, items) => {
                let (item, values) = items.finish();
                Arc::new(ListArray::try_new(list_item(item), offset_buffer(offsets), values, nulls)?)
            }
            Values::FixedList(length, items) => {
                let (item, values) = items.finish();
                let length = i32::try_from(length).unwrap_or(i32::MAX);
                Arc::new(FixedSizeListArray::try_new_with_length(list_item(item), length, values, nulls, rows)?)
            }
        })
    }
}

/// The variable bytes of a feature.
fn variable<'a>(row: Parts<'a>, place: Place) -> Result<&'a [u8], Bad> {
    let end_at = |at: usize| i32::read(&row.fixed[at..at + 4]) as u32 as usize;
    let start = place.start_at.map_or(0, end_at);
    row.variable.get(start..end_at(place.offset)).ok_or(Bad::Bytes)
}

/// `offsets` start at 0 and only grow.
fn offset_buffer(offsets: Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

impl Values {
    fn new(shape: Shape, capacity: usize) -> Self {
        let offsets = || {
            let mut offsets = Vec::with_capacity(capacity + 1);
            offsets.push(0);
            offsets
        };
        match shape {
            Shape::Bool => Self::Bool(BooleanBufferBuilder::new(capacity)),
            Shape::Int32 => Self::Int32(Vec::with_capacity(capacity)),
            Shape::Date => Self::Date(Vec::with_capacity(capacity)),
            Shape::Int64 => Self::Int64(Vec::with_capacity(capacity)),
            Shape::Timestamp => Self::Timestamp(Vec::with_capacity(capacity)),
            Shape::Float32 => Self::Float32(Vec::with_capacity(capacity)),
            Shape::Float64 => Self::Float64(Vec::with_capacity(capacity)),
            Shape::String => Self::String(offsets(), Vec::new()),
            Shape::Bytes => Self::Bytes(offsets(), Vec::new()),
            Shape::List(number) => Self::List(offsets(), Items::new(number, 0)),
            // Lists may be long and the capacity a guess: let them grow.
            Shape::FixedList(number, length) => {
                Self::FixedList(length, Items::new(number, capacity.saturating_mul(length).min(1 << 20)))
            }
        }
    }
}

fn extend<T: LittleEndian>(values: &mut Vec<T>, bytes: &[u8]) {
    values.extend(bytes.chunks_exact(T::BYTES).map(T::read));
}

fn numbers<T: ArrowPrimitiveType>(values: Vec<T::Native>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(values.into(), None))
}

impl Items {
    fn new(number: Number, capacity: usize) -> Self {
        match number {
            Number::Int32 => Self::Int32(Vec::with_capacity(capacity)),
            Number::Int64 => Self::Int64(Vec::with_capacity(capacity)),
            Number::Float32 => Self::Float32(Vec::with_capacity(capacity)),
            Number::Float64 => Self::Float64(Vec::with_capacity(capacity)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Int32(_) | Self::Float32(_) => 4,
            Self::Int64(_) | Self::Float64(_) => 8,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Int32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Float32(values) => values.len(),
            Self::Float64(values) => values.len(),
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        match self {
            Self::Int32(values) => extend(values, bytes),
            Self::Int64(values) => extend(values, bytes),
            Self::Float32(values) => extend(values, bytes),
            Self::Float64(values) => extend(values, bytes),
        }
    }

    fn extend_zero(&mut self, count: usize) {
        let length = self.len() + count;
        match self {
            Self::Int32(values) => values.resize(length, 0),
            Self::Int64(values) => values.resize(length, 0),
            Self::Float32(values) => values.resize(length, 0.0),
            Self::Float64(values) => values.resize(length, 0.0),
        }
    }

    fn finish(self) -> (DataType, ArrayRef) {
        match self {
            Self::Int32(values) => (DataType::Int32, numbers::<Int32Type>(values)),
            Self::Int64(values) => (DataType::Int64, numbers::<Int64Type>(values)),
            Self::Float32(values) => (DataType::Float32, numbers::<Float32Type>(values)),
            Self::Float64(values) => (DataType::Float64, numbers::<Float64Type>(values)),
        }
    }
}
