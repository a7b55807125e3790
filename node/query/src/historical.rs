//! The point-in-time join: each row of a spine with the values that were known at its own time.
//!
//! For a spine row at time T the answer of a view is its row with event time E ≤ T, created time within the cutoff (by
//! default ≤ T) and commit time within `known_us`; among those the greatest (E, created, commit). It answers as a
//! whole: a null in it stays null, and a deletion is no row. It is too old when T − E exceeds the view's ttl. Every spine row comes back exactly
//! once, in order, with its own columns untouched.

#[cfg(test)]
pub(crate) mod oracle;
mod sweep;
#[cfg(test)]
mod tests;

use crate::coerce;
use crate::fetch::{self, Moment, ViewRows};
use crate::online::Features;
use crate::plan::{FeaturePlan, ViewPlan};
use crate::source::{RowSource, settled};
use crate::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow_schema::{Schema, SchemaRef};
use cairn_proto::command::EVENT_TIMESTAMP;
use std::sync::Arc;
use std::time::Duration;
use sweep::ViewSweep;

/// Most rows of a spine.
pub const SPINE_ROWS_MAX: u64 = 10_000_000;

/// How long a batch of a join waits for slots that are between two shards here.
const MOVING_MAX: Duration = Duration::from_secs(10);

/// Rows handed on at a time.
pub const BATCH_ROWS: usize = if cfg!(test) { 32 } else { 32_768 };

/// Rows, and bytes of their keys, joined in one walk over each view: memory does not grow with the spine.
const WINDOW_ROWS: usize = if cfg!(test) { 96 } else { 1 << 20 };
const WINDOW_BYTES: usize = 256 << 20;
/// Fewer rows are looked up one by one: a walk reads whole row groups.
const SWEEP_ROWS_MIN: usize = if cfg!(test) { 8 } else { 16_384 };

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
        join.join(spine, source, &mut |joined| {
            out.push(joined);
            Ok(())
        })?;
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

    /// Joins the next rows of the spine and hands the result to `out` in batches of at most [`BATCH_ROWS`]. The more
    /// rows at once, the fewer walks over the history.
    ///
    /// # Errors
    /// `InvalidArgument` for a batch of another schema than the spine's, a key or time that does not fit; `TooLarge`
    /// above [`SPINE_ROWS_MAX`] rows; what the source or `out` report.
    pub fn join(
        &mut self,
        spine: &[RecordBatch],
        source: &dyn RowSource,
        out: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let mut window = Window::default();
        for batch in spine {
            if batch.schema_ref().fields() != self.spine.fields() {
                return Err(Error::InvalidArgument("the batches of a spine must share one schema".to_owned()));
            }
            self.rows = self.rows.saturating_add(batch.num_rows() as u64);
            if self.rows > SPINE_ROWS_MAX {
                return Err(Error::TooLarge(format!(
                    "the spine is over the limit of {SPINE_ROWS_MAX} rows; join it in parts"
                )));
            }
            let mut start = 0;
            while start < batch.num_rows() {
                let piece = batch.slice(start, (batch.num_rows() - start).min(BATCH_ROWS));
                start += piece.num_rows();
                window.push(Piece::new(self, piece)?);
                if window.is_full() {
                    self.join_window(&std::mem::take(&mut window), source, out)?;
                }
            }
        }
        self.join_window(&window, source, out)
    }

    fn join_window(
        &self,
        window: &Window,
        source: &dyn RowSource,
        out: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let swept = if window.rows < SWEEP_ROWS_MIN { None } else { self.sweep(window, source)? };
        let mut start = 0;
        for piece in &window.pieces {
            let rows = start..start + piece.spine.num_rows();
            start = rows.end;
            let views = match &swept {
                Some(views) => views.iter().map(|view| view.rows(rows.clone())).collect::<Result<_>>()?,
                None => settled(source, MOVING_MAX, || self.look_up(piece, source))?,
            };
            let (plan, rows) = (self.plan, piece.spine.num_rows());
            let features = Features::compute(plan, rows, &piece.required, views)?;
            let mut columns = piece.spine.columns().to_vec();
            features.append(plan, self.options.statuses, &mut columns);
            let exact = RecordBatchOptions::new().with_row_count(Some(rows));
            out(RecordBatch::try_new_with_options(self.output_schema(), columns, &exact).map_err(Error::internal)?)?;
        }
        Ok(())
    }

    /// One walk a view for the whole window; `None` when the source has no such way.
    fn sweep(&self, window: &Window, source: &dyn RowSource) -> Result<Option<Vec<ViewSweep>>> {
        let required: Vec<ArrayRef> = (0..self.plan.required.len())
            .map(|at| window.whole(|piece| piece.required.get(at).map(AsRef::as_ref)))
            .collect::<Result<_>>()?;
        let times = window.whole(|piece| Some(&piece.times))?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let keys = self.plan.encode_keys(&required)?;
        drop(required);
        let mut views = Vec::with_capacity(self.plan.views.len());
        for view in &self.plan.views {
            let keys = keys.get(view.key_set).ok_or_else(|| Error::internal("a view without keys"))?;
            let (moment, statuses) = (|row: usize| self.moment(times, row), self.options.statuses);
            let swept = settled(source, MOVING_MAX, || {
                ViewSweep::new(view, keys, window.rows, moment, self.known_us(), statuses, source)
            })?;
            let Some(swept) = swept else { return Ok(None) };
            views.push(swept);
        }
        Ok(Some(views))
    }

    /// Row by row.
    fn look_up(&self, piece: &Piece, source: &dyn RowSource) -> Result<Vec<ViewRows>> {
        let keys = self.plan.encode_keys(&piece.required)?;
        let moment = |row: usize| self.moment(&piece.times, row);
        let view = |view: &ViewPlan| {
            let keys = keys.get(view.key_set).ok_or_else(|| Error::internal("a view without keys"))?;
            fetch::as_of(view, keys, piece.spine.num_rows(), moment, self.known_us(), false, source)
        };
        self.plan.views.iter().map(view).collect()
    }

    fn known_us(&self) -> i64 {
        self.options.known_us.unwrap_or(i64::MAX)
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

/// Rows of a spine that are joined together.
#[derive(Default)]
struct Window {
    pieces: Vec<Piece>,
    rows: usize,
    bytes: usize,
}

/// A few rows of a spine: what comes out as one batch.
struct Piece {
    spine: RecordBatch,
    required: Vec<ArrayRef>,
    times: TimestampMicrosecondArray,
}

impl Piece {
    fn new(join: &HistoricalJoin<'_>, spine: RecordBatch) -> Result<Self> {
        let (required, times) = (join.plan.required_of(&spine)?, join.times(&spine)?);
        Ok(Self { spine, required, times })
    }
}

impl Window {
    fn push(&mut self, piece: Piece) {
        self.rows += piece.spine.num_rows();
        let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
        self.bytes += piece.required.iter().map(bytes).sum::<usize>();
        self.pieces.push(piece);
    }

    fn is_full(&self) -> bool {
        self.rows >= WINDOW_ROWS || self.bytes >= WINDOW_BYTES
    }

    /// A column of all pieces.
    fn whole<'p>(&'p self, column: impl Fn(&'p Piece) -> Option<&'p dyn Array>) -> Result<ArrayRef> {
        let parts: Option<Vec<&dyn Array>> = self.pieces.iter().map(column).collect();
        let parts = parts.ok_or_else(|| Error::internal("a piece of a spine misses a column"))?;
        arrow_select::concat::concat(&parts).map_err(Error::internal)
    }
}
