//! What clients asked and were told, with the moments of both, as Jepsen does it.
//!
//! Every operation ends as ok (it took effect), failed (it certainly did not) or unknown (nobody knows: a time-out, a lost
//! connection). Moments come from one monotonic clock of this process, so that "before" means before. All of it is kept
//! as JSON lines in the run's folder; here only what the table and the timeline need.

use crate::Result;
use cairn_client::{Error, ErrorKind};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Microseconds since the run began.
pub type Moment = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    Failed,
    Unknown,
}

impl Outcome {
    /// Of a write that came back with `error`. Only a node that says why it did nothing is believed.
    pub fn of_write(error: &Error) -> Self {
        let refused = matches!(error, Error::Refused { .. } | Error::Connect { .. } | Error::Input(_));
        match error.kind() {
            ErrorKind::Timeout | ErrorKind::Internal | ErrorKind::Corrupt => Self::Unknown,
            _ if refused => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// One operation, as kept in memory.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub workload: &'static str,
    pub client: u32,
    pub began: Moment,
    pub ended: Moment,
    pub outcome: Outcome,
}

/// One fault, as kept in memory.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    pub kind: &'static str,
    pub what: String,
    pub began: Moment,
    pub ended: Moment,
}

#[derive(Debug)]
pub struct History {
    began: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    lines: BufWriter<File>,
    stamps: Vec<Stamp>,
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Line<'a, W> {
    workload: &'a str,
    client: u32,
    node: &'a str,
    began: Moment,
    /// When the answer came; of an unknown operation, when nobody waited any more.
    ended: Moment,
    outcome: Outcome,
    asked: &'a W,
    #[serde(skip_serializing_if = "str::is_empty")]
    told: &'a str,
}

impl History {
    /// # Errors
    /// When `history.jsonl` cannot be made in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let lines = BufWriter::new(File::create(folder.join("history.jsonl"))?);
        let kept = Kept { lines, stamps: Vec::new(), faults: Vec::new() };
        Ok(Self { began: Instant::now(), kept: Mutex::new(kept) })
    }

    pub fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    pub fn at(&self, instant: Instant) -> Moment {
        u64::try_from(instant.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    /// Keeps an operation. `asked` is its question, `told` the answer in words.
    pub fn note(&self, stamp: Stamp, node: &str, asked: &impl Serialize, told: &str) {
        let Stamp { workload, client, began, ended, outcome } = stamp;
        let line = serde_json::to_string(&Line { workload, client, node, began, ended, outcome, asked, told });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.stamps.push(stamp);
        if let Ok(line) = line {
            // A full disk of the harness must not become a verdict: the stamps in memory are what is judged.
            let _ = writeln!(kept.lines, "{line}");
        }
    }

    pub fn fault(&self, kind: &'static str, what: String, began: Moment) {
        let fault = Fault { kind, what, began, ended: self.now() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(line) = serde_json::to_string(&fault) {
            let _ = writeln!(kept.lines, "{line}");
        }
        kept.faults.push(fault);
    }

    /// All operations and faults so far; the file is complete after it.
    pub fn so_far(&self) -> (Vec<Stamp>, Vec<Fault>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = kept.lines.flush();
        (kept.stamps.clone(), kept.faults.clone())
    }

    pub fn faults_so_far(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).faults.len()
    }
}
