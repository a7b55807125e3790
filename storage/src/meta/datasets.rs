//! Datasets: how a training set was made, once and for ever, so that it can be made again.

use super::Row;
use super::apply::{Answer, Context};
use super::lineage::{Edges, LineageNode};
use super::names::check_name;
use crate::{Error, Result};
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{Dataset, RegisterDataset};

/// Everything of a dataset's record, bytes.
const DATASET_BYTES_MAX: usize = 1 << 20;
const FILE_FORMATS: [&str; 2] = ["parquet", "csv"];

/// - `taken`: its name is
pub fn register(context: &Context<'_>, ask: &RegisterDataset, taken: bool) -> Answer {
    let asked = ask.dataset.clone().unwrap_or_default();
    check(&asked)?;
    let Dataset { project, name, .. } = &asked;
    let here = context.catalog.project(project)?;
    if taken {
        return Err(Error::AlreadyExists(format!(
            "project `{project}` has a dataset `{name}`, and it never changes; choose another name"
        )));
    }
    let mut edges = Edges::new(context.index, context.now_us);
    let to = LineageNode::Dataset { project, name };
    let spine = asked.spine.as_ref().map(|spine| &spine.root[..]).unwrap_or_default();
    edges.add(LineageNode::Artifact { root: spine }, to, "spine_of");
    if asked.feature_service.is_empty() {
        edges.add_reads(project, &here.resolve(&asked.features)?, to);
    } else {
        let version = Some(asked.feature_service_version);
        let version = here.feature_service(&asked.feature_service, version)?.version;
        let from = LineageNode::FeatureService { project, name: &asked.feature_service, version };
        edges.add(from, to, "joined");
    }
    let dataset = Dataset { created_us: context.now_us, index: context.index, ..asked.clone() };
    let mut rows = vec![Row::Dataset(Box::new(dataset.clone()))];
    rows.extend(edges.into_rows());
    Ok((Outcome::DatasetRegistered(dataset), rows))
}

fn check(dataset: &Dataset) -> Result<()> {
    check_name("a project", &dataset.project)?;
    check_name("a dataset", &dataset.name)?;
    let name = &dataset.name;
    let missing = |what: &str| Err(Error::InvalidArgument(format!("dataset `{name}` needs {what}")));
    if dataset.spine.as_ref().is_none_or(|spine| spine.root.len() != 32) {
        return missing("the artifact of its spine; upload the file first");
    }
    if dataset.content.len() != 32 || !FILE_FORMATS.contains(&dataset.file_format.as_str()) {
        return missing("the BLAKE3 of its file (32 bytes) and that file's format: parquet or csv");
    }
    if dataset.feature_service.is_empty() == dataset.features.is_empty() {
        return missing("either a feature service or features");
    }
    if !dataset.feature_service.is_empty() && dataset.feature_service_version == 0 {
        return missing("the version of its feature service");
    }
    let bytes = prost::Message::encoded_len(dataset);
    if bytes > DATASET_BYTES_MAX {
        return Err(Error::TooLarge(format!(
            "the record of dataset `{name}` has {bytes} bytes; the limit is {DATASET_BYTES_MAX}"
        )));
    }
    Ok(())
}
