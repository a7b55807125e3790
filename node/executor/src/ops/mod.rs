//! From a node of the graph to a kernel: attributes and operator set versions are settled here, once.
//!
//! A kernel is a closure over what is constant. Its errors are sentences without the node's name; the plan adds that.
//!
//! - [`elementwise`], [`shape`], [`reduce`], [`linear`], [`normalize`]: ai.onnx, mostly over burn
//! - [`crate::ml`]: ai.onnx.ml, our own kernels

pub(crate) mod elementwise;
pub(crate) mod linear;
mod normalize;
mod reduce;
mod shape;

use std::cell::RefCell;

use smallvec::{SmallVec, smallvec};

use crate::limits::Limits;
use crate::ml;
use crate::onnx::{Attributes, ML_DOMAIN};
use crate::value::{DataType, HostTensor, Value};

pub(crate) type Inputs = SmallVec<[Option<Value>; 4]>;
pub(crate) type Outputs = SmallVec<[Value; 2]>;
pub(crate) type Kernel = Box<dyn Fn(Inputs) -> Result<Outputs, String> + Send + Sync>;

/// Why a node has no kernel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    Unsupported(String),
    Invalid(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::Invalid(reason.to_owned())
    }
}

pub(crate) type Built = Result<Kernel, Refusal>;

/// What is known about a node when its kernel is made.
pub(crate) struct Build<'a> {
    pub attributes: Attributes<'a>,
    pub opset: i64,
    pub limits: &'a Limits,
    /// For each input, its value where that is constant.
    pub constants: Vec<Option<&'a HostTensor>>,
    /// For each input, its element type where that is known: for constants and for inputs of the model.
    pub types: Vec<Option<DataType>>,
    /// Inputs the kernel holds already and does not want at run time.
    pub absorbed: RefCell<Vec<bool>>,
    /// Memory that the kernel holds.
    pub bytes: std::cell::Cell<usize>,
}

impl<'a> Build<'a> {
    /// The constant value of an input, which the kernel then keeps itself.
    pub fn absorb(&self, at: usize) -> Option<&'a HostTensor> {
        let constant = self.constants.get(at).copied().flatten()?;
        if let Some(flag) = self.absorbed.borrow_mut().get_mut(at) {
            *flag = true;
        }
        Some(constant)
    }

    pub fn input_type(&self, at: usize) -> Option<DataType> {
        self.types.get(at).copied().flatten()
    }

    pub fn has_input(&self, at: usize) -> bool {
        self.attributes.0.input.get(at).is_some_and(|name| !name.is_empty())
    }

    pub fn has_output(&self, at: usize) -> bool {
        self.attributes.0.output.get(at).is_some_and(|name| !name.is_empty())
    }

    pub fn holds(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Whole numbers that are an attribute in old operator sets and an input in new ones.
    pub fn int_list(&self, attribute: &str, input: usize) -> Result<IntList, Refusal> {
        if let Some(values) = self.attributes.ints(attribute) {
            return Ok(IntList::Fixed(values.to_vec()));
        }
        if !self.has_input(input) {
            return Ok(IntList::Absent);
        }
        match self.absorb(input) {
            Some(tensor) => Ok(IntList::Fixed(tensor.to_i64()?)),
            None => Ok(IntList::Input(input)),
        }
    }
}

/// A list of whole numbers, known now or at run time.
pub(crate) enum IntList {
    Absent,
    Fixed(Vec<i64>),
    Input(usize),
}

impl IntList {
    pub fn read(&self, inputs: &mut Inputs) -> Result<Option<Vec<i64>>, String> {
        match self {
            Self::Absent => Ok(None),
            Self::Fixed(values) => Ok(Some(values.clone())),
            Self::Input(at) => Ok(Some(take(inputs, *at)?.into_host().to_i64()?)),
        }
    }
}

/// The input at `at`, which must be there.
pub(crate) fn take(inputs: &mut Inputs, at: usize) -> Result<Value, String> {
    inputs.get_mut(at).and_then(Option::take).ok_or_else(|| format!("input {at} is missing"))
}

pub(crate) fn one(value: impl Into<Value>) -> Result<Outputs, String> {
    Ok(smallvec![value.into()])
}

/// A possibly negative axis as an index below `rank`.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at)
        .ok()
        .filter(|&at| at < rank)
        .ok_or_else(|| format!("there is no axis {axis} in {rank} dimensions"))
}

/// A shape's sizes, refused where the tensor would be over the limit.
pub(crate) fn sized(dims: &[usize], limits_elements: usize) -> Result<usize, String> {
    dims.iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&elements| elements <= limits_elements)
        .ok_or_else(|| format!("a tensor of shape {dims:?} is over the limit of {limits_elements} elements"))
}

pub(crate) fn build(cx: &Build<'_>) -> Built {
    let node = cx.attributes.0;
    match node.domain() {
        "" => build_standard(cx, &node.op_type),
        ML_DOMAIN => ml::build(cx, &node.op_type),
        _ => Err(Refusal::Unsupported("there is no such domain here".to_owned())),
    }
}

fn build_standard(cx: &Build<'_>, op: &str) -> Built {
    if let Some(built) = elementwise::build(cx, op) {
        return built;
    }
    match op {
        "Gemm" => linear::gemm(cx),
        "MatMul" => linear::matmul(cx),
        "Flatten" => shape::flatten(cx),
        "Reshape" => shape::reshape(cx),
        "Squeeze" => shape::squeeze(cx),
        "Unsqueeze" => shape::unsqueeze(cx),
        "Concat" => shape::concat(cx),
        "Transpose" => shape::transpose(cx),
        "Slice" => shape::slice(cx),
        "Split" => shape::split(cx),
        "Gather" => shape::gather(cx),
        "ConstantOfShape" => shape::constant_of_shape(cx),
        "Shape" => shape::shape(cx),
        "Size" => Ok(Box::new(|mut i| {
            let elements = take(&mut i, 0)?.len();
            one(HostTensor::of_i64(&[], vec![elements as i64]))
        })),
        "Expand" => shape::expand(cx),
        "ArgMax" | "ArgMin" => reduce::arg(cx, op == "ArgMax"),
        "Softmax" | "LogSoftmax" => normalize::softmax(cx, op == "LogSoftmax"),
        "BatchNormalization" => normalize::batch(cx),
        "LayerNormalization" => normalize::layer(cx),
        reduce if reduce.starts_with("Reduce") => reduce::reduce(cx, reduce),
        _ => Err(Refusal::Unsupported("there is no such operator here".to_owned())),
    }
}
