//! Where the groups that leave stand, for Prometheus.

use std::{collections::HashMap, sync::Arc};

use prometheus::core::Collector;

use super::Running;
use crate::{
    actors::{
        ages::{Aged, AgesCollector},
        clock::Clock,
        hints::locked,
    },
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

/// # Errors
/// Where a name is not one of Prometheus'.
pub(super) fn collector(
    running: Running,
    clock: Arc<dyn Clock>,
) -> Result<impl Collector, prometheus::Error> {
    AgesCollector::new(
        (
            "mimid_migrations_leaving",
            "Groups that are on their way to another provider, by where they stand.",
        ),
        (
            "mimid_migrations_leaving_oldest_seconds",
            "Since when the one of them was frozen that has been so the longest; 0 where there is none.",
        ),
        Some("state"),
        move || {
            let now = clock.now();
            let mut found: HashMap<&str, Aged> = HashMap::new();
            for run in locked(&running).values() {
                // one that was not looked at yet has just been frozen
                let stands = *locked(&run.stands);
                let (state, age_ms) =
                    stands.map_or((FROZEN, 0), |(state, at)| (state, now.ms_since(at)));
                let of = found.entry(state).or_default();
                of.count += 1;
                of.oldest_ms = of.oldest_ms.max(age_ms);
            }
            let of = |state| (Some(state), found.get(state).copied().unwrap_or_default());
            [FROZEN, SENT, CONFIRMING].map(of).to_vec()
        },
    )
}

const FROZEN: &str = "frozen";
const SENT: &str = "sent";
const CONFIRMING: &str = "confirming";
