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
        // Long enough that a machine that stands still for a moment still answers.
        ("cluster add n2 --timeout 5", 5, "--join 127.0.0.1:"),
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

#[tokio::test]
async fn slots_move_and_are_shown() -> TestResult {
    let cli = Cli::start().await?;
    let busy = "cluster move-slots 0-99 --to 2 --no-wait";
    for (line, code, part) in [
        ("cluster status", 0, "2048  0-2047"),
        ("cluster move-slots 7 --to 1", 2, "slots 7-7 are in shard 1 already"),
        ("cluster move-slots 9-7 --to 2", 2, "9-7 is no range of slots"),
        ("cluster move-slots 0-4096 --to 2", 2, "they go from 0 to 4095"),
        ("cluster move-slots 0-9 --to 3", 3, "shard 3 not found; this cluster has shards 1 to 2"),
        ("cluster move-slots 2000-2100 --to 2", 2, "2000-2047 in shard 1, 2048-2100 in shard 2; move the slots of one"),
        ("cluster move-slots a-b --to 2", 2, "`a` is no slot; write for instance 0-1023"),
        ("cluster move-slots 0-9", 2, "--to <SHARD>"),
        ("cluster move-slots --cancel", 3, "no move of slots is under way"),
        ("cluster move-slots 0-1023 --to 2", 0, "slots 0-1023 are in shard 2 (slot map 2)"),
        ("cluster status", 0, "3072  0-1023 2048-4095"),
        ("cluster move-slots 0-99 --to 1", 0, "slots 0-99 are in shard 1 (slot map 3)"),
        (busy, 0, "of slots 0-99 from shard 1 to shard 2 has begun; `cairn cluster status` shows how far it is"),
    ] {
        let said = cli.run(line).await?;
        assert_eq!(said.code, Some(code), "{line}: {said:?}");
        assert!(said.out.contains(part) || said.errors.contains(part), "{line}: {said:?}");
    }
    let document: serde_json::Value = serde_json::from_str(&cli.run("cluster status --output json").await?.out)?;
    assert!(document["slot_map_epoch"].as_u64() >= Some(3), "{document}");
    assert_eq!(
        document["slots"].as_array().and_then(|runs| runs.last()).map(|run| run["last"].clone()),
        Some(4095.into())
    );
    cli.end().await
}
