//! The closed loop: each client sends its next request when the answer to the last one is in.
//!
//! Always true: every system is loaded by this same loop, each client a task with a connection of its own; nothing is
//! measured before all clients are connected and warm; a cell ends in bounded time.

use crate::error::{Error, Result};
use crate::noise::CpuTimes;
use crate::stats::{Latencies, Measured};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// A cell that takes this much longer than it should is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a cell takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    pub warm_up: Duration,
    pub measure: Duration,
}

/// One client of one system.
pub trait Turn: Send + 'static {
    /// Sends one request, waits for its whole answer, and checks its size. Returns its rows.
    fn turn(&mut self) -> impl Future<Output = Result<usize>> + Send;
}

struct Share {
    rows: u64,
    latencies: Latencies,
    first: Instant,
    last: Instant,
}

/// Runs all `clients` side by side.
///
/// # Errors
/// The first client's failure; `Stuck` when the cell does not end.
pub async fn closed_loop<T: Turn>(clients: Vec<T>, pace: Pace) -> Result<Measured> {
    let warm = Arc::new(Barrier::new(clients.len()));
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(one_client(client, Arc::clone(&warm), pace));
    }
    let before = CpuTimes::now();
    let limit = pace.warm_up + pace.measure + PATIENCE;
    let shares = tokio::time::timeout(limit, gather(tasks)).await;
    let shares = shares.map_err(|_| Error::Stuck { seconds: limit.as_secs() })??;
    let other_cores = before.and_then(|before| before.other_cores_since()).unwrap_or(0.0);

    let mut latencies = Latencies::new();
    shares.iter().for_each(|share| latencies.merge(&share.latencies));
    let first = shares.iter().map(|share| share.first).min();
    let last = shares.iter().map(|share| share.last).max();
    let elapsed = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
    Ok(Measured { rows: shares.iter().map(|share| share.rows).sum(), elapsed, latencies, other_cores })
}

async fn gather(mut tasks: JoinSet<Result<Share>>) -> Result<Vec<Share>> {
    let mut shares = Vec::with_capacity(tasks.len());
    // Leaving early drops the set, which aborts the others: they may wait at the barrier for the one that failed.
    while let Some(done) = tasks.join_next().await {
        shares.push(done.map_err(|error| Error::Internal(error.to_string()))??);
    }
    Ok(shares)
}

async fn one_client<T: Turn>(mut client: T, warm: Arc<Barrier>, pace: Pace) -> Result<Share> {
    client.turn().await?; // connects
    let until = Instant::now() + pace.warm_up;
    while Instant::now() < until {
        client.turn().await?;
    }
    warm.wait().await;
    let first = Instant::now();
    let until = first + pace.measure;
    let mut share = Share { rows: 0, latencies: Latencies::new(), first, last: first };
    while share.last < until {
        let started = share.last;
        share.rows += client.turn().await? as u64;
        share.last = Instant::now();
        share.latencies.record(share.last.duration_since(started));
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { warm_up: Duration::ZERO, measure: Duration::from_millis(30) };

    struct Waiting(Duration);

    impl Turn for Waiting {
        async fn turn(&mut self) -> Result<usize> {
            tokio::time::sleep(self.0).await;
            Ok(7)
        }
    }

    #[tokio::test]
    async fn every_request_counts_once() {
        let clients = vec![Waiting(Duration::from_millis(2)), Waiting(Duration::from_millis(40))];
        let measured = closed_loop(clients, PACE).await.unwrap();
        assert_eq!(measured.rows, measured.latencies.count() * 7);
        // The slow client's only request began inside the measured time, so the cell lasts until it ends.
        assert!(measured.elapsed >= Duration::from_millis(40));
        assert!(measured.latencies.longest() >= Duration::from_millis(39));
    }

    struct Failing(usize);

    impl Turn for Failing {
        async fn turn(&mut self) -> Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| Error::peer("test", "broken"))?;
            Ok(1)
        }
    }

    #[tokio::test]
    async fn a_failing_client_ends_the_cell() {
        for turns in [0, 3] {
            let error = closed_loop(vec![Failing(usize::MAX), Failing(turns)], PACE).await.unwrap_err();
            assert_eq!(error.to_string(), "test: broken");
        }
    }
}
