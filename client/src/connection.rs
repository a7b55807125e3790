//! The handle every call goes through: addresses, connections, deadlines and repetition.
//!
//! Always true: a call ends within [`Options::deadline`]; a lost connection is made again by the next call, and with
//! several addresses the next call goes to another node.

use crate::api;
use crate::error::{Error, Result};
use crate::retry::{Backoff, Repeat, final_error, may_repeat};
use api::cluster_client::ClusterClient;
use cairn_proto::MESSAGE_BYTES_MAX;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Where a node listens unless told otherwise.
pub const DEFAULT_NODE: &str = "127.0.0.1:7700";
const DEFAULT_PORT: u16 = 7700;

// Large enough that one large batch streams at the speed of the link, not one window per round trip.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const FRAME_BYTES: u32 = 256 << 10;

/// How a [`Client`] behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest time a call takes, with all its repetitions. A stream: longest time between two answers. Default 30 s.
    pub deadline: Duration,
    /// Longest time one attempt to connect takes. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a client that never reached any node keeps trying before it says so; later losses of a connection are
    /// bridged up to `deadline`. Default 5 s.
    pub first_connect: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            first_connect: Duration::from_secs(5),
        }
    }
}

/// A cluster, seen from a program. Cheap to clone; clones share the connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<Node>,
    current: AtomicUsize,
    reached: AtomicBool,
    options: Options,
}

/// One node's connection, made when first used.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    position: usize,
}

impl Client {
    /// A client of the cluster that `address` belongs to: `HOST:PORT`, `http://HOST:PORT`, or several with commas
    /// between them. Connects with the first call, so this succeeds without a node.
    ///
    /// # Errors
    /// `InvalidArgument` for text that is not an address.
    pub async fn connect(address: &str) -> Result<Self> {
        Self::with_options(address, Options::default()).await
    }

    /// As [`Client::connect`], with other limits.
    ///
    /// # Errors
    /// `InvalidArgument` for text that is not an address.
    // Async because a lazy channel needs a running tokio runtime, which a plain function cannot promise.
    #[allow(clippy::unused_async)]
    pub async fn with_options(address: &str, options: Options) -> Result<Self> {
        let mut nodes = Vec::new();
        for (position, text) in address.split(',').enumerate() {
            let address = authority(text)?;
            let channel = endpoint(&address, &options)?.connect_lazy();
            nodes.push(Node { address, channel, position });
        }
        let inner = Inner { nodes, current: AtomicUsize::new(0), reached: AtomicBool::new(false), options };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address the next call goes to.
    pub fn address(&self) -> &str {
        &self.node().address
    }

    /// The nodes of the cluster and the state of its Raft groups, as the node asked sees them.
    ///
    /// # Errors
    /// `Unavailable` when no node can be reached.
    pub async fn status(&self) -> Result<api::StatusReply> {
        self.call(Repeat::Harmless, api::StatusRequest::default(), |channel, request| async move {
            limited!(ClusterClient, channel).status(request).await
        })
        .await
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn node(&self) -> &Node {
        let position = self.inner.current.load(Ordering::Relaxed) % self.inner.nodes.len();
        &self.inner.nodes[position]
    }

    /// Notes how a request to `node` ended, so that the next one goes where an answer is likely.
    pub(crate) fn note(&self, node: &Node, error: Option<&Error>) {
        match error {
            Some(error) if error.is_connection() => {
                let next = (node.position + 1) % self.inner.nodes.len();
                let _ = self.inner.current.compare_exchange(node.position, next, Ordering::Relaxed, Ordering::Relaxed);
            }
            Some(Error::Timeout { .. }) => {}
            _ => self.inner.reached.store(true, Ordering::Relaxed),
        }
    }

    /// How long connections that cannot be made are tried again.
    pub(crate) fn connect_patience(&self) -> Duration {
        let options = self.options();
        match self.inner.reached.load(Ordering::Relaxed) {
            true => options.deadline,
            false => options.first_connect.min(options.deadline),
        }
    }

    /// A new count of attempts for one call.
    pub(crate) fn attempts(&self, repeat: Repeat) -> Attempts<'_> {
        Attempts { client: self, repeat, backoff: Backoff::new(), started: Instant::now(), lost: None }
    }

    /// Sends one request and repeats it while that is safe and the deadline allows.
    pub(crate) async fn call<M, T, F, A>(&self, repeat: Repeat, message: M, send: F) -> Result<T>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let mut attempts = self.attempts(repeat);
        loop {
            let node = self.node().clone();
            let left = attempts.left();
            let mut request = Request::new(message.clone());
            request.set_timeout(left);
            let error = match tokio::time::timeout(left, send(node.channel.clone(), request)).await {
                Ok(Ok(response)) => {
                    self.note(&node, None);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => match Error::of_status(&node.address, &status) {
                    // The channel watches the same deadline, and says that the connection broke.
                    Error::Interrupted { .. } if attempts.left().is_zero() => attempts.timed_out(&node),
                    error => error,
                },
                Err(_) => attempts.timed_out(&node),
            };
            self.note(&node, Some(&error));
            attempts.pause_or(error).await?;
        }
    }
}

/// The attempts of one call: pauses between them, and the error that ends them.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    client: &'a Client,
    repeat: Repeat,
    backoff: Backoff,
    started: Instant,
    /// The first error after which nobody knew the outcome.
    lost: Option<Error>,
}

impl Attempts<'_> {
    /// Time left before the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.client.options().deadline.saturating_sub(self.started.elapsed())
    }

    /// The error of an attempt that got no answer.
    pub(crate) fn timed_out(&self, node: &Node) -> Error {
        Error::Timeout { address: node.address.clone(), waited: self.started.elapsed() }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// When there must be no next attempt: `error` itself, or an earlier one whose outcome stays unknown.
    pub(crate) async fn pause_or(&mut self, error: Error) -> Result<()> {
        if !may_repeat(&error, self.repeat) {
            return Err(final_error(self.lost.take(), error));
        }
        let patience = match error {
            Error::Connect { .. } => self.client.connect_patience(),
            _ => self.client.options().deadline,
        };
        let pause = self.backoff.pause();
        let untried = matches!(error, Error::Connect { .. }) && self.more_addresses();
        if self.started.elapsed() + pause >= patience && !untried {
            return Err(final_error(self.lost.take(), error));
        }
        if self.lost.is_none() && error.outcome_unknown() {
            self.lost = Some(error.clone());
        }
        tracing::debug!(%error, pause_ms = pause.as_millis(), "will send again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Whether the address list holds one this client has not yet come back around from.
    fn more_addresses(&self) -> bool {
        self.client.inner.current.load(Ordering::Relaxed) != 0 && self.left() > Duration::ZERO
    }
}

/// `HOST:PORT` out of what people write.
fn authority(text: &str) -> Result<String> {
    let bad = |why: &str| {
        Error::Input(format!("`{text}` is not the address of a node: {why}; write HOST:PORT such as `{DEFAULT_NODE}`"))
    };
    let trimmed = text.trim();
    if trimmed.starts_with("https://") {
        return Err(bad("a node speaks plain HTTP/2, not TLS"));
    }
    let plain = trimmed.strip_prefix("http://").or_else(|| trimmed.strip_prefix("grpc://")).unwrap_or(trimmed);
    let plain = plain.trim_end_matches('/');
    if plain.is_empty() {
        return Err(bad("it is empty"));
    }
    if plain.contains(['/', '?', '#', '@', ' ']) {
        return Err(bad("it holds more than a host and a port"));
    }
    let (host, port) = match plain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => return Ok(format!("{plain}:{DEFAULT_PORT}")),
    };
    if host.is_empty() {
        return Err(bad("the host is missing"));
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err(bad("an IPv6 address goes in brackets"));
    }
    match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok(format!("{host}:{port}")),
        _ => Err(bad("the port is not a number from 1 to 65535")),
    }
}

fn endpoint(address: &str, options: &Options) -> Result<Endpoint> {
    let bad =
        |error: tonic::transport::Error| Error::Input(format!("`{address}` is not the address of a node: {error}"));
    Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(concat!("cairn-client/", env!("CARGO_PKG_VERSION"))))
        .map_err(bad)
        .map(|endpoint| {
            endpoint
                .connect_timeout(options.connect_timeout)
                .tcp_nodelay(true)
                .tcp_keepalive(Some(Duration::from_secs(30)))
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
        })
}

/// A generated gRPC client with Cairn's message limit instead of tonic's 4 MiB.
macro_rules! limited {
    ($client:ident, $channel:expr) => {
        $client::new($channel)
            .max_decoding_message_size($crate::connection::MESSAGE_LIMIT)
            .max_encoding_message_size($crate::connection::MESSAGE_LIMIT)
    };
}
pub(crate) use limited;

pub(crate) const MESSAGE_LIMIT: usize = MESSAGE_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        for (text, expected) in [
            ("127.0.0.1:7700", "127.0.0.1:7700"),
            ("http://node-1:9000/", "node-1:9000"),
            ("grpc://node-1:9000", "node-1:9000"),
            ("localhost", "localhost:7700"),
            ("[::1]:7700", "[::1]:7700"),
            ("[::1]", "[::1]:7700"),
        ] {
            assert_eq!(authority(text).unwrap(), expected, "{text}");
        }
        for text in ["", "https://a:1", "a:b", "a:0", "a:70000", "::1:7700", ":7700", "http://a:1/path", "a b:1"] {
            let error = authority(text).unwrap_err();
            assert!(error.to_string().contains("write HOST:PORT"), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn the_next_call_goes_to_another_node_when_one_is_lost() {
        let client = Client::connect("a:1,b:2").await.unwrap();
        assert_eq!(client.address(), "a:1");
        let lost = Error::Interrupted { address: "a:1".into(), reason: "reset".into() };
        let node = client.node().clone();
        client.note(&node, Some(&lost));
        client.note(&node, Some(&lost)); // a second request of the same lost connection moves nothing further
        assert_eq!(client.address(), "b:2");
        client.note(&client.node().clone(), Some(&Error::Input("no".into())));
        assert_eq!(client.address(), "b:2");
    }
}
