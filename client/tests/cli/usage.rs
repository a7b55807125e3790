//! `cairn status`, nodes that do not answer, and command lines that mean nothing.

use super::support::{Cli, TestResult, cairn};
use expect_test::expect;

#[tokio::test]
async fn the_state_of_a_cluster_is_shown() -> TestResult {
    let cli = Cli::start().await?;
    let said = cli.run("status").await?;
    assert_eq!((said.code, said.errors.as_str()), (Some(0), ""));
    for line in ["cluster ", "n1 (asked)", "meta     n1", "shard 1  n1", "shard 2  n1"] {
        assert!(said.out.contains(line), "{line}: {}", said.out);
    }
    let document: serde_json::Value = serde_json::from_str(&cli.run("status --output json").await?.out)?;
    assert_eq!(document["groups"].as_array().map(Vec::len), Some(3));
    assert_eq!(document["nodes"][0]["self"], true);
    assert_eq!(document["read_only"], false);
    cli.end().await
}

#[tokio::test]
async fn what_does_not_answer_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let said = async |node: &str, line: &str| -> TestResult<String> {
        let said = cairn(node, folder.path(), line).await?;
        assert_eq!(said.out, "");
        Ok(format!("{}exit {:?}\n", said.errors.replace(node, "NODE"), said.code))
    };
    // No server listens there.
    let closed = "127.0.0.1:1";
    expect![[r#"
        error: cannot connect to NODE: Connection refused (os error 111)
        hint: is `cairnd` running at NODE? start it with `cairnd`, or name another node with --node HOST:PORT or CAIRN_NODE
        exit Some(5)
    "#]].assert_eq(&said(closed, "status").await?);
    expect![[r#"
        {"error":{"hint":"is `cairnd` running at NODE? start it with `cairnd`, or name another node with --node HOST:PORT or CAIRN_NODE","kind":"unavailable","message":"cannot connect to NODE: Connection refused (os error 111)"}}
        exit Some(5)
    "#]].assert_eq(&said(closed, "status --output json").await?);
    expect![[r#"
        error: `NODE` is not the address of a node: it holds more than a host and a port; write HOST:PORT such as `127.0.0.1:7700`
        exit Some(2)
    "#]].assert_eq(&said("no address", "status").await?);

    // Something that takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = silent.local_addr()?.to_string();
    let late = said(&address, "status --timeout 1").await?;
    assert!(late.starts_with("error: no answer from NODE within "), "{late}");
    assert!(late.ends_with("exit Some(5)\n"), "{late}");

    // Something that speaks another protocol.
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = web.local_addr()?.to_string();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    // Which of its connections ended how is chance; what to look at is not.
    let other = said(&address, "status --timeout 2").await?;
    assert!(other.starts_with("error: ") && other.contains("NODE") && other.contains("\nhint: "), "{other}");
    assert!(other.ends_with("exit Some(5)\n"), "{other}");
    serving.abort();
    Ok(())
}

#[tokio::test]
async fn wrong_usage_is_explained_before_anything_is_sent() -> TestResult {
    let folder = tempfile::tempdir()?;
    let said = async |line: &str| -> TestResult<String> {
        let said = cairn("127.0.0.1:1", folder.path(), line).await?;
        Ok(format!("{}{}exit {:?}\n", said.out, said.errors, said.code))
    };
    expect![[r#"
        error: unexpected argument '--nod' found

          tip: a similar argument exists: '--node'

        Usage: cairn status --node <HOST:PORT>

        For more information, try '--help'.
        exit Some(2)
    "#]]
    .assert_eq(&said("status --nod localhost").await?);
    expect![[r#"
        error: unrecognized subcommand 'stats'

          tip: a similar subcommand exists: 'status'

        Usage: cairn [OPTIONS] <COMMAND>

        For more information, try '--help'.
        exit Some(2)
    "#]]
    .assert_eq(&said("stats").await?);
    expect![[r#"
        error: invalid value 'yaml' for '--output <OUTPUT>'
          [possible values: table, json]

        For more information, try '--help'.
        exit Some(2)
    "#]]
    .assert_eq(&said("status --output yaml").await?);
    expect![[r#"
        error: invalid value '0' for '--timeout <SECONDS>': 0 is not in 1..=86400

        For more information, try '--help'.
        exit Some(2)
    "#]]
    .assert_eq(&said("status --timeout 0").await?);
    expect![[r#"
        error: invalid value 'fare@zero' for '<NAME[@VERSION|:ALIAS]>': `zero` is not a version; versions are numbers from 1

        For more information, try '--help'.
        exit Some(2)
    "#]].assert_eq(&said("model show fare@zero").await?);
    expect![[r#"
        error: invalid value 'some' for '--expect <VERSION|none>': `some` is not a version; versions are numbers from 1, or `none`

        For more information, try '--help'.
        exit Some(2)
    "#]].assert_eq(&said("model promote fare 1 --alias champion --expect some").await?);
    expect![[r#"
        error: invalid value '0' for '--batch-rows <N>': 0 is not in 1..=65536

        For more information, try '--help'.
        exit Some(2)
    "#]]
    .assert_eq(&said("ingest stats rows.csv --batch-rows 0").await?);
    let help = said("--help").await?;
    assert!(help.contains("Exit codes:") && help.ends_with("exit Some(0)\n"), "{help}");
    Ok(())
}
