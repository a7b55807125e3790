//! `cairn sql`.

use super::support::{Cli, TestResult};
use expect_test::expect;

#[tokio::test]
async fn queries_are_answered_shown_and_kept() -> TestResult {
    let cli = Cli::with_rows().await?;
    cli.write("newest.sql", "select driver_id, rating, trips from stats order by driver_id")?;
    cli.write("then.sql", "select driver_id, trips from as_of('stats', '2024-01-01T00:00:20Z') order by 1")?;
    cli.write("none.sql", "select driver_id from stats where trips > 1000")?;
    cli.write("typo.sql", "select ratin from stats")?;
    cli.write("write.sql", "drop table stats")?;
    cli.check(
        "sql -f newest.sql",
        expect![[r#"
        driver_id  rating  trips
                7    4.75      4
                8    3.25   null
        2 rows, … s
    "#]],
    )
    .await?;
    cli.check(
        "sql --file then.sql",
        expect![[r#"
        driver_id  trips
                7      3
                8   null
        2 rows, … s
    "#]],
    )
    .await?;
    cli.check(
        "sql -f none.sql",
        expect![[r#"
        driver_id
        0 rows, … s
    "#]],
    )
    .await?;
    cli.check(
        "sql -f newest.sql -o newest.csv",
        expect![[r#"
        `newest.csv`: 2 rows, … s
    "#]],
    )
    .await?;
    assert_eq!(
        std::fs::read_to_string(cli.folder().join("newest.csv"))?.lines().next(),
        Some("driver_id,rating,trips")
    );
    cli.check("sql -f typo.sql", expect![[r#"
        ! error: No field named ratin. Did you mean 'stats.rating'? Valid fields are stats.driver_id, stats.event_timestamp, stats.created_timestamp, stats.committed_timestamp, stats.rating, stats.trips.
        exit 2
    "#]]).await?;
    cli.check(
        "sql -f write.sql",
        expect![[r#"
        ! error: SQL here reads and changes nothing; DropTable is refused
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "sql -f nowhere.sql",
        expect![[r#"
        ! error: `nowhere.sql` cannot be read: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "sql SHOW -f newest.sql",
        expect![[r#"
        ! error: the argument '[QUERY]' cannot be used with '--file <FILE>'
        ! 
        ! Usage: cairn sql --node <HOST:PORT> <QUERY>
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    let document: serde_json::Value = serde_json::from_str(&cli.run("sql -f newest.sql --output json").await?.out)?;
    assert_eq!(document["row_count"], 2);
    assert_eq!(document["columns"], serde_json::json!(["driver_id", "rating", "trips"]));
    assert_eq!(document["rows"][0]["trips"], 4);
    cli.check(
        "segments --view stats",
        expect![[r#"
        no history is in segments; a feature view's `hot_window` sends it there
    "#]],
    )
    .await?;
    let document: serde_json::Value = serde_json::from_str(&cli.run("segments --output json").await?.out)?;
    assert_eq!(document, serde_json::json!({"files": [], "segments": []}));
    cli.end().await
}
