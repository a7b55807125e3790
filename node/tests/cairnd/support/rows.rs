//! Columns and batches in few words, and batches as text.

use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{ArrayRef, PrimitiveArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of a second, and of a day.
pub const SECOND: i64 = 1_000_000;
pub const DAY: i64 = 86_400 * SECOND;
/// 2024-01-01T00:00:00Z: long past, so a read about now sees whatever stands here.
const START: i64 = 1_704_067_200 * SECOND;

/// The moment `seconds` after midnight of 1 January 2024, in microseconds.
pub fn at(seconds: i64) -> i64 {
    START + seconds * SECOND
}

pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_micros() as i64)
}

pub fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let nullable = columns.iter().map(|(name, column)| (*name, Arc::clone(column), true));
    RecordBatch::try_from_iter_with_nullable(nullable).expect("columns of one length with names of their own")
}

/// A column: values, or options where there are nulls.
macro_rules! primitive {
    ($($name:ident: $kind:ty, $native:ty;)*) => {$(
        pub fn $name<V: Into<Option<$native>>>(values: impl IntoIterator<Item = V>) -> ArrayRef {
            Arc::new(values.into_iter().map(Into::into).collect::<PrimitiveArray<$kind>>())
        }
    )*};
}

primitive! {
    ints32: Int32Type, i32;
    ints: Int64Type, i64;
    floats32: Float32Type, f32;
    floats: Float64Type, f64;
}

pub fn texts<'a, V: Into<Option<&'a str>>>(values: impl IntoIterator<Item = V>) -> ArrayRef {
    Arc::new(values.into_iter().map(Into::into).collect::<StringArray>())
}

/// Microseconds UTC.
pub fn times<V: Into<Option<i64>>>(values: impl IntoIterator<Item = V>) -> ArrayRef {
    Arc::new(values.into_iter().map(Into::into).collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

/// The columns of `rows` under these names, in this order.
pub fn only(rows: &RecordBatch, names: &[&str]) -> RecordBatch {
    let positions: Vec<usize> = names.iter().map(|name| rows.schema_ref().index_of(name).expect("a column")).collect();
    rows.project(&positions).expect("columns that are there")
}

/// Names in the first line, then a line a row: `a | b`, nothing where a value is null.
pub fn show(rows: &RecordBatch) -> String {
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
    let names: Vec<&str> = rows.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    let columns: Vec<_> =
        rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).expect("printable")).collect();
    let line = |row: usize| {
        columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ").trim_end().to_owned()
    };
    std::iter::once(names.join(" | ")).chain((0..rows.num_rows()).map(line)).map(|line| line + "\n").collect()
}
