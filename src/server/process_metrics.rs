//! What the process takes, as Prometheus asks for it: prometheus' own collector, with CPU time in parts of a second. That one tells
//! whole seconds, which is too coarse for what a request costs, or for a rate over a few scrapes.

use prometheus::{
    Counter,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};
use rustix::time::{ClockId, clock_gettime};

/// Exports `process_…`.
pub struct ProcessMetrics(ProcessCollector);

impl ProcessMetrics {
    #[must_use]
    pub fn new() -> Self {
        Self(ProcessCollector::for_self())
    }
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let cpu = families.iter_mut().find(|family| family.name() == CPU);
        if let (Some(cpu), Some(exact)) = (cpu, cpu_family()) {
            *cpu = exact;
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

const CPU: &str = "process_cpu_seconds_total";

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

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
