//! `cairn model …`: register, list, show, promote, history, download.

use super::Session;
use super::args::{ModelCommand, ModelRef, PromoteArgs, RegisterArgs};
use super::failure::{Failure, Outcome};
use super::output::{self, size, time, time_json};
use super::progress::{Progress, Unit};
use cairn_client::registry::{Expected, Promotion, VersionOf};
use cairn_client::{ErrorKind, api};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Of a version, the newest.
const BACKTESTS_SHOWN: u32 = 5;

pub async fn run(session: &Session, command: ModelCommand) -> Outcome {
    match command {
        ModelCommand::Register(args) => register(session, args).await,
        ModelCommand::List => list(session).await,
        ModelCommand::Show { model } => show(session, &model).await,
        ModelCommand::Promote(args) => promote(session, &args).await,
        ModelCommand::History { model } => history(session, &model).await,
        ModelCommand::Download { model, out } => download(session, &model, out).await,
    }
}

async fn register(session: &Session, args: RegisterArgs) -> Outcome {
    let file_name = args.file.file_name().and_then(|name| name.to_str());
    let file_name = file_name.ok_or_else(|| Failure::input(format!("`{}` names no file", args.file.display())))?;
    let bytes = std::fs::metadata(&args.file).map_or(0, |found| found.len());
    let progress = Arc::new(Progress::start("uploading", Unit::Bytes, bytes));
    let shown = Arc::clone(&progress);
    let uploaded = session.client.upload_file(&args.file, Some(Arc::new(move |sent| shown.at(sent)))).await;
    progress.clear();
    let artifact = uploaded?;
    let request = api::RegisterModelVersionRequest {
        project: session.project().to_owned(),
        model: args.model.clone(),
        artifact_root: artifact.root.clone(),
        file_name: file_name.to_owned(),
        metrics: no_duplicates("metric", args.metrics)?.into_iter().collect(),
        feature_service: args.service.unwrap_or_default(),
        token: args.trained_on.unwrap_or_default(),
        code_commit: args.code_commit.unwrap_or_default(),
        run: args.run.unwrap_or_default(),
        tags: no_duplicates("tag", args.tags)?.into_iter().collect(),
        author: args.author,
        description: args.description.unwrap_or_default(),
        request_id: String::new(),
    };
    let look = format!("the outcome is unknown: `cairn model show {}` tells whether the version is there", args.model);
    let registered = session.client.register_model(request).await;
    let version = registered.map_err(|error| Failure::from(error).hint_when(ErrorKind::Timeout, look))?;
    let text = || {
        let stored = match artifact.bytes_stored {
            0 => "every byte was stored before".to_owned(),
            stored => format!("{} of it new", size(stored)),
        };
        let total = size(version.artifact_bytes);
        let head = format!("registered {}@{}: {total}, {stored}\n", version.model, version.version);
        head + &version_text(&version)
    };
    let json = || {
        let mut value = version_json(&version);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("bytes_stored".to_owned(), Value::from(artifact.bytes_stored));
        }
        value
    };
    output::answer(session.global.output, text, json)
}

fn no_duplicates<T>(what: &str, pairs: Vec<(String, T)>) -> Result<BTreeMap<String, T>, Failure> {
    let mut map = BTreeMap::new();
    for (name, value) in pairs {
        if map.contains_key(&name) {
            return Err(Failure::input(format!("{what} `{name}` is given twice")));
        }
        map.insert(name, value);
    }
    Ok(map)
}

async fn list(session: &Session) -> Outcome {
    let models = session.client.models(session.project()).await?;
    let text = || {
        let rows = models.iter().map(|model| {
            let newest = model.versions.iter().max_by_key(|version| version.version);
            vec![
                model.name.clone(),
                newest.map_or_else(String::new, |version| version.version.to_string()),
                aliases(model),
                newest.map_or_else(|| model.feature_service.clone(), service),
                newest.map_or_else(String::new, |version| time(version.created_us)),
            ]
        });
        output::columns(&["MODEL", "NEWEST", "ALIASES", "SERVICE", "REGISTERED"], &["NEWEST"], rows)
    };
    let json = || json!({"models": models.iter().map(model_json).collect::<Vec<_>>()});
    output::answer(session.global.output, text, json)
}

async fn show(session: &Session, asked: &ModelRef) -> Outcome {
    if asked.which.is_some() {
        let version = version_of(session, asked).await?;
        let (name, number) = (version.model.as_str(), version.version);
        let found = session.client.backtests(session.project(), name, number, BACKTESTS_SHOWN).await;
        let backtests = match found {
            Ok(found) => found.backtests,
            // A node that keeps none.
            Err(error) if error.kind() == ErrorKind::Unsupported => Vec::new(),
            Err(error) => return Err(unknown(error)),
        };
        let text = || {
            let backtests = super::backtest::of_version(&backtests, name, number);
            format!("{name}@{number}\n{}{backtests}", version_text(&version))
        };
        let json = || {
            let mut value = version_json(&version);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("backtests".to_owned(), backtests.iter().map(|it| it.id).collect());
            }
            value
        };
        return output::answer(session.global.output, text, json);
    }
    let model = session.client.model(session.project(), &asked.name).await.map_err(unknown)?;
    output::answer(session.global.output, || model_text(&model), || model_json(&model))
}

async fn promote(session: &Session, args: &PromoteArgs) -> Outcome {
    let ask = Promotion {
        project: session.project(),
        model: &args.model,
        alias: &args.alias,
        version: args.version,
        expected: args.expect.unwrap_or(Expected::Anything),
        author: &args.author,
        reason: &args.reason,
    };
    let model = &args.model;
    let moved = session.client.promote(&ask).await.map_err(|error| {
        let moved = format!("`cairn model history {model}` tells who moved it and why");
        let look = format!("the outcome is unknown: `cairn model history {model}` tells whether it moved");
        unknown(error).hint_when(ErrorKind::Conflict, moved).hint_when(ErrorKind::Timeout, look)
    })?;
    let text = || {
        let from = match moved.from_version {
            0 => "new".to_owned(),
            from => format!("was {model}@{from}"),
        };
        format!("{} -> {model}@{} ({from}), token {}\n", moved.alias, moved.to_version, moved.token)
    };
    output::answer(session.global.output, text, || move_json(&moved))
}

async fn history(session: &Session, model: &str) -> Outcome {
    let moves = session.client.alias_history(session.project(), model).await.map_err(unknown)?;
    let version = |number: u32| if number == 0 { "none".to_owned() } else { number.to_string() };
    let text = || {
        let rows = moves.iter().map(|moved| {
            let (from, to) = (version(moved.from_version), version(moved.to_version));
            vec![time(moved.moved_us), moved.alias.clone(), from, to, moved.author.clone(), moved.reason.clone()]
        });
        output::columns(&["MOVED", "ALIAS", "FROM", "TO", "BY", "REASON"], &["FROM", "TO"], rows)
    };
    let json = || json!({"model": model, "moves": moves.iter().map(move_json).collect::<Vec<_>>()});
    output::answer(session.global.output, text, json)
}

async fn download(session: &Session, asked: &ModelRef, out: Option<PathBuf>) -> Outcome {
    if asked.which.is_none() {
        let name = &asked.name;
        return Err(Failure::input(format!("which version of `{name}`? write `{name}@1` or `{name}:champion`")));
    }
    let version = version_of(session, asked).await?;
    let out = match out {
        Some(out) => out,
        None => default_file(&version)?,
    };
    let progress = Arc::new(Progress::start("downloading", Unit::Bytes, version.artifact_bytes));
    let shown = Arc::clone(&progress);
    let fetched = session
        .client
        .download_file(&version.artifact_root, &out, Some(Arc::new(move |received| shown.at(received))))
        .await;
    progress.clear();
    let bytes = fetched?;
    let text = || {
        let (model, number, bytes) = (&version.model, version.version, size(bytes));
        format!("{model}@{number} in `{}`: {bytes}, verified against {}\n", out.display(), version.artifact_root)
    };
    let json = || {
        json!({
            "model": version.model,
            "version": version.version,
            "out": out,
            "bytes": bytes,
            "artifact_root": version.artifact_root,
        })
    };
    output::answer(session.global.output, text, json)
}

/// The name a version was registered with, in this folder: a name with a path in it is not followed.
fn default_file(version: &api::ModelVersion) -> Result<PathBuf, Failure> {
    let name = PathBuf::from(&version.file_name);
    let plain = name.file_name().is_some_and(|last| last == name.as_os_str());
    if !plain {
        return Err(Failure::input(format!("`{}` is no plain file name; say where with -o FILE", version.file_name)));
    }
    if name.exists() {
        return Err(Failure::input(format!("`{}` is there already; say where with -o FILE", version.file_name)));
    }
    Ok(name)
}

async fn version_of(session: &Session, asked: &ModelRef) -> Result<api::ModelVersion, Failure> {
    let which = asked.which.clone().unwrap_or(VersionOf::Number(0));
    session.client.model_version(session.project(), &asked.name, &which).await.map_err(unknown)
}

fn unknown(error: cairn_client::Error) -> Failure {
    Failure::from(error)
        .hint_when(ErrorKind::NotFound, "`cairn model list` and `cairn model show NAME` tell what there is")
}

fn service(version: &api::ModelVersion) -> String {
    match (version.feature_service.as_str(), version.feature_service_version) {
        ("", _) => String::new(),
        (name, 0) => name.to_owned(),
        (name, number) => format!("{name}@{number}"),
    }
}

/// `champion=2, previous=1`.
fn aliases(model: &api::RegisteredModel) -> String {
    let sorted: BTreeMap<_, _> = model.aliases.iter().collect();
    let written: Vec<_> = sorted.into_iter().map(|(alias, version)| format!("{alias}={version}")).collect();
    written.join(", ")
}

fn metrics(version: &api::ModelVersion) -> String {
    let sorted: BTreeMap<_, _> = version.metrics.iter().collect();
    let written: Vec<_> = sorted.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    written.join(", ")
}

fn tensors(specs: &[api::TensorSpec]) -> String {
    let one = |spec: &api::TensorSpec| {
        let size = |size: &i64| if *size < 0 { "?".to_owned() } else { size.to_string() };
        let shape: Vec<_> = spec.shape.iter().map(size).collect();
        format!("{} {}[{}]", spec.name, spec.datatype, shape.join(","))
    };
    specs.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn model_text(model: &api::RegisteredModel) -> String {
    let mut text = format!("{}\n", model.name);
    for (name, value) in [("description", &model.description), ("aliases", &aliases(model))] {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<12} {value}");
        }
    }
    if model.versions.is_empty() {
        let _ = writeln!(text, "  no versions yet; `cairn model register {} FILE.onnx` makes the first", model.name);
        return text;
    }
    let mut versions: Vec<_> = model.versions.iter().collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    let rows = versions.into_iter().map(|version| {
        let mut aliases = version.aliases.clone();
        aliases.sort();
        vec![
            version.version.to_string(),
            aliases.join(", "),
            metrics(version),
            service(version),
            version.artifact_root.chars().take(12).collect(),
            time(version.created_us),
        ]
    });
    let header = ["VERSION", "ALIASES", "METRICS", "SERVICE", "ARTIFACT", "REGISTERED"];
    text + "\n" + &output::columns(&header, &["VERSION"], rows)
}

/// Whether a token tells of rows; the registry writes its own position, in group 0, where nobody said what a model was
/// trained on.
fn is_rows(token: &str) -> bool {
    token.split(',').any(|position| !position.starts_with("0@"))
}

/// What is known of a version, a line each; what was not said is left out.
fn version_text(version: &api::ModelVersion) -> String {
    let tags: BTreeMap<_, _> = version.tags.iter().collect();
    let tags: Vec<_> = tags.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut aliases = version.aliases.clone();
    aliases.sort();
    let lines = [
        ("description", version.description.clone()),
        ("aliases", aliases.join(", ")),
        ("artifact", version.artifact_root.clone()),
        ("sha256", version.artifact_sha256.clone()),
        ("file", format!("{} ({}, {})", version.file_name, version.format, size(version.artifact_bytes))),
        ("inputs", tensors(&version.inputs)),
        ("outputs", tensors(&version.outputs)),
        ("service", service(version)),
        (if is_rows(&version.token) { "trained on" } else { "token" }, version.token.clone()),
        ("metrics", metrics(version)),
        ("tags", tags.join(", ")),
        ("code commit", version.code_commit.clone()),
        ("run", version.run.clone()),
        ("registered", time(version.created_us)),
        ("by", version.author.clone()),
    ];
    let mut text = String::new();
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "  {name:<12} {value}");
    }
    text
}

fn model_json(model: &api::RegisteredModel) -> Value {
    let aliases: BTreeMap<_, _> = model.aliases.iter().collect();
    json!({
        "project": model.project,
        "name": model.name,
        "description": model.description,
        "feature_service": model.feature_service,
        "aliases": aliases,
        "versions": model.versions.iter().map(version_json).collect::<Vec<_>>(),
    })
}

fn version_json(version: &api::ModelVersion) -> Value {
    let specs = |specs: &[api::TensorSpec]| -> Vec<Value> {
        specs.iter().map(|one| json!({"name": one.name, "datatype": one.datatype, "shape": one.shape})).collect()
    };
    let metrics: BTreeMap<_, _> = version.metrics.iter().collect();
    let tags: BTreeMap<_, _> = version.tags.iter().collect();
    json!({
        "project": version.project,
        "model": version.model,
        "version": version.version,
        "aliases": version.aliases,
        "artifact_root": version.artifact_root,
        "artifact_sha256": version.artifact_sha256,
        "artifact_bytes": version.artifact_bytes,
        "file_name": version.file_name,
        "format": version.format,
        "inputs": specs(&version.inputs),
        "outputs": specs(&version.outputs),
        "metrics": metrics,
        "tags": tags,
        "feature_service": version.feature_service,
        "feature_service_version": version.feature_service_version,
        "token": version.token,
        "code_commit": version.code_commit,
        "run": version.run,
        "author": version.author,
        "description": version.description,
        "created": time_json(version.created_us),
    })
}

fn move_json(moved: &api::AliasMove) -> Value {
    json!({
        "alias": moved.alias,
        "from_version": moved.from_version,
        "to_version": moved.to_version,
        "moved": time_json(moved.moved_us),
        "author": moved.author,
        "reason": moved.reason,
        "token": moved.token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn version(number: u32, aliases: &[&str]) -> api::ModelVersion {
        let tensor = |name: &str, shape: &[i64]| api::TensorSpec {
            name: name.into(),
            datatype: "FP32".into(),
            shape: shape.to_vec(),
        };
        api::ModelVersion {
            project: "default".into(),
            model: "delay".into(),
            version: number,
            artifact_root: "ab".repeat(32),
            artifact_bytes: 1_500,
            file_name: "delay.onnx".into(),
            format: "onnx".into(),
            inputs: vec![tensor("x", &[-1, 12])],
            outputs: vec![tensor("p", &[-1])],
            metrics: [("loss".to_owned(), 0.25), ("auc".to_owned(), 0.71)].into(),
            feature_service: "delay".into(),
            feature_service_version: 1,
            token: "1@204".into(),
            tags: [("team".to_owned(), "ops".to_owned())].into(),
            created_us: 1_357_041_780_000_000,
            author: "ada".into(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            ..api::ModelVersion::default()
        }
    }

    #[test]
    fn a_version_tells_all_that_was_said() {
        expect![[r#"
            delay@2
              aliases      champion
              artifact     abababababababababababababababababababababababababababababababab
              file         delay.onnx (onnx, 1.46 KiB)
              inputs       x FP32[?,12]
              outputs      p FP32[?]
              service      delay@1
              trained on   1@204
              metrics      auc=0.71, loss=0.25
              tags         team=ops
              registered   2013-01-01T12:03:00Z
              by           ada
        "#]]
        .assert_eq(&format!("delay@2\n{}", version_text(&version(2, &["champion"]))));
    }

    #[test]
    fn a_model_lists_its_newest_version_first() {
        let model = api::RegisteredModel {
            name: "delay".into(),
            description: "late by 15 minutes".into(),
            versions: vec![version(1, &["previous"]), version(2, &["champion"])],
            aliases: [("previous".to_owned(), 1), ("champion".to_owned(), 2)].into(),
            ..api::RegisteredModel::default()
        };
        expect![[r#"
            delay
              description  late by 15 minutes
              aliases      champion=2, previous=1

            VERSION  ALIASES   METRICS              SERVICE  ARTIFACT      REGISTERED
                  2  champion  auc=0.71, loss=0.25  delay@1  abababababab  2013-01-01T12:03:00Z
                  1  previous  auc=0.71, loss=0.25  delay@1  abababababab  2013-01-01T12:03:00Z
        "#]]
        .assert_eq(&model_text(&model));
        let json = model_json(&model);
        assert_eq!(json["aliases"], json!({"champion": 2, "previous": 1}));
        assert_eq!(json["versions"][1]["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1, 12]}]));
    }

    #[test]
    fn a_file_name_from_the_registry_is_not_a_path() {
        for name in ["../delay.onnx", "/etc/passwd", "a/b", "", ".."] {
            let version = api::ModelVersion { file_name: name.into(), ..version(1, &[]) };
            assert!(default_file(&version).is_err(), "{name}");
        }
        let version = api::ModelVersion { file_name: "no-such-file-here.onnx".into(), ..version(1, &[]) };
        assert_eq!(default_file(&version).unwrap(), PathBuf::from("no-such-file-here.onnx"));
    }

    #[test]
    fn a_metric_given_twice_is_refused() {
        let twice = vec![("auc".to_owned(), 0.7), ("auc".to_owned(), 0.8)];
        assert!(no_duplicates("metric", twice).is_err());
    }
}
