//! How good scores were. y is the label, p the score, n the rows with a finite score; logarithms are natural.
//!
//! - AUC: the share of pairs of a positive and a negative row in which the positive one has the greater score, ties as one
//!   half (Mann and Whitney's U / (n₁ n₀)); exact
//! - log loss: −Σ ln q / n, where q is p if y = 1 and else 1 − p, cut to [ε, 1 − ε], ε = 1e-15
//! - RMSE: √(Σ (p − y)² / n); of probabilities, the root of the Brier score
//! - calibration error: expected calibration error in ten bins of equal width, Σ (n_b / n) |mean p − mean y in b|; a score
//!   on a bin's upper edge is in the next one, 1 in the last (Naeini et al. 2015)
//! - bias: mean p − mean y
//!
//! AUC, log loss and calibration error are of labels that are all 0 or 1; the latter two of scores that are all
//! probabilities. Each is absent where it is not defined.

/// Scores this little outside of 0 and 1 are probabilities with a rounding error.
const ROUNDING: f64 = 1e-6;
/// Log loss never sees a probability nearer to 0 or 1.
const EPSILON: f64 = 1e-15;
const BINS: usize = 10;

/// What labels and scores are, over all windows: so that all windows have the same metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// All labels are 0 or 1.
    pub binary: bool,
    /// And all finite scores are probabilities.
    pub probabilities: bool,
}

impl Kind {
    pub fn of(labels: &[f64], scores: &[f64]) -> Self {
        let binary = labels.iter().all(|label| *label == 0.0 || *label == 1.0);
        let finite = || scores.iter().filter(|score| score.is_finite());
        let probabilities = finite().all(|score| (-ROUNDING..=1.0 + ROUNDING).contains(score));
        Self { binary, probabilities: binary && probabilities }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    pub rows: u64,
    /// Rows whose score is no finite number; they count in nothing below but `positives`.
    pub rows_without_score: u64,
    pub positives: Option<u64>,
    pub auc: Option<f64>,
    pub log_loss: Option<f64>,
    pub rmse: Option<f64>,
    pub calibration_error: Option<f64>,
    pub bias: Option<f64>,
}

impl Metrics {
    /// Of rows that are pairs of a label and a score.
    pub fn of(kind: Kind, rows: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut found = Self::default();
        let mut scored = Vec::with_capacity(rows.size_hint().0);
        let mut positives = 0;
        for (label, score) in rows {
            found.rows += 1;
            positives += u64::from(label == 1.0);
            if score.is_finite() {
                // Minus zero is zero.
                scored.push((label, score + 0.0));
            } else {
                found.rows_without_score += 1;
            }
        }
        found.positives = kind.binary.then_some(positives);
        if scored.is_empty() {
            return found;
        }
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        found.rmse = finite(mean(&scored, |label, score| (score - label).powi(2)).sqrt());
        found.bias = finite(mean(&scored, |_, score| score) - mean(&scored, |label, _| label));
        if kind.probabilities {
            let loss = |label: f64, score: f64| {
                let of_truth = if label == 1.0 { score } else { 1.0 - score };
                -of_truth.clamp(EPSILON, 1.0 - EPSILON).ln()
            };
            found.log_loss = Some(mean(&scored, loss));
            found.calibration_error = Some(calibration_error(&scored));
        }
        if kind.binary {
            found.auc = auc(scored);
        }
        found
    }
}

#[allow(clippy::cast_precision_loss)]
fn mean(rows: &[(f64, f64)], of: impl Fn(f64, f64) -> f64) -> f64 {
    rows.iter().map(|(label, score)| of(*label, *score)).sum::<f64>() / rows.len() as f64
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn calibration_error(rows: &[(f64, f64)]) -> f64 {
    let mut gaps = [0.0; BINS];
    for (label, score) in rows {
        let bin = ((score * BINS as f64).max(0.0) as usize).min(BINS - 1);
        gaps[bin] += score - label;
    }
    // A bin's share times the gap of its means is the gap of its sums over all rows.
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / rows.len() as f64
}

/// `None` where one of the classes has no row.
#[allow(clippy::cast_precision_loss)]
fn auc(mut rows: Vec<(f64, f64)>) -> Option<f64> {
    rows.sort_unstable_by(|one, other| one.1.total_cmp(&other.1));
    // Twice the pairs in the right order: a tie is half of one. At most 2 · 10⁷ · 10⁷, so it fits.
    let (mut twice_right, mut positives, mut negatives) = (0u64, 0u64, 0u64);
    for ties in rows.chunk_by(|one, other| one.1 == other.1) {
        let above = ties.iter().filter(|(label, _)| *label == 1.0).count() as u64;
        let below = ties.len() as u64 - above;
        twice_right += above * (2 * negatives + below);
        positives += above;
        negatives += below;
    }
    let pairs = positives * negatives;
    (pairs > 0).then(|| twice_right as f64 / 2.0 / pairs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(rows: &[(f64, f64)]) -> Metrics {
        let (labels, scores): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        Metrics::of(Kind::of(&labels, &scores), rows.iter().copied())
    }

    fn close(one: Option<f64>, other: Option<f64>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() <= 1e-9 * one.abs().max(1.0),
            (one, other) => one == other,
        }
    }

    /// Worked out by hand.
    #[test]
    fn known_numbers() {
        let found = of(&[(0.0, 0.1), (0.0, 0.4), (1.0, 0.35), (1.0, 0.8)]);
        assert_eq!((found.rows, found.positives, found.auc), (4, Some(2), Some(0.75)));
        assert!(close(found.log_loss, Some(0.472_287_953_8)), "{found:?}");
        assert!(close(found.rmse, Some(0.397_649_343_0)), "{found:?}");
        assert!(close(found.bias, Some(-0.087_5)), "{found:?}");
        // Bins 1, 4, 3, 8 with one row each.
        assert!(close(found.calibration_error, Some((0.1 + 0.4 + 0.65 + 0.2) / 4.0)), "{found:?}");
    }

    #[test]
    fn what_is_not_defined_is_absent() {
        let nothing = of(&[]);
        assert_eq!(nothing, Metrics { positives: Some(0), ..Metrics::default() });
        let one_class = of(&[(1.0, 0.5), (1.0, 0.5)]);
        assert_eq!((one_class.auc, one_class.log_loss.is_some(), one_class.rmse), (None, true, Some(0.5)));
        let numbers = of(&[(2.0, 1.0), (3.0, 5.0)]);
        assert_eq!((numbers.positives, numbers.auc, numbers.log_loss), (None, None, None));
        assert_eq!((numbers.rmse, numbers.bias), (Some(2.5f64.sqrt()), Some(0.5)));
        let margins = of(&[(0.0, -2.0), (1.0, 3.0)]);
        assert_eq!((margins.auc, margins.log_loss, margins.calibration_error), (Some(1.0), None, None));
        let lost = of(&[(0.0, f64::NAN), (1.0, 0.5), (0.0, f64::INFINITY)]);
        assert_eq!((lost.rows, lost.rows_without_score, lost.positives, lost.rmse), (3, 2, Some(1), Some(0.5)));
    }

    #[test]
    fn certainty_costs_much_and_not_everything() {
        let wrong = of(&[(1.0, 0.0), (0.0, 1.0)]);
        assert!(close(wrong.log_loss, Some(-(1e-15f64).ln())), "{wrong:?}");
        let right = of(&[(1.0, 1.0 + 1e-7), (0.0, -0.0)]);
        assert!(right.log_loss.unwrap() < 1e-14 && right.auc == Some(1.0), "{right:?}");
        assert_eq!(of(&[(0.0, 0.0), (1.0, -0.0)]).auc, Some(0.5), "minus zero is a tie with zero");
    }

    /// Few different values, so that there are ties.
    fn rows() -> impl Strategy<Value = Vec<(f64, f64)>> {
        let row = (any::<bool>(), 0u8..=20).prop_map(|(label, score)| (f64::from(label), f64::from(score) / 20.0));
        proptest::collection::vec(row, 0..60)
    }

    proptest! {
        #[test]
        fn metrics_are_what_brute_force_says(rows in rows()) {
            let found = of(&rows);
            let n = rows.len() as f64;
            let (mut right, mut pairs) = (0.0, 0.0);
            for positive in rows.iter().filter(|row| row.0 == 1.0) {
                for negative in rows.iter().filter(|row| row.0 == 0.0) {
                    pairs += 1.0;
                    right += if positive.1 > negative.1 { 1.0 } else if positive.1 == negative.1 { 0.5 } else { 0.0 };
                }
            }
            prop_assert!(close(found.auc, (pairs > 0.0).then(|| right / pairs)), "{:?}", found);
            let some = |value: f64| (n > 0.0).then_some(value);
            let square: f64 = rows.iter().map(|(y, p)| (y - p) * (y - p)).sum();
            prop_assert!(close(found.rmse, some((square / n).sqrt())));
            // Of what came true.
            let loss: f64 = rows.iter().map(|(y, p)| -(1.0 - (y - p).abs()).clamp(1e-15, 1.0 - 1e-15).ln()).sum();
            prop_assert!(close(found.log_loss, some(loss / n)));
            let mut error = 0.0;
            for bin in 0..10 {
                let (low, high) = (f64::from(bin) / 10.0, f64::from(bin + 1) / 10.0);
                // The edges are the same quotients as the scores: k / 20.
                let inside: Vec<_> =
                    rows.iter().filter(|(_, p)| low <= *p && (*p < high || (bin == 9 && *p == 1.0))).collect();
                if !inside.is_empty() {
                    let size = inside.len() as f64;
                    let mean_p = inside.iter().map(|row| row.1).sum::<f64>() / size;
                    let mean_y = inside.iter().map(|row| row.0).sum::<f64>() / size;
                    error += size / n * (mean_p - mean_y).abs();
                }
            }
            prop_assert!(close(found.calibration_error, some(error)), "{:?} {}", found, error);
        }

        /// The order of rows does not matter, and turning scores around turns AUC around.
        #[test]
        fn auc_is_of_the_order_of_scores(rows in rows()) {
            let found = of(&rows).auc;
            let mut turned: Vec<_> = rows.iter().map(|(y, p)| (*y, 1.0 - p)).collect();
            turned.reverse();
            prop_assert!(close(of(&turned).auc, found.map(|auc| 1.0 - auc)));
            let stretched: Vec<_> = rows.iter().map(|(y, p)| (*y, p * 7.0 - 3.0)).collect();
            prop_assert!(close(of(&stretched).auc, found));
        }
    }
}
