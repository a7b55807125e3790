//! Plans and the commands they make agree, whatever the project and whatever is written: a plan holds if and only if
//! storage takes what it is made of, and its versions are the ones that applying makes.
//!
//! Random definitions over random projects. What the plan alone refuses (see [`super::super::resolve`]) is not written
//! here. A failing case is printed by proptest, smallest first, with its seed.

use super::*;
use crate::definitions::parse::Place;
use cairn_storage::catalog::DefinitionKind;
use cairn_storage::meta::preview;
use proptest::prelude::*;
use record::definition::Kind;
use record::{
    Arm, Deployment, Entity, FeatureService, FeatureType, FeatureView, Field, Model, OnDemandFeature,
    OnDemandFeatureView, RegisterModelVersion, ValueKind,
};

fn field(name: &str, kind: ValueKind) -> Field {
    let r#type = Some(FeatureType { kind: kind as i32, list: false, length: 0 });
    Field { name: name.to_owned(), r#type, description: String::new() }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// One of `good`, and now and then one of `bad`: plans that hold are as telling as plans that do not.
fn mostly<T: Clone + std::fmt::Debug + 'static>(good: &[T], bad: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop_oneof![15 => prop::sample::select(good.to_vec()), 1 => prop::sample::select(bad.to_vec())]
}

fn entity() -> impl Strategy<Value = Kind> {
    let key = mostly(&[ValueKind::Int64], &[ValueKind::String, ValueKind::Float64]);
    let key_name = mostly(&["_id"], &["_key", "_reference"]);
    (mostly(&["driver", "rider"], &["stats"]), key_name, key, any::<bool>()).prop_map(|(name, end, key, described)| {
        let description = if described { "somebody".to_owned() } else { String::new() };
        let join_keys = vec![field(&format!("{name}{end}"), key)];
        Kind::Entity(Entity { name: name.to_owned(), join_keys, description })
    })
}

fn view() -> impl Strategy<Value = Kind> {
    let entities =
        mostly(&[vec!["driver"]], &[vec![], vec!["rider"], vec!["rider", "driver"], vec!["driver", "driver"]]);
    let features =
        mostly(&[vec!["a", "b"], vec!["b", "a"]], &[vec![], vec!["a"], vec!["b", "driver_id"], vec!["a", "a"]]);
    let kind = prop::sample::select(vec![ValueKind::Int64, ValueKind::Float64]);
    (mostly(&["stats", "rides"], &["pay"]), entities, features, kind, 0i64..3).prop_map(
        |(name, entities, features, kind, ttl_us)| {
            Kind::FeatureView(FeatureView {
                name: name.to_owned(),
                entities: owned(&entities),
                features: features.iter().map(|name| field(name, kind)).collect(),
                ttl_us,
                ..Default::default()
            })
        },
    )
}

/// Its SQL fits whatever its sources are: what does not compile is the plan's own to refuse.
fn on_demand() -> impl Strategy<Value = Kind> {
    let sources = mostly(&[vec![], vec!["stats:a"], vec!["stats"]], &[vec!["rides:b"], vec!["nothing:a"], vec!["pay"]]);
    let features = mostly(&[vec!["double"]], &[vec![], vec!["double", "double"]]);
    (mostly(&["pay"], &["stats"]), sources, features, 2i64..4).prop_map(|(name, sources, features, factor)| {
        let feature = |name: &&str| OnDemandFeature {
            name: (*name).to_owned(),
            r#type: field("", ValueKind::Int64).r#type,
            sql: format!("fare * {factor}"),
            description: String::new(),
        };
        Kind::OnDemandFeatureView(OnDemandFeatureView {
            name: name.to_owned(),
            sources: owned(&sources),
            request_data: vec![field("fare", ValueKind::Int64)],
            features: features.iter().map(feature).collect(),
            ..Default::default()
        })
    })
}

fn service() -> impl Strategy<Value = Kind> {
    let good = [vec!["stats"], vec!["stats:b", "stats:a"], vec!["stats:a"]];
    let bad =
        [vec![], vec!["rides:a"], vec!["pay", "stats"], vec!["pay:double"], vec!["stats", "stats:a"], vec!["stats:"]];
    let features = prop_oneof![2 => prop::sample::select(good.to_vec()), 1 => prop::sample::select(bad.to_vec())];
    (mostly(&["eta", "fare"], &["stats"]), features).prop_map(|(name, features)| {
        Kind::FeatureService(FeatureService { name: name.to_owned(), features: owned(&features), ..Default::default() })
    })
}

fn model() -> impl Strategy<Value = Kind> {
    mostly(&["", "eta"], &["fare", "nothing"]).prop_map(|service| {
        let (name, feature_service) = ("eta".to_owned(), service.to_owned());
        Kind::Model(Model { name, feature_service, ..Default::default() })
    })
}

fn deployment() -> impl Strategy<Value = Kind> {
    (mostly(&["eta"], &["nothing"]), 0u32..3).prop_map(|(model, version)| {
        let alias = if version == 0 { "champion".to_owned() } else { String::new() };
        let champion = Some(Arm { alias, version, weight: 0.0 });
        Kind::Deployment(Deployment {
            name: "live".to_owned(),
            model: model.to_owned(),
            champion,
            ..Default::default()
        })
    })
}

/// A definition of each kind at most, and now and then one more, which may be there twice.
fn files_of_definitions() -> impl Strategy<Value = Vec<Kind>> {
    let each = (
        prop::option::weighted(0.3, entity()),
        prop::option::weighted(0.6, view()),
        prop::option::weighted(0.3, on_demand()),
        prop::option::weighted(0.4, service()),
        prop::option::weighted(0.2, model()),
        prop::option::weighted(0.2, deployment()),
        prop::option::weighted(0.2, view()),
    );
    each.prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].into_iter().flatten().collect())
}

/// Enough to build on, so that most of what follows is not refused for want of an entity.
fn ground() -> Vec<Kind> {
    let text = "kind: Entity\nname: driver\nspec: {join_keys: [{name: driver_id, type: int64}]}\n---\n\
                kind: FeatureView\nname: stats\nspec: {entities: [driver], features: [{name: a, type: int64}, \
                {name: b, type: int64}]}\n---\n\
                kind: FeatureService\nname: eta\nspec: {features: [stats]}\n---\n\
                kind: Model\nname: eta\n";
    parse(&files(text)).unwrap().into_iter().map(|placed| placed.kind).collect()
}

fn placed(kinds: Vec<Kind>) -> Vec<Placed> {
    let at = |(line, kind)| Placed { place: Place { path: "d".to_owned(), line, column: 1 }, kind, parts: Vec::new() };
    (1..).zip(kinds).map(at).collect()
}

/// What is written, and what reads views in the project: what a plan has to weigh.
fn weighed(world: &World, written: &[Kind]) -> Vec<record::Definition> {
    let mut all: Vec<_> = written.iter().map(|kind| record::Definition { kind: Some(kind.clone()) }).collect();
    let names: Vec<_> =
        all.iter().filter_map(|it| DefinitionKind::of(it)).map(|(kind, name)| (kind, name.to_owned())).collect();
    let catalog = world.meta.catalog();
    let there = catalog.project("default").into_iter().flat_map(|project| project.definitions());
    let readers = there.filter_map(|version| version.definition).filter(|definition| {
        DefinitionKind::of(definition).is_some_and(|(kind, name)| {
            matches!(kind, DefinitionKind::OnDemandFeatureView | DefinitionKind::FeatureService)
                && !names.contains(&(kind, name.to_owned()))
        })
    });
    all.extend(readers);
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_plan_holds_if_and_only_if_its_command_is_taken(
        grounded in prop::bool::weighted(0.8),
        steps in prop::collection::vec((files_of_definitions(), any::<bool>()), 1..6),
    ) {
        let world = World::new();
        let first = if grounded { vec![(ground(), false)] } else { Vec::new() };
        for (written, register) in first.into_iter().chain(steps) {
            if register {
                // A version, so that a champion by number is there now and then. Refused while its model is not.
                let model_version = Some(record::ModelVersion {
                    project: "default".to_owned(),
                    model: "eta".to_owned(),
                    artifact: Some(record::BlobRef { root: vec![7; 32].into(), size: 1, sha256: vec![8; 32].into() }),
                    file_name: "eta.onnx".to_owned(),
                    format: "onnx".to_owned(),
                    ..Default::default()
                });
                let ask = RegisterModelVersion { model_version, create_model: false, input_features: Vec::new() };
                world.apply(Change::RegisterModelVersion(ask));
            }
            let all = weighed(&world, &written);
            let made = preview(&world.meta.catalog(), "default", &all);
            let planned = world.plan(placed(written.clone()));
            let (plan, made) = match (planned, made) {
                (Ok(plan), Ok(made)) => (plan, made),
                (Err(problems), Err(_)) => {
                    prop_assert!(!problems.is_empty());
                    prop_assert!(problems.iter().all(|it| it.place.path != "definitions"), "no place: {:?}", problems);
                    continue;
                }
                (planned, made) => {
                    return Err(TestCaseError::fail(format!("{written:#?}\nplan: {planned:?}\nstorage: {made:?}")));
                }
            };
            let expected: Vec<_> = plan
                .changes
                .iter()
                .filter(|change| change.action != "unchanged")
                .map(|change| (change.kind.clone(), change.name.clone(), change.to_version))
                .collect();
            let version = |version: &record::DefinitionVersion| {
                let (kind, name) = version.definition.as_ref().and_then(DefinitionKind::of).unwrap();
                (kind.as_str().to_owned(), name.to_owned(), version.version)
            };
            let mut previewed: Vec<_> = made.iter().map(version).collect();
            let mut sorted = expected.clone();
            previewed.sort();
            sorted.sort();
            prop_assert_eq!(&sorted, &previewed);
            match world.apply(Change::ApplyDefinitions(plan.command)) {
                Outcome::DefinitionsApplied(applied) => {
                    prop_assert_eq!(applied.versions.iter().map(version).collect::<Vec<_>>(), expected);
                }
                other => return Err(TestCaseError::fail(format!("planned, then {other:?}"))),
            }
        }
    }
}
