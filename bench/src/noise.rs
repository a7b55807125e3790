//! CPU that others took while a cell was measured, so that a disturbed number can be seen as such.
//!
//! Always true: this process, its children and the kernel's own threads are not "others"; time stolen by the hypervisor
//! is. Where `/proc` is not Linux's, nothing is claimed.

use std::time::{Duration, Instant};

/// `/proc` counts in these a second on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// Parent of every kernel thread.
const KERNEL: u64 = 2;

/// CPU time spent up to a moment, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct CpuTimes {
    at: Instant,
    everybody: u64,
    ours_and_kernel: u64,
}

impl CpuTimes {
    pub fn now() -> Option<Self> {
        let everybody = busy_ticks(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let ours = u64::from(std::process::id());
        let mut ours_and_kernel = 0;
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok();
            let Some((parent, ticks)) = stat.as_deref().and_then(parent_and_ticks) else { continue };
            if [id, parent].iter().any(|it| *it == ours || *it == KERNEL) {
                ours_and_kernel += ticks;
            }
        }
        Some(Self { at: Instant::now(), everybody, ours_and_kernel })
    }

    /// Cores that others kept busy on average since then.
    pub fn other_cores_since(&self) -> Option<f64> {
        let now = Self::now()?;
        let everybody = now.everybody.saturating_sub(self.everybody);
        let others = everybody.saturating_sub(now.ours_and_kernel.saturating_sub(self.ours_and_kernel));
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        (seconds > 0.0).then(|| others as f64 / TICKS_PER_SECOND / seconds)
    }
}

/// CPU time a process has taken so far, all its threads together.
pub fn process_cpu(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, ticks) = parent_and_ticks(&stat)?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// user + nice + system + stolen, out of `cpu  user nice system idle iowait irq softirq steal …`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<u64> = line.split_ascii_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    Some([0, 1, 2, 7].iter().filter_map(|at| fields.get(*at)).sum())
}

/// Parent and CPU time of a process, out of `id (name) state parent … utime stime …`; the name may hold anything.
fn parent_and_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some((number(1)?, number(11)? + number(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_it_is_written() {
        let stat = "cpu  10 20 30 4000 5 6 7 8 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1\n";
        assert_eq!(busy_ticks(stat), Some(68));
        let process = "42 (a (b) c) S 7 1 1 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 1 0 1 1 1";
        assert_eq!(parent_and_ticks(process), Some((7, 175)));
        assert_eq!(parent_and_ticks("nonsense"), None);
        assert!(process_cpu(std::process::id()).is_some());
        assert_eq!(busy_ticks(""), None);
    }
}
