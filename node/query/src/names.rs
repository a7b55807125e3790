//! "Did you mean": names close to one that is not there.

use cairn_storage::near::nearest;

/// "; did you mean `x`?", or "; there are a, b, …", or nothing when there are no candidates.
pub(crate) fn hint<'n>(wanted: &str, candidates: impl IntoIterator<Item = &'n str>) -> String {
    const LISTED_MAX: usize = 20;
    let mut names: Vec<&str> = candidates.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    match nearest(wanted, names.iter().copied()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None if names.is_empty() => String::new(),
        None => {
            let more = if names.len() > LISTED_MAX { ", …" } else { "" };
            names.truncate(LISTED_MAX);
            format!("; there are {}{more}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered() {
        assert_eq!(hint("ratng", ["rating", "trips"]), "; did you mean `rating`?");
        assert_eq!(hint("RATING", ["rating", "trips"]), "; did you mean `rating`?");
        assert_eq!(hint("zebra", ["rating", "trips"]), "; there are rating, trips");
        assert_eq!(hint("zebra", []), "");
    }
}
