//! Definitions: what there is in a project, what files would change, and changing it.

use crate::api::definitions_client::DefinitionsClient;
use crate::connection::limited;
use crate::error::{Error, Result};
use crate::retry::Repeat;
use crate::{Client, api};
use std::path::{Path, PathBuf};

/// Folders deeper than this below the one named are an error, not a long walk.
const FOLDER_DEPTH_MAX: usize = 16;

impl Client {
    /// What [`Client::apply`] would change. Changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` with file and line for definitions that do not hold together.
    pub async fn plan(&self, project: &str, files: Vec<api::SourceFile>) -> Result<api::PlanReply> {
        let request = api::PlanRequest { project: project.to_owned(), files };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(DefinitionsClient, channel).plan(request).await
        })
        .await
    }

    /// Applies definitions in one log entry or not at all. Applying the same files again changes nothing.
    ///
    /// Sent again only while certainly not carried out, so that the reply tells what this call changed.
    ///
    /// # Errors
    /// `InvalidArgument` with file and line; `Conflict` when somebody else changed the project meanwhile.
    pub async fn apply(&self, project: &str, files: Vec<api::SourceFile>) -> Result<api::ApplyReply> {
        let request = api::PlanRequest { project: project.to_owned(), files };
        self.call(Repeat::Once, request, |channel, request| async move {
            limited!(DefinitionsClient, channel).apply(request).await
        })
        .await
    }

    /// The newest version of every definition of a project.
    ///
    /// # Errors
    /// `NotFound` for an unknown project.
    pub async fn definitions(&self, project: &str) -> Result<Vec<api::DefinitionRow>> {
        let request = api::ListDefinitionsRequest { project: project.to_owned() };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(DefinitionsClient, channel).list(request).await
        });
        Ok(reply.await?.rows)
    }
}

/// Reads definition files: a file as it is, a folder as every `.yaml` and `.yml` below it in name order.
///
/// # Errors
/// `InvalidArgument` for a path that is missing, unreadable, not UTF-8, or a folder without definition files.
pub fn read_sources(paths: &[PathBuf]) -> Result<Vec<api::SourceFile>> {
    let mut sources = Vec::new();
    for path in paths {
        let before = sources.len();
        let kind = std::fs::metadata(path).map_err(|error| Error::file(path, error))?;
        if kind.is_dir() {
            read_folder(path, 0, &mut sources)?;
            if sources.len() == before {
                return Err(Error::file(path, "no .yaml or .yml file in this folder"));
            }
        } else {
            sources.push(read_source(path)?);
        }
    }
    Ok(sources)
}

fn read_folder(folder: &Path, depth: usize, sources: &mut Vec<api::SourceFile>) -> Result<()> {
    if depth > FOLDER_DEPTH_MAX {
        return Err(Error::file(folder, format!("more than {FOLDER_DEPTH_MAX} folders deep")));
    }
    let listed = std::fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut entries = listed.map_err(|error| Error::file(folder, error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = std::fs::metadata(&path).map_err(|error| Error::file(&path, error))?;
        if kind.is_dir() {
            read_folder(&path, depth + 1, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            sources.push(read_source(&path)?);
        }
    }
    Ok(())
}

fn read_source(path: &Path) -> Result<api::SourceFile> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
    Ok(api::SourceFile { path: path.display().to_string(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_name_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "notes.txt", ".hidden.yaml", "deeper/c.yaml"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let sources = read_sources(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<_> = sources.iter().map(|source| source.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.yaml", "deeper/c.yaml"]);
    }

    #[test]
    fn paths_that_hold_nothing_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_sources(&[folder.path().to_owned()]).unwrap_err();
        assert!(error.to_string().ends_with("no .yaml or .yml file in this folder"), "{error}");
        let error = read_sources(&[folder.path().join("missing.yaml")]).unwrap_err();
        assert!(error.to_string().contains("missing.yaml"), "{error}");
    }
}
