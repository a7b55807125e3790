//! What a person at a terminal, or a script, sees of `cairn`: standard output, standard error and exit codes, against a
//! real node.

mod backtests;
mod cluster;
mod datasets;
mod definitions;
mod jobs;
mod models;
mod reads;
mod rows;
mod sql;
mod support;
mod usage;
