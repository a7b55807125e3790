//! Power failures and restarts at any moment, against a model: nothing acknowledged is lost, nothing half-written shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::mem::MemFiles;
use super::*;

const DIR: &str = "/wal";

#[derive(Debug, Clone)]
enum Ask {
    Append {
        group: u32,
        count: u64,
        bytes: usize,
    },
    Vote {
        group: u32,
    },
    Committed {
        group: u32,
    },
    Truncate {
        group: u32,
        back: u64,
    },
    Purge {
        group: u32,
        forward: u64,
    },
    /// As after a snapshot was installed: purge past the end.
    PurgePast {
        group: u32,
        beyond: u64,
    },
    Step,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Group {
    vote: Option<Vec<u8>>,
    committed: Option<Vec<u8>>,
    purged: Option<(u64, Vec<u8>)>,
    entries: BTreeMap<u64, Bytes>,
}

type Groups = BTreeMap<u32, Group>;

/// What the log must look like after each record that was ever queued.
struct Model {
    history: Vec<Groups>,
    /// `committed` pointers that have no record yet, in order of first asking.
    waiting: Vec<(u32, Vec<u8>)>,
    /// Callbacks, as (records before it, succeeded).
    answers: Arc<Mutex<Vec<(usize, bool)>>>,
    asked: usize,
    salt: u64,
}

impl Model {
    fn new() -> Self {
        Self { history: vec![Groups::new()], waiting: Vec::new(), answers: Arc::default(), asked: 0, salt: 0 }
    }

    fn now(&self) -> &Groups {
        self.history.last().unwrap()
    }

    fn record(&mut self, group: u32, change: impl FnOnce(&mut Group)) {
        let mut next = self.now().clone();
        change(next.entry(group).or_default());
        next.retain(|_, log| *log != Group::default());
        self.history.push(next);
    }

    fn queue_committed(&mut self) {
        for (group, committed) in std::mem::take(&mut self.waiting) {
            self.record(group, |log| log.committed = Some(committed));
        }
    }

    fn done(&mut self) -> Done {
        let (answers, records) = (Arc::clone(&self.answers), self.history.len() - 1);
        self.asked += 1;
        Box::new(move |outcome| answers.lock().push((records, outcome.is_ok())))
    }

    fn salted(&mut self, bytes: usize) -> Vec<u8> {
        self.salt += 1;
        self.salt.to_le_bytes().iter().copied().cycle().take(bytes).collect()
    }

    fn ask(&mut self, wal: &Wal, ask: &Ask) {
        match *ask {
            Ask::Append { group, count, bytes } => {
                self.queue_committed();
                let log = self.now().get(&group).cloned().unwrap_or_default();
                let behind_purged = log.purged.map_or(1, |(purged, _)| purged + 1);
                let first = log.entries.last_key_value().map_or(behind_purged, |(last, _)| last + 1);
                let entries: Vec<(u64, Bytes)> =
                    (first..first + count).map(|index| (index, Bytes::from(self.salted(bytes)))).collect();
                for (index, payload) in entries.clone() {
                    self.record(group, |log| drop(log.entries.insert(index, payload)));
                }
                wal.append(group, entries, self.done());
            }
            Ask::Vote { group } => {
                self.queue_committed();
                let vote = self.salted(9);
                self.record(group, |log| log.vote = Some(vote.clone()));
                wal.save_vote(group, vote, self.done());
            }
            Ask::Committed { group } => {
                let committed = self.salted(11);
                match self.waiting.iter_mut().find(|(waits, _)| *waits == group) {
                    Some((_, waiting)) => waiting.clone_from(&committed),
                    None => self.waiting.push((group, committed.clone())),
                }
                wal.save_committed(group, committed);
            }
            Ask::Truncate { group, back } => {
                self.queue_committed();
                let log = self.now().get(&group).cloned().unwrap_or_default();
                let last = log.entries.last_key_value().map_or(0, |(last, _)| *last);
                let keep = last.checked_sub(back);
                self.record(group, |log| log.entries.retain(|index, _| keep.is_some_and(|keep| *index <= keep)));
                wal.truncate_after(group, keep, self.done());
            }
            Ask::Purge { group, forward } => {
                let log = self.now().get(&group).cloned().unwrap_or_default();
                let Some((first, _)) = log.entries.first_key_value() else { return };
                let upto = (first + forward).min(log.entries.last_key_value().map_or(0, |(last, _)| *last));
                self.purge(wal, group, upto);
            }
            Ask::PurgePast { group, beyond } => {
                let log = self.now().get(&group).cloned().unwrap_or_default();
                let last = log.entries.last_key_value().map_or(0, |(last, _)| *last);
                let purged = log.purged.map_or(0, |(purged, _)| purged);
                self.purge(wal, group, last.max(purged) + beyond);
            }
            Ask::Step => drop(wal.step()),
        }
    }

    fn purge(&mut self, wal: &Wal, group: u32, upto: u64) {
        self.queue_committed();
        let log_id = self.salted(5);
        self.record(group, |log| {
            log.entries.retain(|index, _| *index > upto);
            log.purged = Some((upto, log_id.clone()));
        });
        wal.purge(group, upto, log_id, self.done());
    }

    /// Every callback came once and in order, and failed ones are the last.
    fn check_answers(&self, all: bool) {
        let answers = self.answers.lock();
        assert!(!all || answers.len() == self.asked, "{} of {} callbacks came", answers.len(), self.asked);
        assert!(answers.is_sorted_by_key(|(records, _)| *records), "out of order: {answers:?}");
        assert!(answers.is_sorted_by_key(|(_, succeeded)| !succeeded), "success after failure: {answers:?}");
    }

    /// The log's state must be one the model had, no older than what was acknowledged. The model goes on from there.
    fn adopt(&mut self, wal: &Wal) {
        let acknowledged = self.answers.lock().iter().filter(|(_, ok)| *ok).map(|(records, _)| *records).max();
        let found = state_of(wal);
        let allowed = &self.history[acknowledged.unwrap_or(0)..];
        assert!(
            allowed.contains(&found),
            "the log shows {found:#?}\nwhich is none of the {} states from {:#?}\nto {:#?}",
            allowed.len(),
            allowed.first(),
            allowed.last(),
        );
        *self = Self { history: vec![found], salt: self.salt, ..Self::new() };
    }
}

fn state_of(wal: &Wal) -> Groups {
    let mut groups = Groups::new();
    for group in wal.groups() {
        let GroupState { vote, committed, purged, first_index, last } = wal.group(group);
        let entries: BTreeMap<u64, Bytes> = wal.read(group, 0..u64::MAX, usize::MAX).unwrap().into_iter().collect();
        assert_eq!(entries.first_key_value().map(|(first, _)| *first), first_index);
        assert_eq!(entries.last_key_value().map(|(last, payload)| (*last, payload.to_vec())), last);
        groups.insert(group, Group { vote, committed, purged, entries });
    }
    // A group emptied again is the same as one never seen.
    groups.retain(|_, log| *log != Group::default());
    groups
}

fn open(disk: &MemFiles, cache_bytes_max: u64) -> Result<Arc<Wal>, WalError> {
    let options =
        WalOptions { segment_bytes: 4 << 10, cache_bytes_max, writer: Writer::Stepped, ..WalOptions::default() };
    Wal::open(Path::new(DIR), options, Arc::new(disk.clone()))
}

/// One life of the process: what it is asked, when the disk dies, and how the life ends.
#[derive(Debug, Clone)]
struct Life {
    asks: Vec<Ask>,
    /// Changes until the disk fails; counted from before the log is opened.
    fails_after: Option<u64>,
    /// A failed fsync instead: the disk works on, the pages are lost.
    fails_sync_after: Option<u64>,
    /// The power goes, with that seed; or only the process ends.
    crash: Option<u64>,
    cache_bytes_max: u64,
}

fn live(lives: &[Life]) {
    let disk = MemFiles::default();
    let mut model = Model::new();
    for life in lives {
        disk.fail_after(life.fails_after);
        if let Some(syncs) = life.fails_sync_after {
            disk.fail_sync_after(syncs);
        }
        match open(&disk, life.cache_bytes_max) {
            Ok(wal) => {
                model.adopt(&wal);
                for ask in &life.asks {
                    if wal.failed().is_some() {
                        break;
                    }
                    model.ask(&wal, ask);
                }
                model.check_answers(wal.failed().is_some());
                if wal.failed().is_none() {
                    model.queue_committed_shows(&wal);
                }
            }
            Err(WalError::Io { .. }) => {}
            Err(other) => panic!("a crash is no damage: {other}"),
        }
        match life.crash {
            Some(seed) => disk.crash(seed),
            None => disk.restart(),
        }
    }
    model.adopt(&open(&disk, 0).unwrap());
}

impl Model {
    /// In memory the log shows everything asked, pointers that wait included.
    fn queue_committed_shows(&self, wal: &Wal) {
        let mut wanted = self.now().clone();
        for (group, committed) in &self.waiting {
            wanted.entry(*group).or_default().committed = Some(committed.clone());
        }
        assert_eq!(state_of(wal), wanted);
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let group = 0u32..3;
    prop_oneof![
        6 => (group.clone(), 1u64..6, 0usize..120)
            .prop_map(|(group, count, bytes)| Ask::Append { group, count, bytes }),
        1 => (group.clone(), 1u64..3, 3000usize..40_000)
            .prop_map(|(group, count, bytes)| Ask::Append { group, count, bytes }),
        2 => group.clone().prop_map(|group| Ask::Vote { group }),
        2 => group.clone().prop_map(|group| Ask::Committed { group }),
        1 => (group.clone(), 0u64..9).prop_map(|(group, back)| Ask::Truncate { group, back }),
        2 => (group.clone(), 0u64..20).prop_map(|(group, forward)| Ask::Purge { group, forward }),
        1 => (group, 1u64..5).prop_map(|(group, beyond)| Ask::PurgePast { group, beyond }),
        5 => Just(Ask::Step),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    (
        proptest::collection::vec(ask(), 0..60),
        proptest::option::of(0u64..150),
        proptest::option::weighted(0.2, 0u64..20),
        proptest::option::weighted(0.8, any::<u64>()),
        prop_oneof![Just(0u64), Just(2000), Just(1 << 20)],
    )
        .prop_map(|(asks, fails_after, fails_sync_after, crash, cache_bytes_max)| Life {
            asks,
            fails_after,
            fails_sync_after,
            crash,
            cache_bytes_max,
        })
}

proptest! {
    #[test]
    fn no_crash_loses_what_was_acknowledged(lives in proptest::collection::vec(life(), 1..5)) {
        live(&lives);
    }
}

/// The same busy life cut off before each of its writes, fsyncs, renames and removals, in six tempers.
#[test]
fn every_moment_is_a_good_one_to_crash() {
    let mut asks = Vec::new();
    for round in 0..12u64 {
        let group = (round % 3) as u32;
        asks.extend([
            Ask::Append { group, count: 3, bytes: 200 },
            Ask::Committed { group },
            Ask::Append { group: 1, count: 1, bytes: 900 },
            Ask::Step,
            Ask::Vote { group },
            Ask::Truncate { group: 1, back: round % 3 },
            Ask::Append { group: 2, count: 2, bytes: 500 },
            Ask::Purge { group, forward: 4 },
            Ask::Step,
        ]);
    }
    let life = |fails_after, crash| Life {
        asks: asks.clone(),
        fails_after,
        fails_sync_after: None,
        crash: Some(crash),
        cache_bytes_max: 1000,
    };
    live(&[life(None, 0)]);
    let disk = MemFiles::default();
    let wal = open(&disk, 0).unwrap();
    let mut model = Model::new();
    asks.iter().for_each(|ask| model.ask(&wal, ask));
    let changes = disk.changes();
    assert!(changes > 60, "the life touches the disk {changes} times");
    for moment in 0..changes {
        for crash in 0..6 {
            // Twice: the second life recovers what the first left, and is cut off while doing so.
            live(&[life(Some(moment), crash), life(Some(moment % 9), crash + 6)]);
        }
    }
}
