//! Small durable files, and how full the disk is.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes an ordinary process can still write to the file system that holds `dir`.
///
/// # Errors
/// `Io` when the file system cannot be asked.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let context = || format!("asking for free space in {}", dir.display());
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())
        .map_err(|_| Error::InvalidArgument(format!("directory {} has a zero byte in its name", dir.display())))?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string that lives through the call, `stat` is writable and of the type asked for.
    let code = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if code != 0 {
        return Err(Error::io(context())(std::io::Error::last_os_error()));
    }
    // SAFETY: statvfs filled it, as it returned 0.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)] // the field types differ between platforms
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

/// Makes created, renamed and deleted names of `dir` durable.
///
/// # Errors
/// `Io`.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io(format!("syncing directory {}", dir.display())))
}

/// Writes a whole small file: after a crash there is the old one or the new one. Durable on return.
///
/// # Errors
/// `Io`.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let parent = path.parent().ok_or_else(|| Error::Internal(format!("{} has no directory", path.display())))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(Error::io(context()))?;
    sync_dir(parent)
}

/// Makes the contents and names of all files of `dir` durable, one level deep. A file that goes meanwhile is passed over: an
/// open database deletes what it no longer needs.
pub(super) fn sync_files(dir: &Path) -> Result<()> {
    let context = || format!("syncing the files of {}", dir.display());
    for entry in fs::read_dir(dir).map_err(Error::io(context()))? {
        let path = entry.map_err(Error::io(context()))?.path();
        if path.is_file() {
            match File::open(&path).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                synced => synced.map_err(Error::io(context()))?,
            }
        }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_asked_of_the_right_file_system() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert!(free_bytes(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn an_atomic_write_replaces_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("POINTER");
        write_atomic(&path, b"a longer first text").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
