//! A TCP proxy before each peer port. Nodes advertise their proxy, so every byte between two nodes passes here.
//!
//! A connection from node i to node j carries bytes both ways: those of the dialler under the shape of (i, j), the
//! answers under (j, i). A cut holds bytes back and lets connections stand, as a network that drops packets does; a
//! connection made during a cut is accepted and then hears nothing. Memory is bounded: a held direction stops reading.

use super::{Shape, owner};
use crate::Result;
use rand::Rng;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const PIECE_BYTES: usize = 16 << 10;
/// Pieces of one direction between reading and writing.
const PIECES_MAX: usize = 256;
/// A lost piece is sent again after this, TCP's least time-out.
const RESEND: Duration = Duration::from_millis(200);

/// Proxies between `nodes` nodes.
#[derive(Debug)]
pub struct Mesh {
    inner: Arc<Inner>,
    addresses: Vec<String>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    nodes: usize,
    shapes: Vec<watch::Sender<Shape>>,
    /// Process id of each node while it runs.
    processes: Mutex<Vec<Option<u32>>>,
}

impl Mesh {
    /// # Errors
    /// When no port is free.
    pub async fn start(targets: Vec<String>) -> Result<Self> {
        let nodes = targets.len();
        let shapes = (0..nodes * nodes).map(|_| watch::Sender::new(Shape::default())).collect();
        let inner = Arc::new(Inner { nodes, shapes, processes: Mutex::new(vec![None; nodes]) });
        let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
        for (to, target) in targets.into_iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string());
            tasks.push(tokio::spawn(accept(Arc::clone(&inner), listener, to, target)));
        }
        Ok(Self { inner, addresses, tasks })
    }

    /// What node `at` advertises.
    pub fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }

    /// Tells who is who; called whenever a process starts or ends.
    pub fn set_processes(&self, processes: Vec<Option<u32>>) {
        *self.inner.processes.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }

    /// Changes how bytes travel from one node to another, for open connections too.
    pub fn set(&self, from: usize, to: usize, shape: Shape) {
        self.inner.link(from, to).send_replace(shape);
    }

    pub fn heal(&self) {
        for link in &self.inner.shapes {
            link.send_replace(Shape::default());
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Inner {
    fn link(&self, from: usize, to: usize) -> &watch::Sender<Shape> {
        &self.shapes[from * self.nodes + to]
    }
}

async fn accept(inner: Arc<Inner>, listener: TcpListener, to: usize, target: String) {
    loop {
        let Ok((stream, dialler)) = listener.accept().await else { continue };
        let (inner, target) = (Arc::clone(&inner), target.clone());
        tokio::spawn(async move {
            // A stranger, or a process that is gone already: no connection, so that nothing passes unshaped.
            let Some(from) = who(&inner, &stream, dialler) else { return };
            let Ok(onward) = TcpStream::connect(&target).await else { return };
            let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
            let ((from_read, from_write), (to_read, to_write)) = (stream.into_split(), onward.into_split());
            let there = carry(from_read, to_write, inner.link(from, to).subscribe());
            let back = carry(to_read, from_write, inner.link(to, from).subscribe());
            tokio::join!(there, back);
        });
    }
}

fn who(inner: &Inner, stream: &TcpStream, dialler: SocketAddr) -> Option<usize> {
    let (SocketAddr::V4(dialler), Ok(SocketAddr::V4(here))) = (dialler, stream.local_addr()) else { return None };
    let processes = inner.processes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    owner::of(dialler, SocketAddrV4::new(*here.ip(), here.port()), &processes)
}

/// Carries one direction of a connection until either end closes it.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut shape: watch::Receiver<Shape>) {
    let (pieces, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let reader_shape = shape.clone();
    let read = async move {
        let mut due = Instant::now();
        let mut busy = due;
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let Ok(count @ 1..) = from.read(&mut piece).await else { return };
            piece.truncate(count);
            let now = reader_shape.borrow().to_owned();
            // Order is kept, as TCP keeps it: no piece overtakes one before it.
            busy = busy.max(Instant::now()) + now.takes(count);
            due = due.max(busy + now.latency());
            if pieces.send((due, piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if shape.wait_for(|shape| !shape.cut).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The end of a connection does not pass a cut either.
        let _ = shape.wait_for(|shape| !shape.cut).await;
        let _ = to.shutdown().await;
    };
    tokio::select! {
        () = write => {}
        () = async { read.await; std::future::pending().await } => {}
    }
}

impl Shape {
    /// How long the link is busy with so many bytes.
    fn takes(&self, bytes: usize) -> Duration {
        match self.bytes_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / f64::from(rate)),
        }
    }

    fn latency(&self) -> Duration {
        let mut random = rand::rng();
        let jitter = random.random_range(0..=self.jitter_ms);
        let mut latency = Duration::from_millis(u64::from(self.delay_ms + jitter));
        if random.random_range(0..100) < self.loss_percent {
            latency += RESEND;
        }
        latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that echoes, its proxy, and a connection to it from this process as node 0.
    async fn echo() -> (Mesh, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let mesh = Mesh::start(vec!["127.0.0.1:1".to_owned(), target]).await.unwrap();
        mesh.set_processes(vec![Some(std::process::id()), None]);
        let stream = TcpStream::connect(mesh.address(1)).await.unwrap();
        (mesh, stream)
    }

    async fn say(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn hear(stream: &mut TcpStream, text: &str) {
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, text.as_bytes());
    }

    #[tokio::test]
    async fn either_direction_can_be_cut_and_healed() {
        let (mesh, mut stream) = echo().await;
        say(&mut stream, "a").await;
        hear(&mut stream, "a").await;
        for (from, to) in [(0, 1), (1, 0)] {
            mesh.set(from, to, Shape { cut: true, ..Shape::default() });
            say(&mut stream, "held").await;
            let mut byte = [0];
            let heard = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut byte)).await;
            assert!(heard.is_err(), "a byte passed the cut from {from} to {to}");
            mesh.heal();
            hear(&mut stream, "held").await;
        }
    }

    #[tokio::test]
    async fn delay_keeps_bytes_in_order() {
        let (mesh, mut stream) = echo().await;
        mesh.set(0, 1, Shape { delay_ms: 30, jitter_ms: 30, loss_percent: 20, ..Shape::default() });
        let began = Instant::now();
        let text: String = (0..50).map(|n| format!("{n},")).collect();
        for piece in text.split_inclusive(',') {
            say(&mut stream, piece).await;
        }
        hear(&mut stream, &text).await;
        assert!(began.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn strangers_get_no_connection() {
        let (mesh, _stream) = echo().await;
        mesh.set_processes(vec![None, None]);
        let mut stranger = TcpStream::connect(mesh.address(1)).await.unwrap();
        let mut byte = [0];
        assert_eq!(stranger.read(&mut byte).await.unwrap_or(0), 0);
    }
}
