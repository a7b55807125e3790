//! Who runs models, and when: threads of our own, one bounded queue, and a cache of loaded models.
//!
//! A run that is predicted to be short goes ahead on the caller's thread while nobody waits: handing it over would take
//! longer. All others
//! queue; a thread takes the oldest with those behind it that can share its batch. There is no waiting for company:
//! what queued while the
//! threads were busy is the batch. Bounds: rows waiting (then [`RunError::Overloaded`]), rows in one batch, bytes of
//! cached models.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::error::{LoadError, RunError};
use crate::limits::Limits;
use crate::model::Model;

/// The root hash of a model's artifact.
pub type ModelId = [u8; 32];

/// How far behind the oldest request a thread looks for company.
const LOOK_AHEAD: usize = 256;

#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that run models. Each runs one batch at a time, on itself alone.
    pub threads: usize,
    /// Rows that may wait. A request that finds none waiting is always taken.
    pub queue_rows_max: usize,
    /// Rows that queued requests are joined up to.
    pub batch_rows_max: usize,
    /// Runs predicted to be shorter go ahead on the caller's thread.
    pub inline_below: Duration,
    /// Memory of loaded models kept in the cache. The least recently used go first; a model in use lives on until its
    /// last user drops it.
    pub cache_bytes_max: usize,
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            queue_rows_max: 1 << 18,
            batch_rows_max: 4096,
            inline_below: Duration::from_micros(50),
            cache_bytes_max: 2 << 30,
            limits: Limits::default(),
        }
    }
}

/// Dropping it stops its threads after the batch they are at; what still waits gets [`RunError::Stopped`].
pub struct Executor {
    options: Options,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cache: Mutex<Cache>,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    batch_rows_max: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    rows: usize,
    stopping: bool,
}

struct Request {
    model: Arc<Model>,
    batch: RecordBatch,
    /// Shares its batch with nobody.
    alone: bool,
    answer: oneshot::Sender<Result<RecordBatch, RunError>>,
}

#[derive(Default)]
struct Cache {
    models: HashMap<ModelId, (Arc<Model>, u64)>,
    bytes: usize,
    clock: u64,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Executor {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(options: Options) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            batch_rows_max: options.batch_rows_max,
        });
        let mut executor = Self { options, shared, threads: Vec::new(), cache: Mutex::default() };
        for number in 0..executor.options.threads.max(1) {
            let shared = executor.shared.clone();
            let thread = std::thread::Builder::new().name(format!("model-{number}"));
            executor.threads.push(thread.spawn(move || work(&shared))?);
        }
        Ok(executor)
    }

    /// The model of this artifact if it is loaded.
    pub fn get(&self, id: &ModelId) -> Option<Arc<Model>> {
        self.cache.lock().get(id)
    }

    /// Loads a model, or gives the one that is loaded. Takes as long as reading it does: call it where blocking is
    /// allowed.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, id: ModelId, bytes: Bytes) -> Result<Arc<Model>, LoadError> {
        if let Some(model) = self.get(&id) {
            return Ok(model);
        }
        let model = Arc::new(Model::load(bytes, &self.options.limits)?);
        let (found, limit) = (model.memory_bytes(), self.options.cache_bytes_max);
        if found > limit {
            return Err(LoadError::LimitExceeded { what: "memory in bytes", found, limit });
        }
        Ok(self.cache.lock().insert(id, model, limit))
    }

    /// Bytes of the loaded models in the cache, and how many they are.
    pub fn cached(&self) -> (usize, usize) {
        let cache = self.cache.lock();
        (cache.bytes, cache.models.len())
    }

    /// Rows that wait for a thread.
    pub fn queued_rows(&self) -> usize {
        self.shared.queue.lock().rows
    }

    /// Answers each row, as [`Model::run`] does.
    ///
    /// # Errors
    /// `Overloaded` when too many rows wait already; else see [`RunError`].
    pub async fn run(&self, model: &Arc<Model>, batch: RecordBatch) -> Result<RecordBatch, RunError> {
        self.ask(model, batch, false).await
    }

    /// As [`Self::run`], and no other request shares the batch: the same rows give the same bits, whatever else runs.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_alone(&self, model: &Arc<Model>, batch: RecordBatch) -> Result<RecordBatch, RunError> {
        self.ask(model, batch, true).await
    }

    async fn ask(&self, model: &Arc<Model>, batch: RecordBatch, alone: bool) -> Result<RecordBatch, RunError> {
        let rows = batch.num_rows();
        let short = model.cost.predict(rows).is_some_and(|time| time < self.options.inline_below);
        let receiver = {
            let mut queue = self.shared.queue.lock();
            if !(short && queue.waiting.is_empty()) {
                let limit = self.options.queue_rows_max;
                if !queue.waiting.is_empty() && queue.rows.saturating_add(rows) > limit {
                    return Err(RunError::Overloaded { queued: queue.rows, limit });
                }
                let (answer, receiver) = oneshot::channel();
                queue.rows += rows;
                queue.waiting.push_back(Request { model: model.clone(), batch, alone, answer });
                drop(queue);
                self.shared.arrived.notify_one();
                receiver
            } else {
                drop(queue);
                return timed(model, &batch);
            }
        };
        receiver.await.unwrap_or(Err(RunError::Stopped))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.shared.queue.lock();
            queue.stopping = true;
            std::mem::take(&mut queue.waiting)
        };
        self.shared.arrived.notify_all();
        drop(waiting); // their receivers learn of it
        for thread in self.threads.drain(..) {
            // A thread catches the panics of models; its own would have been seen in the log.
            drop(thread.join());
        }
    }
}

impl Cache {
    fn get(&mut self, id: &ModelId) -> Option<Arc<Model>> {
        self.clock += 1;
        let (model, used) = self.models.get_mut(id)?;
        *used = self.clock;
        Some(model.clone())
    }

    /// Two loads of one artifact may race: the first stays.
    fn insert(&mut self, id: ModelId, model: Arc<Model>, bytes_max: usize) -> Arc<Model> {
        if let Some(first) = self.get(&id) {
            return first;
        }
        let bytes = model.memory_bytes();
        while self.bytes + bytes > bytes_max {
            let oldest = self.models.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            let Some((evicted, _)) = oldest.and_then(|id| self.models.remove(&id)) else {
                break;
            };
            self.bytes -= evicted.memory_bytes();
        }
        self.clock += 1;
        self.bytes += bytes;
        self.models.insert(id, (model.clone(), self.clock));
        model
    }
}

fn timed(model: &Model, batch: &RecordBatch) -> Result<RecordBatch, RunError> {
    let start = Instant::now();
    let answer = model.run(batch);
    if answer.is_ok() {
        model.cost.record(batch.num_rows(), start.elapsed());
    }
    answer
}

/// A thread's life.
fn work(shared: &Shared) {
    // burn's CPU backend spreads large operations over rayon's current pool. Here that is this thread alone, so that
    // models running
    // side by side do not fight over cores.
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build() {
        tracing::warn!(%error, "a model thread shares rayon's global pool");
    }
    loop {
        let requests = {
            let mut queue = shared.queue.lock();
            loop {
                if queue.stopping {
                    return;
                }
                let requests = queue.take(shared.batch_rows_max);
                if !requests.is_empty() {
                    break requests;
                }
                shared.arrived.wait(&mut queue);
            }
        };
        serve(requests);
    }
}

impl Queue {
    /// The oldest request and those that can share its batch, in order.
    fn take(&mut self, batch_rows_max: usize) -> Vec<Request> {
        let Some(first) = self.waiting.pop_front() else {
            return Vec::new();
        };
        let mut rows = first.batch.num_rows();
        self.rows -= rows;
        let mut taken = vec![first];
        let mut at = 0;
        while at < self.waiting.len().min(LOOK_AHEAD) && !taken[0].alone && taken[0].model.takes_any_rows() {
            let (head, next) = (&taken[0], &self.waiting[at]);
            let more = next.batch.num_rows();
            let joins = !next.alone
                && Arc::ptr_eq(&head.model, &next.model)
                && rows + more <= batch_rows_max
                && head.batch.schema_ref().fields() == next.batch.schema_ref().fields();
            match joins.then(|| self.waiting.remove(at)).flatten() {
                Some(next) => {
                    rows += more;
                    self.rows -= more;
                    taken.push(next);
                }
                None => at += 1,
            }
        }
        taken
    }
}

fn serve(mut requests: Vec<Request>) {
    // Who has stopped waiting needs no answer.
    requests.retain(|request| !request.answer.is_closed());
    if requests.len() > 1 {
        match together(&requests) {
            Some(answers) => {
                for (request, answer) in requests.into_iter().zip(answers) {
                    drop(request.answer.send(Ok(answer)));
                }
                return;
            }
            // One of them may be at fault: each is answered for itself.
            None => tracing::debug!(requests = requests.len(), "a joint batch failed"),
        }
    }
    for request in requests {
        let answer = timed(&request.model, &request.batch);
        drop(request.answer.send(answer));
    }
}

fn together(requests: &[Request]) -> Option<Vec<RecordBatch>> {
    let first = requests.first()?;
    let joint = concat_batches(first.batch.schema_ref(), requests.iter().map(|request| &request.batch)).ok()?;
    let answer = timed(&first.model, &joint).ok()?;
    let mut start = 0;
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        answers.push(answer.slice(start, request.batch.num_rows()));
        start += request.batch.num_rows();
    }
    Some(answers)
}

#[cfg(test)]
mod tests;
