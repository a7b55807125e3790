//! The year on three nodes: `make demo-history`.
//!
//! A new feature view is filled from a file by SQL while every node is killed in turn. Both models are backtested over the
//! year, and a training set is made; then rows come late, are corrected and deleted, all history goes to segments, all nodes
//! are killed at once, and a node joins: training set and backtest come out as they were, the first byte for byte.
//!
//! Always true: DuckDB makes the same rows of the same SQL, the same join, and the same AUC of the same scores; any difference
//! fails the demo. `CAIRN_PYTHON` names a Python with the packages of ../requirements.txt.

use crate::{NAME, PROJECT, Result, Step, cairn, flights, serving};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cairn_client::definitions::read_sources;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, api};
use indicatif::HumanCount;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Arguments of every node.
pub const ARGUMENTS: [&str; 2] = ["--tiering-interval-s", "1"];
pub const NODES: usize = 3;

const VIEW: &str = "legs";
const SERVICE: &str = "delay_with_legs";
const DATASET: &str = "year";
const FROM: &str = "2013-01-01T00:00:00Z";
const TO: &str = "2014-01-01T00:00:00Z";
/// The last legs of the year were known the morning after it.
const LEGS_TO: &str = "2014-01-02T00:00:00Z";
/// Verb, view, rows out of its history: corrections, late rows, corrections of what was filled, deletions.
const CHANGES: [(&str, &str, &str); 4] = [
    ("ingest", "weather", "* exclude (NO_FEATURES) replace (temp + 10 as temp)"),
    (
        "ingest",
        "carrier_delays",
        "* exclude (NO_FEATURES) replace (event_timestamp - interval '20 minutes' as event_timestamp)",
    ),
    ("ingest", VIEW, "* exclude (NO_FEATURES) replace (late_share_1d / 2 as late_share_1d)"),
    ("delete", "plane_facts", "tailnum, event_timestamp + interval '200 days' as event_timestamp"),
];
/// What a history has beside keys, event time and features.
const NO_FEATURES: &str = "created_timestamp, committed_timestamp, deleted";
/// Longest wait for anything that the cluster does by itself.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// AUC as DuckDB and as Cairn add it up.
const AUC_TOLERANCE: f64 = 1e-9;

/// Everything between start and stop; the plot of the backtest goes to `plot`.
pub async fn run(cluster: &mut LocalCluster, folder: &Path, plot: &Path) -> Result<()> {
    let client = Client::connect(&cluster.addresses()).await?;
    let site = Site::new(folder, cluster)?;
    crate::define(&client).await?;
    crate::ingest(&client, cluster, false).await?;
    define_legs(&client).await?;
    backfill(&site, &client, cluster).await?;
    compare_rows(&site, cluster).await?;
    let versions = serving::register(&client, &flights::metrics()?).await?;
    let before = backtest(&site, &versions, plot).await?;
    let made = create(&site).await?;

    let rows = change(&site, &client, &made).await?;
    to_segments(&client, cluster, rows).await?;
    kill_all(cluster).await?;
    rebuild(&site, cluster, &made).await?;
    backtest_again(&site, &versions, &before).await?;
    println!("\nAUC of both models by week: {}\n", plot.display());
    Ok(())
}

/// Where the demo works, and the programs that it runs there.
struct Site {
    folder: PathBuf,
    /// All nodes that there were at first.
    nodes: String,
    python: PathBuf,
    flights: PathBuf,
    sql: PathBuf,
}

impl Site {
    fn new(folder: &Path, cluster: &LocalCluster) -> Result<Self> {
        let folder = folder.join("work");
        std::fs::create_dir(&folder)?;
        let python = std::env::var_os("CAIRN_PYTHON").filter(|python| !python.is_empty());
        let python = python.ok_or("CAIRN_PYTHON must name a Python with duckdb; `make demo-history` makes one")?;
        let example = flights::folder().canonicalize()?;
        Ok(Self {
            folder,
            nodes: cluster.addresses(),
            // A path with folders is of the folder one stands in, and the programs stand elsewhere.
            python: std::path::absolute(python)?,
            flights: example.join("data/flights.parquet"),
            sql: example.join("history/legs.sql"),
        })
    }

    /// What the command line answers, as JSON, when it asks any node.
    async fn cairn(&self, words: &[&str]) -> Result<Value> {
        self.cairn_of(&self.nodes, words).await
    }

    /// The same, of `nodes` alone. What it says of its progress is shown.
    async fn cairn_of(&self, nodes: &str, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(cairn()?);
        command.args(["--node", nodes, "--output", "json", "--timeout", "120"]).args(words);
        Ok(serde_json::from_slice(&self.output(command, &format!("cairn {}", words.join(" "))).await?)?)
    }

    /// What DuckDB finds, as JSON.
    async fn duckdb(&self, words: &[&std::ffi::OsStr]) -> Result<Value> {
        let mut command = Command::new(&self.python);
        command.arg(flights::folder().canonicalize()?.join("check_history.py")).args(words);
        Ok(serde_json::from_slice(&self.output(command, "check_history.py").await?)?)
    }

    async fn output(&self, mut command: Command, what: &str) -> Result<Vec<u8>> {
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("`{what}`: {error}"))?;
        let output = child.wait_with_output().await?;
        if output.status.success() { Ok(output.stdout) } else { Err(format!("`{what}` failed").into()) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The new view and a service that reads it, as YAML; the SQL is that of the file.
fn legs() -> Result<api::SourceFile> {
    let folder = flights::folder().canonicalize()?;
    let yaml = std::fs::read_to_string(folder.join("history/legs.yaml"))?;
    let sql = std::fs::read_to_string(folder.join("history/legs.sql"))?;
    let sql: String = sql.lines().map(|line| format!("      {line}\n")).collect();
    let path = folder.join("data/flights.parquet").display().to_string();
    let text = yaml.replace("FLIGHTS", &path.replace('\'', "''")).replace("      LEGS\n", &sql);
    Ok(api::SourceFile { path: "legs.yaml".into(), text })
}

async fn define_legs(client: &Client) -> Result<()> {
    let step = Step::new("define");
    let reply = client.apply(PROJECT, vec![legs()?]).await?;
    step.done(&format!("{} more: `{VIEW}` has SQL over the file of flights as its source", reply.changes.len()));
    Ok(())
}

/// Fills the new view over the year, and kills every node meanwhile, one after the other.
async fn backfill(site: &Site, client: &Client, cluster: &mut LocalCluster) -> Result<()> {
    let step = Step::new("backfill");
    let words = ["backfill", VIEW, "--from", FROM, "--to", LEGS_TO, "--chunk", "28d"];
    let (job, killed) = tokio::try_join!(site.cairn(&words), kill_in_turn(client, cluster))?;
    let (rows, chunks) = (number(&job["rows"])?, number(&job["chunks_done"])?);
    let rate = rows as f64 / step.started.elapsed().as_secs_f64();
    step.done(&format!(
        "{} rows of `{VIEW}` in {chunks} chunks, {} rows/s, deaths included",
        HumanCount(rows),
        HumanCount(rate as u64)
    ));
    Step::note(&format!("killed (kill -9) and started again: {}; the job went on by itself", killed.join(", ")));
    Ok(())
}

/// Kills every node once, in even distances of the first half of the job; whoever drives it first, if its turn is to come.
async fn kill_in_turn(client: &Client, cluster: &mut LocalCluster) -> Result<Vec<String>> {
    let mut left: Vec<usize> = (0..cluster.nodes().len()).collect();
    let parts = 2 * left.len() as u32;
    let mut killed = Vec::new();
    while !left.is_empty() {
        let part = killed.len() as u32 + 1;
        let job = until(client, |job| job.chunks_done * parts >= job.chunks * part).await?;
        let driver = cluster.leader(client, 0).await?;
        let node = left.remove(left.iter().position(|node| *node == driver).unwrap_or(0));
        cluster.kill(node).await?;
        cluster.spawn(node)?;
        cluster.ready(node, NODES).await?;
        let name = cluster.nodes().get(node).map(|node| node.name.as_str()).unwrap_or_default();
        let drove = if node == driver { ", which drove it," } else { "" };
        killed.push(format!("{name}{drove} at chunk {} of {}", job.chunks_done, job.chunks));
    }
    Ok(killed)
}

/// The newest job once it is so far; it must not have ended by then.
async fn until(client: &Client, holds: impl Fn(&api::Job) -> bool) -> Result<api::Job> {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        looks.tick().await;
        let Some(job) = client.jobs().await?.pop() else { continue };
        if job.ended_us != 0 {
            return Err(format!("job {} is {} before every node was killed: {}", job.id, job.state, job.message).into());
        }
        if holds(&job) {
            return Ok(job);
        }
    }
    Err(format!("the backfill does not go on; waited {PATIENCE:?}").into())
}

/// What every node has is what DuckDB makes of the same file by the same SQL.
async fn compare_rows(site: &Site, cluster: &LocalCluster) -> Result<()> {
    let step = Step::new("compare");
    let features = "tailnum, event_timestamp, legs_1d, late_legs_1d, late_share_1d, last_minutes";
    let out = site.file("legs.parquet");
    site.cairn(&["sql", &format!("select {features} from history('{VIEW}')"), "-o", &path(&out)]).await?;
    let words = ["rows".as_ref(), site.sql.as_os_str(), site.flights.as_os_str(), out.as_os_str()];
    let expected = site.duckdb(&words).await?;
    let query = format!("select count(*), sum(legs_1d), sum(late_legs_1d) from history('{VIEW}')");
    let expected = ["rows", "legs", "late_legs"].map(|name| number(&expected[name]));
    let [rows, legs, late] = expected;
    let expected = [rows?, legs?, late?];
    for node in cluster.nodes() {
        let found = numbers(&Client::connect(&node.address).await?, &query).await?;
        if found != expected {
            return Err(format!("{} has {found:?} rows, legs and late legs, and DuckDB {expected:?}", node.name).into());
        }
    }
    step.done(&format!(
        "{} rows, {} legs, {} late ones on every node, and every row as DuckDB has it",
        HumanCount(expected[0]),
        HumanCount(expected[1]),
        HumanCount(expected[2])
    ));
    Ok(())
}

/// Both models over twelve months, week by week; DuckDB makes the same AUC of the scores.
async fn backtest(site: &Site, versions: &[serving::Version], plot: &Path) -> Result<Value> {
    let step = Step::new("backtest");
    let scores = site.file("scores.parquet");
    let plot = path(&std::path::absolute(plot)?);
    let found = run_backtest(site, versions, &["--plot", &plot, "-o", &path(&scores)]).await?;
    let took = step.started.elapsed();
    let told = site.duckdb(&["scores".as_ref(), scores.as_os_str()]).await?;
    let (mut shown, mut weeks) = (Vec::new(), 0);
    for version in versions {
        let name = format!("{NAME}@{}", version.number);
        let models = found["models"].as_array().ok_or("the backtest has no models")?;
        let model = models.iter().find(|it| it["version"] == version.number).ok_or_else(|| format!("no {name}"))?;
        let windows = model["windows"].as_array().ok_or("the backtest has no windows")?;
        weeks = windows.len();
        let ours: Vec<&Value> = std::iter::once(&model["overall"]).chain(windows).map(|it| &it["auc"]).collect();
        let theirs = told[&name].as_array().ok_or_else(|| format!("no scores of {name}"))?;
        let close = |(one, other): (&&Value, &Value)| match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => (one - other).abs() <= AUC_TOLERANCE,
            _ => false,
        };
        if ours.len() != theirs.len() || !ours.iter().zip(theirs).all(close) {
            return Err(format!("{name} has AUC {ours:?} in the backtest, and {theirs:?} by DuckDB").into());
        }
        shown.push(format!("@{} {:.4}", version.number, model["overall"]["auc"].as_f64().unwrap_or(f64::NAN)));
    }
    let rows = number(&found["rows"])?;
    step.done(&format!(
        "{} flights with both versions in {weeks} weeks, {} flights/s; AUC {}; DuckDB says the same of each week",
        HumanCount(rows),
        HumanCount((rows as f64 / took.as_secs_f64()) as u64),
        shown.join(", ")
    ));
    Ok(found)
}

async fn run_backtest(site: &Site, versions: &[serving::Version], more: &[&str]) -> Result<Value> {
    let models: Vec<String> = versions.iter().map(|version| format!("{NAME}@{}", version.number)).collect();
    let (spine, models) = (path(&site.flights), models.join(","));
    let mut words = vec!["backtest", &spine, "--models", &models, "--from", FROM, "--to", TO, "--window", "7d"];
    words.extend(["--label", "late", "--skip-null-labels"]);
    words.extend(more);
    site.cairn(&words).await
}

/// A training set of every flight of the year; DuckDB makes the same join. Gives its bytes.
async fn create(site: &Site) -> Result<Vec<u8>> {
    let step = Step::new("dataset");
    let out = site.file("year.parquet");
    let made = site.cairn(&["dataset", "create", DATASET, SERVICE, &path(&site.flights), "-o", &path(&out)]).await?;
    let took = step.started.elapsed();
    let words = ["dataset".as_ref(), site.sql.as_os_str(), site.flights.as_os_str(), out.as_os_str()];
    let found = site.duckdb(&words).await?;
    let rows = number(&made["rows"])?;
    step.done(&format!(
        "{} flights joined with `{SERVICE}`, {} rows/s; DuckDB joins the same: {} have legs of the day before",
        HumanCount(rows),
        HumanCount((rows as f64 / took.as_secs_f64()) as u64),
        HumanCount(number(&found["with_legs"])?)
    ));
    let share = |name: &str| 100.0 * found[name].as_f64().unwrap_or(f64::NAN);
    Step::note(&format!(
        "{:.1} % of those whose aircraft had been late ran late, {:.1} % of the others",
        share("late_after_late"),
        share("late_after_none")
    ));
    Ok(std::fs::read(out)?)
}

/// Ingests late rows and corrections, and deletes; the join of now is another one then. Gives the rows there are in all.
async fn change(site: &Site, client: &Client, made: &[u8]) -> Result<u64> {
    let step = Step::new("change");
    let (mut before, mut changed) = (0, 0);
    for view in flights::VIEWS.into_iter().chain([VIEW]) {
        before += numbers(client, &format!("select count(*) from history('{view}')")).await?.iter().sum::<u64>();
    }
    for (verb, view, rows) in CHANGES {
        let file = path(&site.file(&format!("changed-{view}.parquet")));
        let query = format!("select {} from history('{view}')", rows.replace("NO_FEATURES", NO_FEATURES));
        site.cairn(&["sql", &query, "-o", &file]).await?;
        let stored = site.cairn(&[verb, view, &file]).await?;
        changed += number(&stored["rows_accepted"])?;
    }
    let now = site.file("now.parquet");
    site.cairn(&["join", SERVICE, &path(&site.flights), "-o", &path(&now)]).await?;
    if std::fs::read(now)? == made {
        return Err("rows were corrected, came late and were deleted, and no training set changes".into());
    }
    step.done(&format!("{} rows late, corrected or deleted; a join of now has other bytes", HumanCount(changed)));
    Ok(before + changed)
}

/// Gives every view a hot window, and waits until all of its history has left the database on every node.
async fn to_segments(client: &Client, cluster: &LocalCluster, rows: u64) -> Result<()> {
    let step = Step::new("tier");
    let mut sources = read_sources(&[flights::folder().join("definitions")])?;
    sources.push(legs()?);
    for source in &mut sources {
        source.text = source.text.replace("\n  entities: [", "\n  hot_window: 30d\n  entities: [");
    }
    client.apply(PROJECT, sources).await?;
    let moved = "select cast(coalesce(sum(rows), 0) as bigint), count(*), cast(coalesce(sum(bytes), 0) as bigint) \
                 from system.segments where state = 'alone'";
    let mut last = Vec::new();
    for node in cluster.nodes() {
        let client = Client::connect(&node.address).await?;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            last = numbers(&client, moved).await?;
            if last.first() == Some(&rows) {
                break;
            }
            if step.started.elapsed() > PATIENCE {
                return Err(
                    format!("{} has {last:?} rows, files and bytes in segments, of {rows} rows", node.name).into()
                );
            }
        }
    }
    let [_, files, bytes] = last[..] else { return Err("the query of segments has three columns".into()) };
    step.done(&format!(
        "{} rows of history left the database for {files} Parquet files, {} MB, on every node",
        HumanCount(rows),
        bytes / 1_000_000
    ));
    Ok(())
}

async fn kill_all(cluster: &mut LocalCluster) -> Result<()> {
    let step = Step::new("restart");
    let count = cluster.nodes().len();
    for node in 0..count {
        cluster.kill(node).await?;
    }
    for node in 0..count {
        cluster.spawn(node)?;
    }
    for node in 0..count {
        cluster.ready(node, NODES).await?;
    }
    step.done("all nodes killed (kill -9) and started again");
    let step = Step::new("join");
    cluster.add().await?;
    step.done("a node that was never there");
    Ok(())
}

/// The training set again, by every node, asked alone.
async fn rebuild(site: &Site, cluster: &LocalCluster, made: &[u8]) -> Result<()> {
    for node in cluster.nodes() {
        let step = Step::new("rebuild");
        let out = site.file(&format!("year-{}.parquet", node.name));
        let dataset = site.cairn_of(&node.address, &["dataset", "rebuild", DATASET, "-o", &path(&out)]).await?;
        if std::fs::read(&out)? != made {
            return Err(format!("{} makes other bytes of dataset `{DATASET}`: {}", node.name, out.display()).into());
        }
        let rate = made_rate(&dataset, &step)?;
        let digest = dataset["content"].as_str().and_then(|digest| digest.get(..16)).unwrap_or_default();
        step.done(&format!("on {}: the same {} bytes, BLAKE3 {digest}…, {rate} rows/s", node.name, made.len()));
    }
    Ok(())
}

fn made_rate(dataset: &Value, step: &Step) -> Result<HumanCount> {
    Ok(HumanCount((number(&dataset["rows"])? as f64 / step.started.elapsed().as_secs_f64()) as u64))
}

/// With the moment of the first one, the backtest has the same rows, scores and metrics.
async fn backtest_again(site: &Site, versions: &[serving::Version], before: &Value) -> Result<()> {
    let step = Step::new("backtest");
    let known = before["known_as_of"].as_str().ok_or("the backtest says no moment")?;
    let again = run_backtest(site, versions, &["--known-as-of", known]).await?;
    for part in ["content", "models", "rows"] {
        if again[part] != before[part] {
            return Err(format!("`{part}` of the backtest is {}, and was {}", again[part], before[part]).into());
        }
    }
    step.done("again, as of the moment of the first: the same scores and metrics, bit for bit");
    Ok(())
}

/// The one row of whole numbers that a query gives.
async fn numbers(client: &Client, sql: &str) -> Result<Vec<u64>> {
    let mut rows = client.sql(sql, PROJECT).await?;
    let row = rows.next().await?.ok_or("a query gave no row")?;
    let value = |column: &arrow_array::ArrayRef| {
        let column = column.as_primitive_opt::<Int64Type>().filter(|column| !column.is_empty());
        column
            .and_then(|column| u64::try_from(column.value(0)).ok())
            .ok_or_else(|| format!("`{sql}`: no whole number").into())
    };
    row.columns().iter().map(value).collect()
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().ok_or_else(|| format!("{value} is no number").into())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
