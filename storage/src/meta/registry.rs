//! Model versions, registered once and for ever; aliases, moved by compare-and-set.

use super::Row;
use super::apply::{Answer, Context};
use super::definitions::one_more;
use super::lineage::{Edges, LineageNode, view_node};
use super::names::check_name;
use crate::catalog::{Project, Reference};
use crate::{Error, Result};
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    AliasMove, AliasMoved, Definition, FeatureRef, Model, ModelVersion, ModelVersionRegistered, MoveAlias,
    RegisterModelVersion,
};
use cairn_proto::{DEFAULT_PROJECT, Token};

/// The alias that is always there: the newest version.
const LATEST: &str = "latest";
/// Everything but the artifact, bytes.
const MODEL_VERSION_BYTES_MAX: usize = 1 << 20;

pub fn register_model_version(context: &Context<'_>, ask: &RegisterModelVersion) -> Answer {
    let asked = ask.model_version.clone().unwrap_or_default();
    check_model_version(&asked)?;
    let project = match context.catalog.project(&asked.project) {
        Ok(project) => Some(project),
        // The project used when none is named needs no definitions before its first model.
        Err(_) if ask.create_model && asked.project == DEFAULT_PROJECT => None,
        Err(unknown) => return Err(unknown),
    };
    let registered = match project.map(|project| project.model(&asked.model)) {
        Some(Ok(model)) => Some(model),
        Some(Err(unknown)) if !ask.create_model => return Err(unknown),
        _ => None,
    };
    let mut version = ModelVersion {
        version: registered.map_or(1, |model| model.versions().len() as u32 + 1),
        created_us: context.now_us,
        index: context.index,
        ..asked
    };
    if version.feature_service.is_empty()
        && let Some(definition) = registered.and_then(|model| model.definition())
    {
        version.feature_service = definition.feature_service.clone();
    }
    let nothing = Project::default();
    let here = project.map_or(&nothing, |project| project);
    if version.feature_service.is_empty() {
        version.feature_service_version = 0;
    } else {
        let service = match version.feature_service_version {
            // What it was trained on, if nobody says: a version that readers got.
            0 => here.served_feature_service(&version.feature_service)?,
            named => here.feature_service(&version.feature_service, Some(named))?,
        };
        version.feature_service_version = service.version;
    }
    if version.token.is_empty() {
        version.token = Token::new(0, context.index).to_string();
    }
    let edges = edges(context, here, &version, &ask.input_features)?;

    let mut rows = Vec::new();
    if registered.is_none() {
        let model = Model { name: version.model.clone(), ..Model::default() };
        rows.extend(one_more(context, &version.project, Definition { kind: Some(Kind::Model(model)) })?);
    }
    rows.push(Row::ModelVersion(Box::new(version.clone())));
    rows.extend(edges);
    Ok((Outcome::ModelVersionRegistered(ModelVersionRegistered { model_version: Some(version) }), rows))
}

fn check_model_version(version: &ModelVersion) -> Result<()> {
    check_name("a project", &version.project)?;
    check_name("a model", &version.model)?;
    let artifact = version.artifact.as_ref();
    if !artifact.is_some_and(|artifact| artifact.root.len() == 32 && artifact.sha256.len() == 32) {
        return Err(Error::InvalidArgument(format!(
            "a version of model `{}` needs an artifact with its root and SHA-256; upload the file first",
            version.model
        )));
    }
    let bytes = prost::Message::encoded_len(version);
    if bytes > MODEL_VERSION_BYTES_MAX {
        return Err(Error::TooLarge(format!(
            "metrics, tags and texts of a model version have {bytes} bytes; the limit is {MODEL_VERSION_BYTES_MAX}"
        )));
    }
    Ok(())
}

fn edges(context: &Context<'_>, here: &Project, version: &ModelVersion, inputs: &[String]) -> Result<Vec<Row>> {
    let project = version.project.as_str();
    let to = LineageNode::ModelVersion { project, model: &version.model, version: version.version };
    let mut edges = Edges::new(context.index, context.now_us);
    let root = version.artifact.as_ref().map(|artifact| &artifact.root[..]).unwrap_or_default();
    edges.add(LineageNode::Artifact { root }, to, "artifact_of");
    if !version.feature_service.is_empty() {
        let (name, version) = (version.feature_service.as_str(), version.feature_service_version);
        edges.add(LineageNode::FeatureService { project, name, version }, to, "trained_on");
    }
    let mut views: Vec<FeatureRef> = Vec::new();
    for input in inputs {
        for feature in here.resolve(&[Reference::parse(input)?.to_string()])? {
            let known = views.iter().any(|view| view_node(project, view) == view_node(project, &feature));
            if !known {
                views.push(feature);
            }
        }
    }
    edges.add_reads(project, &views, to);
    Ok(edges.into_rows())
}

pub fn move_alias(context: &Context<'_>, ask: &MoveAlias) -> Answer {
    let MoveAlias { project, model, alias, to_version, .. } = ask;
    if alias == LATEST || (!alias.is_empty() && alias.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Error::InvalidArgument(format!(
            "`{alias}` always means a version by itself; choose another name for the alias"
        )));
    }
    check_name("an alias", alias)?;
    let here = context.catalog.project(project)?;
    let from_version = here.model(model)?.alias_version(alias);
    if ask.check_expected && from_version != ask.expected_version {
        let at = |version, none: &str| if version == 0 { none.to_owned() } else { format!("at version {version}") };
        let (found, expected) = (at(from_version, "not set"), at(ask.expected_version, "not to be set"));
        return Err(Error::Conflict(format!(
            "alias `{alias}` of model `{model}` is {found}, and the move expects it {expected}; look at it again and \
             decide again"
        )));
    }
    match *to_version {
        0 if from_version == 0 => {
            here.alias(model, alias)?;
        }
        0 => {}
        version => {
            here.model_version(model, version)?;
        }
    }
    let moved = AliasMove {
        project: project.clone(),
        model: model.clone(),
        alias: alias.clone(),
        from_version,
        to_version: *to_version,
        moved_us: context.now_us,
        index: context.index,
        author: ask.author.clone(),
        reason: ask.reason.clone(),
    };
    let outcome = Outcome::AliasMoved(AliasMoved { moved: Some(moved.clone()) });
    if from_version == *to_version {
        return Ok((outcome, Vec::new())); // there already: nothing moves, so no history either
    }
    let mut rows = vec![Row::Alias(moved.clone()), Row::AliasHistory(moved)];
    if *to_version != 0 {
        let mut edges = Edges::new(context.index, context.now_us);
        let from = LineageNode::ModelVersion { project, model, version: *to_version };
        edges.add(from, LineageNode::Alias { project, model, alias }, "aliased");
        rows.extend(edges.into_rows());
    }
    Ok((outcome, rows))
}
