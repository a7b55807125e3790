//! Progress of long work on standard error: a bar on a terminal, a plain line now and then elsewhere (CI logs).

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Between two plain lines.
const QUIET: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Rows,
    Bytes,
    Chunks,
}

/// How far some work is.
pub struct Progress {
    verb: &'static str,
    unit: Unit,
    total: u64,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Mutex<Instant>,
}

impl Progress {
    /// Starts showing. `verb` is what is being done: `ingesting`.
    pub fn start(verb: &'static str, unit: Unit, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = match unit {
                Unit::Rows => "{msg} {bar:30} {human_pos}/{human_len} rows  {per_sec}  ETA {eta}",
                Unit::Chunks => "{msg} {bar:30} {human_pos}/{human_len} chunks  ETA {eta}",
                Unit::Bytes => "{msg} {bar:30} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}",
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.with_style(style).with_message(verb)
        });
        let now = Instant::now();
        Self { verb, unit, total, bar, started: now, said: Mutex::new(now) }
    }

    /// Says how much is done by now.
    pub fn at(&self, done: u64) {
        self.at_with(done, "");
    }

    /// As [`Self::at`], with something more to say of it.
    pub fn at_with(&self, done: u64, more: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if !more.is_empty() {
                bar.set_message(format!("{}: {more}", self.verb));
            }
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= QUIET {
            *said = Instant::now();
            let line = line(self.verb, self.unit, done, self.total, self.started.elapsed());
            eprintln!("{line}{}{more}", if more.is_empty() { "" } else { ", " });
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(verb: &str, unit: Unit, done: u64, total: u64, elapsed: Duration) -> String {
    let amount = |count: u64| match unit {
        Unit::Rows | Unit::Chunks => HumanCount(count).to_string(),
        Unit::Bytes => BinaryBytes(count).to_string(),
    };
    let noun = match unit {
        Unit::Rows => " rows",
        Unit::Chunks => " chunks",
        Unit::Bytes => "",
    };
    let percent = (done.min(total) * 100).checked_div(total).unwrap_or(100);
    if unit == Unit::Chunks {
        return format!("{verb}: {} of {}{noun} ({percent} %)", amount(done), amount(total));
    }
    let rate = amount(per_second(done, elapsed));
    format!("{verb}: {} of {}{noun} ({percent} %), {rate}{noun}/s", amount(done), amount(total))
}

/// Whole units a second.
pub fn per_second(done: u64, elapsed: Duration) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rate = (done as f64 / elapsed.as_secs_f64().max(1e-6)) as u64;
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_get_plain_lines() {
        let elapsed = Duration::from_secs(2);
        assert_eq!(
            line("ingesting", Unit::Rows, 65_536, 336_776, elapsed),
            "ingesting: 65,536 of 336,776 rows (19 %), 32,768 rows/s"
        );
        assert_eq!(
            line("uploading", Unit::Bytes, 2 << 20, 4 << 20, elapsed),
            "uploading: 2.00 MiB of 4.00 MiB (50 %), 1.00 MiB/s"
        );
        assert_eq!(line("ingesting", Unit::Rows, 0, 0, elapsed), "ingesting: 0 of 0 rows (100 %), 0 rows/s");
    }
}
