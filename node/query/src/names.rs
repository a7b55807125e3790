//! "Did you mean": names close to one that is not there.

/// "; did you mean `x`?", or "; there are a, b, …", or nothing when there are no candidates.
pub(crate) fn hint<'n>(wanted: &str, candidates: impl IntoIterator<Item = &'n str>) -> String {
    const LISTED_MAX: usize = 20;
    let mut names: Vec<&str> = candidates.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    let limit = wanted.chars().count().div_ceil(3).max(1);
    let near = names.iter().map(|name| (distance(wanted, name), *name)).filter(|(far, _)| *far <= limit).min();
    match near {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None if names.is_empty() => String::new(),
        None => {
            let more = if names.len() > LISTED_MAX { ", …" } else { "" };
            names.truncate(LISTED_MAX);
            format!("; there are {}{more}", names.join(", "))
        }
    }
}

/// Edit distance, ignoring ASCII case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            left = (diagonal + usize::from(ca != *cb)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
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
