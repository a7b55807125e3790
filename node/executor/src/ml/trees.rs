//! TreeEnsembleRegressor and TreeEnsembleClassifier: from attribute lists to a [`Forest`], and from its scores to
//! answers.
//!
//! Where the standard is vague (two classes, base values) this does what onnxruntime does; `tests/golden/trees.bin`
//! holds its answers.

use std::collections::HashMap;

use super::forest::{Aggregate, FEATURES_MAX, Forest, Mode, RawNode, Real};
use super::post::{Post, logistic, probit};
use super::{Labels, Table, label_and_scores, table_f32, table_f64};
use crate::ops::{Build, Built, Kernel, Outputs, Refusal, one, take};
use crate::value::{DataType, HostTensor, Value};

/// A forest and its base values, in one precision.
struct Ensemble<T> {
    forest: Forest<T>,
    base: Vec<T>,
}

/// In f32 as most models are, or in f64 for thresholds or inputs of doubles.
enum Precision {
    Single(Ensemble<f32>),
    Double(Ensemble<f64>),
}

struct Parts {
    trees: Vec<Vec<RawNode>>,
    base: Vec<f64>,
    /// Some attribute holds doubles: thresholds need them.
    double: bool,
}

/// `nodes_*` and, with `kind` "target" or "class", `{kind}_*`.
fn read(cx: &Build<'_>, kind: &str, targets: usize) -> Result<Parts, Refusal> {
    let a = cx.attributes;
    let (values, values_double) = a.reals("nodes_values")?.unwrap_or_default();
    let (weights, weights_double) = a.reals(&format!("{kind}_weights"))?.unwrap_or_default();
    let (base, base_double) = a.reals("base_values")?.unwrap_or_default();
    let ints = |name: &str| a.ints(name).unwrap_or_default();
    let modes = a.raw_strings("nodes_modes");
    let (tree_ids, node_ids, features) = (ints("nodes_treeids"), ints("nodes_nodeids"), ints("nodes_featureids"));
    let (yes, no) = (ints("nodes_truenodeids"), ints("nodes_falsenodeids"));
    let missing = ints("nodes_missing_value_tracks_true");
    let count = modes.len();
    let lengths = [tree_ids.len(), node_ids.len(), features.len(), yes.len(), no.len(), values.len()];
    if lengths != [count; 6] || !(missing.is_empty() || missing.len() == count) {
        return Err(format!("its node attributes differ in length: {count} modes and {lengths:?}").into());
    }
    if count == 0 {
        return Err("it has no nodes".into());
    }
    let mut place = HashMap::with_capacity(count);
    for (at, ids) in tree_ids.iter().zip(node_ids).enumerate() {
        if place.insert((*ids.0, *ids.1), at).is_some() {
            return Err(format!("tree {} has node {} twice", ids.0, ids.1).into());
        }
    }
    let leaf = |name: &str| ints(&format!("{kind}_{name}"));
    let (leaf_trees, leaf_nodes, leaf_targets) = (leaf("treeids"), leaf("nodeids"), leaf("ids"));
    if [leaf_trees.len(), leaf_nodes.len(), leaf_targets.len()] != [weights.len(); 3] {
        return Err(format!("its {kind} attributes differ in length").into());
    }
    let mut entries: Vec<Vec<(u32, f64)>> = vec![Vec::new(); count];
    for (((tree, node), &target), &weight) in leaf_trees.iter().zip(leaf_nodes).zip(leaf_targets).zip(&weights) {
        let at =
            place.get(&(*tree, *node)).ok_or_else(|| format!("tree {tree} has no node {node} for a {kind} weight"))?;
        let target = u32::try_from(target).ok().filter(|&target| (target as usize) < targets);
        let target = target.ok_or_else(|| format!("a weight is for a {kind} outside the {targets} there are"))?;
        entries[*at].push((target, weight));
    }

    // Nodes as they stand in the file, with children by place.
    let mut nodes = Vec::with_capacity(count);
    let mut is_child = vec![false; count];
    for at in 0..count {
        let mode = match modes[at].as_ref() {
            b"LEAF" => {
                nodes.push(RawNode::Leaf(std::mem::take(&mut entries[at])));
                continue;
            }
            b"BRANCH_LEQ" => Mode::Leq,
            b"BRANCH_LT" => Mode::Lt,
            b"BRANCH_GTE" => Mode::Gte,
            b"BRANCH_GT" => Mode::Gt,
            b"BRANCH_EQ" => Mode::Eq,
            b"BRANCH_NEQ" => Mode::Neq,
            other => return Err(Refusal::Unsupported(format!("node mode `{}`", String::from_utf8_lossy(other)))),
        };
        let child = |id: i64| {
            let missing = || format!("node {} of tree {} has no child {id}", node_ids[at], tree_ids[at]);
            place.get(&(tree_ids[at], id)).copied().ok_or_else(missing)
        };
        let (yes, no) = (child(yes[at])?, child(no[at])?);
        if yes == no || is_child[yes] || is_child[no] {
            return Err(
                format!("tree {} is not a tree: a node below {} has two parents", tree_ids[at], node_ids[at]).into()
            );
        }
        (is_child[yes], is_child[no]) = (true, true);
        let feature = u32::try_from(features[at]).ok().filter(|&feature| feature < FEATURES_MAX);
        let feature = feature.ok_or_else(|| format!("there is no feature {}", features[at]))?;
        let nan_is_yes = missing.get(at).is_some_and(|&flag| flag != 0);
        nodes.push(RawNode::Split { mode, feature, threshold: values[at], nan_is_yes, yes, no });
    }
    let trees = split_into_trees(nodes, &is_child, tree_ids)?;
    Ok(Parts { trees, base, double: values_double || weights_double || base_double })
}

/// One vector for each tree, in the order in which their roots stand in the file: preorder, the yes side first.
fn split_into_trees(nodes: Vec<RawNode>, is_child: &[bool], tree_ids: &[i64]) -> Result<Vec<Vec<RawNode>>, Refusal> {
    let count = nodes.len();
    let mut nodes: Vec<Option<RawNode>> = nodes.into_iter().map(Some).collect();
    let mut rooted = std::collections::HashSet::new();
    let mut trees = Vec::new();
    let mut taken = 0;
    for root in (0..count).filter(|&at| !is_child[at]) {
        if !rooted.insert(tree_ids[root]) {
            return Err(format!("tree {} has two roots", tree_ids[root]).into());
        }
        let mut tree: Vec<RawNode> = Vec::new();
        // A node's old place, and where its parent keeps its new one.
        let mut open: Vec<(usize, Option<(usize, bool)>)> = vec![(root, None)];
        while let Some((from, parent)) = open.pop() {
            let Some(node) = nodes[from].take() else {
                return Err(format!("tree {} is not a tree", tree_ids[root]).into());
            };
            let to = tree.len();
            if let Some((parent, is_yes)) = parent
                && let Some(RawNode::Split { yes, no, .. }) = tree.get_mut(parent)
            {
                *(if is_yes { yes } else { no }) = to;
            }
            if let RawNode::Split { yes, no, .. } = &node {
                open.push((*no, Some((to, false))));
                open.push((*yes, Some((to, true))));
            }
            tree.push(node);
        }
        taken += tree.len();
        trees.push(tree);
    }
    if taken < count {
        return Err("some nodes hang on no root: they form a cycle".into());
    }
    Ok(trees)
}

impl Precision {
    fn compile(cx: &Build<'_>, parts: &Parts, targets: usize, aggregate: Aggregate) -> Result<Self, Refusal> {
        Ok(if parts.double || cx.input_type(0) == Some(DataType::Fp64) {
            Self::Double(Ensemble::compile(cx, parts, targets, aggregate)?)
        } else {
            Self::Single(Ensemble::compile(cx, parts, targets, aggregate)?)
        })
    }

    /// Lets rows fall, then calls `finish` for each: its scores, which of them a leaf spoke for, and the base values.
    fn run<R>(
        &self,
        x: Value,
        finish: impl FnMut(&mut [f64], &[bool], &[f64]) -> R,
    ) -> Result<(usize, Vec<R>), String> {
        fn rows<T: Real, R>(
            ensemble: &Ensemble<T>,
            x: &Table<T>,
            mut finish: impl FnMut(&mut [f64], &[bool], &[f64]) -> R,
        ) -> Result<(usize, Vec<R>), String> {
            let found = ensemble.forest.run(&x.values, x.columns)?;
            let targets = ensemble.forest.targets();
            let base: Vec<f64> = ensemble.base.iter().map(|value| value.to_f64()).collect();
            let mut row = vec![0.0; targets];
            let scores = found.scores.chunks_exact(targets).zip(found.has.chunks_exact(targets));
            let rows = scores.map(|(scores, has)| {
                row.iter_mut().zip(scores).for_each(|(to, from)| *to = from.to_f64());
                finish(&mut row, has, &base)
            });
            Ok((x.rows, rows.collect()))
        }
        match self {
            Self::Single(ensemble) => rows(ensemble, &table_f32(x)?, finish),
            Self::Double(ensemble) => rows(ensemble, &table_f64(x)?, finish),
        }
    }

    fn trees(&self) -> usize {
        match self {
            Self::Single(ensemble) => ensemble.forest.trees(),
            Self::Double(ensemble) => ensemble.forest.trees(),
        }
    }
}

impl<T: Real> Ensemble<T> {
    fn compile(cx: &Build<'_>, parts: &Parts, targets: usize, aggregate: Aggregate) -> Result<Self, Refusal> {
        let forest = Forest::compile(&parts.trees, targets, aggregate)?;
        cx.holds(forest.bytes());
        Ok(Self { forest, base: parts.base.iter().map(|&value| T::from_f64(value)).collect() })
    }
}

pub(super) fn regressor(cx: &Build<'_>) -> Built {
    let post = Post::parse(cx.attributes.string("post_transform", "NONE")?)?;
    let targets = usize::try_from(cx.attributes.int("n_targets", 1)).ok().filter(|&n| n > 0 && n <= 1 << 20);
    let targets = targets.ok_or("attribute `n_targets` is not a sensible number")?;
    let (aggregate, average) = match cx.attributes.string("aggregate_function", "SUM")? {
        "SUM" => (Aggregate::Sum, false),
        "AVERAGE" => (Aggregate::Sum, true),
        "MIN" => (Aggregate::Min, false),
        "MAX" => (Aggregate::Max, false),
        other => return Err(format!("attribute `aggregate_function` is `{other}`").into()),
    };
    let ensemble = Precision::compile(cx, &read(cx, "target", targets)?, targets, aggregate)?;
    let divisor = if average { ensemble.trees() as f64 } else { 1.0 };
    let kernel: Kernel = Box::new(move |mut i| -> Result<Outputs, String> {
        let mut answers = Vec::new();
        let (rows, _) = ensemble.run(take(&mut i, 0)?, |scores, _, base| {
            let start = answers.len();
            for (target, score) in scores.iter().enumerate() {
                let base = if base.len() == targets { base[target] } else { 0.0 };
                // As onnxruntime: divided, then shifted, each rounded to f32.
                answers.push(((score / divisor) as f32 + base as f32).to_owned());
            }
            let row = &mut answers[start..];
            match (row, post) {
                ([score], Post::Probit) => *score = probit(*score),
                // One target has no transform but this in onnxruntime.
                ([_], _) => {}
                (row, post) => post.apply(row),
            }
        })?;
        one(HostTensor::of_f32(&[rows, targets], answers))
    });
    Ok(kernel)
}

pub(super) fn classifier(cx: &Build<'_>) -> Built {
    let post = Post::parse(cx.attributes.string("post_transform", "NONE")?)?;
    let labels = Labels::read(cx, "classlabels_int64s", "classlabels_strings")?;
    let classes = labels.len();
    if classes < 2 {
        return Err(format!("{classes} classes: a classifier needs two or more").into());
    }
    let parts = read(cx, "class", classes)?;
    let weights = || {
        parts.trees.iter().flatten().flat_map(|node| match node {
            RawNode::Leaf(entries) => entries.as_slice(),
            RawNode::Split { .. } => &[],
        })
    };
    let mut ids: Vec<u32> = weights().map(|&(class, _)| class).collect();
    ids.sort_unstable();
    ids.dedup();
    let shape =
        Shape { classes, one_id: classes == 2 && ids.len() == 1, positive: weights().all(|&(_, w)| w >= 0.0), post };
    let ensemble = Precision::compile(cx, &parts, classes, Aggregate::Sum)?;
    Ok(Box::new(move |mut i| {
        let mut answers = Vec::new();
        let finish = |scores: &mut [f64], has: &[bool], base: &[f64]| {
            let scores: Vec<f32> = scores.iter().map(|&score| score as f32).collect();
            shape.finish(scores, has, base, &mut answers)
        };
        let (rows, places) = ensemble.run(take(&mut i, 0)?, finish)?;
        label_and_scores(labels.of(&places), rows, answers)
    }))
}

struct Shape {
    classes: usize,
    /// Two classes, and all weights are for one of them: its score decides ensemble.
    one_id: bool,
    positive: bool,
    post: Post,
}

impl Shape {
    /// Writes one row of scores and gives the place of its label.
    fn finish(&self, mut scores: Vec<f32>, has: &[bool], base: &[f64], answers: &mut Vec<f32>) -> usize {
        if self.classes > 2 {
            for (score, base) in scores.iter_mut().zip(base) {
                *score += *base as f32;
            }
            let mut best: Option<usize> = None;
            for (place, score) in scores.iter().enumerate() {
                if (has[place] || place < base.len()) && best.is_none_or(|best| *score > scores[best]) {
                    best = Some(place);
                }
            }
            self.post.apply(&mut scores);
            answers.extend(scores);
            return best.unwrap_or_default();
        }
        let mut has_second = has[1];
        let mut alone = false;
        match *base {
            [_, second] if has_second => {
                scores[1] = second as f32 + scores[0];
                scores[0] = -scores[1];
            }
            [first, second] => {
                scores[1] += second as f32;
                scores[0] += first as f32;
                has_second = false;
            }
            [first] => {
                scores[0] += first as f32;
                alone = !has_second;
            }
            _ => alone = !has_second,
        }
        let deciding = if has_second { scores[1] } else { scores[0] };
        let is_second = deciding > if self.one_id && self.positive { 0.5 } else { 0.0 };
        if alone {
            answers.extend(self.two_from_one(scores[0]));
        } else {
            // A class that no leaf spoke for stays at 0, whatever its base value.
            scores.iter_mut().zip(has).filter(|(_, has)| !**has).for_each(|(score, _)| *score = 0.0);
            self.post.apply(&mut scores);
            answers.extend(scores);
        }
        usize::from(is_second)
    }

    /// The scores of both classes from the one there is.
    fn two_from_one(&self, score: f32) -> [f32; 2] {
        match self.post {
            Post::Probit => [1.0 - probit(score), probit(score)],
            Post::Logistic => [logistic(-score), logistic(score)],
            _ if self.one_id && self.positive => [1.0 - score, score],
            _ => [-score, score],
        }
    }
}
