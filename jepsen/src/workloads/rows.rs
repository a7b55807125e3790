//! Feature views and rows: one view a workload, all with the same two features.

use crate::Result;
use crate::site::Site;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use cairn_client::command::{GetOnlineFeatures, Ingest, Ingested, Level, Read, ReadReply};
use cairn_client::{Client, Timestamp, api, read};
use serde::Serialize;
use std::sync::Arc;

pub const PROJECT: &str = "jepsen";

/// Views of the workloads.
const VIEWS: [&str; 5] = ["set", "batch", "once", "session", "fresh"];

/// One row. `twin` is always `-nonce`, so a torn row shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    pub thing: i64,
    pub event_us: i64,
    pub nonce: i64,
}

/// An online read of whole rows.
#[derive(Debug, Clone, Serialize)]
pub struct Question {
    pub view: &'static str,
    pub things: Vec<i64>,
    pub read: Read,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_as_of: Option<i64>,
}

/// Definitions of all views.
///
/// # Errors
/// The cluster's refusal.
pub async fn prepare(site: &Site) -> Result<()> {
    let mut text = "kind: Entity\nname: thing\nspec: {join_keys: [{name: thing_id, type: int64}]}\n".to_owned();
    for view in VIEWS {
        text.push_str(&format!(
            "---\nkind: FeatureView\nname: {view}\nspec:\n  entities: [thing]\n  features: [{{name: nonce, type: int64}}, \
             {{name: twin, type: int64}}]\n"
        ));
    }
    let file = api::SourceFile { path: "jepsen.yaml".to_owned(), text };
    site.any.apply(PROJECT, vec![file]).await?;
    Ok(())
}

/// Stores rows in one batch.
///
/// # Errors
/// The client's.
pub async fn put(
    client: &Client,
    view: &str,
    producer: Option<(&str, u64)>,
    rows: &[Row],
) -> cairn_client::Result<Ingested> {
    let ask = Ingest {
        producer: producer.map(|(name, _)| name.to_owned()),
        sequence: producer.map(|(_, sequence)| sequence),
        ..Ingest::new(PROJECT, view)
    };
    client.ingest_batch(ask, batch(rows)).await
}

/// The (nonce, twin) of each thing asked for.
pub type Values = Vec<Option<(i64, i64)>>;

/// Reads whole rows.
///
/// # Errors
/// The client's.
pub async fn get(client: &Client, question: &Question) -> cairn_client::Result<(Values, ReadReply)> {
    let ask = GetOnlineFeatures {
        features: Some(vec![question.view.to_owned()]),
        read: question.read.clone(),
        known_as_of: question.known_as_of.map(Timestamp),
        ..read::online(PROJECT)
    };
    let keys: ArrayRef = Arc::new(Int64Array::from(question.things.clone()));
    let (rows, reply) = client.online_features(ask).read(&columns([("thing_id", keys)])).await?;
    Ok((values(&rows), reply))
}

/// Reads at a level without a token.
pub fn at(level: Level, bounded_ms: u64) -> Read {
    Read { level, bounded_ms, token: None }
}

/// The nonce alone; 0 = no row. `None` for a torn row.
pub fn nonce(value: Option<(i64, i64)>) -> Option<i64> {
    match value {
        None => Some(0),
        Some((nonce, twin)) => (twin == -nonce).then_some(nonce),
    }
}

fn batch(rows: &[Row]) -> RecordBatch {
    let column = |of: fn(&Row) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.event_us)).with_timezone("UTC");
    columns([
        ("thing_id", column(|row| row.thing)),
        ("event_timestamp", Arc::new(times)),
        ("nonce", column(|row| row.nonce)),
        ("twin", column(|row| -row.nonce)),
    ])
}

fn columns<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    // Columns made here are of one length, the one thing that can be wrong with them.
    RecordBatch::try_from_iter(columns)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty())))
}

fn values(rows: &RecordBatch) -> Values {
    let column = |name: &str| rows.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    let (Some(nonce), Some(twin)) = (column("nonce"), column("twin")) else { return vec![None; rows.num_rows()] };
    (0..rows.num_rows())
        .map(|row| match (nonce.is_null(row), twin.is_null(row)) {
            (true, true) => None,
            // Half a row: no value fits it.
            (a, b) if a != b => Some((i64::MIN + 1, 0)),
            _ => Some((nonce.value(row), twin.value(row))),
        })
        .collect()
}
