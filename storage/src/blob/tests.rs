//! Blobs survive what disks and crashes do, and nothing else is ever answered.

use super::format::{HEADER_LEN, IndexEntry, Kind, ManifestChunk, Record, Trailer};
use super::*;
use cairn_proto::ErrorKind;
use proptest::prelude::*;
use sha2::Digest;
use std::fmt::Write;
use std::io::Read;

/// Bytes that do not repeat, the same for the same seed (xorshift64*).
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

fn store(store: &Arc<BlobStore>, bytes: &[u8]) -> BlobInfo {
    let mut writer = store.writer().unwrap();
    writer.write(bytes).unwrap();
    writer.finish().unwrap()
}

fn read(store: &Arc<BlobStore>, root: &Hash) -> Result<Vec<u8>> {
    let mut reader = store.reader(root, 0)?;
    let mut out = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

fn files(dir: &Path, child: &str, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir.join(child)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_str().unwrap().ends_with(ending));
    files.sort();
    files
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However it is cut into writes and wherever a read starts, the bytes and both hashes are the file's.
    #[test]
    fn a_blob_reads_back(seed: u64, len in 0usize..1_500_000, step in 1usize..700_000, from in 0.0f64..=1.0) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let file = bytes(seed, len);
        let mut writer = blobs.writer().unwrap();
        for part in file.chunks(step) {
            writer.write(part).unwrap();
        }
        let info = writer.finish().unwrap();
        prop_assert_eq!(info.root, *blake3::hash(&file).as_bytes());
        prop_assert_eq!(&info.sha256[..], &sha2::Sha256::digest(&file)[..]);
        prop_assert_eq!((info.size, info.bytes_stored), (len as u64, len as u64));

        let blobs = { drop(blobs); BlobStore::open(dir.path()).unwrap() };
        let offset = (len as f64 * from) as usize;
        let mut tail = Vec::new();
        blobs.reader(&info.root, offset as u64).unwrap().read_to_end(&mut tail).unwrap();
        prop_assert_eq!(&tail[..], &file[offset..]);
        prop_assert_eq!(read(&blobs, &info.root).unwrap(), file);
        let blob = Blob { root: info.root, sha256: info.sha256, size: info.size };
        prop_assert_eq!(blobs.list().unwrap(), vec![blob]);
    }

    /// Any cut and any garbage behind what was acknowledged, any damage to the index: nothing acknowledged is lost,
    /// nothing else is visible, and the store goes on working, now and after another restart.
    #[test]
    fn a_torn_tail_costs_nothing(
        seed: u64,
        first in 1usize..500_000,
        second in 1usize..500_000,
        cut in 0.0f64..=1.0,
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        index_cut in 0.0f64..=1.0,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (bytes(seed, first), bytes(seed ^ 1, second));
        let blobs = BlobStore::open(dir.path()).unwrap();
        let kept = store(&blobs, &one);
        let pack = files(dir.path(), PACKS, ".pack").pop().unwrap();
        let durable = fs::metadata(&pack).unwrap().len();
        let lost = store(&blobs, &two);
        drop(blobs);

        // A crash before the second manifest: somewhere behind the first file the pack ends, in garbage perhaps.
        fs::remove_file(dir.path().join(MANIFESTS).join(hex(&lost.root))).unwrap();
        let mut content = fs::read(&pack).unwrap();
        content.truncate(durable as usize + ((content.len() as u64 - durable) as f64 * cut) as usize);
        content.extend(&garbage);
        fs::write(&pack, content).unwrap();
        let index = files(dir.path(), PACKS, ".index").swap_remove(0);
        let entries = fs::read(&index).unwrap();
        fs::write(&index, &entries[..(entries.len() as f64 * index_cut) as usize]).unwrap();

        for _ in 0..2 {
            let blobs = BlobStore::open(dir.path()).unwrap();
            prop_assert_eq!(read(&blobs, &kept.root).unwrap(), one.clone());
            let again = store(&blobs, &two);
            prop_assert_eq!(again.root, lost.root);
            prop_assert_eq!(read(&blobs, &lost.root).unwrap(), two.clone());
        }
    }

    /// One flipped bit in a pack: the read says so and names the chunk; sending the file again repairs it for good.
    #[test]
    fn a_damaged_chunk_is_never_served(seed: u64, len in 50_000usize..900_000, at in 0.0f64..1.0) {
        let dir = tempfile::tempdir().unwrap();
        let file = bytes(seed, len);
        let blobs = BlobStore::open(dir.path()).unwrap();
        let info = store(&blobs, &file);
        let pack = files(dir.path(), PACKS, ".pack").swap_remove(0);
        let size = fs::metadata(&pack).unwrap().len() as usize;
        flip(&pack, HEADER_LEN + ((size - HEADER_LEN) as f64 * at) as usize);
        match read(&blobs, &info.root) {
            Ok(all) => prop_assert_eq!(all, file.clone()), // the flip hit a record's head, which the index stands for
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
                let message = error.to_string();
                prop_assert!(message.contains("chunk `") && message.contains(".pack"), "{}", message);
                prop_assert!(store(&blobs, &file).bytes_stored > 0);
            }
        }
        drop(blobs);
        let blobs = BlobStore::open(dir.path()).unwrap();
        prop_assert_eq!(read(&blobs, &info.root).unwrap(), file);
    }

    /// One flipped bit in a manifest is found before a byte leaves.
    #[test]
    fn a_damaged_manifest_is_never_believed(len in 0usize..300_000, at in 0.0f64..1.0) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let info = store(&blobs, &bytes(5, len));
        let path = files(dir.path(), MANIFESTS, "").swap_remove(0);
        flip(&path, (fs::metadata(&path).unwrap().len() as f64 * at) as usize);
        let error = blobs.reader(&info.root, 0).err().unwrap();
        prop_assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidArgument), "{}", error);
        store(&blobs, &bytes(5, len));
        prop_assert_eq!(read(&blobs, &info.root).unwrap(), bytes(5, len));
    }
}

#[test]
fn a_small_change_stores_little() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(dir.path()).unwrap();
    let mut file = bytes(1, 16 << 20);
    assert_eq!(store(&blobs, &file).bytes_stored, 16 << 20);
    assert_eq!(store(&blobs, &file).bytes_stored, 0);
    // Inserted bytes shift everything behind them; the cuts follow the content.
    file.splice((8 << 20)..(8 << 20), [7; 100]);
    let info = store(&blobs, &file);
    assert!(info.bytes_stored <= 512 << 10, "{} bytes", info.bytes_stored);
    assert_eq!(read(&blobs, &info.root).unwrap(), file);
    assert!(files(dir.path(), PACKS, ".pack").len() > 10, "full packs are left");
    let zeros = store(&blobs, &vec![0; 4 << 20]);
    assert_eq!(zeros.bytes_stored, 256 << 10, "one chunk, sixteen times");
}

#[test]
fn an_unfinished_or_unexpected_upload_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(dir.path()).unwrap();
    let file = bytes(2, 300_000);
    let root = *blake3::hash(&file).as_bytes();
    let mut writer = blobs.writer().unwrap();
    writer.write(&file).unwrap();
    drop(writer);
    let mut writer = blobs.writer_expecting([9; 32]).unwrap();
    writer.write(&file).unwrap();
    let error = writer.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains(&hex(&root)), "{error}");
    assert!(blobs.list().unwrap().is_empty() && !blobs.contains(&root));
    assert_eq!(files(dir.path(), TMP, "").len(), 0);
    let packs = files(dir.path(), PACKS, ".pack");
    assert_eq!(packs.iter().map(|pack| fs::metadata(pack).unwrap().len()).collect::<Vec<_>>(), [HEADER_LEN as u64]);
    let error = blobs.reader(&root, 0).err().unwrap();
    assert_eq!(error.to_string(), format!("artifact `{}` not found on this node", hex(&root)));

    let mut writer = blobs.writer_expecting(root).unwrap();
    writer.write(&file).unwrap();
    assert_eq!(writer.finish().unwrap().root, root);
    assert_eq!(blobs.reader(&root, 300_001).err().unwrap().kind(), ErrorKind::InvalidArgument);
    assert!(blobs.reader(&root, 300_000).unwrap().next_chunk().unwrap().is_none());
}

#[test]
fn writers_work_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8u64 {
            let blobs = &blobs;
            // Pairs store the same file at once, and all share their first half.
            scope.spawn(move || {
                let file = [bytes(0, 400_000), bytes(1 + number / 2, 400_000)].concat();
                let info = store(blobs, &file);
                assert_eq!(read(blobs, &info.root).unwrap(), file);
            });
        }
    });
    assert_eq!(blobs.list().unwrap().len(), 4);
    drop(blobs);
    let blobs = BlobStore::open(dir.path()).unwrap();
    for blob in blobs.list().unwrap() {
        assert_eq!(blake3::hash(&read(&blobs, &blob.root).unwrap()).as_bytes(), &blob.root);
    }
}

#[test]
fn files_of_a_newer_version_are_refused_by_name() {
    for (child, ending) in [(PACKS, ".pack"), (PACKS, ".index"), (MANIFESTS, "")] {
        let dir = tempfile::tempdir().unwrap();
        let root = store(&BlobStore::open(dir.path()).unwrap(), b"model").root;
        let path = files(dir.path(), child, ending).swap_remove(0);
        let mut content = fs::read(&path).unwrap();
        content[8] = 9;
        fs::write(&path, content).unwrap();
        let error = BlobStore::open(dir.path()).and_then(|blobs| read(&blobs, &root)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let message = error.to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains("format 9"), "{message}");
    }
}

#[test]
fn roots_are_written_in_hexadecimal() {
    let hash = *blake3::hash(b"model").as_bytes();
    assert_eq!(parse_hex(&hex(&hash)).unwrap(), hash);
    for text in ["", "ab", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
        assert!(parse_hex(text).is_err(), "{text}");
    }
}

/// What version 1 wrote is read for ever; chunks are cut where version 1 cut them, or nothing deduplicates.
#[test]
fn golden_files_hold() {
    let (hash, other) = ([0x11; 32], [0x22; 32]);
    let mut golden = String::new();
    let mut line = |name: &str, bytes: &[u8]| {
        let digits = bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        writeln!(golden, "{name}: {digits}").unwrap();
    };
    line("pack header", &Kind::Pack.header());
    line("pack record", &Record { hash, len: 65_536 }.encode());
    line("index header", &Kind::Index.header());
    line("index entry", &IndexEntry { hash, offset: 1 << 33, len: 65_536 }.encode());
    line("manifest header", &Kind::Manifest.header());
    line("manifest chunk", &ManifestChunk { hash, end: 1 << 33 }.encode());
    line("manifest trailer", &Trailer { root: hash, sha256: other, size: 1 << 33, chunks: 70_000 }.encode());

    let dir = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(dir.path()).unwrap();
    let small = store(&blobs, b"a small model");
    line("small manifest", &fs::read(dir.path().join(MANIFESTS).join(hex(&small.root))).unwrap());
    line("small pack", &fs::read(&files(dir.path(), PACKS, ".pack")[0]).unwrap());
    line("small index", &fs::read(&files(dir.path(), PACKS, ".index")[0]).unwrap());
    let large = store(&blobs, &bytes(7, 1 << 20));
    let (mut chunks, _) = blobs.manifest(&large.root).unwrap().chunks_from(0).unwrap();
    while let Some(chunk) = chunks.next_chunk().unwrap() {
        writeln!(golden, "cut of the 1 MiB file: {} {}", chunk.end, hex(&chunk.hash)).unwrap();
    }
    expect_test::expect_file!["../../tests/golden/blob_v1.hex"].assert_eq(&golden);
}
