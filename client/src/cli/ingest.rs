//! `cairn ingest` and `cairn delete`: the rows of a file, exactly once, with progress.

use super::Session;
use super::args::{DeleteArgs, IngestArgs, LoadArgs};
use super::failure::{Failure, Outcome};
use super::output::{self, count};
use super::progress::{Progress, Unit, per_second};
use cairn_client::artifacts::hash_file;
use cairn_client::command::{Command, Ingest, Ingested};
use cairn_client::files::{ReadOptions, TableReader};
use cairn_client::{Error, ErrorKind, Token};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Rejected rows spelled out; all are counted.
const REJECTIONS_SHOWN: usize = 20;
/// Sequences count from here, so that 0 stays "none".
const FIRST_SEQUENCE: u64 = 1;

/// A file, and what becomes of its rows.
pub struct Load {
    view: String,
    file: PathBuf,
    args: LoadArgs,
    delete: bool,
}

impl Load {
    pub fn rows(IngestArgs { view, file, load: args }: IngestArgs) -> Self {
        Self { view, file, args, delete: false }
    }

    pub fn deletions(DeleteArgs { view, file, load: args }: DeleteArgs) -> Self {
        Self { view, file, args, delete: true }
    }
}

pub async fn load(session: &Session, load: Load) -> Outcome {
    let args = &load.args;
    let producer = match &args.producer {
        Some(producer) => producer.clone(),
        None => default_producer(session, &load).await?,
    };
    let ask = Ingest {
        producer: Some(producer),
        sequence: Some(FIRST_SEQUENCE),
        delete: load.delete,
        ..Ingest::new(session.project(), &load.view)
    };
    // Types for CSV columns. A node that does not tell leaves them to be inferred.
    let types = match session.client.schema(&Command::Ingest(ask.clone())).await {
        Ok(types) => Some(types),
        Err(error) if error.kind() == ErrorKind::Unsupported => None,
        Err(error) => {
            return Err(
                Failure::from(error).hint_when(ErrorKind::NotFound, "`cairn definitions` lists the feature views")
            );
        }
    };
    let options =
        ReadOptions { batch_rows: args.batch_rows as usize, types, event_timestamp: args.event_timestamp.clone() };
    let path = load.file.clone();
    let reader = tokio::task::spawn_blocking(move || TableReader::open(&path, &options)).await;
    let reader = reader.map_err(|error| Failure::input(format!("{}: {error}", load.file.display())))??;

    let progress = Progress::start(if load.delete { "deleting" } else { "ingesting" }, Unit::Rows, reader.rows());
    let mut total = Total::default();
    let mut answers = session.client.ingest(ask.clone(), reader.into_stream());
    loop {
        match answers.next().await {
            Ok(Some(answer)) => {
                total.add(&answer, u64::from(args.batch_rows));
                progress.at(total.rows);
            }
            Ok(None) => break,
            Err(error) => {
                progress.clear();
                return Err(total.stopped(error));
            }
        }
    }
    let elapsed = progress.elapsed();
    progress.clear();
    let producer = ask.producer.unwrap_or_default();
    output::answer(
        session.global.output,
        || total.text(&load, elapsed),
        || total.json(&load.view, &producer, elapsed),
    )?;
    match total.rejected {
        0 => Ok(()),
        rejected => Err(Failure::input(format!(
            "{} of `{}` rejected; the others are stored",
            count(rejected, "row"),
            load.file.display()
        ))),
    }
}

/// The same file into the same view in the same batches has the same name, so a second run stores nothing twice.
///
/// The view's version is in it: a new version may start without rows, and then the file must count as new.
async fn default_producer(session: &Session, load: &Load) -> Result<String, Failure> {
    let definitions = session.client.definitions(session.project()).await?;
    let version =
        definitions.iter().find(|row| row.kind == "FeatureView" && row.name == load.view).map_or(0, |row| row.version);
    let path = load.file.clone();
    let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await;
    let (root, _) = hashed.map_err(|error| Failure::input(format!("{}: {error}", load.file.display())))??;
    Ok(producer_name(session.project(), load, version, &root))
}

fn producer_name(project: &str, load: &Load, version: u32, root: &str) -> String {
    let Load { view, args, delete, .. } = load;
    let parts = json!([project, view, version, root, args.batch_rows, args.event_timestamp]).to_string();
    let verb = if *delete { "delete" } else { "ingest" };
    format!("cairn-{verb}-{}", blake3::hash(parts.as_bytes()).to_hex())
}

/// All answers together.
#[derive(Debug, Default)]
struct Total {
    /// Answered so far, rejected ones included.
    rows: u64,
    accepted: u64,
    updated: u64,
    duplicate: u64,
    rejected: u64,
    batches: u64,
    /// Row of the file, from 0, and the reason.
    rejections: Vec<(u64, String)>,
    token: Token,
}

impl Total {
    fn add(&mut self, answer: &Ingested, batch_rows: u64) {
        self.accepted += answer.rows_accepted;
        self.updated += answer.rows_updated;
        self.duplicate += answer.rows_duplicate;
        self.rejected += answer.rows_rejected;
        self.rows = self.accepted + self.duplicate + self.rejected;
        let first = self.batches * batch_rows;
        let room = REJECTIONS_SHOWN.saturating_sub(self.rejections.len());
        let shown = answer.rejections.iter().take(room);
        self.rejections.extend(shown.map(|rejection| (first + rejection.row, rejection.reason.clone())));
        self.batches += 1;
        if let Ok(token) = answer.token.parse() {
            self.token.merge(&token);
        }
    }

    /// What to say of an ingest that ended early: what is stored, and what to do about the rest.
    fn stopped(&self, error: Error) -> Failure {
        let again = "run the same command again: rows that are stored already are not stored twice";
        let stored = match self.accepted + self.duplicate {
            0 => None,
            stored => {
                Some(format!("{} before it are stored; sending them again changes nothing", count(stored, "row")))
            }
        };
        let mut failure = Failure::from(error);
        for kind in [ErrorKind::Timeout, ErrorKind::Unavailable, ErrorKind::Overloaded] {
            failure = failure.hint_when(kind, again);
        }
        match stored {
            Some(stored) => failure.hint_when(ErrorKind::InvalidArgument, stored),
            None => failure,
        }
    }

    fn text(&self, load: &Load, elapsed: Duration) -> String {
        let mut text = format!(
            "{} stored in `{}`, {} of them newer than what their entity had",
            count(self.accepted, if load.delete { "deletion" } else { "row" }),
            load.view,
            indicatif::HumanCount(self.updated)
        );
        if self.duplicate > 0 {
            let _ = write!(text, "; {} had been stored before", count(self.duplicate, "row"));
        }
        if self.rejected > 0 {
            let _ = write!(text, "; {} rejected", count(self.rejected, "row"));
        }
        let rate = indicatif::HumanCount(per_second(self.rows, elapsed));
        let _ = writeln!(text, "\n{:.1} s, {rate} rows/s, token {}", elapsed.as_secs_f64(), self.token);
        if !self.rejections.is_empty() {
            text.push_str("rejected (rows of the file, counted from 0):\n");
            for (row, reason) in &self.rejections {
                let _ = writeln!(text, "  row {row}: {reason}");
            }
            let more = self.rejected.saturating_sub(self.rejections.len() as u64);
            if more > 0 {
                let _ = writeln!(text, "  … and {more} more");
            }
        }
        text
    }

    fn json(&self, view: &str, producer: &str, elapsed: Duration) -> Value {
        let rejection = |(row, reason): &(u64, String)| json!({"row": row, "reason": reason});
        json!({
            "feature_view": view,
            "producer": producer,
            "rows_accepted": self.accepted,
            "rows_updated": self.updated,
            "rows_duplicate": self.duplicate,
            "rows_rejected": self.rejected,
            "rejections": self.rejections.iter().map(rejection).collect::<Vec<_>>(),
            "token": self.token.to_string(),
            "seconds": elapsed.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_client::command::Rejection;
    use expect_test::expect;

    fn driver_stats() -> Load {
        let args = LoadArgs { producer: None, batch_rows: 100, event_timestamp: None };
        Load { view: "driver_stats".into(), file: PathBuf::new(), args, delete: false }
    }

    #[test]
    fn answers_add_up_and_rejections_name_rows_of_the_file() {
        let mut total = Total::default();
        let reject = |row| Rejection { row, reason: "join key `driver_id` is null".into() };
        let first = Ingested {
            rows_accepted: 98,
            rows_updated: 90,
            rows_rejected: 2,
            rejections: vec![reject(3), reject(7)],
            token: "1@10,2@4".into(),
            ..Ingested::default()
        };
        total.add(&first, 100);
        total.add(&Ingested { rows_duplicate: 99, token: "1@9".into(), ..Ingested::default() }, 100);
        let rejections = (0..30).map(reject).collect();
        total.add(&Ingested { rows_rejected: 50, rejections, token: "2@8".into(), ..Ingested::default() }, 100);
        assert_eq!(total.rejections.len(), REJECTIONS_SHOWN);
        total.rejections.truncate(3);
        expect![[r#"
            98 rows stored in `driver_stats`, 90 of them newer than what their entity had; 99 rows had been stored before; 52 rows rejected
            2.0 s, 124 rows/s, token 1@10,2@8
            rejected (rows of the file, counted from 0):
              row 3: join key `driver_id` is null
              row 7: join key `driver_id` is null
              row 200: join key `driver_id` is null
              … and 49 more
        "#]]
        .assert_eq(&total.text(&driver_stats(), Duration::from_secs(2)));
    }

    #[test]
    fn a_producer_stands_for_exactly_these_batches() {
        let of = |change: fn(&mut Load)| {
            let mut load = driver_stats();
            change(&mut load);
            producer_name("default", &load, 1, "ab")
        };
        let base = of(|_| ());
        assert_eq!(base, of(|_| ()));
        for other in [
            producer_name("other", &driver_stats(), 1, "ab"),
            producer_name("default", &driver_stats(), 2, "ab"),
            producer_name("default", &driver_stats(), 1, "ac"),
            of(|load| load.view.push('_')),
            of(|load| load.args.batch_rows += 1),
            of(|load| load.args.event_timestamp = Some("at".into())),
            of(|load| load.delete = true),
        ] {
            assert_ne!(base, other);
        }
    }
}
