//! What clients do while nodes and links fail, one file a promise, each with its own check.
//!
//! - [`register`]: moves of an alias are linearizable
//! - [`set`]: acknowledged rows are there, refused ones are not, late rows do not win
//! - [`batch`]: rows of one batch for one shard are seen together or not at all
//! - [`once`]: a (producer, sequence) takes effect once
//! - [`session`]: who reads with a token sees what wrote it, and never goes back
//! - [`fresh`]: linearizable and bounded reads miss nothing they must see
//! - [`as_of`]: the past does not change once it is known
//! - [`artifact`]: files come back whole from any node
//! - [`rows`]: the feature views and rows that they share

/// Makes a type with its own `work(&self, &Site, u32)` and `check(&self, &Site)` a [`Workload`].
macro_rules! workload {
    ($type:ty, $name:expr, clients: $clients:expr, least_ok_per_minute: $least:expr) => {
        impl super::Workload for $type {
            fn name(&self) -> &'static str {
                $name
            }

            fn clients(&self) -> u32 {
                $clients
            }

            fn least_ok_per_minute(&self) -> usize {
                $least
            }

            fn work(
                self: std::sync::Arc<Self>,
                site: $crate::site::Site,
                client: u32,
            ) -> futures::future::BoxFuture<'static, ()> {
                Box::pin(async move { Self::work(&self, &site, client).await })
            }

            fn check(
                self: std::sync::Arc<Self>,
                site: $crate::site::Site,
            ) -> futures::future::BoxFuture<'static, $crate::Result<Vec<String>>> {
                Box::pin(async move { Self::check(&self, &site).await })
            }
        }
    };
}

pub mod artifact;
pub mod as_of;
pub mod batch;
pub mod fresh;
pub mod once;
pub mod register;
pub mod rows;
pub mod session;
pub mod set;

use crate::Result;
use crate::site::Site;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One promise under test.
pub trait Workload: Send + Sync {
    fn name(&self) -> &'static str;
    /// Clients side by side.
    fn clients(&self) -> u32;
    /// Fewer acknowledged operations than this a minute prove nothing.
    fn least_ok_per_minute(&self) -> usize;
    /// Works as client number `client` until [`Site::stopped`].
    fn work(self: Arc<Self>, site: Site, client: u32) -> BoxFuture<'static, ()>;
    /// What is wrong, in words; every node is whole again by now.
    fn check(self: Arc<Self>, site: Site) -> BoxFuture<'static, Result<Vec<String>>>;
}

/// Names of all workloads.
pub const ALL: [&str; 8] = ["register", "set", "batch", "once", "session", "fresh", "as-of", "artifact"];

/// Definitions for all, then the workloads that are `wanted`.
///
/// # Errors
/// A name that is none of [`ALL`]; a cluster that does not take the definitions.
pub async fn prepare(site: &Site, wanted: &[String]) -> Result<Vec<Arc<dyn Workload>>> {
    rows::prepare(site).await?;
    let mut made: Vec<Arc<dyn Workload>> = Vec::new();
    for name in wanted {
        made.push(match name.as_str() {
            "register" => Arc::new(register::Register::prepare(site).await?),
            "set" => Arc::new(set::Set::default()),
            "batch" => Arc::new(batch::Batch::prepare(site).await?),
            "once" => Arc::new(once::Once::default()),
            "session" => Arc::new(session::Session::default()),
            "fresh" => Arc::new(fresh::Fresh::default()),
            "as-of" => Arc::new(as_of::AsOf::default()),
            "artifact" => Arc::new(artifact::Artifact::default()),
            other => return Err(format!("there is no workload `{other}`; there are {}", ALL.join(", ")).into()),
        });
    }
    Ok(made)
}

/// What the clients of a workload share.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Violations kept of one workload; more say nothing new.
pub(crate) const VIOLATIONS_MAX: usize = 100;

/// Violations seen while a workload runs.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<String>>);

impl Seen {
    pub(crate) fn note(&self, violation: String) {
        let mut seen = lock(&self.0);
        if seen.len() < VIOLATIONS_MAX {
            seen.push(violation);
        }
    }

    pub(crate) fn all(&self) -> Vec<String> {
        lock(&self.0).clone()
    }
}
