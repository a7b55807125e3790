//! One Cairn node: the groups it is part of, and what it does for clients.
//!
//! In reading order:
//! - [`config`]: how it is set up; [`server`]: from configuration to a running node and back
//! - [`stores`]: what is on disk; [`node`]: everything a request needs, in one place
//! - [`definitions`]: YAML files to one replicated change
//! - [`ingest`]: rows in; [`features`]: rows out; [`predict`]: keys in, predictions out
//! - [`meta_write`]: writes to the meta group; [`artifacts`]: model files, on a quorum before they count
//! - [`datasets`]: moments that no later write can change
//! - [`backtest`]: model versions over the past, kept as evidence
//! - [`sql`]: queries, apart from serving
//! - [`backfill`]: feature views filled from their files
//! - [`moves`]: slots from one shard to another; [`tiering`]: old history to segments; [`merging`]: many of
//!   these made into few; [`segments`]: their files
//! - [`writes`]: whether this node takes writes; [`metrics`], [`clock`], [`error`]
//! - [`api`]: the client port
//!
//! Not here: Raft (`cairn-consensus`), what is on disk (`cairn-storage`), joins and SQL (`cairn-query`), models
//! (`cairn-executor`).

pub mod api;
pub mod artifacts;
pub mod backfill;
pub mod backtest;
pub mod clock;
pub mod config;
pub mod connections;
pub mod datasets;
pub mod definitions;
pub mod error;
pub mod features;
pub mod ingest;
pub mod merging;
pub mod meta_write;
pub mod metrics;
pub mod moves;
pub mod node;
pub mod predict;
pub mod segments;
pub mod server;
pub mod shard_step;
pub mod sql;
pub mod stores;
pub mod tiering;
pub mod writes;
