//! A feature shard: the state machine that holds the rows of its slots, and the reads of them.
//!
//! - [`apply`]: committed commands to one atomic write; [`rows`]: the last writers; [`dedup`]: (producer, sequence) once
//! - [`slots`]: what the shard has after slots moved; [`moves`]: the steps of a move; [`export`]: what it copies;
//!   [`drive`]: which step is next
//! - [`tiers`]: history that is in segments; [`tiering`]: what goes there next; [`merged`]: it and the database as one;
//!   [`loads`]: segments that never were in the database; [`merges`]: many segments made into few
//! - [`records`]: values and system keys as bytes
//! - [`reads`]: newest and as-of rows by entity key; [`sweep`]: many of these in one walk; [`scan`]: rows in key order;
//!   [`columns`]: history as columns
//!
//! What always holds: `latest` has the greatest (event time, created time, commit index) of the entity's rows in
//! `history`; rows, deduplication and the applied position change in one write; reads never wait for writes.

mod apply;
mod columns;
mod dedup;
mod drive;
mod export;
mod loads;
mod merged;
mod merges;
mod moves;
mod reads;
mod records;
mod rows;
mod scan;
mod slots;
mod sweep;
#[cfg(test)]
mod tests;
mod tiering;
mod tiers;

pub use columns::{ColumnScan, Columns, Piece};
pub use dedup::SEQUENCE_WINDOW;
pub use drive::{Ask, next_asks};
pub use export::Part;
pub use merges::Merge;
pub use reads::Lookup;
pub use records::RowRef;
pub use scan::Scope;
pub use slots::{Claims, Slots, home_shard};
pub use sweep::{Found, Place, Sweep, Swept, Target, sort_targets};
pub use tiering::{Cold, Extract};
pub use tiers::{SEGMENTS_MAX, Tiers};

use crate::digest::{self, Digest, Digests, Span, digest};
use crate::engine::{Cf, Db, Engine, Family, Format, Group, Layout};
use crate::keys::slots_range;
use crate::replica::{Applied, Entry, Replica};
use crate::segment::SegmentStore;
use crate::{Error, Fatal, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{Audit, ShardCommand, TimeTick, shard_command::Change};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Newest version of [`cairn_proto::record::v1::ShardCommand`] this node applies. A new kind of change, or a new layout
/// inside one, is a new version: a node that does not know it must stop and not guess.
pub const COMMAND_VERSION: u32 = LOAD_VERSION;
/// Version of a command with rows, or with nothing but time. 2 came with the steps of a move of slots.
pub const UPSERT_VERSION: u32 = 1;
/// Version of a command with rows some of which delete.
pub const DELETE_VERSION: u32 = 3;
/// Version of the steps of a move of slots.
pub const MOVE_VERSION: u32 = 3;
/// Version of a command about segments.
pub const SEGMENT_VERSION: u32 = 4;
/// Version of a command about loads and merges.
pub const LOAD_VERSION: u32 = 5;

static FORMAT: Format = Format {
    kind: "shard",
    version: 4, // 2: rows that delete; 3: history in segments; 4: loads
    families: &[
        Family { name: "latest", layout: Layout::Point },
        Family { name: "history", layout: Layout::Versioned },
        Family { name: "system", layout: Layout::Small },
    ],
};
const LATEST: Cf = Cf(0);
const HISTORY: Cf = Cf(1);
const SYSTEM: Cf = Cf(2);

/// One replica of a feature shard.
pub struct Shard {
    group: Group,
    progress: RwLock<Progress>,
    /// Last entry of which a read may see something: ahead of the progress while a write is being made visible.
    begun: AtomicU64,
    /// Held by whoever changes the state: an apply or an install.
    changing: Mutex<()>,
    digests: Digests,
    /// Told whenever a claim changes.
    followers: Mutex<Vec<Follower>>,
    segments: OnceLock<Arc<SegmentStore>>,
    /// By storage id, rows since the start that came when segments already had what is as old.
    late: Mutex<BTreeMap<u32, u64>>,
}

type Follower = Box<dyn Fn(&Claims) + Send>;

/// An audit covers as many slots as hold about this many bytes.
const AUDIT_BYTES: u64 = 1 << 30;

#[derive(Debug, Clone, Default, PartialEq)]
struct Progress {
    applied: Applied,
    position: Option<Vec<u8>>,
    slots: Arc<Slots>,
    tiers: Arc<Tiers>,
}

/// # Errors
/// `Internal` where a shard with segments was given no place to read them from.
fn store(segments: Option<&SegmentStore>) -> Result<&SegmentStore> {
    segments.ok_or_else(|| Error::Internal("a shard's segments are nowhere to be read".to_owned()))
}

impl Shard {
    /// Looks whether this version can open the shard in `dir`, if there is one. Writes nothing.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn check(dir: &Path) -> Result<()> {
        Group::check(dir, &FORMAT)
    }

    /// Opens the shard in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// `InvalidArgument` for data of a newer version; `Corrupt`; `Io`.
    pub fn open(engine: &Arc<Engine>, dir: &Path) -> Result<Arc<Self>> {
        let group = Group::open(engine, dir, &FORMAT)?;
        let progress = read_progress(&group.db())?;
        Ok(Arc::new(Self {
            group,
            begun: AtomicU64::new(progress.applied.index),
            progress: RwLock::new(progress),
            changing: Mutex::new(()),
            digests: Digests::default(),
            followers: Mutex::default(),
            late: Mutex::default(),
            segments: OnceLock::new(),
        }))
    }

    /// Where this shard's segments are. To be said once, before anything is read.
    pub fn keep_segments_in(&self, store: Arc<SegmentStore>) {
        let _ = self.segments.set(store);
    }

    /// The segments of this replica now.
    pub fn tiers(&self) -> Arc<Tiers> {
        self.progress.read().tiers.clone()
    }

    /// Looks whether the segments of a storage id are on this node.
    ///
    /// # Errors
    /// `Unavailable` while one is not.
    pub fn check_segments(&self, storage_id: u32) -> Result<()> {
        for segment in self.tiers().of(storage_id, 0, u16::MAX) {
            store(self.segment_store())?.check(&tiers::file_of(segment)?.root)?;
        }
        Ok(())
    }

    fn segment_store(&self) -> Option<&SegmentStore> {
        self.segments.get().map(|store| &**store)
    }

    /// No read that has ended saw anything of an entry after this one.
    pub fn seen(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// The slots this replica has now.
    pub fn slots(&self) -> Arc<Slots> {
        self.progress.read().slots.clone()
    }

    /// Tells `follower` which slots this replica has, now and after each change: of one that goes before its rows do, of
    /// one that comes once its rows are there. `follower` must be quick and must not call this shard.
    pub fn follow_claims(&self, follower: impl Fn(&Claims) + Send + 'static) {
        let _changing = self.changing.lock();
        follower(&self.slots().claims());
        self.followers.lock().push(Box::new(follower));
    }

    fn tell(&self, claims: &Claims) {
        self.followers.lock().iter().for_each(|follower| follower(claims));
    }

    /// Puts everything applied on disk, so that less is applied again after a restart.
    ///
    /// # Errors
    /// `Io`.
    pub fn flush(&self) -> Result<()> {
        self.group.flush()
    }

    /// BLAKE3 over all rows, newest and historical. Equal on replicas that applied the same entries.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn checksum(&self) -> Result<[u8; 32]> {
        digest(&self.group.db().snapshot(), &[Span::all(LATEST), Span::all(HISTORY)], |_| {})
    }

    /// Fixes the digest that the last entry of an apply asked for.
    fn audited(&self, db: Arc<Db>, entry: &Entry<'_>) {
        let Some(Audit { first_slot, last_slot }) = entry.command.and_then(audit_of) else { return };
        let (lower, upper) = slots_range(first_slot, last_slot);
        let rows =
            [LATEST, HISTORY].map(|cf| Span { cf, lower: Some(lower.clone()), upper: upper.clone(), skip: None });
        let mut spans = Vec::from(rows);
        if first_slot == 0 {
            spans.push(Span { skip: Some(records::STATE_KEY), ..Span::all(SYSTEM) });
        }
        self.digests.take(db, entry.index, spans);
    }
}

/// What an audit asks for; `None` for any other command.
fn audit_of(command: &[u8]) -> Option<Audit> {
    if command.len() > digest::COMMAND_BYTES_MAX {
        return None;
    }
    match ShardCommand::decode(command).ok()?.change? {
        Change::TimeTick(tick) => tick.audit,
        _ => None,
    }
}

fn read_progress(db: &Db) -> Result<Progress> {
    let Some(value) = db.get(SYSTEM, records::STATE_KEY)? else { return Ok(Progress::default()) };
    let (applied, position) = records::decode_state(&value)
        .ok_or_else(|| Error::Corrupt(format!("the applied position in {} is broken", db.path().display())))?;
    let slots = db.get(SYSTEM, records::SLOTS_KEY)?.map(|value| Slots::decode(&value)).transpose()?;
    let tiers = db.get(SYSTEM, records::TIERS_KEY)?.map(|value| Tiers::decode(&value)).transpose()?;
    let (slots, tiers) = (slots.unwrap_or_default().into(), tiers.unwrap_or_default().into());
    Ok(Progress { applied, position: Some(position.to_vec()), slots, tiers })
}

impl Replica for Shard {
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal> {
        let _changing = self.changing.lock();
        let db = self.group.db();
        let Progress { applied: replayed, slots: before, tiers: old_tiers, .. } = self.progress.read().clone();
        let apply::Prepared { batch, outcomes, applied, slots, tiers, late } =
            apply::apply(&db, replayed, before.clone(), old_tiers.clone(), entries, position)?;
        if !Arc::ptr_eq(&old_tiers, &tiers) {
            // Before rows go: who reads after that must know where they are.
            self.progress.write().tiers = Arc::new(old_tiers.before_write(&tiers));
        }
        let moved = !Arc::ptr_eq(&before, &slots);
        if moved {
            self.tell(&before.claims().both(&slots.claims()));
        }
        self.begun.fetch_max(applied.index, Ordering::AcqRel);
        db.write(batch)?;
        if !late.is_empty() {
            let mut known = self.late.lock();
            late.into_iter().for_each(|(storage_id, rows)| *known.entry(storage_id).or_default() += rows);
        }
        *self.progress.write() = Progress { applied, position: Some(position.to_vec()), slots: slots.clone(), tiers };
        if moved {
            self.tell(&slots.claims());
        }
        if let Some(last) = entries.last().filter(|last| last.index > replayed.index) {
            self.audited(db, last);
        }
        Ok(outcomes)
    }

    fn position(&self) -> Option<Vec<u8>> {
        self.progress.read().position.clone()
    }

    fn applied(&self) -> Applied {
        self.progress.read().applied
    }

    fn damage(&self) -> Option<String> {
        self.group.db().damage().map(str::to_owned)
    }

    fn condemn(&self, why: &str) {
        self.group.db().condemn(why);
    }

    fn audit(&self, round: u64, now_us: i64) -> Option<Vec<u8>> {
        let parts = self.group.db().estimated_bytes().div_ceil(AUDIT_BYTES).clamp(1, SLOTS as u64);
        let part = round % parts;
        let first_slot = (part * SLOTS as u64 / parts) as u32;
        let last_slot = ((part + 1) * SLOTS as u64 / parts - 1) as u32;
        let tick = TimeTick { audit: Some(Audit { first_slot, last_slot }) };
        let change = Some(Change::TimeTick(tick));
        Some(ShardCommand { version: UPSERT_VERSION, proposed_at_us: now_us, change }.encode_to_vec())
    }

    fn is_audit(&self, command: &[u8]) -> bool {
        audit_of(command).is_some()
    }

    fn digests(&self) -> Vec<Digest> {
        self.digests.list()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal> {
        let inside = self.group.checkpoint(dir, read_progress)?;
        Ok(inside.position.unwrap_or_default())
    }

    fn verify(&self, dir: &Path) -> Result<(), Fatal> {
        Ok(self.group.verify(dir)?)
    }

    fn install(&self, dir: &Path) -> Result<(), Fatal> {
        let _changing = self.changing.lock();
        let (before, old_tiers) = (self.slots(), self.tiers());
        let told = |db: &Db| {
            let progress = read_progress(db)?;
            self.progress.write().tiers = Arc::new(old_tiers.before_write(&progress.tiers));
            self.begun.fetch_max(progress.applied.index, Ordering::AcqRel);
            if progress.slots != before {
                self.tell(&before.claims().both(&progress.slots.claims()));
            }
            Ok(progress)
        };
        let progress = self.group.install(dir, told)?;
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::awake("lost-dedup") {
            let db = self.group.db();
            let mut batch = db.batch()?;
            // Behind the state: producers and their sequences.
            batch.delete_range(SYSTEM, &[1], &[3]);
            batch.delete_range(SYSTEM, &[4], &[6]);
            db.write(batch)?;
        }
        let slots = progress.slots.clone();
        *self.progress.write() = progress;
        if slots != before {
            self.tell(&slots.claims());
        }
        Ok(())
    }
}
