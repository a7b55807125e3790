//! A (producer, sequence) takes effect once, whatever is sent under it again, to whom, and when.
//!
//! Each client is a producer with one thing. When a sequence is acknowledged it is sent again, at once or much later, with
//! a newer row in it: poison, which would win if it were taken.

use super::rows::{self, Question, Row, at};
use super::{Seen, lock};
use crate::Result;
use crate::history::Outcome;
use crate::site::{Ask, Site};
use cairn_client::command::Level;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Mutex;

const NAME: &str = "once";
const VIEW: &str = "once";
/// Poison of sequence s reads POISON + s.
const POISON: i64 = 1 << 40;
/// How far back a sequence is sent again; the cluster remembers 4,096.
const BACK_MAX: u64 = 2_000;

#[derive(Debug, Default)]
pub struct Once {
    seen: Seen,
    /// Highest acknowledged sequence of each client.
    acknowledged: Mutex<BTreeMap<u32, u64>>,
}

impl Once {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut sequence = 0;
        while !site.stopped() {
            sequence += 1;
            if !self.until_acknowledged(site, client, sequence, &mut random).await {
                return;
            }
            lock(&self.acknowledged).insert(client, sequence);
            if random.random_range(0..2) == 0 {
                let back = if random.random() { 0 } else { random.random_range(0..BACK_MAX.min(sequence)) };
                self.poison(site, client, sequence - back, &mut random).await;
            }
            if random.random_range(0..4) == 0 {
                self.look(site, client, sequence, &mut random).await;
            }
            site.breathe(&mut random, 40).await;
        }
    }

    /// Sends a row until it is acknowledged; `false` when the run ended before.
    async fn until_acknowledged(&self, site: &Site, client: u32, sequence: u64, random: &mut StdRng) -> bool {
        let row = row(client, sequence, false);
        let mut maybe_done = false;
        while !site.stopped() {
            let (node, at) = site.pick(random);
            let producer = producer(client);
            let ask = Ask { workload: NAME, client, node, what: (sequence, row), writes: true };
            let put = rows::put(at, VIEW, Some((&producer, sequence)), std::slice::from_ref(&row));
            let done = site.act(ask, put, |told| format!("{} duplicate", told.rows_duplicate)).await;
            match (done.outcome, done.answer) {
                (Outcome::Ok, Ok(told)) => {
                    // The client library itself sends again, so only a refusal of all tries before tells.
                    let counted = told.rows_accepted + told.rows_duplicate;
                    if counted != 1 {
                        self.seen.note(format!("{producer} sequence {sequence}: one row was counted {counted} times"));
                    }
                    return true;
                }
                (Outcome::Unknown, _) => maybe_done = true,
                (_, Err(error)) if !maybe_done && error.kind() == cairn_client::ErrorKind::InvalidArgument => {
                    self.seen.note(format!("{producer} sequence {sequence} was refused: {error}"));
                    return true;
                }
                _ => site.breathe(random, 100).await,
            }
        }
        false
    }

    /// Sends an acknowledged sequence again, with another row.
    async fn poison(&self, site: &Site, client: u32, sequence: u64, random: &mut StdRng) {
        let row = row(client, sequence, true);
        let producer = producer(client);
        let (node, at) = site.pick(random);
        let ask = Ask { workload: NAME, client, node, what: (sequence, row), writes: true };
        let put = rows::put(at, VIEW, Some((&producer, sequence)), std::slice::from_ref(&row));
        let done = site.act(ask, put, |told| format!("{} duplicate", told.rows_duplicate)).await;
        if let Ok(told) = done.answer
            && told.rows_accepted > 0
        {
            self.seen.note(format!(
                "{node} at {} us: {producer} sequence {sequence} had been acknowledged, and was taken again",
                done.ended
            ));
        }
    }

    async fn look(&self, site: &Site, client: u32, sequence: u64, random: &mut StdRng) {
        let (node, at_node) = site.pick(random);
        let question = question(client);
        let ask = Ask { workload: NAME, client, node, what: &question, writes: false };
        let done = site.act(ask, rows::get(at_node, &question), |(values, _)| format!("{values:?}")).await;
        if let Ok((values, _)) = done.answer {
            let wrong = judge(client, sequence, values.first().copied().flatten());
            wrong.into_iter().for_each(|wrong| self.seen.note(format!("{node} at {} us: {wrong}", done.ended)));
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let mut found = self.seen.all();
        let acknowledged = lock(&self.acknowledged).clone();
        for (node, client) in site.finals() {
            for (&producer, &sequence) in &acknowledged {
                let (values, _) = rows::get(client, &question(producer)).await?;
                let wrong = judge(producer, sequence, values.first().copied().flatten());
                found.extend(wrong.map(|wrong| format!("{node} in the end: {wrong}")));
            }
        }
        Ok(found)
    }
}

fn producer(client: u32) -> String {
    format!("producer-{client}")
}

fn row(client: u32, sequence: u64, poison: bool) -> Row {
    let sequence = sequence.cast_signed();
    match poison {
        false => Row { thing: i64::from(client), event_us: sequence, nonce: sequence },
        true => Row { thing: i64::from(client), event_us: POISON + sequence, nonce: POISON + sequence },
    }
}

fn question(client: u32) -> Question {
    Question { view: VIEW, things: vec![i64::from(client)], read: at(Level::Linearizable, 0), known_as_of: None }
}

/// A linearizable read that began after `sequence` was acknowledged. One more may be under way.
fn judge(client: u32, sequence: u64, value: Option<(i64, i64)>) -> Option<String> {
    let producer = producer(client);
    let sequence = sequence.cast_signed();
    match rows::nonce(value) {
        None => Some(format!("the row of {producer} is torn: {value:?}")),
        Some(nonce) if nonce >= POISON => Some(format!("{producer}: sequence {} took effect twice", nonce - POISON)),
        Some(nonce) if nonce == sequence || nonce == sequence + 1 => None,
        Some(nonce) => Some(format!("{producer} reads sequence {nonce}, and {sequence} was acknowledged")),
    }
}

workload!(Once, NAME, clients: 2, least_ok_per_minute: 100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_and_loss_are_seen() {
        for (value, fine) in [
            (Some((5, -5)), true),
            (Some((6, -6)), true),
            (Some((4, -4)), false),
            (None, false),
            (Some((POISON + 3, -POISON - 3)), false),
            (Some((5, 5)), false),
        ] {
            assert_eq!(judge(0, 5, value).is_none(), fine, "{value:?}");
        }
    }
}
