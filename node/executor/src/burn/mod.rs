//! The one module tree that names burn: tensors on a burn device, of any rank.
//!
//! burn's `Tensor<D, K>` fixes rank and kind at compile time; [`Dev`] carries the dispatch tensor below it and its ONNX
//! dimensions, and
//! [`with_rank`] and [`with_kind`] lift it for one call. burn reports bad shapes by panicking, so every function here
//! checks them first and
//! gives a sentence instead. The device is always named: burn's default device reads the environment.
//!
//! - [`elementwise`]: arithmetic, comparison, logic, functions of one value
//! - [`movement`]: reshape, transpose, slice, concatenate, expand, select
//! - [`reduce`]: sums and the like along axes
//! - [`linear`]: matrix products

pub(crate) mod elementwise;
pub(crate) mod linear;
pub(crate) mod movement;
pub(crate) mod reduce;

use burn_tensor::kind::Basic;
use burn_tensor::{Bool, DType, Device, DispatchTensor, Element, Float, Int, Tensor, TensorData};
use smallvec::smallvec;

use crate::value::{Data, DataType, Dims, HostTensor};

/// Lifts a rank known at run time to a constant `$D`. Ranks go to [`crate::limits::RANK_MAX`].
macro_rules! with_rank {
    ($rank:expr, $D:ident => $body:expr) => {
        match $rank {
            0 | 1 => {
                const $D: usize = 1;
                $body
            }
            2 => {
                const $D: usize = 2;
                $body
            }
            3 => {
                const $D: usize = 3;
                $body
            }
            4 => {
                const $D: usize = 4;
                $body
            }
            5 => {
                const $D: usize = 5;
                $body
            }
            6 => {
                const $D: usize = 6;
                $body
            }
            rank => Err(format!("a tensor of {rank} dimensions is over the limit of 6")),
        }
    };
}

/// Lifts an element type to burn's kind `$K`.
macro_rules! with_kind {
    ($datatype:expr, $K:ident => $body:expr) => {
        match $datatype {
            DataType::Fp32 | DataType::Fp64 => {
                type $K = Float;
                $body
            }
            DataType::Int64 | DataType::Int32 => {
                type $K = Int;
                $body
            }
            DataType::Bool => {
                type $K = Bool;
                $body
            }
            DataType::Bytes => Err("strings have no place in a tensor operation".to_owned()),
        }
    };
}
use {with_kind, with_rank};

/// A tensor on the device. Cloning shares the memory.
#[derive(Debug, Clone)]
pub(crate) struct Dev {
    raw: DispatchTensor,
    datatype: DataType,
    /// ONNX's dimensions. burn has no rank 0: a scalar is `[1]` there.
    dims: Dims,
}

fn device() -> Device {
    Device::flex()
}

fn dtype(datatype: DataType) -> DType {
    match datatype {
        DataType::Fp32 | DataType::Bytes => DType::F32,
        DataType::Fp64 => DType::F64,
        DataType::Int64 => DType::I64,
        DataType::Int32 => DType::I32,
        DataType::Bool => DType::Bool(burn_tensor::BoolStore::Native),
    }
}

/// The dimensions as burn wants them.
fn burn_dims(dims: &[usize]) -> Dims {
    if dims.is_empty() { smallvec![1] } else { dims.into() }
}

impl Dev {
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Takes over the vector: no copy.
    pub fn from_host(tensor: HostTensor) -> Result<Self, String> {
        fn flat<K: Basic, E: Element>(datatype: DataType, values: Vec<E>) -> Dev {
            let dims = smallvec![values.len()];
            let data = TensorData::new(values, burn_dims(&dims).to_vec());
            Dev::wrap(Tensor::<1, K>::from_data(data, (&device(), dtype(datatype))), datatype, dims)
        }
        if tensor.data.len() == 0 {
            return Err(format!("a tensor of shape {:?} has no elements", tensor.dims.as_slice()));
        }
        let datatype = tensor.data.datatype();
        let values = match tensor.data {
            Data::Fp32(values) => flat::<Float, f32>(datatype, values),
            Data::Fp64(values) => flat::<Float, f64>(datatype, values),
            Data::Int64(values) => flat::<Int, i64>(datatype, values),
            Data::Int32(values) => flat::<Int, i32>(datatype, values),
            Data::Bool(values) => flat::<Bool, bool>(datatype, values),
            Data::Bytes(_) => return Err("strings have no place in a tensor operation".to_owned()),
        };
        values.reshape(tensor.dims)
    }

    /// Copies only where the memory is shared or not contiguous.
    pub fn into_host(self) -> HostTensor {
        fn values<K: Basic, E: Element>(raw: DispatchTensor) -> Vec<E> {
            // Reading does not depend on the rank.
            let data = Tensor::<1, K>::from_dispatch(raw).into_data();
            // The type is the one the tensor was made with: a mismatch is a bug of ours, and caught with the other
            // panics.
            data.try_into_vec::<E>().unwrap_or_else(|error| panic!("reading a tensor: {error}"))
        }
        let data = match self.datatype {
            DataType::Fp32 | DataType::Bytes => Data::Fp32(values::<Float, f32>(self.raw)),
            DataType::Fp64 => Data::Fp64(values::<Float, f64>(self.raw)),
            DataType::Int64 => Data::Int64(values::<Int, i64>(self.raw)),
            DataType::Int32 => Data::Int32(values::<Int, i32>(self.raw)),
            DataType::Bool => Data::Bool(values::<Bool, bool>(self.raw)),
        };
        HostTensor { dims: self.dims, data }
    }

    fn lift<const D: usize, K: Basic>(self) -> Tensor<D, K> {
        Tensor::from_dispatch(self.raw)
    }

    fn wrap<const D: usize, K: Basic>(tensor: Tensor<D, K>, datatype: DataType, dims: Dims) -> Self {
        Self { raw: tensor.into_dispatch(), datatype, dims }
    }
}

/// The shape that two shapes broadcast to, by numpy's rules.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Result<Dims, String> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not go together")),
        })
        .collect()
}

/// `dims` with ones put before them until there are `rank`.
fn padded(dims: &[usize], rank: usize) -> Dims {
    let mut out: Dims = smallvec![1; rank.saturating_sub(dims.len())];
    out.extend_from_slice(dims);
    out
}
