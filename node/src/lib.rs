//! One Cairn node: the groups it is part of, and what it does for clients.
//!
//! In reading order:
//! - [`config`]: how it is set up; [`server`]: from configuration to a running node and back
//! - [`stores`]: what is on disk; [`node`]: everything a request needs, in one place
//! - [`definitions`]: YAML files to one replicated change
//! - [`ingest`]: rows in; [`features`]: rows out; [`predict`]: keys in, predictions out
//! - [`meta_write`]: writes to the meta group; [`artifacts`]: model files, on a quorum before they count
//! - [`writes`]: whether this node takes writes; [`metrics`], [`clock`], [`error`]
//! - [`api`]: the client port
//!
//! Not here: Raft (`cairn-consensus`), what is on disk (`cairn-storage`), joins and SQL (`cairn-query`), models
//! (`cairn-executor`).

pub mod config;
pub mod server;
pub mod stores;
pub mod node;
pub mod definitions;
pub mod ingest;
pub mod features;
pub mod predict;
pub mod meta_write;
pub mod artifacts;
pub mod writes;
pub mod metrics;
pub mod clock;
pub mod error;
pub mod api;
