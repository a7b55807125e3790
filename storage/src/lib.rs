//! Everything Cairn keeps on disk, and the only code that changes it.
//!
//! In reading order:
//! - [`types`]: feature types: their names in YAML, their Arrow types
//! - [`keys`]: (slot, storage id, entity key, times) as bytes that sort; slots
//! - [`row`]: one packed row per feature view, from Arrow and into Arrow; [`block`]: many rows in one command
//! - [`replica`]: a replicated state machine as consensus sees it; [`digest`]: its state at one entry, to be compared
//! - [`engine`]: the one module tree that names RocksDB: column families, caches, checkpoints, installs
//! - [`segment`]: history as Parquet files
//! - [`shard`]: the state machine of a feature shard, and its reads
//! - [`meta`]: the state machine of group 0; [`catalog`]: what it knows, in memory
//! - [`near`]: "did you mean"
//! - [`blob`]: artifacts: content-defined chunks named by BLAKE3
//! - [`error`]: what can go wrong
//! - `seeded`: bugs on purpose, only with the feature `seeded-bugs`
//!
//! Always true (each checked by a property test named after it):
//! - I1 a definition version, once made, never changes
//! - I2 an online row holds the greatest (event time, created time, commit) applied for its entity
//! - I3 equal commands in equal order give equal bytes, whatever the batching; replay changes nothing
//! - I4 a (producer, sequence) takes effect at most once in the rows of one view
//! - I5 a model version, once registered, never changes; an alias moves only by its own history
//! - I6 a slot is written in one shard at a time, and a move changes no answer
//! - I7 a row is in the database or in a segment, or in both as the same row; going there changes no answer
//!
//! Not here: Raft, networking, SQL, models.

pub mod blob;
pub mod block;
pub mod catalog;
pub mod digest;
pub mod engine;
pub mod error;
pub mod keys;
pub mod meta;
pub mod near;
pub mod replica;
pub mod row;
#[cfg(feature = "seeded-bugs")]
pub mod seeded;
pub mod segment;
pub mod shard;
#[cfg(test)]
mod testing;
pub mod types;

pub use error::{Error, Fatal, Result};
