//! The peer port's door: how many connections may be open, and how long one may stand in it without a word.
//!
//! A node needs a handful of connections to each peer; whoever else opens thousands, or opens one and never says what an
//! HTTP/2 client says first, takes nothing but a place, and that only for a while.

use crate::node::Node;
use futures::{Stream, StreamExt};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Open connections, four a peer in ordinary times.
const CONNECTIONS_MAX: usize = 1_024;
/// Time for what an HTTP/2 client says first.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// `PRI * HTTP/2.0…`
const PREFACE_BYTES: usize = 24;

/// Lets connections in while there is a place; more are closed as they come, and counted as refused.
pub(crate) fn guard<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    node: Arc<Node>,
) -> impl Stream<Item = io::Result<Guarded<S>>> {
    let refused = move || {
        node.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(open = CONNECTIONS_MAX, "the peer port has no place for a connection");
    };
    let_in(incoming, CONNECTIONS_MAX, refused)
}

fn let_in<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    places: usize,
    refused: impl Fn(),
) -> impl Stream<Item = io::Result<Guarded<S>>> {
    let places = Arc::new(Semaphore::new(places));
    incoming.filter_map(move |arrived| {
        let entered = match arrived {
            Ok(stream) => match places.clone().try_acquire_owned() {
                Ok(place) => Some(Ok(Guarded::new(stream, place))),
                Err(_) => {
                    refused();
                    None
                }
            },
            Err(error) => Some(Err(error)),
        };
        std::future::ready(entered)
    })
}

/// A connection that has a place, and loses it when it says nothing at first.
pub(crate) struct Guarded<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
    /// `None` once enough was said.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S> Guarded<S> {
    fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        let timeout = Box::pin(tokio::time::sleep(PREFACE_TIMEOUT));
        Self { stream, _place: place, preface: Some((0, timeout)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some((heard, timeout)) = &mut this.preface else { return read };
        if let Poll::Ready(read) = read {
            *heard += buf.filled().len() - before;
            if *heard >= PREFACE_BYTES {
                this.preface = None;
            }
            return Poll::Ready(read);
        }
        ready!(timeout.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a connection said nothing at first")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Guarded<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    fn entered() -> (DuplexStream, Guarded<DuplexStream>, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        let (outside, inside) = duplex(64);
        let guarded = Guarded::new(inside, places.clone().try_acquire_owned().unwrap());
        (outside, guarded, places)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_loses_the_place() {
        for said in ["", "PRI * HTTP/2.0"] {
            let (mut outside, mut guarded, places) = entered();
            outside.write_all(said.as_bytes()).await.unwrap();
            let began = Instant::now();
            let read = guarded.read_to_end(&mut Vec::new()).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(began.elapsed().as_secs(), PREFACE_TIMEOUT.as_secs());
            assert_eq!(places.available_permits(), 0);
            drop(guarded);
            assert_eq!(places.available_permits(), 1);
        }
    }

    #[tokio::test]
    async fn without_a_place_a_connection_is_closed() {
        let refused = AtomicU64::new(0);
        let (outsides, insides): (Vec<_>, Vec<_>) = (0..3).map(|_| duplex(64)).unzip();
        let arriving = futures::stream::iter(insides.into_iter().map(io::Result::Ok));
        let entered = let_in(arriving, 2, || {
            refused.fetch_add(1, Ordering::Relaxed);
        });
        let entered: Vec<_> = entered.collect().await;
        assert_eq!((entered.len(), refused.load(Ordering::Relaxed)), (2, 1));
        let mut last = outsides.into_iter().next_back().unwrap();
        assert_eq!(last.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_may_take_its_time() {
        let (mut outside, mut guarded, _places) = entered();
        let said = [b'x'; PREFACE_BYTES];
        outside.write_all(&said[..7]).await.unwrap();
        let mut heard = [0; PREFACE_BYTES];
        guarded.read_exact(&mut heard[..7]).await.unwrap();
        outside.write_all(&said[7..]).await.unwrap();
        guarded.read_exact(&mut heard[7..]).await.unwrap();
        let later = async {
            tokio::time::sleep(PREFACE_TIMEOUT * 100).await;
            outside.write_all(b"y").await.unwrap();
        };
        let (_, byte) = tokio::join!(later, guarded.read_u8());
        assert_eq!(byte.unwrap(), b'y');
    }
}
