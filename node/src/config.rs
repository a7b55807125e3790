//! How a node is set up: one [`NodeConfig`], read once in `main`, validated whole, printed at start.

use crate::segments::objects::Objects;
use cairn_consensus::Rebuild;
use clap::Parser;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Command line of `cairnd`. Every flag also stands in the config file under the same name; the command line wins.
#[derive(Debug, Parser)]
#[command(name = "cairnd", version, about = "Cairn's server: features, models and predictions in one database.")]
pub struct Args {
    /// A YAML file with the same names as the flags (`data-dir: /var/lib/cairn`).
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where everything is kept. Made when absent. [default: ./cairn-data]
    #[arg(long, value_name = "DIR", env = "CAIRN_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Client port: gRPC, Arrow Flight and HTTP. [default: 127.0.0.1:7700]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Peer port: Raft. [default: 127.0.0.1:7701]
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_listen: Option<String>,
    /// Address other nodes and clients are told, where it differs from --listen (NAT, 0.0.0.0).
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Peer address other nodes are told, where it differs from --peer-listen.
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_advertise: Option<String>,
    /// Name of this node, unique in its cluster. [default: the client address, as 127.0.0.1-7700]
    #[arg(long)]
    pub name: Option<String>,
    /// Join the cluster of the node at this peer address. Ignored once the data directory belongs to a cluster.
    #[arg(long, value_name = "HOST:PEERPORT")]
    pub join: Option<String>,
    /// Makes this node's damaged replicas of these groups new from the node at --join, then starts.
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',', requires = "join")]
    pub rebuild: Vec<u32>,
    /// How long a join is tried, and then waits for the cluster's first entry, seconds. [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub join_timeout_s: Option<u64>,
    /// Feature shards of a new cluster, 1 to 256. [default: 4]
    #[arg(long)]
    pub shards: Option<u32>,
    /// Block cache shared by all shards, MiB. [default: 512]
    #[arg(long, value_name = "MIB")]
    pub cache_mib: Option<u64>,
    /// Executor threads. [default: number of cores]
    #[arg(long)]
    pub executor_threads: Option<usize>,
    /// Writes are refused while less than this is free on the data directory's disk, MiB. [default: 256]
    #[arg(long, value_name = "MIB")]
    pub disk_reserve_mib: Option<u64>,
    /// Log entries after which a group makes a snapshot and drops what it no longer needs of its log. [default: 50000]
    #[arg(long, value_name = "N")]
    pub snapshot_entries: Option<u64>,
    /// Seconds between two comparisons of each group's replicas; 0 = they are not compared. [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub audit_interval_s: Option<u64>,
    /// Seconds between two looks for history that is older than its view's hot window. [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub tiering_interval_s: Option<u64>,
    /// Object store for history that is no longer hot, the same for all nodes of a cluster: `s3://BUCKET/PREFIX`,
    /// `gs://…`, `az://…` or `file:///DIRECTORY`; its options are AWS_…, GOOGLE_… or AZURE_… in the environment.
    /// [default: a quorum of the nodes]
    #[arg(long, value_name = "URL", env = "CAIRN_SEGMENTS_URL")]
    pub segments_url: Option<String>,
    /// Memory of sorts, joins and aggregates of all SQL queries, MiB; above it they spill, to eight times as much disk.
    /// [default: 512]
    #[arg(long, value_name = "MIB")]
    pub sql_memory_mib: Option<u64>,
    /// Longest run of a SQL query, seconds. [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub sql_timeout_s: Option<u64>,
    /// Most rows of a SQL answer. [default: 10000000]
    #[arg(long, value_name = "N")]
    pub sql_rows_max: Option<u64>,
}

/// The same names in the config file. Unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileConfig {
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    peer_listen: Option<String>,
    advertise: Option<String>,
    peer_advertise: Option<String>,
    name: Option<String>,
    join: Option<String>,
    join_timeout_s: Option<u64>,
    shards: Option<u32>,
    cache_mib: Option<u64>,
    executor_threads: Option<usize>,
    disk_reserve_mib: Option<u64>,
    snapshot_entries: Option<u64>,
    audit_interval_s: Option<u64>,
    tiering_interval_s: Option<u64>,
    segments_url: Option<String>,
    sql_memory_mib: Option<u64>,
    sql_timeout_s: Option<u64>,
    sql_rows_max: Option<u64>,
}

/// What all SQL queries of a node may take.
#[derive(Debug, Clone, Copy)]
pub struct SqlConfig {
    pub memory_bytes: usize,
    pub spill_bytes: u64,
    pub timeout: Duration,
    pub rows_max: u64,
}

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub peer_listen: SocketAddr,
    /// Told to clients; `None` = the address actually bound.
    pub advertise: Option<String>,
    pub peer_advertise: Option<String>,
    pub name: Option<String>,
    pub join: Option<String>,
    pub rebuild: Option<Rebuild>,
    /// 60 s, because a cluster that restarts as a whole needs a while to elect its leaders.
    pub join_timeout: Duration,
    /// Of a new cluster; 4 because a two-core node applies about that many groups side by side.
    pub shards: u32,
    pub cache_bytes: usize,
    pub executor_threads: usize,
    /// Free bytes below which the node turns read-only: enough to flush memtables and finish a log segment.
    pub disk_reserve_bytes: u64,
    /// Log entries between two snapshots of a group: fewer make a shorter log to replay after a crash, more spare work.
    pub snapshot_entries: u64,
    /// `None` = replicas are not compared.
    pub audit_interval: Option<Duration>,
    pub tiering_interval: Duration,
    /// `None` = segments are kept by a quorum of the nodes, which needs no other service.
    pub segments_url: Option<String>,
    pub sql: SqlConfig,
}

impl NodeConfig {
    /// Merges file and command line, and checks the whole.
    ///
    /// # Errors
    /// A sentence that names the setting at fault.
    pub fn resolve(args: Args) -> Result<Self, String> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => FileConfig::default(),
        };
        let address = |name: &str, text: Option<String>, default: &str| {
            let text = text.unwrap_or_else(|| default.to_owned());
            resolve_address(&text).map_err(|why| format!("`{name}`: {why}"))
        };
        let shards = args.shards.or(file.shards).unwrap_or(4);
        if !(1..=256).contains(&shards) {
            return Err(format!("`shards` is {shards}; it must be 1 to 256"));
        }
        let snapshot_entries = args.snapshot_entries.or(file.snapshot_entries).unwrap_or(50_000);
        if snapshot_entries == 0 {
            return Err("`snapshot-entries` is 0; it must be 1 or more".to_owned());
        }
        let audit_interval_s = args.audit_interval_s.or(file.audit_interval_s).unwrap_or(600);
        if audit_interval_s > 86_400 {
            return Err(format!("`audit-interval-s` is {audit_interval_s}; it must be 0 to 86400"));
        }
        let join_timeout_s = args.join_timeout_s.or(file.join_timeout_s).unwrap_or(60);
        if !(1..=86_400).contains(&join_timeout_s) {
            return Err(format!("`join-timeout-s` is {join_timeout_s}; it must be 1 to 86400"));
        }
        let sql_memory_mib = args.sql_memory_mib.or(file.sql_memory_mib).unwrap_or(512);
        if !(16..=1 << 24).contains(&sql_memory_mib) {
            return Err(format!("`sql-memory-mib` is {sql_memory_mib}; it must be 16 to {}", 1 << 24));
        }
        let sql_timeout_s = args.sql_timeout_s.or(file.sql_timeout_s).unwrap_or(300);
        if !(1..=86_400).contains(&sql_timeout_s) {
            return Err(format!("`sql-timeout-s` is {sql_timeout_s}; it must be 1 to 86400"));
        }
        let tiering_interval_s = args.tiering_interval_s.or(file.tiering_interval_s).unwrap_or(60);
        if !(1..=86_400).contains(&tiering_interval_s) {
            return Err(format!("`tiering-interval-s` is {tiering_interval_s}; it must be 1 to 86400"));
        }
        let sql_rows_max = args.sql_rows_max.or(file.sql_rows_max).unwrap_or(10_000_000);
        if sql_rows_max == 0 {
            return Err("`sql-rows-max` is 0; it must be 1 or more".to_owned());
        }
        let sql = SqlConfig {
            memory_bytes: usize::try_from(sql_memory_mib << 20)
                .map_err(|_| "`sql-memory-mib` is too large".to_owned())?,
            spill_bytes: sql_memory_mib << 23,
            timeout: Duration::from_secs(sql_timeout_s),
            rows_max: sql_rows_max,
        };
        let segments_url = args.segments_url.or(file.segments_url);
        if let Some(url) = &segments_url {
            Objects::check(url).map_err(|why| format!("`segments-url`: {why}"))?;
        }
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        let name = args.name.or(file.name);
        if let Some(name) = &name
            && (name.is_empty()
                || name.len() > 128
                || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
        {
            return Err(format!("`name` {name:?} must be 1 to 128 letters, digits, `.`, `_` or `-`"));
        }
        Ok(Self {
            data_dir: args.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from("cairn-data")),
            listen: address("listen", args.listen.or(file.listen), "127.0.0.1:7700")?,
            peer_listen: address("peer-listen", args.peer_listen.or(file.peer_listen), "127.0.0.1:7701")?,
            advertise: args.advertise.or(file.advertise),
            peer_advertise: args.peer_advertise.or(file.peer_advertise),
            name,
            rebuild: rebuild_of(args.rebuild, args.join.as_ref()),
            join: args.join.or(file.join),
            join_timeout: Duration::from_secs(join_timeout_s),
            shards,
            cache_bytes: usize::try_from(args.cache_mib.or(file.cache_mib).unwrap_or(512) << 20)
                .map_err(|_| "`cache-mib` is too large".to_owned())?,
            executor_threads: args.executor_threads.or(file.executor_threads).unwrap_or(cores).clamp(1, 256),
            disk_reserve_bytes: args.disk_reserve_mib.or(file.disk_reserve_mib).unwrap_or(256) << 20,
            snapshot_entries,
            tiering_interval: Duration::from_secs(tiering_interval_s),
            segments_url,
            audit_interval: Some(audit_interval_s).filter(|it| *it > 0).map(Duration::from_secs),
            sql,
        })
    }
}

fn read_file(path: &Path) -> Result<FileConfig, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("config file {}: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("config file {}: {error}", path.display()))
}

/// `HOST:PORT`; a host name is looked up once.
fn resolve_address(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let found = text.to_socket_addrs().map_err(|error| format!("`{text}` is not HOST:PORT ({error})"))?;
    found.into_iter().next().ok_or_else(|| format!("`{text}` names no address"))
}

/// Only on the command line: what is asked once must not be asked again at the next start.
fn rebuild_of(groups: Vec<u32>, from: Option<&String>) -> Option<Rebuild> {
    let from = from.filter(|_| !groups.is_empty())?.clone();
    Some(Rebuild { groups, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(line: &str) -> Result<NodeConfig, String> {
        NodeConfig::resolve(Args::try_parse_from(line.split_whitespace()).unwrap())
    }

    #[test]
    fn defaults_make_a_node() {
        let config = resolve("cairnd").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7700");
        assert_eq!(config.shards, 4);
        assert_eq!(config.snapshot_entries, 50_000);
    }

    #[test]
    fn bad_settings_are_named() {
        assert!(resolve("cairnd --shards 0").unwrap_err().contains("`shards` is 0"));
        assert!(resolve("cairnd --snapshot-entries 0").unwrap_err().contains("`snapshot-entries` is 0"));
        assert!(resolve("cairnd --join-timeout-s 0").unwrap_err().contains("`join-timeout-s` is 0"));
        assert!(resolve("cairnd --tiering-interval-s 0").unwrap_err().contains("`tiering-interval-s` is 0"));
        assert!(resolve("cairnd --sql-memory-mib 1").unwrap_err().contains("`sql-memory-mib` is 1"));
        assert!(resolve("cairnd --sql-timeout-s 0").unwrap_err().contains("`sql-timeout-s` is 0"));
        assert!(resolve("cairnd --sql-rows-max 0").unwrap_err().contains("`sql-rows-max` is 0"));
        assert!(
            resolve("cairnd --segments-url bucket/a").unwrap_err().contains("`segments-url`: `bucket/a` is not a URL")
        );
        assert!(resolve("cairnd --listen nonsense").unwrap_err().contains("`listen`"));
    }

    #[test]
    fn unknown_keys_of_the_config_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cairn.yaml");
        std::fs::write(&path, "shards: 8\nsharsd: 9\n").unwrap();
        let error = resolve(&format!("cairnd --config {}", path.display())).unwrap_err();
        assert!(error.contains("sharsd"), "{error}");
        std::fs::write(&path, "shards: 8\n").unwrap();
        assert_eq!(resolve(&format!("cairnd --config {}", path.display())).unwrap().shards, 8);
    }
}
