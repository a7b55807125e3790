//! Backtests as tables, read one at a time: `system.backtests` has a row for each model of each, `system.backtest_windows` one for
//! each of its windows as well.

use super::{Table, external, hash};
use crate::Error;
use arrow_array::{Float64Array, Int64Array, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use cairn_proto::record::v1::{Backtest, BacktestMetric, BacktestModel, BacktestScores};
use cairn_storage::catalog::Catalog;
use cairn_storage::meta::Meta;
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use std::fmt;
use std::sync::Arc;

/// Tells one backtest as rows.
type Tell = fn(&Backtest) -> Table;

pub(super) const TABLES: &[(&str, Tell)] = &[("backtests", backtests), ("backtest_windows", windows)];

/// The table of this name, if it is one of [`TABLES`]; without `meta` it has no rows.
pub(super) fn table(
    name: &str,
    catalog: &Catalog,
    meta: Option<&Arc<Meta>>,
) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let Some((_, tell)) = TABLES.iter().find(|(table, _)| *table == name) else { return Ok(None) };
    let schema = Arc::new(columns(*tell));
    let projects = catalog.projects().map(|project| project.name().to_owned()).collect();
    let kept = Kept { tell: *tell, schema: Arc::clone(&schema), projects, meta: meta.map(Arc::clone) };
    Ok(Some(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(kept)])?)))
}

pub(super) fn columns(tell: Tell) -> Schema {
    Schema::new(tell(&Backtest::default()).fields)
}

struct Kept {
    tell: Tell,
    schema: SchemaRef,
    projects: Vec<String>,
    meta: Option<Arc<Meta>>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("projects", &self.projects).finish_non_exhaustive()
    }
}

impl PartitionStream for Kept {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (tell, schema, meta) = (self.tell, Arc::clone(&self.schema), self.meta.clone());
        let one = move |meta: &Meta, project: &str, id: u64| {
            let Table { columns, .. } = tell(&meta.backtest(project, id).map_err(Error::from).map_err(external)?);
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| external(Error::internal(error)))
        };
        let projects = self.projects.clone().into_iter();
        let batches = projects.flat_map(move |project| -> Box<dyn Iterator<Item = _> + Send> {
            let Some(meta) = meta.clone() else { return Box::new(std::iter::empty()) };
            match meta.backtest_ids(&project) {
                Err(error) => Box::new(std::iter::once(Err(external(Error::from(error))))),
                Ok(ids) => {
                    let one = one.clone();
                    Box::new(ids.into_iter().map(move |id| one(&meta, &project, id)))
                }
            }
        });
        let batches = futures::stream::iter(batches);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

/// A row for each of these, with the backtest and model it is of.
fn of<'b>(backtest: &Backtest, rows: &[(&'b BacktestModel, &'b BacktestScores)]) -> Table {
    let each = || rows.iter().map(|(model, _)| model);
    Table::default()
        .text("project", each().map(|_| backtest.project.clone()))
        .count("backtest", each().map(|_| backtest.id as i64))
        .text("model", each().map(|it| it.model.clone()))
        .version("version", each().map(|it| it.version))
}

fn backtests(backtest: &Backtest) -> Table {
    let rows: Vec<_> = backtest.models.iter().filter_map(|model| Some((model, model.overall.as_ref()?))).collect();
    let each = || rows.iter().map(|(model, _)| model);
    let same = |text: &str| vec![text.to_owned(); rows.len()].into_iter();
    let times = |time_us: i64| vec![time_us; rows.len()].into_iter();
    let table = of(backtest, &rows)
        .text("alias", each().map(|it| it.alias.clone()))
        .text("feature_service", each().map(|it| it.feature_service.clone()))
        .version("feature_service_version", each().map(|it| it.feature_service_version))
        .text("output", each().map(|it| it.output.clone()))
        .text("class", each().map(|it| it.class.clone()))
        .text("label", same(&backtest.label))
        .time("from_at", times(backtest.from_us))
        .time("to_at", times(backtest.to_us))
        .number("window_seconds", rows.iter().map(|_| backtest.window_us as f64 / 1e6))
        .time("known_at", times(backtest.known_us));
    scores(table, &backtest.metrics, &rows)
        .text("spine", same(&backtest.spine.as_ref().map(|spine| hash(&spine.root)).unwrap_or_default()))
        .text("content", same(&hash(&backtest.content)))
        .text("author", same(&backtest.author))
        .text("description", same(&backtest.description))
        .time("created_at", times(backtest.created_us))
}

fn windows(backtest: &Backtest) -> Table {
    let models = backtest.models.iter();
    let rows: Vec<_> = models.flat_map(|model| model.windows.iter().map(move |window| (model, window))).collect();
    let each = || rows.iter().map(|(_, scores)| scores);
    let table = of(backtest, &rows)
        .time("window_from", each().map(|it| it.from_us))
        .time("window_to", each().map(|it| it.to_us));
    scores(table, &backtest.metrics, &rows)
}

fn scores(table: Table, metrics: &[BacktestMetric], rows: &[(&BacktestModel, &BacktestScores)]) -> Table {
    let each = || rows.iter().map(|(_, scores)| scores);
    let positives: Int64Array = each().map(|it| it.positives.map(|positives| positives as i64)).collect();
    let mut table = table
        .count("rows", each().map(|it| it.rows as i64))
        .count("rows_without_score", each().map(|it| it.rows_without_score as i64))
        .column("positives", DataType::Int64, Arc::new(positives));
    let get: [(&str, fn(&BacktestScores) -> Option<f64>); 5] = [
        ("auc", |it| it.auc),
        ("log_loss", |it| it.log_loss),
        ("rmse", |it| it.rmse),
        ("calibration_error", |it| it.calibration_error),
        ("bias", |it| it.bias),
    ];
    for (name, get) in get {
        let values: Float64Array = each().map(|it| get(it)).collect();
        table = table.column(name, DataType::Float64, Arc::new(values));
    }
    // Their names are letters, digits and `_`, so they are JSON as they stand.
    let own = |it: &BacktestScores| {
        let pair = |(metric, value): (&BacktestMetric, Option<f64>)| {
            let value = value.map_or("null".to_owned(), |value| value.to_string());
            format!("\"{}\":{value}", metric.name)
        };
        let values = it.metrics.iter().map(|it| it.value);
        match metrics {
            [] => String::new(),
            _ => format!("{{{}}}", metrics.iter().zip(values).map(pair).collect::<Vec<_>>().join(",")),
        }
    };
    table.text("metrics", each().map(|it| own(it)))
}
