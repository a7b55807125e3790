//! History that is no longer hot goes to segments: each shard's leader writes them, stores them durably
//! (`segments`), and lets their rows leave the database.
//!
//! Nothing of it is kept here: what is next follows from the shard's own record of its segments, so another leader goes
//! on where this one stopped, and a step that comes twice or too late is refused. Every node fetches the segments of its
//! shards that it lacks.

use crate::artifacts;
use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::{segments, shard_step};
use bytes::Bytes;
use cairn_consensus::Error as PeerError;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{AddSegment, Segment, shard_command::Change};
use cairn_storage::blob::hex;
use cairn_storage::row::RowSchema;
use cairn_storage::segment::SegmentLayout;
use cairn_storage::shard::{Cold, SEGMENT_VERSION, Shard};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A segment ends with the slot in which it reaches so many rows.
const SEGMENT_ROWS: u64 = 1 << 20;
/// Rows that came late go to segments when there are so many of them in a shard, and this share of what is in segments.
/// Fewer wait for the next step of the window.
const LATE_ROWS_MIN: u64 = 1 << 16;
const LATE_SHARE: u64 = 8;
/// Bytes handed on at once while a segment is written.
const PIECE_BYTES: usize = 256 << 10;
/// Between two looks for segments that are not on this node.
const FETCH_EVERY: Duration = Duration::from_millis(250);
/// Pieces that may wait for the disk.
const PIECES_AHEAD: usize = 8;
/// What goes to a segment in one round was hot for at least the window, and at most an eighth of it, or a week, longer.
const STEPS_OF_WINDOW: i64 = 8;
const STEP_MIN_US: i64 = 1_000_000;
const STEP_MAX_US: i64 = 7 * 86_400 * 1_000_000;

/// Moves history for as long as the node runs.
pub async fn drive(node: Arc<Node>) {
    let every = node.config.tiering_interval;
    // Not at the very start, when leads are still to be found.
    let mut looks = tokio::time::interval_at(Instant::now() + every, every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Said once, however often it is tried.
    let mut trouble = String::new();
    // By shard and storage id: event time up to which there is nothing to move.
    let mut settled: BTreeMap<(u32, u32), i64> = BTreeMap::new();
    loop {
        looks.tick().await;
        let mut result = Ok(());
        for group in 1..=node.shard_count() {
            if node.cluster.leader(group) == Some(node.cluster.node_id()) && node.writes.check().is_ok() {
                result = result.and(round(&node, group, &mut settled).await);
            }
        }
        match result {
            Ok(()) => trouble.clear(),
            Err(error) if error.message != trouble => {
                trouble = error.message.clone();
                tracing::warn!(%error, "history waits to be moved to segments");
            }
            Err(_) => {}
        }
    }
}

/// Fetches the segments of this node's shards that are not on it, for as long as it runs.
pub async fn keep_segments(node: Arc<Node>) {
    let mut looks = tokio::time::interval(FETCH_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut trouble = String::new();
    loop {
        looks.tick().await;
        for root in artifacts::missing_segments(&node.shards, &node.blobs) {
            match segments::fetch(&node, root).await {
                Ok(()) => trouble.clear(),
                Err(error) if error.message != trouble => {
                    trouble = error.message.clone();
                    tracing::warn!(segment = %hex(&root), %error, "a segment of the history is not here yet");
                }
                Err(_) => {}
            }
        }
    }
}

/// Everything that is to be done in one shard now.
async fn round(node: &Arc<Node>, group: u32, settled: &mut BTreeMap<(u32, u32), i64>) -> Result<()> {
    let shard = Arc::clone(node.shard(group)?);
    trim(node, group, &shard).await?;
    for (layout, before_us) in cold(node)? {
        let known = settled.get(&(group, layout.storage_id)).is_some_and(|known| *known >= before_us);
        let late = shard.late_rows(layout.storage_id);
        let again = known && late >= late_min(&shard, layout.storage_id);
        if known && !again {
            continue;
        }
        let cold = Cold { storage_id: layout.storage_id, before_us, rows_max: SEGMENT_ROWS, again };
        let mut from = 0;
        while let Some(slot) = shard.cold_slot(&cold, from) {
            from = extract(node, group, &shard, &cold, slot, layout.clone()).await?;
            trim(node, group, &shard).await?;
        }
        settled.insert((group, layout.storage_id), before_us);
        shard.forget_late(layout.storage_id, late);
    }
    Ok(())
}

/// So many late rows are worth segments of their own: in proportion to what is there, so that segments stay few.
fn late_min(shard: &Shard, storage_id: u32) -> u64 {
    let tiers = shard.tiers();
    let rows: u64 = tiers.segments().iter().filter(|it| it.storage_id == storage_id).map(|it| it.rows).sum();
    LATE_ROWS_MIN.max(rows / LATE_SHARE)
}

/// The views with a hot window, and the event time before which their history is no longer hot.
fn cold(node: &Node) -> Result<Vec<(SegmentLayout, i64)>> {
    let catalog = node.meta.catalog();
    let mut found = Vec::new();
    for project in catalog.projects() {
        for view in project.feature_views().filter(|view| view.hot_window_us > 0) {
            let join_keys = project.join_keys(view)?;
            let row = RowSchema::new(&view.features)?;
            let step = (view.hot_window_us / STEPS_OF_WINDOW).clamp(STEP_MIN_US, STEP_MAX_US);
            let edge = now_us().saturating_sub(view.hot_window_us);
            let layout = SegmentLayout { storage_id: view.storage_id, join_keys, row };
            found.push((layout, edge - edge.rem_euclid(step)));
        }
    }
    Ok(found)
}

/// Writes and adds the segment that begins in slot `from`, if there is anything for it; the slot behind it.
async fn extract(
    node: &Arc<Node>,
    group: u32,
    shard: &Arc<Shard>,
    cold: &Cold,
    from: u16,
    layout: SegmentLayout,
) -> Result<u16> {
    let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
    let (replica, what) = (Arc::clone(shard), *cold);
    let writing = tokio::task::spawn_blocking(move || {
        let out = Pieces { pieces: pieces.clone(), buffer: Vec::with_capacity(PIECE_BYTES) };
        let done = replica.extract(&what, from, layout, out);
        let unfinished = match &done {
            Ok((Some(_), _)) => None,
            Ok((None, _)) => Some("there is nothing to move".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = unfinished {
            let _ = pieces.blocking_send(Err(PeerError::Unavailable(why)));
        }
        done.and_then(|(written, next)| match written {
            Some((extract, mut out)) => {
                out.flush().map_err(cairn_storage::Error::io("writing a segment"))?;
                Ok((Some(extract), next))
            }
            None => Ok((None, next)),
        })
    });
    let stored = segments::store(node, stream).await;
    let written = writing.await.map_err(|error| Error::internal(format!("a worker stopped: {error}")))?;
    let (written, next) = written?;
    let Some(extract) = written else { return Ok(next) };
    let stored = stored?;
    let root = Bytes::copy_from_slice(&stored.root);
    let segment = Segment { root, size: stored.size, ..extract.segment };
    let (rows, first, last) = (segment.rows, segment.first_slot, segment.last_slot);
    let ask = AddSegment { segment: Some(segment), expected_changes: extract.expected_changes };
    propose(node, group, Change::AddSegment(ask)).await?;
    let (root, bytes) = (hex(&stored.root), stored.size);
    tracing::info!(group, storage_id = cold.storage_id, rows, bytes, first, last, root, "history went to a segment");
    Ok(next)
}

/// Takes out of the database what its segments hold.
async fn trim(node: &Arc<Node>, group: u32, shard: &Arc<Shard>) -> Result<()> {
    loop {
        let replica = Arc::clone(shard);
        let next = crate::api::flight::blocking(move || Ok(replica.next_trim()?)).await?;
        let Some(next) = next else { return Ok(()) };
        propose(node, group, Change::TrimHistory(next)).await?;
    }
}

/// Takes a step.
///
/// # Errors
/// `Conflict` when the shard refused it: somebody else was faster, or slots move.
async fn propose(node: &Node, group: u32, change: Change) -> Result<()> {
    match shard_step::propose(node, group, SEGMENT_VERSION, change).await? {
        Some(refusal) => Err(Error::new(ErrorKind::Conflict, format!("shard {group}: {}", refusal.message))),
        None => Ok(()),
    }
}

/// Hands what is written on, piece by piece.
struct Pieces {
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
