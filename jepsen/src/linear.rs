//! Is a history of one register linearizable? Wing and Gong's search with Lowe's memory of dead ends.
//!
//! Each operation must seem to take effect at one moment between its question and its answer. The search picks, among the
//! operations that no unpicked answer precedes, one whose result fits the register's value, and goes on; where nothing
//! fits it goes back. A (set of picked operations, value) that was tried before is not tried again. An unknown write may
//! take effect at any moment after its question, or never.
//!
//! Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for linearizability" (2017).

use crate::history::Moment;
use std::collections::HashSet;

/// What was done to the register; 0 is the value of a register never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Read(u32),
    Write(u32),
    /// Moves the value when it is `from`; `moved` = the answer said that it was.
    Cas {
        from: u32,
        to: u32,
        moved: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub act: Act,
    pub began: Moment,
    /// `None` = unknown. Unknown reads are not part of a history.
    pub ended: Option<Moment>,
}

/// States of the search, at most: a bound on memory and time.
const STATES_MAX: usize = 4_000_000;

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// The longest order found holds this many operations, and the answer of this operation fits nowhere after them.
    Not {
        placed: usize,
        stuck: usize,
    },
    /// The bound was reached: no verdict.
    TooHard,
}

/// The value after `act` at `value`; `None` when its answer does not fit.
pub fn step(value: u32, act: Act) -> Option<u32> {
    match act {
        Act::Read(seen) => (seen == value).then_some(value),
        Act::Write(to) => Some(to),
        Act::Cas { from, to, moved: true } => (from == value).then_some(to),
        Act::Cas { from, moved: false, .. } => (from != value).then_some(value),
    }
}

/// Decides whether `ops`, in any order, is a linearizable history of a register that starts at 0.
pub fn check(ops: &[Op]) -> Verdict {
    let mut order: Vec<usize> = (0..ops.len()).collect();
    order.sort_by_key(|&op| ops[op].began);
    let known = ops.iter().filter(|op| op.ended.is_some()).count();
    let mut search = Search { ops, order, picked: vec![0; ops.len().div_ceil(64)], tried: HashSet::new() };
    let mut path: Vec<(usize, u32)> = Vec::new(); // (operation, value before it)
    let (mut value, mut known_picked, mut from) = (0u32, 0usize, 0usize);
    let (mut best, mut stuck) = (0usize, 0usize);
    loop {
        if known_picked == known {
            return Verdict::Linearizable;
        }
        if search.tried.len() > STATES_MAX {
            return Verdict::TooHard;
        }
        if let Some((place, after)) = search.next(from, value) {
            let op = search.order[place];
            path.push((place, value));
            search.flip(op);
            known_picked += usize::from(ops[op].ended.is_some());
            (value, from) = (after, 0);
            continue;
        }
        if path.len() >= best {
            (best, stuck) = (path.len(), search.first_unanswered());
        }
        let Some((place, before)) = path.pop() else { return Verdict::Not { placed: best, stuck } };
        let op = search.order[place];
        search.flip(op);
        known_picked -= usize::from(ops[op].ended.is_some());
        (value, from) = (before, place + 1);
    }
}

struct Search<'a> {
    ops: &'a [Op],
    /// Operations by the moment of their question.
    order: Vec<usize>,
    /// One bit an operation.
    picked: Vec<u64>,
    tried: HashSet<(Box<[u64]>, u32)>,
}

impl Search<'_> {
    fn is_picked(&self, op: usize) -> bool {
        self.picked[op / 64] >> (op % 64) & 1 == 1
    }

    fn flip(&mut self, op: usize) {
        self.picked[op / 64] ^= 1 << (op % 64);
    }

    /// The next operation at or after `from` in `order` that may come now and leads to a state not tried yet.
    fn next(&mut self, from: usize, value: u32) -> Option<(usize, u32)> {
        let first_end = self.order.iter().filter(|&&op| !self.is_picked(op)).filter_map(|&op| self.ops[op].ended).min();
        for place in from..self.order.len() {
            let op = self.order[place];
            if first_end.is_some_and(|end| self.ops[op].began > end) {
                return None; // and none after it: they began later still
            }
            if self.is_picked(op) {
                continue;
            }
            let Some(after) = step(value, self.ops[op].act) else { continue };
            self.flip(op);
            let new = self.tried.insert((self.picked.clone().into_boxed_slice(), after));
            self.flip(op);
            if new {
                return Some((place, after));
            }
        }
        None
    }

    /// The unpicked operation whose answer came first.
    fn first_unanswered(&self) -> usize {
        let open = self.order.iter().copied().filter(|&op| !self.is_picked(op) && self.ops[op].ended.is_some());
        open.min_by_key(|&op| self.ops[op].ended).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn op(act: Act, began: u64, ended: u64) -> Op {
        Op { act, began, ended: Some(ended) }
    }

    fn unknown(act: Act, began: u64) -> Op {
        Op { act, began, ended: None }
    }

    const fn cas(from: u32, to: u32, moved: bool) -> Act {
        Act::Cas { from, to, moved }
    }

    #[test]
    fn good_histories_pass() {
        use Act::*;
        for history in [
            vec![],
            vec![op(Write(1), 0, 10), op(Read(1), 11, 12)],
            // Concurrent: the read may come before or after.
            vec![op(Write(1), 0, 10), op(Read(0), 5, 6), op(Read(1), 7, 8)],
            vec![op(cas(0, 1, true), 0, 10), op(cas(0, 2, false), 5, 15), op(Read(1), 16, 17)],
            // An unknown write takes effect late, or never.
            vec![unknown(Write(3), 0), op(Read(0), 5, 6), op(Read(3), 7, 8)],
            vec![unknown(Write(3), 0), op(Read(0), 5, 6), op(Write(1), 7, 8), op(Read(1), 9, 10)],
            // A refused move proves that the value was another.
            vec![op(Write(1), 0, 1), unknown(cas(1, 2, true), 2), op(cas(1, 3, false), 4, 5), op(Read(2), 6, 7)],
        ] {
            assert_eq!(check(&history), Verdict::Linearizable, "{history:?}");
        }
    }

    #[test]
    fn bad_histories_are_found() {
        use Act::*;
        for history in [
            vec![op(Write(1), 0, 1), op(Read(0), 2, 3)],                // stale read
            vec![op(Write(1), 0, 1), op(Read(2), 2, 3)],                // a value nobody wrote
            vec![op(cas(0, 1, true), 0, 9), op(cas(0, 2, true), 0, 9)], // split brain
            // A lost update that a later read uncovers.
            vec![op(Write(1), 0, 1), op(cas(1, 2, true), 2, 3), op(Read(1), 4, 5)],
            // Two reads see a write appear and vanish.
            vec![unknown(Write(3), 0), op(Read(3), 1, 2), op(Read(0), 3, 4)],
            // A move is refused although nothing else can have happened.
            vec![op(Write(1), 0, 1), op(cas(1, 2, false), 2, 3)],
            // An unknown write may not take effect before its question.
            vec![op(Read(3), 0, 1), unknown(Write(3), 2)],
        ] {
            assert!(matches!(check(&history), Verdict::Not { .. }), "{history:?}");
        }
    }

    /// Tries every order of every subset of the unknown operations.
    fn brute_force(ops: &[Op], picked: &mut Vec<bool>, value: u32) -> bool {
        if ops.iter().zip(picked.iter()).all(|(op, picked)| *picked || op.ended.is_none()) {
            return true;
        }
        for next in 0..ops.len() {
            let open = |other: usize| !picked[other] && other != next;
            let precedes = |other: usize| ops[other].ended.is_some_and(|ended| ended < ops[next].began);
            if picked[next] || (0..ops.len()).any(|other| open(other) && precedes(other)) {
                continue;
            }
            if let Some(after) = step(value, ops[next].act) {
                picked[next] = true;
                let fits = brute_force(ops, picked, after);
                picked[next] = false;
                if fits {
                    return true;
                }
            }
        }
        false
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let act = prop_oneof![
            (0..3u32).prop_map(Act::Read),
            (1..3u32).prop_map(Act::Write),
            (0..3u32, 1..3u32, any::<bool>()).prop_map(|(from, to, moved)| cas(from, to, moved)),
        ];
        (act, 0..12u64, 0..8u64, 0..5u8).prop_map(|(act, began, takes, known)| {
            let write = !matches!(act, Act::Read(_) | Act::Cas { moved: false, .. });
            Op { act, began, ended: (known > 0 || !write).then_some(began + takes) }
        })
    }

    /// A history that some order explains: operations act one after the other, their intervals lie around that moment.
    fn true_history() -> impl Strategy<Value = Vec<Op>> {
        proptest::collection::vec((0..3u8, 0..3u32, 1..3u32, 0..20u64, 0..20u64, 0..6u8), 0..40).prop_map(|plan| {
            let mut value = 0;
            let mut ops = Vec::new();
            for (at, (kind, from, to, early, late, known)) in plan.into_iter().enumerate() {
                let act = match kind {
                    0 => Act::Read(value),
                    1 => Act::Write(to),
                    _ => cas(from, to, from == value),
                };
                value = step(value, act).unwrap_or(value);
                let at = at as u64 * 7 + 20;
                let write = !matches!(act, Act::Read(_) | Act::Cas { moved: false, .. });
                ops.push(Op { act, began: at - early, ended: (known > 0 || !write).then_some(at + late) });
            }
            ops
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The whole harness rests on this: the search says what trying everything says.
        #[test]
        fn the_search_agrees_with_brute_force(ops in proptest::collection::vec(any_op(), 0..7)) {
            let expected = brute_force(&ops, &mut vec![false; ops.len()], 0);
            prop_assert_eq!(check(&ops) == Verdict::Linearizable, expected);
        }

        #[test]
        fn what_happened_is_linearizable(ops in true_history()) {
            prop_assert_eq!(check(&ops), Verdict::Linearizable);
        }
    }
}
