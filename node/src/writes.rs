//! May this node take writes? Not when its disk is nearly full or its log has failed. Reads go on either way.

use crate::error::{Error, Result};
use cairn_proto::ErrorKind;
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often free space is looked at. At 1 GiB/s of ingest a second fills four default reserves, so this is short.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why writes are refused; `None` = they are not.
#[derive(Debug, Clone, Default)]
pub struct WriteGate {
    reason: Arc<RwLock<Option<String>>>,
}

impl WriteGate {
    /// # Errors
    /// `ReadOnly` with the reason and the fix.
    pub fn check(&self) -> Result<()> {
        match self.reason.read().as_ref() {
            None => Ok(()),
            Some(reason) => Err(Error::new(ErrorKind::ReadOnly, reason.clone())),
        }
    }

    pub fn reason(&self) -> Option<String> {
        self.reason.read().clone()
    }

    fn set(&self, reason: Option<String>) {
        let mut held = self.reason.write();
        if *held != reason {
            match &reason {
                Some(reason) => tracing::error!(%reason, "read-only"),
                None => tracing::info!("writes are taken again"),
            }
            *held = reason;
        }
    }

    /// Watches the data directory's disk for as long as the node runs.
    pub fn watch(&self, data_dir: PathBuf, reserve_bytes: u64) -> tokio::task::JoinHandle<()> {
        let gate = self.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            loop {
                tick.tick().await;
                gate.set(full(&data_dir, reserve_bytes));
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
        let gate = WriteGate::default();
        gate.set(full(dir.path(), 0));
        assert!(gate.check().is_ok());
        gate.set(full(dir.path(), u64::MAX));
        let error = gate.check().unwrap_err();
        assert_eq!(error.kind, ErrorKind::ReadOnly);
        assert!(error.message.contains("disk is full"), "{error}");
        gate.set(full(dir.path(), 0));
        assert!(gate.check().is_ok());
    }
}
