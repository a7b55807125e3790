//! One way to write each message. Protobuf maps are hash maps in memory, in an order of their own on every node; rows
//! and outcomes must be the same bytes everywhere (I3), so maps are written sorted, after the other fields.
//!
//! The bytes are ordinary protobuf: any decoder reads them.

use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{MetaOutcome, ModelVersion};
use prost::Message;
use std::collections::BTreeMap;

/// The map fields of `ModelVersion`, with its field numbers.
#[derive(Clone, PartialEq, Message)]
struct ModelVersionMaps {
    #[prost(btree_map = "string, double", tag = "8")]
    metrics: BTreeMap<String, f64>,
    #[prost(btree_map = "string, string", tag = "14")]
    tags: BTreeMap<String, String>,
}

/// `MetaOutcome` with a `ModelVersionRegistered` that is encoded already.
#[derive(Clone, PartialEq, Message)]
struct RegisteredOutcome {
    #[prost(message, optional, tag = "4")]
    model_version_registered: Option<Encoded>,
    #[prost(uint64, tag = "14")]
    index: u64,
    #[prost(int64, tag = "15")]
    applied_us: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Encoded {
    #[prost(bytes = "vec", tag = "1")]
    model_version: Vec<u8>,
}

pub fn model_version(version: &ModelVersion) -> Vec<u8> {
    let mut rest = version.clone();
    let metrics = std::mem::take(&mut rest.metrics).into_iter().collect();
    let tags = std::mem::take(&mut rest.tags).into_iter().collect();
    let mut bytes = rest.encode_to_vec();
    bytes.extend(ModelVersionMaps { metrics, tags }.encode_to_vec());
    bytes
}

pub fn outcome(outcome: &MetaOutcome) -> Vec<u8> {
    let Some(Outcome::ModelVersionRegistered(registered)) = &outcome.outcome else { return outcome.encode_to_vec() };
    let model_version = registered.model_version.as_ref().map(model_version).unwrap_or_default();
    RegisteredOutcome {
        model_version_registered: Some(Encoded { model_version }),
        index: outcome.index,
        applied_us: outcome.applied_us,
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::record::v1::ModelVersionRegistered;

    fn version(reversed: bool) -> ModelVersion {
        let mut names: Vec<String> = (0..50).map(|number| format!("metric_{number}")).collect();
        if reversed {
            names.reverse();
        }
        let metrics = names.iter().map(|name| (name.clone(), name.len() as f64)).collect();
        let tags = names.iter().map(|name| (name.clone(), String::new())).collect();
        ModelVersion {
            model: "eta".to_owned(),
            version: 3,
            metrics,
            tags,
            author: "ann".to_owned(),
            ..Default::default()
        }
    }

    /// I3: two hash maps with the same content iterate differently and must still give the same bytes.
    #[test]
    fn i3_maps_are_written_in_one_order() {
        let (one, other) = (version(false), version(true));
        assert_eq!(model_version(&one), model_version(&other));
        assert_eq!(ModelVersion::decode(&*model_version(&one)).unwrap(), one);
        let wrap = |version| MetaOutcome {
            index: 7,
            applied_us: -1,
            outcome: Some(Outcome::ModelVersionRegistered(ModelVersionRegistered { model_version: Some(version) })),
        };
        assert_eq!(outcome(&wrap(one.clone())), outcome(&wrap(other)));
        assert_eq!(MetaOutcome::decode(&*outcome(&wrap(one.clone()))).unwrap(), wrap(one));
    }
}
