//! Definitions as users write them: YAML files in, one replicated change out.
//!
//! - [`parse`]: files to definitions, each with its place (file, line)
//! - [`resolve`]: all of them checked together against what the project already has; versions as storage would make them
//! - [`diff`]: what would change, in words
//!
//! Nothing here changes anything: the outcome is a [`resolve::Plan`], which carries the command for the meta group.

pub mod diff;
pub mod parse;
pub mod resolve;

#[cfg(test)]
mod tests;

pub use parse::Problem;
pub use resolve::{Plan, plan};
