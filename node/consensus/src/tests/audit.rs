//! Replicas that are compared: one that went its own way takes itself out, and stays out until it is made new.

use super::*;

const OFTEN: Duration = Duration::from_millis(400);

async fn start(name: &'static str, how: Start) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = Options { audit_interval: Some(OFTEN), ..options(dir.path(), name, listener) };
    let (host, cluster) = start_with(options, how).await.unwrap();
    TestNode { name, dir, address, host, cluster }
}

fn count(node: &TestNode, how: &str) -> u64 {
    node.cluster.audits().into_iter().find(|(name, _)| *name == how).unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_differs_from_a_majority_condemns_itself() {
    let one = start("one", Start::Bootstrap { shards: SHARDS, replication_factor: 0 }).await;
    let through = || Start::Join { address: one.address.to_string() };
    let (two, three) = (start("two", through()).await, start("three", through()).await);
    let nodes = [&one, &two, &three];
    until("all groups have three voters everywhere", || {
        nodes.iter().all(|node| node.cluster.status().iter().all(|group| group.voters.len() == 3))
    })
    .await;
    one.write(1, "a").await;
    until("replicas were found equal", || nodes.iter().all(|node| count(node, "equal") >= 2)).await;
    assert!(nodes.iter().all(|node| count(node, "differing") + count(node, "split") == 0));

    two.linearizable_read(1).await;
    two.host.replica(1).spoil();
    let mut failure = two.cluster.failure();
    let found = tokio::time::timeout_at(soon(), failure.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    let found = found.unwrap();
    assert!(found.contains("replica of group 1 is damaged: its state after entry"), "{found}");
    assert!(found.contains("is not the one that `one`, `three` agree on"), "{found}");
    assert!(found.contains("--rebuild 1 --join"), "{found}");
    assert_eq!(count(&two, "differing"), 1);

    // The others are right and go on.
    one.write(1, "b").await;
    assert_eq!(three.linearizable_read(1).await.last().map(String::as_str), Some("b"));
    for node in nodes {
        assert_eq!(node.cluster.failure().borrow().is_some(), node.name == "two");
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_differ_neither_is_stopped() {
    let one = start("one", Start::Bootstrap { shards: SHARDS, replication_factor: 0 }).await;
    let two = start("two", Start::Join { address: one.address.to_string() }).await;
    let nodes = [&one, &two];
    until("all groups have two voters everywhere", || {
        nodes.iter().all(|node| node.cluster.status().iter().all(|group| group.voters.len() == 2))
    })
    .await;
    two.host.replica(2).spoil();
    until("both see that they differ", || nodes.iter().all(|node| count(node, "split") >= 1)).await;
    one.write(2, "a").await;
    for node in nodes {
        assert!(node.cluster.failure().borrow().is_none());
        node.cluster.shutdown().await;
    }
}
