//! Commits and messages that a hub must not take. PROTOCOL.md §2, checks 1, 7 and 9 to 12.

use openmls::prelude as mls;

use super::rogue::{Rogue, sign, unknown};
use super::scenario::{Scenario, Setup, policy};
use crate::{
    client::core::{NewProposal, Operation, PolicyChange},
    group::{Reject, hub::external_sender},
    policy::incoming::adds_by_value,
    wire::{
        codec::{List, Raw, append_vector, encode},
        ds::{
            Add, DeleteGroup, DsRequest, DsResponseBody, DsSenderId, GroupUpdate, PartialGroupInfo,
            Propose, ResyncClient, SendMessage, UpdateGroup,
        },
        extensions::{GROUP_POLICY, JoinPolicy, Role, Signature, USER_KEY},
    },
};

fn scene() -> (Scenario, Rogue) {
    scene_with(Setup::default())
}

/// A group in which `mallory`, a rogue, is an admin.
fn scene_with(setup: Setup) -> (Scenario, Rogue) {
    let mut scenario = setup.group_of(["alice/phone", "bob/phone"]);
    let mut rogue = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let change = PolicyChange::Role { user: rogue.client.user(), role: Role::Admin };
    scenario.act("alice/phone", policy(change)).unwrap();
    scenario.deliver_all();
    rogue.follow(&scenario);
    (scenario, rogue)
}

fn add(update: GroupUpdate, welcome_of: &GroupUpdate) -> Add {
    let welcome = update.welcome.or_else(|| welcome_of.welcome.clone()).unwrap();
    Add { commit: update.commit, welcome, group_info: update.group_info }
}

#[test]
fn commit_holds_what_its_operation_says() {
    let (mut scenario, mut rogue) = scene();
    let zoe = Rogue::new("zoe/phone").key_package();
    let own = Rogue::of_user("mallory/laptop", rogue.user.clone()).key_package();
    let bob = mls::LeafNodeIndex::new(scenario.leaf("bob/phone").0);
    let context = rogue.group().extensions().clone();
    let adds_user = rogue.commit(|b| b.propose_adds([zoe.clone()]));
    let adds_own = rogue.commit(|b| b.propose_adds([own]));
    let removes = rogue.commit(|b| b.propose_removals([bob]));
    let updates = rogue.commit(|b| b);
    let context_only = rogue.commit(|b| b.propose_group_context_extensions(context).unwrap());
    let mixed = rogue.commit(|b| b.propose_adds([zoe]).propose_removals([bob]));
    let id = scenario.id.clone();
    let delete = |update: &GroupUpdate| {
        DsRequest::DeleteGroup(DeleteGroup { group_id: id.clone(), update: update.clone() })
    };
    let group =
        |update: &GroupUpdate| DsRequest::UpdateGroup(UpdateGroup { update: update.clone() });
    let requests = vec![
        DsRequest::AddUsers(add(adds_own.clone(), &adds_own)),
        DsRequest::AddUsers(add(removes.clone(), &adds_user)),
        DsRequest::AddUsers(add(updates.clone(), &adds_user)),
        DsRequest::AddUsers(add(mixed.clone(), &mixed)),
        DsRequest::AddClients(add(adds_user.clone(), &adds_user)),
        DsRequest::AddClients(add(removes.clone(), &adds_user)),
        DsRequest::RemoveUsers(updates.clone()),
        DsRequest::RemoveUsers(adds_user.clone()),
        DsRequest::RemoveUsers(mixed.clone()),
        DsRequest::RemoveClients(removes.clone()),
        DsRequest::RemoveClients(updates.clone()),
        DsRequest::UpdateClient(removes.clone()),
        DsRequest::UpdateClient(adds_user.clone()),
        DsRequest::UpdateClient(context_only.clone()),
        group(&updates),
        group(&removes),
        delete(&updates),
        delete(&removes),
        delete(&context_only),
    ];
    for (index, request) in requests.into_iter().enumerate() {
        let message = rogue.request(&scenario, request);
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{index}: {refused:?}");
    }
    let message = rogue.request(&scenario, DsRequest::RemoveUsers(removes));
    scenario.submit(&message).unwrap();
}

#[test]
fn users_are_removed_with_all_their_clients() {
    let (mut scenario, mut rogue) = scene();
    scenario.add("bob/phone", "bob/laptop").unwrap();
    rogue.follow(&scenario);
    let phone = mls::LeafNodeIndex::new(scenario.leaf("bob/phone").0);
    let laptop = mls::LeafNodeIndex::new(scenario.leaf("bob/laptop").0);
    let half = rogue.commit(|b| b.propose_removals([phone]));
    let message = rogue.request(&scenario, DsRequest::RemoveUsers(half));
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{refused:?}");
    let whole = rogue.commit(|b| b.propose_removals([phone, laptop]));
    let message = rogue.request(&scenario, DsRequest::RemoveUsers(whole));
    scenario.submit(&message).unwrap();
}

#[test]
fn pre_shared_keys_and_unknown_proposals_are_refused() {
    let (mut scenario, mut rogue) = scene();
    let custom = mls::CustomProposal::new(0xF777, vec![1, 2, 3]);
    let group = rogue.group.as_mut().unwrap();
    let (proposal, _) =
        group.propose_custom_proposal_by_reference(&rogue.provider, &rogue.leaf, custom).unwrap();
    let message = rogue.propose(&scenario, &proposal);
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");

    let psk = openmls::schedule::PreSharedKeyId::new(
        scenario.suite(),
        &rogue.provider.crypto,
        openmls::schedule::Psk::External(openmls::schedule::ExternalPsk::new(vec![7; 16])),
    )
    .unwrap();
    psk.store(&rogue.provider, &[8; 32]).unwrap();
    let group = rogue.group.as_mut().unwrap();
    let (proposal, _) =
        group.propose_pre_shared_key(&rogue.provider, &rogue.leaf, psk.clone()).unwrap();
    let message = rogue.propose(&scenario, &proposal);
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    let by_value = rogue.commit(|b| {
        b.add_proposal(mls::Proposal::PreSharedKey(Box::new(mls::PreSharedKeyProposal::new(psk))))
    });
    let message = rogue.request(&scenario, DsRequest::UpdateClient(by_value));
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
}

/// A proposal that no hub takes, as bytes: openmls makes some of them only for itself, and others not at all.
struct Never {
    what: &'static str,
    kind: u16,
    body: Vec<u8>,
    /// Why not: as a proposal, by value in a member's commit, by value in an external one. Whoever sees it first says so,
    /// this hub or openmls.
    why: [&'static str; 3],
}

fn never_taken(scenario: &Scenario) -> Vec<Never> {
    let opaque = |bytes: &[u8]| {
        let mut body = Vec::new();
        append_vector(&mut body, bytes);
        body
    };
    // mls10, ciphersuite 1
    let re_init = [opaque(b"mimi://a.example/g/next"), vec![0, 1, 0, 1], opaque(&[])].concat();
    let external_psk = [vec![1], opaque(&[7; 16]), opaque(&[8; 32])].concat();
    let mut context = scenario.state.tree.context().extensions().clone();
    context.remove(mls::ExtensionType::ExternalSenders);
    let never = |what, kind, body, why| Never { what, kind, body, why };
    let psk = "type 0x0004 are refused";
    let no_hub = "drops external_senders";
    let unsupported = "not supported by all";
    let inline = "Found inline Add or Update proposals";
    vec![
        never("a pre-shared key", 4, external_psk, [psk; 3]),
        never("ReInit", 5, re_init, ["type 0x0005 are refused", "type 0x0005 are refused", inline]),
        never(
            "ExternalInit",
            6,
            opaque(&[9; 32]),
            [
                "type 0x0006 are refused",
                "ExternalInit proposal in regular commit",
                "Multiple ExternalInit",
            ],
        ),
        never("no external_senders", 7, encode(&context), [no_hub, no_hub, inline]),
        never(
            "a type that one member supports",
            SUPPORTED,
            opaque(&[1, 2, 3]),
            ["type 0xf777 are refused", unsupported, unsupported],
        ),
        never(
            "a type that nobody knows",
            0xF123,
            opaque(b"what is this"),
            ["type 0xf123 are refused", unsupported, unsupported],
        ),
        never(
            "a type of a later draft",
            8,
            opaque(&[0, 1]),
            ["type 0x0008 are refused", unsupported, unsupported],
        ),
        never("GREASE", 0x0A0A, opaque(&[]), ["type 0x0a0a are refused", unsupported, unsupported]),
    ]
}

fn says(what: &str, expected: &str, refused: &Result<DsResponseBody, Reject>) {
    match refused {
        Err(Reject::InvalidProposal { why, .. } | Reject::InvalidCommit(why)) => {
            assert!(why.contains(expected), "{what}: {why}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn what_a_hub_never_takes_is_refused_by_reference_and_by_value() {
    let (mut scenario, mut rogue) = scene();
    let plain = rogue.commit(|b| b);
    let same = rogue.with_proposals(&scenario, &plain.commit, &[]);
    assert_eq!(same, plain.commit, "only the proposals are wrong");
    for Never { what, kind, body, why: [by_reference, by_value, _] } in never_taken(&scenario) {
        let bytes = [kind.to_be_bytes().as_slice(), &body].concat();
        let proposal = rogue.handmade_proposal(&scenario, &bytes);
        let request = DsRequest::Propose(Propose { proposals: List::new(vec![proposal]).unwrap() });
        let message = rogue.request(&scenario, request);
        says(what, by_reference, &scenario.submit(&message));

        let in_commit = [&[BY_VALUE], bytes.as_slice()].concat();
        let commit = rogue.with_proposals(&scenario, &plain.commit, &[in_commit]);
        let update = GroupUpdate { commit, ..plain.clone() };
        for request in [
            DsRequest::UpdateClient(update.clone()),
            DsRequest::RemoveUsers(update.clone()),
            DsRequest::UpdateGroup(UpdateGroup { update }),
        ] {
            let message = rogue.request(&scenario, request);
            says(what, by_value, &scenario.submit(&message));
        }
    }
    let message = rogue.request(&scenario, DsRequest::UpdateClient(plain));
    scenario.submit(&message).unwrap();
    scenario.agree();
}

#[test]
fn a_type_that_all_members_support_is_unknown_to_the_hub_all_the_same() {
    let (mut scenario, mut rogue) = scene();
    let others = ["alice/phone", "bob/phone"];
    let others = others.map(|name| mls::LeafNodeIndex::new(scenario.leaf(name).0));
    let alone = rogue.commit(|b| b.propose_removals(others));
    let message = rogue.request(&scenario, DsRequest::RemoveUsers(alone));
    scenario.submit(&message).unwrap();
    // it forgot its own commit: it enters the group anew
    let leaf = rogue.leaf_index();
    let info = scenario.state.info().unwrap();
    let update = rogue.external_commit(&info, Vec::new());
    let resync = ResyncClient {
        group_id: scenario.id.clone(),
        sender: rogue.leaf.public().clone(),
        update,
        client_queue_config: rogue.config(),
    };
    let request = DsRequest::ResyncClient(resync);
    let message = sign(&scenario, DsSenderId::LeafIndex(leaf), request, &rogue.leaf);
    scenario.submit(&message).unwrap();

    let plain = rogue.commit(|b| b);
    let mut body = Vec::new();
    append_vector(&mut body, &[1, 2, 3]);
    let by_value = [&[BY_VALUE], SUPPORTED.to_be_bytes().as_slice(), &body].concat();
    let commit = rogue.with_proposals(&scenario, &plain.commit, &[by_value]);
    let update = GroupUpdate { commit, ..plain.clone() };
    let message = rogue.request(&scenario, DsRequest::UpdateClient(update));
    says("alone", "type 0xf777 are refused", &scenario.submit(&message));
    let message = rogue.request(&scenario, DsRequest::UpdateClient(plain));
    scenario.submit(&message).unwrap();
}

#[test]
fn what_a_hub_never_takes_is_refused_in_an_external_commit() {
    let open = Setup::policy(|policy| policy.join = JoinPolicy::Open);
    let (mut scenario, _) = scene_with(open);
    let mut zoe = Rogue::new("zoe/phone");
    let plain = zoe.external_commit(&scenario.state.info().unwrap(), Vec::new());
    let same = zoe.with_proposals(&scenario, &plain.commit, &[]);
    assert_eq!(same, plain.commit, "only the proposals are wrong");
    for Never { what, kind, body, why: [_, _, external] } in never_taken(&scenario) {
        let by_value = [&[BY_VALUE], kind.to_be_bytes().as_slice(), &body].concat();
        let commit = zoe.with_proposals(&scenario, &plain.commit, &[by_value]);
        let message = zoe.join_with(&scenario, GroupUpdate { commit, ..plain.clone() });
        says(what, external, &scenario.submit(&message));
    }
    let message = zoe.join_with(&scenario, plain);
    scenario.submit(&message).unwrap();
    scenario.agree();
}

#[test]
fn group_context_keeps_what_must_stay() {
    let (mut scenario, mut rogue) = scene();
    let context = rogue.group().extensions().clone();
    let required = |extensions: &[u16], proposals: &[mls::ProposalType]| {
        let types: Vec<_> = extensions.iter().map(|it| mls::ExtensionType::Unknown(*it)).collect();
        mls::Extension::RequiredCapabilities(mls::RequiredCapabilitiesExtension::new(
            &types,
            proposals,
            &[],
        ))
    };
    let self_remove = mls::ProposalType::SelfRemove;
    let senders = |senders| mls::Extension::ExternalSenders(senders);
    let key = &scenario.hub.key(scenario.state.tree.scheme()).unwrap();
    let hub = external_sender(&super::scenario::domain(), key);
    let other = external_sender(&super::scenario::domain(), &super::rogue::ed25519());
    let changed = |extension: mls::Extension| {
        let mut new = context.clone();
        new.add_or_replace(extension).unwrap();
        new
    };
    let mut without = context.clone();
    without.remove(mls::ExtensionType::ExternalSenders);
    let cases = vec![
        ("without the hub", without),
        ("another hub key", changed(senders(vec![other.clone()]))),
        ("a second sender", changed(senders(vec![hub, other]))),
        ("fewer proposal types", changed(required(&[USER_KEY, GROUP_POLICY], &[]))),
        ("a malformed policy", changed(unknown(GROUP_POLICY, vec![1]))),
        (
            "proposal types that members do not have",
            changed(required(
                &[USER_KEY, GROUP_POLICY],
                &[self_remove, mls::ProposalType::Custom(0xF777)],
            )),
        ),
    ];
    for (what, extensions) in cases {
        let new = extensions.clone();
        let update = rogue.commit(|b| b.propose_group_context_extensions(new).unwrap());
        let request = DsRequest::UpdateGroup(UpdateGroup { update });
        let message = rogue.request(&scenario, request);
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{what}: {refused:?}");
        let group = rogue.group.as_mut().unwrap();
        let (proposal, reference) = group
            .propose_group_context_extensions(&rogue.provider, extensions, &rogue.leaf)
            .unwrap();
        group.remove_pending_proposal(&rogue.provider.storage, &reference).unwrap();
        let message = rogue.propose(&scenario, &proposal);
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{what}: {refused:?}");
    }
}

#[test]
fn removal_that_is_covered_is_not_repeated_by_value() {
    let (mut scenario, mut rogue) = scene();
    let leave = super::scenario::propose(crate::client::core::NewProposal::Leave);
    scenario.act("bob/phone", leave).unwrap();
    rogue.follow(&scenario);
    let covers = rogue.commit(|b| b.consume_proposal_store(true));
    let bob = scenario.leaf("bob/phone").0.to_be_bytes();
    let remove = [&[BY_VALUE], 3_u16.to_be_bytes().as_slice(), &bob].concat();
    let commit = rogue.with_proposals(&scenario, &covers.commit, &[remove]);
    let update = GroupUpdate { commit, ..covers.clone() };
    let message = rogue.request(&scenario, DsRequest::RemoveUsers(update));
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{refused:?}");
    let message = rogue.request(&scenario, DsRequest::UpdateClient(covers));
    scenario.submit(&message).unwrap();
    scenario.agree();
}

#[test]
fn policy_by_reference_is_committed_by_another() {
    let (mut scenario, mut rogue) = scene();
    let mut policy = scenario.state.policy().clone();
    policy.members_max = 77;
    let mut new = rogue.group().extensions().clone();
    new.add_or_replace(unknown(GROUP_POLICY, encode(&policy))).unwrap();
    let group = rogue.group.as_mut().unwrap();
    let (proposal, _) =
        group.propose_group_context_extensions(&rogue.provider, new, &rogue.leaf).unwrap();
    let message = rogue.propose(&scenario, &proposal);
    scenario.submit(&message).unwrap();
    scenario.agree();
    // one at a time
    let second = {
        let mut policy = scenario.state.policy().clone();
        policy.members_max = 78;
        let mut new = rogue.group().extensions().clone();
        new.add_or_replace(unknown(GROUP_POLICY, encode(&policy))).unwrap();
        rogue.commit(|b| b.propose_group_context_extensions(new).unwrap())
    };
    let request = DsRequest::UpdateGroup(UpdateGroup { update: second });
    let message = rogue.request(&scenario, request);
    assert!(matches!(scenario.submit(&message), Err(Reject::Pending { .. })));
    scenario.act("bob/phone", super::scenario::update()).unwrap();
    scenario.agree();
    assert_eq!(scenario.state.policy().members_max, 77);
}

#[test]
fn wire_format_and_content_type_are_those_of_the_operation() {
    let (mut scenario, mut rogue) = scene();
    let update = rogue.commit(|b| b);
    let request =
        DsRequest::SendMessage(SendMessage { application_message: update.commit.clone() });
    let message = rogue.request(&scenario, request);
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidMessage(_))));
    let request =
        DsRequest::Propose(Propose { proposals: List::new(vec![update.commit.clone()]).unwrap() });
    let message = rogue.request(&scenario, request);
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidMessage(_))));
    let none = DsRequest::Propose(Propose { proposals: List::default() });
    let message = rogue.request(&scenario, none);
    assert!(matches!(scenario.submit(&message), Err(Reject::Malformed(_))));

    let group = rogue.group.as_mut().unwrap();
    let application = group.create_message(&rogue.provider, &rogue.leaf, b"hello").unwrap();
    let application = Raw::of(&application);
    let as_commit = GroupUpdate { commit: application, ..update };
    let message = rogue.request(&scenario, DsRequest::UpdateClient(as_commit));
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidMessage(_))));
    let private = mls::MlsGroupJoinConfig::builder()
        .wire_format_policy(openmls::group::PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .build();
    rogue.group.as_mut().unwrap().set_configuration(&rogue.provider.storage, &private).unwrap();
    let encrypted = rogue.commit(|b| b);
    let application_message = encrypted.commit.clone();
    let message = rogue.request(&scenario, DsRequest::UpdateClient(encrypted));
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidMessage(_))));
    let request = DsRequest::SendMessage(SendMessage { application_message });
    let message = rogue.request(&scenario, request);
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidMessage(_))));
}

#[test]
fn group_info_is_the_new_epochs_and_signed_by_the_committers_new_key() {
    let (mut scenario, mut rogue) = scene();
    let new = super::rogue::ed25519();
    let (credential, parameters) = (rogue.credential(&new), rogue.leaf_parameters(&new));
    let good = rogue.commit_with(Some((&new, credential)), |b| b.leaf_node_parameters(parameters));
    let stale = scenario.state.info.partial.clone();
    let mut bytes = good.group_info.signature.as_slice().to_vec();
    bytes[5] ^= 1;
    let forged =
        PartialGroupInfo { signature: Signature::new(bytes).unwrap(), ..good.group_info.clone() };
    let other: crate::wire::mls::Extension =
        Raw::of(&mls::Extension::ApplicationId(mls::ApplicationIdExtension::new(b"more")));
    let external_pub = good.group_info.group_info_extensions[0].clone();
    let with_more = PartialGroupInfo {
        group_info_extensions: List::new(vec![external_pub, other.clone()]).unwrap(),
        ..good.group_info.clone()
    };
    let other_one = PartialGroupInfo {
        group_info_extensions: List::new(vec![other]).unwrap(),
        ..good.group_info.clone()
    };
    let empty =
        PartialGroupInfo { group_info_extensions: List::default(), ..good.group_info.clone() };
    for group_info in [stale, forged, with_more, other_one, empty] {
        let update = GroupUpdate { group_info, ..good.clone() };
        let message = rogue.request(&scenario, DsRequest::UpdateClient(update));
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::InvalidGroupInfo(_))), "{refused:?}");
    }
    let message = rogue.request(&scenario, DsRequest::UpdateClient(good));
    scenario.submit(&message).unwrap();
}

#[test]
fn welcome_is_there_exactly_when_somebody_is_added_and_for_exactly_those() {
    let (mut scenario, mut rogue) = scene();
    let (zoe, yves) = (Rogue::new("zoe/phone"), Rogue::new("yves/phone"));
    let (zoe, yves) = (zoe.key_package(), yves.key_package());
    let both = rogue.commit(|b| b.propose_adds([zoe.clone(), yves]));
    let one = rogue.commit(|b| b.propose_adds([zoe]));
    let none = rogue.commit(|b| b);
    let extra = GroupUpdate { welcome: one.welcome.clone(), ..none };
    let message = rogue.request(&scenario, DsRequest::UpdateClient(extra));
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidCommit(_))));
    for (commit, welcome) in [(&one, &both), (&both, &one)] {
        let mixed = GroupUpdate { welcome: welcome.welcome.clone(), ..commit.clone() };
        let request = DsRequest::AddUsers(add(mixed.clone(), &mixed));
        let message = rogue.request(&scenario, request);
        let refused = scenario.submit(&message);
        assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{refused:?}");
    }
    let no_welcome = Add { welcome: both.commit.clone(), ..add(both.clone(), &both) };
    let message = rogue.request(&scenario, DsRequest::AddUsers(no_welcome));
    assert!(matches!(scenario.submit(&message), Err(Reject::InvalidCommit(_))));
    let message = rogue.request(&scenario, DsRequest::AddUsers(add(both.clone(), &both)));
    scenario.submit(&message).unwrap();
}

#[test]
fn group_members_adds_and_bytes_are_capped() {
    let (mut scenario, mut rogue) = scene_with(Setup::with(|settings| {
        settings.members_max = 4;
        settings.adds_per_commit_max = 2;
        settings.application_bytes_max = 500;
        settings.handshake_bytes_max = 12_000;
    }));
    let new: Vec<_> =
        (0..3).map(|index| Rogue::new(&format!("new{index}/phone")).key_package()).collect();
    let three = rogue.commit(|b| b.propose_adds(new.clone()));
    let message = rogue.request(&scenario, DsRequest::AddUsers(add(three.clone(), &three)));
    assert!(matches!(scenario.submit(&message), Err(Reject::TooMany { limit: 2, .. })));
    // before MLS has looked at any of it
    let mut forged = encode(&three.commit);
    // in the signature; the two tags follow it
    let at = forged.len() - 2 * 33 - 1;
    forged[at] ^= 1;
    let forged = GroupUpdate { commit: Raw::new(forged).unwrap(), ..three.clone() };
    let message = rogue.request(&scenario, DsRequest::AddUsers(add(forged, &three)));
    assert!(matches!(scenario.submit(&message), Err(Reject::TooMany { limit: 2, .. })));
    let two = rogue.commit(|b| b.propose_adds(new[..2].to_vec()));
    let message = rogue.request(&scenario, DsRequest::AddUsers(add(two.clone(), &two)));
    assert!(matches!(scenario.submit(&message), Err(Reject::NotAuthorized(_))));
    for (bytes, fits) in [(501, false), (100, true)] {
        let group = rogue.group.as_mut().unwrap();
        let message = group.create_message(&rogue.provider, &rogue.leaf, &vec![0; bytes]).unwrap();
        let application_message = Raw::of(&message);
        let request = DsRequest::SendMessage(SendMessage { application_message });
        let message = rogue.request(&scenario, request);
        let answer = scenario.submit(&message);
        assert_eq!(answer.is_ok(), fits);
        assert!(fits || matches!(answer, Err(Reject::TooLarge { limit: 500, .. })));
    }
    let mut policy = scenario.state.policy().clone();
    let many = (0..400).map(|index: u32| crate::wire::extensions::RoleEntry {
        user_key_hash: crate::wire::ids::UserKeyHash(
            crate::wire::codec::Opaque::new(crate::crypto::sha256(&index.to_be_bytes())).unwrap(),
        ),
        role: Role::Moderator,
    });
    policy.roles = List::new(many.collect()).unwrap();
    let mut new = rogue.group().extensions().clone();
    new.add_or_replace(unknown(GROUP_POLICY, encode(&policy))).unwrap();
    let update = rogue.commit(|b| b.propose_group_context_extensions(new).unwrap());
    let message = rogue.request(&scenario, DsRequest::UpdateGroup(UpdateGroup { update }));
    let refused = scenario.submit(&message);
    assert!(matches!(refused, Err(Reject::TooLarge { .. })), "{refused:?}");
}

#[test]
fn adds_by_value_are_counted_in_commits_as_they_come() {
    let (mut scenario, mut rogue) = scene();
    let bob = mls::LeafNodeIndex::new(scenario.leaf("bob/phone").0);
    let new: Vec<_> =
        (0..40).map(|index| Rogue::new(&format!("new{index}/phone")).key_package()).collect();
    for count in [0, 1, 2, 40] {
        let update = rogue.commit(|b| b.propose_adds(new[..count].to_vec()));
        assert_eq!(adds_by_value(&update.commit), count);
        for end in 0..update.commit.as_slice().len() {
            let Ok(cut) = Raw::new(update.commit.as_slice()[..end].to_vec()) else { continue };
            assert!(adds_by_value(&cut) <= count);
        }
    }
    let removes = rogue.commit(|b| b.propose_removals([bob]));
    assert_eq!(adds_by_value(&removes.commit), 0);
    // those that are pending come by reference
    let pending = NewProposal::Add(encode(&new[0]));
    scenario.act("alice/phone", Operation::Propose { proposals: vec![pending] }).unwrap();
    rogue.follow(&scenario);
    let both = rogue.commit(|b| b.consume_proposal_store(true).propose_adds(new[1..4].to_vec()));
    assert_eq!(adds_by_value(&both.commit), 3);
    let message = rogue.request(&scenario, DsRequest::AddUsers(add(both.clone(), &both)));
    let before = scenario.state.member_count();
    scenario.submit(&message).unwrap();
    assert_eq!(scenario.state.member_count(), before + 4);
}

/// ProposalOrRefType of RFC 9420 §12.4.
const BY_VALUE: u8 = 1;
/// A custom proposal type that a [`Rogue`] lists in its capabilities.
const SUPPORTED: u16 = 0xF777;
