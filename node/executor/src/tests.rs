//! Models against onnxruntime's answers, and what a user may do to them.

mod corrupt;
pub(crate) mod golden;
mod models;
mod requests;
