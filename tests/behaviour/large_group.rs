//! Groups that come in whole, and large ones: what is refused at the door, and that real clients can use what is not.

use std::sync::Arc;

use mimid::{
    client::core::{Content, Event, Member, NewProposal, Operation, PolicyChange, Right, SUITES},
    crypto::{MlsCrypto, SigningKey},
    group::{Hub, Reject, import, mls::Tree},
    wire::{
        codec::{List, append_vector},
        extensions::{KeyPackageClass, Role, SignatureScheme},
        ids::{ClientUri, Domain, LeafIndex},
        import::{GroupImport, MemberImport},
    },
};

use super::support::{
    hosted::{self, Hosted},
    synth::{Spoil, Synth, any_token, system_now},
};

fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

fn hub() -> Arc<Hub> {
    hosted::hub(&domain(), |_| {})
}

fn synth(hub: &Hub, size: usize) -> Synth {
    Synth::new(&domain(), hub.keys.all()[0].key.public(), size)
}

/// A real device of the group's admin.
fn admin(synth: &Synth) -> Member {
    let first = &synth.members[0];
    hosted::device(&first.client, "laptop", &first.user_key)
}

fn say(group: &mut Hosted, from: &Member, text: &str) {
    group.operate(from, Operation::Send { content: Content::text(text).encode() });
}

fn texts(member: &Member) -> Vec<String> {
    let events = member.events(0, 1000).unwrap().into_iter();
    let text = |(_, event)| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    events.filter_map(text).collect()
}

fn key_package(of: &Member, group: &Hosted) -> Vec<u8> {
    let mut made = of.key_packages(KeyPackageClass::Group, SUITES[0], false, 1, group.now).unwrap();
    made.remove(0).into_vec()
}

fn agree(group: &Hosted, members: &[&Member]) {
    let first = members[0].group(&group.id()).unwrap();
    assert_eq!(first.epoch, Some(group.state.epoch()));
    for member in members {
        let view = member.group(&group.id()).unwrap();
        assert_eq!((view.epoch, &view.authenticator), (first.epoch, &first.authenticator));
    }
}

/// Real clients do everything in `group` that members can do, among its synthesised members.
fn use_everything(group: &mut Hosted, synth: &Synth) {
    let size = synth.members.len();
    let alice = admin(synth);
    group.join(&alice);
    let second = &synth.members[1];
    let bob = hosted::device(&second.client, "laptop", &second.user_key);
    group.join(&bob);
    group.deliver(&alice);
    say(group, &alice, "hello");
    group.deliver(&bob);

    // a new user by add, with its own further client, both with a Welcome
    let carol = hosted::new_client(&domain(), "carol", "phone");
    let tablet = hosted::device(carol.client(), "tablet", &carol.identity().user_key);
    let key_packages = vec![key_package(&carol, group)];
    group.operate(&alice, Operation::AddUsers { key_packages });
    group.deliver(&bob);
    group.deliver(&carol);
    let key_packages = vec![key_package(&tablet, group)];
    group.operate(&carol, Operation::AddClients { key_packages });
    for member in [&alice, &bob, &tablet] {
        group.deliver(member);
    }
    agree(group, &[&alice, &bob, &carol, &tablet]);
    assert_eq!(group.state.members().count(), size + 4);

    // updates, a policy, a filter
    group.operate(&bob, Operation::UpdateClient { rotate_key: true });
    group.deliver(&alice);
    let may_add = PolicyChange::May { what: Right::Add, role: Role::Moderator };
    group.operate(&alice, Operation::UpdateGroup { changes: vec![may_add] });
    group.operate(&alice, Operation::UpdateQueueInfo);
    for member in [&bob, &carol, &tablet] {
        group.deliver(member);
    }
    assert_eq!(group.state.policy().may_add, Role::Moderator);

    // a proposal, which somebody else commits
    group.operate(&tablet, Operation::Propose { proposals: vec![NewProposal::Leave] });
    for member in [&alice, &bob, &carol] {
        group.deliver(member);
    }
    group.operate(&alice, Operation::UpdateClient { rotate_key: false });
    for member in [&bob, &carol] {
        group.deliver(member);
    }
    assert_eq!(group.state.members().count(), size + 3);

    // synthesised members can be removed, and their leaves taken again
    let gone = synth.members[size - 1].client.user();
    group.operate(&alice, Operation::RemoveUsers { users: vec![gone] });
    for member in [&bob, &carol] {
        group.deliver(member);
    }
    group.operate(&bob, Operation::Resync);
    for member in [&alice, &carol] {
        group.deliver(member);
    }
    say(group, &bob, "after all that");
    for member in [&alice, &carol] {
        group.deliver(member);
    }
    agree(group, &[&alice, &bob, &carol]);
    assert_eq!(texts(&bob), ["hello"]);
    assert_eq!(texts(&alice), ["after all that"]);
    assert_eq!(texts(&carol), ["after all that"]);
    assert_eq!(group.state.members().count(), size + 2);
}

#[test]
fn an_imported_tree_is_byte_for_byte_the_one_that_openmls_makes_itself() {
    let hub = hub();
    for size in [1, 2, 3, 5, 8, 13, 100] {
        let group = synth(&hub, size).import(any_token);
        let imported = Tree::import(&group.ratchet_tree, &group.group_info).unwrap();
        let crypto = MlsCrypto::default();
        let made = Tree::from_external(&crypto, &group.ratchet_tree, &group.group_info).unwrap();
        assert_eq!(imported.snapshot().unwrap(), made.snapshot().unwrap(), "{size} members");
        assert_eq!(imported.export(), group.ratchet_tree);
    }
}

#[test]
fn every_member_of_an_imported_group_is_there_with_its_queue() {
    let hub = hub();
    let synth = synth(&hub, 13);
    let creation = import::judge(&hub, &synth.import(any_token), system_now()).unwrap();
    let members: Vec<_> = creation
        .state
        .members()
        .map(|(leaf, member)| (leaf.0, member.client.clone(), member.config.queue_token.clone()))
        .collect();
    let expected: Vec<_> = (0..13u32)
        .map(|leaf| (leaf, synth.members[leaf as usize].client.clone(), any_token(leaf as usize)))
        .collect();
    assert_eq!(members, expected);
    assert_eq!(creation.binds.len(), 13);
    assert_eq!(creation.effects.inbox.len(), 13, "each client gets a subscription");
    assert_eq!(creation.effects.records.len(), 1);
}

#[test]
fn a_group_with_leaves_that_expired_long_ago_is_imported_and_used() {
    let hub = hub();
    let mut synth = synth(&hub, 21);
    synth.expired = vec![0, 2, 12];
    let import = synth.import(any_token);
    let crypto = MlsCrypto::default();
    let strict = Tree::from_external(&crypto, &import.ratchet_tree, &import.group_info);
    assert!(strict.is_err(), "openmls by itself does not take it: {strict:?}");
    let mut group = Hosted::import(&hub, &import, system_now()).unwrap();
    use_everything(&mut group, &synth);
}

/// What importing the group says where it is made wrong by `spoil` and then by `bend`.
fn refused(spoil: impl FnOnce(&mut Synth), bend: impl FnOnce(&mut GroupImport)) -> Reject {
    let hub = hosted::hub(&domain(), |settings| settings.members_max = 12);
    let mut synth = synth(&hub, 12);
    synth.policy.members_max = 12;
    let sound = import::judge(&hub, &synth.import(any_token), system_now());
    assert!(sound.is_ok(), "only what is made wrong is wrong: {sound:?}");
    spoil(&mut synth);
    let mut import = synth.import(any_token);
    bend(&mut import);
    import::judge(&hub, &import, system_now()).expect_err("an import that must be refused")
}

fn as_it_is(_: &mut GroupImport) {}

fn bent(change: impl FnOnce(Vec<MemberImport>) -> Vec<MemberImport>) -> Reject {
    refused(|_| {}, |import| import.members = List::new(change(import.members.to_vec())).unwrap())
}

#[test]
fn a_tree_or_group_info_that_is_not_what_was_signed_is_refused() {
    for spoil in [Spoil::TreeHash, Spoil::InfoSignature, Spoil::LeafSignature, Spoil::ParentHash] {
        let reject = refused(|synth| synth.spoil = Some(spoil), as_it_is);
        assert!(matches!(reject, Reject::InvalidGroupInfo(_)), "{spoil:?}: {reject:?}");
    }
}

#[test]
fn a_group_info_with_more_than_external_pub_is_refused() {
    const RATCHET_TREE: u16 = 2;
    let mut empty = Vec::new();
    append_vector(&mut empty, &[]);
    for (kind, value) in [(RATCHET_TREE, empty), (0xF1B7, b"what is this".to_vec())] {
        let reject = refused(|synth| synth.info_extension = Some((kind, value)), as_it_is);
        assert!(matches!(reject, Reject::InvalidGroupInfo(_)), "{kind}: {reject:?}");
    }
}

#[test]
fn a_group_that_is_not_under_this_hubs_key_is_refused() {
    let none = refused(|synth| synth.external_senders = None, as_it_is);
    let foreign = refused(
        |synth| {
            let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
            synth.external_senders = Synth::new(&domain(), key.public(), 1).external_senders;
        },
        as_it_is,
    );
    for reject in [none, foreign] {
        let Reject::InvalidGroupInfo(why) = &reject else { panic!("{reject:?}") };
        assert!(why.contains("external_senders"), "{why}");
    }
}

#[test]
fn members_without_user_key_or_in_the_group_twice_are_refused() {
    let nobody = refused(|synth| synth.without_user_key = Some(3), as_it_is);
    assert!(matches!(nobody, Reject::InvalidGroupInfo(_)), "{nobody:?}");
    let twice =
        refused(|synth| synth.members[5].client = synth.members[4].client.clone(), as_it_is);
    assert!(matches!(twice, Reject::InvalidGroupInfo(_)), "{twice:?}");
    // another user's key for a further device of the same user
    let stranger = refused(
        |synth| {
            let user = synth.members[4].client.user();
            synth.members[5].client = ClientUri::of(&user, "other").unwrap();
        },
        as_it_is,
    );
    assert!(matches!(stranger, Reject::InvalidGroupInfo(_)), "{stranger:?}");
    let key =
        refused(|synth| synth.members[5].leaf_key = synth.members[4].leaf_key.clone(), as_it_is);
    assert!(matches!(key, Reject::InvalidGroupInfo(_)), "{key:?}");
}

#[test]
fn a_queue_too_few_too_many_twice_or_elsewhere_is_refused() {
    let few = bent(|mut members| {
        members.remove(7);
        members
    });
    assert!(matches!(few, Reject::Malformed(_)), "{few:?}");
    let many = bent(|mut members| {
        let leaf_index = LeafIndex(12);
        members.push(MemberImport { leaf_index, ..members[0].clone() });
        members
    });
    assert!(matches!(many, Reject::Malformed(_)), "{many:?}");
    let twice = bent(|mut members| {
        members.push(members[0].clone());
        members
    });
    assert!(matches!(twice, Reject::Malformed(_)), "{twice:?}");
    let elsewhere = bent(|mut members| {
        members[3].client_queue_config.domain = Domain::new("b.example").unwrap();
        members
    });
    assert!(matches!(elsewhere, Reject::NotAuthorized(_)), "{elsewhere:?}");
}

#[test]
fn a_group_without_admin_of_another_provider_or_too_large_is_refused() {
    let nobody = refused(|synth| synth.policy.roles = List::default(), as_it_is);
    assert!(matches!(nobody, Reject::InvalidGroupInfo(_)), "{nobody:?}");
    let foreign = refused(
        |synth| {
            let other = Domain::new("b.example").unwrap();
            synth.id = mimid::wire::ids::GroupId::of(&other, [7; 16]);
        },
        as_it_is,
    );
    assert!(matches!(foreign, Reject::InvalidGroupId(_)), "{foreign:?}");
    let renamed = refused(
        |_| {},
        |import| import.group_id = mimid::wire::ids::GroupId::of(&domain(), [7; 16]),
    );
    assert!(matches!(renamed, Reject::InvalidGroupInfo(_)), "{renamed:?}");
    let large = refused(
        |synth| {
            let key = hub().keys.all()[0].key.clone();
            let senders = synth.external_senders.clone();
            *synth = Synth::new(&domain(), key.public(), 13);
            synth.external_senders = senders;
        },
        as_it_is,
    );
    assert_eq!(large, Reject::TooMany { what: "members", limit: 12 });
}
