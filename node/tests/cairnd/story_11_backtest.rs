//! Story 11: champion and challenger are compared on the past, each row with what was known at its own time. What comes out is
//! kept as evidence that can be computed again.

use crate::support::models::{golden, golden_model, matrix, register};
use crate::support::rows::{SECOND, at, batch, floats, floats32, ints, texts, times};
use crate::support::{Story, TestResult, into};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use bytes::Bytes;
use cairn_client::api;
use cairn_client::command::{Backtest, BacktestMetric, BacktestModel};
use cairn_client::registry::{Direction, Expected, Promotion};
use cairn_client::{Client, DEFAULT_PROJECT, ErrorKind, Timestamp};
use expect_test::expect;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CASES: i64 = 1_000;
const FROM: i64 = 10;
const WINDOW: i64 = 300;

/// Case `i` at second 10 + i, with what really happened; then two rows outside of the interval.
fn spine(labels: &[f64]) -> RecordBatch {
    let last = [(0, at(FROM - 1), 1.0), (1, at(FROM + CASES), 0.0)];
    let cases = || (0..CASES).zip(labels).map(|(case, label)| (case, at(FROM + case), *label)).chain(last);
    batch(&[
        ("case_id", ints(cases().map(|row| row.0))),
        ("event_timestamp", times(cases().map(|row| row.1))),
        ("late", floats(cases().map(|row| row.2))),
        ("kind", texts(cases().map(|row| if row.0 % 3 == 0 { "a" } else { "b" }))),
    ])
}

fn model(name: &str, version: u32) -> BacktestModel {
    BacktestModel { model: name.into(), version: Some(version), ..BacktestModel::default() }
}

/// Both models over all cases in windows of five minutes.
fn ask(spine_root: &str) -> Backtest {
    Backtest {
        project: DEFAULT_PROJECT.into(),
        models: vec![
            BacktestModel { version: None, alias: Some("champion".into()), ..model("mlp", 1) },
            model("xgboost_classifier", 1),
        ],
        from: Timestamp(at(FROM)),
        to: Timestamp(at(FROM + CASES)),
        window_us: Some(WINDOW * SECOND),
        label: "late".into(),
        skip_null_labels: false,
        event_timestamp: "event_timestamp".into(),
        spine_root: spine_root.into(),
        spine_file: "cases.parquet".into(),
        known_as_of: None,
        metrics: vec![BacktestMetric {
            name: "mae_a".into(),
            sql: "avg(abs(label - prediction)) filter (where kind = 'a')".into(),
        }],
        predictions: true,
        author: "ann".into(),
        description: "before the promotion".into(),
    }
}

/// The evidence, and the rows that were scored.
async fn run(
    client: &Client,
    ask: Backtest,
    parts: &[RecordBatch],
) -> cairn_client::Result<(api::Backtest, RecordBatch)> {
    let batches: Vec<_> = parts.iter().cloned().map(Ok).collect();
    let spine = futures::stream::iter(batches);
    let mut running = client.run_backtest(ask, parts[0].schema(), spine).await?;
    let mut rows = Vec::new();
    while let Some(part) = running.next().await? {
        rows.push(part);
    }
    let id = running.backtest().expect("known at the end");
    let all: u64 = parts.iter().map(|part| part.num_rows() as u64).sum();
    assert_eq!(running.rows_done(), all);
    let rows = arrow_select::concat::concat_batches(running.schema(), &rows).expect("parts of one schema");
    Ok((client.backtest(DEFAULT_PROJECT, id).await?, rows))
}

fn column(rows: &RecordBatch, name: &str) -> Vec<f64> {
    let column = rows.column_by_name(name).expect("a column").as_primitive::<Float64Type>();
    assert_eq!(column.null_count(), 0);
    column.values().to_vec()
}

/// Metrics by the plainest formulas there are.
fn metrics_of(rows: &[(f64, f64)]) -> [f64; 5] {
    let n = rows.len() as f64;
    let (mut right, mut pairs) = (0.0, 0.0);
    for (_, positive) in rows.iter().filter(|row| row.0 == 1.0) {
        for (_, negative) in rows.iter().filter(|row| row.0 == 0.0) {
            pairs += 1.0;
            right += if positive > negative {
                1.0
            } else if positive == negative {
                0.5
            } else {
                0.0
            };
        }
    }
    let sum = |of: &dyn Fn(f64, f64) -> f64| rows.iter().map(|(y, p)| of(*y, *p)).sum::<f64>();
    let loss = sum(&|y, p| -(y * p.max(1e-15).ln() + (1.0 - y) * (1.0 - p).max(1e-15).ln())) / n;
    let rmse = (sum(&|y, p| (p - y) * (p - y)) / n).sqrt();
    let mut calibration = 0.0;
    for bin in 0..10 {
        let inside: Vec<_> = rows.iter().filter(|(_, p)| ((p * 10.0) as i32).min(9) == bin).collect();
        if !inside.is_empty() {
            let mean =
                |of: &dyn Fn(&(f64, f64)) -> f64| inside.iter().map(|row| of(row)).sum::<f64>() / inside.len() as f64;
            calibration += inside.len() as f64 / n * (mean(&|row| row.1) - mean(&|row| row.0)).abs();
        }
    }
    [right / pairs, loss, rmse, calibration, sum(&|y, p| p - y) / n]
}

fn check_scores(found: &api::BacktestScores, rows: &[(f64, f64)], what: &str) {
    assert_eq!((found.rows, found.rows_without_score), (rows.len() as u64, 0), "{what}");
    assert_eq!(found.positives, Some(rows.iter().filter(|row| row.0 == 1.0).count() as u64), "{what}");
    let told = [found.auc, found.log_loss, found.rmse, found.calibration_error, found.bias];
    for (at, (told, computed)) in told.into_iter().zip(metrics_of(rows)).enumerate() {
        let told = told.expect("defined");
        assert!((told - computed).abs() <= 1e-9, "{what}, metric {at}: {told} told, {computed} computed here");
    }
}

/// Both golden models with rows, and `mlp@1` the champion. Labels are as likely as the champion says.
async fn two_models(nodes: usize) -> TestResult<(Story, Vec<f64>)> {
    let story = Story::nodes(nodes, &[]).await?;
    golden_model(&story, "mlp", "x").await?;
    golden_model(&story, "xgboost_classifier", "features").await?;
    let promotion = Promotion {
        project: DEFAULT_PROJECT,
        model: "mlp",
        alias: "champion",
        version: 1,
        expected: Expected::None,
        author: "ann",
        reason: "",
    };
    story.client.promote(&promotion).await?;
    let chance = |case: usize| (case * 7_919 % 1_000) as f32 / 1_000.0;
    let expected = matrix("mlp", "outputs", "probability")?.concat();
    let labels = expected.iter().enumerate().map(|(case, p)| f64::from(u8::from(chance(case) < *p))).collect();
    Ok((story, labels))
}

/// Other features for these cases, with these event and created times.
fn features(cases: std::ops::Range<i64>, event: i64, created: Option<i64>, value: f32) -> RecordBatch {
    let names: Vec<String> = (0..20).map(|at| format!("mlp_{at}")).collect();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("case_id", ints(cases.clone())),
        ("event_timestamp", times(cases.clone().map(|_| at(event)))),
        ("created_timestamp", times(cases.clone().map(|_| created.map(at)))),
    ];
    columns.extend(names.iter().map(|name| (name.as_str(), floats32(cases.clone().map(|_| value)))));
    batch(&columns)
}

/// Writes corrections of the same features over and over, through one node, until told to stop.
async fn write(client: Client, stop: Arc<AtomicBool>) -> cairn_client::Result<u16> {
    let mut count = 0u16;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        client.ingest_batch(into("mlp"), features(0..100, 5, None, f32::from(count) / 100.0)).await?;
    }
    Ok(count)
}

#[tokio::test]
async fn champion_and_challenger_are_measured_by_window_and_the_evidence_stays() -> TestResult {
    let (mut story, labels) = two_models(1).await?;
    let spine_rows = spine(&labels);
    let root = story.client.upload_bytes(Bytes::from_static(b"the spine as a file")).await?.root;
    let (first, rows) = run(&story.client, ask(&root), &[spine_rows.slice(0, 300), spine_rows.slice(300, 702)]).await?;

    // What was scored are the rows of the interval, with what onnxruntime gives for their features.
    assert_eq!((first.rows, first.rows_outside, first.rows_unlabelled), (1_000, 2, 0));
    assert_eq!(rows.project(&[0, 1, 2, 3])?, spine_rows.slice(0, 1_000));
    let expected = [
        ("mlp@1", matrix("mlp", "outputs", "probability")?.concat()),
        (
            "xgboost_classifier@1",
            matrix("xgboost_classifier", "outputs", "probabilities")?.iter().map(|row| row[1]).collect(),
        ),
    ];
    let times = rows.column(1).as_primitive::<TimestampMicrosecondType>().clone();
    for (model, (name, expected)) in first.models.iter().zip(&expected) {
        let scores = column(&rows, name);
        for (case, (found, expected)) in scores.iter().zip(expected.iter().map(|value| f64::from(*value))).enumerate() {
            assert!((found - expected).abs() <= 1e-5, "{name}, case {case}: {found} here, {expected} by onnxruntime");
        }
        let pairs: Vec<(f64, f64)> = labels.iter().copied().zip(scores).collect();
        check_scores(model.overall.as_ref().ok_or("overall")?, &pairs, name);
        let begins: Vec<i64> = (0..4).map(|window| at(FROM + window * WINDOW)).collect();
        assert_eq!(model.windows.iter().map(|it| it.from_us).collect::<Vec<_>>(), begins);
        assert_eq!(model.windows.last().ok_or("windows")?.to_us, at(FROM + CASES), "cut off with the interval");
        for window in &model.windows {
            let inside = |row: &usize| (window.from_us..window.to_us).contains(&times.value(*row));
            let inside: Vec<_> = (0..pairs.len()).filter(inside).collect();
            let rows: Vec<_> = inside.iter().map(|row| pairs[*row]).collect();
            check_scores(window, &rows, &format!("{name} from {}", window.from_us));
            let of_a: Vec<_> = inside.iter().filter(|row| *row % 3 == 0).map(|row| pairs[*row]).collect();
            let mae = of_a.iter().map(|(y, p)| (y - p).abs()).sum::<f64>() / of_a.len() as f64;
            assert!((window.metrics[0].value.ok_or("a metric in SQL")? - mae).abs() <= 1e-9);
        }
    }
    let who =
        |it: &api::BacktestModel| (it.alias.clone(), it.feature_service.clone(), it.output.clone(), it.class.clone());
    let word = |text: &str| text.to_owned();
    assert_eq!(who(&first.models[0]), (word("champion"), word("mlp"), word("probability"), word("")));
    assert_eq!(who(&first.models[1]), (word(""), word("xgboost_classifier"), word("probabilities"), word("1")));

    // A correction that was made after the rows' times is not in what was known at them: the same numbers.
    story.store("mlp", features(0..500, 0, Some(9_000), 0.5)).await?;
    // Nor is what happened after them.
    story.store("mlp", features(0..500, 9_000, None, -0.5)).await?;
    let (second, again) = run(&story.client, ask(&root), std::slice::from_ref(&spine_rows)).await?;
    assert_eq!((&second.content, &again), (&first.content, &rows));
    assert!(second.id > first.id && second.known_us > first.known_us);
    assert_eq!(second.models, first.models);

    // What comes late and was true before changes what a backtest says from then on, and nothing at the stored moment.
    story.store("mlp", features(0..500, 5, None, 0.25)).await?;
    let (third, _) = run(&story.client, ask(&root), std::slice::from_ref(&spine_rows)).await?;
    assert_ne!(third.content, first.content);
    assert_ne!(third.models[0].overall, first.models[0].overall);
    assert_eq!(third.models[1], first.models[1], "the challenger reads other rows");
    let at_that_moment = Backtest { known_as_of: Some(Timestamp(first.known_us)), ..ask(&root) };
    let (fourth, then) = run(&story.client, at_that_moment, std::slice::from_ref(&spine_rows)).await?;
    assert_eq!((&fourth.content, &then, &fourth.models), (&first.content, &rows, &first.models));

    // The evidence survives kill -9, and is found by model version and in lineage.
    story.cluster.kill(0).await?;
    story.cluster.spawn(0)?;
    story.cluster.ready(0, 1).await?;
    let client = story.client_of(0).await?;
    assert_eq!(client.backtest(DEFAULT_PROJECT, first.id).await?, first);
    let ids = |list: api::ListBacktestsReply| list.backtests.iter().map(|it| it.id).collect::<Vec<_>>();
    let all = vec![fourth.id, third.id, second.id, first.id];
    assert_eq!(ids(client.backtests(DEFAULT_PROJECT, "mlp", 1, 0).await?), all);
    assert_eq!(ids(client.backtests(DEFAULT_PROJECT, "", 0, 2).await?), all[..2]);
    register(&story, "mlp", &golden("mlp.onnx"), "mlp").await?;
    assert!(ids(client.backtests(DEFAULT_PROJECT, "mlp", 2, 0).await?).is_empty());
    let sql = format!(
        "select w.model, w.version, window_from, w.auc, b.alias, w.metrics from system.backtest_windows w \
         join system.backtests b using (project, backtest, model) where w.backtest = {} order by w.model, window_from",
        first.id
    );
    let mut answer = client.sql(&sql, DEFAULT_PROJECT).await?;
    let mut told = Vec::new();
    while let Some(part) = answer.next().await? {
        let (auc, alias) = (column(&part, "auc"), part.column(4).as_string::<i32>().clone());
        told.extend(auc.into_iter().zip(alias.iter().map(|alias| alias.map(str::to_owned))));
    }
    let kept = first.models.iter().flat_map(|model| {
        let alias = Some(model.alias.clone()).filter(|alias| !alias.is_empty());
        model.windows.iter().map(move |window| (window.auc.unwrap_or(f64::NAN), alias.clone()))
    });
    assert_eq!(told, kept.collect::<Vec<_>>());
    let node = format!("backtest:default/{}", first.id);
    let up = client.lineage(DEFAULT_PROJECT, &node, Direction::Up, 1).await?;
    let made_from: Vec<_> = up.iter().map(|edge| edge.from.as_str()).collect();
    let artifact = format!("artifact:{root}");
    assert_eq!(
        made_from,
        [artifact.as_str(), "model_version:default/mlp@1", "model_version:default/xgboost_classifier@1"]
    );
    story.end().await
}

/// Many chunks, in whatever batches they come, on whatever node.
#[tokio::test]
async fn the_same_rows_give_the_same_bits_in_any_batches_on_any_node() -> TestResult {
    const TIMES: usize = 70;
    let (story, labels) = two_models(3).await?;
    let once = spine(&labels).slice(0, CASES as usize);
    let all = arrow_select::concat::concat_batches(&once.schema(), std::iter::repeat_n(&once, TIMES))?;
    let root = story.client.upload_bytes(Bytes::from_static(b"the spine as a file")).await?.root;
    let plain = Backtest { metrics: Vec::new(), ..ask(&root) };
    let (_, short) = run(&story.client, plain.clone(), std::slice::from_ref(&once)).await?;
    let in_parts = |rows: usize| -> Vec<RecordBatch> {
        (0..all.num_rows()).step_by(rows).map(|at| all.slice(at, rows.min(all.num_rows() - at))).collect()
    };
    let (first, rows) = run(&story.client, plain.clone(), &in_parts(all.num_rows())).await?;
    assert_eq!(rows.project(&[0, 1, 2, 3])?, all);
    for name in ["mlp@1", "xgboost_classifier@1"] {
        let (long, short) = (column(&rows, name), column(&short, name));
        for (at, score) in long.iter().enumerate() {
            assert!((score - short[at % short.len()]).abs() <= 1e-5, "{name}, row {at}");
        }
    }
    // Without its rows sent back, and by another node, too.
    let silent = Backtest { predictions: false, known_as_of: Some(Timestamp(first.known_us)), ..plain };
    let (second, nothing) = run(&story.client_of(1).await?, silent, &in_parts(9_999)).await?;
    assert_eq!((&second.content, &second.models), (&first.content, &first.models));
    assert_eq!(nothing.num_columns(), 0);

    // While rows are written to every node, what one backtest saw another sees again at its moment.
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(story.client_of(node).await?);
    }
    let writers: Vec<_> = clients.iter().map(|client| tokio::spawn(write(client.clone(), Arc::clone(&stop)))).collect();
    let part = [once.slice(0, 200)];
    let small = Backtest { models: vec![model("mlp", 1)], metrics: Vec::new(), ..ask(&root) };
    let mut contents = std::collections::BTreeSet::new();
    for round in 0..12 {
        let (seen, _) = run(&clients[round % 3], small.clone(), &part).await?;
        let then = Backtest { known_as_of: Some(Timestamp(seen.known_us)), ..small.clone() };
        let (again, _) = run(&clients[(round + 1) % 3], then, &part).await?;
        assert_eq!((&again.content, &again.models), (&seen.content, &seen.models), "round {round}");
        contents.insert(seen.content);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await?? > 0);
    }
    assert!(contents.len() > 1, "nothing was written meanwhile");
    story.end().await
}

#[tokio::test]
async fn what_cannot_be_measured_is_refused_before_it_is_recorded() -> TestResult {
    let (story, labels) = two_models(1).await?;
    let spine_rows = spine(&labels);
    register(&story, "bare", &golden("mlp.onnx"), "").await?;
    register(&story, "three", &golden("xgboost_three_classes.onnx"), "xgboost_classifier").await?;
    let root = story.client.upload_bytes(Bytes::from_static(b"the spine as a file")).await?.root;
    let plain = || Backtest { metrics: Vec::new(), models: vec![model("mlp", 1)], ..ask(&root) };
    let with = |models: Vec<BacktestModel>| Backtest { models, ..plain() };
    let alias = |alias: &str| BacktestModel { version: None, alias: Some(alias.into()), ..model("mlp", 1) };
    let metric = |sql: &str| vec![BacktestMetric { name: "m".into(), sql: sql.into() }];
    let unlabelled = batch(&[
        ("case_id", ints([1, 2])),
        ("event_timestamp", times([at(20), at(21)])),
        ("late", floats([Some(1.0), None])),
        ("kind", texts(["a", "b"])),
    ]);
    let keyless = batch(&[("event_timestamp", times([at(20)])), ("late", floats([1.0]))]);
    let taken = batch(&[
        ("case_id", ints([1])),
        ("event_timestamp", times([at(20)])),
        ("late", floats([1.0])),
        ("mlp@1", floats([1.0])),
    ]);
    let one = std::slice::from_ref(&spine_rows);
    let cases: Vec<(Backtest, &[RecordBatch])> = vec![
        (with(vec![]), one),
        (with(vec![model("mlp", 1), alias("champion")]), one),
        (with(vec![model("bare", 1)]), one),
        (with(vec![model("mlp", 7)]), one),
        (with(vec![alias("champoin")]), one),
        (with(vec![BacktestModel { version: None, ..model("mlp", 1) }]), one),
        (with(vec![model("three", 1)]), one),
        (with(vec![BacktestModel { output: Some("labels".into()), ..model("three", 1) }]), one),
        (Backtest { to: Timestamp(at(FROM)), ..plain() }, one),
        (Backtest { window_us: Some(2 * CASES * SECOND), ..plain() }, one),
        (Backtest { window_us: Some(1), ..plain() }, one),
        (Backtest { from: Timestamp(at(-9)), to: Timestamp(at(-2)), window_us: None, ..plain() }, one),
        (Backtest { label: "lat".into(), ..plain() }, one),
        (Backtest { label: "kind".into(), ..plain() }, one),
        (plain(), std::slice::from_ref(&unlabelled)),
        (plain(), std::slice::from_ref(&keyless)),
        (plain(), std::slice::from_ref(&taken)),
        (Backtest { spine_root: "0".repeat(64), ..plain() }, one),
        (Backtest { known_as_of: Some(Timestamp(4_000_000_000_000_000)), ..plain() }, one),
        (Backtest { metrics: metric("label"), ..plain() }, one),
        (Backtest { metrics: metric("sum(nothing)"), ..plain() }, one),
        (Backtest { metrics: vec![BacktestMetric { name: "auc".into(), sql: "sum(label)".into() }], ..plain() }, one),
    ];
    let mut said = String::new();
    for (ask, parts) in cases {
        let error = run(&story.client, ask, parts).await.expect_err("refused");
        said += &format!("{}: {error}\n", error.kind());
    }
    expect![[r##"
        invalid_argument: a backtest takes 1 to 8 model versions, and 0 are named
        invalid_argument: `mlp@1` and `mlp:champion` are the same model version, `mlp@1`; compare different ones
        invalid_argument: model version `bare@1` was registered without a feature service, so nothing says what it reads; register it with --service
        not_found: model `mlp@7` not found in project `default`; its newest version is 1
        not_found: alias `champoin` of model `mlp` not found in project `default`; did you mean `champion`?
        invalid_argument: model `mlp` of a backtest needs a `version` or an `alias`, one of them
        invalid_argument: output `probabilities` of model `three@1` has 3 values a row, and its values are numbered 0 to 2: say which class is the score (`--score probabilities[CLASS]`)
        not_found: model `three@1` has no output `labels`; it has `label`, `probabilities`
        invalid_argument: nothing is from 2024-01-01T00:00:10Z to before 2024-01-01T00:00:10Z; the interval must end after it begins
        invalid_argument: windows of 2000 s do not fit an interval of 1000 s; they are at least 1 µs long and not longer than that
        too_large: 1000000000 windows for 1 models are over the limit of 4000 in all; take longer windows
        invalid_argument: the spine has no row to score from 2023-12-31T23:59:51Z to before 2023-12-31T23:59:58Z: its 1002 rows go from 2024-01-01T00:00:09Z to 2024-01-01T00:16:50Z
        not_found: the spine has no label column `lat`; did you mean `late`?
        invalid_argument: label column `kind` is Utf8; a label is true or false, or a number
        invalid_argument: row 1 of the spine has no label in `late`; leave such rows out with `skip_null_labels` (`--skip-null-labels`)
        invalid_argument: column `case_id` int64 is missing, a join key of entity `case`; needed are `case_id` int64, found `event_timestamp`, `late`
        invalid_argument: the spine has a column `mlp@1`, and the scores of that model go there; rename it
        not_found: artifact `0000000000000000000000000000000000000000000000000000000000000000` is on no node that can be reached; upload it first
        invalid_argument: nothing can be pinned to a moment that has not come yet
        invalid_argument: metric `m`: `label` is not one value for all rows; write a SQL aggregate that gives a number
        invalid_argument: metric `m`: No field named nothing. Valid fields are rows.case_id, rows.event_timestamp, rows.late, rows.kind, rows."#group", rows.label, rows.prediction; write a SQL aggregate that gives a number
        invalid_argument: there is a metric `auc` already; choose another name
    "##]].assert_eq(&said);
    assert_eq!(story.client.backtests(DEFAULT_PROJECT, "", 0, 0).await?.backtests, [], "nothing of it is kept");

    // What is open can be chosen, and rows without a label left out.
    let third = BacktestModel { class: Some("2".into()), ..model("three", 1) };
    let ask = Backtest { models: vec![third], skip_null_labels: true, window_us: None, ..plain() };
    let (made, rows) = run(&story.client, ask, std::slice::from_ref(&unlabelled)).await?;
    assert_eq!((made.rows, made.rows_unlabelled, rows.num_rows()), (1, 1, 1));
    assert_eq!(made.models[0].class, "2");
    let overall = made.models[0].overall.as_ref().ok_or("overall")?;
    assert_eq!((overall.auc, overall.positives), (None, Some(1)), "one class alone has no order");
    let error = story.client.backtest(DEFAULT_PROJECT, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    story.end().await
}
