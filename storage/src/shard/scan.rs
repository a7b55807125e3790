//! Many rows in key order: for SQL, exports, backfills.

use super::merged::merged;
use super::records::{RowRef, decode_history, decode_latest};
use super::{HISTORY, LATEST, Shard};
use crate::engine::{Cf, IterOptions};
use crate::keys::{VERSION_BYTES, push_latest_key, push_prefix, slot_of, split_latest_key};
use crate::{Error, Result};
use std::ops::{ControlFlow, Range};

/// Whose rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All entities of the shard, in order of (slot, entity key): those that a move is still bringing are left out.
    All,
    /// Entities of these slots.
    Slots(Range<u16>),
    /// One entity.
    Entity(&'a [u8]),
}

/// Gets an entity key and a row; breaks to stop.
type Visit<'v> = &'v mut dyn FnMut(&[u8], RowRef<'_>) -> ControlFlow<()>;

impl Shard {
    /// Shows `visit` every row in `scope`: entity by entity, each newest first. Sees the state at the call.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Unavailable` while a segment is not on this node; some may have been visited.
    pub fn scan(&self, storage_id: u32, scope: Scope<'_>, visit: Visit<'_>) -> Result<()> {
        self.walk(HISTORY, storage_id, scope, &mut |key, value| {
            let row = decode_history(key, value)?;
            // Long enough: a history key just decoded.
            let entity = split_latest_key(&key[..key.len() - VERSION_BYTES]).map_or(&[][..], |(_, _, entity)| entity);
            Ok(visit(entity, row))
        })
    }

    /// Shows `visit` the newest row of every entity in `scope`. Sees the state at the call.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; some may have been visited.
    pub fn scan_latest(&self, storage_id: u32, scope: Scope<'_>, visit: Visit<'_>) -> Result<()> {
        self.walk(LATEST, storage_id, scope, &mut |key, value| {
            let entity = split_latest_key(key).map_or(&[][..], |(_, _, entity)| entity);
            Ok(visit(entity, decode_latest(value)?))
        })
    }

    fn walk(
        &self,
        cf: Cf,
        storage_id: u32,
        scope: Scope<'_>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let bringing = self.slots();
        let db = self.group.db();
        let mut prefix = Vec::new();
        let mut slots = match scope {
            Scope::All => 0..cairn_proto::SLOTS as u16,
            Scope::Slots(slots) => slots,
            Scope::Entity(key) if bringing.is_importing(slot_of(key)) => return Ok(()),
            Scope::Entity(key) => {
                push_latest_key(storage_id, key, &mut prefix);
                let iter = db.iter(cf, IterOptions { lower: Some(prefix.clone()), ..IterOptions::default() })?;
                let tiers = self.tiers();
                let slot = slot_of(key);
                let segments = tiers.of(storage_id, slot, slot).filter(|_| cf == HISTORY);
                let mut iter = merged(iter, self.segment_store(), segments)?;
                iter.seek(&prefix)?;
                let length = prefix.len() + if cf == HISTORY { VERSION_BYTES } else { 0 };
                while let Some((key, value)) = iter.entry() {
                    if !key.starts_with(&prefix) || key.len() != length || visit(key, value)?.is_break() {
                        break;
                    }
                    iter.advance()?;
                }
                return Ok(());
            }
        };
        let iter = db.iter(cf, IterOptions { fill_cache: false, ..IterOptions::default() })?;
        let tiers = self.tiers();
        let last = slots.end.saturating_sub(1);
        let segments = tiers.of(storage_id, slots.start, last).filter(|_| cf == HISTORY);
        let mut iter = merged(iter, self.segment_store(), segments)?;
        while slots.start < slots.end {
            prefix.clear();
            push_prefix(slots.start, storage_id, &mut prefix);
            iter.seek(&prefix)?;
            loop {
                let Some((key, value)) = iter.entry() else { return Ok(()) };
                let Some((slot, found, _)) = split_latest_key(key) else {
                    return Err(Error::Corrupt(format!("a key of {} bytes is cut short", key.len())));
                };
                if bringing.is_importing(slot) {
                    slots.start = slot.saturating_add(1);
                    break;
                }
                if (slot, found) != (slots.start, storage_id) {
                    // Past this slot's rows of the view: on to the next slot that has any rows.
                    slots.start = if slot == slots.start { slot + 1 } else { slot };
                    break;
                }
                if visit(key, value)?.is_break() {
                    return Ok(());
                }
                iter.advance()?;
            }
        }
        Ok(())
    }
}
