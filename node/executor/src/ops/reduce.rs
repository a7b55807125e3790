//! Reductions along axes.

use super::{Build, Built, Refusal, axis, one, take};
use crate::burn::Dev;
use crate::burn::elementwise::{Arithmetic, Unary, arithmetic, unary};
use crate::burn::reduce::{Reduction, reduce as along};
use crate::value::{Data, DataType, Dims, HostTensor};

type Step = fn(Dev, &[usize]) -> Result<Dev, String>;

fn square(x: Dev) -> Result<Dev, String> {
    arithmetic(Arithmetic::Mul, x.clone(), x)
}

/// The greatest is taken out first, so that no exponential is infinite.
fn log_sum_exp(x: Dev, axes: &[usize]) -> Result<Dev, String> {
    let greatest = along(Reduction::Max, x.clone(), axes)?;
    let exps = unary(Unary::Exp, arithmetic(Arithmetic::Sub, x, greatest.clone())?)?;
    arithmetic(Arithmetic::Add, unary(Unary::Log, along(Reduction::Sum, exps, axes)?)?, greatest)
}

pub(super) fn reduce(cx: &Build<'_>, op: &str) -> Built {
    let run: Step = match op {
        "ReduceSum" => |x, axes| along(Reduction::Sum, x, axes),
        "ReduceMean" => |x, axes| along(Reduction::Mean, x, axes),
        "ReduceProd" => |x, axes| along(Reduction::Prod, x, axes),
        "ReduceMin" => |x, axes| along(Reduction::Min, x, axes),
        "ReduceMax" => |x, axes| along(Reduction::Max, x, axes),
        "ReduceL1" => |x, axes| along(Reduction::Sum, unary(Unary::Abs, x)?, axes),
        "ReduceL2" => |x, axes| unary(Unary::Sqrt, along(Reduction::Sum, square(x)?, axes)?),
        "ReduceSumSquare" => |x, axes| along(Reduction::Sum, square(x)?, axes),
        "ReduceLogSum" => |x, axes| unary(Unary::Log, along(Reduction::Sum, x, axes)?),
        "ReduceLogSumExp" => log_sum_exp,
        _ => return Err(Refusal::Unsupported("there is no such operator here".to_owned())),
    };
    let of_booleans = matches!(op, "ReduceMin" | "ReduceMax");
    let keep = cx.attributes.flag("keepdims", true);
    let nothing_if_empty = cx.attributes.flag("noop_with_empty_axes", false);
    let axes = cx.int_list("axes", 1)?;
    Ok(Box::new(move |mut i| {
        let axes = axes.read(&mut i)?.unwrap_or_default();
        let x = take(&mut i, 0)?;
        let rank = x.dims().len();
        let mut axes: Vec<usize> = axes.into_iter().map(|at| axis(at, rank)).collect::<Result<_, _>>()?;
        axes.sort_unstable();
        axes.dedup();
        if axes.is_empty() && !nothing_if_empty {
            axes = (0..rank).collect();
        }
        // The greatest of booleans is "any", the least "all".
        let booleans = of_booleans && x.datatype() == DataType::Bool;
        let x = if booleans { x.into_host().cast(DataType::Int32)?.into() } else { x };
        let mut y = run(x.into_dev()?, &axes)?;
        if booleans {
            y = Dev::from_host(y.into_host().cast(DataType::Bool)?)?;
        }
        if keep {
            return one(y);
        }
        let dims = y.dims().iter().enumerate().filter(|(at, _)| !axes.contains(at)).map(|(_, &size)| size).collect();
        one(y.reshape(dims)?)
    }))
}

/// The place of the greatest (or least) element: the first one, or the last where asked. NaN never wins.
pub(super) fn arg(cx: &Build<'_>, greatest: bool) -> Built {
    let at = cx.attributes.int("axis", 0);
    let keep = cx.attributes.flag("keepdims", true);
    let last = cx.attributes.flag("select_last_index", false);
    fn places<T: PartialOrd + Copy>(values: &[T], size: usize, inner: usize, greatest: bool, last: bool) -> Vec<i64> {
        let better = |a: T, b: T| if greatest { a > b } else { a < b };
        let mut places = Vec::with_capacity(values.len() / size.max(1));
        for block in values.chunks_exact((size * inner).max(1)) {
            for column in 0..inner {
                let mut best = 0;
                for row in 1..size {
                    let (a, b) = (block[row * inner + column], block[best * inner + column]);
                    if better(a, b) || (last && a == b) {
                        best = row;
                    }
                }
                places.push(best as i64);
            }
        }
        places
    }
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_host();
        let at = axis(at, x.dims.len())?;
        let (size, inner) = (x.dims[at], x.dims[at + 1..].iter().product());
        if size == 0 {
            return Err(format!("axis {at} is empty"));
        }
        let places = match &x.data {
            Data::Fp32(values) => places(values, size, inner, greatest, last),
            Data::Fp64(values) => places(values, size, inner, greatest, last),
            Data::Int64(values) => places(values, size, inner, greatest, last),
            Data::Int32(values) => places(values, size, inner, greatest, last),
            other => return Err(format!("it is not for {}", other.datatype())),
        };
        let mut dims: Dims = x.dims;
        if keep {
            dims[at] = 1;
        } else {
            dims.remove(at);
        }
        one(HostTensor { dims, data: Data::Int64(places) })
    }))
}
