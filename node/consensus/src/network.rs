//! openraft's network on [`link`](crate::link): pipelined appends, votes, leader transfer, snapshots.
//!
//! Appends of one group to one peer travel in order on one stream, up to a window ahead of their replies; the replies
//! are handed to openraft in request order. `soft_ttl` is honoured per reply, so a stream may live for ever.

use crate::codec;
use crate::link::{Call, Lane, Peer, Peers};
use crate::snapshot::{self, Snapshot, SnapshotDir};
use crate::types::*;
use bytes::Bytes;
use cairn_proto::peer::v1::{SnapshotHaveRequest, SnapshotHeader, raft_frame::Message};
use cairn_storage::replica::Replica;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{SnapshotResponse, StreamAppendResult};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_stream::wrappers::ReceiverStream;

/// Appends of one group to one peer that may wait for their replies …
const WINDOW_REQUESTS_MAX: usize = 64;
/// … and the bytes from which on no further one is sent.
const WINDOW_BYTES_MAX: usize = 16 << 20;
/// A follower's fsync may take a while; a reply later than this ends the stream and starts over.
const APPEND_REPLY_MIN: Duration = Duration::from_secs(2);

type RpcError = RPCError<TypeConfig>;

/// Makes the network clients of one group.
#[derive(Clone)]
pub struct Network {
    pub group: GroupId,
    pub peers: Arc<Peers>,
    /// Snapshots leave one at a time.
    pub sending: Arc<Semaphore>,
    pub snapshot_bytes_per_second: u64,
    /// Verifies a snapshot of it before it leaves.
    pub replica: Arc<dyn Replica>,
}

impl Network {
    fn client(&self, target: NodeId, node: &PeerNode, urgent: bool) -> Client {
        self.peers.book.suggest(target, &node.address);
        let peer = self.peers.get(target);
        let lane = if urgent { peer.urgent.clone() } else { peer.raft.clone() };
        Client { network: self.clone(), peer, lane }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &PeerNode) -> Client {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &PeerNode) -> Client {
        self.client(target, node, true)
    }
}

/// One group's calls to one peer.
pub struct Client {
    network: Network,
    peer: Arc<Peer>,
    /// Where appends go: heartbeats have their own.
    lane: Arc<Lane>,
}

impl Client {
    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        RPCError::Timeout(Timeout { action, id: self.network.peers.me, target: self.peer.id, timeout })
    }

    async fn urgent(&self, action: RPCTypes, message: Message, timeout: Duration) -> Result<Message, RpcError> {
        let call = self.peer.urgent.call(self.network.group, message);
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(self.timeout(action, timeout)),
        }
    }

    async fn ask_vote(&self, rpc: VoteRequest, pre_vote: bool, option: RPCOption) -> Result<VoteResponse, RpcError> {
        let message = Message::Vote(codec::encode_vote_request(&rpc, pre_vote));
        match self.urgent(RPCTypes::Vote, message, option.hard_ttl()).await? {
            Message::VoteReply(bytes) => codec::decode_vote_reply(bytes).map_err(network),
            other => Err(unexpected(&other)),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotDir;

    async fn append_entries(&mut self, rpc: AppendRequest, option: RPCOption) -> Result<AppendResponse, RpcError> {
        let call = self.lane.call(self.network.group, Message::Append(codec::encode_append(&rpc)));
        let timeout = option.soft_ttl().max(APPEND_REPLY_MIN);
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => read_append_reply(answer),
            Err(_) => Err(self.timeout(RPCTypes::AppendEntries, timeout)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let timeout = option.soft_ttl().max(APPEND_REPLY_MIN);
        let pipeline = Pipeline {
            client: self,
            input,
            input_ended: false,
            sent: VecDeque::new(),
            sent_bytes: 0,
            timeout,
            alarm: Box::pin(tokio::time::sleep(timeout)),
            ended: false,
        };
        let stream: BoxStream<'s, _> = Box::pin(pipeline);
        Box::pin(async move { Ok(stream) })
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.ask_vote(rpc, false, option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.ask_vote(rpc, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let transfer = async {
            let closed = |_| StreamingError::Closed(ReplicationClosed::new("the node is stopping"));
            let _turn = self.network.sending.acquire().await.map_err(closed)?;
            let away = |error: crate::Error| StreamingError::Unreachable(Unreachable::from_string(error));
            let mut client = self.peer.snapshots().await.map_err(away)?;
            let header = SnapshotHeader {
                envelope: Some(self.peer.envelope()),
                group: self.network.group,
                vote: codec::encode_vote(&vote),
                meta: codec::encode_meta(&snapshot.meta),
                files: Vec::new(),
            };
            let ask = SnapshotHaveRequest { envelope: Some(self.peer.envelope()), group: self.network.group };
            let send = async {
                let have = client.clone().snapshot_have(ask).await?.into_inner().have;
                let rate = self.network.snapshot_bytes_per_second;
                let frames = snapshot::send(snapshot.snapshot, header, have, rate, self.network.replica.clone());
                client.snapshot(ReceiverStream::new(frames)).await
            };
            match send.await {
                Ok(reply) => {
                    let vote = codec::decode_vote(reply.into_inner().vote);
                    Ok(SnapshotResponse::new(vote.map_err(|error| StreamingError::Network(NetworkError::new(&error)))?))
                }
                Err(status) => {
                    self.peer.forget_connections().await;
                    let message = format!("node {}: {}", self.peer.id, status.message());
                    Err(StreamingError::Unreachable(Unreachable::from_string(message)))
                }
            }
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = transfer => result,
        }
    }

    async fn transfer_leader(&mut self, req: TransferRequest, option: RPCOption) -> Result<TransferResponse, RpcError> {
        let message = Message::TransferLeader(codec::encode_transfer(&req));
        match self.urgent(RPCTypes::TransferLeader, message, option.hard_ttl()).await? {
            Message::TransferLeaderReply(bytes) => codec::decode_transfer_reply(bytes).map_err(network),
            other => Err(unexpected(&other)),
        }
    }
}

fn unreachable(reason: String) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn network(error: codec::DecodeError) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

fn unexpected(message: &Message) -> RpcError {
    match message {
        // The peer is there and cannot take part in this group now: back off as if it were away.
        Message::Error(reason) => unreachable(reason.clone()),
        _ => RPCError::Network(NetworkError::from_string("a peer answered with another message than asked for")),
    }
}

fn read_append_reply(answer: Result<Message, String>) -> Result<AppendResponse, RpcError> {
    match answer.map_err(unreachable)? {
        Message::AppendReply(bytes) => codec::decode_append_reply(bytes).map_err(network),
        other => Err(unexpected(&other)),
    }
}

/// Requests going out ahead of their replies, replies coming back in request order.
struct Pipeline<'s, S> {
    client: &'s Client,
    input: S,
    input_ended: bool,
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    timeout: Duration,
    /// Rings when the oldest request has waited too long.
    alarm: Pin<Box<Sleep>>,
    ended: bool,
}

struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    call: Call,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Pipeline<'_, S> {
    fn restart_alarm(&mut self) {
        let at = Instant::now() + self.timeout;
        self.alarm.as_mut().reset(at);
    }

    fn send_what_fits(&mut self, context: &mut Context<'_>) {
        while !self.input_ended && self.sent.len() < WINDOW_REQUESTS_MAX && self.sent_bytes < WINDOW_BYTES_MAX {
            match self.input.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(None) => self.input_ended = true,
                Poll::Ready(Some(request)) => {
                    let bytes: Bytes = codec::encode_append(&request);
                    let prev = request.prev_log_id;
                    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
                    if self.sent.is_empty() {
                        self.restart_alarm();
                    }
                    self.sent_bytes += bytes.len();
                    let (length, message) = (bytes.len(), Message::Append(bytes));
                    let call = self.client.lane.call(self.client.network.group, message);
                    self.sent.push_back(Sent { prev, last, bytes: length, call });
                }
            }
        }
    }

    fn read(
        &mut self,
        sent: &Sent,
        answer: Result<Message, String>,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        let reply = match read_append_reply(answer) {
            Ok(reply) => reply,
            Err(error) => {
                self.ended = true;
                return Err(error);
            }
        };
        if matches!(reply, AppendResponse::Conflict) && sent.prev.is_none() {
            self.ended = true;
            let message = "a peer reports a conflict before the first entry";
            return Err(RPCError::Network(NetworkError::from_string(message)));
        }
        let partial = matches!(&reply, AppendResponse::PartialSuccess(upto) if *upto != sent.last);
        let result = reply.into_stream_result(sent.prev, sent.last);
        self.ended = partial || result.is_err();
        Ok(result)
    }
}

impl<S: Stream<Item = AppendRequest> + Unpin> Stream for Pipeline<'_, S> {
    type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        this.send_what_fits(context);
        let Some(oldest) = this.sent.front_mut() else {
            return if this.input_ended { Poll::Ready(None) } else { Poll::Pending };
        };
        if let Poll::Ready(answer) = Pin::new(&mut oldest.call).poll(context) {
            let Some(sent) = this.sent.pop_front() else { return Poll::Ready(None) };
            this.sent_bytes = this.sent_bytes.saturating_sub(sent.bytes);
            this.restart_alarm();
            return Poll::Ready(Some(this.read(&sent, answer)));
        }
        if this.alarm.as_mut().poll(context).is_ready() {
            this.ended = true;
            return Poll::Ready(Some(Err(this.client.timeout(RPCTypes::AppendEntries, this.timeout))));
        }
        Poll::Pending
    }
}
