//! What a run will take: a moving average for each power of two of rows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BUCKETS: usize = 24;
/// A new measurement counts for an eighth.
const WEIGHT: u64 = 8;

/// Nanoseconds by number of rows; 0 = never measured. Updates race without harm: one of two measurements is lost.
#[derive(Debug)]
pub struct Cost {
    nanos: [AtomicU64; BUCKETS],
}

impl Default for Cost {
    fn default() -> Self {
        Self { nanos: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

fn bucket(rows: usize) -> usize {
    (rows.max(1).next_power_of_two().trailing_zeros() as usize).min(BUCKETS - 1)
}

impl Cost {
    pub fn record(&self, rows: usize, took: Duration) {
        let new = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).clamp(1, 1 << 50);
        let cell = &self.nanos[bucket(rows)];
        let old = cell.load(Ordering::Relaxed);
        let mixed = if old == 0 { new } else { (old * (WEIGHT - 1) + new) / WEIGHT };
        cell.store(mixed.max(1), Ordering::Relaxed);
    }

    /// The expected time; `None` before anything of like size was measured. More rows were never cheaper, and twice the
    /// rows cost at most twice.
    pub fn predict(&self, rows: usize) -> Option<Duration> {
        let at = bucket(rows);
        let load = |at: usize| Some(self.nanos[at].load(Ordering::Relaxed)).filter(|&nanos| nanos > 0);
        let below = || (0..at).rev().find_map(|lower| load(lower).map(|nanos| nanos << (at - lower).min(10)));
        let above = || (at + 1..BUCKETS).find_map(load);
        load(at).or_else(below).or_else(above).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicts_from_its_own_size_then_from_smaller_then_from_larger() {
        let cost = Cost::default();
        assert_eq!(cost.predict(1), None);
        cost.record(1000, Duration::from_micros(80));
        assert_eq!(cost.predict(4), Some(Duration::from_micros(80)));
        assert_eq!(cost.predict(4000), Some(Duration::from_micros(320)));
        cost.record(4, Duration::from_micros(2));
        assert_eq!(cost.predict(3), Some(Duration::from_micros(2)));
        cost.record(3, Duration::from_micros(10));
        assert_eq!(cost.predict(4), Some(Duration::from_micros(3)));
    }
}
