//! `cairn status`: the nodes of the cluster and its Raft groups, as the node asked sees them.

use super::Session;
use super::failure::Outcome;
use super::output::{self, time, time_json};
use cairn_client::api;
use serde_json::{Value, json};
use std::fmt::Write;

pub async fn status(session: &Session) -> Outcome {
    let status = session.client.status().await?;
    output::answer(session.global.output, || text(&status), || json(&status))
}

fn text(status: &api::StatusReply) -> String {
    let name = |id: u64| match status.nodes.iter().find(|node| node.id == id) {
        Some(node) => node.name.clone(),
        None if id == 0 => "none".to_owned(),
        None => id.to_string(),
    };
    let names = |ids: &[u64]| ids.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ");
    let mut text = format!("cluster {}, cairnd {}\n", status.cluster_id, status.version);
    if status.read_only {
        let _ = writeln!(text, "READ-ONLY: {}", status.read_only_reason);
    }
    let nodes = status.nodes.iter().map(|node| {
        let this = if node.self_ { format!("{} (asked)", node.name) } else { node.name.clone() };
        vec![node.id.to_string(), this, node.client_address.clone(), node.peer_address.clone()]
    });
    text.push('\n');
    text.push_str(&output::columns(&["NODE", "NAME", "CLIENTS", "PEERS"], &["NODE"], nodes));
    let groups = status.groups.iter().map(|group| {
        let kind = if group.group == 0 { "meta".to_owned() } else { format!("shard {}", group.group) };
        vec![
            kind,
            name(group.leader),
            group.term.to_string(),
            group.last_log_index.to_string(),
            group.applied_index.to_string(),
            group.snapshot_index.to_string(),
            names(&group.voters),
            names(&group.learners),
            time(group.applied_us),
        ]
    });
    let header = ["GROUP", "LEADER", "TERM", "LOG", "APPLIED", "SNAPSHOT", "VOTERS", "LEARNERS", "APPLIED TIME"];
    text.push('\n');
    text.push_str(&output::columns(&header, &["TERM", "LOG", "APPLIED", "SNAPSHOT"], groups));
    text
}

fn json(status: &api::StatusReply) -> Value {
    let node = |node: &api::NodeStatus| {
        json!({
            "id": node.id,
            "name": node.name,
            "client_address": node.client_address,
            "peer_address": node.peer_address,
            "self": node.self_,
            "state": node.state,
        })
    };
    let group = |group: &api::GroupStatus| {
        json!({
            "group": group.group,
            "leader": group.leader,
            "term": group.term,
            "last_log_index": group.last_log_index,
            "applied_index": group.applied_index,
            "applied_time": time_json(group.applied_us),
            "snapshot_index": group.snapshot_index,
            "voters": group.voters,
            "learners": group.learners,
            "changing": group.changing,
        })
    };
    json!({
        "cluster_id": status.cluster_id,
        "node_id": status.node_id,
        "version": status.version,
        "read_only": status.read_only,
        "read_only_reason": status.read_only_reason,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "groups": status.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_cluster_reads_at_a_glance() {
        let node = |id: u64, name: &str, asked: bool| api::NodeStatus {
            id,
            name: name.into(),
            peer_address: format!("10.0.0.{id}:7701"),
            client_address: format!("10.0.0.{id}:7700"),
            self_: asked,
            ..api::NodeStatus::default()
        };
        let group = |group: u32, leader: u64| api::GroupStatus {
            group,
            leader,
            term: 2,
            last_log_index: 17,
            applied_index: 17,
            applied_us: 1_357_041_780_000_000,
            voters: vec![1, 2],
            learners: vec![],
            snapshot_index: 0,
            purged_index: 0,
            ..api::GroupStatus::default()
        };
        let status = api::StatusReply {
            cluster_id: "c-1".into(),
            node_id: 1,
            version: "0.1.0".into(),
            nodes: vec![node(1, "a", true), node(2, "b", false)],
            groups: vec![group(0, 1), group(1, 0)],
            read_only: true,
            read_only_reason: "the disk is full".into(),
            ..api::StatusReply::default()
        };
        expect![[r#"
            cluster c-1, cairnd 0.1.0
            READ-ONLY: the disk is full

            NODE  NAME       CLIENTS        PEERS
               1  a (asked)  10.0.0.1:7700  10.0.0.1:7701
               2  b          10.0.0.2:7700  10.0.0.2:7701

            GROUP    LEADER  TERM  LOG  APPLIED  SNAPSHOT  VOTERS  LEARNERS  APPLIED TIME
            meta     a          2   17       17         0  a, b              2013-01-01T12:03:00Z
            shard 1  none       2   17       17         0  a, b              2013-01-01T12:03:00Z
        "#]]
        .assert_eq(&text(&status));
        assert_eq!(json(&status)["groups"][1]["leader"], 0);
    }
}
