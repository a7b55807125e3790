//! Tree ensembles as compact arrays, and how rows fall through them.
//!
//! Two layouts. *Complete*: every tree padded to one depth and stored as a heap, so that a level is `i = 2i + 1 + !(x
//! <= t)` without a
//! branch; eight rows at a time, or for few rows eight trees at a time. *Nodes*: an array of nodes with two children
//! each, for deep trees
//! and for equality tests; 64 rows pass a tree while it is in cache.
//!
//! Every inequality is brought to `x <= t` when compiling. Leaves are added in tree order whatever the layout and the
//! batch, so an answer does
//! not depend on who shares the batch.

/// Trees deeper than this are not padded: their heaps would mostly be padding.
const COMPLETE_DEPTH_MAX: u32 = 8;
/// And not where padding makes more than this many times the leaves there are.
const PADDING_MAX: usize = 8;
const LANES: usize = 8;
const BLOCK_ROWS: usize = 64;

/// On a split's feature: NaN goes to the yes side.
const NAN_IS_YES: u32 = 1 << 31;
/// On a node's feature: the test is `x == t`.
const EQUALITY: u32 = 1 << 30;
/// On a child: it is a leaf.
const LEAF: u32 = 1 << 31;
/// Features are numbered below this.
pub(crate) const FEATURES_MAX: u32 = EQUALITY;

/// f32 or f64: thresholds, inputs and sums are of one of them.
pub(crate) trait Real:
    Copy + PartialOrd + Send + Sync + std::fmt::Debug + std::ops::AddAssign + 'static
{
    const ZERO: Self;
    const INFINITY: Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn is_nan(self) -> bool;
    fn next_down(self) -> Self;
}

macro_rules! real {
    ($T:ty) => {
        impl Real for $T {
            const ZERO: Self = 0.0;
            const INFINITY: Self = <$T>::INFINITY;
            fn from_f64(value: f64) -> Self {
                value as $T
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn is_nan(self) -> bool {
                <$T>::is_nan(self)
            }
            fn next_down(self) -> Self {
                <$T>::next_down(self)
            }
        }
    };
}
real!(f32);
real!(f64);

/// A test as models write it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
}

/// A tree before compiling: node 0 is the root, children come after their parents.
#[derive(Debug, Clone)]
pub(crate) enum RawNode {
    Split {
        mode: Mode,
        feature: u32,
        threshold: f64,
        nan_is_yes: bool,
        yes: usize,
        no: usize,
    },
    /// (target, weight) pairs.
    Leaf(Vec<(u32, f64)>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aggregate {
    Sum,
    Min,
    Max,
}

#[derive(Debug, Clone, Copy)]
struct Split<T> {
    threshold: T,
    feature: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node<T> {
    threshold: T,
    feature: u32,
    /// No, yes.
    children: [u32; 2],
}

#[derive(Debug)]
enum Layout<T> {
    Complete { depth: u32, splits: Vec<Split<T>> },
    Nodes { roots: Vec<u32>, nodes: Vec<Node<T>> },
}

#[derive(Debug)]
enum Leaves<T> {
    /// One weight each, all for target 0.
    Values(Vec<T>),
    /// Where each leaf's entries start and how many there are.
    Entries { ranges: Vec<(u32, u32)>, entries: Vec<(u32, T)> },
}

#[derive(Debug)]
pub(crate) struct Forest<T> {
    layout: Layout<T>,
    leaves: Leaves<T>,
    trees: usize,
    features: usize,
    targets: usize,
    aggregate: Aggregate,
}

/// `[rows, targets]`: a score, and whether any leaf spoke for it.
pub(crate) struct Scores<T> {
    pub scores: Vec<T>,
    pub has: Vec<bool>,
}

/// `x <= t`, with what to do to the children to make it mean the same.
struct Normal<T> {
    threshold: T,
    equality: bool,
    nan_is_yes: bool,
    swapped: bool,
}

fn normal<T: Real>(mode: Mode, threshold: f64, nan_is_yes: bool) -> Normal<T> {
    let t = T::from_f64(threshold);
    // `x < t` is `x <= t'` for the next number below; nothing is below minus infinity, and no number is `<= NaN`.
    let below = if t == T::from_f64(f64::NEG_INFINITY) { T::from_f64(f64::NAN) } else { t.next_down() };
    // Against NaN, `>=` and `>` never hold: swapped, `<=` must always.
    let or_all = |t: T| if threshold.is_nan() { T::INFINITY } else { t };
    let plain = |threshold, equality| Normal { threshold, equality, nan_is_yes, swapped: false };
    let swapped = |threshold, equality| Normal { threshold, equality, nan_is_yes: !nan_is_yes, swapped: true };
    match mode {
        Mode::Leq => plain(t, false),
        Mode::Lt => plain(below, false),
        Mode::Gte => swapped(or_all(below), false),
        Mode::Gt => swapped(or_all(t), false),
        Mode::Eq => plain(t, true),
        // NaN is unequal to every threshold, so it goes to the yes side whatever the node says.
        Mode::Neq => Normal { threshold: t, equality: true, nan_is_yes: false, swapped: true },
    }
}

impl<T: Real> Forest<T> {
    /// `targets` bounds every leaf's target; the caller has checked features and that children come after parents.
    pub fn compile(trees: &[Vec<RawNode>], targets: usize, aggregate: Aggregate) -> Result<Self, String> {
        let mut features = 0;
        let (mut leaf_count, mut depth, mut equality) = (0usize, 0, false);
        for tree in trees {
            let mut levels = vec![0u32; tree.len()];
            for (at, node) in tree.iter().enumerate() {
                match node {
                    RawNode::Split { mode, feature, yes, no, .. } => {
                        features = features.max(*feature as usize + 1);
                        equality |= matches!(mode, Mode::Eq | Mode::Neq);
                        for &child in [yes, no] {
                            levels[child] = levels[at] + 1;
                            depth = depth.max(levels[child]);
                        }
                    }
                    RawNode::Leaf(_) => leaf_count += 1,
                }
            }
        }
        let simple = trees.iter().flatten().all(|node| match node {
            RawNode::Leaf(entries) => matches!(entries.as_slice(), [(0, _)]),
            RawNode::Split { .. } => true,
        });
        let leaves = if simple && targets == 1 {
            Leaves::Values(Vec::new())
        } else {
            Leaves::Entries { ranges: Vec::new(), entries: Vec::new() }
        };
        let mut forest = Self {
            layout: Layout::Nodes { roots: Vec::new(), nodes: Vec::new() },
            leaves,
            trees: trees.len(),
            features,
            targets,
            aggregate,
        };
        let padded = trees.len().saturating_mul(1 << depth.min(COMPLETE_DEPTH_MAX));
        if depth <= COMPLETE_DEPTH_MAX && !equality && padded <= leaf_count.saturating_mul(PADDING_MAX).max(1024) {
            forest.complete(trees, depth);
        } else {
            forest.nodes(trees)?;
        }
        Ok(forest)
    }

    fn push_leaf(&mut self, leaf: &[(u32, f64)]) {
        match &mut self.leaves {
            Leaves::Values(values) => values.push(leaf.first().map_or(T::ZERO, |&(_, weight)| T::from_f64(weight))),
            Leaves::Entries { ranges, entries } => {
                ranges.push((entries.len() as u32, leaf.len() as u32));
                entries.extend(leaf.iter().map(|&(target, weight)| (target, T::from_f64(weight))));
            }
        }
    }

    fn complete(&mut self, trees: &[Vec<RawNode>], depth: u32) {
        let inner = (1usize << depth) - 1;
        let mut splits = vec![Split { threshold: T::ZERO, feature: 0 }; inner * trees.len()];
        for (tree, nodes) in trees.iter().enumerate() {
            // Which raw node each place of the heap stands for; below a leaf, that leaf again.
            let mut places = vec![0usize; 2 * inner + 1];
            for at in 0..inner {
                let raw = places[at];
                match &nodes[raw] {
                    RawNode::Split { mode, feature, threshold, nan_is_yes, yes, no } => {
                        let normal = normal::<T>(*mode, *threshold, *nan_is_yes);
                        let (yes, no) = if normal.swapped { (no, yes) } else { (yes, no) };
                        let flag = if normal.nan_is_yes { NAN_IS_YES } else { 0 };
                        splits[tree * inner + at] = Split { threshold: normal.threshold, feature: feature | flag };
                        (places[2 * at + 1], places[2 * at + 2]) = (*yes, *no);
                    }
                    RawNode::Leaf(_) => (places[2 * at + 1], places[2 * at + 2]) = (raw, raw),
                }
            }
            for &raw in &places[inner..] {
                if let RawNode::Leaf(entries) = &nodes[raw] {
                    self.push_leaf(entries);
                }
            }
        }
        self.layout = Layout::Complete { depth, splits };
    }

    fn nodes(&mut self, trees: &[Vec<RawNode>]) -> Result<(), String> {
        let (mut roots, mut nodes): (Vec<u32>, Vec<Node<T>>) = (Vec::new(), Vec::new());
        let mut leaf_count = 0u32;
        for tree in trees {
            let mut places = Vec::with_capacity(tree.len());
            let mut next = nodes.len();
            for node in tree {
                match node {
                    RawNode::Split { .. } => {
                        places.push(next as u32);
                        next += 1;
                    }
                    RawNode::Leaf(entries) => {
                        places.push(leaf_count | LEAF);
                        leaf_count += 1;
                        self.push_leaf(entries);
                    }
                }
            }
            if next >= LEAF as usize || leaf_count >= LEAF {
                return Err("the forest has more than two thousand million nodes".to_owned());
            }
            roots.push(places.first().copied().ok_or("a tree has no nodes")?);
            for node in tree {
                if let RawNode::Split { mode, feature, threshold, nan_is_yes, yes, no } = node {
                    let normal = normal::<T>(*mode, *threshold, *nan_is_yes);
                    let (yes, no) = if normal.swapped { (no, yes) } else { (yes, no) };
                    let flags =
                        if normal.nan_is_yes { NAN_IS_YES } else { 0 } | if normal.equality { EQUALITY } else { 0 };
                    nodes.push(Node {
                        threshold: normal.threshold,
                        feature: feature | flags,
                        children: [places[*no], places[*yes]],
                    });
                }
            }
        }
        self.layout = Layout::Nodes { roots, nodes };
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        let layout = match &self.layout {
            Layout::Complete { splits, .. } => size_of_val(splits.as_slice()),
            Layout::Nodes { roots, nodes } => size_of_val(roots.as_slice()) + size_of_val(nodes.as_slice()),
        };
        let leaves = match &self.leaves {
            Leaves::Values(values) => size_of_val(values.as_slice()),
            Leaves::Entries { ranges, entries } => size_of_val(ranges.as_slice()) + size_of_val(entries.as_slice()),
        };
        layout + leaves
    }

    pub fn trees(&self) -> usize {
        self.trees
    }

    pub fn targets(&self) -> usize {
        self.targets
    }

    /// Lets `rows` fall through all trees. `values: [rows, columns]`, row-major.
    pub fn run(&self, values: &[T], columns: usize) -> Result<Scores<T>, String> {
        if columns < self.features {
            return Err(format!("{columns} features where {} are needed", self.features));
        }
        let rows = values.len() / columns.max(1);
        let mut scores = Scores { scores: vec![T::ZERO; rows * self.targets], has: vec![false; rows * self.targets] };
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows - first);
            let block = &values[first * columns..(first + count) * columns];
            let mut out = Out {
                forest: self,
                scores: &mut scores.scores[first * self.targets..(first + count) * self.targets],
                has: &mut scores.has[first * self.targets..(first + count) * self.targets],
            };
            match &self.layout {
                Layout::Complete { depth, splits } => {
                    // One look at the block spares a test at every split.
                    if block.iter().any(|value| value.is_nan()) {
                        complete_block::<T, true>(*depth, splits, block, columns, &mut out);
                    } else {
                        complete_block::<T, false>(*depth, splits, block, columns, &mut out);
                    }
                }
                Layout::Nodes { roots, nodes } => nodes_block(roots, nodes, block, columns, &mut out),
            }
        }
        Ok(scores)
    }
}

/// The scores of one block.
struct Out<'a, T> {
    forest: &'a Forest<T>,
    scores: &'a mut [T],
    has: &'a mut [bool],
}

impl<T: Real> Out<'_, T> {
    #[inline]
    fn add(&mut self, row: usize, leaf: usize) {
        match &self.forest.leaves {
            Leaves::Values(values) => self.combine(row, values[leaf]),
            Leaves::Entries { ranges, entries } => {
                let (start, count) = ranges[leaf];
                for &(target, weight) in &entries[start as usize..(start + count) as usize] {
                    self.combine(row * self.forest.targets + target as usize, weight);
                }
            }
        }
    }

    #[inline]
    fn combine(&mut self, at: usize, weight: T) {
        let score = &mut self.scores[at];
        let has = std::mem::replace(&mut self.has[at], true);
        match self.forest.aggregate {
            Aggregate::Sum => *score += weight,
            Aggregate::Min if !has || weight < *score => *score = weight,
            Aggregate::Max if !has || weight > *score => *score = weight,
            Aggregate::Min | Aggregate::Max => {}
        }
    }
}

/// One level down a heap.
#[inline(always)]
fn step<T: Real, const NAN: bool>(splits: &[Split<T>], at: usize, row: &[T]) -> usize {
    let split = &splits[at];
    let value = row[(split.feature & !NAN_IS_YES) as usize];
    let yes = (value <= split.threshold) | (NAN & value.is_nan() & (split.feature & NAN_IS_YES != 0));
    2 * at + 1 + usize::from(!yes)
}

fn complete_block<T: Real, const NAN: bool>(
    depth: u32,
    splits: &[Split<T>],
    block: &[T],
    columns: usize,
    out: &mut Out<'_, T>,
) {
    let inner = (1usize << depth) - 1;
    let trees = out.forest.trees;
    let tree_splits = |tree: usize| &splits[tree * inner..(tree + 1) * inner];
    let rows = block.len().checked_div(columns).unwrap_or(0);
    let together = rows - rows % LANES;
    for tree in 0..trees {
        let splits = tree_splits(tree);
        for first in (0..together).step_by(LANES) {
            let lanes: [&[T]; LANES] = std::array::from_fn(|lane| &block[(first + lane) * columns..][..columns]);
            let mut at = [0usize; LANES];
            for _ in 0..depth {
                for lane in 0..LANES {
                    at[lane] = step::<T, NAN>(splits, at[lane], lanes[lane]);
                }
            }
            for (lane, at) in at.into_iter().enumerate() {
                out.add(first + lane, tree * (inner + 1) + at - inner);
            }
        }
    }
    // What is left of the rows: one row, eight trees.
    for row in together..rows {
        let values = &block[row * columns..][..columns];
        for first in (0..trees).step_by(LANES) {
            let count = LANES.min(trees - first);
            let mut at = [0usize; LANES];
            // The last group may hold fewer trees; its spare lanes repeat the last tree.
            let lanes: [&[Split<T>]; LANES] = std::array::from_fn(|lane| tree_splits(first + lane.min(count - 1)));
            for _ in 0..depth {
                for lane in 0..LANES {
                    at[lane] = step::<T, NAN>(lanes[lane], at[lane], values);
                }
            }
            for (lane, at) in at.into_iter().enumerate().take(count) {
                out.add(row, (first + lane) * (inner + 1) + at - inner);
            }
        }
    }
}

fn nodes_block<T: Real>(roots: &[u32], nodes: &[Node<T>], block: &[T], columns: usize, out: &mut Out<'_, T>) {
    let down = |at: u32, values: &[T]| {
        let node = &nodes[at as usize];
        let value = values[(node.feature & !(NAN_IS_YES | EQUALITY)) as usize];
        let holds = if node.feature & EQUALITY != 0 { value == node.threshold } else { value <= node.threshold };
        let yes = holds | (value.is_nan() & (node.feature & NAN_IS_YES != 0));
        node.children[usize::from(yes)]
    };
    for &root in roots {
        // Four rows at once: while one waits for its node, the others go on.
        for (group, rows) in block.chunks(4 * columns.max(1)).enumerate() {
            let count = rows.len() / columns.max(1);
            let mut at = [root; 4];
            while at[..count].iter().any(|at| at & LEAF == 0) {
                for (at, values) in at.iter_mut().zip(rows.chunks_exact(columns.max(1))) {
                    if *at & LEAF == 0 {
                        *at = down(*at, values);
                    }
                }
            }
            for (lane, at) in at[..count].iter().enumerate() {
                out.add(4 * group + lane, (at & !LEAF) as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mode() -> impl Strategy<Value = Mode> {
        prop::sample::select(vec![Mode::Leq, Mode::Lt, Mode::Gte, Mode::Gt, Mode::Eq, Mode::Neq])
    }

    /// Numbers that meet thresholds often.
    fn number() -> impl Strategy<Value = f64> {
        prop::sample::select(vec![-1.0, -0.0, 0.0, 0.5, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN])
    }

    fn holds(mode: Mode, x: f32, t: f32, nan_is_yes: bool) -> bool {
        let plain = match mode {
            Mode::Leq => x <= t,
            Mode::Lt => x < t,
            Mode::Gte => x >= t,
            Mode::Gt => x > t,
            Mode::Eq => x == t,
            Mode::Neq => x != t,
        };
        plain || (x.is_nan() && nan_is_yes)
    }

    /// Random trees, children after parents: `shape` says for each node how deep it may still grow.
    fn tree(depth: u32) -> BoxedStrategy<Vec<RawNode>> {
        let leaf = (-2.0f64..2.0).prop_map(|weight| vec![RawNode::Leaf(vec![(0, weight)])]);
        if depth == 0 {
            return leaf.boxed();
        }
        let split = (mode(), 0..3u32, number(), any::<bool>(), tree(depth - 1), tree(depth - 1)).prop_map(
            |(mode, feature, threshold, nan_is_yes, left, right)| {
                let (yes, no) = (1, 1 + left.len());
                let mut nodes = vec![RawNode::Split { mode, feature, threshold, nan_is_yes, yes, no }];
                for (offset, side) in [(yes, left), (no, right)] {
                    nodes.extend(side.into_iter().map(|node| match node {
                        RawNode::Split { mode, feature, threshold, nan_is_yes, yes, no } => {
                            RawNode::Split { mode, feature, threshold, nan_is_yes, yes: yes + offset, no: no + offset }
                        }
                        leaf @ RawNode::Leaf(_) => leaf,
                    }));
                }
                nodes
            },
        );
        prop_oneof![1 => leaf, 4 => split].boxed()
    }

    proptest! {
        /// Both layouts, any mode, any batch: the sum that walking each tree by its own words gives.
        #[test]
        fn rows_fall_as_the_nodes_say(
            trees in prop::collection::vec(tree(4), 1..12),
            rows in prop::collection::vec([number(), number(), number()], 1..20),
        ) {
            let forest = Forest::<f32>::compile(&trees, 1, Aggregate::Sum).map_err(TestCaseError::fail)?;
            let values: Vec<f32> = rows.iter().flatten().map(|&value| value as f32).collect();
            let found = forest.run(&values, 3).map_err(TestCaseError::fail)?.scores;
            let alone = |row| forest.run(row, 3).unwrap().scores;
            let one_by_one: Vec<f32> = values.chunks_exact(3).flat_map(alone).collect();
            prop_assert_eq!(&found, &one_by_one);
            for (row, found) in values.chunks_exact(3).zip(found) {
                let mut sum = 0.0f32;
                for tree in &trees {
                    let mut at = 0;
                    loop {
                        match &tree[at] {
                            RawNode::Split { mode, feature, threshold, nan_is_yes, yes, no } => {
                                let yes_side = holds(*mode, row[*feature as usize], *threshold as f32, *nan_is_yes);
                                at = if yes_side { *yes } else { *no };
                            }
                            RawNode::Leaf(entries) => {
                                sum += entries[0].1 as f32;
                                break;
                            }
                        }
                    }
                }
                prop_assert_eq!(found, sum);
            }
        }
    }
}
