//! The report: a table for people on stdout, and every number as a line of JSON.
//!
//! Always true: a cell is printed as soon as it is measured; a ratio is of two numbers of the same load and run; `†`
//! marks a number beside which other processes kept more than a tenth of a core busy.

use crate::error::{Error, Result};
use crate::stats::{Measured, ratio};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// From here on a number is marked as disturbed.
const DISTURBED_CORES: f64 = 0.1;

/// Where numbers go.
#[derive(Debug)]
pub struct Report {
    out: Option<File>,
    /// Heading of the last column of the table being printed.
    compared: &'static str,
    disturbed: usize,
    cells: usize,
}

/// What a cell is: the section, and its load.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub section: &'static str,
    pub rows: usize,
    pub clients: usize,
}

impl Report {
    /// # Errors
    /// `System` when the file cannot be made.
    pub fn new(out: Option<&Path>) -> Result<Self> {
        let out = out.map(|path| File::create(path).map_err(Error::file(path))).transpose()?;
        Ok(Self { out, compared: "", disturbed: 0, cells: 0 })
    }

    /// A line for people.
    pub fn say(&self, text: &str) {
        println!("{text}");
    }

    /// Begins a table. `rows` names what a request holds, `compared` the ratio in the last column, if there is one.
    pub fn table(&mut self, title: &str, rows: &str, compared: &'static str) {
        self.compared = compared;
        println!("\n## {title}\n");
        let last = if compared.is_empty() { String::new() } else { format!(" {compared:>12} |") };
        println!(
            "| {rows:>8} | {:>7} | {:<22} | {:>9} | {:>9} | {:>8} | {:>8} | {:>8} |{last}",
            "clients", "system", "rows/s", "req/s", "p50", "p95", "p99"
        );
        let last = if compared.is_empty() { "" } else { "-------------:|" };
        println!(
            "|---------:|--------:|:-----------------------|----------:|----------:|---------:|---------:|---------:|{last}"
        );
    }

    /// One line of the table. `compared_rows_s` is divided by this system's rows/s.
    ///
    /// # Errors
    /// `System` when the JSON line cannot be written.
    pub fn cell(&mut self, cell: Cell, system: &str, measured: &Measured, compared_rows_s: Option<f64>) -> Result<()> {
        let (rows_s, requests_s) = (measured.rows_per_second(), measured.requests_per_second());
        let compared = compared_rows_s.and_then(|over| ratio(over, rows_s));
        let disturbed = measured.other_cores > DISTURBED_CORES;
        self.cells += 1;
        self.disturbed += usize::from(disturbed);
        let last = match compared {
            _ if self.compared.is_empty() => String::new(),
            Some(ratio) => format!(" {:>12} |", format!("{ratio:.2}")),
            None => format!(" {:>12} |", ""),
        };
        let times = [0.5, 0.95, 0.99].map(|share| time(measured.latencies.at(share)));
        println!(
            "| {:>8} | {:>7} | {:<22} | {:>9} | {:>9} | {:>8} | {:>8} | {:>8} |{last}",
            cell.rows,
            cell.clients,
            system,
            format!("{}{}", count(rows_s), if disturbed { "†" } else { "" }),
            count(requests_s),
            times[0],
            times[1],
            times[2],
        );
        let us = |latency: Duration| latency.as_nanos() as f64 / 1e3;
        let mut line = Map::new();
        line.insert("section".into(), json!(cell.section));
        line.insert("system".into(), json!(system));
        line.insert("rows_per_request".into(), json!(cell.rows));
        line.insert("clients".into(), json!(cell.clients));
        line.insert("rows".into(), json!(measured.rows));
        line.insert("requests".into(), json!(measured.latencies.count()));
        line.insert("seconds".into(), json!(measured.elapsed.as_secs_f64()));
        line.insert("rows_per_s".into(), json!(rows_s));
        line.insert("requests_per_s".into(), json!(requests_s));
        for (name, share) in [("p50_us", 0.5), ("p95_us", 0.95), ("p99_us", 0.99)] {
            line.insert(name.into(), json!(us(measured.latencies.at(share))));
        }
        line.insert("longest_us".into(), json!(us(measured.latencies.longest())));
        line.insert("other_cores".into(), json!(measured.other_cores));
        if let Some(ratio) = compared {
            line.insert("compared".into(), json!(self.compared));
            line.insert("ratio".into(), json!(ratio));
        }
        self.write("cell", line)
    }

    /// Numbers that are no cell. `line` is an object.
    ///
    /// # Errors
    /// `System` when the JSON line cannot be written.
    pub fn note(&mut self, kind: &str, line: Value) -> Result<()> {
        let Value::Object(line) = line else {
            return Err(Error::Internal(format!("`{kind}` is not an object")));
        };
        self.write(kind, line)
    }

    /// Says how far the numbers can be trusted.
    pub fn close(&self, took: Duration) {
        println!("\n{} cells in {:.0} s.", self.cells, took.as_secs_f64());
        if self.disturbed > 0 {
            println!(
                "† {} of them while other processes kept over {DISTURBED_CORES} cores busy: run again on a quiet machine.",
                self.disturbed
            );
        }
    }

    fn write(&mut self, kind: &str, mut line: Map<String, Value>) -> Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        line.insert("kind".into(), json!(kind));
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line.insert("unix_s".into(), json!(at.as_secs_f64()));
        writeln!(out, "{}", Value::Object(line)).map_err(Error::system("the file of --out"))
    }
}

/// Three digits: `12.3k`.
pub fn count(number: f64) -> String {
    let scaled = |value: f64, unit: &str| match value {
        value if value < 9.995 => format!("{value:.2}{unit}"),
        value if value < 99.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    };
    match number {
        number if number < 999.5 => scaled(number, ""),
        number if number < 999_500.0 => scaled(number / 1e3, "k"),
        number => scaled(number / 1e6, "M"),
    }
}

/// Three digits: `1.23ms`.
pub fn time(took: Duration) -> String {
    match took.as_nanos() as f64 / 1e3 {
        us if us < 999.5 => format!("{}us", count(us)),
        us if us < 999_500.0 => format!("{}ms", count(us / 1e3)),
        us => format!("{}s", count(us / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Latencies;

    #[test]
    fn numbers_have_three_digits() {
        for (number, expected) in
            [(0.0, "0.00"), (9.994, "9.99"), (9.996, "10.0"), (999.4, "999"), (999.6, "1.00k"), (12_345.0, "12.3k")]
        {
            assert_eq!(count(number), expected);
        }
        assert_eq!(count(1_234_567.0), "1.23M");
        for (us, expected) in [(63, "63.0us"), (1_234, "1.23ms"), (2_500_000, "2.50s")] {
            assert_eq!(time(Duration::from_micros(us)), expected);
        }
    }

    #[test]
    fn a_cell_is_a_line_of_json() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let mut report = Report::new(Some(path.path())).unwrap();
        let mut latencies = Latencies::new();
        (0..200).for_each(|_| latencies.record(Duration::from_micros(500)));
        let measured = Measured { rows: 2_000, elapsed: Duration::from_secs(2), latencies, other_cores: 0.5 };
        report.table("Reads", "entities", "Cairn ÷ it");
        let cell = Cell { section: "read", rows: 10, clients: 8 };
        report.cell(cell, "Redis HMGET", &measured, Some(3_000.0)).unwrap();
        report.note("conditions", json!({"cores": 2})).unwrap();
        let text = std::fs::read_to_string(path.path()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["rows_per_s"], &lines[0]["ratio"]), (&json!(1_000.0), &json!(3.0)));
        assert_eq!((&lines[0]["kind"], &lines[1]["cores"]), (&json!("cell"), &json!(2)));
        assert!(lines[0]["p99_us"].as_f64().is_some_and(|us| (499.0..502.0).contains(&us)));
        assert_eq!(report.disturbed, 1);
    }
}
