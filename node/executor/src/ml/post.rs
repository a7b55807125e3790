//! Post transforms of ai.onnx.ml: from a row's scores to what the model answers. Formulas as onnxruntime computes them,
//! in f32.

use crate::ops::Refusal;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Post {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl Post {
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        Ok(match name {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            other => return Err(format!("attribute `post_transform` is `{other}`").into()),
        })
    }

    /// Over two scores or more.
    pub fn apply(self, scores: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Softmax => softmax(scores, false),
            Self::SoftmaxZero => softmax(scores, true),
            Self::Logistic => scores.iter_mut().for_each(|score| *score = logistic(*score)),
            Self::Probit => scores.iter_mut().for_each(|score| *score = probit(*score)),
        }
    }
}

/// `1 / (1 + exp(-x))`, computed so that no exponential is large.
pub(crate) fn logistic(x: f32) -> f32 {
    let y = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - y } else { y }
}

/// `sqrt(2) · erfinv(2p - 1)`, with Winitzki's approximation of the inverse error function.
pub(crate) fn probit(p: f32) -> f32 {
    let x = 2.0 * p - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let v = 2.0 / (std::f32::consts::PI * 0.147) + 0.5 * log;
    let v2 = log / 0.147;
    std::f32::consts::SQRT_2 * sign * (-v + (v * v - v2).sqrt()).sqrt()
}

/// With `zeros_stay`, a score of (nearly) 0 is an absent class: it gets no probability.
fn softmax(scores: &mut [f32], zeros_stay: bool) {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        if zeros_stay && score.abs() <= 1e-7 {
            *score *= (-greatest).exp();
        } else {
            *score = (*score - greatest).exp();
            sum += *score;
        }
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}
