//! How long proposals wait for a commit, for Prometheus. Of groups that are active: what a group that nobody asks for has pending
//! is in nobody's way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use prometheus::{
    IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    actors::{clock::Clock, hints::locked},
    wire::ids::{GroupId, Timestamp},
};

/// Since when each active group's oldest pending proposal waits. As many at the most as there are active groups.
#[derive(Debug, Clone, Default)]
pub(in crate::actors) struct Waiting(Arc<Mutex<HashMap<GroupId, Timestamp>>>);

impl Waiting {
    /// `group`'s oldest pending proposal is of then; none where it has none, or is not active any more.
    pub fn note(&self, group: &GroupId, since: Option<Timestamp>) {
        let mut waiting = locked(&self.0);
        match since {
            None => {
                waiting.remove(group);
            }
            Some(since) => match waiting.get_mut(group) {
                Some(known) => *known = since,
                None => {
                    waiting.insert(group.clone(), since);
                }
            },
        }
    }
}

/// Looked up when somebody collects, so that the age is of that moment.
pub(in crate::actors) struct WaitingCollector {
    waiting: Waiting,
    clock: Arc<dyn Clock>,
    groups: IntGauge,
    oldest: IntGauge,
    /// Who collects has the gauges alone.
    collecting: Mutex<()>,
}

impl WaitingCollector {
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub fn new(waiting: Waiting, clock: Arc<dyn Clock>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            waiting,
            clock,
            groups: IntGauge::new(
                "mimid_groups_with_pending_proposals",
                "Active groups in which a proposal waits for a commit.",
            )?,
            oldest: IntGauge::new(
                "mimid_group_pending_oldest_seconds",
                "How long the oldest proposal of them all has waited; 0 where none waits.",
            )?,
            collecting: Mutex::new(()),
        })
    }
}

impl Collector for WaitingCollector {
    fn desc(&self) -> Vec<&Desc> {
        [&self.groups, &self.oldest].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.clock.now();
        let (count, oldest) = {
            let waiting = locked(&self.waiting.0);
            (waiting.len(), waiting.values().min().copied())
        };
        let oldest_ms = oldest.map_or(0, |since| now.ms_since(since));
        let _alone = locked(&self.collecting);
        self.groups.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.oldest.set(i64::try_from(oldest_ms / 1000).unwrap_or(i64::MAX));
        [&self.groups, &self.oldest].into_iter().flat_map(Collector::collect).collect()
    }
}
