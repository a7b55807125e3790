//! A feature shard: the state machine that holds the rows of its slots, and the reads of them.
//!
//! - [`apply`]: committed commands to one atomic write; [`dedup`]: (producer, sequence) once
//! - [`records`]: values and system keys as bytes
//! - [`reads`]: newest and as-of rows by entity key; [`scan`]: many rows in key order
//!
//! What always holds: `latest` has the greatest (event time, created time, commit index) of the entity's rows in
//! `history`; rows, deduplication and the applied position change in one write; reads never wait for writes.

mod apply;
mod dedup;
mod reads;
mod records;
mod scan;
#[cfg(test)]
mod tests;

pub use dedup::SEQUENCE_WINDOW;
pub use reads::Lookup;
pub use records::RowRef;
pub use scan::Scope;

use crate::engine::{Cf, Db, Engine, Family, Format, Group, IterOptions, Layout};
use crate::replica::{Applied, Entry, Replica};
use crate::{Error, Fatal, Result};
use parking_lot::{Mutex, RwLock};
use std::path::Path;
use std::sync::Arc;

/// Version of [`cairn_proto::record::v1::ShardCommand`] this node makes and applies. A new kind of change, or a new
/// layout inside one, is a new version: a node that does not know it must stop and not guess.
pub const COMMAND_VERSION: u32 = 1;

static FORMAT: Format = Format {
    kind: "shard",
    version: 1,
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
    /// Held by whoever changes the state: an apply or an install.
    changing: Mutex<()>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    applied: Applied,
    position: Option<Vec<u8>>,
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
        Ok(Arc::new(Self { group, progress: RwLock::new(progress), changing: Mutex::new(()) }))
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
        let db = self.group.db();
        let snapshot = db.snapshot();
        let mut hasher = blake3::Hasher::new();
        for cf in [LATEST, HISTORY] {
            let mut iter = snapshot.iter(cf, IterOptions { fill_cache: false, ..IterOptions::default() })?;
            iter.seek_to_first()?;
            while let Some((key, value)) = iter.entry() {
                for part in [key, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                }
                iter.advance()?;
            }
            hasher.update(&u64::MAX.to_le_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

fn read_progress(db: &Db) -> Result<Progress> {
    match db.get(SYSTEM, records::STATE_KEY)? {
        None => Ok(Progress::default()),
        Some(value) => {
            let (applied, position) = records::decode_state(&value)
                .ok_or_else(|| Error::Corrupt(format!("the applied position in {} is broken", db.path().display())))?;
            Ok(Progress { applied, position: Some(position.to_vec()) })
        }
    }
}

impl Replica for Shard {
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal> {
        let _changing = self.changing.lock();
        let db = self.group.db();
        let applied = self.progress.read().applied;
        let (outcomes, applied) = apply::apply(&db, applied, entries, position)?;
        *self.progress.write() = Progress { applied, position: Some(position.to_vec()) };
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

    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal> {
        let inside = self.group.checkpoint(dir, read_progress)?;
        Ok(inside.position.unwrap_or_default())
    }

    fn install(&self, dir: &Path) -> Result<(), Fatal> {
        let _changing = self.changing.lock();
        let progress = self.group.install(dir, read_progress)?;
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::awake("lost-dedup") {
            let db = self.group.db();
            let mut batch = db.batch()?;
            // Behind the state: producers and their sequences.
            batch.delete_range(SYSTEM, &[1], &[3]);
            db.write(batch)?;
        }
        *self.progress.write() = progress;
        Ok(())
    }
}
