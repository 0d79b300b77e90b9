//! What a provider gets done with more asked of it than it can do, with and without admission by measured waits
//! (`limits.delay_max`). `cargo bench --bench provider -- overload`
//!
//! Two processes of the built binary on loopback, one of each kind, in turns, each on one processor and the generator on another, where
//! `taskset` is there. Clients are real; what they send is signed right before each run, so that the generator only writes and reads. The capacity is found by closed loops; then
//! requests come by a timetable, whatever the answers: a part of it, all, and more. Goodput counts what was accepted within
//! [`DEADLINE`] of the time that the timetable had for it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::web::Bytes;
use h2::client::SendRequest;
use mimid::{
    client::{
        Client, Registration,
        core::{Home, SUITES},
        system_clock,
    },
    crypto,
    wire::{
        client::{ClientMessage, ClientMessageTbs},
        codec::{Opaque, Text, encode},
        ds::{DsMessage, ProtocolVersion},
        ids::{ClientUri, UserUri},
    },
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};

use crate::{is_asked_for, is_test, providers::Provider, writing};

/// An answer after this is worth nothing to a client.
const DEADLINE: Duration = Duration::from_secs(5);
/// Groups, each with one client that writes.
const WRITERS: usize = 64;
const CONNECTIONS: usize = 32;
/// Requests at a time in a closed loop.
const AT_ONCE: usize = 128;
const LOADS: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];
const ENDPOINT: &str = "/v1/group_operation";

const SETTINGS: &str = "[rates]\naddress_per_second = 0\nmember_per_second = 0\ngroup_per_second = 0\n\
                        [log]\nlevel = \"error\"\n[store]\nengine = \"sled\"\n";

struct Writer {
    client: Client,
    /// Its message to its group that the others are made of.
    first: DsMessage,
}

struct Side {
    name: &'static str,
    pid: u32,
    provider: Provider,
    writers: Vec<Writer>,
    connections: RefCell<Vec<SendRequest<Bytes>>>,
}

#[derive(Default)]
struct Tally {
    /// How long each took that was accepted, from when it was to be sent.
    accepted: Vec<Duration>,
    refused: Vec<Duration>,
    failed: usize,
    /// The longest that the operator's listener took to answer.
    livez: Duration,
    /// How far the generator was behind its timetable at the most: that much of the times above is its own.
    late: Duration,
    /// What the server took of its processor meanwhile.
    cpu: Duration,
    /// From the first to the last request, and to the last answer.
    sent_in: Duration,
    took: Duration,
}

pub fn curves() {
    if !is_asked_for("overload") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, run());
}

async fn run() {
    let (seconds, writers) = if is_test() { (0.3, 4) } else { (4.0, WRITERS) };
    pin(std::process::id(), "1");
    let folder = tempfile::tempdir().unwrap();
    let mut sides = Vec::new();
    for (name, domain, delay_max) in
        [("without", "a.example", "never"), ("with", "b.example", "50ms")]
    {
        let settings = format!("[limits]\ndelay_max = \"{delay_max}\"\n{SETTINGS}");
        sides.push(
            Side::start(name, Provider::new(domain, folder.path(), &settings), writers).await,
        );
    }
    let mut capacity: f64 = 0.0;
    for side in &sides {
        let count = if is_test() { 50 } else { 20_000 };
        let bodies = side.signed(count).await;
        let (tally, took) = side.closed(bodies, Duration::from_secs_f64(seconds)).await;
        let rate = tally.accepted.len() as f64 / took.as_secs_f64();
        println!("{:8} closed loop of {AT_ONCE}: {rate:.0}/s; {}", side.name, tally.latencies());
        capacity = capacity.max(rate);
    }
    let mut goodputs = Vec::new();
    for times in LOADS {
        for side in &sides {
            let rate = capacity * times;
            let bodies = side.signed((rate * seconds) as usize).await;
            let count = bodies.len() as f64;
            let tally = side.open(bodies, rate).await;
            let good = tally.accepted.iter().filter(|took| **took <= DEADLINE).count();
            // a generator that cannot keep to its timetable asks for less
            let goodput = good as f64 / tally.took.as_secs_f64();
            let rate = count / tally.sent_in.as_secs_f64();
            println!(
                "{:8} {times:3.1} x capacity: {rate:6.0}/s asked, {goodput:6.0}/s accepted in time, {}, {} refused (p50 {:.0?}), {} failed, /livez within {:.0?}, sent up to {:.0?} late, {:.2?} of CPU",
                side.name,
                tally.latencies(),
                tally.refused.len(),
                middle(&tally.refused),
                tally.failed,
                tally.livez,
                tally.late,
                tally.cpu,
            );
            goodputs.push((times, side.name, goodput));
        }
    }
    let most = goodputs.iter().map(|(_, _, goodput)| *goodput).fold(capacity, f64::max);
    println!("of the most that was seen ({most:.0}/s):");
    for (times, name, goodput) in goodputs {
        println!("{name:8} {times:3.1} x capacity: {:3.0} %", 100.0 * goodput / most);
    }
}

impl Side {
    async fn start(name: &'static str, provider: Provider, count: usize) -> Self {
        provider.configure(&[]);
        provider.start().await;
        let mut writers = Vec::new();
        for n in 0..count {
            let user = UserUri::of(&provider.domain, &format!("user{n}")).unwrap();
            let registration = Registration {
                client: ClientUri::of(&user, "bench").unwrap(),
                server: provider.server(),
                token: Vec::new(),
                authorization: None,
            };
            let home = Home::in_memory().unwrap();
            let client = Client::register(home, registration, system_clock()).await.unwrap();
            let group = client.create_group("load", SUITES[0], None).await.unwrap();
            let first = writing::first(&client, &group);
            writers.push(Writer { client, first });
        }
        let endpoints = std::fs::read_to_string(provider.data().join("endpoints.json")).unwrap();
        let pid = endpoints.split("\"pid\": ").nth(1).unwrap();
        let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
        let pid = pid.parse().unwrap();
        pin(pid, "0");
        Self { name, pid, provider, writers, connections: RefCell::default() }
    }

    fn connection(&self, n: usize) -> SendRequest<Bytes> {
        self.connections.borrow()[n % CONNECTIONS].clone()
    }

    /// `count` requests, each writer in turn. What they are answered is known beforehand, so that the next can be made.
    /// Connections are new: signing takes longer than they may be idle.
    async fn signed(&self, count: usize) -> Vec<Bytes> {
        let began = Instant::now();
        let bodies = (0..count).map(|n| self.writers[n % self.writers.len()].sign()).collect();
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(connect(&self.provider).await);
        }
        self.connections.replace(connections);
        if !is_test() {
            eprintln!("({count} requests signed in {:?})", began.elapsed());
        }
        bodies
    }

    async fn closed(&self, bodies: Vec<Bytes>, time: Duration) -> (Tally, Duration) {
        let tally = Rc::new(RefCell::new(Tally::default()));
        let bodies = Rc::new(RefCell::new(bodies));
        let began = Instant::now();
        let loops: Vec<_> = (0..AT_ONCE)
            .map(|n| {
                let (tally, bodies) = (Rc::clone(&tally), Rc::clone(&bodies));
                let connection = self.connection(n);
                tokio::task::spawn_local(async move {
                    while began.elapsed() < time {
                        let Some(body) = bodies.borrow_mut().pop() else { return };
                        let sent = Instant::now();
                        let status = post(connection.clone(), body).await;
                        tally.borrow_mut().count(status, sent.elapsed());
                    }
                })
            })
            .collect();
        for one in loops {
            one.await.unwrap();
        }
        let took = began.elapsed();
        (tally.take(), took)
    }

    /// Sends by a timetable of `rate` in a second, whatever is answered.
    async fn open(&self, bodies: Vec<Bytes>, rate: f64) -> Tally {
        let tally = Rc::new(RefCell::new(Tally::default()));
        let (ops, watch) = (self.provider.ops, Rc::clone(&tally));
        let operator = tokio::task::spawn_local(async move {
            loop {
                let asked = Instant::now();
                livez(ops).await;
                let longest = watch.borrow().livez.max(asked.elapsed());
                watch.borrow_mut().livez = longest;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let (began, cpu) = (Instant::now(), cpu_of(self.pid));
        let mut sent = Vec::with_capacity(bodies.len());
        for (n, body) in bodies.into_iter().enumerate() {
            let due = began + Duration::from_secs_f64(n as f64 / rate);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            let connection = self.connection(n);
            let tally = Rc::clone(&tally);
            let late = tally.borrow().late.max(due.elapsed());
            tally.borrow_mut().late = late;
            sent.push(tokio::task::spawn_local(async move {
                let status = post(connection, body).await;
                tally.borrow_mut().count(status, due.elapsed());
            }));
        }
        tally.borrow_mut().sent_in = began.elapsed();
        for one in sent {
            let _ = tokio::time::timeout(Duration::from_secs(40), one).await;
        }
        operator.abort();
        tally.borrow_mut().took = began.elapsed();
        tally.borrow_mut().cpu = cpu_of(self.pid).saturating_sub(cpu);
        tally.take()
    }
}

impl Writer {
    fn sign(&self) -> Bytes {
        // before the client is held
        let message = writing::again(&self.client, &self.first);
        let (member, now) = (self.client.member(), system_clock()());
        let tbs = ClientMessageTbs {
            version: ProtocolVersion::MIMI10,
            client: member.client().clone(),
            endpoint: Text::new(ENDPOINT).unwrap(),
            timestamp: now,
            nonce: crypto::random(),
            body: Opaque::new(encode(&message)).unwrap(),
        };
        let key = &member.identity().client_key;
        let signature = key.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
        let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = tbs;
        encode(&ClientMessage { version, client, endpoint, timestamp, nonce, body, signature })
            .into()
    }
}

impl Tally {
    fn count(&mut self, status: Option<u16>, took: Duration) {
        match status {
            Some(200) => self.accepted.push(took),
            Some(429 | 503) => self.refused.push(took),
            _ => self.failed += 1,
        }
    }

    fn latencies(&self) -> String {
        let mut sorted = self.accepted.clone();
        sorted.sort();
        let at = |part: f64| {
            sorted.get(((sorted.len() as f64 * part) as usize).min(sorted.len().max(1) - 1))
        };
        format!(
            "accepted p50 {:.0?} p99 {:.0?}",
            at(0.5).copied().unwrap_or_default(),
            at(0.99).copied().unwrap_or_default()
        )
    }
}

fn middle(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Has a process, all of its threads, run on one processor. Without it they share; the figures say less then.
fn pin(pid: u32, processor: &str) {
    let pid = pid.to_string();
    let pinned =
        std::process::Command::new("taskset").args(["-a", "-c", "-p", processor, &pid]).output();
    if !pinned.is_ok_and(|it| it.status.success()) {
        eprintln!("process {pid} is not bound to a processor");
    }
}

/// What a process has taken of processors, by the kernel's clock of a hundred ticks in a second.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the name in brackets can hold anything
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(12).take(2).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

async fn livez(ops: std::net::SocketAddr) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(ops).await.unwrap();
    let ask = format!("GET /livez HTTP/1.1\r\nhost: {ops}\r\nconnection: close\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// HTTP's status of the answer; none where there is no whole answer.
async fn post(connection: SendRequest<Bytes>, body: Bytes) -> Option<u16> {
    let mut connection = connection.ready().await.ok()?;
    let request = http::Request::post(format!("https://localhost{ENDPOINT}"))
        .header("content-type", "application/octet-stream")
        .header("content-length", body.len())
        .body(())
        .unwrap();
    let (answer, mut stream) = connection.send_request(request, false).ok()?;
    stream.send_data(body, true).ok()?;
    let answer = answer.await.ok()?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    while let Some(part) = body.data().await {
        let part = part.ok()?;
        body.flow_control().release_capacity(part.len()).ok()?;
    }
    Some(status)
}

async fn connect(provider: &Provider) -> SendRequest<Bytes> {
    let server = provider.server();
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(server.certificate.unwrap().as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = server.url.trim_start_matches("https://").to_owned();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    sender
}
