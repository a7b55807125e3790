//! Durable writes: each writer sends a batch and waits until it is on disk (three nodes: on the disks of a majority).

use super::{Bench, discard};
use crate::args::Load;
use crate::cairn::{self, EventTimes, Ring, Table};
use crate::disk::{WRITE_BYTES, fsync_floor};
use crate::error::Result;
use crate::load::closed_loop;
use crate::peers::redis::{Durability, Layout, Redis, Request, Requesting, write_request};
use crate::report::{Cell, count, time};
use crate::stats::Measured;
use crate::workload::{Columns, FEATURES, key_lists};
use cairn_client::local::LocalCluster;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Entities that are written to; a row's key is one of these, zipf-like.
const KEYS: u64 = 1_000_000;
/// Rows in the prepared batches of a cell, together.
const PREPARED_ROWS: usize = 40_000;
const PREPARED_BATCHES: usize = 1_000;

/// # Errors
/// The first failure of any system.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let one_node = one_node(bench).await?;
    three_nodes(bench, &one_node).await
}

/// One node beside Redis. Returns the rows/s of each cell.
async fn one_node(bench: &mut Bench) -> Result<Vec<f64>> {
    let folder = bench.subfolder("ingest-1")?;
    floor(bench, &folder).await?;
    let cluster = LocalCluster::start(&bench.cairnd, &folder, 1, &[]).await?;
    let (table, times) = (table(), EventTimes::new());
    let addresses: Vec<String> = cluster.nodes().iter().map(|node| node.address.clone()).collect();
    table.define(&addresses, &times).await?;
    let redis = match bench.redis {
        true => Some(Redis::start(&bench.subfolder("ingest-1/redis")?, Durability::Always).await?),
        false => None,
    };

    let title = format!("Durable ingest, one node: rows of {FEATURES} float32 features");
    bench.report.table(&title, "rows", "Cairn ÷ it");
    let mut rates = Vec::new();
    for load in bench.plan.ingest.clone() {
        let cell = Cell { section: "ingest, 1 node", rows: load.rows, clients: load.clients };
        let measured = write(bench, load, &table, &addresses, &times).await?;
        bench.report.cell(cell, cairn::SYSTEM, &measured, None)?;
        rates.push(measured.rows_per_second());
        let Some(redis) = &redis else { continue };
        for layout in Layout::ALL {
            let requests: Vec<Request> =
                prepared_keys(load.rows).iter().map(|keys| write_request(layout, &table.columns, keys)).collect();
            let requests = Arc::from(requests);
            let mut clients = Vec::new();
            for client in 0..load.clients {
                clients.push(Requesting::new(redis, &requests, client, layout.write_name()).await?);
            }
            let peer = closed_loop(clients, bench.plan.pace).await?;
            bench.report.cell(cell, layout.write_name(), &peer, Some(measured.rows_per_second()))?;
        }
    }
    if let Some(redis) = redis {
        redis.stop().await?;
    }
    cluster.stop().await?;
    discard(&folder);
    Ok(rates)
}

/// Three nodes on this one machine and disk; writers are spread over the nodes.
async fn three_nodes(bench: &mut Bench, one_node: &[f64]) -> Result<()> {
    let folder = bench.subfolder("ingest-3")?;
    let cluster = LocalCluster::start(&bench.cairnd, &folder, 3, &[]).await?;
    let (table, times) = (table(), EventTimes::new());
    let addresses: Vec<String> = cluster.nodes().iter().map(|node| node.address.clone()).collect();
    table.define(&addresses, &times).await?;
    let title = format!("Durable ingest, three nodes on this machine: rows of {FEATURES} float32 features");
    bench.report.table(&title, "rows", "1 node ÷ it");
    for (at, load) in bench.plan.ingest.clone().into_iter().enumerate() {
        let cell = Cell { section: "ingest, 3 nodes", rows: load.rows, clients: load.clients };
        let measured = write(bench, load, &table, &addresses, &times).await?;
        bench.report.cell(cell, cairn::SYSTEM, &measured, one_node.get(at).copied())?;
    }
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

async fn write(bench: &Bench, load: Load, table: &Table, addresses: &[String], times: &EventTimes) -> Result<Measured> {
    write_keys(bench, load, &prepared_keys(load.rows), table, addresses, times).await
}

/// Writers in a closed loop, spread over the nodes at `addresses`, each batch of one of the lists of `keys`.
pub(super) async fn write_keys(
    bench: &Bench,
    load: Load,
    keys: &[Vec<i64>],
    table: &Table,
    addresses: &[String],
    times: &EventTimes,
) -> Result<Measured> {
    // The event times are replaced as each batch is sent.
    let batches: Result<Vec<_>> = keys.iter().map(|keys| table.columns.batch(keys, 0)).collect();
    let batches: Arc<[_]> = batches?.into();
    let mut clients = Vec::new();
    for (client, address) in (0..load.clients).zip(addresses.iter().cycle()) {
        clients.push(table.writer(address, Ring { batches: Arc::clone(&batches), at: client }, times).await?);
    }
    closed_loop(clients, bench.plan.pace).await
}

/// The disk alone, in the folder the data goes to.
pub(super) async fn floor(bench: &mut Bench, folder: &Path) -> Result<()> {
    let measured = fsync_floor(folder, bench.plan.fsync).await?;
    let [p50, p99] = [0.5, 0.99].map(|share| measured.latencies.at(share));
    bench.report.say(&format!(
        "\nFloor of durable writes: append {WRITE_BYTES} bytes and fdatasync, one thread: {} a second, p50 {}, p99 {}.",
        count(measured.requests_per_second()),
        time(p50),
        time(p99),
    ));
    let us = |it: std::time::Duration| it.as_nanos() as f64 / 1e3;
    let line = json!({"bytes": WRITE_BYTES, "syncs_per_s": measured.requests_per_second(), "p50_us": us(p50),
                      "p99_us": us(p99), "other_cores": measured.other_cores});
    bench.report.note("fsync_floor", line)
}

pub(super) fn table() -> Table {
    Table { name: "written", columns: Columns::plain(FEATURES), models: vec![] }
}

/// Key lists of a cell's batches: the same for every system.
pub(super) fn prepared_keys(rows: usize) -> Vec<Vec<i64>> {
    key_lists(KEYS, rows, (PREPARED_ROWS / rows.max(1)).clamp(1, PREPARED_BATCHES), 1_000 + rows as u64)
}
