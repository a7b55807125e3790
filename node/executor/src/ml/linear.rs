//! LinearRegressor and LinearClassifier.

use super::post::{Post, logistic};
use super::{Labels, label_and_scores, table_f32};
use crate::ops::{Build, Built, Refusal, one, take};
use crate::value::HostTensor;

/// `coefficients: [targets, features] f32`, `intercepts: [targets]` or empty.
struct Linear {
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    targets: usize,
}

impl Linear {
    fn read(cx: &Build<'_>, targets: usize) -> Result<Self, Refusal> {
        let coefficients = cx.attributes.floats("coefficients").unwrap_or_default().to_vec();
        let intercepts = cx.attributes.floats("intercepts").unwrap_or_default().to_vec();
        if targets == 0 || coefficients.is_empty() || !coefficients.len().is_multiple_of(targets) {
            return Err(format!("{} coefficients do not make {targets} targets", coefficients.len()).into());
        }
        if !intercepts.is_empty() && intercepts.len() != targets {
            return Err(format!("{} intercepts for {targets} targets", intercepts.len()).into());
        }
        cx.holds((coefficients.len() + intercepts.len()) * 4);
        Ok(Self { coefficients, intercepts, targets })
    }

    /// Rows and their scores, `[rows, targets]`.
    fn run(&self, x: crate::value::Value) -> Result<(usize, Vec<f32>), String> {
        let x = table_f32(x)?;
        let features = self.coefficients.len() / self.targets;
        if x.columns != features {
            return Err(format!("{} features where {features} are needed", x.columns));
        }
        let mut scores = Vec::with_capacity(x.rows * self.targets);
        for row in x.values.chunks_exact(features) {
            for (target, weights) in self.coefficients.chunks_exact(features).enumerate() {
                let product: f32 = row.iter().zip(weights).map(|(value, weight)| value * weight).sum();
                scores.push(product + self.intercepts.get(target).copied().unwrap_or_default());
            }
        }
        Ok((x.rows, scores))
    }
}

pub(super) fn regressor(cx: &Build<'_>) -> Built {
    let post = Post::parse(cx.attributes.string("post_transform", "NONE")?)?;
    let targets = usize::try_from(cx.attributes.int("targets", 1)).unwrap_or_default();
    let linear = Linear::read(cx, targets)?;
    Ok(Box::new(move |mut i| {
        let (rows, mut scores) = linear.run(take(&mut i, 0)?)?;
        scores.chunks_exact_mut(targets).for_each(|row| finish_regression(row, post));
        one(HostTensor::of_f32(&[rows, targets], scores))
    }))
}

/// One score has no other to be weighed against: only the functions of one number apply.
fn finish_regression(row: &mut [f32], post: Post) {
    match post {
        Post::Softmax | Post::SoftmaxZero if row.len() == 1 => {}
        post => post.apply(row),
    }
}

pub(super) fn classifier(cx: &Build<'_>) -> Built {
    let post = Post::parse(cx.attributes.string("post_transform", "NONE")?)?;
    let labels = Labels::read(cx, "classlabels_ints", "classlabels_strings")?;
    let classes = cx.attributes.floats("intercepts").map_or(0, <[f32]>::len);
    let linear = Linear::read(cx, if classes == 0 { labels.len().max(1) } else { classes })?;
    let two_from_one = linear.targets == 1 && labels.len() == 2;
    Ok(Box::new(move |mut i| {
        let (rows, scores) = linear.run(take(&mut i, 0)?)?;
        let places: Vec<usize> = scores
            .chunks_exact(linear.targets)
            .map(|row| if let [score] = row { usize::from(*score > 0.0) } else { greatest(row) })
            .collect();
        let mut answers = Vec::with_capacity(rows * if two_from_one { 2 } else { linear.targets });
        for row in scores.chunks_exact(linear.targets) {
            match *row {
                [score] if two_from_one => answers.extend(match post {
                    Post::Logistic => [logistic(-score), logistic(score)],
                    _ => [1.0 - score, score],
                }),
                _ => {
                    let start = answers.len();
                    answers.extend_from_slice(row);
                    finish_regression(&mut answers[start..], post);
                }
            }
        }
        label_and_scores(labels.of(&places), rows, answers)
    }))
}

/// The place of the greatest score, the first of equals.
fn greatest(row: &[f32]) -> usize {
    let mut best = 0;
    for (place, score) in row.iter().enumerate() {
        if *score > row[best] {
            best = place;
        }
    }
    best
}
