//! A walk over the wire format that counts before anything is allocated.
//!
//! An empty message costs two bytes in the file and some hundred once decoded. So nodes, initializers and all messages
//! and strings
//! together have bounds, checked here.

use super::invalid;
use crate::error::LoadError;
use crate::limits::Limits;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// Nothing inside it is decoded as a message.
    Opaque,
}

impl Kind {
    fn child(self, field: u64) -> Self {
        match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Graph, 1) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5) => Self::Tensor,
            (Self::Graph, 11 | 12) => Self::ValueInfo,
            (Self::Node, 5) => Self::Attribute,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            _ => Self::Opaque,
        }
    }
}

struct Scan<'a> {
    limits: &'a Limits,
    nodes: usize,
    initializers: usize,
    items: usize,
}

pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), LoadError> {
    Scan { limits, nodes: 0, initializers: 0, items: 0 }.walk(bytes, Kind::Model)
}

impl Scan<'_> {
    /// Depth is bounded by the kinds: none holds itself.
    fn walk(&mut self, mut bytes: &[u8], kind: Kind) -> Result<(), LoadError> {
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            match key & 7 {
                0 => drop(varint(&mut bytes)?),
                1 => drop(take(&mut bytes, 8)?),
                5 => drop(take(&mut bytes, 4)?),
                2 => {
                    let length = varint(&mut bytes)?;
                    let inner = take(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))?;
                    let child = kind.child(key >> 3);
                    self.count(kind, child)?;
                    if child != Kind::Opaque {
                        self.walk(inner, child)?;
                    }
                }
                other => return Err(invalid("protobuf", format!("wire type {other} does not exist: it is not ONNX"))),
            }
        }
        Ok(())
    }

    fn count(&mut self, parent: Kind, child: Kind) -> Result<(), LoadError> {
        self.items += 1;
        within("number of messages and strings", self.items, self.limits.items_max)?;
        match (parent, child) {
            (_, Kind::Node) => {
                self.nodes += 1;
                within("number of nodes", self.nodes, self.limits.nodes_max)
            }
            (Kind::Graph, Kind::Tensor) => {
                self.initializers += 1;
                within("number of initializers", self.initializers, self.limits.initializers_max)
            }
            _ => Ok(()),
        }
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), LoadError> {
    if found > limit { Err(LoadError::LimitExceeded { what, found, limit }) } else { Ok(()) }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, LoadError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else {
            return Err(invalid("protobuf", "the file ends inside a number"));
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(invalid("protobuf", "a number is longer than ten bytes"))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], LoadError> {
    if length > bytes.len() {
        return Err(invalid("protobuf", "the file ends inside a field: it is cut off, or not ONNX"));
    }
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 200,000 empty nodes in 400 kB would be 30 MB of nodes.
    #[test]
    fn many_empty_messages_are_refused_before_they_are_read() {
        let nodes: Vec<u8> = [0x0a, 0].repeat(200_000);
        let mut model = vec![0x3a];
        let mut length = nodes.len();
        while length >= 0x80 {
            model.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        model.push(length as u8);
        model.extend(nodes);
        let error = check(&model, &Limits::default()).unwrap_err();
        assert!(matches!(error, LoadError::LimitExceeded { what: "number of nodes", .. }), "{error}");
    }
}
