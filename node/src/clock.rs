//! The node's one wall clock. State machines never see it: it only fills `proposed_at` and "now" of reads.

/// Microseconds since 1970-01-01 UTC.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
