//! The few file calls the log makes, as traits: the real disk here, a forgetful one in [`super::mem`].

use std::any::Any;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// One open file. Calls may come from several threads; writes come from one at a time.
pub trait File: Send + Sync {
    /// Writes all pieces, one after the other, from `offset` on.
    fn write_all_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reads at most `buffer.len()` bytes; 0 means end of file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes everything written so far durable, with the file's length. Never called again after it failed.
    fn sync_data(&self) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// Reserves disk blocks so that the file is `size` bytes long; what was not written reads as zeros.
    fn allocate(&self, size: u64) -> io::Result<()>;
}

/// A file system, or a stand-in for one.
pub trait Files: std::fmt::Debug + Send + Sync {
    /// Makes the directory and its parents, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Keeps other processes out until the returned guard is dropped; `None` if another one holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Makes an empty file, replacing one of that name.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in the directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes creations and renames in the directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The disk.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealFiles;

struct RealFile(fs::File);

impl File for RealFile {
    fn write_all_at(&self, pieces: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        // One system call for up to IOV_MAX pieces; a short write goes on where it stopped.
        const PIECES_MAX: usize = 1024;
        let mut first = 0;
        let mut skip = 0;
        while let Some(rest) = pieces.get(first..).filter(|rest| !rest.is_empty()) {
            let mut window: Vec<IoSlice<'_>> = rest.iter().take(PIECES_MAX).map(|piece| IoSlice::new(piece)).collect();
            if let Some(head) = window.first_mut() {
                head.advance(skip);
            }
            let position = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: `IoSlice` is `iovec` by its documentation, the window's slices outlive the call, and its
            // length is at most 1024.
            let wrote = unsafe {
                libc::pwritev(
                    self.0.as_raw_fd(),
                    window.as_ptr().cast::<libc::iovec>(),
                    window.len() as libc::c_int,
                    position,
                )
            };
            if wrote < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let mut left = wrote as usize;
            offset += left as u64;
            if left == 0 && window.iter().any(|piece| !piece.is_empty()) {
                return Err(io::ErrorKind::WriteZero.into());
            }
            for piece in &window {
                if left < piece.len() {
                    break;
                }
                left -= piece.len();
                first += 1;
                skip = 0;
            }
            skip += left;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let length = libc::off_t::try_from(size).map_err(io::Error::other)?;
        loop {
            // SAFETY: plain integers and a descriptor that `self` keeps open.
            if unsafe { libc::fallocate(self.0.as_raw_fd(), 0, 0, length) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // A file system without reservations: the length alone still spares `fdatasync` the inode.
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return self.0.set_len(size.max(self.size()?)),
                _ => return Err(error),
            }
        }
    }
}

impl Files for RealFiles {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => {
                self.create_dir_all(parent)?;
                fs::create_dir_all(dir)?;
                self.sync_dir(parent)
            }
            None => fs::create_dir_all(dir),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealFiles.create(&dir.path().join("f")).unwrap();
        let pieces: Vec<Vec<u8>> = (0..3000u32).map(|n| vec![n as u8; (n % 5) as usize]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_all_at(&slices, 7).unwrap();
        let mut found = vec![0; file.size().unwrap() as usize];
        assert_eq!(file.read_at(&mut found, 0).unwrap(), found.len());
        assert_eq!(found[7..], pieces.concat());
    }

    #[test]
    fn allocated_space_reads_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealFiles.create(&dir.path().join("f")).unwrap();
        file.allocate(1 << 16).unwrap();
        assert_eq!(file.size().unwrap(), 1 << 16);
        let mut found = [1; 64];
        assert_eq!(file.read_at(&mut found, 1000).unwrap(), 64);
        assert_eq!(found, [0; 64]);
    }

    #[test]
    fn a_lock_keeps_a_second_holder_out() {
        let dir = tempfile::tempdir().unwrap();
        let held = RealFiles.lock(&dir.path().join("LOCK")).unwrap();
        assert!(held.is_some());
        assert!(RealFiles.lock(&dir.path().join("LOCK")).unwrap().is_none());
        drop(held);
        assert!(RealFiles.lock(&dir.path().join("LOCK")).unwrap().is_some());
    }
}
