//! Where the rows of a plan come from.

use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_storage::keys::slot_of;
use cairn_storage::shard::Shard;
pub use cairn_storage::shard::{Lookup, RowRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Receives the row found for the n-th key or lookup, in any order, once each.
pub type Visit<'v> = dyn FnMut(usize, Option<RowRef<'_>>) + 'v;

/// Stored rows by entity key.
pub trait RowSource: Send + Sync {
    /// The newest row of each key, by (event time, created time, commit).
    ///
    /// # Errors
    /// `Unavailable` when a key's rows are not reachable here; what storage reports.
    fn latest(&self, storage_id: u32, keys: &[&[u8]], visit: &mut Visit<'_>) -> Result<()>;

    /// For each lookup the newest row within its three cutoffs.
    ///
    /// # Errors
    /// As [`Self::latest`].
    fn as_of(&self, storage_id: u32, lookups: &[Lookup<'_>], visit: &mut Visit<'_>) -> Result<()>;
}

/// The shards of this node, with the slots each of them holds.
pub struct ShardedSource {
    shards: Vec<Arc<Shard>>,
    /// slot -> position in `shards`; [`AWAY`] = not on this node.
    places: Vec<u16>,
    /// One shard holds every slot, so nothing needs routing.
    single: bool,
}

const AWAY: u16 = u16::MAX;

impl ShardedSource {
    /// - `slot_shard`: shard group of each of the 4096 slots
    /// - `shards`: the groups that are on this node
    ///
    /// # Errors
    /// `InvalidArgument` when the map has another length than there are slots.
    pub fn new(slot_shard: &[u32], shards: impl IntoIterator<Item = (u32, Arc<Shard>)>) -> Result<Self> {
        if slot_shard.len() != SLOTS {
            return Err(Error::InvalidArgument(format!("a slot map has {SLOTS} entries, not {}", slot_shard.len())));
        }
        let mut held = Vec::new();
        let mut by_group = BTreeMap::new();
        for (group, shard) in shards {
            by_group.insert(group, u16::try_from(held.len()).unwrap_or(AWAY));
            held.push(shard);
        }
        let places: Vec<u16> = slot_shard.iter().map(|group| by_group.get(group).copied().unwrap_or(AWAY)).collect();
        let single = held.len() == 1 && !places.contains(&AWAY);
        Ok(Self { shards: held, places, single })
    }

    /// Calls `read` once for each shard that holds any of the keys, with the positions of those keys, ascending.
    fn route<'k>(
        &self,
        keys: usize,
        key: impl Fn(usize) -> Option<&'k [u8]>,
        mut read: impl FnMut(&Shard, Option<&[u32]>) -> Result<()>,
    ) -> Result<()> {
        let place_of = |position: usize| {
            let slot = key(position).map(slot_of).unwrap_or_default();
            match self.places.get(usize::from(slot)) {
                Some(place) if *place != AWAY => Ok(usize::from(*place)),
                _ => Err(Error::Unavailable(format!("the rows of slot {slot} are not on this node; ask another"))),
            }
        };
        if keys == 0 {
            return Ok(());
        }
        let first = place_of(0)?;
        if keys == 1 || self.single {
            return self.shards.get(first).map_or(Ok(()), |shard| read(shard, None));
        }
        let mut positions: Vec<Vec<u32>> = vec![Vec::new(); self.shards.len()];
        for position in 0..keys {
            if let Some(list) = positions.get_mut(place_of(position)?) {
                list.push(position as u32);
            }
        }
        for (shard, positions) in self.shards.iter().zip(&positions) {
            if !positions.is_empty() {
                read(shard, Some(positions))?;
            }
        }
        Ok(())
    }
}

impl RowSource for ShardedSource {
    fn latest(&self, storage_id: u32, keys: &[&[u8]], visit: &mut Visit<'_>) -> Result<()> {
        self.route(
            keys.len(),
            |position| keys.get(position).copied(),
            |shard, positions| {
                let Some(positions) = positions else { return Ok(shard.latest(storage_id, keys, visit)?) };
                let chosen = choose(keys, positions);
                Ok(shard.latest(storage_id, &chosen, &mut |n, row| back(positions, n, row, visit))?)
            },
        )
    }

    fn as_of(&self, storage_id: u32, lookups: &[Lookup<'_>], visit: &mut Visit<'_>) -> Result<()> {
        self.route(
            lookups.len(),
            |position| lookups.get(position).map(|lookup| lookup.key),
            |shard, positions| {
                let Some(positions) = positions else { return Ok(shard.as_of(storage_id, lookups, visit)?) };
                let chosen = choose(lookups, positions);
                Ok(shard.as_of(storage_id, &chosen, &mut |n, row| back(positions, n, row, visit))?)
            },
        )
    }
}

fn choose<T: Copy>(all: &[T], positions: &[u32]) -> Vec<T> {
    positions.iter().filter_map(|position| all.get(*position as usize).copied()).collect()
}

fn back(positions: &[u32], n: usize, row: Option<RowRef<'_>>, visit: &mut Visit<'_>) {
    if let Some(position) = positions.get(n) {
        visit(*position as usize, row);
    }
}
