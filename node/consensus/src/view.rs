//! All groups as all nodes see them, for operators and for whoever moves leads and replicas.
//!
//! Every node of meta is asked for its own groups. What a group's leader says of it counts; without a leader's word the
//! newest one does. A view is a moment that may be over: every step taken from it is checked again where it is taken.

use crate::error::{Error, Result};
use crate::link;
use crate::node::Node;
use crate::options::{Follower, GroupStatus};
use crate::types::*;
use cairn_proto::PEER_PROTOCOL;
use cairn_proto::peer::v1::{self as peer, Envelope, GroupReport, GroupsReply, GroupsRequest};
use cairn_proto::record::v1::{self as record, NodeState};
use cairn_storage::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A node that does not say how it is in this time is called away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A node and what it said.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub node: record::Node,
    /// `Err`: why there is no answer.
    pub report: Result<NodeReport, String>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default)]
pub struct NodeReport {
    pub read_only: bool,
    /// Artifacts that meta refers to and this node does not hold.
    pub artifacts_missing: u64,
    pub groups: Vec<GroupStatus>,
}

#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// By id.
    pub nodes: Vec<NodeView>,
}

impl ClusterView {
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|view| view.node.id == id)
    }

    /// What there is to know of every group: its leader's word, else the newest one. By group.
    pub fn groups(&self) -> Vec<&GroupStatus> {
        let mut best: BTreeMap<GroupId, &GroupStatus> = BTreeMap::new();
        let rank = |status: &GroupStatus| (status.is_leader, status.term, status.committed_index, status.last_index);
        for status in self.reports().flat_map(|report| &report.groups) {
            let known = best.entry(status.group).or_insert(status);
            if rank(status) > rank(known) {
                *known = status;
            }
        }
        best.into_values().collect()
    }

    /// How far a node says it has applied a group; `None` if it does not answer.
    pub fn applied(&self, node: NodeId, group: GroupId) -> Option<u64> {
        let report = self.node(node)?.report.as_ref().ok()?;
        report.groups.iter().find(|status| status.group == group).map(|status| status.applied_index)
    }

    /// A node's name, or its id when it has none here.
    pub fn name(&self, id: NodeId) -> String {
        self.node(id).map_or_else(|| id.to_string(), |view| view.node.name.clone())
    }

    /// Why taking `leaving` out would cost a quorum, group by group; nothing if it would not.
    pub fn removal_troubles(&self, leaving: NodeId, replication_factor: usize) -> Vec<String> {
        let groups = self.groups();
        let mut troubles: Vec<String> =
            groups.iter().filter_map(|group| self.removal_trouble(group, leaving, replication_factor)).collect();
        if groups.is_empty() {
            troubles.push("no group is known".into());
        }
        troubles
    }

    fn removal_trouble(&self, group: &GroupStatus, leaving: NodeId, factor: usize) -> Option<String> {
        let id = group.group;
        if !group.is_leader {
            return Some(format!("group {id} has no leader that answers"));
        }
        if !group.voters.contains(&leaving) {
            return None;
        }
        let stays = |id: &NodeId| {
            let state = self.node(*id).map(|view| view.node.state());
            *id != leaving && matches!(state, Some(NodeState::Active | NodeState::Draining))
        };
        let ready: BTreeSet<NodeId> = group.ready().collect();
        let mut voters: Vec<NodeId> = group.voters.iter().copied().filter(stays).collect();
        // Learners that could take its place at once do.
        let spare = group.learners.iter().copied().filter(|learner| stays(learner) && ready.contains(learner));
        voters.extend(spare.take(factor.saturating_sub(voters.len())));
        let up: Vec<NodeId> = voters.iter().copied().filter(|voter| ready.contains(voter)).collect();
        if voters.is_empty() {
            return Some(format!("group {id} would have no voter left"));
        }
        if up.len() > voters.len() / 2 {
            return None;
        }
        let names =
            |ids: &[NodeId]| ids.iter().map(|id| format!("`{}`", self.name(*id))).collect::<Vec<_>>().join(", ");
        let up = if up.is_empty() { "none".into() } else { format!("only {}", names(&up)) };
        Some(format!("of the voters that group {id} would have ({}), {up} is up and caught up", names(&voters)))
    }

    fn reports(&self) -> impl Iterator<Item = &NodeReport> {
        self.nodes.iter().filter_map(|view| view.report.as_ref().ok())
    }
}

/// Asks every node, this one included.
pub(crate) async fn gather(node: &Arc<Node>) -> ClusterView {
    let asking = node.host.nodes().into_iter().map(|known| async move {
        let report = if known.id == node.me() { Ok(report(node)) } else { ask(node, known.id).await };
        NodeView { node: known, report }
    });
    ClusterView { nodes: futures::future::join_all(asking).await }
}

/// What this node says of itself.
pub(crate) fn report(node: &Node) -> NodeReport {
    let removing = node.host.nodes().iter().any(|known| known.state() == NodeState::Removing);
    NodeReport {
        read_only: node.check_room().is_err(),
        artifacts_missing: if removing { node.host.artifacts_missing() } else { 0 },
        groups: node.groups.values().map(|group| group.status(node.me())).collect(),
    }
}

async fn ask(node: &Node, id: NodeId) -> Result<NodeReport, String> {
    let reply = ask_groups(node, id).await.map_err(|error| error.to_string())?;
    if reply.removed {
        return Err(format!("node {id} says that this node was removed"));
    }
    Ok(NodeReport {
        read_only: reply.read_only,
        artifacts_missing: reply.artifacts_missing,
        groups: reply.groups.into_iter().map(status_of).collect(),
    })
}

/// One question to another node.
///
/// # Errors
/// `Unavailable`, or what the node said.
pub(crate) async fn ask_groups(node: &Node, id: NodeId) -> Result<GroupsReply> {
    let peer = node.peers.get(id);
    let asked = async {
        let mut client = peer.requests().await?;
        let request = GroupsRequest { envelope: Some(peer.envelope()) };
        match client.groups(request).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => {
                if crate::propose::definite_refusal(&status).is_none() {
                    peer.forget_connections().await;
                }
                Err(Error::of_status(&status))
            }
        }
    };
    let away = |_| Error::Unavailable(format!("node {id} does not answer within {ANSWER_TIMEOUT:?}"));
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(away)?
}

/// The same question to whoever is at `address`. Only a node that was removed gets an answer to it.
///
/// # Errors
/// As [`ask_groups`].
pub(crate) async fn ask_groups_at(node: &Node, address: &str) -> Result<GroupsReply> {
    let asked = async {
        let mut client = link::connect(address).await?;
        let cluster_id = node.identity.cluster_id.clone();
        let envelope = Envelope { cluster_id, from: node.me(), to: 0, protocol: PEER_PROTOCOL };
        let reply = client.groups(GroupsRequest { envelope: Some(envelope) }).await;
        reply.map(tonic::Response::into_inner).map_err(|status| Error::of_status(&status))
    };
    let away = |_| Error::Unavailable(format!("the node at {address} does not answer within {ANSWER_TIMEOUT:?}"));
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(away)?
}

/// The answer to a peer's question. A node that was removed learns that, and nothing else.
pub(crate) fn answer(node: &Node, from: NodeId) -> GroupsReply {
    if node.host.removed_nodes().contains(&from) {
        return GroupsReply { removed: true, ..GroupsReply::default() };
    }
    let NodeReport { read_only, artifacts_missing, groups } = report(node);
    let groups = groups.into_iter().map(report_of).collect();
    GroupsReply { removed: false, read_only, artifacts_missing, groups }
}

fn report_of(status: GroupStatus) -> GroupReport {
    let followers = status.followers.iter().map(|it| peer::Follower {
        node: it.node,
        matched_index: it.matched_index,
        heard: it.heard,
        ready: it.ready,
    });
    let digests = status.digests.iter().map(|it| peer::Digest { index: it.index, blake3: it.blake3.to_vec().into() });
    GroupReport {
        group: status.group,
        leader: status.leader.unwrap_or_default(),
        is_leader: status.is_leader,
        term: status.term,
        last_index: status.last_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        applied_time_us: status.applied_time_us,
        snapshot_index: status.snapshot_index,
        purged_index: status.purged_index,
        followers: followers.collect(),
        voters: status.voters,
        learners: status.learners,
        changing: status.changing,
        failure: status.failure.unwrap_or_default(),
        digests: digests.collect(),
    }
}

fn status_of(report: GroupReport) -> GroupStatus {
    let followers = report.followers.iter().map(|it| Follower {
        node: it.node,
        matched_index: it.matched_index,
        heard: it.heard,
        ready: it.ready,
    });
    // A digest of another length is of a method this node does not know: it tells nothing.
    let digests = report
        .digests
        .iter()
        .filter_map(|it| Some(Digest { index: it.index, blake3: it.blake3.as_ref().try_into().ok()? }));
    GroupStatus {
        group: report.group,
        leader: Some(report.leader).filter(|id| *id != 0),
        is_leader: report.is_leader,
        term: report.term,
        last_index: report.last_index,
        committed_index: report.committed_index,
        applied_index: report.applied_index,
        applied_time_us: report.applied_time_us,
        snapshot_index: report.snapshot_index,
        purged_index: report.purged_index,
        followers: followers.collect(),
        voters: report.voters,
        learners: report.learners,
        changing: report.changing,
        failure: Some(report.failure).filter(|failure| !failure.is_empty()),
        digests: digests.collect(),
    }
}

#[cfg(test)]
mod tests;
