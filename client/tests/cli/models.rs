//! `cairn model …`, `cairn predict`, `cairn lineage`.

use super::support::{Cli, TestResult};
use expect_test::expect;
use std::path::Path;

/// The executor's golden files, of the checkout that is tested: this may have been compiled in another one.
fn golden(file: &str) -> std::path::PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).join("../node/executor/tests/golden").join(file)
}

/// A node with a service of twelve features, a row of them, and `fare.onnx`, which reads twelve numbers.
async fn fares() -> TestResult<Cli> {
    let cli = Cli::start().await?;
    let features: Vec<String> = (0..12).map(|at| format!("{{name: f{at}, type: float32}}")).collect();
    cli.write(
        "fares.yaml",
        format!(
            "kind: Entity\nname: trip\nspec: {{join_keys: [{{name: trip_id, type: string}}]}}\n---\n\
             kind: FeatureView\nname: trips\nspec: {{entities: [trip], features: [{}]}}\n---\n\
             kind: FeatureService\nname: fare\nspec: {{features: [trips]}}\n---\n\
             kind: Model\nname: fare\nspec: {{feature_service: fare, description: what a trip costs}}\n---\n\
             kind: Deployment\nname: fare\nspec: {{model: fare, champion: {{alias: champion}}}}\n",
            features.join(", ")
        ),
    )?;
    assert_eq!(cli.run("apply -f fares.yaml").await?.code, Some(0));
    let names: Vec<String> = (0..12).map(|at| format!("f{at}")).collect();
    let ones = ["1"; 12].join(",");
    cli.write("trips.csv", format!("trip_id,event_timestamp,{}\na,2024-01-01T00:00:10Z,{ones}\n", names.join(",")))?;
    assert_eq!(cli.run("ingest trips trips.csv").await?.code, Some(0));
    std::fs::copy(golden("linear_regression.onnx"), cli.folder().join("fare.onnx"))?;
    Ok(cli)
}

#[tokio::test]
async fn models_are_registered_promoted_and_fetched() -> TestResult {
    let cli = fares().await?;
    cli.check(
        "model list",
        expect![[r#"
        MODEL  NEWEST  ALIASES  SERVICE  REGISTERED
        fare                    fare
    "#]],
    )
    .await?;
    cli.check(
        "model show fare",
        expect![[r#"
        fare
          description  what a trip costs
          no versions yet; `cairn model register fare FILE.onnx` makes the first
    "#]],
    )
    .await?;
    let register = "model register fare fare.onnx --metric rmse=0.25 --metric r2=0.5 --tag team=ops --run nightly-3";
    cli.check(
        register,
        expect![[r#"
        registered fare@1: 367 B, 367 B of it new
          artifact     08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84
          sha256       855eee8162518184a97f7acd55f8aa94430af9eae6038b3b334f9d26eade1088
          file         fare.onnx (onnx, 367 B)
          inputs       X FP32[?,12]
          outputs      variable FP32[?,1]
          service      fare@1
          token        TOKEN
          metrics      r2=0.5, rmse=0.25
          tags         team=ops
          run          nightly-3
          registered   NOW
          by           ada
    "#]],
    )
    .await?;
    cli.check_json(
        &format!("{register} --description again"),
        expect![[r#"
        {
          "aliases": [],
          "artifact_bytes": 367,
          "artifact_root": "08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84",
          "artifact_sha256": "855eee8162518184a97f7acd55f8aa94430af9eae6038b3b334f9d26eade1088",
          "author": "ada",
          "bytes_stored": 0,
          "code_commit": "",
          "created": "…",
          "description": "again",
          "feature_service": "fare",
          "feature_service_version": 1,
          "file_name": "fare.onnx",
          "format": "onnx",
          "inputs": [
            {
              "datatype": "FP32",
              "name": "X",
              "shape": [
                -1,
                12
              ]
            }
          ],
          "metrics": {
            "r2": 0.5,
            "rmse": 0.25
          },
          "model": "fare",
          "outputs": [
            {
              "datatype": "FP32",
              "name": "variable",
              "shape": [
                -1,
                1
              ]
            }
          ],
          "project": "default",
          "run": "nightly-3",
          "tags": {
            "team": "ops"
          },
          "token": "…",
          "version": 2
        }
    "#]],
    )
    .await?;
    cli.check(
        "model list",
        expect![[r#"
        MODEL  NEWEST  ALIASES  SERVICE  REGISTERED
        fare        2           fare@1   NOW
    "#]],
    )
    .await?;
    let document: serde_json::Value = serde_json::from_str(&cli.run("model list --output json").await?.out)?;
    assert_eq!(document["models"][0]["versions"][1]["description"], "again");
    cli.check(
        "model show fare",
        expect![[r#"
        fare
          description  what a trip costs

        VERSION  ALIASES  METRICS            SERVICE  ARTIFACT      REGISTERED
              2           r2=0.5, rmse=0.25  fare@1   08bd4457b38a  NOW
              1           r2=0.5, rmse=0.25  fare@1   08bd4457b38a  NOW
    "#]],
    )
    .await?;
    cli.check(
        "model show fare@2",
        expect![[r#"
        fare@2
          description  again
          artifact     08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84
          sha256       855eee8162518184a97f7acd55f8aa94430af9eae6038b3b334f9d26eade1088
          file         fare.onnx (onnx, 367 B)
          inputs       X FP32[?,12]
          outputs      variable FP32[?,1]
          service      fare@1
          token        TOKEN
          metrics      r2=0.5, rmse=0.25
          tags         team=ops
          run          nightly-3
          registered   NOW
          by           ada
    "#]],
    )
    .await?;

    cli.check(
        "model promote fare 1 --alias champion --expect none",
        expect![[r#"
        champion -> fare@1 (new), token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "model promote fare 2 --alias champion --expect none --reason late",
        expect![[r#"
        ! error: alias `champion` of model `fare` is at version 1, and the move expects it not to be set; look at it again and decide again
        ! hint: `cairn model history fare` tells who moved it and why
        exit 4
    "#]],
    )
    .await?;
    cli.check(
        "model promote fare 2 --alias champion --expect 1 --reason better",
        expect![[r#"
        champion -> fare@2 (was fare@1), token TOKEN
    "#]],
    )
    .await?;
    cli.check_json("model promote fare 1 --alias champion --expect 1", expect![[r#"
        {
          "error": {
            "hint": "`cairn model history fare` tells who moved it and why",
            "kind": "conflict",
            "message": "alias `champion` of model `fare` is at version 2, and the move expects it at version 1; look at it again and decide again"
          }
        }
        exit 4
    "#]]).await?;
    cli.check_json(
        "model history fare",
        expect![[r#"
        {
          "model": "fare",
          "moves": [
            {
              "alias": "champion",
              "author": "ada",
              "from_version": 0,
              "moved": "…",
              "reason": "",
              "to_version": 1,
              "token": "…"
            },
            {
              "alias": "champion",
              "author": "ada",
              "from_version": 1,
              "moved": "…",
              "reason": "better",
              "to_version": 2,
              "token": "…"
            }
          ]
        }
    "#]],
    )
    .await?;
    cli.check(
        "model promote fare 3 --alias champion",
        expect![[r#"
        ! error: model `fare@3` not found in project `default`; its newest version is 2
        ! hint: `cairn model list` and `cairn model show NAME` tell what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "model promote fare 0 --alias champion",
        expect![[r#"
        ! error: invalid value '0' for '<VERSION>': 0 is not in 1..=4294967295
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "model promote fair 1 --alias champion",
        expect![[r#"
        ! error: model `fair` not found in project `default`; there is `fare`
        ! hint: `cairn model list` and `cairn model show NAME` tell what there is
        exit 3
    "#]],
    )
    .await?;

    cli.check(
        "model download fare:champion -o got.onnx",
        expect![[r#"
        fare@2 in `got.onnx`: 367 B, verified against 08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84
    "#]],
    )
    .await?;
    assert_eq!(std::fs::read(cli.folder().join("got.onnx"))?, std::fs::read(cli.folder().join("fare.onnx"))?);
    cli.check_json(
        "model download fare@1 -o got.onnx",
        expect![[r#"
        {
          "artifact_root": "08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84",
          "bytes": 367,
          "model": "fare",
          "out": "got.onnx",
          "version": 1
        }
    "#]],
    )
    .await?;
    cli.check(
        "model download fare@1",
        expect![[r#"
        ! error: `fare.onnx` is there already; say where with -o FILE
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "model download fare",
        expect![[r#"
        ! error: which version of `fare`? write `fare@1` or `fare:champion`
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "model download fare:champoin -o got.onnx",
        expect![[r#"
        ! error: alias `champoin` of model `fare` not found in project `default`; did you mean `champion`?
        ! hint: `cairn model list` and `cairn model show NAME` tell what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "model download fare@9 -o got.onnx",
        expect![[r#"
        ! error: model `fare@9` not found in project `default`; its newest version is 2
        ! hint: `cairn model list` and `cairn model show NAME` tell what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "model download fare@1 -o no/such/folder/got.onnx",
        expect![[r#"
        ! error: no/such/folder/got.onnx: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn files_that_are_no_model_are_refused() -> TestResult {
    let cli = fares().await?;
    let fare = std::fs::read(cli.folder().join("fare.onnx"))?;
    cli.write("torn.onnx", &fare[..fare.len() / 2])?;
    cli.check(
        "model register fare torn.onnx",
        expect![[r#"
        ! error: `torn.onnx`: the model is not valid: protobuf: the file ends inside a field: it is cut off, or not ONNX
        exit 2
    "#]],
    )
    .await?;
    cli.write("text.onnx", "not a model at all")?;
    cli.check_json(
        "model register fare text.onnx",
        expect![[r#"
        {
          "error": {
            "hint": null,
            "kind": "invalid_argument",
            "message": "`text.onnx`: the model is not valid: protobuf: wire type 6 does not exist: it is not ONNX"
          }
        }
        exit 2
    "#]],
    )
    .await?;
    cli.write("void.onnx", "")?;
    cli.check(
        "model register fare void.onnx",
        expect![[r#"
        ! error: `void.onnx`: the model is not valid: file: it is empty
        exit 2
    "#]],
    )
    .await?;
    cli.write("fare.pkl", &fare)?;
    cli.check(
        "model register fare fare.pkl",
        expect![[r#"
        registered fare@1: 367 B, 367 B of it new
          artifact     08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84
          sha256       855eee8162518184a97f7acd55f8aa94430af9eae6038b3b334f9d26eade1088
          file         fare.pkl (onnx, 367 B)
          inputs       X FP32[?,12]
          outputs      variable FP32[?,1]
          service      fare@1
          token        TOKEN
          registered   NOW
          by           ada
    "#]],
    )
    .await?;
    cli.check(
        "model register fare nowhere.onnx",
        expect![[r#"
        ! error: nowhere.onnx: No such file or directory (os error 2)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "model register fare fare.onnx --service fair",
        expect![[r#"
        ! error: feature service `fair` not found in project `default`; there is `fare`
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "model register fare fare.onnx --metric auc=high",
        expect![[r#"
        ! error: invalid value 'auc=high' for '--metric <NAME=NUMBER>': `high` is not a finite number
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "model register fare fare.onnx --metric auc=1 --metric auc=2",
        expect![[r#"
        ! error: metric `auc` is given twice
        exit 2
    "#]],
    )
    .await?;
    std::fs::copy(golden("mlp.onnx"), cli.folder().join("wide.onnx"))?;
    cli.check("model register fare wide.onnx", expect![[r#"
        ! error: `wide.onnx` does not fit feature service `fare@1`: the model's input `x` takes 20 features, and the batch has 12 in 12 columns
        exit 2
    "#]]).await?;
    cli.check(
        "model show fare@1",
        expect![[r#"
        fare@1
          artifact     08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84
          sha256       855eee8162518184a97f7acd55f8aa94430af9eae6038b3b334f9d26eade1088
          file         fare.pkl (onnx, 367 B)
          inputs       X FP32[?,12]
          outputs      variable FP32[?,1]
          service      fare@1
          token        TOKEN
          registered   NOW
          by           ada
    "#]],
    )
    .await?;
    cli.end().await
}

#[tokio::test]
async fn predictions_are_asked_for_by_key() -> TestResult {
    let cli = fares().await?;
    cli.check("predict fare --entity trip_id=a", expect![[r#"
        ! error: deployment `fare`: alias `champion` of model `fare` not found in project `default`; point it at a version first (`cairn model promote`)
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]]).await?;
    assert_eq!(cli.run("model register fare fare.onnx").await?.code, Some(0));
    assert_eq!(cli.run("model promote fare 1 --alias champion").await?.code, Some(0));
    cli.check(
        "predict fare --entity trip_id=a,b",
        expect![[r#"
        trip_id    variable
        a         2.0539727
        b        -1.5413504
        answered by fare@1 (champion), features of fare@1, token TOKEN
    "#]],
    )
    .await?;
    cli.check(
        "predict --model fare@1 --entity trip_id=a",
        expect![[r#"
        trip_id   variable
        a        2.0539727
        answered by fare@1 (direct), features of fare@1, token TOKEN
    "#]],
    )
    .await?;
    cli.check_json(
        "predict fare --entity trip_id=a --features",
        expect![[r#"
        {
          "entities": {
            "trip_id": [
              "a"
            ]
          },
          "read": {
            "level": "bounded",
            "model": {
              "arm": "champion",
              "artifact_root": "08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84",
              "feature_service": "fare",
              "feature_service_version": 1,
              "model": "fare",
              "version": 1
            },
            "shards": [
              {
                "applied_index": "…",
                "applied_time": "…",
                "shard": 1
              },
              {
                "applied_index": "…",
                "applied_time": "…",
                "shard": 2
              }
            ],
            "token": "…"
          },
          "rows": [
            {
              "f0": 1.0,
              "f1": 1.0,
              "f10": 1.0,
              "f11": 1.0,
              "f2": 1.0,
              "f3": 1.0,
              "f4": 1.0,
              "f5": 1.0,
              "f6": 1.0,
              "f7": 1.0,
              "f8": 1.0,
              "f9": 1.0,
              "variable": 2.0539727
            }
          ]
        }
    "#]],
    )
    .await?;
    cli.check(
        "predict fair --entity trip_id=a",
        expect![[r#"
        ! error: deployment `fair` not found in project `default`; there is `fare`
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "predict --model fare --entity trip_id=a",
        expect![[r#"
        ! error: which version of `fare`? write `fare@1` or `fare:champion`
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "predict --model fare@2 --entity trip_id=a",
        expect![[r#"
        ! error: model `fare@2` not found in project `default`; its newest version is 1
        ! hint: `cairn definitions` and `cairn model list` show what there is
        exit 3
    "#]],
    )
    .await?;
    cli.check(
        "predict fare --entity id=a",
        expect![[r#"
        ! error: `entities` has no `trip_id` (it has: id)
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "predict fare --model fare@1 --entity trip_id=a",
        expect![[r#"
        ! error: the argument '[DEPLOYMENT]' cannot be used with '--model <NAME@VERSION|NAME:ALIAS>'
        ! 
        ! Usage: cairn predict --entity <KEY=VALUE,…> --node <HOST:PORT> <DEPLOYMENT>
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "predict --entity trip_id=a",
        expect![[r#"
        ! error: the following required arguments were not provided:
        !   <DEPLOYMENT>
        ! 
        ! Usage: cairn predict --entity <KEY=VALUE,…> --node <HOST:PORT> <DEPLOYMENT>
        ! 
        ! For more information, try '--help'.
        exit 2
    "#]],
    )
    .await?;
    cli.check(
        "lineage model_version:default/fare@1",
        expect![[r#"
        model_version:default/fare@1
        ├── artifact:08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84  (artifact_of)
        ├── feature_service:default/fare@1  (trained_on)
        │   └── feature_view:default/trips@1  (reads)
        │       └── entity:default/trip@1  (keys)
        └── feature_view:default/trips@1  (reads)  … as above
    "#]],
    )
    .await?;
    cli.check_json(
        "lineage model_version:default/fare@1",
        expect![[r#"
        {
          "direction": "up",
          "edges": [
            {
              "at": "…",
              "from": "artifact:08bd4457b38a3b13773a87a415310da8e7e2314f880f6e1745ea9e61dd060b84",
              "kind": "artifact_of",
              "to": "model_version:default/fare@1"
            },
            {
              "at": "…",
              "from": "feature_service:default/fare@1",
              "kind": "trained_on",
              "to": "model_version:default/fare@1"
            },
            {
              "at": "…",
              "from": "feature_view:default/trips@1",
              "kind": "reads",
              "to": "model_version:default/fare@1"
            },
            {
              "at": "…",
              "from": "feature_view:default/trips@1",
              "kind": "reads",
              "to": "feature_service:default/fare@1"
            },
            {
              "at": "…",
              "from": "entity:default/trip@1",
              "kind": "keys",
              "to": "feature_view:default/trips@1"
            }
          ],
          "node": "model_version:default/fare@1"
        }
    "#]],
    )
    .await?;
    cli.check("lineage model_version:default/fare@7", expect![[r#"
        ! error: lineage of `model_version:default/fare@7` not found; nodes are written like `model_version:PROJECT/MODEL@VERSION`, `feature_view:PROJECT/NAME@VERSION` or `artifact:ROOT`
        ! hint: nodes are named such as `model_version:default/delay@1` or `feature_view:default/driver_stats@1`
        exit 3
    "#]]).await?;
    cli.check("lineage nonsense", expect![[r#"
        ! error: lineage of `nonsense` not found; nodes are written like `model_version:PROJECT/MODEL@VERSION`, `feature_view:PROJECT/NAME@VERSION` or `artifact:ROOT`
        ! hint: nodes are named such as `model_version:default/delay@1` or `feature_view:default/driver_stats@1`
        exit 3
    "#]]).await?;
    cli.end().await
}
