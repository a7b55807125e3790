//! `cairn lineage`: the graph around one thing, drawn as a tree from it.

use super::Session;
use super::args::LineageArgs;
use super::failure::{Failure, Outcome};
use super::output::{self, time_json};
use cairn_client::registry::Direction;
use cairn_client::{ErrorKind, api};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

pub async fn lineage(session: &Session, args: &LineageArgs) -> Outcome {
    let direction = if args.down { Direction::Down } else { Direction::Up };
    let found = session.client.lineage(session.project(), &args.start, direction, args.depth).await;
    let names = "nodes are named such as `model_version:default/delay@1` or `feature_view:default/driver_stats@1`";
    let edges = found.map_err(|error| {
        Failure::from(error).hint_when(ErrorKind::NotFound, names).hint_when(ErrorKind::InvalidArgument, names)
    })?;
    let json = || {
        let edge = |edge: &api::LineageEdge| json!({"from": edge.from, "to": edge.to, "kind": edge.kind, "at": time_json(edge.at_us)});
        json!({
            "node": args.start,
            "direction": if args.down { "down" } else { "up" },
            "edges": edges.iter().map(edge).collect::<Vec<_>>(),
        })
    };
    output::answer(session.global.output, || tree(&args.start, direction, &edges), json)
}

/// Each node with the kind of edge that leads to it. What was drawn before is named again and not drawn again, so a
/// graph where paths meet stays as small as it is.
fn tree(root: &str, direction: Direction, edges: &[api::LineageEdge]) -> String {
    let mut next: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for edge in edges {
        let (at, towards) = match direction {
            Direction::Up => (&edge.to, &edge.from),
            Direction::Down => (&edge.from, &edge.to),
        };
        next.entry(at).or_default().insert((towards, &edge.kind));
    }
    let mut text = format!("{root}\n");
    if !next.contains_key(root) {
        text.push_str(match direction {
            Direction::Up => "(nothing recorded that it was made from)\n",
            Direction::Down => "(nothing recorded that was made from it)\n",
        });
        return text;
    }
    let mut drawn = BTreeSet::from([root]);
    // A stack, not recursion: a chain may be as long as `--depth` and the data are not ours.
    let mut todo: Vec<(String, Vec<(&str, &str)>)> = vec![(String::new(), children(&next, root))];
    while let Some((indent, siblings)) = todo.last_mut() {
        let Some((node, kind)) = siblings.pop() else {
            todo.pop();
            continue;
        };
        let last = siblings.is_empty();
        let branch = if last { "└── " } else { "├── " };
        let inner = format!("{indent}{}", if last { "    " } else { "│   " });
        let deeper = children(&next, node);
        let again = !drawn.insert(node) && !deeper.is_empty();
        text.push_str(&format!("{indent}{branch}{node}  ({kind}){}\n", if again { "  … as above" } else { "" }));
        if !again && !deeper.is_empty() {
            todo.push((inner, deeper));
        }
    }
    text
}

/// The neighbours of a node, the first one last, to be popped in order.
fn children<'a>(next: &BTreeMap<&'a str, BTreeSet<(&'a str, &'a str)>>, node: &str) -> Vec<(&'a str, &'a str)> {
    next.get(node).into_iter().flatten().rev().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn edge(from: &str, to: &str, kind: &str) -> api::LineageEdge {
        api::LineageEdge { from: from.into(), to: to.into(), kind: kind.into(), at_us: 0 }
    }

    fn edges() -> Vec<api::LineageEdge> {
        vec![
            edge("feature_view:default/plane@1", "feature_service:default/delay@1", "reads"),
            edge("feature_view:default/weather@1", "feature_service:default/delay@1", "reads"),
            edge("feature_service:default/delay@1", "model_version:default/delay@1", "trained_on"),
            edge("artifact:abab", "model_version:default/delay@1", "artifact_of"),
            edge("feature_service:default/delay@1", "deployment:default/delay", "reads"),
            edge("model_version:default/delay@1", "deployment:default/delay", "serves"),
        ]
    }

    #[test]
    fn up_shows_what_it_was_made_from() {
        expect![[r#"
            deployment:default/delay
            ├── feature_service:default/delay@1  (reads)
            │   ├── feature_view:default/plane@1  (reads)
            │   └── feature_view:default/weather@1  (reads)
            └── model_version:default/delay@1  (serves)
                ├── artifact:abab  (artifact_of)
                └── feature_service:default/delay@1  (trained_on)  … as above
        "#]]
        .assert_eq(&tree("deployment:default/delay", Direction::Up, &edges()));
    }

    #[test]
    fn down_shows_what_was_made_from_it() {
        expect![[r#"
            artifact:abab
            └── model_version:default/delay@1  (artifact_of)
                └── deployment:default/delay  (serves)
        "#]]
        .assert_eq(&tree("artifact:abab", Direction::Down, &edges()));
    }

    #[test]
    fn a_circle_ends() {
        let circle = [edge("a", "b", "x"), edge("b", "a", "x")];
        expect![[r#"
            a
            └── b  (x)
                └── a  (x)  … as above
        "#]]
        .assert_eq(&tree("a", Direction::Down, &circle));
    }

    #[test]
    fn a_lonely_node_says_so() {
        expect![[r#"
            artifact:abab
            (nothing recorded that it was made from)
        "#]]
        .assert_eq(&tree("artifact:abab", Direction::Up, &[]));
    }
}
