//! Damage to files of one node while it is down: a flipped bit or a missing end, in its log, its tables or its artifacts.
//!
//! The node must never serve what is damaged, which the workloads see. It may notice at its start and refuse to run: then
//! its log must name the file or the replica. Then either the operator makes the replica new from a peer, as the node says,
//! or the file is put right again, as an operator with a copy would. It may start because nothing has read the damage yet:
//! then the damage is taken back, if it is still there.
//!
//! One node is damaged at a time, and none while another one is still being helped: what two nodes lose may be lost.

use super::Found;
use crate::Result;
use crate::fleet::Fleet;
use crate::operator::groups_to_rebuild;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::collections::BTreeSet;
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

/// Damages a file of one node and lets it run on it for a while; `None` when no file may be damaged now.
pub async fn damage(
    fleet: &mut Fleet,
    random: &mut StdRng,
    damage: Damage,
    found: &mut Found,
) -> Result<Option<String>> {
    if fleet.care.is_needed() {
        return Ok(None);
    }
    let at = random.random_range(0..fleet.size());
    let name = fleet.name(at);
    fleet.kill(at).await?;
    let files = candidates(&fleet.data_dir(at), damage);
    let Some(path) = files.choose(random).cloned() else { return Ok(None) };
    let short = path.strip_prefix(fleet.cluster.folder()).unwrap_or(&path).display().to_string();
    let wound = Wound::make(&path, damage, random)?;
    fleet.start_node(at)?;
    let refused = fleet.cluster.ended_within(at, NOTICE).await;
    fleet.kill(at).await?;
    let mut groups = BTreeSet::new();
    if refused {
        let said = fleet.said(at);
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        groups = groups_to_rebuild(&said);
        // Tables of a snapshot are the database's own, by hard link, and RocksDB may blame the file that lists them.
        if said.contains(&file) || !groups.is_empty() {
            found.detected += 1;
        } else {
            found.violations.push(format!("{short} was damaged and {name} stopped without naming it: {said}"));
        }
    }
    if !groups.is_empty() && random.random_range(0..4) > 0 {
        fleet.care.was_damaged(at, &groups);
        fleet.rebuild(at, &groups)?;
        return Ok(Some(format!("{name}: {damage:?} of {short}: refused, groups {groups:?} are made new from a peer")));
    }
    wound.heal()?;
    let noticed = if refused { "refused" } else { "not read yet" };
    Ok(Some(format!("{name}: {damage:?} of {short}: {noticed}, put right")))
}

/// Files whose damage must be noticed. The end of the log may be torn by a crash and is cut off without a word, so what
/// stands in its newest segment cannot be damaged without taking back what the node promised: older segments only.
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
    let newest = found.iter().rposition(|path| path.extension().is_some_and(|extension| extension == "wal"));
    if let Some(newest) = newest {
        found.remove(newest);
    }
    found
}

/// What was done to one file, to be undone. It stays open: a snapshot's table is the database's own under another name,
/// and the node may take away the name that was chosen.
struct Wound {
    file: File,
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
        let mut wound = Self { file, offset, before, after: Vec::new() };
        match damage {
            Damage::Flip => {
                wound.after = vec![wound.before[0] ^ 1 << random.random_range(0..8)];
                wound.file.write_all_at(&wound.after, offset)?;
            }
            Damage::Cut => wound.file.set_len(offset)?,
        }
        Ok(wound)
    }

    /// Puts the bytes back where they are still damaged: a node may have written the file anew.
    fn heal(&self) -> Result<()> {
        let damaged = match self.after.is_empty() {
            true => self.file.metadata()?.len() == self.offset,
            false => {
                let mut now = vec![0; self.after.len()];
                self.file.read_exact_at(&mut now, self.offset).is_ok() && now == self.after
            }
        };
        if damaged {
            self.file.write_all_at(&self.before, self.offset)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_segment_of_the_log_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("wal");
        fs::create_dir(&log).unwrap();
        for name in ["0000000000000001.wal", "0000000000000002.wal", "000a.sst", "0b.pack", "identity"] {
            fs::write(log.join(name), [1; 300]).unwrap();
        }
        let names = |damage| -> Vec<String> {
            let found = candidates(folder.path(), damage);
            found.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(Damage::Flip), ["0000000000000001.wal", "000a.sst", "0b.pack"]);
        assert_eq!(names(Damage::Cut), ["000a.sst", "0b.pack"]);
    }

    #[test]
    fn a_wound_is_put_right_unless_the_file_has_changed_since() {
        use rand::SeedableRng;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sst");
        let whole: Vec<u8> = (1..=200).chain(1..=200).collect();
        for (seed, damage) in [(1, Damage::Flip), (2, Damage::Cut), (3, Damage::Flip)] {
            fs::write(&path, &whole).unwrap();
            let database = folder.path().join("b.sst");
            fs::hard_link(&path, &database).unwrap();
            let wound = Wound::make(&path, damage, &mut StdRng::seed_from_u64(seed)).unwrap();
            assert_ne!(fs::read(&path).unwrap(), whole);
            fs::remove_file(&path).unwrap();
            wound.heal().unwrap();
            assert_eq!(fs::read(&database).unwrap(), whole, "{damage:?}");
            fs::rename(&database, &path).unwrap();
            fs::write(&path, b"made new").unwrap();
            wound.heal().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"made new", "{damage:?}");
        }
    }
}
