//! History that is no longer hot goes to segments: each shard's leader writes them, stores them durably
//! (`segments`), and lets their rows leave the database.
//!
//! Nothing of it is kept here: what is next follows from the shard's own record of its segments, so another leader goes
//! on where this one stopped, and a step that comes twice or too late is refused. Every node fetches the segments of its
//! shards that it lacks.

use crate::artifacts;
use crate::backfill::load;
use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::{merging, segments, shard_step};
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{AddSegment, Segment, shard_command::Change};
use cairn_storage::blob::hex;
use cairn_storage::row::RowSchema;
use cairn_storage::segment::SegmentLayout;
use cairn_storage::shard::{Cold, SEGMENT_VERSION, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A segment ends with the slot in which it reaches so many rows.
const SEGMENT_ROWS: u64 = 1 << 20;
/// Rows that came late go to segments when there are so many of them in a shard, and this share of what is in segments.
/// Fewer wait for the next step of the window.
const LATE_ROWS_MIN: u64 = 1 << 16;
const LATE_SHARE: u64 = 8;
/// Between two looks for segments that are not on this node.
const FETCH_EVERY: Duration = Duration::from_millis(250);
/// Longest wait between two tries to fetch the same one; the first is as above, each the double of the one before.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(8);
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
        // Whether or not there is anything to move: who set a store up wrong is told at the start.
        let _ = segments::ready(&node).await;
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
    // By segment that was asked for in vain: when it is again, and how long that is.
    let mut waits: BTreeMap<[u8; 32], (Instant, Duration)> = BTreeMap::new();
    loop {
        looks.tick().await;
        let missing = artifacts::missing_segments(&node.shards, &node.blobs);
        waits.retain(|root, _| missing.contains(root));
        for root in missing {
            let wait = match waits.get(&root) {
                Some((again, _)) if Instant::now() < *again => continue,
                Some((_, last)) => (*last * 2).min(FETCH_WAIT_MAX),
                None => FETCH_EVERY,
            };
            let Err(error) = segments::fetch(&node, root).await else {
                trouble.clear();
                continue;
            };
            waits.insert(root, (Instant::now() + wait, wait));
            if error.message != trouble {
                trouble = error.message.clone();
                tracing::warn!(segment = %hex(&root), %error, "a segment of the history is not here yet");
            }
        }
    }
}

/// Everything that is to be done in one shard now.
async fn round(node: &Arc<Node>, group: u32, settled: &mut BTreeMap<(u32, u32), i64>) -> Result<()> {
    let shard = Arc::clone(node.shard(group)?);
    trim(node, group, &shard).await?;
    let roots: Vec<_> =
        shard.tiers().segments().iter().filter_map(|it| <[u8; 32]>::try_from(it.root.as_ref()).ok()).collect();
    segments::complete(node, roots.into_iter()).await?;
    finish_loads(node, group, &shard).await?;
    merging::round(node, group, &shard).await?;
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
            segments::ready(node).await?;
            from = extract(node, group, &shard, &cold, slot, layout.clone()).await?;
            trim(node, group, &shard).await?;
        }
        settled.insert((group, layout.storage_id), before_us);
        shard.forget_late(layout.storage_id, late);
    }
    Ok(())
}

/// What jobs loaded and, ended early, left half done.
async fn finish_loads(node: &Arc<Node>, group: u32, shard: &Shard) -> Result<()> {
    let catalog = node.meta.catalog();
    let tiers = shard.tiers();
    let loads = tiers.segments().iter().filter_map(|it| Some((it.storage_id, it.load?)));
    let ended = |job: u64| catalog.job(job).map_or(true, |job| job.ended_us != 0);
    let left: BTreeSet<u32> = loads.filter(|(_, load)| !load.newest && ended(load.job)).map(|(id, _)| id).collect();
    for storage_id in left {
        load::finish_shard(node, group, storage_id).await?;
    }
    Ok(())
}

/// So many late rows are worth segments of their own: in proportion to what is there, so that segments stay few.
fn late_min(shard: &Shard, storage_id: u32) -> u64 {
    let tiers = shard.tiers();
    let rows: u64 = tiers.segments().iter().filter(|it| it.storage_id == storage_id).map(|it| it.rows).sum();
    LATE_ROWS_MIN.max(rows / LATE_SHARE)
}

/// How far the edge of a window moves at once.
pub fn step_of(window_us: i64) -> i64 {
    (window_us / STEPS_OF_WINDOW).clamp(STEP_MIN_US, STEP_MAX_US)
}

/// The views with a hot window, and the event time before which their history is no longer hot.
fn cold(node: &Node) -> Result<Vec<(SegmentLayout, i64)>> {
    let catalog = node.meta.catalog();
    let mut found = Vec::new();
    for project in catalog.projects() {
        for view in project.feature_views().filter(|view| view.hot_window_us > 0) {
            let join_keys = project.join_keys(view)?;
            let row = RowSchema::new(&view.features)?;
            let step = step_of(view.hot_window_us);
            let edge = now_us().saturating_sub(view.hot_window_us);
            let layout = SegmentLayout { storage_id: view.storage_id, join_keys, row, load: false };
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
    let (replica, what) = (Arc::clone(shard), *cold);
    let writing = segments::write(node, move |out| {
        let (written, next) = replica.extract(&what, from, layout, out)?;
        let (extract, out) = written.unzip();
        Ok(((extract, next), out))
    });
    let ((extract, next), stored) = writing.await?;
    let (Some(extract), Some(stored)) = (extract, stored) else { return Ok(next) };
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
