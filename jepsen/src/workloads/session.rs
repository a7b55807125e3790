//! Tokens: a read with the token of a write or of another read sees at least what that one saw, on any node.

use super::Seen;
use super::rows::{self, Question, Row};
use crate::Result;
use crate::site::{Ask, Site};
use cairn_client::Token;
use cairn_client::command::{Level, Read};
use rand::Rng;

const NAME: &str = "session";
const VIEW: &str = "session";
const CLIENTS: u32 = 2;

#[derive(Debug, Default)]
pub struct Session {
    seen: Seen,
}

impl Session {
    async fn work(&self, site: &Site, client: u32) {
        let mut random = site.random(NAME, client);
        let mut nonce = 0;
        let mut token = Token::default();
        // What this session has seen of each client's thing.
        let mut floor = vec![0; CLIENTS as usize];
        while !site.stopped() {
            let (node, at) = site.pick(&mut random);
            if token.is_empty() || random.random_range(0..3) == 0 {
                nonce += 1;
                let row = Row { thing: i64::from(client), event_us: nonce, nonce };
                let ask = Ask { workload: NAME, client, node, what: row, writes: true };
                let put = rows::put(at, VIEW, None, std::slice::from_ref(&row));
                let done = site.act(ask, put, |told| told.token.clone()).await;
                if let Ok(told) = done.answer {
                    self.merge(&mut token, &told.token);
                    floor[client as usize] = nonce;
                }
            } else {
                let read = Read { level: Level::Session, token: Some(token.to_string()), ..Read::default() };
                let things = (0..CLIENTS).map(i64::from).collect();
                let question = Question { view: VIEW, things, read, known_as_of: None };
                let ask = Ask { workload: NAME, client, node, what: &question, writes: false };
                let done = site.act(ask, rows::get(at, &question), |(values, _)| format!("{values:?}")).await;
                if let Ok((values, reply)) = done.answer {
                    let wrong = advance(&mut floor, &values);
                    wrong.into_iter().for_each(|wrong| {
                        self.seen
                            .note(format!("client {client} on {node} at {} us, token {token}: {wrong}", done.ended));
                    });
                    self.merge(&mut token, &reply.token);
                }
            }
            site.breathe(&mut random, 40).await;
        }
    }

    fn merge(&self, token: &mut Token, other: &str) {
        match other.parse() {
            Ok(other) => token.merge(&other),
            Err(_) => self.seen.note(format!("`{other}` is no token")),
        }
    }

    // The promise is about reads during the run; `set` looks at what is left in the end.
    #[allow(clippy::unused_async)]
    async fn check(&self, _site: &Site) -> Result<Vec<String>> {
        Ok(self.seen.all())
    }
}

/// Raises `floor` to what was read; says which thing went back.
fn advance(floor: &mut [i64], values: &rows::Values) -> Option<String> {
    for (thing, (floor, value)) in floor.iter_mut().zip(values).enumerate() {
        match rows::nonce(*value) {
            None => return Some(format!("thing {thing} is torn: {value:?}")),
            Some(nonce) if nonce < *floor => {
                return Some(format!("thing {thing} reads {nonce}, and this session had seen or written {floor}"));
            }
            Some(nonce) => *floor = nonce,
        }
    }
    None
}

workload!(Session, NAME, clients: CLIENTS, least_ok_per_minute: 100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_never_goes_back() {
        let mut floor = vec![2, 0];
        assert_eq!(advance(&mut floor, &vec![Some((2, -2)), Some((7, -7))]), None);
        assert_eq!(floor, [2, 7]);
        assert!(advance(&mut floor, &vec![Some((2, -2)), Some((6, -6))]).is_some());
        assert!(advance(&mut floor, &vec![None, Some((7, -7))]).is_some());
    }
}
