//! SQL by Flight SQL, in one call: the query is its own ticket.

use super::codec::Replies;
use super::flight;
use crate::Client;
use crate::error::{Error, Result};
use crate::retry::Repeat;
use arrow_array::RecordBatch;
use arrow_flight::Ticket;
use arrow_flight::decode::DecodedPayload;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_schema::SchemaRef;
use prost::Message;
use std::fmt;
use std::time::Duration;
use tonic::Request;

/// Names the project of tables that have none.
const PROJECT_HEADER: &str = "cairn-project";

/// The rows of a query, as they come. Dropping this ends the query.
pub struct SqlRows {
    schema: SchemaRef,
    replies: Replies,
    /// Longest time between two answers.
    pause_max: Duration,
}

impl fmt::Debug for SqlRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlRows").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl SqlRows {
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// `TooLarge` or `Timeout` when the query passes a limit of the node; what stopped it.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let message = tokio::time::timeout(self.pause_max, self.replies.next()).await;
            let address = || self.replies.node().address.clone();
            let message = message.map_err(|_| Error::Timeout { address: address(), waited: self.pause_max })?;
            let Some(message) = message else { return Ok(None) };
            if let DecodedPayload::RecordBatch(rows) = message?.payload {
                return Ok(Some(rows));
            }
        }
    }
}

impl Client {
    /// Runs one query, which cannot write. Tables without a schema are of `project`. Sees everything acknowledged
    /// before.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no query, writes, or names what is not there; `Overloaded`, `Timeout`.
    pub async fn sql(&self, query: &str, project: &str) -> Result<SqlRows> {
        let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
        let ticket = Ticket::new(command.as_any().encode_to_vec());
        let project = project.parse().map_err(|_| Error::Input(format!("`{project}` is no name of a project")))?;
        let pause_max = self.options().deadline;
        let mut attempts = self.attempts(Repeat::Harmless);
        loop {
            let node = self.node().clone();
            let begin = async {
                let mut request = Request::new(ticket.clone());
                request.metadata_mut().insert(PROJECT_HEADER, Clone::clone(&project));
                let reply = flight(&node).do_get(request).await;
                let reply = reply.map_err(|status| Error::of_status(&node.address, &status))?;
                let mut replies = Replies::new(node.clone(), reply.into_inner());
                let first = replies.next().await.transpose()?;
                match first.map(|message| message.payload) {
                    Some(DecodedPayload::Schema(schema)) => Ok(SqlRows { schema, replies, pause_max }),
                    _ => Err(Error::Protocol {
                        address: node.address.clone(),
                        reason: "an answer without a schema".into(),
                    }),
                }
            };
            let outcome = tokio::time::timeout(attempts.left(), begin).await;
            let outcome = outcome.unwrap_or_else(|_| Err(attempts.timed_out(&node)));
            self.note(&node, outcome.as_ref().err());
            match outcome {
                Ok(rows) => return Ok(rows),
                Err(error) => attempts.pause_or(error).await?,
            }
        }
    }
}
