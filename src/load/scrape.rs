//! Prometheus' text format, as far as a report needs it: samples by name and labels. A line that is none is passed over: what a
//! target says is not ours to judge, and a sample that is missed shows as missing.

use std::collections::BTreeMap;

/// The samples of one scrape.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<String, Vec<Sample>>);

#[derive(Debug, PartialEq)]
struct Sample {
    labels: Vec<(String, String)>,
    value: f64,
}

impl Samples {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some((name, sample)) = sample(line) {
                samples.entry(name.to_owned()).or_default().push(sample);
            }
        }
        Self(samples)
    }

    /// The sum of a metric's samples that have all of `labels`; nothing where there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample, (key, value): &(&str, &str)| {
            sample.labels.iter().any(|(k, v)| k == key && v == value)
        };
        let matching = self.0.get(name)?.iter();
        let mut matching =
            matching.filter(|sample| labels.iter().all(|label| has(sample, label))).peekable();
        matching.peek()?;
        Some(matching.map(|sample| sample.value).sum())
    }
}

/// `name{label="value",…} number`, and perhaps a time behind it.
fn sample(line: &str) -> Option<(&str, Sample)> {
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Vec::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([',', ' ']);
            if let Some(behind) = inside.strip_prefix('}') {
                rest = behind;
                break;
            }
            let (key, behind) = inside.split_once("=\"")?;
            let (value, behind) = quoted(behind)?;
            labels.push((key.trim().to_owned(), value));
            inside = behind;
        }
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty() && value.is_finite()).then_some((name, Sample { labels, value }))
}

/// A label's value up to its closing quote, and what is behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let samples = Samples::parse(
            "# HELP a_total What it is\n# TYPE a_total counter\n\
             a_total{listener=\"client\",status=\"200\"} 3\na_total{listener=\"client\",status=\"403\"} 2 1700000000\n\
             a_total{listener=\"ops\",} 40\nb 1.5e3\nc NaN\nodd{x=\"a\\\"},{\\n\\\\\"} 7\n",
        );
        assert_eq!(samples.sum("a_total", &[("listener", "client")]), Some(5.0));
        assert_eq!(samples.sum("a_total", &[]), Some(45.0));
        assert_eq!(samples.sum("a_total", &[("listener", "none")]), None);
        assert_eq!(samples.sum("b", &[]), Some(1500.0));
        assert_eq!((samples.sum("c", &[]), samples.sum("d", &[])), (None, None));
        assert_eq!(samples.sum("odd", &[("x", "a\"},{\n\\")]), Some(7.0));
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        let broken =
            ["{", "a{", "a{b", "a{b=\"", "a{b=\"c\\", "a{b=\"c\"}", "a", "", "a x", "{b=\"c\"} 1"];
        for line in broken {
            let samples = Samples::parse(&format!("{line}\ngood 1\n"));
            assert_eq!((samples.0.len(), samples.sum("good", &[])), (1, Some(1.0)), "{line}");
        }
    }
}
