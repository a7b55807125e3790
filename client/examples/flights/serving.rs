//! The models: registered, served, compared with what training measured, and traced back to the rows.

use crate::{NAME, PROJECT, Result, Step, flights};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use cairn_client::command::{Backtest, BacktestModel, Predict, ReadReply};
use cairn_client::registry::{Direction, Expected, Promotion};
use cairn_client::{Client, Timestamp, api, read};
use indicatif::HumanCount;

const MODELS: [&str; 2] = ["delay_trees", "delay_mlp"];
const PREDICT_ROWS: usize = 1_000;
const WEEK_US: i64 = 7 * 86_400_000_000;
/// onnxruntime and Cairn may round a score differently; two flights that swap places move the AUC by about 1e-8.
const AUC_TOLERANCE: f64 = 1e-5;

/// A model version by number, with the name of its file.
pub struct Version {
    pub number: u32,
    file: &'static str,
}

/// Registers both shipped models as versions of one registered model, and points `champion` at the first.
pub async fn register(client: &Client, metrics: &flights::Metrics) -> Result<Vec<Version>> {
    let step = Step::new("register");
    let mut versions = Vec::new();
    let mut shown = Vec::new();
    for file in MODELS {
        let file_name = format!("{file}.onnx");
        let artifact = client.upload_file(&flights::folder().join("models").join(&file_name), None).await?;
        let measured = metrics.models.get(file).ok_or_else(|| format!("metrics.json has no `{file}`"))?;
        let registered = client
            .register_model(api::RegisterModelVersionRequest {
                project: PROJECT.into(),
                model: NAME.into(),
                artifact_root: artifact.root,
                file_name,
                metrics: [("auc".into(), measured.auc), ("log_loss".into(), measured.log_loss)].into(),
                feature_service: NAME.into(),
                tags: [("training_set_token".into(), metrics.training_set_token.clone())].into(),
                author: "demo".into(),
                description: format!("{file}, trained on January to November 2013"),
                ..api::RegisterModelVersionRequest::default()
            })
            .await?;
        shown.push(format!("{NAME}@{} = {file}.onnx ({} KB)", registered.version, artifact.size / 1000));
        versions.push(Version { number: registered.version, file });
    }
    let champion = versions.first().map_or(0, |version| version.number);
    client
        .promote(&Promotion {
            project: PROJECT,
            model: NAME,
            alias: "champion",
            version: champion,
            expected: Expected::None,
            author: "demo",
            reason: "the better AUC on December",
        })
        .await?;
    step.done(&format!("{}; champion = @{champion}", shown.join(", ")));
    Ok(versions)
}

/// Predicts every December flight with every version and with the deployment; returns what the deployment said of its
/// first answer.
pub async fn predict_all(
    client: &Client,
    december: &RecordBatch,
    versions: &[Version],
    metrics: &flights::Metrics,
    token: &str,
) -> Result<ReadReply> {
    let late = flights::late(december)?;
    let mut shown = Vec::new();
    let mut champion = None;
    for version in versions {
        let step = Step::new("predict");
        let ask = Predict { model: Some(NAME.into()), version: Some(version.number), ..predict_as_known(token) };
        let (scores, _) = predict(client, ask, december).await?;
        let rate = scores.len() as f64 / step.started.elapsed().as_secs_f64();
        step.done(&format!(
            "{} flights by entity keys with @{}, {} rows/s",
            HumanCount(scores.len() as u64),
            version.number,
            HumanCount(rate as u64)
        ));
        let auc = flights::auc(&scores, &late);
        let trained = metrics.models.get(version.file).map_or(f64::NAN, |measured| measured.auc);
        shown.push(format!(
            "  {NAME}@{} {:12} AUC {auc:.6}   as train.py measured it: {trained:.6}",
            version.number, version.file
        ));
        if (auc - trained).abs() > AUC_TOLERANCE || trained.is_nan() {
            return Err(
                format!("{} scores AUC {auc:.6} here, and {trained:.6} when it was trained", version.file).into()
            );
        }
        champion.get_or_insert(scores);
    }
    let first = december.slice(0, PREDICT_ROWS.min(december.num_rows()));
    let ask = Predict { deployment: Some(NAME.into()), ..predict_as_known(token) };
    let (scores, read) = predict(client, ask, &first).await?;
    if champion.is_none_or(|champion| !champion.starts_with(&scores)) {
        return Err("the deployment does not answer as its champion does".into());
    }
    println!(
        "\nDecember, {} flights that arrived, {:.1} % late; features as known at scheduled departure",
        HumanCount(late.len() as u64),
        share(&late)
    );
    for line in shown {
        println!("{line}");
    }
    Ok(read)
}

fn predict_as_known(token: &str) -> Predict {
    Predict { read: read::at_least(token), ..read::predict(PROJECT) }
}

/// Scores of `rows`, each as of its own `event_timestamp`, and what the node said of the last batch.
async fn predict(client: &Client, ask: Predict, rows: &RecordBatch) -> Result<(Vec<f64>, ReadReply)> {
    let asked = flights::asked(rows)?;
    let mut predictor = client.predict(ask);
    let (mut scores, mut said) = (Vec::new(), ReadReply::default());
    for start in (0..asked.num_rows()).step_by(PREDICT_ROWS) {
        let batch = asked.slice(start, PREDICT_ROWS.min(asked.num_rows() - start));
        let (answer, read) = predictor.read(&batch).await?;
        if answer.num_rows() != batch.num_rows() {
            return Err("a prediction is missing".into());
        }
        scores.extend(flights::probabilities(&answer)?);
        said = read;
    }
    Ok((scores, said))
}

/// December week by week on the node itself: it joins, scores and measures, and keeps what came out as evidence. The numbers
/// must be those that training measured.
pub async fn backtest(
    client: &Client,
    december: &RecordBatch,
    versions: &[Version],
    metrics: &flights::Metrics,
) -> Result<()> {
    let step = Step::new("backtest");
    let file = flights::folder().join("data/flights.parquet");
    let spine = client.upload_file(&file, None).await?;
    let times = flights::column(december, "event_timestamp")?.as_primitive::<TimestampMicrosecondType>().values();
    let (first, last) = (times.iter().min().ok_or("no flights")?, times.iter().max().ok_or("no flights")?);
    let models = versions.iter().map(|version| BacktestModel {
        model: NAME.into(),
        version: Some(version.number),
        ..BacktestModel::default()
    });
    let ask = Backtest {
        project: PROJECT.into(),
        models: models.collect(),
        from: Timestamp(*first),
        to: Timestamp(last + 1),
        window_us: Some(WEEK_US),
        label: "late".into(),
        skip_null_labels: false,
        event_timestamp: "event_timestamp".into(),
        spine_root: spine.root,
        spine_file: "flights.parquet".into(),
        known_as_of: None,
        metrics: Vec::new(),
        predictions: false,
        author: "demo".into(),
        description: "December, which no version was trained on".into(),
    };
    let rows = futures::stream::iter([Ok(december.clone())]);
    let mut running = client.run_backtest(ask, december.schema(), rows).await?;
    while running.next().await?.is_some() {}
    let id = running.backtest().ok_or("the node did not say what the backtest is kept as")?;
    let kept = client.backtest(PROJECT, id).await?;
    for (model, version) in kept.models.iter().zip(versions) {
        let overall = model.overall.clone().unwrap_or_default();
        let trained =
            metrics.models.get(version.file).cloned().unwrap_or(flights::Measured { auc: 2.0, log_loss: 0.0 });
        let found = (overall.auc.unwrap_or(f64::NAN), overall.log_loss.unwrap_or(f64::NAN));
        let close = |one: f64, other: f64| (one - other).abs() <= AUC_TOLERANCE;
        if !close(found.0, trained.auc) || !close(found.1, trained.log_loss) {
            return Err(format!(
                "{} has AUC and log loss {found:?} in backtest {id}, and {:?} when it was trained",
                version.file,
                (trained.auc, trained.log_loss)
            )
            .into());
        }
    }
    let weeks = kept.models.first().map_or(0, |model| model.windows.len());
    step.done(&format!(
        "{} flights with both versions in {weeks} weeks: AUC and log loss as trained; kept as backtest {id}",
        HumanCount(kept.rows)
    ));
    Ok(())
}

fn share(late: &[bool]) -> f64 {
    100.0 * late.iter().filter(|late| **late).count() as f64 / late.len() as f64
}

/// What one prediction was made from, back to the rows.
pub async fn lineage(client: &Client, read: &ReadReply) -> Result<()> {
    let served = read.model.as_ref().ok_or("the reply does not say which model answered")?;
    let node = format!("model_version:{PROJECT}/{}@{}", served.model, served.version);
    let edges = client.lineage(PROJECT, &node, Direction::Up, 0).await?;
    println!("\nLineage of a prediction of deployment `{NAME}` ({}):", served.arm);
    println!("  artifact        {}", served.artifact_root);
    println!("  model version   {}@{}", served.model, served.version);
    println!("  service         {}@{}", served.feature_service, served.feature_service_version);
    let mut views: Vec<&str> = edges
        .iter()
        .flat_map(|edge| [edge.from.as_str(), edge.to.as_str()])
        .filter_map(|node| node.strip_prefix("feature_view:").or(node.strip_prefix("on_demand_feature_view:")))
        .filter_map(|node| node.strip_prefix("default/"))
        .collect();
    views.sort_unstable();
    views.dedup();
    if views.is_empty() || !edges.iter().any(|edge| format!("{}{}", edge.from, edge.to).contains(&served.artifact_root))
    {
        return Err(format!("lineage of `{node}` does not reach its views and artifact: {edges:?}").into());
    }
    println!("  view versions   {}", views.join(", "));
    println!("  rows            up to {}\n", read.token);
    Ok(())
}
