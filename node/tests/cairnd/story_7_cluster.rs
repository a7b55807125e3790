//! Story 7: an operator changes a cluster of five while it serves: leads move, a node drains, a node leaves for good and
//! its machine comes back as a new one. Whoever writes, promotes and reads meanwhile notices nothing but time.

use crate::support::models::{golden, golden_model, register};
use crate::support::rows::{at, batch, ints, times};
use crate::support::{Story, TestResult, features, into};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cairn_client::registry::{Expected, Promotion};
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Options, api, read};
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], features: [{name: trips, type: int64}]}
"#;

/// Enough that each of two shards holds some.
const KEYS: i64 = 16;
const MODEL: &str = "linear_regression";
/// The alias that is moved through a node that goes.
const CANARY: &str = "canary";

fn trips(count: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|_| at(count)))),
        ("trips", ints((0..KEYS).map(|_| count))),
    ])
}

/// The trips of every driver, of which none is older than another.
async fn read_trips(client: &Client) -> cairn_client::Result<Option<i64>> {
    let ask = cairn_client::command::GetOnlineFeatures { read: read::linearizable(), ..features(&["stats:trips"]) };
    let (answer, _) = client.online_features(ask).read(&batch(&[("driver_id", ints(0..KEYS))])).await?;
    let column = answer.column(1).as_primitive::<Int64Type>();
    assert!(column.iter().all(|trips| trips == column.iter().next().flatten()), "a batch half read: {column:?}");
    Ok(column.iter().next().flatten())
}

/// Clients that write, promote and read through the given nodes in turn until they are told to stop. Any error ends the
/// test: the library repeats only what is safe to repeat, so an error is an operation that failed.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<cairn_client::Result<(i64, Duration)>>,
}

impl Load {
    fn start(clients: Vec<Client>, from: i64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (told, counted) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let (mut count, mut longest) = (from, Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                count += 1;
                let round = count as usize;
                let [writer, promoter, reader] = [0, 1, 2].map(|step| &clients[(round + step) % clients.len()]);
                let began = Instant::now();
                let stored = writer.ingest_batch(into("stats"), trips(count)).await?;
                assert_eq!(stored.rows_updated, KEYS as u64);
                let version = 1 + count as u32 % 2;
                let (project, alias, expected) = (DEFAULT_PROJECT, "champion", Expected::Anything);
                let promotion =
                    Promotion { project, model: MODEL, alias, version, expected, author: "ops", reason: "" };
                promoter.promote(&promotion).await?;
                assert_eq!(read_trips(reader).await?, Some(count), "a read that missed an acknowledged write");
                longest = longest.max(began.elapsed());
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok((count, longest))
        });
        Self { stop, done, task }
    }

    /// Ends it; returns the last count that was written.
    async fn end(self, what: &str) -> TestResult<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let (count, longest) = self.task.await??;
        println!("{what}: {} rounds, the longest {longest:?}, no failure", self.done.load(Ordering::Relaxed));
        Ok(count)
    }
}

/// Asks until the answer will do. Each question goes over the wire to every node, so this does not spin.
pub async fn until(
    client: &Client,
    what: &str,
    holds: impl Fn(&api::StatusReply) -> bool,
) -> TestResult<api::StatusReply> {
    let started = Instant::now();
    loop {
        let status = client.cluster_status().await?;
        if holds(&status) {
            return Ok(status);
        }
        if started.elapsed() > Duration::from_secs(60) {
            return Err(format!("waited a minute until {what}: {status:?}").into());
        }
    }
}

fn id(status: &api::StatusReply, name: &str) -> u64 {
    status.nodes.iter().find(|node| node.name == name).map_or(0, |node| node.id)
}

/// Every group is led, has three voters and two learners, and all of them have caught up.
fn is_whole(status: &api::StatusReply, members: usize) -> bool {
    status.nodes.iter().all(|node| node.answered && node.trouble.is_empty())
        && status.groups.iter().all(|group| {
            let ready = group.replicas.iter().filter(|it| it.ready).count();
            group.leader != 0 && !group.changing && group.voters.len() == 3 && ready == members
        })
}

async fn clients_of(story: &Story, nodes: &[usize]) -> TestResult<Vec<Client>> {
    let clients = join_all(nodes.iter().map(|node| story.client_of(*node))).await;
    clients.into_iter().collect()
}

/// Moves an alias through one node until the node is gone: how many moves were done, and of how many nobody knows.
async fn moves_until_it_ends(client: Client) -> [usize; 2] {
    let (mut done, mut unknown) = (0, 0);
    for round in 0..u32::MAX {
        let (project, alias, expected) = (DEFAULT_PROJECT, CANARY, Expected::Anything);
        let promotion =
            Promotion { project, model: MODEL, alias, version: 1 + round % 2, expected, author: "ops", reason: "" };
        match client.promote(&promotion).await {
            Ok(_) => done += 1,
            Err(error) if error.outcome_unknown() => unknown += 1,
            Err(error) if error.to_string().contains("cannot connect") => break,
            Err(_) => {}
        }
    }
    [done, unknown]
}

async fn five_nodes() -> TestResult<Story> {
    let story = Story::nodes(5, &[]).await?;
    story.apply(DRIVERS).await?;
    golden_model(&story, MODEL, "X").await?;
    register(&story, MODEL, &golden("linear_regression.onnx"), "").await?;
    until(&story.client, "all five have caught up", |status| is_whole(status, 5)).await?;
    Ok(story)
}

#[tokio::test]
async fn leads_move_and_nodes_drain_under_load_and_nothing_fails() -> TestResult {
    let story = five_nodes().await?;
    let everyone = clients_of(&story, &[0, 1, 2, 3, 4]).await?;
    let load = Load::start(everyone.clone(), 0);
    let (mut moved, mut longest) = (0, Duration::ZERO);
    for round in 0..3 {
        for group in 0..3u32 {
            let asked = &everyone[(round + group as usize) % 5];
            let status = asked.cluster_status().await?;
            let state = &status.groups[group as usize];
            let to = state.voters.iter().copied().find(|id| *id != state.leader).ok_or("no other voter")?;
            let began = Instant::now();
            let reply = asked.transfer_leader(group, &to.to_string()).await?;
            longest = longest.max(began.elapsed());
            assert_eq!(reply.to, to);
            moved += usize::from(reply.from != to);
        }
    }
    println!("{moved} leads moved, the longest in {longest:?}");
    assert!(moved >= 6);

    // What cannot be is refused with its reason, and changes nothing.
    let status = story.client.cluster_status().await?;
    let learner = *status.groups[1].learners.first().ok_or("no learner")?;
    let refused = async |group, node: &str| match story.client.transfer_leader(group, node).await {
        Ok(done) => panic!("not refused: {done:?}"),
        Err(error) => (error.kind(), error.to_string()),
    };
    let (kind, message) = refused(1, &learner.to_string()).await;
    assert!(kind == ErrorKind::InvalidArgument && message.contains("is only a learner of group 1"), "{message}");
    let (kind, message) = refused(1, "n6").await;
    assert!(kind == ErrorKind::NotFound && message.contains("did you mean `n"), "{message}");
    let (kind, message) = refused(9, "n1").await;
    assert!(kind == ErrorKind::InvalidArgument && message.contains("no group 9; groups are 0 to 2"), "{message}");

    // A node that leads something drains, and gets it back only when told.
    let leader = status.groups[1].leader;
    let drained = story.client.drain_node(&leader.to_string(), false).await?;
    assert_eq!(drained.state, "draining");
    let leads = |status: &api::StatusReply| status.groups.iter().filter(|group| group.leader == leader).count();
    let after = |status: &api::StatusReply| leads(status) == 0 && is_whole(status, 5);
    until(&story.client, "the drained node leads nothing", after).await?;
    let (kind, message) = refused(1, &drained.name).await;
    assert!(kind == ErrorKind::Conflict && message.contains("is draining and takes no leads"), "{message}");
    let done = story.client.rebalance().await?;
    assert!(done.moves.iter().all(|it| it.to != leader), "{done:?}");
    assert_eq!(story.client.drain_node(&drained.name, true).await?.state, "active");
    story.client.transfer_leader(1, &drained.name).await?;
    let count = load.end("transfers and a drain").await?;
    for client in &everyone {
        assert_eq!(read_trips(client).await?, Some(count));
    }
    story.end().await
}

#[tokio::test]
async fn a_node_leaves_under_load_and_its_machine_comes_back_as_another() -> TestResult {
    let mut story = five_nodes().await?;
    let status = story.client.cluster_status().await?;
    // A voter of shard 1 other than the node everybody joins by.
    let first = id(&status, "n1");
    let leaving = *status.groups[1].voters.iter().find(|id| **id != first).ok_or("no other voter")?;
    let node = status.nodes.iter().find(|node| node.id == leaving).ok_or("no such node")?;
    let (name, at) = (node.name.clone(), node.name.trim_start_matches('n').parse::<usize>()? - 1);
    story.client.transfer_leader(1, &name).await?;
    let others: Vec<usize> = (0..5).filter(|other| *other != at).collect();
    let staying = clients_of(&story, &others).await?;

    let load = Load::start(staying.clone(), 0);
    let options = Options { deadline: Duration::from_secs(3), ..Options::default() };
    let leaving_client = Client::with_options(&story.cluster.nodes()[at].address, options).await?;
    let through_it = tokio::spawn(moves_until_it_ends(leaving_client));
    let begun = Instant::now();
    assert_eq!(story.client.remove_node(&name, false).await?.warnings, Vec::<String>::new());
    let out = |status: &api::StatusReply| {
        let mut groups = status.groups.iter();
        status.nodes.iter().all(|node| node.id != leaving)
            && groups.all(|group| !group.voters.contains(&leaving) && !group.learners.contains(&leaving))
            && is_whole(status, 4)
    };
    until(&staying[0], "the node is out and a learner votes in its place", out).await?;
    println!("out after {:?}", begun.elapsed());
    let why = story.cluster.ended(at).await?;
    assert!(why.contains("was removed from the cluster: move its data directory"), "{why}");
    let [done, unknown] = through_it.await?;
    let history = staying[0].alias_history(DEFAULT_PROJECT, MODEL).await?;
    let moved = history.iter().filter(|moved| moved.alias == CANARY).count();
    println!("through the leaving node: {done} moves done, {unknown} unknown, {moved} in the history");
    assert!((done..=done + unknown).contains(&moved), "{done} done, {unknown} unknown, and {moved} were made");
    story.cluster.spawn(at)?;
    let again = story.cluster.ended(at).await?;
    assert!(again.contains("was removed from the cluster: move its data directory"), "{again}");

    // With an empty directory the machine joins again, as a new node under its old name.
    std::fs::remove_dir_all(story.folder().join(&name))?;
    story.cluster.spawn(at)?;
    story.cluster.ready(at, 3).await?;
    let status = until(&staying[0], "five nodes have caught up", |status| is_whole(status, 5)).await?;
    assert!(id(&status, &name) > leaving, "an id came back");
    let error = staying[0].remove_node(&leaving.to_string(), false).await.unwrap_err();
    assert!(error.to_string().contains("was removed from this cluster"), "{error}");

    let done = staying[1].rebalance().await?;
    assert_eq!(done.unfinished, "");
    let count = load.end("a removal, a join and a rebalance").await?;
    for client in clients_of(&story, &[0, 1, 2, 3, 4]).await? {
        assert_eq!(read_trips(&client).await?, Some(count));
        // The artifacts came along too.
        let version = client.model(DEFAULT_PROJECT, MODEL).await?.versions[0].clone();
        let copy = story.folder().join("copy.onnx");
        client.download_file(&version.artifact_root, &copy, None).await?;
        assert_eq!(std::fs::metadata(&copy)?.len(), version.artifact_bytes);
    }
    story.end().await
}

#[tokio::test]
async fn a_removal_that_would_cost_a_quorum_is_refused() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    until(&story.client, "all three have caught up", |status| is_whole(status, 3)).await?;
    story.cluster.kill(2).await?;
    let noticed = |status: &api::StatusReply| {
        status.groups.iter().all(|group| group.leader != 0 && group.replicas.iter().filter(|it| it.ready).count() == 2)
    };
    until(&story.client, "the others notice", noticed).await?;
    let error = story.client.remove_node("n2", false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    for part in ["removing node `n2` would cost a quorum", "only `n1` is up and caught up", "`--force`"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // The dead one may go; then there is no other quorum to lose than that of two.
    story.client.remove_node("n3", false).await?;
    let out = |status: &api::StatusReply| {
        status.nodes.len() == 2 && status.groups.iter().all(|group| group.voters.len() == 2 && !group.changing)
    };
    until(&story.client, "the dead node is out", out).await?;
    story.cluster.spawn(2)?;
    let why = story.cluster.ended(2).await?;
    assert!(why.contains("was removed from the cluster"), "{why}");

    // Down to one, and no further.
    story.client.remove_node("n2", false).await?;
    let alone =
        |status: &api::StatusReply| status.nodes.len() == 1 && status.groups.iter().all(|it| it.voters.len() == 1);
    until(&story.client, "one node is left", alone).await?;
    story.cluster.ended(1).await?;
    for force in [false, true] {
        let error = story.client.remove_node("n1", force).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Conflict), "{error}");
        assert!(error.to_string().contains("last") || error.to_string().contains("no voter left"), "{error}");
    }
    let error = story.client.drain_node("n1", false).await.unwrap_err();
    assert!(error.to_string().contains("nobody could lead in its place"), "{error}");
    story.apply(DRIVERS).await?;
    story.end().await
}

#[tokio::test]
async fn a_forced_removal_says_what_it_costs_and_ends_when_the_others_are_back() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    until(&story.client, "all three have caught up", |status| is_whole(status, 3)).await?;
    story.client.ingest_batch(into("stats"), trips(1)).await?;
    let two = id(&story.client.cluster_status().await?, "n2");
    story.cluster.kill(2).await?;
    let noticed = |status: &api::StatusReply| {
        status.groups.iter().all(|group| group.leader != 0 && group.replicas.iter().filter(|it| it.ready).count() == 2)
    };
    until(&story.client, "the others notice", noticed).await?;
    let done = story.client.remove_node("n2", true).await?;
    assert_eq!(done.state, "being removed");
    assert!(done.warnings.iter().any(|warning| warning.contains("only `n1` is up and caught up")), "{done:?}");
    // Nothing is lost by it: with the third one back there is a majority, and the second one goes.
    story.cluster.spawn(2)?;
    story.cluster.ready(2, 2).await?;
    let out = |status: &api::StatusReply| {
        status.nodes.iter().all(|node| node.id != two)
            && status.groups.iter().all(|group| group.voters.len() == 2 && !group.changing && group.leader != 0)
    };
    until(&story.client, "the second node is out", out).await?;
    assert_eq!(read_trips(&story.client).await?, Some(1));
    story.client.ingest_batch(into("stats"), trips(2)).await?;
    assert_eq!(read_trips(&story.client_of(2).await?).await?, Some(2));
    story.cluster.ended(1).await?;
    story.end().await
}
