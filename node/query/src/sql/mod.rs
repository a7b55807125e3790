//! SQL over everything, read-only: DataFusion over the rows of this node and what the registry holds.
//!
//! In reading order: `names` (which tables and functions there are), `rows` (rows of a feature view as a table),
//! `system` (the registry as tables), `parameters` (values for `$1`), `aggregate` (aggregates over rows at hand), `bounds`
//! (what is too much to plan).
//!
//! Always true:
//! - a query has a session of its own over one catalog; nothing it does is seen by the next
//! - it reads what its shards hold when it comes to them, each at one moment; a slot that moves to another shard
//!   meanwhile ends it with an error and never loses or doubles rows
//! - sorts, joins and aggregates take their memory from one bounded pool and spill; a query ends when nobody reads it

mod aggregate;
mod bounds;
mod names;
mod parameters;
mod rows;
mod system;
#[cfg(test)]
mod tests;

pub use aggregate::{Aggregate, Aggregated, GROUP};
pub use bounds::TABLES_MAX;
pub(crate) use bounds::check as check_bounds;
pub use parameters::{PARAMETERS_MAX, Parameter};

use crate::source::ShardedSource;
use crate::{Error, Result};
use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use cairn_storage::catalog::Catalog;
use cairn_storage::meta::Meta;
use datafusion::common::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::sqlparser::parser::ParserError;
use futures::StreamExt;
use names::{AsOf, History, Latest, Schemas};
use parameters::Bound;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest text of a query, bytes.
pub const SQL_BYTES_MAX: usize = 32 << 10;
/// Rows of a batch.
const BATCH_ROWS: usize = 8_192;
/// Name of the one catalog, as database tools show it.
pub const CATALOG: &str = "cairn";
/// Schema of the tables about definitions, models and nodes.
pub const SYSTEM: &str = "system";

/// What all queries of a node may take together.
#[derive(Debug, Clone)]
pub struct SqlLimits {
    /// Memory of sorts, joins and aggregates, bytes.
    pub memory_bytes: usize,
    /// Disk they may spill to, bytes.
    pub spill_bytes: u64,
    /// Where to; emptied when it is opened.
    pub spill_dir: PathBuf,
    /// Parts of one query that run side by side.
    pub partitions: usize,
}

/// Runs queries. One for a node.
pub struct SqlEngine {
    runtime: Arc<RuntimeEnv>,
    partitions: usize,
    meta: Option<Arc<Meta>>,
}

impl std::fmt::Debug for SqlEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlEngine").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

/// A query that was understood.
pub struct Query {
    frame: DataFrame,
    schema: SchemaRef,
    parameters: Schema,
    bound: bool,
}

impl SqlEngine {
    /// # Errors
    /// `Internal` when the folder for spilled rows cannot be made.
    pub fn new(limits: &SqlLimits) -> Result<Self> {
        let cannot = |error: std::io::Error| Error::Internal(format!("{}: {error}", limits.spill_dir.display()));
        match std::fs::remove_dir_all(&limits.spill_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => std::fs::create_dir_all(&limits.spill_dir).map_err(cannot)?,
        }
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![limits.spill_dir.clone()]))
            .with_max_temp_directory_size(limits.spill_bytes);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(limits.memory_bytes)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(|error| told(&error))?;
        Ok(Self { runtime, partitions: limits.partitions.max(1), meta: None })
    }

    /// With the tables of what `meta` keeps beside its catalog.
    #[must_use]
    pub fn with_meta(self, meta: Arc<Meta>) -> Self {
        Self { meta: Some(meta), ..self }
    }

    /// A session within the engine's limits, in which times are UTC.
    pub(crate) fn session(&self, config: SessionConfig) -> SessionContext {
        let mut config = config.with_batch_size(BATCH_ROWS);
        config.options_mut().execution.time_zone = Some("+00:00".to_owned());
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.runtime))
            .build();
        SessionContext::new_with_state(state)
    }

    /// Understands one query. Names without a schema are of `project`.
    ///
    /// - `values`: of its parameters; without them a query that has some can be described and not run
    ///
    /// # Errors
    /// `InvalidArgument` for what is no query, writes, names what is not there, or has other parameters; `TooLarge`.
    pub async fn plan(
        &self,
        sql: &str,
        project: &str,
        catalog: &Arc<Catalog>,
        source: &Arc<ShardedSource>,
        values: Option<&[Parameter]>,
    ) -> Result<Query> {
        if sql.len() > SQL_BYTES_MAX {
            return Err(Error::TooLarge(format!("the query is over the limit of {SQL_BYTES_MAX} bytes")));
        }
        let bound = Bound::default();
        let (frame, count) = understood(&self.context(project, catalog, source, &bound), sql).await?;
        let types = bound.types(count, frame.logical_plan())?;
        let (frame, is_bound) = match values {
            Some(values) => {
                let values = Bound::new(&types, values)?;
                let frame = match bound.is_in_tables() {
                    true => understood(&self.context(project, catalog, source, &values), sql).await?.0,
                    false => frame,
                };
                let (state, plan) = frame.into_parts();
                (DataFrame::new(state, values.put_into(plan)?), true)
            }
            None => (frame, types.is_empty()),
        };
        let schema = Arc::new(frame.schema().as_arrow().clone());
        Ok(Query { frame, schema, parameters: parameters::schema(&types), bound: is_bound })
    }

    fn context(
        &self,
        project: &str,
        catalog: &Arc<Catalog>,
        source: &Arc<ShardedSource>,
        bound: &Bound,
    ) -> SessionContext {
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, project)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(self.partitions);
        let context = self.session(config);
        let (catalog, source, meta) = (Arc::clone(catalog), Arc::clone(source), self.meta.clone());
        let schemas = Schemas { catalog, source, meta, project: project.to_owned(), bound: bound.clone() };
        context.register_udtf("latest", Arc::new(Latest(schemas.clone())));
        context.register_udtf("history", Arc::new(History(schemas.clone())));
        context.register_udtf("as_of", Arc::new(AsOf(schemas.clone())));
        context.register_catalog(CATALOG, Arc::new(schemas));
        context
    }
}

/// One query that only reads, and no larger than may be planned; how many parameters it has.
async fn understood(context: &SessionContext, sql: &str) -> Result<(DataFrame, usize)> {
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let mut statement = state.sql_to_statement(sql, &dialect).map_err(|error| told(&error))?;
    check_bounds(&statement)?;
    let count = parameters::number(&mut statement)?;
    let plan = state.statement_to_plan(statement).await.map_err(|error| told(&error))?;
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&plan).map_err(|error| told(&error))?;
    Ok((DataFrame::new(state, plan), count))
}

/// All tables, with schema and columns, in name order: what database tools browse.
///
/// # Errors
/// `Internal` when the catalog contradicts itself.
pub fn tables(catalog: &Arc<Catalog>, source: &Arc<ShardedSource>) -> Result<Vec<(String, String, Schema)>> {
    let (catalog, source) = (Arc::clone(catalog), Arc::clone(source));
    let schemas = Schemas { catalog, source, meta: None, project: String::new(), bound: Bound::default() };
    schemas.tables()
}

impl Query {
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Its parameters as columns, in order; one that may be of any type has the type `Null`.
    pub fn parameters(&self) -> &Schema {
        &self.parameters
    }

    /// Runs it, and hands batch after batch to `out` until that says `false`. Dropping this future ends the query.
    ///
    /// # Errors
    /// `InvalidArgument` when parameters have no values. What went wrong on the way: `TooLarge` when memory or disk for it ran
    /// out; what `out` reports.
    pub async fn run<F>(self, mut out: impl FnMut(RecordBatch) -> F) -> Result<()>
    where
        F: Future<Output = Result<bool>>,
    {
        if !self.bound {
            let taken = parameters::taken(self.parameters.fields().len());
            return Err(Error::InvalidArgument(format!(
                "the query takes {taken}, and no values were bound; prepare it, and bind a row with one value for each"
            )));
        }
        let mut batches = self.frame.execute_stream().await.map_err(|error| told(&error))?;
        while let Some(batch) = batches.next().await {
            if !out(batch.map_err(|error| told(&error))?).await? {
                break;
            }
        }
        Ok(())
    }
}

/// One line that says what is wrong with a query, and whose fault it is.
pub(crate) fn told(error: &DataFusionError) -> Error {
    if let Some(ours) = ours(error) {
        return ours;
    }
    let root = error.find_root();
    if let DataFusionError::SQL(error, _) = root
        && matches!(**error, ParserError::RecursionLimitExceeded)
    {
        return Error::TooLarge("the query is nested too deep".to_owned());
    }
    let line = line(root);
    match root {
        DataFusionError::ResourcesExhausted(_) => Error::TooLarge(format!(
            "the query needs more than this node gives to SQL: {line}; read fewer rows or columns, or raise \
             --sql-memory-mib"
        )),
        DataFusionError::Internal(_)
        | DataFusionError::IoError(_)
        | DataFusionError::ExecutionJoin(_)
        | DataFusionError::External(_) => Error::Internal(line),
        _ => Error::InvalidArgument(line),
    }
}

/// What DataFusion says, without where in itself it found out.
fn line(error: &DataFusionError) -> String {
    const PLACES: [&str; 6] = [
        "Error during planning: ",
        "Execution error: ",
        "Schema error: ",
        "Arrow error: ",
        "sql parser error: ",
        "This feature is not implemented: ",
    ];
    let text = match error {
        DataFusionError::SQL(error, _) => error.to_string(),
        error => error.strip_backtrace(),
    };
    let mut line = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    while let Some(rest) = PLACES.iter().find_map(|place| line.strip_prefix(place)) {
        line = rest.to_owned();
    }
    if let Some((what, which)) = line.split_once(" not supported: ")
        && ["DDL", "DML", "Statement"].contains(&what)
    {
        return format!("SQL here reads and changes nothing; {which} is refused");
    }
    if line.starts_with("table '") && line.ends_with("' not found") {
        line.push_str("; `SHOW TABLES` lists what there is");
    }
    line
}

/// An error of this crate that came through DataFusion.
fn ours(error: &DataFusionError) -> Option<Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(Failed(kind, message)) = error.downcast_ref() {
            return Some(kind(message.clone()));
        }
        next = error.source();
    }
    None
}

/// An error of this crate on its way through DataFusion.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{1}")]
struct Failed(fn(String) -> Error, String);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        use cairn_proto::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => Error::NotFound,
            ErrorKind::InvalidArgument => Error::InvalidArgument,
            ErrorKind::TooLarge => Error::TooLarge,
            ErrorKind::Unavailable => Error::Unavailable,
            _ => Error::Internal,
        };
        Self(kind, error.to_string())
    }
}

pub(crate) fn external(error: impl Into<Error>) -> DataFusionError {
    DataFusionError::External(Box::new(Failed::from(error.into())))
}
