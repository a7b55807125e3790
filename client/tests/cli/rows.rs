//! `cairn ingest` and `cairn delete`.

use super::support::{Cli, ROWS, TestResult};
use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use cairn_client::files::TableWriter;
use expect_test::expect;
use std::sync::Arc;

#[tokio::test]
async fn a_csv_file_is_stored_once_and_bad_rows_are_told() -> TestResult {
    let cli = Cli::with_drivers().await?;
    cli.write("rows.csv", ROWS)?;
    cli.check(
        "ingest stats rows.csv",
        expect![[r#"
        3 rows stored in `stats`, 3 of them newer than what their entity had
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats rows.csv",
        expect![[r#"
        0 rows stored in `stats`, 0 of them newer than what their entity had; 3 rows had been stored before
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check_json(
        "ingest stats rows.csv",
        expect![[r#"
        {
          "feature_view": "stats",
          "producer": "cairn-ingest-d805ee7299cabb84af14dbe60dc3a23bbaeab1d455d57d0a8006ecf2807bab00",
          "rejections": [],
          "rows_accepted": 0,
          "rows_duplicate": 3,
          "rows_rejected": 0,
          "rows_updated": 0,
          "seconds": "…",
          "token": "…"
        }
    "#]],
    )
    .await?;

    cli.write("holes.csv", ROWS.replace("\n8,", "\n,"))?;
    cli.check(
        "ingest stats holes.csv",
        expect![[r#"
        2 rows stored in `stats`, 1 of them newer than what their entity had; 1 row rejected
        … s, … rows/s, token TOKEN
        rejected (rows of the file, counted from 0):
          row 1: join key `driver_id` is null
        ! error: 1 row of `holes.csv` rejected; the others are stored
        exit 2
    "#]],
    )
    .await?;
    let said = cli.run("ingest stats holes.csv --output json --producer again").await?;
    let document: serde_json::Value = serde_json::from_str(&said.out)?;
    assert_eq!((said.code, &document["rows_rejected"]), (Some(2), &serde_json::Value::from(1)), "{said:?}");
    let error: serde_json::Value = serde_json::from_str(&said.errors)?;
    assert_eq!(error["error"]["kind"], "invalid_argument");

    cli.write("short.csv", "driver_id,event_timestamp,rating\n7,2024-01-01T00:00:10Z,4.5\n")?;
    cli.check("ingest stats short.csv", expect![[r#"
        ! error: the batch has no column `trips` (a feature of feature view `stats`); it needs driver_id, event_timestamp, rating, trips
        exit 2
    "#]]).await?;
    cli.write("timeless.csv", "driver_id,rating,trips\n7,4.5,1\n")?;
    cli.check("ingest stats timeless.csv", expect![[r#"
        ! error: the batch has no column `event_timestamp` (the event time of feature view `stats`); it needs driver_id, event_timestamp, rating, trips
        exit 2
    "#]]).await?;
    cli.write("renamed.csv", ROWS.replace("event_timestamp", "at"))?;
    cli.check(
        "ingest stats renamed.csv --event-timestamp at",
        expect![[r#"
        3 rows stored in `stats`, 2 of them newer than what their entity had
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats renamed.csv --event-timestamp when",
        expect![[r#"
        ! error: renamed.csv: no column `when`; there are driver_id, at, rating, trips
        exit 2
    "#]],
    )
    .await?;
    cli.write("words.csv", ROWS.replace(",4\n", ",four\n"))?;
    cli.check(
        "ingest stats words.csv",
        expect![[r#"
        ! error: words.csv: line 4, column `trips`: `four` is not Int64
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats words.csv --batch-rows 2",
        expect![[r#"
        ! error: words.csv: line 4, column `trips`: `four` is not Int64
        ! hint: 2 rows before it are stored; sending them again changes nothing
        exit 2
    "#]],
    )
    .await?;
    cli.write("ragged.csv", ROWS.replace(",4\n", ",4,5\n"))?;
    cli.check("ingest stats ragged.csv", expect![[r#"
        ! error: ragged.csv: Csv error: Encountered unequal lengths between records on CSV file. Expected 4 records, found 5 records at line 4
        exit 2
    "#]]).await?;
    cli.write("more.csv", ROWS.replace("trips\n", "tripz\n"))?;
    cli.check("ingest stats more.csv", expect![[r#"
        ! error: column `tripz` is no join key, time or feature of feature view `stats`; leave it out, or apply a definition that has it (known: driver_id, event_timestamp, rating, trips, created_timestamp)
        exit 2
    "#]]).await?;
    cli.check(
        "ingest stat rows.csv",
        expect![[r#"
        ! error: feature view `stat` not found in project `default`; did you mean `stats`?
        ! hint: `cairn definitions` lists the feature views
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats nowhere.csv",
        expect![[r#"
        ! error: nowhere.csv: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats rows.csv --project elsewhere",
        expect![[r#"
        ! error: project `elsewhere` not found; there is `default`
        exit 3
    "#]],
    )
    .await?;
    cli.write("rows.txt", ROWS)?;
    cli.check(
        "ingest stats rows.txt",
        expect![[r#"
        ! error: rows.txt: the name must end in .parquet or .csv
        exit 2
    "#]],
    )
    .await?;
    cli.write("empty.csv", "driver_id,event_timestamp,rating,trips\n")?;
    cli.check(
        "ingest stats empty.csv",
        expect![[r#"
        0 rows stored in `stats`, 0 of them newer than what their entity had
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn a_parquet_file_is_stored() -> TestResult {
    let cli = Cli::with_drivers().await?;
    let at = |us: i64| Some(1_704_067_200_000_000 + us);
    let times = TimestampMicrosecondArray::from(vec![at(1), at(2), None]).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 4] = [
        ("driver_id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("event_timestamp", Arc::new(times)),
        ("rating", Arc::new(Float32Array::from(vec![Some(1.5), None, Some(2.5)]))),
        ("trips", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ];
    let nullable = columns.iter().map(|(name, column)| (*name, Arc::clone(column), true));
    let rows = RecordBatch::try_from_iter_with_nullable(nullable)?;
    for (name, rows) in [("rows.parquet", rows.slice(0, 2)), ("timeless.parquet", rows)] {
        let mut writer = TableWriter::create(&cli.folder().join(name), &rows.schema())?;
        writer.write(&rows)?;
        writer.finish()?;
    }
    cli.check(
        "ingest stats rows.parquet",
        expect![[r#"
        2 rows stored in `stats`, 2 of them newer than what their entity had
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "ingest stats timeless.parquet",
        expect![[r#"
        2 rows stored in `stats`, 2 of them newer than what their entity had; 1 row rejected
        … s, … rows/s, token TOKEN
        rejected (rows of the file, counted from 0):
          row 2: `event_timestamp` is null
        ! error: 1 row of `timeless.parquet` rejected; the others are stored
        exit 2
    "#]],
    )
    .await?;
    cli.write("broken.parquet", "PAR1 and then nothing")?;
    cli.check(
        "ingest stats broken.parquet",
        expect![[r#"
        ! error: broken.parquet: Parquet error: Invalid Parquet file. Corrupt footer
        exit 2
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn entities_are_deleted_as_of_a_time() -> TestResult {
    let cli = Cli::with_rows().await?;
    cli.write("gone.csv", "driver_id,event_timestamp\n7,2024-01-01T00:01:00Z\n,2024-01-01T00:01:00Z\n")?;
    cli.check(
        "delete stats gone.csv",
        expect![[r#"
        1 deletion stored in `stats`, 1 of them newer than what their entity had; 1 row rejected
        … s, … rows/s, token TOKEN
        rejected (rows of the file, counted from 0):
          row 1: join key `driver_id` is null
        ! error: 1 row of `gone.csv` rejected; the others are stored
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get stats:rating --entity driver_id=7,8 --statuses --as-of 2024-01-01T00:01:00Z",
        expect![[r#"
        driver_id  rating  rating__status
                7    null  NOT_FOUND
                8    3.25  PRESENT
    "#]],
    )
    .await?;
    cli.check(
        "get stats:rating --entity driver_id=7 --statuses --as-of 2024-01-01T00:00:59Z",
        expect![[r#"
        driver_id  rating  rating__status
                7    4.75  PRESENT
    "#]],
    )
    .await?;
    cli.check(
        "delete stats rows.csv",
        expect![[r#"
        ! error: column `rating` is no join key or time of feature view `stats`, and a deletion takes nothing else; leave it out
        exit 2
    "#]],
    )
    .await?;
    cli.end().await
}
