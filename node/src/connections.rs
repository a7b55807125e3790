//! The client port's connections: how many, how long one may say nothing, and how they end when the node stops.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long open requests may take once the node is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// HTTP/2: uploads of one connection share its window, so it is wider than a stream's.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAMS_PER_CONNECTION: u32 = 1_024;
/// A peer that has gone without a word is noticed after these two.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that opens a connection and sends nothing whole is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What an HTTP/2 client says first, `PRI * HTTP/2.0…`, bytes; HTTP/1 has a time limit of its own.
const PREFACE_BYTES: usize = 24;
/// Open connections, if the process may have twice as many files.
const CONNECTIONS_MAX: u64 = 8_192;

/// Open connections, bounded.
#[derive(Debug)]
pub struct Connections {
    open: TaskTracker,
    stop: CancellationToken,
    places: Arc<Semaphore>,
    header_timeout: Duration,
}

impl Connections {
    /// - `places`: connections open at once; more are closed as they come
    /// - `stop`: told to end when it is cancelled
    pub fn new(places: usize, stop: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self { open: TaskTracker::new(), stop, places, header_timeout: HEADER_TIMEOUT }
    }

    /// As many as this process can have, with as many files again for the database. Raises the process's own limit on
    /// files, which many systems set to 1024, as far as the system allows.
    pub fn places() -> usize {
        let files = rlimit::increase_nofile_limit(CONNECTIONS_MAX * 8).unwrap_or(1_024);
        let places = CONNECTIONS_MAX.min(files / 2);
        if places < CONNECTIONS_MAX {
            tracing::warn!(files, connections = places, "few open files are allowed; raise `ulimit -n`");
        }
        usize::try_from(places).unwrap_or(usize::MAX)
    }

    /// Serves one connection until it ends. `false` = there is no place for it, and it is closed.
    pub fn serve(&self, stream: TcpStream, service: Router) -> bool {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return false };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (stop, header_timeout) = (self.stop.clone(), self.header_timeout);
        self.open.spawn(async move {
            let _place = place;
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
            builder
                .http2()
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .keep_alive_interval(KEEPALIVE_EVERY)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT);
            let heard = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&heard);
            let stream = InspectReader::new(stream, move |bytes| {
                counter.fetch_add(bytes.len(), Ordering::Relaxed);
            });
            let service = TowerToHyperService::new(service);
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            let mut preface = std::pin::pin!(tokio::time::sleep(header_timeout));
            let mut waiting = true;
            let ended = loop {
                tokio::select! {
                    ended = connection.as_mut() => break ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        break connection.await;
                    }
                    () = preface.as_mut(), if waiting => {
                        if heard.load(Ordering::Relaxed) < PREFACE_BYTES {
                            return;
                        }
                        waiting = false;
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        });
        true
    }

    /// Tells every connection to end, and waits until they have, for a while.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.open.close();
        let _ = tokio::time::timeout(DRAIN, self.open.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// One connection that has sent `bytes`, and what it got until it was closed.
    async fn answer(connections: &Connections, bytes: &[u8]) -> String {
        let mut client = connect(connections).await;
        client.write_all(bytes).await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        got
    }

    async fn connect(connections: &Connections) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let service = Router::new().route("/", axum::routing::get(|| async { "hello" }));
        connections.serve(accepted.unwrap().0, service);
        client.unwrap()
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn clients_that_say_nothing_whole_are_cut_off() {
        let mut connections = Connections::new(8, CancellationToken::new());
        connections.header_timeout = Duration::from_millis(50);
        assert_eq!(answer(&connections, b"").await, "");
        assert_eq!(answer(&connections, b"PRI * HTTP/2").await, "");
        assert_eq!(answer(&connections, b"GET / HTT").await, "");
        assert!(answer(&connections, REQUEST).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_a_place_comes_free() {
        let connections = Connections::new(1, CancellationToken::new());
        let held = connect(&connections).await;
        let mut refused = connect(&connections).await;
        assert_eq!(refused.read(&mut [0; 1]).await.unwrap_or(0), 0);
        drop(held);
        // The place is free once the first task has seen its connection end.
        while connections.places.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(answer(&connections, REQUEST).await.ends_with("hello"));
    }
}
