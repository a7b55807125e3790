//! Files: an acknowledged upload comes back whole from every node, whatever happened since.

use super::{Seen, lock};
use crate::Result;
use crate::site::{Ask, Site};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::path::Path;
use std::sync::Mutex;

const NAME: &str = "artifact";
const BYTES_MAX: usize = 300_000;
/// Files looked at again on every node in the end: the newest.
const FINAL_FILES: usize = 60;

#[derive(Debug, Default)]
pub struct Artifact {
    seen: Seen,
    files: Mutex<Vec<File>>,
}

/// Its bytes follow from its seed.
#[derive(Debug, Clone, Serialize)]
struct File {
    root: String,
    seed: u64,
    size: usize,
}

impl Artifact {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let Ok(folder) = tempfile::tempdir() else { return };
        while !site.stopped() {
            let known = {
                let files = lock(&self.files);
                let old = random.random_range(0..2) == 0 && !files.is_empty();
                old.then(|| files[random.random_range(0..files.len())].clone())
            };
            let (node, at) = site.pick(&mut random);
            match known {
                None => {
                    let (seed, size) = (random.random(), random.random_range(1..BYTES_MAX));
                    let ask = Ask { workload: NAME, client, node, what: ("upload", seed, size), writes: true };
                    let upload = at.upload_bytes(bytes(seed, size).into());
                    let done = site.act(ask, upload, |artifact| artifact.root.clone()).await;
                    if let Ok(artifact) = done.answer {
                        lock(&self.files).push(File { root: artifact.root, seed, size });
                    }
                }
                Some(file) => {
                    let path = folder.path().join(format!("{client}"));
                    let ask = Ask { workload: NAME, client, node, what: &file, writes: false };
                    let download = at.download_file(&file.root, &path, None);
                    let done = site.act(ask, download, |size| format!("{size} bytes")).await;
                    if done.answer.is_ok() && !whole(&path, &file) {
                        self.seen.note(format!("{node} at {} us: artifact {} is other bytes", done.ended, file.root));
                    }
                }
            }
            site.breathe(&mut random, 300).await;
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let mut found = self.seen.all();
        let files: Vec<File> = lock(&self.files).iter().rev().take(FINAL_FILES).cloned().collect();
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("downloaded");
        for (node, client) in site.finals() {
            for file in &files {
                match client.download_file(&file.root, &path, None).await {
                    Ok(_) if whole(&path, file) => {}
                    Ok(size) => found.push(format!("{node}: artifact {} is {size} other bytes", file.root)),
                    Err(error) => found.push(format!("{node}: artifact {}: {error}", file.root)),
                }
            }
        }
        Ok(found)
    }
}

fn bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

fn whole(path: &Path, file: &File) -> bool {
    std::fs::read(path).is_ok_and(|found| found == bytes(file.seed, file.size))
}

workload!(Artifact, NAME, clients: 1, least_ok_per_minute: 20);
