//! Jobs: what is to be done, how far it is, and how it ended.
//!
//! A node drives a job and keeps nothing of it (ADR-0013): what is left follows from the record. So commands come late and
//! twice, from nodes that do not know of each other. Always true:
//! - a job that has ended never changes again
//! - a chunk counts once, whoever records it and how often
//! - the chunk that completes a backfill ends it and lets its view be served, in one step

use super::Row;
use super::apply::{Answer, Context};
use super::names::check_name;
use crate::catalog::Project;
use crate::{Error, Result};
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    self as record, Backfill, BeginJob, ChangeJob, ChunkRange, Filled, Job, JobState, RecordChunk, RecordSource,
    job::Kind,
};
use std::sync::Arc;

/// Jobs kept; above it the oldest that has ended goes.
pub const JOBS_MAX: usize = 1_000;
/// Jobs that have not ended.
const JOBS_OPEN_MAX: usize = 100;
/// Chunks of one backfill.
const CHUNKS_MAX: i64 = 100_000;
/// Files one backfill reads.
const FILES_MAX: usize = 1_024;
/// Lanes of one backfill.
const LANES_MAX: u32 = 64;
/// Messages and authors, bytes.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// `running`, as people read it.
pub fn job_state_name(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Cancelling => "cancelling",
        JobState::Cancelled => "cancelled",
        JobState::Failed => "failed",
        JobState::Done => "done",
    }
}

/// Chunks of a backfill.
pub fn chunk_count(it: &Backfill) -> u32 {
    let span = it.to_us.saturating_sub(it.from_us).max(0);
    u32::try_from(span.checked_sub(1).map_or(0, |last| last / it.chunk_us.max(1) + 1)).unwrap_or(u32::MAX)
}

/// Chunks not done yet, ascending.
pub fn missing_chunks(it: &Backfill) -> impl Iterator<Item = u32> + use<> {
    let done = it.done.clone();
    (0..chunk_count(it)).filter(move |chunk| !has(&done, *chunk))
}

fn has(done: &[ChunkRange], chunk: u32) -> bool {
    done.iter().any(|range| (range.first..=range.last).contains(&chunk))
}

pub fn begin(context: &Context<'_>, ask: &BeginJob) -> Answer {
    let asked = ask.job.clone().unwrap_or_default();
    let Some(Kind::Backfill(fill)) = asked.kind else {
        return Err(Error::InvalidArgument("a job without content; say what it is to do".to_owned()));
    };
    check_name("a project", &asked.project)?;
    check_text(&asked.author)?;
    let project = context.catalog.project(&asked.project)?;
    let version = Some(fill.view_version).filter(|version| *version > 0);
    let view = project.feature_view(&fill.view, version)?;
    let name = format!("{}@{}", view.name, view.version);
    if view.files.is_none() {
        return Err(Error::InvalidArgument(format!(
            "feature view `{name}` has no files to be filled from; give its definition a `source` with a `path`"
        )));
    }
    if project.feature_view(&fill.view, None)?.storage_id != view.storage_id {
        return Err(Error::Conflict(format!(
            "feature view `{name}` has other columns than its newest version, and rows go to that one; backfill the newest"
        )));
    }
    check_span(&fill)?;
    let open: Vec<_> = context.catalog.jobs().filter(|job| job.ended_us == 0).collect();
    if open.len() >= JOBS_OPEN_MAX {
        return Err(Error::Conflict(format!(
            "{JOBS_OPEN_MAX} jobs have not ended, the limit; wait for one, or cancel one (`cairn jobs`)"
        )));
    }
    if let Some(other) = open.iter().find(|job| overlaps(job, view.storage_id, &fill)) {
        return Err(Error::Conflict(format!(
            "job {} fills feature view `{}` and some of the same time; wait for it, or cancel it",
            other.id, fill.view
        )));
    }
    let fill = Backfill {
        view_version: view.version,
        storage_id: view.storage_id,
        files: Vec::new(),
        done: Vec::new(),
        rows: 0,
        ..fill
    };
    let job = Job {
        id: context.index,
        project: asked.project,
        state: JobState::Running as i32,
        revision: context.index,
        begun_us: context.now_us,
        changed_us: context.now_us,
        author: asked.author,
        kind: Some(Kind::Backfill(fill)),
        ..Job::default()
    };
    Ok(answer(job, Vec::new()))
}

fn check_span(it: &Backfill) -> Result<()> {
    let invalid = |message: String| Err(Error::InvalidArgument(message));
    let Some(span) = it.to_us.checked_sub(it.from_us).filter(|span| *span > 0) else {
        return invalid(
            "`from` is not before `to`: the interval holds the event times from `from` on, before `to`".to_owned(),
        );
    };
    if it.chunk_us <= 0 {
        return invalid("a chunk has no length; give it one such as 1d".to_owned());
    }
    if (span - 1) / it.chunk_us >= CHUNKS_MAX {
        return invalid(format!("the interval has more than {CHUNKS_MAX} chunks; make them longer"));
    }
    if !(1..=LANES_MAX).contains(&it.lanes) {
        return invalid(format!("a backfill has 1 to {LANES_MAX} lanes, not {}", it.lanes));
    }
    Ok(())
}

fn overlaps(job: &Job, storage_id: u32, fill: &Backfill) -> bool {
    let Some(Kind::Backfill(other)) = &job.kind else { return false };
    other.storage_id == storage_id && other.from_us < fill.to_us && fill.from_us < other.to_us
}

/// The transitions that may be asked for; the last chunk makes the one to done.
pub fn change(context: &Context<'_>, ask: &ChangeJob) -> Answer {
    use JobState::{Cancelled, Cancelling, Done, Failed, Paused, Running};
    let job = context.catalog.job(ask.id)?;
    check_text(&ask.message)?;
    let (before, after) = (job.state(), ask.state());
    if before == after {
        return Ok((Outcome::Job(Job::clone(job)), Vec::new()));
    }
    if ask.expected_revision != 0 && ask.expected_revision != job.revision {
        return Err(Error::Conflict(format!(
            "job {} changed its state since: it is {}",
            job.id,
            job_state_name(before)
        )));
    }
    match (before, after) {
        (Running, Paused | Cancelling | Failed) | (Paused, Running | Cancelling) | (Cancelling, Cancelled | Failed) => {
        }
        (Cancelled | Failed | Done, _) => return Err(ended(job)),
        _ => {
            return Err(Error::Conflict(format!(
                "job {} is {} and cannot become {}",
                job.id,
                job_state_name(before),
                job_state_name(after)
            )));
        }
    }
    let mut changed = Job::clone(job);
    changed.message = ask.message.clone();
    Ok(answer(into_state(context, changed, after), Vec::new()))
}

/// What is read, once for the whole job: later drivers compare it with what they find.
pub fn record_source(context: &Context<'_>, ask: &RecordSource) -> Answer {
    let mut job = open(context, ask.id)?;
    if ask.files.is_empty() || ask.files.len() > FILES_MAX {
        return Err(Error::InvalidArgument(format!(
            "a backfill reads 1 to {FILES_MAX} files, not {}",
            ask.files.len()
        )));
    }
    if ask.files.iter().any(|file| file.content.len() != 32) {
        return Err(Error::InvalidArgument("a file of a backfill comes without the BLAKE3 of its bytes".to_owned()));
    }
    let fill = backfill(&mut job)?;
    if fill.files == ask.files {
        return Ok((Outcome::Job(job), Vec::new()));
    }
    if !fill.files.is_empty() {
        return Err(Error::Conflict(format!("job {} reads other files already", ask.id)));
    }
    fill.files = ask.files.clone();
    job.node = ask.node;
    Ok(answer(job, Vec::new()))
}

/// Also of a job that is paused or being cancelled: the work is done.
pub fn record_chunk(context: &Context<'_>, ask: &RecordChunk) -> Answer {
    let mut job = open(context, ask.id)?;
    let fill = backfill(&mut job)?;
    let chunks = chunk_count(fill);
    if ask.chunk >= chunks {
        return Err(Error::InvalidArgument(format!(
            "job {} has chunks 0 to {}, not {}",
            ask.id,
            chunks - 1,
            ask.chunk
        )));
    }
    if has(&fill.done, ask.chunk) {
        return Ok((Outcome::Job(job), Vec::new()));
    }
    add(&mut fill.done, ask.chunk);
    fill.rows = fill.rows.saturating_add(ask.rows);
    let complete = fill.done.first().is_some_and(|range| range.first == 0 && range.last + 1 == chunks);
    if complete && fill.loads && !ask.newest && job.state() != JobState::Cancelling {
        return Err(Error::Conflict(format!(
            "chunk {} is the last one of job {}, and the newest rows are not known to be read yet",
            ask.chunk, ask.id
        )));
    }
    let fill = backfill(&mut job)?;
    let storage_id = fill.storage_id;
    job.node = ask.node;
    if !complete || job.state() == JobState::Cancelling {
        return Ok(answer(job, Vec::new()));
    }
    let project = context.catalog.project(&job.project)?;
    let rows = served(context, project, job.id, storage_id);
    Ok(answer(into_state(context, job, JobState::Done), rows))
}

/// Rows that let what was filled be served: a new catalog version, so that plans are made again.
fn served(context: &Context<'_>, project: &Arc<Project>, job: u64, storage_id: u32) -> Vec<Row> {
    if project.has_filled(storage_id) {
        return Vec::new();
    }
    let filled =
        Filled { project: project.name().to_owned(), storage_id, job, index: context.index, at_us: context.now_us };
    let changed = record::Project { catalog_version: context.index, ..project.record().clone() };
    vec![Row::Project(changed), Row::Filled(filled)]
}

/// Adds a chunk that is not in there.
fn add(done: &mut Vec<ChunkRange>, chunk: u32) {
    let at = done.partition_point(|range| range.last < chunk);
    done.insert(at, ChunkRange { first: chunk, last: chunk });
    done.dedup_by(|next, range| {
        let touches = range.last + 1 == next.first;
        if touches {
            range.last = next.last;
        }
        touches
    });
}

fn into_state(context: &Context<'_>, mut job: Job, state: JobState) -> Job {
    job.state = state as i32;
    job.revision = context.index;
    job.changed_us = context.now_us;
    if matches!(state, JobState::Cancelled | JobState::Failed | JobState::Done) {
        // 0 says that it has not ended.
        job.ended_us = context.now_us.max(1);
    }
    if matches!(state, JobState::Running | JobState::Done) {
        job.message = String::new();
    }
    job
}

fn answer(job: Job, mut rows: Vec<Row>) -> (Outcome, Vec<Row>) {
    rows.push(Row::Job(Box::new(job.clone())));
    (Outcome::Job(job), rows)
}

fn open(context: &Context<'_>, id: u64) -> Result<Job> {
    let job = context.catalog.job(id)?;
    if job.ended_us != 0 {
        return Err(ended(job));
    }
    Ok(Job::clone(job))
}

fn ended(job: &Job) -> Error {
    Error::Conflict(format!("job {} has ended: it is {}; begin another one", job.id, job_state_name(job.state())))
}

fn backfill(job: &mut Job) -> Result<&mut Backfill> {
    let id = job.id;
    match &mut job.kind {
        Some(Kind::Backfill(fill)) => Ok(fill),
        None => Err(Error::InvalidArgument(format!("job {id} is no backfill"))),
    }
}

fn check_text(text: &str) -> Result<()> {
    match text.len() <= TEXT_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::TooLarge(format!("a text of {} bytes is over the limit of {TEXT_BYTES_MAX}", text.len()))),
    }
}
