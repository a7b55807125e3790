//! What differs between two versions of a definition, a line each: `+` new, `-` gone, `~` changed.

use cairn_proto::record::v1 as record;
use cairn_storage::types::type_name;
use record::definition::Kind;

/// Lines that tell `after` from `before` (`None` = it is new).
pub fn details(before: Option<&Kind>, after: &Kind) -> Vec<String> {
    let empty = Vec::new();
    let (old, new) = (before.map_or(empty, lines), lines(after));
    let mut out = Vec::new();
    for (name, text) in &new {
        match old.iter().find(|(old_name, _)| old_name == name) {
            None => out.push(format!("+ {name}{text}")),
            Some((_, old_text)) if old_text != text => out.push(format!("~ {name}{old_text} →{text}")),
            Some(_) => {}
        }
    }
    for (name, text) in &old {
        if !new.iter().any(|(new_name, _)| new_name == name) {
            out.push(format!("- {name}{text}"));
        }
    }
    if out.is_empty() {
        out.push("~ order".to_owned());
    }
    out
}

/// A definition as (what, value) lines.
fn lines(kind: &Kind) -> Vec<(String, String)> {
    let line = |what: &str, value: String| (what.to_owned(), value);
    let mut out = Vec::new();
    let described = |text: &str| (!text.is_empty()).then(|| line("description", format!(" \"{text}\"")));
    match kind {
        Kind::Entity(it) => {
            out.extend(it.join_keys.iter().map(|field| typed("join key", field)));
            out.extend(described(&it.description));
        }
        Kind::FeatureView(it) => {
            out.extend(it.entities.iter().map(|name| line(&format!("entity {name}"), String::new())));
            if it.ttl_us != 0 {
                out.push(line("ttl", format!(" {}", duration(it.ttl_us))));
            }
            if it.hot_window_us != 0 {
                out.push(line("hot window", format!(" {}", duration(it.hot_window_us))));
            }
            if it.retention_us != 0 {
                out.push(line("retention", format!(" {}", duration(it.retention_us))));
            }
            if !it.source.is_empty() {
                out.push(line("source", format!(" {}", it.source)));
            }
            if let Some(files) = &it.files {
                out.push(line("source path", format!(" {}", files.path)));
                let told = [("source sql", &files.sql), ("source event_timestamp", &files.event_timestamp)];
                let told = told.into_iter().filter(|(_, text)| !text.is_empty());
                out.extend(told.map(|(what, text)| line(what, format!(" {}", text.trim()))));
            }
            out.extend(it.features.iter().map(|field| typed("feature", field)));
            out.extend(described(&it.description));
        }
        Kind::OnDemandFeatureView(it) => {
            out.extend(it.resolved.iter().map(reference));
            out.extend(it.request_data.iter().map(|field| typed("request data", field)));
            for feature in &it.features {
                let kind = type_name(&feature.r#type.unwrap_or_default());
                out.push(line(&format!("feature {}", feature.name), format!(" {kind} = {}", feature.sql)));
            }
            out.extend(described(&it.description));
        }
        Kind::FeatureService(it) => {
            out.extend(it.resolved.iter().map(reference));
            out.extend(described(&it.description));
        }
        Kind::Model(it) => {
            if !it.feature_service.is_empty() {
                out.push(line("feature service", format!(" {}", it.feature_service)));
            }
            out.extend(described(&it.description));
        }
        Kind::Deployment(it) => {
            out.push(line("model", format!(" {}", it.model)));
            out.extend(it.champion.iter().map(|arm| line("champion", arm_text(arm))));
            out.extend(
                it.challengers.iter().enumerate().map(|(i, arm)| line(&format!("challenger {}", i + 1), arm_text(arm))),
            );
            out.extend(it.shadows.iter().enumerate().map(|(i, arm)| line(&format!("shadow {}", i + 1), arm_text(arm))));
            out.extend(described(&it.description));
        }
    }
    out
}

fn typed(what: &str, field: &record::Field) -> (String, String) {
    let description = if field.description.is_empty() { String::new() } else { format!(" \"{}\"", field.description) };
    (format!("{what} {}", field.name), format!(" {}{description}", type_name(&field.r#type.unwrap_or_default())))
}

fn reference(bound: &record::FeatureRef) -> (String, String) {
    (format!("{}:{}", bound.view, bound.feature), format!(" @{}", bound.view_version))
}

fn arm_text(arm: &record::Arm) -> String {
    let who = if arm.alias.is_empty() { format!(" version {}", arm.version) } else { format!(" alias {}", arm.alias) };
    if arm.weight > 0.0 { format!("{who}, weight {}", arm.weight) } else { who }
}

/// Microseconds in the largest unit that divides them.
fn duration(us: i64) -> String {
    let units = [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    units
        .iter()
        .find(|(_, size)| us % size == 0)
        .map_or(format!("{us}us"), |(unit, size)| format!("{}{unit}", us / size))
}
