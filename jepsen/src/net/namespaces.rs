//! One network namespace a node, joined by a bridge: the kernel's own network, for root on Linux.
//!
//! A cut from i to j gives i a wrong hardware address for j, for good: what i sends to j vanishes without a word, as on a
//! real network, and TCP learns it by its time-outs. This machine stays on the bridge, so clients reach every node.
//!
//! Always true: all names carry this process's id; what a dead process left behind is removed by the next start.

use crate::Result;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Interface names have at most 15 bytes: this, a process id and a node.
const PREFIX: &str = "cj";
const CLIENT_PORT: u16 = 7700;
const PEER_PORT: u16 = 7701;

#[derive(Debug)]
pub struct Namespaces {
    nodes: usize,
    id: u32,
    cut: Mutex<BTreeSet<(usize, usize)>>,
}

impl Namespaces {
    /// Makes namespaces and links for `nodes` nodes.
    ///
    /// # Errors
    /// What `ip` says, for instance to somebody who is not root.
    pub fn start(nodes: usize) -> Result<Self> {
        let id = std::process::id();
        remove_leftovers()?;
        // From here on, dropping removes what was made.
        let made = Self { nodes, id, cut: Mutex::default() };
        let bridge = made.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", made.host(254)), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for at in 0..nodes {
            let (space, outside, inside) = (made.space(at), format!("{PREFIX}{id}o{at}"), format!("{PREFIX}{id}i{at}"));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", &inside, "netns", &space])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            ip(&["-n", &space, "link", "set", &inside, "name", "eth0", "address", &hardware(at)])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", made.host_of(at)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(made)
    }

    /// (client address, peer address) of node `at`.
    pub fn addresses(&self, at: usize) -> [String; 2] {
        [CLIENT_PORT, PEER_PORT].map(|port| format!("{}:{port}", self.host_of(at)))
    }

    /// The words before a command that shall run in the namespace of node `at`. The process id stays that of the command.
    pub fn launcher(&self, at: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(at)].map(str::to_owned).to_vec()
    }

    /// Nothing passes from one node to another.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.neighbour(from, to, "02:00:00:00:00:00")?;
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to));
        Ok(())
    }

    /// # Errors
    /// What `ip` says.
    pub fn heal(&self) -> Result<()> {
        let cut = std::mem::take(&mut *self.cut.lock().unwrap_or_else(PoisonError::into_inner));
        cut.into_iter().try_for_each(|(from, to)| self.neighbour(from, to, &hardware(to)))
    }

    fn neighbour(&self, from: usize, to: usize, address: &str) -> Result<()> {
        let (space, host) = (self.space(from), self.host_of(to));
        ip(&["-n", &space, "neigh", "replace", &host, "lladdr", address, "nud", "permanent", "dev", "eth0"])
    }

    fn bridge(&self) -> String {
        format!("{PREFIX}{}b", self.id)
    }

    fn space(&self, at: usize) -> String {
        format!("{PREFIX}{}n{at}", self.id)
    }

    fn host_of(&self, at: usize) -> String {
        self.host(at + 1)
    }

    fn host(&self, last: usize) -> String {
        format!("10.{}.{}.{last}", 200 + self.id % 50, self.id / 50 % 250)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for at in 0..self.nodes {
            let _ = ip(&["netns", "del", &self.space(at)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

fn hardware(at: usize) -> String {
    format!("02:ca:00:00:00:{:02x}", at + 1)
}

/// Removes namespaces and bridges of processes that are gone.
fn remove_leftovers() -> Result<()> {
    let spaces = Command::new("ip").args(["-o", "netns", "list"]).output()?.stdout;
    let links = Command::new("ip").args(["-o", "link", "show", "type", "bridge"]).output()?.stdout;
    for line in String::from_utf8_lossy(&spaces).lines() {
        if let Some(name) = line.split_whitespace().next().filter(|name| is_leftover(name)) {
            ip(&["netns", "del", name])?;
        }
    }
    for line in String::from_utf8_lossy(&links).lines() {
        let name = line.split(':').nth(1).map(str::trim).unwrap_or_default();
        if is_leftover(name) {
            ip(&["link", "del", name])?;
        }
    }
    Ok(())
}

fn is_leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let ours = rest[digits.len()..].starts_with(['n', 'b']);
    !digits.is_empty() && ours && !std::path::Path::new("/proc").join(digits).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("`ip {}`: {why} (namespaces need root; `--network proxy` does not)", arguments.join(" "))
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_made_is_left_over() {
        let me = std::process::id();
        assert!(!is_leftover(&format!("{PREFIX}{me}n0")));
        assert!(is_leftover("cj4294967295n0"));
        assert!(is_leftover("cj4294967295b"));
        for strange in ["cj", "cjx", "cj4294967295", "cj4294967295x", "docker0", "cjb"] {
            assert!(!is_leftover(strange), "{strange}");
        }
    }
}
