//! A graph compiled to steps over numbered slots.
//!
//! Constants are folded and lifted to the device once; a value is handed over, not copied, where a step is its last
//! reader, so that burn can
//! work in place. Immutable once made: any number of threads run it at once.

mod fuse;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use smallvec::SmallVec;

use crate::error::{LoadError, RunError, UnsupportedOp};
use crate::limits::Limits;
use crate::ml::{Labels, labels::zip_map_labels};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Attributes, Graph, ML_DOMAIN, invalid};
use crate::ops::{self, Build, Inputs, Kernel, Refusal};
use crate::value::{Data, DataType, HostTensor, Value};

struct Step {
    kernel: Kernel,
    inputs: SmallVec<[Option<usize>; 4]>,
    /// Which inputs nobody reads after this step.
    last: SmallVec<[bool; 4]>,
    outputs: SmallVec<[Option<usize>; 2]>,
    node: String,
}

pub(crate) struct Plan {
    steps: Vec<Step>,
    /// What each slot holds before the first step: constants.
    constants: Vec<Option<Value>>,
    /// Slots of the model's inputs, in signature order.
    inputs: Vec<usize>,
    outputs: Vec<Output>,
    bytes: usize,
}

pub(crate) struct Output {
    slot: usize,
    /// The classes of its columns, where it comes from a ZipMap.
    pub classes: Option<Labels>,
}

/// Makes slots as names appear.
#[derive(Default)]
struct Slots<'a> {
    by_name: HashMap<&'a str, usize>,
}

impl<'a> Slots<'a> {
    fn of(&mut self, name: &'a str) -> usize {
        let next = self.by_name.len();
        *self.by_name.entry(name).or_insert(next)
    }
}

impl Plan {
    pub fn compile(graph: &Graph, limits: &Limits) -> Result<Self, LoadError> {
        let mut slots = Slots::default();
        let mut constants: HashMap<usize, HostTensor> = HashMap::new();
        let mut types: HashMap<usize, DataType> = HashMap::new();
        for (name, tensor) in &graph.initializers {
            constants.insert(slots.of(name), tensor.clone());
        }
        let inputs: Vec<usize> = graph.inputs.iter().map(|input| slots.of(&input.name)).collect();
        types.extend(inputs.iter().zip(&graph.inputs).map(|(&slot, input)| (slot, input.datatype)));
        let mut steps: Vec<Step> = Vec::new();
        let mut unsupported = Vec::new();
        let mut classes: HashMap<usize, Labels> = HashMap::new();
        let mut bytes = 0;
        let readers = fuse::Readers::of(graph);
        let mut fused = vec![false; graph.nodes.len()];
        for (at, node) in graph.nodes.iter().enumerate() {
            if fused[at] {
                continue;
            }
            let refuse = |reason: String| invalid(format!("node `{}` ({})", node.label(), node.op_type), reason);
            if node.domain().is_empty() && node.op_type == "Constant" {
                let value = constant(Attributes(node)).map_err(refuse)?;
                let Some(name) = node.output.first() else {
                    return Err(refuse("it has no output".to_owned()));
                };
                constants.insert(slots.of(name), value);
                continue;
            }
            let step_inputs: SmallVec<[Option<usize>; 4]> =
                node.input.iter().map(|name| (!name.is_empty()).then(|| slots.of(name))).collect();
            let known = |name: &str| slots.by_name.get(name).and_then(|slot| constants.get(slot));
            if let Some(chain) = fuse::chain(graph, at, &readers, &known) {
                bytes += chain.bytes;
                chain.nodes.iter().for_each(|&at| fused[at] = true);
                let kernel = ops::linear::linear(chain.weights, chain.epilogue, chain.matrix_only, limits.elements_max);
                let kernel = kernel.map_err(refuse)?;
                let outputs = SmallVec::from_slice(&[Some(slots.of(chain.output))]);
                let node = node.label().to_owned();
                steps.push(Step { kernel, inputs: step_inputs[..1].into(), last: SmallVec::new(), outputs, node });
                continue;
            }
            let build = Build {
                attributes: Attributes(node),
                opset: graph.opset,
                limits,
                constants: step_inputs.iter().map(|slot| slot.and_then(|slot| constants.get(&slot))).collect(),
                types: step_inputs
                    .iter()
                    .map(|slot| {
                        let slot = (*slot)?;
                        types.get(&slot).copied().or_else(|| Some(constants.get(&slot)?.data.datatype()))
                    })
                    .collect(),
                absorbed: RefCell::new(vec![false; node.input.len()]),
                bytes: Cell::new(0),
            };
            let kernel = match ops::build(&build) {
                Ok(kernel) => kernel,
                Err(Refusal::Invalid(reason)) => return Err(refuse(reason)),
                Err(Refusal::Unsupported(reason)) => {
                    unsupported.push(unsupported_op(node, reason));
                    // What it makes is unknown; the rest of the graph is still looked at, to name everything at once.
                    for name in &node.output {
                        slots.of(name);
                    }
                    continue;
                }
            };
            bytes += build.bytes.get();
            let absorbed = build.absorbed.take();
            let foldable = !step_inputs.is_empty()
                && build.constants.iter().zip(&step_inputs).all(|(c, s)| s.is_none() || c.is_some());
            if foldable && unsupported.is_empty() {
                let arguments: Inputs = build.constants.iter().map(|tensor| tensor.cloned().map(Value::from)).collect();
                let results = kernel(arguments).map_err(refuse)?;
                for (name, value) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
                    constants.insert(slots.of(name), value.into_host());
                }
                continue;
            }
            let step_inputs =
                step_inputs.into_iter().zip(absorbed).map(|(slot, held)| slot.filter(|_| !held)).collect();
            let outputs: SmallVec<[Option<usize>; 2]> =
                node.output.iter().map(|name| (!name.is_empty()).then(|| slots.of(name))).collect();
            if node.domain() == ML_DOMAIN
                && node.op_type == "ZipMap"
                && let Some(slot) = outputs.first().copied().flatten()
            {
                classes.insert(slot, zip_map_labels(Attributes(node)).map_err(refuse)?);
            }
            steps.push(Step {
                kernel,
                inputs: step_inputs,
                last: SmallVec::new(),
                outputs,
                node: node.label().to_owned(),
            });
        }
        if !unsupported.is_empty() {
            return Err(LoadError::UnsupportedOps(unsupported));
        }
        let outputs: Vec<Output> = graph
            .outputs
            .iter()
            .map(|output| {
                let slot = slots.of(&output.name);
                Output { slot, classes: classes.remove(&slot) }
            })
            .collect();
        mark_last_readers(&mut steps, &outputs, slots.by_name.len());
        let mut lifted = vec![None; slots.by_name.len()];
        let read =
            steps.iter().flat_map(|step| step.inputs.iter().copied().flatten()).chain(outputs.iter().map(|o| o.slot));
        for slot in read {
            if let Some(tensor) = constants.remove(&slot) {
                bytes += tensor.bytes();
                let value = Value::from(tensor);
                lifted[slot] = Some(match value.datatype() {
                    DataType::Bytes => value,
                    _ if value.len() == 0 => value,
                    _ => Value::Dev(value.into_dev().map_err(|reason| invalid("constants", reason))?),
                });
            }
        }
        Ok(Self { steps, constants: lifted, inputs, outputs, bytes })
    }

    /// One step from one input to one output.
    #[cfg(test)]
    pub fn of_kernel(kernel: Kernel) -> Self {
        let (inputs, outputs) = (SmallVec::from_slice(&[Some(0)]), SmallVec::from_slice(&[Some(1)]));
        let step = Step { kernel, inputs, last: SmallVec::from_slice(&[true]), outputs, node: "only".to_owned() };
        let output = Output { slot: 1, classes: None };
        Self { steps: vec![step], constants: vec![None, None], inputs: vec![0], outputs: vec![output], bytes: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Runs all steps. `inputs` in signature order.
    pub fn run(&self, inputs: Vec<Value>) -> Result<Vec<HostTensor>, RunError> {
        let mut slots = self.constants.clone();
        for (&slot, value) in self.inputs.iter().zip(inputs) {
            slots[slot] = Some(value);
        }
        for step in &self.steps {
            let mut arguments = Inputs::new();
            for (slot, last) in step.inputs.iter().zip(&step.last) {
                arguments.push(match slot {
                    Some(slot) if *last => slots[*slot].take(),
                    Some(slot) => slots[*slot].clone(),
                    None => None,
                });
            }
            let results =
                (step.kernel)(arguments).map_err(|reason| RunError::Step { node: step.node.clone(), reason })?;
            for (slot, value) in step.outputs.iter().zip(results) {
                if let Some(slot) = slot {
                    slots[*slot] = Some(value);
                }
            }
        }
        let take = |output: &Output| {
            let value = slots[output.slot].clone();
            value.map(Value::into_host).ok_or_else(|| RunError::BadOutput("a step left out an output".to_owned()))
        };
        self.outputs.iter().map(take).collect()
    }
}

fn unsupported_op(node: &NodeProto, reason: String) -> UnsupportedOp {
    let (domain, op) = (node.domain().to_owned(), node.op_type.clone());
    UnsupportedOp { domain, op, node: node.label().to_owned(), reason }
}

/// A value is given away by the last step that reads it, at the last input where it does.
fn mark_last_readers(steps: &mut [Step], outputs: &[Output], slots: usize) {
    let mut read_later = vec![false; slots];
    outputs.iter().for_each(|output| read_later[output.slot] = true);
    for step in steps.iter_mut().rev() {
        let mut last = SmallVec::from_elem(false, step.inputs.len());
        for (at, slot) in step.inputs.iter().enumerate().rev() {
            if let Some(slot) = slot {
                last[at] = !std::mem::replace(&mut read_later[*slot], true);
            }
        }
        step.last = last;
    }
}

/// The value of a Constant node.
fn constant(attributes: Attributes<'_>) -> Result<HostTensor, String> {
    if let Some(tensor) = attributes.tensor("value")? {
        return Ok(tensor);
    }
    if attributes.has("value_float") {
        return Ok(HostTensor::of_f32(&[], vec![attributes.float("value_float", 0.0)]));
    }
    if attributes.has("value_int") {
        return Ok(HostTensor::of_i64(&[], vec![attributes.int("value_int", 0)]));
    }
    if let Some(values) = attributes.floats("value_floats") {
        return Ok(HostTensor::of_f32(&[values.len()], values.to_vec()));
    }
    if let Some(values) = attributes.ints("value_ints") {
        return Ok(HostTensor::of_i64(&[values.len()], values.to_vec()));
    }
    if attributes.has("value_string") {
        let value = attributes.string("value_string", "")?;
        return Ok(HostTensor::new([].as_slice(), Data::Bytes(vec![value.into()])));
    }
    if let Some(values) = attributes.strings("value_strings")? {
        return Ok(HostTensor::new([values.len()].as_slice(), Data::Bytes(values)));
    }
    Err("it has no value that is supported".to_owned())
}
