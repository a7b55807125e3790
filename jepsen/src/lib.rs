//! Fault injection on real `cairnd` processes: clients work, a nemesis breaks things, and every promise must hold.
//!
//! In reading order:
//! - [`mixed`]: one run: cluster, workloads, faults, healing, verdict
//! - [`workloads`]: the promises, one file each, with their checks
//! - [`nemesis`]: what is broken: processes, links, files
//! - [`operator`]: what is mended, and who helps nodes that cannot come back by themselves
//! - [`fleet`], [`net`], [`disk`], [`clock`]: the nodes, their network, disks and clocks, with all that can be done to them
//! - [`site`], [`history`]: what clients work with; what they asked and were told, and when
//! - [`linear`]: is the history of one register linearizable?
//! - [`timeline`]: the run as a page
//! - [`selftest`]: seeded bugs, each of which must be caught
//! - [`kills`]: the older form: nothing but kill -9, one node or three, and one check in the end
//!
//! Outcomes follow Jepsen's rules: ok, failed, or unknown; a time-out is unknown and may have taken effect. A run with too
//! few faults or acknowledged operations proves nothing and fails. A broken harness is no verdict.

pub mod clock;
pub mod disk;
pub mod fleet;
pub mod history;
pub mod kills;
pub mod linear;
pub mod mixed;
pub mod nemesis;
pub mod net;
pub mod operator;
pub mod selftest;
pub mod site;
pub mod timeline;
pub mod workloads;

/// What can stop a test that is not a violation: the harness itself.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
