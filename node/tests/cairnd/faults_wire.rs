//! Bytes that no client of ours sends: broken Arrow streams, noise on both ports, callers that never finish. Each is
//! refused or cut off alone; everybody else is served meanwhile.

use crate::faults_support::wire::{connect, exchange, hold, messages, put, throw};
use crate::faults_support::{Victim, driver, row, told};
use crate::support::TestResult;
use crate::support::chance::Chance;
use arrow_flight::{FlightData, FlightDescriptor};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use cairn_proto::PEER_PROTOCOL;
use cairn_proto::peer::v1::peer_client::PeerClient;
use cairn_proto::peer::v1::{Envelope, JoinRequest, ProposeRequest, RaftFrame, ReadIndexRequest, SnapshotFrame};
use expect_test::{Expect, expect};
use tonic::transport::Channel;

const INGEST: &str = r#"{"op":"ingest","feature_view":"stats"}"#;
const READ: &str = r#"{"op":"get_online_features","feature_service":"eta"}"#;
/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn halve(bytes: &mut bytes::Bytes) {
    bytes.truncate(bytes.len() / 2);
}

#[tokio::test]
async fn broken_arrow_streams_are_refused() -> TestResult {
    let victim = Victim::new().await?;
    let address = victim.address();
    let good = messages(INGEST, &row(9, 1.0, 1))?;
    let check = async |what: &dyn Fn(&mut Vec<FlightData>), expected: Expect| -> TestResult {
        let mut broken = good.clone();
        what(&mut broken);
        let refusal = put(address, broken).await?.ok_or("taken")?;
        expected.assert_eq(&told(&refusal));
        Ok(())
    };
    check(
        &|it| it.clear(),
        expect!["invalid_argument: the stream is empty; its first message carries the command and the schema"],
    )
    .await?;
    check(
        &|it| it[0].flight_descriptor = None,
        expect!["invalid_argument: the first message has no flight descriptor; put the JSON command into its `cmd`"],
    )
    .await?;
    check(
        &|it| it[0].flight_descriptor = Some(FlightDescriptor::new_path(vec!["stats".into()])),
        expect!["invalid_argument: the flight descriptor has no `cmd`; Cairn's commands are JSON in `cmd`, not paths"],
    )
    .await?;
    let command = |text: &'static str| {
        move |it: &mut Vec<FlightData>| {
            it[0].flight_descriptor = Some(FlightDescriptor::new_cmd(text));
        }
    };
    check(&command("stats"), expect![[r#"invalid_argument: the Flight command is not understood: expected value at line 1 column 1; it is JSON such as {"op":"get_online_features","project":"default","feature_service":"eta"}"#]]).await?;
    check(&command(r#"{"op":"ingst","feature_view":"stats"}"#), expect![[r#"invalid_argument: the Flight command is not understood: unknown variant `ingst`, expected one of `ingest`, `get_online_features`, `get_historical_features`, `predict`, `backtest` at line 1 column 13; it is JSON such as {"op":"get_online_features","project":"default","feature_service":"eta"}"#]]).await?;
    check(&command(r#"{"op":"ingest","feature_veiw":"stats"}"#), expect![[r#"invalid_argument: the Flight command is not understood: unknown field `feature_veiw`, expected one of `project`, `feature_view`, `producer`, `sequence`, `delete`; it is JSON such as {"op":"get_online_features","project":"default","feature_service":"eta"}"#]]).await?;
    check(
        &command(READ),
        expect![[r#"invalid_argument: DoPut takes the command {"op":"ingest"}; reads go over DoExchange or DoGet"#]],
    )
    .await?;
    // The batch without its schema.
    check(
        &|it| {
            it.remove(0);
            it[0].flight_descriptor = Some(FlightDescriptor::new_cmd(INGEST));
        },
        expect![
            "invalid_argument: the Arrow IPC stream is broken: Protocol error: Received RecordBatch prior to Schema"
        ],
    )
    .await?;
    check(&|it| halve(&mut it[0].data_header), expect!["invalid_argument: the Arrow IPC stream is broken: Decode error: Error decoding root message: Range [268, 272) is out of bounds"]).await?;
    check(&|it| it[1].data_header.truncate(20), expect!["invalid_argument: the Arrow IPC stream is broken: Decode error: Error decoding root message: Range [40, 42) is out of bounds"]).await?;
    check(&|it| halve(&mut it[1].data_body), expect!["invalid_argument: the Arrow IPC stream is broken: a buffer of 4 bytes at 128 reaches past the 128 bytes of its message; was it cut short?"]).await?;
    check(&|it| it[1].data_body.clear(), expect!["invalid_argument: the Arrow IPC stream is broken: a buffer of 8 bytes at 0 reaches past the 0 bytes of its message; was it cut short?"]).await?;
    check(&|it| it[1].data_header = vec![0xff; 64].into(), expect!["invalid_argument: the Arrow IPC stream is broken: Decode error: Error decoding root message: Type `i32` at position 4294967295 is unaligned"]).await?;

    let read = messages(INGEST, &driver(7))?;
    expect!["invalid_argument: rows are ingested by DoPut, not DoExchange"]
        .assert_eq(&told(&exchange(address, read).await?.ok_or("taken")?));
    let mut read = messages(READ, &driver(7))?;
    read[1].data_body.clear();
    expect!["invalid_argument: the Arrow IPC stream is broken: a buffer of 8 bytes at 0 reaches past the 0 bytes of its message; was it cut short?"].assert_eq(&told(&exchange(address, read).await?.ok_or("taken")?));
    let ticket = arrow_flight::Ticket::new("eta");
    expect![[r#"invalid_argument: the Flight command is not understood: expected value at line 1 column 1; it is JSON such as {"op":"get_online_features","project":"default","feature_service":"eta"}"#]].assert_eq(&told(&connect(address).await?.do_get(ticket).await.unwrap_err()));
    victim.unharmed().await
}

/// Whatever a damaged message turns into, it is refused or read as rows of the view; no worker panics, and the node
/// serves on.
#[tokio::test]
async fn flipped_bytes_do_no_harm() -> TestResult {
    const ROUNDS: usize = 300;
    let mut chance = Chance::seeded(20);
    let victim = Victim::new().await?;
    let mut client = connect(victim.address()).await?;
    // Reads write nothing, so whatever is read from the damage, nothing may change.
    let good = messages(READ, &driver(7))?;
    for _ in 0..ROUNDS {
        let mut broken = good.clone();
        let at = chance.below(2);
        let (header, body) = (broken[at].data_header.to_vec(), broken[at].data_body.to_vec());
        let mut parts = [header, body];
        for _ in 0..=chance.below(3) {
            let part = chance.below(2);
            if !parts[part].is_empty() {
                let place = chance.below(parts[part].len());
                parts[part][place] ^= 1 << chance.below(8);
            }
        }
        let [header, body] = parts;
        (broken[at].data_header, broken[at].data_body) = (header.into(), body.into());
        let mut answers = 0;
        let answered = client.do_exchange(futures::stream::iter(broken)).await;
        let outcome = match answered {
            Err(refusal) => Err(refusal),
            Ok(replies) => {
                let mut replies = replies.into_inner();
                loop {
                    match replies.message().await {
                        Ok(Some(_)) => answers += 1,
                        Ok(None) => break Ok(()),
                        Err(refusal) => break Err(refusal),
                    }
                }
            }
        };
        match outcome {
            // A batch that was not understood is refused, never passed over in silence.
            Ok(()) => assert!(answers > 0),
            Err(refusal) => {
                let told = told(&refusal);
                let kinds = ["invalid_argument: ", "unsupported: ", "too_large: "];
                assert!(kinds.iter().any(|kind| told.starts_with(kind)), "{told}");
            }
        }
    }
    victim.unharmed().await
}

/// A few bytes that claim to unfold to petabytes, and a codec that does not say how much.
#[tokio::test]
async fn messages_that_unfold_without_bound_are_refused() -> TestResult {
    let victim = Victim::new().await?;
    let rows = row(9, 1.0, 1);
    let compressed = |codec: CompressionType| -> TestResult<Vec<FlightData>> {
        let options = IpcWriteOptions::default().try_with_compression(Some(codec))?;
        let (mut tracker, mut context) = (DictionaryTracker::new(false), IpcWriteContext::default());
        let (_, encoded) = IpcDataGenerator::default().encode(&rows, &mut tracker, &options, &mut context)?;
        let mut upload = messages(INGEST, &rows)?;
        upload[1] = FlightData::from(encoded);
        Ok(upload)
    };
    let mut bomb = compressed(CompressionType::ZSTD)?;
    let mut body = bomb[1].data_body.to_vec();
    // Eight bytes do not get smaller, so they stand there as they are behind a length of -1.
    let length = body.windows(8).position(|size| size == (-1i64).to_le_bytes()).ok_or("no buffer tells its length")?;
    body[length..length + 8].copy_from_slice(&(1i64 << 50).to_le_bytes());
    bomb[1].data_body = body.into();
    let refusal = told(&put(victim.address(), bomb).await?.ok_or("taken")?);
    assert!(refusal.starts_with("too_large: a message of 11258999068"), "{refusal}");
    assert!(refusal.ends_with(" bytes once unfolded is over the limit of 64 MiB; send smaller batches"), "{refusal}");
    let lz4 = put(victim.address(), compressed(CompressionType::LZ4_FRAME)?).await?.ok_or("taken")?;
    expect!["unsupported: Arrow buffers compressed with LZ4 are not taken; send them with ZSTD, or not compressed"]
        .assert_eq(&told(&lz4));
    victim.unchanged().await?;
    // An honest one is read like any other.
    assert!(put(victim.address(), compressed(CompressionType::ZSTD)?).await?.is_none());
    let read = victim.story.online(crate::support::service("eta"), &driver(9)).await?;
    assert_eq!(crate::support::rows::show(&read), "driver_id | rating | trips\n9 | 1.0 | 1\n");
    victim.works().await
}

#[tokio::test]
async fn a_message_over_64_mib_is_refused() -> TestResult {
    let victim = Victim::new().await?;
    let mut large = messages(INGEST, &row(9, 1.0, 1))?;
    large[1].data_body = vec![0; 65 << 20].into();
    expect!["too_large: a message is over the limit of 64 MiB; send smaller batches (Error, decoded message length too large: found 68157729 bytes, the limit is: 67108864 bytes)"]
        .assert_eq(&told(&put(victim.address(), large).await?.ok_or("taken")?));
    victim.unharmed().await
}

#[tokio::test]
async fn noise_on_both_ports_is_dropped() -> TestResult {
    let mut chance = Chance::seeded(21);
    let victim = Victim::new().await?;
    let noise: Vec<u8> = (0..4_096).map(|_| chance.bits() as u8).collect();
    let with_preface = [PREFACE, &noise].concat();
    let frame_too_large = [PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &noise].concat();
    let thrown: [&[u8]; 9] = [
        b"",
        b"\0",
        &noise,
        b"GET",
        b"GET / HTTP/1.1\r\nhost",
        b"POST /get-online-features HTTP/1.1\r\ncontent-length: -1\r\n\r\n{}",
        &PREFACE[..12],
        &with_preface,
        &frame_too_large,
    ];
    for address in [victim.address(), victim.peer_address()] {
        for bytes in thrown {
            throw(address, bytes).await?;
        }
    }
    let answer = throw(victim.address(), b"BREW /pot HTCPCP/1.0\r\n\r\n").await?;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    victim.unharmed().await
}

/// Callers that began and never go on, on both ports; the others do not notice.
#[tokio::test]
async fn callers_that_never_finish_hold_up_nobody() -> TestResult {
    const CALLERS: usize = 50;
    let victim = Victim::new().await?;
    let mut held = Vec::new();
    let settings = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    // A HEADERS frame that announces 100 bytes and brings one.
    let half_headers = [&settings[..], &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x83]].concat();
    let begun: [&[u8]; 6] = [
        b"",
        b"GET /health HT",
        b"POST /get-online-features HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{",
        &PREFACE[..12],
        &settings,
        &half_headers,
    ];
    for address in [victim.address(), victim.peer_address()] {
        for _ in 0..CALLERS {
            for bytes in begun {
                held.push(hold(address, bytes).await?);
            }
        }
    }
    // Uploads that begin well and never bring a batch, and one that never brings anything.
    let mut client = connect(victim.address()).await?;
    let mut uploads = Vec::new();
    for _ in 0..CALLERS {
        let first = messages(INGEST, &row(9, 1.0, 1))?.remove(0);
        let stream = futures::stream::StreamExt::chain(futures::stream::iter([first]), futures::stream::pending());
        uploads.push(client.do_put(stream).await?.into_inner());
    }
    victim.serves().await?;
    assert_eq!(crate::support::http::get(victim.address(), "/health")?.status, 200);
    victim.unharmed().await
}

/// Another cluster's node, a node with another node's id, another version of ours: nothing of theirs gets in.
#[tokio::test]
async fn strangers_on_the_peer_port_are_refused() -> TestResult {
    let victim = Victim::new().await?;
    let cluster_id = victim.story.client.status().await?.cluster_id;
    let mine = Envelope { cluster_id, from: 2, to: 1, protocol: PEER_PROTOCOL };
    let mut peer = PeerClient::connect(format!("http://{}", victim.peer_address())).await?;
    let check = async |peer: &mut PeerClient<Channel>, envelope: Option<Envelope>, expected: Expect| {
        let propose = ProposeRequest { envelope: envelope.clone(), group: 1, command: "x".into(), deadline_ms: 1_000 };
        let refusal = told(&peer.propose(propose).await.unwrap_err());
        expected.assert_eq(&refusal.replace(&mine.cluster_id, "CLUSTER"));
        let read = ReadIndexRequest { envelope: envelope.clone(), group: 1 };
        assert_eq!(told(&peer.read_index(read).await.unwrap_err()), refusal);
        let hello = RaftFrame { envelope, ..RaftFrame::default() };
        assert_eq!(told(&peer.raft(futures::stream::iter([hello])).await.unwrap_err()), refusal);
    };
    check(&mut peer, None, expect!["invalid_argument: the first message names no sender"]).await;
    check(
        &mut peer,
        Some(Envelope { cluster_id: "another".into(), ..mine.clone() }),
        expect!["invalid_argument: node 2 belongs to cluster `another`, and this is a node of cluster `CLUSTER`"],
    )
    .await;
    check(
        &mut peer,
        Some(Envelope { to: 3, ..mine.clone() }),
        expect!["invalid_argument: node 2 looks for node 3 at the address of node 1"],
    )
    .await;
    check(
        &mut peer,
        Some(Envelope { protocol: PEER_PROTOCOL + 1, ..mine.clone() }),
        expect!["unsupported: node 2 speaks peer protocol 3, and node 1 speaks 2: run the same version on both"],
    )
    .await;
    expect!["invalid_argument: a snapshot starts with its header"]
        .assert_eq(&told(&peer.snapshot(futures::stream::iter([SnapshotFrame::default()])).await.unwrap_err()));
    let join = JoinRequest { name: "n2".into(), protocol: PEER_PROTOCOL + 1, ..JoinRequest::default() };
    expect![
        "unsupported: node `n2` speaks peer protocol 3, and this cluster speaks 2: run the same version on all nodes"
    ]
    .assert_eq(&told(&peer.join(join).await.unwrap_err()));
    // A peer of ours that sends what is no command: refused before it reaches the log.
    let propose = ProposeRequest { envelope: Some(mine.clone()), group: 9, command: "x".into(), deadline_ms: 1_000 };
    expect!["invalid_argument: no group 9; groups are 0 to 2"]
        .assert_eq(&told(&peer.propose(propose).await.unwrap_err()));
    victim.unharmed().await
}
