//! Requests that are wrong: each is refused by name with the fix, changes nothing, and the node goes on serving.

use crate::faults_support::{Victim, driver, refused, row};
use crate::support::rows::{at, batch, floats, floats32, ints, texts, times};
use crate::support::{TestResult, features, into, service, training};
use arrow_array::{ArrayRef, RecordBatch};
use cairn_client::command::{GetOnlineFeatures, Ingest, Predict};
use cairn_client::registry::{Expected, Promotion, VersionOf};
use cairn_client::{Client, DEFAULT_PROJECT, read};
use expect_test::{Expect, expect};

#[tokio::test]
async fn unknown_names_are_told_with_near_ones() -> TestResult {
    let victim = Victim::new().await?;
    let story = &victim.story;
    let online = async |ask: GetOnlineFeatures, expected: Expect| {
        expected.assert_eq(&refused(story.online(ask, &driver(7)).await));
    };
    online(
        GetOnlineFeatures { project: "fleet".into(), ..service("eta") },
        expect!["not_found: project `fleet` not found; there is `default`"],
    )
    .await;
    online(
        service("eda"),
        expect!["not_found: feature service `eda` not found in project `default`; did you mean `eta`?"],
    )
    .await;
    online(service("stats"), expect![[r#"not_found: feature service `stats` not found in project `default`; `stats` is a feature view: ask for `features` ["stats"] (on the command line `stats:`)"#]]).await;
    online(
        features(&["stat:rating"]),
        expect!["not_found: feature view `stat` not found in project `default`; did you mean `stats`?"],
    )
    .await;
    online(
        features(&["stats:ratting"]),
        expect!["not_found: feature `ratting` not found in feature view `stats@1`; did you mean `rating`?"],
    )
    .await;
    online(
        features(&["stats@9:rating"]),
        expect!["not_found: feature view `stats@9` not found in project `default`; its newest version is 1"],
    )
    .await;
    online(features(&["stats:rating:now"]), expect!["invalid_argument: `stats:rating:now` is not a feature reference; write `view:feature`, `view@3:feature`, or `view` for all its features"]).await;
    online(
        features(&[]),
        expect![
            "invalid_argument: no features are asked for; name a feature service, or features such as `view:feature`"
        ],
    )
    .await;
    online(
        GetOnlineFeatures { feature_service: None, features: None, ..service("eta") },
        expect![[r#"invalid_argument: name a `feature_service`, or `features` such as ["view:feature"]"#]],
    )
    .await;

    let spine = [batch(&[("driver_id", ints([7])), ("event_timestamp", times([at(9)]))])];
    expect!["not_found: feature view `stat` not found in project `default`; did you mean `stats`?"]
        .assert_eq(&refused(story.historical(&training(&["stat:rating"]), &spine).await));

    let ingest = async |ask: Ingest, expected: Expect| {
        expected.assert_eq(&refused(story.client.ingest_batch(ask, row(7, 1.0, 1)).await));
    };
    ingest(
        into("statz"),
        expect!["not_found: feature view `statz` not found in project `default`; did you mean `stats`?"],
    )
    .await;
    ingest(
        Ingest { project: "fleet".into(), ..into("stats") },
        expect!["not_found: project `fleet` not found; there is `default`"],
    )
    .await;
    ingest(
        Ingest { sequence: Some(1), ..into("stats") },
        expect!["invalid_argument: `sequence` needs a `producer`: together they make ingest exactly-once"],
    )
    .await;

    let predict = async |ask: Predict, expected: Expect| {
        expected.assert_eq(&refused(story.client.predict(ask).read(&driver(7)).await));
    };
    let ask = read::predict(DEFAULT_PROJECT);
    predict(
        Predict { deployment: Some("quotes".into()), ..ask.clone() },
        expect!["not_found: deployment `quotes` not found in project `default`; did you mean `quote`?"],
    )
    .await;
    predict(Predict { deployment: Some("quote".into()), ..ask.clone() }, expect!["not_found: deployment `quote`: alias `champion` of model `fare` not found in project `default`; point it at a version first (`cairn model promote`)"]).await;
    predict(
        Predict { model: Some("fair".into()), version: Some(1), ..ask.clone() },
        expect!["not_found: model `fair` not found in project `default`; there is `fare`"],
    )
    .await;
    predict(
        Predict { model: Some("fare".into()), version: Some(1), ..ask.clone() },
        expect!["not_found: model `fare@1` not found in project `default`; it has no versions yet"],
    )
    .await;
    predict(Predict { model: Some("fare".into()), alias: Some("best".into()), ..ask.clone() }, expect!["not_found: alias `best` of model `fare` not found in project `default`; point it at a version first (`cairn model promote`)"]).await;
    predict(ask, expect!["invalid_argument: name a `deployment`, or a `model` with `version` or `alias`"]).await;

    let client = &story.client;
    expect!["not_found: model `fair` not found in project `default`; there is `fare`"]
        .assert_eq(&refused(client.model(DEFAULT_PROJECT, "fair").await));
    expect!["not_found: model `fare@3` not found in project `default`; it has no versions yet"]
        .assert_eq(&refused(client.model_version(DEFAULT_PROJECT, "fare", &VersionOf::Number(3)).await));
    expect!["not_found: project `fleet` not found; there is `default`"]
        .assert_eq(&refused(client.definitions("fleet").await));
    let promotion = |model, expected| Promotion {
        project: DEFAULT_PROJECT,
        model,
        alias: "champion",
        version: 1,
        expected,
        author: "me",
        reason: "",
    };
    expect!["not_found: model `fair` not found in project `default`; there is `fare`"]
        .assert_eq(&refused(client.promote(&promotion("fair", Expected::Anything)).await));
    expect!["not_found: model `fare@1` not found in project `default`; it has no versions yet"]
        .assert_eq(&refused(client.promote(&promotion("fare", Expected::None)).await));
    victim.works().await
}

/// The columns of a good row with some of them replaced, or left out where nothing stands.
fn changed(changes: &[(&str, Option<ArrayRef>)]) -> RecordBatch {
    let good = row(7, 9.0, 9);
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    let schema = good.schema();
    for (field, column) in schema.fields().iter().zip(good.columns()) {
        match changes.iter().find(|(name, _)| name == field.name()) {
            Some((name, Some(other))) => columns.push((name, other.clone())),
            Some((_, None)) => {}
            None => columns.push((field.name(), column.clone())),
        }
    }
    let known = |name: &str| schema.column_with_name(name).is_some();
    columns.extend(
        changes.iter().filter(|(name, _)| !known(name)).filter_map(|(name, more)| Some((*name, more.clone()?))),
    );
    batch(&columns)
}

#[tokio::test]
async fn a_batch_that_does_not_fit_its_view_is_refused_whole() -> TestResult {
    let victim = Victim::new().await?;
    let check = async |changes: &[(&str, Option<ArrayRef>)], expected: Expect| {
        expected.assert_eq(&refused(victim.story.ingest("stats", changed(changes)).await));
    };
    check(&[("driver_id", None)], expect!["invalid_argument: the batch has no column `driver_id` (a join key of feature view `stats`); it needs driver_id, event_timestamp, rating, trips"]).await;
    check(&[("event_timestamp", None)], expect!["invalid_argument: the batch has no column `event_timestamp` (the event time of feature view `stats`); it needs driver_id, event_timestamp, rating, trips"]).await;
    check(&[("trips", None)], expect!["invalid_argument: the batch has no column `trips` (a feature of feature view `stats`); it needs driver_id, event_timestamp, rating, trips"]).await;
    check(&[("tripps", Some(ints([1])))], expect!["invalid_argument: column `tripps` is no join key, time or feature of feature view `stats`; leave it out, or apply a definition that has it (known: driver_id, event_timestamp, rating, trips, created_timestamp)"]).await;
    check(
        &[("driver_id", Some(texts(["seven"])))],
        expect!["invalid_argument: column `driver_id` is Utf8, which does not fit its declared type int64"],
    )
    .await;
    check(
        &[("driver_id", Some(floats([7.0])))],
        expect!["invalid_argument: column `driver_id` is Float64, which does not fit its declared type int64"],
    )
    .await;
    check(&[("event_timestamp", Some(ints([at(1)])))], expect!["invalid_argument: column `event_timestamp` is Int64; it must be an Arrow timestamp (any unit; without zone = UTC)"]).await;
    check(
        &[("trips", Some(texts(["3"])))],
        expect!["invalid_argument: column `trips` is Utf8, which does not fit its declared type int64"],
    )
    .await;
    check(
        &[("trips", Some(floats([3.5])))],
        expect!["invalid_argument: column `trips` is Float64, which does not fit its declared type int64"],
    )
    .await;
    check(
        &[("rating", Some(texts(["good"])))],
        expect!["invalid_argument: column `rating` is Utf8, which does not fit its declared type float32"],
    )
    .await;
    victim.unharmed().await
}

#[tokio::test]
async fn rows_without_a_key_or_a_time_are_rejected_one_by_one() -> TestResult {
    let victim = Victim::new().await?;
    let rows = batch(&[
        ("driver_id", ints([None, Some(1), Some(2)])),
        ("event_timestamp", times([Some(at(0)), None, Some(at(0))])),
        ("rating", floats32([1.0, 2.0, 3.0])),
        ("trips", ints([None, Some(1), None])),
    ]);
    let reply = victim.story.ingest("stats", rows).await?;
    assert_eq!((reply.rows_accepted, reply.rows_rejected), (1, 2));
    let rejections: Vec<String> = reply.rejections.iter().map(|it| format!("{}: {}", it.row, it.reason)).collect();
    assert_eq!(rejections, ["0: join key `driver_id` is null", "1: `event_timestamp` is null"]);
    let read = victim.story.online(service("eta"), &batch(&[("driver_id", ints([1, 2]))])).await?;
    assert_eq!(
        crate::support::rows::show(&read),
        "driver_id | rating | trips\n1 |  | \n2 | 3.0 | \n".replace(" \n", "\n")
    );

    // A null key names nobody: a read of it finds nothing, and a join leaves it without features.
    let mut ask = service("eta");
    ask.statuses = true;
    let read = victim.story.online(ask, &batch(&[("driver_id", ints([None, Some(7)]))])).await?;
    expect![[r#"
        driver_id | rating | rating__status | trips | trips__status
         |  | NOT_FOUND |  | NOT_FOUND
        7 | 4.5 | PRESENT | 3 | PRESENT
    "#]]
    .assert_eq(&crate::support::rows::show(&read));
    victim.works().await
}

#[tokio::test]
async fn entity_rows_that_do_not_fit_are_refused() -> TestResult {
    let victim = Victim::new().await?;
    let check = async |rows: RecordBatch, expected: Expect| {
        expected.assert_eq(&refused(victim.story.online(service("eta"), &rows).await));
    };
    check(batch(&[("driver", ints([7]))]), expect!["invalid_argument: column `driver_id` int64 is missing, a join key of entity `driver`; needed are `driver_id` int64, found `driver`"]).await;
    check(
        batch(&[("driver_id", texts(["seven"]))]),
        expect!["invalid_argument: column `driver_id` is Utf8, which does not fit its declared type int64"],
    )
    .await;

    let join = async |spine: RecordBatch, expected: Expect| {
        expected.assert_eq(&refused(victim.story.historical(&training(&["stats:rating"]), &[spine]).await));
    };
    join(batch(&[("driver_id", ints([7]))]), expect!["invalid_argument: the spine has no time column `event_timestamp`; there are driver_id; name its time column with `event_timestamp`"]).await;
    join(batch(&[("event_timestamp", times([at(1)]))]), expect!["invalid_argument: column `driver_id` int64 is missing, a join key of entity `driver`; needed are `driver_id` int64, found `event_timestamp`"]).await;
    join(batch(&[("driver_id", ints([7])), ("event_timestamp", ints([1]))]), expect!["invalid_argument: column `event_timestamp` is Int64; times are timestamps (no zone = UTC), dates, or RFC 3339 text"]).await;
    victim.unharmed().await
}

#[tokio::test]
async fn a_batch_over_the_row_limit_is_refused() -> TestResult {
    const ROWS: i64 = 65_537;
    let victim = Victim::new().await?;
    let many = batch(&[
        ("driver_id", ints(0..ROWS)),
        ("event_timestamp", times((0..ROWS).map(|_| at(0)))),
        ("rating", floats32((0..ROWS).map(|_| 1.0))),
        ("trips", ints(0..ROWS)),
    ]);
    expect!["too_large: a batch of 65537 rows is over the limit of 65536; send smaller batches"]
        .assert_eq(&refused(victim.story.ingest("stats", many.clone()).await));
    let keys = crate::support::rows::only(&many, &["driver_id"]);
    expect!["too_large: a batch of 65537 entity rows is over the limit of 65536; send smaller batches"]
        .assert_eq(&refused(victim.story.online(service("eta"), &keys).await));
    victim.unharmed().await
}

#[tokio::test]
async fn http_requests_are_refused_with_kind_and_reason() -> TestResult {
    let victim = Victim::new().await?;
    let address = victim.address().to_owned();
    let check = |path: &str, body: &str, expected: Expect| -> TestResult {
        let answer = crate::support::http::post(&address, path, body)?;
        let json = answer.json()?;
        expected.assert_eq(&format!("{} {}: {}", answer.status, json["kind"], json["error"]));
        Ok(())
    };
    let features = "/get-online-features";
    check(
        features,
        "{",
        expect![[
            r#"400 "invalid_argument": "the request body is not understood: EOF while parsing an object at line 1 column 1""#
        ]],
    )?;
    check(
        features,
        r#"{"entites": {}}"#,
        expect![[
            r#"400 "invalid_argument": "the request body is not understood: unknown field `entites`, expected one of `entities`, `features`, `feature_service`, `full_feature_names`, `include_feature_view_version_metadata`, `project`, `read`, `as_of`, `known_as_of` at line 1 column 10""#
        ]],
    )?;
    check(
        features,
        r#"{"feature_service": "eda", "entities": {"driver_id": [7]}}"#,
        expect![[r#"404 "not_found": "feature service `eda` not found in project `default`; did you mean `eta`?""#]],
    )?;
    check(
        features,
        r#"{"feature_service": "eta", "entities": {"driver": [7]}}"#,
        expect![[r#"400 "invalid_argument": "`entities` has no `driver_id` (it has: driver)""#]],
    )?;
    check(
        features,
        r#"{"feature_service": "eta", "entities": {"driver_id": ["x"]}}"#,
        expect![[r#"400 "invalid_argument": "`entities`.`driver_id`, row 0: \"x\" is not int64""#]],
    )?;
    check(
        features,
        r#"{"feature_service": "eta", "entities": {"driver_id": 7}}"#,
        expect![[r#"400 "invalid_argument": "`entities`.`driver_id` must be a list of values, one for each row""#]],
    )?;
    let infer = "/v2/models/quotes/infer";
    check(
        infer,
        r#"{"inputs": []}"#,
        expect![[r#"404 "not_found": "deployment `quotes` not found in project `default`; did you mean `quote`?""#]],
    )?;
    check(
        infer,
        "nothing",
        expect![[r#"400 "invalid_argument": "the request body is not understood: expected ident at line 1 column 2""#]],
    )?;
    check(
        "/v2/models/fare/versions/one/infer",
        r#"{"inputs": []}"#,
        expect![[r#"400 "invalid_argument": "`one` is not a version number""#]],
    )?;
    check("/v3", "{}", expect![[r#"404 "not_found": "there is nothing at `/v3`""#]])?;
    victim.unharmed().await
}

/// A node that is not there is said at once, with its address.
#[tokio::test]
async fn an_address_where_nobody_listens_is_named() -> TestResult {
    let [address, _] = cairn_client::local::free_addresses()?;
    let options = cairn_client::Options { first_connect: std::time::Duration::ZERO, ..Default::default() };
    let error = Client::with_options(&address, options).await?.status().await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
    Ok(())
}
