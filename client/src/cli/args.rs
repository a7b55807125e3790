//! What may be typed after `cairn`.

mod backtest;

pub use backtest::{BacktestArgs, BacktestCommand, BacktestRunArgs, PlotArgs};

use cairn_client::Timestamp;
use cairn_client::registry::{Expected, VersionOf};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed (a fault of the cluster, or something it does not offer)
  2  wrong usage or bad input: fix it and try again
  3  something named is not there
  4  conflict: somebody else was first, or the name is taken
  5  no answer: unavailable, overloaded or timed out; a write may have taken effect";

/// One database for machine-learning features and models.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Args)]
pub struct Global {
    /// Any node of the cluster; several with commas between them are tried in turn.
    #[arg(long, global = true, env = "CAIRN_NODE", default_value = cairn_client::DEFAULT_NODE, value_name = "HOST:PORT")]
    pub node: String,
    /// Project to work in.
    #[arg(long, global = true, env = "CAIRN_PROJECT", default_value = cairn_client::DEFAULT_PROJECT)]
    pub project: String,
    /// Tables for people, JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Longest wait for one answer, repetitions included, seconds.
    #[arg(long = "timeout", global = true, default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what `apply` would change; change nothing.
    Plan(FileArgs),
    /// Apply definitions: all in one step or none.
    Apply(FileArgs),
    /// List the definitions of the project.
    Definitions,
    /// Store the rows of a file in a feature view.
    Ingest(IngestArgs),
    /// Delete entities of a feature view as of a time; reads as of before still see them.
    Delete(DeleteArgs),
    /// Fill a feature view from the files of its definition, over a past interval. Ctrl-C leaves the job going on.
    #[command(after_help = SOURCE)]
    Backfill(BackfillArgs),
    /// Long work of the cluster: list it, follow, pause, resume and cancel it.
    Jobs {
        #[command(subcommand)]
        command: Option<JobsCommand>,
    },
    /// Read online features by entity key.
    Get(GetArgs),
    /// Build a training set: join a spine with the features known at each row's time.
    Join(JoinArgs),
    /// Training sets that can be made again, byte for byte.
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Measure model versions over the past: features as known at each row's own time, metrics by window, kept as evidence.
    Backtest(BacktestArgs),
    /// Query features, their history and the registry with SQL. Nothing can be written.
    Sql(SqlArgs),
    /// List history that went to Parquet files (a view's `hot_window` sends it there), or fetch the files.
    Segments(SegmentsArgs),
    /// Ask a deployment for predictions by entity key.
    Predict(PredictArgs),
    /// Register, list, promote and fetch models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Show what something was made from, or what was made from it.
    Lineage(LineageArgs),
    /// Show the nodes of the cluster and its Raft groups, as one node sees them.
    Status,
    /// Nodes and groups: show them all, move leads, drain and remove nodes.
    #[command(subcommand, after_help = ADD_A_NODE)]
    Cluster(ClusterCommand),
}

const SOURCE: &str = "\
The definition of the view names the files, a file, a folder or a pattern that every node can read, and perhaps SQL over them:
  source: {path: /data/rides/*.parquet, sql: 'select id as driver_id, at as event_timestamp, rating from source'}
Without SQL the files have the view's columns; `event_timestamp: COL` names the one with the event time.";

const ADD_A_NODE: &str = "\
A node adds itself when it starts: `cairnd --join HOST:PEERPORT` with the peer address of any node and an empty data directory.
It learns every group, and votes where a group has fewer voters than the replication factor.";

/// A node is named by its name or its id.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Ask every node: who is up, who leads, and how far each replica is.
    Status,
    /// Show the command that adds a node; with a name, wait until that node is in and has caught up.
    #[command(after_help = ADD_A_NODE)]
    Add {
        /// Name of the new node: what its `--name` says.
        #[arg(id = "member", value_name = "NAME")]
        node: Option<String>,
    },
    /// Make a node the leader of a group (0 = meta); waits until it leads.
    TransferLeader {
        group: u32,
        // Not `node`: that is the id of the global option.
        #[arg(id = "member", value_name = "NODE")]
        node: String,
    },
    /// Move every lead away from a node and give it none, for instance before it is restarted. Waits until it leads nothing.
    Drain {
        #[arg(id = "member", value_name = "NODE")]
        node: String,
        /// Let it lead again; also gives up a removal that is not finished.
        #[arg(long)]
        undo: bool,
    },
    /// Take a node out of the cluster for good; waits until it is out. A learner that has caught up votes in its place.
    ///
    /// Its id is never used again: to bring the machine back, empty its data directory and let it join as a new node.
    Remove {
        #[arg(id = "member", value_name = "NODE")]
        node: String,
        /// Also where a group would be left without a quorum that is up. Such a group takes no writes until it has one.
        #[arg(long)]
        force: bool,
    },
    /// Spread leads and voters evenly over the active nodes, now, and show what was moved. The cluster does so by itself,
    /// slowly.
    Rebalance,
    /// Move a range of slots, all of one shard, to another shard while reads and writes go on; waits until they have moved.
    ///
    /// `cairn cluster status` shows who has which slots. Interrupting the command changes nothing: the same again goes on
    /// waiting, and `--cancel` gives the move up.
    MoveSlots {
        /// First and last slot, both included: `0-1023`, or one slot.
        #[arg(value_name = "FIRST-LAST", required_unless_present = "cancel", value_parser = slot_range)]
        slots: Option<(u32, u32)>,
        /// The shard that is to have them.
        #[arg(long, value_name = "SHARD", required_unless_present = "cancel")]
        to: Option<u32>,
        /// Return once the move has begun.
        #[arg(long)]
        no_wait: bool,
        /// Give up the move that is under way, unless it is past that; waits until nothing of it is left.
        #[arg(long, conflicts_with_all = ["slots", "to", "no_wait"])]
        cancel: bool,
    },
}

/// `FIRST-LAST`, or one slot.
fn slot_range(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let slot = |part: &str| part.trim().parse().map_err(|_| format!("`{part}` is no slot; write for instance 0-1023"));
    Ok((slot(first)?, slot(last)?))
}

#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// A YAML file, or a folder: every .yaml and .yml file below it. May be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR|FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct IngestArgs {
    /// Feature view that takes the rows.
    pub view: String,
    /// Parquet or CSV file with the join keys, `event_timestamp`, optionally `created_timestamp`, and the features.
    pub file: PathBuf,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Feature view that loses the entities.
    pub view: String,
    /// Parquet or CSV file with the join keys, `event_timestamp` (gone from when on), and optionally `created_timestamp`.
    pub file: PathBuf,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, clap::Args)]
pub struct BackfillArgs {
    /// Feature view to fill, whose `source` names files.
    pub view: String,
    /// First event time (RFC 3339, or microseconds since 1970).
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Timestamp,
    /// The event time to end before.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Timestamp,
    /// Event time of one chunk, such as `1d` or `6h`. Default: as the size of the files suggests.
    #[arg(long = "chunk", value_name = "DURATION", value_parser = duration)]
    pub chunk_us: Option<i64>,
    /// Return once the job has begun.
    #[arg(long)]
    pub detach: bool,
    /// Who begins it.
    #[arg(long, env = "USER", default_value = "", hide_env_values = true)]
    pub author: String,
}

#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Show a job.
    Show { id: u64 },
    /// Follow a job until it ends.
    Watch { id: u64 },
    /// Stop a job for a while; what it has done stays done.
    Pause { id: u64 },
    /// Let a paused job go on where it stopped.
    Resume { id: u64 },
    /// Give a job up; rows that it stored stay.
    Cancel { id: u64 },
}

/// How a file is loaded.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Names this load: the same producer stores the same batches once, however often they are sent.
    /// Default: made from the file's bytes, the view's version and the batch size.
    #[arg(long)]
    pub producer: Option<String>,
    /// Rows in one batch.
    #[arg(long, default_value_t = 16_384, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch_rows: u32,
    /// Column of the file with the event time.
    #[arg(long, value_name = "COL")]
    pub event_timestamp: Option<String>,
}

/// What a join counts, and which columns it gives.
#[derive(Debug, clap::Args)]
pub struct JoinHow {
    /// Column of the spine with the time of each row.
    #[arg(long, default_value = cairn_client::command::EVENT_TIMESTAMP, value_name = "COL")]
    pub event_timestamp: String,
    /// One created-time limit for all rows instead of each row's own time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub created_as_of: Option<Timestamp>,
    /// Let corrections made after a row's time count too.
    #[arg(long)]
    pub ignore_created: bool,
    /// Also give the status of each value.
    #[arg(long)]
    pub statuses: bool,
    /// Name columns `view__feature`.
    #[arg(long)]
    pub full_feature_names: bool,
}

#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Join a spine at a moment that nothing written later changes, and keep how, under a name.
    Create(DatasetCreateArgs),
    /// Make a dataset again, on any node, and check that it has the same bytes.
    Rebuild(DatasetRebuildArgs),
    /// List the datasets of the project.
    List,
    /// Show how a dataset was made.
    Show(DatasetShowArgs),
}

#[derive(Debug, clap::Args)]
pub struct DatasetCreateArgs {
    /// Name of the dataset; it never changes.
    pub name: String,
    /// A feature service, or features such as `driver_stats:rating,driver_stats:trips_today`; `driver_stats:` means all
    /// of that view.
    #[arg(value_name = "SERVICE|VIEW:[FEATURE],…")]
    pub features: String,
    /// Parquet or CSV file with the join keys and a time for each row; it is kept.
    pub spine: PathBuf,
    /// Where the training set goes, .parquet or .csv.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub how: JoinHow,
    /// Only what was committed by then. Default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub known_as_of: Option<Timestamp>,
    /// What it is for.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub description: String,
    /// Who makes it.
    #[arg(long, env = "USER", default_value = "", hide_env_values = true)]
    pub author: String,
}

#[derive(Debug, clap::Args)]
pub struct DatasetRebuildArgs {
    /// Name of the dataset.
    pub name: String,
    /// Where the training set goes, in the format it was made in.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct DatasetShowArgs {
    /// Name of the dataset.
    pub name: String,
}

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    Linearizable,
    Session,
    Bounded,
    Stale,
}

#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    /// How fresh the answer must be.
    #[arg(long, value_enum)]
    pub level: Option<LevelArg>,
    /// With `--level bounded`: oldest acceptable state, milliseconds.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    pub bounded_ms: u64,
    /// See at least this write, such as `1@204`; a write prints its token.
    #[arg(long)]
    pub token: Option<String>,
    /// Only what Cairn knew at that time (RFC 3339, or microseconds since 1970).
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub known_as_of: Option<Timestamp>,
}

#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// A feature service, or features such as `driver_stats:rating,driver_stats:trips_today`; `driver_stats:` means all
    /// of that view.
    #[arg(value_name = "SERVICE|VIEW:[FEATURE],…")]
    pub features: String,
    /// Entity keys; repeat for composite keys. One value counts for all rows; write `\,` for a comma in a value.
    #[arg(long = "entity", required = true, value_name = "KEY=VALUE,…", value_parser = entity)]
    pub entities: Vec<EntityArg>,
    /// Event time the answer is about (RFC 3339, or microseconds since 1970). Default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub as_of: Option<Timestamp>,
    /// Also show whether each value is present, null, not found or too old.
    #[arg(long)]
    pub statuses: bool,
    /// Name columns `view__feature`.
    #[arg(long)]
    pub full_feature_names: bool,
    #[command(flatten)]
    pub read: ReadArgs,
}

#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// A feature service, or features such as `driver_stats:rating,driver_stats:trips_today`; `driver_stats:` means all
    /// of that view.
    #[arg(value_name = "SERVICE|VIEW:[FEATURE],…")]
    pub features: String,
    /// Parquet or CSV file with the join keys and a time for each row.
    pub spine: PathBuf,
    /// Where the training set goes, .parquet or .csv. Without it the first rows are shown.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub how: JoinHow,
    /// Rows in one batch of the spine.
    #[arg(long, default_value_t = 16_384, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch_rows: u32,
    #[command(flatten)]
    pub read: ReadArgs,
}

#[derive(Debug, clap::Args)]
pub struct SegmentsArgs {
    /// Of this feature view only.
    #[arg(long, value_name = "VIEW")]
    pub view: Option<String>,
    /// A folder for the files: plain Parquet, which DuckDB, Polars and Spark read. Made when absent.
    #[arg(long, value_name = "FOLDER")]
    pub fetch: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct SqlArgs {
    /// One query. `-` or nothing: from standard input. Tables: a feature view's name (newest rows), `latest('view@2')`,
    /// `history('view')`, `as_of('view', '2026-05-01')`, `system.model_versions`; `SHOW TABLES` lists them.
    #[arg(conflicts_with = "file")]
    pub query: Option<String>,
    /// The query in a file.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where the rows go, .parquet or .csv. Without it the first rows are shown.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct PredictArgs {
    /// Deployment that answers.
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    pub deployment: Option<String>,
    /// Instead of a deployment: one version of a model.
    #[arg(long, value_name = "NAME@VERSION|NAME:ALIAS", value_parser = model_ref)]
    pub model: Option<ModelRef>,
    /// Entity keys; repeat for composite keys. One value counts for all rows; write `\,` for a comma in a value.
    #[arg(long = "entity", required = true, value_name = "KEY=VALUE,…", value_parser = entity)]
    pub entities: Vec<EntityArg>,
    /// Event time of the features (RFC 3339, or microseconds since 1970). Default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub as_of: Option<Timestamp>,
    /// Also show the feature values the model saw.
    #[arg(long)]
    pub features: bool,
    #[command(flatten)]
    pub read: ReadArgs,
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Store a model file as a new, immutable version.
    Register(RegisterArgs),
    /// List the models of the project.
    List,
    /// Show a model, or one version of it.
    Show {
        #[arg(value_name = "NAME[@VERSION|:ALIAS]", value_parser = model_ref)]
        model: ModelRef,
    },
    /// Point an alias at a version.
    Promote(PromoteArgs),
    /// Show every move of every alias: what served when.
    History { model: String },
    /// Fetch the file of a version; its bytes are verified.
    Download {
        #[arg(value_name = "NAME@VERSION|NAME:ALIAS", value_parser = model_ref)]
        model: ModelRef,
        /// Where the file goes. Default: the name it was registered with, in this folder.
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub struct RegisterArgs {
    pub model: String,
    /// The model file, such as `delay.onnx`.
    pub file: PathBuf,
    /// Feature service the model reads.
    #[arg(long = "service", value_name = "SERVICE")]
    pub service: Option<String>,
    /// A measured quality, such as `auc=0.71`. May be given several times.
    #[arg(long = "metric", value_name = "NAME=NUMBER", value_parser = metric)]
    pub metrics: Vec<(String, f64)>,
    #[arg(long = "tag", value_name = "NAME=TEXT", value_parser = tag)]
    pub tags: Vec<(String, String)>,
    /// The run that trained it.
    #[arg(long)]
    pub run: Option<String>,
    /// Git commit of the training code.
    #[arg(long)]
    pub code_commit: Option<String>,
    /// Token of the data it was trained on; `cairn join` prints one.
    #[arg(long = "trained-on", value_name = "TOKEN")]
    pub trained_on: Option<String>,
    #[arg(long)]
    pub description: Option<String>,
    /// Who registers it.
    #[arg(long, env = "USER", default_value = "", hide_env_values = true)]
    pub author: String,
}

#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    pub model: String,
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub version: u32,
    #[arg(long)]
    pub alias: String,
    /// Only when the alias points at this version now, or `none`: when it does not exist.
    #[arg(long, value_name = "VERSION|none", value_parser = expected)]
    pub expect: Option<Expected>,
    /// Why, for the history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Who promotes it.
    #[arg(long, env = "USER", default_value = "", hide_env_values = true)]
    pub author: String,
}

#[derive(Debug, clap::Args)]
pub struct LineageArgs {
    /// Where to start, such as `model_version:default/delay@1` or `feature_view:default/driver_stats@1`.
    #[arg(value_name = "NODE")]
    pub start: String,
    /// What it was made from (the default).
    #[arg(long, conflicts_with = "down")]
    pub up: bool,
    /// What was made from it.
    #[arg(long)]
    pub down: bool,
    /// Steps to follow.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub depth: u32,
}

/// `KEY=VALUE,VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityArg {
    pub key: String,
    pub values: Vec<String>,
}

/// A model and perhaps which version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    pub name: String,
    pub which: Option<VersionOf>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| error.to_string())
}

/// `1d`, `6h`, `90s`: microseconds.
fn duration(text: &str) -> Result<i64, String> {
    let bad = || format!("`{text}` is no duration; write a number with s, m, h, d or w, such as `1d`");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(bad()),
    };
    let us = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit_s * 1_000_000));
    us.filter(|us| *us > 0).ok_or_else(bad)
}

fn pair(text: &str) -> Result<(&str, &str), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim(), value)),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn entity(text: &str) -> Result<EntityArg, String> {
    let (key, list) = pair(text)?;
    let mut values = vec![String::new()];
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = letter == '\\' && letters.peek() == Some(&',');
        match (letter, values.last_mut()) {
            (',', _) => values.push(String::new()),
            (_, Some(last)) => last.push(if escaped { letters.next().unwrap_or(letter) } else { letter }),
            (_, None) => {}
        }
    }
    Ok(EntityArg { key: key.to_owned(), values })
}

fn metric(text: &str) -> Result<(String, f64), String> {
    let (name, value) = pair(text)?;
    match value.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((name.to_owned(), number)),
        _ => Err(format!("`{value}` is not a finite number")),
    }
}

fn tag(text: &str) -> Result<(String, String), String> {
    pair(text).map(|(name, value)| (name.to_owned(), value.to_owned()))
}

fn version(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(format!("`{text}` is not a version; versions are numbers from 1")),
    }
}

fn model_ref(text: &str) -> Result<ModelRef, String> {
    let (name, which) = match (text.split_once('@'), text.split_once(':')) {
        (Some((name, number)), _) => (name, Some(VersionOf::Number(version(number)?))),
        (None, Some((_, ""))) => return Err("the alias after `:` is empty".to_owned()),
        (None, Some((name, alias))) => (name, Some(VersionOf::Alias(alias.to_owned()))),
        (None, None) => (text, None),
    };
    if name.is_empty() {
        return Err("the model's name is empty".to_owned());
    }
    Ok(ModelRef { name: name.to_owned(), which })
}

fn expected(text: &str) -> Result<Expected, String> {
    match text {
        "none" => Ok(Expected::None),
        number => version(number).map(Expected::Version).map_err(|error| format!("{error}, or `none`")),
    }
}

#[cfg(test)]
mod tests;
