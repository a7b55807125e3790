//! History as Parquet files that anybody can read: rows of one feature view in a range of slots, in key order.
//!
//! - [`layout`]: the columns of a file and what its footer says
//! - [`writer`]: rows in key order into a file; [`loaded`]: the same from columns, for what was never in a database
//! - [`reader`]: row groups back, keys first and features only where they are wanted
//! - [`columns`]: row groups as columns, for joins
//! - [`store`]: the segments of a node, which are blobs; those read lately stay in memory
//! - [`cursor`]: a segment walked in key order; [`seeker`]: rows found for sorted lookups
//!
//! What always holds: a row comes back with the very bytes it was stored with; keys ascend through the whole file.

mod columns;
mod cursor;
mod layout;
mod loaded;
mod reader;
mod seeker;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use columns::GroupColumns;
pub use cursor::SegmentCursor;
pub use layout::SegmentLayout;
pub use loaded::LoadedRows;
pub use reader::{Group, SegmentFile};
pub use seeker::{Hit, SegmentSeeker};
pub use store::SegmentStore;
pub use writer::{SegmentWriter, Written};

use crate::blob::Hash;

/// A segment as the shard's record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentRef {
    pub root: Hash,
    /// Of all rows of a load, whose file says nothing of it.
    pub stamp: Option<Stamp>,
}

/// When rows were committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub commit: u64,
    pub committed_us: i64,
}
