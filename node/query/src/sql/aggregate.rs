//! Aggregates over rows at hand, by group: the metrics that a backtest is asked for in SQL.

use super::{SQL_BYTES_MAX, SqlEngine, told, understood};
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type};
use arrow_array::{Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use std::sync::Arc;

/// Column of the rows that says which group a row is in: `UInt32`. No SQL of a user can name it unquoted.
pub const GROUP: &str = "#group";

/// An aggregate with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregate {
    pub name: String,
    /// An expression over the columns of the rows, such as `avg(abs(label - prediction))`.
    pub sql: String,
}

/// What aggregates come to, in their order; null and what is no finite number are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aggregated {
    /// Of all rows.
    pub all: Vec<Option<f64>>,
    /// Of the rows of each group that has any.
    pub groups: Vec<(u32, Vec<Option<f64>>)>,
}

impl SqlEngine {
    /// Computes aggregates of rows at hand, which see no other table. `rows` have the column [`GROUP`]. The same rows in the
    /// same order give the same numbers.
    ///
    /// # Errors
    /// `InvalidArgument` naming the aggregate that is no single aggregate, names what is not there, or gives no number;
    /// `TooLarge` when it needs more memory than SQL has.
    pub async fn aggregate(
        &self,
        aggregates: &[Aggregate],
        schema: &SchemaRef,
        rows: &[RecordBatch],
    ) -> Result<Aggregated> {
        let context = self.rows_alone(schema, rows)?;
        let mut found = Aggregated::default();
        let mut groups: std::collections::BTreeMap<u32, Vec<Option<f64>>> = std::collections::BTreeMap::new();
        // One by one, so that an error can name the aggregate at fault.
        for (at, Aggregate { name, sql }) in aggregates.iter().enumerate() {
            let wrong = |error: Error| match error {
                Error::InvalidArgument(why) => Error::InvalidArgument(format!(
                    "metric `{name}`: {}; write a SQL aggregate that gives a number",
                    why.trim_end_matches('.')
                )),
                other => other,
            };
            let expr = expression(&context, sql).map_err(wrong)?;
            let all = run(&context, &format!("select {expr} as v from rows")).await.map_err(wrong)?;
            let [(_, all)] = all.as_slice() else {
                let why = format!("`{expr}` is not one value for all rows");
                return Err(wrong(Error::InvalidArgument(why)));
            };
            found.all.push(*all);
            let by_group = format!("select {expr} as v, \"{GROUP}\" as g from rows group by \"{GROUP}\"");
            for (group, value) in run(&context, &by_group).await.map_err(wrong)? {
                let values = groups.entry(group).or_default();
                values.resize(at, None);
                values.push(value);
            }
        }
        for values in groups.values_mut() {
            values.resize(aggregates.len(), None);
        }
        found.groups = groups.into_iter().collect();
        Ok(found)
    }

    /// A session with one table, `rows`.
    fn rows_alone(&self, schema: &SchemaRef, rows: &[RecordBatch]) -> Result<SessionContext> {
        // One partition: sums of floating point numbers depend on their order.
        let context = self.session(SessionConfig::new().with_target_partitions(1));
        let table = MemTable::try_new(Arc::clone(schema), vec![rows.to_vec()]).map_err(|error| told(&error))?;
        context.register_table("rows", Arc::new(table)).map_err(|error| told(&error))?;
        Ok(context)
    }
}

/// The text of one expression, and nothing behind it.
fn expression(context: &SessionContext, sql: &str) -> Result<String> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(Error::TooLarge(format!("an aggregate is over the limit of {SQL_BYTES_MAX} bytes")));
    }
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let parsed = state.sql_to_expr_with_alias(sql, &dialect).map_err(|error| told(&error))?;
    match parsed.alias {
        Some(alias) => Err(Error::InvalidArgument(format!("it has a name already, `{alias}`"))),
        None => Ok(parsed.expr.to_string()),
    }
}

/// Rows of a query with the columns `v`, a number, and perhaps `g`.
async fn run(context: &SessionContext, sql: &str) -> Result<Vec<(u32, Option<f64>)>> {
    let (frame, parameters) = understood(context, sql).await?;
    if parameters > 0 {
        return Err(Error::InvalidArgument("it has parameters, and there is nothing to bind to them".to_owned()));
    }
    let kind = frame.schema().field(0).data_type().clone();
    if !kind.is_numeric() && !matches!(kind, DataType::Boolean | DataType::Null) {
        return Err(Error::InvalidArgument(format!("it gives {kind}")));
    }
    let mut found = Vec::new();
    for batch in frame.collect().await.map_err(|error| told(&error))? {
        let values = cast(batch.column(0), &DataType::Float64).map_err(Error::internal)?;
        let values = values.as_primitive::<Float64Type>();
        let groups = batch.columns().get(1).and_then(|column| column.as_primitive_opt::<UInt32Type>());
        for row in 0..batch.num_rows() {
            let value = (!values.is_null(row)).then(|| values.value(row)).filter(|value| value.is_finite());
            found.push((groups.map_or(0, |groups| groups.value(row)), value));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::SqlLimits;
    use arrow_array::{Float64Array, StringArray, UInt32Array};
    use expect_test::{Expect, expect};

    fn ask(aggregates: &[(&str, &str)]) -> Result<Aggregated> {
        let rows = RecordBatch::try_from_iter([
            (GROUP, Arc::new(UInt32Array::from(vec![0, 2, 0, 2])) as _),
            ("label", Arc::new(Float64Array::from(vec![1.0, 0.0, 0.0, 1.0])) as _),
            ("prediction", Arc::new(Float64Array::from(vec![Some(0.5), Some(0.25), Some(0.0), None])) as _),
            ("carrier", Arc::new(StringArray::from(vec!["UA", "AA", "UA", "B6"])) as _),
        ])
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let spill_dir = folder.path().join("spill");
        let limits = SqlLimits { memory_bytes: 16 << 20, spill_bytes: 1 << 20, spill_dir, partitions: 2 };
        let engine = SqlEngine::new(&limits).unwrap();
        let named = |(name, sql): &(&str, &str)| Aggregate { name: (*name).to_owned(), sql: (*sql).to_owned() };
        let aggregates: Vec<_> = aggregates.iter().map(named).collect();
        let parts = [rows.slice(0, 1), rows.slice(1, 3)];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(engine.aggregate(&aggregates, rows.schema_ref(), &parts))
    }

    #[test]
    fn aggregates_are_of_all_rows_and_of_each_group() {
        let found = ask(&[
            ("mae", "avg(abs(label - prediction))"),
            ("ua", "count(*) filter (where carrier = 'UA')"),
            ("rate", "100 * sum(label) / count(*)"),
            ("none", "sum(prediction) filter (where carrier = 'AA')"),
            ("nan", "avg(label) / 0.0 - avg(label) / 0.0"),
        ]);
        let found = found.unwrap();
        assert_eq!(found.all, [Some(0.25), Some(2.0), Some(50.0), Some(0.25), None]);
        let first = vec![Some(0.25), Some(2.0), Some(50.0), None, None];
        assert_eq!(found.groups, [(0, first), (2, vec![Some(0.25), Some(0.0), Some(50.0), Some(0.25), None])]);
    }

    #[test]
    fn what_is_no_aggregate_is_refused_by_name() {
        let check = |sql: &str, expected: Expect| {
            let error = ask(&[("good", "sum(label)"), ("bad", sql)]).unwrap_err();
            expected.assert_eq(&format!("{}: {error}", error.kind()));
        };
        check(
            "label",
            expect![
                "invalid_argument: metric `bad`: `label` is not one value for all rows; write a SQL aggregate that gives a number"
            ],
        );
        check(
            "sum(lable)",
            expect![[
                r##"invalid_argument: metric `bad`: No field named lable. Did you mean 'rows.label'? Valid fields are rows."#group", rows.label, rows.prediction, rows.carrier; write a SQL aggregate that gives a number"##
            ]],
        );
        check(
            "max(carrier)",
            expect!["invalid_argument: metric `bad`: it gives Utf8; write a SQL aggregate that gives a number"],
        );
        check(
            "sum(label) as x",
            expect![
                "invalid_argument: metric `bad`: it has a name already, `x`; write a SQL aggregate that gives a number"
            ],
        );
        check(
            "sum(label) from rows",
            expect![
                "invalid_argument: metric `bad`: Expected: end of expression, found: from at Line: 1, Column: 12; write a SQL aggregate that gives a number"
            ],
        );
        check(
            "sum(label); drop table rows",
            expect![
                "invalid_argument: metric `bad`: Expected: end of expression, found: ; at Line: 1, Column: 11; write a SQL aggregate that gives a number"
            ],
        );
        check(
            "",
            expect![
                "invalid_argument: metric `bad`: Expected: an expression, found: EOF; write a SQL aggregate that gives a number"
            ],
        );
        check(
            "(select count(*) from information_schema.tables)",
            expect![
                "invalid_argument: metric `bad`: table 'datafusion.information_schema.tables' not found; `SHOW TABLES` lists what there is; write a SQL aggregate that gives a number"
            ],
        );
    }
}
