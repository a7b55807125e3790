//! Training sets: a spine goes up, the point-in-time join comes down while it is made.
//!
//! Always true: a stream that ends without an error is the whole training set. When reading the spine fails half-way,
//! the stream ends with that error, never as a shorter training set.

use super::codec::{Encoder, Replies};
use super::exchange::read_reply;
use super::{IN_FLIGHT_MAX, flight};
use crate::Client;
use crate::command::{Command, GetHistoricalFeatures, ReadReply};
use crate::error::{Error, Result};
use crate::retry::Repeat;
use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedFlightData, DecodedPayload};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

// Spine batches on their way; flow control below keeps the rest waiting in the source.
const UPLOADS_WAITING: usize = 4;
const _: () = assert!(UPLOADS_WAITING < IN_FLIGHT_MAX);

/// Record batches of a reply as they come. Rows stand in spine order.
pub struct RecordStream {
    schema: SchemaRef,
    answers: Answers,
    read: ReadReply,
}

/// What comes back while a spine goes up.
pub(super) struct Answers {
    replies: Replies,
    upload: Arc<Mutex<Option<Error>>>,
    ended: bool,
}

/// Sends a spine, and returns once the node knows the columns of the answer.
pub(super) async fn open(
    client: &Client,
    command: Command,
    schema: &SchemaRef,
    spine: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> Result<(SchemaRef, Answers)> {
    let node = client.node().clone();
    let (uploads, upload) = upload(Encoder::new(schema), command, spine);
    let opened = async {
        let opened = flight(&node).do_exchange(ReceiverStream::new(uploads)).await;
        let opened = opened.map_err(|status| Error::of_status(&node.address, &status))?;
        let mut replies = Replies::new(node.clone(), opened.into_inner());
        loop {
            let Some(message) = replies.next().await else {
                let reason = "the node ended the stream before the first answer".to_owned();
                return Err(Error::Interrupted { address: node.address.clone(), reason });
            };
            if let DecodedPayload::Schema(schema) = message?.payload {
                return Ok((schema, replies));
            }
        }
    };
    let outcome = opened.await;
    client.note(&node, outcome.as_ref().err());
    // Trouble on this side is the better explanation of whatever the node made of it.
    match (outcome, take(&upload)) {
        (_, Some(error)) | (Err(error), None) => Err(error),
        (Ok((schema, replies)), None) => Ok((schema, Answers { replies, upload, ended: false })),
    }
}

impl Answers {
    /// The node that answers.
    pub(super) fn address(&self) -> &str {
        &self.replies.node().address
    }

    /// The next message; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<DecodedFlightData>> {
        if self.ended {
            return Ok(None);
        }
        let message = self.replies.next().await;
        let outcome = match (message, take(&self.upload)) {
            (_, Some(error)) | (Some(Err(error)), None) => Err(error),
            (Some(Ok(message)), None) => return Ok(Some(message)),
            (None, None) => Ok(None),
        };
        self.ended = true;
        outcome
    }
}

impl Client {
    /// Joins each spine row with the feature values that were known at its time. `schema` describes the spine.
    ///
    /// Returns once the node knows the columns of the answer. Not repeated, because a spine is read once;
    /// [`Client::historical_features_of`] holds its spine and repeats.
    ///
    /// # Errors
    /// `NotFound` for an unknown service, view or feature; `InvalidArgument` for a spine without join keys or times.
    pub async fn historical_features(
        &self,
        ask: GetHistoricalFeatures,
        schema: SchemaRef,
        spine: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<RecordStream> {
        let (schema, answers) = open(self, Command::GetHistoricalFeatures(ask), &schema, spine).await?;
        Ok(RecordStream { schema, answers, read: ReadReply::default() })
    }

    /// As [`Client::historical_features`] for a spine held in memory; collects the training set, repeating the whole
    /// join when a node goes away meanwhile.
    ///
    /// # Errors
    /// As [`Client::historical_features`].
    pub async fn historical_features_of(
        &self,
        ask: &GetHistoricalFeatures,
        spine: &[RecordBatch],
    ) -> Result<(Vec<RecordBatch>, ReadReply)> {
        let first = spine.first().ok_or_else(|| Error::Input("the spine holds no batch".into()))?;
        let mut attempts = self.attempts(Repeat::Harmless);
        loop {
            let batches: Vec<_> = spine.iter().cloned().map(Ok).collect();
            let opened = self.historical_features(ask.clone(), first.schema(), futures::stream::iter(batches)).await;
            let outcome = match opened {
                Ok(stream) => stream.collect_all().await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(found) => return Ok(found),
                Err(error) => attempts.pause_or(error).await?,
            }
        }
    }
}

impl RecordStream {
    /// The columns of every batch: the spine's, then the features.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the node last said of the read: positions and token. Complete at the end of the stream.
    pub fn read_reply(&self) -> &ReadReply {
        &self.read
    }

    /// The next batch; `None` at the end of a whole training set.
    ///
    /// # Errors
    /// The node's refusal, a lost connection, or what went wrong while the spine was read.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while let Some(message) = self.answers.next().await? {
            let metadata = message.app_metadata();
            if !metadata.is_empty() {
                self.read = read_reply(self.answers.address(), &metadata)?;
            }
            if let DecodedPayload::RecordBatch(rows) = message.payload {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }

    async fn collect_all(mut self) -> Result<(Vec<RecordBatch>, ReadReply)> {
        let mut batches = Vec::new();
        while let Some(rows) = self.next().await? {
            batches.push(rows);
        }
        Ok((batches, self.read))
    }
}

/// Sends the spine from a task of its own. What goes wrong with it is kept for the reader of the replies: on the wire
/// an upload that breaks off looks like one that is complete.
fn upload(
    mut encoder: Encoder,
    command: Command,
    spine: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> (mpsc::Receiver<FlightData>, Arc<Mutex<Option<Error>>>) {
    let (messages, uploads) = mpsc::channel(UPLOADS_WAITING);
    let trouble = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&trouble);
    tokio::spawn(async move {
        if messages.send(encoder.schema_message(&command)).await.is_err() {
            return;
        }
        let mut spine = std::pin::pin!(spine);
        while let Some(rows) = spine.next().await {
            match rows.and_then(|rows| encoder.batch_message(&rows, Bytes::new())) {
                Ok(message) => {
                    if messages.send(message).await.is_err() {
                        return; // nobody reads any more: the reply side has ended and says why
                    }
                }
                Err(error) => {
                    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        }
    });
    (uploads, trouble)
}

fn take(trouble: &Mutex<Option<Error>>) -> Option<Error> {
    trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Int64Array;

    #[tokio::test]
    async fn a_spine_that_breaks_off_is_told_not_shortened() {
        let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap();
        let encoder = Encoder::new(rows.schema_ref());
        let spine = futures::stream::iter([Ok(rows), Err(Error::Input("row 2 is torn".into()))]);
        let command = Command::GetHistoricalFeatures(crate::read::historical("default"));
        let (mut uploads, trouble) = upload(encoder, command, spine);
        let mut messages = 0;
        while uploads.recv().await.is_some() {
            messages += 1;
        }
        assert_eq!(messages, 2);
        assert_eq!(take(&trouble), Some(Error::Input("row 2 is torn".into())));
    }
}
