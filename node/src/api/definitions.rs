//! `plan`, `apply` and `list` of definitions.

use crate::definitions::{self, Plan};
use crate::error::{Error, Result};
use crate::meta_write;
use crate::node::Node;
use cairn_proto::ErrorKind;
use cairn_proto::api::v1 as api;
use cairn_proto::record::v1 as record;
use cairn_proto::token::Token;
use cairn_storage::catalog::{Catalog, DefinitionKind, Project};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Times a plan is made again because somebody else's apply came between.
const RACES_MAX: usize = 16;
/// Problems spelled out in one refusal.
const PROBLEMS_MAX: usize = 20;

#[derive(Debug, Clone)]
pub struct Definitions {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::definitions_server::Definitions for Definitions {
    async fn plan(&self, request: Request<api::PlanRequest>) -> Result<Response<api::PlanReply>, Status> {
        let ask = request.into_inner();
        let catalog = self.node.fresh_catalog().await?;
        let plan = make_plan(&catalog, &ask)?;
        Ok(Response::new(api::PlanReply { changes: plan.changes }))
    }

    async fn apply(&self, request: Request<api::PlanRequest>) -> Result<Response<api::ApplyReply>, Status> {
        let ask = request.into_inner();
        Ok(Response::new(apply(&self.node, &ask).await?))
    }

    async fn list(
        &self,
        request: Request<api::ListDefinitionsRequest>,
    ) -> Result<Response<api::ListDefinitionsReply>, Status> {
        let catalog = self.node.fresh_catalog().await?;
        let project = request.into_inner().project;
        let project = catalog.project(&project).map_err(Error::from)?;
        Ok(Response::new(api::ListDefinitionsReply { rows: rows(project) }))
    }
}

/// Plans and proposes; when another apply won the race, plans again over what it left.
async fn apply(node: &Arc<Node>, ask: &api::PlanRequest) -> Result<api::ApplyReply> {
    for _ in 0..RACES_MAX {
        let catalog = node.fresh_catalog().await?;
        let plan = make_plan(&catalog, ask)?;
        if plan.is_empty() {
            // Where the project's definitions stand: the token that the apply which made them returned.
            let token = Token::new(0, plan.command.expected_catalog_version);
            return Ok(api::ApplyReply { changes: plan.changes, token: token.to_string() });
        }
        let change = record::meta_command::Change::ApplyDefinitions(plan.command);
        match meta_write::propose(node, change, String::new()).await {
            Ok((_, index)) => {
                return Ok(api::ApplyReply { changes: plan.changes, token: Token::new(0, index).to_string() });
            }
            Err(error) if error.kind == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("others applied definitions to project `{}` all the while; try again", ask.project),
    ))
}

fn make_plan(catalog: &Catalog, ask: &api::PlanRequest) -> Result<Plan> {
    definitions::parse::check_name(&ask.project, true).map_err(|why| Error::invalid(format!("project: {why}")))?;
    if ask.files.is_empty() {
        return Err(Error::invalid(
            "no definition files were sent; -f names a YAML file or a directory with *.yaml or *.yml files",
        ));
    }
    let said = |problems: Vec<definitions::Problem>| {
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        let mut lines: Vec<String> = problems.iter().take(PROBLEMS_MAX).map(ToString::to_string).collect();
        if more > 0 {
            lines.push(format!("… and {more} more"));
        }
        Error::invalid(lines.join("\n"))
    };
    let placed = definitions::parse::parse(&ask.files).map_err(said)?;
    if placed.is_empty() {
        return Err(Error::invalid("the files hold no definitions"));
    }
    definitions::plan(catalog, &ask.project, placed).map_err(said)
}

/// The newest version of all a project has.
fn rows(project: &Project) -> Vec<api::DefinitionRow> {
    let row = |version: record::DefinitionVersion| {
        let (kind, name) = DefinitionKind::of(version.definition.as_ref()?)?;
        Some(api::DefinitionRow {
            kind: kind.as_str().to_owned(),
            name: name.to_owned(),
            version: version.version,
            summary: summary(&version),
            applied_us: version.applied_us,
        })
    };
    project.definitions().filter_map(row).collect()
}

/// A definition in a few words, for listings.
fn summary(version: &record::DefinitionVersion) -> String {
    use record::definition::Kind;
    let names = |fields: &[record::Field]| fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>().join(", ");
    match version.definition.as_ref().and_then(|definition| definition.kind.as_ref()) {
        Some(Kind::Entity(it)) => names(&it.join_keys),
        Some(Kind::FeatureView(it)) => format!("{} by {}", count(it.features.len(), "feature"), it.entities.join(", ")),
        Some(Kind::OnDemandFeatureView(it)) => format!("{} in SQL", count(it.features.len(), "feature")),
        Some(Kind::FeatureService(it)) => count(it.resolved.len(), "feature"),
        Some(Kind::Model(it)) if it.feature_service.is_empty() => String::new(),
        Some(Kind::Model(it)) => format!("reads {}", it.feature_service),
        Some(Kind::Deployment(it)) => {
            let champion = it.champion.clone().unwrap_or_default();
            let arm = if champion.alias.is_empty() { champion.version.to_string() } else { champion.alias };
            format!("{} @ {arm}", it.model)
        }
        None => String::new(),
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
