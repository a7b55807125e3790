//! The commands of `cairn`: each asks the client library and prints a table for people or JSON for programs.
//!
//! In reading order: [`args`] (what may be typed), [`output`] (how answers look), [`failure`] (exit codes and hints),
//! then one module for each group of commands.
//!
//! Always true: answers go to standard output, progress and errors to standard error; with `--output json` the field
//! names do not change within a major version.

pub mod args;
mod backtest;
mod cluster;
mod dataset;
mod definitions;
mod failure;
mod ingest;
mod jobs;
mod join;
mod lineage;
mod model;
mod output;
mod plot;
mod progress;
mod read;
mod segments;
mod sql;
mod status;

use args::{Args, Command, Global};
use cairn_client::{Client, Options};
use failure::{Failure, Outcome};

/// Carries out one command line.
pub async fn run(args: Args) -> Outcome {
    let session = Session::open(args.global).await?;
    match args.command {
        Command::Plan(files) => definitions::plan(&session, &files).await,
        Command::Apply(files) => definitions::apply(&session, &files).await,
        Command::Definitions => definitions::list(&session).await,
        Command::Ingest(args) => ingest::load(&session, ingest::Load::rows(args)).await,
        Command::Delete(args) => ingest::load(&session, ingest::Load::deletions(args)).await,
        Command::Backfill(args) => jobs::backfill(&session, args).await,
        Command::Jobs { command } => jobs::jobs(&session, command).await,
        Command::Get(args) => read::get(&session, args).await,
        Command::Dataset(command) => dataset::dataset(&session, command).await,
        Command::Backtest(args) => backtest::backtest(&session, args).await,
        Command::Join(args) => join::join(&session, args).await,
        Command::Segments(args) => segments::segments(&session, args).await,
        Command::Sql(args) => sql::sql(&session, args).await,
        Command::Predict(args) => read::predict(&session, args).await,
        Command::Model(command) => model::run(&session, command).await,
        Command::Lineage(args) => lineage::lineage(&session, &args).await,
        Command::Status => status::status(&session).await,
        Command::Cluster(command) => cluster::run(&session, command).await,
    }
}

/// What every command works with.
struct Session {
    client: Client,
    global: Global,
}

impl Session {
    async fn open(global: Global) -> Result<Self, Failure> {
        let timeout = std::time::Duration::from_secs(global.timeout_s);
        // A person waits at the terminal: no node there is said at once.
        let options = Options { deadline: timeout, first_connect: std::time::Duration::ZERO, ..Options::default() };
        let client = Client::with_options(&global.node, options).await?;
        Ok(Self { client, global })
    }

    fn project(&self) -> &str {
        &self.global.project
    }
}
