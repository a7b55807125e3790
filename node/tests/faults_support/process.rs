//! `cairnd` processes that are to refuse their start.

use crate::support::TestResult;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// No start, refused or not, may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Free ports for one node, as arguments.
pub fn ports() -> TestResult<[String; 4]> {
    let [clients, peers] = cairn_client::local::free_addresses()?;
    Ok(["--listen".to_owned(), clients, "--peer-listen".to_owned(), peers])
}

/// Runs `cairnd` until it ends by itself with a failure; returns its last line, which is the error.
pub async fn refused_start(data_dir: &Path, arguments: &[&str]) -> TestResult<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairnd"));
    command.arg("--data-dir").arg(data_dir);
    if !arguments.contains(&"--listen") {
        command.args(ports()?);
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}\n{errors}");
    assert_eq!(out, "", "it said it was ready");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{errors}");
    Ok(last.to_owned())
}

/// Every file below `folder` with its size and bytes' hash, sorted; `LOCK` names whoever looked last and is left out.
pub fn contents(folder: &Path) -> TestResult<Vec<(String, u64, u64)>> {
    let (mut found, mut left) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.file_name().is_some_and(|name| name != "LOCK") {
                let bytes = std::fs::read(&path)?;
                let mut hasher = std::hash::DefaultHasher::new();
                std::hash::Hasher::write(&mut hasher, &bytes);
                found.push((path.display().to_string(), bytes.len() as u64, std::hash::Hasher::finish(&hasher)));
            }
        }
    }
    found.sort();
    Ok(found)
}
