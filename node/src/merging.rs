//! Segments that pile up become few, and lose what a view's retention gives up: done by each shard's leader.
//!
//! Nothing of it is kept here. A merge that is cut off leaves files that nobody names, and is found due again.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::tiering::step_of;
use crate::{segments, shard_step};
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::{Segment, shard_command::Change};
use cairn_storage::shard::{LOAD_VERSION, Merge, Shard};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Merges of one view and shard in one round, so that the others have their turn.
const MERGES_A_ROUND: usize = 8;

/// Does what is due in one shard now.
///
/// # Errors
/// `Conflict` when the segments changed meanwhile; `Unavailable` while one is not here.
pub async fn round(node: &Arc<Node>, group: u32, shard: &Arc<Shard>) -> Result<()> {
    let storage_ids: BTreeSet<u32> = shard.tiers().segments().iter().map(|it| it.storage_id).collect();
    for storage_id in storage_ids {
        for _ in 0..MERGES_A_ROUND {
            match due(node, shard, storage_id) {
                Some(merge) => run(node, group, shard, merge).await?,
                None => break,
            }
        }
    }
    Ok(())
}

fn due(node: &Node, shard: &Shard, storage_id: u32) -> Option<Merge> {
    let catalog = node.meta.catalog();
    let views = catalog.projects().flat_map(|project| project.feature_views());
    let retention_us = views.filter(|view| view.storage_id == storage_id).map(|view| view.retention_us).max()?;
    let step_us = step_of(retention_us);
    // Up to a step more than asked is kept, so that nothing is written anew for a few rows.
    let edge = now_us().saturating_sub(retention_us);
    let floor_us = (retention_us > 0).then(|| edge - edge.rem_euclid(step_us));
    let is_open = |job: u64| catalog.job(job).is_ok_and(|job| job.ended_us == 0);
    shard.merge_due(storage_id, floor_us, step_us, &is_open)
}

async fn run(node: &Arc<Node>, group: u32, shard: &Arc<Shard>, merge: Merge) -> Result<()> {
    let layout = shard.merge_layout(&merge)?;
    let (storage_id, merge) = (layout.storage_id, Arc::new(merge));
    let mut made: Vec<Segment> = Vec::new();
    let mut from = merge.first_slot();
    loop {
        let (replica, what, layout) = (Arc::clone(shard), Arc::clone(&merge), layout.clone());
        let writing = segments::write(node, move |out| {
            let (written, next) = replica.merge(&what, from, layout, out)?;
            let (segment, out) = written.unzip();
            Ok(((segment, next), out))
        });
        let ((segment, next), stored) = writing.await?;
        let (Some(segment), Some(stored)) = (segment, stored) else { break };
        made.push(Segment { root: Bytes::copy_from_slice(&stored.root), size: stored.size, ..segment });
        from = next;
    }
    let (inputs, outputs, rows) = (merge.inputs(), made.len(), made.iter().map(|it| it.rows).sum::<u64>());
    let change = Change::ReplaceSegments(Merge::clone(&merge).into_command(made));
    if let Some(refusal) = shard_step::propose(node, group, LOAD_VERSION, change).await? {
        return Err(Error::new(ErrorKind::Conflict, format!("shard {group}: {}", refusal.message)));
    }
    tracing::info!(group, storage_id, inputs, outputs, rows, "segments were merged");
    Ok(())
}
