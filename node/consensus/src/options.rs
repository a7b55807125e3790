//! What the embedding process decides: where, who, how fast.

use crate::error::Error;
use crate::types::{GroupId, NodeId};
use crate::wal::{Files, RealFiles};
use bytes::Bytes;
use cairn_proto::record::v1 as record;
use cairn_storage::digest::Digest;
use cairn_storage::replica::Replica;
use openraft::{Config, SnapshotPolicy};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Microseconds since 1970: stamps the commands this crate proposes itself.
pub type Clock = fn() -> i64;

#[derive(Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    /// Unique in the cluster; fixed once the node has an identity.
    pub name: String,
    /// Already bound, so that a taken port is the caller's error.
    pub peer_listener: std::net::TcpListener,
    /// HOST:PORT that other nodes reach the listener by.
    pub peer_address: String,
    /// HOST:PORT for clients; only told to others.
    pub client_address: String,
    pub timers: Timers,
    pub snapshots: SnapshotOptions,
    pub wal: crate::wal::WalOptions,
    /// The file system that the log is on; nothing else goes through it.
    pub log_files: Arc<dyn Files>,
    /// How long a join is tried before it is given up.
    pub join_timeout: Duration,
    /// How leads and voters are spread over the nodes.
    pub balance: BalanceOptions,
    /// Between two comparisons of a group's replicas; `None` = they are not compared.
    pub audit_interval: Option<Duration>,
    /// Bytes of proposals under way in one group; above it proposals are refused as overloaded.
    pub proposal_bytes_max: usize,
    pub clock: Clock,
    /// Replicas to be made new before the node starts.
    pub rebuild: Option<Rebuild>,
}

/// Damaged replicas, and who has them whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    pub groups: Vec<GroupId>,
    /// Peer address of another node of the cluster.
    pub from: String,
}

impl Options {
    /// The settings of a node in production; every field may be changed after.
    pub fn new(data_dir: PathBuf, name: String, peer_listener: std::net::TcpListener, clock: Clock) -> Self {
        let address = peer_listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string());
        Self {
            data_dir,
            name,
            peer_listener,
            peer_address: address,
            client_address: String::new(),
            timers: Timers::default(),
            snapshots: SnapshotOptions::default(),
            wal: crate::wal::WalOptions::default(),
            log_files: Arc::new(RealFiles),
            join_timeout: Duration::from_secs(60),
            balance: BalanceOptions::default(),
            audit_interval: Some(Duration::from_secs(600)),
            proposal_bytes_max: 256 << 20,
            clock,
            rebuild: None,
        }
    }
}

/// Raft's times, milliseconds.
///
/// A follower that heard its leader grants it a lease of `election_max_ms`, and stands for election between
/// `election_min_ms` and `election_max_ms` after that: openraft adds the two up.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

impl Default for Timers {
    /// For a LAN with fsync stalls: a lease outlives two lost heartbeats, and a follower doubts its leader after
    /// 2.25–3 s.
    fn default() -> Self {
        Self { heartbeat_ms: 500, election_min_ms: 750, election_max_ms: 1500 }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct SnapshotOptions {
    /// Entries after which a group makes a snapshot and may purge its log.
    pub every_entries: u64,
    /// Entries before the snapshot that stay in the log, for followers a little behind.
    pub keep_entries: u64,
    /// Rate of one transfer, 0 = no limit.
    pub bytes_per_second: u64,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { every_entries: 50_000, keep_entries: 5_000, bytes_per_second: 200 << 20 }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct BalanceOptions {
    /// Between two looks at how leads and voters are spread; a move is made when two looks agree on it.
    pub interval: Duration,
    /// A group that was moved stays where it is for this long.
    pub rest: Duration,
}

impl Default for BalanceOptions {
    /// Slow enough that a node that comes back is not taken for an idle one, and that a move is over before the next.
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), rest: Duration::from_secs(30) }
    }
}

/// What a node without data does. A node with data continues, whatever this says.
#[derive(Debug, Clone)]
pub enum Start {
    /// Starts a new cluster of one.
    Bootstrap {
        shards: u32,
        /// 0 = min(3, nodes)
        replication_factor: u32,
    },
    /// Joins the cluster of the node at this peer address.
    Join { address: String },
}

/// What this crate asks of the process around it.
pub trait Host: Send + Sync + 'static {
    /// Looks whether this version can open the state machine of a group in `dir`, if there is one. Blocks, writes
    /// nothing. Called for every group before any of them is opened.
    ///
    /// # Errors
    /// Any error stops the start.
    fn check_replica(&self, group: GroupId, dir: &Path) -> Result<(), cairn_storage::Error>;

    /// Opens the state machine of a group in `dir`. Blocks. Called once a group, before the node takes part.
    ///
    /// # Errors
    /// Any error stops the start.
    fn open_replica(&self, group: GroupId, dir: &Path) -> Result<Arc<dyn Replica>, cairn_storage::Error>;

    /// The nodes as meta knows them on this node, empty before the cluster's first entry. Cheap.
    fn nodes(&self) -> Vec<record::Node>;

    /// The nodes that were taken out of the cluster. Cheap.
    fn removed_nodes(&self) -> Vec<NodeId>;

    /// 0 = min(3, nodes)
    fn replication_factor(&self) -> u32;

    /// Artifacts that meta refers to and this node does not hold. Asked while a node is being removed.
    fn artifacts_missing(&self) -> u64;

    /// Whether this node has room for writes. Asked before it leads a proposal, takes entries of a leader or receives a
    /// file. Cheap.
    ///
    /// # Errors
    /// `ReadOnly`, with the reason and the fix.
    fn check_room(&self) -> Result<(), cairn_storage::Error>;
}

/// Artifacts on this node, for its peers.
#[tonic::async_trait]
pub trait BlobPeer: Send + Sync + 'static {
    /// Stores the file `root` of `size` bytes. An `Err` in `data` is a transfer that broke. Returns the bytes it took
    /// on disk; the file is durable then.
    async fn put(&self, root: [u8; 32], size: u64, data: mpsc::Receiver<Result<Bytes, Error>>) -> Result<u64, Error>;

    /// The file `root`: its size and its bytes, verified.
    async fn get(&self, root: [u8; 32]) -> Result<(u64, mpsc::Receiver<Result<Bytes, Error>>), Error>;
}

/// A node that keeps no artifacts.
#[derive(Debug, Clone, Copy)]
pub struct NoBlobs;

#[tonic::async_trait]
impl BlobPeer for NoBlobs {
    async fn put(&self, _: [u8; 32], _: u64, _: mpsc::Receiver<Result<Bytes, Error>>) -> Result<u64, Error> {
        Err(Error::Unsupported("this node keeps no artifacts".into()))
    }

    async fn get(&self, _: [u8; 32]) -> Result<(u64, mpsc::Receiver<Result<Bytes, Error>>), Error> {
        Err(Error::Unsupported("this node keeps no artifacts".into()))
    }
}

/// One group on this node, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    pub group: GroupId,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub term: u64,
    /// Indexes, 0 = none.
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub applied_time_us: i64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Its membership is joint, or not committed yet.
    pub changing: bool,
    /// The other members as the leader sees them; empty on any other node.
    pub followers: Vec<Follower>,
    /// Why this group stopped.
    pub failure: Option<String>,
    /// The last digests taken of this replica.
    pub digests: Vec<Digest>,
}

/// A member of a group as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    pub node: NodeId,
    /// Last entry known to be in its log, 0 = none.
    pub matched_index: u64,
    /// It answered within an election timeout.
    pub heard: bool,
    /// Heard, and close enough behind to lead or to count for a quorum.
    pub ready: bool,
}

impl GroupStatus {
    /// The members that were heard lately and are close behind, as the leader sees them; the leader itself included.
    pub fn ready(&self) -> impl Iterator<Item = NodeId> {
        let others = self.followers.iter().filter(|follower| follower.ready).map(|follower| follower.node);
        self.leader.filter(|_| self.is_leader).into_iter().chain(others)
    }
}

/// openraft's configuration; every hazard it closes is in ADR-0002.
pub(crate) fn raft_config(cluster_id: &str, timers: &Timers, snapshots: &SnapshotOptions) -> Result<Config, Error> {
    let config = Config {
        cluster_name: cluster_id.to_owned(),
        heartbeat_interval: timers.heartbeat_ms,
        heartbeat_min_interval: Some(0),
        election_timeout_min: timers.election_min_ms,
        election_timeout_max: timers.election_max_ms,
        quorum_loss_probe_interval: Some(timers.election_max_ms * 2),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshots.every_entries.max(1)),
        replication_lag_threshold: snapshots.every_entries.saturating_mul(2),
        max_in_snapshot_log_to_keep: snapshots.keep_entries,
        purge_batch_size: (snapshots.every_entries / 16).max(1),
        max_payload_entries: 1024,
        api_channel_size: Some(8192),
        backoff: "100ms 200ms 400ms ...1s".to_owned(),
        ..Config::default()
    };
    config.validate().map_err(|error| Error::InvalidArgument(format!("raft timers: {error}")))
}
