//! Lineage: what was made from what. Edges go from the source to what was made, and are never taken back.
//!
//! | from | to | kind |
//! |---|---|---|
//! | entity version | feature view version | `keys` |
//! | feature view, on-demand feature view version | whatever reads it, bound to that version | `reads` |
//! | feature service version | model version | `trained_on` |
//! | artifact | model version | `artifact_of` |
//! | artifact | dataset | `spine_of` |
//! | feature service version, or each view | dataset | `joined`, `reads` |
//! | artifact, model version | backtest | `spine_of`, `backtested` |
//! | model version | alias that points (or pointed) to it | `aliased` |
//! | model version or alias | deployment version | `serves` |

use super::Row;
use crate::Error;
use crate::catalog::Project;
use cairn_proto::record::v1::definition::Kind;
use cairn_proto::record::v1::{DefinitionVersion, FeatureRef, LineageEdge};
use std::collections::BTreeSet;
use std::fmt;

/// A node of the graph; its name is its text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineageNode<'a> {
    Entity { project: &'a str, name: &'a str, version: u32 },
    FeatureView { project: &'a str, name: &'a str, version: u32 },
    OnDemandFeatureView { project: &'a str, name: &'a str, version: u32 },
    FeatureService { project: &'a str, name: &'a str, version: u32 },
    ModelVersion { project: &'a str, model: &'a str, version: u32 },
    Alias { project: &'a str, model: &'a str, alias: &'a str },
    Deployment { project: &'a str, name: &'a str, version: u32 },
    Artifact { root: &'a [u8] },
    Dataset { project: &'a str, name: &'a str },
    Backtest { project: &'a str, id: u64 },
}

impl fmt::Display for LineageNode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entity { project, name, version } => write!(f, "entity:{project}/{name}@{version}"),
            Self::FeatureView { project, name, version } => write!(f, "feature_view:{project}/{name}@{version}"),
            Self::OnDemandFeatureView { project, name, version } => {
                write!(f, "on_demand_feature_view:{project}/{name}@{version}")
            }
            Self::FeatureService { project, name, version } => write!(f, "feature_service:{project}/{name}@{version}"),
            Self::ModelVersion { project, model, version } => write!(f, "model_version:{project}/{model}@{version}"),
            Self::Alias { project, model, alias } => write!(f, "alias:{project}/{model}@{alias}"),
            Self::Deployment { project, name, version } => write!(f, "deployment:{project}/{name}@{version}"),
            Self::Dataset { project, name } => write!(f, "dataset:{project}/{name}"),
            Self::Backtest { project, id } => write!(f, "backtest:{project}/{id}"),
            Self::Artifact { root } => {
                f.write_str("artifact:")?;
                root.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// The view a feature reference is bound to.
pub fn view_node<'a>(project: &'a str, feature: &'a FeatureRef) -> LineageNode<'a> {
    let (name, version) = (feature.view.as_str(), feature.view_version);
    if feature.on_demand {
        LineageNode::OnDemandFeatureView { project, name, version }
    } else {
        LineageNode::FeatureView { project, name, version }
    }
}

/// Collects edges made by one entry.
pub struct Edges {
    index: u64,
    at_us: i64,
    rows: Vec<Row>,
}

impl Edges {
    pub fn new(index: u64, at_us: i64) -> Self {
        Self { index, at_us, rows: Vec::new() }
    }

    pub fn add(&mut self, from: LineageNode<'_>, to: LineageNode<'_>, kind: &str) {
        let (from, to, kind) = (from.to_string(), to.to_string(), kind.to_owned());
        let edge = LineageEdge { from, to, kind, index: self.index, at_us: self.at_us };
        self.rows.push(Row::LineageDown(edge.clone()));
        self.rows.push(Row::LineageUp(edge));
    }

    /// Each view once, however many of its features are read.
    pub fn add_reads(&mut self, project: &str, features: &[FeatureRef], to: LineageNode<'_>) {
        let mut seen = BTreeSet::new();
        for feature in features {
            if seen.insert((&feature.view, feature.view_version)) {
                self.add(view_node(project, feature), to, "reads");
            }
        }
    }

    /// What a new definition version builds on, in `project` as it is with that version in it.
    pub fn add_definition(&mut self, project: &Project, version: &DefinitionVersion) -> Result<(), Error> {
        let (place, number) = (project.name(), version.version);
        match version.definition.as_ref().and_then(|definition| definition.kind.as_ref()) {
            Some(Kind::FeatureView(view)) => {
                let to = LineageNode::FeatureView { project: place, name: &view.name, version: number };
                for name in &view.entities {
                    let version = project.entity(name)?.version;
                    self.add(LineageNode::Entity { project: place, name, version }, to, "keys");
                }
            }
            Some(Kind::OnDemandFeatureView(view)) => {
                let to = LineageNode::OnDemandFeatureView { project: place, name: &view.name, version: number };
                self.add_reads(place, &view.resolved, to);
            }
            Some(Kind::FeatureService(service)) => {
                let to = LineageNode::FeatureService { project: place, name: &service.name, version: number };
                self.add_reads(place, &service.resolved, to);
            }
            Some(Kind::Deployment(deployment)) => {
                let to = LineageNode::Deployment { project: place, name: &deployment.name, version: number };
                let model = deployment.model.as_str();
                for arm in deployment.champion.iter().chain(&deployment.challengers).chain(&deployment.shadows) {
                    let (alias, version) = (arm.alias.as_str(), arm.version);
                    let from = if alias.is_empty() {
                        LineageNode::ModelVersion { project: place, model, version }
                    } else {
                        LineageNode::Alias { project: place, model, alias }
                    };
                    self.add(from, to, "serves");
                }
            }
            Some(Kind::Entity(_) | Kind::Model(_)) | None => {}
        }
        Ok(())
    }

    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }
}

pub fn not_found(node: &str) -> Error {
    Error::NotFound(format!(
        "lineage of `{}` not found; nodes are written like `model_version:PROJECT/MODEL@VERSION`, \
         `feature_view:PROJECT/NAME@VERSION` or `artifact:ROOT`",
        node.escape_debug()
    ))
}
