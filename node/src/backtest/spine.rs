//! The spine on its way in: rows outside of the interval go, the others are cut into chunks of one size, whatever batches they
//! came in, so that the same spine is scored in the same way.

use crate::error::{Error, Result};
use arrow_array::builder::BooleanBufferBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::coalesce::BatchCoalescer;
use cairn_proto::ErrorKind;
use cairn_proto::command::Backtest;
use cairn_proto::time::Timestamp;
use cairn_query::historical::event_times;
use cairn_query::sql::GROUP;
use cairn_storage::near::nearest;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows of a spine.
pub const ROWS_MAX: u64 = 10_000_000;
/// Rows joined at a time.
const CHUNK_ROWS: usize = 32_768;
/// Columns of a chunk behind those of the spine. No column that a user names is called so by accident.
pub const TIME: &str = "#time";
pub const LABEL: &str = "#label";

/// Takes the batches of a spine.
pub struct Spine {
    label: String,
    event_timestamp: String,
    skip_null_labels: bool,
    interval_us: (i64, i64),
    schema: SchemaRef,
    /// Columns of the spine that a chunk has.
    kept: Vec<usize>,
    chunks: BatchCoalescer,
    pub counts: Counts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that came.
    pub rows: u64,
    pub outside: u64,
    pub unlabelled: u64,
    /// First and last time of all.
    pub times_us: Option<(i64, i64)>,
}

impl Spine {
    /// Of batches with the columns of `schema`; only those named in `kept` go on, or all of them.
    ///
    /// # Errors
    /// `NotFound` for a label or time column that is not there; `InvalidArgument` for one of a type that does not fit.
    pub fn new(ask: &Backtest, schema: &SchemaRef, kept: Option<&BTreeSet<String>>) -> Result<Self> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = schema.fields().iter().find(|field| !seen.insert(field.name())) {
            return Err(Error::invalid(format!("the spine has two columns `{}`; rename one", twice.name())));
        }
        let kept: Vec<usize> = (0..schema.fields().len())
            .filter(|at| kept.is_none_or(|kept| kept.contains(schema.field(*at).name())))
            .collect();
        let sent = schema.project(&kept).map_err(|error| Error::internal(error.to_string()))?;
        let mut fields: Vec<Field> = sent.fields().iter().map(|field| field.as_ref().clone()).collect();
        for field in &fields {
            if [TIME, LABEL, GROUP].contains(&field.name().as_str()) {
                return Err(Error::invalid(format!("`{}` is no name for a column of a spine here", field.name())));
            }
        }
        fields.push(Field::new(TIME, DataType::Int64, false));
        fields.push(Field::new(LABEL, DataType::Float64, false));
        let spine = Self {
            label: ask.label.clone(),
            event_timestamp: ask.event_timestamp.clone(),
            skip_null_labels: ask.skip_null_labels,
            interval_us: (ask.from.0, ask.to.0),
            schema: Arc::clone(schema),
            kept,
            chunks: BatchCoalescer::new(Arc::new(Schema::new(fields)), CHUNK_ROWS),
            counts: Counts::default(),
        };
        // An empty spine meets the same checks of columns and types as a full one.
        let empty = RecordBatch::new_empty(Arc::clone(schema));
        event_times(&empty, &spine.event_timestamp)?;
        spine.labels(&empty)?;
        Ok(spine)
    }

    /// The columns of a chunk: those of the spine that are kept, [`TIME`] and [`LABEL`].
    pub fn chunk_schema(&self) -> SchemaRef {
        self.chunks.schema()
    }

    /// Takes the next batch.
    ///
    /// # Errors
    /// `InvalidArgument` naming the first row without time, with a label that is null or no finite number, or for other
    /// columns than before; `TooLarge` over [`ROWS_MAX`].
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.schema_ref().fields() != self.schema.fields() {
            return Err(Error::invalid("the batches of a spine must share one schema"));
        }
        let before = self.counts.rows;
        self.counts.rows = before.saturating_add(batch.num_rows() as u64);
        if self.counts.rows > ROWS_MAX {
            let message = format!("the spine is over the limit of {ROWS_MAX} rows; take a shorter interval");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let times = event_times(batch, &self.event_timestamp)?;
        let labels = self.labels(batch)?;
        let (from_us, to_us) = self.interval_us;
        let mut wanted = BooleanBufferBuilder::new(batch.num_rows());
        for row in 0..batch.num_rows() {
            let place = before + row as u64;
            if times.is_null(row) {
                let column = &self.event_timestamp;
                return Err(Error::invalid(format!("row {place} of the spine has no time in `{column}`")));
            }
            let time_us = times.value(row);
            let (first, last) = self.counts.times_us.unwrap_or((time_us, time_us));
            self.counts.times_us = Some((first.min(time_us), last.max(time_us)));
            let inside = from_us <= time_us && time_us < to_us;
            if !inside {
                self.counts.outside += 1;
            } else if labels.is_null(row) {
                if !self.skip_null_labels {
                    let label = &self.label;
                    return Err(Error::invalid(format!(
                        "row {place} of the spine has no label in `{label}`; leave such rows out with `skip_null_labels` \
                         (`--skip-null-labels`)"
                    )));
                }
                self.counts.unlabelled += 1;
            } else if !labels.value(row).is_finite() {
                let label = &self.label;
                return Err(Error::invalid(format!("row {place} of the spine: its `{label}` is no finite number")));
            }
            wanted.append(inside && labels.is_valid(row));
        }
        let mut columns: Vec<ArrayRef> =
            self.kept.iter().filter_map(|at| batch.columns().get(*at)).map(Arc::clone).collect();
        let full = |column: &dyn Array| column.null_count() == 0;
        columns.push(match full(&times) {
            true => cast(&(Arc::new(times) as ArrayRef), &DataType::Int64).map_err(internal)?,
            false => return Err(Error::internal("times got lost")),
        });
        // What is null is filtered out below.
        let numbers: Float64Array = labels.iter().map(|label| Some(label.unwrap_or(0.0))).collect();
        columns.push(Arc::new(numbers));
        let rows = RecordBatch::try_new(self.chunks.schema(), columns).map_err(internal)?;
        let wanted = BooleanArray::new(wanted.finish(), None);
        self.chunks.push_batch_with_filter(rows, &wanted).map_err(internal)
    }

    /// The next whole chunk.
    pub fn chunk(&mut self) -> Option<RecordBatch> {
        self.chunks.next_completed_batch()
    }

    /// What is left once all has come.
    ///
    /// # Errors
    /// `InvalidArgument` when there was no row to be scored, with what there was.
    pub fn last_chunk(&mut self) -> Result<Option<RecordBatch>> {
        let Counts { rows, outside, unlabelled, times_us } = self.counts;
        if rows == outside + unlabelled {
            let (from, to) = (Timestamp(self.interval_us.0), Timestamp(self.interval_us.1));
            let what = match times_us {
                None => "it has no rows".to_owned(),
                Some(_) if unlabelled > 0 => format!("{unlabelled} there have no label in `{}`", self.label),
                Some((first, last)) => {
                    format!("its {rows} rows go from {} to {}", Timestamp(first), Timestamp(last))
                }
            };
            return Err(Error::invalid(format!("the spine has no row to score from {from} to before {to}: {what}")));
        }
        self.chunks.finish_buffered_batch().map_err(internal)?;
        Ok(self.chunks.next_completed_batch())
    }

    fn labels(&self, batch: &RecordBatch) -> Result<Float64Array> {
        let name = &self.label;
        let Some(column) = batch.column_by_name(name) else {
            let schema = batch.schema_ref();
            let names = || schema.fields().iter().map(|field| field.name().as_str());
            let hint = match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it has {}", names().collect::<Vec<_>>().join(", ")),
            };
            return Err(Error::not_found(format!("the spine has no label column `{name}`; {hint}")));
        };
        let kind = column.data_type();
        if !kind.is_numeric() && !matches!(kind, DataType::Boolean | DataType::Null) {
            return Err(Error::invalid(format!(
                "label column `{name}` is {kind}; a label is true or false, or a number"
            )));
        }
        Ok(cast(column, &DataType::Float64).map_err(internal)?.as_primitive::<Float64Type>().clone())
    }
}

/// Times and labels of a chunk.
///
/// # Errors
/// `Internal` for what is no chunk.
pub fn times_and_labels(chunk: &RecordBatch) -> Result<(Int64Array, Float64Array)> {
    let column = |name: &str| chunk.column_by_name(name).ok_or_else(|| Error::internal(format!("`{name}` got lost")));
    let times = column(TIME)?.as_primitive::<Int64Type>().clone();
    Ok((times, column(LABEL)?.as_primitive::<Float64Type>().clone()))
}

fn internal(error: arrow_schema::ArrowError) -> Error {
    Error::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{StringArray, TimestampMicrosecondArray};
    use expect_test::{Expect, expect};

    fn ask(skip_null_labels: bool) -> Backtest {
        let text = format!(
            r#"{{"models":[],"from":10,"to":20,"label":"late","spine_root":"","spine_file":"","skip_null_labels":{skip_null_labels}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn rows(rows: &[(i64, Option<f64>)]) -> RecordBatch {
        let times: TimestampMicrosecondArray = rows.iter().map(|row| Some(row.0)).collect();
        let late: Float64Array = rows.iter().map(|row| row.1).collect();
        let key: StringArray = rows.iter().map(|row| Some(format!("k{}", row.0))).collect();
        let columns: [(&str, ArrayRef); 3] =
            [("event_timestamp", Arc::new(times)), ("late", Arc::new(late)), ("key", Arc::new(key))];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    #[test]
    fn the_interval_is_half_open_and_what_is_left_out_is_counted() {
        let batch = rows(&[(9, Some(1.0)), (10, Some(0.0)), (19, None), (19, Some(1.0)), (20, None)]);
        let kept = BTreeSet::from(["key".to_owned()]);
        let mut spine = Spine::new(&ask(true), &batch.schema(), Some(&kept)).unwrap();
        spine.push(&batch).unwrap();
        assert_eq!(spine.chunk(), None);
        let chunk = spine.last_chunk().unwrap().unwrap();
        assert_eq!(chunk.schema(), spine.chunk_schema());
        assert_eq!(chunk.column(0).as_string::<i32>(), &StringArray::from(vec!["k10", "k19"]));
        let (times, labels) = times_and_labels(&chunk).unwrap();
        assert_eq!((times.values().to_vec(), labels.values().to_vec()), (vec![10, 19], vec![0.0, 1.0]));
        assert_eq!(spine.counts, Counts { rows: 5, outside: 2, unlabelled: 1, times_us: Some((9, 20)) });
    }

    #[test]
    fn chunks_do_not_depend_on_the_batches() {
        let all: Vec<_> = (0..CHUNK_ROWS as i64 + 10).map(|row| (10 + row % 10, Some(row as f64))).collect();
        let chunks = |size: usize| {
            let mut spine = Spine::new(&ask(false), &rows(&[]).schema(), None).unwrap();
            let mut chunks = Vec::new();
            for part in all.chunks(size) {
                spine.push(&rows(part)).unwrap();
                chunks.extend(spine.chunk());
            }
            chunks.extend(spine.last_chunk().unwrap());
            chunks
        };
        let one = chunks(all.len());
        assert_eq!(one.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [CHUNK_ROWS, 10]);
        assert_eq!(chunks(777), one);
    }

    #[test]
    fn rows_that_cannot_be_scored_are_named() {
        let check = |skip: bool, parts: &[&[(i64, Option<f64>)]], expected: Expect| {
            let mut spine = Spine::new(&ask(skip), &rows(&[]).schema(), None).unwrap();
            let pushed = parts.iter().try_for_each(|part| spine.push(&rows(part)));
            let said = pushed.and_then(|()| spine.last_chunk().map(|_| ())).unwrap_err();
            expected.assert_eq(&format!("{}: {said}", said.kind));
        };
        check(
            false,
            &[&[(10, Some(1.0))], &[(11, None)]],
            expect![
                "invalid_argument: row 1 of the spine has no label in `late`; leave such rows out with `skip_null_labels` (`--skip-null-labels`)"
            ],
        );
        check(
            false,
            &[&[(10, Some(f64::NAN))]],
            expect!["invalid_argument: row 0 of the spine: its `late` is no finite number"],
        );
        check(
            false,
            &[&[(9, None), (30, None)]],
            expect![
                "invalid_argument: the spine has no row to score from 1970-01-01T00:00:00.00001Z to before 1970-01-01T00:00:00.00002Z: its 2 rows go from 1970-01-01T00:00:00.000009Z to 1970-01-01T00:00:00.00003Z"
            ],
        );
        check(
            true,
            &[&[(9, None), (11, None)]],
            expect![
                "invalid_argument: the spine has no row to score from 1970-01-01T00:00:00.00001Z to before 1970-01-01T00:00:00.00002Z: 1 there have no label in `late`"
            ],
        );
        check(
            false,
            &[],
            expect![
                "invalid_argument: the spine has no row to score from 1970-01-01T00:00:00.00001Z to before 1970-01-01T00:00:00.00002Z: it has no rows"
            ],
        );
        let wrong = |label: &str, time: &str| {
            let schema = rows(&[]).schema();
            let ask = Backtest { label: label.to_owned(), event_timestamp: time.to_owned(), ..ask(false) };
            let error = Spine::new(&ask, &schema, None).err().unwrap();
            format!("{}: {error}\n", error.kind)
        };
        expect![[r#"
            not_found: the spine has no label column `lat`; did you mean `late`?
            invalid_argument: label column `key` is Utf8; a label is true or false, or a number
            invalid_argument: the spine has no time column `at`; there are event_timestamp, key, late; name its time column with `event_timestamp`
        "#]].assert_eq(
            &[wrong("lat", "event_timestamp"), wrong("key", "event_timestamp"), wrong("late", "at")].concat(),
        );
    }
}
