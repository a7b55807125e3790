//! A step that the cluster takes by itself in a shard: of a move of slots, or of history on its way to a segment.

use crate::clock::now_us;
use crate::error::Result;
use crate::node::Node;
use bytes::Bytes;
use cairn_proto::record::v1::{Refusal, ShardCommand, ShardOutcome, shard_command::Change};
use prost::Message;
use std::time::Duration;
use tokio::time::Instant;

const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Proposes a step, which must change nothing the second time, and waits until this node has applied it. What the shard
/// refused, if it did: somebody else was faster.
///
/// - `version`: what a node needs to understand the step
///
/// # Errors
/// `Unavailable`; `Timeout` when the outcome is unknown.
pub async fn propose(node: &Node, group: u32, version: u32, change: Change) -> Result<Option<Refusal>> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let command = ShardCommand { version, proposed_at_us: now_us(), change: Some(change) };
    let proposed = node.cluster.propose(group, Bytes::from(command.encode_to_vec()), true, deadline).await?;
    let outcome = ShardOutcome::decode(proposed.outcome)?;
    node.cluster.wait_applied(group, proposed.index, deadline).await?;
    Ok(outcome.refused)
}
