//! Backfills: feature views filled from their files, chunk by chunk, driven by whoever leads meta (ADR-0013).
//!
//! In reading order: `drive` (which jobs run here), `fill` (one run of one job), [`load`] (chunks of many rows as segments).
//!
//! Always true:
//! - nothing of a job is kept here: what is left to do follows from its record, so another node goes on where this one stopped
//! - a chunk that runs again, here or elsewhere, gives the same rows: under the same sequences, or as segments of the same
//!   chunk, and shards take each once
//! - a chunk is recorded when all its rows are committed and its files are still what they were
//!
//! Reading, sorting and writing have threads and memory of their own, behind serving, which goes on beside it.

mod drive;
mod fill;
pub mod load;

pub use drive::drive;

use crate::error::{Error, Result};
use crate::meta_write;
use crate::node::Node;
use crate::sql::{THREADS_MAX, step_back};
use cairn_proto::ErrorKind;
use cairn_proto::api::v1::BeginBackfillRequest;
use cairn_proto::record::v1::job::Kind;
use cairn_proto::record::v1::meta_command::Change;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    Backfill, BeginJob, FeatureType, FeatureView, Field, Job, JobState, RecordSource, SourceFile, ValueKind,
};
use cairn_query::backfill::{BackfillEngine, Source, Wanted};
use cairn_query::sql::SqlLimits;
use cairn_storage::catalog::{Catalog, Reference, Versioned};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio_util::task::AbortOnDropHandle;

/// Memory of all backfills of a node; above it sorts spill, to eight times as much disk.
const MEMORY_BYTES: usize = 256 << 20;
/// Of a thread that plans; as for SQL.
const STACK_BYTES: usize = 256 << 20;
/// Chunks of one job under way side by side.
const LANES: u32 = 2;
/// Rows of a batch, and encoded bytes of one as far as the types tell.
const BATCH_ROWS_MAX: usize = 32_768;
/// Of the largest rows there are, 1 MiB, so many fit one log entry.
const BATCH_ROWS_MIN: usize = 16;
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of files in one chunk where nobody says how long one is. Every chunk reads all of a CSV file.
const CHUNK_BYTES_PARQUET: u64 = 16 << 20;
const CHUNK_BYTES_CSV: u64 = 256 << 20;
/// Chunks of a backfill whose length nobody says.
const CHUNKS_SUGGESTED_MAX: u64 = 1_000;

/// Where backfills read and sort.
#[derive(Debug)]
pub struct Backfills {
    engine: Arc<BackfillEngine>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Backfills {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Backfills {
    /// Spills to a folder of `data_dir`.
    ///
    /// # Errors
    /// `Internal` when the folder or the threads cannot be had.
    pub fn new(data_dir: &Path) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let limits = SqlLimits {
            memory_bytes: MEMORY_BYTES,
            spill_bytes: (MEMORY_BYTES as u64) << 3,
            spill_dir: data_dir.join("backfill-spill"),
            partitions: 1,
        };
        let engine = Arc::new(BackfillEngine::new(&limits)?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("backfill")
            // All cores: serving comes first on each.
            .worker_threads(cores.clamp(1, THREADS_MAX))
            .on_thread_start(step_back)
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| Error::internal(format!("threads for backfills: {error}")))?;
        Ok(Self { engine, runtime: Some(runtime) })
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| Error::internal("backfills have stopped"))
    }

    /// Runs `work`, which may block, on the threads of backfills.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BackfillEngine) -> cairn_query::Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = Arc::clone(&self.engine);
        let done = AbortOnDropHandle::new(self.runtime()?.spawn_blocking(move || work(&engine))).await;
        Ok(done.map_err(|error| Error::internal(format!("a backfill stopped: {error}")))??)
    }

    async fn open(&self, wanted: Wanted, thorough: bool) -> Result<Source> {
        self.blocking(move |engine| engine.open(&wanted, thorough)).await
    }
}

/// Begins a backfill, once its files can be opened here and give what the view needs.
///
/// # Errors
/// `NotFound` for an unknown view, or files that this node cannot read; `InvalidArgument` for a view without files, an empty
/// interval, or files that do not fit; `Conflict` when another backfill fills some of the same.
pub async fn begin(node: &Node, ask: BeginBackfillRequest) -> Result<Job> {
    node.writes.check()?;
    let BeginBackfillRequest { project, view, from_us, to_us, author, request_id, .. } = ask;
    if from_us >= to_us {
        return Err(Error::invalid(
            "`from` is not before `to`: the interval holds the event times from `from` on, before `to`",
        ));
    }
    let catalog = node.fresh_catalog().await?;
    let Reference { view, version, feature: None } = Reference::parse(&view)? else {
        return Err(Error::invalid(format!("`{view}` names a feature; a backfill fills a feature view")));
    };
    let found = Arc::clone(catalog.project(&project)?.feature_view(&view, version)?);
    let wanted = wanted(&catalog, &project, &found)?;
    let source = node.backfills.open(wanted, false).await.map_err(|error| match error.kind {
        // A caller should not wait for files to come; a job does.
        ErrorKind::Unavailable => Error::not_found(error.message),
        _ => error,
    })?;
    let chunk_us = if ask.chunk_us == 0 { suggested(&source, from_us, to_us) } else { ask.chunk_us };
    let fill = Backfill {
        view,
        view_version: found.version,
        from_us,
        to_us,
        chunk_us,
        lanes: LANES,
        batch_rows: batch_rows(&found),
        // What is served already is restated row by row: readers see each row at once, as history and online.
        loads: !catalog.project(&project)?.has_filled(found.storage_id),
        ..Backfill::default()
    };
    let job = Job { project, author, kind: Some(Kind::Backfill(fill)), ..Job::default() };
    let (outcome, _) = meta_write::propose(node, Change::BeginJob(BeginJob { job: Some(job) }), request_id).await?;
    job_of(outcome)
}

/// Pauses a job, lets it go on, or gives it up. A job that is being cancelled ends once what is under way is committed.
///
/// # Errors
/// `NotFound`; `Conflict` for a job that has ended; `InvalidArgument` for an action that there is not.
pub async fn change(node: &Node, id: u64, action: &str) -> Result<Job> {
    let state = match action {
        "pause" => JobState::Paused,
        "resume" => JobState::Running,
        "cancel" => JobState::Cancelling,
        other => {
            return Err(Error::invalid(format!(
                "`{other}` cannot be done to a job; it is one of pause, resume, cancel"
            )));
        }
    };
    // Jobs that are done with it already say so.
    let job = Job::clone(node.fresh_catalog().await?.job(id)?);
    if state == JobState::Cancelling && job.state() == JobState::Cancelled {
        return Ok(job);
    }
    set_state(node, id, state, String::new(), 0).await
}

async fn set_state(node: &Node, id: u64, state: JobState, message: String, expected_revision: u64) -> Result<Job> {
    let change = cairn_proto::record::v1::ChangeJob { id, state: state as i32, message, expected_revision };
    job_of(meta_write::propose(node, Change::ChangeJob(change), String::new()).await?.0)
}

async fn record_source(node: &Node, id: u64, files: Vec<SourceFile>) -> Result<Job> {
    let change = RecordSource { id, node: node.cluster.node_id(), files };
    job_of(meta_write::propose(node, Change::RecordSource(change), String::new()).await?.0)
}

fn job_of(outcome: Outcome) -> Result<Job> {
    match outcome {
        Outcome::Job(job) => Ok(job),
        _ => Err(Error::internal("a job was answered with something else")),
    }
}

/// What a backfill of this view reads.
fn wanted(catalog: &Catalog, project: &str, view: &Versioned<FeatureView>) -> Result<Wanted> {
    let files = view.files.clone().ok_or_else(|| {
        Error::invalid(format!(
            "feature view `{}@{}` has no files to be filled from; give its definition a `source` with a `path`",
            view.name, view.version
        ))
    })?;
    let join_keys = catalog.project(project)?.join_keys(view)?;
    Ok(Wanted { view: view.name.clone(), join_keys, features: view.features.clone(), files })
}

/// A length of chunks that the size of the files suggests.
fn suggested(source: &Source, from_us: i64, to_us: i64) -> i64 {
    let bytes = if source.is_text() { CHUNK_BYTES_CSV } else { CHUNK_BYTES_PARQUET };
    let chunks = source.bytes().div_ceil(bytes).clamp(1, CHUNKS_SUGGESTED_MAX);
    let span = to_us.saturating_sub(from_us);
    // Whole seconds read better, and the last chunk may be shorter.
    let length = span.unsigned_abs().div_ceil(chunks).div_ceil(1_000_000).saturating_mul(1_000_000);
    i64::try_from(length).unwrap_or(span).max(1)
}

/// Rows of a batch, by what a row of these types takes; part of which rows a sequence names.
fn batch_rows(view: &FeatureView) -> u32 {
    let bytes: usize = view.features.iter().map(bytes_of).sum();
    (BATCH_BYTES / bytes.max(1)).clamp(BATCH_ROWS_MIN, BATCH_ROWS_MAX) as u32
}

fn bytes_of(field: &Field) -> usize {
    let FeatureType { list, length, .. } = field.r#type.unwrap_or_default();
    let kind = field.r#type.unwrap_or_default().kind();
    let one = match kind {
        ValueKind::String | ValueKind::Bytes => 64,
        _ => 8,
    };
    match (list, length) {
        (false, _) => one,
        (true, 0) => one * 128,
        (true, length) => one * length as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(types: &[&str]) -> FeatureView {
        let field = |of: &&str| Field {
            name: (*of).to_owned(),
            r#type: Some(cairn_storage::types::parse_type(of).unwrap()),
            ..Field::default()
        };
        FeatureView { features: types.iter().map(field).collect(), ..FeatureView::default() }
    }

    #[test]
    fn batches_of_wide_rows_have_fewer() {
        assert_eq!(batch_rows(&view(&["float32"; 10])), 32_768);
        assert_eq!(batch_rows(&view(&["list<float32>[1024]"])), 1_024);
        assert_eq!(batch_rows(&view(&["list<float32>[65536]"; 9])), 16);
    }
}
