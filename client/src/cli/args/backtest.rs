//! What may be typed after `cairn backtest`.

use super::{ModelRef, model_ref, pair, time};
use cairn_client::Timestamp;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true, subcommand_value_name = "list|show")]
pub struct BacktestArgs {
    #[command(subcommand)]
    pub command: Option<BacktestCommand>,
    #[command(flatten)]
    pub run: BacktestRunArgs,
}

#[derive(Debug, Subcommand)]
pub enum BacktestCommand {
    /// List the backtests of the project, the newest first.
    List {
        /// Only those of this model, or of this version of it.
        #[arg(value_name = "NAME[@VERSION|:ALIAS]", value_parser = model_ref)]
        model: Option<ModelRef>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
    /// Show how the models of a backtest did in each window.
    Show {
        /// Its number, as `cairn backtest list` tells.
        id: u64,
        #[command(flatten)]
        plot: PlotArgs,
    },
}

#[derive(Debug, clap::Args)]
pub struct PlotArgs {
    /// Draw a metric by window into this file.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Which one: auc, log_loss, rmse, calibration_error, bias, or the name of a --metric. Default: auc, or rmse where
    /// labels are no classes.
    #[arg(long, value_name = "NAME")]
    pub plot_metric: Option<String>,
}

/// What a run needs is optional here, since `list` and `show` need none of it.
#[derive(Debug, clap::Args)]
pub struct BacktestRunArgs {
    /// Parquet or CSV file with join keys, a time and a label for each row; it is kept.
    #[arg(required = true)]
    pub spine: Option<PathBuf>,
    /// Model versions to compare. All see the same rows at the same moment.
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME@VERSION|NAME:ALIAS,…", value_parser = model_ref)]
    pub models: Vec<ModelRef>,
    /// First event time that counts (RFC 3339, or microseconds since 1970).
    #[arg(long, required = true, value_name = "TIME", value_parser = time)]
    pub from: Option<Timestamp>,
    /// First event time after that which does not count.
    #[arg(long, required = true, value_name = "TIME", value_parser = time)]
    pub to: Option<Timestamp>,
    /// Column of the spine with what really happened: true or false, 1 or 0, or a number.
    #[arg(long, required = true, value_name = "COL")]
    pub label: Option<String>,
    /// Length of a window, such as `7d` or `12h`; windows begin at --from, the last one ends at --to. Default: one window.
    #[arg(long, value_name = "DURATION", value_parser = duration_us)]
    pub window: Option<i64>,
    /// Column of the spine with the time of each row.
    #[arg(long, default_value = cairn_client::command::EVENT_TIMESTAMP, value_name = "COL")]
    pub event_timestamp: String,
    /// Leave out rows without a label, and count them, instead of refusing the spine.
    #[arg(long)]
    pub skip_null_labels: bool,
    /// A further metric: a SQL aggregate over `label`, `prediction` and the columns of the spine, such as
    /// `mae=avg(abs(label - prediction))`. May be given several times.
    #[arg(long = "metric", value_name = "NAME=SQL", value_parser = metric)]
    pub metrics: Vec<(String, String)>,
    /// Which number of a model's answer is its score, where that is open: an output, and the class whose value it is.
    #[arg(long = "score", value_name = "[MODEL=]OUTPUT[[CLASS]]", value_parser = score)]
    pub scores: Vec<ScoreArg>,
    /// Only what was committed by then; with the moment of an earlier backtest, its numbers come out again. Default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub known_as_of: Option<Timestamp>,
    /// Where the rows go with the score of each model, .parquet or .csv.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub plot: PlotArgs,
    /// What it is for.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub description: String,
    /// Who runs it.
    #[arg(long, env = "USER", default_value = "", hide_env_values = true)]
    pub author: String,
}

/// `OUTPUT`, `OUTPUT[CLASS]`, each also behind `MODEL=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreArg {
    /// The models it is of; all if none is named.
    pub model: Option<ModelRef>,
    pub output: String,
    pub class: Option<String>,
}

impl ScoreArg {
    /// Whether it speaks of a model that was named so.
    pub fn is_of(&self, model: &ModelRef) -> bool {
        self.model.as_ref().is_none_or(|it| it.name == model.name && (it.which.is_none() || it.which == model.which))
    }
}

fn metric(text: &str) -> Result<(String, String), String> {
    let (name, sql) = pair(text)?;
    match sql.trim() {
        "" => Err("the SQL after `=` is empty".to_owned()),
        sql => Ok((name.to_owned(), sql.to_owned())),
    }
}

fn score(text: &str) -> Result<ScoreArg, String> {
    let (model, rest) = match text.split_once('=') {
        Some((model, rest)) => (Some(model_ref(model)?), rest),
        None => (None, text),
    };
    let (output, class) = match rest.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((_, "")) => return Err("the class between `[` and `]` is empty".to_owned()),
        Some((output, class)) => (output, Some(class.to_owned())),
        None => (rest, None),
    };
    match output {
        "" => Err("write an output of the model, such as `probabilities` or `probabilities[1]`".to_owned()),
        output => Ok(ScoreArg { model, output: output.to_owned(), class }),
    }
}

/// `7d`, `90s`: microseconds.
pub fn duration_us(text: &str) -> Result<i64, String> {
    let wrong = || format!("`{text}` is not a length of time; write a number with s, m, h, d or w, such as `7d`");
    let split = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let unit_us: i64 = match unit.trim() {
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "w" => 604_800_000_000,
        _ => return Err(wrong()),
    };
    let number: i64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit_us).filter(|length| *length > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Args, Command};
    use cairn_client::registry::VersionOf;
    use clap::Parser;

    fn parse(line: &str) -> Result<BacktestArgs, String> {
        match Args::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?.command {
            Command::Backtest(args) => Ok(args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_run_names_everything_it_needs() {
        let line =
            "cairn backtest s.csv --models a@1,b:champion --from 5 --to 2013-01-01T00:00:00Z --label late --window 7d";
        let run = parse(line).unwrap().run;
        assert_eq!(run.spine.unwrap(), PathBuf::from("s.csv"));
        assert_eq!(run.models.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((run.from.unwrap().0, run.window), (5, Some(604_800_000_000)));
        for left_out in ["s.csv", "--models a@1,b:champion", "--from 5", "--label late"] {
            assert!(parse(&line.replace(left_out, "")).is_err(), "{left_out}");
        }
    }

    #[test]
    fn list_and_show_need_nothing_of_a_run() {
        for line in ["cairn backtest list", "cairn backtest list a@1 --limit 5", "cairn backtest show 7 --plot x.svg"] {
            assert!(parse(line).unwrap().command.is_some(), "{line}");
        }
        assert!(parse("cairn backtest --output json list").unwrap().command.is_some());
        assert!(parse("cairn backtest show").is_err());
    }

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(duration_us("90s"), Ok(90_000_000));
        assert_eq!(duration_us("2w"), Ok(1_209_600_000_000));
        for wrong in ["", "7", "d", "-1d", "0h", "7 days", "99999999999999w", "7.5d"] {
            assert!(duration_us(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn scores_name_outputs_and_classes() {
        let all = score("p").unwrap();
        assert_eq!(all, ScoreArg { model: None, output: "p".into(), class: None });
        let one = score("delay@2=probabilities[late]").unwrap();
        assert_eq!((one.output.as_str(), one.class.as_deref()), ("probabilities", Some("late")));
        let model = |which| ModelRef { name: "delay".into(), which };
        assert!(one.is_of(&model(Some(VersionOf::Number(2)))) && !one.is_of(&model(Some(VersionOf::Number(1)))));
        assert!(score("delay=p").unwrap().is_of(&model(Some(VersionOf::Number(1)))) && all.is_of(&model(None)));
        for wrong in ["", "p[]", "=p", "delay@2=", "[1]"] {
            assert!(score(wrong).is_err(), "{wrong}");
        }
    }
}
