//! Rules of one queue, and the property that nothing is lost, doubled or reordered whatever happens when.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use proptest::prelude::*;

use super::{state::*, state_world::*};
use crate::{
    store::{
        Write,
        records::{InboxItem, InboxKey, QueueHead, Subscription},
    },
    wire::{
        codec::decode,
        ids::{ClientUri, FeedId, RecipientId, Sequence},
        queueing::{QueueEntry, QueueEvent},
    },
};

fn sequences(entries: &[QueueEntry]) -> Vec<(u64, u64)> {
    entries.iter().map(|entry| (entry.feed.0, entry.sequence.0)).collect()
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
fn who_changes_its_filter_very_often_gets_more_than_it_asked_for_and_not_less() {
    let changes = FILTERS_MAX + 9;
    for muted_first in [true, false] {
        let mut world = World::new();
        world.join(1, false);
        for change in 0..changes {
            world.filter(1, change.is_multiple_of(2) == muted_first);
            world.append(1, false, None);
            world.append(1, true, None);
        }
        world.drain_inbox();
        world.crash();
        let got: Vec<u64> = world.online().iter().map(|entry| entry.sequence.0).collect();
        let asked: Vec<u64> = world.log(1).memberships[0].expected.iter().map(|it| it.0).collect();
        let lost: Vec<&u64> = asked.iter().filter(|sequence| !got.contains(sequence)).collect();
        assert!(lost.is_empty(), "{lost:?} of {asked:?}");
        // while its changes are told apart, and from the last on, it gets exactly what it asked for
        let exactly = |all: &[u64]| {
            let told_apart = 3 * (FILTERS_MAX as u64 - 2);
            let last = 3 * (changes as u64 - 1);
            let is_exact = |at: &&u64| **at < told_apart || **at > last;
            all.iter().filter(is_exact).copied().collect::<Vec<u64>>()
        };
        assert_eq!(exactly(&got), exactly(&asked));
        assert!(world.subscriptions.values().all(|one| one.filters.len() == FILTERS_MAX));
    }
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
fn several_acknowledgements_of_one_feed_are_its_highest() {
    let acks = [(7, 2), (1, 9), (7, 5), (0, 1), (7, 3), (1, 9)].map(|(feed, to)| ack(feed, to));
    assert_eq!(highest(acks.to_vec()), [ack(0, 1), ack(1, 9), ack(7, 5)]);
}

/// With each of them looked for among the others, this would take minutes.
#[test]
fn client_that_was_in_very_many_groups_reads_of_all_their_ends_at_once() {
    const FEEDS: u64 = 50_000;
    let subscription = |feed| Subscription {
        feed: FeedId(feed),
        group: group(1),
        recipient: RecipientId(feed),
        from: Sequence(1),
        last: (feed > 1).then_some(Sequence(5)),
        removed: false,
        filters: vec![(Sequence(1), false)],
        acknowledged: Sequence(0),
        previous: Sequence(0),
    };
    let subscriptions: Vec<_> = (1..=FEEDS).map(subscription).collect();
    let head = QueueHead { next_feed: FeedId(FEEDS + 1), ..QueueHead::default() };
    let client = ClientUri::new("mimi://a.example/d/alice/phone").unwrap();
    let mut state = QueueState::load(client, head, subscriptions, LIMITS);
    state.rewind(WIDE, usize::MAX);
    let acks: Vec<_> = (2..=FEEDS).map(|feed| ack(feed, 5)).collect();
    acks.iter().for_each(|ack| state.learn_end(ack.feed, Sequence(6)));
    state.acknowledge(&acks).unwrap();
    let dropped = state.persist().unwrap().writes.len();
    assert_eq!(dropped as u64, FEEDS, "all but one, and the head");
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
proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))), ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        ops in proptest::collection::vec((0u8..15, 0u8..3, any::<u8>()), 1..250),
    ) {
        let mut play = Play::new(LIMITS);
        for (op, seed, x) in ops {
            play.act(op, seed, x);
        }
        play.end();
    }

    /// Of a queue that is soon full, too, and of groups that are deleted: what does not fit is told.
    #[test]
    fn small_queues_lose_nothing_without_a_word(
        (own, welcomes, groups) in (1usize..6, 1usize..6, 1usize..4),
        ops in proptest::collection::vec((0u8..16, 0u8..4, any::<u8>()), 1..250),
    ) {
        let mut play = Play::new(QueueLimits {
            own_entries_max: own,
            own_welcomes_max: own + welcomes,
            subscriptions_max: groups,
        });
        for (op, seed, x) in ops {
            match op {
                15 => play.delete(seed),
                op => play.act(op, seed, x),
            }
        }
        play.end();
    }
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
