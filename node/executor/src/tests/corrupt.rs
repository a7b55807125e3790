//! X1 and X2: files that are not models, or not models for us.

use bytes::Bytes;
use proptest::prelude::*;

use super::golden::{MODELS, batch_of, model_bytes};
use super::models::{int, model, node, value, weights};
use crate::{Limits, LoadError, Model};

fn load(bytes: Bytes) -> Result<Model, LoadError> {
    Model::load(bytes, &Limits::default())
}

/// What is loaded from damaged bytes is either refused or runs without a panic: `ModelFault` would be one.
fn survives(name: &str, bytes: Vec<u8>) -> Result<(), TestCaseError> {
    match load(bytes.into()) {
        Err(LoadError::ModelFault(panic)) => {
            Err(TestCaseError::fail(format!("{name} panicked while loading: {panic}")))
        }
        Err(_) => Ok(()),
        Ok(model) => match model.run(&batch_of(name).slice(0, 3)) {
            Err(crate::RunError::ModelFault(panic)) => Err(TestCaseError::fail(format!("{name} panicked: {panic}"))),
            _ => Ok(()),
        },
    }
}

fn small_models() -> impl Strategy<Value = &'static str> {
    let small: Vec<&str> = MODELS.into_iter().filter(|name| model_bytes(name).len() < 60_000).collect();
    prop::sample::select(small)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn truncated_models_do_no_harm(name in small_models(), part in 0.0..1.0f64) {
        let mut bytes = model_bytes(name).to_vec();
        bytes.truncate((bytes.len() as f64 * part) as usize);
        survives(name, bytes)?;
    }

    #[test]
    fn flipped_bits_do_no_harm(name in small_models(), flips in prop::collection::vec((0.0..1.0f64, 0..8u8), 1..6)) {
        let mut bytes = model_bytes(name).to_vec();
        for (place, bit) in flips {
            let at = (bytes.len() as f64 * place) as usize;
            bytes[at] ^= 1 << bit;
        }
        survives(name, bytes)?;
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(load(bytes.into()).is_err());
    }
}

#[test]
fn all_unsupported_operators_are_named() {
    let mut custom = node("Magic", &["b"], &["y"]);
    custom.domain = "com.example".to_owned();
    let nodes = vec![node("Relu", &["x"], &["a"]), node("LSTM", &["a"], &["b"]), custom];
    let bytes = model(nodes, vec![value("x", 1, &[-1, 2])], vec![value("y", 1, &[-1, 2])], vec![]);
    let error = load(bytes).unwrap_err();
    let LoadError::UnsupportedOps(ops) = &error else { panic!("{error}") };
    let names: Vec<_> = ops.iter().map(|op| (op.domain.as_str(), op.op.as_str(), op.node.as_str())).collect();
    assert_eq!(names, [("", "LSTM", "the LSTM"), ("com.example", "Magic", "the Magic")]);
    assert!(error.to_string().contains("`ai.onnx.LSTM` (node `the LSTM`)"), "{error}");
}

#[test]
fn graphs_that_contradict_themselves_are_refused() {
    let (x, y) = (|| vec![value("x", 1, &[-1, 2])], || vec![value("y", 1, &[-1, 2])]);
    let check = |nodes, initializers, part: &str| {
        let error = load(model(nodes, x(), y(), initializers)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(vec![node("Relu", &["z"], &["y"])], vec![], "nothing makes its input `z`");
    check(vec![node("Add", &["x", "a"], &["b"]), node("Relu", &["b"], &["a"])], vec![], "cycle");
    check(vec![node("Relu", &["x"], &["a"])], vec![], "output `y`: nothing makes it");
    check(vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])], vec![], "made twice");
    check(vec![node("Relu", &["x"], &["y"])], vec![weights("w", &[3, 1 << 40], vec![1.0])], "asks for");
    check(vec![node("Concat", &["x", "x"], &["y"])], vec![], "attribute `axis` is missing");
    let error = load(model(vec![], vec![value("x", 10, &[-1])], y(), vec![])).unwrap_err();
    assert!(matches!(&error, LoadError::UnsupportedType { datatype, .. } if datatype == "FP16"), "{error}");
    assert!(load(Bytes::new()).unwrap_err().to_string().contains("it is empty"));
}

#[test]
fn a_model_cannot_ask_for_much_memory() {
    let mut expand = node("ConstantOfShape", &["shape"], &["y"]);
    expand.attribute.push(int("unused", 0));
    let mut shape = weights("shape", &[3], vec![]);
    (shape.data_type, shape.int64_data) = (7, vec![100_000, 100_000, 100_000]);
    let bytes = model(vec![expand], vec![value("x", 1, &[-1, 2])], vec![value("y", 1, &[-1, 2])], vec![shape]);
    let error = load(bytes).unwrap_err().to_string();
    assert!(error.contains("over the limit"), "{error}");
}
