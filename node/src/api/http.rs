//! JSON over HTTP on the client port: the feature read that `curl` can make, inference by entity keys, health, metrics.
//!
//! `POST /get-online-features` has the request and reply of Feast's feature server; `/v2/…` is the Open Inference
//! Protocol. Every answer that is not 2xx is JSON: `{"error": …, "kind": …}`.

use super::entities;
use crate::error::{Error, Result};
use crate::features;
use crate::metrics::Consensus;
use crate::node::Node;
use crate::predict::Served;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use cairn_proto::command::{EVENT_TIMESTAMP, Predict, Read};
use cairn_proto::record::v1::Segment;
use cairn_proto::time::Timestamp;
use cairn_proto::{DEFAULT_PROJECT, ErrorKind, MESSAGE_BYTES_MAX};
use cairn_query::online::{OnlineOptions, ReadAt};
use cairn_storage::shard::Shard;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

type App = State<Arc<Node>>;

/// Requests in JSON are smaller than those in Arrow.
const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 4;

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/get-online-features", post(get_online_features))
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(|| async { StatusCode::OK }))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(version_metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(version_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer_version))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

/// Anything unrouted, for REST and gRPC callers alike.
pub async fn unknown(uri: axum::http::Uri, headers: header::HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        let hint = match uri.path().starts_with("/cairn.peer.") {
            true => "this is a client port, and nodes join at a peer port",
            false => "is the caller of a newer version?",
        };
        return ErrorKind::Unsupported.status(format!("this node does not offer `{}`; {hint}", uri.path())).into_http();
    }
    Error::not_found(format!("there is nothing at `{}`", uri.path())).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(json!({"error": self.message, "kind": self.kind.as_str()}))).into_response();
        if self.kind == ErrorKind::Overloaded {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// Reads a JSON body; what is wrong with it is said with line and column.
fn body<T: serde::de::DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("the request body is not understood: {error}")))
}

async fn ready(State(node): App) -> Response {
    match node.not_ready() {
        None => StatusCode::OK.into_response(),
        Some(why) => Error::new(ErrorKind::Unavailable, why).into_response(),
    }
}

async fn metrics(State(node): App) -> Response {
    let groups =
        node.cluster.status().iter().map(|group| (group.group, group.applied_index, group.is_leader)).collect();
    let consensus = Consensus {
        groups,
        audits: node.cluster.audits(),
        refused_peers: node.cluster.refused_peers(),
        snapshots: node.cluster.received_snapshots(),
        segments: (1..).zip(&node.shards).map(|(group, shard)| segments_of(group, shard)).collect(),
        objects: node.objects.as_ref().map(|objects| objects.state()),
    };
    let text = node.metrics.render(&consensus, node.writes.reason().is_some());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn segments_of(group: u32, shard: &Shard) -> (u32, u64, u64, u64) {
    let tiers = shard.tiers();
    let sum = |of: fn(&Segment) -> u64| tiers.segments().iter().map(of).sum();
    (group, tiers.segments().len() as u64, sum(|it| it.rows), sum(|it| it.size))
}

// ---------------------------------------------------------------- online features

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnlineBody {
    entities: Map<String, Value>,
    features: Option<Vec<String>>,
    feature_service: Option<String>,
    #[serde(default)]
    full_feature_names: bool,
    // Feast's clients send it; versions are part of our own metadata.
    #[serde(default)]
    include_feature_view_version_metadata: bool,
    project: Option<String>,
    #[serde(default)]
    read: Read,
    as_of: Option<Timestamp>,
    known_as_of: Option<Timestamp>,
}

async fn get_online_features(State(node): App, bytes: Bytes) -> Result<Json<Value>> {
    let ask: OnlineBody = body(&bytes)?;
    let project = ask.project.clone().unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
    node.ensure(&ask.read, 0..=node.shard_count()).await?;
    let plan = features::plan(&node, &project, &ask.feature_service, &ask.features, ask.full_feature_names)?;
    let rows = entities::from_json(&plan, Some(&ask.entities))?;
    if rows.column_by_name(EVENT_TIMESTAMP).is_some() {
        return Err(Error::invalid(
            "`event_timestamp` in `entities` is not offered here: send `as_of` for one moment, or ask over Arrow Flight",
        ));
    }
    features::check_rows(&rows)?;
    let at = ReadAt {
        now_us: crate::clock::now_us(),
        as_of_us: ask.as_of.map(|at| at.0),
        known_us: ask.known_as_of.map(|at| at.0),
    };
    let answer = {
        let (node, plan, rows) = (Arc::clone(&node), Arc::clone(&plan), rows.clone());
        let options = OnlineOptions { statuses: false, details: true };
        super::flight::blocking(move || Ok(features::read_settled(&node, &plan, &rows, at, options)?)).await?
    };
    let details = answer.details.unwrap_or_default();
    let mut names: Vec<Value> = Vec::new();
    let mut results: Vec<Value> = Vec::new();
    let epoch = time(0);
    for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        names.push(json!(field.name()));
        results.push(json!({
            "values": values(column)?,
            "statuses": vec!["PRESENT"; rows.num_rows()],
            "event_timestamps": vec![epoch.as_str(); rows.num_rows()],
        }));
    }
    // The answer begins with the required columns, which stand above already.
    let features = answer.batch.schema_ref().fields().iter().zip(answer.batch.columns()).skip(rows.num_columns());
    for ((field, column), detail) in features.zip(&details) {
        names.push(json!(field.name()));
        let statuses: Vec<&str> = detail.statuses.iter().map(|status| status.as_str()).collect();
        let times: Vec<String> = detail.event_us.iter().map(|us| time(*us)).collect();
        results.push(json!({"values": values(column)?, "statuses": statuses, "event_timestamps": times}));
    }
    let mut metadata = json!({"feature_names": names});
    if ask.include_feature_view_version_metadata
        && let Some(map) = metadata.as_object_mut()
    {
        let views = plan.views().iter().map(|view| json!({"name": view.name, "version": view.version}));
        map.insert("feature_view_metadata".to_owned(), Value::Array(views.collect()));
    }
    Ok(Json(json!({"results": results, "metadata": metadata})))
}

/// A column as JSON values: NaN and infinities as strings, bytes as text or else hexadecimal, times as RFC 3339.
fn values(column: &ArrayRef) -> Result<Vec<Value>> {
    let mut out = Vec::with_capacity(column.len());
    for row in 0..column.len() {
        out.push(if column.is_null(row) { Value::Null } else { value(column, row)? });
    }
    Ok(out)
}

/// RFC 3339 with 0, 3 or 6 fraction digits, as protobuf's JSON has it.
fn time(us: i64) -> String {
    let digits = match (us % 1_000_000, us % 1_000) {
        (0, _) => 0,
        (_, 0) => 3,
        _ => 6,
    };
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| Timestamp(us).to_string(), |at| format!("{at:.digits$}"))
}

fn number(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => json!("NaN"),
        None if value > 0.0 => json!("Infinity"),
        None => json!("-Infinity"),
    }
}

fn value(column: &ArrayRef, row: usize) -> Result<Value> {
    use arrow_array::types as t;
    Ok(match column.data_type() {
        DataType::Boolean => json!(column.as_boolean().value(row)),
        DataType::Int32 => json!(column.as_primitive::<t::Int32Type>().value(row)),
        DataType::Int64 => json!(column.as_primitive::<t::Int64Type>().value(row)),
        // The shortest text that reads back as the same float32, not its float64 expansion.
        DataType::Float32 => {
            let value = column.as_primitive::<t::Float32Type>().value(row);
            number(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
        }
        DataType::Float64 => number(column.as_primitive::<t::Float64Type>().value(row)),
        DataType::Utf8 => json!(column.as_string::<i32>().value(row)),
        DataType::Binary => {
            let bytes = column.as_binary::<i32>().value(row);
            std::str::from_utf8(bytes).map_or_else(|_| json!(crate::predict::hex(bytes)), |text| json!(text))
        }
        DataType::Timestamp(_, _) => {
            json!(Timestamp(column.as_primitive::<t::TimestampMicrosecondType>().value(row)).to_string())
        }
        DataType::Date32 => {
            let days = column.as_primitive::<t::Date32Type>().value(row);
            let date = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(days));
            date.map_or(Value::Null, |date| json!(date.to_string()))
        }
        DataType::List(_) => Value::Array(values(&column.as_list::<i32>().value(row))?),
        DataType::FixedSizeList(_, _) => Value::Array(values(&column.as_fixed_size_list().value(row))?),
        other => return Err(Error::internal(format!("a column of type {other} has no JSON form"))),
    })
}

// ---------------------------------------------------------------- inference

async fn server_metadata() -> Json<Value> {
    Json(json!({"name": "cairn", "version": env!("CARGO_PKG_VERSION"), "extensions": ["entity_keys"]}))
}

#[derive(Debug, Deserialize)]
struct InferBody {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<InferInput>,
    outputs: Option<Vec<InferOutput>>,
}

#[derive(Debug, Deserialize)]
struct InferInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    data: Value,
}

#[derive(Debug, Deserialize)]
struct InferOutput {
    name: String,
}

/// A deployment, or with a version the model's own.
fn ask_for(name: &str, version: Option<&str>, parameters: &Map<String, Value>) -> Result<Predict> {
    let text = |key: &str| parameters.get(key).and_then(Value::as_str).map(str::to_owned);
    let time = |key: &str| -> Result<Option<Timestamp>> {
        parameters
            .get(key)
            .map(|value| serde_json::from_value(value.clone()))
            .transpose()
            .map_err(|error| Error::invalid(format!("parameter `{key}`: {error}")))
    };
    let version = version
        .map(|text| text.parse::<u32>().map_err(|_| Error::invalid(format!("`{text}` is not a version number"))))
        .transpose()?;
    Ok(Predict {
        project: text("project").unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
        deployment: version.is_none().then(|| name.to_owned()),
        model: version.is_some().then(|| name.to_owned()),
        version,
        alias: None,
        read: Read::default(),
        as_of: time("as_of")?,
        known_as_of: time("known_as_of")?,
        features: false,
        explain: false,
        entities: None,
    })
}

async fn infer(State(node): App, Path(name): Path<String>, bytes: Bytes) -> Result<Json<Value>> {
    run(&node, &name, None, &bytes).await
}

async fn infer_version(
    State(node): App,
    Path((name, version)): Path<(String, String)>,
    bytes: Bytes,
) -> Result<Json<Value>> {
    run(&node, &name, Some(&version), &bytes).await
}

async fn run(node: &Arc<Node>, name: &str, version: Option<&str>, bytes: &Bytes) -> Result<Json<Value>> {
    let ask: InferBody = body(bytes)?;
    let predict = ask_for(name, version, &ask.parameters)?;
    let served = Served::resolve(node, &predict).await?;
    let mut keys = Map::new();
    for input in &ask.inputs {
        keys.insert(input.name.clone(), Value::Array(tensor_rows(input)?));
    }
    let rows = entities::from_json(&served.plan, Some(&keys))?;
    let (answer, reply) = served.predict(node, &predict, &rows).await?;
    let mut outputs = Vec::new();
    for (field, column) in answer.schema_ref().fields().iter().zip(answer.columns()) {
        let wanted =
            ask.outputs.as_ref().is_none_or(|outputs| outputs.iter().any(|output| output.name == *field.name()));
        if wanted {
            outputs.push(tensor(field.name(), column)?);
        }
    }
    if let Some(asked) = &ask.outputs
        && let Some(unknown) = asked.iter().find(|output| answer.column_by_name(&output.name).is_none())
    {
        let names: Vec<&str> = answer.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
        return Err(Error::invalid(format!(
            "`{}` is no output of this model; it has {}",
            unknown.name,
            names.join(", ")
        )));
    }
    let model = reply.model.clone().unwrap_or_default();
    let mut response = json!({
        "model_name": name,
        "model_version": model.version.to_string(),
        "outputs": outputs,
        "parameters": {
            "model": model.model,
            "arm": model.arm,
            "model_root": model.artifact_root,
            "feature_service": format!("{}@{}", model.feature_service, model.feature_service_version),
            "token": reply.token,
        },
    });
    if let (Some(id), Some(map)) = (ask.id, response.as_object_mut()) {
        map.insert("id".to_owned(), json!(id));
    }
    Ok(Json(response))
}

/// A one-column tensor as a list of values, nested or flat.
fn tensor_rows(input: &InferInput) -> Result<Vec<Value>> {
    let known =
        ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64", "BYTES"];
    if !known.contains(&input.datatype.as_str()) {
        return Err(Error::invalid(format!(
            "input `{}` has datatype `{}`; entity keys are {}",
            input.name,
            input.datatype,
            known.join(", ")
        )));
    }
    let Value::Array(data) = &input.data else {
        return Err(Error::invalid(format!("input `{}`: `data` must be a list", input.name)));
    };
    let mut flat = Vec::with_capacity(data.len());
    for value in data {
        match value {
            Value::Array(inner) => flat.extend(inner.iter().cloned()),
            other => flat.push(other.clone()),
        }
    }
    let elements = input.shape.iter().try_fold(1i64, |product, size| product.checked_mul(*size)).unwrap_or(-1);
    let column = matches!(input.shape.as_slice(), [_] | [_, 1]);
    if !column || usize::try_from(elements).ok() != Some(flat.len()) {
        let message = format!(
            "input `{}` has shape {:?} and {} values; entity keys have shape [rows] or [rows, 1]",
            input.name,
            input.shape,
            flat.len()
        );
        return Err(Error::invalid(message));
    }
    Ok(flat)
}

/// A column as an output tensor: `[rows]`, or `[rows, width]` for lists of fixed length.
fn tensor(name: &str, column: &ArrayRef) -> Result<Value> {
    let (shape, flat) = match column.data_type() {
        DataType::FixedSizeList(_, width) => {
            (json!([column.len(), width]), Arc::clone(column.as_fixed_size_list().values()))
        }
        _ => (json!([column.len()]), Arc::clone(column)),
    };
    let datatype = match flat.data_type() {
        DataType::Boolean => "BOOL",
        DataType::Int32 => "INT32",
        DataType::Int64 => "INT64",
        DataType::Float32 => "FP32",
        DataType::Float64 => "FP64",
        DataType::Utf8 => "BYTES",
        other => return Err(Error::internal(format!("output `{name}` of type {other} has no tensor form"))),
    };
    Ok(json!({"name": name, "datatype": datatype, "shape": shape, "data": values(&flat)?}))
}

async fn model_metadata(State(node): App, Path(name): Path<String>) -> Result<Json<Value>> {
    metadata(&node, &name, None).await
}

async fn version_metadata(State(node): App, Path((name, version)): Path<(String, String)>) -> Result<Json<Value>> {
    metadata(&node, &name, Some(&version)).await
}

/// Inputs are the entity keys a request brings; outputs are the model's own.
async fn metadata(node: &Arc<Node>, name: &str, version: Option<&str>) -> Result<Json<Value>> {
    let served = Served::resolve(node, &ask_for(name, version, &Map::new())?).await?;
    let schema = served.plan.required_schema();
    let inputs: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| {
            let datatype = match field.data_type() {
                DataType::Boolean => "BOOL",
                DataType::Int32 => "INT32",
                DataType::Int64 => "INT64",
                DataType::Float32 => "FP32",
                DataType::Float64 => "FP64",
                _ => "BYTES",
            };
            json!({"name": field.name(), "datatype": datatype, "shape": [-1]})
        })
        .collect();
    let signature = served.model.signature();
    let outputs: Vec<Value> = signature
        .outputs
        .iter()
        .map(|spec| json!({"name": spec.name, "datatype": spec.datatype.to_string(), "shape": spec.shape}))
        .collect();
    Ok(Json(json!({
        "name": name,
        "versions": [served.version.version.to_string()],
        "platform": "cairn_onnx",
        "inputs": inputs,
        "outputs": outputs,
    })))
}

async fn model_ready(State(node): App, Path(name): Path<String>) -> Result<StatusCode> {
    Served::resolve(&node, &ask_for(&name, None, &Map::new())?).await.map(|_| StatusCode::OK)
}

async fn version_ready(State(node): App, Path((name, version)): Path<(String, String)>) -> Result<StatusCode> {
    Served::resolve(&node, &ask_for(&name, Some(&version), &Map::new())?).await.map(|_| StatusCode::OK)
}
