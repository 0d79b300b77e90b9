//! Who sends a request, and what it is good for. PROTOCOL.md §2, checks 2 to 4 and 6.

use super::rogue::{Rogue, context, ed25519, sign, sign_in};
use super::scenario::{Scenario, Setup, domain, policy, propose, say, update};
use crate::{
    client::core::{NewProposal, Operation, PolicyChange},
    group::{GroupState, Reject, Request},
    rate::{GroupQuotas, GroupRates, Quota},
    wire::{
        codec::{Opaque, Raw, encode},
        ds::{
            DsMessage, DsRequest, DsResponseBody, DsSenderId, ExternalCommitInfo, FanoutFilter,
            ProtocolVersion, ResyncClient, SendMessage, UpdateClientFanoutInfo, UpdateQueueInfo,
            WelcomeInfo,
        },
        extensions::{ClientQueueConfig, JoinPolicy},
        ids::{Domain, Epoch, GroupId, KeyPackageRef, LeafIndex, RequestId, Sequence},
    },
};

fn elsewhere() -> Domain {
    Domain::new("b.example").unwrap()
}

fn queue_update(scenario: &Scenario, rogue: &Rogue) -> DsRequest {
    DsRequest::UpdateQueueInfo(UpdateQueueInfo {
        group_id: scenario.id.clone(),
        client_queue_config: rogue.config(),
    })
}

fn scene() -> (Scenario, Rogue) {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let rogue = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    (scenario, rogue)
}

fn unauthenticated(scenario: &mut Scenario, message: &DsMessage) {
    let refused = scenario.submit(message);
    assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
}

#[test]
fn leaf_is_who_its_key_signs_for() {
    let (mut scenario, rogue) = scene();
    let request = queue_update(&scenario, &rogue);
    let other = DsSenderId::LeafIndex(scenario.leaf("bob/phone"));
    let message = sign(&scenario, other, request.clone(), &rogue.leaf);
    unauthenticated(&mut scenario, &message);
    let nobody = DsSenderId::LeafIndex(LeafIndex(77));
    let message = sign(&scenario, nobody, request.clone(), &rogue.leaf);
    unauthenticated(&mut scenario, &message);
    let own = DsSenderId::LeafIndex(rogue.leaf_index());
    let message = sign(&scenario, own, request.clone(), &rogue.user);
    unauthenticated(&mut scenario, &message);
    for sender in [
        DsSenderId::UserKeyHash(rogue.user_key_hash()),
        DsSenderId::KeyPackageRef(KeyPackageRef(Opaque::new([1; 32]).unwrap())),
    ] {
        let message = sign(&scenario, sender, request.clone(), &rogue.leaf);
        unauthenticated(&mut scenario, &message);
    }
    let good = rogue.request(&scenario, request);
    let relayed = scenario.submit_via(&good, elsewhere());
    assert!(matches!(relayed, Err(Reject::Unauthenticated(_))), "{relayed:?}");
    scenario.submit(&good).unwrap();
}

#[test]
fn member_that_asks_too_much_waits_but_for_its_retries_and_others_do_not() {
    let member = Quota { per_second: 2, burst: 50 };
    let rates = GroupRates::new(GroupQuotas { member, ..GroupQuotas::default() });
    let mut scenario = Setup { rates, ..Setup::default() }.group_of(["alice/phone", "bob/phone"]);
    let rogue = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let ask = |scenario: &mut Scenario| {
        let message = rogue.request(scenario, queue_update(scenario, &rogue));
        scenario.submit(&message).map(|answer| (message, answer))
    };
    let (first, answer) = ask(&mut scenario).unwrap();
    let mut accepted = 1;
    let refused = loop {
        match ask(&mut scenario) {
            Ok(_) => accepted += 1,
            Err(reject) => break reject,
        }
        assert!(accepted <= 50);
    };
    assert_eq!(refused, Reject::RateLimited(500));
    assert_eq!(scenario.submit(&first).unwrap(), answer, "what was accepted stays so");
    let forged = sign(
        &scenario,
        DsSenderId::LeafIndex(rogue.leaf_index()),
        queue_update(&scenario, &rogue),
        &rogue.user,
    );
    unauthenticated(&mut scenario, &forged);
    scenario.act("bob/phone", say("others go on")).unwrap();
    scenario.now = scenario.now.plus_ms(500);
    ask(&mut scenario).unwrap();
}

#[test]
fn request_is_good_for_one_hub_one_group_one_time_and_one_version() {
    let (mut scenario, rogue) = scene();
    let own = || DsSenderId::LeafIndex(rogue.leaf_index());
    let signed = |scenario: &Scenario, change: &dyn Fn(&mut crate::wire::ds::DsContext)| {
        let mut context = context(scenario);
        change(&mut context);
        sign_in(context, own(), queue_update(scenario, &rogue), &rogue.leaf)
    };
    let message = signed(&scenario, &|context| context.hub_domain = elsewhere());
    unauthenticated(&mut scenario, &message);
    let other = GroupId::of(&domain(), [3; 16]);
    let message = signed(&scenario, &|context| context.group_id = other.clone());
    unauthenticated(&mut scenario, &message);
    let request = DsRequest::UpdateQueueInfo(UpdateQueueInfo {
        group_id: other,
        client_queue_config: rogue.config(),
    });
    let message = rogue.request(&scenario, request);
    unauthenticated(&mut scenario, &message);
    let message = signed(&scenario, &|context| context.version = ProtocolVersion(2));
    assert_eq!(scenario.submit(&message), Err(Reject::UnsupportedVersion));
    let window = scenario.hub.settings.window_ms;
    let message = signed(&scenario, &|context| context.timestamp.0 += window + 1);
    assert!(matches!(scenario.submit(&message), Err(Reject::Stale { .. })));
    let message = signed(&scenario, &|context| context.timestamp.0 -= window + 1);
    assert!(matches!(scenario.submit(&message), Err(Reject::Stale { .. })));
    // every field of the context is under the signature
    let good = signed(&scenario, &|_| {});
    let mut forged = good.clone();
    forged.context.request_id = RequestId([9; 16]);
    unauthenticated(&mut scenario, &forged);
    let mut forged = good.clone();
    forged.context.timestamp.0 += 1;
    unauthenticated(&mut scenario, &forged);
    scenario.submit(&good).unwrap();
}

#[test]
fn accepted_request_is_answered_again_and_written_once() {
    let (mut scenario, mut rogue) = scene();
    let request = {
        let new = ed25519();
        let credential = rogue.credential(&new);
        let extensions = rogue.leaf_parameters(&new);
        let update = rogue.commit_with(Some((&new, credential)), |builder| {
            builder.leaf_node_parameters(extensions)
        });
        rogue.request(&scenario, DsRequest::UpdateClient(update))
    };
    let answer = scenario.submit(&request).unwrap();
    let records = scenario.records.len();
    assert_eq!(scenario.submit(&request).unwrap(), answer);
    // the leaf's key is another one now, and the process begins anew
    scenario.restart();
    assert_eq!(scenario.submit(&request).unwrap(), answer);
    scenario.restart_from_snapshot_for_all();
    assert_eq!(scenario.submit(&request).unwrap(), answer);
    for _ in 0..3 {
        scenario.deliver_all();
        scenario.act("alice/phone", update()).unwrap();
    }
    assert_eq!(scenario.submit(&request).unwrap(), answer);
    assert_eq!(scenario.records.len(), records + 3);
}

#[test]
fn requests_are_remembered_for_a_while() {
    let mut scenario = Setup::with(|settings| {
        settings.remember_ms = 1_000;
        settings.remember_epochs = 2;
    })
    .group_of(["alice/phone", "bob/phone"]);
    let commit = scenario.begin("bob/phone", update());
    let commit_message = scenario.message("bob/phone", commit);
    scenario.drive("bob/phone", commit).unwrap();
    let talk = scenario.begin("bob/phone", say("hello"));
    let talk_message = scenario.message("bob/phone", talk);
    scenario.drive("bob/phone", talk).unwrap();
    assert!(matches!(scenario.submit(&talk_message), Ok(DsResponseBody::Accepted(_))));
    scenario.now = scenario.now.plus_ms(1_001);
    scenario.deliver_all();
    scenario.act("alice/phone", update()).unwrap();
    assert!(matches!(scenario.submit(&commit_message), Ok(DsResponseBody::Accepted(_))));
    scenario.act("alice/phone", update()).unwrap();
    assert!(matches!(scenario.submit(&commit_message), Err(Reject::WrongEpoch { .. })));
    assert!(matches!(scenario.submit(&talk_message), Err(Reject::WrongEpoch { .. })));
}

#[test]
fn a_member_that_floods_makes_the_group_forget_its_own_requests_alone() {
    let mut scenario = Setup::with(|settings| settings.remember_max = 8).group_of([
        "alice/phone",
        "bob/phone",
        "carol/phone",
    ]);
    let say_once = |scenario: &mut Scenario, who: &str| {
        let request = scenario.begin(who, say("once"));
        let message = scenario.message(who, request);
        scenario.drive(who, request).unwrap();
        message
    };
    let bobs = say_once(&mut scenario, "bob/phone");
    let alices = say_once(&mut scenario, "alice/phone");
    for number in 0..20 {
        say_once(&mut scenario, "bob/phone");
        if number % 7 == 0 {
            scenario.restart_from_snapshot_for_all();
        }
    }
    let records = scenario.records.len();
    assert!(matches!(scenario.submit(&alices), Ok(DsResponseBody::Accepted(_))));
    assert_eq!(scenario.records.len(), records, "it is not delivered twice");
    scenario.submit(&bobs).unwrap();
    assert_eq!(scenario.records.len(), records + 1, "forgotten, by its own doing");
    assert_eq!(scenario.reloaded().to_snapshot().unwrap(), scenario.snapshot());
}

#[test]
fn loser_of_a_race_catches_up_from_the_answer_alone() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let slow = scenario.begin("bob/phone", Operation::UpdateClient { rotate_key: true });
    let first = scenario.message("bob/phone", slow);
    scenario.act("carol/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver("alice/phone");
    scenario.act("alice/phone", update()).unwrap();
    scenario.act("alice/phone", update()).unwrap();
    scenario.deliver("carol/phone");
    scenario.act("carol/phone", propose(NewProposal::Update)).unwrap();
    let refused = scenario.submit(&first);
    let Err(Reject::WrongEpoch { current, missed }) = &refused else { panic!("{refused:?}") };
    assert_eq!(*current, scenario.state.epoch());
    assert_eq!(missed.len(), 4, "proposal, two commits, the pending proposal");
    let now = scenario.now;
    let bob = scenario.client("bob/phone");
    bob.settle(slow, &super::scenario::respond(&refused), now).unwrap();
    let second = scenario.message("bob/phone", slow);
    assert_eq!(second.context.request_id, first.context.request_id);
    scenario.drive("bob/phone", slow).unwrap();
    scenario.agree();
}

#[test]
fn missed_messages_survive_a_restart_and_are_not_told_in_part() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let slow = scenario.begin("bob/phone", update());
    let message = scenario.message("bob/phone", slow);
    for _ in 0..3 {
        scenario.act("alice/phone", update()).unwrap();
    }
    let missed = |scenario: &mut Scenario| match scenario.submit(&message) {
        Err(Reject::WrongEpoch { missed, .. }) => missed.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(missed(&mut scenario), 3);
    scenario.restart();
    assert_eq!(missed(&mut scenario), 3);
    scenario.restart_from_snapshot_for_all();
    assert_eq!(missed(&mut scenario), 0, "what is not known in full comes through the queue");
    for _ in 0..70 {
        scenario.act("alice/phone", update()).unwrap();
    }
    assert_eq!(missed(&mut scenario), 0);
}

#[test]
fn welcome_information_is_for_its_pending_joiner_only() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let mut rogue = Rogue::new("mallory/phone");
    let key_package = rogue.key_package();
    let reference = rogue.reference(&key_package);
    let ask = |scenario: &Scenario, epoch: u64, key: &crate::crypto::SigningKey| {
        let request = DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: scenario.id.clone(),
            sender: key.public().clone(),
            epoch: Epoch(epoch),
        });
        let sender = DsSenderId::KeyPackageRef(reference.clone());
        sign(scenario, sender, request, key)
    };
    let early = ask(&scenario, 2, &rogue.leaf);
    unauthenticated(&mut scenario, &early);
    let key_packages = vec![encode(&key_package)];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
    let epoch = scenario.state.epoch().0;
    let stranger = ask(&scenario, epoch, &ed25519());
    unauthenticated(&mut scenario, &stranger);
    let wrong = ask(&scenario, epoch - 1, &rogue.leaf);
    assert!(matches!(scenario.submit(&wrong), Err(Reject::NotAuthorized(_))));
    let good = ask(&scenario, epoch, &rogue.leaf);
    let relayed = scenario.submit_via(&good, elsewhere());
    assert!(matches!(relayed, Err(Reject::Unauthenticated(_))));
    assert!(matches!(scenario.submit(&good), Ok(DsResponseBody::Info(_))));
    assert!(matches!(scenario.submit(&good), Ok(DsResponseBody::Info(_))), "asked twice");
    // as a leaf the sender is no joiner any more
    scenario.deliver_all();
    rogue.take_welcome(&mut scenario);
    let request = queue_update(&scenario, &rogue);
    let request = rogue.request(&scenario, request);
    scenario.submit(&request).unwrap();
    unauthenticated(&mut scenario, &good);
}

#[test]
fn pending_joiner_ends_with_its_key_package_and_with_its_removal() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let ask = |scenario: &Scenario, rogue: &Rogue, reference: &KeyPackageRef| {
        let request = DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: scenario.id.clone(),
            sender: rogue.leaf.public().clone(),
            epoch: scenario.state.epoch(),
        });
        sign(scenario, DsSenderId::KeyPackageRef(reference.clone()), request, &rogue.leaf)
    };
    let rogue = Rogue::new("mallory/phone");
    let key_package = rogue.key_package();
    let reference = rogue.reference(&key_package);
    let key_packages = vec![encode(&key_package)];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
    let not_after = key_package.life_time().not_after() * 1000;
    let then = scenario.now;
    scenario.now.0 = not_after + 1;
    let late = ask(&scenario, &rogue, &reference);
    unauthenticated(&mut scenario, &late);
    scenario.now = then;
    let users = vec![rogue.client.user()];
    scenario.act("alice/phone", Operation::RemoveUsers { users }).unwrap();
    let removed = ask(&scenario, &rogue, &reference);
    unauthenticated(&mut scenario, &removed);
}

#[test]
fn commit_and_request_have_one_sender() {
    let (mut scenario, mut rogue) = scene();
    let mut other = Rogue::member(&mut scenario, "alice/phone", "trudy/phone");
    rogue.follow(&scenario);
    let update = other.commit(|builder| builder);
    let request = rogue.request(&scenario, DsRequest::UpdateClient(update));
    unauthenticated(&mut scenario, &request);
    let (message, _) = other
        .group
        .as_mut()
        .unwrap()
        .propose_self_update(
            &other.provider,
            &other.leaf,
            openmls::prelude::LeafNodeParameters::default(),
        )
        .unwrap();
    let request = rogue.propose(&scenario, &message);
    unauthenticated(&mut scenario, &request);
}

#[test]
fn user_key_authenticates_who_comes_from_outside() {
    let (mut scenario, rogue) = scene();
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    let mut carol = Rogue::new("carol/phone");
    let ask = |scenario: &Scenario, user_key, signer: &crate::crypto::SigningKey| {
        let request = DsRequest::ExternalCommitInfo(ExternalCommitInfo {
            group_id: scenario.id.clone(),
            sender: carol.leaf.public().clone(),
            credential: Raw::of(&carol.credential(&carol.leaf).credential),
            user_key,
            join_proof: None,
        });
        sign(scenario, DsSenderId::UserKeyHash(carol.user_key_hash()), request, signer)
    };
    let own = carol.vouch(carol.leaf.public());
    for (user_key, signer) in [
        (Some(own.clone()), &carol.leaf),
        (Some(rogue.vouch(carol.leaf.public())), &carol.user),
        (Some(carol.vouch(rogue.leaf.public())), &carol.user),
        (None, &carol.user),
    ] {
        let message = ask(&scenario, user_key, signer);
        unauthenticated(&mut scenario, &message);
    }
    let good = ask(&scenario, Some(own), &carol.user);
    assert!(matches!(scenario.submit_via(&good, elsewhere()), Err(Reject::Unauthenticated(_))));
    assert!(matches!(scenario.submit(&good), Ok(DsResponseBody::Info(_))));

    let good = carol.join(&scenario);
    let DsRequest::JoinGroup(join) = &good.request else { panic!() };
    let hash = DsSenderId::UserKeyHash(rogue.user_key_hash());
    let request = DsRequest::JoinGroup(join.clone());
    let message = sign(&scenario, hash, request.clone(), &rogue.user);
    unauthenticated(&mut scenario, &message);
    let message = sign(&scenario, good.sender_id.clone(), request, &carol.leaf);
    unauthenticated(&mut scenario, &message);
    assert!(matches!(scenario.submit_via(&good, elsewhere()), Err(Reject::Unauthenticated(_))));
    scenario.submit(&good).unwrap();
    scenario.agree();
}

#[test]
fn newcomers_key_package_is_its_own() {
    let (mut scenario, rogue) = scene();
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    let carol = Rogue::new("carol/phone");
    let good = carol.ask_to_join(&scenario, None);
    let message = sign(&scenario, good.sender_id.clone(), good.request.clone(), &rogue.leaf);
    unauthenticated(&mut scenario, &message);
    let other = DsSenderId::KeyPackageRef(rogue.reference(&rogue.key_package()));
    let message = sign(&scenario, other, good.request.clone(), &carol.leaf);
    unauthenticated(&mut scenario, &message);
    let hash = DsSenderId::UserKeyHash(carol.user_key_hash());
    let message = sign(&scenario, hash, good.request.clone(), &carol.user);
    unauthenticated(&mut scenario, &message);
    scenario.submit(&good).unwrap();
}

#[test]
fn sender_field_is_the_key_that_signs_and_queues_are_at_home() {
    let (mut scenario, mut rogue) = scene();
    let fanout = |scenario: &Scenario, key: &crate::crypto::SigningKey, config| {
        DsRequest::UpdateClientFanoutInfo(UpdateClientFanoutInfo {
            group_id: scenario.id.clone(),
            sender: key.public().clone(),
            client_queue_config: config,
            filter: FanoutFilter::All,
        })
    };
    let request = fanout(&scenario, &rogue.user, rogue.config());
    let message = rogue.request(&scenario, request);
    unauthenticated(&mut scenario, &message);
    let stray = ClientQueueConfig { domain: elsewhere(), ..rogue.config() };
    let request = fanout(&scenario, &rogue.leaf, stray.clone());
    let message = rogue.request(&scenario, request);
    assert!(matches!(scenario.submit(&message), Err(Reject::NotAuthorized(_))));

    let leaf = DsSenderId::LeafIndex(rogue.leaf_index());
    let info = scenario.state.info().unwrap();
    let update = rogue.external_commit(&info, Vec::new());
    for (sender, config, ok) in [
        (rogue.user.public().clone(), rogue.config(), false),
        (rogue.leaf.public().clone(), stray, false),
        (rogue.leaf.public().clone(), rogue.config(), true),
    ] {
        let request = DsRequest::ResyncClient(ResyncClient {
            group_id: scenario.id.clone(),
            sender,
            update: update.clone(),
            client_queue_config: config,
        });
        let message = sign(&scenario, leaf.clone(), request, &rogue.leaf);
        assert_eq!(scenario.submit(&message).is_ok(), ok);
    }
    scenario.agree();
}

#[test]
fn message_of_another_group_is_not_taken() {
    let (mut scenario, rogue) = scene();
    let (other_scenario, mut other) = scene();
    let group = other.group.as_mut().unwrap();
    let message = group.create_message(&other.provider, &other.leaf, b"hello").unwrap();
    let application_message = Raw::of(&message);
    let request = DsRequest::SendMessage(SendMessage { application_message });
    let message = rogue.request(&scenario, request);
    unauthenticated(&mut scenario, &message);
    let update = other.commit(|builder| builder);
    let message = rogue.request(&scenario, DsRequest::UpdateClient(update));
    unauthenticated(&mut scenario, &message);
    // nor a whole request of another group, as it was signed there
    let request = queue_update(&other_scenario, &other);
    let message = other.request(&other_scenario, request);
    unauthenticated(&mut scenario, &message);
}

#[test]
fn creation_is_asked_for_by_the_creator_under_its_own_providers_name() {
    let scenario = Scenario::group_of(["alice/phone"]);
    let hub = scenario.hub.clone();
    let mut fresh = Scenario::group_of(["bob/phone"]);
    let member = fresh.client("bob/phone");
    let key = hub.key(crate::wire::extensions::SignatureScheme::ED25519).unwrap();
    let client_hub =
        crate::client::core::Hub { domain: domain(), external_sender: key.public().clone() };
    let new = crate::client::core::NewGroup::default();
    let (_, request) = member.create_group(&client_hub, &new, scenario.now).unwrap();
    let message = member.outbound(request, scenario.now).unwrap().message;
    let create = |message: &DsMessage, relay: Domain| {
        let request = Request { message: message.clone(), relay };
        GroupState::create(&hub, &request, scenario.now)
    };
    assert!(matches!(create(&message, elsewhere()), Err(Reject::Unauthenticated(_))));
    let mut forged = message.clone();
    forged.context.request_id = RequestId([0; 16]);
    assert!(matches!(create(&forged, domain()), Err(Reject::Unauthenticated(_))));
    let mut other_leaf = message.clone();
    other_leaf.sender_id = DsSenderId::LeafIndex(LeafIndex(1));
    assert!(matches!(create(&other_leaf, domain()), Err(Reject::Unauthenticated(_))));
    let creation = create(&message, domain()).unwrap();
    assert_eq!(creation.effects.accepted.unwrap().group_sequence, Sequence(1));
    // the group names a hub with another key
    let strange = fresh.hub.clone();
    let request = Request { message, relay: domain() };
    let refused = GroupState::create(&strange, &request, scenario.now);
    assert!(matches!(refused, Err(Reject::InvalidGroupInfo(_))), "{refused:?}");
}
