//! Story 16: history lies in an object store that all nodes share, where other engines read it. Nodes lose their disks and
//! the store goes away for a while; nobody who asks can tell.

use crate::pyarrow::python;
use crate::story_7_cluster::until;
use crate::story_13_tiering::{DRIVERS, KEYS, check, rows_of};
use crate::support::chance::Chance;
use crate::support::http::get;
use crate::support::rows::{DAY, batch, ints, now_us, only, times};
use crate::support::sql::{moved_on, number, settled};
use crate::support::{Story, TestResult, features};
use arrow_array::BinaryArray;
use arrow_array::cast::AsArray;
use cairn_client::command::GetOnlineFeatures;
use cairn_client::{Client, DEFAULT_PROJECT, Timestamp};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;
use url::Url;

const PATIENCE: Duration = Duration::from_secs(60);
const BUCKET: &str = "s3://history/cairn";
/// Rows that are not hot: those of all days but the last.
const COLD: i64 = 9 * KEYS;

/// Of a view whose values are large and cannot be compressed.
const LARGE_ROWS: i64 = 400;
const LARGE_BYTES: usize = 64 << 10;

const NO_SERVER: &str = "the S3 server did not start: `make venv`, or pip install -r client/examples/requirements.txt";

/// An S3 server of its own for a test, with an empty bucket.
struct Server {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    variables: Vec<String>,
}

impl Server {
    async fn start() -> TestResult<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cairnd/s3_server.py");
        let mut command = Command::new(python());
        let mut process =
            command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let input = process.stdin.take().ok_or("no input")?;
        let mut output = BufReader::new(process.stdout.take().ok_or("no output")?).lines();
        let port = tokio::time::timeout(PATIENCE, output.next_line()).await??.ok_or(NO_SERVER)?;
        let variables = [
            &format!("AWS_ENDPOINT_URL=http://127.0.0.1:{port}"),
            "AWS_ALLOW_HTTP=true",
            "AWS_REGION=us-east-1",
            "AWS_ACCESS_KEY_ID=test",
            "AWS_SECRET_ACCESS_KEY=test",
        ];
        let variables = variables.map(str::to_owned).to_vec();
        Ok(Self { process, input, output, variables })
    }

    /// `stop`: nobody can connect; `start`: as before, with all that was put.
    async fn tell(&mut self, word: &str) -> TestResult {
        self.input.write_all(format!("{word}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(PATIENCE, self.output.next_line()).await??;
        assert_eq!(answer.as_deref(), Some(word));
        Ok(())
    }

    async fn end(mut self) -> TestResult {
        drop(self.input);
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await??;
        assert!(ended.success(), "the S3 server ended with {ended}");
        Ok(())
    }
}

async fn on_servers(server: &Server, count: usize, url: &str) -> TestResult<Story> {
    Story::nodes_with(count, &["--tiering-interval-s", "1", "--segments-url", url], &server.variables).await
}

async fn ten_days(story: &Story, now: i64) -> TestResult {
    story.apply(DRIVERS).await?;
    for day in 0..10 {
        story.store("stats", rows_of(day, now)).await?;
    }
    Ok(())
}

/// The segments that are named.
async fn segments(client: &Client) -> TestResult<BTreeSet<String>> {
    let mut listed = client.sql("select artifact from system.segments", DEFAULT_PROJECT).await?;
    let mut found = BTreeSet::new();
    while let Some(rows) = listed.next().await? {
        found.extend(rows.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    Ok(found)
}

/// What one of the examples in Python prints.
async fn example(script: &str, arguments: &[String], variables: &[String]) -> TestResult<String> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/examples");
    let mut command = Command::new(python());
    command.arg(examples.join(script)).args(arguments).kill_on_drop(true);
    command.envs(variables.iter().filter_map(|it| it.split_once('=')));
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    Ok(out.into_owned())
}

/// What engines that know nothing of us must find in the segments.
fn sums() -> String {
    let trips: i64 = (0..9).flat_map(|day| (0..KEYS).map(move |key| key * 100 + day)).sum();
    format!("{COLD} rows, 0 deleted, trips {trips}\n")
}

/// Polars reads the named segments out of the bucket.
async fn in_the_bucket(story: &Story, server: &Server) -> TestResult {
    let folder = format!("{BUCKET}/{}", story.client.status().await?.cluster_id);
    let arguments: Vec<String> = [folder].into_iter().chain(segments(&story.client).await?).collect();
    assert_eq!(example("read_bucket.py", &arguments, &server.variables).await?, format!("polars {}", sums()));
    Ok(())
}

fn metric(address: &str, name: &str) -> TestResult<u64> {
    let text = get(address, "/metrics")?.body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.ok_or_else(|| format!("no `{name}` in {text}"))?.parse()?)
}

/// Waits until it is so.
async fn wait(what: &str, mut holds: impl FnMut() -> TestResult<bool>) -> TestResult {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    while !holds()? {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        looks.tick().await;
    }
    Ok(())
}

/// Has all segments, and says so.
async fn ready(story: &Story, node: usize) -> TestResult {
    let address = &story.cluster.nodes()[node].address;
    wait("a node has its segments", || Ok(get(address, "/ready")?.status == 200)).await
}

fn log(story: &Story, node: usize) -> TestResult<String> {
    Ok(std::fs::read_to_string(story.folder().join(format!("n{}.log", node + 1)))?)
}

#[tokio::test]
async fn history_lies_in_a_bucket_and_comes_back_from_it() -> TestResult {
    let server = Server::start().await?;
    let mut story = on_servers(&server, 3, BUCKET).await?;
    let now = now_us();
    ten_days(&story, now).await?;
    for node in 0..3 {
        let client = story.client_of(node).await?;
        settled(&client, COLD).await?;
        check(&client, now, None).await?;
    }
    in_the_bucket(&story, &server).await?;
    let bytes = u64::try_from(number(&story.client, "select sum(bytes) from system.segments").await?)?;

    // A machine that lost its disk comes back as a new node, and reads what the bucket has.
    story.cluster.kill(2).await?;
    story.client.remove_node("n3", false).await?;
    until(&story.client, "the node is out", |status| status.nodes.len() == 2).await?;
    std::fs::remove_dir_all(story.folder().join("n3"))?;
    story.cluster.spawn(2)?;
    story.cluster.ready(2, 3).await?;
    let back = story.client_of(2).await?;
    settled(&back, COLD).await?;
    ready(&story, 2).await?;
    check(&back, now, None).await?;
    let read = metric(&story.cluster.nodes()[2].address, "cairn_object_store_read_bytes_total")?;
    assert!(read >= bytes, "{read} of {bytes} bytes came from the bucket");

    // No node has any of it, and nobody to ask but the bucket.
    for node in 0..3 {
        story.cluster.kill(node).await?;
        std::fs::remove_dir_all(story.folder().join(format!("n{}/blobs", node + 1)))?;
    }
    for node in 0..3 {
        story.cluster.spawn(node)?;
    }
    for node in 0..3 {
        story.cluster.ready(node, 3).await?;
        ready(&story, node).await?;
        check(&story.client_of(node).await?, now, None).await?;
    }
    in_the_bucket(&story, &server).await?;
    story.end().await?;
    server.end().await
}

#[tokio::test]
async fn history_waits_for_a_bucket_that_is_away_and_nothing_else_does() -> TestResult {
    let mut server = Server::start().await?;
    let mut story = on_servers(&server, 3, BUCKET).await?;
    server.tell("stop").await?;
    let now = now_us();
    ten_days(&story, now).await?;
    let leader = story.cluster.leader(&story.client, 1).await?;
    let address = story.cluster.nodes()[leader].address.clone();
    let noticed = || Ok(metric(&address, "cairn_object_store_failures_total")? > 0);
    wait("the leader finds the bucket away", noticed).await?;
    assert_eq!(metric(&address, "cairn_object_store_up")?, 0);
    for node in 0..3 {
        ready(&story, node).await?;
        check(&story.client_of(node).await?, now, None).await?;
    }
    // Whoever leads in its place waits too.
    story.cluster.kill(leader).await?;
    let other = story.client_of((leader + 1) % 3).await?;
    check(&other, now, None).await?;
    assert!(segments(&other).await?.is_empty(), "a segment was named that is nowhere");
    story.cluster.spawn(leader)?;
    story.cluster.ready(leader, 3).await?;

    // It is back until the first segment is named; then it is away once more, and so is a leader.
    server.tell("start").await?;
    moved_on(&other, 0, COLD).await?;
    server.tell("stop").await?;
    let leader = story.cluster.leader(&other, 2).await?;
    story.cluster.kill(leader).await?;
    let other = story.client_of((leader + 1) % 3).await?;
    // A file that only the bucket and the dead leader have is waited for; never is a row missing.
    if let Err(error) = check(&other, now, None).await {
        assert!(error.to_string().contains("still on its way to this node"), "{error}");
    }
    server.tell("start").await?;
    story.cluster.spawn(leader)?;
    for node in 0..3 {
        story.cluster.ready(node, 3).await?;
        let client = story.client_of(node).await?;
        settled(&client, COLD).await?;
        check(&client, now, None).await?;
    }
    story.client = story.client_of(0).await?;
    in_the_bucket(&story, &server).await?;

    // Said, and not over and over: at most once a process and time away.
    let mut said = 0;
    for node in 0..3 {
        let log = log(&story, node)?;
        let times = |what: &str| log.lines().filter(|line| line.contains(what)).count();
        let away = times("the object store does not answer; it is tried again");
        assert!(away <= 4 && times("history waits to be moved to segments") <= 8 && times("backing off") == 0, "{log}");
        said += away;
    }
    assert!(said > 0, "nobody said that the bucket is away");
    story.end().await?;
    server.end().await
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_named_and_costs_nothing_else() -> TestResult {
    let server = Server::start().await?;
    let story = on_servers(&server, 1, "s3://histroy/cairn").await?;
    let now = now_us();
    ten_days(&story, now).await?;
    let address = &story.cluster.nodes()[0].address;
    wait("the bucket was asked for", || Ok(metric(address, "cairn_object_store_failures_total")? > 1)).await?;
    check(&story.client, now, None).await?;
    assert!(segments(&story.client).await?.is_empty());
    let log = log(&story, 0)?;
    assert!(log.contains("`s3://histroy/cairn` at `http://127.0.0.1:"), "{log}");
    assert!(log.contains("NoSuchBucket: The specified bucket does not exist"), "{log}");
    story.end().await?;
    server.end().await
}

/// More than one request carries: such a file goes in parts and comes in ranges.
#[tokio::test]
async fn a_large_segment_goes_in_parts() -> TestResult {
    let server = Server::start().await?;
    let mut story = on_servers(&server, 1, BUCKET).await?;
    story.apply(&DRIVERS.replace("trips, type: int64", "trips, type: bytes")).await?;
    let mut chance = Chance::seeded(16);
    let mut random = || -> Vec<u8> { (0..LARGE_BYTES / 8).flat_map(|_| chance.bits().to_le_bytes()).collect() };
    let values: Vec<Vec<u8>> = (0..LARGE_ROWS).map(|_| random()).collect();
    let long_ago = now_us() - DAY;
    let rows = batch(&[
        ("driver_id", ints(0..LARGE_ROWS)),
        ("event_timestamp", times((0..LARGE_ROWS).map(|_| long_ago))),
        ("trips", Arc::new(BinaryArray::from_iter_values(&values))),
    ]);
    story.store("stats", rows).await?;
    settled(&story.client, LARGE_ROWS).await?;
    let largest = number(&story.client, "select max(bytes) from system.segments").await?;
    assert!(largest > 9 << 20, "{largest} bytes fit into one request");

    story.cluster.kill(0).await?;
    std::fs::remove_dir_all(story.folder().join("n1/blobs"))?;
    story.cluster.spawn(0)?;
    story.cluster.ready(0, 1).await?;
    ready(&story, 0).await?;
    let ask = GetOnlineFeatures { as_of: Some(Timestamp(long_ago + 1)), ..features(&["stats:trips"]) };
    let found = story.online(ask, &batch(&[("driver_id", ints(0..LARGE_ROWS))])).await?;
    let found = only(&found, &["trips"]);
    let found: Vec<_> = found.column(0).as_binary::<i32>().iter().collect();
    assert!(found.iter().copied().eq(values.iter().map(|value| Some(value.as_slice()))), "other values came back");
    story.end().await?;
    server.end().await
}

/// A directory that all nodes share is a store as well. What was moved before it was set goes there too.
#[tokio::test]
async fn a_shared_directory_gets_what_was_moved_before_it() -> TestResult {
    let mut story = Story::nodes(3, &["--tiering-interval-s", "1"]).await?;
    let now = now_us();
    ten_days(&story, now).await?;
    settled(&story.client, COLD).await?;
    let share = story.folder().join("share");
    std::fs::create_dir(&share)?;
    let url = Url::from_directory_path(&share).map_err(|()| "no URL")?.to_string();
    for node in 0..3 {
        story.cluster.kill(node).await?;
    }
    for node in 0..3 {
        story.cluster.spawn_with(node, &["--segments-url", &url])?;
    }
    for node in 0..3 {
        story.cluster.ready(node, 3).await?;
    }
    let named = segments(&story.client).await?;
    let folder = share.join(story.client.status().await?.cluster_id);
    let path = |root: &String| -> PathBuf { folder.join(format!("{root}.parquet")) };
    wait("all segments are in the directory", || Ok(named.iter().all(|root| path(root).is_file()))).await?;
    let found = example("read_segments.py", &[folder.display().to_string()], &[]).await?;
    assert_eq!(found, format!("duckdb {}polars {}", sums(), sums()));

    // Other bytes under their names are not believed: the other nodes have the right ones.
    for root in &named {
        let mut bytes = std::fs::read(path(root))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path(root), bytes)?;
    }
    let log = without_its_files(&mut story, now, &url).await?;
    assert!(log.contains("not fetched from the object store"), "{log}");

    // A node that was told of another store finds nothing there, says so, and asks the other nodes too.
    let other = story.folder().join("other");
    std::fs::create_dir(&other)?;
    let url = Url::from_directory_path(&other).map_err(|()| "no URL")?.to_string();
    let log = without_its_files(&mut story, now, &url).await?;
    let told = log.matches("a segment of the history is not in the object store").count();
    assert_eq!(told, 1, "{log}");
    story.end().await
}

/// The third node loses its files and comes back with `url`; it has everything again. Its log.
async fn without_its_files(story: &mut Story, now: i64, url: &str) -> TestResult<String> {
    story.cluster.kill(2).await?;
    std::fs::remove_dir_all(story.folder().join("n3/blobs"))?;
    story.cluster.spawn_with(2, &["--segments-url", url])?;
    story.cluster.ready(2, 3).await?;
    ready(story, 2).await?;
    check(&story.client_of(2).await?, now, None).await?;
    log(story, 2)
}
