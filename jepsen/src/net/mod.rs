//! The network between the nodes: every directed pair can be broken on its own.
//!
//! - [`mesh`]: on one machine and without privileges: a TCP proxy before each peer port; cuts, delay, loss, slow links
//! - [`owner`]: which node a connection to a proxy comes from
//! - [`namespaces`]: the kernel's network, for root; cuts only

pub mod mesh;
pub mod namespaces;
pub mod owner;

use crate::Result;
use cairn_client::local::Place;
use mesh::Mesh;
use namespaces::Namespaces;

/// How bytes travel from one node to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shape {
    /// Nothing arrives, connections stay open: what is on its way arrives after the cut, as TCP sends again.
    pub cut: bool,
    pub delay_ms: u32,
    /// Added to the delay, at random up to this.
    pub jitter_ms: u32,
    /// Share of pieces that are lost and sent again 200 ms later, percent.
    pub loss_percent: u8,
    /// 0 = no limit.
    pub bytes_per_s: u32,
}

/// Which network to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Proxy,
    Namespaces,
}

/// A network and the places of the nodes on it.
#[derive(Debug)]
pub enum Network {
    Proxy(Mesh),
    Namespaces(Namespaces),
}

impl Network {
    /// # Errors
    /// No free port; no right to make namespaces.
    pub async fn start(kind: Kind, nodes: usize) -> Result<(Self, Vec<Place>)> {
        let mut places = Vec::new();
        if kind == Kind::Namespaces {
            let spaces = Namespaces::start(nodes)?;
            for at in 0..nodes {
                let [address, peer_address] = spaces.addresses(at);
                places.push(Place { address, peer_address, launcher: spaces.launcher(at), extra: Vec::new() });
            }
            return Ok((Self::Namespaces(spaces), places));
        }
        for at in 0..nodes {
            let [address, peer_address] = free_addresses(at)?;
            places.push(Place { address, peer_address, launcher: Vec::new(), extra: Vec::new() });
        }
        let mesh = Mesh::start(places.iter().map(|place| place.peer_address.clone()).collect()).await?;
        for (at, place) in places.iter_mut().enumerate() {
            place.extra = vec!["--peer-advertise".to_owned(), mesh.address(at).to_owned()];
        }
        Ok((Self::Proxy(mesh), places))
    }

    /// Changes how bytes travel from one node to another.
    ///
    /// # Errors
    /// A shape other than a cut between namespaces.
    pub fn set(&self, from: usize, to: usize, shape: Shape) -> Result<()> {
        match self {
            Self::Proxy(mesh) => mesh.set(from, to, shape),
            Self::Namespaces(spaces) if shape.cut => spaces.cut(from, to)?,
            Self::Namespaces(_) => return Err("links between namespaces can be cut and nothing else".into()),
        }
        Ok(())
    }

    /// # Errors
    /// Trouble of the harness.
    pub fn heal(&self) -> Result<()> {
        match self {
            Self::Proxy(mesh) => mesh.heal(),
            Self::Namespaces(spaces) => spaces.heal()?,
        }
        Ok(())
    }

    /// Tells who is who; called whenever a process starts or ends.
    pub fn set_processes(&self, processes: Vec<Option<u32>>) {
        if let Self::Proxy(mesh) = self {
            mesh.set_processes(processes);
        }
    }
}

/// A client and a peer address for node `at`, on an address of its own: connections leave from 127.0.0.1, so none of them
/// can take a port between now and the node's start.
fn free_addresses(at: usize) -> Result<[String; 2]> {
    let id = std::process::id();
    let host = format!("127.{}.{}.{}", 100 + id % 100, id / 100 % 250, at + 1);
    let bind = || std::net::TcpListener::bind((host.as_str(), 0));
    // Both are held until both are known, so that they differ.
    let (client, peer) = (bind()?, bind()?);
    Ok([client.local_addr()?.to_string(), peer.local_addr()?.to_string()])
}
