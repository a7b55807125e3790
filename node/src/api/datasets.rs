//! Datasets: pinned, registered, shown.

use crate::error::Error;
use crate::node::Node;
use crate::predict::{hex, unhex};
use crate::{artifacts, datasets, meta_write};
use cairn_proto::api::v1 as api;
use cairn_proto::record::v1::{self as record, meta_command::Change, meta_outcome::Outcome};
use std::sync::Arc;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
pub struct Datasets {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::datasets_server::Datasets for Datasets {
    async fn pin(&self, request: Request<api::PinRequest>) -> Result<Response<api::Pinned>, Status> {
        let ask = request.into_inner();
        self.node.writes.check().map_err(Error::from)?;
        let pin = datasets::pin(&self.node, &ask.project, &ask.feature_service, &ask.features, ask.known_us).await?;
        let datasets::Pin { feature_service_version, features, known_us } = pin;
        Ok(Response::new(api::Pinned { feature_service_version, features, known_us }))
    }

    async fn register(&self, request: Request<api::RegisterDatasetRequest>) -> Result<Response<api::Dataset>, Status> {
        let api::RegisterDatasetRequest { dataset, request_id } = request.into_inner();
        let ask = dataset.ok_or_else(|| Error::invalid("the request has no `dataset`"))?;
        // Whoever made it may have fixed no moment, and it is kept for ever.
        datasets::pin_moment(&self.node, Some(ask.known_us)).await?;
        let spine = artifacts::describe(&self.node, unhex(&ask.spine_root)?).await?;
        let dataset = record::Dataset {
            project: ask.project,
            name: ask.name,
            spine: Some(spine),
            spine_file: ask.spine_file,
            event_timestamp: ask.event_timestamp,
            feature_service: ask.feature_service,
            feature_service_version: ask.feature_service_version,
            features: ask.features,
            known_us: ask.known_us,
            ignore_created: ask.ignore_created,
            created_as_of_us: ask.created_as_of_us,
            statuses: ask.statuses,
            full_feature_names: ask.full_feature_names,
            content: unhex(&ask.content)?.to_vec().into(),
            file_format: ask.file_format,
            rows: ask.rows,
            token: ask.token,
            author: ask.author,
            description: ask.description,
            ..record::Dataset::default()
        };
        let change = Change::RegisterDataset(record::RegisterDataset { dataset: Some(dataset) });
        let (outcome, _) = meta_write::propose(&self.node, change, request_id).await?;
        let Outcome::DatasetRegistered(dataset) = outcome else {
            return Err(Error::internal("a dataset was answered with something else").into());
        };
        Ok(Response::new(to_api(dataset)))
    }

    async fn get(&self, request: Request<api::GetDatasetRequest>) -> Result<Response<api::Dataset>, Status> {
        let ask = request.into_inner();
        self.node.fresh_catalog().await?;
        Ok(Response::new(to_api(self.node.meta.dataset(&ask.project, &ask.name).map_err(Error::from)?)))
    }

    async fn list(
        &self,
        request: Request<api::ListDatasetsRequest>,
    ) -> Result<Response<api::ListDatasetsReply>, Status> {
        self.node.fresh_catalog().await?;
        let datasets = self.node.meta.datasets(&request.into_inner().project).map_err(Error::from)?;
        Ok(Response::new(api::ListDatasetsReply { datasets: datasets.into_iter().map(to_api).collect() }))
    }
}

fn to_api(dataset: record::Dataset) -> api::Dataset {
    let spine = dataset.spine.unwrap_or_default();
    api::Dataset {
        project: dataset.project,
        name: dataset.name,
        spine_root: hex(&spine.root),
        spine_bytes: spine.size,
        spine_file: dataset.spine_file,
        event_timestamp: dataset.event_timestamp,
        feature_service: dataset.feature_service,
        feature_service_version: dataset.feature_service_version,
        features: dataset.features,
        known_us: dataset.known_us,
        ignore_created: dataset.ignore_created,
        created_as_of_us: dataset.created_as_of_us,
        statuses: dataset.statuses,
        full_feature_names: dataset.full_feature_names,
        content: hex(&dataset.content),
        file_format: dataset.file_format,
        rows: dataset.rows,
        token: dataset.token,
        author: dataset.author,
        description: dataset.description,
        created_us: dataset.created_us,
    }
}
