//! Plans over clusters made by hand, followed until nothing is left to move.

use super::*;
use crate::options::{Follower, GroupStatus};
use crate::view::{NodeReport, NodeView};
use cairn_proto::record::v1 as record;

#[derive(Clone)]
struct Group {
    leader: NodeId,
    voters: Vec<NodeId>,
    learners: Vec<NodeId>,
    behind: Vec<NodeId>,
    changing: bool,
}

fn group(leader: NodeId, voters: &[NodeId], learners: &[NodeId]) -> Group {
    Group { leader, voters: voters.to_vec(), learners: learners.to_vec(), behind: Vec::new(), changing: false }
}

/// (id, state, answers, read only)
type Nodes = Vec<(NodeId, NodeState, bool, bool)>;

fn active(count: u64) -> Nodes {
    (1..=count).map(|id| (id, NodeState::Active, true, false)).collect()
}

fn view(nodes: &Nodes, groups: &[Group]) -> ClusterView {
    let status = |(id, group): (u32, &Group)| {
        let others = group.voters.iter().chain(&group.learners).copied().filter(|id| *id != group.leader);
        let follower = |node| {
            let ready = !group.behind.contains(&node);
            Follower { node, matched_index: 1, heard: true, ready }
        };
        GroupStatus {
            group: id,
            leader: Some(group.leader),
            is_leader: true,
            term: 1,
            last_index: 1,
            committed_index: 1,
            applied_index: 1,
            applied_time_us: 0,
            snapshot_index: 0,
            purged_index: 0,
            voters: group.voters.clone(),
            learners: group.learners.clone(),
            changing: group.changing,
            followers: others.map(follower).collect(),
            failure: None,
            digests: Vec::new(),
        }
    };
    let nodes = nodes.iter().map(|(id, state, answers, read_only)| {
        let led = (0..).zip(groups).filter(|(_, group)| group.leader == *id).map(status).collect();
        NodeView {
            node: record::Node { id: *id, state: *state as i32, ..record::Node::default() },
            report: match answers {
                true => Ok(NodeReport { read_only: *read_only, artifacts_missing: 0, groups: led }),
                false => Err("away".into()),
            },
        }
    });
    ClusterView { nodes: nodes.collect() }
}

/// Carries moves out until there are none; panics when that does not end.
fn follow(nodes: &Nodes, groups: &[Group]) -> (Vec<Move>, Vec<Group>) {
    let mut groups = groups.to_vec();
    let mut moves = Vec::new();
    while let Some(planned) = next_move(&view(nodes, &groups), &BTreeSet::new()) {
        let at = &mut groups[planned.group() as usize];
        match planned {
            Move::Lead { from, to, .. } => {
                assert_eq!(at.leader, from);
                assert!(at.voters.contains(&to));
                at.leader = to;
            }
            Move::Voter { from, to, .. } => {
                assert_ne!(at.leader, from);
                at.voters.retain(|id| *id != from);
                at.learners.retain(|id| *id != to);
                at.voters.push(to);
                at.learners.push(from);
            }
        }
        moves.push(planned);
        assert!(moves.len() <= 4 * groups.len() + 8, "this does not end: {moves:?}");
    }
    (moves, groups)
}

fn counts(ids: impl Iterator<Item = NodeId>, nodes: u64) -> Vec<usize> {
    let ids: Vec<NodeId> = ids.collect();
    (1..=nodes).map(|node| ids.iter().filter(|id| **id == node).count()).collect()
}

fn leads(groups: &[Group], nodes: u64) -> Vec<usize> {
    counts(groups.iter().map(|group| group.leader), nodes)
}

#[test]
fn leads_spread_over_three_nodes_with_the_fewest_moves() {
    let all = vec![group(1, &[1, 2, 3], &[]); 5];
    let (moves, after) = follow(&active(3), &all);
    assert_eq!(leads(&after, 3), [2, 2, 1]);
    assert_eq!(moves.len(), 3);
    // One more or less is even enough.
    let (moves, _) = follow(&active(3), &after);
    assert_eq!(moves, []);
    let (moves, _) = follow(&active(3), &[group(1, &[1, 2, 3], &[])]);
    assert_eq!(moves, []);
}

#[test]
fn voters_and_then_leads_spread_when_nodes_join() {
    let all = vec![group(1, &[1, 2, 3], &[4, 5]); 5];
    let (_, after) = follow(&active(5), &all);
    let seats = counts(after.iter().flat_map(|group| group.voters.clone()), 5);
    assert_eq!(seats.iter().sum::<usize>(), 15);
    assert!(seats.iter().all(|seats| (2..=4).contains(seats)), "{seats:?}");
    assert!(
        leads(&after, 5).iter().max().unwrap() - leads(&after, 5).iter().min().unwrap() <= 1,
        "{:?}",
        leads(&after, 5)
    );
    assert_eq!(follow(&active(5), &after).0, []);
}

#[test]
fn groups_that_hang_together_pass_leads_on() {
    // Node 1 cannot give to 3 directly: 2 gives first, then takes from 1.
    let groups = [group(1, &[1, 2], &[]), group(1, &[1, 2], &[]), group(2, &[2, 3], &[])];
    let (moves, after) = follow(&active(3), &groups);
    assert_eq!(moves.len(), 2);
    assert_eq!(moves[0], Move::Lead { group: 2, from: 2, to: 3 });
    assert_eq!(leads(&after, 3), [1, 1, 1]);
}

#[test]
fn what_drains_leaves_is_full_away_or_behind_gets_nothing() {
    let all = vec![group(1, &[1, 2, 3], &[]); 4];
    for unfit in [
        (3, NodeState::Draining, true, false),
        (3, NodeState::Removing, true, false),
        (3, NodeState::Active, false, false),
        (3, NodeState::Active, true, true),
    ] {
        let mut nodes = active(3);
        nodes[2] = unfit;
        let (moves, after) = follow(&nodes, &all);
        assert_eq!((leads(&after, 3), moves.len()), (vec![2, 2, 0], 2), "{unfit:?}");
    }
    let behind: Vec<Group> = all.iter().map(|group| Group { behind: vec![3], ..group.clone() }).collect();
    assert_eq!(leads(&follow(&active(3), &behind).1, 3), [2, 2, 0]);
    // A learner that is behind gets no seat, and a group with a voter behind gives none.
    let learner = vec![Group { behind: vec![4], ..group(1, &[1, 2, 3], &[4]) }; 3];
    assert!(follow(&active(4), &learner).0.iter().all(|planned| matches!(planned, Move::Lead { .. })));
    let voter = vec![Group { behind: vec![3], ..group(1, &[1, 2, 3], &[4]) }; 3];
    assert!(follow(&active(4), &voter).0.iter().all(|planned| matches!(planned, Move::Lead { .. })));
}

#[test]
fn nothing_moves_while_something_changes_or_rests() {
    let mut all = vec![group(1, &[1, 2, 3], &[]); 4];
    assert!(next_move(&view(&active(3), &all), &BTreeSet::new()).is_some());
    assert_eq!(next_move(&view(&active(3), &all), &BTreeSet::from([0, 1, 2, 3])), None);
    let one = next_move(&view(&active(3), &all), &BTreeSet::from([0, 1, 3]));
    assert_eq!(one.map(Move::group), Some(2));
    all[3].changing = true;
    assert_eq!(next_move(&view(&active(3), &all), &BTreeSet::new()), None);
    all[3] = group(3, &[1, 2, 3], &[]);
    let mut headless = active(3);
    headless[2].2 = false; // its word on the group that it leads is missing: that group is not counted
    assert!(next_move(&view(&headless, &all), &BTreeSet::new()).is_some());
}

#[test]
fn what_was_moved_survives_the_wire() {
    let done = Rebalanced {
        moves: vec![Move::Lead { group: 1, from: 2, to: 3 }, Move::Voter { group: 4, from: 5, to: 6 }],
        unfinished: Some("a reason".into()),
    };
    assert_eq!(of_message(&message_of(&done)), done);
    assert_eq!(of_message(&message_of(&Rebalanced::default())), Rebalanced::default());
}
