//! Clocks of their own for nodes, where Debian's `libfaketime` is installed: it stands before the C library's clocks.
//!
//! A node reads its time from a file that changes while it runs. Its wall clock can jump and run at another rate; its
//! monotonic clock, from which timers come, only runs at another rate from one start to the next, because no kernel lets it
//! jump. Each node starts through a script that this module rewrites.

use crate::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What to install when it is not there.
pub const MISSING: &str = "libfaketime is not installed (`apt-get install libfaketime`)";
const LIBRARY: &str = "libfaketimeMT.so.1";
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);

/// How the clock of a node differs from this machine's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Seconds that the wall clock is ahead, from now on.
    pub ahead_s: i64,
    /// How fast it runs.
    pub rate: f64,
    /// The monotonic clock runs at that rate too; counts from the next start.
    pub timers_too: bool,
}

pub const RIGHT: Setting = Setting { ahead_s: 0, rate: 1.0, timers_too: false };

#[derive(Debug)]
pub struct Clocks {
    library: PathBuf,
    folder: PathBuf,
    names: Vec<String>,
}

impl Clocks {
    /// Right clocks for nodes `names`; `None` where the library is not installed.
    ///
    /// # Errors
    /// Trouble with files in `folder`.
    pub fn start(folder: &Path, names: Vec<String>) -> Result<Option<Self>> {
        let Some(library) = library() else { return Ok(None) };
        let made = Self { library, folder: folder.canonicalize()?, names };
        for at in 0..made.names.len() {
            made.set(at, RIGHT)?;
        }
        Ok(Some(made))
    }

    /// Words before a node's command.
    pub fn launcher(&self, at: usize) -> Vec<String> {
        vec!["/bin/sh".to_owned(), self.path(at, "start").display().to_string()]
    }

    /// # Errors
    /// Trouble with files.
    pub fn set(&self, at: usize, setting: Setting) -> Result<()> {
        let time = self.path(at, "time");
        replace(&time, &words(setting))?;
        let monotonic = if setting.timers_too { "" } else { "FAKETIME_DONT_FAKE_MONOTONIC=1 " };
        let script = format!(
            "# Starts a node with a clock of its own.\nexec env LD_PRELOAD='{}' FAKETIME_TIMESTAMP_FILE='{}' \
             FAKETIME_NO_CACHE=1 {monotonic}\"$@\"\n",
            self.library.display(),
            time.display()
        );
        remove_leftovers();
        replace(&self.path(at, "start"), &script)
    }

    fn path(&self, at: usize, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", self.names[at]))
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        remove_leftovers();
    }
}

/// The setting as libfaketime reads it.
fn words(setting: Setting) -> String {
    match setting.rate == 1.0 {
        true => format!("{:+}", setting.ahead_s),
        false => format!("{:+} x{:.3}", setting.ahead_s, setting.rate),
    }
}

/// At once: the node may be reading it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, path)?)
}

fn library() -> Option<PathBuf> {
    let architectures = fs::read_dir("/usr/lib").ok()?.flatten();
    architectures.map(|entry| entry.path().join("faketime").join(LIBRARY)).find(|path| path.is_file())
}

/// The library leaves shared memory behind when its process is killed.
fn remove_leftovers() {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("faketime_shm_").or_else(|| name.strip_prefix("sem.faketime_sem_"));
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// How many seconds a node's wall clock is ahead of this machine's: it dates every HTTP answer.
pub async fn seen_ahead_s(address: &str) -> Option<i64> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.lines().find_map(|line| line.strip_prefix("date: ").and_then(date_s))
    };
    let theirs = tokio::time::timeout(ANSWER_PATIENCE, asked).await.ok()??;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(theirs - i64::try_from(ours).ok()?)
}

/// Seconds since 1970 of `Sat, 21 Nov 2026 14:59:10 GMT`.
fn date_s(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_whitespace().skip(1);
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let clock: Vec<i64> = words.next()?.split(':').map_while(|part| part.parse().ok()).collect();
    let [hours, minutes, seconds] = clock[..] else { return None };
    // Days from a civil date, with years that begin in March: then leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Sat, 21 Nov 2026 14:59:10 GMT", Some(1_795_273_150)),
            ("Sat, 21 Nov 2026", None),
            ("gibberish", None),
        ] {
            assert_eq!(date_s(text), seconds, "{text}");
        }
    }

    #[test]
    fn settings_are_said_as_the_library_reads_them() {
        assert_eq!(words(RIGHT), "+0");
        assert_eq!(words(Setting { ahead_s: -70, ..RIGHT }), "-70");
        assert_eq!(words(Setting { rate: 1.05, ..RIGHT }), "+0 x1.050");
    }
}
