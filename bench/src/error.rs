//! Why a run ended without numbers.

use std::path::Path;

/// What a step of this program returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A measurement that did not happen. Nothing is published after one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node refused or was not there.
    #[error(transparent)]
    Cairn(#[from] cairn_client::Error),
    /// The operating system refused.
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    /// A peer did not start, or said an error.
    #[error("{peer}: {reason}")]
    Peer { peer: &'static str, reason: String },
    /// A system answered other values than were written, so its speed means nothing.
    #[error("wrong answer from {system}: {reason}")]
    Wrong { system: &'static str, reason: String },
    /// A cell that hangs.
    #[error("a cell took more than {seconds} s")]
    Stuck { seconds: u64 },
    /// Told to stop.
    #[error("stopped by a signal")]
    Signal,
    /// A bug of this program.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// For `map_err`: the operating system's error with what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// As [`Error::system`], for a file or folder.
    pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::system(path.display().to_string())
    }

    pub fn wrong(system: &'static str, reason: impl Into<String>) -> Self {
        Self::Wrong { system, reason: reason.into() }
    }

    pub fn peer(peer: &'static str, reason: impl Into<String>) -> Self {
        Self::Peer { peer, reason: reason.into() }
    }
}

impl From<arrow_schema::ArrowError> for Error {
    fn from(error: arrow_schema::ArrowError) -> Self {
        Self::Internal(error.to_string())
    }
}
