//! `cairnd` processes over a folder of the test's own: such that are to refuse their start, and such that start again.

use super::{DEFINITIONS, driver, row};
use crate::support::rows::show;
use crate::support::{TestResult, files, into, service};
use arrow_array::RecordBatch;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, DEFAULT_PROJECT};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// No start, refused or not, may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Free ports for one node, as arguments.
pub fn ports() -> TestResult<[String; 4]> {
    let [clients, peers] = cairn_client::local::free_addresses()?;
    Ok(["--listen".to_owned(), clients, "--peer-listen".to_owned(), peers])
}

/// Runs `cairnd` until it ends by itself with a failure; returns the error it ended with.
pub async fn refused_start(data_dir: &Path, arguments: &[&str]) -> TestResult<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairnd"));
    command.arg("--data-dir").arg(data_dir);
    if !arguments.contains(&"--listen") {
        command.args(ports()?);
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}\n{errors}");
    assert_eq!(out, "", "it said it was ready");
    let (_, error) = errors.rsplit_once("\nerror: ").or(errors.split_once("error: ")).ok_or("no error was told")?;
    Ok(error.trim_end().to_owned())
}

/// One node with its data in `folder/n1`, as an earlier one left it there if there was one.
pub async fn node_over(folder: &Path, arguments: &[&str]) -> TestResult<(LocalCluster, Client)> {
    let arguments = [&["--shards", "2", "--cache-mib", "32"], arguments].concat();
    let cluster = LocalCluster::start(Path::new(env!("CARGO_BIN_EXE_cairnd")), folder, 1, &arguments).await?;
    let client = Client::connect(&cluster.nodes()[0].address).await?;
    Ok((cluster, client))
}

/// The definitions and one row, driver 7's.
pub async fn fill(client: &Client) -> TestResult {
    client.apply(DEFAULT_PROJECT, files(DEFINITIONS)).await?;
    store(client, row(7, 4.5, 3)).await
}

/// Stores rows that are all taken.
pub async fn store(client: &Client, rows: RecordBatch) -> TestResult {
    let count = rows.num_rows() as u64;
    let reply = client.ingest_batch(into("stats"), rows).await?;
    assert_eq!(reply.rows_accepted, count, "{reply:?}");
    Ok(())
}

/// What is stored of a driver, as `driver_id | rating | trips` and a line end.
pub async fn stored(client: &Client, id: i64) -> TestResult<String> {
    let (read, _) = client.online_features(service("eta")).read(&driver(id)).await?;
    Ok(show(&read).split_inclusive('\n').skip(1).collect())
}

/// Every file below `folder` with its size and bytes' hash, sorted; `LOCK` names whoever looked last and is left out.
pub fn contents(folder: &Path) -> TestResult<Vec<(String, u64, u64)>> {
    let (mut found, mut left) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.file_name().is_some_and(|name| name != "LOCK") {
                let bytes = std::fs::read(&path)?;
                let mut hasher = std::hash::DefaultHasher::new();
                std::hash::Hasher::write(&mut hasher, &bytes);
                found.push((path.display().to_string(), bytes.len() as u64, std::hash::Hasher::finish(&hasher)));
            }
        }
    }
    found.sort();
    Ok(found)
}
