//! `cairn-jepsen`: faults on real processes, long form. `jepsen/README.md` says how to read what it prints.

use cairn_jepsen::{kills, mixed, nemesis, net, selftest, workloads};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(about = "Faults on real cairnd processes: every promise must hold. Exit code 1 when one does not.")]
struct Args {
    /// The `cairnd` to run.
    #[arg(long)]
    cairnd: PathBuf,
    /// Mixed faults for this long.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Decides which faults come when, and what clients ask.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// A TCP proxy before each node, which needs no rights; or network namespaces, which need root and can only be cut.
    #[arg(long, value_enum, default_value_t = net::Kind::Proxy)]
    network: net::Kind,
    /// Each node has a small disk of its own, which can be filled; needs root.
    #[arg(long)]
    small_disks: bool,
    /// Kinds of faults [default: all]
    #[arg(long, value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Promises under test [default: all]
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Data, logs, history and timeline are kept here instead of in a temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The older form: so many times kill -9, half on a single node and half on three.
    #[arg(long, conflicts_with_all = ["nemesis", "workload", "self_test"])]
    kills: Option<usize>,
    /// Tries each seeded bug; `--cairnd` must be built with the feature `seeded-bugs`.
    #[arg(long)]
    self_test: bool,
    /// The test binary of cairn-consensus, for the bugs that its simulation must catch.
    #[arg(long, requires = "self_test")]
    simulation: Option<PathBuf>,
    /// Bugs to try [default: all]
    #[arg(long, value_delimiter = ',', requires = "self_test")]
    bug: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: the harness broke, which is no verdict: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> cairn_jepsen::Result<bool> {
    let temporary = tempfile::Builder::new().prefix("cairn-jepsen-").tempdir()?;
    let folder = args.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let or_all = |named: Vec<String>, all: &[&str]| match named.iter().all(String::is_empty) {
        true => all.iter().map(|&name| name.to_owned()).collect(),
        false => named,
    };
    if let Some(kills) = args.kills {
        return only_kills(&args, kills, &folder).await;
    }
    let cuts_only = args.network == net::Kind::Namespaces;
    let possible = |kind: &&str| {
        !(cuts_only && nemesis::PROXY_ONLY.contains(kind)) && (args.small_disks || *kind != nemesis::SMALL_DISKS_ONLY)
    };
    let kinds: Vec<&str> = nemesis::ALL.into_iter().filter(possible).collect();
    let plan = mixed::Plan {
        cairnd: args.cairnd,
        nodes: args.nodes,
        network: args.network,
        small_disks: args.small_disks,
        lasts: Duration::try_from_secs_f64(args.minutes * 60.0)?,
        seed: args.seed,
        nemeses: or_all(args.nemesis, &kinds),
        workloads: or_all(args.workload, &workloads::ALL),
    };
    if args.self_test {
        return tokio::task::spawn_blocking(move || {
            selftest::run(&plan, &args.bug, args.simulation.as_deref(), &folder)
        })
        .await?;
    }
    let verdict = mixed::run(&plan, &folder).await?;
    print!("{}", verdict.print());
    if !verdict.holds() && args.folder.is_none() {
        println!("kept in {}", temporary.keep().display());
    }
    Ok(verdict.holds())
}

async fn only_kills(args: &Args, kills: usize, folder: &Path) -> cairn_jepsen::Result<bool> {
    let mut holds = true;
    for (nodes, kills) in [(1, kills.div_ceil(2)), (3, kills / 2)] {
        let plan = kills::Plan { cairnd: args.cairnd.clone(), nodes, kills, writers: 4, seed: args.seed };
        let folder = folder.join(format!("{nodes}-nodes"));
        std::fs::create_dir_all(&folder)?;
        let verdict = kills::run(plan, &folder).await?;
        print!("{}", verdict.print());
        holds &= verdict.holds();
    }
    Ok(holds)
}
