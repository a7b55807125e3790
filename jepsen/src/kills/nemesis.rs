//! kill -9 of one node at a time, at random moments, and its restart.

use crate::Result;
use cairn_client::local::LocalCluster;
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;

/// A node is left alone this long at most before it is killed; up to as long it stays down.
const ALIVE_MS_MAX: u64 = 400;
const DOWN_MS_MAX: u64 = 200;

/// Kills `kills` times. Every third kill does not wait for the node to be back before the next one, unless that would
/// take a majority down.
pub async fn kill(cluster: &mut LocalCluster, kills: usize, random: &mut StdRng) -> Result<()> {
    let nodes = cluster.nodes().len();
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..ALIVE_MS_MAX))).await;
        let at = random.random_range(0..nodes);
        cluster.kill(at).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..DOWN_MS_MAX))).await;
        cluster.spawn(at)?;
        // In the middle of its recovery is a moment too.
        if random.random_range(0..3) > 0 {
            cluster.ready(at, nodes.min(3)).await?;
        }
    }
    for at in 0..nodes {
        cluster.ready(at, nodes.min(3)).await?;
    }
    Ok(())
}
