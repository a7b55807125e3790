//! What a definition must be like before it becomes a version.

use super::same_columns;
use crate::catalog::Project;
use crate::meta::names::{check_column_name, check_name};
use crate::{Error, Result};
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1::{
    Arm, Deployment, Entity, FeatureService, FeatureType, FeatureView, Field, FileSource, Model, OnDemandFeatureView,
    ValueKind,
};
use std::collections::BTreeSet;

/// Features of one view, references of one service, and so on.
const COLUMNS_MAX: usize = 10_000;
/// Descriptions and other free text, bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

pub fn entity(project: &Project, entity: &Entity) -> Result<()> {
    check_name("an entity", &entity.name)?;
    check_text(&entity.description)?;
    check_count("join keys", entity.join_keys.len())?;
    check_columns("a join key", &entity.join_keys, is_key_type)?;
    let Ok(before) = project.entity(&entity.name) else { return Ok(()) };
    if same_columns(&before.join_keys, &entity.join_keys) {
        return Ok(());
    }
    // Rows on disk are found by these keys, and old view versions stay readable for ever.
    let users = project.feature_views().find(|view| {
        let mut versions = project.feature_view_versions(&view.name).iter();
        versions.any(|version| version.entities.contains(&entity.name))
    });
    match users {
        Some(view) => invalid(format!(
            "its join keys cannot change any more: feature view `{}` uses them; define another entity",
            view.name
        )),
        None => Ok(()),
    }
}

pub fn feature_view(project: &Project, view: &FeatureView) -> Result<()> {
    check_name("a feature view", &view.name)?;
    check_text(&view.description)?;
    check_text(&view.source)?;
    view.files.iter().try_for_each(check_files)?;
    if project.has_on_demand_feature_view(&view.name) {
        return taken("an on-demand feature view");
    }
    check_count("entities", view.entities.len())?;
    check_count("features", view.features.len())?;
    if view.ttl_us < 0 {
        return invalid("its ttl is negative; leave it out for no limit".to_owned());
    }
    check_columns("a feature", &view.features, |_| true)?;
    let mut names: BTreeSet<&str> = view.features.iter().map(|feature| feature.name.as_str()).collect();
    for name in [EVENT_TIMESTAMP, CREATED_TIMESTAMP] {
        if !names.insert(name) {
            return invalid(format!("`{name}` is the column of a time; call the feature something else"));
        }
    }
    for name in &view.entities {
        for key in &project.entity(name)?.join_keys {
            if !names.insert(&key.name) {
                return invalid(format!(
                    "`{}` of entity `{name}` is there already, as a feature or a join key; rename one of them",
                    key.name
                ));
            }
        }
    }
    Ok(())
}

pub fn on_demand_feature_view(project: &Project, view: &OnDemandFeatureView) -> Result<()> {
    check_name("an on-demand feature view", &view.name)?;
    check_text(&view.description)?;
    if project.feature_view(&view.name, None).is_ok() {
        return taken("a feature view");
    }
    check_count("features", view.features.len())?;
    check_columns("a request column", &view.request_data, |_| true)?;
    let mut names = BTreeSet::new();
    for feature in &view.features {
        check_column("a feature", &feature.name, feature.r#type.as_ref())?;
        check_text(&feature.sql)?;
        if feature.sql.trim().is_empty() {
            return invalid(format!("feature `{}` has no sql; write an expression", feature.name));
        }
        if !names.insert(&feature.name) {
            return twice(&feature.name);
        }
    }
    for source in &view.sources {
        let name = source.split([':', '@']).next().unwrap_or_default();
        if project.has_on_demand_feature_view(name) {
            return invalid(format!("source `{source}` is on demand itself; name its own sources instead"));
        }
    }
    Ok(())
}

pub fn feature_service(service: &FeatureService) -> Result<()> {
    check_name("a feature service", &service.name)?;
    check_text(&service.description)?;
    check_count("features", service.features.len())
}

pub fn model(project: &Project, model: &Model) -> Result<()> {
    check_name("a model", &model.name)?;
    check_text(&model.description)?;
    if !model.feature_service.is_empty() {
        project.feature_service(&model.feature_service, None)?;
    }
    Ok(())
}

pub fn deployment(project: &Project, deployment: &Deployment) -> Result<()> {
    check_name("a deployment", &deployment.name)?;
    check_text(&deployment.description)?;
    project.model(&deployment.model)?;
    let Some(champion) = &deployment.champion else {
        return invalid("it has no champion; give it an alias or a version".to_owned());
    };
    let arms = || deployment.challengers.iter().chain(&deployment.shadows);
    for arm in std::iter::once(champion).chain(arms()) {
        check_arm(project, &deployment.model, arm)?;
    }
    let weights: f64 = deployment.challengers.iter().map(|arm| arm.weight).sum();
    if weights > 1.0 {
        return invalid(format!("the weights of its challengers add up to {weights}; they share at most 1"));
    }
    Ok(())
}

fn check_arm(project: &Project, model: &str, arm: &Arm) -> Result<()> {
    match (arm.alias.as_str(), arm.version) {
        ("", 0) => return invalid("an arm has neither alias nor version; give it one".to_owned()),
        ("", version) => {
            project.model_version(model, version)?;
        }
        (alias, 0) => check_name("an alias", alias)?,
        (alias, version) => {
            return invalid(format!("an arm has alias `{alias}` and version {version}; give it one of them"));
        }
    }
    if !(0.0..=1.0).contains(&arm.weight) {
        return invalid(format!("weight {} is not a share; write 0 to 1", arm.weight));
    }
    Ok(())
}

fn check_columns(what: &str, columns: &[Field], fits: fn(&FeatureType) -> bool) -> Result<()> {
    let mut names = BTreeSet::new();
    for column in columns {
        check_column(what, &column.name, column.r#type.as_ref())?;
        check_text(&column.description)?;
        if !column.r#type.as_ref().is_some_and(fits) {
            return invalid(format!(
                "`{}` cannot be {what} with its type; use bool, int32, int64, string, bytes, timestamp or date",
                column.name
            ));
        }
        if !names.insert(&column.name) {
            return twice(&column.name);
        }
    }
    Ok(())
}

fn check_column(what: &str, name: &str, of: Option<&FeatureType>) -> Result<()> {
    check_column_name(what, name)?;
    let number = |kind| matches!(kind, ValueKind::Int32 | ValueKind::Int64 | ValueKind::Float32 | ValueKind::Float64);
    let fits = of.is_some_and(|of| match ValueKind::try_from(of.kind) {
        Ok(ValueKind::Unspecified) | Err(_) => false,
        Ok(kind) => {
            if of.list {
                number(kind)
            } else {
                of.length == 0
            }
        }
    });
    if fits { Ok(()) } else { invalid(format!("`{name}` has no type that there is; lists are of numbers")) }
}

fn is_key_type(of: &FeatureType) -> bool {
    use ValueKind::{Bool, Bytes, Date, Int32, Int64, String, Timestamp};
    let kind = ValueKind::try_from(of.kind);
    !of.list && matches!(kind, Ok(Bool | Int32 | Int64 | String | Bytes | Timestamp | Date))
}

fn check_count(what: &str, count: usize) -> Result<()> {
    match count {
        0 => invalid(format!("it has no {what}; name at least one")),
        1..=COLUMNS_MAX => Ok(()),
        _ => invalid(format!("it has {count} {what}; the limit is {COLUMNS_MAX}")),
    }
}

fn check_files(files: &FileSource) -> Result<()> {
    check_text(&files.path)?;
    check_text(&files.sql)?;
    if files.path.trim().is_empty() {
        return invalid("its source has no path; name a file or a folder".to_owned());
    }
    match files.event_timestamp.as_str() {
        "" => Ok(()),
        column => check_text(column),
    }
}

fn check_text(text: &str) -> Result<()> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    invalid(format!("a text in it has {} bytes; the limit is {TEXT_BYTES_MAX}", text.len()))
}

fn twice<T>(name: &str) -> Result<T> {
    invalid(format!("`{name}` is there twice; rename one of them"))
}

fn taken<T>(by: &str) -> Result<T> {
    Err(Error::AlreadyExists(format!("{by} has this name; choose another")))
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::InvalidArgument(message))
}
