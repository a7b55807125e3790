//! Who leads: handed from voter to voter on demand, and away from nodes that should not lead.
//!
//! A transfer goes to a voter that was heard lately and is close behind, so that it takes one round; the old leader takes
//! no proposals meanwhile, and what it took before commits under the new one. Proposals and reads are held or forwarded.
//! A transfer that fails ends in an election by timeout, which is why it is refused where it would probably fail.

use crate::error::{Error, Result};
use crate::node::{Group, Node};
use crate::options::GroupStatus;
use crate::reads;
use crate::types::*;
use cairn_proto::ErrorKind;
use cairn_proto::peer::v1::{TransferLeadRequest, move_reply};
use cairn_proto::record::v1::{self as record, NodeState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(20);
/// How long a node that hands a group over waits for the other to lead.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refusal waits for what meta was told before.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// What came of asking one node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// By this node.
    By(NodeId),
    NotLeader(Option<NodeId>),
}

/// Makes `to` the leader, from any node; returns who led before (`to` itself if it did).
pub(crate) async fn transfer(node: &Node, group: &Group, to: NodeId, deadline: Instant) -> Result<NodeId> {
    let mut hint = None;
    let mut attempt = 0usize;
    let mut why = String::from("it has no leader");
    loop {
        node.check_running()?;
        let asked = hint.take().or_else(|| group.leader()).or_else(|| node.others(attempt).first().copied());
        let given = match asked {
            Some(id) if id == node.me() => give(node, group, to, deadline).await,
            Some(id) => give_there(node, group, id, to, deadline).await,
            None => Ok(Given::NotLeader(None)),
        };
        match given {
            Ok(Given::By(from)) => return Ok(from),
            Ok(Given::NotLeader(Some(leader))) if Some(leader) != asked && attempt.is_multiple_of(2) => {
                hint = Some(leader)
            }
            Ok(Given::NotLeader(_)) => {}
            // The leader itself says why not; a node that cannot be asked is asked again.
            Err(Error::Refused { kind, message }) if kind != ErrorKind::Timeout => {
                return Err(Error::Refused { kind, message });
            }
            Err(error @ (Error::Timeout(_) | Error::Refused { .. })) => why = error.to_string(),
            Err(Error::Unavailable(reason)) if asked != Some(node.me()) => why = reason,
            Err(error) => return Err(error),
        }
        attempt += 1;
        if Instant::now() >= deadline {
            return Err(Error::Unavailable(format!("the lead of group {} was not moved in time: {why}", group.id)));
        }
        if hint.is_none() {
            group.changed(PAUSE).await;
        }
    }
}

/// Gives the lead of a group to `to`; returns when `to` leads.
///
/// # Errors
/// As [`check`]; `Overloaded` while another transfer of the group is under way; `Unavailable` when `to` did not take over.
pub(crate) async fn give(node: &Node, group: &Group, to: NodeId, deadline: Instant) -> Result<Given> {
    let me = node.me();
    let mut status = group.status(me);
    if status.is_leader && check(&status, &node.host.nodes(), to).is_err() {
        // Meta may have been told otherwise before this was asked, and this node not heard of it yet.
        let _ = reads::linearizable(node, node.group(0)?, deadline.min(Instant::now() + CATCH_UP_TIMEOUT)).await;
        status = group.status(me);
    }
    if !status.is_leader {
        return Ok(Given::NotLeader(status.leader.filter(|leader| *leader != me)));
    }
    check(&status, &node.host.nodes(), to)?;
    if to == me {
        return Ok(Given::By(me));
    }
    let busy = |_| Error::Overloaded(format!("the lead of group {} is being moved already; try again", group.id));
    let _turn = group.giving.try_lock().map_err(busy)?;
    let stopped = |fatal| Error::Unavailable(format!("group {} has stopped: {fatal}", group.id));
    group.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
    tracing::info!(group = group.id, to, "handing the group over");
    loop {
        match group.leader() {
            Some(leader) if leader == to => return Ok(Given::By(me)),
            Some(leader) if leader != me => {
                let message = format!("group {} elected node {leader} instead of node {to}", group.id);
                return Err(Error::Unavailable(message));
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            let message = format!("node {to} did not take over group {} in time; its voters elect a leader", group.id);
            return Err(Error::Unavailable(message));
        }
        group.changed(PAUSE).await;
    }
}

async fn give_there(node: &Node, group: &Group, leader: NodeId, to: NodeId, deadline: Instant) -> Result<Given> {
    let left = deadline.saturating_duration_since(Instant::now());
    let peer = node.peers.get(leader);
    let late = |_| Error::Timeout(format!("node {leader} did not answer in time"));
    let mut client = tokio::time::timeout(left, peer.requests()).await.map_err(late)??;
    let request = TransferLeadRequest {
        envelope: Some(peer.envelope()),
        group: group.id,
        to,
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    match tokio::time::timeout(left, client.transfer_lead(request)).await.map_err(late)? {
        Ok(reply) => Ok(match reply.into_inner().result {
            Some(move_reply::Result::Moved(moved)) => Given::By(moved.from),
            Some(move_reply::Result::NotLeader(hint)) => Given::NotLeader(Some(hint.leader).filter(|id| *id != 0)),
            None => return Err(Error::Internal(format!("node {leader} answered nothing"))),
        }),
        Err(status) if crate::propose::definite_refusal(&status).is_some() => Err(Error::of_status(&status)),
        Err(status) => {
            peer.forget_connections().await;
            Err(Error::Unavailable(format!("node {leader}: {}", status.message())))
        }
    }
}

/// Whether `to` may lead a group, as its leader sees it.
///
/// # Errors
/// Precisely why not: `NotFound`, `InvalidArgument` for a learner, `Conflict` for a node that leaves, `Unavailable` for one
/// that is away or behind.
pub(crate) fn check(status: &GroupStatus, nodes: &[record::Node], to: NodeId) -> Result<()> {
    let group = status.group;
    let name = |id: NodeId| nodes.iter().find(|node| node.id == id).map_or(id.to_string(), |node| node.name.clone());
    let Some(node) = nodes.iter().find(|node| node.id == to) else {
        let message = format!("node {to} not found in this cluster");
        return Err(Error::Refused { kind: ErrorKind::NotFound, message });
    };
    let name_of_to = &node.name;
    if status.leader == Some(to) && status.is_leader {
        return Ok(());
    }
    if !status.voters.contains(&to) {
        let voters: Vec<String> = status.voters.iter().map(|id| format!("`{}`", name(*id))).collect();
        let what = if status.learners.contains(&to) { "is only a learner of" } else { "holds nothing of" };
        return Err(Error::InvalidArgument(format!(
            "node `{name_of_to}` {what} group {group}; its voters can lead it: {}",
            voters.join(", ")
        )));
    }
    let leaves = |what: &str, fix: &str| {
        let message = format!("node `{name_of_to}` {what} and takes no leads{fix}");
        Err(Error::Refused { kind: ErrorKind::Conflict, message })
    };
    match node.state() {
        NodeState::Active => {}
        NodeState::Draining if is_last_resort(status, nodes) => {}
        NodeState::Draining => return leaves("is draining", "; `cairn cluster drain --undo` ends that"),
        NodeState::Removing | NodeState::Removed => return leaves("is being removed", ""),
    }
    let unavailable = |why: String| Err(Error::Refused { kind: ErrorKind::Unavailable, message: why });
    match status.followers.iter().find(|follower| follower.node == to) {
        Some(follower) if follower.ready => Ok(()),
        Some(follower) if follower.heard => {
            let behind = status.last_index.saturating_sub(follower.matched_index);
            unavailable(format!(
                "node `{name_of_to}` is {behind} entries behind in group {group}; try again when it has caught up"
            ))
        }
        _ => unavailable(format!("node `{name_of_to}` does not answer the leader of group {group}")),
    }
}

/// Whether a draining voter must do: the leader leaves, and no active voter is ready. Else the removal would wait for the
/// end of a drain that may be waiting for the removal.
fn is_last_resort(status: &GroupStatus, nodes: &[record::Node]) -> bool {
    let leader = nodes.iter().find(|node| Some(node.id) == status.leader).map(record::Node::state);
    let leaving = matches!(leader, Some(NodeState::Removing | NodeState::Removed));
    leaving && heir(status, nodes, &BTreeMap::new(), false).is_none()
}

/// The voter that should lead a group in the place of its leader: ready, active, and leading the least.
///
/// - `leads`: groups that each node leads, as far as is known
/// - `last_resort`: draining voters will do too
pub(crate) fn heir(
    status: &GroupStatus,
    nodes: &[record::Node],
    leads: &BTreeMap<NodeId, usize>,
    last_resort: bool,
) -> Option<NodeId> {
    let state = |id: NodeId| nodes.iter().find(|node| node.id == id).map(record::Node::state);
    let fits = |id: &NodeId| match state(*id) {
        Some(NodeState::Active) => true,
        Some(NodeState::Draining) => last_resort,
        _ => false,
    };
    let ready: Vec<NodeId> = status.ready().filter(|id| Some(*id) != status.leader).collect();
    let voters = status.voters.iter().copied().filter(|id| ready.contains(id) && fits(id));
    voters.min_by_key(|id| (state(*id) != Some(NodeState::Active), leads.get(id).copied().unwrap_or(0), *id))
}

/// Hands over, in the background, every group that this node leads and should not: it drains, leaves, or has no room.
pub(crate) fn hand_over(node: &Arc<Node>, nodes: &[record::Node], full: bool) {
    let me = node.me();
    let state = nodes.iter().find(|known| known.id == me).map(record::Node::state);
    let leaving = matches!(state, Some(NodeState::Removing | NodeState::Removed));
    if !full && !leaving && state != Some(NodeState::Draining) {
        return;
    }
    let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
    for leader in node.groups.values().filter_map(|group| group.leader()) {
        *leads.entry(leader).or_default() += 1;
    }
    for group in node.groups.values() {
        let status = group.status(me);
        if !status.is_leader || group.giving.try_lock().is_err() {
            continue;
        }
        let Some(to) = heir(&status, nodes, &leads, leaving) else { continue };
        *leads.entry(to).or_default() += 1;
        let (node, group) = (node.clone(), group.clone());
        tokio::spawn(async move {
            let deadline = Instant::now() + HAND_OVER_TIMEOUT;
            if let Err(error) = give(&node, &group, to, deadline).await {
                tracing::warn!(group = group.id, to, %error, "a group was not handed over");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Follower;

    fn node(id: NodeId, state: NodeState) -> record::Node {
        record::Node { id, name: format!("n{id}"), state: state as i32, ..record::Node::default() }
    }

    fn status() -> GroupStatus {
        let follower = |node, matched_index, heard, ready| Follower { node, matched_index, heard, ready };
        GroupStatus {
            group: 1,
            leader: Some(1),
            is_leader: true,
            term: 2,
            last_index: 900,
            committed_index: 900,
            applied_index: 900,
            applied_time_us: 0,
            snapshot_index: 0,
            purged_index: 0,
            voters: vec![1, 2, 3],
            learners: vec![4],
            changing: false,
            followers: vec![follower(2, 900, true, true), follower(3, 100, true, false), follower(4, 900, true, true)],
            failure: None,
            digests: Vec::new(),
        }
    }

    #[test]
    fn who_may_not_lead_is_told_why() {
        let check = |change: &dyn Fn(&mut GroupStatus, &mut Vec<record::Node>), to: NodeId, expected: &str| {
            let mut status = status();
            let mut nodes: Vec<record::Node> = (1..=5).map(|id| node(id, NodeState::Active)).collect();
            change(&mut status, &mut nodes);
            let said = check(&status, &nodes, to).err().map(|error| format!("{}: {error}", error.kind().as_str()));
            assert_eq!(said.unwrap_or_else(|| "yes".into()), expected);
        };
        check(&|_, _| {}, 1, "yes");
        check(&|_, _| {}, 2, "yes");
        check(
            &|_, _| {},
            3,
            "unavailable: node `n3` is 800 entries behind in group 1; try again when it has caught up",
        );
        let voters = "its voters can lead it: `n1`, `n2`, `n3`";
        check(&|_, _| {}, 4, &format!("invalid_argument: node `n4` is only a learner of group 1; {voters}"));
        check(&|_, _| {}, 5, &format!("invalid_argument: node `n5` holds nothing of group 1; {voters}"));
        check(&|_, _| {}, 6, "not_found: node 6 not found in this cluster");
        let away = "unavailable: node `n2` does not answer the leader of group 1";
        check(
            &|status, _| status.followers[0] = Follower { heard: false, ready: false, ..status.followers[0] },
            2,
            away,
        );
        check(&|status, _| status.followers.clear(), 2, away);
        let drains = "conflict: node `n2` is draining and takes no leads; `cairn cluster drain --undo` ends that";
        check(&|_, nodes| nodes[1] = node(2, NodeState::Draining), 2, drains);
        // A leader that leaves gives its lead to a draining voter rather than to nobody.
        let leads_and_leaves = |nodes: &mut Vec<record::Node>| {
            nodes[0] = node(1, NodeState::Removing);
            nodes[1] = node(2, NodeState::Draining);
        };
        check(&|_, nodes| leads_and_leaves(nodes), 2, "yes");
        check(
            &|status, nodes| {
                leads_and_leaves(nodes);
                status.followers[1].ready = true;
            },
            2,
            drains,
        );
        let leaves = "conflict: node `n2` is being removed and takes no leads";
        check(&|_, nodes| nodes[1] = node(2, NodeState::Removing), 2, leaves);
    }

    #[test]
    fn the_heir_is_ready_active_and_leads_the_least() {
        use NodeState::{Active, Draining, Removing};
        /// States of nodes 1 to 4; node 1 leads, 2 and 3 vote, 4 learns.
        fn check(
            ready: [bool; 2],
            states: [NodeState; 2],
            leads: [usize; 2],
            last_resort: bool,
            expected: Option<NodeId>,
        ) {
            let mut status = status();
            status.followers[0].ready = ready[0];
            status.followers[1].ready = ready[1];
            let nodes = [node(1, Removing), node(2, states[0]), node(3, states[1]), node(4, Active)];
            let leads = BTreeMap::from([(2, leads[0]), (3, leads[1])]);
            assert_eq!(heir(&status, &nodes, &leads, last_resort), expected, "{ready:?} {states:?} {leads:?}");
        }
        check([true, true], [Active, Active], [0, 0], false, Some(2));
        check([true, true], [Active, Active], [2, 1], false, Some(3));
        check([true, false], [Active, Active], [2, 1], false, Some(2));
        check([false, false], [Active, Active], [0, 0], false, None);
        check([true, true], [Draining, Active], [0, 5], false, Some(3));
        check([true, true], [Draining, Active], [0, 5], true, Some(3));
        check([true, true], [Draining, Removing], [0, 0], false, None);
        check([true, true], [Draining, Removing], [0, 0], true, Some(2));
    }
}
