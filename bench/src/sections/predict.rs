//! Entity keys in, predictions out: the two models of the flights example on the node that holds the rows, and the same
//! features read without a model.

use super::read::{offset, prepared_keys};
use super::{Bench, discard};
use crate::args::Load;
use crate::cairn::{Asking, EventTimes, Ring, Table, register};
use crate::error::Result;
use crate::load::closed_loop;
use crate::report::Cell;
use crate::workload::{Columns, question};
use cairn_client::local::LocalCluster;
use std::sync::Arc;

/// Deployments, and the lines they are in the table. The files are `delay_trees.onnx` and `delay_mlp.onnx`.
const MODELS: [(&str, &str); 2] = [("delay_trees", "Cairn, trees"), ("delay_mlp", "Cairn, MLP")];

/// The models' inputs in order, each with about the range it has in the flights, so that trees are walked as widely as
/// they would be. Answers mean nothing here; their cost does.
const INPUTS: [(&str, f32, f32); 29] = [
    ("hour_sin", -1.0, 1.0),
    ("hour_cos", -1.0, 1.0),
    ("weekday_sin", -1.0, 1.0),
    ("weekday_cos", -1.0, 1.0),
    ("log_distance", 4.4, 8.5),
    ("scheduled_speed", 150.0, 500.0),
    ("dew_point_spread", 0.0, 40.0),
    ("gust_excess", 0.0, 15.0),
    ("route_against_carrier", 0.0, 3.0),
    ("origin_trend", -30.0, 60.0),
    ("temp", 10.0, 100.0),
    ("humid", 12.0, 100.0),
    ("wind_speed", 0.0, 40.0),
    ("precip", 0.0, 0.5),
    ("pressure", 985.0, 1040.0),
    ("visib", 0.0, 10.0),
    ("built", 1956.0, 2013.0),
    ("engines", 1.0, 4.0),
    ("seats", 2.0, 450.0),
    ("carrier_arr_delay_1d", -30.0, 90.0),
    ("carrier_late_share_1d", 0.0, 0.8),
    ("carrier_late_share_7d", 0.0, 0.6),
    ("origin_flights_1d", 100.0, 400.0),
    ("origin_dep_delay_1d", -5.0, 70.0),
    ("origin_late_share_1d", 0.0, 0.7),
    ("route_flights_7d", 0.0, 200.0),
    ("route_arr_delay_1d", -40.0, 100.0),
    ("route_arr_delay_7d", -30.0, 60.0),
    ("route_late_share_7d", 0.0, 0.8),
];

/// # Errors
/// The first failure.
pub async fn run(bench: &mut Bench) -> Result<()> {
    let entities = bench.plan.entities;
    let folder = bench.subfolder("predict")?;
    let cluster = LocalCluster::start(&bench.cairnd, &folder, 1, &[]).await?;
    let address = cluster.addresses();
    let times = EventTimes::new();
    let models = MODELS.iter().map(|(name, _)| *name).collect();
    let table = Table { name: "predict", columns: Columns::ranged(&INPUTS), models };
    table.define(std::slice::from_ref(&address), &times).await?;
    table.fill(&address, entities, &times).await?;
    table.check(&address, entities).await?;
    for (model, _) in MODELS {
        register(&address, &table, model, &bench.models.join(format!("{model}.onnx"))).await?;
    }

    let title = format!("Predictions by key: {} float32 features, {entities} entities", INPUTS.len());
    bench.report.table(&title, "entities", "");
    for load in bench.plan.predict.clone() {
        cell(bench, load, &table, &address).await?;
    }
    cluster.stop().await?;
    discard(&folder);
    Ok(())
}

async fn cell(bench: &mut Bench, load: Load, table: &Table, address: &str) -> Result<()> {
    let cell = Cell { section: "predict", rows: load.rows, clients: load.clients };
    let keys = prepared_keys(bench.plan.entities, load.rows);
    let questions: Arc<[_]> = keys.iter().map(|keys| question(keys)).collect::<Result<Vec<_>>>()?.into();
    let ring = |client: usize| Ring { batches: Arc::clone(&questions), at: offset(client, load.clients, keys.len()) };
    for (model, line) in MODELS {
        let mut clients = Vec::new();
        for client in 0..load.clients {
            clients.push(Asking::of_deployment(address, model, ring(client)).await?);
        }
        let measured = closed_loop(clients, bench.plan.pace).await?;
        bench.report.cell(cell, line, &measured, None)?;
    }
    let mut clients = Vec::new();
    for client in 0..load.clients {
        clients.push(table.reader(address, ring(client)).await?);
    }
    let measured = closed_loop(clients, bench.plan.pace).await?;
    bench.report.cell(cell, "Cairn, features only", &measured, None)
}
