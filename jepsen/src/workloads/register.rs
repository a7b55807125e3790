//! A model alias as a compare-and-set register: reads, moves and conditional moves must be linearizable.
//!
//! One alias serves a few hundred operations, then the next one: short histories are decided fast.

use super::lock;
use crate::linear::{self, Act, Op, Verdict};
use crate::site::{Ask, Site};
use crate::workloads::rows::PROJECT;
use crate::{Result, history::Outcome};
use cairn_client::registry::{Expected, Promotion, VersionOf};
use cairn_client::{Client, ErrorKind, api};
use rand::Rng;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const NAME: &str = "register";
const MODEL: &str = "register";
/// Values of the register.
const VERSIONS: u32 = 5;
/// Weight of operations on one alias; an unknown one weighs more, because each doubles the checker's work.
const KEY_WEIGHT: u64 = 240;
const UNKNOWN_WEIGHT: u64 = 24;

const ONNX: &[u8] = include_bytes!("../../../client/examples/flights/models/delay_mlp.onnx");

#[derive(Debug)]
pub struct Register {
    weight: AtomicU64,
    ops: Mutex<Vec<(u64, Op)>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Read { alias: String },
    Move { alias: String, expected: Option<u32>, to: u32 },
}

impl Register {
    /// Registers the versions that aliases will point at.
    ///
    /// # Errors
    /// The cluster's refusal.
    pub async fn prepare(site: &Site) -> Result<Self> {
        let artifact = site.any.upload_bytes(ONNX.into()).await?;
        for _ in 0..VERSIONS {
            let ask = api::RegisterModelVersionRequest {
                project: PROJECT.to_owned(),
                model: MODEL.to_owned(),
                artifact_root: artifact.root.clone(),
                file_name: "delay_mlp.onnx".to_owned(),
                ..Default::default()
            };
            site.any.register_model(ask).await?;
        }
        Ok(Self { weight: AtomicU64::new(0), ops: Mutex::default() })
    }

    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut last = 0;
        while !site.stopped() {
            let key = self.weight.fetch_add(1, Ordering::Relaxed) / KEY_WEIGHT;
            let alias = format!("a{key}");
            let (node, at) = site.pick(&mut random);
            let ask = Ask { workload: NAME, client, node, what: (), writes: true };
            let to = random.random_range(1..=VERSIONS);
            let op = match random.random_range(0..10) {
                0..4 => {
                    let ask = ask.with(What::Read { alias: alias.clone() }, false);
                    let done = site.act(ask, value(at, &alias), u32::to_string).await;
                    done.answer.ok().map(|value| {
                        last = value;
                        Op { act: Act::Read(value), began: done.began, ended: Some(done.ended) }
                    })
                }
                kind => {
                    // Mostly from the value last seen, so that moves happen; sometimes from another, or from any.
                    let from = if random.random_range(0..4) == 0 { random.random_range(0..=VERSIONS) } else { last };
                    let expected = (kind < 9).then_some(from);
                    let ask = ask.with(What::Move { alias: alias.clone(), expected, to }, true);
                    let done = site.act(ask, promote(at, &alias, expected, to), |_| String::new()).await;
                    let act = expected.map_or(Act::Write(to), |from| Act::Cas { from, to, moved: true });
                    match (done.outcome, done.answer) {
                        (Outcome::Ok, _) => {
                            last = to;
                            Some(Op { act, began: done.began, ended: Some(done.ended) })
                        }
                        (_, Err(error)) if error.kind() == ErrorKind::Conflict => {
                            let act = Act::Cas { from, to, moved: false };
                            Some(Op { act, began: done.began, ended: Some(done.ended) })
                        }
                        (Outcome::Unknown, _) => {
                            self.weight.fetch_add(UNKNOWN_WEIGHT, Ordering::Relaxed);
                            Some(Op { act, began: done.began, ended: None })
                        }
                        _ => None,
                    }
                }
            };
            if let Some(op) = op {
                lock(&self.ops).push((key, op));
            }
            site.breathe(&mut random, 40).await;
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let mut keys: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
        for (key, op) in lock(&self.ops).iter() {
            keys.entry(*key).or_default().push(*op);
        }
        // The end counts too: every node's last word on each of the newest aliases is a read.
        let newest: Vec<u64> = keys.keys().rev().take(4).copied().collect();
        for (node, client) in site.finals() {
            for key in &newest {
                let alias = format!("a{key}");
                let ask = Ask {
                    workload: NAME,
                    client: u32::MAX,
                    node,
                    what: What::Read { alias: alias.clone() },
                    writes: false,
                };
                let done = site.act(ask, value(client, &alias), u32::to_string).await;
                let act = Act::Read(done.answer?);
                keys.entry(*key).or_default().push(Op { act, began: done.began, ended: Some(done.ended) });
            }
        }
        let mut found = tokio::task::spawn_blocking(move || {
            keys.iter().filter_map(|(key, ops)| explain(*key, ops)).collect::<Vec<_>>()
        })
        .await?;
        found.extend(histories(site).await?);
        Ok(found)
    }
}

/// The alias's history on each node must be a chain: each move comes from where the one before went.
async fn histories(site: &Site) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (node, client) in site.finals() {
        let mut at: HashMap<String, u32> = HashMap::new();
        let mut moves = client.alias_history(PROJECT, MODEL).await?;
        moves.sort_by_key(|moved| (moved.alias.clone(), moved.moved_us));
        for moved in moves {
            let before = at.insert(moved.alias.clone(), moved.to_version).unwrap_or(0);
            if before != moved.from_version {
                found.push(format!(
                    "{node}: a move of `{}` says it came from {}, but the alias was at {before}",
                    moved.alias, moved.from_version
                ));
            }
        }
    }
    Ok(found)
}

fn explain(key: u64, ops: &[Op]) -> Option<String> {
    match linear::check(ops) {
        Verdict::Linearizable => None,
        Verdict::TooHard => Some(format!("alias a{key}: {} operations are too hard to decide", ops.len())),
        Verdict::Not { placed, stuck } => {
            let op = ops.get(stuck)?;
            let ended = op.ended.unwrap_or_default();
            let mut near: Vec<&Op> = ops
                .iter()
                .filter(|it| it.began <= ended && it.ended.is_none_or(|end| end + 2_000_000 > op.began))
                .collect();
            near.sort_by_key(|op| op.began);
            let words: Vec<String> = near.iter().rev().take(12).rev().map(|op| format!("{op:?}")).collect();
            Some(format!(
                "alias a{key}: not linearizable: after {placed} of {} operations nothing explains {op:?}; around it: {}",
                ops.len(),
                words.join("; ")
            ))
        }
    }
}

async fn value(client: &Client, alias: &str) -> cairn_client::Result<u32> {
    match client.model_version(PROJECT, MODEL, &VersionOf::Alias(alias.to_owned())).await {
        Ok(version) => Ok(version.version),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

async fn promote(client: &Client, alias: &str, expected: Option<u32>, to: u32) -> cairn_client::Result<()> {
    let expected = match expected {
        None => Expected::Anything,
        Some(0) => Expected::None,
        Some(version) => Expected::Version(version),
    };
    let ask = Promotion { project: PROJECT, model: MODEL, alias, version: to, expected, author: "jepsen", reason: "" };
    client.promote(&ask).await.map(|_| ())
}

workload!(Register, NAME, clients: 4, least_ok_per_minute: 200);
