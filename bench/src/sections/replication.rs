//! Durable writes on three nodes beside three of etcd: the same rows, one by one and 100 at a time.
//!
//! Both answer when the write is fsynced by a majority. A row of etcd is one put of a packed value, 100 rows are one
//! transaction; a row of Cairn goes over a long `DoPut`, one batch unanswered a writer.

use super::ingest::{floor, prepared_keys, table, write_keys};
use super::{Bench, discard};
use crate::args::Load;
use crate::cairn::{self, EventTimes};
use crate::error::Result;
use crate::load::closed_loop;
use crate::peers::etcd::{Etcd, Writes, Writing};
use crate::report::Cell;
use crate::stats::{Measured, ratio};
use crate::workload::FEATURES;
use cairn_client::local::LocalCluster;
use serde_json::json;
use std::collections::BTreeSet;

const PEER: &str = "etcd";
const SECTION: &str = "replication, 3 nodes";

/// Median rows/s of a cell.
struct Rate {
    load: Load,
    cairn: f64,
    etcd: Option<f64>,
}

/// # Errors
/// The first failure of any system.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let folder = bench.subfolder("replication")?;
    floor(bench, &folder).await?;
    let cluster = LocalCluster::start(&bench.cairnd, &folder, 3, &[]).await?;
    let (table, times) = (table(), EventTimes::new());
    let addresses: Vec<String> = cluster.nodes().iter().map(|node| node.address.clone()).collect();
    table.define(&addresses, &times).await?;
    let etcd = match bench.etcd {
        true => Some(Etcd::start(&bench.subfolder("replication/etcd")?).await?),
        false => None,
    };

    let title = format!("Replicated durable writes, three nodes on this machine: rows of {FEATURES} float32 features");
    bench.report.table(&title, "rows", "Cairn ÷ it");
    let mut rates = Vec::new();
    for load in bench.plan.replication.clone() {
        let cell = Cell { section: SECTION, rows: load.rows, clients: load.clients };
        let keys = distinct(prepared_keys(load.rows));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.plan.rounds {
            let measured = write_keys(bench, load, &keys, &table, &addresses, &times).await?;
            bench.report.cell(cell, cairn::SYSTEM, &measured, None)?;
            ours.push(measured.rows_per_second());
            let Some(etcd) = &etcd else { continue };
            let peer = write_to_etcd(bench, load, &keys, &table.columns, etcd).await?;
            bench.report.cell(cell, PEER, &peer, Some(measured.rows_per_second()))?;
            theirs.push(peer.rows_per_second());
        }
        if let Some(cairn) = median(ours) {
            rates.push(Rate { load, cairn, etcd: median(theirs) });
        }
    }
    if etcd.is_none() {
        bench.report.say("\netcd is not there, so Cairn stands alone: apt-get install etcd-server.");
    }
    goals(bench, &rates)?;
    if let Some(etcd) = etcd {
        etcd.stop().await?;
    }
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

async fn write_to_etcd(
    bench: &Bench,
    load: Load,
    keys: &[Vec<i64>],
    columns: &crate::workload::Columns,
    etcd: &Etcd,
) -> Result<Measured> {
    let writes = Writes::new(columns, keys);
    let mut clients = Vec::new();
    for client in 0..load.clients {
        clients.push(Writing::new(etcd, &writes, client).await?);
    }
    let measured = closed_loop(clients, bench.plan.pace).await?;
    let written: Vec<i64> = keys.first().into_iter().flatten().copied().take(3).collect();
    etcd.check(columns, &written).await?;
    Ok(measured)
}

/// What the goals are about: medians over the rounds, at the most clients of the plan.
fn goals(bench: &mut Bench, rates: &[Rate]) -> Result<()> {
    let busiest = |rows: usize| rates.iter().filter(|rate| rate.load.rows == rows).max_by_key(|it| it.load.clients);
    let (Some(single), Some(many)) = (busiest(1), busiest(100)) else { return Ok(()) };
    let clients = many.load.clients;
    bench.report.say("");
    for (name, ours, theirs, what) in [
        ("batches_to_puts", many.cairn, single.etcd, "Cairn's batches of 100 rows ÷ etcd one by one (goal 12)"),
        (
            "batches_to_transactions",
            many.cairn,
            many.etcd,
            "Cairn's batches of 100 rows ÷ etcd's transactions of 100 (goal 1.5)",
        ),
        ("rows_to_puts", single.cairn, single.etcd, "Cairn one by one ÷ etcd one by one"),
    ] {
        let Some(times) = theirs.and_then(|theirs| ratio(ours, theirs)) else { continue };
        bench.report.say(&format!("- {what}, {clients} writers, medians: {times:.2}"));
        bench.report.note("replication_ratio", json!({"what": name, "writers": clients, "ratio": times}))?;
    }
    Ok(())
}

/// The lists with a key that comes twice in one of them replaced by its next neighbour that does not.
fn distinct(mut lists: Vec<Vec<i64>>) -> Vec<Vec<i64>> {
    for list in &mut lists {
        let mut taken = BTreeSet::new();
        for key in list {
            while !taken.insert(*key) {
                *key += 1;
            }
        }
    }
    lists
}

fn median(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_names_a_key_twice() {
        assert_eq!(distinct(vec![vec![5, 5, 6, 5], vec![5]]), [vec![5, 6, 7, 8], vec![5]]);
    }

    #[test]
    fn the_median_is_one_of_the_rounds() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }
}
