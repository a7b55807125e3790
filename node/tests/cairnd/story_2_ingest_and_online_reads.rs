//! Story 2: a service stores feature rows and reads them back a moment later: every type, every status, whatever order
//! rows come in and however often they are sent.

use crate::support::chance::Chance;
use crate::support::rows::{DAY, SECOND, at, batch, floats, floats32, ints, ints32, now_us, only, show, texts, times};
use crate::support::{Story, TestResult, features, into, once};
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder,
    ListBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Date32Array, RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use cairn_client::command::Ingested;
use cairn_client::{DEFAULT_PROJECT, ErrorKind};
use expect_test::{Expect, expect};
use futures::SinkExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const ITEMS: &str = r#"
kind: Entity
name: item
spec: {join_keys: [{name: item_id, type: int64}]}
---
kind: FeatureView
name: all
spec:
  entities: [item]
  features:
    - {name: flag, type: bool}
    - {name: small, type: int32}
    - {name: large, type: int64}
    - {name: rough, type: float32}
    - {name: fine, type: float64}
    - {name: word, type: string}
    - {name: raw, type: bytes}
    - {name: moment, type: timestamp}
    - {name: day, type: date}
    - {name: counts, type: list<int64>}
    - {name: weights, type: list<float32>}
    - {name: embedding, type: "list<float32>[4]"}
    - {name: corners, type: "list<int32>[3]"}
"#;

const FEATURES: [&str; 13] = [
    "flag",
    "small",
    "large",
    "rough",
    "fine",
    "word",
    "raw",
    "moment",
    "day",
    "counts",
    "weights",
    "embedding",
    "corners",
];

/// Values people get wrong, and any others, with nulls between them.
fn items(chance: &mut Chance, rows: usize) -> RecordBatch {
    fn pick<T: Copy>(chance: &mut Chance, edges: &[T], other: impl Fn(u64) -> T) -> Option<T> {
        let value = if chance.one_in(2) { edges[chance.below(edges.len())] } else { other(chance.bits()) };
        chance.maybe(4, value)
    }
    let mut columns: Vec<(&str, ArrayRef)> =
        vec![("item_id", ints(0..rows as i64)), ("event_timestamp", times((0..rows).map(|_| at(0))))];
    macro_rules! column {
        ($name:literal, $make:expr, $edges:expr, $other:expr) => {
            let values: Vec<_> = (0..rows).map(|_| pick(chance, $edges, $other)).collect();
            columns.push(($name, $make(values)));
        };
    }
    fn flags(values: Vec<Option<bool>>) -> ArrayRef {
        let mut builder = BooleanBuilder::new();
        values.into_iter().for_each(|value| builder.append_option(value));
        Arc::new(builder.finish())
    }
    fn bytes(values: Vec<Option<&[u8]>>) -> ArrayRef {
        let mut builder = BinaryBuilder::new();
        values.into_iter().for_each(|value| builder.append_option(value));
        Arc::new(builder.finish())
    }
    fn days(values: Vec<Option<i32>>) -> ArrayRef {
        let mut builder = Date32Builder::new();
        values.into_iter().for_each(|value| builder.append_option(value));
        Arc::new(builder.finish())
    }
    column!("flag", flags, &[true, false], |bits| bits % 2 == 0);
    column!("small", ints32, &[0, -1, i32::MIN, i32::MAX], |bits| bits as i32);
    column!("large", ints, &[0, -1, i64::MIN, i64::MAX], |bits| bits as i64);
    column!("rough", floats32, &[0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE], |bits| bits as f32);
    column!("fine", floats, &[0.0, -0.0, f64::NAN, f64::NEG_INFINITY, f64::MAX], |bits| bits as f64);
    column!("word", texts, &["", "a\0b", "Zürich 東京 🚕"], |_| "plain");
    column!("raw", bytes, &[&b""[..], b"\0", b"\xff\xfe\0\x01"], |_| b"plain");
    column!("moment", times, &[0, -1, at(0), 253_402_300_799_999_999], |bits| (bits >> 16) as i64);
    column!("day", days, &[0, -1, 19_723, -719_162], |bits| (bits % 20_000) as i32);

    let mut counts = ListBuilder::new(Int64Builder::new());
    let mut weights = ListBuilder::new(Float32Builder::new());
    let mut embedding = FixedSizeListBuilder::new(Float32Builder::new(), 4);
    let mut corners = FixedSizeListBuilder::new(Int32Builder::new(), 3);
    for _ in 0..rows {
        for _ in 0..chance.below(5) {
            counts.values().append_value(chance.bits() as i64);
        }
        counts.append(!chance.one_in(4));
        for _ in 0..chance.below(5) {
            weights.values().append_value(chance.bits() as f32);
        }
        weights.append(!chance.one_in(4));
        (0..4).for_each(|_| embedding.values().append_value(chance.bits() as f32));
        embedding.append(!chance.one_in(4));
        (0..3).for_each(|_| corners.values().append_value(chance.bits() as i32));
        corners.append(!chance.one_in(4));
    }
    columns.push(("counts", Arc::new(counts.finish())));
    columns.push(("weights", Arc::new(weights.finish())));
    columns.push(("embedding", Arc::new(embedding.finish())));
    columns.push(("corners", Arc::new(corners.finish())));
    batch(&columns)
}

#[tokio::test]
async fn every_feature_type_comes_back_as_it_went_in() -> TestResult {
    const ROWS: usize = 400;
    let story = Story::one_node().await?;
    let mut chance = Chance::seeded(2);
    story.apply(ITEMS).await?;
    let stored = items(&mut chance, ROWS);
    story.store("all", stored.clone()).await?;

    // Asked in any order, some twice.
    let asked: Vec<u32> = (0..2 * ROWS).map(|_| chance.below(ROWS) as u32).collect();
    let expected =
        only(&take_record_batch(&stored, &UInt32Array::from(asked))?, &[&["item_id"], &FEATURES[..]].concat());
    let keys = only(&expected, &["item_id"]);
    let answer = story.online(features(&["all"]), &keys).await?;
    for (field, column) in answer.schema_ref().fields().iter().zip(answer.columns()) {
        assert_eq!(Some(column), expected.column_by_name(field.name()), "feature `{}`", field.name());
    }
    assert_eq!(answer.num_columns(), expected.num_columns());

    // The one-shot read by keys in JSON is the same read.
    let ids: Vec<i64> = keys.column(0).as_primitive::<Int64Type>().values().to_vec();
    let mut ask = features(&["all"]);
    ask.entities = json!({ "item_id": ids }).as_object().cloned();
    assert_eq!(story.client.get_online_features(ask).await?.0, answer);
    story.end().await
}

#[tokio::test]
async fn a_key_of_many_parts_finds_its_own_row_and_no_other() -> TestResult {
    let story = Story::one_node().await?;
    story
        .apply(
            r#"
kind: Entity
name: place
spec: {join_keys: [{name: open, type: bool}, {name: floor, type: int32}, {name: code, type: string}]}
---
kind: Entity
name: visit
spec: {join_keys: [{name: badge, type: bytes}, {name: day, type: date}, {name: entered, type: timestamp}]}
---
kind: FeatureView
name: visits
spec: {entities: [place, visit], features: [{name: number, type: int64}]}
"#,
        )
        .await?;
    // Every combination of parts that are easily taken for each other.
    let mut rows: Vec<(bool, i32, &str, &[u8], i32, i64)> = Vec::new();
    for open in [false, true] {
        for floor in [-1, 0, 1] {
            for code in ["", "a", "a\0", "\0a", "aa"] {
                for badge in [&b""[..], b"\0", b"\0\0", b"\xff"] {
                    for day in [-1, 1] {
                        rows.extend([-1, 1].map(|entered| (open, floor, code, badge, day, entered)));
                    }
                }
            }
        }
    }
    let mut open = BooleanBuilder::new();
    let mut badge = BinaryBuilder::new();
    for row in &rows {
        open.append_value(row.0);
        badge.append_value(row.3);
    }
    let keys: [(&str, ArrayRef); 6] = [
        ("open", Arc::new(open.finish())),
        ("floor", ints32(rows.iter().map(|row| row.1))),
        ("code", texts(rows.iter().map(|row| row.2))),
        ("badge", Arc::new(badge.finish())),
        ("day", Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| row.4)))),
        ("entered", times(rows.iter().map(|row| row.5))),
    ];
    let values: [(&str, ArrayRef); 2] =
        [("number", ints(0..rows.len() as i64)), ("event_timestamp", times(rows.iter().map(|_| at(0))))];
    story.store("visits", batch(&[&keys[..], &values[..]].concat())).await?;
    let answer = story.online(features(&["visits:number"]), &batch(&keys)).await?;
    assert_eq!(answer.column_by_name("number"), Some(&values[0].1));
    story.end().await
}

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], features: [{name: rating, type: float64}, {name: trips, type: int64}]}
---
kind: FeatureView
name: position
spec: {entities: [driver], ttl: 1d, features: [{name: zone, type: string}]}
---
kind: FeatureView
name: notes
spec: {entities: [driver], features: [{name: note, type: string}]}
---
kind: Entity
name: plate
spec: {join_keys: [{name: plate, type: string}]}
---
kind: FeatureView
name: cars
spec: {entities: [plate], features: [{name: note, type: string}]}
"#;

#[tokio::test]
async fn each_value_says_why_it_is_there_or_not() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let now = now_us();
    let stats = batch(&[
        ("driver_id", ints([1, 2])),
        ("event_timestamp", times([at(0), at(0)])),
        ("rating", floats([Some(4.5), None])),
        ("trips", ints([3, 4])),
    ]);
    story.store("stats", stats).await?;
    let zones = batch(&[
        ("driver_id", ints([1, 2, 3])),
        // Within the day, past it, and in the future.
        ("event_timestamp", times([now - DAY / 2, now - DAY - SECOND, now + DAY])),
        ("zone", texts(["near", "far", "soon"])),
    ]);
    story.store("position", zones).await?;
    let mut ask = features(&["position:zone", "stats:rating", "stats:trips"]);
    ask.statuses = true;
    ask.full_feature_names = true;
    let keys = batch(&[("driver_id", ints([Some(1), Some(2), Some(3), None]))]);
    expect![[r#"
        driver_id | position__zone | position__zone__status | stats__rating | stats__rating__status | stats__trips | stats__trips__status
        1 | near | PRESENT | 4.5 | PRESENT | 3 | PRESENT
        2 |  | OUTSIDE_MAX_AGE |  | NULL_VALUE | 4 | PRESENT
        3 |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
         |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
    "#]]
    .assert_eq(&show(&story.online(ask, &keys).await?));
    story.end().await
}

/// One row of `stats`: what counts for it is event time, then created time.
fn rating(event: i64, created: Option<i64>, rating: f64) -> RecordBatch {
    batch(&[
        ("driver_id", ints([7])),
        ("event_timestamp", times([at(event)])),
        ("created_timestamp", times([created.map(at)])),
        ("rating", floats([rating])),
        ("trips", ints([0])),
    ])
}

#[tokio::test]
async fn the_newest_event_wins_then_the_newest_correction_then_the_last_written() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let keys = batch(&[("driver_id", ints([7]))]);
    let steps = [
        ("the first", rating(100, None, 1.0)),
        ("late: an older event", rating(50, None, 2.0)),
        ("late, though its source made it last", rating(50, Some(500), 3.0)),
        ("a correction of the newest", rating(100, Some(300), 4.0)),
        ("an older correction of it", rating(100, Some(200), 5.0)),
        ("the same again, written last", rating(100, Some(300), 6.0)),
        ("a newer event", rating(101, None, 7.0)),
    ];
    let mut said = String::new();
    for (what, row) in steps {
        let stored = story.ingest("stats", row).await?;
        let answer = story.online(features(&["stats:rating"]), &keys).await?;
        let line = show(&answer).lines().nth(1).unwrap_or_default().to_owned();
        said += &format!("{what}: accepted {}, newest {} → {line}\n", stored.rows_accepted, stored.rows_updated);
    }
    expect![[r#"
        the first: accepted 1, newest 1 → 7 | 1.0
        late: an older event: accepted 1, newest 0 → 7 | 1.0
        late, though its source made it last: accepted 1, newest 0 → 7 | 1.0
        a correction of the newest: accepted 1, newest 1 → 7 | 4.0
        an older correction of it: accepted 1, newest 0 → 7 | 4.0
        the same again, written last: accepted 1, newest 1 → 7 | 6.0
        a newer event: accepted 1, newest 1 → 7 | 7.0
    "#]]
    .assert_eq(&said);
    story.end().await
}

#[tokio::test]
async fn rows_in_any_order_leave_the_same_newest_row() -> TestResult {
    const DRIVERS_COUNT: usize = 25;
    let story = Story::one_node().await?;
    let mut chance = Chance::seeded(22);
    story.apply(DRIVERS).await?;
    let mut newest: BTreeMap<usize, ((i64, i64), i64)> = BTreeMap::new();
    let mut number = 0;
    for _ in 0..40 {
        let count = 1 + chance.below(30);
        let rows: Vec<(usize, i64, Option<i64>, i64)> = (0..count)
            .map(|_| {
                number += 1;
                let event = chance.below(6) as i64;
                let created = event + chance.below(6) as i64;
                (chance.below(DRIVERS_COUNT), event, chance.maybe(3, created), number)
            })
            .collect();
        for (driver, event, created, number) in &rows {
            let moment = (*event, created.unwrap_or(*event));
            // Later rows and later batches win ties.
            let held = newest.entry(*driver).or_insert((moment, *number));
            if moment >= held.0 {
                *held = (moment, *number);
            }
        }
        let rows = batch(&[
            ("driver_id", ints(rows.iter().map(|row| row.0 as i64))),
            ("event_timestamp", times(rows.iter().map(|row| at(row.1)))),
            ("created_timestamp", times(rows.iter().map(|row| row.2.map(at)))),
            ("rating", floats(rows.iter().map(|_| None::<f64>))),
            ("trips", ints(rows.iter().map(|row| row.3))),
        ]);
        story.store("stats", rows).await?;
        let keys = batch(&[("driver_id", ints(0..DRIVERS_COUNT as i64))]);
        let answer = story.online(features(&["stats:trips"]), &keys).await?;
        let expected = ints((0..DRIVERS_COUNT).map(|driver| newest.get(&driver).map(|held| held.1)));
        assert_eq!(answer.column_by_name("trips"), Some(&expected));
    }
    story.end().await
}

fn trips(rows: &[(i64, i64)]) -> RecordBatch {
    batch(&[
        ("driver_id", ints(rows.iter().map(|row| row.0))),
        ("event_timestamp", times(rows.iter().map(|_| at(0)))),
        ("rating", floats(rows.iter().map(|_| 0.5))),
        ("trips", ints(rows.iter().map(|row| row.1))),
    ])
}

fn counted(reply: &Ingested) -> (u64, u64, u64) {
    (reply.rows_accepted, reply.rows_duplicate, reply.rows_rejected)
}

#[tokio::test]
async fn the_same_sequence_of_a_producer_counts_once() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let ids: Vec<i64> = (0..20).collect();
    let keys = batch(&[("driver_id", ints(ids.iter().copied()))]);
    let rows = |trips_each: i64| trips(&ids.iter().map(|id| (*id, trips_each)).collect::<Vec<_>>());
    let read = async || story.online(features(&["stats:trips"]), &keys).await;

    let first = story.client.ingest_batch(once("stats", "etl", 10), rows(1)).await?;
    assert_eq!(counted(&first), (20, 0, 0));
    let before = read().await?;
    // Sent again after a lost answer, or by mistake with other rows in it: nothing changes, and the answer says so.
    for again in [rows(1), rows(2)] {
        let reply = story.client.ingest_batch(once("stats", "etl", 10), again).await?;
        assert_eq!(counted(&reply), (0, 20, 0));
        assert_eq!(reply.token, first.token, "the token of the write that did it");
        assert_eq!(read().await?, before);
    }
    // An earlier sequence that never came, another producer, and no producer at all do count.
    assert_eq!(counted(&story.client.ingest_batch(once("stats", "etl", 7), rows(3)).await?), (20, 0, 0));
    assert_eq!(counted(&story.client.ingest_batch(once("stats", "other", 10), rows(4)).await?), (20, 0, 0));
    assert_eq!(counted(&story.ingest("stats", rows(5)).await?), (20, 0, 0));

    // The batches of one stream count up from its sequence.
    let stream = futures::stream::iter([rows(6), rows(7), rows(8)].map(Ok));
    let mut answers = story.client.ingest(once("stats", "etl", 9), stream);
    let mut said = Vec::new();
    while let Some(reply) = answers.next().await? {
        said.push(counted(&reply));
    }
    assert_eq!(said, [(20, 0, 0), (0, 20, 0), (20, 0, 0)], "9 and 11 are new, 10 was there");

    // Far below the newest, nobody can tell any more whether a sequence was applied: that is refused, not guessed.
    story.client.ingest_batch(once("stats", "etl", 10_000), rows(9)).await?;
    let before = read().await?;
    let error = story.client.ingest_batch(once("stats", "etl", 8), rows(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("sequence 8 of producer `etl` is below the window"), "{error}");
    assert_eq!(read().await?, before);
    story.end().await
}

#[tokio::test]
async fn rows_that_cannot_be_stored_are_listed_and_the_others_are_stored() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let (long, large) = ("k".repeat(2_000), "v".repeat(2 << 20));
    let rows = batch(&[
        ("plate", texts([Some("A"), None, Some("B"), Some(&long), Some("C"), Some("D")])),
        ("event_timestamp", times([Some(at(0)), Some(at(0)), None, Some(at(0)), Some(at(0)), Some(at(0))])),
        ("note", texts([Some("good"), Some("x"), Some("x"), Some("x"), Some(large.as_str()), None])),
    ]);
    let reply = story.ingest("cars", rows).await?;
    assert_eq!(counted(&reply), (2, 0, 4));
    let reasons: String =
        reply.rejections.iter().map(|rejected| format!("{}: {}\n", rejected.row, rejected.reason)).collect();
    expect![[r#"
        1: join key `plate` is null
        2: `event_timestamp` is null
        3: the entity key is 2002 bytes, over the limit of 1024
        4: row 4 is 2097162 bytes packed, over the limit of 1048576
    "#]]
    .assert_eq(&reasons);
    let keys = batch(&[("plate", texts(["A", "B", "C", "D"]))]);
    let mut ask = features(&["cars:note"]);
    ask.statuses = true;
    expect![[r#"
        plate | note | note__status
        A | good | PRESENT
        B |  | NOT_FOUND
        C |  | NOT_FOUND
        D |  | NULL_VALUE
    "#]]
    .assert_eq(&show(&story.online(ask, &keys).await?));

    // All are counted, the first hundred are spelled out.
    let nobody = batch(&[
        ("plate", texts((0..150).map(|_| None))),
        ("event_timestamp", times((0..150).map(|_| at(0)))),
        ("note", texts((0..150).map(|_| "x"))),
    ]);
    let reply = story.ingest("cars", nobody).await?;
    assert_eq!((counted(&reply), reply.rejections.len()), ((0, 0, 150), 100));
    story.end().await
}

#[tokio::test]
async fn a_batch_of_the_wrong_shape_is_refused_whole_and_by_name() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let time = || ("event_timestamp", times([at(0)]));
    let (id, value) = (|| ("driver_id", ints([7])), || ("note", texts(["x"])));
    let check = async |view: &str, columns: &[(&str, ArrayRef)], kind: ErrorKind, expected: Expect| {
        let error = story.ingest(view, batch(columns)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        expected.assert_eq(&error.to_string());
    };
    let invalid = ErrorKind::InvalidArgument;
    check(
        "note",
        &[id(), time(), value()],
        ErrorKind::NotFound,
        expect!["feature view `note` not found in project `default`; did you mean `notes`?"],
    )
    .await;
    check("notes", &[("driver", ints([7])), time(), value()], invalid, expect!["column `driver` is no join key, time or feature of feature view `notes`; leave it out, or apply a definition that has it (known: driver_id, event_timestamp, note, created_timestamp)"]).await;
    check("notes", &[time(), value()], invalid, expect!["the batch has no column `driver_id` (a join key of feature view `notes`); it needs driver_id, event_timestamp, note"]).await;
    check("notes", &[id(), value()], invalid, expect!["the batch has no column `event_timestamp` (the event time of feature view `notes`); it needs driver_id, event_timestamp, note"]).await;
    check("notes", &[id(), time()], invalid, expect!["the batch has no column `note` (a feature of feature view `notes`); it needs driver_id, event_timestamp, note"]).await;
    check(
        "notes",
        &[id(), time(), ("note", floats([0.5]))],
        invalid,
        expect!["column `note` is Float64, which does not fit its declared type string"],
    )
    .await;
    check(
        "notes",
        &[("driver_id", texts(["x"])), time(), value()],
        invalid,
        expect!["column `driver_id` is Utf8, which does not fit its declared type int64"],
    )
    .await;
    check(
        "notes",
        &[id(), ("event_timestamp", ints([0])), value()],
        invalid,
        expect!["column `event_timestamp` is Int64; it must be an Arrow timestamp (any unit; without zone = UTC)"],
    )
    .await;
    check("notes", &[id(), time(), value(), ("extra", ints([1]))], invalid, expect!["column `extra` is no join key, time or feature of feature view `notes`; leave it out, or apply a definition that has it (known: driver_id, event_timestamp, note, created_timestamp)"]).await;
    let rows = 65_537;
    let large = [
        ("driver_id", ints((0..rows).map(|_| 7))),
        ("event_timestamp", times((0..rows).map(|_| at(0)))),
        ("note", texts((0..rows).map(|_| "x"))),
    ];
    check(
        "notes",
        &large,
        ErrorKind::TooLarge,
        expect!["a batch of 65537 rows is over the limit of 65536; send smaller batches"],
    )
    .await;

    let mut ask = features(&["notes:note"]);
    ask.statuses = true;
    expect![[r#"
        driver_id | note | note__status
        7 |  | NOT_FOUND
    "#]]
    .assert_eq(&show(&story.online(ask, &batch(&[id()])).await?));
    story.end().await
}

#[tokio::test]
async fn pipelined_questions_are_answered_in_order_each_with_its_id() -> TestResult {
    let story = Story::one_node().await?;
    let mut chance = Chance::seeded(23);
    story.apply(DRIVERS).await?;
    story.store("stats", trips(&(0..500).map(|id| (id, id * 10)).collect::<Vec<_>>())).await?;
    let mut reader = story.client.online_features(features(&["stats:trips"]));
    for _ in 0..3 {
        let mut sent = Vec::new();
        for _ in 0..cairn_client::flight::IN_FLIGHT_MAX {
            let count = chance.below(200);
            let ids: Vec<i64> = (0..count).map(|_| chance.below(600) as i64).collect();
            sent.push((reader.send(&batch(&[("driver_id", ints(ids.iter().copied()))])).await?, ids));
        }
        for (id, ids) in sent {
            let reply = reader.recv().await?.ok_or("an answer for each question")?;
            assert_eq!((reply.id, reply.read.id), (id, Some(id.to_string())));
            assert_eq!(reply.rows.column(0), &ints(ids.iter().copied()));
            assert_eq!(reply.rows.column(1), &ints(ids.iter().map(|id| (*id < 500).then_some(id * 10))));
        }
        assert!(reader.recv().await?.is_none());
    }
    drop(reader);
    story.end().await
}

#[tokio::test]
async fn keys_in_json_take_their_declared_types() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("stats", trips(&[(7, 70), (8, 80)])).await?;
    let mut ask = features(&["stats:trips"]);
    ask.entities = json!({"driver_id": ["8", 7, null, 9]}).as_object().cloned();
    let (rows, read) = story.client.get_online_features(ask.clone()).await?;
    expect![[r#"
        driver_id | trips
        8 | 80
        7 | 70
         |
        9 |
    "#]]
    .assert_eq(&show(&rows));
    assert!(!read.token.is_empty() && read.shards.len() == 2, "{read:?}");

    let mut check = async |entities: serde_json::Value, expected: Expect| {
        ask.entities = entities.as_object().cloned();
        let error = story.client.get_online_features(ask.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        expected.assert_eq(&error.to_string());
    };
    check(json!({"driver_id": ["x"]}), expect![[r#"`entities`.`driver_id`, row 0: "x" is not int64"#]]).await;
    check(json!({"driver_id": [1.5]}), expect!["`entities`.`driver_id`, row 0: 1.5 is not int64"]).await;
    check(json!({"driver": [1]}), expect!["`entities` has no `driver_id` (it has: driver)"]).await;
    check(json!({"driver_id": 1}), expect!["`entities`.`driver_id` must be a list of values, one for each row"]).await;
    check(serde_json::Value::Null, expect![[r#"`entities` is missing; send {"driver_id": [...]}"#]]).await;
    story.end().await
}

/// A sensor that sends a batch a minute must know that each is stored without hanging up.
#[tokio::test]
async fn a_batch_is_answered_and_readable_while_its_stream_is_open() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let keys = batch(&[("driver_id", ints([7]))]);
    let (mut batches, source) = futures::channel::mpsc::channel(1);
    let mut answers = story.client.ingest(into("stats"), source);
    for count in 1..=3 {
        batches.send(Ok(trips(&[(7, count)]))).await?;
        let reply = answers.next().await?.ok_or("an answer")?;
        assert_eq!(counted(&reply), (1, 0, 0));
        let answer = story.online(features(&["stats:trips"]), &keys).await?;
        assert_eq!(answer.column(1), &ints([count]));
    }
    drop(batches);
    assert!(answers.next().await?.is_none());
    story.end().await
}

/// Rows that went on into the version before would be missing for all who read the new one.
#[tokio::test]
async fn an_open_stream_ends_when_its_view_changes() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let (mut batches, source) = futures::channel::mpsc::channel(1);
    let mut answers = story.client.ingest(into("stats"), source);
    batches.send(Ok(trips(&[(7, 1)]))).await?;
    answers.next().await?.ok_or("an answer")?;
    // Another ttl keeps the rows, and the stream.
    story.apply(&DRIVERS.replace("name: stats\nspec: {", "name: stats\nspec: {ttl: 52000w, ")).await?;
    batches.send(Ok(trips(&[(7, 2)]))).await?;
    answers.next().await?.ok_or("an answer")?;
    story.apply(&DRIVERS.replace("{name: trips, type: int64}", "{name: trips, type: int32}")).await?;
    batches.send(Ok(trips(&[(7, 3)]))).await?;
    let error = answers.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    expect!["feature view `stats` changed its columns while this stream was open; open a new one"]
        .assert_eq(&error.to_string());
    story.end().await
}

#[tokio::test]
async fn half_a_producer_and_unknown_names_are_refused() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let rows = trips(&[(7, 1)]);
    let mut ask = once("stats", "etl", 1);
    ask.sequence = None;
    let error = story.client.ingest_batch(ask, rows.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "`producer` needs a `sequence`: together they make ingest exactly-once");
    let mut ask = into("stats");
    ask.project = "defautl".into();
    let error = story.client.ingest_batch(ask, rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("`defautl`") && error.to_string().contains(DEFAULT_PROJECT), "{error}");
    let keys = batch(&[("driver_id", ints([7]))]);
    let check = async |ask, expected: Expect| {
        let error = story.online(ask, &keys).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        expected.assert_eq(&error.to_string());
    };
    check(
        features(&["stat:trips"]),
        expect!["feature view `stat` not found in project `default`; did you mean `stats`?"],
    )
    .await;
    check(
        features(&["stats:trip"]),
        expect!["feature `trip` not found in feature view `stats@1`; did you mean `trips`?"],
    )
    .await;
    check(
        features(&["stats@2:trips"]),
        expect!["feature view `stats@2` not found in project `default`; its newest version is 1"],
    )
    .await;
    check(
        crate::support::service("eta"),
        expect!["feature service `eta` not found in project `default`; apply its definition first (`cairn apply`)"],
    )
    .await;
    story.end().await
}
