//! Behaviour that no crash is needed for: reading, refusing, poison, damage, deleting segments, golden bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use cairn_proto::ErrorKind;
use proptest::prelude::*;

use super::format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::mem::MemFiles;
use super::*;

fn small() -> WalOptions {
    WalOptions { segment_bytes: 4 << 10, cache_bytes_max: 0, writer: Writer::Inline, ..WalOptions::default() }
}

fn open_with(disk: &MemFiles, options: WalOptions) -> Result<Arc<Wal>, WalError> {
    Wal::open(Path::new("/wal"), options, Arc::new(disk.clone()))
}

fn open(disk: &MemFiles) -> Arc<Wal> {
    open_with(disk, small()).unwrap()
}

fn refused(disk: &MemFiles) -> WalError {
    match open_with(disk, small()) {
        Ok(_) => panic!("the log opened"),
        Err(error) => error,
    }
}

/// A callback, and what it was told.
fn done() -> (Done, mpsc::Receiver<Result<(), String>>) {
    let (tell, told) = mpsc::channel();
    (Box::new(move |outcome| tell.send(outcome.map_err(|error| error.to_string())).unwrap()), told)
}

fn append(wal: &Wal, group: u32, entries: &[(u64, &[u8])]) -> Result<(), String> {
    let (done, told) = done();
    let entries = entries.iter().map(|(index, payload)| (*index, Bytes::copy_from_slice(payload))).collect();
    wal.append(group, entries, done);
    told.recv().unwrap()
}

fn purge(wal: &Wal, group: u32, upto: u64) {
    let (done, told) = done();
    wal.purge(group, upto, upto.to_le_bytes().to_vec(), done);
    told.recv().unwrap().unwrap();
}

fn truncate(wal: &Wal, group: u32, index: Option<u64>) {
    let (done, told) = done();
    wal.truncate_after(group, index, done);
    told.recv().unwrap().unwrap();
}

fn vote(wal: &Wal, group: u32, vote: &[u8]) -> Result<(), String> {
    let (done, told) = done();
    wal.save_vote(group, vote.to_vec(), done);
    told.recv().unwrap()
}

fn indexes(wal: &Wal, group: u32) -> Vec<u64> {
    wal.read(group, 0..u64::MAX, usize::MAX).unwrap().into_iter().map(|(index, _)| index).collect()
}

fn segments(disk: &MemFiles) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal")).collect()
}

#[test]
fn what_was_written_is_read_back_after_a_restart() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    assert!(wal.created());
    append(&wal, 3, &[(1, b"one"), (2, b""), (3, b"three")]).unwrap();
    append(&wal, 0, &[(0, b"meta")]).unwrap();
    vote(&wal, 3, b"me").unwrap();
    wal.save_committed(3, b"two".to_vec());
    truncate(&wal, 3, Some(2));
    purge(&wal, 3, 1);
    let state = wal.group(3);
    let wanted = GroupState {
        vote: Some(b"me".to_vec()),
        committed: Some(b"two".to_vec()),
        purged: Some((1, 1u64.to_le_bytes().to_vec())),
        first_index: Some(2),
        last: Some((2, Vec::new())),
    };
    assert_eq!(state, wanted);
    wal.close();
    drop(wal);
    disk.crash(0);
    let wal = open(&disk);
    assert!(!wal.created());
    assert_eq!(wal.groups(), [0, 3]);
    assert_eq!(wal.group(3), wanted);
    assert_eq!(wal.group(9), GroupState::default());
    assert_eq!(wal.read(0, 0..10, 0).unwrap(), [(0, Bytes::from_static(b"meta"))]);
}

#[test]
fn reading_clips_the_range_and_stops_at_the_byte_limit() {
    for cache_bytes_max in [0, 600, 1 << 20] {
        let disk = MemFiles::default();
        let wal = open_with(&disk, WalOptions { cache_bytes_max, ..small() }).unwrap();
        for index in 5..65u64 {
            append(&wal, 1, &[(index, &[index as u8; 100])]).unwrap();
            append(&wal, 2, &[(index, &[index as u8 + 100; 33])]).unwrap();
        }
        let read = |range, bytes_max| {
            let entries = wal.read(1, range, bytes_max).unwrap();
            assert!(entries.iter().all(|(index, payload)| payload[..] == [*index as u8; 100]));
            (entries.first().map(|(first, _)| *first), entries.len())
        };
        assert_eq!(read(0..u64::MAX, usize::MAX), (Some(5), 60));
        assert_eq!(read(63..100, usize::MAX), (Some(63), 2));
        assert_eq!(read(10..60, 1000), (Some(10), 10));
        assert_eq!(read(10..60, 0), (Some(10), 1));
        assert_eq!(read(100..200, usize::MAX), (None, 0));
        assert_eq!(read(0..5, usize::MAX), (None, 0));
    }
}

#[test]
fn holes_and_oversized_records_are_refused_and_change_nothing() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    append(&wal, 1, &[(4, b"a")]).unwrap();
    assert_eq!(append(&wal, 1, &[(6, b"c")]).unwrap_err(), "group 1: entry 6 cannot follow entry 4");
    assert_eq!(append(&wal, 1, &[(4, b"a")]).unwrap_err(), "group 1: entry 4 cannot follow entry 4");
    assert_eq!(append(&wal, 1, &[(5, b"b"), (7, b"d")]).unwrap_err(), "group 1: entry 7 stands where 6 belongs");
    assert!(vote(&wal, 1, &[0; POINTER_BYTES_MAX + 1]).is_err());
    purge(&wal, 1, 9);
    assert_eq!(
        append(&wal, 1, &[(9, b"x")]).unwrap_err(),
        "group 1: entry 9 cannot follow: entries up to 9 are purged"
    );
    append(&wal, 1, &[(10, b"y")]).unwrap();
    append(&wal, 1, &[]).unwrap();
    assert_eq!(indexes(&wal, 1), [10]);
    assert_eq!(wal.failure(), None);
}

#[test]
fn long_payloads_get_longer_segments() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    let payloads: Vec<Vec<u8>> = [5usize, 20_000, 70_000, 16 << 10, 3].map(|size| vec![size as u8; size]).to_vec();
    for (index, payload) in (1..).zip(&payloads) {
        append(&wal, 1, &[(index, payload)]).unwrap();
    }
    drop(wal);
    disk.crash(0);
    let found = open(&disk).read(1, 0..9, usize::MAX).unwrap();
    assert_eq!(found.into_iter().map(|(_, payload)| payload.to_vec()).collect::<Vec<_>>(), payloads);
}

#[test]
fn purging_deletes_segments_and_a_slow_group_keeps_them() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    append(&wal, 7, &[(1, b"slow")]).unwrap();
    for index in 1..=100u64 {
        append(&wal, 1, &[(index, &[9; 300])]).unwrap();
    }
    let all = segments(&disk).len();
    assert!(all > 7, "{all} segments");
    purge(&wal, 1, 99);
    assert_eq!(segments(&disk).len(), all);
    let pinning = wal.pinning_groups(2);
    assert_eq!(pinning, [PinningGroup { group: 7, first_index: 1, segments: all as u64 }]);
    purge(&wal, 7, 1);
    assert_eq!(segments(&disk).len(), 1);
    assert_eq!(wal.pinning_groups(1), []);
    drop(wal);
    for crash in 0..6 {
        disk.crash(crash);
        let wal = open(&disk);
        assert_eq!((indexes(&wal, 1), indexes(&wal, 7)), (vec![100], vec![]));
        assert_eq!(wal.group(7).purged.unwrap().0, 1);
    }
    assert!(segments(&disk).len() <= 2, "restarts leave no pile of segments: {:?}", segments(&disk));
}

#[test]
fn one_fsync_serves_everybody_who_waits() {
    let disk = MemFiles::default();
    let wal = open_with(&disk, WalOptions { writer: Writer::Stepped, segment_bytes: 1 << 20, ..small() }).unwrap();
    let (syncs, changes) = (disk.syncs(), disk.changes());
    let called = Arc::new(AtomicUsize::new(0));
    for index in 0..100u64 {
        for group in 0..5 {
            let called = Arc::clone(&called);
            let count =
                move |outcome: std::io::Result<()>| drop(outcome.map(|()| called.fetch_add(1, Ordering::SeqCst)));
            wal.append(group, vec![(index, Bytes::from(vec![0; 100]))], Box::new(count));
        }
    }
    assert_eq!(called.load(Ordering::SeqCst), 0);
    assert!(wal.step());
    assert!(!wal.step());
    assert_eq!(called.load(Ordering::SeqCst), 500);
    assert_eq!((disk.syncs() - syncs, disk.changes() - changes), (1, 2), "one write, one fsync");
}

#[test]
fn what_is_not_durably_purged_is_not_deleted() {
    let disk = MemFiles::default();
    let wal = open_with(&disk, WalOptions { writer: Writer::Stepped, ..small() }).unwrap();
    for index in 1..=30u64 {
        wal.append(1, vec![(index, Bytes::from(vec![1; 400]))], Box::new(|_| {}));
    }
    // Queued between the batch and the deleting of segments behind it.
    let late = Arc::downgrade(&wal);
    let purge = move |_| late.upgrade().unwrap().purge(1, 30, b"id".to_vec(), Box::new(|_| {}));
    wal.save_vote(1, b"v".to_vec(), Box::new(purge));
    assert!(wal.step());
    assert!(indexes(&wal, 1).is_empty());
    disk.crash(1);
    assert_eq!(indexes(&open(&disk), 1).len(), 30);
}

#[test]
fn a_committed_pointer_rides_along_and_closing_writes_it() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    append(&wal, 1, &[(1, b"a")]).unwrap();
    let syncs = disk.syncs();
    wal.save_committed(1, b"c1".to_vec());
    wal.save_committed(1, b"c2".to_vec());
    assert_eq!(disk.syncs(), syncs);
    assert_eq!(wal.group(1).committed.unwrap(), b"c2");
    append(&wal, 2, &[(1, b"b")]).unwrap();
    assert_eq!(disk.syncs(), syncs + 1);
    wal.save_committed(1, b"c3".to_vec());
    disk.crash(0);
    let wal = open(&disk);
    assert_eq!(wal.group(1).committed.unwrap(), b"c2");
    wal.save_committed(1, b"c4".to_vec());
    wal.close();
    assert_eq!(append(&wal, 1, &[(2, b"x")]).unwrap_err(), "the log is closed");
    drop(wal);
    disk.crash(0);
    assert_eq!(open(&disk).group(1).committed.unwrap(), b"c4");
}

#[test]
fn a_failed_fsync_poisons_for_good_and_is_never_tried_again() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    append(&wal, 1, &[(1, b"safe")]).unwrap();
    disk.fail_sync_after(0);
    let first = append(&wal, 1, &[(2, b"lost")]).unwrap_err();
    assert!(first.starts_with("cannot fsync `/wal/0000000000000001.wal`: simulated"), "{first}");
    let (syncs, changes) = (disk.syncs(), disk.changes());
    assert_eq!(wal.failure().unwrap(), first);
    assert_eq!(append(&wal, 1, &[(3, b"x")]).unwrap_err(), first);
    assert_eq!(vote(&wal, 2, b"v").unwrap_err(), first);
    assert_eq!(wal.read(1, 0..9, 99).unwrap_err().to_string(), first);
    wal.save_committed(1, b"c".to_vec());
    wal.close();
    assert_eq!((disk.syncs(), disk.changes()), (syncs, changes));
    drop(wal);

    // The process starts again and still reads the page the disk never got: it must not count on it unwritten.
    disk.restart();
    assert_eq!(indexes(&open(&disk), 1), [1, 2]);
    disk.crash(0);
    assert_eq!(indexes(&open(&disk), 1), [1, 2]);
}

#[test]
fn a_full_disk_has_its_own_error() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    disk.set_capacity(Some(6 << 10));
    let refusal = (1..).find_map(|index| append(&wal, 1, &[(index, &[1; 500])]).err()).unwrap();
    assert!(refusal.starts_with("the disk is full: cannot write to `/wal/"), "{refusal}");
    let failed = wal.failed().unwrap();
    assert!(matches!(failed, WalError::DiskFull { .. }));
    assert_eq!(failed.kind(), ErrorKind::ReadOnly);
    let error = std::io::Error::from(failed);
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(matches!(error.downcast::<WalError>(), Ok(WalError::DiskFull { .. })));
    assert_eq!(vote(&wal, 1, b"v").unwrap_err(), refusal);
    drop(wal);
    disk.restart();
    disk.set_capacity(Some(0));
    assert!(matches!(refused(&disk), WalError::DiskFull { .. }));
    disk.set_capacity(None);
    assert!(!indexes(&open(&disk), 1).is_empty());
}

/// Less room than a segment reserves: the log opens, goes on while there is any, and keeps what it took.
#[test]
fn a_nearly_full_disk_opens() {
    let disk = MemFiles::default();
    append(&open(&disk), 1, &[(1, b"first")]).unwrap();
    disk.restart();
    disk.set_capacity(Some(5 << 10));
    let wal = open(&disk);
    append(&wal, 1, &[(2, b"second")]).unwrap();
    drop(wal);
    disk.crash(0);
    assert_eq!(indexes(&open(&disk), 1), [1, 2]);
}

/// A log of three segments; the last batch is `batch`, each batch one entry.
fn three_segments() -> (MemFiles, Vec<PathBuf>) {
    let disk = MemFiles::default();
    let wal = open(&disk);
    vote(&wal, 1, b"me").unwrap();
    for index in 1..=25u64 {
        append(&wal, 1, &[(index, &[index as u8; 333])]).unwrap();
    }
    drop(wal);
    disk.crash(0);
    let paths = segments(&disk);
    assert_eq!(paths.len(), 3);
    (disk, paths)
}

#[test]
fn a_torn_tail_is_cut() {
    let (disk, paths) = three_segments();
    let bytes = disk.contents(&paths[2]).unwrap();
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    for torn in [used - 300, used - 330, used - 345] {
        let mut bytes = bytes.clone();
        bytes[torn..].fill(0);
        disk.replace(&paths[2], bytes);
        assert_eq!(indexes(&open(&disk), 1).last(), Some(&24));
        // Not the file that was cut: the log went on in a new one.
        segments(&disk)[3..].iter().for_each(|path| disk.remove(path).unwrap());
        disk.restart();
    }
}

#[test]
fn damage_keeps_the_log_shut_and_names_the_place() {
    let (disk, paths) = three_segments();
    let flip = |path: &Path, offset: usize| {
        let mut bytes = disk.contents(path).unwrap();
        bytes[offset] ^= 4;
        disk.replace(path, bytes);
    };
    // In an older segment, its last record included; in the last one, before a batch that came later.
    let first_record = |path: &Path| {
        let bytes = disk.contents(path).unwrap();
        let checkpoint = u32::from_le_bytes(bytes[64..68].try_into().unwrap()) as usize;
        SEGMENT_HEADER_BYTES + super::format::record_bytes(checkpoint)
    };
    let record = RECORD_HEADER_BYTES + 336;
    let nth = |path: &Path, nth: usize| first_record(path) + record * nth;
    for (path, start) in
        [(&paths[0], SEGMENT_HEADER_BYTES), (&paths[1], nth(&paths[1], 2)), (&paths[2], nth(&paths[2], 1))]
    {
        flip(path, start + 9);
        let WalError::Corrupt { path: named, offset, what } = refused(&disk) else { panic!("wrong error") };
        assert_eq!((&named, offset as usize), (path, start), "{what}");
        disk.restart();
        flip(path, start + 9);
    }
    flip(&paths[1], 3);
    let message = refused(&disk).to_string();
    let wanted = "the log is damaged: `/wal/0000000000000002.wal` at offset 0: this is no log segment (wrong magic)";
    assert_eq!(message, wanted);
    flip(&paths[1], 3);
    disk.restart();
    open(&disk);
}

#[test]
fn missing_segments_are_noticed() {
    let (disk, paths) = three_segments();
    for missing in [0, 1] {
        let bytes = disk.contents(&paths[missing]).unwrap();
        disk.remove(&paths[missing]).unwrap();
        let message = refused(&disk).to_string();
        assert!(message.contains("of group 1 stood in segments that are missing"), "{message}");
        disk.replace(&paths[missing], bytes);
        disk.restart();
    }
    // A segment cut at a record's border: its successor knows where it ended.
    let mut bytes = disk.contents(&paths[0]).unwrap();
    bytes.truncate(SEGMENT_HEADER_BYTES + 40);
    disk.replace(&paths[0], bytes);
    assert!(refused(&disk).to_string().contains("the file ends here"));
}

#[test]
fn newer_formats_are_refused_by_name() {
    let (disk, paths) = three_segments();
    let path = &paths[2];
    let original = disk.contents(path).unwrap();
    let mut bytes = original.clone();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.replace(path, bytes);
    let message = refused(&disk).to_string();
    let (what, fix) = message.split_once(": ").unwrap();
    assert_eq!(what, "`/wal/0000000000000003.wal` has log format 2, and this version of cairnd reads up to 1");
    assert_eq!(fix, "start it with the version that wrote it, or a newer one");
}

#[test]
fn one_process_at_a_time() {
    let disk = MemFiles::default();
    let wal = open(&disk);
    assert!(matches!(refused(&disk), WalError::Locked(_)));
    wal.close();
    let other = open(&disk);
    drop(wal);
    assert!(matches!(refused(&disk), WalError::Locked(_)), "a closed log gives its lock away once");
    drop(other);
    open(&disk);
}

#[test]
fn a_panicking_callback_does_not_stop_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let wal = Wal::open(dir.path(), WalOptions::default(), Arc::new(RealFiles)).unwrap();
    wal.append(1, vec![(1, Bytes::from_static(b"a"))], Box::new(|_| panic!("a test's callback")));
    append(&wal, 1, &[(2, b"b")]).unwrap();
    assert_eq!(indexes(&wal, 1), [1, 2]);
}

#[test]
fn threads_append_side_by_side_and_the_queue_stays_bounded() {
    const THREADS: u32 = 6;
    const ENTRIES: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions {
        segment_bytes: 256 << 10,
        queue_bytes_max: 8 << 10,
        cache_bytes_max: 16 << 10,
        writer: Writer::Thread,
    };
    let wal = Wal::open(dir.path(), options.clone(), Arc::new(RealFiles)).unwrap();
    let payload = |group: u32, index: u64| Bytes::from(vec![group as u8 ^ index as u8; 100 + index as usize]);
    std::thread::scope(|scope| {
        for group in 0..THREADS {
            let wal = &wal;
            scope.spawn(move || {
                let called = Arc::new(AtomicUsize::new(0));
                for index in 0..ENTRIES {
                    let called = Arc::clone(&called);
                    let in_order = move |outcome: std::io::Result<()>| {
                        outcome.unwrap();
                        assert_eq!(called.fetch_add(1, Ordering::SeqCst), index as usize);
                    };
                    wal.append(group, vec![(index, payload(group, index))], Box::new(in_order));
                    let read = wal.read(group, index..index + 1, 0).unwrap();
                    assert_eq!(read, [(index, payload(group, index))], "readable at once");
                    assert!(wal.stats().queue_bytes <= (8 << 10) + u64::from(THREADS) * 600);
                }
                let (done, told) = done();
                wal.truncate_after(group, Some(ENTRIES - 2), done);
                told.recv().unwrap().unwrap();
                assert_eq!(called.load(Ordering::SeqCst), ENTRIES as usize);
            });
        }
    });
    drop(wal);
    let wal = Wal::open(dir.path(), options, Arc::new(RealFiles)).unwrap();
    for group in 0..THREADS {
        let entries = wal.read(group, 0..u64::MAX, usize::MAX).unwrap();
        assert_eq!(entries.len() as u64, ENTRIES - 1);
        assert!(entries.into_iter().all(|(index, found)| found == payload(group, index)));
    }
}

proptest! {
    /// One flipped bit anywhere: the log stays shut, or shows what was written, or (in the last batch) less by that.
    #[test]
    fn no_flipped_bit_changes_what_the_log_says(nth in 0usize..3, at in 0usize..4096, bit in 0u8..8) {
        let (disk, paths) = three_segments();
        let mut bytes = disk.contents(&paths[nth]).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        disk.replace(&paths[nth], bytes);
        if let Ok(wal) = open_with(&disk, small()) {
            let entries = wal.read(1, 0..99, usize::MAX).unwrap();
            prop_assert!(entries.len() == 25 || (entries.len() == 24 && nth == 2));
            prop_assert!((1..).zip(&entries).all(|(index, entry)| *entry == (index, Bytes::from(vec![index as u8; 333]))));
            prop_assert_eq!(wal.group(1).vote.unwrap(), b"me");
        }
    }
}

/// A log with a record of every kind, and a second segment that starts with a checkpoint of it.
fn golden_log() -> MemFiles {
    let disk = MemFiles::default();
    let wal = open_with(&disk, WalOptions { writer: Writer::Stepped, ..small() }).unwrap();
    let ignore = || -> Done { Box::new(|outcome| outcome.unwrap()) };
    wal.save_vote(0, b"vote of node 1".to_vec(), ignore());
    wal.append(0, vec![(0, Bytes::from_static(b"membership")), (1, Bytes::from_static(b"first"))], ignore());
    assert!(wal.step());
    wal.save_committed(0, b"0-1".to_vec());
    wal.append(5, vec![(1, Bytes::new()), (2, Bytes::from_static(b"wrong leader"))], ignore());
    wal.truncate_after(5, Some(1), ignore());
    wal.purge(0, 0, b"0-0".to_vec(), ignore());
    assert!(wal.step());
    drop(wal);
    disk.crash(0);
    open(&disk);
    disk
}

/// Lines of hex; `#` starts a comment, `== name` a file.
fn golden_files(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap().trim()) {
        match line.strip_prefix("== ") {
            Some(name) => files.push((name.to_owned(), Vec::new())),
            None => {
                let digits: String = line.split_whitespace().collect();
                let bytes =
                    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).unwrap());
                if let Some((_, file)) = files.last_mut() {
                    file.extend(bytes);
                }
            }
        }
    }
    files
}

/// Version 1 as it was released: written the same today, and still read.
#[test]
fn golden_bytes_of_version_1() {
    let golden = golden_files(include_str!("../../tests/golden/wal_v1.hex"));
    let disk = golden_log();
    let hex = |bytes: &[u8]| -> Vec<String> {
        bytes.chunks(8).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect()
    };
    let paths = segments(&disk);
    assert_eq!(paths.len(), golden.len());
    for (path, (name, wanted)) in paths.iter().zip(&golden) {
        assert_eq!(path.file_name().unwrap().to_string_lossy(), *name);
        let mut bytes = disk.contents(path).unwrap();
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        bytes.truncate(used.next_multiple_of(8).max(wanted.len()));
        assert_eq!(hex(wanted), hex(&bytes), "{name}");
    }

    let disk = MemFiles::default();
    golden.into_iter().for_each(|(name, bytes)| disk.replace(&Path::new("/wal").join(name), bytes));
    let wal = open(&disk);
    let meta = GroupState {
        vote: Some(b"vote of node 1".to_vec()),
        committed: Some(b"0-1".to_vec()),
        purged: Some((0, b"0-0".to_vec())),
        first_index: Some(1),
        last: Some((1, b"first".to_vec())),
    };
    assert_eq!(wal.group(0), meta);
    let shard = GroupState { first_index: Some(1), last: Some((1, Vec::new())), ..GroupState::default() };
    assert_eq!(wal.group(5), shard);
}
