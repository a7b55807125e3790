//! Segment files: durable before a shard's log names them, and brought to the nodes that lack them.

use crate::artifacts;
use crate::error::Result;
use crate::node::Node;
use bytes::Bytes;
use cairn_consensus::Error as PeerError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the nodes beyond the quorum are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A segment file that outlives the loss of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// BLAKE3 of the whole file: its name.
    pub root: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// Stores the file that `pieces` bring, so that a command may name it. A file that is stored and never named is waste
/// and no more.
///
/// # Errors
/// `ReadOnly` on a full disk; the error that came instead of a piece; `Unavailable` when the file is not durable, after
/// which it may be stored again.
pub async fn store(node: &Arc<Node>, pieces: mpsc::Receiver<Result<Bytes, PeerError>>) -> Result<Stored> {
    let stored = artifacts::store(node, pieces, None, None, PATIENCE).await?;
    Ok(Stored { root: stored.root, size: stored.size })
}

/// Makes sure that the segment `root` is on this node.
///
/// # Errors
/// `ReadOnly` on a full disk; `NotFound` when nobody who can be reached has it.
pub async fn fetch(node: &Arc<Node>, root: [u8; 32]) -> Result<()> {
    node.writes.check()?;
    artifacts::fetch(node, root).await
}
