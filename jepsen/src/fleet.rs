//! The nodes under test, with everything that can be done to them. How they come back is the [`operator`](crate::operator)'s.

use crate::Result;
use crate::clock::{Clocks, RIGHT, Setting};
use crate::disk::{RESERVE_MIB, SmallDisks};
use crate::net::{Kind, Network, Shape};
use crate::operator::Care;
use cairn_client::local::LocalCluster;
use cairn_client::{Client, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an operator waits for an answer to an order.
const ORDER_PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub struct Fleet {
    pub cluster: LocalCluster,
    pub(crate) network: Network,
    pub(crate) disks: Option<SmallDisks>,
    clocks: Option<Clocks>,
    /// Nodes whose clocks are not right.
    wrong_clocks: BTreeMap<usize, Setting>,
    pub(crate) paused: Vec<bool>,
    /// One client a node, impatient: to look, not to work.
    pub(crate) eyes: Vec<Client>,
    /// For orders to the cluster, through any node.
    pub hand: Client,
    /// How long each node's log was when it was last started.
    log_from: Vec<u64>,
    /// The cluster is there: from now on a node without data joins it.
    founded: bool,
    pub care: Care,
}

impl Fleet {
    /// Starts `count` nodes with a network between them that can be broken.
    ///
    /// # Errors
    /// A node that does not come up, with the end of its log.
    pub async fn start(
        binary: &Path,
        folder: &Path,
        count: usize,
        network: Kind,
        small_disks: bool,
        own_clocks: bool,
        arguments: &[&str],
    ) -> Result<Self> {
        let (network, mut places) = Network::start(network, count).await?;
        let names: Vec<String> = (0..count).map(name).collect();
        let disks = if small_disks { Some(SmallDisks::start(folder, names.clone())?) } else { None };
        let clocks = if own_clocks { Clocks::start(folder, names)? } else { None };
        for (at, place) in places.iter_mut().enumerate() {
            place.launcher.extend(clocks.iter().flat_map(|clocks| clocks.launcher(at)));
        }
        let reserve = RESERVE_MIB.to_string();
        let mut arguments = arguments.to_vec();
        if small_disks {
            arguments.extend(["--disk-reserve-mib", &reserve]);
        }
        let mut cluster = LocalCluster::new(binary, folder, &arguments);
        let mut eyes = Vec::new();
        for place in places {
            let options = Options { deadline: Duration::from_millis(500), ..Options::default() };
            eyes.push(Client::with_options(&place.address, options).await?);
            cluster.place(place);
        }
        let options = Options { deadline: ORDER_PATIENCE, ..Options::default() };
        let hand = Client::with_options(&cluster.addresses(), options).await?;
        let (paused, log_from) = (vec![false; count], vec![0; count]);
        let wrong_clocks = BTreeMap::new();
        let (founded, care) = (false, Care::default());
        let mut fleet =
            Self { cluster, network, disks, clocks, wrong_clocks, paused, eyes, hand, log_from, founded, care };
        for at in 0..count {
            fleet.start_node(at)?;
            fleet.cluster.ready(at, (at + 1).min(3)).await?;
        }
        fleet.founded = true;
        Ok(fleet)
    }

    pub fn size(&self) -> usize {
        self.paused.len()
    }

    pub fn name(&self, at: usize) -> String {
        name(at)
    }

    pub fn names(&self, nodes: &[usize]) -> String {
        nodes.iter().map(|&at| self.name(at)).collect::<Vec<_>>().join(" ")
    }

    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.cluster.folder().join(self.name(at))
    }

    pub fn is_up(&self, at: usize) -> bool {
        self.cluster.process_id(at).is_some()
    }

    /// # Errors
    /// A process that does not end.
    pub async fn kill(&mut self, at: usize) -> Result<()> {
        self.cluster.kill(at).await?;
        self.paused[at] = false;
        self.tell_network();
        Ok(())
    }

    /// Starts a node that is down, without waiting for it.
    ///
    /// # Errors
    /// A binary that does not start.
    pub fn start_node(&mut self, at: usize) -> Result<()> {
        if self.cluster.has_ended(at)? { self.launch(at, &[]) } else { Ok(()) }
    }

    /// Starts a node that is down so that it makes its replicas of `groups` new from another node's.
    ///
    /// # Errors
    /// A binary that does not start.
    pub fn rebuild(&mut self, at: usize, groups: &BTreeSet<u32>) -> Result<()> {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let more: Vec<&str> = groups.iter().flat_map(|group| ["--rebuild", group]).collect();
        self.launch(at, &more)
    }

    fn launch(&mut self, at: usize, more: &[&str]) -> Result<()> {
        self.log_from[at] = fs::metadata(self.log(at)).map_or(0, |meta| meta.len());
        // Any other that is up: a node that lost its data must not found a cluster, whichever it is.
        let others = (1..self.size()).map(|step| (at + step) % self.size());
        let peer = others.clone().find(|&other| self.is_up(other) && !self.paused[other]).or(others.clone().next());
        let through = peer.map(|peer| self.cluster.nodes()[peer].peer_address.clone()).unwrap_or_default();
        let mut words = more.to_vec();
        if self.founded && !through.is_empty() {
            words.extend(["--join", &through]);
        }
        self.cluster.spawn_with(at, &words)?;
        self.tell_network();
        Ok(())
    }

    /// What a node has logged since it was last started.
    pub fn said(&self, at: usize) -> String {
        let from = self.log_from[at];
        let read = || -> std::io::Result<String> {
            let file = File::open(self.log(at))?;
            let mut bytes = vec![0; usize::try_from(file.metadata()?.len().saturating_sub(from)).unwrap_or(0)];
            file.read_exact_at(&mut bytes, from)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    fn log(&self, at: usize) -> PathBuf {
        self.cluster.folder().join(format!("{}.log", self.name(at)))
    }

    /// Takes everything off the disk of a node that is down.
    ///
    /// # Errors
    /// What the disk says.
    pub fn wipe(&self, at: usize) -> Result<()> {
        for entry in fs::read_dir(self.data_dir(at))? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// Trouble with sending signals.
    pub fn pause(&mut self, at: usize) -> Result<()> {
        self.paused[at] = self.signal(at, "-STOP")?;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&mut self, at: usize) -> Result<()> {
        if std::mem::take(&mut self.paused[at]) {
            self.signal(at, "-CONT")?;
        }
        Ok(())
    }

    fn signal(&self, at: usize, signal: &str) -> Result<bool> {
        let Some(id) = self.cluster.process_id(at) else { return Ok(false) };
        Ok(std::process::Command::new("kill").args([signal, &id.to_string()]).status()?.success())
    }

    /// Nothing passes from any of `from` to any of `to`.
    ///
    /// # Errors
    /// Trouble of the harness.
    pub fn cut(&self, from: &[usize], to: &[usize]) -> Result<()> {
        self.shape(from, to, Shape { cut: true, ..Shape::default() })
    }

    /// # Errors
    /// A shape that this network does not know.
    pub fn shape(&self, from: &[usize], to: &[usize], shape: Shape) -> Result<()> {
        for &from in from {
            for &to in to.iter().filter(|&&to| to != from) {
                self.network.set(from, to, shape)?;
            }
        }
        Ok(())
    }

    /// Fills the disk of a node, where it has one of its own; says whether it has.
    ///
    /// # Errors
    /// Trouble of the harness.
    pub fn fill_disk(&self, at: usize, left: u64) -> Result<bool> {
        match &self.disks {
            None => Ok(false),
            Some(disks) => disks.fill(at, left).map(|()| true),
        }
    }

    /// Whether nodes have clocks that can be set.
    pub fn has_clocks(&self) -> bool {
        self.clocks.is_some()
    }

    /// Sets the clock of a node, where it has one of its own.
    ///
    /// # Errors
    /// Trouble with files.
    pub fn set_clock(&mut self, at: usize, setting: Setting) -> Result<()> {
        let Some(clocks) = &self.clocks else { return Err(crate::clock::MISSING.into()) };
        clocks.set(at, setting)?;
        match setting == RIGHT {
            true => drop(self.wrong_clocks.remove(&at)),
            false => drop(self.wrong_clocks.insert(at, setting)),
        }
        Ok(())
    }

    /// All clocks are right again; a node whose timers were wrong starts again for it.
    ///
    /// # Errors
    /// Trouble with files and processes.
    pub async fn set_clocks_right(&mut self) -> Result<()> {
        for (at, setting) in self.wrong_clocks.clone() {
            self.set_clock(at, RIGHT)?;
            if setting.timers_too {
                self.kill(at).await?;
            }
        }
        Ok(())
    }

    /// The node that leads most groups, as any node sees it; `None` when nobody knows.
    pub async fn leader(&self) -> Option<usize> {
        for at in (0..self.size()).filter(|&at| self.is_up(at) && !self.paused[at]) {
            let Ok(status) = self.eyes[at].status().await else { continue };
            let led = |node: usize| {
                let id = status.nodes.iter().find(|it| it.name == self.name(node)).map_or(0, |it| it.id);
                status.groups.iter().filter(|group| id != 0 && group.leader == id).count()
            };
            let best = (0..self.size()).max_by_key(|&node| led(node))?;
            if led(best) > 0 {
                return Some(best);
            }
        }
        None
    }

    /// Clients that look and do not wait long, those of nodes that are there.
    pub fn eyes(&self) -> impl Iterator<Item = &Client> {
        let there = |at: &usize| self.is_up(*at) && !self.paused[*at];
        (0..self.size()).filter(there).filter_map(|at| self.eyes.get(at))
    }

    fn tell_network(&self) {
        self.network.set_processes((0..self.size()).map(|at| self.cluster.process_id(at)).collect());
    }
}

/// As [`LocalCluster`] names its nodes.
fn name(at: usize) -> String {
    format!("n{}", at + 1)
}
