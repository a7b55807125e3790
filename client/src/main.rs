//! `cairn`, the command line of Cairn. `cairn --help` says what it can do and what its exit codes mean.

use clap::Parser;
use std::process::ExitCode;

mod cli;

#[tokio::main]
async fn main() -> ExitCode {
    let args = cli::args::Args::parse();
    let format = args.global.output;
    match cli::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(format);
            ExitCode::from(failure.exit_code())
        }
    }
}
