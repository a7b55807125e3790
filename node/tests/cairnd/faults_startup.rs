//! Starts that cannot be: each says what is in the way and what to do, ends with a failure, and leaves everything as it
//! was.

use crate::faults_support::Victim;
use crate::faults_support::process::{contents, fill, node_over, ports, refused_start, stored};
use crate::support::TestResult;
use expect_test::expect;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused() -> TestResult {
    let victim = Victim::new().await?;
    let folder = tempfile::tempdir()?;
    let join = ["--name", "n1", "--join", victim.peer_address()];
    let error = refused_start(&folder.path().join("n2"), &join).await?;
    let error = error.replace(victim.peer_address(), "ADDRESS");
    expect!["a node named `n1` is in the cluster already (id 1, at ADDRESS); start this one with another `--name`, with the data directory it had, or take the old one out first (`cairn cluster remove n1`)"].assert_eq(&error);
    assert_eq!(victim.story.client.status().await?.nodes.len(), 1);
    victim.works().await
}

#[tokio::test]
async fn joining_where_nobody_listens_ends_in_time() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [nobody, _] = cairn_client::local::free_addresses()?;
    let error = refused_start(folder.path(), &["--join", &nobody, "--join-timeout-s", "1"]).await?;
    expect!["cannot join the cluster at ADDRESS within 1s: cannot connect to ADDRESS: Connection refused (os error 111); `--join` takes the peer address of a node that is up"].assert_eq(&error.replace(&nobody, "ADDRESS"));
    let error = refused_start(folder.path(), &["--join", "not an address", "--join-timeout-s", "1"]).await?;
    expect!["`not an address` is no HOST:PORT: invalid URI"].assert_eq(&error);
    Ok(())
}

/// The client port of a node is no peer port, and says so at once.
#[tokio::test]
async fn joining_at_a_client_port_is_told() -> TestResult {
    let victim = Victim::new().await?;
    let folder = tempfile::tempdir()?;
    let error = refused_start(folder.path(), &["--join", victim.address(), "--join-timeout-s", "1"]).await?;
    expect![
        "this node does not offer `/cairn.peer.v1.Peer/Join`; this is a client port, and nodes join at a peer port"
    ]
    .assert_eq(&error.replace(victim.address(), "ADDRESS"));
    victim.unharmed().await
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_by_pid() -> TestResult {
    let victim = Victim::new().await?;
    let (data, pid) = (victim.story.folder().join("n1"), victim.story.cluster.process_id(0).ok_or("no process")?);
    let error = refused_start(&data, &[]).await?;
    let error = error.replace(&data.display().to_string(), "DIR").replace(&pid.to_string(), "PID");
    expect!["data directory DIR is in use by pid PID; stop it, or choose another directory"].assert_eq(&error);
    victim.unharmed().await
}

#[tokio::test]
async fn a_port_in_use_is_named() -> TestResult {
    let victim = Victim::new().await?;
    let folder = tempfile::tempdir()?;
    let [listen, own, peer_listen, own_peer] = ports()?;
    let error = refused_start(folder.path(), &[&listen, victim.address(), &peer_listen, &own_peer]).await?;
    expect!["cannot listen on ADDRESS (client port, set by --listen): Address already in use (os error 98)"]
        .assert_eq(&error.replace(victim.address(), "ADDRESS"));
    let error = refused_start(folder.path(), &[&listen, &own, &peer_listen, victim.peer_address()]).await?;
    expect!["cannot listen on ADDRESS (peer port, set by --peer-listen): Address already in use (os error 98)"]
        .assert_eq(&error.replace(victim.peer_address(), "ADDRESS"));
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0, "nothing was made");
    victim.unharmed().await
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("cairn.yaml");
    std::fs::write(&config, "shards: 2\nlisten: 127.0.0.1:0\npeer-lisen: 127.0.0.1:0\n")?;
    let config = config.display().to_string();
    let data = folder.path().join("data");
    let error = refused_start(&data, &["--shards", "999"]).await?;
    expect!["`shards` is 999; it must be 1 to 256"].assert_eq(&error);
    let error = refused_start(&data, &["--name", "n 1"]).await?;
    expect![[r#"`name` "n 1" must be 1 to 128 letters, digits, `.`, `_` or `-`"#]].assert_eq(&error);
    let error = refused_start(&data, &["--segments-url", "hdfs://host/history"]).await?;
    expect!["`segments-url`: `hdfs://host/history` is no object store that keeps segments; give `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///DIRECTORY`"]
        .assert_eq(&error);
    let error = refused_start(&data, &["--config", &config]).await?;
    assert!(error.contains("cairn.yaml") && error.contains("peer-lisen"), "{error}");
    let error = refused_start(Path::new("/proc/cairn"), &[]).await?;
    expect!["cannot make data directory /proc/cairn: No such file or directory (os error 2)"].assert_eq(&error);
    assert!(!data.exists());
    Ok(())
}

/// CRC-32C (Castagnoli, reflected), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[tokio::test]
async fn data_of_a_newer_version_is_refused_and_left_alone() -> TestResult {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("n1");
    let (cluster, client) = node_over(folder.path(), &[]).await?;
    fill(&client).await?;
    cluster.stop().await?;
    let segment = std::fs::read_dir(data.join("wal"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .max()
        .ok_or("no log segment")?;
    let replaced = |path: PathBuf, from: &str, to: &str| -> TestResult<(PathBuf, Vec<u8>)> {
        let text = std::fs::read_to_string(&path)?;
        assert!(text.contains(from), "{text}");
        Ok((path, text.replace(from, to).into_bytes()))
    };
    let header = || -> TestResult<(PathBuf, Vec<u8>)> {
        let mut bytes = std::fs::read(&segment)?;
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        Ok((segment.clone(), bytes))
    };
    let database = |group: &str| -> TestResult<PathBuf> {
        let group = data.join("groups").join(group);
        Ok(group.join(std::fs::read_to_string(group.join("CURRENT_DB"))?.trim_end()).join("CAIRN_FORMAT"))
    };
    let newer = [
        (
            replaced(data.join("identity"), "\"format_version\": 1", "\"format_version\": 2")?,
            expect![
                "data directory FOLDER/n1 has format 2, and this version of cairnd reads up to 1: start it with the version that wrote it, or a newer one"
            ],
        ),
        (
            replaced(database("0")?, "cairn meta 1", "cairn meta 2")?,
            expect![
                "FOLDER/n1/groups/0/db-000001 is in meta format 2, and this node reads formats up to 1; run the newer version that wrote it"
            ],
        ),
        (
            replaced(database("2")?, "cairn shard 4", "cairn shard 5")?,
            expect![
                "FOLDER/n1/groups/2/db-000001 is in shard format 5, and this node reads formats up to 4; run the newer version that wrote it"
            ],
        ),
        (
            header()?,
            expect![
                "`FOLDER/n1/wal/0000000000000001.wal` has log format 2, and this version of cairnd reads up to 1: start it with the version that wrote it, or a newer one"
            ],
        ),
    ];
    for ((path, bytes), expected) in newer {
        let ours = std::fs::read(&path)?;
        std::fs::write(&path, bytes)?;
        let before = contents(&data)?;
        let error = refused_start(&data, &[]).await?;
        expected.assert_eq(&error.replace(&folder.path().display().to_string(), "FOLDER"));
        assert!(contents(&data)? == before, "{} was touched", data.display());
        std::fs::write(&path, ours)?;
    }
    // As it was, it opens as if nothing had happened.
    let (cluster, client) = node_over(folder.path(), &[]).await?;
    assert_eq!(stored(&client, 7).await?, "7 | 4.5 | 3\n");
    Ok(cluster.stop().await?)
}
