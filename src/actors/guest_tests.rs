//! What other providers deliver and ask, through the node of a.example.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use super::testing::*;
use crate::{
    account::Registration,
    actors::{Limits, tokens::LEAVERS_MAX},
    crypto,
    federation::Opened,
    store::{
        Batch, Write,
        records::{GroupStatus, InboxItem, InboxKey, Subscription},
    },
    wire::{
        client::DeleteDevice,
        codec::{List, Opaque, append_vector, decode, encode},
        ds::{
            DsContext, DsMessage, DsRequest, DsSenderId, FanoutFilter, ProtocolVersion,
            REQUEST_BYTES_MAX, WelcomeInfo,
        },
        extensions::QueueToken,
        federation::EventType,
        ids::{
            ClientUri, Domain, Epoch, FeedId, GroupId, KeyPackageRef, RecipientId, RequestId,
            Sequence, Timestamp,
        },
        key_packages::SealedOffer,
        mls::MlsMessage,
        portability::MigrationConfirmation,
        queueing::{
            BATCH_ITEMS_MAX, DeliverBatchRequest, DeliveryItem, DeliveryProblem, QueueEntry,
            QueueEvent, QueueingServiceRequest, QueueingServiceResponse, RosterChange,
        },
    },
};

fn hub() -> Domain {
    Domain::new("b.example").unwrap()
}

/// A group that b.example hosts.
fn remote(seed: u8) -> GroupId {
    GroupId::of(&hub(), [seed; 16])
}

fn message(group: &GroupId) -> MlsMessage {
    let mut bytes = vec![0, 1, 0, 2];
    append_vector(&mut bytes, group.as_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.push(1);
    for part in [&b""[..], b"sender", b"content"] {
        append_vector(&mut bytes, part);
    }
    MlsMessage::new(bytes).unwrap()
}

fn add(recipient: u64, token: &QueueToken) -> RosterChange {
    RosterChange::Add {
        recipient: RecipientId(recipient),
        client_queue_information: token.clone(),
        filter: FanoutFilter::All,
        welcome: None,
    }
}

fn snapshot(group: &GroupId, next: u64, roster: Vec<RosterChange>) -> DeliveryItem {
    DeliveryItem::Snapshot {
        group_id: group.clone(),
        next_sequence: Sequence(next),
        chain: List::default(),
        roster: List::new(roster).unwrap(),
    }
}

fn said(world: &World, group: &GroupId, sequence: u64) -> DeliveryItem {
    changed(world, group, sequence, Vec::new())
}

fn changed(
    world: &World,
    group: &GroupId,
    sequence: u64,
    roster: Vec<RosterChange>,
) -> DeliveryItem {
    use crate::actors::Clock as _;
    DeliveryItem::Feed {
        group_id: group.clone(),
        group_sequence: Sequence(sequence),
        accepted_at: world.clock.now(),
        except: None,
        event: QueueEvent::MlsMessage { message: message(group) },
        roster: List::new(roster).unwrap(),
    }
}

type Failures = Vec<(u32, DeliveryProblem, u64, u64)>;

/// `person` takes in its first group's feed up to `until`, acknowledges it, and that is written down.
async fn read(world: &World, person: &Person, until: u64) {
    let mut last = 0;
    while last < until {
        let entries = world.dequeue(person, &[(1, last)], 0).await;
        last = entries.last().unwrap().sequence.0.min(until);
    }
    world.dequeue(person, &[(1, until)], 0).await;
    world.node.drain_queues().await;
}

async fn deliver(world: &World, from: &Domain, items: Vec<DeliveryItem>) -> Failures {
    let request = DeliverBatchRequest { items: List::new(items).unwrap() };
    let answer = world.node.deliver_batch(from, request).await.unwrap();
    let of = |failure: &crate::wire::queueing::DeliveryFailure| {
        (failure.item, failure.problem, failure.recipient.0, failure.next_sequence.0)
    };
    answer.failures.iter().map(of).collect()
}

async fn token(world: &World, person: &Person) -> QueueToken {
    world.tokens(person, TokenClass::Group, 1).await.remove(0)
}

fn groups_of(entries: &[QueueEntry]) -> Vec<(String, u64)> {
    let of = |entry: &QueueEntry| {
        (String::from_utf8(entry.group_id.as_slice().to_vec()).unwrap(), entry.sequence.0)
    };
    entries.iter().map(of).collect()
}

#[actix::test]
async fn groups_of_one_batch_stand_for_themselves_and_a_repeat_is_stored_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    let (one, two) = (token(&world, &alice).await, token(&world, &alice).await);
    let (first, second) = (remote(1), remote(2));
    let items = vec![
        snapshot(&first, 5, vec![add(1, &one)]),
        said(&world, &second, 3),
        said(&world, &first, 5),
        said(&world, &second, 4),
        said(&world, &first, 7),
        snapshot(&second, 9, vec![add(1, &two)]),
        said(&world, &first, 6),
    ];
    let gap = (4, DeliveryProblem::Gap, 0, 6);
    let unknown = |item| (item, DeliveryProblem::UnknownFeed, 0, 0);
    assert_eq!(deliver(&world, &hub(), items.clone()).await, [unknown(1), unknown(3), gap]);
    // the first answer was lost
    assert_eq!(deliver(&world, &hub(), items).await, []);
    let mut entries = world.dequeue(&alice, &[], 0).await;
    let id = first.as_str().to_owned();
    entries.retain(|entry| entry.group_id.as_slice() == id.as_bytes());
    assert!(matches!(entries.remove(0).event, QueueEvent::Gap { next_available: Sequence(5) }));
    assert_eq!(groups_of(&entries), [(id.clone(), 5), (id.clone(), 6), (id, 7)]);
    let head = world.node.store.group_head(&first).await.unwrap().unwrap();
    assert_eq!((head.status, head.next_sequence), (GroupStatus::Followed, Sequence(8)));
}

#[actix::test]
async fn follower_that_is_online_is_woken_and_has_everything_after_a_restart() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    let token = token(&world, &alice).await;
    let group = remote(1);
    let (entries, _) = futures_util::future::join(world.dequeue(&alice, &[], 50_000), async {
        deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &token)])]).await;
        deliver(&world, &hub(), vec![said(&world, &group, 1)]).await
    })
    .await;
    assert_eq!(groups_of(&entries), [(group.as_str().to_owned(), 1)]);
    world.disk.crash();
    world.restart();
    assert_eq!(world.dequeue(&alice, &[], 0).await, entries);
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &group, 2)]).await, []);
    assert_eq!(world.dequeue(&alice, &[(1, 1)], 0).await.len(), 1);
}

#[actix::test]
async fn nobody_but_its_hub_speaks_for_a_group() {
    let world = World::new();
    let alice = world.register("alice").await;
    let token = token(&world, &alice).await;
    let other = Domain::new("c.example").unwrap();
    let own = group(1);
    let wrong = |item| (item, DeliveryProblem::WrongHub, 0, 0);
    let items = vec![snapshot(&remote(1), 1, vec![add(1, &token)]), said(&world, &remote(1), 1)];
    assert_eq!(deliver(&world, &other, items).await, [wrong(0), wrong(1)]);
    let items = vec![snapshot(&own, 1, vec![add(1, &token)])];
    assert_eq!(deliver(&world, &domain(), items.clone()).await, [wrong(0)]);
    assert_eq!(deliver(&world, &hub(), items).await, [wrong(0)]);
    assert!(world.dequeue(&alice, &[], 0).await.is_empty());
    assert_eq!(world.node.store.group_head(&remote(1)).await, Ok(None));
}

#[actix::test]
async fn token_is_bound_to_the_group_that_names_it_first() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (of_alice, of_bob) = (token(&world, &alice).await, token(&world, &bob).await);
    let bad = DeliveryProblem::InvalidClientQueueInformation;
    let roster = vec![add(1, &of_alice)];
    assert_eq!(deliver(&world, &hub(), vec![snapshot(&remote(1), 1, roster)]).await, []);
    let roster = vec![add(7, &of_alice), add(8, &of_bob)];
    let items = vec![snapshot(&remote(2), 1, roster), said(&world, &remote(2), 1)];
    assert_eq!(deliver(&world, &hub(), items).await, [(1, bad, 7, 2)], "the items stand");
    assert_eq!(world.dequeue(&bob, &[], 0).await.len(), 1);
    assert!(world.dequeue(&alice, &[], 0).await.is_empty());
    let connection = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let forged = QueueToken::new(vec![1; 77]).unwrap();
    for (recipient, token) in [(9, connection), (10, forged)] {
        let roster = vec![add(recipient, &token)];
        let group = remote(u8::try_from(recipient).unwrap());
        let failures = deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
        assert_eq!(failures, [(0, bad, recipient, 1)]);
    }
}

#[actix::test]
async fn deleted_device_is_reported_with_every_answer_until_the_hub_has_removed_it() {
    let mut world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let roster = vec![add(1, &token(&world, &alice).await), add(2, &token(&world, &bob).await)];
    let group = remote(1);
    let items = vec![snapshot(&group, 1, roster), said(&world, &group, 1)];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    let delete = DeleteDevice { client: bob.client.clone() };
    world.node.delete_device(&bob.client, delete).await.unwrap();
    // what was left for the group is taken by itself; this only waits for it
    world.node.wake_noticed_groups().await.unwrap();
    let gone = |item, next| (item, DeliveryProblem::InvalidClientQueueInformation, 2, next);
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &group, 2)]).await, [gone(0, 3)]);
    world.restart();
    let again = vec![said(&world, &group, 2), said(&world, &group, 3)];
    assert_eq!(deliver(&world, &hub(), again).await, [gone(1, 4)]);
    let removed = vec![RosterChange::Remove { recipient: RecipientId(2) }];
    assert_eq!(deliver(&world, &hub(), vec![changed(&world, &group, 4, removed)]).await, []);
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 4);
}

#[actix::test]
async fn client_in_too_many_groups_is_reported_to_the_hub() {
    let limits = Limits { subscriptions_max: 1, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    for seed in [1, 2] {
        let roster = vec![add(4, &token(&world, &alice).await)];
        let items = vec![snapshot(&remote(seed), 1, roster)];
        assert_eq!(deliver(&world, &hub(), items).await, []);
        world.dequeue(&alice, &[], 0).await;
    }
    world.node.wake_noticed_groups().await.unwrap();
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &remote(1), 1)]).await, []);
    let failures = deliver(&world, &hub(), vec![said(&world, &remote(2), 1)]).await;
    assert_eq!(failures, [(0, DeliveryProblem::InvalidClientQueueInformation, 4, 2)]);
}

#[actix::test]
async fn what_every_member_has_acknowledged_goes_and_the_rest_when_it_is_old() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let roster = vec![add(1, &token(&world, &alice).await), add(2, &token(&world, &bob).await)];
    let group = remote(1);
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    for first in [1, 801] {
        let items = (first..first + 800).map(|sequence| said(&world, &group, sequence)).collect();
        assert_eq!(deliver(&world, &hub(), items).await, []);
    }
    read(&world, &alice, 1600).await;
    read(&world, &bob, 1000).await;
    world.node.drain_queues().await;
    world.clock.advance_ms(60_000);
    assert_eq!(world.node.sweep_groups().await, Ok(1));
    let head = async || world.node.store.group_head(&group).await.unwrap().unwrap();
    assert_eq!(head().await.first_sequence, Sequence(1001));
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &group, 1601)]).await, []);
    assert_eq!(world.dequeue(&bob, &[], 0).await[0].sequence, Sequence(1001));
    assert_eq!(world.node.sweep_groups().await, Ok(0), "not before its time");

    // both leave, and what is kept for them gets old
    let removed = [1, 2].map(|number| RosterChange::Remove { recipient: RecipientId(number) });
    let items = vec![changed(&world, &group, 1602, removed.to_vec())];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    world.clock.advance_ms(60_000);
    world.node.sweep_groups().await.unwrap();
    assert_eq!(head().await.first_sequence, Sequence(1001), "they may still have to read why");
    world.clock.advance_ms(31 * 24 * 3_600_000);
    assert_eq!(world.node.sweep_groups().await, Ok(1));
    assert_eq!(world.node.store.group_head(&group).await, Ok(None));
    assert_eq!(world.node.store.followed(&group).await, Ok(None));
    // who did not read it in time is told that something is missing, and how it ended
    let entries = world.dequeue(&bob, &[(1, 1100)], 0).await;
    assert!(matches!(entries[0].event, QueueEvent::Gap { next_available: Sequence(1603) }));
    assert_eq!((entries[1].event.clone(), entries.len()), (QueueEvent::Removed, 2));
    // what comes late is of a group that is not known
    let late = deliver(&world, &hub(), vec![said(&world, &group, 1602)]).await;
    assert_eq!(late, [(0, DeliveryProblem::UnknownFeed, 0, 0)]);
    assert_eq!(deliver(&world, &hub(), vec![snapshot(&group, 1603, Vec::new())]).await, []);
    assert_eq!(world.node.store.group_head(&group).await, Ok(None), "nobody here is in it");
}

#[actix::test]
async fn who_has_left_is_owed_what_came_before_that_and_nothing_is_kept_for_who_has_it() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    let mut roster = Vec::new();
    for (number, person) in [(1, &alice), (2, &bob), (3, &carol)] {
        roster.push(add(number, &token(&world, person).await));
    }
    let group = remote(1);
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    for first in [1, 751] {
        let items = (first..first + 750).map(|sequence| said(&world, &group, sequence)).collect();
        deliver(&world, &hub(), items).await;
    }
    let removed = [2, 3].map(|number| RosterChange::Remove { recipient: RecipientId(number) });
    deliver(&world, &hub(), vec![changed(&world, &group, 1_501, removed.to_vec())]).await;
    let left = async || {
        let leavers = world.node.store.leavers(&group, None, 9).await.unwrap();
        leavers.iter().map(|leaver| leaver.recipient.0).collect::<Vec<_>>()
    };
    let begins = async || {
        world.clock.advance_ms(60_000);
        world.node.sweep_groups().await.unwrap();
        world.node.store.group_head(&group).await.unwrap().unwrap().first_sequence.0
    };
    read(&world, &alice, 1_501).await;
    assert_eq!((begins().await, left().await), (1, vec![2, 3]), "nobody else has looked");
    read(&world, &bob, 1_200).await;
    read(&world, &carol, 1_502).await;
    assert_eq!((begins().await, left().await), (1_201, vec![2]), "carol has it all");
    // who has all but the word that it has left needs nothing of the log
    read(&world, &bob, 1_501).await;
    deliver(&world, &hub(), (1_502..2_400).map(|at| said(&world, &group, at)).collect()).await;
    read(&world, &alice, 2_399).await;
    assert_eq!((begins().await, left().await), (2_400, vec![2]));
    let entries = world.dequeue(&bob, &[], 0).await;
    assert_eq!((entries[0].event.clone(), entries.len()), (QueueEvent::Removed, 1));
    read(&world, &bob, 1_502).await;
    assert!(left().await.is_empty());
}

#[actix::test]
async fn leaver_whose_device_is_deleted_is_forgotten_whether_its_queue_had_taken_up_the_end_or_not()
{
    let world = World::new();
    let alice = world.register("alice").await;
    let (bob, carol) = (world.register("bob").await, world.register("carol").await);
    let mut roster = Vec::new();
    for (number, person) in [(1, &alice), (2, &bob), (3, &carol)] {
        roster.push(add(number, &token(&world, person).await));
    }
    let group = remote(1);
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    let removed = [2, 3].map(|number| RosterChange::Remove { recipient: RecipientId(number) });
    deliver(&world, &hub(), vec![changed(&world, &group, 1, removed.to_vec())]).await;
    world.dequeue(&carol, &[], 0).await;
    for (left, person) in [(2, &bob), (1, &carol)] {
        let leavers = world.node.store.leavers(&group, None, 9).await.unwrap().len();
        assert_eq!(leavers, left);
        let delete = DeleteDevice { client: person.client.clone() };
        world.node.delete_device(&person.client, delete).await.unwrap();
    }
    assert_eq!(world.node.store.leavers(&group, None, 9).await, Ok(Vec::new()));
}

#[actix::test]
async fn however_many_have_left_a_group_only_so_many_are_looked_at_when_its_log_is_cut() {
    let world = World::new();
    let bob = world.register("bob").await;
    let (group, first) = (remote(1), Sequence(10));
    let most = LEAVERS_MAX as u64;
    let mut batch = Batch::new();
    let mut leaves = |number: u64, last: u64| {
        let (client, recipient, key) =
            (bob.client.clone(), RecipientId(number), InboxKey::Item(crypto::random()));
        let (group, last) = (group.clone(), Sequence(last));
        let item = InboxItem::Close { group, recipient, last, removed: true };
        batch.push(Write::Inbox { client: client.clone(), key: key.clone(), item });
        batch.push(Write::InboxTaken { client, key });
    };
    (0..most + 2).for_each(|number| leaves(number, 9));
    leaves(most + 2, 20);
    world.node.store.write(batch).await.unwrap();
    let look = async || world.node.slowest_leaver(&group, first).await.unwrap();
    let (slowest, over) = look().await;
    assert_eq!((slowest, over.len()), (Sequence(9), LEAVERS_MAX), "the others may need all of it");
    let mut batch = Batch::new();
    for recipient in over {
        batch.push(Write::DropLeaver { group: group.clone(), recipient });
    }
    // what is behind those that are gone is looked at next
    let subscription = Subscription {
        feed: FeedId(1),
        group: group.clone(),
        recipient: RecipientId(most + 2),
        from: Sequence(1),
        last: Some(Sequence(20)),
        removed: true,
        filters: Vec::new(),
        acknowledged: Sequence(15),
        previous: Sequence(0),
    };
    batch.push(Write::Subscription { client: bob.client.clone(), subscription });
    // removed from the group when its device was deleted already
    let (client, key) =
        (ClientUri::of(&bob.client.user(), "gone").unwrap(), InboxKey::Item([7; 16]));
    let (recipient, last) = (RecipientId(most + 3), Sequence(20));
    let item = InboxItem::Close { group: group.clone(), recipient, last, removed: true };
    batch.push(Write::Inbox { client, key, item });
    world.node.store.write(batch).await.unwrap();
    let over = [0, 1, 3].map(|at| RecipientId(most + at));
    assert_eq!(look().await, (Sequence(15), over.to_vec()));
}

/// A log that is never cut fills the disk: one client's damage is not its groups'.
#[actix::test]
async fn who_has_damaged_records_holds_a_log_as_long_as_others_may_and_no_longer() {
    let mut world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let roster = vec![add(1, &token(&world, &alice).await), add(2, &token(&world, &bob).await)];
    let group = remote(1);
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    for first in [1, 801] {
        let items = (first..first + 800).map(|sequence| said(&world, &group, sequence)).collect();
        assert_eq!(deliver(&world, &hub(), items).await, []);
    }
    for person in [&alice, &bob] {
        world.dequeue(person, &[], 0).await;
    }
    world.node.drain_queues().await;
    let removed = vec![RosterChange::Remove { recipient: RecipientId(2) }];
    deliver(&world, &hub(), vec![changed(&world, &group, 1601, removed)]).await;
    assert_eq!(world.disk.damage("subscription").len(), 2);
    world.restart();
    let begins = async |after_ms| {
        world.clock.advance_ms(after_ms);
        world.node.sweep_groups().await.unwrap();
        world.node.store.group_head(&group).await.unwrap().unwrap().first_sequence
    };
    assert_eq!(begins(60_000).await, Sequence(1), "it is not known what they have read");
    assert_eq!(begins(31 * 24 * 3_600_000).await, Sequence(1602));
}

#[actix::test]
async fn hub_whose_tokens_are_good_for_nobody_fills_no_disk() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    let group = remote(1);
    let forged = [1, 2].map(|seed| QueueToken::new(vec![seed; 77]).unwrap());
    let roster = vec![add(1, &forged[0]), add(2, &forged[1])];
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    let page = crate::store::Page { items_max: 9, bytes_max: 1 << 20 };
    let kept = async |world: &World| world.node.store.feed(&group, Sequence(0), page).await;
    for sequence in 1..=20 {
        let failures = deliver(&world, &hub(), vec![said(&world, &group, sequence)]).await;
        let bad = DeliveryProblem::InvalidClientQueueInformation;
        assert_eq!(failures, [(0, bad, 1, sequence + 1), (0, bad, 2, sequence + 1)]);
        if sequence == 10 {
            world.restart();
        }
    }
    assert_eq!(kept(&world).await, Ok(Vec::new()));
    let head = world.node.store.group_head(&group).await.unwrap().unwrap();
    assert_eq!((head.next_sequence, head.log_bytes), (Sequence(21), 0));
    assert_eq!(
        deliver(&world, &hub(), vec![said(&world, &group, 9)]).await.len(),
        2,
        "had already"
    );
    let gap = deliver(&world, &hub(), vec![said(&world, &group, 30)]).await;
    assert_eq!(gap, [(0, DeliveryProblem::Gap, 0, 21)]);
    // a client that comes in later begins behind what was not kept
    let removed = [1, 2].map(|number| RosterChange::Remove { recipient: RecipientId(number) });
    let mut roster = removed.to_vec();
    roster.push(add(3, &token(&world, &alice).await));
    let items = vec![changed(&world, &group, 21, roster), said(&world, &group, 22)];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    assert_eq!(groups_of(&world.dequeue(&alice, &[], 0).await), [(group.as_str().to_owned(), 22)]);
    assert_eq!(kept(&world).await.unwrap().len(), 1);
}

#[actix::test]
async fn log_stops_when_the_last_client_here_is_gone() {
    let world = World::new();
    let alice = world.register("alice").await;
    let group = remote(1);
    let roster = vec![add(1, &token(&world, &alice).await)];
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster), said(&world, &group, 1)]).await;
    let head = async || world.node.store.group_head(&group).await.unwrap().unwrap();
    let before = head().await.log_bytes;
    assert!(before > 0);
    let delete = DeleteDevice { client: alice.client.clone() };
    world.node.delete_device(&alice.client, delete).await.unwrap();
    world.node.wake_noticed_groups().await.unwrap();
    let gone = |next| [(0, DeliveryProblem::InvalidClientQueueInformation, 1, next)];
    for sequence in 2..9 {
        let item = vec![said(&world, &group, sequence)];
        assert_eq!(deliver(&world, &hub(), item).await, gone(sequence + 1));
    }
    assert_eq!((head().await.log_bytes, head().await.next_sequence), (before, Sequence(9)));
    // nobody is left who could ask for it
    world.clock.advance_ms(31 * 24 * 3_600_000);
    assert_eq!(world.node.sweep_groups().await, Ok(1));
    assert_eq!(world.node.store.group_head(&group).await, Ok(None));
    assert_eq!(world.node.store.followed_members(&group, None, 9).await, Ok(Vec::new()));
}

#[actix::test]
async fn hub_has_so_many_copies_here_and_then_waits_until_old_ones_go() {
    let limits = Limits { copies_per_hub_max: 2, ..Limits::default() };
    let mut world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let tokens = world.tokens(&alice, TokenClass::Group, 10).await;
    let opening = |seed: u8| snapshot(&remote(seed), 1, vec![add(1, &tokens[usize::from(seed)])]);
    let full = |failures: &Failures| {
        let problems = failures.iter().map(|failure| failure.1);
        problems.filter(|problem| *problem == DeliveryProblem::QueueFull).count()
    };
    // at once, so that each of them sees the same room
    let failures = deliver(&world, &hub(), (0..6).map(opening).collect()).await;
    assert_eq!((failures.len(), full(&failures)), (4, 4));
    let refused = usize::try_from(failures[0].0).unwrap();
    let taken: Vec<u8> = (0..6)
        .filter(|seed| failures.iter().all(|failure| failure.0 != u32::from(*seed)))
        .collect();
    let metric = world.node.metrics.guest_full.with_label_values(&["copies"]);
    assert_eq!(metric.get(), 4);
    world.restart();
    let refused = u8::try_from(refused).unwrap();
    assert_eq!(full(&deliver(&world, &hub(), vec![opening(refused)]).await), 1, "as ever");
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &remote(taken[0]), 1)]).await, []);
    // another one's share is its own
    let other = GroupId::of(&Domain::new("c.example").unwrap(), [9; 16]);
    let of_other = vec![snapshot(&other, 1, vec![add(1, &tokens[9])])];
    assert_eq!(deliver(&world, &Domain::new("c.example").unwrap(), of_other).await, []);
    // both copies end: one group is deleted, the other left
    let DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, roster, .. } =
        said(&world, &remote(taken[0]), 2)
    else {
        unreachable!()
    };
    let event = QueueEvent::GroupDeleted;
    let end = DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, event, roster };
    let removed = vec![RosterChange::Remove { recipient: RecipientId(1) }];
    let items = vec![end, changed(&world, &remote(taken[1]), 1, removed)];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    assert_eq!(world.node.sweep_groups().await, Ok(0));
    assert_eq!(full(&deliver(&world, &hub(), vec![opening(refused)]).await), 1, "not yet old");
    world.clock.advance_ms(31 * 24 * 3_600_000);
    assert_eq!(world.node.sweep_groups().await, Ok(2), "that of c.example has a client");
    assert_eq!(full(&deliver(&world, &hub(), vec![opening(refused)]).await), 0);
}

#[actix::test]
async fn hub_that_has_filled_its_bytes_waits_for_the_next_sweep_and_loses_nothing() {
    let limits = Limits { copy_bytes_per_hub_max: 8_000, ..Limits::default() };
    let mut world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let (busy, quiet) = (remote(1), remote(2));
    for group in [&busy, &quiet] {
        let roster = vec![add(1, &token(&world, &alice).await)];
        deliver(&world, &hub(), vec![snapshot(group, 1, roster)]).await;
    }
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &quiet, 1)]).await, []);
    let items: Vec<_> = (1..=100).map(|sequence| said(&world, &busy, sequence)).collect();
    let failures = deliver(&world, &hub(), items).await;
    let (item, problem, _, next) = failures[0];
    assert_eq!((problem, next), (DeliveryProblem::QueueFull, u64::from(item) + 1));
    world.restart();
    let again = async |world: &World, group: &GroupId, sequence| {
        let failures = deliver(world, &hub(), vec![said(world, group, sequence)]).await;
        failures.first().map(|failure| failure.1)
    };
    assert_eq!(again(&world, &busy, next).await, Some(DeliveryProblem::QueueFull), "still");
    assert_eq!(again(&world, &quiet, 2).await, Some(DeliveryProblem::QueueFull), "its sibling too");
    assert_eq!(world.node.sweep_groups().await, Ok(1), "the one that takes more than its share");
    assert_eq!(again(&world, &busy, next).await, None);
    assert_eq!(again(&world, &quiet, 2).await, None);
    let head = world.node.store.group_head(&busy).await.unwrap().unwrap();
    assert!(head.first_sequence > Sequence(1) && head.log_bytes <= 2_500, "{head:?}");
    // alice, who did not read it in time, is told; she has all of the other
    let entries = world.dequeue(&alice, &[], 0).await;
    let of = |group: &GroupId| {
        let mine = entries.iter().filter(|entry| entry.group_id.as_slice() == group.as_bytes());
        mine.cloned().collect::<Vec<QueueEntry>>()
    };
    assert!(matches!(of(&busy)[0].event, QueueEvent::Gap { .. }));
    assert_eq!(of(&busy).last().unwrap().sequence, Sequence(next));
    assert_eq!(of(&quiet).iter().map(|entry| entry.sequence.0).collect::<Vec<_>>(), [1, 2]);
}

#[actix::test]
async fn client_that_a_first_snapshot_finds_in_a_group_is_told_of_a_gap_at_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    let group = remote(1);
    let roster = vec![add(1, &token(&world, &alice).await)];
    assert_eq!(deliver(&world, &hub(), vec![snapshot(&group, 40, roster)]).await, []);
    let entries = world.dequeue(&alice, &[], 0).await;
    let gap = QueueEvent::Gap { next_available: Sequence(40) };
    assert_eq!(entries.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), [gap]);
    assert_eq!((entries[0].sequence, entries[0].previous), (Sequence(39), Sequence(0)));
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &group, 40)]).await, []);
    let entries = world.dequeue(&alice, &[(1, 39)], 0).await;
    assert_eq!(groups_of(&entries), [(group.as_str().to_owned(), 40)]);
}

#[actix::test]
async fn deleted_group_is_told_and_its_copy_dropped_when_it_is_old() {
    let world = World::new();
    let alice = world.register("alice").await;
    let group = remote(1);
    let roster = vec![add(1, &token(&world, &alice).await)];
    let DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, roster: none, .. } =
        said(&world, &group, 2)
    else {
        unreachable!()
    };
    let event = QueueEvent::GroupDeleted;
    let end =
        DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, event, roster: none };
    let items = vec![snapshot(&group, 1, roster), said(&world, &group, 1), end];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    let entries = world.dequeue(&alice, &[], 0).await;
    assert_eq!(entries.last().unwrap().event, QueueEvent::GroupDeleted);
    world.clock.advance_ms(31 * 24 * 3_600_000);
    assert_eq!(world.node.sweep_groups().await, Ok(1));
    assert_eq!(world.node.store.group_head(&group).await, Ok(None));
}

fn offer(token: QueueToken, content: u8) -> SealedOffer {
    SealedOffer {
        client_queue_information: token,
        key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
        kem_output: Opaque::new([2; 32]).unwrap(),
        ciphertext: Opaque::new([content; 64]).unwrap(),
    }
}

#[actix::test]
async fn direct_item_is_a_connection_request_and_stored_once() {
    let limits = Limits { connection_offers_per_hour: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let token = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let liar = Domain::new("c.example").unwrap();
    let direct = |id: u8, content, of: &QueueToken| DeliveryItem::Direct {
        item_id: [id; 16],
        client_queue_information: of.clone(),
        event: QueueEvent::ConnectionRequest {
            sender_domain: liar.clone(),
            offer: offer(token.clone(), content),
        },
    };
    for _ in 0..2 {
        assert_eq!(deliver(&world, &hub(), vec![direct(1, 1, &token)]).await, []);
    }
    let entries = world.dequeue(&alice, &[], 0).await;
    let event =
        QueueEvent::ConnectionRequest { sender_domain: hub(), offer: offer(token.clone(), 1) };
    assert_eq!(entries.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), [event]);
    let full = (0, DeliveryProblem::QueueFull, 0, 0);
    assert_eq!(deliver(&world, &hub(), vec![direct(2, 2, &token)]).await, [full], "the hour's");
    let other = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let forged = DeliveryItem::Direct {
        item_id: [3; 16],
        client_queue_information: other.clone(),
        event: QueueEvent::Removed,
    };
    let invalid = |item| (item, DeliveryProblem::InvalidItem, 0, 0);
    let failures = deliver(&world, &liar, vec![direct(3, 3, &other), forged]).await;
    assert_eq!(failures, [invalid(0), invalid(1)]);
}

#[actix::test]
async fn void_epoch_reaches_the_queues_of_a_guest_and_ends_that_of_whom_it_brought_in() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let group = remote(1);
    let roster = vec![add(1, &token(&world, &alice).await)];
    let came = vec![add(2, &token(&world, &bob).await)];
    let void = DeliveryItem::Feed {
        group_id: group.clone(),
        group_sequence: Sequence(3),
        accepted_at: Timestamp(3),
        except: None,
        event: QueueEvent::EpochVoid {
            epoch: Epoch(1),
            group_sequence: Sequence(1),
            complaints: List::default(),
        },
        roster: List::new(vec![RosterChange::Remove { recipient: RecipientId(2) }]).unwrap(),
    };
    let items = vec![
        snapshot(&group, 1, roster),
        changed(&world, &group, 1, came),
        said(&world, &group, 2),
        void,
        said(&world, &group, 4),
    ];
    assert_eq!(deliver(&world, &hub(), items).await, []);
    let events = |entries: Vec<QueueEntry>| -> Vec<(u64, &'static str)> {
        let name = |event: &QueueEvent| match event {
            QueueEvent::MlsMessage { .. } => "message",
            QueueEvent::EpochVoid { .. } => "void",
            QueueEvent::Removed => "removed",
            other => panic!("{other:?}"),
        };
        entries.iter().map(|entry| (entry.sequence.0, name(&entry.event))).collect()
    };
    let of_alice = events(world.dequeue(&alice, &[], 0).await);
    assert_eq!(of_alice, [(1, "message"), (2, "message"), (3, "void"), (4, "message")]);
    let of_bob = events(world.dequeue(&bob, &[], 0).await);
    assert_eq!(of_bob, [(2, "message"), (3, "void"), (4, "removed")]);
}

#[actix::test]
async fn group_that_is_followed_is_not_hosted() {
    let world = World::new();
    let alice = world.register("alice").await;
    let group = remote(1);
    let roster = vec![add(1, &token(&world, &alice).await)];
    deliver(&world, &hub(), vec![snapshot(&group, 1, roster)]).await;
    let response = world.node.group_operation(&alice.client, ask(&group, &domain())).await;
    assert_eq!(response.outcome.into_result().unwrap_err().name(), "group_not_found");
    world.node.wake_group(&group);
    world.node.sweep_groups().await.unwrap();
    assert_eq!(deliver(&world, &hub(), vec![said(&world, &group, 1)]).await, []);
    // without federation nobody else is asked
    let response = world.node.group_operation(&alice.client, ask(&group, &hub())).await;
    assert_eq!(response.outcome.into_result().unwrap_err().name(), "not_authorized");
}

fn ask(group: &GroupId, hub: &Domain) -> DsMessage {
    DsMessage {
        sender_id: DsSenderId::KeyPackageRef(KeyPackageRef(Opaque::new([1; 32]).unwrap())),
        request: DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: group.clone(),
            sender: Opaque::new([1; 32]).unwrap(),
            epoch: Epoch(1),
        }),
        signature: Default::default(),
        context: DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: hub.clone(),
            group_id: group.clone(),
            timestamp: Timestamp(1),
            request_id: RequestId([1; 16]),
        },
    }
}

async fn federated<T: tls_codec::Serialize>(
    world: &World,
    event: EventType,
    body: &T,
) -> Result<Vec<u8>, &'static str> {
    let opened = Opened::unsigned(hub(), event, RequestId([1; 16]), encode(body));
    world.node.federated(opened).await.map_err(|error| error.name())
}

#[actix::test]
async fn event_must_be_what_its_body_is_and_for_this_hub() {
    let world = World::new();
    let group = group(1);
    let message = ask(&group, &domain());
    let say = async |event, message: &DsMessage| federated(&world, event, message).await;
    let other = EventType::DeliveryService("send-message");
    assert_eq!(say(other, &message).await, Err("malformed"));
    let event = EventType::of(&message.request);
    assert_eq!(say(event, &message).await, Err("group_not_found"));
    assert_eq!(say(event, &ask(&remote(1), &hub())).await, Err("not_authorized"));
    assert_eq!(federated(&world, event, &7_u64).await, Err("malformed"));
    assert_eq!(federated(&world, EventType::Complaint, &7_u64).await, Err("malformed"));
    for event in [
        EventType::MigrationRequest,
        EventType::MigrationContent,
        EventType::MigrationAbort,
        EventType::MigrationConfirmation,
    ] {
        assert_eq!(federated(&world, event, &7_u64).await, Err("malformed"));
    }
    let batch = DeliverBatchRequest { items: List::new(vec![said(&world, &group, 1)]).unwrap() };
    assert!(federated(&world, EventType::DeliverBatch, &batch).await.is_ok());
    let many = vec![said(&world, &group, 1); 1_001];
    assert!(List::<_, REQUEST_BYTES_MAX, BATCH_ITEMS_MAX>::new(many.clone()).is_err());
    let too_many: List<DeliveryItem, REQUEST_BYTES_MAX> = List::new(many).unwrap();
    assert_eq!(federated(&world, EventType::DeliverBatch, &too_many).await, Err("malformed"));
}

#[actix::test]
async fn single_message_comes_from_its_groups_hub() {
    let world = World::new();
    let alice = world.register("alice").await;
    let token = token(&world, &alice).await;
    let send = async |group: &GroupId| {
        let request = QueueingServiceRequest {
            client_queue_information: token.clone(),
            message: message(group),
        };
        let answer = federated(&world, EventType::Deliver, &request).await.unwrap();
        decode::<QueueingServiceResponse>(&answer).unwrap()
    };
    let invalid = QueueingServiceResponse::InvalidClientQueueInformation;
    let other = GroupId::of(&Domain::new("c.example").unwrap(), [1; 16]);
    assert_eq!(send(&other).await, invalid);
    assert_eq!(send(&group(1)).await, invalid);
    assert_eq!(send(&remote(1)).await, QueueingServiceResponse::Ok);
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 1);
}

#[actix::test]
async fn acquaintances_are_those_who_share_a_group_and_outlive_the_process() {
    use crate::store::{
        Batch, Write,
        records::{Replica, ReplicaMode},
    };
    let mut world = World::new();
    let alice = world.register("alice").await;
    let [c, d, e] = ["c.example", "d.example", "e.example"].map(|name| Domain::new(name).unwrap());
    assert!(world.node.acquaintances().await.unwrap().is_empty());
    let roster = vec![add(1, &token(&world, &alice).await)];
    deliver(&world, &hub(), vec![snapshot(&remote(1), 1, roster)]).await;
    // c.example names clients that are not here, and makes itself no friends with that
    for seed in 1..9 {
        let forged = QueueToken::new(vec![seed; 77]).unwrap();
        let items = vec![snapshot(&GroupId::of(&c, [seed; 16]), 1, vec![add(1, &forged)])];
        deliver(&world, &c, items).await;
    }
    let replica = Replica {
        acknowledged: Sequence(1),
        acknowledged_at: Timestamp(1),
        copy: None,
        mode: ReplicaMode::Feed,
        set_aside: None,
    };
    let batch = Batch::new()
        .and(Write::Replica { peer: d.clone(), group: group(1), replica })
        .and(Write::Outbound { peer: e.clone(), group: group(1), until: Sequence(3) });
    world.node.store.write(batch).await.unwrap();
    world.restart();
    let found = world.node.acquaintances().await.unwrap();
    assert_eq!(found, [hub(), d, e].into());
}

/// An add with a Welcome of some 15 KB.
fn invitation(recipient: u64, token: &QueueToken) -> RosterChange {
    let mut secrets = Vec::new();
    for part in [&[1; 32][..], &[1; 32], &[2; 40]] {
        append_vector(&mut secrets, part);
    }
    let mut bytes = vec![0, 1, 0, 3, 0, 1];
    append_vector(&mut bytes, &secrets);
    append_vector(&mut bytes, &[3; 15_000]);
    RosterChange::Add {
        recipient: RecipientId(recipient),
        client_queue_information: token.clone(),
        filter: FanoutFilter::All,
        welcome: Some(MlsMessage::new(bytes).unwrap()),
    }
}

fn roster_only(
    world: &World,
    group: &GroupId,
    at: u64,
    changes: Vec<RosterChange>,
) -> DeliveryItem {
    match said(world, group, at) {
        DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, .. } => {
            let (event, roster) = (QueueEvent::RosterOnly, List::new(changes).unwrap());
            DeliveryItem::Feed { group_id, group_sequence, accepted_at, except, event, roster }
        }
        other => other,
    }
}

#[actix::test]
async fn inbox_of_a_client_that_is_away_is_bounded() {
    let limits = Limits { inbox_bytes_max: 100_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let (group, token) = (remote(1), token(&world, &alice).await);
    let forged = QueueToken::new(vec![7; 77]).unwrap();
    deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &forged)])]).await;
    let mut taken = 0;
    for round in 0..20 {
        let recipient = 10 + round;
        let remove = RosterChange::Remove { recipient: RecipientId(recipient) };
        let items = vec![
            roster_only(&world, &group, 1 + 2 * round, vec![invitation(recipient, &token)]),
            roster_only(&world, &group, 2 + 2 * round, vec![remove]),
        ];
        deliver(&world, &hub(), items).await;
        taken = world.node.store.inbox(&alice.client, ALL).await.unwrap().items.len();
    }
    assert_eq!(taken, 14, "seven Welcomes of 15 KB, and seven ends");
    // who reads gets on
    while !world.dequeue(&alice, &[], 0).await.is_empty() {
        let read = world.node.store.inbox(&alice.client, ALL).await.unwrap().items.is_empty();
        if read {
            break;
        }
    }
    let items = vec![roster_only(&world, &group, 41, vec![invitation(99, &token)])];
    let failures = deliver(&world, &hub(), items).await;
    assert!(failures.iter().all(|failure| failure.2 != 99), "{failures:?}");
}

#[actix::test]
async fn snapshots_that_only_leave_gaps_are_bounded() {
    let limits = Limits { copy_bytes_per_hub_max: 2_000, own_welcomes_max: 8, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let (group, token) = (remote(1), token(&world, &alice).await);
    deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &token)])]).await;
    for round in 1..=100 {
        deliver(&world, &hub(), vec![snapshot(&group, 1 + 2 * round, vec![add(1, &token)])]).await;
    }
    let rows = world.node.store.inbox(&alice.client, ALL).await.unwrap().items.len();
    let head = world.node.store.group_head(&group).await.unwrap().unwrap();
    assert!(rows <= 9, "{rows}");
    assert!(head.log_bytes <= 2_000, "{}", head.log_bytes);
}

#[actix::test]
async fn chain_that_cannot_be_checked_now_stops_no_other_group() {
    let world = World::new();
    let alice = world.register("alice").await;
    let gone = Domain::new("gone.example").unwrap();
    let moved = GroupId::of(&gone, [9; 16]);
    let link = MigrationConfirmation {
        domain_name: hub(),
        nonce: [1; 32],
        group_id: moved.clone(),
        signature: Opaque::new(vec![1; 64]).unwrap(),
        source_domain: gone,
        epoch: Epoch(3),
        next_sequence: Sequence(7),
    };
    let with_chain = DeliveryItem::Snapshot {
        group_id: moved.clone(),
        next_sequence: Sequence(9),
        chain: List::new(vec![link]).unwrap(),
        roster: List::new(vec![add(1, &token(&world, &alice).await)]).unwrap(),
    };
    let other = snapshot(&remote(1), 1, vec![add(1, &token(&world, &alice).await)]);
    let items = vec![other, said(&world, &remote(1), 1), with_chain];
    let failures = deliver(&world, &hub(), items).await;
    let [(item, problem, ..)] = &failures[..] else { panic!("{failures:?}") };
    assert_eq!((*item, *problem), (2, DeliveryProblem::QueueFull));
    assert!(world.node.store.group_head(&moved).await.unwrap().is_none());
    assert!(world.node.store.group_head(&remote(1)).await.unwrap().is_some());
}

#[actix::test]
async fn damage_of_one_group_or_client_stops_no_other_and_what_it_stopped_comes_again() {
    let mut world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (damaged, whole) = (remote(1), remote(2));
    let opened = snapshot(&damaged, 1, vec![add(1, &token(&world, &alice).await)]);
    assert_eq!(deliver(&world, &hub(), vec![opened, said(&world, &damaged, 1)]).await, []);
    let (of_alice, of_bob) = (token(&world, &alice).await, token(&world, &bob).await);
    let connection = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let direct = DeliveryItem::Direct {
        item_id: [1; 16],
        client_queue_information: connection.clone(),
        event: QueueEvent::ConnectionRequest {
            sender_domain: hub(),
            offer: offer(connection.clone(), 1),
        },
    };
    // alice's queue has a head from here on
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 1);
    let items = |world: &World, at| {
        vec![
            said(world, &damaged, 2),
            snapshot(&whole, 1, vec![add(1, &of_alice), add(2, &of_bob)]),
            said(world, &damaged, 3),
            said(world, &whole, at),
            direct.clone(),
        ]
    };
    let full = |item| (item, DeliveryProblem::QueueFull, 0, 0);
    let heads = world.disk.damage("group head");
    let queues = world.disk.damage("queue head");
    world.restart();
    let sent = items(&world, 1);
    assert_eq!(deliver(&world, &hub(), sent.clone()).await, [full(0), full(2), full(4)]);
    assert_eq!(deliver(&world, &hub(), sent).await, [full(0), full(2), full(4)], "again");
    let got = groups_of(&world.dequeue(&bob, &[], 0).await);
    assert_eq!(got, [(whole.as_str().to_owned(), 1)], "who has nothing to do with it");

    assert_eq!((heads.len(), queues.len()), (1, 1));
    world.disk.tamper(|map| map.extend(heads.into_iter().chain(queues)));
    world.restart();
    assert_eq!(deliver(&world, &hub(), items(&world, 2)).await, []);
    let mut got = groups_of(&world.dequeue(&alice, &[], 0).await);
    got.retain(|(group, _)| group == damaged.as_str());
    let all: Vec<u64> = got.iter().map(|(_, sequence)| *sequence).collect();
    assert_eq!(all, [1, 2, 3], "nothing of it is lost");
}

fn move_to(target: &Domain, group: &GroupId, next: u64) -> MigrationConfirmation {
    MigrationConfirmation {
        domain_name: target.clone(),
        nonce: [1; 32],
        group_id: group.clone(),
        signature: Opaque::new(vec![1; 64]).unwrap(),
        source_domain: hub(),
        epoch: Epoch(3),
        next_sequence: Sequence(next),
    }
}

fn moved(world: &World, group: &GroupId, sequence: u64, target: &Domain) -> DeliveryItem {
    let mut item = said(world, group, sequence);
    let DeliveryItem::Feed { event, .. } = &mut item else { unreachable!() };
    *event = QueueEvent::GroupMoved { confirmation: move_to(target, group, sequence + 1) };
    item
}

/// b -> c -> b: the hub in between owes nothing to who is in it no more, and a group at home has no chain.
#[actix::test]
async fn who_was_in_a_group_no_more_when_it_came_home_takes_it_from_home_again() {
    let world = World::new();
    let alice = world.register("alice").await;
    let (home, c, d) =
        (hub(), Domain::new("c.example").unwrap(), Domain::new("d.example").unwrap());
    let group = remote(1);
    let (first, second) = (token(&world, &alice).await, token(&world, &alice).await);
    let removed = vec![RosterChange::Remove { recipient: RecipientId(1) }];
    let items = vec![
        snapshot(&group, 1, vec![add(1, &first)]),
        changed(&world, &group, 1, removed),
        moved(&world, &group, 2, &c),
    ];
    assert_eq!(deliver(&world, &home, items.clone()).await, []);
    let follows = async || {
        let followed = world.node.store.followed(&group).await.unwrap().unwrap();
        (followed.hub, followed.members)
    };
    assert_eq!(follows().await, (c.clone(), 0));
    let wrong = |item, next| (item, DeliveryProblem::WrongHub, 0, next);
    // nothing that the hub before had said, and nothing that brings nobody in
    let old = deliver(&world, &home, items).await;
    assert_eq!(old, [wrong(0, 3), wrong(1, 3), wrong(2, 3)]);
    let comes = |next| snapshot(&group, next, vec![add(2, &second)]);
    for item in [said(&world, &group, 3), comes(3), snapshot(&group, 9, Vec::new())] {
        assert_eq!(deliver(&world, &home, vec![item]).await, [wrong(0, 3)]);
    }
    // nobody but who made it, or whom a chain from there leads to: such a one's keys are asked for
    assert_eq!(deliver(&world, &d, vec![comes(9)]).await, [wrong(0, 3)]);
    let mut chained = comes(9);
    let DeliveryItem::Snapshot { chain, .. } = &mut chained else { unreachable!() };
    *chain = List::new(vec![move_to(&d, &group, 9)]).unwrap();
    let asks = deliver(&world, &d, vec![chained.clone()]).await;
    assert_eq!(asks, [(0, DeliveryProblem::QueueFull, 0, 3)]);
    assert_eq!(follows().await, (c.clone(), 0));

    let items = vec![comes(9), said(&world, &group, 9)];
    assert_eq!(deliver(&world, &home, items).await, []);
    assert_eq!(follows().await, (home.clone(), 1));
    let entries = world.dequeue(&alice, &[], 0).await;
    assert_eq!(entries.last().map(|last| last.sequence), Some(Sequence(9)));

    // whereas where somebody is in it, its hub alone says where it goes
    assert_eq!(deliver(&world, &home, vec![moved(&world, &group, 10, &c)]).await, []);
    assert_eq!(deliver(&world, &home, vec![comes(20)]).await, [wrong(0, 11)]);
    assert_eq!(deliver(&world, &d, vec![chained]).await, [wrong(0, 11)]);
    assert_eq!(follows().await, (c, 1));
}

/// c.example is the hub of a group that b.example made.
async fn to_c(world: &World, group: &GroupId) -> Domain {
    let c = Domain::new("c.example").unwrap();
    of_hub(world, group, &c).await;
    c
}

/// It is known here that `hub` hosts the group.
async fn of_hub(world: &World, group: &GroupId, hub: &Domain) {
    use crate::store::{Batch, Write, records::Followed};
    let followed = Followed { hub: hub.clone(), members: 1 };
    let write = Write::Followed { group: group.clone(), followed };
    world.node.store.write(Batch::new().and(write)).await.unwrap();
}

#[actix::test]
async fn copies_of_groups_that_have_moved_count_for_the_hub_that_they_have() {
    let limits = Limits { copy_bytes_per_hub_max: 8_000, ..Limits::default() };
    let mut world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let group = remote(1);
    let token = token(&world, &alice).await;
    deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &token)])]).await;
    let c = to_c(&world, &group).await;
    world.restart();
    assert_eq!(world.node.acquaintances().await.unwrap(), [c.clone()].into());
    let items: Vec<_> = (1..=100).map(|sequence| said(&world, &group, sequence)).collect();
    let failures = deliver(&world, &c, items).await;
    let (_, problem, _, next) = failures[0];
    assert_eq!(problem, DeliveryProblem::QueueFull);
    world.node.sweep_groups().await.unwrap();
    assert_eq!(deliver(&world, &c, vec![said(&world, &group, next)]).await, []);
}

#[actix::test]
async fn single_message_of_a_group_that_has_moved_comes_from_where_it_is() {
    let world = World::new();
    let alice = world.register("alice").await;
    let (group, token) = (remote(1), token(&world, &alice).await);
    deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &token)])]).await;
    let c = to_c(&world, &group).await;
    let send = async |from: &Domain| {
        let (client_queue_information, message) = (token.clone(), message(&group));
        let request = QueueingServiceRequest { client_queue_information, message };
        world.node.queueing_service_request(request, from).await.unwrap()
    };
    let invalid = QueueingServiceResponse::InvalidClientQueueInformation;
    assert_eq!(send(&hub()).await, invalid);
    assert_eq!(send(&c).await, QueueingServiceResponse::Ok);
}

/// The hub of `group` leaves alice Welcomes by `token`, each with the end of what it begins, until one is refused or there were
/// so many. How many were taken.
async fn invited(world: &World, alice: &Person, hub: &Domain, group: &GroupId, most: u64) -> u64 {
    let token = token(world, alice).await;
    // somebody who cannot be reached makes it a group of this provider's
    let forged = QueueToken::new(vec![7; 77]).unwrap();
    deliver(world, hub, vec![snapshot(group, 1, vec![add(1, &forged)])]).await;
    for round in 0..most {
        let recipient = 10 + round;
        let remove = RosterChange::Remove { recipient: RecipientId(recipient) };
        let items = vec![
            roster_only(world, group, 1 + 2 * round, vec![invitation(recipient, &token)]),
            roster_only(world, group, 2 + 2 * round, vec![remove]),
        ];
        let rows = async || world.node.store.inbox(&alice.client, ALL).await.unwrap().items.len();
        let before = rows().await;
        deliver(world, hub, items).await;
        if rows().await == before {
            return round;
        }
    }
    most
}

fn inbox_overflows(world: &World, kind: &str) -> u64 {
    world.node.metrics.queue_overflows.with_label_values(&[kind]).get()
}

#[actix::test]
async fn hub_that_fills_its_share_of_an_inbox_leaves_the_rest_to_others() {
    let limits =
        Limits { inbox_bytes_max: 200_000, inbox_bytes_per_hub_max: 50_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let greedy = invited(&world, &alice, &hub(), &remote(1), 50).await;
    assert_eq!(greedy, 4, "until there are more than 50 KB");
    assert_eq!(inbox_overflows(&world, "inbox_hub"), 1);
    // nor by another of its groups, or by one that has come to it
    assert_eq!(invited(&world, &alice, &hub(), &remote(2), 50).await, 0);
    let moved = GroupId::of(&Domain::new("d.example").unwrap(), [4; 16]);
    of_hub(&world, &moved, &hub()).await;
    assert_eq!(invited(&world, &alice, &hub(), &moved, 50).await, 0);
    // others are as well off as before, each
    for name in ["c.example", "d.example"] {
        let other = Domain::new(name).unwrap();
        let group = GroupId::of(&other, [5; 16]);
        assert_eq!(invited(&world, &alice, &other, &group, 2).await, 2, "{name}");
    }
    assert_eq!(inbox_overflows(&world, "inbox"), 0);
    // who reads makes room
    while !world.node.store.inbox(&alice.client, ALL).await.unwrap().items.is_empty() {
        world.dequeue(&alice, &[], 0).await;
    }
    let overflows = inbox_overflows(&world, "inbox_hub");
    // her queue, which is active by now, may have taken the rows before they are counted
    invited(&world, &alice, &hub(), &remote(6), 1).await;
    assert_eq!(inbox_overflows(&world, "inbox_hub"), overflows);
}

#[actix::test]
async fn item_that_was_taken_before_asks_for_no_room_in_an_inbox() {
    let limits = Limits { inbox_bytes_per_hub_max: 20_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let (group, own) = (remote(1), token(&world, &alice).await);
    let first = snapshot(&group, 5, vec![add(1, &own)]);
    deliver(&world, &hub(), vec![first.clone(), said(&world, &group, 5)]).await;
    invited(&world, &alice, &hub(), &remote(2), 50).await;
    let asked = inbox_overflows(&world, "inbox_hub");
    // a repeat whose answer was lost
    assert_eq!(deliver(&world, &hub(), vec![first]).await, []);
    assert_eq!(inbox_overflows(&world, "inbox_hub"), asked);
    // one that would leave something does
    deliver(&world, &hub(), vec![snapshot(&group, 9, vec![add(1, &own)])]).await;
    assert!(inbox_overflows(&world, "inbox_hub") > asked);
}

#[actix::test]
async fn what_a_hub_that_hangs_up_has_delivered_is_told_and_counted_all_the_same() {
    let world = World::new();
    let alice = world.register("alice").await;
    let (token, group) = (token(&world, &alice).await, remote(1));
    let (entries, ()) = futures_util::future::join(world.dequeue(&alice, &[], 50_000), async {
        deliver(&world, &hub(), vec![snapshot(&group, 1, vec![add(1, &token)])]).await;
        let (faults, queued) = (world.disk.faults(), world.disk.faults().queued());
        faults.hold();
        let items = List::new(vec![said(&world, &group, 1)]).unwrap();
        let batch = DeliverBatchRequest { items };
        let asked = std::pin::pin!(federated(&world, EventType::DeliverBatch, &batch));
        let written = std::pin::pin!(faults.until_queued(queued + 1));
        // it is dropped with its write on the way
        drop(futures_util::future::select(asked, written).await);
        faults.release();
    })
    .await;
    assert_eq!(groups_of(&entries), [(group.as_str().to_owned(), 1)], "who waits is told");
    let head = world.node.store.group_head(&group).await.unwrap().unwrap();
    let bytes = head.log_bytes + crate::queue::followed::MEMBER_BYTES;
    // nobody waits for the end of what was asked: it is counted a moment after it is told
    for _ in 0..180_000 {
        if world.node.copies.totals() == (1, bytes) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(world.node.copies.totals(), (1, bytes));
}
