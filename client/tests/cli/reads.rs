//! `cairn get` and `cairn join`.

use super::support::{Cli, TestResult};
use expect_test::expect;

/// Far in the past of every test run, near to [`ROWS`].
const THEN: &str = "--as-of 2024-01-02T00:00:00Z";

#[tokio::test]
async fn features_are_read_by_key() -> TestResult {
    let cli = Cli::with_rows().await?;
    cli.check(
        &format!("get eta --entity driver_id=7,8,9 {THEN}"),
        expect![[r#"
        driver_id  rating  trips
                7    4.75      4
                8    3.25   null
                9    null   null
    "#]],
    )
    .await?;
    cli.check(
        &format!("get stats:rating --entity driver_id=7 --statuses {THEN}"),
        expect![[r#"
        driver_id  rating  rating__status
                7    4.75  PRESENT
    "#]],
    )
    .await?;
    cli.check(
        &format!("get stats: --entity driver_id=7,8,9 --statuses {THEN}"),
        expect![[r#"
        driver_id  rating  rating__status  trips  trips__status
                7    4.75  PRESENT             4  PRESENT
                8    3.25  PRESENT          null  NULL_VALUE
                9    null  NOT_FOUND        null  NOT_FOUND
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=7 --statuses",
        expect![[r#"
        driver_id  rating  rating__status   trips  trips__status
                7    null  OUTSIDE_MAX_AGE   null  OUTSIDE_MAX_AGE
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=7 --as-of 2024-01-01T00:00:20Z --full-feature-names",
        expect![[r#"
        driver_id  stats__rating  stats__trips
                7            4.5             3
    "#]],
    )
    .await?;
    cli.check_json(
        &format!("get eta --entity driver_id=7 --statuses --level linearizable {THEN}"),
        expect![[r#"
        {
          "read": {
            "level": "linearizable",
            "shards": [
              {
                "applied_index": "…",
                "applied_time": "…",
                "shard": 1
              },
              {
                "applied_index": "…",
                "applied_time": "…",
                "shard": 2
              }
            ],
            "token": "…"
          },
          "rows": [
            {
              "driver_id": 7,
              "rating": 4.75,
              "rating__status": "PRESENT",
              "trips": 4,
              "trips__status": "PRESENT"
            }
          ]
        }
    "#]],
    )
    .await?;

    cli.check(
        "get etta --entity driver_id=7",
        expect![[r#"
        ! error: feature service `etta` not found in project `default`; did you mean `eta`?
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check_json(
        "get etta --entity driver_id=7",
        expect![[r#"
        {
          "error": {
            "hint": "`cairn definitions` and `cairn model list` show what there is",
            "kind": "not_found",
            "message": "feature service `etta` not found in project `default`; did you mean `eta`?"
          }
        }
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "get stats:ratin --entity driver_id=7",
        expect![[r#"
        ! error: feature `ratin` not found in feature view `stats@1`; did you mean `rating`?
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "get stats@9:rating --entity driver_id=7",
        expect![[r#"
        ! error: feature view `stats@9` not found in project `default`; its newest version is 1
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver=7",
        expect![[r#"
        ! error: `entities` has no `driver_id` (it has: driver)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=seven",
        expect![[r#"
        ! error: `entities`.`driver_id`, row 0: "seven" is not int64
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=7 --entity driver_id=8",
        expect![[r#"
        ! error: entity key `driver_id` is given twice; write `--entity driver_id=A,B`
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id",
        expect![[r#"
        ! error: invalid value 'driver_id' for '--entity <KEY=VALUE,…>': write NAME=VALUE
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.check("get eta --entity driver_id=7 --as-of yesterday", expect![[r#"
        ! error: invalid value 'yesterday' for '--as-of <TIME>': `yesterday` is not a time; write RFC 3339 such as `2026-05-02T14:03:00Z`, or integer microseconds since 1970 (UTC)
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]]).await?;
    cli.check(
        "get eta --entity driver_id=7 --level session",
        expect![[r#"
        ! error: `--level session` needs `--token`, the token a write printed
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=7 --token nonsense",
        expect![[r#"
        ! error: `nonsense` is not a token; it should look like `0@17` or `1@204,3@77`
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "get eta --entity driver_id=7 --project elsewhere",
        expect![[r#"
        ! error: project `elsewhere` not found; there is `default`
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn training_sets_are_joined() -> TestResult {
    let cli = Cli::with_rows().await?;
    let spine = "\
driver_id,event_timestamp,late
7,2024-01-01T00:00:05Z,true
7,2024-01-01T00:00:20Z,false
8,2024-01-01T00:00:20Z,true
7,2024-01-01T00:01:00Z,false
";
    cli.write("spine.csv", spine)?;
    cli.check(
        "join eta spine.csv",
        expect![[r#"
        driver_id  event_timestamp       late   rating  trips
                7  2024-01-01T00:00:05Z  true     null   null
                7  2024-01-01T00:00:20Z  false     4.5      3
                8  2024-01-01T00:00:20Z  true     3.25   null
                7  2024-01-01T00:01:00Z  false    4.75      4
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "join stats:rating spine.csv -o set.csv",
        expect![[r#"
        4 rows with 4 columns in `set.csv`
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    expect![[r#"
        driver_id,event_timestamp,late,rating
        7,2024-01-01T00:00:05Z,true,
        7,2024-01-01T00:00:20Z,false,4.5
        8,2024-01-01T00:00:20Z,true,3.25
        7,2024-01-01T00:01:00Z,false,4.75
    "#]]
    .assert_eq(&std::fs::read_to_string(cli.folder().join("set.csv"))?);
    cli.check(
        "join eta spine.csv -o set.parquet",
        expect![[r#"
        4 rows with 5 columns in `set.parquet`
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    cli.check("join eta set.parquet", expect![[r#"
        ! error: feature `stats:rating` would be named `rating`, as a column of the rows sent is; rename that column or ask for full feature names
        exit 2
    "#]]).await?;
    cli.check_json(
        "join stats:rating spine.csv --statuses",
        expect![[r#"
        {
          "columns": [
            "driver_id",
            "event_timestamp",
            "late",
            "rating",
            "rating__status"
          ],
          "out": null,
          "rows": [
            {
              "driver_id": 7,
              "event_timestamp": "2024-01-01T00:00:05Z",
              "late": true,
              "rating": null,
              "rating__status": "NOT_FOUND"
            },
            {
              "driver_id": 7,
              "event_timestamp": "2024-01-01T00:00:20Z",
              "late": false,
              "rating": 4.5,
              "rating__status": "PRESENT"
            },
            {
              "driver_id": 8,
              "event_timestamp": "2024-01-01T00:00:20Z",
              "late": true,
              "rating": 3.25,
              "rating__status": "PRESENT"
            },
            {
              "driver_id": 7,
              "event_timestamp": "2024-01-01T00:01:00Z",
              "late": false,
              "rating": 4.75,
              "rating__status": "PRESENT"
            }
          ],
          "rows_joined": 4,
          "seconds": "…",
          "token": "…"
        }
    "#]],
    )
    .await?;
    cli.check_json(
        "join stats:rating spine.csv -o set.csv",
        expect![[r#"
        {
          "columns": [
            "driver_id",
            "event_timestamp",
            "late",
            "rating"
          ],
          "out": "set.csv",
          "rows": null,
          "rows_joined": 4,
          "seconds": "…",
          "token": "…"
        }
    "#]],
    )
    .await?;

    cli.check(
        "join etta spine.csv",
        expect![[r#"
        ! error: feature service `etta` not found in project `default`; did you mean `eta`?
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "join eta spine.csv -o set.txt",
        expect![[r#"
        ! error: set.txt: the name must end in .parquet or .csv
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "join eta spine.csv -o no/such/folder/set.csv",
        expect![[r#"
        ! error: no/such/folder/set.csv: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.check("join eta spine.csv --event-timestamp at", expect![[r#"
        ! error: the spine has no time column `at`; there are driver_id, event_timestamp, late; name its time column with `event_timestamp`
        exit 2
    "#]]).await?;
    cli.write("keyless.csv", spine.replace("driver_id", "driver"))?;
    cli.check("join eta keyless.csv -o keyless_set.csv", expect![[r#"
        ! error: column `driver_id` int64 is missing, a join key of entity `driver`; needed are `driver_id` int64, found `driver`, `event_timestamp`, `late`
        exit 2
    "#]]).await?;
    cli.check(
        "join eta nowhere.csv",
        expect![[r#"
        ! error: nowhere.csv: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    assert!(!cli.folder().join("keyless_set.csv").exists(), "a failed join leaves no file");
    cli.end().await
}
