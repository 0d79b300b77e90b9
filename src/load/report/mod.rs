//! What a recorded run says: figures per operation, what they cost the targets, and what a reader must know before believing them.
//!
//! [`Report`] and [`Comparison`] are what is said; [`text`], JSON and [`html`] are ways to say it, and add nothing. All of it is pure.

pub mod compare;
pub mod costs;
pub mod html;
mod plot;
mod series;
mod tables;
#[cfg(test)]
mod testing;
pub mod text;
mod units;

use std::collections::BTreeMap;

use serde::Serialize;

use self::{
    costs::{Costs, TargetCosts},
    units::{count, micros, rate},
};
use super::{
    drain,
    latencies::{self, Latencies},
    result::{Drained, Load, Operation, Run, RunResult, SEND_LAG},
};

pub use compare::Comparison;

/// What one run says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this report's own form as JSON.
    pub version: u32,
    pub run: Run,
    /// Sentences to read before the figures.
    pub notes: Vec<String>,
    /// All requests together; what was only observed is not one.
    pub requests: Requests,
    /// Requests first, each kind by name.
    pub operations: Vec<OperationReport>,
    /// What the targets' counters say about the measured time.
    pub targets: Vec<TargetCosts>,
    /// Of all targets together; where one lacks a figure, so does this.
    pub total: Option<Costs>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Requests {
    pub answered: u64,
    pub refused: u64,
    pub unanswered: u64,
    /// What came within the measured time, whenever it was due.
    pub answered_per_second: f64,
    /// Of all that ended.
    pub error_share: f64,
}

#[derive(Debug, Serialize)]
pub struct OperationReport {
    pub name: String,
    pub observed: bool,
    pub answered: u64,
    pub refused: u64,
    pub unanswered: u64,
    /// What came within the measured time, whenever it was due.
    pub answered_per_second: f64,
    pub refused_per_second: f64,
    /// Of those answered: so many behind the measured time.
    pub late: u64,
    pub errors: BTreeMap<String, u64>,
    pub latency: Summary,
    pub refusal_latency: Summary,
    /// How late those began that begin an operation; none for what begins none.
    pub lateness: Option<Summary>,
    #[serde(skip)]
    pub latencies: Latencies,
    #[serde(skip)]
    pub lag: Latencies,
}

/// Durations in a few numbers, in microseconds; none where nothing was measured.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub mean_us: Option<u64>,
    pub max_us: Option<u64>,
    pub quantiles: Vec<Quantile>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantile {
    /// 0.99 for the 99th percentile.
    pub share: f64,
    pub us: Option<u64>,
    /// So few durations were longer that chance decides this number.
    pub thin: bool,
}

/// Each percentile that is told, with its name.
pub const QUANTILES: [(f64, &str); 4] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9")];

impl Report {
    #[must_use]
    pub fn new(result: &RunResult) -> Self {
        let seconds = (result.run.measured_ms as f64 / 1000.0).max(0.001);
        let mut operations: Vec<OperationReport> = result
            .operations
            .iter()
            .map(|(name, of)| OperationReport::new(name, of, seconds))
            .collect();
        operations.sort_by_key(|of| of.observed);
        let requests = Requests::new(&operations);
        let targets: Vec<TargetCosts> = result.scrapes.iter().map(TargetCosts::new).collect();
        let total = Costs::total(&targets);
        let notes = notes(result, &operations, &requests, &targets);
        let run = result.run.clone();
        Self { version: VERSION, run, notes, requests, operations, targets, total }
    }
}

impl Requests {
    fn new(operations: &[OperationReport]) -> Self {
        let mut sum = Self::default();
        for of in operations.iter().filter(|of| !of.observed) {
            sum.answered = sum.answered.saturating_add(of.answered);
            sum.refused = sum.refused.saturating_add(of.refused);
            sum.unanswered = sum.unanswered.saturating_add(of.unanswered);
        }
        let errors = sum.refused as f64 + sum.unanswered as f64;
        let rates = operations.iter().filter(|of| !of.observed).map(|of| of.answered_per_second);
        sum.answered_per_second = rates.sum();
        sum.error_share = errors / (errors + sum.answered as f64).max(1.0);
        sum
    }
}

impl OperationReport {
    fn new(name: &str, of: &Operation, seconds: f64) -> Self {
        Self {
            name: name.to_owned(),
            observed: of.observed,
            answered: of.answered,
            refused: of.refused,
            unanswered: of.unanswered,
            answered_per_second: of.in_time().answered as f64 / seconds,
            refused_per_second: of.in_time().refused as f64 / seconds,
            late: of.in_time().late,
            errors: of.errors.clone(),
            latency: Summary::new(&of.latencies),
            refusal_latency: Summary::new(&of.refusals),
            lateness: (!of.lag.is_empty()).then(|| Summary::new(&of.lag)),
            latencies: of.latencies.clone(),
            lag: of.lag.clone(),
        }
    }
}

impl Summary {
    fn new(of: &Latencies) -> Self {
        let count = of.count();
        let known = |us: u64| (count > 0).then_some(us);
        let quantile = |share: f64| Quantile {
            share,
            us: known(of.quantile_us(share)),
            thin: is_thin(of, share),
        };
        Self {
            mean_us: known(of.mean_us().round() as u64),
            max_us: known(of.max_us()),
            quantiles: QUANTILES.iter().map(|(share, _)| quantile(*share)).collect(),
        }
    }
}

/// Whether fewer durations than say something were longer than the quantile.
fn is_thin(of: &Latencies, share: f64) -> bool {
    (of.count() as f64) * (1.0 - share) < SLOWER_MIN
}

/// What would mislead whoever reads the figures without it.
fn notes(
    result: &RunResult,
    operations: &[OperationReport],
    requests: &Requests,
    targets: &[TargetCosts],
) -> Vec<String> {
    let run = &result.run;
    let mut notes = Vec::new();
    let lag = operations.iter().find(|of| of.name == SEND_LAG && of.answered > 0);
    match run.load {
        Load::Closed { concurrency } => notes.push(format!(
            "A closed loop of {}: a request begins when the one before it is answered, so while the provider stalls nothing is asked \
             and nothing is measured (coordinated omission). High percentiles are too good; do not compare them with an open loop's.",
            count(concurrency)
        )),
        Load::Open { per_second } => {
            // an operation can be several requests, and each has its lag once
            let ended = requests.answered as f64 + requests.refused as f64 + requests.unanswered as f64;
            let measured = run.measured_ms.max(1) as f64 / 1000.0;
            let begun_per_second = lag.map_or(ended / measured, |lag| lag.answered_per_second);
            if begun_per_second < per_second * KEPT_UP {
                notes.push(format!(
                    "Of {} operations a second that were due {} were begun: either the generator or the provider did not keep up.",
                    rate(per_second),
                    rate(begun_per_second)
                ));
            }
        }
    }
    notes.extend(tail(result));
    if run.groups_lost > 0 {
        notes.push(lost(run.groups_lost));
    }
    notes.extend(short(run));
    notes.extend(lateness(operations));
    if run.targets.iter().any(|target| is_loopback(target)) {
        notes.push(
            "The load was made on the provider's own machine: both took from the same cores and the same disk. Latencies hold the \
             wait for them; CPU and bytes per operation do not."
                .to_owned(),
        );
    }
    if requests.unanswered > 0 {
        notes.push(format!(
            "{} had no answer. They are in no percentile: the slowest requests of all are missing there.",
            units::counted(requests.unanswered, "request")
        ));
    }
    if run.warm_up_ms == 0 {
        notes.push(
            "There was no warm-up: first connections and empty caches are in the figures."
                .to_owned(),
        );
    }
    let capped = latencies::MAX.as_micros() as u64;
    for of in operations.iter().filter(|of| of.latency.max_us >= Some(capped)) {
        notes.push(format!(
            "`{}` took {} or more at least once: longer is counted as that.",
            of.name,
            micros(capped)
        ));
    }
    let begins_early = |it: &&TargetCosts| {
        it.costs.as_ref().is_some_and(|costs| costs.from_ms.saturating_add(1000) < run.warm_up_ms)
    };
    for target in targets.iter().filter(begins_early) {
        notes.push(format!(
            "{}: its metrics were read before the warm-up, so that its costs, and what they are divided by, are of both.",
            target.target
        ));
    }
    for target in targets {
        notes
            .extend(target.problems().into_iter().map(|what| format!("{}: {what}", target.target)));
    }
    if operations.iter().any(|of| of.latency.quantiles.iter().any(|it| it.thin && it.us.is_some()))
    {
        notes.push(
            "~ marks a percentile that fewer than ten answers exceeded: chance decides it."
                .to_owned(),
        );
    }
    notes
}

/// That what was due was not got done in the measured time, where it was not.
#[must_use]
pub fn tail(result: &RunResult) -> Option<String> {
    // in a closed loop nothing is due: what is on its way at the end is no more than was asked for at a time
    if matches!(result.run.load, Load::Closed { .. }) {
        return None;
    }
    // a client that reads by long polls gets its answers when there is something to say
    let counts = |it: &(&String, &Operation)| !it.1.observed && it.0 != drain::POLL;
    let requests = || result.operations.iter().filter(counts).map(|(_, of)| of);
    let late = requests().fold(0_u64, |sum, of| sum.saturating_add(of.in_time().late));
    let answered = requests().fold(0_u64, |sum, of| sum.saturating_add(of.answered));
    if late as f64 <= answered as f64 * LATE_SHARE_MAX {
        return None;
    }
    Some(format!(
        "{} of {} came when the measured time was over, the last {} behind it: more was due than was got done. What stands \
         under `a second` came within it, and is what was got done; latencies grow with the run's length and say nothing else.",
        count(late),
        units::counted(answered, "answer"),
        units::span(result.run.tail_ms)
    ))
}

/// How much of what was due came to the clients that read their queues.
#[must_use]
pub fn delivered(drained: &Drained) -> String {
    let Drained { due, delivered, .. } = *drained;
    // nothing that was due is all there
    let share = if due == 0 { 1.0 } else { delivered as f64 / due as f64 };
    format!(
        "{} of {} that were due came ({}), {} missing",
        count(delivered),
        units::counted_as(due, "delivery", "deliveries"),
        units::part(share),
        count(due.saturating_sub(delivered))
    )
}

/// That deliveries are missing, or clients that were to get them could not.
#[must_use]
pub fn short(run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(drained) = run.drained else { return notes };
    let Drained { clients, interrupted, due, delivered, untold, settled_ms } = drained;
    if delivered < due {
        notes.push(format!(
            "{} of {} that were due had not come {} behind the last operation. They are in no percentile of `delivery`: the slowest \
             of all are missing there, or what was lost.",
            count(due - delivered),
            units::counted_as(due, "delivery", "deliveries"),
            units::span(settled_ms)
        ));
    }
    if interrupted > 0 {
        notes.push(format!(
            "{} of {} could not read for a time: a stream ended, or was refused. What was for them came late, or is missing.",
            count(interrupted),
            units::counted(clients, "draining client")
        ));
    }
    if untold > 0 {
        notes.push(format!(
            "{} came of messages whose requests had no answer. They are in `delivery`, and not among those due.",
            units::counted_as(untold, "delivery", "deliveries")
        ));
    }
    notes
}

/// That groups were given up.
#[must_use]
pub fn lost(groups: u64) -> String {
    format!(
        "In {} nothing more could happen, and what was due there went to others: a workload's commits are good once. Where it was replayed \
         before, or something else has changed its groups, prepare it anew.",
        units::counted(groups, "group")
    )
}

/// Which operations began late, and by how much.
fn lateness(operations: &[OperationReport]) -> Option<String> {
    let late = |of: &Latencies| Some(of.quantile_us(0.99)).filter(|us| *us > LAG_US_MAX);
    let because = "the generator was late, all its connections were full, or an earlier commit in its group had no answer yet";
    let of_each: Vec<&OperationReport> =
        operations.iter().filter(|it| !it.lag.is_empty()).collect();
    if of_each.is_empty() {
        // a run of an earlier version: which ones is not known
        let lag = operations.iter().find(|of| of.name == SEND_LAG)?;
        return Some(format!(
            "One operation in a hundred began {} or more after it was due: {because}. The latencies count from when it was due, so \
             that is in them.",
            micros(late(&lag.latencies)?)
        ));
    }
    let concerned: Vec<String> = of_each
        .iter()
        .filter_map(|of| Some(format!("`{}` {}", of.name, micros(late(&of.lag)?))))
        .collect();
    if concerned.is_empty() {
        return None;
    }
    let rest = if concerned.len() < of_each.len() { ", and in no others" } else { "" };
    Some(format!(
        "One operation in a hundred began so much or more after it was due: {}. For each, {because}. Their latencies count from when they \
         were due, so that is in them{rest}.",
        concerned.join(", ")
    ))
}

/// Whether a URL is of this very machine.
fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
}

const VERSION: u32 = 1;
/// A percentile with fewer durations above it says little.
const SLOWER_MIN: f64 = 10.0;
/// An open loop that begins less of its rate did not keep up; a Poisson process and a run's end account for the rest.
const KEPT_UP: f64 = 0.9;
/// What is on its way when the time is over is no tail.
const LATE_SHARE_MAX: f64 = 0.05;
/// Later than this the generator is told of.
const LAG_US_MAX: u64 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::result::{InTime, SEND_LAG, Scraped};

    fn notes_of(change: impl FnOnce(&mut RunResult)) -> Vec<String> {
        let mut run = testing::run(1);
        change(&mut run);
        Report::new(&run).notes
    }

    #[test]
    fn json_has_the_figures_under_their_names() {
        let told = serde_json::to_value(Report::new(&testing::run(1))).unwrap();
        assert_eq!((&told["version"], &told["run"]["workload"]["seed"]), (&1.into(), &7.into()));
        assert_eq!(told["requests"]["refused"], 12);
        let message = &told["operations"][2];
        assert_eq!((&message["name"], &message["answered"]), (&"message".into(), &6000.into()));
        assert_eq!(message["latency"]["quantiles"][2]["share"], 0.99);
        assert_eq!(message["latency"]["quantiles"][2]["us"], 183_679);
        assert_eq!(told["total"]["per_accepted"]["flushes"], 0.25);
    }

    #[test]
    fn a_second_has_what_came_in_it_and_not_what_was_due_in_it() {
        let mut run = testing::run(1);
        for (name, answered) in [("message", 1_200), (SEND_LAG, 3_000)] {
            let late = 4_800;
            let in_time = InTime { answered, refused: 0, late };
            run.operations.get_mut(name).unwrap().in_time = Some(in_time);
        }
        let report = Report::new(&run);
        let of = |name: &str| report.operations.iter().find(|of| of.name == name).unwrap();
        assert_eq!((of("message").answered, of("message").answered_per_second), (6_000, 20.0));
        // 20 + 60 + 20 + 19.6
        assert!((report.requests.answered_per_second - 119.6).abs() < 1e-9);
        let begun = "Of 200 operations a second that were due 50.0 were begun";
        assert!(report.notes[0].starts_with(begun), "{:?}", report.notes);
        // of a run that does not say
        run.operations.values_mut().for_each(|of| of.in_time = None);
        assert!((Report::new(&run).requests.answered_per_second - 199.6).abs() < 1e-9);
    }

    #[test]
    fn deliveries_that_never_came_are_told_before_the_percentiles_that_lack_them() {
        let told = |drained: Option<Drained>| {
            let mut run = testing::run(1);
            run.run.drained = drained;
            (Report::new(&run).notes.remove(0), text::report(&Report::new(&run)))
        };
        let drained = Drained { clients: 45, due: 2_900, delivered: 233, ..Drained::default() };
        let settled_ms = 15_000;
        let (note, text) = told(Some(Drained { settled_ms, ..drained }));
        let missing =
            "2,667 of 2,900 deliveries that were due had not come 15 s behind the last operation.";
        assert!(note.starts_with(missing), "{note}");
        let line = "\n233 of 2,900 deliveries that were due came (8.03 %), 2,667 missing\n";
        assert!(text.contains(line), "{text}");
        let (note, text) = told(Some(Drained { delivered: 2_900, ..drained }));
        assert!(!note.contains("deliveries"), "{note}");
        assert!(text.contains("2,900 of 2,900 deliveries that were due came (100 %), 0 missing"));
        // a run of an earlier version, or one without clients that read
        assert!(!told(None).1.contains("that were due came"));
    }

    #[test]
    fn what_is_on_its_way_at_the_end_is_a_tail_only_where_it_is_much_and_was_due() {
        let told = |load: Load, late: u64| {
            let mut run = testing::run(1);
            run.run.load = load;
            let of = run.operations.get_mut("message").unwrap();
            of.in_time = Some(InTime { answered: 6_000 - late, refused: 0, late });
            tail(&run).is_some()
        };
        let open = Load::Open { per_second: 200.0 };
        assert!(!told(open, 500) && told(open, 700), "of 11,976 in all");
        assert!(!told(Load::Closed { concurrency: 700 }, 700));
    }

    #[test]
    fn what_would_mislead_is_told() {
        type Change = fn(&mut RunResult);
        let cases: [(Change, &str); 14] = [
            (
                |it| it.run.drained.as_mut().unwrap().interrupted = 3,
                "3 of 10 draining clients could not read for a time",
            ),
            (
                |it| it.run.drained.as_mut().unwrap().untold = 1,
                "1 delivery came of messages whose requests had no answer.",
            ),
            (
                |it| {
                    let Scraped::Text { at_ms, .. } = &mut it.scrapes[0].before else { return };
                    *at_ms = 0;
                },
                "its metrics were read before the warm-up",
            ),
            (|it| it.run.warm_up_ms = 0, "There was no warm-up"),
            (
                |it| it.run.load = Load::Open { per_second: 300.0 },
                "Of 300 operations a second that were due 200 were begun",
            ),
            (
                |it| {
                    it.run.tail_ms = 45_000;
                    let of = it.operations.get_mut("message").unwrap();
                    of.in_time = Some(InTime { answered: 1_200, refused: 0, late: 4_800 });
                },
                "4,800 of 11,976 answers came when the measured time was over, the last 45 s behind it: more was due than was got done.",
            ),
            (|it| it.run.groups_lost = 4, "In 4 groups nothing more could happen"),
            (
                |it| it.run.targets = vec!["https://127.0.0.1:1".into()],
                "the provider's own machine",
            ),
            (|it| it.run.targets = vec!["https://[::1]:1/".into()], "the provider's own machine"),
            (
                |it| {
                    let mut slow = Latencies::new();
                    (0..12_000).for_each(|_| slow.record(std::time::Duration::from_millis(5)));
                    it.operations.get_mut(SEND_LAG).unwrap().latencies = slow;
                },
                "in a hundred began 5.00 ms or more after it was due",
            ),
            (
                |it| {
                    for (name, us) in [("add", 5_000), ("message", 100), ("update", 1_000)] {
                        let of = it.operations.get_mut(name).unwrap();
                        of.lag.record(std::time::Duration::from_micros(us));
                    }
                    // what one of them did to all
                    let mut slow = Latencies::new();
                    (0..12_000).for_each(|_| slow.record(std::time::Duration::from_millis(5)));
                    it.operations.get_mut(SEND_LAG).unwrap().latencies = slow;
                },
                "so much or more after it was due: `add` 5.00 ms. For each, the generator was late, all its \
                 connections were full, or an earlier commit in its group had no answer yet. Their latencies count from when they were due, so that is in them, and in no others.",
            ),
            (
                |it| {
                    for name in ["add", "update"] {
                        let of = it.operations.get_mut(name).unwrap();
                        of.lag.record(std::time::Duration::from_millis(7));
                    }
                },
                "after it was due: `add` 7.00 ms, `update` 7.00 ms. For each, the generator was late, all its \
                 connections were full, or an earlier commit in its group had no answer yet. Their latencies count from when they were due, so that is in them.",
            ),
            (
                |it| {
                    let text = "mimid_store_flushes_total 1".into();
                    it.scrapes[0].after = Scraped::Text { at_ms: 0, text };
                },
                "https://a.example:8443: its process was started anew",
            ),
            (
                |it| {
                    let of = it.operations.get_mut("add").unwrap();
                    of.latencies.record(std::time::Duration::from_secs(9999));
                    of.answered += 1;
                },
                "`add` took 600 s or more",
            ),
        ];
        let usual = notes_of(|_| ());
        assert_eq!(usual.len(), 3, "{usual:?}");
        for (change, says) in cases {
            let told = notes_of(change);
            assert!(told.iter().any(|note| note.contains(says)), "{says}: {told:?}");
            assert!(!usual.iter().any(|note| note.contains(says)), "{says}");
        }
    }
}
