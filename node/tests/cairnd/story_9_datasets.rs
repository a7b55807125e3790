//! Story 9: a moment is pinned while many write to every node of a cluster. What it holds never changes again, whichever node
//! is asked and whoever died since.

use crate::support::rows::{at, batch, ints, times};
use crate::support::{Story, TestResult, into, training};
use arrow_array::RecordBatch;
use cairn_client::command::GetHistoricalFeatures;
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Timestamp, api};
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
    let spine = spine();
    let schema = spine.schema();
    let mut joined = client.historical_features(ask, schema, futures::stream::iter(vec![Ok(spine)])).await?;
    let mut parts = Vec::new();
    while let Some(part) = joined.next().await? {
        parts.push(part);
    }
    Ok(arrow_select::concat::concat_batches(joined.schema(), &parts).expect("parts of one schema"))
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
