//! Moments that no later write can change, for training sets that can be made again.
//!
//! A join reads what was committed by a time. Commit times come from leaders' clocks and never go back within a shard, so
//! what a shard committed by T stands once its time is past T: [`pin`] brings every shard there.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use bytes::Bytes;
use cairn_proto::record::v1::{ShardCommand, TimeTick, shard_command::Change};
use cairn_storage::shard::UPSERT_VERSION;
use prost::Message;

/// What [`pin`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Of the service asked for; 0 = features were asked for.
    pub feature_service_version: u32,
    /// With their versions, where features were asked for.
    pub features: Vec<String>,
    pub known_us: i64,
}

/// Fixes definitions to their versions and a moment for good: `known_us`, or now.
///
/// # Errors
/// `InvalidArgument` for a moment that has not come yet, or unless either a service or features are named; `NotFound`;
/// `Timeout` or `Unavailable` when a shard has no leader.
pub async fn pin(node: &Node, project: &str, service: &str, features: &[String], known_us: Option<i64>) -> Result<Pin> {
    let catalog = node.fresh_catalog().await?;
    let here = catalog.project(project)?;
    let (feature_service_version, features) = match (service, features) {
        ("", []) => return Err(Error::invalid("name a `feature_service` or `features`")),
        ("", features) => {
            let bound = here.resolve_served(features)?;
            (0, bound.iter().map(|it| format!("{}@{}:{}", it.view, it.view_version, it.feature)).collect())
        }
        (service, []) => (here.served_feature_service(service)?.version, Vec::new()),
        _ => return Err(Error::invalid("name a `feature_service` or `features`, not both")),
    };
    let known_us = pin_moment(node, known_us).await?;
    Ok(Pin { feature_service_version, features, known_us })
}

/// Fixes a moment for good: `known_us`, or now. No write that comes later is in it, on any shard.
///
/// # Errors
/// `InvalidArgument` for a moment that has not come yet; `Timeout` or `Unavailable` when a shard has no leader.
pub async fn pin_moment(node: &Node, known_us: Option<i64>) -> Result<i64> {
    let deadline = node.write_deadline();
    let shards = 1..=node.shard_count();
    let rounds = shards.clone().map(|shard| node.cluster.linearizable(shard, deadline));
    futures::future::try_join_all(rounds).await?;
    // Never before what is applied: another node's clock may be ahead of this one's.
    let reached = shards.clone().map(|shard| node.applied_us(shard)).max().unwrap_or(0).max(now_us());
    let known_us = match known_us {
        Some(asked) if asked > reached => {
            return Err(Error::invalid("nothing can be pinned to a moment that has not come yet"));
        }
        Some(asked) => asked,
        None => reached,
    };
    let past = known_us.saturating_add(1);
    let behind = shards.filter(|shard| node.applied_us(*shard) < past);
    let ticks = behind.map(|shard| {
        let change = Some(Change::TimeTick(TimeTick::default()));
        let tick = ShardCommand { version: UPSERT_VERSION, proposed_at_us: past, change };
        node.cluster.propose(shard, Bytes::from(tick.encode_to_vec()), true, deadline)
    });
    futures::future::try_join_all(ticks).await?;
    Ok(known_us)
}
