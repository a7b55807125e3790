//! Arrow batches to Flight messages and back, one message a batch.

use crate::error::{Error, Result};
use arrow_array::RecordBatch;
use arrow_flight::decode::{DecodedFlightData, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::{Status, Streaming};

/// The upload side of a call: the descriptor that came first, then decoded messages.
pub struct Upload {
    pub descriptor: FlightDescriptor,
    pub messages: FlightDataDecoder,
}

/// Reads up to the descriptor, which must be in the first message.
///
/// # Errors
/// `InvalidArgument` when the stream is empty or begins without a descriptor.
pub async fn open(mut stream: Streaming<FlightData>) -> Result<Upload, Status> {
    let Some(mut first) = stream.next().await.transpose()? else {
        return Err(Error::invalid("the stream is empty; its first message carries the command and the schema").into());
    };
    let Some(descriptor) = first.flight_descriptor.take() else {
        return Err(
            Error::invalid("the first message has no flight descriptor; put the JSON command into its `cmd`").into()
        );
    };
    // A message without a header carries metadata only (some clients send the descriptor alone first).
    let rest = stream.map(|message| message.map_err(|status| FlightError::Tonic(Box::new(status))));
    let all = futures::stream::iter([Ok(first)]).chain(rest);
    let with_header =
        all.filter(|message| futures::future::ready(!matches!(message, Ok(data) if data.data_header.is_empty())));
    Ok(Upload { descriptor, messages: FlightDataDecoder::new(with_header) })
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// A decoding failure as the caller should see it: broken bytes are the caller's, a broken stream is nobody's.
pub fn decode_status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Error::invalid(format!("the Arrow IPC stream is broken: {other}")).into(),
    }
}

/// The next message of an upload; `None` at its end.
pub async fn next(messages: &mut FlightDataDecoder) -> Result<Option<DecodedFlightData>, Status> {
    messages.next().await.transpose().map_err(decode_status)
}

/// Encodes batches of one schema. Dictionary columns do not occur in replies.
pub struct Encoder {
    generator: IpcDataGenerator,
    options: IpcWriteOptions,
    tracker: DictionaryTracker,
    context: IpcWriteContext,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            generator: IpcDataGenerator::default(),
            options: IpcWriteOptions::default(),
            tracker: DictionaryTracker::new(false),
            context: IpcWriteContext::default(),
        }
    }
}

impl Encoder {
    pub fn schema(&self, schema: &Schema) -> FlightData {
        FlightData::from(SchemaAsIpc::new(schema, &self.options))
    }

    /// # Errors
    /// `Internal` when Arrow cannot encode the batch.
    pub fn batch(&mut self, batch: &RecordBatch, app_metadata: impl Into<Bytes>) -> Result<FlightData> {
        let encoded = self.generator.encode(batch, &mut self.tracker, &self.options, &mut self.context);
        let (_, encoded) = encoded.map_err(|error| Error::internal(format!("a reply does not encode: {error}")))?;
        Ok(FlightData::from(encoded).with_app_metadata(app_metadata))
    }
}

/// The command of a descriptor.
///
/// # Errors
/// `InvalidArgument` when it is a path, empty, or not a command.
pub fn command(descriptor: &FlightDescriptor) -> Result<cairn_proto::command::Command> {
    if descriptor.cmd.is_empty() {
        return Err(Error::invalid(
            "the flight descriptor has no `cmd`; Cairn's commands are JSON in `cmd`, not paths",
        ));
    }
    cairn_proto::command::Command::parse(&descriptor.cmd).map_err(Error::invalid)
}

/// A boxed reply stream, as the Flight service wants it.
pub type Replies<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
