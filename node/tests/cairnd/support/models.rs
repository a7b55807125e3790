//! Models with onnxruntime's own answers beside them, and rows for any feature view.

use super::rows::{at, batch, floats32, ints, times};
use super::{Story, TestResult, into};
use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::DataType;
use cairn_client::api::{ModelVersion, RegisterModelVersionRequest};
use cairn_client::command::Command;
use cairn_client::{DEFAULT_PROJECT, api};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Asked at run time: a target directory shared by checkouts holds binaries that were built in another.
fn package() -> PathBuf {
    std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo").into()
}

/// The executor's golden files: models with inputs and onnxruntime's outputs (`make_golden.py` there makes them).
pub fn golden(file: &str) -> PathBuf {
    package().join("executor/tests/golden").join(file)
}

/// The flights example.
pub fn flights(file: &str) -> PathBuf {
    package().join("../client/examples/flights").join(file)
}

/// One matrix of a golden file, in rows: `section` is `inputs` or `outputs`.
pub fn matrix(model: &str, section: &str, name: &str) -> TestResult<Vec<Vec<f32>>> {
    let bytes = std::fs::read(golden(&format!("{model}.bin")))?;
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("no header")?;
    let header: serde_json::Value = serde_json::from_slice(&bytes[..end])?;
    let tensors = header[section].as_array().ok_or("no such section")?;
    let tensor = tensors.iter().find(|tensor| tensor["name"] == name).ok_or("no such tensor")?;
    assert_eq!(tensor["datatype"], "FP32");
    let number = |value: &serde_json::Value| value.as_u64().map(|value| value as usize).ok_or("not a number");
    let (offset, length) = (number(&tensor["offset"])?, number(&tensor["bytes"])?);
    let width = number(&tensor["shape"][1])?;
    let values: Vec<f32> =
        bytes[end + 1 + offset..][..length].as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
}

/// Numbers of a prediction column, all of a row's one after the other.
pub fn numbers(column: &ArrayRef) -> TestResult<Vec<f64>> {
    let flat = match column.data_type() {
        DataType::FixedSizeList(_, _) => Arc::clone(column.as_fixed_size_list().values()),
        _ => Arc::clone(column),
    };
    let flat = arrow_cast::cast(&flat, &DataType::Float64)?;
    let flat = flat.as_primitive::<arrow_array::types::Float64Type>();
    flat.iter().map(|value| value.ok_or_else(|| "a null prediction".into())).collect()
}

/// Uploads a file and registers it as the next version of `model`.
pub async fn register(story: &Story, model: &str, file: &Path, service: &str) -> TestResult<ModelVersion> {
    let artifact = story.client.upload_file(file, None).await?;
    Ok(story.client.register_model(registration(model, file, &artifact, service)).await?)
}

pub fn registration(model: &str, file: &Path, artifact: &api::Artifact, service: &str) -> RegisterModelVersionRequest {
    RegisterModelVersionRequest {
        project: DEFAULT_PROJECT.into(),
        model: model.into(),
        artifact_root: artifact.root.clone(),
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        feature_service: service.into(),
        ..RegisterModelVersionRequest::default()
    }
}

/// A view of `width` numbers with the golden inputs of `model` in it, a service of all of them, and the model itself.
pub async fn golden_model(story: &Story, model: &str, input: &str) -> TestResult<Vec<Vec<f32>>> {
    let inputs = matrix(model, "inputs", input)?;
    let width = inputs[0].len();
    let features: Vec<String> = (0..width).map(|at| format!("{{name: {model}_{at}, type: float32}}")).collect();
    story
        .apply(&format!(
            "kind: Entity\nname: case\nspec: {{join_keys: [{{name: case_id, type: int64}}]}}\n---\n\
             kind: FeatureView\nname: {model}\nspec: {{entities: [case], features: [{}]}}\n---\n\
             kind: FeatureService\nname: {model}\nspec: {{features: [{model}]}}\n---\n\
             kind: Model\nname: {model}\nspec: {{feature_service: {model}}}\n",
            features.join(", ")
        ))
        .await?;
    let names: Vec<String> = (0..width).map(|at| format!("{model}_{at}")).collect();
    let mut columns: Vec<(&str, ArrayRef)> =
        vec![("case_id", ints(0..inputs.len() as i64)), ("event_timestamp", times(inputs.iter().map(|_| at(0))))];
    for (at, name) in names.iter().enumerate() {
        columns.push((name, floats32(inputs.iter().map(|row| row[at]))));
    }
    story.store(model, batch(&columns)).await?;
    register(story, model, &golden(&format!("{model}.onnx")), "").await?;
    story
        .apply(&format!("kind: Deployment\nname: {model}\nspec: {{model: {model}, champion: {{version: 1}}}}\n"))
        .await?;
    Ok(inputs)
}

/// A row for each entity key of a feature view, at second 0; numbers differ from row to row and column to column.
pub async fn fill(story: &Story, view: &str, keys: &[(&str, &[&str])]) -> TestResult<String> {
    let schema = story.client.schema(&Command::Ingest(into(view))).await?;
    let rows = keys[0].1.len();
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for (position, field) in schema.fields().iter().enumerate() {
        let name = field.name().as_str();
        let column: ArrayRef = match keys.iter().find(|(key, _)| *key == name) {
            Some((_, values)) => Arc::new(StringArray::from(values.to_vec())),
            None if name == "created_timestamp" => continue,
            None if name == "event_timestamp" => times((0..rows).map(|_| at(0))),
            None => {
                let values = (0..rows).map(|row| (1 + (row * 7 + position * 3) % 11) as i64);
                arrow_cast::cast(&ints(values), field.data_type())?
            }
        };
        columns.push((name, column));
    }
    story.store(view, batch(&columns)).await
}

/// The flights example's definitions with a few rows in every view.
pub async fn flights_story() -> TestResult<Story> {
    let story = Story::one_node().await?;
    let sources = cairn_client::definitions::read_sources(&[flights("definitions")])?;
    story.client.apply(DEFAULT_PROJECT, sources).await?;
    let (origins, dests) = (["EWR", "JFK", "LGA", "EWR"], ["BOS", "MIA", "ORD", "SFO"]);
    fill(&story, "weather", &[("origin", &origins[..3])]).await?;
    fill(&story, "origin_delays", &[("origin", &origins[..3])]).await?;
    fill(&story, "carrier_delays", &[("carrier", &["UA", "AA", "B6"])]).await?;
    fill(&story, "route_delays", &[("origin", &origins), ("dest", &dests)]).await?;
    fill(&story, "plane_facts", &[("tailnum", &["N1", "N2", "N3"])]).await?;
    Ok(story)
}

/// Flights to predict: keys and request data, each about second 60; the last has keys that nothing is known of.
pub fn trips() -> RecordBatch {
    use super::rows::{floats, texts};
    batch(&[
        ("carrier", texts(["UA", "AA", "B6", "UA", "??"])),
        ("origin", texts(["EWR", "JFK", "LGA", "EWR", "???"])),
        ("dest", texts(["BOS", "MIA", "ORD", "SFO", "???"])),
        ("tailnum", texts(["N1", "N2", "N3", "N1", "N?"])),
        ("distance", floats([200.0, 1089.0, 733.0, 2565.0, 500.0])),
        ("scheduled_minutes", floats([75.0, 180.0, 150.0, 380.0, 120.0])),
        ("local_hour", floats([6.5, 12.0, 17.25, 20.0, 9.0])),
        ("weekday", floats([0.0, 2.0, 4.0, 6.0, 5.0])),
        ("event_timestamp", times((0..5).map(|_| at(60)))),
    ])
}
