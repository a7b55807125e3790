//! `cairn cluster`: all nodes and all replicas, and the operator's hand on them.
//!
//! `drain` and `remove` are carried out by the cluster in the background; the commands wait for it and say how far it is.
//! Interrupting them changes nothing: the same command again goes on waiting.

use super::Session;
use super::args::ClusterCommand;
use super::failure::{Failure, Outcome};
use super::output::{self, count, time, time_json};
use cairn_client::api;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Between two looks at what the cluster does by itself.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub async fn run(session: &Session, command: ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::Status => status(session).await,
        ClusterCommand::Add { node } => add(session, node.as_deref()).await,
        ClusterCommand::TransferLeader { group, node } => transfer(session, group, &node).await,
        ClusterCommand::Drain { node, undo } => drain(session, &node, undo).await,
        ClusterCommand::Remove { node, force } => remove(session, &node, force).await,
        ClusterCommand::Rebalance => rebalance(session).await,
        ClusterCommand::MoveSlots { cancel: true, .. } => {
            let it = session.client.cancel_slot_move().await?;
            move_ends(session, &it, true).await
        }
        ClusterCommand::MoveSlots { slots, to, no_wait, .. } => {
            // Both are there: the arguments are refused without.
            let ((first, last), to) = (slots.unwrap_or_default(), to.unwrap_or_default());
            let it = session.client.move_slots(first, last, to).await?;
            if no_wait {
                let text = || format!("{} has begun; `cairn cluster status` shows how far it is", move_name(&it));
                return output::answer(session.global.output, text, || move_json(&it));
            }
            move_ends(session, &it, false).await
        }
    }
}

async fn status(session: &Session) -> Outcome {
    let status = session.client.cluster_status().await?;
    output::answer(session.global.output, || text(&status), || json(&status))
}

/// How to add a node, or how far the one of this name is.
async fn add(session: &Session, node: Option<&str>) -> Outcome {
    let status = session.client.cluster_status().await?;
    let active = status.nodes.iter().filter(|node| node.answered && node.state == "active");
    let join: Vec<&str> = active.map(|node| node.peer_address.as_str()).collect();
    let named = node.map(|node| format!(" --name {node}")).unwrap_or_default();
    let command = format!("cairnd --data-dir DIR --join {}{named}", join.first().copied().unwrap_or("HOST:PEERPORT"));
    let how = format!("start it on its machine, with an empty data directory: {command}");
    let Some(name) = node else {
        let text = || format!("a node adds itself: {how}");
        return output::answer(session.global.output, text, || json!({"command": command, "join": join}));
    };
    let id = |status: &api::StatusReply| status.nodes.iter().find(|it| it.name == name).map(|it| it.id);
    if id(&status).is_none() {
        eprintln!("node `{name}` is not in the cluster yet; {how}");
    }
    wait(session, "is not in, or has not caught up with,", |status| {
        let id = id(status);
        let ready = |group: &&api::GroupStatus| group.replicas.iter().any(|it| Some(it.node) == id && it.ready);
        status.groups.iter().filter(|group| !ready(group)).map(|group| group.group).collect()
    })
    .await?;
    let id = id(&session.client.status().await?).unwrap_or_default();
    let text = || format!("node `{name}` (id {id}) is in the cluster and has caught up with every group");
    output::answer(session.global.output, text, || json!({"node": id, "name": name, "state": "active"}))
}

async fn transfer(session: &Session, group: u32, node: &str) -> Outcome {
    let done = session.client.transfer_leader(group, node).await?;
    let status = session.client.status().await?;
    let (from, to) = (name(&status, done.from), name(&status, done.to));
    let text = || match done.from == done.to {
        true => format!("node `{to}` leads group {group} already"),
        false => format!("node `{to}` leads group {group} now; node `{from}` did"),
    };
    output::answer(session.global.output, text, || json!({"group": group, "from": done.from, "to": done.to}))
}

async fn drain(session: &Session, node: &str, undo: bool) -> Outcome {
    let done = session.client.drain_node(node, undo).await?;
    let (id, name) = (done.node_id, done.name.clone());
    if !undo {
        wait(session, "still leads", |status| {
            status.groups.iter().filter(|group| group.leader == id).map(|group| group.group).collect()
        })
        .await?;
    }
    let text = || match undo {
        true => format!("node `{name}` is active: leads may come to it again"),
        false => {
            format!("node `{name}` leads nothing and gets no leads; `cairn cluster drain {name} --undo` ends that")
        }
    };
    output::answer(session.global.output, text, || json!({"node": id, "name": name, "state": done.state}))
}

async fn remove(session: &Session, node: &str, force: bool) -> Outcome {
    let done = session.client.remove_node(node, force).await?;
    for warning in &done.warnings {
        eprintln!("warning: {warning}");
    }
    let (id, name) = (done.node_id, done.name.clone());
    wait(session, "is still in", |status| {
        let member = |group: &&api::GroupStatus| group.voters.contains(&id) || group.learners.contains(&id);
        match status.nodes.iter().any(|node| node.id == id) {
            false => Vec::new(),
            true => status.groups.iter().filter(member).map(|group| group.group).chain([0]).collect(),
        }
    })
    .await?;
    let text = || {
        format!(
            "node `{name}` (id {id}) is out of the cluster; to bring the machine back, empty its data directory and let it \
             join as a new node"
        )
    };
    let json = || json!({"node": id, "name": name, "state": "removed", "warnings": done.warnings});
    output::answer(session.global.output, text, json)
}

/// Looks until `left` names no group any more; says on standard error when there are fewer.
///
/// # Errors
/// `Timeout` after `--timeout`: it goes on in the cluster.
async fn wait(session: &Session, what: &str, left: impl Fn(&api::StatusReply) -> Vec<u32>) -> Result<(), Failure> {
    let started = Instant::now();
    let limit = Duration::from_secs(session.global.timeout_s);
    let mut before = usize::MAX;
    loop {
        let groups = left(&session.client.cluster_status().await?);
        if groups.is_empty() {
            return Ok(());
        }
        let mut distinct = groups.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < before {
            before = distinct.len();
            eprintln!("the node {what} {}", count(before as u64, "group"));
        }
        if started.elapsed() >= limit {
            let groups = distinct.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            return Err(Failure::waited(format!(
                "after {} s the node {what} group {groups}; the cluster goes on, and the same command waits again",
                limit.as_secs()
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn rebalance(session: &Session) -> Outcome {
    let done = session.client.rebalance().await?;
    let status = session.client.status().await?;
    output::answer(
        session.global.output,
        || moves(&done, &status),
        || {
            let moved = |it: &api::Move| json!({"group": it.group, "what": it.what, "from": it.from, "to": it.to});
            json!({"moves": done.moves.iter().map(moved).collect::<Vec<_>>(), "unfinished": done.unfinished})
        },
    )
}

/// Waits until nothing is left of a move, and says how it ended. To be given up and to be completed is both an end.
async fn move_ends(session: &Session, it: &api::SlotMove, cancelled: bool) -> Outcome {
    let started = Instant::now();
    let limit = Duration::from_secs(session.global.timeout_s);
    let mut said = String::new();
    let status = loop {
        let status = session.client.status().await?;
        // A move is named after the entry of meta that began it. A node that has not applied it does not know it yet.
        let knows = status.groups.iter().any(|group| group.group == 0 && group.applied_index >= it.id);
        let now = status.slot_move.as_ref().filter(|now| now.id == it.id);
        if knows && now.is_none() {
            break status;
        }
        if let Some(line) = now.map(move_progress).filter(|line| *line != said) {
            eprintln!("{line}");
            said = line;
        }
        if started.elapsed() >= limit {
            return Err(Failure::waited(format!(
                "after {} s {} is not over; the cluster goes on, and the same command waits again",
                limit.as_secs(),
                move_name(it)
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let inside = status.slots.iter().filter(|run| run.first <= it.last && run.last >= it.first);
    let moved = inside.map(|run| run.shard).all(|shard| shard == it.to);
    let text = || match moved {
        true => format!("slots {}-{} are in shard {} (slot map {})", it.first, it.last, it.to, status.slot_map_epoch),
        false => format!("{} was given up: the slots are in shard {}", move_name(it), it.from),
    };
    output::answer(session.global.output, text, || {
        let mut json = move_json(it);
        json["moved"] = moved.into();
        json
    })?;
    match moved == cancelled {
        true if cancelled => {
            Err(Failure::input("it was too late to give the move up; to undo it, move the slots back"))
        }
        true => Err(Failure::input("somebody gave the move up (`--cancel`)")),
        false => Ok(()),
    }
}

fn move_name(it: &api::SlotMove) -> String {
    format!("move {} of slots {}-{} from shard {} to shard {}", it.id, it.first, it.last, it.from, it.to)
}

fn move_progress(it: &api::SlotMove) -> String {
    let rows = if it.rows_copied == 0 { String::new() } else { format!(", {} copied", count(it.rows_copied, "row")) };
    format!("{}: {}{rows}", move_name(it), it.step)
}

fn move_json(it: &api::SlotMove) -> Value {
    json!({
        "id": it.id,
        "first": it.first,
        "last": it.last,
        "from": it.from,
        "to": it.to,
        "epoch": it.epoch,
        "step": it.step,
        "rows_copied": it.rows_copied,
    })
}

/// Who has which slots, a line a shard.
fn slots(status: &api::StatusReply) -> String {
    let mut shards: Vec<u32> = status.slots.iter().map(|run| run.shard).collect();
    shards.extend(status.groups.iter().map(|group| group.group).filter(|group| *group > 0));
    shards.sort_unstable();
    shards.dedup();
    let rows = shards.into_iter().map(|shard| {
        let runs: Vec<_> = status.slots.iter().filter(|run| run.shard == shard).collect();
        let held: u32 = runs.iter().map(|run| run.last - run.first + 1).sum();
        let ranges: Vec<String> = runs.iter().map(|run| format!("{}-{}", run.first, run.last)).collect();
        vec![kind(shard), held.to_string(), ranges.join(" ")]
    });
    let mut text = output::columns(&["SLOTS OF", "COUNT", "RANGES"], &["COUNT"], rows);
    let _ = writeln!(text, "slot map {}", status.slot_map_epoch);
    if let Some(it) = &status.slot_move {
        let _ = writeln!(text, "{}", move_progress(it));
    }
    text
}

fn moves(done: &api::RebalanceReply, status: &api::StatusReply) -> String {
    let mut text = String::new();
    for it in &done.moves {
        let (from, to) = (name(status, it.from), name(status, it.to));
        let what = if it.what == "lead" { "its lead" } else { "a voter" };
        let _ = writeln!(text, "{}: {what} from {from} to {to}", kind(it.group));
    }
    match (done.moves.is_empty(), done.unfinished.is_empty()) {
        (true, true) => text.push_str("nothing to move: leads and voters are even\n"),
        (false, true) => text.push_str("leads and voters are even\n"),
        (_, false) => {
            let _ = writeln!(text, "not finished: {}", done.unfinished);
        }
    }
    text
}

fn kind(group: u32) -> String {
    if group == 0 { "meta".to_owned() } else { format!("shard {group}") }
}

fn name(status: &api::StatusReply, id: u64) -> String {
    match status.nodes.iter().find(|node| node.id == id) {
        Some(node) => node.name.clone(),
        None if id == 0 => "none".to_owned(),
        None => id.to_string(),
    }
}

/// Entries that a replica still has to apply, as far as it is known.
fn lag(group: &api::GroupStatus, replica: &api::ReplicaStatus) -> Option<u64> {
    let newest = group.committed_index;
    (replica.applied_index > 0).then(|| newest.saturating_sub(replica.applied_index))
}

fn text(status: &api::StatusReply) -> String {
    let mut text = format!("cluster {}, cairnd {}\n\n", status.cluster_id, status.version);
    let led = |id: u64| status.groups.iter().filter(|group| group.leader == id).count();
    let votes = |id: u64| status.groups.iter().filter(|group| group.voters.contains(&id)).count();
    let nodes = status.nodes.iter().map(|node| {
        let state = match (node.answered, node.trouble.is_empty()) {
            (true, true) => node.state.clone(),
            _ => format!("{}; {}", node.state, node.trouble),
        };
        let this = if node.self_ { format!("{} (asked)", node.name) } else { node.name.clone() };
        let (led, votes) = (led(node.id).to_string(), votes(node.id).to_string());
        vec![node.id.to_string(), this, node.client_address.clone(), node.peer_address.clone(), led, votes, state]
    });
    let header = ["NODE", "NAME", "CLIENTS", "PEERS", "LEADS", "VOTES", "STATE"];
    text.push_str(&output::columns(&header, &["NODE", "LEADS", "VOTES"], nodes));
    let replicas = status.groups.iter().flat_map(|group| group.replicas.iter().map(move |it| (group, it)));
    let rows = replicas.map(|(group, it)| {
        let role = match (it.node == group.leader, it.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let known = |index: u64| if index == 0 { "?".to_owned() } else { index.to_string() };
        let first = group.replicas.first().is_some_and(|first| first.node == it.node);
        let of_group = |text: String| if first { text } else { String::new() };
        let mut remark = if it.ready { String::new() } else { "not caught up".to_owned() };
        if first && group.leader == 0 {
            remark = "no leader".to_owned();
        } else if first && group.changing {
            remark = "its membership is changing".to_owned();
        }
        vec![
            of_group(kind(group.group)),
            of_group(group.term.to_string()),
            of_group(group.committed_index.to_string()),
            name(status, it.node),
            role.to_owned(),
            known(it.matched_index),
            known(it.applied_index),
            lag(group, it).map_or_else(|| "?".to_owned(), |lag| lag.to_string()),
            remark,
        ]
    });
    let header = ["GROUP", "TERM", "COMMITTED", "REPLICA", "ROLE", "LOG", "APPLIED", "LAG", ""];
    text.push('\n');
    text.push_str(&output::columns(&header, &["TERM", "COMMITTED", "LOG", "APPLIED", "LAG"], rows));
    if !status.slots.is_empty() {
        text.push('\n');
        text.push_str(&slots(status));
    }
    if let Some(newest) = status.groups.iter().map(|group| group.applied_us).max().filter(|us| *us > 0) {
        let _ = writeln!(text, "\nnewest applied time {}", time(newest));
    }
    text
}

fn json(status: &api::StatusReply) -> Value {
    let node = |node: &api::NodeStatus| {
        json!({
            "id": node.id,
            "name": node.name,
            "state": node.state,
            "answered": node.answered,
            "trouble": node.trouble,
            "client_address": node.client_address,
            "peer_address": node.peer_address,
            "self": node.self_,
        })
    };
    let group = |group: &api::GroupStatus| {
        let replica = |it: &api::ReplicaStatus| {
            json!({
                "node": it.node,
                "voter": it.voter,
                "matched_index": it.matched_index,
                "applied_index": it.applied_index,
                "lag": lag(group, it),
                "ready": it.ready,
            })
        };
        json!({
            "group": group.group,
            "leader": group.leader,
            "term": group.term,
            "last_log_index": group.last_log_index,
            "committed_index": group.committed_index,
            "applied_index": group.applied_index,
            "applied_time": time_json(group.applied_us),
            "changing": group.changing,
            "voters": group.voters,
            "learners": group.learners,
            "replicas": group.replicas.iter().map(replica).collect::<Vec<_>>(),
        })
    };
    json!({
        "cluster_id": status.cluster_id,
        "node_id": status.node_id,
        "version": status.version,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "groups": status.groups.iter().map(group).collect::<Vec<_>>(),
        "slot_map_epoch": status.slot_map_epoch,
        "slots": status
            .slots
            .iter()
            .map(|run| json!({"first": run.first, "last": run.last, "shard": run.shard}))
            .collect::<Vec<_>>(),
        "slot_move": status.slot_move.as_ref().map(move_json),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn cluster() -> api::StatusReply {
        let node = |id: u64, state: &str, trouble: &str| api::NodeStatus {
            id,
            name: format!("n{id}"),
            peer_address: format!("10.0.0.{id}:7701"),
            client_address: format!("10.0.0.{id}:7700"),
            self_: id == 1,
            state: state.into(),
            trouble: trouble.into(),
            answered: trouble.is_empty(),
        };
        let replica = |node, voter, matched_index, applied_index, ready| api::ReplicaStatus {
            node,
            voter,
            matched_index,
            applied_index,
            ready,
        };
        let group = |group, leader, changing, replicas: Vec<api::ReplicaStatus>| api::GroupStatus {
            group,
            leader,
            term: 2,
            last_log_index: 17,
            committed_index: 17,
            applied_us: 1_357_041_780_000_000,
            voters: replicas.iter().filter(|it| it.voter).map(|it| it.node).collect(),
            learners: replicas.iter().filter(|it| !it.voter).map(|it| it.node).collect(),
            changing,
            replicas,
            ..api::GroupStatus::default()
        };
        api::StatusReply {
            cluster_id: "c-1".into(),
            node_id: 1,
            version: "0.1.0".into(),
            nodes: vec![node(1, "active", ""), node(2, "draining", ""), node(7, "being removed", "cannot connect")],
            groups: vec![
                group(0, 1, false, vec![replica(1, true, 17, 17, true), replica(2, true, 17, 15, true)]),
                group(1, 0, true, vec![replica(1, true, 0, 17, false), replica(7, false, 3, 0, false)]),
            ],
            slot_map_epoch: 3,
            slots: [(0, 1023, 1), (1024, 2047, 2), (2048, 4095, 1)]
                .map(|(first, last, shard)| api::SlotRange { first, last, shard })
                .to_vec(),
            slot_move: Some(api::SlotMove {
                id: 41,
                first: 0,
                last: 99,
                from: 1,
                to: 2,
                epoch: 4,
                step: "copying".into(),
                rows_copied: 1_200,
            }),
            ..api::StatusReply::default()
        }
    }

    #[test]
    fn every_node_and_every_replica_has_a_line() {
        expect![[r#"
            cluster c-1, cairnd 0.1.0

            NODE  NAME        CLIENTS        PEERS          LEADS  VOTES  STATE
               1  n1 (asked)  10.0.0.1:7700  10.0.0.1:7701      1      2  active
               2  n2          10.0.0.2:7700  10.0.0.2:7701      0      1  draining
               7  n7          10.0.0.7:7700  10.0.0.7:7701      0      0  being removed; cannot connect

            GROUP    TERM  COMMITTED  REPLICA  ROLE     LOG  APPLIED  LAG
            meta        2         17  n1       leader    17       17    0
                                      n2       voter     17       15    2
            shard 1     2         17  n1       voter      ?       17    0  no leader
                                      n7       learner    3        ?    ?  not caught up

            SLOTS OF  COUNT  RANGES
            shard 1    3072  0-1023 2048-4095
            shard 2    1024  1024-2047
            slot map 3
            move 41 of slots 0-99 from shard 1 to shard 2: copying, 1,200 rows copied

            newest applied time 2013-01-01T12:03:00Z
        "#]]
        .assert_eq(&text(&cluster()));
        let json = json(&cluster());
        assert_eq!(json["groups"][0]["replicas"][1]["lag"], 2);
        assert_eq!(json["groups"][1]["replicas"][1]["lag"], Value::Null);
        assert_eq!(json["nodes"][2]["trouble"], "cannot connect");
    }

    #[test]
    fn moves_are_told_by_name() {
        let it = |group, what: &str, from, to| api::Move { group, what: what.into(), from, to };
        let check = |moves_made: Vec<api::Move>, unfinished: &str, expected: &str| {
            let done = api::RebalanceReply { moves: moves_made, unfinished: unfinished.into() };
            assert_eq!(moves(&done, &cluster()), expected);
        };
        check(vec![], "", "nothing to move: leads and voters are even\n");
        let both = vec![it(0, "lead", 1, 2), it(3, "voter", 2, 9)];
        let told = "meta: its lead from n1 to n2\nshard 3: a voter from n2 to 9\n";
        check(both.clone(), "", &format!("{told}leads and voters are even\n"));
        check(both, "no leader", &format!("{told}not finished: no leader\n"));
    }
}
