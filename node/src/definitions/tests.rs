//! What users write, what they are told, what would change.

mod agreement;

use super::Plan;
use super::parse::{Placed, Problem, duration_us, parse};
use super::resolve::plan;
use cairn_proto::api::v1::SourceFile;
use cairn_proto::record::v1 as record;
use cairn_storage::engine::{Engine, EngineOptions};
use cairn_storage::meta::Meta;
use cairn_storage::replica::{Entry, Replica};
use expect_test::{Expect, expect};
use prost::Message;
use record::meta_command::Change;
use record::meta_outcome::Outcome;
use std::sync::Arc;

const DRIVERS: &str = "\
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: driver_stats
spec:
  entities: [driver]
  ttl: 30d
  features:
    - {name: rating, type: float32, description: \"mean of the last 100 ratings\"}
    - {name: trips_today, type: int64}
---
kind: OnDemandFeatureView
name: pay
spec:
  sources: [\"driver_stats:trips_today\"]
  request_data: [{name: fare, type: float64}]
  features: [{name: earned, type: float64, sql: \"trips_today * fare\"}]
---
kind: FeatureService
name: eta
spec: {features: [\"driver_stats:rating\", pay]}
---
kind: Model
name: eta
spec: {feature_service: eta}
---
kind: Deployment
name: eta
spec: {model: eta, champion: {alias: champion}, challengers: [], shadows: []}
";

fn files(text: &str) -> Vec<SourceFile> {
    vec![SourceFile { path: "defs.yaml".to_owned(), text: text.to_owned() }]
}

/// A meta group of its own with one project, `default`, changed by the commands that plans make.
struct World {
    meta: Arc<Meta>, // closed before its directory goes
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { cache_bytes: 8 << 20, write_buffer_bytes: 4 << 20, background_jobs: 2 };
        let meta = Meta::open(&Engine::new(options), &folder.path().join("meta")).unwrap();
        Self { meta, _folder: folder }
    }

    /// With the definitions of `text` applied.
    fn with(text: &str) -> Self {
        let world = Self::new();
        let plan = world.plan(parse(&files(text)).unwrap()).unwrap();
        let outcome = world.apply(Change::ApplyDefinitions(plan.command));
        assert!(matches!(outcome, Outcome::DefinitionsApplied(_)), "{outcome:?}");
        world
    }

    fn plan(&self, placed: Vec<Placed>) -> Result<Plan, Vec<Problem>> {
        plan(&self.meta.catalog(), "default", placed)
    }

    fn apply(&self, change: Change) -> Outcome {
        let command = record::MetaCommand { version: 1, proposed_at_us: 1, change: Some(change), ..Default::default() };
        let (index, bytes) = (self.meta.applied().index + 1, command.encode_to_vec());
        let outcomes = self.meta.apply(&[Entry { index, command: Some(&bytes) }], &index.to_be_bytes()).unwrap();
        record::MetaOutcome::decode(outcomes[0].as_slice()).unwrap().outcome.unwrap()
    }

    /// What a plan says: its changes, or its problems.
    fn said(&self, text: &str) -> String {
        match parse(&files(text)).and_then(|placed| self.plan(placed)) {
            Ok(plan) => {
                let line = |change: &cairn_proto::api::v1::Change| {
                    let rows = if change.loses_rows { " (starts without rows)" } else { "" };
                    let details: String = change.details.iter().map(|detail| format!("\n  {detail}")).collect();
                    format!("{} {} {}@{}{rows}{details}\n", change.action, change.kind, change.name, change.to_version)
                };
                plan.changes.iter().map(line).collect()
            }
            Err(problems) => problems.iter().map(|problem| format!("{problem}\n")).collect(),
        }
    }

    fn check(&self, text: &str, expected: Expect) {
        expected.assert_eq(&self.said(text));
    }
}

/// What a plan over nothing says.
fn said(text: &str) -> String {
    World::new().said(text)
}

#[test]
fn a_new_project_creates_everything() {
    World::new().check(
        DRIVERS,
        expect![[r#"
            create Entity driver@1
              + join key driver_id int64
            create FeatureView driver_stats@1
              + entity driver
              + ttl 30d
              + feature rating float32 "mean of the last 100 ratings"
              + feature trips_today int64
            create OnDemandFeatureView pay@1
              + driver_stats:trips_today @1
              + request data fare float64
              + feature earned float64 = trips_today * fare
            create FeatureService eta@1
              + driver_stats:rating @1
              + pay:earned @1
            create Model eta@1
              + feature service eta
            create Deployment eta@1
              + model eta
              + champion alias champion
        "#]],
    );
}

#[test]
fn the_same_files_again_change_nothing() {
    let plan = World::with(DRIVERS).plan(parse(&files(DRIVERS)).unwrap()).unwrap();
    assert!(plan.is_empty(), "{:?}", plan.changes);
    assert!(plan.changes.iter().all(|change| change.action == "unchanged"));
}

#[test]
fn a_changed_schema_carries_its_readers_along() {
    let changed = DRIVERS.replace("{name: trips_today, type: int64}", "{name: trips_today, type: int32}");
    World::with(DRIVERS).check(
        &changed,
        expect![[r#"
            unchanged Entity driver@1
            update FeatureView driver_stats@2 (starts without rows)
              ~ feature trips_today int64 → int32
            update OnDemandFeatureView pay@2
              ~ driver_stats:trips_today @1 → @2
            update FeatureService eta@2
              ~ driver_stats:rating @1 → @2
              ~ pay:earned @1 → @2
            unchanged Model eta@1
            unchanged Deployment eta@1
        "#]],
    );
}

#[test]
fn a_changed_ttl_keeps_the_rows() {
    let text = World::with(DRIVERS).said(&DRIVERS.replace("ttl: 30d", "ttl: 12h"));
    assert!(text.contains("update FeatureView driver_stats@2\n  ~ ttl 30d → 12h\n"), "{text}");
}

#[test]
fn every_complaint_has_a_place_and_a_fix() {
    let none = World::new();
    let check = |from: &str, to: &str, expected: Expect| {
        assert!(DRIVERS.contains(from), "{from}");
        none.check(&DRIVERS.replacen(from, to, 1), expected);
    };
    check(
        "kind: FeatureView",
        "kind: FeatureVeiw",
        expect![[r#"
        defs.yaml:5:7: `FeatureVeiw` is not a kind; the kinds are Entity, FeatureView, OnDemandFeatureView, FeatureService, Model, Deployment
    "#]],
    );
    check(
        "ttl: 30d",
        "ttl: 30 days",
        expect![[r#"
        defs.yaml:9:8: `30 days` is not a duration; write a number with ms, s, m, h, d or w, such as `30d`
    "#]],
    );
    check(
        "entities: [driver]",
        "entities: [drivr]",
        expect![[r#"
            defs.yaml:8:14: Entity `drivr` not found; did you mean `driver`?
        "#]],
    );
    check(
        "driver_stats:rating",
        "driver_stats:ratting",
        expect![[r#"
            defs.yaml:23:19: feature view `driver_stats` has no feature `ratting`; did you mean `rating`?
        "#]],
    );
    check(
        "  ttl: 30d",
        "  model: x",
        expect![[r#"
        defs.yaml:9:10: FeatureView has no field `model`; remove it
    "#]],
    );
    check(
        "champion: {alias: champion}",
        "champion: {}",
        expect![[r#"
        defs.yaml:31:30: an arm needs an `alias` or a `version`
    "#]],
    );
    check(
        "type: float32",
        "type: float23",
        expect![[r#"
        defs.yaml:11:7: `rating`: `float23` is not a feature type; types are bool, int32, int64, float32, float64, string, bytes, timestamp, date, and lists of numbers such as list<float32> or list<float32>[384]
    "#]],
    );
}

#[test]
fn a_yaml_typo_is_found_by_line() {
    let text = said(&DRIVERS.replace("  ttl: 30d", "  tll: 30d"));
    assert!(text.starts_with("defs.yaml:9:"), "{text}");
    assert!(text.contains("tll"), "{text}");
    let text = said("kind: Entity\nname: [\n");
    assert!(text.starts_with("defs.yaml:"), "{text}");
}

#[test]
fn twice_the_same_name_is_refused() {
    let twice = format!("{DRIVERS}---\nkind: Entity\nname: driver\nspec: {{join_keys: [{{name: id, type: int64}}]}}\n");
    let text = said(&twice);
    assert!(text.contains("Entity `driver` is defined twice; first at defs.yaml:1:7"), "{text}");
    let clash = DRIVERS.replace("name: pay", "name: driver_stats");
    let text = said(&clash);
    assert!(text.contains("`driver_stats` is already a FeatureView"), "{text}");
}

#[test]
fn join_keys_of_an_entity_never_change() {
    World::with(DRIVERS)
        .check(&DRIVERS.replace("{name: driver_id, type: int64}", "{name: driver_id, type: string}"), expect![[r#"
            defs.yaml:1:7: entity `driver`: its join keys cannot change any more: feature view `driver_stats` uses them; define another entity
        "#]]);
}

#[test]
fn what_only_storage_refuses_has_a_place_too() {
    let none = World::new();
    let pinned = DRIVERS.replace("champion: {alias: champion}", "champion: {version: 3}");
    none.check(
        &pinned,
        expect![[r#"
        defs.yaml:29:7: deployment `eta`: model `eta@3` not found in project `default`; it has no versions yet
    "#]],
    );
    none.check(
        &DRIVERS.replace("spec: {features: [\"driver_stats:rating\", pay]}", "spec: {features: []}"),
        expect![[r#"
            defs.yaml:21:7: feature service `eta`: it has no features; name at least one
        "#]],
    );
    none.check(
        &DRIVERS.replace("entities: [driver]", "entities: []"),
        expect![[r#"
        defs.yaml:5:7: feature view `driver_stats`: it has no entities; name at least one
    "#]],
    );
}

#[test]
fn arms_that_are_not_served_are_refused() {
    let text = said(&DRIVERS.replace("challengers: []", "challengers: [{version: 2, weight: 0.1}]"));
    assert!(text.contains("challengers and shadows are not served by this version"), "{text}");
}

#[test]
fn sql_that_cannot_run_is_refused_with_its_reason() {
    let text = said(&DRIVERS.replace("trips_today * fare", "trips_today * fair"));
    assert!(text.contains("fair") && text.starts_with("defs.yaml:19:14"), "{text}");
    let text = said(&DRIVERS.replace("trips_today * fare", "random() * fare"));
    assert!(text.contains("random"), "{text}");
}

#[test]
fn durations_read_as_written() {
    let cases = [
        ("30d", Some(2_592_000_000_000)),
        ("90s", Some(90_000_000)),
        ("500ms", Some(500_000)),
        ("1w", Some(604_800_000_000)),
    ];
    for (text, us) in cases {
        assert_eq!(duration_us(text), us, "{text}");
    }
    for text in ["", "30", "d", "-1d", "1.5h", "99999999999999d"] {
        assert_eq!(duration_us(text), None, "{text}");
    }
}
