//! Entity rows written as JSON (`{"driver_id": [1, 2]}`) as an Arrow batch of the declared types.

use crate::error::{Error, Result};
use arrow_array::builder::{BinaryBuilder, BooleanBuilder, StringBuilder};
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, Date32Array, PrimitiveArray, RecordBatch, RecordBatchOptions,
    TimestampMicrosecondArray,
};
use arrow_schema::{Field as ArrowField, Schema};
use cairn_proto::command::EVENT_TIMESTAMP;
use cairn_proto::record::v1::{FeatureType, Field, ValueKind};
use cairn_proto::time::Timestamp;
use cairn_query::plan::FeaturePlan;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Builds the rows. Numbers may be written as strings, bytes as text, times as RFC 3339 or microseconds. Columns that
/// are not required are ignored, but for `event_timestamp`, which gives each row its own time.
///
/// # Errors
/// `InvalidArgument` naming the column and row: missing, of unequal length, or not of its type.
pub fn from_json(plan: &FeaturePlan, entities: Option<&Map<String, Value>>) -> Result<RecordBatch> {
    let required: Vec<Field> = plan.required_columns().iter().map(|column| column.field.clone()).collect();
    rows(&required, entities)
}

fn rows(required: &[Field], entities: Option<&Map<String, Value>>) -> Result<RecordBatch> {
    let Some(entities) = entities else {
        let names: Vec<&str> = required.iter().map(|field| field.name.as_str()).collect();
        return Err(Error::invalid(format!(
            "`entities` is missing; send {{\"{}\": [...]}}",
            names.join("\": [...], \"")
        )));
    };
    let mut length: Option<(usize, &str)> = None;
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let time = Field {
        name: EVENT_TIMESTAMP.to_owned(),
        r#type: Some(FeatureType { kind: ValueKind::Timestamp.into(), list: false, length: 0 }),
        description: String::new(),
    };
    let timed = entities.contains_key(EVENT_TIMESTAMP).then_some(&time);
    for field in required.iter().chain(timed) {
        let name = field.name.as_str();
        let Some(value) = entities.get(name) else {
            let given: Vec<&str> = entities.keys().map(String::as_str).collect();
            return Err(Error::invalid(format!("`entities` has no `{name}` (it has: {})", given.join(", "))));
        };
        let Value::Array(values) = value else {
            return Err(Error::invalid(format!("`entities`.`{name}` must be a list of values, one for each row")));
        };
        match length {
            None => length = Some((values.len(), name)),
            Some((expected, first)) if expected != values.len() => {
                let message = format!("`entities`.`{name}` has {} values, but `{first}` has {expected}", values.len());
                return Err(Error::invalid(message));
            }
            Some(_) => {}
        }
        let kind = field.r#type.unwrap_or_default();
        let column = column(&kind, values)
            .map_err(|(row, why)| Error::invalid(format!("`entities`.`{name}`, row {row}: {why}")))?;
        fields.push(ArrowField::new(name, column.data_type().clone(), true));
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(length.map_or(0, |(rows, _)| rows)));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(|error| Error::internal(format!("the entity rows do not fit together: {error}")))
}

type Bad = (usize, String);

fn column(kind: &FeatureType, values: &[Value]) -> Result<ArrayRef, Bad> {
    if kind.list {
        return Err((
            0,
            format!("{} values cannot be sent as JSON; use Arrow Flight", cairn_storage::types::type_name(kind)),
        ));
    }
    Ok(match kind.kind() {
        ValueKind::Bool => {
            let mut builder = BooleanBuilder::with_capacity(values.len());
            for (row, value) in values.iter().enumerate() {
                builder.append_option(match value {
                    Value::Null => None,
                    Value::Bool(value) => Some(*value),
                    Value::String(text) if text == "true" => Some(true),
                    Value::String(text) if text == "false" => Some(false),
                    other => return Err((row, format!("{other} is not a bool"))),
                });
            }
            Arc::new(builder.finish())
        }
        ValueKind::Int32 => numbers::<Int32Type>(values, "int32", |value| i32::try_from(integer(value)?).ok())?,
        ValueKind::Int64 => numbers::<Int64Type>(values, "int64", integer)?,
        ValueKind::Float32 => numbers::<Float32Type>(values, "float32", |value| float(value).map(|it| it as f32))?,
        ValueKind::Float64 => numbers::<Float64Type>(values, "float64", float)?,
        ValueKind::String => {
            let mut builder = StringBuilder::new();
            for (row, value) in values.iter().enumerate() {
                match value {
                    Value::Null => builder.append_null(),
                    Value::String(text) => builder.append_value(text),
                    Value::Number(number) => builder.append_value(number.to_string()),
                    other => return Err((row, format!("{other} is not a string"))),
                }
            }
            Arc::new(builder.finish())
        }
        ValueKind::Bytes => {
            let mut builder = BinaryBuilder::new();
            for (row, value) in values.iter().enumerate() {
                match value {
                    Value::Null => builder.append_null(),
                    Value::String(text) => builder.append_value(text.as_bytes()),
                    other => return Err((row, format!("{other} is not bytes (write them as a string)"))),
                }
            }
            Arc::new(builder.finish())
        }
        ValueKind::Timestamp => {
            let mut times = Vec::with_capacity(values.len());
            for (row, value) in values.iter().enumerate() {
                times.push(match value {
                    Value::Null => None,
                    Value::String(text) => Some(Timestamp::parse(text).map_err(|error| (row, error.to_string()))?.0),
                    other => Some(integer(other).ok_or_else(|| (row, format!("{other} is not a time")))?),
                });
            }
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
        }
        ValueKind::Date => {
            let mut days = Vec::with_capacity(values.len());
            for (row, value) in values.iter().enumerate() {
                days.push(match value {
                    Value::Null => None,
                    Value::String(text) => {
                        Some(day(text).ok_or_else(|| (row, format!("`{text}` is not a date such as 2026-05-02")))?)
                    }
                    other => {
                        let days = integer(other).and_then(|days| i32::try_from(days).ok());
                        Some(days.ok_or_else(|| (row, format!("{other} is not a date")))?)
                    }
                });
            }
            Arc::new(Date32Array::from(days))
        }
        ValueKind::Unspecified => return Err((0, "the column has no type".to_owned())),
    })
}

fn numbers<T: ArrowPrimitiveType>(
    values: &[Value],
    name: &str,
    read: impl Fn(&Value) -> Option<T::Native>,
) -> Result<ArrayRef, Bad> {
    let mut out = Vec::with_capacity(values.len());
    for (row, value) in values.iter().enumerate() {
        out.push(match value {
            Value::Null => None,
            value => Some(read(value).ok_or_else(|| (row, format!("{value} is not {name}")))?),
        });
    }
    Ok(Arc::new(PrimitiveArray::<T>::from_iter(out)))
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn day(text: &str) -> Option<i32> {
    let date: jiff::civil::Date = text.trim().parse().ok()?;
    let epoch = jiff::civil::date(1970, 1, 1);
    date.since((jiff::Unit::Day, epoch)).ok().map(|span| span.get_days())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Array, Int64Array};
    use serde_json::json;

    fn field(name: &str, kind: ValueKind) -> Field {
        let kind = FeatureType { kind: kind.into(), list: false, length: 0 };
        Field { name: name.into(), r#type: Some(kind), description: String::new() }
    }

    fn read(required: &[Field], entities: Value) -> Result<RecordBatch> {
        rows(required, entities.as_object())
    }

    #[test]
    fn values_take_their_declared_type() {
        let required = [field("id", ValueKind::Int64), field("day", ValueKind::Date)];
        let batch = read(&required, json!({"id": [7, "8", null], "day": ["1970-01-03", 4, null], "x": [1]})).unwrap();
        let ids = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        assert_eq!((ids.value(0), ids.value(1), ids.is_null(2)), (7, 8, true));
        let days = batch.column(1).as_any().downcast_ref::<Date32Array>().unwrap();
        assert_eq!((days.value(0), days.value(1)), (2, 4));
    }

    #[test]
    fn complaints_name_column_and_row() {
        let required = [field("id", ValueKind::Int64), field("code", ValueKind::String)];
        let check = |entities: Value, part: &str| {
            let error = read(&required, entities).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(json!({"id": [1]}), "has no `code`");
        check(json!({"id": [1, 2], "code": ["a"]}), "has 1 values, but `id` has 2");
        check(json!({"id": [1, "x"], "code": ["a", "b"]}), "`id`, row 1");
        check(json!({"id": 1, "code": ["a"]}), "must be a list");
        assert!(rows(&required, None).unwrap_err().to_string().contains("`entities` is missing"));
    }
}
