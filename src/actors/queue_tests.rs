//! Queues, tokens and single deliveries, through the node.

use super::testing::*;
use crate::{
    account::Registration,
    actors::{GroupOptions, Limits, queue::BindError},
    queue::token::TokenProblem,
    store::{
        Batch, Write,
        records::{InboxItem, InboxKey},
    },
    wire::{
        client::{ConnectionRequestTo, DeleteDevice, Flag, QueueTokens},
        codec::{List, Opaque, append_vector, encode},
        ds::DsError,
        extensions::{ClientQueueConfig, KeyPackageClass, QueueToken},
        ids::{Domain, GroupId, KeyPackageRef, RecipientId, Sequence},
        key_packages::{ConnectionRequest, SealedOffer},
        mls::MlsMessage,
        queueing::{QueueEntry, QueueEvent, QueueingServiceRequest, QueueingServiceResponse},
    },
};

const LONG_MS: u32 = 50_000;

#[actix::test]
async fn welcome_then_feed_then_what_is_acknowledged_is_gone() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    world.accept(1, None, Vec::new()).await;
    let entries = world.dequeue(&alice, &[], 0).await;
    assert_eq!(sequences(&entries), [(0, 1), (1, 2)]);
    assert_eq!(world.dequeue(&alice, &[], 0).await, entries, "a lost answer is repeated");
    world.accept(1, None, Vec::new()).await;
    let entries = world.dequeue(&alice, &[(0, 1), (1, 2)], 0).await;
    assert_eq!(sequences(&entries), [(1, 3)]);
}

#[actix::test]
async fn operators_see_feeds_and_how_long_what_was_given_waits_to_be_acknowledged() {
    let world = World::new();
    let seen = |name: &str| {
        let families = world.node.metrics.registry.gather();
        let family = families.iter().find(|family| family.name() == name).expect("it is there");
        family.get_metric().iter().map(|metric| metric.get_gauge().get_value()).sum::<f64>()
    };
    let waiting = || {
        (
            seen("mimid_queues_with_unacknowledged"),
            seen("mimid_queue_oldest_unacknowledged_seconds"),
        )
    };
    let [alice, bob] = [world.register("alice").await, world.register("bob").await];
    for group in [1, 2] {
        world.add(group, &[&alice, &bob], false).await;
    }
    world.accept(1, None, Vec::new()).await;
    world.clock.advance_ms(20_000);
    world.accept(2, None, Vec::new()).await;
    assert_eq!(waiting(), (0.0, 0.0), "of clients that are away nothing is told");
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 2);
    assert_eq!(seen("mimid_queue_feeds"), 3.0, "two memberships, and her own");
    world.clock.advance_ms(40_000);
    assert_eq!(waiting(), (1.0, 60.0));
    assert_eq!(world.dequeue(&bob, &[], 0).await.len(), 2);
    assert_eq!((waiting(), seen("mimid_queue_feeds")), ((2.0, 60.0), 6.0));
    for person in [&alice, &bob] {
        assert!(world.dequeue(person, &[(1, 2)], 0).await.len() == 1);
    }
    assert_eq!(waiting(), (2.0, 40.0), "the older of the two is acknowledged");
    for person in [&alice, &bob] {
        assert!(world.dequeue(person, &[(2, 2)], 0).await.is_empty());
    }
    assert_eq!(waiting(), (0.0, 0.0));
    world.dequeue(&alice, &[], 0).await;
    world.accept(1, None, Vec::new()).await;
    world.dequeue(&alice, &[], 0).await;
    world.node.drain_queues().await;
    assert_eq!(
        (waiting(), seen("mimid_queue_feeds")),
        ((0.0, 0.0), 0.0),
        "nor of queues that were let go"
    );
}

#[actix::test]
async fn long_poll_is_answered_by_what_comes() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], false).await;
    assert!(world.dequeue(&alice, &[], 0).await.is_empty());
    let (entries, _) =
        futures_util::join!(world.dequeue(&alice, &[], LONG_MS), world.accept(1, None, Vec::new()));
    assert_eq!(sequences(&entries), [(1, 2)]);
    // an invitation to a new group wakes as well
    let invited = [&alice];
    let (entries, ()) = futures_util::join!(
        world.dequeue(&alice, &[(1, 2)], LONG_MS),
        world.add(2, &invited, true)
    );
    assert_eq!(sequences(&entries), [(0, 1)]);
}

#[actix::test]
async fn client_that_comes_when_as_many_are_online_as_may_be_is_told_to_come_later() {
    let limits = Limits { queue_actors_max: 1, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    world.dequeue(&alice, &[], 0).await;
    let refused = world.try_dequeue(&bob, &[], 0).await.unwrap_err();
    assert_eq!(refused.name(), "unavailable");
    assert!(refused.detail().contains("too many clients are online"), "{refused}");
    world.dequeue(&alice, &[], 0).await;
}

#[actix::test]
async fn stream_gives_what_is_there_and_what_comes_within_its_window() {
    let limits = Limits { window_bytes_min: 1, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    world.add(1, &[&alice], false).await;
    for _ in 0..3 {
        world.accept(1, None, Vec::new()).await;
    }
    let mut stream = world.node.open_stream(&alice.client, 250).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(stream.next().await.unwrap());
    }
    assert_eq!(sequences(&got), [(1, 2), (1, 3)], "the window holds two");
    stream.ack(ack_of((1, 2)));
    assert_eq!(sequences(&stream.next().await.unwrap()), [(1, 4)]);
    stream.ack(ack_of((1, 4)));
    world.accept(1, None, Vec::new()).await;
    assert_eq!(sequences(&stream.next().await.unwrap()), [(1, 5)]);
}

#[actix::test]
async fn single_entries_that_are_too_large_for_one_answer_come_one_by_one() {
    let limits =
        Limits { dequeue_bytes_max: 1_000_000, window_bytes_min: 1_000_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let mut batch = Batch::new();
    for number in 1..=3 {
        let event = encode(&QueueEvent::MlsMessage { message: message(1, &vec![number; 700_000]) });
        let item = InboxItem::Event { group: None, event };
        let (client, key) = (alice.client.clone(), InboxKey::Item([number; 16]));
        batch.push(Write::Inbox { client, key, item });
    }
    world.node.store.write(batch).await.unwrap();
    assert_eq!(sequences(&world.dequeue(&alice, &[], 0).await), [(0, 1)]);
    assert_eq!(sequences(&world.dequeue(&alice, &[(0, 1)], 0).await), [(0, 2)]);
    let mut stream = world.node.open_stream(&alice.client, 0).await.unwrap();
    assert_eq!(sequences(&stream.next().await.unwrap()), [(0, 2)]);
    stream.ack(ack_of((0, 2)));
    assert_eq!(sequences(&stream.next().await.unwrap()), [(0, 3)]);
}

#[actix::test]
async fn newer_session_ends_the_older_one() {
    let world = World::new();
    let alice = world.register("alice").await;
    let mut first = world.node.open_stream(&alice.client, 0).await.unwrap();
    let mut second = world.node.open_stream(&alice.client, 0).await.unwrap();
    assert!(first.next().await.is_none());
    drop(first);
    world.add(1, &[&alice], true).await;
    assert_eq!(sequences(&second.next().await.unwrap()), [(0, 1)], "its end is not the other's");
}

#[actix::test]
async fn polls_that_end_each_other_leave_no_timers_behind() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], false).await;
    let poll = || Box::pin(world.dequeue(&alice, &[], LONG_MS));
    let mut before = poll();
    for _ in 0..100 {
        let mut next = poll();
        // the one before has its answer because there is another one
        futures_util::future::select(&mut before, &mut next).await;
        before = next;
    }
    let timers = world.node.queues.timers_of(&alice.client);
    assert!(timers <= 3, "{timers} timers");
    world.accept(1, None, Vec::new()).await;
    assert_eq!(sequences(&before.await), [(1, 2)], "it waits as long as it asked for");
}

#[actix::test]
async fn feed_that_cannot_be_read_again_and_again_leaves_no_timers_behind() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    for seed in 1..=5 {
        world.add(seed, &[&alice], false).await;
        world.accept(seed, None, Vec::new()).await;
    }
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 5);
    world.disk.damage("log record");
    world.restart();
    for _ in 0..100 {
        assert_eq!(world.dequeue(&alice, &[], 0).await, []);
    }
    let timers = world.node.queues.timers_of(&alice.client);
    assert!(timers <= 3, "{timers} timers");
}

/// A client that is always online has one and the same queue for months.
#[actix::test]
async fn bounds_that_an_operator_changes_hold_for_queues_that_are_in_memory() {
    let world = World::new();
    let alice = world.register("alice").await;
    assert!(world.dequeue(&alice, &[], 0).await.is_empty());
    let limits = Limits { own_entries_max: 2, subscriptions_max: 1, ..world.limits.clone() };
    let options = GroupOptions::new(domain());
    world.node.replace_limits(limits, options, Registration::Open);
    let mut batch = Batch::new();
    for number in 0..3 {
        let item = InboxItem::Event { group: None, event: encode(&event(number)) };
        let (client, key) = (alice.client.clone(), InboxKey::Item([number as u8; 16]));
        batch.push(Write::Inbox { client, key, item });
    }
    world.node.store.write(batch).await.unwrap();
    for seed in [1, 2] {
        world.add(seed, &[&alice], false).await;
    }
    world.node.hints().inbox(&alice.client);
    let taken = world.dequeue(&alice, &[], LONG_MS).await;
    assert_eq!(sequences(&taken), [(0, 1), (0, 2)], "the third notice is one too many");
    assert_eq!(world.node.store.subscriptions(&alice.client).await.unwrap().len(), 1);
    let overflows = |kind| world.node.metrics().queue_overflows.with_label_values(&[kind]).get();
    assert_eq!((overflows("event"), overflows("subscription")), (1, 1));
}

#[actix::test]
async fn stream_of_a_deleted_device_ends() {
    let world = World::new();
    let alice = world.register("alice").await;
    let mut stream = world.node.open_stream(&alice.client, 0).await.unwrap();
    let delete = DeleteDevice { client: alice.client.clone() };
    world.node.delete_device(&alice.client, delete).await.unwrap();
    assert!(stream.next().await.is_none());
    assert!(world.node.open_stream(&alice.client, 0).await.is_err());
}

#[actix::test]
async fn drained_queue_has_persisted_its_acknowledgements() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    world.accept(1, None, Vec::new()).await;
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 2);
    assert!(world.dequeue(&alice, &[(0, 1), (1, 2)], 0).await.is_empty());
    world.node.drain_queues().await;
    assert_eq!(world.node.metrics().queue_actors.get(), 0);
    world.restart();
    assert!(world.dequeue(&alice, &[], 0).await.is_empty());
}

#[actix::test]
async fn acknowledgements_lost_in_a_crash_repeat_a_delivery_and_nothing_else() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    world.accept(1, None, Vec::new()).await;
    let entries = world.dequeue(&alice, &[], 0).await;
    assert!(world.dequeue(&alice, &[(0, 1), (1, 2)], 0).await.is_empty());
    world.restart();
    assert_eq!(world.dequeue(&alice, &[], 0).await, entries);
    // the client may acknowledge to the new process what the old one gave
    assert!(world.dequeue(&alice, &[(0, 1), (1, 2)], 0).await.is_empty());
}

#[actix::test]
async fn idle_queue_is_let_go_and_comes_back() {
    let limits = Limits { queue_idle_ms: 0, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    for round in 0..3 {
        world.accept(1, None, Vec::new()).await;
        let acks: &[_] = if round == 0 { &[] } else { &[(0, 1), (1, round + 1)] };
        let entries = world.dequeue(&alice, acks, 0).await;
        assert_eq!(entries.last().unwrap().sequence, Sequence(round + 2));
        while world.node.metrics().queue_actors.get() > 0 {
            tokio::task::yield_now().await;
        }
    }
    let passivated = world.node.metrics().queue_passivations.with_label_values(&["idle"]).get();
    // a hint that comes behind may wake it once more
    assert!(passivated >= 3, "{passivated}");
}

#[actix::test]
async fn acknowledgement_of_what_was_never_delivered_is_refused() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    for bad in [(1, 2), (0, 9), (7, 1)] {
        world.dequeue(&alice, &[], 0).await;
        let refused = world.try_dequeue(&alice, &[bad], 0).await.unwrap_err();
        assert_eq!(refused.name(), "malformed", "{bad:?}");
    }
}

#[actix::test]
async fn acknowledgement_that_is_repeated_in_a_request_is_looked_at_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    world.accept(1, None, Vec::new()).await;
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 2);
    let taken = || world.node.metrics.queue_acks.get();
    let before = taken();
    let mut acks = vec![(1, 1), (0, 1)];
    acks.extend([(1, 2); 500]);
    assert_eq!(world.dequeue(&alice, &acks, 0).await, []);
    assert_eq!(taken() - before, 2);
    acks.push((1, 3));
    let refused = world.try_dequeue(&alice, &acks, 0).await.unwrap_err();
    assert_eq!(refused.name(), "malformed", "whatever stands before it");
}

#[actix::test]
async fn message_costs_no_write_per_recipient() {
    let world = World::new();
    let mut people = Vec::new();
    for index in 0..60 {
        people.push(world.register(&format!("user{index}")).await);
    }
    world.add(1, &people.iter().collect::<Vec<_>>(), true).await;
    let mut streams = Vec::new();
    for person in &people[..30] {
        let mut stream = world.node.open_stream(&person.client, 0).await.unwrap();
        stream.next().await.unwrap();
        streams.push(stream);
    }
    let before = world.node.store.stats();
    for _ in 0..5 {
        world.accept(1, None, Vec::new()).await;
        for stream in &mut streams {
            assert_eq!(stream.next().await.unwrap().len(), 1);
        }
    }
    let after = world.node.store.stats();
    assert_eq!(after.batches - before.batches, 5, "one batch per message, whoever receives it");
    assert_eq!(after.writes - before.writes, 10, "a log record and a head");
}

#[actix::test]
async fn store_that_fails_is_unavailable_and_the_next_request_loads_anew() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], true).await;
    world.dequeue(&alice, &[], 0).await;
    world.disk.faults().fail_reads(true);
    let failed = world.try_dequeue(&alice, &[], 0).await.unwrap_err();
    assert_eq!(failed.name(), "unavailable");
    world.disk.faults().fail_reads(false);
    assert_eq!(sequences(&world.dequeue(&alice, &[], 0).await), [(0, 1)]);
}

#[actix::test]
async fn token_binds_in_the_batch_that_uses_it() {
    let world = World::new();
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    let token = world.tokens(&alice, TokenClass::Group, 1).await.remove(0);
    let config = |domain| ClientQueueConfig { domain, queue_token: token.clone() };
    let ours = config(domain());
    let bind = async |seed| {
        world
            .node
            .bind_token(&ours, &alice.client, &alice.user_key_hash(), &domain(), &group(seed))
            .await
    };
    let refused =
        world.node.bind_token(&ours, &bob.client, &bob.user_key_hash(), &domain(), &group(1)).await;
    assert!(matches!(refused, Err(BindError::Token(TokenProblem::OtherClient))));
    // a leaf that says it is alice's, with her token, and with the key of somebody else
    let posing = bob.user_key_hash();
    let refused = world.node.bind_token(&ours, &alice.client, &posing, &domain(), &group(1)).await;
    assert!(matches!(refused, Err(BindError::Token(TokenProblem::OtherUserKey))));
    let other = config(Domain::new("b.example").unwrap());
    let refused = world
        .node
        .bind_token(&other, &alice.client, &alice.user_key_hash(), &domain(), &group(1))
        .await;
    assert!(matches!(refused, Err(BindError::Token(TokenProblem::Unknown))));

    let (first, second) = (bind(1).await.unwrap(), bind(2).await.unwrap());
    let batch = |used: crate::actors::queue::TokenUse| Batch {
        conditions: used.conditions,
        writes: used.writes,
        ..Batch::default()
    };
    world.node.store.write(batch(first)).await.unwrap();
    let raced = world.node.store.write(batch(second)).await;
    assert!(raced.is_err(), "of two groups that use one token at a time one gets it");
    assert!(matches!(bind(2).await, Err(BindError::Token(TokenProblem::BoundElsewhere))));
    let again = bind(1).await.unwrap();
    assert!(again.writes.is_empty());
    let delete = DeleteDevice { client: alice.client.clone() };
    world.node.delete_device(&alice.client, delete).await.unwrap();
    let batch = batch(again).and(Write::DropQueue(alice.client.clone()));
    assert!(world.node.store.write(batch).await.is_err(), "the client went meanwhile");
    assert!(matches!(bind(1).await, Err(BindError::Token(TokenProblem::ClientGone))));
}

#[actix::test]
async fn revoked_token_is_refused_and_only_its_owner_revokes_it() {
    let world = World::new();
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    let token = world.tokens(&alice, TokenClass::Group, 1).await.remove(0);
    let revoke = |token: &QueueToken| QueueTokens {
        class: KeyPackageClass::Group,
        last_resort: Flag::No,
        count: 0,
        revoke: List::new(vec![token.clone()]).unwrap(),
    };
    let refused = world.node.queue_tokens(&bob.client, revoke(&token)).await.unwrap_err();
    assert_eq!(refused.name(), "not_authorized");
    for _ in 0..2 {
        assert!(world.node.queue_tokens(&alice.client, revoke(&token)).await.is_ok());
    }
    let config = ClientQueueConfig { domain: domain(), queue_token: token };
    let refused = world
        .node
        .bind_token(&config, &alice.client, &alice.user_key_hash(), &domain(), &group(1))
        .await;
    assert!(matches!(refused, Err(BindError::Token(TokenProblem::Revoked))));
    let many = QueueTokens { count: 255, ..revoke(&config.queue_token) };
    let refused = world.node.queue_tokens(&alice.client, many).await.unwrap_err();
    assert_eq!(refused.name(), "too_large");
}

#[actix::test]
async fn slowest_cursor_is_of_who_lags_and_of_who_did_not_come_yet() {
    let world = World::new();
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    world.add(1, &[&alice, &bob], false).await;
    for _ in 0..3 {
        world.accept(1, None, Vec::new()).await;
    }
    let members = [(&alice, 2000), (&bob, 2001)]
        .map(|(person, recipient)| (person.client.clone(), RecipientId(recipient), Sequence(2)));
    let until = async |count: usize, enough| {
        let members = &members[..count];
        world.node.slowest_cursor(&group(1), members, Sequence(enough)).await.unwrap()
    };
    let slowest = async |count| until(count, 1).await;
    assert_eq!(slowest(0).await, Sequence(u64::MAX));
    assert_eq!(slowest(2).await, Sequence(1), "nobody has looked into the inbox");
    world.dequeue(&alice, &[], 0).await;
    world.dequeue(&alice, &[(1, 4)], 0).await;
    world.node.drain_queues().await;
    assert_eq!(slowest(1).await, Sequence(4));
    assert_eq!(slowest(2).await, Sequence(1));
    assert_eq!(until(2, 5).await, Sequence(4), "alice holds all from 5 on: bob is not looked at");
    let delete = DeleteDevice { client: bob.client.clone() };
    world.node.delete_device(&bob.client, delete).await.unwrap();
    assert_eq!(slowest(2).await, Sequence(4), "who is gone holds nothing back");
}

/// A PrivateMessage of a group that b.example hosts; nobody can read it.
fn message(seed: u8, content: &[u8]) -> MlsMessage {
    message_of(&GroupId::of(&Domain::new("b.example").unwrap(), [seed; 16]), content)
}

pub(super) fn message_of(group: &GroupId, content: &[u8]) -> MlsMessage {
    let mut bytes = vec![0, 1, 0, 2];
    append_vector(&mut bytes, group.as_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.push(1);
    for part in [&b""[..], b"sender", content] {
        append_vector(&mut bytes, part);
    }
    MlsMessage::new(bytes).unwrap()
}

#[actix::test]
async fn single_message_is_stored_once_and_binds_its_token() {
    let world = World::new();
    let alice = world.register("alice").await;
    let hub = Domain::new("b.example").unwrap();
    let mut tokens = world.tokens(&alice, TokenClass::Group, 1).await;
    let token = tokens.remove(0);
    let send = async |seed, content: &[u8], token: &QueueToken, hub: &Domain| {
        let request = QueueingServiceRequest {
            client_queue_information: token.clone(),
            message: message(seed, content),
        };
        world.node.queueing_service_request(request, hub).await.unwrap()
    };
    let invalid = QueueingServiceResponse::InvalidClientQueueInformation;
    assert_eq!(send(1, b"one", &token, &hub).await, QueueingServiceResponse::Ok);
    assert_eq!(send(1, b"one", &token, &hub).await, QueueingServiceResponse::Ok);
    assert_eq!(sequences(&world.dequeue(&alice, &[], 0).await), [(0, 1)]);
    assert!(world.dequeue(&alice, &[(0, 1)], 0).await.is_empty());
    assert_eq!(send(1, b"one", &token, &hub).await, QueueingServiceResponse::Ok);
    assert!(world.dequeue(&alice, &[], 0).await.is_empty(), "a repeat is not delivered again");
    assert_eq!(send(2, b"two", &token, &hub).await, invalid, "bound to another group");
    let other = Domain::new("c.example").unwrap();
    assert_eq!(send(1, b"two", &token, &other).await, invalid, "bound to another hub");
    let connection = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    assert_eq!(send(1, b"two", &connection, &hub).await, invalid);
    let forged = QueueToken::new(vec![1; 77]).unwrap();
    assert_eq!(send(1, b"two", &forged, &hub).await, invalid);
    assert_eq!(send(1, b"two", &token, &hub).await, QueueingServiceResponse::Ok);
    let entries = world.dequeue(&alice, &[], 0).await;
    let expected = QueueEvent::MlsMessage { message: message(1, b"two") };
    assert_eq!(entries[0].event, expected);
}

fn offer(token: QueueToken, content: u8) -> SealedOffer {
    SealedOffer {
        client_queue_information: token,
        key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
        kem_output: Opaque::new([2; 32]).unwrap(),
        ciphertext: Opaque::new([content; 64]).unwrap(),
    }
}

/// A request to this provider's own users.
fn request_of(offers: Vec<SealedOffer>) -> ConnectionRequestTo {
    let request = ConnectionRequest { offers: List::new(offers).unwrap() };
    ConnectionRequestTo { recipient_domain: domain(), request }
}

#[actix::test]
async fn connection_request_reaches_the_client_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    let token = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let send = async |offers: Vec<SealedOffer>| {
        world.node.connection_request(&bob.client, request_of(offers)).await.unwrap()
    };
    for _ in 0..2 {
        assert_eq!(send(vec![offer(token.clone(), 7)]).await, QueueingServiceResponse::Ok);
    }
    let entries = world.dequeue(&alice, &[], 0).await;
    let event =
        QueueEvent::ConnectionRequest { sender_domain: domain(), offer: offer(token.clone(), 7) };
    assert_eq!(entries.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), [event]);
    let group_token = world.tokens(&alice, TokenClass::Group, 1).await.remove(0);
    let invalid = QueueingServiceResponse::InvalidClientQueueInformation;
    assert_eq!(send(vec![offer(group_token, 7)]).await, invalid);
}

#[actix::test]
async fn full_own_feed_takes_no_connection_requests_until_it_is_acknowledged() {
    let limits = Limits { own_entries_max: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    let token = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let send = async |content| {
        let request = request_of(vec![offer(token.clone(), content)]);
        world.node.connection_request(&bob.client, request).await.unwrap()
    };
    assert_eq!(send(1).await, QueueingServiceResponse::Ok);
    world.dequeue(&alice, &[], 0).await;
    assert_eq!(send(2).await, QueueingServiceResponse::Ok);
    assert_eq!(send(3).await, QueueingServiceResponse::QueueFull);
    assert_eq!(send(2).await, QueueingServiceResponse::Ok, "what is there already is there");
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 2);
    world.dequeue(&alice, &[(0, 2)], 0).await;
    world.node.drain_queues().await;
    assert_eq!(send(3).await, QueueingServiceResponse::Ok);
}

#[actix::test]
async fn one_user_leaves_another_so_many_offers_in_an_hour_and_no_more() {
    let limits = Limits { connection_offers_per_hour: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let (bob, carol) = (world.register("bob").await, world.register("carol").await);
    let token = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let send = async |from: &Person, content| {
        let request = request_of(vec![offer(token.clone(), content)]);
        world.node.connection_request(&from.client, request).await
    };
    for content in [1, 2] {
        assert_eq!(send(&bob, content).await, Ok(QueueingServiceResponse::Ok));
    }
    let refused = send(&bob, 3).await.unwrap_err();
    assert!(
        matches!(refused, DsError::RateLimited { retry_after_ms: 1..=3_600_000, .. }),
        "{refused:?}"
    );
    assert_eq!(send(&carol, 4).await, Ok(QueueingServiceResponse::Ok), "each has its own measure");
    world.clock.advance_ms(3_600_000);
    assert_eq!(send(&bob, 3).await, Ok(QueueingServiceResponse::Ok));
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 4);
}

#[actix::test]
async fn connection_requests_leave_room_for_notices() {
    let limits = Limits { own_entries_max: 10, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    let token = world.tokens(&alice, TokenClass::Connection, 1).await.remove(0);
    let offers = (0..12).map(|content| offer(token.clone(), content)).collect();
    let request = request_of(offers);
    let answer = world.node.connection_request(&bob.client, request).await;
    assert_eq!(answer, Ok(QueueingServiceResponse::QueueFull));
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 9, "a tenth is kept free");
    world.consent(&alice, [1; 32]).await;
    let key_packages = world.key_packages(&alice, TokenClass::LastResort, 1).await;
    world.publish(&alice, key_packages).await.unwrap();
    world.fetch(&bob, &alice.user, [1; 32]).await;
    let entries = world.dequeue(&alice, &[], 0).await;
    assert_eq!(entries.len(), 10);
    let is_notice = |entry: &QueueEntry| matches!(entry.event, QueueEvent::KeyPackagesLow { .. });
    assert_eq!(entries.iter().filter(|entry| is_notice(entry)).count(), 1);
}

#[actix::test]
async fn removal_in_the_inbox_stops_a_stream_behind_its_commit() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.add(1, &[&alice], false).await;
    let mut stream = world.node.open_stream(&alice.client, 0).await.unwrap();
    let recipient = RecipientId(2000);
    let close = InboxItem::Close { group: group(1), recipient, last: Sequence(2), removed: true };
    world.accept(1, None, vec![(alice.client.clone(), close)]).await;
    world.accept(1, None, Vec::new()).await;
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(stream.next().await.unwrap());
    }
    assert_eq!(sequences(&got), [(1, 2), (1, 3)]);
    assert_eq!(got[1].event, QueueEvent::Removed);
    stream.ack(ack_of((1, 3)));
    drop(stream);
    world.node.drain_queues().await;
    assert!(world.node.store.subscriptions(&alice.client).await.unwrap().is_empty());
}

#[actix::test]
async fn two_processes_on_one_queue_do_not_both_write() {
    let world = World::new();
    let alice = world.register("alice").await;
    world.dequeue(&alice, &[], 0).await;
    // somebody else writes the queue's head
    let head = world.node.store.queue_head(&alice.client).await.unwrap().unwrap_or_default();
    let head = crate::store::records::QueueHead { revision: head.revision + 5, ..head };
    let write = Write::QueueHead { client: alice.client.clone(), head };
    world.node.store.write(Batch::new().and(write)).await.unwrap();
    let item = InboxItem::Event { group: None, event: encode(&event(1)) };
    let left = Write::Inbox { client: alice.client.clone(), key: InboxKey::Item([1; 16]), item };
    world.node.store.write(Batch::new().and(left)).await.unwrap();
    let fenced = world.try_dequeue(&alice, &[], 0).await.unwrap_err();
    assert_eq!(fenced.name(), "unavailable");
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 1, "the next request loads anew");
}
