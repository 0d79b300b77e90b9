//! Rules of one queue, and the property that nothing is lost, doubled or reordered whatever happens when.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{feed::FeedView, state::*};
use crate::{
    store::{
        Batch, Condition, Write,
        records::{FeedEntry, InboxItem, InboxKey, OwnEntry, OwnSequence, QueueHead, Subscription},
    },
    wire::{
        codec::{decode, encode},
        ids::{ClientUri, Domain, FeedId, GroupId, RecipientId, Sequence, Timestamp},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const LIMITS: QueueLimits =
    QueueLimits { own_entries_max: 100, own_welcomes_max: 200, subscriptions_max: 50 };
const WIDE: usize = 1 << 30;

fn group(seed: u8) -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [seed; 16])
}

/// Every message is another one, told apart by its number.
fn event(number: u32) -> Vec<u8> {
    encode(&QueueEvent::KeyPackagesLow { left: number })
}

fn number(event: &QueueEvent) -> u32 {
    match event {
        QueueEvent::KeyPackagesLow { left } => *left,
        other => panic!("not a numbered event: {other:?}"),
    }
}

/// One hub, one store and one client's queue.
struct World {
    logs: BTreeMap<u8, Log>,
    inbox: BTreeMap<InboxKey, InboxItem>,
    head: QueueHead,
    own: BTreeMap<OwnSequence, OwnEntry>,
    subscriptions: BTreeMap<FeedId, Subscription>,
    state: QueueState,
    limits: QueueLimits,
    numbers: u32,
    recipients: u64,
    overflows: Vec<Overflow>,
    page: usize,
}

struct Log {
    entries: Vec<FeedEntry>,
    first: Sequence,
    member: Option<RecipientId>,
    handshake_only: bool,
    deleted: bool,
    gone: bool,
    /// (from, last, what the client is to get of it: sequences, removed)
    memberships: Vec<Membership>,
}

#[derive(Debug, Default)]
struct Membership {
    from: u64,
    last: Option<u64>,
    removed: bool,
    expected: Vec<(u64, u32)>,
}

impl World {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: QueueLimits) -> Self {
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
            page: 3,
        }
    }

    fn log(&mut self, seed: u8) -> &mut Log {
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

    fn next(&mut self, seed: u8) -> u64 {
        self.log(seed).entries.len() as u64 + 1
    }

    fn append(&mut self, seed: u8, handshake: bool, except: Option<RecipientId>) -> u64 {
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

    fn own_message(&mut self, seed: u8) -> u64 {
        let member = self.log(seed).member;
        self.append(seed, false, member)
    }

    fn leave_item(&mut self, seed: u8, sequence: u64, item: InboxItem) {
        let key = InboxKey::Group { group: group(seed), sequence: Sequence(sequence), index: 0 };
        self.inbox.insert(key, item);
    }

    fn join(&mut self, seed: u8, welcome: bool) {
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

    fn leave(&mut self, seed: u8, removed: bool) {
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

    fn filter(&mut self, seed: u8, handshake_only: bool) {
        let Some(recipient) = self.log(seed).member else { return };
        // a change of the filter is an item that nobody receives
        let sequence = self.next(seed);
        let log = self.log(seed);
        log.handshake_only = handshake_only;
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

    fn notice(&mut self, id: u8) {
        self.numbers += 1;
        let item = InboxItem::Event { group: None, event: event(self.numbers) };
        self.inbox.insert(InboxKey::Item([id; 16]), item);
    }

    /// Drops what every persisted cursor has passed; `by_age` drops more.
    fn trim(&mut self, seed: u8, by_age: bool) {
        let pending = self.inbox.values().any(
            |item| matches!(item, InboxItem::Open { group: opened, .. } if *opened == group(seed)),
        );
        let slowest = self
            .subscriptions
            .values()
            .filter(|subscription| subscription.group == group(seed))
            .map(|subscription| subscription.acknowledged.0)
            .min();
        let log = self.log(seed);
        let end = log.entries.len() as u64;
        let until = match slowest {
            _ if by_age => end,
            Some(slowest) if !pending => slowest,
            _ => return,
        };
        log.first = log.first.max(Sequence(until.min(end) + 1));
    }

    fn write(&mut self, batch: Batch) {
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
                Write::DropSubscription { feed, .. } => {
                    self.subscriptions.remove(&feed);
                }
                Write::InboxTaken { key, .. } => {
                    self.inbox.remove(&key);
                }
                Write::GroupNotice { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn drain_inbox(&mut self) {
        let items: Vec<_> = self.inbox.clone().into_iter().collect();
        if !items.is_empty() {
            let taken = self.state.take(items, NOW);
            self.overflows.extend(taken.overflows);
            self.write(taken.batch);
        }
    }

    fn view(&mut self, group: &GroupId, from: Sequence) -> FeedView {
        let page = self.page;
        let log = self
            .logs
            .values()
            .zip(self.logs.keys())
            .find(|(_, seed)| super::state_tests::group(**seed) == *group);
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
    fn step(&mut self, between: impl FnOnce(&mut Self)) -> Option<Vec<QueueEntry>> {
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

    fn receive(&mut self) -> Vec<QueueEntry> {
        let mut all = Vec::new();
        while let Some(entries) = self.step(|_| {}) {
            all.extend(entries);
        }
        all
    }

    fn online(&mut self) -> Vec<QueueEntry> {
        self.state.rewind(WIDE, WIDE);
        self.receive()
    }

    fn persist(&mut self) {
        if let Some(batch) = self.state.persist() {
            self.write(batch);
        }
    }

    fn crash(&mut self) {
        let subscriptions = self.subscriptions.values().cloned().collect();
        self.state = QueueState::load(client(), self.head.clone(), subscriptions, self.limits);
    }

    fn learn(&mut self, acks: &[FeedAck]) {
        for (feed, group) in self.state.unknown_ends(acks) {
            let next = self.view(&group, Sequence(0)).next;
            self.state.learn_end(feed, next);
        }
    }
}

fn client() -> ClientUri {
    ClientUri::new("mimi://a.example/d/alice/phone").unwrap()
}

fn sequences(entries: &[QueueEntry]) -> Vec<(u64, u64)> {
    entries.iter().map(|entry| (entry.feed.0, entry.sequence.0)).collect()
}

fn ack(feed: u64, sequence: u64) -> FeedAck {
    FeedAck { feed: FeedId(feed), sequence: Sequence(sequence) }
}

#[test]
fn welcome_comes_before_the_feed_that_it_opens() {
    let mut world = World::new();
    world.join(1, true);
    world.append(1, false, None);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(0, 1), (1, 2)]);
    assert_eq!(entries[0].group_id.as_slice(), group(1).as_bytes());
}

#[test]
fn own_messages_are_skipped_and_previous_names_what_was_given() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None);
    world.own_message(1);
    world.append(1, false, None);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 2), (1, 4)]);
    assert_eq!((entries[0].previous, entries[1].previous), (Sequence(0), Sequence(2)));
}

#[test]
fn filter_holds_from_its_sequence_on() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None); // 2
    world.filter(1, true); // 3
    world.append(1, false, None); // 4: muted
    world.append(1, true, None); // 5
    world.filter(1, false); // 6
    world.append(1, false, None); // 7
    assert_eq!(sequences(&world.online()), [(1, 2), (1, 5), (1, 7)]);
}

#[test]
fn removing_commit_is_the_last_entry_before_removed() {
    let mut world = World::new();
    world.join(1, false);
    world.leave(1, true);
    world.append(1, false, None);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 2), (1, 3)]);
    assert_eq!(entries[1].event, QueueEvent::Removed);
    assert_eq!(entries[1].previous, Sequence(2));
    world.state.acknowledge(&[ack(1, 3)]).unwrap();
    world.persist();
    assert!(world.subscriptions.is_empty(), "a feed that is over is forgotten");
    assert_eq!(world.state.acknowledge(&[ack(1, 3)]), Ok(0), "its acknowledgement may be repeated");
}

#[test]
fn what_was_accepted_behind_the_removal_is_not_delivered_even_if_read_with_it() {
    let mut world = World::new();
    world.page = 100;
    world.join(1, false);
    world.append(1, false, None);
    world.drain_inbox();
    world.state.rewind(WIDE, WIDE);
    // the read finds the removal and what is behind it
    let entries = world.step(|world| {
        world.leave(1, true);
        world.append(1, false, None);
    });
    let entries = entries.unwrap();
    assert_eq!(sequences(&entries), [(1, 2), (1, 3), (1, 4)]);
    assert_eq!(entries[2].event, QueueEvent::Removed, "not what was accepted as number 4");
    assert_eq!(world.state.next(), Next::Idle);
}

#[test]
fn rejoin_opens_a_feed_of_its_own() {
    let mut world = World::new();
    world.join(1, false);
    world.leave(1, true);
    world.join(1, false);
    world.append(1, false, None);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 2), (1, 3), (2, 4)]);
    assert_eq!(entries[2].previous, Sequence(0));
}

#[test]
fn acknowledged_is_not_delivered_again_and_the_rest_is() {
    let mut world = World::new();
    world.join(1, true);
    for _ in 0..4 {
        world.append(1, false, None);
    }
    assert_eq!(world.online().len(), 5);
    assert_eq!(world.state.acknowledge(&[ack(0, 1), ack(1, 3)]), Ok(3));
    let again = world.online();
    assert_eq!(sequences(&again), [(1, 4), (1, 5)]);
    assert_eq!(again[0].previous, Sequence(3), "the chain goes on where it was acknowledged");
    world.persist();
    world.crash();
    assert_eq!(sequences(&world.online()), [(1, 4), (1, 5)]);
}

#[test]
fn acknowledgements_that_were_not_persisted_only_repeat_a_delivery() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None);
    assert_eq!(world.online().len(), 1);
    world.state.acknowledge(&[ack(1, 2)]).unwrap();
    world.crash();
    assert_eq!(sequences(&world.online()), [(1, 2)]);
}

#[test]
fn acknowledgement_beyond_the_feed_is_refused_and_changes_nothing() {
    let mut world = World::new();
    world.join(1, true);
    world.append(1, false, None);
    world.online();
    for (bad, problem) in [
        (
            ack(1, 3),
            AckProblem::Beyond { feed: FeedId(1), sequence: Sequence(3), highest: Sequence(2) },
        ),
        (
            ack(0, 2),
            AckProblem::Beyond { feed: FeedId(0), sequence: Sequence(2), highest: Sequence(1) },
        ),
        (ack(9, 1), AckProblem::UnknownFeed(FeedId(9))),
    ] {
        let acks = [ack(1, 2), bad];
        world.learn(&acks);
        assert_eq!(world.state.acknowledge(&acks), Err(problem));
        assert_eq!(world.state.unacknowledged(), 2, "the good one was not taken either");
    }
}

#[test]
fn acknowledgement_of_what_an_earlier_activation_gave_is_taken() {
    let mut world = World::new();
    world.join(1, false);
    for _ in 0..3 {
        world.append(1, false, None);
    }
    assert_eq!(world.online().len(), 3);
    world.crash();
    let acks = [ack(1, 3)];
    world.learn(&acks);
    assert_eq!(world.state.acknowledge(&acks), Ok(0));
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 4)]);
    assert_eq!(entries[0].previous, Sequence(3));
}

#[test]
fn window_bounds_what_is_on_its_way_but_lets_one_entry_through() {
    let mut world = World::new();
    world.join(1, false);
    for _ in 0..10 {
        world.append(1, false, None);
    }
    world.state.rewind(1, WIDE);
    assert_eq!(world.receive().len(), 1);
    assert_eq!(world.state.next(), Next::Full);
    world.state.acknowledge(&[ack(1, 2)]).unwrap();
    assert_eq!(sequences(&world.receive()), [(1, 3)]);
    world.state.rewind(WIDE, 4);
    assert_eq!(world.receive().len(), 4);
}

#[test]
fn an_entry_that_the_rest_of_a_window_is_too_small_for_is_not_read_again_and_again() {
    let mut world = World::new();
    world.join(1, false);
    for _ in 0..10 {
        world.append(1, false, None);
    }
    // two entries, and not quite a third
    let entry = 96 + event(1).len();
    world.state.rewind(3 * entry - 1, WIDE);
    let mut received = 0;
    for _ in 0..10 {
        received += world.step(|_| {}).map_or(0, |entries| entries.len());
    }
    assert_eq!((received, world.state.next()), (2, Next::Full));
    // what comes meanwhile changes nothing; an acknowledgement does
    world.append(1, false, None);
    assert_eq!(world.state.next(), Next::Full);
    world.state.acknowledge(&[ack(1, 2)]).unwrap();
    assert_eq!(sequences(&world.receive()), [(1, 4)]);
    world.state.rewind(WIDE, WIDE);
    assert_eq!(world.receive().len(), 10);
}

#[test]
fn busy_group_does_not_starve_the_others() {
    let mut world = World::new();
    for seed in [1, 2] {
        world.join(seed, false);
    }
    for _ in 0..50 {
        world.append(1, false, None);
    }
    world.append(2, false, None);
    let entries = world.online();
    let quiet = entries.iter().position(|entry| entry.feed == FeedId(2)).unwrap();
    assert!(quiet <= world.page, "at place {quiet}");
}

#[test]
fn who_fell_off_the_end_is_told_where_to_go_on() {
    let mut world = World::new();
    world.join(1, false);
    for _ in 0..5 {
        world.append(1, false, None);
    }
    world.online();
    world.state.acknowledge(&[ack(1, 2)]).unwrap();
    world.trim(1, true);
    world.append(1, false, None);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 6), (1, 7)]);
    assert_eq!(entries[0].event, QueueEvent::Gap { next_available: Sequence(7) });
    assert_eq!((entries[0].previous, entries[1].previous), (Sequence(2), Sequence(6)));
}

#[test]
fn trimmed_membership_that_ended_is_a_gap_and_its_end() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None);
    world.leave(1, true); // 3
    for _ in 0..5 {
        world.append(1, false, None);
    }
    world.trim(1, true);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 3), (1, 4)]);
    assert_eq!(entries[0].event, QueueEvent::Gap { next_available: Sequence(4) });
    assert_eq!(entries[1].event, QueueEvent::Removed);
}

#[test]
fn end_of_a_deleted_group_is_told_after_its_feed_is_gone() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None);
    world.leave(1, false); // 3: the deletion
    world.log(1).deleted = true;
    world.trim(1, true);
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 2), (1, 3)]);
    assert_eq!(entries[0].event, QueueEvent::Gap { next_available: Sequence(3) });
    assert_eq!(entries[1].event, QueueEvent::GroupDeleted);
}

#[test]
fn membership_of_a_feed_of_which_nothing_is_left_is_a_gap_and_its_end() {
    for removed in [true, false] {
        let mut world = World::new();
        world.join(1, false);
        world.append(1, false, None);
        world.leave(1, removed); // 3
        let log = world.log(1);
        log.entries.clear();
        (log.gone, log.first) = (true, Sequence(0));
        let entries = world.online();
        let (at, end) =
            if removed { (3, QueueEvent::Removed) } else { (2, QueueEvent::GroupDeleted) };
        assert_eq!(sequences(&entries), [(1, at), (1, at + 1)], "{removed}");
        assert_eq!(entries[0].event, QueueEvent::Gap { next_available: Sequence(at + 1) });
        assert_eq!(entries[1].event, end);
    }
}

#[test]
fn entry_that_cannot_be_read_is_a_gap_and_blocks_nothing() {
    let mut world = World::new();
    world.join(1, false);
    world.append(1, false, None);
    world.append(1, false, None);
    world.log(1).entries[1].event = vec![0xff, 1, 2];
    let entries = world.online();
    assert_eq!(sequences(&entries), [(1, 2), (1, 3)]);
    assert_eq!(entries[0].event, QueueEvent::Gap { next_available: Sequence(3) });
}

#[test]
fn item_left_twice_within_a_day_is_delivered_once() {
    let mut world = World::new();
    world.notice(1);
    assert_eq!(world.online().len(), 1);
    world.state.acknowledge(&[ack(0, 1)]).unwrap();
    world.persist();
    world.crash();
    world.notice(1);
    assert_eq!(world.online().len(), 0);
    assert!(world.inbox.is_empty());
    world.notice(2);
    assert_eq!(sequences(&world.online()), [(0, 2)]);
}

#[test]
fn item_left_again_after_a_day_is_another_one() {
    let mut world = World::new();
    world.notice(1);
    world.online();
    let key = InboxKey::Item([1; 16]);
    let item = InboxItem::Event { group: None, event: event(77) };
    let later = NOW.plus_ms(REPEAT_WINDOW_MS);
    let taken = world.state.take(vec![(key, item)], later);
    world.write(taken.batch);
    assert_eq!(world.receive().len(), 1);
}

#[test]
fn full_own_feed_drops_notices_and_opens_groups_with_a_gap() {
    let mut world = World::with(QueueLimits { own_entries_max: 2, own_welcomes_max: 3, ..LIMITS });
    for id in 1..=3 {
        world.notice(id);
    }
    world.drain_inbox();
    assert_eq!(world.overflows, [Overflow::Event]);
    world.join(1, true); // fits
    world.join(2, true); // does not
    world.append(2, false, None);
    let entries = world.online();
    assert_eq!(world.overflows, [Overflow::Event, Overflow::Welcome]);
    assert_eq!(sequences(&entries), [(0, 1), (0, 2), (0, 3), (2, 1), (2, 2)]);
    assert_eq!(entries[3].event, QueueEvent::Gap { next_available: Sequence(2) });
    world.persist();
    world.crash();
    assert_eq!(world.online().len(), 5, "the gap is owed until it is acknowledged");
    let acks = [ack(0, 3), ack(2, 2)];
    world.state.acknowledge(&acks).unwrap();
    assert_eq!(world.online().len(), 0);
}

#[test]
fn client_in_too_many_groups_is_reported_to_the_group() {
    let mut world = World::with(QueueLimits { subscriptions_max: 1, ..LIMITS });
    world.join(1, true);
    world.drain_inbox();
    world.join(2, true);
    let items = world.inbox.clone().into_iter().collect();
    let taken = world.state.take(items, NOW);
    assert_eq!(taken.overflows, [Overflow::Subscription]);
    assert_eq!(taken.notify, [group(2)]);
    assert!(taken.batch.writes.iter().any(|write| matches!(
        write,
        Write::GroupNotice { group: told, .. } if *told == group(2)
    )));
}

#[test]
fn membership_left_twice_is_opened_once() {
    let mut world = World::new();
    world.join(1, true);
    let items: Vec<_> = world.inbox.clone().into_iter().collect();
    world.drain_inbox();
    let taken = world.state.take(items, NOW);
    world.write(taken.batch);
    assert_eq!(world.subscriptions.len(), 1);
    assert_eq!(world.online().len(), 1);
}

#[test]
fn skipped_entries_need_no_acknowledgement() {
    let mut world = World::new();
    world.join(1, false);
    for _ in 0..5 {
        world.own_message(1);
    }
    assert_eq!(world.online().len(), 0);
    assert!(!world.state.has_unpersisted_acks());
    world.persist();
    let cursor = world.subscriptions[&FeedId(1)].acknowledged;
    assert_eq!(cursor, Sequence(6), "they do not hold the feed back from being trimmed");
}

/// What the client library keeps of a feed: enough to prove that nothing was left out.
#[derive(Debug, Default)]
struct Received {
    group: Vec<u8>,
    got: BTreeMap<u64, QueueEvent>,
    last: u64,
    acknowledged: u64,
    gaps: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Client {
    feeds: BTreeMap<u64, Received>,
    welcomes: usize,
}

impl Client {
    fn take(&mut self, entries: &[QueueEntry], opened_with_welcome: &BTreeSet<u64>) {
        for entry in entries {
            let feed = self.feeds.entry(entry.feed.0).or_default();
            let sequence = entry.sequence.0;
            if sequence <= feed.last {
                assert!(sequence > feed.acknowledged, "acknowledged and delivered again");
                if let Some(known) = feed.got.get(&sequence) {
                    let gap = |event: &QueueEvent| matches!(event, QueueEvent::Gap { .. });
                    assert!(known == &entry.event || gap(&entry.event), "a repeat that differs");
                }
                if let QueueEvent::Gap { next_available } = entry.event {
                    feed.gaps.push((entry.previous.0, next_available.0));
                }
                let before = feed.got.range(..sequence).next_back().map_or(0, |(known, _)| *known);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))), ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        ops in proptest::collection::vec((0u8..15, 0u8..3, any::<u8>()), 1..250),
    ) {
        let mut world = World::new();
        let mut client = Client::default();
        let mut aged = BTreeSet::new();
        world.state.rewind(WIDE, WIDE);
        for (op, seed, x) in ops {
            match op {
                0..=2 => { world.append(seed, x & 1 == 1, None); }
                3 => { world.own_message(seed); }
                4 => world.join(seed, x & 1 == 1),
                5 => world.leave(seed, x & 7 != 0),
                6 => world.filter(seed, x & 1 == 1),
                7 => world.notice(x),
                8..=10 => {
                    for _ in 0..=(x % 6) {
                        let entries = world.step(|world| match x % 5 {
                            0 => { world.leave(seed, true); world.append(seed, true, None); }
                            1 => { world.append(seed, false, None); }
                            2 => world.trim(seed, false),
                            _ => {}
                        });
                        let welcomed = welcomed(&world);
                        client.take(&entries.unwrap_or_default(), &welcomed);
                    }
                }
                11 => {
                    let pick = |(feed, received): (&u64, &Received)| {
                        let at = received.got.keys().rev().nth(usize::from(x % 4))?;
                        Some(ack(*feed, *at))
                    };
                    let acks: Vec<FeedAck> = client.feeds.iter().filter_map(pick).collect();
                    world.learn(&acks);
                    world.state.acknowledge(&acks).expect("what was delivered is acknowledged");
                    for ack in acks {
                        let feed = client.feeds.get_mut(&ack.feed.0).unwrap();
                        feed.acknowledged = feed.acknowledged.max(ack.sequence.0);
                    }
                }
                12 => {
                    world.state.rewind(usize::from(x) * 20, usize::from(x % 8) + 1);
                }
                13 => {
                    if x & 1 == 1 { world.persist(); }
                    if x & 2 == 2 {
                        // acknowledgements that were not persisted are lost with the process
                        world.crash();
                        for (feed, received) in &mut client.feeds {
                            let kept = match world.subscriptions.get(&FeedId(*feed)) {
                                Some(subscription) => subscription.acknowledged.0,
                                None if *feed == 0 => world.head.acknowledged_own.0,
                                None => received.acknowledged,
                            };
                            received.acknowledged = received.acknowledged.min(kept);
                        }
                        world.state.rewind(WIDE, WIDE);
                    }
                }
                _ => {
                    let by_age = x % 8 == 0;
                    if by_age { aged.insert(seed); }
                    world.trim(seed, by_age);
                }
            }
        }
        // in the end the client takes everything
        world.crash();
        for received in client.feeds.values_mut() { received.acknowledged = 0; }
        world.state.rewind(WIDE, WIDE);
        let entries = world.receive();
        let welcomed = welcomed(&world);
        client.take(&entries, &welcomed);
        prop_assert_eq!(world.state.next(), Next::Idle);

        for (seed, log) in &world.logs {
            let mut feeds: Vec<&Received> = client
                .feeds
                .iter()
                .filter(|(feed, received)| **feed != 0 && received.group == group(*seed).as_bytes())
                .map(|(_, received)| received)
                .collect();
            for membership in &log.memberships {
                let mut expected: Vec<u64> = membership.expected.iter().map(|(s, _)| *s).collect();
                if membership.removed { expected.extend(membership.last.map(|last| last + 1)); }
                if expected.is_empty() { continue; }
                // memberships and feeds of one group are in the same order; one without entries has no feed
                let at = feeds.iter().position(|received| {
                    received.got.keys().all(|s| *s + 1 >= membership.from
                        && membership.last.is_none_or(|last| *s <= last + 1))
                });
                let received = at.map(|at| feeds.remove(at));
                let received = match received { Some(received) => received, None => {
                    prop_assert!(false, "no feed for {membership:?}");
                    unreachable!()
                }};
                for (sequence, number_expected) in &membership.expected {
                    match received.got.get(sequence) {
                        Some(QueueEvent::Gap { .. }) | None => {
                            prop_assert!(aged.contains(seed), "{sequence} of {seed} was lost");
                            prop_assert!(
                                received.gaps.iter().any(|(from, next)| from < sequence && sequence < next),
                                "{sequence} of {seed} was lost without a word"
                            );
                        }
                        Some(event) => prop_assert_eq!(number(event), *number_expected),
                    }
                }
                if let (true, Some(last)) = (membership.removed, membership.last) {
                    prop_assert_eq!(received.got.get(&(last + 1)), Some(&QueueEvent::Removed));
                }
                for (sequence, event) in &received.got {
                    let known = expected.contains(sequence) || matches!(event, QueueEvent::Gap { .. });
                    prop_assert!(known, "{} of {} was never for this client", sequence, seed);
                }
            }
        }
        let own: Vec<u64> = client.feeds.get(&0).map(|own| own.got.keys().copied().collect()).unwrap_or_default();
        prop_assert_eq!(own, (1..world.head.next_own.0.max(1)).collect::<Vec<_>>());
    }
}

/// Feeds that a Welcome opened, as far as it is still in the store.
fn welcomed(world: &World) -> BTreeSet<u64> {
    world.own.values().filter_map(|entry| entry.opens).map(|feed| feed.0).collect()
}

#[test]
fn stored_event_is_what_was_accepted() {
    assert_eq!(number(&decode::<QueueEvent>(&event(7)).unwrap()), 7);
}

#[test]
fn feed_that_cannot_be_read_is_passed_over_and_comes_again() {
    let mut world = World::new();
    world.join(1, false);
    world.join(2, false);
    world.drain_inbox();
    world.append(1, false, None);
    world.append(2, false, None);
    world.online();
    world.state.rewind(WIDE, WIDE);
    let Next::ReadFeed { feed, .. } = world.state.next() else {
        panic!("{:?}", world.state.next())
    };
    world.state.pass_over(feed);
    let others = world.receive();
    assert!(!others.is_empty() && others.iter().all(|entry| entry.feed != feed), "{others:?}");
    assert_eq!(world.state.next(), Next::Idle);
    world.state.again(feed);
    let late = world.receive();
    assert!(!late.is_empty() && late.iter().all(|entry| entry.feed == feed), "{late:?}");
}
