//! Two and more providers that reach each other in memory: real keys, real messages, no network and a clock that stands.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;

use super::*;
use crate::{
    crypto::SigningKey,
    wire::{
        client::ClientResponse,
        codec::{List, Opaque, ShortOpaque},
        ds::{DsContext, DsRequest, DsSenderId, Outcome, ProtocolVersion, WelcomeInfo},
        encode,
        extensions::SignatureScheme,
        federation::S2SMessage,
        ids::{Epoch, GroupId, LeafIndex},
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const MINUTE: u64 = 60_000;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Everything between the providers, and what a test decides of it.
#[derive(Default)]
struct Net {
    nodes: Mutex<HashMap<Domain, Arc<Federation>>>,
    clock: AtomicU64,
    fetched: Mutex<Vec<(Domain, &'static str)>>,
    /// In place of what a provider publishes.
    lists: Mutex<HashMap<Domain, Vec<u8>>>,
    /// In place of executing what comes.
    answer: Mutex<Option<HttpAnswer>>,
    posted: Mutex<Vec<Vec<u8>>>,
    executed: AtomicUsize,
    /// Fetches take a permit of it, where it is there.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

struct Road(Arc<Net>);

impl Transport for Road {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            self.0.fetched.lock().unwrap().push((peer.clone(), path));
            let gate = self.0.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            let forged = self.0.lists.lock().unwrap().get(peer).cloned();
            let node = self.0.nodes.lock().unwrap().get(peer).cloned();
            let body = match (forged, node) {
                (Some(forged), _) => forged,
                (None, Some(node)) if path == "/verification_key" => {
                    encode(&node.verification_keys())
                }
                (None, Some(node)) => encode(&node.signature_keys()),
                (None, None) => return Err(CallError::Unreachable("no such host".to_owned())),
            };
            Ok(HttpAnswer { status: 200, retry_after_ms: None, body })
        })
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            self.0.posted.lock().unwrap().push(body.clone());
            if let Some(answer) = self.0.answer.lock().unwrap().clone() {
                return Ok(answer);
            }
            let node = self.0.nodes.lock().unwrap().get(peer).cloned();
            let node = node.ok_or_else(|| CallError::Unreachable("no such host".to_owned()))?;
            let (status, body) = match node.open(endpoint_of(path), &body).await {
                Ok(opened) => (200, self.0.execute(&node, &opened)),
                Err(error) => (400, encode(&ClientResponse { outcome: Outcome::Err(error) })),
            };
            Ok(HttpAnswer { status, retry_after_ms: None, body })
        })
    }
}

impl Net {
    /// What a listener does: the answer tells which execution it is of.
    fn execute(&self, node: &Federation, opened: &Opened) -> Vec<u8> {
        if let Some(answer) = node.answer_of(opened) {
            return answer;
        }
        let count = self.executed.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = format!("{count}: {}", String::from_utf8_lossy(&opened.body)).into_bytes();
        node.remember(opened, &answer);
        answer
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::SeqCst))
    }

    fn advance(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    fn fetches(&self) -> usize {
        self.fetched.lock().unwrap().len()
    }

    fn last_posted(&self) -> Vec<u8> {
        self.posted.lock().unwrap().last().unwrap().clone()
    }

    /// A provider with one key of its own that everybody can reach.
    fn join(self: &Arc<Self>, name: &str) -> Arc<Federation> {
        let node = Arc::new(Federation::new(self.parts(name)));
        self.nodes.lock().unwrap().insert(domain(name), Arc::clone(&node));
        node
    }

    fn parts(self: &Arc<Self>, name: &str) -> FederationParts {
        let net = Arc::clone(self);
        FederationParts {
            domain: domain(name),
            signing: vec![key(0, u64::MAX)],
            external_senders: vec![key(0, u64::MAX)],
            transport: Arc::new(Road(Arc::clone(self))),
            allow: None,
            deny: Vec::new(),
            limits: FederationLimits::default(),
            metrics: FederationMetrics::register(&prometheus::Registry::new()).unwrap(),
            clock: Arc::new(move || net.now()),
        }
    }
}

fn net() -> Arc<Net> {
    let net = Arc::new(Net::default());
    net.advance(NOW.0);
    net
}

fn domain(name: &str) -> Domain {
    Domain::new(name).unwrap()
}

fn key(not_before: u64, not_after: u64) -> ProviderKey {
    ProviderKey {
        key: SigningKey::generate(SignatureScheme::ED25519).unwrap(),
        not_before: Timestamp(not_before),
        not_after: Timestamp(not_after),
    }
}

fn endpoint_of(path: &str) -> S2SEndpoint {
    [S2SEndpoint::DeliverMessage, S2SEndpoint::GroupKeyPackages, S2SEndpoint::GroupOperation]
        .into_iter()
        .find(|endpoint| endpoint.path() == path)
        .unwrap()
}

const FREE: EventType = EventType::DeliverBatch;
const ONCE: EventType = EventType::GroupKeyPackages;

async fn ask(from: &Federation, to: &str, event: EventType, id: u8) -> Result<String, CallError> {
    let (id, body) = (RequestId([id; 16]), b"body".to_vec());
    let answer = from.request(&domain(to), event, id, body, TIMEOUT).await;
    answer.map(|answer| String::from_utf8(answer).unwrap())
}

/// The refusal that a peer answered with.
fn refusal(outcome: Result<String, CallError>) -> DsError {
    match outcome {
        Err(CallError::Status { error: Some(error), .. }) => error,
        other => panic!("no refusal: {other:?}"),
    }
}

/// A message that `claimed` did not sign.
fn forged(claimed: &str, to: &str, id: u16, now: Timestamp) -> Vec<u8> {
    let mut request_id = [0; 16];
    request_id[..2].copy_from_slice(&id.to_be_bytes());
    let (sender, recipient) = (domain(claimed), domain(to));
    let outgoing = Outgoing {
        sender: &sender,
        recipient: &recipient,
        event: FREE,
        request_id: RequestId(request_id),
        body: b"forged".to_vec(),
    };
    message::seal(outgoing, &key(0, u64::MAX).key, now).unwrap()
}

async fn opened(node: &Federation, bytes: &[u8]) -> &'static str {
    match node.open(S2SEndpoint::DeliverMessage, bytes).await {
        Ok(opened) if opened.is_repeat => "repeat",
        Ok(_) => "ok",
        Err(error) => error.name(),
    }
}

#[tokio::test]
async fn requests_go_both_ways_and_keys_are_fetched_once() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    for id in 0..10 {
        let answer = ask(&a, "b.example", FREE, id).await.unwrap();
        assert_eq!(answer, format!("{}: body", 2 * id + 1));
        ask(&b, "a.example", FREE, id).await.unwrap();
    }
    let fetched = net.fetched.lock().unwrap().clone();
    let path = "/verification_key";
    assert_eq!(fetched, [(domain("a.example"), path), (domain("b.example"), path)]);
    assert_eq!(b.keys_of(&domain("a.example")).await.unwrap(), a.verification_keys());
    assert_eq!(net.fetches(), 2);
    let senders = b.external_senders_of(&domain("a.example")).await.unwrap();
    assert_eq!(senders, a.signature_keys());
    assert_eq!(b.keys_of(b.domain()).await.unwrap(), b.verification_keys());
    assert_eq!(net.fetches(), 3);
    assert_eq!(b.peers().len(), 2);
}

#[tokio::test]
async fn a_message_proves_its_sender_only_to_whom_it_was_sent_and_only_while_it_is_fresh() {
    let net = net();
    let (a, b, c) = (net.join("a.example"), net.join("b.example"), net.join("c.example"));
    ask(&a, "b.example", FREE, 1).await.unwrap();
    let message = net.last_posted();
    assert_eq!(opened(&b, &message).await, "repeat");
    assert_eq!(opened(&c, &message).await, "malformed", "it is for another");
    let elsewhere = b.open(S2SEndpoint::GroupKeyPackages, &message).await.unwrap_err();
    assert_eq!(elsewhere.name(), "malformed");
    let mut bent: S2SMessage = decode(&message).unwrap();
    bent.sender_domain = domain("c.example");
    assert_eq!(opened(&b, &encode(&bent)).await, "unauthenticated");
    net.advance(message::FRESH_MS + 1);
    let stale = b.open(S2SEndpoint::DeliverMessage, &message).await.unwrap_err();
    let DsError::StaleRequest { server_time, .. } = stale else { panic!("{stale:?}") };
    assert_eq!(server_time, net.now());
}

#[tokio::test]
async fn a_flood_of_forged_senders_costs_one_fetch_a_minute() {
    let net = net();
    let b = net.join("b.example");
    net.join("a.example");
    for minute in 0..3 {
        let flood: Vec<Vec<u8>> =
            (0..200).map(|id| forged("a.example", "b.example", id, net.now())).collect();
        for outcome in join_all(flood.iter().map(|message| opened(&b, message))).await {
            assert_eq!(outcome, "unauthenticated");
        }
        assert_eq!(net.fetches(), minute + 1);
        net.advance(MINUTE);
    }
    for minute in 0..3 {
        let flood: Vec<Vec<u8>> =
            (0..200).map(|id| forged("nobody.example", "b.example", id, net.now())).collect();
        for outcome in join_all(flood.iter().map(|message| opened(&b, message))).await {
            assert_eq!(outcome, "unavailable", "its keys cannot be had");
        }
        assert_eq!(net.fetches(), 3 + minute + 1);
        net.advance(MINUTE);
    }
}

/// Fetches of a.example's keys by b.example while forged messages come ten times a second.
async fn fetches_in(net: &Net, b: &Federation, ms: u64) -> usize {
    let before = net.fetches();
    for _ in 0..ms / 100 {
        let message = forged("a.example", "b.example", 1, net.now());
        assert_eq!(opened(b, &message).await, "unavailable");
        net.advance(100);
    }
    net.fetches() - before
}

#[tokio::test]
async fn keys_of_who_is_not_there_are_asked_for_soon_and_then_ever_less_often() {
    let net = net();
    let b = net.join("b.example");
    for wait_s in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        assert_eq!(fetches_in(&net, &b, wait_s * 1000).await, 1, "{wait_s} s");
    }
}

#[tokio::test]
async fn who_is_started_again_is_believed_when_it_was_told_to_come_again() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    net.nodes.lock().unwrap().remove(&domain("a.example"));
    assert_eq!(fetches_in(&net, &b, 6_000).await, 3);
    net.nodes.lock().unwrap().insert(domain("a.example"), Arc::clone(&a));
    let told = refusal(ask(&a, "b.example", FREE, 1).await);
    let DsError::Unavailable { retry_after_ms: hint, .. } = told else { panic!("{told:?}") };
    assert_eq!(hint, 1_000, "at 3 s the third fetch failed, the next is at 7 s");
    net.advance(hint);
    ask(&a, "b.example", FREE, 2).await.unwrap();
    // whoever was there falls: it begins anew
    net.nodes.lock().unwrap().remove(&domain("a.example"));
    net.advance(own_keys::PUBLISHED_FOR_MS + 1);
    for wait_s in [1, 2, 4] {
        assert_eq!(fetches_in(&net, &b, wait_s * 1000).await, 1, "{wait_s} s");
    }
}

#[tokio::test]
async fn who_answers_with_what_cannot_be_used_is_asked_once_a_minute() {
    let net = net();
    let b = net.join("b.example");
    assert_eq!(fetches_in(&net, &b, 3_000).await, 2, "nobody is there");
    net.lists.lock().unwrap().insert(domain("a.example"), b"<html>".to_vec());
    for _ in 0..3 {
        assert_eq!(fetches_in(&net, &b, MINUTE).await, 1);
    }
}

#[tokio::test]
async fn concurrent_messages_of_an_unknown_sender_wait_for_one_fetch() {
    let net = net();
    let (a, _b) = (net.join("a.example"), net.join("b.example"));
    let gate = Arc::new(Semaphore::new(0));
    *net.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let calls = join_all((0..20).map(|id| ask(&a, "b.example", FREE, id)));
    let release = async {
        while net.fetches() == 0 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
    };
    let (answers, ()) = tokio::join!(calls, release);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(net.fetches(), 1);
}

#[tokio::test]
async fn a_requester_that_hangs_up_does_not_break_the_fetch_off() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    let gate = Arc::new(Semaphore::new(0));
    *net.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let hung_up = tokio::spawn({
        let b = Arc::clone(&b);
        let message = forged("a.example", "b.example", 1, net.now());
        async move { opened(&b, &message).await }
    });
    while net.fetches() == 0 {
        tokio::task::yield_now().await;
    }
    hung_up.abort();
    assert!(hung_up.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    ask(&a, "b.example", FREE, 1).await.unwrap();
    assert_eq!(net.fetches(), 1);
}

#[tokio::test]
async fn a_key_that_peers_do_not_know_yet_is_found_by_reading_again() {
    let net = net();
    let (a, _b) = (net.join("a.example"), net.join("b.example"));
    ask(&a, "b.example", FREE, 1).await.unwrap();
    net.advance(1000);
    a.replace_keys(vec![key(0, u64::MAX)]);
    let DsError::RateLimited { retry_after_ms, .. } = refusal(ask(&a, "b.example", FREE, 2).await)
    else {
        panic!("within a minute nobody can tell");
    };
    assert_eq!(retry_after_ms, MINUTE - 1000);
    net.advance(retry_after_ms);
    ask(&a, "b.example", FREE, 2).await.unwrap();
    assert_eq!(net.fetches(), 2);
}

#[tokio::test]
async fn no_message_is_refused_through_an_orderly_rotation() {
    let net = net();
    let first = key(0, u64::MAX);
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    a.replace_keys(vec![first.clone()]);
    ask(&a, "b.example", FREE, 0).await.unwrap();
    let signs_from = net.now().plus_ms(own_keys::PUBLISHED_FOR_MS + 10 * MINUTE);
    let last_until = signs_from.plus_ms(10 * MINUTE);
    let next = key(signs_from.0, u64::MAX);
    let last = ProviderKey { not_after: last_until, ..first.clone() };
    a.replace_keys(vec![last, next.clone()]);
    let mut in_flight = Vec::new();
    let mut signed_by_next = 0;
    // a message every minute; each comes once at once and once four minutes late
    for minute in 0..120_u64 {
        net.advance(MINUTE);
        ask(&a, "b.example", FREE, u8::try_from(minute).unwrap() + 1).await.unwrap();
        let message = net.last_posted();
        let read = message::read(&message, S2SEndpoint::DeliverMessage, b.domain(), net.now());
        let published =
            own_keys::published(a.domain(), std::slice::from_ref(&next), PURPOSE_S2S, net.now());
        signed_by_next += usize::from(read.unwrap().is_signed_by(published.keys.iter()));
        in_flight.push(message);
        if let Some(late) = in_flight.len().checked_sub(5) {
            assert_eq!(opened(&b, &in_flight[late]).await, "repeat", "minute {minute}");
        }
    }
    assert_eq!(signed_by_next, 120 - 69);
    assert_eq!(a.verification_keys().keys.len(), 1, "the last key is listed no more");
}

#[tokio::test]
async fn a_provider_whose_keys_are_over_neither_signs_nor_is_believed() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    a.replace_keys(vec![key(0, NOW.0 + MINUTE)]);
    ask(&a, "b.example", FREE, 1).await.unwrap();
    let good = net.last_posted();
    net.advance(MINUTE + 1);
    assert_eq!(opened(&b, &good).await, "repeat", "it was signed in time");
    let outcome = ask(&a, "b.example", FREE, 2).await;
    assert!(matches!(outcome, Err(CallError::Signing(_))), "{outcome:?}");
    // who still has the key signs on
    let (sender, recipient) = (domain("a.example"), domain("b.example"));
    let own = a.own.read().unwrap().signing[0].key.clone();
    let outgoing = Outgoing {
        sender: &sender,
        recipient: &recipient,
        event: FREE,
        request_id: RequestId([3; 16]),
        body: Vec::new(),
    };
    let late = message::seal(outgoing, &own, net.now()).unwrap();
    assert_eq!(opened(&b, &late).await, "unauthenticated");
}

#[tokio::test]
async fn keys_are_used_as_long_as_their_provider_says_and_read_again_before() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    ask(&a, "b.example", FREE, 1).await.unwrap();
    // the list is good for an hour; the peer goes down in its last quarter
    net.nodes.lock().unwrap().remove(&domain("a.example"));
    let hour = own_keys::PUBLISHED_FOR_MS;
    net.advance(hour * 3 / 4);
    assert!(b.keys_of(&domain("a.example")).await.is_ok());
    assert_eq!(net.fetches(), 1, "not in the last quarter yet");
    net.advance(1);
    assert!(b.keys_of(&domain("a.example")).await.is_ok());
    while b.peers()[0].failure.is_none() {
        tokio::task::yield_now().await;
    }
    assert!(b.keys_of(&domain("a.example")).await.is_ok(), "what is known is good");
    assert_eq!(net.fetches(), 2, "one a minute");
    net.advance(hour / 4);
    let over = b.keys_of(&domain("a.example")).await;
    assert!(matches!(over, Err(CallError::Unreachable(_))), "{over:?}");
    assert_eq!(b.peers()[0].keys, None);
    net.advance(MINUTE);
    net.nodes.lock().unwrap().insert(domain("a.example"), Arc::clone(&a));
    assert!(b.keys_of(&domain("a.example")).await.is_ok());
}

#[tokio::test]
async fn an_answer_that_is_not_this_domains_keys_is_none() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    let good = a.verification_keys();
    let many = |count: usize| {
        let key = good.keys[0].clone();
        List::new(vec![key; count]).unwrap()
    };
    let foreign = VerificationKeyResponse { domain: domain("c.example"), ..good.clone() };
    let version = VerificationKeyResponse { version: ProtocolVersion(2), ..good.clone() };
    let crowd = VerificationKeyResponse { keys: many(17), ..good.clone() };
    let fits = VerificationKeyResponse { keys: many(16), ..good.clone() };
    let set = |bytes: Vec<u8>| net.lists.lock().unwrap().insert(domain("a.example"), bytes);
    for bad in [encode(&foreign), encode(&version), encode(&crowd), b"<html>".to_vec()] {
        set(bad);
        let outcome = b.keys_of(&domain("a.example")).await;
        assert!(matches!(outcome, Err(CallError::BadAnswer(_))), "{outcome:?}");
        net.advance(MINUTE);
    }
    set(encode(&fits));
    assert!(b.keys_of(&domain("a.example")).await.is_ok());
    // whatever it asks for, it is not kept for ever
    let forever = VerificationKeyResponse { cache_until: Timestamp(u64::MAX), ..good.clone() };
    set(encode(&forever));
    net.advance(own_keys::PUBLISHED_FOR_MS + 1);
    b.keys_of(&domain("a.example")).await.unwrap();
    let day = 24 * 60 * MINUTE;
    assert_eq!(b.peers()[0].good_until, Some(net.now().plus_ms(day)));
    let brief = VerificationKeyResponse { cache_until: Timestamp(0), ..good };
    set(encode(&brief));
    net.advance(day + 1);
    b.keys_of(&domain("a.example")).await.unwrap();
    assert_eq!(b.peers()[0].good_until, Some(net.now().plus_ms(MINUTE)));
}

#[tokio::test]
async fn acquaintances_keys_are_fetched_while_invented_names_hold_every_other_fetch() {
    let net = net();
    let a = net.join("a.example");
    let mut parts = net.parts("c.example");
    parts.limits.keys.fetches_max = 2;
    let c = Arc::new(Federation::new(parts));
    net.nodes.lock().unwrap().insert(domain("c.example"), Arc::clone(&c));
    c.acquaint([domain("a.example"), domain("d.example")].into());
    let familiarity = |name| c.familiarity(&domain(name));
    assert_eq!(familiarity("a.example"), Familiarity::Acquainted);
    assert_eq!(familiarity("x.example"), Familiarity::Stranger);
    let gate = Arc::new(Semaphore::new(0));
    *net.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let mut slow = Vec::new();
    for name in ["x.example", "y.example"] {
        let c = Arc::clone(&c);
        slow.push(tokio::spawn(async move { c.keys_of(&domain(name)).await }));
    }
    while net.fetches() < 2 {
        tokio::task::yield_now().await;
    }
    *net.gate.lock().unwrap() = None;
    let refused = c.keys_of(&domain("z.example")).await;
    assert!(matches!(refused, Err(CallError::Unreachable(_))), "{refused:?}");
    assert_eq!(net.fetches(), 2, "no third stranger at once");
    ask(&a, "c.example", FREE, 1).await.unwrap();
    assert_eq!(familiarity("a.example"), Familiarity::Known);
    gate.add_permits(2);
    for asking in slow {
        assert!(asking.await.unwrap().is_err(), "there is no such provider");
    }
}

#[tokio::test]
async fn strangers_do_not_take_the_share_of_those_who_are_known() {
    let net = net();
    let (a, _) = (net.join("a.example"), net.join("b.example"));
    let mut parts = net.parts("c.example");
    parts.limits.keys.fetches_max = 2;
    let c = Arc::new(Federation::new(parts));
    net.nodes.lock().unwrap().insert(domain("c.example"), Arc::clone(&c));
    ask(&a, "c.example", FREE, 1).await.unwrap();
    net.advance(MINUTE);
    let gate = Arc::new(Semaphore::new(0));
    *net.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let mut slow = Vec::new();
    for name in ["x.example", "y.example"] {
        let c = Arc::clone(&c);
        slow.push(tokio::spawn(async move { c.keys_of(&domain(name)).await }));
    }
    while net.fetches() < 3 {
        tokio::task::yield_now().await;
    }
    let refused = c.keys_of(&domain("z.example")).await;
    assert!(matches!(refused, Err(CallError::Unreachable(_))), "{refused:?}");
    assert_eq!(net.fetches(), 3, "no third stranger at once");
    a.replace_keys(vec![key(0, u64::MAX)]);
    let asking = tokio::spawn({
        let a = Arc::clone(&a);
        async move { ask(&a, "c.example", FREE, 2).await }
    });
    while net.fetches() < 4 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(3);
    asking.await.unwrap().unwrap();
    for slow in slow {
        assert!(slow.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn what_is_known_of_others_is_bounded_and_failures_go_first() {
    let net = net();
    let (_a, _b) = (net.join("a.example"), net.join("b.example"));
    let mut parts = net.parts("c.example");
    parts.limits.keys.lists_max = 4;
    let c = Federation::new(parts);
    c.keys_of(&domain("a.example")).await.unwrap();
    c.keys_of(&domain("b.example")).await.unwrap();
    for n in 0..50 {
        let nobody = domain(&format!("n{n}.example"));
        assert!(c.keys_of(&nobody).await.is_err());
        assert!(c.peers().len() <= 4);
    }
    let known = c.peers();
    assert_eq!(known.iter().filter(|peer| peer.keys.is_some()).count(), 2, "{known:?}");

    let bytes = encode(&c.verification_keys()).len();
    let mut parts = net.parts("d.example");
    parts.limits.keys.bytes_max = bytes + bytes / 2;
    let d = Federation::new(parts);
    d.keys_of(&domain("a.example")).await.unwrap();
    d.keys_of(&domain("b.example")).await.unwrap();
    let known: Vec<Domain> = d.peers().into_iter().map(|peer| peer.domain).collect();
    assert_eq!(known, [domain("b.example")], "the one that is used now stays");
}

#[tokio::test]
async fn what_may_not_be_executed_twice_is_answered_from_memory() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    assert_eq!(ask(&a, "b.example", ONCE, 1).await.unwrap(), "1: body");
    assert_eq!(ask(&a, "b.example", ONCE, 1).await.unwrap(), "1: body", "a retry, signed anew");
    assert_eq!(ask(&a, "b.example", ONCE, 2).await.unwrap(), "2: body");
    assert_eq!(ask(&a, "b.example", FREE, 3).await.unwrap(), "3: body");
    assert_eq!(ask(&a, "b.example", FREE, 3).await.unwrap(), "4: body", "harmless");
    let other =
        a.request(&domain("b.example"), ONCE, RequestId([1; 16]), b"other".to_vec(), TIMEOUT).await;
    let refused = refusal(other.map(|_| String::new()));
    assert_eq!(refused.name(), "malformed", "one id, two requests");
    b.sweep();
    assert_eq!(b.metrics.replay_ids.get(), 1);
    assert_eq!(b.metrics.replay_answer_bytes.get(), 14);
    net.advance(2 * message::FRESH_MS + 1);
    b.sweep();
    assert_eq!(b.metrics.replay_ids.get() + b.metrics.replay_answer_bytes.get(), 0);
}

#[tokio::test]
async fn a_repeat_waits_for_the_execution_and_follows_a_failed_one() {
    let net = net();
    let (a, b) = (net.join("a.example"), net.join("b.example"));
    // the first one is lost on its way
    *net.answer.lock().unwrap() =
        Some(HttpAnswer { status: 502, retry_after_ms: None, body: Vec::new() });
    ask(&a, "b.example", ONCE, 1).await.unwrap_err();
    let message = net.last_posted();
    let open = || b.open(S2SEndpoint::GroupKeyPackages, &message);
    let first = open().await.unwrap();
    assert!(!first.is_repeat && b.answer_of(&first).is_none());
    let fail = async {
        tokio::task::yield_now().await;
        drop(first);
    };
    let (second, ()) = tokio::join!(open(), fail);
    let second = second.unwrap();
    assert!(second.is_repeat && b.answer_of(&second).is_none(), "the first one failed");
    let succeed = async {
        tokio::task::yield_now().await;
        b.remember(&second, b"done");
        drop(second);
    };
    let (third, fourth, ()) = tokio::join!(open(), open(), succeed);
    for repeat in [third.unwrap(), fourth.unwrap()] {
        assert_eq!(b.answer_of(&repeat).as_deref(), Some(&b"done"[..]));
    }
}

#[tokio::test]
async fn a_repeat_does_not_wait_for_ever() {
    let net = net();
    let (a, _b) = (net.join("a.example"), net.join("b.example"));
    let mut parts = net.parts("b.example");
    parts.limits.execution_wait = Duration::ZERO;
    let b = Federation::new(parts);
    ask(&a, "b.example", ONCE, 1).await.unwrap();
    let message = net.last_posted();
    let first = b.open(S2SEndpoint::GroupKeyPackages, &message).await.unwrap();
    let second = b.open(S2SEndpoint::GroupKeyPackages, &message).await.unwrap_err();
    assert_eq!(second.name(), "unavailable");
    drop(first);
}

#[tokio::test]
async fn after_a_restart_only_what_is_harmless_is_taken_of_before() {
    let net = net();
    let (a, _b) = (net.join("a.example"), net.join("b.example"));
    ask(&a, "b.example", ONCE, 1).await.unwrap();
    let claim = net.last_posted();
    ask(&a, "b.example", FREE, 2).await.unwrap();
    let free = net.last_posted();
    net.advance(1);
    let b = net.join("b.example");
    let refused = b.open(S2SEndpoint::GroupKeyPackages, &claim).await.unwrap_err();
    assert_eq!(refused.name(), "stale_request");
    assert_eq!(opened(&b, &free).await, "ok");
    assert_eq!(ask(&a, "b.example", ONCE, 1).await.unwrap(), "3: body", "signed anew");
}

#[tokio::test]
async fn lists_decide_with_whom_this_provider_speaks() {
    let net = net();
    let a = net.join("a.example");
    let mut parts = net.parts("b.example");
    parts.allow = Some(vec!["*.example".parse().unwrap()]);
    parts.deny = vec!["a.example".parse().unwrap()];
    let b = Arc::new(Federation::new(parts));
    net.nodes.lock().unwrap().insert(domain("b.example"), Arc::clone(&b));
    assert!(b.admits(&domain("c.example")));
    assert!(!b.admits(&domain("c.test")) && !b.admits(&domain("a.example")));
    assert!(!b.admits(&domain("b.example")), "itself");
    let refused = refusal(ask(&a, "b.example", FREE, 0).await);
    assert_eq!(refused.name(), "not_authorized");
    // an operator changes them while it runs
    b.speak_with(None, vec!["c.example".parse().unwrap()]);
    assert!(b.admits(&domain("a.example")) && b.admits(&domain("c.test")));
    assert!(!b.admits(&domain("c.example")) && !b.admits(&domain("b.example")));
    b.speak_with(Some(vec!["*.example".parse().unwrap()]), vec!["a.example".parse().unwrap()]);
    let refused = refusal(ask(&a, "b.example", FREE, 1).await);
    assert_eq!(refused.name(), "not_authorized");
    assert_eq!(net.fetches(), 0, "not even its keys are asked for");
    let sent = net.posted.lock().unwrap().len();
    let own = ask(&b, "a.example", FREE, 1).await;
    assert_eq!(own, Err(CallError::Refused { domain: domain("a.example") }));
    assert!(b.keys_of(&domain("a.example")).await.is_err());
    assert_eq!((net.posted.lock().unwrap().len(), net.fetches()), (sent, 0));
}

#[tokio::test]
async fn a_ds_response_is_an_answer_even_where_it_is_an_error() {
    let net = net();
    let (a, _b) = (net.join("a.example"), net.join("b.example"));
    let error = DsError::GroupNotFound { detail: Detail::truncated("no such group") };
    let set = |status, body: Vec<u8>| {
        let answer = HttpAnswer { status, retry_after_ms: Some(3000), body };
        *net.answer.lock().unwrap() = Some(answer);
    };
    let response = encode(&DsResponse {
        version: ProtocolVersion::MIMI10,
        outcome: Outcome::Err(error.clone()),
    });
    set(404, response.clone());
    let peer = domain("b.example");
    let call = |event| a.request(&peer, event, RequestId([1; 16]), Vec::new(), TIMEOUT);
    let operation = EventType::DeliveryService("send-message");
    assert_eq!(call(operation).await, Ok(response.clone()));
    let status = |error| Err(CallError::Status { http: 404, retry_after_ms: Some(3000), error });
    assert_eq!(call(FREE).await, status(None), "elsewhere it is none");
    set(404, encode(&ClientResponse { outcome: Outcome::Err(error.clone()) }));
    assert_eq!(call(operation).await, status(Some(error.clone())));
    assert_eq!(call(FREE).await, status(Some(error)));
}

#[tokio::test]
async fn a_body_is_its_events_or_malformed() {
    let group = GroupId::of(&domain("a.example"), [1; 16]);
    let message = DsMessage {
        sender_id: DsSenderId::LeafIndex(LeafIndex(0)),
        request: DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: group.clone(),
            sender: Opaque::new([1]).unwrap(),
            epoch: Epoch(1),
        }),
        signature: ShortOpaque::new([]).unwrap(),
        context: DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: domain("a.example"),
            group_id: group,
            timestamp: NOW,
            request_id: RequestId([1; 16]),
        },
    };
    let opened = |event, body| {
        Opened::unsigned(domain("b.example"), event, RequestId([1; 16]), body).ds_message()
    };
    let own = EventType::of(&message.request);
    assert_eq!(opened(own, encode(&message)), Ok(message.clone()));
    let other = EventType::DeliveryService("send-message");
    assert_eq!(opened(other, encode(&message)).unwrap_err().name(), "malformed");
    assert_eq!(opened(own, b"no".to_vec()).unwrap_err().name(), "malformed");
}
