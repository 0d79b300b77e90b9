//! Hints.
use super::metrics::Metrics;
use crate::wire::ids::{ClientUri, GroupId};

/// Wakes who is online. A hint may be lost: what it tells of is in the store.
#[derive(Debug)]
pub struct Hints {
    metrics: Metrics,
}

impl Hints {
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }

    /// The group accepted something: one call per accepted message, whatever the group's size.
    pub fn feed_grew(&self, _group: &GroupId) {
        self.metrics.queue_hints.inc();
    }

    /// Something was left for the client.
    pub fn inbox(&self, _client: &ClientUri) {}

    /// Something was left for the group: calls what [`Self::on_notice`] was given.
    pub fn notice(&self, _group: &GroupId) {}

    /// Who wakes a group for what was left for it. Set once, by who owns the groups.
    pub fn on_notice(&self, _wake: impl Fn(&GroupId) + Send + Sync + 'static) {}
}
