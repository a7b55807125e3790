//! A store for tests: the same rows in real shards and in a plain list, and batches written as text.

use crate::plan::FeaturePlan;
use crate::source::{Lookup, RowRef, RowSource, ShardedSource, Visit};
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_cast::display::array_value_to_string;
use arrow_schema::{DataType, Field as ArrowField, Schema};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{Field, ShardCommand, ShardOutcome, UpsertRows, shard_command::Change};
use cairn_storage::block::BlockWriter;
use cairn_storage::engine::{Engine, EngineOptions};
use cairn_storage::keys::{EntityKeys, slot_of};
use cairn_storage::replica::{Entry, Replica};
use cairn_storage::row::RowEncoder;
use cairn_storage::shard::{DELETE_VERSION, Shard};
use cairn_storage::types::arrow_type;
use parking_lot::RwLock;
use prost::Message;
use std::sync::Arc;

/// Text of a cell; `None` = null.
pub(crate) type Cell = Option<String>;

pub(crate) fn cell(text: &str) -> Cell {
    (text != "-").then(|| text.to_owned())
}

/// One row of a feature view, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub key: Vec<Cell>,
    pub event_us: i64,
    pub created_us: Option<i64>,
    /// None = the row deletes.
    pub values: Vec<Cell>,
}

impl Fact {
    pub fn deletes(&self) -> bool {
        self.values.is_empty()
    }
}

/// `"a b | event created | x y"`, `-` = null or absent; nothing behind the second `|` = a deletion.
pub(crate) fn fact(text: &str) -> Fact {
    let parts: Vec<Vec<&str>> = text.split('|').map(|part| part.split_whitespace().collect()).collect();
    let [key, times, values] = parts.as_slice() else { panic!("`{text}` is no fact") };
    Fact {
        key: key.iter().map(|text| cell(text)).collect(),
        event_us: times[0].parse().unwrap(),
        created_us: times.get(1).map(|text| text.parse().unwrap()),
        values: values.iter().map(|text| cell(text)).collect(),
    }
}

const SHARDS: u32 = 3;

pub(crate) struct Store {
    pub memory: Memory,
    pub sharded: Arc<ShardedSource>,
    shards: Vec<Arc<Shard>>,
    index: u64,
    storage_ids: u32,
    _dir: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(EngineOptions::default());
        let open = |n: u32| Shard::open(&engine, &dir.path().join(n.to_string())).unwrap();
        let shards: Vec<Arc<Shard>> = (1..=SHARDS).map(open).collect();
        let slots: Vec<u32> = (0..SLOTS as u32).map(|slot| slot % SHARDS + 1).collect();
        let sharded = ShardedSource::new(&slots, (1..).zip(shards.iter().cloned())).unwrap();
        Self { memory: Memory::default(), sharded, shards, index: 0, storage_ids: 1_000, _dir: dir }
    }

    /// The rows of later writes stand apart from those before: other storage ids. Keeps the shards open.
    pub fn begin_anew(&mut self, plan: &mut FeaturePlan) {
        self.memory.rows.write().clear();
        for view in &mut plan.views {
            self.storage_ids += 1;
            view.storage_id = self.storage_ids;
        }
    }

    /// Both sources, to be asked the same.
    pub fn sources(&self) -> [&dyn RowSource; 2] {
        [&self.memory, self.sharded.as_ref()]
    }

    /// One commit at `committed_us` with rows of the `view`-th view of `plan`.
    pub fn write(&mut self, plan: &FeaturePlan, view: usize, committed_us: i64, facts: &[Fact]) {
        let view = &plan.views[view];
        self.index += 1;
        let key_fields = &plan.key_sets[view.key_set].fields;
        let column = |field: &Field, at: usize, of: fn(&Fact) -> &Vec<Cell>| -> ArrayRef {
            let text: StringArray = facts.iter().map(|fact| of(fact).get(at).cloned().flatten()).collect();
            cast(&text, &arrow_type(&field.r#type.unwrap())).unwrap()
        };
        let keys: Vec<ArrayRef> =
            key_fields.iter().enumerate().map(|(at, f)| column(f, at, |fact| &fact.key)).collect();
        let fields = view.schema.fields().to_vec();
        let values: Vec<ArrayRef> =
            fields.iter().enumerate().map(|(at, f)| column(f, at, |fact| &fact.values)).collect();
        let keys = EntityKeys::encode(key_fields, &keys).unwrap();
        let encoder = RowEncoder::new(&view.schema, &values).unwrap();
        let mut blocks: Vec<BlockWriter> = (0..SHARDS).map(|_| BlockWriter::new()).collect();
        for (row, fact) in facts.iter().enumerate() {
            let mut packed = Vec::new();
            if !fact.deletes() {
                encoder.encode(row, &mut packed).unwrap();
            }
            let key = keys.get(row).expect("a fact has a key");
            let created_us = fact.created_us.unwrap_or(fact.event_us);
            blocks[usize::from(slot_of(key)) % SHARDS as usize].push(key, fact.event_us, created_us, &packed);
            self.memory.rows.write().push(Row {
                storage_id: view.storage_id,
                key: key.to_vec(),
                event_us: fact.event_us,
                created_us,
                commit: self.index,
                committed_us,
                packed,
            });
        }
        for (shard, block) in self.shards.iter().zip(blocks) {
            let row_count = block.len() as u32;
            let upsert = UpsertRows {
                storage_id: view.storage_id,
                rows: block.finish().into(),
                row_count,
                ..Default::default()
            };
            let change = Some(Change::UpsertRows(upsert));
            let command =
                ShardCommand { version: DELETE_VERSION, proposed_at_us: committed_us, change }.encode_to_vec();
            let entry = Entry { index: self.index, command: Some(&command) };
            let outcome = shard.apply(&[entry], b"position").unwrap().remove(0);
            let outcome = ShardOutcome::decode(outcome.as_slice()).unwrap();
            assert_eq!((outcome.refused, outcome.rows_accepted), (None, row_count));
        }
    }
}

/// Rows in a list: the plainest thing that is a source. Answers in reverse order, since a source may.
#[derive(Default)]
pub(crate) struct Memory {
    rows: RwLock<Vec<Row>>,
}

struct Row {
    storage_id: u32,
    key: Vec<u8>,
    event_us: i64,
    created_us: i64,
    commit: u64,
    committed_us: i64,
    packed: Vec<u8>,
}

impl Memory {
    fn find(
        &self,
        storage_id: u32,
        key: &[u8],
        cutoff: impl Fn(&Row) -> bool,
        visit: &mut dyn FnMut(Option<RowRef<'_>>),
    ) {
        let rows = self.rows.read();
        let fits = |row: &&Row| row.storage_id == storage_id && row.key == key && cutoff(row);
        // `max_by_key` gives the last of equals: the later row of a batch.
        let found = rows.iter().filter(fits).max_by_key(|row| (row.event_us, row.created_us, row.commit));
        visit(found.map(|row| RowRef {
            event_us: row.event_us,
            created_us: row.created_us,
            commit: row.commit,
            committed_us: row.committed_us,
            packed: &row.packed,
        }));
    }
}

impl RowSource for Memory {
    fn latest(&self, storage_id: u32, keys: &[&[u8]], visit: &mut Visit<'_>) -> Result<()> {
        for (n, key) in keys.iter().enumerate().rev() {
            self.find(storage_id, key, |_| true, &mut |row| visit(n, row));
        }
        Ok(())
    }

    fn as_of(&self, storage_id: u32, lookups: &[Lookup<'_>], visit: &mut Visit<'_>) -> Result<()> {
        for (n, at) in lookups.iter().enumerate().rev() {
            let cutoff = |row: &Row| {
                row.event_us <= at.event_us && row.created_us <= at.created_us && row.committed_us <= at.committed_us
            };
            self.find(storage_id, at.key, cutoff, &mut |row| visit(n, row));
        }
        Ok(())
    }
}

/// A source that fails, for what callers do then.
pub(crate) struct Failing;

impl RowSource for Failing {
    fn latest(&self, _: u32, _: &[&[u8]], _: &mut Visit<'_>) -> Result<()> {
        Err(Error::Unavailable("away".into()))
    }

    fn as_of(&self, _: u32, _: &[Lookup<'_>], _: &mut Visit<'_>) -> Result<()> {
        Err(Error::Unavailable("away".into()))
    }
}

/// A batch from text cells, each column cast to its type.
pub(crate) fn batch(columns: &[(&str, DataType)], rows: &[Vec<Cell>]) -> RecordBatch {
    let fields: Vec<ArrowField> =
        columns.iter().map(|(name, kind)| ArrowField::new(*name, kind.clone(), true)).collect();
    let column = |at: usize, kind: &DataType| -> ArrayRef {
        let text: StringArray = rows.iter().map(|row| row[at].clone()).collect();
        match kind {
            // Times are written as integers.
            DataType::Timestamp(..) => cast(&cast(&text, &DataType::Int64).unwrap(), kind).unwrap(),
            kind => cast(&text, kind).unwrap(),
        }
    };
    let arrays = columns.iter().enumerate().map(|(at, (_, kind))| column(at, kind)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// The named columns as text, a line a row; `-` = null.
pub(crate) fn lines(batches: &[RecordBatch], columns: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let text = |name: &&str| {
                let column =
                    batch.column_by_name(name).unwrap_or_else(|| panic!("no column `{name}` in {:?}", batch.schema()));
                if column.is_null(row) || *column.data_type() == DataType::Null {
                    "-".to_owned()
                } else {
                    array_value_to_string(column, row).unwrap()
                }
            };
            out.push(columns.iter().map(text).collect::<Vec<_>>().join(" "));
        }
    }
    out
}
