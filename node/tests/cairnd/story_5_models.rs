//! Story 5: a CI pipeline registers models and promotes them; a service sends entity keys and gets predictions, from
//! whatever version is promoted then.

use crate::support::models::{
    flights, flights_story, golden, golden_model, matrix, numbers, register, registration, trips,
};
use crate::support::rows::{at, batch, floats32, ints, only, times};
use crate::support::{Story, TestResult, http, service};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use bytes::Bytes;
use cairn_client::artifacts::hash_file;
use cairn_client::command::Predict;
use cairn_client::registry::{Direction, Expected, Promotion, VersionOf};
use cairn_client::{DEFAULT_PROJECT, ErrorKind, Timestamp, read};
use expect_test::{expect, expect_file};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// onnxruntime and burn round in different places.
const TOLERANCE: f64 = 1e-5;

fn predict() -> Predict {
    Predict { read: read::linearizable(), ..read::predict(DEFAULT_PROJECT) }
}

fn promotion<'a>(model: &'a str, version: u32, expected: Expected, reason: &'a str) -> Promotion<'a> {
    Promotion { project: DEFAULT_PROJECT, model, alias: "champion", version, expected, author: "ci", reason }
}

#[tokio::test]
async fn keys_in_give_the_predictions_that_onnxruntime_gives() -> TestResult {
    let story = Story::one_node().await?;
    for (model, input, output) in [("mlp", "x", "probability"), ("xgboost_classifier", "features", "probabilities")] {
        let inputs = golden_model(&story, model, input).await?;
        let expected = matrix(model, "outputs", output)?.concat();
        let keys = batch(&[("case_id", ints(0..inputs.len() as i64))]);
        let ask = Predict { deployment: Some(model.into()), ..predict() };
        let (answer, read) = story.client.predict(ask.clone()).read(&keys).await?;
        let found = numbers(answer.column_by_name(output).ok_or("the model's output")?)?;
        assert_eq!(found.len(), expected.len());
        for (at, (found, expected)) in found.iter().zip(expected.iter().map(|value| f64::from(*value))).enumerate() {
            let close = (found - expected).abs() <= TOLERANCE * expected.abs().max(TOLERANCE);
            assert!(close, "{model}, value {at}: {found} here, {expected} by onnxruntime");
        }
        let served = read.model.ok_or("which model answered")?;
        assert_eq!((served.model.as_str(), served.version, served.arm.as_str()), (model, 1, "champion"));
        assert_eq!((served.feature_service.as_str(), served.feature_service_version), (model, 1));

        // What the model saw is what a read gives, bit for bit, and the numbers that went in.
        let ask = Predict { features: true, ..ask };
        let (explained, _) = story.client.predict(ask).read(&keys).await?;
        let features = story.online(service(model), &keys).await?;
        for (at, field) in features.schema_ref().fields().iter().enumerate().skip(1) {
            assert_eq!(explained.column_by_name(field.name()), Some(features.column(at)), "{}", field.name());
            let column = features.column(at).as_primitive::<Float32Type>();
            for (row, input) in inputs.iter().enumerate() {
                assert_eq!(column.value(row).to_bits(), input[at - 1].to_bits(), "{}, row {row}", field.name());
            }
        }
        assert_eq!(explained.column_by_name(output), answer.column_by_name(output));
    }
    story.end().await
}

#[tokio::test]
async fn a_version_never_changes_and_a_repeated_request_makes_no_second_one() -> TestResult {
    let story = flights_story().await?;
    let file = flights("models/delay_mlp.onnx");
    let bytes = std::fs::read(&file)?;
    let artifact = story.client.upload_file(&file, None).await?;
    assert_eq!((artifact.root.clone(), artifact.size), hash_file(&file)?);
    assert!(artifact.bytes_stored > 0);
    let mut ask = registration("flight_delay", &file, &artifact, "flight_delay");
    ask.metrics.insert("auc".into(), 0.75);
    ask.tags.insert("stage".into(), "test".into());
    ask.code_commit = "0123abc".into();
    ask.author = "ci".into();
    ask.request_id = "build-17".into();
    let first = story.client.register_model(ask.clone()).await?;
    assert_eq!((first.version, first.feature_service_version), (1, 1));
    assert_eq!((first.metrics["auc"], first.artifact_root.as_str()), (0.75, artifact.root.as_str()));
    assert!(!first.inputs.is_empty() && !first.outputs.is_empty() && first.created_us > 0, "{first:?}");

    // The same request again, a lost answer say, even with other metrics by mistake.
    let mut again = ask.clone();
    again.metrics.insert("auc".into(), 0.99);
    assert_eq!(story.client.register_model(again).await?, first);

    // A new request with the same file is a new version; its bytes are not stored twice.
    let second_upload = story.client.upload_file(&file, None).await?;
    assert_eq!((second_upload.bytes_stored, &second_upload.root), (0, &artifact.root));
    ask.request_id = "build-18".into();
    let second = story.client.register_model(ask).await?;
    assert_eq!((second.version, &second.artifact_root), (2, &first.artifact_root));

    let found = story.client.model_version(DEFAULT_PROJECT, "flight_delay", &VersionOf::Number(1)).await?;
    assert_eq!(found, first);
    let model = story.client.model(DEFAULT_PROJECT, "flight_delay").await?;
    assert_eq!(model.versions, [first.clone(), second]);

    // What is downloaded is what was uploaded.
    let copy = story.folder().join("copy.onnx");
    assert_eq!(story.client.download_file(&first.artifact_root, &copy, None).await?, bytes.len() as u64);
    assert_eq!(std::fs::read(&copy)?, bytes);
    let missing = story.client.download_file(&"0".repeat(64), &copy, None).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    story.end().await
}

#[tokio::test]
async fn a_file_that_is_no_model_or_does_not_fit_makes_no_version() -> TestResult {
    let story = flights_story().await?;
    let good = std::fs::read(flights("models/delay_mlp.onnx"))?;
    let mlp = std::fs::read(golden("mlp.onnx"))?;
    let cases = [
        ("garbage.onnx", b"these bytes are no model".to_vec()),
        ("cut.onnx", good[..good.len() / 2].to_vec()),
        ("empty.onnx", Vec::new()),
        // Twenty numbers where the service has twenty-nine.
        ("other.onnx", mlp),
    ];
    let mut said = String::new();
    for (name, bytes) in cases {
        let artifact = story.client.upload_bytes(Bytes::from(bytes)).await?;
        let ask = registration("flight_delay", Path::new(name), &artifact, "flight_delay");
        let error = story.client.register_model(ask).await.unwrap_err();
        said += &format!("{}: {error}\n", error.kind());
    }
    let mut ask = registration("flight_delay", Path::new("x.onnx"), &Default::default(), "");
    for root in ["abc".to_owned(), "0".repeat(64)] {
        ask.artifact_root = root;
        let error = story.client.register_model(ask.clone()).await.unwrap_err();
        said += &format!("{}: {error}\n", error.kind());
    }
    let artifact = story.client.upload_bytes(Bytes::from(good)).await?;
    let ask = registration("flight_delay", Path::new("good.onnx"), &artifact, "flight_dely");
    let error = story.client.register_model(ask).await.unwrap_err();
    said += &format!("{}: {error}\n", error.kind());
    expect![[r#"
        invalid_argument: `garbage.onnx`: the model is not valid: protobuf: wire type 4 does not exist: it is not ONNX
        invalid_argument: `cut.onnx`: the model is not valid: protobuf: the file ends inside a field: it is cut off, or not ONNX
        invalid_argument: `empty.onnx`: the model is not valid: file: it is empty
        invalid_argument: `other.onnx` does not fit feature service `flight_delay@1`: the model's input `x` takes 20 features, and the batch has 29 in 29 columns
        invalid_argument: `abc` is not a BLAKE3 root (64 hexadecimal digits)
        not_found: artifact `0000000000000000000000000000000000000000000000000000000000000000` is on no node that can be reached; upload it first
        not_found: feature service `flight_dely` not found in project `default`; did you mean `flight_delay`?
    "#]].assert_eq(&said);
    assert!(story.client.model(DEFAULT_PROJECT, "flight_delay").await?.versions.is_empty());
    story.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_moves_only_from_where_it_is_expected() -> TestResult {
    let story = flights_story().await?;
    let client = &story.client;
    for _ in 0..3 {
        register(&story, "flight_delay", &flights("models/delay_mlp.onnx"), "flight_delay").await?;
    }
    let mut said = String::new();
    let moves = [
        (1, Expected::None, "the first"),
        (2, Expected::None, "it is there already"),
        (2, Expected::Version(3), "it points elsewhere"),
        (2, Expected::Version(1), "better"),
        (9, Expected::Anything, "there is no such version"),
        (3, Expected::Anything, "whatever"),
        (0, Expected::Version(3), "gone"),
    ];
    for (version, expected, reason) in moves {
        said += &match client.promote(&promotion("flight_delay", version, expected, reason)).await {
            Ok(moved) => format!("{reason}: {} → {}\n", moved.from_version, moved.to_version),
            Err(error) => format!("{reason}: {}: {error}\n", error.kind()),
        };
    }
    expect![[r#"
        the first: 0 → 1
        it is there already: conflict: alias `champion` of model `flight_delay` is at version 1, and the move expects it not to be set; look at it again and decide again
        it points elsewhere: conflict: alias `champion` of model `flight_delay` is at version 1, and the move expects it at version 3; look at it again and decide again
        better: 1 → 2
        there is no such version: not_found: model `flight_delay@9` not found in project `default`; its newest version is 3
        whatever: 2 → 3
        gone: 3 → 0
    "#]].assert_eq(&said);

    let history = client.alias_history(DEFAULT_PROJECT, "flight_delay").await?;
    let told: Vec<_> =
        history.iter().map(|it| (it.alias.as_str(), it.from_version, it.to_version, it.reason.as_str())).collect();
    let champion = "champion";
    assert_eq!(
        told,
        [
            (champion, 0, 1, "the first"),
            (champion, 1, 2, "better"),
            (champion, 2, 3, "whatever"),
            (champion, 3, 0, "gone")
        ]
    );
    assert!(history.is_sorted_by_key(|it| it.moved_us) && history.iter().all(|it| it.author == "ci"));

    // Two pipelines at once: one wins, the others are told where it stands now.
    client.promote(&promotion("flight_delay", 1, Expected::None, "start")).await?;
    let race = (0..8).map(|_| async {
        let ask = promotion("flight_delay", 2, Expected::Version(1), "race");
        client.promote(&ask).await.map_err(|error| error.kind())
    });
    let outcomes = futures::future::join_all(race).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Err(kind) if *kind != ErrorKind::Conflict)));
    let aliased = client.model_version(DEFAULT_PROJECT, "flight_delay", &VersionOf::Alias("champion".into())).await?;
    assert_eq!((aliased.version, aliased.aliases.as_slice()), (2, &["champion".to_owned()][..]));
    story.end().await
}

/// The probability of being late.
async fn late(story: &Story, ask: Predict) -> TestResult<(u32, Vec<f64>)> {
    let (answer, read) = story.client.predict(ask).read(&trips()).await?;
    Ok((read.model.ok_or("which model answered")?.version, probabilities(&answer)?))
}

fn probabilities(answer: &RecordBatch) -> TestResult<Vec<f64>> {
    let all = numbers(answer.columns().last().ok_or("an output")?)?;
    // Where a model gives both, that of being on time stands first.
    let width = all.len() / answer.num_rows();
    Ok(all.chunks(width).map(|row| row[width - 1]).collect())
}

#[tokio::test]
async fn promotion_changes_who_answers_the_next_request() -> TestResult {
    let story = flights_story().await?;
    let deployed = || Predict { deployment: Some("flight_delay".into()), ..predict() };
    let version = |number| Predict { model: Some("flight_delay".into()), version: Some(number), ..predict() };
    let error = story.client.predict(deployed()).read(&trips()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    register(&story, "flight_delay", &flights("models/delay_mlp.onnx"), "flight_delay").await?;
    register(&story, "flight_delay", &flights("models/delay_trees.onnx"), "flight_delay").await?;
    let error = story.client.predict(deployed()).read(&trips()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(
        error.to_string().contains("deployment `flight_delay`") && error.to_string().contains("champion"),
        "{error}"
    );

    let (mlp, trees) = (late(&story, version(1)).await?, late(&story, version(2)).await?);
    assert!(mlp.1.iter().chain(&trees.1).all(|it| (0.0..=1.0).contains(it)), "{mlp:?} {trees:?}");
    assert_ne!(mlp.1, trees.1);
    for (to, expected, answer) in
        [(1, Expected::None, &mlp), (2, Expected::Version(1), &trees), (1, Expected::Version(2), &mlp)]
    {
        story.client.promote(&promotion("flight_delay", to, expected, "")).await?;
        assert_eq!(&late(&story, deployed()).await?, answer);
        let aliased = Predict { model: Some("flight_delay".into()), alias: Some("champion".into()), ..predict() };
        assert_eq!(&late(&story, aliased).await?, answer);
    }

    // On a stream that is open meanwhile, too.
    register(&story, "flight_delay", &flights("models/delay_mlp.onnx"), "flight_delay").await?;
    let mut predictor = story.client.predict(deployed());
    let asked = predictor.read(&trips()).await?;
    story.client.promote(&promotion("flight_delay", 3, Expected::Version(1), "")).await?;
    let asked_again = predictor.read(&trips()).await?;
    assert_eq!(asked.0, asked_again.0);
    assert_eq!([asked.1, asked_again.1].map(|read| read.model.map(|it| it.version)), [Some(1), Some(3)]);
    drop(predictor);

    // A version that was registered is what it was, whatever happened to its service since.
    let edges = story.client.lineage(DEFAULT_PROJECT, "model_version:default/flight_delay@2", Direction::Up, 0).await?;
    let nodes: BTreeSet<&str> = edges.iter().flat_map(|edge| [edge.from.as_str(), edge.to.as_str()]).collect();
    assert!(nodes.contains("feature_view:default/weather@1"), "{nodes:?}");
    let changed =
        std::fs::read_to_string(flights("definitions/flight_delay.yaml"))?.replace("    - weather:visib\n", "");
    story.apply(&changed).await?;
    assert_eq!(late(&story, version(2)).await?, trees);
    story.end().await
}

/// A tensor of an inference request.
fn tensor(rows: &RecordBatch, name: &str, datatype: &str) -> TestResult<Value> {
    let column = rows.column_by_name(name).ok_or("a column")?;
    let data: Vec<Value> = match datatype {
        "BYTES" => column.as_string::<i32>().iter().map(|value| json!(value)).collect(),
        _ => numbers(column)?.into_iter().map(|value| json!(value)).collect(),
    };
    Ok(json!({"name": name, "datatype": datatype, "shape": [data.len()], "data": data}))
}

#[tokio::test]
async fn every_way_to_ask_for_a_prediction_gives_the_same_numbers() -> TestResult {
    let story = flights_story().await?;
    register(&story, "flight_delay", &flights("models/delay_mlp.onnx"), "flight_delay").await?;
    story.client.promote(&promotion("flight_delay", 1, Expected::None, "")).await?;
    let address = story.cluster.nodes()[0].address.clone();
    let as_of = "2024-01-01T00:01:00Z";
    let rows = trips();
    let words = ["carrier", "origin", "dest", "tailnum"];
    let measures = ["distance", "scheduled_minutes", "local_hour", "weekday"];
    let deployed =
        Predict { deployment: Some("flight_delay".into()), as_of: Some(Timestamp::parse(as_of)?), ..predict() };

    let keys = only(&rows, &[words, measures].concat());
    let (exchanged, read) = story.client.predict(deployed.clone()).read(&keys).await?;
    let expected = numbers(exchanged.columns().last().ok_or("an output")?)?;
    // Each row about its own moment, which is the same for all of them here.
    let by_row = story.client.predict(Predict { as_of: None, ..deployed.clone() }).read(&rows).await?.0;
    assert_eq!(by_row, exchanged);
    // One shot, keys in JSON.
    let mut entities = serde_json::Map::new();
    for (name, datatype) in words.map(|name| (name, "BYTES")).into_iter().chain(measures.map(|name| (name, "FP64"))) {
        entities.insert(name.into(), tensor(&rows, name, datatype)?["data"].clone());
    }
    let ask = Predict { entities: Some(entities), ..deployed };
    assert_eq!(story.client.get_predictions(ask).await?.0, exchanged);
    // The Open Inference Protocol, of the deployment and of the version.
    let mut inputs = Vec::new();
    for (name, datatype) in words.map(|name| (name, "BYTES")).into_iter().chain(measures.map(|name| (name, "FP64"))) {
        inputs.push(tensor(&rows, name, datatype)?);
    }
    let body = json!({"id": "q1", "parameters": {"as_of": as_of}, "inputs": inputs}).to_string();
    for path in ["/v2/models/flight_delay/infer", "/v2/models/flight_delay/versions/1/infer"] {
        let answer = http::post(&address, path, &body)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json()?;
        assert_eq!((&answer["id"], &answer["model_version"]), (&json!("q1"), &json!("1")));
        let output = answer["outputs"].as_array().and_then(|outputs| outputs.last()).ok_or("an output")?;
        assert_eq!(output["datatype"], "FP32");
        let found: Vec<f32> = serde_json::from_value(output["data"].clone())?;
        assert_eq!(found.into_iter().map(f64::from).collect::<Vec<_>>(), expected);
        let root = read.model.as_ref().map(|it| it.artifact_root.as_str());
        assert_eq!(answer["parameters"]["model_root"].as_str(), root);
    }

    // A moment for each row goes there too, as text.
    inputs.push(json!({"name": "event_timestamp", "datatype": "BYTES", "shape": [5], "data": vec![as_of; 5]}));
    let body = json!({"inputs": inputs}).to_string();
    let answer = http::post(&address, "/v2/models/flight_delay/infer", &body)?.json()?;
    let output = answer["outputs"].as_array().and_then(|outputs| outputs.last()).ok_or("an output")?;
    let found: Vec<f32> = serde_json::from_value(output["data"].clone())?;
    assert_eq!(found.into_iter().map(f64::from).collect::<Vec<_>>(), expected);

    // What the model is, before it is asked anything.
    let about = http::get(&address, "/v2/models/flight_delay")?.json()?;
    assert_eq!((&about["name"], &about["versions"]), (&json!("flight_delay"), &json!(["1"])));
    let names: Vec<&str> =
        about["inputs"].as_array().into_iter().flatten().filter_map(|input| input["name"].as_str()).collect();
    assert!(words.iter().chain(&measures).all(|name| names.contains(name)), "{names:?}");
    assert_eq!(http::get(&address, "/v2")?.json()?["name"], "cairn");
    for (path, status) in [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/flight_delay/ready", 200),
        ("/v2/models/flight_delay/versions/2/ready", 404),
        ("/v2/models/other", 404),
        ("/v2/nothing", 404),
    ] {
        assert_eq!(http::get(&address, path)?.status, status, "{path}");
    }
    let refused = http::post(&address, "/v2/models/flight_delay/infer", r#"{"inputs": []}"#)?;
    assert_eq!((refused.status, &refused.json()?["kind"]), (400, &json!("invalid_argument")));
    story.end().await
}

/// Feast's clients read this answer: its names, nesting and order are theirs.
#[tokio::test]
async fn curl_gets_features_in_the_shape_of_feast() -> TestResult {
    let story = Story::one_node().await?;
    let address = story.cluster.nodes()[0].address.clone();
    story
        .apply(
            r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: hourly
spec:
  entities: [driver]
  features: [{name: conv_rate, type: float32}, {name: trips, type: int32}, {name: city, type: string}]
---
kind: OnDemandFeatureView
name: scaled
spec:
  sources: ["hourly:trips"]
  request_data: [{name: factor, type: int64}]
  features: [{name: trips_scaled, type: int64, sql: "trips * factor"}]
---
kind: FeatureService
name: activity
spec: {features: ["hourly:conv_rate", "hourly:city", scaled]}
"#,
        )
        .await?;
    let rows = batch(&[
        ("driver_id", ints([1001, 1002])),
        ("event_timestamp", times([at(0), at(1) + 250_000])),
        ("conv_rate", floats32([Some(0.85), None])),
        ("trips", crate::support::rows::ints32([832, 17])),
        ("city", crate::support::rows::texts(["Zürich", "Basel"])),
    ]);
    story.store("hourly", rows).await?;
    let pretty = |answer: http::Answer| -> TestResult<String> {
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(serde_json::to_string_pretty(&answer.json()?)? + "\n")
    };
    let body = json!({
        "feature_service": "activity",
        "entities": {"driver_id": [1001, 1002, 99], "factor": [2, 3, 4]},
        "read": {"level": "linearizable"},
    });
    let answer = pretty(http::post(&address, "/get-online-features", &body.to_string())?)?;
    expect_file!["golden/get_online_features.json"].assert_eq(&answer);

    let body = json!({
        "features": ["hourly:trips", "hourly:conv_rate"],
        "entities": {"driver_id": [1001]},
        "full_feature_names": true,
        "include_feature_view_version_metadata": true,
        "read": {"level": "linearizable"},
    });
    let answer = pretty(http::post(&address, "/get-online-features", &body.to_string())?)?;
    expect_file!["golden/get_online_features_full_names.json"].assert_eq(&answer);

    for (body, status) in [
        (json!({"feature_service": "nothing", "entities": {"driver_id": [1]}}), 404),
        (json!({"features": ["hourly:nothing"], "entities": {"driver_id": [1]}}), 404),
        (json!({"features": ["hourly:trips"], "entities": {"driver": [1]}}), 400),
        (json!({"entities": {"driver_id": [1]}}), 400),
        // Each row about its own moment: not in this shape. Until that was refused, features came under wrong names.
        (json!({"features": ["hourly:trips"], "entities": {"driver_id": [1], "event_timestamp": [0]}}), 400),
    ] {
        let answer = http::post(&address, "/get-online-features", &body.to_string())?;
        assert_eq!(answer.status, status, "{body} {answer:?}");
        assert!(answer.json()?["error"].is_string(), "{answer:?}");
    }
    assert_eq!(http::post(&address, "/get-online-features", "{")?.status, 400);
    story.end().await
}
