//! Segment files: durable before a shard's log names them, and brought to the nodes that lack them.
//!
//! - [`objects`]: an object store that all nodes share, where `segments-url` names one; `place`: its URL
//! - without one, files are on a quorum of the nodes, as any artifact is
//!
//! Either way a node has every segment of its shards as a file of its own, which is what it reads. Why and how:
//! ADR-0015. This folder alone names the crate `object_store`.

pub mod objects;
mod place;

use crate::artifacts;
use crate::error::{Error, Result};
use crate::node::Node;
use bytes::Bytes;
use cairn_consensus::{BlobPeer, Error as PeerError};
use cairn_proto::ErrorKind;
use cairn_storage::blob::hex;
use objects::Objects;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the nodes beyond the quorum are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes handed on at once while a segment is written.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that may wait for the disk.
const PIECES_AHEAD: usize = 8;

/// A segment file that outlives the loss of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// BLAKE3 of the whole file: its name.
    pub root: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// Whether [`store`] can be expected to work: to be asked before a file is made.
///
/// # Errors
/// `Unavailable` while the object store does not answer, in the same words for as long as it lasts.
pub async fn ready(node: &Node) -> Result<()> {
    match &node.objects {
        Some(objects) => objects.ready().await,
        None => Ok(()),
    }
}

/// Stores the file that `pieces` bring, so that a command may name it. A file that is stored and never named is waste
/// and no more.
///
/// # Errors
/// `ReadOnly` on a full disk; the error that came instead of a piece; `Unavailable` when the file is not durable, after
/// which it may be stored again.
pub async fn store(node: &Arc<Node>, pieces: mpsc::Receiver<Result<Bytes, PeerError>>) -> Result<Stored> {
    let Some(objects) = &node.objects else {
        let stored = artifacts::store(node, pieces, None, None, PATIENCE).await?;
        return Ok(Stored { root: stored.root, size: stored.size });
    };
    objects.ready().await?;
    let kept = artifacts::keep(node, pieces, None, None).await?;
    put(node, objects, kept.root, kept.size).await?;
    Ok(Stored { root: kept.root, size: kept.size })
}

/// Stores a file while `work` writes it, on a thread of its own; without a file there is nothing to store.
///
/// # Errors
/// As [`ready`] and [`store`]; what `work` says.
pub async fn write<T: Send + 'static>(
    node: &Arc<Node>,
    work: impl FnOnce(Pieces) -> cairn_storage::Result<(T, Option<Pieces>)> + Send + 'static,
) -> Result<(T, Option<Stored>)> {
    ready(node).await?;
    let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
    let writing = tokio::task::spawn_blocking(move || {
        let done = work(Pieces { pieces: pieces.clone(), buffer: Vec::with_capacity(PIECE_BYTES) });
        let done = done.and_then(|(with, file)| match file {
            Some(mut file) => {
                file.flush().map_err(cairn_storage::Error::io("writing a segment"))?;
                Ok((with, true))
            }
            None => Ok((with, false)),
        });
        let unfinished = match &done {
            Ok((_, true)) => None,
            Ok((_, false)) => Some("there is no file".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        // Writing also ends when nobody takes the file any more; who does not knows why.
        let refused = pieces.is_closed();
        if let Some(why) = unfinished {
            let _ = pieces.blocking_send(Err(PeerError::Unavailable(why)));
        }
        (done, refused)
    });
    let stored = store(node, stream).await;
    let written = writing.await.map_err(|error| Error::internal(format!("a worker stopped: {error}")))?;
    let (written, refused) = written;
    match (written, stored) {
        (Ok((with, true)), stored) => Ok((with, Some(stored?))),
        (Ok((with, false)), _) => Ok((with, None)),
        (Err(_), Err(error)) if refused => Err(error),
        (Err(error), _) => Err(error.into()),
    }
}

/// A file being written: hands what is written on, piece by piece.
pub struct Pieces {
    pieces: mpsc::Sender<Result<Bytes, PeerError>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES)));
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Makes sure that the segment `root` is on this node: out of the object store, or else from another node.
///
/// # Errors
/// `ReadOnly` on a full disk; `NotFound` when nobody who can be reached has it.
pub async fn fetch(node: &Arc<Node>, root: [u8; 32]) -> Result<()> {
    node.writes.check()?;
    let Some(objects) = &node.objects else { return artifacts::fetch(node, root).await };
    if node.blobs.contains(&root) {
        return Ok(());
    }
    let why = match objects.get(root).await {
        Ok(Some((size, pieces))) => match artifacts::Peers(Arc::clone(&node.blobs)).put(root, size, pieces).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::warn!(segment = %hex(&root), store = objects.name(), %error, "not fetched from the object store");
                error.to_string()
            }
        },
        Ok(None) => {
            objects.lacks(&root);
            format!("the object store {} does not have it", objects.name())
        }
        Err(error) => error.message,
    };
    match artifacts::fetch(node, root).await {
        Err(error) if error.kind == ErrorKind::NotFound => {
            let message = format!("segment `{}` is on no node that can be reached, and {why}", hex(&root));
            Err(Error::not_found(message))
        }
        done => done,
    }
}

/// Puts those of `named` into the object store that it lacks: what was stored before the store was set, say, or by a node
/// that has none.
///
/// # Errors
/// `Unavailable`.
pub async fn complete(node: &Arc<Node>, named: impl Iterator<Item = [u8; 32]>) -> Result<()> {
    let Some(objects) = &node.objects else { return Ok(()) };
    let unknown: Vec<_> = named.filter(|root| !objects.has(root)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    objects.ready().await?;
    objects.list().await?;
    // What is not on this node yet is fetched first, and put in a later round.
    for root in unknown.into_iter().filter(|root| !objects.has(root) && node.blobs.contains(root)) {
        put(node, objects, root, node.blobs.get(&root)?.size).await?;
        tracing::info!(segment = %hex(&root), store = objects.name(), "a segment was copied to the object store");
    }
    Ok(())
}

async fn put(node: &Arc<Node>, objects: &Objects, root: [u8; 32], size: u64) -> Result<()> {
    objects.put(root, size, artifacts::read(Arc::clone(&node.blobs), root, 0)).await
}
