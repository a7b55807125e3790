//! Cairn as the thing measured: its tables, its rows, and one client of each kind.
//!
//! Always true: every client has a connection of its own and at most one request on its way; what the node answers is
//! decoded into Arrow columns, and its row count checked, inside the measured time.

use crate::error::{Error, Result};
use crate::load::Turn;
use crate::workload::{self, Columns, JOIN_KEY};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use cairn_client::command::{GetOnlineFeatures, Ingest, Predict};
use cairn_client::flight::{Exchange, IngestStream};
use cairn_client::{Client, ErrorKind, api, read};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub const SYSTEM: &str = "Cairn";
const PROJECT: &str = "bench";
/// Rows of one batch while a table is filled.
const LOAD_ROWS: usize = 10_000;
/// Longest wait for a definition to reach every node.
const DEFINED_WITHIN: Duration = Duration::from_secs(20);

/// Event times that never repeat, so that no row replaces another in history. They begin a day ago.
#[derive(Debug, Clone)]
pub struct EventTimes(Arc<AtomicI64>);

impl EventTimes {
    pub fn new() -> Self {
        let day = Duration::from_secs(86_400);
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(day);
        Self(Arc::new(AtomicI64::new(i64::try_from(start.as_micros()).unwrap_or(0))))
    }

    /// The first of `rows` event times, a microsecond apart, that nobody else gets.
    pub fn take(&self, rows: usize) -> i64 {
        self.0.fetch_add(rows as i64, Ordering::Relaxed)
    }
}

/// A feature view over one entity, with a service of all its features under the same name, and models over that.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: Columns,
    /// Each a registered model with a deployment of the same name.
    pub models: Vec<&'static str>,
}

impl Table {
    fn definitions(&self) -> api::SourceFile {
        let name = self.name;
        let mut text = format!(
            "kind: Entity\nname: user\nspec: {{join_keys: [{{name: {JOIN_KEY}, type: int64}}]}}\n---\nkind: FeatureView\n\
             name: {name}\nspec:\n  entities: [user]\n  features:\n"
        );
        for feature in self.columns.names() {
            let _ = writeln!(text, "    - {{name: {feature}, type: float32}}");
        }
        let _ = write!(text, "---\nkind: FeatureService\nname: {name}\nspec: {{features: [\"{name}\"]}}\n");
        for model in &self.models {
            let _ = write!(
                text,
                "---\nkind: Model\nname: {model}\nspec: {{feature_service: {name}}}\n---\nkind: Deployment\nname: {model}\n\
                 spec: {{model: {model}, champion: {{alias: champion}}, challengers: [], shadows: []}}\n"
            );
        }
        api::SourceFile { path: format!("{name}.yaml"), text }
    }

    /// Applies the definitions and waits until every node of `addresses` takes rows.
    ///
    /// # Errors
    /// What the cluster refuses.
    pub async fn define(&self, addresses: &[String], times: &EventTimes) -> Result<()> {
        let started = Instant::now();
        for (at, address) in addresses.iter().enumerate() {
            let client = Client::connect(address).await?;
            if at == 0 {
                client.apply(PROJECT, vec![self.definitions()]).await?;
            }
            loop {
                match client.ingest_batch(self.ingest(), self.columns.batch(&[0], times.take(1))?).await {
                    Ok(_) => break,
                    // A node that has not applied the definition yet.
                    Err(error) if error.kind() == ErrorKind::NotFound && started.elapsed() < DEFINED_WITHIN => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Writes one row of each entity below `entities`, over one stream. Returns how long it took.
    ///
    /// # Errors
    /// What the node refuses; `Wrong` when a row is not accepted.
    pub async fn fill(&self, address: &str, entities: u64, times: &EventTimes) -> Result<Duration> {
        let client = Client::connect(address).await?;
        let started = Instant::now();
        let (columns, times) = (self.columns.clone(), times.clone());
        let ids: Vec<i64> = (0..entities.cast_signed()).collect();
        let batches: Vec<Vec<i64>> = ids.chunks(LOAD_ROWS).map(<[i64]>::to_vec).collect();
        let source = futures::stream::iter(batches.into_iter().map(move |ids| {
            let batch = columns.batch(&ids, times.take(ids.len()));
            batch.map_err(|error| cairn_client::Error::Input(error.to_string()))
        }));
        let mut answers = client.ingest(self.ingest(), source);
        let mut accepted = 0;
        while let Some(answer) = answers.next().await? {
            accepted += answer.rows_accepted;
        }
        if accepted != entities {
            return Err(Error::wrong(SYSTEM, format!("{accepted} rows accepted of {entities}")));
        }
        Ok(started.elapsed())
    }

    /// Reads some entities and compares every value with the generator's, bit for bit.
    ///
    /// # Errors
    /// `Wrong` naming the value.
    pub async fn check(&self, address: &str, entities: u64) -> Result<()> {
        let last = entities.cast_signed() - 1;
        let ids = [0, last, last / 2, 1];
        let client = Client::connect(address).await?;
        let ask = GetOnlineFeatures { read: read::linearizable(), ..self.online() };
        let (rows, _) = client.online_features(ask).read(&workload::question(&ids)?).await?;
        for (column, feature) in self.columns.names().enumerate() {
            let found = rows.column_by_name(feature).and_then(|found| found.as_primitive_opt::<Float32Type>());
            let found = found.ok_or_else(|| Error::wrong(SYSTEM, format!("no float32 column `{feature}`")))?;
            for (at, id) in ids.iter().enumerate() {
                let expected = self.columns.value(column, *id);
                if at >= found.len() || found.value(at).to_bits() != expected.to_bits() {
                    return Err(Error::wrong(SYSTEM, format!("`{feature}` of {JOIN_KEY} {id} is not {expected}")));
                }
            }
        }
        Ok(())
    }

    pub fn ingest(&self) -> Ingest {
        Ingest::new(PROJECT, self.name)
    }

    pub fn online(&self) -> GetOnlineFeatures {
        GetOnlineFeatures { feature_service: Some(self.name.into()), ..read::online(PROJECT) }
    }

    /// A reader over `DoExchange`, with the default read level.
    ///
    /// # Errors
    /// `Cairn` for an address that is none.
    pub async fn reader(&self, address: &str, questions: Questions) -> Result<Asking> {
        let client = Client::connect(address).await?;
        Ok(Asking { exchange: client.online_features(self.online()), questions, system: SYSTEM })
    }

    /// A writer over one long `DoPut`.
    ///
    /// # Errors
    /// `Cairn` for an address that is none.
    pub async fn writer(&self, address: &str, ring: Ring, times: &EventTimes) -> Result<Writing> {
        let client = Client::connect(address).await?;
        let (batches, source) = mpsc::channel(1);
        let answers = client.ingest(self.ingest(), ReceiverStream::new(source));
        Ok(Writing { batches, answers, ring, times: times.clone() })
    }
}

/// Entity rows to ask for, over and over, each client from another place.
#[derive(Debug, Clone)]
pub struct Ring {
    pub batches: Arc<[RecordBatch]>,
    pub at: usize,
}

/// The same as [`Ring`], of entity rows.
pub type Questions = Ring;

impl Ring {
    fn next(&mut self) -> Result<&RecordBatch> {
        let at = self.at % self.batches.len().max(1);
        self.at = at + 1;
        self.batches.get(at).ok_or_else(|| Error::Internal("nothing to send".to_owned()))
    }
}

/// One client that asks over `DoExchange` and waits for the answer.
pub struct Asking {
    exchange: Exchange,
    questions: Questions,
    system: &'static str,
}

impl Asking {
    /// A client of the echo, which speaks as a node does.
    ///
    /// # Errors
    /// `Cairn` for an address that is none.
    pub async fn of_echo(address: &str, questions: Questions) -> Result<Self> {
        let client = Client::connect(address).await?;
        Ok(Self { exchange: client.online_features(read::online(PROJECT)), questions, system: crate::echo::SYSTEM })
    }

    /// A client that asks for whatever `ask` says.
    ///
    /// # Errors
    /// `Cairn` for an address that is none.
    pub async fn of(address: &str, ask: GetOnlineFeatures, questions: Questions) -> Result<Self> {
        let client = Client::connect(address).await?;
        Ok(Self { exchange: client.online_features(ask), questions, system: SYSTEM })
    }

    /// A client that wants predictions of a deployment.
    ///
    /// # Errors
    /// `Cairn` for an address that is none.
    pub async fn of_deployment(address: &str, deployment: &str, questions: Questions) -> Result<Self> {
        let client = Client::connect(address).await?;
        let ask = Predict { deployment: Some(deployment.to_owned()), ..read::predict(PROJECT) };
        Ok(Self { exchange: client.predict(ask), questions, system: SYSTEM })
    }
}

impl Turn for Asking {
    async fn turn(&mut self) -> Result<usize> {
        let question = self.questions.next()?;
        let asked = question.num_rows();
        let (answer, _) = self.exchange.read(question).await?;
        if answer.num_rows() != asked {
            return Err(Error::wrong(self.system, format!("{} rows for {asked}", answer.num_rows())));
        }
        Ok(asked)
    }
}

/// One client that writes a batch and waits until it is durable.
pub struct Writing {
    batches: mpsc::Sender<cairn_client::Result<RecordBatch>>,
    answers: IngestStream,
    ring: Ring,
    times: EventTimes,
}

impl Turn for Writing {
    async fn turn(&mut self) -> Result<usize> {
        let batch = self.ring.next()?;
        let rows = batch.num_rows();
        let batch = workload::at_time(batch, self.times.take(rows))?;
        // There is room: the batch before this one was answered.
        let _ = self.batches.send(Ok(batch)).await;
        let answer = self.answers.next().await?;
        let accepted = answer.as_ref().map_or(0, |answer| answer.rows_accepted);
        if accepted != rows as u64 {
            return Err(Error::wrong(SYSTEM, format!("{accepted} rows accepted of {rows}: {answer:?}")));
        }
        Ok(rows)
    }
}

/// Registers a model file as the champion of a model that reads the service `table`.
///
/// # Errors
/// What the node refuses.
pub async fn register(address: &str, table: &Table, model: &str, file: &Path) -> Result<()> {
    let client = Client::connect(address).await?;
    let artifact = client.upload_file(file, None).await?;
    let version = client
        .register_model(api::RegisterModelVersionRequest {
            project: PROJECT.into(),
            model: model.into(),
            artifact_root: artifact.root,
            file_name: format!("{model}.onnx"),
            feature_service: table.name.into(),
            author: "cairn-bench".into(),
            ..api::RegisterModelVersionRequest::default()
        })
        .await?;
    client
        .promote(&cairn_client::registry::Promotion {
            project: PROJECT,
            model,
            alias: "champion",
            version: version.version,
            expected: cairn_client::registry::Expected::None,
            author: "cairn-bench",
            reason: "measured",
        })
        .await?;
    Ok(())
}
