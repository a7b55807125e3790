//! Our own bytes for what openraft keeps and sends, so that its types may change without our disks and wires noticing.
//!
//! Every message starts with [`VERSION`]; integers are big-endian; an absent log id is one zero byte. An unknown version
//! or kind is refused, never skipped: a node that guesses here differs from its peers. Golden bytes in the tests.

use crate::types::*;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::TransferLeaderError;
use std::collections::{BTreeMap, BTreeSet};

/// Format of every message below, on disk and between peers.
pub const VERSION: u8 = 1;

/// Bytes that an entry takes beside its command.
pub const ENTRY_OVERHEAD: usize = 18;

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {what}: {why}")]
pub struct DecodeError {
    what: &'static str,
    why: String,
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

// ---------------------------------------------------------------- on disk

pub fn encode_entry(entry: &Entry) -> Bytes {
    let (kind, membership, command) = match &entry.payload {
        Payload::Blank => (BLANK, None, None),
        Payload::Normal(command) => (NORMAL, None, Some(&command.0)),
        Payload::Membership(membership) => (MEMBERSHIP, Some(membership), None),
    };
    let mut out = BytesMut::with_capacity(ENTRY_OVERHEAD + command.map_or(64, Bytes::len));
    out.put_u8(VERSION);
    out.put_u8(kind);
    put_leader(&mut out, &entry.log_id.leader_id);
    if let Some(command) = command {
        out.put_slice(command);
    }
    if let Some(membership) = membership {
        put_membership(&mut out, membership);
    }
    out.freeze()
}

/// Reads what [`encode_entry`] wrote; the command shares `bytes`.
pub fn decode_entry(index: u64, bytes: Bytes) -> Result<Entry> {
    let mut reader = Reader::new("log entry", bytes)?;
    let kind = reader.u8()?;
    let log_id = LogId { leader_id: reader.leader()?, index };
    let payload = match kind {
        BLANK => Payload::Blank,
        NORMAL => return Ok(Entry { log_id, payload: Payload::Normal(Command(reader.rest())) }),
        MEMBERSHIP => Payload::Membership(reader.membership()?),
        other => return Err(reader.bad(format!("unknown kind {other}"))),
    };
    reader.end()?;
    Ok(Entry { log_id, payload })
}

/// Only the log id of an encoded entry.
pub fn decode_entry_log_id(index: u64, bytes: &Bytes) -> Result<LogId> {
    let mut reader = Reader::new("log entry", bytes.clone())?;
    reader.u8()?;
    Ok(LogId { leader_id: reader.leader()?, index })
}

pub fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = start(32);
    put_vote(&mut out, vote);
    out.freeze()
}

pub fn decode_vote(bytes: Bytes) -> Result<Vote> {
    let mut reader = Reader::new("vote", bytes)?;
    let vote = reader.vote()?;
    reader.end()?;
    Ok(vote)
}

pub fn encode_log_id(log_id: Option<&LogId>) -> Bytes {
    let mut out = start(32);
    put_log_id(&mut out, log_id);
    out.freeze()
}

pub fn decode_log_id(bytes: Bytes) -> Result<Option<LogId>> {
    let mut reader = Reader::new("log id", bytes)?;
    let log_id = reader.log_id()?;
    reader.end()?;
    Ok(log_id)
}

/// The position of a state machine, and the meta of a snapshot: what was applied last, and the membership then.
pub fn encode_meta(meta: &SnapshotMeta) -> Bytes {
    let mut out = start(128);
    put_log_id(&mut out, meta.last_log_id.as_ref());
    put_log_id(&mut out, meta.last_membership.log_id().as_ref());
    put_membership(&mut out, meta.last_membership.membership());
    out.freeze()
}

/// Reads what [`encode_meta`] wrote. No bytes at all is the position before the first entry.
pub fn decode_meta(bytes: Bytes) -> Result<SnapshotMeta> {
    if bytes.is_empty() {
        return Ok(SnapshotMeta::default());
    }
    let mut reader = Reader::new("position", bytes)?;
    let last_log_id = reader.log_id()?;
    let membership_log_id = reader.log_id()?;
    let last_membership = StoredMembership::new(membership_log_id, reader.membership()?);
    reader.end()?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

// ---------------------------------------------------------------- between peers

pub fn encode_append(request: &AppendRequest) -> Bytes {
    let entries: Vec<(u64, Bytes)> =
        request.entries.iter().map(|entry| (entry.log_id.index, encode_entry(entry))).collect();
    let mut out = start(128 + entries.iter().map(|(_, bytes)| bytes.len() + 12).sum::<usize>());
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.prev_log_id.as_ref());
    put_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32(count(entries.len()));
    for (index, bytes) in entries {
        out.put_u64(index);
        out.put_u32(count(bytes.len()));
        out.put_slice(&bytes);
    }
    out.freeze()
}

pub fn decode_append(bytes: Bytes) -> Result<AppendRequest> {
    let mut reader = Reader::new("append request", bytes)?;
    let vote = reader.vote()?;
    let prev_log_id = reader.log_id()?;
    let leader_commit = reader.log_id()?;
    let length = reader.u32()? as usize;
    // An entry takes at least 30 bytes: a wrong count cannot make us reserve more than the message holds.
    let mut entries = Vec::with_capacity(length.min(reader.left() / 30));
    for _ in 0..length {
        let index = reader.u64()?;
        let size = reader.u32()? as usize;
        entries.push(decode_entry(index, reader.take(size)?)?);
    }
    reader.end()?;
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

pub fn encode_append_reply(reply: &AppendResponse) -> Bytes {
    let mut out = start(32);
    match reply {
        AppendResponse::Success => out.put_u8(0),
        AppendResponse::PartialSuccess(log_id) => {
            out.put_u8(1);
            put_log_id(&mut out, log_id.as_ref());
        }
        AppendResponse::Conflict => out.put_u8(2),
        AppendResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub fn decode_append_reply(bytes: Bytes) -> Result<AppendResponse> {
    let mut reader = Reader::new("append reply", bytes)?;
    let reply = match reader.u8()? {
        0 => AppendResponse::Success,
        1 => AppendResponse::PartialSuccess(reader.log_id()?),
        2 => AppendResponse::Conflict,
        3 => AppendResponse::HigherVote(reader.vote()?),
        other => return Err(reader.bad(format!("unknown kind {other}"))),
    };
    reader.end()?;
    Ok(reply)
}

/// `pre_vote` asks what the answer would be without binding anyone.
pub fn encode_vote_request(request: &VoteRequest, pre_vote: bool) -> Bytes {
    let mut out = start(64);
    out.put_u8(u8::from(pre_vote));
    out.put_u8(u8::from(request.leadership_transfer));
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id.as_ref());
    out.freeze()
}

pub fn decode_vote_request(bytes: Bytes) -> Result<(VoteRequest, bool)> {
    let mut reader = Reader::new("vote request", bytes)?;
    let pre_vote = reader.flag()?;
    let leadership_transfer = reader.flag()?;
    let mut request = VoteRequest::new(reader.vote()?, reader.log_id()?);
    request.leadership_transfer = leadership_transfer;
    reader.end()?;
    Ok((request, pre_vote))
}

pub fn encode_vote_reply(reply: &VoteResponse) -> Bytes {
    let mut out = start(64);
    put_vote(&mut out, &reply.vote);
    out.put_u8(u8::from(reply.vote_granted));
    put_log_id(&mut out, reply.last_log_id.as_ref());
    out.freeze()
}

pub fn decode_vote_reply(bytes: Bytes) -> Result<VoteResponse> {
    let mut reader = Reader::new("vote reply", bytes)?;
    let vote = reader.vote()?;
    let vote_granted = reader.flag()?;
    let last_log_id = reader.log_id()?;
    reader.end()?;
    Ok(VoteResponse { vote, vote_granted, last_log_id })
}

pub fn encode_transfer(request: &TransferRequest) -> Bytes {
    let mut out = start(64);
    put_vote(&mut out, request.from_leader());
    out.put_u64(*request.to_node_id());
    put_log_id(&mut out, request.last_log_id());
    out.freeze()
}

pub fn decode_transfer(bytes: Bytes) -> Result<TransferRequest> {
    let mut reader = Reader::new("transfer request", bytes)?;
    let request = TransferRequest::new(reader.vote()?, reader.u64()?, reader.log_id()?);
    reader.end()?;
    Ok(request)
}

pub fn encode_transfer_reply(reply: &TransferResponse) -> Bytes {
    let mut out = start(64);
    match reply {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(&mut out, expected);
            put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_log_id(&mut out, expected.as_ref());
            put_log_id(&mut out, actual.as_ref());
        }
    }
    out.freeze()
}

pub fn decode_transfer_reply(bytes: Bytes) -> Result<TransferResponse> {
    let mut reader = Reader::new("transfer reply", bytes)?;
    let reply = match reader.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: reader.vote()?, actual: reader.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed { expected: reader.log_id()?, actual: reader.log_id()? }),
        other => return Err(reader.bad(format!("unknown kind {other}"))),
    };
    reader.end()?;
    Ok(reply)
}

// ---------------------------------------------------------------- parts

fn start(capacity: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(capacity);
    out.put_u8(VERSION);
    out
}

/// Lengths are bounded far below `u32` by the message limit.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_leader(out: &mut BytesMut, leader: &LeaderId) {
    out.put_u64(leader.term);
    out.put_u64(leader.node_id);
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    put_leader(out, &vote.leader_id);
    out.put_u8(u8::from(vote.committed));
}

fn put_log_id(out: &mut BytesMut, log_id: Option<&LogId>) {
    out.put_u8(u8::from(log_id.is_some()));
    if let Some(log_id) = log_id {
        put_leader(out, &log_id.leader_id);
        out.put_u64(log_id.index);
    }
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_u32(count(configs.len()));
    for config in configs {
        out.put_u32(count(config.len()));
        for id in config {
            out.put_u64(*id);
        }
    }
    out.put_u32(count(membership.nodes().count()));
    for (id, node) in membership.nodes() {
        out.put_u64(*id);
        out.put_u32(count(node.address.len()));
        out.put_slice(node.address.as_bytes());
    }
}

struct Reader {
    what: &'static str,
    bytes: Bytes,
}

impl Reader {
    fn new(what: &'static str, bytes: Bytes) -> Result<Self> {
        let mut reader = Self { what, bytes };
        match reader.u8()? {
            VERSION => Ok(reader),
            other => Err(reader.bad(format!("version {other} is not {VERSION}, the one this node knows"))),
        }
    }

    fn bad(&self, why: impl Into<String>) -> DecodeError {
        DecodeError { what: self.what, why: why.into() }
    }

    fn short(&self) -> DecodeError {
        self.bad("it ends too early")
    }

    fn left(&self) -> usize {
        self.bytes.len()
    }

    fn u8(&mut self) -> Result<u8> {
        self.bytes.try_get_u8().map_err(|_| self.short())
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(format!("{other} is neither 0 nor 1"))),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes.try_get_u32().map_err(|_| self.short())
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes.try_get_u64().map_err(|_| self.short())
    }

    fn take(&mut self, size: usize) -> Result<Bytes> {
        if size > self.bytes.len() {
            return Err(self.short());
        }
        Ok(self.bytes.split_to(size))
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    fn end(&self) -> Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.bad(format!("{} bytes too many", self.bytes.len()))) }
    }

    fn leader(&mut self) -> Result<LeaderId> {
        Ok(LeaderId { term: self.u64()?, node_id: self.u64()? })
    }

    fn vote(&mut self) -> Result<Vote> {
        Ok(Vote { leader_id: self.leader()?, committed: self.flag()? })
    }

    fn log_id(&mut self) -> Result<Option<LogId>> {
        Ok(if self.flag()? { Some(LogId { leader_id: self.leader()?, index: self.u64()? }) } else { None })
    }

    fn membership(&mut self) -> Result<Membership> {
        let mut configs = Vec::new();
        for _ in 0..self.u32()? {
            let mut config = BTreeSet::new();
            for _ in 0..self.u32()? {
                config.insert(self.u64()?);
            }
            configs.push(config);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.u32()? {
            let id = self.u64()?;
            let length = self.u32()? as usize;
            let address = self.take(length)?;
            let address = String::from_utf8(address.to_vec()).map_err(|_| self.bad("an address is not UTF-8"))?;
            nodes.insert(id, PeerNode { address });
        }
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|error| self.bad(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
