//! From configuration to a running node, and back to a clean stop.

use crate::api;
use crate::backfill::Backfills;
use crate::clock::now_us;
use crate::config::NodeConfig;
use crate::connections::Connections;
use crate::features::PlanCache;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::segments::objects::Objects;
use crate::sql::Sql;
use crate::stores::Stores;
use crate::writes::WriteGate;
use arrow_flight::flight_service_server::FlightServiceServer;
use cairn_consensus::{Cluster, Options, SnapshotOptions, Start};
use cairn_executor::Executor;
use cairn_proto::MESSAGE_BYTES_MAX;
use cairn_proto::api::v1 as wire;
use cairn_query::source::ShardedSource;
use cairn_storage::segment::SegmentStore;
use cairn_storage::shard::home_shard;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Row groups of segments that point reads met; a quarter of what the block cache has, and no more than this.
const SEGMENT_CACHE_BYTES_MAX: usize = 256 << 20;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen { address: std::net::SocketAddr, what: &'static str, source: std::io::Error },
    #[error(transparent)]
    Consensus(#[from] cairn_consensus::Error),
    #[error(transparent)]
    Query(#[from] cairn_query::Error),
    #[error("{0}")]
    Stopped(String),
}

/// Runs a node until `shutdown` resolves or it cannot go on.
///
/// # Errors
/// What kept it from starting, or the failure (a failed fsync, a state machine that had to stop) that ended it.
pub async fn run(config: NodeConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "starting");
    let listener = TcpListener::bind(config.listen).await.map_err(|source| Error::Listen {
        address: config.listen,
        what: "client port, set by --listen",
        source,
    })?;
    let peer_listener = std::net::TcpListener::bind(config.peer_listen).map_err(|source| Error::Listen {
        address: config.peer_listen,
        what: "peer port, set by --peer-listen",
        source,
    })?;
    let node = start(config, &listener, peer_listener).await?;
    let mut failure = node.cluster.failure();
    let gate = node.writes.watch();
    let copies = tokio::spawn(crate::artifacts::keep_copies(Arc::clone(&node)));
    let moves = tokio::spawn(crate::moves::drive(Arc::clone(&node)));
    let tiering = tokio::spawn(crate::tiering::drive(Arc::clone(&node)));
    let segments = tokio::spawn(crate::tiering::keep_segments(Arc::clone(&node)));
    let jobs = tokio::spawn(crate::backfill::drive(Arc::clone(&node)));
    // Printed on its own, so that scripts and people can wait for it.
    println!("cairnd ready: clients {} peers {}", node.client_address, node.peer_address);

    let connections = Connections::new(Connections::places(), node.stopping.clone());
    let mut shutdown = std::pin::pin!(shutdown);
    let service = service(&node);
    let outcome = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            failed = failure.wait_for(Option::is_some) => {
                let why = failed.ok().and_then(|failed| failed.clone()).unwrap_or_else(|| "consensus ended".to_owned());
                break Err(Error::Stopped(why));
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if !connections.serve(stream, service.clone()) {
                        node.metrics.connection_refused();
                    }
                }
                // Out of file descriptors, say: connections already open free some.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    };
    drop(listener);
    gate.abort();
    copies.abort();
    moves.abort();
    tiering.abort();
    segments.abort();
    jobs.abort();
    if outcome.is_ok() {
        tracing::info!("stopping");
        connections.drain().await;
    }
    node.cluster.shutdown().await;
    outcome
}

/// Opens everything and takes part in the cluster.
async fn start(
    config: NodeConfig,
    listener: &TcpListener,
    peer_listener: std::net::TcpListener,
) -> Result<Arc<Node>, Error> {
    let local = |address: std::io::Result<std::net::SocketAddr>, fallback: std::net::SocketAddr| {
        address.unwrap_or(fallback).to_string()
    };
    let client_address = config.advertise.clone().unwrap_or_else(|| local(listener.local_addr(), config.listen));
    let peer_address =
        config.peer_advertise.clone().unwrap_or_else(|| local(peer_listener.local_addr(), config.peer_listen));
    let writes = WriteGate::new(config.data_dir.clone(), config.disk_reserve_bytes);
    let stores = Stores::new(&config.data_dir, config.cache_bytes, writes.clone());
    let options = Options {
        data_dir: config.data_dir.clone(),
        name: config.name.clone().unwrap_or_else(|| name_of(&client_address)),
        peer_listener,
        peer_address: peer_address.clone(),
        client_address: client_address.clone(),
        timers: Default::default(),
        snapshots: SnapshotOptions {
            every_entries: config.snapshot_entries,
            // A follower this little behind goes on from the log instead of a snapshot.
            keep_entries: config.snapshot_entries / 2,
            ..SnapshotOptions::default()
        },
        wal: Default::default(),
        log_files: Arc::new(cairn_consensus::wal::RealFiles),
        join_timeout: config.join_timeout,
        balance: Default::default(),
        audit_interval: config.audit_interval,
        proposal_bytes_max: 256 << 20,
        rebuild: config.rebuild.clone(),
        clock: now_us,
    };
    let start = match config.join.clone() {
        Some(address) => Start::Join { address },
        None => Start::Bootstrap { shards: config.shards, replication_factor: 0 },
    };
    let cluster = Cluster::start(options, start, stores.clone(), stores.clone()).await?;
    let missing = || Error::Stopped("the meta group did not open".to_owned());
    let (meta, blobs) = (stores.meta().ok_or_else(missing)?, stores.blobs().ok_or_else(missing)?);

    // The slot map is in the cluster's first entry; a node that has just joined receives it.
    let deadline = tokio::time::Instant::now() + config.join_timeout;
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let info = loop {
        if let Some(info) = meta.catalog().cluster() {
            break Arc::clone(info);
        }
        if tokio::time::Instant::now() > deadline {
            let waited = config.join_timeout;
            return Err(Error::Stopped(format!(
                "the cluster's first entry did not arrive within {waited:?}; is a quorum of it up?"
            )));
        }
        tick.tick().await;
    };
    let objects = config.segments_url.as_ref().map(|url| Objects::open(url, cluster.cluster_id())).transpose();
    let objects = objects.map_err(|why| Error::Stopped(format!("`segments-url`: {why}")))?;
    let shards = stores.shards();
    let segments = SegmentStore::new(Arc::clone(&blobs), (config.cache_bytes / 4).min(SEGMENT_CACHE_BYTES_MAX));
    shards.iter().for_each(|(_, shard)| shard.keep_segments_in(Arc::clone(&segments)));
    let home: Vec<u32> = (0..cairn_proto::SLOTS as u16).map(|slot| home_shard(slot, info.shards)).collect();
    let source = ShardedSource::new(&home, shards.clone())?;
    let moved = Node::watch_moves(&shards);
    let executor = cairn_executor::Options { threads: config.executor_threads, ..Default::default() };
    let executor = Executor::new(executor).map_err(|error| Error::Stopped(format!("executor threads: {error}")))?;
    let sql = Sql::new(&config.data_dir, config.sql, Arc::clone(&meta));
    let sql = sql.map_err(|error| Error::Stopped(error.to_string()))?;
    let backfills = Backfills::new(&config.data_dir).map_err(|error| Error::Stopped(error.to_string()))?;
    Ok(Arc::new(Node {
        client_address,
        peer_address,
        cluster,
        meta,
        shards: shards.into_iter().map(|(_, shard)| shard).collect(),
        source,
        moved,
        blobs,
        objects,
        executor,
        sql,
        backfills,
        loading: tokio::sync::Mutex::new(()),
        plans: PlanCache::default(),
        writes,
        metrics: Metrics::default(),
        streams: Node::new_streams(),
        stopping: CancellationToken::new(),
        joins: Node::new_joins(),
        backtests: Node::new_backtests(),
        config,
    }))
}

/// A node's name when none is given: its client address in the characters a name may have.
fn name_of(address: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    address.chars().map(allowed).collect::<String>().trim_matches('-').to_owned()
}

/// gRPC and HTTP of one node, on one port.
fn service(node: &Arc<Node>) -> axum::Router {
    let flight = FlightServiceServer::new(api::flight::Flight { node: Arc::clone(node) })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let definitions = api::definitions::Definitions { node: Arc::clone(node) };
    let registry = api::registry::Registry { node: Arc::clone(node) };
    let datasets = api::datasets::Datasets { node: Arc::clone(node) };
    let jobs = api::jobs::Jobs { node: Arc::clone(node) };
    let backtests = api::backtests::Backtests { node: Arc::clone(node) };
    let artifacts = api::artifacts::Artifacts { node: Arc::clone(node) };
    let cluster = api::cluster::ClusterService { node: Arc::clone(node) };
    let limit = MESSAGE_BYTES_MAX;
    let grpc = Routes::new(flight)
        .add_service(wire::definitions_server::DefinitionsServer::new(definitions).max_decoding_message_size(limit))
        .add_service(wire::registry_server::RegistryServer::new(registry))
        .add_service(wire::datasets_server::DatasetsServer::new(datasets))
        .add_service(wire::jobs_server::JobsServer::new(jobs))
        .add_service(wire::backtests_server::BacktestsServer::new(backtests))
        .add_service(wire::artifacts_server::ArtifactsServer::new(artifacts).max_decoding_message_size(limit))
        .add_service(wire::cluster_server::ClusterServer::new(cluster));
    api::http::router(Arc::clone(node)).merge(grpc.into_axum_router().reset_fallback()).fallback(api::http::unknown)
}
