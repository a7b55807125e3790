//! The sections of a run. Each starts what it measures, and leaves nothing running.
//!
//! - [`start`]: cold start of an empty node, memory of an idle one
//! - [`read`]: online features by key, with the echo as ceiling and Redis beside it
//! - [`predict`]: predictions by key, with their features alone beside them
//! - [`ingest`]: durable writes, one node beside Redis, then three nodes
//! - [`replication`]: durable writes on three nodes, beside three of etcd
//! - [`failover`]: leaders killed under load; [`catch_up`]: a node far behind comes back under load
//! - [`idle`]: CPU of groups that nobody uses
//!
//! Always true: within a cell the systems take turns directly after each other, on the same keys, so that a ratio is
//! of neighbours in time.

pub mod catch_up;
pub mod failover;
pub mod idle;
pub mod ingest;
pub mod predict;
pub mod read;
pub mod replication;
pub mod start;

use crate::args::Plan;
use crate::report::Report;
use std::path::{Path, PathBuf};

/// What every section needs.
#[derive(Debug)]
pub struct Bench {
    pub plan: Plan,
    pub report: Report,
    pub cairnd: PathBuf,
    /// Where data folders are made; removed at the end of the run.
    pub folder: PathBuf,
    /// Folder with the two models.
    pub models: PathBuf,
    /// Whether Redis is measured.
    pub redis: bool,
    /// Whether etcd is measured.
    pub etcd: bool,
}

impl Bench {
    /// A folder of its own for one server or cluster.
    ///
    /// # Errors
    /// `System` when it cannot be made.
    pub fn subfolder(&self, name: &str) -> crate::Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::create_dir_all(&path).map_err(crate::Error::file(&path))?;
        Ok(path)
    }
}

/// Frees the disk of a section that is done. A leftover goes with the run's folder.
fn discard(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}
