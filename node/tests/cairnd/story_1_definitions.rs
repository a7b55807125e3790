//! Story 1: a team keeps its definitions in YAML files and applies them, again and again, from more than one machine.

use crate::support::rows::{at, batch, floats32, ints, show, times};
use crate::support::{Story, TestResult, changes, features, files, service};
use cairn_client::api::SourceFile;
use cairn_client::{DEFAULT_PROJECT, ErrorKind};
use expect_test::{Expect, expect};

const DRIVERS: &str = r#"kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec:
  entities: [driver]
  features:
    - {name: rating, type: float32, description: "mean of the last 100 ratings"}
    - {name: trips, type: int64}
---
kind: OnDemandFeatureView
name: pay
spec:
  sources: ["stats:trips"]
  request_data: [{name: fare, type: float64}]
  features: [{name: earned, type: float64, sql: "trips * fare"}]
---
kind: FeatureService
name: eta
spec: {features: ["stats:rating", pay]}
"#;

async fn listed(story: &Story) -> TestResult<String> {
    let rows = story.client.definitions(DEFAULT_PROJECT).await?;
    Ok(rows.iter().map(|row| format!("{} {} @{}\n", row.kind, row.name, row.version)).collect())
}

fn one_rating() -> arrow_array::RecordBatch {
    batch(&[
        ("driver_id", ints([7])),
        ("event_timestamp", times([at(0)])),
        ("rating", floats32([4.5])),
        ("trips", ints([3])),
    ])
}

#[tokio::test]
async fn applying_the_same_files_again_changes_nothing() -> TestResult {
    let story = Story::one_node().await?;
    let planned = story.client.plan(DEFAULT_PROJECT, files(DRIVERS)).await?;
    assert_eq!(
        story.client.definitions(DEFAULT_PROJECT).await.unwrap_err().kind(),
        ErrorKind::NotFound,
        "a plan changes nothing"
    );
    let first = story.apply(DRIVERS).await?;
    assert_eq!(planned.changes, first.changes, "an apply does what its plan said");
    expect![[r#"
        create Entity driver 0→1
        create FeatureView stats 0→1
        create OnDemandFeatureView pay 0→1
        create FeatureService eta 0→1
    "#]]
    .assert_eq(&changes(&first.changes));
    let before = story.client.definitions(DEFAULT_PROJECT).await?;

    // The same definitions, in another order, in two files, with comments.
    let (drivers, rest) = DRIVERS.split_once("---\n").ok_or("more than one document")?;
    let rest = SourceFile { path: "a.yaml".into(), text: format!("# what we know of drivers\n{rest}") };
    let again = vec![rest, SourceFile { path: "b/drivers.yaml".into(), text: drivers.into() }];
    for files in [files(DRIVERS), again] {
        let reply = story.client.apply(DEFAULT_PROJECT, files).await?;
        assert!(reply.changes.iter().all(|change| change.action == "unchanged"), "{}", changes(&reply.changes));
        assert_eq!(reply.token, first.token);
    }
    assert_eq!(story.client.definitions(DEFAULT_PROJECT).await?, before);
    story.end().await
}

#[tokio::test]
async fn a_changed_schema_makes_version_2_and_its_readers_follow() -> TestResult {
    let story = Story::one_node().await?;
    let first = story.apply(DRIVERS).await?;
    story.store("stats", one_rating()).await?;
    let changed = DRIVERS.replace("{name: trips, type: int64}", "{name: trips, type: int32}");
    let second = story.apply(&changed).await?;
    assert_ne!(second.token, first.token);
    expect![[r#"
        unchanged Entity driver 1→1
        update FeatureView stats 1→2 without rows
        update OnDemandFeatureView pay 1→2
        update FeatureService eta 1→2
    "#]]
    .assert_eq(&changes(&second.changes));

    // Version 2 starts empty; version 1 and its rows stay for whoever names it.
    let keys = batch(&[("driver_id", ints([7]))]);
    let mut newest = features(&["stats:rating", "stats:trips"]);
    newest.statuses = true;
    expect![[r#"
        driver_id | rating | rating__status | trips | trips__status
        7 |  | NOT_FOUND |  | NOT_FOUND
    "#]]
    .assert_eq(&show(&story.online(newest, &keys).await?));
    expect![[r#"
        driver_id | rating | trips
        7 | 4.5 | 3
    "#]]
    .assert_eq(&show(&story.online(features(&["stats@1:rating", "stats@1:trips"]), &keys).await?));
    story.store("stats", one_rating()).await?;
    let asked = batch(&[("driver_id", ints([7])), ("fare", crate::support::rows::floats([2.5]))]);
    expect![[r#"
        driver_id | fare | rating | earned
        7 | 2.5 | 4.5 | 7.5
    "#]]
    .assert_eq(&show(&story.online(service("eta"), &asked).await?));
    story.end().await
}

#[tokio::test]
async fn a_changed_ttl_keeps_the_rows() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("stats", one_rating()).await?;
    let keys = batch(&[("driver_id", ints([7]))]);
    let read = || features(&["stats:rating", "stats:trips"]);
    let before = story.online(read(), &keys).await?;

    let reply =
        story.apply(&DRIVERS.replace("  entities: [driver]\n", "  entities: [driver]\n  ttl: 52000w\n")).await?;
    expect![[r#"
        unchanged Entity driver 1→1
        update FeatureView stats 1→2
        update OnDemandFeatureView pay 1→2
        update FeatureService eta 1→2
    "#]]
    .assert_eq(&changes(&reply.changes));
    assert_eq!(story.online(read(), &keys).await?, before);

    // A shorter one takes effect at once, and loses nothing: without it the value is back.
    story.apply(&DRIVERS.replace("  entities: [driver]\n", "  entities: [driver]\n  ttl: 1h\n")).await?;
    let mut statuses = features(&["stats:rating"]);
    statuses.statuses = true;
    expect![[r#"
        driver_id | rating | rating__status
        7 |  | OUTSIDE_MAX_AGE
    "#]]
    .assert_eq(&show(&story.online(statuses, &keys).await?));
    story.apply(DRIVERS).await?;
    assert_eq!(story.online(read(), &keys).await?, before);
    expect![[r#"
        Entity driver @1
        FeatureView stats @4
        OnDemandFeatureView pay @4
        FeatureService eta @4
    "#]]
    .assert_eq(&listed(&story).await?);
    story.end().await
}

/// What the node says of `DRIVERS` with `from` replaced by `to`.
async fn refused(story: &Story, from: &str, to: &str) -> String {
    assert!(DRIVERS.contains(from), "{from}");
    let error = story.client.apply(DEFAULT_PROJECT, files(&DRIVERS.replace(from, to))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    format!("{error}\n")
}

#[tokio::test]
async fn a_mistake_is_named_by_file_line_and_column() -> TestResult {
    let story = Story::one_node().await?;
    let check = async |from: &str, to: &str, expected: Expect| expected.assert_eq(&refused(&story, from, to).await);
    check(
        "join_keys:",
        "join_key:",
        expect![[r#"
        defs.yaml:3:8: unknown field `join_key`; did you mean `join_keys`?
    "#]],
    )
    .await;
    check("kind: FeatureView", "kind: FeatureVeiw", expect![[r#"
        defs.yaml:5:7: `FeatureVeiw` is not a kind; the kinds are Entity, FeatureView, OnDemandFeatureView, FeatureService, Model, Deployment
    "#]]).await;
    check("type: float32", "type: float23", expect![[r#"
        defs.yaml:10:7: `rating`: `float23` is not a feature type; types are bool, int32, int64, float32, float64, string, bytes, timestamp, date, and lists of numbers such as list<float32> or list<float32>[384]
    "#]]).await;
    check(
        "entities: [driver]",
        "entities: [drivr]",
        expect![[r#"
        defs.yaml:8:14: Entity `drivr` not found; did you mean `driver`?
    "#]],
    )
    .await;
    check(
        "\"stats:trips\"",
        "\"stats:trip\"",
        expect![[r#"
        defs.yaml:16:13: feature view `stats` has no feature `trip`; did you mean `trips`?
    "#]],
    )
    .await;
    check(
        "\"stats:rating\"",
        "\"stat:rating\"",
        expect![[r#"
        defs.yaml:22:19: feature view `stat` not found; did you mean `stats`?
    "#]],
    )
    .await;
    check(
        "trips * fare",
        "trips * fair",
        expect![[r#"
        defs.yaml:18:14: on-demand feature `pay:earned`: unknown column `fair`; there are fare, trips
    "#]],
    )
    .await;
    check(
        "spec: {join_keys",
        "spec: {join_keys: [}",
        expect![[r#"
        defs.yaml:3:19: mismatched bracket '[' closed by '}'
    "#]],
    )
    .await;
    check(
        "name: stats",
        "name: 1stats",
        expect![[r#"
        defs.yaml:6:7: `1stats` is not a name: at most 128 letters, digits, _ or -, and no digit first
    "#]],
    )
    .await;
    check(
        "  entities: [driver]\n",
        "  entities: [driver]\n  ttl: soon\n",
        expect![[r#"
        defs.yaml:9:8: `soon` is not a duration; write a number with ms, s, m, h, d or w, such as `30d`
    "#]],
    )
    .await;
    check(
        "name: eta",
        "name: eta\nowner: me",
        expect![[r#"
        defs.yaml:22:1: unknown field `owner`, expected one of kind, name, spec
    "#]],
    )
    .await;
    assert_eq!(
        story.client.definitions(DEFAULT_PROJECT).await.unwrap_err().kind(),
        ErrorKind::NotFound,
        "a refused plan leaves nothing behind"
    );
    story.end().await
}

#[tokio::test]
async fn one_bad_part_refuses_the_whole_plan() -> TestResult {
    let story = Story::one_node().await?;
    let first = story.apply(DRIVERS).await?;
    let before = story.client.definitions(DEFAULT_PROJECT).await?;
    let good = "kind: Entity\nname: rider\nspec: {join_keys: [{name: rider_id, type: int64}]}\n";
    let bad = "kind: FeatureView\nname: rides\nspec: {entities: [ride], features: [{name: fare, type: float64}]}\n";
    let files = vec![
        SourceFile { path: "good.yaml".into(), text: good.into() },
        SourceFile { path: "bad.yaml".into(), text: bad.into() },
        // A change of something that is there, beside the mistake.
        SourceFile { path: "change.yaml".into(), text: DRIVERS.replace("type: int64}\n---", "type: int32}\n---") },
    ];
    let error = story.client.apply(DEFAULT_PROJECT, files).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().starts_with("bad.yaml:"), "{error}");
    assert_eq!(story.client.definitions(DEFAULT_PROJECT).await?, before);
    assert_eq!(story.apply(DRIVERS).await?.token, first.token);
    story.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_that_race_all_count_and_none_is_half_done() -> TestResult {
    const TEAMS: usize = 8;
    let story = Story::one_node().await?;

    // The same files from many machines: one of them makes the definitions, the others find them made.
    let same = (0..TEAMS).map(|_| story.client.apply(DEFAULT_PROJECT, files(DRIVERS)));
    let mut made = 0;
    for reply in futures::future::join_all(same).await {
        let actions: Vec<String> = reply?.changes.into_iter().map(|change| change.action).collect();
        assert!(actions.windows(2).all(|pair| pair[0] == pair[1]), "half an apply: {actions:?}");
        made += usize::from(actions[0] == "create");
    }
    assert_eq!(made, 1);

    // Different views of one project at the same time: all of them are there afterwards.
    let views: Vec<String> = (0..TEAMS)
        .map(|team| format!("kind: FeatureView\nname: team_{team}\nspec: {{entities: [driver], features: [{{name: f{team}, type: int64}}]}}\n"))
        .collect();
    let applies = views.iter().map(|yaml| story.client.apply(DEFAULT_PROJECT, files(yaml)));
    let mut tokens = Vec::new();
    for reply in futures::future::join_all(applies).await {
        let reply = reply?;
        assert_eq!(reply.changes.len(), 1);
        tokens.push(reply.token);
    }
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), TEAMS, "each apply is a log entry of its own: {tokens:?}");
    let listed = listed(&story).await?;
    assert!((0..TEAMS).all(|team| listed.contains(&format!("FeatureView team_{team} @1\n"))), "{listed}");

    // Different schemas of one view: as many versions, none lost, none twice.
    let schemas: Vec<String> = (0..TEAMS).map(|team| views[0].replace("name: f0", &format!("name: g{team}"))).collect();
    let applies = schemas.iter().map(|yaml| story.client.apply(DEFAULT_PROJECT, files(yaml)));
    let mut versions = Vec::new();
    for reply in futures::future::join_all(applies).await {
        versions.extend(reply?.changes.iter().map(|change| change.to_version));
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..2 + TEAMS as u32).collect::<Vec<_>>());
    story.end().await
}
