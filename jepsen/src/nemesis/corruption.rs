//! Damage to files of one node while it is down: a flipped bit or a missing end, in its log, its tables or its artifacts.
//!
//! The node must never serve what is damaged, which the workloads see. It may notice at its start and refuse to run: then
//! its log must name the file or the replica. Then the replica is made new from a peer, where the node offers that, or the file is put
//! right again, as an operator with a copy would. It may start because
//! nothing has read the damage yet: then the damage is taken back at the end of the fault, if it is still there.

use super::Found;
use crate::Result;
use crate::fleet::Fleet;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A node that refuses a file does so within this.
const NOTICE: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Flip,
    Cut,
}

/// Damages a file of one node, lets it run on it for a while, and puts the file right.
pub async fn damage(fleet: &mut Fleet, random: &mut StdRng, damage: Damage, found: &mut Found) -> Result<String> {
    let at = random.random_range(0..fleet.size());
    let name = fleet.name(at);
    fleet.kill(at).await?;
    let files = candidates(&fleet.data_dir(at), damage);
    let Some(path) = files.choose(random).cloned() else { return Ok(format!("{name} has no file to damage")) };
    let short = path.strip_prefix(fleet.cluster.folder()).unwrap_or(&path).display().to_string();
    let mut wound = Wound::make(&path, damage, random)?;
    let log = fleet.cluster.folder().join(format!("{name}.log"));
    let log_before = fs::metadata(&log).map_or(0, |meta| meta.len());
    fleet.start_node(at)?;
    let refused = fleet.cluster.ended_within(at, NOTICE).await;
    fleet.kill(at).await?;
    let mut group = None;
    let noticed = if refused {
        let said = tail(&log, log_before);
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        group = group_to_rebuild(&said);
        // Tables of a snapshot are the database's own, by hard link, and RocksDB may blame the file that lists them.
        if said.contains(&file) || group.is_some() {
            found.detected += 1;
        } else {
            found.violations.push(format!("{short} was damaged and {name} stopped without naming it: {said}"));
        }
        "refused"
    } else {
        "not read yet"
    };
    if let Some(group) = group.filter(|_| random.random())
        && fleet.rebuild(at, group)?
    {
        found.rebuilt += 1;
        return Ok(format!("{name}: {damage:?} of {short}: group {group} rebuilt from a peer"));
    }
    // A log that was taken has gone on since; tables and packs are only ever added to.
    if refused || path.extension().is_some_and(|extension| extension != "wal") {
        wound.heal()?;
    }
    Ok(format!("{name}: {damage:?} of {short}: {noticed}"))
}

/// The group that the node says it would make new with `--rebuild`.
fn group_to_rebuild(said: &str) -> Option<u32> {
    let rest = said.split("`--rebuild ").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Files whose damage must be noticed. The end of the log may be torn by a crash, so it is never cut.
fn candidates(folder: &Path, damage: Damage) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let Some(extension) = path.extension().map(|extension| extension.to_string_lossy().into_owned()) else {
                continue;
            };
            let wanted = match damage {
                Damage::Flip => ["sst", "pack", "wal"].contains(&extension.as_str()),
                Damage::Cut => ["sst", "pack"].contains(&extension.as_str()),
            };
            if wanted && entry.metadata().is_ok_and(|meta| meta.len() > 256) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What was done to one file, to be undone.
struct Wound {
    path: PathBuf,
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Wound {
    fn make(path: &Path, damage: Damage, random: &mut StdRng) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let (offset, length) = match damage {
            Damage::Flip => (random.random_range(0..used(&file, size)?), 1),
            Damage::Cut => {
                let cut = random.random_range(1..size / 2);
                (size - cut, usize::try_from(cut)?)
            }
        };
        let mut before = vec![0; length];
        file.read_exact_at(&mut before, offset)?;
        let mut wound = Self { path: path.to_owned(), offset, before, after: Vec::new() };
        match damage {
            Damage::Flip => {
                wound.after = vec![wound.before[0] ^ 1 << random.random_range(0..8)];
                file.write_all_at(&wound.after, offset)?;
            }
            Damage::Cut => file.set_len(offset)?,
        }
        Ok(wound)
    }

    /// Puts the bytes back where they are still damaged: a node may have deleted or replaced the file.
    fn heal(&mut self) -> Result<()> {
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&self.path) else { return Ok(()) };
        let damaged = match self.after.is_empty() {
            true => file.metadata()?.len() == self.offset,
            false => {
                let mut now = vec![0; self.after.len()];
                file.read_exact_at(&mut now, self.offset).is_ok() && now == self.after
            }
        };
        if damaged {
            file.write_all_at(&self.before, self.offset)?;
        }
        Ok(())
    }
}

/// The file without the zeros at its end: a log segment is allocated long before it is full.
fn used(file: &File, size: u64) -> Result<u64> {
    let mut bytes = vec![0; usize::try_from(size)?];
    file.read_exact_at(&mut bytes, 0)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    Ok(u64::try_from(used)?)
}

fn tail(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let file = File::open(log)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len().saturating_sub(from)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, from)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_read_from_the_log() {
        assert_eq!(group_to_rebuild("damaged: start it with `--rebuild 12 --join HOST:PEERPORT`"), Some(12));
        assert_eq!(group_to_rebuild("damaged"), None);
    }
}
