//! Reads of a node that is there already, at a fixed rate: what another program measures while it does something else to the
//! node. Prints one line of JSON.
//!
//! Always true: a request is due at its time whether or not those before it are answered; its latency counts from then, or
//! from when it was sent where nothing but the timer was late.

use crate::cairn::{Asking, Ring};
use crate::error::{Error, Result};
use crate::load::{Pace, Turn, closed_loop};
use crate::noise::CpuTimes;
use crate::stats::{Latencies, Measured};
use crate::workload::{key_lists, question};
use cairn_client::command::GetOnlineFeatures;
use cairn_client::{DEFAULT_PROJECT, Timestamp, read};
use clap::Args;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Different requests, asked over and over.
const REQUESTS: usize = 256;

/// Load on a node that somebody else started.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Paced {
    /// HOST:PORT of the node.
    #[arg(long)]
    pub node: String,
    /// Feature view that is read, all features of it; its join key is `user_id`.
    #[arg(long)]
    pub view: String,
    /// Ids from 0 to here are asked for.
    #[arg(long)]
    pub entities: u64,
    /// Entities of a request.
    #[arg(long, default_value_t = 100)]
    pub rows: usize,
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// Requests a second of all clients together; 0 = each when the one before is answered.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Event time that is asked about, microseconds since 1970. Default: the newest values
    #[arg(long)]
    pub as_of_us: Option<i64>,
}

/// # Errors
/// What the node refuses; `Wrong` for an answer of another size.
pub async fn run(ask: &Paced) -> Result<()> {
    let questions: Arc<[_]> = key_lists(ask.entities, ask.rows, REQUESTS, 1)
        .iter()
        .map(|ids| question(ids))
        .collect::<Result<Vec<_>>>()?
        .into();
    let clients = ask.clients.max(1);
    let mut asking = Vec::new();
    for client in 0..clients {
        let command = GetOnlineFeatures {
            features: Some(vec![ask.view.clone()]),
            as_of: ask.as_of_us.map(Timestamp),
            ..read::online(DEFAULT_PROJECT)
        };
        let ring = Ring { batches: Arc::clone(&questions), at: client * REQUESTS / clients };
        asking.push(Asking::of(&ask.node, command, ring).await?);
    }
    let pace = Pace {
        warm_up: Duration::from_secs_f64((ask.seconds / 8.0).min(1.0)),
        measure: Duration::from_secs_f64(ask.seconds),
    };
    let measured = match ask.rate {
        0 => closed_loop(asking, pace).await?,
        rate => at_rate(asking, pace, f64::from(rate)).await?,
    };
    let us = |share| measured.latencies.at(share).as_nanos() as f64 / 1e3;
    let line = json!({
        "requests": measured.latencies.count(),
        "seconds": measured.elapsed.as_secs_f64(),
        "requests_per_s": measured.requests_per_second(),
        "p50_us": us(0.5),
        "p99_us": us(0.99),
        "longest_us": measured.latencies.longest().as_nanos() as f64 / 1e3,
        "other_cores": measured.other_cores,
    });
    println!("{line}");
    Ok(())
}

/// `rate` requests a second, in turn by each client.
async fn at_rate<T: Turn>(clients: Vec<T>, pace: Pace, rate: f64) -> Result<Measured> {
    let each = Duration::from_secs_f64(clients.len() as f64 / rate);
    let apart = Duration::from_secs_f64(1.0 / rate);
    let (before, begin) = (CpuTimes::now(), Instant::now());
    let measured_from = begin + pace.warm_up;
    let until = measured_from + pace.measure;
    let mut tasks = JoinSet::new();
    for (mut client, number) in clients.into_iter().zip(0u32..) {
        tasks.spawn(async move {
            let (mut rows, mut latencies) = (0u64, Latencies::new());
            let mut due = begin + apart * number;
            client.turn().await?; // connects
            while due < until {
                let waited = Instant::now() < due;
                tokio::time::sleep_until(due).await;
                let from = if waited { Instant::now() } else { due };
                let read = client.turn().await?;
                if due >= measured_from {
                    rows += read as u64;
                    latencies.record(from.elapsed());
                }
                due += each;
            }
            Ok::<_, Error>((rows, latencies))
        });
    }
    let (mut rows, mut latencies) = (0, Latencies::new());
    while let Some(done) = tasks.join_next().await {
        let (read, of_one) = done.map_err(|error| Error::Internal(error.to_string()))??;
        rows += read;
        latencies.merge(&of_one);
    }
    let other_cores = before.and_then(|before| before.other_cores_since()).unwrap_or(0.0);
    Ok(Measured { rows, elapsed: measured_from.elapsed(), latencies, other_cores })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers at once, but for the third request, which takes long.
    struct Stalls(Arc<AtomicUsize>);

    impl Turn for Stalls {
        async fn turn(&mut self) -> Result<usize> {
            if self.0.fetch_add(1, Ordering::Relaxed) == 2 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(1)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_behind_a_slow_answer_counts_as_slow() {
        let asked = Arc::new(AtomicUsize::new(0));
        let pace = Pace { warm_up: Duration::ZERO, measure: Duration::from_millis(400) };
        let measured = at_rate(vec![Stalls(Arc::clone(&asked))], pace, 100.0).await.unwrap();
        assert_eq!(measured.latencies.count(), 40);
        assert_eq!((measured.rows, asked.load(Ordering::Relaxed)), (40, 41));
        // One is slow for 200 ms, and nineteen wait behind it, each 10 ms less.
        let slowest = Duration::from_millis(200);
        assert!(measured.latencies.longest() >= slowest, "{:?}", measured.latencies.longest());
        assert!(measured.latencies.at(0.8) >= Duration::from_millis(100), "{:?}", measured.latencies.at(0.8));
        assert!(measured.latencies.at(0.4) < Duration::from_millis(10), "{:?}", measured.latencies.at(0.4));
    }
}
