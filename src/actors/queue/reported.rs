//! What gauges know of one queue: they are of all that are active.

use crate::{
    actors::node::Node,
    queue::state::QueueState,
    wire::ids::{ClientUri, Timestamp},
};

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reported {
    unacknowledged: i64,
    feeds: i64,
    /// When the oldest of the unacknowledged was accepted.
    oldest: Option<Timestamp>,
}

impl Reported {
    pub fn of(state: Option<&QueueState>) -> Self {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        state.map_or_else(Self::default, |state| Self {
            unacknowledged: number(state.unacknowledged()),
            feeds: number(state.feed_count()),
            oldest: state.oldest_unacknowledged(),
        })
    }

    /// From now on `client`'s queue stands so.
    pub fn set(&mut self, now: Self, client: &ClientUri, node: &Node) {
        let before = std::mem::replace(self, now);
        node.metrics.queue_entries_unacknowledged.add(now.unacknowledged - before.unacknowledged);
        node.metrics.queue_feeds.add(now.feeds - before.feeds);
        if now.oldest != before.oldest {
            node.queues.waiting.note(client, now.oldest);
        }
    }
}
