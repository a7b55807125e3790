//! One run of a backfill: lanes of chunks, each read, encoded, committed and recorded.
//!
//! Chunk c is lane `c mod lanes`, and a lane takes its chunks in order, one after the other. Its producer's sequences of chunk
//! c begin at `(c / lanes) * SEQUENCES`, and a shard remembers as many: those of the chunk under way are always known, and
//! those of a driver that is late by a chunk or more are refused.

use super::{job_of, record_source, set_state, wanted};
use crate::error::{Error, Result};
use crate::ingest::{Prepared, Target};
use crate::meta_write;
use crate::node::Node;
use arrow_array::{Array, RecordBatch};
use cairn_proto::ErrorKind;
use cairn_proto::command::{EVENT_TIMESTAMP, Ingest, Ingested};
use cairn_proto::record::v1::job::Kind;
use cairn_proto::record::v1::meta_command::Change;
use cairn_proto::record::v1::{Backfill, Job, JobState, RecordChunk};
use cairn_proto::time::Timestamp;
use cairn_query::backfill::Source;
use cairn_storage::meta::missing_chunks;
use cairn_storage::shard::SEQUENCE_WINDOW;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Sequences, and so batches, of one chunk.
const SEQUENCES: u64 = SEQUENCE_WINDOW;
/// Batches of a lane that wait for their commit.
const IN_FLIGHT: usize = 3;
/// Encoded batches a lane reads ahead of them.
const BATCHES_AHEAD: usize = 1;
/// Times that something which may pass is tried again before the job is paused, unless a chunk was done meanwhile.
const TRIES_MAX: u32 = 4;
/// Letters of a message that a job keeps.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// Before the first time; doubled for each later one.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Runs a job until it ends, is paused, is to stop, or has to be paused.
pub(super) async fn run(node: Arc<Node>, job: Arc<Job>, stop: CancellationToken) {
    let id = job.id;
    tracing::info!(job = id, "a backfill runs here");
    let mut tries = 0;
    loop {
        let before = done(&node, id);
        let Err(error) = fill(&node, id, &stop).await else { return };
        if stop.is_cancelled() {
            return;
        }
        if done(&node, id) > before {
            tries = 0;
        }
        let state = match passes(error.kind) {
            true if tries < TRIES_MAX => {
                tracing::warn!(job = id, %error, "a backfill has to wait");
                let pause = RETRY_AFTER * 2u32.saturating_pow(tries);
                tries += 1;
                if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                    return;
                }
                continue;
            }
            true => JobState::Paused,
            false => JobState::Failed,
        };
        tracing::warn!(job = id, %error, state = cairn_storage::meta::job_state_name(state), "a backfill ends early");
        let message = error.message.chars().take(MESSAGE_CHARS_MAX).collect();
        // Where this does not come through, whoever drives the job next comes to the same.
        if let Err(error) = set_state(&node, id, state, message, job.revision).await {
            tracing::info!(job = id, %error, "the state of a backfill stays as it is");
        }
        return;
    }
}

fn done(node: &Node, id: u64) -> u64 {
    let catalog = node.meta.catalog();
    let job = catalog.job(id).ok();
    let ranges = job.and_then(|job| backfill(job).ok()).map(|fill| &fill.done);
    ranges.into_iter().flatten().map(|range| u64::from(range.last - range.first) + 1).sum()
}

/// Whether the same may come to a good end later.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded | ErrorKind::ReadOnly)
}

fn backfill(job: &Job) -> Result<&Backfill> {
    match &job.kind {
        Some(Kind::Backfill(fill)) => Ok(fill),
        None => Err(Error::internal(format!("job {} is no backfill", job.id))),
    }
}

/// Does all chunks that are missing, or those until it is to stop.
async fn fill(node: &Arc<Node>, id: u64, stop: &CancellationToken) -> Result<()> {
    let catalog = node.fresh_catalog().await?;
    let job = catalog.job(id)?;
    if job.state() != JobState::Running {
        return Ok(());
    }
    let fill = backfill(job)?.clone();
    let project = job.project.clone();
    let view = Arc::clone(catalog.project(&project)?.feature_view(&fill.view, Some(fill.view_version))?);
    let source = Arc::new(node.backfills.open(wanted(&catalog, &project, &view)?, true).await?);
    let path = view.files.as_ref().map(|files| files.path.clone()).unwrap_or_default();
    let fill = match fill.files.is_empty() {
        true => {
            let opened = Arc::clone(&source);
            let files = node.backfills.blocking(move |engine| engine.fingerprint(&opened)).await?;
            backfill(&record_source(node, id, files).await?)?.clone()
        }
        false => fill,
    };
    let run = Run { node, id, project, path, fill: Arc::new(fill), source, stop };
    run.unchanged().await?;
    try_join_all((0..run.fill.lanes).map(|lane| run.lane(lane))).await?;
    Ok(())
}

struct Run<'a> {
    node: &'a Arc<Node>,
    id: u64,
    project: String,
    path: String,
    fill: Arc<Backfill>,
    source: Arc<Source>,
    stop: &'a CancellationToken,
}

impl Run<'_> {
    /// The files are still those that the job began with.
    async fn unchanged(&self) -> Result<()> {
        let (path, fill) = (self.path.clone(), Arc::clone(&self.fill));
        self.node.backfills.blocking(move |engine| engine.unchanged(&path, &fill.files)).await
    }

    async fn lane(&self, lane: u32) -> Result<()> {
        for chunk in missing_chunks(&self.fill).filter(|chunk| chunk % self.fill.lanes == lane) {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let rows = self.chunk(lane, chunk).await;
            // First of all: a file that changed while it was read looks damaged, and what was read of it counts for nothing.
            self.unchanged().await?;
            let Some(rows) = rows.map_err(|error| self.about(chunk, error))? else { return Ok(()) };
            let change = RecordChunk { id: self.id, node: self.node.cluster.node_id(), chunk, rows };
            let (outcome, _) = meta_write::propose(self.node, Change::RecordChunk(change), String::new()).await?;
            let job = job_of(outcome)?;
            tracing::debug!(job = self.id, chunk, rows, "a chunk is done");
            if job.state() == JobState::Done {
                tracing::info!(job = self.id, rows = backfill(&job)?.rows, "a backfill is done");
            }
        }
        Ok(())
    }

    fn times(&self, chunk: u32) -> Range<i64> {
        let Backfill { from_us, to_us, chunk_us, .. } = *self.fill;
        let start = from_us.saturating_add(chunk_us.saturating_mul(i64::from(chunk)));
        start..start.saturating_add(chunk_us).min(to_us)
    }

    /// An error of a chunk, with its times.
    fn about(&self, chunk: u32, error: Error) -> Error {
        let Range { start, end } = self.times(chunk);
        let message = format!("from {} to {}: {}", Timestamp(start), Timestamp(end), error.message);
        Error::new(error.kind, message)
    }

    /// Commits the rows of a chunk: how many there are, or `None` when it was to stop before the end.
    async fn chunk(&self, lane: u32, chunk: u32) -> Result<Option<u64>> {
        let first = u64::from(chunk / self.fill.lanes) * SEQUENCES;
        let ask = Ingest {
            producer: Some(format!("cairn/backfill-{}-{lane}", self.id)),
            sequence: Some(first),
            ..Ingest::new(&self.project, &self.fill.view)
        };
        let target = Arc::new(Target::new(self.node, &ask)?);
        if target.storage_id() != self.fill.storage_id {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "feature view `{}` got a version with other columns than {}; backfill the new one",
                    self.fill.view, self.fill.view_version
                ),
            ));
        }
        let (batches, mut encoded) = mpsc::channel(BATCHES_AHEAD);
        let reading = Reading {
            node: Arc::clone(self.node),
            source: Arc::clone(&self.source),
            target: Arc::clone(&target),
            times: self.times(chunk),
            first: chunk == 0,
            batch_rows: self.fill.batch_rows,
        };
        let reading = AbortOnDropHandle::new(self.node.backfills.runtime()?.spawn(reading.run(batches)));
        let mut writing = FuturesUnordered::new();
        let (mut rows, mut ordinal, mut ended) = (0, 0, false);
        loop {
            tokio::select! {
                Some(written) = writing.next() => {
                    let written: Ingested = written?;
                    self.node.metrics.ingested(&written);
                }
                batch = encoded.recv(), if !ended && writing.len() < IN_FLIGHT => match batch {
                    None => ended = true,
                    Some((count, prepared)) => {
                        if ordinal >= SEQUENCES {
                            return Err(Error::invalid(format!(
                                "the chunk has more than {rows} rows, the most that one can have; begin again with a smaller chunk"
                            )));
                        }
                        self.node.writes.check()?;
                        let (target, node, deadline) = (&target, self.node, self.node.write_deadline());
                        writing.push(async move { target.commit(node, prepared, ordinal, deadline).await });
                        ordinal += 1;
                        rows += count;
                    }
                },
                () = self.stop.cancelled(), if !ended => {
                    // What was sent is committed, so that nothing comes after the job's end.
                    while let Some(written) = writing.next().await {
                        self.node.metrics.ingested(&written?);
                    }
                    return Ok(None);
                }
                else => break,
            }
        }
        drop(writing);
        reading.await.map_err(|error| Error::internal(format!("a backfill stopped: {error}")))??;
        Ok(Some(rows))
    }
}

/// The half of a chunk that runs on threads of its own: from files to encoded rows.
struct Reading {
    node: Arc<Node>,
    source: Arc<Source>,
    target: Arc<Target>,
    times: Range<i64>,
    first: bool,
    batch_rows: u32,
}

impl Reading {
    async fn run(self, batches: mpsc::Sender<(u64, Prepared)>) -> Result<()> {
        let mut failed = None;
        let read = self.source.chunk(self.times.clone(), self.first, self.batch_rows as usize, |batch| {
            let prepared = self.encode(&batch);
            let (batches, rows) = (batches.clone(), batch.num_rows() as u64);
            let prepared = match prepared {
                Ok(prepared) => Some(prepared),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            };
            async move {
                match prepared {
                    Some(prepared) => Ok(batches.send((rows, prepared)).await.is_ok()),
                    None => Ok(false),
                }
            }
        });
        read.await?;
        failed.map_or(Ok(()), Err)
    }

    /// Encodes a batch; a row that cannot be stored ends the job, with its place where that is known.
    fn encode(&self, batch: &RecordBatch) -> Result<Prepared> {
        let prepared = self.target.prepare(batch, &self.node.write_routes())?;
        let Some((rejection, count)) = prepared.rejected() else { return Ok(prepared) };
        let keys = batch.schema_ref().fields().iter().take_while(|field| field.name() != EVENT_TIMESTAMP);
        let names = keys.map(|field| field.name().as_str()).chain([EVENT_TIMESTAMP]);
        let null = names.into_iter().find(|name| batch.column_by_name(name).is_some_and(|it| it.null_count() > 0));
        let place = match null.map(|name| self.source.first_null(name)).transpose()?.flatten() {
            Some((file, row)) => format!(" (the first in file `{file}`, row {row})"),
            None => String::new(),
        };
        let rows = if count == 1 { "a row" } else { "rows" };
        Err(Error::invalid(format!("{rows} cannot be stored: {}{place}", rejection.reason)))
    }
}
