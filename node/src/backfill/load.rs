//! Chunks of many rows as segments: read in the order of history, written as columns, named in the shards' logs.
//!
//! A shard takes a run of slots of a chunk once. What was taken stays on its record ([`cairn_storage::shard`], loads), so a
//! chunk that runs again, by whatever map of slots, writes the slots that are missing and no others.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::ingest::{Target, times};
use crate::node::Node;
use crate::segments::{self, Pieces, Stored};
use crate::shard_step;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow_schema::ArrowError;
use arrow_select::filter::{filter, filter_record_batch};
use bytes::Bytes;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1::{AddSegment, Load, LoadNewest, Segment, shard_command::Change};
use cairn_proto::{ErrorKind, SLOTS};
use cairn_query::backfill::ORDER_KEY;
use cairn_storage::Error as StorageError;
use cairn_storage::keys::{ENTITY_KEY_BYTES_MAX, slot_of_order};
use cairn_storage::segment::{LoadedRows, SegmentLayout, SegmentWriter, Written};
use cairn_storage::shard::{LOAD_VERSION, Shard};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

/// A segment ends with the slot in which it reaches so many rows.
const SEGMENT_ROWS: u64 = 1 << 20;
/// Segments of a chunk that are on their way side by side: one is written while another is copied.
const SEGMENTS_AHEAD: usize = 2;
/// Commands with newest rows under way side by side.
const NEWEST_AHEAD: usize = 2;
/// A shard that changed meanwhile is asked again after this long, and for at most so long.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
const AGAIN_FOR: Duration = Duration::from_secs(10);
/// What an order key has beside the entity key: slot and two times.
const ORDER_BYTES: usize = 18;

/// Rows of a chunk as columns, ready for a segment.
#[derive(Debug, Clone)]
pub struct Columns {
    order: BinaryArray,
    join_keys: Vec<ArrayRef>,
    event: TimestampMicrosecondArray,
    created: TimestampMicrosecondArray,
    features: Vec<ArrayRef>,
}

impl Columns {
    fn rows(&self) -> usize {
        self.order.len()
    }

    fn slice(&self, from: usize, rows: usize) -> Self {
        Self {
            order: self.order.slice(from, rows),
            join_keys: self.join_keys.iter().map(|column| column.slice(from, rows)).collect(),
            event: self.event.slice(from, rows),
            created: self.created.slice(from, rows),
            features: self.features.iter().map(|column| column.slice(from, rows)).collect(),
        }
    }

    /// Rows whose slot is at most `slot`; rows ascend.
    fn rows_through(&self, slot: u16) -> usize {
        let (mut low, mut high) = (0, self.rows());
        while low < high {
            let middle = usize::midpoint(low, high);
            if slot_of_order(self.order.value(middle)) <= slot { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// Leaves out rows that have the key and times of the row before them: of those the first is kept.
#[derive(Debug, Default)]
pub struct Distinct {
    last: Vec<u8>,
}

impl Distinct {
    pub fn keep(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let order = order_of(batch)?;
        let mut last = std::mem::take(&mut self.last);
        let mut keep = Vec::with_capacity(order.len());
        for key in order.iter() {
            // One without key or time is kept, to be complained of.
            keep.push(key.is_none_or(|key| key != last));
            if let Some(key) = key {
                last.clear();
                last.extend_from_slice(key);
            }
        }
        self.last = last;
        if keep.iter().all(|keep| *keep) {
            return Ok(batch.clone());
        }
        filter_record_batch(batch, &BooleanArray::from(keep)).map_err(arrow)
    }
}

fn order_of(batch: &RecordBatch) -> Result<&BinaryArray> {
    let column = batch.column_by_name(ORDER_KEY).and_then(|column| column.as_binary_opt::<i32>());
    column.ok_or_else(|| Error::internal("the rows of a chunk come without their order"))
}

fn arrow(error: ArrowError) -> Error {
    Error::internal(error.to_string())
}

/// The view's columns of a batch, without its order.
pub fn plain(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<usize> = (0..batch.num_columns().saturating_sub(1)).collect();
    batch.project(&columns).map_err(arrow)
}

/// One chunk of a job on its way.
pub struct Chunk {
    node: Arc<Node>,
    target: Arc<Target>,
    job: u64,
    chunk: u32,
    /// By slot: its shard, or `None` where the rows are loaded already.
    shards: Vec<Option<u32>>,
}

impl Chunk {
    /// # Errors
    /// `Unavailable` or `Timeout` when a shard has no leader.
    pub async fn begin(node: &Arc<Node>, target: &Arc<Target>, job: u64, chunk: u32) -> Result<Self> {
        all_shards_are_fresh(node).await?;
        let routes = node.write_routes();
        let mut shards: Vec<Option<u32>> = (0..SLOTS as u16).map(|slot| Some(routes(slot))).collect();
        for shard in &node.shards {
            for segment in shard.tiers().load_of(job, chunk) {
                let (first, last) = (segment.first_slot as usize, segment.last_slot as usize);
                shards.iter_mut().take(last + 1).skip(first).for_each(|shard| *shard = None);
            }
        }
        Ok(Self { node: Arc::clone(node), target: Arc::clone(target), job, chunk, shards })
    }

    /// The rows of a batch that are still to be loaded. Every row has a key and an event time, and fits.
    ///
    /// # Errors
    /// `InvalidArgument` for a column that does not convert, or a time finer than a microsecond.
    pub fn columns(&self, batch: &RecordBatch) -> Result<Columns> {
        let order = order_of(batch)?;
        let column = |name: &str| {
            let column = batch.column_by_name(name).cloned();
            column.ok_or_else(|| Error::internal(format!("the rows of a chunk come without column `{name}`")))
        };
        let event = times(&column(EVENT_TIMESTAMP)?, EVENT_TIMESTAMP)?;
        let created = match batch.column_by_name(CREATED_TIMESTAMP) {
            Some(created) => {
                let created = times(created, CREATED_TIMESTAMP)?;
                let known = created.iter().zip(event.iter()).map(|(created, event)| created.or(event));
                TimestampMicrosecondArray::from_iter(known)
            }
            None => event.clone(),
        };
        let layout = self.target.layout(true);
        let join_keys = layout.join_keys.iter().map(|key| column(&key.name)).collect::<Result<_>>()?;
        let features = layout.row.fields().iter().map(|field| column(&field.name)).collect::<Result<_>>()?;
        let all = Columns { order: order.clone(), join_keys, event, created, features };
        let wanted = |key: Option<&[u8]>| key.is_some_and(|key| self.shard_of(slot_of_order(key)).is_some());
        let keep: BooleanArray = order.iter().map(|key| Some(wanted(key))).collect();
        if keep.true_count() == keep.len() {
            return Ok(all);
        }
        let only = |column: &ArrayRef| filter(column, &keep).map_err(arrow);
        let times = |times: &TimestampMicrosecondArray| -> Result<TimestampMicrosecondArray> {
            let array: ArrayRef = Arc::new(times.clone());
            Ok(only(&array)?.as_primitive().clone())
        };
        let order: ArrayRef = Arc::new(all.order.clone());
        Ok(Columns {
            order: only(&order)?.as_binary().clone(),
            join_keys: all.join_keys.iter().map(only).collect::<Result<_>>()?,
            event: times(&all.event)?,
            created: times(&all.created)?,
            features: all.features.iter().map(only).collect::<Result<_>>()?,
        })
    }

    fn shard_of(&self, slot: u16) -> Option<u32> {
        self.shards.get(usize::from(slot)).copied().flatten()
    }

    /// The last slot up to which all belong to the same shard as `slot`.
    fn run_of(&self, slot: u16) -> u16 {
        let shard = self.shard_of(slot);
        let rest = self.shards.iter().skip(usize::from(slot)).take_while(|it| **it == shard);
        slot.saturating_add(u16::try_from(rest.count().saturating_sub(1)).unwrap_or(u16::MAX))
    }

    /// Loads all rows that come, up to the `None` behind the last; returns when every shard knows its own.
    ///
    /// # Errors
    /// The first failure; what is loaded by then is not loaded again. `Unavailable` also when slots moved meanwhile, or the
    /// rows ended without their end.
    pub async fn load(&self, rows: mpsc::Receiver<Option<Columns>>) -> Result<()> {
        let mut feed = Feed { rows, rest: None, ended: false };
        let mut under_way = JoinSet::new();
        loop {
            let first = tokio::task::spawn_blocking(move || (feed.first_slot(), feed));
            let (first, next) = first.await.map_err(stopped)?;
            let Some(slot) = first? else { break };
            while under_way.len() >= SEGMENTS_AHEAD {
                one(under_way.join_next().await)?;
            }
            let shard = self.shard_of(slot).ok_or_else(|| Error::internal("a row that is loaded already"))?;
            let (back, mut came_back) = oneshot::channel();
            let work =
                FileOfRun { layout: self.target.layout(true), slot, last_slot: self.run_of(slot), feed: next, back };
            let (node, load) = (Arc::clone(&self.node), Load { job: self.job, chunk: self.chunk, ..Load::default() });
            let storage_id = self.target.storage_id();
            under_way.spawn(async move {
                let (written, stored) = segments::write(&node, move |out| work.run(out)).await?;
                let stored = stored.ok_or_else(|| Error::internal("a segment of no rows"))?;
                add(&node, shard, segment_of(storage_id, slot, &written, &stored, load)).await
            });
            // The next file begins where the rows of this one end; others are copied meanwhile.
            feed = loop {
                tokio::select! {
                    it = &mut came_back => match it {
                        Ok(feed) => break feed,
                        // It failed, and says why.
                        Err(_) => {
                            while !under_way.is_empty() {
                                one(under_way.join_next().await)?;
                            }
                            return Err(Error::internal("a segment was left in the middle"));
                        }
                    },
                    Some(done) = under_way.join_next() => one(Some(done))?,
                    else => return Err(Error::internal("a segment was left in the middle")),
                }
            };
        }
        while !under_way.is_empty() {
            one(under_way.join_next().await)?;
        }
        Ok(())
    }
}

fn one(done: Option<Result<Result<()>, JoinError>>) -> Result<()> {
    done.map_or(Ok(Ok(())), |done| done.map_err(stopped))?
}

fn stopped(error: JoinError) -> Error {
    Error::internal(format!("a worker stopped: {error}"))
}

/// The rows of a chunk that are not in a file yet.
struct Feed {
    rows: mpsc::Receiver<Option<Columns>>,
    rest: Option<Columns>,
    ended: bool,
}

impl Feed {
    fn next(&mut self) -> Result<Option<Columns>, StorageError> {
        loop {
            if let Some(rows) = self.rest.take().filter(|rows| rows.rows() > 0) {
                return Ok(Some(rows));
            }
            if self.ended {
                return Ok(None);
            }
            match self.rows.blocking_recv() {
                Some(Some(rows)) => self.rest = Some(rows),
                Some(None) => self.ended = true,
                // Of the slot it ends in there may be more.
                None => return Err(StorageError::Unavailable("the rows of a chunk were cut short".to_owned())),
            }
        }
    }

    /// The slot of the next row.
    fn first_slot(&mut self) -> Result<Option<u16>, StorageError> {
        self.rest = self.next()?;
        Ok(self.rest.as_ref().map(|rows| slot_of_order(rows.order.value(0))))
    }
}

/// Writes one segment: rows from the next one on, up to the end of a run of slots.
struct FileOfRun {
    layout: SegmentLayout,
    slot: u16,
    last_slot: u16,
    feed: Feed,
    back: oneshot::Sender<Feed>,
}

impl FileOfRun {
    fn run(self, out: Pieces) -> Result<((Written, u16), Option<Pieces>), StorageError> {
        let Self { layout, slot, mut last_slot, mut feed, back } = self;
        let mut writer = SegmentWriter::new(layout, out)?;
        let mut reached = slot;
        while let Some(rows) = feed.next()? {
            let taken = rows.rows_through(last_slot);
            let here = rows.slice(0, taken);
            if taken < rows.rows() {
                feed.rest = Some(rows.slice(taken, rows.rows() - taken));
            }
            if taken > 0 {
                reached = slot_of_order(here.order.value(taken - 1));
                writer.push_loaded(&LoadedRows {
                    order: &here.order,
                    join_keys: &here.join_keys,
                    event_us: &here.event,
                    created_us: &here.created,
                    features: &here.features,
                })?;
            }
            if feed.rest.is_some() {
                break;
            }
            if writer.rows() >= SEGMENT_ROWS {
                // The slot it has come to is not cut.
                last_slot = reached;
            }
        }
        let _ = back.send(feed);
        let (written, out) = writer.finish()?;
        Ok(((written, reached), Some(out)))
    }
}

fn segment_of(storage_id: u32, first: u16, written: &(Written, u16), stored: &Stored, load: Load) -> Segment {
    let (Written { rows, event_min_us, event_max_us }, last) = written;
    Segment {
        storage_id,
        root: Bytes::copy_from_slice(&stored.root),
        size: stored.size,
        rows: *rows,
        first_slot: u32::from(first),
        last_slot: u32::from(*last),
        before_us: event_max_us.saturating_add(1),
        event_min_us: *event_min_us,
        event_max_us: *event_max_us,
        load: Some(load),
        ..Segment::default()
    }
}

/// Names a segment in its shard's log, unless it is there already.
async fn add(node: &Node, shard: u32, segment: Segment) -> Result<()> {
    let replica = node.shard(shard)?;
    let load = segment.load.unwrap_or_default();
    let until = Instant::now() + AGAIN_FOR;
    loop {
        node.cluster.linearizable(shard, node.write_deadline()).await?;
        let tiers = replica.tiers();
        if tiers.load_of(load.job, load.chunk).any(|it| it.first_slot == segment.first_slot) {
            return Ok(());
        }
        // After the segments were looked at: those of a job that has ended may be merged, and are not known by it then.
        let catalog = node.fresh_catalog().await?;
        if catalog.job(load.job)?.ended_us != 0 {
            return Err(Error::new(ErrorKind::Conflict, format!("job {} has ended", load.job)));
        }
        let ask = AddSegment { segment: Some(segment.clone()), expected_changes: tiers.changes() };
        let Some(refusal) = shard_step::propose(node, shard, LOAD_VERSION, Change::AddSegment(ask)).await? else {
            let (rows, bytes) = (segment.rows, segment.size);
            tracing::debug!(shard, job = load.job, chunk = load.chunk, rows, bytes, "rows were loaded as a segment");
            return Ok(());
        };
        if refusal.kind != ErrorKind::Conflict.as_str() {
            return Err(Error::refused(&refusal));
        }
        if Instant::now() >= until {
            let message = format!("shard {shard} takes no segment now: {}", refusal.message);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn all_shards_are_fresh(node: &Node) -> Result<()> {
    let deadline = node.write_deadline();
    let rounds = (1..=node.shard_count()).map(|shard| node.cluster.linearizable(shard, deadline));
    futures::future::try_join_all(rounds).await.map(drop).map_err(Error::from)
}

/// Brings the newest rows of all loads of a storage id to where online reads find them.
///
/// # Errors
/// `Unavailable` while slots move, a segment is not here, or a shard has no leader.
pub async fn finish(node: &Arc<Node>, storage_id: u32) -> Result<()> {
    all_shards_are_fresh(node).await?;
    let shards = (1..=node.shard_count()).map(|shard| finish_shard(node, shard, storage_id));
    futures::future::try_join_all(shards).await.map(drop)
}

/// [`finish`], of one shard.
///
/// # Errors
/// As [`finish`].
pub async fn finish_shard(node: &Arc<Node>, shard: u32, storage_id: u32) -> Result<()> {
    let replica = Arc::clone(node.shard(shard)?);
    while let Some(segment) = replica.unfinished_load(storage_id) {
        let began = now_us();
        let segment = Arc::new(segment);
        let groups = blocking(&replica, &segment, |replica, segment| replica.groups_of(segment)).await?;
        let mut rows = 0;
        for group in 0..groups {
            let found = blocking(&replica, &segment, move |replica, segment| replica.newest_of(segment, group)).await?;
            rows += found.iter().map(|it| u64::from(it.row_count)).sum::<u64>();
            let steps = found.into_iter().map(|it| newest(node, shard, it));
            futures::stream::iter(steps).buffer_unordered(NEWEST_AHEAD).try_collect::<Vec<()>>().await?;
        }
        newest(node, shard, LoadNewest { id: segment.id, last: true, ..LoadNewest::default() }).await?;
        tracing::debug!(shard, segment = segment.id, rows, us = now_us() - began, "newest rows of a load are online");
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    replica: &Arc<Shard>,
    segment: &Arc<Segment>,
    work: impl FnOnce(&Shard, &Segment) -> Result<T, StorageError> + Send + 'static,
) -> Result<T> {
    let (replica, segment) = (Arc::clone(replica), Arc::clone(segment));
    crate::api::flight::blocking(move || Ok(work(&replica, &segment)?)).await
}

async fn newest(node: &Node, shard: u32, ask: LoadNewest) -> Result<()> {
    match shard_step::propose(node, shard, LOAD_VERSION, Change::LoadNewest(ask)).await? {
        // Somebody else was faster.
        Some(refusal) if refusal.kind == ErrorKind::Conflict.as_str() => Ok(()),
        Some(refusal) => Err(Error::refused(&refusal)),
        None => Ok(()),
    }
}

/// Whether every row of a batch has a key, of a length that is allowed, and an event time.
pub fn has_places(batch: &RecordBatch) -> Result<bool> {
    let order = order_of(batch)?;
    Ok(order.null_count() == 0 && order.iter().flatten().all(|key| key.len() <= ENTITY_KEY_BYTES_MAX + ORDER_BYTES))
}
