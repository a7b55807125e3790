//! A state machine and a host for tests: like the real one it loses what was not checkpointed.

use crate::options::Host;
use crate::types::*;
use cairn_proto::record::v1::{self as record, NodeState, meta_command::Change, meta_outcome::Outcome as Kind};
use cairn_storage::Fatal;
use cairn_storage::digest::Digest;
use cairn_storage::replica::{Applied, Entry, Replica};
use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keeps every command. Group 0 also understands the meta commands this crate proposes.
#[derive(Debug, Default)]
pub struct MemoryReplica {
    dir: Option<PathBuf>,
    meta: bool,
    state: Mutex<State>,
    digests: Mutex<Vec<Digest>>,
    condemned: Mutex<Option<String>>,
}

/// The command that asks for a digest, in every group but meta.
pub const AUDIT: &str = "audit";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    position: Option<Vec<u8>>,
    index: u64,
    commands: Vec<Vec<u8>>,
    answers: BTreeMap<String, Vec<u8>>,
    cluster: Vec<u8>,
    nodes: Vec<Vec<u8>>,
}

const FILE: &str = "state.sst";

fn fatal(error: impl std::fmt::Display) -> Fatal {
    Fatal(error.to_string())
}

impl MemoryReplica {
    pub fn open(dir: &Path, meta: bool) -> Self {
        let state = fs::read(dir.join(FILE)).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
        Self { dir: Some(dir.to_owned()), meta, state: Mutex::new(state.unwrap_or_default()), ..Self::default() }
    }

    pub fn commands(&self) -> Vec<Vec<u8>> {
        self.state.lock().commands.clone()
    }

    /// Makes the state another than its entries say.
    pub fn spoil(&self) {
        self.state.lock().commands.push(b"nobody wrote this".to_vec());
    }

    fn all_nodes(&self) -> Vec<record::Node> {
        self.state.lock().nodes.iter().map(|node| record::Node::decode(node.as_slice()).unwrap()).collect()
    }

    pub fn nodes(&self) -> Vec<record::Node> {
        self.all_nodes().into_iter().filter(|node| node.state() != NodeState::Removed).collect()
    }

    pub fn removed(&self) -> Vec<NodeId> {
        let removed = self.all_nodes().into_iter().filter(|node| node.state() == NodeState::Removed);
        removed.map(|node| node.id).collect()
    }
}

impl State {
    fn apply_meta(&mut self, index: u64, bytes: &[u8]) -> Vec<u8> {
        let done = Kind::Done(record::Done {});
        let Ok(command) = record::MetaCommand::decode(bytes) else { return Vec::new() };
        if let Some(answer) = self.answers.get(&command.request_id) {
            return answer.clone();
        }
        let outcome = match command.change {
            Some(Change::InitCluster(init)) => {
                let cluster = record::ClusterInfo {
                    cluster_id: init.cluster_id,
                    shards: init.shards,
                    ..record::ClusterInfo::default()
                };
                self.cluster = cluster.encode_to_vec();
                self.nodes = vec![init.first_node.unwrap().encode_to_vec()];
                done
            }
            Some(Change::AddNode(_)) if self.cluster.is_empty() => {
                let message = "the cluster is not made yet; try again".into();
                Kind::Refused(record::Refusal { kind: "conflict".into(), message })
            }
            Some(Change::AddNode(add)) => {
                let mut nodes: Vec<record::Node> =
                    self.nodes.iter().map(|node| record::Node::decode(node.as_slice()).unwrap()).collect();
                if nodes.iter().any(|node| node.name == add.name && node.state() != NodeState::Removed) {
                    let message = format!("node `{}` is already in the cluster", add.name);
                    Kind::Refused(record::Refusal { kind: "already_exists".into(), message })
                } else {
                    let (name, peer_address) = (add.name, add.peer_address);
                    nodes.push(record::Node { id: index, name, peer_address, ..record::Node::default() });
                    self.nodes = nodes.iter().map(Message::encode_to_vec).collect();
                    let cluster = record::ClusterInfo::decode(self.cluster.as_slice()).ok();
                    Kind::NodeAdded(record::NodeAdded { id: index, cluster, nodes })
                }
            }
            Some(Change::UpdateNode(update)) => {
                for bytes in &mut self.nodes {
                    let mut node = record::Node::decode(bytes.as_slice()).unwrap();
                    if node.id == update.id {
                        node.peer_address = update.peer_address.clone();
                        node.client_address = update.client_address.clone();
                        *bytes = node.encode_to_vec();
                    }
                }
                done
            }
            Some(Change::ChangeNodeState(ask)) => {
                for bytes in &mut self.nodes {
                    let mut node = record::Node::decode(bytes.as_slice()).unwrap();
                    if node.id == ask.id && node.state() != NodeState::Removed {
                        (node.state, node.forced) = (ask.state, ask.forced);
                        *bytes = node.encode_to_vec();
                    }
                }
                done
            }
            _ => done,
        };
        let answer = record::MetaOutcome { outcome: Some(outcome), index, applied_us: 0 }.encode_to_vec();
        if !command.request_id.is_empty() {
            self.answers.insert(command.request_id, answer.clone());
        }
        answer
    }
}

impl Replica for MemoryReplica {
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal> {
        let mut state = self.state.lock();
        let mut outcomes = Vec::new();
        for entry in entries {
            let mut outcome = Vec::new();
            if entry.index > state.index {
                state.index = entry.index;
                if let Some(command) = entry.command {
                    if command == b"poison" {
                        return Err(Fatal("this command cannot be applied".into()));
                    }
                    state.commands.push(command.to_vec());
                    outcome = if self.meta { state.apply_meta(entry.index, command) } else { command.to_vec() };
                }
            }
            outcomes.push(outcome);
        }
        state.position = Some(position.to_vec());
        if let Some(last) = entries.last().filter(|last| last.command == Some(AUDIT.as_bytes())) {
            let blake3 = *blake3::hash(&state.commands.concat()).as_bytes();
            self.digests.lock().push(Digest { index: last.index, blake3 });
        }
        Ok(outcomes)
    }

    fn position(&self) -> Option<Vec<u8>> {
        self.state.lock().position.clone()
    }

    fn applied(&self) -> Applied {
        Applied { index: self.state.lock().index, time_us: 0 }
    }

    fn damage(&self) -> Option<String> {
        self.condemned.lock().clone()
    }

    fn condemn(&self, why: &str) {
        *self.condemned.lock() = Some(why.to_owned());
    }

    fn audit(&self, _: u64, _: i64) -> Option<Vec<u8>> {
        (!self.meta).then(|| AUDIT.into())
    }

    fn is_audit(&self, command: &[u8]) -> bool {
        command == AUDIT.as_bytes()
    }

    fn digests(&self) -> Vec<Digest> {
        self.digests.lock().clone()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal> {
        let state = self.state.lock();
        let bytes = serde_json::to_vec(&*state).map_err(fatal)?;
        if let Some(own) = &self.dir {
            fs::write(own.join(FILE), &bytes).map_err(fatal)?;
        }
        fs::create_dir(dir).map_err(fatal)?;
        fs::write(dir.join(FILE), &bytes).map_err(fatal)?;
        fs::write(dir.join("EMPTY"), b"").map_err(fatal)?;
        Ok(state.position.clone().unwrap_or_default())
    }

    fn install(&self, dir: &Path) -> Result<(), Fatal> {
        let mut state = self.state.lock();
        let bytes = fs::read(dir.join(FILE)).map_err(fatal)?;
        *state = serde_json::from_slice(&bytes).map_err(fatal)?;
        if let Some(own) = &self.dir {
            fs::write(own.join(FILE), &bytes).map_err(fatal)?;
        }
        fs::remove_dir_all(dir).map_err(fatal)
    }
}

#[derive(Debug, Default)]
pub struct TestHost(Mutex<BTreeMap<GroupId, Arc<MemoryReplica>>>);

impl TestHost {
    pub fn replica(&self, group: GroupId) -> Arc<MemoryReplica> {
        self.0.lock()[&group].clone()
    }

    pub fn commands(&self, group: GroupId) -> Vec<Vec<u8>> {
        self.0.lock().get(&group).map(|replica| replica.commands()).unwrap_or_default()
    }
}

impl Host for TestHost {
    fn check_replica(&self, _: GroupId, _: &Path) -> Result<(), cairn_storage::Error> {
        Ok(())
    }

    fn open_replica(&self, group: GroupId, dir: &Path) -> Result<Arc<dyn Replica>, cairn_storage::Error> {
        let replica = Arc::new(MemoryReplica::open(dir, group == 0));
        self.0.lock().insert(group, replica.clone());
        Ok(replica)
    }

    fn nodes(&self) -> Vec<record::Node> {
        self.0.lock().get(&0).map(|meta| meta.nodes()).unwrap_or_default()
    }

    fn removed_nodes(&self) -> Vec<NodeId> {
        self.0.lock().get(&0).map(|meta| meta.removed()).unwrap_or_default()
    }

    fn replication_factor(&self) -> u32 {
        0
    }

    fn artifacts_missing(&self) -> u64 {
        0
    }

    fn check_room(&self) -> Result<(), cairn_storage::Error> {
        Ok(())
    }
}
