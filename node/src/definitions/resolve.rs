//! All definitions of a plan checked together, over what the project has; references bound to view versions.
//!
//! The result is deterministic: equal files over an equal project give an equal command.

use super::diff;
use super::parse::{Place, Placed, Problem};
use cairn_proto::api::v1::Change;
use cairn_proto::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use cairn_proto::record::v1 as record;
use cairn_query::expr::OnDemandProgram;
use cairn_storage::catalog::DefinitionKind;
use cairn_storage::near::nearest;
use record::definition::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// The newest version of everything a project has, as the plan sees it.
#[derive(Debug, Clone, Default)]
pub struct Existing {
    /// Compare-and-set token of the project; 0 = it does not exist.
    pub catalog_version: u64,
    pub definitions: BTreeMap<Key, record::DefinitionVersion>,
}

/// Kind and name. Feature views and on-demand feature views share one name space.
pub type Key = (DefinitionKind, String);

pub fn key_of(kind: &Kind) -> Key {
    match kind {
        Kind::Entity(it) => (DefinitionKind::Entity, it.name.clone()),
        Kind::FeatureView(it) => (DefinitionKind::FeatureView, it.name.clone()),
        Kind::OnDemandFeatureView(it) => (DefinitionKind::OnDemandFeatureView, it.name.clone()),
        Kind::FeatureService(it) => (DefinitionKind::FeatureService, it.name.clone()),
        Kind::Model(it) => (DefinitionKind::Model, it.name.clone()),
        Kind::Deployment(it) => (DefinitionKind::Deployment, it.name.clone()),
    }
}

/// What would change, and the command that changes it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub command: record::ApplyDefinitions,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.command.definitions.is_empty()
    }
}

/// Checks `placed` over `existing` and works out what changes.
///
/// # Errors
/// Every problem found, in the order of the files.
pub fn plan(project: &str, placed: Vec<Placed>, existing: &Existing) -> Result<Plan, Vec<Problem>> {
    let mut world = World::new(existing);
    let mut problems = Vec::new();
    for one in &placed {
        if let Err(problem) = world.add(one) {
            problems.push(problem);
        }
    }
    // Dependencies first: each step only looks at what earlier steps have bound.
    let order = [
        DefinitionKind::Entity,
        DefinitionKind::FeatureView,
        DefinitionKind::OnDemandFeatureView,
        DefinitionKind::FeatureService,
        DefinitionKind::Model,
        DefinitionKind::Deployment,
    ];
    for kind in order {
        let names: Vec<String> = world.names(kind);
        for name in names {
            if let Err((message, place)) = world.bind(kind, &name) {
                problems.push(Problem { place, message });
            }
        }
    }
    if !problems.is_empty() {
        problems.sort_by(|a, b| (&a.place.path, a.place.line).cmp(&(&b.place.path, b.place.line)));
        problems.dedup();
        return Err(problems);
    }
    Ok(world.finish(project, &placed))
}

struct World<'a> {
    existing: &'a Existing,
    /// Everything as it will be: written now, or already there.
    now: BTreeMap<Key, Kind>,
    written: BTreeMap<Key, Placed>,
    /// What changes, by comparison with the newest version.
    changed: BTreeSet<Key>,
}

type Bound = Result<(), (String, Place)>;

/// What is wrong with a definition, and with which part of it.
#[derive(Debug)]
struct Complaint {
    message: String,
    part: Option<String>,
}

impl From<String> for Complaint {
    fn from(message: String) -> Self {
        Self { message, part: None }
    }
}

/// Blames a part, by the text it was written as.
fn about(part: &str) -> impl Fn(String) -> Complaint {
    move |message| Complaint { message, part: Some(part.to_owned()) }
}

impl<'a> World<'a> {
    fn new(existing: &'a Existing) -> Self {
        let kinds = existing.definitions.iter().filter_map(|(key, version)| {
            let kind = version.definition.as_ref()?.kind.clone()?;
            Some((key.clone(), kind))
        });
        Self { existing, now: kinds.collect(), written: BTreeMap::new(), changed: BTreeSet::new() }
    }

    fn add(&mut self, placed: &Placed) -> Result<(), Problem> {
        let problem = |message: String| Problem { place: placed.place.clone(), message };
        let key = key_of(&placed.kind);
        if let Some(first) = self.written.get(&key) {
            let first = &first.place;
            return Err(problem(format!("{} `{}` is defined twice; first at {first}", key.0.as_str(), key.1)));
        }
        let twin = match key.0 {
            DefinitionKind::FeatureView => Some(DefinitionKind::OnDemandFeatureView),
            DefinitionKind::OnDemandFeatureView => Some(DefinitionKind::FeatureView),
            _ => None,
        };
        if let Some(twin) = twin
            && self.now.contains_key(&(twin, key.1.clone()))
        {
            return Err(problem(format!("`{}` is already a {}; choose another name", key.1, twin.as_str())));
        }
        self.written.insert(key.clone(), placed.clone());
        self.now.insert(key, placed.kind.clone());
        Ok(())
    }

    fn names(&self, kind: DefinitionKind) -> Vec<String> {
        self.now.keys().filter(|key| key.0 == kind).map(|key| key.1.clone()).collect()
    }

    /// Where a part of a definition was written, or else where all of it was.
    fn place(&self, key: &Key, part: Option<&str>) -> Place {
        let elsewhere =
            || Place { path: format!("{} `{}` (already applied)", key.0.as_str(), key.1), line: 0, column: 0 };
        self.written.get(key).map_or_else(elsewhere, |placed| placed.place_of(part).clone())
    }

    /// Checks one definition and fills in what it is bound to; then notes whether it differs from the newest version.
    fn bind(&mut self, kind: DefinitionKind, name: &str) -> Bound {
        let key = (kind, name.to_owned());
        let Some(mut definition) = self.now.get(&key).cloned() else { return Ok(()) };
        let checked = match &mut definition {
            Kind::Entity(entity) => self.check_entity(entity),
            Kind::FeatureView(view) => self.check_view(view),
            Kind::OnDemandFeatureView(view) => self.check_on_demand(view),
            Kind::FeatureService(service) => self.check_service(service),
            Kind::Model(model) => self.check_model(model),
            Kind::Deployment(deployment) => self.check_deployment(deployment),
        };
        checked.map_err(|complaint| (complaint.message, self.place(&key, complaint.part.as_deref())))?;
        let before = self.existing.definitions.get(&key).and_then(|version| version.definition.as_ref()?.kind.as_ref());
        if before != Some(&definition) {
            self.changed.insert(key.clone());
        }
        self.now.insert(key, definition);
        Ok(())
    }

    fn entity(&self, name: &str) -> Option<&record::Entity> {
        match self.now.get(&(DefinitionKind::Entity, name.to_owned()))? {
            Kind::Entity(entity) => Some(entity),
            _ => None,
        }
    }

    fn view(&self, name: &str) -> Option<&record::FeatureView> {
        match self.now.get(&(DefinitionKind::FeatureView, name.to_owned()))? {
            Kind::FeatureView(view) => Some(view),
            _ => None,
        }
    }

    fn on_demand(&self, name: &str) -> Option<&record::OnDemandFeatureView> {
        match self.now.get(&(DefinitionKind::OnDemandFeatureView, name.to_owned()))? {
            Kind::OnDemandFeatureView(view) => Some(view),
            _ => None,
        }
    }

    /// The version a definition will have once this plan is applied.
    fn version(&self, key: &Key) -> u32 {
        let newest = self.existing.definitions.get(key).map_or(0, |version| version.version);
        if self.changed.contains(key) { newest + 1 } else { newest }
    }

    fn missing(&self, kind: DefinitionKind, name: &str) -> String {
        let names = self.names(kind);
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("{} `{name}` not found; did you mean `{near}`?", kind.as_str()),
            None => format!("{} `{name}` not found; define it in these files", kind.as_str()),
        }
    }

    fn check_entity(&self, entity: &record::Entity) -> Result<(), Complaint> {
        if entity.join_keys.is_empty() {
            return Err(format!("Entity `{}` needs at least one join key", entity.name).into());
        }
        unique(entity.join_keys.iter().map(|key| key.name.as_str()), "join key")?;
        for key in &entity.join_keys {
            reserved(&key.name).map_err(about(&key.name))?;
            let kind = key.r#type.unwrap_or_default();
            let allowed = !kind.list && !matches!(kind.kind(), record::ValueKind::Float32 | record::ValueKind::Float64);
            if !allowed {
                let name = cairn_storage::types::type_name(&kind);
                return Err(format!(
                    "join key `{}` is {name}; a key is an integer, string, bytes, bool, date or timestamp",
                    key.name
                )
                .into());
            }
        }
        let before = self.existing.definitions.get(&(DefinitionKind::Entity, entity.name.clone()));
        let before = before.and_then(|version| match version.definition.as_ref()?.kind.as_ref()? {
            Kind::Entity(old) => Some(old),
            _ => None,
        });
        let shape = |entity: &record::Entity| -> Vec<_> {
            entity.join_keys.iter().map(|key| (key.name.clone(), key.r#type)).collect()
        };
        if let Some(old) = before
            && shape(old) != shape(entity)
        {
            return Err(format!(
                "the join keys of Entity `{}` cannot change, rows are stored under them; define a new entity",
                entity.name
            )
            .into());
        }
        Ok(())
    }

    fn check_view(&self, view: &record::FeatureView) -> Result<(), Complaint> {
        if view.entities.is_empty() {
            return Err(format!("FeatureView `{}` needs at least one entity", view.name).into());
        }
        if view.features.is_empty() {
            return Err(format!("FeatureView `{}` needs at least one feature", view.name).into());
        }
        unique(view.entities.iter().map(String::as_str), "entity")?;
        let mut columns = Vec::new();
        for name in &view.entities {
            let entity = self.entity(name).ok_or_else(|| about(name)(self.missing(DefinitionKind::Entity, name)))?;
            columns.extend(entity.join_keys.iter().map(|key| key.name.as_str()));
        }
        columns.extend(view.features.iter().map(|feature| feature.name.as_str()));
        view.features.iter().try_for_each(|it| reserved(&it.name).map_err(about(&it.name)))?;
        unique(columns.into_iter(), "column")
    }

    fn check_on_demand(&self, view: &mut record::OnDemandFeatureView) -> Result<(), Complaint> {
        if view.features.is_empty() {
            return Err(format!("OnDemandFeatureView `{}` needs at least one feature", view.name).into());
        }
        unique(view.features.iter().map(|feature| feature.name.as_str()), "feature")?;
        let mut inputs = Vec::new();
        let mut resolved = Vec::new();
        for reference in &view.sources {
            let blame = about(reference);
            let (name, feature) = split_reference(reference).map_err(&blame)?;
            let source = self.view(name).ok_or_else(|| blame(self.missing(DefinitionKind::FeatureView, name)))?;
            let version = self.version(&(DefinitionKind::FeatureView, name.to_owned()));
            for field in pick(source, feature).map_err(&blame)? {
                inputs.push(field.clone());
                resolved.push(record::FeatureRef {
                    view: name.to_owned(),
                    view_version: version,
                    feature: field.name.clone(),
                    on_demand: false,
                });
            }
        }
        inputs.extend(view.request_data.iter().cloned());
        view.request_data.iter().try_for_each(|it| reserved(&it.name).map_err(about(&it.name)))?;
        unique(inputs.iter().map(|field| field.name.as_str()), "input")?;
        for feature in &view.features {
            let compiled = OnDemandProgram::compile(&view.name, &inputs, std::slice::from_ref(feature));
            compiled.map_err(|error| about(&feature.name)(error.to_string()))?;
        }
        view.resolved = resolved;
        Ok(())
    }

    fn check_service(&self, service: &mut record::FeatureService) -> Result<(), Complaint> {
        if service.features.is_empty() {
            return Err(format!("FeatureService `{}` needs at least one feature", service.name).into());
        }
        let mut resolved: Vec<record::FeatureRef> = Vec::new();
        for reference in &service.features {
            let blame = about(reference);
            let (name, feature) = split_reference(reference).map_err(&blame)?;
            let (features, on_demand): (Vec<String>, bool) = if let Some(view) = self.view(name) {
                (pick(view, feature).map_err(&blame)?.iter().map(|field| field.name.clone()).collect(), false)
            } else if let Some(view) = self.on_demand(name) {
                let names: Vec<String> = view.features.iter().map(|field| field.name.clone()).collect();
                (pick_name(name, &names, feature).map_err(&blame)?, true)
            } else {
                let both: Vec<String> =
                    [self.names(DefinitionKind::FeatureView), self.names(DefinitionKind::OnDemandFeatureView)].concat();
                let hint =
                    nearest(name, both.iter().map(String::as_str)).map(|near| format!("; did you mean `{near}`?"));
                return Err(blame(format!("feature view `{name}` not found{}", hint.unwrap_or_default())));
            };
            let kind = if on_demand { DefinitionKind::OnDemandFeatureView } else { DefinitionKind::FeatureView };
            let view_version = self.version(&(kind, name.to_owned()));
            for feature in features {
                let bound = record::FeatureRef { view: name.to_owned(), view_version, feature, on_demand };
                if resolved.contains(&bound) {
                    let twice = format!("`{name}:{}` stands twice in FeatureService `{}`", bound.feature, service.name);
                    return Err(blame(twice));
                }
                resolved.push(bound);
            }
        }
        service.resolved = resolved;
        Ok(())
    }

    fn check_model(&self, model: &record::Model) -> Result<(), Complaint> {
        if !model.feature_service.is_empty()
            && !self.now.contains_key(&(DefinitionKind::FeatureService, model.feature_service.clone()))
        {
            return Err(about(&model.feature_service)(
                self.missing(DefinitionKind::FeatureService, &model.feature_service),
            ));
        }
        Ok(())
    }

    fn check_deployment(&self, deployment: &record::Deployment) -> Result<(), Complaint> {
        if !self.now.contains_key(&(DefinitionKind::Model, deployment.model.clone())) {
            return Err(about(&deployment.model)(self.missing(DefinitionKind::Model, &deployment.model)));
        }
        if !deployment.challengers.is_empty() || !deployment.shadows.is_empty() {
            return Err(format!(
                "Deployment `{}`: challengers and shadows are not served by this version; leave them empty",
                deployment.name
            )
            .into());
        }
        Ok(())
    }

    fn finish(self, project: &str, placed: &[Placed]) -> Plan {
        let mut changes = Vec::new();
        let mut definitions = Vec::new();
        let mentioned: BTreeSet<Key> = placed.iter().map(|one| key_of(&one.kind)).collect();
        for (key, kind) in &self.now {
            let changed = self.changed.contains(key);
            if !changed && !mentioned.contains(key) {
                continue;
            }
            let before = self.existing.definitions.get(key);
            let before_kind = before.and_then(|version| version.definition.as_ref()?.kind.as_ref());
            let from_version = before.map_or(0, |version| version.version);
            changes.push(Change {
                kind: key.0.as_str().to_owned(),
                name: key.1.clone(),
                action: match (changed, before.is_some()) {
                    (false, _) => "unchanged",
                    (true, false) => "create",
                    (true, true) => "update",
                }
                .to_owned(),
                from_version,
                to_version: if changed { from_version + 1 } else { from_version },
                details: if changed { diff::details(before_kind, kind) } else { Vec::new() },
                loses_rows: changed && before_kind.is_some_and(|old| diff::loses_rows(old, kind)),
            });
            if changed {
                definitions.push(record::Definition { kind: Some(kind.clone()) });
            }
        }
        let expected_catalog_version = self.existing.catalog_version;
        let command = record::ApplyDefinitions { project: project.to_owned(), definitions, expected_catalog_version };
        Plan { changes, command }
    }
}

/// `view` or `view:feature`. A pinned version (`view@3`) is refused in definitions: they follow the newest.
fn split_reference(reference: &str) -> Result<(&str, Option<&str>), String> {
    let (view, feature) = match reference.split_once(':') {
        Some((view, feature)) => (view, Some(feature)),
        None => (reference, None),
    };
    if view.contains('@') {
        return Err(format!("`{reference}` pins a version; definitions follow the newest: leave the `@` part out"));
    }
    super::parse::check_name(view, true)?;
    if let Some(feature) = feature {
        super::parse::check_name(feature, false)?;
    }
    Ok((view, feature))
}

fn pick<'v>(view: &'v record::FeatureView, feature: Option<&str>) -> Result<Vec<&'v record::Field>, String> {
    let Some(wanted) = feature else { return Ok(view.features.iter().collect()) };
    match view.features.iter().find(|field| field.name == wanted) {
        Some(field) => Ok(vec![field]),
        None => Err(no_feature(&view.name, view.features.iter().map(|field| field.name.as_str()), wanted)),
    }
}

fn pick_name(view: &str, names: &[String], feature: Option<&str>) -> Result<Vec<String>, String> {
    match feature {
        None => Ok(names.to_vec()),
        Some(wanted) if names.iter().any(|name| name == wanted) => Ok(vec![wanted.to_owned()]),
        Some(wanted) => Err(no_feature(view, names.iter().map(String::as_str), wanted)),
    }
}

fn no_feature<'n>(view: &str, names: impl Iterator<Item = &'n str> + Clone, wanted: &str) -> String {
    match nearest(wanted, names.clone()) {
        Some(near) => format!("feature view `{view}` has no feature `{wanted}`; did you mean `{near}`?"),
        None => {
            format!("feature view `{view}` has no feature `{wanted}`; it has {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

fn unique<'n>(names: impl Iterator<Item = &'n str>, what: &str) -> Result<(), Complaint> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(about(name)(format!("{what} `{name}` stands twice")));
        }
    }
    Ok(())
}

fn reserved(name: &str) -> Result<(), String> {
    if [EVENT_TIMESTAMP, CREATED_TIMESTAMP].contains(&name) {
        return Err(format!("`{name}` is the name of a time column; choose another"));
    }
    if name.ends_with("__status") {
        return Err(format!("`{name}` ends in `__status`, which names status columns; choose another"));
    }
    Ok(())
}
