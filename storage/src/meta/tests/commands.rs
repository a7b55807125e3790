//! What each command does and refuses.

use super::*;
use cairn_proto::SLOTS;

#[test]
fn a_cluster_spreads_its_slots_in_equal_runs() {
    let bench = Bench::new();
    bench.refused(add_node("n2"), "conflict", "not made yet");
    bench.refused(init_cluster("c", 0), "invalid_argument", "`--shards`");
    let Outcome::NodeAdded(added) = bench.ok(init_cluster("c", 3)) else { panic!() };
    assert_eq!((added.id, added.nodes.len()), (3, 1), "the id is the index of the entry");
    let catalog = bench.meta.catalog();
    let cluster = catalog.cluster().unwrap();
    assert_eq!((cluster.slot_map_epoch, cluster.slot_shard.len()), (1, SLOTS));
    assert!(cluster.slot_shard.is_sorted());
    for shard in 1..=3 {
        let slots = cluster.slot_shard.iter().filter(|at| **at == shard).count();
        assert!(slots.abs_diff(SLOTS / 3) <= 1, "{slots}");
    }
    assert_eq!((catalog.slot_shard(0).unwrap(), catalog.slot_shard(4095).unwrap()), (1, 3));
    assert!(catalog.slot_shard(4096).is_err());

    // A bootstrap that was cut short asks again and gets the same; another cluster does not.
    let Outcome::NodeAdded(again) = bench.ok(init_cluster("c", 3)) else { panic!() };
    assert_eq!(again, added);
    bench.refused(init_cluster("d", 3), "already_exists", "`--join`");
}

#[test]
fn nodes_have_one_name_each_and_ids_never_come_back() {
    let bench = Bench::new();
    bench.ok(init_cluster("c", 1));
    let Outcome::NodeAdded(second) = bench.ok(add_node("n2")) else { panic!() };
    assert_eq!(second.id, 2);
    assert_eq!(second.nodes.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), ["n1", "n2"]);
    bench.refused(add_node("n2"), "already_exists", "another `--name`");
    bench.refused(add_node("n 2"), "invalid_argument", "not a name for a node");
    let Outcome::NodeAdded(third) = bench.ok(add_node("n3")) else { panic!() };
    assert_eq!(third.id, 5);
    let moved =
        |id| Change::UpdateNode(UpdateNode { id, peer_address: "z:1".to_owned(), client_address: "z:2".to_owned() });
    bench.ok(moved(5));
    assert_eq!(bench.meta.catalog().node(5).unwrap().peer_address, "z:1");
    bench.refused(moved(9), "not_found", "node 9");
}

#[test]
fn slots_move_one_range_at_a_time_and_the_map_follows() {
    let bench = Bench::new();
    let begin = |first, last, from, to| Change::BeginSlotMove(BeginSlotMove { first, last, from, to });
    let cancel = |id| Change::CancelSlotMove(CancelSlotMove { id });
    let switch = |id| Change::SwitchSlotMap(SwitchSlotMap { id });
    let end = |id| Change::EndSlotMove(EndSlotMove { id });
    bench.refused(begin(0, 1, 1, 2), "conflict", "not made yet");
    bench.ok(init_cluster("c", 3));
    let map = || {
        let catalog = bench.meta.catalog();
        let cluster = catalog.cluster().unwrap();
        (cluster.slot_map_epoch, slot_runs(cluster))
    };
    let home = (1, vec![(0, 1365, 1), (1366, 2730, 2), (2731, 4095, 3)]);
    assert_eq!(map(), home);
    bench.refused(begin(7, 6, 1, 2), "invalid_argument", "7-6 is no range of slots: they go from 0 to 4095");
    bench.refused(begin(0, 4096, 1, 2), "invalid_argument", "0-4096 is no range");
    bench.refused(begin(0, u32::MAX, 1, 2), "invalid_argument", "is no range");
    bench.refused(begin(0, 9, 1, 4), "not_found", "shard 4 not found; this cluster has shards 1 to 3");
    bench.refused(begin(0, 9, 1, 0), "not_found", "shard 0 not found");
    bench.refused(begin(0, 9, 1, 1), "invalid_argument", "slots 0-9 are in shard 1 already");
    bench.refused(begin(0, 9, 2, 3), "invalid_argument", "slots 0-9 are not all in shard 2: 0-9 in shard 1; move");
    let spread =
        "slots 1300-1400 are not all in shard 1: 1300-1365 in shard 1, 1366-1400 in shard 2; move the slots of one";
    bench.refused(begin(1300, 1400, 1, 3), "invalid_argument", spread);
    bench.refused(cancel(0), "not_found", "no move of slots is under way");
    bench.refused(switch(9), "not_found", "move 9 of slots is not under way: it is complete, or was given up");

    let moving = |change| match bench.ok(change) {
        Outcome::SlotMove(it) => (it.id, it.epoch, it.state()),
        other => panic!("{other:?}"),
    };
    let (id, ..) = moving(begin(0, 99, 1, 3));
    assert_eq!(id, bench.meta.applied().index);
    assert_eq!(moving(begin(0, 99, 1, 3)), (id, 2, SlotMoveState::Copying), "the same again is the same move");
    let busy =
        format!("move {id} of slots 0-99 from shard 1 to shard 3 is under way, and there is one at a time; `cairn");
    bench.refused(begin(0, 99, 1, 2), "conflict", &busy);
    bench.refused(end(id), "conflict", "is neither complete nor given up");
    bench.refused(switch(id + 1), "conflict", &format!("move {} of slots is not under way; move {id}", id + 1));
    assert_eq!(moving(cancel(0)), (id, 2, SlotMoveState::Cancelling));
    assert_eq!(moving(cancel(id)), (id, 2, SlotMoveState::Cancelling));
    bench.refused(begin(0, 99, 1, 3), "conflict", "is under way");
    bench.ok(end(id));
    assert_eq!(map(), home, "given up");

    let (second, ..) = moving(begin(0, 99, 1, 3));
    bench.ok(cancel(second));
    assert_eq!(moving(switch(second)), (second, 2, SlotMoveState::Switched), "too late to be given up");
    assert_eq!(moving(switch(second)), (second, 2, SlotMoveState::Switched));
    bench.refused(cancel(second), "conflict", "to undo it, move the slots back");
    bench.ok(end(second));
    bench.refused(end(second), "not_found", "not under way");
    assert_eq!(map(), (2, vec![(0, 99, 3), (100, 1365, 1), (1366, 2730, 2), (2731, 4095, 3)]));
    assert_eq!(*bench.meta.catalog(), rebuilt(&bench.meta));
    let bench = bench.restart();
    assert_eq!(bench.meta.catalog().slot_shard(99).unwrap(), 3);
}

#[test]
fn nodes_drain_leave_and_never_come_back() {
    use NodeState::{Active, Draining, Removed, Removing};
    let bench = Bench::new();
    let no = Change::ChangeNodeState(ChangeNodeState { id: 1, state: 9, forced: false });
    bench.ok(init_cluster("c", 1));
    bench.refused(no, "invalid_argument", "9 is no state of a node");
    bench.refused(node_state(1, Draining, false), "invalid_argument", "nobody could lead in its place");
    bench.refused(node_state(1, Removing, true), "invalid_argument", "the last active node");
    let Outcome::NodeAdded(second) = bench.ok(add_node("n2")) else { panic!() };
    let second = second.id;
    let state = || bench.meta.catalog().node(second).map(|node| (node.state(), node.forced, node.state_us));
    bench.refused(node_state(99, Draining, false), "not_found", "node 99 not found");

    bench.ok(node_state(second, Draining, false));
    assert_eq!(state().unwrap(), (Draining, false, 1_000));
    bench.ok(node_state(second, Draining, false));
    bench.refused(node_state(1, Draining, false), "invalid_argument", "no other node is active");
    bench.refused(node_state(second, Removed, false), "conflict", "is draining and cannot become removed");
    bench.ok(node_state(second, Active, false));
    bench.ok(node_state(second, Removing, false));
    bench.refused(node_state(second, Draining, false), "conflict", "is being removed and cannot become draining");
    bench.refused(node_state(1, Removing, false), "invalid_argument", "the last active node");
    // Given up, and begun again: forced the second time.
    bench.ok(node_state(second, Active, false));
    bench.ok(node_state(second, Removing, false));
    bench.ok(node_state(second, Removing, true));
    assert_eq!(state().unwrap(), (Removing, true, 1_000));
    bench.ok(node_state(second, Removing, false));
    assert!(state().unwrap().1, "what was forced stays so");

    bench.refused(add_node("n2"), "already_exists", "cairn cluster remove n2");
    bench.ok(node_state(second, Removed, false));
    let gone = |change| bench.refused(change, "not_found", "was removed from this cluster");
    for state in [Active, Draining, Removing, Removed] {
        gone(node_state(second, state, false));
    }
    let moved = UpdateNode { id: second, peer_address: "z:1".to_owned(), client_address: "z:2".to_owned() };
    gone(Change::UpdateNode(moved));
    let catalog = bench.meta.catalog();
    assert_eq!(catalog.nodes().map(|node| node.id).collect::<Vec<_>>(), [1]);
    assert_eq!(catalog.removed_nodes().map(|node| node.id).collect::<Vec<_>>(), [second]);
    assert!(catalog.node_called("n2").unwrap_err().to_string().contains("was removed"));
    assert_eq!(catalog.node_called("N1").unwrap_err().to_string(), "node `N1` not found; did you mean `n1`?");
    assert_eq!((catalog.node_called("n1").unwrap().id, catalog.node_called("1").unwrap().id), (1, 1));

    // The name is free again, the id is not.
    let Outcome::NodeAdded(third) = bench.ok(add_node("n2")) else { panic!() };
    assert!(third.id > second);
    assert_eq!(third.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1, third.id]);
    assert_eq!(*bench.meta.catalog(), rebuilt(&bench.meta));
}

#[test]
fn definitions_are_compared_and_set() {
    let bench = Bench::new();
    bench.refused(apply_definitions("p", 4, &[driver()]), "conflict", "plan again");
    bench.ok(apply_definitions("p", 0, &[driver()]));
    assert_eq!(bench.meta.catalog().project("p").unwrap().catalog_version(), 2);
    bench.refused(apply_definitions("p", 0, &[driver()]), "conflict", "catalog version 2, not 0");
    let Outcome::DefinitionsApplied(applied) = bench.ok(apply_definitions("p", 2, &[driver()])) else { panic!() };
    assert_eq!((applied.catalog_version, applied.versions.len()), (2, 0), "nothing changed, so nothing is new");
    bench.ok(apply_definitions("p", 2, &[view("rides", 0, &["rating"])]));
    assert_eq!(bench.meta.catalog().project("p").unwrap().catalog_version(), 5);
}

#[test]
fn versions_share_rows_while_entities_and_features_stay() {
    let bench = Bench::new();
    let check = |definition: Definition, version: u32, storage_id: u32| {
        let made = bench.define(&[definition]);
        assert_eq!(made.iter().map(|it| (it.version, it.storage_id)).collect::<Vec<_>>(), [(version, storage_id)]);
    };
    check(driver(), 1, 0);
    check(view("rides", 0, &["a", "b"]), 1, 1);
    check(view("rides", 60, &["a", "b"]), 2, 1); // another ttl keeps the rows
    check(view("others", 0, &["a"]), 1, 2);
    check(view("rides", 60, &["b", "a"]), 3, 3); // the order is part of the row
    check(view("rides", 60, &["a", "b"]), 4, 4); // back again starts empty: ids name one schema in a row
    assert_eq!(bench.define(&[view("rides", 60, &["a", "b"])]), []);
    let catalog = bench.meta.catalog();
    let ids: Vec<_> =
        catalog.project("p").unwrap().feature_view_versions("rides").iter().map(|it| it.storage_id).collect();
    assert_eq!(ids, [1, 1, 3, 4]);
}

#[test]
fn services_are_bound_to_the_versions_they_were_applied_with() {
    let bench = Bench::new();
    let all = [
        service("eta", &["ratios:ratio", "rides"]), // order in the files does not matter
        on_demand("ratios", &["rides:a"]),
        view("rides", 0, &["a", "b"]),
        driver(),
    ];
    assert_eq!(bench.define(&all).len(), 4);
    let bound = |version| {
        let catalog = bench.meta.catalog();
        let service = catalog.project("p").unwrap().feature_service("eta", Some(version)).unwrap().clone();
        service.resolved.iter().map(|it| format!("{}@{}:{}", it.view, it.view_version, it.feature)).collect::<Vec<_>>()
    };
    assert_eq!(bound(1), ["ratios@1:ratio", "rides@1:a", "rides@1:b"]);
    assert_eq!(bench.define(&all), [], "the same again changes nothing");

    // A new view version: the old service version goes on reading the old one, applying all of it makes a new one.
    let mut changed = all.to_vec();
    changed[2] = view("rides", 0, &["a", "c"]);
    let planned = preview(&bench.meta.catalog(), "p", &changed).unwrap();
    let made = bench.define(&changed);
    assert_eq!(made.len(), 3, "view, on-demand view and service");
    assert_eq!(bound(1), ["ratios@1:ratio", "rides@1:a", "rides@1:b"]);
    assert_eq!(bound(2), ["ratios@2:ratio", "rides@2:a", "rides@2:c"]);
    let without_time =
        made.into_iter().map(|it| DefinitionVersion { index: 0, applied_us: 0, ..it }).collect::<Vec<_>>();
    assert_eq!(planned, without_time, "a plan is what apply does");
}

#[test]
fn wrong_definitions_are_refused_whole() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), on_demand("ratios", &["rides"]), model("eta", "")]);
    let check = |definition: Definition, kind: &str, message: &str| {
        bench.refused(bench.definitions(&[entity("good", &[("k", ValueKind::Int32)]), definition]), kind, message);
    };
    check(Definition::default(), "invalid_argument", "without content");
    check(entity("good", &[("k", ValueKind::Int64)]), "invalid_argument", "entity `good` is defined twice");
    check(entity("e", &[]), "invalid_argument", "entity `e`: it has no join keys");
    check(entity("e", &[("k", ValueKind::Float32)]), "invalid_argument", "`k` cannot be a join key");
    check(entity("e", &[("k-1", ValueKind::Int32)]), "invalid_argument", "`k-1` is not a name");
    check(entity("driver", &[("driver_id", ValueKind::String)]), "invalid_argument", "feature view `rides` uses them");
    check(view("a b", 0, &["x"]), "invalid_argument", "`a b` is not a name for a feature view");
    check(view("v", -1, &["x"]), "invalid_argument", "ttl is negative");
    check(view("v", 0, &["x", "x"]), "invalid_argument", "`x` is there twice");
    check(view("v", 0, &["driver_id"]), "invalid_argument", "`driver_id` of entity `driver` is there already");
    check(view("v", 0, &["event_timestamp"]), "invalid_argument", "column of a time");
    check(view("ratios", 0, &["x"]), "already_exists", "choose another");
    check(on_demand("rides", &["rides"]), "already_exists", "a feature view has this name");
    check(on_demand("more", &["ratios:ratio"]), "invalid_argument", "is on demand itself");
    check(
        service("s", &["ride:a"]),
        "not_found",
        "feature service `s`: feature view `ride` not found in project `p`; did you mean `rides`?",
    );
    check(service("s", &["rides:b"]), "not_found", "feature `b` not found in feature view `rides@1`");
    check(model("m", "none"), "not_found", "feature service `none` not found");
    let arm = |alias: &str, version| Arm { alias: alias.to_owned(), version, weight: 0.0 };
    check(deployment("d", "ets", arm("champion", 0)), "not_found", "did you mean `eta`?");
    check(deployment("d", "eta", arm("", 0)), "invalid_argument", "neither alias nor version");
    check(deployment("d", "eta", arm("x", 1)), "invalid_argument", "give it one of them");
    check(deployment("d", "eta", arm("", 1)), "not_found", "model `eta@1` not found");
    assert!(bench.meta.catalog().project("p").unwrap().entity("good").is_err());
    bench.define(&[deployment("d", "eta", arm("champion", 0))]);
}

#[test]
fn model_versions_know_what_they_were_made_from() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), service("eta", &["rides"]), model("bound", "eta")]);
    bench.refused(register("q", "eta", "", true), "not_found", "project `q` not found");
    bench.refused(register("p", "eta", "", false), "not_found", "model `eta` not found");
    bench.refused(register("p", "eta", "nope", true), "not_found", "feature service `nope`");
    let mut bare = register("p", "eta", "", true);
    let Change::RegisterModelVersion(ask) = &mut bare else { panic!() };
    ask.model_version.as_mut().unwrap().artifact = None;
    bench.refused(bare, "invalid_argument", "upload the file first");

    for version in 1..=2 {
        let Outcome::ModelVersionRegistered(made) = bench.ok(register("p", "eta", "eta", true)) else { panic!() };
        let made = made.model_version.unwrap();
        let index = bench.meta.applied().index;
        assert_eq!((made.version, made.feature_service_version, made.index), (version, 1, index));
        assert_eq!(made.token, format!("0@{index}"));
        assert_eq!(made.created_us, 1_000);
    }
    let Outcome::ModelVersionRegistered(made) = bench.ok(register("p", "bound", "", false)) else { panic!() };
    assert_eq!(made.model_version.unwrap().feature_service, "eta", "what the model declares");
    // The default project is there for whoever registers a model before anything else.
    bench.ok(register("default", "first", "", true));
    assert_eq!(bench.meta.catalog().project("default").unwrap().alias("first", "latest").unwrap().version, 1);
}

#[test]
fn backtests_are_kept_for_each_model_version_with_their_windows() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), service("eta", &["rides"])]);
    for _ in 0..2 {
        bench.ok(register("p", "eta", "eta", true));
    }
    let ask = |backtest| Change::RecordBacktest(RecordBacktest { backtest: Some(backtest) });
    let mut ids = Vec::new();
    for versions in [&[1][..], &[2, 1], &[2]] {
        let Outcome::BacktestRecorded(made) = bench.ok(ask(backtest("p", versions))) else { panic!() };
        assert_eq!((made.id, made.created_us), (bench.meta.applied().index, 1_000));
        assert!(made.models.iter().all(|model| model.windows.is_empty()));
        let stands = Backtest { id: made.id, created_us: 1_000, ..backtest("p", versions) };
        assert_eq!(bench.meta.backtest("p", made.id).unwrap(), stands);
        ids.push(made.id);
    }
    let bench = bench.restart();
    let (first, second, third) = (ids[0], ids[1], ids[2]);
    let list = |of, limit| {
        let (found, more) = bench.meta.backtests("p", of, limit).unwrap();
        (found.into_iter().map(|it| it.id).collect::<Vec<_>>(), more)
    };
    assert_eq!(list(None, 10), (vec![third, second, first], false));
    assert_eq!(list(None, 2), (vec![third, second], true));
    assert_eq!(bench.meta.backtest_ids("p").unwrap(), [third, second, first]);
    assert!(bench.meta.backtest_ids("q").unwrap().is_empty());
    assert_eq!(list(Some(("eta", Some(1))), 10), (vec![second, first], false));
    assert_eq!(list(Some(("eta", Some(2))), 1), (vec![third], true));
    assert_eq!(list(Some(("eta", None)), 10), (vec![third, second, first], false));
    assert_eq!(list(Some(("eta", None)), 1), (vec![third], true));
    for of in [("et", None), ("eta", Some(3))] {
        let error = bench.meta.backtests("p", Some(of), 9).unwrap_err();
        assert_eq!(error.kind(), cairn_proto::ErrorKind::NotFound, "{error}");
    }
    let error = bench.meta.backtest("p", 1).unwrap_err().to_string();
    assert_eq!(error, "backtest 1 not found in project `p`; `cairn backtest list` tells which there are");
    let up = bench.meta.lineage(&format!("backtest:p/{second}"), true, 1).unwrap();
    let up: Vec<_> = up.iter().map(|edge| (edge.from.as_str(), edge.kind.as_str())).collect();
    let spine = format!("artifact:{}", "07".repeat(32));
    let tested = |version| (version, "backtested");
    assert_eq!(up, [(spine.as_str(), "spine_of"), tested("model_version:p/eta@1"), tested("model_version:p/eta@2")]);

    let check = |kind, message, change: &dyn Fn(&mut Backtest)| {
        let mut wrong = backtest("p", &[1, 2]);
        change(&mut wrong);
        bench.refused(ask(wrong), kind, message);
    };
    check("not_found", "project `q` not found", &|it| it.project = "q".into());
    check("not_found", "`eta@3` not found", &|it| it.models[1].version = 3);
    check("invalid_argument", "upload the file first", &|it| it.spine = None);
    check("invalid_argument", "BLAKE3", &|it| it.content = vec![1].into());
    check("invalid_argument", "ends after it begins", &|it| it.to_us = it.from_us);
    check("invalid_argument", "ends after it begins", &|it| it.window_us = 11);
    check("invalid_argument", "1 to 8 models", &|it| it.models.clear());
    check("invalid_argument", "1 to 8 models", &|it| it.models = vec![it.models[0].clone(); 9]);
    check("invalid_argument", "`eta@1` twice", &|it| it.models[1].version = 1);
    check("invalid_argument", "not a name for a metric", &|it| it.metrics[0].name = "a-b".into());
    check("invalid_argument", "`eta@1` reads feature service `eta@1`, and the backtest was made with `et@1`", &|it| {
        it.models[0].feature_service = "et".into();
    });
    let fits = "scores of `eta@1` do not fit";
    check("invalid_argument", fits, &|it| it.models[0].windows.truncate(2));
    check("invalid_argument", fits, &|it| it.models[0].windows[0].from_us += 1);
    check("invalid_argument", fits, &|it| it.models[0].windows[0].rows += 1);
    check("invalid_argument", fits, &|it| it.models[0].windows[0].metrics.clear());
    check("invalid_argument", fits, &|it| it.models[0].overall = None);
    check("too_large", "take longer windows", &|it| it.description = "x".repeat(2 << 20));
}

#[test]
fn datasets_are_kept_once_with_what_they_were_made_from() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), service("eta", &["rides"])]);
    let ask = |dataset| Change::RegisterDataset(RegisterDataset { dataset: Some(dataset) });
    let may = || dataset("p", "may", &["rides@1:a"]);
    let Outcome::DatasetRegistered(made) = bench.ok(ask(may())) else { panic!() };
    assert_eq!(made, Dataset { created_us: 1_000, index: bench.meta.applied().index, ..may() });
    assert_eq!(bench.meta.dataset("p", "may").unwrap(), made);
    bench.refused(ask(may()), "already_exists", "has a dataset `may`");
    let of_service = Dataset {
        name: "june".into(),
        features: Vec::new(),
        feature_service: "eta".into(),
        feature_service_version: 1,
        ..may()
    };
    bench.ok(ask(of_service.clone()));
    let names = |project| bench.meta.datasets(project).map(|all| all.into_iter().map(|it| it.name).collect::<Vec<_>>());
    assert_eq!(names("p").unwrap(), ["june", "may"]);
    assert_eq!(names("q").unwrap_err().kind(), cairn_proto::ErrorKind::NotFound);
    // A page has two.
    bench.ok(ask(Dataset { name: "august".into(), ..may() }));
    let mut paged: Vec<Dataset> = Vec::new();
    let mut edges: Vec<LineageEdge> = Vec::new();
    while let page = bench.meta.datasets_page(paged.last()).unwrap()
        && !page.is_empty()
    {
        assert!(page.len() <= 2);
        paged.extend(page);
    }
    assert_eq!(paged, bench.meta.datasets("p").unwrap());
    assert_eq!(paged.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["august", "june", "may"]);
    while let page = bench.meta.edges_page(edges.last()).unwrap()
        && !page.is_empty()
    {
        edges.extend(page);
    }
    assert!(edges.is_sorted_by_key(|edge| (edge.from.clone(), edge.to.clone())));
    // The entity's and the view's in the definitions, and two of each dataset.
    let to = |node: &str| edges.iter().filter(|edge| edge.to == node).count();
    assert_eq!((edges.len(), to("feature_view:p/rides@1"), to("dataset:p/june")), (8, 1, 2));
    let error = bench.meta.dataset("p", "mai").unwrap_err().to_string();
    assert_eq!(error, "dataset `mai` not found in project `p`; did you mean `may`?");

    let up = |node: &str| -> Vec<(String, String)> {
        bench.meta.lineage(node, true, 1).unwrap().into_iter().map(|edge| (edge.from, edge.kind)).collect()
    };
    let spine = (format!("artifact:{}", "07".repeat(32)), "spine_of".to_owned());
    assert_eq!(up("dataset:p/may"), [spine.clone(), ("feature_view:p/rides@1".into(), "reads".into())]);
    assert_eq!(up("dataset:p/june"), [spine, ("feature_service:p/eta@1".into(), "joined".into())]);

    let check = |wrong: Dataset, kind, message| bench.refused(ask(wrong), kind, message);
    let other = || dataset("p", "july", &["rides@1:a"]);
    check(Dataset { name: "a/b".into(), ..other() }, "invalid_argument", "`a/b` is not a name for a dataset");
    check(Dataset { project: "q".into(), ..other() }, "not_found", "project `q` not found");
    check(Dataset { spine: None, ..other() }, "invalid_argument", "upload the file first");
    check(Dataset { content: vec![1].into(), ..other() }, "invalid_argument", "BLAKE3");
    check(Dataset { file_format: "xls".into(), ..other() }, "invalid_argument", "parquet or csv");
    check(Dataset { features: Vec::new(), ..other() }, "invalid_argument", "either a feature service or features");
    check(
        Dataset { feature_service: "eta".into(), ..other() },
        "invalid_argument",
        "either a feature service or features",
    );
    check(
        Dataset { feature_service_version: 0, name: "j".into(), ..of_service.clone() },
        "invalid_argument",
        "version of",
    );
    check(Dataset { feature_service_version: 2, name: "j".into(), ..of_service.clone() }, "not_found", "eta");
    check(Dataset { features: vec!["rides@1:b".into()], ..other() }, "not_found", "feature `b`");
    check(Dataset { description: "x".repeat(1 << 20), ..other() }, "too_large", "the limit is");
}

#[test]
fn aliases_move_by_compare_and_set_and_leave_a_history() {
    let bench = Bench::new();
    bench.define(&[driver()]);
    for _ in 0..3 {
        bench.ok(register("p", "eta", "", true));
    }
    for alias in ["latest", "3", "007"] {
        bench.refused(move_alias(alias, None, 1), "invalid_argument", "choose another name");
    }
    bench.refused(move_alias("a b", None, 1), "invalid_argument", "not a name for an alias");
    bench.refused(move_alias("champion", None, 4), "not_found", "its newest version is 3");
    bench.refused(move_alias("champion", Some(1), 2), "conflict", "is not set, and the move expects it at version 1");
    bench.refused(move_alias("champion", None, 0), "not_found", "alias `champion` of model `eta` not found");
    bench.ok(move_alias("champion", Some(0), 1));
    // Two promotions race: the second finds the alias moved.
    bench.ok(move_alias("champion", Some(1), 2));
    bench.refused(
        move_alias("champion", Some(1), 3),
        "conflict",
        "is at version 2, and the move expects it at version 1",
    );
    bench.ok(move_alias("shadow", Some(0), 3));
    bench.ok(move_alias("champion", Some(2), 2)); // nothing moves
    bench.ok(move_alias("champion", None, 0));
    let history = |alias| -> Vec<(u32, u32)> {
        let moves = bench.meta.alias_history("p", "eta", alias).unwrap();
        moves.iter().map(|it| (it.from_version, it.to_version)).collect()
    };
    assert_eq!(history(Some("champion")), [(0, 1), (1, 2), (2, 0)]);
    assert_eq!(history(None), [(0, 1), (1, 2), (0, 3), (2, 0)]);
    let catalog = bench.meta.catalog();
    let aliases: Vec<_> = catalog.project("p").unwrap().model("eta").unwrap().aliases().map(|(name, _)| name).collect();
    assert_eq!(aliases, ["shadow"]);
    assert!(bench.meta.alias_history("p", "etas", None).unwrap_err().to_string().contains("did you mean `eta`?"));
}

#[test]
fn lineage_is_walked_both_ways_to_a_depth() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), on_demand("ratios", &["rides:a"]), service("eta", &["ratios"])]);
    let mut change = register("p", "eta", "eta", true);
    let Change::RegisterModelVersion(ask) = &mut change else { panic!() };
    ask.input_features = strings(&["rides@1:a", "rides@1"]);
    bench.ok(change);
    bench.ok(move_alias("champion", None, 1));
    bench.define(&[deployment("live", "eta", Arm { alias: "champion".to_owned(), version: 0, weight: 0.0 })]);

    let walk = |node: &str, up, depth| -> Vec<String> {
        let edges = bench.meta.lineage(node, up, depth).unwrap();
        edges.iter().map(|edge| format!("{} {} {}", edge.from, edge.kind, edge.to)).collect()
    };
    let artifact = format!("artifact:{}", "07".repeat(32));
    assert_eq!(
        walk("deployment:p/live@1", true, 0),
        [
            "alias:p/eta@champion serves deployment:p/live@1".to_owned(),
            "model_version:p/eta@1 aliased alias:p/eta@champion".to_owned(),
            format!("{artifact} artifact_of model_version:p/eta@1"),
            "feature_service:p/eta@1 trained_on model_version:p/eta@1".to_owned(),
            "feature_view:p/rides@1 reads model_version:p/eta@1".to_owned(),
            "on_demand_feature_view:p/ratios@1 reads feature_service:p/eta@1".to_owned(),
            "entity:p/driver@1 keys feature_view:p/rides@1".to_owned(),
            "feature_view:p/rides@1 reads on_demand_feature_view:p/ratios@1".to_owned(),
        ]
    );
    assert_eq!(
        walk("feature_view:p/rides@1", false, 1),
        [
            "feature_view:p/rides@1 reads model_version:p/eta@1",
            "feature_view:p/rides@1 reads on_demand_feature_view:p/ratios@1",
        ]
    );
    assert_eq!(walk(&artifact, true, 3), Vec::<String>::new(), "known, and made from nothing");
    for node in ["model_version:p/eta@2", "nonsense", "a\0b", ""] {
        assert_eq!(bench.meta.lineage(node, true, 1).unwrap_err().kind(), cairn_proto::ErrorKind::NotFound);
    }
}

#[test]
fn a_retry_gets_the_first_answer() {
    let bench = Bench::new();
    bench.define(&[driver()]);
    let first = command(register("p", "eta", "", true), "request-1");
    let outcomes = |index, command: &[u8]| {
        bench.meta.apply(&[Entry { index, command: Some(command) }], b"position").unwrap().remove(0)
    };
    let made = outcomes(2, &first);
    let state = bench.meta.checksum().unwrap();
    assert_eq!(outcomes(3, &first), made);
    assert_eq!(outcomes(4, &command(register("p", "other", "", true), "request-1")), made, "the id is what counts");
    assert_eq!(bench.meta.checksum().unwrap(), state);
    // In one batch too, and for refusals as well.
    let no = command(move_alias("latest", None, 1), "request-2");
    let entries = [5, 6].map(|index| Entry { index, command: Some(&no[..]) });
    let answers = bench.meta.apply(&entries, b"").unwrap();
    assert_eq!(answers[0], answers[1]);
    assert_eq!(MetaOutcome::decode(&*answers[1]).unwrap().index, 5);
    let long = command(move_alias("champion", None, 1), &"x".repeat(257));
    let refused = MetaOutcome::decode(&*outcomes(7, &long)).unwrap();
    assert!(matches!(refused.outcome, Some(Outcome::Refused(_))));
}

#[test]
fn the_oldest_requests_are_forgotten_in_order() {
    let bench = Bench::new();
    let tick = |id: u64| command(Change::TimeTick(TimeTick::default()), &format!("r{id}"));
    let mut index = 0;
    let mut apply = |ids: std::ops::Range<u64>| -> Vec<u64> {
        let commands: Vec<Vec<u8>> = ids.map(tick).collect();
        let entries: Vec<_> = commands
            .iter()
            .map(|command| {
                index += 1;
                Entry { index, command: Some(command) }
            })
            .collect();
        let outcomes = bench.meta.apply(&entries, b"").unwrap();
        outcomes.iter().map(|outcome| MetaOutcome::decode(&**outcome).unwrap().index).collect()
    };
    let kept = apply::REQUESTS_MAX;
    apply(0..kept);
    assert_eq!(apply(0..2), [1, 2], "all still known");
    assert_eq!(apply(kept..kept + 1), [kept + 3]);
    assert_eq!(apply(1..2), [2]);
    assert_eq!(apply(0..1), [kept + 5], "forgotten: its answer is new");
}

#[test]
fn commands_of_a_newer_version_stop_the_replica_by_name() {
    let bench = Bench::new();
    bench.define(&[driver()]);
    let (state, applied) = (bench.meta.checksum().unwrap(), bench.meta.applied());
    let tick = command(Change::TimeTick(TimeTick::default()), "");
    let newer = MetaCommand { version: 4, ..MetaCommand::decode(&*tick).unwrap() }.encode_to_vec();
    let unknown = MetaCommand { version: 1, ..Default::default() }.encode_to_vec();
    for (command, message) in [(newer, "entry 3 is a command of version 4"), (unknown, "entry 3 asks for a change")] {
        let entries = [Entry { index: 2, command: Some(&tick) }, Entry { index: 3, command: Some(&command) }];
        let fatal = bench.meta.apply(&entries, b"").unwrap_err().to_string();
        assert!(fatal.contains(message), "{fatal}");
        assert_eq!((bench.meta.checksum().unwrap(), bench.meta.applied()), (state, applied), "all or nothing");
    }
    let outcome = bench.apply_at(2, b"\xff\xff garbage");
    assert!(matches!(outcome.outcome, Some(Outcome::Refused(refusal)) if refusal.kind == "invalid_argument"));
}

#[test]
fn commit_time_never_goes_back() {
    let bench = Bench::new();
    let at = |index, proposed_at_us| {
        let change = Some(Change::TimeTick(TimeTick::default()));
        let command = MetaCommand { version: 1, proposed_at_us, change, ..Default::default() }.encode_to_vec();
        bench.apply_at(index, &command).applied_us
    };
    assert_eq!([at(1, 50), at(2, 40), at(3, 60)], [50, 50, 60]);
    bench.meta.apply(&[Entry { index: 4, command: None }], b"membership").unwrap();
    assert_eq!(bench.meta.applied(), Applied { index: 4, time_us: 60 });
    assert_eq!(bench.meta.position().unwrap(), b"membership");
    let bench = bench.restart();
    assert_eq!(bench.meta.applied(), Applied { index: 4, time_us: 60 });
    assert_eq!(bench.meta.position().unwrap(), b"membership");
}
