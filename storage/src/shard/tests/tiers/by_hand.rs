//! Single rounds by hand, so that they are certain to happen.

use super::*;

/// A whole round by hand, so that it is certain to happen: rows leave the database and are found; late rows stay.
#[test]
fn a_segment_takes_rows_out_of_the_database() {
    let mut world = World::new();
    let rows: Vec<_> = (0..KEYS).flat_map(|key| (0..9).map(move |at| (key, at, at, Some(at)))).collect();
    world.run(&Op::Write(rows));
    world.run(&Op::Extract(0, 5, 0, 1_000));
    let in_database = |world: &World| {
        let mut keys = 0;
        let count = &mut |_: &[u8], _: &[u8]| {
            keys += 1;
            ControlFlow::Continue(())
        };
        world.shards[0].shard.group.db().visit_prefix(HISTORY, &[], count).unwrap();
        keys
    };
    let slots: Vec<u16> = (0..KEYS).map(|key| slot_of(&entity(key))).collect();
    let behind = slots.iter().filter(|slot| **slot >= slots[0]).count();
    // Late: older than the segment's bound, and after it was written.
    world.run(&Op::Write(vec![(0, 2, 2, Some(77)), (0, 3, 3, None)]));
    world.run(&Op::Add(0));
    assert_eq!(in_database(&world), 9 * KEYS as usize + 2);
    world.check();
    world.run(&Op::Trim(0, 100));
    assert_eq!(in_database(&world), 9 * KEYS as usize + 2 - 5 * behind);
    assert_eq!(world.shards[0].shard.next_trim().unwrap(), None);
    world.check();
    // Again, with the late ones; nothing is left of the first time.
    world.run(&Op::Extract(0, 7, 0, 1_000));
    world.run(&Op::Add(0));
    world.run(&Op::Trim(0, 100));
    assert_eq!(in_database(&world), 9 * KEYS as usize - 7 * behind);
    assert_eq!((world.added, world.shards[0].shard.tiers().segments().len()), (2, 2));
    world.check();
    world.check_replay(&[7, 1, 300]);
    // All slots move away: the segments have nothing left, and the other shard has it all.
    world.moving = Some(SlotMove { id: 1, epoch: 2, first: 0, last: 4095, from: 1, to: 2, ..SlotMove::default() });
    while world.drive() {}
    assert_eq!(in_database(&world), 0);
    assert_eq!(world.shards[0].shard.tiers().segments(), []);
    world.check();
}

/// Many segments become few, and the floor of retention changes nothing that is asked of a time from it on.
#[test]
fn merged_segments_hold_what_retention_left() {
    let mut world = World::new();
    for at in 0..9 {
        world.run(&Op::Write((0..KEYS).map(|key| (key, at, at, Some(10 * key + at))).collect()));
        world.run(&Op::Extract(0, at + 1, (0..KEYS).min_by_key(|key| slot_of(&entity(*key))).unwrap(), 1_000));
        world.run(&Op::Add(0));
        world.run(&Op::Trim(0, 100));
    }
    let segments = |world: &World| world.shards[0].shard.tiers().segments().to_vec();
    assert_eq!(segments(&world).len(), 9);
    let mut swaps = Vec::new();
    while let Some(swap) = world.merge(0, None, false) {
        assert_eq!(world.change(0, Change::ReplaceSegments(swap.clone())).refused, None);
        swaps.push(swap);
    }
    assert_eq!(segments(&world).iter().map(|it| it.rows).sum::<u64>(), 9 * KEYS as u64);
    assert!(segments(&world).len() < 4, "{} are left", segments(&world).len());
    world.check();
    world.check_replay(&[3, 50]);

    // Rows before 5: of each entity one is left, and reads from there on do not notice.
    let as_of = |world: &World, event_us| -> Vec<_> {
        let rows = (0..KEYS).map(|key| {
            let lookup = Lookup { key: &entity(key), event_us, created_us: i64::MAX, committed_us: i64::MAX };
            let row = world.shards[0].as_of(STORAGE_ID, &[lookup]).remove(0);
            row.map(|row| (row.event_us, row.packed))
        });
        rows.collect()
    };
    let before: Vec<_> = (5..10).map(|event| as_of(&world, event)).collect();
    while let Some(swap) = world.merge(0, Some(5), false) {
        assert_eq!(world.change(0, Change::ReplaceSegments(swap)).refused, None);
    }
    assert_eq!((5..10).map(|event| as_of(&world, event)).collect::<Vec<_>>(), before);
    assert_eq!(segments(&world).iter().map(|it| it.rows).sum::<u64>(), 5 * KEYS as u64);
    assert!(as_of(&world, 4).iter().all(Option::is_some) && as_of(&world, 3).iter().all(Option::is_none));
    assert_eq!(world.merge(0, Some(5), false), None, "it is done once");
    // The floor rises past all rows.
    while let Some(swap) = world.merge(0, Some(100), false) {
        assert_eq!(world.change(0, Change::ReplaceSegments(swap)).refused, None);
    }
    assert_eq!(segments(&world).iter().map(|it| it.rows).sum::<u64>(), KEYS as u64);
    assert_eq!(as_of(&world, 99), before[4]);
    world.check_latest();
    world.check_replay(&[1]);
}

/// Rows that come late are counted, and go when their slots are looked at again.
#[test]
fn late_rows_go_when_asked_again() {
    let mut world = World::new();
    world.run(&Op::Write((0..9).map(|at| (0, at, at, Some(at))).collect()));
    let late = |world: &World| world.shards[0].shard.late_rows(STORAGE_ID);
    let move_rows = |world: &mut World, rows_max| {
        for op in [Op::Extract(0, 5, 0, rows_max), Op::Add(0), Op::Trim(0, 100)] {
            world.run(&op);
        }
        world.shards[0].shard.tiers().segments().iter().map(|it| it.rows).collect::<Vec<_>>()
    };
    assert_eq!(move_rows(&mut world, 1_000), [5]);
    assert_eq!(late(&world), 0);
    world.run(&Op::Write(vec![(0, 2, 2, Some(77)), (0, 3, 3, None), (0, 8, 8, Some(1))]));
    assert_eq!(late(&world), 2);
    let cold = Cold { storage_id: STORAGE_ID, before_us: 5, rows_max: 9, again: false };
    let slot = slot_of(&entity(0));
    assert_ne!(world.shards[0].shard.cold_slot(&cold, slot), Some(slot));
    assert_eq!(world.shards[0].shard.cold_slot(&Cold { again: true, ..cold }, slot), Some(slot));
    world.check();
    assert_eq!(move_rows(&mut world, 999), [5, 2]);
    world.check();
    world.check_replay(&[2]);
    world.shards[0].shard.forget_late(STORAGE_ID, 2);
    assert_eq!(late(&world), 0);
}

/// Deleted keys stay in the database until they are compacted away. Whoever goes from slot to slot passes each of them once, and
/// not all up to the next row from every slot anew.
#[test]
fn what_left_the_database_is_passed_once() {
    // One row a slot, or two: they are deleted one by one.
    const ENTITIES: i64 = 1_000;
    let mut world = World::new();
    world.run(&Op::Write((0..ENTITIES).map(|key| (key, 1, 1, Some(key))).collect()));
    let first = (0..ENTITIES).min_by_key(|key| slot_of(&entity(*key))).unwrap();
    world.run(&Op::Extract(0, 9, first, 10_000));
    world.run(&Op::Add(0));
    let trimming = deleted_keys_passed(|| world.run(&Op::Trim(0, 1_000)));
    assert_eq!(world.shards[0].shard.next_trim().unwrap(), None);
    let other = Cold { storage_id: STORAGE_ID + 1, before_us: 9, rows_max: 10_000, again: false };
    let extracting = deleted_keys_passed(|| {
        let layout = SegmentLayout { storage_id: other.storage_id, ..layout() };
        let (written, next) = world.shards[0].shard.extract(&other, 0, layout, Vec::new()).unwrap();
        assert!(written.is_none() && next == 4096);
    });
    let rows = ENTITIES as u64;
    assert!(extracting > 0, "nothing was counted");
    assert!(trimming <= rows && extracting <= rows, "{trimming} and {extracting} passed of {rows}");
    world.check_replay(&[50]);
}

#[test]
fn steps_out_of_place_change_nothing() {
    let mut world = World::new();
    world.run(&Op::Write(vec![(0, 1, 1, Some(1)), (1, 2, 2, Some(2))]));
    world.run(&Op::Extract(0, 5, 0, 1_000));
    let (_, good) = world.extract.clone().unwrap();
    let mut no = |change: Change, why: &str| {
        let outcome = world.change(0, change);
        let refusal = outcome.refused.expect(why);
        assert!(format!("{}: {}", refusal.kind, refusal.message).contains(why), "{refusal:?}");
    };
    let with = |change: &dyn Fn(&mut Segment)| {
        let mut bad = good.clone();
        change(bad.segment.as_mut().unwrap());
        Change::AddSegment(bad)
    };
    no(Change::AddSegment(AddSegment::default()), "invalid_argument: a segment cannot be added");
    no(with(&|it| it.last_slot = 4096), "its slots are no range");
    no(with(&|it| it.rows = 0), "it does not say what it holds");
    no(with(&|it| it.root = vec![1].into()), "it does not say what it holds");
    no(with(&|it| it.through_commit = 9_000), "it holds rows from after it");
    no(Change::AddSegment(AddSegment { expected_changes: 1, ..good.clone() }), "conflict: the segments");
    no(Change::TrimHistory(TrimHistory { id: 3, ..TrimHistory::default() }), "conflict: segment 3 is not here");
    assert_eq!(world.change(0, Change::AddSegment(good.clone())).refused, None);
    let twice = world.change(0, Change::AddSegment(good)).refused.unwrap();
    assert_eq!(twice.message, "the segments of the shard have changed since");
    world.check();
}

/// A shard takes slots for its own that it never had a row of. When such slots come, their rows are older than what a
/// segment was written through, in its range, and not in it: they stay.
#[test]
fn a_segment_takes_no_rows_that_come_with_slots() {
    let write = Op::Write(vec![(4, 0, 0, Some(4)), (0, 0, 0, Some(7))]);
    let segment = [Op::Extract(1, 1, 0, 1), Op::Add(0)];
    let come = [Op::Begin(0, 0), Op::Drive(30)];
    for added_first in [true, false] {
        let mut world = World::new();
        let ops = match added_first {
            true => [&segment[..], &come[..]].concat(),
            false => vec![segment[0].clone(), come[0].clone(), come[1].clone(), segment[1].clone()],
        };
        let before = [write.clone(), Op::Begin(4, 4), Op::Drive(30)];
        for op in before.iter().chain(&ops).chain(&[Op::Trim(1, 100)]) {
            world.run(op);
            world.check();
        }
        assert_eq!((world.shard_of(0), world.shard_of(4)), (1, 1), "both have moved");
        assert_eq!(world.added, usize::from(added_first), "a segment from before the slots came is refused");
        world.check_replay(&[2, 9]);
    }
}
