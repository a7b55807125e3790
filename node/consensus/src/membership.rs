//! Brings each group's membership to what meta says, one small step at a time.
//!
//! The leader of a group compares its membership with the nodes of meta: nodes that are missing become learners; learners
//! that have caught up become voters until there are as many as the replication factor; nodes that are being removed give
//! their place to a learner, or give it up, and leave; an address that moved is written again. Every step is conditional on
//! the membership it was decided from, and a joint membership left behind by a lost leader is finished first. Steps are
//! idempotent, so the next leader simply goes on. What a step is: [`steps`].
//!
//! The leader of meta writes down that a node is removed once every group's leader says that it is out.
//!
//! A node that runs out of room, drains or leaves hands its groups to voters that may lead them.

mod steps;

use crate::error::{Error, Result};
use crate::lead;
use crate::node::{Group, Node};
use crate::propose;
use crate::types::*;
use crate::view::{self, ClusterView};
use cairn_proto::record::v1::{self as record, NodeState};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::Precondition;
use openraft::{ChangeMembers, ServerState};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use steps::{Seen, decide};
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_millis(250);
/// A step needs a quorum; without one the next round decides anew.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// A full node hands its groups over for this long; after that the others are full too, or away.
const HAND_OVER: Duration = Duration::from_secs(5);
const REPLICATION_FACTOR_DEFAULT: usize = 3;

type Change = ChangeMembers<NodeId, PeerNode>;

/// Reconciles all groups until the node stops: soon after meta changed, and at a steady pace besides.
pub(crate) async fn run(node: Arc<Node>) {
    let Ok(meta) = node.group(0).cloned() else { return };
    let mut applied = meta.applied.clone();
    let mut full_since: Option<Instant> = None;
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
            changed = applied.changed() => if changed.is_err() { return },
        }
        full_since = node.check_room().is_err().then(|| full_since.unwrap_or_else(Instant::now));
        node.learn_addresses();
        let nodes = node.host.nodes();
        if nodes.is_empty() {
            continue;
        }
        lead::hand_over(&node, &nodes, full_since.is_some_and(|since| since.elapsed() < HAND_OVER));
        let seats = seats(&node);
        let steps = node.groups.values().map(|group| reconcile(&node, group, &nodes, &seats));
        futures::future::join_all(steps).await;
        let leaving = nodes.iter().any(|known| known.state() == NodeState::Removing);
        if leaving
            && meta.status(node.me()).is_leader
            && let Err(error) = finish_removals(&node, &meta).await
        {
            tracing::info!(%error, "a removal is not finished yet");
        }
    }
}

/// Voters that a group should have, for that many nodes to choose from.
pub(crate) fn replication_factor(node: &Node) -> usize {
    match node.host.replication_factor() as usize {
        0 => REPLICATION_FACTOR_DEFAULT,
        factor => factor,
    }
}

/// Takes at most one step in a group this node leads.
async fn reconcile(node: &Node, group: &Group, nodes: &[record::Node], seats: &BTreeMap<NodeId, usize>) {
    let Ok(_turn) = group.changing.try_lock() else { return };
    let Some((change, base)) = next_step(node, group, nodes, seats) else { return };
    if let Err(error) = change_members(group, change, base).await {
        tracing::info!(group = group.id, %error, "a membership step was not taken");
    }
}

/// Carries out one change, if the membership is still the one it was decided from.
async fn change_members(group: &Group, change: Change, base: Option<LogId>) -> Result<()> {
    tracing::info!(group = group.id, ?change, "changing membership");
    let precondition = Precondition::LastMembershipLogId { last_membership_log_id: base };
    // Voters that lose their place stay as learners: leaving the group is a step of its own.
    let step = group.raft.change_membership_if(change, true, [precondition]);
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::Unavailable(error.to_string())),
        Err(_) => Err(Error::Unavailable(format!("it found no quorum in {STEP_TIMEOUT:?}"))),
    }
}

/// Groups in which each node votes. Counted once a round: for every group anew it would be the square of their number.
fn seats(node: &Node) -> BTreeMap<NodeId, usize> {
    let mut seats = BTreeMap::new();
    for group in node.groups.values() {
        for id in group.raft.metrics().borrow_watched().membership_config.membership().voter_ids() {
            *seats.entry(id).or_default() += 1;
        }
    }
    seats
}

fn next_step(
    node: &Node,
    group: &Group,
    nodes: &[record::Node],
    seats: &BTreeMap<NodeId, usize>,
) -> Option<(Change, Option<LogId>)> {
    if group.leader() != Some(node.me()) {
        return None;
    }
    let status = group.status(node.me());
    if !status.is_leader {
        return None;
    }
    let members = |other: &Arc<Group>| {
        let status = other.status(node.me());
        status.voters.into_iter().chain(status.learners)
    };
    let held = node.groups.values().filter(|other| group.id == 0 && other.id != 0).flat_map(members).collect();
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    let stored = &metrics.membership_config;
    let committed = stored.log_id() == metrics.committed_membership_config.log_id();
    if metrics.state != ServerState::Leader || !committed {
        return None;
    }
    let seen = Seen {
        group: group.id,
        me: node.me(),
        membership: stored.membership(),
        heard: status.followers.iter().filter(|it| it.heard).map(|it| it.node).chain([node.me()]).collect(),
        ready: status.ready().collect(),
        seats: seats.clone(),
        held,
    };
    let removed: BTreeSet<NodeId> = node.host.removed_nodes().into_iter().collect();
    decide(&seen, nodes, &removed, replication_factor(node)).map(|change| (change, *stored.log_id()))
}

/// Moves a voter's place in a group that this node leads; `None` when it does not.
///
/// # Errors
/// `Conflict` when the membership is another than the move was planned for; `Unavailable` when it was not taken.
pub(crate) async fn move_voter(node: &Node, group: &Group, from: NodeId, to: NodeId) -> Result<Option<()>> {
    let _turn = group.changing.lock().await;
    let planned = {
        let status = group.status(node.me());
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        if !status.is_leader {
            return Ok(None);
        }
        let mut voters: BTreeSet<NodeId> = status.voters.iter().copied().collect();
        let fits = !status.changing && from != node.me() && status.learners.contains(&to);
        if !fits || !status.ready().any(|id| id == to) || !voters.remove(&from) {
            let message = format!("group {}: node {from} cannot give its place to node {to} now", group.id);
            return Err(Error::Refused { kind: cairn_proto::ErrorKind::Conflict, message });
        }
        voters.insert(to);
        (ChangeMembers::ReplaceAllVoters(voters), *stored.log_id())
    };
    change_members(group, planned.0, planned.1).await.map(Some)
}

/// Writes down which nodes are out of every group, on the leader of meta.
async fn finish_removals(node: &Arc<Node>, meta: &Group) -> Result<()> {
    let view = view::gather(node).await;
    for leaving in view.nodes.iter().map(|view| &view.node).filter(|known| known.state() == NodeState::Removing) {
        if let Some(reason) = still_needed(&view, leaving, node.groups.len()) {
            tracing::debug!(node = leaving.id, %reason, "a node is not removed yet");
            continue;
        }
        tracing::info!(node = leaving.id, name = %leaving.name, "the node is out of every group");
        let change = record::ChangeNodeState { id: leaving.id, state: NodeState::Removed as i32, forced: false };
        let command = record::MetaCommand {
            version: crate::META_COMMAND_VERSION,
            proposed_at_us: (node.clock)(),
            change: Some(record::meta_command::Change::ChangeNodeState(change)),
            request_id: String::new(),
        };
        let deadline = Instant::now() + STEP_TIMEOUT;
        let proposed = propose::propose(node, meta, command.encode_to_vec().into(), false, deadline).await?;
        crate::founding::accepted(proposed)?;
    }
    Ok(())
}

/// Why a node cannot be written off yet; `None` = it can. Every group's own leader must say that it is out, and the
/// artifacts that only it may have must be elsewhere.
fn still_needed(view: &ClusterView, leaving: &record::Node, groups: usize) -> Option<String> {
    let statuses = view.groups();
    if statuses.len() != groups {
        return Some(format!("only {} of {groups} groups are known", statuses.len()));
    }
    for status in statuses {
        let group = status.group;
        if !status.is_leader || status.changing {
            return Some(format!("the leader of group {group} does not answer, or its membership is changing"));
        }
        if status.voters.contains(&leaving.id) || status.learners.contains(&leaving.id) {
            return Some(format!("group {group} still has it"));
        }
    }
    let stays = |state| matches!(state, NodeState::Active | NodeState::Draining);
    let staying: Vec<_> = view.nodes.iter().filter(|view| stays(view.node.state())).collect();
    let complete = |report: &view::NodeReport| report.artifacts_missing == 0;
    let holding = staying.iter().filter(|view| view.report.as_ref().is_ok_and(complete)).count();
    let enough = leaving.forced || holding > staying.len() / 2;
    (!enough).then(|| format!("only {holding} of {} nodes that stay hold every artifact", staying.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::GroupStatus;
    use crate::view::{NodeReport, NodeView};

    #[test]
    fn a_node_is_written_off_when_every_leader_says_so_and_its_artifacts_are_elsewhere() {
        let led = |group: GroupId, learners: &[NodeId]| GroupStatus {
            group,
            leader: Some(1),
            is_leader: true,
            term: 1,
            last_index: 1,
            committed_index: 1,
            applied_index: 1,
            applied_time_us: 0,
            snapshot_index: 0,
            purged_index: 0,
            voters: vec![1],
            learners: learners.to_vec(),
            changing: false,
            followers: Vec::new(),
            failure: None,
            digests: Vec::new(),
        };
        let view = |groups: Vec<GroupStatus>, artifacts_missing: u64| {
            let node = |id, state: NodeState| record::Node {
                id,
                name: format!("n{id}"),
                state: state as i32,
                ..Default::default()
            };
            let report = NodeReport { artifacts_missing, groups, ..NodeReport::default() };
            let nodes = vec![
                NodeView { node: node(1, NodeState::Active), report: Ok(report) },
                NodeView { node: node(2, NodeState::Removing), report: Err("dead".into()) },
            ];
            ClusterView { nodes }
        };
        let check = |view: ClusterView, forced: bool, expected: Option<&str>| {
            let leaving = record::Node { id: 2, forced, ..view.nodes[1].node.clone() };
            assert_eq!(still_needed(&view, &leaving, 2).as_deref(), expected);
        };
        let both = || vec![led(0, &[]), led(1, &[])];
        check(view(both(), 0), false, None);
        check(view(vec![led(0, &[])], 0), true, Some("only 1 of 2 groups are known"));
        check(view(vec![led(0, &[]), led(1, &[2])], 0), true, Some("group 1 still has it"));
        check(view(both(), 3), false, Some("only 0 of 1 nodes that stay hold every artifact"));
        check(view(both(), 3), true, None);
        let unsure = "the leader of group 1 does not answer, or its membership is changing";
        check(view(vec![led(0, &[]), GroupStatus { changing: true, ..led(1, &[]) }], 0), true, Some(unsure));
        check(view(vec![led(0, &[]), GroupStatus { is_leader: false, ..led(1, &[]) }], 0), true, Some(unsure));
        let mut away = view(both(), 0);
        away.nodes.push(NodeView {
            node: record::Node { id: 3, name: "n3".into(), ..Default::default() },
            report: Err("away".into()),
        });
        check(away, false, Some("only 1 of 2 nodes that stay hold every artifact"));
    }
}
