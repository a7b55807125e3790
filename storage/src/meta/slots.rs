//! The slot map, and the one move of slots that may be under way.
//!
//! The shards decide who has a slot (ADR-0009); this is what the cluster wants, and what whoever drives a move goes by.

use super::Row;
use super::apply::{Answer, Context};
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{BeginSlotMove, ClusterInfo, Done, SlotMove, SlotMoveState};

/// The map as runs of slots in one shard: (first, last, shard).
pub fn slot_runs(cluster: &ClusterInfo) -> Vec<(u32, u32, u32)> {
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for (slot, shard) in (0..).zip(&cluster.slot_shard) {
        match runs.last_mut() {
            Some((_, last, of)) if of == shard => *last = slot,
            _ => runs.push((slot, slot, *shard)),
        }
    }
    runs
}

/// The move as people read it.
fn describe(it: &SlotMove) -> String {
    format!("move {} of slots {}-{} from shard {} to shard {}", it.id, it.first, it.last, it.from, it.to)
}

/// Begins a move. The same again, while it is under way, gets the same move.
pub fn begin(context: &Context<'_>, ask: &BeginSlotMove) -> Answer {
    let cluster = cluster(context)?;
    let BeginSlotMove { first, last, from, to } = *ask;
    if first > last || last as usize >= SLOTS {
        return Err(Error::InvalidArgument(format!(
            "{first}-{last} is no range of slots: they go from 0 to {}, the smaller one first",
            SLOTS - 1
        )));
    }
    for shard in [from, to] {
        if !(1..=cluster.shards).contains(&shard) {
            return Err(Error::NotFound(format!(
                "shard {shard} not found; this cluster has shards 1 to {}",
                cluster.shards
            )));
        }
    }
    if let Some(under_way) = &cluster.slot_move {
        let same = (under_way.first, under_way.last, under_way.from, under_way.to) == (first, last, from, to);
        if same && under_way.state() != SlotMoveState::Cancelling {
            return Ok((Outcome::SlotMove(*under_way), Vec::new()));
        }
        return Err(Error::Conflict(format!(
            "{} is under way, and there is one at a time; `cairn cluster status` shows how far it is, `cairn cluster \
             move-slots --cancel` gives it up",
            describe(under_way)
        )));
    }
    let wanted = cluster.slot_shard.get(first as usize..=last as usize).unwrap_or_default();
    if wanted.iter().all(|shard| *shard == to) {
        return Err(Error::InvalidArgument(format!("slots {first}-{last} are in shard {to} already")));
    }
    if wanted.iter().any(|shard| *shard != from) {
        let inside = slot_runs(cluster).into_iter().filter(|(low, high, _)| *low <= last && *high >= first);
        let runs: Vec<String> = inside
            .map(|(low, high, shard)| format!("{}-{} in shard {shard}", low.max(first), high.min(last)))
            .collect();
        return Err(Error::InvalidArgument(format!(
            "slots {first}-{last} are not all in shard {from}: {}; move the slots of one shard at a time",
            runs.join(", ")
        )));
    }
    let (id, epoch, state) = (context.index, cluster.slot_map_epoch + 1, SlotMoveState::Copying as i32);
    let begun = SlotMove { id, epoch, first, last, from, to, state, begun_us: context.now_us };
    let changed = ClusterInfo { slot_move: Some(begun), ..ClusterInfo::clone(cluster) };
    Ok((Outcome::SlotMove(begun), vec![Row::Cluster(changed)]))
}

/// The new shard has the slots.
pub fn switch(context: &Context<'_>, id: u64) -> Answer {
    let cluster = cluster(context)?;
    let it = under_way(cluster, id)?;
    if it.state() == SlotMoveState::Switched {
        return Ok((Outcome::SlotMove(it), Vec::new()));
    }
    let switched = SlotMove { state: SlotMoveState::Switched as i32, ..it };
    let mut changed =
        ClusterInfo { slot_move: Some(switched), slot_map_epoch: it.epoch, ..ClusterInfo::clone(cluster) };
    let moved = changed.slot_shard.get_mut(it.first as usize..=it.last as usize);
    moved.into_iter().flatten().for_each(|shard| *shard = it.to);
    Ok((Outcome::SlotMove(switched), vec![Row::Cluster(changed)]))
}

/// Nothing of the move is left in the shards.
pub fn end(context: &Context<'_>, id: u64) -> Answer {
    let cluster = cluster(context)?;
    let it = under_way(cluster, id)?;
    if it.state() == SlotMoveState::Copying {
        return Err(Error::Conflict(format!("{} is neither complete nor given up", describe(&it))));
    }
    let changed = ClusterInfo { slot_move: None, ..ClusterInfo::clone(cluster) };
    Ok((Outcome::Done(Done {}), vec![Row::Cluster(changed)]))
}

/// Gives a move up, unless its shards are past that: then it is completed all the same. `id` 0: whichever is under way.
pub fn cancel(context: &Context<'_>, id: u64) -> Answer {
    let cluster = cluster(context)?;
    let it = match &cluster.slot_move {
        Some(it) if id == 0 => *it,
        None if id == 0 => return Err(Error::NotFound("no move of slots is under way".to_owned())),
        _ => under_way(cluster, id)?,
    };
    match it.state() {
        SlotMoveState::Switched => Err(Error::Conflict(format!(
            "{} has happened, and only the old shard's copy is still to be deleted; to undo it, move the slots back",
            describe(&it)
        ))),
        SlotMoveState::Cancelling => Ok((Outcome::SlotMove(it), Vec::new())),
        SlotMoveState::Copying => {
            let cancelling = SlotMove { state: SlotMoveState::Cancelling as i32, ..it };
            let changed = ClusterInfo { slot_move: Some(cancelling), ..ClusterInfo::clone(cluster) };
            Ok((Outcome::SlotMove(cancelling), vec![Row::Cluster(changed)]))
        }
    }
}

fn cluster<'a>(context: &Context<'a>) -> Result<&'a ClusterInfo> {
    let cluster = context.catalog.cluster();
    cluster.map(AsRef::as_ref).ok_or_else(|| Error::Conflict("the cluster is not made yet; try again".to_owned()))
}

fn under_way(cluster: &ClusterInfo, id: u64) -> Result<SlotMove> {
    match cluster.slot_move {
        Some(it) if it.id == id => Ok(it),
        Some(it) => Err(Error::Conflict(format!("move {id} of slots is not under way; {} is", describe(&it)))),
        None => Err(Error::NotFound(format!("move {id} of slots is not under way: it is complete, or was given up"))),
    }
}
