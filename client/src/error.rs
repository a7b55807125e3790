//! What can go wrong between a program and a cluster.
//!
//! A refusal keeps the node's own words; everything else says what this side saw. [`Error::kind`] tells what to do next.

use arrow_flight::error::FlightError;
use cairn_proto::ErrorKind;
use cairn_proto::error::KIND_METADATA;
use std::path::PathBuf;
use std::time::Duration;
use tonic::{Code, Status};

/// What a call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The node answered, and the answer is no. The message is the node's.
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
    /// No connection was made, so nothing was sent.
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    /// The connection broke before the answer came: whether a write took effect is unknown.
    #[error("the connection to {address} was lost before the answer came: {reason}")]
    Interrupted { address: String, reason: String },
    /// No answer came in time: whether a write took effect is unknown.
    #[error("no answer from {address} within {} ms", waited.as_millis())]
    Timeout { address: String, waited: Duration },
    /// Found wrong on this side, before anything was sent.
    #[error("{0}")]
    Input(String),
    /// Over a limit known on this side, before anything was sent.
    #[error("{0}")]
    TooLarge(String),
    /// A file on this machine cannot be read, written or understood.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// Bytes that came are not the bytes that were asked for.
    #[error(
        "artifact `{expected}` arrived as `{found}`: the bytes do not match their BLAKE3 root and were thrown away"
    )]
    WrongBytes { expected: String, found: String },
    /// A process of this machine (see [`crate::local`]) did not start, or did not do as asked.
    #[error("{0}")]
    Process(String),
    /// The node answered something this client does not understand: versions that do not fit, or a bug.
    #[error("the answer from {address} is not understood: {reason}")]
    Protocol { address: String, reason: String },
}

impl Error {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Connect { .. } | Self::Process(_) => ErrorKind::Unavailable,
            Self::Interrupted { .. } | Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Input(_) | Self::File { .. } => ErrorKind::InvalidArgument,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::WrongBytes { .. } => ErrorKind::Corrupt,
            Self::Protocol { .. } => ErrorKind::Internal,
        }
    }

    /// Whether a write that failed so may have taken effect all the same.
    pub fn outcome_unknown(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// Whether the trouble is the way to this node, so that another node is worth trying.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Interrupted { .. })
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Process(reason.into())
    }

    pub(crate) fn file(path: &std::path::Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }

    /// Tells a node's refusal from trouble on the way: only a status made on this side has a source.
    pub(crate) fn of_status(address: &str, status: &Status) -> Self {
        let refused = || Self::Refused { kind: ErrorKind::of_status(status), message: status.message().to_owned() };
        if status.metadata().contains_key(KIND_METADATA) {
            return refused();
        }
        let address = address.to_owned();
        let mut cause = std::error::Error::source(status);
        if cause.is_none() {
            // A node that goes away tells its open streams so without naming a kind.
            let lost = matches!(status.code(), Code::Unknown | Code::Cancelled);
            let reason = status.message().to_owned();
            return if lost { Self::Interrupted { address, reason } } else { refused() };
        }
        let mut reason = status.message().to_owned();
        while let Some(found) = cause {
            if found.is::<tonic::ConnectError>() {
                let mut deepest = found;
                while let Some(next) = deepest.source() {
                    deepest = next;
                }
                return Self::Connect { address, reason: deepest.to_string() };
            }
            reason = found.to_string();
            cause = found.source();
        }
        Self::Interrupted { address, reason }
    }

    pub(crate) fn of_flight(address: &str, error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) => Self::of_status(address, &status),
            other => Self::Protocol { address: address.to_owned(), reason: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_kind_and_words() {
        for kind in ErrorKind::ALL {
            let error = Error::of_status("a:1", &kind.status("feature view `rides` not found"));
            assert_eq!(error, Error::Refused { kind, message: "feature view `rides` not found".into() });
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), "feature view `rides` not found");
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_unknown() {
        let broken = Status::from_error("connection reset by peer".into());
        let error = Error::of_status("a:1", &broken);
        assert!(error.outcome_unknown() && error.is_connection(), "{error:?}");
        let late = Error::of_status("a:1", &Status::deadline_exceeded("too slow"));
        assert!(late.outcome_unknown() && !late.is_connection(), "{late:?}");
    }

    #[tokio::test]
    async fn a_refused_connection_sends_nothing() {
        // A port that was free a moment ago and has no listener now.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = crate::Options { first_connect: Duration::ZERO, ..crate::Options::default() };
        let client = crate::Client::with_options(&format!("127.0.0.1:{port}"), options).await.unwrap();
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        assert!(!error.outcome_unknown());
        assert!(error.to_string().starts_with(&format!("cannot connect to 127.0.0.1:{port}: ")), "{error}");
    }
}
