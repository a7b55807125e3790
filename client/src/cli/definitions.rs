//! `cairn plan`, `cairn apply`, `cairn definitions`.

use super::Session;
use super::args::FileArgs;
use super::failure::{Failure, Outcome};
use super::output;
use cairn_client::definitions::read_sources;
use cairn_client::{ErrorKind, api};
use serde_json::{Value, json};
use std::fmt::Write;

pub async fn plan(session: &Session, args: &FileArgs) -> Outcome {
    let reply = session.client.plan(session.project(), read_sources(&args.files)?).await?;
    let table = || {
        let mut text = listing(&reply.changes);
        if changes_anything(&reply.changes) {
            text.push_str("nothing was changed; `cairn apply` with the same files does it\n");
        }
        text
    };
    output::answer(session.global.output, table, || json!({"changes": changes_json(&reply.changes)}))
}

pub async fn apply(session: &Session, args: &FileArgs) -> Outcome {
    let applied = session.client.apply(session.project(), read_sources(&args.files)?).await;
    let again = "the outcome is unknown: run it again, applying the same files twice changes nothing more";
    let reply = applied.map_err(|error| {
        Failure::from(error).hint_when(ErrorKind::Timeout, again).hint_when(
            ErrorKind::Conflict,
            "somebody else changed the project meanwhile: `cairn plan`, then apply again",
        )
    })?;
    let table = || {
        let mut text = listing(&reply.changes);
        if !reply.token.is_empty() {
            let _ = writeln!(text, "token {}", reply.token);
        }
        text
    };
    let json = || json!({"changes": changes_json(&reply.changes), "token": reply.token});
    output::answer(session.global.output, table, json)
}

pub async fn list(session: &Session) -> Outcome {
    let rows = session.client.definitions(session.project()).await?;
    let table = || {
        let cells = rows.iter().map(|row| {
            let at = output::time(row.applied_us);
            vec![row.kind.clone(), row.name.clone(), row.version.to_string(), row.summary.clone(), at]
        });
        output::columns(&["KIND", "NAME", "VERSION", "SUMMARY", "APPLIED"], &["VERSION"], cells)
    };
    let json = || {
        let row = |row: &api::DefinitionRow| {
            json!({
                "kind": row.kind, "name": row.name, "version": row.version, "summary": row.summary,
                "applied": output::time_json(row.applied_us),
            })
        };
        json!({"definitions": rows.iter().map(row).collect::<Vec<_>>()})
    };
    output::answer(session.global.output, table, json)
}

fn changes_anything(changes: &[api::Change]) -> bool {
    changes.iter().any(|change| change.action != "unchanged")
}

/// The changes as a diff without colours: `+` new, `~` a new version, `!` what deserves a second look.
fn listing(changes: &[api::Change]) -> String {
    let mut text = String::new();
    for change in changes.iter().filter(|change| change.action != "unchanged") {
        let _ = match change.action.as_str() {
            "create" => writeln!(text, "+ {} {}@{}", change.kind, change.name, change.to_version),
            _ => writeln!(text, "~ {} {}@{} -> @{}", change.kind, change.name, change.from_version, change.to_version),
        };
        for line in &change.details {
            let _ = writeln!(text, "    {line}");
        }
        if change.loses_rows {
            let _ = writeln!(
                text,
                "  ! @{} starts without rows: ingest them again; @{} keeps its own",
                change.to_version, change.from_version
            );
        }
    }
    let number = |action: &str| changes.iter().filter(|change| change.action == action).count();
    let (created, unchanged) = (number("create"), number("unchanged"));
    let updated = changes.len() - created - unchanged;
    let _ = writeln!(text, "{created} new, {updated} changed, {unchanged} unchanged");
    text
}

fn changes_json(changes: &[api::Change]) -> Value {
    let change = |change: &api::Change| {
        json!({
            "kind": change.kind,
            "name": change.name,
            "action": change.action,
            "from_version": change.from_version,
            "to_version": change.to_version,
            "details": change.details,
            "loses_rows": change.loses_rows,
        })
    };
    changes.iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn change(kind: &str, name: &str, action: &str, versions: (u32, u32), details: &[&str]) -> api::Change {
        api::Change {
            kind: kind.into(),
            name: name.into(),
            action: action.into(),
            from_version: versions.0,
            to_version: versions.1,
            details: details.iter().map(|line| (*line).to_owned()).collect(),
            loses_rows: false,
        }
    }

    #[test]
    fn changes_read_like_a_diff() {
        let mut view =
            change("FeatureView", "driver_stats", "update", (1, 2), &["- feature x int64", "+ feature x string"]);
        view.loses_rows = true;
        let changes = [
            change("Entity", "driver", "unchanged", (1, 1), &[]),
            view,
            change("FeatureService", "eta", "create", (0, 1), &["+ feature driver_stats:x"]),
        ];
        expect![[r#"
            ~ FeatureView driver_stats@1 -> @2
                - feature x int64
                + feature x string
              ! @2 starts without rows: ingest them again; @1 keeps its own
            + FeatureService eta@1
                + feature driver_stats:x
            1 new, 1 changed, 1 unchanged
        "#]]
        .assert_eq(&listing(&changes));
        assert!(changes_anything(&changes));
        assert!(!changes_anything(&changes[..1]));
        expect![[r#"[{"action":"unchanged","details":[],"from_version":1,"kind":"Entity","loses_rows":false,"name":"driver","to_version":1}]"#]]
            .assert_eq(&changes_json(&changes[..1]).to_string());
    }
}
