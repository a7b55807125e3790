//! The same elements elsewhere.

use burn_tensor::{Bool, Float, Int, Shape, Slice, Tensor, TensorData};

use super::{Dev, broadcast, burn_dims, device, dtype, padded, with_kind, with_rank};
use crate::value::{DataType, Dims};

impl Dev {
    pub fn reshape(self, dims: Dims) -> Result<Self, String> {
        if dims.iter().product::<usize>() != self.dims.iter().product::<usize>() {
            return Err(format!("a tensor of shape {:?} has no shape {:?}", self.dims.as_slice(), dims.as_slice()));
        }
        no_zero(&dims)?;
        let datatype = self.datatype;
        // The rank of the source is not looked at when the target is a `Shape`, so one instance for each target rank
        // will do.
        with_kind!(datatype, K => with_rank!(dims.len(), D => {
            let shape = Shape::from(burn_dims(&dims).to_vec());
            Ok(Dev::wrap(self.lift::<D, K>().reshape::<D, _>(shape), datatype, dims))
        }))
    }

    /// Repeats along dimensions of one element until the shape is `dims`. A view: nothing is copied.
    pub fn expand(self, dims: &[usize]) -> Result<Self, String> {
        if self.dims.as_slice() == dims {
            return Ok(self);
        }
        if broadcast(&self.dims, dims)?.as_slice() != dims {
            return Err(format!("a tensor of shape {:?} does not expand to {dims:?}", self.dims.as_slice()));
        }
        let source = padded(&self.dims, dims.len());
        let this = self.reshape(source)?;
        let datatype = this.datatype;
        with_kind!(datatype, K => with_rank!(dims.len(), D => {
            let shape = Shape::from(burn_dims(dims).to_vec());
            Ok(Dev::wrap(this.lift::<D, K>().expand::<D, _>(shape), datatype, dims.into()))
        }))
    }

    /// Axis `i` of the result is axis `axes[i]` of this.
    pub fn permute(self, axes: &[usize]) -> Result<Self, String> {
        let mut seen = axes.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..self.rank()) {
            return Err(format!("{axes:?} does not order {} dimensions", self.rank()));
        }
        if self.rank() < 2 {
            return Ok(self);
        }
        let dims: Dims = axes.iter().map(|&axis| self.dims[axis]).collect();
        let datatype = self.datatype;
        with_kind!(datatype, K => with_rank!(dims.len(), D => {
            let axes: [usize; D] = std::array::from_fn(|at| axes[at]);
            Ok(Dev::wrap(self.lift::<D, K>().permute(axes), datatype, dims))
        }))
    }

    /// From `starts[axis]` to before `ends[axis]` in steps of `steps[axis]`; all within bounds.
    pub fn slice(self, starts: &[usize], ends: &[usize], steps: &[usize]) -> Result<Self, String> {
        let mut dims = Dims::new();
        for (axis, &size) in self.dims.iter().enumerate() {
            let (start, end, step) = (starts[axis], ends[axis], steps[axis]);
            if start > end || end > size || step == 0 {
                return Err(format!("no elements {start}..{end} by {step} in a dimension of {size}"));
            }
            dims.push((end - start).div_ceil(step));
        }
        if dims == self.dims {
            return Ok(self);
        }
        no_zero(&dims)?;
        let slices: Vec<Slice> = (0..self.rank())
            .map(|axis| Slice::new(starts[axis] as isize, Some(ends[axis] as isize), steps[axis] as isize))
            .collect();
        let datatype = self.datatype;
        with_kind!(datatype, K => with_rank!(dims.len(), D => {
            Ok(Dev::wrap(self.lift::<D, K>().slice(&slices), datatype, dims))
        }))
    }

    /// The slices `indices` of one axis, each within bounds.
    pub fn select(self, axis: usize, indices: Vec<i64>) -> Result<Self, String> {
        let size = *self.dims.get(axis).ok_or_else(|| format!("there is no axis {axis}"))?;
        if let Some(bad) = indices.iter().find(|&&index| usize::try_from(index).map_or(true, |index| index >= size)) {
            return Err(format!("index {bad} is outside a dimension of {size}"));
        }
        let mut dims = self.dims.clone();
        dims[axis] = indices.len();
        no_zero(&dims)?;
        let data = TensorData::new(indices, [dims[axis]]);
        let indices = Tensor::<1, Int>::from_data(data, (&device(), dtype(DataType::Int64)));
        let datatype = self.datatype;
        with_kind!(datatype, K => with_rank!(dims.len(), D => {
            Ok(Dev::wrap(self.lift::<D, K>().select(axis, indices), datatype, dims))
        }))
    }
}

/// To burn a size of 0 in a shape means "as before", so tensors without elements stay in host memory.
fn no_zero(dims: &[usize]) -> Result<(), String> {
    if dims.contains(&0) { Err(format!("a tensor of shape {dims:?} has no elements")) } else { Ok(()) }
}

pub(crate) fn concat(tensors: Vec<Dev>, axis: usize) -> Result<Dev, String> {
    let first = tensors.first().ok_or("there is nothing to concatenate")?;
    let (mut dims, datatype) = (first.dims.clone(), first.datatype);
    if axis >= dims.len() {
        return Err(format!("there is no axis {axis} in shape {:?}", dims.as_slice()));
    }
    for tensor in tensors.iter().skip(1) {
        let fits = tensor.rank() == dims.len()
            && tensor.datatype == datatype
            && (0..dims.len()).all(|at| at == axis || tensor.dims[at] == dims[at]);
        if !fits {
            let (a, b) = (dims.as_slice(), tensor.dims.as_slice());
            return Err(format!("{datatype} {a:?} and {} {b:?} do not concatenate along axis {axis}", tensor.datatype));
        }
        dims[axis] += tensor.dims[axis];
    }
    with_kind!(datatype, K => with_rank!(dims.len(), D => {
        let tensors = tensors.into_iter().map(|tensor| tensor.lift::<D, K>()).collect();
        Ok(Dev::wrap(Tensor::cat(tensors, axis), datatype, dims))
    }))
}
