//! The short form of `make jepsen`: 20 kills, ten on one node and ten on three.

use cairn_jepsen::Result;
use cairn_jepsen::kills::{Plan, run};

async fn nothing_acknowledged_is_lost(nodes: usize, kills: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(nodes as u64);
    let plan = Plan { cairnd: cairn_client::local::cairnd()?, nodes, kills, writers: 2, seed };
    let verdict = run(plan, folder.path()).await?;
    print!("{}", verdict.print());
    assert!(verdict.holds(), "{}", verdict.print());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_single_node_loses_nothing_acknowledged() -> Result<()> {
    nothing_acknowledged_is_lost(1, 10).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_any_of_three_nodes_loses_nothing_acknowledged() -> Result<()> {
    nothing_acknowledged_is_lost(3, 10).await
}
