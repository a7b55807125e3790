//! A damaged replica made new from a peer's: before the node starts, on the operator's word.
//!
//! What this node promised stays: its votes, and its log wherever it does not contradict what is committed. Only the
//! state machine is replaced, by a checkpoint that a peer made after it had seen everything acknowledged. A crash on
//! the way leaves the damaged replica, which is found out again, or the new one.

use crate::codec;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::link;
use crate::options::Rebuild;
use crate::propose::definite_refusal;
use crate::snapshot::SnapshotStore;
use crate::types::*;
use crate::wal::Wal;
use cairn_proto::PEER_PROTOCOL;
use cairn_proto::peer::v1::{FetchSnapshotRequest, SnapshotFrame, snapshot_frame::Part};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A peer that sends nothing for this long is given up.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Frames waiting for the disk.
const FRAMES_MAX: usize = 8;

/// Replaces the groups' replicas under `data_dir`.
///
/// # Errors
/// `InvalidArgument` for a group that is none; `Unavailable` when the peer does not answer or stops half-way; what the
/// peer says. Groups before the failing one are rebuilt then.
pub(crate) async fn run(data_dir: &Path, identity: &Identity, wal: &Arc<Wal>, ask: &Rebuild) -> Result<()> {
    if let Some(group) = ask.groups.iter().find(|group| **group > identity.shards) {
        let shards = identity.shards;
        return Err(Error::InvalidArgument(format!("cannot rebuild group {group}; groups are 0 to {shards}")));
    }
    for group in &ask.groups {
        let position = rebuild(data_dir, identity, *group, &ask.from).await?;
        forget_contradictions(wal, *group, position).await?;
        tracing::warn!(group, from = %ask.from, "a replica was rebuilt");
    }
    Ok(())
}

/// What an operator is told of a damaged replica.
pub(crate) fn advice(group: GroupId, damage: &str) -> String {
    format!(
        "this node's replica of group {group} is damaged: {damage}; start it again with `--rebuild {group} --join \
         HOST:PEERPORT` of another node, which has it whole"
    )
}

async fn rebuild(data_dir: &Path, identity: &Identity, group: GroupId, from: &str) -> Result<Option<LogId>> {
    let (snapshots, replica) = (snapshot_dir(data_dir, group), group_dir(data_dir, group));
    let opened = tokio::task::spawn_blocking(move || {
        let store = SnapshotStore::open(snapshots)?;
        store.have().map(|have| (store, have))
    });
    let (store, have) = opened.await.map_err(|error| Error::Internal(format!("a rebuild panicked: {error}")))??;
    let mut client = link::connect(from).await?;
    let request = FetchSnapshotRequest {
        cluster_id: identity.cluster_id.clone(),
        from: identity.node_id,
        protocol: PEER_PROTOCOL,
        group,
        have,
    };
    let told = |status: tonic::Status| match definite_refusal(&status) {
        Some(_) => Error::of_status(&status),
        None => Error::Unavailable(format!("node at {from}: {}", status.message())),
    };
    let mut frames = client.fetch_snapshot(request).await.map_err(told)?.into_inner();
    let Some(Part::Header(header)) = frames.message().await.map_err(told)?.and_then(|frame| frame.part) else {
        return Err(Error::Internal(format!("node at {from} sent a snapshot without its header")));
    };
    let bad = |error: codec::DecodeError| Error::Corrupt(format!("a snapshot from {from}: {error}"));
    let meta = codec::decode_meta(header.meta).map_err(bad)?;
    let position = meta.last_log_id;

    let (pieces, mut arrived) = mpsc::channel::<SnapshotFrame>(FRAMES_MAX);
    let (whole, complete) = oneshot::channel::<()>();
    let writing = tokio::task::spawn_blocking(move || {
        let mut incoming = store.receive(&meta, header.files)?;
        while let Some(frame) = arrived.blocking_recv() {
            incoming.accept(frame)?;
        }
        let received = store.received_whole(incoming)?;
        if complete.blocking_recv().is_err() {
            return Err(Error::Unavailable("a snapshot transfer broke off".into()));
        }
        store.replace(&received, &meta)?;
        match std::fs::remove_dir_all(&replica) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { context: format!("cannot remove {}", replica.display()), source: error })
            }
            _ => Ok(()),
        }
    });
    let mut broken = None;
    loop {
        let next = tokio::time::timeout(PAUSE_MAX, frames.message()).await;
        match next {
            Ok(Ok(Some(frame))) => {
                if pieces.send(frame).await.is_err() {
                    break;
                }
            }
            Ok(Ok(None)) => break,
            Ok(Err(status)) => {
                broken = Some(told(status));
                break;
            }
            Err(_) => {
                broken = Some(Error::Unavailable(format!("node at {from} sent nothing for {PAUSE_MAX:?}")));
                break;
            }
        }
    }
    drop(pieces);
    match broken {
        None => {
            let _ = whole.send(());
        }
        Some(_) => drop(whole),
    }
    let written = writing.await.map_err(|error| Error::Internal(format!("a rebuild panicked: {error}")))?;
    match (written, broken) {
        (Err(_), Some(broken)) => Err(broken),
        (written, _) => written.map(|()| position),
    }
}

/// Where this node's log has another entry than the one committed at `position`, that entry and all behind it never
/// were and never will be committed.
async fn forget_contradictions(wal: &Arc<Wal>, group: GroupId, position: Option<LogId>) -> Result<()> {
    let Some(position) = position else { return Ok(()) };
    let (index, reader) = (position.index, wal.clone());
    let read = move || reader.read(group, index..index.saturating_add(1), usize::MAX);
    let found = tokio::task::spawn_blocking(read).await.map_err(|error| Error::Internal(error.to_string()))?;
    let stopped = |error: std::io::Error| Error::Io { context: format!("the log of group {group}"), source: error };
    let found = found.map_err(|error| stopped(error.into()))?;
    let Some((at, bytes)) = found.into_iter().next() else { return Ok(()) };
    let ours = codec::decode_entry(at, bytes).map_err(|error| Error::Corrupt(error.to_string()))?.log_id;
    if ours == position {
        return Ok(());
    }
    let (sender, done) = oneshot::channel();
    let tell = Box::new(move |result| {
        let _ = sender.send(result);
    });
    wal.truncate_after(group, index.checked_sub(1), tell);
    done.await.map_err(|_| Error::Unavailable("the log stopped".into()))?.map_err(stopped)
}

pub(crate) fn group_dir(data_dir: &Path, group: GroupId) -> std::path::PathBuf {
    data_dir.join("groups").join(group.to_string())
}

pub(crate) fn snapshot_dir(data_dir: &Path, group: GroupId) -> std::path::PathBuf {
    data_dir.join("snapshots").join(group.to_string())
}
