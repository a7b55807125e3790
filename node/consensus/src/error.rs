//! What can go wrong between a request and its committed entry.

use cairn_proto::ErrorKind;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The outcome of a proposal is unknown, or a read was not ready in time.
    #[error("{0}")]
    Timeout(String),
    /// Nothing was proposed.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Overloaded(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    InvalidArgument(String),
    /// Bytes on disk or on the wire are of a version this node does not know.
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Corrupt(String),
    /// Another node's answer, passed on as it came.
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
    #[error(transparent)]
    Storage(#[from] cairn_storage::Error),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Overloaded(_) => ErrorKind::Overloaded,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Refused { kind, .. } => *kind,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorKind::ReadOnly,
            Self::Io { .. } | Self::Internal(_) => ErrorKind::Internal,
            Self::Storage(error) => error.kind(),
        }
    }

    /// Wraps an I/O error with what was being done, for use in `map_err`.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    pub(crate) fn status(&self) -> tonic::Status {
        self.kind().status(self.to_string())
    }

    /// A peer's refusal as this node's error.
    pub(crate) fn of_status(status: &tonic::Status) -> Self {
        Self::Refused { kind: ErrorKind::of_status(status), message: status.message().to_owned() }
    }
}
