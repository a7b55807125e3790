//! What a move of slots needs next, from what its two shards and meta say of it.
//!
//! Whoever drives a move asks this again and again, on any node, and proposes what it is told, in order, up to the first
//! refusal. A replica or a catalog that is behind does no harm: each command is refused where it comes too late, and a
//! part of a copy is read from a replica that knows of the export, and of the seal if there is one, or not at all.

use super::{Part, Shard};
use crate::Result;
use cairn_proto::record::v1::{
    ActivateSlots, CancelExport, DropImport, EndSlotMove, ImportRows, PurgeSlots, ReleaseSlots, SealSlots, SlotExport,
    SlotExportState, SlotImport, SlotMove, SlotMoveState, StartExport, StartImport, SwitchSlotMap, meta_command,
    shard_command::Change,
};

/// A command of a move, and whose log it goes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// The shard that gives the slots.
    From(Change),
    /// The shard that takes them.
    To(Change),
    Meta(Box<meta_command::Change>),
}

/// The next commands of a move; none where these replicas are too far behind to tell.
///
/// # Errors
/// `Corrupt`, `Io`.
pub fn next_asks(it: &SlotMove, from: &Shard, to: &Shard) -> Result<Vec<Ask>> {
    let SlotMove { id, first, last, epoch, .. } = *it;
    let (giving, taking) = (from.slots(), to.slots());
    let export = giving.export().filter(|export| export.id == id);
    let import = taking.import().filter(|import| import.id == id);
    let export_ended = giving.record().exports_ended >= id;
    let import_ended = taking.record().imports_ended >= id;
    let released = export.is_some_and(|export| export.state() == SlotExportState::Released);
    if it.state() == SlotMoveState::Switched {
        return Ok(match (export, export_ended) {
            (Some(_), _) => vec![Ask::From(Change::PurgeSlots(PurgeSlots { id }))],
            (None, true) => vec![meta(meta_command::Change::EndSlotMove(EndSlotMove { id }))],
            (None, false) => Vec::new(),
        });
    }
    if taking.has_of(id) {
        return Ok(vec![meta(meta_command::Change::SwitchSlotMap(SwitchSlotMap { id }))]);
    }
    if it.state() == SlotMoveState::Cancelling && !released {
        return Ok(vec![match (export_ended, import_ended) {
            (false, _) => Ask::From(Change::CancelExport(CancelExport { id })),
            (true, false) => Ask::To(Change::DropImport(DropImport { id })),
            (true, true) => meta(meta_command::Change::EndSlotMove(EndSlotMove { id })),
        }]);
    }
    match (export, import) {
        _ if export_ended || import_ended => Ok(Vec::new()),
        (None, _) => Ok(vec![Ask::From(Change::StartExport(StartExport { id, first, last, epoch }))]),
        (Some(_), None) => {
            let origins = giving.origins(first as u16, last as u16);
            Ok(vec![Ask::To(Change::StartImport(StartImport { id, first, last, epoch, origins }))])
        }
        (Some(export), Some(import)) => {
            // Not found: the export has ended meanwhile.
            let part = match from.export_part(id, &import.cursor) {
                Err(crate::Error::Conflict(_)) => return Ok(Vec::new()),
                part => part?,
            };
            Ok(copy(export, import, part))
        }
    }
}

fn meta(change: meta_command::Change) -> Ask {
    Ask::Meta(Box::new(change))
}

/// Brings one part and, behind the last one, goes a step on.
fn copy(export: &SlotExport, import: &SlotImport, part: Part) -> Vec<Ask> {
    let id = export.id;
    let Part { next_cursor, rows, row_count, sequences, is_last, .. } = part;
    let mut asks = Vec::new();
    let cursor: bytes::Bytes = next_cursor.into();
    if row_count > 0 || !sequences.is_empty() || cursor != import.cursor {
        let (expected_cursor, next_cursor) = (import.cursor.clone(), cursor.clone());
        let part = ImportRows { id, expected_cursor, next_cursor, rows: rows.into(), sequences };
        asks.push(Ask::To(Change::ImportRows(part)));
    }
    if is_last {
        asks.push(match export.state() {
            SlotExportState::Copying => Ask::From(Change::SealSlots(SealSlots { id })),
            SlotExportState::Sealed => {
                Ask::From(Change::ReleaseSlots(ReleaseSlots { id, sealed_index: export.sealed_index }))
            }
            SlotExportState::Released => {
                let (commit_floor, time_floor_us) = (export.released_commit, export.released_us);
                Ask::To(Change::ActivateSlots(ActivateSlots { id, cursor, commit_floor, time_floor_us }))
            }
        });
    }
    asks
}
