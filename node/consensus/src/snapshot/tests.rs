use super::*;
use crate::testing::MemoryReplica;
use cairn_proto::ErrorKind;
use cairn_proto::peer::v1::{SnapshotFrame, SnapshotHeader, snapshot_frame::Part};
use cairn_storage::replica::Entry as ReplicaEntry;
use std::time::Duration;
use tokio::time::Instant;

fn replica(commands: &[&[u8]]) -> MemoryReplica {
    let replica = MemoryReplica::default();
    for (at, command) in commands.iter().enumerate() {
        let index = at as u64 + 1;
        let entry = ReplicaEntry { index, command: Some(command) };
        replica.apply(&[entry], &codec::encode_meta(&meta_at(index - 1))).unwrap();
    }
    replica
}

fn meta_at(index: u64) -> SnapshotMeta {
    let last_log_id = Some(LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index });
    SnapshotMeta { last_log_id, ..SnapshotMeta::default() }
}

/// What a sender puts on the way to somebody who has `have`.
async fn frames(dir: &SnapshotDir, have: Vec<SnapshotPart>) -> Vec<SnapshotFrame> {
    let mut receiver = send(dir.clone(), SnapshotHeader::default(), have, 0, Arc::new(MemoryReplica::default()));
    let mut frames = Vec::new();
    while let Some(frame) = receiver.recv().await {
        frames.push(frame);
    }
    frames
}

fn data_bytes(frames: &[SnapshotFrame]) -> usize {
    let data = frames.iter().map(|frame| match &frame.part {
        Some(Part::Data(data)) => data.len(),
        _ => 0,
    });
    data.sum()
}

fn begin(store: &SnapshotStore, meta: &SnapshotMeta, frame: &SnapshotFrame) -> Result<Incoming> {
    let Some(Part::Header(header)) = &frame.part else { panic!("no header") };
    store.receive(meta, header.files.clone())
}

fn receive(store: &SnapshotStore, meta: &SnapshotMeta, frames: &[SnapshotFrame]) -> Result<SnapshotDir> {
    let mut incoming = begin(store, meta, &frames[0])?;
    for frame in &frames[1..] {
        incoming.accept(frame.clone())?;
    }
    store.received_whole(incoming)
}

/// A checkpoint as RocksDB makes them: tables of several frames, small files beside them.
fn checkpoint(root: &Path, files: &[(&str, Vec<u8>)]) -> SnapshotDir {
    let dir = SnapshotDir::new(root.to_owned(), false);
    fs::create_dir_all(dir.data()).unwrap();
    for (name, bytes) in files {
        fs::write(dir.data().join(name), bytes).unwrap();
    }
    dir
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

const FRAME: usize = FRAME_BYTES_MAX;

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("000007.sst", noise(7, 2 * FRAME + 5)),
        ("000008.sst", noise(8, FRAME)),
        ("000009.sst", noise(8, FRAME)),
        ("CURRENT", b"MANIFEST-000004\n".to_vec()),
        ("EMPTY", Vec::new()),
    ]
}

fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

fn names(dir: &Path) -> Vec<String> {
    content(dir).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn the_newest_snapshot_survives_a_restart_and_half_made_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("0");
    let store = SnapshotStore::open(root.clone()).unwrap();
    assert!(store.current().is_none());
    store.build(&replica(&[b"a"])).unwrap();
    let built = store.build(&replica(&[b"a", b"b"])).unwrap();
    assert_eq!(built.meta.last_log_id.map(|id| id.index), Some(1));
    fs::create_dir_all(root.join("tmp-77/data")).unwrap();
    fs::create_dir_all(root.join("incoming-78/data")).unwrap();
    fs::create_dir_all(root.join("incoming")).unwrap();
    let reopened = SnapshotStore::open(root.clone()).unwrap();
    assert_eq!(reopened.current().unwrap().meta, built.meta);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    reopened.build(&replica(&[b"a", b"b", b"c"])).unwrap();
    assert!(root.join("snap-79").exists());
}

#[test]
fn a_replaced_snapshot_stays_until_its_reader_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path().join("0")).unwrap();
    let old = store.build(&replica(&[b"a"])).unwrap().snapshot;
    store.build(&replica(&[b"a", b"b"])).unwrap();
    let path = old.data();
    assert!(path.exists() && !old.0.root.join(META).exists());
    drop(old);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_snapshot_travels_and_installs() {
    let dir = tempfile::tempdir().unwrap();
    let left = SnapshotStore::open(dir.path().join("left")).unwrap();
    let right = SnapshotStore::open(dir.path().join("right")).unwrap();
    let source = replica(&[b"a", b"b", b"c"]);
    let built = left.build(&source).unwrap();
    let received = receive(&right, &built.meta, &frames(&built.snapshot, vec![]).await).unwrap();
    let target = replica(&[b"x"]);
    let installed = right.install(&target, &received).unwrap();
    assert_eq!(installed.meta, built.meta);
    assert_eq!(target.commands(), source.commands());
    assert_eq!(right.current().unwrap().meta, built.meta);
    drop(received);
    // What came was of this snapshot, so nothing of it stays.
    assert_eq!(fs::read_dir(dir.path().join("right")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_transfer_keeps_its_rate() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path().join("left")).unwrap();
    let row = vec![b'x'; 2000];
    let built = store.build(&replica(&[&row])).unwrap();
    let bytes = fs::metadata(built.snapshot.data().join("state.sst")).unwrap().len();
    let began = Instant::now();
    let mut receiver =
        send(built.snapshot, SnapshotHeader::default(), vec![], bytes * 10, Arc::new(MemoryReplica::default()));
    while receiver.recv().await.is_some() {}
    assert!(began.elapsed() >= Duration::from_millis(100));
}

/// Wherever the way breaks, with or without the receiver's process, the next try brings the rest and nothing twice.
#[tokio::test]
async fn a_transfer_goes_on_where_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(&dir.path().join("left"), &files());
    let whole = frames(&source, vec![]).await;
    // Two files are equal, and go once.
    assert_eq!(data_bytes(&whole), 3 * FRAME + 5 + 16);
    for cut in 1..=whole.len() {
        for killed in [false, true] {
            let root = dir.path().join(format!("right-{cut}-{killed}"));
            let mut store = SnapshotStore::open(root.clone()).unwrap();
            let mut incoming = begin(&store, &meta_at(5), &whole[0]).unwrap();
            for frame in &whole[1..cut] {
                incoming.accept(frame.clone()).unwrap();
            }
            drop(incoming);
            if killed {
                drop(store);
                store = SnapshotStore::open(root.clone()).unwrap();
            }
            let rest = frames(&source, store.have().unwrap()).await;
            assert_eq!(data_bytes(&whole[..cut]) + data_bytes(&rest), data_bytes(&whole), "cut before {cut}");
            let received = receive(&store, &meta_at(5), &rest).unwrap();
            assert_eq!(content(&received.data()), content(&source.data()), "cut before {cut}");
            let kept = data_bytes(&whole[..cut]) + FRAME;
            assert_eq!(store.received().kept, kept as u64, "the second of the equal files never travels");
        }
    }
}

/// A process that is killed may lose the end of what it wrote, or find it as something else.
#[tokio::test]
async fn a_torn_beginning_is_found_out_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(&dir.path().join("left"), &files());
    let whole = frames(&source, vec![]).await;
    let root = dir.path().join("right");
    let store = SnapshotStore::open(root.clone()).unwrap();
    let mut incoming = begin(&store, &meta_at(5), &whole[0]).unwrap();
    for frame in &whole[1..3] {
        incoming.accept(frame.clone()).unwrap();
    }
    drop((incoming, store));
    let part = names(&root.join("incoming")).into_iter().find(|name| name.ends_with(".part")).unwrap();
    let part = root.join("incoming").join(part);
    let mut bytes = fs::read(&part).unwrap();
    bytes[FRAME / 2] ^= 1;
    bytes.truncate(FRAME - 100);
    fs::write(&part, bytes).unwrap();

    let store = SnapshotStore::open(root).unwrap();
    let second = frames(&source, store.have().unwrap()).await;
    let error = receive(&store, &meta_at(5), &second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.to_string(), "snapshot file `000007.sst` does not match its BLAKE3");
    let third = frames(&source, store.have().unwrap()).await;
    let received = receive(&store, &meta_at(5), &third).unwrap();
    assert_eq!(content(&received.data()), content(&source.data()));
}

#[tokio::test]
async fn a_newer_checkpoint_finds_the_files_it_shares_and_removes_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let old = checkpoint(&dir.path().join("old"), &files());
    let mut newer = files();
    newer[0] = ("000010.sst", noise(10, FRAME / 2));
    newer[3] = ("CURRENT", b"MANIFEST-000011\n".to_vec());
    let newer = checkpoint(&dir.path().join("newer"), &newer);
    let root = dir.path().join("right");
    let store = SnapshotStore::open(root.clone()).unwrap();
    let first = frames(&old, vec![]).await;
    let mut incoming = begin(&store, &meta_at(5), &first[0]).unwrap();
    for frame in &first[1..first.len() - 1] {
        incoming.accept(frame.clone()).unwrap();
    }

    let rest = frames(&newer, store.have().unwrap()).await;
    assert_eq!(data_bytes(&rest), FRAME / 2 + 16);
    let mut second = begin(&store, &meta_at(9), &rest[0]).unwrap();
    // The position and the one file that is in both.
    assert_eq!(names(&root.join("incoming")).len(), 2);
    let error = incoming.accept(first[first.len() - 1].clone()).unwrap_err();
    assert_eq!(error.to_string(), "another snapshot has taken the place of this one");
    for frame in &rest[1..] {
        second.accept(frame.clone()).unwrap();
    }
    let received = store.received_whole(second).unwrap();
    assert_eq!(content(&received.data()), content(&newer.data()));
    assert_eq!(store.received_whole(incoming).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn what_came_goes_when_the_replica_has_come_as_far_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(&dir.path().join("left"), &files());
    let whole = frames(&source, vec![]).await;
    let root = dir.path().join("right");
    let store = SnapshotStore::open(root.clone()).unwrap();
    let mut incoming = begin(&store, &meta_at(1), &whole[0]).unwrap();
    incoming.accept(whole[1].clone()).unwrap();
    store.build(&replica(&[b"a"])).unwrap();
    assert!(root.join("incoming").exists(), "the replica is one entry behind");
    drop(store);
    let store = SnapshotStore::open(root.clone()).unwrap();
    assert_eq!(store.have().unwrap().len(), 1);
    let mut incoming = begin(&store, &meta_at(1), &whole[0]).unwrap();
    store.build(&replica(&[b"a", b"b"])).unwrap();
    assert!(!root.join("incoming").exists());
    assert_eq!(incoming.accept(whole[1].clone()).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!root.join("incoming").exists());
}

/// A leader that takes a replica for one behind sends what this has: none of it may stay until the next checkpoint, which
/// a group without writes never makes.
#[tokio::test]
async fn what_came_goes_when_its_transfer_ends_and_the_replica_is_past_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(&dir.path().join("left"), &files());
    let whole = frames(&source, vec![]).await;
    let root = dir.path().join("right");
    let store = SnapshotStore::open(root.clone()).unwrap();

    let mut incoming = begin(&store, &meta_at(5), &whole[0]).unwrap();
    incoming.accept(whole[1].clone()).unwrap();
    store.passed(6).unwrap();
    incoming.accept(whole[2].clone()).expect("a transfer under way goes on, or its sender would begin anew for ever");
    drop(incoming);
    assert!(!root.join("incoming").exists(), "of one that broke");

    let received = receive(&store, &meta_at(5), &whole).unwrap();
    assert_eq!(content(&received.data()), content(&source.data()));
    assert!(!root.join("incoming").exists(), "of a whole one");

    let mut incoming = begin(&store, &meta_at(7), &whole[0]).unwrap();
    incoming.accept(whole[1].clone()).unwrap();
    drop((incoming, store));
    let store = SnapshotStore::open(root.clone()).unwrap();
    store.passed(7).unwrap();
    assert!(root.join("incoming").exists(), "of a newer one");
    store.passed(8).unwrap();
    assert!(!root.join("incoming").exists(), "of one that the log made needless");
}

#[tokio::test]
async fn a_damaged_or_short_transfer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(&dir.path().join("left"), &files());
    let right = SnapshotStore::open(dir.path().join("right")).unwrap();
    let whole = frames(&source, vec![]).await;

    let mut damaged = whole.clone();
    for frame in &mut damaged {
        if let Some(Part::Data(data)) = &mut frame.part {
            *data = data.iter().map(|byte| byte ^ 1).collect();
        }
    }
    assert_eq!(receive(&right, &meta_at(5), &damaged).unwrap_err().kind(), ErrorKind::Corrupt);
    // Of what was wrong nothing stays: only the position.
    assert_eq!(names(&dir.path().join("right/incoming")), ["OF"]);

    let short = &whole[..whole.len() - 1];
    assert_eq!(receive(&right, &meta_at(5), short).unwrap_err().kind(), ErrorKind::Unavailable);

    let changed = |change: fn(&mut SnapshotHeader)| {
        let mut frames = whole.clone();
        if let Some(Part::Header(header)) = &mut frames[0].part {
            change(header);
        }
        receive(&right, &meta_at(5), &frames).unwrap_err()
    };
    let plain = "a snapshot file has no plain name of its own";
    assert_eq!(changed(|header| header.files[0].name = "../escaped".into()).to_string(), plain);
    assert_eq!(changed(|header| header.files[0].name = "CURRENT".into()).to_string(), plain);
    let short_hash = changed(|header| header.files[0].blake3.truncate(31));
    assert_eq!(short_hash.to_string(), "snapshot file `000007.sst` has no BLAKE3");
    assert_eq!(changed(|header| header.files[0].size = 3).kind(), ErrorKind::InvalidArgument);
    assert_eq!(changed(|header| header.files.clear()).kind(), ErrorKind::InvalidArgument);
}
