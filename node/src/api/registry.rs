//! Models, versions, aliases and lineage.

use crate::error::{Error, Result};
use crate::meta_write;
use crate::node::Node;
use crate::predict::{hex, load_bytes, unhex};
use bytes::Bytes;
use cairn_proto::api::v1 as api;
use cairn_proto::record::v1 as record;
use cairn_proto::token::Token;
use cairn_storage::catalog::Project;
use record::meta_command::Change;
use record::meta_outcome::Outcome;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Metrics and tags of one version.
const LABELS_MAX: usize = 1_000;
const LABEL_BYTES_MAX: usize = 5_000;
/// Depth of a lineage question when none is given, and at most.
const DEPTH_DEFAULT: u32 = 10;
const DEPTH_MAX: u32 = 100;

#[derive(Debug, Clone)]
pub struct Registry {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::registry_server::Registry for Registry {
    async fn register_model_version(
        &self,
        request: Request<api::RegisterModelVersionRequest>,
    ) -> Result<Response<api::ModelVersion>, Status> {
        Ok(Response::new(register(&self.node, request.into_inner()).await?))
    }

    async fn list_models(
        &self,
        request: Request<api::ListModelsRequest>,
    ) -> Result<Response<api::ListModelsReply>, Status> {
        let catalog = self.node.fresh_catalog().await?;
        let project = catalog.project(&request.into_inner().project).map_err(Error::from)?;
        let models = project.models().map(|(name, _)| model(project, name)).collect::<Result<_>>()?;
        Ok(Response::new(api::ListModelsReply { models }))
    }

    async fn get_model(
        &self,
        request: Request<api::GetModelRequest>,
    ) -> Result<Response<api::RegisteredModel>, Status> {
        let ask = request.into_inner();
        let catalog = self.node.fresh_catalog().await?;
        Ok(Response::new(model(catalog.project(&ask.project).map_err(Error::from)?, &ask.model)?))
    }

    async fn get_model_version(
        &self,
        request: Request<api::GetModelVersionRequest>,
    ) -> Result<Response<api::ModelVersion>, Status> {
        let ask = request.into_inner();
        let catalog = self.node.fresh_catalog().await?;
        let project = catalog.project(&ask.project).map_err(Error::from)?;
        let version = match (ask.version, ask.alias.as_str()) {
            (0, "") => return Err(Error::invalid("name a `version` or an `alias`").into()),
            (0, alias) => project.alias(&ask.model, alias),
            (version, "") => project.model_version(&ask.model, version),
            _ => return Err(Error::invalid("name a `version` or an `alias`, not both").into()),
        };
        let version = version.map_err(Error::from)?;
        Ok(Response::new(to_api(version, project)))
    }

    async fn move_alias(&self, request: Request<api::MoveAliasRequest>) -> Result<Response<api::AliasMove>, Status> {
        let ask = request.into_inner();
        let change = Change::MoveAlias(record::MoveAlias {
            project: ask.project,
            model: ask.model,
            alias: ask.alias,
            to_version: ask.to_version,
            check_expected: ask.check_expected,
            expected_version: ask.expected_version,
            author: ask.author,
            reason: ask.reason,
        });
        let (outcome, index) = meta_write::propose(&self.node, change, ask.request_id).await?;
        let Outcome::AliasMoved(record::AliasMoved { moved: Some(moved) }) = outcome else {
            return Err(Error::internal("an alias move was answered with something else").into());
        };
        Ok(Response::new(api::AliasMove { token: Token::new(0, index).to_string(), ..alias_move(moved) }))
    }

    async fn alias_history(
        &self,
        request: Request<api::GetModelRequest>,
    ) -> Result<Response<api::AliasHistoryReply>, Status> {
        let ask = request.into_inner();
        let catalog = self.node.fresh_catalog().await?;
        model(catalog.project(&ask.project).map_err(Error::from)?, &ask.model)?;
        let moves = self.node.meta.alias_history(&ask.project, &ask.model, None).map_err(Error::from)?;
        Ok(Response::new(api::AliasHistoryReply { moves: moves.into_iter().map(alias_move).collect() }))
    }

    async fn lineage(&self, request: Request<api::LineageRequest>) -> Result<Response<api::LineageReply>, Status> {
        let ask = request.into_inner();
        let up = match ask.direction.as_str() {
            "up" | "" => true,
            "down" => false,
            other => return Err(Error::invalid(format!("`direction` is `{other}`; it is `up` or `down`")).into()),
        };
        let depth = match ask.depth {
            0 => DEPTH_DEFAULT,
            depth if depth <= DEPTH_MAX => depth,
            depth => return Err(Error::invalid(format!("`depth` {depth} is over the limit of {DEPTH_MAX}")).into()),
        };
        self.node.fresh_catalog().await?;
        let edges = self.node.meta.lineage(&ask.node, up, depth).map_err(Error::from)?;
        if edges.is_empty() && !ask.node.contains(':') {
            let message = format!(
                "`{}` is not a lineage node; write `model_version:PROJECT/NAME@VERSION` or `feature_view:PROJECT/NAME@VERSION`",
                ask.node
            );
            return Err(Error::invalid(message).into());
        }
        let edge = |edge: record::LineageEdge| api::LineageEdge {
            from: edge.from,
            to: edge.to,
            kind: edge.kind,
            at_us: edge.at_us,
        };
        Ok(Response::new(api::LineageReply { edges: edges.into_iter().map(edge).collect() }))
    }
}

/// Checks everything about a new version first; one log entry makes it.
async fn register(node: &Arc<Node>, ask: api::RegisterModelVersionRequest) -> Result<api::ModelVersion> {
    crate::definitions::parse::check_name(&ask.model, true).map_err(|why| Error::invalid(format!("model: {why}")))?;
    let labels = ask.metrics.len() + ask.tags.len();
    let longest = ask.tags.iter().map(|(key, value)| key.len().max(value.len())).max().unwrap_or(0);
    if labels > LABELS_MAX || longest > LABEL_BYTES_MAX {
        return Err(Error::new(
            cairn_proto::ErrorKind::TooLarge,
            format!("metrics and tags are limited to {LABELS_MAX} of at most {LABEL_BYTES_MAX} bytes each"),
        ));
    }
    let token: Token = ask.token.parse()?;
    let catalog = node.fresh_catalog().await?;
    let project = catalog.project(&ask.project)?;
    let root = unhex(&ask.artifact_root)?;
    let artifact = crate::artifacts::describe(node, root).await?;
    let bytes = crate::artifacts::read_whole(node, root).await?;
    let loaded = load_bytes(node, root, bytes)
        .await
        .map_err(|error| Error::new(error.kind, format!("`{}`: {}", ask.file_name, error.message)))?;
    // A service on the definition is the default of its versions.
    let defined = project.model(&ask.model).ok().and_then(|it| Some(it.definition()?.feature_service.clone()));
    let service = if ask.feature_service.is_empty() { defined.unwrap_or_default() } else { ask.feature_service };
    let mut service_version = 0;
    let mut input_features = Vec::new();
    if !service.is_empty() {
        let bound = project.served_feature_service(&service)?;
        service_version = bound.version;
        let plan = crate::features::service_plan(node, &ask.project, &service, service_version)?;
        let row = crate::features::blank_row(&plan)?;
        node.executor.run(&loaded, row).await.map_err(|error| {
            Error::invalid(format!(
                "`{}` does not fit feature service `{service}@{service_version}`: {error}",
                ask.file_name
            ))
        })?;
        input_features =
            bound.resolved.iter().map(|it| format!("{}@{}:{}", it.view, it.view_version, it.feature)).collect();
    }
    let spec = |spec: &cairn_executor::TensorSpec| record::TensorSpec {
        name: spec.name.clone(),
        datatype: spec.datatype.to_string(),
        shape: spec.shape.clone(),
    };
    let signature = loaded.signature();
    let model_version = record::ModelVersion {
        project: ask.project.clone(),
        model: ask.model.clone(),
        artifact: Some(artifact),
        file_name: ask.file_name,
        format: "onnx".to_owned(),
        signature: Some(record::Signature {
            inputs: signature.inputs.iter().map(spec).collect(),
            outputs: signature.outputs.iter().map(spec).collect(),
        }),
        metrics: ask.metrics,
        feature_service: service,
        feature_service_version: service_version,
        token: token.to_string(),
        code_commit: ask.code_commit,
        run: ask.run,
        tags: ask.tags,
        author: ask.author,
        description: ask.description,
        ..record::ModelVersion::default()
    };
    let change = Change::RegisterModelVersion(record::RegisterModelVersion {
        model_version: Some(model_version),
        create_model: true,
        input_features,
    });
    let (outcome, _) = meta_write::propose(node, change, ask.request_id).await?;
    let Outcome::ModelVersionRegistered(record::ModelVersionRegistered { model_version: Some(version) }) = outcome
    else {
        return Err(Error::internal("a registration was answered with something else"));
    };
    let catalog = node.meta.catalog();
    Ok(to_api(&version, catalog.project(&ask.project)?))
}

fn model(project: &Project, name: &str) -> Result<api::RegisteredModel> {
    let model = project.model(name)?;
    let definition = model.definition();
    Ok(api::RegisteredModel {
        project: project.name().to_owned(),
        name: name.to_owned(),
        description: definition.map(|it| it.description.clone()).unwrap_or_default(),
        versions: model.versions().iter().map(|version| to_api(version, project)).collect(),
        aliases: model.aliases().map(|(alias, moved)| (alias.to_owned(), moved.to_version)).collect(),
        feature_service: definition.map(|it| it.feature_service.clone()).unwrap_or_default(),
    })
}

fn to_api(version: &record::ModelVersion, project: &Project) -> api::ModelVersion {
    let specs = |specs: &[record::TensorSpec]| {
        let spec = |spec: &record::TensorSpec| api::TensorSpec {
            name: spec.name.clone(),
            datatype: spec.datatype.clone(),
            shape: spec.shape.clone(),
        };
        specs.iter().map(spec).collect()
    };
    let signature = version.signature.clone().unwrap_or_default();
    let artifact = version.artifact.clone().unwrap_or_default();
    let bytes = |bytes: &Bytes| hex(bytes);
    let model = project.model(&version.model).ok();
    let pointing =
        model.iter().flat_map(|model| model.aliases()).filter(|(_, moved)| moved.to_version == version.version);
    let aliases = pointing.map(|(alias, _)| alias.to_owned());
    api::ModelVersion {
        project: version.project.clone(),
        model: version.model.clone(),
        version: version.version,
        artifact_root: bytes(&artifact.root),
        artifact_bytes: artifact.size,
        artifact_sha256: bytes(&artifact.sha256),
        file_name: version.file_name.clone(),
        format: version.format.clone(),
        inputs: specs(&signature.inputs),
        outputs: specs(&signature.outputs),
        metrics: version.metrics.clone(),
        feature_service: version.feature_service.clone(),
        feature_service_version: version.feature_service_version,
        token: version.token.clone(),
        code_commit: version.code_commit.clone(),
        run: version.run.clone(),
        tags: version.tags.clone(),
        created_us: version.created_us,
        author: version.author.clone(),
        description: version.description.clone(),
        aliases: aliases.collect(),
    }
}

fn alias_move(moved: record::AliasMove) -> api::AliasMove {
    api::AliasMove {
        alias: moved.alias,
        from_version: moved.from_version,
        to_version: moved.to_version,
        moved_us: moved.moved_us,
        author: moved.author,
        reason: moved.reason,
        token: Token::new(0, moved.index).to_string(),
    }
}
