//! Matrix products, and the fused step of a neural network: product, bias, activation.

use super::{Build, Built, Inputs, Kernel, Outputs, one, take};
use crate::burn::Dev;
use crate::burn::elementwise::{Arithmetic, Unary, arithmetic, unary};
use crate::burn::linear::matmul as product;
use crate::value::{Data, Dims, HostTensor, Value};

/// What may be fused into [`linear`] behind the product.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epilogue {
    pub bias: Option<Vec<f32>>,
    pub activation: Option<Unary>,
}

/// Weights of a fused step: `[inputs, outputs] f32`, row-major, any factor already in.
pub(crate) struct Weights {
    pub tensor: HostTensor,
}

impl Weights {
    /// From the constant operand of Gemm or MatMul; `None` where it is not a matrix of FP32.
    pub fn of(constant: &HostTensor, transpose: bool, factor: f32) -> Option<Self> {
        let (&[rows, columns], Data::Fp32(values)) = (constant.dims.as_slice(), &constant.data) else {
            return None;
        };
        let mut scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
        if !transpose {
            return Some(Self { tensor: HostTensor::of_f32(&[rows, columns], scaled) });
        }
        for row in 0..rows {
            for column in 0..columns {
                scaled[column * rows + row] = values[row * columns + column] * factor;
            }
        }
        Some(Self { tensor: HostTensor::of_f32(&[columns, rows], scaled) })
    }

    pub fn outputs(&self) -> usize {
        self.tensor.dims.get(1).copied().unwrap_or_default()
    }
}

/// `activation(x · weights + bias)` over the last dimension of `x`. The product is burn's; bias and activation go over
/// its result in place.
pub(crate) fn linear(
    weights: Weights,
    epilogue: Epilogue,
    matrix_only: bool,
    elements: usize,
) -> Result<Kernel, String> {
    let outputs = weights.outputs();
    let weights = Dev::from_host(weights.tensor)?;
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let mut dims = x.dims().clone();
        if dims.is_empty() || (matrix_only && dims.len() != 2) {
            return Err(format!("its input has shape {:?}", dims.as_slice()));
        }
        let inputs = dims[dims.len() - 1];
        let rows = dims[..dims.len() - 1].iter().product();
        let x = x.into_dev()?.reshape(Dims::from_slice(&[rows, inputs]))?;
        let mut y = product(x, weights.clone(), elements)?.into_host();
        if let Data::Fp32(values) = &mut y.data {
            finish(values, outputs, &epilogue);
        }
        let last = dims.len() - 1;
        dims[last] = outputs;
        y.dims = dims;
        match epilogue.activation {
            Some(activation) if !in_place(activation) => one(unary(activation, Value::from(y).into_dev()?)?),
            _ => one(y),
        }
    }))
}

fn in_place(activation: Unary) -> bool {
    matches!(activation, Unary::Relu | Unary::LeakyRelu(_))
}

/// Each activation has its own loop, so that the compiler can vectorise it.
fn finish(values: &mut [f32], outputs: usize, epilogue: &Epilogue) {
    fn rows(values: &mut [f32], bias: &[f32], act: impl Fn(f32) -> f32) {
        for row in values.chunks_exact_mut(bias.len().max(1)) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value = act(*value + bias);
            }
        }
    }
    let zeros;
    let bias = match &epilogue.bias {
        Some(bias) => bias.as_slice(),
        None if epilogue.activation.is_none() => return,
        None => {
            zeros = vec![0.0; outputs];
            zeros.as_slice()
        }
    };
    match epilogue.activation {
        // NaN stays NaN: it is not less than zero.
        Some(Unary::Relu) => rows(values, bias, |value| if value < 0.0 { 0.0 } else { value }),
        Some(Unary::LeakyRelu(slope)) => rows(values, bias, |value| if value < 0.0 { value * slope } else { value }),
        _ => rows(values, bias, |value| value),
    }
}

/// The bias as one number for each output, where a constant is that: `[outputs]`, `[1, outputs]` or one number.
pub(crate) fn bias_of(constant: &HostTensor, outputs: usize, factor: f32) -> Option<Vec<f32>> {
    let Data::Fp32(values) = &constant.data else {
        return None;
    };
    let leading_ones = constant.dims.iter().rev().skip(1).all(|&size| size == 1);
    match values.as_slice() {
        [value] if constant.dims.len() <= 1 => Some(vec![value * factor; outputs]),
        values if leading_ones && values.len() == outputs => Some(values.iter().map(|value| value * factor).collect()),
        _ => None,
    }
}

pub(super) fn matmul(cx: &Build<'_>) -> Built {
    let elements = cx.limits.elements_max;
    Ok(Box::new(move |mut i| one(product(take(&mut i, 0)?.into_dev()?, take(&mut i, 1)?.into_dev()?, elements)?)))
}

/// `alpha · A' · B' + beta · C`, for operands that are not constant: the usual form is fused instead.
pub(super) fn gemm(cx: &Build<'_>) -> Built {
    let a = cx.attributes;
    let (alpha, beta) = (a.float("alpha", 1.0), a.float("beta", 1.0));
    let (transpose_a, transpose_b) = (a.flag("transA", false), a.flag("transB", false));
    let elements = cx.limits.elements_max;
    let operand = |i: &mut Inputs, at: usize, transpose: bool| -> Result<Value, String> {
        let x = take(i, at)?;
        if x.dims().len() != 2 {
            return Err(format!("input {at} has shape {:?}: it must be a matrix", x.dims().as_slice()));
        }
        if transpose { Ok(x.into_dev()?.permute(&[1, 0])?.into()) } else { Ok(x) }
    };
    fn scaled(x: Dev, factor: f32) -> Result<Dev, String> {
        if factor == 1.0 {
            return Ok(x);
        }
        let factor = HostTensor::of_f32(&[], vec![factor]).cast(x.datatype())?;
        arithmetic(Arithmetic::Mul, x, Dev::from_host(factor)?)
    }
    Ok(Box::new(move |mut i| -> Result<Outputs, String> {
        let (a, b) = (operand(&mut i, 0, transpose_a)?, operand(&mut i, 1, transpose_b)?);
        let mut y = scaled(product(a.into_dev()?, b.into_dev()?, elements)?, alpha)?;
        if let Some(c) = i.get_mut(2).and_then(Option::take) {
            y = arithmetic(Arithmetic::Add, y, scaled(c.into_dev()?, beta)?)?;
        }
        one(y)
    }))
}
