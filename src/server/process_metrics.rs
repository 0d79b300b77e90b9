//! What the process takes, as Prometheus asks for it: prometheus' own collector, with CPU time in hundredths of a second. That one tells
//! whole seconds, which is too coarse for what a request costs, or for a rate over a few scrapes.

use std::fs;

use prometheus::{
    Counter,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};

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
    let seconds = cpu_seconds(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let counter = Counter::new(CPU, "Total user and system CPU time spent in seconds.").ok()?;
    counter.inc_by(seconds);
    counter.collect().pop()
}

/// User and system time in a process' `stat`, proc(5). The program's name before it may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(UTIME);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS_A_SECOND)
}

const CPU: &str = "process_cpu_seconds_total";
/// Fields between the name and `utime`, which `stime` follows.
const UTIME: usize = 11;
/// `USER_HZ`: what Linux tells programs in, on whatever it runs that mimid is built for.
const TICKS_A_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn cpu_time_is_user_and_system_time_whatever_the_program_is_called() {
        let stat = "17 (a b) 9 (x) S 1 17 17 0 -1 4194560 1 2 3 4 150 25 6 7 20 0 9 0 1";
        assert_eq!(cpu_seconds(stat), Some(1.75));
        for broken in ["", "17 (a)", "17 (a) S 1 17 17 0 -1 4194560 1 2 3 4 150", "x"] {
            assert_eq!(cpu_seconds(broken), None);
        }
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
