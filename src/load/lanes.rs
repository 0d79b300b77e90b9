//! The order within each group: messages of one epoch go side by side, and what changes the epoch goes alone. Pure.
//!
//! A message is of the epoch that it was made in, so it waits for the commit before it, as its client would; its latency counts from
//! when it was due all the same. What waits in all groups together has a bound: beyond, an operation is not begun, and counted so.

use std::{collections::VecDeque, time::Duration};

/// All groups' queues.
pub struct Lanes {
    lanes: Vec<Lane>,
    waiting: usize,
    waiting_max: usize,
}

#[derive(Default)]
struct Lane {
    running: u32,
    is_held: bool,
    /// When those were due that have not begun.
    waiting: VecDeque<Duration>,
}

impl Lanes {
    #[must_use]
    pub fn new(groups: usize, waiting_max: usize) -> Self {
        let lanes = std::iter::repeat_with(Lane::default).take(groups).collect();
        Self { lanes, waiting: 0, waiting_max }
    }

    /// Something is due in a group; `false` where too much waits already, and nothing was changed.
    #[must_use]
    pub fn arrive(&mut self, group: usize, due: Duration) -> bool {
        if self.waiting >= self.waiting_max {
            return false;
        }
        self.waiting += 1;
        self.lanes[group].waiting.push_back(due);
        true
    }

    /// When the one was due that begins now, if one can. `holds` says whether what comes next in the group goes alone, and is asked where
    /// something waits.
    pub fn begin<E>(
        &mut self,
        group: usize,
        holds: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<Duration>, E> {
        let lane = &mut self.lanes[group];
        if lane.is_held || lane.waiting.is_empty() {
            return Ok(None);
        }
        let holds = holds()?;
        if holds && lane.running > 0 {
            return Ok(None);
        }
        lane.is_held = holds;
        lane.running += 1;
        self.waiting -= 1;
        Ok(lane.waiting.pop_front())
    }

    /// One that had begun is over.
    pub fn end(&mut self, group: usize) {
        let lane = &mut self.lanes[group];
        lane.running = lane.running.saturating_sub(1);
        lane.is_held = false;
    }

    /// What waits in a group that is gone.
    pub fn abandon(&mut self, group: usize) -> Vec<Duration> {
        let left: Vec<Duration> = self.lanes[group].waiting.drain(..).collect();
        self.waiting -= left.len();
        left
    }

    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(lanes: &mut Lanes, holds: bool) -> Option<Duration> {
        lanes.begin(0, || Ok::<_, ()>(holds)).unwrap()
    }

    #[test]
    fn a_commit_waits_for_the_messages_before_it_and_those_behind_it_for_the_commit() {
        let at = Duration::from_millis;
        let mut lanes = Lanes::new(2, 100);
        for due in 0..4 {
            assert!(lanes.arrive(0, at(due)));
        }
        assert_eq!(begin(&mut lanes, false), Some(at(0)));
        assert_eq!(begin(&mut lanes, false), Some(at(1)));
        assert_eq!(begin(&mut lanes, true), None, "two messages are on their way");
        lanes.end(0);
        assert_eq!(begin(&mut lanes, true), None);
        lanes.end(0);
        assert_eq!(begin(&mut lanes, true), Some(at(2)));
        assert_eq!(begin(&mut lanes, false), None, "the commit is not answered");
        lanes.end(0);
        assert_eq!(begin(&mut lanes, false), Some(at(3)));
        assert_eq!((begin(&mut lanes, false), lanes.waiting()), (None, 0));
    }

    #[test]
    fn groups_do_not_wait_for_each_other_and_what_waits_has_a_bound() {
        let at = Duration::from_millis;
        let mut lanes = Lanes::new(2, 3);
        assert!(lanes.arrive(0, at(1)) && lanes.arrive(0, at(2)) && lanes.arrive(1, at(3)));
        assert!(!lanes.arrive(1, at(4)), "three wait");
        assert_eq!(begin(&mut lanes, true), Some(at(1)));
        assert_eq!(lanes.begin(1, || Ok::<_, ()>(true)), Ok(Some(at(3))));
        assert!(lanes.arrive(1, at(5)));
        assert_eq!(lanes.abandon(0), [at(2)]);
        assert_eq!(lanes.waiting(), 1);
        assert_eq!(lanes.begin(1, || Err("not asked while one is alone")), Ok(None));
    }
}
