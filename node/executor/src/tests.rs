//! Models against onnxruntime's answers, and what a user may do to them.

mod corrupt;
mod golden;
mod models;
mod requests;
