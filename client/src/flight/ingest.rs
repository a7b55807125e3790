//! Rows into a feature view, many batches in flight, each answered on its own.
//!
//! Always true:
//! - answers come in the order of the batches; an answered batch is durable
//! - with a producer and a sequence, batches whose answer was lost are sent again under the sequence they had, so rows
//!   are stored exactly once; without them nothing is sent twice
//! - memory is bounded: at most [`BATCHES_IN_FLIGHT`] batches are held

use super::codec::Encoder;
use super::{IN_FLIGHT_MAX, flight};
use crate::Client;
use crate::command::{Command, Ingest, Ingested};
use crate::connection::Node;
use crate::error::{Error, Result};
use crate::retry::{Backoff, Repeat, final_error, may_repeat};
use arrow_array::RecordBatch;
use arrow_flight::{FlightData, PutResult};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Batches sent and not answered yet, at most.
pub const BATCHES_IN_FLIGHT: usize = 8;
const _: () = assert!(BATCHES_IN_FLIGHT < IN_FLIGHT_MAX);

/// The answers to ingested batches, in order.
pub struct IngestStream {
    client: Client,
    ask: Ingest,
    source: BoxStream<'static, Result<RecordBatch>>,
    source_ended: bool,
    /// Told once what was sent before it is answered.
    source_error: Option<Error>,
    put: Option<Put>,
    /// Sent, or waiting to be sent again, oldest first.
    unanswered: VecDeque<RecordBatch>,
    /// Batches answered so far: the oldest unanswered one has this much more than the first sequence.
    answered: u64,
    /// When an answer last came, or work began.
    progress: Instant,
    backoff: Backoff,
    /// The first error since then after which nobody knew the outcome.
    lost: Option<Error>,
    ended: bool,
}

struct Put {
    node: Node,
    encoder: Encoder,
    /// Gone once the source has ended, so that the node sees the end of the upload too.
    uploads: Option<mpsc::Sender<FlightData>>,
    results: tonic::Streaming<PutResult>,
}

impl Client {
    /// Stores batches of rows: join keys, `event_timestamp`, optionally `created_timestamp`, and features.
    /// The batches count up from `ask.sequence`. Nothing is sent before the stream is polled.
    pub fn ingest(
        &self,
        ask: Ingest,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> IngestStream {
        IngestStream {
            client: self.clone(),
            ask,
            source: batches.boxed(),
            source_ended: false,
            source_error: None,
            put: None,
            unanswered: VecDeque::new(),
            answered: 0,
            progress: Instant::now(),
            backoff: Backoff::new(),
            lost: None,
            ended: false,
        }
    }

    /// Stores one batch of rows.
    ///
    /// # Errors
    /// `NotFound` for an unknown feature view; `InvalidArgument` naming a wrong column; `Timeout` when the outcome is
    /// unknown. Rows that are wrong one by one are no error: they are listed in the answer.
    pub async fn ingest_batch(&self, ask: Ingest, rows: RecordBatch) -> Result<Ingested> {
        let mut answers = self.ingest(ask, futures::stream::iter([Ok(rows)]));
        let answer = answers.next().await?;
        answer.ok_or_else(|| Error::Protocol {
            address: self.address().to_owned(),
            reason: "no answer to a batch".into(),
        })
    }
}

impl IngestStream {
    /// The answer to the next batch; `None` when every batch is answered.
    ///
    /// # Errors
    /// The node's refusal, an error of the source, or `Timeout` when the outcome of the unanswered batches is unknown.
    /// The stream ends with it.
    pub async fn next(&mut self) -> Result<Option<Ingested>> {
        if self.ended {
            return Ok(None);
        }
        let outcome = self.advance().await;
        self.ended = !matches!(outcome, Ok(Some(_)));
        outcome
    }

    /// Batches taken from the source and not answered yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    async fn advance(&mut self) -> Result<Option<Ingested>> {
        if self.unanswered.is_empty() {
            self.progress = Instant::now();
        }
        loop {
            if self.unanswered.is_empty() && self.source_ended {
                return self.source_error.take().map_or(Ok(None), Err);
            }
            let error = match self.step().await {
                Ok(Some(answer)) => {
                    self.unanswered.pop_front();
                    self.answered += 1;
                    self.progress = Instant::now();
                    self.backoff = Backoff::new();
                    self.lost = None;
                    return Ok(Some(answer));
                }
                Ok(None) => continue,
                Err(Trouble::Source(error)) => return Err(error),
                Err(Trouble::Way(error)) => error,
            };
            self.put = None;
            let exactly_once = self.ask.producer.is_some() && self.ask.sequence.is_some();
            // Alone in flight and turned away, a batch was not stored; with others behind it that is not certain.
            let repeat = if exactly_once { Repeat::Harmless } else { Repeat::Once };
            let alone = self.unanswered.len() <= 1 || matches!(error, Error::Connect { .. });
            if !may_repeat(&error, repeat) || !(exactly_once || alone) {
                return Err(final_error(self.lost.take(), error));
            }
            let pause = self.backoff.pause();
            let patience = match error {
                Error::Connect { .. } => self.client.connect_patience(),
                _ => self.client.options().deadline,
            };
            if self.progress.elapsed() + pause >= patience {
                return Err(final_error(self.lost.take(), error));
            }
            if self.lost.is_none() && error.outcome_unknown() {
                self.lost = Some(error.clone());
            }
            tracing::debug!(%error, unanswered = self.unanswered.len(), "will send batches again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes one batch in or one answer out, whichever comes first.
    async fn step(&mut self) -> Result<Option<Ingested>, Trouble> {
        if self.put.is_none() && !self.unanswered.is_empty() {
            self.reopen().await?;
        }
        let deadline = self.client.options().deadline;
        let room = self.unanswered.len() < BATCHES_IN_FLIGHT && !self.source_ended;
        let waiting = !self.unanswered.is_empty();
        let left = deadline.saturating_sub(self.progress.elapsed());
        let put = &mut self.put;
        let answer = async {
            match put {
                Some(put) => tokio::time::timeout(left, put.results.next()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer, if waiting => self.answer(answer).map(Some),
            batch = self.source.next(), if room => {
                match batch {
                    None => self.end_source(None),
                    Some(Err(error)) => self.end_source(Some(error)),
                    Some(Ok(batch)) => self.take_in(batch).await,
                }
                Ok(None)
            }
        }
    }

    fn end_source(&mut self, error: Option<Error>) {
        self.source_ended = true;
        self.source_error = error;
        if let Some(put) = &mut self.put {
            put.uploads = None;
        }
    }

    async fn take_in(&mut self, batch: RecordBatch) {
        if self.unanswered.is_empty() {
            self.progress = Instant::now();
        }
        let Some(put) = &mut self.put else {
            self.unanswered.push_back(batch); // the next step opens the stream with it
            return;
        };
        match put.encoder.batch_message(&batch, Bytes::new()) {
            Ok(message) => {
                self.unanswered.push_back(batch);
                if let Some(uploads) = &put.uploads {
                    // A closed channel means the node ended the stream; the answer side says why.
                    let _ = uploads.send(message).await;
                }
            }
            Err(error) => self.end_source(Some(error)),
        }
    }

    fn answer(
        &mut self,
        answer: Result<Option<Result<PutResult, tonic::Status>>, tokio::time::error::Elapsed>,
    ) -> Result<Ingested, Trouble> {
        let Some(put) = &self.put else { return Err(Trouble::Way(no_stream(self.client.address()))) };
        let address = &put.node.address;
        let outcome = match answer {
            Err(_) => Err(Error::Timeout { address: address.clone(), waited: self.progress.elapsed() }),
            Ok(None) => Err(no_stream(address)),
            Ok(Some(Err(status))) => Err(Error::of_status(address, &status)),
            Ok(Some(Ok(result))) => serde_json::from_slice(&result.app_metadata).map_err(|error| Error::Protocol {
                address: address.clone(),
                reason: format!("the answer to a batch: {error}"),
            }),
        };
        self.client.note(&put.node, outcome.as_ref().err());
        outcome.map_err(Trouble::Way)
    }

    /// Opens a stream that begins with the oldest unanswered batch.
    async fn reopen(&mut self) -> Result<(), Trouble> {
        let Some(first) = self.unanswered.front() else { return Ok(()) };
        let mut encoder = Encoder::new(first.schema_ref());
        let mut ask = self.ask.clone();
        ask.sequence = ask.sequence.map(|sequence| sequence + self.answered);
        let (uploads, messages) = mpsc::channel(BATCHES_IN_FLIGHT + 1);
        // There is room for all of them.
        let _ = uploads.try_send(encoder.schema_message(&Command::Ingest(ask)));
        for batch in &self.unanswered {
            let _ = uploads.try_send(encoder.batch_message(batch, Bytes::new()).map_err(Trouble::Source)?);
        }
        let node = self.client.node().clone();
        let left = self.client.options().deadline.saturating_sub(self.progress.elapsed());
        let mut client = flight(&node);
        let opened = tokio::time::timeout(left, client.do_put(ReceiverStream::new(messages))).await;
        let outcome = match opened {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::of_status(&node.address, &status)),
            Err(_) => Err(Error::Timeout { address: node.address.clone(), waited: self.progress.elapsed() }),
        };
        self.client.note(&node, outcome.as_ref().err());
        let results = outcome.map_err(Trouble::Way)?;
        let uploads = (!self.source_ended).then_some(uploads);
        self.put = Some(Put { node, encoder, uploads, results });
        Ok(())
    }
}

/// Where an error came from: only trouble on the way is worth another try.
enum Trouble {
    Source(Error),
    Way(Error),
}

fn no_stream(address: &str) -> Error {
    Error::Interrupted { address: address.to_owned(), reason: "the node ended the stream".into() }
}
