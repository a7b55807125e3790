//! Tensors in host memory: what enters a model, what leaves it, and what our own kernels read.
//!
//! Row-major, always contiguous. A tensor without dimensions holds one element, as in ONNX. The burn side is
//! [`crate::burn`].

use std::sync::Arc;

use smallvec::SmallVec;

use crate::burn::Dev;

/// Sizes of a tensor's dimensions, outermost first. Empty for a scalar.
pub(crate) type Dims = SmallVec<[usize; 6]>;

/// An element type, by its name in the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    Fp32,
    Fp64,
    Int64,
    Int32,
    Bool,
    /// Strings, in UTF-8.
    Bytes,
}

impl DataType {
    /// `FP32`, `FP64`, `INT64`, `INT32`, `BOOL`, `BYTES`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Int64 => "INT64",
            Self::Int32 => "INT32",
            Self::Bool => "BOOL",
            Self::Bytes => "BYTES",
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::Fp32 | Self::Fp64)
    }

    pub(crate) fn is_int(self) -> bool {
        matches!(self, Self::Int64 | Self::Int32)
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Bool(Vec<bool>),
    Bytes(Vec<Arc<str>>),
}

/// Runs one expression for whichever element type `$data` holds.
macro_rules! each_type {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            $crate::value::Data::Fp32($values) => $body,
            $crate::value::Data::Fp64($values) => $body,
            $crate::value::Data::Int64($values) => $body,
            $crate::value::Data::Int32($values) => $body,
            $crate::value::Data::Bool($values) => $body,
            $crate::value::Data::Bytes($values) => $body,
        }
    };
}

/// Like [`each_type`], and wraps the result in the same variant.
macro_rules! map_type {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            $crate::value::Data::Fp32($values) => $crate::value::Data::Fp32($body),
            $crate::value::Data::Fp64($values) => $crate::value::Data::Fp64($body),
            $crate::value::Data::Int64($values) => $crate::value::Data::Int64($body),
            $crate::value::Data::Int32($values) => $crate::value::Data::Int32($body),
            $crate::value::Data::Bool($values) => $crate::value::Data::Bool($body),
            $crate::value::Data::Bytes($values) => $crate::value::Data::Bytes($body),
        }
    };
}
pub(crate) use {each_type, map_type};

impl Data {
    pub fn len(&self) -> usize {
        each_type!(self, values => values.len())
    }

    pub fn datatype(&self) -> DataType {
        match self {
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Int64(_) => DataType::Int64,
            Self::Int32(_) => DataType::Int32,
            Self::Bool(_) => DataType::Bool,
            Self::Bytes(_) => DataType::Bytes,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostTensor {
    pub dims: Dims,
    pub data: Data,
}

impl HostTensor {
    pub fn new(dims: impl Into<Dims>, data: Data) -> Self {
        let dims = dims.into();
        debug_assert_eq!(dims.iter().product::<usize>(), data.len());
        Self { dims, data }
    }

    pub fn of_f32(dims: &[usize], values: Vec<f32>) -> Self {
        Self::new(dims, Data::Fp32(values))
    }

    pub fn of_i64(dims: &[usize], values: Vec<i64>) -> Self {
        Self::new(dims, Data::Int64(values))
    }

    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Fp32(values) => values.len() * 4,
            Data::Fp64(values) => values.len() * 8,
            Data::Int64(values) => values.len() * 8,
            Data::Int32(values) => values.len() * 4,
            Data::Bool(values) => values.len(),
            Data::Bytes(values) => values.iter().map(|value| value.len() + 16).sum(),
        }
    }

    /// The elements as whole numbers: axes, shapes and indices.
    pub fn to_i64(&self) -> Result<Vec<i64>, String> {
        match &self.data {
            Data::Int64(values) => Ok(values.clone()),
            Data::Int32(values) => Ok(values.iter().map(|&value| value.into()).collect()),
            other => Err(format!("whole numbers are needed where {} stand", other.datatype())),
        }
    }

    /// The same elements as another type, as ONNX `Cast` has it: towards zero, saturating, not zero is true.
    pub fn cast(self, to: DataType) -> Result<Self, String> {
        if self.data.datatype() == to {
            return Ok(self);
        }
        macro_rules! numbers {
            ($values:expr) => {
                match to {
                    DataType::Fp32 => Data::Fp32($values.iter().map(|&v| v as f32).collect()),
                    DataType::Fp64 => Data::Fp64($values.iter().map(|&v| v as f64).collect()),
                    DataType::Int64 => Data::Int64($values.iter().map(|&v| v as i64).collect()),
                    DataType::Int32 => Data::Int32($values.iter().map(|&v| v as i32).collect()),
                    DataType::Bool => Data::Bool($values.iter().map(|&v| v as f64 != 0.0).collect()),
                    DataType::Bytes => Data::Bytes($values.iter().map(|v| v.to_string().into()).collect()),
                }
            };
        }
        let data = match &self.data {
            Data::Fp32(values) => numbers!(values),
            Data::Fp64(values) => numbers!(values),
            Data::Int64(values) => numbers!(values),
            Data::Int32(values) => numbers!(values),
            Data::Bool(values) => {
                let values: Vec<u8> = values.iter().map(|&v| v.into()).collect();
                numbers!(values)
            }
            Data::Bytes(values) => {
                let parsed: Result<Vec<f64>, _> = values.iter().map(|value| value.trim().parse::<f64>()).collect();
                let parsed = parsed.map_err(|_| format!("strings that are not numbers cannot become {to}"))?;
                numbers!(parsed)
            }
        };
        Ok(Self { dims: self.dims, data })
    }
}

/// A value that flows between steps. Converting between the two sides is free where memory allows it.
// A device tensor is large, but stands in a handful of slots per run; a box would cost an allocation a step.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Host(Arc<HostTensor>),
    Dev(Dev),
}

impl From<HostTensor> for Value {
    fn from(tensor: HostTensor) -> Self {
        Self::Host(Arc::new(tensor))
    }
}

impl From<Dev> for Value {
    fn from(tensor: Dev) -> Self {
        Self::Dev(tensor)
    }
}

impl Value {
    pub fn dims(&self) -> &Dims {
        match self {
            Self::Host(tensor) => &tensor.dims,
            Self::Dev(tensor) => tensor.dims(),
        }
    }

    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    pub fn datatype(&self) -> DataType {
        match self {
            Self::Host(tensor) => tensor.data.datatype(),
            Self::Dev(tensor) => tensor.datatype(),
        }
    }

    pub fn into_host(self) -> HostTensor {
        match self {
            Self::Host(tensor) => Arc::unwrap_or_clone(tensor),
            Self::Dev(tensor) => tensor.into_host(),
        }
    }

    pub fn into_dev(self) -> Result<Dev, String> {
        match self {
            Self::Host(tensor) => Dev::from_host(Arc::unwrap_or_clone(tensor)),
            Self::Dev(tensor) => Ok(tensor),
        }
    }

    /// The same elements under other dimensions.
    pub fn reshape(self, dims: Dims) -> Result<Self, String> {
        if dims.iter().product::<usize>() != self.len() {
            return Err(format!("a tensor of shape {:?} has no shape {dims:?}", self.dims().as_slice()));
        }
        Ok(match self {
            Self::Host(tensor) => {
                let mut tensor = Arc::unwrap_or_clone(tensor);
                tensor.dims = dims;
                tensor.into()
            }
            Self::Dev(tensor) => tensor.reshape(dims)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_as_onnx_does() {
        let cast = |data, to| HostTensor::new([3].as_slice(), data).cast(to).map(|tensor| tensor.data);
        assert_eq!(cast(Data::Fp32(vec![1.9, -1.9, f32::NAN]), DataType::Int64), Ok(Data::Int64(vec![1, -1, 0])));
        let truth = Ok(Data::Bool(vec![true, false, true]));
        assert_eq!(cast(Data::Fp64(vec![0.25, 0.0, f64::NAN]), DataType::Bool), truth);
        assert_eq!(cast(Data::Bool(vec![true, false, true]), DataType::Fp32), Ok(Data::Fp32(vec![1.0, 0.0, 1.0])));
        assert!(cast(Data::Bytes(vec!["a".into(), "1".into(), "2".into()]), DataType::Fp32).is_err());
    }
}
