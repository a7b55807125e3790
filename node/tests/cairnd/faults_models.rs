//! Files that are no models, and models that do not fit: refused by name, nothing is registered.

use crate::faults_support::{Victim, refused};
use crate::support::TestResult;
use crate::support::chance::Chance;
use crate::support::models::{golden, registration};
use bytes::Bytes;
use cairn_client::registry::VersionOf;
use cairn_client::{DEFAULT_PROJECT, ErrorKind, api};
use expect_test::{Expect, expect};

/// The same file with one operator name exchanged for another of the same length.
fn renamed(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the operator");
    [&bytes[..at], to, &bytes[at + to.len()..]].concat()
}

async fn register(victim: &Victim, bytes: Vec<u8>, service: &str) -> cairn_client::Result<api::ModelVersion> {
    let client = &victim.story.client;
    let artifact = client.upload_bytes(Bytes::from(bytes)).await?;
    client.register_model(registration("fare", "fare.onnx".as_ref(), &artifact, service)).await
}

#[tokio::test]
async fn a_file_that_is_no_model_is_refused_by_name() -> TestResult {
    let mut chance = Chance::seeded(22);
    let victim = Victim::new().await?;
    let mlp = std::fs::read(golden("mlp.onnx"))?;
    let check =
        async |bytes: Vec<u8>, expected: Expect| expected.assert_eq(&refused(register(&victim, bytes, "").await));
    check(mlp[..mlp.len() / 2].to_vec(), expect!["invalid_argument: `fare.onnx`: the model is not valid: protobuf: the file ends inside a field: it is cut off, or not ONNX"]).await;
    check(mlp[..mlp.len() - 1].to_vec(), expect!["invalid_argument: `fare.onnx`: the model is not valid: protobuf: the file ends inside a field: it is cut off, or not ONNX"]).await;
    check(
        b"no model at all".to_vec(),
        expect!["invalid_argument: `fare.onnx`: the model is not valid: protobuf: wire type 6 does not exist: it is not ONNX"],
    )
    .await;
    check(Vec::new(), expect!["invalid_argument: `fare.onnx`: the model is not valid: file: it is empty"]).await;
    check(renamed(&mlp, b"Gemm", b"LSTM"), expect!["unsupported: `fare.onnx`: the model needs operators that are not supported: `ai.onnx.LSTM` (node `h1`): there is no such operator here"]).await;
    let noise: Vec<u8> = (0..10_000).map(|_| chance.bits() as u8).collect();
    let error = register(&victim, noise, "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().starts_with("`fare.onnx`: "), "{error}");
    victim.unharmed().await
}

#[tokio::test]
async fn a_model_that_does_not_fit_its_service_is_refused() -> TestResult {
    let victim = Victim::new().await?;
    let mlp = std::fs::read(golden("mlp.onnx"))?;
    let check = async |service: &str, expected: Expect| {
        expected.assert_eq(&refused(register(&victim, mlp.clone(), service).await));
    };
    check("eta", expect!["invalid_argument: `fare.onnx` does not fit feature service `eta@1`: the model's input `x` takes 20 features, and the batch has 2 in 2 columns"]).await;
    check("eda", expect!["not_found: feature service `eda` not found in project `default`; did you mean `eta`?"]).await;
    let client = &victim.story.client;
    let artifact = api::Artifact { root: "ab".repeat(32), ..api::Artifact::default() };
    let unknown = client.register_model(registration("fare", "fare.onnx".as_ref(), &artifact, "")).await;
    expect!["not_found: artifact `abababababababababababababababababababababababababababababababab` is on no node that can be reached; upload it first"].assert_eq(&refused(unknown));
    let artifact = api::Artifact { root: "ab".into(), ..api::Artifact::default() };
    expect!["invalid_argument: `ab` is not a BLAKE3 root (64 hexadecimal digits)"]
        .assert_eq(&refused(client.register_model(registration("fare", "fare.onnx".as_ref(), &artifact, "")).await));
    expect!["not_found: model `fare@1` not found in project `default`; it has no versions yet"]
        .assert_eq(&refused(client.model_version(DEFAULT_PROJECT, "fare", &VersionOf::Number(1)).await));
    victim.unharmed().await
}
