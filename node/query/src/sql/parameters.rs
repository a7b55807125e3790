//! Parameters of a query, `$1`, `$2`, … or `?` in the order written, and the values that are bound to them.
//!
//! A value takes the place of its parameter in the plan and is never text of the query, so it cannot change what is asked.

use super::rows::time_type;
use super::told;
use crate::{Error, Result};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, ValueWithSpan, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::tokenizer::Location;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Most parameters of a query.
pub const PARAMETERS_MAX: usize = 256;

/// A bound value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameter {
    Null,
    Bool(bool),
    Integer(i64),
    /// The bits of it: as text it might come back as another.
    Float(u64),
    String(String),
    Bytes(Vec<u8>),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970, UTC.
    Timestamp(i64),
}

impl Parameter {
    /// The values of one row.
    ///
    /// # Errors
    /// `InvalidArgument` for any other number of rows, and for a type that no parameter has.
    pub fn of_row(batch: &RecordBatch) -> Result<Vec<Self>> {
        if batch.num_rows() != 1 {
            return Err(Error::InvalidArgument(format!(
                "parameters are bound as one row, and {} came; run the statement once for each",
                batch.num_rows()
            )));
        }
        (1..).zip(batch.columns()).map(|(number, column)| Self::of(number, column)).collect()
    }

    fn of(number: usize, column: &dyn Array) -> Result<Self> {
        let value = ScalarValue::try_from_array(column, 0).map_err(|error| told(&error))?;
        if value.is_null() {
            return Ok(Self::Null);
        }
        let given = column.data_type();
        let cast = |to: &DataType| {
            value.cast_to(to).map_err(|_| {
                Error::InvalidArgument(format!("the value of parameter ${number}, {given}, does not fit {to}"))
            })
        };
        let class = match given {
            DataType::Boolean => DataType::Boolean,
            it if it.is_integer() => DataType::Int64,
            it if it.is_floating() => DataType::Float64,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
            DataType::Date32 => DataType::Date32,
            DataType::Timestamp(..) => time_type(),
            other => {
                return Err(Error::InvalidArgument(format!(
                    "parameter ${number} has the type {other}; bind a bool, an integer, a float, a string, bytes, a date or \
                     a timestamp"
                )));
            }
        };
        Ok(match cast(&class)? {
            ScalarValue::Boolean(Some(value)) => Self::Bool(value),
            ScalarValue::Int64(Some(value)) => Self::Integer(value),
            ScalarValue::Float64(Some(value)) => Self::Float(value.to_bits()),
            ScalarValue::Utf8(Some(value)) => Self::String(value),
            ScalarValue::Binary(Some(value)) => Self::Bytes(value),
            ScalarValue::Date32(Some(value)) => Self::Date(value),
            ScalarValue::TimestampMicrosecond(Some(value), _) => Self::Timestamp(value),
            _ => Self::Null,
        })
    }

    fn scalar(&self) -> ScalarValue {
        match self {
            Self::Null => ScalarValue::Null,
            Self::Bool(value) => ScalarValue::Boolean(Some(*value)),
            Self::Integer(value) => ScalarValue::Int64(Some(*value)),
            Self::Float(bits) => ScalarValue::Float64(Some(f64::from_bits(*bits))),
            Self::String(value) => ScalarValue::Utf8(Some(value.clone())),
            Self::Bytes(value) => ScalarValue::Binary(Some(value.clone())),
            Self::Date(value) => ScalarValue::Date32(Some(*value)),
            Self::Timestamp(value) => ScalarValue::TimestampMicrosecond(Some(*value), Some("UTC".into())),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::String(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::Date(_) => "a date",
            Self::Timestamp(_) => "a timestamp",
        }
    }

    /// Whether such a value may stand for one of this type, if it fits.
    fn may_be(&self, wanted: &DataType) -> bool {
        let text = matches!(wanted, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let bytes = matches!(wanted, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
        let time = matches!(wanted, DataType::Timestamp(..));
        let date = matches!(wanted, DataType::Date32);
        match self {
            _ if wanted.is_null() => true,
            Self::Null => true,
            Self::Bool(_) => *wanted == DataType::Boolean,
            Self::Integer(_) => wanted.is_numeric(),
            Self::Float(_) => wanted.is_floating(),
            Self::String(_) => text || time || date,
            Self::Bytes(_) => bytes,
            Self::Date(_) => date || time,
            Self::Timestamp(_) => time,
        }
    }
}

/// Writes `?` as `$1`, `$2`, …; how many parameters there are.
///
/// # Errors
/// `InvalidArgument` for other names, or numbers with holes; `TooLarge`.
pub(super) fn number(mut statement: &mut Statement) -> Result<usize> {
    while let Statement::Explain(explain) = statement {
        statement = &mut explain.statement;
    }
    let Statement::Statement(statement) = statement else { return Ok(0) };
    let mut numbers = Numbers::default();
    if let ControlFlow::Break(error) = VisitMut::visit(statement, &mut numbers) {
        return Err(error);
    }
    let Numbers { known, asked } = numbers;
    if !asked.is_empty() && !known.is_empty() {
        return Err(Error::InvalidArgument("parameters are written `$1`, `$2`, … or `?`, not both".to_owned()));
    }
    // A statement is not always walked as it is written.
    let _ = VisitMut::visit(statement, &mut Rename(&asked));
    let count = known.last().copied().unwrap_or(asked.len());
    if count > PARAMETERS_MAX {
        return Err(Error::TooLarge(format!("the query has more than {PARAMETERS_MAX} parameters")));
    }
    match (1..=known.len()).find(|number| !known.contains(number)) {
        Some(hole) => Err(Error::InvalidArgument(format!(
            "the query has ${count} and no ${hole}; number its parameters without holes"
        ))),
        None => Ok(count),
    }
}

/// The parameters of a statement.
#[derive(Default)]
struct Numbers {
    known: BTreeSet<usize>,
    /// Where each `?` is.
    asked: BTreeSet<Location>,
}

const ASKED: &str = "?";

impl VisitorMut for Numbers {
    type Break = Error;

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<Error> {
        let ast::Value::Placeholder(name) = &value.value else { return ControlFlow::Continue(()) };
        let is_one = match number_of(name) {
            Some(number) => {
                self.known.insert(number);
                true
            }
            None => name == ASKED && self.asked.insert(value.span.start),
        };
        match is_one {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Error::InvalidArgument(format!(
                "`{name}` is no parameter; write them `$1`, `$2`, … or `?`"
            ))),
        }
    }
}

struct Rename<'a>(&'a BTreeSet<Location>);

impl VisitorMut for Rename<'_> {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        if let ast::Value::Placeholder(name) = &mut value.value
            && name == ASKED
        {
            *name = format!("${}", self.0.range(..=value.span.start).count());
        }
        ControlFlow::Continue(())
    }
}

fn number_of(name: &str) -> Option<usize> {
    name.strip_prefix('$')?.parse().ok().filter(|number| *number > 0)
}

/// The parameters of one query while it is planned.
#[derive(Debug, Clone, Default)]
pub(super) struct Bound {
    /// What takes their places; without it the query can only be described.
    values: Option<Arc<[ScalarValue]>>,
    /// Numbers of those that are a time which a table needs before there is a plan.
    times: Arc<Mutex<BTreeSet<usize>>>,
}

impl Bound {
    /// A constant in which parameters, all of them times, have their values: any time while there is none.
    pub fn constant_time(&self, expr: &Expr) -> Result<Expr> {
        let replaced = expr.clone().transform(|expr| {
            let Expr::Placeholder(Placeholder { id, .. }) = &expr else { return Ok(Transformed::no(expr)) };
            let number = number_of(id).unwrap_or_default();
            self.times.lock().insert(number);
            let value = self.values.as_ref().and_then(|values| values.get(number.checked_sub(1)?)).cloned();
            let value = value.unwrap_or(ScalarValue::TimestampMicrosecond(Some(0), Some("UTC".into())));
            Ok(Transformed::yes(Expr::Literal(value, None)))
        });
        Ok(replaced.map_err(|error| told(&error))?.data)
    }

    /// Whether another plan is needed once there are values.
    pub fn is_in_tables(&self) -> bool {
        !self.times.lock().is_empty()
    }

    /// The type of each parameter; `Null` when it may be anything.
    pub fn types(&self, count: usize, plan: &LogicalPlan) -> Result<Vec<DataType>> {
        let known = plan.get_parameter_types().map_err(|error| told(&error))?;
        let times = self.times.lock();
        let of = |number: usize| match known.get(&format!("${number}")).cloned().flatten() {
            Some(known) => known,
            None if times.contains(&number) => time_type(),
            None => DataType::Null,
        };
        Ok((1..=count).map(of).collect())
    }

    /// Values that fit `types`.
    ///
    /// # Errors
    /// `InvalidArgument` naming the parameter: for another number of them, for one of another type.
    pub fn new(types: &[DataType], values: &[Parameter]) -> Result<Self> {
        if types.len() != values.len() {
            return Err(Error::InvalidArgument(format!(
                "the query takes {}, and {} bound; bind one value for each",
                taken(types.len()),
                match values.len() {
                    1 => "1 value was".to_owned(),
                    count => format!("{count} values were"),
                }
            )));
        }
        let one = |(number, (wanted, value)): (usize, (&DataType, &Parameter))| {
            if !value.may_be(wanted) {
                return Err(Error::InvalidArgument(format!(
                    "parameter ${number} is {wanted} in this query, and {} was bound; bind such a value, or cast in the query",
                    value.kind()
                )));
            }
            if wanted.is_null() {
                return Ok(value.scalar());
            }
            let misfit =
                |_| Error::InvalidArgument(format!("the value bound to parameter ${number} does not fit {wanted}"));
            value.scalar().cast_to(wanted).map_err(misfit)
        };
        let values: Vec<ScalarValue> = (1..).zip(types.iter().zip(values)).map(one).collect::<Result<_>>()?;
        Ok(Self { values: Some(values.into()), times: Arc::default() })
    }

    /// The plan with values in the places of its parameters.
    pub fn put_into(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let values = self.values.as_deref().unwrap_or_default().to_vec();
        plan.with_param_values(values).map_err(|error| told(&error))
    }
}

/// `2 parameters ($1, $2)`.
pub(super) fn taken(count: usize) -> String {
    match count {
        0 => "no parameters".to_owned(),
        1 => "1 parameter ($1)".to_owned(),
        2 => "2 parameters ($1, $2)".to_owned(),
        count => format!("{count} parameters ($1 to ${count})"),
    }
}

/// The parameters as columns.
pub(super) fn schema(types: &[DataType]) -> Schema {
    let field = |(number, data_type): (usize, &DataType)| Field::new(format!("${number}"), data_type.clone(), true);
    Schema::new((1..).zip(types).map(field).collect::<Vec<_>>())
}
