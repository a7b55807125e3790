//! Brings each group's membership to what meta says, one small step at a time.
//!
//! The leader of a group compares its membership with the nodes of meta: nodes that are missing become learners;
//! learners that have caught up become voters until there are as many as the replication factor; an address that moved
//! is written again. Every step is conditional on the membership it was decided from, and a joint membership left
//! behind by a lost leader is finished first. Steps are idempotent, so the next leader simply goes on.
//!
//! A node that runs out of room hands its groups to voters that may have some.

use crate::node::{Group, Node};
use crate::types::*;
use cairn_proto::record::v1 as record;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::Precondition;
use openraft::{ChangeMembers, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A learner this close behind becomes a voter.
const CAUGHT_UP_ENTRIES: u64 = 128;
const INTERVAL: Duration = Duration::from_millis(250);
/// A step needs a quorum; without one the next round decides anew.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// A full node hands its groups over for this long; after that the others are full too, or away.
const HAND_OVER: Duration = Duration::from_secs(5);
const REPLICATION_FACTOR_DEFAULT: usize = 3;

type Change = ChangeMembers<NodeId, PeerNode>;

/// Reconciles all groups until the node stops: soon after meta changed, and at a steady pace besides.
pub(crate) async fn run(node: Arc<Node>) {
    let Ok(meta) = node.group(0) else { return };
    let mut applied = meta.applied.clone();
    let mut full_since: Option<Instant> = None;
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
            changed = applied.changed() => if changed.is_err() { return },
        }
        full_since = node.check_room().is_err().then(|| full_since.unwrap_or_else(Instant::now));
        if full_since.is_some_and(|since| since.elapsed() < HAND_OVER) {
            futures::future::join_all(node.groups.values().map(|group| hand_over(group))).await;
        }
        node.learn_addresses();
        let nodes = node.host.nodes();
        if nodes.is_empty() {
            continue;
        }
        let factor = match node.host.replication_factor() as usize {
            0 => REPLICATION_FACTOR_DEFAULT,
            factor => factor,
        };
        let steps = node.groups.values().map(|group| reconcile(group, &nodes, factor));
        futures::future::join_all(steps).await;
    }
}

/// Gives the lead of a group to the voter that has most of its log.
async fn hand_over(group: &Group) {
    let heir = {
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let others = metrics.replication.iter().flatten();
        let others = others.filter(|(id, _)| **id != metrics.id && voters.contains(id));
        let best = others.max_by_key(|(_, matched)| matched.as_ref().map(|matched| matched.index));
        best.map(|(id, _)| *id).filter(|_| metrics.state == ServerState::Leader)
    };
    let Some(heir) = heir else { return };
    tracing::warn!(group = group.id, to = heir, "no room for writes: handing the group over");
    if let Err(error) = group.raft.trigger().transfer_leader(heir).await {
        tracing::warn!(group = group.id, %error, "the group was not handed over");
    }
}

/// Takes at most one step in a group this node leads.
async fn reconcile(group: &Group, nodes: &[record::Node], factor: usize) {
    let Some((change, base)) = next_step(group, nodes, factor) else { return };
    tracing::info!(group = group.id, ?change, "changing membership");
    let precondition = Precondition::LastMembershipLogId { last_membership_log_id: base };
    let step = group.raft.change_membership_if(change, true, [precondition]);
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::info!(group = group.id, %error, "a membership step was not taken"),
        Err(_) => tracing::warn!(group = group.id, "a membership step found no quorum in {STEP_TIMEOUT:?}"),
    }
}

fn next_step(group: &Group, nodes: &[record::Node], factor: usize) -> Option<(Change, Option<LogId>)> {
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    let stored = &metrics.membership_config;
    let committed = stored.log_id() == metrics.committed_membership_config.log_id();
    if metrics.state != ServerState::Leader || !committed {
        return None;
    }
    let last = metrics.last_log_index.unwrap_or_default();
    let caught_up: BTreeSet<NodeId> = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(_, matched)| {
            matched.as_ref().is_some_and(|matched| matched.index.saturating_add(CAUGHT_UP_ENTRIES) >= last)
        })
        .map(|(id, _)| *id)
        .collect();
    decide(stored.membership(), nodes, factor, &caught_up).map(|change| (change, *stored.log_id()))
}

/// The next step from `membership` towards `nodes`, if there is one.
fn decide(
    membership: &Membership,
    nodes: &[record::Node],
    factor: usize,
    caught_up: &BTreeSet<NodeId>,
) -> Option<Change> {
    let configs = membership.get_joint_config();
    let voters = configs.last()?.clone();
    if configs.len() > 1 {
        return Some(ChangeMembers::ReplaceAllVoters(voters));
    }
    let peer = |node: &record::Node| (node.id, PeerNode { address: node.peer_address.clone() });
    let known: BTreeMap<NodeId, &PeerNode> = membership.nodes().map(|(id, node)| (*id, node)).collect();
    let missing: BTreeMap<NodeId, PeerNode> =
        nodes.iter().filter(|node| !known.contains_key(&node.id)).map(peer).collect();
    if !missing.is_empty() {
        return Some(ChangeMembers::AddNodes(missing));
    }
    let moved: BTreeMap<NodeId, PeerNode> = nodes
        .iter()
        .filter(|node| known.get(&node.id).is_some_and(|known| known.address != node.peer_address))
        .map(peer)
        .collect();
    if !moved.is_empty() {
        return Some(ChangeMembers::SetNodes(moved));
    }
    if voters.len() >= factor.min(nodes.len()) {
        return None;
    }
    let learner = nodes.iter().map(|node| node.id).filter(|id| !voters.contains(id) && caught_up.contains(id)).min()?;
    Some(ChangeMembers::AddVoterIds(BTreeSet::from([learner])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: NodeId, address: &str) -> record::Node {
        record::Node { id, peer_address: address.into(), ..record::Node::default() }
    }

    fn membership(configs: &[&[NodeId]], nodes: &[(NodeId, &str)]) -> Membership {
        let nodes: BTreeMap<NodeId, PeerNode> =
            nodes.iter().map(|(id, address)| (*id, PeerNode { address: (*address).into() })).collect();
        Membership::new(configs.iter().map(|config| config.iter().copied().collect()).collect(), nodes).unwrap()
    }

    #[test]
    fn steps_come_in_order_and_end() {
        let all = [node(1, "a"), node(5, "b"), node(7, "c"), node(9, "d")];
        let nobody = BTreeSet::new();
        let everybody = BTreeSet::from([1, 5, 7, 9]);

        let alone = membership(&[&[1]], &[(1, "a")]);
        assert!(matches!(decide(&alone, &all, 3, &nobody), Some(ChangeMembers::AddNodes(n)) if n.len() == 3));
        assert!(decide(&alone, &all[..1], 3, &nobody).is_none());

        let learners = membership(&[&[1]], &[(1, "a"), (5, "b"), (7, "c"), (9, "d")]);
        assert!(decide(&learners, &all, 3, &nobody).is_none(), "nobody has caught up");
        let step = decide(&learners, &all, 3, &everybody);
        assert!(matches!(step, Some(ChangeMembers::AddVoterIds(ids)) if ids == BTreeSet::from([5])));

        let full = membership(&[&[1, 5, 7]], &[(1, "a"), (5, "b"), (7, "c"), (9, "d")]);
        assert!(decide(&full, &all, 3, &everybody).is_none(), "the fourth stays a learner");

        let moved = membership(&[&[1, 5, 7]], &[(1, "a"), (5, "old"), (7, "c"), (9, "d")]);
        assert!(matches!(decide(&moved, &all, 3, &everybody), Some(ChangeMembers::SetNodes(n)) if n.len() == 1));
    }

    #[test]
    fn a_joint_membership_is_finished_first() {
        let joint = membership(&[&[1], &[1, 5]], &[(1, "a"), (5, "b")]);
        let step = decide(&joint, &[node(1, "a"), node(5, "b"), node(7, "c")], 3, &BTreeSet::new());
        assert!(matches!(step, Some(ChangeMembers::ReplaceAllVoters(ids)) if ids == BTreeSet::from([1, 5])));
    }
}
