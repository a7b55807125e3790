//! One group's part of the log, in memory: vote, pointers, where each entry stands, and the newest entries themselves.
//!
//! The writing node and recovery change it through the same functions, so a log read back gives the state it had.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes};

/// Where a record stands. `ABSENT` is known only from a checkpoint: the entry's segment was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    /// Bytes of payload.
    pub(super) length: u32,
}

impl Place {
    pub(super) const ABSENT: Self = Self { segment: 0, offset: 0, length: 0 };

    pub(super) fn is_absent(&self) -> bool {
        self.segment == 0
    }
}

/// Always true: entries have consecutive indexes, their segments never decrease, and all are behind `purged`.
#[derive(Debug, Default)]
pub(super) struct GroupLog {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    /// What of `committed` has its record; the rest rides along with the next one.
    pub(super) committed_logged: Option<Bytes>,
    pub(super) purged: Option<(u64, Bytes)>,
    /// Payload of the last entry, kept whatever the cache does.
    pub(super) last: Option<Bytes>,
    first: u64,
    places: VecDeque<Place>,
    /// Payloads of the last `recent.len()` entries, each with the log's length when it was appended.
    recent: VecDeque<(u64, Bytes)>,
}

impl GroupLog {
    pub(super) fn first_index(&self) -> Option<u64> {
        (!self.places.is_empty()).then_some(self.first)
    }

    pub(super) fn last_index(&self) -> Option<u64> {
        (!self.places.is_empty()).then(|| self.end() - 1)
    }

    /// One past the last entry; equal to `first` if there is none.
    pub(super) fn end(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    pub(super) fn place(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    pub(super) fn entries(&self) -> usize {
        self.places.len()
    }

    /// Segment of the oldest entry.
    pub(super) fn oldest_segment(&self) -> Option<u64> {
        self.places.front().map(|place| place.segment)
    }

    /// The entries whose segments are gone although nothing says that they may be.
    pub(super) fn absent(&self) -> Option<(u64, u64)> {
        let count = self.places.iter().take_while(|place| place.is_absent()).count() as u64;
        (count > 0).then(|| (self.first, self.first + count - 1))
    }

    /// The payload, if it is still in memory.
    pub(super) fn recent(&self, index: u64) -> Option<&Bytes> {
        let offset = usize::try_from(index.checked_sub(self.first)?).ok()?;
        if offset + 1 == self.places.len() {
            return self.last.as_ref();
        }
        let older = self.places.len() - self.recent.len();
        self.recent.get(offset.checked_sub(older)?).map(|(_, payload)| payload)
    }

    /// Whether `count` entries from `index` on may follow; the refusal says why not.
    pub(super) fn check_append(&self, index: u64, count: usize) -> Result<(), String> {
        if index.checked_add(count as u64).is_none() {
            return Err(format!("entry index {index} is over the limit"));
        }
        match (self.last_index(), &self.purged) {
            (Some(last), _) if index != last + 1 => Err(format!("entry {index} cannot follow entry {last}")),
            (None, Some((purged, _))) if index <= *purged => {
                Err(format!("entry {index} cannot follow: entries up to {purged} are purged"))
            }
            _ => Ok(()),
        }
    }

    /// Adds an entry that `check_append` allowed. `payload`: as it stands in memory, with the log's length.
    pub(super) fn append(&mut self, index: u64, place: Place, payload: Option<(u64, Bytes)>) {
        if self.places.is_empty() {
            self.first = index;
        }
        self.places.push_back(place);
        match payload {
            Some((position, payload)) => {
                self.last = Some(payload.clone());
                self.recent.push_back((position, payload));
            }
            None => {
                self.last = None;
                self.recent.clear();
            }
        }
    }

    /// Drops entries from `from` on. `last` becomes the payload of the entry before, if there is one.
    pub(super) fn truncate(&mut self, from: u64, last: Option<Bytes>) {
        let keep = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.places.len());
        let dropped = self.places.len() - keep;
        if dropped == 0 {
            return;
        }
        self.places.truncate(keep);
        self.recent.truncate(self.recent.len().saturating_sub(dropped));
        self.last = last;
    }

    /// Drops entries up to `upto`; never moves backwards.
    pub(super) fn purge(&mut self, upto: u64, log_id: Bytes) {
        if self.purged.as_ref().is_some_and(|(purged, _)| upto <= *purged) {
            return;
        }
        self.purged = Some((upto, log_id));
        if upto < self.first || self.places.is_empty() {
            return;
        }
        let dropped = usize::try_from(upto - self.first).unwrap_or(usize::MAX).saturating_add(1);
        if dropped >= self.places.len() {
            self.places.clear();
            self.recent.clear();
            self.last = None;
            return;
        }
        self.places.drain(..dropped);
        self.first += dropped as u64;
        let excess = self.recent.len().saturating_sub(self.places.len());
        self.recent.drain(..excess);
    }

    /// Which of vote, committed, purged and entries have records, as the bits of a checkpoint.
    fn logged_parts(&self) -> u8 {
        u8::from(self.vote.is_some())
            | u8::from(self.committed_logged.is_some()) << 1
            | u8::from(self.purged.is_some()) << 2
            | u8::from(!self.places.is_empty()) << 3
    }

    /// Forgets payloads appended before the log was `position` bytes long.
    pub(super) fn forget_before(&mut self, position: u64) {
        while self.recent.front().is_some_and(|(appended, _)| *appended < position) {
            self.recent.pop_front();
        }
        if self.recent.capacity() > 64 && self.recent.len() < self.recent.capacity() / 4 {
            self.recent.shrink_to(self.recent.len() * 2);
        }
    }
}

/// All groups that have records, as the payload of a checkpoint record:
/// `count u32`, then for each `group u32 | has u8 | vote | committed | purged | first u64, count u64`, where `has` tells
/// which of the four follow, a byte string is `len u32 | bytes`, and purged is `index u64` and a byte string.
pub(super) fn encode_checkpoint(groups: &BTreeMap<u32, GroupLog>) -> Vec<u8> {
    fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
        out.put_u32_le(bytes.len() as u32);
        out.put_slice(bytes);
    }
    // A group whose first pointer still waits for its record is not in the log yet.
    let logged = groups.iter().map(|(group, log)| (group, log, log.logged_parts())).filter(|(_, _, has)| *has != 0);
    let mut out = Vec::new();
    out.put_u32_le(logged.clone().count() as u32);
    for (group, log, has) in logged {
        out.put_u32_le(*group);
        out.put_u8(has);
        for pointer in [&log.vote, &log.committed_logged].into_iter().flatten() {
            put_bytes(&mut out, pointer);
        }
        if let Some((index, log_id)) = &log.purged {
            out.put_u64_le(*index);
            put_bytes(&mut out, log_id);
        }
        if !log.places.is_empty() {
            out.put_u64_le(log.first);
            out.put_u64_le(log.places.len() as u64);
        }
    }
    out
}

/// Reads a checkpoint; its entries are all absent, since they stand in earlier segments.
pub(super) fn decode_checkpoint(mut payload: &[u8]) -> Option<BTreeMap<u32, GroupLog>> {
    fn bytes(payload: &mut &[u8]) -> Option<Bytes> {
        let length = payload.try_get_u32_le().ok()? as usize;
        let (head, rest) = payload.split_at_checked(length)?;
        *payload = rest;
        Some(Bytes::copy_from_slice(head))
    }
    let mut groups = BTreeMap::new();
    for _ in 0..payload.try_get_u32_le().ok()? {
        let group = payload.try_get_u32_le().ok()?;
        let has = payload.try_get_u8().ok()?;
        let mut log = GroupLog::default();
        if has & 1 != 0 {
            log.vote = Some(bytes(&mut payload)?);
        }
        if has & 2 != 0 {
            log.committed = Some(bytes(&mut payload)?);
            log.committed_logged = log.committed.clone();
        }
        if has & 4 != 0 {
            log.purged = Some((payload.try_get_u64_le().ok()?, bytes(&mut payload)?));
        }
        if has & 8 != 0 {
            log.first = payload.try_get_u64_le().ok()?;
            let count = usize::try_from(payload.try_get_u64_le().ok()?).ok()?;
            log.first.checked_add(count as u64)?;
            log.places.resize(count, Place::ABSENT);
        }
        groups.insert(group, log);
    }
    payload.is_empty().then_some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: std::ops::Range<u64>) -> GroupLog {
        let mut log = GroupLog::default();
        for index in entries {
            let place = Place { segment: 1, offset: index as u32 * 8, length: 1 };
            log.append(index, place, Some((index * 10, Bytes::from(vec![index as u8]))));
        }
        log
    }

    fn held(log: &GroupLog) -> Vec<Option<u8>> {
        (log.first..log.end()).map(|index| log.recent(index).map(|payload| payload[0])).collect()
    }

    #[test]
    fn the_cache_is_a_suffix_and_the_last_entry_stays() {
        let mut log = log(1..6);
        log.forget_before(30);
        assert_eq!(held(&log), [None, None, Some(3), Some(4), Some(5)]);
        log.purge(1, Bytes::new());
        assert_eq!(held(&log), [None, Some(3), Some(4), Some(5)]);
        log.truncate(5, Some(Bytes::from_static(&[4])));
        assert_eq!(held(&log), [None, Some(3), Some(4)]);
        log.forget_before(1000);
        assert_eq!(held(&log), [None, None, Some(4)]);
        log.purge(3, Bytes::new());
        assert_eq!(held(&log), [Some(4)]);
    }

    #[test]
    fn purging_past_the_end_empties_the_log_and_appending_goes_on_behind_it() {
        let mut log = log(1..4);
        log.purge(7, Bytes::from_static(b"id"));
        assert_eq!((log.first_index(), log.last_index()), (None, None));
        assert!(log.check_append(7, 1).is_err());
        assert!(log.check_append(8, 1).is_ok());
        log.append(8, Place { segment: 1, offset: 0, length: 0 }, Some((0, Bytes::new())));
        assert!(log.check_append(10, 1).is_err());
        assert!(log.check_append(9, usize::MAX).is_err());
        log.purge(3, Bytes::new());
        assert_eq!(log.purged, Some((7, Bytes::from_static(b"id"))));
        assert_eq!(log.first_index(), Some(8));
    }

    #[test]
    fn checkpoints_round_trip() {
        let mut groups = BTreeMap::from([(0, log(3..9)), (7, log(1..2))]);
        let meta = groups.get_mut(&0).unwrap();
        meta.vote = Some(Bytes::from_static(b"vote"));
        meta.purged = Some((2, Bytes::from_static(b"two")));
        meta.committed_logged = Some(Bytes::from_static(b""));
        let bytes = encode_checkpoint(&groups);
        let found = decode_checkpoint(&bytes).unwrap();
        assert_eq!(encode_checkpoint(&found), bytes);
        assert_eq!(found[&0].absent(), Some((3, 8)));
        assert!(decode_checkpoint(&bytes[..bytes.len() - 1]).is_none());

        let waits = GroupLog { committed: Some(Bytes::from_static(b"not written")), ..GroupLog::default() };
        assert_eq!(encode_checkpoint(&BTreeMap::from([(1, waits)])), [0; 4], "nothing of the group is in the log");
    }
}
