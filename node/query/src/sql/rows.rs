//! The rows of a feature view as a table.
//!
//! Columns: the join keys, `event_timestamp`, `created_timestamp`, `committed_timestamp`, in a history `deleted`, then the
//! features. A feature of such a name takes the place of the column. ttl is not applied: rows show their own times.
//!
//! What a query needs not is not decoded: other columns, times outside its bounds, and all entities but one when it
//! gives the whole key. History in segments comes as the columns it lies in.

use super::{BATCH_ROWS, external};
use crate::source::{Runs, ShardedSource, settled};
use crate::{Error, Result};
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1::Field;
use cairn_storage::catalog::Catalog;
use cairn_storage::keys::{EntityKeyDecoder, EntityKeys};
use cairn_storage::row::{RowDecoder, RowSchema};
use cairn_storage::shard::{ColumnScan, Columns, Piece, RowRef, Scope};
use cairn_storage::types::arrow_type;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use std::fmt;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

const COMMITTED_TIMESTAMP: &str = "committed_timestamp";
const DELETED: &str = "deleted";
/// Batches a partition may be ahead of its reader.
const BATCHES_AHEAD: usize = 2;

/// How long a scan waits for segments that are on their way to this node.
const SEGMENTS_WAIT: Duration = Duration::from_secs(10);

pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Which rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    Latest,
    History,
    /// Of each entity the newest with event and created time up to one, and commit time up to the other.
    AsOf {
        event_us: i64,
        known_us: i64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Key(usize),
    Event,
    Created,
    Committed,
    Deleted,
    Feature(usize),
}

pub(super) struct ViewTable {
    name: String,
    storage_id: u32,
    join_keys: Vec<Field>,
    row: RowSchema,
    rows: Rows,
    columns: Vec<Column>,
    schema: SchemaRef,
    source: Arc<ShardedSource>,
}

impl fmt::Debug for ViewTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.rows, self.name)
    }
}

impl ViewTable {
    /// # Errors
    /// `NotFound` with a near name.
    pub fn new(
        catalog: &Catalog,
        project: &str,
        view: &str,
        version: Option<u32>,
        rows: Rows,
        source: &Arc<ShardedSource>,
    ) -> Result<Self> {
        let project = catalog.project(project)?;
        let view = project.feature_view(view, version)?;
        let join_keys = project.join_keys(view)?;
        let mut columns: Vec<(Column, ArrowField)> = Vec::new();
        let typed = |field: &Field, nullable| {
            ArrowField::new(&field.name, arrow_type(&field.r#type.unwrap_or_default()), nullable)
        };
        columns.extend(join_keys.iter().enumerate().map(|(at, field)| (Column::Key(at), typed(field, false))));
        columns.push((Column::Event, ArrowField::new(EVENT_TIMESTAMP, time_type(), false)));
        columns.push((Column::Created, ArrowField::new(CREATED_TIMESTAMP, time_type(), false)));
        columns.push((Column::Committed, ArrowField::new(COMMITTED_TIMESTAMP, time_type(), false)));
        if rows == Rows::History {
            columns.push((Column::Deleted, ArrowField::new(DELETED, DataType::Boolean, false)));
        }
        columns.retain(|(column, field)| {
            matches!(column, Column::Key(_)) || view.features.iter().all(|feature| feature.name != *field.name())
        });
        columns.extend(view.features.iter().enumerate().map(|(at, field)| (Column::Feature(at), typed(field, true))));
        let (columns, fields): (Vec<Column>, Vec<ArrowField>) = columns.into_iter().unzip();
        Ok(Self {
            name: format!("{}@{}", view.name, view.version),
            storage_id: view.storage_id,
            row: RowSchema::new(&view.features)?,
            join_keys,
            rows,
            columns,
            schema: Arc::new(Schema::new(fields)),
            source: Arc::clone(source),
        })
    }

    /// Event times that the filters leave.
    fn bounds(&self, filters: &[Expr]) -> RangeInclusive<i64> {
        let (mut first, mut last) = (i64::MIN, i64::MAX);
        for (column, operator, value) in filters.iter().filter_map(comparison) {
            let event = self.schema.index_of(column).is_ok_and(|at| self.columns.get(at) == Some(&Column::Event));
            let Ok(ScalarValue::TimestampMicrosecond(Some(time_us), _)) = value.cast_to(&time_type()) else { continue };
            match operator {
                _ if !event => {}
                Operator::Eq => (first, last) = (first.max(time_us), last.min(time_us)),
                Operator::Lt | Operator::LtEq => last = last.min(time_us),
                Operator::Gt | Operator::GtEq => first = first.max(time_us),
                _ => {}
            }
        }
        first..=last
    }

    /// The encoded key of the one entity that the filters leave, if they do.
    fn entity(&self, filters: &[Expr]) -> Option<Vec<u8>> {
        let value = |field: &Field| {
            let mut equal = filters.iter().filter_map(comparison).filter(|(_, operator, _)| *operator == Operator::Eq);
            let (_, _, value) = equal.find(|(column, ..)| *column == field.name)?;
            let value = value.cast_to(&arrow_type(&field.r#type.unwrap_or_default())).ok()?;
            value.to_array().ok().filter(|array| array.null_count() == 0)
        };
        let values: Vec<ArrayRef> = self.join_keys.iter().map(value).collect::<Option<_>>()?;
        EntityKeys::encode(&self.join_keys, &values).ok()?.get(0).map(<[u8]>::to_vec)
    }
}

/// `column operator constant`.
fn comparison(filter: &Expr) -> Option<(&str, Operator, &ScalarValue)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    match (&**left, &**right) {
        (Expr::Column(column), Expr::Literal(value, _)) => Some((&column.name, *op, value)),
        (Expr::Literal(value, _), Expr::Column(column)) => Some((&column.name, op.swap()?, value)),
        _ => None,
    }
}

#[async_trait]
impl TableProvider for ViewTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        // They save work here; the query applies them too.
        let support = |filter: &&Expr| match comparison(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let scan = Arc::new(Scan {
            storage_id: self.storage_id,
            join_keys: self.join_keys.clone(),
            row: self.row.clone(),
            rows: self.rows,
            columns: projection.iter().filter_map(|at| self.columns.get(*at).copied()).collect(),
            schema: Arc::clone(&schema),
            entity: self.entity(filters),
            bounds: self.bounds(filters),
            // With filters a partition cannot know which of its rows count.
            limit: limit.filter(|_| filters.is_empty()),
            source: Arc::clone(&self.source),
        });
        let wanted = state.config().target_partitions();
        let partitions = match &scan.entity {
            Some(key) => vec![self.source.run_of(key)],
            None => self.source.runs(wanted),
        };
        let partition = |runs| -> Arc<dyn PartitionStream> { Arc::new(Partition { scan: Arc::clone(&scan), runs }) };
        let partitions = partitions.into_iter().map(|runs| runs.map(partition)).collect::<Result<_>>();
        let partitions = partitions.map_err(external)?;
        Ok(Arc::new(StreamingTableExec::try_new(schema, partitions, None, [], false, limit)?))
    }
}

/// One use of a table in a query.
struct Scan {
    storage_id: u32,
    join_keys: Vec<Field>,
    row: RowSchema,
    rows: Rows,
    columns: Vec<Column>,
    schema: SchemaRef,
    entity: Option<Vec<u8>>,
    bounds: RangeInclusive<i64>,
    limit: Option<usize>,
    source: Arc<ShardedSource>,
}

struct Partition {
    scan: Arc<Scan>,
    runs: Runs,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of storage {}: {:?}", self.scan.rows, self.scan.storage_id, self.runs)
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.scan.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (scan, runs) = (Arc::clone(&self.scan), self.runs.clone());
        let mut stream = RecordBatchReceiverStream::builder(Arc::clone(&scan.schema), BATCHES_AHEAD);
        let batches = stream.tx();
        stream.spawn_blocking(move || {
            let mut left = scan.limit.unwrap_or(usize::MAX);
            let mut send = |batch: RecordBatch| {
                left = left.saturating_sub(batch.num_rows());
                batches.blocking_send(Ok(batch)).is_ok() && left > 0
            };
            scan.run(&runs, &|| !batches.is_closed(), &mut send).map_err(external)
        });
        stream.build()
    }
}

impl Scan {
    /// Hands the rows of `runs` to `send` until that says `false`, or nobody is `there`, which is asked on the way: of many
    /// rows perhaps none is sent. Blocks.
    fn run(&self, runs: &Runs, there: &dyn Fn() -> bool, send: &mut dyn FnMut(RecordBatch) -> bool) -> Result<()> {
        let mut out = Out::new(self, there, send)?;
        let features: Vec<usize> = self.columns.iter().filter_map(Column::feature).collect();
        let wants = |wanted: fn(&Column) -> bool| self.columns.iter().any(wanted);
        for (shard, slots) in runs.each() {
            // Not later, when rows have been sent already.
            settled(self.source.as_ref(), SEGMENTS_WAIT, || Ok(shard.check_segments(self.storage_id)?))?;
            let scope = match &self.entity {
                Some(key) => Scope::Entity(key),
                None => Scope::Slots(slots.clone()),
            };
            match (self.rows, &self.entity) {
                (Rows::Latest, _) => shard.scan_latest(self.storage_id, scope, &mut |key, row| out.row(key, &row))?,
                (Rows::History, None) => {
                    let ask = ColumnScan {
                        storage_id: self.storage_id,
                        slots,
                        event_us: self.bounds.clone(),
                        features: &features,
                        keys: wants(|it| matches!(it, Column::Key(_))),
                        committed: wants(|it| *it == Column::Committed),
                        deleted: wants(|it| *it == Column::Deleted),
                    };
                    let mut visit = |piece: Piece<'_>| match piece {
                        Piece::Row(key, row) => out.row(key, &row),
                        Piece::Columns(columns) => out.columns(columns),
                    };
                    shard.scan_columns(&ask, &mut visit)?;
                }
                _ => shard.scan(self.storage_id, scope, &mut |key, row| out.row(key, &row))?,
            }
            if let Some(ended) = out.ended {
                return ended;
            }
        }
        // A claim that ends does so before the rows go: unchanged, all rows were there.
        self.source.still(runs)?;
        out.finish()
    }

    /// Whether a row belongs to the answer. `entity`: the key that rows are of now, and whether it has its row.
    fn wants(&self, key: &[u8], row: &RowRef<'_>, entity: &mut (Vec<u8>, bool)) -> bool {
        let chosen = match self.rows {
            Rows::Latest => !row.is_deletion(),
            Rows::History => true,
            Rows::AsOf { event_us, known_us } => {
                let (of, done) = entity;
                if *of != key {
                    of.clear();
                    of.extend_from_slice(key);
                    *done = false;
                }
                let first =
                    !*done && row.event_us <= event_us && row.created_us <= event_us && row.committed_us <= known_us;
                *done |= first;
                first && !row.is_deletion()
            }
        };
        chosen && self.bounds.contains(&row.event_us)
    }

    fn batch_of(&self, columns: Columns) -> Result<RecordBatch> {
        let mut features = columns.features.into_iter();
        let column = |column: &Column| match column {
            Column::Key(at) => columns.keys.get(*at).cloned(),
            Column::Event => Some(Arc::clone(&columns.event)),
            Column::Created => Some(Arc::clone(&columns.created)),
            Column::Committed => columns.committed.clone(),
            Column::Deleted => columns.deleted.clone(),
            Column::Feature(_) => features.next(),
        };
        let found: Option<Vec<ArrayRef>> = self.columns.iter().map(column).collect();
        self.assemble(columns.rows, found)
    }

    fn assemble(&self, rows: usize, columns: Option<Vec<ArrayRef>>) -> Result<RecordBatch> {
        let columns = columns.ok_or_else(|| Error::internal("a scan misses a column"))?;
        let exact = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &exact).map_err(Error::internal)
    }
}

/// What a scan has found and is on its way to whoever asked.
struct Out<'a> {
    scan: &'a Scan,
    there: &'a dyn Fn() -> bool,
    send: &'a mut dyn FnMut(RecordBatch) -> bool,
    batch: Batch,
    batch_rows: usize,
    /// The key that rows are of now, and whether it has its row.
    entity: (Vec<u8>, bool),
    seen: usize,
    /// The scan goes no further: nobody wants more, or it failed.
    ended: Option<Result<()>>,
}

impl<'a> Out<'a> {
    fn new(scan: &'a Scan, there: &'a dyn Fn() -> bool, send: &'a mut dyn FnMut(RecordBatch) -> bool) -> Result<Self> {
        let batch_rows = scan.limit.unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS);
        let batch = Batch::new(scan, batch_rows)?;
        Ok(Self { scan, there, send, batch, batch_rows, entity: Default::default(), seen: 0, ended: None })
    }

    fn end(&mut self, how: Result<()>) -> ControlFlow<()> {
        self.ended = Some(how);
        ControlFlow::Break(())
    }

    fn row(&mut self, key: &[u8], row: &RowRef<'_>) -> ControlFlow<()> {
        self.seen += 1;
        if self.seen.is_multiple_of(BATCH_ROWS) && !(self.there)() {
            return self.end(Ok(()));
        }
        if !self.scan.wants(key, row, &mut self.entity) {
            return ControlFlow::Continue(());
        }
        match self.push(key, row) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => self.end(Ok(())),
            Err(error) => self.end(Err(error)),
        }
    }

    /// Whether more is wanted.
    fn push(&mut self, key: &[u8], row: &RowRef<'_>) -> Result<bool> {
        self.batch.push(key, row)?;
        if self.batch.rows < self.batch_rows {
            return Ok(true);
        }
        let full = std::mem::replace(&mut self.batch, Batch::new(self.scan, self.batch_rows)?);
        Ok((self.send)(full.finish(self.scan)?))
    }

    /// Rows of a segment within the bounds. Sent as they are, in slices.
    fn columns(&mut self, columns: Columns) -> ControlFlow<()> {
        if !(self.there)() {
            return self.end(Ok(()));
        }
        if columns.rows == 0 {
            return ControlFlow::Continue(());
        }
        let batch = match self.scan.batch_of(columns) {
            Ok(batch) => batch,
            Err(error) => return self.end(Err(error)),
        };
        for start in (0..batch.num_rows()).step_by(self.batch_rows) {
            if !(self.send)(batch.slice(start, self.batch_rows.min(batch.num_rows() - start))) {
                return self.end(Ok(()));
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends what is left.
    fn finish(self) -> Result<()> {
        if self.batch.rows > 0 {
            (self.send)(self.batch.finish(self.scan)?);
        }
        Ok(())
    }
}

/// Rows on their way into a batch: only the columns asked for.
struct Batch {
    rows: usize,
    keys: Option<EntityKeyDecoder>,
    event_us: Vec<i64>,
    created_us: Vec<i64>,
    committed_us: Vec<i64>,
    deleted: Vec<bool>,
    features: RowDecoder,
}

impl Batch {
    fn new(scan: &Scan, capacity: usize) -> Result<Self> {
        let wants_keys = scan.columns.iter().any(|column| matches!(column, Column::Key(_)));
        let keys = if wants_keys { Some(EntityKeyDecoder::new(&scan.join_keys)?) } else { None };
        let features: Vec<usize> = scan.columns.iter().filter_map(Column::feature).collect();
        let features = RowDecoder::new(&scan.row, &features, capacity);
        let (event_us, created_us, committed_us, deleted) = Default::default();
        Ok(Self { rows: 0, keys, event_us, created_us, committed_us, deleted, features })
    }

    fn push(&mut self, key: &[u8], row: &RowRef<'_>) -> Result<()> {
        if let Some(keys) = &mut self.keys {
            keys.push(key)?;
        }
        self.event_us.push(row.event_us);
        self.created_us.push(row.created_us);
        self.committed_us.push(row.committed_us);
        self.deleted.push(row.is_deletion());
        match row.is_deletion() {
            true => self.features.push_null(),
            false => self.features.push(row.packed)?,
        }
        self.rows += 1;
        Ok(())
    }

    fn finish(self, scan: &Scan) -> Result<RecordBatch> {
        let time =
            |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
        let keys = self.keys.map(EntityKeyDecoder::finish).unwrap_or_default();
        let (event, created, committed) = (time(self.event_us), time(self.created_us), time(self.committed_us));
        let deleted: ArrayRef = Arc::new(BooleanArray::from(self.deleted));
        let mut features = self.features.finish()?.into_iter();
        let column = |column: &Column| match column {
            Column::Key(at) => keys.get(*at).cloned(),
            Column::Event => Some(Arc::clone(&event)),
            Column::Created => Some(Arc::clone(&created)),
            Column::Committed => Some(Arc::clone(&committed)),
            Column::Deleted => Some(Arc::clone(&deleted)),
            Column::Feature(_) => features.next(),
        };
        let columns: Option<Vec<ArrayRef>> = scan.columns.iter().map(column).collect();
        scan.assemble(self.rows, columns)
    }
}

impl Column {
    fn feature(&self) -> Option<usize> {
        match self {
            Self::Feature(at) => Some(*at),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::Project;
    use crate::testing::{Store, fact};
    use cairn_proto::record::v1::ValueKind;
    use std::cell::Cell;

    /// A scan that finds nothing to send would else go on to its end for nobody.
    #[test]
    fn a_scan_that_sends_nothing_finds_out_that_nobody_is_there() {
        let mut project = Project::default();
        project.entity("k", &[("k", ValueKind::Int64)]).view("v", &["k"], 0, &[("x", ValueKind::Int64)]);
        let (plan, mut store) = (project.plan(&["v"]), Store::new());
        for commit in 0..3 {
            let facts: Vec<_> = (0..10_000).map(|row| fact(&format!("{row} | {commit} | {row}"))).collect();
            store.write(&plan, 0, commit, &facts);
        }
        let table = ViewTable::new(&project.catalog(), "p", "v", None, Rows::History, &store.sharded).unwrap();
        let scan = Scan {
            storage_id: table.storage_id,
            join_keys: table.join_keys.clone(),
            row: table.row.clone(),
            rows: table.rows,
            columns: table.columns.clone(),
            schema: table.schema(),
            entity: None,
            bounds: 1_000..=1_000,
            limit: None,
            source: Arc::clone(&store.sharded),
        };
        let asked = Cell::new(0);
        let there = |answer: bool| {
            asked.set(asked.get() + 1);
            answer
        };
        let runs = store.sharded.runs(1).remove(0).unwrap();
        scan.run(&runs, &|| there(true), &mut |_| panic!("a row outside the bounds")).unwrap();
        assert_eq!(asked.replace(0), 3, "30,000 rows");
        scan.run(&runs, &|| there(false), &mut |_| panic!("a row outside the bounds")).unwrap();
        assert_eq!(asked.get(), 1);
    }
}
