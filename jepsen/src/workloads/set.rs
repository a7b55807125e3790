//! Feature upserts as a set: in the end every acknowledged row is the newest of its thing on every node, no refused one
//! is there, and a row that came late by its event time did not win by its arrival.

use super::lock;
use super::rows::{self, Question, Row, at};
use crate::Result;
use crate::history::Outcome;
use crate::site::{Ask, Site};
use cairn_client::command::Level;
use rand::Rng;
use std::sync::Mutex;

const NAME: &str = "set";
const VIEW: &str = "set";
/// Rows of a batch; each has a thing of its own.
const ROWS: i64 = 8;
/// A late row is this much older than the row before it.
const LATE_US: i64 = 1_000_000;
/// Rows asked for at a time in the end.
const ASK_ROWS: usize = 4_096;

#[derive(Debug, Default)]
pub struct Set {
    rows: Mutex<Vec<(Row, Outcome)>>,
}

impl Set {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut next = i64::from(client + 1) * 1_000_000_000;
        while !site.stopped() {
            // One in three is a single row: a refusal of several may have reached some shards.
            let count = if random.random_range(0..3) == 0 { 1 } else { ROWS };
            let rows: Vec<Row> =
                (next..next + count).map(|thing| Row { thing, event_us: thing, nonce: thing * 2 }).collect();
            next += count;
            let (node, at) = site.pick(&mut random);
            let ask = Ask { workload: NAME, client, node, what: &rows, writes: true };
            let done = site.act(ask, rows::put(at, VIEW, None, &rows), |told| told.token.clone()).await;
            let outcome = if count > 1 && done.outcome == Outcome::Failed { Outcome::Unknown } else { done.outcome };
            lock(&self.rows).extend(rows.iter().map(|row| (*row, outcome)));
            if outcome == Outcome::Ok && random.random_range(0..3) == 0 {
                let late: Vec<Row> = rows
                    .iter()
                    .map(|row| Row { event_us: row.event_us - LATE_US, nonce: row.nonce + 1, ..*row })
                    .collect();
                let (node, at) = site.pick(&mut random);
                let ask = Ask { workload: NAME, client, node, what: &late, writes: true };
                site.act(ask, rows::put(at, VIEW, None, &late), |told| told.token.clone()).await;
            }
            site.breathe(&mut random, 60).await;
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let rows = lock(&self.rows).clone();
        let mut found = Vec::new();
        for (node, client) in site.finals() {
            for part in rows.chunks(ASK_ROWS) {
                let things = part.iter().map(|(row, _)| row.thing).collect();
                let question = Question { view: VIEW, things, read: at(Level::Linearizable, 0), known_as_of: None };
                let (values, _) = rows::get(client, &question).await?;
                let wrong = part.iter().zip(values).filter_map(|((row, outcome), value)| judge(row, *outcome, value));
                found.extend(wrong.map(|wrong| format!("{node}: {wrong}")));
            }
        }
        Ok(found)
    }
}

fn judge(row: &Row, outcome: Outcome, value: Option<(i64, i64)>) -> Option<String> {
    let thing = row.thing;
    match (rows::nonce(value), outcome) {
        (None, _) => Some(format!("thing {thing} is torn: {value:?}")),
        (Some(nonce), Outcome::Ok) if nonce == row.nonce => None,
        (Some(0), Outcome::Ok) => Some(format!("thing {thing}: the acknowledged row is missing")),
        (Some(nonce), Outcome::Ok) if nonce == row.nonce + 1 => {
            Some(format!("thing {thing}: a row that is older by its event time won by arriving later"))
        }
        (Some(0), _) => None,
        (Some(_), Outcome::Failed) => Some(format!("thing {thing}: a refused row is there")),
        (Some(nonce), Outcome::Unknown) if nonce == row.nonce => None,
        (Some(nonce), _) => Some(format!("thing {thing} reads {nonce}, and {} was written", row.nonce)),
    }
}

workload!(Set, NAME, clients: 2, least_ok_per_minute: 100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_judged_by_what_was_told() {
        let row = Row { thing: 7, event_us: 7, nonce: 14 };
        let read = |nonce: i64| Some((nonce, -nonce));
        for (outcome, value, fine) in [
            (Outcome::Ok, read(14), true),
            (Outcome::Ok, None, false),
            (Outcome::Ok, read(15), false),
            (Outcome::Ok, Some((14, -15)), false),
            (Outcome::Unknown, None, true),
            (Outcome::Unknown, read(14), true),
            (Outcome::Unknown, read(16), false),
            (Outcome::Failed, None, true),
            (Outcome::Failed, read(14), false),
        ] {
            assert_eq!(judge(&row, outcome, value).is_none(), fine, "{outcome:?} {value:?}");
        }
    }
}
