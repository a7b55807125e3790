//! What can go wrong in the log. Cloneable, because the first failure answers every later call.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_proto::ErrorKind;

#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// No space left while making, extending or writing a segment. The node is read-only until somebody makes room.
    #[error("the disk is full: cannot {action} `{}`", path.display())]
    DiskFull { action: &'static str, path: PathBuf },
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// Bytes that were durable once are not what was written. Never repaired: the node joins anew.
    #[error("the log is damaged: `{}` at offset {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: String },
    #[error("`{}` has log format {found}, and this version of cairnd reads up to {supported}: start it with the version that wrote it, or a newer one", path.display())]
    NewerFormat { path: PathBuf, found: String, supported: u32 },
    #[error("the log in `{}` is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The call breaks the log's rules (a hole, an entry over the limit). Nothing was changed.
    #[error("{0}")]
    Refused(String),
    #[error("the log is closed")]
    Closed,
    #[error("the log's writer stopped: {0}")]
    WriterStopped(String),
}

impl WalError {
    /// Wraps an I/O error with what was being done, for use in `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path },
            _ => Self::Io { action, path, source: Arc::new(source) },
        }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::DiskFull { .. } => ErrorKind::ReadOnly,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::NewerFormat { .. } => ErrorKind::Unsupported,
            Self::Refused(_) => ErrorKind::InvalidArgument,
            Self::Closed => ErrorKind::Unavailable,
            Self::Io { .. } | Self::Locked(_) | Self::WriterStopped(_) => ErrorKind::Internal,
        }
    }
}

impl From<WalError> for io::Error {
    /// The `WalError` stays inside and can be had back with `downcast`.
    fn from(error: WalError) -> Self {
        let kind = match &error {
            WalError::DiskFull { .. } => io::ErrorKind::StorageFull,
            WalError::Io { source, .. } => source.kind(),
            WalError::Corrupt { .. } => io::ErrorKind::InvalidData,
            WalError::NewerFormat { .. } => io::ErrorKind::Unsupported,
            WalError::Refused(_) => io::ErrorKind::InvalidInput,
            WalError::Closed => io::ErrorKind::BrokenPipe,
            WalError::Locked(_) => io::ErrorKind::ResourceBusy,
            WalError::WriterStopped(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
