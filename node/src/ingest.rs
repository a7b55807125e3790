//! Rows into a feature view, and out of it: checked row by row, cut by shard, one replicated command a shard.
//!
//! Always true: every row of an accepted batch is counted in exactly one of accepted, duplicate or rejected; a row
//! with a reason stays out and does not hold back the others; rows of one batch that are in the same segment of slots
//! travel in one command, whatever moves, so a retry finds its own earlier effect in each segment (ADR-0009).

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow_cast::cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Schema, TimeUnit};
use bytes::Bytes;
use cairn_proto::ErrorKind;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP, Ingest, Ingested, REJECTIONS_MAX, Rejection};
use cairn_proto::record::v1 as record;
use cairn_proto::token::Token;
use cairn_storage::block::{BlockWriter, read_block};
use cairn_storage::catalog::Catalog;
use cairn_storage::keys::{ENTITY_KEY_BYTES_MAX, EntityKeys, slot_of};
use cairn_storage::row::{RowEncoder, RowSchema};
use cairn_storage::segment::SegmentLayout;
use cairn_storage::shard::{DELETE_VERSION, UPSERT_VERSION};
use cairn_storage::types::arrow_type;
use prost::Message;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Rows of one batch.
pub const BATCH_ROWS_MAX: usize = 65_536;
/// Encoded rows of one batch bound for one shard, bytes: what one log entry carries.
const BLOCK_BYTES_MAX: usize = 32 << 20;
const PRODUCER_BYTES_MAX: usize = 256;
/// How long a write whose slots move waits before it is tried again; the end of the move wakes it earlier.
const MOVING_PAUSE_MIN: Duration = Duration::from_millis(2);
const MOVING_PAUSE_MAX: Duration = Duration::from_millis(50);

/// A feature view as ingest needs it: looked up once a stream.
#[derive(Debug)]
pub struct Target {
    project: String,
    view: String,
    storage_id: u32,
    join_keys: Vec<record::Field>,
    schema: RowSchema,
    producer: Option<(String, u64)>,
    /// The rows delete: they have a key and times, and no features.
    delete: bool,
}

impl Target {
    /// # Errors
    /// `NotFound` for an unknown project or view; `InvalidArgument` for half a (producer, sequence).
    pub fn new(node: &Node, ask: &Ingest) -> Result<Self> {
        let producer = match (&ask.producer, ask.sequence) {
            (Some(producer), Some(sequence)) if !producer.is_empty() && producer.len() <= PRODUCER_BYTES_MAX => {
                Some((producer.clone(), sequence))
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!("`producer` must be 1 to {PRODUCER_BYTES_MAX} bytes")));
            }
            (None, None) => None,
            (Some(_), None) => {
                return Err(Error::invalid("`producer` needs a `sequence`: together they make ingest exactly-once"));
            }
            (None, Some(_)) => {
                return Err(Error::invalid("`sequence` needs a `producer`: together they make ingest exactly-once"));
            }
        };
        let catalog = node.meta.catalog();
        let project = catalog.project(&ask.project)?;
        let view = project.feature_view(&ask.feature_view, None)?;
        let join_keys = project.join_keys(view)?;
        let schema = RowSchema::new(&view.features)?;
        let project = ask.project.clone();
        let (view, storage_id, delete) = (view.name.clone(), view.storage_id, ask.delete);
        Ok(Self { project, view, storage_id, join_keys, schema, producer, delete })
    }

    /// # Errors
    /// `Conflict` when the view has got another schema since: rows would go where its readers do not look any more.
    pub fn check_current(&self, catalog: &Catalog) -> Result<()> {
        if catalog.project(&self.project)?.feature_view(&self.view, None)?.storage_id == self.storage_id {
            return Ok(());
        }
        let message =
            format!("feature view `{}` changed its columns while this stream was open; open a new one", self.view);
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// Which rows on disk it writes.
    pub fn storage_id(&self) -> u32 {
        self.storage_id
    }

    /// The columns of a segment of these rows.
    pub fn layout(&self, load: bool) -> SegmentLayout {
        let (storage_id, join_keys, row) = (self.storage_id, self.join_keys.clone(), self.schema.clone());
        SegmentLayout { storage_id, join_keys, row, load }
    }

    /// The columns a batch brings, in Arrow's types.
    pub fn schema(&self) -> Schema {
        let typed = |field: &record::Field| {
            arrow_schema::Field::new(&field.name, arrow_type(&field.r#type.unwrap_or_default()), true)
        };
        let time = |name: &str| {
            arrow_schema::Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)
        };
        let mut fields: Vec<arrow_schema::Field> = self.join_keys.iter().map(typed).collect();
        fields.extend([time(EVENT_TIMESTAMP), time(CREATED_TIMESTAMP)]);
        fields.extend(self.features().iter().map(typed));
        Schema::new(fields)
    }

    /// The column at `name`, or what is wrong with the batch.
    fn column(&self, batch: &RecordBatch, name: &str, what: &str) -> Result<ArrayRef> {
        batch.column_by_name(name).cloned().ok_or_else(|| {
            let wanted: Vec<&str> = self.columns().collect();
            Error::invalid(format!(
                "the batch has no column `{name}` ({what} of feature view `{}`); it needs {}",
                self.view,
                wanted.join(", ")
            ))
        })
    }

    fn columns(&self) -> impl Iterator<Item = &str> {
        let keys = self.join_keys.iter().map(|field| field.name.as_str());
        keys.chain([EVENT_TIMESTAMP]).chain(self.features().iter().map(|field| field.name.as_str()))
    }

    /// The features that a row brings.
    fn features(&self) -> &[record::Field] {
        if self.delete { &[] } else { self.schema.fields() }
    }

    /// Columns that belong to nothing are refused: most are a misspelt feature. pandas' own index column passes.
    fn refuse_strangers(&self, batch: &RecordBatch) -> Result<()> {
        for field in batch.schema_ref().fields() {
            let name = field.name().as_str();
            let known = self.columns().any(|column| column == name) || name == CREATED_TIMESTAMP;
            if !known && !name.starts_with("__index_level_") {
                if self.delete {
                    return Err(Error::invalid(format!(
                        "column `{name}` is no join key or time of feature view `{}`, and a deletion takes nothing else; \
                         leave it out",
                        self.view
                    )));
                }
                let wanted: Vec<&str> = self.columns().collect();
                return Err(Error::invalid(format!(
                    "column `{name}` is no join key, time or feature of feature view `{}`; leave it out, or apply a \
                     definition that has it (known: {}, {CREATED_TIMESTAMP})",
                    self.view,
                    wanted.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// Checks a batch and cuts it by shard. CPU work only.
    ///
    /// # Errors
    /// `InvalidArgument` when a column is missing, unknown or of the wrong type; `TooLarge` over a limit.
    pub fn prepare(&self, batch: &RecordBatch, slot_shard: &dyn Fn(u16) -> u32) -> Result<Prepared> {
        if batch.num_rows() > BATCH_ROWS_MAX {
            let message = format!(
                "a batch of {} rows is over the limit of {BATCH_ROWS_MAX}; send smaller batches",
                batch.num_rows()
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.refuse_strangers(batch)?;
        let what = "a join key";
        let key_columns: Vec<ArrayRef> =
            self.join_keys.iter().map(|key| self.column(batch, &key.name, what)).collect::<Result<_>>()?;
        let keys = EntityKeys::encode(&self.join_keys, &key_columns)?;
        let event = times(&self.column(batch, EVENT_TIMESTAMP, "the event time")?, EVENT_TIMESTAMP)?;
        let created =
            batch.column_by_name(CREATED_TIMESTAMP).map(|column| times(column, CREATED_TIMESTAMP)).transpose()?;
        let features: Vec<ArrayRef> =
            self.features().iter().map(|field| self.column(batch, &field.name, "a feature")).collect::<Result<_>>()?;
        let encoder = if self.delete { None } else { Some(RowEncoder::new(&self.schema, &features)?) };

        let mut cut = Cut::default();
        let mut prepared = Prepared::default();
        let mut packed = Vec::new();
        for row in 0..batch.num_rows() {
            let Some(key) = keys.get(row) else {
                let null = self.join_keys.iter().zip(&key_columns).find(|(_, column)| column.is_null(row));
                let name = null.map_or("?", |(key, _)| key.name.as_str());
                prepared.reject(row, &format!("join key `{name}` is null"));
                continue;
            };
            if key.len() > ENTITY_KEY_BYTES_MAX {
                prepared.reject(
                    row,
                    &format!("the entity key is {} bytes, over the limit of {ENTITY_KEY_BYTES_MAX}", key.len()),
                );
                continue;
            }
            if event.is_null(row) {
                prepared.reject(row, "`event_timestamp` is null");
                continue;
            }
            packed.clear();
            match encoder.as_ref().map_or(Ok(()), |encoder| encoder.encode(row, &mut packed)) {
                Ok(()) => {}
                Err(cairn_storage::Error::TooLarge(reason)) => {
                    prepared.reject(row, &reason);
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let event_us = event.value(row);
            let created_us = match &created {
                Some(created) if !created.is_null(row) => created.value(row),
                _ => event_us,
            };
            cut.push(slot_shard(slot_of(key)), key, event_us, created_us, &packed);
        }
        prepared.blocks = cut.finish()?;
        Ok(prepared)
    }

    /// Proposes a prepared batch to its shards, side by side. `ordinal` counts the batches of the stream from 0.
    ///
    /// # Errors
    /// The first shard's failure; the other shards' parts may have been applied, and a retry with the same producer
    /// and sequence applies the missing ones only.
    pub async fn commit(&self, node: &Node, prepared: Prepared, ordinal: u64, deadline: Instant) -> Result<Ingested> {
        let mut done =
            Ingested { rows_rejected: prepared.rejected, rejections: prepared.rejections, ..Ingested::default() };
        let (producer, sequence) = match &self.producer {
            Some((producer, sequence)) => (producer.clone(), sequence.saturating_add(ordinal)),
            None => (String::new(), 0),
        };
        let idempotent = self.producer.is_some();
        let version = if self.delete { DELETE_VERSION } else { UPSERT_VERSION };
        let write = Write { node, version, storage_id: self.storage_id, producer, sequence, idempotent, deadline };
        let blocks = prepared.blocks.into_iter().map(|block| write.take(block));
        let mut token = Token::default();
        for outcomes in futures::future::join_all(blocks).await {
            for (shard, outcome) in outcomes? {
                done.rows_accepted += u64::from(outcome.rows_accepted);
                done.rows_updated += u64::from(outcome.rows_updated);
                done.rows_duplicate += u64::from(outcome.rows_duplicate);
                token.advance(shard, outcome.index);
            }
        }
        done.token = token.to_string();
        Ok(done)
    }
}

/// (shard, rows, encoded block)
type Block = (u32, u32, Bytes);

/// One batch on its way to its shards.
struct Write<'n> {
    node: &'n Node,
    version: u32,
    storage_id: u32,
    producer: String,
    sequence: u64,
    idempotent: bool,
    deadline: Instant,
}

impl Write<'_> {
    /// Brings a block to its shard. Where slots of it have moved, nothing of it was done: what it holds is cut again by
    /// the newer map, until the deadline.
    async fn take(&self, block: Block) -> Result<Vec<(u32, record::ShardOutcome)>> {
        let mut moved = self.node.moved.subscribe();
        let (mut left, mut done) = (vec![block], Vec::new());
        let mut pause = MOVING_PAUSE_MIN;
        while let Some((shard, row_count, rows)) = left.pop() {
            moved.borrow_and_update();
            let outcome = self.propose(shard, row_count, rows.clone()).await?;
            match &outcome.refused {
                None => done.push((shard, outcome)),
                Some(refusal) if !outcome.slots_moved || Instant::now() + pause >= self.deadline => {
                    return Err(Error::refused(refusal));
                }
                Some(_) => {
                    // The end of a move is seen at once; this node may also have seen it before the answer came.
                    let _ = tokio::time::timeout(pause, moved.changed()).await;
                    pause = (pause * 2).min(MOVING_PAUSE_MAX);
                    left.extend(cut_again(self.node, &rows)?);
                }
            }
        }
        Ok(done)
    }

    async fn propose(&self, shard: u32, row_count: u32, rows: Bytes) -> Result<record::ShardOutcome> {
        let (storage_id, producer, sequence) = (self.storage_id, self.producer.clone(), self.sequence);
        let upsert = record::UpsertRows { storage_id, producer, sequence, rows, row_count };
        let command = record::ShardCommand {
            version: self.version,
            proposed_at_us: now_us(),
            change: Some(record::shard_command::Change::UpsertRows(upsert)),
        };
        let command = Bytes::from(command.encode_to_vec());
        let proposed = self.node.cluster.propose(shard, command, self.idempotent, self.deadline).await?;
        Ok(record::ShardOutcome::decode(proposed.outcome)?)
    }
}

/// The rows of a block, cut by what this node knows now.
fn cut_again(node: &Node, rows: &[u8]) -> Result<Vec<Block>> {
    let route = node.write_routes();
    let mut cut = Cut::default();
    for row in read_block(rows) {
        let row = row?;
        cut.push(route(slot_of(row.entity_key)), row.entity_key, row.event_us, row.created_us, row.packed);
    }
    cut.finish()
}

/// Rows by shard.
#[derive(Default)]
struct Cut(BTreeMap<u32, BlockWriter>);

impl Cut {
    fn push(&mut self, shard: u32, key: &[u8], event_us: i64, created_us: i64, packed: &[u8]) {
        self.0.entry(shard).or_default().push(key, event_us, created_us, packed);
    }

    fn finish(self) -> Result<Vec<Block>> {
        let mut blocks = Vec::with_capacity(self.0.len());
        for (shard, block) in self.0 {
            if block.bytes_len() > BLOCK_BYTES_MAX {
                let message = format!(
                    "a batch of {} bytes for one shard is over the limit of {BLOCK_BYTES_MAX}; send smaller batches",
                    block.bytes_len()
                );
                return Err(Error::new(ErrorKind::TooLarge, message));
            }
            let rows = u32::try_from(block.len()).unwrap_or(u32::MAX);
            blocks.push((shard, rows, Bytes::from(block.finish())));
        }
        Ok(blocks)
    }
}

/// A batch that passed every check, cut by shard.
#[derive(Debug, Default)]
pub struct Prepared {
    blocks: Vec<Block>,
    rejected: u64,
    rejections: Vec<Rejection>,
}

impl Prepared {
    /// Why the first row that does not fit does not, and how many do not.
    pub fn rejected(&self) -> Option<(&Rejection, u64)> {
        self.rejections.first().map(|first| (first, self.rejected))
    }

    fn reject(&mut self, row: usize, reason: &str) {
        self.rejected += 1;
        if self.rejections.len() < REJECTIONS_MAX {
            self.rejections.push(Rejection { row: row as u64, reason: reason.to_owned() });
        }
    }
}

/// A time column as microseconds UTC. Naive times are UTC; a finer unit that does not divide evenly is refused.
///
/// # Errors
/// `InvalidArgument` naming the column and what is wrong.
pub fn times(column: &ArrayRef, name: &str) -> Result<TimestampMicrosecondArray> {
    let DataType::Timestamp(unit, _) = column.data_type() else {
        if matches!(column.data_type(), DataType::Null) {
            return Ok(TimestampMicrosecondArray::new_null(column.len()));
        }
        let message = format!(
            "column `{name}` is {}; it must be an Arrow timestamp (any unit; without zone = UTC)",
            column.data_type()
        );
        return Err(Error::invalid(message));
    };
    if *unit == TimeUnit::Nanosecond {
        let nanos = column.as_any().downcast_ref::<arrow_array::TimestampNanosecondArray>();
        if let Some(row) = nanos.and_then(|nanos| nanos.iter().position(|at| at.is_some_and(|at| at % 1000 != 0))) {
            return Err(Error::invalid(format!(
                "column `{name}`, row {row}: finer than a microsecond, which Cairn does not keep"
            )));
        }
    }
    let wanted = DataType::Timestamp(TimeUnit::Microsecond, None);
    let options = CastOptions { safe: false, ..CastOptions::default() };
    // Dropping the zone keeps the instant: Arrow stores zoned timestamps in UTC.
    let plain = strip_zone(column, *unit)?;
    let cast = cast_with_options(&plain, &wanted, &options)
        .map_err(|error| Error::invalid(format!("column `{name}`: {error}")))?;
    cast.as_any()
        .downcast_ref::<TimestampMicrosecondArray>()
        .cloned()
        .ok_or_else(|| Error::internal(format!("column `{name}` did not become a timestamp")))
}

fn strip_zone(column: &ArrayRef, unit: TimeUnit) -> Result<ArrayRef> {
    let data = column.to_data().into_builder().data_type(DataType::Timestamp(unit, None)).build();
    data.map(arrow_array::make_array).map_err(|error| Error::internal(error.to_string()))
}

/// The rows of `reply` counted by what became of them, for metrics.
pub fn counts(reply: &Ingested) -> [(&'static str, u64); 3] {
    [("accepted", reply.rows_accepted), ("duplicate", reply.rows_duplicate), ("rejected", reply.rows_rejected)]
}
