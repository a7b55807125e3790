//! `cairn plan`, `cairn apply`, `cairn definitions`.

use super::support::{Cli, DRIVERS, TestResult};
use expect_test::expect;

#[tokio::test]
async fn definitions_are_planned_applied_and_changed() -> TestResult {
    let cli = Cli::start().await?;
    cli.write("drivers.yaml", DRIVERS)?;
    cli.check(
        "definitions",
        expect![[r#"
        ! error: project `default` not found; apply definitions to it first (`cairn apply --project`)
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "plan -f drivers.yaml",
        expect![[r#"
        + Entity driver@1
            + join key driver_id int64
        + FeatureView stats@1
            + entity driver
            + ttl 30d
            + feature rating float32
            + feature trips int64
        + FeatureService eta@1
            + stats:rating @1
            + stats:trips @1
        3 new, 0 changed, 0 unchanged
        nothing was changed; `cairn apply` with the same files does it
    "#]],
    )
    .await?;
    cli.check("definitions --output json", expect![[r#"
        ! {"error":{"hint":null,"kind":"not_found","message":"project `default` not found; apply definitions to it first (`cairn apply --project`)"}}
        exit 3
    "#]]).await?;
    cli.check(
        "apply -f drivers.yaml",
        expect![[r#"
        + Entity driver@1
            + join key driver_id int64
        + FeatureView stats@1
            + entity driver
            + ttl 30d
            + feature rating float32
            + feature trips int64
        + FeatureService eta@1
            + stats:rating @1
            + stats:trips @1
        3 new, 0 changed, 0 unchanged
        token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "apply -f drivers.yaml",
        expect![[r#"
        0 new, 0 changed, 3 unchanged
        token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "plan -f drivers.yaml",
        expect![[r#"
        0 new, 0 changed, 3 unchanged
    "#]],
    )
    .await?;
    cli.check_json(
        "plan -f drivers.yaml",
        expect![[r#"
        {
          "changes": [
            {
              "action": "unchanged",
              "details": [],
              "from_version": 1,
              "kind": "Entity",
              "loses_rows": false,
              "name": "driver",
              "to_version": 1
            },
            {
              "action": "unchanged",
              "details": [],
              "from_version": 1,
              "kind": "FeatureView",
              "loses_rows": false,
              "name": "stats",
              "to_version": 1
            },
            {
              "action": "unchanged",
              "details": [],
              "from_version": 1,
              "kind": "FeatureService",
              "loses_rows": false,
              "name": "eta",
              "to_version": 1
            }
          ]
        }
    "#]],
    )
    .await?;
    cli.check(
        "definitions",
        expect![[r#"
        KIND            NAME    VERSION  SUMMARY               APPLIED
        Entity          driver        1  driver_id             NOW
        FeatureView     stats         1  2 features by driver  NOW
        FeatureService  eta           1  2 features            NOW
    "#]],
    )
    .await?;

    cli.write("drivers.yaml", DRIVERS.replace("{name: trips, type: int64}", "{name: trips, type: int32}"))?;
    cli.check(
        "plan -f drivers.yaml",
        expect![[r#"
        ~ FeatureView stats@1 -> @2
            ~ feature trips int64 → int32
          ! @2 starts without rows: ingest them again; @1 keeps its own
        ~ FeatureService eta@1 -> @2
            ~ stats:rating @1 → @2
            ~ stats:trips @1 → @2
        0 new, 2 changed, 1 unchanged
        nothing was changed; `cairn apply` with the same files does it
    "#]],
    )
    .await?;
    cli.check(
        "apply -f .",
        expect![[r#"
        ~ FeatureView stats@1 -> @2
            ~ feature trips int64 → int32
          ! @2 starts without rows: ingest them again; @1 keeps its own
        ~ FeatureService eta@1 -> @2
            ~ stats:rating @1 → @2
            ~ stats:trips @1 → @2
        0 new, 2 changed, 1 unchanged
        token TOKEN
    "#]],
    )
    .await?;
    cli.check_json(
        "definitions",
        expect![[r#"
        {
          "definitions": [
            {
              "applied": "…",
              "kind": "Entity",
              "name": "driver",
              "summary": "driver_id",
              "version": 1
            },
            {
              "applied": "…",
              "kind": "FeatureView",
              "name": "stats",
              "summary": "2 features by driver",
              "version": 2
            },
            {
              "applied": "…",
              "kind": "FeatureService",
              "name": "eta",
              "summary": "2 features",
              "version": 2
            }
          ]
        }
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn faulty_definitions_are_named_by_file_line_and_column() -> TestResult {
    let cli = Cli::start().await?;
    cli.write("drivers.yaml", DRIVERS.replace("ttl: 30d", "tll: 30d"))?;
    cli.check(
        "apply -f drivers.yaml",
        expect![[r#"
        ! error: drivers.yaml:9:3: unknown field `tll`; did you mean `ttl`?
        exit 2
    "#]],
    )
    .await?;
    cli.check_json(
        "apply -f drivers.yaml",
        expect![[r#"
        {
          "error": {
            "hint": null,
            "kind": "invalid_argument",
            "message": "drivers.yaml:9:3: unknown field `tll`; did you mean `ttl`?"
          }
        }
        exit 2
    "#]],
    )
    .await?;
    let two = DRIVERS.replace("entities: [driver]", "entities: [drivr]").replace("\"stats:trips\"", "\"stats:trip\"");
    cli.write("drivers.yaml", two)?;
    cli.check(
        "plan -f .",
        expect![[r#"
        ! error: ./drivers.yaml:8:14: Entity `drivr` not found; did you mean `driver`?
        ! ./drivers.yaml:16:35: feature view `stats` has no feature `trip`; did you mean `trips`?
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "plan -f nowhere.yaml",
        expect![[r#"
        ! error: nowhere.yaml: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    std::fs::create_dir(cli.folder().join("empty"))?;
    cli.check(
        "plan -f empty",
        expect![[r#"
        ! error: empty: no .yaml or .yml file in this folder
        exit 2
    "#]],
    )
    .await?;
    cli.write("drivers.yaml", "# nothing yet\n")?;
    cli.check(
        "apply -f drivers.yaml",
        expect![[r#"
        ! error: the files hold no definitions
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "apply -f drivers.yaml --project no/name",
        expect![[r#"
        ! error: project: `no/name` is not a name: at most 128 letters, digits, _ or -, and no digit first
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "apply",
        expect![[r#"
        ! error: the following required arguments were not provided:
        !   --file <DIR|FILE>
        ! 
        ! Usage: cairn apply --file <DIR|FILE> --node <HOST:PORT>
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.end().await
}
