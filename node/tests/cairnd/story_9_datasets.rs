//! Story 9: a moment is pinned while many write to every node of a cluster. What it holds never changes again, whichever node
//! is asked and whoever died since.

use crate::support::rows::{at, batch, ints, times};
use crate::support::{Story, TestResult, into, join, training};
use arrow_array::RecordBatch;
use bytes::Bytes;
use cairn_client::command::GetHistoricalFeatures;
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Timestamp, api};
use cairn_proto::PEER_PROTOCOL;
use cairn_proto::peer::v1::peer_client::PeerClient;
use cairn_proto::peer::v1::{Envelope, ProposeRequest};
use cairn_proto::record::v1::shard_command::Change;
use cairn_proto::record::v1::{Field, ShardCommand, UpsertRows};
use cairn_storage::block::BlockWriter;
use cairn_storage::keys::EntityKeys;
use cairn_storage::shard::DELETE_VERSION;
use cairn_storage::types::parse_type;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], features: [{name: trips, type: int64}]}
---
kind: FeatureService
name: eta
spec: {features: ["stats"]}
"#;

const KEYS: i64 = 200;
const WRITERS: usize = 3;

/// Every driver, at second 10 of the story.
fn spine() -> RecordBatch {
    batch(&[("driver_id", ints(0..KEYS)), ("event_timestamp", times((0..KEYS).map(|_| at(10))))])
}

/// Writes corrections of the same event over and over, through one node, until told to stop.
async fn write(client: Client, writer: usize, stop: Arc<AtomicBool>) -> cairn_client::Result<i64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let trips = count * 10 + writer as i64;
        let rows = batch(&[
            ("driver_id", ints(0..KEYS)),
            ("event_timestamp", times((0..KEYS).map(|_| at(5)))),
            ("trips", ints((0..KEYS).map(|_| trips))),
        ]);
        client.ingest_batch(into("stats"), rows).await?;
    }
    Ok(count)
}

async fn join_at(client: &Client, known_us: i64) -> cairn_client::Result<RecordBatch> {
    let ask = GetHistoricalFeatures { known_as_of: Some(Timestamp(known_us)), ..training(&["stats@1:trips"]) };
    Ok(join(client, &ask, &[spine()]).await?.0)
}

#[tokio::test]
async fn a_pinned_moment_stays_as_it_was() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for node in 0..WRITERS {
        clients.push(story.client_of(node).await?);
    }
    let writers: Vec<_> =
        (0..WRITERS).map(|at| tokio::spawn(write(clients[at].clone(), at, Arc::clone(&stop)))).collect();
    let mut pinned = Vec::new();
    for round in 0..12 {
        let ask = api::PinRequest {
            project: DEFAULT_PROJECT.into(),
            feature_service: "eta".into(),
            ..api::PinRequest::default()
        };
        let pin = clients[round % WRITERS].pin(ask).await?;
        assert_eq!(pin.feature_service_version, 1);
        // At once, and by another node than the one that pinned.
        let seen = join_at(&clients[(round + 1) % WRITERS], pin.known_us).await?;
        pinned.push((pin.known_us, seen));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await?? > 0);
    }
    story.cluster.kill(1).await?;
    story.cluster.spawn(1)?;
    story.cluster.ready(1, 3).await?;
    for (at, client) in clients.iter().enumerate() {
        for (known_us, seen) in &pinned {
            assert_eq!(&join_at(client, *known_us).await?, seen, "node {at}, pinned at {known_us}");
        }
    }
    assert!(pinned.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert_ne!(pinned[0].1, pinned[11].1, "nothing was written meanwhile");
    story.end().await
}

/// A node whose clock is behind, or that was held up between stamping a write and sending it on: it comes after the pin,
/// says it was made before, and must not show in what is pinned.
#[tokio::test]
async fn a_write_stamped_before_a_pin_and_come_after_it_is_not_in_it() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let row = batch(&[("driver_id", ints([7])), ("event_timestamp", times([at(5)])), ("trips", ints([70]))]);
    story.client.ingest_batch(into("stats"), row).await?;
    let ask = api::PinRequest { project: DEFAULT_PROJECT.into(), feature_service: "eta".into(), ..Default::default() };
    let known_us = story.client.pin(ask).await?.known_us;
    let pinned = join_at(&story.client, known_us).await?;

    let driver_id = Field { name: "driver_id".into(), r#type: Some(parse_type("int64")?), ..Field::default() };
    let keys = EntityKeys::encode(&[driver_id], &[ints([7])])?;
    let mut deletion = BlockWriter::new();
    deletion.push(keys.get(0).ok_or("no key")?, at(6), 0, b"");
    let rows = UpsertRows { storage_id: 1, rows: deletion.finish().into(), row_count: 1, ..UpsertRows::default() };
    let change = Some(Change::UpsertRows(rows));
    let command = ShardCommand { version: DELETE_VERSION, proposed_at_us: known_us - 1, change };
    let cluster_id = story.client.status().await?.cluster_id;
    let envelope = Some(Envelope { cluster_id, from: 2, to: 1, protocol: PEER_PROTOCOL });
    let address = &story.cluster.nodes()[0].peer_address;
    let mut peer = PeerClient::connect(format!("http://{address}")).await?;
    let command = Bytes::from(command.encode_to_vec());
    // The shard that does not have the driver refuses it.
    for group in [1, 2] {
        let command = Bytes::clone(&command);
        peer.propose(ProposeRequest { envelope: envelope.clone(), group, command, deadline_ms: 10_000 }).await?;
    }

    let now = join(&story.client, &training(&["stats@1:trips"]), &[spine()]).await?.0;
    assert_ne!(now, pinned, "the deletion came to nothing");
    assert_eq!(join_at(&story.client, known_us).await?, pinned);
    story.end().await
}

#[tokio::test]
async fn only_what_has_come_can_be_pinned() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let pin = |service: &str, features: &[&str], known_us| {
        let (feature_service, features) = (service.to_owned(), features.iter().map(|it| (*it).to_owned()).collect());
        story.client.pin(api::PinRequest { project: DEFAULT_PROJECT.into(), feature_service, features, known_us })
    };
    assert_eq!(pin("", &["stats"], None).await?.features, ["stats@1:trips"]);
    assert_eq!(pin("eta", &[], Some(5)).await?.known_us, 5);
    for (service, features, known_us, kind) in [
        ("eta", &[][..], Some(i64::MAX), ErrorKind::InvalidArgument),
        ("", &[], None, ErrorKind::InvalidArgument),
        ("eta", &["stats"], None, ErrorKind::InvalidArgument),
        ("et", &[], None, ErrorKind::NotFound),
        ("", &["stat:trips"], None, ErrorKind::NotFound),
    ] {
        let error = pin(service, features, known_us).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    story.end().await
}
