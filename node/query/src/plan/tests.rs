use super::*;
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::meta_command::Change;
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{
    ApplyDefinitions, Definition, Entity, FeatureService, FeatureType, FeatureView, MetaCommand, MetaOutcome,
    OnDemandFeature, OnDemandFeatureView, ValueKind,
};
use cairn_storage::engine::{Engine, EngineOptions};
use cairn_storage::meta::Meta;
use cairn_storage::replica::{Entry, Replica};
use prost::Message;

pub(crate) fn field(name: &str, kind: ValueKind) -> Field {
    let r#type = Some(FeatureType { kind: kind as i32, list: false, length: 0 });
    Field { name: name.into(), r#type, description: String::new() }
}

fn fields(list: &[(&str, ValueKind)]) -> Vec<Field> {
    list.iter().map(|(name, kind)| field(name, *kind)).collect()
}

/// A project `p` in a real catalog, one log entry a definition.
pub(crate) struct Project {
    meta: Arc<Meta>,
    index: u64,
    _dir: tempfile::TempDir,
}

impl Default for Project {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta::open(&Engine::new(EngineOptions::default()), &dir.path().join("meta")).unwrap();
        Self { meta, index: 0, _dir: dir }
    }
}

impl Project {
    fn add(&mut self, kind: Kind) -> &mut Self {
        let apply = ApplyDefinitions {
            project: "p".into(),
            definitions: vec![Definition { kind: Some(kind) }],
            expected_catalog_version: self.index,
        };
        self.index += 1;
        let change = Some(Change::ApplyDefinitions(apply));
        let command = MetaCommand { version: 1, proposed_at_us: 1, change, ..Default::default() }.encode_to_vec();
        let entry = Entry { index: self.index, command: Some(&command) };
        let outcome = self.meta.apply(&[entry], b"position").unwrap().remove(0);
        match MetaOutcome::decode(outcome.as_slice()).unwrap().outcome {
            Some(Outcome::DefinitionsApplied(_)) => self,
            other => panic!("{other:?}"),
        }
    }

    pub fn entity(&mut self, name: &str, join_keys: &[(&str, ValueKind)]) -> &mut Self {
        let entity = Entity { name: name.into(), join_keys: fields(join_keys), description: String::new() };
        self.add(Kind::Entity(entity))
    }

    pub fn view(&mut self, name: &str, entities: &[&str], ttl_us: i64, features: &[(&str, ValueKind)]) -> &mut Self {
        let view = FeatureView {
            name: name.into(),
            entities: entities.iter().map(ToString::to_string).collect(),
            ttl_us,
            features: fields(features),
            ..Default::default()
        };
        self.add(Kind::FeatureView(view))
    }

    pub fn on_demand(
        &mut self,
        name: &str,
        sources: &[&str],
        request_data: &[(&str, ValueKind)],
        features: &[(&str, ValueKind, &str)],
    ) -> &mut Self {
        let features = features.iter().map(|(name, kind, sql)| OnDemandFeature {
            name: name.to_string(),
            r#type: field(name, *kind).r#type,
            sql: sql.to_string(),
            description: String::new(),
        });
        let view = OnDemandFeatureView {
            name: name.into(),
            sources: sources.iter().map(ToString::to_string).collect(),
            request_data: fields(request_data),
            features: features.collect(),
            ..Default::default()
        };
        self.add(Kind::OnDemandFeatureView(view))
    }

    pub fn service(&mut self, name: &str, features: &[&str]) -> &mut Self {
        let service = FeatureService {
            name: name.into(),
            features: features.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.add(Kind::FeatureService(service))
    }

    pub fn catalog(&self) -> Arc<cairn_storage::catalog::Catalog> {
        self.meta.catalog()
    }

    pub fn plan(&self, features: &[&str]) -> FeaturePlan {
        self.try_plan(features, false).unwrap()
    }

    pub fn try_plan(&self, features: &[&str], full: bool) -> Result<FeaturePlan> {
        self.compile(&Request::Features(features.iter().map(ToString::to_string).collect()), full)
    }

    pub fn compile(&self, request: &Request, full: bool) -> Result<FeaturePlan> {
        FeaturePlan::compile(&self.meta.catalog(), "p", request, full)
    }
}

fn project() -> Project {
    use ValueKind::{Float32, Int32, Int64, String};
    let mut project = Project::default();
    project
        .entity("driver", &[("driver_id", Int64)])
        .entity("route", &[("origin", String), ("dest", String)])
        .entity("odd", &[("driver_id", Int32)])
        .view("stats", &["driver"], 30, &[("rating", Float32), ("trips", Int64)])
        .view("delay", &["route"], 0, &[("mean", Float32), ("trips", Int64)])
        .view("both", &["driver", "route"], 0, &[("x", Int64)])
        .view("odd", &["odd"], 0, &[("y", Int64)])
        .view("key_like", &["driver"], 0, &[("origin", Int64), ("driver_rank", Int64)])
        .on_demand(
            "made",
            &["stats:rating", "stats:trips"],
            &[("factor", Float32)],
            &[("scaled", Float32, "rating * factor"), ("double", Int64, "trips * 2")],
        )
        .service("eta", &["stats", "made:scaled"]);
    project
}

fn names(plan: &FeaturePlan) -> Vec<&str> {
    plan.outputs().iter().map(|output| output.name.as_str()).collect()
}

fn required(plan: &FeaturePlan) -> Vec<&str> {
    plan.required_columns().iter().map(|column| column.field.name.as_str()).collect()
}

#[test]
fn outputs_stand_in_request_order() {
    let plan = project().plan(&["stats:trips", "delay:mean", "stats:rating"]);
    assert_eq!(names(&plan), ["trips", "mean", "rating"]);
    assert_eq!(required(&plan), ["driver_id", "origin", "dest"]);
    assert_eq!(plan.views().len(), 2);
    assert_eq!(plan.views()[0].projection, [1, 0]);
    assert_eq!(plan.output_schema(true).unwrap().fields().len(), 3 + 6);
    let whole = project().plan(&["stats"]);
    assert_eq!(names(&whole), ["rating", "trips"]);
    let error = project().try_plan(&["stats:trips", "stats"], false).unwrap_err();
    assert_eq!(error.to_string(), "feature `stats:trips` is named twice; name it once");
}

#[test]
fn clashing_names_are_qualified() {
    let plan = project().plan(&["stats:trips", "delay:trips", "stats:rating"]);
    assert_eq!(names(&plan), ["stats__trips", "delay__trips", "rating"]);
    let full = project().try_plan(&["stats:trips", "made:double"], true).unwrap();
    assert_eq!(names(&full), ["stats__trips", "made__double"]);
    let key = project().plan(&["key_like", "delay:mean"]);
    assert_eq!(names(&key), ["key_like__origin", "driver_rank", "mean"]);
    let alone = project().plan(&["key_like"]);
    assert_eq!(names(&alone), ["origin", "driver_rank"]);
}

#[test]
fn versions_are_pinned_or_newest() {
    let mut project = project();
    project.view("stats", &["driver"], 60, &[("rating", ValueKind::Float32)]);
    assert_eq!(project.plan(&["stats"]).views()[0].ttl_us, 60);
    assert_eq!(project.plan(&["stats@1"]).views()[0].ttl_us, 30);
    let error = project.try_plan(&["stats@9"], false).unwrap_err();
    assert_eq!(error.to_string(), "feature view `stats@9` not found in project `p`; its newest version is 2");
    let error = project.try_plan(&["stats@1:rating", "stats@2:rating"], false).unwrap_err();
    assert!(error.to_string().contains("would both be column `stats__rating`"), "{error}");
    // The service and the on-demand view stay bound to the version they were applied with.
    let plan = project.compile(&Request::Service { name: "eta".into(), version: None }, false).unwrap();
    assert_eq!(plan.service(), Some(("eta", 1)));
    assert_eq!(plan.views().iter().map(|view| view.version).collect::<Vec<_>>(), [1]);
    assert_eq!(names(&plan), ["rating", "trips", "scaled"]);
}

#[test]
fn on_demand_features_bring_their_inputs_hidden() {
    let plan = project().plan(&["made:scaled"]);
    assert_eq!(names(&plan), ["scaled"]);
    assert_eq!(required(&plan), ["driver_id", "factor"]);
    assert_eq!(plan.views()[0].projection, [0], "only what the SQL uses is read");
    let double = project().plan(&["made:double", "delay:mean"]);
    assert_eq!(required(&double), ["origin", "dest", "driver_id"]);
    assert_eq!(double.references().len(), 3);
}

#[test]
fn keys_shared_by_views_are_encoded_once() {
    let plan = project().plan(&["stats", "key_like:driver_rank", "both"]);
    assert_eq!(plan.key_sets.len(), 2);
    assert_eq!(plan.key_sets[1].columns, [0, 1, 2]);
}

#[test]
fn what_is_unknown_is_named_with_what_is_near() {
    let check = |features: &[&str], kind: ErrorKind, message: &str| {
        let error = project().try_plan(features, false).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, message));
    };
    check(&["stat:x"], ErrorKind::NotFound, "feature view `stat` not found in project `p`; did you mean `stats`?");
    check(
        &["stats:ratng"],
        ErrorKind::NotFound,
        "feature `ratng` not found in feature view `stats@1`; did you mean `rating`?",
    );
    check(
        &["made:zzz"],
        ErrorKind::NotFound,
        "feature `zzz` not found in feature view `made@1`; there is `scaled`, `double`",
    );
    check(
        &[],
        ErrorKind::InvalidArgument,
        "no features are asked for; name a feature service, or features such as `view:feature`",
    );
    check(
        &["stats", "odd"],
        ErrorKind::InvalidArgument,
        "column `driver_id` would have to be int64 as a join key of entity `driver` and int32 as a join key of entity \
         `odd`; ask for these features apart",
    );
    let service = Request::Service { name: "etaa".into(), version: None };
    let error = project().compile(&service, false).unwrap_err();
    assert_eq!(error.to_string(), "feature service `etaa` not found in project `p`; did you mean `eta`?");
}

#[test]
fn a_status_column_takes_no_other_name() {
    let mut project = project();
    project.view("tricky", &["driver"], 0, &[("a", ValueKind::Int64), ("a__status", ValueKind::Int64)]);
    let plan = project.plan(&["tricky"]);
    assert!(plan.output_schema(false).is_ok());
    assert!(plan.output_schema(true).unwrap_err().to_string().contains("`a__status` is a column already"));
}
