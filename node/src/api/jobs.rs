//! Jobs: begun, shown, paused, given up.

use crate::backfill;
use crate::error::Error;
use crate::node::Node;
use cairn_proto::api::v1 as api;
use cairn_proto::record::v1::{self as record, job::Kind};
use cairn_storage::catalog::Catalog;
use cairn_storage::meta::{chunk_count, job_state_name};
use std::sync::Arc;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
pub struct Jobs {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::jobs_server::Jobs for Jobs {
    async fn begin_backfill(&self, request: Request<api::BeginBackfillRequest>) -> Result<Response<api::Job>, Status> {
        let job = backfill::begin(&self.node, request.into_inner()).await?;
        Ok(Response::new(to_api(&self.node.meta.catalog(), &job)))
    }

    async fn get(&self, request: Request<api::GetJobRequest>) -> Result<Response<api::Job>, Status> {
        let catalog = self.node.fresh_catalog().await?;
        let job = catalog.job(request.into_inner().id).map_err(Error::from)?;
        Ok(Response::new(to_api(&catalog, job)))
    }

    async fn list(&self, _: Request<api::ListJobsRequest>) -> Result<Response<api::ListJobsReply>, Status> {
        let catalog = self.node.fresh_catalog().await?;
        let jobs = catalog.jobs().map(|job| to_api(&catalog, job)).collect();
        Ok(Response::new(api::ListJobsReply { jobs }))
    }

    async fn change(&self, request: Request<api::ChangeJobRequest>) -> Result<Response<api::Job>, Status> {
        let api::ChangeJobRequest { id, action } = request.into_inner();
        let job = backfill::change(&self.node, id, &action).await?;
        Ok(Response::new(to_api(&self.node.meta.catalog(), &job)))
    }
}

fn to_api(catalog: &Catalog, job: &record::Job) -> api::Job {
    let told = api::Job {
        id: job.id,
        project: job.project.clone(),
        state: job_state_name(job.state()).to_owned(),
        message: job.message.clone(),
        begun_us: job.begun_us,
        changed_us: job.changed_us,
        ended_us: job.ended_us,
        author: job.author.clone(),
        node: catalog.node(job.node).map(|node| node.name.clone()).unwrap_or_default(),
        ..api::Job::default()
    };
    let Some(Kind::Backfill(fill)) = &job.kind else { return told };
    api::Job {
        kind: "backfill".to_owned(),
        view: format!("{}@{}", fill.view, fill.view_version),
        from_us: fill.from_us,
        to_us: fill.to_us,
        chunk_us: fill.chunk_us,
        chunks: chunk_count(fill),
        chunks_done: fill.done.iter().map(|range| range.last - range.first + 1).sum(),
        rows: fill.rows,
        files: fill.files.iter().map(|file| file.path.clone()).collect(),
        ..told
    }
}
