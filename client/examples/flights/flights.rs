//! The example's files: feature rows, the December flights, and what training measured.

use crate::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use cairn_client::files::{ReadOptions, TableReader};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Feature views, each with a file of its name.
pub const VIEWS: [&str; 5] = ["weather", "plane_facts", "carrier_delays", "origin_delays", "route_delays"];
/// What a request for features brings: entity keys, what is known when a flight is planned, and the time it is about.
const ASKED: [&str; 9] = [
    "carrier",
    "origin",
    "dest",
    "tailnum",
    "distance",
    "scheduled_minutes",
    "local_hour",
    "weekday",
    "event_timestamp",
];
const BATCH_ROWS: usize = 8_192;

/// Of the checkout one stands in, else of the one this was built in.
pub fn folder() -> PathBuf {
    let here = PathBuf::from("client/examples/flights");
    if here.is_dir() { here } else { concat!(env!("CARGO_MANIFEST_DIR"), "/examples/flights").into() }
}

/// One of the example's Parquet files.
pub fn open(name: &str) -> Result<TableReader> {
    let options = ReadOptions { batch_rows: BATCH_ROWS, ..ReadOptions::default() };
    Ok(TableReader::open(&folder().join(format!("data/{name}.parquet")), &options)?)
}

/// Every flight of December that arrived, in order of scheduled departure.
pub fn december() -> Result<RecordBatch> {
    let reader = open("flights")?;
    let schema = Arc::clone(reader.schema());
    let mut parts = Vec::new();
    for batch in reader {
        let batch = batch?;
        let month = column(&batch, "month")?.as_primitive::<Int32Type>();
        let late = column(&batch, "late")?;
        let wanted = (0..batch.num_rows()).map(|row| Some(month.value(row) == 12 && late.is_valid(row)));
        parts.push(arrow_select::filter::filter_record_batch(&batch, &BooleanArray::from_iter(wanted))?);
    }
    Ok(arrow_select::concat::concat_batches(&schema, &parts)?)
}

/// `count` rows, evenly spread.
pub fn sample(rows: &RecordBatch, count: usize) -> Result<RecordBatch> {
    let count = count.min(rows.num_rows());
    let picked = (0..count).map(|at| u32::try_from(at * rows.num_rows() / count)).collect::<Result<Vec<_>, _>>()?;
    Ok(arrow_select::take::take_record_batch(rows, &UInt32Array::from(picked))?)
}

/// The columns of a request, without the label and whatever else a flight has.
pub fn asked(rows: &RecordBatch) -> Result<RecordBatch> {
    let positions = ASKED.iter().map(|name| rows.schema_ref().index_of(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.project(&positions)?)
}

pub fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| format!("no column `{name}`").into())
}

pub fn late(rows: &RecordBatch) -> Result<Vec<bool>> {
    Ok(column(rows, "late")?.as_boolean().iter().map(|late| late == Some(true)).collect())
}

/// The probability of being late out of a model's answer: its last number, whether in a list or a column of its own.
pub fn probabilities(answer: &RecordBatch) -> Result<Vec<f64>> {
    let last = answer.columns().last().ok_or("the answer has no column")?;
    let last = match last.data_type() {
        DataType::FixedSizeList(_, width) => {
            let width = usize::try_from(*width)?;
            let values = last.as_fixed_size_list().values();
            let ends =
                (0..last.len()).map(|row| u32::try_from((row + 1) * width - 1)).collect::<Result<Vec<_>, _>>()?;
            arrow_select::take::take(values, &UInt32Array::from(ends), None)?
        }
        _ => Arc::clone(last),
    };
    let numbers = arrow_cast::cast(&last, &DataType::Float64)?;
    let numbers: &Float64Array = numbers.as_primitive();
    let value = |value: Option<f64>| value.ok_or_else(|| "a prediction is null".into());
    numbers.iter().map(value).collect()
}

/// Feature values of `left` and `right` that differ in any bit, by column name; columns in one of them only differ.
pub fn differences(left: &RecordBatch, right: &RecordBatch, names: &[String]) -> Result<usize> {
    let mut differing = 0;
    for name in names {
        let (left, right) = (column(left, name)?, column(right, name)?);
        if left.data_type() != right.data_type() || left.len() != right.len() {
            return Err(format!("feature `{name}` has another type or length").into());
        }
        differing += (0..left.len()).filter(|row| left.slice(*row, 1) != right.slice(*row, 1)).count();
    }
    Ok(differing)
}

/// `rows` without the column that gives each its own time.
pub fn without_time(rows: &RecordBatch) -> Result<RecordBatch> {
    let kept: Vec<_> =
        rows.schema_ref().fields().iter().enumerate().filter(|(_, field)| field.name() != "event_timestamp").collect();
    let fields: Vec<Field> = kept.iter().map(|(_, field)| field.as_ref().clone()).collect();
    let columns = kept.iter().map(|(position, _)| Arc::clone(rows.column(*position))).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// metrics.json: what train.py measured on December.
#[derive(serde::Deserialize)]
pub struct Metrics {
    pub models: BTreeMap<String, Measured>,
    pub features: Vec<String>,
    pub training_set_token: String,
}

#[derive(Clone, serde::Deserialize)]
pub struct Measured {
    pub auc: f64,
    pub log_loss: f64,
}

pub fn metrics() -> Result<Metrics> {
    Ok(serde_json::from_str(&std::fs::read_to_string(folder().join("metrics.json"))?)?)
}

/// Area under the ROC curve: the chance that a late flight scores above one on time, ties counted half
/// (Mann-Whitney U from mean ranks).
pub fn auc(scores: &[f64], late: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut rank_sum, mut at) = (0.0, 0);
    while at < order.len() {
        let tied = order[at..].iter().take_while(|row| scores[**row] == scores[order[at]]).count();
        let mean_rank = at as f64 + (tied as f64 + 1.0) / 2.0;
        rank_sum += mean_rank * order[at..at + tied].iter().filter(|row| late[**row]).count() as f64;
        at += tied;
    }
    let positives = late.iter().filter(|late| **late).count() as f64;
    let negatives = late.len() as f64 - positives;
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}
