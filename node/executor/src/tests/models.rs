//! Small models made in the test, and batches for them.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow_schema::Field;
use bytes::Bytes;
use prost::Message;

use crate::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::value::{Data, HostTensor};

pub(super) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        op_type: op.to_owned(),
        name: format!("the {op}"),
        input: names(inputs),
        output: names(outputs),
        ..Default::default()
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(value), ..Default::default() }
}

/// An FP32 initializer.
pub(super) fn weights(name: &str, dims: &[i64], values: Vec<f32>) -> TensorProto {
    TensorProto { name: name.to_owned(), dims: dims.to_vec(), data_type: 1, float_data: values, ..Default::default() }
}

pub(super) fn value(name: &str, datatype: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&size| DimensionProto { dim_value: (size > 0).then_some(size) }).collect();
    let tensor_type = Some(TensorTypeProto { elem_type: datatype, shape: Some(TensorShapeProto { dim }) });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

pub(super) fn model(
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    initializers: Vec<TensorProto>,
) -> Bytes {
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let graph =
        GraphProto { node: nodes, initializer: initializers, input: inputs, output: outputs, ..Default::default() };
    let opset_import = vec![import("", 17), import("ai.onnx.ml", 3)];
    ModelProto { graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec().into()
}

fn array(data: Data) -> ArrayRef {
    match data {
        Data::Fp32(values) => Arc::new(Float32Array::from(values)),
        Data::Fp64(values) => Arc::new(Float64Array::from(values)),
        Data::Int64(values) => Arc::new(Int64Array::from(values)),
        Data::Int32(values) => Arc::new(Int32Array::from(values)),
        Data::Bool(values) => Arc::new(BooleanArray::from(values)),
        Data::Bytes(values) => Arc::new(StringArray::from_iter_values(values.iter())),
    }
}

/// Inputs of a model as a batch.
pub(super) fn batch(mut inputs: Vec<(String, HostTensor)>) -> RecordBatch {
    let columns: Vec<(String, ArrayRef)> = match inputs.as_mut_slice() {
        [(_, HostTensor { dims, data: Data::Fp32(values) })] if dims.len() == 2 => (0..dims[1])
            .map(|at| {
                let column: Vec<f32> = values.chunks_exact(dims[1]).map(|row| row[at]).collect();
                (format!("feature_{at}"), array(Data::Fp32(column)))
            })
            .collect(),
        _ => inputs
            .into_iter()
            .map(|(name, tensor)| {
                let width: usize = tensor.dims[1..].iter().product();
                let values = array(tensor.data);
                if width == 1 {
                    return (name, values);
                }
                let item = Arc::new(Field::new("item", values.data_type().clone(), true));
                (name, Arc::new(FixedSizeListArray::new(item, width as i32, values, None)) as ArrayRef)
            })
            .collect(),
    };
    RecordBatch::try_from_iter(columns).unwrap()
}
