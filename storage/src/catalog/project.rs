//! One project: all versions of its definitions, its registered models.

use crate::near;
use crate::{Error, Result};
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::{
    self as record, AliasMove, Definition, DefinitionVersion, Deployment, Entity, FeatureService, FeatureView, Field,
    Model, ModelVersion, OnDemandFeatureView,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

/// What a definition can be. The number stands in row keys and orders the kinds by what they build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DefinitionKind {
    Entity = 1,
    FeatureView = 2,
    OnDemandFeatureView = 3,
    FeatureService = 4,
    Model = 5,
    Deployment = 6,
}

impl DefinitionKind {
    /// As in YAML: `FeatureView`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Entity => "Entity",
            Self::FeatureView => "FeatureView",
            Self::OnDemandFeatureView => "OnDemandFeatureView",
            Self::FeatureService => "FeatureService",
            Self::Model => "Model",
            Self::Deployment => "Deployment",
        }
    }

    /// As in sentences: "feature view".
    pub fn words(self) -> &'static str {
        match self {
            Self::Entity => "entity",
            Self::FeatureView => "feature view",
            Self::OnDemandFeatureView => "on-demand feature view",
            Self::FeatureService => "feature service",
            Self::Model => "model",
            Self::Deployment => "deployment",
        }
    }

    /// Kind and name of a definition; `None` when it is empty or of a kind this version does not know.
    pub fn of(definition: &Definition) -> Option<(Self, &str)> {
        Some(match definition.kind.as_ref()? {
            Kind::Entity(it) => (Self::Entity, &it.name),
            Kind::FeatureView(it) => (Self::FeatureView, &it.name),
            Kind::OnDemandFeatureView(it) => (Self::OnDemandFeatureView, &it.name),
            Kind::FeatureService(it) => (Self::FeatureService, &it.name),
            Kind::Model(it) => (Self::Model, &it.name),
            Kind::Deployment(it) => (Self::Deployment, &it.name),
        })
    }
}

/// One immutable version of a definition. Reads like the definition itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    pub version: u32,
    /// Of feature views: names their rows on disk. 0 for other kinds.
    pub storage_id: u32,
    /// Meta log index that made it.
    pub index: u64,
    pub applied_us: i64,
    pub definition: T,
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.definition
    }
}

/// Versions 1, 2, … of one name.
type Versions<T> = Arc<Vec<Arc<Versioned<T>>>>;
type Named<T> = Arc<BTreeMap<String, Versions<T>>>;

/// A registered model: what it is called, its versions, its aliases.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegisteredModel {
    definitions: Versions<Model>,
    versions: Vec<Arc<ModelVersion>>,
    aliases: BTreeMap<String, Arc<AliasMove>>,
}

impl RegisteredModel {
    /// Newest definition.
    pub fn definition(&self) -> Option<&Arc<Versioned<Model>>> {
        self.definitions.last()
    }

    /// Versions 1, 2, …
    pub fn versions(&self) -> &[Arc<ModelVersion>] {
        &self.versions
    }

    /// Aliases that stand, by name, each with its last move.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &Arc<AliasMove>)> {
        self.aliases.iter().map(|(alias, moved)| (alias.as_str(), moved))
    }

    /// Version the alias points to; 0 = there is no such alias.
    pub fn alias_version(&self, alias: &str) -> u32 {
        self.aliases.get(alias).map_or(0, |moved| moved.to_version)
    }
}

/// A project at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Project {
    record: record::Project,
    entities: Named<Entity>,
    feature_views: Named<FeatureView>,
    on_demand_feature_views: Named<OnDemandFeatureView>,
    feature_services: Named<FeatureService>,
    deployments: Named<Deployment>,
    models: Arc<BTreeMap<String, Arc<RegisteredModel>>>,
    /// Storage ids whose first backfill is done.
    pub(super) filled: Arc<BTreeSet<u32>>,
}

impl Project {
    pub fn name(&self) -> &str {
        &self.record.name
    }

    pub fn record(&self) -> &record::Project {
        &self.record
    }

    /// Meta log index of the last change of its definitions: what a plan compares and sets.
    pub fn catalog_version(&self) -> u64 {
        self.record.catalog_version
    }

    /// # Errors
    /// `NotFound` with a near name or what to do, like all lookups here.
    pub fn entity(&self, name: &str) -> Result<&Arc<Versioned<Entity>>> {
        self.newest(DefinitionKind::Entity, &self.entities, name)
    }

    /// The columns of an entity key of the view, in the order of its entities.
    ///
    /// # Errors
    /// `NotFound` for an entity that is not defined.
    pub fn join_keys(&self, view: &FeatureView) -> Result<Vec<Field>> {
        let mut fields = Vec::new();
        for name in &view.entities {
            fields.extend(self.entity(name)?.join_keys.iter().cloned());
        }
        Ok(fields)
    }

    /// `version` `None` = the newest.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn feature_view(&self, name: &str, version: Option<u32>) -> Result<&Arc<Versioned<FeatureView>>> {
        self.version(DefinitionKind::FeatureView, &self.feature_views, name, version)
    }

    /// `version` `None` = the newest.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn on_demand_feature_view(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<&Arc<Versioned<OnDemandFeatureView>>> {
        self.version(DefinitionKind::OnDemandFeatureView, &self.on_demand_feature_views, name, version)
    }

    pub fn has_on_demand_feature_view(&self, name: &str) -> bool {
        self.on_demand_feature_views.contains_key(name)
    }

    /// `version` `None` = the newest.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn feature_service(&self, name: &str, version: Option<u32>) -> Result<&Arc<Versioned<FeatureService>>> {
        self.version(DefinitionKind::FeatureService, &self.feature_services, name, version)
    }

    /// # Errors
    /// `NotFound`.
    pub fn deployment(&self, name: &str) -> Result<&Arc<Versioned<Deployment>>> {
        self.newest(DefinitionKind::Deployment, &self.deployments, name)
    }

    /// # Errors
    /// `NotFound`.
    pub fn model(&self, name: &str) -> Result<&Arc<RegisteredModel>> {
        self.models.get(name).ok_or_else(|| {
            let fix = "register one first (`cairn model register`)";
            self.not_found(DefinitionKind::Model, name, self.models.keys(), fix)
        })
    }

    /// # Errors
    /// `NotFound`.
    pub fn model_version(&self, model: &str, version: u32) -> Result<&Arc<ModelVersion>> {
        let registered = self.model(model)?;
        let found = (version as usize).checked_sub(1).and_then(|at| registered.versions.get(at));
        found.ok_or_else(|| {
            let newest = registered.versions.len();
            self.no_version(DefinitionKind::Model, model, version, newest)
        })
    }

    /// The version an alias points to; `latest` is the newest.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn alias(&self, model: &str, alias: &str) -> Result<&Arc<ModelVersion>> {
        let registered = self.model(model)?;
        let version = match registered.alias_version(alias) {
            0 if alias == "latest" => registered.versions.len() as u32,
            version => version,
        };
        if version == 0 {
            let fix = "point it at a version first (`cairn model promote`)";
            let hint = near::hint(alias, registered.aliases.keys().map(String::as_str), fix);
            return Err(Error::NotFound(format!(
                "alias `{alias}` of model `{model}` not found in project `{}`; {hint}",
                self.name()
            )));
        }
        self.model_version(model, version)
    }

    /// Newest versions, by name; likewise the lists that follow.
    pub fn entities(&self) -> impl Iterator<Item = &Arc<Versioned<Entity>>> {
        newest_of(&self.entities)
    }

    pub fn feature_views(&self) -> impl Iterator<Item = &Arc<Versioned<FeatureView>>> {
        newest_of(&self.feature_views)
    }

    /// Versions 1, 2, … of one view; empty when there is none.
    pub fn feature_view_versions(&self, name: &str) -> &[Arc<Versioned<FeatureView>>] {
        self.feature_views.get(name).map_or(&[], |versions| versions)
    }

    pub fn on_demand_feature_views(&self) -> impl Iterator<Item = &Arc<Versioned<OnDemandFeatureView>>> {
        newest_of(&self.on_demand_feature_views)
    }

    /// Versions 1, 2, … of one on-demand view; empty when there is none.
    pub fn on_demand_feature_view_versions(&self, name: &str) -> &[Arc<Versioned<OnDemandFeatureView>>] {
        self.on_demand_feature_views.get(name).map_or(&[], |versions| versions)
    }

    /// Versions 1, 2, … of one service; empty when there is none.
    pub fn feature_service_versions(&self, name: &str) -> &[Arc<Versioned<FeatureService>>] {
        self.feature_services.get(name).map_or(&[], |versions| versions)
    }

    pub fn feature_services(&self) -> impl Iterator<Item = &Arc<Versioned<FeatureService>>> {
        newest_of(&self.feature_services)
    }

    pub fn deployments(&self) -> impl Iterator<Item = &Arc<Versioned<Deployment>>> {
        newest_of(&self.deployments)
    }

    pub fn models(&self) -> impl Iterator<Item = (&str, &Arc<RegisteredModel>)> {
        self.models.iter().map(|(name, model)| (name.as_str(), model))
    }

    /// Newest version of every definition, by kind and name.
    pub fn definitions(&self) -> impl Iterator<Item = DefinitionVersion> {
        fn of<'a, T: Clone>(
            project: &'a Project,
            named: &'a Named<T>,
            wrap: fn(T) -> Kind,
        ) -> impl Iterator<Item = DefinitionVersion> {
            newest_of(named).map(move |version| project.definition_version(version, wrap))
        }
        let models = self.models.values().filter_map(|model| model.definition());
        of(self, &self.entities, Kind::Entity)
            .chain(of(self, &self.feature_views, Kind::FeatureView))
            .chain(of(self, &self.on_demand_feature_views, Kind::OnDemandFeatureView))
            .chain(of(self, &self.feature_services, Kind::FeatureService))
            .chain(models.map(|version| self.definition_version(version, Kind::Model)))
            .chain(of(self, &self.deployments, Kind::Deployment))
    }

    /// Newest version of one definition.
    pub fn definition(&self, kind: DefinitionKind, name: &str) -> Option<DefinitionVersion> {
        fn of<T: Clone>(
            project: &Project,
            named: &Named<T>,
            name: &str,
            wrap: fn(T) -> Kind,
        ) -> Option<DefinitionVersion> {
            Some(project.definition_version(named.get(name)?.last()?, wrap))
        }
        match kind {
            DefinitionKind::Entity => of(self, &self.entities, name, Kind::Entity),
            DefinitionKind::FeatureView => of(self, &self.feature_views, name, Kind::FeatureView),
            DefinitionKind::OnDemandFeatureView => {
                of(self, &self.on_demand_feature_views, name, Kind::OnDemandFeatureView)
            }
            DefinitionKind::FeatureService => of(self, &self.feature_services, name, Kind::FeatureService),
            DefinitionKind::Model => Some(self.definition_version(self.models.get(name)?.definition()?, Kind::Model)),
            DefinitionKind::Deployment => of(self, &self.deployments, name, Kind::Deployment),
        }
    }

    fn definition_version<T: Clone>(&self, version: &Versioned<T>, wrap: fn(T) -> Kind) -> DefinitionVersion {
        DefinitionVersion {
            project: self.name().to_owned(),
            version: version.version,
            definition: Some(Definition { kind: Some(wrap(version.definition.clone())) }),
            storage_id: version.storage_id,
            index: version.index,
            applied_us: version.applied_us,
        }
    }

    fn newest<'a, T>(&self, kind: DefinitionKind, named: &'a Named<T>, name: &str) -> Result<&'a Arc<Versioned<T>>> {
        self.version(kind, named, name, None)
    }

    fn version<'a, T>(
        &self,
        kind: DefinitionKind,
        named: &'a Named<T>,
        name: &str,
        version: Option<u32>,
    ) -> Result<&'a Arc<Versioned<T>>> {
        let versions = named
            .get(name)
            .filter(|versions| !versions.is_empty())
            .ok_or_else(|| self.not_found(kind, name, named.keys(), "apply its definition first (`cairn apply`)"))?;
        let at = version.map_or(Some(versions.len() - 1), |version| (version as usize).checked_sub(1));
        at.and_then(|at| versions.get(at))
            .ok_or_else(|| self.no_version(kind, name, version.unwrap_or(0), versions.len()))
    }

    fn not_found<'a>(
        &self,
        kind: DefinitionKind,
        name: &str,
        names: impl Iterator<Item = &'a String> + Clone,
        fix: &str,
    ) -> Error {
        let hint = near::hint(name, names.map(String::as_str), fix);
        Error::NotFound(format!("{} `{name}` not found in project `{}`; {hint}", kind.words(), self.name()))
    }

    fn no_version(&self, kind: DefinitionKind, name: &str, version: u32, newest: usize) -> Error {
        let newest = match newest {
            0 => "it has no versions yet".to_owned(),
            newest => format!("its newest version is {newest}"),
        };
        Error::NotFound(format!("{} `{name}@{version}` not found in project `{}`; {newest}", kind.words(), self.name()))
    }

    pub(super) fn set_record(&mut self, record: record::Project) {
        self.record = record;
    }

    pub(super) fn take_definition(&mut self, version: &DefinitionVersion) -> Result<()> {
        let kind = version.definition.as_ref().and_then(|definition| definition.kind.clone());
        let Some(kind) = kind else {
            return Err(Error::Corrupt(format!("a definition of project `{}` is empty", version.project)));
        };
        match kind {
            Kind::Entity(it) => push(&mut self.entities, it.name.clone(), version, it),
            Kind::FeatureView(it) => push(&mut self.feature_views, it.name.clone(), version, it),
            Kind::OnDemandFeatureView(it) => push(&mut self.on_demand_feature_views, it.name.clone(), version, it),
            Kind::FeatureService(it) => push(&mut self.feature_services, it.name.clone(), version, it),
            Kind::Deployment(it) => push(&mut self.deployments, it.name.clone(), version, it),
            Kind::Model(it) => {
                let models = Arc::make_mut(&mut self.models);
                let model = Arc::make_mut(models.entry(it.name.clone()).or_default());
                push_version(&mut model.definitions, version, it)
            }
        }
    }

    pub(super) fn take_filled(&mut self, storage_id: u32) {
        Arc::make_mut(&mut self.filled).insert(storage_id);
    }

    pub(super) fn take_model_version(&mut self, version: &ModelVersion) -> Result<()> {
        let model = self.model_mut(&version.model)?;
        if version.version as usize != model.versions.len() + 1 {
            return Err(out_of_order(&version.project, &version.model, version.version));
        }
        model.versions.push(Arc::new(version.clone()));
        Ok(())
    }

    pub(super) fn take_alias(&mut self, moved: &AliasMove) -> Result<()> {
        let model = self.model_mut(&moved.model)?;
        if moved.to_version == 0 {
            model.aliases.remove(&moved.alias);
        } else {
            model.aliases.insert(moved.alias.clone(), Arc::new(moved.clone()));
        }
        Ok(())
    }

    fn model_mut(&mut self, name: &str) -> Result<&mut RegisteredModel> {
        let missing = || Error::Corrupt(format!("the meta group has rows of model `{name}`, but no such model"));
        Arc::make_mut(&mut self.models).get_mut(name).map(Arc::make_mut).ok_or_else(missing)
    }
}

fn newest_of<T>(named: &Named<T>) -> impl Iterator<Item = &Arc<Versioned<T>>> {
    named.values().filter_map(|versions| versions.last())
}

fn push<T: Clone>(named: &mut Named<T>, name: String, version: &DefinitionVersion, definition: T) -> Result<()> {
    push_version(Arc::make_mut(named).entry(name).or_default(), version, definition)
}

fn push_version<T: Clone>(versions: &mut Versions<T>, version: &DefinitionVersion, definition: T) -> Result<()> {
    if version.version as usize != versions.len() + 1 {
        let name = version.definition.as_ref().and_then(DefinitionKind::of).map_or("?", |(_, name)| name);
        return Err(out_of_order(&version.project, name, version.version));
    }
    let DefinitionVersion { version, storage_id, index, applied_us, .. } = *version;
    Arc::make_mut(versions).push(Arc::new(Versioned { version, storage_id, index, applied_us, definition }));
    Ok(())
}

fn out_of_order(project: &str, name: &str, version: u32) -> Error {
    Error::Corrupt(format!("version {version} of `{name}` in project `{project}` does not follow the one before it"))
}
