//! A node's attributes, read by name and type.

use std::sync::Arc;

use super::proto::{AttributeProto, NodeProto};
use super::{tensor::text, tensor_from_proto};
use crate::value::{Data, HostTensor};

/// Errors are sentences that name the attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a NodeProto);

impl<'a> Attributes<'a> {
    fn get(self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    pub fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn int(self, name: &str, default: i64) -> i64 {
        self.get(name).and_then(|attribute| attribute.i).unwrap_or(default)
    }

    pub fn flag(self, name: &str, default: bool) -> bool {
        self.int(name, default.into()) != 0
    }

    pub fn float(self, name: &str, default: f32) -> f32 {
        self.get(name).and_then(|attribute| attribute.f).unwrap_or(default)
    }

    pub fn ints(self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    pub fn floats(self, name: &str) -> Option<&'a [f32]> {
        self.get(name).map(|attribute| attribute.floats.as_slice())
    }

    pub fn string(self, name: &str, default: &'a str) -> Result<&'a str, String> {
        match self.get(name).and_then(|attribute| attribute.s.as_ref()) {
            Some(bytes) => std::str::from_utf8(bytes).map_err(|_| format!("attribute `{name}` is not UTF-8")),
            None => Ok(default),
        }
    }

    pub fn strings(self, name: &str) -> Result<Option<Vec<Arc<str>>>, String> {
        let Some(attribute) = self.get(name) else {
            return Ok(None);
        };
        let strings: Result<Vec<Arc<str>>, ()> = attribute.strings.iter().map(|bytes| text(bytes)).collect();
        strings.map(Some).map_err(|()| format!("attribute `{name}` is not UTF-8"))
    }

    /// The raw strings: cheaper where there are as many as nodes in a forest.
    pub fn raw_strings(self, name: &str) -> &'a [bytes::Bytes] {
        self.get(name).map_or(&[], |attribute| attribute.strings.as_slice())
    }

    pub fn tensor(self, name: &str) -> Result<Option<HostTensor>, String> {
        let Some(proto) = self.get(name).and_then(|attribute| attribute.t.clone()) else {
            return Ok(None);
        };
        tensor_from_proto(proto, &format!("attribute `{name}`")).map(Some).map_err(|error| error.to_string())
    }

    /// `name` as floats, or `name_as_tensor` as doubles (or floats): ai.onnx.ml 3 has both. The flag says "doubles".
    pub fn reals(self, name: &str) -> Result<Option<(Vec<f64>, bool)>, String> {
        if let Some(tensor) = self.tensor(&format!("{name}_as_tensor"))? {
            return match tensor.data {
                Data::Fp64(values) => Ok(Some((values, true))),
                Data::Fp32(values) => Ok(Some((values.into_iter().map(f64::from).collect(), false))),
                other => Err(format!("attribute `{name}_as_tensor` holds {}", other.datatype())),
            };
        }
        Ok(self.floats(name).map(|values| (values.iter().map(|&value| value.into()).collect(), false)))
    }
}
