//! The point-in-time join: each row of a spine with the values that were known at its own time.
//!
//! For a spine row at time T the answer of a view is its row with event time E ≤ T, created time within the cutoff (by
//! default ≤ T) and commit time within `known_us`; among those the greatest (E, created, commit). It answers as a
//! whole: a null in it stays null, and a deletion is no row. It is too old when T − E exceeds the view's ttl. Every spine row comes back exactly
//! once, in order, with its own columns untouched.

#[cfg(test)]
pub(crate) mod oracle;
#[cfg(test)]
mod tests;

use crate::coerce;
use crate::fetch::{self, Moment};
use crate::online::Features;
use crate::plan::FeaturePlan;
use crate::source::{RowSource, settled};
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow_schema::{Schema, SchemaRef};
use cairn_proto::command::EVENT_TIMESTAMP;
use std::sync::Arc;
use std::time::Duration;

/// Most rows of a spine.
pub const SPINE_ROWS_MAX: u64 = 10_000_000;

/// How long a batch of a join waits for slots that are between two shards here.
const MOVING_MAX: Duration = Duration::from_secs(10);

/// Rows joined at a time, so that memory does not grow with the spine.
pub const BATCH_ROWS: usize = 32_768;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoricalOptions {
    /// Spine column with the time of each row.
    pub event_timestamp: String,
    /// Only what was committed by then; absent = all there is.
    pub known_us: Option<i64>,
    pub created: CreatedCutoff,
    /// Adds a column `<feature>__status` behind each feature.
    pub statuses: bool,
}

impl Default for HistoricalOptions {
    fn default() -> Self {
        let event_timestamp = EVENT_TIMESTAMP.to_owned();
        Self { event_timestamp, known_us: None, created: CreatedCutoff::default(), statuses: false }
    }
}

/// Which corrections count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CreatedCutoff {
    /// Those their source had made by the spine row's own time: nothing leaks from the future.
    #[default]
    SpineTime,
    /// Those made by one time, for all rows.
    At(i64),
    /// All of them.
    Off,
}

/// A join under way. Make one with [`FeaturePlan::historical`].
#[derive(Debug)]
pub struct HistoricalJoin<'p> {
    plan: &'p FeaturePlan,
    options: HistoricalOptions,
    spine: SchemaRef,
    output: SchemaRef,
    rows: u64,
}

impl FeaturePlan {
    /// Starts a join of spines of schema `spine`.
    ///
    /// # Errors
    /// `InvalidArgument` when a required column or the time column is missing, or when a feature would take the name of
    /// a spine column.
    pub fn historical(&self, spine: &Schema, options: HistoricalOptions) -> Result<HistoricalJoin<'_>> {
        let output = self.schema_after(spine, options.statuses)?;
        let spine = Arc::new(spine.clone());
        let join = HistoricalJoin { plan: self, options, spine, output, rows: 0 };
        // An empty spine meets the same checks of columns and types as a full one.
        let empty = RecordBatch::new_empty(Arc::clone(&join.spine));
        join.plan.required_of(&empty)?;
        join.times(&empty)?;
        Ok(join)
    }

    /// Joins a whole spine held in memory; see [`HistoricalJoin::join`].
    ///
    /// # Errors
    /// As [`Self::historical`] and [`HistoricalJoin::join`].
    pub fn join_historical(
        &self,
        spine: &[RecordBatch],
        options: HistoricalOptions,
        source: &dyn RowSource,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let schema = spine.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
        let mut join = self.historical(&schema, options)?;
        let mut out = Vec::new();
        for batch in spine {
            join.join(batch, source, &mut |joined| {
                out.push(joined);
                Ok(())
            })?;
        }
        Ok((join.output_schema(), out))
    }
}

/// The times of a spine's rows, microseconds; null where there is none.
///
/// # Errors
/// `InvalidArgument` when there is no such column, or it holds what is no exact time.
pub fn event_times(spine: &RecordBatch, column: &str) -> Result<TimestampMicrosecondArray> {
    match coerce::find(spine, column)? {
        Some(times) => coerce::micros(column, times),
        None => {
            let schema = spine.schema_ref();
            let found: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            Err(Error::InvalidArgument(format!(
                "the spine has no time column `{column}`{}; name its time column with `event_timestamp`",
                crate::names::hint(column, found)
            )))
        }
    }
}

impl HistoricalJoin<'_> {
    /// The spine's columns, then the features.
    pub fn output_schema(&self) -> SchemaRef {
        Arc::clone(&self.output)
    }

    /// Spine rows joined so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Joins the next rows of the spine and hands the result to `out` in batches of at most [`BATCH_ROWS`].
    ///
    /// # Errors
    /// `InvalidArgument` for a batch of another schema than the spine's, a key or time that does not fit; `TooLarge`
    /// above [`SPINE_ROWS_MAX`] rows; what the source or `out` report.
    pub fn join(
        &mut self,
        spine: &RecordBatch,
        source: &dyn RowSource,
        out: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if spine.schema_ref().fields() != self.spine.fields() {
            return Err(Error::InvalidArgument("the batches of a spine must share one schema".to_owned()));
        }
        let rows = spine.num_rows();
        if self.rows.saturating_add(rows as u64) > SPINE_ROWS_MAX {
            return Err(Error::TooLarge(format!(
                "the spine is over the limit of {SPINE_ROWS_MAX} rows; join it in parts"
            )));
        }
        let required = self.plan.required_of(spine)?;
        let times = self.times(spine)?;
        let mut start = 0;
        while start < rows {
            let length = (rows - start).min(BATCH_ROWS);
            let required: Vec<ArrayRef> = required.iter().map(|column| column.slice(start, length)).collect();
            let (spine, times) = (spine.slice(start, length), times.slice(start, length));
            out(settled(source, MOVING_MAX, || self.join_rows(&spine, &required, &times, source))?)?;
            start += length;
        }
        self.rows += rows as u64;
        Ok(())
    }

    fn join_rows(
        &self,
        spine: &RecordBatch,
        required: &[ArrayRef],
        times: &TimestampMicrosecondArray,
        source: &dyn RowSource,
    ) -> Result<RecordBatch> {
        let plan = self.plan;
        let rows = spine.num_rows();
        let keys = plan.encode_keys(required)?;
        let moment = |row: usize| self.moment(times, row);
        let known_us = self.options.known_us.unwrap_or(i64::MAX);
        let mut views = Vec::with_capacity(plan.views.len());
        for view in &plan.views {
            let keys = keys.get(view.key_set).ok_or_else(|| Error::internal("a view without keys"))?;
            views.push(fetch::as_of(view, keys, rows, moment, known_us, false, source)?);
        }
        let features = Features::compute(plan, rows, required, views)?;
        let mut columns = spine.columns().to_vec();
        features.append(plan, self.options.statuses, &mut columns);
        let exact = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.output_schema(), columns, &exact).map_err(Error::internal)
    }

    fn times(&self, spine: &RecordBatch) -> Result<TimestampMicrosecondArray> {
        event_times(spine, &self.options.event_timestamp)
    }

    /// The cutoffs of a spine row; none when it has no time.
    fn moment(&self, times: &TimestampMicrosecondArray, row: usize) -> Option<Moment> {
        if times.is_null(row) {
            return None;
        }
        let event_us = times.value(row);
        let created_us = match self.options.created {
            CreatedCutoff::SpineTime => event_us,
            CreatedCutoff::At(time_us) => time_us,
            CreatedCutoff::Off => i64::MAX,
        };
        Some(Moment { event_us, created_us })
    }
}
