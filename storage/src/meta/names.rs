//! What names may look like.

use crate::{Error, Result};

const NAME_CHARS_MAX: usize = 128;

/// Projects, definitions, models and aliases: a letter or `_`, then letters, digits, `_` or `-`.
///
/// # Errors
/// `InvalidArgument` naming `what` and the name.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    check(what, name, true)
}

/// Features, join keys and request columns: as [`check_name`], without `-`, so that SQL needs no quotes.
///
/// # Errors
/// `InvalidArgument` naming `what` and the name.
pub fn check_column_name(what: &str, name: &str) -> Result<()> {
    check(what, name, false)
}

fn check(what: &str, name: &str, dash: bool) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || (dash && byte == b'-'));
    if first && rest && name.len() <= NAME_CHARS_MAX {
        return Ok(());
    }
    let dash = if dash { " or `-`" } else { "" };
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    Err(Error::InvalidArgument(format!(
        "`{}` is not a name for {what}; use a letter or `_`, then letters, digits, `_`{dash}, at most {NAME_CHARS_MAX} in all",
        shown.escape_debug()
    )))
}

/// Nodes: as host names.
pub fn check_node_name(name: &str) -> Result<()> {
    let fits = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits && !name.is_empty() && name.len() <= NAME_CHARS_MAX {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    Err(Error::InvalidArgument(format!(
        "`{}` is not a name for a node; use letters, digits, `.`, `_` or `-`, at most {NAME_CHARS_MAX} in all",
        shown.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["a", "_", "driver_stats", "eta-2", &"x".repeat(128)] {
            check_name("a model", name).unwrap();
        }
        for name in ["", "1", "-a", "a b", "a/b", "a@1", "a:b", "ü", "a\0", &"x".repeat(129)] {
            let error = check_name("a model", name).unwrap_err().to_string();
            assert!(error.contains("is not a name for a model"), "{error}");
        }
        check_column_name("a feature", "a-b").unwrap_err();
        check_node_name("node-1.rack_2").unwrap();
        for name in ["", "a b", "a\0", "a:1"] {
            check_node_name(name).unwrap_err();
        }
    }
}
