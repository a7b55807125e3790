//! Stories of whole nodes in one process, over loopback, on real disks.

use crate::link;
use crate::log_store::LogStore;
use crate::options::*;
use crate::snapshot::SnapshotStore;
use crate::state_machine::StateMachine;
use crate::testing::{AUDIT, MemoryReplica, TestHost};
use crate::types::*;
use crate::wal::{RealFiles, Wal, WalOptions};
use crate::{Cluster, Error};
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::peer::v1::{Envelope, JoinRequest, ProposeRequest};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

mod audit;
mod members;
mod transfers;

/// openraft's own conformance suite, on our log and state machine.
#[test]
fn stores_conform() {
    struct Stores;
    impl openraft::testing::log::StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores {
        async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().unwrap();
            let options = WalOptions { segment_bytes: 64 << 10, ..WalOptions::default() };
            let wal = Wal::open(&dir.path().join("wal"), options, Arc::new(RealFiles)).unwrap();
            let snapshots = Arc::new(SnapshotStore::open(dir.path().join("snapshots")).unwrap());
            let replica = Arc::new(MemoryReplica::default());
            let building = Arc::new(Semaphore::new(1));
            let machine =
                StateMachine::new(replica, Arc::new(TestHost::default()), snapshots, building, watch::Sender::new(0))
                    .unwrap();
            Ok((dir, LogStore::new(wal, 3), machine))
        }
    }
    type Suite = openraft::testing::log::Suite<TypeConfig, LogStore, StateMachine, Stores, TempDir>;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Stores)).unwrap();
}

/// A node that can be stopped and started again at the same place and address.
struct TestNode {
    name: &'static str,
    dir: TempDir,
    address: SocketAddr,
    host: Arc<TestHost>,
    cluster: Arc<Cluster>,
}

const SHARDS: u32 = 2;
/// Leads stay where a test puts them, unless it is about that.
const STILL: BalanceOptions = BalanceOptions { interval: Duration::from_secs(3600), rest: Duration::from_secs(3600) };

fn options(dir: &Path, name: &str, listener: TcpListener) -> Options {
    let address = listener.local_addr().unwrap().to_string();
    Options {
        client_address: format!("client-of-{address}"),
        timers: Timers { heartbeat_ms: 100, election_min_ms: 600, election_max_ms: 1200 },
        snapshots: SnapshotOptions { every_entries: 40, keep_entries: 4, bytes_per_second: 0 },
        wal: WalOptions { segment_bytes: 64 << 10, ..WalOptions::default() },
        join_timeout: Duration::from_secs(20),
        balance: STILL,
        ..Options::new(dir.to_owned(), name.into(), listener, || 1_000_000)
    }
}

async fn start(
    dir: &Path,
    name: &str,
    listener: TcpListener,
    start: Start,
) -> Result<(Arc<TestHost>, Arc<Cluster>), Error> {
    start_with(options(dir, name, listener), start).await
}

async fn start_with(options: Options, start: Start) -> Result<(Arc<TestHost>, Arc<Cluster>), Error> {
    let host = Arc::new(TestHost::default());
    let blobs = Arc::new(MemoryBlobs::default());
    let cluster = Cluster::start(options, start, host.clone(), blobs).await?;
    Ok((host, cluster))
}

impl TestNode {
    async fn start(name: &'static str, how: Start) -> Self {
        Self::start_balanced(name, how, STILL).await
    }

    async fn start_balanced(name: &'static str, how: Start, balance: BalanceOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { balance, ..options(dir.path(), name, listener) };
        let (host, cluster) = start_with(options, how).await.unwrap();
        Self { name, dir, address, host, cluster }
    }

    async fn first() -> Self {
        Self::start("one", Start::Bootstrap { shards: SHARDS, replication_factor: 0 }).await
    }

    async fn join(name: &'static str, through: &Self) -> Self {
        Self::start(name, Start::Join { address: through.address.to_string() }).await
    }

    async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        // What to do without data must not matter.
        let how = Start::Join { address: "127.0.0.1:1".into() };
        (self.host, self.cluster) = start(self.dir.path(), self.name, listener, how).await.unwrap();
    }

    async fn write(&self, group: GroupId, command: &str) -> u64 {
        let command = Bytes::copy_from_slice(command.as_bytes());
        let proposed = self.cluster.propose(group, command.clone(), true, soon()).await.unwrap();
        assert_eq!(proposed.outcome, command);
        proposed.index
    }

    fn read(&self, group: GroupId) -> Vec<String> {
        let commands = self.host.commands(group).into_iter().map(|command| String::from_utf8(command).unwrap());
        commands.filter(|command| command != AUDIT).collect()
    }

    async fn linearizable_read(&self, group: GroupId) -> Vec<String> {
        self.cluster.linearizable(group, soon()).await.unwrap();
        self.read(group)
    }
}

async fn three_nodes() -> [TestNode; 3] {
    let one = TestNode::first().await;
    let began = Instant::now();
    let two = TestNode::join("two", &one).await;
    let three = TestNode::join("three", &two).await;
    println!("joined after {:?}", began.elapsed());
    let nodes = [one, two, three];
    until("all groups have three voters everywhere", || {
        nodes.iter().all(|node| node.cluster.status().iter().all(|group| group.voters.len() == 3))
    })
    .await;
    println!("three voters after {:?}", began.elapsed());
    nodes
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = soon();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        ticks.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_is_ready_when_it_has_started_and_keeps_its_data() {
    let began = Instant::now();
    let mut one = TestNode::first().await;
    println!("founded in {:?}", began.elapsed());
    let first = one.write(1, "a").await;
    assert!(one.write(1, "b").await > first);
    assert_eq!(one.linearizable_read(1).await, ["a", "b"]);
    one.cluster.bounded(1, Duration::from_secs(5), soon()).await.unwrap();
    let status = one.cluster.status();
    assert_eq!(status.len(), 1 + SHARDS as usize);
    assert!(status.iter().all(|group| group.is_leader && group.voters == [1] && group.failure.is_none()), "{status:?}");
    let (id, cluster) = (one.cluster.node_id(), one.cluster.cluster_id().to_owned());

    one.cluster.shutdown().await;
    let began = Instant::now();
    one.restart().await;
    println!("continued in {:?}", began.elapsed());
    assert_eq!((one.cluster.node_id(), one.cluster.cluster_id()), (id, cluster.as_str()));
    assert_eq!(one.linearizable_read(1).await, ["a", "b"]);
    assert_eq!(one.host.nodes().len(), 1);
    one.cluster.shutdown().await;
    let stopped = one.cluster.propose(1, Bytes::from_static(b"c"), false, soon()).await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_write_anywhere_lose_their_leader_and_restart() {
    let mut nodes = three_nodes().await;
    let mut want = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let command = format!("from {at}");
        let index = node.write(1, &command).await;
        want.push(command);
        for reader in &nodes {
            assert_eq!(reader.linearizable_read(1).await, want);
            reader.cluster.wait_applied(1, index, soon()).await.unwrap();
            reader.cluster.bounded(1, Duration::from_secs(5), soon()).await.unwrap();
        }
    }

    let leader = nodes[0].cluster.leader(1).unwrap();
    let at = nodes.iter().position(|node| node.cluster.node_id() == leader).unwrap();
    let began = Instant::now();
    nodes[at].cluster.shutdown().await;
    println!("leader stopped in {:?}", began.elapsed());
    let other = &nodes[(at + 1) % 3];
    other.write(1, "without the leader").await;
    println!("written after {:?}", began.elapsed());
    want.push("without the leader".into());
    assert_ne!(other.cluster.leader(1), Some(leader));
    assert_eq!(nodes[(at + 2) % 3].linearizable_read(1).await, want);

    nodes[at].restart().await;
    assert_eq!(nodes[at].linearizable_read(1).await, want);

    for node in &nodes {
        node.cluster.shutdown().await;
    }
    for node in &mut nodes {
        node.restart().await;
    }
    for node in &nodes {
        assert_eq!(node.linearizable_read(1).await, want);
        assert_eq!(node.host.nodes().len(), 3);
        node.cluster.wait_ready(soon()).await.unwrap();
    }
    nodes[2].write(2, "still writing").await;
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_catches_up_by_snapshot() {
    let mut nodes = three_nodes().await;
    nodes[2].cluster.shutdown().await;
    let mut last = 0;
    for at in 0..200 {
        last = nodes[0].write(1, &format!("{at:04}")).await;
    }
    until("the log in front of the lagging node is purged", || {
        nodes[..2].iter().all(|node| node.cluster.status()[1].purged_index > 100)
    })
    .await;
    nodes[2].restart().await;
    nodes[2].cluster.wait_applied(1, last, soon()).await.unwrap();
    assert_eq!(nodes[2].read(1), nodes[0].read(1));
    assert!(nodes[2].cluster.status()[1].snapshot_index > 100);

    // What was installed is on disk, and so is what came after it.
    nodes[0].write(1, "after").await;
    nodes[2].linearizable_read(1).await;
    nodes[2].cluster.shutdown().await;
    nodes[2].restart().await;
    assert_eq!(nodes[2].linearizable_read(1).await, nodes[0].read(1));
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_start_is_refused() {
    let one = TestNode::first().await;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let how = Start::Bootstrap { shards: 1, replication_factor: 0 };
    let error = start(one.dir.path(), "again", listener, how).await.err().unwrap();
    assert!(error.to_string().contains("is in use by pid"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let how = Start::Join { address: one.address.to_string() };
    let error = start(dir.path(), "one", listener, how).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.to_string(), "node `one` is already in the cluster");
    assert!(!dir.path().join("identity").exists());
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_asked_twice_makes_one_node() {
    let one = TestNode::first().await;
    let mut client = link::connect(&one.address.to_string()).await.unwrap();
    let request = JoinRequest {
        name: "two".into(),
        peer_address: "127.0.0.1:1".into(),
        protocol: cairn_proto::PEER_PROTOCOL,
        request_id: "the same".into(),
        ..JoinRequest::default()
    };
    let first = client.join(request.clone()).await.unwrap().into_inner();
    let second = client.join(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, second);
    assert_eq!(one.host.nodes().len(), 2);

    let newer = JoinRequest { protocol: 99, name: "three".into(), request_id: "other".into(), ..request };
    let refusal = client.join(newer).await.unwrap_err();
    assert_eq!(ErrorKind::of_status(&refusal), ErrorKind::Unsupported);
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_counted() {
    let one = TestNode::first().await;
    let mut client = link::connect(&one.address.to_string()).await.unwrap();
    let right =
        Envelope { cluster_id: one.cluster.cluster_id().into(), from: 9, to: 1, protocol: cairn_proto::PEER_PROTOCOL };
    let wrong = [
        (Envelope { cluster_id: "other".into(), ..right.clone() }, "node 9 belongs to cluster `other`"),
        (Envelope { to: 2, ..right.clone() }, "node 9 looks for node 2 at the address of node 1"),
        (Envelope { protocol: 7, ..right.clone() }, "node 9 speaks peer protocol 7"),
    ];
    for (envelope, why) in wrong {
        let command = Bytes::from_static(b"x");
        let request = ProposeRequest { envelope: Some(envelope), group: 1, command, deadline_ms: 1000 };
        let refusal = client.propose(request).await.unwrap_err();
        assert!(refusal.message().starts_with(why), "{}", refusal.message());
    }
    assert_eq!(one.cluster.refused_peers(), 3);
    assert!(one.read(1).is_empty());
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_promised() {
    let nodes = three_nodes().await;
    nodes[0].write(1, "a").await;
    nodes[1].cluster.shutdown().await;
    nodes[2].cluster.shutdown().await;
    let deadline = Instant::now() + Duration::from_secs(3);
    let write = nodes[0].cluster.propose(1, Bytes::from_static(b"b"), false, deadline).await.unwrap_err();
    assert!(write.kind().is_retryable(), "{write}");
    let deadline = Instant::now() + Duration::from_secs(3);
    let read = nodes[0].cluster.linearizable(1, deadline).await.unwrap_err();
    assert!(read.kind().is_retryable(), "{read}");
    nodes[0].cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_applied_stops_the_node_with_its_reason() {
    let one = TestNode::first().await;
    let mut failure = one.cluster.failure();
    let write = one.cluster.propose(2, Bytes::from_static(b"poison"), false, soon()).await.unwrap_err();
    assert_eq!(write.kind(), ErrorKind::Timeout, "{write}");
    let reason = failure.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(reason.contains("this command cannot be applied"), "{reason}");
    let refused = one.cluster.propose(1, Bytes::from_static(b"x"), false, soon()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_has_ended_is_not_waited_for_hotly() {
    let one = TestNode::first().await;
    one.cluster.shutdown().await;
    let group = one.cluster.node().group(1).unwrap();
    let began = Instant::now();
    group.changed(Duration::from_millis(50)).await;
    assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_unknown_groups_are_named() {
    let one = TestNode::first().await;
    let big = Bytes::from(vec![0; crate::COMMAND_BYTES_MAX + 1]);
    assert_eq!(one.cluster.propose(1, big, false, soon()).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let unknown = one.cluster.linearizable(7, soon()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no group 7; groups are 0 to 2");
    // As large as a batch of rows gets: one entry, one outcome.
    let large = Bytes::from(vec![b'x'; 8 << 20]);
    let proposed = one.cluster.propose(1, large.clone(), false, soon()).await.unwrap();
    assert_eq!(proposed.outcome, large);
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_group_does_not_keep_the_log() {
    let one = TestNode::first().await;
    let row = Bytes::from(vec![b'x'; 16 << 10]);
    for _ in 0..200 {
        one.cluster.propose(1, row.clone(), false, soon()).await.unwrap();
    }
    // 3 MiB in segments of 64 KiB; the few entries of groups 0 and 2 stand in the first.
    until("old segments are deleted", || one.cluster.wal_stats().segments < 16).await;
    one.write(2, "awake").await;
    assert_eq!(one.linearizable_read(2).await, ["awake"]);
    one.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_does_not_vote_again() {
    let one = TestNode::first().await;
    one.cluster.shutdown().await;
    std::fs::remove_dir_all(one.dir.path().join("wal")).unwrap();
    let listener = TcpListener::bind(one.address).unwrap();
    let how = Start::Bootstrap { shards: SHARDS, replication_factor: 0 };
    let error = start(one.dir.path(), "one", listener, how).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("join as a new node"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moved_is_found_again() {
    let mut nodes = three_nodes().await;
    nodes[2].cluster.shutdown().await;
    nodes[2].address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    nodes[2].restart().await;
    let moved = nodes[2].address.to_string();
    until("everybody knows the new address", || {
        nodes.iter().all(|node| node.host.nodes().iter().any(|known| known.peer_address == moved))
    })
    .await;
    let index = nodes[0].write(1, "found").await;
    nodes[2].cluster.wait_applied(1, index, soon()).await.unwrap();
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[derive(Default)]
struct MemoryBlobs(Mutex<BTreeMap<[u8; 32], Bytes>>);

#[tonic::async_trait]
impl BlobPeer for MemoryBlobs {
    async fn put(&self, root: [u8; 32], _: u64, mut data: mpsc::Receiver<Result<Bytes, Error>>) -> Result<u64, Error> {
        let mut file = Vec::new();
        while let Some(piece) = data.recv().await {
            file.extend_from_slice(&piece?);
        }
        let bytes = file.len() as u64;
        self.0.lock().insert(root, file.into());
        Ok(bytes)
    }

    async fn get(&self, root: [u8; 32]) -> Result<(u64, mpsc::Receiver<Result<Bytes, Error>>), Error> {
        let file = self.0.lock().get(&root).cloned();
        let file = file.ok_or_else(|| Error::Refused { kind: ErrorKind::NotFound, message: "no such file".into() })?;
        Ok((file.len() as u64, pieces([Ok(file)])))
    }
}

fn pieces(all: impl IntoIterator<Item = Result<Bytes, Error>>) -> mpsc::Receiver<Result<Bytes, Error>> {
    let (sender, receiver) = mpsc::channel(8);
    for piece in all {
        sender.try_send(piece).unwrap();
    }
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_travel_between_nodes_whole_or_not_at_all() {
    let one = TestNode::first().await;
    let two = TestNode::join("two", &one).await;
    let to = two.cluster.node_id();
    until("the nodes know each other", || one.host.nodes().len() == 2 && two.host.nodes().len() == 2).await;
    until("addresses are known", || one.cluster.status()[0].voters.len() == 2).await;

    let file: Vec<Result<Bytes, Error>> = [b"abc", b"def"].map(|piece| Ok(Bytes::from_static(piece))).into();
    assert_eq!(one.cluster.put_blob(to, [7; 32], 6, pieces(file)).await.unwrap(), 6);
    let (size, mut data) = one.cluster.get_blob(to, [7; 32]).await.unwrap();
    let mut read = Vec::new();
    while let Some(piece) = data.recv().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert_eq!((size, read.as_slice()), (6, b"abcdef".as_slice()));

    let short = one.cluster.put_blob(to, [8; 32], 6, pieces([Ok(Bytes::from_static(b"abc"))])).await.unwrap_err();
    assert_eq!(short.kind(), ErrorKind::Unavailable, "{short}");
    let broken = [Ok(Bytes::from_static(b"abc")), Err(Error::Corrupt("a bad chunk".into()))];
    let broken = one.cluster.put_blob(to, [9; 32], 6, pieces(broken)).await.unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::Corrupt);
    assert_eq!(one.cluster.get_blob(to, [9; 32]).await.unwrap_err().kind(), ErrorKind::NotFound);
    one.cluster.shutdown().await;
    two.cluster.shutdown().await;
}
