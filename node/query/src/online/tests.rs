use super::*;
use crate::plan::tests::Project;
use crate::testing::{Cell, Failing, Store, batch, cell, fact, lines};
use arrow_array::Array;
use arrow_schema::DataType;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::ValueKind;

fn project() -> Project {
    use ValueKind::{Float32, Int64, String};
    let mut project = Project::default();
    project
        .entity("driver", &[("driver_id", Int64)])
        .entity("route", &[("origin", String), ("dest", String)])
        .view("stats", &["driver"], 10, &[("rating", Float32), ("name", String)])
        .view("delay", &["route"], 0, &[("mean", Int64)])
        .on_demand("made", &["stats:rating"], &[("factor", Float32)], &[("scaled", Float32, "rating * factor")])
        .on_demand("pure", &[], &[("factor", Float32)], &[("doubled", Float32, "factor * 2")]);
    project
}

fn entities(rows: &[&str]) -> RecordBatch {
    let columns = [
        ("note", DataType::Utf8),
        ("origin", DataType::Utf8),
        ("driver_id", DataType::Int16),
        ("dest", DataType::LargeUtf8),
        ("factor", DataType::Float64),
    ];
    let rows: Vec<Vec<Cell>> = rows.iter().map(|row| row.split_whitespace().map(cell).collect()).collect();
    batch(&columns, &rows)
}

fn store(plan: &FeaturePlan) -> Store {
    let mut store = Store::new();
    store.write(plan, 0, 100, &["1 | 50 | 1.5 ann", "2 | 50 | - bob", "3 | 20 | 2.5 old"].map(fact));
    store.write(plan, 1, 200, &["EWR SFO | 40 | 7", "EWR LAX | 90 | 8", "EWR LAX | 30 | 6"].map(fact));
    store
}

const ALL: [&str; 3] = ["stats", "delay", "made"];

/// Reads from both sources, which must agree.
fn read(plan: &FeaturePlan, store: &Store, rows: &[&str], at: ReadAt, options: OnlineOptions) -> OnlineBatch {
    let [memory, sharded] =
        store.sources().map(|source| plan.read_online(&entities(rows), at, source, options).unwrap());
    assert_eq!(memory.batch, sharded.batch);
    assert_eq!(memory.details, sharded.details);
    sharded
}

#[test]
fn rows_come_back_in_order_with_statuses_and_times() {
    let plan = project().plan(&ALL);
    let store = store(&plan);
    let rows = ["n EWR 1 SFO 2", "n EWR 2 LAX 2", "n - 3 SFO -", "n EWR - SFO 1", "n JFK 9 SFO 1", "n EWR 1 SFO 2"];
    let options = OnlineOptions { statuses: true, details: true };
    let answer = read(&plan, &store, &rows, ReadAt::now(55), options);
    let names: Vec<&str> = answer.batch.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        names,
        [
            "driver_id",
            "origin",
            "dest",
            "factor",
            "rating",
            "rating__status",
            "name",
            "name__status",
            "mean",
            "mean__status",
            "scaled",
            "scaled__status",
        ]
    );
    assert_eq!(answer.batch.schema(), plan.output_schema(true).unwrap());
    assert_eq!(
        lines(std::slice::from_ref(&answer.batch), &names),
        [
            "1 EWR SFO 2.0 1.5 PRESENT ann PRESENT 7 PRESENT 3.0 PRESENT",
            "2 EWR LAX 2.0 - NULL_VALUE bob PRESENT 6 PRESENT - NULL_VALUE",
            "3 - SFO - - OUTSIDE_MAX_AGE - OUTSIDE_MAX_AGE - NOT_FOUND - NULL_VALUE",
            "- EWR SFO 1.0 - NOT_FOUND - NOT_FOUND 7 PRESENT - NULL_VALUE",
            "9 JFK SFO 1.0 - NOT_FOUND - NOT_FOUND - NOT_FOUND - NULL_VALUE",
            "1 EWR SFO 2.0 1.5 PRESENT ann PRESENT 7 PRESENT 3.0 PRESENT",
        ]
    );
    let details = answer.details.unwrap();
    assert_eq!(details.len(), 4);
    assert_eq!(details[0].event_us[..], [50, 50, 20, 0, 0, 50]);
    assert_eq!(details[2].event_us[..], [40, 30, 0, 40, 0, 40], "a row from the future gives way to the one before");
    assert_eq!(details[3].event_us[..], [0; 6]);
    assert_eq!(details[0].statuses[..3], [Status::Present, Status::NullValue, Status::OutsideMaxAge]);
}

#[test]
fn as_of_and_known_as_of_look_back() {
    let plan = project().plan(&ALL);
    let mut store = store(&plan);
    store.write(&plan, 0, 300, &["1 | 58 | 9.5 later", "1 | 50 57 | 1.75 corrected"].map(fact));
    let check = |at: ReadAt, expected: &str| {
        let answer = read(&plan, &store, &["n EWR 1 SFO 2"], at, OnlineOptions::default());
        assert_eq!(lines(&[answer.batch], &["rating", "name", "mean"]), [expected], "{at:?}");
    };
    let at = |as_of_us, known_us| ReadAt { now_us: 60, as_of_us, known_us };
    check(at(None, None), "9.5 later 7");
    check(at(Some(57), None), "1.75 corrected 7");
    check(at(Some(56), None), "1.5 ann 7");
    check(at(Some(49), None), "- - 7");
    check(at(None, Some(299)), "1.5 ann 7");
    check(at(None, Some(100)), "1.5 ann -");
    check(at(Some(60), Some(99)), "- - -");
}

#[test]
fn ages_are_measured_to_the_microsecond() {
    let plan = project().plan(&["stats"]);
    let mut store = Store::new();
    store.write(&plan, 0, 1, &["1 | 50 | 1.5 ann"].map(fact));
    let status = |now_us| {
        let options = OnlineOptions { statuses: true, details: false };
        let answer = read(&plan, &store, &["n - 1 - -"], ReadAt::now(now_us), options);
        lines(&[answer.batch], &["rating", "rating__status"]).remove(0)
    };
    assert_eq!(status(60), "1.5 PRESENT");
    assert_eq!(status(61), "- OUTSIDE_MAX_AGE");
}

#[test]
fn on_demand_features_need_no_view() {
    let plan = project().plan(&["pure"]);
    let store = Store::new();
    let answer = read(&plan, &store, &["n - - - 4", "n - - - -"], ReadAt::now(1), OnlineOptions::default());
    assert_eq!(lines(&[answer.batch], &["factor", "doubled"]), ["4.0 8.0", "- -"]);
}

#[test]
fn bad_entity_rows_are_refused_with_what_is_needed() {
    let plan = project().plan(&ALL);
    let store = store(&plan);
    let refuse = |batch: &RecordBatch| {
        let error =
            plan.read_online(batch, ReadAt::now(1), store.sharded.as_ref(), OnlineOptions::default()).unwrap_err();
        (error.kind(), error.to_string())
    };
    let good = entities(&["n EWR 1 SFO 2"]);
    // A composite key is never cut to what is there.
    let (kind, message) = refuse(&good.project(&[1, 2, 4]).unwrap());
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert_eq!(
        message,
        "column `dest` string is missing, a join key of entity `route`; needed are `driver_id` int64, `origin` string, \
         `dest` string, `factor` float32, found `origin`, `driver_id`, `factor`"
    );
    assert!(refuse(&good.project(&[1, 2, 3]).unwrap()).1.contains("request data of on-demand feature view `made`"));
    assert!(refuse(&good.project(&[1, 2, 3, 4, 1]).unwrap()).1.contains("column `origin` is there twice"));
    let wrong = batch(&[("driver_id", DataType::Utf8)], &[vec![cell("1")]]);
    assert!(refuse(&wrong).1.contains("column `driver_id` is Utf8"), "{:?}", refuse(&wrong));
    let long = batch(&[("driver_id", DataType::Int64)], &vec![vec![cell("1")]; ENTITY_ROWS_MAX + 1]);
    assert_eq!(refuse(&long).0, ErrorKind::TooLarge);
    let error = plan.read_online(&good, ReadAt::now(1), &Failing, OnlineOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn no_rows_give_no_rows_with_the_whole_schema() {
    let plan = project().plan(&ALL);
    let store = store(&plan);
    let answer = read(&plan, &store, &[], ReadAt::now(1), OnlineOptions { statuses: true, details: true });
    assert_eq!(answer.batch.num_rows(), 0);
    assert_eq!(answer.batch.schema(), plan.output_schema(true).unwrap());
}

#[test]
fn a_full_request_is_answered_whole() {
    let plan = project().plan(&["stats"]);
    let mut store = Store::new();
    let facts: Vec<String> = (0..3000).map(|key| format!("{key} | {key} | {key} n{key}")).collect();
    let facts: Vec<_> = facts.iter().map(|text| fact(text)).collect();
    store.write(&plan, 0, 1, &facts);
    let rows: Vec<Vec<Cell>> = (0..ENTITY_ROWS_MAX).map(|row| vec![cell(&(row * 7 % 4000).to_string())]).collect();
    let entities = batch(&[("driver_id", DataType::Int64)], &rows);
    let at = ReadAt { now_us: 3_000, ..ReadAt::now(0) };
    let answer = plan.read_online(&entities, at, store.sharded.as_ref(), OnlineOptions::default()).unwrap();
    let expected = |row: usize| match row * 7 % 4000 {
        key @ 2990..3000 => format!("{key} n{key}"),
        key => format!("{key} -"),
    };
    let found = lines(&[answer.batch], &["driver_id", "name"]);
    assert!(found.iter().enumerate().all(|(row, line)| *line == expected(row)));
}

/// Slots that are on other nodes.
#[test]
fn a_source_without_the_slot_says_so() {
    let empty = crate::source::ShardedSource::new(&[1; cairn_proto::SLOTS], []).unwrap();
    let plan = project().plan(&["stats"]);
    let error = plan
        .read_online(&entities(&["n - 1 - -"]), ReadAt::now(1), empty.as_ref(), OnlineOptions::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(crate::source::ShardedSource::new(&[1; 3], []).is_err());
}

#[test]
fn columns_without_nulls_stay_that_way() {
    let plan = project().plan(&["stats:name"]);
    let mut store = Store::new();
    store.write(&plan, 0, 1, &["1 | 50 | 1.5 ann"].map(fact));
    let answer = read(&plan, &store, &["n - 1 - -"], ReadAt::now(55), OnlineOptions::default());
    assert_eq!(answer.batch.column(1).null_count(), 0);
}
