use super::oracle::{Answer, Ask, Known, answer};
use super::*;
use crate::online::{OnlineOptions, ReadAt};
use crate::plan::tests::Project;
use crate::testing::{Cell, Fact, Failing, Store, batch, cell, fact, lines};
use arrow_array::cast::AsArray;
use arrow_schema::{DataType, TimeUnit};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::ValueKind;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;

const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

fn project() -> Project {
    use ValueKind::{Int64, String};
    let mut project = Project::default();
    project
        .entity("pair", &[("a", String), ("b", String)])
        .entity("rider", &[("rider", Int64)])
        .view("pairs", &["pair"], 5, &[("x", Int64), ("s", String)])
        .view("riders", &["rider"], 0, &[("y", Int64)])
        .on_demand(
            "made",
            &["pairs:x", "riders:y"],
            &[("factor", Int64)],
            &[("ratio", Int64, "x / y"), ("scaled", Int64, "coalesce(x, -1) * factor")],
        );
    project
}

const ALL: [&str; 4] = ["pairs", "riders", "made:ratio", "made:scaled"];
const SPINE: [(&str, DataType); 6] = [
    ("label", DataType::Int32),
    ("a", DataType::Utf8),
    ("event_timestamp", TIME),
    ("b", DataType::LargeUtf8),
    ("rider", DataType::Int32),
    ("factor", DataType::Int64),
];

/// Spine rows as text: `label a time b rider factor`.
fn spine(rows: &[&str]) -> RecordBatch {
    let rows: Vec<Vec<Cell>> = rows.iter().map(|row| row.split_whitespace().map(cell).collect()).collect();
    batch(&SPINE, &rows)
}

/// A view `v` with key `k` and features `x`, `y`, written and joined on its own.
struct World {
    plan: FeaturePlan,
    store: Store,
}

impl World {
    fn new(ttl_us: i64, commits: &[(i64, &[&str])]) -> Self {
        let mut project = Project::default();
        project.entity("k", &[("k", ValueKind::Int64)]).view(
            "v",
            &["k"],
            ttl_us,
            &[("x", ValueKind::Int64), ("y", ValueKind::String)],
        );
        let mut world = Self { plan: project.plan(&["v"]), store: Store::new() };
        for (committed_us, facts) in commits {
            world.write(*committed_us, facts);
        }
        world
    }

    fn write(&mut self, committed_us: i64, facts: &[&str]) {
        let facts: Vec<Fact> = facts.iter().map(|text| fact(text)).collect();
        self.store.write(&self.plan, 0, committed_us, &facts);
    }

    /// Joins `"k time"` rows; each line comes back as `k time x y status`, the same from both sources.
    fn join(&self, spine: &[&str], options: &HistoricalOptions) -> Vec<String> {
        let rows: Vec<Vec<Cell>> = spine.iter().map(|row| row.split_whitespace().map(cell).collect()).collect();
        let spine = batch(&[("k", DataType::Int64), ("event_timestamp", TIME)], &rows);
        self.join_batch(&spine, options)
    }

    fn join_batch(&self, spine: &RecordBatch, options: &HistoricalOptions) -> Vec<String> {
        let options = HistoricalOptions { statuses: true, ..options.clone() };
        let one = |source| {
            let (_, out) = self.plan.join_historical(std::slice::from_ref(spine), options.clone(), source).unwrap();
            let rows: usize = out.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows, spine.num_rows());
            lines(&out, &["k", "x", "y", "x__status"])
        };
        let [memory, sharded] = self.store.sources().map(one);
        assert_eq!(memory, sharded);
        memory
    }

    fn check(&self, spine: &[&str], expected: &[&str]) {
        assert_eq!(self.join(spine, &HistoricalOptions::default()), expected);
    }
}

#[test]
fn rule_01_cardinality() {
    let world = World::new(0, &[(1, &["1 | 5 | 7 a"])]);
    // Duplicates, nulls, unknown keys and times before the first row: one row each, in order.
    world.check(
        &["1 9", "1 9", "- 9", "1 -", "2 9", "1 1", "1 9", "- -"],
        &[
            "1 7 a PRESENT",
            "1 7 a PRESENT",
            "- - - NOT_FOUND",
            "1 - - NOT_FOUND",
            "2 - - NOT_FOUND",
            "1 - - NOT_FOUND",
            "1 7 a PRESENT",
            "- - - NOT_FOUND",
        ],
    );
}

#[test]
fn rule_01_spine_columns_are_untouched() {
    let project = project();
    let plan = project.plan(&ALL);
    let store = Store::new();
    let spine = spine(&["1 a 5 b 7 2", "2 - - b - -", "1 a 5 b 7 2"]);
    for source in store.sources() {
        let (schema, out) =
            plan.join_historical(std::slice::from_ref(&spine), HistoricalOptions::default(), source).unwrap();
        assert_eq!(out.len(), 1);
        let own: Vec<usize> = (0..SPINE.len()).collect();
        assert_eq!(out[0].project(&own).unwrap(), spine);
        assert_eq!(schema, out[0].schema());
        assert_eq!(schema.field(SPINE.len()).name(), "x");
    }
}

#[test]
fn rule_02_candidates_are_inclusive() {
    let world = World::new(0, &[(1, &["1 | 5 | 7 a", "1 | 6 | 8 b", "2 | 5 | 9 c"])]);
    world.check(&["1 4", "1 5", "1 6"], &["1 - - NOT_FOUND", "1 7 a PRESENT", "1 8 b PRESENT"]);
}

#[test]
fn rule_03_ttl_is_inclusive_and_measured_from_the_row_time() {
    let world = World::new(3, &[(1, &["1 | 5 | 7 a"])]);
    world.check(&["1 8", "1 9"], &["1 7 a PRESENT", "1 - - OUTSIDE_MAX_AGE"]);
    let unlimited = World::new(0, &[(1, &["1 | 5 | 7 a"])]);
    unlimited.check(&["1 9000000000000"], &["1 7 a PRESENT"]);
    // An expired row does not reach back to an older one, nor does an extreme time overflow.
    let extreme = World::new(3, &[(1, &["1 | -9223372036854775808 | 7 a"])]);
    extreme.check(&["1 9223372036854775807"], &["1 - - OUTSIDE_MAX_AGE"]);
}

#[test]
fn rule_04_winner_is_event_then_created_then_commit_then_position() {
    let world = World::new(
        0,
        &[
            (1, &["1 | 5 6 | 1 late_correction", "1 | 5 5 | 2 first", "2 | 5 | 3 one"]),
            (2, &["1 | 4 8 | 4 older_event", "2 | 5 | 5 same_times_later_commit"]),
            (3, &["3 | 5 | 6 earlier_row", "3 | 5 | 7 later_row"]),
        ],
    );
    world.check(
        &["1 9", "2 9", "3 9"],
        &["1 1 late_correction PRESENT", "2 5 same_times_later_commit PRESENT", "3 7 later_row PRESENT"],
    );
}

#[test]
fn rule_05_corrections_made_later_do_not_leak() {
    let world = World::new(0, &[(1, &["1 | 5 5 | 7 first", "1 | 5 8 | 9 corrected"])]);
    world.check(&["1 7", "1 8"], &["1 7 first PRESENT", "1 9 corrected PRESENT"]);
    let off = HistoricalOptions { created: CreatedCutoff::Off, ..Default::default() };
    assert_eq!(world.join(&["1 7"], &off), ["1 9 corrected PRESENT"]);
    let fixed = HistoricalOptions { created: CreatedCutoff::At(7), ..Default::default() };
    assert_eq!(world.join(&["1 7", "1 20"], &fixed), ["1 7 first PRESENT", "1 7 first PRESENT"]);
    // The cutoff comes before the winner: a newer event not yet created falls back to the older one, not to null.
    let world = World::new(0, &[(1, &["1 | 3 3 | 1 old", "1 | 5 9 | 2 unknown_yet"])]);
    world.check(&["1 6", "1 9"], &["1 1 old PRESENT", "1 2 unknown_yet PRESENT"]);
}

#[test]
fn rule_06_the_whole_row_wins() {
    let world = World::new(0, &[(1, &["1 | 4 | 7 a", "1 | 5 | - b"])]);
    world.check(&["1 4", "1 6"], &["1 7 a PRESENT", "1 - b NULL_VALUE"]);
}

#[test]
fn rule_07_null_times_and_keys_match_nothing() {
    let world = World::new(0, &[(1, &["1 | 5 | 7 a", "0 | 5 | 8 b"])]);
    world.check(&["1 -", "- 9", "- -"], &["1 - - NOT_FOUND", "- - - NOT_FOUND", "- - - NOT_FOUND"]);
    let typeless = RecordBatch::try_from_iter([
        ("k", Arc::new(arrow_array::NullArray::new(2)) as ArrayRef),
        ("event_timestamp", Arc::new(arrow_array::NullArray::new(2)) as ArrayRef),
    ]);
    let out = world.join_batch(&typeless.unwrap(), &HistoricalOptions::default());
    assert_eq!(out, ["- - - NOT_FOUND", "- - - NOT_FOUND"]);
}

#[test]
fn rule_08_unknown_keys_keep_their_row() {
    let world = World::new(0, &[(1, &["1 | 5 | 7 a"])]);
    world.check(&["2 9", "-1 9"], &["2 - - NOT_FOUND", "-1 - - NOT_FOUND"]);
}

#[test]
fn rule_09_the_order_of_views_changes_nothing() {
    let project = project();
    let mut store = Store::new();
    let plan = project.plan(&["pairs", "riders"]);
    store.write(&plan, 0, 1, &[fact("p q | 5 | 7 s")]);
    store.write(&plan, 1, 2, &[fact("1 | 3 | 2")]);
    let spine = spine(&["0 p 6 q 1 2", "0 p 20 q 2 3"]);
    let columns = ["x", "s", "y", "ratio", "scaled"];
    for order in [["pairs", "riders", "made"], ["made", "riders", "pairs"]] {
        let plan = project.plan(&order);
        for source in store.sources() {
            let joined = plan.join_historical(std::slice::from_ref(&spine), HistoricalOptions::default(), source);
            assert_eq!(lines(&joined.unwrap().1, &columns), ["7 s 2 3 14", "- - - - -3"]);
        }
    }
}

#[test]
fn rule_10_times_are_utc_microseconds() {
    let world = World::new(0, &[(1, &["1 | 86400000000 | 7 a"])]);
    let check = |unit: TimeUnit, zone: Option<&str>, time: i64, expected: &str| {
        let kind = DataType::Timestamp(unit, zone.map(Into::into));
        let spine =
            batch(&[("k", DataType::Int64), ("event_timestamp", kind)], &[vec![cell("1"), cell(&time.to_string())]]);
        assert_eq!(world.join_batch(&spine, &HistoricalOptions::default()), [expected]);
    };
    let (hit, miss) = ("1 7 a PRESENT", "1 - - NOT_FOUND");
    check(TimeUnit::Second, None, 86_400, hit);
    check(TimeUnit::Second, None, 86_399, miss);
    check(TimeUnit::Millisecond, Some("UTC"), 86_400_000, hit);
    check(TimeUnit::Nanosecond, Some("America/New_York"), 86_400_000_000_000, hit);
    check(TimeUnit::Nanosecond, None, 86_399_999_999_000, miss);
    let text = |time: &str| {
        let columns = [("k", DataType::Int64), ("event_timestamp", DataType::Utf8)];
        world.join_batch(&batch(&columns, &[vec![cell("1"), cell(time)]]), &HistoricalOptions::default())
    };
    assert_eq!(text("1970-01-01T19:00:00-05:00"), [hit]);
    assert_eq!(text("1970-01-01T23:59:59.999999Z"), [miss]);
    // A time finer than a microsecond is an error, not a rounded answer.
    let kind = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let fine = batch(&[("k", DataType::Int64), ("event_timestamp", kind)], &[vec![cell("1"), cell("1001")]]);
    let error = world.plan.join_historical(&[fine], HistoricalOptions::default(), &world.store.memory).unwrap_err();
    assert!(error.to_string().contains("finer than a microsecond"), "{error}");
}

#[test]
fn rule_11_late_data_leaves_a_pinned_join_as_it_was() {
    let mut world = World::new(0, &[(100, &["1 | 5 | 7 a"])]);
    let pinned = HistoricalOptions { known_us: Some(100), ..Default::default() };
    let before = world.join(&["1 9"], &pinned);
    world.write(200, &["1 | 6 | 8 late"]);
    assert_eq!(world.join(&["1 9"], &pinned), before);
    world.check(&["1 9"], &["1 8 late PRESENT"]);
    let too_early = HistoricalOptions { known_us: Some(99), ..Default::default() };
    assert_eq!(world.join(&["1 9"], &too_early), ["1 - - NOT_FOUND"]);
}

#[test]
fn rule_12_duplicates_resolve_by_log_position() {
    let world = World::new(0, &[(1, &["1 | 5 6 | 7 a"]), (2, &["1 | 5 6 | 8 b"]), (3, &["1 | 5 6 | 8 b"])]);
    world.check(&["1 9"], &["1 8 b PRESENT"]);
    let first = HistoricalOptions { known_us: Some(1), ..Default::default() };
    assert_eq!(world.join(&["1 9"], &first), ["1 7 a PRESENT"]);
}

#[test]
fn rule_13_a_deletion_wins_like_a_row_and_is_none() {
    let mut world = World::new(5, &[(1, &["1 | 1 | 7 a", "1 | 5 |", "2 | 5 | 8 b"])]);
    world.check(
        &["1 4", "1 5", "1 9", "2 9"],
        &["1 7 a PRESENT", "1 - - NOT_FOUND", "1 - - NOT_FOUND", "2 8 b PRESENT"],
    );
    // It is no row: not one that is too old either.
    world.check(&["1 99", "2 99"], &["1 - - NOT_FOUND", "2 - - OUTSIDE_MAX_AGE"]);
    // Deleted by a correction that is made later: what was known before stays known before.
    world.write(2, &["2 | 5 7 |"]);
    world.check(&["2 6", "2 7"], &["2 8 b PRESENT", "2 - - NOT_FOUND"]);
    let before = HistoricalOptions { known_us: Some(1), ..Default::default() };
    assert_eq!(world.join(&["2 7"], &before), ["2 8 b PRESENT"]);
    // A later row brings the entity back; one that comes late and lies before the deletion does not.
    world.write(3, &["1 | 8 | 9 c", "1 | 4 | 6 late"]);
    world.check(&["1 4", "1 7", "1 8"], &["1 6 late PRESENT", "1 - - NOT_FOUND", "1 9 c PRESENT"]);
}

#[test]
fn rule_14_keys_are_typed_and_compared_by_column() {
    let project = project();
    let plan = project.plan(&["pairs"]);
    let mut store = Store::new();
    let facts: Vec<Fact> = ["1 11 | 1 | 1 p", "11 1 | 1 | 2 q"].iter().map(|text| fact(text)).collect();
    store.write(&plan, 0, 1, &facts);
    let spine = spine(&["0 1 2 11 - -", "0 11 2 1 - -", "0 111 2 1 - -"]);
    for source in store.sources() {
        let joined = plan.join_historical(std::slice::from_ref(&spine), HistoricalOptions::default(), source).unwrap();
        assert_eq!(lines(&joined.1, &["s"]), ["p", "q", "-"]);
    }
    // A key that does not fit is an error, not a miss; one that fits is widened.
    let plan = project.plan(&["riders"]);
    let columns = |kind| [("rider", kind), ("event_timestamp", TIME)];
    let over =
        batch(&columns(DataType::UInt64), &[vec![cell("1"), cell("1")], vec![cell(&u64::MAX.to_string()), cell("1")]]);
    let error = plan.join_historical(&[over], HistoricalOptions::default(), &store.memory).unwrap_err();
    assert!(error.to_string().contains("`rider`, row 1"), "{error}");
    let text = batch(&columns(DataType::Utf8), &[vec![cell("1"), cell("1")]]);
    let error = plan.join_historical(&[text], HistoricalOptions::default(), &store.memory).unwrap_err();
    assert!(error.to_string().contains("`rider` is Utf8"), "{error}");
}

#[test]
fn rule_15_name_clashes_are_refused_before_running() {
    let world = World::new(0, &[]);
    let columns = [("k", DataType::Int64), ("event_timestamp", TIME), ("x", DataType::Int64)];
    let spine = batch(&columns, &[vec![cell("1"), cell("1"), cell("1")]]);
    let error = world.plan.historical(spine.schema_ref(), HistoricalOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().starts_with("feature `v:x` would be named `x`"), "{error}");
    let columns = [("k", DataType::Int64), ("event_timestamp", TIME), ("x__status", DataType::Int64)];
    let spine = batch(&columns, &[]);
    let statuses = HistoricalOptions { statuses: true, ..Default::default() };
    assert!(world.plan.historical(spine.schema_ref(), HistoricalOptions::default()).is_ok());
    assert!(world.plan.historical(spine.schema_ref(), statuses).unwrap_err().to_string().contains("`x__status`"));
}

#[test]
fn rule_19_a_read_at_a_commit_is_read_again_bit_for_bit() {
    let mut world = World::new(0, &[(100, &["1 | 5 | 7 a"])]);
    let entities = batch(&[("k", DataType::Int64)], &[vec![cell("1")], vec![cell("2")]]);
    let at = ReadAt { now_us: 150, as_of_us: None, known_us: None };
    let served = world.plan.read_online(&entities, at, world.store.sharded.as_ref(), OnlineOptions::default()).unwrap();
    world.write(200, &["1 | 5 6 | 8 corrected", "2 | 5 | 9 new"]);
    let replay = ReadAt { now_us: 900, as_of_us: Some(150), known_us: Some(150) };
    for source in world.store.sources() {
        let again = world.plan.read_online(&entities, replay, source, OnlineOptions::default()).unwrap();
        assert_eq!(again.batch, served.batch);
    }
}

#[test]
fn rule_20_empty_inputs() {
    let world = World::new(0, &[]);
    world.check(&["1 9"], &["1 - - NOT_FOUND"]);
    let spine = batch(&[("k", DataType::Int64), ("event_timestamp", TIME)], &[]);
    let (schema, out) =
        world.plan.join_historical(&[spine], HistoricalOptions::default(), &world.store.memory).unwrap();
    assert_eq!(out.len(), 0);
    assert_eq!(
        schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(),
        ["k", "event_timestamp", "x", "y"]
    );
}

#[test]
fn bad_spines_are_refused_with_what_is_needed() {
    let world = World::new(0, &[]);
    let refuse = |columns: &[(&str, DataType)]| {
        let error = world.plan.historical(batch(columns, &[]).schema_ref(), HistoricalOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    };
    assert_eq!(
        refuse(&[("kk", DataType::Int64), ("event_timestamp", TIME)]),
        "column `k` int64 is missing, a join key of entity `k`; needed are `k` int64, found `kk`, `event_timestamp`"
    );
    assert!(refuse(&[("k", DataType::Int64), ("event_timestmp", TIME)]).contains("did you mean `event_timestmp`?"));
    assert!(refuse(&[("k", DataType::Int64), ("event_timestamp", DataType::Int64)]).contains("times are timestamps"));
    assert!(refuse(&[("k", DataType::Int64), ("k", DataType::Int64), ("event_timestamp", TIME)]).contains("twice"));
    let good = batch(&[("k", DataType::Int64), ("event_timestamp", TIME)], &[vec![cell("1"), cell("1")]]);
    let mut join = world.plan.historical(good.schema_ref(), HistoricalOptions::default()).unwrap();
    let other = batch(&[("event_timestamp", TIME), ("k", DataType::Int64)], &[]);
    assert!(
        join.join(std::slice::from_ref(&other), &world.store.memory, &mut |_| Ok(()))
            .unwrap_err()
            .to_string()
            .contains("share one schema")
    );
    assert_eq!(
        join.join(std::slice::from_ref(&good), &Failing, &mut |_| Ok(())).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    join.rows = SPINE_ROWS_MAX;
    assert_eq!(
        join.join(std::slice::from_ref(&good), &world.store.memory, &mut |_| Ok(())).unwrap_err().kind(),
        ErrorKind::TooLarge
    );
}

#[test]
fn large_spines_come_back_in_bounded_batches() {
    let world = World::new(0, &[(1, &["1 | 5 | 7 a", "2 | 6 | 8 b"])]);
    let rows = BATCH_ROWS * 2 + 5;
    let cells: Vec<Vec<Cell>> =
        (0..rows).map(|row| vec![cell(&(row % 3).to_string()), cell(&(row % 7).to_string())]).collect();
    let spine = batch(&[("k", DataType::Int64), ("event_timestamp", TIME)], &cells);
    let (_, out) =
        world.plan.join_historical(&[spine], HistoricalOptions::default(), world.store.sharded.as_ref()).unwrap();
    assert_eq!(out.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [BATCH_ROWS, BATCH_ROWS, 5]);
    let x: Vec<Option<i64>> =
        out.iter().flat_map(|b| b["x"].as_primitive::<arrow_array::types::Int64Type>().iter()).collect();
    let expected = |row: usize| match (row % 3, row % 7) {
        (1, 5..) => Some(7),
        (2, 6..) => Some(8),
        _ => None,
    };
    assert_eq!(x, (0..rows).map(expected).collect::<Vec<_>>());
}

// ---------------------------------------------------------------- random histories against the oracle

/// Composite keys that are equal once joined as strings, and one with a zero byte.
const PAIRS: [(&str, &str); 6] = [("1", "11"), ("11", "1"), ("1", ""), ("", "1"), ("111", ""), ("a\0", "b")];

fn cells(values: impl IntoIterator<Item = Option<String>>) -> Vec<Cell> {
    values.into_iter().collect()
}

fn pair_fact() -> impl Strategy<Value = Fact> {
    let values = (prop::option::of(-3i64..4), prop::option::of("[a-c]{0,2}"));
    let values = values.prop_map(|(x, s)| cells([x.map(|x| x.to_string()), s]));
    let values = prop_oneof![6 => values, 1 => Just(Vec::new())];
    (0..PAIRS.len(), 0i64..10, prop::option::of(0i64..14), values).prop_map(|(key, event_us, created_us, values)| {
        let key = cells([Some(PAIRS[key].0.to_owned()), Some(PAIRS[key].1.to_owned())]);
        Fact { key, event_us, created_us, values }
    })
}

fn rider_fact() -> impl Strategy<Value = Fact> {
    let values = prop::option::of(-1i64..3).prop_map(|y| cells([y.map(|y| y.to_string())]));
    let values = prop_oneof![6 => values, 1 => Just(Vec::new())];
    (-2i64..3, 0i64..10, prop::option::of(0i64..14), values).prop_map(|(key, event_us, created_us, values)| Fact {
        key: cells([Some(key.to_string())]),
        event_us,
        created_us,
        values,
    })
}

fn commits() -> impl Strategy<Value = Vec<(Vec<Fact>, Vec<Fact>)>> {
    let commit = (prop::collection::vec(pair_fact(), 0..8), prop::collection::vec(rider_fact(), 0..6));
    prop::collection::vec(commit, 0..6)
}

fn spine_rows() -> impl Strategy<Value = Vec<Vec<Cell>>> {
    let key = prop::option::weighted(0.9, 0..PAIRS.len() + 1);
    let row = (
        key,
        prop::option::weighted(0.9, -1i64..18),
        prop::option::weighted(0.9, -3i64..4),
        prop::option::of(-2i64..3),
    );
    let row = row.prop_map(|(pair, time, rider, factor)| {
        let pair = pair.map(|at| PAIRS.get(at).copied().unwrap_or(("no", "such")));
        let number = |n: Option<i64>| n.map(|n| n.to_string());
        let (a, b) = (pair.map(|p| p.0.to_owned()), pair.map(|p| p.1.to_owned()));
        vec![Some("1".to_owned()), a, number(time), b, number(rider), number(factor)]
    });
    prop::collection::vec(row, 0..30)
}

fn options() -> impl Strategy<Value = HistoricalOptions> {
    let created = prop_oneof![
        3 => Just(CreatedCutoff::SpineTime),
        1 => (0i64..14).prop_map(CreatedCutoff::At),
        1 => Just(CreatedCutoff::Off),
    ];
    (created, prop::option::of(0i64..700)).prop_map(|(created, known_us)| HistoricalOptions {
        created,
        known_us,
        statuses: true,
        ..Default::default()
    })
}

const COLUMNS: [&str; 8] = ["x", "x__status", "s", "s__status", "y", "y__status", "ratio", "scaled"];

/// Everything written to a store, once more as text for the oracle.
struct Histories {
    plan: FeaturePlan,
    pairs: Vec<Known>,
    riders: Vec<Known>,
    /// Commit times count from here.
    base_us: i64,
}

impl Histories {
    fn new(project: &Project, store: &mut Store, commits: &[(Vec<Fact>, Vec<Fact>)]) -> Self {
        let mut plan = project.plan(&ALL);
        store.begin_anew(&mut plan);
        let base_us = i64::from(plan.views[0].storage_id) * 1_000;
        let mut all = Self { plan, pairs: Vec::new(), riders: Vec::new(), base_us };
        for (n, (pairs, riders)) in commits.iter().enumerate() {
            let committed_us = base_us + 100 * (n as i64 + 1);
            let known = |fact: &Fact| Known { fact: fact.clone(), committed_us };
            store.write(&all.plan, 0, committed_us, pairs);
            store.write(&all.plan, 1, committed_us, riders);
            all.pairs.extend(pairs.iter().map(known));
            all.riders.extend(riders.iter().map(known));
        }
        all
    }

    /// The line of `COLUMNS` that the rules give for a spine row.
    fn expected(&self, row: &[Cell], options: &HistoricalOptions) -> String {
        let time_us = row[2].as_ref().map(|time| time.parse().unwrap());
        let HistoricalOptions { created, known_us, .. } = *options;
        let pair = [row[1].clone(), row[3].clone()];
        let pair = answer(&self.pairs, &Ask { key: &pair, time_us, created, known_us, ttl_us: 5 });
        let rider = answer(&self.riders, &Ask { key: &row[4..5], time_us, created, known_us, ttl_us: 0 });
        let value = |answer: &Answer, at: usize| -> (Cell, &str) {
            match answer {
                Answer::NotFound => (None, "NOT_FOUND"),
                Answer::TooOld => (None, "OUTSIDE_MAX_AGE"),
                Answer::Row(values) if values[at].is_none() => (None, "NULL_VALUE"),
                Answer::Row(values) => (values[at].clone(), "PRESENT"),
            }
        };
        let ((x, x_status), (s, s_status), (y, y_status)) = (value(&pair, 0), value(&pair, 1), value(&rider, 0));
        let number = |cell: &Cell| cell.as_ref().map(|text| text.parse::<i64>().unwrap());
        let ratio = number(&x).zip(number(&y)).and_then(|(x, y)| x.checked_div(y));
        let scaled = number(&row[5]).map(|factor| number(&x).unwrap_or(-1) * factor);
        let told = |cell: Cell| cell.unwrap_or_else(|| "-".to_owned());
        let told_number = |n: Option<i64>| told(n.map(|n| n.to_string()));
        let (ratio, scaled) = (told_number(ratio), told_number(scaled));
        [&told(x), x_status, &told(s), s_status, &told(y), y_status, &ratio, &scaled].join(" ")
    }
}

/// Runs `check` on random histories, written to shards that stay open.
fn check_histories<S: Strategy>(
    ask: S,
    check: impl Fn(&Histories, &Store, Vec<Vec<Cell>>, S::Value) -> Result<(), TestCaseError>,
) {
    let project = project();
    let store = RefCell::new(Store::new());
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    let run = |(commits, rows, ask): (Vec<_>, _, _)| {
        let mut store = store.borrow_mut();
        let all = Histories::new(&project, &mut store, &commits);
        check(&all, &store, rows, ask)
    };
    if let Err(failure) = TestRunner::new(config).run(&(commits(), spine_rows(), ask), run) {
        panic!("{failure}");
    }
}

/// Rules 1 to 8 and 14 at once, on both sources, whatever the batching (rule 21).
#[test]
fn random_histories_join_as_the_oracle_says() {
    check_histories((options(), 1usize..10), |all, store, rows, (mut options, cut)| {
        options.known_us = options.known_us.map(|known_us| all.base_us + known_us);
        let spine = batch(&SPINE, &rows);
        let expected: Vec<String> = rows.iter().map(|row| all.expected(row, &options)).collect();
        let part = |at: usize| spine.slice(at, cut.min(rows.len() - at));
        let parts: Vec<RecordBatch> = (0..rows.len().max(1)).step_by(cut).map(part).collect();
        for source in store.sources() {
            let (_, whole) = all.plan.join_historical(std::slice::from_ref(&spine), options.clone(), source).unwrap();
            prop_assert_eq!(lines(&whole, &COLUMNS), expected.clone());
            let (_, cut_up) = all.plan.join_historical(&parts, options.clone(), source).unwrap();
            prop_assert_eq!(lines(&cut_up, &COLUMNS), expected.clone());
        }
        Ok(())
    });
}

/// An online read at T is the join of the same keys at T, on-demand features included.
#[test]
fn rule_18_online_equals_the_join_at_now() {
    let ask = (-1i64..18, prop::option::of(0i64..700), any::<bool>());
    check_histories(ask, |all, store, mut rows, (now_us, known_us, explicit)| {
        rows.iter_mut().for_each(|row| row[2] = Some(now_us.to_string()));
        let known_us = known_us.map(|known_us| all.base_us + known_us);
        let spine = batch(&SPINE, &rows);
        let entities = spine.project(&[5, 4, 3, 1]).unwrap();
        let options = HistoricalOptions { known_us, statuses: true, ..Default::default() };
        let expected: Vec<String> = rows.iter().map(|row| all.expected(row, &options)).collect();
        let at = if explicit {
            ReadAt { now_us: 1_000, as_of_us: Some(now_us), known_us }
        } else {
            ReadAt { now_us, as_of_us: None, known_us }
        };
        for source in store.sources() {
            let (_, joined) = all.plan.join_historical(std::slice::from_ref(&spine), options.clone(), source).unwrap();
            let online = OnlineOptions { statuses: true, details: false };
            let read = all.plan.read_online(&entities, at, source, online).unwrap();
            prop_assert_eq!(read.batch.num_rows(), rows.len());
            prop_assert_eq!(lines(&[read.batch], &COLUMNS), expected.clone());
            prop_assert_eq!(lines(&joined, &COLUMNS), expected.clone());
        }
        Ok(())
    });
}
