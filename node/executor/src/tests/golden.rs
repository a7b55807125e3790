//! X3 and agreement with onnxruntime: every golden of `tests/golden`, made by `make_golden.py` there.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;

use crate::value::{Data, DataType, Dims, HostTensor};
use crate::{Limits, Model};

pub(super) const MODELS: [&str; 17] = [
    "mlp",
    "tabular_network",
    "attention_network",
    "xgboost_regressor",
    "xgboost_classifier",
    "xgboost_three_classes",
    "lightgbm_classifier",
    "lightgbm_three_classes",
    "random_forest_classifier",
    "random_forest_binary",
    "random_forest_regressor",
    "extra_trees_two_targets",
    "gradient_boosting",
    "scaled_logistic",
    "scaled_logistic_words",
    "imputed_logistic",
    "linear_regression",
];

pub(crate) fn folder() -> PathBuf {
    // Asked at run time: a target directory shared by checkouts holds binaries that were built in another.
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/golden")
}

pub(super) fn model_bytes(name: &str) -> Bytes {
    std::fs::read(folder().join(format!("{name}.onnx"))).unwrap().into()
}

pub(super) fn model(name: &str) -> Model {
    Model::load(model_bytes(name), &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A `.bin` file: a line of JSON, then bytes.
pub(super) struct Pack {
    pub header: serde_json::Value,
    blob: Vec<u8>,
}

impl Pack {
    pub fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder().join(format!("{name}.bin"))).unwrap();
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
        Self { header: serde_json::from_slice(&bytes[..end]).unwrap(), blob: bytes[end + 1..].to_vec() }
    }

    fn bytes(&self, entry: &serde_json::Value) -> &[u8] {
        let number = |name: &str| entry[name].as_u64().unwrap() as usize;
        &self.blob[number("offset")..][..number("bytes")]
    }

    fn tensor(&self, entry: &serde_json::Value) -> (String, HostTensor) {
        let dims: Dims =
            entry["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
        macro_rules! numbers {
            ($T:ty) => {
                self.bytes(entry).as_chunks().0.iter().map(|chunk| <$T>::from_le_bytes(*chunk)).collect()
            };
        }
        let data = match entry["datatype"].as_str().unwrap() {
            "FP32" => Data::Fp32(numbers!(f32)),
            "FP64" => Data::Fp64(numbers!(f64)),
            "INT64" => Data::Int64(numbers!(i64)),
            "INT32" => Data::Int32(numbers!(i32)),
            "BOOL" => Data::Bool(self.bytes(entry).iter().map(|&byte| byte != 0).collect()),
            _ => Data::Bytes(entry["strings"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().into()).collect()),
        };
        (entry["name"].as_str().unwrap().to_owned(), HostTensor::new(dims, data))
    }

    pub fn tensors(&self, entries: &serde_json::Value) -> Vec<(String, HostTensor)> {
        entries.as_array().unwrap().iter().map(|entry| self.tensor(entry)).collect()
    }
}

/// The rows of a golden as a user's batch: one column for each feature where the model has one matrix, else one for
/// each input.
pub(super) fn batch_of(name: &str) -> RecordBatch {
    let pack = Pack::read(name);
    super::models::batch(pack.tensors(&pack.header["inputs"]))
}

/// `None` where all elements agree: 1e-5 relative or 1e-6 absolute; other types exactly.
fn difference(found: &HostTensor, wanted: &HostTensor) -> Option<String> {
    if found.data.datatype() != wanted.data.datatype() || found.data.len() != wanted.data.len() {
        let (a, b) = (found.data.datatype(), wanted.data.datatype());
        return Some(format!("{a} {:?} for {b} {:?}", found.dims.as_slice(), wanted.dims.as_slice()));
    }
    if !wanted.data.datatype().is_float() {
        let equal = found.data == wanted.data;
        return (!equal).then(|| format!("{found:?}\nfor {wanted:?}").chars().take(400).collect());
    }
    let numbers = |tensor: &HostTensor| match tensor.clone().cast(DataType::Fp64).unwrap().data {
        Data::Fp64(values) => values,
        _ => unreachable!(),
    };
    let pairs = numbers(found).into_iter().zip(numbers(wanted)).enumerate();
    let bad = |&(_, (a, b)): &(usize, (f64, f64))| {
        !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 + 1e-5 * b.abs())
    };
    let bad: Vec<_> = pairs.filter(bad).collect();
    let (at, (a, b)) = bad.first()?;
    Some(format!("{} of {} differ, first element {at}: {a} for {b}", bad.len(), found.data.len()))
}

/// A column back as a tensor.
fn tensor_of(column: &arrow_array::ArrayRef) -> HostTensor {
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float32Type, Int64Type};
    let column = column.as_fixed_size_list_opt().map_or_else(|| column.clone(), |list| list.values().clone());
    let data = match column.data_type() {
        arrow_schema::DataType::Float32 => Data::Fp32(column.as_primitive::<Float32Type>().values().to_vec()),
        arrow_schema::DataType::Int64 => Data::Int64(column.as_primitive::<Int64Type>().values().to_vec()),
        _ => Data::Bytes(column.as_string::<i32>().iter().map(|value| value.unwrap().into()).collect()),
    };
    HostTensor::new([data.len()].as_slice(), data)
}

#[test]
fn every_golden_agrees_with_onnxruntime() {
    let mut failures = Vec::new();
    for name in MODELS {
        let (model, pack) = (model(name), Pack::read(name));
        let answer = model.run(&batch_of(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted = pack.tensors(&pack.header["outputs"]);
        assert_eq!(answer.num_rows(), 1000);
        assert_eq!(answer.num_columns(), wanted.len());
        for (output, wanted) in &wanted {
            let found = tensor_of(answer.column_by_name(output).unwrap_or_else(|| panic!("{name} has no {output}")));
            failures.extend(difference(&found, wanted).map(|difference| format!("{name} {output}: {difference}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// X3.
#[test]
fn an_answer_does_not_depend_on_its_batch() {
    for name in MODELS {
        let (model, batch) = (model(name), batch_of(name));
        let whole = model.run(&batch).unwrap();
        for size in [1, 7, 64, 130] {
            let mut parts = Vec::new();
            for start in (0..batch.num_rows()).step_by(size) {
                let rows = size.min(batch.num_rows() - start);
                parts.push(model.run(&batch.slice(start, rows)).unwrap());
            }
            let joined = arrow_select::concat::concat_batches(&whole.schema(), &parts).unwrap();
            for (whole, joined) in whole.columns().iter().zip(joined.columns()) {
                let difference = difference(&tensor_of(joined), &tensor_of(whole));
                assert_eq!(difference, None, "{name} in batches of {size}");
            }
        }
    }
}

/// Runs each case of a pack on tensors, without Arrow.
fn run_cases(name: &str) -> (usize, Vec<String>) {
    let pack = Pack::read(name);
    let cases = pack.header["cases"].as_array().unwrap();
    let mut failures = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let bytes = Bytes::copy_from_slice(pack.bytes(&case["model"]));
        let inputs = pack.tensors(&case["inputs"]).into_iter().map(|(_, tensor)| tensor).collect();
        let found = Model::load(bytes, &Limits::default())
            .map_err(|error| error.to_string())
            .and_then(|model| model.run_tensors(inputs).map_err(|error| error.to_string()));
        match found {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(found) => {
                for ((output, wanted), found) in pack.tensors(&case["outputs"]).iter().zip(&found) {
                    if found.dims != wanted.dims {
                        failures.push(format!("{name} {output}: shape {:?} for {:?}", found.dims, wanted.dims));
                    } else if let Some(difference) = difference(found, wanted) {
                        failures.push(format!("{name} {output}: {difference}"));
                    }
                }
            }
        }
    }
    (cases.len(), failures)
}

#[test]
fn tree_corners_are_as_in_onnxruntime() {
    let (cases, failures) = run_cases("trees");
    assert!(failures.is_empty(), "{} of {cases} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn operators_pass_the_node_tests_of_the_standard() {
    let (cases, failures) = run_cases("nodes");
    assert!(failures.is_empty(), "{} of {cases} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_classifier_names_its_classes() {
    let answer = model("scaled_logistic_words").run(&batch_of("scaled_logistic_words")).unwrap();
    let schema = answer.schema();
    let field: &Arc<arrow_schema::Field> = &schema.fields()[1];
    assert_eq!(field.metadata().get("classes").map(String::as_str), Some(r#"["early","late","on time"]"#));
}
