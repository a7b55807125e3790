//! What a node takes from the machine under it: connections, and threads for work that blocks.
//!
//! In production each function is the one line one expects. The crate's own tests can put a node on a simulated
//! machine instead ([`sim`](crate::sim)): then connections are turmoil's, blocking work runs where it is asked for, and
//! one thread runs everything in an order that a seed decides. Files of the log come in with `Options::log_files`.

use std::net::TcpListener;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

/// Runs work that blocks, away from the threads that must not.
///
/// # Errors
/// When `work` panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return Ok(crate::sim::machine::blocking(work).await);
    }
    tokio::task::spawn_blocking(work).await
}

/// Moments at which timers that may be late ring together: two a tick of a group with the usual heartbeat.
const GRID: Duration = Duration::from_millis(50);

/// `moment`, or the next one on the grid that all groups of this process share.
pub fn on_grid(moment: Instant) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    #[cfg(test)]
    if turmoil::in_simulation() {
        // Simulated clocks have nothing in common.
        return moment;
    }
    next_step(*ORIGIN.get_or_init(Instant::now), moment)
}

fn next_step(origin: Instant, moment: Instant) -> Instant {
    let since = moment.saturating_duration_since(origin);
    let past = since.as_nanos() % GRID.as_nanos();
    match u64::try_from(past) {
        Ok(past) if past > 0 => moment + GRID.saturating_sub(Duration::from_nanos(past)),
        _ => moment,
    }
}

/// Connects to what `endpoint` names.
///
/// # Errors
/// As tonic has them.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return endpoint.connect_with_connector(crate::sim::machine::Connector).await;
    }
    endpoint.connect().await
}

/// The connections that arrive at the peer port.
///
/// # Errors
/// When the listener cannot be handed to the runtime.
#[cfg(not(test))]
pub fn incoming(
    listener: TcpListener,
    _address: &str,
) -> std::io::Result<impl Stream<Item = std::io::Result<tokio::net::TcpStream>> + use<>> {
    real(listener)
}

/// The same, or simulated ones that arrive at `address`.
#[cfg(test)]
pub fn incoming(
    listener: TcpListener,
    address: &str,
) -> std::io::Result<impl Stream<Item = std::io::Result<crate::sim::machine::Socket>> + use<>> {
    use crate::sim::machine::{Socket, listen};
    use futures::{StreamExt, TryStreamExt};
    if turmoil::in_simulation() {
        return Ok(listen(address).boxed());
    }
    Ok(real(listener)?.map_ok(Socket::Real).boxed())
}

fn real(listener: TcpListener) -> std::io::Result<tonic::transport::server::TcpIncoming> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_move_to_the_grid_and_never_back() {
        let origin = Instant::now();
        let at = |us: u64| origin + Duration::from_micros(us);
        for (moment, expected) in [(0, 0), (1, 50_000), (49_999, 50_000), (50_000, 50_000), (50_001, 100_000)] {
            assert_eq!(next_step(origin, at(moment)), at(expected), "{moment}");
        }
        let later = Instant::now() + Duration::from_millis(7);
        assert!(on_grid(later) >= later && on_grid(later) <= later + GRID);
    }
}
