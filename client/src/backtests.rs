//! Backtests that were kept: how model versions did on the past, as evidence that never changes.
//! [`Client::run_backtest`] makes one.

use crate::api::backtests_client::BacktestsClient;
use crate::connection::limited;
use crate::error::Result;
use crate::retry::Repeat;
use crate::{Client, api};

impl Client {
    /// One backtest, with its windows.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn backtest(&self, project: &str, id: u64) -> Result<api::Backtest> {
        let ask = api::GetBacktestRequest { project: project.to_owned(), id };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(BacktestsClient, channel).get(request).await
        })
        .await
    }

    /// The newest backtests, without their windows: of the whole project, of a model (version 0), or of a version of it. At
    /// most `limit`, 0 = 100.
    ///
    /// # Errors
    /// `NotFound` for an unknown project, model or version.
    pub async fn backtests(
        &self,
        project: &str,
        model: &str,
        version: u32,
        limit: u32,
    ) -> Result<api::ListBacktestsReply> {
        let ask = api::ListBacktestsRequest { project: project.to_owned(), model: model.to_owned(), version, limit };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(BacktestsClient, channel).list(request).await
        })
        .await
    }
}
