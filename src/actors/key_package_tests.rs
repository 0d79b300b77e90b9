//! KeyPackages, through the node.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use std::collections::HashSet;

use super::testing::*;
use crate::{
    account::Registration,
    actors::{Clock, Limits, deliver::Sender},
    wire::{
        client::{Flag, QueueTokens},
        codec::{List, Raw, Secret},
        ds::DsError,
        extensions::{CLIENT_QUEUE_CONFIG, GROUP_POLICY, KeyPackageClass, USER_KEY},
        ids::{Domain, UserUri},
        key_packages::{
            ConnectionKeyPackageRequest, GroupKeyPackageRequest, GroupKeyPackageResponse,
            KeyPackageStatus,
        },
        mls::KeyPackage,
        queueing::QueueEvent,
    },
};

const CONSENT: [u8; 32] = [9; 32];

async fn pair(limits: Limits) -> (World, Person, Person) {
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let bob = world.register("bob").await;
    world.consent(&bob, CONSENT).await;
    (world, alice, bob)
}

fn handed(response: &GroupKeyPackageResponse) -> Vec<Option<KeyPackage>> {
    response.clients.iter().map(|client| client.key_package.clone()).collect()
}

#[actix::test]
async fn published_key_packages_are_counted_and_handed_out_once_to_many_at_a_time() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let singles = world.key_packages(&bob, TokenClass::Group, 10).await;
    let last = world.key_packages(&bob, TokenClass::LastResort, 1).await;
    let left = world.publish(&bob, [singles, last.clone()].concat()).await.unwrap();
    assert_eq!((left.group_left, left.connection_left), (10, 0));
    let fetched =
        futures_util::future::join_all((0..14).map(|_| world.fetch(&alice, &bob.user, CONSENT)))
            .await;
    let handed: Vec<KeyPackage> = fetched.iter().flat_map(handed).map(Option::unwrap).collect();
    let (last_resort, single): (Vec<_>, Vec<_>) =
        handed.iter().partition(|key_package| **key_package == last[0]);
    let distinct: HashSet<&[u8]> = single.iter().map(|found| found.as_slice()).collect();
    assert_eq!((single.len(), distinct.len(), last_resort.len()), (10, 10, 4));
}

#[actix::test]
async fn no_consent_and_no_such_user_look_alike() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let key_packages = world.key_packages(&bob, TokenClass::Group, 1).await;
    world.publish(&bob, key_packages).await.unwrap();
    let nobody = UserUri::of(&domain(), "nobody").unwrap();
    let wrong = world.fetch(&alice, &bob.user, [1; 32]).await;
    assert_eq!(wrong, world.fetch(&alice, &nobody, [1; 32]).await);
    assert_eq!((wrong.status, wrong.clients.len()), (KeyPackageStatus::NoConsent, 0));
    let right = world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(right.status, KeyPackageStatus::Ok);
    let none = world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(none.status, KeyPackageStatus::NoneLeft);
}

#[actix::test]
async fn ciphersuites_and_required_capabilities_filter() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let key_packages = world.key_packages(&bob, TokenClass::Group, 1).await;
    world.publish(&bob, key_packages).await.unwrap();
    let fetch = async |ciphersuites: Vec<u16>, extension: u16| {
        let required = openmls::prelude::RequiredCapabilitiesExtension::new(
            &[openmls::prelude::ExtensionType::from(extension)],
            &[],
            &[],
        );
        let request = GroupKeyPackageRequest {
            target_user: bob.user.clone(),
            consent_token: Secret::new(CONSENT).unwrap(),
            ciphersuites: List::new(ciphersuites).unwrap(),
            required: Some(Raw::of(&required)),
        };
        world.node.group_key_packages(&alice.client, request).await.unwrap().status
    };
    assert_eq!(fetch(vec![2], USER_KEY).await, KeyPackageStatus::Incompatible);
    assert_eq!(fetch(vec![SUITE], 0xFAFA).await, KeyPackageStatus::Incompatible);
    assert_eq!(fetch(vec![2, SUITE], USER_KEY).await, KeyPackageStatus::Ok);
}

#[actix::test]
async fn every_spoilt_key_package_is_refused_and_nothing_is_taken() {
    let (world, _, bob) = pair(Limits::default()).await;
    let alice = Person::new("alice", "tablet", None);
    let now = world.clock.now();
    let now_s = now.0 / 1000;
    let token = world.tokens(&bob, TokenClass::Group, 1).await.remove(0);
    let foreign = {
        let alice = world.register("carol").await;
        world.tokens(&alice, TokenClass::Group, 1).await.remove(0)
    };
    let good = || Mold::of(&bob, TokenClass::Group, token.clone(), now);
    type Spoil<'a> = Box<dyn Fn(&mut Mold<'a>) + 'a>;
    let spoils: Vec<(&str, Spoil<'_>)> = vec![
        ("another client", Box::new(|mold| mold.credential = alice.credential())),
        (
            "another user key",
            Box::new(|mold| {
                let stranger = Person::new("bob", "phone", None);
                let own = Person { key: bob.key.clone(), ..stranger };
                mold.user_key = own.vouch();
            }),
        ),
        ("a user key of another leaf", Box::new(|mold| mold.user_key = alice.vouch())),
        ("no queue", Box::new(|mold| mold.queue = None)),
        (
            "another provider",
            Box::new(|mold| {
                mold.queue.as_mut().unwrap().config.domain = Domain::new("b.example").unwrap();
            }),
        ),
        (
            "another's token",
            Box::new(|mold| {
                mold.queue.as_mut().unwrap().config.queue_token = foreign.clone();
            }),
        ),
        (
            "a token of another class",
            Box::new(|mold| {
                mold.queue.as_mut().unwrap().class = KeyPackageClass::Connection;
            }),
        ),
        ("a last resort with a single token", Box::new(|mold| mold.last_resort = true)),
        (
            "no policy in its capabilities",
            Box::new(|mold| {
                mold.extensions = vec![USER_KEY, CLIENT_QUEUE_CONFIG, 0x000A];
            }),
        ),
        (
            "no last_resort in its capabilities",
            Box::new(|mold| {
                mold.extensions = vec![USER_KEY, CLIENT_QUEUE_CONFIG, GROUP_POLICY];
            }),
        ),
        ("expired", Box::new(move |mold| mold.not_after_s = now_s - 1)),
        ("too short a life", Box::new(move |mold| mold.not_after_s = now_s + 14 * 24 * 3600)),
        ("too long a life", Box::new(move |mold| mold.not_after_s = now_s + 100 * 24 * 3600)),
    ];
    for (what, spoil) in spoils {
        let mut mold = good();
        spoil(&mut mold);
        let spoilt = mold.make();
        let first = world.key_packages(&bob, TokenClass::Group, 1).await.remove(0);
        let refused = world.publish(&bob, vec![first, spoilt]).await;
        match refused {
            Err(DsError::InvalidKeyPackage { index, .. }) => assert_eq!(index, 1, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let twice = vec![good().make(), good().make()];
    let refused = world.publish(&bob, twice).await.unwrap_err();
    assert!(matches!(refused, DsError::InvalidKeyPackage { index: 1, .. }));
    assert!(world.node.store.key_packages(&bob.client, 9).await.unwrap().is_empty());
    assert_eq!(world.publish(&bob, vec![good().make()]).await.unwrap().group_left, 1);
}

#[actix::test]
async fn repeated_publishing_does_not_bring_back_what_was_handed_out() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let key_packages = world.key_packages(&bob, TokenClass::Group, 3).await;
    world.publish(&bob, key_packages.clone()).await.unwrap();
    let first = handed(&world.fetch(&alice, &bob.user, CONSENT).await);
    let left = world.publish(&bob, key_packages).await.unwrap();
    assert_eq!(left.group_left, 2);
    for _ in 0..2 {
        let next = handed(&world.fetch(&alice, &bob.user, CONSENT).await);
        assert_ne!(next, first);
    }
    let none = world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(none.status, KeyPackageStatus::NoneLeft);
}

#[actix::test]
async fn limits_per_request_and_per_class_hold() {
    let limits =
        Limits { key_packages_per_request_max: 3, group_key_packages_max: 4, ..Limits::default() };
    let (world, _, bob) = pair(limits).await;
    let make = async |count| world.key_packages(&bob, TokenClass::Group, count).await;
    assert_eq!(world.publish(&bob, make(4).await).await.unwrap_err().name(), "too_large");
    assert_eq!(world.publish(&bob, make(3).await).await.unwrap().group_left, 3);
    assert_eq!(world.publish(&bob, make(2).await).await.unwrap_err().name(), "too_large");
    assert_eq!(world.publish(&bob, make(1).await).await.unwrap().group_left, 4);
    let last = world.key_packages(&bob, TokenClass::LastResort, 1).await;
    assert!(world.publish(&bob, last).await.is_ok(), "the last-resort one is not counted");
}

#[actix::test]
async fn newer_last_resort_takes_the_place_of_the_older() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let mut last = world.key_packages(&bob, TokenClass::LastResort, 2).await;
    let (newer, older) = (last.remove(1), last.remove(0));
    world.publish(&bob, vec![older.clone()]).await.unwrap();
    assert_eq!(handed(&world.fetch(&alice, &bob.user, CONSENT).await), [Some(older)]);
    world.publish(&bob, vec![newer.clone()]).await.unwrap();
    assert_eq!(handed(&world.fetch(&alice, &bob.user, CONSENT).await), [Some(newer)]);
    assert_eq!(world.node.store.key_packages(&bob.client, 9).await.unwrap().len(), 1);
}

#[actix::test]
async fn owner_is_told_when_they_run_out() {
    let limits = Limits { key_packages_low_at: 1, ..Limits::default() };
    let (world, alice, bob) = pair(limits).await;
    let key_packages = world.key_packages(&bob, TokenClass::Group, 3).await;
    world.publish(&bob, key_packages).await.unwrap();
    world.fetch(&alice, &bob.user, CONSENT).await;
    assert!(world.dequeue(&bob, &[], 0).await.is_empty());
    for _ in 0..2 {
        world.fetch(&alice, &bob.user, CONSENT).await;
    }
    let told: Vec<QueueEvent> =
        world.dequeue(&bob, &[], 0).await.into_iter().map(|entry| entry.event).collect();
    let low = |left| QueueEvent::KeyPackagesLow { left };
    assert_eq!(told.len(), 2);
    assert!(told.contains(&low(1)) && told.contains(&low(0)));
}

/// Nobody who reads of it late could follow the commit that adds it.
#[actix::test]
async fn what_ends_soon_is_not_handed_out_and_its_owner_is_told_when_nothing_is_left() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let [single, last] = [TokenClass::Group, TokenClass::LastResort];
    let mut all = world.key_packages(&bob, single, 1).await;
    all.extend(world.key_packages(&bob, last, 1).await);
    world.publish(&bob, all).await.unwrap();
    world.clock.advance_ms((80 - 14) * 24 * 3_600_000);
    for _ in 0..2 {
        let none = world.fetch(&alice, &bob.user, CONSENT).await;
        assert_eq!(none.status, KeyPackageStatus::NoneLeft);
    }
    let told = world.dequeue(&bob, &[], 0).await;
    let told: Vec<_> = told.into_iter().map(|entry| entry.event).collect();
    assert_eq!(told, [QueueEvent::KeyPackagesLow { left: 0 }]);
    // they make room for others
    assert_eq!(world.publish(&bob, Vec::new()).await.unwrap().group_left, 0);
    assert!(world.node.store.key_packages(&bob.client, 9).await.unwrap().is_empty());
}

#[actix::test]
async fn last_resort_in_use_is_told_once_an_hour() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let last = world.key_packages(&bob, TokenClass::LastResort, 1).await;
    world.publish(&bob, last).await.unwrap();
    for _ in 0..5 {
        world.fetch(&alice, &bob.user, CONSENT).await;
        world.dequeue(&bob, &[], 0).await;
    }
    assert_eq!(world.dequeue(&bob, &[], 0).await.len(), 1);
    world.clock.advance_ms(3_600_000);
    world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(world.dequeue(&bob, &[], 0).await.len(), 2);
}

#[actix::test]
async fn key_package_whose_token_was_revoked_is_not_handed_out() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let token = world.tokens(&bob, TokenClass::Group, 1).await.remove(0);
    let now = world.clock.now();
    let key_package = Mold::of(&bob, TokenClass::Group, token.clone(), now).make();
    world.publish(&bob, vec![key_package.clone()]).await.unwrap();
    let revoke = QueueTokens {
        class: KeyPackageClass::Group,
        last_resort: Flag::No,
        count: 0,
        revoke: List::new(vec![token]).unwrap(),
    };
    world.node.queue_tokens(&bob.client, revoke).await.unwrap();
    let response = world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(handed(&response), [None]);
}

#[actix::test]
async fn connection_key_packages_need_no_consent_and_are_told_apart_from_group_ones() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let group = world.key_packages(&bob, TokenClass::Group, 1).await;
    let connection = world.key_packages(&bob, TokenClass::Connection, 1).await;
    let left = world.publish(&bob, [group, connection.clone()].concat()).await.unwrap();
    assert_eq!((left.group_left, left.connection_left), (1, 1));
    let fetch = async |target_user: &UserUri, requester: &UserUri| {
        let request = ConnectionKeyPackageRequest {
            target_user: target_user.clone(),
            requester: requester.clone(),
        };
        let response = world.node.connection_key_packages(&alice.client, request).await;
        response.map(|response| response.key_packages.into_vec()).map_err(|error| error.name())
    };
    assert_eq!(fetch(&bob.user, &bob.user).await, Err("not_authorized"));
    assert_eq!(fetch(&bob.user, &alice.user).await, Ok(connection));
    assert_eq!(fetch(&bob.user, &alice.user).await, Ok(Vec::new()), "used up");
    let nobody = UserUri::of(&domain(), "nobody").unwrap();
    assert_eq!(fetch(&nobody, &alice.user).await, Ok(Vec::new()));
    let far = UserUri::new("mimi://b.example/u/zoe").unwrap();
    assert_eq!(fetch(&far, &alice.user).await, Err("not_authorized"));
}

#[actix::test]
async fn a_requester_has_a_share_of_each_target_alike_for_unknown_users() {
    let limits = Limits { key_package_targets_per_hour: 20, ..Limits::default() };
    let (world, alice, bob) = pair(limits).await;
    let carol = world.register("carol").await;
    let nobody = UserUri::of(&domain(), "nobody").unwrap();
    for target in [&bob.user, &nobody] {
        let fetch = async |by: &Person| {
            let request = ConnectionKeyPackageRequest {
                target_user: target.clone(),
                requester: by.user.clone(),
            };
            let fetched = world.node.connection_key_packages(&by.client, request).await;
            fetched.map(|_| ()).map_err(|error| error.name())
        };
        assert_eq!((fetch(&alice).await, fetch(&alice).await), (Ok(()), Ok(())));
        assert_eq!(fetch(&alice).await, Err("rate_limited"));
        assert_eq!(fetch(&carol).await, Ok(()), "what is left is for others");
        world.clock.advance_ms(3_600_000);
        assert_eq!(fetch(&alice).await, Ok(()));
    }
}

#[actix::test]
async fn made_up_consent_tokens_use_up_nobody_s_fetches() {
    let limits = Limits { key_package_targets_per_hour: 2, ..Limits::default() };
    let (world, alice, bob) = pair(limits).await;
    let eve = world.register("eve").await;
    let nobody = UserUri::of(&domain(), "nobody").unwrap();
    for target in [&bob.user, &nobody] {
        for _ in 0..5 {
            let fetched = world.fetch(&eve, target, [1; 32]).await;
            assert_eq!(fetched.status, KeyPackageStatus::NoConsent);
        }
    }
    assert_eq!(world.fetch(&alice, &bob.user, CONSENT).await.status, KeyPackageStatus::NoneLeft);
    assert_eq!(world.fetch(&eve, &bob.user, CONSENT).await.status, KeyPackageStatus::NoneLeft);
}

#[actix::test]
async fn a_provider_has_half_of_a_target_and_loses_none_of_it_by_made_up_tokens() {
    let limits = Limits { key_package_targets_per_hour: 20, ..Limits::default() };
    let (world, alice, bob) = pair(limits).await;
    let far = Sender::Peer(Domain::new("b.example").unwrap());
    let fetch = async |by: &Sender, token: [u8; 32]| {
        let request = GroupKeyPackageRequest {
            target_user: bob.user.clone(),
            consent_token: Secret::new(token).unwrap(),
            ciphersuites: List::new(vec![SUITE]).unwrap(),
            required: None,
        };
        let fetched = world.node.hand_out_for_group(by, request).await;
        fetched.map(|fetched| fetched.status).map_err(|error| error.name())
    };
    for _ in 0..30 {
        assert_eq!(fetch(&far, [1; 32]).await, Ok(KeyPackageStatus::NoConsent));
    }
    for _ in 0..10 {
        assert_eq!(fetch(&far, CONSENT).await, Ok(KeyPackageStatus::NoneLeft));
    }
    assert_eq!(fetch(&far, CONSENT).await, Err("rate_limited"));
    let user = Sender::User(alice.user.clone());
    assert_eq!(fetch(&user, CONSENT).await, Ok(KeyPackageStatus::NoneLeft));
}

#[actix::test]
async fn fetches_for_groups_and_of_one_user_are_limited_per_hour() {
    let limits = Limits {
        key_package_targets_per_hour: 20,
        key_package_fetches_per_hour: 4,
        ..Limits::default()
    };
    let (world, alice, _) = pair(limits).await;
    let fetch = async |name: &str| {
        let request = GroupKeyPackageRequest {
            target_user: UserUri::of(&domain(), name).unwrap(),
            consent_token: Secret::new(CONSENT).unwrap(),
            ciphersuites: List::new(vec![SUITE]).unwrap(),
            required: None,
        };
        let fetched = world.node.group_key_packages(&alice.client, request).await;
        fetched.map(|_| ()).map_err(|error| error.name())
    };
    assert_eq!((fetch("bob").await, fetch("bob").await), (Ok(()), Ok(())));
    assert_eq!(fetch("bob").await, Err("rate_limited"), "of one target");
    // the refused one counted for alice, too
    assert_eq!(fetch("nobody").await, Ok(()));
    assert_eq!(fetch("somebody").await, Err("rate_limited"), "of all targets together");
    world.clock.advance_ms(3_600_000);
    assert_eq!(fetch("somebody").await, Ok(()));
}

#[actix::test]
async fn fetches_of_users_elsewhere_are_limited_before_their_providers_are_asked() {
    let limits = Limits { key_package_fetches_per_hour: 2, ..Limits::default() };
    let (world, alice, bob) = pair(limits).await;
    let far = UserUri::new("mimi://b.example/u/zoe").unwrap();
    let for_groups = async || {
        let request = GroupKeyPackageRequest {
            target_user: far.clone(),
            consent_token: Secret::new(CONSENT).unwrap(),
            ciphersuites: List::new(vec![SUITE]).unwrap(),
            required: None,
        };
        world.node.group_key_packages(&alice.client, request).await.unwrap_err().name()
    };
    let to_connect = async || {
        let request =
            ConnectionKeyPackageRequest { target_user: far.clone(), requester: bob.user.clone() };
        world.node.connection_key_packages(&bob.client, request).await.unwrap_err().name()
    };
    // nobody is reached from here
    for _ in 0..2 {
        assert_eq!((for_groups().await, to_connect().await), ("not_authorized", "not_authorized"));
    }
    assert_eq!((for_groups().await, to_connect().await), ("rate_limited", "rate_limited"));
}

#[actix::test]
async fn expired_key_packages_are_dropped_at_the_next_publishing() {
    let (world, alice, bob) = pair(Limits::default()).await;
    let key_packages = world.key_packages(&bob, TokenClass::Group, 2).await;
    world.publish(&bob, key_packages).await.unwrap();
    world.clock.advance_ms(81 * 24 * 3_600_000);
    let none = world.fetch(&alice, &bob.user, CONSENT).await;
    assert_eq!(none.status, KeyPackageStatus::NoneLeft);
    assert_eq!(world.publish(&bob, Vec::new()).await.unwrap().group_left, 0);
    assert!(world.node.store.key_packages(&bob.client, 9).await.unwrap().is_empty());
}
