//! History in segments, against a model in which all of it stays in the database: the same rows once, whatever is written
//! late, loaded, moves to another shard, crashes or is applied again.

use super::*;
use crate::blob::BlobStore;
use crate::engine::deleted_keys_passed;
use crate::keys::{EntityKeys, push_order_key, slot_of, slot_of_order};
use crate::row::{RowEncoder, RowSchema};
use crate::segment::{LoadedRows, SegmentLayout, SegmentStore, SegmentWriter};
use crate::testing::field;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array};
use cairn_proto::record::v1::{
    AddSegment, Load, LoadNewest, ReplaceSegments, Segment, SlotMove, SlotMoveState, TrimHistory, meta_command,
};

mod by_hand;

const STORAGE_ID: u32 = 1;
const KEYS: i64 = 6;

#[derive(Debug, Clone)]
enum Op {
    /// (key, event time, created time, value); no value deletes.
    Write(Vec<(i64, i64, i64, Option<i64>)>),
    /// What is older goes to a segment of this shard, slots from that of a key on, up to so many rows.
    Extract(usize, i64, i64, u64),
    /// The segment last written is added, perhaps late or once more.
    Add(usize),
    Trim(usize, usize),
    /// A trim that was asked for before.
    Late(prop::sample::Index),
    Begin(i64, i64),
    Cancel,
    Drive(usize),
    Kill(usize, bool),
    /// A chunk is loaded: (key, event time, created time, value).
    Load(Vec<(i64, i64, i64, i64)>),
    /// A chunk is loaded once more, by the slots as they are now.
    LoadAgain(prop::sample::Index),
    /// Up to so many commands with newest rows of loads.
    Newest(usize, usize),
    /// Segments that pile up are merged; the swap may come again later.
    Merge(usize),
    Swap(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop::option::weighted(0.8, -3..4_i64);
    prop_oneof![
        10 => vec((0..KEYS, 0..9_i64, 0..9_i64, value), 1..8).prop_map(Op::Write),
        5 => (0..2_usize, 1..10_i64, 0..KEYS, 1..30_u64)
            .prop_map(|(shard, before, from, rows)| Op::Extract(shard, before, from, rows)),
        6 => (0..2_usize).prop_map(Op::Add),
        8 => (0..2_usize, 1..5_usize).prop_map(|(shard, times)| Op::Trim(shard, times)),
        2 => any::<prop::sample::Index>().prop_map(Op::Late),
        3 => (0..KEYS, 0..KEYS).prop_map(|(first, last)| Op::Begin(first, last)),
        1 => Just(Op::Cancel),
        8 => (1..6_usize).prop_map(Op::Drive),
        1 => (0..2_usize, any::<bool>()).prop_map(|(shard, flush)| Op::Kill(shard, flush)),
        4 => vec((0..KEYS, 0..9_i64, 0..9_i64, -3..4_i64), 1..30).prop_map(Op::Load),
        2 => any::<prop::sample::Index>().prop_map(Op::LoadAgain),
        5 => (0..2_usize, 1..6_usize).prop_map(|(shard, times)| Op::Newest(shard, times)),
        5 => (0..2_usize).prop_map(Op::Merge),
        2 => any::<prop::sample::Index>().prop_map(Op::Swap),
    ]
}

fn layout() -> SegmentLayout {
    let row = RowSchema::new(&[field("x", "int64")]).unwrap();
    SegmentLayout { storage_id: STORAGE_ID, join_keys: vec![field("k", "int64")], row, load: false }
}

fn entity(key: i64) -> Vec<u8> {
    let column: ArrayRef = Arc::new(Int64Array::from(vec![key]));
    EntityKeys::encode(&layout().join_keys, &[column]).unwrap().get(0).unwrap().to_vec()
}

fn packed(value: Option<i64>) -> Vec<u8> {
    let mut packed = Vec::new();
    if let Some(value) = value {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![value]));
        RowEncoder::new(&layout().row, &[column]).unwrap().encode(0, &mut packed).unwrap();
    }
    packed
}

fn row_of(columns: &Columns, row: usize) -> (Vec<u8>, i64, i64, i64, Vec<u8>) {
    let time = |column: &ArrayRef| column.as_primitive::<TimestampMicrosecondType>().value(row);
    let value = columns.features[0].as_primitive::<Int64Type>();
    let value = value.is_valid(row).then(|| value.value(row));
    assert_eq!(
        columns.deleted.as_ref().unwrap().as_boolean().value(row),
        value.is_none(),
        "a null is a row that deletes"
    );
    let committed = time(columns.committed.as_ref().unwrap());
    let key = entity(columns.keys[0].as_primitive::<Int64Type>().value(row));
    (key, time(&columns.event), time(&columns.created), committed, packed(value))
}

struct World {
    _dir: TempDir,
    store: Arc<SegmentStore>,
    shards: Vec<TestShard>,
    logs: Vec<Vec<Vec<u8>>>,
    moving: Option<SlotMove>,
    moves: u64,
    clock: i64,
    /// (shard, segment) written last.
    extract: Option<(usize, AddSegment)>,
    trims: Vec<(usize, TrimHistory)>,
    /// By key: (event, created, order of arrival) → packed row.
    rows: BTreeMap<i64, BTreeMap<(i64, i64, u64), Vec<u8>>>,
    arrivals: u64,
    added: usize,
    trimmed: usize,
    /// What the chunks of a job hold.
    chunks: Vec<Vec<(i64, i64, i64, i64)>>,
    swaps: Vec<(usize, ReplaceSegments)>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SegmentStore::new(BlobStore::open(dir.path()).unwrap(), 1 << 10);
        let mut world = Self {
            _dir: dir,
            store,
            shards: (0..2).map(|_| TestShard::new()).collect(),
            logs: vec![Vec::new(); 2],
            moving: None,
            moves: 0,
            clock: 1_000,
            extract: None,
            trims: Vec::new(),
            rows: BTreeMap::new(),
            arrivals: 0,
            added: 0,
            trimmed: 0,
            chunks: Vec::new(),
            swaps: Vec::new(),
        };
        world.shards.iter().for_each(|it| it.shard.keep_segments_in(world.store.clone()));
        // The log of the first is longer: its commits are ahead.
        (0..40).for_each(|_| drop(world.apply(0, command(0, Some(Change::TimeTick(TimeTick::default()))))));
        world
    }

    fn apply(&mut self, shard: usize, command: Vec<u8>) -> ShardOutcome {
        let first = self.logs[shard].len() as u64 + 1;
        let outcome = self.shards[shard].apply(first, std::slice::from_ref(&command)).remove(0);
        self.logs[shard].push(command);
        outcome
    }

    fn change(&mut self, shard: usize, change: Change) -> ShardOutcome {
        let command = ShardCommand { version: COMMAND_VERSION, proposed_at_us: self.clock, change: Some(change) };
        self.apply(shard, command.encode_to_vec())
    }

    /// The shard that has a slot; all are the first one's at home.
    fn shard_of(&self, key: i64) -> usize {
        let slot = slot_of(&entity(key));
        let claim = |shard: usize| self.shards[shard].shard.slots().claims().epoch(slot, shard == 0);
        (0..2).filter_map(|shard| Some((claim(shard)?, shard))).max().expect("somebody claims each slot").1
    }

    fn run(&mut self, op: &Op) {
        self.clock += 10;
        match op {
            Op::Write(rows) => {
                for shard in 0..2 {
                    let mine: Vec<_> = rows.iter().filter(|row| self.shard_of(row.0) == shard).copied().collect();
                    if !mine.is_empty() {
                        self.write(shard, &mine);
                    }
                }
            }
            Op::Extract(shard, before_us, from, rows_max) => {
                let again = rows_max % 3 == 0;
                let cold = Cold { storage_id: STORAGE_ID, before_us: *before_us, rows_max: *rows_max, again };
                let Some(slot) = self.shards[*shard].shard.cold_slot(&cold, slot_of(&entity(*from))) else { return };
                let Ok((Some((extract, bytes)), next)) =
                    self.shards[*shard].shard.extract(&cold, slot, layout(), Vec::new())
                else {
                    return;
                };
                assert_eq!(u32::from(next), extract.segment.last_slot + 1);
                let mut blob = self.store.blobs().writer().unwrap();
                blob.write(&bytes).unwrap();
                let info = blob.finish().unwrap();
                let root = info.root.to_vec().into();
                let segment = Some(Segment { root, size: info.size, ..extract.segment });
                self.extract = Some((*shard, AddSegment { segment, expected_changes: extract.expected_changes }));
            }
            Op::Add(other) => {
                // Mostly where it belongs.
                if let Some((shard, ask)) = self.extract.clone() {
                    let to = if *other == 0 && self.moving.is_none() { shard } else { (shard + other) % 2 };
                    if to == shard {
                        self.added += usize::from(self.change(to, Change::AddSegment(ask)).refused.is_none());
                    }
                }
            }
            Op::Trim(shard, times) => {
                for _ in 0..*times {
                    let Some(trim) = self.shards[*shard].shard.next_trim().unwrap() else { break };
                    self.trims.push((*shard, trim.clone()));
                    assert_eq!(self.change(*shard, Change::TrimHistory(trim)).refused, None);
                    self.trimmed += 1;
                }
            }
            Op::Late(at) => {
                if !self.trims.is_empty() {
                    let (shard, trim) = at.get(&self.trims).clone();
                    self.change(shard, Change::TrimHistory(trim));
                }
            }
            Op::Begin(first, last) => {
                let (from, first, last) = (self.shard_of(*first), slot_of(&entity(*first)), slot_of(&entity(*last)));
                let (first, last) = (first.min(last), first.max(last));
                let claims = self.shards[from].shard.slots().claims();
                let whole = (first..=last).all(|slot| claims.epoch(slot, from == 0).is_some());
                if self.moving.is_none() && whole {
                    self.moves += 1;
                    let (id, epoch) = (self.moves, self.moves + 1);
                    let (first, last) = (u32::from(first), u32::from(last));
                    let (from, to) = (from as u32 + 1, 2 - from as u32);
                    self.moving = Some(SlotMove { id, epoch, first, last, from, to, ..SlotMove::default() });
                }
            }
            Op::Cancel => {
                if let Some(it) = &mut self.moving
                    && it.state() == SlotMoveState::Copying
                {
                    it.state = SlotMoveState::Cancelling as i32;
                }
            }
            Op::Drive(times) => {
                for _ in 0..*times {
                    self.drive();
                }
            }
            Op::Kill(shard, flush) => {
                if *flush {
                    self.shards[*shard].shard.flush().unwrap();
                }
                let killed = self.shards[*shard].after_kill();
                killed.shard.keep_segments_in(self.store.clone());
                let applied = killed.shard.applied().index as usize;
                killed.apply(applied as u64 + 1, &self.logs[*shard][applied..]);
                assert_eq!(killed.shard.tiers(), self.shards[*shard].shard.tiers());
                self.shards[*shard] = killed;
            }
            Op::Load(rows) => {
                self.chunks.push(rows.clone());
                self.load(self.chunks.len() - 1);
            }
            Op::LoadAgain(at) => {
                if !self.chunks.is_empty() {
                    self.load(at.index(self.chunks.len()));
                }
            }
            Op::Newest(shard, times) => {
                self.newest(*shard, *times);
            }
            Op::Merge(shard) => {
                // Chunks may be asked for again at any time.
                if let Some(swap) = self.merge(*shard, None, true) {
                    assert_eq!(self.change(*shard, Change::ReplaceSegments(swap.clone())).refused, None);
                    self.swaps.push((*shard, swap));
                }
            }
            Op::Swap(at) => {
                if !self.swaps.is_empty() {
                    let (shard, swap) = at.get(&self.swaps).clone();
                    assert!(self.change(shard, Change::ReplaceSegments(swap)).refused.is_some(), "it came twice");
                }
            }
        }
    }

    /// What is due to be merged, written.
    fn merge(&self, shard: usize, floor_us: Option<i64>, open: bool) -> Option<ReplaceSegments> {
        let shard = &self.shards[shard].shard;
        let merge = shard.merge_due(STORAGE_ID, floor_us, 1, &|_| open)?;
        let layout = shard.merge_layout(&merge).unwrap();
        let (mut made, mut from) = (Vec::new(), merge.first_slot());
        while let (Some((segment, bytes)), next) = shard.merge(&merge, from, layout.clone(), Vec::new()).unwrap() {
            let mut blob = self.store.blobs().writer().unwrap();
            blob.write(&bytes).unwrap();
            let info = blob.finish().unwrap();
            made.push(Segment { root: info.root.to_vec().into(), size: info.size, ..segment });
            from = next;
        }
        Some(merge.into_command(made))
    }

    /// Loads what is missing of a chunk, run by run of slots, until a shard refuses.
    fn load(&mut self, chunk: usize) {
        const JOB: u64 = 7;
        let mut taken = [false; 4096];
        for shard in &self.shards {
            for it in shard.shard.tiers().load_of(JOB, chunk as u32) {
                taken[it.first_slot as usize..=it.last_slot as usize].fill(true);
            }
        }
        // In order, each key and times once.
        let mut rows = BTreeMap::new();
        for (key, event, created, value) in &self.chunks[chunk] {
            let mut order = Vec::new();
            push_order_key(&entity(*key), *event, *created, &mut order);
            if !taken[usize::from(slot_of_order(&order))] {
                rows.insert(order, (*key, *event, *created, *value));
            }
        }
        let claims: Vec<_> = self.shards.iter().map(|it| it.shard.slots().claims()).collect();
        let owner = |slot: u16| (0..2).filter_map(|it| Some((claims[it].epoch(slot, it == 0)?, it))).max().unwrap().1;
        let rows: Vec<_> = rows.into_iter().collect();
        let mut rest = &rows[..];
        while let Some((order, _)) = rest.first() {
            let first = slot_of_order(order);
            let shard = owner(first);
            let end = (first..4096).find(|slot| owner(*slot) != shard).unwrap_or(4096);
            let (run, behind) = rest.split_at(rest.partition_point(|(order, _)| slot_of_order(order) < end));
            rest = behind;
            if !self.add_load(shard, run, Load { job: JOB, chunk: chunk as u32, ..Default::default() }) {
                return;
            }
        }
    }

    fn add_load(&mut self, shard: usize, rows: &[(Vec<u8>, (i64, i64, i64, i64))], load: Load) -> bool {
        let column = |of: fn(&(i64, i64, i64, i64)) -> i64| rows.iter().map(|(_, row)| of(row)).collect::<Vec<_>>();
        let (keys, events) = (Int64Array::from(column(|row| row.0)), column(|row| row.1));
        let mut writer = SegmentWriter::new(SegmentLayout { load: true, ..layout() }, Vec::new()).unwrap();
        let (order, created) =
            (BinaryArray::from_iter_values(rows.iter().map(|(order, _)| order)), column(|row| row.2));
        let all = LoadedRows {
            order: &order,
            join_keys: &[Arc::new(keys)],
            event_us: &events.into(),
            created_us: &created.into(),
            features: &[Arc::new(Int64Array::from(column(|row| row.3)))],
        };
        writer.push_loaded(&all).unwrap();
        let (written, bytes) = writer.finish().unwrap();
        let mut blob = self.store.blobs().writer().unwrap();
        blob.write(&bytes).unwrap();
        let info = blob.finish().unwrap();
        let slot = |at: Option<&(Vec<u8>, _)>| u32::from(slot_of_order(&at.unwrap().0));
        let segment = Segment {
            storage_id: STORAGE_ID,
            root: info.root.to_vec().into(),
            size: info.size,
            rows: written.rows,
            first_slot: slot(rows.first()),
            last_slot: slot(rows.last()),
            before_us: written.event_max_us + 1,
            event_min_us: written.event_min_us,
            event_max_us: written.event_max_us,
            load: Some(load),
            ..Default::default()
        };
        let expected_changes = self.shards[shard].shard.tiers().changes();
        let ask = AddSegment { segment: Some(segment), expected_changes };
        if let Some(refusal) = self.change(shard, Change::AddSegment(ask.clone())).refused {
            assert!(refusal.message.contains("a move of slots is under way"), "{refusal:?}");
            return false;
        }
        let again = AddSegment { expected_changes: expected_changes + 1, ..ask };
        let refusal = self.change(shard, Change::AddSegment(again)).refused.unwrap();
        assert_eq!(refusal.message, "some of these rows are loaded already");
        for (_, (key, event, created, value)) in rows {
            self.rows.entry(*key).or_default().insert((*event, *created, self.arrivals), packed(Some(*value)));
        }
        self.arrivals += 1;
        true
    }

    /// Whether anything of loads was left to be done in a shard.
    fn newest(&mut self, shard: usize, times: usize) -> bool {
        let Some(load) = self.shards[shard].shard.unfinished_load(STORAGE_ID) else { return false };
        let groups = self.shards[shard].shard.groups_of(&load).unwrap();
        let found = (0..groups).flat_map(|group| self.shards[shard].shard.newest_of(&load, group).unwrap());
        let mut asks: Vec<_> = found.collect();
        asks.push(LoadNewest { id: load.id, last: true, ..LoadNewest::default() });
        for ask in asks.into_iter().take(times) {
            if let Some(refusal) = self.change(shard, Change::LoadNewest(ask)).refused {
                assert!(refusal.message.contains("a move of slots is under way"), "{refusal:?}");
                break;
            }
        }
        true
    }

    /// The newest row of each entity is found, once all loads are done with.
    fn check_latest(&self) {
        if self.shards.iter().any(|it| it.shard.unfinished_load(STORAGE_ID).is_some()) {
            return;
        }
        for key in 0..KEYS {
            let mut found = None;
            let visit = &mut |_, row: Option<RowRef<'_>>| {
                found = row.map(|it| (it.event_us, it.created_us, it.packed.to_vec()))
            };
            self.shards[self.shard_of(key)].shard.latest(STORAGE_ID, &[&entity(key)], visit).unwrap();
            let newest = self.rows.get(&key).and_then(|rows| rows.last_key_value());
            assert_eq!(found, newest.map(|((e, c, _), packed)| (*e, *c, packed.clone())), "key {key}");
        }
    }

    fn write(&mut self, shard: usize, rows: &[(i64, i64, i64, Option<i64>)]) {
        let mut block = BlockWriter::new();
        rows.iter()
            .for_each(|(key, event, created, value)| block.push(&entity(*key), *event, *created, &packed(*value)));
        let (row_count, rows_bytes) = (rows.len() as u32, block.finish().into());
        let upsert = UpsertRows { storage_id: STORAGE_ID, rows: rows_bytes, row_count, ..UpsertRows::default() };
        let command = ShardCommand {
            version: DELETE_VERSION,
            proposed_at_us: self.clock,
            change: Some(Change::UpsertRows(upsert)),
        };
        let outcome = self.apply(shard, command.encode_to_vec());
        if outcome.slots_moved {
            return;
        }
        assert_eq!(outcome.refused, None);
        for (key, event, created, value) in rows {
            self.rows.entry(*key).or_default().insert((*event, *created, self.arrivals), packed(*value));
        }
        self.arrivals += 1;
    }

    fn drive(&mut self) -> bool {
        let Some(it) = self.moving else { return false };
        let (from, to) = (it.from as usize - 1, it.to as usize - 1);
        for ask in next_asks(&it, &self.shards[from].shard, &self.shards[to].shard).unwrap() {
            let (shard, change) = match ask {
                Ask::From(change) => (from, change),
                Ask::To(change) => (to, change),
                Ask::Meta(change) => {
                    match *change {
                        meta_command::Change::SwitchSlotMap(_) => {
                            self.moving = Some(SlotMove { state: SlotMoveState::Switched as i32, ..it });
                        }
                        _ => self.moving = None,
                    }
                    continue;
                }
            };
            assert_eq!(self.change(shard, change).refused, None);
        }
        true
    }

    /// Every row is found once, in its place, and every lookup finds what the model finds.
    fn check(&self) {
        for key in 0..KEYS {
            let (shard, entity, none) = (&self.shards[self.shard_of(key)], entity(key), BTreeMap::new());
            let rows = self.rows.get(&key).unwrap_or(&none);
            let mut found = Vec::new();
            let visit = &mut |_: &[u8], row: RowRef<'_>| {
                found.push((row.event_us, row.created_us, row.packed.to_vec()));
                ControlFlow::Continue(())
            };
            shard.shard.scan(STORAGE_ID, Scope::Entity(&entity), visit).unwrap();
            let all = rows.iter().rev().map(|((event, created, _), packed)| (*event, *created, packed.clone()));
            assert_eq!(found, all.collect::<Vec<_>>(), "key {key}");
            let lookups: Vec<(i64, i64)> = (-1..10).flat_map(|event| (-1..10).map(move |it| (event, it))).collect();
            let asked: Vec<Lookup<'_>> = (lookups.iter())
                .map(|&(event_us, created_us)| Lookup { key: &entity, event_us, created_us, committed_us: i64::MAX })
                .collect();
            let expected = |(event, created): &(i64, i64)| {
                let row = rows.iter().rfind(|((e, c, _), _)| e <= event && c <= created);
                row.map(|((event, created, _), packed)| (*event, *created, packed.clone()))
            };
            let expected: Vec<_> = lookups.iter().map(expected).collect();
            let plain = |row: Option<Found>| row.map(|row| (row.event_us, row.created_us, row.packed));
            let together: Vec<_> = shard.as_of(STORAGE_ID, &asked).into_iter().map(plain).collect();
            assert_eq!(together, expected, "key {key}");
            for (lookup, expected) in asked.iter().zip(&expected).step_by(17) {
                let alone = shard.as_of(STORAGE_ID, std::slice::from_ref(lookup)).remove(0);
                assert_eq!(plain(alone), *expected);
            }
        }
        for shard in &self.shards {
            let mut last = Vec::new();
            let visit = &mut |key: &[u8], _: RowRef<'_>| {
                let place = (slot_of(key), key.to_vec());
                assert!(last.last().is_none_or(|last| *last <= place), "out of order");
                last.push(place);
                ControlFlow::Continue(())
            };
            shard.shard.scan(STORAGE_ID, Scope::All, visit).unwrap();
        }
        self.check_sweeps();
        self.check_columns();
    }

    /// As columns there are the rows that a walk shows, each once.
    fn check_columns(&self) {
        // Key, event, created and commit time, value.
        type Row = (Vec<u8>, i64, i64, i64, Vec<u8>);
        for shard in &self.shards {
            for (slots, bounds) in [
                (0..4096, i64::MIN..=i64::MAX),
                (slot_of(&entity(1))..slot_of(&entity(1)) + 1, 0..=9),
                (0..2048, 2..=5),
                (2048..4096, 4..=4),
            ] {
                let mut expected: Vec<Row> = Vec::new();
                let visit = &mut |key: &[u8], row: RowRef<'_>| {
                    if bounds.contains(&row.event_us) {
                        let packed = row.packed.to_vec();
                        expected.push((key.to_vec(), row.event_us, row.created_us, row.committed_us, packed));
                    }
                    ControlFlow::Continue(())
                };
                shard.shard.scan(STORAGE_ID, Scope::Slots(slots.clone()), visit).unwrap();
                let ask = ColumnScan {
                    storage_id: STORAGE_ID,
                    slots: slots.clone(),
                    event_us: bounds.clone(),
                    features: &[0],
                    keys: true,
                    committed: true,
                    deleted: true,
                };
                let mut found: Vec<Row> = Vec::new();
                let visit = &mut |piece: Piece<'_>| {
                    match piece {
                        Piece::Row(key, row) if bounds.contains(&row.event_us) => {
                            let packed = row.packed.to_vec();
                            found.push((key.to_vec(), row.event_us, row.created_us, row.committed_us, packed));
                        }
                        Piece::Row(..) => {}
                        Piece::Columns(columns) => (0..columns.rows).for_each(|row| found.push(row_of(&columns, row))),
                    }
                    ControlFlow::Continue(())
                };
                shard.shard.scan_columns(&ask, visit).unwrap();
                expected.sort();
                found.sort();
                assert_eq!(found, expected, "{slots:?} {bounds:?}");
                // Nothing but what is asked for is read, and the rows are as many.
                let ask = ColumnScan { features: &[], keys: false, committed: false, deleted: false, ..ask };
                let mut rows = 0;
                let visit = &mut |piece: Piece<'_>| {
                    match piece {
                        Piece::Row(_, row) => rows += usize::from(bounds.contains(&row.event_us)),
                        Piece::Columns(columns) => {
                            assert!(columns.keys.is_empty() && columns.features.is_empty());
                            assert!(columns.committed.is_none() && columns.deleted.is_none());
                            assert_eq!(columns.event.len(), columns.rows);
                            rows += columns.rows;
                        }
                    }
                    ControlFlow::Continue(())
                };
                shard.shard.scan_columns(&ask, visit).unwrap();
                assert_eq!(rows, expected.len(), "{slots:?} {bounds:?}");
            }
        }
    }

    /// One walk finds what lookups one by one find.
    fn check_sweeps(&self) {
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..KEYS));
        let keys = EntityKeys::encode(&layout().join_keys, &[keys]).unwrap();
        for (number, shard) in self.shards.iter().enumerate() {
            let held: Vec<i64> = (0..KEYS).filter(|key| self.shard_of(*key) == number).collect();
            let known = [i64::MAX, self.clock - 1];
            for (mode, committed_us) in [-2, -1, self.clock % 9].into_iter().flat_map(|mode| known.map(|it| (mode, it)))
            {
                // Created by the event's own time, by one time, or whenever.
                let created = |event: i64| match mode {
                    -2 => event,
                    -1 => i64::MAX,
                    created => created,
                };
                let target = |(key, event)| Target::new(&keys, key as u32, event, created(event)).unwrap();
                let mut targets: Vec<Target> =
                    held.iter().flat_map(|key| (-1..10).map(move |event| (*key, event))).map(target).collect();
                targets.push(target((*held.first().unwrap_or(&0), 5)));
                sort_targets(&mut targets, &keys);
                let projection = &[0][..];
                let (row, oldest_us) = (layout().row, i64::MIN);
                let schema = &row;
                let ask = Sweep { storage_id: STORAGE_ID, schema, projection, keys: &keys, committed_us, oldest_us };
                let swept = shard.shard.sweep(&ask, &targets).unwrap();
                let found = swept.found.iter().map(|found| match found.place {
                    Place::Nowhere => None,
                    Place::In { part, row } => {
                        let values = swept.parts[part as usize][0].as_primitive::<Int64Type>();
                        Some((found.event_us, packed(Some(values.value(row as usize)))))
                    }
                });
                let lookups = targets.iter().map(|it| Lookup {
                    key: keys.get(it.row as usize).unwrap(),
                    event_us: it.event_us,
                    created_us: it.created_us,
                    committed_us,
                });
                let lookups: Vec<Lookup<'_>> = lookups.collect();
                let expected = shard.as_of(STORAGE_ID, &lookups).into_iter();
                let expected = expected.map(|row| row.map(|row| (row.event_us, row.packed)));
                let expected = expected.map(|row| row.filter(|(_, packed)| !packed.is_empty()));
                assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{mode} {committed_us}");
            }
        }
    }

    /// The same log in other pieces gives the same state.
    fn check_replay(&self, cuts: &[usize]) {
        for (log, shard) in self.logs.iter().zip(&self.shards) {
            let again = TestShard::new();
            again.shard.keep_segments_in(self.store.clone());
            let mut cuts = cuts.iter().copied().cycle();
            let mut at = 0;
            while at < log.len() {
                let next = (at + cuts.next().unwrap_or(1)).min(log.len());
                again.apply(at as u64 + 1, &log[at..next]);
                at = next;
            }
            assert_eq!(again.shard.tiers(), shard.shard.tiers());
            assert_eq!(again.shard.checksum().unwrap(), shard.shard.checksum().unwrap(), "the bytes differ");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn rows_go_to_segments_and_nothing_else_changes(ops in vec(op(), 1..60), cuts in vec(1..30_usize, 1..6)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
            world.check();
            world.check_latest();
        }
        for _ in 0..200 {
            if !world.drive() {
                break;
            }
        }
        prop_assert_eq!(world.moving, None, "the move ends");
        // Every chunk comes to its end, and every load.
        (0..world.chunks.len()).for_each(|chunk| world.load(chunk));
        (0..2).for_each(|shard| while world.newest(shard, 1_000) {});
        prop_assert!(world.shards.iter().all(|it| it.shard.unfinished_load(STORAGE_ID).is_none()));
        world.check();
        world.check_latest();
        for shard in 0..2 {
            (0..100).for_each(|_| world.run(&Op::Trim(shard, 10)));
            let mut times = 0;
            while let Some(swap) = world.merge(shard, None, false) {
                prop_assert_eq!(world.change(shard, Change::ReplaceSegments(swap)).refused, None);
                times += 1;
                prop_assert!(times < 50, "merges end");
            }
        }
        world.check();
        world.check_latest();
        world.check_replay(&cuts);
    }
}
