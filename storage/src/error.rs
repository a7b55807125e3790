//! What can go wrong in storage.

use cairn_proto::ErrorKind;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal of one request. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// "feature view `rides` not found in project `default`"
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    ReadOnly(String),
    /// Not now: the same again may do.
    #[error("{0}")]
    Unavailable(String),
    /// Bytes fail their checksum or cannot be decoded.
    #[error("{0}")]
    Corrupt(String),
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::AlreadyExists(_) => ErrorKind::AlreadyExists,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::ReadOnly(_) => ErrorKind::ReadOnly,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorKind::ReadOnly,
            Self::Io { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Wraps an I/O error with what was being done, for use in `map_err`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// What Parquet reports of a file of ours.
    pub(crate) fn parquet(error: parquet::errors::ParquetError) -> Self {
        match error {
            parquet::errors::ParquetError::External(source) => match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(source) => match source.downcast::<std::io::Error>() {
                    Ok(source) => Self::Io { context: "a segment".to_owned(), source: *source },
                    Err(source) => Self::Corrupt(format!("a segment: {source}")),
                },
            },
            other => Self::Corrupt(format!("a segment: {other}")),
        }
    }
}

/// This replica must stop: going on could make it differ from its peers or lose data.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

impl From<Error> for Fatal {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}
