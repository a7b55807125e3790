//! Everything a request needs, in one place: the groups of this node, what they hold, and the limits on their use.

use crate::artifacts;
use crate::backfill::Backfills;
use crate::config::NodeConfig;
use crate::error::{Error, Result};
use crate::features::PlanCache;
use crate::metrics::Metrics;
use crate::segments::objects::Objects;
use crate::sql::Sql;
use crate::writes::WriteGate;
use cairn_consensus::Cluster;
use cairn_executor::Executor;
use cairn_proto::ErrorKind;
use cairn_proto::command::{Level, Read, ReadReply, ShardPosition};
use cairn_proto::time::Timestamp;
use cairn_proto::token::Token;
use cairn_query::source::ShardedSource;
use cairn_storage::blob::BlobStore;
use cairn_storage::meta::Meta;
use cairn_storage::replica::Replica;
use cairn_storage::shard::Shard;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a write waits for its commit before its outcome is called unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a read waits for the state it asked for.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Open Flight streams.
const STREAMS_MAX: usize = 4_096;
/// Historical joins running side by side; more wait their turn.
const JOINS_MAX: usize = 2;
/// Backtests running side by side, each of which holds the rows it has scored; more wait their turn.
const BACKTESTS_MAX: usize = 2;
/// How long a backtest waits for its turn.
const BACKTEST_TURN_MAX: Duration = Duration::from_secs(30);

pub struct Node {
    pub config: NodeConfig,
    /// Where clients reach this node.
    pub client_address: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    pub cluster: Arc<Cluster>,
    pub meta: Arc<Meta>,
    /// Shard `i` at `i - 1`.
    pub shards: Vec<Arc<Shard>>,
    pub source: Arc<ShardedSource>,
    /// Counts changes of what the shards of this node hold, so that writes can wait for one.
    pub moved: watch::Sender<u64>,
    pub blobs: Arc<BlobStore>,
    /// Where segments are kept beside the nodes, if anywhere.
    pub objects: Option<Arc<Objects>>,
    pub executor: Executor,
    pub sql: Sql,
    pub backfills: Backfills,
    /// Held while a model is loaded, so that two requests for the same one load it once.
    pub loading: tokio::sync::Mutex<()>,
    pub plans: PlanCache,
    pub writes: WriteGate,
    pub metrics: Metrics,
    pub streams: Arc<Semaphore>,
    pub joins: Arc<Semaphore>,
    pub backtests: Arc<Semaphore>,
    /// Cancelled when the node is told to stop: open streams end at their next pause.
    pub stopping: CancellationToken,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.cluster.node_id()).finish_non_exhaustive()
    }
}

impl Node {
    pub fn new_streams() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(STREAMS_MAX))
    }

    pub fn new_joins() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(JOINS_MAX))
    }

    pub fn new_backtests() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(BACKTESTS_MAX))
    }

    pub fn shard_count(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap_or(u32::MAX)
    }

    /// Counts up when a shard of this node comes to hold other slots.
    pub fn watch_moves(shards: &[(u32, Arc<Shard>)]) -> watch::Sender<u64> {
        let moved = watch::Sender::new(0);
        for (_, shard) in shards {
            let moved = moved.clone();
            shard.follow_claims(move |_| moved.send_modify(|count| *count += 1));
        }
        moved
    }

    /// The shard to write a slot's rows to, all of one moment. Where no replica here has the slot, meta knows better.
    pub fn write_routes(&self) -> impl Fn(u16) -> u32 + use<> {
        let (routes, catalog) = (self.source.routes(), self.meta.catalog());
        move |slot| routes.shard_of(slot).unwrap_or_else(|| catalog.slot_shard(slot).unwrap_or(0))
    }

    pub fn write_deadline(&self) -> Instant {
        Instant::now() + WRITE_TIMEOUT
    }

    pub fn read_deadline(&self) -> Instant {
        Instant::now() + READ_TIMEOUT
    }

    /// A place for one more stream.
    ///
    /// # Errors
    /// `Overloaded` when all are taken.
    pub fn admit_stream(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let message = format!(
                "{STREAMS_MAX} streams are open, the limit of this node; try again in a second or use another node"
            );
            Error::new(ErrorKind::Overloaded, message)
        })
    }

    /// A place for one more historical join, waiting for it if need be.
    ///
    /// # Errors
    /// `Overloaded` when none came free within the read time-out.
    pub async fn admit_join(&self) -> Result<OwnedSemaphorePermit> {
        let place = tokio::time::timeout(READ_TIMEOUT, Arc::clone(&self.joins).acquire_owned()).await;
        match place {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(
                ErrorKind::Overloaded,
                format!("{JOINS_MAX} historical joins are running; try again later"),
            )),
        }
    }

    /// A place for one more backtest, waiting for it if need be.
    ///
    /// # Errors
    /// `Overloaded` when none came free in time.
    pub async fn admit_backtest(&self) -> Result<OwnedSemaphorePermit> {
        match tokio::time::timeout(BACKTEST_TURN_MAX, Arc::clone(&self.backtests).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(
                ErrorKind::Overloaded,
                format!("{BACKTESTS_MAX} backtests are running; try again later or use another node"),
            )),
        }
    }

    /// Client addresses of all nodes, this one first.
    pub fn client_addresses(&self) -> Vec<String> {
        let mut addresses = vec![self.client_address.clone()];
        let catalog = self.meta.catalog();
        addresses.extend(
            catalog.nodes().filter(|node| node.id != self.cluster.node_id()).map(|node| node.client_address.clone()),
        );
        addresses
    }

    /// Waits until the groups are as fresh as `read` asks; says how far each is. Rows are read after that and may be newer, so
    /// the token is [`Self::seen`]'s to fill in.
    ///
    /// # Errors
    /// `Timeout` or `Unavailable` when that state does not come; `InvalidArgument` for a bad token.
    pub async fn ensure(&self, read: &Read, groups: std::ops::RangeInclusive<u32>) -> Result<ReadReply> {
        let mut reply = ReadReply { level: Some(read.level), ..ReadReply::default() };
        let wanted: Token = read.token.as_deref().unwrap_or_default().parse()?;
        if read.level == Level::Session && read.token.is_none() {
            return Err(Error::invalid("the level `session` needs a `token`: the one a write or read returned"));
        }
        let deadline = self.read_deadline();
        for group in groups.clone() {
            if let Some(index) = wanted.get(group) {
                self.cluster.wait_applied(group, index, deadline).await?;
            }
            if read.level == Level::Bounded {
                self.cluster.bounded(group, Duration::from_millis(read.bounded_ms), deadline).await?;
            }
        }
        if read.level == Level::Linearizable {
            let rounds = groups.clone().map(|group| self.cluster.linearizable(group, deadline));
            futures::future::try_join_all(rounds).await?;
        }
        for group in groups.filter(|group| *group > 0) {
            let applied = self.shard(group)?.applied();
            let applied_time = Timestamp(applied.time_us);
            reply.shards.push(ShardPosition { shard: group, applied_index: applied.index, applied_time });
        }
        Ok(reply)
    }

    /// Makes the token of a reply cover everything that its rows, which have been read, may show. Whoever reads at least
    /// this elsewhere never sees less than before.
    pub fn seen(&self, reply: &mut ReadReply) {
        let mut token = Token::default();
        token.advance(0, self.meta.applied().index);
        for (group, shard) in (1..).zip(&self.shards) {
            token.advance(group, shard.seen());
        }
        reply.token = token.to_string();
    }

    /// Waits until this node's catalog holds every definition acknowledged before now.
    ///
    /// # Errors
    /// `Timeout` or `Unavailable` when no leader answers.
    pub async fn fresh_catalog(&self) -> Result<Arc<cairn_storage::catalog::Catalog>> {
        self.cluster.linearizable(0, self.read_deadline()).await?;
        Ok(self.meta.catalog())
    }

    /// Commit time of what this node has applied of a group, microseconds.
    pub fn applied_us(&self, group: u32) -> i64 {
        match group {
            0 => self.meta.applied().time_us,
            shard => self.shard(shard).map_or(0, |shard| shard.applied().time_us),
        }
    }

    /// Why this node should not get traffic yet; `None` = it should.
    pub fn not_ready(&self) -> Option<String> {
        let groups = self.cluster.status();
        let headless: Vec<String> =
            groups.iter().filter(|group| group.leader.is_none()).map(|group| group.group.to_string()).collect();
        if !headless.is_empty() {
            return Some(format!("no leader is known for group {}", headless.join(", ")));
        }
        if self.meta.catalog().cluster().is_none() {
            return Some("the cluster's first entry is not applied yet".to_owned());
        }
        match artifacts::missing_segments(&self.shards, &self.blobs).len() {
            0 => None,
            missing => Some(format!("{missing} segments of the history are still on their way to this node")),
        }
    }

    /// # Errors
    /// `Internal` for a shard that the cluster does not have.
    pub fn shard(&self, group: u32) -> Result<&Arc<Shard>> {
        let shard = (group as usize).checked_sub(1).and_then(|at| self.shards.get(at));
        shard.ok_or_else(|| Error::internal(format!("shard {group} does not exist")))
    }
}
