//! The answers of one view to many rows of a spine, out of one walk over its history.

use crate::fetch::{Keys, Moment, ViewRows};
use crate::plan::ViewPlan;
use crate::source::RowSource;
use crate::status::RowStatus;
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, new_null_array};
use arrow_select::interleave::interleave;
use cairn_storage::shard::{Place, Sweep, Target};
use cairn_storage::types::arrow_type;
use std::ops::Range;

/// Where the values of each row of a window are.
pub(super) struct ViewSweep {
    /// Of each feature, its arrays; the first holds one null.
    columns: Vec<Vec<ArrayRef>>,
    /// Of each row: which of the arrays, and where in it.
    places: Vec<(u32, u32)>,
    status: Vec<RowStatus>,
}

impl ViewSweep {
    /// `None` when the source has no such way. Of the rows of one key, a later one in event time must not have the
    /// earlier cutoff in created time.
    ///
    /// - `rows`: of the window
    /// - `statuses`: whether it matters that a row is too old rather than missing
    ///
    /// # Errors
    /// What the source reports.
    pub fn new(
        view: &ViewPlan,
        keys: &Keys,
        rows: usize,
        moment: impl Fn(usize) -> Option<Moment>,
        committed_us: i64,
        statuses: bool,
        source: &dyn RowSource,
    ) -> Result<Option<Self>> {
        let target = |row: &u32| {
            let Moment { event_us, created_us } = moment(*row as usize)?;
            Target::new(keys.encoded(), *row, event_us, created_us)
        };
        let mut targets = Vec::with_capacity(keys.present().len());
        targets.extend(keys.present().iter().filter_map(target));
        let first_us = targets.iter().map(|it| it.event_us).min().unwrap_or(i64::MIN);
        let ask = Sweep {
            storage_id: view.storage_id,
            schema: &view.schema,
            projection: &view.projection,
            keys: keys.encoded(),
            committed_us,
            oldest_us: if statuses || view.ttl_us == 0 { i64::MIN } else { first_us.saturating_sub(view.ttl_us) },
        };
        let Some(shares) = source.sweep(&ask, targets)? else { return Ok(None) };
        let fields = view.projection.iter().filter_map(|at| view.schema.fields().get(*at));
        let null = |field: &cairn_proto::record::v1::Field| {
            vec![new_null_array(&arrow_type(&field.r#type.unwrap_or_default()), 1)]
        };
        let mut columns: Vec<Vec<ArrayRef>> = fields.map(null).collect();
        let (mut places, mut status) = (vec![(0, 0); rows], vec![RowStatus::NotFound; rows]);
        let mut parts = 1;
        for share in shares {
            for (row, found) in share.rows.iter().zip(&share.swept.found) {
                let Place::In { part, row: at } = found.place else { continue };
                let (Some(place), Some(status)) = (places.get_mut(*row as usize), status.get_mut(*row as usize)) else {
                    continue;
                };
                let age_us = moment(*row as usize).map_or(0, |it| it.event_us.saturating_sub(found.event_us));
                if view.ttl_us > 0 && age_us > view.ttl_us {
                    *status = RowStatus::OutsideMaxAge;
                } else {
                    (*place, *status) = ((parts + part, at), RowStatus::Found);
                }
            }
            for part in share.swept.parts {
                if part.len() != columns.len() {
                    return Err(Error::internal("a sweep answered with other columns"));
                }
                parts += 1;
                columns.iter_mut().zip(part).for_each(|(column, values)| column.push(values));
            }
        }
        Ok(Some(Self { columns, places, status }))
    }

    /// # Errors
    /// `Internal` when values cannot be put together.
    pub fn rows(&self, range: Range<usize>) -> Result<ViewRows> {
        let places = self.places.get(range.clone()).unwrap_or_default();
        let places: Vec<(usize, usize)> = places.iter().map(|(part, row)| (*part as usize, *row as usize)).collect();
        let column = |parts: &Vec<ArrayRef>| {
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            interleave(&parts, &places).map_err(Error::internal)
        };
        Ok(ViewRows {
            columns: self.columns.iter().map(column).collect::<Result<_>>()?,
            status: self.status.get(range).unwrap_or_default().to_vec(),
            event_us: Vec::new(),
        })
    }
}
