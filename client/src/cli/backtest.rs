//! `cairn backtest`: how model versions did on the past.

use super::Session;
use super::args::{BacktestArgs, BacktestCommand, BacktestRunArgs, ModelRef, PlotArgs};
use super::failure::{Failure, Outcome};
use super::join::Kept;
use super::output::{self, count, time, time_json};
use super::plot::{Line, Plot};
use super::progress::{Progress, Unit, per_second};
use cairn_client::command::{Backtest, BacktestMetric, BacktestModel, Command};
use cairn_client::files::{FileFormat, ReadOptions, TableReader};
use cairn_client::registry::VersionOf;
use cairn_client::{ErrorKind, Timestamp, api};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::Path;

/// Rows of the spine in one message; the node cuts them anew.
const BATCH_ROWS: usize = 16_384;
const DAY_US: i64 = 86_400_000_000;
/// Metrics that are always there: name, heading, value.
const METRICS: [(&str, &str, Get); 5] = [
    ("auc", "AUC", |it| it.auc),
    ("log_loss", "LOG LOSS", |it| it.log_loss),
    ("rmse", "RMSE", |it| it.rmse),
    ("calibration_error", "CALIBRATION ERROR", |it| it.calibration_error),
    ("bias", "BIAS", |it| it.bias),
];

type Get = fn(&api::BacktestScores) -> Option<f64>;

pub async fn backtest(session: &Session, args: BacktestArgs) -> Outcome {
    let BacktestArgs { command, run: asked } = args;
    match command {
        None => run(session, asked).await,
        Some(_) if asked.spine.is_some() || !asked.models.is_empty() => {
            Err(Failure::input("run a backtest, or list and show those there are: not both in one command"))
        }
        Some(BacktestCommand::List { model, limit }) => list(session, model, limit).await,
        Some(BacktestCommand::Show { id, plot }) => {
            check_plot(&plot)?;
            let found = session.client.backtest(session.project(), id).await?;
            draw(&found, &plot)?;
            output::answer(session.global.output, || text_of(&found, &plot), || json_of(&found))
        }
    }
}

async fn run(session: &Session, args: BacktestRunArgs) -> Outcome {
    check_plot(&args.plot)?;
    if let Some(out) = &args.out {
        FileFormat::of(out)?;
    }
    let missing = || Failure::input("name a spine, --models, --from, --to and --label");
    let spine = args.spine.clone().ok_or_else(missing)?;
    let ask = Backtest {
        project: session.project().to_owned(),
        models: models(&args)?,
        from: args.from.ok_or_else(missing)?,
        to: args.to.ok_or_else(missing)?,
        window_us: args.window,
        label: args.label.clone().ok_or_else(missing)?,
        skip_null_labels: args.skip_null_labels,
        event_timestamp: args.event_timestamp.clone(),
        spine_root: String::new(),
        spine_file: spine.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        known_as_of: args.known_as_of,
        metrics: args
            .metrics
            .iter()
            .map(|(name, sql)| BacktestMetric { name: name.clone(), sql: sql.clone() })
            .collect(),
        predictions: args.out.is_some(),
        author: args.author.clone(),
        description: args.description.clone(),
    };
    let (id, spine_rows, elapsed) = score(session, ask, &spine, args.out.as_deref()).await?;
    let found = session.client.backtest(session.project(), id).await?;
    draw(&found, &args.plot)?;
    let text = || {
        let rate = indicatif::HumanCount(per_second(spine_rows, elapsed));
        let mut text = text_of(&found, &args.plot);
        if let Some(out) = &args.out {
            let _ = writeln!(text, "{} with their scores in `{}`", count(found.rows, "row"), out.display());
        }
        let _ = writeln!(text, "{:.1} s, {rate} rows/s, token {}", elapsed.as_secs_f64(), found.token);
        text
    };
    let json = || {
        let mut value = json_of(&found);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("out".to_owned(), json!(args.out));
            fields.insert("plot".to_owned(), json!(args.plot.plot));
            fields.insert("seconds".to_owned(), json!(elapsed.as_secs_f64()));
        }
        value
    };
    output::answer(session.global.output, text, json)
}

/// The models with their versions, and what was said of their scores.
fn models(args: &BacktestRunArgs) -> Result<Vec<BacktestModel>, Failure> {
    for score in &args.scores {
        if !args.models.iter().any(|model| score.is_of(model)) {
            return Err(Failure::input(format!(
                "--score speaks of a model that --models does not name: `{}`",
                score.output
            )));
        }
    }
    let one = |model: &ModelRef| {
        let name = &model.name;
        let (version, alias) = match &model.which {
            Some(VersionOf::Number(version)) => (Some(*version), None),
            Some(VersionOf::Alias(alias)) => (None, Some(alias.clone())),
            None => {
                return Err(Failure::input(format!(
                    "which version of `{name}`? write `{name}@1` or `{name}:champion`"
                )));
            }
        };
        let mut of_it = args.scores.iter().filter(|score| score.is_of(model));
        let score = of_it.next();
        if of_it.next().is_some() {
            return Err(Failure::input(format!("--score says twice what the score of `{name}` is")));
        }
        Ok(BacktestModel {
            model: name.clone(),
            version,
            alias,
            output: score.map(|score| score.output.clone()),
            class: score.and_then(|score| score.class.clone()),
        })
    };
    args.models.iter().map(one).collect()
}

/// Keeps the spine, and has it scored; gives the id of the evidence.
async fn score(
    session: &Session,
    ask: Backtest,
    spine: &Path,
    out: Option<&Path>,
) -> Result<(u64, u64, std::time::Duration), Failure> {
    let options =
        ReadOptions { batch_rows: BATCH_ROWS, types: spine_types(session, &ask).await?, event_timestamp: None };
    let reader = TableReader::open(spine, &options)?;
    let spine_rows = reader.rows();
    let artifact = session.client.upload_file(spine, None).await?;
    let ask = Backtest { spine_root: artifact.root, ..ask };
    let progress = Progress::start("scoring", Unit::Rows, spine_rows);
    let schema = reader.schema().clone();
    let started = session.client.run_backtest(ask, schema, reader.into_stream()).await;
    let mut running = started.map_err(unknown)?;
    let mut kept = Kept::new(session.global.output, out, running.schema(), 0)?;
    while let Some(rows) = running.next().await.map_err(unknown)? {
        progress.at(running.rows_done());
        if out.is_some() && rows.num_rows() > 0 {
            kept.add(rows)?;
        }
    }
    kept.finish()?;
    let elapsed = progress.elapsed();
    progress.clear();
    let id = running.backtest().ok_or_else(|| Failure::waited("the node did not say what the backtest is kept as"))?;
    Ok((id, spine_rows, elapsed))
}

/// Types for the columns of a CSV spine that models read; the others are inferred.
async fn spine_types(session: &Session, ask: &Backtest) -> Result<Option<arrow_schema::Schema>, Failure> {
    match session.client.schema(&Command::Backtest(Box::new(ask.clone()))).await {
        Ok(types) => Ok(Some(types)),
        // What is wrong is told by the backtest itself.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidArgument) => Ok(None),
        Err(error) => Err(unknown(error)),
    }
}

fn unknown(error: cairn_client::Error) -> Failure {
    let look = "the outcome is unknown: `cairn backtest list` tells whether it was kept";
    Failure::from(error).hint_when(ErrorKind::Timeout, look)
}

async fn list(session: &Session, model: Option<ModelRef>, limit: u32) -> Outcome {
    let project = session.project();
    let (name, version) = match &model {
        None => (String::new(), 0),
        Some(ModelRef { name, which: None }) => (name.clone(), 0),
        Some(ModelRef { name, which: Some(VersionOf::Number(version)) }) => (name.clone(), *version),
        Some(ModelRef { name, which: Some(which) }) => {
            (name.clone(), session.client.model_version(project, name, which).await?.version)
        }
    };
    let api::ListBacktestsReply { backtests, more } = session.client.backtests(project, &name, version, limit).await?;
    let text = || {
        let rows = backtests.iter().map(|it| {
            let models: Vec<_> = it.models.iter().map(summary).collect();
            let from_to = format!("{} to {}", day(it.from_us), day(it.to_us));
            vec![
                it.id.to_string(),
                models.join(", "),
                it.label.clone(),
                from_to,
                it.rows.to_string(),
                time(it.created_us),
            ]
        });
        let mut text = output::columns(&["ID", "MODELS", "LABEL", "INTERVAL", "ROWS", "RUN"], &["ID", "ROWS"], rows);
        if more {
            text.push_str("… and older ones; --limit N lists more\n");
        }
        text
    };
    let json = || json!({"backtests": backtests.iter().map(json_of).collect::<Vec<_>>(), "more": more});
    output::answer(session.global.output, text, json)
}

/// `delay@2 (auc 0.7123)`.
fn summary(model: &api::BacktestModel) -> String {
    let overall = model.overall.clone().unwrap_or_default();
    let first = METRICS.iter().find_map(|(name, _, get)| Some((name, get(&overall)?)));
    let value = first.map_or_else(String::new, |(name, value)| format!(" ({name} {})", number(Some(value))));
    format!("{}{value}", named(model))
}

/// A line for each of a version's newest backtests, for `cairn model show`.
pub(super) fn of_version(backtests: &[api::Backtest], model: &str, version: u32) -> String {
    let mut text = String::new();
    for it in backtests {
        let models = it.models.iter();
        let (own, others): (Vec<_>, Vec<_>) = models.partition(|one| one.model == model && one.version == version);
        let scores = own.first().map(|own| summary(own)).unwrap_or_default();
        let beside: Vec<_> = others.into_iter().map(summary).collect();
        let beside = if beside.is_empty() { String::new() } else { format!(" beside {}", beside.join(", ")) };
        let (id, label, from, to) = (it.id, &it.label, day(it.from_us), day(it.to_us));
        let _ = writeln!(text, "  {:<12} {id}: {label}, {from} to {to}: {scores}{beside}", "backtest");
    }
    text
}

fn named(model: &api::BacktestModel) -> String {
    format!("{}@{}", model.model, model.version)
}

fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value != 0.0 && !(0.001..1e7).contains(&value.abs()) => format!("{value:.3e}"),
        Some(value) => format!("{value:.4}"),
    }
}

/// A day where it begins there, else the time.
fn day(us: i64) -> String {
    let text = Timestamp(us).to_string();
    match text.strip_suffix("T00:00:00Z") {
        Some(day) => day.to_owned(),
        None => text,
    }
}

fn length(us: i64) -> String {
    for (unit_us, unit) in [(DAY_US, "d"), (DAY_US / 24, "h"), (DAY_US / 1_440, "m"), (DAY_US / 86_400, "s")] {
        if us % unit_us == 0 {
            return format!("{} {unit}", us / unit_us);
        }
    }
    format!("{us} µs")
}

fn text_of(found: &api::Backtest, plot: &PlotArgs) -> String {
    let windows = found.models.first().map_or(0, |model| model.windows.len());
    let mut text =
        format!("backtest {}: {} in {}\n", found.id, count(found.rows, "row"), count(windows as u64, "window"));
    let left_out = [(found.rows_outside, "outside of the interval"), (found.rows_unlabelled, "without a label")];
    let left_out: Vec<_> = left_out
        .into_iter()
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, why)| format!("{} {why}", count(rows, "row")))
        .collect();
    let models: Vec<_> = found
        .models
        .iter()
        .map(|model| {
            let alias = if model.alias.is_empty() { String::new() } else { format!(" ({})", model.alias) };
            let class = if model.class.is_empty() { String::new() } else { format!("[{}]", model.class) };
            let (output, service, version) = (&model.output, &model.feature_service, model.feature_service_version);
            format!("{}{alias}: {output}{class} of {service}@{version}", named(model))
        })
        .collect();
    let lines = [
        ("models", models.join(", ")),
        ("interval", format!("{} to {}, windows of {}", day(found.from_us), day(found.to_us), length(found.window_us))),
        ("label", found.label.clone()),
        ("left out", left_out.join(", ")),
        ("spine", format!("{}, artifact {}", found.spine_file, found.spine_root)),
        ("known as of", time(found.known_us)),
        ("content", format!("BLAKE3 {}", found.content)),
        ("run", time(found.created_us)),
        ("by", found.author.clone()),
        ("about", found.description.clone()),
    ];
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "  {name:<12} {value}");
    }
    text.push('\n');
    text += &table(found);
    if let Some(file) = &plot.plot {
        let _ = writeln!(text, "\ndrawn in `{}`", file.display());
    }
    text
}

/// Windows below each other, in each of them the models; the whole interval last. Columns that nobody has are left out.
fn table(found: &api::Backtest) -> String {
    let all = || found.models.iter().flat_map(|model| model.overall.iter().chain(&model.windows));
    let built_in = METRICS.iter().filter(|(_, _, get)| all().any(|scores| get(scores).is_some()));
    let built_in: Vec<_> = built_in.collect();
    let with_positives = all().any(|scores| scores.positives.is_some());
    let with_lost = all().any(|scores| scores.rows_without_score > 0);
    let own: Vec<String> = found.metrics.iter().map(|metric| metric.name.to_uppercase()).collect();
    let mut header = vec!["WINDOW", "ROWS"];
    header.extend(with_positives.then_some("POSITIVES"));
    header.push("MODEL");
    header.extend(with_lost.then_some("NO SCORE"));
    header.extend(built_in.iter().map(|(_, heading, _)| *heading));
    header.extend(own.iter().map(String::as_str));
    let numbers: Vec<&str> = header.iter().copied().filter(|name| !["WINDOW", "MODEL"].contains(name)).collect();
    let mut rows = Vec::new();
    let mut block = |label: String, scores: Vec<(&api::BacktestModel, &api::BacktestScores)>| {
        for (at, (model, it)) in scores.into_iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            let mut row = vec![first(label.clone()), first(it.rows.to_string())];
            if with_positives {
                row.push(first(it.positives.map_or_else(String::new, |positives| positives.to_string())));
            }
            row.push(named(model));
            if with_lost {
                row.push(it.rows_without_score.to_string());
            }
            row.extend(built_in.iter().map(|(_, _, get)| number(get(it))));
            row.extend(it.metrics.iter().map(|metric| number(metric.value)));
            rows.push(row);
        }
    };
    let windows = found.models.first().map_or(0, |model| model.windows.len());
    // One window is the whole interval.
    for at in 0..if windows > 1 { windows } else { 0 } {
        let scores: Vec<_> = found.models.iter().filter_map(|model| Some((model, model.windows.get(at)?))).collect();
        let label = scores.first().map_or_else(String::new, |(_, it)| day(it.from_us));
        block(label, scores);
    }
    let overall = found.models.iter().filter_map(|model| Some((model, model.overall.as_ref()?)));
    block("all".to_owned(), overall.collect());
    output::columns(&header, &numbers, rows)
}

fn json_of(found: &api::Backtest) -> Value {
    let scores = |it: &api::BacktestScores| {
        let mut value = Map::new();
        value.insert("from".to_owned(), json!(Timestamp(it.from_us).to_string()));
        value.insert("to".to_owned(), json!(Timestamp(it.to_us).to_string()));
        value.insert("rows".to_owned(), json!(it.rows));
        value.insert("rows_without_score".to_owned(), json!(it.rows_without_score));
        value.insert("positives".to_owned(), json!(it.positives));
        for (name, _, get) in METRICS {
            value.insert(name.to_owned(), json!(get(it)));
        }
        let own = found.metrics.iter().zip(&it.metrics).map(|(metric, it)| (metric.name.clone(), json!(it.value)));
        value.insert("metrics".to_owned(), Value::Object(own.collect()));
        Value::Object(value)
    };
    let model = |it: &api::BacktestModel| {
        json!({
            "model": it.model,
            "version": it.version,
            "alias": Some(&it.alias).filter(|alias| !alias.is_empty()),
            "feature_service": it.feature_service,
            "feature_service_version": it.feature_service_version,
            "output": it.output,
            "class": Some(&it.class).filter(|class| !class.is_empty()),
            "overall": it.overall.as_ref().map(scores),
            "windows": it.windows.iter().map(scores).collect::<Vec<_>>(),
        })
    };
    let metric = |it: &api::BacktestMetric| json!({"name": it.name, "sql": it.sql});
    json!({
        "backtest": found.id,
        "models": found.models.iter().map(model).collect::<Vec<_>>(),
        "from": Timestamp(found.from_us).to_string(),
        "to": Timestamp(found.to_us).to_string(),
        "window_us": found.window_us,
        "label": found.label,
        "skip_null_labels": found.skip_null_labels,
        "event_timestamp": found.event_timestamp,
        "metrics": found.metrics.iter().map(metric).collect::<Vec<_>>(),
        "spine_root": found.spine_root,
        "spine_bytes": found.spine_bytes,
        "spine_file": found.spine_file,
        "known_as_of": Timestamp(found.known_us).to_string(),
        "rows": found.rows,
        "rows_outside": found.rows_outside,
        "rows_unlabelled": found.rows_unlabelled,
        "content": found.content,
        "token": found.token,
        "author": found.author,
        "description": found.description,
        "created": time_json(found.created_us),
    })
}

/// Told before any work.
fn check_plot(plot: &PlotArgs) -> Outcome {
    match &plot.plot {
        Some(file) if file.extension().is_none_or(|end| !end.eq_ignore_ascii_case("svg")) => {
            Err(Failure::input(format!("{}: a plot is SVG; the name must end in .svg", file.display())))
        }
        None if plot.plot_metric.is_some() => Err(Failure::input("--plot-metric needs --plot FILE.svg")),
        _ => Ok(()),
    }
}

fn draw(found: &api::Backtest, plot: &PlotArgs) -> Outcome {
    let Some(file) = &plot.plot else { return Ok(()) };
    let drawing = plot_of(found, plot.plot_metric.as_deref())?;
    std::fs::write(file, drawing.svg()).map_err(|error| Failure::input(format!("{}: {error}", file.display())))
}

fn plot_of(found: &api::Backtest, metric: Option<&str>) -> Result<Plot, Failure> {
    let any = |get: Get| found.models.iter().any(|model| model.overall.as_ref().and_then(get).is_some());
    let metric = match metric {
        Some(metric) => metric,
        None if any(|it| it.auc) => "auc",
        None => "rmse",
    };
    let built_in = METRICS.iter().find(|(name, _, _)| *name == metric);
    let own = found.metrics.iter().position(|it| it.name == metric);
    let get = |it: &api::BacktestScores| match (built_in, own) {
        (Some((_, _, get)), _) => get(it),
        (None, Some(at)) => it.metrics.get(at).and_then(|it| it.value),
        (None, None) => None,
    };
    if built_in.is_none() && own.is_none() {
        let names = METRICS.iter().map(|(name, _, _)| *name).chain(found.metrics.iter().map(|it| it.name.as_str()));
        let names: Vec<_> = names.collect();
        return Err(Failure::input(format!("there is no metric `{metric}`; there are {}", names.join(", "))));
    }
    let line = |model: &api::BacktestModel| Line {
        name: format!("{} (all: {})", named(model), number(model.overall.as_ref().and_then(get))),
        values: model.windows.iter().map(get).collect(),
    };
    let windows = found.models.first().map(|model| model.windows.as_slice()).unwrap_or_default();
    Ok(Plot {
        title: format!("{metric} of `{}` by windows of {}", found.label, length(found.window_us)),
        subtitle: format!(
            "{}, {} to {}, backtest {}",
            count(found.rows, "row"),
            day(found.from_us),
            day(found.to_us),
            found.id
        ),
        axis: metric.to_owned(),
        labels: windows.iter().map(|window| day(window.from_us)).collect(),
        lines: found.models.iter().map(line).collect(),
    })
}
