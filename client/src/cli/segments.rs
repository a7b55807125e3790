//! `cairn segments`: history that went to Parquet files, listed and fetched.

use super::Session;
use super::args::SegmentsArgs;
use super::failure::{Failure, Outcome};
use super::output::{self, count};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use serde_json::json;

const COLUMNS: &str = "feature_view, shard, rows, bytes, first_event, last_event, state, artifact";

pub async fn segments(session: &Session, args: SegmentsArgs) -> Outcome {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut query = format!("select {COLUMNS} from system.segments where project = {}", quoted(session.project()));
    if let Some(view) = &args.view {
        query += &format!(" and feature_view = {}", quoted(view));
    }
    query += " order by feature_view, shard, first_event";
    let mut answer = session.client.sql(&query, session.project()).await?;
    let mut batches = Vec::new();
    while let Some(batch) = answer.next().await? {
        batches.push(batch);
    }
    let mut files = Vec::new();
    if let Some(folder) = &args.fetch {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::input(format!("`{}` cannot be made: {error}", folder.display())))?;
        for (view, root) in batches.iter().flat_map(roots) {
            let file = folder.join(format!("{view}-{}.parquet", root.get(..12).unwrap_or(root)));
            session.client.download_file(root, &file, None).await?;
            files.push(file);
        }
    }
    let listed: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let fetched = match &args.fetch {
        Some(folder) => format!("`{}`: {}\n", folder.display(), count(files.len() as u64, "file")),
        None => String::new(),
    };
    let text = match listed {
        0 => "no history is in segments; a feature view's `hot_window` sends it there\n".to_owned(),
        _ => format!("{}{fetched}", output::batches(&batches)?),
    };
    let rows = output::batches_json(&batches)?;
    output::answer(session.global.output, || text, || json!({"segments": rows, "files": files}))
}

/// View and artifact of each segment.
fn roots(batch: &RecordBatch) -> Vec<(&str, &str)> {
    let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    match (text("feature_view"), text("artifact")) {
        (Some(views), Some(roots)) => views.iter().zip(roots).filter_map(|(view, root)| Some((view?, root?))).collect(),
        _ => Vec::new(),
    }
}
