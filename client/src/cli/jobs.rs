//! `cairn backfill` and `cairn jobs`: long work that goes on without this program.

use super::Session;
use super::args::{BackfillArgs, JobsCommand};
use super::failure::{Failure, Outcome};
use super::output::{self, count, time, time_json};
use super::progress::{Progress, Unit, per_second};
use cairn_client::{ErrorKind, api};
use indicatif::{HumanCount, HumanDuration};
use serde_json::{Value, json};
use std::time::Duration;

/// Between two looks at a job that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub async fn backfill(session: &Session, args: BackfillArgs) -> Outcome {
    let ask = api::BeginBackfillRequest {
        project: session.project().to_owned(),
        view: args.view,
        from_us: args.from.0,
        to_us: args.to.0,
        chunk_us: args.chunk_us.unwrap_or(0),
        author: args.author,
        ..api::BeginBackfillRequest::default()
    };
    let job = session.client.begin_backfill(ask).await?;
    if args.detach {
        let text = || format!("job {}: {}\n`cairn jobs watch {}` follows it\n", job.id, what(&job), job.id);
        return output::answer(session.global.output, text, || json_of(&job));
    }
    follow(session, job).await
}

pub async fn jobs(session: &Session, command: Option<JobsCommand>) -> Outcome {
    let job = match command {
        None => return list(session).await,
        Some(JobsCommand::Watch { id }) => return follow(session, session.client.job(id).await?).await,
        Some(JobsCommand::Show { id }) => session.client.job(id).await?,
        Some(JobsCommand::Pause { id }) => session.client.change_job(id, "pause").await?,
        Some(JobsCommand::Resume { id }) => session.client.change_job(id, "resume").await?,
        Some(JobsCommand::Cancel { id }) => session.client.change_job(id, "cancel").await?,
    };
    output::answer(session.global.output, || text_of(&job), || json_of(&job))
}

async fn list(session: &Session) -> Outcome {
    let jobs = session.client.jobs().await?;
    let text = || {
        let row = |job: &api::Job| {
            vec![
                job.id.to_string(),
                what(job),
                job.state.clone(),
                format!("{}/{}", job.chunks_done, job.chunks),
                HumanCount(job.rows).to_string(),
                time(job.begun_us),
                job.message.clone(),
            ]
        };
        let header = ["JOB", "WHAT", "STATE", "CHUNKS", "ROWS", "BEGUN", "MESSAGE"];
        output::columns(&header, &["JOB", "CHUNKS", "ROWS"], jobs.iter().map(row))
    };
    output::answer(session.global.output, text, || json!({"jobs": jobs.iter().map(json_of).collect::<Vec<_>>()}))
}

/// Shows how far a job is until it ends. Ctrl-C ends the showing, not the job.
async fn follow(session: &Session, mut job: api::Job) -> Outcome {
    let (rows_before, chunks_before) = (job.rows, job.chunks_done);
    let progress = Progress::start("filling", Unit::Chunks, u64::from(job.chunks));
    let detached = tokio::signal::ctrl_c();
    let mut detached = std::pin::pin!(detached);
    while matches!(job.state.as_str(), "running" | "cancelling") {
        let elapsed = progress.elapsed();
        let rate = per_second(job.rows - rows_before, elapsed);
        progress.at_with(
            u64::from(job.chunks_done),
            &format!("{} rows, {} rows/s", HumanCount(job.rows), HumanCount(rate)),
        );
        tokio::select! {
            _ = &mut detached => {
                progress.clear();
                eprintln!(
                    "job {0} goes on; `cairn jobs watch {0}` follows it, `cairn jobs pause {0}` and `cairn jobs cancel {0}` stop it",
                    job.id
                );
                return Ok(());
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let id = job.id;
        job = session.client.job(id).await.map_err(|error| {
            let hint = format!("the job goes on without this program; `cairn jobs watch {id}` follows it again");
            Failure::from(error).hint_when(ErrorKind::Unavailable, hint.as_str()).hint_when(ErrorKind::Timeout, hint)
        })?;
    }
    let elapsed = progress.elapsed();
    progress.clear();
    if job.state == "done" {
        let (rows, chunks) = (job.rows - rows_before, job.chunks_done - chunks_before);
        let text = || {
            format!(
                "{}\n{} in {}, {}, {} rows/s\n",
                text_of(&job).trim_end(),
                count(rows, "row"),
                count(u64::from(chunks), "chunk"),
                HumanDuration(elapsed),
                HumanCount(per_second(rows, elapsed))
            )
        };
        return output::answer(session.global.output, text, || json_of(&job));
    }
    let message = format!("job {} is {}: {}", job.id, job.state, job.message);
    Err(match job.state.as_str() {
        "paused" => {
            let hint = format!("`cairn jobs resume {}` lets it go on", job.id);
            Failure::waited(message.trim_end_matches(": ")).hint_when(ErrorKind::Timeout, hint)
        }
        "cancelled" => {
            let hint = "rows that were stored stay; another backfill of the same interval stores them again";
            Failure::conflict(ErrorKind::Conflict, message.trim_end_matches(": "), hint)
        }
        _ => Failure::input(message),
    })
}

fn what(job: &api::Job) -> String {
    format!("{} of {}/{} from {} to {}", job.kind, job.project, job.view, time(job.from_us), time(job.to_us))
}

fn text_of(job: &api::Job) -> String {
    let files = match job.files.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first, .., last] => format!("{} files, {first} to {last}", job.files.len()),
    };
    let rows = [
        ("what", what(job)),
        ("state", job.state.clone()),
        ("message", job.message.clone()),
        ("chunks", format!("{} of {}, {} s each", job.chunks_done, job.chunks, job.chunk_us / 1_000_000)),
        ("rows", HumanCount(job.rows).to_string()),
        ("files", files),
        ("node", job.node.clone()),
        ("begun", time(job.begun_us)),
        ("ended", time(job.ended_us)),
        ("by", job.author.clone()),
    ];
    let told = rows.into_iter().filter(|(_, value)| !value.is_empty());
    format!("job {}\n", job.id) + &told.map(|(name, value)| format!("  {name:<8} {value}\n")).collect::<String>()
}

fn json_of(job: &api::Job) -> Value {
    json!({
        "id": job.id,
        "project": job.project,
        "kind": job.kind,
        "state": job.state,
        "message": job.message,
        "feature_view": job.view,
        "from": time_json(job.from_us),
        "to": time_json(job.to_us),
        "chunk_seconds": job.chunk_us as f64 / 1e6,
        "chunks": job.chunks,
        "chunks_done": job.chunks_done,
        "rows": job.rows,
        "files": job.files,
        "node": job.node,
        "begun": time_json(job.begun_us),
        "ended": time_json(job.ended_us),
        "author": job.author,
    })
}
