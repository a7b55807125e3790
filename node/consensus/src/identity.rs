//! Who this data directory is: `identity` names cluster and node, `LOCK` keeps a second process out.
//!
//! A node id is never reused: it is written here before the node takes part in anything, and a directory without an
//! identity is a new node. `joining` holds the request id of a join under way, so that a join cut short by a crash
//! ends in one node, not two.

use crate::error::{Error, Result};
use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Format of the identity file and of the directory's layout.
pub const FORMAT_VERSION: u32 = 1;

const IDENTITY: &str = "identity";
const JOINING: &str = "joining";
const LOCK: &str = "LOCK";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub format_version: u32,
    pub cluster_id: String,
    pub node_id: NodeId,
    pub name: String,
    /// Feature shards of the cluster; groups are 0…=shards.
    pub shards: u32,
    /// This node started the cluster and has not yet seen its first entry committed. Only then may it found groups.
    pub founding: bool,
}

/// A data directory that this process owns as long as it keeps this value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory when it is not there, and locks it.
    ///
    /// # Errors
    /// `Unavailable` when another process holds it, by its pid.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).map_err(Error::io(format!("cannot make data directory {shown}")))?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io(format!("cannot open {}", lock_path.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                let holder =
                    if pid.trim().is_empty() { "another process".into() } else { format!("pid {}", pid.trim()) };
                return Err(Error::Unavailable(format!(
                    "data directory {shown} is in use by {holder}; stop it, or choose another directory"
                )));
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(Error::Io { context: format!("cannot lock {}", lock_path.display()), source });
            }
        }
        let write_pid = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
        write_pid.map_err(Error::io(format!("cannot write {}", lock_path.display())))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity written here, `None` for a new node.
    ///
    /// # Errors
    /// `Unsupported` when a newer version wrote it, `Corrupt` when it cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let path = self.path.join(IDENTITY);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let corrupt = |error: serde_json::Error| Error::Corrupt(format!("{} cannot be read: {error}", path.display()));
        // The version alone first: a newer file may have any other shape.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_str(&text).map_err(corrupt)?;
        if format_version > FORMAT_VERSION {
            return Err(Error::Unsupported(format!(
                "data directory {} has format {format_version}, and this version of cairnd reads up to \
                 {FORMAT_VERSION}: start it with the version that wrote it, or a newer one",
                self.path.display()
            )));
        }
        serde_json::from_str(&text).map(Some).map_err(corrupt)
    }

    /// Writes the identity for good, and ends a join under way.
    pub fn save_identity(&self, identity: &Identity) -> Result<()> {
        let text = serde_json::to_string_pretty(identity).map_err(|error| Error::Internal(error.to_string()))?;
        self.write(IDENTITY, &text)?;
        match fs::remove_file(self.path.join(JOINING)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { context: format!("cannot remove {}", self.path.join(JOINING).display()), source })
            }
            _ => Ok(()),
        }
    }

    /// The request id of the join under way; `fresh` becomes it when there is none.
    pub fn join_request(&self, fresh: impl FnOnce() -> String) -> Result<String> {
        if let Some(text) = read_if_there(&self.path.join(JOINING))?
            && !text.is_empty()
        {
            return Ok(text);
        }
        let id = fresh();
        self.write(JOINING, &id)?;
        Ok(id)
    }

    /// The whole file or the one before it, across a crash.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.tmp"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Error::io(format!("cannot write {}", path.display())))
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { context: format!("cannot read {}", path.display()), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn identity() -> Identity {
        Identity {
            format_version: FORMAT_VERSION,
            cluster_id: "c0ffee".into(),
            node_id: 7,
            name: "left".into(),
            shards: 4,
            founding: false,
        }
    }

    #[test]
    fn an_identity_reads_back_and_ends_the_join() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        assert_eq!(data.join_request(|| "first".into()).unwrap(), "first");
        assert_eq!(data.join_request(|| "second".into()).unwrap(), "first");
        data.save_identity(&identity()).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity()));
        assert_eq!(data.join_request(|| "third".into()).unwrap(), "third");
    }

    /// Version 1 as it was released.
    #[test]
    fn golden_identity_of_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.save_identity(&identity()).unwrap();
        let text = fs::read_to_string(dir.path().join(IDENTITY)).unwrap();
        expect![[r#"
            {
              "format_version": 1,
              "cluster_id": "c0ffee",
              "node_id": 7,
              "name": "left",
              "shards": 4,
              "founding": false
            }"#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_second_owner_is_refused_by_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refusal = DataDir::open(dir.path()).unwrap_err().to_string();
        let want = format!("data directory {} is in use by pid {}; stop it,", dir.path().display(), std::process::id());
        assert!(refusal.starts_with(&want), "{refusal}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        fs::write(dir.path().join(IDENTITY), r#"{"format_version": 2, "who": "knows"}"#).unwrap();
        let refusal = data.identity().unwrap_err();
        assert_eq!(refusal.kind(), cairn_proto::ErrorKind::Unsupported);
        assert!(refusal.to_string().contains("has format 2"), "{refusal}");
    }
}
