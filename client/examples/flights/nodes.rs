//! The demo's cluster: `cairnd` processes on free ports of this machine, with their data in one temporary folder.
//!
//! Always true: no process outlives [`Cluster`], however it is dropped.

use crate::Result;
use cairn_client::{Client, Options};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Longest wait for a node to answer, a leader to be there, or a process to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    nodes: Vec<Node>,
    folder: tempfile::TempDir,
}

struct Node {
    name: String,
    address: String,
    process: Child,
}

impl Cluster {
    /// Starts the first node, then lets the others join it; returns when every group has a leader and `count` voters.
    pub async fn start(count: usize) -> Result<Self> {
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix("cairn-flights-").tempdir()?;
        let mut cluster = Self { nodes: Vec::new(), folder };
        let mut first_peer = None;
        for number in 1..=count {
            let [listen, peer] = free_addresses()?;
            let name = format!("n{number}");
            cluster.spawn(&binary, &name, &listen, &peer, first_peer.as_deref())?;
            first_peer.get_or_insert(peer);
            cluster.ready(number).await.map_err(|error| cluster.explain(&name, error.as_ref()))?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, binary: &Path, name: &str, listen: &str, peer: &str, join: Option<&str>) -> Result<()> {
        let log = File::create(self.log(name))?;
        let mut command = Command::new(binary);
        command.arg("--data-dir").arg(self.folder.path().join(name));
        command.args(["--name", name, "--listen", listen, "--peer-listen", peer]);
        if let Some(address) = join {
            command.args(["--join", address]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let process = command.spawn().map_err(|error| format!("{}: {error}", binary.display()))?;
        self.nodes.push(Node { name: name.to_owned(), address: listen.to_owned(), process });
        Ok(())
    }

    /// Waits until the newest node sees a leader and `voters` voters in every group.
    async fn ready(&mut self, voters: usize) -> Result<()> {
        let Some(node) = self.nodes.last_mut() else { return Ok(()) };
        let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
        let client = Client::with_options(&node.address, options).await?;
        let started = Instant::now();
        loop {
            if let Some(status) = node.process.try_wait()? {
                return Err(format!("ended at once ({status})").into());
            }
            let status = client.status().await;
            if let Ok(status) = &status
                && !status.groups.is_empty()
                && status.groups.iter().all(|group| group.leader != 0 && group.voters.len() >= voters)
            {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(match status {
                    Ok(_) => "no leader and quorum in every group within a minute".into(),
                    Err(error) => error.into(),
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All client addresses, as [`Client::connect`] reads them.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The address of one node that runs.
    pub fn address(&self) -> &str {
        self.nodes.first().map_or("", |node| &node.address)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `kill -9` of the node that leads the meta group; returns its name.
    pub async fn kill_leader(&mut self, client: &Client) -> Result<String> {
        let started = Instant::now();
        let leader = loop {
            let status = client.status().await?;
            let leader = status.groups.iter().find(|group| group.group == 0).map_or(0, |group| group.leader);
            if let Some(node) = status.nodes.into_iter().find(|node| node.id == leader) {
                break node.name;
            }
            if started.elapsed() > PATIENCE {
                return Err("the meta group has no leader".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let position = self.nodes.iter().position(|node| node.name == leader);
        let mut node = self.nodes.remove(position.ok_or_else(|| format!("the leader `{leader}` is not ours"))?);
        node.process.kill().await?;
        Ok(leader)
    }

    /// Asks every node to stop, and waits for it.
    pub async fn stop(mut self) -> Result<()> {
        for node in &self.nodes {
            if let Some(id) = node.process.id() {
                std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status()?;
            }
        }
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in &mut nodes {
            let ended = tokio::time::timeout(PATIENCE, node.process.wait()).await;
            let status = ended.map_err(|_| format!("node {} does not stop", node.name))??;
            if !status.success() {
                return Err(self.explain(&node.name, &format!("stopped with {status}")).into());
            }
        }
        Ok(())
    }

    /// What a node last said, beside what went wrong with it.
    fn explain(&self, name: &str, trouble: &dyn std::fmt::Display) -> String {
        let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
        format!("node {name}: {trouble}; it last said:\n{tail}")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }
}

/// `CAIRND`, or the `cairnd` built beside this example.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAIRND") {
        return Ok(path.into());
    }
    let example = std::env::current_exe()?;
    let built = example.parent().and_then(Path::parent).map(|folder| folder.join("cairnd"));
    built.filter(|path| path.is_file()).ok_or_else(|| {
        "no `cairnd` beside this program: build it with `cargo build -p cairn-node`, or set CAIRND to its path".into()
    })
}

/// Two free ports. Both are held until both are known, so that they differ.
fn free_addresses() -> Result<[String; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [a, b] = listeners.map(|listener| listener.local_addr().map(|address| address.to_string()));
    Ok([a?, b?])
}
