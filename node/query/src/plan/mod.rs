//! What a read has to do, worked out once per definition version: no catalog is looked at while rows are read.
//!
//! A plan holds the columns a caller must bring, the views to read with the columns to decode, the on-demand programs,
//! and the output columns in request order. It is immutable and shared by online reads and point-in-time joins.

mod compile;
#[cfg(test)]
pub(crate) mod tests;

use crate::coerce;
use crate::expr::OnDemandProgram;
use crate::status::STATUS_SUFFIX;
use crate::{Error, Result};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef};
use cairn_proto::record::v1::{FeatureRef, Field};
use cairn_storage::row::RowSchema;
use cairn_storage::types::{arrow_type, coerce as coerce_to, type_name};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A feature service, of one version or the newest.
    Service { name: String, version: Option<u32> },
    /// `view:feature`, `view` for all its features, `view@3:feature` for a pinned version.
    Features(Vec<String>),
}

/// A compiled read. Make one with [`FeaturePlan::compile`].
#[derive(Debug)]
pub struct FeaturePlan {
    pub(crate) service: Option<(String, u32)>,
    pub(crate) required: Vec<Required>,
    pub(crate) key_sets: Vec<KeySet>,
    pub(crate) views: Vec<ViewPlan>,
    pub(crate) on_demand: Vec<OnDemandPlan>,
    pub(crate) outputs: Vec<Output>,
}

/// A column the caller must bring.
#[derive(Debug, Clone)]
pub struct Required {
    pub field: Field,
    /// "a join key of entity `driver`"
    pub purpose: String,
}

/// Join keys shared by one or more views: encoded once for all of them.
#[derive(Debug)]
pub(crate) struct KeySet {
    pub fields: Vec<Field>,
    /// Positions in [`FeaturePlan::required`].
    pub columns: Vec<usize>,
}

/// One version of a feature view, and what to read of it.
#[derive(Debug)]
pub struct ViewPlan {
    pub name: String,
    pub version: u32,
    pub storage_id: u32,
    /// 0 = no limit.
    pub ttl_us: i64,
    pub(crate) key_set: usize,
    pub(crate) schema: RowSchema,
    /// Features to decode, as positions in the stored row.
    pub(crate) projection: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct OnDemandPlan {
    pub name: String,
    pub version: u32,
    pub program: OnDemandProgram,
    /// In the order of the program's inputs.
    pub inputs: Vec<Input>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Feature { view: usize, column: usize },
    Required(usize),
}

/// One output column.
#[derive(Debug, Clone)]
pub struct Output {
    pub name: String,
    /// Name and type of the feature as defined.
    pub field: Field,
    /// Where it comes from, for lineage.
    pub reference: FeatureRef,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The n-th decoded column of a view.
    Feature { view: usize, column: usize },
    /// The n-th feature of an on-demand program.
    OnDemand { view: usize, column: usize },
}

impl FeaturePlan {
    /// Name and version of the feature service it was compiled from, if it was.
    pub fn service(&self) -> Option<(&str, u32)> {
        self.service.as_ref().map(|(name, version)| (name.as_str(), *version))
    }

    /// Columns the caller must bring: join keys in entity order, then request data.
    pub fn required_columns(&self) -> &[Required] {
        &self.required
    }

    /// The feature views it reads, hidden inputs of on-demand features included.
    pub fn views(&self) -> &[ViewPlan] {
        &self.views
    }

    /// The features it answers with, in output order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Every feature it reads or computes with the version it is bound to, hidden inputs included.
    pub fn references(&self) -> Vec<FeatureRef> {
        let mut all: Vec<FeatureRef> = self.outputs.iter().map(|output| output.reference.clone()).collect();
        for view in &self.views {
            for position in &view.projection {
                let Some(field) = view.schema.fields().get(*position) else { continue };
                let reference = FeatureRef {
                    view: view.name.clone(),
                    view_version: view.version,
                    feature: field.name.clone(),
                    on_demand: false,
                };
                if !all.contains(&reference) {
                    all.push(reference);
                }
            }
        }
        all
    }

    /// Schema of the required columns, as [`Self::read_online`] gives them back before the features.
    pub fn required_schema(&self) -> Schema {
        let fields = self.required.iter().map(|column| arrow_field(&column.field.name, &column.field));
        Schema::new(fields.collect::<Vec<_>>())
    }

    /// Schema of an online answer: the required columns, then the features, each followed by its status if asked.
    ///
    /// # Errors
    /// `InvalidArgument` when a status column would take the name of another column.
    pub fn output_schema(&self, statuses: bool) -> Result<SchemaRef> {
        self.schema_after(&self.required_schema(), statuses)
    }

    /// The feature columns appended to `before`.
    pub(crate) fn schema_after(&self, before: &Schema, statuses: bool) -> Result<SchemaRef> {
        let mut fields: Vec<Arc<ArrowField>> = before.fields().iter().cloned().collect();
        let mut taken: BTreeSet<&str> = before.fields().iter().map(|field| field.name().as_str()).collect();
        for output in &self.outputs {
            if !taken.insert(&output.name) {
                return Err(Error::InvalidArgument(format!(
                    "feature `{}:{}` would be named `{}`, as a column of the rows sent is; rename that column or \
                     ask for full feature names",
                    output.reference.view, output.reference.feature, output.name
                )));
            }
            fields.push(Arc::new(arrow_field(&output.name, &output.field)));
            if statuses {
                fields.push(Arc::new(ArrowField::new(
                    format!("{}{STATUS_SUFFIX}", output.name),
                    DataType::Utf8,
                    false,
                )));
            }
        }
        if statuses {
            for output in &self.outputs {
                let name = format!("{}{STATUS_SUFFIX}", output.name);
                if taken.contains(name.as_str()) {
                    return Err(Error::InvalidArgument(format!(
                        "`{name}` is a column already and cannot name the status of `{}`; \
                         rename it or read without statuses",
                        output.name
                    )));
                }
            }
        }
        Ok(Arc::new(Schema::new_with_metadata(fields, before.metadata().clone())))
    }

    /// The required columns of `batch`, in plan order and of the declared types.
    ///
    /// # Errors
    /// `InvalidArgument` naming a column that is missing, twice there, or of a type that does not fit.
    pub(crate) fn required_of(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let mut columns = Vec::with_capacity(self.required.len());
        for wanted in &self.required {
            let Some(column) = coerce::find(batch, &wanted.field.name)? else {
                return Err(self.missing(wanted, batch));
            };
            columns.push(coerce_to(&wanted.field.name, column, &wanted.field.r#type.unwrap_or_default())?);
        }
        Ok(columns)
    }

    fn missing(&self, wanted: &Required, batch: &RecordBatch) -> Error {
        let typed = |field: &Field| format!("`{}` {}", field.name, type_name(&field.r#type.unwrap_or_default()));
        let needed: Vec<String> = self.required.iter().map(|column| typed(&column.field)).collect();
        let found: Vec<String> =
            batch.schema_ref().fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        Error::InvalidArgument(format!(
            "column {} is missing, {}; needed are {}, found {found}",
            typed(&wanted.field),
            wanted.purpose,
            needed.join(", ")
        ))
    }
}

fn arrow_field(name: &str, field: &Field) -> ArrowField {
    ArrowField::new(name, arrow_type(&field.r#type.unwrap_or_default()), true)
}
