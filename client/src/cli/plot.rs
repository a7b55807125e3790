//! A metric by window as an SVG drawing: axes, a line for each model, a legend. Readable on light and on dark ground.

use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
/// Around the field: left, right, top, bottom.
const MARGINS: [f64; 4] = [64.0, 24.0, 76.0, 52.0];
/// Labels below the field, at most.
const LABELS_MAX: usize = 12;
/// Points are drawn while there are no more windows than this.
const POINTS_MAX: usize = 120;
/// Okabe and Ito's colours, which people with any colour vision tell apart; on light ground, and on dark.
const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9d4d"),
    ("#009e73", "#3ddbb0"),
    ("#cc79a7", "#e8a9cb"),
    ("#8a6d00", "#f0e442"),
    ("#56b4e9", "#0090dd"),
    ("#7a4fa3", "#b69be0"),
    ("#555555", "#bbbbbb"),
];

/// What is drawn.
#[derive(Debug, Default)]
pub struct Plot {
    pub title: String,
    /// A second, smaller line.
    pub subtitle: String,
    /// Name of the metric.
    pub axis: String,
    /// Of the windows, in order.
    pub labels: Vec<String>,
    pub lines: Vec<Line>,
}

/// A model's values, one for each window; `None` where there is none.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// Whole steps of a scale: its first and last value, and the way between two.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// A scale with about five round steps around the values.
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
        if !low.is_finite() || !high.is_finite() {
            return Self { low: 0.0, high: 1.0, step: 0.2 };
        }
        let span = if high > low { high - low } else { low.abs().max(1.0) * 0.1 };
        let (low, high) = if high > low { (low, high) } else { (low - span / 2.0, high + span / 2.0) };
        let rough = span / 5.0;
        let tenfold = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|it| it * tenfold).find(|it| *it >= rough).unwrap_or(rough);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (low, step) = (self.low, self.step);
        let count = ((self.high - self.low) / self.step).round().clamp(0.0, 50.0) as u32;
        (0..=count).map(move |at| low + f64::from(at) * step)
    }

    /// With as many decimals as its steps have.
    fn label(&self, value: f64) -> String {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let decimals = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        // Minus zero is zero.
        let text = format!("{:.decimals$}", value + 0.0);
        if text.trim_start_matches('-').chars().all(|letter| "0.".contains(letter)) {
            return text.trim_start_matches('-').to_owned();
        }
        text
    }
}

impl Plot {
    /// The drawing.
    pub fn svg(&self) -> String {
        let [left, right, top, bottom] = MARGINS;
        let (field_right, field_bottom) = (WIDTH - right, HEIGHT - bottom);
        let scale = Scale::around(self.lines.iter().flat_map(|line| line.values.iter().copied().flatten()));
        let y = |value: f64| field_bottom - (value - scale.low) / (scale.high - scale.low) * (field_bottom - top);
        #[allow(clippy::cast_precision_loss)]
        let x = |window: usize| left + (window as f64 + 0.5) / self.labels.len().max(1) as f64 * (field_right - left);
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escaped(&self.title)
        );
        out += &style(self.lines.len());
        let _ = writeln!(out, "<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>");
        let _ = writeln!(out, "<text class=\"title\" x=\"{left}\" y=\"24\">{}</text>", escaped(&self.title));
        let _ = writeln!(out, "<text x=\"{left}\" y=\"42\">{}</text>", escaped(&self.subtitle));
        self.legend(&mut out, left, 62.0);
        for tick in scale.ticks() {
            let at = y(tick);
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{left} {at:.1}H{field_right}\"/>");
            let label = scale.label(tick);
            let _ = writeln!(out, "<text class=\"end\" x=\"{}\" y=\"{:.1}\">{label}</text>", left - 8.0, at + 4.0);
        }
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{left} {top}V{field_bottom}H{field_right}\"/>");
        let middle = (top + field_bottom) / 2.0;
        let _ = writeln!(
            out,
            "<text class=\"middle\" transform=\"translate(16 {middle:.1}) rotate(-90)\">{}</text>",
            escaped(&self.axis)
        );
        let every = self.labels.len().div_ceil(LABELS_MAX).max(1);
        for (window, label) in self.labels.iter().enumerate().step_by(every) {
            let at = x(window);
            let _ = writeln!(out, "<path class=\"axis\" d=\"M{at:.1} {field_bottom}v5\"/>");
            let below = field_bottom + 20.0;
            let _ = writeln!(out, "<text class=\"middle\" x=\"{at:.1}\" y=\"{below}\">{}</text>", escaped(label));
        }
        for (number, line) in self.lines.iter().enumerate() {
            draw(&mut out, line, number % COLOURS.len(), &x, &y);
        }
        out + "</svg>\n"
    }

    /// Names side by side, each behind a stroke of its colour.
    fn legend(&self, out: &mut String, left: f64, at: f64) {
        let mut x = left;
        for (number, line) in self.lines.iter().enumerate() {
            let colour = number % COLOURS.len();
            let _ = writeln!(out, "<path class=\"line c{colour}\" d=\"M{x:.1} {:.1}h22\"/>", at - 4.0);
            let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{at}\">{}</text>", x + 28.0, escaped(&line.name));
            #[allow(clippy::cast_precision_loss)]
            let width = line.name.chars().count() as f64 * 7.0;
            x += 28.0 + width + 20.0;
        }
    }
}

/// A line with a gap where a window has no value, and points where they do not crowd.
fn draw(out: &mut String, line: &Line, colour: usize, x: &dyn Fn(usize) -> f64, y: &dyn Fn(f64) -> f64) {
    let mut path = String::new();
    let mut points = String::new();
    let mut drawing = false;
    for (window, value) in line.values.iter().enumerate() {
        let Some(value) = value else {
            drawing = false;
            continue;
        };
        let (at_x, at_y) = (x(window), y(*value));
        let _ = write!(path, "{}{at_x:.1} {at_y:.1}", if drawing { 'L' } else { 'M' });
        // A value between two gaps is a point in any case.
        let beside = |at: Option<usize>| at.and_then(|at| line.values.get(at).copied().flatten()).is_some();
        let lonely = !drawing && !beside(window.checked_add(1));
        if line.values.len() <= POINTS_MAX || lonely {
            let _ = write!(points, "<circle class=\"c{colour}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"2.5\"/>");
        }
        drawing = true;
    }
    if !path.is_empty() {
        let _ = writeln!(
            out,
            "<g><title>{}</title><path class=\"line c{colour}\" d=\"{path}\"/>{points}</g>",
            escaped(&line.name)
        );
    }
}

fn style(lines: usize) -> String {
    let colours = |pick: fn(&(&'static str, &'static str)) -> &'static str| -> String {
        let rule = |(number, pair): (usize, &(&'static str, &'static str))| {
            let colour = pick(pair);
            format!(".c{number}{{stroke:{colour};fill:{colour}}}")
        };
        COLOURS.iter().enumerate().take(lines).map(rule).collect()
    };
    format!(
        "<style>text{{font:12px system-ui,sans-serif;fill:#333}}.title{{font-size:15px;font-weight:600}}\
         .end{{text-anchor:end}}.middle{{text-anchor:middle}}.ground{{fill:#fff}}\
         .grid,.axis{{fill:none;stroke:#ddd}}.axis{{stroke:#888}}{}\
         .line{{fill:none;stroke-width:1.8;stroke-linejoin:round}}circle{{stroke:none}}\
         @media (prefers-color-scheme:dark){{text{{fill:#ddd}}.ground{{fill:#1b1b1b}}.grid{{stroke:#3a3a3a}}\
         .axis{{stroke:#999}}{}.line{{fill:none}}circle{{stroke:none}}}}</style>\n",
        colours(|pair| pair.0),
        colours(|pair| pair.1)
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no place for them, escaped or not.
            letter if letter.is_control() => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(lines: &[(&str, &[Option<f64>])]) -> Plot {
        let line = |(name, values): &(&str, &[Option<f64>])| Line { name: (*name).to_owned(), values: values.to_vec() };
        let windows = lines.first().map_or(0, |line| line.1.len());
        let labels = (0..windows).map(|window| format!("w{window}")).collect();
        let lines = lines.iter().map(line).collect();
        Plot { title: "AUC <by> window".into(), axis: "auc".into(), labels, lines, ..Plot::default() }
    }

    #[test]
    fn scales_have_round_steps_around_the_values() {
        let around = |values: &[f64]| Scale::around(values.iter().copied());
        assert_eq!(around(&[0.62, 0.71]), Scale { low: 0.62, high: 0.72, step: 0.02 });
        assert_eq!(around(&[0.0, 100.0]), Scale { low: 0.0, high: 100.0, step: 20.0 });
        assert_eq!(around(&[]), Scale { low: 0.0, high: 1.0, step: 0.2 });
        for values in [&[0.5][..], &[0.0], &[-3.0], &[1e9, 1e9], &[-1e-9, 1e-9], &[1e300, -1e300]] {
            let scale = around(values);
            let inside = values.iter().all(|value| scale.low <= *value && *value <= scale.high);
            assert!(inside && scale.step > 0.0 && scale.ticks().count() <= 12, "{values:?}: {scale:?}");
        }
        let labels = |scale: Scale| scale.ticks().map(|tick| scale.label(tick)).collect::<Vec<_>>();
        assert_eq!(labels(around(&[-0.1, 0.1])), ["-0.10", "-0.05", "0.00", "0.05", "0.10"]);
    }

    #[test]
    fn every_model_has_a_line_with_gaps_and_a_name() {
        let svg = plot(&[
            ("delay@1", &[Some(0.5), Some(0.6), None, Some(0.7)]),
            ("delay@2 & co", &[None, None, None, Some(0.8)]),
        ])
        .svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("AUC &lt;by&gt; window") && svg.contains("delay@2 &amp; co") && svg.contains(">w3<"));
        let path = |colour: &str| {
            let paths = svg.lines().filter_map(|line| line.strip_prefix("<g><title>"));
            let of = paths.filter(|line| line.contains(colour)).collect::<Vec<_>>();
            assert_eq!(of.len(), 1, "{svg}");
            let drawn = of[0].split_once(" d=\"").unwrap().1.split_once('"').unwrap().0.to_owned();
            (drawn.matches('M').count(), drawn.matches('L').count(), of[0].matches("<circle").count())
        };
        assert_eq!(path("class=\"line c0\""), (2, 1, 3), "two pieces of three points");
        assert_eq!(path("class=\"line c1\""), (1, 0, 1));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn few_labels_and_points_stand_below_many_windows() {
        let values: Vec<_> = (0..400).map(|window| Some(f64::from(window))).collect();
        let svg = plot(&[("m", &values)]).svg();
        assert!(svg.matches("v5\"").count() <= LABELS_MAX && !svg.contains("<circle"), "{svg}");
        let nothing = plot(&[]).svg();
        assert!(nothing.contains("</svg>") && !nothing.contains("NaN"), "{nothing}");
    }
}
