//! What must hold once every node is back: nothing acknowledged is missing, nothing is torn, nothing happened twice.

use super::workload::{self, MODEL, PROJECT, Row, Told};
use crate::Result;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, Options, read};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Rows asked for at a time.
const ASK_ROWS: usize = 8_192;

/// Violations found on any node, in words. Empty = none.
pub async fn all(cluster: &LocalCluster, told: &Told) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in cluster.nodes() {
        let options = Options { deadline: Duration::from_secs(60), ..Options::default() };
        let client = Client::with_options(&node.address, options).await?;
        rows(&client, &node.name, told, &mut found).await?;
        aliases(&client, &node.name, told, &mut found).await?;
        artifacts(&client, cluster.folder(), &node.name, told, &mut found).await?;
    }
    Ok(found)
}

async fn rows(client: &Client, node: &str, told: &Told, found: &mut Vec<String>) -> Result<()> {
    for part in told.rows_ok.chunks(ASK_ROWS) {
        let ask = cairn_client::command::GetOnlineFeatures {
            features: Some(vec!["state".to_owned()]),
            read: read::linearizable(),
            ..read::online(PROJECT)
        };
        let (batch, _) = client.online_features(ask).read(&workload::questions(part)).await?;
        for (row, got) in part.iter().zip(workload::nonces(&batch)) {
            let Row { thing_id, event_us, nonce } = *row;
            match got {
                Some((found_nonce, twin)) if found_nonce == nonce && twin == -nonce => {}
                Some((found_nonce, twin)) => found.push(format!(
                    "{node}: thing {thing_id} at {event_us} reads ({found_nonce}, {twin}), acknowledged was ({nonce}, {})",
                    -nonce
                )),
                None => found.push(format!("{node}: thing {thing_id} at {event_us}: the acknowledged row is missing")),
            }
        }
    }
    Ok(())
}

async fn aliases(client: &Client, node: &str, told: &Told, found: &mut Vec<String>) -> Result<()> {
    let moves = client.alias_history(PROJECT, MODEL).await?;
    let mut moves: Vec<_> = moves.into_iter().map(|it| (it.moved_us, it.from_version, it.to_version)).collect();
    moves.sort();
    let mut at = 0;
    let mut counted: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for (_, from, to) in &moves {
        if *from != at {
            found.push(format!("{node}: an alias move says it came from {from}, but the alias was at {at}"));
        }
        at = *to;
        *counted.entry((*from, *to)).or_default() += 1;
    }
    let mut acknowledged: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for pair in &told.moves_ok {
        *acknowledged.entry(*pair).or_default() += 1;
    }
    for (pair, count) in acknowledged {
        let kept = counted.get(&pair).copied().unwrap_or(0);
        if kept < count {
            found.push(format!(
                "{node}: {count} moves {} to {} were acknowledged, the history has {kept}",
                pair.0, pair.1
            ));
        }
    }
    let most = told.moves_ok.len() + told.moves_unknown;
    if moves.len() > most {
        found.push(format!(
            "{node}: {} moves happened, but only {most} were asked for: one happened twice",
            moves.len()
        ));
    }
    if workload::current(client).await != Some(at) {
        found.push(format!("{node}: the alias does not point where its history ends, at {at}"));
    }
    Ok(())
}

async fn artifacts(client: &Client, folder: &Path, node: &str, told: &Told, found: &mut Vec<String>) -> Result<()> {
    for (root, bytes) in &told.artifacts_ok {
        let file = folder.join("downloaded");
        match client.download_file(root, &file, None).await {
            Ok(_) if std::fs::read(&file)? == *bytes => {}
            Ok(size) => found.push(format!("{node}: artifact {root} is {size} other bytes")),
            Err(error) => found.push(format!("{node}: artifact {root}: {error}")),
        }
    }
    Ok(())
}
