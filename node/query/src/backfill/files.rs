//! The files of a source: which they are, and whether they are still the same.

use crate::{Error, Result};
use cairn_proto::record::v1::SourceFile;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files of one source.
pub const FILES_MAX: usize = 1_024;
/// Files whose bytes are known; above it all are forgotten.
const KNOWN_MAX: usize = 8_192;
/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    Csv,
}

#[derive(Debug, Clone)]
pub(super) struct FoundFile {
    pub path: PathBuf,
    pub name: String,
    pub format: Format,
    pub size: u64,
}

impl FoundFile {
    pub fn is_csv(&self) -> bool {
        self.format == Format::Csv
    }
}

fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "parquet" | "pq" => Some(Format::Parquet),
        "csv" => Some(Format::Csv),
        _ => None,
    }
}

/// The local path that a source names.
///
/// # Errors
/// `InvalidArgument` for other schemes and for relative paths.
pub fn check_path(path: &str) -> Result<PathBuf> {
    let invalid = |message: String| Err(Error::InvalidArgument(message));
    let local = match path.split_once("://") {
        Some(("file", local)) if local.contains('%') => {
            return invalid(format!("`{path}`: write the path itself instead of a URL with `%`"));
        }
        Some(("file", local)) => local,
        Some((scheme, _)) => {
            return invalid(format!(
                "`{path}`: files of `{scheme}://` cannot be read; a source is a local path or a file:// URL"
            ));
        }
        None => path,
    };
    if !local.starts_with('/') {
        return invalid(format!(
            "`{path}` is no whole path; begin it with `/`, because each node runs in a folder of its own"
        ));
    }
    Ok(PathBuf::from(local))
}

/// The files there are now, in name order: the one named, those of the folder, or those that fit the pattern (`*` and `?` in the
/// last part of the path).
pub(super) fn list(path: &str) -> Result<Vec<FoundFile>> {
    let path = check_path(path)?;
    let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let found = if last.contains(['*', '?']) {
        in_folder(path.parent().unwrap_or(Path::new("/")), Some(&last))?
    } else {
        let there = std::fs::metadata(&path).map_err(|error| unavailable(&path, &error))?;
        match there.is_dir() {
            true => in_folder(&path, None)?,
            false => vec![found_file(&path, &there)?],
        }
    };
    if found.is_empty() {
        return Err(Error::Unavailable(format!("there is no .parquet or .csv file at `{}`", path.display())));
    }
    if found.len() > FILES_MAX {
        return Err(Error::TooLarge(format!(
            "there are {} files at `{}`; the limit is {FILES_MAX}",
            found.len(),
            path.display()
        )));
    }
    if let Some(other) = found.iter().find(|file| Some(file.format) != found.first().map(|file| file.format)) {
        return Err(Error::InvalidArgument(format!(
            "there are Parquet and CSV files at `{}`, such as `{}`; name one kind by a pattern, such as `*.parquet`",
            path.display(),
            other.name
        )));
    }
    Ok(found)
}

fn in_folder(folder: &Path, pattern: Option<&str>) -> Result<Vec<FoundFile>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unavailable(folder, &error))? {
        let path = entry.map_err(|error| unavailable(folder, &error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Marks and files in the making, of the tools that write such folders.
        let hidden = name.starts_with(['.', '_']);
        let wanted = pattern.map_or(!hidden, |pattern| fits(pattern.as_bytes(), name.as_bytes()));
        if !wanted || format_of(&path).is_none() {
            continue;
        }
        let there = std::fs::metadata(&path).map_err(|error| unavailable(&path, &error))?;
        if there.is_file() {
            found.push(found_file(&path, &there)?);
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn found_file(path: &Path, there: &Metadata) -> Result<FoundFile> {
    let name = path.display().to_string();
    let format = format_of(path)
        .ok_or_else(|| Error::InvalidArgument(format!("`{name}`: the name must end in .parquet or .csv")))?;
    Ok(FoundFile { path: path.to_owned(), name, format, size: there.len() })
}

/// `*` stands for any letters, `?` for one.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => fits(rest, name) || name.split_first().is_some_and(|(_, name)| fits(pattern, name)),
        (Some((one, rest)), Some((other, name))) => (*one == b'?' || one == other) && fits(rest, name),
        _ => false,
    }
}

/// Files that are away may come back.
pub(super) fn unavailable(path: &Path, error: &std::io::Error) -> Error {
    Error::Unavailable(format!("`{}` cannot be read: {error}", path.display()))
}

/// What tells cheaply that a file on this machine may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

/// BLAKE3 of whole files, read again only when their stamp is another.
///
/// The whole file, because a change in its middle counts as well; reading it once costs little beside converting its rows.
#[derive(Debug, Default)]
pub struct Fingerprints(Mutex<HashMap<PathBuf, (Stamp, [u8; 32])>>);

impl Fingerprints {
    pub(super) fn of(&self, file: &FoundFile) -> Result<SourceFile> {
        let mut open = File::open(&file.path).map_err(|error| unavailable(&file.path, &error))?;
        let stamp = stamp(&file.path, &open)?;
        let record = |content: [u8; 32]| SourceFile {
            path: file.name.clone(),
            size: stamp.size,
            content: content.to_vec().into(),
        };
        if let Some((known, content)) = self.0.lock().get(&file.path)
            && *known == stamp
        {
            return Ok(record(*content));
        }
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match open.read(&mut piece).map_err(|error| unavailable(&file.path, &error))? {
                0 => break,
                count => hasher.update(piece.get(..count).unwrap_or_default()),
            };
        }
        let content = *hasher.finalize().as_bytes();
        let mut known = self.0.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(file.path.clone(), (stamp.clone(), content));
        Ok(record(content))
    }
}

fn stamp(path: &Path, open: &File) -> Result<Stamp> {
    let there = open.metadata().map_err(|error| unavailable(path, &error))?;
    Ok(Stamp {
        size: there.len(),
        modified: (there.mtime(), there.mtime_nsec()),
        changed: (there.ctime(), there.ctime_nsec()),
        inode: there.ino(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, fit) in [
            ("*.parquet", "a.parquet", true),
            ("*.parquet", "a.csv", false),
            ("part-??.csv", "part-07.csv", true),
            ("part-??.csv", "part-7.csv", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("", "", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn paths_that_cannot_be_read_are_told() {
        let told = |path: &str| check_path(path).unwrap_err().to_string();
        assert_eq!(check_path("file:///data/x.csv").unwrap(), Path::new("/data/x.csv"));
        assert!(told("s3://bucket/x").contains("`s3://` cannot be read; a source is a local path or a file:// URL"));
        assert!(told("data/x.csv").contains("is no whole path"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let error = list(&path).unwrap_err();
        assert!(error.to_string().contains("no .parquet or .csv file"), "{error}");
        std::fs::write(folder.path().join("_SUCCESS.csv"), "").unwrap();
        std::fs::write(folder.path().join("b.csv"), "x\n").unwrap();
        std::fs::write(folder.path().join("a.csv"), "x\n").unwrap();
        let names = |path: &str| -> Vec<String> {
            let found = list(path).unwrap();
            found.iter().map(|file| file.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(&path), ["a.csv", "b.csv"]);
        assert_eq!(names(&format!("{path}/b*")), ["b.csv"]);
        std::fs::write(folder.path().join("c.parquet"), "x\n").unwrap();
        assert!(list(&path).unwrap_err().to_string().contains("Parquet and CSV files"));
    }

    #[test]
    fn a_change_in_the_middle_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let mut bytes = vec![b'x'; 3 << 20];
        std::fs::write(&path, &bytes).unwrap();
        let known = Fingerprints::default();
        let of = || known.of(&list(path.to_str().unwrap()).unwrap()[0]).unwrap();
        let before = of();
        assert_eq!(before.content.as_ref(), blake3::hash(&bytes).as_bytes());
        assert_eq!(of(), before);
        bytes[1 << 20] = b'y';
        // Elsewhere on the disk, as most tools write, so that its number differs whatever the clock does.
        std::fs::write(folder.path().join("new"), &bytes).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_ne!(of(), before);
    }
}
