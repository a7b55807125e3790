//! Story 3: somebody asks what a feature was at a moment: as the data has it, and as Cairn knew it. Serving and
//! training give the same answer.

use crate::support::chance::Chance;
use crate::support::rows::{SECOND, at, batch, floats, ints, now_us, only, show, times};
use crate::support::{Story, TestResult, features, service, training};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use cairn_client::{ErrorKind, Timestamp};
use expect_test::expect;
use std::collections::BTreeSet;
use std::sync::Arc;

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: trips
spec: {entities: [driver], features: [{name: trips, type: int64}]}
---
kind: FeatureView
name: zones
spec: {entities: [driver], ttl: 60s, features: [{name: zone, type: int64}]}
---
kind: OnDemandFeatureView
name: pay
spec:
  sources: [trips, zones]
  request_data: [{name: fare, type: float64}]
  features:
    - {name: earned, type: float64, sql: "trips * fare"}
    - {name: place, type: int64, sql: "coalesce(zone, -1) * 1000 + trips % 1000"}
---
kind: FeatureService
name: ride
spec: {features: [trips, zones, pay]}
"#;

const FEATURES: [&str; 4] = ["trips", "zone", "earned", "place"];

fn trips(event: i64, created: Option<i64>, trips: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints([7])),
        ("event_timestamp", times([at(event)])),
        ("created_timestamp", times([created.map(at)])),
        ("trips", ints([trips])),
    ])
}

#[tokio::test]
async fn a_correction_counts_from_the_moment_its_source_made_it() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("trips", trips(0, None, 1)).await?;
    story.store("trips", trips(0, Some(3600), 2)).await?;
    story.store("trips", trips(7200, None, 3)).await?;
    let mut said = String::new();
    for seconds in [-1, 0, 3599, 3600, 7199, 7200] {
        let mut ask = features(&["trips:trips"]);
        ask.as_of = Some(Timestamp(at(seconds)));
        ask.statuses = true;
        let answer = story.online(ask, &batch(&[("driver_id", ints([7]))])).await?;
        said += &format!("{seconds:>4}: {}\n", show(&answer).lines().nth(1).unwrap_or_default());
    }
    expect![[r#"
          -1: 7 |  | NOT_FOUND
           0: 7 | 1 | PRESENT
        3599: 7 | 1 | PRESENT
        3600: 7 | 2 | PRESENT
        7199: 7 | 2 | PRESENT
        7200: 7 | 3 | PRESENT
    "#]]
    .assert_eq(&said);
    story.end().await
}

#[tokio::test]
async fn what_was_known_at_a_moment_stays_known_after_it_was_corrected() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let keys = batch(&[("driver_id", ints([7]))]);
    let mut moments = vec![("before all", now_us())];
    // The last one is a late row about an older event; the one before replaces the very same event.
    let rows = [("first", trips(50, None, 1)), ("again", trips(50, None, 2)), ("late", trips(20, None, 3))];
    for (what, row) in rows {
        story.store("trips", row).await?;
        moments.push((what, now_us()));
    }
    let mut said = String::new();
    for (what, known) in moments {
        for event in [30, 60] {
            let mut ask = features(&["trips:trips"]);
            ask.as_of = Some(Timestamp(at(event)));
            ask.known_as_of = Some(Timestamp(known));
            let answer = story.online(ask, &keys).await?;
            said += &format!("{what}, at {event}: {}\n", show(&answer).lines().nth(1).unwrap_or_default());
        }
    }
    expect![[r#"
        before all, at 30: 7 |
        before all, at 60: 7 |
        first, at 30: 7 |
        first, at 60: 7 | 1
        again, at 30: 7 |
        again, at 60: 7 | 2
        late, at 30: 7 | 3
        late, at 60: 7 | 2
    "#]]
    .assert_eq(&said);
    story.end().await
}

/// A stored row, and in which batch it came.
struct Fact {
    driver: i64,
    event: i64,
    created: Option<i64>,
    value: i64,
    commit: usize,
}

/// What the rules say: of all rows known by then, with event and created time not after `time`, the greatest (event,
/// created, commit), the later of a batch before the earlier; nothing when that is older than `ttl`.
fn by_the_rules(facts: &[Fact], driver: Option<i64>, time: Option<i64>, known: usize, ttl: Option<i64>) -> Option<i64> {
    let (driver, time) = (driver?, time?);
    let candidates = facts.iter().filter(|fact| {
        fact.driver == driver && fact.event <= time && fact.created.unwrap_or(fact.event) <= time && fact.commit < known
    });
    // `max_by_key` keeps the last of equals.
    let winner = candidates.max_by_key(|fact| (fact.event, fact.created.unwrap_or(fact.event), fact.commit))?;
    ttl.is_none_or(|ttl| time - winner.event <= ttl).then_some(winner.value)
}

fn assert_same(what: &str, left: &RecordBatch, right: &RecordBatch) {
    for name in FEATURES {
        let (left, right) = (left.column_by_name(name), right.column_by_name(name));
        assert!(left.is_some() && left == right, "{what}: feature `{name}`\n{left:?}\n{right:?}");
    }
}

/// Rule 18: an online read about a moment is the point-in-time join at that moment; both are what the rules say.
#[tokio::test]
async fn serving_and_training_agree_about_every_moment() -> TestResult {
    const BATCHES: usize = 24;
    let story = Story::one_node().await?;
    let mut chance = Chance::seeded(3);
    story.apply(DRIVERS).await?;
    let mut facts: [Vec<Fact>; 2] = [Vec::new(), Vec::new()];
    let mut half = (0, 0);
    for commit in 0..BATCHES {
        if commit == BATCHES / 2 {
            half = (commit, now_us());
        }
        let view = chance.below(2);
        let before = facts[view].len();
        for _ in 0..chance.below(60) {
            let event = chance.below(200) as i64;
            let created = event + chance.below(80) as i64;
            let (driver, value) = (chance.below(8) as i64, chance.below(100_000) as i64);
            facts[view].push(Fact { driver, event, created: chance.maybe(2, created), value, commit });
        }
        let new = &facts[view][before..];
        let (name, feature) = [("trips", "trips"), ("zones", "zone")][view];
        let rows = batch(&[
            ("driver_id", ints(new.iter().map(|fact| fact.driver))),
            ("event_timestamp", times(new.iter().map(|fact| at(fact.event)))),
            ("created_timestamp", times(new.iter().map(|fact| fact.created.map(at)))),
            (feature, ints(new.iter().map(|fact| fact.value))),
        ]);
        story.store(name, rows).await?;
    }

    let spine_rows = 500;
    let asked: Vec<(Option<i64>, Option<i64>)> = (0..spine_rows)
        .map(|_| {
            let (driver, time) = (chance.below(10) as i64, chance.below(320) as i64 - 20);
            (chance.maybe(20, driver), chance.maybe(20, time))
        })
        .collect();
    let fares: ArrayRef = floats((0..spine_rows).map(|row| row as f64 / 8.0));
    let spine = batch(&[
        ("driver_id", ints(asked.iter().map(|ask| ask.0))),
        ("fare", fares),
        ("event_timestamp", times(asked.iter().map(|ask| ask.1.map(at)))),
    ]);
    for (known, known_us) in [(BATCHES, None), (half.0, Some(Timestamp(half.1)))] {
        let mut join = training(&[]);
        join.features = None;
        join.feature_service = Some("ride".into());
        join.known_as_of = known_us;
        let (set, _) = story.historical(&join, std::slice::from_ref(&spine)).await?;
        let by_rules = |view: usize, ttl| -> ArrayRef {
            ints(asked.iter().map(|ask| by_the_rules(&facts[view], ask.0, ask.1, known, ttl)))
        };
        assert_eq!(set.column_by_name("trips"), Some(&by_rules(0, None)));
        assert_eq!(set.column_by_name("zone"), Some(&by_rules(1, Some(60))));

        // One online read, each row about its own moment.
        let mut ask = service("ride");
        ask.known_as_of = known_us;
        assert_same("row by row", &story.online(ask.clone(), &spine).await?, &set);

        // Online reads about one moment each.
        let moments: BTreeSet<i64> = asked.iter().filter_map(|ask| ask.1).collect();
        let column = spine.column(2).as_primitive::<TimestampMicrosecondType>();
        for moment in moments.into_iter().step_by(9) {
            let mine: Vec<u32> = (0..spine_rows as u32)
                .filter(|row| column.is_valid(*row as usize) && column.value(*row as usize) == at(moment))
                .collect();
            let mine = arrow_array::UInt32Array::from(mine);
            let keys = arrow_select::take::take_record_batch(&only(&spine, &["driver_id", "fare"]), &mine)?;
            let expected = arrow_select::take::take_record_batch(&set, &mine)?;
            let mut ask = ask.clone();
            ask.as_of = Some(Timestamp(at(moment)));
            assert_same(&format!("at {moment}"), &story.online(ask, &keys).await?, &expected);
        }
    }

    // And about now: rows of the past decide, those with a ttl are too old.
    let keys = batch(&[("driver_id", ints(0..8)), ("fare", floats((0..8).map(f64::from)))]);
    let moment: ArrayRef = times((0..8).map(|_| now_us()));
    let spine = batch(&[
        ("driver_id", Arc::clone(keys.column(0))),
        ("fare", Arc::clone(keys.column(1))),
        ("event_timestamp", moment),
    ]);
    let mut join = training(&[]);
    join.features = None;
    join.feature_service = Some("ride".into());
    let (set, _) = story.historical(&join, &[spine]).await?;
    let now = story.online(service("ride"), &keys).await?;
    assert_same("now", &now, &set);
    assert!(now.column_by_name("trips").is_some_and(|trips| trips.as_primitive::<Int64Type>().null_count() < 8));
    story.end().await
}

#[tokio::test]
async fn what_is_computed_while_reading_is_the_same_for_serving_and_training() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("trips", trips(0, None, 12)).await?;
    let zone = batch(&[("driver_id", ints([7])), ("event_timestamp", times([at(0)])), ("zone", ints([5]))]);
    story.store("zones", zone).await?;
    let spine = batch(&[
        ("driver_id", ints([7, 7, 7, 8])),
        ("fare", floats([Some(2.5), None, Some(0.25), Some(1.0)])),
        ("event_timestamp", times([at(30), at(30), at(90), at(30)])),
    ]);
    let mut join = training(&[]);
    join.features = None;
    join.feature_service = Some("ride".into());
    let (set, _) = story.historical(&join, std::slice::from_ref(&spine)).await?;
    expect![[r#"
        driver_id | fare | event_timestamp | trips | zone | earned | place
        7 | 2.5 | 2024-01-01T00:00:30Z | 12 | 5 | 30.0 | 5012
        7 |  | 2024-01-01T00:00:30Z | 12 | 5 |  | 5012
        7 | 0.25 | 2024-01-01T00:01:30Z | 12 |  | 3.0 | -988
        8 | 1.0 | 2024-01-01T00:00:30Z |  |  |  |
    "#]]
    .assert_eq(&show(&set));
    assert_same("online", &story.online(service("ride"), &spine).await?, &set);

    // Request data is asked for by name, and its type is checked.
    let error = story.online(service("ride"), &only(&spine, &["driver_id"])).await.unwrap_err();
    expect!["column `fare` float64 is missing, request data of on-demand feature view `pay`; needed are `driver_id` int64, `fare` float64, found `driver_id`"].assert_eq(&error.to_string());
    let error = story.historical(&join, &[only(&spine, &["driver_id", "event_timestamp"])]).await.unwrap_err();
    expect!["column `fare` float64 is missing, request data of on-demand feature view `pay`; needed are `driver_id` int64, `fare` float64, found `driver_id`, `event_timestamp`"].assert_eq(&error.to_string());
    let words = batch(&[("driver_id", ints([7])), ("fare", crate::support::rows::texts(["much"]))]);
    let error = story.online(service("ride"), &words).await.unwrap_err();
    expect!["column `fare` is Utf8, which does not fit its declared type float64"].assert_eq(&error.to_string());
    story.end().await
}

#[tokio::test]
async fn two_times_for_one_row_are_refused() -> TestResult {
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    let mut ask = features(&["trips:trips"]);
    ask.as_of = Some(Timestamp(at(0)));
    let rows = batch(&[("driver_id", ints([7])), ("event_timestamp", times([at(0) + SECOND]))]);
    let error = story.online(ask, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.to_string(), "the rows bring their own `event_timestamp`; leave `as_of` out");
    story.end().await
}
