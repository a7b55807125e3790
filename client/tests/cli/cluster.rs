//! `cairn cluster`, on a cluster of one: what is shown, and what is refused because nobody else is there.

use super::support::{Cli, TestResult};

#[tokio::test]
async fn every_replica_is_shown() -> TestResult {
    let cli = Cli::start().await?;
    let said = cli.run("cluster status").await?;
    assert_eq!((said.code, said.errors.as_str()), (Some(0), ""));
    for line in ["cluster ", "n1 (asked)", "active", "meta ", "shard 1 ", "shard 2 ", "leader"] {
        assert!(said.out.contains(line), "{line}: {}", said.out);
    }
    let document: serde_json::Value = serde_json::from_str(&cli.run("cluster status --output json").await?.out)?;
    assert_eq!(document["nodes"][0]["state"], "active");
    assert_eq!(document["nodes"][0]["answered"], true);
    assert_eq!(document["groups"].as_array().map(Vec::len), Some(3));
    assert_eq!(document["groups"][1]["replicas"][0]["ready"], true);
    assert_eq!(document["groups"][1]["replicas"][0]["lag"], 0);
    cli.end().await
}

#[tokio::test]
async fn the_last_node_cannot_be_spared() -> TestResult {
    let cli = Cli::start().await?;
    for (line, code, part) in [
        (
            "cluster add",
            0,
            "a node adds itself: start it on its machine, with an empty data directory: cairnd --data-dir DIR",
        ),
        ("cluster add n1", 0, "node `n1` (id 1) is in the cluster and has caught up with every group"),
        ("cluster add n2 --timeout 1", 5, "--join 127.0.0.1:"),
        ("cluster transfer-leader 1 n1", 0, "node `n1` leads group 1 already"),
        ("cluster transfer-leader 1 N1", 3, "node `N1` not found; did you mean `n1`?"),
        ("cluster transfer-leader 7 n1", 2, "no group 7; groups are 0 to 2"),
        ("cluster drain n1", 2, "nobody could lead in its place"),
        ("cluster drain n1 --undo", 0, "node `n1` is active"),
        ("cluster remove n1", 4, "would have no voter left"),
        ("cluster remove n1 --force", 2, "it is the last active node"),
        ("cluster remove somebody", 3, "node `somebody` not found; there is `n1`"),
        ("cluster rebalance", 0, "nothing to move: leads and voters are even"),
    ] {
        let said = cli.run(line).await?;
        assert_eq!(said.code, Some(code), "{line}: {said:?}");
        assert!(said.out.contains(part) || said.errors.contains(part), "{line}: {said:?}");
    }
    cli.end().await
}
