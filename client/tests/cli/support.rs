//! What the tests of the command line share: the real `cairn` beside one real `cairnd`, and what it says as text that
//! is the same in every run.

use cairn_client::local::LocalCluster;
use cairn_client::{Timestamp, Token};
use expect_test::Expect;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub const DRIVERS: &str = r#"kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec:
  entities: [driver]
  ttl: 30d
  features:
    - {name: rating, type: float32}
    - {name: trips, type: int64}
---
kind: FeatureService
name: eta
spec: {features: ["stats:rating", "stats:trips"]}
"#;

pub const ROWS: &str = "\
driver_id,event_timestamp,rating,trips
7,2024-01-01T00:00:10Z,4.5,3
8,2024-01-01T00:00:10Z,3.25,
7,2024-01-01T00:00:30Z,4.75,4
";

/// JSON fields that differ from run to run.
const UNSTEADY: &[&str] = &[
    "at",
    "applied",
    "applied_index",
    "applied_time",
    "cluster_id",
    "created",
    "last_log_index",
    "moved",
    "seconds",
    "token",
];

/// A folder to work in, and a node that answers there.
pub struct Cli {
    // Dropped in this order: the process ends before its folder goes.
    cluster: LocalCluster,
    folder: tempfile::TempDir,
    started_us: i64,
}

/// What one command did.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub errors: String,
}

impl Cli {
    pub async fn start() -> TestResult<Self> {
        let started_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros().try_into()?;
        let folder = tempfile::Builder::new().prefix("cairn-cli-").tempdir()?;
        let node = folder.path().join("node");
        std::fs::create_dir_all(&node)?;
        std::fs::create_dir_all(folder.path().join("work"))?;
        let arguments = ["--shards", "2", "--cache-mib", "32", "--disk-reserve-mib", "16"];
        let cluster = LocalCluster::start(&cairn_client::local::cairnd()?, &node, 1, &arguments).await?;
        Ok(Self { cluster, folder, started_us })
    }

    /// With [`DRIVERS`] applied.
    pub async fn with_drivers() -> TestResult<Self> {
        let cli = Self::start().await?;
        cli.write("drivers.yaml", DRIVERS)?;
        assert_eq!(cli.run("apply -f drivers.yaml").await?.code, Some(0));
        Ok(cli)
    }

    /// With [`ROWS`] stored as well.
    pub async fn with_rows() -> TestResult<Self> {
        let cli = Self::with_drivers().await?;
        cli.write("rows.csv", ROWS)?;
        assert_eq!(cli.run("ingest stats rows.csv").await?.code, Some(0));
        Ok(cli)
    }

    /// Where commands run.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> TestResult {
        Ok(std::fs::write(self.folder().join(name), bytes)?)
    }

    /// Runs `cairn` with these arguments, none of which has a space in it.
    pub async fn run(&self, line: &str) -> TestResult<Said> {
        cairn(&self.cluster.addresses(), &self.folder(), line).await
    }

    /// Everything a command says: standard output, standard error behind `! `, the exit code unless it is 0.
    pub async fn check(&self, line: &str, expected: Expect) -> TestResult {
        let said = self.run(line).await?;
        expected.assert_eq(&self.steady(&said.transcript()));
        Ok(())
    }

    /// As [`Self::check`] with `--output json`, which must be one document, on one stream alone.
    pub async fn check_json(&self, line: &str, expected: Expect) -> TestResult {
        let said = self.run(&format!("{line} --output json")).await?;
        let text = match said.code {
            Some(0) => &said.out,
            _ => &said.errors,
        };
        let mut document: Value = serde_json::from_str(text).map_err(|error| format!("{error}: {said:?}"))?;
        steady_json(&mut document);
        let code = said.code.filter(|code| *code != 0).map_or(String::new(), |code| format!("\nexit {code}"));
        expected.assert_eq(&self.steady(&format!("{}{code}\n", serde_json::to_string_pretty(&document)?)));
        Ok(())
    }

    /// Where the node listens.
    pub fn address(&self) -> String {
        self.cluster.addresses()
    }

    /// Kills the node and starts it again.
    pub async fn restart(&mut self) -> TestResult {
        self.cluster.kill(0).await?;
        self.cluster.spawn(0)?;
        Ok(self.cluster.ready(0, 1).await?)
    }

    pub async fn end(self) -> TestResult {
        Ok(self.cluster.stop().await?)
    }

    /// The same text in every run: no ports, folders, log positions, speeds, nor the time of day.
    pub fn steady(&self, text: &str) -> String {
        let text = text.replace(&self.cluster.addresses(), "NODE");
        let text = text.replace(&self.folder().display().to_string(), "FOLDER");
        text.lines().map(|line| self.steady_line(line) + "\n").collect()
    }

    fn steady_line(&self, line: &str) -> String {
        if line.contains(" rows/s, token ") {
            return "… s, … rows/s, token TOKEN".to_owned();
        }
        if let Some((rows, seconds)) = line.rsplit_once(", ")
            && seconds.strip_suffix(" s").is_some_and(|seconds| seconds.parse::<f64>().is_ok())
        {
            return format!("{rows}, … s");
        }
        let word = |word: &str| {
            let bare = word.trim_end();
            let now = bare.contains('T') && Timestamp::parse(bare).is_ok_and(|time| time.0 >= self.started_us);
            let token = bare.contains('@') && bare.parse::<Token>().is_ok();
            match (now, token) {
                (true, _) => word.replace(bare, "NOW"),
                (_, true) => word.replace(bare, "TOKEN"),
                _ => word.to_owned(),
            }
        };
        line.split_inclusive(' ').map(word).collect()
    }
}

impl Said {
    pub fn transcript(&self) -> String {
        let errors: String = self.errors.lines().map(|line| format!("! {line}\n")).collect();
        let code = match self.code {
            Some(0) => String::new(),
            Some(code) => format!("exit {code}\n"),
            None => "ended by a signal\n".to_owned(),
        };
        format!("{}{errors}{code}", self.out)
    }
}

/// Runs `cairn` against `node`, in `folder`.
pub async fn cairn(node: &str, folder: &Path, line: &str) -> TestResult<Said> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.args(line.split_whitespace()).current_dir(folder);
    command.env("CAIRN_NODE", node).env("USER", "ada").env_remove("CAIRN_PROJECT").stdin(Stdio::null());
    let output = command.kill_on_drop(true).output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes);
    Ok(Said { code: output.status.code(), out: text(output.stdout)?, errors: text(output.stderr)? })
}

/// What stands there is left out, that it stands there is not.
fn steady_json(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(steady_json),
        Value::Object(fields) => {
            for (name, value) in fields {
                let empty = value.is_null() || value.as_str() == Some("");
                if UNSTEADY.contains(&name.as_str()) && !empty {
                    *value = Value::from("…");
                }
                steady_json(value);
            }
        }
        _ => {}
    }
}
