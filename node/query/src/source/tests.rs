//! Reads of slots that move: from whoever has them, and never from somebody who has not.

use super::*;
use cairn_proto::record::v1::{
    PurgeSlots, ShardCommand, ShardOutcome, SlotMove, UpsertRows, meta_command, shard_command::Change,
};
use cairn_storage::block::BlockWriter;
use cairn_storage::engine::{Engine, EngineOptions};
use cairn_storage::replica::{Entry, Replica};
use cairn_storage::shard::{Ask, COMMAND_VERSION, next_asks};
use prost::Message;

struct Bench {
    shards: Vec<Arc<Shard>>,
    source: Arc<ShardedSource>,
    _folder: tempfile::TempDir,
}

const KEY: &[u8] = b"driver 7";

impl Bench {
    /// Two shards, of which the first has everything, and one row.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new(EngineOptions::default());
        let open = |n: u32| Shard::open(&engine, &folder.path().join(n.to_string())).unwrap();
        let shards: Vec<_> = (1..3).map(open).collect();
        let source = ShardedSource::new(&[1; SLOTS], (1..).zip(shards.iter().cloned())).unwrap();
        let bench = Self { shards, source, _folder: folder };
        bench.write(0, "first");
        bench
    }

    fn apply(&self, shard: usize, change: Change) -> ShardOutcome {
        let command = ShardCommand { version: COMMAND_VERSION, proposed_at_us: 1, change: Some(change) };
        let command = command.encode_to_vec();
        let shard = &self.shards[shard];
        let entry = Entry { index: shard.applied().index + 1, command: Some(&command) };
        ShardOutcome::decode(shard.apply(&[entry], b"position").unwrap()[0].as_slice()).unwrap()
    }

    fn write(&self, shard: usize, packed: &str) {
        let mut block = BlockWriter::new();
        block.push(KEY, 1, 1, packed.as_bytes());
        let rows = block.finish().into();
        let outcome = self.apply(
            shard,
            Change::UpsertRows(UpsertRows { storage_id: 1, rows, row_count: 1, ..UpsertRows::default() }),
        );
        assert_eq!(outcome.refused, None);
    }

    /// Takes the steps of a move of everything to the second shard up to the switch of the map.
    fn hand_over(&self, mut at_each_step: impl FnMut()) -> SlotMove {
        let it = SlotMove { id: 1, epoch: 2, first: 0, last: SLOTS as u32 - 1, from: 1, to: 2, ..SlotMove::default() };
        loop {
            for ask in next_asks(&it, &self.shards[0], &self.shards[1]).unwrap() {
                let outcome = match ask {
                    Ask::From(change) => self.apply(0, change),
                    Ask::To(change) => self.apply(1, change),
                    Ask::Meta(change) => {
                        assert!(matches!(*change, meta_command::Change::SwitchSlotMap(_)));
                        return it;
                    }
                };
                assert_eq!(outcome.refused, None);
                at_each_step();
            }
        }
    }

    fn read(&self) -> Result<Option<String>> {
        let mut found = None;
        self.source.latest(1, &[KEY], &mut |_, row| {
            found = row.map(|row| String::from_utf8(row.packed.to_vec()).unwrap());
        })?;
        Ok(found)
    }
}

#[test]
fn a_slot_is_read_where_it_is_at_every_step_of_a_move() {
    let bench = Bench::new();
    assert_eq!(bench.source.version(), 0, "nothing has moved");
    assert_eq!(bench.source.routes().shard_of(9), Some(1));
    let it = bench.hand_over(|| assert_eq!(bench.read().unwrap().as_deref(), Some("first")));
    assert_eq!(bench.source.routes().shard_of(9), Some(2));
    bench.write(1, "second");
    assert_eq!(bench.read().unwrap().as_deref(), Some("second"), "the newer epoch wins while both have rows");
    assert_eq!(bench.apply(0, Change::PurgeSlots(PurgeSlots { id: it.id })).refused, None);
    assert_eq!(bench.read().unwrap().as_deref(), Some("second"));
    // A router that starts now finds the same.
    let again = ShardedSource::new(&[1; SLOTS], (1..).zip(bench.shards.iter().cloned())).unwrap();
    assert_eq!(again.routes().shard_of(9), Some(2));
}

/// The slot goes away while it is read: the read is done again, and not answered from what is gone.
#[test]
fn a_read_under_which_a_slot_moves_is_done_again() {
    let bench = Bench::new();
    let key = |position: usize| (position == 0).then_some(KEY);
    let mut reads = 0;
    let routed = bench.source.route(1, key, |_, _| {
        reads += 1;
        bench.hand_over(|| ());
        Ok(())
    });
    assert!(matches!(&routed, Err(Error::Moving(why)) if why.contains("moved while it was read")), "{routed:?}");
    assert_eq!(routed.unwrap_err().kind(), cairn_proto::ErrorKind::Unavailable);
    let mut tries = 0;
    let read = settled(bench.source.as_ref(), Duration::from_secs(10), || {
        tries += 1;
        bench.read()
    });
    assert_eq!((read.unwrap().as_deref(), tries, reads), (Some("first"), 1, 1));
}

/// This node has purged the old shard and not yet activated the new one: a read waits for that, and no longer than told.
#[test]
fn a_slot_that_nobody_here_has_is_waited_for() {
    let ahead = Bench::new();
    let it = ahead.hand_over(|| ());
    ahead.apply(0, Change::PurgeSlots(PurgeSlots { id: it.id }));
    // The old shard as it is there, the new one as it was.
    let behind = Bench::new();
    let source =
        ShardedSource::new(&[1; SLOTS], [(1, ahead.shards[0].clone()), (2, behind.shards[1].clone())]).unwrap();
    let read = |limit| {
        settled(source.as_ref(), limit, || {
            let mut found = None;
            source.latest(1, &[KEY], &mut |_, row| found = row.map(|row| row.packed.to_vec()))?;
            Ok(found)
        })
    };
    let error = read(Duration::ZERO).unwrap_err();
    assert!(matches!(&error, Error::Moving(why) if why.contains("is between two shards on this node")), "{error}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| read(Duration::from_secs(60)));
        behind.hand_over(|| ());
        assert_eq!(waiting.join().unwrap().unwrap().as_deref(), Some(&b"first"[..]));
    });
}

/// A scan that ran while its slots moved cannot know that it saw everything.
#[test]
fn a_scan_under_which_a_slot_moves_says_so() {
    let bench = Bench::new();
    let (before, one) = (bench.source.runs(4), bench.source.run_of(KEY).unwrap());
    assert_eq!(before.len(), 4);
    for part in &before {
        bench.source.still(part.as_ref().unwrap()).unwrap();
    }
    bench.hand_over(|| ());
    assert!(matches!(bench.source.still(&one), Err(Error::Moving(_))));
    let part = before[0].as_ref().unwrap();
    assert!(matches!(bench.source.still(part), Err(Error::Moving(_))));
    let after: Vec<_> = bench.source.runs(4).into_iter().map(Result::unwrap).collect();
    assert!(after.iter().all(|part| bench.source.still(part).is_ok()));
    let slots: usize = after.iter().flat_map(Runs::each).map(|(_, slots)| slots.len()).sum();
    assert_eq!(slots, SLOTS);
}
