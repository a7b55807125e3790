//! Writes to the meta group: definitions, registry, aliases.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use bytes::Bytes;
use cairn_proto::record::v1 as record;
use cairn_storage::meta::version_of;
use prost::Message;

/// Proposes a change and waits until this node has applied it too, so its own reads see it. With a `request_id` a
/// retry is answered with the first outcome. Once committed, a change is answered as done, also where this node does not
/// come to apply it: one that is taken out of the cluster, or stops.
///
/// # Errors
/// What the state machine refused; `ReadOnly`; `Timeout` when the outcome is unknown.
pub async fn propose(
    node: &Node,
    change: record::meta_command::Change,
    request_id: String,
) -> Result<(record::meta_outcome::Outcome, u64)> {
    node.writes.check()?;
    let idempotent = !request_id.is_empty();
    let version = version_of(&change);
    let command = record::MetaCommand { version, proposed_at_us: now_us(), change: Some(change), request_id };
    let deadline = node.write_deadline();
    let proposed = node.cluster.propose(0, Bytes::from(command.encode_to_vec()), idempotent, deadline).await?;
    let outcome = record::MetaOutcome::decode(proposed.outcome)?;
    if let Err(error) = node.cluster.wait_applied(0, proposed.index, deadline).await {
        tracing::info!(index = proposed.index, %error, "a change is committed, and this node does not see it yet");
    }
    match outcome.outcome {
        Some(record::meta_outcome::Outcome::Refused(refusal)) => Err(Error::refused(&refusal)),
        Some(done) => Ok((done, outcome.index)),
        None => Err(Error::internal("the meta group answered without an outcome")),
    }
}
