//! Which jobs run on this node: all that have not ended, while it leads meta.

use super::{fill, set_state};
use crate::node::Node;
use cairn_proto::record::v1::{Job, JobState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Between two looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Jobs under way side by side; the others wait, oldest first.
const RUNNING_MAX: usize = 2;

/// A run of a job that may be under way.
struct Running {
    revision: u64,
    /// Asks it to end once what it has sent is committed.
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Drives jobs for as long as the node runs.
pub async fn drive(node: Arc<Node>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut running: BTreeMap<u64, Running> = BTreeMap::new();
    loop {
        looks.tick().await;
        running.retain(|_, it| !it.task.is_finished());
        let leads = node.cluster.leader(0) == Some(node.cluster.node_id());
        if !leads && running.is_empty() {
            continue;
        }
        let catalog = node.meta.catalog();
        for (id, it) in &running {
            let goes_on = leads
                && catalog.job(*id).is_ok_and(|job| job.state() == JobState::Running && job.revision == it.revision);
            if !goes_on {
                it.stop.cancel();
            }
        }
        if !leads {
            continue;
        }
        for job in catalog.jobs().filter(|job| job.ended_us == 0) {
            if running.contains_key(&job.id) {
                continue;
            }
            match job.state() {
                JobState::Running if running.len() < RUNNING_MAX => {
                    running.insert(job.id, start(&node, job));
                }
                // Nothing of it is under way here.
                JobState::Cancelling => {
                    match set_state(&node, job.id, JobState::Cancelled, String::new(), job.revision).await {
                        Ok(_) => tracing::info!(job = job.id, "a job is cancelled"),
                        Err(error) => tracing::debug!(job = job.id, %error, "a job is not cancelled yet"),
                    }
                }
                _ => {}
            }
        }
    }
}

fn start(node: &Arc<Node>, job: &Arc<Job>) -> Running {
    let stop = CancellationToken::new();
    let task = tokio::spawn(fill::run(Arc::clone(node), Arc::clone(job), stop.clone()));
    Running { revision: job.revision, stop, task: AbortOnDropHandle::new(task) }
}
