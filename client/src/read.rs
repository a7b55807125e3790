//! Commands with everything optional left out, to be completed with struct update syntax.

use crate::command::{EVENT_TIMESTAMP, GetHistoricalFeatures, GetOnlineFeatures, Level, Predict, Read};

/// An online read of `project` that names no features yet.
pub fn online(project: &str) -> GetOnlineFeatures {
    GetOnlineFeatures {
        project: project.to_owned(),
        feature_service: None,
        features: None,
        read: Read::default(),
        as_of: None,
        known_as_of: None,
        statuses: false,
        full_feature_names: false,
        entities: None,
    }
}

/// A point-in-time join of `project` that names no features yet.
pub fn historical(project: &str) -> GetHistoricalFeatures {
    GetHistoricalFeatures {
        project: project.to_owned(),
        feature_service: None,
        feature_service_version: None,
        features: None,
        read: Read::default(),
        known_as_of: None,
        created_as_of: None,
        ignore_created: false,
        event_timestamp: EVENT_TIMESTAMP.to_owned(),
        statuses: false,
        full_feature_names: false,
    }
}

/// A prediction in `project` that names no model yet.
pub fn predict(project: &str) -> Predict {
    Predict {
        project: project.to_owned(),
        deployment: None,
        model: None,
        version: None,
        alias: None,
        read: Read::default(),
        as_of: None,
        known_as_of: None,
        features: false,
        explain: false,
        entities: None,
    }
}

/// Reads at least what `token` wrote, from any replica.
pub fn at_least(token: &str) -> Read {
    Read { level: Level::Session, token: Some(token.to_owned()), ..Read::default() }
}

/// Reads everything acknowledged before the read started.
pub fn linearizable() -> Read {
    Read { level: Level::Linearizable, ..Read::default() }
}
