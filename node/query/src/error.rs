//! What can go wrong in a query. Messages name the thing and the fix, never feature values.

use cairn_proto::ErrorKind;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// "feature view `rides` not found in project `default`"
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    TooLarge(String),
    /// Rows of a slot are not on this node.
    #[error("{0}")]
    Unavailable(String),
    /// Slots moved to another shard while they were read: read all again.
    #[error("{0}")]
    Moving(String),
    #[error(transparent)]
    Storage(#[from] cairn_storage::Error),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::Unavailable(_) | Self::Moving(_) => ErrorKind::Unavailable,
            Self::Storage(error) => error.kind(),
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether the same read may do in a moment: slots move, or a segment is on its way to this node.
    pub fn will_pass(&self) -> bool {
        matches!(self, Self::Moving(_) | Self::Storage(cairn_storage::Error::Unavailable(_)))
    }

    /// Wraps an Arrow error that well-formed input cannot cause.
    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}
