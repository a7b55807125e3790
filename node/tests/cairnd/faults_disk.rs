//! A full disk: the node takes no more writes and says why, reads go on, and writes are taken again once there is space.
//! Nothing acknowledged is lost, even where the disk is full to the last byte.

use crate::faults_support::process::{fill, node_over, store, stored};
use crate::faults_support::{DEFINITIONS, driver, refused, row};
use crate::support::rows::{at, batch, floats32, ints, show, times};
use crate::support::{TestResult, files, into, service};
use arrow_array::RecordBatch;
use cairn_client::command::{GetOnlineFeatures, Level, Read};
use cairn_client::local::LocalCluster;
use cairn_client::{Client, DEFAULT_PROJECT, Error, ErrorKind, api};
use expect_test::expect;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// More than any disk has: 2^40 MiB.
const ENDLESS: &str = "1099511627776";

/// Digits of the sentence as `N`: how much is free differs from run to run.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '0'..='9' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            other => out.push(other),
        }
    }
    out
}

#[tokio::test]
async fn below_its_reserve_a_node_is_read_only() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (cluster, client) = node_over(folder.path(), &["--disk-reserve-mib", "16"]).await?;
    fill(&client).await?;
    cluster.stop().await?;

    let (cluster, client) = node_over(folder.path(), &["--disk-reserve-mib", ENDLESS]).await?;
    let sentence = |text: String| without_numbers(&text.replace(&folder.path().display().to_string(), "FOLDER"));
    let told = sentence(refused(client.ingest_batch(into("stats"), row(8, 1.0, 1)).await));
    expect!["read_only: this node is read-only: its disk is full (N MiB free under FOLDER/nN, N MiB are kept in reserve); free some space and writes go on by themselves"].assert_eq(&told);
    let changed = DEFINITIONS.replace("int64}\n---\nkind: FeatureService", "int32}\n---\nkind: FeatureService");
    assert_ne!(changed, DEFINITIONS);
    let writes = [
        refused(client.apply(DEFAULT_PROJECT, files(&changed)).await),
        refused(client.upload_bytes(b"a model".as_slice().into()).await),
    ];
    for refusal in writes {
        assert_eq!(sentence(refusal), told);
    }
    // Reads go on, and everybody is told why nothing else does.
    assert_eq!(stored(&client, 7).await?, "7 | 4.5 | 3\n");
    assert_eq!(stored(&client, 8).await?, "8 |  |\n");
    let status = client.status().await?;
    assert!(status.read_only);
    assert_eq!(sentence(format!("read_only: {}", status.read_only_reason)), told);
    let metrics = crate::support::http::get(client.address(), "/metrics")?.body;
    assert!(metrics.lines().any(|line| line == "cairn_node_read_only 1"), "{metrics}");
    cluster.stop().await?;

    // There is space again.
    let (cluster, client) = node_over(folder.path(), &["--disk-reserve-mib", "16"]).await?;
    assert!(!client.status().await?.read_only);
    store(&client, row(8, 1.0, 1)).await?;
    assert_eq!(stored(&client, 8).await?, "8 | 1.0 | 1\n");
    Ok(cluster.stop().await?)
}

/// A disk of its own in memory, gone with this value.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(mib: u32) -> TestResult<Option<Self>> {
        Self::mount_on(tempfile::tempdir()?, mib)
    }

    fn mount_on(folder: tempfile::TempDir, mib: u32) -> TestResult<Option<Self>> {
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "cairn-test"]).arg(folder.path()).output();
        Ok(mount.is_ok_and(|output| output.status.success()).then_some(Self { folder }))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all space but `left` bytes.
    fn fill_but(&self, left: u64) -> TestResult<PathBuf> {
        let path = self.path().join("filler");
        let mut filler = File::create(&path)?;
        let zeros = vec![0; 64 << 10];
        loop {
            let free = free_bytes(self.path())?;
            let piece = free.saturating_sub(left).min(zeros.len() as u64) as usize;
            // The last bytes of a page belong to nobody.
            if piece < 4096 || filler.write_all(&zeros[..piece]).is_err() {
                return Ok(path);
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that has just been killed may not be gone yet.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "umount failed");
    }
}

fn free_bytes(path: &Path) -> TestResult<u64> {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().nth(1).ok_or("no line of df")?.trim().parse()?)
}

/// Stores one batch after the other until one is not taken; returns how many were, and why the next was not.
async fn store_until_refused(client: &Client, first: i64) -> (i64, Error) {
    let mut taken = 0;
    loop {
        match client.ingest_batch(into("stats"), thousand(first + taken)).await {
            Ok(reply) => assert_eq!(reply.rows_accepted, 1_000),
            Err(error) => return (taken, error),
        }
        taken += 1_000;
    }
}

/// Drivers from `first`, each with its id for a rating and for its trips.
fn thousand(first: i64) -> RecordBatch {
    let drivers = first..first + 1_000;
    batch(&[
        ("driver_id", ints(drivers.clone())),
        ("event_timestamp", times(drivers.clone().map(|_| at(0)))),
        ("rating", floats32(drivers.clone().map(|id| id as f32))),
        ("trips", ints(drivers)),
    ])
}

/// Waits until the node says of itself that it takes writes, or that it does not.
async fn until_read_only(client: &Client, read_only: bool) -> TestResult<api::StatusReply> {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
    for _ in 0..1_000 {
        let status = client.status().await?;
        if status.read_only == read_only {
            return Ok(status);
        }
        looks.tick().await;
    }
    Err(format!("after ten seconds read_only is still {}", !read_only).into())
}

#[tokio::test]
async fn a_disk_that_fills_up_loses_nothing() -> TestResult {
    let Some(disk) = SmallDisk::mount(128)? else {
        println!("skipped: this user may not mount a tmpfs");
        return Ok(());
    };
    let arguments = ["--disk-reserve-mib", "16"];
    let (cluster, client) = node_over(disk.path(), &arguments).await?;
    fill(&client).await?;

    // A little above the reserve: ingest itself takes the rest.
    let filler = disk.fill_but(20 << 20)?;
    let (first, error) = store_until_refused(&client, 1_000).await;
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    assert!(error.to_string().starts_with("this node is read-only: its disk is full ("), "{error}");
    assert!(first > 0);
    until_read_only(&client, true).await?;
    assert_eq!(stored(&client, 7).await?, "7 | 4.5 | 3\n");
    assert_eq!(stored(&client, 999 + first).await?, format!("{0} | {0}.0 | {0}\n", 999 + first));

    // Space again, without a restart.
    std::fs::remove_file(&filler)?;
    until_read_only(&client, false).await?;
    store(&client, row(8, 1.0, 1)).await?;

    // Somebody else takes every last byte at once, and the power goes.
    let filler = disk.fill_but(0)?;
    let refused = client.ingest_batch(into("stats"), row(9, 1.0, 1)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
    let mut cluster = cluster;
    cluster.kill(0).await?;
    std::fs::remove_file(&filler)?;
    drop(cluster);

    let (cluster, client) = node_over(disk.path(), &arguments).await?;
    assert_eq!(stored(&client, 7).await?, "7 | 4.5 | 3\n");
    assert_eq!(stored(&client, 8).await?, "8 | 1.0 | 1\n");
    assert_eq!(stored(&client, 9).await?, "9 |  |\n");
    for id in (1_000..1_000 + first).step_by(997).chain([999 + first]) {
        assert_eq!(stored(&client, id).await?, format!("{id} | {id}.0 | {id}\n"));
    }
    store(&client, row(9, 1.0, 1)).await?;
    Ok(cluster.stop().await?)
}

fn client_error<T>(outcome: Result<T, Error>) -> Option<String> {
    outcome.err().map(|error| format!("{}: {error}", error.kind()))
}

/// What this very node has of a driver, however old.
async fn stale(client: &Client, id: i64) -> TestResult<String> {
    let ask = GetOnlineFeatures { read: Read { level: Level::Stale, ..Read::default() }, ..service("eta") };
    let (read, _) = client.online_features(ask).read(&driver(id)).await?;
    Ok(show(&read).split_inclusive('\n').skip(1).collect())
}

/// One full node of three: the others go on, with its groups too; it answers reads, and takes up what it missed.
#[tokio::test]
async fn a_full_node_of_three_holds_up_nobody() -> TestResult {
    let folder = tempfile::tempdir()?;
    let second = tempfile::Builder::new().prefix("n2").rand_bytes(0).tempdir_in(folder.path())?;
    let Some(disk) = SmallDisk::mount_on(second, 128)? else {
        println!("skipped: this user may not mount a tmpfs");
        return Ok(());
    };
    let binary = Path::new(env!("CARGO_BIN_EXE_cairnd"));
    let arguments = ["--shards", "2", "--cache-mib", "32", "--disk-reserve-mib", "16"];
    let cluster = LocalCluster::start(binary, folder.path(), 3, &arguments).await?;
    let [one, two] = [0, 1].map(|at| Client::connect(&cluster.nodes()[at].address));
    let clients = [one.await?, two.await?];
    fill(&clients[0]).await?;
    // Seen by the second node too.
    assert_eq!(stored(&clients[1], 7).await?, "7 | 4.5 | 3\n");

    let filler = disk.fill_but(8 << 20)?;
    until_read_only(&clients[1], true).await?;
    let refused = clients[1].ingest_batch(into("stats"), row(8, 1.0, 1)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
    // The others take writes once the groups that it led are led by them.
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        looks.tick().await;
        match client_error(clients[0].ingest_batch(into("stats"), thousand(1_000)).await) {
            None => break,
            Some(error) => assert!(error.starts_with("read_only: node 2, the leader of group "), "{error}"),
        }
    }
    for first in (2_000..20_000).step_by(1_000) {
        store(&clients[0], thousand(first)).await?;
    }
    let last = "19999 | 19999.0 | 19999\n";
    assert_eq!(stored(&clients[0], 19_999).await?, last);
    assert_eq!(stale(&clients[1], 7).await?, "7 | 4.5 | 3\n");
    assert_eq!(stale(&clients[1], 19_999).await?, "19999 |  |\n", "the full node took entries");

    std::fs::remove_file(&filler)?;
    until_read_only(&clients[1], false).await?;
    store(&clients[1], row(8, 1.0, 1)).await?;
    assert_eq!(stored(&clients[1], 8).await?, "8 | 1.0 | 1\n");
    assert_eq!(stored(&clients[1], 19_999).await?, last);
    Ok(cluster.stop().await?)
}
