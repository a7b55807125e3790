//! Reading ONNX: bytes in, a checked [`Graph`] out. No operator is known here.
//!
//! Protobuf is read with our own subset of the messages ([`proto`]); unknown fields are skipped. Before that, [`scan`]
//! walks the wire format
//! and counts, so that a small file cannot ask for much memory. Always true of a [`Graph`]: names are exact, every
//! value is made once
//! and before it is used.

pub(crate) mod attributes;
pub(crate) mod proto;
mod scan;
mod tensor;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message;

use self::proto::{GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto};
use crate::error::LoadError;
use crate::limits::{Limits, RANK_MAX};
use crate::model::TensorSpec;
use crate::value::{DataType, HostTensor};

pub(crate) use self::attributes::Attributes;
pub(crate) use self::tensor::tensor_from_proto;

const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;
const ML_OPSETS: std::ops::RangeInclusive<i64> = 1..=5;
pub(crate) const ML_DOMAIN: &str = "ai.onnx.ml";

#[derive(Debug)]
pub(crate) struct Graph {
    pub opset: i64,
    pub nodes: Vec<NodeProto>,
    pub initializers: HashMap<String, HostTensor>,
    /// What the caller gives: graph inputs that no initializer fills.
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<OutputSpec>,
}

#[derive(Debug)]
pub(crate) struct OutputSpec {
    pub name: String,
    /// `None` for ZipMap's sequence of maps, and where the model does not say.
    pub tensor: Option<(DataType, Vec<i64>)>,
}

pub(crate) fn invalid(place: impl Into<String>, reason: impl Into<String>) -> LoadError {
    LoadError::InvalidModel { place: place.into(), reason: reason.into() }
}

pub(crate) fn parse(bytes: Bytes, limits: &Limits) -> Result<Graph, LoadError> {
    if bytes.len() > limits.model_bytes_max {
        let (found, limit) = (bytes.len(), limits.model_bytes_max);
        return Err(LoadError::LimitExceeded { what: "size in bytes", found, limit });
    }
    if bytes.is_empty() {
        return Err(invalid("file", "it is empty"));
    }
    scan::check(&bytes, limits)?;
    let model = ModelProto::decode(bytes).map_err(|error| invalid("protobuf", error.to_string()))?;
    let graph = model.graph.ok_or_else(|| invalid("file", "it holds no ONNX graph"))?;
    let mut opset = None;
    for import in &model.opset_import {
        match import.domain.as_str() {
            "" | "ai.onnx" => opset = Some(supported_opset("ai.onnx", import.version, OPSETS)?),
            ML_DOMAIN => drop(supported_opset(ML_DOMAIN, import.version, ML_OPSETS)?),
            _ => {} // its operators, if the graph has any, are refused by name
        }
    }
    if !model.functions.is_empty() {
        return Err(invalid("functions", "functions inside a model are not supported: inline them when exporting"));
    }
    // A model of ai.onnx.ml operators alone need not name the standard operator set.
    read_graph(graph, opset.unwrap_or(*OPSETS.end()))
}

fn supported_opset(domain: &str, version: i64, range: std::ops::RangeInclusive<i64>) -> Result<i64, LoadError> {
    if range.contains(&version) {
        return Ok(version);
    }
    let (from, to) = (range.start(), range.end());
    Err(invalid("opset_import", format!("{domain} {version} is not supported: versions {from} to {to} are")))
}

fn read_graph(graph: GraphProto, opset: i64) -> Result<Graph, LoadError> {
    if !graph.sparse_initializer.is_empty() {
        return Err(invalid("graph", "sparse initializers are not supported"));
    }
    let mut initializers = HashMap::with_capacity(graph.initializer.len());
    for proto in graph.initializer {
        let name = proto.name.clone();
        let tensor = tensor_from_proto(proto, &format!("initializer `{name}`"))?;
        if initializers.insert(name.clone(), tensor).is_some() {
            return Err(invalid(format!("initializer `{name}`"), "the name is there twice"));
        }
    }
    let mut inputs = Vec::new();
    let mut known: HashSet<&str> = initializers.keys().map(String::as_str).collect();
    let given: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !initializers.contains_key(&i.name)).collect();
    for input in given {
        let place = format!("input `{}`", input.name);
        let Some((datatype, shape)) = tensor_type(input.r#type.as_ref(), &place)? else {
            return Err(invalid(place, "it is not a tensor"));
        };
        if !known.insert(&input.name) {
            return Err(invalid(place, "the name is there twice"));
        }
        inputs.push(TensorSpec { name: input.name.clone(), datatype, shape });
    }
    let order = sort(&graph.node, &mut known)?;
    let mut outputs = Vec::new();
    for output in &graph.output {
        if !known.contains(output.name.as_str()) {
            return Err(invalid(format!("output `{}`", output.name), "nothing makes it"));
        }
        let tensor = tensor_type(output.r#type.as_ref(), &format!("output `{}`", output.name))?;
        outputs.push(OutputSpec { name: output.name.clone(), tensor });
    }
    if outputs.is_empty() {
        return Err(invalid("graph", "it has no outputs"));
    }
    let mut unsorted: Vec<Option<NodeProto>> = graph.node.into_iter().map(Some).collect();
    let nodes = order.into_iter().filter_map(|at| unsorted.get_mut(at).and_then(Option::take)).collect();
    Ok(Graph { opset, nodes, initializers, inputs, outputs })
}

/// The order in which to run nodes. ONNX asks writers to sort; not all do.
fn sort<'a>(nodes: &'a [NodeProto], known: &mut HashSet<&'a str>) -> Result<Vec<usize>, LoadError> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if known.contains(output.as_str()) || maker.insert(output, at).is_some() {
                return Err(invalid(format!("node `{}`", node.label()), format!("value `{output}` is made twice")));
            }
        }
    }
    let mut waits = vec![0usize; nodes.len()];
    let mut waiters: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for input in node.input.iter().filter(|name| !name.is_empty() && !known.contains(name.as_str())) {
            let Some(&from) = maker.get(input.as_str()) else {
                return Err(invalid(format!("node `{}`", node.label()), format!("nothing makes its input `{input}`")));
            };
            waits[at] += 1;
            waiters[from].push(at);
        }
    }
    let mut ready: std::collections::VecDeque<usize> = (0..nodes.len()).filter(|&at| waits[at] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(at) = ready.pop_front() {
        order.push(at);
        for &next in &waiters[at] {
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push_back(next);
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = (0..nodes.len()).find(|&at| waits[at] > 0).unwrap_or_default();
        return Err(invalid(
            format!("node `{}`", nodes[stuck].label()),
            "it needs its own result: the graph has a cycle",
        ));
    }
    known.extend(maker.keys());
    Ok(order)
}

/// Element type and shape (-1 = any) of a declared tensor; `None` for anything else.
fn tensor_type(declared: Option<&TypeProto>, place: &str) -> Result<Option<(DataType, Vec<i64>)>, LoadError> {
    let Some(tensor) = declared.and_then(|declared| declared.tensor_type.as_ref()) else {
        return Ok(None);
    };
    let datatype = tensor::datatype(tensor.elem_type, place)?;
    let Some(shape) = &tensor.shape else {
        return Ok(Some((datatype, vec![-1])));
    };
    if shape.dim.len() > RANK_MAX {
        let found = shape.dim.len();
        return Err(LoadError::LimitExceeded { what: "number of dimensions", found, limit: RANK_MAX });
    }
    let dims = shape.dim.iter().map(|dim| match dim.dim_value {
        Some(value) if value > 0 => value,
        // Some exporters write 0 for "not known".
        _ => -1,
    });
    Ok(Some((datatype, dims.collect())))
}
