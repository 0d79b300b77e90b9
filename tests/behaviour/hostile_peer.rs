//! A provider that means no good, with a domain, a certificate and keys that are as valid as anybody's, against real
//! processes: what it makes up is refused with an error that says so, changes nothing, and harms nobody's traffic.

use std::{
    io::{Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use mimid::{
    client::{
        ClientError,
        core::{
            Content, Event, GroupState, Home, Identity, Member, Operation, PolicyChange, SUITES,
            Settled,
        },
    },
    crypto::random,
    wire::{
        client::VerificationKeyResponse,
        codec::{List, Opaque, decode, encode},
        ds::{DsError, DsMessage, DsRequest, DsResponse, FanoutFilter},
        extensions::{
            CLIENT_QUEUE_CONFIG, JoinPolicy, KeyPackageClass, KeyPackageQueue, QueueToken,
        },
        federation::{EventType, S2SEndpoint},
        ids::{
            ClientUri, Domain, Epoch, GroupId, RecipientId, RequestId, Sequence, Timestamp, UserUri,
        },
        key_packages::{ConnectionKeyPackageRequest, ConnectionKeyPackageResponse},
        mls::MlsMessage,
        queueing::{
            DeliveryFailure, DeliveryItem, DeliveryProblem, QueueEvent, QueueingServiceRequest,
            QueueingServiceResponse, RecipientsGone, RosterChange,
        },
    },
};
use openmls::prelude as mls;

use crate::{
    hostile::{Answers, Hostile, came_before_its_end, http, now, post},
    providers::{PATIENCE, Peer, Player, Provider, Providers, accepted, eventually, team},
    proxy::{Proxy, Weather},
};

const EVIL: &str = "evil.example";
/// An honest provider is far below these.
const SETTINGS: &str = "relay_timeout = \"3s\"\n[rates]\npeer_per_second = 50\npeer_burst = 200\n";

/// Two honest providers with a group of both, and the hostile one.
struct Scene {
    providers: Providers,
    hostile: Hostile,
    /// To the hostile one.
    way: Proxy,
    alice: Player,
    bob: Player,
    /// At a.example, with alice and bob.
    team: GroupId,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with(SETTINGS).await
    }

    async fn set_with(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hostile = Hostile::start(EVIL, folder.path());
        let way = Proxy::start(hostile.address(), 1).await;
        let domains = ["a.example", "b.example"];
        let peer = Peer { address: way.address, ..hostile.peer() };
        let providers = Providers::start_with(&domains, 1, settings, &[peer]).await;
        let (alice, bob, team) = team(&providers).await;
        let scene = Self { providers, hostile, way, alice, bob, team, _folder: folder };
        scene.talk("before").await;
        scene
    }

    fn a(&self) -> &Provider {
        &self.providers.all[0]
    }

    fn b(&self) -> &Provider {
        &self.providers.all[1]
    }

    /// Everyone else's traffic goes on.
    async fn talk(&self, text: &str) {
        accepted(self.alice.client.send_text(&self.team, &format!("{text}, alice")).await);
        accepted(self.bob.client.send_text(&self.team, &format!("{text}, bob")).await);
        self.bob.until_hears(&self.team, &format!("{text}, alice")).await;
        self.alice.until_hears(&self.team, &format!("{text}, bob")).await;
    }

    /// What alice and bob have: all that could have been changed.
    fn seen(&self) -> Vec<(Vec<Event>, Option<Epoch>, usize)> {
        let seen = |player: &Player| {
            let view = player.view(&self.team);
            (player.events(), view.epoch, view.members.len() + view.pending)
        };
        vec![seen(&self.alice), seen(&self.bob)]
    }

    /// Nothing has come of it for anybody, and everything goes on.
    async fn nothing_came_of_it(&self, before: &[(Vec<Event>, Option<Epoch>, usize)]) {
        for player in [&self.alice, &self.bob] {
            player.receive().await;
            assert_eq!(player.complaints(), []);
        }
        assert_eq!(self.seen(), before);
        self.talk("behind").await;
    }

    /// A queue token of alice's, as whoever she gave her consent gets it.
    async fn token_of_alice(&self) -> QueueToken {
        self.alice.client.add_own_clients(&self.team, &[]).await.unwrap();
        let found = self.alice.client.group_key_packages(&self.team, &self.alice.user).await;
        let (_, key_package) = found.unwrap().remove(0);
        let key_package: mls::KeyPackageIn = decode(&key_package).unwrap();
        let crypto = mimid::crypto::MlsCrypto::default();
        let key_package = key_package.validate(&crypto, mls::ProtocolVersion::Mls10).unwrap();
        let queue = &key_package.extensions().unknown(CLIENT_QUEUE_CONFIG).unwrap().0;
        decode::<KeyPackageQueue>(queue).unwrap().config.queue_token
    }

    /// A message of alice to the team, as she would send it; it is not sent.
    fn message_of_alice(&self) -> MlsMessage {
        let (request, message) = made_by(&self.alice, &self.team, "not sent");
        self.alice.client.member().give_up(request).unwrap();
        let DsRequest::SendMessage(send) = message.request else { panic!("it sends") };
        send.application_message
    }

    /// An open group at a.example with alice, bob, and a client of the hostile provider.
    async fn open_group(&self) -> (GroupId, Eve<'_>) {
        let open = self.alice.client.create_group("open", SUITES[0], None).await.unwrap();
        let change = PolicyChange::Join(JoinPolicy::Open);
        accepted(self.alice.client.change_policy(&open, vec![change]).await);
        accepted(self.bob.client.join(&open, &open.domain(), "open", None).await);
        let eve = Eve::new(self, "mimi://evil.example/d/eve/phone");
        eve.join(&open).await.unwrap();
        self.alice
            .until("has eve in the group", |client| {
                client.member().group(&open).unwrap().members.len() == 3
            })
            .await;
        (open, eve)
    }
}

/// What `player` would send, signed and not sent. It is kept as a request without an answer.
fn made_by(player: &Player, group: &GroupId, text: &str) -> (RequestId, DsMessage) {
    let content = Content::text(text).encode();
    let request = player.client.begin(group, Operation::Send { content }).unwrap();
    let outbound = player.client.member().outbound(request, now()).unwrap();
    (request, outbound.message)
}

/// A client whose provider is the hostile one. It is as good a client as any.
struct Eve<'a> {
    scene: &'a Scene,
    member: Member,
}

impl<'a> Eve<'a> {
    fn new(scene: &'a Scene, uri: &str) -> Self {
        let identity = Identity::generate(ClientUri::new(uri).unwrap()).unwrap();
        let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        let tokens: Vec<QueueToken> =
            (0..8).map(|_| Opaque::new(random::<32>()).unwrap()).collect();
        member.store_tokens(KeyPackageClass::Group, false, &tokens).unwrap();
        Self { scene, member }
    }

    async fn join(&self, group: &GroupId) -> Result<(), DsError> {
        let join = Operation::Join { code: None };
        let request = self.member.join(group, &group.domain(), "open", join, now()).unwrap();
        self.drive(request).await
    }

    async fn say(&self, group: &GroupId, text: &str) -> Result<(), DsError> {
        let content = Content::text(text).encode();
        let request = self.member.begin(group, Operation::Send { content }).unwrap();
        self.drive(request).await
    }

    /// Sends a request by way of the hostile provider until it is answered.
    async fn drive(&self, request: RequestId) -> Result<(), DsError> {
        for _ in 0..10 {
            let outbound = self.member.outbound(request, now()).unwrap();
            let relayed = self.scene.hostile.relayed(self.scene.a(), &outbound.message);
            let answer = relayed.send(self.scene.a()).await;
            let response: DsResponse = decode(&answer.body).unwrap();
            match self.member.settle(request, &response, now()).unwrap() {
                Settled::Done(_) | Settled::Entered => return Ok(()),
                Settled::Again { .. } => {}
                Settled::Refused(refusal) => return Err(refusal.0),
            }
        }
        panic!("not answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_is_not_what_it_says_is_refused_and_named() {
    let scene = Scene::set().await;
    let (hostile, a, before) = (&scene.hostile, scene.a(), scene.seen());
    let ask = encode(&ConnectionKeyPackageRequest {
        target_user: scene.alice.user.clone(),
        requester: UserUri::new("mimi://evil.example/u/eve").unwrap(),
    });
    let good = hostile.message(a, EventType::ConnectionKeyPackages, ask);
    let refusal = async |change: &dyn Fn(&mut crate::hostile::Message)| {
        let mut message = good.clone();
        message.request_id = RequestId(random());
        change(&mut message);
        let answer = message.send(a).await;
        let status = answer.status;
        let error = answer.into_result(message.endpoint).expect_err("it is refused");
        assert!((400..500).contains(&status), "{status} {error}");
        assert!(!error.detail().is_empty(), "{error}");
        error.name()
    };
    let b = Domain::new("b.example").unwrap();
    // whose keys were fetched a moment ago could have new ones: who is not known to lie is told to wait for the next fetch
    let forged = refusal(&|m| m.sender = b.clone()).await;
    assert!(matches!(forged, "unauthenticated" | "rate_limited"), "{forged}");
    assert_eq!(
        refusal(&|m| m.key = hostile.sender.clone()).await,
        "unauthenticated",
        "a key for something else"
    );
    assert_eq!(
        refusal(&|m| m.sender = a.domain.clone()).await,
        "not_authorized",
        "in its own name"
    );
    for error in [
        refusal(&|m| m.recipient = b.clone()).await,
        refusal(&|m| m.event = "mimi.key-packages.group".into()).await,
        refusal(&|m| m.event = "mimi.key-packages.all".into()).await,
        refusal(&|m| m.body = vec![0xff; 40]).await,
        refusal(&|m| m.body.push(0)).await,
    ] {
        assert_eq!(error, "malformed");
    }
    let minutes = |n: i64| Timestamp(now().0.saturating_add_signed(n * 60_000));
    assert_eq!(refusal(&|m| m.timestamp = minutes(-6)).await, "stale_request");
    assert_eq!(refusal(&|m| m.timestamp = minutes(6)).await, "stale_request");
    // bits that were changed on the way
    let bytes = good.bytes();
    for at in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!((400..500).contains(&post(a, good.endpoint, changed).await.status), "byte {at}");
    }
    for len in [0, 1, bytes.len() - 1] {
        let answer = post(a, good.endpoint, bytes[..len].to_vec()).await;
        assert!((400..500).contains(&answer.status), "{len} bytes: {}", answer.status);
    }
    // as it should be it is answered: what was refused was refused for what was wrong with it
    assert_eq!(good.send(a).await.status, 200);
    scene.nothing_came_of_it(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeat_spends_nothing_twice_and_is_delivered_once() {
    let scene = Scene::set().await;
    let (open, eve) = scene.open_group().await;
    let (hostile, a) = (&scene.hostile, scene.a());
    let ask = encode(&ConnectionKeyPackageRequest {
        target_user: scene.alice.user.clone(),
        requester: UserUri::new("mimi://evil.example/u/eve").unwrap(),
    });
    let claim = hostile.message(a, EventType::ConnectionKeyPackages, ask);
    let key_packages = async |message: &crate::hostile::Message| {
        let body = message.send(a).await.into_result(message.endpoint).unwrap();
        decode::<ConnectionKeyPackageResponse>(&body).unwrap().key_packages
    };
    let first = key_packages(&claim).await;
    assert_eq!(first.len(), 1);
    assert_eq!(key_packages(&claim).await, first, "the same request");
    let again = crate::hostile::Message { timestamp: now(), ..claim.clone() };
    assert_eq!(key_packages(&again).await, first, "the same request, signed anew");
    let other = crate::hostile::Message { request_id: RequestId(random()), ..claim };
    assert_ne!(key_packages(&other).await, first, "another request");

    // a member's message, again and again
    let content = Content::text("once").encode();
    let request = eve.member.begin(&open, Operation::Send { content }).unwrap();
    let outbound = eve.member.outbound(request, now()).unwrap();
    let relayed = hostile.relayed(a, &outbound.message);
    let answer = relayed.send(a).await;
    assert_eq!(answer.status, 200);
    for _ in 0..3 {
        assert_eq!(relayed.send(a).await.body, answer.body);
        let again = hostile.relayed(a, &outbound.message);
        assert_eq!(again.send(a).await.body, answer.body);
    }
    for player in [&scene.alice, &scene.bob] {
        player.until_hears(&open, "once").await;
        player.receive().await;
        assert_eq!(player.said(&open).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feed_is_taken_from_its_hub_in_its_order_and_with_what_may_be_in_it() {
    let scene = Scene::set().await;
    let (hostile, a, b) = (&scene.hostile, scene.a(), scene.b());
    let (token, before) = (scene.token_of_alice().await, scene.seen());
    let message = QueueEvent::MlsMessage { message: scene.message_of_alice() };
    let own = GroupId::of(&hostile.domain, random());

    // groups whose hub is another: of whom it is told this, and of the other
    let one_problem = async |to: &Provider, item: DeliveryItem| {
        let reports = hostile.deliver(to, vec![item]).await.unwrap();
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports[0].problem
    };
    let theirs = GroupId::of(&b.domain, random());
    for (to, group) in [(a, &scene.team), (b, &scene.team), (a, &theirs)] {
        for item in [
            feed(group, 1, message.clone(), vec![]),
            feed(group, 100, message.clone(), vec![]),
            feed(group, 1, QueueEvent::GroupDeleted, vec![]),
            snapshot(group, 1, vec![add(1, &token)]),
        ] {
            assert_eq!(one_problem(to, item).await, DeliveryProblem::WrongHub);
        }
    }

    // a group of its own: not before it is opened, then in order
    let item = feed(&own, 1, QueueEvent::RosterOnly, vec![]);
    assert_eq!(one_problem(a, item).await, DeliveryProblem::UnknownFeed);
    let opened = hostile.deliver(a, vec![snapshot(&own, 1, vec![add(1, &token)])]).await.unwrap();
    assert_eq!(opened, []);
    let late = hostile.deliver(a, vec![feed(&own, 3, QueueEvent::RosterOnly, vec![])]).await;
    let late = late.unwrap();
    assert_eq!((late[0].problem, late[0].next_sequence), (DeliveryProblem::Gap, Sequence(1)));

    // what only a client's own provider may say, and messages of another group
    for event in [
        QueueEvent::Removed,
        QueueEvent::Gap { next_available: Sequence(9) },
        QueueEvent::KeyPackagesLow { left: 0 },
        welcome(&own, &message),
        message.clone(),
    ] {
        let item = feed(&own, 1, event.clone(), vec![]);
        assert_eq!(one_problem(a, item).await, DeliveryProblem::InvalidItem, "{event:?}");
    }

    // tokens of nobody, of another provider's client, and one that is another group's by now
    let stolen = GroupId::of(&hostile.domain, random());
    let bad_tokens: [QueueToken; 2] = [
        Opaque::new(random::<32>()).unwrap(),
        Opaque::new(vec![7; token.as_slice().len()]).unwrap(),
    ];
    for (at, bad) in (1..).zip(&bad_tokens) {
        let recipient = 50 + at;
        let item = feed(&own, at, QueueEvent::RosterOnly, vec![add(recipient, bad)]);
        let reports = hostile.deliver(a, vec![item]).await.unwrap();
        let about = |report: &DeliveryFailure| {
            report.problem == DeliveryProblem::InvalidClientQueueInformation
                && report.recipient == RecipientId(recipient)
        };
        assert!(reports.iter().any(about), "{reports:?}");
    }
    let reports = hostile.deliver(a, vec![snapshot(&stolen, 1, vec![add(1, &token)])]).await;
    let reports = reports.unwrap();
    assert!(
        reports.iter().any(|it| it.problem == DeliveryProblem::InvalidClientQueueInformation),
        "a token is one group's: {reports:?}"
    );
    // who is not there cannot go, and a number is given once
    for changes in [
        vec![RosterChange::Remove { recipient: RecipientId(77) }],
        vec![add(1, &token)],
        vec![RosterChange::Update {
            recipient: RecipientId(78),
            client_queue_information: token.clone(),
            filter: FanoutFilter::All,
        }],
    ] {
        let item = feed(&own, 3, QueueEvent::RosterOnly, changes.clone());
        let reports = hostile.deliver(a, vec![item]).await.unwrap();
        let refused = reports.iter().any(|it| it.problem == DeliveryProblem::InvalidItem);
        assert!(refused, "{changes:?}: {reports:?}");
    }
    // single requests, too: a message to alice by a token that is a group's at that
    let single = QueueingServiceRequest {
        client_queue_information: token.clone(),
        message: scene.message_of_alice(),
    };
    let single = hostile.message(a, EventType::Deliver, encode(&single)).send(a).await;
    let invalid = encode(&QueueingServiceResponse::InvalidClientQueueInformation);
    assert_eq!((single.status, single.body), (200, invalid));
    scene.nothing_came_of_it(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_speaks_for_its_own_clients_only() {
    let scene = Scene::set().await;
    let (open, eve) = scene.open_group().await;
    let (hostile, a) = (&scene.hostile, scene.a());
    eve.say(&open, "hello").await.unwrap();
    scene.bob.until_hears(&open, "hello").await;

    // a message of bob's, relayed by who is not his provider; and by his own
    let (request, message) = made_by(&scene.bob, &scene.team, "by way of b.example");
    let answer = hostile.relayed(a, &message).send(a).await;
    let refused = answer.into_result(S2SEndpoint::GroupOperation).unwrap_err();
    assert!(matches!(refused.name(), "unauthenticated" | "not_authorized"), "{refused}");
    scene.talk("meanwhile").await;
    scene.bob.client.finish(request).await.unwrap();
    scene.alice.until_hears(&scene.team, "by way of b.example").await;
    let heard = scene.alice.said(&scene.team);
    assert_eq!(heard.iter().filter(|(_, text)| text == "by way of b.example").count(), 1);

    // leaves of other domains: of an honest one, and of the hub's own
    for uri in ["mimi://b.example/d/mallory/phone", "mimi://a.example/d/mallory/phone"] {
        let refused = Eve::new(&scene, uri).join(&open).await.unwrap_err();
        assert!(matches!(refused.name(), "unauthenticated" | "not_authorized"), "{refused}");
    }
    // a requester of another domain
    let ask = encode(&ConnectionKeyPackageRequest {
        target_user: scene.alice.user.clone(),
        requester: scene.bob.user.clone(),
    });
    let ask = hostile.message(a, EventType::ConnectionKeyPackages, ask).send(a).await;
    let refused = ask.into_result(S2SEndpoint::ConnectionKeyPackages).unwrap_err();
    assert!(matches!(refused.name(), "unauthenticated" | "not_authorized"), "{refused}");

    // clients that are gone, it says, of a group that it has nobody in, and of one that there is not
    let no_group = GroupId::of(&a.domain, [7; 16]);
    for group_id in [scene.team.clone(), no_group] {
        let recipients = List::new((0..40).map(RecipientId).collect()).unwrap();
        let gone = encode(&RecipientsGone { group_id, recipients });
        let answer = hostile.message(a, EventType::RecipientsGone, gone).send(a).await;
        let refused = answer.into_result(S2SEndpoint::DeliverMessage).unwrap_err();
        assert_eq!(refused.name(), "group_not_found", "{refused}");
    }
    assert_eq!(scene.alice.view(&scene.team).pending, 0);

    // reports of queues: of all recipients that there could be
    let reports = (0..40).map(|recipient| DeliveryFailure {
        item: 0,
        problem: DeliveryProblem::InvalidClientQueueInformation,
        recipient: RecipientId(recipient),
        next_sequence: Sequence(0),
    });
    let reports = reports.collect();
    hostile.answers(Answers::Delivered(reports));
    accepted(scene.alice.client.send_text(&open, "who is gone?").await);
    // of its own client it is believed
    scene
        .alice
        .until("is told of a removal", |client| client.member().group(&open).unwrap().pending > 0)
        .await;
    hostile.answers(Answers::Delivered(Vec::new()));
    accepted(scene.alice.client.update(&open, false).await);
    scene
        .bob
        .until("sees eve gone", |client| client.member().group(&open).unwrap().members.len() == 2)
        .await;
    let view = scene.alice.view(&open);
    assert!(view.members.iter().all(|it| it.user == scene.alice.user || it.user == scene.bob.user));
    assert_eq!((view.members.len(), view.pending, view.state), (2, 0, GroupState::Active));
    accepted(scene.alice.client.send_text(&open, "nobody else").await);
    scene.bob.until_hears(&open, "nobody else").await;
    scene.talk("behind").await;
    for player in [&scene.alice, &scene.bob] {
        assert_eq!(player.complaints(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_measure_are_cut_off() {
    let scene = Scene::set().await;
    let (open, _eve) = scene.open_group().await;
    let (hostile, a) = (&scene.hostile, scene.a());
    let memory = a.metric("process_resident_memory_bytes").await;

    // ten times what a message may have
    let huge = vec![0; 10 * mimid::wire::federation::MESSAGE_BYTES_MAX];
    let url = format!("https://{}/deliver_message", a.federation);
    let posted =
        http(a).post(url).header("content-type", "application/octet-stream").body(huge).send();
    if let Ok(answer) = posted.await {
        assert_eq!(answer.status().as_u16(), 413);
    }
    let (address, root) = (a.federation, a.root());
    let told = tokio::task::spawn_blocking(move || endless_request(address, &root));
    let told = told.await.unwrap();
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");

    // answers to what its client asks the hostile provider for
    let stranger = UserUri::new("mimi://evil.example/u/nobody").unwrap();
    let alice = scene.providers.further(&scene.alice, "tablet").await;
    let alice = Player { client: alice.client.with_patience(Duration::ZERO), ..alice };
    for answers in [Answers::Nonsense(70 * 1024 * 1024), Answers::Endless, Answers::Silence] {
        hostile.answers(answers);
        let asked = tokio::time::timeout(PATIENCE, alice.client.connect(&stranger)).await;
        let asked = asked.expect("it is given up");
        assert!(matches!(asked, Err(ClientError::Http(_) | ClientError::Refused(_))), "{asked:?}");
        scene.talk("beside it").await;
    }
    let grown = a.metric("process_resident_memory_bytes").await - memory;
    assert!(grown < 200e6, "{grown} bytes more");
    // nonsense in answer to deliveries; when it behaves again it gets what it missed
    hostile.answers(Answers::Nonsense(40));
    let tries = hostile.deliveries();
    accepted(scene.alice.client.send_text(&open, "into the void").await);
    wait_for(hostile, |hostile| hostile.deliveries() > tries + 1).await;
    scene.talk("beside it").await;
    hostile.answers(Answers::Delivered(Vec::new()));
    let missed = hostile.deliveries();
    wait_for(hostile, |hostile| hostile.deliveries() > missed).await;
    for player in [&scene.alice, &scene.bob] {
        assert_eq!(player.complaints(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_is_told_to_wait_and_nobody_else() {
    // however slowly this machine floods, it is more than that; all that the honest have to say is below the burst
    let few = "relay_timeout = \"3s\"\n[rates]\npeer_per_second = 2\npeer_burst = 200\n";
    let scene = Scene::set_with(few).await;
    let (hostile, a) = (&scene.hostile, scene.a());
    let ask = encode(&ConnectionKeyPackageRequest {
        target_user: UserUri::new("mimi://a.example/u/nobody").unwrap(),
        requester: UserUri::new("mimi://evil.example/u/eve").unwrap(),
    });
    let flood = async {
        let client = http(a);
        let url = format!("https://{}/connection_key_packages", a.federation);
        let mut told = Vec::new();
        for round in 0..20 {
            let posts = (0..40).map(|n| {
                let mut message = hostile.message(a, EventType::ConnectionKeyPackages, ask.clone());
                if (round + n) % 4 == 0 {
                    // somebody else's name costs that one nothing
                    message.sender = scene.b().domain.clone();
                }
                client
                    .post(&url)
                    .header("content-type", "application/octet-stream")
                    .body(message.bytes())
                    .send()
            });
            for answer in futures_util::future::join_all(posts).await {
                let answer = answer.unwrap();
                let (status, waits) =
                    (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
                assert!(status != 429 || waits, "it is not said how long to wait");
                told.push(status);
            }
        }
        told
    };
    let others = async {
        for n in 0..10 {
            scene.talk(&format!("beside the flood {n}")).await;
        }
    };
    let (told, ()) = tokio::join!(flood, others);
    let count = |status: u16| told.iter().filter(|it| **it == status).count();
    assert!(count(200) > 0 && count(429) > 0, "{told:?}");
    let known = |status: &u16| matches!(status, 200 | 401 | 429 | 503);
    assert!(told.iter().all(known), "{told:?}");
    for player in [&scene.alice, &scene.bob] {
        assert_eq!(player.complaints(), []);
    }
    // its keys are what everyone may read, still
    let url = format!("https://{}/verification_key", a.federation);
    let keys = http(a).get(url).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(decode::<VerificationKeyResponse>(&keys).unwrap().domain, a.domain);
}

/// Names that nobody can tell from others until their keys are asked for, at an address that takes its time: behind a
/// start, when no keys are in memory, they wait with each other and not before those who share a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_names_at_the_door_do_not_keep_out_who_shares_a_group() {
    /// Of 256 requests at work: a quarter waits with strangers, an eighth of that may say that it is of one name.
    const NAMES: usize = 12;
    const OF_EACH: usize = 10;
    const PLACES: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let hostile = Hostile::start(EVIL, folder.path());
    // takes connections and says nothing
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let named = |n: usize| Domain::new(format!("x{n}.example")).unwrap();
    let invented: Vec<Peer> = (0..NAMES)
        .map(|n| Peer { domain: named(n), address: silent.local_addr().unwrap(), ..hostile.peer() })
        .collect();
    let settings = "requests_max = 256\nconnect_timeout = \"5m\"\n";
    let domains = ["a.example", "b.example"];
    let providers = Providers::start_with(&domains, 1, settings, &invented).await;
    let (alice, bob, team) = team(&providers).await;
    let [a, b] = &providers.all[..] else { panic!("two providers") };
    a.kill();
    a.start().await;
    let refusals =
        async || b.metric_with("mimid_federation_calls_total", "outcome=\"status\"").await;
    let before = refusals().await;
    let mut forged = hostile.message(a, EventType::ConnectionKeyPackages, Vec::new());
    let client = http(a);
    let url = format!("https://{}{}", a.federation, forged.endpoint.path());
    let mut at_the_door = Vec::new();
    for n in 0..NAMES * OF_EACH {
        forged.sender = named(n % NAMES);
        forged.request_id = RequestId(random());
        let posting = client.post(&url).body(forged.bytes());
        let posting = posting.header("content-type", "application/octet-stream").send();
        at_the_door.push(tokio::spawn(posting));
    }
    // those who find no place are told at once
    eventually("those without a place are told so", async || {
        let told = at_the_door.iter().filter(|it| it.is_finished()).count();
        told >= NAMES * OF_EACH - PLACES
    })
    .await;
    let mut inside = Vec::new();
    for knock in at_the_door {
        if knock.is_finished() {
            assert_eq!(knock.await.unwrap().unwrap().status(), 503);
        } else {
            inside.push(knock);
        }
    }
    // bob's provider has to be asked for its keys, and it is
    accepted(bob.client.send_text(&team, "through the crowd").await);
    alice.until_hears(&team, "through the crowd").await;
    accepted(alice.client.send_text(&team, "come in").await);
    bob.until_hears(&team, "come in").await;
    assert_eq!(refusals().await, before, "it found its place each time");
    for knock in inside {
        knock.abort();
    }
}

/// Tokens that are good for nobody, and as many copies as a provider has groups: it keeps heads, a bounded number of them,
/// and no message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_nobody_here_is_in_fill_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = Hostile::start(EVIL, folder.path());
    let settings = "copies_per_hub_max = 5\n";
    let domains = ["a.example", "b.example"];
    let providers = Providers::start_with(&domains, 1, settings, &[hostile.peer()]).await;
    let a = &providers.all[0];
    let forged = QueueToken::new(vec![7; 77]).unwrap();
    let group = |n: u8| GroupId::of(&hostile.domain, [n; 16]);
    let opening = (0..8).map(|n| snapshot(&group(n), 1, vec![add(1, &forged)])).collect();
    let failures = hostile.deliver(a, opening).await.unwrap();
    let of = |problem| failures.iter().filter(|it| it.problem == problem).collect::<Vec<_>>();
    let full = of(DeliveryProblem::QueueFull);
    assert_eq!(full.len(), 3);
    assert_eq!(of(DeliveryProblem::InvalidClientQueueInformation).len(), 5);
    let is_full = |n: &u8| full.iter().any(|it| it.item == u32::from(*n));
    let opened: Vec<u8> = (0..8).filter(|n| !is_full(n)).collect();
    let refused = (0..8).find(is_full).unwrap();
    let before = a.metric("mimid_store_bytes_on_disk").await;
    let mut message = vec![0, 1, 0, 2];
    let id = group(opened[0]);
    mimid::wire::codec::append_vector(&mut message, id.as_bytes());
    message.extend([0; 8]);
    message.push(1);
    for part in [&b""[..], b"sender", &[0; 200_000]] {
        mimid::wire::codec::append_vector(&mut message, part);
    }
    let event = QueueEvent::MlsMessage { message: MlsMessage::new(message).unwrap() };
    for sequence in 1..=200 {
        let failures =
            hostile.deliver(a, vec![feed(&id, sequence, event.clone(), Vec::new())]).await.unwrap();
        let bad = DeliveryProblem::InvalidClientQueueInformation;
        assert!(failures.iter().all(|it| it.problem == bad), "{failures:?}");
    }
    let again = hostile.deliver(a, vec![snapshot(&group(refused), 1, vec![add(1, &forged)])]).await;
    assert_eq!(again.unwrap()[0].problem, DeliveryProblem::QueueFull);
    assert!(a.metric_with("mimid_guest_full_total", "bound=\"copies\"").await >= 4.0);
    // 40 MB came
    let grown = a.metric("mimid_store_bytes_on_disk").await - before;
    assert!(grown < 10e6, "{grown} bytes were kept");
}

/// A provider that speaks with this one like any other, and sends as much as it may at once: what waits is bounded in bytes, whoever
/// sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_a_provider_that_is_known_takes_bounded_memory() {
    const CONNECTIONS: usize = 16;
    const ROUNDS: usize = 10;
    let folder = tempfile::tempdir().unwrap();
    let hostile = Hostile::start(EVIL, folder.path());
    let settings = "[rates]\npeer_per_second = 0\n[limits]\nbodies_bytes_max = \"8MiB\"\n\
                    answers_bytes_max = \"65MiB\"\n[store]\ncache = \"8MiB\"\n";
    let domains = ["a.example", "b.example"];
    let providers = Providers::start_with(&domains, 1, settings, &[hostile.peer()]).await;
    let a = &providers.all[0];
    let event = |bytes: usize| {
        let mut message = vec![0, 1, 0, 2];
        mimid::wire::codec::append_vector(&mut message, b"group");
        message.extend([0; 8]);
        message.push(1);
        for part in [&b""[..], b"sender", &vec![0; bytes]] {
            mimid::wire::codec::append_vector(&mut message, part);
        }
        QueueEvent::MlsMessage { message: MlsMessage::new(message).unwrap() }
    };
    let group = |n: usize| GroupId::of(&hostile.domain, [u8::try_from(n).unwrap(); 16]);
    // it is known, and its keys are
    hostile.deliver(a, vec![feed(&group(0), 1, event(10), Vec::new())]).await.unwrap();
    let resident = async || a.metric("process_resident_memory_bytes").await;
    let quiet = resident().await;
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| http(a)).collect();
    let flood = async {
        let mut told = Vec::new();
        for round in 0..ROUNDS {
            let posts = clients.iter().enumerate().map(|(n, client)| {
                let item = feed(&group(n), round as u64 + 1, event(3_000_000), Vec::new());
                let url = format!("https://{}/deliver_message", a.federation);
                let post = client.post(url).header("content-type", "application/octet-stream");
                post.body(hostile.batch(a, vec![item]).bytes()).send()
            });
            for answer in futures_util::future::join_all(posts).await {
                // one that is refused before all of it was sent may not read why
                told.push(answer.map_or(503, |answer| answer.status().as_u16()));
            }
        }
        told
    };
    let mut most: f64 = 0.0;
    tokio::pin!(flood);
    let told = loop {
        tokio::select! {
            told = &mut flood => break told,
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(resident().await),
        }
    };
    assert!(told.iter().all(|status| matches!(status, 200 | 429 | 503)), "{told:?}");
    let taken = told.iter().filter(|status| **status == 200).count();
    assert!(taken > 0, "nothing of it was looked at: {told:?}");
    println!("{taken} of {} looked at, {:.0} MB more", told.len(), (most - quiet) / 1e6);
    assert!(most > 0.0 && most - quiet < 160e6, "{most} bytes, {quiet} before");
}

/// What a provider is sent of a group, counted where it goes by: with HTTP, TLS and signatures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_message_costs_its_payload_and_little_more() {
    let scene = Scene::set().await;
    let (open, _eve) = scene.open_group().await;
    let (count, payload_len) = (100, |item: &DeliveryItem| match item {
        DeliveryItem::Feed { event: QueueEvent::MlsMessage { message }, .. } => {
            message.as_slice().len()
        }
        _ => 0,
    });
    accepted(scene.alice.client.send_text(&open, "the way is there").await);
    wait_for_items(&scene.hostile, |items| items.iter().any(|it| payload_len(it) > 0)).await;
    // else what it has taken may come again, when the way is there: its answer was on it
    eventually("it has answered for all of it", async || {
        let owed = scene.a().metric_with("mimid_peer_outbox_items", "peer=\"evil.example\"");
        owed.await == 0.0
    })
    .await;
    let before = scene.hostile.items().len();
    scene.way.set(Weather::Down);
    for n in 0..count {
        accepted(scene.alice.client.send_text(&open, &format!("message {n}")).await);
    }
    // attempts on the way that is down are not what messages cost, and their number is the machine's speed
    let bytes = scene.way.bytes();
    scene.way.set(Weather::Clear);
    wait_for_items(&scene.hostile, |items| {
        let last: std::collections::BTreeSet<u64> =
            items[before..].iter().filter_map(sequence).collect();
        last.len() >= count
    })
    .await;
    let items = scene.hostile.items().split_off(before);
    assert_eq!(items.len(), count, "each is sent once");
    let payload: usize = items.iter().map(payload_len).sum();
    let bytes = usize::try_from(scene.way.bytes() - bytes).unwrap();
    println!(
        "{count} messages of {} bytes, {} bytes each on the wire",
        payload / count,
        bytes / count
    );
    assert!(bytes <= payload + 300 * count, "{bytes} bytes for {payload} in {count} messages");
}

fn sequence(item: &DeliveryItem) -> Option<u64> {
    match item {
        DeliveryItem::Feed { group_sequence, .. } => Some(group_sequence.0),
        DeliveryItem::Direct { .. } | DeliveryItem::Snapshot { .. } => None,
    }
}

async fn wait_for_items(hostile: &Hostile, so: impl Fn(&[DeliveryItem]) -> bool) {
    wait_for(hostile, |hostile| so(&hostile.items())).await;
}

async fn wait_for(hostile: &Hostile, so: impl Fn(&Hostile) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so(hostile) {
        assert!(Instant::now() < deadline, "{:?}", hostile.items());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn feed(
    group: &GroupId,
    sequence: u64,
    event: QueueEvent,
    roster: Vec<RosterChange>,
) -> DeliveryItem {
    DeliveryItem::Feed {
        group_id: group.clone(),
        group_sequence: Sequence(sequence),
        accepted_at: now(),
        except: None,
        event,
        roster: List::new(roster).unwrap(),
    }
}

fn snapshot(group: &GroupId, next: u64, roster: Vec<RosterChange>) -> DeliveryItem {
    DeliveryItem::Snapshot {
        group_id: group.clone(),
        next_sequence: Sequence(next),
        chain: List::default(),
        roster: List::new(roster).unwrap(),
    }
}

fn add(recipient: u64, token: &QueueToken) -> RosterChange {
    RosterChange::Add {
        recipient: RecipientId(recipient),
        client_queue_information: token.clone(),
        filter: FanoutFilter::All,
        welcome: None,
    }
}

fn welcome(group: &GroupId, message: &QueueEvent) -> QueueEvent {
    let QueueEvent::MlsMessage { message } = message else { panic!("it is a message") };
    QueueEvent::Welcome { hub_domain: group.domain(), welcome: message.clone() }
}

/// Sends a body until it is answered, or is more than any; gives the answer's beginning.
fn endless_request(address: std::net::SocketAddr, root: &std::path::Path) -> String {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = std::net::TcpStream::connect(address).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, stream);
    tls.write_all(
        b"POST /deliver_message HTTP/1.1\r\nhost: a.example\r\n\
          content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .unwrap();
    tls.sock.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend(vec![0; 0x10000]);
    chunk.extend(b"\r\n");
    let mut answer = [0; 64];
    for _ in 0..20 * mimid::wire::federation::MESSAGE_BYTES_MAX / chunk.len() {
        if tls.write_all(&chunk).and_then(|()| tls.flush()).is_err() {
            return String::from_utf8_lossy(&came_before_its_end(&mut tls)).into_owned();
        }
        if let Ok(len @ 1..) = tls.read(&mut answer) {
            return String::from_utf8_lossy(&answer[..len]).into_owned();
        }
    }
    panic!("a body without an end was taken");
}
