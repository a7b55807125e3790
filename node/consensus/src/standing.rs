//! A node that was taken out of the cluster finds out, says so, and stops.
//!
//! It is in no group any more, so no leader tells it; it asks the nodes it knows: all of them when it starts, then one
//! after the other; and the one at `--join` when it knows none, because it was removed before any leader had told it
//! anything. One answer is enough: that a node was removed is a committed entry of meta, and never undone.

use crate::node::Node;
use crate::view;
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(2);

pub(crate) async fn watch(node: Arc<Node>, join: Option<String>) {
    for round in 0.. {
        let told = tokio::select! {
            () = node.stop.cancelled() => return,
            told = is_removed(&node, round, join.as_deref()) => told,
        };
        if told {
            node.fail(removed(&node));
            return;
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn is_removed(node: &Node, round: usize, join: Option<&str>) -> bool {
    let mut others = node.others(round);
    if round > 0 {
        others.truncate(1);
    }
    if let (true, Some(address)) = (others.is_empty(), join) {
        return view::ask_groups_at(node, address).await.is_ok_and(|answer| answer.removed);
    }
    let asked = others.into_iter().map(|id| view::ask_groups(node, id));
    futures::future::join_all(asked).await.into_iter().flatten().any(|answer| answer.removed)
}

fn removed(node: &Node) -> String {
    let dir = node.data_dir.lock().as_ref().map(|dir| dir.path().display().to_string()).unwrap_or_default();
    format!(
        "node `{}` (id {}) was removed from the cluster: move its data directory {dir} away and start it with `--join` to \
         join as a new node",
        node.identity.name,
        node.me()
    )
}
