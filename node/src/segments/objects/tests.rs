use super::*;
use proptest::prelude::*;
use std::path::PathBuf;
use url::Url;

type TestResult<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A store in a directory that is not there yet.
struct Shelf {
    directory: PathBuf,
    objects: Arc<Objects>,
    _above: tempfile::TempDir,
}

fn shelf() -> TestResult<Shelf> {
    let above = tempfile::tempdir()?;
    let directory = above.path().join("a share");
    let url = Url::from_directory_path(&directory).map_err(|()| "no URL")?;
    Ok(Shelf { objects: Objects::open(url.as_str(), "c1")?, directory, _above: above })
}

/// `size` bytes that repeat nowhere near, and their root.
fn file(size: usize) -> (Root, Bytes) {
    let bytes: Vec<u8> =
        (0..size.div_ceil(4) as u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let bytes = Bytes::from(bytes).slice(..size);
    (*blake3::hash(&bytes).as_bytes(), bytes)
}

fn pieces(bytes: &Bytes, piece: usize) -> Pieces {
    let all: Vec<_> = bytes.chunks(piece).map(|it| Ok(Bytes::copy_from_slice(it))).collect();
    from(all)
}

fn from(all: Vec<Result<Bytes, PeerError>>) -> Pieces {
    let (pieces, stream) = mpsc::channel(all.len().max(1));
    for piece in all {
        pieces.try_send(piece).expect("there is a place for each");
    }
    stream
}

async fn read(objects: &Arc<Objects>, root: Root) -> TestResult<Option<Vec<u8>>> {
    let Some((size, mut pieces)) = objects.get(root).await? else { return Ok(None) };
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        all.extend_from_slice(&piece?);
    }
    assert_eq!(all.len() as u64, size);
    Ok(Some(all))
}

fn names(shelf: &Shelf) -> TestResult<BTreeSet<String>> {
    let entries = std::fs::read_dir(shelf.directory.join("c1"))?;
    Ok(entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<std::io::Result<_>>()?)
}

#[tokio::test]
async fn files_come_back_whatever_their_size() -> TestResult {
    let shelf = shelf()?;
    std::fs::create_dir(&shelf.directory)?;
    let mut expected = BTreeSet::new();
    for size in [1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 12_345] {
        let (root, bytes) = file(size);
        assert_eq!(read(&shelf.objects, root).await?, None);
        shelf.objects.put(root, size as u64, pieces(&bytes, 300_001)).await?;
        assert!(read(&shelf.objects, root).await?.is_some_and(|it| it == bytes), "{size} bytes came back as others");
        expected.insert(format!("{}.parquet", hex(&root)));
    }
    assert_eq!(names(&shelf)?, expected);
    let state = shelf.objects.state();
    assert_eq!((state.written_bytes, state.failures, state.up), (state.read_bytes, 0, true));

    // Another node finds them, and minds nothing else that is there.
    std::fs::write(shelf.directory.join("c1/notes.txt"), "mine")?;
    let url = Url::from_directory_path(&shelf.directory).map_err(|()| "no URL")?;
    let other = Objects::open(url.as_str(), "c1")?;
    let (root, _) = file(1);
    assert!(!other.has(&root) && shelf.objects.has(&root));
    other.ready().await?;
    other.list().await?;
    assert!(other.has(&root) && !other.has(&[7; 32]));
    Ok(())
}

#[tokio::test]
async fn a_file_that_ends_in_an_error_is_not_there() -> TestResult {
    let shelf = shelf()?;
    std::fs::create_dir(&shelf.directory)?;
    let (root, bytes) = file(2 * PART_BYTES);
    let broken = vec![Ok(bytes.clone()), Err(PeerError::Unavailable("the disk broke".to_owned()))];
    for (sent, said) in [(broken, "the disk broke"), (vec![Ok(bytes)], "did not come whole")] {
        let error = shelf.objects.put(root, 2 * PART_BYTES as u64 + 1, from(sent)).await.unwrap_err();
        assert!(error.message.contains(said), "{error}");
        assert_eq!(read(&shelf.objects, root).await?, None);
        assert_eq!(names(&shelf)?, BTreeSet::new());
    }
    // It is not the store's fault.
    assert_eq!(shelf.objects.state().failures, 0);
    Ok(())
}

/// A share that is not mounted, comes, and goes again.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_left_alone_for_a_while_and_then_asked() -> TestResult {
    let shelf = shelf()?;
    let (root, bytes) = file(10);
    let first = shelf.objects.ready().await.unwrap_err().message;
    assert!(first.contains("a share`: No such file") && first.contains("make the directory, or mount it"), "{first}");
    assert!(!shelf.directory.exists(), "a directory that nobody mounted was made");
    // Asked in vain again, later and later; meanwhile it is not asked, though it is back.
    let mut pause = PAUSE_MIN;
    for failures in 1..8 {
        assert_eq!(shelf.objects.ready().await.unwrap_err().message, first);
        assert_eq!(shelf.objects.get(root).await.unwrap_err().message, first);
        assert_eq!(shelf.objects.list().await.unwrap_err().message, first);
        assert_eq!(shelf.objects.state(), ObjectsState { up: false, written_bytes: 0, read_bytes: 0, failures });
        tokio::time::advance(pause).await;
        assert_eq!(shelf.objects.ready().await.unwrap_err().message, first);
        assert_eq!(shelf.objects.state().failures, failures + 1);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    std::fs::create_dir(&shelf.directory)?;
    assert_eq!(shelf.objects.ready().await.unwrap_err().message, first);
    tokio::time::advance(PAUSE_MAX).await;
    shelf.objects.ready().await?;
    shelf.objects.put(root, 10, pieces(&bytes, 3)).await?;
    assert_eq!(names(&shelf)?, [MARKER.to_owned(), format!("{}.parquet", hex(&root))].into());
    assert!(shelf.objects.state().up);
    // A file where the directory was: another trouble, in its own words.
    std::fs::remove_dir_all(&shelf.directory)?;
    std::fs::write(&shelf.directory, "")?;
    let error = shelf.objects.put(root, 10, pieces(&bytes, 3)).await.unwrap_err();
    assert!(error.message.ends_with("a share` is not a directory"), "{error}");
    assert!(!shelf.objects.state().up);
    Ok(())
}

#[test]
fn errors_are_said_in_few_words() {
    let of = |source: &str| object_store::Error::Generic { store: "S3", source: source.into() };
    let xml = "Server returned non-2xx status code: 404 Not Found: <?xml?><Error><Code>NoSuchBucket</Code>\
               <Message>The specified bucket does not exist</Message><RequestId>7</RequestId></Error>";
    assert_eq!(why(&of(xml)), "NoSuchBucket: The specified bucket does not exist");
    assert_eq!(why(&of("connection refused")), "connection refused");
}

proptest! {
    /// Parts of one size, and a last one that is not larger; nothing lost, nothing doubled.
    #[test]
    fn parts_are_the_pieces(sizes in prop::collection::vec(0_usize..40, 0..30), part_bytes in 1_usize..20) {
        let (_, bytes) = file(sizes.iter().sum());
        let (mut parts, mut at, mut found) = (Parts::of(part_bytes), 0, Vec::new());
        for size in sizes {
            parts.push(bytes.slice(at..at + size));
            at += size;
            while let Some(part) = parts.take() {
                prop_assert_eq!(part.content_length(), part_bytes);
                found.extend_from_slice(&Bytes::from(part));
            }
        }
        let rest = parts.rest();
        prop_assert!(rest.content_length() <= part_bytes);
        prop_assert_eq!(rest.content_length() == 0, bytes.is_empty());
        found.extend_from_slice(&Bytes::from(rest));
        prop_assert_eq!(found, bytes);
    }
}
