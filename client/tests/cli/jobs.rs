//! `cairn backfill` and `cairn jobs`.

use super::support::{Cli, DRIVERS, ROWS, TestResult};

#[tokio::test]
async fn a_view_is_filled_from_its_files_and_jobs_are_shown() -> TestResult {
    let cli = Cli::start().await?;
    let rows = cli.folder().join("rows.csv");
    let source = format!("  ttl: 30d\n  source: {{path: '{}'}}\n", rows.display());
    cli.write("drivers.yaml", DRIVERS.replace("  ttl: 30d\n", &source))?;
    cli.write("rows.csv", ROWS)?;
    assert_eq!(cli.run("apply -f drivers.yaml").await?.code, Some(0));
    let unfilled = cli.run("get eta --entity driver_id=7").await?;
    assert_eq!(unfilled.code, Some(3), "{unfilled:?}");
    assert!(unfilled.errors.contains("`cairn backfill stats` fills it"), "{unfilled:?}");

    let whole = "backfill stats --from 2024-01-01T00:00:00Z --to 2024-01-01T00:01:00Z --chunk 10s --author ada";
    let said = cli.run(whole).await?;
    assert_eq!((said.code, said.errors.as_str()), (Some(0), ""), "{said:?}");
    for part in ["  state    done\n", "  chunks   6 of 6, 10 s each\n", "  by       ada\n", "\n3 rows in 6 chunks, "] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    assert_eq!(cli.run("get eta --entity driver_id=7 --as-of 2024-01-01T00:00:40Z").await?.code, Some(0));

    let said = cli.run(&format!("{whole} --detach --output json")).await?;
    let begun: serde_json::Value = serde_json::from_str(&said.out)?;
    let id = begun["id"].as_u64().ok_or("no id")?;
    assert_eq!((begun["chunks"].as_u64(), begun["feature_view"].as_str()), (Some(6), Some("stats@1")));
    let watched: serde_json::Value =
        serde_json::from_str(&cli.run(&format!("jobs watch {id} --output json")).await?.out)?;
    assert_eq!((watched["state"].as_str(), watched["rows"].as_u64()), (Some("done"), Some(3)));
    let listed: serde_json::Value = serde_json::from_str(&cli.run("jobs --output json").await?.out)?;
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(2));
    assert!(cli.run("jobs").await?.out.contains("backfill of default/stats@1 from 2024-01-01T00:00:00Z"));
    let late = cli.run(&format!("jobs cancel {id}")).await?;
    assert!(late.code == Some(4) && late.errors.contains("has ended: it is done"), "{late:?}");
    let unknown = cli.run("jobs show 99999").await?;
    assert!(unknown.code == Some(3) && unknown.errors.contains("job 99999 not found"), "{unknown:?}");

    // A file that is wrong fails the job, and says where.
    cli.write("rows.csv", ROWS.replace("4.75,4", "4.75,many"))?;
    let failed = cli.run(whole).await?;
    assert_eq!(failed.code, Some(2), "{failed:?}");
    assert!(failed.errors.contains("rows.csv`, line 4, column `trips`: what is there is no Int64"), "{failed:?}");
    let backwards = cli.run("backfill stats --from 2024-01-02T00:00:00Z --to 2024-01-01T00:00:00Z").await?;
    assert!(backwards.code == Some(2) && backwards.errors.contains("`from` is not before `to`"), "{backwards:?}");
    assert_eq!(
        cli.run("backfill stats --from 2024-01-01T00:00:00Z --to 2024-01-02T00:00:00Z --chunk 1").await?.code,
        Some(2)
    );
    cli.end().await
}
