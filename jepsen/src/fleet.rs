//! The nodes under test, with everything that can be done to them.
//!
//! Always true: [`Fleet::mend`] undoes whatever was done, so that what fails after it fails by itself.

use crate::Result;
use crate::disk::{RESERVE_MIB, SmallDisks};
use crate::net::{Kind, Network, Shape};
use cairn_client::local::LocalCluster;
use cairn_client::{Client, Options};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long nodes may take to be whole again once nothing hinders them.
pub const RECOVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Fleet {
    pub cluster: LocalCluster,
    network: Network,
    disks: Option<SmallDisks>,
    paused: Vec<bool>,
    /// One client a node, impatient: to look, not to work.
    eyes: Vec<Client>,
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
        arguments: &[&str],
    ) -> Result<Self> {
        let (network, places) = Network::start(network, count).await?;
        let names = (0..count).map(name).collect();
        let disks = if small_disks { Some(SmallDisks::start(folder, names)?) } else { None };
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
        let mut fleet = Self { cluster, network, disks, paused: vec![false; count], eyes };
        for at in 0..count {
            fleet.start_node(at)?;
            fleet.cluster.ready(at, (at + 1).min(3)).await?;
        }
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
        if !self.is_up(at) {
            self.cluster.spawn(at)?;
            self.tell_network();
        }
        Ok(())
    }

    /// Starts a node that is down so that it makes its replica of `group` new from the first node; `false` when that one
    /// cannot help now.
    ///
    /// # Errors
    /// A binary that does not start.
    pub fn rebuild(&mut self, at: usize, group: u32) -> Result<bool> {
        let possible = at != 0 && !self.is_up(at) && self.is_up(0) && !self.paused[0];
        if possible {
            self.cluster.spawn_with(at, &["--rebuild", &group.to_string()])?;
            self.tell_network();
        }
        Ok(possible)
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

    /// Undoes everything: links healed, disks emptied, processes continued and started.
    ///
    /// # Errors
    /// Trouble of the harness.
    pub fn mend(&mut self) -> Result<()> {
        self.network.heal()?;
        self.disks.iter().for_each(SmallDisks::empty);
        for at in 0..self.size() {
            self.resume(at)?;
            self.start_node(at)?;
        }
        Ok(())
    }

    /// Waits until every node has a leader and a quorum in every group.
    ///
    /// # Errors
    /// In words, which node is not whole again within [`RECOVERY`].
    pub async fn recovered(&mut self) -> Result<(), String> {
        let voters = self.size().min(3);
        let began = Instant::now();
        for at in 0..self.size() {
            let left = RECOVERY.saturating_sub(began.elapsed());
            match tokio::time::timeout(left, self.cluster.ready(at, voters)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("{} is not whole again within {RECOVERY:?}", self.name(at))),
            }
        }
        Ok(())
    }

    fn tell_network(&self) {
        self.network.set_processes((0..self.size()).map(|at| self.cluster.process_id(at)).collect());
    }
}

/// As [`LocalCluster`] names its nodes.
fn name(at: usize) -> String {
    format!("n{}", at + 1)
}
