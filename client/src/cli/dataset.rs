//! `cairn dataset`: training sets that can be made again, byte for byte.

use super::Session;
use super::args::{DatasetCommand, DatasetCreateArgs, DatasetRebuildArgs};
use super::failure::{Failure, Outcome};
use super::join::{self, Joined};
use super::output::{self, count, size, time, time_json};
use super::progress::per_second;
use super::read::{service_or_features, unknown_name};
use cairn_client::artifacts::hash_file;
use cairn_client::datasets::join_of;
use cairn_client::files::FileFormat;
use cairn_client::{ErrorKind, api};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of the spine in one batch: part of how the bytes of a file come about.
const BATCH_ROWS: u32 = 16_384;

pub async fn dataset(session: &Session, command: DatasetCommand) -> Outcome {
    match command {
        DatasetCommand::Create(args) => create(session, args).await,
        DatasetCommand::Rebuild(args) => rebuild(session, args).await,
        DatasetCommand::List => list(session).await,
        DatasetCommand::Show(args) => {
            let dataset = named(session, &args.name).await?;
            output::answer(session.global.output, || text_of(&dataset), || json_of(&dataset))
        }
    }
}

async fn create(session: &Session, args: DatasetCreateArgs) -> Outcome {
    let format = format_of(&args.out)?;
    let (service, features) = service_or_features(&args.features)?;
    let (project, name) = (session.project().to_owned(), args.name);
    // Said before the work: the name decides at the end as well.
    match session.client.dataset(&project, &name).await {
        Ok(taken) => return Err(is_taken(&taken)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let (feature_service, features) = (service.unwrap_or_default(), features.unwrap_or_default());
    let known_us = args.known_as_of.map(|at| at.0);
    let pin =
        api::PinRequest { project: project.clone(), feature_service: feature_service.clone(), features, known_us };
    let pinned = session.client.pin(pin).await.map_err(unknown_name)?;
    let spine = session.client.upload_file(&args.spine, None).await?;
    let dataset = api::Dataset {
        project,
        name,
        spine_root: spine.root,
        spine_bytes: spine.size,
        spine_file: args.spine.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        event_timestamp: args.how.event_timestamp,
        feature_service,
        feature_service_version: pinned.feature_service_version,
        features: pinned.features,
        known_us: pinned.known_us,
        ignore_created: args.how.ignore_created,
        created_as_of_us: args.how.created_as_of.map(|at| at.0),
        statuses: args.how.statuses,
        full_feature_names: args.how.full_feature_names,
        file_format: format.to_owned(),
        author: args.author,
        description: args.description,
        ..api::Dataset::default()
    };
    let joined = join::run(session, join_of(&dataset), &args.spine, BATCH_ROWS, Some(&args.out)).await?;
    let (content, _) = hash_file(&args.out)?;
    let dataset = api::Dataset { content, rows: joined.rows, token: joined.token.clone(), ..dataset };
    let dataset = session.client.register_dataset(dataset).await?;
    let text = || format!("created dataset `{}`: {}{}", dataset.name, written(&joined, &args.out), text_of(&dataset));
    output::answer(session.global.output, text, || json_of(&dataset))
}

async fn rebuild(session: &Session, args: DatasetRebuildArgs) -> Outcome {
    let format = format_of(&args.out)?;
    let dataset = named(session, &args.name).await?;
    if dataset.file_format != format {
        return Err(Failure::input(format!(
            "dataset `{}` was made as {1}, and other bytes cannot be compared; name a file that ends in .{1}",
            dataset.name, dataset.file_format
        )));
    }
    // Of the name that somebody gave the spine, only what tells its format.
    let spine = beside(&args.out, &format!("spine.{}", format_of(Path::new(&dataset.spine_file))?));
    // A file that is there already stays until there is one with the right bytes.
    let made = beside(&args.out, &format!("rebuilt.{format}"));
    session.client.download_file(&dataset.spine_root, &spine, None).await?;
    let joined = join::run(session, join_of(&dataset), &spine, BATCH_ROWS, Some(&made)).await;
    let _ = fs::remove_file(&spine);
    let joined = joined?;
    let (content, _) = hash_file(&made)?;
    if content != dataset.content {
        let message = format!(
            "what was made now has other bytes (BLAKE3 {content}) than dataset `{}` had ({}); it is kept in `{}`",
            dataset.name,
            dataset.content,
            made.display()
        );
        return Err(Failure::conflict(ErrorKind::Conflict, message, "was it made by another version of `cairn`?"));
    }
    fs::rename(&made, &args.out).map_err(|error| Failure::input(format!("{}: {error}", args.out.display())))?;
    let text = || format!("rebuilt dataset `{}`, the same bytes: {}", dataset.name, written(&joined, &args.out));
    output::answer(session.global.output, text, || json_of(&dataset))
}

async fn list(session: &Session) -> Outcome {
    let datasets = session.client.datasets(session.project()).await?;
    let text = || {
        let rows =
            datasets.iter().map(|it| vec![it.name.clone(), it.rows.to_string(), features(it), time(it.known_us)]);
        output::columns(&["DATASET", "ROWS", "FEATURES", "KNOWN AS OF"], &["ROWS"], rows)
    };
    let json = || json!({"datasets": datasets.iter().map(json_of).collect::<Vec<_>>()});
    output::answer(session.global.output, text, json)
}

async fn named(session: &Session, name: &str) -> Result<api::Dataset, Failure> {
    let found = session.client.dataset(session.project(), name).await;
    found.map_err(|error| {
        Failure::from(error).hint_when(ErrorKind::NotFound, "`cairn dataset list` shows what there is")
    })
}

fn is_taken(dataset: &api::Dataset) -> Failure {
    let message = format!("there is a dataset `{}`, and it never changes; choose another name", dataset.name);
    let hint = format!("`cairn dataset show {}` tells how it was made", dataset.name);
    Failure::conflict(ErrorKind::AlreadyExists, message, hint)
}

fn format_of(out: &Path) -> Result<&'static str, Failure> {
    Ok(match FileFormat::of(out)? {
        FileFormat::Parquet => "parquet",
        FileFormat::Csv => "csv",
    })
}

/// A hidden file in the same folder.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{what}"))
}

fn written(joined: &Joined, out: &Path) -> String {
    let rate = indicatif::HumanCount(per_second(joined.rows, joined.elapsed));
    format!(
        "{} with {} columns in `{}`\n{:.1} s, {rate} rows/s, token {}\n",
        count(joined.rows, "row"),
        joined.columns.len(),
        out.display(),
        joined.elapsed.as_secs_f64(),
        joined.token
    )
}

fn features(dataset: &api::Dataset) -> String {
    match dataset.feature_service.as_str() {
        "" => dataset.features.join(","),
        service => format!("{service}@{}", dataset.feature_service_version),
    }
}

fn text_of(dataset: &api::Dataset) -> String {
    let corrections = match (dataset.ignore_created, dataset.created_as_of_us) {
        (true, _) => "all".to_owned(),
        (false, Some(at)) => format!("created by {}", time(at)),
        (false, None) => "created by each row's time".to_owned(),
    };
    let rows = [
        ("features", features(dataset)),
        ("spine", format!("{}, {}, artifact {}", dataset.spine_file, size(dataset.spine_bytes), dataset.spine_root)),
        ("known as of", time(dataset.known_us)),
        ("corrections", corrections),
        ("content", format!("BLAKE3 {}, {}", dataset.content, dataset.file_format)),
        ("rows", dataset.rows.to_string()),
        ("created", time(dataset.created_us)),
        ("by", dataset.author.clone()),
        ("about", dataset.description.clone()),
    ];
    let told = rows.into_iter().filter(|(_, value)| !value.is_empty());
    told.map(|(name, value)| format!("  {name:<12} {value}\n")).collect()
}

fn json_of(dataset: &api::Dataset) -> Value {
    json!({
        "name": dataset.name,
        "feature_service": dataset.feature_service,
        "feature_service_version": dataset.feature_service_version,
        "features": dataset.features,
        "spine_root": dataset.spine_root,
        "spine_bytes": dataset.spine_bytes,
        "spine_file": dataset.spine_file,
        "event_timestamp": dataset.event_timestamp,
        "known_as_of": time_json(dataset.known_us),
        "ignore_created": dataset.ignore_created,
        "created_as_of": dataset.created_as_of_us.map(time_json),
        "statuses": dataset.statuses,
        "full_feature_names": dataset.full_feature_names,
        "content": dataset.content,
        "file_format": dataset.file_format,
        "rows": dataset.rows,
        "token": dataset.token,
        "author": dataset.author,
        "description": dataset.description,
        "created": time_json(dataset.created_us),
    })
}
