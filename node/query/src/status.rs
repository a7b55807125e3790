//! Why a feature has a value or not.

use arrow_array::{Array, ArrayRef, StringArray};
use std::sync::Arc;

/// Suffix of the column that tells a feature's status.
pub const STATUS_SUFFIX: &str = "__status";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// There is a value.
    Present,
    /// The row that answers holds a null.
    NullValue,
    /// No row answers: unknown key, null in the key or time, or nothing known yet at that time.
    NotFound,
    /// The row that answers is older than the view's ttl.
    OutsideMaxAge,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NullValue => "NULL_VALUE",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
        }
    }
}

/// What a view has for one row of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowStatus {
    Found,
    NotFound,
    OutsideMaxAge,
}

/// Status of each row of one feature: its view's, refined by the value's own null.
pub(crate) fn of_feature<'a>(rows: &'a [RowStatus], values: &'a ArrayRef) -> impl Iterator<Item = Status> + 'a {
    rows.iter().enumerate().map(|(row, status)| match status {
        RowStatus::Found if values.is_null(row) => Status::NullValue,
        RowStatus::Found => Status::Present,
        RowStatus::NotFound => Status::NotFound,
        RowStatus::OutsideMaxAge => Status::OutsideMaxAge,
    })
}

/// Status of each row of an on-demand feature, which always has a row.
pub(crate) fn of_on_demand(values: &ArrayRef) -> impl Iterator<Item = Status> + '_ {
    (0..values.len()).map(|row| if values.is_null(row) { Status::NullValue } else { Status::Present })
}

pub(crate) fn column(statuses: impl Iterator<Item = Status>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(statuses.map(Status::as_str)))
}
