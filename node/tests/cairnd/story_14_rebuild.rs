//! Story 14: a training set is made, and a year of everything later it is made again: the same bytes, on every node that is
//! there and on one that was not. What would change it is refused, and what was changed is noticed.

use crate::support::rows::{batch, floats, ints, now_us, texts, times};
use crate::support::sql::{number, settled};
use crate::support::{Story, TestResult, into, join};
use arrow_array::RecordBatch;
use cairn_client::artifacts::hash_file;
use cairn_client::command::Ingest;
use cairn_client::datasets::join_of;
use cairn_client::files::{ReadOptions, TableReader, TableWriter};
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, api};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFINITIONS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: Entity
name: route
spec: {join_keys: [{name: start, type: string}, {name: stop, type: string}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], ttl: 3d, features: [{name: trips, type: int64}, {name: rating, type: float64}]}
---
kind: FeatureView
name: roads
spec: {entities: [route], features: [{name: minutes, type: float64}, {name: surface, type: string}]}
---
kind: OnDemandFeatureView
name: pace
spec:
  sources: [stats:trips, roads:minutes]
  features: [{name: load, type: float64, sql: "trips * minutes"}]
---
kind: FeatureService
name: eta
spec: {features: [stats, roads, pace]}
"#;
/// What of it is otherwise later: a ttl, where history is, an expression, the order of a service's features.
const LATER: [(&str, &str); 4] = [
    ("ttl: 3d", "ttl: 12h, hot_window: 10s"),
    ("entities: [route]", "entities: [route], hot_window: 10s"),
    ("\"trips * minutes\"}", "\"trips + minutes\"}"),
    ("[stats, roads, pace]", "[roads, stats, pace]"),
];
const DRIVERS: i64 = 300;
const ROUTES: i64 = 40;
const DAYS: i64 = 8;
const DAY_US: i64 = 86_400_000_000;
const BATCH_ROWS: usize = 700;
const PATIENCE: Duration = Duration::from_secs(60);

/// The moment of a day, the last of which is a minute ago.
fn on(day: i64, now: i64) -> i64 {
    now - 60_000_000 - (DAYS - 1 - day) * DAY_US
}

fn place(at: i64) -> String {
    format!("pläce {}", at % ROUTES)
}

/// Every driver's row of a day, `shift` after the others.
fn stats(day: i64, now: i64, shift: i64, more: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..DRIVERS)),
        ("event_timestamp", times((0..DRIVERS).map(|key| on(day, now) + shift - key))),
        ("trips", ints((0..DRIVERS).map(|key| key * 100 + day + more))),
        ("rating", floats((0..DRIVERS).map(|key| (key % 7 != 0).then_some((key + more) as f64 / 3.0)))),
    ])
}

fn roads(day: i64, now: i64, shift: i64, more: i64) -> RecordBatch {
    let names: Vec<String> = (0..ROUTES).map(place).collect();
    batch(&[
        ("start", texts(names.iter().map(String::as_str))),
        ("stop", texts(names.iter().rev().map(String::as_str))),
        ("event_timestamp", times((0..ROUTES).map(|key| on(day, now) + shift - key))),
        ("minutes", floats((0..ROUTES).map(|key| (key + day + more) as f64 / 7.0))),
        ("surface", texts((0..ROUTES).map(|key| (key % 3 != 0).then_some("gravel")))),
    ])
}

/// A row a driver and day, in no order of time, with drivers that nobody knows.
fn spine(now: i64) -> RecordBatch {
    let count = (DRIVERS + 20) * DAYS;
    let each = || (0..count).map(move |at| at * 7_919 % count);
    let names: Vec<(String, String)> = each().map(|at| (place(at), place(2 * ROUTES - 1 - at % ROUTES))).collect();
    batch(&[
        ("driver_id", ints(each().map(|at| at / DAYS))),
        ("start", texts(names.iter().map(|(start, _)| start.as_str()))),
        ("stop", texts(names.iter().map(|(_, stop)| stop.as_str()))),
        ("event_timestamp", times(each().map(|at| on(at % DAYS, now) + at * 1_000_003 % (DAY_US / 2)))),
        ("late", ints(each().map(|at| at % 2))),
    ])
}

/// The join of a dataset into a file, by the node of `client`.
async fn make(client: &Client, dataset: &api::Dataset, spine: &Path, out: &Path) -> TestResult {
    let options = ReadOptions { batch_rows: BATCH_ROWS, ..ReadOptions::default() };
    let parts = TableReader::open(spine, &options)?.collect::<cairn_client::Result<Vec<_>>>()?;
    let (rows, _) = join(client, &join_of(dataset), &parts).await?;
    let mut writer = TableWriter::create(out, &rows.schema())?;
    writer.write(&rows)?;
    Ok(writer.finish()?)
}

/// Pins, makes and registers a dataset; gives what is kept of it and its bytes.
async fn create(story: &Story, what: api::Dataset, spine: &Path) -> TestResult<(api::Dataset, Vec<u8>)> {
    let pin = api::PinRequest {
        project: DEFAULT_PROJECT.into(),
        feature_service: what.feature_service.clone(),
        features: what.features.clone(),
        known_us: Some(what.known_us).filter(|known| *known != 0),
    };
    let pinned = story.client.pin(pin).await?;
    let uploaded = story.client.upload_file(spine, None).await?;
    let dataset = api::Dataset {
        project: DEFAULT_PROJECT.into(),
        spine_root: uploaded.root,
        spine_file: "spine.parquet".into(),
        event_timestamp: "event_timestamp".into(),
        feature_service_version: pinned.feature_service_version,
        features: pinned.features,
        known_us: pinned.known_us,
        file_format: "parquet".into(),
        ..what
    };
    let out = story.folder().join(format!("{}.parquet", dataset.name));
    make(&story.client, &dataset, spine, &out).await?;
    let (content, _) = hash_file(&out)?;
    let rows = TableReader::open(&out, &ReadOptions::default())?.rows();
    let kept = story.client.register_dataset(api::Dataset { content, rows, ..dataset }).await?;
    Ok((kept, std::fs::read(out)?))
}

/// What a dataset is when the node of `client` makes it again, out of nothing but its name.
async fn rebuilt(client: &Client, name: &str, folder: &Path) -> TestResult<(api::Dataset, Vec<u8>)> {
    let dataset = client.dataset(DEFAULT_PROJECT, name).await?;
    let [spine, out] = ["again-spine.parquet", "again.parquet"].map(|name| folder.join(name));
    client.download_file(&dataset.spine_root, &spine, None).await?;
    make(client, &dataset, &spine, &out).await?;
    Ok((dataset, std::fs::read(out)?))
}

/// Datasets with the bytes that each had at first, made again by every one of `nodes`, each asked alone.
struct Kept {
    made: Vec<(api::Dataset, Vec<u8>)>,
    folder: PathBuf,
}

impl Kept {
    async fn check(&self, story: &Story, nodes: std::ops::Range<usize>, after: &str) -> TestResult {
        for node in nodes {
            let client = story.client_of(node).await?;
            for (dataset, bytes) in &self.made {
                let (found, again) = rebuilt(&client, &dataset.name, &self.folder).await?;
                assert_eq!(&found, dataset, "after {after}, on node {node}");
                assert!(again == *bytes, "`{}` has other bytes after {after}, on node {node}", dataset.name);
                let (content, _) = hash_file(&self.folder.join("again.parquet"))?;
                assert_eq!(content, dataset.content);
            }
        }
        Ok(())
    }
}

async fn moved(client: &Client, first: u32, last: u32, to: u32) -> TestResult {
    client.move_slots(first, last, to).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    while client.cluster_status().await?.slot_move.is_some() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "slots {first}-{last} are not in shard {to} after {PATIENCE:?}"
        );
        looks.tick().await;
    }
    Ok(())
}

fn write(path: &Path, rows: &RecordBatch) -> TestResult {
    let mut writer = TableWriter::create(path, &rows.schema())?;
    writer.write(rows)?;
    Ok(writer.finish()?)
}

#[tokio::test]
async fn a_dataset_is_the_same_bytes_after_everything_and_on_every_node() -> TestResult {
    // Few entries between two snapshots: logs are compacted, and the newcomer starts from a snapshot.
    let mut story = Story::nodes(3, &["--tiering-interval-s", "1", "--snapshot-entries", "20"]).await?;
    story.apply(DEFINITIONS).await?;
    let now = now_us();
    let mut rows = 0;
    let mut store = async |story: &Story, view: &str, it: RecordBatch| -> TestResult {
        rows += it.num_rows() as i64;
        story.store(view, it).await?;
        Ok(())
    };
    for day in 0..DAYS / 2 {
        store(&story, "stats", stats(day, now, 0, 0)).await?;
        store(&story, "roads", roads(day, now, 0, 0)).await?;
    }
    let half = now_us();
    for day in DAYS / 2..DAYS {
        store(&story, "stats", stats(day, now, 0, 0)).await?;
        store(&story, "roads", roads(day, now, 0, 0)).await?;
    }
    // Corrections that are there when the datasets are made: one of them lets them count.
    store(&story, "stats", stats(2, now, 0, 5_000)).await?;
    let path = story.folder().join("spine.parquet");
    write(&path, &spine(now))?;
    let service = api::Dataset { name: "service".into(), feature_service: "eta".into(), ..Default::default() };
    let features = ["stats:trips", "roads", "pace:load"].map(str::to_owned).to_vec();
    let listed = api::Dataset { name: "listed".into(), features, statuses: true, ..Default::default() };
    let earlier = api::Dataset {
        name: "earlier".into(),
        feature_service: "eta".into(),
        known_us: half,
        ignore_created: true,
        full_feature_names: true,
        ..Default::default()
    };
    let mut made = Vec::new();
    for what in [service, listed, earlier] {
        made.push(create(&story, what, &path).await?);
    }
    assert!(made[0].1 != made[2].1 && made[0].0.known_us > half && made[2].0.known_us == half);
    let kept = Kept { made, folder: story.folder().to_owned() };
    kept.check(&story, 0..3, "nothing").await?;

    // Rows between those there were, other values for the same moments, entities that are gone, and the present.
    for day in 0..DAYS {
        store(&story, "stats", stats(day, now, -3_600_000_000, 70_000)).await?;
        store(&story, "stats", stats(day, now, 0, 80_000)).await?;
        store(&story, "roads", roads(day, now, 7_200_000_000, 90_000)).await?;
    }
    let gone = batch(&[
        ("driver_id", ints(0..DRIVERS / 2)),
        ("event_timestamp", times((0..DRIVERS / 2).map(|key| on(key % DAYS, now) + 1))),
    ]);
    story.client.ingest_batch(Ingest { delete: true, ..into("stats") }, gone).await?;
    rows += DRIVERS / 2;
    kept.check(&story, 0..3, "late rows, corrections and deletions").await?;

    let later = LATER.iter().fold(DEFINITIONS.to_owned(), |yaml, (before, after)| {
        assert!(yaml.contains(before), "{before}");
        yaml.replace(before, after)
    });
    story.apply(&later).await?;
    for node in 0..3 {
        // All but the roads of the last day that are still to come.
        settled(&story.client_of(node).await?, rows - ROUTES).await?;
    }
    kept.check(&story, 0..3, "new versions of all definitions, and history in segments").await?;
    moved(&story.client, 0, 1_500, 2).await?;
    kept.check(&story, 0..3, "slots in another shard").await?;

    for node in 0..3 {
        story.cluster.kill(node).await?;
    }
    for node in 0..3 {
        story.cluster.spawn(node)?;
    }
    for node in 0..3 {
        story.cluster.ready(node, 3).await?;
    }
    kept.check(&story, 0..3, "a restart of all nodes").await?;
    story.cluster.add().await?;
    story.cluster.ready(3, 3).await?;
    kept.check(&story, 3..4, "a node joined").await?;
    let newcomer = story.client_of(3).await?;
    let content = &kept.made[2].0.content;
    let query = format!("select rows from system.datasets where dataset = 'earlier' and content = '{content}'");
    assert_eq!(number(&newcomer, &query).await?, (DRIVERS + 20) * DAYS);
    let query =
        "select count(*) from system.datasets d join system.lineage l on l.target = 'dataset:default/' || d.dataset";
    assert_eq!(number(&newcomer, query).await?, 2 + 4 + 2, "the spine of each, a service, three views, a service");
    // All of that is seen by whoever asks for what is known now.
    for (dataset, bytes) in &kept.made {
        let unpinned = api::Dataset { known_us: now_us(), ..dataset.clone() };
        let out = story.folder().join("now.parquet");
        make(&story.client, &unpinned, &path, &out).await?;
        assert!(std::fs::read(out)? != *bytes, "nothing changed under `{}`", dataset.name);
    }
    story.end().await
}

/// What a rebuild compares is what was made: had rows changed below it, another join, or a moment that was never fixed, its
/// bytes say so.
#[tokio::test]
async fn a_dataset_that_would_change_is_refused_or_noticed() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DEFINITIONS).await?;
    let now = now_us();
    story.store("stats", stats(3, now, 0, 0)).await?;
    story.store("roads", roads(3, now, 0, 0)).await?;
    let path = story.folder().join("spine.parquet");
    write(&path, &spine(now))?;
    let what = api::Dataset { name: "made".into(), feature_service: "eta".into(), ..Default::default() };
    let (made, bytes) = create(&story, what, &path).await?;

    // A moment that has not come: rows that come until then would be in it.
    let open = api::Dataset { name: "open".into(), known_us: now_us() + DAY_US, ..made.clone() };
    let refused = story.client.register_dataset(open).await.expect_err("it is not fixed");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.to_string().contains("a moment that has not come yet"), "{refused}");
    assert_eq!(story.client.dataset(DEFAULT_PROJECT, "open").await.expect_err("not kept").kind(), ErrorKind::NotFound);

    // Said to be of now, with the bytes of before: one row later is one row too many.
    story.store("stats", stats(3, now, 0, 1)).await?;
    let later = api::Dataset { name: "later".into(), known_us: now_us(), ..made.clone() };
    story.client.register_dataset(later).await?;
    let (later, again) = rebuilt(&story.client, "later", story.folder()).await?;
    let (content, _) = hash_file(&story.folder().join("again.parquet"))?;
    assert!(content != later.content && again != bytes);
    // Registering it fixed its moment, without a pin: what comes now changes nothing.
    story.store("stats", stats(3, now, 0, 2)).await?;
    assert!(rebuilt(&story.client, "later", story.folder()).await?.1 == again);
    assert!(rebuilt(&story.client, "made", story.folder()).await?.1 == bytes);
    story.end().await
}
