//! Freshness: a linearizable read misses no write acknowledged before it began, a bounded one none acknowledged more than
//! its bound before it began. Both by this process's one clock.

use super::lock;
use super::rows::{self, Question, Row, at};
use crate::Result;
use crate::history::Moment;
use crate::site::{Ask, Site};
use cairn_client::command::Level;
use rand::Rng;
use std::sync::Mutex;

const NAME: &str = "fresh";
pub const VIEW: &str = "fresh";
/// Each has one thing, whose nonce only rises.
pub const WRITERS: u32 = 3;
const READERS: u32 = 2;
const BOUNDS_MS: [u64; 3] = [100, 500, 2_000];

#[derive(Debug, Default)]
pub struct Fresh {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Of each writer, when which nonce was acknowledged; both rise.
    acknowledged: [Vec<(Moment, i64)>; WRITERS as usize],
    reads: Vec<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    node: String,
    level: Level,
    /// Writes acknowledged at this moment or before must be seen.
    horizon: Moment,
    began: Moment,
    values: rows::Values,
}

impl Fresh {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut nonce = 0;
        while !site.stopped() {
            let (node, at_node) = site.pick(&mut random);
            if client < WRITERS {
                nonce += 1;
                let row = Row { thing: i64::from(client), event_us: nonce, nonce };
                let ask = Ask { workload: NAME, client, node, what: row, writes: true };
                let put = rows::put(at_node, VIEW, None, std::slice::from_ref(&row));
                let done = site.act(ask, put, |told| told.token.clone()).await;
                if done.answer.is_ok() {
                    lock(&self.kept).acknowledged[client as usize].push((done.ended, nonce));
                }
            } else {
                let (level, bound_ms) = match random.random_range(0..2) {
                    0 => (Level::Linearizable, 0),
                    _ => (Level::Bounded, BOUNDS_MS[random.random_range(0..BOUNDS_MS.len())]),
                };
                let things = (0..WRITERS).map(i64::from).collect();
                let question = Question { view: VIEW, things, read: at(level, bound_ms), known_as_of: None };
                let ask = Ask { workload: NAME, client, node, what: &question, writes: false };
                let done = site.act(ask, rows::get(at_node, &question), |(values, _)| format!("{values:?}")).await;
                if let Ok((values, _)) = done.answer {
                    let horizon = done.began.saturating_sub(bound_ms * 1_000);
                    let seen = Seen { node: node.to_owned(), level, horizon, began: done.began, values };
                    lock(&self.kept).reads.push(seen);
                }
            }
            site.breathe(&mut random, 30).await;
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        for (node, client) in site.finals() {
            let began = site.history.now();
            let things = (0..WRITERS).map(i64::from).collect();
            let read = at(Level::Linearizable, 0);
            let (values, _) = rows::get(client, &Question { view: VIEW, things, read, known_as_of: None }).await?;
            let seen = Seen { node: node.to_owned(), level: Level::Linearizable, horizon: began, began, values };
            lock(&self.kept).reads.push(seen);
        }
        let kept = lock(&self.kept);
        Ok(kept.reads.iter().filter_map(|seen| missed(seen, &kept.acknowledged)).take(super::VIOLATIONS_MAX).collect())
    }
}

fn missed(seen: &Seen, acknowledged: &[Vec<(Moment, i64)>]) -> Option<String> {
    let Seen { node, level, horizon, began, values } = seen;
    for (thing, (value, writes)) in values.iter().zip(acknowledged).enumerate() {
        let before = writes.partition_point(|(ended, _)| ended < horizon);
        let Some((ended, must)) = before.checked_sub(1).and_then(|last| writes.get(last)) else { continue };
        match rows::nonce(*value) {
            None => return Some(format!("{node}: thing {thing} is torn: {value:?}")),
            Some(nonce) if nonce < *must => {
                return Some(format!(
                    "{node}, {level:?}: a read that began at {began} us with horizon {horizon} us saw {nonce} of thing \
                     {thing}, and {must} was acknowledged at {ended} us"
                ));
            }
            Some(_) => {}
        }
    }
    None
}

workload!(Fresh, NAME, clients: WRITERS + READERS, least_ok_per_minute: 300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_must_see_what_was_acknowledged_before_its_horizon() {
        let acknowledged = vec![vec![(100, 1), (200, 2)]];
        let seen = |horizon, nonce| Seen {
            node: "n1".to_owned(),
            level: Level::Bounded,
            horizon,
            began: 300,
            values: vec![Some((nonce, -nonce))],
        };
        for (horizon, nonce, fine) in
            [(300, 2, true), (300, 1, false), (150, 1, true), (150, 0, false), (50, 0, true), (300, 3, true)]
        {
            assert_eq!(missed(&seen(horizon, nonce), &acknowledged).is_none(), fine, "{horizon} {nonce}");
        }
    }
}
