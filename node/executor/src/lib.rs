//! Models that arrive at run time: ONNX in, Arrow batches through it, on burn's CPU backend.
//!
//! In reading order:
//! - [`model`]: a loaded model: its signature, one batch in, one batch out
//! - [`executor`]: threads, queues and the cache of loaded models; [`cost`]: what a run will take
//! - [`error`], [`limits`]: what can go wrong, and what is refused
//! - `onnx`: the file as a checked graph; `plan`: the graph as steps; `ops`, `ml`: operators as kernels
//! - `burn`: the only module tree that names burn; `value`: tensors beside it; `bind`: Arrow to tensors and back
//!
//! Always true:
//! - X1 loading any bytes gives a model or an error: no panic, and no more memory than [`Limits`] say
//! - X2 an operator that is not offered is refused at load, by name, together with all others
//! - X3 an answer does not depend on which rows share its batch, to 1e-5 relative
//! - X4 a panic inside a kernel fails that run alone
//!
//! Not here: where artifacts come from, which model answers, Python.

mod bind;
mod burn;
pub mod cost;
pub mod error;
pub mod executor;
pub mod limits;
mod ml;
pub mod model;
mod onnx;
mod ops;
mod plan;
mod value;

pub use error::{LoadError, RunError, UnsupportedOp};
pub use executor::{Executor, ModelId, Options};
pub use limits::Limits;
pub use model::{Model, Signature, TensorSpec};
pub use value::DataType;

#[cfg(test)]
mod tests;
