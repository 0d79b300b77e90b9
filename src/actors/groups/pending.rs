//! How long proposals wait for a commit, for Prometheus. Of groups that are active: what a group that nobody asks for has pending
//! is in nobody's way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use prometheus::core::Collector;

use crate::{
    actors::{
        ages::{Aged, AgesCollector},
        clock::Clock,
        hints::locked,
    },
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
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub fn collector(
        &self,
        clock: Arc<dyn Clock>,
    ) -> Result<impl Collector + use<>, prometheus::Error> {
        let waiting = self.clone();
        AgesCollector::new(
            (
                "mimid_groups_with_pending_proposals",
                "Active groups in which a proposal waits for a commit.",
            ),
            (
                "mimid_group_pending_oldest_seconds",
                "How long the oldest proposal of them all has waited; 0 where none waits.",
            ),
            None,
            move || {
                let now = clock.now();
                let waiting = locked(&waiting.0);
                let oldest_ms = waiting.values().min().map_or(0, |since| now.ms_since(*since));
                vec![(None, Aged { count: waiting.len() as u64, oldest_ms })]
            },
        )
    }
}
