//! May this node take writes? Not when its disk is nearly full. Reads go on either way.
//!
//! Asked where a client's write comes in, where a leader takes a proposal, and where a follower takes entries or files.

use cairn_storage::Error;
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often free space is looked at while nothing is written, for `cairn status` and the metrics.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why writes are refused; `None` = they are not.
#[derive(Debug, Clone)]
pub struct WriteGate {
    data_dir: PathBuf,
    reserve_bytes: u64,
    reason: Arc<RwLock<Option<String>>>,
}

impl WriteGate {
    /// - `data_dir`: whose disk is looked at
    /// - `reserve_bytes`: what must stay free of it for writes to be taken
    pub fn new(data_dir: PathBuf, reserve_bytes: u64) -> Self {
        Self { data_dir, reserve_bytes, reason: Arc::default() }
    }

    /// Looks at the disk, because a quarter of a second of ingest can fill a reserve.
    ///
    /// # Errors
    /// `ReadOnly` with the reason and the fix.
    pub fn check(&self) -> Result<(), Error> {
        match self.look() {
            None => Ok(()),
            Some(reason) => Err(Error::ReadOnly(reason)),
        }
    }

    /// As the last look found it.
    pub fn reason(&self) -> Option<String> {
        self.reason.read().clone()
    }

    fn look(&self) -> Option<String> {
        let found = full(&self.data_dir, self.reserve_bytes);
        let changed = *self.reason.read() != found;
        if changed {
            let mut held = self.reason.write();
            match (&*held, &found) {
                (None, Some(reason)) => tracing::error!(%reason, "read-only"),
                (Some(_), None) => tracing::info!("writes are taken again"),
                _ => {}
            }
            held.clone_from(&found);
        }
        found
    }

    /// Watches the disk for as long as the node runs.
    pub fn watch(&self) -> tokio::task::JoinHandle<()> {
        let gate = self.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            loop {
                tick.tick().await;
                gate.look();
            }
        })
    }
}

/// The sentence of a full disk.
fn full(data_dir: &Path, reserve_bytes: u64) -> Option<String> {
    let free = cairn_storage::engine::free_bytes(data_dir).ok()?;
    (free < reserve_bytes).then(|| {
        format!(
            "this node is read-only: its disk is full ({} MiB free under {}, {} MiB are kept in reserve); free some space and \
             writes go on by themselves",
            free >> 20,
            data_dir.display(),
            reserve_bytes >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_below_its_reserve_refuses_writes_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut gate = WriteGate::new(dir.path().to_owned(), 0);
        assert!(gate.check().is_ok());
        gate.reserve_bytes = u64::MAX;
        let error = gate.check().unwrap_err();
        assert!(matches!(error, Error::ReadOnly(_)));
        assert!(error.to_string().contains("disk is full"), "{error}");
        assert_eq!(gate.reason(), Some(error.to_string()));
        gate.reserve_bytes = 0;
        assert!(gate.check().is_ok());
        assert_eq!(gate.reason(), None);
    }
}
