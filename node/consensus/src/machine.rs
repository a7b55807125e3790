//! What a node takes from the machine under it: connections, and threads for work that blocks.
//!
//! In production each function is the one line one expects. The crate's own tests can put a node on a simulated
//! machine instead ([`sim`](crate::sim)): then connections are turmoil's, blocking work runs where it is asked for, and
//! one thread runs everything in an order that a seed decides. Files of the log come in with `Options::log_files`.

use std::net::TcpListener;
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
