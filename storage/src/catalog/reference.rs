//! How features are named in services and requests: `view`, `view:feature`, `view@3:feature`.

use super::Project;
use crate::{Error, Result};
use cairn_proto::record::v1::FeatureRef;
use std::collections::BTreeSet;
use std::fmt;

/// A reference as written. `view` alone means all its features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub view: String,
    /// `None` = the newest.
    pub version: Option<u32>,
    /// `None` = all.
    pub feature: Option<String>,
}

impl Reference {
    /// # Errors
    /// `InvalidArgument` naming the text.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::InvalidArgument(format!(
                "`{text}` is not a feature reference; write `view:feature`, `view@3:feature`, or `view` for all its features"
            ))
        };
        let (view, feature) = match text.split_once(':') {
            Some((view, feature)) => (view, Some(feature)),
            None => (text, None),
        };
        let (view, version) = match view.split_once('@') {
            Some((view, version)) => (view, Some(version.parse().ok().filter(|version| *version > 0).ok_or_else(bad)?)),
            None => (view, None),
        };
        if view.is_empty() || feature.is_some_and(|feature| feature.is_empty() || feature.contains([':', '@'])) {
            return Err(bad());
        }
        Ok(Self { view: view.to_owned(), version, feature: feature.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.view)?;
        if let Some(version) = self.version {
            write!(f, "@{version}")?;
        }
        self.feature.as_ref().map_or(Ok(()), |feature| write!(f, ":{feature}"))
    }
}

impl Project {
    /// Binds references to versions and single features, in the order given; `view` alone gives all in view order.
    ///
    /// # Errors
    /// `InvalidArgument` for a text that is no reference or a feature named twice; `NotFound` naming view or feature.
    pub fn resolve<S: AsRef<str>>(&self, references: &[S]) -> Result<Vec<FeatureRef>> {
        self.bind(references, false)
    }

    /// As [`Self::resolve`], for readers: those without a version are bound to one that does not wait for its rows.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_served<S: AsRef<str>>(&self, references: &[S]) -> Result<Vec<FeatureRef>> {
        self.bind(references, true)
    }

    fn bind<S: AsRef<str>>(&self, references: &[S], served: bool) -> Result<Vec<FeatureRef>> {
        let mut resolved = Vec::with_capacity(references.len());
        let mut seen = BTreeSet::new();
        for text in references {
            let reference = Reference::parse(text.as_ref())?;
            let (view_version, names, on_demand) = self.features_of(&reference, served)?;
            let wanted: Vec<&str> = match &reference.feature {
                None => names,
                Some(feature) if names.contains(&feature.as_str()) => vec![feature.as_str()],
                Some(feature) => {
                    let view = format!("{}@{view_version}", reference.view);
                    let hint = crate::near::hint(feature, names.iter().copied(), "it has no features");
                    return Err(Error::NotFound(format!(
                        "feature `{feature}` not found in feature view `{view}`; {hint}"
                    )));
                }
            };
            for feature in wanted {
                if !seen.insert((reference.view.clone(), view_version, feature.to_owned())) {
                    return Err(Error::InvalidArgument(format!(
                        "feature `{}:{feature}` is named twice; name it once",
                        reference.view
                    )));
                }
                let (view, feature) = (reference.view.clone(), feature.to_owned());
                resolved.push(FeatureRef { view, view_version, feature, on_demand });
            }
        }
        Ok(resolved)
    }

    /// Version, feature names and whether on demand.
    fn features_of(&self, reference: &Reference, served: bool) -> Result<(u32, Vec<&str>, bool)> {
        let served = served && reference.version.is_none();
        if self.has_on_demand_feature_view(&reference.view) {
            let view = match served {
                true => self.served_on_demand_feature_view(&reference.view)?,
                false => self.on_demand_feature_view(&reference.view, reference.version)?,
            };
            return Ok((view.version, view.features.iter().map(|feature| feature.name.as_str()).collect(), true));
        }
        let view = match served {
            true => self.served_feature_view(&reference.view)?,
            false => self.feature_view(&reference.view, reference.version)?,
        };
        Ok((view.version, view.features.iter().map(|feature| feature.name.as_str()).collect(), false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_what_they_write() {
        for text in ["rides", "rides:distance", "rides@3", "rides@3:distance"] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
        for text in ["", ":x", "rides:", "rides@:x", "rides@0:x", "rides@x", "a:b:c", "a:b@2"] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
