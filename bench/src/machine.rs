//! What the numbers were measured on, as far as the machine tells.

use serde_json::{Value, json};
use std::path::Path;

/// Machine, disk and build, as name and text.
pub fn conditions(cairnd: &Path, folder: &Path, peers: &str) -> Vec<(&'static str, String)> {
    vec![
        ("processor", format!("{} cores, {}", cores(), processor().unwrap_or_else(|| "unknown".into()))),
        ("memory", kib("/proc/meminfo", "MemTotal:").map_or("unknown".into(), |kib| format!("{} MiB", kib / 1024))),
        ("kernel", line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into())),
        ("load average", line("/proc/loadavg").unwrap_or_else(|| "unknown".into())),
        ("data folder", format!("{} ({})", folder.display(), file_system(folder).unwrap_or_else(|| "unknown".into()))),
        ("cairnd", cairnd.display().to_string()),
        ("this build", format!("{}; `make bench` builds cairnd in the same profile", profile())),
        ("peers", peers.to_owned()),
        ("network", "127.0.0.1; clients and servers share the cores".into()),
    ]
}

/// The same for programs.
pub fn as_json(conditions: &[(&'static str, String)]) -> Value {
    let mut object: serde_json::Map<String, Value> =
        conditions.iter().map(|(name, text)| (name.replace(' ', "_"), json!(text))).collect();
    object.insert("cores".into(), json!(cores()));
    object.insert("assertions".into(), json!(cfg!(debug_assertions)));
    Value::Object(object)
}

/// Resident memory of a process, MiB.
pub fn resident_mib(process: u32) -> Option<f64> {
    kib(&format!("/proc/{process}/status"), "VmRSS:").map(|kib| kib as f64 / 1024.0)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, |cores| cores.get())
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "the workspace's `dev` profile (level 2, assertions and overflow checks on, no LTO)"
    } else {
        "optimised, assertions off"
    }
}

fn line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let model = text.lines().find(|line| line.starts_with("model name"))?;
    Some(model.split_once(':')?.1.trim().to_owned())
}

/// A line such as `VmRSS:    1234 kB`.
fn kib(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Type of the file system a folder is on: on `tmpfs`, syncing costs nothing and durable writes look too fast.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    file_system_in(&std::fs::read_to_string("/proc/mounts").ok()?, &folder)
}

fn file_system_in(mounts: &str, folder: &Path) -> Option<String> {
    let fields = |line: &'_ str| -> Option<(usize, String)> {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (Path::new(fields.next()?), fields.next()?);
        folder.starts_with(at).then(|| (at.components().count(), kind.to_owned()))
    };
    // The deepest mount wins; of equals the later one, which covers the earlier.
    mounts.lines().filter_map(fields).enumerate().max_by_key(|(line, (depth, _))| (*depth, *line)).map(|it| it.1.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_is_the_file_system() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/data xfs rw 0 0\n";
        for (folder, expected) in [("/home", "ext4"), ("/tmp/x", "tmpfs"), ("/tmp/data/y", "xfs"), ("/tmpx", "ext4")] {
            assert_eq!(file_system_in(mounts, Path::new(folder)).as_deref(), Some(expected), "{folder}");
        }
    }

    #[test]
    fn this_process_is_resident() {
        assert!(resident_mib(std::process::id()).is_some_and(|mib| mib > 0.1));
        assert_eq!(resident_mib(u32::MAX), None);
    }
}
