//! The kinds of failure a caller can tell apart, and their one mapping to gRPC and HTTP status.

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

/// Metadata key that carries the kind beside a gRPC status.
pub const KIND_METADATA: &str = "cairn-error-kind";

/// What went wrong, by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong as it stands: fix it.
    InvalidArgument,
    /// The named thing is not there: create it, or fix the name.
    NotFound,
    /// The name is taken by something else: choose another.
    AlreadyExists,
    /// A compare-and-set lost: read again, then decide again.
    Conflict,
    /// Over a stated limit: send less at a time.
    TooLarge,
    /// Queues are full: back off and send the same again.
    Overloaded,
    /// No leader, or a peer is away: send the same again.
    Unavailable,
    /// No answer in time: the outcome is unknown. Send the same again with the same producer and sequence or request id.
    Timeout,
    /// Understood, and not offered by this version.
    Unsupported,
    /// The node takes no writes (full disk): call an operator.
    ReadOnly,
    /// Bytes on disk fail their checksum: call an operator.
    Corrupt,
    /// A bug of ours: report it.
    Internal,
}

impl ErrorKind {
    pub const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::TooLarge,
        Self::Overloaded,
        Self::Unavailable,
        Self::Timeout,
        Self::Unsupported,
        Self::ReadOnly,
        Self::Corrupt,
        Self::Internal,
    ];

    /// The kind as it stands in metadata, JSON and refusals: snake_case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::ReadOnly => "read_only",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    pub fn grpc_code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Conflict => Code::Aborted,
            Self::TooLarge => Code::OutOfRange,
            Self::Overloaded => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::Timeout => Code::DeadlineExceeded,
            Self::Unsupported => Code::Unimplemented,
            Self::ReadOnly => Code::FailedPrecondition,
            Self::Corrupt => Code::DataLoss,
            Self::Internal => Code::Internal,
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Overloaded => 429,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::Unsupported => 501,
            Self::ReadOnly => 507,
            Self::Corrupt | Self::Internal => 500,
        }
    }

    /// Whether sending the same request again can help.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Overloaded | Self::Unavailable | Self::Timeout)
    }

    /// A gRPC status of this kind. The kind travels in [`KIND_METADATA`].
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.grpc_code(), message);
        let kind = tonic::metadata::MetadataValue::from_static(self.as_str());
        status.metadata_mut().insert(KIND_METADATA, kind);
        status
    }

    /// The kind of a status: from its metadata, else by its code (a status made by tonic or a proxy).
    pub fn of_status(status: &Status) -> Self {
        let named = status.metadata().get(KIND_METADATA).and_then(|value| value.to_str().ok()).and_then(Self::parse);
        named.unwrap_or(match status.code() {
            Code::InvalidArgument => Self::InvalidArgument,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::Aborted => Self::Conflict,
            Code::OutOfRange => Self::TooLarge,
            Code::ResourceExhausted => Self::Overloaded,
            Code::Unavailable => Self::Unavailable,
            Code::DeadlineExceeded | Code::Cancelled => Self::Timeout,
            Code::Unimplemented => Self::Unsupported,
            Code::FailedPrecondition => Self::ReadOnly,
            Code::DataLoss => Self::Corrupt,
            _ => Self::Internal,
        })
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let status = kind.status("feature view `rides` not found");
            assert_eq!(ErrorKind::of_status(&status), kind);
            assert_eq!(status.message(), "feature view `rides` not found");
            assert_eq!(ErrorKind::parse(kind.as_str()), Some(kind));
        }
    }

    #[test]
    fn every_kind_survives_without_metadata() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::of_status(&Status::new(kind.grpc_code(), "")), kind);
        }
    }
}
