//! What the meta group knows, in memory: cluster, nodes, projects with their definitions and models.
//!
//! In reading order: `project` (definitions and models of one project), `served` (which of their versions readers get),
//! `reference` (`view@3:feature`), `near` ("did you mean").
//!
//! Always true:
//! - a [`Catalog`] never changes: apply makes a new one that shares what did not change
//! - it is a function of the meta group's rows: rebuilt at open and install, kept up by apply with the same code
//! - lists are in name order

mod project;
mod reference;
mod served;
#[cfg(test)]
mod tests;

pub use project::{DefinitionKind, Project, RegisteredModel, Versioned};
pub use reference::Reference;

use crate::meta::JOBS_MAX;
use crate::meta::Row;
use crate::{Error, Result};
use cairn_proto::SLOTS;
use cairn_proto::record::v1::{ClusterInfo, Job, Node, NodeState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A moment of the meta group. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    cluster: Option<Arc<ClusterInfo>>,
    nodes: Arc<BTreeMap<u64, Arc<Node>>>,
    projects: Arc<BTreeMap<String, Arc<Project>>>,
    /// Greatest storage id given out.
    storage_ids: u32,
    jobs: Arc<BTreeMap<u64, Arc<Job>>>,
}

impl Catalog {
    /// `None` until the cluster is made.
    pub fn cluster(&self) -> Option<&Arc<ClusterInfo>> {
        self.cluster.as_ref()
    }

    /// The feature shard (group 1…N) of a slot.
    ///
    /// # Errors
    /// `InvalidArgument` for a slot that does not exist; `Internal` before the cluster is made.
    pub fn slot_shard(&self, slot: u16) -> Result<u32> {
        let cluster = self.cluster.as_ref().ok_or_else(|| Error::Internal("the cluster is not made yet".to_owned()))?;
        cluster.slot_shard.get(usize::from(slot)).copied().ok_or_else(|| {
            Error::InvalidArgument(format!("slot {slot} does not exist; slots go from 0 to {}", SLOTS - 1))
        })
    }

    /// All nodes ever added and not removed, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> + Clone {
        self.nodes.values().filter(|node| node.state() != NodeState::Removed)
    }

    /// The nodes that were taken out of the cluster, by id.
    pub fn removed_nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().filter(|node| node.state() == NodeState::Removed)
    }

    /// # Errors
    /// `NotFound`, also for a node that was removed.
    pub fn node(&self, id: u64) -> Result<&Arc<Node>> {
        match self.nodes.get(&id) {
            Some(node) if node.state() == NodeState::Removed => {
                Err(Error::NotFound(format!("node {id} (`{}`) was removed from this cluster", node.name)))
            }
            Some(node) => Ok(node),
            None => Err(Error::NotFound(format!("node {id} not found in this cluster"))),
        }
    }

    pub fn node_named(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes().find(|node| node.name == name)
    }

    /// The node that an operator means: by name, or by id.
    ///
    /// # Errors
    /// `NotFound` with a near name, or the names there are.
    pub fn node_called(&self, name_or_id: &str) -> Result<&Arc<Node>> {
        if let Some(node) = self.node_named(name_or_id) {
            return Ok(node);
        }
        if let Ok(id) = name_or_id.parse::<u64>() {
            return self.node(id);
        }
        if let Some(node) = self.removed_nodes().find(|node| node.name == name_or_id) {
            return Err(Error::NotFound(format!(
                "node `{}` was removed from this cluster (it was id {})",
                node.name, node.id
            )));
        }
        let hint =
            crate::near::hint(name_or_id, self.nodes().map(|node| node.name.as_str()), "the cluster has none yet");
        Err(Error::NotFound(format!("node `{name_or_id}` not found; {hint}")))
    }

    pub fn projects(&self) -> impl Iterator<Item = &Arc<Project>> {
        self.projects.values()
    }

    /// # Errors
    /// `NotFound` with a near name or what to do.
    pub fn project(&self, name: &str) -> Result<&Arc<Project>> {
        self.projects.get(name).ok_or_else(|| {
            let hint = crate::near::hint(
                name,
                self.projects.keys().map(String::as_str),
                "apply definitions to it first (`cairn apply --project`)",
            );
            Error::NotFound(format!("project `{name}` not found; {hint}"))
        })
    }

    /// Greatest storage id given out; the next new one is one more.
    pub fn storage_ids(&self) -> u32 {
        self.storage_ids
    }

    /// Jobs, oldest first: all that have not ended, and the last of those that have.
    pub fn jobs(&self) -> impl DoubleEndedIterator<Item = &Arc<Job>> {
        self.jobs.values()
    }

    /// # Errors
    /// `NotFound`.
    pub fn job(&self, id: u64) -> Result<&Arc<Job>> {
        self.jobs.get(&id).ok_or_else(|| {
            Error::NotFound(format!("job {id} not found; `cairn jobs` lists them, the last {JOBS_MAX} are kept"))
        })
    }

    /// Lets go of the oldest job that has ended, where there are too many: its id.
    pub(crate) fn forget_job(&mut self) -> Option<u64> {
        if self.jobs.len() <= JOBS_MAX {
            return None;
        }
        let id = self.jobs.values().find(|job| job.ended_us != 0)?.id;
        Arc::make_mut(&mut self.jobs).remove(&id);
        Some(id)
    }

    /// Takes a row in. Rows this view does not keep (history, lineage, requests) change nothing.
    ///
    /// # Errors
    /// `Corrupt` when the row does not fit what is there: a version left out, a model without project.
    pub(crate) fn take(&mut self, row: &Row) -> Result<()> {
        match row {
            Row::Cluster(cluster) => self.cluster = Some(Arc::new(cluster.clone())),
            Row::Node(node) => {
                Arc::make_mut(&mut self.nodes).insert(node.id, Arc::new(node.clone()));
            }
            Row::Project(record) => {
                let projects = Arc::make_mut(&mut self.projects);
                Arc::make_mut(projects.entry(record.name.clone()).or_default()).set_record(record.clone());
            }
            Row::Definition(version) => {
                self.storage_ids = self.storage_ids.max(version.storage_id);
                self.project_mut(&version.project)?.take_definition(version)?;
            }
            Row::ModelVersion(version) => self.project_mut(&version.project)?.take_model_version(version)?,
            Row::Alias(moved) => self.project_mut(&moved.project)?.take_alias(moved)?,
            Row::Job(job) => {
                Arc::make_mut(&mut self.jobs).insert(job.id, Arc::new(Job::clone(job)));
            }
            Row::Filled(filled) => self.project_mut(&filled.project)?.take_filled(filled.storage_id),
            Row::AliasHistory(_)
            | Row::LineageDown(_)
            | Row::LineageUp(_)
            | Row::Request { .. }
            | Row::RequestSlot { .. }
            | Row::Counters(_)
            | Row::Dataset(_)
            | Row::Backtest(_)
            | Row::BacktestWindows(_)
            | Row::BacktestOf(_) => {}
        }
        Ok(())
    }

    fn project_mut(&mut self, name: &str) -> Result<&mut Project> {
        let project = Arc::make_mut(&mut self.projects).get_mut(name);
        project
            .map(Arc::make_mut)
            .ok_or_else(|| Error::Corrupt(format!("the meta group has rows of project `{name}`, but no such project")))
    }
}
