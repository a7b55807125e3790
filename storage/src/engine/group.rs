//! The directory of one group on one node, and which database in it is live.
//!
//! ```text
//! CURRENT_DB    the name of the live database, replaced by rename: "db-000003\n"
//! db-000003/    RocksDB's files, and CAIRN_FORMAT: "cairn shard 1\n"
//! ```
//! What always holds: the database `CURRENT_DB` names is whole. Others are leftovers of a crash; open deletes them.

use super::files::sync_files;
use super::{Cf, Db, Engine, EngineOptions, Format, IterOptions, rocks_error, sync_dir, write_atomic};
use crate::{Error, Result};
use parking_lot::{Mutex, RwLock};
use rocksdb::checkpoint::Checkpoint;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const POINTER: &str = "CURRENT_DB";
const FORMAT_FILE: &str = "CAIRN_FORMAT";
const DB_PREFIX: &str = "db-";
/// Cache of a verification, which reads each block once.
const VERIFY_CACHE_BYTES: usize = 8 << 20;

/// One group's databases: the live one, and the way to the next.
pub struct Group {
    engine: Arc<Engine>,
    dir: PathBuf,
    format: &'static Format,
    live: RwLock<Arc<Db>>,
    /// Number of the live database; held while an install is under way.
    number: Mutex<u64>,
}

impl Group {
    /// Opens the group in `dir`, or makes it.
    ///
    /// # Errors
    /// `InvalidArgument` for data of a newer format or another kind; `Corrupt`; `Io`.
    pub fn open(engine: &Arc<Engine>, dir: &Path, format: &'static Format) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(format!("making directory {}", dir.display())))?;
        Self::check(dir, format)?;
        let found = live_number(dir)?;
        delete_leftovers(dir, found)?;
        let number = found.unwrap_or(1);
        let path = dir.join(name_of(number));
        if found.is_none() {
            fs::create_dir(&path).map_err(Error::io(format!("making directory {}", path.display())))?;
            write_format(&path, format)?;
        }
        let db = Db::open(engine, &path, format)?;
        if found.is_none() {
            sync_files(&path)?;
            point_to(dir, number)?;
        } else {
            mark(&path, format)?;
        }
        Ok(Self {
            engine: engine.clone(),
            dir: dir.to_owned(),
            format,
            live: RwLock::new(Arc::new(db)),
            number: Mutex::new(number),
        })
    }

    /// Looks whether this version can open the group in `dir`, if there is one. Writes nothing.
    ///
    /// # Errors
    /// As [`Group::open`].
    pub fn check(dir: &Path, format: &Format) -> Result<()> {
        live_number(dir)?.map_or(Ok(()), |number| check_format(&dir.join(name_of(number)), format).map(drop))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The live database. Hold it through one request, no longer: an install waits for nobody, but the files of the
    /// database it replaced stay until the last holder lets go.
    pub fn db(&self) -> Arc<Db> {
        self.live.read().clone()
    }

    /// Puts everything written so far on disk, all column families at once.
    ///
    /// # Errors
    /// `Io`.
    pub fn flush(&self) -> Result<()> {
        let db = self.db();
        let handles = self.format.families.iter().filter_map(|family| db.rocks().cf_handle(family.name));
        let handles: Vec<_> = handles.collect();
        let handles: Vec<_> = handles.iter().collect();
        let options = rocksdb::FlushOptions::default(); // waits
        db.rocks().flush_cfs_opt(&handles, &options).map_err(rocks_error(format!("flushing {}", self.dir.display())))
    }

    /// Flushes, and hard-links the database into the new directory `dir`. Returns what `read` finds inside, which may
    /// include writes made after the call.
    ///
    /// # Errors
    /// `Io`; `dir` must not exist and be on the same file system.
    pub fn checkpoint<T>(&self, dir: &Path, read: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        let context = || format!("making checkpoint {}", dir.display());
        let db = self.db();
        let checkpoint = Checkpoint::new(db.rocks()).map_err(rocks_error(context()))?;
        checkpoint.create_checkpoint(dir).map_err(rocks_error(context()))?;
        write_format(dir, self.format)?;
        let inside = Db::open_read_only(&self.engine, dir, self.format)?;
        let found = read(&inside)?;
        drop(inside);
        sync_files(dir)?;
        dir.parent().map_or(Ok(()), sync_dir)?;
        Ok(found)
    }

    /// Compares every block of the checkpoint in `dir`, made here, with its checksum; damage is noted at the live database.
    ///
    /// # Errors
    /// `Corrupt` naming the file, `Io`.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        // Blocks that the group's own cache holds would hide what the disk has.
        let apart = Engine::new(EngineOptions { cache_bytes: VERIFY_CACHE_BYTES, ..EngineOptions::default() });
        let read_all = || -> Result<()> {
            let checkpoint = Db::open_read_only(&apart, dir, self.format)?;
            for place in 0..self.format.families.len() {
                let mut iter =
                    checkpoint.iter(Cf(place), IterOptions { fill_cache: false, ..IterOptions::default() })?;
                iter.seek_to_first()?;
                while iter.advance()? {}
            }
            Ok(())
        };
        read_all().inspect_err(|error| {
            if let Error::Corrupt(what) = error {
                self.db().note_damage(what);
            }
        })
    }

    /// Makes the checkpoint in `dir` the live database; `dir` is moved away. `check` sees it before it goes live and
    /// may refuse it. A crash leaves the old database live or the new one. Readers of the old one finish on it.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, or what `check` says; the old database then stays live.
    pub fn install<T>(&self, dir: &Path, check: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        let mut number = self.number.lock();
        mark(dir, self.format)?;
        sync_files(dir)?;
        let next = *number + 1;
        let path = self.dir.join(name_of(next));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::io(format!("deleting leftover {}", path.display())))?;
        }
        fs::rename(dir, &path).map_err(Error::io(format!(
            "moving checkpoint {} to {}",
            dir.display(),
            path.display()
        )))?;
        let opened = Db::open(&self.engine, &path, self.format).and_then(|db| {
            let checked = check(&db)?;
            sync_files(&path)?;
            point_to(&self.dir, next)?;
            Ok((db, checked))
        });
        let (db, checked) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Not pointed to, or the pointer is in doubt: then both are whole, and the next open decides.
                tracing::error!(dir = %path.display(), %error, "a checkpoint was not installed");
                return Err(error);
            }
        };
        *number = next;
        let old = std::mem::replace(&mut *self.live.write(), Arc::new(db));
        old.retire();
        Ok(checked)
    }
}

fn name_of(number: u64) -> String {
    format!("{DB_PREFIX}{number:06}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(DB_PREFIX)?.parse().ok()
}

/// The database that `CURRENT_DB` names; `None` before there is one.
fn live_number(dir: &Path) -> Result<Option<u64>> {
    let pointer = dir.join(POINTER);
    match fs::read_to_string(&pointer) {
        Ok(text) => number_of(text.trim_end()).map(Some).ok_or_else(|| {
            Error::Corrupt(format!("{} does not name a database: {:?}", pointer.display(), text.trim_end()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("reading {}", pointer.display()))(error)),
    }
}

fn point_to(dir: &Path, number: u64) -> Result<()> {
    sync_dir(dir)?; // the database's own name first
    write_atomic(&dir.join(POINTER), format!("{}\n", name_of(number)).as_bytes())
}

fn delete_leftovers(dir: &Path, live: Option<u64>) -> Result<()> {
    let context = || format!("listing {}", dir.display());
    for entry in fs::read_dir(dir).map_err(Error::io(context()))? {
        let path = entry.map_err(Error::io(context()))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(number_of);
        if number.is_some() && number != live {
            fs::remove_dir_all(&path).map_err(Error::io(format!("deleting leftover {}", path.display())))?;
        }
    }
    Ok(())
}

fn write_format(dir: &Path, format: &Format) -> Result<()> {
    write_atomic(&dir.join(FORMAT_FILE), format!("cairn {} {}\n", format.kind, format.version).as_bytes())
}

/// Marks a database of an older version as one of ours: from here on it may hold what those who wrote it do not know.
fn mark(dir: &Path, format: &Format) -> Result<()> {
    if check_format(dir, format)? < format.version { write_format(dir, format) } else { Ok(()) }
}

/// The version of the database in `dir`, which this node can read.
fn check_format(dir: &Path, format: &Format) -> Result<u32> {
    let path = dir.join(FORMAT_FILE);
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::Corrupt(format!("{} is missing: not a Cairn database", path.display())),
        _ => Error::io(format!("reading {}", path.display()))(error),
    })?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let (kind, version) = match words[..] {
        ["cairn", kind, version] => (kind, version.parse::<u32>().ok()),
        _ => ("?", None),
    };
    let Some(version) = version else {
        return Err(Error::Corrupt(format!("{} is not understood: {:?}", path.display(), text.trim_end())));
    };
    if kind != format.kind {
        return Err(Error::InvalidArgument(format!(
            "{} holds a `{kind}` database where a `{}` one is wanted",
            dir.display(),
            format.kind
        )));
    }
    if version > format.version {
        return Err(Error::InvalidArgument(format!(
            "{} is in {kind} format {version}, and this node reads formats up to {}; run the newer version that wrote it",
            dir.display(),
            format.version
        )));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Cf, EngineOptions, Family, Layout};

    static FORMAT: Format = Format {
        kind: "test",
        version: 2,
        families: &[Family { name: "one", layout: Layout::Point }, Family { name: "two", layout: Layout::Small }],
    };
    const ONE: Cf = Cf(0);

    fn engine() -> Arc<Engine> {
        Engine::new(EngineOptions { cache_bytes: 8 << 20, write_buffer_bytes: 4 << 20, background_jobs: 2 })
    }

    fn put(group: &Group, key: &[u8], value: &[u8]) {
        let db = group.db();
        let mut batch = db.batch().unwrap();
        batch.put(ONE, key, value);
        db.write(batch).unwrap();
    }

    fn get(db: &Db, key: &[u8]) -> Option<Vec<u8>> {
        db.get(ONE, key).unwrap().map(|value| value.to_vec())
    }

    #[test]
    fn an_install_swaps_the_database_under_its_readers() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine();
        let source = Group::open(&engine, &root.path().join("source"), &FORMAT).unwrap();
        put(&source, b"k", b"new");
        let checkpoint = root.path().join("checkpoint");
        let inside = source.checkpoint(&checkpoint, |inside| Ok(get(inside, b"k"))).unwrap();
        assert_eq!(inside, Some(b"new".to_vec()));

        let dir = root.path().join("target");
        let target = Group::open(&engine, &dir, &FORMAT).unwrap();
        put(&target, b"k", b"old");
        let reader = target.db();
        target.install(&checkpoint, |_| Ok(())).unwrap();
        assert_eq!(get(&reader, b"k"), Some(b"old".to_vec()));
        assert_eq!(get(&target.db(), b"k"), Some(b"new".to_vec()));
        assert!(!checkpoint.exists());
        let old = reader.path().to_owned();
        drop(reader);
        assert!(!old.exists(), "the last reader deletes the replaced database");

        put(&target, b"after", b"1");
        drop(target);
        let target = Group::open(&engine, &dir, &FORMAT).unwrap();
        assert_eq!(get(&target.db(), b"after"), Some(b"1".to_vec()));
    }

    #[test]
    fn a_refused_checkpoint_leaves_the_old_database() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine();
        let group = Group::open(&engine, &root.path().join("group"), &FORMAT).unwrap();
        put(&group, b"k", b"old");
        let checkpoint = root.path().join("checkpoint");
        group.checkpoint(&checkpoint, |_| Ok(())).unwrap();
        group.install(&checkpoint, |_| Err::<(), _>(Error::Corrupt("no".to_owned()))).unwrap_err();
        assert_eq!(get(&group.db(), b"k"), Some(b"old".to_vec()));
        drop(group);
        let group = Group::open(&engine, &root.path().join("group"), &FORMAT).unwrap();
        assert_eq!(get(&group.db(), b"k"), Some(b"old".to_vec()));
        let names = fs::read_dir(group.dir()).unwrap().count();
        assert_eq!(names, 2, "the pointer and one database: leftovers are deleted at open");
    }

    #[test]
    fn newer_and_foreign_data_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine();
        drop(Group::open(&engine, root.path(), &FORMAT).unwrap());
        let file = root.path().join("db-000001").join(FORMAT_FILE);
        let check = |text: &str, expected: &str| {
            fs::write(&file, text).unwrap();
            let error = Group::open(&engine, root.path(), &FORMAT).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(Group::check(root.path(), &FORMAT).unwrap_err().to_string(), error);
        };
        check("cairn test 3\n", "test format 3, and this node reads formats up to 2");
        check("cairn meta 1\n", "`meta` database where a `test` one");
        check("garbage", "not understood");
    }

    /// An older node must not take for its own what a newer one has written to.
    #[test]
    fn older_data_is_marked_before_it_is_written_to() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine();
        let dir = root.path().join("group");
        let file = dir.join("db-000001").join(FORMAT_FILE);
        drop(Group::open(&engine, &dir, &FORMAT).unwrap());
        fs::write(&file, "cairn test 1\n").unwrap();
        let group = Group::open(&engine, &dir, &FORMAT).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "cairn test 2\n");

        let checkpoint = root.path().join("checkpoint");
        group.checkpoint(&checkpoint, |_| Ok(())).unwrap();
        fs::write(checkpoint.join(FORMAT_FILE), "cairn test 1\n").unwrap();
        group.install(&checkpoint, |_| Ok(())).unwrap();
        let installed = dir.join("db-000002").join(FORMAT_FILE);
        assert_eq!(fs::read_to_string(installed).unwrap(), "cairn test 2\n");
    }
}
