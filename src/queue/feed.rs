//! One membership's interval of a group's feed, as its client sees it: what of it is delivered, with which
//! `previous`, and what an acknowledgement moves. PROTOCOL.md §3; DESIGN "feeds".
//!
//! Deliberately absent: the order between feeds and the window ([`super::state`]).

use std::collections::VecDeque;

use crate::{
    store::records::{FeedEntry, Subscription},
    wire::{
        codec::{Opaque, decode},
        ids::{GroupId, Sequence, Timestamp},
        queueing::{QueueEntry, QueueEvent},
    },
};

/// What a read of a group's feed found: first its head, then its entries. `entries` begin at or behind the sequence that was
/// asked for and may be fewer than there are, but never none where there is one.
#[derive(Debug, Clone)]
pub struct FeedView {
    /// The oldest sequence that is still there.
    pub first: Sequence,
    /// The one that the next accepted message will have.
    pub next: Sequence,
    /// The group was deleted: there will be no more.
    pub deleted: bool,
    /// Nothing is left of it, not even how far it went; what is said of it else means nothing. So it is with a copy that
    /// nobody was in for long.
    pub gone: bool,
    pub entries: Vec<FeedEntry>,
}

/// What may still be handed out: unacknowledged bytes and entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub bytes: usize,
    pub entries: usize,
    /// Nothing is on its way: one entry fits, however large it is.
    pub idle: bool,
    /// There was no room for an entry that was to be delivered.
    pub refused: bool,
}

impl Room {
    pub fn take(&mut self, bytes: usize) -> bool {
        if self.entries == 0 || (bytes > self.bytes && !self.idle) {
            self.refused = true;
            return false;
        }
        *self = Self {
            bytes: self.bytes.saturating_sub(bytes),
            entries: self.entries - 1,
            idle: false,
            refused: self.refused,
        };
        true
    }
}

/// Delivered and not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending<S> {
    pub sequence: S,
    pub bytes: usize,
    pub accepted_at: Timestamp,
}

/// A subscription at work.
#[derive(Debug)]
pub(super) struct Feed {
    /// What is to be persisted of it.
    pub subscription: Subscription,
    /// Everything up to here was delivered or skipped in this session.
    pub cursor: Sequence,
    /// What `previous` of the next entry names.
    given: Sequence,
    pub pending: VecDeque<Pending<Sequence>>,
    /// The group's next sequence, as far as it is known.
    pub end: Sequence,
    /// Its turn to be read, where it waits for one.
    pub turn: Option<u64>,
}

impl Feed {
    pub fn new(subscription: Subscription) -> Self {
        Self {
            cursor: subscription.acknowledged,
            given: subscription.previous,
            pending: VecDeque::new(),
            end: Sequence(0),
            turn: None,
            subscription,
        }
    }

    /// Begins anew with what is unacknowledged.
    pub fn rewind(&mut self) {
        self.settle();
        self.pending.clear();
        self.cursor = self.subscription.acknowledged;
        self.given = self.subscription.previous;
    }

    /// Where a read is to begin.
    pub fn from(&self) -> Sequence {
        self.cursor.next().max(self.subscription.from)
    }

    /// Delivers what fits into `room` of what `view` holds. Whether there is more to be read is the second result.
    pub fn deliver(
        &mut self,
        view: FeedView,
        room: &mut Room,
        now: Timestamp,
    ) -> (Vec<QueueEntry>, bool) {
        let mut entries = Vec::new();
        self.end = self.end.max(view.next);
        let more = self.try_deliver(view, room, now, &mut entries).is_err();
        self.settle();
        (entries, more)
    }

    fn try_deliver(
        &mut self,
        view: FeedView,
        room: &mut Room,
        now: Timestamp,
        out: &mut Vec<QueueEntry>,
    ) -> Result<(), Full> {
        let last = self.subscription.last.unwrap_or(Sequence(u64::MAX));
        let first = match self.subscription.last {
            Some(last) if view.gone => last.next(),
            Some(_) | None => view.first,
        };
        self.skip_to(first.max(self.subscription.from), &view, room, now, out)?;
        let read_until = view.entries.last().map(|entry| entry.sequence);
        for entry in &view.entries {
            if entry.sequence <= self.cursor {
                continue;
            }
            if entry.sequence > last {
                break;
            }
            self.skip_to(entry.sequence, &view, room, now, out)?;
            if self.wants(entry) {
                // what cannot be read any more is said to be missing, and stands in nobody's way
                let event = decode(&entry.event)
                    .unwrap_or(QueueEvent::Gap { next_available: entry.sequence.next() });
                if let QueueEvent::Gap { next_available } = event {
                    // stands in a copy of a feed where its hub left entries out
                    self.skip_to(next_available, &view, room, now, out)?;
                } else {
                    let bytes = entry.event.len();
                    self.give(entry.sequence, entry.accepted_at, event, bytes, room, out)?;
                }
            }
            self.cursor = self.cursor.max(entry.sequence);
        }
        // what a copy did not keep up to the end of a membership does not come any more, whether its log goes on or not
        if self.cursor < last && last < view.next && read_until.is_none_or(|until| until > last) {
            self.skip_to(last.next(), &view, room, now, out)?;
        }
        if self.cursor == last && self.subscription.removed {
            self.give(last.next(), now, QueueEvent::Removed, 0, room, out)?;
            self.cursor = last.next();
        }
        // a read that found nothing where something should be is repeated when the feed grows, not at once
        match read_until {
            Some(until) if self.cursor < last && until.next() < view.next => Err(Full),
            _ => Ok(()),
        }
    }

    /// Says that what is before `next` is gone, if the client did not have it yet.
    fn skip_to(
        &mut self,
        next: Sequence,
        view: &FeedView,
        room: &mut Room,
        now: Timestamp,
        out: &mut Vec<QueueEntry>,
    ) -> Result<(), Full> {
        let last = self.subscription.last.unwrap_or(Sequence(u64::MAX - 1));
        let next = next.min(last.next());
        // the end of a deleted group is known without its entry
        let ends = (view.deleted || view.gone) && !self.subscription.removed && next == last.next();
        let next = if ends { last } else { next };
        if next > self.cursor.next() {
            let (event, at) = (QueueEvent::Gap { next_available: next }, Sequence(next.0 - 1));
            self.give(at, now, event, 0, room, out)?;
            self.cursor = at;
        }
        if ends && self.cursor < last {
            self.give(last, now, QueueEvent::GroupDeleted, 0, room, out)?;
            self.cursor = last;
        }
        Ok(())
    }

    fn wants(&self, entry: &FeedEntry) -> bool {
        let handshake_only = self
            .subscription
            .filters
            .iter()
            .take_while(|(from, _)| *from <= entry.sequence)
            .last()
            .is_some_and(|(_, handshake_only)| *handshake_only);
        !entry.event.is_empty()
            && entry.except != Some(self.subscription.recipient)
            && (entry.handshake || !handshake_only)
    }

    fn give(
        &mut self,
        sequence: Sequence,
        accepted_at: Timestamp,
        event: QueueEvent,
        event_bytes: usize,
        room: &mut Room,
        out: &mut Vec<QueueEntry>,
    ) -> Result<(), Full> {
        let bytes = event_bytes + ENTRY_BYTES;
        if !room.take(bytes) {
            return Err(Full);
        }
        self.pending.push_back(Pending { sequence, bytes, accepted_at });
        let group_id = group_id_bytes(&self.subscription.group);
        let (feed, previous) = (self.subscription.feed, self.given);
        self.given = sequence;
        out.push(QueueEntry { feed, sequence, previous, accepted_at, group_id, event });
        Ok(())
    }

    /// The highest sequence that this feed can have given to the client.
    pub fn highest(&self) -> Sequence {
        let known = Sequence(self.end.0.saturating_sub(1)).max(self.cursor);
        match self.subscription.last {
            Some(last) if self.subscription.removed && known >= last => last.next(),
            Some(last) => known.min(last),
            None => known,
        }
    }

    /// Acknowledges up to `sequence`, which is not above [`Self::highest`]. Gives what it released.
    pub fn acknowledge(&mut self, sequence: Sequence) -> Vec<Pending<Sequence>> {
        let released: Vec<_> = drain_until(&mut self.pending, sequence);
        if sequence > self.cursor {
            // delivered before this queue was loaded
            (self.cursor, self.given) = (sequence, sequence);
            self.subscription.previous = sequence;
        } else if let Some(last) = released.last() {
            self.subscription.previous = last.sequence;
        }
        self.settle();
        released
    }

    /// Whether the client has everything of a membership that has ended.
    pub fn is_over(&self) -> bool {
        let end = self.subscription.last.map(|last| match self.subscription.removed {
            true => last.next(),
            false => last,
        });
        end.is_some_and(|end| self.subscription.acknowledged >= end)
    }

    /// What was skipped needs no acknowledgement.
    fn settle(&mut self) {
        let acknowledged = match self.pending.front() {
            Some(first) => Sequence(first.sequence.0 - 1),
            None => self.cursor,
        };
        // before a gap that is owed the cursor stands still
        self.subscription.acknowledged = self.subscription.acknowledged.max(acknowledged);
    }
}

/// There is no room for the next entry.
struct Full;

/// What an entry takes beside its event.
pub(super) const ENTRY_BYTES: usize = 96;

pub(super) fn group_id_bytes(group: &GroupId) -> Opaque<255> {
    #[expect(clippy::expect_used, reason = "a GroupId is at most 255 bytes")]
    Opaque::new(group.as_bytes()).expect("a group id fits")
}

/// Takes what is at or below `until` off the front.
pub(super) fn drain_until<S: Ord + Copy>(
    pending: &mut VecDeque<Pending<S>>,
    until: S,
) -> Vec<Pending<S>> {
    let count = pending.iter().take_while(|entry| entry.sequence <= until).count();
    pending.drain(..count).collect()
}
