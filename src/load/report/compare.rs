//! Two runs beside one another, as ratios of the second to the first. A ratio says nothing about why, and little about another day: what
//! differs between the runs is told first, and a percentile whose difference may be the sample's chance is marked.

use serde::Serialize;

use super::{OperationReport, QUANTILES, Report, costs::Costs, is_thin};
use crate::load::{latencies::Latencies, result::Load};

/// What is to be said of run B beside run A.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The version of this comparison's own form as JSON.
    pub version: u32,
    pub a: Report,
    pub b: Report,
    /// Sentences to read before the ratios.
    pub notes: Vec<String>,
    pub operations: Vec<ComparedOperation>,
    pub costs: Vec<ComparedFigure>,
}

#[derive(Debug, Serialize)]
pub struct ComparedOperation {
    pub name: String,
    pub observed: bool,
    /// Answers in A and in B: what the percentiles rest on. None where a run has no such operation.
    pub answered_a: Option<u64>,
    pub answered_b: Option<u64>,
    pub answered_per_second: ComparedFigure,
    /// p50, p90, p99, p99.9 and the longest.
    pub latency: Vec<ComparedFigure>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ComparedFigure {
    pub name: &'static str,
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// B / A.
    pub ratio: Option<f64>,
    /// The 95 % confidence intervals of both overlap, by the number of answers alone: no difference is shown.
    pub within_noise: bool,
    /// Of a percentile: so few durations in A or in B were longer that chance decides it.
    pub thin_a: bool,
    pub thin_b: bool,
}

impl ComparedFigure {
    fn new(name: &'static str, a: Option<f64>, b: Option<f64>) -> Self {
        let ratio = match (a, b) {
            (Some(a), Some(b)) if a > 0.0 => Some(b / a),
            (Some(_) | None, Some(_) | None) => None,
        };
        Self { name, a, b, ratio, within_noise: false, thin_a: false, thin_b: false }
    }
}

impl Comparison {
    #[must_use]
    pub fn new(a: Report, b: Report) -> Self {
        let mut names: Vec<(bool, &str)> = [&a, &b]
            .into_iter()
            .flat_map(|of| of.operations.iter().map(|of| (of.observed, &*of.name)))
            .collect();
        names.sort_unstable();
        names.dedup_by_key(|(_, name)| *name);
        let operations = names
            .into_iter()
            .map(|(observed, name)| {
                let of = |report: &'_ Report| -> Option<usize> {
                    report.operations.iter().position(|of| of.name == name)
                };
                let a = of(&a).map(|at| &a.operations[at]);
                let b = of(&b).map(|at| &b.operations[at]);
                compared(name, observed, a, b)
            })
            .collect();
        let costs = costs(a.total.as_ref(), b.total.as_ref());
        Self { version: VERSION, notes: notes(&a, &b), operations, costs, a, b }
    }

    /// What is to be known of either run alone, with its name before it.
    #[must_use]
    pub fn notes_of_runs(&self) -> Vec<String> {
        let (a, b) = (&self.a.notes, &self.b.notes);
        let name = |name: &str, note: &String| format!("{name}: {note}");
        let of_a = a.iter().map(|note| name(if b.contains(note) { "A and B" } else { "A" }, note));
        of_a.chain(b.iter().filter(|note| !a.contains(note)).map(|note| name("B", note))).collect()
    }
}

fn compared(
    name: &str,
    observed: bool,
    a: Option<&OperationReport>,
    b: Option<&OperationReport>,
) -> ComparedOperation {
    let both = |name, of: fn(&OperationReport) -> Option<f64>| {
        ComparedFigure::new(name, a.and_then(of), b.and_then(of))
    };
    let latency = QUANTILES.iter().map(|(share, name)| {
        let us = |of: Option<&OperationReport>| {
            let of = &of.filter(|of| of.latencies.count() > 0)?.latencies;
            Some((of.quantile_us(*share) as f64, interval(of, *share), is_thin(of, *share)))
        };
        let (a, b) = (us(a), us(b));
        let mut figure = ComparedFigure::new(name, a.map(|it| it.0), b.map(|it| it.0));
        figure.thin_a = a.is_some_and(|it| it.2);
        figure.thin_b = b.is_some_and(|it| it.2);
        if let (Some((_, a, _)), Some((_, b, _))) = (a, b) {
            figure.within_noise = a.0 <= b.1 && b.0 <= a.1;
        }
        figure
    });
    let longest = both("max", |of| of.latency.max_us.map(|us| us as f64));
    ComparedOperation {
        name: name.to_owned(),
        observed,
        answered_a: a.map(|of| of.answered),
        answered_b: b.map(|of| of.answered),
        answered_per_second: both("answered a second", |of| Some(of.answered_per_second)),
        latency: latency.chain([longest]).collect(),
    }
}

/// Between which durations the quantile is in 95 of 100 samples of this size: order statistics, their ranks by the normal
/// approximation of the binomial distribution, rounded outwards. A rank that no answer has is no end: so few answers say nothing of how
/// long the next might take.
fn interval(of: &Latencies, share: f64) -> (u64, u64) {
    let count = of.count() as f64;
    let within = 1.96 * (count * share * (1.0 - share)).sqrt();
    let lower = (count * share - within).floor();
    let upper = (count * share + within).ceil() + 1.0;
    // in the middle between two ranks, so that neither is missed by rounding
    let at = |rank: f64| of.quantile_us((rank - 0.5) / count);
    (if lower < 1.0 { 0 } else { at(lower) }, if upper > count { u64::MAX } else { at(upper) })
}

fn costs(a: Option<&Costs>, b: Option<&Costs>) -> Vec<ComparedFigure> {
    type Of = fn(&Costs) -> Option<f64>;
    let figures: [(&'static str, Of); 10] = [
        ("accepted messages a second", |it| per_second(it, it.accepted)),
        ("client requests a second", |it| per_second(it, it.requests)),
        ("CPU per accepted message", |it| it.per_accepted.cpu_us),
        ("CPU per client request", |it| it.per_request.cpu_us),
        ("bytes written per accepted message", |it| it.per_accepted.written_bytes),
        ("bytes written per client request", |it| it.per_request.written_bytes),
        ("flushes per accepted message", |it| it.per_accepted.flushes),
        ("flushes per client request", |it| it.per_request.flushes),
        ("cores at work", Costs::cores),
        ("resident memory at the end", |it| it.resident_bytes.map(|it| it.after)),
    ];
    let figure =
        |(name, of): &(&'static str, Of)| ComparedFigure::new(name, a.and_then(of), b.and_then(of));
    figures.iter().map(figure).filter(|it| it.a.is_some() || it.b.is_some()).collect()
}

fn per_second(costs: &Costs, count: Option<f64>) -> Option<f64> {
    let seconds = costs.elapsed_ms as f64 / 1e3;
    count.filter(|_| seconds > 0.0).map(|count| count / seconds)
}

/// In what the runs are not alike, and how far ratios may be believed.
fn notes(a: &Report, b: &Report) -> Vec<String> {
    let mut differ = Vec::new();
    let (x, y) = (&a.run, &b.run);
    let mut pair = |what: &str, a: String, b: String| {
        if a != b {
            differ.push(format!("{what}: {a} → {b}"));
        }
    };
    pair("mimid", x.mimid_version.clone(), y.mimid_version.clone());
    pair("workload", x.workload.name.clone(), y.workload.name.clone());
    pair("seed", x.workload.seed.to_string(), y.workload.seed.to_string());
    pair("description", x.workload.description.clone(), y.workload.description.clone());
    pair("load", load(x.load), load(y.load));
    pair("targets", x.targets.join(" "), y.targets.join(" "));
    for (of_a, of_b) in [(&x.options, &y.options), (&x.machine, &y.machine)] {
        // what a machine was doing is never the same twice
        let passing = ["load average", "processor time"];
        let lasting = |key: &&String| !passing.iter().any(|it| key.starts_with(it));
        let mut keys: Vec<&String> = of_a.keys().chain(of_b.keys()).filter(lasting).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let of = |map: &std::collections::BTreeMap<String, String>| {
                map.get(key).cloned().unwrap_or_else(|| "–".to_owned())
            };
            pair(key, of(of_a), of(of_b));
        }
    }
    let mut notes = Vec::new();
    if !differ.is_empty() {
        notes.push(format!("The runs differ in more than their results: {}.", differ.join("; ")));
    }
    let kind = |load: Load| matches!(load, Load::Open { .. });
    if kind(x.load) != kind(y.load) {
        notes.push(
            "One is an open loop and one a closed one: they measure different things, and their latencies do not compare.".to_owned(),
        );
    }
    notes.push(
        "≈ marks a percentile where the sample alone allows for no difference (95 % intervals overlap, or an end of one is beyond \
         all answers). No mark proves little: \
         answers of one moment are slow together, and the machine differs from run to run. Run A twice and compare those two \
         to see how large nothing is."
            .to_owned(),
    );
    notes
}

/// "open loop, 100 a second".
pub(super) fn load(load: Load) -> String {
    match load {
        Load::Open { per_second } => format!("open loop, {} a second", super::rate(per_second)),
        Load::Closed { concurrency } => {
            format!("closed loop, {} at a time", super::count(concurrency))
        }
    }
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::report::testing;

    fn compared(a: u64, b: u64) -> Comparison {
        Comparison::new(Report::new(&testing::run(a)), Report::new(&testing::run(b)))
    }

    #[test]
    fn ratios_are_those_of_b_to_a() {
        let told = compared(1, 3);
        let message = told.operations.iter().find(|of| of.name == "message").unwrap();
        for figure in &message.latency {
            let ratio = figure.ratio.unwrap();
            assert!((2.98..3.02).contains(&ratio) && !figure.within_noise, "{figure:?}");
        }
        let cpu = told.costs.iter().find(|of| of.name == "CPU per accepted message").unwrap();
        assert_eq!(cpu.ratio, Some(3.0));
        assert!(!told.notes.iter().any(|note| note.contains("differ in more")), "{:?}", told.notes);
    }

    #[test]
    fn equal_runs_show_no_difference() {
        for of in compared(1, 1).operations {
            let percentiles = &of.latency[..QUANTILES.len()];
            assert!(percentiles.iter().all(|it| it.within_noise && it.ratio == Some(1.0)));
        }
    }

    #[test]
    fn few_answers_widen_what_chance_allows() {
        // 20 answers spread over 1 to 20 ms, and the same a fifth later
        let of = |each: u64, slower: u64| {
            let mut latencies = Latencies::new();
            for ms in 1..=20 {
                (0..each).for_each(|_| latencies.record(Duration::from_micros(ms * slower)));
            }
            interval(&latencies, 0.5)
        };
        let overlap = |a: (u64, u64), b: (u64, u64)| a.0 <= b.1 && b.0 <= a.1;
        let mut latencies = Latencies::new();
        (1..=10_000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        // 1.96 standard deviations of 0.5 % each
        let (low, high) = interval(&latencies, 0.5);
        assert!((4_895_000..4_910_000).contains(&low) && (5_090_000..5_105_000).contains(&high));
        assert!(overlap(of(1, 1000), of(1, 1200)));
        assert!(!overlap(of(1000, 1000), of(1000, 1200)));
    }

    #[test]
    fn where_there_are_fewer_answers_than_a_rank_asks_for_there_is_no_difference() {
        let of = |times: u64, ms: u64| {
            let mut run = testing::run(1);
            let of = run.operations.get_mut("add").unwrap();
            (of.latencies, of.answered) = (Latencies::new(), times);
            // a spread that does not meet the other run's
            (0..times).for_each(|it| of.latencies.record(Duration::from_micros(ms * 1000 + it)));
            run
        };
        let marks = |a: u64, b: u64| -> Vec<(bool, bool)> {
            let (a, b) = (of(a, 10), of(b, 100));
            let told = Comparison::new(Report::new(&a), Report::new(&b));
            let add = told.operations.iter().find(|of| of.name == "add").unwrap();
            let figures = &add.latency[..QUANTILES.len()];
            figures.iter().map(|it| (it.within_noise, it.thin_a && it.thin_b)).collect()
        };
        // of six and two answers not even the median has an interval with two ends
        assert_eq!(marks(6, 2), [(true, true); 4]);
        assert_eq!(marks(1, 5), [(true, true); 4]);
        // the median of twenty is known to some ranks, their p90 is not
        assert_eq!(marks(20, 20), [(false, false), (true, true), (true, true), (true, true)]);
        assert_eq!(
            marks(2_000, 2_000),
            [(false, false), (false, false), (false, false), (true, true)]
        );
    }

    #[test]
    fn what_only_one_run_has_is_there_without_a_ratio() {
        let mut other = testing::run(1);
        let add = other.operations.remove("add").unwrap();
        other.operations.insert("remove".into(), add);
        other.run.workload.seed = 9;
        other.run.machine.insert("load average at start".into(), "7.5".into());
        other.scrapes.clear();
        let told = Comparison::new(Report::new(&testing::run(1)), Report::new(&other));
        let of = |name: &str| told.operations.iter().find(|of| of.name == name).unwrap();
        assert_eq!((of("add").answered_a, of("add").answered_b), (Some(1200), None));
        assert_eq!((of("remove").answered_a, of("remove").latency[0].ratio), (None, None));
        assert!(told.notes[0].contains("seed: 7 → 9"), "{:?}", told.notes);
        assert!(!told.notes[0].contains("7.5"), "it is never the same: {:?}", told.notes);
        assert!(told.costs.iter().all(|of| of.ratio.is_none() && of.b.is_none()));
    }
}
