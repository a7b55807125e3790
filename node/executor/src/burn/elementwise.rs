//! Element by element, with broadcasting.

use burn_tensor::kind::{Numeric, Ordered};
use burn_tensor::{Bool, Float, Int, Tensor, activation};

use super::{Dev, broadcast, padded, with_kind, with_rank};
use crate::value::{DataType, Dims};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Sign,
    Sqrt,
    Exp,
    Log,
    Reciprocal,
    Floor,
    Ceil,
    Relu,
    LeakyRelu(f32),
    Elu(f32),
    Selu { alpha: f32, gamma: f32 },
    Sigmoid,
    HardSigmoid { alpha: f32, beta: f32 },
    Tanh,
    Softplus,
    Erf,
    Gelu,
    GeluTanh,
}

/// A function of each element.
pub(crate) fn unary(op: Unary, x: Dev) -> Result<Dev, String> {
    let (datatype, dims) = (x.datatype, x.dims.clone());
    fn number<const D: usize, K: Numeric>(op: Unary, x: Tensor<D, K>) -> Result<Tensor<D, K>, String> {
        match op {
            Unary::Neg => Ok(x.neg()),
            Unary::Abs => Ok(x.abs()),
            Unary::Sign => Ok(x.sign()),
            _ => Err("it is for floating point numbers only".to_owned()),
        }
    }
    with_rank!(x.rank(), D => match datatype {
        DataType::Int32 | DataType::Int64 => {
            Ok(Dev::wrap(number(op, x.lift::<D, Int>())?, datatype, dims))
        }
        DataType::Fp32 | DataType::Fp64 => {
            let x = x.lift::<D, Float>();
            let y = match op {
                Unary::Sqrt => x.sqrt(),
                Unary::Exp => x.exp(),
                Unary::Log => x.log(),
                Unary::Reciprocal => x.recip(),
                Unary::Floor => x.floor(),
                Unary::Ceil => x.ceil(),
                Unary::Relu => activation::relu(x),
                Unary::LeakyRelu(slope) => activation::leaky_relu(x, slope.into()),
                Unary::Elu(alpha) => activation::elu(x, alpha.into()),
                Unary::Selu { alpha, gamma } => activation::elu(x, alpha.into()).mul_scalar(gamma),
                Unary::Sigmoid => activation::sigmoid(x),
                Unary::HardSigmoid { alpha, beta } => x.mul_scalar(alpha).add_scalar(beta).clamp(0.0, 1.0),
                Unary::Tanh => x.tanh(),
                Unary::Softplus => activation::softplus(x, 1.0),
                Unary::Erf => x.erf(),
                Unary::Gelu => activation::gelu(x),
                Unary::GeluTanh => activation::gelu_approximate(x),
                other => number(other, x)?,
            };
            Ok(Dev::wrap(y, datatype, dims))
        }
        other => Err(format!("it is not for {other}")),
    })
}

pub(crate) fn is_nan(x: Dev) -> Result<Dev, String> {
    let dims = x.dims.clone();
    if !x.datatype.is_float() {
        return Err(format!("it is not for {}", x.datatype));
    }
    with_rank!(x.rank(), D => Ok(Dev::wrap(x.lift::<D, Float>().is_nan(), DataType::Bool, dims)))
}

pub(crate) fn not(x: Dev) -> Result<Dev, String> {
    let dims = x.dims.clone();
    if x.datatype != DataType::Bool {
        return Err(format!("it is not for {}", x.datatype));
    }
    with_rank!(x.rank(), D => Ok(Dev::wrap(x.lift::<D, Bool>().bool_not(), DataType::Bool, dims)))
}

/// Brings two tensors of one type to one rank; gives the shape they broadcast to.
fn align(a: Dev, b: Dev) -> Result<(Dev, Dev, Dims), String> {
    if a.datatype != b.datatype {
        return Err(format!("its inputs are {} and {}", a.datatype, b.datatype));
    }
    let dims = broadcast(&a.dims, &b.dims)?;
    let (a_dims, b_dims) = (padded(&a.dims, dims.len()), padded(&b.dims, dims.len()));
    Ok((a.reshape(a_dims)?, b.reshape(b_dims)?, dims))
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
}

pub(crate) fn arithmetic(op: Arithmetic, a: Dev, b: Dev) -> Result<Dev, String> {
    let (a, b, dims) = align(a, b)?;
    let datatype = a.datatype;
    fn number<const D: usize, K: Ordered>(op: Arithmetic, a: Tensor<D, K>, b: Tensor<D, K>) -> Tensor<D, K> {
        match op {
            Arithmetic::Add => a.add(b),
            Arithmetic::Sub => a.sub(b),
            Arithmetic::Mul => a.mul(b),
            Arithmetic::Div => a.div(b),
            Arithmetic::Pow => a.powi(b),
            Arithmetic::Min => {
                let takes_b = b.clone().lower(a.clone());
                a.mask_where(takes_b, b)
            }
            Arithmetic::Max => {
                let takes_b = b.clone().greater(a.clone());
                a.mask_where(takes_b, b)
            }
        }
    }
    // `mask_where` does not broadcast.
    let (a, b) = match op {
        Arithmetic::Min | Arithmetic::Max => (a.expand(&dims)?, b.expand(&dims)?),
        _ => (a, b),
    };
    with_rank!(a.rank(), D => match (datatype, op) {
        (DataType::Fp32 | DataType::Fp64, Arithmetic::Pow) => {
            Ok(Dev::wrap(a.lift::<D, Float>().powf(b.lift()), datatype, dims))
        }
        (DataType::Fp32 | DataType::Fp64, _) => {
            Ok(Dev::wrap(number(op, a.lift::<D, Float>(), b.lift()), datatype, dims))
        }
        (DataType::Int32 | DataType::Int64, _) => {
            Ok(Dev::wrap(number(op, a.lift::<D, Int>(), b.lift()), datatype, dims))
        }
        (other, _) => Err(format!("it is not for {other}")),
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

pub(crate) fn compare(op: Comparison, a: Dev, b: Dev) -> Result<Dev, String> {
    let (a, b, dims) = align(a, b)?;
    let datatype = a.datatype;
    fn number<const D: usize, K: Ordered>(op: Comparison, a: Tensor<D, K>, b: Tensor<D, K>) -> Tensor<D, Bool> {
        match op {
            Comparison::Equal => a.equal(b),
            Comparison::Less => a.lower(b),
            Comparison::LessOrEqual => a.lower_equal(b),
            Comparison::Greater => a.greater(b),
            Comparison::GreaterOrEqual => a.greater_equal(b),
        }
    }
    with_rank!(a.rank(), D => match datatype {
        DataType::Fp32 | DataType::Fp64 => {
            Ok(Dev::wrap(number(op, a.lift::<D, Float>(), b.lift()), DataType::Bool, dims))
        }
        DataType::Int32 | DataType::Int64 => {
            Ok(Dev::wrap(number(op, a.lift::<D, Int>(), b.lift()), DataType::Bool, dims))
        }
        DataType::Bool if op == Comparison::Equal => {
            Ok(Dev::wrap(a.lift::<D, Bool>().equal(b.lift()), DataType::Bool, dims))
        }
        other => Err(format!("it is not for {other}")),
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

pub(crate) fn logic(op: Logic, a: Dev, b: Dev) -> Result<Dev, String> {
    let (a, b, dims) = align(a, b)?;
    if a.datatype != DataType::Bool {
        return Err(format!("it is not for {}", a.datatype));
    }
    let (a, b) = (a.expand(&dims)?, b.expand(&dims)?);
    with_rank!(a.rank(), D => {
        let (a, b) = (a.lift::<D, Bool>(), b.lift::<D, Bool>());
        let c = match op {
            Logic::And => a.bool_and(b),
            Logic::Or => a.bool_or(b),
            Logic::Xor => a.not_equal(b),
        };
        Ok(Dev::wrap(c, DataType::Bool, dims))
    })
}

/// `yes` where `condition` holds, else `no`.
pub(crate) fn choose(condition: Dev, yes: Dev, no: Dev) -> Result<Dev, String> {
    if condition.datatype != DataType::Bool {
        return Err(format!("its condition is {}", condition.datatype));
    }
    let (yes, no, dims) = align(yes, no)?;
    let dims = broadcast(&condition.dims, &dims)?;
    let (condition, yes, no) = (condition.expand(&dims)?, yes.expand(&dims)?, no.expand(&dims)?);
    let datatype = yes.datatype;
    with_kind!(datatype, K => with_rank!(dims.len(), D => {
        Ok(Dev::wrap(no.lift::<D, K>().mask_where(condition.lift(), yes.lift()), datatype, dims))
    }))
}
