//! How a node comes to be part of a cluster: it founds one, joins one, or continues.
//!
//! Founding and joining may be cut short at any moment and go on at the next start. A node founds groups only while its
//! identity says `founding`, which ends with the first entry of meta: a node whose log was lost never founds them again.

use crate::error::{Error, Result};
use crate::identity::{DataDir, FORMAT_VERSION, Identity};
use crate::link;
use crate::node::Node;
use crate::options::{Options, Start};
use crate::propose;
use crate::reads;
use crate::types::*;
use cairn_proto::peer::v1::JoinRequest;
use cairn_proto::{ErrorKind, PEER_PROTOCOL, record::v1 as record};
use openraft::async_runtime::watch::WatchReceiver;
use prost::Message;
use rand::RngCore;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Most feature shards a cluster can have.
pub const SHARDS_MAX: u32 = 256;

const FIRST_NODE: NodeId = 1;
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
const ADDRESS_INTERVAL: Duration = Duration::from_secs(1);

/// 32 random hex digits.
fn random_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The identity on disk; for a new node the one it gets now, with the nodes it was told of.
pub(crate) async fn identity(
    data_dir: &DataDir,
    options: &Options,
    start: &Start,
) -> Result<(Identity, Vec<record::Node>)> {
    if let Some(identity) = data_dir.identity()? {
        return Ok((identity, Vec::new()));
    }
    let (identity, nodes) = match start {
        Start::Bootstrap { shards, .. } => {
            if !(1..=SHARDS_MAX).contains(shards) {
                return Err(Error::InvalidArgument(format!("{shards} shards are not between 1 and {SHARDS_MAX}")));
            }
            let identity = Identity {
                format_version: FORMAT_VERSION,
                cluster_id: random_id(),
                node_id: FIRST_NODE,
                name: options.name.clone(),
                shards: *shards,
                founding: true,
            };
            (identity, Vec::new())
        }
        Start::Join { address } => join(data_dir, options, address).await?,
    };
    data_dir.save_identity(&identity)?;
    Ok((identity, nodes))
}

/// Asks the node at `address` to take this one in, again and again until the deadline.
async fn join(data_dir: &DataDir, options: &Options, address: &str) -> Result<(Identity, Vec<record::Node>)> {
    let request = JoinRequest {
        name: options.name.clone(),
        peer_address: options.peer_address.clone(),
        client_address: options.client_address.clone(),
        protocol: PEER_PROTOCOL,
        request_id: data_dir.join_request(random_id)?,
    };
    let deadline = Instant::now() + options.join_timeout;
    let mut pause = RETRY_MIN;
    loop {
        let error = match ask_to_join(address, request.clone()).await {
            Ok(reply) => {
                let nodes = reply.nodes.into_iter().map(record::Node::decode).collect::<Result<Vec<_>, _>>();
                let nodes = nodes.map_err(|error| Error::Internal(format!("the answer to a join: {error}")))?;
                let identity = Identity {
                    format_version: FORMAT_VERSION,
                    cluster_id: reply.cluster_id,
                    node_id: reply.node_id,
                    name: options.name.clone(),
                    shards: reply.shards,
                    founding: false,
                };
                return Ok((identity, nodes));
            }
            Err(error) if error.kind().is_retryable() => error,
            Err(error) => return Err(error),
        };
        if Instant::now() + pause >= deadline {
            let timeout = options.join_timeout;
            return Err(Error::Unavailable(format!(
                "cannot join the cluster at {address} within {timeout:?}: {error}; `--join` takes the peer address of a \
                 node that is up"
            )));
        }
        tracing::info!(%address, %error, "joining is tried again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn ask_to_join(address: &str, request: JoinRequest) -> Result<cairn_proto::peer::v1::JoinReply> {
    let mut client = link::connect(address).await?;
    let reply = client.join(request).await.map_err(|status| match propose::definite_refusal(&status) {
        Some(_) => Error::of_status(&status),
        None => Error::Unavailable(format!("node at {address}: {}", status.message())),
    })?;
    Ok(reply.into_inner())
}

/// Founds the groups if this node is to, and elects where it is the only voter: nobody else could be waited for.
pub(crate) async fn begin(node: &Arc<Node>, start: &Start) -> Result<()> {
    let me = node.me();
    let founding = node.identity.founding;
    let starting = node.groups.values().map(|group| async move {
        let stopped = |error: String| Error::Internal(format!("group {} does not start: {error}", group.id));
        let initialized = group.raft.is_initialized().await.map_err(|fatal| stopped(fatal.to_string()))?;
        if founding && !initialized {
            let first = PeerNode { address: node.peer_address.clone() };
            let founded = group.raft.initialize(BTreeMap::from([(me, first)])).await;
            founded.map_err(|error| stopped(error.to_string()))?;
        }
        let alone = {
            let metrics = group.raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: Vec<NodeId> = metrics.membership_config.voter_ids().collect();
            voters == [me]
        };
        // A group just founded may not show its membership yet; its only voter is this node.
        if alone || (founding && !initialized) {
            group.raft.trigger().elect(false).await.map_err(|fatal| stopped(fatal.to_string()))?;
        }
        Ok::<_, Error>(())
    });
    futures::future::try_join_all(starting).await?;
    if founding {
        init_cluster(node, start).await?;
        if let Some(data_dir) = node.data_dir.lock().as_ref() {
            data_dir.save_identity(&Identity { founding: false, ..node.identity.clone() })?;
        }
    }
    Ok(())
}

/// Writes the first entry of meta, once.
async fn init_cluster(node: &Node, start: &Start) -> Result<()> {
    let replication_factor = match start {
        Start::Bootstrap { replication_factor, .. } => *replication_factor,
        Start::Join { .. } => 0,
    };
    let deadline = Instant::now() + FOUNDING_TIMEOUT;
    let meta = node.group(0)?;
    reads::linearizable(node, meta, deadline).await?;
    if !node.host.nodes().is_empty() {
        return Ok(());
    }
    let first_node = record::Node {
        id: node.me(),
        name: node.identity.name.clone(),
        peer_address: node.peer_address.clone(),
        client_address: node.client_address.clone(),
        ..record::Node::default()
    };
    let init = record::InitCluster {
        cluster_id: node.identity.cluster_id.clone(),
        shards: node.identity.shards,
        replication_factor,
        first_node: Some(first_node),
    };
    let command = record::MetaCommand {
        version: crate::META_COMMAND_VERSION,
        proposed_at_us: (node.clock)(),
        change: Some(record::meta_command::Change::InitCluster(init)),
        request_id: node.identity.cluster_id.clone(),
    };
    let proposed = propose::propose(node, meta, command.encode_to_vec().into(), true, deadline).await?;
    accepted(proposed)
}

pub(crate) fn accepted(proposed: propose::Proposed) -> Result<()> {
    let outcome = record::MetaOutcome::decode(proposed.outcome);
    match outcome.map_err(|error| Error::Internal(format!("an outcome of meta: {error}")))?.outcome {
        Some(record::meta_outcome::Outcome::Refused(refusal)) => Err(crate::refused(refusal)),
        _ => Ok(()),
    }
}

/// Tells the cluster when this node is reached elsewhere than meta says.
pub(crate) async fn keep_address(node: Arc<Node>) {
    let Ok(meta) = node.group(0).cloned() else { return };
    loop {
        let known = node.host.nodes().into_iter().find(|known| known.id == node.me());
        let differs = |known: &record::Node| {
            known.peer_address != node.peer_address || known.client_address != node.client_address
        };
        // What this replica shows may be old: only a confirmed state says that the address must be written.
        if known.as_ref().is_some_and(differs)
            && reads::linearizable(&node, &meta, Instant::now() + FOUNDING_TIMEOUT).await.is_ok()
            && node.host.nodes().iter().any(|known| known.id == node.me() && differs(known))
        {
            let update = record::UpdateNode {
                id: node.me(),
                peer_address: node.peer_address.clone(),
                client_address: node.client_address.clone(),
            };
            let command = record::MetaCommand {
                version: crate::META_COMMAND_VERSION,
                proposed_at_us: (node.clock)(),
                change: Some(record::meta_command::Change::UpdateNode(update)),
                request_id: random_id(),
            };
            let deadline = Instant::now() + FOUNDING_TIMEOUT;
            let proposed = propose::propose(&node, &meta, command.encode_to_vec().into(), true, deadline).await;
            if let Err(error) = proposed.and_then(accepted)
                && error.kind() != ErrorKind::Unavailable
            {
                tracing::warn!(%error, "this node's new address is not written yet");
            }
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(ADDRESS_INTERVAL) => {}
        }
    }
}
