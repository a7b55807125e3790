//! Cairn from an empty folder to predictions on real flights, in one run: `make demo`, or
//! `cargo build -p cairn-node && cargo run -p cairn-client --example flights`.
//!
//! - `NODES=3` runs three nodes and kills the leader half-way through the ingest; every result stays the same
//! - `KEEP=1` leaves the cluster running and prints three commands to try
//! - `CAIRND` is the server's binary, when it is not built beside this program
//! - `flights history` is another demo of the same data: the year on three nodes, in [`history`]; `PLOT` names its plot
//!
//! Always true: the demo fails, and says why, when a row is lost, when features read online differ in any bit from the
//! training set's, or when a served model's December AUC, or a backtest's AUC or log loss, is not what training measured.

mod flights;
mod history;
mod serving;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use cairn_client::command::{GetHistoricalFeatures, GetOnlineFeatures, Ingest, Ingested};
use cairn_client::definitions::read_sources;
use cairn_client::local::{LocalCluster, cairnd};
use cairn_client::{Client, Timestamp, read};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const PROJECT: &str = "default";
const NAME: &str = "flight_delay"; // of the feature service, the model and the deployment
const TRAINING_ROWS: usize = 5_000;
/// Departure times read online one by one, to compare with the training set.
const MOMENTS: usize = 100;

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
    let history = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("history") => true,
        Some(other) => return Err(format!("`{other}` is no demo; write `history`, or nothing").into()),
    };
    let (node_count, arguments) =
        if history { (history::NODES, &history::ARGUMENTS[..]) } else { (node_count, &[][..]) };
    println!("Cairn on real flights: New York, 2013. Will a flight arrive more than 15 minutes late?\n");

    let mut stop = Stop::new()?;
    // Declared before the cluster, so that the folder goes after the processes.
    let folder = tempfile::Builder::new().prefix("cairn-flights-").tempdir()?;
    let step = Step::new("start");
    let mut cluster = stop.or(LocalCluster::start(&cairnd()?, folder.path(), node_count, arguments)).await?;
    step.done(&format!("{node_count} node{} on {}", if node_count == 1 { "" } else { "s" }, cluster.addresses()));

    let done = if history {
        let plot = std::env::var("PLOT").ok().filter(|plot| !plot.is_empty()).unwrap_or_else(|| "history.svg".into());
        stop.or(Box::pin(history::run(&mut cluster, folder.path(), plot.as_ref()))).await
    } else {
        stop.or(Box::pin(demo(&mut cluster))).await
    };
    if keep && !stop.was_asked {
        if let Err(error) = &done {
            eprintln!("demo failed: {error}\n");
        }
        try_out(&cluster)?;
        stop.asked().await;
        println!();
    }
    done?;
    let step = Step::new("stop");
    cluster.stop().await?;
    step.done("cleanly");
    Ok(())
}

/// Everything between start and stop.
async fn demo(cluster: &mut LocalCluster) -> Result<()> {
    let client = Client::connect(&cluster.addresses()).await?;
    define(&client).await?;
    let three = cluster.nodes().len() > 1;
    let token = ingest(&client, cluster, three).await?;
    let metrics = flights::metrics()?;
    let december = flights::december()?;
    let training_set = training_set(&client, &december, &token).await?;
    read_online(&client, &training_set, &metrics.features, &token).await?;
    let versions = serving::register(&client, &metrics).await?;
    let read = serving::predict_all(&client, &december, &versions, &metrics, &token).await?;
    serving::backtest(&client, &december, &versions, &metrics).await?;
    serving::lineage(&client, &read).await
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

/// Ingests every view's file, and may kill the leader in the middle. Returns the token of all of it.
async fn ingest(client: &Client, cluster: &mut LocalCluster, kill: bool) -> Result<String> {
    let step = Step::new("ingest");
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
        let ask = Ingest { producer, sequence: Some(1), ..Ingest::new(PROJECT, view) };
        let mut answers = client.ingest(ask, file.into_stream());
        let mut stored = 0;
        while let Some(answer) = answers.next().await? {
            stored += taken(view, &answer)?;
            token.merge(&answer.token.parse()?);
            bar.inc(answer.rows_accepted + answer.rows_duplicate);
            if kill && killed.is_none() && bar.position() > total / 2 {
                let leader = cluster.leader(client, 0).await?;
                cluster.kill(leader).await?;
                killed = cluster.nodes().get(leader).map(|node| node.name.clone());
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

fn try_out(cluster: &LocalCluster) -> Result<()> {
    let addresses: Vec<&str> = cluster.running().map(|node| node.address.as_str()).collect();
    let address = addresses.first().ok_or("no node runs")?;
    let cairn = cairn()?;
    println!("Running on {} with its data in {}. Try:\n", addresses.join(","), cluster.folder().display());
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
    Ok(())
}

/// The command line built beside this program, or the one on the `PATH`.
fn cairn() -> Result<String> {
    let beside = std::env::current_exe()?;
    let cairn = beside.parent().and_then(std::path::Path::parent).map(|folder| folder.join("cairn"));
    Ok(cairn.filter(|path| path.is_file()).map_or("cairn".into(), |path| path.display().to_string()))
}

/// Ctrl-C and SIGTERM: taken from the first moment on, so that no process outlives the demo.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    was_asked: bool,
}

impl Stop {
    fn new() -> Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, was_asked: false })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.was_asked = true;
    }

    /// What `work` gives, unless the demo is asked to stop before.
    async fn or<T, E: Into<Box<dyn Error>>>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T> {
        tokio::select! {
            done = work => done.map_err(Into::into),
            () = self.asked() => Err("asked to stop".into()),
        }
    }
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
