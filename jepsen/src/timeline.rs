//! The run as a page: what succeeded when, beside what was broken when.

use crate::history::{Fault, Moment, Outcome, Stamp};
use crate::mixed::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const WIDTH: f64 = 1_600.0;
const LEFT: f64 = 110.0;
const LANE: f64 = 44.0;
const FAULT_LANE: f64 = 16.0;
/// Columns of a lane, at most.
const COLUMNS: u64 = 800;

/// An HTML page without scripts; hovering over a fault tells what it was.
pub fn page(verdict: &Verdict, stamps: &[Stamp], faults: &[Fault]) -> String {
    let end = stamps.iter().map(|stamp| stamp.ended).chain(faults.iter().map(|fault| fault.ended)).max().unwrap_or(1);
    let x = |moment: Moment| LEFT + moment as f64 / end as f64 * (WIDTH - LEFT);
    let mut svg = String::new();
    let mut y = 10.0;
    let kinds: BTreeSet<&str> = faults.iter().map(|fault| fault.kind).collect();
    for kind in kinds {
        label(&mut svg, y + FAULT_LANE - 4.0, kind);
        for fault in faults.iter().filter(|fault| fault.kind == kind) {
            let width = (x(fault.ended) - x(fault.began)).max(1.0);
            let _ = write!(
                svg,
                "<rect class='fault' x='{:.1}' y='{y}' width='{width:.1}' height='{}'><title>{}</title></rect>",
                x(fault.began),
                FAULT_LANE - 3.0,
                escape(&fault.what)
            );
        }
        y += FAULT_LANE;
    }
    let step = (end / COLUMNS).max(100_000);
    for promise in &verdict.promises {
        let columns = columns(stamps, promise.name, step);
        let highest = columns.values().map(|counts| counts.iter().sum::<u32>()).max().unwrap_or(0);
        if highest == 0 {
            continue;
        }
        y += 8.0;
        label(&mut svg, y + LANE / 2.0, promise.name);
        for (column, counts) in columns {
            let (left, width) = (x(column * step), x((column + 1) * step) - x(column * step));
            let mut top = y + LANE;
            for (count, class) in counts.into_iter().zip(["ok", "unknown", "failed"]) {
                let height = f64::from(count) / f64::from(highest) * LANE;
                top -= height;
                if count > 0 {
                    let _ = write!(
                        svg,
                        "<rect class='{class}' x='{left:.1}' y='{top:.1}' width='{width:.1}' height='{height:.1}'/>"
                    );
                }
            }
        }
        y += LANE;
    }
    let seconds = end / 1_000_000;
    let tick = (seconds / 20).max(1);
    for second in (0..=seconds).step_by(usize::try_from(tick).unwrap_or(1)) {
        let _ = write!(svg, "<text x='{:.1}' y='{}'>{second} s</text>", x(second * 1_000_000), y + 18.0);
    }
    format!(
        "<!doctype html><meta charset='utf-8'><title>Cairn, seed {}</title><style>body{{font:13px sans-serif}}\
         svg text{{font-size:11px}}.ok{{fill:#4a9}}.unknown{{fill:#e8a317}}.failed{{fill:#d33}}.fault{{fill:#639}}</style>\
         <h1>{}</h1><p>Green: ok, yellow: unknown, red: failed, as a refused compare-and-set is. Purple: faults; point at \
         one to read what it was.</p>\
         <svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{}'>{svg}</svg><pre>{}</pre>",
        verdict.seed,
        if verdict.holds() { "Every promise held" } else { "Not every promise held" },
        y + 30.0,
        escape(&verdict.print())
    )
}

/// (ok, unknown, failed) that ended in each column.
fn columns(stamps: &[Stamp], name: &str, step: Moment) -> BTreeMap<u64, [u32; 3]> {
    let mut columns: BTreeMap<u64, [u32; 3]> = BTreeMap::new();
    for stamp in stamps.iter().filter(|stamp| stamp.workload == name) {
        let place = match stamp.outcome {
            Outcome::Ok => 0,
            Outcome::Unknown => 1,
            Outcome::Failed => 2,
        };
        columns.entry(stamp.ended / step).or_default()[place] += 1;
    }
    columns
}

fn label(svg: &mut String, y: f64, text: &str) {
    let _ = write!(svg, "<text x='0' y='{y}'>{}</text>", escape(text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}
