//! Backtests: a spine with labels goes up; how far its scoring is comes down, its rows with their scores if asked for, and
//! at the end what it is kept as.
//!
//! Always true: a stream that ends without an error has said what the backtest is kept as.

use super::history::{Answers, open};
use crate::Client;
use crate::command::{Backtest, BacktestReply, Command};
use crate::error::{Error, Result};
use arrow_array::RecordBatch;
use arrow_flight::decode::DecodedPayload;
use arrow_schema::SchemaRef;
use futures::Stream;

/// A backtest under way.
pub struct BacktestStream {
    schema: SchemaRef,
    answers: Answers,
    said: BacktestReply,
}

impl Client {
    /// Scores model versions over a spine, each row with the features known at its own time, and keeps how they did.
    /// `schema` describes the spine, which was uploaded as an artifact before.
    ///
    /// Returns once the node has checked what is asked. Not repeated, because a spine is read once.
    ///
    /// # Errors
    /// `NotFound` for an unknown model, version, alias or label; `InvalidArgument` for an interval, windows, metrics or
    /// columns that do not fit.
    pub async fn run_backtest(
        &self,
        ask: Backtest,
        schema: SchemaRef,
        spine: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<BacktestStream> {
        let (schema, answers) = open(self, Command::Backtest(Box::new(ask)), &schema, spine).await?;
        Ok(BacktestStream { schema, answers, said: BacktestReply::default() })
    }
}

impl BacktestStream {
    /// The columns of every batch: the spine's, then one of scores for each model, named `model@version`. None unless
    /// predictions are asked for.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows of the spine that are scored or left out, as the node last said.
    pub fn rows_done(&self) -> u64 {
        self.said.rows_done
    }

    /// Id of the evidence; known at the end of the stream.
    pub fn backtest(&self) -> Option<u64> {
        self.said.backtest
    }

    /// News: rows with their scores, or none where only [`Self::rows_done`] has changed. `None` at the end.
    ///
    /// # Errors
    /// The node's refusal, a lost connection (whether the backtest is kept is unknown then), or what went wrong while the
    /// spine was read.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(message) = self.answers.next().await? else {
            if self.said.backtest.is_none() {
                let reason = "the node ended the stream before it said what the backtest is kept as".to_owned();
                return Err(Error::Interrupted { address: self.answers.address().to_owned(), reason });
            }
            return Ok(None);
        };
        let metadata = message.app_metadata();
        if !metadata.is_empty() {
            self.said = serde_json::from_slice(&metadata).map_err(|error| Error::Protocol {
                address: self.answers.address().to_owned(),
                reason: format!("news of a backtest: {error}"),
            })?;
        }
        match message.payload {
            DecodedPayload::RecordBatch(rows) => Ok(Some(rows)),
            _ => Ok(Some(RecordBatch::new_empty(self.schema.clone()))),
        }
    }
}
