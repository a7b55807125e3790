//! Arrow columns to packed rows. Columns are converted and downcast once, then read cell by cell.

use super::{LittleEndian, Number, PACKED_BYTES_MAX, RowSchema, Shape};
use crate::types::coerce;
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, StringArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};

/// Packs the rows of one batch.
pub struct RowEncoder {
    schema: RowSchema,
    columns: Vec<(Values, Option<NullBuffer>)>,
    rows: usize,
}

/// One column of its declared type.
enum Values {
    Bool(BooleanArray),
    Int32(ScalarBuffer<i32>),
    Int64(ScalarBuffer<i64>),
    Float32(ScalarBuffer<f32>),
    Float64(ScalarBuffer<f64>),
    String(StringArray),
    Bytes(BinaryArray),
    List(OffsetBuffer<i32>, Items),
    FixedList(usize, Items),
}

enum Items {
    Int32(ScalarBuffer<i32>),
    Int64(ScalarBuffer<i64>),
    Float32(ScalarBuffer<f32>),
    Float64(ScalarBuffer<f64>),
}

impl RowEncoder {
    /// Takes the feature columns in the order of the schema, of its types or types that convert to them.
    ///
    /// # Errors
    /// `InvalidArgument` naming the column, the type found and the type wanted, or the row that does not convert.
    pub fn new(schema: &RowSchema, columns: &[ArrayRef]) -> Result<Self> {
        let fields = schema.fields();
        if fields.len() != columns.len() {
            return Err(Error::InvalidArgument(format!(
                "{} feature columns given, {} needed",
                columns.len(),
                fields.len()
            )));
        }
        let rows = columns.first().map_or(usize::MAX, |column| column.len());
        let mut typed = Vec::with_capacity(columns.len());
        for ((field, column), place) in fields.iter().zip(columns).zip(&schema.layout.places) {
            if column.len() != rows {
                return Err(Error::InvalidArgument(format!(
                    "column `{}` has {} rows and others {rows}",
                    field.name,
                    column.len()
                )));
            }
            let column = coerce(&field.name, column, &field.r#type.unwrap_or_default())?;
            typed.push((Values::of(&column, place.shape), column.nulls().cloned()));
        }
        Ok(Self { schema: schema.clone(), columns: typed, rows })
    }

    /// Appends the packed row of `row`.
    ///
    /// # Errors
    /// `TooLarge` naming the row; nothing is appended then.
    pub fn encode(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        if row >= self.rows {
            return Err(Error::Internal(format!("row {row} of a batch of {} rows", self.rows)));
        }
        let layout = &*self.schema.layout;
        let start = out.len();
        out.extend_from_slice(&layout.header);
        let bitmap = out.len();
        let fixed = bitmap + layout.bitmap_bytes;
        let variable = fixed + layout.fixed_bytes;
        out.resize(variable, 0);
        for (index, ((values, nulls), place)) in self.columns.iter().zip(&layout.places).enumerate() {
            let null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
            if null {
                out[bitmap + index / 8] |= 1 << (index % 8);
            }
            let at = fixed + place.offset;
            if place.shape.is_variable() {
                if !null {
                    values.append(row, out);
                }
                // The limit on rows is far below u32; it is checked below, before anyone reads this.
                let end = (out.len() - variable) as u32;
                out[at..at + 4].copy_from_slice(&end.to_le_bytes());
            } else if !null {
                values.write(row, &mut out[at..at + place.shape.fixed_bytes()]);
            }
        }
        let length = out.len() - start;
        if length > PACKED_BYTES_MAX {
            out.truncate(start);
            return Err(Error::TooLarge(format!(
                "row {row} is {length} bytes packed, over the limit of {PACKED_BYTES_MAX}"
            )));
        }
        Ok(())
    }
}

fn numbers<T: ArrowPrimitiveType>(array: &ArrayRef) -> ScalarBuffer<T::Native> {
    array.as_primitive::<T>().values().clone()
}

impl Values {
    /// `array` is of the Arrow type of `shape`, as `coerce` gives it.
    fn of(array: &ArrayRef, shape: Shape) -> Self {
        match shape {
            Shape::Bool => Self::Bool(array.as_boolean().clone()),
            Shape::Int32 => Self::Int32(numbers::<Int32Type>(array)),
            Shape::Date => Self::Int32(numbers::<Date32Type>(array)),
            Shape::Int64 => Self::Int64(numbers::<Int64Type>(array)),
            Shape::Timestamp => Self::Int64(numbers::<TimestampMicrosecondType>(array)),
            Shape::Float32 => Self::Float32(numbers::<Float32Type>(array)),
            Shape::Float64 => Self::Float64(numbers::<Float64Type>(array)),
            Shape::String => Self::String(array.as_string::<i32>().clone()),
            Shape::Bytes => Self::Bytes(array.as_binary::<i32>().clone()),
            Shape::List(number) => {
                let lists = array.as_list::<i32>();
                Self::List(lists.offsets().clone(), Items::of(lists.values(), number))
            }
            Shape::FixedList(number, length) => {
                Self::FixedList(length, Items::of(array.as_fixed_size_list().values(), number))
            }
        }
    }

    /// Writes a fixed-width value to its place.
    fn write(&self, row: usize, place: &mut [u8]) {
        match self {
            Self::Bool(values) => place[0] = u8::from(values.value(row)),
            Self::Int32(values) => values[row].write(place),
            Self::Int64(values) => values[row].write(place),
            Self::Float32(values) => values[row].write(place),
            Self::Float64(values) => values[row].write(place),
            Self::FixedList(length, items) => items.write(row * length, (row + 1) * length, place),
            Self::String(_) | Self::Bytes(_) | Self::List(..) => {}
        }
    }

    /// Appends a variable-width value.
    fn append(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::String(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Self::Bytes(values) => out.extend_from_slice(values.value(row)),
            Self::List(offsets, items) => {
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                let at = out.len();
                out.resize(at + (end - start) * items.number().bytes(), 0);
                items.write(start, end, &mut out[at..]);
            }
            _ => {}
        }
    }
}

impl Items {
    fn of(array: &ArrayRef, number: Number) -> Self {
        match number {
            Number::Int32 => Self::Int32(numbers::<Int32Type>(array)),
            Number::Int64 => Self::Int64(numbers::<Int64Type>(array)),
            Number::Float32 => Self::Float32(numbers::<Float32Type>(array)),
            Number::Float64 => Self::Float64(numbers::<Float64Type>(array)),
        }
    }

    fn number(&self) -> Number {
        match self {
            Self::Int32(_) => Number::Int32,
            Self::Int64(_) => Number::Int64,
            Self::Float32(_) => Number::Float32,
            Self::Float64(_) => Number::Float64,
        }
    }

    /// Writes the items `start..end` side by side.
    fn write(&self, start: usize, end: usize, place: &mut [u8]) {
        fn copy<T: LittleEndian>(values: &[T], place: &mut [u8]) {
            for (value, bytes) in values.iter().zip(place.chunks_exact_mut(T::BYTES)) {
                value.write(bytes);
            }
        }
        match self {
            Self::Int32(values) => copy(&values[start..end], place),
            Self::Int64(values) => copy(&values[start..end], place),
            Self::Float32(values) => copy(&values[start..end], place),
            Self::Float64(values) => copy(&values[start..end], place),
        }
    }
}
