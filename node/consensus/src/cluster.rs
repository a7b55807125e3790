//! [`Cluster`]: what the rest of a node knows of consensus.

use crate::audit::{self, Audits};
use crate::balance::{self, Rebalanced};
use crate::door;
use crate::error::{Error, Result};
use crate::founding;
use crate::identity::{DataDir, Identity};
use crate::lead;
use crate::link::Peers;
use crate::log_store::LogStore;
use crate::machine;
use crate::membership;
use crate::network::Network;
use crate::node::{Group, Node};
use crate::options::{BlobPeer, GroupStatus, Host, Options, Start, raft_config};
use crate::propose::{self, Proposed};
use crate::reads::{self, Reads};
use crate::rebuild::{self, group_dir, snapshot_dir};
use crate::server::PeerService;
use crate::snapshot::{Received, SnapshotStore};
use crate::standing;
use crate::state_machine::StateMachine;
use crate::transfer;
use crate::types::*;
use crate::view::{self, ClusterView};
use crate::wal::Wal;
use bytes::Bytes;
use cairn_proto::MESSAGE_BYTES_MAX;
use cairn_proto::peer::v1::peer_server::PeerServer;
use cairn_storage::replica::Replica;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

const MESSAGE_SLACK: usize = 1 << 20;
const WINDOW_BYTES: u32 = 8 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a stopping node waits for others to take over its groups.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Log segments behind the newest that a group may keep from being deleted.
const PINNED_SEGMENTS_MAX: u64 = 8;
const DAMAGE_INTERVAL: Duration = Duration::from_millis(200);
const PINNED_INTERVAL: Duration = Duration::from_secs(1);

/// All groups of this node. Dropping it without [`Cluster::shutdown`] leaves its tasks running.
pub struct Cluster {
    node: Arc<Node>,
    wal: Arc<Wal>,
    snapshots: BTreeMap<GroupId, Arc<SnapshotStore>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Cluster {
    /// Starts this node: continues from its data, or starts or joins a cluster if it has none.
    ///
    /// Returns when the groups run; a node that joined is then added to them in the background.
    ///
    /// # Errors
    /// `Unavailable` for a data directory in use or a peer that does not answer, `Unsupported` for data of a newer
    /// version, what the cluster says to a join (`AlreadyExists` for a taken name), and whatever disks say.
    pub async fn start(
        options: Options,
        start: Start,
        host: Arc<dyn Host>,
        blobs: Arc<dyn BlobPeer>,
    ) -> Result<Arc<Self>> {
        let dir = options.data_dir.clone();
        let data_dir = blocking(move || DataDir::open(&dir)).await?;
        // Data of a newer version is left as it is: everything is looked at before anything is written.
        let known_before = data_dir.identity()?;
        for group in 0..=known_before.as_ref().map_or(0, |identity| identity.shards) {
            if options.rebuild.as_ref().is_some_and(|ask| ask.groups.contains(&group)) {
                continue;
            }
            let (host, dir) = (host.clone(), group_dir(data_dir.path(), group));
            blocking(move || Ok(host.check_replica(group, &dir)?)).await?;
        }
        // The log is there before the identity, so an identity without a log is one that lost it.
        let wal = open_wal(&options).await?;
        if wal.created() && known_before.is_some() {
            return Err(Error::Corrupt(format!(
                "the log of data directory {} is gone, and with it this node's votes: move the directory away and \
                 join as a new node",
                data_dir.path().display()
            )));
        }
        match (&options.rebuild, &known_before) {
            (Some(ask), Some(identity)) => rebuild::run(data_dir.path(), identity, &wal, ask).await?,
            (Some(_), None) => {
                let dir = data_dir.path().display();
                return Err(Error::InvalidArgument(format!("there is nothing to rebuild: {dir} holds no node yet")));
            }
            (None, _) => {}
        }
        let (identity, known) = founding::identity(&data_dir, &options, &start).await?;
        if identity.name != options.name {
            tracing::warn!(name = %identity.name, asked = %options.name, "a node keeps the name it joined with");
        }
        let peers = Peers::new(identity.cluster_id.clone(), identity.node_id);
        for node in &known {
            peers.book.suggest(node.id, &node.peer_address);
        }
        let parts = Parts::new(&identity, &options, &wal, &peers)?;
        let opening = (0..=identity.shards).map(|id| open_group(&parts, id, host.clone()));
        let opened = futures::future::try_join_all(opening).await?;

        let mut groups = BTreeMap::new();
        let mut snapshots = BTreeMap::new();
        let mut queues = Vec::new();
        for Opened { group, store, reads } in opened {
            snapshots.insert(group.id, store);
            queues.push((group.clone(), reads));
            groups.insert(group.id, group);
        }
        let Options { peer_listener, peer_address, client_address, clock, balance, audit_interval, .. } = options;
        let node = Arc::new(Node {
            identity,
            peer_address,
            client_address,
            clock,
            peers,
            groups,
            host,
            blobs,
            failure: watch::Sender::new(None),
            stop: CancellationToken::new(),
            data_dir: Mutex::new(Some(data_dir)),
            refused: AtomicU64::new(0),
            audit_interval,
            audits: Audits::default(),
            balance,
            balancing: tokio::sync::Mutex::default(),
        });
        node.learn_addresses();

        let mut tasks = JoinSet::new();
        serve(&node, peer_listener, snapshots.clone(), &mut tasks)?;
        for (group, queue) in queues {
            tasks.spawn(watch_failure(node.clone(), group.clone(), wal.clone()));
            tasks.spawn(watch_damage(node.clone(), group.clone()));
            tasks.spawn(reads::run(node.clone(), group, queue));
        }
        founding::begin(&node, &start).await?;
        tasks.spawn(membership::run(node.clone()));
        tasks.spawn(balance::run(node.clone()));
        tasks.spawn(audit::run(node.clone()));
        let join = match &start {
            Start::Join { address } => Some(address.clone()),
            Start::Bootstrap { .. } => None,
        };
        tasks.spawn(standing::watch(node.clone(), join));
        tasks.spawn(purge_pinned(node.clone(), wal.clone()));
        tasks.spawn(founding::keep_address(node.clone()));
        Ok(Arc::new(Self { node, wal, snapshots, tasks: Mutex::new(tasks) }))
    }

    pub fn node_id(&self) -> NodeId {
        self.node.me()
    }

    pub fn cluster_id(&self) -> &str {
        &self.node.identity.cluster_id
    }

    /// The name this node has in the cluster.
    pub fn name(&self) -> &str {
        &self.node.identity.name
    }

    /// Number of feature shards: groups are 0…=shards.
    pub fn shards(&self) -> u32 {
        self.node.identity.shards
    }

    /// Commits and applies `command`, from any node: forwarded to the leader, held while there is none.
    ///
    /// `idempotent`: the state machine deduplicates it, so it may be sent again when an answer was lost.
    ///
    /// # Errors
    /// `Timeout`: the outcome is unknown. `Unavailable`, `Overloaded`, `TooLarge`: nothing was proposed.
    pub async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        idempotent: bool,
        deadline: Instant,
    ) -> Result<Proposed> {
        propose::propose(&self.node, self.node.group(group)?, command, idempotent, deadline).await
    }

    /// Returns when this replica shows every write acknowledged before the call.
    ///
    /// # Errors
    /// `Unavailable` when no leader confirmed in time, `Timeout` when this replica is behind.
    pub async fn linearizable(&self, group: GroupId, deadline: Instant) -> Result<()> {
        reads::linearizable(&self.node, self.node.group(group)?, deadline).await
    }

    /// Returns when this replica is no staler than `max_staleness`; at once if that was proved lately.
    ///
    /// # Errors
    /// As [`Self::linearizable`].
    pub async fn bounded(&self, group: GroupId, max_staleness: Duration, deadline: Instant) -> Result<()> {
        reads::bounded(&self.node, self.node.group(group)?, max_staleness, deadline).await
    }

    /// Returns when this replica has applied entry `index`.
    ///
    /// # Errors
    /// `Timeout` at the deadline.
    pub async fn wait_applied(&self, group: GroupId, index: u64, deadline: Instant) -> Result<()> {
        self.node.group(group)?.wait_applied(index, deadline).await
    }

    /// Index of the last entry applied here, 0 = none (or no such group).
    pub fn applied(&self, group: GroupId) -> u64 {
        self.node.groups.get(&group).map_or(0, |group| *group.applied.borrow())
    }

    /// The leader of a group as this node sees it.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.node.groups.get(&group).and_then(|group| group.leader())
    }

    /// All groups of this node, in order.
    pub fn status(&self) -> Vec<GroupStatus> {
        self.node.groups.values().map(|group| group.status(self.node.me())).collect()
    }

    /// All groups as all nodes see them: every node of meta is asked, and those that do not answer say why.
    pub async fn view(&self) -> ClusterView {
        view::gather(&self.node).await
    }

    /// Makes `to` the leader of a group, from any node. Returns who led before, once `to` leads.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` or `Conflict` for a node that cannot lead; `Unavailable` for one that is away or
    /// behind, or did not take over in time.
    pub async fn transfer_lead(&self, group: GroupId, to: NodeId, deadline: Instant) -> Result<NodeId> {
        lead::transfer(&self.node, self.node.group(group)?, to, deadline).await
    }

    /// Spreads leads and voters evenly, from any node, one move after the other.
    ///
    /// # Errors
    /// `Unavailable` when meta has no leader; `Overloaded` when a rebalance is under way.
    pub async fn rebalance(&self, deadline: Instant) -> Result<Rebalanced> {
        balance::rebalance(&self.node, deadline).await
    }

    /// Returns when every group has a leader this node hears, so that it can serve.
    ///
    /// # Errors
    /// `Unavailable` at the deadline, naming a group that has none.
    pub async fn wait_ready(&self, deadline: Instant) -> Result<()> {
        for group in self.node.groups.values() {
            while group.leader().is_none() {
                self.node.check_running()?;
                if Instant::now() >= deadline {
                    return Err(Error::Unavailable(format!("group {} has no leader", group.id)));
                }
                group.changed(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Turns to the reason once this node must stop: a failed disk, a state machine that cannot go on.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.node.failure.subscribe()
    }

    /// How comparisons of this node's replicas with those of others ended: (how, times).
    pub fn audits(&self) -> [(&'static str, u64); 4] {
        let Audits { equal, differing, split, undecided } = &self.node.audits;
        [("equal", equal), ("differing", differing), ("split", split), ("undecided", undecided)]
            .map(|(how, times)| (how, times.load(Ordering::Relaxed)))
    }

    /// Requests of other nodes refused so far, by cluster, node id or protocol.
    pub fn refused_peers(&self) -> u64 {
        self.node.refused.load(Ordering::Relaxed)
    }

    /// What the log has written since the start.
    pub fn wal_stats(&self) -> crate::wal::WalStats {
        self.wal.stats()
    }

    /// Bytes of snapshots that came in since the start, all groups together.
    pub fn received_snapshots(&self) -> Received {
        self.snapshots.values().map(|store| store.received()).fold(Received::default(), |sum, one| Received {
            sent: sum.sent.saturating_add(one.sent),
            kept: sum.kept.saturating_add(one.kept),
        })
    }

    /// Sends an artifact to another node, which stores it durably; returns the bytes it took there.
    ///
    /// # Errors
    /// An `Err` in `data` ends the transfer with that error.
    pub async fn put_blob(
        &self,
        to: NodeId,
        root: [u8; 32],
        size: u64,
        data: mpsc::Receiver<Result<Bytes, Error>>,
    ) -> Result<u64> {
        transfer::put_blob(&self.node, to, root, size, data).await
    }

    /// Fetches an artifact from another node: its size and its bytes, not verified here.
    pub async fn get_blob(&self, from: NodeId, root: [u8; 32]) -> Result<(u64, mpsc::Receiver<Result<Bytes, Error>>)> {
        transfer::get_blob(&self.node, from, root).await
    }

    /// Hands leadership over where somebody can take it, then stops all groups and closes the log.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.node.stop.cancel();
        let stopping = self.node.groups.values().map(|group| group.raft.shutdown());
        futures::future::join_all(stopping).await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tasks.abort_all();
        }
        self.node.peers.close();
        let wal = self.wal.clone();
        let _ = machine::blocking(move || wal.close()).await;
        *self.node.data_dir.lock() = None;
    }

    #[cfg(test)]
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    #[cfg(test)]
    pub(crate) fn wal(&self) -> &Wal {
        &self.wal
    }

    async fn hand_over(&self) {
        let me = self.node.me();
        let deadline = Instant::now() + HANDOVER_TIMEOUT;
        let mut given = Vec::new();
        for group in self.node.groups.values() {
            if let Some(successor) = successor(group, me)
                && group.raft.trigger().transfer_leader(successor).await.is_ok()
            {
                given.push(group);
            }
        }
        for group in given {
            while group.leader() == Some(me) && Instant::now() < deadline {
                group.changed(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The voter that is furthest, in a group this node leads.
fn successor(group: &Group, me: NodeId) -> Option<NodeId> {
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    if metrics.state != ServerState::Leader {
        return None;
    }
    let voters: Vec<NodeId> = metrics.membership_config.voter_ids().filter(|id| *id != me).collect();
    let matched = metrics.replication.as_ref()?;
    voters.into_iter().max_by_key(|id| matched.get(id).cloned().flatten())
}

async fn open_wal(options: &Options) -> Result<Arc<Wal>> {
    let (dir, files) = (options.data_dir.join("wal"), options.log_files.clone());
    #[cfg(feature = "seeded-bugs")]
    let files = crate::seeded::files(files);
    let options = options.wal.clone();
    let open = move || Wal::open(&dir, options, files);
    let opened = machine::blocking(open).await.map_err(stopped)?;
    let wal = opened.map_err(|error| Error::Refused { kind: error.kind(), message: error.to_string() })?;
    #[cfg(test)]
    crate::sim::disk::write_behind(&wal);
    Ok(wal)
}

/// What all groups of a node are made from.
struct Parts {
    me: NodeId,
    config: Arc<openraft::Config>,
    data_dir: std::path::PathBuf,
    wal: Arc<Wal>,
    peers: Arc<Peers>,
    building: Arc<Semaphore>,
    sending: Arc<Semaphore>,
    snapshot_bytes_per_second: u64,
    admission: usize,
}

impl Parts {
    fn new(identity: &Identity, options: &Options, wal: &Arc<Wal>, peers: &Arc<Peers>) -> Result<Self> {
        Ok(Self {
            me: identity.node_id,
            config: Arc::new(raft_config(&identity.cluster_id, &options.timers, &options.snapshots)?),
            data_dir: options.data_dir.clone(),
            wal: wal.clone(),
            peers: peers.clone(),
            building: Arc::new(Semaphore::new(1)),
            sending: Arc::new(Semaphore::new(1)),
            snapshot_bytes_per_second: options.snapshots.bytes_per_second,
            admission: (options.proposal_bytes_max / 1024).clamp(1, Semaphore::MAX_PERMITS),
        })
    }
}

struct Opened {
    group: Arc<Group>,
    store: Arc<SnapshotStore>,
    reads: mpsc::Receiver<tokio::sync::oneshot::Sender<(u64, Instant)>>,
}

async fn open_group(parts: &Parts, id: GroupId, host: Arc<dyn Host>) -> Result<Opened> {
    let data_dir = parts.data_dir.clone();
    let opener = host.clone();
    let open = move || -> Result<(Arc<dyn Replica>, Arc<SnapshotStore>)> {
        let dir = group_dir(&data_dir, id);
        std::fs::create_dir_all(&dir).map_err(Error::io(format!("cannot make {}", dir.display())))?;
        let store = SnapshotStore::open(snapshot_dir(&data_dir, id))?;
        let replica = opener.open_replica(id, &dir).map_err(|error| match error {
            cairn_storage::Error::Corrupt(damage) => Error::Corrupt(rebuild::advice(id, &damage)),
            other => other.into(),
        })?;
        Ok((replica, Arc::new(store)))
    };
    let (replica, store) = blocking(open).await?;
    let applied = watch::Sender::new(0);
    let follow = applied.subscribe();
    let machine = StateMachine::new(replica.clone(), host, store.clone(), parts.building.clone(), applied)
        .map_err(Error::io(format!("group {id} does not know its position")))?;
    let network = Network {
        group: id,
        peers: parts.peers.clone(),
        sending: parts.sending.clone(),
        snapshot_bytes_per_second: parts.snapshot_bytes_per_second,
        replica: replica.clone(),
    };
    let log = LogStore::new(parts.wal.clone(), id);
    // Committed entries are applied again here, which reads tables.
    let damaged = replica.clone();
    let raft =
        openraft::Raft::new(parts.me, parts.config.clone(), network, log, machine).await.map_err(
            |fatal| match damaged.damage() {
                Some(damage) => Error::Corrupt(rebuild::advice(id, &damage)),
                None => Error::Internal(format!("group {id} does not start: {fatal}")),
            },
        )?;
    for (peer, node) in raft.metrics().borrow_watched().membership_config.nodes() {
        if *peer != parts.me {
            parts.peers.book.suggest(*peer, &node.address);
        }
    }
    let (reads, queue) = Reads::new();
    let admission = Semaphore::new(parts.admission);
    let (giving, changing) = Default::default();
    let group = Arc::new(Group { id, raft, replica, applied: follow, reads, giving, changing, admission });
    Ok(Opened { group, store, reads: queue })
}

fn serve(
    node: &Arc<Node>,
    listener: std::net::TcpListener,
    snapshots: BTreeMap<GroupId, Arc<SnapshotStore>>,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let incoming = machine::incoming(listener, &node.peer_address);
    let incoming = incoming.map_err(Error::io("cannot listen on the peer port"))?;
    let limit = MESSAGE_BYTES_MAX + MESSAGE_SLACK;
    let service = PeerServer::new(PeerService { node: node.clone(), snapshots })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let stop = node.stop.clone();
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 2)
        .add_service(service)
        .serve_with_incoming_shutdown(door::guard(incoming, node.clone()), stop.cancelled_owned());
    let node = node.clone();
    tasks.spawn(async move {
        if let Err(error) = server.await {
            node.fail(format!("the peer port is closed: {error}"));
        }
    });
    Ok(())
}

/// Follows one group; its end before the node stops is the node's failure.
async fn watch_failure(node: Arc<Node>, group: Arc<Group>, wal: Arc<Wal>) {
    let mut metrics = group.raft.metrics();
    loop {
        let stopped = metrics.borrow_watched().running_state.as_ref().err().map(ToString::to_string);
        if let Some(reason) = stopped {
            if !node.stop.is_cancelled() {
                node.fail(why_stopped(&group, &wal, reason));
            }
            return;
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                if !node.stop.is_cancelled() {
                    node.fail(why_stopped(&group, &wal, "its core ended".into()));
                }
                return;
            },
        }
    }
}

/// The cause behind what openraft says of it.
fn why_stopped(group: &Group, wal: &Wal, reason: String) -> String {
    if let Some(damage) = group.replica.damage() {
        return rebuild::advice(group.id, &damage);
    }
    format!("group {} has stopped: {}", group.id, wal.failure().unwrap_or(reason))
}

/// A replica that found its own files damaged serves nobody: the node stops where others have the rows whole. Alone, it
/// goes on with what it can read.
async fn watch_damage(node: Arc<Node>, group: Arc<Group>) {
    let damage = loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(DAMAGE_INTERVAL) => {}
        }
        if let Some(damage) = group.replica.damage() {
            break damage;
        }
    };
    let id = group.id;
    let voters = group.raft.metrics().borrow_watched().membership_config.voter_ids().count();
    if voters > 1 {
        node.fail(rebuild::advice(id, &damage));
    } else {
        tracing::error!(group = id, %damage, "a replica is damaged, and there is no other: what it cannot read is refused");
    }
}

/// Keeps the log short: a group whose old entries keep segments from being deleted makes a snapshot and purges, however
/// few its entries are.
async fn purge_pinned(node: Arc<Node>, wal: Arc<Wal>) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(PINNED_INTERVAL) => {}
        }
        for pinning in wal.pinning_groups(PINNED_SEGMENTS_MAX) {
            let Some(group) = node.groups.get(&pinning.group) else { continue };
            let (snapshot, applied) = {
                let metrics = group.raft.metrics();
                let metrics = metrics.borrow_watched();
                (metrics.snapshot, metrics.last_applied)
            };
            let trigger = group.raft.trigger();
            let asked = match snapshot {
                Some(snapshot) if snapshot.index >= pinning.first_index => trigger.purge_log(snapshot.index).await,
                _ if snapshot < applied => trigger.snapshot().await,
                _ => Ok(()),
            };
            if let Err(error) = asked {
                tracing::debug!(group = group.id, %error, "a group that pins the log cannot be asked to purge");
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    machine::blocking(work).await.map_err(stopped)?
}

fn stopped(error: tokio::task::JoinError) -> Error {
    Error::Internal(format!("a start step panicked: {error}"))
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("identity", &self.node.identity).finish_non_exhaustive()
    }
}
