//! Reads that see what was acknowledged before they started (ReadIndex), batched, on any replica.
//!
//! A round asks the leader for its read index, which it confirms with a quorum; every read that was waiting when the
//! round began shares its answer. A read that comes later waits for the next round: an answer is never reused for a
//! read younger than its question. Lease reads are not offered (ADR-0002).
//!
//! Bounded reads need no clock of another node: a round that began at local time t proves that what is applied here,
//! once it reaches the round's index, is at least as new as t.

#[cfg(any(test, feature = "seeded-bugs"))]
use crate::bugs::{Bug, awake};
use crate::error::{Error, Result};
use crate::node::{Group, Node};
use crate::propose::definite_refusal;
use crate::types::*;
use cairn_proto::peer::v1::{ReadIndexRequest, read_index_reply};
use openraft::ReadPolicy;
#[cfg(any(test, feature = "seeded-bugs"))]
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Reads waiting for a round of one group; more are refused as overloaded.
const WAITING_MAX: usize = 65_536;
/// One question to the leader; a leader cut off from its quorum must not hold the readers.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// A round's answer: the index to wait for, and when the round began.
type Round = (u64, Instant);
type Waiting = oneshot::Sender<Round>;

#[derive(Debug)]
pub(crate) struct Reads {
    queue: mpsc::Sender<Waiting>,
    /// What is applied here is at least as new as this.
    fresh: Mutex<Option<Instant>>,
    refreshing: AtomicBool,
    last_failure: Mutex<String>,
}

impl Reads {
    pub fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let reads = Self {
            queue,
            fresh: Mutex::new(None),
            refreshing: AtomicBool::new(false),
            last_failure: Mutex::new("no round has been tried".into()),
        };
        (reads, waiting)
    }

    fn fresh_within(&self, age: Duration) -> bool {
        self.fresh.lock().is_some_and(|fresh| fresh.elapsed() <= age)
    }
}

/// Returns when this replica has applied everything acknowledged before the call.
///
/// # Errors
/// `Unavailable` when no leader confirmed in time, `Timeout` when this replica is behind.
pub(crate) async fn linearizable(node: &Node, group: &Group, deadline: Instant) -> Result<()> {
    node.check_running()?;
    let (sender, answer) = oneshot::channel();
    let overloaded = |_| Error::Overloaded(format!("over {WAITING_MAX} reads wait for group {}", group.id));
    group.reads.queue.try_send(sender).map_err(overloaded)?;
    let (index, began) = match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(round)) => round,
        Ok(Err(_)) => return Err(Error::Unavailable("this node is stopping".into())),
        Err(_) => {
            let why = group.reads.last_failure.lock().clone();
            let message = format!("no leader of group {} confirmed a read in time: {why}", group.id);
            return Err(Error::Unavailable(message));
        }
    };
    group.wait_applied(index, deadline).await?;
    let mut fresh = group.reads.fresh.lock();
    *fresh = fresh.max(Some(began));
    Ok(())
}

/// Returns when this replica is no staler than `max_staleness`: at once if a round proved it lately.
pub(crate) async fn bounded(
    node: &Arc<Node>,
    group: &Arc<Group>,
    max_staleness: Duration,
    deadline: Instant,
) -> Result<()> {
    #[cfg(any(test, feature = "seeded-bugs"))]
    if awake(Bug::StaleBounded) {
        return Ok(());
    }
    if !group.reads.fresh_within(max_staleness) {
        return linearizable(node, group, deadline).await;
    }
    // Past half of the bound the next proof is fetched beside the reads, so that they never wait for it.
    let due = !group.reads.fresh_within(max_staleness / 2);
    if due && !group.reads.refreshing.swap(true, Ordering::AcqRel) {
        let (node, group) = (node.clone(), group.clone());
        tokio::spawn(async move {
            let _ = linearizable(&node, &group, Instant::now() + ROUND_TIMEOUT).await;
            group.reads.refreshing.store(false, Ordering::Release);
        });
    }
    Ok(())
}

/// Runs the rounds of one group until the node stops.
pub(crate) async fn run(node: Arc<Node>, group: Arc<Group>, mut queue: mpsc::Receiver<Waiting>) {
    let mut attempt = 0usize;
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        waiting.retain(|waiting| !waiting.is_closed());
        if waiting.is_empty() {
            tokio::select! {
                () = node.stop.cancelled() => return,
                first = queue.recv() => match first {
                    Some(first) => waiting.push(first),
                    None => return,
                },
            }
        }
        while let Ok(more) = queue.try_recv() {
            waiting.push(more);
        }
        let began = Instant::now();
        let round = tokio::select! {
            () = node.stop.cancelled() => return,
            round = tokio::time::timeout(ROUND_TIMEOUT, ask(&node, &group, attempt)) => round,
        };
        match round {
            Ok(Ok(index)) => {
                attempt = 0;
                for waiting in waiting.drain(..) {
                    let _ = waiting.send((index, began));
                }
            }
            failed => {
                let why = match failed {
                    Ok(Err(why)) => why,
                    _ => format!("the leader did not confirm within {ROUND_TIMEOUT:?}"),
                };
                tracing::debug!(group = group.id, %why, "a read round failed");
                *group.reads.last_failure.lock() = why;
                attempt = attempt.wrapping_add(1);
                group.changed(PAUSE).await;
            }
        }
    }
}

/// Asks the leader, wherever it is.
async fn ask(node: &Node, group: &Group, attempt: usize) -> Result<u64, String> {
    match group.leader() {
        Some(leader) if leader == node.me() => match read_index_here(group).await? {
            Ok(index) => Ok(index),
            Err(leader) => Err(format!("leadership moved to {leader:?}")),
        },
        Some(leader) => match ask_peer(node, group, leader).await? {
            Ok(index) => Ok(index),
            Err(hint) => Err(format!("node {leader} no longer leads, perhaps {hint:?}")),
        },
        None => {
            // Nobody tells us (a node that joins, or whose address the leader does not know): ask around.
            let Some(peer) = node.others(attempt).first().copied() else { return Err("there is no leader".into()) };
            match ask_peer(node, group, peer).await? {
                Ok(index) => Ok(index),
                Err(Some(leader)) if leader != node.me() && leader != peer => {
                    ask_peer(node, group, leader).await?.map_err(|_| "there is no leader".into())
                }
                Err(_) => Err("there is no leader".into()),
            }
        }
    }
}

/// The read index of a leading node, or who leads instead.
pub(crate) async fn read_index_here(group: &Group) -> Result<Result<u64, Option<NodeId>>, String> {
    #[cfg(any(test, feature = "seeded-bugs"))]
    if awake(Bug::StaleRead) && group.raft.server_metrics().borrow_watched().state == openraft::ServerState::Leader {
        return Ok(Ok(*group.applied.borrow()));
    }
    match group.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(Ok(index_of(linearizer.read_log_id().log_id()))),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Ok(Err(forward.leader_id)),
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => Err(error.to_string()),
        Err(RaftError::Fatal(fatal)) => Err(fatal.to_string()),
    }
}

async fn ask_peer(node: &Node, group: &Group, id: NodeId) -> Result<Result<u64, Option<NodeId>>, String> {
    let peer = node.peers.get(id);
    let mut client = peer.requests().await.map_err(|error| error.to_string())?;
    let request = ReadIndexRequest { envelope: Some(peer.envelope()), group: group.id };
    match client.read_index(request).await {
        Ok(reply) => match reply.into_inner().result {
            Some(read_index_reply::Result::Index(index)) => Ok(Ok(index)),
            Some(read_index_reply::Result::NotLeader(hint)) => Ok(Err(Some(hint.leader).filter(|id| *id != 0))),
            None => Err(format!("node {id} answered nothing")),
        },
        Err(status) => {
            if definite_refusal(&status).is_none() {
                peer.forget_connections().await;
            }
            Err(format!("node {id}: {}", status.message()))
        }
    }
}
