//! The fast path: a stream that lives as long as the caller likes, and answers each batch of entity rows with one batch.
//!
//! Always true:
//! - answers come in the order of the questions, same rows, same order
//! - at most [`IN_FLIGHT_MAX`] questions are unanswered, so neither side can block the other
//! - [`Exchange::read`] is a read: it is repeated over a new stream when the old one is lost

use super::codec::{Encoder, Replies};
use super::{IN_FLIGHT_MAX, flight};
use crate::Client;
use crate::command::{Command, GetOnlineFeatures, Predict, ReadReply};
use crate::connection::Node;
use crate::error::{Error, Result};
use crate::retry::Repeat;
use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::DecodedPayload;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Entity rows up, feature rows down.
pub type OnlineReader = Exchange;
/// Entity rows up, predictions down.
pub type Predictor = Exchange;

/// The answer to one batch.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What [`Exchange::send`] returned for the question.
    pub id: u64,
    /// One row for each row asked, in the same order.
    pub rows: RecordBatch,
    /// Where and how fresh the answer was read, and which model gave it.
    pub read: ReadReply,
}

/// A long-lived stream of questions and answers. Opened by the first question, whose columns all others must have.
///
/// Several tasks share a [`Client`], each with an exchange of its own.
pub struct Exchange {
    client: Client,
    command: Command,
    open: Option<Open>,
    next_id: u64,
}

struct Open {
    encoder: Encoder,
    requests: mpsc::Sender<FlightData>,
    replies: Replies,
    unanswered: VecDeque<u64>,
}

impl Client {
    /// Online features by entity key, over a stream that lives as long as the reader. Nothing is sent yet.
    pub fn online_features(&self, ask: GetOnlineFeatures) -> OnlineReader {
        Exchange::new(self.clone(), Command::GetOnlineFeatures(ask))
    }

    /// Predictions by entity key, over a stream that lives as long as the predictor. Nothing is sent yet.
    pub fn predict(&self, ask: Predict) -> Predictor {
        Exchange::new(self.clone(), Command::Predict(ask))
    }
}

impl Exchange {
    fn new(client: Client, command: Command) -> Self {
        Self { client, command, open: None, next_id: 0 }
    }

    /// Asks for `rows` and waits for their answer. A lost stream, a leader away or a full queue is bridged within the
    /// deadline. Answers to earlier [`Exchange::send`]s that were not received yet are dropped.
    ///
    /// # Errors
    /// The node's refusal, such as `NotFound` for an unknown feature service; `Timeout` at the deadline. The stream is
    /// closed then; the next question opens a new one.
    pub async fn read(&mut self, rows: &RecordBatch) -> Result<(RecordBatch, ReadReply)> {
        let client = self.client.clone();
        let mut attempts = client.attempts(Repeat::Harmless);
        loop {
            let error = match self.read_once(rows, attempts.left()).await {
                Ok(reply) => return Ok((reply.rows, reply.read)),
                Err(error) => error,
            };
            self.open = None;
            attempts.pause_or(error).await?;
        }
    }

    async fn read_once(&mut self, rows: &RecordBatch, patience: Duration) -> Result<Reply> {
        let id = self.send_within(rows, patience).await?;
        loop {
            match self.recv_within(patience).await? {
                Some(reply) if reply.id == id => return Ok(reply),
                Some(_) => {}
                None => return Err(self.closed("the node ended the stream")),
            }
        }
    }

    /// Asks for `rows` without waiting for the answer; returns the id the answer will carry.
    ///
    /// # Errors
    /// `Overloaded` with [`IN_FLIGHT_MAX`] questions unanswered: receive first. `InvalidArgument` for columns other
    /// than those of the first batch. Connection trouble: the stream is closed and its unanswered questions are lost.
    pub async fn send(&mut self, rows: &RecordBatch) -> Result<u64> {
        let patience = self.client.options().deadline;
        self.send_within(rows, patience).await
    }

    /// The next answer, in the order of the questions; `None` when nothing is unanswered.
    ///
    /// # Errors
    /// As [`Exchange::read`], without repetition: the unanswered questions are lost.
    pub async fn recv(&mut self) -> Result<Option<Reply>> {
        let patience = self.client.options().deadline;
        self.recv_within(patience).await
    }

    /// Questions sent and not answered yet.
    pub fn unanswered(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.unanswered.len())
    }

    async fn send_within(&mut self, rows: &RecordBatch, patience: Duration) -> Result<u64> {
        if self.unanswered() >= IN_FLIGHT_MAX {
            return Err(Error::Refused {
                kind: crate::ErrorKind::Overloaded,
                message: format!("{IN_FLIGHT_MAX} requests of this stream are unanswered: receive some first"),
            });
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let name = Bytes::from(id.to_string());
        if let Some(open) = &mut self.open {
            let message = open.encoder.batch_message(rows, name)?;
            if open.requests.send(message).await.is_ok() {
                open.unanswered.push_back(id);
                return Ok(id);
            }
            // The stream is gone; its reply side says why.
            return match self.recv_within(patience).await {
                Err(error) => Err(error),
                Ok(_) => Err(self.closed("the node ended the stream")),
            };
        }
        let mut encoder = Encoder::new(rows.schema_ref());
        let first = [encoder.schema_message(&self.command), encoder.batch_message(rows, name)?];
        let node = self.client.node().clone();
        let opened = tokio::time::timeout(patience, exchange(&node, first)).await;
        let opened = opened.unwrap_or_else(|_| Err(Error::Timeout { address: node.address.clone(), waited: patience }));
        self.client.note(&node, opened.as_ref().err());
        let (requests, replies) = opened?;
        self.open = Some(Open { encoder, requests, replies, unanswered: VecDeque::from([id]) });
        Ok(id)
    }

    async fn recv_within(&mut self, patience: Duration) -> Result<Option<Reply>> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let Some(id) = open.unanswered.front().copied() else { return Ok(None) };
        let error = match tokio::time::timeout(patience, open.next(id)).await {
            Ok(Ok(reply)) => return Ok(Some(reply)),
            Ok(Err(error)) => error,
            Err(_) => Error::Timeout { address: open.replies.node().address.clone(), waited: patience },
        };
        self.client.note(open.replies.node(), Some(&error));
        self.open = None;
        Err(error)
    }

    fn closed(&mut self, reason: &str) -> Error {
        let address = match self.open.take() {
            Some(open) => open.replies.node().address.clone(),
            None => self.client.address().to_owned(),
        };
        Error::Interrupted { address, reason: reason.to_owned() }
    }
}

impl Open {
    async fn next(&mut self, id: u64) -> Result<Reply> {
        loop {
            let Some(message) = self.replies.next().await else {
                let reason = "the node ended the stream".to_owned();
                return Err(Error::Interrupted { address: self.replies.node().address.clone(), reason });
            };
            let message = message?;
            let metadata = message.app_metadata();
            let DecodedPayload::RecordBatch(rows) = message.payload else { continue };
            let read = read_reply(&self.replies.node().address, &metadata)?;
            if read.id.as_deref().is_some_and(|found| found != id.to_string()) {
                let reason = format!("an answer to request `{}` where `{id}` was next", read.id.unwrap_or_default());
                return Err(Error::Protocol { address: self.replies.node().address.clone(), reason });
            }
            self.unanswered.pop_front();
            return Ok(Reply { id, rows, read });
        }
    }
}

/// Opens the stream with its first messages already under way: a node answers only once it has read them.
async fn exchange(node: &Node, first: [FlightData; 2]) -> Result<(mpsc::Sender<FlightData>, Replies)> {
    let (requests, uploads) = mpsc::channel(IN_FLIGHT_MAX + first.len());
    for message in first {
        // There is room for both.
        let _ = requests.try_send(message);
    }
    let opened = flight(node).do_exchange(ReceiverStream::new(uploads)).await;
    let replies = opened.map_err(|status| Error::of_status(&node.address, &status))?;
    Ok((requests, Replies::new(node.clone(), replies.into_inner())))
}

/// The metadata beside a reply batch.
pub(super) fn read_reply(address: &str, metadata: &Bytes) -> Result<ReadReply> {
    if metadata.is_empty() {
        return Ok(ReadReply::default());
    }
    serde_json::from_slice(metadata).map_err(|error| Error::Protocol {
        address: address.to_owned(),
        reason: format!("the metadata of a reply: {error}"),
    })
}
