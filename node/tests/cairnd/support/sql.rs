//! What SQL says, for stories that are about something else.

use super::TestResult;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cairn_client::{Client, DEFAULT_PROJECT};
use std::time::Duration;

/// Longest wait for history to move.
const PATIENCE: Duration = Duration::from_secs(60);

/// The one number that a query gives.
pub async fn number(client: &Client, sql: &str) -> TestResult<i64> {
    let mut rows = client.sql(sql, DEFAULT_PROJECT).await?;
    let batch = rows.next().await?.ok_or("no row")?;
    assert_eq!(batch.num_rows(), 1, "{sql}");
    Ok(batch.column(0).as_primitive::<Int64Type>().value(0))
}

/// Waits until at least so many rows are in segments and in the database no more, as the node of `client` has it.
pub async fn settled(client: &Client, rows: i64) -> TestResult {
    in_segments(client, " where state = 'alone'", rows).await
}

/// Waits until a segment has more rows than `before`, all together, or all `rows` are there; how many there are.
pub async fn moved_on(client: &Client, before: i64, rows: i64) -> TestResult<i64> {
    in_segments(client, "", rows.min(before + 1)).await?;
    number(client, "select coalesce(sum(rows), 0) from system.segments").await
}

async fn in_segments(client: &Client, which: &str, rows: i64) -> TestResult {
    let sql = format!("select coalesce(sum(rows), 0) from system.segments{which}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    loop {
        looks.tick().await;
        let found = number(client, &sql).await?;
        if found >= rows {
            return Ok(());
        }
        assert!(tokio::time::Instant::now() < deadline, "{found} of {rows} rows are in segments after {PATIENCE:?}");
    }
}
