//! A node with small bounds under everything at once: its memory stays below what its settings say, and does not grow on.

use std::sync::Mutex;

use mimid::{
    client::core::Operation,
    crypto,
    wire::{
        client::{ClientResponse, OpenStream},
        codec::{List, Opaque, Text},
        decode,
        ds::ProtocolVersion,
        encode,
        federation::{Event as S2SEvent, EventType, S2SMessage, S2SPayload},
        ids::{Domain, KeyPackageRef, RequestId},
        key_packages::SealedOffer,
    },
};

use super::{
    device::{Device, Line, now},
    streams::Socket,
    *,
};
use crate::{hostile::Hostile, providers::Peer};

const MIB: u64 = 1024;
const CACHE: u64 = 8 * MIB;
const CONNECTIONS: u64 = 300;
const BODIES: u64 = 8 * MIB;
const ANSWERS: u64 = 65 * MIB;
const GROUPS: u64 = 64;
const QUEUES: u64 = 300;
const STREAMS: u64 = 100;
const WINDOW: u64 = 64;
const NONCES: u64 = 20_000;
/// A provider that may speak with the node.
const KNOWN: &str = "known.example";
/// How many messages of either sort come from strangers in a round.
const STRANGERS: usize = 300;
/// How soon a node may read a provider's keys again: it does so at most once a minute, or where they are over.
const KEYS_ANEW: Duration = Duration::from_secs(45);
/// Rounds of the short version.
const ROUNDS: usize = 6;
/// What everything at once may take beside what a node takes that is asked nothing: a good part of what is said to be needed shows
/// only where all bounds are reached at once.
const TAKEN: u64 = 160 * MIB;
/// What each further round may leave in memory of what it stores: 2 MB of messages and 80 groups.
const LEFT_OF_A_ROUND: u64 = MIB;

/// What ops/README.md says that a node needs at the most, in KiB, for groups of a few members.
pub(super) const fn needed() -> u64 {
    64 * MIB
        + 4 * CACHE
        + 2 * CONNECTIONS * 128
        + 2 * 2 * BODIES
        + 2 * ANSWERS
        + 2 * GROUPS * 256
        + QUEUES * 32
        + 2 * STREAMS * WINDOW
        + NONCES * 128 / 1024
}

pub(super) fn node_on(engine: &str) -> Node {
    node_with(engine, "")
}

/// As [`node_on`], with what is no variable in its configuration's file.
fn node_with(engine: &str, file: &str) -> Node {
    let kib = |kib: u64| format!("{kib}KiB");
    let settings = [
        ("STORE__ENGINE", engine.to_owned()),
        ("STORE__CACHE", kib(CACHE)),
        ("LIMITS__CONNECTIONS_MAX", CONNECTIONS.to_string()),
        ("FEDERATION__CONNECTIONS_MAX", CONNECTIONS.to_string()),
        ("LIMITS__BODIES_BYTES_MAX", kib(BODIES)),
        ("LIMITS__ANSWERS_BYTES_MAX", kib(ANSWERS)),
        ("LIMITS__WAITING_MAX", STREAMS.to_string()),
        ("LIMITS__REQUESTS_MAX", "64".to_owned()),
        ("LIMITS__NONCES_MAX", NONCES.to_string()),
        ("LIMITS__BODY_TIMEOUT", "2s".to_owned()),
        ("LIMITS__READ_TIMEOUT", "2s".to_owned()),
        ("GROUPS__ACTIVE_MAX", GROUPS.to_string()),
        ("QUEUES__ACTIVE_MAX", QUEUES.to_string()),
        ("QUEUES__WINDOW_MAX", kib(WINDOW)),
        ("RATES__ADDRESS_PER_SECOND", "0".to_owned()),
        ("RATES__MEMBER_PER_SECOND", "0".to_owned()),
        ("RATES__GROUP_PER_SECOND", "0".to_owned()),
        // whom strangers say that they are is looked up nowhere
        ("FEDERATION__ALLOW", format!("peer.example,{KNOWN}")),
    ];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Node::configured(file, &settings)
}

/// Bodies as large as may be, whole and half, at both listeners.
fn large_bodies(node: &Node) {
    thread::scope(|threads| {
        for n in 0..40 {
            threads.spawn(move || {
                let (address, path) = if n % 4 == 0 {
                    (node.federation_address(), "/deliver_message")
                } else {
                    (node.client_address(), "/v1/key_packages")
                };
                let Ok(mut tls) = node.connect_with(address, node.tls(&[])) else { return };
                let body = vec![7; 4 << 20];
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{OCTETS}Content-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = tls.write_all(head.as_bytes());
                let sent = if n % 2 == 0 { &body[..] } else { &body[..body.len() / 2] };
                // it may be refused in the middle
                let _ = tls.write_all(sent);
                read_to_end(&mut tls);
            });
        }
    });
}

/// Bodies as large as may be of elements that are as small as may be, which are much larger in memory: offers to clients here and
/// elsewhere.
fn small_elements(node: &Node, devices: &[Device]) {
    let offer = SealedOffer {
        client_queue_information: Opaque::new([1]).unwrap(),
        key_package_ref: KeyPackageRef(Opaque::new([1]).unwrap()),
        kem_output: Opaque::new([]).unwrap(),
        ciphertext: Opaque::new([]).unwrap(),
    };
    let offers: List<SealedOffer, { 4 << 20 }> = List::new(vec![offer; 600_000]).unwrap();
    let offers = encode(&offers);
    thread::scope(|threads| {
        for (device, to) in devices.iter().zip(["localhost", "peer.example"].into_iter().cycle()) {
            let body = [encode(&Domain::new(to).unwrap()), offers.clone()].concat();
            threads.spawn(move || {
                let (status, _) = Line::to(node).post(
                    "/v1/connection_request",
                    &device.message("/v1/connection_request", &body),
                );
                assert!([400, 429, 503].contains(&status), "{status}");
            });
        }
    });
}

/// Messages of providers that this one does not speak with: each is as it should be but for its signature, and refused before
/// a key is looked for. Then as many of one that it does speak with, which another key has signed.
fn strangers(node: &Node, known: &Domain, round: usize) {
    let mut line = Line::at(node, node.federation_address());
    let event = EventType::DeliverBatch;
    let mut post = |sender_domain: Domain| {
        let payload = S2SPayload {
            timestamp: now(),
            request_id: RequestId(crypto::random()),
            body: Opaque::new(vec![1; 2000]).unwrap(),
        };
        let message = S2SMessage {
            version: ProtocolVersion::MIMI10,
            sender_domain,
            recipient_domain: Domain::new("localhost").unwrap(),
            event: S2SEvent {
                event_type: Text::new(event.name()).unwrap(),
                event_payload: Opaque::new(encode(&payload)).unwrap(),
            },
            signature: Opaque::new([1; 64]).unwrap(),
        };
        let (status, answer) = line.post(event.endpoint().path(), &encode(&message));
        let answer: ClientResponse = decode(&answer).unwrap();
        (status, answer.outcome.into_result().unwrap_err())
    };
    for n in 0..STRANGERS {
        let (status, error) = post(Domain::new(format!("x{round}-{n}.invalid")).unwrap());
        assert_eq!((status, error.name()), (403, "not_authorized"), "{error}");
    }
    let (began, mut judged) = (Instant::now(), 0);
    for _ in 0..STRANGERS {
        let (status, error) = post(known.clone());
        // its keys are read again for one in a minute at the most, or cannot be had in time
        match (status, error.name()) {
            (401, "unauthenticated") => judged += 1,
            (429, "rate_limited") | (503, "unavailable") => {}
            said => panic!("{said:?}: {error}"),
        }
    }
    let times = 2 + began.elapsed().as_secs() / KEYS_ANEW.as_secs();
    assert!(judged <= times, "{judged} were judged, {times} may be");
}

#[test]
fn memory_stays_below_what_the_settings_say_and_does_not_grow_on() {
    floods_on("sled");
}

#[test]
fn memory_stays_below_what_the_settings_say_on_the_other_engine() {
    floods_on("fjall");
}

fn floods_on(engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let known = Hostile::start(KNOWN, folder.path());
    let Peer { domain, address, root } = known.peer();
    let peers = format!(
        "[federation]\nallow_private_addresses = true\nroots = [{root:?}]\n\
         [federation.overrides]\n\"{domain}\" = \"{address}\"\n"
    );
    let node = node_with(engine, &peers);
    let runtime = runtime();
    let (alice, bob, group) = runtime.block_on(node.group(["alice", "bob"]));
    let quiet = node.memory_kib("VmRSS");
    let rounds = ROUNDS * factor();
    let most = Mutex::new(vec![0; rounds]);
    let now_in = std::sync::atomic::AtomicUsize::new(0);
    let enough = Arc::new(AtomicBool::new(false));
    let oldest = Mutex::new(None);
    thread::scope(|threads| {
        let _until = Enough(Arc::clone(&enough));
        threads.spawn(|| {
            while !enough.load(Ordering::SeqCst) {
                let rss = node.memory_kib("VmRSS");
                let mut most = most.lock().unwrap();
                let round = now_in.load(Ordering::SeqCst);
                most[round] = u64::max(most[round], rss);
                drop(most);
                thread::sleep(Duration::from_millis(20));
            }
        });
        // streams of clients that never read, one of them of a group's member
        let devices = Line::to(&node).devices("deaf", 60);
        let small = Line::to(&node).devices("small", 8);
        let deaf: Vec<Socket> = devices.iter().map(|device| Socket::of(&node, device)).collect();
        let member = bob.member().identity().clone();
        let member = Device { client: member.client, key: member.client_key };
        for round in 0..rounds {
            now_in.store(round, Ordering::SeqCst);
            let mut unread = Socket::open(&node);
            let first = member.message("/v1/stream", &encode(&OpenStream { window: u32::MAX }));
            unread.first(&first);
            thread::scope(|flood| {
                flood.spawn(|| large_bodies(&node));
                flood.spawn(|| small_elements(&node, &small));
                flood.spawn(|| strangers(&node, &known.domain, round));
                flood.spawn(|| {
                    // connections that only are there
                    let held: Vec<_> = (0..100)
                        .filter_map(|_| TcpStream::connect(node.client_address()).ok())
                        .collect();
                    thread::sleep(Duration::from_millis(500));
                    drop(held);
                });
                runtime.block_on(async {
                    for _ in 0..20 {
                        alice.send_text(&group, &"x".repeat(100_000)).await.unwrap();
                        for _ in 0..4 {
                            let made = alice.create_group("one of many", SUITES[0], None).await;
                            oldest.lock().unwrap().get_or_insert(made.unwrap());
                        }
                    }
                });
            });
            drop(unread);
        }
        drop(deaf);
    });
    let most = most.into_inner().unwrap();
    let groups = node.metric("mimid_group_actors");
    let peak = node.memory_kib("VmHWM");
    println!(
        "{engine}: memory in KiB: quiet {quiet}, the most of each round {most:?}, ever {peak}; {} said to be needed; {groups} groups in memory",
        needed()
    );
    assert!(peak < needed(), "{peak} KiB where {} are said to be needed", needed());
    let stored = (rounds - ROUNDS) as u64 * LEFT_OF_A_ROUND;
    assert!(peak < quiet + TAKEN + stored, "{quiet} KiB, then {peak} KiB");
    assert!(groups <= 2 * GROUPS, "{groups} groups in memory");
    let (first, second) = most.split_at(rounds / 2);
    let (first, second) = (*first.iter().max().unwrap(), *second.iter().max().unwrap());
    assert!(second < first * 5 / 4 + 16 * MIB, "it grows: {first} KiB, then {second} KiB");
    // what was asked for is there: the member that did not read reads
    runtime.block_on(async { while bob.receive(0).await.unwrap() > 0 {} });
    let heard = bob.member().events(0, usize::MAX >> 1).unwrap();
    let heard = heard.iter().filter(|(_, event)| matches!(event, Event::Message { .. })).count();
    assert_eq!(heard, 20 * rounds);
    // and a group that had to leave the memory is as it was
    let operation = Operation::UpdateClient { rotate_key: false };
    let oldest = oldest.into_inner().unwrap().expect("one was made");
    runtime.block_on(alice.operate(&oldest, operation)).unwrap();
}
