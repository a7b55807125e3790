//! Backtests: model versions over the past, each row of a spine with the features known at its own time, all models at one
//! moment that no later write can change. What comes out is kept as evidence.
//!
//! In reading order: [`Setup`] (what is asked, resolved and checked before a row comes), `spine` (rows in), [`Run`] (join and
//! scores, chunk by chunk), `scores` (which number of an answer is the score), `metrics` (how good scores were).
//!
//! Always true: the same spine, interval, versions and moment give the same scores, bit for bit, on the same kind of machine;
//! and whatever was scored to its end is recorded.

mod metrics;
mod scores;
mod spine;

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::predict::{hex, load, unhex};
use crate::sql::{aggregate, behind};
use crate::{artifacts, datasets, features, meta_write};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use cairn_executor::Model;
use cairn_proto::ErrorKind;
use cairn_proto::command::{Backtest, BacktestModel, Level, Read, ReadReply};
use cairn_proto::record::v1::{self as record, meta_command::Change, meta_outcome::Outcome};
use cairn_query::historical::{CreatedCutoff, HistoricalOptions};
use cairn_query::plan::FeaturePlan;
use cairn_query::sql::{Aggregate, Aggregated, GROUP};
use cairn_storage::catalog::Project;
use cairn_storage::meta::{
    BACKTEST_METRICS_MAX, BACKTEST_MODELS_MAX, BACKTEST_WINDOWS_MAX, backtest_windows, check_column_name,
};
use metrics::{Kind, Metrics};
use scores::Choice;
use spine::Spine;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Rows that one model scores at a time: few, so that predictions which somebody waits for come in between.
const SCORED_ROWS: usize = 2_048;
/// What a backtest holds of its rows: times, labels and scores, and the spine's columns where they are asked for. Measuring
/// takes up to 64 bytes a row more, for one model after the other.
const HELD_BYTES_MAX: usize = 1 << 30;
/// Rows that are sent back in one message.
const PART_BYTES: usize = 8 << 20;
/// How long it waits in all for an executor that is overloaded.
const OVERLOAD_MAX: Duration = Duration::from_secs(60);
/// Between two tries; doubled from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// Names of metrics that are always there, and of columns they are computed from.
const TAKEN_NAMES: [&str; 9] =
    ["rows", "rows_without_score", "positives", "auc", "log_loss", "rmse", "calibration_error", "bias", "windows"];

/// A model version that takes part.
struct Contender {
    /// `name@version`: as messages and columns call it.
    name: String,
    version: Arc<record::ModelVersion>,
    /// It was named by.
    alias: String,
    plan: Arc<FeaturePlan>,
    model: Arc<Model>,
    choice: Choice,
}

/// A backtest that was understood.
pub struct Setup {
    ask: Backtest,
    contenders: Vec<Contender>,
    windows: Vec<(i64, i64)>,
    window_us: i64,
    spine: record::BlobRef,
    known_us: i64,
    aggregates: Vec<Aggregate>,
}

impl Setup {
    /// Finds the models with what they read, and the moment of all of it.
    ///
    /// # Errors
    /// `NotFound` for a model, version, alias or artifact that is not there; `InvalidArgument` for an interval, windows,
    /// models or metrics that do not fit together; `ReadOnly`; `Timeout` or `Unavailable` when a shard has no leader.
    pub async fn resolve(node: &Arc<Node>, ask: Backtest) -> Result<Self> {
        node.writes.check()?;
        let (windows, window_us) = windows(&ask)?;
        let aggregates = aggregates(&ask)?;
        let catalog = node.fresh_catalog().await?;
        let project = catalog.project(&ask.project)?;
        let mut contenders: Vec<Contender> = Vec::with_capacity(ask.models.len());
        for asked in &ask.models {
            let contender = Contender::resolve(node, asked, version_of(project, asked)?).await?;
            if let Some(twin) = contenders.iter().find(|it| it.name == contender.name) {
                return Err(Error::invalid(format!(
                    "`{}` and `{}` are the same model version, `{}`; compare different ones",
                    twin.asked(),
                    contender.asked(),
                    twin.name
                )));
            }
            contenders.push(contender);
        }
        let spine = artifacts::describe(node, unhex(&ask.spine_root)?).await?;
        let known_us = datasets::pin_moment(node, ask.known_as_of.map(|at| at.0)).await?;
        // What was committed by that moment, also just before it was pinned, is here before the first row is joined.
        node.ensure(&Read { level: Level::Linearizable, ..Read::default() }, 0..=node.shard_count()).await?;
        Ok(Self { ask, contenders, windows, window_us, spine, known_us, aggregates })
    }

    /// Begins to take a spine with the columns of `schema`.
    ///
    /// # Errors
    /// `InvalidArgument` or `NotFound` naming the column that is missing, of a wrong type, or in the way of another; or the
    /// metric that does not fit the spine.
    pub async fn begin(self, node: &Arc<Node>, schema: &SchemaRef) -> Result<Run> {
        let whole = self.ask.predictions || !self.aggregates.is_empty();
        let mut needed = BTreeSet::new();
        for contender in &self.contenders {
            needed.extend(contender.plan.required_columns().iter().map(|column| column.field.name.clone()));
            // Says what is missing, and of which type it must be.
            let readable = readable(&contender.plan, schema);
            contender.plan.historical(&readable, self.join_options(&self.ask.event_timestamp, None))?;
            if self.ask.predictions && schema.field_with_name(&contender.name).is_ok() {
                let name = &contender.name;
                return Err(Error::invalid(format!(
                    "the spine has a column `{name}`, and the scores of that model go there; rename it"
                )));
            }
        }
        let spine = Spine::new(&self.ask, schema, if whole { None } else { Some(&needed) })?;
        let run = Run {
            joining: None,
            held_bytes: 0,
            times: Vec::new(),
            labels: Vec::new(),
            scores: vec![Vec::new(); self.contenders.len()],
            held: Vec::new(),
            columns: whole.then(|| Arc::clone(schema)),
            patience: OVERLOAD_MAX,
            hasher: blake3::Hasher::new(),
            spine,
            setup: self,
        };
        if !run.setup.aggregates.is_empty() {
            // Wrong ones are told of before a row is scored.
            let empty = run.aggregated_rows(0)?;
            aggregate(node, run.setup.aggregates.clone(), empty.0, empty.1).await?;
        }
        Ok(run)
    }

    fn join_options(&self, event_timestamp: &str, known_us: Option<i64>) -> HistoricalOptions {
        HistoricalOptions {
            event_timestamp: event_timestamp.to_owned(),
            known_us,
            created: CreatedCutoff::SpineTime,
            statuses: false,
        }
    }
}

impl Contender {
    async fn resolve(node: &Arc<Node>, asked: &BacktestModel, version: &Arc<record::ModelVersion>) -> Result<Self> {
        let name = format!("{}@{}", version.model, version.version);
        let plan = plan_of(node, version)?;
        let model = load(node, version).await?;
        // What it answers with, before any row has come.
        let answer = node.executor.run(&model, features::blank_row(&plan)?).await?;
        let choice = scores::choose(&name, answer.schema_ref(), asked.output.as_deref(), asked.class.as_deref())?;
        let alias = asked.alias.clone().unwrap_or_default();
        Ok(Self { name, version: Arc::clone(version), alias, plan, model, choice })
    }

    /// As it was asked for.
    fn asked(&self) -> String {
        match self.alias.as_str() {
            "" => self.name.clone(),
            alias => format!("{}:{alias}", self.version.model),
        }
    }

    /// The score of each row, from its features.
    async fn score(
        &self,
        node: &Arc<Node>,
        features: &RecordBatch,
        patience: Duration,
    ) -> Result<(Vec<f64>, Duration)> {
        let mut scores = Vec::with_capacity(features.num_rows());
        let mut left = patience;
        let mut start = 0;
        while start < features.num_rows() {
            let rows = features.slice(start, SCORED_ROWS.min(features.num_rows() - start));
            let mut pause = PAUSES[0];
            let answer = loop {
                match node.executor.run_alone(&self.model, rows.clone()).await {
                    Err(cairn_executor::RunError::Overloaded { .. }) if !left.is_zero() => {
                        tokio::time::sleep(pause.min(left)).await;
                        left = left.saturating_sub(pause);
                        pause = (pause * 2).min(PAUSES[1]);
                    }
                    Err(error) => {
                        let error = Error::from(error);
                        return Err(Error::new(error.kind, format!("model `{}`: {}", self.name, error.message)));
                    }
                    Ok(answer) => break answer,
                }
            };
            scores.extend(self.choice.take(&self.name, &answer)?);
            start += rows.num_rows();
        }
        Ok((scores, left))
    }
}

/// What models read, by plan, in the making.
type Joining = tokio::task::JoinHandle<Result<Vec<(Arc<FeaturePlan>, RecordBatch)>>>;

/// A backtest that takes rows.
pub struct Run {
    setup: Setup,
    spine: Spine,
    /// The last chunk, which is not scored yet.
    joining: Option<(RecordBatch, Joining)>,
    times: Vec<i64>,
    labels: Vec<f64>,
    /// Of each model.
    scores: Vec<Vec<f64>>,
    /// The spine's columns, where they are asked for.
    held: Vec<RecordBatch>,
    columns: Option<SchemaRef>,
    held_bytes: usize,
    patience: Duration,
    hasher: blake3::Hasher,
}

impl Run {
    /// Of the spine that has come: scored or left out.
    pub fn rows_done(&self) -> u64 {
        self.times.len() as u64 + self.spine.counts.outside + self.spine.counts.unlabelled
    }

    /// Takes the next rows, and scores them once they make a chunk.
    ///
    /// # Errors
    /// What the spine, the join or a model refuse; `TooLarge` over [`HELD_BYTES_MAX`]; `Overloaded`.
    pub async fn push(&mut self, node: &Arc<Node>, batch: RecordBatch) -> Result<()> {
        self.spine.push(&batch)?;
        while let Some(chunk) = self.spine.chunk() {
            self.take(node, chunk).await?;
        }
        Ok(())
    }

    /// Begins to join a chunk, and scores the one before meanwhile.
    async fn take(&mut self, node: &Arc<Node>, chunk: RecordBatch) -> Result<()> {
        let joining = self.join(node, &chunk)?;
        match self.joining.replace((chunk, joining)) {
            Some((chunk, joined)) => self.score(node, chunk, joined).await,
            None => Ok(()),
        }
    }

    async fn score(&mut self, node: &Arc<Node>, chunk: RecordBatch, joined: Joining) -> Result<()> {
        let joined = joined.await.map_err(|error| Error::internal(format!("the join stopped: {error}")))??;
        let features = self.setup.contenders.iter().map(|contender| {
            let found = joined.iter().find(|(plan, _)| Arc::ptr_eq(plan, &contender.plan));
            found.map(|(_, features)| features).ok_or_else(|| Error::internal("features got lost"))
        });
        let features: Vec<&RecordBatch> = features.collect::<Result<_>>()?;
        let patience = self.patience;
        let contenders = self.setup.contenders.iter().zip(&features);
        let scored = contenders.map(|(contender, features)| contender.score(node, features, patience));
        let scored = futures::future::try_join_all(scored).await?;
        let (times, labels) = spine::times_and_labels(&chunk)?;
        for row in 0..chunk.num_rows() {
            self.hasher.update(&times.value(row).to_le_bytes());
            self.hasher.update(&labels.value(row).to_le_bytes());
            for (scores, _) in &scored {
                let score = scores.get(row).copied().filter(|score| score.is_finite()).unwrap_or(f64::NAN);
                self.hasher.update(&score.to_le_bytes());
            }
        }
        self.times.extend(times.values());
        self.labels.extend(labels.values());
        for (all, (scores, left)) in self.scores.iter_mut().zip(scored) {
            if scores.len() != chunk.num_rows() {
                return Err(Error::internal("a model gave another number of scores than rows"));
            }
            all.extend(scores);
            self.patience = self.patience.min(left);
        }
        self.held_bytes += chunk.num_rows() * 8 * (2 + self.scores.len());
        if self.columns.is_some() {
            self.held_bytes += chunk.get_array_memory_size();
            self.held.push(chunk);
        }
        if self.held_bytes > HELD_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the backtest holds {} rows, over the limit of {} MiB; take a shorter interval, or a spine without \
                     columns that neither models nor metrics need",
                    self.times.len(),
                    HELD_BYTES_MAX >> 20
                ),
            ));
        }
        Ok(())
    }

    /// What each model reads, for each row. Models with the same service share the join.
    fn join(&self, node: &Arc<Node>, chunk: &RecordBatch) -> Result<Joining> {
        let mut inputs: Vec<(Arc<FeaturePlan>, RecordBatch)> = Vec::new();
        for Contender { plan, .. } in &self.setup.contenders {
            if !inputs.iter().any(|(known, _)| Arc::ptr_eq(known, plan)) {
                inputs.push((Arc::clone(plan), join_input(plan, chunk)?));
            }
        }
        let options = self.setup.join_options(spine::TIME, Some(self.setup.known_us));
        let source = Arc::clone(&node.source);
        Ok(tokio::spawn(behind(Arc::clone(node), move || {
            let one = |(plan, input): (Arc<FeaturePlan>, RecordBatch)| {
                let before = input.num_columns();
                let (schema, parts) = plan.join_historical(&[input], options.clone(), source.as_ref())?;
                let only: Vec<usize> = (before..schema.fields().len()).collect();
                let all = arrow_select::concat::concat_batches(&schema, &parts);
                let features = all.and_then(|all| all.project(&only));
                Ok((plan, features.map_err(|error| Error::internal(error.to_string()))?))
            };
            inputs.into_iter().map(one).collect()
        })))
    }

    /// Scores what is left, measures, and records. The evidence is without its windows then.
    ///
    /// # Errors
    /// As [`Self::push`]; `InvalidArgument` when there was no row to score; what the state machine refuses.
    pub async fn finish(&mut self, node: &Arc<Node>) -> Result<record::Backtest> {
        while let Some(chunk) = self.spine.last_chunk()? {
            self.take(node, chunk).await?;
        }
        if let Some((chunk, joined)) = self.joining.take() {
            self.score(node, chunk, joined).await?;
        }
        let mut models = Vec::with_capacity(self.scores.len());
        for at in 0..self.scores.len() {
            models.push(self.measure(node, at).await?);
        }
        let content = self.hasher.finalize();
        let mut reply = ReadReply::default();
        node.seen(&mut reply);
        let Setup { ask, spine, known_us, window_us, .. } = &self.setup;
        let metrics = ask.metrics.iter();
        let metrics = metrics.map(|it| record::BacktestMetric { name: it.name.clone(), sql: it.sql.clone() });
        let backtest = record::Backtest {
            project: ask.project.clone(),
            models,
            from_us: ask.from.0,
            to_us: ask.to.0,
            window_us: *window_us,
            label: ask.label.clone(),
            event_timestamp: ask.event_timestamp.clone(),
            spine: Some(spine.clone()),
            spine_file: ask.spine_file.clone(),
            known_us: *known_us,
            skip_null_labels: ask.skip_null_labels,
            rows: self.times.len() as u64,
            rows_outside: self.spine.counts.outside,
            rows_unlabelled: self.spine.counts.unlabelled,
            content: content.as_bytes().to_vec().into(),
            metrics: metrics.collect(),
            token: reply.token,
            author: ask.author.clone(),
            description: ask.description.clone(),
            ..record::Backtest::default()
        };
        let change = Change::RecordBacktest(record::RecordBacktest { backtest: Some(backtest) });
        // Sent again if need be, and recorded once.
        let request = format!("backtest-{}-{}-{}", node.cluster.node_id(), now_us(), hex(content.as_bytes()));
        match meta_write::propose(node, change, request).await? {
            (Outcome::BacktestRecorded(recorded), _) => {
                node.metrics.backtested(recorded.rows);
                tracing::info!(backtest = recorded.id, rows = recorded.rows, "a backtest is recorded");
                Ok(recorded)
            }
            _ => Err(Error::internal("a backtest was answered with something else")),
        }
    }

    /// How one model did, over all and in each window.
    async fn measure(&self, node: &Arc<Node>, at: usize) -> Result<record::BacktestModel> {
        let contender = self.setup.contenders.get(at).ok_or_else(|| Error::internal("a model got lost"))?;
        let aggregated = if self.setup.aggregates.is_empty() {
            Aggregated::default()
        } else {
            let (schema, rows) = self.aggregated_rows(at)?;
            aggregate(node, self.setup.aggregates.clone(), schema, rows).await?
        };
        let (from_us, to_us) = (self.setup.ask.from.0, self.setup.ask.to.0);
        let scores = self.scores.get(at).ok_or_else(|| Error::internal("scores got lost"))?;
        let rows: Vec<(f64, f64)> = self.labels.iter().copied().zip(scores.iter().copied()).collect();
        let places: Vec<u32> = self.times.iter().map(|time_us| self.window_of(*time_us)).collect();
        let (kind, windows) = (Kind::of(&self.labels, scores), self.setup.windows.clone());
        let none = vec![None; self.setup.aggregates.len()];
        let measured = behind(Arc::clone(node), move || {
            let overall = Metrics::of(kind, rows.iter().copied());
            let mut by_window: Vec<Vec<(f64, f64)>> = vec![Vec::new(); windows.len()];
            for (place, row) in places.into_iter().zip(rows) {
                if let Some(window) = by_window.get_mut(place as usize) {
                    window.push(row);
                }
            }
            let each = windows.into_iter().zip(by_window).zip(0u32..);
            let each = each.map(|((window, rows), place)| {
                let group = aggregated.groups.iter().find(|(group, _)| *group == place);
                let values = group.map_or(&none, |(_, values)| values);
                scores_of(window, Metrics::of(kind, rows.into_iter()), values)
            });
            let each: Vec<_> = each.collect();
            Ok((scores_of((from_us, to_us), overall, &aggregated.all), each))
        });
        let (overall, windows) = measured.await?;
        let version = &contender.version;
        Ok(record::BacktestModel {
            model: version.model.clone(),
            version: version.version,
            alias: contender.alias.clone(),
            feature_service: version.feature_service.clone(),
            feature_service_version: version.feature_service_version,
            output: contender.choice.output.clone(),
            class: contender.choice.class.clone(),
            overall: Some(overall),
            windows,
        })
    }

    fn window_of(&self, time_us: i64) -> u32 {
        let past = time_us.saturating_sub(self.setup.ask.from.0) / self.setup.window_us.max(1);
        u32::try_from(past).unwrap_or(u32::MAX)
    }

    /// The rows that metrics in SQL are of: the spine's columns, `label`, `prediction` of a model, and the window.
    fn aggregated_rows(&self, at: usize) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        const OURS: [&str; 2] = ["label", "prediction"];
        let internal = |error: arrow_schema::ArrowError| Error::internal(error.to_string());
        let chunk_schema = self.spine.chunk_schema();
        let hidden = [spine::TIME, spine::LABEL, OURS[0], OURS[1]];
        let shown: Vec<usize> = (0..chunk_schema.fields().len())
            .filter(|at| !hidden.contains(&chunk_schema.field(*at).name().as_str()))
            .collect();
        let mut fields: Vec<Arc<Field>> = chunk_schema.project(&shown).map_err(internal)?.fields().to_vec();
        fields.push(Arc::new(Field::new(GROUP, DataType::UInt32, false)));
        fields.push(Arc::new(Field::new(OURS[0], DataType::Float64, false)));
        fields.push(Arc::new(Field::new(OURS[1], DataType::Float64, true)));
        let schema = Arc::new(Schema::new(fields));
        let mut scores = self.scores.get(at).map(Vec::as_slice).unwrap_or_default();
        let mut rows = Vec::with_capacity(self.held.len());
        for chunk in &self.held {
            let (times, labels) = spine::times_and_labels(chunk)?;
            let (here, rest) = scores.split_at_checked(chunk.num_rows()).unwrap_or((scores, &[]));
            scores = rest;
            let mut columns = chunk.project(&shown).map_err(internal)?.columns().to_vec();
            columns.push(Arc::new(times.values().iter().map(|at| self.window_of(*at)).collect::<UInt32Array>()));
            columns.push(Arc::new(labels));
            let finite = here.iter().map(|score| Some(*score).filter(|score| score.is_finite()));
            columns.push(Arc::new(finite.collect::<Float64Array>()));
            rows.push(RecordBatch::try_new(Arc::clone(&schema), columns).map_err(internal)?);
        }
        Ok((schema, rows))
    }

    /// The columns of what [`Self::predictions`] gives: those of the spine, then one of scores for each model. None where
    /// they are not asked for.
    pub fn predictions_schema(&self) -> SchemaRef {
        let Some(spine) = self.columns.as_ref().filter(|_| self.setup.ask.predictions) else {
            return Arc::new(Schema::empty());
        };
        let mut fields = spine.fields().to_vec();
        let score = |contender: &Contender| Arc::new(Field::new(&contender.name, DataType::Float64, true));
        fields.extend(self.setup.contenders.iter().map(score));
        Arc::new(Schema::new(fields))
    }

    /// The rows that were scored, with their scores; null where a model gave no finite number.
    ///
    /// # Errors
    /// `Internal` when rows and scores do not fit.
    pub fn predictions(&self) -> impl Iterator<Item = Result<RecordBatch>> + '_ {
        let schema = self.predictions_schema();
        let held: &[RecordBatch] = if self.setup.ask.predictions { &self.held } else { &[] };
        let mut start = 0;
        // Rows that are long go in parts, each a message.
        let parts = held.iter().flat_map(|chunk| {
            let parts = chunk.get_array_memory_size().div_ceil(PART_BYTES);
            let rows = chunk.num_rows().div_ceil(parts.max(1)).max(1);
            (0..chunk.num_rows()).step_by(rows).map(move |at| chunk.slice(at, rows.min(chunk.num_rows() - at)))
        });
        parts.map(move |part| {
            let mut columns: Vec<ArrayRef> = part.columns().to_vec();
            columns.truncate(part.num_columns().saturating_sub(2));
            let end = start + part.num_rows();
            for scores in &self.scores {
                let here = scores.get(start..end).ok_or_else(|| Error::internal("scores got lost"))?;
                let finite = here.iter().map(|score| Some(*score).filter(|score| score.is_finite()));
                columns.push(Arc::new(finite.collect::<Float64Array>()));
            }
            start = end;
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| Error::internal(error.to_string()))
        })
    }
}

/// The columns of a spine but those that a feature is called by: the join does not see these.
fn readable(plan: &FeaturePlan, spine: &Schema) -> Schema {
    let is_required = |name: &str| plan.required_columns().iter().any(|column| column.field.name == name);
    let is_feature = |name: &str| plan.outputs().iter().any(|output| output.name == name);
    let fields = spine.fields().iter().filter(|field| is_required(field.name()) || !is_feature(field.name()));
    Schema::new(fields.cloned().collect::<Vec<_>>())
}

/// Columns that the spine of a backtest must have, with their types: join keys and request data of all its models.
///
/// # Errors
/// As [`Setup::resolve`] of models that are not there, or read nothing.
pub async fn required_schema(node: &Arc<Node>, ask: &Backtest) -> Result<Schema> {
    let catalog = node.fresh_catalog().await?;
    let project = catalog.project(&ask.project)?;
    let mut fields: Vec<Arc<Field>> = Vec::new();
    for asked in &ask.models {
        let plan = plan_of(node, version_of(project, asked)?)?;
        for field in plan.required_schema().fields() {
            if fields.iter().all(|known| known.name() != field.name()) {
                fields.push(Arc::clone(field));
            }
        }
    }
    Ok(Schema::new(fields))
}

fn version_of<'c>(project: &'c Project, asked: &BacktestModel) -> Result<&'c Arc<record::ModelVersion>> {
    match (asked.version, &asked.alias) {
        (Some(version), None) => Ok(project.model_version(&asked.model, version)?),
        (None, Some(alias)) => Ok(project.alias(&asked.model, alias)?),
        _ => Err(Error::invalid(format!(
            "model `{}` of a backtest needs a `version` or an `alias`, one of them",
            asked.model
        ))),
    }
}

fn plan_of(node: &Arc<Node>, version: &record::ModelVersion) -> Result<Arc<FeaturePlan>> {
    let record::ModelVersion { project, feature_service, feature_service_version, .. } = version;
    if feature_service.is_empty() {
        return Err(Error::invalid(format!(
            "model version `{}@{}` was registered without a feature service, so nothing says what it reads; register it \
             with --service",
            version.model, version.version
        )));
    }
    features::service_plan(node, project, feature_service, *feature_service_version)
}

/// What a join reads of a chunk: the required columns, and the time.
fn join_input(plan: &FeaturePlan, chunk: &RecordBatch) -> Result<RecordBatch> {
    let lost = |name: &str| Error::internal(format!("column `{name}` got lost"));
    let mut columns = Vec::with_capacity(plan.required_columns().len() + 1);
    for required in plan.required_columns() {
        let name = required.field.name.as_str();
        columns.push((name, Arc::clone(chunk.column_by_name(name).ok_or_else(|| lost(name))?)));
    }
    let (times, _) = spine::times_and_labels(chunk)?;
    let times: TimestampMicrosecondArray = times.values().iter().map(|time_us| Some(*time_us)).collect();
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .chain([Field::new(spine::TIME, DataType::Timestamp(TimeUnit::Microsecond, None), true)])
        .collect();
    let columns: Vec<ArrayRef> = columns.into_iter().map(|(_, column)| column).chain([Arc::new(times) as _]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| Error::internal(error.to_string()))
}

fn scores_of(window: (i64, i64), found: Metrics, values: &[Option<f64>]) -> record::BacktestScores {
    record::BacktestScores {
        from_us: window.0,
        to_us: window.1,
        rows: found.rows,
        rows_without_score: found.rows_without_score,
        positives: found.positives,
        auc: found.auc,
        log_loss: found.log_loss,
        rmse: found.rmse,
        calibration_error: found.calibration_error,
        bias: found.bias,
        metrics: values.iter().map(|value| record::BacktestValue { value: *value }).collect(),
    }
}

/// The windows that are asked for, and their length.
fn windows(ask: &Backtest) -> Result<(Vec<(i64, i64)>, i64)> {
    let models = ask.models.len();
    if models == 0 || models > BACKTEST_MODELS_MAX {
        return Err(Error::invalid(format!(
            "a backtest takes 1 to {BACKTEST_MODELS_MAX} model versions, and {models} are named"
        )));
    }
    let (from, to) = (ask.from, ask.to);
    let Some(length_us) = to.0.checked_sub(from.0).filter(|length| *length > 0) else {
        return Err(Error::invalid(format!(
            "nothing is from {from} to before {to}; the interval must end after it begins"
        )));
    };
    let window_us = ask.window_us.unwrap_or(length_us);
    let seconds = |us: i64| format!("{} s", us as f64 / 1e6);
    let Some(windows) = backtest_windows(from.0, to.0, window_us) else {
        return Err(Error::invalid(format!(
            "windows of {} do not fit an interval of {}; they are at least 1 µs long and not longer than that",
            seconds(window_us),
            seconds(length_us)
        )));
    };
    if windows.is_empty() || windows.len() * models > BACKTEST_WINDOWS_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "{} windows for {models} models are over the limit of {BACKTEST_WINDOWS_MAX} in all; take longer windows",
                (length_us - 1) / window_us + 1
            ),
        ));
    }
    Ok((windows, window_us))
}

fn aggregates(ask: &Backtest) -> Result<Vec<Aggregate>> {
    if ask.metrics.len() > BACKTEST_METRICS_MAX {
        return Err(Error::invalid(format!("a backtest takes at most {BACKTEST_METRICS_MAX} metrics of its own")));
    }
    let mut seen = BTreeSet::from(TAKEN_NAMES);
    for metric in &ask.metrics {
        check_column_name("a metric", &metric.name)?;
        if !seen.insert(metric.name.as_str()) {
            return Err(Error::invalid(format!("there is a metric `{}` already; choose another name", metric.name)));
        }
    }
    let metrics = ask.metrics.iter();
    Ok(metrics.map(|metric| Aggregate { name: metric.name.clone(), sql: metric.sql.clone() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::time::Timestamp;
    use expect_test::expect;

    fn ask(models: usize, from: i64, to: i64, window_us: Option<i64>) -> Backtest {
        let models = vec![BacktestModel::default(); models];
        let text = r#"{"models":[],"from":0,"to":0,"label":"late","spine_root":"","spine_file":""}"#;
        let empty: Backtest = serde_json::from_str(text).unwrap();
        Backtest { models, from: Timestamp(from), to: Timestamp(to), window_us, ..empty }
    }

    #[test]
    fn intervals_and_windows_are_checked_before_anything_else() {
        assert_eq!(windows(&ask(2, 0, 10, None)).unwrap(), (vec![(0, 10)], 10));
        assert_eq!(windows(&ask(1, 0, 10, Some(6))).unwrap(), (vec![(0, 6), (6, 10)], 6));
        let mut said = String::new();
        for (models, from, to, window) in [
            (0, 0, 10, None),
            (9, 0, 10, None),
            (1, 10, 10, None),
            (1, 11, 10, None),
            (1, i64::MIN, i64::MAX, None),
            (1, 0, 10, Some(11)),
            (1, 0, 10, Some(0)),
            (1, 0, 10, Some(-1)),
            (2, 0, 2_001, Some(1)),
            (1, 0, i64::MAX, Some(1)),
        ] {
            let error = windows(&ask(models, from, to, window)).unwrap_err();
            said += &format!("{}: {error}\n", error.kind);
        }
        expect![[r#"
            invalid_argument: a backtest takes 1 to 8 model versions, and 0 are named
            invalid_argument: a backtest takes 1 to 8 model versions, and 9 are named
            invalid_argument: nothing is from 1970-01-01T00:00:00.00001Z to before 1970-01-01T00:00:00.00001Z; the interval must end after it begins
            invalid_argument: nothing is from 1970-01-01T00:00:00.000011Z to before 1970-01-01T00:00:00.00001Z; the interval must end after it begins
            invalid_argument: nothing is from -9223372036854775808us to before 9223372036854775807us; the interval must end after it begins
            invalid_argument: windows of 0.000011 s do not fit an interval of 0.00001 s; they are at least 1 µs long and not longer than that
            invalid_argument: windows of 0 s do not fit an interval of 0.00001 s; they are at least 1 µs long and not longer than that
            invalid_argument: windows of -0.000001 s do not fit an interval of 0.00001 s; they are at least 1 µs long and not longer than that
            too_large: 2001 windows for 2 models are over the limit of 4000 in all; take longer windows
            too_large: 9223372036854775807 windows for 1 models are over the limit of 4000 in all; take longer windows
        "#]].assert_eq(&said);
    }

    #[test]
    fn metrics_have_names_of_their_own() {
        let with = |names: &[&str]| {
            let metric =
                |name: &&str| cairn_proto::command::BacktestMetric { name: (*name).to_owned(), sql: "1".into() };
            aggregates(&Backtest { metrics: names.iter().map(metric).collect(), ..ask(1, 0, 1, None) })
        };
        assert_eq!(with(&["mae", "rate"]).unwrap().len(), 2);
        for names in [&["mae", "mae"][..], &["auc"], &["a b"], &["m"; 17]] {
            assert_eq!(with(names).unwrap_err().kind, ErrorKind::InvalidArgument, "{names:?}");
        }
    }
}
