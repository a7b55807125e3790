//! Times are microseconds since 1970-01-01 UTC. In commands they are RFC 3339 strings or such integers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Reads RFC 3339 (`2026-05-02T14:03:00Z`, any offset, up to 9 fraction digits, finer than µs refused),
    /// a civil date and time without zone (taken as UTC), a bare date, or integer microseconds.
    ///
    /// # Errors
    /// [`BadTime`] names the text.
    pub fn parse(text: &str) -> Result<Self, BadTime> {
        let bad = || BadTime(text.to_owned());
        let text = text.trim();
        if let Ok(us) = text.parse::<i64>() {
            return Ok(Self(us));
        }
        let nanos_zero = |nanos: i128| if nanos % 1000 == 0 { i64::try_from(nanos / 1000).ok() } else { None };
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            return nanos_zero(at.as_nanosecond()).map(Self).ok_or_else(bad);
        }
        let civil: jiff::civil::DateTime = text.parse().map_err(|_| bad())?;
        let at = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| bad())?;
        nanos_zero(at.timestamp().as_nanosecond()).map(Self).ok_or_else(bad)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => write!(f, "{at}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

/// A time that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a time; write RFC 3339 such as `2026-05-02T14:03:00Z`, or integer microseconds since 1970 (UTC)")]
pub struct BadTime(String);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Micros(i64),
            Text(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Micros(us)) => Ok(Self(us)),
            Ok(Form::Text(text)) => Self::parse(&text).map_err(serde::de::Error::custom),
            Err(_) => Err(serde::de::Error::custom("a time must be an RFC 3339 string or integer microseconds (UTC)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_in_every_form() {
        let expected = Timestamp(1_357_041_780_000_000);
        for text in ["2013-01-01T12:03:00Z", "2013-01-01T07:03:00-05:00", "2013-01-01 12:03:00", "1357041780000000"] {
            assert_eq!(Timestamp::parse(text).unwrap(), expected, "{text}");
        }
        assert_eq!(Timestamp::parse("2013-01-01").unwrap(), Timestamp(1_356_998_400_000_000));
        assert_eq!(expected.to_string(), "2013-01-01T12:03:00Z");
    }

    #[test]
    fn finer_than_a_microsecond_is_refused_not_truncated() {
        assert!(Timestamp::parse("2013-01-01T12:03:00.000000001Z").is_err());
        assert!(Timestamp::parse("yesterday").is_err());
    }
}
