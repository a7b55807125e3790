//! ai.onnx.ml: our own kernels over host memory. None of this names burn.
//!
//! - [`forest`]: compiled trees and how rows fall through them; [`trees`]: tree operators, from attributes to answers
//! - [`linear`]: linear models; [`post`]: what turns scores into answers, as onnxruntime does it
//! - [`preprocess`]: Scaler, Imputer and their kin; [`labels`]: labels, and ZipMap

pub(crate) mod forest;
pub(crate) mod labels;
mod linear;
mod post;
mod preprocess;
mod trees;

use std::sync::Arc;

use smallvec::smallvec;

use crate::ops::{Build, Built, Outputs, Refusal};
use crate::value::{Data, DataType, HostTensor, Value};

pub(crate) fn build(cx: &Build<'_>, op: &str) -> Built {
    match op {
        "TreeEnsembleRegressor" => trees::regressor(cx),
        "TreeEnsembleClassifier" => trees::classifier(cx),
        "LinearRegressor" => linear::regressor(cx),
        "LinearClassifier" => linear::classifier(cx),
        "Scaler" => preprocess::scaler(cx),
        "Imputer" => preprocess::imputer(cx),
        "Normalizer" => preprocess::normalizer(cx),
        "Binarizer" => preprocess::binarizer(cx),
        "FeatureVectorizer" => preprocess::feature_vectorizer(cx),
        "ArrayFeatureExtractor" => preprocess::array_feature_extractor(cx),
        "LabelEncoder" => labels::label_encoder(cx),
        "ZipMap" => labels::zip_map(cx),
        _ => Err(Refusal::Unsupported("there is no such operator here".to_owned())),
    }
}

/// Class labels of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<Arc<str>>),
}

impl Labels {
    pub fn read(cx: &Build<'_>, ints: &str, strings: &str) -> Result<Self, Refusal> {
        match cx.attributes.strings(strings)? {
            Some(labels) if !labels.is_empty() => Ok(Self::Strings(labels)),
            _ => Ok(Self::Ints(cx.attributes.ints(ints).unwrap_or_default().to_vec())),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Ints(labels) => labels.len(),
            Self::Strings(labels) => labels.len(),
        }
    }

    /// One label for each row, by its place in the list; a place outside it is the place itself.
    pub fn of(&self, places: &[usize]) -> HostTensor {
        let data = match self {
            Self::Ints(labels) => {
                Data::Int64(places.iter().map(|&place| labels.get(place).copied().unwrap_or(place as i64)).collect())
            }
            Self::Strings(labels) => {
                let label = |&place: &usize| labels.get(place).cloned().unwrap_or_else(|| place.to_string().into());
                Data::Bytes(places.iter().map(label).collect())
            }
        };
        HostTensor::new([places.len()].as_slice(), data)
    }
}

/// A table of numbers: `[rows, columns]`; one dimension is one row, as onnxruntime has it.
pub(crate) struct Table<T> {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<T>,
}

pub(crate) fn table_f32(value: Value) -> Result<Table<f32>, String> {
    let tensor = value.into_host();
    let (rows, columns) = table_shape(&tensor.dims)?;
    match tensor.cast(DataType::Fp32)?.data {
        Data::Fp32(values) => Ok(Table { rows, columns, values }),
        other => Err(format!("{} where FP32 is needed", other.datatype())),
    }
}

pub(crate) fn table_f64(value: Value) -> Result<Table<f64>, String> {
    let tensor = value.into_host();
    let (rows, columns) = table_shape(&tensor.dims)?;
    match tensor.cast(DataType::Fp64)?.data {
        Data::Fp64(values) => Ok(Table { rows, columns, values }),
        other => Err(format!("{} where FP64 is needed", other.datatype())),
    }
}

fn table_shape(dims: &[usize]) -> Result<(usize, usize), String> {
    match *dims {
        [columns] => Ok((1, columns)),
        [rows, columns] => Ok((rows, columns)),
        _ => Err(format!("its input has shape {dims:?}: rows of features are needed")),
    }
}

/// The two outputs of a classifier.
fn label_and_scores(labels: HostTensor, rows: usize, scores: Vec<f32>) -> Result<Outputs, String> {
    let classes = scores.len() / rows.max(1);
    Ok(smallvec![labels.into(), HostTensor::of_f32(&[rows, classes], scores).into()])
}
