//! What arrives at peers that are slow, dead, picky or forgetful, and what the hub does when it is killed meanwhile. The
//! groups are rows in the store; real ones are in `tests/behaviour`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use prometheus::Encoder as _;
use tokio::sync::watch;

use super::*;
use crate::{
    account::Registration,
    actors::{
        GroupOptions, Limits, Metrics, NodeParts, PeerState, ProviderKey,
        arbiters::{ArbiterPool, ArbiterThreads},
        clock::{Clock as _, ManualClock, SystemClock},
        hints::locked,
    },
    crypto::{BoxKey, SigningKey},
    federation::{
        FederationLimits, FederationMetrics, FederationParts, HttpAnswer, Transport,
        schedule::{Backoff, CircuitState},
    },
    queue::token::TokenKeys,
    store::{
        Write,
        memory::Disk,
        records::{
            FeedEntry, GoneReason, GroupHead, GroupNotice, GroupStatus, LogRecord, OutboundRoster,
        },
    },
    wire::{
        codec::Opaque,
        ds::{Detail, DsError, FanoutFilter},
        extensions::QueueToken,
        federation::{S2SMessage, S2SPayload},
        ids::Epoch,
        mls::MlsMessage,
        queueing::{
            DeliveryFailure, DeliveryProblem, QueueEvent, QueueingServiceRequest,
            QueueingServiceResponse, RosterChange,
        },
    },
};

#[cfg(test)]
#[path = "peer_group_tests.rs"]
mod groups;

fn domain(name: &str) -> Domain {
    Domain::new(format!("{name}.example")).unwrap()
}

fn group(seed: u8) -> GroupId {
    GroupId::of(&domain("a"), [seed; 16])
}

/// How a peer meets what comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Takes,
    /// It takes it, and the answer never comes.
    Hangs,
    /// It takes it, and the answer is lost.
    LosesAnswers,
    Dead,
    Says(u16, Option<u64>),
    /// It cannot read a batch with this one in it.
    ChokesOn(GroupId, u64),
    /// It does not take this item.
    Refuses(GroupId, u64),
    KnowsNobody,
    /// It takes single messages only.
    NoFeeds,
}

#[derive(Default)]
struct Peer {
    mood: Mood,
    /// Requests that are answered before the mood is what it is.
    patience: u64,
    requests: Vec<(RequestId, Vec<u8>)>,
    expects: HashMap<GroupId, u64>,
    got: HashMap<GroupId, Vec<u64>>,
    /// Everything that it has taken in batches.
    items: Vec<DeliveryItem>,
    /// Single messages, by token.
    singles: Vec<(QueueToken, MlsMessage)>,
    /// Single requests that came.
    singles_asked: usize,
    /// What single messages are answered with first.
    says: VecDeque<QueueingServiceResponse>,
    /// Whose queue takes no single messages.
    full: Option<QueueToken>,
}

/// The network, with the peers at its ends.
struct Net {
    peers: Mutex<HashMap<Domain, Peer>>,
    changed: watch::Sender<u64>,
}

impl Net {
    fn peers(&self) -> MutexGuard<'_, HashMap<Domain, Peer>> {
        locked(&self.peers)
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Peer) -> T) -> T {
        let done = act(self.peers().entry(domain(name)).or_default());
        self.changed.send_modify(|changes| *changes += 1);
        done
    }

    async fn until(&self, name: &str, is: impl Fn(&Peer) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.with_quietly(name, &is) {
            changed.changed().await.unwrap();
        }
    }

    fn with_quietly<T>(&self, name: &str, look: impl FnOnce(&Peer) -> T) -> T {
        look(self.peers().entry(domain(name)).or_default())
    }
}

impl Peer {
    fn meet(&mut self, message: &[u8]) -> Option<Result<HttpAnswer, CallError>> {
        let message: S2SMessage = decode(message).unwrap();
        let payload: S2SPayload = decode(message.event.event_payload.as_slice()).unwrap();
        if message.event.event_type.as_str() == EventType::Deliver.name() {
            return Some(self.meet_single(payload.body.as_slice()));
        }
        self.requests.push((payload.request_id, payload.body.as_slice().to_vec()));
        let patient = self.patience > 0;
        self.patience = self.patience.saturating_sub(1);
        let mood = if patient { Mood::Takes } else { self.mood.clone() };
        let batch: DeliverBatchRequest = decode(payload.body.as_slice()).unwrap();
        let status = |status, retry_after_ms| {
            Some(Ok(HttpAnswer { status, retry_after_ms, body: Vec::new() }))
        };
        match mood {
            Mood::Dead => return Some(Err(CallError::Unreachable("dead".into()))),
            Mood::Says(code, retry_after_ms) => return status(code, retry_after_ms),
            Mood::NoFeeds => return status(404, None),
            Mood::ChokesOn(group, sequence)
                if batch.items.iter().any(|item| place(item) == (group.clone(), sequence)) =>
            {
                return status(400, None);
            }
            Mood::Takes
            | Mood::Hangs
            | Mood::LosesAnswers
            | Mood::ChokesOn(..)
            | Mood::Refuses(..)
            | Mood::KnowsNobody => {}
        }
        self.items.extend(batch.items.iter().cloned());
        let mut failures = Vec::new();
        for (index, item) in batch.items.iter().enumerate() {
            let (group, sequence) = place(item);
            let mut fail = |problem, next| {
                failures.push(DeliveryFailure {
                    item: u32::try_from(index).unwrap(),
                    problem,
                    recipient: RecipientId(7),
                    next_sequence: Sequence(next),
                });
            };
            if mood == Mood::Refuses(group.clone(), sequence) {
                fail(DeliveryProblem::InvalidItem, 0);
                continue;
            }
            if mood == Mood::KnowsNobody {
                fail(DeliveryProblem::InvalidClientQueueInformation, 0);
            }
            let got = self.got.entry(group.clone()).or_default();
            if matches!(item, DeliveryItem::Snapshot { .. }) {
                // opened again it was there before: nothing of it is got twice
                let expects = self.expects.entry(group).or_insert(sequence + 1);
                if *expects == sequence + 1 && got.is_empty() {
                    got.push(sequence);
                }
                *expects = (*expects).max(sequence + 1);
                continue;
            }
            match self.expects.get_mut(&group) {
                None => fail(DeliveryProblem::UnknownFeed, 0),
                Some(expects) if sequence > *expects => fail(DeliveryProblem::Gap, *expects),
                Some(expects) if sequence == *expects => {
                    got.push(sequence);
                    *expects += 1;
                }
                Some(_) => {}
            }
        }
        let body = encode(&DeliverBatchResponse { failures: List::new(failures).unwrap() });
        match mood {
            Mood::Hangs => None,
            Mood::LosesAnswers => Some(Err(CallError::Timeout)),
            Mood::Takes
            | Mood::Dead
            | Mood::Says(..)
            | Mood::ChokesOn(..)
            | Mood::Refuses(..)
            | Mood::KnowsNobody
            | Mood::NoFeeds => Some(Ok(HttpAnswer { status: 200, retry_after_ms: None, body })),
        }
    }
}

impl Peer {
    fn meet_single(&mut self, body: &[u8]) -> Result<HttpAnswer, CallError> {
        self.singles_asked += 1;
        if self.mood == Mood::Dead {
            return Err(CallError::Unreachable("dead".into()));
        }
        if let Mood::Says(status, retry_after_ms) = self.mood {
            return Ok(HttpAnswer { status, retry_after_ms, body: Vec::new() });
        }
        let QueueingServiceRequest { client_queue_information, message } = decode(body).unwrap();
        let response = match &self.full {
            Some(full) if *full == client_queue_information => QueueingServiceResponse::QueueFull,
            _ => self.says.pop_front().unwrap_or(QueueingServiceResponse::Ok),
        };
        if response == QueueingServiceResponse::Ok {
            self.singles.push((client_queue_information, message));
        }
        Ok(HttpAnswer { status: 200, retry_after_ms: None, body: encode(&response) })
    }
}

fn place(item: &DeliveryItem) -> (GroupId, u64) {
    match item {
        DeliveryItem::Feed { group_id, group_sequence, .. } => (group_id.clone(), group_sequence.0),
        DeliveryItem::Snapshot { group_id, next_sequence, .. } => {
            (group_id.clone(), next_sequence.0 - 1)
        }
        DeliveryItem::Direct { .. } => panic!("hubs send no such item"),
    }
}

impl Transport for Net {
    fn get<'a>(
        &'a self,
        _: &'a Domain,
        _: &'static str,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async { Err(CallError::Unreachable("nothing is asked of peers".into())) })
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        _: &'static str,
        body: Vec<u8>,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            let answer = self.peers().entry(peer.clone()).or_default().meet(&body);
            self.changed.send_modify(|changes| *changes += 1);
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

struct World {
    node: Node,
    disk: Disk,
    clock: Arc<ManualClock>,
    net: Arc<Net>,
    limits: Limits,
    arbiters: ArbiterPool,
    _threads: ArbiterThreads,
}

impl World {
    fn new(change: impl FnOnce(&mut PeerLimits)) -> Self {
        let mut limits = Limits::default();
        limits.peers.persist_ms = 1;
        limits.peers.outbox.batch_items_max = 8;
        limits.peers.outbox.retry = Backoff { first_ms: 100, max_ms: 1_000 };
        change(&mut limits.peers);
        let (disk, clock) = (Disk::new(), Arc::new(ManualClock::at(SystemClock.now())));
        let net =
            Arc::new(Net { peers: Mutex::new(HashMap::new()), changed: watch::Sender::new(0) });
        let (arbiters, threads) = ArbiterPool::start(2).unwrap();
        let node = node(&disk, &clock, &net, &limits, &arbiters);
        Self { node, disk, clock, net, limits, arbiters, _threads: threads }
    }

    /// The process ends, whatever it was doing, and another one begins.
    async fn restart(&mut self) {
        self.node = node(&self.disk, &self.clock, &self.net, &self.limits, &self.arbiters);
        self.node.sweep_peers().await.unwrap();
    }

    async fn advance(&self, ms: u64) {
        self.clock.advance_ms(ms);
        self.node.sweep_peers().await.unwrap();
    }

    /// A group accepts a message that peers are owed; the first one opens it for them.
    async fn accept(&self, seed: u8, peers: &[&str]) -> u64 {
        let head = self.node.store.group_head(&group(seed)).await.unwrap();
        let (sequence, revision) =
            head.map_or((1, 0), |head| (head.next_sequence.0, head.revision));
        let now = self.clock.now();
        let mut batch = Batch::new()
            .and(Write::GroupHead(GroupHead {
                group: group(seed),
                status: GroupStatus::Active,
                next_sequence: Sequence(sequence + 1),
                first_sequence: Sequence(1),
                epoch: Epoch(0),
                revision: revision + 1,
                snapshot: Sequence(0),
                previous_snapshot: None,
                created_at: now,
                last_accepted_at: now,
                log_bytes: 1,
                joiner_infos: Vec::new(),
                wake_at: None,
                hub_key: None,
                last: None,
            }))
            .and(Write::Log {
                group: group(seed),
                record: LogRecord {
                    feed: FeedEntry {
                        sequence: Sequence(sequence),
                        accepted_at: now,
                        except: None,
                        origin: None,
                        handshake: false,
                        event: encode(&QueueEvent::GroupDeleted),
                    },
                    change: Vec::new(),
                    follows: None,
                },
            });
        let until = Sequence(sequence);
        for name in peers {
            let (peer, group) = (domain(name), group(seed));
            if sequence == 1 {
                let add = RosterChange::Add {
                    recipient: RecipientId(7),
                    client_queue_information: Opaque::new(vec![7]).unwrap(),
                    filter: FanoutFilter::All,
                    welcome: None,
                };
                let changes =
                    List::<_, { crate::wire::ds::REQUEST_BYTES_MAX }>::new(vec![add]).unwrap();
                let row =
                    OutboundRoster { sequence: until, opens: true, changes: encode(&changes) };
                let (peer, group) = (peer.clone(), group.clone());
                batch.push(Write::OutboundRoster { peer, group, row });
            }
            batch.push(Write::Outbound { peer, group, until });
        }
        self.node.store.write(batch).await.unwrap();
        peers.iter().for_each(|name| self.node.hints.outbound(&domain(name), &group(seed), until));
        sequence
    }

    async fn got(&self, name: &str, seed: u8, until: u64) {
        let whole: Vec<u64> = (1..=until).collect();
        self.net.until(name, |peer| peer.got.get(&group(seed)) == Some(&whole)).await;
    }

    fn state(&self, name: &str) -> Option<PeerState> {
        self.node.peer_states().into_iter().find(|state| state.peer == domain(name))
    }

    async fn until(&self, name: &str, is: impl Fn(&PeerState) -> bool) {
        while !self.state(name).as_ref().is_some_and(&is) {
            tokio::task::yield_now().await;
        }
    }

    /// Until the peer has everything and that is written down.
    async fn settled(&self, name: &str) {
        while !self.node.store.outbound(&domain(name), None, 1).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    fn requests(&self, name: &str) -> usize {
        self.net.with_quietly(name, |peer| peer.requests.len())
    }

    /// Time goes on until the peer has got one more request.
    async fn next_request(&self, name: &str) {
        let before = self.requests(name);
        while self.requests(name) == before {
            self.advance(500).await;
            tokio::task::yield_now().await;
        }
    }
}

fn node(
    disk: &Disk,
    clock: &Arc<ManualClock>,
    net: &Arc<Net>,
    limits: &Limits,
    arbiters: &ArbiterPool,
) -> Node {
    let forever = |seed| ProviderKey {
        key: SigningKey::from_seed([seed; 32]).unwrap(),
        not_before: Timestamp(0),
        not_after: Timestamp(u64::MAX),
    };
    let metrics = Metrics::new().unwrap();
    let its_clock = Arc::clone(clock);
    let federation = Federation::new(FederationParts {
        domain: domain("a"),
        signing: vec![forever(4)],
        external_senders: vec![forever(3)],
        transport: net.clone(),
        allow: None,
        deny: Vec::new(),
        limits: FederationLimits::default(),
        metrics: FederationMetrics::register(&metrics.registry).unwrap(),
        clock: Arc::new(move || its_clock.now()),
    });
    Node::new(NodeParts {
        domain: domain("a"),
        store: disk.open().unwrap(),
        clock: clock.clone(),
        limits: limits.clone(),
        groups: GroupOptions::new(domain("a")),
        registration: Registration::Open,
        token_keys: TokenKeys::new(vec![(1, BoxKey::from_bytes([1; 32]).unwrap())]).unwrap(),
        external_senders: vec![forever(3)],
        metrics,
        arbiters: arbiters.clone(),
        federation: Some(Arc::new(federation)),
    })
}

#[actix_rt::test]
async fn what_groups_accept_reaches_every_peer_in_order_and_is_written_down() {
    let world = World::new(|_| ());
    for seed in [1, 2, 1, 3, 2, 1, 1] {
        world.accept(seed, &["b", "c"]).await;
    }
    for name in ["b", "c"] {
        for (seed, until) in [(1, 4), (2, 2), (3, 1)] {
            world.got(name, seed, until).await;
        }
        world.settled(name).await;
        let replica = world.node.store.replica(&domain(name), &group(1)).await.unwrap().unwrap();
        assert_eq!(replica.acknowledged, Sequence(4));
        let page = crate::store::Page { items_max: 9, bytes_max: 9_999 };
        let rows = world.node.store.outbound_roster(&domain(name), &group(1), Sequence(0), page);
        assert_eq!(rows.await.unwrap(), []);
        world.until(name, |state| state.items == 0 && state.items_delivered >= 7).await;
    }
}

#[actix_rt::test]
async fn a_slow_peer_slows_neither_the_hub_nor_the_others() {
    let world = World::new(|_| ());
    world.net.with("slow", |peer| peer.mood = Mood::Hangs);
    for _ in 0..50 {
        world.accept(1, &["b", "slow"]).await;
    }
    world.got("b", 1, 50).await;
    world.settled("b").await;
    assert_eq!(world.requests("slow"), 1, "a group is in one batch at a time");
    world.until("slow", |state| state.items >= 49).await;
}

#[actix_rt::test]
async fn a_hub_that_is_killed_at_any_request_loses_doubles_and_reorders_nothing() {
    for patience in 0..8 {
        for written in [true, false] {
            let mut world = World::new(|limits| {
                limits.outbox.batch_items_max = 2;
                limits.persist_ms = if written { 1 } else { 1_000_000 };
            });
            world.net.with("b", |peer| (peer.mood, peer.patience) = (Mood::Hangs, patience));
            for seed in [1, 2, 1, 1, 2, 1, 1, 1] {
                world.accept(seed, &["b"]).await;
            }
            // killed while a request is on its way, before its answer
            world.net.until("b", |peer| peer.requests.len() as u64 > patience.min(2)).await;
            world.net.with("b", |peer| peer.mood = Mood::Takes);
            world.restart().await;
            world.accept(2, &["b"]).await;
            world.got("b", 1, 6).await;
            world.got("b", 2, 3).await;
        }
    }
}

#[actix_rt::test]
async fn a_repeat_is_the_same_bytes_under_the_same_id() {
    let world = World::new(|_| ());
    world.net.with("b", |peer| peer.mood = Mood::LosesAnswers);
    world.accept(1, &["b"]).await;
    world.net.until("b", |peer| peer.requests.len() == 1).await;
    world.accept(1, &["b"]).await;
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    world.next_request("b").await;
    let (first, second) =
        world.net.with("b", |peer| (peer.requests[0].clone(), peer.requests[1].clone()));
    assert_eq!(first, second);
    world.got("b", 1, 2).await;
}

#[actix_rt::test]
async fn a_dead_peer_is_left_alone_and_found_again_by_probing() {
    let world = World::new(|_| ());
    world.net.with("b", |peer| peer.mood = Mood::Dead);
    world.accept(1, &["b"]).await;
    for failures in 1..=3 {
        world.until("b", |state| state.failures.get("unreachable") == Some(&failures)).await;
        if failures < 3 {
            world.next_request("b").await;
        }
    }
    world.until("b", |state| state.circuit == CircuitState::Open).await;
    let tried = world.requests("b");
    for seed in 1..=20 {
        world.accept(seed, &["b"]).await;
    }
    world.until("b", |state| state.items == 21).await;
    assert_eq!(world.requests("b"), tried, "nothing is sent while the circuit is open");
    world.next_request("b").await;
    world.until("b", |state| state.failures.get("unreachable") == Some(&4)).await;
    world.until("b", |state| state.circuit == CircuitState::Open).await;
    assert_eq!(world.requests("b"), tried + 1, "one probe");
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    world.next_request("b").await;
    for seed in 2..=20 {
        world.got("b", seed, 1).await;
    }
    world.got("b", 1, 2).await;
    let state = world.state("b").unwrap();
    assert_eq!((state.circuit, state.problem), (CircuitState::Closed, None));
    assert!(state.failures["unreachable"] >= 4);
}

#[actix_rt::test]
async fn a_peer_that_says_when_to_come_back_is_not_asked_before() {
    let world = World::new(|_| ());
    world.net.with("b", |peer| peer.mood = Mood::Says(503, Some(60_000)));
    world.accept(1, &["b"]).await;
    world.until("b", |state| state.next_attempt_at.is_some()).await;
    let next = world.state("b").unwrap().next_attempt_at.unwrap();
    assert!(next >= world.clock.now().plus_ms(60_000));
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    world.advance(59_000).await;
    world.accept(2, &["b"]).await;
    world.until("b", |state| state.items == 2).await;
    assert_eq!(world.requests("b"), 1);
    assert_eq!(world.state("b").unwrap().circuit, CircuitState::Closed);
    world.next_request("b").await;
    world.got("b", 1, 1).await;
    world.got("b", 2, 1).await;
}

#[actix_rt::test]
async fn an_item_that_a_peer_does_not_take_stands_in_no_other_group_s_way() {
    for mood in [Mood::Refuses(group(1), 2), Mood::ChokesOn(group(1), 2)] {
        let mut world = World::new(|_| ());
        world.net.with("b", |peer| peer.mood = mood);
        for _ in 0..3 {
            for seed in 1..=3 {
                world.accept(seed, &["b"]).await;
            }
        }
        let aside = |state: &PeerState| {
            let mut stuck = state.set_aside.iter();
            stuck.any(|it| it.group == group(1) && it.set_aside.item == Sequence(2))
        };
        while !world.state("b").is_some_and(|state| aside(&state)) {
            world.advance(500).await;
            tokio::task::yield_now().await;
        }
        // behind a refusal there is a pause
        while !world.net.with_quietly("b", |peer| {
            [(1, 1), (2, 3), (3, 3)]
                .iter()
                .all(|(seed, len)| peer.got.get(&group(*seed)).is_some_and(|got| got.len() == *len))
        }) {
            world.advance(500).await;
            tokio::task::yield_now().await;
        }
        world.got("b", 2, 3).await;
        world.got("b", 3, 3).await;
        world.got("b", 1, 1).await;
        let replica = || world.node.store.replica(&domain("b"), &group(1));
        while replica().await.unwrap().is_none_or(|replica| replica.set_aside.is_none()) {
            tokio::task::yield_now().await;
        }
        world.net.with("b", |peer| peer.mood = Mood::Takes);
        world.restart().await;
        world.until("b", |state| aside(state) && state.groups_set_aside == 1).await;
        world.accept(2, &["b"]).await;
        world.got("b", 2, 4).await;
        world.got("b", 1, 1).await;
    }
}

/// Another answers at the peer's place, or something in front of it: not what is sent is bad, and it is over in minutes.
#[actix_rt::test]
async fn a_peer_that_says_of_everything_that_it_is_bad_gets_everything_when_it_is_itself_again() {
    let world = World::new(|limits| limits.outbox.retry = PeerLimits::default().outbox.retry);
    world.net.with("b", |peer| peer.mood = Mood::Says(400, None));
    for _ in 0..3 {
        world.accept(1, &["b"]).await;
    }
    let began = world.clock.now();
    while world.clock.now() < began.plus_ms(60_000) {
        world.next_request("b").await;
    }
    assert_eq!(world.state("b").unwrap().groups_set_aside, 0);
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    while world.state("b").unwrap().items > 0 {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    world.got("b", 1, 3).await;
}

#[actix_rt::test]
async fn a_queue_that_a_peer_does_not_know_is_reported_to_its_group_once() {
    let world = World::new(|_| ());
    world.net.with("b", |peer| peer.mood = Mood::KnowsNobody);
    world.accept(1, &["b"]).await;
    world.accept(1, &["b"]).await;
    world.got("b", 1, 2).await;
    world.settled("b").await;
    let notices = loop {
        let notices = world.node.store.group_notices(&group(1), None, 9).await.unwrap();
        if !notices.is_empty() {
            break notices;
        }
        tokio::task::yield_now().await;
    };
    let (recipient, reason) = (RecipientId(7), GoneReason::QueueGone);
    let expected = GroupNotice::RecipientGone { peer: domain("b"), recipient, reason };
    assert_eq!(notices.into_iter().map(|(_, notice)| notice).collect::<Vec<_>>(), [expected]);
}

#[actix_rt::test]
async fn a_peer_out_of_reach_makes_room_for_one_that_waits() {
    let world = World::new(|limits| limits.actors_max = 1);
    world.net.with("b", |peer| peer.mood = Mood::Dead);
    world.accept(1, &["b"]).await;
    world.until("b", |state| state.active).await;
    world.accept(2, &["c"]).await;
    while world.net.with_quietly("c", |peer| peer.got.is_empty()) {
        world.advance(1_000).await;
        tokio::task::yield_now().await;
    }
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    while world.net.with_quietly("b", |peer| peer.got.is_empty()) {
        world.advance(1_000).await;
        tokio::task::yield_now().await;
    }
}

#[actix_rt::test]
async fn an_actor_that_has_nothing_to_do_is_let_go_and_comes_back() {
    let world = World::new(|limits| limits.idle_ms = 1);
    world.accept(1, &["b"]).await;
    world.got("b", 1, 1).await;
    world.until("b", |state| !state.active && state.items == 0).await;
    world.accept(1, &["b"]).await;
    world.got("b", 1, 2).await;
}

#[actix_rt::test]
async fn a_drained_node_has_written_down_what_was_taken() {
    let world = World::new(|limits| limits.persist_ms = 1_000_000);
    world.accept(1, &["b"]).await;
    world.until("b", |state| state.items_delivered == 1).await;
    world.node.drain_peers().await;
    let left = world.node.store.outbound(&domain("b"), None, 9).await.unwrap();
    assert_eq!(left, []);
    world.accept(1, &["b"]).await;
    assert_eq!(world.requests("b"), 1);
}

#[actix_rt::test]
async fn a_store_that_fails_stops_the_actor_and_the_next_process_goes_on() {
    let mut world = World::new(|_| ());
    world.accept(1, &["b"]).await;
    world.got("b", 1, 1).await;
    world.settled("b").await;
    world.net.with("b", |peer| peer.mood = Mood::Dead);
    world.accept(1, &["b"]).await;
    world.disk.faults().fail_reads(true);
    world.net.with("b", |peer| peer.mood = Mood::Takes);
    world.clock.advance_ms(10_000);
    assert!(world.node.sweep_peers().await.is_err());
    world.disk.faults().fail_reads(false);
    world.restart().await;
    world.got("b", 1, 2).await;
}

#[actix_rt::test]
async fn operators_see_peers_in_the_metrics() {
    let world = World::new(|_| ());
    world.net.with("b", |peer| peer.mood = Mood::Dead);
    world.accept(1, &["b"]).await;
    world.until("b", |state| state.problem.is_some()).await;
    world.clock.advance_ms(5_000);
    let mut text = Vec::new();
    let families = world.node.metrics.registry.gather();
    prometheus::TextEncoder::new().encode(&families, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "mimid_peer_outbox_items{peer=\"b.example\"} 1",
        "mimid_peer_oldest_undelivered_seconds{peer=\"b.example\"} 5",
        "mimid_peer_failures_total{kind=\"unreachable\",peer=\"b.example\"} 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[actix_rt::test]
async fn operators_see_all_that_waits_also_what_nobody_looks_after_now() {
    let world = World::new(|limits| {
        (limits.actors_max, limits.groups_max, limits.look_groups_max) = (1, 2, 3);
    });
    world.net.with("b", |peer| peer.mood = Mood::Hangs);
    for seed in 1..=7 {
        world.accept(seed, &["b"]).await;
        world.accept(seed, &["b"]).await;
        world.clock.advance_ms(1_000);
    }
    let began = world.clock.now().0 - 7_000;
    // that there are at least so many is told in between, and may be over before anybody looks (`board`)
    while world.state("b").is_none_or(|state| state.groups < 3 || state.at_least) {
        world.advance(1).await;
    }
    let state = world.state("b").unwrap();
    assert_eq!((state.groups, state.items), (7, 14));
    assert_eq!(state.oldest_at, Some(Timestamp(began)));
    // another one has no place, and waits in the store alone
    world.accept(9, &["c"]).await;
    while world.state("c").is_none_or(|state| state.at_least || state.groups != 1) {
        world.advance(1).await;
    }
    let state = world.state("c").unwrap();
    assert_eq!((state.active, state.items), (false, 1));
    assert!(state.oldest_at.is_some());
}

#[test]
fn failures_are_of_the_peer_of_its_load_or_of_the_request() {
    let status = |http| CallError::Status { http, retry_after_ms: None, error: None };
    let later = |error: &CallError| match trouble_of(error) {
        Trouble::Later(failure) => Some(failure),
        Trouble::NotFound | Trouble::TooLarge | Trouble::Refused { .. } => None,
    };
    assert_eq!(later(&CallError::Timeout), Some(Failure::Transport));
    assert_eq!(later(&CallError::BadAnswer(String::new())), Some(Failure::Transport));
    assert_eq!(later(&status(502)), Some(Failure::Transport));
    assert_eq!(later(&status(401)), Some(Failure::Refused));
    assert_eq!(later(&status(429)), Some(Failure::Busy { retry_after_ms: None }));
    let detail = Detail::truncated("");
    let error = Some(DsError::Unavailable { detail, retry_after_ms: 7 });
    let said = CallError::Status { http: 503, retry_after_ms: Some(9_000), error };
    assert_eq!(later(&said), Some(Failure::Busy { retry_after_ms: Some(7) }));
    let error = Some(DsError::Malformed { detail: Detail::truncated("") });
    let said = CallError::Status { http: 400, retry_after_ms: None, error };
    assert!(matches!(trouble_of(&said), Trouble::Refused { for_good: true }));
    assert!(matches!(trouble_of(&status(400)), Trouble::Refused { for_good: false }), "a proxy's");
    assert!(matches!(trouble_of(&status(500)), Trouble::Refused { for_good: false }));
    assert!(matches!(trouble_of(&status(404)), Trouble::NotFound));
    assert!(matches!(trouble_of(&status(413)), Trouble::TooLarge));
}
