//! Spreads leads and voters evenly over the nodes, one move at a time.
//!
//! The leader of meta looks at all groups from time to time. A move is made when two looks in a row agree on it, only where
//! it narrows a gap of two or more, and a group that was moved rests for a while: so nothing goes back and forth. Draining,
//! leaving, full and absent nodes get nothing. Moves are planned from a view and checked again by the group's leader.

use crate::error::{Error, Result};
use crate::lead;
use crate::membership;
use crate::node::Node;
use crate::propose::definite_refusal;
use crate::types::*;
use crate::view::{self, ClusterView};
use cairn_proto::peer::v1::{self as peer, MoveVoterRequest, RebalanceRequest, move_reply, rebalance_reply};
use cairn_proto::record::v1::NodeState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One move may take this long: an election at worst, or the two steps of a membership change.
const MOVE_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// A rebalance waits so long for another one.
const TURN_WAIT: Duration = Duration::from_secs(2);
/// Looks that find nothing to move before a rebalance is over: a group that just moved is seen by all by then.
const QUIET_LOOKS: usize = 3;

/// Moves in a row that may fail before a rebalance gives up.
const FAILURES_MAX: usize = 5;

/// Something that changes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Lead {
        group: GroupId,
        from: NodeId,
        to: NodeId,
    },
    /// `from` becomes a learner, `to` a voter.
    Voter {
        group: GroupId,
        from: NodeId,
        to: NodeId,
    },
}

impl Move {
    pub fn group(self) -> GroupId {
        match self {
            Self::Lead { group, .. } | Self::Voter { group, .. } => group,
        }
    }
}

/// What a rebalance did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebalanced {
    pub moves: Vec<Move>,
    /// Why it ended early; `None`: nothing is left to move.
    pub unfinished: Option<String>,
}

/// Balances from time to time, while this node leads meta.
pub(crate) async fn run(node: Arc<Node>) {
    let Ok(meta) = node.group(0).cloned() else { return };
    let mut before: Option<Move> = None;
    let mut resting: BTreeMap<GroupId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(node.balance.interval) => {}
        }
        let Ok(_turn) = node.balancing.try_lock() else { continue };
        if !meta.status(node.me()).is_leader || node.host.nodes().len() < 2 {
            before = None;
            continue;
        }
        resting.retain(|_, since| since.elapsed() < node.balance.rest);
        let planned = next_move(&view::gather(&node).await, &resting.keys().copied().collect());
        if let Some(agreed) = planned.filter(|planned| before == Some(*planned)) {
            resting.insert(agreed.group(), Instant::now());
            if let Err(error) = carry_out(&node, agreed).await {
                tracing::info!(planned = ?agreed, %error, "a move was not made");
            }
            before = None;
        } else {
            before = planned;
        }
    }
}

/// Balances at once, from any node.
pub(crate) async fn rebalance(node: &Arc<Node>, deadline: Instant) -> Result<Rebalanced> {
    let meta = node.group(0)?;
    loop {
        node.check_running()?;
        let done = match meta.leader() {
            Some(leader) if leader == node.me() => rebalance_here(node, deadline).await?,
            Some(leader) => rebalance_there(node, leader, deadline).await?,
            None => None,
        };
        if let Some(done) = done {
            return Ok(done);
        }
        if Instant::now() >= deadline {
            return Err(Error::Unavailable("the meta group has no leader, so nothing can be moved".into()));
        }
        meta.changed(PAUSE).await;
    }
}

/// `None` when this node does not lead meta.
pub(crate) async fn rebalance_here(node: &Arc<Node>, deadline: Instant) -> Result<Option<Rebalanced>> {
    if !node.group(0)?.status(node.me()).is_leader {
        return Ok(None);
    }
    // The look that is taken from time to time has it for a moment.
    let busy = |_| Error::Overloaded("a rebalance is under way; try again when it is over".into());
    let turn = tokio::time::timeout_at(deadline.min(Instant::now() + TURN_WAIT), node.balancing.lock());
    let _turn = turn.await.map_err(busy)?;
    let mut done = Rebalanced::default();
    // Every move narrows a gap, so this many are more than can be needed; a limit is a limit.
    let moves_max = 4 * node.groups.len() + 8;
    let (mut quiet, mut failures) = (0, 0);
    while quiet < QUIET_LOOKS {
        if Instant::now() >= deadline || done.moves.len() >= moves_max {
            done.unfinished = Some(format!("after {} moves the time was over", done.moves.len()));
            break;
        }
        let Some(planned) = next_move(&view::gather(node).await, &BTreeSet::new()) else {
            quiet += 1;
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        quiet = 0;
        match carry_out(node, planned).await {
            Ok(()) => {
                done.moves.push(planned);
                failures = 0;
            }
            // The view was old, or something else moved: look again.
            Err(error) if failures < FAILURES_MAX => {
                tracing::info!(?planned, %error, "a move was not made");
                failures += 1;
            }
            Err(error) => {
                done.unfinished = Some(error.to_string());
                break;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Some(done))
}

async fn rebalance_there(node: &Node, leader: NodeId, deadline: Instant) -> Result<Option<Rebalanced>> {
    let peer = node.peers.get(leader);
    let left = deadline.saturating_duration_since(Instant::now());
    let request = RebalanceRequest {
        envelope: Some(peer.envelope()),
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    let late = |_| Error::Timeout(format!("node {leader} did not answer in time"));
    let Ok(mut client) = tokio::time::timeout(left, peer.requests()).await.map_err(late)? else { return Ok(None) };
    match tokio::time::timeout(left + MOVE_TIMEOUT, client.rebalance(request)).await.map_err(late)? {
        Ok(reply) => Ok(match reply.into_inner().result {
            Some(rebalance_reply::Result::Rebalanced(done)) => Some(of_message(&done)),
            Some(rebalance_reply::Result::NotLeader(_)) | None => None,
        }),
        Err(status) if definite_refusal(&status).is_some() => Err(Error::of_status(&status)),
        Err(_) => {
            peer.forget_connections().await;
            Ok(None)
        }
    }
}

/// Asks the leader of the group to make the move, wherever it is.
async fn carry_out(node: &Node, planned: Move) -> Result<()> {
    tracing::info!(?planned, "balancing");
    let deadline = Instant::now() + MOVE_TIMEOUT;
    match planned {
        Move::Lead { group, to, .. } => lead::transfer(node, node.group(group)?, to, deadline).await.map(drop),
        Move::Voter { group, from, to } => {
            let group = node.group(group)?;
            let moved = match group.leader() {
                Some(leader) if leader == node.me() => membership::move_voter(node, group, from, to).await?,
                Some(leader) => move_voter_there(node, leader, group.id, from, to).await?,
                None => None,
            };
            let conflict = || Error::Refused {
                kind: cairn_proto::ErrorKind::Conflict,
                message: format!("the leader of group {} changed", group.id),
            };
            moved.ok_or_else(conflict)
        }
    }
}

async fn move_voter_there(node: &Node, leader: NodeId, group: GroupId, from: NodeId, to: NodeId) -> Result<Option<()>> {
    let peer = node.peers.get(leader);
    let mut client = peer.requests().await?;
    let request = MoveVoterRequest { envelope: Some(peer.envelope()), group, from, to };
    let late = |_| Error::Timeout(format!("node {leader} did not answer in time"));
    match tokio::time::timeout(MOVE_TIMEOUT, client.move_voter(request)).await.map_err(late)? {
        Ok(reply) => Ok(match reply.into_inner().result {
            Some(move_reply::Result::Moved(_)) => Some(()),
            Some(move_reply::Result::NotLeader(_)) | None => None,
        }),
        Err(status) => Err(Error::of_status(&status)),
    }
}

/// The next move towards even seats and even leads; `None` when there is none, or when too little is known.
///
/// - `resting`: groups that are left alone
///
/// Voters first: leads follow them. Seats and leads each move only from the most to the least loaded, and only when the
/// difference is at least two.
pub fn next_move(view: &ClusterView, resting: &BTreeSet<GroupId>) -> Option<Move> {
    let mut fit: BTreeSet<NodeId> = BTreeSet::new();
    for node in &view.nodes {
        if node.node.state() == NodeState::Active && node.report.as_ref().is_ok_and(|report| !report.read_only) {
            fit.insert(node.node.id);
        }
    }
    let groups = view.groups();
    // In a cluster that is not whole every count is provisional: a node that is away may be back in a moment.
    if groups.iter().any(|group| !group.is_leader || group.changing) {
        return None;
    }
    let movable = |group: GroupId| !resting.contains(&group);
    next_voter(&groups, &fit, &movable).or_else(|| next_lead(&groups, &fit, &movable))
}

type Groups<'a> = [&'a crate::options::GroupStatus];

fn next_voter(groups: &Groups<'_>, fit: &BTreeSet<NodeId>, movable: &dyn Fn(GroupId) -> bool) -> Option<Move> {
    let mut seats: BTreeMap<NodeId, usize> = fit.iter().map(|id| (*id, 0)).collect();
    for voter in groups.iter().flat_map(|group| &group.voters) {
        if let Some(seats) = seats.get_mut(voter) {
            *seats += 1;
        }
    }
    let mut best: Option<(usize, Move)> = None;
    for group in groups.iter().filter(|group| movable(group.group)) {
        let ready: BTreeSet<NodeId> = group.ready().collect();
        // A group with a voter away has nothing to spare.
        if group.voters.iter().any(|voter| !ready.contains(voter)) {
            continue;
        }
        let count = |id: &NodeId| seats.get(id).copied();
        let givers = group.voters.iter().copied().filter(|id| Some(*id) != group.leader && fit.contains(id));
        let takers = group.learners.iter().copied().filter(|id| fit.contains(id) && ready.contains(id));
        let from = givers.max_by_key(|id| (count(id), *id));
        let to = takers.min_by_key(|id| (count(id), *id));
        if let (Some(from), Some(to)) = (from, to)
            && let (Some(most), Some(least)) = (count(&from), count(&to))
            && most >= least + 2
            && best.is_none_or(|(gap, _)| most - least > gap)
        {
            best = Some((most - least, Move::Voter { group: group.group, from, to }));
        }
    }
    best.map(|(_, planned)| planned)
}

fn next_lead(groups: &Groups<'_>, fit: &BTreeSet<NodeId>, movable: &dyn Fn(GroupId) -> bool) -> Option<Move> {
    let mut leads: BTreeMap<NodeId, usize> = fit.iter().map(|id| (*id, 0)).collect();
    // Who could take a group from whom.
    let mut ways: BTreeMap<NodeId, Vec<(NodeId, GroupId)>> = BTreeMap::new();
    for group in groups {
        let Some(leader) = group.leader else { continue };
        if let Some(leads) = leads.get_mut(&leader) {
            *leads += 1;
        }
        if movable(group.group) {
            let ready = group.ready().filter(|id| *id != leader && fit.contains(id) && group.voters.contains(id));
            ways.entry(leader).or_default().extend(ready.map(|id| (id, group.group)));
        }
    }
    let mut loaded: Vec<(NodeId, usize)> = leads.iter().map(|(id, leads)| (*id, *leads)).collect();
    loaded.sort_by_key(|(id, leads)| (std::cmp::Reverse(*leads), *id));
    for (from, most) in loaded {
        // Along groups that hang together: the last link moves first, so that every move by itself evens something out.
        let mut seen = BTreeSet::from([from]);
        let mut queue = VecDeque::from([from]);
        let mut found: Option<(usize, NodeId, Move)> = None;
        while let Some(at) = queue.pop_front() {
            for (to, group) in ways.get(&at).into_iter().flatten() {
                if !seen.insert(*to) {
                    continue;
                }
                queue.push_back(*to);
                let least = leads.get(to).copied().unwrap_or(0);
                if most >= least + 2 && found.is_none_or(|(fewest, id, _)| (least, *to) < (fewest, id)) {
                    found = Some((least, *to, Move::Lead { group: *group, from: at, to: *to }));
                }
            }
        }
        if let Some((_, _, planned)) = found {
            return Some(planned);
        }
    }
    None
}

pub(crate) fn message_of(done: &Rebalanced) -> peer::Rebalanced {
    let moves = done.moves.iter().map(|planned| match *planned {
        Move::Lead { group, from, to } => peer::PlannedMove { group, voter: false, from, to },
        Move::Voter { group, from, to } => peer::PlannedMove { group, voter: true, from, to },
    });
    peer::Rebalanced { moves: moves.collect(), unfinished: done.unfinished.clone().unwrap_or_default() }
}

fn of_message(done: &peer::Rebalanced) -> Rebalanced {
    let moves = done.moves.iter().map(|planned| match *planned {
        peer::PlannedMove { group, voter: false, from, to } => Move::Lead { group, from, to },
        peer::PlannedMove { group, voter: true, from, to } => Move::Voter { group, from, to },
    });
    Rebalanced { moves: moves.collect(), unfinished: Some(done.unfinished.clone()).filter(|why| !why.is_empty()) }
}

#[cfg(test)]
mod tests;
