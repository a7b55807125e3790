//! One node's part in the cluster: its groups and what they share.

use crate::audit::Audits;
use crate::error::{Error, Result};
use crate::identity::{DataDir, Identity};
use crate::link::Peers;
use crate::options::{BalanceOptions, BlobPeer, Clock, Follower, GroupStatus, Host};
use crate::reads::Reads;
use crate::types::*;
use cairn_storage::replica::Replica;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A member at most this far behind its leader counts as caught up.
pub(crate) const CAUGHT_UP_ENTRIES: u64 = 128;

type RaftMetrics = openraft::RaftMetrics<TypeConfig>;

pub(crate) struct Node {
    pub identity: Identity,
    pub peer_address: String,
    pub client_address: String,
    pub clock: Clock,
    pub peers: Arc<Peers>,
    pub groups: BTreeMap<GroupId, Arc<Group>>,
    pub host: Arc<dyn Host>,
    pub blobs: Arc<dyn BlobPeer>,
    /// Why this node must stop, once it must.
    pub failure: watch::Sender<Option<String>>,
    pub stop: CancellationToken,
    /// Held until the last task is done, so that nobody else opens the directory before.
    pub data_dir: Mutex<Option<DataDir>>,
    /// Requests of peers that were refused by their envelope.
    pub refused: AtomicU64,
    pub audit_interval: Option<Duration>,
    /// How comparisons of this node's replicas ended.
    pub audits: Audits,
    pub balance: BalanceOptions,
    /// Held while leads or voters are moved to balance them: one move at a time.
    pub balancing: tokio::sync::Mutex<()>,
}

pub(crate) struct Group {
    pub id: GroupId,
    pub raft: Raft,
    pub replica: Arc<dyn Replica>,
    pub applied: watch::Receiver<u64>,
    pub reads: Reads,
    /// Held by the one transfer of the lead that may be under way.
    pub giving: tokio::sync::Mutex<()>,
    /// Held by the one membership change of this leader that may be under way: a joint membership is not left over as long
    /// as somebody is finishing it.
    pub changing: tokio::sync::Mutex<()>,
    /// Room for proposals, in KiB.
    pub admission: Semaphore,
}

impl Node {
    pub fn group(&self, id: GroupId) -> Result<&Arc<Group>> {
        let shards = self.identity.shards;
        self.groups.get(&id).ok_or_else(|| Error::InvalidArgument(format!("no group {id}; groups are 0 to {shards}")))
    }

    pub fn me(&self) -> NodeId {
        self.identity.node_id
    }

    /// The error of a node that has stopped.
    pub fn check_running(&self) -> Result<()> {
        match self.failure.borrow().as_ref() {
            Some(reason) => Err(Error::Unavailable(format!("this node has stopped: {reason}"))),
            None if self.stop.is_cancelled() => Err(Error::Unavailable("this node is stopping".into())),
            None => Ok(()),
        }
    }

    /// `ReadOnly` when this node has no room for writes.
    pub fn check_room(&self) -> Result<()> {
        Ok(self.host.check_room()?)
    }

    /// Stops this node's part in the cluster. The first reason is the one that counts.
    pub fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            if failure.is_some() {
                return false;
            }
            tracing::error!(%reason, "this node must stop");
            *failure = Some(reason);
            true
        });
    }

    /// Takes the newest addresses from meta, and forgets the nodes that were removed.
    pub fn learn_addresses(&self) {
        for id in self.host.removed_nodes() {
            self.peers.forget(id);
        }
        for node in self.host.nodes() {
            if node.id != self.me() {
                self.peers.book.set(node.id, &node.peer_address);
            }
        }
    }

    /// The other nodes, in an order that differs from attempt to attempt.
    pub fn others(&self, attempt: usize) -> Vec<NodeId> {
        let mut others: Vec<NodeId> = self.peers.book.ids().into_iter().filter(|id| *id != self.me()).collect();
        if !others.is_empty() {
            let start = attempt % others.len();
            others.rotate_left(start);
        }
        others
    }
}

impl Group {
    /// The leader as this node sees it.
    pub fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Returns when anything about the group changed, at the latest after `pause`.
    pub async fn changed(&self, pause: Duration) {
        let mut metrics = self.raft.server_metrics();
        // A fresh receiver takes the value it starts with for a change.
        metrics.borrow_and_update();
        let change = async {
            if metrics.changed().await.is_err() {
                // The core has ended. Who waits in a loop must not spin on that.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(pause, change).await;
    }

    /// Returns when entry `index` is applied here.
    ///
    /// # Errors
    /// `Timeout` at the deadline.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<()> {
        let mut applied = self.applied.clone();
        let waited = tokio::time::timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Unavailable(format!("group {} has stopped on this node", self.id))),
            Err(_) => Err(Error::Timeout(format!(
                "group {} has applied entry {} of {index} on this node, no further in time",
                self.id,
                *self.applied.borrow()
            ))),
        }
    }

    /// The other members as this leader sees them.
    fn followers(&self, metrics: &RaftMetrics) -> Vec<Follower> {
        let lately = Duration::from_millis(self.raft.config().election_timeout_max);
        let last = metrics.last_log_index.map_or(0, |index| index.saturating_add(1));
        let heard = |id: &NodeId| {
            let acked = metrics.heartbeat.as_ref().and_then(|heard| heard.get(id)).and_then(Option::as_ref);
            acked.is_some_and(|acked| acked.elapsed() <= lately)
        };
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
        let followers = others.map(|(id, matched)| {
            let (matched_index, heard) = (index_or_zero(matched.as_ref()), heard(id));
            let ready = heard && matched.is_some() && matched_index.saturating_add(CAUGHT_UP_ENTRIES) >= last;
            Follower { node: *id, matched_index, heard, ready }
        });
        followers.collect()
    }

    pub fn status(&self, me: NodeId) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let membership = stored.membership();
        let changing =
            membership.get_joint_config().len() > 1 || stored.log_id() != metrics.committed_membership_config.log_id();
        GroupStatus {
            group: self.id,
            leader: metrics.current_leader,
            is_leader: metrics.current_leader == Some(me) && metrics.state == openraft::ServerState::Leader,
            term: metrics.current_term,
            last_index: metrics.last_log_index.map_or(0, |index| index.saturating_add(1)),
            committed_index: index_or_zero(metrics.local_committed.as_ref()),
            applied_index: *self.applied.borrow(),
            applied_time_us: self.replica.applied().time_us,
            snapshot_index: index_or_zero(metrics.snapshot.as_ref()),
            purged_index: index_or_zero(metrics.purged.as_ref()),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            changing,
            followers: self.followers(&metrics),
            failure: metrics.running_state.as_ref().err().map(ToString::to_string),
            digests: self.replica.digests(),
        }
    }
}
