//! Every published number of Cairn, measured on this machine, side by side with peers: `make bench`.
//!
//! In reading order:
//! - [`args`]: the command line, and the plan of cells it makes
//! - [`sections`]: what is measured: start, read, predict, ingest; replication, failover, catch-up, idle
//! - [`load`]: the closed loop that every system is loaded by; [`workload`]: the rows and keys it sends
//! - [`paced`]: reads at a fixed rate, for bench/sql
//! - [`cairn`], [`echo`], [`disk`], [`peers`]: Cairn, its two ceilings, Redis and etcd, as clients of that loop
//! - [`stats`], [`noise`], [`machine`], [`report`]: percentiles, disturbance, conditions, and where it all goes
//!
//! Always true: everything runs on 127.0.0.1, in one temporary folder, for a bounded time; only processes this program
//! started are ended, each by its id; a wrong answer or a failed request ends the run without a number.
//! `bench/README.md` defines each number.

mod args;
mod cairn;
mod disk;
mod echo;
mod error;
mod load;
mod machine;
mod noise;
mod paced;
#[path = "../peers/mod.rs"]
mod peers;
mod report;
mod sections;
mod stats;
mod workload;

pub use error::{Error, Result};

use args::{Args, Plan, Role, Section};
use clap::Parser;
use report::Report;
use sections::{Bench, catch_up, failover, idle, ingest, predict, read, replication, start};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// The flights example of the checkout this was built in.
const MODELS: &str = "client/examples/flights/models";

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.role {
        Some(Role::Echo) => echo::serve().await,
        Some(Role::Paced(ask)) => paced::run(&ask).await,
        // Dropping the run ends its processes and removes its folder.
        None => tokio::select! {
            outcome = Box::pin(run(args)) => outcome,
            () = told_to_stop() => Err(Error::Signal),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let began = Instant::now();
    let plan = Plan::new(&args);
    let mut report = Report::new(args.out.as_deref())?;
    let cairnd = match args.cairnd {
        Some(path) => path,
        None => cairn_client::local::cairnd()?,
    };
    let parent = args.folder.unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent).map_err(Error::file(&parent))?;
    let folder = tempfile::Builder::new().prefix("cairn-bench-").tempdir_in(&parent).map_err(Error::file(&parent))?;
    let redis = if args.no_peers { None } else { peers::redis::version().await };
    let etcd = if args.no_peers { None } else { peers::etcd::version().await };
    let missing = |package: &str| format!("{package} is not installed (apt-get install {package})");
    let peers = match args.no_peers {
        true => "left out (--no-peers)".to_owned(),
        false => {
            let redis = redis.clone().unwrap_or_else(|| missing("redis-server"));
            format!("{redis}; {}", etcd.clone().unwrap_or_else(|| missing("etcd-server")))
        }
    };

    report.say("# Cairn, measured\n");
    let conditions = machine::conditions(&cairnd, folder.path(), &peers);
    for (name, text) in &conditions {
        report.say(&format!("- {name}: {text}"));
    }
    report.say(&format!(
        "- cells: closed loop, {:.1} s each after {:.1} s of warming up; k = 1000",
        plan.pace.measure.as_secs_f64(),
        plan.pace.warm_up.as_secs_f64()
    ));
    report.note("conditions", machine::as_json(&conditions))?;

    let mut bench = Bench {
        plan,
        report,
        cairnd,
        folder: folder.path().to_owned(),
        models: args.models.unwrap_or_else(|| PathBuf::from(MODELS)),
        redis: redis.is_some(),
        etcd: etcd.is_some(),
    };
    for section in bench.plan.sections.clone() {
        match section {
            Section::Start => start::run(&mut bench).await?,
            Section::Read => read::run(&mut bench).await?,
            Section::Predict => predict::run(&mut bench).await?,
            Section::Ingest => ingest::run(&mut bench).await?,
            Section::Replication => replication::run(&mut bench).await?,
            Section::Failover => failover::run(&mut bench).await?,
            Section::CatchUp => catch_up::run(&mut bench).await?,
            Section::Idle => idle::run(&mut bench).await?,
        }
    }
    bench.report.close(began.elapsed());
    Ok(())
}

async fn told_to_stop() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}
