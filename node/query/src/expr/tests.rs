use super::*;
use arrow_array::{
    BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use cairn_proto::record::v1::{FeatureType, ValueKind};

fn typed(kind: ValueKind) -> FeatureType {
    FeatureType { kind: kind as i32, list: false, length: 0 }
}

fn input(name: &str, kind: ValueKind) -> Field {
    Field { name: name.into(), r#type: Some(typed(kind)), description: String::new() }
}

fn feature(name: &str, kind: ValueKind, sql: &str) -> OnDemandFeature {
    OnDemandFeature { name: name.into(), r#type: Some(typed(kind)), sql: sql.into(), description: String::new() }
}

fn inputs() -> Vec<Field> {
    vec![
        input("rating", ValueKind::Float32),
        input("trips", ValueKind::Int64),
        input("days", ValueKind::Int64),
        input("carrierCode", ValueKind::String),
        input("at", ValueKind::Timestamp),
    ]
}

fn batch(program: &OnDemandProgram, days: Vec<Option<i64>>) -> RecordBatch {
    let rows = days.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Float32Array::from(vec![Some(1.5); rows])),
        Arc::new(Int64Array::from(vec![Some(10); rows])),
        Arc::new(Int64Array::from(days)),
        Arc::new(StringArray::from(vec![Some("UA"); rows])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(3_600_000_000); rows]).with_timezone("UTC")),
    ];
    RecordBatch::try_new(Arc::clone(program.input_schema()), columns).unwrap()
}

fn one(kind: ValueKind, sql: &str, days: Vec<Option<i64>>) -> ArrayRef {
    let program = OnDemandProgram::compile("v", &inputs(), &[feature("f", kind, sql)]).unwrap();
    program.evaluate(&batch(&program, days)).unwrap().remove(0)
}

fn refused(kind: ValueKind, sql: &str) -> String {
    let error = OnDemandProgram::compile("v", &inputs(), &[feature("f", kind, sql)]).unwrap_err();
    assert_eq!(error.kind(), cairn_proto::ErrorKind::InvalidArgument);
    error.to_string()
}

#[test]
fn values_have_the_declared_type() {
    let days = vec![Some(4), None];
    assert_eq!(
        one(ValueKind::Float64, "trips / days", days.clone()).as_ref(),
        &Float64Array::from(vec![Some(2.0), None]) as &dyn Array
    );
    assert_eq!(
        one(ValueKind::Int32, "trips + 1", days.clone()).as_ref(),
        &Int32Array::from(vec![11, 11]) as &dyn Array
    );
    assert_eq!(
        one(ValueKind::Bool, "rating > 1 and days is not null", days.clone()).as_ref(),
        &BooleanArray::from(vec![true, false]) as &dyn Array
    );
    assert_eq!(
        one(ValueKind::Float32, "days > 3", days.clone()).as_ref(),
        &Float32Array::from(vec![Some(1.0), None]) as &dyn Array
    );
    assert_eq!(
        one(ValueKind::String, "lower(carrierCode) || CAST(days AS VARCHAR)", days.clone()).as_ref(),
        &StringArray::from(vec![Some("ua4"), None]) as &dyn Array
    );
    assert_eq!(
        one(ValueKind::Int64, "date_part('hour', at)", days.clone()).as_ref(),
        &Int64Array::from(vec![1, 1]) as &dyn Array
    );
    assert_eq!(one(ValueKind::Int64, "42", days.clone()).as_ref(), &Int64Array::from(vec![42, 42]) as &dyn Array);
    assert_eq!(one(ValueKind::Int64, "NULL", days).null_count(), 2);
    assert_eq!(one(ValueKind::Int64, "trips", vec![]).len(), 0);
}

#[test]
fn names_match_without_regard_to_case_when_unambiguous() {
    for sql in ["carrierCode", "CARRIERCODE", "carriercode", "\"carrierCode\""] {
        assert_eq!(
            one(ValueKind::String, sql, vec![None]).as_ref(),
            &StringArray::from(vec!["UA"]) as &dyn Array,
            "{sql}"
        );
    }
    assert!(refused(ValueKind::String, "\"carriercode\"").contains("did you mean `carrierCode`?"));
    let twins = [
        input("a", ValueKind::Int64),
        input("A", ValueKind::Int64),
        input("Bb", ValueKind::Int64),
        input("bB", ValueKind::Int64),
    ];
    assert!(OnDemandProgram::compile("v", &twins, &[feature("f", ValueKind::Int64, "a + A")]).is_ok());
    let error = OnDemandProgram::compile("v", &twins, &[feature("f", ValueKind::Int64, "bb")]).unwrap_err().to_string();
    assert!(error.contains("could be `Bb` or `bB`"), "{error}");
}

#[test]
fn what_is_not_a_scalar_of_one_row_is_refused() {
    let table = [
        ("ratng + 1", "unknown column `ratng`; did you mean `rating`?"),
        ("v.rating", "write the input's own name, `rating`"),
        ("(SELECT 1)", "subqueries are not offered"),
        ("rating IN (SELECT 1)", "subqueries are not offered"),
        ("EXISTS (SELECT 1)", "subqueries are not offered"),
        ("sum(trips)", "`sum` is an aggregate"),
        ("count(*)", "`count` is an aggregate"),
        ("row_number() OVER ()", "is a window"),
        ("sum(trips) OVER (ORDER BY days)", "is a window"),
        ("random()", "function `random` depends on"),
        ("now()", "function `now` depends on"),
        ("date_part('year', now())", "function `now` depends on"),
        ("current_date", "function `current_date` depends on"),
        ("current_timestamp", "depends on the clock"),
        ("uuid()", "function `uuid` depends on"),
        ("trips + $1", "`$1` is a parameter"),
        ("trips, days", "expression"),
        ("trips; DROP TABLE x", "expression"),
        ("trips AS t", "`AS t` is not needed"),
        ("trips +", "xpected"),
        ("", "has no SQL"),
        ("nosuch(trips)", "nosuch"),
        ("carrierCode", "the SQL gives Utf8, declared is int64; declare that type or write a CAST"),
        ("carrierCode + at", "v:f"),
        ("@@version", "unknown column"),
    ];
    for (sql, reason) in table {
        let error = refused(ValueKind::Int64, sql);
        assert!(error.starts_with("on-demand feature `v:f`: "), "{error}");
        assert!(error.contains(reason), "{sql}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(refused(ValueKind::Bool, "trips").contains("declared is bool"));
    let features = [feature("f", ValueKind::Int64, "trips"), feature("g", ValueKind::Int64, "f + 1")];
    let error = OnDemandProgram::compile("v", &inputs(), &features).unwrap_err().to_string();
    assert!(error.contains("`v:g`: column `f` is a feature of this view"), "{error}");
}

#[test]
fn long_and_deep_expressions_are_refused_on_a_small_stack() {
    let compile = || {
        let long = format!("trips{}", " + trips".repeat(SQL_BYTES_MAX / 8));
        assert!(refused(ValueKind::Int64, &long).contains("the limit is"));
        let deep = format!("trips{}", "+1".repeat(2_000));
        assert!(refused(ValueKind::Int64, &deep).contains("nested deeper"));
        let nested = format!("{}trips{}", "(".repeat(2_000), ")".repeat(2_000));
        refused(ValueKind::Int64, &nested);
        let fine = format!("trips{}", "+1".repeat(DEPTH_FINE));
        assert_eq!(
            one(ValueKind::Int64, &fine, vec![None]).as_ref(),
            &Int64Array::from(vec![10 + DEPTH_FINE as i64]) as &dyn Array
        );
    };
    const DEPTH_FINE: usize = 120;
    let small = std::thread::Builder::new().stack_size(2 << 20);
    small.spawn(compile).unwrap().join().unwrap();
}

#[test]
fn a_failing_row_is_null_and_only_it() {
    let days = vec![Some(1), Some(0), None, Some(5), Some(0)];
    let expected = Int64Array::from(vec![Some(10), None, None, Some(2), None]);
    assert_eq!(one(ValueKind::Int64, "trips / days", days.clone()).as_ref(), &expected as &dyn Array);
    assert_eq!(one(ValueKind::Int64, "trips % days", days).null_count(), 3);
    assert_eq!(one(ValueKind::Int64, "1 / 0", vec![None, None]).null_count(), 2);
    assert_eq!(one(ValueKind::Int64, "CAST(carrierCode AS BIGINT)", vec![None, None]).null_count(), 2);
    assert_eq!(one(ValueKind::Int32, "days * 1000000000", vec![Some(1), Some(3)]).null_count(), 1);
    assert_eq!(
        one(ValueKind::Int64, "i64min / -1".replace("i64min", "days").as_str(), vec![Some(i64::MIN), Some(3)])
            .null_count(),
        1
    );
}

/// A row's value does not depend on the rows beside it.
#[test]
fn batches_do_not_change_values() {
    let days: Vec<Option<i64>> = (0..200).map(|i| if i % 7 == 0 { None } else { Some(i % 5 - 1) }).collect();
    let expressions = [
        "trips / days",
        "CASE WHEN days > 0 THEN trips / days ELSE -1 END",
        "coalesce(100 / days, 7)",
        "CASE WHEN days <> 0 AND 100 / days > 30 THEN 1 ELSE 0 END",
    ];
    for sql in expressions {
        let whole = one(ValueKind::Int64, sql, days.clone());
        for (row, day) in days.iter().enumerate() {
            let single = one(ValueKind::Int64, sql, vec![*day]);
            assert_eq!(single.as_ref(), whole.slice(row, 1).as_ref(), "{sql}, row {row}");
        }
    }
}

#[test]
fn used_inputs_are_told() {
    let features = [feature("a", ValueKind::Int64, "days"), feature("b", ValueKind::Float32, "rating + days")];
    let program = OnDemandProgram::compile("v", &inputs(), &features).unwrap();
    assert_eq!(program.used_inputs(), &[0, 2]);
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&program);
}

#[test]
fn a_batch_of_another_shape_is_an_error() {
    let program = OnDemandProgram::compile("v", &inputs(), &[feature("f", ValueKind::Int64, "days")]).unwrap();
    let wrong = batch(&program, vec![None]).project(&[0, 1]).unwrap();
    assert_eq!(program.evaluate(&wrong).unwrap_err().kind(), cairn_proto::ErrorKind::Internal);
}
