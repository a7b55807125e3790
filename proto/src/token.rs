//! A token names a position in one or more groups' logs: "at least this write".

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Positions by group (0 = meta, 1… = feature shards). Written `0@17,3@204`; empty = nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token(BTreeMap<u32, u64>);

impl Token {
    pub fn new(group: u32, index: u64) -> Self {
        Self(BTreeMap::from([(group, index)]))
    }

    /// Moves `group` forward to `index`, never back.
    pub fn advance(&mut self, group: u32, index: u64) {
        let held = self.0.entry(group).or_default();
        *held = (*held).max(index);
    }

    pub fn merge(&mut self, other: &Self) {
        for (group, index) in other.iter() {
            self.advance(group, index);
        }
    }

    pub fn get(&self, group: u32) -> Option<u64> {
        self.0.get(&group).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().map(|(group, index)| (*group, *index))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (group, index)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{group}@{index}")?;
        }
        Ok(())
    }
}

/// A token that does not read `group@index,…`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a token; it should look like `0@17` or `1@204,3@77`")]
pub struct BadToken(String);

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut token = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let bad = || BadToken(text.to_owned());
            let (group, index) = part.split_once('@').ok_or_else(bad)?;
            token.advance(group.parse().map_err(|_| bad())?, index.parse().map_err(|_| bad())?);
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_what_they_write() {
        for text in ["", "0@17", "1@204,3@77"] {
            assert_eq!(text.parse::<Token>().unwrap().to_string(), text);
        }
        for text in ["0", "a@1", "1@", "1@2;3@4", "1@-2"] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_never_moves_back() {
        let mut token = Token::new(1, 9);
        token.advance(1, 4);
        assert_eq!(token.get(1), Some(9));
    }
}
