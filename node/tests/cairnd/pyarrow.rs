//! `client/examples/pyarrow_only.py`: a stock client with nothing of ours ingests, reads and predicts.

use cairn_client::local::LocalCluster;
use cairn_client::registry::{Expected, Promotion};
use cairn_client::{Client, DEFAULT_PROJECT, api, definitions};
use std::path::{Path, PathBuf};
use std::process::Command;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The Python with pyarrow, the ADBC driver, DuckDB and Polars: `CAIRN_PYTHON`, which `make test` sets, or `python3`.
pub fn python() -> String {
    let python = std::env::var("CAIRN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_pyarrow =
        Command::new(&python).args(["-c", "import pyarrow.flight, adbc_driver_flightsql, duckdb, polars"]).output();
    assert!(
        has_pyarrow.is_ok_and(|output| output.status.success()),
        "`{python}` has not all of pyarrow, the ADBC driver, DuckDB and Polars: `make test` makes a .venv with them and sets CAIRN_PYTHON; or pip install -r \
         client/examples/requirements.txt and set CAIRN_PYTHON yourself"
    );
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn pyarrow_alone_ingests_reads_and_predicts() -> TestResult {
    let python = python();
    let examples: PathBuf = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../client/examples");
    let folder = tempfile::tempdir()?;
    let cluster = LocalCluster::start(Path::new(env!("CARGO_BIN_EXE_cairnd")), folder.path(), 1, &[]).await?;
    let client = Client::connect(&cluster.addresses()).await?;
    client.apply(DEFAULT_PROJECT, definitions::read_sources(&[examples.join("flights/definitions")])?).await?;
    let artifact = client.upload_file(&examples.join("flights/models/delay_trees.onnx"), None).await?;
    let version = api::RegisterModelVersionRequest {
        project: DEFAULT_PROJECT.to_owned(),
        model: "flight_delay".to_owned(),
        artifact_root: artifact.root,
        file_name: "delay_trees.onnx".to_owned(),
        feature_service: "flight_delay".to_owned(),
        ..Default::default()
    };
    client.register_model(version).await?;
    let promotion = Promotion {
        project: DEFAULT_PROJECT,
        model: "flight_delay",
        version: 1,
        alias: "champion",
        expected: Expected::None,
        author: "test",
        reason: "",
    };
    client.promote(&promotion).await?;

    let mut script = tokio::process::Command::new(python);
    script.arg(examples.join("pyarrow_only.py")).env("CAIRN_NODE", cluster.addresses()).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), script.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    assert!(out.contains("'rows_accepted': 1, 'rows_updated': 1"), "{out}");
    assert!(out.contains("'tailnum': 'N318JB', 'model': 'A321-231'"), "{out}");
    assert!(out.contains("'label': ") && out.contains("'probabilities': ["), "{out}");
    let lines = std::fs::read_to_string(examples.join("pyarrow_only.py"))?.lines().count();
    assert!(lines <= 34, "the script is meant to stay about 30 lines, it has {lines}");
    cluster.stop().await?;
    Ok(())
}
