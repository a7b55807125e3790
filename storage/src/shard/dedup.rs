//! A (producer, sequence) takes effect at most once in the rows of one view.
//!
//! For each producer of a view the shard keeps its highest sequence, and which of the last [`SEQUENCE_WINDOW`] sequences were
//! applied, each under a key of its own so that a command writes two small records whatever the window. Sequences may
//! come in any order inside the window; one below it is refused, because nobody can tell any more. Slots that came by a
//! move brought their producers' sequences along, as a segment of their own: there a sequence is another one.

use super::SYSTEM;
use super::records::ProducerKey;
use super::slots::Segment;
use crate::engine::{Batch, Db};
use crate::{Error, Result};
use cairn_proto::record::v1::{AppliedSequence, ProducerState};
use prost::Message;
use std::collections::BTreeMap;

/// Sequences remembered per producer.
pub const SEQUENCE_WINDOW: u64 = 4096;

/// Above this, sequences that left the window are deleted as a range and not one by one.
const POINT_DELETES_MAX: u64 = 256;

/// What is known of a (producer, sequence).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Seen {
    No,
    /// Applied by this entry.
    Yes(AppliedSequence),
    /// Below the window, which ends at this highest sequence.
    Unknown {
        highest: u64,
    },
}

/// Sequences checked and applied by one apply; later checks see earlier ones.
pub(super) struct Dedup<'a> {
    db: &'a Db,
    producers: BTreeMap<ProducerKey, Producer>,
}

#[derive(Default)]
struct Producer {
    /// Highest sequence on disk.
    stored: Option<u64>,
    /// Highest sequence with those added.
    highest: Option<u64>,
    added: BTreeMap<u64, AppliedSequence>,
}

impl<'a> Dedup<'a> {
    pub(super) fn new(db: &'a Db) -> Self {
        Self { db, producers: BTreeMap::new() }
    }

    pub(super) fn check(&mut self, producer: &ProducerKey, sequence: u64) -> Result<Seen> {
        if !self.producers.contains_key(producer) {
            let stored = match self.db.get(SYSTEM, &producer.state())? {
                None => None,
                Some(value) => Some(decode::<ProducerState>(&value)?.highest_sequence),
            };
            let state = Producer { stored, highest: stored, added: BTreeMap::new() };
            self.producers.insert(producer.clone(), state);
        }
        let Some(state) = self.producers.get(producer) else { return Ok(Seen::No) };
        let Some(highest) = state.highest else { return Ok(Seen::No) };
        if sequence < window_start(highest) {
            return Ok(Seen::Unknown { highest });
        }
        if let Some(applied) = state.added.get(&sequence) {
            return Ok(Seen::Yes(*applied));
        }
        if state.stored.is_none_or(|stored| sequence > stored) {
            return Ok(Seen::No);
        }
        match self.db.get(SYSTEM, &producer.sequence(sequence))? {
            None => Ok(Seen::No),
            Some(value) => Ok(Seen::Yes(decode(&value)?)),
        }
    }

    /// Notes a sequence that [`Self::check`] did not know.
    pub(super) fn add(&mut self, producer: ProducerKey, applied: AppliedSequence) {
        let state = self.producers.entry(producer).or_default();
        state.highest = state.highest.max(Some(applied.sequence));
        state.added.insert(applied.sequence, applied);
    }

    /// Forgets a segment, which is not asked for again.
    pub(super) fn forget(&mut self, segment: Segment) {
        self.producers.retain(|producer, _| producer.segment != segment);
    }

    pub(super) fn write(self, batch: &mut Batch<'_>) {
        for (producer, state) in self.producers {
            let Some(highest) = state.highest.filter(|_| !state.added.is_empty()) else { continue };
            let start = window_start(highest);
            if let Some(stored) = state.stored {
                let from = window_start(stored);
                if start - from > POINT_DELETES_MAX {
                    batch.delete_range(SYSTEM, &producer.sequence(from), &producer.sequence(start));
                } else {
                    (from..start).for_each(|sequence| batch.delete(SYSTEM, &producer.sequence(sequence)));
                }
            }
            for (sequence, applied) in state.added.range(start..) {
                batch.put(SYSTEM, &producer.sequence(*sequence), &applied.encode_to_vec());
            }
            let record = ProducerState { highest_sequence: highest, recent: Vec::new() };
            batch.put(SYSTEM, &producer.state(), &record.encode_to_vec());
        }
    }
}

/// The lowest sequence still remembered.
fn window_start(highest: u64) -> u64 {
    highest.saturating_sub(SEQUENCE_WINDOW - 1)
}

fn decode<M: Message + Default>(value: &[u8]) -> Result<M> {
    M::decode(value).map_err(|error| Error::Corrupt(format!("a producer's record does not decode: {error}")))
}
