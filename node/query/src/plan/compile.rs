//! From references to a plan: every name resolved, every type known, every clash refused.

use super::{FeaturePlan, Input, KeySet, OnDemandPlan, Origin, Output, Request, Required, ViewPlan};
use crate::expr::OnDemandProgram;
use crate::names::hint;
use crate::{Error, Result};
use cairn_proto::record::v1::{FeatureRef, Field, OnDemandFeatureView};
use cairn_storage::catalog::{Catalog, Project, Versioned};
use cairn_storage::row::RowSchema;
use cairn_storage::types::type_name;
use std::collections::BTreeMap;

impl FeaturePlan {
    /// Resolves `request` against the definitions of `project`. Without a version it gets the newest whose rows are there.
    ///
    /// Output columns stand in request order, named by feature; where two features, or a feature and a required column,
    /// would share a name, and everywhere with `full_feature_names`, they are named `view__feature`.
    ///
    /// # Errors
    /// `NotFound` for an unknown project, service, view, version or feature; `InvalidArgument` for a malformed
    /// reference or one given twice, for columns that keep sharing a name (two versions of one view), and for join
    /// keys whose types contradict.
    pub fn compile(catalog: &Catalog, project: &str, request: &Request, full_feature_names: bool) -> Result<Self> {
        let project = catalog.project(project)?;
        let (service, wanted) = match request {
            Request::Service { name, version } => {
                let service = match version {
                    Some(_) => project.feature_service(name, *version)?,
                    None => project.served_feature_service(name)?,
                };
                (Some((name.clone(), service.version)), service.resolved.clone())
            }
            Request::Features(references) => (None, project.resolve_served(references)?),
        };
        if wanted.is_empty() {
            return Err(Error::InvalidArgument(
                "no features are asked for; name a feature service, or features such as `view:feature`".to_owned(),
            ));
        }
        let plan = Self {
            service,
            required: Vec::new(),
            key_sets: Vec::new(),
            views: Vec::new(),
            on_demand: Vec::new(),
            outputs: Vec::new(),
        };
        let mut compiler = Compiler { project, plan };
        compiler.stored_features(&wanted)?;
        compiler.on_demand_features(&wanted)?;
        compiler.outputs(wanted, full_feature_names)?;
        Ok(compiler.plan)
    }
}

struct Compiler<'c> {
    project: &'c Project,
    plan: FeaturePlan,
}

impl Compiler<'_> {
    /// Where a stored feature will be decoded: its view and column, added to the plan when new.
    fn feature(&mut self, reference: &FeatureRef) -> Result<(usize, usize)> {
        let view = match self
            .plan
            .views
            .iter()
            .position(|v| v.name == reference.view && v.version == reference.view_version)
        {
            Some(view) => view,
            None => self.add_view(&reference.view, reference.view_version)?,
        };
        let Some(planned) = self.plan.views.get_mut(view) else { return Err(lost(reference)) };
        let fields = planned.schema.fields();
        let Some(position) = fields.iter().position(|field| field.name == reference.feature) else {
            let names = fields.iter().map(|field| field.name.as_str()).collect();
            return Err(no_feature(&reference.view, reference.view_version, &reference.feature, names));
        };
        let column = planned.projection.iter().position(|p| *p == position).unwrap_or_else(|| {
            planned.projection.push(position);
            planned.projection.len() - 1
        });
        Ok((view, column))
    }

    fn add_view(&mut self, name: &str, version: u32) -> Result<usize> {
        let view = self.project.feature_view(name, Some(version))?;
        let mut fields: Vec<Field> = Vec::new();
        let mut columns = Vec::new();
        for entity in &view.entities {
            for key in &self.project.entity(entity)?.join_keys {
                columns.push(self.require(key, format!("a join key of entity `{entity}`"))?);
                fields.push(key.clone());
            }
        }
        let same = |set: &KeySet| set.columns == columns;
        let key_set = self.plan.key_sets.iter().position(same).unwrap_or_else(|| {
            self.plan.key_sets.push(KeySet { fields, columns: columns.clone() });
            self.plan.key_sets.len() - 1
        });
        self.plan.views.push(ViewPlan {
            name: name.to_owned(),
            version,
            storage_id: view.storage_id,
            ttl_us: view.ttl_us,
            key_set,
            schema: RowSchema::new(&view.features)?,
            projection: Vec::new(),
        });
        Ok(self.plan.views.len() - 1)
    }

    /// Position of a required column, added when new.
    fn require(&mut self, field: &Field, purpose: String) -> Result<usize> {
        if let Some(at) = self.plan.required.iter().position(|column| column.field.name == field.name) {
            let held = self.plan.required.get(at).map(|column| (column.field.r#type, column.purpose.clone()));
            return match held {
                Some((held, purpose_held)) if held != field.r#type => Err(Error::InvalidArgument(format!(
                    "column `{}` would have to be {} as {purpose_held} and {} as {purpose}; \
                     ask for these features apart",
                    field.name,
                    type_name(&held.unwrap_or_default()),
                    type_name(&field.r#type.unwrap_or_default()),
                ))),
                _ => Ok(at),
            };
        }
        self.plan.required.push(Required { field: field.clone(), purpose });
        Ok(self.plan.required.len() - 1)
    }

    fn stored_features(&mut self, wanted: &[FeatureRef]) -> Result<()> {
        wanted
            .iter()
            .filter(|reference| !reference.on_demand)
            .try_for_each(|reference| self.feature(reference).map(|_| ()))
    }

    /// One program per on-demand view, with the asked features alone and the inputs these use.
    fn on_demand_features(&mut self, wanted: &[FeatureRef]) -> Result<()> {
        let mut by_view: BTreeMap<(&str, u32), Vec<&str>> = BTreeMap::new();
        for reference in wanted.iter().filter(|reference| reference.on_demand) {
            by_view.entry((&reference.view, reference.view_version)).or_default().push(&reference.feature);
        }
        let mut request_data = Vec::new();
        for ((name, version), features) in by_view {
            let mut view: Versioned<OnDemandFeatureView> =
                (**self.project.on_demand_feature_view(name, Some(version))?).clone();
            view.definition.features.retain(|feature| features.contains(&feature.name.as_str()));
            request_data.push(self.add_on_demand(&view)?);
        }
        // Request data stands behind all join keys in `required`, so its positions are known only now.
        for (on_demand, waiting) in request_data.into_iter().enumerate() {
            for (slot, field, purpose) in waiting {
                let at = self.require(&field, purpose)?;
                if let Some(input) = self.plan.on_demand.get_mut(on_demand).and_then(|view| view.inputs.get_mut(slot)) {
                    *input = Input::Required(at);
                }
            }
        }
        Ok(())
    }

    /// Adds an on-demand view; returns the inputs that are request data: their slot, field and purpose.
    fn add_on_demand(&mut self, view: &Versioned<OnDemandFeatureView>) -> Result<Vec<(usize, Field, String)>> {
        let mut sources = Vec::with_capacity(view.resolved.len());
        for reference in &view.resolved {
            sources.push((self.field_of(reference)?, Some(reference)));
        }
        sources.extend(view.request_data.iter().map(|field| (field.clone(), None)));
        let fields: Vec<Field> = sources.iter().map(|(field, _)| field.clone()).collect();
        let whole = OnDemandProgram::compile(&view.name, &fields, &view.features)?;
        let used: Vec<_> = whole.used_inputs().iter().filter_map(|at| sources.get(*at)).collect();
        let fields: Vec<Field> = used.iter().map(|(field, _)| field.clone()).collect();
        let program = OnDemandProgram::compile(&view.name, &fields, &view.features)?;
        let mut inputs = Vec::with_capacity(used.len());
        let mut waiting = Vec::new();
        for (slot, (field, reference)) in used.into_iter().enumerate() {
            inputs.push(match reference {
                Some(reference) => {
                    let (view, column) = self.feature(reference)?;
                    Input::Feature { view, column }
                }
                None => {
                    let purpose = format!("request data of on-demand feature view `{}`", view.name);
                    waiting.push((slot, field.clone(), purpose));
                    Input::Required(usize::MAX) // set when all join keys are known
                }
            });
        }
        self.plan.on_demand.push(OnDemandPlan { name: view.name.clone(), version: view.version, program, inputs });
        Ok(waiting)
    }

    fn field_of(&self, reference: &FeatureRef) -> Result<Field> {
        let view = self.project.feature_view(&reference.view, Some(reference.view_version))?;
        let field = view.features.iter().find(|field| field.name == reference.feature);
        field.cloned().ok_or_else(|| {
            let names = view.features.iter().map(|field| field.name.as_str()).collect();
            no_feature(&reference.view, reference.view_version, &reference.feature, names)
        })
    }

    fn outputs(&mut self, wanted: Vec<FeatureRef>, full_feature_names: bool) -> Result<()> {
        let mut uses: BTreeMap<String, usize> = BTreeMap::new();
        for reference in &wanted {
            *uses.entry(reference.feature.clone()).or_default() += 1;
        }
        for column in &self.plan.required {
            *uses.entry(column.field.name.clone()).or_default() += 1;
        }
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for column in &self.plan.required {
            taken.insert(column.field.name.clone(), format!("{} (`{}`)", column.purpose, column.field.name));
        }
        for reference in wanted {
            let clash = uses.get(&reference.feature).is_some_and(|uses| *uses > 1);
            let name = if full_feature_names || clash {
                format!("{}__{}", reference.view, reference.feature)
            } else {
                reference.feature.clone()
            };
            let told = format!("`{}@{}:{}`", reference.view, reference.view_version, reference.feature);
            if let Some(other) = taken.insert(name.clone(), told.clone()) {
                return Err(Error::InvalidArgument(format!(
                    "{other} and {told} would both be column `{name}`; ask for them apart"
                )));
            }
            let (origin, field) = self.origin(&reference)?;
            self.plan.outputs.push(Output { name, field, reference, origin });
        }
        Ok(())
    }

    fn origin(&mut self, reference: &FeatureRef) -> Result<(Origin, Field)> {
        if !reference.on_demand {
            let (view, column) = self.feature(reference)?;
            return Ok((Origin::Feature { view, column }, self.field_of(reference)?));
        }
        let same = |view: &&OnDemandPlan| view.name == reference.view && view.version == reference.view_version;
        let view = self.plan.on_demand.iter().position(|view| same(&view)).ok_or_else(|| lost(reference))?;
        let mut features =
            self.plan.on_demand.get(view).into_iter().flat_map(|view| view.program.features()).enumerate();
        match features.find(|(_, field)| field.name == reference.feature) {
            Some((column, field)) => Ok((Origin::OnDemand { view, column }, field.clone())),
            None => Err(no_feature(&reference.view, reference.view_version, &reference.feature, Vec::new())),
        }
    }
}

fn lost(reference: &FeatureRef) -> Error {
    Error::Internal(format!("the plan lost feature view `{}@{}`", reference.view, reference.view_version))
}

fn no_feature(view: &str, version: u32, feature: &str, names: Vec<&str>) -> Error {
    Error::NotFound(format!("feature view `{view}@{version}` has no feature `{feature}`{}", hint(feature, names)))
}
