//! Slots that move between shards, against a model in which nothing moves: the same rows, the same history, every
//! (producer, sequence) once, whatever crashes, comes late or comes twice.

use super::*;
use crate::keys::slot_of;
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{
    ActivateSlots, CancelExport, DropImport, ImportRows, PurgeSlots, ReleaseSlots, SealSlots, SlotMove, SlotMoveState,
    StartExport, StartImport, meta_command,
};
use std::collections::BTreeSet;

const SHARDS: u32 = 3;
const KEYS: u8 = 9;
const PRODUCER: &str = "etl";
/// Of the commands whose bytes are kept in golden files.
const MOVE_VERSION: u32 = 2;

/// A batch of a client: always the same rows under its sequence.
#[derive(Debug, Clone)]
struct Batch {
    storage_id: u32,
    sequence: Option<u64>,
    rows: Vec<TestRow>,
}

#[derive(Debug, Clone)]
enum Op {
    Write(Vec<TestRow>, u32, bool, i64),
    /// Of a batch sent before, cut by the table as it was some tables ago.
    WriteAgain(prop::sample::Index, usize),
    /// A range between the slots of two keys.
    Begin(u8, u8, u32),
    Cancel,
    /// So many times whatever the driver does next.
    Drive(usize),
    /// A command that a driver sent before arrives once more.
    Late(prop::sample::Index),
    /// A second driver looks what is next …
    Look,
    /// … and proposes it whenever it gets to that.
    Act,
    Kill(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (vec(test_row_of(KEYS), 1..6), 1..3_u32, any::<bool>(), 0..300_i64)
            .prop_map(|(rows, storage_id, once, skew)| Op::Write(rows, storage_id, once, skew)),
        4 => (any::<prop::sample::Index>(), 0..4_usize).prop_map(|(batch, age)| Op::WriteAgain(batch, age)),
        3 => (0..KEYS, 0..KEYS, 1..=SHARDS).prop_map(|(first, last, to)| Op::Begin(first, last, to)),
        1 => Just(Op::Cancel),
        12 => (1..5_usize).prop_map(Op::Drive),
        4 => any::<prop::sample::Index>().prop_map(Op::Late),
        3 => Just(Op::Look),
        3 => Just(Op::Act),
        1 => (0..SHARDS as usize, any::<bool>()).prop_map(|(shard, flush)| Op::Kill(shard, flush)),
    ]
}

fn test_row_of(keys: u8) -> impl Strategy<Value = TestRow> {
    (0..keys, 0..2_i64, 0..2_i64, any::<u8>()).prop_map(|(key, event_us, created_us, byte)| TestRow {
        key,
        event_us,
        created_us,
        packed: vec![byte],
    })
}

fn home_table() -> Vec<u32> {
    (0..SLOTS as u16).map(|slot| home_shard(slot, SHARDS)).collect()
}

struct World {
    shards: Vec<TestShard>,
    /// Of each shard, all commands it has applied.
    logs: Vec<Vec<Vec<u8>>>,
    /// As meta has it.
    map: Vec<u32>,
    epoch: u64,
    moving: Option<SlotMove>,
    moves: u64,
    /// The tables that routers have gone by, the newest last.
    tables: Vec<Vec<u32>>,
    clock: i64,
    batches: Vec<Batch>,
    /// Rows of batches that some shard turned away.
    waiting: Vec<(Batch, Vec<usize>)>,
    sent: Vec<(usize, Change)>,
    looked: Vec<(SlotMove, Ask)>,
    // The model: arrival counts as commit.
    arrivals: u64,
    rows: BTreeMap<(u32, u8), BTreeMap<(i64, i64, u64), Found>>,
    taken: BTreeSet<(u32, u64, usize)>,
    turned_away: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self::empty();
        // Logs are of unequal length, so an old shard's commits may be ahead of a new one's.
        for (shard, ticks) in [(0, 90), (2, 300)] {
            let ticks = vec![command(0, Some(Change::TimeTick(TimeTick::default()))); ticks];
            world.shards[shard].apply(1, &ticks);
            world.logs[shard] = ticks;
        }
        world
    }

    fn empty() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| TestShard::new()).collect(),
            logs: vec![Vec::new(); SHARDS as usize],
            map: home_table(),
            epoch: 1,
            moving: None,
            moves: 0,
            tables: vec![home_table()],
            clock: 1_000,
            batches: Vec::new(),
            waiting: Vec::new(),
            sent: Vec::new(),
            looked: Vec::new(),
            arrivals: 0,
            rows: BTreeMap::new(),
            taken: BTreeSet::new(),
            turned_away: 0,
        }
    }

    fn apply(&mut self, shard: usize, command: Vec<u8>) -> ShardOutcome {
        let outcome =
            self.shards[shard].apply(self.logs[shard].len() as u64 + 1, std::slice::from_ref(&command)).remove(0);
        self.logs[shard].push(command);
        self.route();
        outcome
    }

    /// The table of a router that sees all shards as they are.
    fn route(&mut self) {
        let claims: Vec<_> = self.shards.iter().map(|it| it.shard.slots().claims()).collect();
        let one = |slot: u16| {
            let claim = |shard: u32| claims[shard as usize - 1].epoch(slot, home_shard(slot, SHARDS) == shard);
            (1..=SHARDS).filter_map(|shard| Some((claim(shard)?, shard))).max().expect("somebody claims each slot").1
        };
        let table: Vec<u32> = (0..SLOTS as u16).map(one).collect();
        if self.tables.last() != Some(&table) {
            self.tables.push(table);
        }
    }

    fn shard_of(&self, key: u8) -> usize {
        self.tables.last().unwrap()[usize::from(slot_of(&[key]))] as usize - 1
    }

    fn send(&mut self, batch: &Batch, places: &[usize], age: usize) {
        let table = self.tables[self.tables.len().saturating_sub(1 + age)].clone();
        for shard in 1..=SHARDS {
            let of_shard = |place: &usize| table[usize::from(slot_of(&[batch.rows[*place].key]))] == shard;
            let cut: Vec<usize> = places.iter().copied().filter(of_shard).collect();
            if !cut.is_empty() {
                self.send_cut(shard as usize - 1, batch, cut);
            }
        }
    }

    fn send_cut(&mut self, shard: usize, batch: &Batch, cut: Vec<usize>) {
        let rows: Vec<TestRow> = cut.iter().map(|place| batch.rows[*place].clone()).collect();
        let (producer, sequence) = batch.sequence.map_or(("", 0), |sequence| (PRODUCER, sequence));
        let outcome = self.apply(shard, upsert(batch.storage_id, self.clock, producer, sequence, &rows));
        if outcome.slots_moved {
            assert_eq!((outcome.rows_accepted, outcome.rows_duplicate), (0, 0));
            self.turned_away += 1;
            self.waiting.push((batch.clone(), cut));
            return;
        }
        assert_eq!(outcome.refused, None);
        let (mut accepted, mut duplicate) = (0, 0);
        for place in cut {
            if let Some(sequence) = batch.sequence
                && !self.taken.insert((batch.storage_id, sequence, place))
            {
                duplicate += 1;
                continue;
            }
            accepted += 1;
            let row = &batch.rows[place];
            let (event_us, created_us, packed) = (row.event_us, row.created_us, row.packed.clone());
            let found = Found { event_us, created_us, commit: 0, committed_us: outcome.applied_us, packed };
            let entity = self.rows.entry((batch.storage_id, row.key)).or_default();
            let before = entity.values().map(|row| row.committed_us).max();
            assert!(before.is_none_or(|before| before <= outcome.applied_us), "commit time went back");
            // Rows of one command have one commit: of equal times the later one stays.
            entity.insert((event_us, created_us, self.arrivals), found);
        }
        self.arrivals += 1;
        assert_eq!((outcome.rows_accepted, outcome.rows_duplicate), (accepted, duplicate), "{batch:?}");
    }

    /// What was turned away is cut again by the table as it is now.
    fn send_waiting(&mut self) {
        for (batch, places) in std::mem::take(&mut self.waiting) {
            self.send(&batch, &places, 0);
        }
    }

    fn begin(&mut self, first: u16, last: u16, to: u32) {
        let from = self.map[usize::from(first)];
        let whole = self.map[usize::from(first)..=usize::from(last)].iter().all(|shard| *shard == from);
        if self.moving.is_none() && whole && from != to {
            self.moves += 1;
            let (id, epoch) = (self.moves, self.epoch + 1);
            let (first, last) = (u32::from(first), u32::from(last));
            self.moving = Some(SlotMove { id, epoch, first, last, from, to, ..SlotMove::default() });
        }
    }

    fn next(&self) -> Option<(SlotMove, Vec<Ask>)> {
        let it = self.moving?;
        let (from, to) = (&self.shards[it.from as usize - 1], &self.shards[it.to as usize - 1]);
        Some((it, next_asks(&it, &from.shard, &to.shard).unwrap()))
    }

    /// Whether there was anything to do.
    fn drive(&mut self) -> bool {
        let Some((it, asks)) = self.next() else { return false };
        assert!(!asks.is_empty(), "these replicas are not behind");
        for ask in asks {
            assert!(self.propose(&it, ask), "nobody was faster");
        }
        true
    }

    /// Proposes a step; whether it was taken.
    fn propose(&mut self, it: &SlotMove, ask: Ask) -> bool {
        let (shard, change) = match ask {
            Ask::From(change) => (it.from, change),
            Ask::To(change) => (it.to, change),
            Ask::Meta(change) => {
                // As meta does it.
                let Some(now) = self.moving.filter(|now| now.id == it.id) else { return false };
                match (*change, now.state()) {
                    (meta_command::Change::SwitchSlotMap(_), _) => {
                        self.map[it.first as usize..=it.last as usize].fill(it.to);
                        self.epoch = it.epoch;
                        self.moving = Some(SlotMove { state: SlotMoveState::Switched as i32, ..now });
                    }
                    (meta_command::Change::EndSlotMove(_), SlotMoveState::Copying) => return false,
                    (meta_command::Change::EndSlotMove(_), _) => self.moving = None,
                    other => panic!("{other:?}"),
                }
                return true;
            }
        };
        let shard = shard as usize - 1;
        self.sent.push((shard, change.clone()));
        // Its clock is behind all others.
        self.apply(shard, step(self.clock - 900, change)).refused.is_none()
    }

    fn kill(&mut self, shard: usize, flush: bool) {
        if flush {
            self.shards[shard].shard.flush().unwrap();
        }
        let killed = self.shards[shard].after_kill();
        let applied = killed.shard.applied().index as usize;
        if applied < self.logs[shard].len() {
            killed.apply(applied as u64 + 1, &self.logs[shard][applied..]);
        }
        assert_eq!(killed.shard.slots(), self.shards[shard].shard.slots());
        self.shards[shard] = killed;
        self.route();
    }

    fn run(&mut self, op: &Op) {
        self.clock += 10;
        match op {
            Op::Write(rows, storage_id, once, skew) => {
                // The clocks of leaders differ.
                self.clock -= skew;
                let sequence = once.then_some(self.batches.len() as u64);
                let batch = Batch { storage_id: *storage_id, sequence, rows: rows.clone() };
                self.batches.push(batch.clone());
                self.send(&batch, &(0..batch.rows.len()).collect::<Vec<_>>(), 0);
                self.clock += skew;
            }
            Op::WriteAgain(at, age) => {
                let batches: Vec<Batch> =
                    self.batches.iter().filter(|batch| batch.sequence.is_some()).cloned().collect();
                // Mostly one that was sent lately: something may be moving since.
                let lately = &batches[batches.len().saturating_sub(5)..];
                if !lately.is_empty() {
                    let batch = at.get(lately);
                    self.send(batch, &(0..batch.rows.len()).collect::<Vec<_>>(), *age);
                }
            }
            Op::Begin(first, last, to) => {
                let (first, last) = (slot_of(&[*first]), slot_of(&[*last]));
                self.begin(first.min(last), first.max(last), *to);
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
                self.send_waiting();
            }
            Op::Late(at) => {
                if !self.sent.is_empty() {
                    let (shard, change) = at.get(&self.sent).clone();
                    self.apply(shard, step(self.clock, change));
                }
            }
            Op::Look => {
                if let Some((it, asks)) = self.next() {
                    self.looked = asks.into_iter().map(|ask| (it, ask)).collect();
                }
            }
            Op::Act => {
                for (it, ask) in std::mem::take(&mut self.looked) {
                    if !self.propose(&it, ask) {
                        break;
                    }
                }
            }
            Op::Kill(shard, flush) => self.kill(*shard, *flush),
        }
    }

    /// Every read gives what the model gives.
    fn check(&self) {
        let without_commit = |found: Option<Found>| found.map(|found| Found { commit: 0, ..found });
        for storage_id in 1..3 {
            for key in 0..KEYS {
                let shard = &self.shards[self.shard_of(key)];
                let none = BTreeMap::new();
                let rows = self.rows.get(&(storage_id, key)).unwrap_or(&none);
                let newest = rows.values().next_back().cloned();
                assert_eq!(without_commit(shard.latest(storage_id, &[key]).remove(0)), newest, "key {key}");
                for (event_us, created_us) in [(0, 1), (1, 0), (1, 1), (-1, 1)] {
                    for committed_us in [i64::MAX, self.clock - 150] {
                        let key = &[key];
                        let found = shard.as_of(storage_id, &[Lookup { key, event_us, created_us, committed_us }]);
                        let fits = |row: &&Found| {
                            row.event_us <= event_us && row.created_us <= created_us && row.committed_us <= committed_us
                        };
                        let expected = rows.values().rfind(fits).cloned();
                        assert_eq!(without_commit(found.into_iter().next().unwrap()), expected);
                    }
                }
            }
        }
    }

    /// Moves end, whatever was turned away is taken, and only owners have rows.
    fn finish(&mut self) {
        for _ in 0..1000 {
            if !self.drive() {
                break;
            }
        }
        assert_eq!(self.moving, None, "the move ends");
        self.send_waiting();
        assert!(self.waiting.is_empty(), "nothing is turned away when nothing moves");
        assert_eq!(self.tables.last(), Some(&self.map), "shards and meta agree");
        let taken = self.taken.len();
        for batch in self.batches.clone().iter().filter(|batch| batch.sequence.is_some()) {
            self.send(batch, &(0..batch.rows.len()).collect::<Vec<_>>(), 0);
        }
        assert_eq!(self.taken.len(), taken, "every sequence is known, wherever its rows are");
        for (it, shard) in (1..).zip(&self.shards) {
            for storage_id in 1..3 {
                let visit = &mut |key: &[u8], _: RowRef<'_>| {
                    assert_eq!(self.map[usize::from(slot_of(key))], it, "a row that was given away");
                    ControlFlow::Continue(())
                };
                shard.shard.scan(storage_id, Scope::All, visit).unwrap();
                shard.shard.scan_latest(storage_id, Scope::All, visit).unwrap();
            }
            // What was written down for copies is gone.
            let none = &mut |key: &[u8], _: &[u8]| panic!("a change is left: {key:?}");
            shard.shard.group.db().visit_prefix(SYSTEM, &[6], none).unwrap();
        }
    }
}

fn step(proposed_at_us: i64, change: Change) -> Vec<u8> {
    ShardCommand { version: MOVE_VERSION, proposed_at_us, change: Some(change) }.encode_to_vec()
}

/// All that is stored but the position.
fn dump(shard: &TestShard) -> Vec<(usize, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for cf in [LATEST, HISTORY, SYSTEM] {
        let visit = &mut |key: &[u8], value: &[u8]| {
            if cf != SYSTEM || key != records::STATE_KEY {
                all.push((cf.0, key.to_vec(), value.to_vec()));
            }
            ControlFlow::Continue(())
        };
        shard.shard.group.db().visit_prefix(cf, &[], visit).unwrap();
    }
    all
}

/// Two shards, a move of everything from the first to the second, and a log for each.
struct Pair {
    world: World,
}

impl Pair {
    fn new() -> Self {
        Self { world: World::new() }
    }

    fn step(&mut self, shard: usize, change: Change) -> Result<ShardOutcome, String> {
        let outcome = self.world.apply(shard, step(500, change));
        outcome.refused.clone().map_or(Ok(outcome), |refusal| Err(format!("{}: {}", refusal.kind, refusal.message)))
    }
}

#[test]
fn steps_out_of_place_are_refused_and_change_nothing() {
    let mut pair = Pair::new();
    let epoch = 2;
    let export = |id, first, last| Change::StartExport(StartExport { id, first, last, epoch });
    let import = |id, first, last, origins: &[u32]| {
        Change::StartImport(StartImport { id, first, last, epoch, origins: origins.to_vec() })
    };
    let seal = |id| Change::SealSlots(SealSlots { id });
    let release = |id, sealed_index| Change::ReleaseSlots(ReleaseSlots { id, sealed_index });
    let purge = |id| Change::PurgeSlots(PurgeSlots { id });
    let cancel = |id| Change::CancelExport(CancelExport { id });
    let drop_import = |id| Change::DropImport(DropImport { id });
    let activate = |id, cursor: &[u8]| {
        let cursor = cursor.to_vec().into();
        Change::ActivateSlots(ActivateSlots { id, cursor, commit_floor: 9_000, time_floor_us: 70_000 })
    };
    let part = |id, from: &[u8], to: &[u8], rows: &[u8]| {
        let (expected_cursor, next_cursor, rows) = (from.to_vec().into(), to.to_vec().into(), rows.to_vec().into());
        Change::ImportRows(ImportRows { id, expected_cursor, next_cursor, rows, sequences: Vec::new() })
    };
    let mut no = |shard: usize, change: Change, why: &str| {
        let before = dump(&pair.world.shards[shard]);
        let error = pair.step(shard, change.clone()).expect_err(&format!("{change:?}"));
        assert!(error.contains(why), "{error}");
        assert_eq!(dump(&pair.world.shards[shard]), before, "a refusal changed something");
    };
    no(0, export(5, 3, 2), "invalid_argument: 3-2 is no range of slots");
    no(0, export(5, 3, 4096), "is no range of slots");
    no(0, seal(5), "conflict: move 5 takes nothing from this shard now");
    no(0, release(5, 1), "takes nothing");
    no(0, purge(5), "takes nothing");
    no(1, part(5, b"", b"x", &[1]), "move 5 brings nothing to this shard now");
    no(1, activate(5, b""), "brings nothing");
    no(1, import(5, 10, 20, &[]), "invalid_argument: the pieces [] are not those of slots 10-20");
    no(1, import(5, 10, 20, &[10, 21]), "are not those");
    no(1, import(5, 10, 20, &[10, 10]), "are not those");

    let mut pair = Pair::new();
    pair.step(0, export(5, 10, 20)).unwrap();
    pair.step(0, export(5, 10, 20)).unwrap();
    pair.step(1, import(5, 10, 20, &[10])).unwrap();
    pair.step(1, import(5, 10, 20, &[10])).unwrap();
    pair.step(1, part(5, b"", b"a", &[1])).unwrap();
    let mut no = |shard: usize, change: Change, why: &str| {
        let before = dump(&pair.world.shards[shard]);
        let error = pair.step(shard, change.clone()).expect_err(&format!("{change:?}"));
        assert!(error.contains(why), "{error}");
        assert_eq!(dump(&pair.world.shards[shard]), before, "a refusal changed something");
    };
    no(0, export(6, 30, 40), "move 6 cannot begin: move 5 is under way here");
    no(1, import(6, 30, 40, &[30]), "move 6 cannot begin: move 5 is under way here");
    no(0, release(5, 1), "are not sealed at 1");
    no(0, purge(5), "the slots of move 5 are not released");
    no(1, part(5, b"", b"b", &[1]), "this part of move 5 is not the next one");
    no(1, part(5, b"a", b"b", &[2]), "invalid_argument: the rows of a part have a layout");
    no(1, part(5, b"a", b"b", &[1, 9]), "cut short");
    let pair_of = |key: &[u8], value: &[u8]| {
        let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        [&[1], &length(key)[..], key, &length(value), value].concat()
    };
    let key = |slot: u16| [&slot.to_be_bytes()[..], &[0, 0, 0, 1, 7], &[0; 24]].concat();
    no(1, part(5, b"a", b"b", &pair_of(&key(21), &[1; 9])), "a row of another slot");
    no(1, part(5, b"a", b"b", &pair_of(&key(20), &[9; 9])), "a row that is not understood");
    no(1, part(5, b"a", b"b", &pair_of(b"short", &[1; 9])), "a key cut short");
    no(1, activate(5, b""), "not everything of move 5 has come yet");

    let sealed_index = pair.step(0, seal(5)).unwrap().index;
    pair.step(0, seal(5)).unwrap();
    assert_eq!(pair.world.shards[0].shard.slots().export().unwrap().sealed_index, sealed_index, "the first one counts");
    assert!(pair.step(0, release(5, sealed_index + 1)).unwrap_err().contains("are not sealed at"));
    pair.step(0, release(5, sealed_index)).unwrap();
    pair.step(0, release(5, sealed_index)).unwrap();
    assert!(pair.step(0, cancel(5)).unwrap_err().contains("are released: it can only be completed"));
    let activated = pair.step(1, activate(5, b"a")).unwrap();
    assert_eq!(activated.applied_us, 70_000, "time goes on from where the old shard was");
    pair.step(0, purge(5)).unwrap();
    for (shard, change) in [(0, export(5, 10, 20)), (0, export(4, 10, 20)), (1, import(5, 10, 20, &[10]))] {
        assert!(pair.step(shard, change).unwrap_err().contains("has ended here"));
    }
    assert!(pair.step(0, export(6, 20, 21)).unwrap_err().contains("slot 20 is not this shard's"));
    assert!(pair.step(1, import(6, 20, 21, &[20])).unwrap_err().contains("slots 10-20 are here already"));
    for shard in 0..2 {
        pair.step(shard, cancel(5)).unwrap();
        pair.step(shard, drop_import(5)).unwrap();
    }
    assert!(pair.world.shards[1].shard.slots().has_of(5), "what came late changed nothing");
    // The next commit is above all that came.
    let row = [row(1, 1, 1, "x")];
    pair.world.apply(1, upsert(1, 1, "", 0, &row));
    assert!(pair.world.shards[1].latest(1, &[1]).remove(0).unwrap().commit > 9_000);
}

/// A retry after the move is told an entry of the new shard, and one that is not before its rows could be read there.
#[test]
fn a_duplicate_after_a_move_names_the_entry_that_showed_it() {
    let mut world = World::new();
    let rows = [row(1, 1, 1, "x")];
    let slot = slot_of(&[1]);
    let from = world.shard_of(1);
    let to = (from + 1) % SHARDS as usize;
    let first = world.apply(from, upsert(1, 5, PRODUCER, 7, &rows));
    world.begin(slot, slot, to as u32 + 1);
    while world.drive() {}
    assert_eq!(world.shard_of(1), to);
    let moved = world.apply(from, upsert(1, 6, PRODUCER, 7, &rows));
    assert!(moved.slots_moved && moved.refused.is_some_and(|refusal| refusal.kind == "unavailable"));
    let again = world.apply(to, upsert(1, 6, PRODUCER, 7, &rows));
    let activated = world.shards[to].shard.slots().record().held[0].activated_index;
    assert_eq!((again.rows_accepted, again.rows_duplicate, again.index), (0, 1, activated));
    assert!(first.index > 0 && activated > 0);
    // And the old shard's own rows are not held up.
    let other =
        (0..=255_u8).find(|key| world.tables[0][usize::from(slot_of(&[*key]))] as usize == from + 1 && *key != 1);
    let other = [row(other.unwrap(), 1, 1, "y")];
    assert_eq!(world.apply(from, upsert(1, 6, PRODUCER, 8, &other)).rows_accepted, 1);
}

/// A claim ends before its rows do, and comes once they are there.
#[test]
fn claims_are_told_on_the_safe_side_of_each_write() {
    let mut world = World::new();
    let slot = slot_of(&[1]);
    let from = world.shard_of(1);
    let to = (from + 1) % SHARDS as usize;
    world.apply(from, upsert(1, 5, "", 0, &[row(1, 1, 1, "x")]));
    let told: Arc<Mutex<Vec<(usize, Option<u64>, bool)>>> = Arc::default();
    for shard in [from, to] {
        let (told, replica) = (told.clone(), Arc::downgrade(&world.shards[shard].shard));
        world.shards[shard].shard.follow_claims(move |claims| {
            let db = replica.upgrade().unwrap().group.db();
            let mut key = Vec::new();
            crate::keys::push_latest_key(1, &[1], &mut key);
            let there = db.get(LATEST, &key).unwrap().is_some();
            told.lock().push((shard, claims.epoch(slot, shard == from), there));
        });
    }
    world.begin(slot, slot, to as u32 + 1);
    while world.drive() {}
    let told = told.lock().clone();
    for (shard, epoch, there) in &told {
        assert!(epoch.is_none() || *there, "shard {shard} claims a slot whose rows are not there: {told:?}");
    }
    assert_eq!(told.iter().rfind(|it| it.0 == from), Some(&(from, None, false)));
    assert_eq!(told.iter().rfind(|it| it.0 == to), Some(&(to, Some(2), true)));
    assert!(told.contains(&(from, None, true)), "told before the rows went");
}

#[test]
fn stored_bytes_of_moves_never_change() {
    let mut text = String::new();
    let segment = slots::Segment::Moved { id: 258, origin: 772 };
    let producer = records::ProducerKey::new(segment, 7, "etl");
    text += &format!("producer {}\nsequence {}\n", hex(&producer.state()), hex(&producer.sequence(258)));
    let row = records::ChangeRef::Row { history_key: b"key" };
    let sequence = records::ChangeRef::Sequence { origin: 772, sequence: 258, rows: 3, producer: &producer.name };
    for change in [row, sequence] {
        let bytes = change.encode();
        assert_eq!(records::ChangeRef::decode(&bytes).unwrap(), change);
        text += &format!("change {} {}\n", hex(&records::change_key(258, 9, 1)), hex(&bytes));
    }
    let mut world = World::new();
    let key = (0..=255_u8).find(|key| home_shard(slot_of(&[*key]), SHARDS) == 1).unwrap();
    let slot = slot_of(&[key]);
    world.apply(0, upsert(1, 5, PRODUCER, 7, &[super::row(key, 1, 1, "x")]));
    world.begin(slot, slot, 2);
    for _ in 0..2 {
        world.drive();
    }
    for part in 0..3 {
        let cursor = world.shards[1].shard.slots().import().unwrap().cursor.clone();
        let read = world.shards[0].shard.export_part(1, &cursor).unwrap();
        text += &format!("part {part} {} then {}\n", hex(&read.rows), hex(&read.next_cursor));
        world.drive();
        for shard in 0..2 {
            let stored = world.shards[shard].shard.slots();
            assert_eq!(Slots::decode(&stored.encode()).unwrap(), *stored);
            text += &format!("slots {} {}\n", hex(records::SLOTS_KEY), hex(&stored.encode()));
        }
    }
    while world.drive() {}
    for (shard, change) in &world.sent {
        text += &format!("command {shard} {}\n", hex(&step(5, change.clone())));
    }
    check_golden("moves.v1.txt", &text);
    for broken in [&[][..], &[9], &[1, 0]] {
        assert!(matches!(records::ChangeRef::decode(broken), Err(Error::Corrupt(_))));
    }
    assert!(matches!(Slots::decode(&[2]), Err(Error::InvalidArgument(message)) if message.contains("newer Cairn")));
    for broken in [&[][..], &[0], &[1, 0xff]] {
        assert!(matches!(Slots::decode(broken), Err(Error::Corrupt(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// I6: whatever moves, each entity has the rows it would have had, and a (producer, sequence) takes effect once.
    #[test]
    fn slots_move_and_nothing_else_changes(ops in vec(op(), 1..90), cuts in vec(1..9_usize, 1..9)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
            world.check();
        }
        world.finish();
        world.check();
        // I3, with moves: another cut of the same log leaves the same bytes.
        for (log, shard) in world.logs.iter().zip(&world.shards) {
            let again = TestShard::new();
            let mut rest = &log[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (batch, after) = rest.split_at((*cut).min(rest.len()));
                again.apply(again.next_index(), batch);
                rest = after;
            }
            prop_assert_eq!(dump(&again), dump(shard));
        }
    }
}
