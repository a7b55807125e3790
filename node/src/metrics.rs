//! Counters of this node, in Prometheus' text form. Labels come from closed sets; never an entity key.

use crate::segments::objects::ObjectsState;
use cairn_proto::ErrorKind;
use cairn_proto::command::Ingested;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, microseconds.
const BUCKETS_US: [u64; 12] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) =
            BUCKETS_US.iter().zip(&self.buckets).find(|(bound, _)| us <= **bound).map(|(_, bucket)| bucket)
        {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Release);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn print(&self, name: &str, out: &mut String) {
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut below = 0;
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", *bound as f64 / 1e6);
        }
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}", self.sum_us.load(Ordering::Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {count}");
    }
}

/// What consensus says of itself.
#[derive(Debug)]
pub struct Consensus {
    /// Group, applied index, is leader.
    pub groups: Vec<(u32, u64, bool)>,
    /// How comparisons of replicas ended, and how often.
    pub audits: [(&'static str, u64); 4],
    pub refused_peers: u64,
    /// What came in of other nodes' snapshots.
    pub snapshots: cairn_consensus::Received,
    /// Of each shard's history in segments: group, segments, rows, bytes.
    pub segments: Vec<(u32, u64, u64, u64)>,
    /// The store that they are kept in, if any.
    pub objects: Option<ObjectsState>,
}

/// Queries in SQL.
#[derive(Debug, Default)]
struct Sql {
    began: AtomicU64,
    ended: Histogram,
    /// By kind, in the order of [`ErrorKind::ALL`].
    refused: [AtomicU64; ErrorKind::ALL.len()],
    rows: AtomicU64,
}

impl Sql {
    fn print(&self, out: &mut String) {
        // In this order, or a query might end that has not begun.
        let ended = self.ended.count.load(Ordering::Acquire);
        let began = self.began.load(Ordering::Relaxed);
        let _ = writeln!(out, "# TYPE cairn_sql_queries_total counter\ncairn_sql_queries_total {began}");
        let under_way = began.saturating_sub(ended);
        let _ = writeln!(out, "# TYPE cairn_sql_queries_under_way gauge\ncairn_sql_queries_under_way {under_way}");
        let _ = writeln!(out, "# TYPE cairn_sql_refused_total counter");
        for (kind, refused) in ErrorKind::ALL.iter().zip(&self.refused) {
            let (kind, refused) = (kind.as_str(), refused.load(Ordering::Relaxed));
            let _ = writeln!(out, "cairn_sql_refused_total{{kind=\"{kind}\"}} {refused}");
        }
        let rows = self.rows.load(Ordering::Relaxed);
        let _ = writeln!(out, "# TYPE cairn_sql_rows_total counter\ncairn_sql_rows_total {rows}");
        self.ended.print("cairn_sql_duration_seconds", out);
    }
}

/// All of a node's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    ingest_rows: [AtomicU64; 3],
    online_rows: AtomicU64,
    online: Histogram,
    predict_rows: AtomicU64,
    predict: Histogram,
    backtest_rows: AtomicU64,
    sql: Sql,
    connections_refused: AtomicU64,
}

impl Metrics {
    pub fn ingested(&self, reply: &Ingested) {
        for ((_, rows), counter) in crate::ingest::counts(reply).iter().zip(&self.ingest_rows) {
            counter.fetch_add(*rows, Ordering::Relaxed);
        }
    }

    pub fn online_read(&self, rows: usize, took: Duration) {
        self.online_rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.online.record(took);
    }

    pub fn predicted(&self, rows: usize, took: Duration) {
        self.predict_rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.predict.record(took);
    }

    /// A backtest that was recorded.
    pub fn backtested(&self, rows: u64) {
        self.backtest_rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// A query that is to be run, whatever becomes of it.
    pub fn sql_began(&self) {
        self.sql.began.fetch_add(1, Ordering::Relaxed);
    }

    /// The end of one that began: its answer is sent, or nobody reads it, or it was refused.
    pub fn sql_ended(&self, took: Duration) {
        self.sql.ended.record(took);
    }

    /// A query, or a statement that was only described, that ended with an error: before its first row or after.
    pub fn sql_refused(&self, kind: ErrorKind) {
        let mut counters = ErrorKind::ALL.iter().zip(&self.sql.refused);
        if let Some((_, counter)) = counters.find(|(it, _)| **it == kind) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Rows of an answer, on their way to whoever asked.
    pub fn sql_rows(&self, rows: u64) {
        self.sql.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// A connection that found no place.
    pub fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in Prometheus' text form.
    pub fn render(&self, consensus: &Consensus, read_only: bool) -> String {
        let Consensus { groups, audits, refused_peers, snapshots, segments, objects } = consensus;
        let mut out = String::new();
        let _ = writeln!(out, "# TYPE cairn_ingest_rows_total counter");
        for ((outcome, _), counter) in crate::ingest::counts(&Ingested::default()).iter().zip(&self.ingest_rows) {
            let _ =
                writeln!(out, "cairn_ingest_rows_total{{outcome=\"{outcome}\"}} {}", counter.load(Ordering::Relaxed));
        }
        let _ = writeln!(out, "# TYPE cairn_online_features_rows_total counter");
        let _ = writeln!(out, "cairn_online_features_rows_total {}", self.online_rows.load(Ordering::Relaxed));
        self.online.print("cairn_online_features_duration_seconds", &mut out);
        let _ = writeln!(out, "# TYPE cairn_predict_rows_total counter");
        let _ = writeln!(out, "cairn_predict_rows_total {}", self.predict_rows.load(Ordering::Relaxed));
        self.predict.print("cairn_predict_duration_seconds", &mut out);
        let backtested = self.backtest_rows.load(Ordering::Relaxed);
        let _ = writeln!(out, "# TYPE cairn_backtest_rows_total counter\ncairn_backtest_rows_total {backtested}");
        self.sql.print(&mut out);
        let refused = self.connections_refused.load(Ordering::Relaxed);
        let _ =
            writeln!(out, "# TYPE cairn_connections_refused_total counter\ncairn_connections_refused_total {refused}");
        let _ = writeln!(out, "# TYPE cairn_raft_applied_index gauge");
        for (group, applied, _) in groups {
            let _ = writeln!(out, "cairn_raft_applied_index{{group=\"{group}\"}} {applied}");
        }
        let _ = writeln!(out, "# TYPE cairn_raft_leader gauge");
        for (group, _, leader) in groups {
            let _ = writeln!(out, "cairn_raft_leader{{group=\"{group}\"}} {}", u8::from(*leader));
        }
        let _ = writeln!(out, "# TYPE cairn_raft_audits_total counter");
        for (outcome, times) in audits {
            let _ = writeln!(out, "cairn_raft_audits_total{{outcome=\"{outcome}\"}} {times}");
        }
        let _ = writeln!(out, "# TYPE cairn_peer_requests_refused_total counter");
        let _ = writeln!(out, "cairn_peer_requests_refused_total {refused_peers}");
        for (name, bytes) in [
            ("cairn_raft_snapshot_received_bytes_total", snapshots.sent),
            ("cairn_raft_snapshot_resumed_bytes_total", snapshots.kept),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {bytes}");
        }
        for (place, name) in ["cairn_history_segments", "cairn_history_segment_rows", "cairn_history_segment_bytes"]
            .into_iter()
            .enumerate()
        {
            let _ = writeln!(out, "# TYPE {name} gauge");
            for (group, count, rows, bytes) in segments {
                let value = [count, rows, bytes][place];
                let _ = writeln!(out, "{name}{{group=\"{group}\"}} {value}");
            }
        }
        if let Some(ObjectsState { up, written_bytes, read_bytes, failures }) = objects {
            for (name, kind, value) in [
                ("cairn_object_store_up", "gauge", u64::from(*up)),
                ("cairn_object_store_written_bytes_total", "counter", *written_bytes),
                ("cairn_object_store_read_bytes_total", "counter", *read_bytes),
                ("cairn_object_store_failures_total", "counter", *failures),
            ] {
                let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
            }
        }
        let _ = writeln!(out, "# TYPE cairn_node_read_only gauge\ncairn_node_read_only {}", u8::from(read_only));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        metrics.online_read(3, Duration::from_micros(80));
        metrics.online_read(2, Duration::from_secs(9));
        metrics.backtested(11);
        (0..3).for_each(|_| metrics.sql_began());
        (1..3).for_each(|s| metrics.sql_ended(Duration::from_secs(s)));
        metrics.sql_refused(ErrorKind::Timeout);
        metrics.sql_rows(70);
        let snapshots = cairn_consensus::Received { sent: 5, kept: 7 };
        let consensus = Consensus {
            groups: vec![(0, 7, true)],
            audits: [("equal", 3); 4],
            refused_peers: 2,
            snapshots,
            segments: vec![(1, 2, 300, 4000)],
            objects: Some(ObjectsState { up: true, written_bytes: 9, read_bytes: 8, failures: 6 }),
        };
        let text = metrics.render(&consensus, false);
        assert!(text.contains("cairn_online_features_rows_total 5"), "{text}");
        assert!(text.contains("cairn_online_features_duration_seconds_bucket{le=\"0.0001\"} 1"), "{text}");
        assert!(text.contains("cairn_online_features_duration_seconds_bucket{le=\"1\"} 1"), "{text}");
        assert!(text.contains("cairn_online_features_duration_seconds_bucket{le=\"+Inf\"} 2"), "{text}");
        assert!(text.contains("\ncairn_backtest_rows_total 11\n"), "{text}");
        for line in [
            "cairn_sql_queries_total 3",
            "cairn_sql_queries_under_way 1",
            "cairn_sql_refused_total{kind=\"timeout\"} 1",
            "cairn_sql_refused_total{kind=\"internal\"} 0",
            "cairn_sql_rows_total 70",
            "cairn_sql_duration_seconds_bucket{le=\"1\"} 1",
            "cairn_sql_duration_seconds_sum 3",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        assert!(text.contains("cairn_raft_applied_index{group=\"0\"} 7"), "{text}");
        assert!(text.contains("cairn_raft_audits_total{outcome=\"equal\"} 3"), "{text}");
        assert!(text.contains("cairn_peer_requests_refused_total 2"), "{text}");
        assert!(text.contains("cairn_history_segment_rows{group=\"1\"} 300\n"), "{text}");
        assert!(text.contains("\ncairn_object_store_up 1\n"), "{text}");
        assert!(text.contains("\ncairn_object_store_failures_total 6\n"), "{text}");
        assert!(text.contains("\ncairn_raft_snapshot_resumed_bytes_total 7\n"), "{text}");
    }
}
