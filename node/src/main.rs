//! `cairnd`: reads its configuration, runs one node until it is told to stop.

use cairn_node::config::{Args, NodeConfig};
use clap::Parser;
use std::process::ExitCode;

/// Three times faster than glibc's on large inference batches, which allocate and free their outputs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged unless `CAIRN_LOG` says otherwise: not every try of an object store that is away, because we say it once.
const LOG: &str = "info,openraft=error,object_store=warn";

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| LOG.into()))
        .with_writer(std::io::stderr)
        .init();
    let config = match NodeConfig::resolve(Args::parse()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("cairn").build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("no runtime: {error}")),
    };
    match runtime.block_on(cairn_node::server::run(config, shutdown_signal())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

async fn shutdown_signal() {
    let interrupt = tokio::signal::ctrl_c();
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM is not handled; use SIGINT to stop cleanly");
            let _ = interrupt.await;
            return;
        }
    };
    tokio::select! {
        _ = interrupt => {}
        _ = terminate.recv() => {}
    }
}
