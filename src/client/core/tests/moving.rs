//! A group's move, as its members see it: the two hubs are the keys and answers in here.

use super::*;
use crate::{
    crypto::SigningKey,
    migration::proof::{self, ProofError},
    policy::{Denied, leaf::scheme_of},
    wire::{
        codec::encode,
        ds::StartMigration,
        ids::LeafIndex,
        portability::{MigrationConfirmation, MigrationRequest, MigrationResponse},
    },
};

fn named(domain: &str) -> Domain {
    Domain::new(domain).unwrap()
}

/// A provider, as far as a move knows it.
struct Provider {
    domain: Domain,
    key: SigningKey,
}

impl Provider {
    fn new(domain: &str, scheme: SignatureScheme) -> Self {
        Self { domain: named(domain), key: SigningKey::generate(scheme).unwrap() }
    }

    fn sender(&self) -> mls::ExternalSender {
        sender(&self.key, &self.domain)
    }

    fn promise(&self, wanted: &MigrationRequest) -> MigrationResponse {
        let expires_at = NOW.plus_ms(600_000);
        let sender = Raw::of(&self.sender());
        proof::respond(&self.key, wanted.clone(), crypto::random(), expires_at, sender).unwrap()
    }

    /// As the source, at the end of a move.
    fn confirm(&self, response: &MigrationResponse) -> MigrationConfirmation {
        self.sign(proof::unsigned_confirmation(
            &response.migration_request,
            response.nonce,
            Sequence(40),
        ))
    }

    fn sign(&self, confirmation: MigrationConfirmation) -> MigrationConfirmation {
        proof::sign_confirmation(&self.key, confirmation).unwrap()
    }

    /// A link of a chain that nobody of these tests has seen happen.
    fn link(&self, group: &GroupId, target: &str, epoch: u64) -> MigrationConfirmation {
        let request = MigrationRequest {
            source_domain_name: self.domain.clone(),
            target_domain_name: named(target),
            group_id: group.clone(),
            epoch: Epoch(epoch - 1),
            ciphersuite: 1,
        };
        self.sign(proof::unsigned_confirmation(&request, [7; 32], Sequence(40)))
    }
}

fn sender(key: &SigningKey, domain: &Domain) -> mls::ExternalSender {
    let credential = mls::BasicCredential::new(domain.as_str().into());
    mls::ExternalSender::new(key.public().as_slice().into(), credential.into())
}

fn moving(confirmation: &MigrationConfirmation) -> DsResponse {
    DsResponse {
        version: ProtocolVersion::MIMI10,
        outcome: Outcome::Ok(DsResponseBody::Moving(Box::new(confirmation.clone()))),
    }
}

fn moved(chain: &[&MigrationConfirmation]) -> DsResponse {
    let chain = List::new(chain.iter().copied().cloned().collect()).unwrap();
    refuse(DsError::GroupMoved { detail: Detail::truncated("it is elsewhere"), chain })
}

/// A group of `alice` and the others at a.example, and the provider b.example that it can move to.
struct Scene {
    wire: Wire,
    group: GroupId,
    a: Provider,
    b: Provider,
}

impl Scene {
    fn new(suite: mls::Ciphersuite, alice: &Member, others: &[&Member]) -> Self {
        let scheme = scheme_of(suite);
        let (a, b) = (Provider::new("a.example", scheme), Provider::new("b.example", scheme));
        let hub = Hub { domain: a.domain.clone(), external_sender: a.key.public().clone() };
        let new = NewGroup { suite, ..NewGroup::default() };
        let (group, request) = alice.create_group(&hub, &new, *NOW).unwrap();
        let mut wire = Wire::default();
        assert!(matches!(run(&mut wire, alice, request), Settled::Done(_)));
        wire.open(alice.client());
        for added in others {
            add(&mut wire, &group, alice, added);
        }
        let scene = Self { wire, group, a, b };
        scene.with(others)
    }

    fn with(mut self, members: &[&Member]) -> Self {
        self.deliver(members);
        self
    }

    fn deliver(&mut self, members: &[&Member]) {
        for member in members {
            self.wire.deliver(&self.group, member);
        }
    }

    /// `by` sends its Commit; the hub has taken it, and `by` has no answer yet.
    fn start(&mut self, by: &Member) -> (RequestId, MigrationConfirmation) {
        let response = self.b.promise(&by.wish_to_move(&self.group, &self.b.domain).unwrap());
        let request = self.begin(by, &response);
        let outbound = by.outbound(request, *NOW).unwrap();
        self.wire.accept(&outbound.message, by.client());
        (request, self.a.confirm(&response))
    }

    fn begin(&self, by: &Member, response: &MigrationResponse) -> RequestId {
        by.begin(&self.group, Operation::Migrate { response: encode(response) }).unwrap()
    }

    /// `by` moves the group; the others have not read of it yet.
    fn migrate(&mut self, by: &Member) -> MigrationConfirmation {
        let (request, confirmation) = self.start(by);
        let settled = by.settle(request, &moving(&confirmation), *NOW).unwrap();
        assert!(matches!(settled, Settled::Done(_)), "{settled:?}");
        confirmation
    }

    fn hub_of(&self, member: &Member) -> Domain {
        member.group(&self.group).unwrap().hub
    }

    fn moves_seen(&self, member: &Member) -> Vec<(Domain, Domain)> {
        let moved = |event| match event {
            Event::Moved { from, to, .. } => Some((from, to)),
            _ => None,
        };
        all(member).into_iter().filter_map(moved).collect()
    }

    /// A commit of `by` that puts `sender` into the hub's place, whatever the rules say.
    fn rogue(&mut self, by: &Member, sender: mls::ExternalSender, aad: &[u8]) {
        let mut group = by.load(&self.group).unwrap();
        let signer = by.record(&self.group).unwrap().leaf_key.open().unwrap();
        group.set_aad(aad.to_vec());
        let mut extensions = group.extensions().clone();
        extensions.add_or_replace(mls::Extension::ExternalSenders(vec![sender])).unwrap();
        let provider = by.home.provider();
        let bundle = group
            .commit_builder()
            .propose_group_context_extensions(extensions)
            .unwrap()
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), &signer, |_| true)
            .unwrap()
            .stage_commit(&provider)
            .unwrap();
        let event = QueueEvent::MlsMessage { message: Raw::of(bundle.commit()) };
        self.wire.sequence += 1;
        self.wire.feed.push((self.wire.sequence, by.client().clone(), event));
    }

    fn notice(&mut self, confirmation: &MigrationConfirmation) {
        let event = QueueEvent::GroupMoved { confirmation: confirmation.clone() };
        self.wire.sequence += 1;
        self.wire.feed.push((self.wire.sequence, client("nobody", "none"), event));
    }
}

fn misbehaviours(member: &Member) -> usize {
    all(member).iter().filter(|event| matches!(event, Event::Misbehaviour { .. })).count()
}

fn lost(member: &Member, group: &GroupId) -> bool {
    member.group(group).unwrap().state == GroupState::Lost
}

fn three() -> (Member, Member, Member) {
    (member("alice", "phone"), member("bob", "phone"), member("carol", "phone"))
}

#[test]
fn commit_that_moves_a_group_changes_the_hub_alone_and_every_member_follows_it() {
    for suite in SUITES {
        let (alice, bob, carol) = three();
        let mut scene = Scene::new(suite, &alice, &[&bob, &carol]);
        let group = scene.group.clone();
        // what is pending goes with it
        let proposals = vec![NewProposal::Update];
        operate(&mut scene.wire, &bob, &group, Operation::Propose { proposals });
        scene.deliver(&[&alice, &carol]);
        let before = alice.load(&group).unwrap();
        let response = scene.b.promise(&alice.wish_to_move(&group, &scene.b.domain).unwrap());
        let request = scene.begin(&alice, &response);
        let outbound = alice.outbound(request, *NOW).unwrap();

        assert_eq!(outbound.hub, scene.a.domain);
        let DsRequest::StartMigration(body) = &outbound.message.request else { panic!("a move") };
        let StartMigration { init, update } = body.as_ref();
        let leaf_key = before.own_leaf_node().unwrap().signature_key().as_slice();
        assert_eq!(proof::check_init(scheme_of(suite), leaf_key, init), Ok(()));
        assert_eq!(init.migration_response, response);
        let head = proof::commit_head(&update.commit).unwrap();
        assert_eq!(head.epoch, epoch_of(&before));
        assert_eq!(head.sender, LeafIndex(before.own_leaf_index().u32()));
        assert!(proof::names_target(&head.aad, &scene.b.domain));
        assert_eq!(update.welcome, None);

        scene.wire.accept(&outbound.message, alice.client());
        let confirmation = scene.a.confirm(&response);
        let settled = alice.settle(request, &moving(&confirmation), *NOW).unwrap();
        let Settled::Done(accepted) = settled else { panic!("{settled:?}") };
        assert_eq!((accepted.group_sequence, accepted.epoch), (Sequence(38), confirmation.epoch));
        let after = alice.load(&group).unwrap();
        let mut expected = before.extensions().clone();
        let senders = mls::Extension::ExternalSenders(vec![scene.b.sender()]);
        expected.add_or_replace(senders).unwrap();
        assert_eq!(*after.extensions(), expected);
        let own = after.own_leaf_node().unwrap();
        assert_eq!(own.signature_key().as_slice(), leaf_key);
        assert_ne!(own.encryption_key(), before.own_leaf_node().unwrap().encryption_key());

        scene.deliver(&[&bob, &carol]);
        agree(&group, &[&alice, &bob, &carol]);
        let to = named("b.example");
        for one in [&alice, &bob, &carol] {
            assert_eq!(scene.hub_of(one), to, "{:?}", all(one));
            assert_eq!(scene.moves_seen(one), [(domain(), to.clone())]);
        }
        let request = bob.begin(&group, Operation::UpdateClient { rotate_key: true }).unwrap();
        let outbound = bob.outbound(request, *NOW).unwrap();
        assert_eq!((&outbound.hub, &outbound.message.context.hub_domain), (&to, &to));
    }
}

#[test]
fn newcomers_that_were_proposed_get_their_welcome_with_the_move() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let proposals = vec![NewProposal::Add(key_package(&carol, SUITES[0]))];
    operate(&mut scene.wire, &bob, &group, Operation::Propose { proposals });
    scene.deliver(&[&alice]);
    let response = scene.b.promise(&alice.wish_to_move(&group, &scene.b.domain).unwrap());
    let request = scene.begin(&alice, &response);
    let outbound = alice.outbound(request, *NOW).unwrap();
    let DsRequest::StartMigration(body) = &outbound.message.request else { panic!("a move") };
    assert!(body.update.welcome.is_some());
}

#[test]
fn word_of_the_source_that_is_not_good_changes_nothing() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let (request, good) = scene.start(&alice);
    let before = alice.group(&scene.group).unwrap();
    let other = GroupId::of(&domain(), [9; 16]);
    let bad = [
        MigrationConfirmation { nonce: [0; 32], ..good.clone() },
        MigrationConfirmation { domain_name: named("c.example"), ..good.clone() },
        MigrationConfirmation { source_domain: named("c.example"), ..good.clone() },
        MigrationConfirmation { epoch: good.epoch.next(), ..good.clone() },
        MigrationConfirmation { group_id: other, ..good.clone() },
    ];
    for confirmation in &bad {
        let answer = moving(&scene.a.sign(confirmation.clone()));
        let error = alice.settle(request, &answer, *NOW).unwrap_err();
        assert!(matches!(error, CoreError::Confirmation(_)), "{error}");
    }
    let mut forged = good.clone();
    forged.next_sequence = Sequence(41);
    for confirmation in [forged, scene.b.sign(good.clone())] {
        let error = alice.settle(request, &moving(&confirmation), *NOW).unwrap_err();
        assert!(matches!(error, CoreError::Proof(ProofError::Signature(_))), "{error}");
    }
    let view = alice.group(&scene.group).unwrap();
    assert_eq!((view.epoch, &view.hub), (before.epoch, &before.hub));
    assert_eq!(scene.moves_seen(&alice), []);
    // who did not ask for it takes no such answer
    let update = Operation::UpdateClient { rotate_key: false };
    let unasked = bob.begin(&scene.group, update).unwrap();
    bob.outbound(unasked, *NOW).unwrap();
    let error = bob.settle(unasked, &moving(&good), *NOW).unwrap_err();
    assert!(matches!(error, CoreError::Confirmation(_)), "{error}");
    // and the good one is taken after all
    assert!(matches!(alice.settle(request, &moving(&good), *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(scene.hub_of(&alice), scene.b.domain);
}

#[test]
fn move_whose_answer_was_lost_is_known_by_the_chain_or_by_the_target() {
    for by_chain in [true, false] {
        let (alice, bob, _) = three();
        let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
        let (request, link) = scene.start(&alice);
        // the entries behind the Commit wait for the answer
        scene.notice(&link);
        scene.deliver(&[&bob]);
        scene.deliver(&[&alice]);
        let group = scene.group.clone();
        operate(&mut scene.wire, &bob, &group, Operation::UpdateClient { rotate_key: false });
        assert_eq!(scene.wire.deliver(&group, &alice), Some(Handled::Wait));
        let answer = if by_chain {
            moved(&[&link])
        } else {
            DsResponse {
                version: ProtocolVersion::MIMI10,
                outcome: Outcome::Ok(DsResponseBody::Accepted(Accepted {
                    group_sequence: Sequence(38),
                    accepted_at: *NOW,
                    epoch: link.epoch,
                })),
            }
        };
        assert!(matches!(alice.settle(request, &answer, *NOW).unwrap(), Settled::Done(_)));
        scene.deliver(&[&alice]);
        agree(&group, &[&alice, &bob]);
        assert_eq!(scene.hub_of(&alice), scene.b.domain);
        assert_eq!(misbehaviours(&alice) + misbehaviours(&bob), 0, "{:?}", all(&alice));
    }
}

#[test]
fn move_that_another_commit_came_before_is_asked_for_anew() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let response = scene.b.promise(&alice.wish_to_move(&group, &scene.b.domain).unwrap());
    let request = scene.begin(&alice, &response);
    let outbound = alice.outbound(request, *NOW).unwrap();
    operate(&mut scene.wire, &bob, &group, Operation::UpdateClient { rotate_key: false });
    let refused = scene.wire.accept(&outbound.message, alice.client());
    assert_eq!(alice.settle(request, &refused, *NOW).unwrap(), Settled::Again { after_ms: 0 });
    let error = alice.outbound(request, *NOW).unwrap_err();
    assert!(matches!(error, CoreError::PromiseOutdated(_)), "{error}");
    alice.give_up(request).unwrap();
    scene.migrate(&alice);
    scene.deliver(&[&bob]);
    agree(&group, &[&alice, &bob]);
    assert_eq!(scene.hub_of(&bob), scene.b.domain);
    // there it is already
    let error = alice.wish_to_move(&group, &scene.b.domain).unwrap_err();
    assert!(matches!(error, CoreError::NothingToDo(_)), "{error}");
}

#[test]
fn proposal_that_came_before_goes_into_the_same_move() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let response = scene.b.promise(&alice.wish_to_move(&group, &scene.b.domain).unwrap());
    let request = scene.begin(&alice, &response);
    let first = alice.outbound(request, *NOW).unwrap();
    let proposals = vec![NewProposal::Update];
    operate(&mut scene.wire, &bob, &group, Operation::Propose { proposals });
    let pending = scene.wire.handshakes.last().unwrap().1.clone();
    let refused = refuse(DsError::PendingProposals {
        detail: Detail::truncated("cover it"),
        pending: List::new(vec![pending]).unwrap(),
    });
    assert_eq!(alice.settle(request, &refused, *NOW).unwrap(), Settled::Again { after_ms: 0 });
    let second = alice.outbound(request, *NOW).unwrap();
    assert_ne!(second.message.request, first.message.request);
    assert_eq!(second.message.context.request_id, first.message.context.request_id);
    scene.wire.accept(&second.message, alice.client());
    let answer = moving(&scene.a.confirm(&response));
    assert!(matches!(alice.settle(request, &answer, *NOW).unwrap(), Settled::Done(_)));
    scene.deliver(&[&bob]);
    agree(&group, &[&alice, &bob]);
}

#[test]
fn move_that_the_hub_gives_up_leaves_the_group_where_it_is() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let response = scene.b.promise(&alice.wish_to_move(&scene.group, &scene.b.domain).unwrap());
    let request = scene.begin(&alice, &response);
    alice.outbound(request, *NOW).unwrap();
    let detail = || Detail::truncated("the target did not take it");
    let later = refuse(DsError::Unavailable { detail: detail(), retry_after_ms: 5 });
    assert_eq!(alice.settle(request, &later, *NOW).unwrap(), Settled::Again { after_ms: 5 });
    let never = refuse(DsError::NotAuthorized { detail: detail() });
    assert!(matches!(alice.settle(request, &never, *NOW).unwrap(), Settled::Refused(_)));
    assert_eq!(alice.pending().unwrap(), []);
    let group = scene.group.clone();
    say(&mut scene.wire, &alice, &group, "still here");
    operate(&mut scene.wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    scene.deliver(&[&bob]);
    agree(&group, &[&alice, &bob]);
    assert_eq!((texts(&bob), scene.hub_of(&bob)), (vec!["still here".to_owned()], domain()));
}

#[test]
fn promise_counts_only_for_what_was_asked_and_from_whom() {
    let (alice, bob, _) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let wanted = alice.wish_to_move(&scene.group, &scene.b.domain).unwrap();
    assert_eq!(wanted.source_domain_name, domain());
    let good = scene.b.promise(&wanted);
    check_promise(&wanted, &good, *NOW).unwrap();
    let error = check_promise(&wanted, &good, good.expires_at).unwrap_err();
    assert!(matches!(error, CoreError::PromiseOutdated(_)), "{error}");
    let elsewhere = MigrationRequest { epoch: wanted.epoch.next(), ..wanted.clone() };
    let error = check_promise(&wanted, &scene.b.promise(&elsewhere), *NOW).unwrap_err();
    assert!(matches!(error, CoreError::Invalid(_)), "{error}");
    let mut forged = good.clone();
    forged.nonce = [0; 32];
    let error = check_promise(&wanted, &forged, *NOW).unwrap_err();
    assert!(matches!(error, CoreError::Proof(ProofError::Signature(_))), "{error}");
    let error = check_promise(&wanted, &scene.a.promise(&wanted), *NOW).unwrap_err();
    assert!(matches!(error, CoreError::Proof(ProofError::Sender)), "{error}");
    // nor is anything built on one that is not good
    for response in [forged, scene.a.promise(&wanted), scene.b.promise(&elsewhere)] {
        let request = scene.begin(&alice, &response);
        assert!(alice.outbound(request, *NOW).is_err());
        alice.give_up(request).unwrap();
    }
}

#[test]
fn only_who_may_migrate_moves_a_group() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob, &carol]);
    let group = scene.group.clone();
    let error = bob.wish_to_move(&group, &scene.b.domain).unwrap_err();
    assert!(matches!(error, CoreError::Denied(Denied::Role { .. })), "{error}");
    // a hub that lets it pass finds nobody who follows
    let response = scene.b.promise(&alice.wish_to_move(&group, &scene.b.domain).unwrap());
    let request = scene.begin(&bob, &response);
    let outbound = bob.outbound(request, *NOW).unwrap();
    scene.wire.accept(&outbound.message, bob.client());
    scene.deliver(&[&alice, &carol]);
    for one in [&alice, &carol] {
        assert!(lost(one, &group), "{:?}", all(one));
        assert_eq!(scene.hub_of(one), domain());
    }
}

#[test]
fn policy_may_let_every_member_move_the_group() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let may = PolicyChange::May { what: Right::Migrate, role: Role::Member };
    operate(&mut scene.wire, &alice, &group, Operation::UpdateGroup { changes: vec![may] });
    scene.deliver(&[&bob]);
    scene.migrate(&bob);
    scene.deliver(&[&alice]);
    agree(&group, &[&alice, &bob]);
    assert_eq!(scene.hub_of(&alice), scene.b.domain);
}

#[test]
fn commit_that_moves_the_group_and_does_not_say_so_is_not_followed() {
    let good = |target: &str| {
        encode(&crate::wire::portability::MigrationCommitAad { target_ds_domain: named(target) })
    };
    for (aad, followed) in [(vec![], false), (good("c.example"), false), (good("b.example"), true)]
    {
        let (alice, bob, _) = three();
        let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
        let sender = scene.b.sender();
        scene.rogue(&alice, sender, &aad);
        scene.deliver(&[&bob]);
        assert_eq!(lost(&bob, &scene.group), !followed, "{:?}", all(&bob));
        let hub = if followed { scene.b.domain.clone() } else { domain() };
        assert_eq!(scene.hub_of(&bob), hub);
    }
}

#[test]
fn new_key_of_the_same_hub_is_no_move() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let before = bob.group(&scene.group).unwrap().epoch.unwrap();
    scene.rogue(&alice, sender(&key, &domain()), &[]);
    scene.deliver(&[&bob]);
    let view = bob.group(&scene.group).unwrap();
    assert_eq!((view.epoch, view.state), (Some(before.next()), GroupState::Active));
    assert_eq!((view.hub, scene.moves_seen(&bob)), (domain(), vec![]));
}

#[test]
fn proposal_to_move_the_group_is_not_taken_up() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let mut group = alice.load(&scene.group).unwrap();
    let signer = alice.record(&scene.group).unwrap().leaf_key.open().unwrap();
    let mut extensions = group.extensions().clone();
    let senders = mls::Extension::ExternalSenders(vec![scene.b.sender()]);
    extensions.add_or_replace(senders).unwrap();
    let (message, _) = group
        .propose_group_context_extensions(&alice.home.provider(), extensions, &signer)
        .unwrap();
    let event = QueueEvent::MlsMessage { message: Raw::of(&message) };
    scene.wire.sequence += 1;
    scene.wire.feed.push((scene.wire.sequence, alice.client().clone(), event));
    scene.deliver(&[&bob]);
    assert_eq!(bob.group(&scene.group).unwrap().pending, 0);
    assert_eq!(misbehaviours(&bob), 1, "{:?}", all(&bob));
}

#[test]
fn active_member_reads_its_queue_and_sends_the_same_request_to_the_new_hub() {
    for operation in [
        Operation::Send { content: Content::text("on the way").encode() },
        Operation::UpdateFanoutInfo { filter: FanoutFilter::All },
    ] {
        let (alice, bob, _) = three();
        let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
        let request = bob.begin(&scene.group, operation).unwrap();
        let first = bob.outbound(request, *NOW).unwrap();
        let link = scene.migrate(&alice);
        // a hub's word alone moves no member, whatever it says
        let evil = scene.a.link(&scene.group, "evil.example", 9);
        for answer in [moved(&[&evil]), moved(&[&link]), moved(&[])] {
            let Settled::Again { after_ms } = bob.settle(request, &answer, *NOW).unwrap() else {
                panic!("it is to be tried again")
            };
            assert!(after_ms > 0, "after the queue has been read");
            assert_eq!(bob.outbound(request, *NOW).unwrap().hub, domain());
        }
        scene.deliver(&[&bob]);
        let second = bob.outbound(request, *NOW).unwrap();
        assert_eq!(second.hub, scene.b.domain);
        assert_eq!(second.message.context.hub_domain, scene.b.domain);
        assert_eq!(second.message.context.request_id, first.message.context.request_id);
        let accepted = scene.wire.accept(&second.message, bob.client());
        assert!(matches!(bob.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
        assert_eq!(scene.hub_of(&bob), scene.b.domain);
    }
}

#[test]
fn commit_without_an_answer_is_asked_about_where_the_group_has_moved_to() {
    let update = Operation::UpdateClient { rotate_key: true };
    for was_accepted in [true, false] {
        let (alice, bob, _) = three();
        let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
        let group = scene.group.clone();
        let request = bob.begin(&group, update.clone()).unwrap();
        let first = bob.outbound(request, *NOW).unwrap();
        let mut lost_answer = None;
        if was_accepted {
            lost_answer = Some(scene.wire.accept(&first.message, bob.client()));
            scene.deliver(&[&alice]);
        }
        let link = scene.migrate(&alice);
        if was_accepted {
            // the answer is all that says so
            assert_eq!(scene.wire.deliver(&group, &bob), Some(Handled::Wait));
        }
        // a chain that leads nowhere changes nothing
        let evil = scene.b.link(&group, "evil.example", 9);
        for answer in [moved(&[&evil]), moved(&[])] {
            let settled = bob.settle(request, &answer, *NOW).unwrap();
            assert!(matches!(settled, Settled::Again { after_ms: 1.. }), "{settled:?}");
            assert_eq!(bob.outbound(request, *NOW).unwrap().hub, domain());
        }
        let settled = bob.settle(request, &moved(&[&link]), *NOW).unwrap();
        assert_eq!(settled, Settled::Again { after_ms: 0 });
        let second = bob.outbound(request, *NOW).unwrap();
        assert_eq!(second.hub, scene.b.domain);
        assert_eq!(second.message.context.request_id, first.message.context.request_id);
        assert_eq!(encode(&second.message.request), encode(&first.message.request));
        // the target knows what the source has accepted
        let answer =
            lost_answer.unwrap_or_else(|| scene.wire.accept(&second.message, bob.client()));
        let settled = bob.settle(request, &answer, *NOW).unwrap();
        if !was_accepted {
            assert!(matches!(settled, Settled::Again { .. }), "{settled:?}");
            let third = bob.outbound(request, *NOW).unwrap();
            assert_eq!(third.hub, scene.b.domain, "it has the Commit from there");
            let accepted = scene.wire.accept(&third.message, bob.client());
            assert!(matches!(bob.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
        }
        scene.deliver(&[&bob, &alice]);
        agree(&group, &[&alice, &bob]);
        assert_eq!(scene.hub_of(&bob), scene.b.domain);
        assert_eq!(bob.pending().unwrap(), []);
    }
}

#[test]
fn commit_that_the_target_knows_nothing_of_waits_for_the_queue() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let update = Operation::UpdateClient { rotate_key: false };
    let request = bob.begin(&scene.group, update).unwrap();
    bob.outbound(request, *NOW).unwrap();
    let link = scene.migrate(&alice);
    for _ in 0..20 {
        assert_eq!(bob.outbound(request, *NOW).unwrap().hub, domain());
        bob.settle(request, &moved(&[&link]), *NOW).unwrap();
        assert_eq!(bob.outbound(request, *NOW).unwrap().hub, scene.b.domain);
        let nothing = refuse(DsError::WrongEpoch {
            detail: Detail::truncated("too late"),
            current_epoch: Epoch(scene.wire.epoch),
            missed: List::default(),
        });
        let settled = bob.settle(request, &nothing, *NOW).unwrap();
        assert!(matches!(settled, Settled::Again { after_ms: 1.. }), "{settled:?}");
    }
    let evil = scene.a.link(&scene.group, "evil.example", 9);
    bob.outbound(request, *NOW).unwrap();
    bob.settle(request, &moved(&[&evil]), *NOW).unwrap();
    assert_eq!(bob.outbound(request, *NOW).unwrap().hub, named("evil.example"));
    scene.deliver(&[&bob]);
    let outbound = bob.outbound(request, *NOW).unwrap();
    assert_eq!(outbound.hub, scene.b.domain, "the Commit says so");
    let accepted = scene.wire.accept(&outbound.message, bob.client());
    assert!(matches!(bob.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
}

/// Enters by what `inside` knows; the hub that is asked first says what `answers` has, one after the other.
fn enter_by(
    scene: &mut Scene,
    joiner: &Member,
    inside: &Member,
    request: RequestId,
    answers: &[(&str, DsResponse)],
) {
    for (asked, answer) in answers {
        assert_eq!(joiner.outbound(request, *NOW).unwrap().hub, named(asked));
        let settled = joiner.settle(request, answer, *NOW).unwrap();
        assert_eq!(settled, Settled::Again { after_ms: 0 });
    }
    let group = scene.group.clone();
    enter(&mut scene.wire, &group, joiner, inside, request);
}

#[test]
fn lost_member_follows_the_chain_and_learns_the_hub_from_the_group() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let link = scene.migrate(&alice);
    bob.home.step(|| bob.lose(&scene.group, "a test".to_owned())).unwrap();
    let (request, ..) = bob.pending().unwrap().pop().unwrap();
    enter_by(&mut scene, &bob, &alice, request, &[("a.example", moved(&[&link]))]);
    scene.deliver(&[&alice]);
    agree(&scene.group, &[&alice, &bob]);
    assert_eq!(scene.hub_of(&bob), scene.b.domain);
    assert_eq!(scene.moves_seen(&bob), [(domain(), scene.b.domain.clone())]);
    assert_eq!(bob.pending().unwrap(), []);
}

#[test]
fn lost_member_is_sent_on_where_the_group_moved_again() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let first = scene.migrate(&alice);
    let (a, b) = (domain(), scene.b.domain.clone());
    let c = Provider::new("c.example", SignatureScheme::ED25519);
    scene.a = std::mem::replace(&mut scene.b, c);
    let second = scene.migrate(&alice);
    bob.home.step(|| bob.lose(&scene.group, "a test".to_owned())).unwrap();
    let (request, ..) = bob.pending().unwrap().pop().unwrap();
    let answers = [("a.example", moved(&[&first])), ("b.example", moved(&[&first, &second]))];
    enter_by(&mut scene, &bob, &alice, request, &answers);
    assert_eq!(scene.hub_of(&bob), named("c.example"));
    assert_eq!(scene.moves_seen(&alice), [(a, b.clone()), (b, named("c.example"))]);
}

#[test]
fn external_joiner_is_sent_on_and_trusts_only_a_group_that_names_who_shows_it() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let changes = vec![PolicyChange::Join(JoinPolicy::Open)];
    operate(&mut scene.wire, &alice, &group, Operation::UpdateGroup { changes });
    let link = scene.migrate(&alice);
    let join = Operation::Join { code: None };
    let request = carol.join(&group, &domain(), "", join.clone(), *NOW).unwrap();
    enter_by(&mut scene, &carol, &alice, request, &[("a.example", moved(&[&link]))]);
    assert_eq!(scene.hub_of(&carol), scene.b.domain);
    assert_eq!(scene.moves_seen(&carol), [], "it was never elsewhere for her");
    scene.deliver(&[&alice, &bob]);
    agree(&group, &[&alice, &bob, &carol]);

    let dave = member("dave", "phone");
    let request = dave.join(&group, &domain(), "", Operation::AskToJoin, *NOW).unwrap();
    dave.settle(request, &moved(&[&link]), *NOW).unwrap();
    dave.settle(request, &info(&alice, &group), *NOW).unwrap();
    let outbound = dave.outbound(request, *NOW).unwrap();
    assert_eq!(outbound.hub, scene.b.domain);
    let accepted = scene.wire.accept(&outbound.message, dave.client());
    assert!(matches!(dave.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(scene.hub_of(&dave), scene.b.domain);

    // a chain that leads to who is not the group's hub leads to nothing
    let evil = scene.a.link(&group, "evil.example", 9);
    for operation in [join, Operation::AskToJoin] {
        let erin = member("erin", "phone");
        let request = erin.join(&group, &domain(), "", operation, *NOW).unwrap();
        erin.settle(request, &moved(&[&evil]), *NOW).unwrap();
        assert_eq!(erin.outbound(request, *NOW).unwrap().hub, named("evil.example"));
        erin.settle(request, &info(&alice, &group), *NOW).unwrap();
        let error = erin.outbound(request, *NOW).unwrap_err();
        assert!(matches!(error, CoreError::Invalid(_)), "{error}");
    }
}

#[test]
fn joiner_whose_welcome_is_from_before_the_move_enters_there_and_follows_the_commit() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let key_packages = vec![key_package(&carol, SUITES[0])];
    let adding = alice.begin(&group, Operation::AddUsers { key_packages }).unwrap();
    let outbound = alice.outbound(adding, *NOW).unwrap();
    let DsRequest::AddUsers(body) = &outbound.message.request else { panic!("an add") };
    let welcome = body.welcome.clone();
    let response = scene.wire.accept(&outbound.message, alice.client());
    alice.settle(adding, &response, *NOW).unwrap();
    let then = info(&alice, &group);
    let position = scene.wire.sequence;
    let link = scene.migrate(&alice);
    let entry = QueueEntry {
        feed: FeedId(0),
        sequence: Sequence(1),
        previous: Sequence(0),
        accepted_at: *NOW,
        group_id: Opaque::new(group.as_bytes()).unwrap(),
        event: QueueEvent::Welcome { hub_domain: domain(), welcome },
    };
    carol.handle(&entry, *NOW).unwrap();
    let (request, ..) = carol.pending().unwrap().pop().unwrap();
    // of a link that was not signed by the hub in the Welcome nothing is believed, nor of a chain without it
    let forged = scene.b.sign(MigrationConfirmation { ..link.clone() });
    let other = scene.b.link(&group, "c.example", 9);
    for chain in [vec![&forged], vec![&other]] {
        let error = carol.settle(request, &moved(&chain), *NOW).unwrap_err();
        assert!(matches!(error, CoreError::Chain { .. }), "{error}");
        assert_eq!(carol.outbound(request, *NOW).unwrap().hub, domain());
    }
    carol.settle(request, &moved(&[&link]), *NOW).unwrap();
    assert_eq!(carol.outbound(request, *NOW).unwrap().hub, scene.b.domain);
    assert_eq!(carol.settle(request, &then, *NOW).unwrap(), Settled::Entered);
    assert_eq!(carol.group(&group).unwrap().state, GroupState::Active, "{:?}", all(&carol));
    assert_eq!(scene.hub_of(&carol), domain());
    scene.wire.open(carol.client());
    scene.wire.readers.get_mut(carol.client()).unwrap().1 = position;
    scene.notice(&link);
    scene.deliver(&[&carol]);
    agree(&group, &[&alice, &carol]);
    assert_eq!(scene.hub_of(&carol), scene.b.domain);
    assert_eq!(misbehaviours(&carol), 0, "{:?}", all(&carol));
}

/// A feed of a membership that is over, which its client has not read.
struct Unread {
    feed: u64,
    entries: Vec<(u64, QueueEvent)>,
}

impl Scene {
    /// `by` adds `added`, whose queue has the Welcome as number `at` of its own feed. Gives the request that takes it up.
    fn invite(&mut self, by: &Member, added: &Member, hub: &Domain, at: u64) -> RequestId {
        let key_packages = vec![key_package(added, SUITES[0])];
        let request = by.begin(&self.group, Operation::AddUsers { key_packages }).unwrap();
        let outbound = by.outbound(request, *NOW).unwrap();
        let DsRequest::AddUsers(body) = &outbound.message.request else { panic!("an add") };
        let event = QueueEvent::Welcome { hub_domain: hub.clone(), welcome: body.welcome.clone() };
        let response = self.wire.accept(&outbound.message, by.client());
        assert!(matches!(by.settle(request, &response, *NOW).unwrap(), Settled::Done(_)));
        assert_eq!(self.hand(added, 0, at, at - 1, event), Handled::Taken);
        self.wire.open(added.client());
        added.pending().unwrap().pop().expect("the Welcome is to be taken up").0
    }

    fn hand(&self, to: &Member, feed: u64, at: u64, previous: u64, event: QueueEvent) -> Handled {
        let entry = QueueEntry {
            feed: FeedId(feed),
            sequence: Sequence(at),
            previous: Sequence(previous),
            accepted_at: *NOW,
            group_id: Opaque::new(self.group.as_bytes()).unwrap(),
            event,
        };
        to.handle(&entry, *NOW).unwrap()
    }

    fn hand_all(&self, to: &Member, unread: &Unread) {
        let mut previous = 0;
        for (at, event) in &unread.entries {
            let handled = self.hand(to, unread.feed, *at, previous, event.clone());
            assert_eq!(handled, Handled::Taken);
            previous = *at;
        }
    }
}

/// alice adds carol, whose Welcome gets no answer, moves the group, removes carol and adds her again. The second Welcome carol
/// takes up, and of her first membership she has read nothing.
fn added_twice(alice: &Member, bob: &Member, carol: &Member) -> (Scene, Unread) {
    let mut scene = Scene::new(SUITES[0], alice, &[bob]);
    let group = scene.group.clone();
    let (here, there) = (scene.a.domain.clone(), scene.b.domain.clone());
    let first = scene.invite(alice, carol, &here, 1);
    let (feed, from, _) = scene.wire.readers[carol.client()];
    say(&mut scene.wire, alice, &group, "in front of the move");
    assert_eq!(scene.wire.deliver(&group, carol), Some(Handled::Wait));
    let link = scene.migrate(alice);
    scene.notice(&link);
    operate(&mut scene.wire, alice, &group, Operation::UpdateClient { rotate_key: false });
    say(&mut scene.wire, alice, &group, "behind the move");
    let users = vec![carol.client().user()];
    operate(&mut scene.wire, alice, &group, Operation::RemoveUsers { users });
    let entries = scene.wire.feed.iter().filter(|(at, ..)| *at > from);
    let mut entries: Vec<(u64, QueueEvent)> =
        entries.map(|(at, _, event)| (*at, event.clone())).collect();
    entries.push((scene.wire.sequence + 1, QueueEvent::Removed));

    let second = scene.invite(alice, carol, &there, 2);
    carol.outbound(first, *NOW).unwrap();
    let refused = refuse(DsError::Unauthenticated { detail: Detail::truncated("no joiner") });
    assert!(matches!(carol.settle(first, &refused, *NOW).unwrap(), Settled::Refused(_)));
    carol.outbound(second, *NOW).unwrap();
    assert_eq!(carol.settle(second, &info(alice, &group), *NOW).unwrap(), Settled::Entered);
    assert_eq!(carol.group(&group).unwrap().state, GroupState::Active, "{:?}", all(carol));
    (scene, Unread { feed, entries })
}

#[test]
fn notice_of_a_move_in_an_earlier_membership_does_not_make_its_feed_this_one_s() {
    let (alice, bob, carol) = three();
    let (mut scene, earlier) = added_twice(&alice, &bob, &carol);
    let group = scene.group.clone();
    scene.hand_all(&carol, &earlier);
    assert_eq!(carol.group(&group).unwrap().state, GroupState::Active, "{:?}", all(&carol));
    say(&mut scene.wire, &alice, &group, "welcome back");
    scene.deliver(&[&carol]);
    assert_eq!(texts(&carol), ["welcome back"]);
    let unreadable = |event: &Event| matches!(event, Event::Unreadable { .. });
    assert!(!all(&carol).iter().any(unreadable), "{:?}", all(&carol));
    assert_eq!(misbehaviours(&carol), 0, "{:?}", all(&carol));
    agree(&group, &[&alice, &carol]);
    // and by the end of its own feed this membership is over
    let users = vec![carol.client().user()];
    operate(&mut scene.wire, &alice, &group, Operation::RemoveUsers { users });
    scene.deliver(&[&carol]);
    assert_eq!(carol.group(&group).unwrap().state, GroupState::Left);
}

#[test]
fn gap_in_what_an_earlier_membership_left_puts_nobody_out() {
    let (alice, bob, carol) = three();
    let (scene, earlier) = added_twice(&alice, &bob, &carol);
    let (end, removed) = earlier.entries.last().cloned().unwrap();
    let gap = QueueEvent::Gap { next_available: Sequence(end) };
    let left = Unread { feed: earlier.feed, entries: vec![(end - 1, gap), (end, removed)] };
    scene.hand_all(&carol, &left);
    // whether she lacks something nobody can tell: she comes in anew, which says whether she is in the group
    assert!(lost(&carol, &scene.group), "{:?}", all(&carol));
    let (.., operation) = carol.pending().unwrap().pop().expect("a resync");
    assert_eq!(operation, Operation::Resync);
}

#[test]
fn chain_that_does_not_link_up_is_refused_and_said_to_be_bad() {
    let (alice, bob, carol) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let (a, b) = (&scene.a, &scene.b);
    let other = GroupId::of(&domain(), [9; 16]);
    let c = Provider::new("c.example", SignatureScheme::ED25519);
    let epoch = alice.group(&group).unwrap().epoch.unwrap().0;
    let chains = [
        vec![],
        vec![a.link(&other, "b.example", 5)],
        vec![a.link(&group, "b.example", 5), c.link(&group, "d.example", 7)],
        vec![a.link(&group, "b.example", 5), b.link(&group, "c.example", 5)],
        vec![a.link(&group, "b.example", 5), b.link(&group, "c.example", 4)],
        vec![b.link(&group, "c.example", 5)],
        vec![a.link(&group, "b.example", 5), b.link(&group, "a.example", 7)],
    ];
    let joining = carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    bob.home.step(|| bob.lose(&group, "a test".to_owned())).unwrap();
    let (resync, ..) = bob.pending().unwrap().pop().unwrap();
    for chain in &chains {
        for (member, request) in [(&carol, joining), (&bob, resync)] {
            let answer = moved(&chain.iter().collect::<Vec<_>>());
            let error = member.settle(request, &answer, *NOW).unwrap_err();
            assert!(matches!(error, CoreError::Chain { .. }), "{error}");
            assert!(error.to_string().contains("a.example"), "{error}");
            assert_eq!(member.outbound(request, *NOW).unwrap().hub, domain());
        }
    }
    // what follows the very epoch that a lost member knows is signed with the key that it knows
    let forged = b.sign(a.link(&group, "b.example", epoch + 1));
    assert!(bob.settle(resync, &moved(&[&forged]), *NOW).is_err());
    let good = a.link(&group, "b.example", epoch + 1);
    assert_eq!(bob.settle(resync, &moved(&[&good]), *NOW).unwrap(), Settled::Again { after_ms: 0 });
}

#[test]
fn newcomer_who_came_beside_a_proposal_asks_anew_what_the_group_is() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let proposals = vec![NewProposal::Update];
    operate(&mut scene.wire, &bob, &group, Operation::Propose { proposals });
    let pending = scene.wire.handshakes.last().unwrap().1.clone();
    let refused = refuse(DsError::PendingProposals {
        detail: Detail::truncated("cover it"),
        pending: List::new(vec![pending]).unwrap(),
    });
    let request = carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    // it has no state of the group in which it could hold what is pending
    assert_eq!(carol.settle(request, &refused, *NOW).unwrap(), Settled::Again { after_ms: 0 });
    let again = carol.outbound(request, *NOW).unwrap();
    assert!(matches!(again.message.request, DsRequest::ExternalCommitInfo(_)));
}

#[test]
fn providers_that_name_each_other_without_end_are_followed_a_few_times() {
    let (alice, bob, carol) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let request = carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    let mut hops = 0;
    let error = loop {
        let from = carol.outbound(request, *NOW).unwrap().hub;
        let provider = Provider { domain: from, key: scene.a.key.clone() };
        let link = provider.link(&group, &format!("p{hops}.example"), 10 + hops);
        match carol.settle(request, &moved(&[&link]), *NOW) {
            Ok(settled) => assert_eq!(settled, Settled::Again { after_ms: 0 }),
            Err(error) => break error,
        }
        // what was before the last step leads nowhere any more
        assert!(carol.settle(request, &moved(&[&link]), *NOW).is_err());
        hops += 1;
        assert!(hops < 100);
    };
    assert!(matches!(error, CoreError::Chain { .. }), "{error}");
    assert_eq!(hops, 8);
}

#[test]
fn notice_of_a_move_is_held_against_the_commit() {
    let (alice, bob, carol) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob, &carol]);
    let link = scene.migrate(&alice);
    scene.notice(&link);
    scene.deliver(&[&bob]);
    assert_eq!((misbehaviours(&bob), scene.hub_of(&bob)), (0, scene.b.domain.clone()));
    let lies = [
        scene.a.sign(MigrationConfirmation { domain_name: named("c.example"), ..link.clone() }),
        scene.a.sign(MigrationConfirmation { source_domain: named("c.example"), ..link.clone() }),
        scene.b.sign(link.clone()),
        MigrationConfirmation { epoch: link.epoch.next(), ..link },
    ];
    for (told, lie) in (1..).zip(&lies) {
        scene.notice(lie);
        scene.deliver(&[&bob]);
        assert_eq!(misbehaviours(&bob), told, "{:?}", all(&bob));
    }
    let view = bob.group(&scene.group).unwrap();
    assert_eq!((view.hub, view.state), (scene.b.domain.clone(), GroupState::Active));
    let group = scene.group.clone();
    say(&mut scene.wire, &alice, &group, "go on");
    scene.deliver(&[&bob]);
    assert_eq!(texts(&bob), ["go on"]);
}

#[test]
fn records_of_the_version_before_are_read() {
    let (alice, bob, _) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let key = scene.group.as_bytes();
    let mut stored: ciborium::Value = alice.home.find(Kind::Group, key).unwrap().unwrap();
    let fields = stored.as_map_mut().unwrap();
    fields.retain(|(name, _)| name.as_text() != Some("left"));
    alice.home.step(|| alice.home.put(Kind::Group, key, &stored)).unwrap();
    assert_eq!(scene.hub_of(&alice), domain());
    let request = alice.begin(&scene.group, Operation::UpdateClient { rotate_key: false }).unwrap();
    let (key, _) = alice.find_pending(request).unwrap().unwrap();
    let mut stored: ciborium::Value = alice.home.find(Kind::Pending, &key).unwrap().unwrap();
    let later = ["redirect", "asked"];
    stored.as_map_mut().unwrap().retain(|(name, _)| !later.contains(&name.as_text().unwrap()));
    alice.home.step(|| alice.home.put(Kind::Pending, &key, &stored)).unwrap();
    assert_eq!(alice.outbound(request, *NOW).unwrap().hub, domain());
}

#[test]
fn hub_that_had_another_key_when_the_group_left_is_followed_by_who_lost_track_before() {
    let (alice, bob, _) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let epoch = alice.group(&scene.group).unwrap().epoch.unwrap().0;
    bob.home.step(|| bob.lose(&scene.group, "a test".to_owned())).unwrap();
    let (resync, ..) = bob.pending().unwrap().pop().unwrap();
    let later = scene.b.sign(scene.a.link(&scene.group, "b.example", epoch + 2));
    let settled = bob.settle(resync, &moved(&[&later]), *NOW).unwrap();
    assert_eq!(settled, Settled::Again { after_ms: 0 });
    assert_eq!(bob.outbound(resync, *NOW).unwrap().hub, scene.b.domain);
}

#[test]
fn request_that_was_sent_on_asks_the_group_s_own_hub_once_its_member_follows_again() {
    let (alice, bob, _) = three();
    let scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = &scene.group;
    let send = bob.begin(group, Operation::Send { content: vec![1] }).unwrap();
    bob.outbound(send, *NOW).unwrap();
    bob.home.step(|| bob.lose(group, "a test".to_owned())).unwrap();
    let link = scene.a.link(group, "b.example", 9);
    bob.settle(send, &moved(&[&link]), *NOW).unwrap();
    assert_eq!(bob.outbound(send, *NOW).unwrap().hub, scene.b.domain);
    let found = GroupRecord { state: GroupState::Active, ..bob.record(group).unwrap() };
    let found = GroupRecord { hub: named("c.example"), ..found };
    bob.home.step(|| bob.put_record(group, &found)).unwrap();
    let settled = bob.settle(send, &moved(&[&link]), *NOW).unwrap();
    assert_eq!(settled, Settled::Again { after_ms: 0 });
    assert_eq!(bob.outbound(send, *NOW).unwrap().hub, named("c.example"));
}

#[test]
fn member_whose_queue_rests_on_a_commit_that_was_accepted_before_the_move_asks_along_the_chain() {
    let (alice, bob, _) = three();
    let mut scene = Scene::new(SUITES[0], &alice, &[&bob]);
    let group = scene.group.clone();
    let update = Operation::UpdateClient { rotate_key: false };
    let request = bob.begin(&group, update).unwrap();
    let first = bob.outbound(request, *NOW).unwrap();
    // the answer is lost, and bob is given no copy of what is his own
    let accepted = scene.wire.accept(&first.message, bob.client());
    scene.deliver(&[&alice]);
    let link = scene.migrate(&alice);
    let settled = bob.settle(request, &moved(&[&link]), *NOW).unwrap();
    assert_eq!(settled, Settled::Again { after_ms: 0 });
    assert_eq!(scene.wire.deliver(&group, &bob), Some(Handled::Wait), "the queue rests on it");
    let again = bob.outbound(request, *NOW).unwrap();
    assert_eq!((&again.hub, &again.message.context.hub_domain), (&scene.b.domain, &again.hub));
    assert_eq!(again.message.context.request_id, first.message.context.request_id);
    assert_eq!(scene.hub_of(&bob), domain(), "the chain alone moves no member");
    assert!(matches!(bob.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
    scene.deliver(&[&bob]);
    assert_eq!(scene.hub_of(&bob), scene.b.domain);
    agree(&group, &[&alice, &bob]);
}
