//! `cairn join`: a training set by spine; what makes datasets too.

use super::Session;
use super::args::{Format, JoinArgs};
use super::failure::{Failure, Outcome};
use super::output::{self, count};
use super::progress::{Progress, Unit, per_second};
use super::read::{service_or_features, unknown_name};
use arrow_array::RecordBatch;
use cairn_client::command::{Command, GetHistoricalFeatures, Level};
use cairn_client::files::{FileFormat, ReadOptions, TableReader, TableWriter};
use cairn_client::{Error, ErrorKind, read};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Rows of a training set shown when no file is named.
const ROWS_SHOWN: usize = 20;

pub async fn join(session: &Session, args: JoinArgs) -> Outcome {
    let (feature_service, features) = service_or_features(&args.features)?;
    if let Some(out) = &args.out {
        FileFormat::of(out)?;
    }
    let ask = GetHistoricalFeatures {
        feature_service,
        features,
        // A training set sees everything acknowledged before it was asked for.
        read: args.read.read(Level::Linearizable)?,
        known_as_of: args.read.known_as_of,
        created_as_of: args.how.created_as_of,
        ignore_created: args.how.ignore_created,
        event_timestamp: args.how.event_timestamp.clone(),
        statuses: args.how.statuses,
        full_feature_names: args.how.full_feature_names,
        ..read::historical(session.project())
    };
    let done = run(session, ask, &args.spine, args.batch_rows, args.out.as_deref()).await?;
    let Joined { rows, columns, shown, token, elapsed } = &done;
    let rows = *rows;
    let table = output::batches(shown)?;
    let text = || {
        let more = rows.saturating_sub(shown.iter().map(|batch| batch.num_rows() as u64).sum());
        let head = match &args.out {
            Some(out) => format!("{} with {} columns in `{}`\n", count(rows, "row"), columns.len(), out.display()),
            None if more > 0 => format!("{table}… and {} more; -o FILE keeps them all\n", count(more, "row")),
            None => table,
        };
        let rate = indicatif::HumanCount(per_second(rows, *elapsed));
        format!("{head}{:.1} s, {rate} rows/s, token {token}\n", elapsed.as_secs_f64())
    };
    let listed = if args.out.is_some() { Value::Null } else { output::batches_json(shown)? };
    let json = || {
        json!({
            "rows_joined": rows,
            "columns": columns,
            "rows": listed,
            "out": args.out,
            "token": token,
            "seconds": elapsed.as_secs_f64(),
        })
    };
    output::answer(session.global.output, text, json)
}

/// A join that is over.
pub(super) struct Joined {
    pub rows: u64,
    pub columns: Vec<String>,
    /// The first rows, where no file takes them.
    pub shown: Vec<RecordBatch>,
    pub token: String,
    pub elapsed: Duration,
}

/// Joins the spine in a file, into a file where one is named.
pub(super) async fn run(
    session: &Session,
    ask: GetHistoricalFeatures,
    spine: &Path,
    batch_rows: u32,
    out: Option<&Path>,
) -> Result<Joined, Failure> {
    let options = ReadOptions {
        batch_rows: batch_rows as usize,
        types: spine_types(session, &ask).await?,
        event_timestamp: None,
    };
    let reader = TableReader::open(spine, &options)?;
    let spine_rows = reader.rows();
    let progress = Progress::start("joining", Unit::Rows, spine_rows);
    let schema = reader.schema().clone();
    let joined = session.client.historical_features(ask, schema, reader.into_stream()).await;
    let mut joined = joined.map_err(unknown_name)?;
    let mut kept = Kept::new(session.global.output, out, joined.schema(), ROWS_SHOWN)?;
    let mut rows = 0;
    while let Some(batch) = joined.next().await? {
        rows += batch.num_rows() as u64;
        kept.add(batch)?;
        progress.at(rows);
    }
    if rows != spine_rows {
        return Err(Failure::from(Error::Protocol {
            address: session.client.address().to_owned(),
            reason: format!("{} came back for a spine of {}", count(rows, "row"), count(spine_rows, "row")),
        }));
    }
    let elapsed = progress.elapsed();
    progress.clear();
    let columns = joined.schema().fields().iter().map(|field| field.name().clone()).collect();
    let token = joined.read_reply().token.clone();
    Ok(Joined { rows, columns, shown: kept.finish()?, token, elapsed })
}

/// Where rows of an answer go: a file, or memory (the first few for people, all for programs).
pub(super) struct Kept {
    writer: Option<TableWriter>,
    shown: Vec<RecordBatch>,
    limit: usize,
}

impl Kept {
    /// `shown`: how many a person sees.
    pub fn new(
        format: Format,
        out: Option<&Path>,
        schema: &arrow_schema::SchemaRef,
        shown: usize,
    ) -> Result<Self, Failure> {
        let writer = out.map(|out| TableWriter::create(out, schema)).transpose()?;
        let limit = match (&writer, format) {
            (Some(_), _) => 0,
            (None, Format::Table) => shown,
            (None, Format::Json) => usize::MAX,
        };
        Ok(Self { writer, shown: Vec::new(), limit })
    }

    pub fn add(&mut self, batch: RecordBatch) -> Result<(), Failure> {
        if let Some(writer) = &mut self.writer {
            return Ok(writer.write(&batch)?);
        }
        let rows = batch.num_rows().min(self.limit);
        if rows > 0 {
            self.shown.push(batch.slice(0, rows));
            self.limit -= rows;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<Vec<RecordBatch>, Failure> {
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(self.shown)
    }
}

/// Types for a CSV spine: those of the answer's columns of the same names. A node that does not tell leaves them to be
/// inferred; what is wrong with the command is told by the join itself.
async fn spine_types(session: &Session, ask: &GetHistoricalFeatures) -> Result<Option<arrow_schema::Schema>, Failure> {
    match session.client.schema(&Command::GetHistoricalFeatures(ask.clone())).await {
        Ok(types) => Ok(Some(types)),
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidArgument) => Ok(None),
        Err(error) => Err(unknown_name(error)),
    }
}
