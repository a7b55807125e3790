//! The disk of a simulated machine: [`MemFiles`](crate::wal::mem::MemFiles), written to a little later than asked.

use crate::wal::{Wal, WalOptions, Writer};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// Small segments, so that a short run fills several.
pub fn log_options() -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, cache_bytes_max: 8 << 10, writer: Writer::Stepped, ..WalOptions::default() }
}

/// In a simulation: moves what is queued to the disk after a moment, sometimes a long one, as long as the node lives.
/// Until then it can be read and is not durable.
pub fn write_behind(wal: &Arc<Wal>) {
    if !turmoil::in_simulation() {
        return;
    }
    let wal = Arc::downgrade(wal);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause()).await;
            let Some(wal) = wal.upgrade().filter(|wal| wal.failed().is_none()) else { return };
            while wal.step() {}
        }
    });
}

fn pause() -> Duration {
    let mut chance = rand::rng();
    let slow = chance.random_ratio(1, 250);
    Duration::from_millis(if slow { chance.random_range(20..250) } else { chance.random_range(1..5) })
}
