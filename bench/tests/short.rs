//! `make bench-replication` in its short form: every section about clusters runs, and says what it should.

use serde_json::Value;
use std::process::Command;

#[test]
fn what_is_about_clusters_runs_and_says_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("numbers.jsonl");
    let cairnd = cairn_client::local::cairnd().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
        .args(["--short", "--seconds", "0.2", "--kills", "1", "--only", "replication,failover,catch-up,idle"])
        .arg("--cairnd")
        .arg(cairnd)
        .arg("--folder")
        .arg(folder.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();

    let cairn = of("cell").into_iter().filter(|cell| cell["system"] == "Cairn").count();
    assert_eq!(cairn, 2, "{said}");
    assert_eq!(of("idle").len(), 4, "{said}");
    let [failover] = of("failover")[..] else { panic!("{said}") };
    assert_eq!(failover["failed"], 0, "{said}");
    assert_eq!(failover["gaps_ms"].as_array().map(Vec::len), Some(1), "{said}");
    let [catch_up] = of("catch_up")[..] else { panic!("{said}") };
    assert!(catch_up["undisturbed_rows_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{said}");
    // Whether so few rows need one is a matter of timing.
    assert!(catch_up["shards_by_snapshot"].is_u64(), "{said}");
    // The folder of the run is gone, the numbers stay.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// `make bench-history` in its short form. Polars and DuckDB must join as Cairn does, value by value, or the run fails.
#[test]
fn a_training_set_is_what_polars_and_duckdb_join() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("numbers.jsonl");
    let cairnd = cairn_client::local::cairnd().unwrap();
    let python = std::env::var("CAIRN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    // Where the test runs, which need not be where it was built.
    let here = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let run = Command::new(python)
        .arg(here.join("history/run.py"))
        .args(["--entities", "2000", "--versions", "60", "--spine", "40000", "--views", "1,2", "--rounds", "1"])
        .arg("--bin")
        .arg(cairnd.parent().unwrap())
        .arg("--folder")
        .arg(folder.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for system in ["cairn", "polars", "duckdb"] {
        let views: Vec<_> = lines.iter().filter(|line| line["system"] == system).map(|line| &line["views"]).collect();
        assert_eq!(views, [1, 2], "{system}: {said}");
    }
}

/// `make bench-sql` in its short form. What scans find must be the same as DuckDB does, and DataFusion where it is installed, or
/// the run fails.
#[test]
fn scans_find_what_duckdb_finds_and_reads_go_on_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("numbers.jsonl");
    let cairnd = cairn_client::local::cairnd().unwrap();
    let python = std::env::var("CAIRN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    // Where the test runs, which need not be where it was built.
    let here = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let run = Command::new(python)
        .arg(here.join("sql/run.py"))
        .args(["--entities", "1000", "--versions", "30", "--spine", "2000", "--rounds", "1", "--seconds", "0.3"])
        .args(["--rate", "50"])
        .arg("--bin")
        .arg(cairnd.parent().unwrap())
        .arg("--folder")
        .arg(folder.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |section: &str, name: &str| {
        let found = lines.iter().filter(|line| line["section"] == section);
        found.map(|line| line[name].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let systems = of("scan", "system");
    for system in ["Cairn, segments", "Cairn, database", "DuckDB, 2 threads"] {
        assert_eq!(systems.iter().filter(|it| *it == system).count(), 2, "{system}: {said}");
    }
    assert_eq!(of("as_of", "read"), ["latest", "as of now", "as of the past"].repeat(2), "{said}");
    let beside = ["nothing", "a scan in SQL", "a scan of the database", "a backtest"];
    assert_eq!(of("beside", "beside"), beside, "{said}");
    let quiet = lines.iter().filter(|line| line["section"] == "beside" && line["p99_us"].as_f64() <= Some(0.0)).count();
    assert_eq!(quiet, 0, "{said}");
}
