//! The one engine for features: online reads and point-in-time joins compile from the same plan, so they agree.
//!
//! In reading order:
//! - [`expr`]: on-demand features: SQL scalar expressions, compiled once, the same online and offline
//! - [`plan`]: feature references or a feature service, resolved into views, keys, programs and output columns
//! - [`source`]: where rows come from: the trait, and the shards of this node behind it
//! - [`status`]: why a feature has a value or not
//! - [`online`]: newest (or as-of) features by entity key; [`historical`]: point-in-time join of a spine
//! - [`sql`]: SQL over rows and registry, read-only
//! - [`backfill`]: rows for a feature view out of its files
//! - [`error`]: what can go wrong
//!
//! Always true (each rule of the join is a test in `historical::tests`):
//! - Q1 one output row per input row, in input order, whatever the input
//! - Q2 an online read at T equals the join of the same keys at T
//! - Q3 the answer does not depend on batch sizes, shards or the order of views
//! - Q4 nothing from a row's future is in its features
//!
//! Not here: Raft, networking, definitions as files, model execution.

pub mod backfill;
pub mod error;
pub mod expr;
pub mod historical;
pub mod online;
pub mod plan;
pub mod source;
pub mod sql;
pub mod status;

mod coerce;
mod fetch;
mod names;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
