//! One-shot reads by JSON entity keys, typed by the node, and the schemas commands stand for.

use super::codec::Replies;
use super::exchange::read_reply;
use super::flight;
use crate::Client;
use crate::command::{Command, GetOnlineFeatures, Predict, ReadReply};
use crate::connection::limited;
use crate::error::{Error, Result};
use crate::retry::Repeat;
use arrow_array::RecordBatch;
use arrow_flight::decode::DecodedPayload;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use arrow_schema::Schema;

impl Client {
    /// Online features of the keys in `ask.entities`, such as `{"driver_id": [1001]}`; the node coerces numbers and
    /// strings to the types of the join keys.
    ///
    /// # Errors
    /// `NotFound` for an unknown service, view or feature; `InvalidArgument` for wrong or missing keys.
    pub async fn get_online_features(&self, ask: GetOnlineFeatures) -> Result<(RecordBatch, ReadReply)> {
        self.get(Command::GetOnlineFeatures(ask)).await
    }

    /// Predictions for the keys in `ask.entities`.
    ///
    /// # Errors
    /// `NotFound` for an unknown deployment, model, version or alias; `InvalidArgument` for wrong or missing keys.
    pub async fn get_predictions(&self, ask: Predict) -> Result<(RecordBatch, ReadReply)> {
        self.get(Command::Predict(ask)).await
    }

    /// The columns a command uploads (`ingest`) or answers with (reads).
    ///
    /// # Errors
    /// `NotFound` for what the command names; `Unsupported` for a command without a fixed schema.
    pub async fn schema(&self, command: &Command) -> Result<Schema> {
        let descriptor = FlightDescriptor::new_cmd(command.to_bytes());
        let found = self.call(Repeat::Harmless, descriptor, |channel, request| async move {
            limited!(FlightServiceClient, channel).get_schema(request).await
        });
        let protocol = |error: arrow_schema::ArrowError| Error::Protocol {
            address: self.address().to_owned(),
            reason: format!("a schema: {error}"),
        };
        Schema::try_from(found.await?).map_err(protocol)
    }

    async fn get(&self, command: Command) -> Result<(RecordBatch, ReadReply)> {
        let ticket = Ticket::new(command.to_bytes());
        let mut attempts = self.attempts(Repeat::Harmless);
        loop {
            let node = self.node().clone();
            let got = async {
                let reply = flight(&node).do_get(ticket.clone()).await;
                let reply = reply.map_err(|status| Error::of_status(&node.address, &status))?;
                collect(Replies::new(node.clone(), reply.into_inner())).await
            };
            let outcome = tokio::time::timeout(attempts.left(), got).await;
            let outcome = outcome.unwrap_or_else(|_| Err(attempts.timed_out(&node)));
            self.note(&node, outcome.as_ref().err());
            match outcome {
                Ok(found) => return Ok(found),
                Err(error) => attempts.pause_or(error).await?,
            }
        }
    }
}

async fn collect(mut replies: Replies) -> Result<(RecordBatch, ReadReply)> {
    let (mut schema, mut batches, mut read) = (None, Vec::new(), ReadReply::default());
    let address = replies.node().address.clone();
    while let Some(message) = replies.next().await {
        let message = message?;
        let metadata = message.app_metadata();
        if !metadata.is_empty() {
            read = read_reply(&address, &metadata)?;
        }
        match message.payload {
            DecodedPayload::Schema(found) => schema = Some(found),
            DecodedPayload::RecordBatch(rows) => batches.push(rows),
            DecodedPayload::None => {}
        }
    }
    let protocol = |reason: String| Error::Protocol { address: address.clone(), reason };
    let schema = schema.ok_or_else(|| protocol("an answer without a schema".into()))?;
    let rows = arrow_select::concat::concat_batches(&schema, &batches).map_err(|error| protocol(error.to_string()))?;
    Ok((rows, read))
}
