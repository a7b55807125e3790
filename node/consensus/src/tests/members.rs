//! Stories of membership: leads that move, nodes that drain, leave and come back as somebody else.

use super::*;
use crate::{ClusterView, Move};
use cairn_proto::record::v1::{self as record, NodeState};
use prost::Message;

impl TestNode {
    fn id(&self) -> NodeId {
        self.cluster.node_id()
    }

    async fn change_state(&self, id: NodeId, state: NodeState) {
        let change = record::ChangeNodeState { id, state: state as i32, forced: false };
        let change = Some(record::meta_command::Change::ChangeNodeState(change));
        let command = record::MetaCommand { version: 1, change, ..record::MetaCommand::default() };
        self.cluster.propose(0, command.encode_to_vec().into(), false, soon()).await.unwrap();
    }

    fn voters(&self, group: GroupId) -> Vec<NodeId> {
        self.cluster.status()[group as usize].voters.clone()
    }
}

async fn nodes<const N: usize>(names: [&'static str; N], balance: BalanceOptions) -> Vec<TestNode> {
    let how = Start::Bootstrap { shards: SHARDS, replication_factor: 0 };
    let mut nodes = vec![TestNode::start_balanced(names[0], how, balance).await];
    for name in &names[1..] {
        let how = Start::Join { address: nodes[0].address.to_string() };
        nodes.push(TestNode::start_balanced(name, how, balance).await);
    }
    until("three vote in every group and the rest learn", || {
        nodes.iter().all(|node| {
            let learners = N.saturating_sub(3);
            node.cluster.status().iter().all(|it| it.voters.len() == N.min(3) && it.learners.len() == learners)
        })
    })
    .await;
    nodes
}

fn lead_count(view: &ClusterView, id: NodeId) -> usize {
    view.groups().iter().filter(|group| group.leader == Some(id)).count()
}

/// Writes to `group` until told to stop, through the nodes in turn; returns what was acknowledged.
fn writer(
    clusters: Vec<Arc<Cluster>>,
    group: GroupId,
) -> (Arc<std::sync::atomic::AtomicBool>, tokio::task::JoinHandle<Vec<String>>) {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = stop.clone();
    let task = tokio::spawn(async move {
        let mut written = Vec::new();
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            let text = format!("w{}", written.len());
            let cluster = &clusters[written.len() % clusters.len()];
            // Not idempotent: an unknown outcome would fail the test.
            let deadline = Instant::now() + Duration::from_secs(10);
            cluster.propose(group, Bytes::from(text.clone()), false, deadline).await.unwrap();
            cluster.linearizable(group, deadline).await.unwrap();
            written.push(text);
        }
        written
    });
    (stop, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leads_move_in_a_loop_and_no_write_or_read_fails() {
    let nodes = nodes(["one", "two", "three", "four"], STILL).await;
    let voters = nodes[0].voters(1);
    let learner = nodes.iter().find(|node| !voters.contains(&node.id())).unwrap();
    let clusters: Vec<_> = nodes.iter().map(|node| node.cluster.clone()).collect();
    let (stop, writing) = writer(clusters, 1);
    let mut waited = Duration::ZERO;
    for round in 0..12 {
        let to = voters[round % 3];
        let through = &nodes[round % 4];
        let began = Instant::now();
        while let Err(error) = through.cluster.transfer_lead(1, to, soon()).await {
            // A voter that is behind for a moment gets no lead, and nothing has changed.
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        waited = waited.max(began.elapsed());
        // The others may not all have heard of it yet.
        while through.cluster.view().await.groups()[1].leader != Some(to) {
            assert!(began.elapsed() < Duration::from_secs(60), "node {to} was given the lead, and does not lead");
        }
    }
    println!("longest transfer {waited:?}");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writing.await.unwrap();
    println!("{} writes and reads during 12 transfers", written.len());
    assert!(!written.is_empty());
    assert_eq!(nodes[3].linearizable_read(1).await, written);

    let refused = |to| nodes[3].cluster.transfer_lead(1, to, soon());
    let learns = refused(learner.id()).await.unwrap_err();
    assert_eq!(learns.kind(), ErrorKind::InvalidArgument);
    assert!(learns.to_string().contains("is only a learner of group 1"), "{learns}");
    assert_eq!(refused(99).await.unwrap_err().to_string(), "node 99 not found in this cluster");
    // Whoever leads already is told so by its own id.
    let leader = nodes[0].cluster.view().await.groups()[1].leader.unwrap();
    assert_eq!(refused(leader).await.unwrap(), leader);
    // A voter that is down is not given the lead.
    let down = nodes.iter().find(|node| voters.contains(&node.id()) && node.id() != leader).unwrap();
    down.cluster.shutdown().await;
    until("its silence is noticed", || {
        let leading = nodes.iter().find(|node| node.id() == leader).unwrap();
        leading.cluster.status()[1].followers.iter().any(|it| it.node == down.id() && !it.heard)
    })
    .await;
    let up = nodes.iter().find(|node| node.id() != down.id()).unwrap();
    let away = up.cluster.transfer_lead(1, down.id(), soon()).await.unwrap_err();
    assert!(away.to_string().contains("does not answer the leader of group 1"), "{away}");
    assert_eq!(away.kind(), ErrorKind::Unavailable);
    for node in nodes.iter().filter(|node| node.id() != down.id()) {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_leads_nothing_until_that_is_undone() {
    let nodes = nodes(["one", "two", "three"], STILL).await;
    for group in 0..=SHARDS {
        nodes[0].cluster.transfer_lead(group, nodes[0].id(), soon()).await.unwrap();
    }
    nodes[1].change_state(nodes[0].id(), NodeState::Draining).await;
    until("it leads nothing", || {
        nodes[0].cluster.status().iter().all(|group| !group.is_leader && group.leader.is_some())
    })
    .await;
    let view = nodes[2].cluster.view().await;
    let (two, three) = (lead_count(&view, nodes[1].id()), lead_count(&view, nodes[2].id()));
    assert_eq!((two + three, two.abs_diff(three)), (3, 1), "they share what it led");
    let refused = nodes[1].cluster.transfer_lead(1, nodes[0].id(), soon()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("node `one` is draining and takes no leads"), "{refused}");
    // It still votes, and still serves.
    assert!(nodes[0].voters(1).contains(&nodes[0].id()));
    nodes[0].write(1, "through the one that drains").await;
    nodes[2].change_state(nodes[0].id(), NodeState::Active).await;
    nodes[0].cluster.linearizable(0, soon()).await.unwrap();
    nodes[1].cluster.linearizable(0, soon()).await.unwrap();
    nodes[2].cluster.linearizable(0, soon()).await.unwrap();
    nodes[1].cluster.transfer_lead(1, nodes[0].id(), soon()).await.unwrap();
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_leaves_a_learner_takes_its_place_and_it_never_comes_back_as_itself() {
    let mut nodes = nodes(["one", "two", "three", "four"], STILL).await;
    let voters = nodes[0].voters(1);
    let at = nodes.iter().position(|node| node.id() == voters[2]).unwrap();
    let id = nodes[at].id();
    // The hardest case: it leads everything it votes in.
    for group in 0..=SHARDS {
        if nodes[0].voters(group).contains(&id) {
            nodes[0].cluster.transfer_lead(group, id, soon()).await.unwrap();
        }
    }
    let others: Vec<_> = nodes.iter().filter(|node| node.id() != id).map(|node| node.cluster.clone()).collect();
    let (stop, writing) = writer(others, 1);
    nodes[0].change_state(id, NodeState::Removing).await;
    let staying: Vec<usize> = (0..4).filter(|other| *other != at).collect();
    until("it is out of every group and of meta", || {
        staying.iter().all(|other| {
            let node = &nodes[*other];
            let out = node.cluster.status().iter().all(|it| it.voters.len() == 3 && !it.voters.contains(&id));
            out && node.host.nodes().iter().all(|known| known.id != id)
        })
    })
    .await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writing.await.unwrap();
    println!("{} writes and reads during a removal", written.len());
    let reader = &nodes[staying[2]];
    assert_eq!(reader.linearizable_read(1).await, written);

    // The node itself finds out and stops, now and whenever it is started again.
    let mut failure = nodes[at].cluster.failure();
    let found_out = tokio::time::timeout_at(soon(), failure.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    let reason = found_out.unwrap();
    let name = nodes[at].name;
    assert!(
        reason.starts_with(&format!("node `{name}` (id {id}) was removed from the cluster: move its data")),
        "{reason}"
    );
    nodes[at].cluster.shutdown().await;
    nodes[at].restart().await;
    let mut failure = nodes[at].cluster.failure();
    tokio::time::timeout_at(soon(), failure.wait_for(Option::is_some)).await.unwrap().unwrap();
    nodes[at].cluster.shutdown().await;
    // Whatever it asks of the others is refused and counted.
    let one = &nodes[staying[0]];
    let mut client = link::connect(&one.address.to_string()).await.unwrap();
    let envelope = Envelope {
        cluster_id: one.cluster.cluster_id().into(),
        from: id,
        to: one.id(),
        protocol: cairn_proto::PEER_PROTOCOL,
    };
    let request = ProposeRequest { envelope: Some(envelope), group: 1, command: Bytes::new(), deadline_ms: 1000 };
    let refusal = client.propose(request).await.unwrap_err();
    assert!(refusal.message().contains(&format!("node {id} was removed from this cluster")), "{}", refusal.message());

    // With an empty directory it is a new node, under the old name if it likes.
    let again = TestNode::join(name, one).await;
    assert!(again.id() > id);
    until("the new one learns", || again.cluster.status().iter().all(|it| it.learners == [again.id()])).await;
    assert_eq!(again.linearizable_read(1).await, written);
    again.cluster.shutdown().await;
    for other in staying {
        nodes[other].cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_voter_is_replaced() {
    let nodes = nodes(["one", "two", "three", "four"], STILL).await;
    let dead = nodes.iter().find(|node| nodes[0].voters(1).contains(&node.id()) && node.id() != nodes[0].id()).unwrap();
    dead.cluster.shutdown().await;
    nodes[0].change_state(dead.id(), NodeState::Removing).await;
    let staying: Vec<_> = nodes.iter().filter(|node| node.id() != dead.id()).collect();
    until("three others vote", || {
        let out = |node: &&TestNode| {
            let complete =
                node.cluster.status().iter().all(|it| it.voters.len() == 3 && !it.voters.contains(&dead.id()));
            complete && node.host.nodes().len() == 3
        };
        staying.iter().all(out)
    })
    .await;
    staying[0].write(1, "as before").await;
    for node in staying {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leads_spread_by_themselves_and_stay_then() {
    let quick = BalanceOptions { interval: Duration::from_millis(150), rest: Duration::from_millis(600) };
    let nodes = nodes(["one", "two", "three"], quick).await;
    let spread = || {
        let mut leaders: Vec<_> = nodes[0].cluster.status().iter().filter_map(|group| group.leader).collect();
        leaders.sort_unstable();
        leaders.dedup();
        leaders.len() == 3
    };
    until("each leads one of the three groups", spread).await;
    let leaders: Vec<_> = nodes[0].cluster.status().iter().map(|group| group.leader).collect();
    // Several looks later nothing has moved: twenty writes to each group take longer than two looks.
    let terms: Vec<u64> = nodes[0].cluster.status().iter().map(|group| group.term).collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        nodes[1].write(1, "x").await;
        nodes[2].write(2, "x").await;
    }
    let after = nodes[0].cluster.status();
    assert_eq!(after.iter().map(|group| group.leader).collect::<Vec<_>>(), leaders);
    assert_eq!(after.iter().map(|group| group.term).collect::<Vec<_>>(), terms);
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_moves_voters_and_leads_and_says_what() {
    let nodes = nodes(["one", "two", "three", "four", "five"], STILL).await;
    for group in 0..=SHARDS {
        let voters = nodes[0].voters(group);
        nodes[0].cluster.transfer_lead(group, voters[0], soon()).await.unwrap();
    }
    let clusters: Vec<_> = nodes.iter().map(|node| node.cluster.clone()).collect();
    let (stop, writing) = writer(clusters, 1);
    let done = nodes[3].cluster.rebalance(soon()).await.unwrap();
    println!("{done:?}");
    assert_eq!(done.unfinished, None);
    assert!(done.moves.iter().any(|planned| matches!(planned, Move::Voter { .. } | Move::Lead { .. })), "{done:?}");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writing.await.unwrap();
    assert_eq!(nodes[4].linearizable_read(1).await, written);
    let view = nodes[4].cluster.view().await;
    let seats: Vec<usize> = nodes
        .iter()
        .map(|node| view.groups().iter().filter(|group| group.voters.contains(&node.id())).count())
        .collect();
    assert_eq!(seats.iter().sum::<usize>(), 9);
    assert!(seats.iter().max().unwrap() - seats.iter().min().unwrap() <= 1, "{seats:?}");
    assert!(nodes.iter().all(|node| lead_count(&view, node.id()) <= 1));
    assert_eq!(nodes[1].cluster.rebalance(soon()).await.unwrap().moves, []);
    for node in &nodes {
        node.cluster.shutdown().await;
    }
}
