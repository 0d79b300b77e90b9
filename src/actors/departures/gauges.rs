//! Where the groups that leave stand, for Prometheus: looked up when somebody collects, so that ages are of that moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use prometheus::{
    IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::Running;
use crate::{
    actors::{clock::Clock, hints::locked},
    migration::source::Phase,
};

/// What a phase is called.
pub(super) fn name_of(phase: &Phase) -> &'static str {
    match phase {
        Phase::Frozen => FROZEN,
        Phase::Sent { .. } => SENT,
        Phase::Gone => CONFIRMING,
    }
}

pub(in crate::actors) struct DepartureCollector {
    running: Running,
    clock: Arc<dyn Clock>,
    groups: IntGaugeVec,
    oldest: IntGaugeVec,
    /// Who collects has the vectors alone.
    collecting: Mutex<()>,
}

impl DepartureCollector {
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub(super) fn new(running: Running, clock: Arc<dyn Clock>) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["state"]);
        Ok(Self {
            running,
            clock,
            groups: gauge(
                "mimid_migrations_leaving",
                "Groups that are on their way to another provider, by where they stand.",
            )?,
            oldest: gauge(
                "mimid_migrations_leaving_oldest_seconds",
                "Since when the one of them was frozen that has been so the longest; 0 where there is none.",
            )?,
            collecting: Mutex::new(()),
        })
    }
}

impl Collector for DepartureCollector {
    fn desc(&self) -> Vec<&Desc> {
        [&self.groups, &self.oldest].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.clock.now();
        let mut found: HashMap<&str, (i64, u64)> = HashMap::new();
        for run in locked(&self.running).values() {
            // one that was not looked at yet has just been frozen
            let stands = *locked(&run.stands);
            let (state, age_ms) =
                stands.map_or((FROZEN, 0), |(state, at)| (state, now.ms_since(at)));
            let (count, oldest_ms) = found.entry(state).or_default();
            *count += 1;
            *oldest_ms = age_ms.max(*oldest_ms);
        }
        let _alone = locked(&self.collecting);
        for state in [FROZEN, SENT, CONFIRMING] {
            let (count, oldest_ms) = found.get(state).copied().unwrap_or_default();
            self.groups.with_label_values(&[state]).set(count);
            let oldest_s = i64::try_from(oldest_ms / 1000).unwrap_or(i64::MAX);
            self.oldest.with_label_values(&[state]).set(oldest_s);
        }
        [&self.groups, &self.oldest].into_iter().flat_map(Collector::collect).collect()
    }
}

const FROZEN: &str = "frozen";
const SENT: &str = "sent";
const CONFIRMING: &str = "confirming";
