//! The cluster itself: its id, its slot map, its nodes.

use super::Row;
use super::apply::{Answer, Context};
use super::names::check_node_name;
use crate::shard::home_shard;
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    AddNode, ChangeNodeState, ClusterInfo, Done, InitCluster, Node, NodeAdded, NodeState, UpdateNode,
};

/// Feature shards of one cluster. Each is a Raft group on every node that holds it.
pub const SHARDS_MAX: u32 = 256;
const ADDRESS_BYTES_MAX: usize = 512;

/// Makes the cluster, once. The same again (a bootstrap cut short) gets the same answer.
pub fn init_cluster(context: &Context<'_>, ask: &InitCluster) -> Answer {
    let first = ask.first_node.clone().unwrap_or_default();
    if let Some(cluster) = context.catalog.cluster() {
        return match context.catalog.node_named(&first.name) {
            Some(node) if cluster.cluster_id == ask.cluster_id => {
                Ok((node_added(context, node.id, ClusterInfo::clone(cluster), None), Vec::new()))
            }
            _ => Err(Error::AlreadyExists(format!(
                "the cluster is made already, as `{}`; join it with `--join`",
                cluster.cluster_id
            ))),
        };
    }
    if ask.cluster_id.is_empty() {
        return Err(Error::InvalidArgument("a cluster needs an id".to_owned()));
    }
    if !(1..=SHARDS_MAX).contains(&ask.shards) {
        return Err(Error::InvalidArgument(format!(
            "{} shards are not possible; choose 1 to {SHARDS_MAX} with `--shards`",
            ask.shards
        )));
    }
    check_node(&first.name, &first.peer_address, &first.client_address)?;
    let cluster = ClusterInfo {
        cluster_id: ask.cluster_id.clone(),
        shards: ask.shards,
        replication_factor: ask.replication_factor,
        slot_map_epoch: 1,
        slot_shard: (0..SLOTS as u16).map(|slot| home_shard(slot, ask.shards)).collect(),
        created_us: context.now_us,
        slot_move: None,
    };
    // The founder had to name itself before there was a log. Later nodes get larger ids: their entry's index.
    let id = if first.id == 0 { context.index } else { first.id };
    if id > context.index {
        return Err(Error::InvalidArgument(format!(
            "the first node cannot have id {id}, above entry {}",
            context.index
        )));
    }
    let node = Node { id, joined_us: context.now_us, ..first };
    let outcome = node_added(context, node.id, cluster.clone(), Some(&node));
    Ok((outcome, vec![Row::Cluster(cluster), Row::Node(node)]))
}

/// Adds a node under the id of this entry, which no other node ever gets.
pub fn add_node(context: &Context<'_>, ask: &AddNode) -> Answer {
    let cluster = context.catalog.cluster();
    let cluster = cluster.ok_or_else(|| Error::Conflict("the cluster is not made yet; try again".to_owned()))?;
    check_node(&ask.name, &ask.peer_address, &ask.client_address)?;
    if let Some(node) = context.catalog.node_named(&ask.name) {
        return Err(Error::AlreadyExists(format!(
            "a node named `{0}` is in the cluster already (id {1}, at {2}); start this one with another `--name`, with the \
             data directory it had, or take the old one out first (`cairn cluster remove {0}`)",
            node.name, node.id, node.peer_address
        )));
    }
    let node = Node {
        id: context.index,
        name: ask.name.clone(),
        peer_address: ask.peer_address.clone(),
        client_address: ask.client_address.clone(),
        joined_us: context.now_us,
        ..Node::default()
    };
    let outcome = node_added(context, node.id, ClusterInfo::clone(cluster), Some(&node));
    Ok((outcome, vec![Row::Node(node)]))
}

/// Changes where a node is reached.
pub fn update_node(context: &Context<'_>, ask: &UpdateNode) -> Answer {
    let node = context.catalog.node(ask.id)?;
    check_node(&node.name, &ask.peer_address, &ask.client_address)?;
    let (peer_address, client_address) = (ask.peer_address.clone(), ask.client_address.clone());
    let changed = Node { peer_address, client_address, ..Node::clone(node) };
    let rows = if changed == **node { Vec::new() } else { vec![Row::Node(changed)] };
    Ok((Outcome::Done(Done {}), rows))
}

/// Drains a node, takes it out of the cluster, or gives either up. The same again changes nothing.
pub fn change_node_state(context: &Context<'_>, ask: &ChangeNodeState) -> Answer {
    let node = context.catalog.node(ask.id)?;
    let name = &node.name;
    let Ok(to) = NodeState::try_from(ask.state) else {
        return Err(Error::InvalidArgument(format!("{} is no state of a node", ask.state)));
    };
    let forced = ask.forced && to == NodeState::Removing;
    if node.state() == to && (node.forced || !forced) {
        return Ok((Outcome::Done(Done {}), Vec::new()));
    }
    let others_serve = context.catalog.nodes().any(|it| it.id != node.id && it.state() == NodeState::Active);
    match (node.state(), to) {
        (NodeState::Active | NodeState::Draining | NodeState::Removing, NodeState::Active) => {}
        (NodeState::Active, NodeState::Draining) if others_serve => {}
        (NodeState::Active, NodeState::Draining) => {
            return Err(Error::InvalidArgument(format!(
                "node `{name}` cannot be drained: no other node is active, so nobody could lead in its place"
            )));
        }
        (NodeState::Active | NodeState::Draining | NodeState::Removing, NodeState::Removing) if others_serve => {}
        (NodeState::Active | NodeState::Draining | NodeState::Removing, NodeState::Removing) => {
            return Err(Error::InvalidArgument(format!(
                "node `{name}` cannot be removed: it is the last active node, and the data would go with it"
            )));
        }
        (NodeState::Removing, NodeState::Removed) => {}
        (from, to) => {
            let (from, to) = (state_name(from), state_name(to));
            return Err(Error::Conflict(format!("node `{name}` is {from} and cannot become {to}")));
        }
    }
    let state = to as i32;
    let changed = Node { state, state_us: context.now_us, forced, ..Node::clone(node) };
    Ok((Outcome::Done(Done {}), vec![Row::Node(changed)]))
}

/// The state as people read it.
pub fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Removing => "being removed",
        NodeState::Removed => "removed",
    }
}

fn node_added(context: &Context<'_>, id: u64, cluster: ClusterInfo, added: Option<&Node>) -> Outcome {
    let nodes = context.catalog.nodes().map(|node| Node::clone(node)).chain(added.cloned()).collect();
    Outcome::NodeAdded(NodeAdded { id, cluster: Some(cluster), nodes })
}

fn check_node(name: &str, peer_address: &str, client_address: &str) -> Result<()> {
    check_node_name(name)?;
    for (what, address) in [("peer", peer_address), ("client", client_address)] {
        if address.is_empty() || address.len() > ADDRESS_BYTES_MAX {
            return Err(Error::InvalidArgument(format!(
                "node `{name}` needs a {what} address HOST:PORT of at most {ADDRESS_BYTES_MAX} bytes"
            )));
        }
    }
    Ok(())
}
