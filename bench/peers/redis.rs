//! Redis on a free port of this machine, in the two layouts teams use.
//!
//! - a hash an entity, a field a feature (what Feast writes): `HSET h:ID f00 … f26`, read by `HMGET` of all fields
//! - a packed row an entity: `SET b:ID bytes`, read by one `MGET` of all entities; the application unpacks
//!
//! Always true: a value is four raw bytes, a packed row 108, so nothing is spent on a text form; a request of many hashes
//! is one pipeline; what a request should bring back is checked by its length, some values bit for bit before measuring.

use super::resp::{Connection, bulk, command};
use crate::error::{Error, Result};
use crate::load::Turn;
use crate::workload::Columns;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const PEER: &str = "Redis";
const UP_WITHIN: Duration = Duration::from_secs(20);
/// Entities of one pipeline while the tables are filled.
const FILL_ROWS: usize = 1_000;

/// How an entity's features are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Hash,
    Packed,
}

impl Layout {
    pub const ALL: [Self; 2] = [Self::Hash, Self::Packed];

    pub fn read_name(self) -> &'static str {
        match self {
            Self::Hash => "Redis HMGET",
            Self::Packed => "Redis MGET packed",
        }
    }

    pub fn write_name(self) -> &'static str {
        match self {
            Self::Hash => "Redis HSET, fsync",
            Self::Packed => "Redis MSET, fsync",
        }
    }
}

/// What a write promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Memory only: for reads.
    None,
    /// `appendfsync always`: answered when on disk, as Cairn does it.
    Always,
}

/// What is installed, as it names itself; `None` without Redis.
pub async fn version() -> Option<String> {
    let output = Command::new("redis-server").arg("--version").output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("v="))?;
    output.status.success().then(|| format!("Redis {version}"))
}

/// What Redis's own load generator is told.
#[derive(Debug, Clone, Copy)]
pub struct OwnLoad {
    pub clients: usize,
    pub requests: u64,
}

/// The second field of the last line: `"HMGET …","12345.67",…`.
fn requests_per_second(csv: &str) -> Option<f64> {
    csv.lines().rfind(|line| !line.trim().is_empty())?.split("\",\"").nth(1)?.parse().ok()
}

/// A server that ends with this value.
#[derive(Debug)]
pub struct Redis {
    pub port: u16,
    process: Child,
}

impl Redis {
    /// # Errors
    /// `Peer` when it does not come up.
    pub async fn start(folder: &Path, durability: Durability) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(Error::system("a free port"))?.port();
        let log_path = folder.join("redis.log");
        let log = File::create(&log_path).map_err(Error::file(&log_path))?;
        let mut run = Command::new("redis-server");
        run.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
        run.arg("--dir").arg(folder);
        match durability {
            Durability::None => run.args(["--appendonly", "no"]),
            // A rewrite of the log in the middle of a cell would be noise.
            Durability::Always => {
                run.args(["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"])
            }
        };
        run.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).kill_on_drop(true);
        let process = run.spawn().map_err(Error::system("redis-server"))?;
        let mut redis = Self { port, process };
        let started = Instant::now();
        loop {
            if let Some(status) = redis.process.try_wait().map_err(Error::system("redis-server"))? {
                return Err(Error::peer(PEER, format!("ended with {status}")));
            }
            let answer = async { Connection::open(port).await?.ask(b"PING\r\n", 1).await.map(<[u8]>::len) };
            match answer.await {
                Ok(_) => return Ok(redis),
                Err(error) if started.elapsed() > UP_WITHIN => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Ends the process and waits for it.
    ///
    /// # Errors
    /// `System` when it does not end.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await.map_err(Error::system("redis-server"))
    }

    /// HMGET of one entity a second, by Redis's own load generator, which is written in C. Its keys are uniform.
    /// `None` where it is not installed or says nothing.
    pub async fn own_benchmark(&self, columns: &Columns, entities: u64, load: &OwnLoad) -> Option<f64> {
        let mut run = Command::new("redis-benchmark");
        run.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--csv", "-r", &entities.to_string()]);
        run.args(["-c", &load.clients.to_string(), "-n", &load.requests.to_string()]);
        run.args(["HMGET", "h:__rand_int__"]).args(columns.names()).kill_on_drop(true);
        let output = tokio::time::timeout(UP_WITHIN, run.output()).await.ok()?.ok()?;
        requests_per_second(&String::from_utf8_lossy(&output.stdout))
    }

    /// Writes every entity in both layouts, and reads some back bit for bit.
    ///
    /// # Errors
    /// `Peer` for what Redis refuses; `Wrong` for another value than written.
    pub async fn fill(&self, columns: &Columns, entities: u64) -> Result<()> {
        let mut connection = Connection::open(self.port).await?;
        let ids: Vec<i64> = (0..entities.cast_signed()).collect();
        for ids in ids.chunks(FILL_ROWS) {
            for layout in Layout::ALL {
                let request = write_request(layout, columns, ids);
                connection.ask(&request.bytes, request.replies).await?;
            }
        }
        for id in [0, entities.cast_signed() - 1] {
            let values: Vec<[u8; 4]> = columns.row(id).map(f32::to_le_bytes).collect();
            let mut fields = format!("*{}\r\n", values.len()).into_bytes();
            values.iter().for_each(|value| bulk(&mut fields, value));
            let mut packed = b"*1\r\n".to_vec();
            bulk(&mut packed, &values.concat());
            for (layout, expected) in [(Layout::Hash, fields), (Layout::Packed, packed)] {
                let request = read_request(layout, columns, &[id]);
                if connection.ask(&request.bytes, request.replies).await? != expected {
                    return Err(Error::wrong(layout.read_name(), format!("entity {id} is not what was written")));
                }
            }
        }
        Ok(())
    }
}

/// A prepared request and what must come back.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
    replies: usize,
    /// Length of all replies; `None` where it may differ.
    reply_bytes: Option<usize>,
    rows: usize,
}

fn key(layout: Layout, id: i64) -> String {
    match layout {
        Layout::Hash => format!("h:{id:012}"),
        Layout::Packed => format!("b:{id:012}"),
    }
}

/// Length of a bulk string with its frame.
fn bulk_bytes(length: usize) -> usize {
    format!("${length}\r\n").len() + length + 2
}

/// Reads all features of the entities.
pub fn read_request(layout: Layout, columns: &Columns, ids: &[i64]) -> Request {
    let names: Vec<&str> = columns.names().collect();
    let mut bytes = Vec::new();
    let head = |count: usize| format!("*{count}\r\n").len();
    let (replies, reply_bytes) = match layout {
        Layout::Hash => {
            for id in ids {
                let key = key(layout, *id);
                let mut parts: Vec<&[u8]> = vec![b"HMGET", key.as_bytes()];
                parts.extend(names.iter().map(|name| name.as_bytes()));
                command(&mut bytes, &parts);
            }
            (ids.len(), ids.len() * (head(names.len()) + names.len() * bulk_bytes(4)))
        }
        Layout::Packed => {
            let keys: Vec<String> = ids.iter().map(|id| key(layout, *id)).collect();
            let mut parts: Vec<&[u8]> = vec![b"MGET"];
            parts.extend(keys.iter().map(|key| key.as_bytes()));
            command(&mut bytes, &parts);
            (1, head(ids.len()) + ids.len() * bulk_bytes(4 * names.len()))
        }
    };
    Request { bytes, replies, reply_bytes: Some(reply_bytes), rows: ids.len() }
}

/// Writes all features of the entities.
pub fn write_request(layout: Layout, columns: &Columns, ids: &[i64]) -> Request {
    let mut bytes = Vec::new();
    let replies = match layout {
        Layout::Hash => {
            let names: Vec<&str> = columns.names().collect();
            for id in ids {
                command_head(&mut bytes, 2 + 2 * names.len(), b"HSET");
                bulk(&mut bytes, key(layout, *id).as_bytes());
                for (name, value) in names.iter().zip(columns.row(*id)) {
                    bulk(&mut bytes, name.as_bytes());
                    bulk(&mut bytes, &value.to_le_bytes());
                }
            }
            ids.len()
        }
        Layout::Packed => {
            command_head(&mut bytes, 1 + 2 * ids.len(), b"MSET");
            for id in ids {
                bulk(&mut bytes, key(layout, *id).as_bytes());
                bulk(&mut bytes, &columns.row(*id).flat_map(f32::to_le_bytes).collect::<Vec<u8>>());
            }
            1
        }
    };
    Request { bytes, replies, reply_bytes: None, rows: ids.len() }
}

fn command_head(out: &mut Vec<u8>, parts: usize, name: &[u8]) {
    out.extend_from_slice(format!("*{parts}\r\n").as_bytes());
    bulk(out, name);
}

/// One client that sends prepared requests, over and over.
#[derive(Debug)]
pub struct Requesting {
    connection: Connection,
    requests: Arc<[Request]>,
    at: usize,
    system: &'static str,
}

impl Requesting {
    /// # Errors
    /// `System` when Redis is not there.
    pub async fn new(redis: &Redis, requests: &Arc<[Request]>, at: usize, system: &'static str) -> Result<Self> {
        Ok(Self { connection: Connection::open(redis.port).await?, requests: Arc::clone(requests), at, system })
    }
}

impl Turn for Requesting {
    async fn turn(&mut self) -> Result<usize> {
        let at = self.at % self.requests.len().max(1);
        self.at = at + 1;
        let request = self.requests.get(at).ok_or_else(|| Error::Internal("nothing to send".to_owned()))?;
        let found = self.connection.ask(&request.bytes, request.replies).await?.len();
        match request.reply_bytes {
            Some(expected) if expected != found => {
                Err(Error::wrong(self.system, format!("{found} bytes where {expected} were expected")))
            }
            _ => Ok(request.rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_redis_cli_would_send() {
        let columns = Columns::plain(2);
        let text = |request: &Request| String::from_utf8_lossy(&request.bytes).replace("\r\n", " ");
        let hash = read_request(Layout::Hash, &columns, &[7, 8]);
        assert_eq!(
            text(&hash),
            "*4 $5 HMGET $14 h:000000000007 $3 f00 $3 f01 *4 $5 HMGET $14 h:000000000008 $3 f00 $3 f01 "
        );
        assert_eq!((hash.replies, hash.reply_bytes, hash.rows), (2, Some(2 * (4 + 2 * 10)), 2));
        let packed = read_request(Layout::Packed, &columns, &[7, 8]);
        assert_eq!(text(&packed), "*3 $4 MGET $14 b:000000000007 $14 b:000000000008 ");
        assert_eq!((packed.replies, packed.reply_bytes), (1, Some(4 + 2 * 14)));
        let hash = write_request(Layout::Hash, &columns, &[7, 8]);
        assert!(hash.bytes.starts_with(b"*6\r\n$4\r\nHSET\r\n$14\r\nh:000000000007\r\n$3\r\nf00\r\n$4\r\n"));
        assert_eq!((hash.replies, hash.rows), (2, 2));
        let packed = write_request(Layout::Packed, &columns, &[7, 8]);
        assert!(packed.bytes.starts_with(b"*5\r\n$4\r\nMSET\r\n$14\r\nb:000000000007\r\n$8\r\n"));
        assert_eq!((packed.replies, packed.rows), (1, 2));
    }

    #[test]
    fn the_rate_is_read_from_the_csv() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"HMGET h:__rand_int__ f00\",\"68027.21\",\"0.383\"\n";
        assert_eq!(requests_per_second(csv), Some(68_027.21));
        assert_eq!(requests_per_second("Could not connect"), None);
        assert_eq!(requests_per_second(""), None);
    }

    #[tokio::test]
    async fn both_layouts_round_trip_where_redis_is_installed() {
        if version().await.is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let redis = Redis::start(folder.path(), Durability::Always).await.unwrap();
        let columns = Columns::plain(27);
        redis.fill(&columns, 50).await.unwrap();
        for layout in Layout::ALL {
            let requests: Arc<[Request]> = [read_request(layout, &columns, &[3, 3, 49])].into();
            let mut client = Requesting::new(&redis, &requests, 5, layout.read_name()).await.unwrap();
            assert_eq!(client.turn().await.unwrap(), 3);
            let missing: Arc<[Request]> = [read_request(layout, &columns, &[50])].into();
            let mut client = Requesting::new(&redis, &missing, 0, layout.read_name()).await.unwrap();
            assert!(client.turn().await.is_err(), "{layout:?}");
        }
        redis.stop().await.unwrap();
    }
}
