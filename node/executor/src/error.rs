//! What can go wrong when a model is loaded or run.

/// The artifact is not a model that this executor can run. Nothing was loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// Bytes that are not ONNX, or a graph that contradicts itself.
    #[error("the model is not valid: {place}: {reason}")]
    InvalidModel { place: String, reason: String },
    /// Every operator of the graph that is not offered, not only the first.
    #[error("the model needs operators that are not supported: {}", list(.0))]
    UnsupportedOps(Vec<UnsupportedOp>),
    /// A tensor of an element type that is not offered.
    #[error("{place} has element type {datatype}, and FP32, FP64, INT64, INT32, BOOL and BYTES are supported")]
    UnsupportedType { place: String, datatype: String },
    #[error("the model is over a limit: {what} is {found}, and at most {limit} is taken")]
    LimitExceeded { what: &'static str, found: usize, limit: usize },
    /// A kernel panicked while the plan was made: our bug.
    #[error("loading the model failed inside a kernel: {0}")]
    ModelFault(String),
}

fn list(ops: &[UnsupportedOp]) -> String {
    ops.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One node whose operator, or whose use of it, is not offered.
#[derive(Debug, Clone, PartialEq)]
pub struct UnsupportedOp {
    /// Empty for the standard operators.
    pub domain: String,
    pub op: String,
    pub node: String,
    pub reason: String,
}

impl std::fmt::Display for UnsupportedOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { &self.domain };
        write!(f, "`{domain}.{}` (node `{}`): {}", self.op, self.node, self.reason)
    }
}

/// One run failed. The model stays loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The batch does not fit the model's signature.
    #[error("{0}")]
    BadInput(String),
    /// A value that the model's type has no place for. `row` counts from 0.
    #[error("column `{column}`, row {row}: {reason}")]
    BadValue { column: String, row: usize, reason: String },
    /// The model's own steps do not fit together for this input.
    #[error("step `{node}` of the model failed: {reason}")]
    Step { node: String, reason: String },
    /// The model gave something that is not one value or vector for each row.
    #[error("{0}")]
    BadOutput(String),
    #[error("{queued} rows wait for this executor, and at most {limit} may: try again")]
    Overloaded { queued: usize, limit: usize },
    /// A kernel panicked: our bug, or a model that should not have loaded.
    #[error("the model failed inside a kernel: {0}")]
    ModelFault(String),
    /// The executor was dropped before it came to this request.
    #[error("the executor is stopping")]
    Stopped,
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}
