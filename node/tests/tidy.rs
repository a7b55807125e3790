//! The project is what its map says: ARCHITECTURE.md against files, modules, dependencies, invariants and their tests.
//!
//! Each test names what differs and how to mend it. Nothing here knows what the code does; it only compares.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CODE_FOLDERS: [&str; 6] = ["proto", "storage", "node", "client", "bench", "jepsen"];
const TOP_FILES: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "Makefile", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "deny.toml"];
/// Lines of a Rust file.
const LINES_MAX: usize = 800;
/// Lines of a decision: one page.
const DECISION_LINES_MAX: usize = 60;
/// Who may depend on what names an engine: crate prefix, the one crate that may, and where its source may name it.
const ENGINES: [(&str, &str, &[&str]); 5] = [
    ("rocksdb", "cairn-storage", &["storage/src/engine.rs", "storage/src/engine/"]),
    ("openraft", "cairn-consensus", &["node/consensus/"]),
    ("datafusion", "cairn-query", &["node/query/"]),
    ("burn", "cairn-executor", &["node/executor/src/burn/"]),
    ("object_store", "cairn-node", &["node/src/segments/"]),
];

fn root() -> PathBuf {
    let node = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    Path::new(&node).parent().expect("node/ has a parent").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files of the project, relative to its root: what git tracks or would track, else what lies there.
fn files() -> Vec<String> {
    let git = Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output();
    let mut found = match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let listed = String::from_utf8_lossy(&output.stdout);
            listed.lines().filter(|path| root().join(path).is_file()).map(str::to_owned).collect()
        }
        _ => walk(Path::new("")),
    };
    found.sort();
    assert!(found.iter().any(|path| path == "Cargo.toml"), "{} does not look like the project", root().display());
    found
}

fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder of the project").flatten() {
        let path = folder.join(entry.file_name());
        if !entry.path().is_dir() {
            found.push(path.to_string_lossy().into_owned());
        } else if ![".git", ".venv", "target", "__pycache__"].iter().any(|skipped| entry.file_name() == **skipped) {
            found.extend(walk(&path));
        }
    }
    found
}

fn none(problems: &[String], fix: &str) {
    assert!(problems.is_empty(), "\n  {}\n{fix}", problems.join("\n  "));
}

/// Texts between backticks, code blocks left out.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// Path dependencies of each crate of ours as ARCHITECTURE.md draws them: "tests" are dev-dependencies.
fn drawn_edges() -> BTreeMap<String, BTreeSet<String>> {
    let map = read("ARCHITECTURE.md");
    let block = map.split("```text edges\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = block.expect("ARCHITECTURE.md draws the edges in a block that begins with ```text edges").lines();
    lines
        .map(|line| {
            let (from, to) = line.split_once("->").unwrap_or((line, ""));
            let to = to.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
            (from.trim().to_owned(), to.collect())
        })
        .collect()
}

fn packages() -> Vec<serde_json::Value> {
    let output = cargo(&["metadata", "--offline", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&output).expect("cargo metadata prints JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn cargo(args: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    // Building all features of the workspace together may be asked for outside; here each crate is looked at alone.
    command.args(args).current_dir(root()).env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION");
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "cargo {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// (name, folder) of each crate of ours.
fn crates() -> Vec<(String, String)> {
    let root = root();
    let of = |package: &serde_json::Value| {
        let manifest = PathBuf::from(package["manifest_path"].as_str()?);
        let folder = manifest.parent()?.strip_prefix(&root).ok()?.to_string_lossy().into_owned();
        Some((package["name"].as_str()?.to_owned(), folder))
    };
    packages().iter().map(|package| of(package).expect("a crate of ours")).collect()
}

/// Module names that begin the bullets of a crate's section of the map: "- `a`, `b`: what".
fn mapped_modules(crate_name: &str, folder: &str) -> BTreeSet<String> {
    let map = read("ARCHITECTURE.md");
    let head = format!("### {folder}/ ({crate_name})\n");
    let section = map.split(&head).nth(1);
    let section = section.unwrap_or_else(|| panic!("ARCHITECTURE.md has no section `{}`", head.trim()));
    let section = section.split("\n#").next().unwrap_or_default();
    let bullets = section.lines().filter_map(|line| line.strip_prefix("- "));
    // Later parts of a bullet may introduce modules too: "; `plan`: the graph as steps".
    let heads = bullets.flat_map(|bullet| bullet.split("; ")).filter_map(|part| part.split_once(':'));
    heads.flat_map(|(head, _)| head.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

#[test]
fn the_map_names_only_paths_that_exist() {
    let mut problems = Vec::new();
    for page in ["ARCHITECTURE.md", "README.md"] {
        for path in quoted(&read(page)) {
            let ours = path.split_once('/').is_some_and(|(top, _)| CODE_FOLDERS.contains(&top) || top == ".ci");
            if ours && !path.contains(' ') && !root().join(path).exists() {
                problems.push(format!("{page} names `{path}`"));
            }
        }
    }
    none(&problems, "These are not there: name what took their place.");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut problems = Vec::new();
    for page in files().into_iter().filter(|path| path.ends_with(".md")) {
        let text = read(&page);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            let there = root().join(&page).parent().is_some_and(|folder| folder.join(path).exists());
            if !target.contains("://") && !path.is_empty() && !there {
                problems.push(format!("{page} links to {target}"));
            }
        }
    }
    none(&problems, "These links lead nowhere: mend or remove them.");
}

#[test]
fn every_module_is_on_the_map() {
    let mut problems = Vec::new();
    let all = files();
    for (name, folder) in crates() {
        let source = format!("{folder}/src/");
        let tops = all.iter().filter_map(|path| path.strip_prefix(&source));
        let there: BTreeSet<String> = tops
            .filter(|path| path.contains('/') || path.ends_with(".rs"))
            .filter_map(|path| path.split('/').next())
            .map(|top| top.trim_end_matches(".rs").to_owned())
            .filter(|module| !["lib", "main", "tests"].contains(&module.as_str()))
            .collect();
        let mapped = mapped_modules(&name, &folder);
        problems.extend(there.difference(&mapped).map(|module| format!("`{module}` of {name} is not on the map")));
        problems.extend(mapped.difference(&there).map(|module| format!("`{module}` of {name} is on the map only")));
    }
    none(&problems, "Add, rename or remove its bullet in the crate's section of ARCHITECTURE.md.");
}

#[test]
fn edges_between_crates_are_those_drawn() {
    let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default();
        there.entry(name.to_owned()).or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["path"].is_null() {
                continue;
            }
            let from = match dependency["kind"].as_str() {
                Some("dev") => format!("{name} tests"),
                Some(kind) => format!("{name} {kind}"),
                None => name.to_owned(),
            };
            there.entry(from).or_default().insert(dependency["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    let drawn = drawn_edges();
    let mut problems = Vec::new();
    for from in there.keys().chain(drawn.keys()).collect::<BTreeSet<_>>() {
        let (in_cargo, on_map) = (there.get(from), drawn.get(from));
        if in_cargo != on_map {
            problems.push(format!("{from}: Cargo.toml says {in_cargo:?}, the map says {on_map:?}"));
        }
    }
    none(
        &problems,
        "An edge between crates is a decision: take it out, or draw it in ARCHITECTURE.md and write an ADR.",
    );
}

#[test]
fn applications_never_compile_an_engine() {
    let tree = cargo(&["tree", "-p", "cairn-client", "-e", "normal,build", "--offline", "--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("cairn-proto") && names.contains("tonic"), "not a dependency tree: {tree}");
    let mut problems = Vec::new();
    for name in names {
        let engine = ENGINES.iter().any(|(engine, ..)| name.contains(engine));
        let ours = name.starts_with("cairn-") && !["cairn-client", "cairn-proto"].contains(&name);
        if engine || ours {
            problems.push(name.to_owned());
        }
    }
    none(&problems, "cairn-client must not reach these (`cargo tree -p cairn-client -i NAME` shows through what).");
}

#[test]
fn each_engine_is_named_in_one_place() {
    let mut problems = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let wanted = dependency["name"].as_str().unwrap_or_default();
            if ENGINES.iter().any(|(engine, owner, _)| wanted.starts_with(engine) && *owner != name) {
                problems.push(format!("{name} depends on {wanted}"));
            }
        }
    }
    let paths = ["rocksdb::", "openraft::", "datafusion::", "burn_tensor::", "object_store::"];
    for file in files().iter().filter(|path| path.ends_with(".rs") && !path.ends_with("tests/tidy.rs")) {
        let text = read(file);
        for ((engine, _, places), path) in ENGINES.iter().zip(paths) {
            if text.contains(path) && !places.iter().any(|place| file.starts_with(place)) {
                problems.push(format!("{file} names {engine}; only {} may", places.join(", ")));
            }
        }
    }
    none(&problems, "Ask the crate that owns the engine for what you need.");
}

/// Rows of the invariants' table: id, and (test function, file) of each check.
fn invariants() -> BTreeMap<String, Vec<(String, String)>> {
    let map = read("ARCHITECTURE.md");
    let rows = map.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split('|').map(str::trim).collect();
        cells.first().filter(|id| is_id(id)).map(|id| ((*id).to_owned(), checks(cells.get(2).unwrap_or(&""))))
    });
    rows.collect()
}

fn is_id(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_uppercase())
        && !letters.as_str().is_empty()
        && letters.all(|digit| digit.is_ascii_digit())
}

/// "`a`, `b` in `file`, `c` in `other`" as (a, file), (b, file), (c, other).
fn checks(cell: &str) -> Vec<(String, String)> {
    let (mut found, mut waiting) = (Vec::new(), Vec::new());
    for name in cell.split('`').skip(1).step_by(2) {
        if name.contains('/') {
            found.extend(waiting.drain(..).map(|test| (test, name.to_owned())));
        } else {
            waiting.push(name.to_owned());
        }
    }
    found
}

/// Whether `text` has a test function of that name: its attributes stand right above it.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.contains(&format!("fn {name}(")));
    let above = at.and_then(|at| lines.get(..at)).into_iter().flat_map(|lines| lines.iter().rev());
    let mut above = above.take_while(|line| line.starts_with('#') || line.starts_with("//"));
    above.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

#[test]
fn bugs_on_purpose_are_nobodys_default() {
    let mut problems = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default();
        let wakes = |features: &serde_json::Value| {
            let mut features = features.as_array().into_iter().flatten().filter_map(|feature| feature.as_str());
            features.any(|feature| feature.contains("seeded-bugs"))
        };
        for (feature, enables) in package["features"].as_object().into_iter().flatten() {
            if feature != "seeded-bugs" && wakes(enables) {
                problems.push(format!("feature `{feature}` of {name}"));
            }
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if wakes(&dependency["features"]) {
                problems.push(format!("{name} on {}", dependency["name"]));
            }
        }
    }
    none(&problems, "`seeded-bugs` is named on the command line of `make jepsen-selftest` and nowhere else.");
}

#[test]
fn every_invariant_has_its_check() {
    let mut problems = Vec::new();
    let all = invariants();
    assert!(all.len() > 10, "the table of invariants in ARCHITECTURE.md was not found");
    for (id, checks) in &all {
        if checks.is_empty() {
            problems.push(format!("{id} names no test"));
        }
        for (test, file) in checks {
            if !fs::read_to_string(root().join(file)).is_ok_and(|text| has_test(&text, test)) {
                problems.push(format!("{id}: there is no test `{test}` in {file}"));
            }
        }
    }
    none(&problems, "Name the test that would fail if it were not so, or write it.");
}

#[test]
fn invariants_of_crates_and_map_are_the_same() {
    let mut stated = BTreeMap::new();
    for (_, folder) in crates() {
        let path = format!("{folder}/src/lib.rs");
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let ids = text.lines().filter_map(|line| line.strip_prefix("//! - ")?.split(' ').next());
        stated.extend(ids.filter(|id| is_id(id)).map(|id| (id.to_owned(), path.clone())));
    }
    let mapped = invariants();
    // A letter is a crate's; one that states its invariants by id states all of them.
    let letters: BTreeSet<char> = stated.keys().filter_map(|id| id.chars().next()).collect();
    let mut problems: Vec<String> = stated
        .iter()
        .filter(|(id, _)| !mapped.contains_key(*id))
        .map(|(id, path)| format!("{id} of {path} is not in ARCHITECTURE.md"))
        .collect();
    let missing =
        mapped.keys().filter(|id| id.starts_with(|letter| letters.contains(&letter)) && !stated.contains_key(*id));
    problems.extend(missing.map(|id| format!("{id} of ARCHITECTURE.md is in no lib.rs")));
    none(&problems, "State it in both, with the same id.");
}

#[test]
fn rust_files_stay_readable() {
    let mut problems = Vec::new();
    for file in files().iter().filter(|path| path.ends_with(".rs")) {
        let lines = read(file).lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{file} has {lines} lines"));
        }
    }
    none(&problems, &format!("Over {LINES_MAX} lines: one main idea a file; split it."));
}

#[test]
fn the_project_stands_alone() {
    // Written in pieces, so that this file passes its own test.
    let places = [["..", "/shared"], ["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["cairn-help", "ers"]]
        .map(|two| two.concat());
    let vague = ["hel", "per"].concat();
    let mut problems = Vec::new();
    for file in files() {
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue }; // not text
        for (at, line) in text.lines().enumerate() {
            let line_number = at + 1;
            if let Some(place) = places.iter().find(|place| line.contains(*place)) {
                problems.push(format!("{file}:{line_number} mentions {place}"));
            }
            let prose = [".rs", ".md", ".toml", ".proto", ".yaml"].iter().any(|end| file.ends_with(end));
            if prose && line.to_lowercase().contains(&vague) {
                problems.push(format!("{file}:{line_number} says `{vague}`, which names nothing: say what it does"));
            }
        }
    }
    none(&problems, "Nothing in the project may depend on one machine or on what lies beside the checkout.");
}

#[test]
fn the_top_level_is_the_designed_one() {
    let mut problems = Vec::new();
    let all = files();
    let folders: BTreeSet<&str> = all.iter().filter_map(|path| path.split_once('/')).map(|(top, _)| top).collect();
    let stray = folders.iter().filter(|folder| !folder.starts_with('.') && !CODE_FOLDERS.contains(folder));
    problems.extend(stray.map(|folder| format!("folder {folder}/ does not belong here")));
    let missing = CODE_FOLDERS.iter().filter(|folder| !folders.contains(*folder));
    problems.extend(missing.map(|folder| format!("folder {folder}/ is missing")));
    let tops = all.iter().filter(|path| !path.contains('/') && !path.starts_with('.'));
    let stray = tops.filter(|path| !TOP_FILES.contains(&path.as_str()));
    problems.extend(stray.map(|path| format!("file {path} does not belong here")));
    let missing = TOP_FILES.iter().filter(|path| !all.iter().any(|file| file == *path));
    problems.extend(missing.map(|path| format!("file {path} is missing")));
    none(
        &problems,
        "Put code into its crate's folder and settings into dot paths; ignore or remove what a run left behind.",
    );
}

#[test]
fn decisions_are_numbered_listed_and_one_page_long() {
    let folder = "node/docs/adr/";
    let (all, index) = (files(), read("node/docs/adr/README.md"));
    let pages: Vec<&str> =
        all.iter().filter_map(|path| path.strip_prefix(folder)).filter(|page| *page != "README.md").collect();
    let mut problems = Vec::new();
    for (at, page) in pages.iter().enumerate() {
        let number = format!("{:04}", at + 1);
        let text = read(&format!("{folder}{page}"));
        if !page.starts_with(&number) || !text.starts_with(&format!("# ADR-{number}: ")) {
            problems.push(format!("{page} should be number {number}, in its name and its title"));
        }
        if !index.contains(&format!("({page})")) {
            problems.push(format!("{page} is not in {folder}README.md"));
        }
        if text.lines().count() > DECISION_LINES_MAX {
            problems.push(format!("{page} is longer than a page of {DECISION_LINES_MAX} lines"));
        }
    }
    none(
        &problems,
        "Decisions are counted from 0001 without holes, listed in the README of their folder, one page each.",
    );
}

#[test]
fn the_changelog_has_a_place_for_what_is_not_released() {
    let changelog = read("CHANGELOG.md");
    let first = changelog.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some("## Unreleased"), "CHANGELOG.md begins with a section `## Unreleased`");
}
