//! `cairnd` processes on this machine: for tests, benchmarks and demos that want a real cluster for a while.
//!
//! Always true: no process outlives its [`LocalCluster`], however it is dropped; a restarted node keeps its ports and data.

use crate::{Client, Error, Options, Result};
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Longest wait for a node to answer, a leader to be there, or a process to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a node that is starting.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Nodes `n1`, `n2`, … with their data and logs in one folder.
#[derive(Debug)]
pub struct LocalCluster {
    binary: PathBuf,
    folder: PathBuf,
    extra: Vec<String>,
    nodes: Vec<LocalNode>,
}

/// One process, or its place while it is down.
#[derive(Debug)]
pub struct LocalNode {
    pub name: String,
    /// HOST:PORT for clients.
    pub address: String,
    /// HOST:PORT for peers.
    pub peer_address: String,
    launcher: Vec<String>,
    /// Arguments of this node alone.
    extra: Vec<String>,
    process: Option<Child>,
}

/// Where one more node shall be.
#[derive(Debug, Clone)]
pub struct Place {
    /// HOST:PORT for clients.
    pub address: String,
    /// HOST:PORT for peers.
    pub peer_address: String,
    /// Words before the command, such as `ip netns exec NAME`: they must become the command, not start it.
    pub launcher: Vec<String>,
    /// Arguments of this node alone, beside those of all.
    pub extra: Vec<String>,
}

impl LocalCluster {
    /// No node yet; `extra` are arguments for every `cairnd`.
    ///
    /// - `binary`: the `cairnd` to run
    /// - `folder`: an existing folder for data directories and logs
    pub fn new(binary: &Path, folder: &Path, extra: &[&str]) -> Self {
        let extra = extra.iter().map(|&argument| argument.to_owned()).collect();
        Self { binary: binary.to_owned(), folder: folder.to_owned(), extra, nodes: Vec::new() }
    }

    /// Starts `count` nodes: the first alone, the others joining it. Returns when every group has a leader and all voters.
    ///
    /// # Errors
    /// `Unavailable` with the end of the log of the node that did not come up.
    pub async fn start(binary: &Path, folder: &Path, count: usize, extra: &[&str]) -> Result<Self> {
        let mut cluster = Self::new(binary, folder, extra);
        for _ in 0..count {
            cluster.add().await?;
        }
        Ok(cluster)
    }

    /// Starts one more node and waits until it is a voter in every group.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn add(&mut self) -> Result<()> {
        let [address, peer_address] = free_addresses()?;
        let at = self.place(Place { address, peer_address, launcher: Vec::new(), extra: Vec::new() });
        self.spawn(at)?;
        self.ready(at, (at + 1).min(3)).await
    }

    /// Makes a place for one more node, which is down; returns its number, from 0.
    pub fn place(&mut self, place: Place) -> usize {
        let Place { address, peer_address, launcher, extra } = place;
        let at = self.nodes.len();
        let name = format!("n{}", at + 1);
        self.nodes.push(LocalNode { name, address, peer_address, launcher, extra, process: None });
        at
    }

    /// Starts the process of node `at` (from 0) without waiting for it.
    ///
    /// # Errors
    /// `Unavailable` when the binary does not start.
    pub fn spawn(&mut self, at: usize) -> Result<()> {
        self.spawn_with(at, &[])
    }

    /// [`Self::spawn`] with `more` arguments, this once; a `--join` among them takes the place of the usual one.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with(&mut self, at: usize, more: &[&str]) -> Result<()> {
        let usual = at > 0 && !more.contains(&"--join");
        let join = self.nodes.first().filter(|_| usual).map(|node| node.peer_address.clone());
        let (binary, folder, extra) = (self.binary.clone(), self.folder.clone(), self.extra.clone());
        let node = self.node_mut(at)?;
        let log_path = folder.join(format!("{}.log", node.name));
        let io = |error: std::io::Error| Error::unavailable(format!("{}: {error}", log_path.display()));
        let log: File = OpenOptions::new().create(true).append(true).open(&log_path).map_err(io)?;
        let mut words = node.launcher.iter().map(std::ffi::OsString::from).chain([binary.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command.arg("--data-dir").arg(folder.join(&node.name));
        command.args(["--name", &node.name, "--listen", &node.address, "--peer-listen", &node.peer_address]);
        if let Some(address) = join {
            command.args(["--join", &address]);
        }
        command.args(extra).args(&node.extra).args(more);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(io)?).stderr(log).kill_on_drop(true);
        let process = command.spawn().map_err(|error| Error::unavailable(format!("{}: {error}", binary.display())))?;
        node.process = Some(process);
        Ok(())
    }

    /// Waits until node `at` sees a leader and `voters` voters in every group.
    ///
    /// # Errors
    /// `Unavailable` when the process ends or a minute passes; the message has the end of its log.
    pub async fn ready(&mut self, at: usize, voters: usize) -> Result<()> {
        let started = Instant::now();
        let address = self.node_mut(at)?.address.clone();
        let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
        let client = Client::with_options(&address, options).await?;
        loop {
            let ended = match &mut self.node_mut(at)?.process {
                Some(process) => process.try_wait().ok().flatten(),
                None => return Err(Error::unavailable(format!("node {} is not running", at + 1))),
            };
            if let Some(status) = ended {
                return Err(self.explain(at, &format!("ended with {status}")));
            }
            if let Ok(status) = client.status().await
                && !status.groups.is_empty()
                && status.groups.iter().all(|group| group.leader != 0 && group.voters.len() >= voters)
            {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(self.explain(at, "has no leader and quorum in every group within a minute"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the process of node `at` ended by itself, or is down.
    ///
    /// # Errors
    /// `Unavailable` when there is no such node or it cannot be asked.
    pub fn has_ended(&mut self, at: usize) -> Result<bool> {
        match &mut self.node_mut(at)?.process {
            None => Ok(true),
            Some(process) => {
                let ended = process.try_wait().map_err(|error| Error::unavailable(error.to_string()))?;
                Ok(ended.is_some())
            }
        }
    }

    /// Waits until node `at` ends by itself; returns the end of its log.
    ///
    /// # Errors
    /// `Unavailable` when it is down or does not end within a minute.
    pub async fn ended(&mut self, at: usize) -> Result<String> {
        let node = self.node_mut(at)?;
        let Some(mut process) = node.process.take() else {
            return Err(Error::unavailable(format!("node {} is not running", at + 1)));
        };
        match tokio::time::timeout(PATIENCE, process.wait()).await {
            Ok(Ok(status)) => Ok(self.explain(at, &format!("ended with {status}")).to_string()),
            _ => Err(Error::unavailable(format!("node {} does not end", at + 1))),
        }
    }

    /// `kill -9`, and waits for the end of the process. A node that is down stays down.
    ///
    /// # Errors
    /// `Unavailable` when the process does not end.
    pub async fn kill(&mut self, at: usize) -> Result<()> {
        if let Some(mut process) = self.node_mut(at)?.process.take() {
            process.kill().await.map_err(|error| Error::unavailable(format!("kill: {error}")))?;
        }
        Ok(())
    }

    /// Whether the process of node `at` ends by itself within `patience`. A node that is down has ended.
    pub async fn ended_within(&mut self, at: usize, patience: Duration) -> bool {
        let Some(process) = self.nodes.get_mut(at).and_then(|node| node.process.as_mut()) else { return true };
        tokio::time::timeout(patience, process.wait()).await.is_ok()
    }

    /// Sends SIGTERM to every node and waits for all of them.
    ///
    /// # Errors
    /// `Unavailable` for a node that does not stop, or stops with a failure.
    pub async fn stop(mut self) -> Result<()> {
        for node in &self.nodes {
            if let Some(id) = node.process.as_ref().and_then(Child::id) {
                let sent = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
                sent.map_err(|error| Error::unavailable(format!("kill: {error}")))?;
            }
        }
        for at in 0..self.nodes.len() {
            let Some(mut process) = self.node_mut(at)?.process.take() else { continue };
            match tokio::time::timeout(PATIENCE, process.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => return Err(self.explain(at, &format!("stopped with {status}"))),
                Ok(Err(error)) => return Err(self.explain(at, &error.to_string())),
                Err(_) => return Err(self.explain(at, "does not stop")),
            }
        }
        Ok(())
    }

    /// Lets the processes go on after this value is gone; returns their process ids.
    pub fn leave_running(mut self) -> Vec<u32> {
        let ids = self.nodes.iter().filter_map(|node| node.process.as_ref().and_then(Child::id)).collect();
        for node in &mut self.nodes {
            // A child that is forgotten is not killed.
            if let Some(process) = node.process.take() {
                std::mem::forget(process);
            }
        }
        ids
    }

    pub fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    /// The nodes that are up.
    pub fn running(&self) -> impl Iterator<Item = &LocalNode> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// Process id of node `at`, while it runs.
    pub fn process_id(&self, at: usize) -> Option<u32> {
        self.nodes.get(at)?.process.as_ref()?.id()
    }

    /// Client addresses of all nodes, as [`Client::connect`] reads them.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which node (from 0) leads `group`, as node names tell.
    ///
    /// # Errors
    /// `Unavailable` when none is known within a minute.
    pub async fn leader(&self, client: &Client, group: u32) -> Result<usize> {
        let started = Instant::now();
        loop {
            if let Ok(status) = client.status().await {
                let leader = status.groups.iter().find(|it| it.group == group).map_or(0, |it| it.leader);
                let name = status.nodes.iter().find(|node| node.id == leader).map(|node| node.name.as_str());
                if let Some(at) = self.nodes.iter().position(|node| Some(node.name.as_str()) == name) {
                    return Ok(at);
                }
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::unavailable(format!("group {group} has no leader")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn node_mut(&mut self, at: usize) -> Result<&mut LocalNode> {
        self.nodes.get_mut(at).ok_or_else(|| Error::unavailable(format!("there is no node {}", at + 1)))
    }

    /// What went wrong with a node, and the end of its log.
    fn explain(&self, at: usize, trouble: &str) -> Error {
        let name = self.nodes.get(at).map_or("?", |node| node.name.as_str());
        let log = std::fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
        Error::unavailable(format!("node {name} {trouble}; its log ends:\n{tail}"))
    }
}

impl LocalNode {
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }
}

/// Two free ports of this machine. Both are held until both are known, so that they differ.
///
/// # Errors
/// `Unavailable` when there are none.
pub fn free_addresses() -> Result<[String; 2]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let find = || -> std::io::Result<[String; 2]> {
        let (a, b) = (bind()?, bind()?);
        Ok([a.local_addr()?.to_string(), b.local_addr()?.to_string()])
    };
    find().map_err(|error| Error::unavailable(format!("no free port: {error}")))
}

/// The `cairnd` to run: `CAIRND` in the environment, or the one built beside the running program.
///
/// # Errors
/// `Unavailable` with what to build.
pub fn cairnd() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAIRND") {
        return Ok(path.into());
    }
    let here = std::env::current_exe().map_err(|error| Error::unavailable(error.to_string()))?;
    let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join("cairnd")).find(|path| path.is_file());
    beside.ok_or_else(|| {
        Error::unavailable(
            "no `cairnd` beside this program; build it with `cargo build -p cairn-node`, or set CAIRND to its path",
        )
    })
}
