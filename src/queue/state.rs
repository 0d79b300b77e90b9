//! The queue of one client: its own feed and its subscriptions, merged. PROTOCOL.md §3; DESIGN "feeds".
//!
//! Pure. It says what to read ([`QueueState::next`]), is given what was found, and yields entries; it takes what
//! was left for the client ([`QueueState::take`]) and acknowledgements, and says what to write. Its owner is the
//! only writer of the client's queue records: every batch fences on the queue head's revision.
//!
//! Invariants: feed 0 is delivered before anything else that is known, so a Welcome comes before the feed that it
//! opens; within a feed entries are in order and `previous` chains them; what is delivered stays unacknowledged
//! until the client says so, and is delivered again in the next session.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::feed::{ENTRY_BYTES, Feed, FeedView, Pending, Room, drain_until, group_id_bytes};
use crate::{
    crypto,
    store::{
        Batch, Condition, Write,
        records::{
            GoneReason, GroupNotice, InboxItem, InboxKey, LEAP, OwnEntry, OwnSequence, QueueHead,
            Subscription,
        },
    },
    wire::{
        codec::decode,
        ids::{ClientUri, Domain, FeedId, GroupId, RecipientId, Sequence, Timestamp},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};

/// Bounds of one client's queue; see `actors::limits::Limits` for what happens at each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    pub own_entries_max: usize,
    pub own_welcomes_max: usize,
    pub subscriptions_max: usize,
}

/// What is to be read next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The client's own feed from here on; give it to [`QueueState::fed_own`].
    ReadOwn { from: OwnSequence },
    /// The group's head and its feed from here on; give it to [`QueueState::fed`]. What is left for the client is to
    /// be read **after** that and taken before: an end of the membership stands in the store with the entry that ends it.
    ReadFeed { feed: FeedId, group: GroupId, from: Sequence },
    /// There is more, but no room until something is acknowledged.
    Full,
    /// Everything that is known of was delivered.
    Idle,
}

/// An acknowledgement that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AckProblem {
    #[error("feed {feed} has given nothing above {highest}; {sequence} cannot be acknowledged")]
    Beyond { feed: FeedId, sequence: Sequence, highest: Sequence },
    #[error("there is no feed {0} in this queue")]
    UnknownFeed(FeedId),
}

/// What taking left items did.
#[derive(Debug, Default)]
pub struct Taken {
    /// To be written before anything else is done with the queue.
    pub batch: Batch,
    /// What a full queue did not take.
    pub overflows: Vec<Overflow>,
    /// Groups whose notices were written: wake them when the batch is durable.
    pub notify: Vec<GroupId>,
    /// Groups that the client is newly in.
    pub joined: Vec<GroupId>,
}

/// What did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The group's feed begins with a gap in place of its Welcome.
    Welcome,
    /// A notice or a request was dropped.
    Event,
    /// The client is in too many groups: the group was told that its queue is gone.
    Subscription,
}

/// The queue of one client.
#[derive(Debug)]
pub struct QueueState {
    client: ClientUri,
    limits: QueueLimits,
    head: QueueHead,
    own: Own,
    feeds: BTreeMap<FeedId, Feed>,
    by_group: HashMap<GroupId, BTreeSet<(RecipientId, FeedId)>>,
    /// Feeds that may have more, by their turn; each at most once.
    ready: BTreeMap<u64, FeedId>,
    next_turn: u64,
    unacknowledged: Room,
    fronts: Fronts,
    window: Room,
    /// What is next is larger than the room that is left: to read it again is of no use before something is acknowledged.
    is_full: bool,
    dirty: Dirty,
}

#[derive(Debug)]
struct Own {
    cursor: OwnSequence,
    pending: VecDeque<Pending<OwnSequence>>,
    /// The store has nothing up to here any more.
    trimmed: OwnSequence,
}

/// The oldest of each feed that is delivered and not acknowledged.
#[derive(Debug, Default)]
struct Fronts {
    of_feed: BTreeMap<FeedId, Timestamp>,
    by_age: BTreeSet<(Timestamp, FeedId)>,
}

impl Fronts {
    fn set(&mut self, feed: FeedId, front: Option<Timestamp>) {
        let before = match front {
            Some(at) => self.of_feed.insert(feed, at),
            None => self.of_feed.remove(&feed),
        };
        if before != front {
            before.into_iter().for_each(|at| {
                self.by_age.remove(&(at, feed));
            });
            self.by_age.extend(front.map(|at| (at, feed)));
        }
    }
}

#[derive(Debug, Default)]
struct Dirty {
    head: bool,
    feeds: BTreeSet<FeedId>,
    /// A client is waiting for it to last: not only skipped entries.
    acks: bool,
}

impl QueueState {
    /// The queue as the store has it.
    #[must_use]
    pub fn load(
        client: ClientUri,
        mut head: QueueHead,
        subscriptions: Vec<Subscription>,
        limits: QueueLimits,
    ) -> Self {
        head.next_own = head.next_own.max(OwnSequence(1));
        head.next_feed = head.next_feed.max(FeedId(1));
        let mut state = Self {
            client,
            limits,
            own: Own {
                cursor: head.acknowledged_own,
                pending: VecDeque::new(),
                trimmed: head.acknowledged_own,
            },
            head,
            feeds: BTreeMap::new(),
            by_group: HashMap::new(),
            ready: BTreeMap::new(),
            next_turn: 0,
            unacknowledged: EMPTY,
            fronts: Fronts::default(),
            window: EMPTY,
            is_full: false,
            dirty: Dirty::default(),
        };
        for subscription in subscriptions {
            state.insert(subscription);
        }
        state
    }

    /// A new session begins, with what is unacknowledged. `bytes` and `entries` may be on their way at a time.
    pub fn rewind(&mut self, bytes: usize, entries: usize) {
        self.own.pending.clear();
        self.own.cursor = self.head.acknowledged_own;
        self.ready.clear();
        for (turn, (id, feed)) in (0..).zip(&mut self.feeds) {
            feed.rewind();
            feed.turn = Some(turn);
            self.ready.insert(turn, *id);
        }
        self.next_turn = self.ready.len() as u64;
        self.unacknowledged = EMPTY;
        self.fronts = Fronts::default();
        self.window = Room { bytes, entries, idle: true, refused: false };
        self.is_full = false;
    }

    /// What is to be read for the session.
    #[must_use]
    pub fn next(&self) -> Next {
        let own_is_behind = self.own.cursor.0 + 1 < self.head.next_own.0;
        let ready = self.ready.values().next().and_then(|feed| self.feeds.get(feed));
        if !own_is_behind && ready.is_none() {
            return Next::Idle;
        }
        if self.is_full || !self.room().take(ENTRY_BYTES) {
            return Next::Full;
        }
        match ready {
            _ if own_is_behind => Next::ReadOwn { from: OwnSequence(self.own.cursor.0 + 1) },
            Some(feed) => Next::ReadFeed {
                feed: feed.subscription.feed,
                group: feed.subscription.group.clone(),
                from: feed.from(),
            },
            None => Next::Idle,
        }
    }

    /// Takes a read of the client's own feed and gives what is delivered of it.
    pub fn fed_own(&mut self, entries: Vec<OwnEntry>) -> Vec<QueueEntry> {
        let mut room = self.room();
        let mut delivered = Vec::new();
        for entry in entries {
            if entry.sequence <= self.own.cursor {
                continue;
            }
            let bytes = entry.event.len() + ENTRY_BYTES;
            if !room.take(bytes) {
                break;
            }
            let sequence = Sequence(entry.sequence.0);
            let event =
                decode(&entry.event).unwrap_or(QueueEvent::Gap { next_available: sequence.next() });
            let accepted_at = entry.accepted_at;
            self.own.pending.push_back(Pending { sequence: entry.sequence, bytes, accepted_at });
            self.unacknowledged.bytes += bytes;
            self.unacknowledged.entries += 1;
            delivered.push(QueueEntry {
                feed: OWN,
                sequence,
                previous: Sequence(self.own.cursor.0),
                accepted_at: entry.accepted_at,
                group_id: entry.group.as_ref().map(group_id_bytes).unwrap_or_default(),
                event,
            });
            self.own.cursor = entry.sequence;
        }
        self.fronts.set(OWN, front(&self.own.pending));
        self.is_full |= room.refused;
        delivered
    }

    /// Takes a read of `feed` and gives what is delivered of it. Then it is the next feed's turn.
    pub fn fed(&mut self, feed: FeedId, view: FeedView, now: Timestamp) -> Vec<QueueEntry> {
        let mut room = self.room();
        self.unqueue(feed);
        let Some(state) = self.feeds.get_mut(&feed) else { return Vec::new() };
        let (acknowledged, pending) = (state.subscription.acknowledged, state.pending.len());
        let (entries, more) = state.deliver(view, &mut room, now);
        let new = state.pending.iter().skip(pending).map(|entry| entry.bytes);
        self.unacknowledged.bytes += new.sum::<usize>();
        self.unacknowledged.entries += entries.len();
        if state.subscription.acknowledged != acknowledged {
            self.dirty.feeds.insert(feed);
        }
        self.fronts.set(feed, front(&state.pending));
        if more {
            self.queue(feed);
        }
        self.is_full |= room.refused;
        entries
    }

    /// `feed` cannot be read now: it is the next feed's turn. It comes again with [`Self::again`], when its group grows, and in
    /// the next session.
    pub fn pass_over(&mut self, feed: FeedId) {
        self.unqueue(feed);
    }

    /// A feed that was passed over is to be tried again.
    pub fn again(&mut self, feed: FeedId) {
        self.queue(feed);
    }

    /// Something was appended to the feed of `group`.
    pub fn grown(&mut self, group: &GroupId) {
        for (_, feed) in self.by_group.get(group).cloned().unwrap_or_default() {
            self.queue(feed);
        }
    }

    /// Groups whose growth concerns this queue.
    pub fn groups(&self) -> impl Iterator<Item = &GroupId> {
        self.by_group.keys()
    }

    /// The group of a feed.
    #[must_use]
    pub fn group_of(&self, feed: FeedId) -> Option<&GroupId> {
        self.feeds.get(&feed).map(|feed| &feed.subscription.group)
    }

    /// Feeds whose end must be learnt before `acks` can be judged: their client had been given more than this
    /// session has.
    #[must_use]
    pub fn unknown_ends(&self, acks: &[FeedAck]) -> Vec<(FeedId, GroupId)> {
        let beyond = |ack: &&FeedAck| {
            self.feeds.get(&ack.feed).is_some_and(|feed| ack.sequence > feed.highest())
        };
        let feeds: BTreeSet<FeedId> = acks.iter().filter(beyond).map(|ack| ack.feed).collect();
        let group = |feed: &FeedId| self.feeds[feed].subscription.group.clone();
        feeds.iter().map(|feed| (*feed, group(feed))).collect()
    }

    /// The group of `feed` will number its next message `next`.
    pub fn learn_end(&mut self, feed: FeedId, next: Sequence) {
        if let Some(feed) = self.feeds.get_mut(&feed) {
            feed.end = feed.end.max(next);
        }
    }

    /// Takes acknowledgements: all or, where one cannot be, none. Gives how many entries they released. Repeats, and
    /// acknowledgements of feeds that are over, change nothing.
    ///
    /// # Errors
    /// [`AckProblem`]
    pub fn acknowledge(&mut self, acks: &[FeedAck]) -> Result<usize, AckProblem> {
        for ack in acks {
            let highest = match self.feeds.get(&ack.feed) {
                _ if ack.feed == OWN => Sequence(self.head.next_own.0 - 1),
                Some(feed) => feed.highest(),
                None if ack.feed < self.head.next_feed => continue,
                None => return Err(AckProblem::UnknownFeed(ack.feed)),
            };
            let (feed, sequence) = (ack.feed, ack.sequence);
            if sequence > highest {
                return Err(AckProblem::Beyond { feed, sequence, highest });
            }
        }
        Ok(acks.iter().map(|ack| self.apply(*ack)).sum())
    }

    fn apply(&mut self, ack: FeedAck) -> usize {
        let released: Vec<usize> = if ack.feed == OWN {
            let until = OwnSequence(ack.sequence.0);
            if until <= self.head.acknowledged_own {
                return 0;
            }
            self.head.acknowledged_own = until;
            self.own.cursor = self.own.cursor.max(until);
            self.dirty.head = true;
            let released = drain_until(&mut self.own.pending, until);
            self.fronts.set(OWN, front(&self.own.pending));
            released.iter().map(|entry| entry.bytes).collect()
        } else {
            let Some(feed) = self.feeds.get_mut(&ack.feed) else { return 0 };
            if ack.sequence <= feed.subscription.acknowledged {
                return 0;
            }
            self.dirty.feeds.insert(ack.feed);
            let released = feed.acknowledge(ack.sequence);
            self.fronts.set(ack.feed, front(&feed.pending));
            released.iter().map(|entry| entry.bytes).collect()
        };
        self.dirty.acks = true;
        self.unacknowledged.bytes -= released.iter().sum::<usize>();
        self.unacknowledged.entries -= released.len();
        self.is_full &= released.is_empty();
        released.len()
    }

    /// Delivered in this session and not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.entries
    }

    /// When the oldest entry of these was accepted.
    #[must_use]
    pub fn oldest_unacknowledged(&self) -> Option<Timestamp> {
        self.fronts.by_age.first().map(|(at, _)| *at)
    }

    /// Memberships that it has a feed of, each with its cursor, and the client's own feed.
    #[must_use]
    pub fn feed_count(&self) -> usize {
        self.feeds.len() + 1
    }

    /// From now on these bounds hold, for what is taken next: what is there stays.
    pub fn set_limits(&mut self, limits: QueueLimits) {
        self.limits = limits;
    }

    /// Takes what was left for the client. What it gives is to be written before anything else is done; where that
    /// fails the queue is to be loaded anew.
    pub fn take(&mut self, items: Vec<(InboxKey, InboxItem)>, now: Timestamp) -> Taken {
        let mut taken = Taken::default();
        self.head.recent.retain(|(at, _)| now.ms_since(*at) < REPEAT_WINDOW_MS);
        for (key, item) in items {
            self.take_one(&key, item, now, &mut taken);
            taken.batch.push(Write::InboxTaken { client: self.client.clone(), key });
        }
        let excess = self.head.recent.len().saturating_sub(RECENT_MAX);
        self.head.recent.drain(..excess);
        self.dirty.head = true;
        let written = self.write(std::mem::take(&mut taken.batch));
        taken.batch = written;
        taken
    }

    fn take_one(&mut self, key: &InboxKey, item: InboxItem, now: Timestamp, taken: &mut Taken) {
        match item {
            InboxItem::Open { group, recipient, from, handshake_only, event } => {
                let opened = Opened { group, recipient, from, handshake_only, event };
                self.open(opened, now, taken);
            }
            InboxItem::Filter { group, recipient, from, handshake_only } => {
                if let Some(feed) = self.membership(&group, recipient) {
                    let filters = &mut feed.subscription.filters;
                    // who asks for this many changes gets more than it asked for between the last of them, not less
                    if filters.len() >= FILTERS_MAX {
                        filters.truncate(FILTERS_MAX - 1);
                        if let Some((_, handshake_only)) = filters.last_mut() {
                            *handshake_only = false;
                        }
                    }
                    filters.push((from, handshake_only));
                    let feed = feed.subscription.feed;
                    self.dirty.feeds.insert(feed);
                }
            }
            InboxItem::Close { group, recipient, last, removed } => {
                if let Some(feed) = self.membership(&group, recipient) {
                    feed.subscription.last = Some(last);
                    feed.subscription.removed = removed;
                    let feed = feed.subscription.feed;
                    self.dirty.feeds.insert(feed);
                    self.queue(feed);
                } else {
                    taken.batch.push(Write::DropLeaver { group, recipient });
                }
            }
            InboxItem::Event { group, event } => {
                if let InboxKey::Item(id) | InboxKey::From { id, .. } = key {
                    if self.head.recent.iter().any(|(_, recent)| recent == id) {
                        return;
                    }
                    self.head.recent.push((now, *id));
                }
                if self.own_backlog() >= self.limits.own_entries_max {
                    taken.overflows.push(Overflow::Event);
                    return;
                }
                self.append(group, None, event, now, taken);
            }
        }
    }

    fn open(&mut self, opened: Opened, now: Timestamp, taken: &mut Taken) {
        let Opened { group, recipient, from, handshake_only, event } = opened;
        if self.membership(&group, recipient).is_some() {
            return;
        }
        if self.feeds.len() >= self.limits.subscriptions_max {
            taken.overflows.push(Overflow::Subscription);
            let reason = GoneReason::QueueGone;
            taken.batch.push(client_gone(&self.client, &group, reason));
            taken.notify.push(group);
            return;
        }
        let feed = self.head.next_feed;
        self.head.next_feed = feed.next();
        let fits = self.own_backlog() < self.limits.own_welcomes_max;
        let mut acknowledged = Sequence(from.0.saturating_sub(1));
        match event {
            Some(event) if fits => {
                self.append(Some(group.clone()), Some(feed), event, now, taken);
            }
            // a cursor that is behind where the membership begins owes a gap
            Some(_) => {
                taken.overflows.push(Overflow::Welcome);
                acknowledged = Sequence(acknowledged.0.saturating_sub(1));
            }
            None => {}
        }
        taken.joined.push(group.clone());
        self.insert(Subscription {
            feed,
            group,
            recipient,
            from,
            last: None,
            removed: false,
            filters: vec![(from, handshake_only)],
            acknowledged,
            previous: Sequence(0),
        });
        self.queue(feed);
        self.dirty.feeds.insert(feed);
    }

    fn append(
        &mut self,
        group: Option<GroupId>,
        opens: Option<FeedId>,
        event: Vec<u8>,
        now: Timestamp,
        taken: &mut Taken,
    ) {
        let sequence = self.head.next_own;
        self.head.next_own = OwnSequence(sequence.0 + 1);
        let entry = OwnEntry { sequence, accepted_at: now, group, opens, event };
        taken.batch.push(Write::Own { client: self.client.clone(), entry });
    }

    /// Whether acknowledgements wait to be persisted.
    #[must_use]
    pub fn has_unpersisted_acks(&self) -> bool {
        self.dirty.acks
    }

    /// What is to be written so that what was acknowledged or skipped lasts; nothing where that is so already.
    pub fn persist(&mut self) -> Option<Batch> {
        if !self.dirty.head && self.dirty.feeds.is_empty() {
            return None;
        }
        Some(self.write(Batch::new()))
    }

    /// Everything that changed, behind `batch`'s own writes.
    fn write(&mut self, mut batch: Batch) -> Batch {
        let client = self.client.clone();
        batch =
            batch.when(Condition::QueueAt { client: client.clone(), revision: self.head.revision });
        let dirty = std::mem::take(&mut self.dirty);
        for feed in dirty.feeds {
            let Some(state) = self.feeds.get_mut(&feed) else { continue };
            if state.is_over() {
                let (group, recipient) =
                    (state.subscription.group.clone(), state.subscription.recipient);
                self.remove(feed);
                let client = client.clone();
                batch.push(Write::DropSubscription { client, feed, group, recipient });
                continue;
            }
            let filters = &mut state.subscription.filters;
            let passed = state.subscription.acknowledged.next();
            let past = filters.iter().skip(1).take_while(|(from, _)| *from <= passed).count();
            filters.drain(..past);
            let subscription = state.subscription.clone();
            batch.push(Write::Subscription { client: client.clone(), subscription });
        }
        if self.own.trimmed < self.head.acknowledged_own {
            self.own.trimmed = self.head.acknowledged_own;
            batch.push(Write::TrimOwn { client: client.clone(), until: self.own.trimmed });
        }
        self.head.revision += 1;
        batch.push(Write::QueueHead { client, head: self.head.clone() });
        batch
    }

    /// Entries of the client's own feed that are not acknowledged.
    #[must_use]
    pub fn own_backlog(&self) -> usize {
        own_backlog(&self.head)
    }

    fn membership(&mut self, group: &GroupId, recipient: RecipientId) -> Option<&mut Feed> {
        let of_recipient = (recipient, FeedId(0))..=(recipient, FeedId(u64::MAX));
        let (_, feed) = self.by_group.get(group)?.range(of_recipient).next()?;
        self.feeds.get_mut(feed)
    }

    fn insert(&mut self, subscription: Subscription) {
        let feed = subscription.feed;
        let of_group = self.by_group.entry(subscription.group.clone()).or_default();
        of_group.insert((subscription.recipient, feed));
        self.feeds.insert(feed, Feed::new(subscription));
    }

    fn queue(&mut self, feed: FeedId) {
        let Some(state) = self.feeds.get_mut(&feed) else { return };
        if state.turn.is_none() {
            state.turn = Some(self.next_turn);
            self.ready.insert(self.next_turn, feed);
            self.next_turn += 1;
        }
    }

    fn unqueue(&mut self, feed: FeedId) {
        if let Some(turn) = self.feeds.get_mut(&feed).and_then(|state| state.turn.take()) {
            self.ready.remove(&turn);
        }
    }

    fn remove(&mut self, feed: FeedId) {
        self.unqueue(feed);
        let Some(state) = self.feeds.remove(&feed) else { return };
        self.fronts.set(feed, None);
        let Subscription { group, recipient, .. } = state.subscription;
        if let Some(feeds) = self.by_group.get_mut(&group) {
            feeds.remove(&(recipient, feed));
            if feeds.is_empty() {
                self.by_group.remove(&group);
            }
        }
    }

    fn room(&self) -> Room {
        Room {
            bytes: self.window.bytes.saturating_sub(self.unacknowledged.bytes),
            entries: self.window.entries.saturating_sub(self.unacknowledged.entries),
            idle: self.unacknowledged.entries == 0,
            refused: false,
        }
    }
}

fn front<S>(pending: &VecDeque<Pending<S>>) -> Option<Timestamp> {
    pending.front().map(|oldest| oldest.accepted_at)
}

/// Of several acknowledgements of one feed the highest: what they come to together, in the order of feeds.
#[must_use]
pub fn highest(mut acks: Vec<FeedAck>) -> Vec<FeedAck> {
    acks.sort_unstable_by_key(|ack| (ack.feed, std::cmp::Reverse(ack.sequence)));
    acks.dedup_by_key(|ack| ack.feed);
    acks
}

/// Entries of a client's own feed that are not acknowledged, as far as that is persisted.
#[must_use]
pub fn own_backlog(head: &QueueHead) -> usize {
    let entries = head.next_own.0.saturating_sub(head.acknowledged_own.0).saturating_sub(1) % LEAP;
    usize::try_from(entries).unwrap_or(usize::MAX)
}

/// Tells `group` that `client` is to be removed. Told twice, it is there once.
#[must_use]
pub fn client_gone(client: &ClientUri, group: &GroupId, reason: GoneReason) -> Write {
    let mut key = [0; 16];
    key.copy_from_slice(&crypto::sha256(client.as_str().as_bytes())[..16]);
    let notice = GroupNotice::ClientGone { client: client.clone(), reason };
    Write::GroupNotice { group: group.clone(), key, notice }
}

/// Tells `group` that the queue of `peer`'s client is gone, which it knows by its number. Told twice, it is there once.
#[must_use]
pub fn recipient_gone(peer: &Domain, group: &GroupId, recipient: RecipientId) -> Write {
    let mut key = [0; 16];
    let name = format!("{peer} {recipient}");
    key.copy_from_slice(&crypto::sha256(name.as_bytes())[..16]);
    let (peer, reason) = (peer.clone(), GoneReason::QueueGone);
    let notice = GroupNotice::RecipientGone { peer, recipient, reason };
    Write::GroupNotice { group: group.clone(), key, notice }
}

/// A repeat of an item within this time is not delivered again. DS §6.1.
pub const REPEAT_WINDOW_MS: u64 = 24 * 3600 * 1000;

/// Item ids that are remembered of one queue; beyond, the oldest is forgotten.
pub const RECENT_MAX: usize = 256;

/// Changes of a filter that are remembered ahead of the cursor. Beyond, the last stands, and between it and the others all is
/// delivered.
pub(super) const FILTERS_MAX: usize = 64;

/// The client's own feed.
pub const OWN: FeedId = FeedId(0);

const EMPTY: Room = Room { bytes: 0, entries: 0, idle: true, refused: false };

struct Opened {
    group: GroupId,
    recipient: RecipientId,
    from: Sequence,
    handshake_only: bool,
    event: Option<Vec<u8>>,
}
