//! Rows for a feature view out of its files: a SELECT over them, cut by event time.
//!
//! In reading order: `files` (which files, and whether they are still the same), `table` (their rows as the table
//! [`TABLE`]), `check` (what a source's SQL may be), `order` (rows as history lies, for chunks that become segments).
//!
//! Always true:
//! - a chunk of the same files gives the same batches, in every run and on every node: the scan has one order, what changes
//!   by itself (`now()`, `random()`) is refused, and rows are sorted by all their columns
//! - a row without event time is in the first chunk, so that it is seen and not lost
//! - sorts and aggregates take their memory from one bounded pool and spill

mod check;
mod files;
mod order;
mod table;
#[cfg(test)]
mod tests;

pub use check::check_sql;
pub use files::{FILES_MAX, Fingerprints, check_path};
pub use order::ORDER_KEY;

use crate::sql::{SqlEngine, SqlLimits, told};
use crate::{Error, Result};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Schema, TimeUnit};
use arrow_select::coalesce::BatchCoalescer;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1::{Field, FileSource, SourceFile};
use cairn_storage::near::nearest;
use cairn_storage::types::{arrow_type, coerce, type_name};
use datafusion::common::{Column, ScalarValue};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, SortExpr};
use datafusion::prelude::{DataFrame, SessionConfig};
use files::FoundFile;
use futures::StreamExt;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use table::SourceTable;

/// What a source's SQL reads.
pub const TABLE: &str = "source";

/// How the rows of a chunk lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By all columns.
    Columns,
    /// As history lies: behind the view's columns comes [`ORDER_KEY`], by which they ascend; null where a row has no key or
    /// event time. Of rows with the same key and times the first is the one to keep.
    History,
}

/// What is to be read, and what of.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub view: String,
    pub join_keys: Vec<Field>,
    pub features: Vec<Field>,
    pub files: FileSource,
}

/// Reads sources. One for a node.
#[derive(Debug)]
pub struct BackfillEngine {
    sql: SqlEngine,
    fingerprints: Fingerprints,
}

/// A source that was opened, and gives what the view needs.
pub struct Source {
    found: Vec<FoundFile>,
    table: Arc<SourceTable>,
    state: SessionState,
    /// The view's columns, of all times.
    plan: LogicalPlan,
    event: DataType,
    /// Without SQL: the column of the files with the event time.
    event_column: Option<String>,
    join_keys: Vec<Field>,
}

impl BackfillEngine {
    /// # Errors
    /// `Internal` when the folder for spilled rows cannot be made.
    pub fn new(limits: &SqlLimits) -> Result<Self> {
        Ok(Self { sql: SqlEngine::new(limits)?, fingerprints: Fingerprints::default() })
    }

    /// Opens the files and checks that they give what the view needs. `thorough`: the types of CSV columns are those that
    /// fit every row, and not the first ones. Reads files, and blocks.
    ///
    /// # Errors
    /// `Unavailable` for files that are missing or cannot be read now; `InvalidArgument` for what is no Parquet or CSV, SQL
    /// that is not understood, or columns that are missing or do not fit.
    pub fn open(&self, wanted: &Wanted, thorough: bool) -> Result<Source> {
        let found = files::list(&wanted.files.path)?;
        // With SQL a column of a view's name may hold something else.
        let types = wanted.files.sql.is_empty().then(|| types_of(wanted));
        let table = Arc::new(SourceTable::open(&found, types.as_ref(), thorough)?);
        let context = self.sql.session(SessionConfig::new().with_target_partitions(1));
        context.register_table(TABLE, Arc::clone(&table) as _).map_err(|error| told(&error))?;
        let state = context.state();
        let plan = match wanted.files.sql.as_str() {
            "" => futures::executor::block_on(context.table(TABLE)).map_err(|error| told(&error))?.into_parts().1,
            sql => {
                let statement = check::statement(sql)?;
                let plan =
                    futures::executor::block_on(state.statement_to_plan(statement)).map_err(|error| told(&error))?;
                check::check_plan(&plan)?;
                plan
            }
        };
        let (plan, event) = columns_of(wanted, plan)?;
        let event_column = wanted.files.sql.is_empty().then(|| event_name(wanted).to_owned());
        let join_keys = wanted.join_keys.clone();
        Ok(Source { found, table, state, plan, event, event_column, join_keys })
    }

    /// What the files are now. Reads those that it does not know yet, and blocks.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn fingerprint(&self, source: &Source) -> Result<Vec<SourceFile>> {
        source.found.iter().map(|file| self.fingerprints.of(file)).collect()
    }

    /// Whether the files of a source still are what they were.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file that changed; `Unavailable`.
    pub fn unchanged(&self, path: &str, before: &[SourceFile]) -> Result<()> {
        let found = files::list(path)?;
        let names: BTreeSet<&str> = found.iter().map(|file| file.name.as_str()).collect();
        let known: BTreeSet<&str> = before.iter().map(|file| file.path.as_str()).collect();
        if let Some(gone) = known.difference(&names).next() {
            // Files come back, with a mount that was away for a while.
            return Err(Error::Unavailable(format!("file `{gone}` is gone, and the backfill is not done with it")));
        }
        if let Some(new) = names.difference(&known).next() {
            return Err(Error::InvalidArgument(format!(
                "file `{new}` was not there when the backfill began; begin another one to read it too"
            )));
        }
        for (file, before) in found.iter().zip(before) {
            if file.size < before.size {
                return Err(Error::InvalidArgument(format!(
                    "file `{}` was truncated during the backfill: {} bytes are left of {}; begin another one",
                    file.name, file.size, before.size
                )));
            }
            if self.fingerprints.of(file)? != *before {
                return Err(Error::InvalidArgument(format!(
                    "file `{}` changed during the backfill: its bytes are not those it began with; begin another one",
                    file.name
                )));
            }
        }
        Ok(())
    }
}

/// The event time's name in the files, or in what the SQL gives.
fn event_name(wanted: &Wanted) -> &str {
    match wanted.files.event_timestamp.as_str() {
        "" => EVENT_TIMESTAMP,
        name => name,
    }
}

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Types of the view's columns, for files that have none.
fn types_of(wanted: &Wanted) -> Schema {
    let typed =
        |field: &Field| arrow_schema::Field::new(&field.name, arrow_type(&field.r#type.unwrap_or_default()), true);
    let mut fields: Vec<_> = wanted.join_keys.iter().chain(&wanted.features).map(typed).collect();
    let times = [event_name(wanted), CREATED_TIMESTAMP];
    fields.extend(times.map(|name| arrow_schema::Field::new(name, time_type(), true)));
    Schema::new(fields)
}

/// The view's columns out of `plan`, and the type of the event time.
fn columns_of(wanted: &Wanted, plan: LogicalPlan) -> Result<(LogicalPlan, DataType)> {
    let schema = plan.schema().as_arrow().clone();
    let of_sql = !wanted.files.sql.is_empty();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let gives = || format!("{} {}", if of_sql { "the sql gives" } else { "its files have" }, names.join(", "));
    let missing = |name: &str, what: &str| {
        let near = nearest(name, names.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
        let more = near.unwrap_or_else(|| format!("; {}", gives()));
        Error::InvalidArgument(format!(
            "the source of feature view `{}` has no column `{name}`, {what}{more}",
            wanted.view
        ))
    };
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(**name)) {
        return Err(Error::InvalidArgument(format!(
            "the source has two columns `{twice}`; name one of them otherwise"
        )));
    }
    let mut columns = Vec::new();
    let mut take = |fields: &[Field], what: &str| -> Result<()> {
        for field in fields {
            let found = schema.field_with_name(&field.name).map_err(|_| missing(&field.name, what))?;
            let empty = arrow_array::new_empty_array(found.data_type());
            coerce(&field.name, &empty, &field.r#type.unwrap_or_default()).map_err(|_| {
                Error::InvalidArgument(format!(
                    "column `{}` of the source is {}, and feature view `{}` has it as {}; convert it in the source's sql",
                    field.name,
                    found.data_type(),
                    wanted.view,
                    type_name(&field.r#type.unwrap_or_default())
                ))
            })?;
            columns.push(Expr::Column(Column::from_name(&field.name)));
        }
        Ok(())
    };
    take(&wanted.join_keys, "a join key")?;
    let event = event_name(wanted);
    let found = schema.field_with_name(event).map_err(|_| missing(event, "the event time"))?;
    let event_type = found.data_type().clone();
    let mut times = vec![(event, EVENT_TIMESTAMP)];
    times.extend(schema.field_with_name(CREATED_TIMESTAMP).ok().map(|_| (CREATED_TIMESTAMP, CREATED_TIMESTAMP)));
    for (name, _) in &times {
        let kind = schema.field_with_name(name).map(|field| field.data_type().clone()).unwrap_or(DataType::Null);
        if !matches!(kind, DataType::Timestamp(..)) {
            return Err(Error::InvalidArgument(format!(
                "column `{name}` of the source is {kind}, and must be a timestamp; convert it in the source's sql, for instance \
                 with to_timestamp()"
            )));
        }
    }
    take(&wanted.features, "a feature")?;
    let keys = wanted.join_keys.len();
    let times = times.into_iter().map(|(name, called)| Expr::Column(Column::from_name(name)).alias(called));
    columns.splice(keys..keys, times);
    if of_sql && let Some(stranger) = names.iter().find(|name| !known(wanted, name)) {
        return Err(Error::InvalidArgument(format!(
            "the sql gives a column `{stranger}`, which is no join key, time or feature of feature view `{}`; leave it out",
            wanted.view
        )));
    }
    let plan = LogicalPlanBuilder::from(plan).project(columns).and_then(LogicalPlanBuilder::build);
    Ok((plan.map_err(|error| told(&error))?, event_type))
}

fn known(wanted: &Wanted, name: &str) -> bool {
    wanted.join_keys.iter().chain(&wanted.features).any(|field| field.name == name)
        || name == event_name(wanted)
        || name == CREATED_TIMESTAMP
}

impl Source {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.found.iter().map(|file| file.size).sum()
    }

    /// Whether every chunk reads all of it: CSV says nowhere which times it holds.
    pub fn is_text(&self) -> bool {
        self.found.iter().any(|file| file.is_csv())
    }

    /// Rows with event times in `times`, in their one order, cut into batches of exactly `batch_rows`, the last one aside, and
    /// handed to `out` until that says `false`. `first`: with those that have no event time. Dropping this future ends it.
    ///
    /// # Errors
    /// `InvalidArgument` naming file and place where the files do not hold what they should; `Unavailable`; what `out` says.
    pub async fn chunk<F>(
        &self,
        times: Range<i64>,
        first: bool,
        order: Order,
        batch_rows: usize,
        mut out: impl FnMut(RecordBatch) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<bool>>,
    {
        let mut batches = self.rows(times, first, order)?.execute_stream().await.map_err(|error| told(&error))?;
        let mut cut = BatchCoalescer::new(batches.schema(), batch_rows);
        while let Some(batch) = batches.next().await {
            cut.push_batch(batch.map_err(|error| told(&error))?).map_err(Error::internal)?;
            while let Some(batch) = cut.next_completed_batch() {
                if !out(batch).await? {
                    return Ok(());
                }
            }
        }
        cut.finish_buffered_batch().map_err(Error::internal)?;
        while let Some(batch) = cut.next_completed_batch() {
            if !out(batch).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn rows(&self, times: Range<i64>, first: bool, order: Order) -> Result<DataFrame> {
        let event = || Expr::Column(Column::from_name(EVENT_TIMESTAMP));
        let at = |time_us| Ok::<_, Error>(Expr::Literal(in_unit(time_us, &self.event)?, None));
        let mut inside = event().gt_eq(at(times.start)?).and(event().lt(at(times.end)?));
        if first {
            inside = inside.or(event().is_null());
        }
        let columns = || self.plan.schema().columns().into_iter().map(Expr::Column);
        let plan = LogicalPlanBuilder::from(self.plan.clone()).filter(inside);
        let plan = match order {
            Order::Columns => plan.and_then(|plan| plan.sort(columns().map(|column| column.sort(true, true)))),
            Order::History => {
                let key = order::order_key(&self.plan, &self.join_keys).alias(ORDER_KEY);
                let by: Vec<SortExpr> = std::iter::once(Expr::Column(Column::from_name(ORDER_KEY)).sort(true, true))
                    // The greatest first: of equal ones it is kept.
                    .chain(columns().skip(self.join_keys.len()).map(|column| column.sort(false, false)))
                    .collect();
                plan.and_then(|plan| plan.project(columns().chain([key]))).and_then(|plan| plan.sort(by))
            }
        };
        let plan = plan.and_then(LogicalPlanBuilder::build).map_err(|error| told(&error))?;
        Ok(DataFrame::new(self.state.clone(), plan))
    }

    /// Where the files have their first null in a column of the view; `None` with SQL, which says nothing of places.
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub fn first_null(&self, column: &str) -> Result<Option<(String, u64)>> {
        let Some(event) = &self.event_column else { return Ok(None) };
        self.table.first_null(if column == EVENT_TIMESTAMP { event } else { column })
    }
}

/// The first moment of a column's unit that is not before `time_us`.
fn in_unit(time_us: i64, kind: &DataType) -> Result<ScalarValue> {
    let up = |unit: i64| time_us.div_euclid(unit) + i64::from(time_us.rem_euclid(unit) != 0);
    match kind {
        DataType::Timestamp(unit, zone) => Ok(match unit {
            TimeUnit::Second => ScalarValue::TimestampSecond(Some(up(1_000_000)), zone.clone()),
            TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(Some(up(1_000)), zone.clone()),
            TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(Some(time_us), zone.clone()),
            TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(Some(time_us.saturating_mul(1_000)), zone.clone()),
        }),
        other => Err(Error::Internal(format!("an event time of type {other}"))),
    }
}
