//! The machine a simulated node runs on: turmoil's sockets, and one thread for everything.

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use rand::Rng;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::Service;
use tonic::transport::server::Connected;

/// Work that blocks takes a while, then happens at once: others see all of it or nothing.
pub async fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let pause = Duration::from_millis(rand::rng().random_range(0..3));
    tokio::time::sleep(pause).await;
    work()
}

/// Opens connections in turmoil's network.
#[derive(Debug, Clone, Copy)]
pub struct Connector;

impl Service<http::Uri> for Connector {
    type Response = TokioIo<turmoil::net::TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let place = uri.host().map(str::to_owned).zip(uri.port_u16());
        Box::pin(async move {
            let (host, port) = place.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(TokioIo::new(turmoil::net::TcpStream::connect((host.as_str(), port)).await?))
        })
    }
}

/// Connections that arrive at the port of `address`.
pub fn listen(address: &str) -> impl Stream<Item = io::Result<Socket>> + Send + use<> {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    stream::unfold(None, move |listener| async move {
        let listener = match listener {
            Some(listener) => listener,
            None => {
                let any = std::net::Ipv4Addr::UNSPECIFIED;
                match turmoil::net::TcpListener::bind((any, port.expect("a simulated address has a port"))).await {
                    Ok(listener) => listener,
                    Err(error) => return Some((Err(error), None)),
                }
            }
        };
        let accepted = listener.accept().await.map(|(stream, _)| Socket::Simulated(stream));
        Some((accepted, Some(listener)))
    })
}

/// A connection of the peer port, of either world.
#[derive(Debug)]
pub enum Socket {
    Real(tokio::net::TcpStream),
    Simulated(turmoil::net::TcpStream),
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

macro_rules! either {
    ($this:expr, $method:ident, $context:expr $(, $argument:expr)*) => {
        match $this.get_mut() {
            Socket::Real(stream) => Pin::new(stream).$method($context $(, $argument)*),
            Socket::Simulated(stream) => Pin::new(stream).$method($context $(, $argument)*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown, context)
    }
}
