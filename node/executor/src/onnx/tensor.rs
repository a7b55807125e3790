//! `TensorProto` as a [`HostTensor`]: declared dimensions must match the bytes that are there.

use std::sync::Arc;

use super::{invalid, proto::TensorProto};
use crate::error::LoadError;
use crate::limits::RANK_MAX;
use crate::value::{Data, DataType, Dims, HostTensor};

const NAMES: [&str; 24] = [
    "UNDEFINED",
    "FP32",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "BYTES",
    "BOOL",
    "FP16",
    "FP64",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BF16",
    "FP8E4M3FN",
    "FP8E4M3FNUZ",
    "FP8E5M2",
    "FP8E5M2FNUZ",
    "UINT4",
    "INT4",
    "FP4E2M1",
]; // as in onnx.proto, by number

/// ONNX's number of an element type as ours.
pub(crate) fn datatype(number: i32, place: &str) -> Result<DataType, LoadError> {
    Ok(match number {
        1 => DataType::Fp32,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        11 => DataType::Fp64,
        other => {
            let known = usize::try_from(other).ok().and_then(|at| NAMES.get(at));
            let datatype = known.map_or_else(|| format!("number {other}"), |name| (*name).to_owned());
            return Err(LoadError::UnsupportedType { place: place.to_owned(), datatype });
        }
    })
}

pub(crate) fn tensor_from_proto(proto: TensorProto, place: &str) -> Result<HostTensor, LoadError> {
    if proto.data_location != 0 {
        return Err(invalid(place, "its data is in another file: save the model as one file"));
    }
    if proto.dims.len() > RANK_MAX {
        let found = proto.dims.len();
        return Err(LoadError::LimitExceeded { what: "number of dimensions", found, limit: RANK_MAX });
    }
    let dims: Result<Dims, _> = proto.dims.iter().map(|&dim| usize::try_from(dim)).collect();
    let dims = dims.map_err(|_| invalid(place, format!("its shape is {:?}", proto.dims)))?;
    let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let Some(elements) = elements else {
        return Err(invalid(place, format!("its shape is {:?}", proto.dims)));
    };
    let datatype = datatype(proto.data_type, place)?;
    let data = match (&proto.raw_data, datatype) {
        (_, DataType::Bytes) => {
            let strings: Result<Vec<Arc<str>>, _> = proto.string_data.iter().map(|s| text(s)).collect();
            Data::Bytes(strings.map_err(|()| invalid(place, "it holds a string that is not UTF-8"))?)
        }
        (Some(raw), DataType::Fp32) => Data::Fp32(numbers(raw, f32::from_le_bytes, place)?),
        (Some(raw), DataType::Fp64) => Data::Fp64(numbers(raw, f64::from_le_bytes, place)?),
        (Some(raw), DataType::Int64) => Data::Int64(numbers(raw, i64::from_le_bytes, place)?),
        (Some(raw), DataType::Int32) => Data::Int32(numbers(raw, i32::from_le_bytes, place)?),
        (Some(raw), DataType::Bool) => Data::Bool(raw.iter().map(|&byte| byte != 0).collect()),
        (None, DataType::Fp32) => Data::Fp32(proto.float_data),
        (None, DataType::Fp64) => Data::Fp64(proto.double_data),
        (None, DataType::Int64) => Data::Int64(proto.int64_data),
        (None, DataType::Int32) => Data::Int32(proto.int32_data),
        (None, DataType::Bool) => Data::Bool(proto.int32_data.iter().map(|&value| value != 0).collect()),
    };
    if data.len() != elements {
        let reason = format!("its shape {dims:?} asks for {elements} elements, and {} are there", data.len());
        return Err(invalid(place, reason));
    }
    Ok(HostTensor { dims, data })
}

pub(super) fn text(bytes: &[u8]) -> Result<Arc<str>, ()> {
    std::str::from_utf8(bytes).map(Into::into).map_err(|_| ())
}

fn numbers<const N: usize, T>(raw: &[u8], read: fn([u8; N]) -> T, place: &str) -> Result<Vec<T>, LoadError> {
    let (chunks, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(invalid(place, "its data ends inside an element"));
    }
    Ok(chunks.iter().map(|chunk| read(*chunk)).collect())
}
