//! The README's tour, run as it stands there against a real node.

use cairn_client::local::LocalCluster;
use std::path::Path;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The tour's blocks (```` ```sh tour ````), without the line that starts the node.
fn tour(readme: &str) -> String {
    let blocks = readme.split("```sh tour\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).filter(|line| !line.starts_with("cairnd ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn the_tour_of_the_readme_runs() -> TestResult {
    let node = std::env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&node).parent().ok_or("node/ has no parent")?;
    let cairnd = Path::new(env!("CARGO_BIN_EXE_cairnd"));
    let binaries = cairnd.parent().ok_or("cairnd lies in no folder")?;
    assert!(binaries.join("cairn").exists(), "no `cairn` beside {}: cargo build --workspace --bins", cairnd.display());
    let folder = tempfile::tempdir()?;
    let cluster = LocalCluster::start(cairnd, folder.path(), 1, &[]).await?;
    let address = cluster.addresses();

    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let script =
        tour(&readme).replace("localhost:7700", &address).replace("/tmp/", &format!("{}/", folder.path().display()));
    assert!(script.contains("cairn apply") && script.contains("cairn predict"), "the tour was not found:\n{script}");
    let path = std::env::var("PATH").unwrap_or_default();
    let run = tokio::process::Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(root)
        .env("PATH", format!("{}:{path}", binaries.display()))
        .env("CAIRN_NODE", &address)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), run).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{errors}");
    for expected in [
        "13 new, 0 changed",
        "26,115 rows stored in `weather`",
        "336,776 rows with 42 columns",
        "champion -> flight_delay@1",
        "feature_view:default/weather@1",
        r#""feature_names":["tailnum","seats"]"#,
        r#""name":"probabilities""#,
    ] {
        assert!(out.contains(expected), "the tour does not show {expected:?}:\n{out}\n{errors}");
    }
    cluster.stop().await?;
    Ok(())
}
