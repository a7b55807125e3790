//! Slots move from one shard to another: whoever leads meta drives the move, step by step.
//!
//! Nothing of a move is kept here. Which step is next follows from what the two shards and meta say
//! ([`cairn_storage::shard::next_asks`]), so another node goes on where this one stopped, and two at once do no harm.

use crate::error::{Error, Result};
use crate::meta_write;
use crate::node::Node;
use crate::shard_step;
use cairn_proto::record::v1::{SlotExportState, SlotMove, SlotMoveState, shard_command::Change};
use cairn_storage::shard::{Ask, MOVE_VERSION, next_asks};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks whether there is something to move.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a step that could not be taken.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Drives moves for as long as the node runs.
pub async fn drive(node: Arc<Node>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Said once, however often it is tried.
    let mut trouble = String::new();
    let mut sealed = None;
    loop {
        looks.tick().await;
        while let Some(it) = mine(&node) {
            match step(&node, &it, &mut sealed).await {
                Ok(true) => trouble.clear(),
                Ok(false) => break,
                Err(error) => {
                    if error.message != trouble {
                        trouble = error.message.clone();
                        tracing::warn!(slot_move = it.id, %error, "a move of slots has to wait");
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }
}

/// The move under way, where this node is to drive it.
fn mine(node: &Node) -> Option<SlotMove> {
    if node.cluster.leader(0) != Some(node.cluster.node_id()) {
        return None;
    }
    node.meta.catalog().cluster()?.slot_move
}

/// Does what is next; `false` when these replicas are behind, or somebody else was faster.
async fn step(node: &Arc<Node>, it: &SlotMove, sealed: &mut Option<Instant>) -> Result<bool> {
    let (from, to) = (Arc::clone(node.shard(it.from)?), Arc::clone(node.shard(it.to)?));
    let moved = *it;
    let asks = crate::api::flight::blocking(move || Ok(next_asks(&moved, &from, &to)?)).await?;
    if let [Ask::To(part), Ask::From(release @ Change::ReleaseSlots(_))] = asks.as_slice() {
        // Writes wait for both, and neither needs the other: what is released stays to be copied.
        let part = propose(node, it, it.to, part.clone());
        let (part, release) = tokio::join!(part, propose(node, it, it.from, release.clone()));
        return Ok(part? & release?);
    }
    let mut done = false;
    for ask in asks {
        let (shard, change) = match ask {
            Ask::From(change) => (it.from, change),
            Ask::To(change) => (it.to, change),
            Ask::Meta(change) => {
                meta_write::propose(node, *change, String::new()).await?;
                done = true;
                continue;
            }
        };
        let what = note(it, &change, sealed);
        if !propose(node, it, shard, change).await? {
            return Ok(false);
        }
        what();
        done = true;
    }
    Ok(done)
}

/// What is to be said of a step once it is done.
fn note<'a>(it: &'a SlotMove, change: &Change, sealed: &'a mut Option<Instant>) -> Box<dyn FnOnce() + Send + 'a> {
    let SlotMove { id, first, last, from, to, .. } = *it;
    match change {
        Change::StartExport(_) => Box::new(move || tracing::info!(id, first, last, from, to, "a move of slots begins")),
        Change::SealSlots(_) => {
            *sealed = Some(Instant::now());
            Box::new(|| ())
        }
        Change::ActivateSlots(_) => Box::new(move || {
            let sealed_ms = sealed.take().map(|at| at.elapsed().as_millis() as u64);
            tracing::info!(id, sealed_ms, "the slots have moved");
        }),
        Change::DropImport(_) => Box::new(move || tracing::info!(id, "a move of slots is given up")),
        _ => Box::new(|| ()),
    }
}

/// Takes a step; `false` when the shard refused it.
async fn propose(node: &Node, it: &SlotMove, shard: u32, change: Change) -> Result<bool> {
    let refusal = shard_step::propose(node, shard, MOVE_VERSION, change).await?;
    if let Some(refusal) = &refusal {
        tracing::debug!(slot_move = it.id, shard, refused = refusal.message, "a step of a move was refused");
    }
    Ok(refusal.is_none())
}

/// How far a move is, as this node's replicas know: its step, and the rows copied.
///
/// # Errors
/// `Internal` for a shard that the cluster does not have.
pub fn progress(node: &Node, it: &SlotMove) -> Result<(&'static str, u64), Error> {
    let (from, to) = (node.shard(it.from)?.slots(), node.shard(it.to)?.slots());
    let import = to.import().filter(|import| import.id == it.id);
    let rows = import.map_or(0, |import| import.rows);
    let export = from.export().filter(|export| export.id == it.id);
    let step = match (it.state(), export.map(|export| export.state())) {
        (SlotMoveState::Switched, _) => "deleting the old copy",
        (_, Some(SlotExportState::Sealed | SlotExportState::Released)) => "handing over",
        (SlotMoveState::Cancelling, _) => "giving up",
        (SlotMoveState::Copying, None) => "beginning",
        (SlotMoveState::Copying, Some(SlotExportState::Copying)) => match import {
            Some(import) if import.cursor.first() == Some(&2) => "catching up",
            _ => "copying",
        },
    };
    Ok((step, rows))
}
