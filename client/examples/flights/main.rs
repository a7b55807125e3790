//! Cairn from an empty folder to predictions on real flights, in one run: `make demo`, or
//! `cargo build -p cairn-node && cargo run -p cairn-client --example flights`.
//!
//! - `NODES=3` runs three nodes and kills the leader half-way through the ingest; every result stays the same
//! - `KEEP=1` leaves the cluster running and prints three commands to try
//! - `CAIRND` is the server's binary, when it is not built beside this program
//!
//! Always true: the demo fails, and says why, when a row is lost, when features read online differ in any bit from the
//! training set's, or when a served model's December AUC is not the one training measured.

mod flights;
mod nodes;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use cairn_client::command::{GetHistoricalFeatures, GetOnlineFeatures, Ingest, Ingested, Predict, ReadReply};
use cairn_client::definitions::read_sources;
use cairn_client::registry::{Direction, Expected, Promotion};
use cairn_client::{Client, Timestamp, api, read};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use nodes::Cluster;
use std::time::{Duration, Instant};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const PROJECT: &str = "default";
const NAME: &str = "flight_delay"; // of the feature service, the model and the deployment
const MODELS: [&str; 2] = ["delay_trees", "delay_mlp"];
const TRAINING_ROWS: usize = 5_000;
const PREDICT_ROWS: usize = 1_000;
/// Departure times read online one by one, to compare with the training set.
const MOMENTS: usize = 100;
/// onnxruntime and Cairn may round a score differently; two flights that swap places move the AUC by about 1e-8.
const AUC_TOLERANCE: f64 = 1e-5;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo failed: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let node_count = match std::env::var("NODES") {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| format!("NODES is `{text}`; it must be 1 or 3"))?,
        _ => 1,
    };
    let keep = std::env::var("KEEP").is_ok_and(|text| !text.is_empty() && text != "0");
    if node_count != 1 && node_count != 3 {
        return Err("NODES must be 1 or 3".into());
    }
    println!("Cairn on real flights: New York, 2013. Will a flight arrive more than 15 minutes late?\n");

    let step = Step::new("start");
    let mut cluster = Cluster::start(node_count).await?;
    step.done(&format!("{node_count} node{} on {}", if node_count == 1 { "" } else { "s" }, cluster.addresses()));
    let client = Client::connect(&cluster.addresses()).await?;

    define(&client).await?;
    let token = ingest(&client, &mut cluster).await?;
    let metrics = flights::metrics()?;
    let december = flights::december()?;
    let training_set = training_set(&client, &december, &token).await?;
    read_online(&client, &training_set, &metrics.features, &token).await?;
    let versions = register(&client, &metrics).await?;
    let read = predict_all(&client, &december, &versions, &metrics, &token).await?;
    lineage(&client, &read).await?;

    if keep {
        try_out(&cluster).await?;
    }
    let step = Step::new("stop");
    cluster.stop().await?;
    step.done("cleanly");
    Ok(())
}

async fn define(client: &Client) -> Result<()> {
    let step = Step::new("define");
    let sources = read_sources(&[flights::folder().join("definitions")])?;
    let reply = client.apply(PROJECT, sources.clone()).await?;
    let again = client.apply(PROJECT, sources).await?;
    if let Some(change) = again.changes.iter().find(|change| change.action != "unchanged") {
        return Err(
            format!("applying the same files again would {} {} `{}`", change.action, change.kind, change.name).into()
        );
    }
    step.done(&format!("{} definitions in one log entry; applied again, nothing changes", reply.changes.len()));
    Ok(())
}

/// Ingests every view's file; with three nodes, kills the leader in the middle. Returns the token of all of it.
async fn ingest(client: &Client, cluster: &mut Cluster) -> Result<String> {
    let step = Step::new("ingest");
    let three = cluster.addresses().contains(',');
    let files = flights::VIEWS.iter().map(|view| flights::open(view)).collect::<Result<Vec<_>>>()?;
    let total: u64 = files.iter().map(|file| file.rows()).sum();
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template("  {msg:16} {bar:40} {human_pos} rows")?);
    let mut killed = None;
    let mut token = cairn_client::Token::default();
    for (view, file) in flights::VIEWS.into_iter().zip(files) {
        bar.set_message(view);
        let expected = file.rows();
        // Producer and sequence make this exactly-once, also across the leader's death.
        let producer = Some(format!("flights-demo-{view}"));
        let ask = Ingest { project: PROJECT.into(), feature_view: view.into(), producer, sequence: Some(1) };
        let mut answers = client.ingest(ask, file.into_stream());
        let mut stored = 0;
        while let Some(answer) = answers.next().await? {
            stored += taken(view, &answer)?;
            token.merge(&answer.token.parse()?);
            bar.inc(answer.rows_accepted + answer.rows_duplicate);
            if three && killed.is_none() && bar.position() > total / 2 {
                killed = Some(cluster.kill_leader(client).await?);
            }
        }
        if stored != expected {
            return Err(format!("`{view}`: {stored} rows stored of {expected}").into());
        }
    }
    bar.finish_and_clear();
    let rate = total as f64 / step.started.elapsed().as_secs_f64();
    step.done(&format!(
        "{} feature rows in {} views, {} rows/s",
        HumanCount(total),
        flights::VIEWS.len(),
        HumanCount(rate as u64)
    ));
    if let Some(name) = killed {
        Step::note(&format!("half-way, the leader {name} was killed (kill -9): no row lost, none twice"));
    }
    Ok(token.to_string())
}

fn taken(view: &str, answer: &Ingested) -> Result<u64> {
    match answer.rejections.first() {
        Some(first) => Err(format!("`{view}`, row {} of a batch: {}", first.row, first.reason).into()),
        None => Ok(answer.rows_accepted + answer.rows_duplicate),
    }
}

/// What was known at each flight's scheduled departure, for a few thousand flights of December.
async fn training_set(client: &Client, december: &RecordBatch, token: &str) -> Result<RecordBatch> {
    let step = Step::new("training set");
    let spine = flights::sample(december, TRAINING_ROWS)?;
    let ask = GetHistoricalFeatures {
        feature_service: Some(NAME.into()),
        read: read::at_least(token),
        ..read::historical(PROJECT)
    };
    let (parts, _) = client.historical_features_of(&ask, std::slice::from_ref(&spine)).await?;
    let schema = parts.first().ok_or("the training set is empty")?.schema();
    let rows = arrow_select::concat::concat_batches(&schema, &parts)?;
    if rows.num_rows() != spine.num_rows()
        || rows.slice(0, spine.num_rows()).columns()[..spine.num_columns()] != *spine.columns()
    {
        return Err("the training set does not begin with its spine".into());
    }
    let features = rows.num_columns() - spine.num_columns();
    step.done(&format!(
        "{} December flights × {features} features, as of each scheduled departure",
        HumanCount(rows.num_rows() as u64)
    ));
    Ok(rows)
}

/// Reads features by entity key as of single moments, and compares them with the training set, bit for bit.
async fn read_online(client: &Client, training_set: &RecordBatch, features: &[String], token: &str) -> Result<()> {
    let step = Step::new("read online");
    let asked = flights::without_time(&flights::asked(training_set)?)?;
    let times = flights::column(training_set, "event_timestamp")?.as_primitive::<TimestampMicrosecondType>().clone();
    let (mut at, mut moments, mut rows) = (0, 0, 0);
    while at < times.len() && moments < MOMENTS {
        let moment = times.value(at);
        let same = times.values()[at..].iter().take_while(|time| **time == moment).count();
        let mut reader = client.online_features(GetOnlineFeatures {
            feature_service: Some(NAME.into()),
            as_of: Some(Timestamp(moment)),
            read: read::at_least(token),
            ..read::online(PROJECT)
        });
        let (answer, _) = reader.read(&asked.slice(at, same)).await?;
        let differing = flights::differences(&answer, &training_set.slice(at, same), features)?;
        if differing > 0 {
            return Err(format!(
                "{differing} features read online as of {} differ from the training set",
                Timestamp(moment)
            )
            .into());
        }
        (at, moments, rows) = (at + same, moments + 1, rows + same);
    }
    step.done(&format!("{rows} flights as of {moments} moments: every bit as in the training set"));
    Ok(())
}

/// A model version by number, with the name of its file.
struct Version {
    number: u32,
    file: &'static str,
}

/// Registers both shipped models as versions of one registered model, and points `champion` at the first.
async fn register(client: &Client, metrics: &flights::Metrics) -> Result<Vec<Version>> {
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
async fn predict_all(
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

fn share(late: &[bool]) -> f64 {
    100.0 * late.iter().filter(|late| **late).count() as f64 / late.len() as f64
}

/// What one prediction was made from, back to the rows.
async fn lineage(client: &Client, read: &ReadReply) -> Result<()> {
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

async fn try_out(cluster: &Cluster) -> Result<()> {
    let address = cluster.address();
    let beside = std::env::current_exe()?;
    let cairn = beside.parent().and_then(std::path::Path::parent).map(|folder| folder.join("cairn"));
    let cairn = cairn.filter(|path| path.is_file()).map_or("cairn".into(), |path| path.display().to_string());
    println!("Running on {} with its data in {}. Try:\n", cluster.addresses(), cluster.folder().display());
    println!(
        "  {cairn} --node {address} get weather:temp,origin_delays:origin_late_share_1d --entity origin=EWR,JFK,LGA \
         --as-of 2013-12-10T17:00:00Z"
    );
    println!(
        "  curl -s http://{address}/get-online-features -H 'content-type: application/json' -d '{{\"features\": \
         [\"plane_facts:model\", \"plane_facts:seats\"], \"entities\": {{\"tailnum\": [\"N14228\", \"N24211\"]}}}}'"
    );
    println!("  CAIRN_NODE={address} python client/examples/pyarrow_only.py\n");
    println!("Ctrl-C stops it and removes its data.");
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminated.recv() => {}
    }
    println!();
    Ok(())
}

/// A line of the report: what was done, and how long it took.
struct Step {
    name: &'static str,
    started: Instant,
}

impl Step {
    fn new(name: &'static str) -> Self {
        Self { name, started: Instant::now() }
    }

    fn done(self, what: &str) {
        println!("{:>9}  {:13} {what}", time(self.started.elapsed()), self.name);
    }

    fn note(what: &str) {
        println!("{:24} {what}", "");
    }
}

fn time(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}
