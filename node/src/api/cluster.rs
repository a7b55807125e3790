//! Who is there, how far each group is, and the operator's hand on both.

use crate::error::{Error, Result as NodeResult};
use crate::meta_write;
use crate::moves;
use crate::node::Node;
use cairn_consensus::{ClusterView, GroupStatus, Move, NodeView};
use cairn_proto::ErrorKind;
use cairn_proto::api::v1 as api;
use cairn_proto::record::v1::{self as record, NodeState, meta_command::Change, meta_outcome::Outcome};
use cairn_storage::meta::{slot_runs, state_name};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// How long a lead may take to move, an election that goes wrong included.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(15);
/// Trouble that is gone within this is none, looked at this often.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);
const SETTLE_LOOK: Duration = Duration::from_millis(200);
/// Moves begin up to here; the client's own deadline is 30 s unless it says otherwise.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(20);
/// Voters of a group when the cluster does not say.
const REPLICATION_FACTOR_DEFAULT: usize = 3;

#[derive(Debug, Clone)]
pub struct ClusterService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::cluster_server::Cluster for ClusterService {
    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusReply>, Status> {
        let node = &self.node;
        let me = node.cluster.node_id();
        let (nodes, groups) = if request.into_inner().all_nodes {
            let view = node.cluster.view().await;
            let nodes = view.nodes.iter().map(|seen| seen_node(seen, me)).collect();
            (nodes, view.groups().into_iter().map(|group| seen_group(group, &view)).collect())
        } else {
            let catalog = node.meta.catalog();
            let nodes = catalog.nodes().map(|known| node_status(known, me)).collect();
            (nodes, node.cluster.status().iter().map(group_status).collect())
        };
        let reason = node.writes.reason();
        let catalog = node.meta.catalog();
        let cluster = catalog.cluster();
        let runs = cluster.map(|cluster| slot_runs(cluster)).unwrap_or_default();
        let slot_move = cluster.and_then(|cluster| cluster.slot_move);
        Ok(Response::new(api::StatusReply {
            cluster_id: node.cluster.cluster_id().to_owned(),
            node_id: me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes,
            groups,
            read_only: reason.is_some(),
            read_only_reason: reason.unwrap_or_default(),
            slot_map_epoch: cluster.map_or(0, |cluster| cluster.slot_map_epoch),
            slots: runs.into_iter().map(|(first, last, shard)| api::SlotRange { first, last, shard }).collect(),
            slot_move: slot_move.map(|it| slot_move_of(node, &it)).transpose()?,
        }))
    }

    async fn move_slots(
        &self,
        request: Request<api::MoveSlotsRequest>,
    ) -> Result<Response<api::MoveSlotsReply>, Status> {
        let api::MoveSlotsRequest { first, last, to } = request.into_inner();
        let catalog = self.node.fresh_catalog().await?;
        // Of a slot that does not exist the state machine says so.
        let from = u16::try_from(first).map_or(0, |slot| catalog.slot_shard(slot).unwrap_or(0));
        let change = record::BeginSlotMove { first, last, from, to };
        Ok(Response::new(change_move(&self.node, Change::BeginSlotMove(change)).await?))
    }

    async fn cancel_slot_move(
        &self,
        request: Request<api::CancelSlotMoveRequest>,
    ) -> Result<Response<api::MoveSlotsReply>, Status> {
        let change = record::CancelSlotMove { id: request.into_inner().id };
        Ok(Response::new(change_move(&self.node, Change::CancelSlotMove(change)).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<api::TransferLeaderRequest>,
    ) -> Result<Response<api::TransferLeaderReply>, Status> {
        let api::TransferLeaderRequest { group, node: name } = request.into_inner();
        let to = called(&self.node, &name).await?.id;
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        let from = self.node.cluster.transfer_lead(group, to, deadline).await.map_err(Error::from)?;
        Ok(Response::new(api::TransferLeaderReply { from, to }))
    }

    async fn drain(&self, request: Request<api::DrainRequest>) -> Result<Response<api::MembersReply>, Status> {
        let api::DrainRequest { node: name, undo } = request.into_inner();
        let known = called(&self.node, &name).await?;
        let state = if undo { NodeState::Active } else { NodeState::Draining };
        Ok(Response::new(change_state(&self.node, &known, state, false, Vec::new()).await?))
    }

    async fn remove(&self, request: Request<api::RemoveRequest>) -> Result<Response<api::MembersReply>, Status> {
        let api::RemoveRequest { node: name, force } = request.into_inner();
        let known = called(&self.node, &name).await?;
        let warnings = removal_warnings(&self.node, &known, force).await?;
        Ok(Response::new(change_state(&self.node, &known, NodeState::Removing, force, warnings).await?))
    }

    async fn rebalance(&self, _: Request<api::RebalanceRequest>) -> Result<Response<api::RebalanceReply>, Status> {
        let deadline = Instant::now() + REBALANCE_TIMEOUT;
        let done = self.node.cluster.rebalance(deadline).await.map_err(Error::from)?;
        let moves = done.moves.into_iter().map(|planned| match planned {
            Move::Lead { group, from, to } => api::Move { group, what: "lead".to_owned(), from, to },
            Move::Voter { group, from, to } => api::Move { group, what: "voter".to_owned(), from, to },
        });
        Ok(Response::new(api::RebalanceReply {
            moves: moves.collect(),
            unfinished: done.unfinished.unwrap_or_default(),
        }))
    }
}

/// The node that is meant by a name or an id, as of now.
async fn called(node: &Node, name_or_id: &str) -> NodeResult<Arc<record::Node>> {
    if name_or_id.is_empty() {
        return Err(Error::invalid("no node is named; `cairn cluster status` lists them"));
    }
    Ok(Arc::clone(node.fresh_catalog().await?.node_called(name_or_id)?))
}

/// What a removal would cost, when it may begin all the same.
async fn removal_warnings(node: &Node, leaving: &record::Node, force: bool) -> NodeResult<Vec<String>> {
    let factor = node.meta.catalog().cluster().map_or(0, |cluster| cluster.replication_factor as usize);
    let factor = if factor == 0 { REPLICATION_FACTOR_DEFAULT } else { factor };
    // A leader that has just begun does not know yet how far the others are, and a busy follower is behind for a moment.
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut looks = tokio::time::interval(SETTLE_LOOK);
    let troubles = loop {
        looks.tick().await;
        let troubles = node.cluster.view().await.removal_troubles(leaving.id, factor);
        if troubles.is_empty() || force {
            return Ok(troubles);
        }
        if Instant::now() >= deadline {
            break troubles;
        }
    };
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "removing node `{}` would cost a quorum: {}. Bring the missing nodes back or add one first; `--force` removes it \
             all the same, and such a group takes no writes until a majority of its voters is up again",
            leaving.name,
            troubles.join("; ")
        ),
    ))
}

async fn change_state(
    node: &Node,
    known: &record::Node,
    state: NodeState,
    forced: bool,
    warnings: Vec<String>,
) -> NodeResult<api::MembersReply> {
    let change = record::ChangeNodeState { id: known.id, state: state as i32, forced };
    // The same again changes nothing, so a lost answer needs no request id.
    meta_write::propose(node, Change::ChangeNodeState(change), String::new()).await?;
    Ok(api::MembersReply { node_id: known.id, name: known.name.clone(), state: state_name(state).to_owned(), warnings })
}

/// The same again gets the same move, so a lost answer needs no request id.
async fn change_move(node: &Node, change: Change) -> NodeResult<api::MoveSlotsReply> {
    let (outcome, _) = meta_write::propose(node, change, String::new()).await?;
    let Outcome::SlotMove(it) = outcome else {
        return Err(Error::internal("the meta group answered a move of slots with something else"));
    };
    Ok(api::MoveSlotsReply { r#move: Some(slot_move_of(node, &it)?) })
}

fn slot_move_of(node: &Node, it: &record::SlotMove) -> NodeResult<api::SlotMove> {
    let (step, rows_copied) = moves::progress(node, it)?;
    let record::SlotMove { id, epoch, first, last, from, to, .. } = *it;
    Ok(api::SlotMove { id, first, last, from, to, epoch, step: step.to_owned(), rows_copied })
}

fn node_status(known: &record::Node, me: u64) -> api::NodeStatus {
    api::NodeStatus {
        id: known.id,
        name: known.name.clone(),
        peer_address: known.peer_address.clone(),
        client_address: known.client_address.clone(),
        self_: known.id == me,
        state: state_name(known.state()).to_owned(),
        trouble: String::new(),
        answered: false,
    }
}

fn seen_node(seen: &NodeView, me: u64) -> api::NodeStatus {
    let trouble = match &seen.report {
        Ok(report) if report.read_only => "takes no writes: its disk is nearly full".to_owned(),
        Ok(_) => String::new(),
        Err(reason) => reason.clone(),
    };
    api::NodeStatus { trouble, answered: seen.report.is_ok(), ..node_status(&seen.node, me) }
}

fn group_status(group: &GroupStatus) -> api::GroupStatus {
    api::GroupStatus {
        group: group.group,
        leader: group.leader.unwrap_or(0),
        term: group.term,
        last_log_index: group.last_index,
        committed_index: group.committed_index,
        applied_index: group.applied_index,
        applied_us: group.applied_time_us,
        voters: group.voters.clone(),
        learners: group.learners.clone(),
        snapshot_index: group.snapshot_index,
        purged_index: group.purged_index,
        changing: group.changing,
        replicas: Vec::new(),
    }
}

fn seen_group(group: &GroupStatus, view: &ClusterView) -> api::GroupStatus {
    let ready: Vec<u64> = group.ready().collect();
    let replica = |(node, voter): (u64, bool)| {
        let matched = group.followers.iter().find(|it| it.node == node).map(|it| it.matched_index);
        let leads = group.is_leader && group.leader == Some(node);
        api::ReplicaStatus {
            node,
            voter,
            matched_index: if leads { group.last_index } else { matched.unwrap_or(0) },
            applied_index: view.applied(node, group.group).unwrap_or(0),
            ready: ready.contains(&node),
        }
    };
    let voters = group.voters.iter().map(|node| (*node, true));
    let members = voters.chain(group.learners.iter().map(|node| (*node, false)));
    // Without a leader's word nobody is said to lead.
    let leader = group.leader.filter(|_| group.is_leader).unwrap_or(0);
    api::GroupStatus { leader, replicas: members.map(replica).collect(), ..group_status(group) }
}
