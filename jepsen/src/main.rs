//! `cairn-jepsen`: the long form. Runs one node and three nodes and prints a verdict for each.

use cairn_jepsen::{Plan, run};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about = "kill -9 of real cairnd processes: nothing acknowledged may be lost")]
struct Args {
    /// The `cairnd` to run.
    #[arg(long)]
    cairnd: PathBuf,
    /// Kills, half of them on a single node and half on three.
    #[arg(long, default_value_t = 500)]
    kills: usize,
    #[arg(long, default_value_t = 4)]
    writers: i64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Data and logs are kept here instead of in a temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut holds = true;
    for (nodes, kills) in [(1, args.kills.div_ceil(2)), (3, args.kills / 2)] {
        let plan = Plan { cairnd: args.cairnd.clone(), nodes, kills, writers: args.writers, seed: args.seed };
        match one(plan, args.folder.as_deref()).await {
            Ok(held) => holds &= held,
            Err(error) => {
                eprintln!("error: the harness broke, which is no verdict: {error}");
                holds = false;
            }
        }
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn one(plan: Plan, folder: Option<&std::path::Path>) -> cairn_jepsen::Result<bool> {
    let temporary = tempfile::Builder::new().prefix("cairn-jepsen-").tempdir()?;
    let folder = match folder {
        Some(folder) => folder.join(format!("{}-nodes", plan.nodes)),
        None => temporary.path().to_owned(),
    };
    std::fs::create_dir_all(&folder)?;
    let verdict = run(plan, &folder).await?;
    print!("{}", verdict.print());
    Ok(verdict.holds())
}
