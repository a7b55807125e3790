//! Rows in the order in which history lies, so that a chunk of them can be a segment as they come.

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, BinaryArray, TimestampMicrosecondArray, builder::BinaryBuilder};
use arrow_schema::{DataType, TimeUnit};
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1::Field;
use cairn_storage::keys::{EntityKeys, push_order_key};
use datafusion::common::{Column, DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The column with the order key of each row ([`push_order_key`]).
/// Not a name that a feature can have.
pub const ORDER_KEY: &str = "order key";

/// The order key of the rows of `plan`, which has the view's columns.
pub fn order_key(plan: &LogicalPlan, join_keys: &[Field]) -> Expr {
    let mut columns: Vec<&str> = join_keys.iter().map(|key| key.name.as_str()).collect();
    columns.push(EVENT_TIMESTAMP);
    if plan.schema().as_arrow().field_with_name(CREATED_TIMESTAMP).is_ok() {
        columns.push(CREATED_TIMESTAMP);
    }
    let arguments = columns.into_iter().map(|name| Expr::Column(Column::from_name(name))).collect();
    ScalarUDF::from(OrderKey {
        join_keys: join_keys.to_vec(),
        signature: Signature::variadic_any(Volatility::Immutable),
    })
    .call(arguments)
}

/// (join keys, event time, created time or nothing) → order key.
#[derive(Debug)]
struct OrderKey {
    join_keys: Vec<Field>,
    signature: Signature,
}

impl PartialEq for OrderKey {
    fn eq(&self, other: &Self) -> bool {
        self.join_keys == other.join_keys
    }
}

impl Eq for OrderKey {}

impl Hash for OrderKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.join_keys.len().hash(state);
    }
}

impl ScalarUDFImpl for OrderKey {
    fn name(&self) -> &str {
        ORDER_KEY
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let (keys, times) = columns
            .split_at_checked(self.join_keys.len())
            .filter(|(_, times)| !times.is_empty())
            .ok_or_else(|| DataFusionError::Internal("an order key misses columns".to_owned()))?;
        let keys = EntityKeys::encode(&self.join_keys, keys).map_err(external)?;
        let mut times = times.iter().map(microseconds);
        let event = times.next().transpose()?.unwrap_or_else(|| TimestampMicrosecondArray::new_null(keys.len()));
        let created = times.next().transpose()?;
        Ok(ColumnarValue::Array(Arc::new(order_keys(&keys, &event, created.as_ref()))))
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Times finer than a microsecond are refused when the row is stored; here they only need an order.
fn microseconds(column: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    let wanted = DataType::Timestamp(TimeUnit::Microsecond, None);
    let cast = datafusion::arrow::compute::cast(column, &wanted)?;
    Ok(cast.as_primitive::<TimestampMicrosecondType>().clone())
}

fn order_keys(
    keys: &EntityKeys,
    event: &TimestampMicrosecondArray,
    created: Option<&TimestampMicrosecondArray>,
) -> BinaryArray {
    let mut out = BinaryBuilder::with_capacity(keys.len(), keys.len() * 32);
    let mut key = Vec::new();
    for row in 0..keys.len() {
        let Some(entity) = keys.get(row).filter(|_| event.is_valid(row)) else {
            out.append_null();
            continue;
        };
        let event_us = event.value(row);
        let created_us = created.filter(|created| created.is_valid(row)).map_or(event_us, |created| created.value(row));
        key.clear();
        push_order_key(entity, event_us, created_us, &mut key);
        out.append_value(&key);
    }
    out.finish()
}
