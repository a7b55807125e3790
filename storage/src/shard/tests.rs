mod moves;
mod tiers;

use super::*;
use crate::block::BlockWriter;
use crate::testing::{check_golden, hex, small_engine};
use cairn_proto::record::v1::{ShardCommand, ShardOutcome, TimeTick, UpsertRows, shard_command::Change};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tempfile::TempDir;

/// A row as tests make it; keys and times are small, so that they meet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TestRow {
    key: u8,
    event_us: i64,
    created_us: i64,
    packed: Vec<u8>,
}

#[derive(Debug, Clone)]
struct TestCommand {
    storage_id: u32,
    proposed_at_us: i64,
    rows: Vec<TestRow>,
}

impl TestCommand {
    fn bytes(&self) -> Vec<u8> {
        upsert(self.storage_id, self.proposed_at_us, "", 0, &self.rows)
    }
}

fn upsert(storage_id: u32, proposed_at_us: i64, producer: &str, sequence: u64, rows: &[TestRow]) -> Vec<u8> {
    let mut block = BlockWriter::new();
    rows.iter().for_each(|row| block.push(&[row.key], row.event_us, row.created_us, &row.packed));
    let row_count = rows.len() as u32;
    let rows = block.finish().into();
    let upsert = UpsertRows { storage_id, producer: producer.to_owned(), sequence, rows, row_count };
    command(proposed_at_us, Some(Change::UpsertRows(upsert)))
}

fn command(proposed_at_us: i64, change: Option<Change>) -> Vec<u8> {
    ShardCommand { version: UPSERT_VERSION, proposed_at_us, change }.encode_to_vec()
}

fn row(key: u8, event_us: i64, created_us: i64, packed: &str) -> TestRow {
    TestRow { key, event_us, created_us, packed: packed.as_bytes().to_vec() }
}

fn test_row() -> impl Strategy<Value = TestRow> {
    (0..4_u8, -3..6_i64, -3..14_i64, vec(any::<u8>(), 0..3)).prop_map(|(key, event_us, created_us, packed)| TestRow {
        key,
        event_us,
        created_us,
        packed,
    })
}

fn test_command() -> impl Strategy<Value = TestCommand> {
    (1..3_u32, 0..30_i64, vec(test_row(), 0..8)).prop_map(|(storage_id, proposed_at_us, rows)| TestCommand {
        storage_id,
        proposed_at_us,
        rows,
    })
}

/// A shard in a directory of its own, deleted with it.
struct TestShard {
    shard: Arc<Shard>,
    engine: Arc<Engine>,
    dir: TempDir,
}

impl TestShard {
    fn new() -> Self {
        let (engine, dir) = (small_engine(), tempfile::tempdir().unwrap());
        Self { shard: Shard::open(&engine, &dir.path().join("shard")).unwrap(), engine, dir }
    }

    /// What a killed process would find: the files as they are now.
    fn after_kill(&self) -> Self {
        let (engine, dir) = (small_engine(), tempfile::tempdir().unwrap());
        let (from, to) = (self.dir.path().join("shard"), dir.path().join("shard"));
        // RocksDB still deletes and renames for a moment after a flush: only files of one moment are a copy.
        loop {
            let before = files_in(&from);
            if copy_dir(&from, &to).is_ok() && files_in(&from) == before {
                break;
            }
            fs::remove_dir_all(&to).unwrap();
        }
        Self { shard: Shard::open(&engine, &dir.path().join("shard")).unwrap(), engine, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Applies commands from log index `first`, and decodes the outcomes.
    fn apply(&self, first: u64, commands: &[Vec<u8>]) -> Vec<ShardOutcome> {
        let entries: Vec<Entry<'_>> =
            (first..).zip(commands).map(|(index, command)| Entry { index, command: Some(command) }).collect();
        let position = format!("position {}", first + commands.len() as u64 - 1);
        let outcomes = self.shard.apply(&entries, position.as_bytes()).unwrap();
        outcomes.iter().map(|outcome| ShardOutcome::decode(&outcome[..]).unwrap()).collect()
    }

    fn next_index(&self) -> u64 {
        self.shard.applied().index + 1
    }

    fn latest(&self, storage_id: u32, keys: &[u8]) -> Vec<Option<Found>> {
        let keys: Vec<&[u8]> = keys.iter().map(std::slice::from_ref).collect();
        let mut found = Vec::new();
        let visit = &mut |index, row: Option<RowRef<'_>>| {
            assert_eq!(index, found.len(), "visited in the order asked");
            found.push(row.map(Found::from));
        };
        self.shard.latest(storage_id, &keys, visit).unwrap();
        assert_eq!(found.len(), keys.len());
        found
    }

    fn as_of(&self, storage_id: u32, lookups: &[Lookup<'_>]) -> Vec<Option<Found>> {
        let mut found = Vec::new();
        let visit = &mut |index, row: Option<RowRef<'_>>| {
            assert_eq!(index, found.len(), "visited in the order asked");
            found.push(row.map(Found::from));
        };
        self.shard.as_of(storage_id, lookups, visit).unwrap();
        assert_eq!(found.len(), lookups.len());
        found
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Names and sizes of all files below a folder.
fn files_in(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        // A file may be gone by now.
        match entry.metadata() {
            Ok(about) if about.is_dir() => found.extend(files_in(&entry.path())),
            Ok(about) => drop(found.insert(entry.path(), about.len())),
            Err(_) => {}
        }
    }
    found
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    event_us: i64,
    created_us: i64,
    commit: u64,
    committed_us: i64,
    packed: Vec<u8>,
}

impl From<RowRef<'_>> for Found {
    fn from(row: RowRef<'_>) -> Self {
        let RowRef { event_us, created_us, commit, committed_us, packed } = row;
        Self { event_us, created_us, commit, committed_us, packed: packed.to_vec() }
    }
}

/// All rows by (storage id, key) and (event, created, commit): what a shard must answer, by brute force.
#[derive(Default)]
struct Oracle {
    rows: BTreeMap<(u32, u8), BTreeMap<(i64, i64, u64), Found>>,
    time_us: i64,
}

impl Oracle {
    fn apply(&mut self, commit: u64, command: &TestCommand) {
        self.time_us = self.time_us.max(command.proposed_at_us);
        for row in &command.rows {
            let found = Found {
                event_us: row.event_us,
                created_us: row.created_us,
                commit,
                committed_us: self.time_us,
                packed: row.packed.clone(),
            };
            let entity = self.rows.entry((command.storage_id, row.key)).or_default();
            entity.insert((row.event_us, row.created_us, commit), found);
        }
    }

    fn newest(&self, storage_id: u32, key: u8, within: impl Fn(&Found) -> bool) -> Option<Found> {
        self.rows.get(&(storage_id, key))?.values().filter(|row| within(row)).last().cloned()
    }
}

fn every_lookup() -> Vec<(u8, i64, i64, i64)> {
    let mut lookups = Vec::new();
    for key in [3, 0, 9, 2, 1] {
        for event_us in [i64::MAX, 2, -4, 3, i64::MIN, 0] {
            for created_us in [i64::MAX, -1, 4, 10] {
                for committed_us in [i64::MAX, 7, 20] {
                    lookups.push((key, event_us, created_us, committed_us));
                }
            }
        }
    }
    lookups
}

fn check_against(shard: &TestShard, oracle: &Oracle) {
    let lookups = every_lookup();
    let keys: Vec<u8> = lookups.iter().map(|lookup| lookup.0).collect();
    let asked: Vec<Lookup<'_>> = (lookups.iter().zip(&keys))
        .map(|(&(_, event_us, created_us, committed_us), key)| Lookup {
            key: std::slice::from_ref(key),
            event_us,
            created_us,
            committed_us,
        })
        .collect();
    for storage_id in 1..4 {
        let expected: Vec<_> = lookups
            .iter()
            .map(|&(key, event_us, created_us, committed_us)| {
                oracle.newest(storage_id, key, |row| {
                    row.event_us <= event_us && row.created_us <= created_us && row.committed_us <= committed_us
                })
            })
            .collect();
        assert_eq!(shard.as_of(storage_id, &asked), expected);
        for (lookup, expected) in asked.iter().zip(&expected).step_by(11) {
            assert_eq!(shard.as_of(storage_id, std::slice::from_ref(lookup)), std::slice::from_ref(expected));
        }
        let newest: Vec<_> = keys.iter().map(|&key| oracle.newest(storage_id, key, |_| true)).collect();
        assert_eq!(shard.latest(storage_id, &keys), newest);
        for (key, newest) in keys.iter().zip(&newest).step_by(13) {
            assert_eq!(shard.latest(storage_id, &[*key]), std::slice::from_ref(newest));
        }
        check_scans(&shard.shard, storage_id, oracle);
    }
}

fn check_scans(shard: &Shard, storage_id: u32, oracle: &Oracle) {
    let collect = |latest: bool, scope: Scope<'_>| {
        let mut rows: Vec<(u8, Found)> = Vec::new();
        let visit = &mut |key: &[u8], row: RowRef<'_>| {
            assert_eq!(key.len(), 1);
            rows.push((key[0], Found::from(row)));
            ControlFlow::Continue(())
        };
        if latest { shard.scan_latest(storage_id, scope, visit) } else { shard.scan(storage_id, scope, visit) }
            .unwrap();
        rows
    };
    let entities = || oracle.rows.iter().filter(|((id, _), _)| *id == storage_id).map(|((_, key), rows)| (*key, rows));
    let mut in_order: Vec<_> = entities().collect();
    in_order.sort_by_key(|(key, _)| (crate::keys::slot_of(&[*key]), *key));
    let all: Vec<(u8, Found)> =
        in_order.iter().flat_map(|(key, rows)| rows.values().rev().map(|row| (*key, row.clone()))).collect();
    assert_eq!(collect(false, Scope::All), all);
    let newest: Vec<(u8, Found)> =
        in_order.iter().filter_map(|(key, rows)| Some((*key, rows.values().last()?.clone()))).collect();
    assert_eq!(collect(true, Scope::All), newest);
    for key in [0, 2, 9] {
        let of_entity: Vec<_> = all.iter().filter(|row| row.0 == key).cloned().collect();
        assert_eq!(collect(false, Scope::Entity(&[key])), of_entity);
    }
    let middle = crate::keys::slot_of(&[1]);
    let below: Vec<_> = all.iter().filter(|row| crate::keys::slot_of(&[row.0]) < middle).cloned().collect();
    assert_eq!(collect(false, Scope::Slots(0..middle)), below);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// I2, and every read against brute force, with some rows flushed and some not.
    #[test]
    fn reads_answer_as_brute_force_does(commands in vec(test_command(), 1..12), flush_after: prop::sample::Index) {
        let shard = TestShard::new();
        let mut oracle = Oracle::default();
        for (index, command) in (1..).zip(&commands) {
            let outcome = &shard.apply(index, &[command.bytes()])[0];
            oracle.apply(index, command);
            prop_assert_eq!(outcome.rows_accepted as usize, command.rows.len());
            prop_assert_eq!((outcome.index, outcome.applied_us), (index, oracle.time_us));
            if flush_after.index(commands.len()) as u64 == index {
                shard.shard.flush().unwrap();
            }
        }
        check_against(&shard, &oracle);
    }

    /// I3: equal commands give equal bytes and outcomes, however they are cut into calls.
    #[test]
    fn batching_changes_nothing(commands in vec(test_command(), 1..14), cuts in vec(1..5_usize, 1..14)) {
        let bytes: Vec<_> = commands.iter().map(TestCommand::bytes).collect();
        let (one_by_one, in_batches) = (TestShard::new(), TestShard::new());
        let expected: Vec<_> =
            (1..).zip(&bytes).flat_map(|(index, command)| one_by_one.apply(index, std::slice::from_ref(command))).collect();
        let mut outcomes = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.into_iter().chain(std::iter::repeat(3)) {
            if rest.is_empty() {
                break;
            }
            let (batch, after) = rest.split_at(cut.min(rest.len()));
            outcomes.extend(in_batches.apply(in_batches.next_index(), batch));
            rest = after;
        }
        prop_assert_eq!(outcomes, expected);
        prop_assert_eq!(in_batches.shard.checksum().unwrap(), one_by_one.shard.checksum().unwrap());
        prop_assert_eq!(in_batches.shard.applied(), one_by_one.shard.applied());
        prop_assert_eq!(in_batches.shard.position(), one_by_one.shard.position());
    }

    /// I3: a killed replica that applies again from its position ends like one that was not.
    #[test]
    fn replay_after_a_kill_changes_nothing(
        commands in vec(test_command(), 1..14),
        flush_after: prop::sample::Index,
        kill_after: prop::sample::Index,
    ) {
        let bytes: Vec<_> = commands.iter().map(TestCommand::bytes).collect();
        let shard = TestShard::new();
        let mut killed = None;
        let mut expected = Vec::new();
        for (at, command) in bytes.iter().enumerate() {
            expected.extend(shard.apply(at as u64 + 1, std::slice::from_ref(command)));
            if flush_after.index(bytes.len()) == at {
                shard.shard.flush().unwrap();
            }
            if kill_after.index(bytes.len()) == at {
                killed = Some(shard.after_kill());
            }
        }
        let killed = killed.unwrap();
        let kept = killed.shard.applied().index as usize;
        let flushed = if flush_after.index(bytes.len()) <= kill_after.index(bytes.len()) {
            flush_after.index(bytes.len()) + 1
        } else {
            0
        };
        prop_assert!(kept >= flushed, "what was flushed is kept: {} of {}", kept, flushed);
        let position = (kept > 0).then(|| format!("position {kept}").into_bytes());
        prop_assert_eq!(killed.shard.position(), position);
        // The log is applied again from its start: what is there already is skipped.
        let entries: Vec<Entry<'_>> =
            (1..).zip(&bytes).map(|(index, command)| Entry { index, command: Some(command) }).collect();
        let outcomes = killed.shard.apply(&entries, b"end").unwrap();
        prop_assert!(outcomes[..kept].iter().all(Vec::is_empty));
        for (outcome, expected) in outcomes[kept..].iter().zip(&expected[kept..]) {
            prop_assert_eq!(&ShardOutcome::decode(&outcome[..]).unwrap(), expected);
        }
        prop_assert_eq!(killed.shard.checksum().unwrap(), shard.shard.checksum().unwrap());
        prop_assert_eq!(killed.shard.applied(), shard.shard.applied());
    }

    /// Rows with times of their own give the same answers in whatever order they come.
    #[test]
    fn order_changes_nothing((first, second) in vec(test_command(), 1..10).prop_flat_map(|mut commands| {
        let rows = commands.iter_mut().flat_map(|command| &mut command.rows);
        (100..).zip(rows).for_each(|(created_us, row)| row.created_us = created_us);
        (Just(commands.clone()), Just(commands).prop_shuffle())
    })) {
        let answers = |commands: &[TestCommand]| {
            let shard = TestShard::new();
            let bytes: Vec<_> = commands.iter().map(TestCommand::bytes).collect();
            shard.apply(1, &bytes);
            let mut answers = Vec::new();
            for storage_id in 1..3 {
                answers.extend(shard.latest(storage_id, &[0, 1, 2, 3]));
                for event_us in -4..7 {
                    let keys = [0_u8, 1, 2, 3];
                    let lookups: Vec<_> = keys.iter().map(|key| Lookup {
                        key: std::slice::from_ref(key), event_us, created_us: 150, committed_us: i64::MAX,
                    }).collect();
                    answers.extend(shard.as_of(storage_id, &lookups));
                }
            }
            let without_commit = |found: Found| (found.event_us, found.created_us, found.packed);
            answers.into_iter().map(|found| found.map(without_commit)).collect::<Vec<_>>()
        };
        prop_assert_eq!(answers(&first), answers(&second));
    }

    /// An installed checkpoint is the state it was made from.
    #[test]
    fn an_installed_checkpoint_equals_its_source(
        commands in vec(test_command(), 1..10), others in vec(test_command(), 0..4), more in vec(test_command(), 0..4),
    ) {
        let (source, target) = (TestShard::new(), TestShard::new());
        let bytes = |commands: &[TestCommand]| commands.iter().map(TestCommand::bytes).collect::<Vec<_>>();
        source.apply(1, &bytes(&commands));
        target.apply(1, &bytes(&others));
        let checkpoint = target.path("checkpoint");
        let position = source.shard.checkpoint(&checkpoint).unwrap();
        prop_assert_eq!(Some(position.clone()), source.shard.position());
        target.shard.install(&checkpoint).unwrap();
        prop_assert_eq!(target.shard.checksum().unwrap(), source.shard.checksum().unwrap());
        prop_assert_eq!(target.shard.applied(), source.shard.applied());
        prop_assert_eq!(target.shard.position(), Some(position));
        // And goes on like it, also after a restart.
        let next = source.next_index();
        let outcomes = source.apply(next, &bytes(&more));
        prop_assert_eq!(target.apply(next, &bytes(&more)), outcomes);
        let TestShard { shard, engine, dir } = target;
        drop(shard);
        let reopened = Shard::open(&engine, &dir.path().join("shard")).unwrap();
        prop_assert_eq!(reopened.checksum().unwrap(), source.shard.checksum().unwrap());
        prop_assert_eq!(reopened.applied(), source.shard.applied());
    }

    /// I4, against a set, in any order and cut into any batches. Another view between them changes nothing.
    #[test]
    fn a_sequence_takes_effect_once(
        sequences in vec(prop_oneof![5 => 0..12_u64, 1 => 4090..4110_u64, 1 => 9000..9005_u64], 1..30),
        cuts in vec(1..6_usize, 1..30),
    ) {
        let shard = TestShard::new();
        let mut applied: BTreeMap<u64, u64> = BTreeMap::new();
        let mut rest = &sequences[..];
        for cut in cuts.into_iter().chain(std::iter::repeat(5)) {
            let (batch, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            let first = shard.next_index();
            let commands: Vec<_> =
                batch.iter().map(|&sequence| upsert(1, 5, "etl", sequence, &[row(1, 1, 1, "a"), row(2, 1, 1, "b")])).collect();
            let outcomes = shard.apply(first, &commands);
            let elsewhere = upsert(2, 5, "etl", first, &[row(3, 1, 1, "c")]);
            prop_assert_eq!(shard.apply(shard.next_index(), &[elsewhere])[0].rows_accepted, 1);
            for ((index, sequence), outcome) in (first..).zip(batch).zip(outcomes) {
                let highest = applied.keys().next_back().copied();
                if highest.is_some_and(|highest| sequence + SEQUENCE_WINDOW <= highest) {
                    let refused = outcome.refused.unwrap();
                    prop_assert_eq!(refused.kind, "invalid_argument");
                    prop_assert!(refused.message.contains("below the window"), "{}", refused.message);
                } else if let Some(first) = applied.get(sequence) {
                    prop_assert_eq!((outcome.rows_duplicate, outcome.rows_accepted, outcome.index), (2, 0, *first));
                } else {
                    prop_assert_eq!((outcome.rows_duplicate, outcome.rows_accepted, outcome.index), (0, 2, index));
                    applied.insert(*sequence, index);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        // What left the window is not kept.
        let highest = *applied.keys().next_back().unwrap();
        let kept = applied.keys().filter(|sequence| **sequence + SEQUENCE_WINDOW > highest).count();
        let mut stored = 0;
        let count = &mut |_: &[u8], _: &[u8]| {
            stored += 1;
            ControlFlow::Continue(())
        };
        shard.shard.group.db().visit_prefix(SYSTEM, &[2, 0, 0, 0, 1], count).unwrap();
        prop_assert_eq!(stored, kept);
    }

    /// Whatever bytes a command holds, every replica gives the same answer and goes on.
    #[test]
    fn malformed_commands_are_refused(bytes in vec(any::<u8>(), 0..60), block in vec(any::<u8>(), 0..40)) {
        let shard = TestShard::new();
        let rows = block.into();
        let broken = UpsertRows { storage_id: 1, producer: "p".to_owned(), sequence: 1, rows, row_count: 1 };
        let outcome = &shard.apply(1, &[command(3, Some(Change::UpsertRows(broken)))])[0];
        prop_assert!(outcome.refused.is_some() || outcome.rows_accepted == 1);
        let sound = ShardCommand::decode(&bytes[..]).map_or(true, |command| (UPSERT_VERSION..=COMMAND_VERSION).contains(&command.version));
        let outcomes = shard.shard.apply(&[Entry { index: 2, command: Some(&bytes) }], b"two");
        prop_assert_eq!(outcomes.is_ok(), sound);
    }
}

#[test]
fn a_command_of_another_version_stops_the_replica() {
    let shard = TestShard::new();
    let newer = ShardCommand { version: 7, proposed_at_us: 1, change: Some(Change::TimeTick(TimeTick::default())) };
    let newer = newer.encode_to_vec();
    let good = upsert(1, 1, "", 0, &[row(1, 1, 1, "a")]);
    let entries = [Entry { index: 1, command: Some(&good) }, Entry { index: 2, command: Some(&newer) }];
    let fatal = shard.shard.apply(&entries, b"two").unwrap_err().to_string();
    assert!(
        fatal.contains("log entry 2") && fatal.contains("version 7") && fatal.contains("knows up to version 5"),
        "{fatal}"
    );
    assert_eq!(shard.shard.applied(), Applied::default());
    assert_eq!(shard.latest(1, &[1]), [None], "nothing of the batch was applied");
}

#[test]
fn refusals_say_why_and_change_nothing() {
    let shard = TestShard::new();
    let check = |bytes: Vec<u8>, expected: &str| {
        let outcome = shard.apply(shard.next_index(), &[bytes]).remove(0);
        let refused = outcome.refused.unwrap();
        assert_eq!(refused.kind, "invalid_argument");
        assert!(refused.message.contains(expected), "{}", refused.message);
        assert_eq!(outcome.index, shard.shard.applied().index);
    };
    check(command(5, None), "holds no change");
    check(vec![0xff], "does not decode");
    let rows = |row_count: u32, block: &[u8]| {
        let rows = block.to_vec().into();
        let upsert = UpsertRows { storage_id: 1, producer: "p".to_owned(), sequence: 1, rows, row_count };
        command(6, Some(Change::UpsertRows(upsert)))
    };
    check(rows(0, &[]), "the block of rows is empty");
    check(rows(1, &[1, 1, 2]), "row 0 of the block of rows is cut short");
    check(rows(2, &[1]), "says 2 rows and holds 0");
    check(upsert(1, 7, &"x".repeat(257), 1, &[]), "257 bytes, over the limit of 256");
    // A refused command used no sequence.
    let outcome = shard.apply(shard.next_index(), &[upsert(1, 7, "p", 1, &[row(1, 1, 1, "a")])]).remove(0);
    assert_eq!((outcome.rows_accepted, outcome.rows_updated, outcome.rows_duplicate), (1, 1, 0));
}

#[test]
fn the_newest_row_wins_by_event_created_commit_and_place() {
    let shard = TestShard::new();
    let outcomes = shard.apply(
        1,
        &[
            upsert(1, 10, "", 0, &[row(1, 5, 5, "a"), row(1, 4, 9, "older event"), row(1, 5, 5, "b")]),
            upsert(1, 9, "", 0, &[row(1, 5, 4, "created earlier")]),
            upsert(1, 12, "", 0, &[row(1, 5, 5, "c"), row(2, 0, 0, "x")]),
        ],
    );
    let updated: Vec<u32> = outcomes.iter().map(|outcome| outcome.rows_updated).collect();
    assert_eq!(updated, [2, 0, 2]);
    let times: Vec<i64> = outcomes.iter().map(|outcome| outcome.applied_us).collect();
    assert_eq!(times, [10, 10, 12], "commit time never goes back");
    let newest = shard.latest(1, &[1]).remove(0).unwrap();
    assert_eq!((newest.packed.as_slice(), newest.commit, newest.committed_us), (&b"c"[..], 3, 12));
    let lookup = Lookup { key: &[1], event_us: 9, created_us: 9, committed_us: 11 };
    let before = shard.as_of(1, &[lookup]).remove(0).unwrap();
    assert_eq!((before.packed.as_slice(), before.commit), (&b"b"[..], 1), "the later row of a command wins");
}

#[test]
fn entries_without_a_command_move_the_position() {
    let shard = TestShard::new();
    assert_eq!((shard.shard.position(), shard.shard.applied()), (None, Applied::default()));
    let tick = command(50, Some(Change::TimeTick(TimeTick::default())));
    let entries = [Entry { index: 1, command: None }, Entry { index: 2, command: Some(&tick) }];
    let outcomes = shard.shard.apply(&entries, b"two").unwrap();
    assert!(outcomes[0].is_empty());
    let outcome = ShardOutcome::decode(&outcomes[1][..]).unwrap();
    assert_eq!((outcome.index, outcome.applied_us), (2, 50));
    assert_eq!(shard.shard.apply(&entries, b"again").unwrap(), [Vec::<u8>::new(), Vec::new()], "applied before");
    shard.shard.apply(&[], b"membership").unwrap();
    assert_eq!(shard.shard.position(), Some(b"membership".to_vec()));
    assert_eq!(shard.shard.applied(), Applied { index: 2, time_us: 50 });
    shard.shard.flush().unwrap();
    assert_eq!(shard.after_kill().shard.position(), Some(b"membership".to_vec()));
}

/// A batch is atomic: a read of many keys sees all of an apply or nothing of it, also over several reads inside.
#[test]
fn a_read_never_sees_half_an_apply() {
    let shard = TestShard::new();
    let key = |index: u16| index.to_be_bytes();
    let keys: Vec<[u8; 2]> = (0..2500).map(key).collect();
    let write = |round: u64| {
        let mut block = BlockWriter::new();
        keys.iter().for_each(|key| block.push(key, round as i64, 0, &round.to_le_bytes()));
        let (row_count, rows) = (block.len() as u32, block.finish().into());
        let upsert = UpsertRows { storage_id: 1, producer: String::new(), sequence: 0, rows, row_count };
        let bytes = command(0, Some(Change::UpsertRows(upsert)));
        shard.shard.apply(&[Entry { index: round, command: Some(&bytes) }], b"p").unwrap();
    };
    write(1);
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for many in [2500, 1000] {
            let (shard, keys) = (&shard.shard, &keys);
            scope.spawn(move || {
                let keys: Vec<&[u8]> = keys[..many].iter().map(|key| &key[..]).collect();
                while !done.load(Ordering::Relaxed) {
                    let mut rounds = std::collections::BTreeSet::new();
                    let visit = &mut |_, row: Option<RowRef<'_>>| rounds.extend(row.map(|row| row.event_us));
                    shard.latest(1, &keys, visit).unwrap();
                    assert_eq!(rounds.len(), 1, "rows of several applies: {rounds:?}");
                }
            });
        }
        (2..40).for_each(write);
        done.store(true, Ordering::Relaxed);
    });
}

/// Corrections after the cutoff are jumped over, however many.
#[test]
fn many_corrections_of_one_event_are_passed() {
    let shard = TestShard::new();
    let rows: Vec<_> = (0..100).map(|created| row(1, 5, created, &format!("v{created}"))).collect();
    shard.apply(1, &[upsert(1, 0, "", 0, &rows), upsert(1, 0, "", 0, &[row(1, 4, 0, "before")])]);
    let at = |event_us, created_us| {
        let found = shard.as_of(1, &[Lookup { key: &[1], event_us, created_us, committed_us: i64::MAX }]).remove(0);
        found.map(|found| String::from_utf8(found.packed).unwrap())
    };
    assert_eq!(at(9, 42).as_deref(), Some("v42"));
    assert_eq!(at(9, 0).as_deref(), Some("v0"));
    assert_eq!(at(9, -1), None);
    assert_eq!(at(4, 0).as_deref(), Some("before"));
}

#[test]
fn damaged_files_are_reported_not_read() {
    let shard = TestShard::new();
    let rows: Vec<_> = (0..200_u8).map(|key| row(key, 1, 1, "some packed bytes that fill a block")).collect();
    shard.apply(1, &[upsert(1, 1, "", 0, &rows)]);
    shard.shard.flush().unwrap();
    let damaged = TestShard::new();
    let (engine, dir) = (small_engine(), damaged.path("damaged"));
    copy_dir(&shard.path("shard"), &dir).unwrap();
    for entry in fs::read_dir(dir.join("db-000001")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = fs::read(&path).unwrap();
            bytes[20..60].fill(0x55);
            fs::write(&path, bytes).unwrap();
        }
    }
    let error = Shard::open(&engine, &dir).and_then(|shard| shard.checksum().map(drop)).unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
}

/// Also where the shard's own cache still has the block as it was.
#[test]
fn a_checkpoint_with_a_flipped_bit_is_not_passed_on() {
    let shard = TestShard::new();
    let rows: Vec<_> = (0..200_u8).map(|key| row(key, 1, 1, "some packed bytes that fill a block")).collect();
    shard.apply(1, &[upsert(1, 1, "", 0, &rows)]);
    shard.shard.checkpoint(&shard.path("checkpoint")).unwrap();
    shard.shard.verify(&shard.path("checkpoint")).unwrap();
    assert_eq!(shard.latest(1, &[1]).len(), 1);
    let mut flipped = Vec::new();
    for entry in fs::read_dir(shard.path("checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = fs::read(&path).unwrap();
            bytes[20] ^= 1;
            fs::write(&path, bytes).unwrap(); // in place, so the shard's own file too: they are one
            flipped.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    let refused = shard.shard.verify(&shard.path("checkpoint")).unwrap_err().to_string();
    assert!(flipped.iter().any(|name| refused.contains(name.as_str())), "{refused}");
    assert!(shard.shard.damage().is_some_and(|damage| refused.contains(&damage)), "{refused}");
}

#[test]
fn stored_bytes_never_change() {
    let row = RowRef { event_us: 1_700_000_000_000_000, created_us: -1, commit: 42, committed_us: 7, packed: b"row" };
    let mut text = String::new();
    let mut bytes = Vec::new();
    records::encode_latest(&row, &mut bytes);
    assert_eq!(records::decode_latest(&bytes).unwrap(), row);
    text += &format!("latest {}\n", hex(&bytes));
    records::encode_history(&row, &mut bytes);
    text += &format!("history {}\n", hex(&bytes));
    let applied = Applied { index: 9, time_us: 8 };
    let state = records::encode_state(applied, b"position");
    assert_eq!(records::decode_state(&state), Some((applied, &b"position"[..])));
    text += &format!("state {} {}\n", hex(records::STATE_KEY), hex(&state));
    text += &format!("producer {}\n", hex(&records::ProducerKey::new(slots::Segment::Home, 7, "e\0tl").state()));
    text += &format!("sequence {}\n", hex(&records::ProducerKey::new(slots::Segment::Home, 7, "etl").sequence(258)));
    let command = upsert(3, 5, "etl", 258, &[TestRow { key: 1, event_us: 2, created_us: 3, packed: b"row".to_vec() }]);
    text += &format!("command {}\n", hex(&command));
    check_golden("shard.v1.txt", &text);
    for broken in [&[][..], &[2, 0], &[1, 0]] {
        assert!(matches!(records::decode_latest(broken), Err(Error::Corrupt(_))));
        assert!(matches!(records::decode_history(&[0; 40], broken), Err(Error::Corrupt(_))));
    }
}

/// What a read shows is never newer than what the shard then says it may have shown.
#[test]
fn a_token_taken_after_a_read_covers_it() {
    let shard = TestShard::new();
    let (last, reading) = (3_000, std::sync::atomic::AtomicBool::new(true));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut newest = 0;
            while reading.load(Ordering::Relaxed) {
                let row = shard.latest(1, &[1]).remove(0);
                let seen = shard.shard.seen();
                newest = row.map_or(0, |row| row.commit);
                assert!(newest <= seen, "entry {newest} was read, and {seen} is said");
            }
            newest
        });
        for index in 1..=last {
            shard.apply(index, &[upsert(1, 1, "", 0, &[row(1, index as i64, 1, "a")])]);
        }
        reading.store(false, Ordering::Relaxed);
        assert!(reader.join().unwrap() <= last);
    });
    assert_eq!(shard.shard.seen(), last);
}

/// Waits for the digest of an entry, which is hashed beside the apply.
fn digest_of(shard: &TestShard, index: u64) -> [u8; 32] {
    loop {
        if let Some(digest) = shard.shard.digests().into_iter().find(|digest| digest.index == index) {
            return digest.blake3;
        }
        std::thread::yield_now();
    }
}

#[test]
fn digests_are_of_the_state_right_after_the_audit() {
    let [one, two, other] = [(); 3].map(|()| TestShard::new());
    let audit = one.shard.audit(0, 7).unwrap();
    assert!(one.shard.is_audit(&audit));
    let rows = upsert(1, 1, "p", 1, &[row(1, 1, 1, "a"), row(2, 1, 1, "b")]);
    let tick = command(50, Some(Change::TimeTick(TimeTick::default())));
    assert!(!one.shard.is_audit(&rows) && !one.shard.is_audit(&tick));
    fn entry(index: u64, command: &[u8]) -> Entry<'_> {
        Entry { index, command: Some(command) }
    }
    // However entries are cut into applies, and whatever comes after.
    one.shard.apply(&[entry(1, &rows), entry(2, &audit)], b"p").unwrap();
    two.shard.apply(&[entry(1, &rows)], b"other position").unwrap();
    two.shard.apply(&[entry(2, &audit)], b"p").unwrap();
    two.shard.apply(&[entry(3, &rows)], b"p").unwrap();
    let less = upsert(1, 1, "p", 1, &[row(1, 1, 1, "a")]);
    other.shard.apply(&[entry(1, &less), entry(2, &audit)], b"p").unwrap();
    assert_eq!(digest_of(&one, 2), digest_of(&two, 2));
    assert_ne!(digest_of(&one, 2), digest_of(&other, 2));
    one.shard.apply(&[entry(2, &audit)], b"p").unwrap();
    assert_eq!(one.shard.digests().len(), 1, "a replayed audit is none");
}

#[test]
fn a_condemned_shard_stays_so_until_its_files_are_replaced() {
    let shard = TestShard::new();
    shard.apply(1, &[upsert(1, 1, "", 0, &[row(1, 1, 1, "a")])]);
    shard.shard.checkpoint(&shard.path("whole")).unwrap();
    assert_eq!(shard.shard.damage(), None);
    shard.shard.condemn("its state is not that of the others");
    assert_eq!(shard.shard.damage().as_deref(), Some("its state is not that of the others"));
    let again = Shard::open(&small_engine(), &shard.path("shard")).map(|_| ());
    assert!(matches!(again, Err(crate::Error::Corrupt(why)) if why.starts_with("its state")));
    shard.shard.install(&shard.path("whole")).unwrap();
    assert_eq!(shard.shard.damage(), None);
    assert_eq!(shard.after_kill().shard.damage(), None);
}
