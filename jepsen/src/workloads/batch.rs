//! Rows of one batch that belong to one shard are one write: a reader sees all of them or none, at every level.

use super::Seen;
use super::rows::{self, Question, Row, Values, at};
use crate::Result;
use crate::site::{Ask, Site};
use cairn_client::Token;
use cairn_client::command::Level;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

const NAME: &str = "batch";
const VIEW: &str = "batch";
/// Things written together, and how many such families there are.
const FAMILY: usize = 6;
const FAMILIES: usize = 3;
const WRITERS: u32 = 2;

#[derive(Debug)]
pub struct Batch {
    families: Vec<Vec<i64>>,
    nonce: AtomicI64,
    seen: Seen,
}

impl Batch {
    /// Finds families of things that share a shard: the token of a write names it.
    ///
    /// # Errors
    /// The cluster's refusal.
    pub async fn prepare(site: &Site) -> Result<Self> {
        let mut shards: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        let mut families = Vec::new();
        for thing in 1..1_000 {
            let stored = rows::put(&site.any, VIEW, None, &[Row { thing, event_us: 1, nonce: 1 }]).await?;
            let token: Token = stored.token.parse().map_err(|error| format!("token `{}`: {error:?}", stored.token))?;
            let Some((shard, _)) = token.iter().next() else { return Err("a write without a token".into()) };
            let family = shards.entry(shard).or_default();
            family.push(thing);
            if family.len() == FAMILY {
                families.push(std::mem::take(family));
            }
            if families.len() == FAMILIES {
                return Ok(Self { families, nonce: AtomicI64::new(1), seen: Seen::default() });
            }
        }
        Err("no three families of things share a shard".into())
    }

    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        while !site.stopped() {
            let family = &self.families[random.random_range(0..self.families.len())];
            match client < WRITERS {
                true => self.write(site, client, family, &mut random).await,
                false => self.read(site, client, family, &mut random).await,
            }
            site.breathe(&mut random, 40).await;
        }
    }

    async fn write(&self, site: &Site, client: u32, family: &[i64], random: &mut StdRng) {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed) + 1;
        let rows: Vec<Row> = family.iter().map(|&thing| Row { thing, event_us: nonce, nonce }).collect();
        let (node, at) = site.pick(random);
        let ask = Ask { workload: NAME, client, node, what: &rows, writes: true };
        site.act(ask, rows::put(at, VIEW, None, &rows), |told| told.token.clone()).await;
    }

    async fn read(&self, site: &Site, client: u32, family: &[i64], random: &mut StdRng) {
        let level = [Level::Linearizable, Level::Bounded, Level::Stale][random.random_range(0..3)];
        let question = Question { view: VIEW, things: family.to_vec(), read: at(level, 300), known_as_of: None };
        let (node, at) = site.pick(random);
        let ask = Ask { workload: NAME, client, node, what: &question, writes: false };
        let done = site.act(ask, rows::get(at, &question), |(values, _)| format!("{values:?}")).await;
        if let Ok((values, _)) = done.answer
            && let Some(torn) = torn(&values)
        {
            self.seen.note(format!("{node} at {} us, {level:?}: {torn}", done.ended));
        }
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>> {
        let mut found = self.seen.all();
        for (node, client) in site.finals() {
            for family in &self.families {
                let read = at(Level::Linearizable, 0);
                let question = Question { view: VIEW, things: family.clone(), read, known_as_of: None };
                let (values, _) = rows::get(client, &question).await?;
                found.extend(torn(&values).map(|torn| format!("{node} in the end: {torn}")));
            }
        }
        Ok(found)
    }
}

/// Every row must be whole and of the same batch.
fn torn(values: &Values) -> Option<String> {
    let nonces: Option<Vec<i64>> = values.iter().map(|value| rows::nonce(*value)).collect();
    match nonces {
        None => Some(format!("a torn row among {values:?}")),
        Some(nonces) if nonces.windows(2).any(|pair| pair[0] != pair[1]) => {
            Some(format!("a torn batch: its rows read {nonces:?}"))
        }
        Some(_) => None,
    }
}

workload!(Batch, NAME, clients: 3, least_ok_per_minute: 200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_rows_and_batches_are_seen() {
        assert!(torn(&vec![Some((4, -4)), Some((4, -4))]).is_none());
        assert!(torn(&vec![None, None]).is_none());
        for values in [[Some((4, -4)), Some((5, -5))], [Some((4, -4)), None], [Some((4, -5)), Some((4, -4))]] {
            assert!(torn(&values.to_vec()).is_some(), "{values:?}");
        }
    }
}
