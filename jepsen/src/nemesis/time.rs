//! Clocks go wrong: the wall clock of a node jumps, or all its clocks run too fast or too slow.

use super::victim;
use crate::Result;
use crate::clock::{RIGHT, Setting, seen_ahead_s};
use crate::fleet::Fleet;
use rand::Rng;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// A node dates its answers by a clock that it reads once a second.
const NOTICE: Duration = Duration::from_millis(5_000);
/// Below this a jump cannot be told from a second that ends.
const JUMP_LEAST_S: i64 = 3;
const JUMP_MOST_S: f64 = 300.0;

/// The wall clock of one node is wrong until mended; the leader's as often as not.
pub async fn jump(fleet: &mut Fleet, random: &mut StdRng) -> Result<Option<String>> {
    let Some(at) = victim(fleet, random).await else { return Ok(None) };
    let share: f64 = random.random_range(0.0..1.0);
    let size = (JUMP_LEAST_S as f64 * (JUMP_MOST_S / JUMP_LEAST_S as f64).powf(share)) as i64;
    let ahead_s = if random.random() { size } else { -size };
    fleet.set_clock(at, Setting { ahead_s, ..RIGHT })?;
    // It only counts when the node is seen to have it.
    let began = Instant::now();
    while began.elapsed() < NOTICE {
        let seen = seen_ahead_s(&fleet.cluster.nodes()[at].address).await;
        if seen.is_some_and(|seen| (seen - ahead_s).abs() < JUMP_LEAST_S) {
            return Ok(Some(format!("{}: {ahead_s:+} s", fleet.name(at))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fleet.set_clock(at, RIGHT)?;
    Ok(None)
}

/// One node starts again with all its clocks, and so its timers, up to a fifth too fast or too slow until mended.
pub async fn rate(fleet: &mut Fleet, random: &mut StdRng) -> Result<Option<String>> {
    let Some(at) = victim(fleet, random).await else { return Ok(None) };
    let rate = if random.random() { random.random_range(1.05..1.2) } else { random.random_range(0.8..0.95) };
    fleet.kill(at).await?;
    fleet.set_clock(at, Setting { rate, timers_too: true, ..RIGHT })?;
    fleet.start_node(at)?;
    Ok(Some(format!("{}: all clocks at {rate:.2} of their rate", fleet.name(at))))
}
