//! SQL apart from serving: threads of its own that the operating system puts behind all others, and limits on time, rows,
//! memory and how many run. Joins of training sets and backtests run there, too.

use crate::config::SqlConfig;
use crate::error::{Error, Result};
use crate::node::Node;
use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use cairn_proto::ErrorKind;
use cairn_proto::command::{Level, Read};
use cairn_query::sql::{Aggregate, Aggregated, Parameter, Query, SqlEngine, SqlLimits, TABLES_MAX};
use cairn_storage::meta::Meta;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thread_priority::{ThreadPriority, set_current_thread_priority};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Queries running side by side; more wait their turn.
const QUERIES_MAX: usize = 4;
/// How long one waits for its turn.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Batches a query may be ahead of its reader.
const BATCHES_AHEAD: usize = 2;
/// Of a planning thread; only what is used takes memory. Planners recurse, once for each term of the longest query.
const STACK_BYTES: usize = 64 << 20;
pub const THREADS_MAX: usize = 8;
/// Beside scans: for what operators write to disk.
const SPILLING_THREADS: usize = 64;
/// From 0 to 99, of which serving has 49: a niceness of 10.
const BEHIND: u8 = 22;

/// A query, and what it needs to be understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub sql: String,
    /// Of names without one.
    pub project: String,
    /// Values of its parameters, once they are bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Vec<Parameter>>,
}

/// What a query answers with, and what it wants before.
pub struct Described {
    pub schema: SchemaRef,
    pub parameters: Schema,
}

/// A query's schema and, batch after batch, its rows.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: mpsc::Receiver<Result<RecordBatch>>,
}

#[derive(Debug)]
pub struct Sql {
    engine: Arc<SqlEngine>,
    config: SqlConfig,
    places: Arc<Semaphore>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Sql {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Sql {
    /// Spills to a folder of `data_dir`.
    ///
    /// # Errors
    /// `Internal` when the folder or the threads cannot be had.
    pub fn new(data_dir: &Path, config: SqlConfig, meta: Arc<Meta>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // All of them: serving comes first on each.
        let threads = cores.clamp(1, THREADS_MAX);
        let limits = SqlLimits {
            memory_bytes: config.memory_bytes,
            spill_bytes: config.spill_bytes,
            spill_dir: data_dir.join("sql-spill"),
            partitions: threads,
        };
        let engine = Arc::new(SqlEngine::new(&limits)?.with_meta(meta));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("sql")
            .worker_threads(threads)
            .thread_stack_size(STACK_BYTES)
            // A scan holds a thread until it is read: as many as there may be, or queries would wait for each other. Joins are
            // few, and wait for nobody.
            .max_blocking_threads(QUERIES_MAX * TABLES_MAX * threads + SPILLING_THREADS)
            .on_thread_start(step_back)
            .enable_all()
            .build()
            .map_err(|error| Error::internal(format!("threads for SQL: {error}")))?;
        Ok(Self { engine, config, places: Arc::new(Semaphore::new(QUERIES_MAX)), runtime: Some(runtime) })
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        match tokio::time::timeout(TURN_MAX, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(
                ErrorKind::Overloaded,
                format!("{QUERIES_MAX} queries are running; try again later or use another node"),
            )),
        }
    }

    /// Runs `work` on SQL's own threads; it ends when this future is dropped.
    async fn apart<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let runtime = self.runtime.as_ref().ok_or_else(|| Error::internal("SQL has stopped"))?;
        let task = tokio_util::task::AbortOnDropHandle::new(runtime.spawn(work));
        let limit = self.config.timeout;
        match tokio::time::timeout(limit, task).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(Error::internal(format!("a query stopped: {error}"))),
            Err(_) => Err(late(limit)),
        }
    }
}

/// The operating system runs this thread when others leave it time: serving comes first. It gets about a tenth of what a
/// serving thread beside it gets, so that it is slow then and does not stand still.
pub fn step_back() {
    // A lower priority needs no permission; where it is refused all the same, it is left out.
    if let Ok(behind) = BEHIND.try_into().map(ThreadPriority::Crossplatform) {
        let _ = set_current_thread_priority(behind);
    }
}

fn late(limit: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the query took longer than {} s, the limit of this node (--sql-timeout-s)", limit.as_secs()),
    )
}

/// What a query would answer with. Sees everything that was acknowledged before.
///
/// # Errors
/// `InvalidArgument` for what is no query, writes, names what is not there, or has other parameters; `TooLarge`,
/// `Overloaded`, `Timeout`.
pub async fn describe(node: &Arc<Node>, statement: &Statement) -> Result<Described> {
    let described = async {
        let _turn = node.sql.turn().await?;
        let planned = plan(node, statement).await?;
        Ok(Described { schema: planned.schema(), parameters: planned.parameters().clone() })
    };
    counted(node, described.await)
}

/// The same, and counts what was refused.
fn counted<T>(node: &Node, outcome: Result<T>) -> Result<T> {
    if let Err(error) = &outcome {
        node.metrics.sql_refused(error.kind);
    }
    outcome
}

/// A query under way, as the counters see it.
struct UnderWay {
    node: Arc<Node>,
    began: Instant,
}

impl UnderWay {
    fn begin(node: &Arc<Node>) -> Self {
        node.metrics.sql_began();
        Self { node: Arc::clone(node), began: Instant::now() }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.node.metrics.sql_ended(self.began.elapsed());
    }
}

/// Aggregates of rows at hand, with the limits of a query; see [`SqlEngine::aggregate`].
///
/// # Errors
/// As [`SqlEngine::aggregate`]; `Overloaded`, `Timeout`.
pub async fn aggregate(
    node: &Arc<Node>,
    aggregates: Vec<Aggregate>,
    schema: SchemaRef,
    rows: Vec<RecordBatch>,
) -> Result<Aggregated> {
    let _turn = node.sql.turn().await?;
    let engine = Arc::clone(&node.sql.engine);
    node.sql.apart(async move { Ok(engine.aggregate(&aggregates, &schema, &rows).await?) }).await
}

async fn plan(node: &Arc<Node>, statement: &Statement) -> Result<Query> {
    let read = Read { level: Level::Linearizable, ..Read::default() };
    node.ensure(&read, 0..=node.shard_count()).await?;
    let (engine, catalog) = (Arc::clone(&node.sql.engine), node.meta.catalog());
    // A project that has nothing yet is one without tables.
    let (source, statement) = (Arc::clone(&node.source), statement.clone());
    let planning = async move {
        let Statement { sql, project, parameters } = &statement;
        Ok(engine.plan(sql, project, &catalog, &source, parameters.as_deref()).await?)
    };
    node.sql.apart(planning).await
}

/// Runs work that blocks for long where queries run: behind serving.
///
/// # Errors
/// What `work` reports; `Internal` when it panics.
pub async fn behind<T: Send + 'static>(
    node: Arc<Node>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let runtime = node.sql.runtime.as_ref().ok_or_else(|| Error::internal("SQL has stopped"))?;
    match runtime.spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::internal(format!("a worker stopped: {error}"))),
    }
}

/// Runs a query. It ends when the receiver is dropped.
///
/// # Errors
/// As [`describe`]; later ones come in place of a batch.
pub async fn run(node: &Arc<Node>, statement: &Statement) -> Result<Answer> {
    let under_way = UnderWay::begin(node);
    let planned = async {
        let turn = node.sql.turn().await?;
        Ok((turn, plan(node, statement).await?))
    };
    let (turn, planned) = counted(node, planned.await)?;
    let schema = planned.schema();
    let (batches, receiver) = mpsc::channel(BATCHES_AHEAD);
    let SqlConfig { timeout, rows_max, .. } = node.sql.config;
    let sender = batches.clone();
    let counters = Arc::clone(node);
    let running = async move {
        let mut rows = 0u64;
        let sent = planned.run(|batch| {
            let sent = batch.num_rows() as u64;
            rows = rows.saturating_add(sent);
            let (sender, counters, over) = (sender.clone(), Arc::clone(&counters), rows > rows_max);
            async move {
                if over {
                    return Err(cairn_query::Error::TooLarge(format!(
                        "the answer is over {rows_max} rows, the limit of this node (--sql-rows-max); add a LIMIT, or aggregate"
                    )));
                }
                let read = sender.send(Ok(batch)).await.is_ok();
                counters.metrics.sql_rows(if read { sent } else { 0 });
                Ok(read)
            }
        });
        Ok(sent.await?)
    };
    let runtime = node.sql.runtime.as_ref().ok_or_else(|| Error::internal("SQL has stopped"))?;
    let node = Arc::clone(node);
    runtime.spawn(async move {
        let ended: Result<()> = tokio::select! {
            ended = running => ended,
            () = tokio::time::sleep(timeout) => Err(late(timeout)),
            // Nobody reads any more.
            () = batches.closed() => Ok(()),
        };
        // Whoever asked may read the end of it late, or never.
        drop((turn, under_way));
        if let Err(error) = counted(&node, ended) {
            let _ = batches.send(Err(error)).await;
        }
    });
    Ok(Answer { schema, batches: receiver })
}
