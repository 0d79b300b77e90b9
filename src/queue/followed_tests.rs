//! What a guest does with what a hub sends, against a store that does what batches say.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{followed::*, followed_world::*};
use crate::{
    store::records::{Followed, GroupStatus, InboxItem},
    wire::{
        codec::{List, Opaque, encode},
        ds::FanoutFilter,
        ids::{Domain, Epoch, GroupId, RecipientId, Sequence, Timestamp},
        key_packages::SealedOffer,
        portability::MigrationConfirmation,
        queueing::{
            DeliveryFailure, DeliveryItem, DeliveryProblem, QueueEntry, QueueEvent, RosterChange,
        },
    },
};

/// What one item is refused with.
fn problems(failures: &[DeliveryFailure]) -> Vec<(u32, DeliveryProblem, u64, u64)> {
    let of = |failure: &DeliveryFailure| {
        (failure.item, failure.problem, failure.recipient.0, failure.next_sequence.0)
    };
    failures.iter().map(of).collect()
}

fn short(entries: &[QueueEntry]) -> Vec<(u64, u64, &'static str)> {
    let of = |entry: &QueueEntry| {
        let name = match entry.event {
            QueueEvent::MlsMessage { .. } => "message",
            QueueEvent::Gap { .. } => "gap",
            QueueEvent::Removed => "removed",
            QueueEvent::GroupDeleted => "deleted",
            _ => "other",
        };
        (entry.sequence.0, entry.previous.0, name)
    };
    entries.iter().map(of).collect()
}

#[test]
fn only_the_groups_creator_is_its_hub() {
    let other = Domain::new("other.example").unwrap();
    assert!(is_hub(&hub(), &group(), None, &other));
    assert!(!is_hub(&other, &group(), None, &Domain::new("guest.example").unwrap()));
    assert!(!is_hub(&hub(), &group(), None, &hub()), "a group of our own is nobody else's");
    // where the group has moved, its creator has nothing to say any more
    let guest = Domain::new("guest.example").unwrap();
    assert!(is_hub(&other, &group(), Some(&other), &guest));
    assert!(!is_hub(&hub(), &group(), Some(&other), &guest));
    assert!(is_hub(&other, &group(), Some(&other), &hub()), "one of our own may be elsewhere");
}

#[test]
fn unknown_feed_asks_for_a_snapshot_and_follows_from_there() {
    let mut guest = Guest::default();
    let refused = guest.take(vec![said(4)]);
    assert_eq!(problems(&refused), [(0, DeliveryProblem::UnknownFeed, 0, 0)]);
    assert_eq!(guest, Guest::default());
    assert_eq!(guest.take(vec![snapshot(4, vec![invite(1, 1)]), said(4), said(5)]), []);
    assert_eq!(short(&guest.read(&client(1))), [(4, 0, "message"), (5, 4, "message")]);
    assert_eq!(guest.followed, Some(Followed { hub: hub(), members: 1 }));
    let head = guest.head.unwrap();
    assert_eq!((head.status, head.next_sequence), (GroupStatus::Followed, Sequence(6)));
}

#[test]
fn snapshot_of_nobody_opens_nothing() {
    let mut guest = Guest::default();
    assert_eq!(guest.take(vec![snapshot(4, Vec::new())]), []);
    assert_eq!(guest, Guest::default());
}

#[test]
fn gap_is_refused_with_what_is_expected_and_a_repeat_is_accepted() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(2, vec![add(1, 1)]), said(2)]);
    let before = guest.clone();
    let refused = guest.take(vec![said(2), said(4), said(5)]);
    let gap = DeliveryProblem::Gap;
    assert_eq!(problems(&refused), [(1, gap, 0, 3), (2, gap, 0, 3)]);
    assert_eq!(guest, before, "nothing has changed");
    assert_eq!(problems(&guest.take(vec![said(4), said(3), said(4)])), [(0, gap, 0, 3)]);
    assert_eq!(guest.next(), 5);
}

#[test]
fn handshake_messages_are_told_from_application_messages() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    let messages = [framed(1, 2, &group()), framed(2, 1, &group()), framed(2, 2, &group())];
    for (sequence, message) in (1..).zip(messages) {
        let sent = item(sequence, QueueEvent::MlsMessage { message }, Vec::new());
        assert_eq!(guest.take(vec![sent]), []);
    }
    let flags: Vec<bool> = guest.log.values().map(|entry| entry.handshake).collect();
    assert_eq!(flags, [true, false, true]);
    assert_eq!(guest.head.unwrap().epoch.0, 5);
}

#[test]
fn epoch_that_is_void_is_told_to_all_and_ends_the_feed_of_whom_it_brought_in() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    let commit = QueueEvent::MlsMessage { message: framed(1, 2, &group()) };
    guest.take(vec![item(1, commit, vec![add(2, 2)]), said(2)]);
    assert_eq!(guest.head.as_ref().unwrap().epoch, Epoch(5));
    let event = void(5, 1, &group(), 4);
    let refused = guest.take(vec![item(3, event.clone(), vec![remove(2)])]);
    assert_eq!(problems(&refused), []);
    assert_eq!(guest.head.as_ref().unwrap().epoch, Epoch(4), "the group is in the one before");
    let kept = &guest.log[&Sequence(3)];
    assert!(kept.handshake, "also for who takes handshakes only");
    assert_eq!(kept.event, encode(&event));
    let closes = guest.inbox.values().filter(|item| {
        matches!(
            item,
            InboxItem::Close { recipient: RecipientId(2), last: Sequence(3), removed: true, .. }
        )
    });
    assert_eq!(closes.count(), 1);
    // a repeat changes nothing
    let before = guest.clone();
    guest.take(vec![item(3, event, vec![remove(2)])]);
    assert_eq!(guest, before);
}

#[test]
fn event_that_no_hub_may_send_is_invalid_and_changes_nothing() {
    let other = GroupId::of(&hub(), [8; 16]);
    let offer = SealedOffer {
        client_queue_information: token(1),
        key_package_ref: crate::wire::ids::KeyPackageRef(Opaque::new([1; 32]).unwrap()),
        kem_output: Opaque::default(),
        ciphertext: Opaque::default(),
    };
    let events = [
        QueueEvent::MlsMessage { message: framed(2, 1, &other) },
        QueueEvent::MlsMessage { message: framed(1, 1, &group()) },
        QueueEvent::MlsMessage { message: welcome(1) },
        QueueEvent::Welcome { hub_domain: hub(), welcome: welcome(1) },
        QueueEvent::ConnectionRequest { sender_domain: hub(), offer },
        QueueEvent::Removed,
        QueueEvent::Gap { next_available: Sequence(9) },
        QueueEvent::KeyPackagesLow { left: 0 },
        // of a commit that is not there yet, of no epoch, and by complaints about something else
        void(6, 1, &group(), 5),
        void(0, 0, &group(), 5),
        void(6, 0, &other, 5),
        void(6, 0, &group(), 4),
    ];
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    let before = guest.clone();
    for event in events {
        let refused = guest.take(vec![item(1, event.clone(), Vec::new()), said(2)]);
        let expected = [(0, DeliveryProblem::InvalidItem, 0, 1), (1, DeliveryProblem::Gap, 0, 1)];
        assert_eq!(problems(&refused), expected, "{event:?}");
        assert_eq!(guest, before);
    }
}

#[test]
fn roster_that_contradicts_what_is_known_is_invalid_as_a_whole() {
    let two_secrets = RosterChange::Add {
        recipient: RecipientId(2),
        client_queue_information: token(2),
        filter: FanoutFilter::All,
        welcome: Some(welcome(2)),
    };
    let no_welcome = RosterChange::Add {
        recipient: RecipientId(2),
        client_queue_information: token(2),
        filter: FanoutFilter::All,
        welcome: Some(framed(2, 1, &group())),
    };
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    let before = guest.clone();
    let many = (0..101).map(|number| add(1_000 + number, 3)).collect();
    for roster in [
        vec![add(2, 2), add(1, 1)],
        vec![add(2, 2), add(2, 3)],
        vec![add(2, 2), update(9, 2)],
        vec![add(2, 2), remove(9)],
        vec![two_secrets],
        vec![no_welcome],
        many,
    ] {
        let refused = guest.take(vec![quiet(1, roster.clone())]);
        assert_eq!(problems(&refused), [(0, DeliveryProblem::InvalidItem, 0, 1)], "{roster:?}");
        assert_eq!(guest, before);
    }
    for odd in [snapshot(9, vec![remove(1)]), snapshot(0, vec![]), snapshot(1 << 62, vec![])] {
        let refused = guest.take(vec![odd]);
        assert!(refused.is_empty() || refused[0].problem == DeliveryProblem::InvalidItem);
        assert_eq!(guest, before);
    }
}

#[test]
fn snapshot_of_a_moved_group_is_refused() {
    let bytes = [0; 32];
    let confirmation = MigrationConfirmation {
        domain_name: Domain::new("new.example").unwrap(),
        nonce: bytes,
        group_id: group(),
        signature: Opaque::default(),
        source_domain: hub(),
        epoch: crate::wire::ids::Epoch(3),
        next_sequence: Sequence(5),
    };
    let moved = DeliveryItem::Snapshot {
        group_id: group(),
        next_sequence: Sequence(5),
        chain: List::new(vec![confirmation]).unwrap(),
        roster: List::new(vec![add(1, 1)]).unwrap(),
    };
    let mut guest = Guest::default();
    assert_eq!(problems(&guest.take(vec![moved])), [(0, DeliveryProblem::WrongHub, 0, 0)]);
    assert_eq!(guest, Guest::default());
}

#[test]
fn who_is_added_starts_behind_the_item_and_who_is_removed_gets_it_last() {
    let mut guest = Guest::default();
    let removes_and_adds = vec![add(2, 2), remove(1)];
    let failures = guest.take(vec![
        snapshot(1, vec![add(1, 1)]),
        said(1),
        item(2, QueueEvent::MlsMessage { message: framed(1, 2, &group()) }, removes_and_adds),
        said(3),
    ]);
    assert_eq!(failures, []);
    let one = [(1, 0, "message"), (2, 1, "message"), (3, 2, "removed")];
    assert_eq!(short(&guest.read(&client(1))), one);
    assert_eq!(short(&guest.read(&client(2))), [(3, 0, "message")]);
    assert_eq!(guest.is_in(), BTreeMap::from([(2, client(2))]));
}

#[test]
fn welcome_comes_with_its_hubs_name_before_the_feed() {
    let mut guest = Guest::default();
    let with_welcome = RosterChange::Add {
        recipient: RecipientId(1),
        client_queue_information: token(1),
        filter: FanoutFilter::HandshakeOnly,
        welcome: Some(welcome(1)),
    };
    guest.take(vec![snapshot(8, vec![with_welcome])]);
    let opened = guest.inbox.values().next().unwrap();
    let event = encode(&QueueEvent::Welcome { hub_domain: hub(), welcome: welcome(1) });
    let expected = InboxItem::Open {
        group: group(),
        recipient: RecipientId(1),
        from: Sequence(8),
        handshake_only: true,
        event: Some(event),
    };
    assert_eq!(*opened, expected);
}

#[test]
fn token_that_is_not_good_is_reported_with_every_answer_until_its_member_is_removed() {
    let mut guest = Guest::default();
    let bad = DeliveryProblem::InvalidClientQueueInformation;
    let failures = guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 200)])]);
    assert_eq!(problems(&failures), [(0, bad, 2, 1)]);
    assert_eq!(guest.is_in(), BTreeMap::from([(1, client(1))]), "the item stands");
    assert_eq!(problems(&guest.take(vec![said(1), said(2)])), [(1, bad, 2, 3)]);
    assert_eq!(
        problems(&guest.take(vec![said(2), said(9)])),
        [(1, DeliveryProblem::Gap, 0, 3), (0, bad, 2, 3)]
    );
    assert_eq!(guest.take(vec![quiet(3, vec![remove(2)])]), []);
    assert_eq!(guest.take(vec![said(4)]), []);
}

#[test]
fn client_that_is_in_the_group_already_is_not_added_under_another_number() {
    let mut guest = Guest::default();
    let failures = guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 1)])]);
    let bad = DeliveryProblem::InvalidClientQueueInformation;
    assert_eq!(problems(&failures), [(0, bad, 2, 1)]);
    assert_eq!(guest.is_in(), BTreeMap::from([(1, client(1))]));
    // replaced within one item it is
    assert_eq!(guest.take(vec![quiet(1, vec![add(3, 1), remove(1), remove(2)])]), []);
    assert_eq!(guest.is_in(), BTreeMap::from([(3, client(1))]));
}

#[test]
fn update_changes_the_filter_behind_the_item_and_keeps_the_membership() {
    let mut guest = Guest::default();
    guest.take(vec![
        snapshot(1, vec![add(1, 1)]),
        said(1),
        quiet(2, vec![update(1, 1)]),
        said(3),
        item(4, QueueEvent::MlsMessage { message: framed(1, 2, &group()) }, Vec::new()),
    ]);
    assert_eq!(short(&guest.read(&client(1))), [(1, 0, "message"), (4, 1, "message")]);
    // with another's token, or none that is good, it is to go
    let bad = DeliveryProblem::InvalidClientQueueInformation;
    for (sequence, of) in [(5, 2), (6, 200)] {
        let failures = guest.take(vec![quiet(sequence, vec![update(1, of)])]);
        assert_eq!(problems(&failures), [(0, bad, 1, sequence + 1)]);
    }
}

#[test]
fn member_that_had_no_queue_gets_one_when_it_resyncs_and_not_by_a_good_token_alone() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 200)]), said(1)]);
    // it would lack what came before, and not know it
    let bad = (0, DeliveryProblem::InvalidClientQueueInformation, 2, 3);
    assert_eq!(problems(&guest.take(vec![quiet(2, vec![update(2, 2)])])), [bad]);
    assert_eq!(guest.is_in(), BTreeMap::from([(1, client(1))]));
    let DeliveryItem::Feed { group_id, group_sequence, accepted_at, event, roster, .. } =
        item(3, QueueEvent::MlsMessage { message: framed(1, 2, &group()) }, vec![update(2, 2)])
    else {
        unreachable!()
    };
    let except = Some(RecipientId(2));
    let resync =
        DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, event, roster };
    let commit = item(5, QueueEvent::MlsMessage { message: framed(1, 2, &group()) }, Vec::new());
    assert_eq!(guest.take(vec![resync, said(4), commit]), []);
    assert_eq!(guest.is_in(), BTreeMap::from([(1, client(1)), (2, client(2))]));
    assert_eq!(short(&guest.read(&client(2))), [(5, 0, "message")], "muted, as it asked to be");
}

#[test]
fn deleted_group_ends_for_everyone_and_is_never_opened_again() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 2)]), said(1)]);
    assert_eq!(guest.take(vec![item(2, QueueEvent::GroupDeleted, vec![remove(1), remove(2)])]), []);
    for number in [1, 2] {
        let got = [(1, 0, "message"), (2, 1, "deleted")];
        assert_eq!(short(&guest.read(&client(number))), got);
    }
    assert_eq!((guest.followed.clone(), guest.members.len()), (None, 0));
    let head = guest.head.clone().unwrap();
    assert_eq!(head.status, GroupStatus::Deleted);
    assert_eq!(head.wake_at, Some(NOW.plus_ms(LIMITS.retention_ms)));
    let before = guest.clone();
    assert_eq!(guest.take(vec![said(1), snapshot(3, vec![add(1, 1)])]), [], "had already");
    let invalid = DeliveryProblem::InvalidItem;
    let later = vec![said(3), snapshot(9, vec![add(1, 1)])];
    assert_eq!(problems(&guest.take(later)), [(0, invalid, 0, 3), (1, invalid, 0, 3)]);
    assert_eq!(guest, before);
}

#[test]
fn repairing_snapshot_tells_those_who_were_there_what_they_lack() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 2), add(3, 3)]), said(1)]);
    // in the hole 2..=6: client 2 was removed, client 4 added, client 1 muted
    let muted = RosterChange::Add {
        recipient: RecipientId(1),
        client_queue_information: token(1),
        filter: FanoutFilter::HandshakeOnly,
        welcome: None,
    };
    assert_eq!(guest.take(vec![snapshot(7, vec![muted, add(3, 3), add(4, 4)])]), []);
    assert_eq!(short(&guest.read(&client(1))), [(1, 0, "message"), (6, 1, "gap")]);
    assert_eq!(guest.take(vec![said(7)]), []);
    let three = [(1, 0, "message"), (6, 1, "gap"), (7, 6, "message")];
    assert_eq!(short(&guest.read(&client(3))), three);
    assert_eq!(short(&guest.read(&client(1))), three[..2], "muted");
    let two = [(1, 0, "message"), (6, 1, "gap"), (7, 6, "removed")];
    assert_eq!(short(&guest.read(&client(2))), two);
    assert_eq!(short(&guest.read(&client(4))), [(6, 0, "gap"), (7, 6, "message")]);
    let gap = guest.read(&client(3))[1].event.clone();
    assert_eq!(gap, QueueEvent::Gap { next_available: Sequence(7) });
}

#[test]
fn snapshot_of_nobody_ends_a_copy_behind_a_gap() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 2)]), said(1)]);
    assert_eq!(guest.take(vec![snapshot(9, vec![])]), []);
    let expected = [(1, 0, "message"), (8, 1, "gap"), (9, 8, "removed")];
    for number in 1..=2 {
        let read = short(&guest.read(&client(number)));
        assert_eq!(read.iter().map(|it| it.2).collect::<Vec<_>>(), expected.map(|it| it.2));
    }
    assert_eq!(guest.followed, Some(Followed { hub: hub(), members: 0 }));
    let ended = guest.clone();
    assert_eq!(guest.take(vec![snapshot(9, vec![])]), []);
    assert_eq!(guest.members, ended.members);
}

#[test]
fn hole_of_one_entry_is_a_gap_too() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)]), said(1), snapshot(3, vec![add(1, 1)]), said(3)]);
    let expected = [(1, 0, "message"), (2, 1, "gap"), (3, 2, "message")];
    assert_eq!(short(&guest.read(&client(1))), expected);
}

#[test]
fn late_snapshot_changes_nothing() {
    let mut guest = Guest::default();
    let opening = snapshot(3, vec![add(1, 1)]);
    guest.take(vec![opening.clone()]);
    let opened = guest.clone();
    assert_eq!(guest.take(vec![opening.clone()]), []);
    assert_eq!(guest, opened);
    guest.take(vec![quiet(3, vec![remove(1), add(2, 2)])]);
    let later = guest.clone();
    assert_eq!(guest.take(vec![opening]), []);
    assert_eq!(guest, later);
}

#[test]
fn feed_that_was_left_opens_again_without_a_gap_for_who_is_invited() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)]), said(1), quiet(2, vec![remove(1)])]);
    assert_eq!(guest.followed, Some(Followed { hub: hub(), members: 0 }));
    assert_eq!(guest.take(vec![snapshot(9, vec![invite(5, 1)]), said(9)]), []);
    let expected = [(1, 0, "message"), (3, 1, "removed"), (9, 0, "message")];
    assert_eq!(short(&guest.read(&client(1))), expected);
}

#[test]
fn feed_that_was_left_opens_again_with_a_gap_for_who_may_have_been_there_before() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)]), said(1), quiet(2, vec![remove(1)])]);
    assert_eq!(guest.take(vec![snapshot(9, vec![add(5, 2)])]), []);
    assert_eq!(short(&guest.read(&client(2))), [(8, 0, "gap")], "at once");
    guest.take(vec![said(9)]);
    assert_eq!(short(&guest.read(&client(2))), [(8, 0, "gap"), (9, 8, "message")]);
    assert_eq!(short(&guest.read(&client(1))), [(1, 0, "message"), (3, 1, "removed")]);
}

#[test]
fn first_snapshot_tells_everybody_of_a_gap_unless_all_are_invited_by_it() {
    let gap = [(6, 0, "gap"), (7, 6, "message")];
    let all = [(7, 0, "message")];
    let cases = [
        (vec![invite(1, 1)], &all[..]),
        (vec![invite(1, 1), invite(2, 2)], &all),
        (vec![add(1, 1)], &gap),
        (vec![add(1, 1), add(2, 2)], &gap),
        // nobody comes in with a Welcome beside one that has none: the hub had lost what came before
        (vec![invite(1, 1), add(2, 2)], &gap),
        (vec![invite(1, 1), add(2, 200)], &gap),
    ];
    for (roster, expected) in cases {
        let mut guest = Guest::default();
        guest.take(vec![snapshot(7, roster.clone())]);
        let at_once = if expected == gap { &gap[..1] } else { &[] };
        assert_eq!(short(&guest.read(&client(1))), at_once, "{roster:?}");
        guest.take(vec![said(7)]);
        for client in guest.is_in().values() {
            assert_eq!(short(&guest.read(client)), expected, "{roster:?}");
        }
    }
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)]), said(1)]);
    assert_eq!(short(&guest.read(&client(1))), [(1, 0, "message")], "before it there is nothing");
}

#[test]
fn nothing_is_kept_while_nobody_here_can_read_it() {
    let mut guest = Guest::default();
    let bad = DeliveryProblem::InvalidClientQueueInformation;
    guest.take(vec![snapshot(1, vec![add(1, 200), add(2, 201)])]);
    for sequence in 1..=5 {
        let told = [(0, bad, 1, sequence + 1), (0, bad, 2, sequence + 1)];
        assert_eq!(problems(&guest.take(vec![said(sequence)])), told);
    }
    let head = guest.head.clone().unwrap();
    assert_eq!((head.first_sequence, head.next_sequence), (Sequence(6), Sequence(6)));
    assert_eq!((head.log_bytes, head.wake_at, guest.log.len()), (0, None, 0));
    let before = guest.clone();
    let judged = problems(&guest.take(vec![said(2), said(9)]));
    assert_eq!(judged[0], (1, DeliveryProblem::Gap, 0, 6), "order is judged as ever");
    assert_eq!(guest, before);
    // who comes in begins behind what was not kept, with nothing that is missing
    guest.take(vec![quiet(6, vec![add(3, 3), remove(1), remove(2)]), said(7)]);
    assert_eq!(guest.kept(), [7]);
    assert_eq!(short(&guest.read(&client(3))), [(7, 0, "message")]);
}

#[test]
fn copy_whose_clients_are_gone_keeps_what_was_there_and_nothing_more() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 2)]), said(1), quiet(2, vec![remove(2)])]);
    guest.members.get_mut(&RecipientId(1)).unwrap().gone = true;
    guest.take(vec![said(3), said(4), quiet(5, vec![add(3, 3)]), said(6)]);
    assert_eq!(guest.kept(), [1, 2, 6]);
    assert_eq!(short(&guest.read(&client(2))), [(1, 0, "message"), (3, 1, "removed")]);
    assert_eq!(short(&guest.read(&client(3))), [(6, 0, "message")]);
}

#[test]
fn end_of_a_membership_that_was_not_kept_is_told_whether_the_log_goes_on_behind_it_or_not() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    // its queue is not good any more, and nothing is kept until somebody else comes
    guest.take(vec![quiet(1, vec![update(1, 101)]), said(2), quiet(3, vec![remove(1)])]);
    assert_eq!(guest.kept(), [1]);
    let told = [(3, 0, "gap"), (4, 3, "removed")];
    assert_eq!(short(&guest.read(&client(1))), told, "nothing comes any more that could wake it");
    guest.take(vec![quiet(4, vec![add(2, 2)]), said(5), said(6)]);
    assert_eq!(guest.kept(), [1, 5, 6]);
    assert_eq!(short(&guest.read(&client(1))), told);
    assert_eq!(short(&guest.read(&client(2))), [(5, 0, "message"), (6, 5, "message")]);
}

#[test]
fn hole_in_what_nobody_read_is_told_to_who_may_have_been_there() {
    for (roster, kept, expected) in [
        (vec![add(1, 200)], vec![], vec![]),
        (vec![add(1, 200), add(2, 2)], vec![3], vec![(8, 0, "gap"), (9, 8, "message")]),
        (vec![invite(2, 2)], vec![], vec![(9, 0, "message")]),
    ] {
        let mut guest = Guest::default();
        guest.take(vec![snapshot(1, vec![add(1, 200)]), said(1), said(2)]);
        guest.take(vec![snapshot(9, roster.clone())]);
        assert_eq!(guest.kept(), kept, "{roster:?}");
        guest.take(vec![said(9)]);
        assert_eq!(short(&guest.read(&client(2))), expected, "{roster:?}");
    }
}

#[test]
fn snapshot_that_finds_a_queue_where_none_was_tells_its_client_what_it_lacks() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1), add(2, 200)]), said(1), said(2)]);
    let bad = (0, DeliveryProblem::InvalidClientQueueInformation, 2, 3);
    let same = guest.take(vec![snapshot(3, vec![add(1, 1), add(2, 2)])]);
    assert_eq!(problems(&same), [bad], "a snapshot that says nothing new cannot tell it");
    assert_eq!(guest.take(vec![snapshot(6, vec![add(1, 1), add(2, 2)]), said(6)]), []);
    assert_eq!(short(&guest.read(&client(2))), [(5, 0, "gap"), (6, 5, "message")]);
}

#[test]
fn hub_that_has_no_room_is_refused_and_nothing_changes() {
    let full = DeliveryProblem::QueueFull;
    let mut guest = Guest::default();
    let no_copies = Room { opens: false, ..ROOMY };
    let opening = vec![snapshot(4, vec![invite(1, 1)]), said(4)];
    let refused = guest.take_within(no_copies, opening.clone(), NOW);
    let unknown = (1, DeliveryProblem::UnknownFeed, 0, 0);
    assert_eq!(problems(&refused), [(0, full, 0, 0), unknown]);
    let no_bytes = Room { opens: true, bytes: MEMBER_BYTES - 1 };
    let refused = guest.take_within(no_bytes, opening.clone(), NOW);
    assert_eq!(problems(&refused), [(0, full, 0, 0), unknown], "its members take room too");
    assert_eq!(guest, Guest::default());
    // nobody of it is here, which takes nothing
    assert_eq!(guest.take_within(no_copies, vec![snapshot(4, Vec::new())], NOW), []);
    guest.take(opening);
    // a copy that is there goes on without a place for another, while there are bytes
    assert_eq!(guest.take_within(no_copies, vec![said(5)], NOW), []);
    let before = guest.clone();
    let one = entry_bytes(&guest.log[&Sequence(5)]);
    let scarce = Room { opens: false, bytes: 2 * one - 1 };
    let refused = guest.take_within(scarce, vec![said(6), said(7), said(8)], NOW);
    assert_eq!(problems(&refused), [(1, full, 0, 7), (2, DeliveryProblem::Gap, 0, 7)]);
    assert_eq!(guest.kept(), [4, 5, 6], "what was taken stands");
    assert_eq!(guest.take(vec![said(6), said(7)]), [], "what was refused comes again");
    assert_ne!(guest, before);
    assert_eq!(short(&guest.read(&client(1))).len(), 4);
}

#[test]
fn hub_that_has_no_room_goes_on_with_what_nobody_reads() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 200)])]);
    let none = Room { opens: false, bytes: 0 };
    let failures = guest.take_within(none, vec![said(1), quiet(2, vec![remove(1)])], NOW);
    assert_eq!(failures, []);
    assert_eq!(guest.next(), 3);
}

#[test]
fn two_snapshots_of_one_sequence_leave_rows_beside_each_other() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(4, vec![add(1, 1)])]);
    assert_eq!(guest.take(vec![snapshot(4, vec![add(2, 1)])]), []);
    assert_eq!(guest.is_in(), BTreeMap::from([(2, client(1))]));
    assert_eq!(guest.inbox.len(), 3, "opened, closed, opened");
}

#[test]
fn two_snapshots_of_one_sequence_in_one_batch_leave_rows_beside_each_other() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(4, vec![add(1, 1)])]);
    assert_eq!(guest.take(vec![snapshot(4, vec![add(2, 1)]), snapshot(4, vec![add(3, 1)])]), []);
    assert_eq!(guest.is_in(), BTreeMap::from([(3, client(1))]));
    assert_eq!(guest.inbox.len(), 5, "opened, closed, opened, closed, opened");
}

#[test]
fn clock_of_the_hub_does_not_keep_entries_for_ever() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    let DeliveryItem::Feed { group_id, group_sequence, except, event, roster, .. } = said(1) else {
        unreachable!()
    };
    let accepted_at = Timestamp(u64::MAX);
    let ahead = DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, event, roster };
    guest.take(vec![ahead]);
    assert!(guest.log[&Sequence(1)].accepted_at <= NOW.plus_ms(300_000));
}

#[test]
fn long_log_is_looked_at_soon_and_a_short_one_when_it_is_old() {
    let mut guest = Guest::default();
    guest.take(vec![snapshot(1, vec![add(1, 1)])]);
    assert_eq!(guest.head.as_ref().unwrap().wake_at, None, "there is nothing to look at");
    guest.take(vec![said(1)]);
    let wake_at = |guest: &Guest| guest.head.as_ref().unwrap().wake_at;
    assert_eq!(wake_at(&guest), Some(NOW.plus_ms(LIMITS.retention_ms)));
    for sequence in 2..=LIMITS.records_due {
        guest.take(vec![said(sequence)]);
    }
    let soon = Some(NOW.plus_ms(LIMITS.trim_delay_ms));
    assert_eq!(wake_at(&guest), soon);
    guest.take_at(vec![said(LIMITS.records_due + 1)], NOW.plus_ms(500));
    assert_eq!(wake_at(&guest), soon, "more messages do not put it off");
    let head = guest.head.clone().unwrap();
    let cut = trimmed(head, Sequence(51), 50 * entry_bytes(&guest.log[&Sequence(1)]), &LIMITS, NOW);
    assert_eq!(cut.log_bytes, entry_bytes(&guest.log[&Sequence(51)]));
    assert_eq!(cut.wake_at, Some(NOW.plus_ms(500 + LIMITS.retention_ms)));
}
fn a_hub() -> impl Strategy<Value = Hub> {
    // of each step: whether somebody is added, whether somebody is removed
    let steps = prop::collection::vec((any::<bool>(), prop::option::of(0_usize..4)), 1..40);
    steps.prop_map(Hub::of)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever becomes of items on their way, the guest's log is the beginning of the hub's without a gap, its members
    /// are those of that point, and each got what is theirs.
    #[test]
    fn any_order_loss_and_repetition_leaves_the_beginning_of_the_hubs_log(
        hub in a_hub(),
        way in prop::collection::vec((0_u64..45, 1_usize..5), 0..120),
    ) {
        let mut guest = Guest::default();
        for (first, count) in way {
            let last = hub.last();
            let batch: Vec<_> = (first..).take(count).filter(|at| *at <= last).map(|at| {
                if at < 5 { hub.opening.clone() } else { hub.at(at).clone() }
            }).collect();
            let before = guest.next();
            for failure in guest.take(batch) {
                let expected = [DeliveryProblem::UnknownFeed, DeliveryProblem::Gap];
                prop_assert!(expected.contains(&failure.problem), "{failure:?}");
            }
            prop_assert!(guest.next() >= before);
        }
        if guest.next() > 0 {
            check(&guest, &hub);
            // what is missing brings it to the end
            let rest = (guest.next()..=hub.last()).map(|at| hub.at(at).clone()).collect();
            prop_assert_eq!(guest.take(rest), vec![]);
            prop_assert_eq!(guest.next(), hub.last() + 1);
            check(&guest, &hub);
        }
    }

    /// With snapshots in between nobody misses anything without being told, and everybody has what is behind the last.
    #[test]
    fn snapshots_leave_holes_that_are_told(
        hub in a_hub(),
        way in prop::collection::vec((0_u64..45, any::<bool>()), 0..40),
    ) {
        let mut guest = Guest::default();
        let mut holes: BTreeSet<u64> = BTreeSet::new();
        guest.take(vec![hub.opening.clone()]);
        for (at, repairs) in way {
            let at = at.clamp(5, hub.last());
            let roster = hub.behind(at).keys().map(|number| {
                add(*number, u8::try_from(*number).unwrap())
            }).collect();
            let before = guest.next();
            let sent = if repairs { snapshot(at + 1, roster) } else { hub.at(at).clone() };
            guest.take(vec![sent]);
            if repairs {
                holes.extend(before..guest.next());
            }
        }
        is_told(&guest, &hub, &holes);
    }
}
