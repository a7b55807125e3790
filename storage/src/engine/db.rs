//! One open database: gets, batched gets, iterators, snapshots, atomic write batches.

use super::{Engine, Format, rocks_error};
use crate::{Error, Result};
use rocksdb::{ColumnFamilyRef, DB, DBPinnableSlice, DBRawIterator, ReadOptions, WriteBatch};
use std::fs;
use std::ops::{ControlFlow, Deref};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Holds why a database must not be used.
const CONDEMNED: &str = "CAIRN_CONDEMNED";

/// A column family, by its place in [`Format::families`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cf(pub usize);

/// An open database. Readers hold it by `Arc`, so it outlives an install for as long as they read.
pub struct Db {
    rocks: DB, // dropped, so closed, before `home` may delete its files
    format: &'static Format,
    home: Home,
    /// The first damage found.
    damage: OnceLock<String>,
}

/// The directory of a database; deleted with the last user once retired.
struct Home {
    path: PathBuf,
    retired: AtomicBool,
}

impl Home {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), retired: AtomicBool::new(false) }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            // The next open deletes what is left.
            tracing::warn!(dir = %self.path.display(), %error, "a replaced database was not deleted");
        }
    }
}

impl Db {
    pub(super) fn open(engine: &Engine, path: &Path, format: &'static Format) -> Result<Self> {
        match fs::read_to_string(path.join(CONDEMNED)) {
            Ok(why) => return Err(Error::Corrupt(why)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("reading {}", path.join(CONDEMNED).display()))(error)),
        }
        let families = format.families.iter().map(|family| (family.name, engine.family_options(family.layout)));
        let rocks = DB::open_cf_with_opts(&engine.db_options(), path, families)
            .map_err(rocks_error(format!("opening {}", path.display())))?;
        Ok(Self { rocks, format, home: Home::new(path), damage: OnceLock::new() })
    }

    pub(super) fn open_read_only(engine: &Engine, path: &Path, format: &'static Format) -> Result<Self> {
        let mut options = engine.db_options();
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        options.set_max_open_files(64);
        let families = format.families.iter().map(|family| (family.name, engine.family_options(family.layout)));
        let rocks = DB::open_cf_with_opts_for_read_only(&options, path, families, false)
            .map_err(rocks_error(format!("opening {} to read", path.display())))?;
        Ok(Self { rocks, format, home: Home::new(path), damage: OnceLock::new() })
    }

    pub fn path(&self) -> &Path {
        &self.home.path
    }

    /// Deletes the files once nobody reads them any more.
    pub(super) fn retire(&self) {
        self.home.retired.store(true, Ordering::Release);
    }

    /// What a read or write found wrong with the files.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Notes what was found wrong with the files elsewhere; the first finding stays.
    pub(super) fn note_damage(&self, what: &str) {
        let _ = self.damage.set(what.to_owned());
    }

    /// Notes that the data is not what it must be, though every file reads well. Said again at every open, until other
    /// files take their place.
    pub fn condemn(&self, why: &str) {
        self.note_damage(why);
        if let Err(error) = super::write_atomic(&self.home.path.join(CONDEMNED), why.as_bytes()) {
            tracing::error!(%error, "a condemned database is not marked: it will be taken for whole after a restart");
        }
    }

    /// Bytes of live data in all families, about.
    pub fn estimated_bytes(&self) -> u64 {
        let family = |index: usize| {
            let handle = self.handle(Cf(index)).ok()?;
            self.rocks.property_int_value_cf(&handle, rocksdb::properties::ESTIMATE_LIVE_DATA_SIZE).ok()?
        };
        (0..self.format.families.len()).filter_map(family).sum()
    }

    fn failed<'a>(&'a self, context: &'a str) -> impl FnOnce(rocksdb::Error) -> Error + 'a {
        move |rocks| {
            let error = rocks_error(format!("{context} in {}", self.home.path.display()))(rocks);
            if let Error::Corrupt(what) = &error {
                self.note_damage(what);
            }
            error
        }
    }

    pub(super) fn rocks(&self) -> &DB {
        &self.rocks
    }

    fn handle(&self, cf: Cf) -> Result<ColumnFamilyRef<'_>> {
        let name = self.format.families.get(cf.0).map_or("?", |family| family.name);
        self.rocks.cf_handle(name).ok_or_else(|| Error::Internal(format!("column family {cf:?} `{name}` is not open")))
    }

    /// The value of `key`, in place.
    ///
    /// # Errors
    /// `Corrupt` when a block fails its checksum, `Io`.
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Pinned<'_>>> {
        self.get_with(cf, key, &ReadOptions::default())
    }

    fn get_with(&self, cf: Cf, key: &[u8], options: &ReadOptions) -> Result<Option<Pinned<'_>>> {
        let found = self.rocks.get_pinned_cf_opt(&self.handle(cf)?, key, options);
        Ok(found.map_err(self.failed("reading a key"))?.map(Pinned))
    }

    /// The values of `keys`, which must be in ascending order, all as of one moment.
    ///
    /// # Errors
    /// `Corrupt` when a block fails its checksum, `Io`.
    pub fn multi_get<'k>(&self, cf: Cf, keys: impl IntoIterator<Item = &'k [u8]>) -> Result<Vec<Option<Pinned<'_>>>> {
        self.multi_get_with(cf, keys, &ReadOptions::default())
    }

    fn multi_get_with<'k>(
        &self,
        cf: Cf,
        keys: impl IntoIterator<Item = &'k [u8]>,
        options: &ReadOptions,
    ) -> Result<Vec<Option<Pinned<'_>>>> {
        let found = self.rocks.batched_multi_get_cf_opt(&self.handle(cf)?, keys, true, options);
        let mut values = Vec::with_capacity(found.len());
        for value in found {
            values.push(value.map_err(self.failed("reading keys"))?.map(Pinned));
        }
        Ok(values)
    }

    /// An iterator over the state at this moment.
    ///
    /// # Errors
    /// `Internal` for an unknown column family.
    pub fn iter(&self, cf: Cf, options: IterOptions) -> Result<Iter<'_>> {
        self.iter_with(cf, options, ReadOptions::default())
    }

    fn iter_with(&self, cf: Cf, options: IterOptions, mut read: ReadOptions) -> Result<Iter<'_>> {
        if let Some(lower) = options.lower {
            read.set_iterate_lower_bound(lower);
        }
        if let Some(upper) = options.upper {
            read.set_iterate_upper_bound(upper);
        }
        read.set_prefix_same_as_start(options.same_prefix);
        read.set_total_order_seek(!options.same_prefix);
        read.fill_cache(options.fill_cache);
        Ok(Iter { raw: self.rocks.raw_iterator_cf_opt(&self.handle(cf)?, read), db: self })
    }

    /// Shows `visit` every (key, value) whose key starts with `prefix`, ascending, until it breaks.
    ///
    /// # Errors
    /// As [`Self::iter`], and whatever the iterator meets.
    pub fn visit_prefix(
        &self,
        cf: Cf,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut iter = self.iter(cf, IterOptions { upper: end_of_prefix(prefix), ..IterOptions::default() })?;
        iter.seek(prefix)?;
        while let Some((key, value)) = iter.entry() {
            if visit(key, value).is_break() {
                break;
            }
            iter.advance()?;
        }
        Ok(())
    }

    /// The state at this moment, for several reads.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { db: self, rocks: self.rocks.snapshot() }
    }

    /// An empty batch.
    ///
    /// # Errors
    /// `Internal` when a column family is missing.
    pub fn batch(&self) -> Result<Batch<'_>> {
        let handles = (0..self.format.families.len()).map(|index| self.handle(Cf(index))).collect::<Result<_>>()?;
        Ok(Batch { inner: WriteBatch::default(), handles })
    }

    /// Applies a batch whole or not at all. It is on disk after the next flush, and not before.
    ///
    /// # Errors
    /// `Io`, among them a full disk. Later writes fail too.
    pub fn write(&self, batch: Batch<'_>) -> Result<()> {
        self.rocks.write_without_wal(batch.inner).map_err(self.failed("writing to the database"))
    }
}

/// Deleted keys that iterators of this thread pass while `work` runs.
#[cfg(test)]
pub(crate) fn deleted_keys_passed(work: impl FnOnce()) -> u64 {
    use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut context = PerfContext::default();
    context.reset();
    work();
    set_perf_stats(PerfStatsLevel::Disable);
    context.metric(PerfMetric::InternalDeleteSkippedCount)
}

/// The smallest key above all keys that start with `prefix`; `None` when there is none.
pub fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Where an iterator may go.
#[derive(Debug, Clone)]
pub struct IterOptions {
    /// Smallest key, inclusive.
    pub lower: Option<Vec<u8>>,
    /// Largest key, exclusive.
    pub upper: Option<Vec<u8>>,
    /// Ends when the part before the version suffix differs from that of the last seek, and uses its Bloom filter.
    /// Only for [`super::Layout::Versioned`].
    pub same_prefix: bool,
    /// `false` for long scans, which would push out what point reads need.
    pub fill_cache: bool,
}

impl Default for IterOptions {
    fn default() -> Self {
        Self { lower: None, upper: None, same_prefix: false, fill_cache: true }
    }
}

/// Walks keys in ascending byte order. Starts nowhere: seek first.
pub struct Iter<'a> {
    raw: DBRawIterator<'a>,
    db: &'a Db,
}

impl Iter<'_> {
    /// Moves to the first key at or after `key`; `false` when there is none.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        self.raw.seek(key);
        self.check()
    }

    /// Moves to the first key.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn seek_to_first(&mut self) -> Result<bool> {
        self.raw.seek_to_first();
        self.check()
    }

    /// Moves to the next key; does nothing at the end.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn advance(&mut self) -> Result<bool> {
        if !self.raw.valid() {
            return Ok(false);
        }
        self.raw.next();
        self.check()
    }

    /// The key and value here; `None` at the end.
    pub fn entry(&self) -> Option<(&[u8], &[u8])> {
        self.raw.item()
    }

    fn check(&self) -> Result<bool> {
        if self.raw.valid() {
            return Ok(true);
        }
        self.raw.status().map_err(self.db.failed("walking keys"))?;
        Ok(false)
    }
}

/// A moment of the database, read while writes go on.
pub struct Snapshot<'a> {
    db: &'a Db,
    rocks: rocksdb::Snapshot<'a>,
}

impl<'a> Snapshot<'a> {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.rocks);
        options
    }

    /// See [`Db::get`].
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Pinned<'_>>> {
        self.db.get_with(cf, key, &self.options())
    }

    /// See [`Db::multi_get`].
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn multi_get<'k>(&self, cf: Cf, keys: impl IntoIterator<Item = &'k [u8]>) -> Result<Vec<Option<Pinned<'_>>>> {
        self.db.multi_get_with(cf, keys, &self.options())
    }

    /// See [`Db::iter`].
    ///
    /// # Errors
    /// `Internal` for an unknown column family.
    pub fn iter(&self, cf: Cf, options: IterOptions) -> Result<Iter<'_>> {
        self.db.iter_with(cf, options, self.options())
    }
}

/// A value in place: a block of the cache or a memtable entry stays put while this lives.
pub struct Pinned<'a>(DBPinnableSlice<'a>);

impl Deref for Pinned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Changes that happen together, in the order given.
pub struct Batch<'a> {
    inner: WriteBatch,
    handles: Vec<ColumnFamilyRef<'a>>,
}

impl Batch<'_> {
    pub fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]) {
        self.inner.put_cf(&self.handles[cf.0], key, value);
    }

    pub fn delete(&mut self, cf: Cf, key: &[u8]) {
        self.inner.delete_cf(&self.handles[cf.0], key);
    }

    /// Deletes all keys from `from` up to, but not including, `to`.
    pub fn delete_range(&mut self, cf: Cf, from: &[u8], to: &[u8]) {
        self.inner.delete_range_cf(&self.handles[cf.0], from, to);
    }

    /// Changes in the batch.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    pub fn bytes_len(&self) -> usize {
        self.inner.size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_outside_it() {
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(end_of_prefix(&[0xff]), None);
        assert_eq!(end_of_prefix(b""), None);
    }
}
