//! Bugs on purpose, for the self-test of `jepsen/`: only there with the feature `seeded-bugs`, which is never a default.

use std::sync::OnceLock;

/// Whether the process was started with this bug in `CAIRN_SEED_BUG`.
pub fn awake(bug: &str) -> bool {
    static AWAKE: OnceLock<String> = OnceLock::new();
    AWAKE.get_or_init(|| std::env::var("CAIRN_SEED_BUG").unwrap_or_default()) == bug
}
