//! Line plots as plain SVG: how cost grows.

use std::fmt::Write as _;

/// A plot with logarithmic axes.
pub struct Plot {
    /// Name of the file, without its end.
    pub file: &'static str,
    /// What it shows.
    pub title: String,
    /// What grows, with its unit.
    pub across: &'static str,
    /// What it costs, with its unit.
    pub up: &'static str,
    lines: Vec<(String, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

/// Colours that people who see few of them can tell apart.
const COLOURS: &[&str] = &["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One axis: values to positions on the page.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low.is_finite() { (low, high) } else { (1.0, 10.0) };
        // Room for the reader to see a flat line as flat: a factor of four at least.
        let (low, high) = if high / low < 4.0 { (low / 2.0, high * 2.0) } else { (low, high) };
        Self { low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }

    /// Powers of two, or of more if there would be too many.
    fn ticks(&self) -> Vec<f64> {
        const MOST: f64 = 12.0;
        let doublings = (self.high / self.low).log2();
        let step = (doublings / MOST).ceil().max(1.0);
        let first = (self.low.log2() / step).ceil() as i32;
        let last = (self.high.log2() / step).floor() as i32;
        (first..=last).map(|power| (f64::from(power) * step).exp2()).collect()
    }
}

impl Plot {
    /// An empty plot.
    pub fn new(
        file: &'static str,
        title: impl Into<String>,
        across: &'static str,
        up: &'static str,
    ) -> Self {
        Self { file, title: title.into(), across, up, lines: Vec::new() }
    }

    /// Adds a line.
    pub fn add(&mut self, name: String, points: Vec<(f64, f64)>) {
        self.lines.push((name, points));
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|(_, points)| points.iter().copied());
        let across = Axis::new(all().map(|(x, _)| x), LEFT, WIDTH - RIGHT);
        let up = Axis::new(all().map(|(_, y)| y), HEIGHT - BOTTOM, TOP);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        self.frame(&mut out, &across, &up);
        for (index, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let path: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", across.place(*x), up.place(*y)))
                .collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" "),
            );
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
                LEFT + 10.0,
                TOP + 16.0 + 16.0 * index as f64,
                escaped(name),
            );
        }
        out.push_str("</svg>\n");
        out
    }

    fn frame(&self, out: &mut String, across: &Axis, up: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in across.ticks() {
            let x = across.place(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                short(tick),
            );
        }
        for tick in up.ticks() {
            let y = up.place(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                short(tick),
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"24\" font-size=\"14\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(&self.title),
            f64::midpoint(LEFT, right),
            HEIGHT - 16.0,
            escaped(self.across),
            f64::midpoint(TOP, bottom),
            escaped(self.up),
        );
    }
}

/// A tick in few characters: 65536 is `64k`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1_048_576.0 => format!("{}M", v / 1_048_576.0),
        v if v >= 1024.0 => format!("{}k", v / 1024.0),
        v => format!("{v}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_inside_the_frame() {
        let mut plot = Plot::new("test", "a < b", "bytes", "ns");
        plot.add("line".into(), vec![(64.0, 10.0), (1024.0, 11.0), (1_048_576.0, 900.0)]);
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b") && svg.contains(">1M<"), "{svg}");
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        let points: Vec<&str> = points.expect("a line").split(' ').collect();
        assert_eq!(points.len(), 3);
        assert_eq!(points[0], format!("{LEFT:.1},{:.1}", HEIGHT - BOTTOM));
        assert_eq!(points[2], format!("{:.1},{TOP:.1}", WIDTH - RIGHT));
    }
}
