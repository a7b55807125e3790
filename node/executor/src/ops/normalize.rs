//! Softmax, batch and layer normalisation. Softmax and layer normalisation are our own loops: each row is passed over
//! in cache.

use smallvec::smallvec;

use super::{Build, Built, Refusal, axis, one, take};
use crate::burn::elementwise::{Arithmetic, arithmetic};
use crate::value::{Data, Dims, HostTensor, Value};

macro_rules! softmax_rows {
    ($values:expr, $row:expr, $log:expr, $T:ty) => {
        for row in $values.chunks_exact_mut($row) {
            let greatest = row.iter().copied().fold(<$T>::NEG_INFINITY, <$T>::max);
            let mut sum: $T = 0.0;
            if $log {
                for value in row.iter_mut() {
                    *value -= greatest;
                    sum += value.exp();
                }
                let log = sum.ln();
                row.iter_mut().for_each(|value| *value -= log);
            } else {
                for value in row.iter_mut() {
                    *value = (*value - greatest).exp();
                    sum += *value;
                }
                row.iter_mut().for_each(|value| *value /= sum);
            }
        }
    };
}

/// Before operator set 13 the input is seen as a matrix split at the axis, whose default was 1; since then one axis, by
/// default the last.
pub(super) fn softmax(cx: &Build<'_>, log: bool) -> Built {
    let as_matrix = cx.opset < 13;
    let at = cx.attributes.int("axis", if as_matrix { 1 } else { -1 });
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let rank = x.dims().len();
        if rank == 0 {
            return Err("its input has no dimensions".to_owned());
        }
        let at = if as_matrix && at == rank as i64 { rank } else { axis(at, rank)? };
        // The axis must be last in memory.
        let mut order: Vec<usize> = (0..rank).collect();
        let moved = !as_matrix && at + 1 < rank;
        let mut y = if moved {
            order.swap(at, rank - 1);
            x.into_dev()?.permute(&order)?.into_host()
        } else {
            x.into_host()
        };
        let row = if as_matrix { y.dims[at..].iter().product() } else { y.dims[rank - 1] };
        if row == 0 {
            return one(y);
        }
        match &mut y.data {
            Data::Fp32(values) => softmax_rows!(values, row, log, f32),
            Data::Fp64(values) => softmax_rows!(values, row, log, f64),
            other => return Err(format!("it is not for {}", other.datatype())),
        }
        if moved { one(Value::from(y).into_dev()?.permute(&order)?) } else { one(y) }
    }))
}

/// With the statistics of training: a factor and a shift for each channel, where they are constant computed once.
pub(super) fn batch(cx: &Build<'_>) -> Built {
    if cx.attributes.flag("training_mode", false) || cx.has_output(1) {
        return Err(Refusal::Unsupported("it is in training mode".to_owned()));
    }
    let epsilon = cx.attributes.float("epsilon", 1e-5);
    let known = [1, 2, 3, 4].map(|at| cx.absorb(at).cloned());
    let fixed = match known {
        [Some(scale), Some(bias), Some(mean), Some(variance)] => {
            Some(affine([scale, bias, mean, variance].map(Value::from), epsilon)?)
        }
        _ => {
            cx.absorbed.borrow_mut().iter_mut().for_each(|flag| *flag = false);
            None
        }
    };
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_dev()?;
        let (factor, shift) = match &fixed {
            Some(pair) => pair.clone(),
            None => affine([take(&mut i, 1)?, take(&mut i, 2)?, take(&mut i, 3)?, take(&mut i, 4)?], epsilon)?,
        };
        // Channels are axis 1; one value for each.
        let mut dims: Dims = smallvec![1; x.dims().len().max(2)];
        dims[1] = factor.len();
        if x.dims().get(1) != Some(&factor.len()) {
            return Err(format!("{} channels for an input of shape {:?}", factor.len(), x.dims().as_slice()));
        }
        let per_channel = |values: Vec<f64>| -> Result<_, String> {
            let values = HostTensor { dims: dims.clone(), data: Data::Fp64(values) };
            Value::from(values.cast(x.datatype())?).into_dev()
        };
        let (factor, shift) = (per_channel(factor)?, per_channel(shift)?);
        one(arithmetic(Arithmetic::Add, arithmetic(Arithmetic::Mul, x, factor)?, shift)?)
    }))
}

fn affine(parameters: [Value; 4], epsilon: f32) -> Result<(Vec<f64>, Vec<f64>), String> {
    let [scale, bias, mean, variance] =
        parameters.map(|value| match value.into_host().cast(crate::value::DataType::Fp64) {
            Ok(HostTensor { data: Data::Fp64(values), .. }) => values,
            _ => Vec::new(),
        });
    if [bias.len(), mean.len(), variance.len()] != [scale.len(); 3] {
        return Err("its scale, bias, mean and variance differ in number".to_owned());
    }
    let factor: Vec<f64> =
        scale.iter().zip(&variance).map(|(scale, variance)| scale / (variance + f64::from(epsilon)).sqrt()).collect();
    let shift = bias.iter().zip(&mean).zip(&factor).map(|((bias, mean), factor)| bias - mean * factor).collect();
    Ok((factor, shift))
}

pub(super) fn layer(cx: &Build<'_>) -> Built {
    let epsilon = f64::from(cx.attributes.float("epsilon", 1e-5));
    let at = cx.attributes.int("axis", -1);
    if cx.attributes.int("stash_type", 1) != 1 {
        return Err(Refusal::Unsupported("a stash type other than FP32".to_owned()));
    }
    macro_rules! rows {
        ($values:expr, $row:expr, $T:ty, $means:expr, $inverses:expr) => {
            for row in $values.chunks_exact_mut($row) {
                let count = row.len() as f64;
                let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
                let spread = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
                let inverse = 1.0 / (spread + epsilon).sqrt();
                row.iter_mut().for_each(|value| *value = ((f64::from(*value) - mean) * inverse) as $T);
                $means.push(mean as f32);
                $inverses.push(inverse as f32);
            }
        };
    }
    Ok(Box::new(move |mut i| {
        let mut x = take(&mut i, 0)?.into_host();
        let at = axis(at, x.dims.len())?;
        let row: usize = x.dims[at..].iter().product();
        let (mut means, mut inverses) = (Vec::new(), Vec::new());
        match &mut x.data {
            Data::Fp32(values) => rows!(values, row.max(1), f32, means, inverses),
            Data::Fp64(values) => rows!(values, row.max(1), f64, means, inverses),
            other => return Err(format!("it is not for {}", other.datatype())),
        }
        let dims: Dims = x.dims.iter().enumerate().map(|(axis, &size)| if axis < at { size } else { 1 }).collect();
        let mut y = arithmetic(Arithmetic::Mul, Value::from(x).into_dev()?, take(&mut i, 1)?.into_dev()?)?;
        if let Some(bias) = i.get_mut(2).and_then(Option::take) {
            y = arithmetic(Arithmetic::Add, y, bias.into_dev()?)?;
        }
        let statistic = |values| Value::from(HostTensor::of_f32(&dims, values));
        Ok(smallvec![y.into(), statistic(means), statistic(inverses)])
    }))
}
