//! A [`Replica`] as openraft's state machine.
//!
//! Entries are applied in batches on a blocking thread; the position (last log id and membership) goes into the same
//! atomic write as their effects, so what is reported as applied after a restart is what is on disk. Answers are sent
//! after that write. A `Fatal` from the replica stops the group.

use crate::codec;
use crate::machine;
use crate::options::Host;
use crate::snapshot::{Snapshot, SnapshotDir, SnapshotStore};
use crate::types::*;
use bytes::Bytes;
use cairn_storage::replica::{Entry as ReplicaEntry, Replica};
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use std::io;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// One write to the replica takes at most this many entries …
const BATCH_ENTRIES_MAX: usize = 256;
/// … and begins no further one above this many bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;

type Item = (Entry, Option<ApplyResponder<TypeConfig>>);

pub struct StateMachine {
    replica: Arc<dyn Replica>,
    host: Arc<dyn Host>,
    snapshots: Arc<SnapshotStore>,
    /// One snapshot is built at a time on a node.
    building: Arc<Semaphore>,
    position: SnapshotMeta,
    applied: watch::Sender<u64>,
}

impl StateMachine {
    /// `applied` follows the index of the last applied entry.
    pub fn new(
        replica: Arc<dyn Replica>,
        host: Arc<dyn Host>,
        snapshots: Arc<SnapshotStore>,
        building: Arc<Semaphore>,
        applied: watch::Sender<u64>,
    ) -> io::Result<Self> {
        let position = codec::decode_meta(Bytes::from(replica.position().unwrap_or_default()))?;
        let index = index_or_zero(position.last_log_id.as_ref());
        snapshots.passed(index).map_err(io::Error::other)?;
        applied.send_replace(index);
        Ok(Self { replica, host, snapshots, building, position, applied })
    }

    async fn apply_batch(&mut self, batch: Vec<Item>) -> io::Result<()> {
        let mut position = self.position.clone();
        for (entry, _) in &batch {
            position.last_log_id = Some(entry.log_id);
            if let Payload::Membership(membership) = &entry.payload {
                #[cfg(any(test, feature = "seeded-bugs"))]
                if crate::bugs::awake(crate::bugs::Bug::StaleMembership) && position.last_membership.log_id().is_some()
                {
                    continue;
                }
                position.last_membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
        }
        let (replica, snapshots) = (self.replica.clone(), self.snapshots.clone());
        let index = index_or_zero(position.last_log_id.as_ref());
        let encoded = codec::encode_meta(&position);
        let work = move || {
            let entries: Vec<ReplicaEntry<'_>> = batch
                .iter()
                .map(|(entry, _)| ReplicaEntry {
                    index: index_of(&entry.log_id),
                    command: match &entry.payload {
                        Payload::Normal(command) => Some(&command.0),
                        Payload::Blank | Payload::Membership(_) => None,
                    },
                })
                .collect();
            let outcomes = replica.apply(&entries, &encoded).map_err(io::Error::other)?;
            if outcomes.len() != batch.len() {
                let message = format!("{} outcomes for {} entries", outcomes.len(), batch.len());
                return Err(io::Error::other(message));
            }
            snapshots.passed(index).map_err(io::Error::other)?;
            Ok((batch, outcomes))
        };
        let (batch, outcomes) = blocking(work).await?;
        self.applied.send_replace(index);
        self.position = position;
        for ((_, responder), outcome) in batch.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(Outcome(outcome.into()));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.position.last_log_id, self.position.last_membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut full = batch.len() + 1 >= BATCH_ENTRIES_MAX;
            if let Payload::Normal(command) = &entry.payload {
                bytes += command.0.len();
                full |= bytes >= BATCH_BYTES_MAX || self.replica.is_audit(&command.0);
            }
            batch.push((entry, responder));
            if full {
                self.apply_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.apply_batch(batch).await }
    }

    /// A snapshot is put off while there is no room for it: one that fails half-way would stop the group.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        if !force && self.host.check_room().is_err() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { replica: self.replica.clone(), snapshots: self.snapshots.clone(), building: self.building.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotDir) -> io::Result<()> {
        let (replica, snapshots) = (self.replica.clone(), self.snapshots.clone());
        let installed =
            blocking(move || snapshots.install(replica.as_ref(), &snapshot).map_err(io::Error::other)).await?;
        if installed.meta.last_log_id != meta.last_log_id {
            let message = "an installed snapshot is not at the position its sender named";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.position = installed.meta;
        self.applied.send_replace(index_or_zero(self.position.last_log_id.as_ref()));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current())
    }
}

/// Builds a snapshot beside a replica that goes on applying.
pub struct Builder {
    replica: Arc<dyn Replica>,
    snapshots: Arc<SnapshotStore>,
    building: Arc<Semaphore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let _turn = self.building.acquire().await.map_err(io::Error::other)?;
        let (replica, snapshots) = (self.replica.clone(), self.snapshots.clone());
        blocking(move || snapshots.build(replica.as_ref()).map_err(io::Error::other)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    machine::blocking(work).await.map_err(io::Error::other)?
}
