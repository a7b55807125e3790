//! LabelEncoder, from keys to values; and ZipMap.

use std::collections::HashMap;
use std::sync::Arc;

use super::Labels;
use crate::onnx::Attributes;
use crate::ops::{Build, Built, Refusal, one, take};
use crate::value::{Data, HostTensor};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Int(i64),
    Text(Arc<str>),
    /// The bits of an f32, with all NaN alike and no negative zero.
    Float(u32),
}

fn float_key(value: f32) -> Key {
    Key::Float(if value.is_nan() { f32::NAN.to_bits() } else { (value + 0.0).to_bits() })
}

fn keys(data: &Data) -> Result<Vec<Key>, String> {
    Ok(match data {
        Data::Int64(values) => values.iter().map(|&value| Key::Int(value)).collect(),
        Data::Int32(values) => values.iter().map(|&value| Key::Int(value.into())).collect(),
        Data::Fp32(values) => values.iter().map(|&value| float_key(value)).collect(),
        Data::Fp64(values) => values.iter().map(|&value| float_key(value as f32)).collect(),
        Data::Bytes(values) => values.iter().map(|value| Key::Text(value.clone())).collect(),
        Data::Bool(_) => return Err("it is not for BOOL".to_owned()),
    })
}

/// `keys_*` or `values_*`: as a tensor, or as a list of one of three types.
fn list(attributes: Attributes<'_>, what: &str) -> Result<Option<Data>, Refusal> {
    if let Some(tensor) = attributes.tensor(&format!("{what}_tensor"))? {
        return Ok(Some(tensor.data));
    }
    if let Some(values) = attributes.strings(&format!("{what}_strings"))? {
        return Ok(Some(Data::Bytes(values)));
    }
    if let Some(values) = attributes.ints(&format!("{what}_int64s")) {
        return Ok(Some(Data::Int64(values.to_vec())));
    }
    Ok(attributes.floats(&format!("{what}_floats")).map(|values| Data::Fp32(values.to_vec())))
}

pub(super) fn label_encoder(cx: &Build<'_>) -> Built {
    let a = cx.attributes;
    if let Some(classes) = a.strings("classes_strings")? {
        return first_version(cx, classes);
    }
    let (Some(from), Some(to)) = (list(a, "keys")?, list(a, "values")?) else {
        return Err("its keys or values are missing".into());
    };
    if from.len() != to.len() {
        return Err(format!("{} keys for {} values", from.len(), to.len()).into());
    }
    let default = a.tensor("default_tensor")?.map(|tensor| tensor.data);
    cx.holds(from.len() * 64);
    // The first of equal keys counts.
    let mut places = HashMap::with_capacity(from.len());
    for (place, key) in keys(&from)?.into_iter().enumerate() {
        places.entry(key).or_insert(place);
    }
    let default = match (&to, default) {
        (_, Some(data)) => data,
        (Data::Int64(_) | Data::Int32(_), None) => Data::Int64(vec![a.int("default_int64", -1)]),
        (Data::Fp32(_) | Data::Fp64(_), None) => Data::Fp32(vec![a.float("default_float", -0.0)]),
        (_, None) => Data::Bytes(vec![a.string("default_string", "_Unused")?.into()]),
    };
    if default.len() != 1 {
        return Err("its default is not one value".into());
    }
    let default = HostTensor { dims: [1].as_slice().into(), data: default }.cast(to.datatype())?.data;
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_host();
        let places: Vec<Option<usize>> = keys(&x.data)?.iter().map(|key| places.get(key).copied()).collect();
        macro_rules! look_up {
            ($variant:ident, $values:expr) => {{
                let Data::$variant(default) = &default else {
                    return Err("its default is of another type".to_owned());
                };
                Data::$variant(
                    places.iter().map(|place| place.map_or(&default[0], |at| &$values[at]).clone()).collect(),
                )
            }};
        }
        let data = match &to {
            Data::Fp32(values) => look_up!(Fp32, values),
            Data::Fp64(values) => look_up!(Fp64, values),
            Data::Int64(values) => look_up!(Int64, values),
            Data::Int32(values) => look_up!(Int32, values),
            Data::Bool(values) => look_up!(Bool, values),
            Data::Bytes(values) => look_up!(Bytes, values),
        };
        one(HostTensor { dims: x.dims, data })
    }))
}

/// ai.onnx.ml 1: between a list of strings and places in it, whichever way the input's type asks for.
fn first_version(cx: &Build<'_>, classes: Vec<Arc<str>>) -> Built {
    let default_int = cx.attributes.int("default_int64", -1);
    let default_string: Arc<str> = cx.attributes.string("default_string", "_Unused")?.into();
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_host();
        let data = match &x.data {
            Data::Bytes(values) => {
                let place = |value: &Arc<str>| classes.iter().position(|class| class == value);
                Data::Int64(values.iter().map(|value| place(value).map_or(default_int, |at| at as i64)).collect())
            }
            other => {
                let places = HostTensor { dims: x.dims.clone(), data: other.clone() }.to_i64()?;
                let class = |&place: &i64| usize::try_from(place).ok().and_then(|at| classes.get(at).cloned());
                Data::Bytes(places.iter().map(|place| class(place).unwrap_or_else(|| default_string.clone())).collect())
            }
        };
        one(HostTensor { dims: x.dims, data })
    }))
}

/// The classes of a ZipMap.
pub(crate) fn zip_map_labels(attributes: Attributes<'_>) -> Result<Labels, String> {
    match attributes.strings("classlabels_strings")? {
        Some(labels) if !labels.is_empty() => Ok(Labels::Strings(labels)),
        _ => Ok(Labels::Ints(attributes.ints("classlabels_int64s").unwrap_or_default().to_vec())),
    }
}

/// A map for each row becomes one vector for each row, in the order of the classes. The plan keeps the classes with the
/// output.
pub(super) fn zip_map(cx: &Build<'_>) -> Built {
    let classes = zip_map_labels(cx.attributes)?.len();
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        if x.dims().last() != Some(&classes) {
            return Err(format!("{classes} classes for an input of shape {:?}", x.dims().as_slice()));
        }
        one(x)
    }))
}
