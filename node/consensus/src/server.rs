//! The peer port: what other nodes may ask of this one.
//!
//! Every request is checked first: same cluster, same protocol, and meant for this node; a node that answers on
//! somebody else's address is found out at once. Refusals are counted.

use crate::balance;
use crate::codec;
use crate::error::{Error, Result};
use crate::lead::{self, Given};
use crate::machine;
use crate::membership;
use crate::node::Node;
use crate::options::SnapshotOptions;
use crate::propose::{self, Attempt};
use crate::reads;
use crate::snapshot::{self, Snapshot, SnapshotDir, SnapshotStore};
use crate::types::*;
use crate::view;
use bytes::Bytes;
use cairn_proto::peer::v1::{
    BlobFrame, BlobHeader, Envelope, FetchSnapshotRequest, GetBlobRequest, GroupsReply, GroupsRequest, JoinReply,
    JoinRequest, MoveReply, MoveVoterRequest, Moved, NotLeader, ProposeReply, ProposeRequest, Proposed, PutBlobReply,
    RaftFrame, ReadIndexReply, ReadIndexRequest, RebalanceReply, RebalanceRequest, SnapshotFile, SnapshotFrame,
    SnapshotHaveReply, SnapshotHaveRequest, SnapshotHeader, SnapshotReply, TransferLeadRequest, blob_frame, move_reply,
    peer_server::Peer, propose_reply, raft_frame::Message, read_index_reply, rebalance_reply, snapshot_frame,
};
use cairn_proto::{ErrorKind, PEER_PROTOCOL, record::v1 as record};
use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Calls of one stream that may be under way; the next frame is read when one is answered.
const CALLS_MAX: usize = 1024;
/// Frames of a transfer waiting for the disk.
const FRAMES_MAX: usize = 8;
/// A transfer that sends nothing for this long is given up.
const TRANSFER_PAUSE_MAX: Duration = Duration::from_secs(30);
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct PeerService {
    pub node: Arc<Node>,
    pub snapshots: BTreeMap<GroupId, Arc<SnapshotStore>>,
}

impl PeerService {
    fn check(&self, envelope: Option<&Envelope>) -> Result<(), Status> {
        let refused = refusal(&self.node, envelope);
        if let Some(error) = refused {
            self.node.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "refused a peer");
            return Err(error.status());
        }
        self.node.check_running().map_err(|error| error.status())
    }

    fn snapshots(&self, group: GroupId) -> Result<Arc<SnapshotStore>, Status> {
        let store = self.snapshots.get(&group).cloned();
        store.ok_or_else(|| ErrorKind::Internal.status("a group has no place for snapshots"))
    }
}

fn refusal(node: &Node, envelope: Option<&Envelope>) -> Option<Error> {
    let me = node.me();
    let Some(envelope) = envelope else {
        return Some(Error::InvalidArgument("the first message names no sender".into()));
    };
    let from = envelope.from;
    if envelope.protocol != PEER_PROTOCOL {
        return Some(Error::Unsupported(format!(
            "node {from} speaks peer protocol {}, and node {me} speaks {PEER_PROTOCOL}: run the same version on both",
            envelope.protocol
        )));
    }
    if envelope.cluster_id != node.identity.cluster_id {
        return Some(Error::InvalidArgument(format!(
            "node {from} belongs to cluster `{}`, and this is a node of cluster `{}`",
            envelope.cluster_id, node.identity.cluster_id
        )));
    }
    if node.host.removed_nodes().contains(&from) {
        return Some(Error::InvalidArgument(format!(
            "node {from} was removed from this cluster: move its data directory away and start it with `--join` to join \
             as a new node"
        )));
    }
    if envelope.to != me {
        let to = envelope.to;
        return Some(Error::InvalidArgument(format!("node {from} looks for node {to} at the address of node {me}")));
    }
    None
}

#[tonic::async_trait]
impl Peer for PeerService {
    type RaftStream = BoxStream<'static, Result<RaftFrame, Status>>;
    type FetchSnapshotStream = BoxStream<'static, Result<SnapshotFrame, Status>>;
    type GetBlobStream = BoxStream<'static, Result<BlobFrame, Status>>;

    async fn raft(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<Self::RaftStream>, Status> {
        let mut frames = request.into_inner();
        let hello = frames.message().await?;
        self.check(hello.as_ref().and_then(|frame| frame.envelope.as_ref()))?;
        let (replies, outgoing) = mpsc::channel(16);
        tokio::spawn(serve_raft(self.node.clone(), frames, replies));
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    async fn snapshot_have(
        &self,
        request: Request<SnapshotHaveRequest>,
    ) -> Result<Response<SnapshotHaveReply>, Status> {
        let SnapshotHaveRequest { envelope, group } = request.into_inner();
        self.check(envelope.as_ref())?;
        let group = self.node.group(group).map_err(|error| error.status())?.id;
        let store = self.snapshots(group)?;
        let have = machine::blocking(move || store.have()).await;
        let have = have.map_err(|error| ErrorKind::Internal.status(error.to_string()))?;
        Ok(Response::new(SnapshotHaveReply { have: have.map_err(|error| error.status())? }))
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotFrame>>) -> Result<Response<SnapshotReply>, Status> {
        let mut frames = request.into_inner();
        let Some(snapshot_frame::Part::Header(header)) = frames.message().await?.and_then(|frame| frame.part) else {
            return Err(ErrorKind::InvalidArgument.status("a snapshot starts with its header"));
        };
        self.check(header.envelope.as_ref())?;
        self.node.check_room().map_err(|error| error.status())?;
        let group = self.node.group(header.group).map_err(|error| error.status())?.clone();
        let bad = |error: codec::DecodeError| ErrorKind::InvalidArgument.status(error.to_string());
        let vote = codec::decode_vote(header.vote).map_err(bad)?;
        let meta = codec::decode_meta(header.meta).map_err(bad)?;
        let store = self.snapshots(header.group)?;
        // What has come stays, so a node that stops does not wait for the rest.
        let snapshot = tokio::select! {
            biased;
            () = self.node.stop.cancelled() => return Err(ErrorKind::Unavailable.status("this node is stopping")),
            received = receive_snapshot(store, &meta, header.files, &mut frames) => received?,
        };
        let installed = group.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        let response = installed.map_err(|fatal| ErrorKind::Unavailable.status(fatal.to_string()))?;
        Ok(Response::new(SnapshotReply { vote: codec::encode_vote(&response.vote) }))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let FetchSnapshotRequest { cluster_id, from, protocol, group, have } = request.into_inner();
        let to = self.node.me();
        self.check(Some(&Envelope { cluster_id, from, to, protocol }))?;
        let group = self.node.group(group).map_err(|error| error.status())?.clone();
        let store = self.snapshots(group.id)?;
        let deadline = Instant::now() + FETCH_TIMEOUT;
        reads::linearizable(&self.node, &group, deadline).await.map_err(|error| error.status())?;
        let replica = group.replica.clone();
        let built = machine::blocking(move || store.build(replica.as_ref())).await;
        let built = built.map_err(|error| ErrorKind::Internal.status(error.to_string()))?;
        let built = built.map_err(|error| error.status())?;
        let meta = codec::encode_meta(&built.meta);
        let header = SnapshotHeader { group: group.id, meta, ..SnapshotHeader::default() };
        let frames = snapshot::send(
            built.snapshot,
            header,
            have,
            SnapshotOptions::default().bytes_per_second,
            group.replica.clone(),
        );
        Ok(Response::new(ReceiverStream::new(frames).map(Ok).boxed()))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let group = self.node.group(request.group).map_err(|error| error.status())?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.deadline_ms));
        let attempt = propose::propose_for_peer(&self.node, group, request.command, deadline).await;
        let result = match attempt.map_err(|error| error.status())? {
            Attempt::Done(done) => {
                propose_reply::Result::Proposed(Proposed { index: done.index, outcome: done.outcome })
            }
            Attempt::NotLeader(leader) => {
                propose_reply::Result::NotLeader(NotLeader { leader: leader.unwrap_or_default() })
            }
            Attempt::NotSent(reason) => return Err(ErrorKind::Unavailable.status(reason)),
            Attempt::Unknown(reason) => return Err(ErrorKind::Timeout.status(reason)),
        };
        Ok(Response::new(ProposeReply { result: Some(result) }))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let group = self.node.group(request.group).map_err(|error| error.status())?;
        let asked = tokio::time::timeout(READ_INDEX_TIMEOUT, reads::read_index_here(group)).await;
        let result = match asked {
            Ok(Ok(Ok(index))) => read_index_reply::Result::Index(index),
            Ok(Ok(Err(leader))) => {
                read_index_reply::Result::NotLeader(NotLeader { leader: leader.unwrap_or_default() })
            }
            Ok(Err(reason)) => return Err(ErrorKind::Unavailable.status(reason)),
            Err(_) => return Err(ErrorKind::Unavailable.status("the leader hears no quorum")),
        };
        Ok(Response::new(ReadIndexReply { result: Some(result) }))
    }

    async fn groups(&self, request: Request<GroupsRequest>) -> Result<Response<GroupsReply>, Status> {
        let envelope = request.into_inner().envelope;
        let from = envelope.as_ref().map_or(0, |envelope| envelope.from);
        let reply = view::answer(&self.node, from);
        // A node that was removed is told so; from everybody else the envelope must be right.
        let same_cluster = envelope.as_ref().is_some_and(|it| it.cluster_id == self.node.identity.cluster_id);
        if !(reply.removed && same_cluster) {
            self.check(envelope.as_ref())?;
        }
        Ok(Response::new(reply))
    }

    async fn transfer_lead(&self, request: Request<TransferLeadRequest>) -> Result<Response<MoveReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let group = self.node.group(request.group).map_err(|error| error.status())?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.deadline_ms));
        let given = lead::give(&self.node, group, request.to, deadline).await.map_err(|error| error.status())?;
        let result = match given {
            Given::By(from) => move_reply::Result::Moved(Moved { from }),
            Given::NotLeader(leader) => move_reply::Result::NotLeader(NotLeader { leader: leader.unwrap_or_default() }),
        };
        Ok(Response::new(MoveReply { result: Some(result) }))
    }

    async fn move_voter(&self, request: Request<MoveVoterRequest>) -> Result<Response<MoveReply>, Status> {
        let MoveVoterRequest { envelope, group, from, to } = request.into_inner();
        self.check(envelope.as_ref())?;
        let group = self.node.group(group).map_err(|error| error.status())?;
        let moved = membership::move_voter(&self.node, group, from, to).await.map_err(|error| error.status())?;
        let result = match moved {
            Some(()) => move_reply::Result::Moved(Moved { from }),
            None => move_reply::Result::NotLeader(NotLeader { leader: group.leader().unwrap_or_default() }),
        };
        Ok(Response::new(MoveReply { result: Some(result) }))
    }

    async fn rebalance(&self, request: Request<RebalanceRequest>) -> Result<Response<RebalanceReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.deadline_ms));
        let done = balance::rebalance_here(&self.node, deadline).await.map_err(|error| error.status())?;
        let result = match done {
            Some(done) => rebalance_reply::Result::Rebalanced(balance::message_of(&done)),
            None => rebalance_reply::Result::NotLeader(NotLeader { leader: 0 }),
        };
        Ok(Response::new(RebalanceReply { result: Some(result) }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        self.node.check_running().map_err(|error| error.status())?;
        if request.protocol != PEER_PROTOCOL {
            self.node.refused.fetch_add(1, Ordering::Relaxed);
            return Err(ErrorKind::Unsupported.status(format!(
                "node `{}` speaks peer protocol {}, and this cluster speaks {PEER_PROTOCOL}: run the same version on \
                 all nodes",
                request.name, request.protocol
            )));
        }
        let reply = join(&self.node, request).await.map_err(|error| error.status())?;
        Ok(Response::new(reply))
    }

    async fn put_blob(&self, request: Request<Streaming<BlobFrame>>) -> Result<Response<PutBlobReply>, Status> {
        let mut frames = request.into_inner();
        let Some(blob_frame::Part::Header(header)) = frames.message().await?.and_then(|frame| frame.part) else {
            return Err(ErrorKind::InvalidArgument.status("an artifact starts with its header"));
        };
        self.check(header.envelope.as_ref())?;
        self.node.check_room().map_err(|error| error.status())?;
        let root = blob_root(&header.root)?;
        let (pieces, data) = mpsc::channel(FRAMES_MAX);
        let size = header.size;
        // `move`: `pieces` must go with the last frame, or `put` waits for more.
        let receive = async move {
            let mut left = size;
            loop {
                let next = match next_frame(&mut frames).await {
                    Ok(Some(BlobFrame { part: Some(blob_frame::Part::Data(piece)) })) => Ok(piece),
                    Ok(Some(_)) => Err(Error::InvalidArgument("an artifact frame is out of place".into())),
                    Ok(None) if left == 0 => return,
                    Ok(None) => Err(Error::Unavailable("an artifact transfer ended too early".into())),
                    Err(status) => Err(Error::Unavailable(format!("an artifact transfer broke: {}", status.message()))),
                };
                let next = next.and_then(|piece| match left.checked_sub(piece.len() as u64) {
                    Some(rest) => {
                        left = rest;
                        Ok(piece)
                    }
                    None => Err(Error::InvalidArgument("an artifact is longer than announced".into())),
                });
                let failed = next.is_err();
                if pieces.send(next).await.is_err() || failed {
                    return;
                }
            }
        };
        let put = self.node.blobs.put(root, size, data);
        let (stored, ()) = futures::join!(put, receive);
        let bytes_stored = stored.map_err(|error| error.status())?;
        Ok(Response::new(PutBlobReply { bytes_stored }))
    }

    async fn get_blob(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetBlobStream>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let root = blob_root(&request.root)?;
        let (size, data) = self.node.blobs.get(root).await.map_err(|error| error.status())?;
        let header = BlobHeader { envelope: None, root: request.root, size };
        let first = futures::stream::iter([Ok(BlobFrame { part: Some(blob_frame::Part::Header(header)) })]);
        let rest = ReceiverStream::new(data).map(|piece| match piece {
            Ok(piece) => Ok(BlobFrame { part: Some(blob_frame::Part::Data(piece)) }),
            Err(error) => Err(error.status()),
        });
        Ok(Response::new(first.chain(rest).boxed()))
    }
}

fn blob_root(root: &Bytes) -> Result<[u8; 32], Status> {
    let bad = |_| ErrorKind::InvalidArgument.status("an artifact is named by 32 bytes");
    <[u8; 32]>::try_from(root.as_ref()).map_err(bad)
}

async fn next_frame<T>(frames: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let late = |_| ErrorKind::Unavailable.status(format!("a transfer sent nothing for {TRANSFER_PAUSE_MAX:?}"));
    tokio::time::timeout(TRANSFER_PAUSE_MAX, frames.message()).await.map_err(late)?
}

/// Takes a snapshot's files, frame by frame; while one is written, the connection's window fills with the next.
async fn receive_snapshot(
    store: Arc<SnapshotStore>,
    meta: &SnapshotMeta,
    files: Vec<SnapshotFile>,
    frames: &mut Streaming<SnapshotFrame>,
) -> Result<SnapshotDir, Status> {
    let panicked = |error: tokio::task::JoinError| ErrorKind::Internal.status(error.to_string());
    let refused = |error: Error| error.status();
    let (begun, meta) = (store.clone(), meta.clone());
    let mut incoming =
        machine::blocking(move || begun.receive(&meta, files)).await.map_err(panicked)?.map_err(refused)?;
    while let Some(frame) = next_frame(frames).await? {
        let accept = move || incoming.accept(frame).map(|()| incoming);
        incoming = machine::blocking(accept).await.map_err(panicked)?.map_err(refused)?;
    }
    machine::blocking(move || store.received_whole(incoming)).await.map_err(panicked)?.map_err(refused)
}

/// Answers the frames of one stream until it ends, breaks, or the node stops.
async fn serve_raft(
    node: Arc<Node>,
    mut frames: Streaming<RaftFrame>,
    replies: mpsc::Sender<Result<RaftFrame, Status>>,
) {
    let mut calls = FuturesUnordered::new();
    loop {
        let reply = tokio::select! {
            () = node.stop.cancelled() => return,
            Some(reply) = calls.next() => reply,
            frame = frames.message(), if calls.len() < CALLS_MAX => {
                let Ok(Some(frame)) = frame else { return };
                let mut call = Box::pin(answer(node.clone(), frame));
                // The first poll hands the request to its group, so requests of one stream arrive there in order.
                match futures::poll!(&mut call) {
                    std::task::Poll::Ready(reply) => reply,
                    std::task::Poll::Pending => {
                        calls.push(call);
                        continue;
                    }
                }
            }
        };
        if replies.send(Ok(reply)).await.is_err() {
            return;
        }
    }
}

async fn answer(node: Arc<Node>, frame: RaftFrame) -> RaftFrame {
    let (call, group) = (frame.call, frame.group);
    let message = answer_message(&node, frame).await;
    RaftFrame { envelope: None, call, group, message: Some(message.unwrap_or_else(Message::Error)) }
}

async fn answer_message(node: &Node, frame: RaftFrame) -> Result<Message, String> {
    let group = node.group(frame.group).map_err(|error| error.to_string())?;
    let raft = &group.raft;
    match frame.message {
        Some(Message::Append(bytes)) => {
            let request = codec::decode_append(bytes).map_err(|error| error.to_string())?;
            // Heartbeats are heard, so a full follower stays one, and its leader tries it again.
            if !request.entries.is_empty() {
                node.check_room().map_err(|error| error.to_string())?;
            }
            #[cfg(feature = "seeded-bugs")]
            if let Some(lie) = crate::seeded::append_later(raft, frame.group, &request) {
                return Ok(Message::AppendReply(codec::encode_append_reply(&lie)));
            }
            let reply = raft.append_entries(request).await.map_err(|error| error.to_string())?;
            Ok(Message::AppendReply(codec::encode_append_reply(&reply)))
        }
        Some(Message::Vote(bytes)) => {
            let (request, pre_vote) = codec::decode_vote_request(bytes).map_err(|error| error.to_string())?;
            #[cfg(test)]
            let asked = request.vote;
            let reply = if pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
            let reply = reply.map_err(|error| error.to_string())?;
            #[cfg(test)]
            if !pre_vote {
                crate::sim::history::voted(node.me(), group.id, &asked, &reply);
            }
            Ok(Message::VoteReply(codec::encode_vote_reply(&reply)))
        }
        Some(Message::TransferLeader(bytes)) => {
            let request = codec::decode_transfer(bytes).map_err(|error| error.to_string())?;
            let reply = raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
            Ok(Message::TransferLeaderReply(codec::encode_transfer_reply(&reply)))
        }
        _ => Err("a raft frame holds no request".into()),
    }
}

/// Adds a node to the cluster; a retry with the same request id gets the first answer.
async fn join(node: &Node, request: JoinRequest) -> Result<JoinReply> {
    // Before the cluster's first entry a join would be refused, and the refusal remembered for its request id.
    if node.host.nodes().is_empty() {
        let me = node.me();
        return Err(Error::Unavailable(format!("node {me} does not know the cluster's nodes yet; try again")));
    }
    let command = record::MetaCommand {
        version: crate::META_COMMAND_VERSION,
        proposed_at_us: (node.clock)(),
        change: Some(record::meta_command::Change::AddNode(record::AddNode {
            name: request.name,
            peer_address: request.peer_address,
            client_address: request.client_address,
        })),
        request_id: request.request_id,
    };
    let idempotent = !command.request_id.is_empty();
    let group = node.group(0)?;
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let proposed = propose::propose(node, group, command.encode_to_vec().into(), idempotent, deadline).await?;
    let broken = |error: prost::DecodeError| Error::Internal(format!("the outcome of a join: {error}"));
    match record::MetaOutcome::decode(proposed.outcome).map_err(broken)?.outcome {
        Some(record::meta_outcome::Outcome::NodeAdded(added)) => {
            let cluster = added.cluster.ok_or_else(|| Error::Internal("a join without a cluster".into()))?;
            let nodes = added.nodes.iter().map(|node| node.encode_to_vec().into()).collect();
            Ok(JoinReply {
                cluster_id: cluster.cluster_id.clone(),
                node_id: added.id,
                shards: cluster.shards,
                cluster: cluster.encode_to_vec().into(),
                nodes,
            })
        }
        Some(record::meta_outcome::Outcome::Refused(refusal)) => Err(crate::refused(refusal)),
        _ => Err(Error::Internal("a join had another outcome than a node".into())),
    }
}
