//! Rows over Arrow Flight, each call named by one JSON [`Command`](crate::command::Command).
//!
//! In reading order:
//! - [`ingest`]: `DoPut`, one answer per batch, exactly once with a producer
//! - [`exchange`]: `DoExchange` as long as the caller likes: online features and predictions
//! - [`history`]: `DoExchange` of a spine for its training set
//! - [`backtest`]: `DoExchange` of a spine with labels, for how model versions did
//! - [`get`]: `DoGet` for one-shot reads by JSON entity keys, and the schemas of commands
//! - [`sql`]: `DoGet` of Flight SQL
//! - `codec`: record batches as Flight messages
//!
//! Always true: one record batch is one message each way, whatever its size up to the message limit.

pub mod backtest;
mod codec;
pub mod exchange;
pub mod get;
pub mod history;
pub mod ingest;
pub mod sql;

use crate::connection::{MESSAGE_LIMIT, Node};
use arrow_flight::flight_service_client::FlightServiceClient;
use tonic::transport::Channel;

pub use backtest::BacktestStream;
pub use exchange::{Exchange, OnlineReader, Predictor, Reply};
pub use history::RecordStream;
pub use ingest::IngestStream;
pub use sql::SqlRows;

/// Batches of one stream that may wait for their answer at the same time.
pub const IN_FLIGHT_MAX: usize = 64;

/// The generated Flight client with Cairn's message limit.
fn flight(node: &Node) -> FlightServiceClient<Channel> {
    FlightServiceClient::new(node.channel.clone())
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}
