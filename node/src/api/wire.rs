//! Arrow batches to Flight messages and back, one message a batch. Whatever the bytes of an upload are, it is refused
//! or read: Arrow's decoder trusts what a message says of itself, so that is checked first.

use crate::error::{Error, Result};
use arrow_array::RecordBatch;
use arrow_flight::decode::{DecodedFlightData, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::Schema;
use bytes::Bytes;
use cairn_proto::error::KIND_METADATA;
use cairn_proto::{ErrorKind, MESSAGE_BYTES_MAX};
use futures::{FutureExt, Stream, StreamExt};
use std::panic::AssertUnwindSafe;
use tokio_util::sync::CancellationToken;
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
pub async fn open(mut stream: Streaming<FlightData>, stopping: &CancellationToken) -> Result<Upload, Status> {
    let Some(mut first) = stream.next().await.transpose().map_err(transport_status)? else {
        return Err(Error::invalid("the stream is empty; its first message carries the command and the schema").into());
    };
    let Some(descriptor) = first.flight_descriptor.take() else {
        return Err(
            Error::invalid("the first message has no flight descriptor; put the JSON command into its `cmd`").into()
        );
    };
    check_buffers(&first)?;
    // A message without a header carries metadata only (some clients send the descriptor alone first).
    let rest = until(stream, stopping.clone()).map(|message| {
        let checked = message.map_err(transport_status).and_then(|data| {
            check_buffers(&data)?;
            Ok(data)
        });
        checked.map_err(|status| FlightError::Tonic(Box::new(status)))
    });
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

/// The messages of `stream`; once the node stops, a caller that pauses is told so instead of being waited for.
fn until(
    stream: Streaming<FlightData>,
    stopping: CancellationToken,
) -> impl Stream<Item = Result<FlightData, Status>> + Send {
    let stopped = Box::pin(stopping.cancelled_owned());
    futures::stream::unfold((stream, stopped), |(mut stream, mut stopped)| async move {
        let message = tokio::select! {
            biased;
            message = stream.next() => message?,
            () = stopped.as_mut() => Err(Error::new(ErrorKind::Unavailable, "this node is stopping; go on with another").into()),
        };
        Some((message, (stream, stopped)))
    })
}

/// The buffers of a batch must lie inside its message and unfold to no more than a message may hold: Arrow's decoder
/// panics on the one and asks for the memory of the other.
fn check_buffers(message: &FlightData) -> Result<()> {
    // What the decoder refuses by itself it explains by itself.
    let Ok(header) = arrow_ipc::root_as_message(&message.data_header) else { return Ok(()) };
    let dictionary = || header.header_as_dictionary_batch().and_then(|dictionary| dictionary.data());
    let Some(batch) = header.header_as_record_batch().or_else(dictionary) else { return Ok(()) };
    let codec = batch.compression().map(|compression| compression.codec());
    // LZ4 says nowhere before its end how much it unfolds to.
    if codec == Some(arrow_ipc::CompressionType::LZ4_FRAME) {
        let message = "Arrow buffers compressed with LZ4 are not taken; send them with ZSTD, or not compressed";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let mut unfolded = 0u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let (offset, length) = (buffer.offset(), buffer.length());
        let range = || {
            let (start, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
            message.data_body.get(start..start.checked_add(length)?)
        };
        let Some(bytes) = range() else {
            return Err(Error::invalid(format!(
                "the Arrow IPC stream is broken: a buffer of {length} bytes at {offset} reaches past the {} bytes of its \
                 message; was it cut short?",
                message.data_body.len()
            )));
        };
        if let (Some(_), Some(size)) = (codec, bytes.first_chunk()) {
            unfolded = unfolded.saturating_add(u64::try_from(i64::from_le_bytes(*size)).unwrap_or(0));
        }
    }
    if unfolded > MESSAGE_BYTES_MAX as u64 {
        let limit = MESSAGE_BYTES_MAX >> 20;
        let message = format!(
            "a message of {unfolded} bytes once unfolded is over the limit of {limit} MiB; send smaller batches"
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}

/// A failure of the stream itself: a message over the limit is the caller's to mend, the rest is passed on.
fn transport_status(status: Status) -> Status {
    let ours = status.metadata().contains_key(KIND_METADATA);
    if ours || status.code() != tonic::Code::OutOfRange {
        return status;
    }
    let limit = MESSAGE_BYTES_MAX >> 20;
    ErrorKind::TooLarge
        .status(format!("a message is over the limit of {limit} MiB; send smaller batches ({})", status.message()))
}

/// A decoding failure as the caller should see it: broken bytes are the caller's, a broken stream is nobody's.
fn decode_status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => {
            // Flatbuffers trace where they looked, a line each; the first says what they found.
            let what = other.to_string();
            let what = what.lines().next().unwrap_or_default().trim_end_matches('.');
            Error::invalid(format!("the Arrow IPC stream is broken: {what}")).into()
        }
    }
}

/// The next message of an upload; `None` at its end.
pub async fn next(messages: &mut FlightDataDecoder) -> Result<Option<DecodedFlightData>, Status> {
    // Arrow's decoder panics on some damage that no check here knows of; the stream ends with it.
    match AssertUnwindSafe(messages.next()).catch_unwind().await {
        Ok(message) => message.transpose().map_err(decode_status),
        Err(_) => Err(Error::invalid("the Arrow IPC stream is broken: a message contradicts its schema").into()),
    }
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
