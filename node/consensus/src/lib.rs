//! Consensus: the Raft groups of a node, their log, their transport, their snapshots, their membership. The only code
//! that names openraft.
//!
//! In reading order:
//! - [`options`]: what the process around decides and provides; [`cluster`]: what it gets, [`Cluster`]
//! - `types`: openraft's types as we fill them; `codec`: our own bytes for them
//! - `identity`: who a data directory is; `founding`: starting and joining a cluster
//! - [`wal`]: the one durable log of all groups; `log_store`: a group's share of it for openraft
//! - `state_machine`: a storage `Replica` for openraft; `snapshot`: checkpoints, sent and received
//! - `machine`: what a node takes from the machine under it; a simulated one for tests; `runtime`: tokio for openraft
//! - `link`: connections to peers; `network`: openraft's calls on them; `server`: the peer port; `door`: who gets in
//! - `node`: a node's groups; `propose`: writes from any node; `reads`: fresh reads on any replica
//! - `view`: all groups as all nodes see them; `membership`: brings every group to the nodes meta names
//! - `lead`, `balance`: who leads, moved on demand; leads and voters spread evenly
//! - `audit`: replicas compared on a schedule
//! - `standing`: a node that was removed finds out; `transfer`: artifacts between nodes
//!
//! Always true (story tests in `tests`, simulated in `sim`):
//! - C1 a proposal answered with an index is applied on a quorum's log, durable there, and survives any restart
//! - C2 a command is sent twice only if nobody accepted it before or its state machine deduplicates it
//! - C3 a linearizable read shows every write acknowledged before it began, on whatever node it is made
//! - C4 a log is purged only behind what its replica has on disk
//! - C5 a node id belongs to one data directory, and a data directory to one process
//! - C6 a removed node takes no part again, and its id is never given out again
//!
//! Not here: what commands mean (`cairn-storage`), clients, SQL. Why it is so: ADR-0002.

mod audit;
mod balance;
#[cfg(any(test, feature = "seeded-bugs"))]
mod bugs;
mod cluster;
mod codec;
mod door;
mod error;
mod founding;
mod identity;
mod lead;
mod link;
mod log_store;
mod machine;
mod membership;
mod network;
mod node;
pub mod options;
mod propose;
mod reads;
mod rebuild;
mod runtime;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod server;
mod snapshot;
mod standing;
mod state_machine;
mod transfer;
mod types;
mod view;
pub mod wal;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use balance::{Move, Rebalanced};
pub use cluster::Cluster;
pub use error::{Error, Result};
pub use options::{
    BalanceOptions, BlobPeer, Follower, GroupStatus, Host, NoBlobs, Options, Rebuild, SnapshotOptions, Start, Timers,
};
pub use propose::{COMMAND_BYTES_MAX, Proposed};
pub use snapshot::Received;
pub use types::{GroupId, NodeId};
pub use view::{ClusterView, NodeReport, NodeView};

/// Version of the meta commands this crate proposes (`InitCluster`, `AddNode`, `UpdateNode`).
const META_COMMAND_VERSION: u32 = 1;

/// A refusal of the meta state machine as an error of the same kind.
fn refused(refusal: cairn_proto::record::v1::Refusal) -> Error {
    let kind = cairn_proto::ErrorKind::parse(&refusal.kind).unwrap_or(cairn_proto::ErrorKind::Internal);
    Error::Refused { kind, message: refusal.message }
}
