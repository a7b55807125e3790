//! What a request to this node can fail with.

use cairn_executor::{LoadError, RunError};
use cairn_proto::ErrorKind;
use tonic::Status;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal, with the kind that tells the caller what to do next. Messages name the thing and the fix.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A replicated refusal as it came out of a state machine.
    pub fn refused(refusal: &cairn_proto::record::v1::Refusal) -> Self {
        Self::new(ErrorKind::parse(&refusal.kind).unwrap_or(ErrorKind::Internal), refusal.message.clone())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.kind.status(error.message)
    }
}

macro_rules! from_kinded {
    ($($source:ty),*) => {$(
        impl From<$source> for Error {
            fn from(error: $source) -> Self {
                Self::new(error.kind(), error.to_string())
            }
        }
    )*};
}

from_kinded!(cairn_storage::Error, cairn_consensus::Error, cairn_query::Error);

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        let kind = match &error {
            LoadError::InvalidModel { .. } => ErrorKind::InvalidArgument,
            LoadError::UnsupportedOps(_) | LoadError::UnsupportedType { .. } => ErrorKind::Unsupported,
            LoadError::LimitExceeded { .. } => ErrorKind::TooLarge,
            LoadError::ModelFault(_) => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        let kind = match &error {
            RunError::BadInput(_) | RunError::BadValue { .. } | RunError::Step { .. } => ErrorKind::InvalidArgument,
            RunError::Overloaded { .. } => ErrorKind::Overloaded,
            RunError::Stopped => ErrorKind::Unavailable,
            RunError::BadOutput(_) | RunError::ModelFault(_) => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<cairn_proto::token::BadToken> for Error {
    fn from(error: cairn_proto::token::BadToken) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Self {
        Self::internal(format!("an outcome does not decode: {error}"))
    }
}
