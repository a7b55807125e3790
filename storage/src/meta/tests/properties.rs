//! Random command lists: what must hold whatever they are.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn definition_strategy() -> impl Strategy<Value = Definition> {
    let name = prop::sample::select(vec!["rides", "stats", "bad name", "ratios"]);
    let features = prop::sample::subsequence(vec!["a", "b", "c"], 1..=3);
    let reference = prop::sample::select(vec!["rides", "rides:a", "stats:b", "rides@1", "ratios:ratio", "nope"]);
    prop_oneof![
        2 => Just(driver()),
        1 => Just(entity("driver", &[("driver_id", ValueKind::String)])),
        6 => (name, 0i64..3, features).prop_map(|(name, ttl, features)| view(name, ttl, &features)),
        2 => prop::collection::vec(reference.clone(), 0..2).prop_map(|sources| on_demand("ratios", &sources)),
        3 => prop::collection::vec(reference, 1..3).prop_map(|features| service("eta", &features)),
        1 => Just(model("eta", "eta")),
        1 => (0u32..3).prop_map(|version| {
            let alias = if version == 0 { "champion".to_owned() } else { String::new() };
            deployment("live", "eta", Arm { alias, version, weight: 0.0 })
        }),
    ]
}

/// A change, with `expected` catalog versions to be filled in where `true`.
fn change_strategy() -> impl Strategy<Value = (Change, bool)> {
    let alias = prop::sample::select(vec!["champion", "shadow", "latest"]);
    let expected = prop::option::of(0u32..3);
    prop_oneof![
        1 => (1u32..5).prop_map(|shards| (init_cluster("c", shards), false)),
        2 => prop::sample::select(vec!["n1", "n2", "n3"]).prop_map(|name| (add_node(name), false)),
        2 => (1u64..9, 0i32..5, any::<bool>()).prop_map(|(id, state, forced)| {
            (Change::ChangeNodeState(ChangeNodeState { id, state, forced }), false)
        }),
        3 => (0u32..3, 0u32..3000, 0u32..4, 0u32..4).prop_map(|(first, more, from, to)| {
            (Change::BeginSlotMove(BeginSlotMove { first: first * 1400, last: first * 1400 + more, from, to }), false)
        }),
        3 => (1u64..12, 0..3).prop_map(|(id, what)| match what {
            0 => (Change::SwitchSlotMap(SwitchSlotMap { id }), false),
            1 => (Change::EndSlotMove(EndSlotMove { id }), false),
            _ => (Change::CancelSlotMove(CancelSlotMove { id: id % 2 }), false),
        }),
        8 => (prop::collection::vec(definition_strategy(), 0..4), prop::bool::weighted(0.9))
            .prop_map(|(definitions, fill)| (apply_definitions("p", 3, &definitions), fill)),
        6 => (prop::sample::select(vec!["", "eta"]), any::<bool>())
            .prop_map(|(service, create)| (register("p", "eta", service, create), false)),
        6 => (alias, expected, 0u32..4).prop_map(|(alias, expected, to)| (move_alias(alias, expected, to), false)),
        1 => Just((Change::TimeTick(TimeTick::default()), false)),
    ]
}

/// Encoded commands, `None` = an entry of consensus. Catalog versions are made right by applying as we go.
fn log(steps: &[(Option<(Change, bool)>, i64, u8)]) -> (Bench, Vec<Option<Vec<u8>>>, Vec<Vec<u8>>) {
    let bench = Bench::new();
    let (mut commands, mut outcomes) = (Vec::new(), Vec::new());
    for (number, (step, proposed_at_us, request)) in steps.iter().enumerate() {
        let command = step.clone().map(|(mut change, fill)| {
            if let (Change::ApplyDefinitions(ask), true) = (&mut change, fill) {
                let catalog = bench.meta.catalog();
                ask.expected_catalog_version = catalog.project("p").map_or(0, |project| project.catalog_version());
            }
            let request_id = if *request < 200 { String::new() } else { format!("request-{}", request % 8) };
            MetaCommand { version: 1, proposed_at_us: *proposed_at_us, change: Some(change), request_id }
                .encode_to_vec()
        });
        let entry = Entry { index: number as u64 + 1, command: command.as_deref() };
        outcomes.extend(bench.meta.apply(&[entry], &entry.index.to_be_bytes()).unwrap());
        commands.push(command);
    }
    (bench, commands, outcomes)
}

fn entries(commands: &[Option<Vec<u8>>], from: u64) -> Vec<Entry<'_>> {
    let all = commands.iter().zip(1..).map(|(command, index)| Entry { index, command: command.as_deref() });
    all.skip(from as usize - 1).collect()
}

fn steps() -> impl Strategy<Value = Vec<(Option<(Change, bool)>, i64, u8)>> {
    prop::collection::vec((prop::option::weighted(0.95, change_strategy()), 0i64..1_000, any::<u8>()), 1..60)
}

/// Every definition and model version there is, and every alias as its history says.
fn facts(meta: &Meta) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, u32>) {
    let catalog = meta.catalog();
    let (mut versions, mut aliases) = (BTreeMap::new(), BTreeMap::new());
    visit_rows(&meta.group.db(), &[], &mut |row| {
        if matches!(row, Row::Definition(_) | Row::ModelVersion(_)) {
            versions.insert(format!("{:02x?}", row.key()), row.value());
        }
        Ok(())
    })
    .unwrap();
    for project in catalog.projects() {
        for (name, _) in project.models() {
            for moved in meta.alias_history(project.name(), name, None).unwrap() {
                let at = aliases.entry(format!("{name}@{}", moved.alias)).or_insert(0);
                assert_eq!(*at, moved.from_version, "each move starts where the one before ended");
                *at = moved.to_version;
            }
            for (alias, at) in project.model(name).unwrap().aliases() {
                assert_eq!(aliases[&format!("{name}@{alias}")], at.to_version);
            }
        }
    }
    aliases.retain(|_, version| *version != 0);
    let standing = catalog.projects().flat_map(|project| project.models()).map(|(_, model)| model.aliases().count());
    assert_eq!(aliases.len(), standing.sum::<usize>());
    (versions, aliases)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// I3: batches, restarts, replays and checkpoints do not show in rows, outcomes or catalog.
    #[test]
    fn i3_equal_commands_give_equal_bytes(steps in steps(), cuts in prop::collection::vec(1usize..20, 1..20)) {
        let (one, commands, outcomes) = log(&steps);
        let expected = one.meta.checksum().unwrap();
        prop_assert_eq!(&*one.meta.catalog(), &rebuilt(&one.meta), "kept up equals rebuilt");

        // Another replica gets them in other batches, restarts in between, and gets some of them twice.
        let mut other = Bench::new();
        let (mut rest, mut got) = (entries(&commands, 1), Vec::new());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let later = rest.split_off((*cut).min(rest.len()));
            let last = rest.last().unwrap().index;
            got.extend(other.meta.apply(&rest, &last.to_be_bytes()).unwrap());
            rest = later;
            if cut % 5 == 0 {
                other = other.restart();
                let again = entries(&commands, last.saturating_sub(3).max(1));
                let again: Vec<_> = again.into_iter().filter(|entry| entry.index <= last).collect();
                let empty = other.meta.apply(&again, b"old").unwrap();
                prop_assert!(empty.iter().all(Vec::is_empty));
                prop_assert_eq!(other.meta.position(), Some(last.to_be_bytes().to_vec()));
            }
        }
        prop_assert_eq!(&got, &outcomes);
        prop_assert_eq!(other.meta.checksum().unwrap(), expected);
        prop_assert_eq!(&*other.meta.catalog(), &*one.meta.catalog());
        prop_assert_eq!(other.meta.applied(), one.meta.applied());
    }

    /// A replica that installs a checkpoint and gets the entries behind it ends like one that got them all.
    #[test]
    fn i3_a_checkpoint_stands_for_its_entries(steps in steps(), at in 0.0f64..1.0) {
        let (one, commands, _) = log(&steps);
        let middle = 1 + ((commands.len() - 1) as f64 * at) as usize;
        let source = Bench::new();
        source.meta.apply(&entries(&commands, 1)[..middle], b"middle").unwrap();
        let dir = source.root.path().join("checkpoint");
        prop_assert_eq!(source.meta.checkpoint(&dir).unwrap(), b"middle");

        let target = Bench::new();
        target.ok(add_node_project()); // some state of its own, to be replaced
        std::fs::rename(&dir, target.root.path().join("incoming")).unwrap();
        target.meta.install(&target.root.path().join("incoming")).unwrap();
        prop_assert_eq!(target.meta.position(), Some(b"middle".to_vec()));
        prop_assert_eq!(target.meta.checksum().unwrap(), source.meta.checksum().unwrap());
        prop_assert_eq!(&*target.meta.catalog(), &*source.meta.catalog());
        target.meta.apply(&entries(&commands, 1), b"end").unwrap();
        prop_assert_eq!(target.meta.checksum().unwrap(), one.meta.checksum().unwrap());
        let target = target.restart();
        prop_assert_eq!(target.meta.checksum().unwrap(), one.meta.checksum().unwrap());
        prop_assert_eq!(&*target.meta.catalog(), &*one.meta.catalog());
    }

    /// I1 and I5: versions are only ever added, and aliases are where their history left them.
    #[test]
    fn i1_i5_versions_never_change_and_aliases_have_a_history(steps in steps()) {
        let (_, commands, _) = log(&steps);
        let bench = Bench::new();
        let mut before = BTreeMap::new();
        for entry in entries(&commands, 1) {
            bench.meta.apply(&[entry], b"").unwrap();
            let (versions, _) = facts(&bench.meta);
            for (key, value) in &before {
                prop_assert_eq!(versions.get(key), Some(value));
            }
            before = versions;
        }
    }
}

fn add_node_project() -> Change {
    apply_definitions("elsewhere", 0, &[driver()])
}
