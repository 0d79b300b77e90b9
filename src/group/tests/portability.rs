//! A group that is to move: what lets it go, what travels, and what lets it in. PROTOCOL.md §6.

use std::sync::Arc;

use openmls::prelude as mls;

use super::rogue::{Rogue, ed25519, unknown};
use super::scenario::{Scenario, Setup, domain, policy, say, update, uri};
use crate::{
    client::core::{Operation, PolicyChange},
    crypto::{self, MlsCrypto, SigningKey},
    group::{
        Decision, GroupState, Hub, HubKey, HubKeys, Reject, Request, Settings,
        hub::external_sender,
        portability::{Parcel, judge_arrival},
    },
    migration::proof,
    rate::GroupRates,
    wire::{
        codec::{List, Opaque, Raw, decode, encode},
        ds::{DsMessage, DsRequest, GroupUpdate, Info, StartMigration},
        extensions::{GROUP_POLICY, QueueToken, Role, SignatureScheme},
        ids::{Domain, Epoch, GroupId, LeafIndex, RecipientId, Sequence, Timestamp},
        mls::{ExternalSender, MlsMessage},
        portability::{
            Chain, JoinerState, MemberState, MigratedState, MigrationCommitAad, MigrationContent,
            MigrationInit, MigrationRequest, MigrationResponse,
        },
        queueing::{DeliveryItem, QueueEvent},
    },
};

fn there() -> Domain {
    Domain::new("b.example").unwrap()
}

fn hub_of(domain: Domain, key: SigningKey) -> Arc<Hub> {
    Arc::new(Hub {
        settings: Settings::new(domain),
        crypto: MlsCrypto::default(),
        keys: HubKeys::new([HubKey { key, since: Timestamp(0) }]),
        rates: GroupRates::default(),
    })
}

fn sender_of(hub: &Hub) -> ExternalSender {
    Raw::of(&external_sender(&hub.settings.hub, &key_of(hub)))
}

fn key_of(hub: &Hub) -> SigningKey {
    hub.key(SignatureScheme::ED25519).unwrap()
}

fn aad(target: &Domain) -> Vec<u8> {
    encode(&MigrationCommitAad { target_ds_domain: target.clone() })
}

/// A group of alice, bob of b.example and mallory, an openmls client that may move it, at a.example; b.example would take it.
struct Scene {
    scenario: Scenario,
    rogue: Rogue,
    target: Arc<Hub>,
}

impl Scene {
    fn new() -> Self {
        let mut scenario = Setup::default().group_of(["alice/phone", "b:bob/phone"]);
        let mut rogue = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
        let change = PolicyChange::Role { user: rogue.client.user(), role: Role::Admin };
        scenario.act("alice/phone", policy(change)).unwrap();
        scenario.deliver_all();
        rogue.follow(&scenario);
        Self { scenario, rogue, target: hub_of(there(), ed25519()) }
    }

    fn request(&self) -> MigrationRequest {
        MigrationRequest {
            source_domain_name: domain(),
            target_domain_name: there(),
            group_id: self.scenario.id.clone(),
            epoch: self.scenario.state.epoch(),
            ciphersuite: u16::from(self.scenario.suite()),
        }
    }

    /// The target's word for `request`.
    fn agree_to(&self, request: MigrationRequest) -> MigrationResponse {
        let expires_at = self.scenario.now.plus_ms(600_000);
        let (key, nonce) = (key_of(&self.target), crypto::random());
        proof::respond(&key, request, nonce, expires_at, sender_of(&self.target)).unwrap()
    }

    fn response(&self) -> MigrationResponse {
        self.agree_to(self.request())
    }

    /// The group's context as it is, but for who hosts it.
    fn context_for(&mut self, sender: &ExternalSender) -> mls::Extensions<mls::GroupContext> {
        self.context_with(vec![sender.parse().unwrap()])
    }

    fn context_with(
        &mut self,
        senders: Vec<mls::ExternalSender>,
    ) -> mls::Extensions<mls::GroupContext> {
        let mut extensions = self.rogue.group().extensions().clone();
        extensions.add_or_replace(mls::Extension::ExternalSenders(senders)).unwrap();
        extensions
    }

    fn commit(
        &mut self,
        aad: &[u8],
        extensions: mls::Extensions<mls::GroupContext>,
    ) -> GroupUpdate {
        self.rogue.group().set_aad(aad.to_vec());
        self.rogue.commit(|b| b.propose_group_context_extensions(extensions).unwrap())
    }

    /// The Commit that `response` asks for.
    fn good_commit(&mut self, response: &MigrationResponse) -> GroupUpdate {
        let context = self.context_for(&response.target_sender);
        self.commit(&aad(&there()), context)
    }

    fn start(&self, response: &MigrationResponse, update: GroupUpdate) -> DsMessage {
        let init = proof::initiate(&self.rogue.leaf, response.clone()).unwrap();
        self.start_with(init, update)
    }

    fn start_with(&self, init: MigrationInit, update: GroupUpdate) -> DsMessage {
        let start = StartMigration { init, update };
        self.rogue.request(&self.scenario, DsRequest::StartMigration(Box::new(start)))
    }

    /// The hub takes `message`, and the group is as it was.
    fn pack(&self, message: &DsMessage) -> Parcel {
        pack(&self.scenario, message)
    }
}

fn pack(scenario: &Scenario, message: &DsMessage) -> Parcel {
    let before = scenario.snapshot();
    let request = Request { message: message.clone(), relay: domain() };
    let staged = match scenario.state.stage(&request, scenario.now) {
        Ok(Decision::Move(staged)) => *staged,
        Ok(_) => panic!("it does something else than to move the group"),
        Err(reject) => panic!("{reject}"),
    };
    let DsRequest::StartMigration(start) = &message.request else { panic!("no move") };
    let key = GroupState::key_of(message);
    let parcel = scenario.state.pack(staged, start, key.clone()).unwrap();
    assert_eq!(scenario.snapshot(), before, "the group stays as it was");
    assert_eq!(parcel.request, key);
    let reloaded = Parcel::from_bytes(&parcel.to_bytes().unwrap()).unwrap();
    assert_eq!(reloaded, parcel);
    reloaded
}

type Is = fn(&Reject) -> bool;

const NOT_AUTHORIZED: Is = |reject| matches!(reject, Reject::NotAuthorized(_));
const BAD_COMMIT: Is = |reject| matches!(reject, Reject::InvalidCommit(_));
const UNAUTHENTICATED: Is = |reject| matches!(reject, Reject::Unauthenticated(_));
const WRONG_EPOCH: Is = |reject| matches!(reject, Reject::WrongEpoch { .. });
const BAD_INFO: Is = |reject| matches!(reject, Reject::InvalidGroupInfo(_));

/// Each is refused for what it says, and changes nothing: the fixture checks that.
fn all_refused(scene: &mut Scene, cases: Vec<(&str, Is, DsMessage)>) {
    for (what, is, message) in cases {
        let refused = scene.scenario.submit(&message);
        assert!(refused.as_ref().is_err_and(is), "{what}: {refused:?}");
    }
}

#[test]
fn group_leaves_by_the_word_of_its_target_for_this_very_epoch_and_provider() {
    let mut scene = Scene::new();
    let good = scene.response();
    let commit = scene.good_commit(&good);
    let of = |change: &dyn Fn(&mut MigrationRequest)| {
        let mut request = scene.request();
        change(&mut request);
        scene.start(&scene.agree_to(request), commit.clone())
    };
    let other = GroupId::of(&domain(), [7; 16]);
    let far = Domain::new("far.example").unwrap();
    let mut cases = vec![
        ("another group", NOT_AUTHORIZED, of(&|it| it.group_id = other.clone())),
        ("another source", NOT_AUTHORIZED, of(&|it| it.source_domain_name = far.clone())),
        ("another suite", NOT_AUTHORIZED, of(&|it| it.ciphersuite = 2)),
        ("the next epoch", WRONG_EPOCH, of(&|it| it.epoch = it.epoch.next())),
        ("the last epoch", WRONG_EPOCH, of(&|it| it.epoch.0 -= 1)),
        // its key is the target's, the name that it vouches for is not
        ("another target", NOT_AUTHORIZED, of(&|it| it.target_domain_name = far.clone())),
        ("the hub itself", NOT_AUTHORIZED, of(&|it| it.target_domain_name = domain())),
    ];
    let changed = |change: &dyn Fn(&mut MigrationResponse)| {
        let mut response = good.clone();
        change(&mut response);
        scene.start(&response, commit.clone())
    };
    let flip = |it: &mut MigrationResponse| {
        let mut bytes = it.signature.as_slice().to_vec();
        bytes[9] ^= 1;
        it.signature = Opaque::new(bytes).unwrap();
    };
    cases.push(("a bad signature", NOT_AUTHORIZED, changed(&flip)));
    cases.push(("no signature", NOT_AUTHORIZED, changed(&|it| it.signature = Opaque::default())));
    cases.push(("another nonce", NOT_AUTHORIZED, changed(&|it| it.nonce[0] ^= 1)));
    cases.push((
        "a longer time",
        NOT_AUTHORIZED,
        changed(&|it| it.expires_at = it.expires_at.plus_ms(1)),
    ));
    let thief = hub_of(there(), ed25519());
    cases.push((
        "another key's sender",
        NOT_AUTHORIZED,
        changed(&|it| it.target_sender = sender_of(&thief)),
    ));
    let late = proof::respond(
        &key_of(&scene.target),
        scene.request(),
        [1; 32],
        scene.scenario.now,
        sender_of(&scene.target),
    )
    .unwrap();
    cases.push(("an expired one", NOT_AUTHORIZED, scene.start(&late, commit.clone())));
    // the MigrationInit: whoever sends the request has signed it, and it is about what the Commit does
    let by_user = proof::initiate(&scene.rogue.user, good.clone()).unwrap();
    cases.push((
        "another's init",
        UNAUTHENTICATED,
        scene.start_with(by_user.clone(), commit.clone()),
    ));
    let mut init = proof::initiate(&scene.rogue.leaf, good.clone()).unwrap();
    init.signature = by_user.signature;
    cases.push(("a forged init", UNAUTHENTICATED, scene.start_with(init, commit.clone())));
    let elsewhere = proof::respond(
        &key_of(&thief),
        scene.request(),
        [1; 32],
        good.expires_at,
        sender_of(&thief),
    )
    .unwrap();
    cases.push(("of another's key", BAD_COMMIT, scene.start(&elsewhere, commit.clone())));
    all_refused(&mut scene, cases);
    // the very same Commit is good with the right word, up to its end
    scene.pack(&scene.start(&good, commit));
}

#[test]
fn commit_that_moves_a_group_changes_nothing_but_the_hub() {
    let mut scene = Scene::new();
    let response = scene.response();
    let to = aad(&there());
    let context = scene.context_for(&response.target_sender);
    let far = aad(&Domain::new("far.example").unwrap());
    let longer = [to.as_slice(), &[0]].concat();
    let mut updates: Vec<(&str, Is, GroupUpdate)> = Vec::new();
    for (what, aad) in [("no aad", &[][..]), ("another aad", &far), ("a longer aad", &longer)] {
        updates.push((what, BAD_COMMIT, scene.commit(aad, context.clone())));
    }
    let target: mls::ExternalSender = response.target_sender.parse().unwrap();
    let own = external_sender(&domain(), &key_of(&scene.scenario.hub));
    let of = |domain: &Domain, key: &SigningKey| external_sender(domain, key);
    let senders = [
        ("the hub as it was", vec![own.clone()]),
        ("both", vec![target.clone(), own.clone()]),
        ("none", vec![]),
        ("another key", vec![of(&there(), &ed25519())]),
        ("another name", vec![of(&domain(), &key_of(&scene.target))]),
    ];
    for (what, senders) in senders {
        let context = scene.context_with(senders);
        updates.push((what, BAD_COMMIT, scene.commit(&to, context)));
    }
    scene.rogue.group().set_aad(to.clone());
    updates.push(("no change", BAD_COMMIT, scene.rogue.commit(|b| b)));
    let mut policy = scene.scenario.state.policy().clone();
    policy.members_max -= 1;
    let mut with_policy = context.clone();
    with_policy.add_or_replace(unknown(GROUP_POLICY, encode(&policy))).unwrap();
    updates.push(("the policy, too", BAD_COMMIT, scene.commit(&to, with_policy)));
    let mut fewer = context.clone();
    fewer.remove(mls::ExtensionType::Unknown(GROUP_POLICY));
    updates.push(("the policy goes", BAD_COMMIT, scene.commit(&to, fewer)));
    let zoe = Rogue::new("zoe/phone").key_package();
    let alice = mls::LeafNodeIndex::new(scene.scenario.leaf("alice/phone").0);
    let gce = context.clone();
    scene.rogue.group().set_aad(to.clone());
    let adds = scene
        .rogue
        .commit(|b| b.propose_group_context_extensions(gce).unwrap().propose_adds([zoe]));
    updates.push(("an Add", BAD_COMMIT, GroupUpdate { welcome: None, ..adds.clone() }));
    updates.push(("an Add with its Welcome", BAD_COMMIT, adds));
    let gce = context.clone();
    scene.rogue.group().set_aad(to.clone());
    let removes = scene
        .rogue
        .commit(|b| b.propose_group_context_extensions(gce).unwrap().propose_removals([alice]));
    updates.push(("a Remove", BAD_COMMIT, removes));
    let new = ed25519();
    let (credential, parameters) =
        (scene.rogue.credential(&new), scene.rogue.leaf_parameters(&new));
    let gce = context.clone();
    scene.rogue.group().set_aad(to.clone());
    let rotates = scene.rogue.commit_with(Some((&new, credential)), |b| {
        b.propose_group_context_extensions(gce).unwrap().leaf_node_parameters(parameters)
    });
    updates.push(("a new leaf key", BAD_COMMIT, rotates));
    let good = scene.commit(&to, context.clone());
    let twin = scene.commit(&to, context);
    let mixed = GroupUpdate { group_info: twin.group_info, ..good.clone() };
    updates.push(("another's GroupInfo", BAD_INFO, mixed));
    let mut cases = Vec::new();
    for (what, is, update) in updates {
        cases.push((what, is, scene.start(&response, update)));
    }
    all_refused(&mut scene, cases);
    scene.pack(&scene.start(&response, good));
}

#[test]
fn only_who_may_migrate_moves_the_group_and_all_that_is_pending_goes_with_it() {
    let mut scene = Scene::new();
    let response = scene.response();
    let commit = scene.good_commit(&response);
    let message = scene.start(&response, commit);
    // of an epoch that is over
    scene.scenario.act("alice/phone", update()).unwrap();
    all_refused(&mut scene, vec![("too late", WRONG_EPOCH, message.clone())]);
    scene.scenario.deliver_all();
    scene.rogue.follow(&scene.scenario);
    // something is pending that the Commit does not cover
    let response = scene.response();
    scene
        .scenario
        .act("alice/phone", super::scenario::propose(crate::client::core::NewProposal::Update))
        .unwrap();
    let commit = scene.good_commit(&response);
    let message = scene.start(&response, commit);
    let is: Is = |reject| matches!(reject, Reject::Pending { .. });
    all_refused(&mut scene, vec![("uncovered", is, message)]);
    scene.scenario.act("alice/phone", update()).unwrap();
    // a member like any other
    let user = scene.rogue.client.user();
    let change = PolicyChange::Role { user, role: Role::Moderator };
    scene.scenario.deliver_all();
    scene.scenario.act("alice/phone", policy(change)).unwrap();
    scene.scenario.deliver_all();
    scene.rogue.follow(&scene.scenario);
    let response = scene.response();
    let commit = scene.good_commit(&response);
    let message = scene.start(&response, commit);
    all_refused(&mut scene, vec![("no role", NOT_AUTHORIZED, message)]);
    // nor is a hub moved by way of an operation that needs less, or by what somebody else commits
    let response = scene.response();
    let commit = scene.good_commit(&response);
    let request = DsRequest::UpdateGroup(crate::wire::ds::UpdateGroup { update: commit });
    let message = scene.rogue.request(&scene.scenario, request);
    assert!(scene.scenario.submit(&message).is_err());
    scene.scenario.agree();
}

/// What moves: a group with a history, with a member who has not come in yet and one more of an epoch before.
struct Moved {
    scenario: Scenario,
    target: Arc<Hub>,
    response: MigrationResponse,
    parcel: Parcel,
    infos: Vec<Info>,
    state: MigratedState,
    /// Another Commit for the same move, and one of an earlier epoch.
    twin: MlsMessage,
    earlier: MlsMessage,
    /// GroupInfo and tree before the Commit.
    before: Info,
    leaf: SigningKey,
}

impl Moved {
    fn new() -> Self {
        let mut scene = Scene::new();
        let scenario = &mut scene.scenario;
        scenario.act("alice/phone", say("hello")).unwrap();
        scenario.act("b:bob/phone", say("hello")).unwrap();
        scenario.add("alice/phone", "b:carol/phone").unwrap();
        let waits_in = scenario.state.epoch();
        scenario.act("alice/phone", update()).unwrap();
        let earlier = scenario.records.last().unwrap().feed.event.clone();
        let crate::wire::queueing::QueueEvent::MlsMessage { message: earlier } =
            decode(&earlier).unwrap()
        else {
            panic!("a commit")
        };
        scenario.add("alice/phone", "dave/phone").unwrap();
        scenario.deliver("alice/phone");
        scenario.deliver("b:bob/phone");
        let before = scenario.state.info().unwrap();
        let since = scenario.state.joiner_epochs()[&waits_in];
        let infos = vec![scenario.history(waits_in, since), before.clone()];
        scene.rogue.follow(&scene.scenario);
        let response = scene.response();
        let commit = scene.good_commit(&response);
        let twin = scene.good_commit(&response).commit;
        let parcel = scene.pack(&scene.start(&response, commit));
        let Scene { scenario, rogue, target } = scene;
        let after = parcel.state(&scenario.hub, &scenario.id).unwrap();
        let state = after.export(&parcel, infos.clone(), Vec::new(), Chain::default()).unwrap();
        let state = decode(&encode(&state)).unwrap();
        let leaf = rogue.leaf;
        Self { scenario, target, response, parcel, infos, state, twin, earlier, before, leaf }
    }

    fn judge(&self, state: &MigratedState) -> Result<GroupState, Reject> {
        self.judge_by(&self.target, &self.response, state)
    }

    fn judge_by(
        &self,
        hub: &Arc<Hub>,
        response: &MigrationResponse,
        state: &MigratedState,
    ) -> Result<GroupState, Reject> {
        judge_arrival(hub, response, state, self.scenario.now).map(|arrived| arrived.state)
    }

    fn after(&self) -> GroupState {
        self.parcel.state(&self.scenario.hub, &self.scenario.id).unwrap()
    }

    /// The state with `change`.
    fn with(&self, change: impl FnOnce(&mut MigratedState)) -> MigratedState {
        let mut state = self.state.clone();
        change(&mut state);
        state
    }

    fn with_members(&self, change: impl FnOnce(&mut Vec<MemberState>)) -> MigratedState {
        let mut members = self.state.members.to_vec();
        change(&mut members);
        self.with(|state| state.members = List::new(members).unwrap())
    }

    fn with_joiners(&self, change: impl FnOnce(&mut Vec<JoinerState>)) -> MigratedState {
        let mut joiners = self.state.joiners.to_vec();
        change(&mut joiners);
        self.with(|state| state.joiners = List::new(joiners).unwrap())
    }

    fn with_infos(&self, change: impl FnOnce(&mut Vec<Info>)) -> MigratedState {
        let mut infos = self.infos.clone();
        change(&mut infos);
        self.with(|state| state.joiner_infos = List::new(infos).unwrap())
    }
}

/// What MLS proves of a group, and what is read of that.
fn same_group(left: &GroupState, right: &GroupState) -> bool {
    let info = |state: &GroupState| state.info().unwrap();
    let clients = |state: &GroupState| -> Vec<_> {
        state.members().map(|(leaf, it)| (leaf, it.client.clone())).collect()
    };
    left.id == right.id
        && info(left) == info(right)
        && left.tree.confirmation_tag() == right.tree.confirmation_tag()
        && left.policy == right.policy
        && clients(left) == clients(right)
}

#[test]
fn group_is_the_same_where_it_comes_in_and_goes_on_there() {
    let moved = Moved::new();
    let arrived =
        judge_arrival(&moved.target, &moved.response, &moved.state, moved.scenario.now).unwrap();
    let after = moved.after();
    assert!(same_group(&arrived.state, &after));
    let (ours, theirs) = (arrived.state.to_snapshot().unwrap(), after.to_snapshot().unwrap());
    assert_eq!((&ours.partial, ours.signer), (&theirs.partial, theirs.signer));
    assert_eq!(ours.members, theirs.members);
    assert_eq!(ours.joiners, theirs.joiners);
    assert_eq!(ours.joiners.len(), 2);
    assert_eq!(ours.remembered, theirs.remembered);
    assert!(ours.remembered.iter().any(|it| it.request == moved.parcel.request));
    assert_eq!(ours.next_recipient, theirs.next_recipient);
    // group_moved is the source's last
    assert_eq!(ours.next_sequence, theirs.next_sequence.next());
    assert!(ours.pending.is_empty() && theirs.pending.is_empty());
    assert!(ours.going.is_empty() && theirs.going.is_empty() && !ours.deleted);
    // whose members are guests has changed sides
    let guests: Vec<&Domain> = arrived.state.guests().collect();
    assert_eq!(guests, [&domain()]);
    let mut binds: Vec<String> =
        arrived.binds.iter().map(|it| it.client.as_str().to_owned()).collect();
    binds.sort();
    assert_eq!(binds, ["b:bob/phone", "b:carol/phone"].map(|name| uri(name).as_str().to_owned()));
    let epochs: Vec<Epoch> = arrived.infos.iter().map(|(epoch, _)| *epoch).collect();
    assert!(epochs.iter().eq(after.joiner_epochs().keys()));
    // and it is what is loaded from what would be written
    let bytes = arrived.state.snapshot().unwrap();
    let loaded = GroupState::load(Arc::clone(&moved.target), moved.scenario.id.clone(), &bytes);
    assert_eq!(loaded.unwrap().to_snapshot().unwrap(), ours);
}

#[test]
fn no_part_of_a_migrated_state_can_be_exchanged() {
    let moved = Moved::new();
    assert!(moved.judge(&moved.state).is_ok());
    let last = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let own = moved.state.clone();
    let (tree, info) = (own.ratchet_tree.as_slice(), own.group_info.as_slice());
    let swapped = {
        let leaf = |name: &str| encode(moved.after().tree.leaf(moved.scenario.leaf(name)).unwrap());
        swap(tree, &leaf("alice/phone"), &leaf("dave/phone"))
    };
    assert_ne!(swapped, tree);
    let sample = |at: usize| moved.state.members[at].clone();
    let next_recipient = own.next_recipient;
    let mut other_init = own.init.clone();
    other_init.migration_response.nonce[0] ^= 1;
    let resigned = proof::initiate(&moved.leaf, other_init.migration_response.clone()).unwrap();
    let by_another = proof::initiate(&ed25519(), moved.response.clone()).unwrap();
    let stranger = LeafIndex(77);
    let joiner = own.joiners[0].clone();
    let wrong: Vec<(&str, MigratedState)> = vec![
        ("a signature", moved.with(|it| it.group_info = Raw::new(last(info)).unwrap())),
        ("the last GroupInfo", moved.with(|it| it.group_info = moved.before.group_info.clone())),
        ("the last tree", moved.with(|it| it.ratchet_tree = moved.before.ratchet_tree.clone())),
        (
            "the last epoch whole",
            moved.with(|it| {
                it.group_info = moved.before.group_info.clone();
                it.ratchet_tree = moved.before.ratchet_tree.clone();
            }),
        ),
        ("leaves swapped", moved.with(|it| it.ratchet_tree = Raw::new(swapped).unwrap())),
        ("a node", moved.with(|it| it.ratchet_tree = Raw::new(last(tree)).unwrap())),
        ("an earlier commit", moved.with(|it| it.commit = moved.earlier.clone())),
        ("a twin of the commit", moved.with(|it| it.commit = moved.twin.clone())),
        ("a commit's confirmation", {
            // in front of the membership tag
            let mut bytes = own.commit.as_slice().to_vec();
            let at = bytes.len() - 40;
            bytes[at] ^= 1;
            moved.with(|it| it.commit = Raw::new(bytes).unwrap())
        }),
        ("another init", moved.with(|it| it.init = other_init.clone())),
        ("another response's init", moved.with(|it| it.init = resigned.clone())),
        ("a stranger's init", moved.with(|it| it.init = by_another.clone())),
        ("no members", moved.with_members(Vec::clear)),
        ("a member less", moved.with_members(|it| drop(it.pop()))),
        ("a member twice", moved.with_members(|it| it.push(sample(0)))),
        ("a member of no leaf", moved.with_members(|it| it[0].leaf_index = stranger)),
        (
            "a member more",
            moved.with_members(|it| {
                let recipient = RecipientId(next_recipient.0 - 1);
                it.push(MemberState { leaf_index: stranger, recipient, ..sample(0) });
            }),
        ),
        ("a number twice", moved.with_members(|it| it[0].recipient = it[1].recipient)),
        ("a number to come", moved.with_members(|it| it[0].recipient = next_recipient)),
        ("numbers to come", moved.with(|it| it.next_recipient = RecipientId(1))),
        ("a member from the future", moved.with_members(|it| it[0].since = own.next_sequence)),
        ("a feed that begins anew", moved.with(|it| it.next_sequence = Sequence(1))),
        (
            "another's queue",
            moved.with_members(|it| {
                let (left, right) = it.split_at_mut(1);
                std::mem::swap(&mut left[0].config, &mut right[0].config);
            }),
        ),
        ("no joiner's information", moved.with_infos(Vec::clear)),
        ("a joiner's less", moved.with_infos(|it| drop(it.pop()))),
        ("a joiner's twice", moved.with_infos(|it| it.push(it[0].clone()))),
        ("information of now", moved.with_infos(|it| it.push(moved.after().info().unwrap()))),
        (
            "a joiner's spoiled tree",
            moved.with_infos(|it| {
                it[0].ratchet_tree = Raw::new(last(it[0].ratchet_tree.as_slice())).unwrap();
            }),
        ),
        (
            "a joiner's spoiled GroupInfo",
            moved.with_infos(|it| {
                it[0].group_info = Raw::new(last(it[0].group_info.as_slice())).unwrap();
            }),
        ),
        ("another group's information", {
            let other = Scenario::group_of(["erin/phone"]).state.info().unwrap();
            moved.with_infos(|it| it.push(other))
        }),
        ("a joiner without a leaf", moved.with_joiners(|it| it[0].leaf_index = stranger)),
        ("a joiner of no epoch", moved.with_joiners(|it| it[0].epoch = Epoch(1))),
        ("a joiner twice", moved.with_joiners(|it| it.push(joiner.clone()))),
        ("two joiners of a leaf", moved.with_joiners(|it| it[0].leaf_index = it[1].leaf_index)),
        (
            "two joiners of a KeyPackage",
            moved.with_joiners(|it| it[0].key_package_ref = it[1].key_package_ref.clone()),
        ),
    ];
    for (what, state) in wrong {
        // as it would come
        let state: MigratedState = decode(&encode(&state)).unwrap();
        assert!(moved.judge(&state).is_err(), "{what} is taken");
    }
}

#[test]
fn clients_of_the_target_get_the_commit_that_the_group_was_built_from_and_no_other() {
    let moved = Moved::new();
    let id = moved.scenario.id.clone();
    let commit_at = Sequence(moved.state.next_sequence.0 - 2);
    let at = |sequence: Sequence, event: QueueEvent| DeliveryItem::Feed {
        group_id: id.clone(),
        group_sequence: sequence,
        accepted_at: moved.scenario.now,
        except: None,
        event,
        roster: List::default(),
    };
    let says = |message: &MlsMessage| QueueEvent::MlsMessage { message: message.clone() };
    let begins = |next_sequence: Sequence| DeliveryItem::Snapshot {
        group_id: id.clone(),
        next_sequence,
        chain: Chain::default(),
        roster: List::default(),
    };
    let judge = |tail: Vec<DeliveryItem>| {
        let tail = List::new(tail).unwrap();
        moved.judge(&decode(&encode(&moved.with(|it| it.tail = tail))).unwrap())
    };
    let before = Sequence(commit_at.0 - 1);
    let commit = || at(commit_at, says(&moved.state.commit));
    let except = |recipient: RecipientId| {
        let mut item = commit();
        if let DeliveryItem::Feed { except, .. } = &mut item {
            *except = Some(recipient);
        }
        item
    };
    let recipient_of = |name: &str| {
        let leaf = moved.scenario.leaf(name);
        moved.state.members.iter().find(|it| it.leaf_index == leaf).unwrap().recipient
    };
    let committer = recipient_of("mallory/phone");
    let first = Sequence(before.0 - 1);
    let void = |group_sequence| {
        let (epoch, complaints) = (moved.after().epoch(), List::default());
        at(before, QueueEvent::EpochVoid { epoch, group_sequence, complaints })
    };
    for (what, tail) in [
        ("nothing", vec![]),
        ("the commit", vec![commit()]),
        ("the commit, but for who made it", vec![except(committer)]),
        ("a roster and the commit", vec![begins(commit_at), commit()]),
        ("who came in with the commit", vec![begins(commit_at.next())]),
        ("an earlier commit, too", vec![at(before, says(&moved.earlier)), commit()]),
        ("a change of queues, too", vec![at(before, QueueEvent::RosterOnly), commit()]),
        ("a hole, too", vec![at(before, QueueEvent::Gap { next_available: commit_at }), commit()]),
        ("what ends before the commit", vec![at(before, says(&moved.earlier))]),
        ("a twin that was void", vec![at(first, says(&moved.twin)), void(first), commit()]),
    ] {
        let judged = judge(tail);
        assert!(judged.is_ok(), "{what}: {judged:?}");
    }
    let other = GroupId::of(&domain(), [7; 16]);
    let of_another = DeliveryItem::Snapshot {
        group_id: other,
        next_sequence: commit_at,
        chain: Chain::default(),
        roster: List::default(),
    };
    let direct = DeliveryItem::Direct {
        item_id: [1; 16],
        client_queue_information: QueueToken::new([1_u8; 16]).unwrap(),
        event: says(&moved.state.commit),
    };
    for (what, tail) in [
        ("a twin", vec![at(commit_at, says(&moved.twin))]),
        ("an earlier commit in its place", vec![at(commit_at, says(&moved.earlier))]),
        ("no message in its place", vec![at(commit_at, QueueEvent::RosterOnly)]),
        ("a twin in front of it", vec![at(before, says(&moved.twin)), commit()]),
        ("the commit in front of it", vec![at(before, says(&moved.state.commit)), commit()]),
        ("a twin that was not", vec![at(first, says(&moved.twin)), void(before), commit()]),
        ("a twin alone and too early", vec![at(before, says(&moved.twin))]),
        ("a twin behind it", vec![commit(), at(commit_at.next(), says(&moved.twin))]),
        ("a message behind it", vec![at(moved.state.next_sequence, says(&moved.earlier))]),
        ("a roster from behind it", vec![begins(moved.state.next_sequence)]),
        ("the commit kept from another", vec![except(recipient_of("b:bob/phone"))]),
        ("the end of the group", vec![at(before, QueueEvent::GroupDeleted), commit()]),
        ("an end in its place", vec![at(commit_at, QueueEvent::GroupDeleted)]),
        ("another group's", vec![of_another]),
        ("what is for one client", vec![direct]),
    ] {
        let judged = judge(tail);
        let refused = matches!(judged, Err(Reject::InvalidCommit(_)));
        assert!(refused, "{what}: {judged:?}");
    }
}

/// `bytes` with its first `left` and its first `right` exchanged.
fn swap(bytes: &[u8], left: &[u8], right: &[u8]) -> Vec<u8> {
    let find = |part: &[u8]| bytes.windows(part.len()).position(|at| at == part).unwrap();
    let (mut first, mut second) = ((find(left), left), (find(right), right));
    if first.0 > second.0 {
        (first, second) = (second, first);
    }
    let between = &bytes[first.0 + first.1.len()..second.0];
    let rest = &bytes[second.0 + second.1.len()..];
    [&bytes[..first.0], second.1, between, first.1, rest].concat()
}

#[test]
fn state_is_good_for_its_response_and_its_target_alone() {
    let moved = Moved::new();
    let key = key_of(&moved.target);
    let sign = |request: MigrationRequest| {
        let expires_at = moved.response.expires_at;
        let response = proof::respond(
            &key,
            request,
            moved.response.nonce,
            expires_at,
            moved.response.target_sender.clone(),
        )
        .unwrap();
        let init = proof::initiate(&moved.leaf, response.clone()).unwrap();
        (response, moved.with(|it| it.init = init))
    };
    let of = |change: &dyn Fn(&mut MigrationRequest)| {
        let mut request = moved.response.migration_request.clone();
        change(&mut request);
        sign(request)
    };
    // signed anew it is good
    let (response, state) = of(&|_| ());
    assert!(moved.judge_by(&moved.target, &response, &state).is_ok());
    let other = GroupId::of(&domain(), [7; 16]);
    for (what, (response, state)) in [
        ("another epoch", of(&|it| it.epoch = it.epoch.next())),
        ("an earlier epoch", of(&|it| it.epoch.0 -= 1)),
        ("another suite", of(&|it| it.ciphersuite = 2)),
        ("another group", of(&|it| it.group_id = other.clone())),
    ] {
        assert!(moved.judge_by(&moved.target, &response, &state).is_err(), "{what}");
    }
    let mut settings = Settings::new(there());
    settings.members_max = moved.state.members.len() - 1;
    let mut other_suite = Settings::new(there());
    other_suite.ciphersuites = vec![2];
    let with = |settings: Settings| {
        Arc::new(Hub {
            settings,
            crypto: MlsCrypto::default(),
            keys: HubKeys::new([HubKey { key: key.clone(), since: Timestamp(0) }]),
            rates: GroupRates::default(),
        })
    };
    for (what, hub) in [
        ("another key", hub_of(there(), ed25519())),
        ("another name", hub_of(Domain::new("c.example").unwrap(), key.clone())),
        ("its own source", Arc::clone(&moved.scenario.hub)),
        ("too small a hub", with(settings)),
        ("a hub of another suite", with(other_suite)),
    ] {
        assert!(moved.judge_by(&hub, &moved.response, &moved.state).is_err(), "{what}");
    }
    assert!(moved.judge_by(&with(Settings::new(there())), &moved.response, &moved.state).is_ok());
}

/// So many positions of what is encoded are changed.
const SAMPLES: usize = 240;

#[test]
fn flipped_byte_of_a_migrated_state_is_refused_or_leaves_the_same_group() {
    let moved = Moved::new();
    let bytes = encode(&moved.state);
    let after = moved.after();
    let (mut refused, mut same) = (0, 0);
    for sample in 0..SAMPLES {
        // an odd step: also the parts that begin where others end are met
        let at = (sample * 7_919) % bytes.len();
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (sample % 8);
        let Ok(state) = decode::<MigratedState>(&bytes) else {
            refused += 1;
            continue;
        };
        match moved.judge(&state) {
            Ok(arrived) => {
                assert!(same_group(&arrived, &after), "byte {at}");
                same += 1;
            }
            Err(reject) => {
                assert!(!matches!(reject, Reject::Broken(_)), "byte {at}: {reject}");
                refused += 1;
            }
        }
    }
    assert!(refused > same, "{refused} refused, {same} taken");
}

#[test]
fn flipped_byte_of_a_content_is_not_what_its_source_signed() {
    let moved = Moved::new();
    let key = key_of(&moved.scenario.hub);
    let content = proof::sign_content(&key, moved.response.clone(), encode(&moved.state)).unwrap();
    let check = |content: &MigrationContent| {
        let keys = [key.public().as_slice()];
        proof::check_content(key.scheme(), keys, content)
    };
    assert_eq!(check(&content), Ok(()));
    let bytes = encode(&content);
    for sample in 0..SAMPLES * 4 {
        let at = (sample * 7_919) % bytes.len();
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (sample % 8);
        if let Ok(content) = decode::<MigrationContent>(&bytes) {
            assert!(check(&content).is_err(), "byte {at}");
        }
    }
    // nor what another signed
    let other = ed25519();
    let content = proof::sign_content(&other, moved.response.clone(), encode(&moved.state));
    assert!(check(&content.unwrap()).is_err());
}

#[test]
fn members_of_our_own_client_move_with_what_is_pending() {
    let mut scenario = Scenario::group_of(["alice/phone", "b:bob/phone"]);
    let key_package = scenario.key_package("b:bob/tablet");
    let proposal = crate::client::core::NewProposal::Add(key_package);
    scenario.act("b:bob/phone", super::scenario::propose(proposal)).unwrap();
    scenario.deliver_all();
    let target = hub_of(there(), ed25519());
    let request = scenario.client("alice/phone").wish_to_move(&scenario.id, &there()).unwrap();
    let expires_at = scenario.now.plus_ms(1);
    let sender = sender_of(&target);
    let response = proof::respond(&key_of(&target), request, [5; 32], expires_at, sender).unwrap();
    let operation = Operation::Migrate { response: encode(&response) };
    let asked = scenario.begin("alice/phone", operation);
    let message = scenario.message("alice/phone", asked);
    let parcel = pack(&scenario, &message);
    let after = parcel.state(&scenario.hub, &scenario.id).unwrap();
    let state = after.export(&parcel, Vec::new(), Vec::new(), Chain::default()).unwrap();
    let arrived = judge_arrival(&target, &response, &state, scenario.now).unwrap();
    assert!(same_group(&arrived.state, &after));
    assert_eq!(arrived.state.member_count(), 3);
    assert_eq!(arrived.binds.len(), 2);
    // the one that comes in waits for the information of the epoch that the move makes
    assert!(arrived.state.joiner_epochs().keys().eq([&arrived.state.epoch()]));
    let effects = parcel.effects().unwrap();
    assert_eq!(effects.records.len(), 1);
    assert_eq!(effects.outbound.len(), 1);
}
