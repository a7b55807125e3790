use super::*;
use expect_test::expect;
use proptest::prelude::*;

fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id }, index }
}

fn vote(term: u64, node_id: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id }, committed }
}

fn membership() -> Membership {
    let node = |address: &str| PeerNode { address: address.into() };
    let nodes = BTreeMap::from([(1, node("a:1")), (2, node("b:2")), (9, node("c:3"))]);
    Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 9])], nodes).unwrap()
}

fn entries() -> Vec<Entry> {
    vec![
        Entry { log_id: log_id(1, 2, 3), payload: Payload::Blank },
        Entry { log_id: log_id(1, 2, 4), payload: Payload::Normal(Command(Bytes::from_static(b"upsert"))) },
        Entry { log_id: log_id(2, 2, 5), payload: Payload::Membership(membership()) },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Version 1 as it was released. A change here is a change of format.
#[test]
fn golden_bytes_of_version_1() {
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(1, 2, 3)),
        last_membership: StoredMembership::new(Some(log_id(1, 2, 0)), membership()),
    };
    let mut lines: Vec<String> = entries().iter().map(|entry| hex(&encode_entry(entry))).collect();
    lines.push(hex(&encode_vote(&vote(7, 3, true))));
    lines.push(hex(&encode_log_id(Some(&log_id(7, 3, 258)))));
    lines.push(hex(&encode_log_id(None)));
    lines.push(hex(&encode_meta(&meta)));
    expect![[r#"
        010000000000000000010000000000000002
        010100000000000000010000000000000002757073657274
        010200000000000000020000000000000002000000020000000200000000000000010000000000000002000000020000000000000002000000000000000900000003000000000000000100000003613a31000000000000000200000003623a32000000000000000900000003633a33
        010000000000000007000000000000000301
        0101000000000000000700000000000000030000000000000102
        0100
        010100000000000000010000000000000002000000000000000301000000000000000100000000000000020000000000000000000000020000000200000000000000010000000000000002000000020000000000000002000000000000000900000003000000000000000100000003613a31000000000000000200000003623a32000000000000000900000003633a33"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn disk_messages_round_trip() {
    for entry in entries() {
        let bytes = encode_entry(&entry);
        assert_eq!(decode_entry_log_id(entry.log_id.index, &bytes).unwrap(), entry.log_id);
        assert_eq!(decode_entry(entry.log_id.index, bytes).unwrap(), entry);
    }
    for vote in [vote(0, 0, false), vote(u64::MAX, 3, true)] {
        assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
    }
    for id in [None, Some(log_id(1, 2, 3))] {
        assert_eq!(decode_log_id(encode_log_id(id.as_ref())).unwrap(), id);
    }
    let meta = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::new(None, Membership::default()) };
    assert_eq!(decode_meta(encode_meta(&meta)).unwrap(), meta);
    assert_eq!(decode_meta(Bytes::new()).unwrap(), SnapshotMeta::default());
}

#[test]
fn peer_messages_round_trip() {
    let append = AppendRequest {
        vote: vote(2, 2, true),
        prev_log_id: Some(log_id(1, 2, 2)),
        entries: entries(),
        leader_commit: None,
    };
    let read = decode_append(encode_append(&append)).unwrap();
    assert_eq!(format!("{append:?}"), format!("{read:?}"));
    assert_eq!(read.entries, append.entries);

    for reply in [
        AppendResponse::Success,
        AppendResponse::PartialSuccess(Some(log_id(1, 2, 3))),
        AppendResponse::PartialSuccess(None),
        AppendResponse::Conflict,
        AppendResponse::HigherVote(vote(9, 1, false)),
    ] {
        assert_eq!(decode_append_reply(encode_append_reply(&reply)).unwrap(), reply);
    }

    for pre_vote in [false, true] {
        let mut request = VoteRequest::new(vote(3, 1, false), Some(log_id(2, 1, 8)));
        request.leadership_transfer = !pre_vote;
        assert_eq!(decode_vote_request(encode_vote_request(&request, pre_vote)).unwrap(), (request, pre_vote));
    }
    let reply = VoteResponse { vote: vote(3, 1, false), vote_granted: true, last_log_id: None };
    assert_eq!(decode_vote_reply(encode_vote_reply(&reply)).unwrap(), reply);

    let transfer = TransferRequest::new(vote(3, 1, true), 2, Some(log_id(3, 1, 8)));
    assert_eq!(decode_transfer(encode_transfer(&transfer)).unwrap(), transfer);
    for reply in [
        Ok(()),
        Err(TransferLeaderError::VoteChanged { expected: vote(1, 1, true), actual: vote(2, 2, false) }),
        Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id(1, 1, 1)), actual: None }),
    ] {
        assert_eq!(decode_transfer_reply(encode_transfer_reply(&reply)).unwrap(), reply);
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let mut bytes = encode_vote(&vote(1, 1, true)).to_vec();
    bytes[0] = 2;
    expect!["cannot decode vote: version 2 is not 1, the one this node knows"]
        .assert_eq(&decode_vote(bytes.into()).unwrap_err().to_string());
}

proptest! {
    /// Bytes from outside are refused or read, never a panic.
    #[test]
    fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), versioned: bool) {
        if versioned && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_entry(1, bytes.clone());
        let _ = decode_meta(bytes.clone());
        let _ = decode_append(bytes.clone());
        let _ = decode_append_reply(bytes.clone());
        let _ = decode_vote_request(bytes.clone());
        let _ = decode_vote_reply(bytes.clone());
        let _ = decode_transfer(bytes.clone());
        let _ = decode_transfer_reply(bytes);
    }

    /// A message cut short is refused.
    #[test]
    fn a_cut_append_is_refused(cut in 0usize..400) {
        let append = AppendRequest {
            vote: vote(2, 2, true), prev_log_id: None, entries: entries(), leader_commit: Some(log_id(1, 2, 2)),
        };
        let bytes = encode_append(&append);
        prop_assume!(cut < bytes.len());
        prop_assert!(decode_append(bytes.slice(..cut)).is_err());
    }
}
