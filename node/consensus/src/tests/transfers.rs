//! Snapshots on their way between nodes, and what breaks them.

use super::*;
use cairn_proto::peer::v1::{FetchSnapshotRequest, snapshot_frame::Part};

/// Slow enough that a transfer can be caught in the middle.
const BYTES_PER_SECOND: u64 = 3 << 20;

fn slow(dir: &Path, name: &str, listener: TcpListener) -> Options {
    let snapshots = SnapshotOptions { every_entries: 6, keep_entries: 0, bytes_per_second: BYTES_PER_SECOND };
    Options { snapshots, ..options(dir, name, listener) }
}

async fn start_slow(name: &'static str, how: Start) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (host, cluster) = start_with(slow(dir.path(), name, listener), how).await.unwrap();
    TestNode { name, dir, address, host, cluster }
}

async fn restart_slow(node: &mut TestNode) {
    let listener = TcpListener::bind(node.address).unwrap();
    let how = Start::Join { address: "127.0.0.1:1".into() };
    (node.host, node.cluster) = start_with(slow(node.dir.path(), node.name, listener), how).await.unwrap();
}

/// Two nodes that wrote much, and one that missed it and must get a snapshot. Also returns the last write's index.
async fn one_far_behind() -> ([TestNode; 3], u64) {
    let one = start_slow("one", Start::Bootstrap { shards: SHARDS, replication_factor: 0 }).await;
    let through = || Start::Join { address: one.address.to_string() };
    let (two, three) = (start_slow("two", through()).await, start_slow("three", through()).await);
    let nodes = [one, two, three];
    until("all groups have three voters everywhere", || {
        nodes.iter().all(|node| node.cluster.status().iter().all(|group| group.voters.len() == 3))
    })
    .await;
    nodes[2].cluster.shutdown().await;
    let mut last = 0;
    for at in 0..18u8 {
        let row = Bytes::from(vec![b'a' + at; 100 << 10]);
        last = nodes[0].cluster.propose(1, row, true, soon()).await.unwrap().index;
    }
    until("the log in front of the lagging node is purged", || {
        nodes[..2].iter().all(|node| node.cluster.status()[1].purged_index > 10)
    })
    .await;
    (nodes, last)
}

/// Bytes of the one table file that a checkpoint of the test's state machine has.
fn table_bytes(node: &TestNode) -> u64 {
    let newest = std::fs::read_dir(node.dir.path().join("snapshots/1")).unwrap();
    let newest = newest.map(|entry| entry.unwrap().path().join("data/state.sst")).find(|path| path.exists()).unwrap();
    newest.metadata().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_where_a_killed_receiver_left_it() {
    let (mut nodes, last) = one_far_behind().await;
    let total = table_bytes(&nodes[0]);
    assert!(total > 3 << 20, "{total}");
    restart_slow(&mut nodes[2]).await;
    until("some of it has come", || nodes[2].cluster.received_snapshots().sent > 1 << 20).await;
    nodes[2].cluster.shutdown().await;
    let before = nodes[2].cluster.received_snapshots().sent;
    assert!(before < total, "the whole came before the node could be stopped: {before} of {total}");

    restart_slow(&mut nodes[2]).await;
    nodes[2].cluster.wait_applied(1, last, soon()).await.unwrap();
    assert_eq!(nodes[2].read(1), nodes[0].read(1));
    let after = nodes[2].cluster.received_snapshots();
    assert!(after.kept >= before.min(1 << 20), "{before} bytes, then {after:?}");
    assert!(before + after.sent <= total + (1 << 20), "{before} of {total} bytes, then {after:?}");
    assert!(!nodes[2].dir.path().join("snapshots/1/incoming").exists());
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_with_the_next_leader() {
    let (mut nodes, last) = one_far_behind().await;
    restart_slow(&mut nodes[2]).await;
    until("some of it has come", || nodes[2].cluster.received_snapshots().sent > 2 << 20).await;
    let leader = nodes[0].cluster.leader(1).unwrap();
    let at = nodes.iter().position(|node| node.cluster.node_id() == leader).unwrap();
    nodes[at].cluster.shutdown().await;
    // The two that are left need each other for every write, so the one behind must come up to date.
    nodes[2].cluster.wait_applied(1, last, soon()).await.unwrap();
    let other = &nodes[1 - at];
    other.write(1, "after").await;
    assert_eq!(nodes[2].linearizable_read(1).await, other.read(1));
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_where_an_earlier_one_was_cut() {
    let (mut nodes, last) = one_far_behind().await;
    let ask = |have| FetchSnapshotRequest {
        cluster_id: nodes[2].cluster.cluster_id().to_owned(),
        from: nodes[2].cluster.node_id(),
        protocol: cairn_proto::PEER_PROTOCOL,
        group: 1,
        have,
    };
    let mut peer = link::connect(&nodes[0].address.to_string()).await.unwrap();
    let snapshots = nodes[2].dir.path().join("snapshots/1");
    let store = SnapshotStore::open(snapshots.clone()).unwrap();
    let mut frames = peer.fetch_snapshot(ask(store.have().unwrap())).await.unwrap().into_inner();
    let Some(Part::Header(header)) = frames.message().await.unwrap().unwrap().part else { panic!("no header") };
    let total: u64 = header.files.iter().map(|file| file.size).sum();
    let meta = crate::codec::decode_meta(header.meta).unwrap();
    let mut incoming = store.receive(&meta, header.files).unwrap();
    while store.received().sent < 1 << 20 {
        incoming.accept(frames.message().await.unwrap().unwrap()).unwrap();
    }
    drop((frames, incoming));
    let sent = store.received().sent;
    assert!(sent < total, "{sent} of {total}");

    // What the peer sends next is the rest.
    let mut frames = peer.fetch_snapshot(ask(store.have().unwrap())).await.unwrap().into_inner();
    let mut rest = 0;
    while let Some(frame) = frames.message().await.unwrap() {
        if let Some(Part::Data(data)) = frame.part {
            rest += data.len() as u64;
        }
    }
    assert_eq!(sent + rest, total);
    drop(store);

    let listener = TcpListener::bind(nodes[2].address).unwrap();
    let rebuild = Some(Rebuild { groups: vec![1], from: nodes[0].address.to_string() });
    let options = Options { rebuild, ..slow(nodes[2].dir.path(), nodes[2].name, listener) };
    let how = Start::Join { address: "127.0.0.1:1".into() };
    (nodes[2].host, nodes[2].cluster) = start_with(options, how).await.unwrap();
    nodes[2].cluster.wait_applied(1, last, soon()).await.unwrap();
    assert_eq!(nodes[2].read(1), nodes[0].read(1));
    // The leader may send one more by itself.
    until("nothing half received is left", || !snapshots.join("incoming").exists()).await;
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}
