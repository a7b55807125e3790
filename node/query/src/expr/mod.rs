//! On-demand features: SQL scalar expressions over features and request data.
//!
//! Compiled once per definition version; evaluating plans nothing and knows no clock, so a row's value depends on that
//! row's inputs alone and is the same online, in a training set and in a backfill. `check` says what is refused.
//!
//! A row whose expression fails at run time (division by zero, overflow, unreadable text) gets a null, whatever else is
//! in its batch.

mod check;
#[cfg(test)]
mod tests;

use crate::coerce::SAFE;
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_empty_array, new_null_array};
use arrow_cast::cast_with_options;
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef};
use cairn_proto::record::v1::{Field, OnDemandFeature};
use cairn_storage::types::{arrow_type, type_name};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// Longest SQL text of one feature, bytes.
pub const SQL_BYTES_MAX: usize = 4096;

/// The functions and planners of SQL expressions: DataFusion's, with default options and no tables.
static SESSION: LazyLock<SessionState> = LazyLock::new(|| SessionStateBuilder::new_with_default_features().build());

/// The compiled features of one on-demand feature view.
#[derive(Debug, Clone)]
pub struct OnDemandProgram {
    inputs: SchemaRef,
    used: Vec<usize>,
    features: Vec<Compiled>,
}

#[derive(Debug, Clone)]
struct Compiled {
    field: Field,
    target: DataType,
    expr: Arc<dyn PhysicalExpr>,
}

impl OnDemandProgram {
    /// Compiles `features` over `inputs`; an expression may name inputs only, not other features of the view.
    ///
    /// Column names match exactly, or else without regard to case when that is unambiguous.
    ///
    /// # Errors
    /// `InvalidArgument` naming view, feature and reason: not a scalar expression, an unknown column or function, a
    /// subquery, aggregate or window, a function that depends on chance or the clock, a result of another type.
    pub fn compile(view_name: &str, inputs: &[Field], features: &[OnDemandFeature]) -> Result<Self> {
        let fields = inputs
            .iter()
            .map(|input| ArrowField::new(&input.name, arrow_type(&input.r#type.unwrap_or_default()), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let planned = DFSchema::try_from(Arc::clone(&schema)).map_err(|error| {
            Error::InvalidArgument(format!("on-demand feature view `{view_name}`: {}", brief(&error)))
        })?;
        let others: Vec<&str> = features.iter().map(|feature| feature.name.as_str()).collect();
        let mut used = BTreeSet::new();
        let mut compiled = Vec::with_capacity(features.len());
        for feature in features {
            let wrong = |reason: String| {
                Error::InvalidArgument(format!("on-demand feature `{view_name}:{}`: {reason}", feature.name))
            };
            let expr = compile_one(feature, inputs, &others, &planned).map_err(wrong)?;
            let declared = feature.r#type.unwrap_or_default();
            let target = arrow_type(&declared);
            let result = expr.data_type(&schema).map_err(|error| wrong(brief(&error)))?;
            if !converts(&result, &target) {
                let declared = type_name(&declared);
                return Err(wrong(format!(
                    "the SQL gives {result}, declared is {declared}; declare that type or write a CAST"
                )));
            }
            used.extend(collect_columns(&expr).iter().map(|column| column.index()));
            let field =
                Field { name: feature.name.clone(), r#type: Some(declared), description: feature.description.clone() };
            let one = Compiled { field, target, expr };
            one.rehearse(&schema).map_err(|error| wrong(brief(&error)))?;
            compiled.push(one);
        }
        Ok(Self { inputs: schema, used: used.into_iter().collect(), features: compiled })
    }

    /// The columns [`Self::evaluate`] takes, in order.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.inputs
    }

    /// Positions of the inputs that some feature reads, ascending.
    pub fn used_inputs(&self) -> &[usize] {
        &self.used
    }

    /// The features it computes, in definition order.
    pub fn features(&self) -> impl Iterator<Item = &Field> {
        self.features.iter().map(|feature| &feature.field)
    }

    /// One column a feature, in definition order, of the declared types, with as many rows as `batch`.
    ///
    /// - `batch`: the columns of [`Self::input_schema`], in that order and of those types
    ///
    /// A row for which an expression fails, or gives a value the declared type cannot hold, is null there.
    ///
    /// # Errors
    /// `Internal` for a batch of another shape, or an expression that fails for reasons other than its values.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        let given = batch.schema_ref();
        let same = given.fields().len() == self.inputs.fields().len()
            && given.fields().iter().zip(self.inputs.fields()).all(|(a, b)| a.data_type() == b.data_type());
        if !same {
            return Err(Error::Internal(format!(
                "an on-demand program over {:?} was given {:?}",
                types(&self.inputs),
                types(given)
            )));
        }
        self.features.iter().map(|feature| feature.evaluate(batch)).collect()
    }
}

impl Compiled {
    /// Evaluates a row of nulls once, so that what no values can mend is refused now and not at the first request.
    fn rehearse(&self, inputs: &SchemaRef) -> Result<(), DataFusionError> {
        let nulls = inputs.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let one_row = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::clone(inputs), nulls, &one_row)?;
        match self.try_evaluate(&row) {
            Err(error) if !is_about_values(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        if batch.num_rows() == 0 {
            return Ok(new_empty_array(&self.target));
        }
        match self.try_evaluate(batch) {
            Ok(values) => Ok(values),
            Err(error) if !is_about_values(&error) => Err(self.failed(&error)),
            Err(_) => self.evaluate_by_halves(batch),
        }
    }

    fn try_evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        let values = self.expr.evaluate(batch)?.into_array(batch.num_rows())?;
        if *values.data_type() == self.target {
            return Ok(values);
        }
        Ok(cast_with_options(&values, &self.target, &SAFE)?)
    }

    /// Some row fails: finds the failing rows by halving, so that a few of them cost few evaluations.
    fn evaluate_by_halves(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let mut done: Vec<ArrayRef> = Vec::new();
        let mut waiting = vec![(0, batch.num_rows())];
        while let Some((start, rows)) = waiting.pop() {
            match self.try_evaluate(&batch.slice(start, rows)) {
                Ok(values) => done.push(values),
                Err(error) if !is_about_values(&error) => return Err(self.failed(&error)),
                Err(_) if rows == 1 => done.push(new_null_array(&self.target, 1)),
                Err(_) => {
                    let half = rows / 2;
                    waiting.push((start + half, rows - half));
                    waiting.push((start, half));
                }
            }
        }
        let parts: Vec<&dyn Array> = done.iter().map(AsRef::as_ref).collect();
        arrow_select::concat::concat(&parts).map_err(Error::internal)
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        Error::Internal(format!("on-demand feature `{}` cannot be computed: {}", self.field.name, brief(error)))
    }
}

fn compile_one(
    feature: &OnDemandFeature,
    inputs: &[Field],
    others: &[&str],
    schema: &DFSchema,
) -> Result<Arc<dyn PhysicalExpr>, String> {
    if feature.sql.trim().is_empty() {
        return Err("has no SQL; write an expression such as `trips_today / 2`".to_owned());
    }
    if feature.sql.len() > SQL_BYTES_MAX {
        return Err(format!("its SQL has {} bytes, the limit is {SQL_BYTES_MAX}", feature.sql.len()));
    }
    let session = &*SESSION;
    let dialect = session.config_options().sql_parser.dialect;
    let mut parsed = session.sql_to_expr_with_alias(&feature.sql, &dialect).map_err(|error| brief(&error))?;
    if let Some(alias) = &parsed.alias {
        return Err(format!("`AS {alias}` is not needed; the feature's name is its `name`"));
    }
    check::names(&mut parsed.expr, inputs, others)?;
    let expr = session.create_logical_expr_from_sql_expr(parsed, schema).map_err(|error| brief(&error))?;
    check::scalar(&expr)?;
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(session.config_options()))
        .build();
    let simplifier = ExprSimplifier::new(context);
    let expr = simplifier.coerce(expr, schema).map_err(|error| brief(&error))?;
    // Constants fold once here; a constant that fails (1 / 0) is left for its rows to be null.
    let expr = simplifier.simplify(expr.clone()).unwrap_or(expr);
    session.create_physical_expr(expr, schema).map_err(|error| brief(&error))
}

/// Whether a failure comes from the values of some row, and not from the expression or from us.
fn is_about_values(error: &DataFusionError) -> bool {
    use DataFusionError as E;
    matches!(error.find_root(), E::ArrowError(..) | E::Execution(_) | E::External(_))
}

/// What a declared type accepts without a CAST in the SQL: numbers (and truth values) among each other, texts, times.
fn converts(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let number = |t: &D| t.is_numeric() || *t == D::Boolean;
    let text = |t: &D| matches!(t, D::Utf8 | D::LargeUtf8 | D::Utf8View);
    let bytes = |t: &D| matches!(t, D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_));
    let time = |t: &D| matches!(t, D::Timestamp(..) | D::Date32 | D::Date64);
    match (from, to) {
        (from, to) if from == to => true,
        (D::Null, _) => true,
        (_, D::Boolean) => false,
        (D::List(a) | D::LargeList(a) | D::FixedSizeList(a, _), D::List(b) | D::FixedSizeList(b, _)) => {
            converts(a.data_type(), b.data_type())
        }
        (from, to) => {
            [number(from) && number(to), text(from) && text(to), bytes(from) && bytes(to), time(from) && time(to)]
                .contains(&true)
        }
    }
}

/// DataFusion's message: no backtrace, one line.
fn brief(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let text = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
