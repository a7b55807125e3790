//! The heart of both reads: rows of one view, for one list of keys and times, decoded into columns in request order.
//!
//! Rows arrive in whatever order shards give them. The row that is next in request order is decoded straight from
//! storage's memory; one that comes early waits as a copy of its packed bytes. Nothing is allocated per row or cell.

use crate::plan::{FeaturePlan, KeySet, ViewPlan};
use crate::source::{Lookup, RowRef, RowSource};
use crate::status::RowStatus;
use crate::{Error, Result};
use arrow_array::ArrayRef;
use cairn_storage::keys::EntityKeys;
use cairn_storage::row::RowDecoder;

/// The cutoffs of one row of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Latest event time, from which age is measured too.
    pub event_us: i64,
    /// Latest created time.
    pub created_us: i64,
}

/// What one view answers.
pub(crate) struct ViewRows {
    /// One a projected feature.
    pub columns: Vec<ArrayRef>,
    pub status: Vec<RowStatus>,
    /// Event time of the row that answered (or was too old), else 0. Empty unless asked for.
    pub event_us: Vec<i64>,
}

/// Encoded keys of one key set, and which rows have one.
pub(crate) struct Keys {
    encoded: EntityKeys,
    /// Rows with a key, ascending. Storage sorts them as they lie on disk.
    present: Vec<u32>,
}

impl Keys {
    /// # Errors
    /// What [`EntityKeys::encode`] refuses.
    pub fn encode(plan: &FeaturePlan, set: &KeySet, required: &[ArrayRef]) -> Result<Self> {
        let columns: Option<Vec<ArrayRef>> = set.columns.iter().map(|at| required.get(*at).cloned()).collect();
        let columns =
            columns.ok_or_else(|| Error::internal(format!("a plan of {} columns misses one", plan.required.len())))?;
        let encoded = EntityKeys::encode(&set.fields, &columns)?;
        let present = (0..encoded.len()).filter(|row| encoded.get(*row).is_some()).map(|row| row as u32).collect();
        Ok(Self { encoded, present })
    }

    pub fn get(&self, row: usize) -> Option<&[u8]> {
        self.encoded.get(row)
    }

    pub fn present(&self) -> &[u32] {
        &self.present
    }

    pub fn encoded(&self) -> &EntityKeys {
        &self.encoded
    }
}

/// The newest rows as they stand, for a read about one moment that most newest rows satisfy.
///
/// A newest row from after the moment (a time in the future) gives way to the history before it.
pub(crate) fn newest(
    view: &ViewPlan,
    keys: &Keys,
    rows: usize,
    moment: Moment,
    want_events: bool,
    source: &dyn RowSource,
) -> Result<ViewRows> {
    let list: Vec<&[u8]> = keys.present().iter().filter_map(|row| keys.get(*row as usize)).collect();
    let mut gather = Gather::new(view, rows, want_events);
    gather.skip_missing(keys);
    let mut later: Vec<u32> = Vec::new();
    source.latest(view.storage_id, &list, &mut |n, found| {
        let Some(row) = keys.present().get(n).copied() else { return };
        match found {
            Some(found) if found.event_us > moment.event_us || found.created_us > moment.created_us => later.push(row),
            found => gather.settle(row as usize, moment, found),
        }
    })?;
    if !later.is_empty() {
        later.sort_unstable();
        history(view, keys, &later, |_| Some(moment), i64::MAX, &mut gather, source)?;
    }
    gather.finish()
}

/// The newest rows within each row's own cutoffs. Rows without a moment have no answer.
pub(crate) fn as_of(
    view: &ViewPlan,
    keys: &Keys,
    rows: usize,
    moment: impl Fn(usize) -> Option<Moment>,
    known_us: i64,
    want_events: bool,
    source: &dyn RowSource,
) -> Result<ViewRows> {
    let mut gather = Gather::new(view, rows, want_events);
    gather.skip_missing(keys);
    history(view, keys, keys.present(), moment, known_us, &mut gather, source)?;
    gather.finish()
}

fn history(
    view: &ViewPlan,
    keys: &Keys,
    order: &[u32],
    moment: impl Fn(usize) -> Option<Moment>,
    known_us: i64,
    gather: &mut Gather<'_>,
    source: &dyn RowSource,
) -> Result<()> {
    let mut asked: Vec<(u32, Moment)> = Vec::with_capacity(order.len());
    let mut lookups: Vec<Lookup<'_>> = Vec::with_capacity(order.len());
    for row in order {
        match (keys.get(*row as usize), moment(*row as usize)) {
            (Some(key), Some(moment)) => {
                let Moment { event_us, created_us } = moment;
                lookups.push(Lookup { key, event_us, created_us, committed_us: known_us });
                asked.push((*row, moment));
            }
            _ => gather.nothing(*row as usize),
        }
    }
    source.as_of(view.storage_id, &lookups, &mut |n, found| {
        if let Some((row, moment)) = asked.get(n) {
            gather.settle(*row as usize, *moment, found);
        }
    })
}

/// Puts rows back into request order while decoding them.
struct Gather<'p> {
    view: &'p ViewPlan,
    decoder: RowDecoder,
    status: Vec<RowStatus>,
    event_us: Vec<i64>,
    /// Rows before this one are decoded.
    next: usize,
    /// Where early rows wait in `arena`; empty until the first one comes.
    waiting: Vec<Span>,
    arena: Vec<u8>,
    failed: Option<Error>,
}

#[derive(Debug, Clone, Copy)]
enum Span {
    Unknown,
    Null,
    Packed { start: usize, len: u32 },
}

impl<'p> Gather<'p> {
    fn new(view: &'p ViewPlan, rows: usize, want_events: bool) -> Self {
        Self {
            view,
            decoder: RowDecoder::new(&view.schema, &view.projection, rows),
            status: vec![RowStatus::NotFound; rows],
            event_us: if want_events { vec![0; rows] } else { Vec::new() },
            next: 0,
            waiting: Vec::new(),
            arena: Vec::new(),
            failed: None,
        }
    }

    /// Rows that are not looked up have no answer.
    fn skip_missing(&mut self, keys: &Keys) {
        if keys.present().len() == self.status.len() {
            return;
        }
        let mut asked = vec![false; self.status.len()];
        for row in keys.present() {
            if let Some(asked) = asked.get_mut(*row as usize) {
                *asked = true;
            }
        }
        for (row, asked) in asked.into_iter().enumerate() {
            if !asked {
                self.nothing(row);
            }
        }
    }

    fn settle(&mut self, row: usize, moment: Moment, found: Option<RowRef<'_>>) {
        let Some(found) = found.filter(|found| !found.is_deletion()) else { return self.nothing(row) };
        let (Some(status), ttl_us) = (self.status.get_mut(row), self.view.ttl_us) else { return };
        let too_old = ttl_us > 0 && moment.event_us.saturating_sub(found.event_us) > ttl_us;
        *status = if too_old { RowStatus::OutsideMaxAge } else { RowStatus::Found };
        if let Some(event_us) = self.event_us.get_mut(row) {
            *event_us = found.event_us;
        }
        if too_old {
            return self.nothing(row);
        }
        if row == self.next {
            let pushed = self.decoder.push(found.packed);
            self.advance(pushed);
        } else {
            let span = Span::Packed { start: self.arena.len(), len: found.packed.len() as u32 };
            self.arena.extend_from_slice(found.packed);
            self.wait(row, span);
        }
    }

    fn nothing(&mut self, row: usize) {
        if row == self.next {
            self.decoder.push_null();
            self.advance(Ok(()));
        } else {
            self.wait(row, Span::Null);
        }
    }

    fn wait(&mut self, row: usize, span: Span) {
        if self.waiting.is_empty() {
            self.waiting.resize(self.status.len(), Span::Unknown);
        }
        if let Some(place) = self.waiting.get_mut(row) {
            *place = span;
        }
    }

    /// Row `next` was pushed; so are the rows behind it that wait already.
    fn advance(&mut self, mut pushed: Result<(), cairn_storage::Error>) {
        self.next += 1;
        while pushed.is_ok() {
            pushed = match self.waiting.get(self.next).copied() {
                None | Some(Span::Unknown) => break,
                Some(Span::Null) => {
                    self.decoder.push_null();
                    Ok(())
                }
                Some(Span::Packed { start, len }) => {
                    let packed = self.arena.get(start..start + len as usize).unwrap_or_default();
                    self.decoder.push(packed)
                }
            };
            self.next += 1;
        }
        if let Err(error) = pushed {
            self.failed.get_or_insert(error.into());
        }
    }

    fn finish(self) -> Result<ViewRows> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.next != self.status.len() {
            let missing = self.status.len() - self.next;
            return Err(Error::Internal(format!(
                "feature view `{}`: the row source left {missing} rows unanswered",
                self.view.name
            )));
        }
        Ok(ViewRows { columns: self.decoder.finish()?, status: self.status, event_us: self.event_us })
    }
}
