//! Story 4: a data scientist builds training sets over the wire and never sees the future.

use crate::support::chance::Chance;
use crate::support::rows::{at, batch, floats, ints, now_us, show, texts, times};
use crate::support::{Story, TestResult, training};
use arrow_array::types::TimestampNanosecondType;
use arrow_array::{ArrayRef, PrimitiveArray, RecordBatch, TimestampMicrosecondArray};
use cairn_client::Timestamp;
use cairn_client::command::GetHistoricalFeatures;
use expect_test::{Expect, expect};
use std::sync::Arc;

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
name: zones
spec: {entities: [driver], ttl: 60s, features: [{name: zone, type: string}]}
"#;

fn stats(rows: &[(i64, i64, Option<i64>, Option<f64>, i64)]) -> RecordBatch {
    batch(&[
        ("driver_id", ints(rows.iter().map(|row| row.0))),
        ("event_timestamp", times(rows.iter().map(|row| at(row.1)))),
        ("created_timestamp", times(rows.iter().map(|row| row.2.map(at)))),
        ("rating", floats(rows.iter().map(|row| row.3))),
        ("trips", ints(rows.iter().map(|row| row.4))),
    ])
}

async fn drivers() -> TestResult<Story> {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let rows = [(1, 0, None, Some(4.0), 1), (1, 100, None, None, 2), (2, 50, None, Some(5.0), 3)];
    story.store("stats", stats(&rows)).await?;
    let zones = batch(&[
        ("driver_id", ints([1, 2])),
        ("event_timestamp", times([at(0), at(40)])),
        ("zone", texts(["near", "far"])),
    ]);
    story.store("zones", zones).await?;
    Ok(story)
}

#[tokio::test]
async fn a_training_set_is_its_spine_with_the_features_of_each_moment_beside_it() -> TestResult {
    let story = drivers().await?;
    // Out of order, with a row twice, an unknown driver, nulls, and a label that is nobody's business.
    let first = batch(&[
        ("label", texts(["late", "in time", "late", "in time"])),
        ("driver_id", ints([2, 1, 1, 9])),
        ("event_timestamp", times([at(50), at(99), at(100), at(500)])),
    ]);
    let second = batch(&[
        ("label", texts([Some("late"), None, Some("x"), Some("x"), Some("past")])),
        ("driver_id", ints([Some(1), Some(1), None, Some(2), Some(2)])),
        ("event_timestamp", times([Some(at(99)), Some(at(-1)), Some(at(99)), None, Some(at(100))])),
    ]);
    let mut ask = training(&["zones:zone", "stats:rating", "stats:trips"]);
    ask.statuses = true;
    let (set, read) = story.historical(&ask, &[first, second]).await?;
    expect![[r#"
        label | driver_id | event_timestamp | zone | zone__status | rating | rating__status | trips | trips__status
        late | 2 | 2024-01-01T00:00:50Z | far | PRESENT | 5.0 | PRESENT | 3 | PRESENT
        in time | 1 | 2024-01-01T00:01:39Z |  | OUTSIDE_MAX_AGE | 4.0 | PRESENT | 1 | PRESENT
        late | 1 | 2024-01-01T00:01:40Z |  | OUTSIDE_MAX_AGE |  | NULL_VALUE | 2 | PRESENT
        in time | 9 | 2024-01-01T00:08:20Z |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
        late | 1 | 2024-01-01T00:01:39Z |  | OUTSIDE_MAX_AGE | 4.0 | PRESENT | 1 | PRESENT
         | 1 | 2023-12-31T23:59:59Z |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
        x |  | 2024-01-01T00:01:39Z |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
        x | 2 |  |  | NOT_FOUND |  | NOT_FOUND |  | NOT_FOUND
        past | 2 | 2024-01-01T00:01:40Z | far | PRESENT | 5.0 | PRESENT | 3 | PRESENT
    "#]]
    .assert_eq(&show(&set));
    assert!(!read.token.is_empty());
    story.end().await
}

#[tokio::test]
async fn an_empty_spine_gives_an_empty_training_set_with_every_column() -> TestResult {
    let story = drivers().await?;
    let spine = batch(&[("driver_id", ints([0; 0])), ("event_timestamp", times([0; 0]))]);
    let ask = training(&["stats", "zones"]);
    // No row in one batch, and no batch at all.
    let (set, _) = story.historical(&ask, std::slice::from_ref(&spine)).await?;
    assert_eq!(show(&set), "driver_id | event_timestamp | rating | trips | zone\n");
    let mut none = story.client.historical_features(ask, spine.schema(), futures::stream::empty()).await?;
    assert_eq!(none.schema(), set.schema_ref());
    assert!(none.next().await?.is_none());
    story.end().await
}

#[tokio::test]
async fn a_large_spine_comes_back_whole_and_in_order() -> TestResult {
    const DRIVERS_COUNT: usize = 40;
    const STEPS: usize = 100;
    let story = Story::one_node().await?;
    let mut chance = Chance::seeded(4);
    story.apply(DRIVERS).await?;
    // Driver d has d * 1000 + k trips from second 10 k on.
    let rows: Vec<_> = chance
        .shuffled(DRIVERS_COUNT * STEPS)
        .into_iter()
        .map(|at| (at / STEPS, at % STEPS))
        .map(|(driver, step)| (driver as i64, step as i64 * 10, None, None, (driver * 1000 + step) as i64))
        .collect();
    story.store("stats", stats(&rows)).await?;
    let mut expected = Vec::new();
    let mut number = 0;
    let spine: Vec<RecordBatch> = [30_000, 1, 0, 40_000, 10_000]
        .into_iter()
        .map(|count| {
            let asked: Vec<(i64, i64)> =
                (0..count).map(|_| (chance.below(DRIVERS_COUNT) as i64, chance.below(1_200) as i64 - 100)).collect();
            expected
                .extend(asked.iter().map(|(driver, time)| (*time >= 0).then(|| driver * 1000 + (time / 10).min(99))));
            let numbers: Vec<i64> = (number..number + count as i64).collect();
            number += count as i64;
            batch(&[
                ("number", ints(numbers)),
                ("driver_id", ints(asked.iter().map(|ask| ask.0))),
                ("event_timestamp", times(asked.iter().map(|ask| at(ask.1)))),
            ])
        })
        .collect();
    let (set, _) = story.historical(&training(&["stats:trips"]), &spine).await?;
    assert_eq!(set.column(0), &ints(0..number));
    assert_eq!(set.column_by_name("trips"), Some(&ints(expected)));
    story.end().await
}

#[tokio::test]
async fn rows_that_come_later_do_not_change_what_was_known() -> TestResult {
    let story = drivers().await?;
    let spine = batch(&[("driver_id", ints([1, 1, 2])), ("event_timestamp", times([at(60), at(200), at(200)]))]);
    let spine = std::slice::from_ref(&spine);
    let set = async |change: &dyn Fn(&mut GetHistoricalFeatures)| {
        let mut ask = training(&["stats:trips"]);
        change(&mut ask);
        story.historical(&ask, spine).await.map(|(set, _)| set)
    };
    let known = now_us();
    let before = set(&|_| {}).await?;
    expect![[r#"
        driver_id | event_timestamp | trips
        1 | 2024-01-01T00:01:00Z | 1
        1 | 2024-01-01T00:03:20Z | 2
        2 | 2024-01-01T00:03:20Z | 3
    "#]]
    .assert_eq(&show(&before));
    // A late row, and corrections of which the source says that it made them at second 150 and at second 300.
    let rows = [(1, 30, None, None, 10), (1, 100, Some(150), None, 20), (2, 50, Some(300), None, 30)];
    story.store("stats", stats(&rows)).await?;

    assert_eq!(set(&|ask| ask.known_as_of = Some(Timestamp(known))).await?, before);
    expect![[r#"
        driver_id | event_timestamp | trips
        1 | 2024-01-01T00:01:00Z | 10
        1 | 2024-01-01T00:03:20Z | 20
        2 | 2024-01-01T00:03:20Z | 3
    "#]]
    .assert_eq(&show(&set(&|_| {}).await?));
    let trips = |set: RecordBatch| set.column(2).clone();
    assert_eq!(&trips(set(&|ask| ask.ignore_created = true).await?), &ints([10, 20, 30]));
    assert_eq!(&trips(set(&|ask| ask.created_as_of = Some(Timestamp(at(120)))).await?), &ints([10, 2, 3]));
    story.end().await
}

#[tokio::test]
async fn the_time_of_a_spine_may_have_any_name_unit_and_zone() -> TestResult {
    let story = drivers().await?;
    let plain: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![at(60), at(100)]));
    let zoned: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from(vec![at(60), at(100)]).with_timezone("America/New_York"));
    let nanos: ArrayRef =
        Arc::new(PrimitiveArray::<TimestampNanosecondType>::from(vec![at(60) * 1000, at(100) * 1000]));
    for column in [plain, zoned, nanos] {
        let spine = batch(&[("driver_id", ints([1, 1])), ("departed", column.clone())]);
        let mut ask = training(&["stats:trips"]);
        ask.event_timestamp = "departed".into();
        let (set, _) = story.historical(&ask, &[spine]).await?;
        assert_eq!(set.column(1), &column, "the spine's own columns come back untouched");
        assert_eq!(set.column(2), &ints([1, 2]));
    }
    story.end().await
}

#[tokio::test]
async fn a_spine_that_cannot_be_joined_is_refused_by_name() -> TestResult {
    let story = drivers().await?;
    let time = || ("event_timestamp", times([at(0)]));
    let id = || ("driver_id", ints([1]));
    let check = async |references: &[&str], columns: &[(&str, ArrayRef)], expected: Expect| {
        let error = story.historical(&training(references), &[batch(columns)]).await.unwrap_err();
        expected.assert_eq(&format!("{}: {error}", error.kind()));
    };
    check(&["stats:trips"], &[id()], expect!["invalid_argument: the spine has no time column `event_timestamp`; there are driver_id; name its time column with `event_timestamp`"]).await;
    check(&["stats:trips"], &[time()], expect!["invalid_argument: column `driver_id` int64 is missing, a join key of entity `driver`; needed are `driver_id` int64, found `event_timestamp`"]).await;
    check(&["stats:trips"], &[id(), ("event_timestamp", ints([1]))], expect!["invalid_argument: column `event_timestamp` is Int64; times are timestamps (no zone = UTC), dates, or RFC 3339 text"]).await;
    check(
        &["stats:trips"],
        &[("driver_id", texts(["x"])), time()],
        expect!["invalid_argument: column `driver_id` is Utf8, which does not fit its declared type int64"],
    )
    .await;
    check(&["stats:trips"], &[id(), time(), ("trips", ints([1]))], expect!["invalid_argument: feature `stats:trips` would be named `trips`, as a column of the rows sent is; rename that column or ask for full feature names"]).await;
    check(
        &["stats:trips", "stats:trips"],
        &[id(), time()],
        expect!["invalid_argument: feature `stats:trips` is named twice; name it once"],
    )
    .await;
    check(
        &["stats:tripz"],
        &[id(), time()],
        expect!["not_found: feature `tripz` not found in feature view `stats@1`; did you mean `trips`?"],
    )
    .await;
    // The node goes on as if nothing had been asked.
    let (set, _) = story.historical(&training(&["stats:trips"]), &[batch(&[id(), time()])]).await?;
    assert_eq!(set.column(2), &ints([1]));
    story.end().await
}
