//! Three etcd servers on free ports of this machine, each row one key with a packed value.
//!
//! Always true: a value is the row's 108 bytes, as in Redis's packed layout; servers run with their defaults, so a put or
//! a transaction is answered when its entry is fsynced by a majority; clients speak gRPC over a connection of their own to
//! the leader, which saves etcd a hop; requests are made before the loop; each answer is checked for its count.

use crate::error::{Error, Result};
use crate::load::Turn;
use crate::workload::Columns;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

#[allow(clippy::all, missing_docs)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

const PEER: &str = "etcd";
const NODES: usize = 3;
const UP_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is installed, as it names itself; `None` without etcd.
pub async fn version() -> Option<String> {
    let output = Command::new("etcd").arg("--version").output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version:"))?;
    output.status.success().then(|| format!("etcd {}", version.trim()))
}

/// Servers that end with this value.
#[derive(Debug)]
pub struct Etcd {
    servers: Vec<Child>,
    /// HOST:PORT of each one's clients.
    addresses: Vec<String>,
    /// HOST:PORT of the leader's.
    pub leader: String,
}

impl Etcd {
    /// # Errors
    /// `Peer` when a server does not come up, or none leads.
    pub async fn start(folder: &Path) -> Result<Self> {
        let free = || -> std::io::Result<Vec<u16>> {
            // All are held until all are known, so that they differ.
            let held = (0..2 * NODES).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
            held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
        };
        let ports = free().map_err(Error::system("free ports"))?;
        let (client_ports, peer_ports) = ports.split_at(NODES);
        let members: Vec<String> =
            peer_ports.iter().enumerate().map(|(at, port)| format!("e{at}=http://127.0.0.1:{port}")).collect();
        let members = members.join(",");
        let mut etcd = Self { servers: Vec::new(), addresses: Vec::new(), leader: String::new() };
        for (at, (client, peer)) in client_ports.iter().zip(peer_ports).enumerate() {
            let name = format!("e{at}");
            let log_path = folder.join(format!("{name}.log"));
            let log = File::create(&log_path).map_err(Error::file(&log_path))?;
            let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let mut run = Command::new("etcd");
            run.args(["--name", &name, "--initial-cluster", &members, "--initial-cluster-state", "new"]);
            run.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            run.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            run.args(["--logger", "zap", "--log-level", "warn", "--quota-backend-bytes", &(8u64 << 30).to_string()]);
            run.arg("--data-dir").arg(folder.join(&name));
            run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
            etcd.servers.push(run.spawn().map_err(Error::system(PEER))?);
            etcd.addresses.push(client.trim_start_matches("http://").to_owned());
        }
        etcd.leader = etcd.find_leader().await?;
        Ok(etcd)
    }

    async fn find_leader(&mut self) -> Result<String> {
        let started = Instant::now();
        loop {
            for server in &mut self.servers {
                if let Some(status) = server.try_wait().map_err(Error::system(PEER))? {
                    return Err(Error::peer(PEER, format!("ended with {status}")));
                }
            }
            for address in &self.addresses {
                let Ok(channel) = connect(address).await else { continue };
                let Ok(status) = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await else { continue };
                let status = status.into_inner();
                if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                    return Ok(address.clone());
                }
            }
            if started.elapsed() > UP_WITHIN {
                return Err(Error::peer(PEER, format!("no leader within {UP_WITHIN:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads some entities from every server and compares them with the generator's, bit for bit.
    ///
    /// # Errors
    /// `Wrong` naming the entity.
    pub async fn check(&self, columns: &Columns, ids: &[i64]) -> Result<()> {
        for address in &self.addresses {
            let mut client = KvClient::new(connect(address).await?);
            for id in ids {
                let read = client.range(pb::RangeRequest { key: key(*id) }).await.map_err(refused)?.into_inner();
                if read.kvs.first().map(|found| found.value.as_slice()) != Some(value(columns, *id).as_slice()) {
                    return Err(Error::wrong(PEER, format!("entity {id} is not what was written")));
                }
            }
        }
        Ok(())
    }

    /// Ends the processes and waits for them.
    ///
    /// # Errors
    /// `System` when one does not end.
    pub async fn stop(mut self) -> Result<()> {
        for server in &mut self.servers {
            server.kill().await.map_err(Error::system(PEER))?;
        }
        Ok(())
    }
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|it| Error::peer(PEER, it.to_string()))?;
    endpoint.tcp_nodelay(true).connect().await.map_err(|error| Error::peer(PEER, error.to_string()))
}

fn refused(status: tonic::Status) -> Error {
    Error::peer(PEER, status.to_string())
}

fn key(id: i64) -> Vec<u8> {
    format!("b:{id:012}").into_bytes()
}

fn value(columns: &Columns, id: i64) -> Vec<u8> {
    columns.row(id).flat_map(f32::to_le_bytes).collect()
}

/// A prepared write: one row is a put, several are a transaction.
#[derive(Debug, Clone)]
enum Write {
    Put(pb::PutRequest),
    Txn(pb::TxnRequest),
}

/// Prepared writes, one for each list of entities. No list may name an entity twice: etcd refuses that.
#[derive(Debug, Clone)]
pub struct Writes(Arc<[Write]>);

impl Writes {
    pub fn new(columns: &Columns, keys: &[Vec<i64>]) -> Self {
        let put = |id: &i64| pb::PutRequest { key: key(*id), value: value(columns, *id) };
        let write = |ids: &Vec<i64>| match ids.as_slice() {
            [id] => Write::Put(put(id)),
            ids => {
                let op = |id| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put(id))) };
                Write::Txn(pb::TxnRequest { success: ids.iter().map(op).collect() })
            }
        };
        Self(keys.iter().map(write).collect())
    }
}

/// One client that sends prepared writes, over and over.
#[derive(Debug)]
pub struct Writing {
    client: KvClient<Channel>,
    writes: Writes,
    at: usize,
}

impl Writing {
    /// # Errors
    /// `Peer` when the leader is not there.
    pub async fn new(etcd: &Etcd, writes: &Writes, at: usize) -> Result<Self> {
        Ok(Self { client: KvClient::new(connect(&etcd.leader).await?), writes: writes.clone(), at })
    }
}

impl Turn for Writing {
    async fn turn(&mut self) -> Result<usize> {
        let at = self.at % self.writes.0.len().max(1);
        self.at = at + 1;
        match self.writes.0.get(at) {
            Some(Write::Put(put)) => {
                let done = self.client.put(put.clone()).await.map_err(refused)?.into_inner();
                if done.header.is_none_or(|header| header.revision == 0) {
                    return Err(Error::wrong(PEER, "a put without a revision"));
                }
                Ok(1)
            }
            Some(Write::Txn(txn)) => {
                let rows = txn.success.len();
                let done = self.client.txn(txn.clone()).await.map_err(refused)?.into_inner();
                if !done.succeeded || done.responses.len() != rows {
                    return Err(Error::wrong(PEER, format!("{} puts done of {rows}", done.responses.len())));
                }
                Ok(rows)
            }
            None => Err(Error::Internal("nothing to send".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_is_a_put_and_many_are_a_transaction() {
        let columns = Columns::plain(2);
        let writes = Writes::new(&columns, &[vec![7], vec![8, 9]]);
        let [Write::Put(put), Write::Txn(txn)] = &writes.0[..] else { panic!("{writes:?}") };
        assert_eq!(put.key, b"b:000000000007");
        assert_eq!(put.value, columns.row(7).flat_map(f32::to_le_bytes).collect::<Vec<u8>>());
        assert_eq!(txn.success.len(), 2);
    }

    #[tokio::test]
    async fn writes_are_on_every_server_where_etcd_is_installed() {
        if version().await.is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(folder.path()).await.unwrap();
        let columns = Columns::plain(27);
        let writes = Writes::new(&columns, &[vec![3], vec![4, 5, 6]]);
        let mut client = Writing::new(&etcd, &writes, 0).await.unwrap();
        assert_eq!((client.turn().await.unwrap(), client.turn().await.unwrap()), (1, 3));
        etcd.check(&columns, &[3, 4, 5, 6]).await.unwrap();
        assert!(etcd.check(&columns, &[7]).await.is_err());
        etcd.stop().await.unwrap();
    }
}
