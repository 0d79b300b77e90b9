//! Plots as inline SVG. Only lines and areas are in the SVG, which is stretched to its place; words stand beside it as HTML, so
//! that they keep their size on any screen. A plot is one image to who does not see it, with a sentence that says what it shows; its
//! numbers are in a table of their own.

use std::fmt::Write as _;

use super::units::{count, micros, rate};

/// From a value to a place between 0 and 1, and where the lines are.
pub(super) struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
    /// Place, label, and whether a small screen can do without it.
    ticks: Vec<(f64, String, bool)>,
}

impl Axis {
    /// Microseconds, each power of ten as high as the next.
    pub(super) fn of_latencies(shortest_us: f64, longest_us: f64) -> Self {
        let from = shortest_us.max(1.0).log10().floor();
        let to = longest_us.max(2.0).log10();
        let within = |exponent: f64| exponent <= to + 1e-9;
        let mut axis =
            Self { from, to: (to + 0.1).max(from + 1.0), is_log: true, ticks: Vec::new() };
        let decades = axis.to - axis.from;
        // few decades leave room for more lines
        let steps: &[f64] = if decades <= 3.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut decade = from;
        while within(decade) || decade <= axis.to {
            for step in steps {
                let us = step * 10_f64.powf(decade);
                let place = axis.at(us);
                if (0.0..=1.0).contains(&place) {
                    axis.ticks.push((place, tidy(&micros(us.round() as u64)), *step > 1.0));
                }
            }
            decade += 1.0;
        }
        axis
    }

    /// The share of answers, with as much room for each further nine.
    pub(super) fn of_percentiles(answers_max: u64) -> Self {
        let to = (answers_max.max(10) as f64).log10().max(1.0);
        let mut axis = Self { from: 0.0, to, is_log: false, ticks: Vec::new() };
        let named = [
            (0.0, "0", true),
            (0.5, "50 %", false),
            (0.9, "90 %", false),
            (0.99, "99 %", false),
            (0.999, "99.9 %", false),
            (0.9999, "99.99 %", true),
            (0.999_99, "99.999 %", true),
            (0.999_999, "99.9999 %", true),
        ];
        for (share, label, is_minor) in named {
            let place = axis.at(nines(share));
            if place <= 1.0 + 1e-9 {
                axis.ticks.push((place, label.to_owned(), is_minor));
            }
        }
        axis
    }

    /// From 0 to `max` in round steps.
    pub(super) fn of_numbers(max: f64) -> Self {
        let max = if max > 0.0 { max * 1.05 } else { 1.0 };
        let step = round_step(max / 4.0);
        let ticks = Self::steps(max, step).map(|(at, value)| (at, tidy(&rate(value)), false));
        Self { from: 0.0, to: max, is_log: false, ticks: ticks.collect() }
    }

    /// Seconds since the run's start.
    pub(super) fn of_seconds(from: f64, until: f64) -> Self {
        let span = (until - from).max(1.0);
        let steps =
            [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];
        let longer = steps.iter().copied().find(|step| span / step <= 8.0);
        let step = longer.unwrap_or_else(|| (span / 8.0 / 3600.0).ceil() * 3600.0);
        let ticks = Self::steps(span, step).enumerate();
        let ticks = ticks.map(|(at, (place, value))| (place, clock(value), at % 2 == 1));
        Self { from, to: from + span, is_log: false, ticks: ticks.collect() }
    }

    fn steps(max: f64, step: f64) -> impl Iterator<Item = (f64, f64)> {
        let number = (max / step).floor().clamp(0.0, 100.0) as u32;
        (0..=number).map(move |it| (f64::from(it) * step / max, f64::from(it) * step))
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if self.is_log { value.max(1.0).log10() } else { value };
        let place = (value - self.from) / (self.to - self.from);
        // no range is left where numbers are so large that one more is none
        if place.is_finite() { place } else { 0.0 }
    }
}

/// How many nines a share has: 0.9 one, 0.99 two.
pub(super) fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// What is drawn. Places are those of the axes, from the lower left corner.
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    drawn: String,
}

impl Plot {
    pub(super) fn new(x: Axis, y: Axis) -> Self {
        let mut drawn = String::new();
        for (place, _, _) in &y.ticks {
            let y = down(*place);
            let _ = write!(drawn, "<path class=\"grid\" d=\"M0 {y}H1000\"/>");
        }
        for (place, _, _) in &x.ticks {
            let _ = write!(drawn, "<path class=\"grid\" d=\"M{} 0V1000\"/>", along(*place));
        }
        Self { x, y, drawn }
    }

    /// A time that is not to be read like the rest.
    pub(super) fn shade(&mut self, until: f64) {
        let width = along(self.x.at(until));
        let _ = write!(self.drawn, "<rect class=\"shade\" width=\"{width}\" height=\"1000\"/>");
    }

    /// A line through points; where one is missing the line is broken.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut path = String::new();
        let (mut is_down, mut last) = (false, None);
        let mut alone = false;
        for (x, y) in points {
            let Some(y) = y else {
                end_dot(&mut path, alone);
                (is_down, alone) = (false, false);
                continue;
            };
            let place = (along(self.x.at(x)), down(self.y.at(y)));
            if last == Some(place) && is_down {
                continue;
            }
            let _ = write!(path, "{}{} {}", if is_down { 'L' } else { 'M' }, place.0, place.1);
            (alone, is_down, last) = (!is_down, true, Some(place));
        }
        end_dot(&mut path, alone);
        if !path.is_empty() {
            let _ = write!(self.drawn, "<path class=\"line {class}\" d=\"{path}\"/>");
        }
    }

    /// The area between two lines over the same points.
    pub(super) fn area(&mut self, class: &str, points: &[(f64, f64, f64)]) {
        if points.is_empty() {
            return;
        }
        let place = |x: f64, y: f64| format!("{} {}", along(self.x.at(x)), down(self.y.at(y)));
        let upper = points.iter().map(|(x, _, upper)| place(*x, *upper));
        let lower = points.iter().rev().map(|(x, lower, _)| place(*x, *lower));
        let path: Vec<String> = upper.chain(lower).collect();
        let _ = write!(self.drawn, "<path class=\"fill {class}\" d=\"M{}Z\"/>", path.join("L"));
    }

    /// A line across, at one height.
    pub(super) fn level(&mut self, class: &str, at: f64) {
        let y = down(self.y.at(at));
        let _ = write!(self.drawn, "<path class=\"line {class}\" d=\"M0 {y}H1000\"/>");
    }

    /// The plot as HTML; `says` is for who does not see it.
    pub(super) fn html(&self, says: &str) -> String {
        let mut told = format!(
            "<div class=\"plot\" role=\"img\" aria-label=\"{}\"><div class=\"y\" aria-hidden=\"true\">",
            escaped(says)
        );
        for (place, label, is_minor) in &self.y.ticks {
            let class = if *is_minor { " class=\"minor\"" } else { "" };
            let at = place * 100.0;
            let _ =
                write!(told, "<span{class} style=\"bottom:{at:.2}%\">{}</span>", escaped(label));
        }
        let _ = write!(
            told,
            "</div><svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{}</svg>\
             <div class=\"x\" aria-hidden=\"true\">",
            self.drawn
        );
        for (place, label, is_minor) in &self.x.ticks {
            let class = if *is_minor { " class=\"minor\"" } else { "" };
            let at = place * 100.0;
            let _ = write!(told, "<span{class} style=\"left:{at:.2}%\">{}</span>", escaped(label));
        }
        told.push_str("</div></div>");
        told
    }
}

/// A point without neighbours is a line of no length, whose round ends show.
fn end_dot(path: &mut String, alone: bool) {
    if alone {
        path.push_str("h0.01");
    }
}

fn along(place: f64) -> f64 {
    (place.clamp(0.0, 1.0) * 10_000.0).round() / 10.0
}

fn down(place: f64) -> f64 {
    ((1.0 - place.clamp(0.0, 1.0)) * 10_000.0).round() / 10.0
}

fn round_step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.iter().map(|step| step * decade).find(|step| *step >= least).unwrap_or(decade * 10.0)
}

/// "1.00 ms" is "1 ms" where it is exact.
fn tidy(label: &str) -> String {
    let (number, unit) = label.split_once(' ').map_or((label, None), |(n, u)| (n, Some(u)));
    let number = match number.split_once('.') {
        Some((whole, rest)) if rest.chars().all(|c| c == '0') => whole.to_owned(),
        Some(_) | None => number.trim_end_matches(|c| c == '0' && number.contains('.')).to_owned(),
    };
    unit.map_or(number.clone(), |unit| format!("{number} {unit}"))
}

/// "45 s", "2:30", "1:00:00".
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{}:{minutes:02}:{seconds:02}", count(hours)),
    }
}

/// As text or an attribute's value in HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // no more than a mark: HTML has no place for the rest
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label, _)| &**label).collect()
    }

    #[test]
    fn axes_are_labelled_in_round_numbers_within_their_range() {
        let latencies = Axis::of_latencies(150.0, 2_000_000.0);
        assert_eq!(labels(&latencies), ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]);
        let few = Axis::of_latencies(1_000.0, 21_000.0);
        assert_eq!(labels(&few), ["1 ms", "2 ms", "5 ms", "10 ms", "20 ms"]);
        let percentiles = Axis::of_percentiles(6_000);
        assert_eq!(labels(&percentiles), ["0", "50 %", "90 %", "99 %", "99.9 %"]);
        assert_eq!(labels(&Axis::of_numbers(190.0)), ["0", "50", "100", "150"]);
        assert_eq!(labels(&Axis::of_numbers(0.0)), ["0", "0.5", "1"]);
        assert_eq!(
            labels(&Axis::of_seconds(0.0, 75.0)),
            ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s", "1:00", "1:10"]
        );
        for axis in [latencies, few, percentiles, Axis::of_seconds(3.0, 90_000.0)] {
            assert!(axis.ticks.iter().all(|(place, ..)| (0.0..=1.0 + 1e-9).contains(place)));
        }
    }

    #[test]
    fn a_line_is_broken_where_a_point_is_missing() {
        let mut plot = Plot::new(Axis::of_seconds(0.0, 4.0), Axis::of_numbers(4.0));
        let points = [(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(1.0))];
        plot.line("a", points.into_iter());
        assert!(plot.drawn.contains("d=\"M0 761.9L250 523.8M750 761.9h0.01\""), "{}", plot.drawn);
    }

    #[test]
    fn nothing_leaves_its_place_in_the_page() {
        assert_eq!(escaped("<a href='x\">&\u{1b}"), "&lt;a href=&#39;x&quot;&gt;&amp;\u{fffd}");
    }
}
