//! Who breaks things: one fault or two at a time, held for a while, then mended.
//!
//! - [`process`]: kill -9, pauses, restart storms
//! - [`network`]: partitions of all shapes, delay, loss, slow links
//! - [`corruption`]: flipped bits and cut files on a node that is down
//! - [`slots`]: slots that move to other shards, for good measure
//! - [`time`]: wall clocks that jump, clocks that run too fast or too slow
//! - [`members`]: leads that move in a storm, nodes that drain, leave and come back as new ones
//!
//! The seed decides what happens to whom and for how long; the processes' own timing is not replayed. A fault takes at
//! most a minority of the nodes away, but for a storm, which kills all at once.

pub mod corruption;
pub mod members;
pub mod network;
pub mod process;
pub mod slots;
pub mod time;

use crate::Result;
use crate::fleet::Fleet;
use crate::history::History;
use crate::operator::Trouble;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use std::time::{Duration, Instant};

/// Election time-outs of `cairnd` are up to this long: holding longer than a few shows nothing new.
const ELECTION_MS: u64 = 3_000;

/// Names of all kinds.
pub const ALL: [&str; 20] = [
    "kill",
    "pause",
    "storm",
    "majority",
    "leader-alone",
    "one-way",
    "bridge",
    "ring",
    "delay",
    "loss",
    "slow",
    "flip",
    "cut-file",
    "clock-jump",
    "clock-rate",
    "transfers",
    "drain",
    "renew",
    "disk-full",
    "slots",
];

/// Kinds that need libfaketime.
pub const CLOCKS: [&str; 2] = ["clock-jump", "clock-rate"];
/// The kind that needs small disks.
pub const SMALL_DISKS_ONLY: &str = "disk-full";
/// Kinds that need a network which can do more than cut.
pub const PROXY_ONLY: [&str; 3] = ["delay", "loss", "slow"];

/// What the nemesis found out by itself.
#[derive(Debug, Default)]
pub struct Found {
    /// Nodes that did not come back, damage that went unnoticed.
    pub violations: Vec<String>,
    /// Damaged files that a node refused, by name.
    pub detected: usize,
    /// Why the run proves nothing.
    pub too_little: Vec<String>,
}

impl Found {
    /// What kept nodes from being whole after `when`.
    pub fn trouble(&mut self, when: &str, trouble: Trouble) {
        match trouble {
            Trouble::Violation(why) => self.violations.push(format!("{when}: {why}")),
            Trouble::Overload(why) => self.too_little.push(format!("{when}: {why}")),
        }
    }
}

/// Breaks things until `until`.
///
/// # Errors
/// A kind that is none of [`ALL`], and trouble of the harness.
pub async fn rage(
    fleet: &mut Fleet,
    kinds: &[String],
    random: &mut StdRng,
    history: &History,
    until: Instant,
) -> Result<Found> {
    let mut found = Found::default();
    let mut bag: Vec<&'static str> = Vec::new();
    while Instant::now() < until {
        rest(random, 200, 1_500).await;
        let mut together = vec![draw(&mut bag, kinds, random)?];
        if random.random_range(0..4) == 0 {
            together.push(draw(&mut bag, kinds, random)?);
        }
        let began = history.now();
        let mut struck = Vec::new();
        for kind in together {
            struck.extend(strike(kind, fleet, random, &mut found).await?.map(|what| (kind, what)));
        }
        hold(random, until).await;
        fleet.mend().await?;
        for (kind, what) in struck {
            history.fault(kind, what, began);
        }
        // In the middle of a recovery is a moment for the next fault too.
        if random.random_range(0..3) > 0
            && let Err(trouble) = fleet.recovered().await
        {
            found.trouble("after a fault", trouble);
            return Ok(found);
        }
    }
    fleet.mend().await?;
    Ok(found)
}

/// Does it; says what was done, or `None` when it could not be done now.
async fn strike(kind: &str, fleet: &mut Fleet, random: &mut StdRng, found: &mut Found) -> Result<Option<String>> {
    match kind {
        "kill" => process::kill(fleet, random).await.map(Some),
        "pause" => process::pause(fleet, random).await.map(Some),
        "storm" => process::storm(fleet, random).await.map(Some),
        "disk-full" => process::fill_disk(fleet, random).map(Some),
        "slots" => slots::shift(fleet, random).await,
        "flip" => corruption::damage(fleet, random, corruption::Damage::Flip, found).await,
        "cut-file" => corruption::damage(fleet, random, corruption::Damage::Cut, found).await,
        "clock-jump" => time::jump(fleet, random).await,
        "clock-rate" => time::rate(fleet, random).await,
        "transfers" => Ok(members::transfers(fleet, random).await),
        "drain" => Ok(members::drain(fleet, random).await),
        "renew" => Ok(members::renew(fleet, random).await),
        _ => network::strike(kind, fleet, random).await,
    }
}

/// All kinds in turn, in an order of chance, so that a short run meets each.
fn draw(bag: &mut Vec<&'static str>, kinds: &[String], random: &mut StdRng) -> Result<&'static str> {
    if bag.is_empty() {
        for kind in kinds {
            let known = ALL.iter().find(|known| *known == kind);
            bag.push(known.ok_or_else(|| format!("there is no nemesis `{kind}`; there are {}", ALL.join(", ")))?);
        }
        bag.shuffle(random);
    }
    bag.pop().ok_or_else(|| "no nemesis is named".into())
}

/// From a tenth of an election time-out to three of them; short ones as often as long ones.
async fn hold(random: &mut StdRng, until: Instant) {
    let longest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(200);
    let share: f64 = random.random_range(0.0..1.0);
    let ms = ELECTION_MS as f64 / 10.0 * 30f64.powf(share);
    tokio::time::sleep(Duration::from_millis(ms as u64).min(longest)).await;
}

async fn rest(random: &mut StdRng, least_ms: u64, most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(least_ms..most_ms))).await;
}

/// How many nodes may be away.
fn minority(fleet: &Fleet) -> usize {
    ((fleet.size() - 1) / 2).max(1)
}

/// One node in three times the leader, else any that is up.
async fn victim(fleet: &Fleet, random: &mut StdRng) -> Option<usize> {
    let up: Vec<usize> = (0..fleet.size()).filter(|&at| fleet.is_up(at)).collect();
    if random.random_range(0..3) == 0
        && let Some(leader) = fleet.leader().await
    {
        return Some(leader);
    }
    up.choose(random).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_kind_comes_before_one_comes_again() {
        let kinds = ALL.map(str::to_owned);
        let (mut bag, mut random) = (Vec::new(), StdRng::seed_from_u64(1));
        let mut drawn: Vec<_> = (0..ALL.len()).map(|_| draw(&mut bag, &kinds, &mut random).unwrap()).collect();
        drawn.sort_unstable();
        let mut all = ALL;
        all.sort_unstable();
        assert_eq!(drawn, all);
        assert!(draw(&mut bag, &["kil".to_owned()], &mut random).unwrap_err().to_string().contains("`kil`"));
    }
}
