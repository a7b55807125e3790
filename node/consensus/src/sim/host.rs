//! A simulated machine and the process on it: what stays when the power goes, and what is told to the history.

use super::clients;
use super::disk;
use super::history::{self, Event};
use super::operator::Order;
use crate::identity::Identity;
use crate::options::{Host, NoBlobs, Options, SnapshotOptions, Start, Timers};
use crate::testing::MemoryReplica;
use crate::types::*;
use crate::wal::mem::MemFiles;
use crate::{Cluster, codec};
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1 as record;
use cairn_storage::Fatal;
use cairn_storage::replica::{Applied, Entry, Replica};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const PORT: u16 = 7701;
pub const SHARDS: u32 = 1;

/// What all machines of a run share.
pub struct World {
    pub machines: usize,
    pub replication_factor: u32,
    /// Clients stop when this is not set.
    pub busy: AtomicBool,
    /// Numbers operations.
    pub operations: AtomicU64,
    pub reads: AtomicU64,
}

pub struct Machine {
    pub number: usize,
    pub world: Arc<World>,
    /// Files beside the log; they are on a real file system and survive everything.
    dir: PathBuf,
    /// The log's, which forgets.
    pub disk: MemFiles,
    pub timers: Timers,
    pub snapshots: SnapshotOptions,
    /// The process may start.
    pub switched_on: AtomicBool,
    process: Mutex<Option<Process>>,
    /// Why the process could not start.
    pub failed_start: Mutex<Option<crate::Error>>,
    /// Writes acknowledged to clients of this machine.
    pub acknowledged: AtomicU64,
    pub orders: Mutex<VecDeque<Order>>,
    /// Its first node was removed: it joins, whichever machine it is.
    renewed: AtomicBool,
}

#[derive(Clone)]
pub struct Process {
    pub cluster: Arc<Cluster>,
    pub host: Arc<Replicas>,
}

impl Machine {
    pub fn new(number: usize, world: Arc<World>, dir: PathBuf, timers: Timers, snapshots: SnapshotOptions) -> Self {
        Self {
            number,
            world,
            dir,
            disk: MemFiles::default(),
            timers,
            snapshots,
            switched_on: AtomicBool::new(false),
            process: Mutex::default(),
            failed_start: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            orders: Mutex::default(),
            renewed: AtomicBool::new(false),
        }
    }

    pub fn name(&self) -> String {
        name(self.number)
    }

    pub fn process(&self) -> Option<Process> {
        self.process.lock().clone()
    }

    /// The process is about to be gone.
    pub fn forget_process(&self) {
        if let Some(process) = self.process.lock().take() {
            process.cluster.node().peers.close();
        }
        *self.failed_start.lock() = None;
    }

    /// New disks: whatever starts here is a new node. The process must be gone.
    pub fn renew(&self) {
        self.disk.wipe();
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", self.dir.display()),
            _ => {}
        }
        self.renewed.store(true, Ordering::Relaxed);
    }

    /// Runs the process until the power goes.
    pub async fn run(self: Arc<Self>) {
        while !self.switched_on.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let process = match Box::pin(self.start()).await {
            Ok(process) => process,
            Err(error) => {
                history::note(format!("{} does not start: {error}", self.name()));
                *self.failed_start.lock() = Some(error);
                return std::future::pending().await;
            }
        };
        history::note(format!("{} runs as node {}", self.name(), process.cluster.node_id()));
        *self.process.lock() = Some(process.clone());
        clients::run(self.clone(), process).await;
    }

    async fn start(&self) -> Result<Process, crate::Error> {
        let mut through = self.number;
        loop {
            through = if through <= 1 { self.world.machines } else { through - 1 };
            let how = match self.number {
                1 if !self.renewed.load(Ordering::Relaxed) => {
                    Start::Bootstrap { shards: SHARDS, replication_factor: 0 }
                }
                _ => Start::Join { address: address(through) },
            };
            let host = Arc::new(Replicas::new(self.world.clone()));
            // A real socket that nobody uses: the peer port is turmoil's.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
            let options = Options {
                peer_address: address(self.number),
                client_address: format!("clients-of-{}", self.name()),
                timers: self.timers,
                snapshots: self.snapshots,
                wal: disk::log_options(),
                log_files: Arc::new(self.disk.clone()),
                join_timeout: Duration::from_secs(2),
                ..Options::new(self.dir.clone(), self.name(), listener, clock(self.number))
            };
            match Cluster::start(options, how, host.clone(), Arc::new(NoBlobs)).await {
                Ok(cluster) => return Ok(Process { cluster, host }),
                // Nobody took it in, or a node that is out itself: it asks somebody else.
                Err(error) if may_ask_another(&error) && !self.dir.join("identity").exists() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn may_ask_another(error: &crate::Error) -> bool {
    error.kind() == ErrorKind::Unavailable || error.to_string().contains("was removed from this cluster")
}

pub fn name(number: usize) -> String {
    format!("n{number}")
}

fn address(number: usize) -> String {
    format!("{}:{PORT}", name(number))
}

/// Wall clocks are seconds apart; nothing but stamps may depend on them.
fn clock(number: usize) -> crate::options::Clock {
    fn now_us() -> i64 {
        turmoil::since_epoch().map_or(0, |now| now.as_micros() as i64)
    }
    match number % 3 {
        0 => || now_us() - 5_000_000,
        1 => now_us,
        _ => || now_us() + 5_000_000,
    }
}

/// The state machines of one process.
pub struct Replicas {
    world: Arc<World>,
    groups: Mutex<BTreeMap<GroupId, Arc<Watched>>>,
}

impl Replicas {
    fn new(world: Arc<World>) -> Self {
        Self { world, groups: Mutex::default() }
    }

    pub fn commands(&self, group: GroupId) -> Vec<Vec<u8>> {
        self.groups.lock().get(&group).map(|replica| replica.inner.commands()).unwrap_or_default()
    }

    pub fn applied(&self, group: GroupId) -> u64 {
        self.groups.lock().get(&group).map_or(0, |replica| replica.applied().index)
    }
}

impl Host for Replicas {
    fn check_replica(&self, _: GroupId, _: &Path) -> Result<(), cairn_storage::Error> {
        Ok(())
    }

    fn open_replica(&self, group: GroupId, dir: &Path) -> Result<Arc<dyn Replica>, cairn_storage::Error> {
        let identity = dir.ancestors().nth(2).expect("groups stand in the data directory").join("identity");
        let identity: Identity = serde_json::from_slice(&std::fs::read(identity).unwrap()).unwrap();
        let node = identity.node_id;
        let inner = MemoryReplica::open(dir, group == 0);
        history::see(&Event::Opened { node, group, index: inner.applied().index });
        let replica = Arc::new(Watched { node, group, inner });
        self.groups.lock().insert(group, replica.clone());
        Ok(replica)
    }

    fn nodes(&self) -> Vec<record::Node> {
        self.groups.lock().get(&0).map(|meta| meta.inner.nodes()).unwrap_or_default()
    }

    fn removed_nodes(&self) -> Vec<NodeId> {
        self.groups.lock().get(&0).map(|meta| meta.inner.removed()).unwrap_or_default()
    }

    fn artifacts_missing(&self) -> u64 {
        0
    }

    fn replication_factor(&self) -> u32 {
        self.world.replication_factor
    }

    fn check_room(&self) -> Result<(), cairn_storage::Error> {
        Ok(())
    }
}

/// A replica whose every step the history sees.
struct Watched {
    node: NodeId,
    group: GroupId,
    inner: MemoryReplica,
}

impl Replica for Watched {
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal> {
        let outcomes = self.inner.apply(entries, position)?;
        let meta = codec::decode_meta(Bytes::copy_from_slice(position)).map_err(|error| Fatal(error.to_string()))?;
        let last = meta.last_log_id.map(|last| (index_of(&last), last.leader_id));
        for entry in entries {
            history::see(&Event::Applied {
                node: self.node,
                group: self.group,
                index: entry.index,
                leader: last.filter(|(index, _)| *index == entry.index).map(|(_, leader)| leader),
                command: entry.command.map(<[u8]>::to_vec),
            });
        }
        Ok(outcomes)
    }

    fn position(&self) -> Option<Vec<u8>> {
        self.inner.position()
    }

    fn applied(&self) -> Applied {
        self.inner.applied()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal> {
        self.inner.checkpoint(dir)
    }

    fn install(&self, dir: &Path) -> Result<(), Fatal> {
        self.inner.install(dir)?;
        history::see(&Event::Installed { node: self.node, group: self.group, index: self.applied().index });
        Ok(())
    }
}
