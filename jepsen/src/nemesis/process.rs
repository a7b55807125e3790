//! Processes die, stand still, come back, and find their disk full.

use super::{minority, victim};
use crate::Result;
use crate::fleet::Fleet;
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;

/// kill -9 of up to a minority; they stay down until mended.
pub async fn kill(fleet: &mut Fleet, random: &mut StdRng) -> Result<String> {
    let mut killed = Vec::new();
    for _ in 0..random.random_range(1..=minority(fleet)) {
        let away = (0..fleet.size()).filter(|&at| !fleet.is_up(at)).count();
        let Some(at) = victim(fleet, random).await else { break };
        if away < minority(fleet) {
            fleet.kill(at).await?;
            killed.push(at);
        }
    }
    Ok(fleet.names(&killed))
}

/// SIGSTOP of up to a minority; SIGCONT when mended.
pub async fn pause(fleet: &mut Fleet, random: &mut StdRng) -> Result<String> {
    let mut paused = Vec::new();
    for _ in 0..random.random_range(1..=minority(fleet)) {
        if let Some(at) = victim(fleet, random).await
            && !paused.contains(&at)
        {
            fleet.pause(at)?;
            paused.push(at);
        }
    }
    Ok(fleet.names(&paused))
}

/// Everything dies at once, and some nodes again while they start.
pub async fn storm(fleet: &mut Fleet, random: &mut StdRng) -> Result<String> {
    let all: Vec<usize> = (0..fleet.size()).collect();
    for &at in &all {
        fleet.kill(at).await?;
    }
    let rounds = random.random_range(1..4);
    for _ in 0..rounds {
        for &at in &all {
            fleet.start_node(at)?;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..1_500))).await;
        let at = random.random_range(0..fleet.size());
        fleet.kill(at).await?;
    }
    Ok(format!("all, then {rounds} more while they started"))
}

/// The disk of one node is full, or so nearly that it must not write, until mended.
pub fn fill_disk(fleet: &Fleet, random: &mut StdRng) -> Result<String> {
    let at = random.random_range(0..fleet.size());
    let left: u64 = if random.random() { 0 } else { 30 << 20 };
    match fleet.fill_disk(at, left)? {
        true => Ok(format!("{}, {} MiB left", fleet.name(at), left >> 20)),
        false => Err("`disk-full` needs `--small-disks`".into()),
    }
}
