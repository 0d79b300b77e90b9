//! Groups that something was left for, until somebody has woken them: each once, and a few at a time.

use std::sync::{Arc, Mutex};

use hashlink::LinkedHashSet;

use crate::{actors::hints::locked, wire::ids::GroupId};

/// Groups that wait; of more the next sweep finds what was left for them.
const WAITING_MAX: usize = 65_536;
/// Groups that are woken at a time, whatever room there is.
pub(super) const AT_ONCE_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    groups: LinkedHashSet<GroupId>,
    at_it: usize,
}

/// Who wakes one group after the other, until none is left.
#[derive(Debug)]
pub(super) struct Waker {
    of: Arc<Wakes>,
    is_over: bool,
}

impl Wakes {
    /// `group` is to be woken. One more is to be at it where there are fewer than `at_once_max`.
    pub fn add(self: &Arc<Self>, group: &GroupId, at_once_max: usize) -> Option<Waker> {
        let mut waiting = locked(&self.0);
        // who is told of again keeps its place
        if waiting.groups.len() < WAITING_MAX && !waiting.groups.contains(group) {
            waiting.groups.insert(group.clone());
        }
        if waiting.at_it >= at_once_max {
            return None;
        }
        waiting.at_it += 1;
        Some(Waker { of: Arc::clone(self), is_over: false })
    }
}

impl Waker {
    pub fn next(&mut self) -> Option<GroupId> {
        let mut waiting = locked(&self.of.0);
        let next = waiting.groups.pop_front();
        if next.is_none() && !self.is_over {
            // with the lock held: who is added from now on finds that nobody is at it
            self.is_over = true;
            waiting.at_it -= 1;
        }
        next
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        if !self.is_over {
            locked(&self.of.0).at_it -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ids::Domain;

    #[test]
    fn each_group_is_woken_once_by_no_more_than_may_be_at_it_and_none_is_left() {
        let wakes = Arc::new(Wakes::default());
        let domain = Domain::new("a.example").unwrap();
        let group = |seed| GroupId::of(&domain, [seed; 16]);
        let mut wakers: Vec<Waker> = Vec::new();
        for seed in [0, 1, 2, 1, 0, 3] {
            wakers.extend(wakes.add(&group(seed), 2));
        }
        assert_eq!(wakers.len(), 2);
        let woken: Vec<_> = std::iter::from_fn(|| wakers[0].next()).collect();
        assert_eq!(woken, [0, 1, 2, 3].map(group));
        // one has ended; the other, whatever becomes of it, makes room for the next
        wakers.truncate(1);
        let mut wakers: Vec<Waker> =
            (0..4).filter_map(|seed| wakes.add(&group(seed), 2)).chain(wakers).collect();
        assert_eq!(wakers.len(), 3);
        assert_eq!(wakers[1].next(), Some(group(0)));
        drop(wakers);
        assert_eq!(wakes.add(&group(9), 1).unwrap().next(), Some(group(1)), "nothing is lost");
    }
}
