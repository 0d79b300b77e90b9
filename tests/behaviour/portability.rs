//! Groups that move between nodes of one process, where somebody lies, says nothing or says it twice: what is refused changes
//! nothing, and the group is never without a hub for good. PROTOCOL.md §6.

mod behind;
mod late;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mimid::{
    actors::{GroupOptions, Limits, Node, clock::ManualClock},
    client::core::{GroupState, GroupView, Identity, Operation, PolicyChange},
    crypto::{self, SigningKey},
    federation::{CallError, schedule::Backoff},
    migration::proof,
    store::records::{GroupHead, GroupStatus},
    wire::{
        client::{Flag, QueueTokens},
        codec::{List, decode, encode},
        ds::{Accepted, DsError, DsMessage, DsResponse, DsResponseBody},
        extensions::{KeyPackageClass, Role, SignatureScheme},
        federation::EventType,
        ids::{ClientUri, Domain, GroupId, RequestId, Sequence},
        portability::{
            Chain, MigrationConfirmation, MigrationContent, MigrationRequest, MigrationResponse,
            TargetMigrationComplete,
        },
        queueing::{DeliveryItem, DeliveryProblem},
    },
};

use super::{
    net::{Door, Fate, Letter, Net},
    support::synth::Synth,
    world::{TestClient, World, clock_of_now},
};

/// alice of a.example and bob of b.example in a group at a.example, who have all that there is.
pub struct Two {
    pub net: Arc<Net>,
    pub clock: Arc<ManualClock>,
    pub a: World,
    pub b: World,
    pub group: GroupId,
    pub alice: TestClient,
    pub bob: TestClient,
}

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Every letter between providers so far.
pub type Letters = Arc<Mutex<Vec<Letter>>>;

/// What opens when the test says so.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A provider that delivers by itself, and waits for next to nothing.
fn provider(domain: &str, net: &Arc<Net>, clock: &Arc<ManualClock>) -> World {
    provider_with(domain, net, clock, |_, _| ())
}

pub fn provider_with(
    domain: &str,
    net: &Arc<Net>,
    clock: &Arc<ManualClock>,
    change: impl FnOnce(&mut Limits, &mut GroupOptions),
) -> World {
    World::in_net_with(domain, net, clock, true, |limits, options| {
        impatient(limits);
        change(limits, options);
    })
}

fn impatient(limits: &mut Limits) {
    limits.moves.retry = Backoff { first_ms: 1, max_ms: 4 };
}

impl Two {
    pub async fn new() -> Self {
        Self::with(|_, _| ()).await
    }

    /// `change` sets what is other than by default at b.example.
    pub async fn with(change: impl FnOnce(&mut Limits, &mut GroupOptions)) -> Self {
        let (net, clock) = (Arc::new(Net::default()), clock_of_now());
        let a = provider("a.example", &net, &clock);
        let b = provider_with("b.example", &net, &clock, change);
        let alice = a.client("alice", "phone").await;
        let bob = b.client("bob", "phone").await;
        let group = alice.create(&a).await;
        let key_packages = bob.key_packages_through(&b, &a, &alice).await;
        alice.act(&a, &group, Operation::AddUsers { key_packages }).await.unwrap();
        until(&bob, &b, |bob| is_in(bob, &group)).await;
        Self { net, clock, a, b, group, alice, bob }
    }

    /// Writes down every letter of a move, whose fate is decided by how many of its kind there were before.
    pub fn carry(&self, fate: impl Fn(&Letter, usize) -> Fate + Send + Sync + 'static) -> Letters {
        let letters = Letters::default();
        let kept = Arc::clone(&letters);
        self.net.carry(move |letter| {
            if !is_of_a_move(letter) {
                return Fate::Arrives;
            }
            let mut kept = kept.lock().unwrap();
            let before = kept.iter().filter(|it| it.event == letter.event).count();
            kept.push(letter.clone());
            fate(letter, before)
        });
        letters
    }

    pub async fn promise(&self, to: &World) -> MigrationResponse {
        promise(&self.a, &self.alice, &self.group, &to.domain).await.unwrap()
    }

    /// alice moves the group.
    pub async fn migrate(&self, to: &World) -> Result<Option<Accepted>, String> {
        let response = self.promise(to).await;
        self.alice.act(&self.a, &self.group, migrate(&response)).await
    }

    /// A request of bob's that was answered once and is not settled.
    async fn bob_says(&self, text: &str) -> (RequestId, DsResponse) {
        let content = mimid::client::core::Content::text(text).encode();
        let request = self.bob.member.begin(&self.group, Operation::Send { content }).unwrap();
        let message = self.bob.member.outbound(request, self.b.now()).unwrap().message;
        (request, self.b.node.group_operation(&self.bob.uri, message).await)
    }

    /// It is asked again by itself as soon as its client has heard something.
    fn is_answered(&self, request: RequestId) -> bool {
        self.bob.member.pending().unwrap().iter().all(|(pending, _, _)| *pending != request)
    }

    /// Both commit and talk, and agree on all of it.
    pub async fn goes_on_at(&self, hub: &World) {
        let group = &self.group;
        let update = || Operation::UpdateClient { rotate_key: true };
        until(&self.alice, &self.a, |it| view(it, group).hub == hub.domain).await;
        self.alice.act(&self.a, group, update()).await.unwrap();
        let epoch = view(&self.alice, group).epoch;
        until(&self.bob, &self.b, |it| view(it, group).epoch == epoch).await;
        self.bob.act(&self.b, group, update()).await.unwrap();
        let epoch = view(&self.bob, group).epoch;
        until(&self.alice, &self.a, |it| view(it, group).epoch == epoch).await;
        let text = format!("in epoch {epoch:?}");
        self.alice.say(&self.a, group, &text).await;
        self.bob.say(&self.b, group, &text).await;
        until(&self.alice, &self.a, |it| it.texts().contains(&text)).await;
        until(&self.bob, &self.b, |it| it.texts().contains(&text)).await;
        for (client, texts) in [(&self.alice, self.alice.texts()), (&self.bob, self.bob.texts())] {
            assert_eq!(texts.iter().filter(|it| **it == text).count(), 1, "{}", client.uri);
            assert_eq!(view(client, group).hub, hub.domain, "{}", client.uri);
            let events = client.member.events(0, 10_000).unwrap();
            let bad = |event: &mimid::client::core::Event| {
                matches!(event, mimid::client::core::Event::Misbehaviour { .. })
            };
            assert!(!events.iter().any(|(_, event)| bad(event)), "{}: {events:?}", client.uri);
        }
        let (ours, theirs) = (view(&self.alice, group), view(&self.bob, group));
        assert_eq!((ours.epoch, ours.authenticator), (theirs.epoch, theirs.authenticator));
        for world in [&self.a, &self.b] {
            let status = world.head(group).await.status;
            let hosts = status == GroupStatus::Active;
            assert_eq!(hosts, world.domain == hub.domain, "{}: {status:?}", world.domain);
        }
    }

    pub fn end(self) {
        self.a.end();
        self.b.end();
    }
}

fn is_of_a_move(letter: &Letter) -> bool {
    matches!(
        letter.event,
        EventType::MigrationRequest
            | EventType::MigrationContent
            | EventType::MigrationAbort
            | EventType::MigrationConfirmation
    )
}

pub fn contents(letters: &Letters) -> Vec<Letter> {
    let letters = letters.lock().unwrap();
    letters.iter().filter(|it| it.event == EventType::MigrationContent).cloned().collect()
}

pub fn migrate(response: &MigrationResponse) -> Operation {
    Operation::Migrate { response: encode(response) }
}

pub async fn promise(
    world: &World,
    by: &TestClient,
    group: &GroupId,
    to: &Domain,
) -> Result<MigrationResponse, DsError> {
    let request = by.member.wish_to_move(group, to).unwrap();
    world.node.request_migration(request).await
}

pub fn view(client: &TestClient, group: &GroupId) -> GroupView {
    client.member.group(group).unwrap()
}

pub fn is_in(client: &TestClient, group: &GroupId) -> bool {
    client.member.group(group).is_ok_and(|view| view.state == GroupState::Active)
}

pub async fn until(client: &TestClient, world: &World, what: impl Fn(&TestClient) -> bool) {
    while !what(client) {
        client.wait(world).await;
    }
}

/// Looks until it is so; a test that hangs says where.
pub async fn comes_true(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never comes to: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub async fn until_departure(node: &Node, state: &str) {
    let is_there = async || node.departures().await.unwrap().iter().any(|it| it.state == state);
    comes_true(state, is_there).await;
}

pub async fn until_none_departs(node: &Node) {
    comes_true("no departure", async || node.departures().await.unwrap().is_empty()).await;
}

/// `from` sends `body` to `to`, as it would by itself.
async fn send(
    from: &World,
    to: &World,
    event: EventType,
    body: Vec<u8>,
) -> Result<Vec<u8>, CallError> {
    let (id, timeout) = (RequestId(crypto::random()), Duration::from_secs(60));
    from.by_hand.as_ref().unwrap().request(&to.domain, event, id, body, timeout).await
}

async fn complete(from: &World, to: &World, body: Vec<u8>) -> TargetMigrationComplete {
    decode(&send(from, to, EventType::MigrationContent, body).await.unwrap()).unwrap()
}

fn error_of(answer: Result<Vec<u8>, CallError>) -> &'static str {
    match answer {
        Err(CallError::Status { error: Some(error), .. }) => error.name(),
        other => panic!("{other:?}"),
    }
}

fn refused(response: DsResponse) -> DsError {
    response.outcome.into_result().unwrap_err()
}

fn come_again_ms(response: DsResponse) -> u64 {
    match refused(response) {
        DsError::GroupMigrating { retry_after_ms, .. } => retry_after_ms,
        other => panic!("{other:?}"),
    }
}

fn key() -> SigningKey {
    SigningKey::generate(SignatureScheme::ED25519).unwrap()
}

async fn chain_at(world: &World, group: &GroupId) -> Chain {
    let moves = world.store.moves(group).await.unwrap();
    let chain = moves.map(|moves| moves.chain).unwrap_or_default();
    if chain.is_empty() { Chain::default() } else { decode(&chain).unwrap() }
}

#[actix::test]
async fn group_that_its_target_refuses_goes_on_where_it_was() {
    let two = Two::with(|limits, _| limits.moves.groups_max = 1).await;
    let other = two.alice.create(&two.a).await;
    // there is room for one, and both are agreed to
    let response = two.promise(&two.b).await;
    let first = promise(&two.a, &two.alice, &other, &two.b.domain).await.unwrap();
    two.alice.act(&two.a, &other, migrate(&first)).await.unwrap();
    let before = two.a.head(&two.group).await;
    // the source sees it before anything is sent
    let letters = two.carry(|_, _| Fate::Arrives);
    let answer = two.alice.act(&two.a, &two.group, migrate(&response)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(contents(&letters), []);
    let kept = |head: GroupHead| (head.status, head.epoch, head.next_sequence);
    assert_eq!(kept(two.a.head(&two.group).await), kept(before.clone()));
    // or else the target says so of the content
    let letters = two.carry(|letter, _| match letter.event {
        EventType::MigrationRequest => Fate::Answered(Vec::new()),
        _ => Fate::Arrives,
    });
    let answer = two.alice.act(&two.a, &two.group, migrate(&response)).await;
    assert!(answer.is_err(), "{answer:?}");
    let contents = contents(&letters);
    assert_eq!(contents.len(), 1);
    assert_eq!(kept(two.a.head(&two.group).await), kept(before));
    until_none_departs(&two.a.node).await;
    two.goes_on_at(&two.a).await;
    // which is for good, whatever room there is
    let said = complete(&two.a, &two.b, contents[0].body.clone()).await;
    assert_eq!(said.refused, 1);
    let hash = proof::hash_of_response(&response);
    assert_eq!(said.migration_content_hash.as_slice(), hash);
    two.end();
}

#[actix::test]
async fn target_out_of_reach_gets_no_group_and_costs_it_the_freeze_at_the_most() {
    let two = Two::new().await;
    // its keys are known here: that says nothing of whether it is there
    two.a.node.provider_keys(&two.b.domain).await.unwrap();
    let response = two.promise(&two.b).await;
    let letters = two.carry(|_, _| Fate::Lost);
    let before = two.a.head(&two.group).await;
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let waits = async {
        until_departure(&two.a.node, "frozen").await;
        // from here on what drives it knows, too, since when it is on its way
        comes_true("a first try", async || !letters.lock().unwrap().is_empty()).await;
        let (request, answer) = two.bob_says("meanwhile").await;
        assert_eq!(come_again_ms(answer), 50);
        let freeze_ms = Limits::default().moves.freeze_ms;
        two.clock.advance_ms(300);
        // who waits as long again as it has taken is soon there, and asks seldom where it takes long
        let again = async || {
            let outbound = two.bob.member.outbound(request, two.b.now()).unwrap();
            come_again_ms(two.b.node.group_operation(&two.bob.uri, outbound.message).await)
        };
        assert_eq!(again().await, 300);
        two.clock.advance_ms(freeze_ms / 2 - 300);
        assert_eq!(again().await, 2_000);
        comes_true("three more tries", async || letters.lock().unwrap().len() > 3).await;
        assert_eq!(two.a.node.departures().await.unwrap().len(), 1);
        two.clock.advance_ms(freeze_ms / 2);
        request
    };
    let (moved, request) = tokio::join!(moves, waits);
    assert!(moved.is_err(), "{moved:?}");
    assert_eq!(contents(&letters), []);
    let after = two.a.head(&two.group).await;
    assert_eq!((after.status, after.epoch), (GroupStatus::Active, before.epoch));
    two.bob.drive(&two.b, request).await.unwrap();
    two.goes_on_at(&two.a).await;
    assert_eq!(two.alice.texts()[0], "meanwhile");
    // and it can be tried again
    two.net.carry(|_| Fate::Arrives);
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn content_whose_answer_is_lost_is_sent_again_and_taken_once() {
    let two = Two::new().await;
    let letters = two.carry(|letter, before| match letter.event {
        EventType::MigrationContent if before < 3 => Fate::AnswerLost,
        EventType::MigrationConfirmation if before < 2 => Fate::AnswerLost,
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    let sent = contents(&letters);
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|letter| letter.body == sent[0].body), "never made anew");
    until_none_departs(&two.a.node).await;
    two.goes_on_at(&two.b).await;
    // repeated later it is answered the same, and changes nothing: now and after a crash
    let head = two.b.head(&two.group).await;
    let chain = chain_at(&two.b, &two.group).await;
    assert_eq!(chain.len(), 1);
    let first = complete(&two.a, &two.b, sent[0].body.clone()).await;
    let content: MigrationContent = decode(&sent[0].body).unwrap();
    let hash = proof::hash_of_content(&content);
    assert_eq!((first.refused, first.migration_content_hash.as_slice()), (0, hash.as_slice()));
    // also where the source would rather have it back
    let abort = encode(&content.migration_response);
    let said = send(&two.a, &two.b, EventType::MigrationAbort, abort).await.unwrap();
    assert_eq!(decode::<TargetMigrationComplete>(&said).unwrap(), first);
    // nor is it another's to ask
    let c = provider("c.example", &two.net, &two.clock);
    let by_another = send(&c, &two.b, EventType::MigrationContent, sent[0].body.clone()).await;
    assert_eq!(error_of(by_another), "not_authorized");
    let by_another =
        send(&c, &two.b, EventType::MigrationAbort, encode(&content.migration_response)).await;
    assert_eq!(error_of(by_another), "not_authorized");
    let Two { net, clock, a, b, group, alice, bob } = two;
    let b = b.crash();
    let again = complete(&a, &b, sent[0].body.clone()).await;
    assert_eq!(again, first);
    assert_eq!(b.head(&group).await, head);
    assert_eq!(chain_at(&b, &group).await, chain);
    c.end();
    let two = Two { net, clock, a, b, group, alice, bob };
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn operator_ends_a_move_of_which_nothing_was_sent_at_once() {
    let two = Two::new().await;
    assert!(!two.a.node.abort_departure(&two.group).await.unwrap(), "it is not on its way");
    let response = two.promise(&two.b).await;
    let letters = two.carry(|_, _| Fate::Lost);
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let ends = async {
        let ends = async || two.a.node.abort_departure(&two.group).await.unwrap();
        comes_true("it can be ended", ends).await;
    };
    let (moved, ()) = tokio::join!(moves, ends);
    assert!(moved.is_err(), "{moved:?}");
    until_none_departs(&two.a.node).await;
    assert_eq!(contents(&letters), []);
    two.goes_on_at(&two.a).await;
    two.end();
}

#[actix::test]
async fn operator_ends_a_move_that_was_sent_by_the_targets_refusal_alone() {
    let two = Two::new().await;
    let response = two.promise(&two.b).await;
    let gate = Gate::default();
    let opened = gate.clone();
    let letters = two.carry(move |letter, _| match letter.event {
        EventType::MigrationContent => Fate::Lost,
        EventType::MigrationAbort if !opened.is_open() => Fate::Lost,
        _ => Fate::Arrives,
    });
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let ends = async {
        comes_true("it is sent", async || !contents(&letters).is_empty()).await;
        assert!(two.a.node.abort_departure(&two.group).await.unwrap());
        let asked = async || {
            let letters = letters.lock().unwrap();
            letters.iter().filter(|it| it.event == EventType::MigrationAbort).count() > 2
        };
        comes_true("the target is asked", asked).await;
        // nor does time end it
        two.clock.advance_ms(Limits::default().moves.freeze_ms);
        let states = two.a.node.departures().await.unwrap();
        assert_eq!(states.iter().map(|it| it.state).collect::<Vec<_>>(), ["sent"]);
        gate.open();
    };
    let (moved, ()) = tokio::join!(moves, ends);
    assert!(moved.is_err(), "{moved:?}");
    until_none_departs(&two.a.node).await;
    two.goes_on_at(&two.a).await;
    // what comes late is not taken
    let body = contents(&letters)[0].body.clone();
    assert_eq!(complete(&two.a, &two.b, body.clone()).await.refused, 1);
    let Two { net, clock, a, b, group, alice, bob } = two;
    let b = b.crash();
    assert_eq!(complete(&a, &b, body).await.refused, 1);
    let two = Two { net, clock, a, b, group, alice, bob };
    two.goes_on_at(&two.a).await;
    two.end();
}

#[actix::test]
async fn content_that_comes_when_its_nonce_has_expired_is_refused() {
    let two = Two::new().await;
    let response = two.promise(&two.b).await;
    let gate = Gate::default();
    let opened = gate.clone();
    let letters = two.carry(move |letter, _| match letter.event {
        EventType::MigrationContent if opened.is_open() => Fate::Arrives,
        EventType::MigrationContent | EventType::MigrationAbort => Fate::Lost,
        _ => Fate::Arrives,
    });
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let waits = async {
        until_departure(&two.a.node, "sent").await;
        let ms = response.expires_at.ms_since(two.a.now());
        two.clock.advance_ms(ms);
        gate.open();
    };
    let (moved, ()) = tokio::join!(moves, waits);
    assert!(moved.is_err(), "{moved:?}");
    assert!(!contents(&letters).is_empty());
    two.goes_on_at(&two.a).await;
    two.end();
}

#[actix::test]
async fn word_that_cannot_be_the_targets_leaves_the_group_frozen_until_the_true_one_comes() {
    let two = Two::new().await;
    let response = two.promise(&two.b).await;
    let (gate, theirs, another) = (Gate::default(), two.b.sender().clone(), key());
    let opened = gate.clone();
    let of_response = proof::hash_of_response(&response);
    let letters = two.carry(move |letter, before| {
        if letter.event == EventType::MigrationAbort {
            return Fate::Lost;
        }
        if letter.event != EventType::MigrationContent {
            return Fate::Arrives;
        }
        let hash = proof::hash_of_content(&decode(&letter.body).unwrap());
        let mut forged = proof::complete(&theirs, of_response, true).unwrap();
        forged.refused = 0;
        let lies = [
            // signed by another key: taken, and refused
            proof::complete(&another, hash, false).unwrap(),
            proof::complete(&another, of_response, true).unwrap(),
            // of something that was not sent
            proof::complete(&theirs, [7; 32], false).unwrap(),
            proof::complete(&theirs, of_response, false).unwrap(),
            // a refusal names the response, and the bit is signed
            proof::complete(&theirs, hash, true).unwrap(),
            forged,
        ];
        match lies.get(before) {
            Some(lie) => Fate::Answered(encode(lie)),
            None if before == lies.len() => Fate::Answered(b"nonsense".to_vec()),
            None if opened.is_open() => Fate::Arrives,
            None => Fate::Lost,
        }
    });
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let waits = async {
        comes_true("all lies were told", async || contents(&letters).len() > 8).await;
        let states = two.a.node.departures().await.unwrap();
        assert_eq!(states.iter().map(|it| it.state).collect::<Vec<_>>(), ["sent"]);
        assert_eq!(two.a.head(&two.group).await.status, GroupStatus::Migrating);
        assert_eq!(two.b.head(&two.group).await.status, GroupStatus::Followed);
        let (request, answer) = two.bob_says("is anybody here?").await;
        assert_eq!(refused(answer).name(), "group_migrating");
        gate.open();
        request
    };
    let (moved, request) = tokio::join!(moves, waits);
    moved.unwrap();
    until(&two.bob, &two.b, |_| two.is_answered(request)).await;
    two.goes_on_at(&two.b).await;
    assert_eq!(two.alice.texts()[0], "is anybody here?");
    two.end();
}

#[actix::test]
async fn content_that_its_source_has_not_signed_or_that_lies_is_refused_for_good() {
    let two = Two::new().await;
    let response = two.promise(&two.b).await;
    let letters = two.carry(|letter, _| match letter.event {
        EventType::MigrationContent | EventType::MigrationAbort => Fate::Lost,
        _ => Fate::Arrives,
    });
    let other = promise(&two.a, &two.alice, &two.group, &two.b.domain).await.unwrap();
    let moves = two.alice.act(&two.a, &two.group, migrate(&response));
    let lies = async {
        comes_true("it is sent", async || !contents(&letters).is_empty()).await;
        let good: MigrationContent = decode(&contents(&letters)[0].body).unwrap();
        let state = good.group_state.as_slice().to_vec();
        // the state of one move under the response of another: the source can sign it, its initiator did not
        let sender = two.a.sender();
        let lie = proof::sign_content(sender, other.clone(), state.clone()).unwrap();
        let said = complete(&two.a, &two.b, encode(&lie)).await;
        let hash = proof::hash_of_response(&other);
        assert_eq!((said.refused, said.migration_content_hash.as_slice()), (1, hash.as_slice()));
        // a response that this target never gave, and its own with a longer time
        let request = response.migration_request.clone();
        let (by, until) = (key(), response.expires_at);
        let target_sender = response.target_sender.clone();
        let forged = proof::respond(&by, request, [1; 32], until, target_sender).unwrap();
        let mut longer = response.clone();
        longer.expires_at = until.plus_ms(1);
        for forged in [forged, longer] {
            let lie = proof::sign_content(sender, forged, state.clone()).unwrap();
            let answer = send(&two.a, &two.b, EventType::MigrationContent, encode(&lie)).await;
            assert_eq!(error_of(answer), "malformed");
        }
        assert_eq!(two.b.head(&two.group).await.status, GroupStatus::Followed);
        // a bit of the state, the signature as it was
        let mut bytes = state.clone();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        let tampered = proof::sign_content(&key(), response.clone(), bytes).unwrap();
        let tampered = MigrationContent { signature: good.signature.clone(), ..tampered };
        let said = complete(&two.a, &two.b, encode(&tampered)).await;
        assert_eq!(said.refused, 1);
        // the nonce is spent: the true one comes too late
        assert_eq!(complete(&two.a, &two.b, encode(&good)).await.refused, 1);
        two.net.carry(|_| Fate::Arrives);
    };
    let (moved, ()) = tokio::join!(moves, lies);
    assert!(moved.is_err(), "{moved:?}");
    two.goes_on_at(&two.a).await;
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn move_that_is_over_is_not_made_again_by_what_was_said_of_it() {
    let two = Two::new().await;
    let letters = two.carry(|_, _| Fate::Arrives);
    // the request that moved it first, as it was sent
    let response = two.promise(&two.b).await;
    let request = two.alice.member.begin(&two.group, migrate(&response)).unwrap();
    let message: DsMessage = two.alice.member.outbound(request, two.a.now()).unwrap().message;
    let answer = two.a.node.group_operation(&two.alice.uri, message.clone()).await;
    assert!(matches!(answer.outcome.clone().into_result(), Ok(DsResponseBody::Moving(_))));
    // the answer is lost: it is told again
    let again = two.a.node.group_operation(&two.alice.uri, message.clone()).await;
    assert_eq!(again, answer);
    two.alice.member.settle(request, &answer, two.a.now()).unwrap();
    two.goes_on_at(&two.b).await;
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    // the group is back where it was sent from: the same request is one that was accepted, or is not good any more
    let head = two.a.head(&two.group).await;
    let late = two.a.node.group_operation(&two.alice.uri, message).await;
    match late.outcome.into_result() {
        Ok(DsResponseBody::Accepted(_)) | Err(_) => {}
        Ok(other) => panic!("{other:?}"),
    }
    assert_eq!(two.a.head(&two.group).await, head);
    assert_eq!(two.a.node.departures().await.unwrap(), []);
    // there and back once more; then all that the target knows is the last nonce
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    until_none_departs(&two.b.node).await;
    let head = two.b.head(&two.group).await;
    let sent = contents(&letters);
    let to_b: Vec<&Letter> = sent.iter().filter(|it| it.to == two.b.domain).collect();
    assert_eq!(to_b.len(), 2);
    assert_eq!(complete(&two.a, &two.b, to_b[0].body.clone()).await.refused, 1);
    let last = complete(&two.a, &two.b, to_b[1].body.clone()).await;
    let hash = proof::hash_of_content(&decode(&to_b[1].body).unwrap());
    assert_eq!((last.refused, last.migration_content_hash.as_slice()), (0, hash.as_slice()));
    assert_eq!(two.b.head(&two.group).await, head);
    two.goes_on_at(&two.a).await;
    two.end();
}

/// Who may still ask about the last move must get its answer, and it is written over by the next one.
#[actix::test]
async fn group_does_not_move_on_before_its_last_hub_knows_that_it_has_come() {
    let two = Two::new().await;
    let (gate, home) = (Gate::default(), two.a.domain.clone());
    let opened = gate.clone();
    let letters = two.carry(move |letter, _| {
        let is_told = letter.event == EventType::MigrationConfirmation && letter.to == home;
        if is_told && !opened.is_open() { Fate::Lost } else { Fate::Arrives }
    });
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    let contents_to = |to: &World| {
        contents(&letters).into_iter().filter(|it| it.to == to.domain).collect::<Vec<_>>()
    };
    let too_long = async {
        until_departure(&two.a.node, "frozen").await;
        two.clock.advance_ms(Limits::default().moves.freeze_ms);
    };
    let (refused, ()) = tokio::join!(two.migrate(&two.b), too_long);
    let why = format!("{:?}", refused.unwrap_err());
    assert!(why.contains("has not confirmed yet that it knows"), "{why}");
    two.goes_on_at(&two.a).await;
    let waits = async {
        until_departure(&two.a.node, "frozen").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(contents_to(&two.b).len(), 1, "of the first move alone");
        let came = contents_to(&two.a).remove(0);
        let again = complete(&two.b, &two.a, came.body).await;
        assert_eq!(again.refused, 0);
        gate.open();
    };
    let (moved, ()) = tokio::join!(two.migrate(&two.b), waits);
    moved.unwrap();
    assert_eq!(contents_to(&two.b).len(), 2);
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn provider_that_claims_a_group_by_moves_that_were_not_speaks_for_nobody() {
    let two = Two::new().await;
    let c = provider("c.example", &two.net, &two.clock);
    let d = provider("d.example", &two.net, &two.clock);
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    comes_true("b has the confirmation", async || !chain_at(&two.b, &two.group).await.is_empty())
        .await;
    let real = chain_at(&two.b, &two.group).await[0].clone();
    let link = |by: &SigningKey, from: &World, epoch: u64| -> MigrationConfirmation {
        let mut confirmation = real.clone();
        confirmation.source_domain = from.domain.clone();
        confirmation.domain_name = c.domain.clone();
        confirmation.epoch.0 = epoch;
        proof::sign_confirmation(by, confirmation).unwrap()
    };
    let epoch = real.epoch.0;
    let mut renamed = real.clone();
    renamed.domain_name = c.domain.clone();
    let chains: Vec<(&str, Vec<MigrationConfirmation>)> = vec![
        ("none", vec![]),
        ("one to somebody else", vec![real.clone()]),
        ("one that names it", vec![renamed]),
        ("of its own making", vec![link(c.sender(), &two.a, epoch)]),
        ("with a link of its own", vec![real.clone(), link(c.sender(), &two.b, epoch + 1)]),
        ("by the wrong one", vec![real.clone(), link(two.a.sender(), &two.b, epoch + 1)]),
        ("without its beginning", vec![link(two.b.sender(), &c, epoch + 1)]),
        ("from itself", vec![link(c.sender(), &c, epoch + 1)]),
    ];
    let claim = |next: Sequence, chain: Vec<MigrationConfirmation>| DeliveryItem::Snapshot {
        group_id: two.group.clone(),
        next_sequence: next,
        chain: List::new(chain).unwrap(),
        roster: List::default(),
    };
    for (what, chain) in chains {
        for to in [&two.a, &two.b, &d] {
            let before = to.store.group_head(&two.group).await.unwrap();
            let next = before.as_ref().map_or(Sequence(9), |head| head.next_sequence);
            // before, it is told to wait: the keys may be newer than those that were fetched a moment ago
            two.clock.advance_ms(60_000);
            let failures = c.send(&to.domain, vec![claim(next, chain.clone())]).await;
            let problems: Vec<_> = failures.iter().map(|it| it.problem).collect();
            assert_eq!(problems, [DeliveryProblem::WrongHub], "{what}, to {}", to.domain);
            assert_eq!(to.store.group_head(&two.group).await.unwrap(), before, "{what}");
        }
    }
    // b's own word stands where b is known; but epochs rise
    let flat = vec![real.clone(), link(two.b.sender(), &two.b, epoch)];
    two.clock.advance_ms(60_000);
    let failures = c.send(&d.domain, vec![claim(Sequence(9), flat)]).await;
    assert_eq!(failures[0].problem, DeliveryProblem::WrongHub);
    // whereas the chain that is true is believed by who knows nothing but the group's creator
    assert_eq!(two.b.send(&d.domain, vec![claim(Sequence(99), vec![real])]).await, []);
    two.goes_on_at(&two.b).await;
    c.end();
    d.end();
    two.end();
}

#[actix::test]
async fn only_its_source_confirms_a_move() {
    let two = Two::new().await;
    let c = provider("c.example", &two.net, &two.clock);
    let gate = Gate::default();
    let opened = gate.clone();
    let letters = two.carry(move |letter, _| match letter.event {
        EventType::MigrationConfirmation if !opened.is_open() => Fate::Lost,
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    let is_sent = async || {
        let letters = letters.lock().unwrap();
        letters.iter().any(|it| it.event == EventType::MigrationConfirmation)
    };
    comes_true("the confirmation is sent", is_sent).await;
    let real: MigrationConfirmation = {
        let letters = letters.lock().unwrap();
        let sent = letters.iter().find(|it| it.event == EventType::MigrationConfirmation);
        decode(&sent.unwrap().body).unwrap()
    };
    gate.open();
    until_none_departs(&two.a.node).await;
    let chain = chain_at(&two.b, &two.group).await;
    assert!(chain.iter().eq([&real]));
    let confirm = async |from: &World, confirmation: MigrationConfirmation| {
        let event = EventType::MigrationConfirmation;
        send(from, &two.b, event, encode(&confirmation)).await
    };
    assert_eq!(error_of(confirm(&c, real.clone()).await), "not_authorized");
    let with = |change: &dyn Fn(&mut MigrationConfirmation)| {
        let mut changed = real.clone();
        change(&mut changed);
        changed
    };
    let theirs = with(&|it| it.source_domain = c.domain.clone());
    let theirs = proof::sign_confirmation(c.sender(), theirs).unwrap();
    assert_eq!(error_of(confirm(&c, theirs).await), "group_not_found");
    let elsewhere = with(&|it| it.domain_name = c.domain.clone());
    assert_eq!(error_of(confirm(&two.a, elsewhere).await), "not_authorized");
    let another = with(&|it| it.nonce[0] ^= 1);
    let another = proof::sign_confirmation(two.a.sender(), another).unwrap();
    assert_eq!(error_of(confirm(&two.a, another).await), "group_not_found");
    // what is known already is not put in another's place
    let forged = with(&|it| it.next_sequence = Sequence(1));
    confirm(&two.a, forged).await.unwrap();
    confirm(&two.a, real).await.unwrap();
    assert_eq!(chain_at(&two.b, &two.group).await, chain);
    two.goes_on_at(&two.b).await;
    c.end();
    two.end();
}

#[actix::test]
async fn confirmation_is_of_the_move_that_was_and_signed_by_its_source() {
    let two = Two::new().await;
    let letters = two.carry(|letter, _| match letter.event {
        EventType::MigrationConfirmation => Fate::Lost,
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    let real = chain_at(&two.a, &two.group).await[0].clone();
    let nonce = real.nonce;
    let confirm = async |confirmation: MigrationConfirmation| {
        two.b.node.take_confirmation(&two.a.domain, confirmation).await
    };
    let signed = |change: &dyn Fn(&mut MigrationConfirmation), by: &SigningKey| {
        let mut changed = real.clone();
        change(&mut changed);
        proof::sign_confirmation(by, changed).unwrap()
    };
    let forged = [
        signed(&|it| it.epoch.0 += 1, &key()),
        signed(&|_| (), two.b.sender()),
        MigrationConfirmation { next_sequence: Sequence(1), ..real.clone() },
    ];
    for forged in forged {
        assert_eq!(confirm(forged).await.unwrap_err().name(), "not_authorized");
        assert!(chain_at(&two.b, &two.group).await.is_empty());
    }
    // signed, but not what happened: whoever is shown the chain would not follow it from here on
    for lie in [
        signed(&|it| it.epoch.0 += 1, two.a.sender()),
        signed(&|it| it.epoch.0 -= 1, two.a.sender()),
        signed(&|it| it.next_sequence.0 += 1, two.a.sender()),
        signed(&|it| it.next_sequence.0 -= 1, two.a.sender()),
    ] {
        assert_eq!(confirm(lie).await.unwrap_err().name(), "not_authorized");
        assert!(chain_at(&two.b, &two.group).await.is_empty());
    }
    confirm(real).await.unwrap();
    assert_eq!(chain_at(&two.b, &two.group).await[0].nonce, nonce);
    assert!(!contents(&letters).is_empty());
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn provider_takes_the_groups_that_its_operator_lets_in() {
    let (net, clock) = (Arc::new(Net::default()), clock_of_now());
    let a = provider("a.example", &net, &clock);
    let alice = a.client("alice", "phone").await;
    let group = alice.create(&a).await;
    let asks = async |to: &World| {
        let answer = promise(&a, &alice, &group, &to.domain).await;
        answer.map(|_| ()).map_err(|error| error.name())
    };
    let open = provider("open.example", &net, &clock);
    assert_eq!(asks(&open).await, Ok(()));
    let closed =
        provider_with("closed.example", &net, &clock, |limits, _| limits.moves.accept = false);
    let picky = provider_with("picky.example", &net, &clock, |limits, _| {
        limits.moves.sources = Some(vec!["b.example".parse().unwrap()]);
    });
    let full = provider_with("full.example", &net, &clock, |limits, _| limits.moves.groups_max = 0);
    let of_others = provider_with("suite.example", &net, &clock, |_, options| {
        options.settings.ciphersuites = vec![2];
    });
    for world in [&closed, &picky, &full, &of_others] {
        assert_eq!(asks(world).await, Err("not_authorized"), "{}", world.domain);
    }
    let named = provider_with("named.example", &net, &clock, |limits, _| {
        limits.moves.sources = Some(vec!["a.example".parse().unwrap()]);
    });
    assert_eq!(asks(&named).await, Ok(()));
    // what cannot be meant
    let request = |change: &dyn Fn(&mut MigrationRequest)| {
        let mut request = alice.member.wish_to_move(&group, &open.domain).unwrap();
        change(&mut request);
        request
    };
    let ask = async |request| open.node.migration_response(request).await.unwrap_err().name();
    let other = |it: &mut MigrationRequest| it.target_domain_name = named.domain.clone();
    assert_eq!(ask(request(&other)).await, "malformed");
    let from_here = |it: &mut MigrationRequest| it.source_domain_name = open.domain.clone();
    assert_eq!(ask(request(&from_here)).await, "not_authorized");
    for ciphersuite in [0, 0xF00D] {
        let of = |it: &mut MigrationRequest| it.ciphersuite = ciphersuite;
        assert_eq!(ask(request(&of)).await, "not_authorized");
    }
    let own = open.client("olga", "phone").await;
    let here = own.create(&open).await;
    assert_eq!(ask(request(&|it| it.group_id = here.clone())).await, "not_authorized");
    for world in [open, closed, picky, full, of_others, named, a] {
        world.end();
    }
}

#[actix::test]
async fn group_with_leaves_that_have_long_expired_moves() {
    let (net, clock) = (Arc::new(Net::default()), clock_of_now());
    let a = provider("a.example", &net, &clock);
    let b = provider("b.example", &net, &clock);
    let mut synth = Synth::new(&a.domain, &a.hub().external_sender, 5);
    (synth.now, synth.expired) = (a.now(), vec![2]);
    let mut tokens = Vec::new();
    for member in &synth.members {
        a.enrol(&member.client, &member.leaf_key, member.register()).await;
        let (class, last_resort) = (KeyPackageClass::Group, Flag::No);
        let request = QueueTokens { class, last_resort, count: 1, revoke: List::default() };
        let minted = a.node.queue_tokens(&member.client, request).await.unwrap();
        tokens.push(minted.tokens[0].clone());
    }
    a.node.bring_in(synth.import(|index| tokens[index].clone())).await.unwrap();
    let join = async |index: usize, hub: &World| {
        let member = &synth.members[index];
        let laptop = ClientUri::of(&member.client.user(), "laptop").unwrap();
        let identity = Identity::with_user_key(laptop, member.user_key.clone()).unwrap();
        let client = a.register(identity).await;
        let join = Operation::Join { code: None };
        let request = client.member.join(&synth.id, &hub.domain, "", join, a.now()).unwrap();
        client.drive(&a, request).await.unwrap();
        client
    };
    let admin = join(0, &a).await;
    let response = promise(&a, &admin, &synth.id, &b.domain).await.unwrap();
    admin.act(&a, &synth.id, migrate(&response)).await.unwrap();
    assert_eq!(b.head(&synth.id).await.status, GroupStatus::Active);
    assert_eq!(view(&admin, &synth.id).hub, b.domain);
    // whoever joins there gets that tree, and it goes on
    let other = join(1, &b).await;
    until(&other, &a, |it| is_in(it, &synth.id)).await;
    other.say(&a, &synth.id, "old leaves").await;
    until(&admin, &a, |it| it.texts() == ["old leaves"]).await;
    assert_eq!(view(&admin, &synth.id).members.len(), 7);
    a.end();
    b.end();
}

#[actix::test]
async fn what_was_not_delivered_invited_or_answered_before_the_move_is_behind_it() {
    let (net, clock) = (Arc::new(Net::default()), clock_of_now());
    let a = World::in_net_with("a.example", &net, &clock, false, |limits, _| impatient(limits));
    let b = provider("b.example", &net, &clock);
    let alice = a.client("alice", "phone").await;
    let dave = a.client("dave", "phone").await;
    let bob = b.client("bob", "phone").await;
    let carol = b.client("carol", "phone").await;
    let erin = a.client("erin", "phone").await;
    let group = alice.create(&a).await;
    let invite = async |guest: &TestClient| {
        let key_packages = guest.key_packages_through(&b, &a, &alice).await;
        alice.act(&a, &group, Operation::AddUsers { key_packages }).await.unwrap();
    };
    invite(&bob).await;
    alice.add(&a, &group, &dave).await;
    let role = PolicyChange::Role { user: dave.uri.user(), role: Role::Admin };
    alice.act(&a, &group, Operation::UpdateGroup { changes: vec![role] }).await.unwrap();
    a.replicate(&b, &group).await;
    bob.receive(&b).await;
    assert!(is_in(&bob, &group));
    // of none of this anything gets to b
    alice.say(&a, &group, "one").await;
    alice.say(&a, &group, "two").await;
    invite(&carol).await;
    alice.add(&a, &group, &erin).await;
    alice.say(&a, &group, "three").await;
    let content = mimid::client::core::Content::text("four").encode();
    let request = alice.member.begin(&group, Operation::Send { content }).unwrap();
    let message = alice.member.outbound(request, a.now()).unwrap().message;
    let lost = a.node.group_operation(&alice.uri, message).await;
    let Ok(DsResponseBody::Accepted(accepted)) = lost.outcome.into_result() else {
        panic!("it was accepted, and nobody hears of it")
    };
    dave.receive(&a).await;
    let response = promise(&a, &dave, &group, &b.domain).await.unwrap();
    dave.act(&a, &group, migrate(&response)).await.unwrap();

    until(&bob, &b, |it| view(it, &group).hub == b.domain).await;
    assert_eq!(bob.texts(), ["one", "two", "three", "four"]);
    until(&carol, &b, |it| is_in(it, &group) && view(it, &group).hub == b.domain).await;
    assert_eq!(carol.texts(), ["three", "four"]);
    until(&erin, &a, |it| is_in(it, &group) && view(it, &group).hub == b.domain).await;
    assert_eq!(erin.texts(), ["three", "four"]);
    // the request that nobody answered has an answer at the new hub
    let before = b.head(&group).await;
    assert!(accepted.group_sequence < before.next_sequence);
    let asks = |it: &TestClient| it.member.pending().unwrap().iter().any(|it| it.0 == request);
    assert!(asks(&alice));
    until(&alice, &a, |it| !asks(it)).await;
    assert_eq!(view(&alice, &group).hub, b.domain);
    assert_eq!(b.head(&group).await.next_sequence, before.next_sequence);
    for (who, world) in [(&carol, &b), (&erin, &a), (&bob, &b), (&dave, &a)] {
        let text = format!("{} is here", who.uri);
        who.say(world, &group, &text).await;
        for (other, at) in [(&alice, &a), (&bob, &b), (&carol, &b), (&dave, &a), (&erin, &a)] {
            if other.uri != who.uri {
                until(other, at, |it| it.texts().last() == Some(&text)).await;
            }
        }
    }
    let fours = bob.texts().iter().filter(|text| *text == "four").count();
    assert_eq!(fours, 1);
    let all: Vec<_> = [&alice, &bob, &carol, &dave, &erin].map(|it| view(it, &group)).into();
    assert!(all.windows(2).all(|two| two[0].authenticator == two[1].authenticator));
    a.end();
    b.end();
}

/// Begins a move whose content and whose wish to end it are lost: alice's request, and the content.
async fn sent(two: &Two, response: &MigrationResponse) -> (RequestId, Vec<u8>) {
    let letters = two.carry(|letter, _| match letter.event {
        EventType::MigrationContent | EventType::MigrationAbort => Fate::Lost,
        _ => Fate::Arrives,
    });
    let request = two.alice.member.begin(&two.group, migrate(response)).unwrap();
    let message = two.alice.member.outbound(request, two.a.now()).unwrap().message;
    let is_sent = comes_true("it is sent", async || !contents(&letters).is_empty());
    tokio::select! {
        answer = two.a.node.group_operation(&two.alice.uri, message) => panic!("{answer:?}"),
        () = is_sent => {}
    }
    let content = contents(&letters)[0].body.clone();
    (request, content)
}

/// By the key that promised.
fn is_refused(said: &TargetMigrationComplete, response: &MigrationResponse) -> bool {
    let (key, _) = proof::hub_of_sender(&response.target_sender).unwrap();
    proof::check_complete(SignatureScheme::ED25519, key.as_slice(), said).unwrap();
    let hash = proof::hash_of_response(response);
    said.refused == 1 && said.migration_content_hash.as_slice() == hash
}

#[actix::test]
async fn source_that_was_away_gets_its_word_by_a_key_that_was_retired_meanwhile() {
    let two = Two::new().await;
    let response = two.promise(&two.b).await;
    let (request, _) = sent(&two, &response).await;
    let Two { net, clock, a, mut b, group, alice, bob } = two;
    let a = a.crash();
    clock.advance_ms(40 * DAY_MS);
    b.rotate_hub_key();
    b.retire_hub_keys(b.now().plus_ms(DAY_MS));
    let b = b.crash();
    net.carry(|_| Fate::Arrives);
    assert_eq!(a.head(&group).await.status, GroupStatus::Migrating);
    a.node.resume_departures().await.unwrap();
    until_none_departs(&a.node).await;
    assert!(alice.drive(&a, request).await.is_err());
    let two = Two { net, clock, a, b, group, alice, bob };
    two.goes_on_at(&two.a).await;
    // and the new key takes it
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.end();
}

#[actix::test]
async fn retired_key_says_what_became_of_its_promises_and_takes_no_group_however_fresh_they_are() {
    let mut two = Two::new().await;
    let other = two.promise(&two.b).await;
    let response = two.promise(&two.b).await;
    let (request, content) = sent(&two, &response).await;
    two.b.rotate_hub_key();
    two.b.retire_hub_keys(two.b.now().plus_ms(DAY_MS));
    assert!(is_refused(&complete(&two.a, &two.b, content.clone()).await, &response));
    assert_eq!(two.b.head(&two.group).await.status, GroupStatus::Followed);
    two.net.carry(|_| Fate::Arrives);
    until_none_departs(&two.a.node).await;
    assert!(two.alice.drive(&two.a, request).await.is_err());
    two.goes_on_at(&two.a).await;

    // what was taken stays taken, when members have replaced the key in the group; keys are asked for once a minute
    two.clock.advance_ms(60_000);
    let response = two.promise(&two.b).await;
    let letters = two.carry(|_, _| Fate::Arrives);
    two.alice.act(&two.a, &two.group, migrate(&response)).await.unwrap();
    until_none_departs(&two.a.node).await;
    let content = contents(&letters)[0].body.clone();
    let first = complete(&two.a, &two.b, content.clone()).await;
    assert_eq!(first.refused, 0);
    two.b.rotate_hub_key();
    two.goes_on_at(&two.b).await;
    assert_eq!(two.b.head(&two.group).await.hub_key.unwrap().key, two.b.hub_keys()[0]);
    two.b.retire_hub_keys(two.b.now().plus_ms(DAY_MS));
    assert_eq!(complete(&two.a, &two.b, content).await, first);

    // behind its time it says nothing, and nothing is written down
    two.clock.advance_ms(DAY_MS);
    let answer = send(&two.a, &two.b, EventType::MigrationAbort, encode(&other)).await;
    assert_eq!(error_of(answer), "not_authorized");
    assert_eq!(two.b.store.refused_nonce(&other.nonce).await, Ok(None));
    two.end();
}

#[actix::test]
async fn content_signed_by_a_key_that_its_source_has_retired_is_refused() {
    for retires in [false, true] {
        let mut two = Two::with(|limits, _| limits.moves.response_ms = DAY_MS).await;
        let response = two.promise(&two.b).await;
        let (_, content) = sent(&two, &response).await;
        two.a.rotate_hub_key();
        if retires {
            // as it never does while a group has the key
            two.a.retire_hub_keys(two.a.now().plus_ms(DAY_MS));
        }
        // nobody keeps the keys of before so long
        two.clock.advance_ms(2 * 3600 * 1000);
        let said = complete(&two.a, &two.b, content).await;
        assert_eq!(is_refused(&said, &response), retires);
        two.end();
    }
}

#[actix::test]
async fn chain_whose_source_retired_its_key_long_ago_is_followed_until_that_key_is_forgotten() {
    let mut two = Two::new().await;
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    until_none_departs(&two.a.node).await;
    two.a.rotate_hub_key();
    // its private part is gone at once
    two.a.retire_hub_keys(two.a.now());
    two.clock.advance_ms(40 * DAY_MS);
    let c = provider("c.example", &two.net, &two.clock);
    let moves_to = async |two: &Two, world: &World| {
        let response = promise(&two.a, &two.alice, &two.group, &world.domain).await.unwrap();
        two.alice.act(&two.a, &two.group, migrate(&response)).await
    };
    moves_to(&two, &c).await.unwrap();
    assert_eq!(c.head(&two.group).await.status, GroupStatus::Active);
    until(&two.bob, &two.b, |it| view(it, &two.group).hub == c.domain).await;
    until_none_departs(&two.b.node).await;

    two.a.forget_hub_keys();
    let d = provider("d.example", &two.net, &two.clock);
    assert!(moves_to(&two, &d).await.is_err());
    assert!(!d.knows(&two.group).await);
    assert_eq!(c.head(&two.group).await.status, GroupStatus::Active);
    c.end();
    d.end();
    two.end();
}

#[actix::test]
async fn source_has_so_many_nonces_refused_and_no_refusal_is_forgotten_for_another() {
    let two = Two::with(|limits, _| limits.moves.refused_per_source_max = 2).await;
    let c = provider("c.example", &two.net, &two.clock);
    let carol = c.client("carol", "phone").await;
    let of_carol = carol.create(&c).await;
    let of_c = promise(&c, &carol, &of_carol, &two.b.domain).await.unwrap();
    let mut promised = Vec::new();
    for _ in 0..3 {
        promised.push(two.promise(&two.b).await);
    }
    let abort = async |from: &World, to: &World, response: &MigrationResponse| {
        send(from, to, EventType::MigrationAbort, encode(response)).await
    };
    let mut said = Vec::new();
    for response in &promised[..2] {
        said.push(abort(&two.a, &two.b, response).await.unwrap());
        assert!(is_refused(&decode(&said[said.len() - 1]).unwrap(), response));
    }
    let full = async |two: &Two| {
        let answer = abort(&two.a, &two.b, &promised[2]).await;
        assert_eq!(error_of(answer), "rate_limited");
        assert_eq!(two.b.store.refused_nonce(&promised[2].nonce).await, Ok(None));
        // who asks before anything is sent keeps its group
        let asks = promise(&two.a, &two.alice, &two.group, &two.b.domain).await;
        assert_eq!(asks.unwrap_err().name(), "not_authorized");
        for (response, said) in promised.iter().zip(&said) {
            assert_eq!(&abort(&two.a, &two.b, response).await.unwrap(), said);
        }
    };
    full(&two).await;
    // nobody else's
    assert!(is_refused(&decode(&abort(&c, &two.b, &of_c).await.unwrap()).unwrap(), &of_c));
    let Two { net, clock, a, b, group, alice, bob } = two;
    let b = b.crash();
    b.node.sweep_moves().await.unwrap();
    let two = Two { net, clock, a, b, group, alice, bob };
    full(&two).await;
    // there is room when their time is over; an expired nonce needs none
    two.clock.advance_ms(2 * DAY_MS);
    let late = abort(&two.a, &two.b, &promised[2]).await.unwrap();
    assert!(is_refused(&decode(&late).unwrap(), &promised[2]));
    assert_eq!(two.b.store.refused_nonce(&promised[2].nonce).await, Ok(None));
    two.b.node.sweep_moves().await.unwrap();
    assert_eq!(two.b.store.refused_nonces(None, 9).await, Ok(vec![]));
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    c.end();
    two.end();
}
