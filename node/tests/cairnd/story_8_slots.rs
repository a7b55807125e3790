//! Story 8: an operator moves slots from one shard to another and back while clients write with producers, write again and
//! read at every level, and the node that drives the move is killed. Nobody loses a row, sees an old one or a part of
//! one, counts one twice, or is told of a failure.

use crate::support::rows::{at, batch, ints, times};
use crate::support::{Story, TestResult, features, into, once, stale};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cairn_client::command::{Level, Read};
use cairn_client::{Client, ErrorKind, Timestamp, api, read};
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
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

/// Drivers of one writer: enough that some are in every range that moves.
const KEYS: i64 = 64;
const WRITERS: i64 = 3;
/// Drivers that nobody writes again, so that a move has something to copy for a while.
const REST: std::ops::Range<i64> = 1_000_000..1_060_000;
const BOUND_MS: u64 = 500;

fn keys_of(writer: i64) -> std::ops::Range<i64> {
    writer * KEYS..(writer + 1) * KEYS
}

/// `count` trips for every driver of a writer, at that second.
fn trips(writer: i64, count: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(keys_of(writer))),
        ("event_timestamp", times(keys_of(writer).map(|_| at(count)))),
        ("trips", ints(keys_of(writer).map(|_| count))),
    ])
}

/// The trips of every driver of a writer, and the reply's token.
async fn read_trips(client: &Client, writer: i64, level: Read) -> cairn_client::Result<(Vec<i64>, String)> {
    let ask = cairn_client::command::GetOnlineFeatures { read: level, ..features(&["stats:trips"]) };
    let (answer, reply) = client.online_features(ask).read(&batch(&[("driver_id", ints(keys_of(writer)))])).await?;
    let column = answer.column(1).as_primitive::<Int64Type>();
    Ok((column.iter().map(|trips| trips.unwrap_or(-1)).collect(), reply.token))
}

/// One writer, which also reads what it wrote. Any error ends the test.
struct Writer {
    number: i64,
    clients: Vec<Client>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicI64>,
}

#[derive(Debug, Default)]
struct Told {
    count: i64,
    longest_write: Duration,
    longest_read: Duration,
}

impl Writer {
    async fn run(self) -> cairn_client::Result<Told> {
        let mut told = Told::default();
        let all = |rows: &[i64], count: i64| rows.iter().all(|trips| *trips == count);
        // Acknowledged counts and when: what a bounded read may not be behind.
        let mut acknowledged: Vec<(Instant, i64)> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            told.count += 1;
            let count = told.count;
            let client = |step: i64| &self.clients[((count + step) as usize) % self.clients.len()];
            let producer = format!("writer {}", self.number);
            let sequence = count as u64;
            let began = Instant::now();
            let ask = once("stats", &producer, sequence);
            let stored = client(0).ingest_batch(ask, trips(self.number, count)).await?;
            told.longest_write = told.longest_write.max(began.elapsed());
            assert_eq!(stored.rows_accepted + stored.rows_duplicate, KEYS as u64, "{stored:?}");
            acknowledged.push((Instant::now(), count));
            // The same again, by another node: of this batch, or of one from before the last moves.
            let again = if count % 7 == 0 { count / 2 + 1 } else { count };
            let ask = once("stats", &producer, again as u64);
            let repeated = client(1).ingest_batch(ask, trips(self.number, again)).await?;
            assert_eq!((repeated.rows_accepted, repeated.rows_duplicate), (0, KEYS as u64), "{again}: {repeated:?}");

            let began = Instant::now();
            for token in [&stored.token, &repeated.token] {
                let (rows, _) = read_trips(client(2), self.number, read::at_least(token)).await?;
                assert!(rows.iter().all(|trips| *trips <= count), "{rows:?}");
                assert!(token != &stored.token || all(&rows, count), "writer {} {count}: {rows:?}", self.number);
            }
            let (rows, token) = read_trips(client(1), self.number, read::linearizable()).await?;
            assert!(all(&rows, count), "a read that missed an acknowledged write, {count}: {rows:?}");
            let (rows, _) = read_trips(client(0), self.number, read::at_least(&token)).await?;
            assert!(all(&rows, count), "a read behind the one before it, {count}: {rows:?}");
            let asked = Instant::now();
            let bounded = Read { level: Level::Bounded, bounded_ms: BOUND_MS, ..Read::default() };
            let (rows, _) = read_trips(client(2), self.number, bounded).await?;
            let known = |(when, _): &&(Instant, i64)| asked.duration_since(*when) >= Duration::from_millis(BOUND_MS);
            let least = acknowledged.iter().rev().find(known).map_or(-1, |(_, count)| *count);
            assert!(rows.iter().all(|trips| (least..=count).contains(trips)), "staler than asked, {least}: {rows:?}");
            let (rows, _) = read_trips(client(1), self.number, stale()).await?;
            assert!(rows.iter().all(|trips| (-1..=count).contains(trips)), "{rows:?}");
            told.longest_read = told.longest_read.max(began.elapsed());
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(told)
    }
}

/// Writers, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicI64>,
    tasks: Vec<tokio::task::JoinHandle<cairn_client::Result<Told>>>,
}

impl Load {
    fn start(clients: &[Client]) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let writer = |number| {
            let (clients, stop, rounds) = (clients.to_vec(), stop.clone(), rounds.clone());
            tokio::spawn(Writer { number, clients, stop, rounds }.run())
        };
        let tasks = (0..WRITERS).map(writer).collect();
        Self { stop, rounds, tasks }
    }

    async fn end(self) -> TestResult<Vec<i64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for task in join_all(self.tasks).await {
            let told = task??;
            println!("{told:?}");
            counts.push(told.count);
        }
        println!("{} rounds of writing and reading, no failure", self.rounds.load(Ordering::Relaxed));
        Ok(counts)
    }
}

/// Asks until the answer will do; each question goes over the wire.
async fn until(
    client: &Client,
    what: &str,
    mut holds: impl FnMut(&api::StatusReply) -> bool,
) -> TestResult<api::StatusReply> {
    let started = Instant::now();
    loop {
        let status = client.status().await?;
        if holds(&status) {
            return Ok(status);
        }
        if started.elapsed() > Duration::from_secs(90) {
            return Err(format!("waited in vain until {what}: {status:?}").into());
        }
    }
}

/// The node that answers knows the move, and that it is over.
fn is_over(status: &api::StatusReply, it: &api::SlotMove) -> bool {
    let meta = status.groups.iter().find(|group| group.group == 0).map_or(0, |group| group.applied_index);
    meta >= it.id && status.slot_move.as_ref().is_none_or(|now| now.id != it.id)
}

async fn moved(client: &Client, first: u32, last: u32, to: u32) -> TestResult<api::StatusReply> {
    let began = Instant::now();
    let it = client.move_slots(first, last, to).await?;
    let status = until(client, "the move is over", |status| is_over(status, &it)).await?;
    println!("slots {first}-{last} to shard {to} in {:?}", began.elapsed());
    assert_eq!(shard_of(&status, first), to);
    assert_eq!(shard_of(&status, last), to);
    Ok(status)
}

fn shard_of(status: &api::StatusReply, slot: u32) -> u32 {
    status.slots.iter().find(|run| (run.first..=run.last).contains(&slot)).map_or(0, |run| run.shard)
}

fn runs(status: &api::StatusReply) -> Vec<(u32, u32, u32)> {
    status.slots.iter().map(|run| (run.first, run.last, run.shard)).collect()
}

async fn three_nodes() -> TestResult<(Story, Vec<Client>)> {
    let story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    let rest: Vec<i64> = REST.collect();
    for keys in rest.chunks(20_000) {
        let rows = batch(&[
            ("driver_id", ints(keys.iter().copied())),
            ("event_timestamp", times(keys.iter().map(|_| at(0)))),
            ("trips", ints(keys.iter().copied())),
        ]);
        story.store("stats", rows).await?;
    }
    // Each begins with another node, and knows all.
    let addresses: Vec<&str> = story.cluster.nodes().iter().map(|node| node.address.as_str()).collect();
    let rotated = (0..3).map(|first| [&addresses[first..], &addresses[..first]].concat().join(","));
    let clients: Vec<String> = rotated.collect();
    let clients = join_all(clients.iter().map(|addresses| Client::connect(addresses))).await;
    Ok((story, clients.into_iter().collect::<Result<_, _>>()?))
}

/// What nobody wrote again is where it was, whoever is asked.
async fn check_rest(clients: &[Client]) -> TestResult {
    let some: Vec<i64> = REST.step_by(13).collect();
    for client in clients {
        let (answer, _) = client
            .online_features(features(&["stats:trips"]))
            .read(&batch(&[("driver_id", ints(some.iter().copied()))]))
            .await?;
        assert_eq!(answer.column(1), &ints(some.iter().copied()));
    }
    Ok(())
}

fn print_sealed(story: &Story) -> TestResult {
    for node in story.cluster.nodes() {
        let log = std::fs::read_to_string(story.folder().join(format!("{}.log", node.name)))?;
        log.lines().filter(|line| line.contains("the slots have moved")).for_each(|line| println!("{line}"));
    }
    Ok(())
}

#[tokio::test]
async fn slots_move_there_and_back_under_load_and_nobody_notices() -> TestResult {
    let (mut story, clients) = three_nodes().await?;
    let load = Load::start(&clients);
    // The node that drives the first move is killed in the middle of it; another one goes on.
    let driver = story.cluster.leader(&clients[0], 0).await?;
    let other = &clients[(driver + 1) % 3];
    let it = other.move_slots(0, 1023, 2).await?;
    assert_eq!((it.from, it.to, it.epoch), (1, 2, 2));
    let mut steps: Vec<String> = Vec::new();
    until(other, "the copy has begun", |status| {
        let now = status.slot_move.as_ref().filter(|now| now.id == it.id);
        steps.extend(now.map(|now| now.step.clone()).filter(|step| !steps.contains(step)));
        is_over(status, &it) || now.is_some_and(|now| now.rows_copied > 0)
    })
    .await?;
    story.cluster.kill(driver).await?;
    let status = until(other, "another node has driven the move to its end", |status| is_over(status, &it)).await?;
    assert_eq!((status.slot_map_epoch, runs(&status)), (2, vec![(0, 1023, 2), (1024, 2047, 1), (2048, 4095, 2)]));
    story.cluster.spawn(driver)?;
    story.cluster.ready(driver, 3).await?;
    println!("steps seen: {steps:?}");

    // Back in two parts, so that shard 1 then has three segments; all of them to the other shard at once, and back.
    moved(&clients[1], 512, 1023, 1).await?;
    moved(&clients[2], 0, 511, 1).await?;
    let status = moved(&clients[0], 0, 2047, 2).await?;
    assert_eq!((status.slot_map_epoch, runs(&status)), (5, vec![(0, 4095, 2)]));
    let status = moved(&clients[1], 100, 2047, 1).await?;
    assert_eq!(runs(&status), [(0, 99, 2), (100, 2047, 1), (2048, 4095, 2)]);
    let counts = load.end().await?;
    print_sealed(&story)?;

    // Everything is there, on every node, also of the past; and after all of them were killed.
    check_rest(&clients).await?;
    for round in 0..2 {
        for (writer, count) in (0..).zip(&counts) {
            for client in &clients {
                let (rows, _) = read_trips(client, writer, read::linearizable()).await?;
                assert!(rows.iter().all(|trips| trips == count), "{count}: {rows:?}");
                for then in (1..*count).step_by((*count as usize / 5).max(1)) {
                    let mut ask = features(&["stats:trips"]);
                    ask.as_of = Some(Timestamp(at(then)));
                    let keys = batch(&[("driver_id", ints(keys_of(writer)))]);
                    let (answer, _) = client.online_features(ask).read(&keys).await?;
                    assert_eq!(answer.column(1), &ints(keys_of(writer).map(|_| then)), "as of {then}");
                }
            }
        }
        if round == 0 {
            story.restart_all().await?;
        }
    }
    story.end().await
}

#[tokio::test]
async fn a_move_is_given_up_and_nonsense_is_refused() -> TestResult {
    let (story, clients) = three_nodes().await?;
    let refused = async |first, last, to| match clients[0].move_slots(first, last, to).await {
        Ok(it) => panic!("not refused: {it:?}"),
        Err(error) => (error.kind(), error.to_string()),
    };
    for (first, last, to, kind, why) in [
        (7, 6, 2, ErrorKind::InvalidArgument, "7-6 is no range of slots: they go from 0 to 4095"),
        (0, 4096, 2, ErrorKind::InvalidArgument, "0-4096 is no range of slots"),
        (70_000, 70_001, 2, ErrorKind::InvalidArgument, "is no range of slots"),
        (0, 9, 3, ErrorKind::NotFound, "shard 3 not found; this cluster has shards 1 to 2"),
        (0, 9, 0, ErrorKind::NotFound, "shard 0 not found"),
        (0, 9, 1, ErrorKind::InvalidArgument, "slots 0-9 are in shard 1 already"),
        (2000, 2100, 2, ErrorKind::InvalidArgument, "2000-2047 in shard 1, 2048-2100 in shard 2"),
    ] {
        let (found, message) = refused(first, last, to).await;
        assert!(found == kind && message.contains(why), "{found:?} {message}");
    }
    let error = clients[0].cancel_slot_move().await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("no move of slots"), "{error}");

    let load = Load::start(&clients);
    let (mut given_up, mut epoch) = (0, 1);
    for attempt in 0..6 {
        let it = clients[attempt % 3].move_slots(0, 2047, 2).await?;
        let (_, busy) = refused(3000, 3001, 1).await;
        assert!(busy.contains("is under way, and there is one at a time"), "{busy}");
        // Later each time: before it began, while it copies, perhaps too late.
        until(&clients[0], "it is so far", |status| {
            let copied = status.slot_move.as_ref().map_or(u64::MAX, |now| now.rows_copied);
            copied >= attempt as u64 * 4_000 || is_over(status, &it)
        })
        .await?;
        let cancelled = clients[(attempt + 1) % 3].cancel_slot_move().await;
        let status = until(&clients[0], "the move is over", |status| is_over(status, &it)).await?;
        if status.slot_map_epoch == epoch {
            assert_eq!(cancelled?.id, it.id);
            assert_eq!(runs(&status), [(0, 2047, 1), (2048, 4095, 2)]);
            given_up += 1;
        } else {
            // Too late: it was completed all the same.
            assert_eq!(runs(&status), [(0, 4095, 2)]);
            epoch = moved(&clients[0], 0, 2047, 1).await?.slot_map_epoch;
        }
    }
    println!("{given_up} moves given up");
    assert!(given_up > 0);
    moved(&clients[0], 0, 2047, 2).await?;
    let counts = load.end().await?;
    print_sealed(&story)?;
    check_rest(&clients).await?;
    for (writer, count) in (0..).zip(&counts) {
        let (rows, _) = read_trips(&clients[0], writer, read::linearizable()).await?;
        assert!(rows.iter().all(|trips| trips == count), "{count}: {rows:?}");
    }
    // Whoever writes without a producer is held back and not failed, too.
    assert_eq!(story.client.ingest_batch(into("stats"), trips(0, 1_000_000)).await?.rows_updated, KEYS as u64);
    story.end().await
}
