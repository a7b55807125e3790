//! What happened in a run, in the one order in which it happened; every invariant sees every event.

use super::invariants::{self, Invariant};
use crate::types::*;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

/// Lines kept for who reads a violation.
const LINES_MAX: usize = 400;

/// How fresh a read asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Linearizable,
    Bounded(Duration),
    AtLeast(u64),
}

/// Indexes count from 1; nodes are meant by their ids, but machines by their number.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "some fields are only for who reads the history")]
pub enum Event {
    /// A fault, a repair, a phase: for the reader.
    Note(String),
    /// `voter` answered a candidate that it has its vote.
    Granted {
        voter: NodeId,
        group: GroupId,
        vote: Vote,
    },
    /// `node` leads from now on; `voters` are the sets that each must agree by majority.
    Leads {
        node: NodeId,
        group: GroupId,
        vote: Vote,
        voters: Vec<BTreeSet<NodeId>>,
        last: u64,
    },
    /// From index `first` on the log of `node` holds these entries and no others: who led, and a digest of the rest.
    Log {
        node: NodeId,
        group: GroupId,
        first: u64,
        entries: Vec<(LeaderId, u64)>,
    },
    /// `leader` is known for the last entry of a batch.
    Applied {
        node: NodeId,
        group: GroupId,
        index: u64,
        leader: Option<LeaderId>,
        command: Option<Vec<u8>>,
    },
    /// A replica was opened at `index`, or took over a snapshot there.
    Opened {
        node: NodeId,
        group: GroupId,
        index: u64,
    },
    Installed {
        node: NodeId,
        group: GroupId,
        index: u64,
    },
    /// The log of a node begins at `first` now; what stood before it is in a snapshot.
    Purged {
        node: NodeId,
        group: GroupId,
        first: u64,
    },
    /// A client's command; it is numbered, and says whether it may be sent again.
    Proposed {
        operation: u64,
        idempotent: bool,
    },
    Acknowledged {
        operation: u64,
        index: u64,
    },
    /// The client was told that nothing was proposed.
    Refused {
        operation: u64,
    },
    Unknown {
        operation: u64,
    },
    ReadBegan {
        read: u64,
        level: Level,
    },
    /// The read saw everything up to `seen`.
    ReadEnded {
        read: u64,
        seen: u64,
    },
}

pub struct History {
    now: Duration,
    hasher: blake3::Hasher,
    events: u64,
    messages: u64,
    lines: VecDeque<String>,
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<String>,
    counts: Counts,
    acknowledged: BTreeSet<u64>,
    /// Everything goes there too, where `CAIRN_SIM_TRACE` names a file.
    trace: Option<BufWriter<File>>,
}

/// How much a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub installs: u64,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Mutex<History>>>> = const { RefCell::new(None) };
}

impl History {
    /// A new history, to which everything on this thread is told from now on.
    pub fn begin() -> Arc<Mutex<Self>> {
        let history = Arc::new(Mutex::new(Self {
            now: Duration::ZERO,
            hasher: blake3::Hasher::new(),
            events: 0,
            messages: 0,
            lines: VecDeque::new(),
            invariants: invariants::all(),
            violation: None,
            counts: Counts::default(),
            acknowledged: BTreeSet::new(),
            trace: std::env::var_os("CAIRN_SIM_TRACE").map(|path| BufWriter::new(File::create(path).expect("a trace"))),
        }));
        CURRENT.set(Some(history.clone()));
        history
    }

    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    pub fn see(&mut self, event: &Event) {
        let now = turmoil::sim_elapsed().unwrap_or(self.now).max(self.now);
        let line = format!("{:>9.3} {event:?}", now.as_secs_f64());
        self.write(&line);
        self.events += 1;
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        match event {
            Event::Acknowledged { operation, .. } => {
                self.counts.acknowledged += 1;
                self.acknowledged.insert(*operation);
            }
            Event::Unknown { .. } => self.counts.unknown += 1,
            Event::ReadEnded { .. } => self.counts.reads += 1,
            Event::Installed { .. } => self.counts.installs += 1,
            _ => {}
        }
        for invariant in &mut self.invariants {
            if let Err(what) = invariant.see(now, event)
                && self.violation.is_none()
            {
                self.violation = Some(format!("{}: {what}", invariant.name()));
            }
        }
    }

    /// A message on the network.
    pub fn wire(&mut self, line: &str) {
        self.messages += 1;
        self.write(line);
    }

    pub fn messages(&self) -> u64 {
        self.messages
    }

    fn write(&mut self, line: &str) {
        self.hasher.update(line.as_bytes());
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{line}");
        }
    }

    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Numbers of the commands that were acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = u64> + '_ {
        self.acknowledged.iter().copied()
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// The last events before now.
    pub fn tail(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// Tells the history of the simulation on this thread, if there is one.
pub fn see(event: &Event) {
    CURRENT.with_borrow(|history| {
        if let Some(history) = history {
            history.lock().see(event);
        }
    });
}

pub fn note(what: impl Into<String>) {
    see(&Event::Note(what.into()));
}

/// The peer port is about to send `reply`.
pub fn voted(voter: NodeId, group: GroupId, asked: &Vote, reply: &VoteResponse) {
    if reply.is_granted_to(asked) && reply.vote_granted {
        see(&Event::Granted { voter, group, vote: reply.vote });
    }
}
