//! Replicas are compared on a schedule: what no checksum of a block can see, a second copy can.
//!
//! A group's leader proposes an entry that changes nothing, and every replica takes the digest of its state right after it.
//! Each node then looks at the digests of the others and judges its own replicas: what a majority of the voters agrees on
//! is right, and a replica that differs from it condemns itself, on disk, until it is made new. Nobody condemns another:
//! a node that goes wrong can only take itself out. Where no majority agrees, an alarm is raised and nothing stops,
//! because nobody can say who is right.

use crate::machine;
use crate::node::Node;
use crate::propose;
use crate::types::*;
use crate::view::{self, ClusterView};
use cairn_storage::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Looks in an interval, at least.
const LOOKS: u32 = 8;
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A digest that cannot be judged for this long, because others are away or hash slowly, is let go.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(300);

/// How comparisons of this node's replicas ended.
#[derive(Debug, Default)]
pub(crate) struct Audits {
    pub equal: AtomicU64,
    pub differing: AtomicU64,
    /// The replicas differed, and no majority agreed.
    pub split: AtomicU64,
    /// Too few of the others had a digest in time.
    pub undecided: AtomicU64,
}

/// What one group's audits have come to, on this node.
struct Audited {
    /// When the last one was seen; before the first, from when on the interval counts.
    last: Instant,
    /// Newest digest judged or let go.
    done: u64,
    /// Digests that wait for those of others.
    waiting: Vec<(Digest, Instant)>,
}

pub(crate) async fn run(node: Arc<Node>) {
    let Some(interval) = node.audit_interval else { return };
    let began = Instant::now();
    // Spread over the interval, so that groups are hashed one after the other.
    let step = interval / u32::try_from(node.groups.len()).unwrap_or(u32::MAX).max(1);
    let fresh = |place: u32| Audited { last: began + step * place, done: 0, waiting: Vec::new() };
    let mut audited: BTreeMap<GroupId, Audited> =
        (0..).zip(node.groups.keys()).map(|(place, id)| (*id, fresh(place))).collect();
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep((interval / LOOKS).min(PAUSE_MAX)) => {}
        }
        for (id, group) in &node.groups {
            let Some(audited) = audited.get_mut(id) else { continue };
            for digest in group.replica.digests() {
                if digest.index > audited.done && audited.waiting.iter().all(|(it, _)| it.index != digest.index) {
                    audited.waiting.push((digest, Instant::now()));
                    audited.last = Instant::now();
                }
            }
            if audited.last.elapsed() >= interval {
                audited.last = Instant::now();
                ask(&node, group, interval).await;
            }
        }
        if audited.values().any(|audited| !audited.waiting.is_empty()) {
            let view = view::gather(&node).await;
            for (id, audited) in &mut audited {
                look(&node, *id, audited, &view).await;
            }
        }
    }
}

/// Has the digests of a group taken, if this node leads it and somebody else has a replica.
async fn ask(node: &Arc<Node>, group: &Arc<crate::node::Group>, interval: Duration) {
    let status = group.status(node.me());
    if !status.is_leader || status.voters.len() + status.learners.len() < 2 {
        return;
    }
    let now_us = (node.clock)();
    // By the clock, so that whoever leads goes on with the next part.
    let round = now_us.unsigned_abs() / u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let Some(command) = group.replica.audit(round, now_us) else { return };
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    if let Err(error) = propose::propose(node, group, command.into(), true, deadline).await {
        tracing::info!(group = group.id, %error, "an audit was not begun");
    }
}

async fn look(node: &Arc<Node>, id: GroupId, audited: &mut Audited, view: &ClusterView) {
    let Some(group) = node.groups.get(&id) else { return };
    let voters = group.status(node.me()).voters;
    for (digest, since) in std::mem::take(&mut audited.waiting) {
        let others = others(view, node.me(), id, digest.index);
        let verdict = judge(node.me(), &digest, &voters, &others);
        let count = match &verdict {
            Verdict::Undecided if since.elapsed() < JUDGE_TIMEOUT => {
                audited.waiting.push((digest, since));
                continue;
            }
            Verdict::Undecided => &node.audits.undecided,
            Verdict::Equal => &node.audits.equal,
            Verdict::Differs(_) => &node.audits.differing,
            Verdict::Split => &node.audits.split,
        };
        count.fetch_add(1, Ordering::Relaxed);
        audited.done = audited.done.max(digest.index);
        match verdict {
            Verdict::Differs(agreed) => {
                let names = agreed.iter().map(|id| format!("`{}`", view.name(*id))).collect::<Vec<_>>().join(", ");
                let why = format!("its state after entry {} is not the one that {names} agree on", digest.index);
                let replica = group.replica.clone();
                let _ = machine::blocking(move || replica.condemn(&why)).await;
            }
            Verdict::Split => tracing::error!(
                group = id,
                index = digest.index,
                "the replicas of a group differ, and no majority agrees on what is right: nothing is stopped; compare \
                 them by hand, then make the wrong ones new with `--rebuild {id} --join PEER`"
            ),
            Verdict::Equal => tracing::debug!(group = id, index = digest.index, "the replicas are equal"),
            Verdict::Undecided => {
                tracing::info!(group = id, index = digest.index, "too few replicas had a digest to compare");
            }
        }
    }
}

/// What other nodes have for the same entry.
fn others(view: &ClusterView, me: NodeId, group: GroupId, index: u64) -> BTreeMap<NodeId, [u8; 32]> {
    let digest_of = |node: &view::NodeView| {
        let report = node.report.as_ref().ok()?;
        let status = report.groups.iter().find(|status| status.group == group)?;
        let digest = status.digests.iter().find(|digest| digest.index == index)?;
        Some((node.node.id, digest.blake3))
    };
    view.nodes.iter().filter(|node| node.node.id != me).filter_map(digest_of).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    /// From a majority of the voters, which are these.
    Differs(Vec<NodeId>),
    /// Every voter has a digest, and no majority has the same.
    Split,
    Undecided,
}

/// Compares `mine` with the digests that others took after the same entry.
fn judge(me: NodeId, mine: &Digest, voters: &[NodeId], others: &BTreeMap<NodeId, [u8; 32]>) -> Verdict {
    let mut by_digest: BTreeMap<[u8; 32], Vec<NodeId>> = BTreeMap::new();
    for voter in voters {
        let digest = if *voter == me { Some(&mine.blake3) } else { others.get(voter) };
        if let Some(digest) = digest {
            by_digest.entry(*digest).or_default().push(*voter);
        }
    }
    let answered: usize = by_digest.values().map(Vec::len).sum();
    match by_digest.into_iter().find(|(_, agreed)| agreed.len() > voters.len() / 2) {
        Some((digest, _)) if digest == mine.blake3 => Verdict::Equal,
        Some((_, agreed)) => Verdict::Differs(agreed),
        None if answered == voters.len() && answered > 0 => Verdict::Split,
        None => Verdict::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(me: NodeId, mine: u8, voters: &[NodeId], others: &[(NodeId, u8)]) -> Verdict {
        let others = others.iter().map(|(node, byte)| (*node, [*byte; 32])).collect();
        judge(me, &Digest { index: 9, blake3: [mine; 32] }, voters, &others)
    }

    #[test]
    fn a_majority_of_the_voters_is_right() {
        let three = [1, 2, 3];
        assert_eq!(verdict(1, 7, &three, &[(2, 7)]), Verdict::Equal);
        assert_eq!(verdict(1, 7, &three, &[(2, 7), (3, 8)]), Verdict::Equal);
        assert_eq!(verdict(3, 8, &three, &[(1, 7), (2, 7)]), Verdict::Differs(vec![1, 2]));
        // A learner judges itself by the voters, and nobody by a learner.
        assert_eq!(verdict(4, 8, &three, &[(1, 7), (2, 7)]), Verdict::Differs(vec![1, 2]));
        assert_eq!(verdict(1, 7, &three, &[(4, 7)]), Verdict::Undecided);
        assert_eq!(verdict(1, 7, &[1], &[(4, 8)]), Verdict::Equal);
    }

    #[test]
    fn without_a_majority_nobody_is_wrong() {
        assert_eq!(verdict(1, 7, &[1, 2], &[(2, 8)]), Verdict::Split);
        assert_eq!(verdict(1, 7, &[1, 2, 3], &[(2, 8), (3, 9)]), Verdict::Split);
        assert_eq!(verdict(1, 7, &[1, 2, 3], &[(2, 8)]), Verdict::Undecided);
        assert_eq!(verdict(4, 7, &[1, 2], &[]), Verdict::Undecided);
        assert_eq!(verdict(1, 7, &[], &[]), Verdict::Undecided);
    }
}
