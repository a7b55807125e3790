//! Who is there, and how far each group is.

use crate::node::Node;
use cairn_proto::api::v1 as api;
use std::sync::Arc;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
pub struct ClusterService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::cluster_server::Cluster for ClusterService {
    async fn status(&self, _: Request<api::StatusRequest>) -> Result<Response<api::StatusReply>, Status> {
        let node = &self.node;
        let me = node.cluster.node_id();
        let catalog = node.meta.catalog();
        let nodes = catalog.nodes().map(|it| api::NodeStatus {
            id: it.id,
            name: it.name.clone(),
            peer_address: it.peer_address.clone(),
            client_address: it.client_address.clone(),
            self_: it.id == me,
        });
        let groups = node.cluster.status().into_iter().map(|group| api::GroupStatus {
            group: group.group,
            leader: group.leader.unwrap_or(0),
            term: group.term,
            last_log_index: group.last_index,
            applied_index: group.applied_index,
            applied_us: group.applied_time_us,
            voters: group.voters,
            learners: group.learners,
            snapshot_index: group.snapshot_index,
            purged_index: group.purged_index,
        });
        let reason = node.writes.reason();
        Ok(Response::new(api::StatusReply {
            cluster_id: node.cluster.cluster_id().to_owned(),
            node_id: me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: nodes.collect(),
            groups: groups.collect(),
            read_only: reason.is_some(),
            read_only_reason: reason.unwrap_or_default(),
        }))
    }
}
