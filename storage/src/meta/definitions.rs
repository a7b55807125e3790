//! Applying definitions: checked as a whole, bound to versions, all or nothing.

mod check;

use super::Row;
use super::apply::{Answer, Context};
use super::lineage::Edges;
use super::names::check_name;
use crate::catalog::{Catalog, DefinitionKind, Project};
use crate::{Error, Result};
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    self as record, ApplyDefinitions, Definition, DefinitionVersion, DefinitionsApplied, Field,
};
use std::collections::BTreeSet;

/// Definitions in one command.
const DEFINITIONS_MAX: usize = 10_000;

pub fn apply_definitions(context: &Context<'_>, ask: &ApplyDefinitions) -> Answer {
    let name = &ask.project;
    let before = context.catalog.project(name).ok();
    let found = before.map_or(0, |project| project.catalog_version());
    if found != ask.expected_catalog_version {
        return Err(Error::Conflict(format!(
            "the definitions of project `{name}` changed since they were read (catalog version {found}, not {}); \
             plan again",
            ask.expected_catalog_version
        )));
    }
    let change = new_versions(context.catalog, name, &ask.definitions, context.index, context.now_us)?;
    if change.versions.is_empty() && before.is_some() {
        return Ok((applied(found, Vec::new()), Vec::new()));
    }
    let outcome = applied(context.index, change.versions);
    Ok((outcome, change.rows))
}

/// The versions that applying `definitions` to `project` now would make, found by the code that applies them. Those
/// that change nothing are left out; index and time are 0.
///
/// # Errors
/// `InvalidArgument`, `NotFound` or `AlreadyExists`, exactly as the command would be refused.
pub fn preview(catalog: &Catalog, project: &str, definitions: &[Definition]) -> Result<Vec<DefinitionVersion>> {
    Ok(new_versions(catalog, project, definitions, 0, 0)?.versions)
}

/// A new definition, with its project if that is new too, for commands that make one on the way.
pub fn one_more(context: &Context<'_>, project: &str, definition: Definition) -> Result<Vec<Row>> {
    Ok(new_versions(context.catalog, project, &[definition], context.index, context.now_us)?.rows)
}

struct Change {
    versions: Vec<DefinitionVersion>,
    /// Project, definitions, lineage.
    rows: Vec<Row>,
}

fn new_versions(
    catalog: &Catalog,
    project: &str,
    definitions: &[Definition],
    index: u64,
    now_us: i64,
) -> Result<Change> {
    check_name("a project", project)?;
    if definitions.len() > DEFINITIONS_MAX {
        return Err(Error::TooLarge(format!(
            "{} definitions at once are over the limit of {DEFINITIONS_MAX}; apply them in parts",
            definitions.len()
        )));
    }
    let mut sorted = Vec::with_capacity(definitions.len());
    let mut seen = BTreeSet::new();
    for definition in definitions {
        let (kind, name) = DefinitionKind::of(definition)
            .ok_or_else(|| Error::InvalidArgument("a definition without content; give it a kind".to_owned()))?;
        if !seen.insert((kind, name)) {
            return Err(Error::InvalidArgument(format!("{} `{name}` is defined twice; define it once", kind.words())));
        }
        sorted.push((kind, name, definition));
    }
    // A definition builds only on kinds before its own.
    sorted.sort_by_key(|(kind, _, _)| *kind);

    let record = match catalog.project(project) {
        Ok(found) => record::Project { catalog_version: index, ..found.record().clone() },
        Err(_) => record::Project {
            name: project.to_owned(),
            catalog_version: index,
            created_us: now_us,
            created_index: index,
        },
    };
    let mut draft = catalog.clone();
    let mut rows = vec![Row::Project(record)];
    draft.take(&rows[0])?;
    let mut versions = Vec::new();
    let mut edges = Edges::new(index, now_us);
    for (kind, name, definition) in sorted {
        let here = draft.project(project)?;
        let definition = complete(here, kind, name, definition)?;
        let newest = here.definition(kind, name);
        if newest.as_ref().and_then(|newest| newest.definition.as_ref()) == Some(&definition) {
            continue;
        }
        let version = DefinitionVersion {
            project: project.to_owned(),
            version: newest.as_ref().map_or(1, |newest| newest.version + 1),
            storage_id: storage_id(&draft, &definition, newest.as_ref()),
            definition: Some(definition),
            index,
            applied_us: now_us,
        };
        let row = Row::Definition(version.clone());
        draft.take(&row)?;
        edges.add_definition(draft.project(project)?, &version)?;
        rows.push(row);
        versions.push(version);
    }
    rows.extend(edges.into_rows());
    Ok(Change { versions, rows })
}

/// The definition, checked, with its references bound to versions.
fn complete(project: &Project, kind: DefinitionKind, name: &str, definition: &Definition) -> Result<Definition> {
    let mut definition = definition.clone();
    let filled = match &mut definition.kind {
        Some(Kind::Entity(entity)) => check::entity(project, entity),
        Some(Kind::FeatureView(view)) => check::feature_view(project, view),
        Some(Kind::OnDemandFeatureView(view)) => {
            view.resolved.clear();
            check::on_demand_feature_view(project, view)
                .and_then(|()| project.resolve(&view.sources))
                .map(|resolved| view.resolved = resolved)
        }
        Some(Kind::FeatureService(service)) => {
            service.resolved.clear();
            check::feature_service(service)
                .and_then(|()| project.resolve(&service.features))
                .map(|resolved| service.resolved = resolved)
        }
        Some(Kind::Model(model)) => check::model(project, model),
        Some(Kind::Deployment(deployment)) => check::deployment(project, deployment),
        None => Ok(()),
    };
    // Which definition is at fault, whatever its own message says.
    let at = |message: String| format!("{} `{}`: {message}", kind.words(), name.escape_debug());
    filled.map_err(|error| match error {
        Error::InvalidArgument(message) => Error::InvalidArgument(at(message)),
        Error::NotFound(message) => Error::NotFound(at(message)),
        Error::AlreadyExists(message) => Error::AlreadyExists(at(message)),
        other => other,
    })?;
    Ok(definition)
}

/// Rows are shared with the version before while entities and features stay as they were.
fn storage_id(draft: &Catalog, definition: &Definition, newest: Option<&DefinitionVersion>) -> u32 {
    let Some(Kind::FeatureView(view)) = &definition.kind else { return 0 };
    let before = newest.and_then(|newest| Some((newest.storage_id, newest.definition.as_ref()?.kind.as_ref()?)));
    match before {
        Some((storage_id, Kind::FeatureView(before)))
            if before.entities == view.entities && same_columns(&before.features, &view.features) =>
        {
            storage_id
        }
        _ => draft.storage_ids() + 1,
    }
}

/// Equal names and types, in order.
fn same_columns(one: &[Field], other: &[Field]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| one.name == other.name && one.r#type == other.r#type)
}

fn applied(catalog_version: u64, versions: Vec<DefinitionVersion>) -> Outcome {
    Outcome::DefinitionsApplied(DefinitionsApplied { catalog_version, versions })
}
