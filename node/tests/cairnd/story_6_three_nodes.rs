//! Story 6: an operator runs three nodes. Clients talk to any of them; nodes die, come back and join, and nobody loses
//! a row or reads a wrong one.

use crate::support::models::{golden_model, register};
use crate::support::rows::{at, batch, ints, now_us, times};
use crate::support::{Story, TestResult, features, files, into, once, stale};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cairn_client::command::{GetOnlineFeatures, Level, Predict, Read};
use cairn_client::registry::{Expected, Promotion, VersionOf};
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Options, Timestamp, api, read};
use futures::SinkExt;
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

/// `count` trips for every driver, at that second.
fn trips(count: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|_| at(count)))),
        ("trips", ints((0..KEYS).map(|_| count))),
    ])
}

/// The trips of every driver as one node reads them; all drivers have as many.
async fn read_trips(client: &Client, read: Read) -> cairn_client::Result<Option<i64>> {
    let ask = GetOnlineFeatures { read, ..features(&["stats:trips"]) };
    let (answer, _) = client.online_features(ask).read(&batch(&[("driver_id", ints(0..KEYS))])).await?;
    let column = answer.column(1).as_primitive::<Int64Type>();
    assert!(column.iter().all(|trips| trips == column.iter().next().flatten()), "a batch half read: {column:?}");
    Ok(column.iter().next().flatten())
}

/// Version 1 of a model for the first champion.
fn champion(model: &str) -> Promotion<'_> {
    let (project, alias) = (DEFAULT_PROJECT, "champion");
    Promotion { project, model, alias, version: 1, expected: Expected::None, author: "ops", reason: "" }
}

async fn every_node(story: &Story) -> TestResult<Vec<Client>> {
    let mut clients = Vec::new();
    for node in 0..story.cluster.nodes().len() {
        clients.push(story.client_of(node).await?);
    }
    Ok(clients)
}

/// Asks until the answer will do. Each question goes over the wire, so this does not spin.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> cairn_client::Result<Option<T>>) -> TestResult<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = ask().await? {
            return Ok(found);
        }
        if started.elapsed() > Duration::from_secs(30) {
            return Err(format!("waited half a minute until {what}").into());
        }
    }
}

#[tokio::test]
async fn every_node_takes_writes_and_every_node_reads_them() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    let clients = every_node(&story).await?;
    clients[1].apply(DEFAULT_PROJECT, files(DRIVERS)).await?;
    let mut session = String::new();
    for count in 0..30 {
        let (writer, reader) = (&clients[count % 3], &clients[(count / 3) % 3]);
        let count = count as i64;
        let stored = writer.ingest_batch(into("stats"), trips(count)).await?;
        assert_eq!((stored.rows_accepted, stored.rows_updated), (KEYS as u64, KEYS as u64));
        // Acknowledged before the read began: it is seen, whoever is asked.
        let level = match count % 3 {
            0 => read::linearizable(),
            1 => read::at_least(&stored.token),
            _ => Read { level: Level::Bounded, bounded_ms: 0, ..Read::default() },
        };
        assert_eq!(read_trips(reader, level).await?, Some(count));
        // The other levels may be behind, but they read what was there.
        for level in [stale(), Read::default()] {
            let seen = read_trips(reader, level).await?;
            assert!(seen.is_none_or(|seen| (0..=count).contains(&seen)), "{seen:?}");
        }
        session = stored.token;
    }
    // A token of an older write asks for no more than that, but never for less.
    for client in &clients {
        assert_eq!(read_trips(client, read::at_least(&session)).await?, Some(29));
    }
    let error = read_trips(&clients[0], Read { level: Level::Session, ..Read::default() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let error = read_trips(&clients[0], read::at_least("soon")).await.unwrap_err();
    assert!(error.to_string().contains("`soon` is not a token"), "{error}");

    // Models too: uploaded to one node, registered and promoted by others, run by all.
    story.client = clients[1].clone();
    golden_model(&story, "linear_regression", "X").await?;
    clients[2].promote(&champion("linear_regression")).await?;
    let mut answers = Vec::new();
    let champion = VersionOf::Alias("champion".into());
    for client in &clients {
        let version = client.model_version(DEFAULT_PROJECT, "linear_regression", &champion).await?;
        let copy = story.folder().join("copy.onnx");
        client.download_file(&version.artifact_root, &copy, None).await?;
        assert_eq!(std::fs::metadata(&copy)?.len(), version.artifact_bytes);
        let ask = Predict {
            deployment: Some("linear_regression".into()),
            read: read::linearizable(),
            ..read::predict(DEFAULT_PROJECT)
        };
        answers.push(client.predict(ask).read(&batch(&[("case_id", ints(0..100))])).await?.0);
    }
    assert!(answers.iter().all(|answer| answer == &answers[0]));
    story.end().await
}

/// What was applied or promoted over one node counts for the very next request to another.
#[tokio::test]
async fn definitions_and_aliases_hold_on_every_node_at_once() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    let clients = every_node(&story).await?;
    story.apply(DRIVERS).await?;
    for round in 0..24 {
        let [first, second, third] = [0, 1, 2].map(|step| &clients[(round + step) % 3]);
        let view = format!("view_{round}");
        let applied = first.apply(DEFAULT_PROJECT, files(&DRIVERS.replace("stats", &view))).await?;
        second.ingest_batch(into(&view), trips(1)).await?;
        let mut ask = features(&[&view]);
        if round % 2 == 0 {
            ask.read = read::at_least(&applied.token);
        }
        third.online_features(ask).read(&batch(&[("driver_id", ints(0..KEYS))])).await?;
    }
    story.client = clients[1].clone();
    golden_model(&story, "linear_regression", "X").await?;
    register(&story, "linear_regression", &crate::support::models::golden("linear_regression.onnx"), "").await?;
    for round in 0..24 {
        let [first, second, third] = [0, 1, 2].map(|step| &clients[(round + step) % 3]);
        let version = 1 + round as u32 % 2;
        let promotion = Promotion { version, expected: Expected::Anything, ..champion("linear_regression") };
        let moved = first.promote(&promotion).await?;
        for (client, read) in [(second, read::linearizable()), (third, read::at_least(&moved.token))] {
            let (model, alias) = (Some("linear_regression".into()), Some("champion".into()));
            let ask = Predict { model, alias, read, ..read::predict(DEFAULT_PROJECT) };
            let (_, read) = client.predict(ask).read(&batch(&[("case_id", ints([1]))])).await?;
            assert_eq!(read.model.map(|it| it.version), Some(version));
        }
    }
    story.end().await
}

#[tokio::test]
async fn the_leader_dies_and_writes_go_on() -> TestResult {
    const BATCHES: i64 = 40;
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    let leader = story.cluster.leader(&story.client, 0).await?;
    let survivors: Vec<usize> = (0..3).filter(|node| *node != leader).collect();

    // Half of the batches before, half after; to the client it looks like one slow answer.
    let everywhere = Client::connect(&story.cluster.addresses()).await?;
    let (mut batches, source) = futures::channel::mpsc::channel(1);
    let mut answers = everywhere.ingest(once("stats", "etl", 1), source);
    let mut taken = 0;
    for count in 0..BATCHES {
        if count == BATCHES / 2 {
            story.cluster.kill(leader).await?;
        }
        batches.send(Ok(trips(count))).await?;
        let answer = answers.next().await?.ok_or("an answer")?;
        assert_eq!(answer.rows_rejected, 0);
        taken += answer.rows_accepted + answer.rows_duplicate;
    }
    assert_eq!(taken, (BATCHES * KEYS) as u64);
    drop(batches);
    assert!(answers.next().await?.is_none());

    // The others read it all and take definitions.
    let rest = story.client_of(survivors[1]).await?;
    assert_eq!(read_trips(&rest, read::linearizable()).await?, Some(BATCHES - 1));
    let other = DRIVERS.replace("name: stats", "name: others");
    let applied = rest.apply(DEFAULT_PROJECT, files(&other)).await?;
    assert_eq!(applied.changes.iter().filter(|change| change.action == "create").count(), 1);

    // The dead one comes back to what it missed.
    story.cluster.spawn(leader)?;
    story.cluster.ready(leader, 3).await?;
    let back = story.client_of(leader).await?;
    assert_eq!(read_trips(&back, read::linearizable()).await?, Some(BATCHES - 1));
    assert!(back.definitions(DEFAULT_PROJECT).await?.iter().any(|row| row.name == "others"));
    // And holds all history: the value of every batch at its own moment.
    for count in (0..BATCHES).step_by(7) {
        let mut ask = features(&["stats:trips"]);
        ask.as_of = Some(Timestamp(at(count)));
        let (answer, _) = back.online_features(ask).read(&batch(&[("driver_id", ints([3]))])).await?;
        assert_eq!(answer.column(1), &ints([count]));
    }
    story.end().await
}

#[tokio::test]
async fn without_a_quorum_nothing_is_acknowledged_and_stale_reads_go_on() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    let token = story.store("stats", trips(1)).await?;
    let clients = every_node(&story).await?;
    for client in &clients {
        assert_eq!(read_trips(client, read::at_least(&token)).await?, Some(1));
    }
    story.cluster.kill(1).await?;
    story.cluster.kill(2).await?;
    assert_eq!(read_trips(&clients[0], stale()).await?, Some(1));
    assert_eq!(read_trips(&clients[0], read::at_least(&token)).await?, Some(1));
    let impatient = Options { deadline: Duration::from_millis(400), ..Options::default() };
    let alone = Client::with_options(&story.cluster.nodes()[0].address, impatient).await?;
    for answer in [
        read_trips(&alone, read::linearizable()).await.map(drop),
        alone.ingest_batch(once("stats", "etl", 1), trips(2)).await.map(drop),
        alone.apply(DEFAULT_PROJECT, files(&DRIVERS.replace("stats", "others"))).await.map(drop),
    ] {
        let error = answer.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error:?}");
    }
    // With one more node it goes on; the write of unknown outcome is sent again, and counts once.
    story.cluster.spawn(1)?;
    story.cluster.ready(1, 3).await?;
    let stored = story.client.ingest_batch(once("stats", "etl", 1), trips(2)).await?;
    assert_eq!(stored.rows_accepted + stored.rows_duplicate, KEYS as u64);
    assert_eq!(read_trips(&clients[1], read::linearizable()).await?, Some(2));
    story.end().await
}

fn group(status: &api::StatusReply, group: u32) -> &api::GroupStatus {
    status.groups.iter().find(|it| it.group == group).expect("every node has every group")
}

#[tokio::test]
async fn a_fourth_node_learns_and_serves() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", trips(1)).await?;
    story.cluster.add().await?;
    let fourth = story.client_of(3).await?;
    assert_eq!(read_trips(&fourth, read::linearizable()).await?, Some(1));
    let stored = fourth.ingest_batch(into("stats"), trips(2)).await?;
    assert_eq!(read_trips(&story.client, read::at_least(&stored.token)).await?, Some(2));
    assert_eq!(read_trips(&fourth, read::at_least(&stored.token)).await?, Some(2));
    let status = until("the fourth node is a learner of every group", async || {
        let status = fourth.status().await?;
        let learns = |it: &api::GroupStatus| it.voters.len() == 3 && it.learners == [status.node_id];
        Ok((status.nodes.len() == 4 && status.groups.iter().all(learns)).then(|| status.clone()))
    })
    .await?;
    assert_eq!(status.groups.len(), 3);
    assert_eq!(
        status.nodes.iter().filter(|node| node.self_).map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["n4"]
    );
    story.end().await
}

#[tokio::test]
async fn a_node_that_was_away_too_long_for_the_log_gets_a_snapshot() -> TestResult {
    const AWAY: usize = 2;
    let mut story = Story::nodes(3, &["--snapshot-entries", "40"]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", trips(0)).await?;
    let known = story.client_of(AWAY).await?.status().await?;
    story.cluster.kill(AWAY).await?;

    // Until no other node has the log that it would need, of any group.
    let mut count = 0;
    let clients = [story.client_of(0).await?, story.client_of(1).await?];
    until("the log in front of the dead node is dropped", async || {
        for _ in 0..10 {
            count += 1;
            let (first, second) =
                (once("stats", "etl", count), files(&DRIVERS.replace("stats", &format!("view_{count}"))));
            story.client.ingest_batch(first, trips(count as i64)).await?;
            story.client.apply(DEFAULT_PROJECT, second).await?;
        }
        let mut dropped = true;
        for client in &clients {
            let status = client.status().await?;
            dropped &= status.groups.iter().all(|it| it.purged_index > group(&known, it.group).last_log_index);
        }
        Ok(dropped.then_some(()))
    })
    .await?;

    story.cluster.spawn(AWAY)?;
    story.cluster.ready(AWAY, 3).await?;
    let back = story.client_of(AWAY).await?;
    let views = back.definitions(DEFAULT_PROJECT).await?.iter().filter(|row| row.kind == "FeatureView").count();
    assert_eq!(views as u64, count + 1);
    assert_eq!(read_trips(&back, read::linearizable()).await?, Some(count as i64));
    let status = back.status().await?;
    for it in &status.groups {
        assert!(it.snapshot_index > group(&known, it.group).last_log_index, "group {}: {status:?}", it.group);
    }
    // What producers had sent is part of a snapshot.
    let again = back.ingest_batch(once("stats", "etl", count), trips(count as i64)).await?;
    assert_eq!((again.rows_accepted, again.rows_duplicate), (0, KEYS as u64));
    story.end().await
}

#[tokio::test]
async fn a_node_killed_at_any_moment_comes_back_with_everything_it_acknowledged() -> TestResult {
    let mut story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    golden_model(&story, "linear_regression", "X").await?;
    story.client.ingest_batch(once("stats", "etl", 1), trips(1)).await?;
    let known = now_us();
    let stored = story.client.ingest_batch(once("stats", "etl", 2), trips(2)).await?;
    let artifact = story.client.model(DEFAULT_PROJECT, "linear_regression").await?.versions[0].artifact_root.clone();
    let predicted = async |story: &Story| {
        let ask = Predict {
            deployment: Some("linear_regression".into()),
            read: read::linearizable(),
            ..read::predict(DEFAULT_PROJECT)
        };
        story.client.predict(ask).read(&batch(&[("case_id", ints(0..100))])).await.map(|(answer, _)| answer)
    };
    let listed = async |story: &Story| {
        let definitions = story.client.definitions(DEFAULT_PROJECT).await?;
        Ok::<_, cairn_client::Error>((definitions, story.client.models(DEFAULT_PROJECT).await?))
    };
    let (before, answer) = (listed(&story).await?, predicted(&story).await?);

    for _ in 0..2 {
        story.cluster.kill(0).await?;
        story.cluster.spawn(0)?;
        story.cluster.ready(0, 1).await?;
        assert_eq!(read_trips(&story.client, read::linearizable()).await?, Some(2));
        assert_eq!(read_trips(&story.client, read::at_least(&stored.token)).await?, Some(2));
        let mut ask = features(&["stats:trips"]);
        ask.known_as_of = Some(Timestamp(known));
        let (answer_then, _) = story.client.online_features(ask).read(&batch(&[("driver_id", ints([3]))])).await?;
        assert_eq!(answer_then.column(1), &ints([1]), "what was known then");
        assert_eq!(listed(&story).await?, before);
        assert_eq!(predicted(&story).await?, answer);
        let copy = story.folder().join("copy.onnx");
        story.client.download_file(&artifact, &copy, None).await?;
        let again = story.client.ingest_batch(once("stats", "etl", 2), trips(2)).await?;
        assert_eq!((again.rows_accepted, again.rows_duplicate, &again.token), (0, KEYS as u64, &stored.token));
    }
    // And writes go on behind what was there.
    register(&story, "linear_regression", &crate::support::models::golden("linear_regression.onnx"), "").await?;
    assert_eq!(story.client.model(DEFAULT_PROJECT, "linear_regression").await?.versions.len(), 2);
    story.end().await
}

#[tokio::test]
async fn three_nodes_killed_at_once_come_back_with_everything_they_acknowledged() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    for count in 1..=10 {
        story.store("stats", trips(count)).await?;
    }
    for node in 0..3 {
        story.cluster.kill(node).await?;
    }
    for node in [2, 0, 1] {
        story.cluster.spawn(node)?;
    }
    for node in 0..3 {
        story.cluster.ready(node, 3).await?;
        assert_eq!(read_trips(&story.client_of(node).await?, read::linearizable()).await?, Some(10));
    }
    story.store("stats", trips(11)).await?;
    story.end().await
}
