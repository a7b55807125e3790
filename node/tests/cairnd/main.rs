//! `cairnd` as its users meet it: real processes and the real client. One binary, because each would link everything.
//!
//! - `story_…`: what somebody does with it; [`pyarrow`], [`readme`]: what the documents promise
//! - `faults_…`: requests, bytes, files and disks that are wrong

mod faults_damage;
mod faults_disk;
mod faults_models;
mod faults_requests;
mod faults_startup;
mod faults_support;
mod faults_wire;
mod pyarrow;
mod readme;
mod story_10_sql;
mod story_11_backtest;
mod story_12_backfill;
mod story_13_tiering;
mod story_14_rebuild;
mod story_15_statements;
mod story_16_object_store;
mod story_1_definitions;
mod story_2_ingest_and_online_reads;
mod story_3_the_past;
mod story_4_training_sets;
mod story_5_models;
mod story_6_three_nodes;
mod story_7_cluster;
mod story_8_slots;
mod story_9_datasets;
mod support;
