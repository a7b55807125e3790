//! Story 12: a data scientist fills a feature view from files over a past interval. Whoever drives the job may die, the files may
//! go away, change or be wrong: every row is there once in the end, nobody reads half of it, and what is wrong is said.

use crate::support::rows::{SECOND, at, batch, floats, ints, only, show, times};
use crate::support::sql::number;
use crate::support::{Story, TestResult, features, files, join, service, training};
use arrow_array::RecordBatch;
use cairn_client::files::TableWriter;
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Timestamp, api};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DRIVERS: i64 = 500;
/// Rows of one driver: one every minute.
const MINUTES: i64 = 300;
const MINUTE: i64 = 60 * SECOND;

/// What a row says of its driver and minute.
fn trips(driver: i64, minute: i64) -> i64 {
    driver * 1_000 + minute
}

/// All drivers over some minutes, in the order in which files come about: by time.
fn rows(minutes: std::ops::Range<i64>, more: i64) -> RecordBatch {
    let all = || minutes.clone().flat_map(|minute| (0..DRIVERS).map(move |driver| (driver, minute)));
    batch(&[
        ("driver_id", ints(all().map(|(driver, _)| driver))),
        ("event_timestamp", times(all().map(|(_, minute)| at(minute * 60)))),
        ("trips", ints(all().map(|(driver, minute)| trips(driver, minute) + more))),
        ("score", floats(all().map(|(driver, _)| driver as f64 / 2.0))),
    ])
}

fn write(path: &Path, rows: &RecordBatch) -> TestResult {
    let mut writer = TableWriter::create(path, &rows.schema())?;
    writer.write(rows)?;
    Ok(writer.finish()?)
}

/// Definitions of view `stats`, filled by `source`, and a service.
fn definitions(source: &str, features: &str) -> String {
    format!(
        "kind: Entity\nname: driver\nspec: {{join_keys: [{{name: driver_id, type: int64}}]}}\n---\nkind: FeatureView\nname: stats\n\
         spec:\n  entities: [driver]\n  features: [{features}]\n  source: {source}\n---\nkind: FeatureService\nname: eta\n\
         spec: {{features: [stats]}}\n"
    )
}

const TRIPS: &str = "{name: trips, type: int64}";

/// A backfill of the first `minutes`, in chunks of so many.
fn ask(minutes: i64, chunk: i64) -> api::BeginBackfillRequest {
    api::BeginBackfillRequest {
        project: DEFAULT_PROJECT.into(),
        view: "stats".into(),
        from_us: at(0),
        to_us: at(minutes * 60),
        chunk_us: chunk * MINUTE,
        ..Default::default()
    }
}

/// Asks until the job will do; each question goes over the wire.
async fn until(client: &Client, id: u64, what: &str, holds: impl Fn(&api::Job) -> bool) -> TestResult<api::Job> {
    let started = Instant::now();
    loop {
        let job = client.job(id).await?;
        if holds(&job) {
            return Ok(job);
        }
        if job.ended_us != 0 || started.elapsed() > Duration::from_secs(120) {
            return Err(format!("waited in vain until {what}: {job:?}").into());
        }
    }
}

async fn in_state(client: &Client, id: u64, state: &str) -> TestResult<api::Job> {
    until(client, id, state, |job| job.state == state).await
}

fn folder(story: &Story) -> TestResult<PathBuf> {
    let folder = story.folder().join("source");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[tokio::test]
async fn a_backfill_outlives_its_drivers_and_stores_every_row_once() -> TestResult {
    let mut story = Story::nodes(3, &[]).await?;
    let folder = folder(&story)?;
    for (at, first) in (0..MINUTES).step_by(100).enumerate() {
        write(&folder.join(format!("part-{at}.parquet")), &rows(first..first + 100, 0))?;
    }
    story.apply(&definitions(&format!("{{path: '{}'}}", folder.display()), TRIPS)).await?;
    let begun = story.client.begin_backfill(ask(MINUTES, 3)).await?;
    assert_eq!((begun.chunks, begun.view.as_str()), (100, "stats@1"));
    let started = Instant::now();
    let mut asked = 0;
    for chunks in [5, 25, 50] {
        let job =
            until(&story.client_of(asked).await?, begun.id, "some chunks are done", |it| it.chunks_done >= chunks)
                .await?;
        assert!(job.ended_us == 0, "too fast to be killed: {job:?}");
        let driver = story.cluster.leader(&story.client_of(asked).await?, 0).await?;
        story.cluster.kill(driver).await?;
        asked = (driver + 1) % 3;
        // Nobody sees what is there so far, by whichever way.
        let client = story.client_of(asked).await?;
        let refused =
            client.online_features(service("eta")).read(&batch(&[("driver_id", ints([1]))])).await.unwrap_err();
        assert!(refused.to_string().contains("no version that is filled yet"), "{refused}");
        story.cluster.spawn(driver)?;
        story.cluster.ready(driver, 3).await?;
    }
    let done = in_state(&story.client_of(asked).await?, begun.id, "done").await?;
    println!("{} rows in {:?}, three drivers killed", done.rows, started.elapsed());
    assert_eq!((done.rows, done.chunks_done), ((DRIVERS * MINUTES) as u64, 100));
    for node in 0..3 {
        let client = story.client_of(node).await?;
        let count = |what: &str| format!("select {what} from history('stats')");
        assert_eq!(number(&client, &count("count(*)")).await?, DRIVERS * MINUTES, "node {node}");
        let distinct = "count(*) from (select distinct driver_id, event_timestamp";
        assert_eq!(number(&client, &(count(distinct) + ")")).await?, DRIVERS * MINUTES);
        let sum: i64 = (0..DRIVERS).flat_map(|it| (0..MINUTES).map(move |at| trips(it, at))).sum();
        assert_eq!(number(&client, &count("sum(trips)")).await?, sum);
        let keys = batch(&[("driver_id", ints([0, 7, DRIVERS - 1]))]);
        let (online, _) = client.online_features(service("eta")).read(&keys).await?;
        let last = [0, 7, DRIVERS - 1].map(|driver| trips(driver, MINUTES - 1));
        assert_eq!(online.column_by_name("trips").ok_or("no trips")?, &ints(last));
        let spine = batch(&[("driver_id", ints([7, 8])), ("event_timestamp", times([at(119), at(6_000)]))]);
        let (joined, _) = join(&client, &training(&["stats:trips"]), &[spine]).await?;
        assert_eq!(joined.column_by_name("trips").ok_or("no trips")?, &ints([trips(7, 1), trips(8, 100)]));
    }
    story.end().await
}

/// Chunks of many rows become segments; whoever writes them is killed while they do.
#[tokio::test]
async fn many_rows_are_loaded_once_whoever_dies() -> TestResult {
    const LONG: i64 = 900;
    let mut story = Story::nodes(3, &[]).await?;
    let folder = folder(&story)?;
    for (at, first) in (0..LONG).step_by(300).enumerate() {
        // The first row of a key and time is in there twice, with less.
        write(&folder.join(format!("part-{at}.parquet")), &rows(first..first + 300, 0))?;
    }
    write(&folder.join("again.parquet"), &rows(0..1, -1))?;
    story.apply(&definitions(&format!("{{path: '{}'}}", folder.display()), TRIPS)).await?;
    let begun = story.client.begin_backfill(ask(LONG, 300)).await?;
    let loaded = "select coalesce(sum(rows), 0) from system.segments";
    let mut asked = 0;
    for rows in [1, 200_000] {
        let client = story.client_of(asked).await?;
        while number(&client, loaded).await? < rows {
            assert_eq!(client.job(begun.id).await?.state, "running", "too fast to be killed");
        }
        let driver = story.cluster.leader(&client, 0).await?;
        story.cluster.kill(driver).await?;
        asked = (driver + 1) % 3;
        story.cluster.spawn(driver)?;
        story.cluster.ready(driver, 3).await?;
    }
    let done = in_state(&story.client_of(asked).await?, begun.id, "done").await?;
    assert_eq!((done.rows, done.chunks_done), ((DRIVERS * LONG) as u64, 3));
    let sum: i64 = (0..DRIVERS).flat_map(|it| (0..LONG).map(move |at| trips(it, at))).sum();
    let check = async |client: &Client| -> TestResult {
        assert_eq!(number(client, loaded).await?, DRIVERS * LONG);
        assert_eq!(number(client, "select count(*) from history('stats')").await?, DRIVERS * LONG);
        assert_eq!(number(client, "select sum(trips) from history('stats')").await?, sum);
        let newest = (0..DRIVERS).map(|driver| trips(driver, LONG - 1)).sum::<i64>();
        assert_eq!(number(client, "select sum(trips) from stats").await?, newest);
        let keys = batch(&[("driver_id", ints([0, 7, DRIVERS - 1]))]);
        let (online, _) = client.online_features(service("eta")).read(&keys).await?;
        let last = [0, 7, DRIVERS - 1].map(|driver| trips(driver, LONG - 1));
        assert_eq!(online.column_by_name("trips").ok_or("no trips")?, &ints(last));
        let spine = batch(&[("driver_id", ints([7, 8, 9])), ("event_timestamp", times([at(119), at(6_000), at(0)]))]);
        let (joined, _) = join(client, &training(&["stats:trips"]), &[spine]).await?;
        let expected = [trips(7, 1), trips(8, 100), trips(9, 0)];
        assert_eq!(joined.column_by_name("trips").ok_or("no trips")?, &ints(expected));
        Ok(())
    };
    for node in 0..3 {
        check(&story.client_of(node).await?).await?;
    }
    story.restart_all().await?;
    check(&story.client_of(2).await?).await?;
    story.end().await
}

#[tokio::test]
async fn a_backfill_is_paused_resumed_and_cancelled() -> TestResult {
    let story = Story::one_node().await?;
    let path = folder(&story)?.join("all.csv");
    write(&path, &rows(0..MINUTES, 0))?;
    let sql = "select driver_id, trips, event_timestamp as happened from source where score < 100";
    let source = format!("{{path: '{}', sql: \"{sql}\", event_timestamp: happened}}", path.display());
    story.apply(&definitions(&source, TRIPS)).await?;
    // Far more chunks than can be done between two requests.
    let begun = story.client.begin_backfill(api::BeginBackfillRequest { chunk_us: SECOND, ..ask(MINUTES, 1) }).await?;
    let id = begun.id;
    let again = story.client.begin_backfill(ask(10, 1)).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
    until(&story.client, id, "a chunk is done", |job| job.chunks_done > 0).await?;
    let paused = story.client.change_job(id, "pause").await?;
    assert_eq!((paused.state.as_str(), paused.node.is_empty()), ("paused", false));
    assert_eq!(story.client.change_job(id, "pause").await?.state, "paused");
    let resumed = story.client.change_job(id, "resume").await?;
    until(&story.client, id, "it goes on", |job| job.chunks_done > resumed.chunks_done + 2).await?;
    story.client.change_job(id, "cancel").await?;
    let started = Instant::now();
    let cancelled = loop {
        let job = story.client.job(id).await?;
        if job.state == "cancelled" {
            break job;
        }
        assert!(job.state == "cancelling" && started.elapsed() < Duration::from_secs(60), "{job:?}");
    };
    assert!(cancelled.ended_us > 0 && cancelled.chunks_done < cancelled.chunks);
    assert_eq!(story.client.change_job(id, "cancel").await?.state, "cancelled");
    for action in ["resume", "pause"] {
        assert_eq!(story.client.change_job(id, action).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
    assert_eq!(story.client.change_job(id, "stop").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(story.client.change_job(999, "pause").await.unwrap_err().kind(), ErrorKind::NotFound);

    // The interval again: what was stored is stored again, and then it is whole.
    let begun = story.client.begin_backfill(ask(MINUTES, 100)).await?;
    let done = in_state(&story.client, begun.id, "done").await?;
    assert_eq!(done.rows, (200 * MINUTES) as u64, "those with a score under 100");
    let distinct = "select count(*) from (select distinct driver_id, event_timestamp from history('stats'))";
    assert_eq!(number(&story.client, distinct).await?, 200 * MINUTES);
    let listed = story.client.jobs().await?;
    assert_eq!(listed.iter().map(|job| job.state.as_str()).collect::<Vec<_>>(), ["cancelled", "done"]);
    assert_eq!(number(&story.client, "select count(*) from system.jobs where state = 'done' and rows > 0").await?, 1);
    story.end().await
}

#[tokio::test]
async fn a_new_version_is_served_when_it_is_whole_and_corrections_leave_the_past_alone() -> TestResult {
    let story = Story::one_node().await?;
    let path = folder(&story)?.join("all.parquet");
    write(&path, &rows(0..10, 0))?;
    let source = format!("{{path: 'file://{}'}}", path.display());
    story.apply(&definitions(&source, TRIPS)).await?;
    let backfill = async || -> TestResult {
        let id = story.client.begin_backfill(ask(10, 5)).await?.id;
        in_state(&story.client, id, "done").await?;
        Ok(())
    };
    let unfilled = number(&story.client, "select count(*) from stats").await.unwrap_err().to_string();
    assert!(unfilled.contains("no version that is filled yet; `cairn backfill stats` fills it"), "{unfilled}");
    let listed = "select count(*) from information_schema.columns where table_name = 'stats'";
    assert!(number(&story.client, listed).await? > 0, "what is there is shown all the same");
    let unfilled = join(&story.client, &training(&["stats"]), &[rows(0..1, 0)]).await.unwrap_err();
    assert_eq!(unfilled.kind(), ErrorKind::NotFound, "{unfilled}");
    backfill().await?;
    let keys = batch(&[("driver_id", ints([7]))]);
    let eta = async || story.online(service("eta"), &keys).await.map(|rows| show(&rows));
    assert_eq!(eta().await?, "driver_id | trips\n7 | 7009\n");

    let both = format!("{TRIPS}, {{name: score, type: float64}}");
    story.apply(&definitions(&source, &both)).await?;
    assert_eq!(eta().await?, "driver_id | trips\n7 | 7009\n", "the version that is filled");
    let named = story.online(features(&["stats@2"]), &keys).await?;
    assert_eq!(show(&only(&named, &["trips"])), "trips\n\n", "as it is");
    assert_eq!(number(&story.client, "select count(*) from history('stats')").await?, 10 * DRIVERS);
    backfill().await?;
    assert_eq!(eta().await?, "driver_id | trips | score\n7 | 7009 | 3.5\n");

    let pin = api::PinRequest { project: DEFAULT_PROJECT.into(), feature_service: "eta".into(), ..Default::default() };
    let pinned = story.client.pin(pin).await?;
    assert_eq!(pinned.feature_service_version, 2);
    let spine = batch(&[("driver_id", ints([7])), ("event_timestamp", times([at(3_600)]))]);
    let past = async || -> TestResult<String> {
        let ask = cairn_client::command::GetHistoricalFeatures {
            known_as_of: Some(Timestamp(pinned.known_us)),
            ..training(&["stats:trips"])
        };
        Ok(show(&only(&join(&story.client, &ask, std::slice::from_ref(&spine)).await?.0, &["trips"])))
    };
    assert_eq!(past().await?, "trips\n7009\n");
    write(&path, &rows(0..10, 50))?;
    backfill().await?;
    assert_eq!(eta().await?, "driver_id | trips | score\n7 | 7059 | 3.5\n", "restated");
    assert_eq!(past().await?, "trips\n7009\n", "what was pinned stays");
    story.end().await
}

#[tokio::test]
async fn files_that_go_away_pause_a_backfill_and_files_that_change_fail_it() -> TestResult {
    let story = Story::one_node().await?;
    let folder = folder(&story)?;
    let path = folder.join("all.parquet");
    write(&path, &rows(0..MINUTES, 0))?;
    story.apply(&definitions(&format!("{{path: '{}'}}", path.display()), TRIPS)).await?;
    let slow = api::BeginBackfillRequest { chunk_us: SECOND, ..ask(MINUTES, 1) };
    let id = story.client.begin_backfill(slow.clone()).await?.id;
    until(&story.client, id, "a chunk is done", |job| job.chunks_done > 0).await?;
    let away = folder.join("away");
    std::fs::rename(&path, &away)?;
    let paused = in_state(&story.client, id, "paused").await?;
    assert!(paused.message.contains("all.parquet"), "{}", paused.message);
    std::fs::rename(&away, &path)?;
    story.client.change_job(id, "resume").await?;
    let before = until(&story.client, id, "it goes on", |job| job.chunks_done > paused.chunks_done).await?;
    assert_eq!(before.message, "");
    let whole = std::fs::read(&path)?;
    std::fs::write(&away, &whole[..whole.len() / 2])?;
    std::fs::rename(&away, &path)?;
    let failed = until_ended(&story.client, id).await?;
    assert_eq!(failed.state, "failed");
    assert!(failed.message.contains("all.parquet` was truncated during the backfill"), "{}", failed.message);

    // Truncated before it begins, a null key, a number too large for its type: file and place are named.
    let error = story.client.begin_backfill(slow.clone()).await.unwrap_err();
    assert!(error.to_string().contains("all.parquet` is no whole Parquet file"), "{error}");
    let odd = batch(&[
        ("driver_id", ints([Some(1), None])),
        ("event_timestamp", times([at(1), at(2)])),
        ("trips", ints([1, 2])),
    ]);
    write(&path, &odd)?;
    let id = story.client.begin_backfill(ask(10, 10)).await?.id;
    let failed = until_ended(&story.client, id).await?;
    let place = format!("join key `driver_id` is null (the first in file `{}`, row 2)", path.display());
    assert!(failed.state == "failed" && failed.message.contains(&place), "{}", failed.message);
    let late =
        batch(&[("driver_id", ints([1, 2])), ("event_timestamp", times([Some(at(1)), None])), ("trips", ints([1, 2]))]);
    write(&path, &late)?;
    let id = story.client.begin_backfill(ask(10, 10)).await?.id;
    let failed = until_ended(&story.client, id).await?;
    assert!(failed.message.contains("`event_timestamp` is null (the first in file"), "{}", failed.message);
    assert_eq!(number(&story.client, "select count(*) from system.jobs where state = 'failed'").await?, 3);
    story.end().await
}

async fn until_ended(client: &Client, id: u64) -> TestResult<api::Job> {
    let started = Instant::now();
    loop {
        let job = client.job(id).await?;
        if job.ended_us != 0 {
            return Ok(job);
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{job:?}");
    }
}

#[tokio::test]
async fn sources_that_make_no_sense_are_refused() -> TestResult {
    let story = Story::one_node().await?;
    let folder = folder(&story)?;
    let path = folder.join("all.parquet");
    write(&path, &rows(0..2, 0))?;
    let told = async |source: &str| match story.client.apply(DEFAULT_PROJECT, files(&definitions(source, TRIPS))).await
    {
        Ok(_) => panic!("taken: {source}"),
        Err(error) => error.to_string(),
    };
    for (source, message) in [
        (
            "{path: 's3://bucket/x.parquet'}",
            "defs.yaml:10:11: `source` of feature view `stats`: `s3://bucket/x.parquet`: files of \
          `s3://` cannot be read; a source is a local path or a file:// URL",
        ),
        ("{path: data/x.parquet}", "is no whole path"),
        ("{sql: select 1}", "missing field `path`"),
        ("{path: /x, sqll: select 1}", "sqll"),
        ("{path: /x, sql: 'selec 1'}", "SQL statement"),
        ("{path: /x, sql: 'delete from source'}", "the sql is no SELECT"),
        ("{path: /x, sql: 'select 1; select 2'}", "`source` of feature view `stats`"),
        ("{path: /x, sql: 'select * from sauce'}", "its sql reads `sauce`; it can read one table, `source`"),
        ("{path: /x, sql: 'select * from stats'}", "that is a cycle: stats → stats"),
    ] {
        let error = told(source).await;
        assert!(error.contains(message), "{source}: {error}");
    }
    let other = "---\nkind: FeatureView\nname: other\nspec: {entities: [driver], features: [{name: trips, type: int64}], \
                 source: {path: /x, sql: 'select * from stats'}}\n";
    let cyclic = definitions("{path: /x, sql: 'select * from other'}", TRIPS) + other;
    let error = story.client.apply(DEFAULT_PROJECT, files(&cyclic)).await.unwrap_err().to_string();
    assert!(error.contains("stats → other → stats"), "{error}");

    let refused = async |source: &str, features: &str| -> TestResult<(ErrorKind, String)> {
        story.apply(&definitions(source, features)).await?;
        let error = story.client.begin_backfill(ask(2, 1)).await.unwrap_err();
        Ok((error.kind(), error.to_string()))
    };
    let at_path = |more: &str| format!("{{path: '{}'{more}}}", path.display());
    let tripz = "{name: tripz, type: int64}";
    let (kind, error) = refused(&at_path(""), tripz).await?;
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(error.contains("no column `tripz`, a feature; did you mean `trips`?"), "{error}");
    let (_, error) = refused(&at_path(", sql: 'select driver, trips from source'"), TRIPS).await?;
    assert!(error.contains("driver"), "{error}");
    let (_, error) = refused(&at_path(", event_timestamp: moment"), TRIPS).await?;
    assert!(error.contains("no column `moment`, the event time"), "{error}");
    let (kind, error) = refused("{path: /nowhere/x.parquet}", TRIPS).await?;
    assert_eq!(kind, ErrorKind::NotFound, "{error}");
    let (kind, error) = refused("a note for people", TRIPS).await?;
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(error.contains("has no files to be filled from; give its definition a `source` with a `path`"), "{error}");
    assert!(story.client.jobs().await?.is_empty());
    story.end().await
}
