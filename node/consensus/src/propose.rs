//! Proposals from any node: forwarded to the leader, held while there is none, sent again only when that is safe.
//!
//! A command is sent again freely while it is certain that nobody accepted it. Once a leader may have accepted it, only
//! an idempotent command (deduplicated by its state machine) is sent again; any other ends as `Timeout`: its outcome is
//! unknown.

use crate::error::{Error, Result};
use crate::node::{Group, Node};
use crate::types::*;
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::error::KIND_METADATA;
use cairn_proto::peer::v1::{ProposeRequest, propose_reply};
use openraft::errors::{ClientWriteError, RaftError};
use std::time::Duration;
use tokio::time::Instant;

/// Largest command, bytes: with the entries around it an append stays under the message limit.
pub const COMMAND_BYTES_MAX: usize = 48 << 20;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Attempts without a known leader before peers are asked who leads.
const ASK_AROUND_AFTER: usize = 8;

/// A committed and applied command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    pub index: u64,
    /// The state machine's answer, encoded as its own outcome message.
    pub outcome: Bytes,
}

pub(crate) enum Attempt {
    Done(Proposed),
    /// Nobody accepted it.
    NotLeader(Option<NodeId>),
    /// Nobody accepted it, and nobody was there.
    NotSent(String),
    /// It may have been accepted.
    Unknown(String),
}

pub(crate) async fn propose(
    node: &Node,
    group: &Group,
    command: Bytes,
    idempotent: bool,
    deadline: Instant,
) -> Result<Proposed> {
    node.check_running()?;
    let _room = admit(group, &command)?;
    let mut hint = None;
    let mut why = String::from("there is no leader");
    let mut maybe_accepted = false;
    let mut attempt = 0usize;
    while Instant::now() < deadline {
        node.check_running().map_err(|error| unless_accepted(maybe_accepted, error))?;
        let unknown_leader = || node.others(attempt).first().copied().filter(|_| attempt >= ASK_AROUND_AFTER);
        let target = hint.take().or_else(|| group.leader()).or_else(unknown_leader);
        let outcome = match target {
            Some(id) if id == node.me() => propose_here(node, group, command.clone(), deadline).await,
            Some(id) => propose_there(node, group, id, command.clone(), deadline).await,
            None => Ok(Attempt::NotLeader(None)),
        };
        match outcome.map_err(|error| unless_accepted(maybe_accepted, error))? {
            Attempt::Done(proposed) => return Ok(proposed),
            // A hint is followed once without a pause; two nodes that point at each other are slowed down.
            Attempt::NotLeader(Some(leader)) if Some(leader) != target && attempt.is_multiple_of(2) => {
                hint = Some(leader)
            }
            Attempt::NotLeader(_) => {}
            Attempt::NotSent(reason) => why = reason,
            Attempt::Unknown(reason) if may_repeat(idempotent) => {
                maybe_accepted = true;
                why = reason;
            }
            Attempt::Unknown(reason) => {
                return Err(Error::Timeout(format!("the outcome in group {} is unknown: {reason}", group.id)));
            }
        }
        attempt += 1;
        if hint.is_none() {
            let pause = PAUSE_MIN.saturating_mul(1 << attempt.min(5)).min(PAUSE_MAX);
            group.changed(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
    let message = format!("group {} took no proposal in time: {why}", group.id);
    Err(if maybe_accepted { Error::Timeout(message) } else { Error::Unavailable(message) })
}

/// Whether what may have been accepted is sent again.
fn may_repeat(idempotent: bool) -> bool {
    #[cfg(any(test, feature = "seeded-bugs"))]
    if crate::bugs::awake(crate::bugs::Bug::RetryUnknown) {
        return true;
    }
    idempotent
}

/// An error after a possible acceptance does not mean that nothing happened.
fn unless_accepted(maybe_accepted: bool, error: Error) -> Error {
    if maybe_accepted { Error::Timeout(format!("the outcome is unknown: {error}")) } else { error }
}

fn admit<'a>(group: &'a Group, command: &Bytes) -> Result<tokio::sync::SemaphorePermit<'a>> {
    if command.len() > COMMAND_BYTES_MAX {
        let message = format!("a command of {} bytes is over the limit of {COMMAND_BYTES_MAX}", command.len());
        return Err(Error::TooLarge(message));
    }
    let room = u32::try_from(command.len() / 1024 + 1).unwrap_or(u32::MAX);
    let overloaded = |_| Error::Overloaded(format!("too many proposals are under way in group {}", group.id));
    group.admission.try_acquire_many(room).map_err(overloaded)
}

/// A peer's proposal on this node, which should lead.
pub(crate) async fn propose_for_peer(node: &Node, group: &Group, command: Bytes, deadline: Instant) -> Result<Attempt> {
    let _room = admit(group, &command)?;
    propose_here(node, group, command, deadline).await.map_err(|error| match error.kind() {
        kind @ ErrorKind::ReadOnly => {
            let message = format!("node {}, the leader of group {}: {error}", node.me(), group.id);
            Error::Refused { kind, message }
        }
        _ => error,
    })
}

async fn propose_here(node: &Node, group: &Group, command: Bytes, deadline: Instant) -> Result<Attempt> {
    if group.leader() == Some(node.me()) {
        node.check_room()?;
    }
    let write = group.raft.client_write(Command(command));
    let Ok(written) = tokio::time::timeout_at(deadline, write).await else {
        return Ok(Attempt::Unknown("it was not committed in time".into()));
    };
    match written {
        Ok(response) => Ok(Attempt::Done(Proposed { index: index_of(&response.log_id), outcome: response.data.0 })),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Ok(Attempt::NotLeader(forward.leader_id))
        }
        Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
            Ok(Attempt::Unknown("the leader changed before it was committed".into()))
        }
        Err(RaftError::APIError(error)) => Err(Error::Internal(error.to_string())),
        Err(RaftError::Fatal(fatal)) => Ok(Attempt::Unknown(fatal.to_string())),
    }
}

async fn propose_there(
    node: &Node,
    group: &Group,
    leader: NodeId,
    command: Bytes,
    deadline: Instant,
) -> Result<Attempt> {
    let peer = node.peers.get(leader);
    let mut client = match tokio::time::timeout_at(deadline, peer.requests()).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Ok(Attempt::NotSent(error.to_string())),
        Err(_) => return Ok(Attempt::NotSent(format!("cannot connect to node {leader} in time"))),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let request = ProposeRequest {
        envelope: Some(peer.envelope()),
        group: group.id,
        command,
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    let status = match tokio::time::timeout_at(deadline, client.propose(request)).await {
        Err(_) => return Ok(Attempt::Unknown(format!("node {leader} did not answer in time"))),
        Ok(Ok(reply)) => {
            return match reply.into_inner().result {
                Some(propose_reply::Result::Proposed(proposed)) => {
                    Ok(Attempt::Done(Proposed { index: proposed.index, outcome: proposed.outcome }))
                }
                Some(propose_reply::Result::NotLeader(hint)) => {
                    Ok(Attempt::NotLeader(Some(hint.leader).filter(|id| *id != 0)))
                }
                None => Ok(Attempt::Unknown(format!("node {leader} answered nothing"))),
            };
        }
        Ok(Err(status)) => status,
    };
    let message = format!("node {leader}: {}", status.message());
    match definite_refusal(&status) {
        Some(ErrorKind::Timeout) => Ok(Attempt::Unknown(message)),
        // The last two: the peer has nothing to do with this node. What is wrong with a command is an outcome.
        Some(ErrorKind::Unavailable | ErrorKind::InvalidArgument | ErrorKind::Unsupported) => {
            Ok(Attempt::NotSent(message))
        }
        Some(_) => Err(Error::of_status(&status)),
        None => {
            peer.forget_connections().await;
            let never_connected = find_source::<tonic::ConnectError>(&status).is_some();
            Ok(if never_connected { Attempt::NotSent(message) } else { Attempt::Unknown(message) })
        }
    }
}

/// The kind a peer gave itself; `None` for a status made by the transport.
pub(crate) fn definite_refusal(status: &tonic::Status) -> Option<ErrorKind> {
    status.metadata().get(KIND_METADATA)?.to_str().ok().and_then(ErrorKind::parse)
}

fn find_source<E: std::error::Error + 'static>(error: &dyn std::error::Error) -> Option<&E> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}
