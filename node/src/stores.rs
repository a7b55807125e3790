//! What this node keeps on disk, opened once the data directory is locked and not before.

use crate::artifacts;
use crate::writes::WriteGate;
use bytes::Bytes;
use cairn_consensus::{BlobPeer, Error as PeerError, Host};
use cairn_proto::record::v1 as record;
use cairn_storage::Error;
use cairn_storage::blob::BlobStore;
use cairn_storage::engine::{Engine, EngineOptions};
use cairn_storage::meta::Meta;
use cairn_storage::replica::Replica;
use cairn_storage::shard::Shard;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// Write buffers of all groups together.
const WRITE_BUFFER_BYTES: usize = 256 << 20;

/// Opened by consensus, group by group; read by the node once it has started.
pub struct Stores {
    data_dir: PathBuf,
    options: EngineOptions,
    writes: WriteGate,
    engine: OnceLock<Arc<Engine>>,
    meta: OnceLock<Arc<Meta>>,
    blobs: OnceLock<Arc<BlobStore>>,
    shards: Mutex<BTreeMap<u32, Arc<Shard>>>,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Stores {
    pub fn new(data_dir: &Path, cache_bytes: usize, writes: WriteGate) -> Arc<Self> {
        Arc::new(Self {
            data_dir: data_dir.to_owned(),
            options: EngineOptions {
                cache_bytes,
                write_buffer_bytes: WRITE_BUFFER_BYTES.min(cache_bytes / 2),
                ..EngineOptions::default()
            },
            writes,
            engine: OnceLock::new(),
            meta: OnceLock::new(),
            blobs: OnceLock::new(),
            shards: Mutex::default(),
        })
    }

    pub fn meta(&self) -> Option<Arc<Meta>> {
        self.meta.get().cloned()
    }

    pub fn blobs(&self) -> Option<Arc<BlobStore>> {
        self.blobs.get().cloned()
    }

    /// By group, ascending.
    pub fn shards(&self) -> Vec<(u32, Arc<Shard>)> {
        self.shards.lock().iter().map(|(group, shard)| (*group, Arc::clone(shard))).collect()
    }

    fn peers(&self) -> Result<artifacts::Peers, PeerError> {
        let blobs = self.blobs().ok_or_else(|| PeerError::Unavailable("this node is still starting".to_owned()))?;
        Ok(artifacts::Peers(blobs))
    }
}

impl Host for Stores {
    fn check_replica(&self, group: u32, dir: &Path) -> Result<(), Error> {
        if group > 0 { Shard::check(dir) } else { Meta::check(dir) }
    }

    fn open_replica(&self, group: u32, dir: &Path) -> Result<Arc<dyn Replica>, Error> {
        let engine = self.engine.get_or_init(|| Engine::new(self.options.clone()));
        if group > 0 {
            let shard = Shard::open(engine, dir)?;
            self.shards.lock().insert(group, Arc::clone(&shard));
            return Ok(shard);
        }
        let blobs = BlobStore::open(&self.data_dir.join("blobs"))?;
        let meta = Meta::open(engine, dir)?;
        let _ = self.blobs.set(blobs);
        let _ = self.meta.set(Arc::clone(&meta));
        Ok(meta)
    }

    fn nodes(&self) -> Vec<record::Node> {
        self.meta().map(|meta| meta.catalog().nodes().map(|node| node.as_ref().clone()).collect()).unwrap_or_default()
    }

    fn removed_nodes(&self) -> Vec<u64> {
        self.meta().map(|meta| meta.catalog().removed_nodes().map(|node| node.id).collect()).unwrap_or_default()
    }

    fn artifacts_missing(&self) -> u64 {
        let (Some(meta), Some(blobs)) = (self.meta(), self.blobs()) else { return u64::MAX };
        let shards = self.shards();
        let segments = artifacts::missing_segments(shards.iter().map(|(_, shard)| shard), &blobs);
        (artifacts::missing(&meta.catalog(), &blobs).len() + segments.len()) as u64
    }

    fn replication_factor(&self) -> u32 {
        let catalog = self.meta().map(|meta| meta.catalog());
        catalog.and_then(|catalog| Some(catalog.cluster()?.replication_factor)).unwrap_or(0)
    }

    fn check_room(&self) -> Result<(), Error> {
        self.writes.check()
    }
}

#[tonic::async_trait]
impl BlobPeer for Stores {
    async fn put(
        &self,
        root: [u8; 32],
        size: u64,
        data: mpsc::Receiver<Result<Bytes, PeerError>>,
    ) -> Result<u64, PeerError> {
        self.peers()?.put(root, size, data).await
    }

    async fn get(&self, root: [u8; 32]) -> Result<(u64, mpsc::Receiver<Result<Bytes, PeerError>>), PeerError> {
        self.peers()?.get(root).await
    }
}
