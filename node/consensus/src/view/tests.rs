//! Views made by hand: whose word counts, and what a removal would cost.

use super::*;

/// A group as its leader sees it: (node, voter, ready) for every member; the first is the leader.
fn led(group: GroupId, members: &[(NodeId, bool, bool)]) -> GroupStatus {
    let leader = members[0].0;
    let pick = |voters: bool| members.iter().filter(|it| it.1 == voters).map(|it| it.0).collect();
    let follower = |it: &(NodeId, bool, bool)| Follower { node: it.0, matched_index: 9, heard: it.2, ready: it.2 };
    GroupStatus {
        leader: Some(leader),
        is_leader: true,
        voters: pick(true),
        learners: pick(false),
        followers: members[1..].iter().map(follower).collect(),
        ..status(group, 3, false)
    }
}

fn status(group: GroupId, term: u64, is_leader: bool) -> GroupStatus {
    GroupStatus {
        group,
        leader: None,
        is_leader,
        term,
        last_index: 9,
        committed_index: 9,
        applied_index: 9,
        applied_time_us: 0,
        snapshot_index: 0,
        purged_index: 0,
        voters: Vec::new(),
        learners: Vec::new(),
        changing: false,
        followers: Vec::new(),
        failure: None,
        digests: Vec::new(),
    }
}

fn view(nodes: &[(NodeId, NodeState, Option<Vec<GroupStatus>>)]) -> ClusterView {
    let nodes = nodes.iter().map(|(id, state, groups)| NodeView {
        node: record::Node { id: *id, name: format!("n{id}"), state: *state as i32, ..record::Node::default() },
        report: match groups {
            Some(groups) => Ok(NodeReport { groups: groups.clone(), ..NodeReport::default() }),
            None => Err("away".into()),
        },
    });
    ClusterView { nodes: nodes.collect() }
}

#[test]
fn the_leader_s_word_counts_and_of_two_leaders_the_newer_one_s() {
    let says = |term, is_leader| Some(vec![status(1, term, is_leader)]);
    let active = NodeState::Active;
    let all =
        view(&[(1, active, says(2, true)), (2, active, says(3, true)), (3, active, says(4, false)), (4, active, None)]);
    let groups = all.groups();
    assert_eq!(groups.iter().map(|group| (group.group, group.term)).collect::<Vec<_>>(), [(1, 3)]);
    let headless = view(&[(1, active, says(2, false)), (3, active, says(4, false))]);
    assert_eq!(headless.groups()[0].term, 4);
    assert_eq!((all.applied(1, 1), all.applied(4, 1), all.applied(1, 7)), (Some(9), None, None));
    assert_eq!((all.name(4), all.name(9)), ("n4".into(), "9".into()));
}

#[test]
fn what_is_said_survives_the_wire() {
    let said = led(2, &[(1, true, true), (2, true, false), (4, false, true)]);
    assert_eq!(status_of(report_of(said.clone())), said);
    let stopped = GroupStatus { failure: Some("a disk".into()), ..status(0, 1, false) };
    assert_eq!(status_of(report_of(stopped.clone())), stopped);
}

#[test]
fn a_removal_that_would_cost_a_quorum_is_known_before() {
    use NodeState::{Active, Draining, Removing};
    /// `members`: (node, state, voter, ready) of group 1; the first leads. `troubles`: of removing node 2.
    fn check(members: &[(NodeId, NodeState, bool, bool)], troubles: &[&str]) {
        let group = led(1, &members.iter().map(|it| (it.0, it.2, it.3)).collect::<Vec<_>>());
        let nodes: Vec<_> =
            members.iter().map(|it| (it.0, it.1, (it.0 == members[0].0).then(|| vec![group.clone()]))).collect();
        assert_eq!(view(&nodes).removal_troubles(2, 3), troubles, "{members:?}");
    }
    let (a, b) = ((1, Active, true, true), (2, Active, true, true));
    check(&[a, b, (3, Active, true, true)], &[]);
    check(&[a, b], &[]);
    // A dead node may go while the others make a quorum.
    check(&[a, (2, Active, true, false), (3, Active, true, true)], &[]);
    check(&[b, (1, Active, true, true), (3, Draining, true, true)], &[]);
    let one_of_two = "of the voters that group 1 would have (`n1`, `n3`), only `n1` is up and caught up";
    check(&[a, b, (3, Active, true, false)], &[one_of_two]);
    // One that leaves anyway does not count, and a learner that has caught up does.
    check(&[a, b, (3, Removing, true, true)], &[]);
    check(&[a, b, (3, Active, true, false), (4, Active, false, true)], &[]);
    check(&[a, b, (3, Active, true, false), (4, Active, false, false)], &[one_of_two]);
    check(&[a, b, (3, Active, true, false), (4, Removing, false, true)], &[one_of_two]);
    // A learner leaves without any harm; a group without a leader cannot be changed.
    check(&[a, (2, Active, false, true), (3, Active, true, false)], &[]);
    let headless = view(&[(1, Active, Some(vec![status(1, 2, false)])), (2, Active, None)]);
    assert_eq!(headless.removal_troubles(2, 3), ["group 1 has no leader that answers"]);
    assert_eq!(view(&[(1, Active, None)]).removal_troubles(1, 3), ["no group is known"]);
    check(&[(2, Active, true, true), (1, Removing, true, true)], &["group 1 would have no voter left"]);
}
