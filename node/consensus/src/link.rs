//! Connections to the other nodes: who is where, lanes for raft calls, channels for the rest.
//!
//! Per peer: one connection for log replication, one for heartbeats and votes (a large append never delays them), one
//! for snapshots, one for requests. A lane opens its stream when it is first needed and again after it broke; each time
//! it asks the address book. Nothing is resent here: a call that was under way when its connection broke ends as
//! unreachable, and who made it decides.

use crate::error::{Error, Result};
use crate::machine;
use crate::types::*;
use cairn_proto::peer::v1::{Envelope, RaftFrame, peer_client::PeerClient, raft_frame::Message};
use cairn_proto::{MESSAGE_BYTES_MAX, PEER_PROTOCOL};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 8 << 20;
/// Frames handed to the connection and not yet taken by it.
const OUTGOING_FRAMES_MAX: usize = 16;
/// What a message may take beside its largest field.
const MESSAGE_SLACK: usize = 1 << 20;

/// Peer addresses by node id, the newest known.
#[derive(Debug, Default)]
pub struct AddressBook(Mutex<BTreeMap<NodeId, String>>);

impl AddressBook {
    pub fn get(&self, id: NodeId) -> Option<String> {
        self.0.lock().get(&id).cloned()
    }

    /// Replaces what was known.
    pub fn set(&self, id: NodeId, address: &str) {
        if !address.is_empty() {
            self.0.lock().insert(id, address.to_owned());
        }
    }

    /// Fills a gap; never replaces, because a membership may be older than what meta says.
    pub fn suggest(&self, id: NodeId, address: &str) {
        if !address.is_empty() {
            self.0.lock().entry(id).or_insert_with(|| address.to_owned());
        }
    }

    pub fn forget(&self, id: NodeId) {
        self.0.lock().remove(&id);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.0.lock().keys().copied().collect()
    }
}

/// Opens a connection to a peer port.
///
/// # Errors
/// `Unavailable`: nothing was sent.
pub async fn connect(address: &str) -> Result<PeerClient<Channel>> {
    let bad = |error: tonic::transport::Error| Error::InvalidArgument(format!("`{address}` is no HOST:PORT: {error}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(bad)?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let refused = |error: tonic::transport::Error| {
        let mut deepest: &dyn std::error::Error = &error;
        while let Some(cause) = deepest.source() {
            deepest = cause;
        }
        Error::Unavailable(format!("cannot connect to {address}: {deepest}"))
    };
    // The connect timeout of the endpoint covers TCP only.
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, machine::connect(&endpoint));
    let channel = connecting
        .await
        .map_err(|_| Error::Unavailable(format!("cannot connect to {address}: no answer in {CONNECT_TIMEOUT:?}")))?
        .map_err(refused)?;
    let limit = MESSAGE_BYTES_MAX + MESSAGE_SLACK;
    Ok(PeerClient::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit))
}

/// This node as it introduces itself, and its links to all others.
#[derive(Debug)]
pub struct Peers {
    pub cluster_id: String,
    pub me: NodeId,
    pub book: AddressBook,
    links: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
}

impl Peers {
    pub fn new(cluster_id: String, me: NodeId) -> Arc<Self> {
        Arc::new(Self { cluster_id, me, book: AddressBook::default(), links: Mutex::default() })
    }

    pub fn get(self: &Arc<Self>, id: NodeId) -> Arc<Peer> {
        let mut links = self.links.lock();
        links.entry(id).or_insert_with(|| Arc::new(Peer::new(self.clone(), id))).clone()
    }

    /// Ends the connections to a node that is no part of the cluster any more.
    pub fn forget(&self, id: NodeId) {
        self.book.forget(id);
        self.links.lock().remove(&id);
    }

    /// Ends every connection.
    pub fn close(&self) {
        self.links.lock().clear();
    }
}

/// One other node.
#[derive(Debug)]
pub struct Peer {
    pub id: NodeId,
    /// Log replication.
    pub raft: Arc<Lane>,
    /// Heartbeats, votes, leader transfers.
    pub urgent: Arc<Lane>,
    dial: Dial,
    requests: tokio::sync::Mutex<Option<(String, PeerClient<Channel>)>>,
    snapshots: tokio::sync::Mutex<Option<(String, PeerClient<Channel>)>>,
}

impl Peer {
    fn new(peers: Arc<Peers>, id: NodeId) -> Self {
        let dial = Dial { peers, id };
        Self {
            id,
            raft: Lane::new(dial.clone()),
            urgent: Lane::new(dial.clone()),
            dial,
            requests: tokio::sync::Mutex::default(),
            snapshots: tokio::sync::Mutex::default(),
        }
    }

    pub fn envelope(&self) -> Envelope {
        self.dial.envelope()
    }

    /// The connection for proposals, reads and blobs.
    ///
    /// # Errors
    /// `Unavailable`: nothing was sent.
    pub async fn requests(&self) -> Result<PeerClient<Channel>> {
        self.cached(&self.requests).await
    }

    pub async fn snapshots(&self) -> Result<PeerClient<Channel>> {
        self.cached(&self.snapshots).await
    }

    /// After a failure: the next request connects anew, and so learns whether anybody is there.
    pub async fn forget_connections(&self) {
        *self.requests.lock().await = None;
        *self.snapshots.lock().await = None;
    }

    async fn cached(
        &self,
        slot: &tokio::sync::Mutex<Option<(String, PeerClient<Channel>)>>,
    ) -> Result<PeerClient<Channel>> {
        let address = self.dial.address()?;
        let mut slot = slot.lock().await;
        if let Some((known, client)) = slot.as_ref()
            && *known == address
        {
            return Ok(client.clone());
        }
        let client = connect(&address).await?;
        *slot = Some((address, client.clone()));
        Ok(client)
    }
}

#[derive(Debug, Clone)]
struct Dial {
    peers: Arc<Peers>,
    id: NodeId,
}

impl Dial {
    fn envelope(&self) -> Envelope {
        Envelope {
            cluster_id: self.peers.cluster_id.clone(),
            from: self.peers.me,
            to: self.id,
            protocol: PEER_PROTOCOL,
        }
    }

    fn address(&self) -> Result<String> {
        let address = self.peers.book.get(self.id);
        address.ok_or_else(|| Error::Unavailable(format!("no address is known for node {}", self.id)))
    }
}

/// The answer to a call, or why there is none.
pub type Answer = Result<Message, String>;

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Answer>>>;

/// Raft calls of all groups to one peer over one stream. Replies are matched by call number, in any order.
#[derive(Debug)]
pub struct Lane {
    queue: mpsc::UnboundedSender<RaftFrame>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

impl Lane {
    fn new(dial: Dial) -> Arc<Self> {
        // Bounded by its callers: a few votes, one heartbeat a group, and the window of each group's replication.
        let (queue, frames) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        tokio::spawn(run_lane(dial, frames, waiting.clone()));
        Arc::new(Self { queue, waiting, next: AtomicU64::new(1) })
    }

    /// Queues `message`; messages of one lane leave in this order.
    pub fn call(&self, group: GroupId, message: Message) -> Call {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(call, sender);
        let frame = RaftFrame { envelope: None, call, group, message: Some(message) };
        if self.queue.send(frame).is_err() {
            self.waiting.lock().remove(&call);
        }
        Call { call, answer, waiting: self.waiting.clone() }
    }
}

/// A call under way. Dropping it forgets the answer.
#[derive(Debug)]
pub struct Call {
    call: u64,
    answer: oneshot::Receiver<Answer>,
    waiting: Arc<Waiting>,
}

impl Future for Call {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err("the link is closed".into())))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.call);
    }
}

async fn run_lane(dial: Dial, mut frames: mpsc::UnboundedReceiver<RaftFrame>, waiting: Arc<Waiting>) {
    while let Some(first) = frames.recv().await {
        let reason = match run_stream(&dial, first, &mut frames, &waiting).await {
            Ok(()) => return,
            Err(reason) => reason,
        };
        tracing::debug!(peer = dial.id, %reason, "a raft stream ended");
        // Everything queued or sent on that stream fails; what comes later opens a new one.
        while frames.try_recv().is_ok() {}
        for (_, sender) in waiting.lock().drain() {
            let _ = sender.send(Err(reason.clone()));
        }
    }
}

/// Runs one stream until it breaks (`Err`) or nobody needs the lane any more (`Ok`).
async fn run_stream(
    dial: &Dial,
    first: RaftFrame,
    frames: &mut mpsc::UnboundedReceiver<RaftFrame>,
    waiting: &Waiting,
) -> Result<(), String> {
    let address = dial.address().map_err(|error| error.to_string())?;
    let mut client = connect(&address).await.map_err(|error| error.to_string())?;
    let (outgoing, requests) = mpsc::channel(OUTGOING_FRAMES_MAX);
    let hello = RaftFrame { envelope: Some(dial.envelope()), ..RaftFrame::default() };
    for frame in [hello, first] {
        outgoing.try_send(frame).map_err(|_| "the stream does not take its first frames".to_owned())?;
    }
    let opening = tokio::time::timeout(CONNECT_TIMEOUT, client.raft(ReceiverStream::new(requests)));
    let mut replies = match opening.await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(format!("node {} at {address}: {}", dial.id, status.message())),
        Err(_) => return Err(format!("node {} at {address} does not answer", dial.id)),
    };
    let write = async {
        while let Some(frame) = frames.recv().await {
            if outgoing.send(frame).await.is_err() {
                return Err(format!("the stream to node {} at {address} is closed", dial.id));
            }
        }
        Ok(())
    };
    let read = async {
        loop {
            match replies.message().await {
                Ok(Some(frame)) => {
                    let Some(message) = frame.message else { continue };
                    if let Some(sender) = waiting.lock().remove(&frame.call) {
                        let _ = sender.send(Ok(message));
                    }
                }
                Ok(None) => return format!("node {} at {address} closed the stream", dial.id),
                Err(status) => return format!("node {} at {address}: {}", dial.id, status.message()),
            }
        }
    };
    tokio::select! {
        written = write => written,
        reason = read => Err(reason),
    }
}
