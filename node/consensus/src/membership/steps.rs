//! The next step of one group's membership: a function of what its leader sees, and of nothing else.
//!
//! Always true of a step:
//! - it changes one thing: nodes join as learners, one voter comes, goes or is replaced, or learners leave
//! - the voters after it have a majority that is up and caught up, unless the removal behind it is forced
//! - the leader does not take itself out: it hands the lead over first

use super::Change;
use crate::types::*;
use cairn_proto::record::v1::{self as record, NodeState};
use openraft::ChangeMembers;
use std::collections::{BTreeMap, BTreeSet};

/// A group as its leader sees it.
pub struct Seen<'a> {
    pub group: GroupId,
    pub me: NodeId,
    pub membership: &'a Membership,
    /// Members that answered lately, the leader included …
    pub heard: BTreeSet<NodeId>,
    /// … and of these the ones close behind.
    pub ready: BTreeSet<NodeId>,
    /// Groups in which each node votes, as far as is known.
    pub seats: BTreeMap<NodeId, usize>,
    /// Members of other groups that must stay in this one as long as they are: of meta, from which a node learns that it
    /// is to leave the others, or whom to take into those it leads.
    pub held: BTreeSet<NodeId>,
}

/// The next step from a membership towards `nodes`, if there is one.
///
/// - `removed`: nodes that meta remembers only as removed
pub fn decide(seen: &Seen<'_>, nodes: &[record::Node], removed: &BTreeSet<NodeId>, factor: usize) -> Option<Change> {
    let configs = seen.membership.get_joint_config();
    let voters = configs.last()?.clone();
    if configs.len() > 1 {
        return Some(ChangeMembers::ReplaceAllVoters(voters));
    }
    let peer = |node: &record::Node| (node.id, PeerNode { address: node.peer_address.clone() });
    let known: BTreeMap<NodeId, &PeerNode> = seen.membership.nodes().map(|(id, node)| (*id, node)).collect();
    let staying: Vec<&record::Node> =
        nodes.iter().filter(|node| matches!(node.state(), NodeState::Active | NodeState::Draining)).collect();
    let missing: BTreeMap<NodeId, PeerNode> =
        staying.iter().filter(|node| !known.contains_key(&node.id)).map(|node| peer(node)).collect();
    if !missing.is_empty() {
        return Some(ChangeMembers::AddNodes(missing));
    }
    let moved = |node: &&record::Node| known.get(&node.id).is_some_and(|known| known.address != node.peer_address);
    let moved: BTreeMap<NodeId, PeerNode> = nodes.iter().filter(moved).map(peer).collect();
    if !moved.is_empty() {
        return Some(ChangeMembers::SetNodes(moved));
    }
    // A node that this replica of meta does not know at all may be newer than it: it stays.
    let is_leaving = |id: &NodeId| {
        let state = nodes.iter().find(|node| node.id == *id).map(record::Node::state);
        removed.contains(id) || matches!(state, Some(NodeState::Removing | NodeState::Removed))
    };
    let out: BTreeSet<NodeId> =
        known.keys().copied().filter(|id| !voters.contains(id) && is_leaving(id) && !seen.held.contains(id)).collect();
    if !out.is_empty() {
        return Some(ChangeMembers::RemoveNodes(out));
    }

    let wanted = factor.min(staying.len());
    let lasting = voters.iter().filter(|id| !is_leaving(id)).count();
    // Those away first: their place is worth nothing.
    let leaving = voters.iter().copied().filter(|id| is_leaving(id) && *id != seen.me);
    let leaving = leaving.min_by_key(|id| (seen.ready.contains(id), *id));
    let spare = staying.iter().map(|node| node.id).filter(|id| !voters.contains(id));
    if lasting < wanted
        && let Some(learner) = newcomer(seen, &staying, spare.clone().collect())
    {
        let Some(leaving) = leaving else { return Some(ChangeMembers::AddVoterIds(BTreeSet::from([learner]))) };
        let mut replaced = voters.clone();
        replaced.remove(&leaving);
        replaced.insert(learner);
        if has_quorum(&replaced, seen) || is_forced(nodes, leaving) {
            return Some(ChangeMembers::ReplaceAllVoters(replaced));
        }
    }
    let without = |id: NodeId| voters.iter().copied().filter(|voter| *voter != id).collect::<BTreeSet<_>>();
    if let Some(leaving) = leaving {
        // A learner that answers will have caught up soon; one that does not is not waited for.
        let soon = lasting < wanted && spare.clone().any(|id| seen.heard.contains(&id));
        let fewer = without(leaving);
        if !soon && !fewer.is_empty() && (has_quorum(&fewer, seen) || is_forced(nodes, leaving)) {
            return Some(ChangeMembers::ReplaceAllVoters(fewer));
        }
        return None;
    }
    // One too many, after a removal that was given up: the one that is away, else the one with most to do.
    if lasting > wanted && lasting == voters.len() {
        let busy = |id: &NodeId| (!seen.ready.contains(id), seen.seats.get(id).copied().unwrap_or(0), *id);
        let surplus = voters.iter().copied().filter(|id| *id != seen.me).max_by_key(busy)?;
        let fewer = without(surplus);
        return has_quorum(&fewer, seen).then_some(ChangeMembers::ReplaceAllVoters(fewer));
    }
    None
}

/// The learner that should vote next: caught up, active rather than draining, with the fewest seats. Where seats are even
/// the choice turns with the group, so that leaders that decide at the same moment do not all choose the same node.
fn newcomer(seen: &Seen<'_>, staying: &[&record::Node], spare: BTreeSet<NodeId>) -> Option<NodeId> {
    let count = staying.len().max(1);
    let places =
        staying.iter().enumerate().filter(|(_, node)| spare.contains(&node.id) && seen.ready.contains(&node.id));
    places
        .min_by_key(|(place, node)| {
            let turned = (place + count - seen.group as usize % count) % count;
            (node.state() != NodeState::Active, seen.seats.get(&node.id).copied().unwrap_or(0), turned)
        })
        .map(|(_, node)| node.id)
}

fn has_quorum(voters: &BTreeSet<NodeId>, seen: &Seen<'_>) -> bool {
    voters.iter().filter(|id| seen.ready.contains(id)).count() > voters.len() / 2
}

fn is_forced(nodes: &[record::Node], id: NodeId) -> bool {
    nodes.iter().any(|node| node.id == id && node.forced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use NodeState::{Active, Draining, Removing};
    use expect_test::{Expect, expect};

    const ADDRESSES: [&str; 10] = ["", "a", "b", "c", "d", "e", "f", "g", "h", "i"];

    /// A group led by node 1, in the middle of whatever is told.
    struct Case<'a> {
        group: GroupId,
        configs: &'a [&'a [NodeId]],
        learners: &'a [NodeId],
        /// What meta knows: (id, state).
        nodes: &'a [(NodeId, NodeState)],
        removed: &'a [NodeId],
        away: &'a [NodeId],
        behind: &'a [NodeId],
        forced: &'a [NodeId],
        seats: &'a [(NodeId, usize)],
        held: &'a [NodeId],
        moved: Option<NodeId>,
    }

    const CASE: Case<'static> = Case {
        group: 0,
        configs: &[&[1]],
        learners: &[],
        nodes: &[],
        removed: &[],
        away: &[],
        behind: &[],
        forced: &[],
        seats: &[],
        held: &[],
        moved: None,
    };

    fn step(case: &Case<'_>) -> String {
        let members: BTreeSet<NodeId> =
            case.configs.concat().into_iter().chain(case.learners.iter().copied()).collect();
        let address = |id: &NodeId| PeerNode { address: ADDRESSES[*id as usize].into() };
        let peers: BTreeMap<NodeId, PeerNode> = members.iter().map(|id| (*id, address(id))).collect();
        let configs = case.configs.iter().map(|config| config.iter().copied().collect()).collect();
        let membership = Membership::new(configs, peers).unwrap();
        let node = |(id, state): &(NodeId, NodeState)| record::Node {
            id: *id,
            peer_address: if case.moved == Some(*id) { "elsewhere".into() } else { ADDRESSES[*id as usize].into() },
            state: *state as i32,
            forced: case.forced.contains(id),
            ..record::Node::default()
        };
        let nodes: Vec<record::Node> = case.nodes.iter().map(node).collect();
        let heard: BTreeSet<NodeId> = members.iter().copied().filter(|id| !case.away.contains(id)).collect();
        let ready = heard.iter().copied().filter(|id| !case.behind.contains(id)).collect();
        let seats = case.seats.iter().copied().collect();
        let held = case.held.iter().copied().collect();
        let seen = Seen { group: case.group, me: 1, membership: &membership, heard, ready, seats, held };
        let ids = |ids: &BTreeSet<NodeId>| format!("{:?}", ids.iter().collect::<Vec<_>>());
        match decide(&seen, &nodes, &case.removed.iter().copied().collect(), 3) {
            None => "nothing".into(),
            Some(ChangeMembers::AddNodes(nodes)) => format!("learn {}", ids(&nodes.into_keys().collect())),
            Some(ChangeMembers::SetNodes(nodes)) => format!("move {}", ids(&nodes.into_keys().collect())),
            Some(ChangeMembers::AddVoterIds(voters)) => format!("add voters {}", ids(&voters)),
            Some(ChangeMembers::ReplaceAllVoters(voters)) => format!("voters {}", ids(&voters)),
            Some(ChangeMembers::RemoveNodes(nodes)) => format!("forget {}", ids(&nodes)),
            Some(other) => format!("{other:?}"),
        }
    }

    fn check(cases: &[(&str, Case<'_>)], expected: Expect) {
        let lines: Vec<String> = cases.iter().map(|(what, case)| format!("{what}: {}\n", step(case))).collect();
        expected.assert_eq(&lines.concat());
    }

    const THREE: &[(NodeId, NodeState)] = &[(1, Active), (2, Active), (3, Active)];
    const FOUR: &[(NodeId, NodeState)] = &[(1, Active), (2, Active), (3, Active), (4, Active)];
    const WITHOUT_2: &[(NodeId, NodeState)] = &[(1, Active), (2, Removing), (3, Active)];
    const FOUR_WITHOUT_2: &[(NodeId, NodeState)] = &[(1, Active), (2, Removing), (3, Active), (4, Active)];
    const WITHOUT_1: &[(NodeId, NodeState)] = &[(1, Removing), (2, Active), (3, Active)];

    #[test]
    fn nodes_join_and_addresses_move() {
        check(
            &[
                ("alone", Case { nodes: &[(1, Active)], ..CASE }),
                ("others are there", Case { nodes: FOUR, ..CASE }),
                ("not one that leaves", Case { nodes: WITHOUT_2, ..CASE }),
                ("learners behind", Case { learners: &[2, 3], behind: &[2, 3], nodes: THREE, ..CASE }),
                ("one has caught up", Case { learners: &[2, 3], behind: &[2], nodes: THREE, ..CASE }),
                ("three vote", Case { configs: &[&[1, 2, 3]], learners: &[4], nodes: FOUR, ..CASE }),
                ("moved", Case { configs: &[&[1, 2, 3]], learners: &[4], nodes: FOUR, moved: Some(3), ..CASE }),
                ("joint", Case { configs: &[&[1], &[1, 2]], nodes: FOUR, ..CASE }),
                ("a draining node may vote", Case { learners: &[2], nodes: &[(1, Active), (2, Draining)], ..CASE }),
            ],
            expect![[r#"
                alone: nothing
                others are there: learn [2, 3, 4]
                not one that leaves: learn [3]
                learners behind: nothing
                one has caught up: add voters [3]
                three vote: nothing
                moved: move [3]
                joint: voters [1, 2]
                a draining node may vote: add voters [2]
            "#]],
        );
    }

    #[test]
    fn the_next_voter_has_the_fewest_seats_and_turns_with_the_group() {
        let five: &[(NodeId, NodeState)] = &[(1, Active), (2, Active), (3, Active), (4, Active), (5, Draining)];
        let case = |group, seats| Case { group, learners: &[2, 3, 4, 5], nodes: five, seats, ..CASE };
        check(
            &[
                ("group 0", case(0, &[])),
                ("group 1", case(1, &[])),
                ("group 2", case(2, &[])),
                ("group 3", case(3, &[])),
                ("group 4, draining last", case(4, &[])),
                ("fewest seats", case(0, &[(1, 3), (2, 2), (3, 1), (4, 2)])),
            ],
            expect![[r#"
                group 0: add voters [2]
                group 1: add voters [2]
                group 2: add voters [3]
                group 3: add voters [4]
                group 4, draining last: add voters [2]
                fewest seats: add voters [3]
            "#]],
        );
    }

    #[test]
    fn a_node_that_leaves_is_replaced_or_given_up_never_at_the_price_of_a_quorum() {
        let three = Case { configs: &[&[1, 2, 3]], ..CASE };
        let four = Case { configs: &[&[1, 2, 3]], learners: &[4], nodes: FOUR_WITHOUT_2, ..CASE };
        check(
            &[
                ("no spare", Case { nodes: WITHOUT_2, ..three }),
                ("no spare, the other is away", Case { nodes: WITHOUT_2, away: &[3], ..three }),
                ("the same, forced", Case { nodes: WITHOUT_2, away: &[3], forced: &[2], ..three }),
                ("it is dead", Case { nodes: WITHOUT_2, away: &[2], ..three }),
                ("a spare takes its place", Case { ..four }),
                ("the spare catches up", Case { behind: &[4], ..four }),
                ("the spare is dead", Case { away: &[4], ..four }),
                ("the spare saves the quorum", Case { away: &[3], ..four }),
                ("out as a voter", Case { configs: &[&[1, 3, 4]], learners: &[2], nodes: FOUR_WITHOUT_2, ..CASE }),
                ("gone from meta", Case { learners: &[2], nodes: &[(1, Active)], removed: &[2], ..CASE }),
                ("not yet known to meta", Case { learners: &[2], nodes: &[(1, Active)], ..CASE }),
                (
                    "two leave, the dead one first",
                    Case {
                        configs: &[&[1, 2, 3, 4]],
                        nodes: &[(1, Active), (2, Removing), (3, Removing), (4, Active)],
                        away: &[3],
                        ..CASE
                    },
                ),
            ],
            expect![[r#"
                no spare: voters [1, 3]
                no spare, the other is away: nothing
                the same, forced: voters [1, 3]
                it is dead: voters [1, 3]
                a spare takes its place: voters [1, 3, 4]
                the spare catches up: nothing
                the spare is dead: voters [1, 3]
                the spare saves the quorum: voters [1, 3, 4]
                out as a voter: forget [2]
                gone from meta: forget [2]
                not yet known to meta: nothing
                two leave, the dead one first: voters [1, 2, 4]
            "#]],
        );
    }

    #[test]
    fn who_leaves_stays_in_meta_until_it_is_out_of_the_others() {
        let gone = Case { configs: &[&[1, 3, 4]], learners: &[2], nodes: FOUR_WITHOUT_2, ..CASE };
        check(
            &[("held", Case { held: &[2], ..gone }), ("let go", gone)],
            expect![[r#"
                held: nothing
                let go: forget [2]
            "#]],
        );
    }

    #[test]
    fn a_leader_that_leaves_makes_room_and_does_not_take_itself_out() {
        check(
            &[
                ("it waits for its heir", Case { configs: &[&[1, 2, 3]], nodes: WITHOUT_1, ..CASE }),
                (
                    "alone, it makes a voter first",
                    Case { learners: &[2], nodes: &[(1, Removing), (2, Active)], ..CASE },
                ),
                ("given up, one too many", Case { configs: &[&[1, 2, 3, 4]], nodes: FOUR, seats: &[(3, 9)], ..CASE }),
                (
                    "the one away first",
                    Case { configs: &[&[1, 2, 3, 4]], nodes: FOUR, away: &[2], seats: &[(3, 9)], ..CASE },
                ),
            ],
            expect![[r#"
                it waits for its heir: nothing
                alone, it makes a voter first: add voters [2]
                given up, one too many: voters [1, 2, 4]
                the one away first: voters [1, 3, 4]
            "#]],
        );
    }
}
