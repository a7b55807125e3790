//! The steps of a move of slots, as the shards that give and take apply them.
//!
//! Each step names the move and is refused where the shard is not in the state it expects, so a step may come twice, late
//! or from a driver that another has replaced. What always holds:
//! - an export goes from copying to sealed to released to purged; cancelled it can be before the release, and never after
//! - a move that has ended here never begins again: its id is not above the highest that ended
//! - rows come in only behind the cursor that the last part left, so no part is taken twice or left out

use super::apply::Working;
use super::dedup::Seen;
use super::export::read_pairs;
use super::records::{ProducerKey, decode_history};
use super::slots::{Segment, covers};
use crate::keys::{VERSION_BYTES, split_history_key};
use crate::replica::Applied;
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{
    ActivateSlots, AppliedSequence, ImportRows, ReleaseSlots, ShardOutcome, SlotExport, SlotExportState, SlotImport,
    StartExport, StartImport, shard_command::Change,
};
use cairn_proto::record::v1::{Refusal, ShardSlots};
use std::sync::Arc;

/// A step done, or why not.
type Step = Result<(), Error>;

impl<'c> Working<'c, '_> {
    pub(super) fn change_slots(&mut self, change: &'c Change, at: Applied) -> Result<ShardOutcome> {
        let done = match change {
            Change::StartExport(ask) => self.start_export(ask),
            Change::SealSlots(ask) => self.seal(ask.id, at),
            Change::ReleaseSlots(ask) => self.release(ask, at),
            Change::PurgeSlots(ask) => self.purge(ask.id),
            Change::CancelExport(ask) => self.cancel_export(ask.id),
            Change::StartImport(ask) => self.start_import(ask),
            Change::ImportRows(ask) => self.import(ask),
            Change::ActivateSlots(ask) => self.activate(ask, at),
            Change::DropImport(ask) => self.drop_import(ask.id),
            Change::AddSegment(ask) => self.add_segment(ask, at),
            Change::TrimHistory(ask) => self.trim_history(ask),
            Change::LoadNewest(ask) => self.load_newest(ask),
            Change::ReplaceSegments(ask) => self.replace_segments(ask, at),
            Change::UpsertRows(_) | Change::TimeTick(_) => {
                Err(Error::InvalidArgument("the change is no step of a move".to_owned()))
            }
        };
        match done {
            Ok(()) => Ok(ShardOutcome::default()),
            Err(error @ (Error::Conflict(_) | Error::InvalidArgument(_) | Error::Unavailable(_))) => {
                let refused = Refusal { kind: error.kind().as_str().to_owned(), message: error.to_string() };
                Ok(ShardOutcome { refused: Some(refused), ..ShardOutcome::default() })
            }
            Err(error) => Err(error),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut ShardSlots)) {
        Arc::make_mut(&mut self.slots).change(change);
        self.slots_changed = true;
    }

    fn start_export(&mut self, ask: &StartExport) -> Step {
        let StartExport { id, first, last, epoch } = *ask;
        check_range(first, last)?;
        if let Some(export) = self.slots.export() {
            if export.id == id {
                return Ok(());
            }
            return Err(Error::Conflict(format!("move {id} cannot begin: move {} is under way here", export.id)));
        }
        not_ended(id, self.slots.record().exports_ended)?;
        for slot in first as u16..=last as u16 {
            if self.slots.segment(slot).is_none() {
                return Err(Error::Conflict(format!("slot {slot} is not this shard's, so move {id} cannot take it")));
            }
        }
        self.change(|slots| slots.export = Some(SlotExport { id, first, last, epoch, ..SlotExport::default() }));
        Ok(())
    }

    fn exporting(&self, id: u64) -> Result<SlotExport> {
        let export = self.slots.export().filter(|export| export.id == id);
        export.copied().ok_or_else(|| Error::Conflict(format!("move {id} takes nothing from this shard now")))
    }

    fn seal(&mut self, id: u64, at: Applied) -> Step {
        let export = self.exporting(id)?;
        if export.state() == SlotExportState::Copying {
            let state = SlotExportState::Sealed as i32;
            self.change(|slots| slots.export = Some(SlotExport { state, sealed_index: at.index, ..export }));
        }
        Ok(())
    }

    fn release(&mut self, ask: &ReleaseSlots, at: Applied) -> Step {
        let export = self.exporting(ask.id)?;
        match export.state() {
            SlotExportState::Released => Ok(()),
            SlotExportState::Sealed if export.sealed_index == ask.sealed_index => {
                let released_commit = at.index.saturating_add(self.slots.commit_offset());
                let (state, released_us) = (SlotExportState::Released as i32, at.time_us);
                let released = SlotExport { state, released_commit, released_us, ..export };
                self.change(|slots| slots.export = Some(released));
                Ok(())
            }
            _ => Err(Error::Conflict(format!("the slots of move {} are not sealed at {}", ask.id, ask.sealed_index))),
        }
    }

    fn purge(&mut self, id: u64) -> Step {
        let export = self.exporting(id)?;
        if export.state() != SlotExportState::Released {
            return Err(Error::Conflict(format!("the slots of move {id} are not released")));
        }
        let (first, last) = (export.first as u16, export.last as u16);
        self.purge_rows(first, last);
        self.purge_changes(id);
        let gone = Arc::make_mut(&mut self.slots).give(first, last, export.epoch);
        gone.into_iter().for_each(|segment| self.purge_segment(segment));
        self.change(|slots| {
            slots.export = None;
            slots.exports_ended = slots.exports_ended.max(id);
        });
        Ok(())
    }

    fn cancel_export(&mut self, id: u64) -> Step {
        if let Ok(export) = self.exporting(id) {
            if export.state() == SlotExportState::Released {
                return Err(Error::Conflict(format!("the slots of move {id} are released: it can only be completed")));
            }
            self.purge_changes(id);
            self.change(|slots| slots.export = None);
        }
        // Also where it had not begun: what comes late must not begin it.
        if id > self.slots.record().exports_ended {
            self.change(|slots| slots.exports_ended = id);
        }
        Ok(())
    }

    fn start_import(&mut self, ask: &StartImport) -> Step {
        let StartImport { id, first, last, epoch, origins } = ask;
        check_range(*first, *last)?;
        let ascending = origins.windows(2).all(|pair| pair[0] < pair[1]);
        if origins.first() != Some(first) || origins.last().is_none_or(|origin| origin > last) || !ascending {
            return Err(Error::InvalidArgument(format!(
                "the pieces {origins:?} are not those of slots {first}-{last}"
            )));
        }
        if let Some(import) = self.slots.import() {
            if import.id == *id {
                return Ok(());
            }
            return Err(Error::Conflict(format!("move {id} cannot begin: move {} is under way here", import.id)));
        }
        not_ended(*id, self.slots.record().imports_ended)?;
        for held in &self.slots.record().held {
            if held.first <= *last && held.last >= *first {
                return Err(Error::Conflict(format!("slots {}-{} are here already", held.first, held.last)));
            }
        }
        // Segments may have these slots in their range, which were never here: what comes is in none of them.
        self.forget_slots(*first as u16, *last as u16);
        let import = SlotImport {
            id: *id,
            first: *first,
            last: *last,
            epoch: *epoch,
            origins: origins.clone(),
            ..SlotImport::default()
        };
        self.change(|slots| slots.import = Some(import));
        Ok(())
    }

    fn importing(&self, id: u64) -> Result<SlotImport> {
        let import = self.slots.import().filter(|import| import.id == id);
        import.cloned().ok_or_else(|| Error::Conflict(format!("move {id} brings nothing to this shard now")))
    }

    fn import(&mut self, ask: &'c ImportRows) -> Step {
        let mut import = self.importing(ask.id)?;
        if import.cursor != ask.expected_cursor {
            return Err(Error::Conflict(format!("this part of move {} is not the next one", ask.id)));
        }
        let strange = |what: &str| Error::InvalidArgument(format!("a part of move {} holds {what}", ask.id));
        let mut rows = Vec::new();
        for pair in read_pairs(&ask.rows) {
            let (key, value) = pair?;
            let slot = split_history_key(key).map(|key| key.slot).ok_or_else(|| strange("a key cut short"))?;
            if !covers(import.first, import.last, slot) {
                return Err(strange("a row of another slot"));
            }
            let row = decode_history(key, value).map_err(|_| strange("a row that is not understood"))?;
            import.commit_max = import.commit_max.max(row.commit);
            import.committed_us_max = import.committed_us_max.max(row.committed_us);
            rows.push((&key[..key.len() - VERSION_BYTES], row));
        }
        let origin_of = |origin: u32| import.origins.binary_search(&origin).ok().map(|_| origin as u16);
        for sequence in &ask.sequences {
            let origin = origin_of(sequence.origin).ok_or_else(|| strange("a sequence of no piece"))?;
            let segment = Segment::Moved { id: ask.id, origin };
            let producer = ProducerKey { segment, name: sequence.producer.to_vec() };
            if self.dedup.check(&producer, sequence.sequence)? == Seen::No {
                // Index 0: visible from the activation on.
                let applied = AppliedSequence { sequence: sequence.sequence, index: 0, rows: sequence.rows };
                self.dedup.add(producer, applied);
            }
        }
        import.rows += rows.len() as u64;
        import.cursor = ask.next_cursor.clone();
        rows.into_iter().for_each(|(key, row)| self.rows.bring(key, row));
        self.change(|slots| slots.import = Some(import));
        Ok(())
    }

    fn activate(&mut self, ask: &ActivateSlots, at: Applied) -> Step {
        let import = self.importing(ask.id)?;
        if import.cursor != ask.cursor {
            return Err(Error::Conflict(format!("not everything of move {} has come yet", ask.id)));
        }
        let floor = ask.commit_floor.max(import.commit_max);
        Arc::make_mut(&mut self.slots).hold(&import, at.index);
        self.change(|slots| {
            slots.import = None;
            slots.imports_ended = slots.imports_ended.max(import.id);
            // The next commit, at index + 1 or later, is above the floor.
            slots.commit_offset = slots.commit_offset.max(floor.saturating_sub(at.index));
        });
        Ok(())
    }

    fn drop_import(&mut self, id: u64) -> Step {
        if let Ok(import) = self.importing(id) {
            self.purge_rows(import.first as u16, import.last as u16);
            for origin in &import.origins {
                self.purge_segment(Segment::Moved { id, origin: *origin as u16 });
            }
            self.change(|slots| slots.import = None);
        }
        if id > self.slots.record().imports_ended {
            self.change(|slots| slots.imports_ended = id);
        }
        Ok(())
    }
}

fn check_range(first: u32, last: u32) -> Step {
    if first > last || last as usize >= SLOTS {
        return Err(Error::InvalidArgument(format!(
            "{first}-{last} is no range of slots; they go from 0 to {}",
            SLOTS - 1
        )));
    }
    Ok(())
}

fn not_ended(id: u64, ended: u64) -> Step {
    if id <= ended {
        return Err(Error::Conflict(format!("move {id} has ended here, as has {ended}")));
    }
    Ok(())
}
