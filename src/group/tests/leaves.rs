//! What a leaf must be, at every way in. PROTOCOL.md §1, "Users inside a group".

use openmls::prelude as mls;

use super::rogue::{Rogue, ed25519, sign, vouch};
use super::scenario::{Scenario, Setup, uri};
use crate::{
    crypto::SigningKey,
    group::Reject,
    wire::{
        ds::{Add, DsMessage, DsRequest, DsSenderId, GroupUpdate, ResyncClient},
        extensions::{JoinPolicy, KeyPackageClass, Role},
        ids::Timestamp,
    },
};

fn open(policy: &mut crate::wire::extensions::GroupPolicy) {
    policy.join = JoinPolicy::Open;
    policy.may_update = Role::Member;
}

fn scene() -> (Scenario, Rogue, Rogue) {
    let mut scenario = Setup::policy(open).group_of(["alice/phone", "bob/phone"]);
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let trudy = Rogue::member(&mut scenario, "alice/phone", "trudy/phone");
    mallory.follow(&scenario);
    (scenario, mallory, trudy)
}

fn bobs_key(scenario: &mut Scenario) -> SigningKey {
    scenario.client("bob/phone").identity().user_key.clone()
}

/// Newcomers that must not come in, each with why not.
fn impostors(scenario: &mut Scenario) -> Vec<(&'static str, Rogue)> {
    let bob = bobs_key(scenario);
    let mut without = Rogue::new("zoe/phone");
    without.user_key = Some(None);
    let mut borrowed = Rogue::new("zoe/phone");
    borrowed.user_key = Some(Some(vouch(&bob, &uri("bob/phone"), ed25519().public())));
    let mut other_key = Rogue::new("zoe/phone");
    other_key.user_key = Some(Some(other_key.vouch(ed25519().public())));
    let mut nobody = Rogue::new("zoe/phone");
    nobody.user_key = Some(Some(vouch(&nobody.user, &uri("yves/phone"), nobody.leaf.public())));
    vec![
        ("no user key", without),
        ("another's user key, for another leaf key", borrowed),
        ("its user key vouches for another leaf key", other_key),
        ("its user key vouches for another client", nobody),
        ("a device in another's name", Rogue::new("bob/tablet")),
        ("another user with the same user key", Rogue::of_user("zoe/phone", bob.clone())),
        ("the client is in the group", Rogue::of_user("bob/phone", bob)),
    ]
}

fn add_of(update: GroupUpdate) -> Add {
    Add {
        commit: update.commit,
        welcome: update.welcome.expect("an Add"),
        group_info: update.group_info,
    }
}

fn adds(scenario: &Scenario, by: &mut Rogue, new: &[mls::KeyPackage]) -> DsMessage {
    let update = by.commit(|builder| builder.propose_adds(new.to_vec()));
    by.request(scenario, DsRequest::AddUsers(add_of(update)))
}

fn invalid<T: std::fmt::Debug>(what: &str, refused: &Result<T, Reject>) {
    let is = matches!(
        refused,
        Err(Reject::InvalidCommit(_) | Reject::InvalidProposal { .. } | Reject::Unauthenticated(_))
    );
    assert!(is, "{what}: {refused:?}");
}

#[test]
fn impostor_is_not_added_by_commit_or_proposal() {
    let (mut scenario, mut mallory, _) = scene();
    for (what, impostor) in impostors(&mut scenario) {
        let key_package = impostor.key_package();
        let request = adds(&scenario, &mut mallory, std::slice::from_ref(&key_package));
        invalid(what, &scenario.submit(&request));
        let group = mallory.group.as_mut().unwrap();
        let (message, reference) =
            group.propose_add_member(&mallory.provider, &mallory.leaf, &key_package).unwrap();
        let storage = &mallory.provider.storage;
        group.remove_pending_proposal(storage, &reference).unwrap();
        let request = mallory.propose(&scenario, &message);
        invalid(what, &scenario.submit(&request));
        let asked = impostor.ask_to_join(&scenario, None);
        invalid(what, &scenario.submit(&asked));
    }
    let (one, two) = (Rogue::new("zoe/phone"), Rogue::new("zoe/laptop"));
    let both = [one.key_package(), two.key_package()];
    let request = adds(&scenario, &mut mallory, &both);
    invalid("two user keys for one new user", &scenario.submit(&request));
    let request = adds(&scenario, &mut mallory, &both[..1]);
    scenario.submit(&request).unwrap();
}

#[test]
fn impostor_does_not_join_by_external_commit() {
    let (mut scenario, mallory, _) = scene();
    for (what, mut impostor) in impostors(&mut scenario) {
        let request = impostor.join(&scenario);
        invalid(what, &scenario.submit(&request));
    }
    // with a member's signature key openmls replaces that member's leaf
    let mut thief = Rogue::new("zoe/phone");
    thief.leaf = mallory.leaf.clone();
    let request = thief.join(&scenario);
    invalid("another's leaf", &scenario.submit(&request));
}

#[test]
fn resync_changes_neither_client_nor_user() {
    let (mut scenario, mallory, _) = scene();
    let info = scenario.state.info().unwrap();
    let leaf = DsSenderId::LeafIndex(mallory.leaf_index());
    let resync = |scenario: &Scenario, mut rogue: Rogue| {
        // openmls replaces the leaf that has the same signature key
        rogue.leaf = mallory.leaf.clone();
        let request = DsRequest::ResyncClient(ResyncClient {
            group_id: scenario.id.clone(),
            sender: mallory.leaf.public().clone(),
            update: rogue.external_commit(&info, Vec::new()),
            client_queue_config: rogue.config(),
        });
        sign(scenario, leaf.clone(), request, &mallory.leaf)
    };
    for (what, rogue) in [
        ("another client", Rogue::of_user("mallory/laptop", mallory.user.clone())),
        ("another user key", Rogue::new("mallory/phone")),
        ("another user", Rogue::new("zoe/phone")),
    ] {
        let request = resync(&scenario, rogue);
        invalid(what, &scenario.submit(&request));
    }
    let request = resync(&scenario, Rogue::of_user("mallory/phone", mallory.user.clone()));
    scenario.submit(&request).unwrap();
    scenario.agree();
}

fn propose_update(
    scenario: &Scenario,
    rogue: &mut Rogue,
    key: &SigningKey,
    credential: mls::CredentialWithKey,
    parameters: mls::LeafNodeParameters,
) -> DsMessage {
    let group = rogue.group.as_mut().unwrap();
    let bundle = mls::NewSignerBundle { signer: key, credential_with_key: credential };
    let (message, reference) = group
        .propose_self_update_with_new_signer(&rogue.provider, &rogue.leaf, bundle, parameters)
        .unwrap();
    group.remove_pending_proposal(&rogue.provider.storage, &reference).unwrap();
    rogue.propose(scenario, &message)
}

#[test]
fn leaf_never_changes_its_client_or_user_nor_takes_anothers_key() {
    let (mut scenario, mut mallory, trudy) = scene();
    let new = ed25519();
    let other_user = ed25519();
    let cases: Vec<(&str, SigningKey, mls::CredentialWithKey, mls::LeafNodeParameters)> = vec![
        (
            "another's signature key",
            trudy.leaf.clone(),
            mallory.credential(&trudy.leaf),
            mallory.leaf_parameters(&trudy.leaf),
        ),
        (
            "another client of the same user",
            new.clone(),
            Rogue::of_user("mallory/laptop", mallory.user.clone()).credential(&new),
            Rogue::of_user("mallory/laptop", mallory.user.clone()).leaf_parameters(&new),
        ),
        (
            "another user key",
            new.clone(),
            mallory.credential(&new),
            Rogue::of_user("mallory/phone", other_user).leaf_parameters(&new),
        ),
        (
            "the old user key's word, which is for the old key",
            new.clone(),
            mallory.credential(&new),
            mallory.leaf_parameters(&mallory.leaf),
        ),
    ];
    for (what, key, credential, parameters) in cases {
        let shaped = parameters.clone();
        let update = mallory.commit_with(Some((&key, credential.clone())), |builder| {
            builder.leaf_node_parameters(shaped)
        });
        let request = mallory.request(&scenario, DsRequest::UpdateClient(update));
        invalid(what, &scenario.submit(&request));
        let request = propose_update(&scenario, &mut mallory, &key, credential, parameters);
        invalid(what, &scenario.submit(&request));
    }
    let (credential, parameters) = (mallory.credential(&new), mallory.leaf_parameters(&new));
    let request = propose_update(&scenario, &mut mallory, &new, credential, parameters);
    scenario.submit(&request).unwrap();
    scenario.deliver_all();
    scenario.act("bob/phone", super::scenario::update()).unwrap();
    scenario.agree();
}

#[test]
fn key_package_is_of_the_right_class_life_and_home() {
    let (mut scenario, mut mallory, _) = scene();
    let mut connection = Rogue::new("zoe/phone");
    connection.class = KeyPackageClass::Connection;
    let mut long = Rogue::new("zoe/phone");
    long.days = 101;
    let mut stray = Rogue::new("zoe/phone");
    stray.queue = Some(crate::wire::extensions::ClientQueueConfig {
        domain: crate::wire::ids::Domain::new("b.example").unwrap(),
        ..stray.config()
    });
    for bad in [&connection, &long, &stray] {
        let good = Rogue::new("yves/phone").key_package();
        let request = adds(&scenario, &mut mallory, &[good, bad.key_package()]);
        let refused = scenario.submit(&request);
        assert!(matches!(refused, Err(Reject::InvalidKeyPackage { index: 1, .. })), "{refused:?}");
        let asked = bad.ask_to_join(&scenario, None);
        let refused = scenario.submit(&asked);
        assert!(matches!(refused, Err(Reject::InvalidKeyPackage { .. })), "{refused:?}");
    }
    let zoe = Rogue::new("zoe/phone");
    let request = adds(&scenario, &mut mallory, &[zoe.key_package()]);
    let then = scenario.now;
    scenario.now = Timestamp(then.0 + 31 * 86_400_000);
    let mut late = request.clone();
    late.context.timestamp = scenario.now;
    let late = super::rogue::sign_in(late.context, late.sender_id, late.request, &mallory.leaf);
    let refused = scenario.submit(&late);
    assert!(matches!(refused, Err(Reject::InvalidKeyPackage { .. })), "{refused:?}");
    scenario.now = then;
    scenario.submit(&request).unwrap();
}
