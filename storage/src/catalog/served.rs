//! Which versions readers get that name none: the newest whose rows are there.
//!
//! A view version that is filled from files waits until a backfill of its rows is done for the first time; views and services
//! that read it wait with it, and until then the version before answers. A version that is named is read as it is.

use super::{Project, Versioned};
use crate::{Error, Result};
use cairn_proto::record::v1::{FeatureRef, FeatureService, FeatureView, OnDemandFeatureView};
use std::sync::Arc;

impl Project {
    /// Whether a backfill of these rows is done.
    pub fn has_filled(&self, storage_id: u32) -> bool {
        self.filled.contains(&storage_id)
    }

    /// Whether rows of a view version wait for their first backfill. Rows that a version without files shares came, or come,
    /// by another way.
    pub fn is_waiting(&self, view: &Versioned<FeatureView>) -> bool {
        if self.has_filled(view.storage_id) {
            return false;
        }
        let versions = self.feature_view_versions(&view.name).iter();
        versions
            .filter(|it| it.storage_id == view.storage_id && it.version <= view.version)
            .all(|it| it.files.is_some())
    }

    /// The newest version of a view that does not wait.
    ///
    /// # Errors
    /// `NotFound`, also when all of them wait.
    pub fn served_feature_view(&self, name: &str) -> Result<&Arc<Versioned<FeatureView>>> {
        let newest = self.feature_view(name, None)?;
        let served = self.feature_view_versions(name).iter().rev().find(|view| !self.is_waiting(view));
        served.ok_or_else(|| unfilled("feature view", name, newest.version, name))
    }

    /// The newest version of an on-demand view none of whose sources wait.
    ///
    /// # Errors
    /// `NotFound`, also when all of them wait.
    pub fn served_on_demand_feature_view(&self, name: &str) -> Result<&Arc<Versioned<OnDemandFeatureView>>> {
        let newest = self.on_demand_feature_view(name, None)?;
        let versions = self.on_demand_feature_view_versions(name).iter().rev();
        let mut first = None;
        for view in versions {
            match self.waiting_in(&view.resolved) {
                None => return Ok(view),
                Some(waiting) => first = first.or(Some(waiting)),
            }
        }
        Err(unfilled("on-demand feature view", name, newest.version, first.unwrap_or(name)))
    }

    /// The newest version of a service none of whose views wait.
    ///
    /// # Errors
    /// `NotFound`, also when all of them wait.
    pub fn served_feature_service(&self, name: &str) -> Result<&Arc<Versioned<FeatureService>>> {
        let newest = self.feature_service(name, None)?;
        let mut first = None;
        for service in self.feature_service_versions(name).iter().rev() {
            match self.waiting_in(&service.resolved) {
                None => return Ok(service),
                Some(waiting) => first = first.or(Some(waiting)),
            }
        }
        Err(unfilled("feature service", name, newest.version, first.unwrap_or(name)))
    }

    /// A view among these, or among the sources of these, that waits.
    fn waiting_in<'a>(&'a self, references: &'a [FeatureRef]) -> Option<&'a str> {
        references.iter().find_map(|reference| {
            let version = Some(reference.view_version);
            if reference.on_demand {
                let view = self.on_demand_feature_view(&reference.view, version).ok()?;
                // Their sources are never on demand themselves.
                return view.resolved.iter().filter(|source| !source.on_demand).find_map(|source| self.waiting(source));
            }
            self.waiting(reference)
        })
    }

    fn waiting<'a>(&self, reference: &'a FeatureRef) -> Option<&'a str> {
        let view = self.feature_view(&reference.view, Some(reference.view_version)).ok()?;
        self.is_waiting(view).then_some(reference.view.as_str())
    }
}

fn unfilled(what: &str, name: &str, newest: u32, view: &str) -> Error {
    Error::NotFound(format!(
        "{what} `{name}` has no version that is filled yet; `cairn backfill {view}` fills it, `{name}@{newest}` reads what is \
         there"
    ))
}
