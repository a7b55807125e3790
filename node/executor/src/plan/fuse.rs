//! Finds product, bias and activation in a row, to run as one step.

use std::collections::HashMap;

use crate::burn::elementwise::Unary;
use crate::onnx::proto::NodeProto;
use crate::onnx::{Attributes, Graph};
use crate::ops::linear::{Epilogue, Weights, bias_of};
use crate::value::HostTensor;

/// For each value, the one node that reads it; none where several do or where the model gives it out.
pub(super) struct Readers<'a> {
    only: HashMap<&'a str, Option<usize>>,
}

impl<'a> Readers<'a> {
    pub fn of(graph: &'a Graph) -> Self {
        let mut only: HashMap<&str, Option<usize>> = HashMap::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            for name in &node.input {
                only.entry(name).and_modify(|reader| *reader = None).or_insert(Some(at));
            }
        }
        for output in &graph.outputs {
            only.insert(&output.name, None);
        }
        Self { only }
    }

    fn of_value(&self, name: &str) -> Option<usize> {
        self.only.get(name).copied().flatten()
    }
}

pub(super) struct Chain<'a> {
    pub weights: Weights,
    pub epilogue: Epilogue,
    /// Gemm takes matrices only; MatMul any number of rows in any dimensions.
    pub matrix_only: bool,
    /// The value that the last of them makes.
    pub output: &'a str,
    /// The nodes behind the first that need no step of their own.
    pub nodes: Vec<usize>,
    pub bytes: usize,
}

/// The chain that starts at a node, where it is Gemm or MatMul with constant weights in FP32.
pub(super) fn chain<'a, 'k>(
    graph: &'a Graph,
    at: usize,
    readers: &Readers<'_>,
    known: &dyn Fn(&str) -> Option<&'k HostTensor>,
) -> Option<Chain<'a>> {
    let node = graph.nodes.get(at).filter(|node| node.domain().is_empty())?;
    let attributes = Attributes(node);
    let (x, w) = (node.input.first()?, node.input.get(1)?);
    if known(x).is_some() {
        return None; // all of it is constant, and folded
    }
    let mut epilogue = Epilogue::default();
    let is_gemm = match node.op_type.as_str() {
        "Gemm" if !attributes.flag("transA", false) => true,
        "MatMul" => false,
        _ => return None,
    };
    let weights = if is_gemm {
        Weights::of(known(w)?, attributes.flag("transB", false), attributes.float("alpha", 1.0))?
    } else {
        Weights::of(known(w)?, false, 1.0)?
    };
    if is_gemm && let Some(c) = node.input.get(2).filter(|name| !name.is_empty()) {
        epilogue.bias = Some(bias_of(known(c)?, weights.outputs(), attributes.float("beta", 1.0))?);
    }
    let mut output = node.output.first()?.as_str();
    let mut nodes = Vec::new();
    if let Some((next, add)) = next(graph, readers, output, "Add").filter(|_| epilogue.bias.is_none()) {
        let other = add.input.iter().find(|name| *name != output)?;
        // Two dimensions would give a vector a dimension more.
        let bias = known(other).filter(|bias| bias.dims.len() < 2);
        if let Some(bias) = bias.and_then(|bias| bias_of(bias, weights.outputs(), 1.0)) {
            epilogue.bias = Some(bias);
            nodes.push(next);
            output = add.output.first()?;
        }
    }
    let reader = readers.of_value(output).and_then(|next| Some((next, graph.nodes.get(next)?)));
    if let Some((next, node)) = reader
        && let Some(activation) = activation(node)
    {
        epilogue.activation = Some(activation);
        nodes.push(next);
        output = node.output.first()?;
    }
    let bytes = weights.tensor.bytes() + epilogue.bias.as_ref().map_or(0, |bias| bias.len() * 4);
    Some(Chain { weights, epilogue, matrix_only: is_gemm, output, nodes, bytes })
}

fn next<'a>(graph: &'a Graph, readers: &Readers<'_>, value: &str, op: &str) -> Option<(usize, &'a NodeProto)> {
    let at = readers.of_value(value)?;
    let node = graph.nodes.get(at)?;
    (node.domain().is_empty() && node.op_type == op && node.input.len() == 2).then_some((at, node))
}

fn activation(node: &NodeProto) -> Option<Unary> {
    let attributes = Attributes(node);
    match (node.domain(), node.op_type.as_str()) {
        ("", "Relu") => Some(Unary::Relu),
        ("", "LeakyRelu") => Some(Unary::LeakyRelu(attributes.float("alpha", 0.01))),
        ("", "Elu") => Some(Unary::Elu(attributes.float("alpha", 1.0))),
        ("", "Sigmoid") => Some(Unary::Sigmoid),
        ("", "Tanh") => Some(Unary::Tanh),
        _ => None,
    }
}
