//! Artifacts: on disk on a quorum of nodes before anything may refer to them, fetched from a peer where they are missing.

use crate::error::{Error, Result};
use crate::node::Node;
use bytes::{Bytes, BytesMut};
use cairn_consensus::{BlobPeer, Error as PeerError};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{self as record, BlobRef};
use cairn_storage::blob::{BlobInfo, BlobStore, hex};
use cairn_storage::catalog::Catalog;
use cairn_storage::shard::Shard;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces in flight between a stream and the thread that writes them.
const PIECES_AHEAD: usize = 8;
/// How often a node looks for artifacts that it lacks while another leaves.
const COPIES_EVERY: Duration = Duration::from_secs(1);
/// Largest artifact that is read into memory as a model.
const MODEL_BYTES_MAX: u64 = 2 << 30;

pub type Root = [u8; 32];
/// A file on its way, piece by piece.
pub type Pieces = mpsc::Receiver<Result<Bytes, PeerError>>;

/// This node's artifacts as its peers use them.
#[derive(Clone)]
pub struct Peers(pub Arc<BlobStore>);

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl BlobPeer for Peers {
    async fn put(&self, root: Root, size: u64, mut data: Pieces) -> Result<u64, PeerError> {
        let store = Arc::clone(&self.0);
        let work = move || {
            let mut writer = store.writer_expecting(root)?;
            while let Some(piece) = data.blocking_recv() {
                writer.write(&piece?)?;
            }
            if writer.size() != size {
                let message = format!("artifact `{}` came as {} bytes instead of {size}", hex(&root), writer.size());
                return Err(PeerError::InvalidArgument(message));
            }
            Ok(writer.finish()?.bytes_stored)
        };
        joined(tokio::task::spawn_blocking(work).await)
    }

    async fn get(&self, root: Root) -> Result<(u64, Pieces), PeerError> {
        let size = self.0.get(&root)?.size;
        Ok((size, read(Arc::clone(&self.0), root, 0)))
    }
}

fn joined<T>(done: Result<Result<T, PeerError>, tokio::task::JoinError>) -> Result<T, PeerError> {
    done.unwrap_or_else(|error| Err(PeerError::Internal(format!("an artifact worker stopped: {error}"))))
}

/// Reads an artifact of this node from `offset` on, chunk by chunk, verified, no faster than it is taken.
pub fn read(store: Arc<BlobStore>, root: Root, offset: u64) -> Pieces {
    let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut reader = match store.reader(&root, offset) {
            Ok(reader) => reader,
            Err(error) => return drop(pieces.blocking_send(Err(error.into()))),
        };
        loop {
            let piece = match reader.next_chunk() {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            let last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    stream
}

/// Stores what `pieces` brings, then copies it to the other nodes; returns once a quorum has it on disk, and for `patience`
/// waits for the rest.
///
/// # Errors
/// `ReadOnly` on a full disk; `InvalidArgument` when `expected` or `size` do not fit; `Unavailable` when too few nodes
/// could be reached, after which the same upload may be sent again.
pub async fn store(
    node: &Arc<Node>,
    pieces: Pieces,
    expected: Option<Root>,
    size: Option<u64>,
    patience: Duration,
) -> Result<BlobInfo> {
    let info = keep(node, pieces, expected, size).await?;
    replicate(node, info.root, info.size, patience).await?;
    Ok(info)
}

/// Stores what `pieces` brings on this node alone.
///
/// # Errors
/// `ReadOnly` on a full disk; `InvalidArgument` when `expected` or `size` do not fit.
pub async fn keep(node: &Arc<Node>, mut pieces: Pieces, expected: Option<Root>, size: Option<u64>) -> Result<BlobInfo> {
    node.writes.check()?;
    let blobs = Arc::clone(&node.blobs);
    let work = move || {
        let mut writer = match expected {
            Some(root) => blobs.writer_expecting(root)?,
            None => blobs.writer()?,
        };
        while let Some(piece) = pieces.blocking_recv() {
            writer.write(&piece?)?;
        }
        if let Some(size) = size
            && writer.size() != size
        {
            let message =
                format!("the upload ended after {} bytes of the {size} it announced; send it again", writer.size());
            return Err(PeerError::InvalidArgument(message));
        }
        Ok(writer.finish()?)
    };
    Ok(joined(tokio::task::spawn_blocking(work).await)?)
}

/// Waits until a quorum of the nodes holds `root`, and for `patience` until all do; the rest get it in the background.
async fn replicate(node: &Arc<Node>, root: Root, size: u64, patience: Duration) -> Result<()> {
    let me = node.cluster.node_id();
    let others: Vec<u64> = node.meta.catalog().nodes().map(|it| it.id).filter(|id| *id != me).collect();
    let needed = others.len().div_ceil(2); // beside this node: a majority of all
    if others.is_empty() {
        return Ok(());
    }
    let (done, mut outcomes) = mpsc::channel(others.len());
    for id in others.iter().copied() {
        let (node, done) = (Arc::clone(node), done.clone());
        tokio::spawn(async move {
            let copied = node.cluster.put_blob(id, root, size, read(Arc::clone(&node.blobs), root, 0)).await;
            if let Err(error) = &copied {
                tracing::warn!(node = id, artifact = %hex(&root), %error, "artifact not copied");
            }
            let _ = done.send(copied.map(drop)).await;
        });
    }
    drop(done);
    let (mut copies, mut last) = (0, String::new());
    while copies < needed {
        match outcomes.recv().await {
            Some(Ok(())) => copies += 1,
            Some(Err(error)) => last = error.to_string(),
            None => {
                let message = format!(
                    "the artifact is on {} of {} nodes, a quorum is {}; send it again when more nodes are up ({last})",
                    copies + 1,
                    others.len() + 1,
                    needed + 1
                );
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
    }
    let rest = async { while outcomes.recv().await.is_some() {} };
    let _ = tokio::time::timeout(patience, rest).await;
    Ok(())
}

/// Makes sure `root` is on this node.
///
/// # Errors
/// `NotFound` when no node that can be reached has it.
pub async fn fetch(node: &Arc<Node>, root: Root) -> Result<()> {
    if node.blobs.contains(&root) {
        return Ok(());
    }
    let me = node.cluster.node_id();
    let others: Vec<u64> = node.meta.catalog().nodes().map(|it| it.id).filter(|id| *id != me).collect();
    for id in others {
        let copied = match node.cluster.get_blob(id, root).await {
            Ok((size, pieces)) => Peers(Arc::clone(&node.blobs)).put(root, size, pieces).await,
            Err(error) => Err(error),
        };
        match copied {
            Ok(_) => return Ok(()),
            Err(error) => tracing::debug!(node = id, artifact = %hex(&root), %error, "not fetched from there"),
        }
    }
    Err(Error::not_found(format!("artifact `{}` is on no node that can be reached; upload it first", hex(&root))))
}

/// The artifacts that the registry refers to and this node does not hold.
pub fn missing(catalog: &Catalog, blobs: &BlobStore) -> BTreeSet<Root> {
    let versions = catalog.projects().flat_map(|project| project.models()).flat_map(|(_, model)| model.versions());
    let roots = versions.filter_map(|version| Root::try_from(version.artifact.as_ref()?.root.as_ref()).ok());
    roots.filter(|root| !blobs.contains(root)).collect()
}

/// The segments of history that this node's shards refer to and it does not hold.
pub fn missing_segments<'s>(shards: impl IntoIterator<Item = &'s Arc<Shard>>, blobs: &BlobStore) -> BTreeSet<Root> {
    let tiers = shards.into_iter().map(|shard| shard.tiers());
    let roots = tiers.flat_map(|tiers| {
        tiers.segments().iter().filter_map(|it| Root::try_from(it.root.as_ref()).ok()).collect::<Vec<_>>()
    });
    roots.filter(|root| !blobs.contains(root)).collect()
}

/// While a node is being removed, the others fetch what they lack: it may be one of the few that hold it. Ends with the
/// node.
pub async fn keep_copies(node: Arc<Node>) {
    let mut tick = tokio::time::interval(COPIES_EVERY);
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            _ = tick.tick() => {}
        }
        let catalog = node.meta.catalog();
        let me = node.cluster.node_id();
        let leaves = |it: &Arc<record::Node>| it.state() == record::NodeState::Removing;
        if !catalog.nodes().any(|it| leaves(it) && it.id != me) {
            continue;
        }
        for root in missing(&catalog, &node.blobs) {
            if node.writes.check().is_err() || node.stopping.is_cancelled() {
                break;
            }
            if let Err(error) = fetch(&node, root).await {
                tracing::warn!(artifact = %hex(&root), %error, "not copied from a node that leaves");
            }
        }
    }
}

/// Size and hashes of an artifact, as records keep them.
///
/// # Errors
/// As [`fetch`].
pub async fn describe(node: &Arc<Node>, root: Root) -> Result<BlobRef> {
    fetch(node, root).await?;
    let blob = node.blobs.get(&root)?;
    Ok(BlobRef {
        root: Bytes::copy_from_slice(&blob.root),
        size: blob.size,
        sha256: Bytes::copy_from_slice(&blob.sha256),
    })
}

/// A whole artifact in memory.
///
/// # Errors
/// As [`fetch`]; `TooLarge` above 2 GiB; `Corrupt` when its bytes fail their checksum.
pub async fn read_whole(node: &Arc<Node>, root: Root) -> Result<Bytes> {
    fetch(node, root).await?;
    let size = node.blobs.get(&root)?.size;
    if size > MODEL_BYTES_MAX {
        let message =
            format!("artifact `{}` of {size} bytes is over the limit of {MODEL_BYTES_MAX} for a model", hex(&root));
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    let mut pieces = read(Arc::clone(&node.blobs), root, 0);
    let mut whole = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
    while let Some(piece) = pieces.recv().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.freeze())
}
