//! Where the rows of a plan come from.

mod sweep;

pub use sweep::Share;

use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::Segment;
use cairn_storage::keys::slot_of;
use cairn_storage::shard::{Claims, Shard};
pub use cairn_storage::shard::{Lookup, RowRef, Sweep, Target};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Receives the row found for the n-th key or lookup, in any order, once each.
pub type Visit<'v> = dyn FnMut(usize, Option<RowRef<'_>>) + 'v;

/// Stored rows by entity key.
pub trait RowSource: Send + Sync {
    /// The newest row of each key, by (event time, created time, commit).
    ///
    /// # Errors
    /// `Moving` when a key's rows moved to another shard meanwhile: read all again; what storage reports.
    fn latest(&self, storage_id: u32, keys: &[&[u8]], visit: &mut Visit<'_>) -> Result<()>;

    /// For each lookup the newest row within its three cutoffs.
    ///
    /// # Errors
    /// As [`Self::latest`].
    fn as_of(&self, storage_id: u32, lookups: &[Lookup<'_>], visit: &mut Visit<'_>) -> Result<()>;

    /// Many lookups in one walk over the view's history; `None` from a source that has no such way. See
    /// [`cairn_storage::shard::Shard::sweep`] for what lookups must be like.
    ///
    /// # Errors
    /// As [`Self::latest`].
    fn sweep(&self, _ask: &Sweep<'_>, _targets: Vec<Target>) -> Result<Option<Vec<Share>>> {
        Ok(None)
    }

    /// After [`Error::Moving`]: blocks until the same read may do better, no longer than `pause`.
    fn wait_moved(&self, _pause: Duration) {}
}

/// The shards of this node, and which of them has each slot.
///
/// A slot is read in the shard whose local replica claims it with the highest epoch. That is right at every read level,
/// because a read first brings all local replicas to its level: what the old shard's replica holds until the new one's
/// claims the slot is all there was at that level (ADR-0009).
pub struct ShardedSource {
    shards: Vec<Arc<Shard>>,
    groups: Arc<[u32]>,
    /// As long as no slot ever moved.
    home: Arc<Table>,
    /// Counts the changes of `moved`; 0 = go by `home`.
    version: AtomicU64,
    moved: Mutex<Moved>,
    changed: Condvar,
}

/// What the shards say, and what follows from it.
struct Moved {
    claims: Vec<Option<Claims>>,
    table: Arc<Table>,
}

#[derive(PartialEq)]
struct Table {
    /// slot -> position in `shards`; [`AWAY`] = no replica here claims it.
    places: Vec<u16>,
    /// One shard holds every slot, so nothing needs routing.
    single: bool,
}

const AWAY: u16 = u16::MAX;

/// Which shard has each slot, of one moment: what belongs together is cut by one of these.
#[derive(Clone)]
pub struct Routes {
    table: Arc<Table>,
    groups: Arc<[u32]>,
}

impl Routes {
    /// The shard group of a slot; `None` while no replica on this node claims it.
    pub fn shard_of(&self, slot: u16) -> Option<u32> {
        let place = *self.table.places.get(usize::from(slot))?;
        self.groups.get(usize::from(place)).copied()
    }
}

/// Slots of this node to be read whole, and the shards that have them: at one moment.
#[derive(Clone)]
pub struct Runs {
    runs: Vec<(Arc<Shard>, Range<u16>)>,
    places: Vec<(u16, Range<u16>)>,
    version: u64,
}

impl Runs {
    /// Each shard with a range of its slots, ascending.
    pub fn each(&self) -> impl Iterator<Item = (&Arc<Shard>, Range<u16>)> {
        self.runs.iter().map(|(shard, slots)| (shard, slots.clone()))
    }
}

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.places.first(), self.places.last());
        let (first, end) = (first.map_or(0, |(_, run)| run.start), last.map_or(0, |(_, run)| run.end));
        write!(f, "slots {first} to {}", end.saturating_sub(1))
    }
}

/// Between two tries of a read whose slots move: an end of it wakes the reader earlier.
const PAUSE: Duration = Duration::from_millis(5);

impl ShardedSource {
    /// - `home`: shard group of each of the 4096 slots before any moves
    /// - `shards`: the groups that are on this node
    ///
    /// # Errors
    /// `InvalidArgument` when the map has another length than there are slots.
    pub fn new(home: &[u32], shards: impl IntoIterator<Item = (u32, Arc<Shard>)>) -> Result<Arc<Self>> {
        if home.len() != SLOTS {
            return Err(Error::InvalidArgument(format!("a slot map has {SLOTS} entries, not {}", home.len())));
        }
        let (groups, shards): (Vec<u32>, Vec<Arc<Shard>>) = shards.into_iter().unzip();
        let by_group: BTreeMap<u32, u16> =
            groups.iter().enumerate().map(|(place, group)| (*group, u16::try_from(place).unwrap_or(AWAY))).collect();
        let places: Vec<u16> = home.iter().map(|group| by_group.get(group).copied().unwrap_or(AWAY)).collect();
        let single = shards.len() == 1 && !places.contains(&AWAY);
        let home = Arc::new(Table { places, single });
        let moved = Mutex::new(Moved { claims: vec![None; shards.len()], table: Arc::clone(&home) });
        let (version, changed) = (AtomicU64::new(0), Condvar::new());
        let source = Arc::new(Self { shards, groups: groups.into(), home, version, moved, changed });
        for (place, shard) in source.shards.iter().enumerate() {
            let told = Arc::downgrade(&source);
            shard.follow_claims(move |claims| {
                if let Some(source) = told.upgrade() {
                    source.take_claims(place, claims);
                }
            });
        }
        Ok(source)
    }

    /// A shard of this node claims other slots now.
    fn take_claims(&self, place: usize, claims: &Claims) {
        let mut moved = self.moved.lock();
        if let Some(known) = moved.claims.get_mut(place) {
            *known = Some(claims.clone());
        }
        let best = |slot: u16| {
            let home = self.home.places.get(usize::from(slot)).copied().unwrap_or(AWAY);
            let claim = |(place, claims): (u16, &Option<Claims>)| {
                let epoch = match claims {
                    Some(claims) => claims.epoch(slot, home == place)?,
                    None if home == place => 1,
                    None => return None,
                };
                Some((epoch, place))
            };
            (0..).zip(&moved.claims).filter_map(claim).max().map_or(AWAY, |(_, place)| place)
        };
        let places: Vec<u16> = (0..SLOTS as u16).map(best).collect();
        let table = Table { single: self.home.single && !places.contains(&AWAY), places };
        if table != *moved.table {
            moved.table = Arc::new(table);
            self.version.fetch_add(1, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Whether some of the history here is in segments.
    pub fn has_segments(&self) -> bool {
        self.shards.iter().any(|shard| !shard.tiers().segments().is_empty())
    }

    /// Counts up whenever a slot is read in another shard than before, or in none.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Blocks until the version is another one than `seen`, no longer than `pause`.
    pub fn wait_changed(&self, seen: u64, pause: Duration) {
        let mut moved = self.moved.lock();
        if self.version() == seen {
            self.changed.wait_for(&mut moved, pause);
        }
    }

    /// Who has which slot, of one moment.
    pub fn routes(&self) -> Routes {
        Routes { table: self.table(), groups: Arc::clone(&self.groups) }
    }

    /// All slots in `parts` equal parts, or fewer.
    ///
    /// # Errors
    /// In a part's place `Moving`, when one of its slots is in no shard at this moment.
    pub fn runs(&self, parts: usize) -> Vec<Result<Runs>> {
        let slots = SLOTS as u16;
        let step = usize::from(slots).div_ceil(parts.max(1));
        (0..slots)
            .step_by(step)
            .map(|first| self.runs_of(first..slots.min(first.saturating_add(step as u16))))
            .collect()
    }

    /// The slot of one entity.
    ///
    /// # Errors
    /// `Moving`, as above.
    pub fn run_of(&self, key: &[u8]) -> Result<Runs> {
        let slot = slot_of(key);
        self.runs_of(slot..slot + 1)
    }

    fn runs_of(&self, slots: Range<u16>) -> Result<Runs> {
        let version = self.version();
        let table = self.table();
        let mut places: Vec<(u16, Range<u16>)> = Vec::new();
        for slot in slots {
            let place = table.places.get(usize::from(slot)).copied().unwrap_or(AWAY);
            if place == AWAY {
                return Err(Error::Moving(format!("slot {slot} is between two shards on this node; try again")));
            }
            match places.last_mut() {
                Some((last, run)) if *last == place => run.end = slot + 1,
                _ => places.push((place, slot..slot + 1)),
            }
        }
        let shard =
            |(place, run): &(u16, Range<u16>)| Some((Arc::clone(self.shards.get(usize::from(*place))?), run.clone()));
        let runs: Option<Vec<_>> = places.iter().map(shard).collect();
        let runs = runs.ok_or_else(|| Error::internal("a slot map names a shard that is not here"))?;
        Ok(Runs { runs, places, version })
    }

    /// Whether all that was read of `runs` until now is all there was.
    ///
    /// # Errors
    /// `Moving` when a slot of theirs has moved to another shard since.
    pub fn still(&self, runs: &Runs) -> Result<()> {
        if self.version() == runs.version {
            return Ok(());
        }
        let table = self.table();
        let moved = |(place, run): &(u16, Range<u16>)| {
            run.clone().find(|slot| table.places.get(usize::from(*slot)) != Some(place))
        };
        match runs.places.iter().find_map(moved) {
            Some(slot) => {
                Err(Error::Moving(format!("slot {slot} moved to another shard while it was read; try again")))
            }
            None => Ok(()),
        }
    }

    /// The segments of history of each shard here, by its group.
    pub fn segments(&self) -> Vec<(u32, Segment)> {
        let shards = self.groups.iter().zip(&self.shards);
        shards.flat_map(|(group, shard)| shard.tiers().segments().to_vec().into_iter().map(|it| (*group, it))).collect()
    }

    fn table(&self) -> Arc<Table> {
        if self.version() == 0 { Arc::clone(&self.home) } else { Arc::clone(&self.moved.lock().table) }
    }

    /// Calls `read` once for each shard that holds any of the keys, with the positions of those keys, ascending.
    ///
    /// # Errors
    /// `Moving` when a key's slot was moved away while it was read, or is in no shard at this moment: the same again.
    fn route<'k>(
        &self,
        keys: usize,
        key: impl Fn(usize) -> Option<&'k [u8]>,
        mut read: impl FnMut(&Shard, Option<&[u32]>) -> Result<()>,
    ) -> Result<()> {
        if keys == 0 {
            return Ok(());
        }
        let before = self.version();
        let held;
        let table: &Table = if before == 0 {
            &self.home
        } else {
            held = self.table();
            &held
        };
        let slot = |position: usize| key(position).map(slot_of).unwrap_or_default();
        let place_of = |table: &Table, position: usize| {
            let slot = slot(position);
            match table.places.get(usize::from(slot)) {
                Some(place) if *place != AWAY => Ok(usize::from(*place)),
                _ => Err(Error::Moving(format!("slot {slot} is between two shards on this node"))),
            }
        };
        let first = place_of(table, 0)?;
        if keys == 1 || table.single {
            self.shards.get(first).map_or(Ok(()), |shard| read(shard, None))?;
        } else {
            let mut positions: Vec<Vec<u32>> = vec![Vec::new(); self.shards.len()];
            for position in 0..keys {
                if let Some(list) = positions.get_mut(place_of(table, position)?) {
                    list.push(position as u32);
                }
            }
            for (shard, positions) in self.shards.iter().zip(&positions) {
                if !positions.is_empty() {
                    read(shard, Some(positions))?;
                }
            }
        }
        // A claim that ends does so before the rows go: unchanged, all rows were there.
        if self.version() == before {
            return Ok(());
        }
        let now = self.table();
        for position in 0..keys {
            if place_of(&now, position)? != place_of(table, position)? {
                return Err(Error::Moving(format!("slot {} moved while it was read", slot(position))));
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

    fn sweep(&self, ask: &Sweep<'_>, targets: Vec<Target>) -> Result<Option<Vec<Share>>> {
        self.sweep_shards(ask, targets).map(Some)
    }

    fn wait_moved(&self, pause: Duration) {
        self.wait_changed(self.version(), pause);
    }
}

/// Runs `read` again while slots move under it, or a segment is still to come, waiting in between. Blocks.
///
/// # Errors
/// What `read` reports; `Moving`, or storage's `Unavailable`, when it never got through within `limit`.
pub fn settled<T>(source: &dyn RowSource, limit: Duration, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let started = std::time::Instant::now();
    loop {
        match read() {
            Err(error) if error.will_pass() && started.elapsed() < limit => source.wait_moved(PAUSE),
            done => return done,
        }
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

#[cfg(test)]
mod tests;
