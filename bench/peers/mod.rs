//! What a team would run instead of Cairn, on the same keys, batches and loop.
//!
//! - [`etcd`]: three servers, for replicated writes
//! - [`resp`]: Redis's protocol, as little of it as a fast client needs
//! - [`redis`]: a server of our own on a free port, its two layouts, and one client of each kind

pub mod etcd;
pub mod redis;
pub mod resp;
