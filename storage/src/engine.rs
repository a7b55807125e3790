//! RocksDB, and nothing else in this crate names it: one database a group, caches and write buffers shared by all.
//!
//! In reading order: [`Engine`] (what groups share), [`db`] (one open database), [`group`] (its directory: which
//! database is live, checkpoints, installs).
//!
//! What always holds: no write goes through RocksDB's own log (the Raft log is the log), a flush covers all column
//! families at once, so after a crash a database holds everything up to some write and nothing after it.

mod db;
mod files;
mod group;

#[cfg(test)]
pub(crate) use db::deleted_keys_passed;
pub use db::{Batch, Cf, Db, Iter, IterOptions, Pinned, Snapshot, end_of_prefix};
pub use files::{free_bytes, sync_dir, write_atomic};
pub use group::Group;

use crate::Error;
use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DataBlockIndexType, InfoLogger, LogLevel, Options, SliceTransform,
    WriteBufferManager,
};
use std::sync::Arc;

/// Bytes that [`Layout::Versioned`] keys carry after the part that names the entity.
pub const VERSION_SUFFIX_BYTES: usize = 24;

/// Largest memtable of one column family. Small ones stay in the CPU's caches: replicated batches of 100 rows are written
/// half as fast again as with 32 MiB, with the two numbers below (`cairn-bench --only replication`).
const MEMTABLE_BYTES_MAX: usize = 3 << 20;

/// Memtables of one column family that wait for their flush before writes do.
const MEMTABLES_MAX: i32 = 4;

/// Files that small memtables leave behind, merged at once into the next level.
const L0_FILES_MERGED: i32 = 8;

/// A file of versions is compacted soon when so many in a row, of twice as many, are deleted, or this share of all.
const DELETED_IN_A_ROW: usize = 64;
const DELETED_SHARE: f64 = 0.5;

/// Memory and threads for all groups of a node.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Block cache. Write buffers are charged to it, so this bounds both.
    pub cache_bytes: usize,
    /// Write buffers of all groups together; the fullest is flushed when they reach it.
    pub write_buffer_bytes: usize,
    /// Flushes and compactions at once.
    pub background_jobs: usize,
}

impl Default for EngineOptions {
    /// Fits a laptop: half a GiB in all.
    fn default() -> Self {
        Self { cache_bytes: 512 << 20, write_buffer_bytes: 128 << 20, background_jobs: 2 }
    }
}

/// How a column family is read, hence laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Many point reads of small values.
    Point,
    /// Keys end in [`VERSION_SUFFIX_BYTES`]; reads seek inside what stands before them.
    Versioned,
    /// Little data, any access.
    Small,
}

/// A column family. Named by its place in [`Format::families`], see [`Cf`].
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub name: &'static str,
    pub layout: Layout,
}

/// What a group's database is: its kind, the version of its keys and values, its column families.
#[derive(Debug)]
pub struct Format {
    /// "shard", "meta"; a database of another kind is refused.
    pub kind: &'static str,
    /// Newer databases are refused.
    pub version: u32,
    pub families: &'static [Family],
}

/// What all groups of a node share.
pub struct Engine {
    cache: Cache,
    write_buffers: WriteBufferManager,
    options: EngineOptions,
}

impl Engine {
    pub fn new(options: EngineOptions) -> Arc<Self> {
        let cache = Cache::new_hyper_clock_cache(options.cache_bytes, 0);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            options.write_buffer_bytes,
            false, // full buffers start a flush; they never block the apply of another group
            cache.clone(),
        );
        Arc::new(Self { cache, write_buffers, options })
    }

    /// Bytes in the block cache now, write buffers included.
    pub fn cache_used_bytes(&self) -> usize {
        self.cache.get_usage()
    }

    /// Bytes in the write buffers now.
    pub fn write_buffers_used_bytes(&self) -> usize {
        self.write_buffers.get_usage()
    }

    fn db_options(&self) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_atomic_flush(true);
        options.set_write_buffer_manager(&self.write_buffers);
        options.set_max_background_jobs(i32::try_from(self.options.background_jobs.max(2)).unwrap_or(2));
        options.set_bytes_per_sync(1 << 20);
        options.set_compaction_readahead_size(2 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_skip_stats_update_on_db_open(true);
        options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, message| {
            if matches!(level, LogLevel::Warn | LogLevel::Error | LogLevel::Fatal) {
                tracing::warn!(target: "cairn_storage::rocksdb", "{}", message.trim_end());
            }
        }));
        options
    }

    fn family_options(&self, layout: Layout) -> Options {
        let mut options = Options::default();
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_bottommost_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size((self.options.write_buffer_bytes / 4).clamp(1 << 20, MEMTABLE_BYTES_MAX));
        options.set_max_write_buffer_number(MEMTABLES_MAX);
        options.set_level_zero_file_num_compaction_trigger(L0_FILES_MERGED);
        match layout {
            Layout::Point => {
                table.set_block_size(8 << 10);
                table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
                table.set_data_block_hash_ratio(0.75);
                table.set_bloom_filter(10.0, false);
                options.set_memtable_prefix_bloom_ratio(0.02);
                options.set_memtable_whole_key_filtering(true);
            }
            Layout::Versioned => {
                table.set_block_size(16 << 10);
                table.set_bloom_filter(10.0, false);
                table.set_whole_key_filtering(false);
                options.set_prefix_extractor(SliceTransform::create(
                    "cairn.without-version-suffix",
                    without_version_suffix,
                    Some(has_version_suffix),
                ));
                options.set_memtable_prefix_bloom_ratio(0.05);
                // Versions leave in runs: every lookup of an entity would pass them until they are compacted away.
                options.add_compact_on_deletion_collector_factory(
                    DELETED_IN_A_ROW * 2,
                    DELETED_IN_A_ROW,
                    DELETED_SHARE,
                );
                options.set_bottommost_compression_type(DBCompressionType::Zstd);
            }
            Layout::Small => {
                table.set_bloom_filter(10.0, false);
                options.set_write_buffer_size(4 << 20);
            }
        }
        options.set_block_based_table_factory(&table);
        options
    }
}

fn without_version_suffix(key: &[u8]) -> &[u8] {
    &key[..key.len().saturating_sub(VERSION_SUFFIX_BYTES)]
}

fn has_version_suffix(key: &[u8]) -> bool {
    key.len() > VERSION_SUFFIX_BYTES
}

/// Wraps what RocksDB says with what was being done.
fn rocks_error(context: impl Into<String>) -> impl FnOnce(rocksdb::Error) -> Error {
    let context = context.into();
    move |error| {
        let message = error.to_string();
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Error::Corrupt(format!("{context}: {message}")),
            rocksdb::ErrorKind::IOError => {
                let full = message.contains("No space left");
                let kind = if full { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
                Error::Io { context, source: std::io::Error::new(kind, message) }
            }
            _ => Error::Internal(format!("{context}: {message}")),
        }
    }
}
