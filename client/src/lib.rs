//! Rust client of Cairn: definitions, features, models and lineage of one cluster, over one connection.
//!
//! In reading order:
//! - [`Client`]: a cheap, cloneable handle; connects lazily, reconnects by itself, repeats what is safe to repeat
//! - [`definitions`], [`registry`], [`datasets`], [`backtests`], [`artifacts`], [`jobs`], [`cluster`]: methods of
//!   [`Client`] for everything that is not rows
//! - [`flight`]: rows over Arrow Flight: ingest, online features, predictions, training sets
//! - [`files`]: Parquet and CSV files as record batches, and back
//! - [`local`]: `cairnd` processes on this machine, for tests, benchmarks and demos
//! - [`Error`]: what went wrong, with a [`ErrorKind`] that says what to do next
//!
//! Always true:
//! - L1 a write is repeated only when the cluster recognises the repetition (producer and sequence, or a request id) or
//!   certainly never saw the first try. [`Error::outcome_unknown`] tells when nobody knows.
//! - L2 one `RecordBatch` is one message: the rows of a request come back together, in the same order.
//! - memory is bounded: a stream holds at most [`flight::IN_FLIGHT_MAX`] unanswered batches.
//!
//! ```no_run
//! use cairn_client::command::{GetOnlineFeatures, Ingest};
//! use cairn_client::{Client, Result, read};
//! # async fn tour(rows: arrow_array::RecordBatch, drivers: arrow_array::RecordBatch) -> Result<()> {
//! let client = Client::connect("127.0.0.1:7700").await?;
//!
//! // A producer and a sequence make the write exactly-once, whatever happens on the way.
//! let ingest = Ingest {
//!     producer: Some("nightly-2026-05-02".into()),
//!     sequence: Some(1),
//!     ..Ingest::new("default", "driver_stats")
//! };
//! let stored = client.ingest_batch(ingest, rows).await?;
//!
//! // One long-lived stream; each batch of entity rows gets one batch back.
//! let mut reader = client.online_features(GetOnlineFeatures {
//!     feature_service: Some("eta".into()),
//!     read: read::at_least(&stored.token),
//!     ..read::online("default")
//! });
//! let (features, reply) = reader.read(&drivers).await?;
//! println!("{} rows as of {}", features.num_rows(), reply.token);
//! # Ok(())
//! # }
//! ```

mod connection;
mod error;
mod retry;

pub mod artifacts;
pub mod backtests;
pub mod cluster;
pub mod datasets;
pub mod definitions;
pub mod files;
pub mod flight;
pub mod jobs;
pub mod local;
pub mod read;
pub mod registry;

pub use cairn_proto::api::v1 as api;
pub use cairn_proto::time::Timestamp;
pub use cairn_proto::{DEFAULT_PROJECT, ErrorKind, Token, command};
pub use connection::{Client, DEFAULT_NODE, Options};
pub use error::{Error, Result};
