//! The past: once every shard has applied something after T, a read of what was known at T is the same for ever, on every
//! node. Reads the things that `fresh` writes.

use super::fresh::{VIEW, WRITERS};
use super::rows::{self, Question, Row, Values, at};
use super::{Seen, lock};
use crate::Result;
use crate::site::{Ask, Site};
use cairn_client::command::{Level, ReadReply};
use rand::Rng;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "as-of";
/// Moments remembered; the oldest goes first.
const PAST_MAX: usize = 400;
/// A thing of its own, so that something is written when `fresh` does not run.
const THING: i64 = 1_000;
/// Oldest moment asked for.
const BACK_US: i64 = 5_000_000;

#[derive(Debug, Default)]
pub struct AsOf {
    seen: Seen,
    past: Mutex<VecDeque<(i64, Values)>>,
}

impl AsOf {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut nonce = 0;
        while !site.stopped() {
            if random.random_range(0..3) == 0 {
                nonce += 1;
                let (node, at) = site.pick(&mut random);
                let row = Row { thing: THING, event_us: nonce, nonce };
                let ask = Ask { workload: NAME, client, node, what: row, writes: true };
                site.act(ask, rows::put(at, VIEW, None, std::slice::from_ref(&row)), |told| told.token.clone()).await;
            }
            let again = {
                let past = lock(&self.past);
                let old = random.random_range(0..3) > 0 && !past.is_empty();
                old.then(|| past[random.random_range(0..past.len())].clone())
            };
            let moment =
                again.as_ref().map_or_else(|| now_us() - random.random_range(0..BACK_US), |(moment, _)| *moment);
            let level = [Level::Linearizable, Level::Bounded, Level::Stale][random.random_range(0..3)];
            let question = question(moment, level);
            let (node, at) = site.pick(&mut random);
            let ask = Ask { workload: NAME, client, node, what: &question, writes: false };
            let done = site.act(ask, rows::get(at, &question), |(values, _)| format!("{values:?}")).await;
            if let Ok((values, reply)) = done.answer
                && known(&reply, moment)
            {
                match again {
                    None => {
                        let mut past = lock(&self.past);
                        past.push_back((moment, values));
                        if past.len() > PAST_MAX {
                            past.pop_front();
                        }
                    }
                    Some((_, before)) if before != values => self.seen.note(format!(
                        "{node} at {} us, {level:?}: what was known at {moment} reads {values:?}, and read {before:?} before",
                        done.ended
                    )),
                    Some(_) => {}
                }
            }
            site.breathe(&mut random, 40).await;
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let mut found = self.seen.all();
        let past: Vec<_> = lock(&self.past).iter().cloned().collect();
        for (node, client) in site.finals() {
            for (moment, before) in &past {
                let (values, reply) = rows::get(client, &question(*moment, Level::Linearizable)).await?;
                if known(&reply, *moment) && values != *before {
                    found.push(format!(
                        "{node} in the end: what was known at {moment} reads {values:?}, and read {before:?} before"
                    ));
                }
            }
        }
        Ok(found)
    }
}

fn question(moment: i64, level: Level) -> Question {
    let things = (0..WRITERS).map(i64::from).chain([THING]).collect();
    Question { view: VIEW, things, read: at(level, 500), known_as_of: Some(moment) }
}

/// Whether no shard can take a command stamped `moment` or earlier any more: stamps never go back along a log, but may
/// stand still.
fn known(reply: &ReadReply, moment: i64) -> bool {
    !reply.shards.is_empty() && reply.shards.iter().all(|shard| shard.applied_time.0 > moment)
}

/// The clock that leaders stamp commands with.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

workload!(AsOf, NAME, clients: 2, least_ok_per_minute: 100);
