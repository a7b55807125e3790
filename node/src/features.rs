//! Feature reads: the compiled plan of a request, found again by catalog version, and the read itself.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::node::Node;
use arrow_array::{ArrayRef, BinaryArray, FixedSizeListArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Schema};
use cairn_proto::command::{EVENT_TIMESTAMP, GetHistoricalFeatures, GetOnlineFeatures, ReadReply};
use cairn_query::historical::{CreatedCutoff, HistoricalOptions};
use cairn_query::online::{OnlineBatch, OnlineOptions, ReadAt};
use cairn_query::plan::{FeaturePlan, Request};
use cairn_query::source::settled;
use cairn_storage::catalog::{Catalog, DefinitionKind};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Rows of one online or predict batch.
pub const ENTITY_ROWS_MAX: usize = 65_536;
/// Up to this many look-ups run on the serving thread; more of them move to a blocking one.
const INLINE_LOOKUPS_MAX: usize = 2_048;
/// How long a read waits for slots that no replica here has: the old shard's is ahead of the new one's.
const MOVING_MAX: Duration = Duration::from_secs(10);

/// Compiled plans by what was asked for and the project's catalog version, so that a changed definition is found at once.
#[derive(Debug, Default)]
pub struct PlanCache {
    held: RwLock<HashMap<PlanKey, Arc<FeaturePlan>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PlanKey {
    project: String,
    catalog_version: u64,
    service: Option<(String, Option<u32>)>,
    features: Option<Vec<String>>,
    full_names: bool,
}

/// Plans kept at a time; ad-hoc feature lists could be without number. A full cache starts over.
const PLANS_MAX: usize = 1_024;

/// The plan of a service, or of a list of features.
///
/// # Errors
/// `InvalidArgument` when neither or both are named; `NotFound` for an unknown name.
pub fn plan(
    node: &Node,
    project: &str,
    service: &Option<String>,
    features: &Option<Vec<String>>,
    full_names: bool,
) -> Result<Arc<FeaturePlan>> {
    let service = service.as_ref().map(|name| (name.clone(), None));
    compile(
        node,
        PlanKey { project: project.to_owned(), catalog_version: 0, service, features: features.clone(), full_names },
    )
}

/// The plan of a join.
///
/// # Errors
/// As [`plan`]; `InvalidArgument` for the version of a service that is not named.
pub fn historical_plan(node: &Node, ask: &GetHistoricalFeatures) -> Result<Arc<FeaturePlan>> {
    if ask.feature_service.is_none() && ask.feature_service_version.is_some() {
        return Err(Error::invalid("`feature_service_version` needs a `feature_service`"));
    }
    let service = ask.feature_service.as_ref().map(|name| (name.clone(), ask.feature_service_version));
    let (project, features) = (ask.project.clone(), ask.features.clone());
    compile(node, PlanKey { project, catalog_version: 0, service, features, full_names: ask.full_feature_names })
}

/// The plan of one version of a service: what a model version reads.
///
/// # Errors
/// `NotFound` for an unknown name or version.
pub fn service_plan(node: &Node, project: &str, service: &str, version: u32) -> Result<Arc<FeaturePlan>> {
    let service = Some((service.to_owned(), Some(version)));
    compile(
        node,
        PlanKey { project: project.to_owned(), catalog_version: 0, service, features: None, full_names: false },
    )
}

fn compile(node: &Node, mut key: PlanKey) -> Result<Arc<FeaturePlan>> {
    let catalog = node.meta.catalog();
    key.catalog_version = catalog.project(&key.project)?.catalog_version();
    if let Some(plan) = node.plans.held.read().get(&key) {
        return Ok(Arc::clone(plan));
    }
    let request = match (&key.service, &key.features) {
        (Some((name, version)), None) => Request::Service { name: name.clone(), version: *version },
        (None, Some(features)) => Request::Features(features.clone()),
        (None, None) => {
            return Err(Error::invalid("name a `feature_service`, or `features` such as [\"view:feature\"]"));
        }
        (Some(_), Some(_)) => return Err(Error::invalid("name a `feature_service` or `features`, not both")),
    };
    let plan = FeaturePlan::compile(&catalog, &key.project, &request, key.full_names);
    let plan = Arc::new(plan.map_err(|error| match &key.service {
        Some((name, None)) => view_instead(&catalog, &key.project, name).unwrap_or_else(|| error.into()),
        _ => error.into(),
    })?);
    let mut held = node.plans.held.write();
    if held.len() >= PLANS_MAX {
        held.clear();
    }
    held.insert(key, Arc::clone(&plan));
    Ok(plan)
}

/// The refusal of a name that no feature service has, where a feature view has it.
fn view_instead(catalog: &Catalog, project: &str, name: &str) -> Option<Error> {
    let held = catalog.project(project).ok()?;
    let kind = [DefinitionKind::FeatureView, DefinitionKind::OnDemandFeatureView]
        .into_iter()
        .find(|kind| held.definition(*kind, name).is_some())?;
    if held.definition(DefinitionKind::FeatureService, name).is_some() {
        return None;
    }
    let article = if kind == DefinitionKind::FeatureView { "a" } else { "an" };
    Some(Error::not_found(format!(
        "feature service `{name}` not found in project `{project}`; `{name}` is {article} {}: ask for `features` \
         [\"{name}\"] (on the command line `{name}:`)",
        kind.words()
    )))
}

/// The plan of an online read, compiled from definitions as fresh as its rows must be, and how fresh both are.
///
/// # Errors
/// As [`plan`], and when that state does not come in time.
pub async fn prepare(node: &Arc<Node>, ask: &GetOnlineFeatures) -> Result<(Arc<FeaturePlan>, ReadReply)> {
    let reply = node.ensure(&ask.read, 0..=node.shard_count()).await?;
    let plan = plan(node, &ask.project, &ask.feature_service, &ask.features, ask.full_feature_names)?;
    Ok((plan, reply))
}

/// One online read, [`prepare`]d before.
///
/// # Errors
/// `TooLarge` over the row limit; `InvalidArgument` for a missing or mistyped entity column.
pub async fn read(
    node: &Arc<Node>,
    plan: &Arc<FeaturePlan>,
    ask: &GetOnlineFeatures,
    rows: &RecordBatch,
) -> Result<RecordBatch> {
    check_rows(rows)?;
    let started = std::time::Instant::now();
    let at = ReadAt { now_us: now_us(), as_of_us: ask.as_of.map(|at| at.0), known_us: ask.known_as_of.map(|at| at.0) };
    let answer =
        read_plan(node, plan, at, rows, OnlineOptions { statuses: ask.statuses, ..OnlineOptions::default() }).await?;
    node.metrics.online_read(rows.num_rows(), started.elapsed());
    Ok(answer)
}

pub fn check_rows(rows: &RecordBatch) -> Result<()> {
    if rows.num_rows() > ENTITY_ROWS_MAX {
        let message = format!(
            "a batch of {} entity rows is over the limit of {ENTITY_ROWS_MAX}; send smaller batches",
            rows.num_rows()
        );
        return Err(Error::new(cairn_proto::ErrorKind::TooLarge, message));
    }
    Ok(())
}

/// Runs a plan: small reads where we stand, large ones on a blocking thread. Rows with an `event_timestamp` column
/// are answered each as of its own time, by the historical join itself.
pub async fn read_plan(
    node: &Arc<Node>,
    plan: &Arc<FeaturePlan>,
    at: ReadAt,
    rows: &RecordBatch,
    options: OnlineOptions,
) -> Result<RecordBatch> {
    if rows.column_by_name(EVENT_TIMESTAMP).is_some() {
        if at.as_of_us.is_some() {
            return Err(Error::invalid("the rows bring their own `event_timestamp`; leave `as_of` out"));
        }
        let join = HistoricalOptions {
            event_timestamp: EVENT_TIMESTAMP.to_owned(),
            known_us: at.known_us,
            created: CreatedCutoff::SpineTime,
            statuses: options.statuses,
        };
        let (node, plan, rows) = (Arc::clone(node), Arc::clone(plan), rows.clone());
        return crate::api::flight::blocking(move || joined(&node, &plan, &rows, join)).await;
    }
    // History may be in segments, of which a part is read from disk and decoded.
    let from_disk = (at.as_of_us.is_some() || at.known_us.is_some()) && node.source.has_segments();
    if !from_disk && rows.num_rows().saturating_mul(plan.views().len()) <= INLINE_LOOKUPS_MAX {
        match plan.read_online(rows, at, node.source.as_ref(), options) {
            // What passes is waited for off this thread.
            Err(error) if error.will_pass() => {}
            done => return Ok(done?.batch),
        }
    }
    let (node, plan, rows) = (Arc::clone(node), Arc::clone(plan), rows.clone());
    crate::api::flight::blocking(move || Ok(read_settled(&node, &plan, &rows, at, options)?.batch)).await
}

/// An online read that waits for slots which are between two shards here. Blocks.
///
/// # Errors
/// As [`FeaturePlan::read_online`].
pub fn read_settled(
    node: &Node,
    plan: &FeaturePlan,
    rows: &RecordBatch,
    at: ReadAt,
    options: OnlineOptions,
) -> cairn_query::Result<OnlineBatch> {
    let source = node.source.as_ref();
    settled(source, MOVING_MAX, || plan.read_online(rows, at, source, options))
}

/// Rows that carry their own times: the required columns and the features, as an online read gives them.
fn joined(node: &Node, plan: &FeaturePlan, rows: &RecordBatch, options: HistoricalOptions) -> Result<RecordBatch> {
    let schema = plan.output_schema(options.statuses)?;
    let (_, parts) = plan.join_historical(std::slice::from_ref(rows), options, node.source.as_ref())?;
    let required = plan.required_columns().len();
    let one = |part: &RecordBatch| -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields().iter().take(required) {
            let sent = part.column_by_name(field.name());
            let sent = sent.ok_or_else(|| Error::internal(format!("column `{}` got lost", field.name())))?;
            columns.push(arrow_cast::cast(sent, field.data_type()).map_err(|error| Error::invalid(error.to_string()))?);
        }
        columns.extend(part.columns().iter().skip(rows.num_columns()).cloned());
        RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| Error::internal(error.to_string()))
    };
    let parts: Vec<RecordBatch> = parts.iter().map(one).collect::<Result<_>>()?;
    arrow_select::concat::concat_batches(&schema, &parts).map_err(|error| Error::internal(error.to_string()))
}

/// One row of zeros and empty strings with the columns of a plan: what a new version is tried on.
///
/// # Errors
/// `Internal` when its columns cannot be made.
pub fn blank_row(plan: &FeaturePlan) -> Result<RecordBatch> {
    let required = plan.required_columns().len();
    let output = plan.output_schema(false)?;
    let fields: Vec<_> = output.fields().iter().skip(required).cloned().collect();
    let columns = fields.iter().map(|field| blank(field.data_type())).collect::<Result<_>>()?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| Error::internal(error.to_string()))
}

fn blank(kind: &DataType) -> Result<ArrayRef> {
    let text: ArrayRef = match kind {
        DataType::Utf8 => return Ok(Arc::new(StringArray::from(vec![""]))),
        DataType::Binary => return Ok(Arc::new(BinaryArray::from_vec(vec![b""]))),
        DataType::FixedSizeList(item, width) => {
            let zeros =
                arrow_cast::cast(&Int32Array::from(vec![0; usize::try_from(*width).unwrap_or(0)]), item.data_type());
            let zeros = zeros.map_err(|error| Error::internal(error.to_string()))?;
            let list = FixedSizeListArray::try_new(Arc::clone(item), *width, zeros, None);
            return list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| Error::internal(error.to_string()));
        }
        DataType::List(_) => return Ok(arrow_array::new_null_array(kind, 1)),
        DataType::Timestamp(_, _) => Arc::new(Int64Array::from(vec![0])),
        _ => Arc::new(Int32Array::from(vec![0])),
    };
    arrow_cast::cast(&text, kind).map_err(|error| Error::internal(error.to_string()))
}

/// How a join is cut off. Without `known_as_of`: what is known as it starts, so that its batches agree.
pub fn historical_options(node: &Node, ask: &GetHistoricalFeatures) -> HistoricalOptions {
    // Never before what is applied here: another node's clock may be ahead of this one's.
    let applied = (0..=node.shard_count()).map(|group| node.applied_us(group)).max().unwrap_or(0);
    let created = match (ask.ignore_created, ask.created_as_of) {
        (true, _) => CreatedCutoff::Off,
        (false, Some(at)) => CreatedCutoff::At(at.0),
        (false, None) => CreatedCutoff::SpineTime,
    };
    HistoricalOptions {
        event_timestamp: ask.event_timestamp.clone(),
        known_us: Some(ask.known_as_of.map_or(now_us().max(applied), |at| at.0)),
        created,
        statuses: ask.statuses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::record::v1::definition::Kind;
    use cairn_proto::record::v1::meta_command::Change;
    use cairn_proto::record::v1::{
        ApplyDefinitions, Definition, Entity, FeatureService, FeatureType, FeatureView, Field, MetaCommand,
        OnDemandFeature, OnDemandFeatureView, ValueKind,
    };
    use cairn_storage::engine::{Engine, EngineOptions};
    use cairn_storage::meta::Meta;
    use cairn_storage::replica::{Entry, Replica};
    use prost::Message;

    fn int64(name: &str) -> Field {
        let r#type = Some(FeatureType { kind: ValueKind::Int64 as i32, list: false, length: 0 });
        Field { name: name.into(), r#type, description: String::new() }
    }

    /// Project `p`: view `rides`, on-demand view `pay`, service `eta`, and a view and a service that are both `both`.
    fn catalog() -> Arc<Catalog> {
        let view = |name: &str| {
            let features = vec![int64("trips")];
            Kind::FeatureView(FeatureView {
                name: name.into(),
                entities: vec!["driver".into()],
                features,
                ..Default::default()
            })
        };
        let service = |name: &str| {
            let features = vec!["rides".into()];
            Kind::FeatureService(FeatureService { name: name.into(), features, ..Default::default() })
        };
        let pay = OnDemandFeature {
            name: "twice".into(),
            r#type: int64("twice").r#type,
            sql: "trips * 2".into(),
            description: String::new(),
        };
        let definitions = [
            Kind::Entity(Entity { name: "driver".into(), join_keys: vec![int64("driver_id")], ..Default::default() }),
            view("rides"),
            Kind::OnDemandFeatureView(OnDemandFeatureView {
                name: "pay".into(),
                sources: vec!["rides".into()],
                features: vec![pay],
                ..Default::default()
            }),
            service("eta"),
            view("both"),
            service("both"),
        ];
        let definitions = definitions.map(|kind| Definition { kind: Some(kind) }).to_vec();
        let apply = ApplyDefinitions { project: "p".into(), definitions, expected_catalog_version: 0 };
        let change = Some(Change::ApplyDefinitions(apply));
        let command = MetaCommand { version: 1, proposed_at_us: 1, change, ..Default::default() }.encode_to_vec();
        let folder = tempfile::tempdir().unwrap();
        let meta = Meta::open(&Engine::new(EngineOptions::default()), &folder.path().join("meta")).unwrap();
        meta.apply(&[Entry { index: 1, command: Some(&command) }], b"position").unwrap();
        meta.catalog()
    }

    #[test]
    fn a_view_asked_for_as_a_service_is_told_how_to_ask() {
        let catalog = catalog();
        let told = |name: &str| view_instead(&catalog, "p", name).map(|error| (error.kind, error.message));
        let kind = cairn_proto::ErrorKind::NotFound;
        let rides = "feature service `rides` not found in project `p`; `rides` is a feature view: ask for `features` \
                     [\"rides\"] (on the command line `rides:`)";
        assert_eq!(told("rides"), Some((kind, rides.to_owned())));
        let pay = "feature service `pay` not found in project `p`; `pay` is an on-demand feature view: ask for \
                   `features` [\"pay\"] (on the command line `pay:`)";
        assert_eq!(told("pay"), Some((kind, pay.to_owned())));
        for name in ["eta", "both", "nothing"] {
            assert_eq!(told(name), None, "{name}");
        }
        assert_eq!(view_instead(&catalog, "q", "rides").map(|error| error.message), None);
    }
}
