//! Lookups say what is missing and what to do. How a catalog comes about is tested with the meta group.

use super::*;
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::{self as record, Definition, DefinitionVersion, FeatureView, Field, Model, ModelVersion};

fn definition(version: u32, storage_id: u32, kind: Kind) -> Row {
    let definition = Some(Definition { kind: Some(kind) });
    Row::Definition(DefinitionVersion {
        project: "p".to_owned(),
        version,
        definition,
        storage_id,
        index: 5,
        applied_us: 9,
    })
}

fn view(name: &str, ttl_us: i64) -> Kind {
    let feature = |name: &str| Field { name: name.to_owned(), ..Default::default() };
    let features = vec![feature("rating"), feature("trips")];
    Kind::FeatureView(FeatureView { name: name.to_owned(), ttl_us, features, ..Default::default() })
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    let model = |name: &str| Kind::Model(Model { name: name.to_owned(), ..Default::default() });
    let version = ModelVersion { project: "p".to_owned(), model: "eta".to_owned(), version: 1, ..Default::default() };
    for row in [
        Row::Project(record::Project { name: "p".to_owned(), catalog_version: 5, ..Default::default() }),
        definition(1, 1, view("rides", 0)),
        definition(2, 1, view("rides", 60)),
        definition(1, 2, view("drivers", 0)),
        definition(1, 0, model("eta")),
        Row::ModelVersion(Box::new(version)),
    ] {
        catalog.take(&row).unwrap();
    }
    catalog
}

#[test]
fn what_is_not_there_is_named_with_a_way_out() {
    let catalog = catalog();
    let check = |error: Error, expected: &str| {
        assert_eq!(error.kind(), cairn_proto::ErrorKind::NotFound);
        assert_eq!(error.to_string(), expected);
    };
    let p = catalog.project("p").unwrap();
    check(catalog.project("q").unwrap_err(), "project `q` not found; did you mean `p`?");
    check(catalog.node(3).unwrap_err(), "node 3 not found in this cluster");
    check(
        p.feature_view("ride", None).unwrap_err(),
        "feature view `ride` not found in project `p`; did you mean `rides`?",
    );
    check(
        p.feature_view("rides", Some(7)).unwrap_err(),
        "feature view `rides@7` not found in project `p`; its newest version is 2",
    );
    check(
        p.entity("driver").unwrap_err(),
        "entity `driver` not found in project `p`; apply its definition first (`cairn apply`)",
    );
    check(p.model_version("eta", 2).unwrap_err(), "model `eta@2` not found in project `p`; its newest version is 1");
    check(
        p.alias("eta", "champion").unwrap_err(),
        "alias `champion` of model `eta` not found in project `p`; point it at a version first (`cairn model promote`)",
    );
    check(
        p.resolve(&["rides:ratng"]).unwrap_err(),
        "feature `ratng` not found in feature view `rides@2`; did you mean `rating`?",
    );
}

#[test]
fn references_bind_to_versions_and_features() {
    let catalog = catalog();
    let p = catalog.project("p").unwrap();
    let names = |references: &[&str]| -> Vec<String> {
        let bound = p.resolve(references).unwrap();
        bound.iter().map(|it| format!("{}@{}:{}", it.view, it.view_version, it.feature)).collect()
    };
    assert_eq!(names(&["rides"]), ["rides@2:rating", "rides@2:trips"]);
    assert_eq!(names(&["rides:trips", "drivers:rating"]), ["rides@2:trips", "drivers@1:rating"]);
    assert_eq!(names(&["rides@1:trips", "rides:trips"]), ["rides@1:trips", "rides@2:trips"]);
    assert!(p.resolve(&["rides", "rides:trips"]).unwrap_err().to_string().contains("`rides:trips` is named twice"));
}

#[test]
fn lists_are_in_name_order_and_old_versions_stay() {
    let catalog = catalog();
    let p = catalog.project("p").unwrap();
    let names: Vec<_> = p.feature_views().map(|view| format!("{}@{}", view.name, view.version)).collect();
    assert_eq!(names, ["drivers@1", "rides@2"]);
    assert_eq!(p.feature_view("rides", Some(1)).unwrap().ttl_us, 0);
    assert_eq!(p.feature_view("rides", None).unwrap().ttl_us, 60);
    assert_eq!(p.alias("eta", "latest").unwrap().version, 1);
    assert_eq!(p.definitions().count(), 3);
    assert_eq!(catalog.storage_ids(), 2);
}

/// I1: rows that leave out or repeat a version are refused, not guessed around.
#[test]
fn i1_versions_follow_each_other() {
    let mut catalog = catalog();
    for version in [1, 2, 4] {
        let error = catalog.take(&definition(version, 1, view("rides", 1))).unwrap_err();
        assert_eq!(error.kind(), cairn_proto::ErrorKind::Corrupt);
    }
    catalog.take(&definition(3, 1, view("rides", 1))).unwrap();
}

#[test]
fn a_clone_keeps_its_moment() {
    let mut now = catalog();
    let before = now.clone();
    now.take(&definition(3, 3, view("rides", 1))).unwrap();
    assert_eq!(before, catalog());
    assert_eq!(before.project("p").unwrap().feature_view("rides", None).unwrap().version, 2);
    assert_eq!(now.project("p").unwrap().feature_view("rides", None).unwrap().version, 3);
}
