//! History as columns: what lies in segments is handed on as it was read. No row of it is packed, and features are read of
//! those row groups alone in which a row is wanted.
//!
//! Each row comes once. No row is in two segments; one of the database that is as old as they are is sought in them.

use super::merged::{history_iter, seek_slot};
use super::records::{RowRef, decode_history};
use super::tiers::{file_of, has_slot};
use super::{Scope, Shard, store};
use crate::keys::{EntityKeyDecoder, VERSION_BYTES, push_prefix, split_history_key, split_latest_key};
use crate::segment::GroupColumns;
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, BooleanArray, TimestampMicrosecondArray, UInt32Array};
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use arrow_select::take::take;
use cairn_proto::record::v1::Segment;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::sync::Arc;

/// Which rows of a view, and what of them.
#[derive(Debug, Clone)]
pub struct ColumnScan<'a> {
    pub storage_id: u32,
    pub slots: Range<u16>,
    /// Rows of segments with other event times are left out.
    pub event_us: RangeInclusive<i64>,
    /// Features, by their place in the view.
    pub features: &'a [usize],
    /// Whether these are wanted, too.
    pub keys: bool,
    pub committed: bool,
    pub deleted: bool,
}

/// A part of the answer.
pub enum Piece<'a> {
    /// An entity key, and a row of the database at whatever event time.
    Row(&'a [u8], RowRef<'a>),
    /// The rows of a row group that are wanted, perhaps none.
    Columns(Columns),
}

/// Rows of a segment, each column with one value a row. Times are `Timestamp(us, UTC)`.
#[derive(Debug)]
pub struct Columns {
    pub rows: usize,
    /// In join key order; none when they were not asked for.
    pub keys: Vec<ArrayRef>,
    pub event: ArrayRef,
    pub created: ArrayRef,
    pub committed: Option<ArrayRef>,
    pub deleted: Option<ArrayRef>,
    /// In the order asked; null where a row deletes.
    pub features: Vec<ArrayRef>,
}

impl Shard {
    /// Shows `visit` every row of the view in these slots, each once, in no order. Sees the state at the call. Slots that a move
    /// is still bringing are left out.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Unavailable` while a segment is not on this node; some may have been visited.
    pub fn scan_columns(
        &self,
        ask: &ColumnScan<'_>,
        visit: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let bringing = self.slots();
        let db = self.group.db();
        // Of an earlier moment than the list of segments: what leaves the database meanwhile is in a segment by then.
        let mut iter = history_iter(&db, None)?;
        let tiers = self.tiers();
        let last = ask.slots.end.saturating_sub(1);
        if tiers.is_between() {
            // Segments and those that take their place are both in the list.
            return self
                .scan(ask.storage_id, Scope::Slots(ask.slots.clone()), &mut |key, row| visit(Piece::Row(key, row)));
        }
        let segments: Vec<&Segment> = tiers.of(ask.storage_id, ask.slots.start, last).collect();
        let mut slots = ask.slots.clone();
        let mut prefix = Vec::new();
        while let Some(slot) = seek_slot(&mut iter, ask.storage_id, slots.clone(), &[])? {
            slots.start = slot.saturating_add(1);
            if bringing.is_importing(slot) {
                continue;
            }
            prefix.clear();
            push_prefix(slot, ask.storage_id, &mut prefix);
            let here: Vec<&Segment> = segments.iter().copied().filter(|it| has_slot(it, slot)).collect();
            while let Some((key, value)) = iter.entry().filter(|(key, _)| key.starts_with(&prefix)) {
                let row = decode_history(key, value)?;
                if !self.is_in(&here, key, row.event_us)? {
                    // Long enough: a history key just decoded.
                    let entity = split_latest_key(&key[..key.len() - VERSION_BYTES]).map_or(&[][..], |(.., it)| it);
                    if visit(Piece::Row(entity, row)).is_break() {
                        return Ok(());
                    }
                }
                iter.advance()?;
            }
        }
        drop(iter);
        for segment in &segments {
            if segment.event_max_us < *ask.event_us.start() || segment.event_min_us > *ask.event_us.end() {
                continue;
            }
            let file = store(self.segment_store())?.open(&file_of(segment)?)?;
            let begins = |number: usize| file.first_key(number).and_then(split_history_key).map(|key| key.slot);
            for number in 0..file.groups() {
                let (first, next) = (begins(number), begins(number + 1));
                if first.is_none_or(|slot| slot >= ask.slots.end) || next.is_some_and(|slot| slot < ask.slots.start) {
                    continue;
                }
                let group = file.columns(number)?;
                let rows = wanted(ask, segment, &group);
                let join_keys = &file.layout().join_keys;
                let keys = if ask.keys { Some(EntityKeyDecoder::new(join_keys)?) } else { None };
                if visit(Piece::Columns(columns(ask, &group, keys, &rows)?)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Shard {
    /// Whether one of the segments has the row of this history key. Few rows of the database are as old as segments: those
    /// that came late, or are about to leave.
    fn is_in(&self, segments: &[&Segment], history_key: &[u8], event_us: i64) -> Result<bool> {
        for segment in segments {
            if (segment.event_min_us..=segment.event_max_us).contains(&event_us) {
                let store = store(self.segment_store())?;
                let file = store.open(&file_of(segment)?)?;
                let group = store.group(&file, file.group_of(history_key))?;
                if group.key(group.lower_bound(history_key)) == history_key {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// The rows that are asked for, as ranges that ascend.
fn wanted(ask: &ColumnScan<'_>, segment: &Segment, group: &GroupColumns) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for entity in 0..group.entities() {
        let (slot, _) = group.entity(entity);
        if !ask.slots.contains(&slot) || !has_slot(segment, slot) {
            continue;
        }
        let rows = group.rows(entity);
        let newest_first = group.event_us.get(rows.clone()).unwrap_or_default();
        let start = rows.start + newest_first.partition_point(|event_us| event_us > ask.event_us.end());
        let end = rows.start + newest_first.partition_point(|event_us| event_us >= ask.event_us.start());
        match found.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end == start => last.end = end,
            _ => found.push(start..end),
        }
    }
    found
}

/// Which rows of a group, ready to be cut out of a column.
enum Cut {
    All,
    Slice(Range<usize>),
    Rows(UInt32Array),
}

impl Cut {
    fn new(rows: &[Range<usize>], of: usize) -> Self {
        match rows {
            [] => Self::Slice(0..0),
            [one] if *one == (0..of) => Self::All,
            [one] => Self::Slice(one.clone()),
            many => Self::Rows(many.iter().flat_map(|rows| rows.clone().map(|row| row as u32)).collect()),
        }
    }

    fn of(&self, column: &ArrayRef) -> Result<ArrayRef> {
        match self {
            Self::All => Ok(Arc::clone(column)),
            Self::Slice(rows) => Ok(column.slice(rows.start, rows.len())),
            Self::Rows(rows) => take(column, rows, None).map_err(|error| Error::Internal(error.to_string())),
        }
    }
}

fn columns(
    ask: &ColumnScan<'_>,
    group: &GroupColumns,
    keys: Option<EntityKeyDecoder>,
    rows: &[Range<usize>],
) -> Result<Columns> {
    let all = group.event_us.len();
    let cut = Cut::new(rows, all);
    let rows = rows.iter().map(Range::len).sum();
    let times = |values: &ScalarBuffer<i64>| -> Result<ArrayRef> {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::new(values.clone(), None).with_timezone("UTC"));
        cut.of(&times)
    };
    let (event, created) = (times(&group.event_us)?, times(&group.created_us)?);
    if rows == 0 {
        let (keys, features) = Default::default();
        return Ok(Columns { rows, keys, event, created, committed: None, deleted: None, features });
    }
    let keys = keys.map(|decoder| of_rows(group, decoder)).transpose()?.unwrap_or_default();
    let keys = keys.iter().map(|column| cut.of(column)).collect::<Result<_>>()?;
    let committed = match ask.committed {
        // Without any above the least there is all are that.
        true => match group.committed_above(i64::MIN)? {
            Some(values) => Some(times(&values)?),
            None => Some(times(&vec![i64::MIN; all].into())?),
        },
        false => None,
    };
    let deleted = match ask.deleted {
        true => {
            let deleted = group.deleted()?.unwrap_or_else(|| BooleanArray::from(BooleanBuffer::new_unset(all)));
            let deleted: ArrayRef = Arc::new(deleted);
            Some(cut.of(&deleted)?)
        }
        false => None,
    };
    let features = match ask.features {
        [] => Vec::new(),
        features => group.features(features)?.iter().map(|column| cut.of(column)).collect::<Result<_>>()?,
    };
    Ok(Columns { rows, keys, event, created, committed, deleted, features })
}

/// The join keys of every row of a group.
fn of_rows(group: &GroupColumns, mut decoder: EntityKeyDecoder) -> Result<Vec<ArrayRef>> {
    let mut entities: Vec<u32> = Vec::with_capacity(group.event_us.len());
    for entity in 0..group.entities() {
        decoder.push(group.entity(entity).1)?;
        entities.extend(std::iter::repeat_n(entity as u32, group.rows(entity).len()));
    }
    let entities = UInt32Array::from(entities);
    let repeat = |column: &ArrayRef| take(column, &entities, None);
    let columns = decoder.finish();
    columns.iter().map(repeat).collect::<Result<_, _>>().map_err(|error| Error::Internal(error.to_string()))
}
