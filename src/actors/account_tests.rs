//! Accounts and authentication, through the node.

use super::testing::*;
use crate::{
    account::Registration,
    actors::{
        Clock, Limits, Node,
        accounts::{Deleted, deletions},
    },
    crypto,
    store::{
        Batch, Write,
        records::{GoneReason, GroupNotice, Subscription},
    },
    wire::{
        client::{ClientMessage, Consent, DeleteDevice},
        codec::{List, Opaque},
        ds::{DsError, ProtocolVersion},
        extensions::ClientQueueConfig,
        ids::{Domain, FeedId, RecipientId, Sequence},
    },
};

const ENDPOINT: &str = "/v1/dequeue";

#[actix::test]
async fn message_of_a_registered_client_is_authentic_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    let message = world.sign(&alice, ENDPOINT, &1u32);
    assert_eq!(world.node.authenticate(&message, ENDPOINT).await, Ok(alice.client.clone()));
    let again = world.node.authenticate(&message, ENDPOINT).await;
    assert!(matches!(again, Err(DsError::Unauthenticated { .. })), "{again:?}");
}

#[actix::test]
async fn message_is_refused_elsewhere_altered_or_by_another_key() {
    let world = World::new();
    let alice = world.register("alice").await;
    let refuse = async |message, endpoint| {
        world.node.authenticate(&message, endpoint).await.unwrap_err().name()
    };
    let good = || world.sign(&alice, ENDPOINT, &1u32);
    assert_eq!(refuse(good(), "/v1/stream").await, "malformed");
    let mut altered = good();
    altered.body = Opaque::new(*b"other").unwrap();
    assert_eq!(refuse(altered, ENDPOINT).await, "unauthenticated");
    let mut version = good();
    version.version = ProtocolVersion(2);
    assert_eq!(refuse(version, ENDPOINT).await, "unsupported_version");
    let impostor = Person::new("alice", "phone", None);
    assert_eq!(refuse(world.sign(&impostor, ENDPOINT, &1u32), ENDPOINT).await, "unauthenticated");
    let unknown = Person::new("nobody", "phone", None);
    assert_eq!(refuse(world.sign(&unknown, ENDPOINT, &1u32), ENDPOINT).await, "unauthenticated");
    // none of these took the nonce of the good one
    assert!(world.node.authenticate(&good(), ENDPOINT).await.is_ok());
}

#[actix::test]
async fn message_outside_the_window_or_from_before_the_start_is_stale() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    let before = world.sign(&alice, ENDPOINT, &1u32);
    world.clock.advance_ms(1000);
    world.restart();
    let stale = world.node.authenticate(&before, ENDPOINT).await.unwrap_err();
    assert!(matches!(stale, DsError::StaleRequest { server_time, .. } if server_time.0 > 0));

    let late = world.sign(&alice, ENDPOINT, &1u32);
    world.clock.advance_ms(world.limits.clock_skew_ms + 1);
    assert_eq!(world.node.authenticate(&late, ENDPOINT).await.unwrap_err().name(), "stale_request");
    let ahead = world.clock.now().plus_ms(world.limits.clock_skew_ms + 1);
    let early = alice.sign(ENDPOINT, vec![1], ahead, [1; 16]);
    assert_eq!(
        world.node.authenticate(&early, ENDPOINT).await.unwrap_err().name(),
        "stale_request"
    );
}

#[actix::test]
async fn registration_is_a_message_like_others() {
    let world = World::new();
    let person = Person::new("alice", "phone", None);
    let register = async |message| {
        let registered = world.node.register(&message, person.registration()).await;
        registered.map(|_| ()).map_err(|error| error.name())
    };
    let good = || world.sign(&person, "/v1/register", &person.registration());
    let elsewhere = world.sign(&person, ENDPOINT, &person.registration());
    assert_eq!(register(elsewhere).await, Err("malformed"));
    let mut version = good();
    version.version = ProtocolVersion(2);
    assert_eq!(register(version).await, Err("unsupported_version"));
    let late = good();
    world.clock.advance_ms(world.limits.clock_skew_ms + 1);
    assert_eq!(register(late).await, Err("stale_request"));
    assert!(world.node.store.account(&person.user).await.unwrap().is_none());
    assert_eq!(register(good()).await, Ok(()));
}

#[actix::test]
async fn provider_that_began_with_its_clock_ahead_takes_messages_once_that_is_right() {
    let mut world = World::new();
    let alice = world.register("alice").await;
    let before = world.sign(&alice, ENDPOINT, &1u32);
    let right = world.clock.now().plus_ms(1000);
    world.clock.advance_ms(86_400_000);
    world.restart();
    world.clock.set(right);
    let stale = world.node.authenticate(&before, ENDPOINT).await.unwrap_err();
    assert_eq!(stale.name(), "stale_request", "the process before may have taken it");
    let anew = world.sign(&alice, ENDPOINT, &1u32);
    assert!(world.node.authenticate(&anew, ENDPOINT).await.is_ok());
}

#[actix::test]
async fn nonces_are_bounded_and_forgotten_with_their_window() {
    let limits = Limits { nonces_per_client_max: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await; // the first nonce
    let say = async || {
        let message = world.sign(&alice, ENDPOINT, &1u32);
        world.node.authenticate(&message, ENDPOINT).await.map_err(|error| error.name())
    };
    assert!(say().await.is_ok());
    assert_eq!(say().await, Err("rate_limited"));
    world.clock.advance_ms(world.limits.clock_skew_ms + 1);
    assert!(say().await.is_ok());
}

/// Sends as `person` until it is told to wait: how many went through, and the first of them.
async fn says_all_that_it_may(world: &World, person: &Person) -> (usize, Option<ClientMessage>) {
    let mut first = None;
    for count in 0.. {
        let message = world.sign(person, ENDPOINT, &1u32);
        match world.node.authenticate(&message, ENDPOINT).await {
            Ok(_) => drop(first.get_or_insert(message)),
            Err(DsError::RateLimited { .. }) => return (count, first),
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!()
}

#[actix::test]
async fn one_user_uses_up_its_share_of_the_nonces_and_no_others() {
    const MAX: usize = 1_200;
    let limits = Limits { nonces_max: MAX, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (phone, bob) = (world.register("alice").await, world.register("bob").await);
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    let (sent, first) = says_all_that_it_may(&world, &phone).await;
    assert!((MAX / 16..=MAX / 12).contains(&sent), "{sent}");
    assert_eq!(says_all_that_it_may(&world, &laptop).await.0, 0, "it is of the same user");
    let first = first.unwrap();
    // what it sent is known as long as it is good, however often it tries
    let refused = async || world.node.authenticate(&first, ENDPOINT).await.unwrap_err().name();
    assert_eq!(refused().await, "unauthenticated");
    for _ in 0..MAX / 16 {
        let message = world.sign(&bob, ENDPOINT, &1u32);
        assert!(world.node.authenticate(&message, ENDPOINT).await.is_ok());
    }
    world.register("carol").await;
    world.clock.advance_ms(world.limits.clock_skew_ms);
    assert_eq!(refused().await, "unauthenticated");
    world.clock.advance_ms(1);
    assert_eq!(refused().await, "stale_request");
    let again = says_all_that_it_may(&world, &laptop).await.0;
    assert!(again >= sent, "{again}");
}

#[actix::test]
async fn many_users_that_send_all_they_may_leave_room_for_who_sends_little() {
    const MAX: usize = 2_000;
    let limits = Limits { nonces_max: MAX, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let bob = world.register("bob").await;
    let mut replays = Vec::new();
    let mut all = 0;
    for number in 0..40 {
        let greedy = world.register(&format!("greedy{number}")).await;
        let (sent, first) = says_all_that_it_may(&world, &greedy).await;
        replays.extend(first);
        all += sent;
    }
    assert!(all > MAX * 3 / 4, "{all}");
    let carol = world.register("carol").await;
    for person in [&bob, &carol] {
        for _ in 0..10 {
            let message = world.sign(person, ENDPOINT, &1u32);
            assert!(world.node.authenticate(&message, ENDPOINT).await.is_ok());
        }
    }
    // the bound holds all the same, and nothing that is there is let go for what comes
    for number in 40..200 {
        let greedy = Person::new(&format!("greedy{number}"), "phone", None);
        if world.try_register(&greedy).await.is_ok() {
            replays.extend(says_all_that_it_may(&world, &greedy).await.1);
        }
    }
    assert_eq!(world.node.nonces.count(), MAX);
    for replay in replays {
        let refused = world.node.authenticate(&replay, ENDPOINT).await.unwrap_err();
        assert_eq!(refused.name(), "unauthenticated");
    }
    world.clock.advance_ms(world.limits.clock_skew_ms + 1);
    assert!(says_all_that_it_may(&world, &bob).await.0 >= MAX / 16, "there is room again");
}

#[actix::test]
async fn refused_registrations_in_anothers_name_use_up_none_of_its_nonces() {
    let limits = Limits { nonces_per_client_max: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    for _ in 0..3 {
        let outsider = Person::new("alice", "phone", None);
        let refused = world.try_register(&outsider).await.unwrap_err();
        assert_eq!(refused.name(), "not_authorized");
    }
    let message = world.sign(&alice, ENDPOINT, &1u32);
    assert!(world.node.authenticate(&message, ENDPOINT).await.is_ok());
    // one that is taken is taken once, as ever
    let register = alice.registration();
    world.clock.advance_ms(world.limits.clock_skew_ms + 1);
    let message = world.sign(&alice, "/v1/register", &register);
    assert!(world.node.register(&message, register.clone()).await.is_ok());
    let again = world.node.register(&message, register).await.unwrap_err();
    assert_eq!(again.name(), "unauthenticated");
}

#[actix::test]
async fn registration_may_be_repeated_and_a_second_device_joins_the_account() {
    let world = World::new();
    let phone = world.register("alice").await;
    assert_eq!(world.try_register(&phone).await.unwrap().client, phone.client);
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    let thief = Person::new("alice", "tablet", None);
    assert_eq!(world.try_register(&thief).await.unwrap_err().name(), "not_authorized");
    let account = world.node.store.account(&phone.user).await.unwrap().unwrap();
    assert_eq!(account.devices, [phone.client, laptop.client]);
}

#[actix::test]
async fn two_devices_that_register_at_once_are_both_there() {
    let world = World::new();
    let phone = world.register("alice").await;
    let others: Vec<Person> = (0..8)
        .map(|index| Person::new("alice", &format!("d{index}"), Some(&phone.user_key)))
        .collect();
    let all = futures_util::future::join_all(others.iter().map(|other| world.try_register(other)));
    assert!(all.await.iter().all(Result::is_ok));
    let account = world.node.store.account(&phone.user).await.unwrap().unwrap();
    assert_eq!(account.devices.len(), 9);
}

#[actix::test]
async fn registration_message_must_be_signed_by_the_key_that_it_registers() {
    let world = World::new();
    let alice = Person::new("alice", "phone", None);
    let mallory = Person::new("alice", "phone", None);
    let message = world.sign(&mallory, "/v1/register", &alice.registration());
    let refused = world.node.register(&message, alice.registration()).await.unwrap_err();
    assert_eq!(refused.name(), "unauthenticated");
    assert_eq!(world.node.store.account(&alice.user).await, Ok(None));
}

#[actix::test]
async fn closed_provider_takes_no_one() {
    let world = World::with(Limits::default(), Registration::Closed);
    let refused = world.try_register(&Person::new("alice", "phone", None)).await.unwrap_err();
    assert_eq!(refused.name(), "not_authorized");
}

#[actix::test]
async fn deleted_device_is_nobody_and_its_groups_are_told() {
    let world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    let bob = world.register("bob").await;
    world.add(1, &[&laptop], true).await; // taken up
    assert_eq!(world.dequeue(&laptop, &[], 0).await.len(), 1);
    world.add(2, &[&laptop], true).await; // still in the inbox
    let delete = || DeleteDevice { client: laptop.client.clone() };
    let stranger = world.node.delete_device(&bob.client, delete()).await.unwrap_err();
    assert_eq!(stranger.name(), "not_authorized");

    world.node.delete_device(&phone.client, delete()).await.unwrap();
    world.node.delete_device(&phone.client, delete()).await.unwrap();
    let message = world.sign(&laptop, ENDPOINT, &1u32);
    let refused = world.node.authenticate(&message, ENDPOINT).await.unwrap_err();
    assert_eq!(refused.name(), "unauthenticated");
    for seed in [1, 2] {
        let notices = world.node.store.group_notices(&group(seed), None, 9).await.unwrap();
        let gone = GroupNotice::ClientGone {
            client: laptop.client.clone(),
            reason: GoneReason::DeviceDeleted,
        };
        assert_eq!(notices.into_iter().map(|(_, notice)| notice).collect::<Vec<_>>(), [gone]);
    }
    assert!(world.node.store.subscriptions(&laptop.client).await.unwrap().is_empty());
    assert_eq!(world.try_register(&laptop).await.unwrap_err().name(), "not_authorized");
    assert!(world.try_dequeue(&laptop, &[], 0).await.is_err());
}

#[actix::test]
async fn deletion_that_was_cut_off_is_finished_and_nobody_adds_the_device_in_between() {
    let mut world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    world.add(1, &[&laptop], true).await;
    assert_eq!(world.dequeue(&laptop, &[], 0).await.len(), 1);
    let tokens = world.tokens(&laptop, TokenClass::Group, 1).await;
    let config = ClientQueueConfig { domain: domain(), queue_token: tokens[0].clone() };
    let user = laptop.user_key_hash();
    let bind = async |node: &Node| {
        node.bind_token(&config, &laptop.client, &user, &domain(), &group(3)).await
    };
    let bound = bind(&world.node).await.unwrap();
    world.add(2, &[&laptop], true).await; // in the inbox when the deletion comes

    let gone = Deleted::Device(laptop.client.clone());
    world.node.mark_deleted(&phone.client, &gone).await.unwrap();
    let (conditions, writes) = (bound.conditions, bound.writes);
    let late = Batch { conditions, writes, ..Batch::default() };
    assert!(world.node.store.write(late).await.is_err(), "an add that was judged before");
    assert!(bind(&world.node).await.is_err());

    world.restart();
    world.node.finish_deletions().await.unwrap();
    for seed in [1, 2] {
        assert_eq!(world.node.store.group_notices(&group(seed), None, 9).await.unwrap().len(), 1);
    }
    assert!(world.node.store.subscriptions(&laptop.client).await.unwrap().is_empty());
    assert!(world.node.store.inbox(&laptop.client, ALL).await.unwrap().items.is_empty());
    let noted = world.node.store.groups_with_notices(None, 9).await.unwrap();
    assert_eq!(noted, [group(1), group(2)], "and it is not noted any more");
}

#[actix::test]
async fn deletions_behind_many_that_cannot_be_done_now_are_done() {
    const DAMAGED: usize = 70;
    let limits = Limits { devices_per_user_max: 100, ..Limits::default() };
    let mut world = World::with(limits, Registration::Open);
    let phone = world.register("alice").await;
    let mut batch = Batch::new();
    for number in 0..DAMAGED + 20 {
        let device = Person::new("alice", &format!("d{number}"), Some(&phone.user_key));
        world.try_register(&device).await.unwrap();
        if number < DAMAGED {
            let subscription = Subscription {
                feed: FeedId(1),
                group: group(1),
                recipient: RecipientId(number as u64),
                from: Sequence(1),
                last: None,
                removed: false,
                filters: vec![(Sequence(1), false)],
                acknowledged: Sequence(0),
                previous: Sequence(0),
            };
            batch.push(Write::Subscription { client: device.client, subscription });
        }
    }
    world.node.store.write(batch).await.unwrap();
    world.node.mark_deleted(&phone.client, &Deleted::Account).await.unwrap();
    let pending = async |world: &World| {
        world.node.store.group_notices(&deletions(), None, 1_000).await.unwrap().len()
    };
    assert_eq!(pending(&world).await, DAMAGED + 21);
    let restored = world.disk.damage("subscription");
    world.restart();
    world.node.finish_deletions().await.unwrap();
    assert_eq!(pending(&world).await, DAMAGED, "all others, wherever they stand among them");
    world.disk.tamper(|disk| disk.extend(restored));
    world.restart();
    world.node.finish_deletions().await.unwrap();
    assert_eq!(pending(&world).await, 0);
}

#[actix::test]
async fn device_that_is_gone_may_repeat_its_deletion_and_do_nothing_else() {
    let world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    let delete = |person: &Person| DeleteDevice { client: person.client.clone() };
    let authenticate = async |person: &Person, endpoint| {
        let message = world.sign(person, endpoint, &1u32);
        world.node.authenticate(&message, endpoint).await.map_err(|error| error.name())
    };
    let (device, account) = ("/v1/devices/delete", "/v1/account/delete");
    for _ in 0..2 {
        assert_eq!(authenticate(&laptop, device).await, Ok(laptop.client.clone()));
        assert_eq!(world.node.delete_device(&laptop.client, delete(&laptop)).await, Ok(()));
    }
    assert_eq!(authenticate(&laptop, ENDPOINT).await, Err("unauthenticated"));
    let thief = Person::new("alice", "laptop", None);
    assert_eq!(authenticate(&thief, device).await, Err("unauthenticated"));
    let refused = world.node.delete_device(&laptop.client, delete(&phone)).await.unwrap_err();
    assert_eq!(refused.name(), "unauthenticated");
    let refused = world.node.delete_account(&laptop.client).await.unwrap_err();
    assert_eq!(refused.name(), "unauthenticated");
    assert!(authenticate(&phone, ENDPOINT).await.is_ok(), "nothing has happened to it");
    for _ in 0..2 {
        assert_eq!(authenticate(&phone, account).await, Ok(phone.client.clone()));
        assert_eq!(world.node.delete_account(&phone.client).await, Ok(()));
    }
}

#[actix::test]
async fn device_that_is_registered_while_its_account_is_deleted_goes_with_it_or_does_not_come() {
    let world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.add(1, &[&phone], true).await;
    let (faults, queued) = (world.disk.faults(), world.disk.faults().queued());
    faults.hold();
    // whoever is asked first has queued its write before the other one looks
    let both = async {
        let register = world.try_register(&laptop);
        let delete = async {
            faults.until_queued(queued + 1).await;
            world.node.delete_account(&phone.client).await
        };
        futures_util::future::join(register, delete).await
    };
    let release = async {
        faults.until_queued(queued + 2).await;
        faults.release();
    };
    let ((registered, deleted), ()) = futures_util::future::join(both, release).await;
    assert!(registered.is_ok(), "it came first");
    assert_eq!(deleted, Ok(()));
    for person in [&phone, &laptop] {
        let message = world.sign(person, ENDPOINT, &1u32);
        let refused = world.node.authenticate(&message, ENDPOINT).await.map_err(|it| it.name());
        assert_eq!(refused, Err("unauthenticated"), "{}", person.client);
    }
    let account = world.node.store.account(&phone.user).await.unwrap().unwrap();
    assert!(account.deleted_at.is_some() && account.devices.is_empty(), "{account:?}");
}

#[actix::test]
async fn deleted_account_takes_all_devices_with_it_and_keeps_its_name() {
    let world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    world.add(1, &[&phone, &laptop], true).await;
    world.node.delete_account(&phone.client).await.unwrap();
    assert_eq!(world.node.store.group_notices(&group(1), None, 9).await.unwrap().len(), 2);
    for person in [&phone, &laptop] {
        let message = world.sign(person, ENDPOINT, &1u32);
        assert!(world.node.authenticate(&message, ENDPOINT).await.is_err());
    }
    let successor = Person::new("alice", "new", None);
    assert_eq!(world.try_register(&successor).await.unwrap_err().name(), "not_authorized");
}

#[actix::test]
async fn consent_tokens_are_limited_and_revoked() {
    let limits = Limits { consents_per_user_max: 2, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    world.consent(&alice, [1; 32]).await;
    world.consent(&alice, [2; 32]).await;
    world.consent(&alice, [2; 32]).await;
    let hash = |seed: u8| Opaque::new(crypto::sha256(&[seed; 32])).unwrap();
    let consent = |add: &[u8], revoke: &[u8]| Consent {
        add: List::new(add.iter().map(|seed| hash(*seed)).collect()).unwrap(),
        revoke: List::new(revoke.iter().map(|seed| hash(*seed)).collect()).unwrap(),
    };
    let refused = world.node.consent(&alice.client, consent(&[3], &[])).await.unwrap_err();
    assert_eq!(refused.name(), "too_large");
    world.node.consent(&alice.client, consent(&[], &[1])).await.unwrap();
    world.node.consent(&alice.client, consent(&[3], &[])).await.unwrap();
}

#[actix::test]
async fn consent_tokens_are_limited_however_many_are_added_at_once() {
    let limits = Limits { consents_per_user_max: 3, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let consent = |seed: u8| {
        let hash = Opaque::new(crypto::sha256(&[seed; 32])).unwrap();
        Consent { add: List::new(vec![hash]).unwrap(), revoke: List::default() }
    };
    let all = (0..10).map(|seed| world.node.consent(&alice.client, consent(seed)));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|answer| answer.is_ok()).count(), 3, "{all:?}");
    let count = async || world.node.store.consent_count(&alice.user, 99).await.unwrap();
    assert_eq!(count().await, 3);

    // whoever does not wait for the answer has its turn all the same
    let bob = world.register("bob").await;
    let (faults, queued) = (world.disk.faults(), world.disk.faults().queued());
    faults.hold();
    for seed in 0..10 {
        let adds = world.node.consent(&bob.client, consent(seed));
        let is_queued = async {
            faults.until_queued(queued + 1).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        futures_util::pin_mut!(adds, is_queued);
        futures_util::future::select(adds, is_queued).await;
    }
    faults.release();
    while world.node.consenting.of(&bob.user).try_lock().is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.node.store.consent_count(&bob.user, 99).await, Ok(1), "no other had its turn");
}

#[actix::test]
async fn provider_without_federation_gives_its_own_keys_only() {
    let world = World::new();
    let keys = world.node.provider_keys(&domain()).await.unwrap();
    assert_eq!(keys.signature.keys.len(), 1);
    assert_eq!(keys.signature.keys[0].purpose.as_slice(), b"external-sender");
    let other = Domain::new("b.example").unwrap();
    assert_eq!(world.node.provider_keys(&other).await.unwrap_err().name(), "not_authorized");
}
