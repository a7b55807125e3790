//! Online features: for each entity row the newest values, or those of a moment asked for.
//!
//! An online read about time T gives what the point-in-time join gives for the same keys at T (rule 18).

#[cfg(test)]
mod tests;

use crate::expr::OnDemandProgram;
use crate::fetch::{self, Keys, Moment, ViewRows};
use crate::plan::{FeaturePlan, Input, Origin};
use crate::source::RowSource;
use crate::status::{self, Status};
use crate::{Error, Result};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use std::sync::Arc;

/// Most entity rows in one online read.
pub const ENTITY_ROWS_MAX: usize = 65_536;

/// What moment an online read is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAt {
    /// The reader's clock.
    pub now_us: i64,
    /// Event time the answer is about; absent = now.
    pub as_of_us: Option<i64>,
    /// Only what was committed by then; absent = all there is.
    pub known_us: Option<i64>,
}

impl ReadAt {
    pub fn now(now_us: i64) -> Self {
        Self { now_us, as_of_us: None, known_us: None }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnlineOptions {
    /// Adds a column `<feature>__status` behind each feature.
    pub statuses: bool,
    /// Fills [`OnlineBatch::details`].
    pub details: bool,
}

/// The answer to an online read.
#[derive(Debug, Clone)]
pub struct OnlineBatch {
    /// As many rows as asked, in that order: the required columns, then the features.
    pub batch: RecordBatch,
    /// One an output feature, in order, when asked for.
    pub details: Option<Vec<FeatureDetail>>,
}

/// Status and time of each row of one feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureDetail {
    pub statuses: Vec<Status>,
    /// Event time of the stored row behind the value; 0 where there is none, and for on-demand features.
    pub event_us: Arc<[i64]>,
}

impl FeaturePlan {
    /// Reads the plan's features for each row of `entities`.
    ///
    /// - `entities`: N rows with the columns of [`Self::required_columns`], in any order; others are ignored
    /// - returns: N rows, same order: the required columns as their declared types, then the features
    ///
    /// A null in a row's key, or an unknown key, gives nulls. A value older than its view's ttl is null.
    /// Cost: one multi-get per view and shard; history is sought only for as-of reads and rows from the future.
    ///
    /// # Errors
    /// `InvalidArgument` for a missing or misfitting column, `TooLarge` above [`ENTITY_ROWS_MAX`] rows, and what the
    /// source reports.
    pub fn read_online(
        &self,
        entities: &RecordBatch,
        at: ReadAt,
        source: &dyn RowSource,
        options: OnlineOptions,
    ) -> Result<OnlineBatch> {
        let rows = entities.num_rows();
        if rows > ENTITY_ROWS_MAX {
            return Err(Error::TooLarge(format!(
                "{rows} entity rows are over the limit of {ENTITY_ROWS_MAX} a read; send several"
            )));
        }
        let required = self.required_of(entities)?;
        let schema = self.output_schema(options.statuses)?;
        let time_us = at.as_of_us.unwrap_or(at.now_us);
        let moment = Moment { event_us: time_us, created_us: time_us };
        let keys = self.encode_keys(&required)?;
        let mut views = Vec::with_capacity(self.views.len());
        for view in &self.views {
            let keys = keys.get(view.key_set).ok_or_else(|| Error::internal("a view without keys"))?;
            views.push(if at.as_of_us.is_none() && at.known_us.is_none() {
                fetch::newest(view, keys, rows, moment, options.details, source)?
            } else {
                let known_us = at.known_us.unwrap_or(i64::MAX);
                fetch::as_of(view, keys, rows, |_| Some(moment), known_us, options.details, source)?
            });
        }
        let features = Features::compute(self, rows, &required, views)?;
        let mut columns = required;
        features.append(self, options.statuses, &mut columns);
        let exact = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(schema, columns, &exact).map_err(Error::internal)?;
        let details = options.details.then(|| features.details(self, rows));
        Ok(OnlineBatch { batch, details })
    }

    pub(crate) fn encode_keys(&self, required: &[ArrayRef]) -> Result<Vec<Keys>> {
        self.key_sets.iter().map(|set| Keys::encode(self, set, required)).collect()
    }
}

/// All columns of a request: what views gave, and what on-demand programs made of it.
pub(crate) struct Features {
    views: Vec<ViewRows>,
    on_demand: Vec<Vec<ArrayRef>>,
}

impl Features {
    pub fn compute(plan: &FeaturePlan, rows: usize, required: &[ArrayRef], views: Vec<ViewRows>) -> Result<Self> {
        let mut on_demand = Vec::with_capacity(plan.on_demand.len());
        for view in &plan.on_demand {
            let column = |input: &Input| match input {
                Input::Feature { view, column } => views.get(*view)?.columns.get(*column).cloned(),
                Input::Required(at) => required.get(*at).cloned(),
            };
            let inputs: Option<Vec<ArrayRef>> = view.inputs.iter().map(column).collect();
            let inputs = inputs
                .ok_or_else(|| Error::internal(format!("on-demand feature view `{}` misses an input", view.name)))?;
            on_demand.push(evaluate(&view.program, rows, inputs)?);
        }
        Ok(Self { views, on_demand })
    }

    /// The feature columns, each followed by its status if asked, behind those of `columns`.
    pub fn append(&self, plan: &FeaturePlan, statuses: bool, columns: &mut Vec<ArrayRef>) {
        for output in &plan.outputs {
            let Some(values) = self.values(output.origin) else { continue };
            columns.push(Arc::clone(values));
            if statuses {
                columns.push(match output.origin {
                    Origin::Feature { view, .. } => status::column(status::of_feature(self.rows_of(view), values)),
                    Origin::OnDemand { .. } => status::column(status::of_on_demand(values)),
                });
            }
        }
    }

    fn details(&self, plan: &FeaturePlan, rows: usize) -> Vec<FeatureDetail> {
        let none: Arc<[i64]> = vec![0; rows].into();
        let times: Vec<Arc<[i64]>> = self.views.iter().map(|view| view.event_us.as_slice().into()).collect();
        let detail = |origin: Origin| {
            let values = self.values(origin)?;
            Some(match origin {
                Origin::Feature { view, .. } => FeatureDetail {
                    statuses: status::of_feature(self.rows_of(view), values).collect(),
                    event_us: Arc::clone(times.get(view).unwrap_or(&none)),
                },
                Origin::OnDemand { .. } => {
                    FeatureDetail { statuses: status::of_on_demand(values).collect(), event_us: Arc::clone(&none) }
                }
            })
        };
        plan.outputs.iter().filter_map(|output| detail(output.origin)).collect()
    }

    fn rows_of(&self, view: usize) -> &[status::RowStatus] {
        self.views.get(view).map_or(&[], |view| &view.status)
    }

    fn values(&self, origin: Origin) -> Option<&ArrayRef> {
        match origin {
            Origin::Feature { view, column } => self.views.get(view)?.columns.get(column),
            Origin::OnDemand { view, column } => self.on_demand.get(view)?.get(column),
        }
    }
}

fn evaluate(program: &OnDemandProgram, rows: usize, inputs: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    let exact = RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(Arc::clone(program.input_schema()), inputs, &exact);
    program.evaluate(&batch.map_err(Error::internal)?)
}
