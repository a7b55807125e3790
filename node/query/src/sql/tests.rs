use super::*;
use crate::historical::CreatedCutoff;
use crate::historical::oracle::{Answer, Ask, Known, answer};
use crate::plan::FeaturePlan;
use crate::plan::tests::Project;
use crate::testing::{Store, batch, cell, fact, lines};
use arrow_cast::pretty::pretty_format_batches;
use arrow_schema::{DataType, TimeUnit};
use cairn_proto::ErrorKind;
use cairn_proto::record::v1::ValueKind;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Project `p` with the view `v`: key `k`, features `x` and `s`.
struct World {
    project: Project,
    plan: FeaturePlan,
    store: Store,
    engine: SqlEngine,
    runtime: tokio::runtime::Runtime,
    _spill: tempfile::TempDir,
}

impl World {
    fn new(memory_bytes: usize) -> Self {
        let mut project = Project::default();
        project
            .entity("k", &[("k", ValueKind::Int64)])
            .view("v", &["k"], 5, &[("x", ValueKind::Int64), ("s", ValueKind::String)])
            .service("all", &["v"]);
        let plan = project.plan(&["v"]);
        let spill = tempfile::tempdir().unwrap();
        let spill_dir = spill.path().join("spill");
        let limits = SqlLimits { memory_bytes, spill_bytes: 1 << 20, spill_dir, partitions: 2 };
        let engine = SqlEngine::new(&limits).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).thread_stack_size(64 << 20).build().unwrap();
        Self { project, plan, store: Store::new(), engine, runtime, _spill: spill }
    }

    fn with(commits: &[(i64, &[&str])]) -> Self {
        let mut world = Self::new(64 << 20);
        for (committed_us, facts) in commits {
            let facts: Vec<_> = facts.iter().map(|text| fact(text)).collect();
            world.store.write(&world.plan, 0, *committed_us, &facts);
        }
        world
    }

    fn try_ask(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.try_bound(sql, None)
    }

    fn try_bound(&self, sql: &str, values: Option<&[Parameter]>) -> Result<Vec<RecordBatch>> {
        let (catalog, source) = (self.project.catalog(), Arc::clone(&self.store.sharded));
        // On a worker, whose stack a long query may need.
        std::thread::scope(|scope| {
            let work = async {
                let query = self.engine.plan(sql, "p", &catalog, &source, values).await?;
                let mut batches = vec![RecordBatch::new_empty(query.schema())];
                let sent = query.run(|batch| {
                    batches.push(batch);
                    std::future::ready(Ok(true))
                });
                sent.await?;
                Ok(batches)
            };
            let thread = std::thread::Builder::new().stack_size(64 << 20);
            thread.spawn_scoped(scope, || self.runtime.block_on(work)).unwrap().join().unwrap()
        })
    }

    fn ask(&self, sql: &str) -> String {
        format!("{}\n", pretty_format_batches(&self.try_ask(sql).unwrap()).unwrap())
    }

    fn rows(&self, sql: &str, columns: &[&str]) -> Vec<String> {
        let mut rows = lines(&self.try_ask(sql).unwrap(), columns);
        rows.sort();
        rows
    }

    fn refused(&self, sql: &str) -> String {
        let error = self.try_ask(sql).unwrap_err();
        format!("{}: {error}", error.kind())
    }
}

/// Values as a driver binds them: of text, each of a type.
fn values(of: &[(&str, DataType)]) -> Vec<Parameter> {
    let columns: Vec<(&str, DataType)> = of.iter().map(|(_, data_type)| ("v", data_type.clone())).collect();
    let row = of.iter().map(|(text, _)| cell(text)).collect();
    Parameter::of_row(&batch(&columns, &[row])).unwrap()
}

/// Two entities; the first corrected late, the second deleted.
fn drivers() -> World {
    World::with(&[
        (100, &["1 | 10 | 7 a", "2 | 10 | 8 b"]),
        (200, &["1 | 20 | 9 -", "2 | 30 |"]),
        (300, &["1 | 10 15 | 70 late"]),
    ])
}

#[test]
fn tables_and_functions_show_the_rows() {
    let world = drivers();
    expect![[r#"
        +---+-----------------------------+-----------------------------+-----------------------------+---+---+
        | k | event_timestamp             | created_timestamp           | committed_timestamp         | x | s |
        +---+-----------------------------+-----------------------------+-----------------------------+---+---+
        | 1 | 1970-01-01T00:00:00.000020Z | 1970-01-01T00:00:00.000020Z | 1970-01-01T00:00:00.000200Z | 9 |   |
        +---+-----------------------------+-----------------------------+-----------------------------+---+---+
    "#]]
    .assert_eq(&world.ask("select * from v order by k"));
    assert_eq!(world.ask("select * from p.v"), world.ask("select * from latest('p.v@1')"));
    expect![[r#"
        +---+-----------------------------+---------+----+------+
        | k | committed_timestamp         | deleted | x  | s    |
        +---+-----------------------------+---------+----+------+
        | 1 | 1970-01-01T00:00:00.000100Z | false   | 7  | a    |
        | 1 | 1970-01-01T00:00:00.000200Z | false   | 9  |      |
        | 1 | 1970-01-01T00:00:00.000300Z | false   | 70 | late |
        | 2 | 1970-01-01T00:00:00.000100Z | false   | 8  | b    |
        | 2 | 1970-01-01T00:00:00.000200Z | true    |    |      |
        +---+-----------------------------+---------+----+------+
    "#]]
    .assert_eq(&world.ask("select k, committed_timestamp, deleted, x, s from history('v') order by 1, 2"));
    // At event time 12: the correction, made at 15, is not known yet; by commit time neither is anything after.
    let as_of = |time: &str| world.rows(&format!("select k, x from as_of('v', {time})"), &["k", "x"]);
    let micros = |us: i64| format!("'1970-01-01T00:00:00.{us:06}Z'");
    assert_eq!(as_of(&micros(12)), ["1 7", "2 8"]);
    assert_eq!(as_of(&micros(16)), ["1 70", "2 8"]);
    assert_eq!(as_of(&format!("{}, {}", micros(16), micros(299))), ["1 7", "2 8"]);
    assert_eq!(as_of(&micros(25)), ["1 9", "2 8"]);
    assert_eq!(as_of("now()"), ["1 9"]);
    assert_eq!(as_of("timestamp '1970-01-01T00:00:00.000009Z'"), [""; 0]);
}

#[test]
fn what_a_query_leaves_out_is_not_missed() {
    let world = drivers();
    let all = world.try_ask("select k, event_timestamp, x from history('v')").unwrap();
    assert_eq!(all.iter().map(RecordBatch::num_rows).sum::<usize>(), 5);
    for (filter, expected) in [
        ("k = 1", &["10 7", "10 70", "20 9"][..]),
        ("1 = k and x > 8", &["10 70", "20 9"]),
        ("k = 3", &[]),
        ("event_timestamp > to_timestamp_micros(10)", &["20 9", "30 -"]),
        ("event_timestamp = to_timestamp_micros(10) and k in (1, 2)", &["10 7", "10 70", "10 8"]),
        ("to_timestamp_micros(20) >= event_timestamp and k = 2", &["10 8"]),
        ("k = 1 or event_timestamp > to_timestamp_micros(25)", &["10 7", "10 70", "20 9", "30 -"]),
    ] {
        let sql = format!("select cast(event_timestamp as bigint) as e, x from history('v') where {filter}");
        assert_eq!(world.rows(&sql, &["e", "x"]), expected, "{filter}");
    }
    assert_eq!(world.rows("select count(*) as n from history('v')", &["n"]), ["5"]);
    assert_eq!(
        world.try_ask("select k from history('v') limit 2").unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(),
        2
    );
    assert_eq!(world.rows("select k from (select k from history('v') where x > 100 limit 1)", &["k"]), [""; 0]);
}

/// The oracle of the join knows nothing of SQL, keys or storage.
#[test]
fn as_of_agrees_with_the_oracle_on_random_histories() {
    let row = (0..4i64, 0..6i64, 0..4i64, prop::option::of(0..100i64));
    let commits = prop::collection::vec(prop::collection::vec(row, 1..6), 1..6);
    let asked = (commits, 0..8i64, 0..7i64);
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, ..Default::default() });
    let checked = runner.run(&asked, |(commits, time_us, known_us)| {
        let mut world = World::new(64 << 20);
        let mut history = Vec::new();
        for (at, rows) in commits.iter().enumerate() {
            let committed_us = at as i64 + 1;
            let facts: Vec<_> = rows
                .iter()
                .map(|(k, event, late, x)| {
                    let value = x.map_or(String::new(), |x| format!("{x} s{x}"));
                    fact(&format!("{k} | {event} {} | {value}", event + late))
                })
                .collect();
            history.extend(facts.iter().cloned().map(|fact| Known { fact, committed_us }));
            world.store.write(&world.plan, 0, committed_us, &facts);
        }
        let key = |k: i64| vec![cell(&k.to_string())];
        let mut expected: Vec<String> = Vec::new();
        for k in 0..4 {
            let ask = Ask {
                key: &key(k),
                time_us: Some(time_us),
                created: CreatedCutoff::SpineTime,
                known_us: Some(known_us),
                ttl_us: 0,
            };
            if let Answer::Row(values) = answer(&history, &ask) {
                let text: Vec<String> = values.into_iter().map(|cell| cell.unwrap_or_else(|| "-".into())).collect();
                expected.push(format!("{k} {}", text.join(" ")));
            }
        }
        let time = |us: i64| format!("to_timestamp_micros({us})");
        let sql = format!("select k, x, s from as_of('v', {}, {})", time(time_us), time(known_us));
        prop_assert_eq!(world.rows(&sql, &["k", "x", "s"]), expected);
        // The same key and times in one commit are one row: the last.
        let rows = commits.iter().enumerate();
        let rows = rows.flat_map(|(at, rows)| rows.iter().map(move |(k, event, late, _)| (at, k, event, late)));
        let distinct: std::collections::BTreeSet<_> = rows.collect();
        let counted = world.rows("select count(*) as n from history('v')", &["n"]);
        prop_assert_eq!(counted, vec![distinct.len().to_string()]);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn the_registry_can_be_asked() {
    let world = drivers();
    expect![[r#"
        +---------+--------------+---------+---------+--------+-------------+
        | project | feature_view | version | feature | type   | description |
        +---------+--------------+---------+---------+--------+-------------+
        | p       | v            | 1       | s       | string |             |
        | p       | v            | 1       | x       | int64  |             |
        +---------+--------------+---------+---------+--------+-------------+
    "#]]
    .assert_eq(&world.ask("select * from system.features order by feature"));
    expect![[r#"
        +--------------+---------+----------+-------------+
        | feature_view | version | entities | ttl_seconds |
        +--------------+---------+----------+-------------+
        | v            | 1       | k        | 0           |
        +--------------+---------+----------+-------------+
    "#]]
    .assert_eq(&world.ask("select feature_view, version, entities, ttl_seconds from system.feature_views"));
    expect![[r#"
        +-----------------+---------+---------+
        | feature_service | version | feature |
        +-----------------+---------+---------+
        | all             | 1       | s       |
        | all             | 1       | x       |
        +-----------------+---------+---------+
    "#]]
    .assert_eq(&world.ask("select feature_service, version, feature from system.feature_services order by 3"));
    expect![[r#"
        +--------------------+------------------+
        | table_schema       | table_name       |
        +--------------------+------------------+
        | information_schema | columns          |
        | information_schema | df_settings      |
        | information_schema | parameters       |
        | information_schema | routines         |
        | information_schema | schemata         |
        | information_schema | tables           |
        | information_schema | views            |
        | p                  | v                |
        | system             | aliases          |
        | system             | backtest_windows |
        | system             | backtests        |
        | system             | datasets         |
        | system             | deployments      |
        | system             | entities         |
        | system             | feature_services |
        | system             | feature_views    |
        | system             | features         |
        | system             | jobs             |
        | system             | lineage          |
        | system             | model_metrics    |
        | system             | model_versions   |
        | system             | models           |
        | system             | nodes            |
        | system             | segments         |
        +--------------------+------------------+
    "#]]
    .assert_eq(&world.ask("select table_schema, table_name from information_schema.tables order by 1, 2"));
    let browsed = tables(&world.project.catalog(), &world.store.sharded).unwrap();
    let names: Vec<_> = browsed.iter().map(|(schema, table, _)| format!("{schema}.{table}")).collect();
    assert_eq!(names[..3], ["p.v", "system.entities", "system.feature_views"]);
    for (schema, table, columns) in browsed {
        let found = world.try_ask(&format!("select * from {schema}.{table}")).unwrap();
        assert_eq!(found[0].schema().fields(), columns.fields(), "{table}");
    }
}

#[test]
fn what_cannot_be_answered_is_told() {
    let world = drivers();
    let check = |sql: &str, expected: Expect| expected.assert_eq(&world.refused(sql));
    check("", expect!["invalid_argument: No SQL statements were provided in the query string"]);
    check("selec 1", expect!["invalid_argument: Expected: an SQL statement, found: selec at Line: 1, Column: 1"]);
    check(
        "select 1; select 2",
        expect!["invalid_argument: The context currently only supports a single SQL statement"],
    );
    check(
        "select * from w",
        expect!["invalid_argument: table 'cairn.p.w' not found; `SHOW TABLES` lists what there is"],
    );
    check(
        "select nope from v",
        expect![
            "invalid_argument: No field named nope. Valid fields are v.k, v.event_timestamp, v.created_timestamp, v.committed_timestamp, v.x, v.s."
        ],
    );
    check(
        "select * from history('w')",
        expect!["not_found: feature view `w` not found in project `p`; did you mean `v`?"],
    );
    check(
        "select * from history('v@7')",
        expect!["not_found: feature view `v@7` not found in project `p`; its newest version is 1"],
    );
    check("select * from history('q.v')", expect!["not_found: project `q` not found; did you mean `p`?"]);
    check(
        "select * from history('v:x')",
        expect!["invalid_argument: `v:x` names a feature; name its view, and select the feature"],
    );
    check(
        "select * from history(v)",
        expect![
            "invalid_argument: write it as 'view', 'view@2' or 'project.view@2', in single quotes, as the first argument"
        ],
    );
    check("select * from latest()", expect!["invalid_argument: write it as latest('view') or latest('view@2')"]);
    check(
        "select * from as_of('v')",
        expect!["invalid_argument: write it as as_of('view', time) or as_of('view', time, known)"],
    );
    check(
        "select * from as_of('v', 'yesterday')",
        expect![
            "invalid_argument: 'yesterday' is no constant time; write one as '2026-05-01T12:00:00Z' or now() - interval '1 day'"
        ],
    );
    check(
        "select * from as_of('v', random())",
        expect![
            "invalid_argument: random() is no constant time; write one as '2026-05-01T12:00:00Z' or now() - interval '1 day'"
        ],
    );
    check(
        "insert into v select * from v",
        expect!["invalid_argument: SQL here reads and changes nothing; Insert Into is refused"],
    );
    check("delete from v", expect!["invalid_argument: SQL here reads and changes nothing; Delete is refused"]);
    check(
        "create table t as select 1",
        expect!["invalid_argument: SQL here reads and changes nothing; CreateMemoryTable is refused"],
    );
    check("drop table v", expect!["invalid_argument: SQL here reads and changes nothing; DropTable is refused"]);
    check(
        "create external table t stored as csv location '/etc/passwd'",
        expect!["invalid_argument: SQL here reads and changes nothing; CreateExternalTable is refused"],
    );
    check(
        "copy v to '/tmp/v.csv' stored as csv",
        expect!["invalid_argument: SQL here reads and changes nothing; COPY is refused"],
    );
    check(
        "set datafusion.execution.batch_size = 1",
        expect!["invalid_argument: SQL here reads and changes nothing; SetVariable is refused"],
    );
    check(
        "select * from '/etc/passwd'",
        expect!["invalid_argument: table 'cairn.p./etc/passwd' not found; `SHOW TABLES` lists what there is"],
    );
    check("select 1 / (x - x) from v", expect!["invalid_argument: Divide by zero error"]);
    check(
        "select cast(s as int) from as_of('v', '1970-01-01T00:00:00.000012Z') where k = 2",
        expect!["invalid_argument: Cast error: Cannot cast string 'b' to value of Int32 type"],
    );
    check(
        &format!("select {}", "1".repeat(SQL_BYTES_MAX)),
        expect!["too_large: the query is over the limit of 32768 bytes"],
    );
}

#[test]
fn no_query_is_too_deep_to_be_refused() {
    let world = drivers();
    let chain = |terms: usize| format!("select {}1", "1+".repeat(terms));
    assert!(world.try_ask(&chain(450)).is_ok());
    expect!["too_large: an expression of the query is nested, or chained, more than 500 deep; write long chains of `or` as `in`"].assert_eq(&world.refused(&chain(SQL_BYTES_MAX / 2 - 10)));
    expect!["too_large: the query is nested too deep"].assert_eq(&world.refused(&format!(
        "select {}1{}",
        "(".repeat(9_000),
        ")".repeat(9_000)
    )));
    expect!["invalid_argument: Expected: end of statement, found: not at Line: 1, Column: 215"]
        .assert_eq(&world.refused(&format!("select * from v where {}true", "not ".repeat(6_000))));
    expect!["too_large: the query is nested too deep"].assert_eq(&world.refused(&format!(
        "select {}1{}",
        "abs(".repeat(5_000),
        ")".repeat(5_000)
    )));
    let nested = (0..3_000).fold("select 1 as x".to_owned(), |sql, _| match sql.len() < SQL_BYTES_MAX - 40 {
        true => format!("select x from ({sql})"),
        false => sql,
    });
    expect!["too_large: the query is nested too deep"].assert_eq(&world.refused(&nested));
}

/// What is written once and named twice is planned twice: a few lines would be millions of tables.
#[test]
fn a_query_does_not_grow_over_all_bounds() {
    let world = drivers();
    let doubled = |times: usize| {
        let name = |at: usize| format!("t{at} as (select a.k from t{0} a join t{0} b on a.k = b.k)", at - 1);
        let rest: Vec<String> = (1..=times).map(name).collect();
        let comma = if rest.is_empty() { "" } else { ", " };
        format!("with t0 as (select k from v){comma}{} select count(*) as n from t{times}", rest.join(", "))
    };
    assert_eq!(world.rows(&doubled(3), &["n"]), ["1"]);
    let refused = expect!["too_large: the query reads tables more than 32 times, what it names twice counted twice"];
    refused.assert_eq(&world.refused(&doubled(60)));
    let many: Vec<String> = (0..33).map(|at| format!("v v{at}")).collect();
    refused.assert_eq(&world.refused(&format!("select 1 from {}", many.join(", "))));
}

#[test]
fn memory_and_spilled_rows_are_bounded() {
    let mut world = World::new(1 << 20);
    for commit in 0..20 {
        let facts: Vec<_> = (0..1_000).map(|row| fact(&format!("{row} | {commit} | {row} some-text-{row}"))).collect();
        world.store.write(&world.plan, 0, commit, &facts);
    }
    // Twenty million rows to be sorted.
    let sql = "select a.s || b.s as t from history('v') a join history('v') b on a.x % 7 = b.x % 7 order by t";
    let error = world.try_ask(sql).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().starts_with("the query needs more than this node gives to SQL: "), "{error}");
    // And nothing of it stays.
    assert_eq!(world.rows("select count(*) as n from history('v')", &["n"]), ["20000"]);
}

#[test]
fn values_take_the_places_of_parameters() {
    let world = drivers();
    let check = |sql: &str, of: &[(&str, DataType)], expected: &[&str]| {
        let rows = world.try_bound(sql, Some(&values(of))).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let names: Vec<String> = rows[0].schema().fields().iter().map(|field| field.name().clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(lines(&rows, &names), expected, "{sql}");
    };
    let (int, text) = (DataType::Int64, DataType::Utf8);
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    check("select k, x from v where k = $1", &[("1", int.clone())], &["1 9"]);
    check("select k, x from v where k = ?", &[("1", DataType::Int32)], &["1 9"]);
    check("select k, x from v where k = $1", &[("-", int.clone())], &[]);
    // Each where it was written, one of them twice; and not as text of the query.
    let twice = "select x, s from history('v') where (k = $2 and x > $1) or s = $3 or k = $1 order by x";
    check(twice, &[("8", int.clone()), ("1", int.clone()), ("b", text.clone())], &["8 b", "9 -", "70 late"]);
    let order = "select ? as a, x from as_of('v', ?) where k = ? and x < ? order by 2 limit ?";
    let five =
        [("here", text.clone()), ("12", micros.clone()), ("1", int.clone()), ("70", int.clone()), ("1", int.clone())];
    check(order, &five, &["here 7"]);
    check("select k from v where s = $1", &[("a' or 'a' = 'a", text.clone())], &[]);
    check("select x from as_of('v', $1) where k = 1", &[("1970-01-01T00:00:00.000016Z", text.clone())], &["70"]);
    check("select x from as_of('v', $1, $2) where k = 1", &[("16", micros.clone()), ("299", micros.clone())], &["7"]);
    check("select count(*) as n from v where k in ($1, $2)", &[("1", int.clone()), ("2", int.clone())], &["1"]);
    check("select $1 as a", &[("1.5", DataType::Float32)], &["1.5"]);
}

#[test]
fn parameters_are_described() {
    let world = drivers();
    let described = |sql: &str| {
        let (catalog, source) = (world.project.catalog(), Arc::clone(&world.store.sharded));
        let query = world.runtime.block_on(world.engine.plan(sql, "p", &catalog, &source, None)).unwrap();
        let of = |it: &Schema| {
            let text = |field: &Arc<arrow_schema::Field>| format!("{} {}", field.name(), field.data_type());
            it.fields().iter().map(text).collect::<Vec<_>>().join(", ")
        };
        format!("({}) -> {}", of(query.parameters()), of(&query.schema()))
    };
    assert_eq!(described("select k from v where s = $2 and x > $1"), "($1 Int64, $2 Utf8) -> k Int64");
    assert_eq!(described("select k from as_of('v', ?)"), "($1 Timestamp(µs, \"UTC\")) -> k Int64");
    assert_eq!(described("select k from v"), "() -> k Int64");
}

#[test]
fn wrong_parameters_are_told_by_their_numbers() {
    let world = drivers();
    let check = |sql: &str, of: &[(&str, DataType)], expected: Expect| {
        let error = world.try_bound(sql, Some(&values(of))).unwrap_err();
        expected.assert_eq(&format!("{}: {error}", error.kind()));
    };
    let (int, text) = (DataType::Int64, DataType::Utf8);
    let two = "select k from v where k = $1 and s = $2";
    check(
        two,
        &[("1", int.clone())],
        expect![
            "invalid_argument: the query takes 2 parameters ($1, $2), and 1 value was bound; bind one value for each"
        ],
    );
    check(
        two,
        &[("a", text.clone()), ("a", text.clone())],
        expect![
            "invalid_argument: parameter $1 is Int64 in this query, and a string was bound; bind such a value, or cast in the query"
        ],
    );
    check(
        two,
        &[("1", int.clone()), ("1", int.clone())],
        expect![
            "invalid_argument: parameter $2 is Utf8 in this query, and an integer was bound; bind such a value, or cast in the query"
        ],
    );
    check(
        "select k from v where k = $1",
        &[("1.5", DataType::Float64)],
        expect![
            "invalid_argument: parameter $1 is Int64 in this query, and a float was bound; bind such a value, or cast in the query"
        ],
    );
    check(
        "select k from as_of('v', $1)",
        &[("soon", text.clone())],
        expect![[r#"invalid_argument: the value bound to parameter $1 does not fit Timestamp(µs, "UTC")"#]],
    );
    check(
        "select 1",
        &[("1", int)],
        expect!["invalid_argument: the query takes no parameters, and 1 value was bound; bind one value for each"],
    );
    let refused = |sql: &str| world.refused(sql);
    expect![
        "invalid_argument: the query takes 2 parameters ($1, $2), and no values were bound; prepare it, and bind a row with one value for each"
    ]
    .assert_eq(&refused(two));
    expect!["invalid_argument: the query has $3 and no $2; number its parameters without holes"]
        .assert_eq(&refused("select $1, $3"));
    expect!["invalid_argument: `$name` is no parameter; write them `$1`, `$2`, … or `?`"]
        .assert_eq(&refused("select $name"));
    expect!["invalid_argument: parameters are written `$1`, `$2`, … or `?`, not both"]
        .assert_eq(&refused("select ?, $1"));
    expect!["invalid_argument: SQL here reads and changes nothing; Delete is refused"]
        .assert_eq(&refused("delete from v where k = $1"));
    expect!["too_large: the query has more than 256 parameters"].assert_eq(&refused("select $257"));
    let rows = batch(&[("v", text)], &[vec![cell("a")], vec![cell("b")]]);
    expect!["parameters are bound as one row, and 2 came; run the statement once for each"]
        .assert_eq(&Parameter::of_row(&rows).unwrap_err().to_string());
}
