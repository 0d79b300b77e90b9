//! What is asked from outside of a group, and what its hub tells and takes. PROTOCOL.md §2, checks 4, 5, 8 and 10.

use openmls::prelude as mls;

use super::rogue::{Rogue, capabilities, context, ed25519, sign, sign_in, unknown};
use super::scenario::{Scenario, Setup, domain, policy};
use crate::{
    client::core::{Operation, PolicyChange, SUITES},
    crypto::SigningKey,
    group::Reject,
    rate::{GroupQuotas, GroupRates, Quota},
    wire::{
        codec::{List, Raw, encode},
        ds::{
            DeleteGroup, DsMessage, DsRequest, DsResponseBody, DsSenderId, ExternalCommitInfo,
            FanoutFilter, JoinGroup, Propose, ResyncClient, UpdateClientFanoutInfo, WelcomeInfo,
        },
        extensions::{CLIENT_QUEUE_CONFIG, JoinPolicy, KeyPackageQueue, PublicKey, Role, USER_KEY},
        ids::{Domain, GroupId},
    },
};

fn elsewhere() -> Domain {
    Domain::new("b.example").unwrap()
}

pub(super) fn asks_info(scenario: &Scenario, rogue: &Rogue, code: Option<u8>) -> DsMessage {
    let request = DsRequest::ExternalCommitInfo(ExternalCommitInfo {
        group_id: scenario.id.clone(),
        sender: rogue.leaf.public().clone(),
        credential: Raw::of(&rogue.credential(&rogue.leaf).credential),
        user_key: Some(rogue.vouch(rogue.leaf.public())),
        join_proof: code.map(|seed| rogue.proof(scenario, seed)),
    });
    sign(scenario, DsSenderId::UserKeyHash(rogue.user_key_hash()), request, &rogue.user)
}

fn not_authorized(scenario: &mut Scenario, message: &DsMessage) {
    let refused = scenario.submit(message);
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
}

#[test]
fn tree_is_not_shown_to_who_may_not_join() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let zoe = Rogue::new("zoe/phone");
    let asked = asks_info(&scenario, &zoe, None);
    not_authorized(&mut scenario, &asked);

    let public = SigningKey::from_seed([7; 32]).unwrap().public().as_slice().to_vec();
    let expires_at = scenario.now.plus_ms(60_000);
    let code = PolicyChange::AddCode { public, expires_at };
    let changes = vec![PolicyChange::Join(JoinPolicy::Code), code];
    scenario.act("alice/phone", Operation::UpdateGroup { changes }).unwrap();
    for wrong in [None, Some(8)] {
        let asked = asks_info(&scenario, &zoe, wrong);
        not_authorized(&mut scenario, &asked);
    }
    let asked = asks_info(&scenario, &zoe, Some(7));
    assert!(matches!(scenario.submit(&asked), Ok(DsResponseBody::Info(_))));
    scenario.now = expires_at;
    let asked = asks_info(&scenario, &zoe, Some(7));
    not_authorized(&mut scenario, &asked);
    // nor may its own Add be proposed then
    let asked = zoe.ask_to_join(&scenario, Some(7));
    not_authorized(&mut scenario, &asked);

    scenario.deliver_all();
    let member = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let asked = asks_info(&scenario, &member, None);
    assert!(matches!(scenario.submit(&asked), Ok(DsResponseBody::Info(_))), "to resync");
    let ban = PolicyChange::Role { user: member.client.user(), role: Role::Banned };
    scenario.act("alice/phone", policy(ban)).unwrap();
    let asked = asks_info(&scenario, &member, None);
    not_authorized(&mut scenario, &asked);
}

#[test]
fn who_asks_from_outside_is_limited_in_rate() {
    let quota = Quota { per_second: 1, burst: 20 };
    let rates = || GroupRates::new(GroupQuotas { member: quota, ..GroupQuotas::default() });
    let mut scenario = Setup { rates: rates(), ..Setup::default() }.group_of(["alice/phone"]);
    let mut zoe = Rogue::new("zoe/phone");
    let yves = Rogue::new("yves/phone");
    let key_package = yves.key_package();
    let key_packages = vec![encode(&key_package)];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
    let welcome = DsRequest::WelcomeInfo(WelcomeInfo {
        group_id: scenario.id.clone(),
        sender: yves.leaf.public().clone(),
        epoch: scenario.state.epoch(),
    });
    let sender = DsSenderId::KeyPackageRef(yves.reference(&key_package));
    let asked = [
        ("external_commit_info", asks_info(&scenario, &Rogue::new("xaver/phone"), None)),
        ("join_group", zoe.join(&scenario)),
        ("propose", Rogue::new("willi/phone").ask_to_join(&scenario, None)),
        ("welcome_info", sign(&scenario, sender, welcome, &yves.leaf)),
    ];
    for (what, message) in asked {
        let limited = (0..=quota.burst)
            .any(|_| matches!(scenario.submit(&message), Err(Reject::RateLimited(_))));
        assert!(limited, "{what}");
    }
}

#[test]
fn welcome_information_is_asked_for_by_the_key_of_the_key_package() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let zoe = Rogue::new("zoe/phone");
    let key_package = zoe.key_package();
    let key_packages = vec![encode(&key_package)];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
    let (own, other) = (zoe.leaf.clone(), ed25519());
    let ask = |scenario: &Scenario, named: &PublicKey, signer: &SigningKey| {
        let request = DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: scenario.id.clone(),
            sender: named.clone(),
            epoch: scenario.state.epoch(),
        });
        let sender = DsSenderId::KeyPackageRef(zoe.reference(&key_package));
        sign(scenario, sender, request, signer)
    };
    for (named, signer) in [(&own, &other), (&other, &own)] {
        let message = ask(&scenario, named.public(), signer);
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
    }
    let message = ask(&scenario, own.public(), &own);
    assert!(matches!(scenario.submit(&message), Ok(DsResponseBody::Info(_))));
}

#[test]
fn newcomer_is_who_signs_and_comes_through_its_own_provider() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
    let asked = Rogue::new("yves/phone").ask_to_join(&scenario, None);
    let refused = scenario.submit_via(&asked, elsewhere());
    assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
    scenario.submit(&asked).unwrap();
    scenario.deliver_all();
    scenario.act("bob/phone", super::scenario::update()).unwrap();

    // a sender id that is another's would stand in the way of that other's own requests
    let mut zoe = Rogue::new("zoe/phone");
    let good = zoe.join(&scenario);
    let another = DsSenderId::UserKeyHash(Rogue::new("xaver/phone").user_key_hash());
    let message = sign(&scenario, another, good.request.clone(), &zoe.user);
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
    scenario.submit(&good).unwrap();
}

#[test]
fn proposed_key_package_fits_the_group_and_its_bounds() {
    let setup = Setup::with(|settings| settings.handshake_bytes_max = 6_000);
    let mut scenario = setup.group_of(["alice/phone", "bob/phone"]);
    let mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let zoe = Rogue::new("zoe/phone");
    let extension = mls::ExtensionType::Unknown;
    let poor = mls::Capabilities::new(
        None,
        Some(&SUITES),
        Some(&[extension(USER_KEY), extension(CLIENT_QUEUE_CONFIG)]),
        None,
        Some(&[mls::CredentialType::Basic]),
    );
    let mut many = SUITES.to_vec();
    many.resize(4_000, SUITES[0]);
    let large = capabilities();
    let large = mls::Capabilities::new(
        None,
        Some(&many),
        Some(large.extensions()),
        Some(large.proposals()),
        Some(large.credentials()),
    );
    let add = |suite, capabilities| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let queue = KeyPackageQueue { class: zoe.class, config: zoe.config() };
        let made = mls::KeyPackage::builder()
            .key_package_lifetime(mls::Lifetime::init(
                now.as_secs() - 60,
                now.as_secs() + 20 * 86_400,
            ))
            .leaf_node_capabilities(capabilities)
            .leaf_node_extensions(zoe.leaf_extensions(&zoe.leaf))
            .key_package_extensions(
                mls::Extensions::single(unknown(CLIENT_QUEUE_CONFIG, encode(&queue))).unwrap(),
            )
            .build(suite, &zoe.provider, &zoe.leaf, zoe.credential(&zoe.leaf))
            .unwrap();
        [1_u16.to_be_bytes().to_vec(), encode(made.key_package())].concat()
    };
    let mut propose = |proposal: &[u8]| {
        let proposal = mallory.handmade_proposal(&scenario, proposal);
        let request = DsRequest::Propose(Propose { proposals: List::new(vec![proposal]).unwrap() });
        let message = mallory.request(&scenario, request);
        scenario.submit(&message)
    };
    let refused = propose(&add(SUITES[2], capabilities()));
    assert!(
        matches!(
            refused,
            Err(Reject::InvalidKeyPackage { index: 0, .. } | Reject::InvalidProposal { .. })
        ),
        "another ciphersuite: {refused:?}"
    );
    let refused = propose(&add(SUITES[0], poor));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    let refused = propose(&add(SUITES[0], large));
    assert!(matches!(refused, Err(Reject::TooLarge { limit: 6_000, .. })), "{refused:?}");
    propose(&add(SUITES[0], capabilities())).unwrap();
}

#[test]
fn every_group_id_in_a_request_is_the_one_of_its_context() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let mut zoe = Rogue::new("zoe/phone");
    let yves = Rogue::new("yves/phone");
    let key_package = yves.key_package();
    let key_packages = vec![encode(&key_package)];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
    mallory.follow(&scenario);
    let leaf = DsSenderId::LeafIndex(mallory.leaf_index());
    let alone = mallory.commit(|builder| builder);
    let info = scenario.state.info().unwrap();
    let join = zoe.external_commit(&info, Vec::new());
    let resync = mallory.external_commit(&info, Vec::new());
    let (key, config) = (mallory.leaf.public().clone(), mallory.config());
    let group_id = || GroupId::of(&domain(), [3; 16]);
    let other = vec![
        (
            leaf.clone(),
            &mallory.leaf,
            DsRequest::UpdateClientFanoutInfo(UpdateClientFanoutInfo {
                group_id: group_id(),
                sender: key.clone(),
                client_queue_config: config.clone(),
                filter: FanoutFilter::All,
            }),
        ),
        (
            leaf.clone(),
            &mallory.leaf,
            DsRequest::DeleteGroup(DeleteGroup { group_id: group_id(), update: alone }),
        ),
        (
            leaf,
            &mallory.leaf,
            DsRequest::ResyncClient(ResyncClient {
                group_id: group_id(),
                sender: key,
                update: resync,
                client_queue_config: config,
            }),
        ),
        (
            DsSenderId::UserKeyHash(zoe.user_key_hash()),
            &zoe.user,
            DsRequest::JoinGroup(JoinGroup {
                group_id: group_id(),
                update: join,
                client_queue_config: zoe.config(),
            }),
        ),
        (
            DsSenderId::UserKeyHash(zoe.user_key_hash()),
            &zoe.user,
            DsRequest::ExternalCommitInfo(ExternalCommitInfo {
                group_id: group_id(),
                sender: zoe.leaf.public().clone(),
                credential: Raw::of(&zoe.credential(&zoe.leaf).credential),
                user_key: Some(zoe.vouch(zoe.leaf.public())),
                join_proof: None,
            }),
        ),
        (
            DsSenderId::KeyPackageRef(yves.reference(&key_package)),
            &yves.leaf,
            DsRequest::WelcomeInfo(WelcomeInfo {
                group_id: group_id(),
                sender: yves.leaf.public().clone(),
                epoch: scenario.state.epoch(),
            }),
        ),
    ];
    for (sender, signer, request) in other {
        let name = request.name();
        let message = sign_in(context(&scenario), sender, request, signer);
        let refused = scenario.submit(&message);
        assert_eq!(refused, Err(Reject::Unauthenticated("the request names two groups")), "{name}");
    }
}
