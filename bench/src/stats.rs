//! Latencies of one cell, and what is said of them.
//!
//! Always true: a percentile is the smallest recorded latency that at least that share of the requests did not exceed,
//! to three significant digits; every request of the measured time counts, the slowest too.

use hdrhistogram::Histogram;
use std::time::Duration;

/// Slower requests are counted as this slow: a cell is given up long before.
const LONGEST_NS: u64 = 600_000_000_000;

/// How long requests took.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds the histogram takes"))
    }

    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub fn merge(&mut self, other: &Self) {
        // Fails only for histograms of other bounds, and all have the same.
        let _ = self.0.add(&other.0);
    }

    /// `share` from 0 to 1: 0.99 is p99. Zero without requests.
    pub fn at(&self, share: f64) -> Duration {
        if self.0.is_empty() { Duration::ZERO } else { Duration::from_nanos(self.0.value_at_quantile(share)) }
    }

    pub fn longest(&self) -> Duration {
        Duration::from_nanos(if self.0.is_empty() { 0 } else { self.0.max() })
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

/// One cell: one system under one load.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Rows asked for or written by all requests.
    pub rows: u64,
    /// From the first measured request's start to the last one's end.
    pub elapsed: Duration,
    pub latencies: Latencies,
    /// Cores that other processes of this machine kept busy meanwhile.
    pub other_cores: f64,
}

impl Measured {
    pub fn requests_per_second(&self) -> f64 {
        per_second(self.latencies.count(), self.elapsed)
    }

    pub fn rows_per_second(&self) -> f64 {
        per_second(self.rows, self.elapsed)
    }
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// `over / under`, where that says something.
pub fn ratio(over: f64, under: f64) -> Option<f64> {
    (over.is_finite() && under.is_finite() && over >= 0.0 && under > 0.0).then(|| over / under)
}

/// Smallest, median (the mean of the middle two of an even count) and largest.
pub fn spread(mut durations: Vec<Duration>) -> Option<[Duration; 3]> {
    durations.sort_unstable();
    let (first, last) = (*durations.first()?, *durations.last()?);
    let middle = durations.len() / 2;
    let upper = *durations.get(middle)?;
    let median = match durations.len() % 2 {
        0 => (*durations.get(middle.checked_sub(1)?)? + upper) / 2,
        _ => upper,
    };
    Some([first, median, last])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn close(found: Duration, expected: Duration) -> bool {
        (found.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() < 2e-3
    }

    #[test]
    fn percentiles_of_one_to_a_thousand() {
        let mut latencies = Latencies::new();
        for n in (1..=1000).rev() {
            latencies.record(MS * n);
        }
        for (share, expected) in [(0.5, 500), (0.95, 950), (0.99, 990), (1.0, 1000)] {
            assert!(close(latencies.at(share), MS * expected), "{share}: {:?}", latencies.at(share));
        }
        assert!(close(latencies.longest(), MS * 1000));
        assert_eq!(latencies.count(), 1000);
    }

    #[test]
    fn one_slow_request_in_a_hundred_is_the_p99_only_just() {
        let mut latencies = Latencies::new();
        (0..99).for_each(|_| latencies.record(MS));
        latencies.record(MS * 500);
        assert!(close(latencies.at(0.99), MS));
        assert!(close(latencies.at(0.995), MS * 500));
    }

    #[test]
    fn merging_is_recording_together() {
        let (mut left, mut right, mut both) = (Latencies::new(), Latencies::new(), Latencies::new());
        for n in 1..=200_u32 {
            let took = Duration::from_micros(u64::from(n).pow(2));
            if n % 3 == 0 {
                left.record(took)
            } else {
                right.record(took)
            }
            both.record(took);
        }
        left.merge(&right);
        assert_eq!(left.count(), both.count());
        for share in [0.01, 0.5, 0.95, 0.99, 1.0] {
            assert_eq!(left.at(share), both.at(share));
        }
    }

    #[test]
    fn nothing_and_the_impossible_are_no_panic() {
        let mut latencies = Latencies::new();
        assert_eq!((latencies.at(0.99), latencies.longest()), (Duration::ZERO, Duration::ZERO));
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(1_000_000));
        assert_eq!(latencies.count(), 2);
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
    }

    #[test]
    fn rates_are_counts_over_the_time_they_took() {
        let mut latencies = Latencies::new();
        (0..50).for_each(|_| latencies.record(MS));
        let measured = Measured { rows: 5_000, elapsed: MS * 500, latencies, other_cores: 0.0 };
        assert_eq!((measured.requests_per_second(), measured.rows_per_second()), (100.0, 10_000.0));
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(spread(vec![]), None);
        assert_eq!(spread(vec![MS * 9, MS, MS * 2]), Some([MS, MS * 2, MS * 9]));
        assert_eq!(spread(vec![MS * 4, MS, MS * 2, MS * 9]), Some([MS, MS * 3, MS * 9]));
    }
}
