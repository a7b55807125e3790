//! One walk over a view's history for many lookups, by all cores: each takes slots with an equal share of the lookups.

use super::ShardedSource;
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_storage::shard::{Shard, Sweep, Swept, Target, sort_targets};

/// Cores that one sweep keeps busy.
const THREADS_MAX: usize = 8;

/// What one shard found of a part of the lookups.
pub struct Share {
    /// Which rows of the keys were asked for, in the order of the answers.
    pub rows: Vec<u32>,
    pub swept: Swept,
}

impl ShardedSource {
    pub(super) fn sweep_shards(&self, ask: &Sweep<'_>, targets: Vec<Target>) -> Result<Vec<Share>> {
        let runs = self.runs_of(0..SLOTS as u16)?;
        let mut place_of = vec![0_usize; SLOTS];
        for (place, slots) in &runs.places {
            for slot in slots.clone() {
                place_of[usize::from(slot)] = usize::from(*place);
            }
        }
        let counts = counts(&targets);
        let worker_of = shares(
            &counts,
            targets.len(),
            std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX),
        );
        let workers = worker_of.last().map_or(1, |last| last + 1);
        let mut sizes = vec![vec![0; self.shards.len()]; workers];
        for (slot, count) in counts.iter().enumerate() {
            sizes[worker_of[slot]][place_of[slot]] += count;
        }
        let room = |sizes: Vec<usize>| sizes.into_iter().map(Vec::with_capacity).collect();
        let mut work: Vec<Vec<Vec<Target>>> = sizes.into_iter().map(room).collect();
        for target in &targets {
            let slot = usize::from(target.slot);
            let bucket = work.get_mut(worker_of[slot]).and_then(|buckets| buckets.get_mut(place_of[slot]));
            bucket.ok_or_else(|| Error::internal("a slot map names a shard that is not here"))?.push(*target);
        }
        drop(targets);
        let sweep = |buckets: Vec<Vec<Target>>| -> Result<Vec<Share>> {
            let asked = self.shards.iter().zip(buckets).filter(|(_, targets)| !targets.is_empty());
            asked.map(|(shard, targets)| share(shard, ask, targets)).collect()
        };
        let shares = std::thread::scope(|scope| {
            let mut work = work.into_iter();
            let mine = work.next();
            let others: Vec<_> = work.map(|buckets| scope.spawn(|| sweep(buckets))).collect();
            let mut all = mine.map(&sweep).transpose()?.unwrap_or_default();
            for other in others {
                all.extend(other.join().map_err(|_| Error::internal("a worker of a join panicked"))??);
            }
            Ok::<_, Error>(all)
        })?;
        self.still(&runs)?;
        Ok(shares)
    }
}

fn share(shard: &Shard, ask: &Sweep<'_>, mut targets: Vec<Target>) -> Result<Share> {
    sort_targets(&mut targets, ask.keys);
    let swept = shard.sweep(ask, &targets)?;
    Ok(Share { rows: targets.iter().map(|it| it.row).collect(), swept })
}

/// Lookups of each slot.
fn counts(targets: &[Target]) -> Vec<usize> {
    let mut counts = vec![0; SLOTS];
    for target in targets {
        counts[usize::from(target.slot)] += 1;
    }
    counts
}

/// Who of `workers` takes each slot: runs of slots with about as many lookups each.
fn shares(counts: &[usize], lookups: usize, workers: usize) -> Vec<usize> {
    let each = lookups.div_ceil(workers.max(1)).max(1);
    let mut before = 0;
    let worker = |count: &usize| {
        let worker = before / each;
        before += count;
        worker
    };
    counts.iter().map(worker).collect()
}
