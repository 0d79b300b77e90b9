//! What a group remembers for a while: requests that it accepted, and the handshake messages of recent epochs.

use std::collections::{HashMap, VecDeque};

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

/// Accepted requests: commits for a number of epochs, the rest for a time, all of them up to a number.
#[derive(Debug, Default)]
pub(super) struct RequestMemory {
    known: HashMap<RequestKey, Accepted>,
    commits: VecDeque<(RequestKey, Accepted)>,
    others: VecDeque<(RequestKey, Accepted)>,
}

impl RequestMemory {
    pub(super) fn of(list: Vec<Remembered>) -> Self {
        let mut memory = Self::default();
        for Remembered { request, accepted, commit } in list {
            memory.insert(request, accepted, commit);
        }
        memory
    }

    pub(super) fn to_list(&self) -> Vec<Remembered> {
        let of = |commit: bool| {
            move |(request, accepted): &(RequestKey, Accepted)| Remembered {
                request: request.clone(),
                accepted: *accepted,
                commit,
            }
        };
        self.commits.iter().map(of(true)).chain(self.others.iter().map(of(false))).collect()
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
        if commit { &mut self.commits } else { &mut self.others }.push_back((request, accepted));
    }

    /// What was accepted of one sender is known by the name that it has from now on as well: it may not have had its answer, and asks
    /// again by that one.
    pub(super) fn renamed(&mut self, before: &[u8], now: &[u8]) {
        let of_it = self.to_list().into_iter().filter(|known| known.request.sender == before);
        for Remembered { request, accepted, commit } in of_it {
            let sender = now.to_vec();
            self.insert(RequestKey { sender, ..request }, accepted, commit);
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
    queue: &mut VecDeque<(RequestKey, Accepted)>,
    known: &mut HashMap<RequestKey, Accepted>,
    max: usize,
    old: &dyn Fn(&Accepted) -> bool,
) {
    while queue.front().is_some_and(|(_, accepted)| queue.len() > max || old(accepted)) {
        if let Some((request, _)) = queue.pop_front() {
            known.remove(&request);
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
