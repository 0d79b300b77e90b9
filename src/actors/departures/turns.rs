//! Whose turn it is: how many groups that leave are worked on at once, and how many of those for one target.
//!
//! Who has a turn may hold a group's whole content in memory. Who waits is in no other's way: first in its target's line, so
//! that a target that does not answer has a part of the turns at the most, then in the one of all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{actors::hints::locked, wire::ids::Domain};

#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    /// Of one target.
    each: usize,
    /// Of targets that somebody waits for or is at work for.
    lines: Mutex<HashMap<Domain, Weak<Semaphore>>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _of_target: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// At least one.
    #[must_use]
    pub fn new(turns_max: usize) -> Self {
        let turns_max = turns_max.clamp(1, Semaphore::MAX_PERMITS);
        let each = (turns_max / TARGET_PART).max(1);
        Self { all: Arc::new(Semaphore::new(turns_max)), each, lines: Mutex::default() }
    }

    /// Waits for one, in the order in which it was asked for a target.
    pub async fn take(&self, target: &Domain) -> Turn {
        let line = self.line_of(target);
        // neither is ever closed
        let of_target = line.acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _of_target: of_target, _of_all: of_all }
    }

    fn line_of(&self, target: &Domain) -> Arc<Semaphore> {
        let mut lines = locked(&self.lines);
        if let Some(line) = lines.get(target).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Semaphore::new(self.each));
        lines.insert(target.clone(), Arc::downgrade(&line));
        line
    }
}

/// One target has one part of so many of the turns.
const TARGET_PART: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    fn domain(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    /// Whether it comes without waiting.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_target_has_a_quarter_of_the_turns_and_leaves_the_others_theirs() {
        let turns = Turns::new(8);
        let (slow, good) = (domain("slow.example"), domain("good.example"));
        let first = now(turns.take(&slow)).unwrap();
        let _second = now(turns.take(&slow)).unwrap();
        assert!(now(turns.take(&slow)).is_none());
        let _good = now(turns.take(&good)).unwrap();
        drop(first);
        assert!(now(turns.take(&slow)).is_some());
    }

    #[test]
    fn no_more_than_all_turns_are_taken_by_however_many_targets() {
        let turns = Turns::new(2);
        let held: Vec<_> =
            ["a.example", "b.example"].iter().map(|name| now(turns.take(&domain(name)))).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(now(turns.take(&domain("c.example"))).is_none());
        drop(held);
        let _turn = now(turns.take(&domain("c.example"))).unwrap();
        // lines that nobody stands in are not kept
        assert_eq!(locked(&turns.lines).len(), 1);
    }
}
