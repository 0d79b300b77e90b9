//! One hub, one store and one client's queue, and what may happen to them: for the tests beside this and for the fuzz target
//! `queue_sequence`. Nothing is lost, doubled or reordered whatever happens when.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]
#![cfg_attr(fuzzing, allow(dead_code, reason = "the tests use all of it"))]

use std::collections::{BTreeMap, BTreeSet};

use super::{feed::FeedView, state::*};
use crate::{
    store::{
        Batch, Condition, Write,
        records::{FeedEntry, InboxItem, InboxKey, OwnEntry, OwnSequence, QueueHead, Subscription},
    },
    wire::{
        codec::encode,
        ids::{ClientUri, Domain, FeedId, GroupId, RecipientId, Sequence, Timestamp},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};

pub(super) const NOW: Timestamp = Timestamp(1_700_000_000_000);
pub(super) const LIMITS: QueueLimits =
    QueueLimits { own_entries_max: 100, own_welcomes_max: 200, subscriptions_max: 50 };
pub(super) const WIDE: usize = 1 << 30;

pub(super) fn group(seed: u8) -> GroupId {
    group_of(seed)
}

fn group_of(seed: u8) -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [seed; 16])
}

/// Every message is another one, told apart by its number.
pub(super) fn event(number: u32) -> Vec<u8> {
    encode(&QueueEvent::KeyPackagesLow { left: number })
}

pub(super) fn number(event: &QueueEvent) -> u32 {
    match event {
        QueueEvent::KeyPackagesLow { left } => *left,
        other => panic!("not a numbered event: {other:?}"),
    }
}

/// One hub, one store and one client's queue.
pub(super) struct World {
    pub(super) logs: BTreeMap<u8, Log>,
    pub(super) inbox: BTreeMap<InboxKey, InboxItem>,
    pub(super) head: QueueHead,
    pub(super) own: BTreeMap<OwnSequence, OwnEntry>,
    pub(super) subscriptions: BTreeMap<FeedId, Subscription>,
    pub(super) state: QueueState,
    pub(super) limits: QueueLimits,
    pub(super) numbers: u32,
    pub(super) recipients: u64,
    pub(super) overflows: Vec<Overflow>,
    /// Groups that were told that the client's queue is gone.
    pub(super) told: BTreeSet<GroupId>,
    pub(super) page: usize,
    /// Memberships that have ended and of which the store knows, and up to where they are owed the log.
    pub(super) leavers: BTreeMap<RecipientId, Sequence>,
}

pub(super) struct Log {
    pub(super) entries: Vec<FeedEntry>,
    pub(super) first: Sequence,
    pub(super) member: Option<RecipientId>,
    pub(super) handshake_only: bool,
    pub(super) deleted: bool,
    pub(super) gone: bool,
    /// (from, last, what the client is to get of it: sequences, removed)
    pub(super) memberships: Vec<Membership>,
}

#[derive(Debug, Default)]
pub(super) struct Membership {
    pub(super) from: u64,
    pub(super) last: Option<u64>,
    pub(super) removed: bool,
    pub(super) expected: Vec<(u64, u32)>,
    /// Changes of its filter.
    pub(super) filters: usize,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(LIMITS)
    }

    pub(super) fn with(limits: QueueLimits) -> Self {
        Self {
            logs: BTreeMap::new(),
            inbox: BTreeMap::new(),
            head: QueueHead::default(),
            own: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            state: QueueState::load(client(), QueueHead::default(), Vec::new(), limits),
            limits,
            numbers: 0,
            recipients: 0,
            overflows: Vec::new(),
            told: BTreeSet::new(),
            page: 3,
            leavers: BTreeMap::new(),
        }
    }

    pub(super) fn log(&mut self, seed: u8) -> &mut Log {
        self.logs.entry(seed).or_insert_with(|| Log {
            entries: Vec::new(),
            first: Sequence(1),
            member: None,
            handshake_only: false,
            deleted: false,
            gone: false,
            memberships: Vec::new(),
        })
    }

    pub(super) fn next(&mut self, seed: u8) -> u64 {
        self.log(seed).entries.len() as u64 + 1
    }

    pub(super) fn append(&mut self, seed: u8, handshake: bool, except: Option<RecipientId>) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let sequence = self.next(seed);
        let log = self.log(seed);
        log.entries.push(FeedEntry {
            sequence: Sequence(sequence),
            accepted_at: NOW,
            except,
            origin: None,
            handshake,
            event: event(number),
        });
        if log.member.is_some() && (log.member != except) && (handshake || !log.handshake_only) {
            log.memberships.last_mut().unwrap().expected.push((sequence, number));
        }
        self.state.grown(&group(seed));
        sequence
    }

    pub(super) fn own_message(&mut self, seed: u8) -> u64 {
        let member = self.log(seed).member;
        self.append(seed, false, member)
    }

    pub(super) fn leave_item(&mut self, seed: u8, sequence: u64, item: InboxItem) {
        if let InboxItem::Close { recipient, last, .. } = item {
            self.leavers.insert(recipient, last);
        }
        let key = InboxKey::Group { group: group(seed), sequence: Sequence(sequence), index: 0 };
        self.inbox.insert(key, item);
    }

    pub(super) fn join(&mut self, seed: u8, welcome: bool) {
        if self.log(seed).member.is_some() {
            return;
        }
        let sequence = self.append(seed, true, None);
        self.recipients += 1;
        let recipient = RecipientId(self.recipients);
        self.numbers += 1;
        let item = InboxItem::Open {
            group: group(seed),
            recipient,
            from: Sequence(sequence + 1),
            handshake_only: false,
            event: welcome.then(|| event(self.numbers)),
        };
        self.leave_item(seed, sequence, item);
        let log = self.log(seed);
        log.member = Some(recipient);
        log.handshake_only = false;
        log.memberships.push(Membership { from: sequence + 1, ..Membership::default() });
    }

    pub(super) fn leave(&mut self, seed: u8, removed: bool) {
        let Some(recipient) = self.log(seed).member else { return };
        let last = self.append(seed, true, None);
        let log = self.log(seed);
        log.member = None;
        let membership = log.memberships.last_mut().unwrap();
        (membership.last, membership.removed) = (Some(last), removed);
        let last = Sequence(last);
        let item = InboxItem::Close { group: group(seed), recipient, last, removed };
        self.leave_item(seed, last.0, item);
    }

    pub(super) fn filter(&mut self, seed: u8, handshake_only: bool) {
        let Some(recipient) = self.log(seed).member else { return };
        // a change of the filter is an item that nobody receives
        let sequence = self.next(seed);
        let log = self.log(seed);
        log.handshake_only = handshake_only;
        log.memberships.last_mut().unwrap().filters += 1;
        log.entries.push(FeedEntry {
            sequence: Sequence(sequence),
            accepted_at: NOW,
            except: None,
            origin: None,
            handshake: false,
            event: Vec::new(),
        });
        let from = Sequence(sequence + 1);
        let item = InboxItem::Filter { group: group(seed), recipient, from, handshake_only };
        self.leave_item(seed, sequence, item);
    }

    pub(super) fn notice(&mut self, id: u8) {
        self.numbers += 1;
        let item = InboxItem::Event { group: None, event: event(self.numbers) };
        self.inbox.insert(InboxKey::Item([id; 16]), item);
    }

    /// Drops what every persisted cursor has passed, as groups know of them: members and leavers; `by_age` drops more.
    pub(super) fn trim(&mut self, seed: u8, by_age: bool) {
        let pending = self.inbox.values().any(
            |item| matches!(item, InboxItem::Open { group: opened, .. } if *opened == group(seed)),
        );
        let member = self.log(seed).member;
        let slowest = self
            .subscriptions
            .values()
            .filter(|subscription| subscription.group == group(seed))
            .filter(|subscription| {
                let recipient = subscription.recipient;
                let lacks = |last: &Sequence| subscription.acknowledged < *last;
                member == Some(recipient) || self.leavers.get(&recipient).is_some_and(lacks)
            })
            .map(|subscription| subscription.acknowledged.0)
            .min();
        let log = self.log(seed);
        let end = log.entries.len() as u64;
        let until = match slowest {
            _ if by_age => end,
            Some(slowest) if !pending => slowest,
            // nobody is known that is owed anything
            None if !pending && member.is_none() => end,
            _ => return,
        };
        log.first = log.first.max(Sequence(until.min(end) + 1));
    }

    pub(super) fn write(&mut self, batch: Batch) {
        for condition in &batch.conditions {
            match condition {
                Condition::QueueAt { revision, .. } => assert_eq!(self.head.revision, *revision),
                other => panic!("{other:?}"),
            }
        }
        for write in batch.writes {
            match write {
                Write::QueueHead { head, .. } => self.head = head,
                Write::Own { entry, .. } => {
                    self.own.insert(entry.sequence, entry);
                }
                Write::TrimOwn { until, .. } => self.own.retain(|sequence, _| *sequence > until),
                Write::Subscription { subscription, .. } => {
                    self.subscriptions.insert(subscription.feed, subscription);
                }
                Write::DropSubscription { feed, recipient, .. } => {
                    self.subscriptions.remove(&feed);
                    self.leavers.remove(&recipient);
                }
                Write::InboxTaken { key, .. } => {
                    self.inbox.remove(&key);
                }
                Write::DropLeaver { recipient, .. } => {
                    self.leavers.remove(&recipient);
                }
                Write::GroupNotice { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn drain_inbox(&mut self) {
        let items: Vec<_> = self.inbox.clone().into_iter().collect();
        if !items.is_empty() {
            let taken = self.state.take(items, NOW);
            self.overflows.extend(taken.overflows);
            self.told.extend(taken.notify);
            self.write(taken.batch);
        }
    }

    pub(super) fn view(&mut self, group: &GroupId, from: Sequence) -> FeedView {
        let page = self.page;
        let log =
            self.logs.values().zip(self.logs.keys()).find(|(_, seed)| group_of(**seed) == *group);
        let (log, _) = log.unwrap();
        let entries = log.entries.iter().filter(|entry| entry.sequence >= from.max(log.first));
        FeedView {
            first: log.first,
            next: Sequence(log.entries.len() as u64 + 1),
            deleted: log.deleted,
            gone: log.gone,
            entries: entries.take(page).cloned().collect(),
        }
    }

    /// One turn of the actor; `between` happens before its read, behind its first look into the inbox.
    pub(super) fn step(&mut self, between: impl FnOnce(&mut Self)) -> Option<Vec<QueueEntry>> {
        self.drain_inbox();
        match self.state.next() {
            Next::Idle | Next::Full => None,
            Next::ReadOwn { from } => {
                let page: Vec<_> =
                    self.own.range(from..).take(self.page).map(|(_, e)| e.clone()).collect();
                assert!(!page.is_empty(), "what is to be read is there");
                Some(self.state.fed_own(page))
            }
            Next::ReadFeed { feed, group, from } => {
                between(self);
                let view = self.view(&group, from);
                self.drain_inbox();
                Some(self.state.fed(feed, view, NOW))
            }
        }
    }

    pub(super) fn receive(&mut self) -> Vec<QueueEntry> {
        let mut all = Vec::new();
        while let Some(entries) = self.step(|_| {}) {
            all.extend(entries);
        }
        all
    }

    pub(super) fn online(&mut self) -> Vec<QueueEntry> {
        self.state.rewind(WIDE, WIDE);
        self.receive()
    }

    pub(super) fn persist(&mut self) {
        if let Some(batch) = self.state.persist() {
            self.write(batch);
        }
    }

    pub(super) fn crash(&mut self) {
        let subscriptions = self.subscriptions.values().cloned().collect();
        self.state = QueueState::load(client(), self.head.clone(), subscriptions, self.limits);
    }

    pub(super) fn learn(&mut self, acks: &[FeedAck]) {
        for (feed, group) in self.state.unknown_ends(acks) {
            let next = self.view(&group, Sequence(0)).next;
            self.state.learn_end(feed, next);
        }
    }
}

pub(super) fn client() -> ClientUri {
    ClientUri::new("mimi://a.example/d/alice/phone").unwrap()
}

pub(super) fn ack(feed: u64, sequence: u64) -> FeedAck {
    FeedAck { feed: FeedId(feed), sequence: Sequence(sequence) }
}

/// What the client library keeps of a feed: enough to prove that nothing was left out.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) group: Vec<u8>,
    pub(super) got: BTreeMap<u64, QueueEvent>,
    /// Came behind `last`, in a repeat of what its filter had left out at first: the client drops it.
    pub(super) late: BTreeSet<u64>,
    pub(super) last: u64,
    pub(super) acknowledged: u64,
    pub(super) gaps: Vec<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct Client {
    pub(super) feeds: BTreeMap<u64, Received>,
    pub(super) welcomes: usize,
}

impl Client {
    pub(super) fn take(&mut self, entries: &[QueueEntry], opened_with_welcome: &BTreeSet<u64>) {
        for entry in entries {
            let feed = self.feeds.entry(entry.feed.0).or_default();
            let sequence = entry.sequence.0;
            if sequence <= feed.last {
                assert!(sequence > feed.acknowledged, "acknowledged and delivered again");
                if let Some(known) = feed.got.get(&sequence) {
                    // what was there is gone, or all that is left of it is that it ended
                    let gap = |event: &QueueEvent| {
                        matches!(event, QueueEvent::Gap { .. } | QueueEvent::GroupDeleted)
                    };
                    assert!(known == &entry.event || gap(&entry.event), "a repeat that differs");
                }
                if let QueueEvent::Gap { next_available } = entry.event {
                    feed.gaps.push((entry.previous.0, next_available.0));
                }
                let before = feed.got.range(..sequence).next_back().map_or(0, |(known, _)| *known);
                let late = feed.late.range(..sequence).next_back().map_or(0, |late| *late);
                let before = before.max(late);
                let lost = matches!(entry.event, QueueEvent::Gap { .. } | QueueEvent::GroupDeleted);
                if !lost && !feed.got.contains_key(&sequence) {
                    feed.late.insert(sequence);
                }
                let chained = entry.previous.0 == before || !feed.gaps.is_empty();
                assert!(chained, "{entry:?} again, after {before}");
                continue;
            }
            // acknowledgements that a crash lost may leave a gap that begins before what was received
            let known = |sequence: u64| sequence == 0 || feed.got.contains_key(&sequence);
            let chained = entry.previous.0 == feed.last
                || (matches!(entry.event, QueueEvent::Gap { .. }) && known(entry.previous.0));
            assert!(chained, "{entry:?} after {}", feed.last);
            if let QueueEvent::Gap { next_available } = entry.event {
                feed.gaps.push((entry.previous.0, next_available.0));
            }
            feed.last = sequence;
            feed.group = entry.group_id.as_slice().to_vec();
            feed.got.insert(sequence, entry.event.clone());
            if entry.feed.0 == 0 && !entry.group_id.as_slice().is_empty() {
                self.welcomes += 1;
            }
            if entry.feed.0 != 0 {
                let due = opened_with_welcome.iter().filter(|feed| **feed <= entry.feed.0).count();
                assert!(self.welcomes >= due, "a feed began before its Welcome");
            }
        }
    }
}

/// Feeds that a Welcome opened, as far as it is still in the store.
pub(super) fn welcomed(world: &World) -> BTreeSet<u64> {
    world.own.values().filter_map(|entry| entry.opens).map(|feed| feed.0).collect()
}

/// What happens to one queue, step by step, and what its client has of it.
pub(super) struct Play {
    pub(super) world: World,
    pub(super) client: Client,
    /// Groups whose logs were cut by age.
    aged: BTreeSet<u8>,
    /// Entries that the session may have on their way.
    window: usize,
}

impl Play {
    pub(super) fn new(limits: QueueLimits) -> Self {
        let mut world = World::with(limits);
        world.state.rewind(WIDE, WIDE);
        Self { world, client: Client::default(), aged: BTreeSet::new(), window: WIDE }
    }

    /// One of 15 things, in the group `seed`.
    pub(super) fn act(&mut self, op: u8, seed: u8, x: u8) {
        let world = &mut self.world;
        let op = match op {
            // of what is deleted there is no more
            0..=6 if world.log(seed).deleted => 8,
            op => op,
        };
        match op {
            0..=2 => {
                world.append(seed, x & 1 == 1, None);
            }
            3 => {
                world.own_message(seed);
            }
            4 => world.join(seed, x & 1 == 1),
            5 => world.leave(seed, x & 7 != 0),
            6 => world.filter(seed, x & 1 == 1),
            7 => world.notice(x),
            8..=10 => {
                for _ in 0..=(x % 6) {
                    let entries = world.step(|world| match x % 5 {
                        _ if world.log(seed).deleted => {}
                        0 => {
                            world.leave(seed, true);
                            world.append(seed, true, None);
                        }
                        1 => {
                            world.append(seed, false, None);
                        }
                        2 => world.trim(seed, false),
                        _ => {}
                    });
                    let welcomed = welcomed(world);
                    self.client.take(&entries.unwrap_or_default(), &welcomed);
                }
            }
            11 => {
                let pick = |(feed, received): (&u64, &Received)| {
                    let at = received.got.keys().rev().nth(usize::from(x % 4))?;
                    Some(ack(*feed, *at))
                };
                let acks: Vec<FeedAck> = self.client.feeds.iter().filter_map(pick).collect();
                world.learn(&acks);
                world.state.acknowledge(&acks).expect("what was delivered is acknowledged");
                for ack in acks {
                    let feed = self.client.feeds.get_mut(&ack.feed.0).unwrap();
                    feed.acknowledged = feed.acknowledged.max(ack.sequence.0);
                }
            }
            12 => {
                self.window = usize::from(x % 8) + 1;
                world.state.rewind(usize::from(x) * 20, self.window);
            }
            13 => {
                if x & 1 == 1 {
                    world.persist();
                }
                if x & 2 == 2 {
                    // acknowledgements that were not persisted are lost with the process
                    world.crash();
                    for (feed, received) in &mut self.client.feeds {
                        let kept = match world.subscriptions.get(&FeedId(*feed)) {
                            Some(subscription) => subscription.acknowledged.0,
                            None if *feed == 0 => world.head.acknowledged_own.0,
                            None => received.acknowledged,
                        };
                        received.acknowledged = received.acknowledged.min(kept);
                    }
                    self.window = WIDE;
                    world.state.rewind(WIDE, WIDE);
                }
            }
            _ => {
                let by_age = x.is_multiple_of(8);
                if by_age {
                    self.aged.insert(seed);
                }
                world.trim(seed, by_age);
            }
        }
        self.is_bounded();
    }

    /// The group `seed` is deleted.
    pub(super) fn delete(&mut self, seed: u8) {
        if !self.world.log(seed).deleted {
            self.world.leave(seed, false);
            self.world.log(seed).deleted = true;
        }
    }

    fn is_bounded(&self) {
        let (world, limits) = (&self.world, self.world.limits);
        let own = limits.own_entries_max.max(limits.own_welcomes_max);
        assert!(world.state.own_backlog() <= own, "{} of {own}", world.state.own_backlog());
        assert!(world.subscriptions.len() <= limits.subscriptions_max);
        assert!(world.state.unacknowledged() <= self.window);
        assert!(world.head.recent.len() <= RECENT_MAX);
        assert!(world.subscriptions.values().all(|one| one.filters.len() <= FILTERS_MAX));
    }

    /// Nothing was lost without a word, nothing doubled, nothing reordered.
    pub(super) fn end(self) {
        let Self { mut world, mut client, aged, .. } = self;
        // in the end the client takes everything
        world.crash();
        for received in client.feeds.values_mut() {
            received.acknowledged = 0;
        }
        world.state.rewind(WIDE, WIDE);
        let entries = world.receive();
        let welcomed = welcomed(&world);
        client.take(&entries, &welcomed);
        assert_eq!(world.state.next(), Next::Idle);

        for (seed, log) in &world.logs {
            if world.told.contains(&group(*seed)) {
                // it was too much for this client, and the group removes it
                continue;
            }
            let mut feeds: Vec<&Received> = client
                .feeds
                .iter()
                .filter(|(feed, received)| **feed != 0 && received.group == group(*seed).as_bytes())
                .map(|(_, received)| received)
                .collect();
            for membership in &log.memberships {
                let mut expected: Vec<u64> = membership.expected.iter().map(|(s, _)| *s).collect();
                if membership.removed {
                    expected.extend(membership.last.map(|last| last + 1));
                }
                if expected.is_empty() {
                    continue;
                }
                // memberships and feeds of one group are in the same order; one without entries has no feed
                let at = feeds.iter().position(|received| {
                    received.got.keys().all(|s| {
                        *s + 1 >= membership.from
                            && membership.last.is_none_or(|last| *s <= last + 1)
                    })
                });
                let received = at.map(|at| feeds.remove(at));
                let received = match received {
                    Some(received) => received,
                    None => panic!("no feed for {membership:?}"),
                };
                for (sequence, number_expected) in &membership.expected {
                    match received.got.get(sequence) {
                        Some(QueueEvent::Gap { .. }) | None => {
                            assert!(aged.contains(seed), "{sequence} of {seed} was lost");
                            assert!(
                                received
                                    .gaps
                                    .iter()
                                    .any(|(from, next)| from < sequence && sequence < next),
                                "{sequence} of {seed} was lost without a word"
                            );
                        }
                        Some(QueueEvent::GroupDeleted) => {
                            let is_end = log.deleted && membership.last == Some(*sequence);
                            assert!(is_end && aged.contains(seed), "{sequence} of {seed}");
                        }
                        Some(event) => assert_eq!(number(event), *number_expected),
                    }
                }
                if let (true, Some(last)) = (membership.removed, membership.last) {
                    assert_eq!(received.got.get(&(last + 1)), Some(&QueueEvent::Removed));
                }
                // who changes its filter so often gets more than it asked for
                let more = membership.filters + 1 > FILTERS_MAX;
                let is_due = |sequence: &u64| expected.contains(sequence);
                assert!(more || received.late.iter().all(is_due), "{:?} of {seed}", received.late);
                for (sequence, event) in &received.got {
                    let is_gap = matches!(event, QueueEvent::Gap { .. });
                    let known = expected.contains(sequence) || is_gap || more;
                    assert!(known, "{} of {} was never for this client", sequence, seed);
                }
            }
        }
        let own: Vec<u64> =
            client.feeds.get(&0).map(|own| own.got.keys().copied().collect()).unwrap_or_default();
        assert_eq!(own, (1..world.head.next_own.0.max(1)).collect::<Vec<_>>());
    }
}
