//! Datasets: training sets that can be made again, byte for byte.
//!
//! A dataset is made in three steps: [`Client::pin`] fixes versions and a moment, the join runs at exactly those
//! ([`join_of`]), and [`Client::register_dataset`] keeps how it was made and what came out. Only the last is seen by others.

use crate::api::datasets_client::DatasetsClient;
use crate::command::{GetHistoricalFeatures, Level, Read};
use crate::connection::limited;
use crate::error::Result;
use crate::retry::{Repeat, request_id};
use crate::{Client, Timestamp, api, read};

impl Client {
    /// Fixes a service or features to their versions, and a moment that no later write can change: the past one asked for, or
    /// now.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `InvalidArgument` for a moment that has not come yet, or unless either a service or
    /// features are named.
    pub async fn pin(&self, ask: api::PinRequest) -> Result<api::Pinned> {
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(DatasetsClient, channel).pin(request).await
        })
        .await
    }

    /// Keeps a dataset under its name, for ever. Its spine was uploaded before.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `NotFound` for an unknown artifact, service or feature; `InvalidArgument` for a
    /// moment that has not come yet.
    pub async fn register_dataset(&self, dataset: api::Dataset) -> Result<api::Dataset> {
        let ask = api::RegisterDatasetRequest { dataset: Some(dataset), request_id: request_id() };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(DatasetsClient, channel).register(request).await
        })
        .await
    }

    /// One dataset.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn dataset(&self, project: &str, name: &str) -> Result<api::Dataset> {
        let ask = api::GetDatasetRequest { project: project.to_owned(), name: name.to_owned() };
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(DatasetsClient, channel).get(request).await
        })
        .await
    }

    /// Every dataset of a project, by name.
    ///
    /// # Errors
    /// `NotFound` for an unknown project.
    pub async fn datasets(&self, project: &str) -> Result<Vec<api::Dataset>> {
        let ask = api::ListDatasetsRequest { project: project.to_owned() };
        let reply = self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(DatasetsClient, channel).list(request).await
        });
        Ok(reply.await?.datasets)
    }
}

/// The join that makes a dataset, and makes it again.
pub fn join_of(dataset: &api::Dataset) -> GetHistoricalFeatures {
    let service = Some(&dataset.feature_service).filter(|service| !service.is_empty());
    GetHistoricalFeatures {
        feature_service: service.cloned(),
        feature_service_version: service.map(|_| dataset.feature_service_version),
        features: if service.is_some() { None } else { Some(dataset.features.clone()) },
        // Whoever answers has all that was there at that moment.
        read: Read { level: Level::Linearizable, ..Read::default() },
        known_as_of: Some(Timestamp(dataset.known_us)),
        created_as_of: dataset.created_as_of_us.map(Timestamp),
        ignore_created: dataset.ignore_created,
        event_timestamp: dataset.event_timestamp.clone(),
        statuses: dataset.statuses,
        full_feature_names: dataset.full_feature_names,
        ..read::historical(&dataset.project)
    }
}
