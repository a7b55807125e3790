//! What the story tests share: a cluster of real `cairnd` processes with the real client, rows in and out as short
//! text, a seeded source of chance, and the smallest HTTP client.
//!
//! Always true: nothing here waits for time to pass, tries anything twice, or knows the node's insides.

pub mod chance;
pub mod http;
pub mod models;
pub mod rows;
pub mod sql;

use arrow_array::RecordBatch;
use cairn_client::api::SourceFile;
use cairn_client::command::{GetHistoricalFeatures, GetOnlineFeatures, Ingest, Ingested, Read, ReadReply};
use cairn_client::local::{LocalCluster, Place, free_addresses};
use cairn_client::{Client, DEFAULT_PROJECT, api, read};
use std::path::Path;

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A cluster, and a client of its first node.
pub struct Story {
    // Dropped in this order: the processes end before their folder goes.
    pub cluster: LocalCluster,
    pub client: Client,
    folder: tempfile::TempDir,
}

impl Story {
    pub async fn one_node() -> TestResult<Self> {
        Self::nodes(1, &[]).await
    }

    /// `count` nodes, each started with `arguments`, ready to serve.
    pub async fn nodes(count: usize, arguments: &[&str]) -> TestResult<Self> {
        Self::nodes_with(count, arguments, &[]).await
    }

    /// [`Self::nodes`] with `variables` in their environment, as `NAME=value`.
    pub async fn nodes_with(count: usize, arguments: &[&str], variables: &[String]) -> TestResult<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-story-").tempdir()?;
        let binary = Path::new(env!("CARGO_BIN_EXE_cairnd"));
        // Every test runs beside others on a small machine; two shards are as good as four to cut rows by.
        let arguments = [&["--shards", "2", "--cache-mib", "32", "--disk-reserve-mib", "16"], arguments].concat();
        let mut cluster = LocalCluster::new(binary, folder.path(), &arguments);
        for number in 0..count {
            let [address, peer_address] = free_addresses()?;
            let launcher = match variables {
                [] => Vec::new(),
                _ => ["env".to_owned()].into_iter().chain(variables.iter().cloned()).collect(),
            };
            let at = cluster.place(Place { address, peer_address, launcher, extra: Vec::new() });
            cluster.spawn(at)?;
            cluster.ready(at, (number + 1).min(3)).await?;
        }
        let client = Client::connect(&cluster.nodes()[0].address).await?;
        Ok(Self { cluster, client, folder })
    }

    /// A client of one node only, from 0.
    pub async fn client_of(&self, node: usize) -> TestResult<Client> {
        Ok(Client::connect(&self.cluster.nodes()[node].address).await?)
    }

    /// Kills all nodes, and waits until they are back.
    pub async fn restart_all(&mut self) -> TestResult {
        let nodes = self.cluster.nodes().len();
        for node in 0..nodes {
            self.cluster.kill(node).await?;
        }
        for node in 0..nodes {
            self.cluster.spawn(node)?;
        }
        for node in 0..nodes {
            self.cluster.ready(node, nodes).await?;
        }
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Applies one file of definitions, `defs.yaml`.
    pub async fn apply(&self, yaml: &str) -> TestResult<api::ApplyReply> {
        Ok(self.client.apply(DEFAULT_PROJECT, files(yaml)).await?)
    }

    /// Stores one batch and expects every row of it to be taken; returns the token.
    pub async fn store(&self, view: &str, rows: RecordBatch) -> TestResult<String> {
        let count = rows.num_rows() as u64;
        let reply = self.ingest(view, rows).await?;
        assert_eq!((reply.rows_accepted, reply.rows_rejected), (count, 0), "{reply:?}");
        Ok(reply.token)
    }

    pub async fn ingest(&self, view: &str, rows: RecordBatch) -> cairn_client::Result<Ingested> {
        self.client.ingest_batch(into(view), rows).await
    }

    /// One online read of everything acknowledged before it.
    pub async fn online(&self, ask: GetOnlineFeatures, keys: &RecordBatch) -> cairn_client::Result<RecordBatch> {
        Ok(self.client.online_features(ask).read(keys).await?.0)
    }

    /// A training set as one batch.
    pub async fn historical(
        &self,
        ask: &GetHistoricalFeatures,
        spine: &[RecordBatch],
    ) -> cairn_client::Result<(RecordBatch, ReadReply)> {
        join(&self.client, ask, spine).await
    }

    /// Stops every node with SIGTERM; a node that does not stop cleanly fails the test.
    pub async fn end(self) -> TestResult {
        Ok(self.cluster.stop().await?)
    }
}

/// A training set as one batch, from the node of `client`.
pub async fn join(
    client: &Client,
    ask: &GetHistoricalFeatures,
    spine: &[RecordBatch],
) -> cairn_client::Result<(RecordBatch, ReadReply)> {
    let batches: Vec<_> = spine.iter().cloned().map(Ok).collect();
    let schema = spine[0].schema();
    let mut joined = client.historical_features(ask.clone(), schema, futures::stream::iter(batches)).await?;
    let mut parts = Vec::new();
    while let Some(part) = joined.next().await? {
        parts.push(part);
    }
    let whole = arrow_select::concat::concat_batches(joined.schema(), &parts).expect("parts of one schema");
    Ok((whole, joined.read_reply().clone()))
}

/// Definitions as one file.
pub fn files(yaml: &str) -> Vec<SourceFile> {
    vec![SourceFile { path: "defs.yaml".into(), text: yaml.into() }]
}

/// An ingest without a producer.
pub fn into(view: &str) -> Ingest {
    Ingest::new(DEFAULT_PROJECT, view)
}

/// An ingest that is applied once, however often it is sent.
pub fn once(view: &str, producer: &str, sequence: u64) -> Ingest {
    Ingest { producer: Some(producer.into()), sequence: Some(sequence), ..into(view) }
}

/// An online read of `view:feature` references that sees everything acknowledged before it.
pub fn features(references: &[&str]) -> GetOnlineFeatures {
    let references = references.iter().map(|&it| it.to_owned()).collect();
    GetOnlineFeatures { features: Some(references), ..latest() }
}

/// An online read of a service that sees everything acknowledged before it.
pub fn service(name: &str) -> GetOnlineFeatures {
    GetOnlineFeatures { feature_service: Some(name.into()), ..latest() }
}

fn latest() -> GetOnlineFeatures {
    GetOnlineFeatures { read: read::linearizable(), ..read::online(DEFAULT_PROJECT) }
}

/// A training set of `view:feature` references over everything acknowledged before it.
pub fn training(references: &[&str]) -> GetHistoricalFeatures {
    let references = references.iter().map(|&it| it.to_owned()).collect();
    GetHistoricalFeatures {
        features: Some(references),
        read: read::linearizable(),
        ..read::historical(DEFAULT_PROJECT)
    }
}

/// Whatever this replica has.
pub fn stale() -> Read {
    Read { level: cairn_client::command::Level::Stale, ..Read::default() }
}

/// What an apply or a plan says, a line a change.
pub fn changes(changes: &[api::Change]) -> String {
    let line = |change: &api::Change| {
        let rows = if change.loses_rows { " without rows" } else { "" };
        format!(
            "{} {} {} {}→{}{rows}\n",
            change.action, change.kind, change.name, change.from_version, change.to_version
        )
    };
    changes.iter().map(line).collect()
}
