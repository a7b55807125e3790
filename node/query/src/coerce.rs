//! Columns that a caller brings, found by name; the spine's times as microseconds.

use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::DataType;
use cairn_proto::record::v1::{FeatureType, ValueKind};
use cairn_proto::time::Timestamp;
use cairn_storage::types::coerce;
use std::sync::Arc;

/// A cast that yields null where a value does not fit.
pub(crate) const SAFE: CastOptions<'static> =
    CastOptions { safe: true, format_options: arrow_cast::display::FormatOptions::new() };

/// The column called `name`; `None` when there is none.
///
/// # Errors
/// Two columns of that name.
pub(crate) fn find<'b>(batch: &'b RecordBatch, name: &str) -> Result<Option<&'b ArrayRef>> {
    let mut found = None;
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if field.name() == name && found.replace(column).is_some() {
            return Err(Error::InvalidArgument(format!("column `{name}` is there twice")));
        }
    }
    Ok(found)
}

/// A column of times as microseconds; null stays null. Timestamps of any unit and zone (no zone = UTC), dates (their
/// midnight, UTC), and text in the forms of [`Timestamp::parse`].
///
/// # Errors
/// `InvalidArgument` for another type, for a time finer than a microsecond, out of range or unreadable, with its row.
pub(crate) fn micros(name: &str, array: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    const DAY_US: i64 = 86_400_000_000;
    match array.data_type() {
        DataType::Null => Ok(TimestampMicrosecondArray::new_null(array.len())),
        DataType::Timestamp(..) => {
            let timestamp = FeatureType { kind: ValueKind::Timestamp as i32, list: false, length: 0 };
            let exact = coerce(name, array, &timestamp)?;
            let plain = exact.as_primitive::<TimestampMicrosecondType>().clone();
            Ok(plain.with_timezone_opt(None::<Arc<str>>))
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>();
            Ok(days.iter().map(|day| day.map(|day| i64::from(day) * DAY_US)).collect())
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let text = cast_with_options(array, &DataType::Utf8, &SAFE).map_err(Error::internal)?;
            let read = |(row, value): (usize, Option<&str>)| {
                let parse = |value| {
                    let wrong = |error| Error::InvalidArgument(format!("column `{name}`, row {row}: {error}"));
                    Timestamp::parse(value).map(|time| time.0).map_err(wrong)
                };
                value.map(parse).transpose()
            };
            text.as_string::<i32>().iter().enumerate().map(read).collect()
        }
        DataType::Dictionary(_, values) => {
            let plain = cast_with_options(array, values, &SAFE).map_err(Error::internal)?;
            micros(name, &plain)
        }
        other => Err(Error::InvalidArgument(format!(
            "column `{name}` is {other}; times are timestamps (no zone = UTC), dates, or RFC 3339 text"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Date32Array, Int64Array, StringArray, TimestampNanosecondArray, TimestampSecondArray};

    fn read(array: impl Array + 'static) -> Result<Vec<Option<i64>>> {
        let array: ArrayRef = Arc::new(array);
        Ok(micros("t", &array)?.iter().collect())
    }

    #[test]
    fn times_come_in_many_forms() {
        assert_eq!(read(TimestampNanosecondArray::from(vec![Some(-1_000), None])).unwrap(), [Some(-1), None]);
        let zoned = TimestampSecondArray::from(vec![Some(2), None]).with_timezone("America/New_York");
        assert_eq!(read(zoned).unwrap(), [Some(2_000_000), None]);
        assert_eq!(read(Date32Array::from(vec![Some(1), None])).unwrap(), [Some(86_400_000_000), None]);
        let text = StringArray::from(vec![Some("1970-01-01T00:00:01Z"), None, Some("1970-01-01T01:00:01+01:00")]);
        assert_eq!(read(text).unwrap(), [Some(1_000_000), None, Some(1_000_000)]);
    }

    #[test]
    fn what_is_no_exact_time_is_refused() {
        let ns = TimestampNanosecondArray::from(vec![Some(1_000), None, Some(1_001)]);
        assert!(read(ns).unwrap_err().to_string().contains("row 2"));
        assert!(read(TimestampSecondArray::from(vec![i64::MAX])).unwrap_err().to_string().contains("row 0"));
        assert!(read(StringArray::from(vec!["soon"])).unwrap_err().to_string().contains("`soon` is not a time"));
        assert!(read(Int64Array::from(vec![1])).unwrap_err().to_string().contains("times are timestamps"));
    }
}
