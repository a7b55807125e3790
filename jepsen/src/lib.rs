//! Fault injection on real `cairnd` processes: clients work, a nemesis kills, and what was acknowledged must be there.
//!
//! In reading order:
//! - [`run`]: one test from start to verdict
//! - [`workload`]: what the clients do, and what they were told
//! - [`nemesis`]: kill -9 and restart
//! - [`check`]: what must hold in the end
//!
//! Outcomes follow Jepsen's rules: ok, failed, or unknown; a time-out is unknown and may have taken effect. A run with too
//! few kills or acknowledged operations proves nothing and fails.

pub mod check;
pub mod nemesis;
pub mod run;
pub mod workload;

pub use run::{Plan, Verdict, run};

/// What can stop a test that is not a violation: the harness itself.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
