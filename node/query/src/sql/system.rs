//! The registry as tables: what is defined, registered and running, of one moment of the catalog; and `backtests` and what else is
//! `stored` in meta without being in the catalog.

mod backtests;
mod stored;

use super::external;
use super::rows::time_type;
use crate::Error;
use crate::source::ShardedSource;
use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema};
use cairn_proto::record::v1::{Backfill, Job, job::Kind};
use cairn_storage::blob::hex;
use cairn_storage::catalog::{Catalog, Project};
use cairn_storage::meta::{Meta, chunk_count, job_state_name};
use cairn_storage::types::type_name;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::DataFusionError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fills a table.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    Catalog(fn(&Catalog) -> Table),
    Shards(fn(&Catalog, &ShardedSource) -> Table),
}

const TABLES: &[(&str, Fill)] = &[
    ("entities", Fill::Catalog(entities)),
    ("feature_views", Fill::Catalog(feature_views)),
    ("features", Fill::Catalog(features)),
    ("feature_services", Fill::Catalog(feature_services)),
    ("models", Fill::Catalog(models)),
    ("model_versions", Fill::Catalog(model_versions)),
    ("model_metrics", Fill::Catalog(model_metrics)),
    ("aliases", Fill::Catalog(aliases)),
    ("deployments", Fill::Catalog(deployments)),
    ("nodes", Fill::Catalog(nodes)),
    ("segments", Fill::Shards(segments)),
    ("jobs", Fill::Catalog(jobs)),
];

/// All tables there are.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let stored = stored::TABLES.iter().map(|(name, _)| *name);
    TABLES.iter().map(|(name, _)| *name).chain(backtests::TABLES.iter().map(|(name, _)| *name)).chain(stored)
}

fn fill(catalog: &Catalog, source: &ShardedSource, name: &str) -> Option<Table> {
    let (_, fill) = TABLES.iter().find(|(table, _)| *table == name)?;
    Some(match fill {
        Fill::Catalog(fill) => fill(catalog),
        Fill::Shards(fill) => fill(catalog, source),
    })
}

pub(super) fn table(
    catalog: &Catalog,
    source: &ShardedSource,
    meta: Option<&Arc<Meta>>,
    name: &str,
) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let Some(Table { fields, columns }) = fill(catalog, source, name) else {
        return Ok(match backtests::table(name, catalog, meta)? {
            Some(table) => Some(table),
            None => stored::table(name, meta)?,
        });
    };
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| external(Error::internal(error)))?;
    Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
}

pub(super) fn columns(catalog: &Catalog, source: &ShardedSource, name: &str) -> Schema {
    if let Some((_, what)) = stored::TABLES.iter().find(|(table, _)| *table == name) {
        return what.schema();
    }
    let tell = backtests::TABLES.iter().find(|(table, _)| *table == name);
    match (fill(catalog, source, name), tell) {
        (Some(table), _) => Schema::new(table.fields),
        (None, tell) => tell.map_or_else(Schema::empty, |(_, tell)| backtests::columns(*tell)),
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

/// A hash as roots are written; nothing for what is none.
fn hash(bytes: &[u8]) -> String {
    bytes.try_into().map(|hash| hex(&hash)).unwrap_or_default()
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
        .text("source", each().map(|it| it.files.as_ref().map_or(&it.source, |files| &files.path).clone()))
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
        .text("artifact", each().map(|it| it.artifact.as_ref().map(|blob| hash(&blob.root)).unwrap_or_default()))
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

/// History in Parquet files, of this node's shards.
fn segments(catalog: &Catalog, source: &ShardedSource) -> Table {
    let mut views = BTreeMap::new();
    for (project, view) in all(catalog, Project::feature_views) {
        for version in project.feature_view_versions(&view.name) {
            views.insert(version.storage_id, (project, view.name.clone()));
        }
    }
    let listed = source.segments().into_iter();
    let rows: Vec<_> = listed.filter_map(|(shard, it)| Some((views.get(&it.storage_id)?, shard, it))).collect();
    let each = || rows.iter().map(|(_, _, it)| it);
    Table::default()
        .text("project", rows.iter().map(|((project, _), ..)| project.name().to_owned()))
        .text("feature_view", rows.iter().map(|((_, view), ..)| view.clone()))
        .count("shard", rows.iter().map(|(_, shard, _)| i64::from(*shard)))
        .count("first_slot", each().map(|it| i64::from(it.first_slot)))
        .count("last_slot", each().map(|it| i64::from(it.last_slot)))
        .count("rows", each().map(|it| it.rows as i64))
        .count("bytes", each().map(|it| it.size as i64))
        .time("first_event", each().map(|it| it.event_min_us))
        .time("last_event", each().map(|it| it.event_max_us))
        .text("state", each().map(|it| if it.trimmed { "alone" } else { "still in the database too" }.to_owned()))
        .text("artifact", each().map(|it| hash(&it.root)))
}

fn jobs(catalog: &Catalog) -> Table {
    let rows: Vec<(&Job, Backfill)> = catalog
        .jobs()
        .map(|job| match &job.kind {
            Some(Kind::Backfill(fill)) => (&**job, fill.clone()),
            None => (&**job, Backfill::default()),
        })
        .collect();
    let chunks_done = |fill: &Backfill| fill.done.iter().map(|range| i64::from(range.last - range.first) + 1).sum();
    Table::default()
        .count("id", rows.iter().map(|(job, _)| job.id as i64))
        .text("project", rows.iter().map(|(job, _)| job.project.clone()))
        .text("state", rows.iter().map(|(job, _)| job_state_name(job.state()).to_owned()))
        .text("message", rows.iter().map(|(job, _)| job.message.clone()))
        .text("feature_view", rows.iter().map(|(_, fill)| fill.view.clone()))
        .version("feature_view_version", rows.iter().map(|(_, fill)| fill.view_version))
        .time("interval_start", rows.iter().map(|(_, fill)| fill.from_us))
        .time("interval_end", rows.iter().map(|(_, fill)| fill.to_us))
        .count("chunks", rows.iter().map(|(_, fill)| i64::from(chunk_count(fill))))
        .count("chunks_done", rows.iter().map(|(_, fill)| chunks_done(fill)))
        .count("rows", rows.iter().map(|(_, fill)| fill.rows as i64))
        .text("author", rows.iter().map(|(job, _)| job.author.clone()))
        .time("begun_at", rows.iter().map(|(job, _)| job.begun_us))
        .time("ended_at", rows.iter().map(|(job, _)| job.ended_us))
}
