//! Slots move between shards while everything else breaks.
//!
//! What moves is what one shard had in the beginning, as a whole: rows of one batch stay in one shard, which the promise
//! about batches rests on.

use crate::Result;
use crate::fleet::Fleet;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const SLOTS: u32 = 4_096;

/// Begins a move, or gives up the one that is under way. It goes on by itself, whatever breaks meanwhile. `None`: one shard
/// has all slots, a move is left to go on, or no node answers.
pub async fn shift(fleet: &Fleet, random: &mut StdRng) -> Result<Option<String>> {
    for eye in fleet.eyes() {
        let Ok(status) = eye.status().await else { continue };
        let shards = status.groups.iter().filter(|group| group.group > 0).count() as u32;
        if shards < 2 || status.slots.is_empty() {
            return Ok(None);
        }
        if let Some(under_way) = &status.slot_move {
            // Mostly it is left alone.
            if random.random_range(0..3) > 0 {
                return Ok(None);
            }
            let cancelled = eye.cancel_slot_move().await;
            return Ok(Some(format!("move {} given up: {}", under_way.id, told(cancelled.map(|it| it.step)))));
        }
        let home = random.random_range(1..=shards);
        let of_home = |slot: &u32| 1 + slot * shards / SLOTS == home;
        let first = (0..SLOTS).find(of_home).unwrap_or_default();
        let last = (0..SLOTS).rfind(of_home).unwrap_or_default();
        let now = status.slots.iter().find(|run| (run.first..=run.last).contains(&first)).map_or(0, |run| run.shard);
        let others: Vec<u32> = (1..=shards).filter(|shard| *shard != now).collect();
        let Some(&to) = others.choose(random) else { continue };
        let begun = eye.move_slots(first, last, to).await;
        return Ok(Some(format!("slots {first}-{last} from shard {now} to {to}: {}", told(begun.map(|it| it.step)))));
    }
    Ok(None)
}

fn told(answer: cairn_client::Result<String>) -> String {
    answer.unwrap_or_else(|error| error.to_string())
}
