//! Record batches as Flight messages and back.
//!
//! Always true: one batch is one message (arrow-flight's own encoder splits at 2 MiB, which would break the pairing of
//! questions and answers); dictionaries are resolved first, because a dictionary travels in a message of its own.

use crate::command::Command;
use crate::connection::{MESSAGE_LIMIT, Node};
use crate::error::{Error, Result};
use arrow_array::RecordBatch;
use arrow_flight::decode::{DecodedFlightData, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// Room kept in a message for its headers.
const HEADERS_BYTES: usize = 64 << 10;

/// Writes the messages of one upload.
pub(super) struct Encoder {
    /// What travels: dictionaries resolved, every column nullable.
    schema: SchemaRef,
    options: IpcWriteOptions,
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    context: IpcWriteContext,
}

impl Encoder {
    pub(super) fn new(schema: &Schema) -> Self {
        Self {
            schema: Arc::new(sent_schema(schema)),
            options: IpcWriteOptions::default(),
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            context: IpcWriteContext::default(),
        }
    }

    /// The first message: what is asked, and the columns that follow.
    pub(super) fn schema_message(&self, command: &Command) -> FlightData {
        FlightData::from(SchemaAsIpc::new(&self.schema, &self.options))
            .with_descriptor(FlightDescriptor::new_cmd(command.to_bytes()))
    }

    /// One batch as one message.
    ///
    /// # Errors
    /// `InvalidArgument` for columns other than those announced; `TooLarge` over the message limit.
    pub(super) fn batch_message(&mut self, batch: &RecordBatch, app_metadata: Bytes) -> Result<FlightData> {
        let batch = self.as_sent(batch)?;
        let not_sent = |reason: String| Error::Input(format!("the batch cannot be sent: {reason}"));
        let (dictionaries, encoded) = self
            .generator
            .encode(&batch, &mut self.dictionaries, &self.options, &mut self.context)
            .map_err(|error| not_sent(error.to_string()))?;
        if !dictionaries.is_empty() {
            return Err(not_sent("a dictionary inside a nested column; decode that column first".into()));
        }
        let message = FlightData::from(encoded).with_app_metadata(app_metadata);
        let size = message.data_body.len() + message.data_header.len() + message.app_metadata.len();
        if size > MESSAGE_LIMIT - HEADERS_BYTES {
            return Err(Error::TooLarge(format!(
                "a batch of {} rows takes {size} bytes, over the limit of {} for one message; send fewer rows at a time",
                batch.num_rows(),
                MESSAGE_LIMIT - HEADERS_BYTES,
            )));
        }
        Ok(message)
    }

    fn as_sent(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let found = batch.schema_ref();
        if found.fields().len() != self.schema.fields().len() {
            return Err(Error::Input(format!(
                "the batch has {} columns; this stream was opened with {}",
                found.fields().len(),
                self.schema.fields().len()
            )));
        }
        let mut columns = Vec::with_capacity(batch.num_columns());
        for ((column, field), sent) in batch.columns().iter().zip(found.fields()).zip(self.schema.fields()) {
            let resolved = resolved_type(field.data_type());
            if field.name() != sent.name() || &resolved != sent.data_type() {
                return Err(Error::Input(format!(
                    "the batch has column `{}` of {} where this stream was opened with `{}` of {}",
                    field.name(),
                    field.data_type(),
                    sent.name(),
                    sent.data_type()
                )));
            }
            columns.push(if field.data_type() == sent.data_type() {
                column.clone()
            } else {
                arrow_cast::cast(column, sent.data_type())
                    .map_err(|error| Error::Input(format!("column `{}` cannot be decoded: {error}", field.name())))?
            });
        }
        RecordBatch::try_new_with_options(
            self.schema.clone(),
            columns,
            &arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
        )
        .map_err(|error| Error::Input(format!("the batch cannot be sent: {error}")))
    }
}

/// Nullable throughout, so that batches whose readers disagree about nullability fit one stream.
fn sent_schema(schema: &Schema) -> Schema {
    let sent = |field: &Arc<Field>| Field::new(field.name(), resolved_type(field.data_type()), true);
    Schema::new(schema.fields().iter().map(sent).collect::<Vec<_>>())
}

fn resolved_type(found: &DataType) -> DataType {
    match found {
        DataType::Dictionary(_, values) => (**values).clone(),
        other => other.clone(),
    }
}

/// Reads the messages of one reply.
pub(super) struct Replies {
    node: Node,
    decoder: FlightDataDecoder,
}

impl Replies {
    pub(super) fn new(node: Node, messages: tonic::Streaming<FlightData>) -> Self {
        let messages = messages.map_err(|status| FlightError::Tonic(Box::new(status)));
        Self { node, decoder: FlightDataDecoder::new(messages) }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) async fn next(&mut self) -> Option<Result<DecodedFlightData>> {
        let message = self.decoder.next().await?;
        Some(message.map_err(|error| Error::of_flight(&self.node.address, error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::Int32Type;
    use arrow_array::{ArrayRef, DictionaryArray, Int64Array, StringArray};

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, false)))
            .unwrap()
    }

    fn decode(schema: &FlightData, message: &FlightData) -> RecordBatch {
        let batches = arrow_flight::utils::flight_data_to_batches(&[schema.clone(), message.clone()]).unwrap();
        batches.into_iter().next().unwrap()
    }

    #[test]
    fn a_batch_over_two_mebibytes_is_still_one_message() {
        let rows = batch(vec![("id", Arc::new(Int64Array::from_iter_values(0..400_000)))]);
        let mut encoder = Encoder::new(rows.schema_ref());
        let schema = encoder.schema_message(&Command::GetOnlineFeatures(crate::read::online("default")));
        assert!(schema.flight_descriptor.is_some());
        let message = encoder.batch_message(&rows, Bytes::from_static(b"7")).unwrap();
        assert_eq!(message.app_metadata, "7");
        assert_eq!(decode(&schema, &message).column(0), rows.column(0));
    }

    #[test]
    fn dictionaries_are_resolved() {
        let carriers: DictionaryArray<Int32Type> = ["UA", "AA", "UA"].into_iter().collect();
        let rows = batch(vec![("carrier", Arc::new(carriers))]);
        let mut encoder = Encoder::new(rows.schema_ref());
        let schema = encoder.schema_message(&Command::GetOnlineFeatures(crate::read::online("default")));
        let decoded = decode(&schema, &encoder.batch_message(&rows, Bytes::new()).unwrap());
        assert_eq!(decoded.column(0).as_string::<i32>(), &StringArray::from(vec!["UA", "AA", "UA"]));
    }

    #[test]
    fn other_columns_than_announced_are_named() {
        let rows = batch(vec![("id", Arc::new(Int64Array::from(vec![1])))]);
        let mut encoder = Encoder::new(rows.schema_ref());
        let text = batch(vec![("id", Arc::new(StringArray::from(vec!["1"])))]);
        let error = encoder.batch_message(&text, Bytes::new()).unwrap_err().to_string();
        assert!(error.contains("column `id` of Utf8") && error.contains("`id` of Int64"), "{error}");
        let wide = batch(vec![("id", rows.column(0).clone()), ("more", rows.column(0).clone())]);
        let error = encoder.batch_message(&wide, Bytes::new()).unwrap_err().to_string();
        assert!(error.contains("2 columns") && error.contains("opened with 1"), "{error}");
    }

    #[test]
    fn a_batch_over_the_message_limit_is_refused_here() {
        let rows = batch(vec![("id", Arc::new(Int64Array::from(vec![0; 9 << 20])))]);
        let error = Encoder::new(rows.schema_ref()).batch_message(&rows, Bytes::new()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::TooLarge);
        assert!(error.to_string().ends_with("send fewer rows at a time"), "{error}");
    }
}
