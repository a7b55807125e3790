//! A snapshot on its way out: what of it the receiver lacks, in frames, at a bounded rate.

use super::{FRAME_BYTES_MAX, SnapshotDir};
use crate::machine;
use bytes::Bytes;
use cairn_proto::peer::v1::{
    SnapshotFile, SnapshotFrame, SnapshotHeader, SnapshotPart, SnapshotStart, snapshot_frame::Part,
};
use cairn_storage::replica::Replica;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Frames read ahead of the connection.
const FRAMES_MAX: usize = 4;

/// Reads what is not in `have` of `dir` into frames beside everything else, at most `bytes_per_second` of them (0 = no
/// limit). The list of files comes first; it goes into `header`.
///
/// `replica`, of which it is a snapshot, verifies it before the first transfer: a flipped bit must not travel. The stream
/// ends early when that or reading fails; the receiver then misses files and refuses the whole.
pub fn send(
    dir: SnapshotDir,
    header: SnapshotHeader,
    have: Vec<SnapshotPart>,
    bytes_per_second: u64,
    replica: Arc<dyn Replica>,
) -> mpsc::Receiver<SnapshotFrame> {
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(async move {
        if let Err(error) = send_files(&dir, header, have, bytes_per_second, replica, &frames).await {
            tracing::warn!(dir = %dir.0.root.display(), %error, "a snapshot transfer stopped");
        }
    });
    receiver
}

async fn send_files(
    dir: &SnapshotDir,
    mut header: SnapshotHeader,
    have: Vec<SnapshotPart>,
    bytes_per_second: u64,
    replica: Arc<dyn Replica>,
    frames: &mpsc::Sender<SnapshotFrame>,
) -> std::io::Result<()> {
    let (source, data) = (dir.clone(), dir.data());
    let files = machine::blocking(move || source.files(replica.as_ref())).await??;
    header.files = files.as_ref().clone();
    push(frames, Part::Header(header)).await?;
    let started = Instant::now();
    let mut sent = 0u64;
    for (number, offset) in missing(&files, have) {
        let Some(file) = files.get(number) else { continue };
        let path = data.join(&file.name);
        let open = move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset)).map(|_| file)
        };
        let mut reader = machine::blocking(open).await??;
        let number = u32::try_from(number).map_err(std::io::Error::other)?;
        push(frames, Part::Start(SnapshotStart { file: number, offset })).await?;
        let mut left = file.size.saturating_sub(offset);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES_MAX);
            let read = move || {
                let mut piece = vec![0; length];
                reader.read_exact(&mut piece).map(|()| (reader, piece))
            };
            let piece;
            (reader, piece) = machine::blocking(read).await??;
            push(frames, Part::Data(piece.into())).await?;
            left -= length as u64;
            sent += length as u64;
            if bytes_per_second > 0 {
                let due = started + Duration::from_secs_f64(sent as f64 / bytes_per_second as f64);
                tokio::time::sleep_until(due).await;
            }
        }
    }
    Ok(())
}

/// Places of the files to send, each with the first byte of it that the receiver lacks. Equal files go once.
fn missing(files: &[SnapshotFile], have: Vec<SnapshotPart>) -> Vec<(usize, u64)> {
    let have: BTreeMap<Bytes, (u64, bool)> =
        have.into_iter().map(|part| (part.blake3, (part.bytes, part.whole))).collect();
    let mut named = BTreeSet::new();
    let lacking = files.iter().enumerate().filter_map(|(number, file)| {
        let offset = match have.get(&file.blake3) {
            Some((_, true)) => return None,
            Some((bytes, false)) if *bytes <= file.size => *bytes,
            _ => 0,
        };
        named.insert(&file.blake3).then_some((number, offset))
    });
    lacking.collect()
}

async fn push(frames: &mpsc::Sender<SnapshotFrame>, part: Part) -> std::io::Result<()> {
    let gone = |_| std::io::Error::other("the receiver went away");
    frames.send(SnapshotFrame { part: Some(part) }).await.map_err(gone)
}

impl SnapshotDir {
    /// The files of the checkpoint, verified, in order of their names, with their hashes. Read once: they never change.
    /// Blocks.
    fn files(&self, replica: &dyn Replica) -> std::io::Result<Arc<Vec<SnapshotFile>>> {
        let mut known = self.0.files.lock();
        if let Some(files) = known.as_ref() {
            return Ok(files.clone());
        }
        replica.verify(&self.data()).map_err(std::io::Error::other)?;
        let mut paths = fs::read_dir(self.data())?.map(|it| Ok(it?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        let files = Arc::new(paths.iter().map(|path| hashed(path)).collect::<std::io::Result<Vec<_>>>()?);
        *known = Some(files.clone());
        Ok(files)
    }
}

fn hashed(path: &Path) -> std::io::Result<SnapshotFile> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| std::io::Error::other("a file name is not UTF-8"))?.to_owned();
    let mut hasher = blake3::Hasher::new();
    let size = std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(SnapshotFile { name, size, blake3: Bytes::copy_from_slice(hasher.finalize().as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lacks_is_sent_and_equal_files_once() {
        let hash = |byte: u8| Bytes::from(vec![byte; 32]);
        let file = |name: &str, size, byte| SnapshotFile { name: name.into(), size, blake3: hash(byte) };
        let files = [file("a", 10, 1), file("b", 20, 2), file("c", 30, 3), file("d", 20, 2), file("e", 0, 5)];
        let part = |byte, bytes, whole| SnapshotPart { blake3: hash(byte), bytes, whole };
        assert_eq!(missing(&files, vec![]), [(0, 0), (1, 0), (2, 0), (4, 0)]);
        assert_eq!(missing(&files, vec![part(1, 10, true), part(2, 7, false)]), [(1, 7), (2, 0), (4, 0)]);
        // All bytes are there, and nobody has compared them with the hash yet.
        assert_eq!(missing(&files[..1], vec![part(1, 10, false)]), [(0, 10)]);
        assert_eq!(missing(&files[..1], vec![part(1, 11, false)]), [(0, 0)]);
    }
}
