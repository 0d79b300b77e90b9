//! What the process takes, as Prometheus asks for it: prometheus' own collector, with CPU time in parts of a second. That one tells
//! whole seconds, which is too coarse for what a request costs, or for a rate over a few scrapes. And with the start's time by the clock:
//! that one adds it up from /proc/stat, which a unit with `ProcSubset=pid` does not show, and is 0 there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Counter, Gauge,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};
use rustix::time::{ClockId, clock_gettime};

/// Exports `process_…`.
pub struct ProcessMetrics {
    process: ProcessCollector,
    /// Since 1970. One value for good: whoever sees it change sees a restart.
    started: Duration,
}

impl ProcessMetrics {
    /// Of a process that has just begun.
    #[must_use]
    pub fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { process: ProcessCollector::for_self(), started }
    }
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.process.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.process.collect();
        for (name, ours) in [(CPU, cpu_family()), (STARTED, started_family(self.started))] {
            let Some(ours) = ours else { continue };
            match families.iter_mut().find(|family| family.name() == name) {
                Some(theirs) => *theirs = ours,
                None => families.push(ours),
            }
        }
        families
    }
}

fn cpu_family() -> Option<MetricFamily> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let counter = Counter::new(CPU, "Total user and system CPU time spent in seconds.").ok()?;
    counter.inc_by(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
    counter.collect().pop()
}

fn started_family(started: Duration) -> Option<MetricFamily> {
    let help = "Start time of the process since unix epoch in seconds.";
    let gauge = Gauge::new(STARTED, help).ok()?;
    gauge.set(started.as_secs_f64());
    gauge.collect().pop()
}

const STARTED: &str = "process_start_time_seconds";
const CPU: &str = "process_cpu_seconds_total";

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_start_is_told_by_the_clock_and_does_not_move() {
        let metrics = ProcessMetrics::new();
        let told = || {
            let families = metrics.collect();
            let started: Vec<_> = families.iter().filter(|it| it.name() == STARTED).collect();
            assert_eq!(started.len(), 1);
            started[0].get_metric()[0].get_gauge().get_value()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let first = told();
        assert!((now - 60.0..now + 1.0).contains(&first), "{first}, and it is {now}");
        assert!((told() - first).abs() < f64::EPSILON);
    }

    #[test]
    fn a_scrape_tells_cpu_time_once_and_finer_than_seconds() {
        let metrics = ProcessMetrics::new();
        let names: Vec<String> = metrics.desc().iter().map(|it| it.fq_name.clone()).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let families = metrics.collect();
            let told: Vec<String> = families.iter().map(|it| it.name().to_owned()).collect();
            assert_eq!(told.iter().filter(|name| *name == CPU).count(), 1);
            assert!(told.iter().all(|name| names.contains(name)), "{told:?}");
            let cpu = families.iter().find(|it| it.name() == CPU).unwrap();
            let seconds = cpu.get_metric()[0].get_counter().get_value();
            assert!(seconds >= 0.0);
            if seconds.fract() != 0.0 {
                break;
            }
            assert!(Instant::now() < deadline, "{seconds} s are whole again and again");
        }
    }
}
