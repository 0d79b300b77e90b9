//! What a group remembers for a while: requests that it accepted, and the handshake messages of recent epochs.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
};

use crate::{
    store::records::RequestKey,
    wire::{
        codec::decode,
        ds::{Accepted, MISSED_BYTES_MAX},
        ids::{Epoch, Timestamp},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

use super::{Settings, record::Remembered};

/// Handshake messages that a `wrong_epoch` carries at the most.
const MISSED_MAX: usize = 64;

/// Accepted requests: commits for a number of epochs, the rest for a time, of either kind up to a number. Beyond that whoever has most is
/// forgotten its oldest, so that nobody who sends much makes the group forget what others sent.
#[derive(Debug, Default)]
pub(super) struct RequestMemory {
    known: HashMap<RequestKey, Accepted>,
    commits: Kept,
    others: Kept,
}

impl RequestMemory {
    /// As [`Self::to_list`] has it: what is forgotten next rests on nothing else.
    pub(super) fn of(list: Vec<Remembered>) -> Self {
        let mut memory = Self::default();
        for Remembered { request, accepted, commit } in list {
            memory.insert(request, accepted, commit);
        }
        memory
    }

    /// Commits, then the rest, each in the order that they came in.
    pub(super) fn to_list(&self) -> Vec<Remembered> {
        let of = |commit: bool| {
            move |(request, accepted): &(RequestKey, Accepted)| Remembered {
                request: request.clone(),
                accepted: *accepted,
                commit,
            }
        };
        let (commits, others) = (self.commits.by_age.values(), self.others.by_age.values());
        commits.map(of(true)).chain(others.map(of(false))).collect()
    }

    pub(super) fn get(&self, request: &RequestKey) -> Option<&Accepted> {
        self.known.get(request)
    }

    /// Of the records of one request the first is the one that is answered.
    pub(super) fn insert(&mut self, request: RequestKey, accepted: Accepted, commit: bool) {
        if self.known.contains_key(&request) {
            return;
        }
        self.known.insert(request.clone(), accepted);
        if commit { &mut self.commits } else { &mut self.others }.push(request, accepted);
    }

    /// What was accepted of one sender is known by the name that it has from now on as well: it may not have had its answer, and asks
    /// again by that one.
    pub(super) fn renamed(&mut self, before: &[u8], now: &[u8]) {
        for (commit, kept) in [(true, self.commits.of(before)), (false, self.others.of(before))] {
            for (RequestKey { request_id, .. }, accepted) in kept {
                self.insert(RequestKey { sender: now.to_vec(), request_id }, accepted, commit);
            }
        }
    }

    pub(super) fn forget(&mut self, now: Timestamp, epoch: Epoch, settings: &Settings) {
        let old_commit = |accepted: &Accepted| {
            accepted.epoch.0.saturating_add(settings.remember_epochs) <= epoch.0
        };
        let old_other =
            |accepted: &Accepted| now.ms_since(accepted.accepted_at) > settings.remember_ms;
        forget(&mut self.commits, &mut self.known, settings.remember_max, &old_commit);
        forget(&mut self.others, &mut self.known, settings.remember_max, &old_other);
    }
}

fn forget(
    kept: &mut Kept,
    known: &mut HashMap<RequestKey, Accepted>,
    max: usize,
    old: &dyn Fn(&Accepted) -> bool,
) {
    while let Some(at) = kept.oldest(old).or_else(|| kept.one_too_many(max)) {
        if let Some(request) = kept.remove(at) {
            known.remove(&request);
        }
    }
}

/// Requests of one kind, each by its place in the order that they came in.
#[derive(Debug, Default)]
struct Kept {
    next: u64,
    by_age: BTreeMap<u64, (RequestKey, Accepted)>,
    by_sender: HashMap<Vec<u8>, VecDeque<u64>>,
    /// How many each sender has, and the oldest of these: last who has most, of equals the one whose oldest is oldest.
    by_count: BTreeSet<(usize, Reverse<u64>)>,
}

impl Kept {
    fn push(&mut self, request: RequestKey, accepted: Accepted) {
        let at = self.next;
        self.next += 1;
        self.change(&request.sender, |places| places.push_back(at));
        self.by_age.insert(at, (request, accepted));
    }

    /// All of one sender.
    fn of(&self, sender: &[u8]) -> Vec<(RequestKey, Accepted)> {
        let places = self.by_sender.get(sender).into_iter().flatten();
        places.filter_map(|at| self.by_age.get(at).cloned()).collect()
    }

    /// The oldest, where it is too old.
    fn oldest(&self, old: impl Fn(&Accepted) -> bool) -> Option<u64> {
        let (at, (_, accepted)) = self.by_age.first_key_value()?;
        old(accepted).then_some(*at)
    }

    /// The oldest of whoever has most, where there are more than `max`.
    fn one_too_many(&self, max: usize) -> Option<u64> {
        let (_, Reverse(at)) = self.by_count.last()?;
        (self.by_age.len() > max).then_some(*at)
    }

    /// `at` is its sender's oldest.
    fn remove(&mut self, at: u64) -> Option<RequestKey> {
        let (request, _) = self.by_age.remove(&at)?;
        self.change(&request.sender, |places| {
            places.pop_front();
        });
        Some(request)
    }

    fn change(&mut self, sender: &[u8], act: impl FnOnce(&mut VecDeque<u64>)) {
        let mut places = self.by_sender.remove(sender).unwrap_or_default();
        if let Some(oldest) = places.front() {
            self.by_count.remove(&(places.len(), Reverse(*oldest)));
        }
        act(&mut places);
        if let Some(oldest) = places.front() {
            self.by_count.insert((places.len(), Reverse(*oldest)));
            self.by_sender.insert(sender.to_vec(), places);
        }
    }
}

/// The handshake messages of recent epochs in feed order, for those who lost a race.
#[derive(Debug)]
pub(super) struct RecentHandshakes {
    messages: VecDeque<(Epoch, MlsMessage)>,
    bytes: usize,
    /// Every handshake message of this epoch and of later ones is here.
    complete_from: Epoch,
}

impl RecentHandshakes {
    /// `complete`: nothing was sent in `epoch` so far.
    pub(super) fn from_epoch(epoch: Epoch, complete: bool) -> Self {
        let complete_from = if complete { epoch } else { epoch.next() };
        Self { messages: VecDeque::new(), bytes: 0, complete_from }
    }

    /// `epoch` is the one that the message was sent in.
    pub(super) fn push(&mut self, epoch: Epoch, event: &[u8]) {
        let Ok(QueueEvent::MlsMessage { message }) = decode(event) else { return };
        self.bytes += message.as_slice().len();
        self.messages.push_back((epoch, message));
        while self.messages.len() > MISSED_MAX || self.bytes > MISSED_BYTES_MAX {
            if let Some((epoch, message)) = self.messages.pop_front() {
                self.bytes -= message.as_slice().len();
                self.complete_from = epoch.next();
            }
        }
    }

    /// Forgets the commit of `epoch` that `is_void` knows, and what was sent behind it.
    pub(super) fn go_back(&mut self, epoch: Epoch, is_void: impl Fn(&[u8]) -> bool) {
        self.messages.retain(|(sent, message)| {
            let stays = *sent < epoch || (*sent == epoch && !is_void(message.as_slice()));
            if !stays {
                self.bytes -= message.as_slice().len();
            }
            stays
        });
        // what was let go of for its size may have been of either
        if self.complete_from > epoch {
            self.complete_from = epoch.next();
        }
    }

    /// What was sent since `epoch`, or nothing where that is not known in full.
    pub(super) fn since(&self, epoch: Epoch) -> Vec<MlsMessage> {
        if epoch < self.complete_from {
            return Vec::new();
        }
        let since = self.messages.iter().filter(|(sent, _)| *sent >= epoch);
        since.map(|(_, message)| message.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::ids::{Domain, RequestId, Sequence};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn settings(remember_max: usize) -> Settings {
        Settings { remember_max, ..Settings::new(Domain::new("a.example").unwrap()) }
    }

    fn key(sender: u8, number: u16) -> RequestKey {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        RequestKey { sender: vec![sender], request_id: RequestId(id) }
    }

    fn accepted(number: u16, accepted_at: Timestamp) -> Accepted {
        let group_sequence = Sequence(u64::from(number));
        Accepted { group_sequence, accepted_at, epoch: Epoch(1) }
    }

    fn numbers_of(memory: &RequestMemory, sender: u8) -> Vec<u64> {
        let list = memory.to_list().into_iter();
        let its = list.filter(|known| known.request.sender == [sender]);
        its.map(|known| known.accepted.group_sequence.0).collect()
    }

    #[test]
    fn who_sends_much_is_forgotten_its_own_and_of_equals_the_oldest() {
        for commit in [false, true] {
            let mut memory = RequestMemory::default();
            let mut say = |sender, number| {
                memory.insert(key(sender, number), accepted(number, NOW), commit);
                memory.forget(NOW, Epoch(1), &settings(6));
                [0, 1, 2].map(|sender| numbers_of(&memory, sender))
            };
            for number in 0..3 {
                say(u8::try_from(number % 2).unwrap(), number);
            }
            for number in 3..50 {
                say(2, number);
            }
            assert_eq!(say(2, 50), [vec![0, 2], vec![1], vec![48, 49, 50]]);
            assert_eq!(say(1, 51), [vec![0, 2], vec![1, 51], vec![49, 50]]);
            assert_eq!(say(1, 52), [vec![0, 2], vec![51, 52], vec![49, 50]]);
            // all have as many: the one whose oldest is oldest
            assert_eq!(say(3, 53), [vec![2], vec![51, 52], vec![49, 50]]);
            for (sender, number, is_known) in [(0, 0, false), (0, 2, true), (2, 48, false)] {
                assert_eq!(memory.get(&key(sender, number)).is_some(), is_known);
            }
        }
    }

    /// Who sends, whether a commit, and what else happens: nothing, a new name, a restart.
    type Step = (u8, bool, u8);

    proptest! {
        #[test]
        fn what_is_forgotten_is_the_same_after_a_restart_anywhere_and_bounded(
            steps in prop::collection::vec((0_u8..5, any::<bool>(), 0_u8..12), 1..200),
        ) {
            let settings = settings(12);
            let (mut live, mut restarted) = (RequestMemory::default(), RequestMemory::default());
            for (number, (sender, commit, what)) in steps.into_iter().enumerate() {
                let (_, _, what): Step = (sender, commit, what);
                let number = u16::try_from(number).unwrap();
                let now = NOW.plus_ms(u64::from(number) * settings.remember_ms / 40);
                for memory in [&mut live, &mut restarted] {
                    let skewed = if sender == 0 { 0 } else { 60_000 };
                    memory.insert(key(sender, number), accepted(number, now.plus_ms(skewed)), commit);
                    if what == 0 {
                        memory.renamed(&[sender], &[sender + 1]);
                    }
                    memory.forget(now, Epoch(1 + u64::from(number)), &settings);
                }
                if what == 1 {
                    restarted = RequestMemory::of(restarted.to_list());
                }
                let list = live.to_list();
                prop_assert_eq!(&list, &restarted.to_list());
                prop_assert_eq!(list.len(), live.known.len());
                let commits = list.iter().filter(|known| known.commit).count();
                prop_assert!(commits <= 12 && list.len() - commits <= 12);
                for known in list {
                    prop_assert_eq!(live.get(&known.request), Some(&known.accepted));
                }
            }
        }
    }
}
