//! `cairn sql`: a query over features, history and the registry.

use super::Session;
use super::args::SqlArgs;
use super::failure::{Failure, Outcome};
use super::join::Kept;
use super::output::{self, count};
use super::progress::{Progress, Unit};
use cairn_client::files::FileFormat;
use serde_json::{Value, json};
use std::io::Read;

/// Rows shown when no file is named.
const ROWS_SHOWN: usize = 100;

pub async fn sql(session: &Session, args: SqlArgs) -> Outcome {
    if let Some(out) = &args.out {
        FileFormat::of(out)?;
    }
    let query = text(&args)?;
    let progress = Progress::start("reading", Unit::Rows, 0);
    let mut answer = session.client.sql(&query, session.project()).await?;
    let mut kept = Kept::new(session.global.output, args.out.as_deref(), answer.schema(), ROWS_SHOWN)?;
    let mut rows = 0;
    while let Some(batch) = answer.next().await? {
        rows += batch.num_rows() as u64;
        kept.add(batch)?;
        progress.at(rows);
    }
    let elapsed = progress.elapsed();
    progress.clear();
    let columns: Vec<_> = answer.schema().fields().iter().map(|field| field.name().clone()).collect();
    let shown = kept.finish()?;
    let table = match shown.is_empty() {
        true => output::columns(&columns.iter().map(String::as_str).collect::<Vec<_>>(), &[], []),
        false => output::batches(&shown)?,
    };
    let text = || {
        let more = rows.saturating_sub(shown.iter().map(|batch| batch.num_rows() as u64).sum());
        let took = format!("{}, {:.2} s\n", count(rows, "row"), elapsed.as_secs_f64());
        match &args.out {
            Some(out) => format!("`{}`: {took}", out.display()),
            None if more > 0 => format!("{table}… and {} more; -o FILE keeps them all\n{took}", count(more, "row")),
            None => format!("{table}{took}"),
        }
    };
    let listed = if args.out.is_some() { Value::Null } else { output::batches_json(&shown)? };
    let json = || json!({"row_count": rows, "columns": columns, "rows": listed, "out": args.out, "seconds": elapsed.as_secs_f64()});
    output::answer(session.global.output, text, json)
}

/// The query: as typed, of a file, or of standard input.
fn text(args: &SqlArgs) -> Result<String, Failure> {
    let unreadable = |what: &str, error: std::io::Error| Failure::input(format!("{what} cannot be read: {error}"));
    match (&args.query, &args.file) {
        (Some(query), _) if query != "-" => Ok(query.clone()),
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|error| unreadable(&format!("`{}`", file.display()), error))
        }
        _ => {
            let mut query = String::new();
            std::io::stdin().read_to_string(&mut query).map_err(|error| unreadable("standard input", error))?;
            Ok(query)
        }
    }
}
