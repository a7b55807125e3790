//! Artifacts: files named by the BLAKE3 hash of their bytes.
//!
//! Always true: what is downloaded was hashed on this side and has the root it was asked by; a file appears under its
//! name only when it is whole. Uploads are repeated freely, because the same bytes have the same name.

use crate::api::artifacts_client::ArtifactsClient;
use crate::connection::limited;
use crate::error::{Error, Result};
use crate::retry::Repeat;
use crate::{Client, api};
use bytes::{Bytes, BytesMut};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of a file in one message.
pub const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_WAITING: usize = 4;

/// Told of bytes sent or received so far; starts again from less when a transfer is repeated.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl Client {
    /// Stores a file; returns once a quorum of nodes holds every byte on disk.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that cannot be read or changes meanwhile; `ReadOnly` when nodes are full.
    pub async fn upload_file(&self, path: &Path, progress: Option<Progress>) -> Result<api::Artifact> {
        let (root, size) = blocking(path, hash_file).await?;
        let path = path.to_owned();
        self.upload(&root, size, progress, move |uploads, progress| {
            let (path, uploads) = (path.clone(), uploads);
            tokio::task::spawn_blocking(move || send_file(&path, &uploads, progress.as_ref()))
        })
        .await
    }

    /// Stores bytes held in memory, as [`Client::upload_file`] stores a file.
    ///
    /// # Errors
    /// `ReadOnly` when nodes are full.
    pub async fn upload_bytes(&self, bytes: Bytes) -> Result<api::Artifact> {
        let root = blake3::hash(&bytes).to_hex().to_string();
        let size = bytes.len() as u64;
        self.upload(&root, size, None, move |uploads, _| {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                for start in (0..bytes.len()).step_by(CHUNK_BYTES) {
                    let chunk = bytes.slice(start..bytes.len().min(start + CHUNK_BYTES));
                    if uploads.send(chunk_message(chunk)).await.is_err() {
                        break; // the answer says why
                    }
                }
                Ok(())
            })
        })
        .await
    }

    async fn upload<S>(&self, root: &str, size: u64, progress: Option<Progress>, send: S) -> Result<api::Artifact>
    where
        S: Fn(mpsc::Sender<api::UploadRequest>, Option<Progress>) -> tokio::task::JoinHandle<Result<()>>,
    {
        let mut attempts = self.attempts(Repeat::Harmless);
        loop {
            let node = self.node().clone();
            let (uploads, messages) = mpsc::channel(CHUNKS_WAITING);
            let header = api::UploadHeader { size, expected_root: root.to_owned() };
            // The channel is empty, so there is room.
            let _ = uploads.try_send(api::UploadRequest { part: Some(api::upload_request::Part::Header(header)) });
            let sending = send(uploads, progress.clone());
            // No deadline on the whole: a large file takes its time, and keep-alive notices a dead node.
            let answered = limited!(ArtifactsClient, node.channel.clone()).upload(ReceiverStream::new(messages)).await;
            let outcome =
                answered.map(tonic::Response::into_inner).map_err(|status| Error::of_status(&node.address, &status));
            self.note(&node, outcome.as_ref().err());
            // The channel is closed now, so the sender has ended or ends at once. Trouble with the file explains best.
            if let Ok(Err(trouble)) = sending.await {
                return Err(trouble);
            }
            match outcome {
                Ok(artifact) if artifact.root == root => return Ok(artifact),
                Ok(artifact) => return Err(Error::WrongBytes { expected: root.to_owned(), found: artifact.root }),
                Err(error) => attempts.pause_or(error).await?,
            }
        }
    }

    /// Fetches the artifact with this BLAKE3 root into a file, replacing one that is there. A lost connection is made
    /// again and the transfer goes on where it stopped.
    ///
    /// # Errors
    /// `NotFound` for an unknown root; `Corrupt` when the bytes do not have it; then no file is left.
    pub async fn download_file(&self, root: &str, path: &Path, progress: Option<Progress>) -> Result<u64> {
        let partial = partial_name(path);
        let failed = |error: std::io::Error| Error::file(path, error);
        let file = std::fs::File::create(&partial).map_err(failed)?;
        let outcome = self.download_partial(root, &partial, file, progress).await;
        match outcome {
            Ok(size) => std::fs::rename(&partial, path).map_err(failed).map(|()| size),
            Err(error) => {
                let _ = std::fs::remove_file(&partial);
                Err(error)
            }
        }
    }

    async fn download_partial(
        &self,
        root: &str,
        partial: &Path,
        mut file: std::fs::File,
        progress: Option<Progress>,
    ) -> Result<u64> {
        let mut hasher = blake3::Hasher::new();
        let mut received = 0_u64;
        let mut attempts = self.attempts(Repeat::Harmless);
        loop {
            let before = received;
            let node = self.node().clone();
            let step = async {
                let of_status = |status: tonic::Status| Error::of_status(&node.address, &status);
                let request = api::DownloadRequest { root: root.to_owned(), offset: received };
                let reply =
                    limited!(ArtifactsClient, node.channel.clone()).download(request).await.map_err(of_status)?;
                let mut chunks = reply.into_inner();
                while let Some(message) = chunks.message().await.map_err(of_status)? {
                    // Hashing and the page cache keep up with any network; a thread hop per chunk would cost more.
                    hasher.update(&message.chunk);
                    file.write_all(&message.chunk).map_err(|error| Error::file(partial, error))?;
                    received += message.chunk.len() as u64;
                    if let Some(progress) = &progress {
                        progress(received);
                    }
                }
                Ok(())
            };
            let outcome = step.await;
            self.note(&node, outcome.as_ref().err());
            match outcome {
                Ok(()) => break,
                Err(error) => {
                    if received > before {
                        attempts = self.attempts(Repeat::Harmless);
                    }
                    attempts.pause_or(error).await?;
                }
            }
        }
        let found = hasher.finalize().to_hex().to_string();
        if found != root {
            return Err(Error::WrongBytes { expected: root.to_owned(), found });
        }
        file.sync_all().map_err(|error| Error::file(partial, error))?;
        Ok(received)
    }
}

/// Where a file grows before it gets its name; beside it, so that the rename stays on one disk.
pub(crate) fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// The BLAKE3 root of a file, hex, and its size.
///
/// # Errors
/// `InvalidArgument` for a file that cannot be read.
pub fn hash_file(path: &Path) -> Result<(String, u64)> {
    let failed = |error: std::io::Error| Error::file(path, error);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(Error::file(path, "this is a folder, not a file"));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok((hasher.finalize().to_hex().to_string(), hasher.count()));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}

async fn blocking<T: Send + 'static>(path: &Path, work: fn(&Path) -> Result<T>) -> Result<T> {
    let owned = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&owned)).await;
    done.unwrap_or_else(|error| Err(Error::file(path, error)))
}

fn send_file(path: &Path, uploads: &mpsc::Sender<api::UploadRequest>, progress: Option<&Progress>) -> Result<()> {
    let failed = |error: std::io::Error| Error::file(path, error);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut sent = 0_u64;
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
        let mut filled = 0;
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(failed)? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        chunk.truncate(filled);
        if uploads.blocking_send(chunk_message(chunk.freeze())).is_err() {
            return Ok(()); // the answer says why
        }
        sent += filled as u64;
        if let Some(progress) = progress {
            progress(sent);
        }
    }
}

fn chunk_message(chunk: Bytes) -> api::UploadRequest {
    api::UploadRequest { part: Some(api::upload_request::Part::Chunk(chunk)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let bytes = vec![7; CHUNK_BYTES + 3];
        std::fs::write(&path, &bytes).unwrap();
        let (root, size) = hash_file(&path).unwrap();
        assert_eq!((root.as_str(), size), (blake3::hash(&bytes).to_hex().as_str(), bytes.len() as u64));
        assert!(hash_file(folder.path()).unwrap_err().to_string().ends_with("this is a folder, not a file"));
    }

    #[tokio::test]
    async fn a_file_is_sent_in_chunks_of_one_mebibyte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, vec![7; 2 * CHUNK_BYTES + 3]).unwrap();
        let (uploads, mut messages) = mpsc::channel(CHUNKS_WAITING);
        let sending = tokio::task::spawn_blocking(move || send_file(&path, &uploads, None));
        let mut sizes = Vec::new();
        while let Some(message) = messages.recv().await {
            let Some(api::upload_request::Part::Chunk(chunk)) = message.part else { panic!("not a chunk") };
            sizes.push(chunk.len());
        }
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, 3]);
        sending.await.unwrap().unwrap();
    }

    #[test]
    fn an_unfinished_file_stands_beside_its_name() {
        assert_eq!(partial_name(Path::new("/a/model.onnx")), Path::new("/a/model.onnx.partial"));
    }
}
