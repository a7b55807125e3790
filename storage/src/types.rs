//! Feature types: their names in YAML, the Arrow types they travel as, and the one place that converts to them.
//!
//! What always holds: a conversion keeps every value or fails naming the column and row. The one exception is float64
//! into a float32 feature, which rounds, because that is what declaring float32 asks for.

use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, ListArray, new_null_array};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Field as ArrowField, FieldRef, TimeUnit};
use std::sync::Arc;

pub use cairn_proto::record::v1::{FeatureType, Field, ValueKind};

/// Longest fixed-length list.
pub const LIST_LENGTH_MAX: u32 = 65_536;

const NAMES: [(ValueKind, &str); 9] = [
    (ValueKind::Bool, "bool"),
    (ValueKind::Int32, "int32"),
    (ValueKind::Int64, "int64"),
    (ValueKind::Float32, "float32"),
    (ValueKind::Float64, "float64"),
    (ValueKind::String, "string"),
    (ValueKind::Bytes, "bytes"),
    (ValueKind::Timestamp, "timestamp"),
    (ValueKind::Date, "date"),
];

/// The type of a column of this feature; `Null` for a type that is none ([`check_type`] says why).
pub fn arrow_type(feature_type: &FeatureType) -> DataType {
    let scalar = scalar_arrow_type(feature_type.kind());
    match (feature_type.list, i32::try_from(feature_type.length)) {
        (false, _) => scalar,
        (true, Ok(0)) => DataType::List(list_item(scalar)),
        (true, Ok(length)) => DataType::FixedSizeList(list_item(scalar), length),
        (true, Err(_)) => DataType::Null,
    }
}

/// The child field of lists. Nullable as in every other Arrow library, though a null in a list is refused.
pub(crate) fn list_item(item: DataType) -> FieldRef {
    Arc::new(ArrowField::new("item", item, true))
}

fn scalar_arrow_type(kind: ValueKind) -> DataType {
    match kind {
        ValueKind::Unspecified => DataType::Null,
        ValueKind::Bool => DataType::Boolean,
        ValueKind::Int32 => DataType::Int32,
        ValueKind::Int64 => DataType::Int64,
        ValueKind::Float32 => DataType::Float32,
        ValueKind::Float64 => DataType::Float64,
        ValueKind::String => DataType::Utf8,
        ValueKind::Bytes => DataType::Binary,
        ValueKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ValueKind::Date => DataType::Date32,
    }
}

/// Reads a type as it is written in YAML: `int64`, `list<float32>`, `list<float32>[384]`.
///
/// # Errors
/// A sentence that names the text and the types there are.
pub fn parse_type(text: &str) -> Result<FeatureType, String> {
    let bad = || {
        let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        format!(
            "`{text}` is not a feature type; types are {}, and lists of numbers such as list<float32> or \
             list<float32>[384]",
            names.join(", ")
        )
    };
    let kind_of = |name: &str| NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind);
    let text = text.trim();
    let feature_type = match text.strip_prefix("list<") {
        None => FeatureType { kind: kind_of(text).ok_or_else(bad)?.into(), list: false, length: 0 },
        Some(rest) => {
            let (item, length) = rest.split_once('>').ok_or_else(bad)?;
            let kind = kind_of(item.trim()).ok_or_else(bad)?.into();
            let length = match length.trim() {
                "" => 0,
                length => {
                    let digits = length.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or_else(bad)?;
                    let length: u32 = digits.trim().parse().map_err(|_| bad())?;
                    if length == 0 {
                        return Err(format!("`{text}` has length 0; leave the brackets out for a list of any length"));
                    }
                    length
                }
            };
            FeatureType { kind, list: true, length }
        }
    };
    check_type(&feature_type)?;
    Ok(feature_type)
}

/// A type as [`parse_type`] reads it.
pub fn type_name(feature_type: &FeatureType) -> String {
    let kind = feature_type.kind();
    let name = NAMES.iter().find(|(known, _)| *known == kind).map_or("unspecified", |(_, name)| name);
    match (feature_type.list, feature_type.length) {
        (false, _) => name.to_owned(),
        (true, 0) => format!("list<{name}>"),
        (true, length) => format!("list<{name}>[{length}]"),
    }
}

/// Whether a feature may have this type.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_type(feature_type: &FeatureType) -> Result<(), String> {
    let kind = feature_type.kind();
    if kind == ValueKind::Unspecified {
        return Err("the feature type is missing or from a newer version".to_owned());
    }
    let number = matches!(kind, ValueKind::Int32 | ValueKind::Int64 | ValueKind::Float32 | ValueKind::Float64);
    if feature_type.list && !number {
        return Err(format!("`{}` is not offered: lists hold numbers", type_name(feature_type)));
    }
    if feature_type.list && feature_type.length > LIST_LENGTH_MAX {
        return Err(format!("`{}` is over the limit of {LIST_LENGTH_MAX} numbers", type_name(feature_type)));
    }
    if !feature_type.list && feature_type.length != 0 {
        return Err(format!("`{}` has a length but is no list", type_name(feature_type)));
    }
    Ok(())
}

/// Whether an entity may have join keys of this type.
///
/// # Errors
/// A sentence that names the type and those allowed.
pub fn check_key_type(feature_type: &FeatureType) -> Result<(), String> {
    check_type(feature_type)?;
    if feature_type.list || matches!(feature_type.kind(), ValueKind::Float32 | ValueKind::Float64) {
        return Err(format!(
            "`{}` cannot be a join key; join keys are bool, int32, int64, string, bytes, timestamp or date",
            type_name(feature_type)
        ));
    }
    Ok(())
}

/// `array` as a column of `wanted`: integers widened and narrowed, integers into floats where exact, float64 rounded
/// to float32, string and binary variants, dictionaries, timestamps of any unit (naive = UTC), lists of any of these.
///
/// # Errors
/// `InvalidArgument` naming the column `name` and the types when they do not fit together, or the row when its value
/// does not fit.
pub fn coerce(name: &str, array: &ArrayRef, wanted: &FeatureType) -> Result<ArrayRef> {
    let target = arrow_type(wanted);
    if *array.data_type() == target && !wanted.list {
        return Ok(array.clone());
    }
    let column = Column { name, found: array.data_type(), wanted };
    if *array.data_type() == DataType::Null {
        return Ok(new_null_array(&target, array.len()));
    }
    if wanted.list { column.list(array) } else { column.scalar(array, &target, &|position| position) }
}

/// What is being converted, for messages.
struct Column<'a> {
    name: &'a str,
    found: &'a DataType,
    wanted: &'a FeatureType,
}

impl Column<'_> {
    fn mismatch(&self) -> Error {
        Error::InvalidArgument(format!(
            "column `{}` is {}, which does not fit its declared type {}",
            self.name,
            self.found,
            type_name(self.wanted)
        ))
    }

    fn bad_row(&self, row: usize, why: &str) -> Error {
        Error::InvalidArgument(format!(
            "column `{}`, row {row}: {why} (declared {}, found {})",
            self.name,
            type_name(self.wanted),
            self.found
        ))
    }

    /// `row_of` gives the row of a position in `array`, which for a list's items is another.
    fn scalar(&self, array: &ArrayRef, target: &DataType, row_of: &dyn Fn(usize) -> usize) -> Result<ArrayRef> {
        use DataType as T;
        let found = array.data_type();
        if found == target {
            return Ok(array.clone());
        }
        if let T::Dictionary(_, values) = found {
            let values = self.cast(array, values, row_of)?;
            return self.scalar(&values, target, row_of);
        }
        let fits = match (found, target) {
            (T::Null, _) => true,
            (from, T::Int32 | T::Int64) => from.is_integer(),
            (from, T::Float32 | T::Float64) => from.is_integer() || from.is_floating(),
            (T::Utf8 | T::LargeUtf8 | T::Utf8View, T::Utf8) => true,
            (T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_), T::Binary) => true,
            (T::Timestamp(_, _), T::Timestamp(_, _)) => true,
            (T::Date64, T::Date32) => true,
            _ => false,
        };
        if !fits {
            return Err(self.mismatch());
        }
        self.check_exact(array, target, row_of)?;
        if let T::Timestamp(unit, Some(zone)) = found
            && zone.as_ref() != "UTC"
        {
            // Only the label differs; casting would look the zone up.
            let utc = relabel_utc(array, *unit).ok_or_else(|| self.mismatch())?;
            return self.cast(&utc, target, row_of);
        }
        if let T::Timestamp(unit, None) = found {
            let utc = relabel_utc(array, *unit).ok_or_else(|| self.mismatch())?;
            return self.cast(&utc, target, row_of);
        }
        self.cast(array, target, row_of)
    }

    /// Refuses what a cast would silently round or cut.
    fn check_exact(&self, array: &ArrayRef, target: &DataType, row_of: &dyn Fn(usize) -> usize) -> Result<()> {
        use DataType as T;
        let first = |values: &[i64], bad: &dyn Fn(i64) -> bool| {
            (0..values.len()).find(|&position| array.is_valid(position) && bad(values[position]))
        };
        match (array.data_type(), target) {
            (T::Timestamp(TimeUnit::Nanosecond, _), T::Timestamp(_, _)) => {
                let values = as_i64(array).ok_or_else(|| self.mismatch())?;
                if let Some(position) = first(&values, &|nanos| nanos % 1000 != 0) {
                    return Err(self.bad_row(row_of(position), "the time is finer than a microsecond"));
                }
            }
            (T::Date64, T::Date32) => {
                let values = as_i64(array).ok_or_else(|| self.mismatch())?;
                if let Some(position) = first(&values, &|millis| millis % 86_400_000 != 0) {
                    return Err(self.bad_row(row_of(position), "the date has a time of day"));
                }
            }
            (from, T::Float32 | T::Float64) if from.is_integer() => {
                let exact: i64 = if *target == T::Float32 { 1 << 24 } else { 1 << 53 };
                let wide = self.cast(array, &T::Int64, row_of)?;
                let values = as_i64(&wide).ok_or_else(|| self.mismatch())?;
                if let Some(position) = first(&values, &|value| !(-exact..=exact).contains(&value)) {
                    return Err(self.bad_row(row_of(position), "the integer has no exact float"));
                }
            }
            (T::Float64, T::Float32) => {
                let values = array.as_primitive::<Float64Type>();
                let overflows = |value: f64| value.is_finite() && (value as f32).is_infinite();
                if let Some(position) =
                    (0..values.len()).find(|&position| values.is_valid(position) && overflows(values.value(position)))
                {
                    return Err(self.bad_row(row_of(position), "the number is too large for float32"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Casts, and takes a value that became null for one that does not fit.
    fn cast(&self, array: &ArrayRef, target: &DataType, row_of: &dyn Fn(usize) -> usize) -> Result<ArrayRef> {
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let cast = cast_with_options(array, target, &options).map_err(|_| self.mismatch())?;
        if cast.logical_null_count() > array.logical_null_count() {
            let before = array.logical_nulls();
            let lost = (0..cast.len()).find(|&position| {
                cast.is_null(position) && before.as_ref().is_none_or(|nulls| nulls.is_valid(position))
            });
            return Err(self.bad_row(lost.map_or(0, row_of), "the value does not fit"));
        }
        Ok(cast)
    }

    fn list(&self, array: &ArrayRef) -> Result<ArrayRef> {
        let item = scalar_arrow_type(self.wanted.kind());
        let lists = match array.data_type() {
            DataType::List(_) => array.clone(),
            DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
                self.cast(array, &DataType::List(field.clone()), &|row| row)?
            }
            _ => return Err(self.mismatch()),
        };
        let lists: &ListArray = lists.as_list();
        let offsets = lists.offsets();
        let row_of = |position: usize| {
            let row = offsets.partition_point(|&offset| usize::try_from(offset).unwrap_or(0) <= position);
            row.saturating_sub(1)
        };
        if lists.values().logical_null_count() > 0 {
            let nulls = lists.values().logical_nulls();
            for row in (0..lists.len()).filter(|&row| lists.is_valid(row)) {
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                if (start..end).any(|position| nulls.as_ref().is_some_and(|nulls| nulls.is_null(position))) {
                    return Err(self.bad_row(row, "a null inside a list"));
                }
            }
        }
        let values = self.scalar(lists.values(), &item, &row_of)?;
        let lists = ListArray::new(list_item(item.clone()), offsets.clone(), values, lists.nulls().cloned());
        if self.wanted.length == 0 {
            return Ok(Arc::new(lists));
        }
        self.fixed_length(&lists, item)
    }

    fn fixed_length(&self, lists: &ListArray, item: DataType) -> Result<ArrayRef> {
        let length = self.wanted.length as usize;
        let mut picks: Vec<Option<u64>> = Vec::with_capacity(lists.len().saturating_mul(length));
        for row in 0..lists.len() {
            if lists.is_null(row) {
                picks.extend(std::iter::repeat_n(None, length));
                continue;
            }
            let (start, found) = (lists.value_offsets()[row] as u64, lists.value_length(row) as usize);
            if found != length {
                return Err(self.bad_row(row, &format!("the list has {found} numbers, not {length}")));
            }
            picks.extend((start..start + length as u64).map(Some));
        }
        let picks = arrow_array::UInt64Array::from(picks);
        let values = arrow_select::take::take(lists.values(), &picks, None)
            .map_err(|error| Error::Internal(format!("column `{}`: {error}", self.name)))?;
        let size = i32::try_from(length).map_err(|_| self.mismatch())?;
        let built =
            FixedSizeListArray::try_new_with_length(list_item(item), size, values, lists.nulls().cloned(), lists.len());
        Ok(Arc::new(built.map_err(|error| Error::Internal(format!("column `{}`: {error}", self.name)))?))
    }
}

/// The 64-bit values behind times and dates.
fn as_i64(array: &ArrayRef) -> Option<Vec<i64>> {
    let data = array.to_data().into_builder().data_type(DataType::Int64).build().ok()?;
    Some(arrow_array::make_array(data).as_primitive::<Int64Type>().values().to_vec())
}

fn relabel_utc(array: &ArrayRef, unit: TimeUnit) -> Option<ArrayRef> {
    let data_type = DataType::Timestamp(unit, Some("UTC".into()));
    let data = array.to_data().into_builder().data_type(data_type).build().ok()?;
    Some(arrow_array::make_array(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::types::{Float32Type, Int32Type};
    use arrow_array::{
        BinaryArray, Date64Array, DictionaryArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
        LargeStringArray, StringArray, StringViewArray, TimestampMicrosecondArray, TimestampNanosecondArray,
        TimestampSecondArray, UInt64Array,
    };

    fn coerced(array: impl Array + 'static, wanted: &str) -> Result<ArrayRef> {
        let array: ArrayRef = Arc::new(array);
        let wanted = parse_type(wanted).unwrap();
        let coerced = coerce("c", &array, &wanted)?;
        assert_eq!(*coerced.data_type(), arrow_type(&wanted));
        assert_eq!(coerced.len(), array.len());
        Ok(coerced)
    }

    fn refused(array: impl Array + 'static, wanted: &str, expected: &str) {
        let error = coerced(array, wanted).unwrap_err().to_string();
        assert!(error.contains("column `c`") && error.contains(expected), "{error}");
    }

    #[test]
    fn type_names_read_what_they_write() {
        for text in ["bool", "int32", "int64", "float32", "float64", "string", "bytes", "timestamp", "date"]
            .into_iter()
            .chain([
                "list<int32>",
                "list<int64>",
                "list<float32>",
                "list<float64>",
                "list<float32>[384]",
                "list<int64>[1]",
            ])
        {
            assert_eq!(type_name(&parse_type(text).unwrap()), text);
        }
        assert_eq!(type_name(&parse_type(" list< float32 > [ 3 ] ").unwrap()), "list<float32>[3]");
        for text in [
            "",
            "int",
            "list<>",
            "list<string>",
            "list<float32>[0]",
            "list<float32>[-1]",
            "list<float32",
            "list<float32>x",
        ] {
            assert!(parse_type(text).is_err(), "{text}");
        }
        assert!(parse_type("list<float32>[65537]").unwrap_err().contains("65536"));
        assert!(check_key_type(&parse_type("float64").unwrap()).is_err());
        assert!(check_key_type(&parse_type("date").unwrap()).is_ok());
    }

    #[test]
    fn numbers_convert_where_nothing_is_lost() {
        let wide = coerced(Int16Array::from(vec![Some(-7), None]), "int64").unwrap();
        assert_eq!(wide.as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(-7), None]));
        let narrow = coerced(Int64Array::from(vec![Some(7), None]), "int32").unwrap();
        assert_eq!(narrow.as_primitive::<Int32Type>(), &Int32Array::from(vec![Some(7), None]));
        let float = coerced(Int64Array::from(vec![1 << 24]), "float32").unwrap();
        assert_eq!(float.as_primitive::<Float32Type>().value(0), 16_777_216.0);
        let rounded = coerced(Float64Array::from(vec![0.1, f64::INFINITY]), "float32").unwrap();
        assert_eq!(rounded.as_primitive::<Float32Type>(), &Float32Array::from(vec![0.1_f32, f32::INFINITY]));

        refused(Int64Array::from(vec![Some(1), None, Some(1 << 40)]), "int32", "row 2: the value does not fit");
        refused(UInt64Array::from(vec![u64::MAX]), "int64", "row 0");
        refused(UInt64Array::from(vec![u64::MAX]), "float64", "row 0");
        refused(Int64Array::from(vec![(1 << 53) + 1]), "float64", "row 0: the integer has no exact float");
        refused(Float64Array::from(vec![1.0, 1e300]), "float32", "row 1: the number is too large for float32");
        refused(Float64Array::from(vec![1.0]), "int64", "is Float64, which does not fit its declared type int64");
        refused(StringArray::from(vec!["1"]), "int64", "is Utf8");
        refused(Int64Array::from(vec![1]), "timestamp", "is Int64");
    }

    #[test]
    fn strings_and_bytes_come_in_many_forms() {
        let expected = StringArray::from(vec![Some("a"), None, Some("é")]);
        let values = || vec![Some("a"), None, Some("é")];
        assert_eq!(coerced(LargeStringArray::from(values()), "string").unwrap().as_string::<i32>(), &expected);
        assert_eq!(coerced(StringViewArray::from(values()), "string").unwrap().as_string::<i32>(), &expected);
        let dictionary: DictionaryArray<Int32Type> = values().into_iter().collect();
        assert_eq!(coerced(dictionary, "string").unwrap().as_string::<i32>(), &expected);
        coerced(BinaryArray::from(vec![b"\xff".as_slice()]), "bytes").unwrap();
        refused(StringArray::from(vec!["a"]), "bytes", "is Utf8");
        refused(BinaryArray::from(vec![b"a".as_slice()]), "string", "is Binary");
        assert_eq!(coerced(arrow_array::NullArray::new(3), "string").unwrap().null_count(), 3);
    }

    #[test]
    fn times_are_microseconds_utc_exactly() {
        let check = |array: ArrayRef, expected: i64| {
            let coerced = coerce("c", &array, &parse_type("timestamp").unwrap()).unwrap();
            assert_eq!(coerced.as_primitive::<arrow_array::types::TimestampMicrosecondType>().value(0), expected);
        };
        check(Arc::new(TimestampSecondArray::from(vec![-2])), -2_000_000);
        check(Arc::new(TimestampNanosecondArray::from(vec![5000])), 5);
        check(Arc::new(TimestampMicrosecondArray::from(vec![5]).with_timezone("America/New_York")), 5);
        refused(TimestampNanosecondArray::from(vec![5000, 5001]), "timestamp", "row 1: the time is finer than");
        refused(TimestampSecondArray::from(vec![i64::MAX]), "timestamp", "row 0: the value does not fit");
        coerced(Date64Array::from(vec![86_400_000]), "date").unwrap();
        refused(Date64Array::from(vec![86_400_001]), "date", "row 0: the date has a time of day");
    }

    #[test]
    fn lists_convert_by_item_and_length() {
        let lists = |rows: Vec<Option<Vec<Option<f64>>>>| ListArray::from_iter_primitive::<Float64Type, _, _>(rows);
        let two = vec![Some(vec![Some(1.0), Some(2.0)]), None, Some(vec![Some(3.0), Some(4.0)])];
        let fixed = coerced(lists(two.clone()), "list<float32>[2]").unwrap();
        assert!(fixed.is_null(1));
        assert_eq!(fixed.as_fixed_size_list().value(2).as_primitive::<Float32Type>().values().as_ref(), [3.0, 4.0]);
        let back = coerced(fixed.as_fixed_size_list().clone(), "list<float64>").unwrap();
        assert_eq!(back.as_list::<i32>().value(0).as_primitive::<Float64Type>().values().as_ref(), [1.0, 2.0]);
        let sliced: ArrayRef = Arc::new(lists(two.clone()).slice(2, 1));
        let sliced = coerce("c", &sliced, &parse_type("list<float64>[2]").unwrap()).unwrap();
        assert_eq!(sliced.as_fixed_size_list().value(0).as_primitive::<Float64Type>().values().as_ref(), [3.0, 4.0]);

        refused(lists(two.clone()), "list<float32>[3]", "row 0: the list has 2 numbers, not 3");
        refused(lists(vec![None, Some(vec![Some(1.0), None])]), "list<float64>", "row 1: a null inside a list");
        refused(lists(vec![Some(vec![]), Some(vec![Some(1e300)])]), "list<float32>", "row 1: the number is too large");
        refused(lists(two), "list<int32>", "which does not fit its declared type list<int32>");
        refused(Float64Array::from(vec![1.0]), "list<float64>", "is Float64");
    }
}
