//! The command line, and the plan that comes of it: which cells, how long each.
//!
//! Always true: a full run ends within about six minutes, a short one within one, on two cores; nothing is measured
//! that is not in the plan.

use crate::load::Pace;
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Measures Cairn on this machine, beside its ceilings and beside Redis where that is installed.
#[derive(Debug, Parser)]
#[command(name = "cairn-bench", version)]
pub struct Args {
    /// The server to measure. [default: the one built beside this program, or CAIRND]
    #[arg(long, value_name = "FILE")]
    pub cairnd: Option<PathBuf>,
    /// Fewer cells, shorter ones, fewer entities: under a minute, to see that everything runs.
    #[arg(long)]
    pub short: bool,
    /// Only these sections.
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    pub only: Vec<Section>,
    /// Entities in the tables that are read. [default: 200000, with --short 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    pub entities: Option<u64>,
    /// Measured time of a cell. [default: 2, with --short 0.4]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Where data directories are made, and removed at the end: it decides which disk is measured.
    /// [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Folder with `delay_trees.onnx` and `delay_mlp.onnx`. [default: those of the flights example]
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Leaves Redis out.
    #[arg(long)]
    pub no_peers: bool,
    /// Writes every number as a line of JSON as well.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(subcommand)]
    pub role: Option<Role>,
}

/// Other things this program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Role {
    /// The server of the ceiling: answers each question with prepared bytes.
    #[command(hide = true)]
    Echo,
}

/// A part of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Cold start and idle memory.
    Start,
    /// Online features by key.
    Read,
    /// Predictions by key.
    Predict,
    /// Durable writes, one node and three.
    Ingest,
}

/// Load of one cell: rows in a request, clients side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub rows: usize,
    pub clients: usize,
}

/// What a run does.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub sections: Vec<Section>,
    pub pace: Pace,
    pub entities: u64,
    pub starts: usize,
    /// How long an empty node is left alone before its memory is read.
    pub idle: Duration,
    pub fsync: Duration,
    pub read: Vec<Load>,
    pub predict: Vec<Load>,
    pub ingest: Vec<Load>,
}

impl Plan {
    pub fn new(args: &Args) -> Self {
        let all = [Section::Start, Section::Read, Section::Predict, Section::Ingest];
        let wanted = |section: &Section| args.only.is_empty() || args.only.contains(section);
        let measure = args.seconds.unwrap_or(if args.short { 0.4 } else { 2.0 });
        let loads = |rows: &[usize], clients: &[usize]| -> Vec<Load> {
            rows.iter().flat_map(|rows| clients.iter().map(|clients| Load { rows: *rows, clients: *clients })).collect()
        };
        let read = if args.short { loads(&[1, 100], &[1, 8]) } else { loads(&[1, 10, 100], &[1, 8, 32]) };
        let mut ingest = if args.short { loads(&[1, 1_000], &[1, 8]) } else { loads(&[1, 100], &[1, 8, 32]) };
        if !args.short {
            // More clients with batches this large only wait longer: the log and the tables are the bound.
            ingest.extend(loads(&[1_000, 10_000], &[1, 8]));
        }
        Self {
            sections: all.into_iter().filter(wanted).collect(),
            pace: Pace {
                warm_up: Duration::from_secs_f64((measure / 5.0).clamp(0.05, 0.5)),
                measure: Duration::from_secs_f64(measure),
            },
            entities: args.entities.unwrap_or(if args.short { 20_000 } else { 200_000 }),
            starts: if args.short { 3 } else { 10 },
            idle: Duration::from_secs(5),
            fsync: Duration::from_secs_f64(measure.min(1.0)),
            read,
            predict: loads(&[1, 100], &[1, 8]),
            ingest,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.05 to 60".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn plan(arguments: &[&str]) -> Plan {
        Plan::new(&Args::try_parse_from([&["cairn-bench"], arguments].concat()).unwrap())
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn without_arguments_everything_runs_in_full() {
        let plan = plan(&[]);
        assert_eq!(plan.sections, [Section::Start, Section::Read, Section::Predict, Section::Ingest]);
        assert_eq!((plan.entities, plan.starts, plan.read.len(), plan.predict.len()), (200_000, 10, 9, 4));
        assert!(plan.ingest.contains(&Load { rows: 1, clients: 32 }));
        assert!(plan.ingest.contains(&Load { rows: 10_000, clients: 1 }));
        assert_eq!(plan.pace.measure, Duration::from_secs(2));
    }

    #[test]
    fn a_short_run_is_short() {
        let (short, full) = (plan(&["--short"]), plan(&[]));
        let cells = |plan: &Plan| 4 * plan.read.len() + 3 * plan.predict.len() + 4 * plan.ingest.len();
        let seconds = |plan: &Plan| (plan.pace.warm_up + plan.pace.measure).as_secs_f64() * cells(plan) as f64;
        assert!(seconds(&short) < 30.0, "{}", seconds(&short));
        assert!(seconds(&full) < 300.0, "{}", seconds(&full));
    }

    #[test]
    fn arguments_change_what_they_say() {
        let plan = plan(&["--short", "--only", "read,ingest", "--entities", "1000000", "--seconds", "0.5"]);
        assert_eq!(plan.sections, [Section::Read, Section::Ingest]);
        assert_eq!((plan.entities, plan.pace.measure), (1_000_000, Duration::from_millis(500)));
        assert_eq!(Args::try_parse_from(["cairn-bench", "echo"]).unwrap().role, Some(Role::Echo));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for wrong in [
            &["--only", "reads"][..],
            &["--entities", "999"],
            &["--entities", "2000000"],
            &["--seconds", "0"],
            &["--seconds", "NaN"],
            &["--verbose"],
        ] {
            assert!(Args::try_parse_from([&["cairn-bench"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
