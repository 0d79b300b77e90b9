//! The groups that are in memory, in the order in which they were asked for last; and the queue before each, in time.
//!
//! A request costs the same however many groups there are: who is to go for another is at the front of the order.

use std::{
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashlink::LinkedHashMap;
use tokio::time::Instant;

use super::hints::locked;
use crate::rate::Line;

/// Values by key, the one that was asked for longest ago first.
#[derive(Debug)]
pub(super) struct InUse<K: Hash + Eq, V>(LinkedHashMap<K, V>);

impl<K: Hash + Eq + Clone, V> InUse<K, V> {
    pub fn new() -> Self {
        Self(LinkedHashMap::new())
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Without asking for it.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    /// Asks for one: it is the last to go now.
    pub fn ask(&mut self, key: &K) -> Option<&V> {
        self.0.to_back(key).map(|value| &*value)
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.0.insert(key, value);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key)
    }

    /// The one that was asked for longest ago. It goes to the end of the order: where it cannot go, it is not what is found
    /// the next time.
    pub fn next_to_go(&mut self) -> Option<&V> {
        let key = self.0.front()?.0.clone();
        self.ask(&key)
    }
}

/// The requests that wait for one group's actor.
#[derive(Debug, Default)]
pub(super) struct GroupLine {
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

/// A place in it, until the request is taken up.
#[derive(Debug)]
pub struct InLine {
    of: Arc<GroupLine>,
    ahead: usize,
    since: Instant,
}

impl GroupLine {
    pub fn enter(self: &Arc<Self>) -> InLine {
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        InLine { of: Arc::clone(self), ahead, since: Instant::now() }
    }

    /// How long one more would wait, where that is longer than `max`.
    pub fn is_too_long(&self, max: Duration) -> Option<Duration> {
        locked(&self.line).is_too_long(self.waiting.load(Ordering::Relaxed), max)
    }
}

impl InLine {
    /// The actor has it.
    pub(super) fn taken_up(self) {
        locked(&self.of.line).took_up(self.ahead, self.since.elapsed());
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.of.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn who_was_asked_for_longest_ago_goes_first_and_who_cannot_go_is_not_asked_again_at_once() {
        let mut groups = InUse::new();
        for n in 0..4 {
            groups.insert(n, n);
        }
        groups.ask(&0);
        groups.peek(&1);
        assert_eq!(groups.next_to_go(), Some(&1));
        assert_eq!(groups.next_to_go(), Some(&2), "1 has stayed, and is not in the way");
        groups.remove(&3);
        assert_eq!(groups.next_to_go(), Some(&0));
        assert_eq!(groups.next_to_go(), Some(&1));
        assert_eq!(groups.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_whose_requests_wait_too_long_has_no_room_until_they_are_taken_up() {
        let max = Duration::from_millis(250);
        let line = Arc::new(GroupLine::default());
        let mut waiting: std::collections::VecDeque<InLine> =
            (0..20).map(|_| line.enter()).collect();
        assert_eq!(line.is_too_long(max), None, "nothing is known yet");
        // each takes 20 ms
        for _ in 0..10 {
            tokio::time::advance(Duration::from_millis(20)).await;
            waiting.pop_front().unwrap().taken_up();
            waiting.push_back(line.enter());
        }
        let wait = line.is_too_long(max).unwrap();
        assert!(wait >= Duration::from_millis(300), "{wait:?}");
        // those that nobody takes up any more count no more
        waiting.truncate(9);
        assert_eq!(line.is_too_long(max), None);
    }

    /// What a request costs at `groups.active_max`, before and after. Run it by name with `--release`, `--ignored` and `--nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_request_costs_while_the_memory_is_full() {
        const ROUNDS: u32 = 2_000;
        for groups in [1_000_u32, 20_000, 200_000] {
            let ids = || (0..groups).map(|n| format!("mimi://a.example/g/{n:032}"));
            let map: HashMap<String, u32> = ids().zip(0..).collect();
            let mut order = InUse::new();
            ids().zip(0_u32..).for_each(|(id, n)| order.insert(id, n));
            let mut sum = 0_u64;
            let began = std::time::Instant::now();
            for round in 0..ROUNDS {
                // as it was: from another place each time
                let from = (round * 4 * 7919) as usize % map.len();
                sum += map.values().skip(from).take(4).map(|n| u64::from(*n)).sum::<u64>();
            }
            let before = began.elapsed() / ROUNDS;
            let began = std::time::Instant::now();
            for _ in 0..ROUNDS {
                for _ in 0..4 {
                    sum += order.next_to_go().map_or(0, |n| u64::from(*n));
                }
            }
            let after = began.elapsed() / ROUNDS;
            let ratio = before.as_secs_f64() / after.as_secs_f64();
            println!("{groups} groups: {before:?} before, {after:?} now, {ratio:.1} times ({sum})");
        }
    }
}
