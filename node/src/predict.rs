//! Entity keys in, predictions out: the features a model version was trained on, read and scored on this node.

use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::features;
use crate::node::Node;
use arrow_array::RecordBatch;
use cairn_executor::Model;
use cairn_proto::ErrorKind;
use cairn_proto::command::{ModelServed, Predict, ReadReply};
use cairn_proto::record::v1 as record;
use cairn_query::online::{OnlineOptions, ReadAt};
use cairn_query::plan::FeaturePlan;
use std::sync::Arc;

/// What answers a predict: a model version, loaded, with the plan that reads its features.
#[derive(Debug)]
pub struct Served {
    pub version: Arc<record::ModelVersion>,
    pub plan: Arc<FeaturePlan>,
    pub model: Arc<Model>,
    arm: &'static str,
    /// How fresh the definitions, the alias and the rows are.
    reply: ReadReply,
}

impl Served {
    /// Waits until this node is as fresh as `ask` wants, then finds who answers.
    ///
    /// # Errors
    /// `NotFound` for an unknown project, deployment, model, version or alias; `InvalidArgument` when the model version
    /// names no feature service; `Corrupt` when its artifact fails its checksum.
    pub async fn resolve(node: &Arc<Node>, ask: &Predict) -> Result<Self> {
        if ask.explain {
            return Err(Error::new(ErrorKind::Unsupported, "`explain` is not offered by this version"));
        }
        let reply = node.ensure(&ask.read, 0..=node.shard_count()).await?;
        let catalog = node.meta.catalog();
        let project = catalog.project(&ask.project)?;
        let (version, arm) = match (&ask.deployment, &ask.model) {
            (Some(name), None) => {
                if ask.version.is_some() || ask.alias.is_some() {
                    return Err(Error::invalid(
                        "a deployment decides the version itself; name a `model` to choose one",
                    ));
                }
                let deployment = project.deployment(name)?;
                let champion = deployment.champion.clone().unwrap_or_default();
                let version = match champion.alias.as_str() {
                    "" => project.model_version(&deployment.model, champion.version)?,
                    alias => project
                        .alias(&deployment.model, alias)
                        .map_err(|error| Error::new(error.kind(), format!("deployment `{name}`: {error}")))?,
                };
                (version, "champion")
            }
            (None, Some(model)) => {
                let version = match (ask.version, &ask.alias) {
                    (Some(version), None) => project.model_version(model, version)?,
                    (None, Some(alias)) => project.alias(model, alias)?,
                    _ => return Err(Error::invalid("a `model` needs a `version` or an `alias`, one of them")),
                };
                (version, "direct")
            }
            _ => return Err(Error::invalid("name a `deployment`, or a `model` with `version` or `alias`")),
        };
        let version = Arc::clone(version);
        if version.feature_service.is_empty() {
            let message = format!(
                "model version `{}@{}` was registered without a feature service, so keys cannot be turned into its inputs; register it with --service",
                version.model, version.version
            );
            return Err(Error::invalid(message));
        }
        let plan =
            features::service_plan(node, &ask.project, &version.feature_service, version.feature_service_version)?;
        let model = load(node, &version).await?;
        Ok(Self { version, plan, model, arm, reply })
    }

    /// Scores entity rows. One row out for each row in, same order.
    ///
    /// # Errors
    /// As [`features::read`], and what the executor refuses.
    pub async fn predict(
        &self,
        node: &Arc<Node>,
        ask: &Predict,
        rows: &RecordBatch,
    ) -> Result<(RecordBatch, ReadReply)> {
        features::check_rows(rows)?;
        let started = std::time::Instant::now();
        let mut reply = self.reply.clone();
        let at =
            ReadAt { now_us: now_us(), as_of_us: ask.as_of.map(|at| at.0), known_us: ask.known_as_of.map(|at| at.0) };
        let values = features::read_plan(node, &self.plan, at, rows, OnlineOptions::default()).await?;
        node.seen(&mut reply);
        // The answer begins with the required columns; the model reads the features behind them.
        let features: Vec<usize> = (self.plan.required_columns().len()..values.num_columns()).collect();
        let values = values.project(&features).map_err(|error| Error::internal(error.to_string()))?;
        let mut answer = node.executor.run(&self.model, values.clone()).await?;
        if ask.features {
            answer = beside(&values, &answer)?;
        }
        reply.model = Some(ModelServed {
            model: self.version.model.clone(),
            version: self.version.version,
            arm: self.arm.to_owned(),
            artifact_root: hex(self.version.artifact.as_ref().map_or(&[], |artifact| artifact.root.as_ref())),
            feature_service: self.version.feature_service.clone(),
            feature_service_version: self.version.feature_service_version,
        });
        node.metrics.predicted(rows.num_rows(), started.elapsed());
        Ok((answer, reply))
    }
}

/// The features' columns, then the model's.
fn beside(values: &RecordBatch, answer: &RecordBatch) -> Result<RecordBatch> {
    let fields: Vec<_> = values.schema_ref().fields().iter().chain(answer.schema_ref().fields()).cloned().collect();
    let columns = values.columns().iter().chain(answer.columns()).cloned().collect();
    RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(fields)), columns)
        .map_err(|error| Error::internal(error.to_string()))
}

/// The model of a version, from the cache or from its artifact.
///
/// # Errors
/// `Corrupt` when its artifact fails its checksum; what the executor says of the bytes.
pub async fn load(node: &Arc<Node>, version: &record::ModelVersion) -> Result<Arc<Model>> {
    let artifact = version.artifact.as_ref();
    let root: [u8; 32] = artifact.and_then(|artifact| artifact.root.as_ref().try_into().ok()).ok_or_else(|| {
        Error::internal(format!("model version `{}@{}` names no artifact", version.model, version.version))
    })?;
    if let Some(model) = node.executor.get(&root) {
        return Ok(model);
    }
    let _one_at_a_time = node.loading.lock().await;
    if let Some(model) = node.executor.get(&root) {
        return Ok(model);
    }
    let bytes = crate::artifacts::read_whole(node, root).await?;
    load_bytes(node, root, bytes).await
}

/// Parses and compiles a model off the async threads, and keeps it ready.
///
/// # Errors
/// What the executor says of the bytes: not a model, over a limit, or all operators it does not know.
pub async fn load_bytes(node: &Arc<Node>, root: [u8; 32], bytes: bytes::Bytes) -> Result<Arc<Model>> {
    let node = Arc::clone(node);
    crate::api::flight::blocking(move || Ok(node.executor.load(root, bytes)?)).await
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Reads what [`hex`] wrote for a 32-byte hash.
///
/// # Errors
/// `InvalidArgument` naming the text.
pub fn unhex(text: &str) -> Result<[u8; 32]> {
    let bad = || Error::invalid(format!("`{text}` is not a BLAKE3 root (64 hexadecimal digits)"));
    if text.len() != 64 || !text.is_ascii() {
        return Err(bad());
    }
    let mut root = [0u8; 32];
    for (at, byte) in root.iter_mut().enumerate() {
        *byte = text.get(at * 2..at * 2 + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(bad)?;
    }
    Ok(root)
}
