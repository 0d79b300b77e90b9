//! Several clients over a small ordering loop: it gives sequences, keeps feeds and checks nothing. What a hub
//! checks is tested in `group`, and both together in `tests/behaviour`.

#![allow(clippy::wildcard_enum_match_arm)]

mod behind;
mod complain;
mod look;
mod moving;

use std::{collections::BTreeMap, sync::LazyLock};

use openmls::prelude::{OpenMlsProvider as _, tls_codec::Serialize as _};

use super::*;
use crate::policy::keys::LIFE_LEFT_MIN_MS;
use crate::wire::{
    codec::{List, Opaque, Raw, decode},
    ds::{
        Accepted, Detail, DsError, DsRequest, DsResponse, DsResponseBody, Info, Outcome,
        ProtocolVersion,
    },
    extensions::{JoinPolicy, Role, SignatureScheme},
    ids::{Domain, Sequence},
    mls::MlsMessage,
    queueing::{QueueEntry, QueueEvent},
};

/// openmls judges lifetimes by the system's clock, so the tests' clock is that one, stopped.
static NOW: LazyLock<Timestamp> = LazyLock::new(|| {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
});

fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

fn hub(scheme: SignatureScheme) -> Hub {
    let key = crypto::SigningKey::generate(scheme).unwrap();
    Hub { domain: domain(), external_sender: key.public().clone() }
}

fn client(user: &str, device: &str) -> ClientUri {
    ClientUri::new(format!("mimi://a.example/d/{user}/{device}")).unwrap()
}

fn member(user: &str, device: &str) -> Member {
    stocked(Identity::generate(client(user, device)).unwrap())
}

fn stocked(identity: Identity) -> Member {
    let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
    for class in [KeyPackageClass::Group, KeyPackageClass::Connection] {
        let tokens: Vec<QueueToken> =
            (0..40).map(|_| Opaque::new(crypto::random::<32>()).unwrap()).collect();
        member.store_tokens(class, false, &tokens).unwrap();
    }
    member
}

/// One group's feed, and where each client's copy of it stands.
#[derive(Default)]
struct Wire {
    sequence: u64,
    epoch: u64,
    handshakes: Vec<(u64, MlsMessage)>,
    feed: Vec<(u64, ClientUri, QueueEvent)>,
    /// Client, first sequence, what it got last.
    readers: BTreeMap<ClientUri, (u64, u64, u64)>,
    feeds: u64,
}

impl Wire {
    fn accept(&mut self, message: &DsMessage, from: &ClientUri) -> DsResponse {
        self.sequence += 1;
        let (commit, others): (Option<&MlsMessage>, Vec<&MlsMessage>) = match &message.request {
            DsRequest::AddUsers(add) | DsRequest::AddClients(add) => (Some(&add.commit), vec![]),
            DsRequest::RemoveUsers(update)
            | DsRequest::RemoveClients(update)
            | DsRequest::UpdateClient(update) => (Some(&update.commit), vec![]),
            DsRequest::UpdateGroup(it) => (Some(&it.update.commit), vec![]),
            DsRequest::StartMigration(it) => (Some(&it.update.commit), vec![]),
            DsRequest::ResyncClient(it) => (Some(&it.update.commit), vec![]),
            DsRequest::JoinGroup(it) => (Some(&it.update.commit), vec![]),
            DsRequest::DeleteGroup(it) => (Some(&it.update.commit), vec![]),
            DsRequest::Propose(it) => (None, it.proposals.iter().collect()),
            DsRequest::SendMessage(it) => (None, vec![&it.application_message]),
            _ => (None, vec![]),
        };
        if let Some(commit) = commit {
            let of = epoch(commit);
            if of != self.epoch {
                self.sequence -= 1;
                let missed = self.handshakes.iter().filter(|(e, _)| *e >= of);
                let missed = missed.map(|(_, message)| message.clone()).collect();
                return refuse(DsError::WrongEpoch {
                    detail: Detail::truncated("too late"),
                    current_epoch: Epoch(self.epoch),
                    missed: List::new(missed).unwrap(),
                });
            }
            self.handshakes.push((of, commit.clone()));
            self.epoch += 1;
        }
        let proposals = matches!(message.request, DsRequest::Propose(_));
        for message in commit.into_iter().chain(others) {
            if proposals {
                self.handshakes.push((self.epoch, message.clone()));
            }
            let event = QueueEvent::MlsMessage { message: message.clone() };
            self.feed.push((self.sequence, from.clone(), event));
        }
        DsResponse {
            version: ProtocolVersion::MIMI10,
            outcome: Outcome::Ok(DsResponseBody::Accepted(Accepted {
                group_sequence: Sequence(self.sequence),
                accepted_at: *NOW,
                epoch: Epoch(self.epoch),
            })),
        }
    }

    fn open(&mut self, reader: &ClientUri) {
        self.feeds += 1;
        self.readers.insert(reader.clone(), (self.feeds, self.sequence, 0));
    }

    /// Hands `member` what it has not got, and says how the last entry was handled.
    fn deliver(&mut self, group: &GroupId, member: &Member) -> Option<Handled> {
        let (feed, got, previous) = self.readers.get_mut(member.client())?;
        let mut last = None;
        for (sequence, from, event) in &self.feed {
            if sequence <= got || from == member.client() {
                continue;
            }
            let entry = QueueEntry {
                feed: FeedId(*feed),
                sequence: Sequence(*sequence),
                previous: Sequence(*previous),
                accepted_at: *NOW,
                group_id: Opaque::new(group.as_bytes()).unwrap(),
                event: event.clone(),
            };
            let handled = member.handle(&entry, *NOW).unwrap();
            last = Some(handled);
            if handled == Handled::Wait {
                break;
            }
            assert_eq!(member.handle(&entry, *NOW).unwrap(), Handled::Duplicate);
            (*got, *previous) = (*sequence, *sequence);
        }
        last
    }
}

fn epoch(message: &MlsMessage) -> u64 {
    message.parse().unwrap().try_into_protocol_message().unwrap().epoch().as_u64()
}

fn refuse(error: DsError) -> DsResponse {
    DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Err(error) }
}

/// What a hub answers to who comes from outside, taken from a member who is up to date.
fn info(from: &Member, group: &GroupId) -> DsResponse {
    let mls = from.load(group).unwrap();
    let signer = from.record(group).unwrap().leaf_key.open().unwrap();
    let provider = from.home.provider();
    let exported = mls.export_group_info(provider.crypto(), &signer, false).unwrap();
    let bytes = exported.tls_serialize_detached().unwrap();
    DsResponse {
        version: ProtocolVersion::MIMI10,
        outcome: Outcome::Ok(DsResponseBody::Info(Box::new(Info {
            group_info: Raw::new(&bytes[4..]).unwrap(),
            ratchet_tree: Raw::of(&mls.export_ratchet_tree()),
            pending: List::default(),
        }))),
    }
}

fn run(wire: &mut Wire, member: &Member, request: RequestId) -> Settled {
    loop {
        let outbound = member.outbound(request, *NOW).unwrap();
        let response = wire.accept(&outbound.message, member.client());
        match member.settle(request, &response, *NOW).unwrap() {
            Settled::Again { .. } => {}
            settled => return settled,
        }
    }
}

fn operate(wire: &mut Wire, member: &Member, group: &GroupId, operation: Operation) {
    let request = member.begin(group, operation).unwrap();
    let settled = run(wire, member, request);
    assert!(matches!(settled, Settled::Done(_)), "{settled:?}");
}

fn create(wire: &mut Wire, creator: &Member, suite: mls::Ciphersuite) -> GroupId {
    let scheme = crate::policy::leaf::scheme_of(suite);
    let new = NewGroup { suite, ..NewGroup::default() };
    let (group, request) = creator.create_group(&hub(scheme), &new, *NOW).unwrap();
    assert!(matches!(run(wire, creator, request), Settled::Done(_)));
    wire.open(creator.client());
    group
}

fn key_package(of: &Member, suite: mls::Ciphersuite) -> Vec<u8> {
    let mut made = of.key_packages(KeyPackageClass::Group, suite, false, 1, *NOW).unwrap();
    made.remove(0).into_vec()
}

/// `adder` adds `added` and hands the Welcome over as the queue would.
fn add(wire: &mut Wire, group: &GroupId, adder: &Member, added: &Member) {
    let suite = adder.load(group).unwrap().ciphersuite();
    add_by(wire, group, adder, added, key_package(added, suite));
}

fn add_by(wire: &mut Wire, group: &GroupId, adder: &Member, added: &Member, key_package: Vec<u8>) {
    let key_packages = vec![key_package];
    let request = adder.begin(group, Operation::AddUsers { key_packages }).unwrap();
    let outbound = adder.outbound(request, *NOW).unwrap();
    let DsRequest::AddUsers(body) = &outbound.message.request else { panic!("an add") };
    let welcome = body.welcome.clone();
    let response = wire.accept(&outbound.message, adder.client());
    assert!(matches!(adder.settle(request, &response, *NOW).unwrap(), Settled::Done(_)));
    take_welcome(wire, group, added, adder, welcome);
}

fn take_welcome(
    wire: &mut Wire,
    group: &GroupId,
    added: &Member,
    info_from: &Member,
    welcome: MlsMessage,
) {
    let sequence = added.home.next_number(Kind::Event).unwrap();
    let entry = QueueEntry {
        feed: FeedId(0),
        sequence: Sequence(sequence),
        previous: Sequence(0),
        accepted_at: *NOW,
        group_id: Opaque::new(group.as_bytes()).unwrap(),
        event: QueueEvent::Welcome { hub_domain: domain(), welcome },
    };
    assert_eq!(added.handle(&entry, *NOW).unwrap(), Handled::Taken);
    let (request, ..) = added.pending().unwrap().pop().expect("the Welcome is to be taken up");
    added.outbound(request, *NOW).unwrap();
    let settled = added.settle(request, &info(info_from, group), *NOW).unwrap();
    assert_eq!(settled, Settled::Entered);
    assert_eq!(added.group(group).unwrap().state, GroupState::Active, "{:?}", all(added));
    wire.open(added.client());
}

#[test]
fn last_resort_key_package_that_was_used_is_to_be_replaced() {
    let mut wire = Wire::default();
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let suite = SUITES[0];
    bob.set(&last_resort_setting(suite), &true).unwrap();
    let group = create(&mut wire, &alice, suite);
    add(&mut wire, &group, &alice, &bob);
    let is = |name: &str| bob.setting::<bool>(name).unwrap() == Some(true);
    let stands = || (is(&last_resort_setting(suite)), is(KEY_PACKAGES_LOW));
    assert_eq!(stands(), (true, false), "it was another one");
    let token = QueueToken::new(vec![7; 40]).unwrap();
    bob.store_tokens(KeyPackageClass::Group, true, &[token]).unwrap();
    let mut made = bob.key_packages(KeyPackageClass::Group, suite, true, 1, *NOW).unwrap();
    let (mut wire, carol) = (Wire::default(), member("carol", "phone"));
    let next = create(&mut wire, &carol, suite);
    add_by(&mut wire, &next, &carol, &bob, made.remove(0).into_vec());
    assert_eq!(stands(), (false, true));
}

#[test]
fn stock_of_key_packages_is_made_anew_before_any_of_it_is_too_old_to_be_handed_out() {
    let bob = member("bob", "phone");
    assert!(bob.is_stock_old(*NOW).unwrap(), "nobody has noted when it was made");
    bob.stocked(*NOW).unwrap();
    let days = |days: u64| NOW.plus_ms(days * 24 * 3600 * 1000);
    assert!(!bob.is_stock_old(days(41)).unwrap());
    assert!(!bob.is_stock_old(Timestamp(NOW.0 - 1)).unwrap(), "a clock that was set back");
    assert!(bob.is_stock_old(days(42)).unwrap());
    // what cannot be published then is not tried at every step
    let renews = |at| bob.may_renew_stock(at).unwrap();
    assert_eq!([renews(days(41)), renews(days(42)), renews(days(42))], [false, true, false]);
    let hour = days(42).plus_ms(3_600_000);
    assert_eq!([renews(Timestamp(hour.0 - 1)), renews(hour)], [false, true]);
    // from then on there are four weeks until what is there is not handed out any more
    let made = key_package(&bob, SUITES[0]);
    let made = decode::<mls::KeyPackageIn>(&made).unwrap();
    let made = made.validate(bob.home.crypto(), mls::ProtocolVersion::Mls10).unwrap();
    let left_ms = made.life_time().not_after() * 1000 - days(42).0 / 1000 * 1000;
    assert!(left_ms >= LIFE_LEFT_MIN_MS + days(28).0 - NOW.0, "{left_ms} ms");
}

/// Joins from outside by what `inside` knows of the group.
fn enter(wire: &mut Wire, group: &GroupId, joiner: &Member, inside: &Member, request: RequestId) {
    let mut steps = 0;
    loop {
        let outbound = joiner.outbound(request, *NOW).unwrap();
        let response = match outbound.message.request {
            DsRequest::ExternalCommitInfo(_) => info(inside, group),
            _ => wire.accept(&outbound.message, joiner.client()),
        };
        match joiner.settle(request, &response, *NOW).unwrap() {
            Settled::Again { .. } => {}
            Settled::Done(_) => break,
            other => panic!("{other:?}"),
        }
        steps += 1;
        assert!(steps < 5);
    }
    wire.open(joiner.client());
}

fn all(member: &Member) -> Vec<Event> {
    member.events(0, 1000).unwrap().into_iter().map(|(_, event)| event).collect()
}

fn texts(member: &Member) -> Vec<String> {
    let text = |event| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    all(member).into_iter().filter_map(text).collect()
}

fn say(wire: &mut Wire, member: &Member, group: &GroupId, text: &str) {
    operate(wire, member, group, Operation::Send { content: Content::text(text).encode() });
}

fn agree(group: &GroupId, members: &[&Member]) {
    let first = members[0].group(group).unwrap();
    for member in members {
        let view = member.group(group).unwrap();
        assert_eq!(view.epoch, first.epoch, "{:?}", all(member));
        assert_eq!(view.authenticator, first.authenticator);
    }
}

#[test]
fn members_of_each_ciphersuite_read_each_other() {
    for suite in SUITES {
        let (alice, bob, carol) =
            (member("alice", "phone"), member("bob", "phone"), member("carol", "phone"));
        let mut wire = Wire::default();
        let group = create(&mut wire, &alice, suite);
        add(&mut wire, &group, &alice, &bob);
        add(&mut wire, &group, &bob, &carol);
        wire.deliver(&group, &alice);
        say(&mut wire, &alice, &group, "from alice");
        wire.deliver(&group, &bob);
        wire.deliver(&group, &carol);
        say(&mut wire, &carol, &group, "from carol");
        wire.deliver(&group, &alice);
        wire.deliver(&group, &bob);
        agree(&group, &[&alice, &bob, &carol]);
        assert_eq!(texts(&alice), ["from carol"]);
        assert_eq!(texts(&bob), ["from alice", "from carol"]);
        assert_eq!(texts(&carol), ["from alice"]);
    }
}

#[test]
fn loser_of_a_race_catches_up_from_the_answer_and_succeeds_under_the_same_request() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let slow = bob.begin(&group, Operation::UpdateClient { rotate_key: true }).unwrap();
    let first = bob.outbound(slow, *NOW).unwrap();
    operate(&mut wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    let refused = wire.accept(&first.message, bob.client());
    assert_eq!(bob.settle(slow, &refused, *NOW).unwrap(), Settled::Again { after_ms: 0 });
    let second = bob.outbound(slow, *NOW).unwrap();
    assert_eq!(second.message.context.request_id, first.message.context.request_id);
    let accepted = wire.accept(&second.message, bob.client());
    assert!(matches!(bob.settle(slow, &accepted, *NOW).unwrap(), Settled::Done(_)));
    // the commit that it caught up with comes again through the queue and changes nothing
    wire.deliver(&group, &bob);
    wire.deliver(&group, &alice);
    agree(&group, &[&alice, &bob]);
    say(&mut wire, &bob, &group, "with the new key");
    wire.deliver(&group, &alice);
    assert_eq!(texts(&alice), ["with the new key"]);
}

#[test]
fn commit_of_another_in_the_same_epoch_takes_the_place_of_ones_own() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let mine = bob.begin(&group, Operation::UpdateClient { rotate_key: false }).unwrap();
    bob.outbound(mine, *NOW).unwrap();
    operate(&mut wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    assert_eq!(wire.deliver(&group, &bob), Some(Handled::Taken));
    agree(&group, &[&alice, &bob]);
    assert!(matches!(run(&mut wire, &bob, mine), Settled::Done(_)));
    wire.deliver(&group, &alice);
    agree(&group, &[&alice, &bob]);
}

#[test]
fn entry_behind_an_unanswered_commit_waits_for_the_answer() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let mine = bob.begin(&group, Operation::UpdateClient { rotate_key: false }).unwrap();
    let outbound = bob.outbound(mine, *NOW).unwrap();
    let lost_answer = wire.accept(&outbound.message, bob.client());
    wire.deliver(&group, &alice);
    operate(&mut wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    assert_eq!(wire.deliver(&group, &bob), Some(Handled::Wait));
    assert!(matches!(bob.settle(mine, &lost_answer, *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(wire.deliver(&group, &bob), Some(Handled::Taken));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn pending_proposals_are_covered_and_displaced_alike_by_everyone() {
    let (alice, bob, carol) =
        (member("alice", "phone"), member("bob", "phone"), member("carol", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    add(&mut wire, &group, &alice, &carol);
    wire.deliver(&group, &bob);
    let propose = |proposal| Operation::Propose { proposals: vec![proposal] };
    operate(&mut wire, &bob, &group, propose(NewProposal::Update));
    wire.deliver(&group, &alice);
    wire.deliver(&group, &carol);
    operate(&mut wire, &carol, &group, propose(NewProposal::Leave));
    let remove = NewProposal::Remove(bob.client().clone());
    operate(&mut wire, &alice, &group, propose(remove));
    wire.deliver(&group, &alice);
    wire.deliver(&group, &bob);
    wire.deliver(&group, &carol);
    let send = alice.begin(&group, Operation::Send { content: vec![1] }).unwrap();
    assert!(matches!(alice.outbound(send, *NOW), Err(CoreError::MustCommitFirst(_))));
    // what is pending already is not removed by value again
    let users = vec![bob.client().user()];
    operate(&mut wire, &alice, &group, Operation::RemoveUsers { users });
    wire.deliver(&group, &bob);
    wire.deliver(&group, &carol);
    for gone in [&bob, &carol] {
        assert_eq!(gone.group(&group).unwrap().state, GroupState::Left, "{:?}", all(gone));
        assert!(all(gone).contains(&Event::Removed { group: group.clone() }));
    }
    assert_eq!(alice.group(&group).unwrap().members.len(), 1);
}

#[test]
fn second_device_joins_by_itself_and_a_stranger_only_with_a_code() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let laptop =
        Identity::with_user_key(client("alice", "laptop"), alice.identity().user_key.clone());
    let laptop = stocked(laptop.unwrap());
    let join = |member: &Member, code| {
        member.join(&group, &domain(), "", Operation::Join { code }, *NOW).unwrap()
    };
    let request = join(&laptop, None);
    enter(&mut wire, &group, &laptop, &alice, request);
    wire.deliver(&group, &alice);
    wire.deliver(&group, &bob);
    agree(&group, &[&alice, &bob, &laptop]);

    let code = crypto::SigningKey::from_seed([9; 32]).unwrap();
    let public = code.public().as_slice().to_vec();
    let expires_at = Timestamp(u64::MAX);
    let changes = vec![
        PolicyChange::Join(JoinPolicy::Code),
        PolicyChange::AddCode { public, expires_at },
        PolicyChange::Role { user: bob.client().user(), role: Role::Moderator },
    ];
    operate(&mut wire, &alice, &group, Operation::UpdateGroup { changes });
    for member in [&bob, &laptop] {
        wire.deliver(&group, member);
    }
    let carol = member("carol", "phone");
    let request = join(&carol, Some([9; 32]));
    enter(&mut wire, &group, &carol, &alice, request);
    for member in [&alice, &bob, &laptop] {
        wire.deliver(&group, member);
    }
    agree(&group, &[&alice, &bob, &laptop, &carol]);

    // nobody follows a commit that the policy does not allow, whatever the hub says
    let mallory = member("mallory", "phone");
    let request = join(&mallory, Some([8; 32]));
    enter(&mut wire, &group, &mallory, &alice, request);
    let before = alice.group(&group).unwrap().epoch;
    wire.deliver(&group, &alice);
    let view = alice.group(&group).unwrap();
    assert_eq!((view.epoch, view.state), (before, GroupState::Lost), "{:?}", all(&alice));
}

#[test]
fn resync_leaves_the_old_state_in_use_until_it_is_accepted() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    operate(&mut wire, &bob, &group, Operation::UpdateClient { rotate_key: true });
    wire.deliver(&group, &alice);
    let request = bob.begin(&group, Operation::Resync).unwrap();
    bob.outbound(request, *NOW).unwrap();
    bob.settle(request, &info(&alice, &group), *NOW).unwrap();
    let outbound = bob.outbound(request, *NOW).unwrap();
    say(&mut wire, &alice, &group, "in between");
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), ["in between"]);
    let accepted = wire.accept(&outbound.message, bob.client());
    assert!(matches!(bob.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
    wire.deliver(&group, &alice);
    agree(&group, &[&alice, &bob]);
    say(&mut wire, &bob, &group, "back");
    wire.deliver(&group, &alice);
    assert_eq!(texts(&alice), ["back"]);
}

#[test]
fn welcome_that_comes_before_the_removal_is_taken_up_behind_it() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let users = vec![bob.client().user()];
    operate(&mut wire, &alice, &group, Operation::RemoveUsers { users });
    let key_packages = vec![key_package(&bob, SUITES[0])];
    let request = alice.begin(&group, Operation::AddUsers { key_packages }).unwrap();
    let outbound = alice.outbound(request, *NOW).unwrap();
    let DsRequest::AddUsers(body) = &outbound.message.request else { panic!("an add") };
    let welcome = body.welcome.clone();
    let response = wire.accept(&outbound.message, alice.client());
    alice.settle(request, &response, *NOW).unwrap();
    let entry = QueueEntry {
        feed: FeedId(0),
        sequence: Sequence(100),
        previous: Sequence(0),
        accepted_at: *NOW,
        group_id: Opaque::new(group.as_bytes()).unwrap(),
        event: QueueEvent::Welcome { hub_domain: domain(), welcome },
    };
    assert_eq!(bob.handle(&entry, *NOW).unwrap(), Handled::Taken);
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Active);
    wire.feed.truncate(wire.feed.len() - 1);
    wire.deliver(&group, &bob);
    let (request, ..) = bob.pending().unwrap().pop().expect("the Welcome that was kept");
    bob.outbound(request, *NOW).unwrap();
    assert_eq!(bob.settle(request, &info(&alice, &group), *NOW).unwrap(), Settled::Entered);
    agree(&group, &[&alice, &bob]);
    // what is left of the old feed says nothing any more
    let late = QueueEntry {
        feed: FeedId(wire.readers[bob.client()].0),
        sequence: Sequence(101),
        event: QueueEvent::Removed,
        ..entry
    };
    bob.handle(&late, *NOW).unwrap();
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Active);
}

#[test]
fn who_has_a_welcome_to_take_up_cannot_come_in_another_way_and_loses_nothing_by_trying() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    let key_packages = vec![key_package(&bob, SUITES[0])];
    let request = alice.begin(&group, Operation::AddUsers { key_packages }).unwrap();
    let outbound = alice.outbound(request, *NOW).unwrap();
    let DsRequest::AddUsers(body) = &outbound.message.request else { panic!("an add") };
    let event = QueueEvent::Welcome { hub_domain: domain(), welcome: body.welcome.clone() };
    let response = wire.accept(&outbound.message, alice.client());
    alice.settle(request, &response, *NOW).unwrap();
    let entry = |feed, sequence, event| QueueEntry {
        feed: FeedId(feed),
        sequence: Sequence(sequence),
        previous: Sequence(0),
        accepted_at: *NOW,
        group_id: Opaque::new(group.as_bytes()).unwrap(),
        event,
    };
    assert_eq!(bob.handle(&entry(0, 1, event), *NOW).unwrap(), Handled::Taken);
    let joins = || bob.join(&group, &domain(), "", Operation::Join { code: None }, *NOW);
    assert!(matches!(joins(), Err(CoreError::ComingIn(_))));
    // what comes in the group waits for the Welcome, whatever was tried meanwhile
    let joining = entry(1, 2, QueueEvent::RosterOnly);
    assert_eq!(bob.handle(&joining, *NOW).unwrap(), Handled::Wait);
    let (request, ..) = bob.pending().unwrap().pop().expect("the Welcome is to be taken up");
    bob.outbound(request, *NOW).unwrap();
    assert_eq!(bob.settle(request, &info(&alice, &group), *NOW).unwrap(), Settled::Entered);
    wire.open(bob.client());
    say(&mut wire, &alice, &group, "welcome");
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), ["welcome"]);
    // and who asks twice is told that it has asked
    let carol = member("carol", "phone");
    let first = carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    let again = carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW);
    assert!(matches!(again, Err(CoreError::ComingIn(_))));
    carol.give_up(first).unwrap();
    assert_eq!(carol.group(&group).unwrap().state, GroupState::Left);
    carol.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
}

#[test]
fn who_hears_of_its_removal_by_an_answer_reads_what_is_in_front_of_it_first() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    say(&mut wire, &alice, &group, "before");
    let users = vec![bob.client().user()];
    operate(&mut wire, &alice, &group, Operation::RemoveUsers { users });
    // bob has read none of it and commits: the hub shows what he missed
    let request = bob.begin(&group, Operation::UpdateClient { rotate_key: false }).unwrap();
    let outbound = bob.outbound(request, *NOW).unwrap();
    let response = wire.accept(&outbound.message, bob.client());
    assert!(matches!(bob.settle(request, &response, *NOW).unwrap(), Settled::Again { .. }));
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Active, "the queue comes first");
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), ["before"]);
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Left);
}

#[test]
fn client_that_missed_a_commit_begins_a_resync() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    operate(&mut wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    wire.readers.get_mut(bob.client()).unwrap().1 = wire.sequence;
    operate(&mut wire, &alice, &group, Operation::UpdateClient { rotate_key: false });
    wire.deliver(&group, &bob);
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Lost);
    let (request, _, operation) = bob.pending().unwrap().pop().unwrap();
    assert_eq!(operation, Operation::Resync);
    enter(&mut wire, &group, &bob, &alice, request);
    wire.deliver(&group, &alice);
    agree(&group, &[&alice, &bob]);
}

#[test]
fn gap_in_front_of_ones_own_entry_is_none_and_one_behind_it_is() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    let open = vec![PolicyChange::Join(JoinPolicy::Open)];
    operate(&mut wire, &alice, &group, Operation::UpdateGroup { changes: open });
    let request = bob.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    enter(&mut wire, &group, &bob, &alice, request);
    wire.deliver(&group, &alice);
    let entered = wire.sequence;
    let told = |next: u64, previous: u64| {
        let entry = QueueEntry {
            feed: FeedId(wire.readers[bob.client()].0),
            sequence: Sequence(next - 1),
            previous: Sequence(previous),
            accepted_at: *NOW,
            group_id: Opaque::new(group.as_bytes()).unwrap(),
            event: QueueEvent::Gap { next_available: Sequence(next) },
        };
        assert_eq!(bob.handle(&entry, *NOW).unwrap(), Handled::Taken);
        bob.group(&group).unwrap().state
    };
    // its provider cannot know that it has just come in
    assert_eq!(told(entered + 1, 0), GroupState::Active);
    assert!(bob.pending().unwrap().is_empty());
    assert_eq!(told(entered + 2, entered), GroupState::Lost, "one entry behind it is missing");
    let (_, _, operation) = bob.pending().unwrap().pop().unwrap();
    assert_eq!(operation, Operation::Resync);
}

#[test]
fn request_survives_the_process_and_keeps_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("home.sqlite");
    let identity = Identity::generate(client("alice", "phone")).unwrap();
    let alice = Member::new(Home::open(&path).unwrap(), identity).unwrap();
    let token = Opaque::new([1; 16]).unwrap();
    alice.store_tokens(KeyPackageClass::Group, false, &[token]).unwrap();
    let hub = hub(SignatureScheme::ED25519);
    let (group, request) = alice.create_group(&hub, &NewGroup::default(), *NOW).unwrap();
    let before = alice.outbound(request, *NOW).unwrap();
    drop(alice);
    let alice = Member::open(Home::open(&path).unwrap()).unwrap();
    assert_eq!(alice.pending().unwrap(), [(request, group.clone(), Operation::CreateGroup)]);
    let again = alice.outbound(request, NOW.plus_ms(1)).unwrap();
    assert_eq!(again.message.request, before.message.request);
    assert_eq!(again.message.context.request_id, before.message.context.request_id);
    let accepted = Wire::default().accept(&again.message, alice.client());
    assert!(matches!(alice.settle(request, &accepted, *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(alice.group(&group).unwrap().state, GroupState::Active);
    assert_eq!(alice.settle(request, &accepted, *NOW).unwrap(), Settled::Entered);
}

#[test]
fn answer_that_another_was_given_is_kept_until_who_asked_takes_it() {
    let alice = member("alice", "phone");
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    let send = || alice.begin(&group, Operation::Send { content: vec![1] }).unwrap();
    let settle = |request, response: &DsResponse| {
        alice.outbound(request, *NOW).unwrap();
        alice.settle_for_another(request, response, *NOW).unwrap()
    };
    let accepted = send();
    let outbound = alice.outbound(accepted, *NOW).unwrap();
    let Settled::Done(answer) = settle(accepted, &wire.accept(&outbound.message, alice.client()))
    else {
        panic!("it was accepted");
    };
    let refused = send();
    let error = DsError::NotAuthorized { detail: Detail::truncated("not you") };
    let refusal = refuse(error.clone());
    assert!(matches!(settle(refused, &refusal), Settled::Refused(_)));
    let given_up = send();
    alice.give_up_for_another(given_up, Answer::GivenUp("no".to_owned())).unwrap();
    assert_eq!(alice.pending().unwrap(), []);
    for (request, expected) in [
        (refused, Answer::Refused(Refusal(error))),
        (accepted, Answer::Accepted(answer)),
        (given_up, Answer::GivenUp("no".to_owned())),
    ] {
        assert_eq!(alice.take_answer(request).unwrap(), Some(expected));
        assert_eq!(alice.take_answer(request).unwrap(), None, "it was taken");
    }
}

#[test]
fn request_of_a_member_that_is_removed_before_it_is_answered_is_told_so() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let leave = Operation::Propose { proposals: vec![NewProposal::Leave] };
    let leave = bob.begin(&group, leave).unwrap();
    let send = bob.begin(&group, Operation::Send { content: vec![1] }).unwrap();
    let users = vec![bob.client().user()];
    operate(&mut wire, &alice, &group, Operation::RemoveUsers { users });
    wire.deliver(&group, &bob);
    assert_eq!(bob.pending().unwrap(), []);
    assert_eq!(bob.take_answer(leave).unwrap(), Some(Answer::AlreadySo));
    let given_up = bob.take_answer(send).unwrap();
    assert!(
        matches!(&given_up, Some(Answer::GivenUp(why)) if why.contains("left")),
        "{given_up:?}"
    );
}

#[test]
fn answers_that_nobody_takes_are_forgotten_the_oldest_first() {
    let alice = member("alice", "phone");
    let group = create(&mut Wire::default(), &alice, SUITES[0]);
    let asked: Vec<RequestId> = (0..answers::ANSWERS_MAX + 3)
        .map(|_| {
            let request = alice.begin(&group, Operation::Send { content: vec![1] }).unwrap();
            alice.give_up_for_another(request, Answer::AlreadySo).unwrap();
            request
        })
        .collect();
    let kept = || alice.home.list::<ciborium::Value>(Kind::Answer, &[], usize::MAX).unwrap().len();
    assert_eq!(kept(), usize::try_from(answers::ANSWERS_MAX).unwrap());
    assert_eq!(alice.take_answer(asked[2]).unwrap(), None);
    assert_eq!(alice.take_answer(asked[3]).unwrap(), Some(Answer::AlreadySo));
    // what nobody asked for, nobody is told
    let before = kept();
    let own = alice.home.step(|| alice.keep(&group, Operation::UpdateQueueInfo)).unwrap();
    alice.give_up_for_another(own, Answer::AlreadySo).unwrap();
    assert_eq!(kept(), before);
}

#[test]
fn what_the_provider_leaves_out_is_seen() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    say(&mut wire, &alice, &group, "one");
    say(&mut wire, &alice, &group, "two");
    let reader = wire.readers.get_mut(bob.client()).unwrap();
    (reader.1, reader.2) = (wire.sequence - 1, wire.sequence - 1);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), ["two"]);
    assert!(all(&bob).iter().any(|event| matches!(event, Event::Misbehaviour { .. })));
}

#[test]
fn offer_opens_only_for_whom_it_is() {
    let (alice, bob, carol) =
        (member("alice", "phone"), member("bob", "phone"), member("carol", "phone"));
    let made = bob.key_packages(KeyPackageClass::Connection, SUITES[1], false, 1, *NOW).unwrap();
    let target = OfferTarget {
        recipient: bob.client().user(),
        group: GroupId::of(&domain(), [1; 16]),
        hub: domain(),
        join_code: [2; 32],
        consent_token: [3; 32],
    };
    let request = alice.offer(&target, &made).unwrap();
    let entry = |domain: &str| QueueEntry {
        feed: FeedId(0),
        sequence: Sequence(1),
        previous: Sequence(0),
        accepted_at: *NOW,
        group_id: Opaque::default(),
        event: QueueEvent::ConnectionRequest {
            sender_domain: Domain::new(domain).unwrap(),
            offer: request.offers[0].clone(),
        },
    };
    carol.handle(&entry("a.example"), *NOW).unwrap();
    assert!(matches!(all(&carol)[..], [Event::Misbehaviour { .. }]));
    let other = member("bob", "phone");
    assert!(
        other.offer(&OfferTarget { recipient: carol.client().user(), ..target }, &made).is_err()
    );
    bob.handle(&entry("a.example"), *NOW).unwrap();
    let requests = bob.requests().unwrap();
    assert_eq!(requests.len(), 1, "{:?}", all(&bob));
    assert_eq!((&requests[0].from, requests[0].join_code), (&alice.client().user(), [2; 32]));
    assert_eq!(all(&bob), [Event::ConnectionRequested { from: alice.client().user() }]);
}
