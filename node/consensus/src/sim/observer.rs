//! Looks at every process between two steps: who leads, what stands in the logs, whether anything has stopped.

use super::history::{Event, History};
use super::host::{Machine, Process};
use crate::codec;
use crate::node::Group;
use crate::types::*;
use crate::wal::Wal;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
pub struct Observer {
    leads: BTreeMap<(NodeId, GroupId), Vote>,
    /// What was seen of each log, by openraft's indexes.
    logs: BTreeMap<(NodeId, GroupId), BTreeMap<u64, (LeaderId, u64)>>,
}

impl Observer {
    /// `with_logs`: reads what is new in the logs too.
    pub fn look(&mut self, machines: &[Arc<Machine>], history: &mut History, with_logs: bool) {
        for process in machines.iter().filter_map(|machine| machine.process()) {
            for group in process.cluster.node().groups.values() {
                self.look_at(&process, group, history, with_logs);
            }
        }
    }

    fn look_at(&mut self, process: &Process, group: &Group, history: &mut History, with_logs: bool) {
        let node = process.cluster.node_id();
        let metrics = group.raft.server_metrics();
        let (state, vote, voters) = {
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            (metrics.state, metrics.vote, membership.get_joint_config().clone())
        };
        let leads = state == ServerState::Leader && self.leads.get(&(node, group.id)) != Some(&vote);
        // Whose log has failed in this very step stops in the next one; what it holds cannot be told any more.
        if process.cluster.wal().failed().is_some() {
            return;
        }
        if with_logs || leads {
            self.read_log(node, group.id, process.cluster.wal(), history);
        }
        if leads {
            self.leads.insert((node, group.id), vote);
            let log = self.logs.get(&(node, group.id));
            let last = log.and_then(|log| log.last_key_value()).map_or(0, |(last, _)| last + 1);
            history.see(&Event::Leads { node, group: group.id, vote, voters, last });
        }
    }

    /// Reads the log backwards to the last entry that is known already.
    fn read_log(&mut self, node: NodeId, group: GroupId, wal: &Wal, history: &mut History) {
        let known = self.logs.entry((node, group)).or_default();
        let Some((last, _)) = wal.group(group).last else { return };
        let first = wal.group(group).first_index.unwrap_or(last);
        // What was replaced and purged between two looks was never seen as it was at last.
        if known.first_key_value().is_some_and(|(oldest, _)| *oldest < first) {
            *known = known.split_off(&first);
            history.see(&Event::Purged { node, group, first: first + 1 });
        }
        let mut found = Vec::new();
        for index in (first..=last).rev() {
            let Ok(read) = wal.read(group, index..index + 1, usize::MAX) else { return };
            let Some((_, payload)) = read.into_iter().next() else { break };
            let Ok(id) = codec::decode_entry_log_id(index, &payload) else {
                history.fail(format!("entry {index} in the log of node {node}, group {group}, cannot be read"));
                return;
            };
            let seen = (id.leader_id, digest(&payload));
            found.push(seen);
            if known.get(&index) == Some(&seen) {
                break;
            }
        }
        let from = last + 1 - found.len() as u64;
        if found.len() == 1
            && known.last_key_value().map(|(last, _)| *last) == Some(last)
            && known.get(&last) == found.first()
        {
            return;
        }
        found.reverse();
        known.split_off(&from);
        known.extend((from..).zip(found.iter().copied()));
        history.see(&Event::Log { node, group, first: from + 1, entries: found });
    }
}

fn digest(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*blake3::hash(bytes).as_bytes().first_chunk().expect("a hash has 32 bytes"))
}
