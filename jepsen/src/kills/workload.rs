//! What the clients do while nodes die: rows, alias moves, artifacts. Each keeps what it was told.

use crate::Result;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use cairn_client::command::Ingest;
use cairn_client::registry::{Expected, Promotion};
use cairn_client::{Client, ErrorKind, api};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub const PROJECT: &str = "jepsen";
pub const MODEL: &str = "register";
pub const ALIAS: &str = "champion";
/// Entities a writer writes to, and rows of one batch.
const ENTITIES: i64 = 64;
const BATCH_ROWS: i64 = 16;

/// Two versions of it are registered, for aliases to point at.
const ONNX: &[u8] = include_bytes!("../../../client/examples/flights/models/delay_mlp.onnx");

pub const DEFINITIONS: &str = "
kind: Entity
name: thing
spec: {join_keys: [{name: thing_id, type: int64}]}
---
kind: FeatureView
name: state
spec:
  entities: [thing]
  features: [{name: nonce, type: int64}, {name: twin, type: int64}]
";

/// One row as it was sent. `twin` is always `-nonce`, so a torn row shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub thing_id: i64,
    pub event_us: i64,
    pub nonce: i64,
}

/// What the clients were told.
#[derive(Debug, Default)]
pub struct Told {
    pub rows_ok: Vec<Row>,
    pub rows_unknown: Vec<Row>,
    /// (from, to) of each move that was acknowledged.
    pub moves_ok: Vec<(u32, u32)>,
    pub moves_refused: usize,
    pub moves_unknown: usize,
    /// Root and bytes of each acknowledged artifact.
    pub artifacts_ok: Vec<(String, Vec<u8>)>,
    pub artifacts_unknown: usize,
}

impl Told {
    pub fn merge(&mut self, other: Self) {
        self.rows_ok.extend(other.rows_ok);
        self.rows_unknown.extend(other.rows_unknown);
        self.moves_ok.extend(other.moves_ok);
        self.moves_refused += other.moves_refused;
        self.moves_unknown += other.moves_unknown;
        self.artifacts_ok.extend(other.artifacts_ok);
        self.artifacts_unknown += other.artifacts_unknown;
    }
}

/// Definitions and two model versions.
pub async fn prepare(client: &Client) -> Result<()> {
    let file = api::SourceFile { path: "jepsen.yaml".to_owned(), text: DEFINITIONS.to_owned() };
    client.apply(PROJECT, vec![file]).await?;
    let artifact = client.upload_bytes(ONNX.into()).await?;
    for _ in 0..2 {
        let ask = api::RegisterModelVersionRequest {
            project: PROJECT.to_owned(),
            model: MODEL.to_owned(),
            artifact_root: artifact.root.clone(),
            file_name: "delay_mlp.onnx".to_owned(),
            ..Default::default()
        };
        client.register_model(ask).await?;
    }
    Ok(())
}

/// Writes batches to the entities of writer `number` until told to stop.
pub async fn write_rows(client: Client, number: i64, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut sequence = 0u64;
    while !stop.load(Ordering::Relaxed) {
        sequence += 1;
        let base = sequence as i64 * BATCH_ROWS;
        let row = |i: i64| Row {
            thing_id: number * 1_000_000 + (base + i) % ENTITIES,
            event_us: base + i,
            nonce: number * 1_000_000_000 + base + i,
        };
        let rows: Vec<Row> = (0..BATCH_ROWS).map(row).collect();
        let ask = Ingest {
            producer: Some(format!("writer-{number}")),
            sequence: Some(sequence),
            ..Ingest::new(PROJECT, "state")
        };
        match client.ingest_batch(ask, batch(&rows)).await {
            Ok(_) => told.rows_ok.extend(rows),
            // Refused before it was proposed, or nobody knows: either way it may not be counted on.
            Err(_) => told.rows_unknown.extend(rows),
        }
    }
    told
}

fn batch(rows: &[Row]) -> RecordBatch {
    let column = |of: fn(&Row) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.event_us)).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 4] = [
        ("thing_id", column(|row| row.thing_id)),
        ("event_timestamp", Arc::new(times)),
        ("nonce", column(|row| row.nonce)),
        ("twin", column(|row| -row.nonce)),
    ];
    RecordBatch::try_from_iter(columns)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty())))
}

/// Moves the alias back and forth by compare-and-set until told to stop.
pub async fn move_alias(client: Client, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut at: Option<u32> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(from) = at else {
            at = current(&client).await;
            continue;
        };
        let to = if from == 1 { 2 } else { 1 };
        let ask = Promotion {
            project: PROJECT,
            model: MODEL,
            version: to,
            alias: ALIAS,
            expected: if from == 0 { Expected::None } else { Expected::Version(from) },
            author: "jepsen",
            reason: "",
        };
        at = match client.promote(&ask).await {
            Ok(moved) => {
                told.moves_ok.push((moved.from_version, moved.to_version));
                Some(to)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                told.moves_refused += 1;
                None
            }
            Err(_) => {
                told.moves_unknown += 1;
                None
            }
        };
    }
    told
}

/// Where the alias points; 0 = nowhere; `None` = nobody answered.
pub async fn current(client: &Client) -> Option<u32> {
    let model = client.model(PROJECT, MODEL).await.ok()?;
    Some(model.aliases.get(ALIAS).copied().unwrap_or(0))
}

/// Uploads artifacts of random bytes until told to stop.
pub async fn upload(client: Client, seed: u64, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut bytes = vec![0u8; random.random_range(1..300_000)];
        random.fill(bytes.as_mut_slice());
        match client.upload_bytes(bytes.clone().into()).await {
            Ok(artifact) => told.artifacts_ok.push((artifact.root, bytes)),
            Err(_) => told.artifacts_unknown += 1,
        }
    }
    told
}

/// The nonce and twin columns of a read.
pub fn nonces(batch: &RecordBatch) -> Vec<Option<(i64, i64)>> {
    let column =
        |name: &str| batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    match (column("nonce"), column("twin")) {
        (Some(nonce), Some(twin)) => (0..batch.num_rows())
            .map(|row| (!nonce.is_null(row) && !twin.is_null(row)).then(|| (nonce.value(row), twin.value(row))))
            .collect(),
        _ => vec![None; batch.num_rows()],
    }
}

/// Keys and times to ask for the rows by.
pub fn questions(rows: &[Row]) -> RecordBatch {
    let keys = Int64Array::from_iter_values(rows.iter().map(|row| row.thing_id));
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.event_us)).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 2] = [("thing_id", Arc::new(keys)), ("event_timestamp", Arc::new(times))];
    RecordBatch::try_from_iter(columns)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty())))
}
