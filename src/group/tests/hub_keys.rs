//! The hub's key rotates: a newer one takes the place of the one in the group, by a proposal that members commit.
//! PROTOCOL.md §2, "The hub's key rotates".

use std::{collections::BTreeSet, sync::Arc};

use openmls::prelude as mls;

use super::rogue::{Rogue, unknown};
use super::scenario::{Scenario, Setup, domain, hub_keys, policy, propose, say, update, uri};
use crate::{
    client::core::{
        CoreError, Event, Hub as ClientHub, NewGroup, NewProposal, Operation, PolicyChange,
    },
    crypto::{MlsProvider, SigningKey},
    group::{
        GroupState, HubKey, Reject, Request,
        hub::external_sender,
        keys::{OLD_KEY_FOUNDS_MS, done_with, newest},
    },
    policy::{
        Denied,
        change::{self, What},
        judge,
    },
    store::records::{FeedEntry, GoneReason, KeyPrint, KeyStand, LogRecord},
    wire::{
        codec::{List, Raw, encode},
        ds::{DsRequest, Propose},
        extensions::{GROUP_POLICY, JoinPolicy, Role, SignatureScheme},
        ids::{Domain, Timestamp},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

/// The hub has a newer key of either scheme; gives the group's old one and the next one.
fn rotate(scenario: &Scenario) -> (KeyPrint, KeyPrint) {
    let keys = scenario.hub.keys.all();
    let scheme = scenario.state.tree.scheme();
    let old = newest(&keys, scheme).unwrap();
    let new = hub_keys(old.since.plus_ms(1));
    let next = newest(&new, scheme).unwrap().print();
    scenario.hub.keys.replace(keys.iter().cloned().chain(new).collect::<Vec<_>>());
    (old.print(), next)
}

fn stands(key: KeyPrint, proposed: Option<KeyPrint>) -> Option<KeyStand> {
    Some(KeyStand { key, proposed })
}

#[test]
fn a_newer_key_is_proposed_once_and_the_next_commit_puts_it_into_place() {
    for suite in 0..3 {
        let mut scenario = Setup { suite, ..Setup::default() }.group_of([
            "alice/phone",
            "bob/phone",
            "b:carol/phone",
        ]);
        assert!(!scenario.hub_acts(&[]));
        let (old, new) = rotate(&scenario);
        assert_eq!(scenario.state.key_stand(), stands(old, None));
        assert!(scenario.hub_acts(&[]));
        assert_eq!(scenario.state.key_stand(), stands(old, Some(new)));
        assert!(!scenario.hub_acts(&[]), "once is enough");
        scenario.restart();
        assert!(!scenario.hub_acts(&[]), "also after a restart");
        scenario.agree();
        scenario.act("b:carol/phone", update()).unwrap();
        scenario.agree();
        assert_eq!(scenario.state.key_stand(), stands(new, None));
        assert!(!scenario.hub_acts(&[]));
        scenario.restart_from_snapshot_for_all();
        assert_eq!(scenario.state.key_stand(), stands(new, None));

        // the old one is not needed any more: what the hub proposes is signed by the new one
        let keys = scenario.hub.keys.all();
        let kept: Vec<HubKey> = keys.iter().filter(|key| key.print() != old).cloned().collect();
        scenario.hub.keys.replace(kept);
        assert!(scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]));
        scenario.agree();
        scenario.act("alice/phone", update()).unwrap();
        scenario.agree();
        assert!(!scenario.has("bob/phone"));
    }
}

#[test]
fn until_it_is_in_place_the_old_one_signs_and_one_commit_takes_both() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let (old, new) = rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    assert!(scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]));
    assert_eq!(scenario.state.pending.len(), 2);
    assert_eq!(scenario.state.key_stand(), stands(old, Some(new)));
    scenario.agree();
    scenario.act("carol/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("bob/phone"));
    assert_eq!(scenario.state.key_stand(), stands(new, None));
}

#[test]
fn it_blocks_no_message_however_long_it_waits_and_every_commit_that_leaves_it_out() {
    let mut scenario = Setup::with(|settings| settings.strict_after_ms = Some(5_000))
        .group_of(["alice/phone", "bob/phone"]);
    let talk = scenario.begin("alice/phone", say("it goes on"));
    let talk = scenario.message("alice/phone", talk);
    let commit = scenario.begin("bob/phone", update());
    let uncovering = scenario.message("bob/phone", commit);
    rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    scenario.now = scenario.now.plus_ms(60_000);
    scenario.submit(&talk).unwrap();
    let refused = scenario.submit(&uncovering);
    let Err(Reject::Pending { pending, commit: true, .. }) = refused else { panic!("{refused:?}") };
    let expected: Vec<MlsMessage> = scenario.state.pending_messages().cloned().collect();
    assert_eq!(pending, expected);
    // the answer is all that it takes
    scenario.drive("bob/phone", commit).unwrap();
    assert_eq!(scenario.state.key_stand().unwrap().proposed, None);
}

#[test]
fn an_external_commit_voids_it_and_it_is_made_anew_behind() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
    let (old, new) = rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    scenario.deliver_all();
    let before = scenario.records.len();
    scenario.act("erin/phone", Operation::Join { code: None }).unwrap();
    assert_eq!(scenario.records.len(), before + 2, "commit and proposal in one write");
    assert_eq!(scenario.state.key_stand(), stands(old, Some(new)));
    scenario.agree();
    scenario.act("bob/phone", Operation::Resync).unwrap();
    assert_eq!(scenario.state.key_stand(), stands(old, Some(new)));
    scenario.agree();
    scenario.act("erin/phone", update()).unwrap();
    scenario.agree();
    assert_eq!(scenario.state.key_stand(), stands(new, None));
    scenario.outsider_can_join("frank/phone", "erin/phone");
}

#[test]
fn a_second_rotation_takes_the_place_of_the_first_in_the_next_epoch() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let (_, first) = rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    let (_, second) = rotate(&scenario);
    assert!(!scenario.hub_acts(&[]), "another GroupContextExtensions is pending");
    scenario.deliver_all();
    scenario.act("bob/phone", update()).unwrap();
    assert_eq!(scenario.state.key_stand(), stands(first, Some(second)));
    scenario.agree();
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
    assert_eq!(scenario.state.key_stand(), stands(second, None));
}

#[test]
fn it_waits_for_a_members_group_context_and_stands_behind_its_commit() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let mut rogue = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let user = uri("mallory/phone").user();
    let admin = PolicyChange::Role { user, role: Role::Admin };
    scenario.act("alice/phone", policy(admin)).unwrap();
    scenario.deliver_all();
    rogue.follow(&scenario);
    let mut new = rogue.group().extensions().clone();
    let mut policy = scenario.state.policy().clone();
    policy.members_max -= 1;
    new.add_or_replace(unknown(GROUP_POLICY, encode(&policy))).unwrap();
    let group = rogue.group.as_mut().unwrap();
    let (proposal, _) =
        group.propose_group_context_extensions(&rogue.provider, new, &rogue.leaf).unwrap();
    let proposals = List::new(vec![Raw::of(&proposal)]).unwrap();
    let message = rogue.request(&scenario, DsRequest::Propose(Propose { proposals }));
    scenario.submit(&message).unwrap();
    let (old, new) = rotate(&scenario);
    assert!(!scenario.hub_acts(&[]));
    scenario.deliver_all();
    scenario.act("alice/phone", update()).unwrap();
    assert_eq!(scenario.state.policy(), &policy);
    assert_eq!(scenario.state.key_stand(), stands(old, Some(new)), "in the commit's own write");
    scenario.agree();
}

#[test]
fn a_member_changes_the_policy_in_the_commit_behind() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let (_, new) = rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    scenario.deliver_all();
    let open = || policy(PolicyChange::Join(JoinPolicy::Open));
    let request = scenario.begin("alice/phone", open());
    let tried = scenario.try_drive("alice/phone", request);
    assert!(matches!(tried, Err(CoreError::MustCommitFirst(_))), "{tried:?}");
    scenario.act("alice/phone", update()).unwrap();
    scenario.act("alice/phone", open()).unwrap();
    scenario.agree();
    assert_eq!(scenario.state.policy().join, JoinPolicy::Open);
    assert_eq!(scenario.state.key_stand(), stands(new, None));
}

#[test]
fn who_may_delete_the_group_still_may() {
    let mut scenario = Setup::policy(|policy| policy.may_delete = Role::Member).group_of([
        "alice/phone",
        "bob/phone",
        "carol/phone",
    ]);
    rotate(&scenario);
    assert!(scenario.hub_acts(&[]));
    scenario.deliver_all();
    scenario.act("bob/phone", Operation::DeleteGroup).unwrap();
    assert!(scenario.state.is_deleted());
    scenario.agree();
    let removed = Event::Removed { group: scenario.id.clone() };
    let deleted = Event::Deleted { group: scenario.id.clone() };
    let events = scenario.events("alice/phone");
    assert!(events.contains(&removed) || events.contains(&deleted), "{events:?}");
}

/// What the hub, or who has its key, might propose of a GroupContext.
fn by_the_hub(
    scenario: &Scenario,
    extensions: mls::Extensions<mls::GroupContext>,
) -> (MlsMessage, mls::QueuedProposal) {
    let context = scenario.state.tree.context();
    let key = scenario.hub.key(scenario.state.tree.scheme()).unwrap();
    let message = mls::ExternalProposal::new_group_context_extensions::<
        MlsProvider<openmls_memory_storage::MemoryStorage>,
    >(
        extensions,
        context.group_id().clone(),
        context.epoch(),
        &key,
        mls::SenderExtensionIndex::new(0),
    )
    .unwrap();
    let message: MlsMessage = Raw::of(&message);
    let protocol = message.parse().unwrap().try_into_protocol_message().unwrap();
    let processed = scenario.state.tree.process(&scenario.hub.crypto, protocol).unwrap();
    let mls::ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else {
        panic!("a proposal")
    };
    (message, *queued)
}

#[test]
fn whatever_else_the_hub_proposes_of_a_group_context_is_refused_by_the_policy_and_by_members() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let now = scenario.state.tree.context().extensions().clone();
    let new_key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let sender = |domain: &Domain| external_sender(domain, &new_key);
    let with = |change: &dyn Fn(&mut mls::Extensions<mls::GroupContext>)| {
        let mut extensions = now.clone();
        change(&mut extensions);
        extensions
    };
    let senders = |senders: Vec<mls::ExternalSender>| mls::Extension::ExternalSenders(senders);
    let replaced = || senders(vec![sender(&domain())]);
    let elsewhere = Domain::new("b.example").unwrap();
    let present = now.external_senders().unwrap()[0].clone();
    let mut more =
        crate::policy::default_policy(&scenario.client("bob/phone").identity().user_key_hash());
    more.members_max = 5;
    let grown = mls::RequiredCapabilitiesExtension::new(
        &[
            now.required_capabilities().unwrap().extension_types(),
            &[mls::ExtensionType::Unknown(crate::wire::extensions::CLIENT_QUEUE_CONFIG)],
        ]
        .concat(),
        now.required_capabilities().unwrap().proposal_types(),
        now.required_capabilities().unwrap().credential_types(),
    );
    let in_place = |reversed: bool| {
        let new = |it: &mls::Extension| match it {
            mls::Extension::ExternalSenders(_) => replaced(),
            other => other.clone(),
        };
        let mut list: Vec<mls::Extension> = now.iter().map(new).collect();
        if reversed {
            list.reverse();
        }
        mls::Extensions::from_vec(list).unwrap()
    };
    let wrong = [
        ("nothing", now.clone()),
        (
            "the policy",
            with(&|it| drop(it.add_or_replace(unknown(GROUP_POLICY, encode(&more))).unwrap())),
        ),
        (
            "key and policy",
            with(&|it| {
                it.add_or_replace(unknown(GROUP_POLICY, encode(&more))).unwrap();
                it.add_or_replace(replaced()).unwrap();
            }),
        ),
        (
            "another hub",
            with(&|it| drop(it.add_or_replace(senders(vec![sender(&elsewhere)])).unwrap())),
        ),
        (
            "one more sender",
            with(&|it| {
                drop(it.add_or_replace(senders(vec![present.clone(), sender(&domain())])).unwrap());
            }),
        ),
        ("no sender", with(&|it| drop(it.remove(mls::ExtensionType::ExternalSenders)))),
        (
            "key and required capabilities",
            with(&|it| {
                it.add_or_replace(mls::Extension::RequiredCapabilities(grown.clone())).unwrap();
                it.add_or_replace(replaced()).unwrap();
            }),
        ),
        ("key and order", in_place(true)),
    ];
    for (what, extensions) in wrong {
        let (message, queued) = by_the_hub(&scenario, extensions);
        let (roster, context) = (&scenario.state.roster, scenario.state.tree.context());
        let act = change::of_proposal(&queued, roster, context, scenario.state.policy());
        let judged =
            act.map(|act| judge(scenario.state.policy(), roster, &scenario.id, None, &[act]));
        assert!(matches!(judged, Err(_) | Ok(Err(Denied::NotTheHubs))), "{what}: {judged:?}");
        assert!(scenario.state.own_proposal(message.clone(), What::HubKey, scenario.now).is_none());

        // a hub that does not keep to it is told of, and not followed
        let event = encode(&QueueEvent::MlsMessage { message });
        let sequence = scenario.records.last().unwrap().feed.sequence.next();
        let accepted_at = scenario.now;
        let (except, origin, handshake) = (None, None, true);
        let feed = FeedEntry { sequence, accepted_at, except, origin, handshake, event };
        scenario.records.push(LogRecord { feed, change: Vec::new(), follows: None });
        scenario.deliver("bob/phone");
        let told = |event: &Event| matches!(event, Event::Misbehaviour { .. });
        let events = scenario.events("bob/phone");
        assert!(told(events.last().unwrap()), "{what}: {:?}", events.last());
        assert_eq!(scenario.client("bob/phone").group(&scenario.id).unwrap().pending, 0, "{what}");
    }
    // and this is what is right
    let (_, queued) = by_the_hub(&scenario, in_place(false));
    let (roster, context) = (&scenario.state.roster, scenario.state.tree.context());
    let act = change::of_proposal(&queued, roster, context, scenario.state.policy()).unwrap();
    assert_eq!(act.what, What::HubKey);
    assert_eq!(judge(scenario.state.policy(), roster, &scenario.id, None, &[act]), Ok(()));
}

#[test]
fn a_group_may_be_created_with_the_old_key_for_a_while() {
    let mut scenario = Scenario::group_of(["alice/phone"]);
    let old = scenario.hub.keys.all();
    let before = scenario.hub.key(SignatureScheme::ED25519).unwrap();
    let next = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let (now, hub) = (scenario.now, Arc::clone(&scenario.hub));
    let replaced = |ago_ms: u64| {
        let added = HubKey { key: next.clone(), since: Timestamp(now.0 - ago_ms) };
        hub.keys.replace(old.iter().cloned().chain([added]).collect::<Vec<_>>());
    };
    let mut create = |key: &SigningKey| {
        let member = scenario.client("bob/phone");
        let client_hub = ClientHub { domain: domain(), external_sender: key.public().clone() };
        let (_, request) = member.create_group(&client_hub, &NewGroup::default(), now).unwrap();
        let message = member.outbound(request, now).unwrap().message;
        GroupState::create(&hub, &Request { message, relay: domain() }, now).map(|it| it.state)
    };
    replaced(OLD_KEY_FOUNDS_MS - 1);
    let mut late = create(&before).unwrap();
    assert!(late.wants_key() && late.stage_hub(&[], now).is_some(), "it is replaced like others'");
    replaced(OLD_KEY_FOUNDS_MS);
    assert!(!create(&next).unwrap().wants_key());
    let refused = create(&before).unwrap_err();
    assert!(matches!(refused, Reject::InvalidGroupInfo(_)), "{refused:?}");
    let stranger = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    assert!(matches!(create(&stranger), Err(Reject::InvalidGroupInfo(_))));
}

#[test]
fn a_hub_without_the_groups_key_proposes_nothing_and_does_not_fail() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.hub.keys.replace(hub_keys(Timestamp(9)));
    assert!(!scenario.state.wants_key());
    scenario.act("alice/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    scenario.act("bob/phone", update()).unwrap();
    scenario.agree();
}

#[test]
fn a_key_is_done_with_when_no_group_has_it_and_none_can_come_with_it() {
    let day = 24 * 60 * 60 * 1000;
    let (first, second, third) =
        (hub_keys(Timestamp(0)), hub_keys(Timestamp(day)), hub_keys(Timestamp(2 * day)));
    let keys: Vec<HubKey> = first.iter().chain(&second).chain(&third).cloned().collect();
    let prints = |keys: &[HubKey]| keys.iter().map(HubKey::print).collect::<BTreeSet<_>>();
    let done = |in_use: &BTreeSet<KeyPrint>, now: u64| -> BTreeSet<KeyPrint> {
        done_with(&keys, in_use, Timestamp(now)).into_iter().collect()
    };
    let none = BTreeSet::new();
    assert_eq!(
        done(&none, 2 * day + OLD_KEY_FOUNDS_MS),
        none,
        "groups are still created with them"
    );
    assert_eq!(done(&none, 3 * day), prints(&[first.clone(), second.clone()].concat()));
    assert_eq!(done(&prints(&second), 3 * day), prints(&first));
    assert_eq!(done(&prints(&first[..1]), 3 * day), prints(&[&first[1..], &second[..]].concat()));
    assert_eq!(done(&none, 9 * day).intersection(&prints(&third)).count(), 0, "the newest stays");
}
