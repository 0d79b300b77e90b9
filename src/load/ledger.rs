//! What draining clients are to get of what was accepted, and what of it has come.
//!
//! An accepted message is known by its group and the hub's sequence in it: the answer names them, and so does each client's entry. Which
//! comes first does not matter. What a client gets twice is sorted out before ([`super::drain`]). Memory: an entry for each message that
//! is not with all of its readers, of at most as many messages as were accepted.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use crate::wire::ids::{Sequence, Timestamp};

/// Deliveries that are due, and those that came.
#[derive(Default)]
pub(super) struct Ledger {
    /// By account, whether it reads its queue.
    reads: Vec<bool>,
    warm_up_ms: u64,
    began_at: OnceLock<Timestamp>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// By group and sequence: so many more are due than came. Below zero: they came, and no answer has said that they would.
    groups: HashMap<Vec<u8>, HashMap<Sequence, i64>>,
    /// Of the warm-up, and of the measured time.
    sums: [Sums; 2],
}

/// All of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub due: u64,
    /// Of those due.
    pub missing: u64,
    /// Came, of messages whose requests had no answer that says so.
    pub untold: u64,
}

impl Ledger {
    /// `readers` read their queues, of so many accounts.
    #[must_use]
    pub fn new(readers: &[u32], accounts: usize, warm_up: Duration) -> Self {
        let mut reads = vec![false; accounts];
        for account in readers {
            if let Some(it) = reads.get_mut(*account as usize) {
                *it = true;
            }
        }
        let warm_up_ms = u64::try_from(warm_up.as_millis()).unwrap_or(u64::MAX);
        Self { reads, warm_up_ms, ..Self::default() }
    }

    /// What is accepted from here on counts.
    pub fn begin(&self, at: Timestamp) {
        let _ = self.began_at.set(at);
    }

    #[must_use]
    pub fn reads(&self, account: u32) -> bool {
        self.reads.get(account as usize).copied().unwrap_or_default()
    }

    /// A hub has said that it accepted a message which so many readers are to get.
    pub fn accepted(&self, group: &[u8], sequence: Sequence, at: Timestamp, readers: u32) {
        let Some(part) = self.part(at).filter(|_| readers > 0) else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sums[part].due += u64::from(readers);
        open.change(group, sequence, part, readers.into());
    }

    /// A reader has got a message that was accepted `at`: since the run's start, or none where that was before.
    pub fn came(&self, group: &[u8], sequence: Sequence, at: Timestamp) -> Option<Duration> {
        let part = self.part(at)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.change(group, sequence, part, -1);
        let began_at = self.began_at.get()?.0;
        Some(Duration::from_millis(at.0 - began_at))
    }

    /// How many are due and have not come.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sums.iter().map(|sums| sums.missing).sum()
    }

    /// Those of the measured time.
    #[must_use]
    pub fn measured(&self) -> Sums {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).sums[MEASURED]
    }

    fn part(&self, at: Timestamp) -> Option<usize> {
        let since_ms = at.0.checked_sub(self.began_at.get()?.0)?;
        Some(if since_ms < self.warm_up_ms { WARM_UP } else { MEASURED })
    }
}

impl Open {
    fn change(&mut self, group: &[u8], sequence: Sequence, part: usize, by: i64) {
        if !self.groups.contains_key(group) {
            self.groups.insert(group.to_vec(), HashMap::new());
        }
        let Some(of_group) = self.groups.get_mut(group) else { return };
        let balance = of_group.entry(sequence).or_default();
        let sums = &mut self.sums[part];
        let missing = |balance: i64| u64::try_from(balance).unwrap_or_default();
        (sums.missing, sums.untold) =
            (sums.missing - missing(*balance), sums.untold - missing(-*balance));
        *balance += by;
        (sums.missing, sums.untold) =
            (sums.missing + missing(*balance), sums.untold + missing(-*balance));
        if *balance == 0 {
            of_group.remove(&sequence);
        }
    }
}

const WARM_UP: usize = 0;
const MEASURED: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Ledger {
        let ledger = Ledger::new(&[0, 2], 3, Duration::from_secs(1));
        ledger.begin(Timestamp(10_000));
        ledger
    }

    #[test]
    fn what_is_accepted_is_due_until_it_has_come_to_all_whichever_is_told_first() {
        let (ledger, at) = (begun(), Timestamp(11_000));
        assert_eq!([0, 1, 2, 3].map(|it| ledger.reads(it)), [true, false, true, false]);
        ledger.accepted(b"a", Sequence(1), at, 2);
        assert_eq!(ledger.came(b"a", Sequence(1), at), Some(Duration::from_secs(1)));
        // an entry is here before the answer
        ledger.came(b"b", Sequence(1), at);
        assert_eq!(ledger.measured(), Sums { due: 2, missing: 1, untold: 1 });
        ledger.accepted(b"b", Sequence(1), at, 1);
        ledger.came(b"a", Sequence(1), at);
        assert_eq!(ledger.measured(), Sums { due: 3, missing: 0, untold: 0 });
        assert!(ledger.open.lock().unwrap().groups.values().all(HashMap::is_empty));
        // nobody who reads is in its group
        ledger.accepted(b"a", Sequence(2), at, 0);
        assert_eq!((ledger.measured().due, ledger.missing()), (3, 0));
    }

    #[test]
    fn what_came_of_a_message_without_an_answer_stands_in_for_no_other() {
        let (ledger, at) = (begun(), Timestamp(12_000));
        ledger.accepted(b"a", Sequence(1), at, 1);
        ledger.came(b"a", Sequence(2), at);
        assert_eq!(ledger.measured(), Sums { due: 1, missing: 1, untold: 1 });
    }

    #[test]
    fn the_warm_up_is_waited_for_and_not_measured_and_what_was_before_is_neither() {
        let ledger = begun();
        ledger.accepted(b"a", Sequence(7), Timestamp(10_999), 1);
        assert_eq!((ledger.missing(), ledger.measured()), (1, Sums::default()));
        ledger.came(b"a", Sequence(7), Timestamp(10_999));
        assert_eq!(ledger.came(b"a", Sequence(6), Timestamp(9_999)), None);
        assert_eq!((ledger.missing(), ledger.measured()), (0, Sums::default()));
        // nothing counts before it has begun
        let early = Ledger::new(&[0], 1, Duration::ZERO);
        assert_eq!(early.came(b"a", Sequence(1), Timestamp(1)), None);
    }
}
