//! What Cairn says on the wire and writes to disk, and the words both sides share.
//!
//! In reading order:
//! - [`record`]: stored records (`cairn.record.v1`); [`api`], [`peer`]: wire messages of the client and peer ports
//! - [`error`]: [`ErrorKind`] and its one mapping to gRPC and HTTP status
//! - [`token`]: the position of a write, `shard@index`
//! - [`time`]: microseconds since 1970 and their RFC 3339 form
//! - [`command`]: the JSON commands of Arrow Flight descriptors and tickets
//!
//! An API field never reaches the disk by accident: `api` and `record` are separate packages and nothing converts
//! between them here.

pub mod command;
pub mod error;
pub mod time;
pub mod token;

pub use error::ErrorKind;
pub use token::Token;

/// Wire messages of the client port.
pub mod api {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("cairn.api.v1");
    }
}

/// Stored records.
pub mod record {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("cairn.record.v1");
    }
}

/// Wire messages of the peer port.
pub mod peer {
    #[allow(clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("cairn.peer.v1");
    }
}

/// Version of the peer protocol; nodes that differ refuse each other.
pub const PEER_PROTOCOL: u32 = 2;

/// The project used when none is named.
pub const DEFAULT_PROJECT: &str = "default";

/// Number of slots a cluster's entities are spread over; fixed for ever.
pub const SLOTS: usize = 4096;

/// Largest gRPC message accepted on any lane, bytes. Arrow IPC batches above it must be split by the sender.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
