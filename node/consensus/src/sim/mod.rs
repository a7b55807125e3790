//! The deterministic simulation: whole nodes with the real consensus, transport and log code in one thread, on a network,
//! on clocks and on disks that a seed rules. One seed is one run, bit for bit.
//!
//! In reading order:
//! - [`run`]: a run from first machine to verdict
//! - [`host`]: a machine, its process and its replicas; [`clients`]: what they are asked
//! - [`nemesis`]: what goes wrong; [`operator`]: who joins, drains, leaves and leads; [`observer`]: what is seen from outside
//! - [`history`]: everything that happened, in order, with [`wire`]: every message; [`invariants`]: what must hold of it
//! - [`machine`], [`disk`], [`chance`]: network and threads, the log's disk, randomness and clocks
//!
//! Why and how: ADR-0008. Long form: `make sim SEEDS=20000`; one seed again: `make sim SEED=7`.

mod chance;
mod clients;
pub mod disk;
pub mod history;
mod host;
mod invariants;
pub mod machine;
mod nemesis;
mod observer;
mod operator;
mod run;
mod tests;
mod wire;
