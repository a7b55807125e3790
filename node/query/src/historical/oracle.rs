//! The point-in-time rules once more, by brute force over rows of text: knows no Arrow, no key encoding, no storage.

use super::CreatedCutoff;
use crate::testing::{Cell, Fact};

/// A fact with its commit; a later position in the list is a later row.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub fact: Fact,
    pub committed_us: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    NotFound,
    TooOld,
    Row(Vec<Cell>),
}

/// What is asked of one view for one spine row.
pub(crate) struct Ask<'a> {
    pub key: &'a [Cell],
    pub time_us: Option<i64>,
    pub created: CreatedCutoff,
    pub known_us: Option<i64>,
    pub ttl_us: i64,
}

pub(crate) fn answer(history: &[Known], ask: &Ask<'_>) -> Answer {
    let Some(time_us) = ask.time_us else { return Answer::NotFound };
    let mut best: Option<(i64, i64, i64, &Fact)> = None;
    for known in history {
        let fact = &known.fact;
        let created_us = fact.created_us.unwrap_or(fact.event_us);
        let same_key = fact.key.len() == ask.key.len()
            && fact.key.iter().zip(ask.key).all(|(a, b)| a.is_some() && b.is_some() && a == b);
        let created_in_time = match ask.created {
            CreatedCutoff::SpineTime => created_us <= time_us,
            CreatedCutoff::At(cutoff) => created_us <= cutoff,
            CreatedCutoff::Off => true,
        };
        let known_in_time = ask.known_us.is_none_or(|known_us| known.committed_us <= known_us);
        if !(same_key && fact.event_us <= time_us && created_in_time && known_in_time) {
            continue;
        }
        let rank = (fact.event_us, created_us, known.committed_us);
        // Not before the best so far: the later of equals wins.
        if best.is_none_or(|(event, created, committed, _)| rank >= (event, created, committed)) {
            best = Some((rank.0, rank.1, rank.2, fact));
        }
    }
    match best {
        None => Answer::NotFound,
        Some((.., fact)) if fact.deletes() => Answer::NotFound,
        Some((event_us, ..)) if ask.ttl_us > 0 && time_us - event_us > ask.ttl_us => Answer::TooOld,
        Some((.., fact)) => Answer::Row(fact.values.clone()),
    }
}
