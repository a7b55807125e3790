//! A segment walked in key order, one row group in memory at a time.

use super::reader::{Group, SegmentFile};
use crate::Result;
use std::sync::Arc;

/// Stands nowhere at first: seek.
pub struct SegmentCursor {
    segment: Arc<SegmentFile>,
    at: Option<(usize, Arc<Group>)>,
    row: usize,
}

impl SegmentCursor {
    pub fn new(segment: Arc<SegmentFile>) -> Self {
        Self { segment, at: None, row: 0 }
    }

    /// Moves to the first row at or after `key`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        let number = self.segment.group_of(key);
        if self.at.as_ref().is_none_or(|(at, _)| *at != number) {
            self.load(number)?;
        }
        self.row = self.at.as_ref().map_or(0, |(_, group)| group.lower_bound(key));
        self.settle()
    }

    /// Moves to the next row.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn advance(&mut self) -> Result<()> {
        self.row += 1;
        self.settle()
    }

    /// The row group and row here; `None` at the end.
    pub fn entry(&self) -> Option<(&Group, usize)> {
        let (_, group) = self.at.as_ref()?;
        (self.row < group.len()).then_some((group, self.row))
    }

    fn settle(&mut self) -> Result<()> {
        while let Some((number, group)) = &self.at {
            if self.row < group.len() {
                break;
            }
            let next = *number + 1;
            self.row = 0;
            if next >= self.segment.groups() {
                self.at = None;
                break;
            }
            self.load(next)?;
        }
        Ok(())
    }

    fn load(&mut self, number: usize) -> Result<()> {
        self.at = None; // before the next one takes its memory
        if number < self.segment.groups() {
            self.at = Some((number, Arc::new(self.segment.group(number)?)));
        }
        Ok(())
    }
}
