//! Small disks of their own for nodes, so that one can be filled without harm to others: a file with ext4 in it, mounted
//! by loop device. For root on Linux.
//!
//! Always true: mount points carry this process's id; what a dead process left mounted is removed by the next start.

use crate::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of a disk; the file under it is sparse.
const DISK_BYTES: u64 = 1 << 30;
/// Writes are refused below this: the `--disk-reserve-mib` that nodes on small disks need.
pub const RESERVE_MIB: u64 = 64;
const PREFIX: &str = "cairn-jepsen-disks-";
const FILLER: &str = "filler";

#[derive(Debug)]
pub struct SmallDisks {
    root: PathBuf,
    names: Vec<String>,
}

impl SmallDisks {
    /// Gives each of `names` in `folder` a disk of its own.
    ///
    /// # Errors
    /// What `mkfs` and `mount` say, for instance to somebody who is not root.
    pub fn start(folder: &Path, names: Vec<String>) -> Result<Self> {
        remove_leftovers()?;
        let root = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        // From here on, dropping removes what was made.
        let made = Self { root, names };
        for name in &made.names {
            let (image, point) = (made.root.join(format!("{name}.img")), made.root.join(name));
            fs::create_dir_all(&point)?;
            File::create(&image)?.set_len(DISK_BYTES)?;
            run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point))?;
            fs::create_dir_all(point.join("data"))?;
            std::os::unix::fs::symlink(point.join("data"), folder.join(name))?;
        }
        Ok(made)
    }

    /// Takes all room of a disk but about `left` bytes.
    ///
    /// # Errors
    /// Trouble of the harness.
    pub fn fill(&self, at: usize, left: u64) -> Result<()> {
        let path = self.point(at).join(FILLER);
        let mut size = DISK_BYTES.saturating_sub(left);
        // What is free is not known exactly before it is taken, so the filler shrinks until it fits.
        while size > 0 {
            let length = size.to_string();
            if Command::new("fallocate").args(["-l", &length]).arg(&path).output()?.status.success() {
                break;
            }
            let _ = fs::remove_file(&path);
            size = size.saturating_sub(8 << 20);
        }
        if left > 0 {
            File::options().write(true).open(&path)?.set_len(size.saturating_sub(left))?;
        }
        Ok(())
    }

    /// Gives back what [`Self::fill`] took.
    pub fn empty(&self) {
        for at in 0..self.names.len() {
            let _ = fs::remove_file(self.point(at).join(FILLER));
        }
    }

    fn point(&self, at: usize) -> PathBuf {
        self.root.join(&self.names[at])
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for name in &self.names {
            unmount(&self.root.join(name));
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Unmounts what is mounted for processes that are gone.
fn remove_leftovers() -> Result<()> {
    for line in fs::read_to_string("/proc/mounts")?.lines() {
        let Some(point) = line.split(' ').nth(1).map(Path::new) else { continue };
        let owner = point.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.strip_prefix(PREFIX));
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            unmount(point);
        }
    }
    Ok(())
}

/// Lazily: a process that was just killed may hold the disk for a moment.
fn unmount(point: &Path) {
    let _ = Command::new("umount").arg("-l").arg(point).output();
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("{command:?}: {why} (small disks need root)").into())
        }
    }
}
