//! Models: versions, aliases with their history, and lineage.
//!
//! Registering and moving an alias carry a request id made here from the operating system's randomness, so a
//! repetition after a lost answer gets the first answer back instead of a second version.

use crate::api::registry_client::RegistryClient;
use crate::connection::limited;
use crate::error::Result;
use crate::retry::{Repeat, request_id};
use crate::{Client, api};

/// Which version of a model: a number, or whatever an alias points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionOf {
    /// Exactly this one.
    Number(u32),
    /// The one this alias points at now.
    Alias(String),
}

/// What an alias must point at for a move to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it points at.
    Anything,
    /// Nothing: the alias must not exist yet.
    None,
    /// Exactly this version.
    Version(u32),
}

/// A move of an alias.
#[derive(Debug, Clone)]
pub struct Promotion<'a> {
    /// Project of the model.
    pub project: &'a str,
    /// Registered model whose alias moves.
    pub model: &'a str,
    /// Alias to move, such as `champion`; made when it is not there.
    pub alias: &'a str,
    /// Where it shall point; 0 removes it.
    pub version: u32,
    /// Where it must point now.
    pub expected: Expected,
    /// Who moves it, for the history.
    pub author: &'a str,
    /// Why, for the history.
    pub reason: &'a str,
}

/// Which way to follow lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To what it was made from.
    Up,
    /// To what was made from it.
    Down,
}

impl Client {
    /// Registers an immutable model version for an artifact uploaded before. The next version number is chosen by the
    /// cluster; the model is made when it is not there. An empty `request_id` is filled in.
    ///
    /// # Errors
    /// `NotFound` for an unknown artifact or feature service; `InvalidArgument` for a file that is no valid model, or
    /// `Unsupported` with the name of the operator no executor offers.
    pub async fn register_model(&self, mut ask: api::RegisterModelVersionRequest) -> Result<api::ModelVersion> {
        if ask.request_id.is_empty() {
            ask.request_id = request_id();
        }
        self.call(Repeat::Harmless, ask, |channel, request| async move {
            limited!(RegistryClient, channel).register_model_version(request).await
        })
        .await
    }

    /// Every registered model of a project.
    ///
    /// # Errors
    /// `NotFound` for an unknown project.
    pub async fn models(&self, project: &str) -> Result<Vec<api::RegisteredModel>> {
        let request = api::ListModelsRequest { project: project.to_owned() };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).list_models(request).await
        });
        Ok(reply.await?.models)
    }

    /// One registered model with its versions and aliases.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn model(&self, project: &str, model: &str) -> Result<api::RegisteredModel> {
        let request = api::GetModelRequest { project: project.to_owned(), model: model.to_owned() };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).get_model(request).await
        })
        .await
    }

    /// One version of a model.
    ///
    /// # Errors
    /// `NotFound` for an unknown model, version or alias.
    pub async fn model_version(&self, project: &str, model: &str, which: &VersionOf) -> Result<api::ModelVersion> {
        let (version, alias) = match which {
            VersionOf::Number(version) => (*version, String::new()),
            VersionOf::Alias(alias) => (0, alias.clone()),
        };
        let request =
            api::GetModelVersionRequest { project: project.to_owned(), model: model.to_owned(), version, alias };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).get_model_version(request).await
        })
        .await
    }

    /// Moves an alias by compare-and-set: only when it points at what is expected now.
    ///
    /// # Errors
    /// `Conflict` when it points elsewhere; `NotFound` for an unknown model or version.
    pub async fn promote(&self, ask: &Promotion<'_>) -> Result<api::AliasMove> {
        let (check_expected, expected_version) = match ask.expected {
            Expected::Anything => (false, 0),
            Expected::None => (true, 0),
            Expected::Version(version) => (true, version),
        };
        let request = api::MoveAliasRequest {
            project: ask.project.to_owned(),
            model: ask.model.to_owned(),
            alias: ask.alias.to_owned(),
            to_version: ask.version,
            check_expected,
            expected_version,
            author: ask.author.to_owned(),
            reason: ask.reason.to_owned(),
            request_id: request_id(),
        };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).move_alias(request).await
        })
        .await
    }

    /// Every move of every alias of a model: what served when.
    ///
    /// # Errors
    /// `NotFound` for an unknown model.
    pub async fn alias_history(&self, project: &str, model: &str) -> Result<Vec<api::AliasMove>> {
        let request = api::GetModelRequest { project: project.to_owned(), model: model.to_owned() };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).alias_history(request).await
        });
        Ok(reply.await?.moves)
    }

    /// The lineage edges reachable from `node`, such as `model_version:default/delay@1`, within `depth` steps
    /// (0 = the node's default of 10).
    ///
    /// # Errors
    /// `NotFound` for a node nothing is recorded of; `InvalidArgument` for a name that is no lineage node.
    pub async fn lineage(
        &self,
        project: &str,
        node: &str,
        direction: Direction,
        depth: u32,
    ) -> Result<Vec<api::LineageEdge>> {
        let direction = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        let request = api::LineageRequest {
            project: project.to_owned(),
            node: node.to_owned(),
            direction: direction.to_owned(),
            depth,
        };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(RegistryClient, channel).lineage(request).await
        });
        Ok(reply.await?.edges)
    }
}
