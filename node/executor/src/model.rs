//! A loaded model: bytes in once, then batches through it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use bytes::Bytes;

use crate::bind;
use crate::cost::Cost;
use crate::error::{LoadError, RunError, panic_message};
use crate::limits::Limits;
use crate::onnx::{self, OutputSpec};
use crate::plan::{Output, Plan};
use crate::value::{DataType, HostTensor, Value};

/// What a model takes and gives, with the model's own names.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: DataType,
    /// -1 for any size.
    pub shape: Vec<i64>,
}

/// Immutable, and shared between threads.
pub struct Model {
    signature: Signature,
    plan: Plan,
    pub(crate) cost: Cost,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("signature", &self.signature).field("bytes", &self.memory_bytes()).finish()
    }
}

impl Model {
    /// Reads an ONNX file: operator sets 7 to 24, and ai.onnx.ml 1 to 5.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing is kept then.
    pub fn load(bytes: Bytes, limits: &Limits) -> Result<Self, LoadError> {
        // Folding constants runs kernels, so a panic is as possible here as in a run.
        catch_unwind(AssertUnwindSafe(|| Self::read(bytes, limits)))
            .unwrap_or_else(|panic| Err(LoadError::ModelFault(panic_message(&*panic))))
    }

    fn read(bytes: Bytes, limits: &Limits) -> Result<Self, LoadError> {
        let graph = onnx::parse(bytes, limits)?;
        let plan = Plan::compile(&graph, limits)?;
        let outputs = graph.outputs.iter().zip(plan.outputs()).map(|(spec, output)| output_spec(spec, output));
        let signature = Signature { outputs: outputs.collect::<Result<_, _>>()?, inputs: graph.inputs };
        Ok(Self { signature, plan, cost: Cost::default() })
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Memory that the model holds while loaded: weights and trees.
    pub fn memory_bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// Whether rows of several requests may run as one batch: not where the model fixes its number of rows.
    pub fn takes_any_rows(&self) -> bool {
        self.signature.inputs.iter().all(|input| input.shape.first().is_none_or(|&rows| rows < 0))
    }

    /// Answers each row of `input`.
    ///
    /// - a model with one input of two dimensions takes the columns in order: N rows of F features. Numbers, booleans
    ///   and times become the model's type; a fixed-size list stands for as many features as it is long
    /// - any other model finds each input as the column of that name; columns that no input names are ignored
    /// - a null is NaN where the model takes floating point numbers, and an error elsewhere
    /// - returns: N rows, one column for each output, named as in the model: a scalar for `[N]` and `[N, 1]`, else a
    ///   fixed-size list. A map of classes (ZipMap) is a list in the order of the classes, which stand as JSON in the
    ///   field's metadata under `classes`
    ///
    /// # Errors
    /// See [`RunError`]. The model stays as it was.
    pub fn run(&self, input: &RecordBatch) -> Result<RecordBatch, RunError> {
        let rows = input.num_rows();
        let bound = bind::inputs(&self.signature.inputs, input)?;
        // A step may have no meaning for no rows, so one row of zeros stands in; its answer is cut off below.
        let bound = if rows == 0 { bound.into_iter().map(bind::one_row).collect() } else { bound };
        let outputs = self.run_tensors(bound)?;
        let answers = bind::outputs(&self.signature.outputs, self.plan.outputs(), outputs, rows.max(1))?;
        Ok(answers.slice(0, rows))
    }

    /// Tensors in signature order, through the plan.
    pub(crate) fn run_tensors(&self, inputs: Vec<HostTensor>) -> Result<Vec<HostTensor>, RunError> {
        let inputs = inputs.into_iter().map(Value::from).collect();
        catch_unwind(AssertUnwindSafe(|| self.plan.run(inputs)))
            .unwrap_or_else(|panic| Err(RunError::ModelFault(panic_message(&*panic))))
    }

    #[cfg(test)]
    pub(crate) fn of_plan(signature: Signature, plan: Plan) -> Self {
        Self { signature, plan, cost: Cost::default() }
    }
}

fn output_spec(spec: &OutputSpec, output: &Output) -> Result<TensorSpec, LoadError> {
    let (datatype, shape) = match (&output.classes, &spec.tensor) {
        (Some(classes), _) => (DataType::Fp32, vec![-1, classes.len() as i64]),
        (None, Some(tensor)) => tensor.clone(),
        (None, None) => {
            let place = format!("output `{}`", spec.name);
            return Err(onnx::invalid(place, "its type is not a tensor and not made by ZipMap"));
        }
    };
    Ok(TensorSpec { name: spec.name.clone(), datatype, shape })
}
