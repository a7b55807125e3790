//! One entry: its command decoded, answered once per request id, its rows put or its refusal recorded.

use super::rows::{counters_key, dataset_key, is_newer, job_key, loads, request_key, request_slot_key};
use super::{Row, Working, backtests, canonical, cluster, datasets, definitions, jobs, registry, slots};
use crate::catalog::Catalog;
use crate::replica::Applied;
use crate::{Error, Fatal};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::meta_command::Change;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    BeginJob, Done, MetaCommand, MetaCounters, MetaOutcome, RecordChunk, Refusal, RegisterDataset,
};
use prost::Message;

/// Of `MetaCommand`: what every node knows, and what to propose.
pub const COMMAND_VERSION: u32 = 1;
/// Of definitions with files, of which an older node would see the rest only.
pub const FILES_VERSION: u32 = 2;
/// Of jobs that load. Newest version this node applies.
pub const LOADS_VERSION: u32 = 3;
/// Request ids whose outcome is kept; older ones are forgotten in order.
pub const REQUESTS_MAX: u64 = 65_536;
/// Bytes of a request id.
const REQUEST_ID_MAX: usize = 256;

/// What a change may look at: everything before it, and its own place in the log.
pub struct Context<'a> {
    pub catalog: &'a Catalog,
    pub index: u64,
    pub now_us: i64,
}

/// An answer and the rows that make it true. An `Err` of a kind the caller can do something about is a refusal.
pub type Answer = Result<(Outcome, Vec<Row>), Error>;

/// The version of a command with this change: what a node must know to apply it.
pub fn version_of(change: &Change) -> u32 {
    match change {
        Change::ApplyDefinitions(ask) if ask.definitions.iter().any(is_newer) => FILES_VERSION,
        Change::BeginJob(BeginJob { job: Some(job) }) if loads(job) => LOADS_VERSION,
        Change::RecordChunk(RecordChunk { newest: true, .. }) => LOADS_VERSION,
        _ => COMMAND_VERSION,
    }
}

/// Applies the entry at `applied.index`, moves `applied.time_us`, returns the encoded outcome.
pub fn apply(working: &mut Working<'_>, applied: &mut Applied, command: &[u8]) -> Result<Vec<u8>, Fatal> {
    let Ok(command) = MetaCommand::decode(command) else {
        let no = Error::InvalidArgument("the command is not a record.v1.MetaCommand".to_owned());
        return Ok(encode(refusal(no)?, *applied));
    };
    let (index, version) = (applied.index, command.version);
    if !(COMMAND_VERSION..=LOADS_VERSION).contains(&version) {
        return Err(Fatal(format!(
            "meta log entry {index} is a command of version {version}, and this node knows up to version {LOADS_VERSION}; \
             run the cairnd version that the rest of the cluster runs"
        )));
    }
    let Some(change) = &command.change else {
        return Err(Fatal(format!(
            "meta log entry {index} asks for a change that this node does not know; \
             run the cairnd version that the rest of the cluster runs"
        )));
    };
    applied.time_us = applied.time_us.max(command.proposed_at_us);
    let id = &command.request_id;
    if id.is_empty() {
        return Ok(encode(answer(working, *applied, change)?, *applied));
    }
    if id.len() > REQUEST_ID_MAX || id.contains('\0') {
        let no = Error::InvalidArgument(format!("a request id has at most {REQUEST_ID_MAX} bytes, none of them zero"));
        return Ok(encode(refusal(no)?, *applied));
    }
    if let Some(Row::Request { outcome, .. }) = working.row(&request_key(id))? {
        return Ok(outcome);
    }
    let outcome = encode(answer(working, *applied, change)?, *applied);
    remember(working, id, &outcome)?;
    Ok(outcome)
}

fn answer(working: &mut Working<'_>, applied: Applied, change: &Change) -> Result<Outcome, Fatal> {
    // Not in the catalog: there may be many.
    let taken = match change {
        Change::RegisterDataset(RegisterDataset { dataset: Some(dataset) }) => {
            working.row(&dataset_key(&dataset.project, &dataset.name))?.is_some()
        }
        _ => false,
    };
    let context = Context { catalog: &working.catalog, index: applied.index, now_us: applied.time_us };
    let answer = match change {
        Change::InitCluster(ask) => cluster::init_cluster(&context, ask),
        Change::AddNode(ask) => cluster::add_node(&context, ask),
        Change::UpdateNode(ask) => cluster::update_node(&context, ask),
        Change::ChangeNodeState(ask) => cluster::change_node_state(&context, ask),
        Change::BeginSlotMove(ask) => slots::begin(&context, ask),
        Change::SwitchSlotMap(ask) => slots::switch(&context, ask.id),
        Change::EndSlotMove(ask) => slots::end(&context, ask.id),
        Change::CancelSlotMove(ask) => slots::cancel(&context, ask.id),
        Change::ApplyDefinitions(ask) => definitions::apply_definitions(&context, ask),
        Change::RegisterModelVersion(ask) => registry::register_model_version(&context, ask),
        Change::MoveAlias(ask) => registry::move_alias(&context, ask),
        Change::RegisterDataset(ask) => datasets::register(&context, ask, taken),
        Change::BeginJob(ask) => jobs::begin(&context, ask),
        Change::ChangeJob(ask) => jobs::change(&context, ask),
        Change::RecordSource(ask) => jobs::record_source(&context, ask),
        Change::RecordChunk(ask) => jobs::record_chunk(&context, ask),
        Change::RecordBacktest(ask) => backtests::record(&context, ask),
        Change::TimeTick(_) => Ok((Outcome::Done(Done {}), Vec::new())),
    };
    match answer {
        Ok((outcome, rows)) => {
            for row in &rows {
                working.put(row)?;
            }
            if let Some(id) = working.catalog.forget_job() {
                working.delete(job_key(id));
            }
            Ok(outcome)
        }
        Err(error) => refusal(error),
    }
}

/// A "no" that every replica says alike; a failure of this node's disk is no such thing.
fn refusal(error: Error) -> Result<Outcome, Fatal> {
    match error.kind() {
        ErrorKind::InvalidArgument
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Conflict
        | ErrorKind::TooLarge => {
            Ok(Outcome::Refused(Refusal { kind: error.kind().as_str().to_owned(), message: error.to_string() }))
        }
        _ => Err(error.into()),
    }
}

fn encode(outcome: Outcome, applied: Applied) -> Vec<u8> {
    let outcome = MetaOutcome { outcome: Some(outcome), index: applied.index, applied_us: applied.time_us };
    canonical::outcome(&outcome)
}

/// Keeps the outcome, in the place of the one [`REQUESTS_MAX`] requests ago.
fn remember(working: &mut Working<'_>, id: &str, outcome: &[u8]) -> Result<(), Fatal> {
    let requests = match working.row(&counters_key())? {
        Some(Row::Counters(counters)) => counters.requests,
        _ => 0,
    };
    let slot = (requests % REQUESTS_MAX) as u32;
    if let Some(Row::RequestSlot { id: oldest, .. }) = working.row(&request_slot_key(slot))? {
        working.delete(request_key(&oldest));
    }
    working.put(&Row::Request { id: id.to_owned(), outcome: outcome.to_vec() })?;
    working.put(&Row::RequestSlot { slot, id: id.to_owned() })?;
    working.put(&Row::Counters(MetaCounters { requests: requests + 1 }))?;
    Ok(())
}
