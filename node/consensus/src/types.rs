//! openraft's types as Cairn fills them, and the one place where log indexes are translated.
//!
//! openraft numbers entries from 0. Everything outside this crate counts from 1, so that 0 can mean "nothing yet";
//! [`index_of`] is that translation. The log itself keeps openraft's numbers.

use bytes::Bytes;
use std::fmt;

/// A Raft group: 0 = meta, 1…N = feature shards.
pub type GroupId = u32;
pub type NodeId = u64;

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerNode,
        AsyncRuntime = crate::runtime::Runtime,
);

pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<NodeId, PeerNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
pub type TransferResponse = openraft::raft::TransferLeaderResponse<TypeConfig>;
pub type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;

/// An encoded command of the group's state machine. Prints as its length: values never reach a log line.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

/// What applying a command answered. Prints as its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome(pub Bytes);

/// What Raft's membership says about a node: only its peer address, the rest lives in meta.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerNode {
    pub address: String,
}

/// The index of `log_id` as everything outside this crate counts it, from 1.
pub fn index_of(log_id: &LogId) -> u64 {
    log_id.index.saturating_add(1)
}

/// [`index_of`], with 0 for "nothing yet".
pub fn index_or_zero(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, index_of)
}

macro_rules! prints_its_length {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.0.len())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )*};
}
prints_its_length!(Command, Outcome);
