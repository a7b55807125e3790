//! The registry as tables: what is defined, registered and running, of one moment of the catalog; and `backtests`, which are not
//! in the catalog.

mod backtests;

use super::external;
use super::rows::time_type;
use crate::Error;
use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema};
use cairn_storage::catalog::{Catalog, Project};
use cairn_storage::meta::Meta;
use cairn_storage::types::type_name;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::DataFusionError;
use std::fmt::Write as _;
use std::sync::Arc;

/// Fills a table from the catalog.
type Fill = fn(&Catalog) -> Table;

const TABLES: &[(&str, Fill)] = &[
    ("entities", entities),
    ("feature_views", feature_views),
    ("features", features),
    ("feature_services", feature_services),
    ("models", models),
    ("model_versions", model_versions),
    ("model_metrics", model_metrics),
    ("aliases", aliases),
    ("deployments", deployments),
    ("nodes", nodes),
];

/// All tables there are.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|(name, _)| *name).chain(backtests::TABLES.iter().map(|(name, _)| *name))
}

pub(super) fn table(
    catalog: &Catalog,
    meta: Option<&Arc<Meta>>,
    name: &str,
) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let Some((_, fill)) = TABLES.iter().find(|(table, _)| *table == name) else {
        return backtests::table(name, catalog, meta);
    };
    let Table { fields, columns } = fill(catalog);
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| external(Error::internal(error)))?;
    Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
}

pub(super) fn columns(catalog: &Catalog, name: &str) -> Schema {
    let tell = backtests::TABLES.iter().find(|(table, _)| *table == name);
    match TABLES.iter().find(|(table, _)| *table == name) {
        Some((_, fill)) => Schema::new(fill(catalog).fields),
        None => tell.map_or_else(Schema::empty, |(_, tell)| backtests::columns(*tell)),
    }
}

/// Columns in the making.
#[derive(Default)]
pub(super) struct Table {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
}

impl Table {
    fn column(mut self, name: &str, data_type: DataType, values: ArrayRef) -> Self {
        self.fields.push(Field::new(name, data_type, true));
        self.columns.push(values);
        self
    }

    /// Empty texts are nulls.
    fn text(self, name: &str, values: impl Iterator<Item = String>) -> Self {
        let values: StringArray = values.map(|text| Some(text).filter(|text| !text.is_empty())).collect();
        self.column(name, DataType::Utf8, Arc::new(values))
    }

    /// 0 is null: versions count from 1.
    fn version(self, name: &str, values: impl Iterator<Item = u32>) -> Self {
        let values: UInt32Array = values.map(|version| Some(version).filter(|version| *version > 0)).collect();
        self.column(name, DataType::UInt32, Arc::new(values))
    }

    fn count(self, name: &str, values: impl Iterator<Item = i64>) -> Self {
        self.column(name, DataType::Int64, Arc::new(values.collect::<Int64Array>()))
    }

    fn number(self, name: &str, values: impl Iterator<Item = f64>) -> Self {
        self.column(name, DataType::Float64, Arc::new(values.collect::<Float64Array>()))
    }

    fn time(self, name: &str, values: impl Iterator<Item = i64>) -> Self {
        let values: TimestampMicrosecondArray = values.map(|time_us| Some(time_us).filter(|it| *it != 0)).collect();
        self.column(name, time_type(), Arc::new(values.with_timezone("UTC")))
    }
}

/// Everything of a kind, with its project.
fn all<'c, T, I: Iterator<Item = T>>(catalog: &'c Catalog, of: impl Fn(&'c Project) -> I) -> Vec<(&'c Project, T)> {
    let projects = catalog.projects().map(AsRef::as_ref);
    projects.flat_map(|project| of(project).map(move |it| (project, it)).collect::<Vec<_>>()).collect()
}

fn of<T>(rows: &[(&Project, T)]) -> Table {
    Table::default().text("project", rows.iter().map(|(project, _)| project.name().to_owned()))
}

fn entities(catalog: &Catalog) -> Table {
    let rows = all(catalog, Project::entities);
    let rows: Vec<_> =
        rows.iter().flat_map(|(project, it)| it.join_keys.iter().map(move |key| (*project, (it, key)))).collect();
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("entity", each().map(|(it, _)| it.name.clone()))
        .text("join_key", each().map(|(_, key)| key.name.clone()))
        .text("type", each().map(|(_, key)| type_name(&key.r#type.unwrap_or_default())))
        .text("description", each().map(|(it, _)| it.description.clone()))
}

fn feature_views(catalog: &Catalog) -> Table {
    let rows = all(catalog, |project| {
        project
            .feature_views()
            .flat_map(|view| project.feature_view_versions(&view.name))
            .collect::<Vec<_>>()
            .into_iter()
    });
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("feature_view", each().map(|it| it.name.clone()))
        .version("version", each().map(|it| it.version))
        .text("entities", each().map(|it| it.entities.join(", ")))
        .column("ttl_seconds", DataType::Int64, {
            let ttl = each().map(|it| (it.ttl_us > 0).then_some(it.ttl_us / 1_000_000));
            Arc::new(ttl.collect::<Int64Array>())
        })
        .text("source", each().map(|it| it.source.clone()))
        .text("description", each().map(|it| it.description.clone()))
        .time("applied_at", each().map(|it| it.applied_us))
}

fn features(catalog: &Catalog) -> Table {
    let rows = all(catalog, Project::feature_views);
    let rows: Vec<_> =
        rows.iter().flat_map(|(project, it)| it.features.iter().map(move |of| (*project, (it, of)))).collect();
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("feature_view", each().map(|(it, _)| it.name.clone()))
        .version("version", each().map(|(it, _)| it.version))
        .text("feature", each().map(|(_, feature)| feature.name.clone()))
        .text("type", each().map(|(_, feature)| type_name(&feature.r#type.unwrap_or_default())))
        .text("description", each().map(|(_, feature)| feature.description.clone()))
}

fn feature_services(catalog: &Catalog) -> Table {
    let rows = all(catalog, Project::feature_services);
    let rows: Vec<_> =
        rows.iter().flat_map(|(project, it)| it.resolved.iter().map(move |of| (*project, (it, of)))).collect();
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("feature_service", each().map(|(it, _)| it.name.clone()))
        .version("version", each().map(|(it, _)| it.version))
        .text("feature_view", each().map(|(_, of)| of.view.clone()))
        .version("feature_view_version", each().map(|(_, of)| of.view_version))
        .text("feature", each().map(|(_, of)| of.feature.clone()))
}

fn models(catalog: &Catalog) -> Table {
    let rows = all(catalog, Project::models);
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("model", each().map(|(name, _)| (*name).to_owned()))
        .count("versions", each().map(|(_, it)| it.versions().len() as i64))
        .text("feature_service", {
            each().map(|(_, it)| it.definition().map(|it| it.feature_service.clone()).unwrap_or_default())
        })
        .text("description", {
            each().map(|(_, it)| it.definition().map(|it| it.description.clone()).unwrap_or_default())
        })
}

fn model_versions(catalog: &Catalog) -> Table {
    let rows = all(catalog, |project| project.models().flat_map(|(_, model)| model.versions()));
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("model", each().map(|it| it.model.clone()))
        .version("version", each().map(|it| it.version))
        .text("artifact", each().map(|it| it.artifact.as_ref().map(|blob| hex(&blob.root)).unwrap_or_default()))
        .count("bytes", each().map(|it| it.artifact.as_ref().map_or(0, |blob| blob.size as i64)))
        .text("format", each().map(|it| it.format.clone()))
        .text("feature_service", each().map(|it| it.feature_service.clone()))
        .version("feature_service_version", each().map(|it| it.feature_service_version))
        .text("token", each().map(|it| it.token.clone()))
        .text("code_commit", each().map(|it| it.code_commit.clone()))
        .text("run", each().map(|it| it.run.clone()))
        .text("author", each().map(|it| it.author.clone()))
        .text("description", each().map(|it| it.description.clone()))
        .time("created_at", each().map(|it| it.created_us))
}

fn model_metrics(catalog: &Catalog) -> Table {
    let rows = all(catalog, |project| project.models().flat_map(|(_, model)| model.versions()));
    let rows: Vec<_> =
        rows.iter().flat_map(|(project, it)| it.metrics.iter().map(move |metric| (*project, (it, metric)))).collect();
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("model", each().map(|(it, _)| it.model.clone()))
        .version("version", each().map(|(it, _)| it.version))
        .text("metric", each().map(|(_, (name, _))| (*name).clone()))
        .number("value", each().map(|(_, (_, value))| **value))
}

fn aliases(catalog: &Catalog) -> Table {
    let rows = all(catalog, |project| project.models().flat_map(|(_, model)| model.aliases()));
    let each = || rows.iter().map(|(_, (_, moved))| moved);
    of(&rows)
        .text("model", each().map(|it| it.model.clone()))
        .text("alias", each().map(|it| it.alias.clone()))
        .version("version", each().map(|it| it.to_version))
        .time("moved_at", each().map(|it| it.moved_us))
        .text("author", each().map(|it| it.author.clone()))
        .text("reason", each().map(|it| it.reason.clone()))
}

fn deployments(catalog: &Catalog) -> Table {
    let rows = all(catalog, Project::deployments);
    let each = || rows.iter().map(|(_, row)| row);
    of(&rows)
        .text("deployment", each().map(|it| it.name.clone()))
        .text("model", each().map(|it| it.model.clone()))
        .text("alias", each().map(|it| it.champion.as_ref().map(|arm| arm.alias.clone()).unwrap_or_default()))
        .version("version", each().map(|it| it.champion.as_ref().map_or(0, |arm| arm.version)))
        .text("description", each().map(|it| it.description.clone()))
}

fn nodes(catalog: &Catalog) -> Table {
    let rows: Vec<_> = catalog.nodes().collect();
    let state = |state: &str| state.trim_start_matches("NODE_STATE_").to_lowercase();
    Table::default()
        .count("id", rows.iter().map(|it| it.id as i64))
        .text("name", rows.iter().map(|it| it.name.clone()))
        .text("client_address", rows.iter().map(|it| it.client_address.clone()))
        .text("peer_address", rows.iter().map(|it| it.peer_address.clone()))
        .text("state", rows.iter().map(|it| state(it.state().as_str_name())))
        .time("joined_at", rows.iter().map(|it| it.joined_us))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
