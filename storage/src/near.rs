//! "did you mean `rides`?": the nearest name by edit distance.

/// Names looked at; a wrong name in a project with more than these gets a plainer message.
const CANDIDATES_MAX: usize = 10_000;
/// Names spelled out when none is near.
const LISTED_MAX: usize = 5;

/// What to say after "… not found; ": a near name, else the names there are, else `fix`.
pub fn hint<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone, fix: &str) -> String {
    if let Some(near) = nearest(name, candidates.clone()) {
        return format!("did you mean `{near}`?");
    }
    let names: Vec<&str> = candidates.clone().take(LISTED_MAX).collect();
    if names.is_empty() {
        return fix.to_owned();
    }
    let more = match candidates.skip(LISTED_MAX).count() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    format!("there is `{}`{more}", names.join("`, `"))
}

/// The name that `name` is most likely a typo of, if one is close enough. Case does not count.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (name.chars().count() / 3).clamp(1, 3);
    let lower = name.to_lowercase();
    let near = candidates
        .take(CANDIDATES_MAX)
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= 4 * bound)
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate));
    near.min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= bound)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        row[0] = before;
        for (right, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = *cell;
            before = replaced.min(diagonal + 1).min(before + 1);
            *cell = before;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("abc", "", 3), ("rides", "ride", 1), ("kitten", "sitting", 3), ("ü", "u", 1)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn a_near_name_is_offered_else_the_names_else_the_fix() {
        let check = |name: &str, names: &[&str], expected: &str| {
            assert_eq!(hint(name, names.iter().copied(), "make one"), expected);
        };
        check("driver_stat", &["driver_stats", "rides"], "did you mean `driver_stats`?");
        check("RIDES", &["driver_stats", "rides"], "did you mean `rides`?");
        check("weather", &["driver_stats", "rides"], "there is `driver_stats`, `rides`");
        check(
            "weather",
            &["aaaaaa", "bbbbb", "cccccc", "d", "e", "f", "g"],
            "there is `aaaaaa`, `bbbbb`, `cccccc`, `d`, `e` and 2 more",
        );
        check("weather", &[], "make one");
    }
}
