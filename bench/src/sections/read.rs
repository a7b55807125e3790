//! Online features by key over `DoExchange`: Cairn, its ceiling, and Redis in both layouts.

use super::{Bench, discard};
use crate::args::Load;
use crate::cairn::{self, Asking, EventTimes, Ring, Table};
use crate::echo::{self, EchoProcess};
use crate::error::Result;
use crate::load::closed_loop;
use crate::machine::resident_mib;
use crate::peers::redis::{Durability, Layout, OwnLoad, Redis, Request, Requesting, read_request};
use crate::report::{Cell, count};
use crate::stats::{Measured, ratio};
use crate::workload::{Columns, FEATURES, key_lists, question};
use cairn_client::local::LocalCluster;
use serde_json::json;
use std::sync::Arc;

/// Entities in the prepared requests of a cell, together: enough that no cache of a few requests helps.
const PREPARED_ROWS: usize = 40_000;
const PREPARED_REQUESTS: usize = 4_000;

/// # Errors
/// The first failure of any system.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let entities = bench.plan.entities;
    let folder = bench.subfolder("read")?;
    let cluster = LocalCluster::start(&bench.cairnd, &folder, 1, &[]).await?;
    let address = cluster.addresses();
    let times = EventTimes::new();
    let table = Table { name: "read", columns: Columns::plain(FEATURES), models: vec![] };
    table.define(std::slice::from_ref(&address), &times).await?;
    let took = table.fill(&address, entities, &times).await?;
    table.check(&address, entities).await?;
    let echo = EchoProcess::start().await?;
    let redis = match bench.redis {
        true => Some(Redis::start(&bench.subfolder("read/redis")?, Durability::None).await?),
        false => None,
    };
    if let Some(redis) = &redis {
        redis.fill(&table.columns, entities).await?;
    }

    let title = format!("Online read: {FEATURES} float32 features, {entities} entities, zipf-like keys");
    bench.report.table(&title, "entities", "Cairn ÷ it");
    let mut busiest = None;
    for load in bench.plan.read.clone() {
        let hash = cell(bench, load, &table, &address, &echo, redis.as_ref()).await?;
        if load.rows == 1 {
            busiest = hash.map(|measured| (load, measured)).or(busiest);
        }
    }
    if let (Some(redis), Some((load, measured))) = (&redis, &busiest) {
        check_client(bench, redis, &table.columns, *load, measured).await?;
    }

    let rows_s = entities as f64 / took.as_secs_f64();
    bench.report.say(&format!(
        "\nThe table was filled over one stream with up to 8 batches of 10000 rows on their way: {} rows/s.",
        count(rows_s)
    ));
    bench.report.note("fill", json!({"rows": entities, "seconds": took.as_secs_f64(), "rows_per_s": rows_s}))?;
    for (what, process) in
        [("cairnd", cluster.process_id(0)), ("redis-server", redis.as_ref().and_then(Redis::process_id))]
    {
        if let Some(mib) = process.and_then(resident_mib) {
            bench.report.say(&format!("Resident memory of {what} after all reads: {mib:.0} MiB."));
            let what = format!("{what} after reads");
            bench.report.note("memory", json!({"what": what, "entities": entities, "resident_mib": mib}))?;
        }
    }
    if let Some(redis) = redis {
        redis.stop().await?;
    }
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

/// Returns what Redis did with a hash an entity.
async fn cell(
    bench: &mut Bench,
    load: Load,
    table: &Table,
    address: &str,
    echo: &EchoProcess,
    redis: Option<&Redis>,
) -> Result<Option<Measured>> {
    let cell = Cell { section: "read", rows: load.rows, clients: load.clients };
    let keys = prepared_keys(bench.plan.entities, load.rows);
    let questions: Arc<[_]> = keys.iter().map(|keys| question(keys)).collect::<Result<Vec<_>>>()?.into();
    let ring = |client: usize| Ring { batches: Arc::clone(&questions), at: offset(client, load.clients, keys.len()) };

    let mut clients = Vec::new();
    for client in 0..load.clients {
        clients.push(table.reader(address, ring(client)).await?);
    }
    let measured = closed_loop(clients, bench.plan.pace).await?;
    let cairn_rows_s = measured.rows_per_second();
    bench.report.cell(cell, cairn::SYSTEM, &measured, None)?;

    let mut clients = Vec::new();
    for client in 0..load.clients {
        clients.push(Asking::of_echo(&echo.address, ring(client)).await?);
    }
    let measured = closed_loop(clients, bench.plan.pace).await?;
    bench.report.cell(cell, echo::SYSTEM, &measured, Some(cairn_rows_s))?;

    let mut hash = None;
    let Some(redis) = redis else { return Ok(hash) };
    for layout in Layout::ALL {
        let requests: Vec<Request> = keys.iter().map(|keys| read_request(layout, &table.columns, keys)).collect();
        let requests = Arc::from(requests);
        let mut clients = Vec::new();
        for client in 0..load.clients {
            let at = offset(client, load.clients, keys.len());
            clients.push(Requesting::new(redis, &requests, at, layout.read_name()).await?);
        }
        let measured = closed_loop(clients, bench.plan.pace).await?;
        bench.report.cell(cell, layout.read_name(), &measured, Some(cairn_rows_s))?;
        if layout == Layout::Hash {
            hash = Some(measured);
        }
    }
    Ok(hash)
}

/// Whether Redis is as fast with this program's client as with its own load generator.
async fn check_client(
    bench: &mut Bench,
    redis: &Redis,
    columns: &Columns,
    load: Load,
    measured: &Measured,
) -> Result<()> {
    let requests = (measured.requests_per_second() * bench.plan.pace.measure.as_secs_f64()).max(1_000.0) as u64;
    let own = OwnLoad { clients: load.clients, requests };
    let Some(own) = redis.own_benchmark(columns, bench.plan.entities, &own).await else { return Ok(()) };
    let Some(share) = ratio(measured.requests_per_second(), own) else { return Ok(()) };
    bench.report.say(&format!(
        "\nCheck of the Redis client: redis-benchmark (C) makes {} HMGET/s with {} connections, this program {}: {share:.2}.",
        count(own),
        load.clients,
        count(measured.requests_per_second()),
    ));
    let line = json!({"clients": load.clients, "redis_benchmark_requests_per_s": own,
                      "requests_per_s": measured.requests_per_second(), "ratio": share});
    bench.report.note("redis_client_check", line)
}

/// Key lists of a cell's requests.
pub fn prepared_keys(entities: u64, rows: usize) -> Vec<Vec<i64>> {
    key_lists(entities, rows, (PREPARED_ROWS / rows.max(1)).clamp(1, PREPARED_REQUESTS), rows as u64)
}

/// Where a client begins in the prepared requests, so that clients do not ask for the same.
pub fn offset(client: usize, clients: usize, requests: usize) -> usize {
    client * requests / clients.max(1)
}
