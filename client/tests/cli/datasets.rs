//! `cairn dataset`.

use super::support::{Cli, TestResult};
use expect_test::expect;

const SPINE: &str = "\
driver_id,event_timestamp,late
7,2024-01-01T00:00:05Z,true
7,2024-01-01T00:00:20Z,false
8,2024-01-01T00:00:20Z,true
7,2024-01-01T00:01:00Z,false
";

#[tokio::test]
async fn a_dataset_is_made_again_byte_for_byte_whatever_happened_since() -> TestResult {
    let mut cli = Cli::with_rows().await?;
    cli.write("spine.csv", SPINE)?;
    cli.check(
        "dataset create may eta spine.csv -o may.csv",
        expect![[r#"
        created dataset `may`: 4 rows with 5 columns in `may.csv`
        … s, … rows/s, token TOKEN
          features     eta@1
          spine        spine.csv, 145 B, artifact 2ebf3f19d927c99d86f182925ba49eda94d66f2b29aabc07e2776c09c1835c59
          known as of  NOW
          corrections  created by each row's time
          content      BLAKE3 293a822ff89dadd4f99dba2a928992517138fea090285e49c70054bdb10abc75, csv
          rows         4
          created      NOW
          by           ada
    "#]],
    )
    .await?;
    let made = "dataset create parts stats:rating spine.csv -o parts.parquet --statuses --full-feature-names";
    assert_eq!(cli.run(made).await?.code, Some(0));

    // Late rows, corrections, a deletion, another version of the view and of the service; then a restart.
    cli.write(
        "late.csv",
        "driver_id,event_timestamp,rating,trips\n7,2024-01-01T00:00:04Z,1.5,9\n7,2024-01-01T00:00:10Z,1.25,8\n",
    )?;
    assert_eq!(cli.run("ingest stats late.csv").await?.code, Some(0));
    cli.write("gone.csv", "driver_id,event_timestamp\n8,2024-01-01T00:00:15Z\n")?;
    assert_eq!(cli.run("delete stats gone.csv").await?.code, Some(0));
    cli.write("drivers.yaml", crate::support::DRIVERS.replace("ttl: 30d", "ttl: 1s"))?;
    cli.run("apply -f drivers.yaml").await?;
    cli.restart().await?;
    cli.check(
        "join eta spine.csv",
        expect![[r#"
        driver_id  event_timestamp       late   rating  trips
                7  2024-01-01T00:00:05Z  true      1.5      9
                7  2024-01-01T00:00:20Z  false    null   null
                8  2024-01-01T00:00:20Z  true     null   null
                7  2024-01-01T00:01:00Z  false    null   null
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;

    cli.check(
        "dataset rebuild may -o again.csv",
        expect![[r#"
        rebuilt dataset `may`, the same bytes: 4 rows with 5 columns in `again.csv`
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    let bytes = |name: &str| std::fs::read(cli.folder().join(name));
    assert_eq!(bytes("again.csv")?, bytes("may.csv")?);
    let again = cli.run("dataset rebuild parts -o again.parquet").await?;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(bytes("again.parquet")?, bytes("parts.parquet")?);
    let left: Vec<_> =
        std::fs::read_dir(cli.folder())?.map(|entry| entry.map(|it| it.file_name())).collect::<Result<_, _>>()?;
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");

    cli.check(
        "dataset list",
        expect![[r#"
        DATASET  ROWS  FEATURES        KNOWN AS OF
        may         4  eta@1           NOW
        parts       4  stats@1:rating  NOW
    "#]],
    )
    .await?;
    cli.check(
        "lineage dataset:default/may",
        expect![[r#"
        dataset:default/may
        ├── artifact:2ebf3f19d927c99d86f182925ba49eda94d66f2b29aabc07e2776c09c1835c59  (spine_of)
        └── feature_service:default/eta@1  (joined)
            └── feature_view:default/stats@1  (reads)
                └── entity:default/driver@1  (keys)
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn what_cannot_be_a_dataset_is_said() -> TestResult {
    let cli = Cli::with_rows().await?;
    cli.write("spine.csv", SPINE)?;
    assert_eq!(cli.run("dataset create may eta spine.csv -o may.csv").await?.code, Some(0));
    cli.check(
        "dataset create may eta spine.csv -o other.csv",
        expect![[r#"
        ! error: there is a dataset `may`, and it never changes; choose another name
        ! hint: `cairn dataset show may` tells how it was made
        exit 4
    "#]],
    )
    .await?;
    assert!(!cli.folder().join("other.csv").exists());
    cli.check(
        "dataset rebuild may -o may.parquet",
        expect![[r#"
        ! error: dataset `may` was made as csv, and other bytes cannot be compared; name a file that ends in .csv
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "dataset rebuild mai -o x.csv",
        expect![[r#"
        ! error: dataset `mai` not found in project `default`; did you mean `may`?
        ! hint: `cairn dataset list` shows what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check("dataset create a/b eta spine.csv -o x.csv", expect![[r#"
        ! error: `a/b` is not a name for a dataset; use a letter or `_`, then letters, digits, `_` or `-`, at most 128 in all
        exit 2
    "#]]).await?;
    cli.check(
        "dataset create june et spine.csv -o x.csv",
        expect![[r#"
        ! error: feature service `et` not found in project `default`; did you mean `eta`?
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "dataset create june eta spine.csv -o x.csv --known-as-of 2999-01-01T00:00:00Z",
        expect![[r#"
        ! error: nothing can be pinned to a moment that has not come yet
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "dataset create june eta nowhere.csv -o x.csv",
        expect![[r#"
        ! error: nowhere.csv: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "dataset create june eta spine.csv -o x.txt",
        expect![[r#"
        ! error: x.txt: the name must end in .parquet or .csv
        exit 2
    "#]],
    )
    .await?;
    assert!(!cli.folder().join("x.csv").exists());
    cli.check(
        "dataset list",
        expect![[r#"
        DATASET  ROWS  FEATURES  KNOWN AS OF
        may         4  eta@1     NOW
    "#]],
    )
    .await?;
    cli.end().await
}

/// Whoever registers a dataset chooses the names in it.
#[tokio::test]
async fn a_rebuild_trusts_no_name_and_no_content() -> TestResult {
    let cli = Cli::with_rows().await?;
    cli.write("spine.csv", SPINE)?;
    assert_eq!(cli.run("dataset create may eta spine.csv -o may.csv").await?.code, Some(0));
    let client = cairn_client::Client::connect(&cli.address()).await?;
    let may = client.dataset("default", "may").await?;
    let (name, spine_file) = ("sly".to_owned(), "x/../../../escaped.csv".to_owned());
    client.register_dataset(cairn_client::api::Dataset { name, spine_file, ..may.clone() }).await?;
    assert_eq!(cli.run("dataset rebuild sly -o sly.csv").await?.code, Some(0));
    assert_eq!(std::fs::read(cli.folder().join("sly.csv"))?, std::fs::read(cli.folder().join("may.csv"))?);
    assert!(!cli.folder().join("../escaped.csv").exists() && !cli.folder().join("../../escaped.csv").exists());

    let (name, content) = ("wrong".to_owned(), "0".repeat(64));
    client.register_dataset(cairn_client::api::Dataset { name, content, ..may }).await?;
    cli.write("wrong.csv", "mine")?;
    let said = cli.run("dataset rebuild wrong -o wrong.csv").await?;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.errors.contains("it is kept in `.wrong.csv.rebuilt.csv`"), "{said:?}");
    assert_eq!(std::fs::read(cli.folder().join("wrong.csv"))?, b"mine");
    cli.end().await
}
