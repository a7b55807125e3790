//! Members change while everything else goes on: leads move, nodes drain, leave, and come back as somebody else.

use crate::fleet::Fleet;
use cairn_client::ErrorKind;
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;

const TRANSFERS: std::ops::Range<usize> = 5..25;

/// Leads of chance go to nodes of chance, one after the other; `None` when none moved.
pub async fn transfers(fleet: &Fleet, random: &mut StdRng) -> Option<String> {
    let groups = groups(fleet).await?;
    let asked = random.random_range(TRANSFERS);
    let mut moved = 0usize;
    for _ in 0..asked {
        let (group, to) = (groups[random.random_range(0..groups.len())], random.random_range(0..fleet.size()));
        // Refusals are part of the storm: a node that is behind or away gets no lead.
        let patience = Duration::from_millis(random.random_range(50..500));
        let name = fleet.name(to);
        let transfer = fleet.hand.transfer_leader(group, &name);
        moved += usize::from(matches!(tokio::time::timeout(patience, transfer).await, Ok(Ok(_))));
    }
    (moved > 0).then(|| format!("{moved} of {asked} leads moved"))
}

/// A node leads nothing until mended.
pub async fn drain(fleet: &mut Fleet, random: &mut StdRng) -> Option<String> {
    let at = random.random_range(0..fleet.size());
    if fleet.care.is_leaving(at) {
        return None;
    }
    let drained = fleet.hand.drain_node(&fleet.name(at), false).await;
    match drained {
        Ok(_) => {}
        Err(error) if is_unknown(error.kind()) => {}
        Err(_) => return None,
    }
    fleet.care.was_drained(at);
    Some(fleet.name(at))
}

/// A node leaves the cluster, loses its disk, and joins as a new one, which is completed when mended.
pub async fn renew(fleet: &mut Fleet, random: &mut StdRng) -> Option<String> {
    if fleet.care.is_needed() {
        return None;
    }
    let at = random.random_range(0..fleet.size());
    let removed = fleet.hand.remove_node(&fleet.name(at), false).await;
    match removed {
        Ok(_) => fleet.care.was_removed(at, true),
        Err(error) if is_unknown(error.kind()) => fleet.care.was_removed(at, false),
        // Not while another node is away, for instance.
        Err(_) => return None,
    }
    Some(fleet.name(at))
}

fn is_unknown(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Timeout | ErrorKind::Internal | ErrorKind::Unavailable)
}

async fn groups(fleet: &Fleet) -> Option<Vec<u32>> {
    for eye in &fleet.eyes {
        if let Ok(status) = eye.status().await
            && !status.groups.is_empty()
        {
            return Some(status.groups.iter().map(|group| group.group).collect());
        }
    }
    None
}
