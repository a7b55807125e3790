//! Jobs: long work that the cluster does by itself. A job goes on whoever asked for it and whichever node dies meanwhile.

use crate::api::jobs_client::JobsClient;
use crate::connection::limited;
use crate::error::Result;
use crate::retry::{Repeat, request_id};
use crate::{Client, api};

impl Client {
    /// Begins to fill a feature view from the files of its definition. A `request_id` is made where there is none.
    ///
    /// # Errors
    /// `NotFound` for an unknown view, or files that cannot be read now; `InvalidArgument` for a view without files, or files
    /// that do not fit it; `Conflict` when another job fills some of the same.
    pub async fn begin_backfill(&self, ask: api::BeginBackfillRequest) -> Result<api::Job> {
        let request_id = if ask.request_id.is_empty() { request_id() } else { ask.request_id };
        let ask = api::BeginBackfillRequest { request_id, ..ask };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(JobsClient, channel).begin_backfill(request).await
        })
        .await
    }

    /// How far a job is.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn job(&self, id: u64) -> Result<api::Job> {
        let ask = api::GetJobRequest { id };
        self.call(
            Repeat::Harmless,
            ask,
            |channel, request| async move { limited!(JobsClient, channel).get(request).await },
        )
        .await
    }

    /// All jobs of the cluster that are kept, oldest first.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn jobs(&self) -> Result<Vec<api::Job>> {
        let ask = api::ListJobsRequest {};
        let reply = self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(JobsClient, channel).list(request).await
        });
        Ok(reply.await?.jobs)
    }

    /// Does `pause`, `resume` or `cancel` to a job. The same again changes nothing.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a job that has ended.
    pub async fn change_job(&self, id: u64, action: &str) -> Result<api::Job> {
        let ask = api::ChangeJobRequest { id, action: action.to_owned() };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(JobsClient, channel).change(request).await
        })
        .await
    }
}
