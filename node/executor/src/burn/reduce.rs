//! Along axes. Reduced dimensions stay, with one element.

use burn_tensor::kind::Ordered;
use burn_tensor::{Float, Int, Tensor};

use super::{Dev, with_rank};
use crate::value::DataType;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reduction {
    Sum,
    Mean,
    Prod,
    Min,
    Max,
}

pub(crate) fn reduce(op: Reduction, x: Dev, axes: &[usize]) -> Result<Dev, String> {
    let mut dims = x.dims.clone();
    for &axis in axes {
        let size = dims.get_mut(axis).ok_or_else(|| format!("there is no axis {axis}"))?;
        if *size == 0 {
            return Err(format!("axis {axis} is empty"));
        }
        *size = 1;
    }
    let datatype = x.datatype;
    fn run<const D: usize, K: Ordered>(op: Reduction, mut x: Tensor<D, K>, axes: &[usize]) -> Tensor<D, K> {
        for &axis in axes {
            x = match op {
                Reduction::Sum => x.sum_dim(axis),
                Reduction::Mean => x.mean_dim(axis),
                Reduction::Prod => x.prod_dim(axis),
                Reduction::Min => x.min_dim(axis),
                Reduction::Max => x.max_dim(axis),
            };
        }
        x
    }
    with_rank!(x.rank(), D => match datatype {
        DataType::Fp32 | DataType::Fp64 => Ok(Dev::wrap(run(op, x.lift::<D, Float>(), axes), datatype, dims)),
        DataType::Int32 | DataType::Int64 => Ok(Dev::wrap(run(op, x.lift::<D, Int>(), axes), datatype, dims)),
        other => Err(format!("it is not for {other}")),
    })
}
