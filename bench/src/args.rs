//! The command line, and the plan that comes of it: which cells, how long each.
//!
//! Always true: the usual sections end within about six minutes, in short within one, on two cores; nothing is measured
//! that is not in the plan.

use crate::load::Pace;
use crate::paced::Paced;
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
    /// Leaders killed by `failover`. [default: 50, with --short 2]
    #[arg(long, value_name = "N", value_parser = kills)]
    pub kills: Option<usize>,
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
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Role {
    /// The server of the ceiling: answers each question with prepared bytes.
    #[command(hide = true)]
    Echo,
    /// Reads of a node that runs already, at a fixed rate, as a line of JSON: what bench/sql/run.py measures with.
    Paced(Paced),
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
    /// Durable writes on three nodes, beside three of etcd.
    Replication,
    /// Leaders killed under load: how long until writes flow again, and what clients notice.
    Failover,
    /// A node far behind catches up by snapshot while writes go on.
    CatchUp,
    /// CPU of groups that nobody uses.
    Idle,
}

impl Section {
    /// What runs unless something else is asked for: the rest takes longer, and is about clusters.
    const USUAL: [Self; 4] = [Self::Start, Self::Read, Self::Predict, Self::Ingest];
    const ALL: [Self; 8] = [
        Self::Start,
        Self::Read,
        Self::Predict,
        Self::Ingest,
        Self::Replication,
        Self::Failover,
        Self::CatchUp,
        Self::Idle,
    ];
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
    pub replication: Vec<Load>,
    /// How often each system takes its turn in a cell of `replication`.
    pub rounds: usize,
    pub kills: usize,
    /// Rows that the node of `catch-up` misses, and how long writes are measured before it comes back.
    pub missed_rows: usize,
    pub undisturbed: Duration,
    /// Whether writes go on while it catches up. With a log as short as that of a short run, it might never otherwise.
    pub writes_go_on: bool,
    /// Feature shards of the clusters of `idle`, and how long each is watched.
    pub idle_shards: Vec<u32>,
    pub idle_watch: Duration,
}

impl Plan {
    pub fn new(args: &Args) -> Self {
        let wanted = |section: &Section| match args.only.as_slice() {
            [] => Section::USUAL.contains(section),
            only => only.contains(section),
        };
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
            sections: Section::ALL.into_iter().filter(wanted).collect(),
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
            replication: loads(&[1, 100], if args.short { &[8] } else { &[1, 32] }),
            rounds: if args.short { 1 } else { 3 },
            kills: args.kills.unwrap_or(if args.short { 2 } else { 50 }),
            missed_rows: if args.short { 40_000 } else { 1_000_000 },
            undisturbed: Duration::from_secs_f64(if args.short { 0.5 } else { 8.0 }),
            writes_go_on: !args.short,
            idle_shards: if args.short { vec![1, 8] } else { vec![1, 16, 64, 255] },
            idle_watch: Duration::from_secs_f64(if args.short { 0.5 } else { 20.0 }),
        }
    }
}

fn kills(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(kills) if (1..=1000).contains(&kills) => Ok(kills),
        _ => Err("a number of kills from 1 to 1000".to_owned()),
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
    fn what_is_about_clusters_runs_when_it_is_asked_for() {
        let plan = plan(&["--only", "idle,replication,failover,catch-up", "--kills", "7"]);
        assert_eq!(plan.sections, [Section::Replication, Section::Failover, Section::CatchUp, Section::Idle]);
        assert_eq!((plan.kills, plan.missed_rows, plan.rounds), (7, 1_000_000, 3));
        assert!(plan.replication.contains(&Load { rows: 100, clients: 32 }));
        assert!(plan.idle_watch >= Duration::from_secs(20));
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
            &["--kills", "0"],
            &["--verbose"],
        ] {
            assert!(Args::try_parse_from([&["cairn-bench"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
