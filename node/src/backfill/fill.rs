//! One run of a backfill: lanes of chunks, each read, encoded, committed and recorded.
//!
//! Chunk c is lane `c mod lanes`, and a lane takes its chunks in order, one after the other. Its producer's sequences of chunk
//! c begin at `(c / lanes) * SEQUENCES`, and a shard remembers as many: those of the chunk under way are always known, and
//! those of a driver that is late by a chunk or more are refused. A chunk of many rows of a job that loads has no sequences:
//! it becomes segments ([`super::load`]). Which way a chunk goes follows from its rows, so it goes the same way again.

use super::load::{self, Distinct};
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
use cairn_query::backfill::{Order, Source};
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
/// Rows from which on a chunk becomes segments: fewer are cheaper as rows.
const LOAD_ROWS_MIN: usize = 1 << 17;
/// Batches of a chunk that becomes segments which are read ahead.
const COLUMNS_AHEAD: usize = 2;
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
            self.record(chunk, rows).await?;
        }
        Ok(())
    }

    /// Records that a chunk is done. Before the last one of a job that loads all newest rows come to be read online.
    async fn record(&self, chunk: u32, rows: u64) -> Result<()> {
        let record = |newest| {
            let change = RecordChunk { id: self.id, node: self.node.cluster.node_id(), chunk, rows, newest };
            meta_write::propose(self.node, Change::RecordChunk(change), String::new())
        };
        let recorded = match record(false).await {
            Err(error) if self.fill.loads && error.kind == ErrorKind::Conflict => {
                load::finish(self.node, self.fill.storage_id).await?;
                record(true).await
            }
            recorded => recorded,
        };
        let job = job_of(recorded?.0)?;
        tracing::debug!(job = self.id, chunk, rows, "a chunk is done");
        if job.state() == JobState::Done {
            tracing::info!(job = self.id, rows = backfill(&job)?.rows, "a backfill is done");
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
        let reading = Reading {
            node: Arc::clone(self.node),
            source: Arc::clone(&self.source),
            target: Arc::clone(&target),
            times: self.times(chunk),
            first: chunk == 0,
            batch_rows: self.fill.batch_rows,
        };
        match self.fill.loads {
            true => self.load(reading, chunk).await,
            false => {
                let (batches, encoded) = mpsc::channel(BATCHES_AHEAD);
                let reading = AbortOnDropHandle::new(self.node.backfills.runtime()?.spawn(reading.encoded(batches)));
                self.commit(&target, encoded, reading).await
            }
        }
    }

    /// Loads a chunk as segments, or commits it row by row when it has few.
    async fn load(&self, reading: Reading, chunk: u32) -> Result<Option<u64>> {
        let reading = Arc::new(reading);
        let target = &reading.target;
        let (batches, mut checked) = mpsc::channel(COLUMNS_AHEAD);
        let runtime = self.node.backfills.runtime()?;
        let task = AbortOnDropHandle::new(runtime.spawn(Arc::clone(&reading).checked(batches)));
        let mut ahead = Vec::new();
        let mut rows = 0;
        while rows < LOAD_ROWS_MIN {
            let batch: RecordBatch = tokio::select! {
                batch = checked.recv() => match batch {
                    Some(batch) => batch,
                    None => break,
                },
                () = self.stop.cancelled() => return Ok(None),
            };
            rows += batch.num_rows();
            ahead.push(batch);
        }
        if rows < LOAD_ROWS_MIN {
            task.await.map_err(stopped)??;
            let (batches, encoded) = mpsc::channel(BATCHES_AHEAD);
            let encoding = AbortOnDropHandle::new(runtime.spawn(Arc::clone(&reading).encode_all(ahead, batches)));
            return self.commit(target, encoded, encoding).await;
        }
        self.node.writes.check()?;
        let to = Arc::new(load::Chunk::begin(self.node, target, self.id, chunk).await?);
        let (columns, loaded) = mpsc::channel(COLUMNS_AHEAD);
        let loading = {
            let to = Arc::clone(&to);
            AbortOnDropHandle::new(runtime.spawn(async move { to.load(loaded).await }))
        };
        let feed = async {
            let columns = columns;
            let mut ahead = ahead.into_iter();
            let mut rows = 0;
            loop {
                let batch = match ahead.next() {
                    Some(batch) => Some(batch),
                    None => tokio::select! {
                        batch = checked.recv() => batch,
                        // Whoever loads finds that the end is missing.
                        () = self.stop.cancelled() => return Ok(None),
                    },
                };
                let Some(batch) = batch else { break };
                rows += batch.num_rows() as u64;
                if columns.send(Some(to.columns(&batch)?)).await.is_err() {
                    return Ok(None);
                }
            }
            // An end only where nothing failed.
            task.await.map_err(stopped)??;
            let _ = columns.send(None).await;
            Ok::<_, Error>(Some(rows))
        };
        let (fed, done) = futures::join!(feed, loading);
        let done = done.map_err(stopped)?;
        match fed? {
            // Nothing more of it comes after this: what was under way is named, or was given up.
            None if self.stop.is_cancelled() => Ok(None),
            rows => {
                done?;
                let rows = rows.ok_or_else(|| Error::internal("a chunk was loaded without its end"))?;
                self.node.metrics.ingested(&Ingested { rows_accepted: rows, ..Ingested::default() });
                Ok(Some(rows))
            }
        }
    }

    /// Commits what is encoded: how many rows there are, or `None` when it was to stop before the end.
    async fn commit(
        &self,
        target: &Target,
        mut encoded: mpsc::Receiver<(u64, Prepared)>,
        encoding: AbortOnDropHandle<Result<()>>,
    ) -> Result<Option<u64>> {
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
                        let (node, deadline) = (self.node, self.node.write_deadline());
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
        encoding.await.map_err(stopped)??;
        Ok(Some(rows))
    }
}

fn stopped(error: tokio::task::JoinError) -> Error {
    Error::internal(format!("a backfill stopped: {error}"))
}

/// The half of a chunk that runs on threads of its own: from files to rows.
struct Reading {
    node: Arc<Node>,
    source: Arc<Source>,
    target: Arc<Target>,
    times: Range<i64>,
    first: bool,
    batch_rows: u32,
}

impl Reading {
    /// Hands on what `make` makes of each batch.
    async fn run<T>(
        &self,
        order: Order,
        mut make: impl FnMut(RecordBatch) -> Result<T>,
        out: mpsc::Sender<T>,
    ) -> Result<()> {
        let mut failed = None;
        let read = self.source.chunk(self.times.clone(), self.first, order, self.batch_rows as usize, |batch| {
            let made = make(batch).map_err(|error| failed = Some(error)).ok();
            let out = out.clone();
            async move {
                match made {
                    Some(made) => Ok(out.send(made).await.is_ok()),
                    None => Ok(false),
                }
            }
        });
        read.await?;
        failed.map_or(Ok(()), Err)
    }

    /// Encoded rows, in the order of their columns.
    async fn encoded(self, out: mpsc::Sender<(u64, Prepared)>) -> Result<()> {
        self.run(Order::Columns, |batch| Ok((batch.num_rows() as u64, self.encode(&batch)?)), out).await
    }

    /// Rows that can be stored, each key and time once, in the order of history.
    async fn checked(self: Arc<Self>, out: mpsc::Sender<RecordBatch>) -> Result<()> {
        let mut distinct = Distinct::default();
        let sizes_differ = self.target.layout(true).row.is_variable();
        let check = |batch: RecordBatch| {
            if sizes_differ || !load::has_places(&batch)? {
                self.encode(&load::plain(&batch)?)?;
            }
            distinct.keep(&batch)
        };
        self.run(Order::History, check, out).await
    }

    async fn encode_all(self: Arc<Self>, batches: Vec<RecordBatch>, out: mpsc::Sender<(u64, Prepared)>) -> Result<()> {
        for batch in batches {
            let encoded = (batch.num_rows() as u64, self.encode(&load::plain(&batch)?)?);
            if out.send(encoded).await.is_err() {
                break;
            }
        }
        Ok(())
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
