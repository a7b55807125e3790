//! The floor under durable writes: what the disk takes to make one small write durable, measured alone.

use crate::error::{Error, Result};
use crate::noise::CpuTimes;
use crate::stats::{Latencies, Measured};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of one write: a log entry with a few rows.
pub const WRITE_BYTES: usize = 4096;

/// Appends 4 KiB and calls `fdatasync`, one thread, over and over. The file is removed again.
///
/// # Errors
/// `System` when the disk refuses.
pub async fn fsync_floor(folder: &Path, measure: Duration) -> Result<Measured> {
    let path = folder.join("fsync-floor");
    let measured = tokio::task::spawn_blocking(move || {
        let measured = append(&path, measure).map_err(Error::file(&path));
        std::fs::remove_file(&path).map_err(Error::file(&path))?;
        measured
    });
    measured.await.map_err(|error| Error::Internal(error.to_string()))?
}

fn append(path: &Path, measure: Duration) -> std::io::Result<Measured> {
    let mut file = File::create(path)?;
    let mut latencies = Latencies::new();
    let before = CpuTimes::now();
    let first = Instant::now();
    let mut last = first;
    while last.duration_since(first) < measure {
        let started = last;
        file.write_all(&[0x5A; WRITE_BYTES])?;
        file.sync_data()?;
        last = Instant::now();
        latencies.record(last.duration_since(started));
    }
    let other_cores = before.and_then(|before| before.other_cores_since()).unwrap_or(0.0);
    Ok(Measured { rows: latencies.count(), elapsed: last.duration_since(first), latencies, other_cores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_floor_is_measured_and_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        let measured = fsync_floor(folder.path(), Duration::from_millis(5)).await.unwrap();
        assert!(measured.rows >= 1 && measured.rows == measured.latencies.count());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
