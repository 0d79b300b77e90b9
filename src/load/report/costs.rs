//! What the measured time cost the targets, by their own counters: the scrape behind it less the one before it. A counter that went
//! down, or whose process was started anew, has no such difference, and is told instead of shown.

use serde::Serialize;

use crate::load::{
    result::{Scrape, Scraped},
    scrape::Samples,
};

/// One target's costs, or why they are not known.
#[derive(Debug, Serialize)]
pub struct TargetCosts {
    pub target: String,
    pub costs: Option<Costs>,
    problems: Vec<String>,
}

/// Costs between two scrapes; none for what its counters do not tell.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Costs {
    /// When the first scrape was, since the run's start.
    pub from_ms: u64,
    pub elapsed_ms: u64,
    /// Requests that the listener for clients answered, whatever the answer.
    pub requests: Option<f64>,
    /// Messages that groups hosted here accepted: commits, proposals, application messages, changes of queues.
    pub accepted: Option<f64>,
    /// Entries that queues gave to clients.
    pub delivered: Option<f64>,
    pub cpu_seconds: Option<f64>,
    pub flushes: Option<f64>,
    pub flush_seconds: Option<f64>,
    pub batches: Option<f64>,
    /// What was given to the store's engine; the engine itself writes more.
    pub written_bytes: Option<f64>,
    pub resident_bytes: Option<BeforeAfter>,
    /// The size of the store's files.
    pub disk_bytes: Option<BeforeAfter>,
    pub per_accepted: PerOperation,
    pub per_request: PerOperation,
}

/// A gauge at both scrapes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BeforeAfter {
    pub before: f64,
    pub after: f64,
}

/// Costs divided by operations.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PerOperation {
    pub cpu_us: Option<f64>,
    pub written_bytes: Option<f64>,
    pub flushes: Option<f64>,
    /// Growth of the store's files.
    pub disk_bytes: Option<f64>,
}

impl TargetCosts {
    pub(super) fn new(scrape: &Scrape) -> Self {
        let target = scrape.target.clone();
        let (before, after) = match (&scrape.before, &scrape.after) {
            (Scraped::Text { at_ms, text }, Scraped::Text { at_ms: then, text: later }) => {
                ((*at_ms, Samples::parse(text)), (*then, Samples::parse(later)))
            }
            (Scraped::Failed { error, .. }, _) => {
                let problems = vec![format!("no metrics before the measured time: {error}")];
                return Self { target, costs: None, problems };
            }
            (Scraped::Text { .. }, Scraped::Failed { error, .. }) => {
                let problems = vec![format!("no metrics behind the measured time: {error}")];
                return Self { target, costs: None, problems };
            }
        };
        let mut problems = Vec::new();
        let costs = Costs::between(&before, &after, &mut problems);
        Self { target, costs: Some(costs), problems }
    }

    /// What is not known of it, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }
}

type At = (u64, Samples);

impl Costs {
    fn between(
        (before_ms, before): &At,
        (after_ms, after): &At,
        problems: &mut Vec<String>,
    ) -> Self {
        let started = |of: &Samples| of.sum("process_start_time_seconds", &[]);
        let anew = started(before) != started(after);
        if anew {
            problems.push(
                "its process was started anew between the scrapes: what it counted before is lost, and no difference is shown"
                    .to_owned(),
            );
        }
        let mut missing: Vec<&str> = Vec::new();
        let mut grown = |name: &'static str, labels: &[(&str, &str)]| {
            let Some(after) = after.sum(name, labels) else {
                missing.push(name);
                return None;
            };
            // one with labels is there from the first event on
            let before = before.sum(name, labels).unwrap_or_default();
            if after < before && !anew {
                problems
                    .push(format!("{name} went down from {before} to {after}: it is not shown"));
            }
            (!anew && after >= before).then_some(after - before)
        };
        let mut costs = Self {
            from_ms: *before_ms,
            elapsed_ms: after_ms.saturating_sub(*before_ms),
            requests: grown("mimid_http_requests_total", &[("listener", "client")]),
            accepted: grown("mimid_group_accepted_total", &[]),
            delivered: grown("mimid_queue_entries_delivered_total", &[]),
            cpu_seconds: grown("process_cpu_seconds_total", &[]),
            flushes: grown("mimid_store_flushes_total", &[]),
            flush_seconds: grown("mimid_store_flush_seconds_total", &[]),
            batches: grown("mimid_store_batches_total", &[]),
            written_bytes: grown("mimid_store_written_bytes_total", &[]),
            ..Self::default()
        };
        let mut gauge = |name: &'static str| match (before.sum(name, &[]), after.sum(name, &[])) {
            (Some(before), Some(after)) => Some(BeforeAfter { before, after }),
            (None, _) | (_, None) => {
                missing.push(name);
                None
            }
        };
        costs.resident_bytes = gauge("process_resident_memory_bytes");
        costs.disk_bytes = gauge("mimid_store_disk_bytes");
        if !missing.is_empty() {
            problems.push(format!("its metrics lack {}", missing.join(", ")));
        }
        costs.divide();
        costs
    }

    /// All targets together, where every one is known.
    pub(super) fn total(targets: &[TargetCosts]) -> Option<Self> {
        let all: Vec<&Self> = targets.iter().filter_map(|it| it.costs.as_ref()).collect();
        if all.is_empty() || all.len() < targets.len() {
            return None;
        }
        let sum = |of: fn(&Self) -> Option<f64>| all.iter().map(|it| of(it)).sum::<Option<f64>>();
        let both = |of: fn(&Self) -> Option<BeforeAfter>| {
            let add = |a: BeforeAfter, b: BeforeAfter| BeforeAfter {
                before: a.before + b.before,
                after: a.after + b.after,
            };
            let none = BeforeAfter { before: 0.0, after: 0.0 };
            all.iter().try_fold(none, |sum, it| Some(add(sum, of(it)?)))
        };
        let mut total = Self {
            from_ms: all.iter().map(|it| it.from_ms).min().unwrap_or_default(),
            elapsed_ms: all.iter().map(|it| it.elapsed_ms).max().unwrap_or_default(),
            requests: sum(|it| it.requests),
            accepted: sum(|it| it.accepted),
            delivered: sum(|it| it.delivered),
            cpu_seconds: sum(|it| it.cpu_seconds),
            flushes: sum(|it| it.flushes),
            flush_seconds: sum(|it| it.flush_seconds),
            batches: sum(|it| it.batches),
            written_bytes: sum(|it| it.written_bytes),
            resident_bytes: both(|it| it.resident_bytes),
            disk_bytes: both(|it| it.disk_bytes),
            ..Self::default()
        };
        total.divide();
        Some(total)
    }

    /// How many cores were at work on average.
    #[must_use]
    pub fn cores(&self) -> Option<f64> {
        let seconds = self.elapsed_ms as f64 / 1e3;
        self.cpu_seconds.filter(|_| seconds > 0.0).map(|cpu| cpu / seconds)
    }

    fn divide(&mut self) {
        let by = |operations: Option<f64>| {
            let per = |cost: Option<f64>| match (cost, operations) {
                (Some(cost), Some(operations)) if operations > 0.0 => Some(cost / operations),
                (Some(_) | None, Some(_) | None) => None,
            };
            PerOperation {
                cpu_us: per(self.cpu_seconds.map(|seconds| seconds * 1e6)),
                written_bytes: per(self.written_bytes),
                flushes: per(self.flushes),
                disk_bytes: per(self.disk_bytes.map(|it| it.after - it.before)),
            }
        };
        (self.per_accepted, self.per_request) = (by(self.accepted), by(self.requests));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "process_start_time_seconds 1000\nprocess_cpu_seconds_total 10.5\nprocess_resident_memory_bytes 50000000\n\
        mimid_store_flushes_total 100\nmimid_store_flush_seconds_total 1.5\nmimid_store_batches_total 400\n\
        mimid_store_written_bytes_total 1000000\nmimid_store_disk_bytes 2000000\nmimid_group_accepted_total 1000\n\
        mimid_queue_entries_delivered_total 5\nmimid_http_requests_total{listener=\"ops\",status=\"200\"} 7\n";
    const AFTER: &str = "process_start_time_seconds 1000\nprocess_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 60000000\n\
        mimid_store_flushes_total 300\nmimid_store_flush_seconds_total 2\nmimid_store_batches_total 1400\n\
        mimid_store_written_bytes_total 2000000\nmimid_store_disk_bytes 2500000\nmimid_group_accepted_total 2000\n\
        mimid_queue_entries_delivered_total 2005\nmimid_http_requests_total{listener=\"ops\",status=\"200\"} 9\n\
        mimid_http_requests_total{listener=\"client\",status=\"200\"} 3900\nmimid_http_requests_total{listener=\"client\",status=\"403\"} 100\n";

    fn of(before: &str, after: &str) -> TargetCosts {
        let text = |at_ms, text: &str| Scraped::Text { at_ms, text: text.to_owned() };
        let (before, after) = (text(1000, before), text(5000, after));
        TargetCosts::new(&Scrape { target: "https://a.example".into(), before, after })
    }

    #[test]
    fn costs_are_what_the_counters_grew_by() {
        let told = of(BEFORE, AFTER);
        assert_eq!(told.problems(), Vec::<String>::new());
        let costs = told.costs.unwrap();
        assert_eq!(
            (costs.elapsed_ms, costs.cpu_seconds, costs.cores()),
            (4000, Some(2.0), Some(0.5))
        );
        // none of them were there before
        assert_eq!((costs.requests, costs.accepted), (Some(4000.0), Some(1000.0)));
        assert_eq!((costs.delivered, costs.flushes), (Some(2000.0), Some(200.0)));
        let per = costs.per_accepted;
        assert_eq!((per.cpu_us, per.written_bytes), (Some(2000.0), Some(1000.0)));
        assert_eq!((per.flushes, per.disk_bytes), (Some(0.2), Some(500.0)));
        assert_eq!(costs.per_request.cpu_us, Some(500.0));
    }

    #[test]
    fn a_restart_is_told_and_nothing_is_subtracted() {
        let told = of(BEFORE, &AFTER.replace("time_seconds 1000", "time_seconds 1003"));
        assert!(told.problems()[0].contains("started anew between the scrapes"));
        let costs = told.costs.unwrap();
        let counters = [costs.cpu_seconds, costs.flushes, costs.accepted, costs.per_request.cpu_us];
        assert_eq!(counters, [None; 4]);
        assert!(costs.resident_bytes.is_some(), "a gauge is what it is");
    }

    #[test]
    fn a_counter_that_went_down_is_told_and_the_others_stand() {
        let told = of(BEFORE, &AFTER.replace("flushes_total 300", "flushes_total 3"));
        let says = "mimid_store_flushes_total went down from 100 to 3: it is not shown";
        assert_eq!(told.problems(), [says]);
        let costs = told.costs.unwrap();
        assert_eq!((costs.flushes, costs.per_accepted.flushes), (None, None));
        assert_eq!(costs.cpu_seconds, Some(2.0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let told = of(BEFORE, &AFTER.replace("mimid_store_flushes_total", "other"));
        assert_eq!(told.problems(), ["its metrics lack mimid_store_flushes_total"]);
        let nothing = of("", "");
        assert!(nothing.problems()[0].contains("process_cpu_seconds_total"));
        assert!(nothing.costs.unwrap().per_request.cpu_us.is_none());
    }

    #[test]
    fn a_total_is_of_all_targets_or_not_told() {
        let total = Costs::total(&[of(BEFORE, AFTER), of(BEFORE, AFTER)]).unwrap();
        assert_eq!((total.cpu_seconds, total.per_accepted.cpu_us), (Some(4.0), Some(2000.0)));
        assert_eq!(total.disk_bytes.unwrap().after, 5e6);
        let restarted = of(BEFORE, &AFTER.replace("time_seconds 1000", "time_seconds 1003"));
        let total = Costs::total(&[of(BEFORE, AFTER), restarted]).unwrap();
        assert_eq!(total.cpu_seconds, None, "half of it is not the whole");
        let failed = Scraped::Failed { at_ms: 0, error: "refused".into() };
        let scrape = Scrape { target: "b".into(), before: failed.clone(), after: failed };
        let unknown = TargetCosts::new(&scrape);
        assert_eq!(unknown.problems(), ["no metrics before the measured time: refused"]);
        assert!(Costs::total(&[of(BEFORE, AFTER), unknown]).is_none());
    }
}
