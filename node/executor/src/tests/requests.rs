//! What a request may look like, and what it gets.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::DataType as ArrowType;

use super::golden;
use super::models::{int, model, node, value};
use crate::plan::Plan;
use crate::{DataType, Limits, Model, RunError, Signature, TensorSpec};

fn load(bytes: bytes::Bytes) -> Model {
    Model::load(bytes, &Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// `y = -x` over `[n, 3]`.
fn negate() -> Model {
    load(model(vec![node("Neg", &["x"], &["y"])], vec![value("x", 1, &[-1, 3])], vec![value("y", 1, &[-1, 3])], vec![]))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn floats(values: Vec<Option<f32>>) -> ArrayRef {
    Arc::new(Float32Array::from(values))
}

#[test]
fn columns_of_any_number_type_become_features_in_order() {
    let answer = negate()
        .run(&batch(vec![
            ("b", Arc::new(BooleanArray::from(vec![true, false]))),
            ("a", Arc::new(Int64Array::from(vec![Some(7), None]))),
            ("c", Arc::new(Float64Array::from(vec![0.5, 1.5]))),
        ]))
        .unwrap();
    let list = answer.column_by_name("y").unwrap().as_fixed_size_list();
    let values = list.values().as_primitive::<Float32Type>().values();
    assert_eq!((list.value_length(), &values[..4]), (3, [-1.0, -7.0, -0.5, 0.0].as_slice()));
    assert!(values[4].is_nan(), "a null is NaN where floats are taken");
}

#[test]
fn the_signature_has_the_models_own_names() {
    let model = golden::model("xgboost_classifier");
    let spec =
        |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.to_owned(), datatype, shape: shape.to_vec() };
    let inputs = vec![spec("features", DataType::Fp32, &[-1, 12])];
    let outputs = vec![spec("label", DataType::Int64, &[-1]), spec("probabilities", DataType::Fp32, &[-1, 2])];
    assert_eq!(*model.signature(), Signature { inputs, outputs });
    assert!(model.memory_bytes() > 10_000);
}

#[test]
fn a_wrong_number_of_features_names_both() {
    let error = negate().run(&batch(vec![("a", floats(vec![Some(1.0)]))])).unwrap_err().to_string();
    assert_eq!(error, "the model's input `x` takes 3 features, and the batch has 1 in 1 columns");
}

#[test]
fn a_column_of_text_is_refused() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["1"]));
    let one = floats(vec![Some(1.0)]);
    let error = negate().run(&batch(vec![("a", one.clone()), ("b", text), ("c", one)])).unwrap_err().to_string();
    assert_eq!(error, "column `b` is Utf8, and the model takes FP32 there");
}

/// `y = x[row]` by name, with whole numbers.
#[test]
fn whole_numbers_take_no_null_and_no_fraction() {
    let inputs = vec![value("a", 7, &[-1]), value("b", 7, &[-1, 1])];
    let mut squeeze = node("Flatten", &["a"], &["a2"]);
    squeeze.attribute.push(int("axis", 1));
    let nodes = vec![squeeze, node("Add", &["a2", "b"], &["y"])];
    let model = load(model(nodes, inputs, vec![value("y", 7, &[-1, 1])], vec![]));
    let ints = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let answer = model
        .run(&batch(vec![("b", ints(vec![Some(1), Some(2)])), ("a", Arc::new(Float64Array::from(vec![10.0, 20.0])))]))
        .unwrap();
    assert_eq!(answer.column(0).as_ref(), ints(vec![Some(11), Some(22)]).as_ref());
    let error = |batch: &RecordBatch| model.run(batch).unwrap_err().to_string();
    let null = batch(vec![("a", ints(vec![Some(1), None])), ("b", ints(vec![Some(1), Some(1)]))]);
    assert_eq!(error(&null), "column `a`, row 1: it is null, and the model takes INT64 there");
    let half = batch(vec![("a", floats(vec![Some(0.5)])), ("b", ints(vec![Some(1)]))]);
    assert_eq!(error(&half), "column `a`, row 0: its value has no place in INT64");
    let absent = batch(vec![("a", ints(vec![Some(1)])), ("c", ints(vec![Some(1)]))]);
    assert_eq!(error(&absent), "the model's input `b` is not among the columns `a`, `c`");
}

#[test]
fn no_rows_give_no_rows_with_the_same_columns() {
    for name in golden::MODELS {
        let (model, batch) = (golden::model(name), golden::batch_of(name));
        let answer = model.run(&batch.slice(0, 0)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (answer.num_rows(), answer.schema()),
            (0, model.run(&batch.slice(0, 2)).unwrap().schema()),
            "{name}"
        );
    }
}

#[test]
fn one_value_a_row_is_a_plain_column() {
    let answer = golden::model("mlp").run(&golden::batch_of("mlp")).unwrap();
    assert_eq!(answer.schema().field(0).data_type(), &ArrowType::Float32);
}

/// X4.
#[test]
fn a_panic_in_a_kernel_fails_that_run_alone() {
    let plan = Plan::of_kernel(Box::new(|inputs| {
        let rows = inputs[0].as_ref().map_or(0, |value| value.dims()[0]);
        assert!(rows != 2, "two rows are too much");
        Ok(inputs.into_iter().flatten().collect())
    }));
    let spec = |name: &str| TensorSpec { name: name.to_owned(), datatype: DataType::Fp32, shape: vec![-1, -1] };
    let model = Model::of_plan(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] }, plan);
    let rows = |n: usize| batch(vec![("x", floats(vec![Some(1.0); n]))]);
    let error = model.run(&rows(2)).unwrap_err();
    assert!(matches!(&error, RunError::ModelFault(panic) if panic.contains("two rows are too much")), "{error}");
    assert_eq!(model.run(&rows(1)).unwrap().num_rows(), 1);
}
