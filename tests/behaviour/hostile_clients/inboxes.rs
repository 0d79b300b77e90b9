//! Floods of what is left for a client that is away: whatever waits there costs whoever leaves more nothing, and is bounded.

use std::sync::atomic::AtomicUsize;

use mimid::wire::{
    client::{
        ClientResponse, ConnectionRequestTo, Dequeue, Dequeued, Flag, MintedTokens, QueueTokens,
    },
    codec::{List, Opaque, append_vector},
    decode,
    ds::DsError,
    encode,
    extensions::{KeyPackageClass, QueueToken},
    ids::{Domain, FeedId, KeyPackageRef, Sequence},
    key_packages::{ConnectionRequest, SealedOffer},
    mls::MlsMessage,
    queueing::{FeedAck, QueueingServiceRequest, QueueingServiceResponse},
};
use tls_codec::DeserializeBytes;

use super::{
    device::{Device, Line},
    *,
};

const KIB: usize = 1024;
/// What users of a provider may leave for one of it, and what one more may be.
const SHARE: usize = 4 * KIB * KIB;
const LARGE: usize = 60_000;

fn ask<T: DeserializeBytes>(
    line: &mut Line,
    device: &Device,
    path: &str,
    body: &[u8],
) -> Result<T, DsError> {
    let (_, answer) = line.post(path, &device.message(path, body));
    let answer = decode::<ClientResponse>(&answer).unwrap().outcome.into_result();
    answer.map(|body| decode(body.as_slice()).unwrap())
}

fn token(line: &mut Line, device: &Device, class: KeyPackageClass) -> QueueToken {
    let request = QueueTokens { class, last_resort: Flag::No, count: 1, revoke: List::default() };
    let minted: MintedTokens = ask(line, device, "/v1/queue_tokens", &encode(&request)).unwrap();
    minted.tokens.into_vec().remove(0)
}

/// Leaves so many offers of so many bytes; none where that is too much for the hour, or for now.
fn leave(
    line: &mut Line,
    by: &Device,
    token: &QueueToken,
    (count, bytes): (usize, usize),
) -> Option<QueueingServiceResponse> {
    let offer = |_| {
        let mut content = vec![0; bytes];
        content[..16].copy_from_slice(&mimid::crypto::random::<16>());
        SealedOffer {
            client_queue_information: token.clone(),
            key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
            kem_output: Opaque::new([2; 32]).unwrap(),
            ciphertext: Opaque::new(content).unwrap(),
        }
    };
    let offers: Vec<_> = (0..count).map(offer).collect();
    let recipient_domain = Domain::new("localhost").unwrap();
    let request = ConnectionRequest { offers: List::new(offers).unwrap() };
    let to = ConnectionRequestTo { recipient_domain, request };
    match ask(line, by, "/v1/connection_request", &encode(&to)) {
        Ok(answer) => Some(answer),
        Err(DsError::RateLimited { .. } | DsError::Unavailable { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A single message as a hub hands it over (DS §6.1), at the ops listener; none where it is told to wait.
fn hand_over(
    node: &Node,
    token: &QueueToken,
    number: u8,
    bytes: usize,
) -> Option<QueueingServiceResponse> {
    let group = mimid::wire::ids::GroupId::of(&Domain::new("localhost").unwrap(), [1; 16]);
    let mut message = vec![0, 1, 0, 2];
    append_vector(&mut message, group.as_bytes());
    message.extend(0u64.to_be_bytes());
    message.push(1);
    for part in [&b""[..], b"sender", &vec![number; bytes]] {
        append_vector(&mut message, part);
    }
    let request = QueueingServiceRequest {
        client_queue_information: token.clone(),
        message: MlsMessage::new(message).unwrap(),
    };
    let body = encode(&request);
    let head = format!(
        "POST /v1/deliver_message HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut socket =
        TcpStream::connect(node.endpoints.ops.strip_prefix("http://").unwrap()).unwrap();
    socket.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
    let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
    match status.as_str() {
        "HTTP/1.1 200" => Some(decode(&answer[at..]).unwrap()),
        "HTTP/1.1 503" => None,
        _ => panic!("{}", String::from_utf8_lossy(&answer)),
    }
}

/// How many entries a client gets, and how large they are, when it comes back.
fn read(line: &mut Line, device: &Device) -> (usize, usize) {
    let (mut entries, mut bytes, mut acks) = (0, 0, Vec::new());
    loop {
        let dequeue = Dequeue { acks: List::new(acks).unwrap(), max: 1_000, wait_ms: 0 };
        let page: Dequeued = ask(line, device, "/v1/dequeue", &encode(&dequeue)).unwrap();
        let page = page.entries.into_vec();
        let Some(last) = page.last() else { return (entries, bytes) };
        acks = vec![FeedAck { feed: FeedId(0), sequence: Sequence(last.sequence.0) }];
        entries += page.len();
        bytes += page.iter().map(|entry| encode(&entry.event).len()).sum::<usize>();
    }
}

fn flood_on(engine: &str) {
    let node = memory::node_on(engine);
    let mut line = Line::to(&node);
    let away = line.devices("away", 3);
    let people = line.devices("p", 40);
    let mut token_of = |device: &Device, class| token(&mut line, device, class);
    let small = token_of(&away[0], KeyPackageClass::Connection);
    let large = token_of(&away[1], KeyPackageClass::Connection);
    let single = token_of(&away[2], KeyPackageClass::Group);
    let honest = Honest::start(&node);
    honest.times(10);
    let quiet = node.memory_kib("VmRSS");
    // as much as may be of the largest
    let mut taken = 0;
    for by in &people {
        while let Some(answer) = leave(&mut line, by, &large, (1, LARGE)) {
            match answer {
                QueueingServiceResponse::Ok => taken += 1,
                QueueingServiceResponse::QueueFull => break,
                answer => panic!("{answer:?}"),
            }
        }
    }
    assert!((SHARE / LARGE..SHARE / LARGE + 2).contains(&taken), "{taken} large ones");
    for number in 0..6 {
        let answer = hand_over(&node, &single, number, SHARE - 1_000);
        let fits = if number < 2 {
            QueueingServiceResponse::Ok
        } else {
            QueueingServiceResponse::QueueFull
        };
        assert_eq!(answer, Some(fits), "single message {number}");
    }
    let asked = AtomicUsize::new(0);
    honest.speak_through(&format!("offers for who is away, on {engine}"), || {
        thread::scope(|threads| {
            for by in &people {
                let (node, asked, small, large, single) = (&node, &asked, &small, &large, &single);
                threads.spawn(move || {
                    let mut line = Line::to(node);
                    for round in 0..4 * factor() {
                        for token in [small, large] {
                            leave(&mut line, by, token, (5, 200));
                            asked.fetch_add(1, Ordering::SeqCst);
                        }
                        hand_over(node, single, u8::try_from(round % 256).unwrap(), 1_000_000);
                    }
                });
            }
        });
    });
    let peak = node.memory_kib("VmHWM");
    println!(
        "{engine}: {} requests with 5 offers each, for inboxes that are full: {quiet} KiB before, {peak} KiB at the most",
        asked.load(Ordering::SeqCst)
    );
    assert!(peak < memory::needed(), "{peak} KiB where {} are said to be needed", memory::needed());
    assert!(peak < quiet + 120 * 1024, "{quiet} KiB, then {peak} KiB");
    // what was taken is there, and no more
    let (entries, bytes) = read(&mut line, &away[1]);
    assert_eq!(entries, taken);
    assert!(bytes < SHARE + LARGE + 100 * taken, "{bytes}");
    let (entries, bytes) = read(&mut line, &away[2]);
    assert!(entries == 2 && bytes < 2 * SHARE, "{entries} entries, {bytes} bytes");
    let (entries, _) = read(&mut line, &away[0]);
    assert!((100..=900).contains(&entries), "{entries} small ones");
    let answer = leave(&mut line, &people[39], &large, (1, 200));
    assert!(matches!(answer, Some(QueueingServiceResponse::Ok) | None), "{answer:?}");
}

#[test]
fn flood_of_what_is_left_for_who_is_away_takes_no_memory_for_what_waits() {
    flood_on("sled");
}

#[test]
fn flood_of_what_is_left_for_who_is_away_takes_no_more_on_the_other_engine() {
    flood_on("fjall");
}
