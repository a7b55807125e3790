//! What is in a segment.
//!
//! ```text
//! cairn_slot u16 | join keys | event_timestamp | created_timestamp | committed_timestamp | cairn_commit u64 | deleted
//!                | features, nullable
//! ```
//! A column of the system gives way when a key or feature has its name: it is called `cairn_…` then. The footer holds a
//! [`SegmentHead`] in hexadecimal under [`HEAD_KEY`]. Rows ascend by history key, so within an entity the newest is first.
//! In the file of a load `committed_timestamp` and `cairn_commit` are null: its rows have one commit, known once it is named.

use crate::row::RowSchema;
use crate::types::arrow_type;
use crate::{Error, Result};
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use cairn_proto::record::v1::{Field, SegmentHead};
use prost::Message;
use std::fmt::Write;
use std::sync::Arc;

pub(super) const HEAD_KEY: &str = "cairn.segment";
const VERSION: u32 = 1;
/// Of a load.
const LOAD_VERSION: u32 = 2;

/// Columns behind the join keys and before the features.
pub(super) const SYSTEM_COLUMNS: usize = 5;

/// Whose rows a segment holds, and so its columns.
#[derive(Debug, Clone)]
pub struct SegmentLayout {
    pub storage_id: u32,
    pub join_keys: Vec<Field>,
    pub row: RowSchema,
    /// The rows are of a load: they have one commit, and the shard's record of the segment says which.
    pub load: bool,
}

pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

impl SegmentLayout {
    /// The columns of a file.
    pub fn arrow_schema(&self) -> SchemaRef {
        let named = |field: &Field, nullable| {
            ArrowField::new(&field.name, arrow_type(&field.r#type.unwrap_or_default()), nullable)
        };
        let system = |name: &str, data_type, nullable| {
            let mut name = name.to_owned();
            while self.join_keys.iter().chain(self.row.fields()).any(|field| field.name == name) {
                name.insert_str(0, "cairn_");
            }
            ArrowField::new(name, data_type, nullable)
        };
        let mut fields = vec![system("cairn_slot", DataType::UInt16, false)];
        fields.extend(self.join_keys.iter().map(|field| named(field, false)));
        fields.push(system("event_timestamp", time_type(), false));
        fields.push(system("created_timestamp", time_type(), false));
        fields.push(system("committed_timestamp", time_type(), self.load));
        fields.push(system("cairn_commit", DataType::UInt64, self.load));
        fields.push(system("deleted", DataType::Boolean, false));
        fields.extend(self.row.fields().iter().map(|field| named(field, true)));
        Arc::new(Schema::new(fields))
    }

    /// Columns before the features.
    pub(super) fn leading(&self) -> usize {
        1 + self.join_keys.len() + SYSTEM_COLUMNS
    }

    pub(super) fn head(&self, group_keys: Vec<Vec<u8>>) -> String {
        let head = SegmentHead {
            version: if self.load { LOAD_VERSION } else { VERSION },
            load: self.load,
            storage_id: self.storage_id,
            join_keys: self.join_keys.clone(),
            features: self.row.fields().to_vec(),
            group_keys: group_keys.into_iter().map(Into::into).collect(),
        };
        let mut text = String::new();
        for byte in head.encode_to_vec() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Reads what [`Self::head`] wrote: the layout, and the first key of each row group.
    ///
    /// # Errors
    /// `InvalidArgument` for a newer version, `Corrupt`.
    pub(super) fn read_head(text: &str) -> Result<(Self, Vec<Vec<u8>>)> {
        let corrupt = || Error::Corrupt("the footer of a segment is broken".to_owned());
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
        let head = SegmentHead::decode(&bytes.ok_or_else(corrupt)?[..]).map_err(|_| corrupt())?;
        if head.version > LOAD_VERSION {
            return Err(Error::InvalidArgument(format!(
                "a segment has format {}, written by a newer Cairn; this one reads {LOAD_VERSION}: start the newer cairnd",
                head.version
            )));
        }
        let row = RowSchema::new(&head.features).map_err(|_| corrupt())?;
        let layout = Self { storage_id: head.storage_id, join_keys: head.join_keys, row, load: head.load };
        Ok((layout, head.group_keys.into_iter().map(Into::into).collect()))
    }
}
