//! `cairn backtest …`.

use super::support::{Cli, TestResult};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::path::Path;

/// Four trips with features, in two hours of 2024, and one after them.
const SPINE: &str = "\
trip_id,event_timestamp,price,late
a,2024-01-01T01:00:00Z,10.5,1
b,2024-01-01T01:30:00Z,8,0
a,2024-01-01T02:00:00Z,9.25,0
c,2024-01-01T02:10:00Z,7.5,1
a,2024-01-01T03:00:00Z,,
";
const INTERVAL: &str = "--from 2024-01-01T01:00:00Z --to 2024-01-01T03:00:00Z";

/// The executor's golden files, of the checkout that is tested: this may have been compiled in another one.
fn golden(file: &str) -> std::path::PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).join("../node/executor/tests/golden").join(file)
}

/// Two versions of a price, and a classifier whose answer has a label and two probabilities, all of the same twelve numbers.
async fn fares() -> TestResult<Cli> {
    let cli = Cli::start().await?;
    let features: Vec<String> = (0..12).map(|at| format!("{{name: f{at}, type: float32}}")).collect();
    cli.write(
        "fares.yaml",
        format!(
            "kind: Entity\nname: trip\nspec: {{join_keys: [{{name: trip_id, type: string}}]}}\n---\n\
             kind: FeatureView\nname: trips\nspec: {{entities: [trip], features: [{}]}}\n---\n\
             kind: FeatureService\nname: fare\nspec: {{features: [trips]}}\n",
            features.join(", ")
        ),
    )?;
    assert_eq!(cli.run("apply -f fares.yaml").await?.code, Some(0));
    let names: Vec<String> = (0..12).map(|at| format!("f{at}")).collect();
    let row = |trip: &str, value: &str| format!("{trip},2024-01-01T00:00:10Z,{}\n", [value; 12].join(","));
    let rows = [row("a", "1"), row("b", "0.5"), row("c", "-1")].concat();
    cli.write("trips.csv", format!("trip_id,event_timestamp,{}\n{rows}", names.join(",")))?;
    assert_eq!(cli.run("ingest trips trips.csv").await?.code, Some(0));
    std::fs::copy(golden("linear_regression.onnx"), cli.folder().join("fare.onnx"))?;
    std::fs::copy(golden("xgboost_classifier.onnx"), cli.folder().join("late.onnx"))?;
    for (model, file) in [("fare", "fare.onnx"), ("fare", "fare.onnx"), ("late", "late.onnx")] {
        assert_eq!(cli.run(&format!("model register {model} {file} --service fare")).await?.code, Some(0));
    }
    assert_eq!(cli.run("model promote fare 1 --alias champion").await?.code, Some(0));
    cli.write("spine.csv", SPINE)?;
    Ok(cli)
}

/// As [`Cli::check`], without the number, and without the digest of the scores: it holds every bit of them, and processors
/// round differently.
async fn check(cli: &Cli, line: &str, expected: Expect) -> TestResult {
    let said = cli.run(line).await?;
    let text: String = cli.steady(&said.transcript());
    let steady = |line: &str| match line.split_once(": ") {
        _ if line.starts_with("  content ") => "  content      BLAKE3 …\n".to_owned(),
        Some((id, rest)) if id.starts_with("backtest ") => format!("backtest N: {rest}\n"),
        _ => format!("{line}\n"),
    };
    expected.assert_eq(&text.lines().map(steady).collect::<String>());
    Ok(())
}

#[tokio::test]
async fn versions_are_compared_by_window_drawn_and_shown_again() -> TestResult {
    let cli = fares().await?;
    let run = format!(
        "backtest spine.csv --models fare:champion,fare@2 {INTERVAL} --window 1h --label price \
         --metric mae=avg(abs(label-prediction)) --plot prices.svg -o scored.csv --description autumn"
    );
    check(
        &cli,
        &run,
        expect![[r#"
        backtest N: 4 rows in 2 windows
          models       fare@1 (champion): variable of fare@1, fare@2: variable of fare@1
          interval     2024-01-01T01:00:00Z to 2024-01-01T03:00:00Z, windows of 1 h
          label        price
          left out     1 row outside of the interval
          spine        spine.csv, artifact c0aeea7b530f7bba1735bf89da078ff89dd6c74fb613cd360dc92afc19b491c0
          known as of  NOW
          content      BLAKE3 …
          run          NOW
          by           ada
          about        autumn

        WINDOW                ROWS  MODEL     RMSE     BIAS     MAE
        2024-01-01T01:00:00Z     2  fare@1  7.3038  -7.1960  7.1960
                                    fare@2  7.3038  -7.1960  7.1960
        2024-01-01T02:00:00Z     2  fare@1  8.1709  -8.1187  8.1187
                                    fare@2  8.1709  -8.1187  8.1187
        all                      4  fare@1  7.7495  -7.6574  7.6574
                                    fare@2  7.7495  -7.6574  7.6574

        drawn in `prices.svg`
        4 rows with their scores in `scored.csv`
        … s, … rows/s, token TOKEN
    "#]],
    )
    .await?;
    let svg = std::fs::read_to_string(cli.folder().join("prices.svg"))?;
    assert!(svg.contains("rmse of `price` by windows of 1 h") && svg.contains("fare@2 (all: "), "{svg}");
    let scored = std::fs::read_to_string(cli.folder().join("scored.csv"))?;
    let lines: Vec<_> = scored.lines().collect();
    assert_eq!((lines[0], lines.len()), ("trip_id,event_timestamp,price,late,fare@1,fare@2", 5), "{scored}");
    assert!(lines[1].starts_with("a,2024-01-01T01:00:00Z,10.5,1,"), "{scored}");

    let list: Value = serde_json::from_str(&cli.run("backtest list --output json").await?.out)?;
    let id = list["backtests"][0]["backtest"].as_u64().ok_or("an id")?;
    let shown = cli.run(&format!("backtest show {id} --plot mae.svg --plot-metric mae")).await?;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.contains("drawn in `mae.svg`") && shown.out.contains("MAE"), "{shown:?}");
    assert!(std::fs::read_to_string(cli.folder().join("mae.svg"))?.contains("mae of `price`"));
    for (what, expected) in [("fare@1", 1), ("fare:champion", 1), ("fare", 1), ("late", 0)] {
        let list: Value = serde_json::from_str(&cli.run(&format!("backtest list {what} --output json")).await?.out)?;
        assert_eq!(list["backtests"].as_array().map(Vec::len), Some(expected), "{what}");
    }
    let model = cli.run("model show fare@2").await?.out;
    assert!(
        model.contains(&format!("  backtest     {id}: price, ")) && model.contains("beside fare@1 (rmse "),
        "{model}"
    );
    let model: Value = serde_json::from_str(&cli.run("model show fare@2 --output json").await?.out)?;
    assert_eq!(model["backtests"], json!([id]));
    let lineage = cli.run(&format!("lineage backtest:default/{id}")).await?;
    assert_eq!(lineage.code, Some(0), "{lineage:?}");
    cli.end().await
}

#[tokio::test]
async fn programs_get_stable_fields_and_the_same_numbers_at_the_same_moment() -> TestResult {
    let cli = fares().await?;
    let run = format!("backtest spine.csv --models late@1,fare@1 {INTERVAL} --label late --output json");
    let first: Value = serde_json::from_str(&cli.run(&run).await?.out)?;
    let keys = |value: &Value| value.as_object().map(|it| it.keys().cloned().collect::<Vec<_>>().join(" "));
    expect!["author backtest content created description event_timestamp from known_as_of label metrics models out plot rows rows_outside rows_unlabelled seconds skip_null_labels spine_bytes spine_file spine_root to token window_us"].assert_eq(&keys(&first).ok_or("an object")?);
    expect!["alias class feature_service feature_service_version model output overall version windows"]
        .assert_eq(&keys(&first["models"][0]).ok_or("an object")?);
    expect!["auc bias calibration_error from log_loss metrics positives rmse rows rows_without_score to"]
        .assert_eq(&keys(&first["models"][0]["overall"]).ok_or("an object")?);
    let (late, fare) = (&first["models"][0], &first["models"][1]);
    assert_eq!((&late["output"], &late["class"]), (&json!("probabilities"), &json!("1")));
    assert!(late["overall"]["log_loss"].is_f64() && late["overall"]["auc"].is_f64(), "{late}");
    assert!(
        fare["overall"]["log_loss"].is_null() && fare["overall"]["auc"].is_f64(),
        "a price is no probability: {fare}"
    );
    assert_eq!((&first["rows"], &first["rows_outside"]), (&json!(4), &json!(1)));

    // Late rows change what is known now, and not what was known then.
    let names: Vec<String> = (0..12).map(|at| format!("f{at}")).collect();
    cli.write(
        "more.csv",
        format!("trip_id,event_timestamp,{}\na,2024-01-01T00:30:00Z,{}\n", names.join(","), ["-2"; 12].join(",")),
    )?;
    assert_eq!(cli.run("ingest trips more.csv").await?.code, Some(0));
    let moment = first["known_as_of"].as_str().ok_or("a moment")?;
    let then: Value = serde_json::from_str(&cli.run(&format!("{run} --known-as-of {moment}")).await?.out)?;
    assert_eq!((&then["content"], &then["models"]), (&first["content"], &first["models"]));
    let now: Value = serde_json::from_str(&cli.run(&run).await?.out)?;
    assert_ne!(now["content"], first["content"]);
    cli.end().await
}

#[tokio::test]
async fn wrong_backtests_are_told_how_to_be_right() -> TestResult {
    let cli = fares().await?;
    let run = |rest: &str| format!("backtest spine.csv --models fare@1 {INTERVAL} {rest}");
    let mut said = String::new();
    for line in [
        run("--label prise"),
        run("--label trip_id"),
        run("--label price --window 3h"),
        run("--label price --plot prices.png"),
        run("--label price --plot-metric auc"),
        run("--label price --score fare@2=variable"),
        run("--label price --score variable[1]"),
        run("--label price --metric mae=price"),
        run("--label price -o x.txt"),
        run("--label price").replace("fare@1", "fare"),
        run("--label price").replace("fare@1", "fare@1,fare:champion"),
        run("--label price").replace("fare@1", "far@1"),
        run("--label price").replace("03:00:00Z", "04:00:00Z"),
        run("--label price").replace("spine.csv", "nowhere.csv"),
        "backtest spine.csv --models fare@1 --from 2020-01-01 --to 2021-01-01 --label price".to_owned(),
        "backtest show 1".to_owned(),
        "backtest spine.csv list".to_owned(),
    ] {
        let one = cli.run(&line).await?;
        said += &format!("{}{}", cli.steady(&one.transcript()), if one.code == Some(0) { "done\n" } else { "" });
    }
    expect![r#"
        ! error: the spine has no label column `prise`; did you mean `price`?
        exit 3
        ! error: label column `trip_id` is Utf8; a label is true or false, or a number
        exit 2
        ! error: windows of 10800 s do not fit an interval of 7200 s; they are at least 1 µs long and not longer than that
        exit 2
        ! error: prices.png: a plot is SVG; the name must end in .svg
        exit 2
        ! error: --plot-metric needs --plot FILE.svg
        exit 2
        ! error: --score speaks of a model that --models does not name: `variable`
        exit 2
        ! error: output `variable` of model `fare@1` is one number a row, so it has no class `1`
        exit 3
        ! error: metric `mae`: `price` is not one value for all rows; write a SQL aggregate that gives a number
        exit 2
        ! error: x.txt: the name must end in .parquet or .csv
        exit 2
        ! error: which version of `fare`? write `fare@1` or `fare:champion`
        exit 2
        ! error: `fare@1` and `fare:champion` are the same model version, `fare@1`; compare different ones
        exit 2
        ! error: model `far` not found in project `default`; did you mean `fare`?
        exit 3
        ! error: row 4 of the spine has no label in `price`; leave such rows out with `skip_null_labels` (`--skip-null-labels`)
        exit 2
        ! error: nowhere.csv: No such file or directory (os error 2)
        exit 2
        ! error: the spine has no row to score from 2020-01-01T00:00:00Z to before 2021-01-01T00:00:00Z: its 5 rows go from 2024-01-01T01:00:00Z to 2024-01-01T03:00:00Z
        exit 2
        ! error: backtest 1 not found in project `default`; `cairn backtest list` tells which there are
        exit 3
        ! error: run a backtest, or list and show those there are: not both in one command
        exit 2
    "#].assert_eq(&said);
    let list: Value = serde_json::from_str(&cli.run("backtest list --output json").await?.out)?;
    assert_eq!(list, json!({"backtests": [], "more": false}), "nothing of it is kept");
    cli.end().await
}
