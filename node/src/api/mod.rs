//! The client port: gRPC services, Arrow Flight and HTTP. Wire types stop here.
//!
//! - [`flight`]: Arrow Flight's calls; [`exchange`]: its long-lived ones; [`wire`]: batches to messages and back
//! - [`flight_sql`]: Flight SQL, in the same service
//! - [`entities`]: entity rows written as JSON
//! - [`definitions`], [`registry`], [`datasets`], [`backtests`], [`artifacts`], [`cluster`]: Cairn's own gRPC services
//! - [`http`]: JSON over HTTP: feature reads, inference, health, metrics
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod artifacts;
pub mod backtests;
pub mod cluster;
pub mod datasets;
pub mod definitions;
pub mod entities;
pub mod exchange;
pub mod flight;
pub mod flight_sql;
pub mod http;
pub mod jobs;
pub mod registry;
pub mod wire;
