//! Against real TLS servers on loopback, most of them hostile. No test waits for time to pass: what is slow here never ends,
//! and clocks are set.

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use futures_util::future::join_all;
use rcgen::{CertificateParams, IsCa, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    version::{TLS12, TLS13},
};

use super::*;
use crate::wire::ids::Timestamp;

const NOW: u64 = 1_700_000_000_000;
const LONG: Duration = Duration::from_secs(600);

type Tls = StreamOwned<ServerConnection, std::net::TcpStream>;

/// What a request was: which connection it came on, its head, and its body.
#[derive(Debug, Clone)]
struct Asked {
    connection: usize,
    head: String,
    body: Vec<u8>,
}

struct Server {
    address: SocketAddr,
    root: Vec<u8>,
    connections: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Serves HTTP/1.1 with a certificate for `names`; `answer` writes whatever it likes.
fn serve(
    names: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    answer: impl Fn(&Asked, &mut Tls) + Send + Sync + 'static,
) -> Server {
    let (config, root) = tls(names, versions);
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server { address, root, connections: Arc::default(), asked: Arc::default() };
    let (connections, asked) = (Arc::clone(&server.connections), Arc::clone(&server.asked));
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let number = connections.fetch_add(1, Ordering::SeqCst);
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = StreamOwned::new(connection, stream.unwrap());
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            thread::spawn(move || {
                while let Some(one) = read_request(number, &mut tls) {
                    asked.lock().unwrap().push(one.clone());
                    answer(&one, &mut tls);
                }
            });
        }
    });
    server
}

fn tls(names: &[&str], versions: &[&'static SupportedProtocolVersion]) -> (ServerConfig, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    let certificate = params.self_signed(&key).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], der)
        .unwrap();
    (config, certificate.pem().into_bytes())
}

/// None where the client is gone.
fn read_request(connection: usize, tls: &mut Tls) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.map_or(0, |digits| digits.parse().unwrap())];
    tls.read_exact(&mut body).ok()?;
    Some(Asked { connection, head, body })
}

/// A whole answer.
fn say(tls: &mut Tls, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
    // an error says that the client has hung up, as some tests want it to
    let _ = tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(body));
    let _ = tls.flush();
}

fn domain(name: &str) -> Domain {
    Domain::new(name).unwrap()
}

struct World {
    clock: Arc<AtomicU64>,
    options: HttpsOptions,
    names: HashMap<String, Vec<SocketAddr>>,
}

impl World {
    /// One in which loopback is allowed.
    fn new(servers: &[&Server]) -> Self {
        let clock = Arc::new(AtomicU64::new(NOW));
        let told = Arc::clone(&clock);
        let mut options =
            HttpsOptions::new(Arc::new(move || Timestamp(told.load(Ordering::SeqCst))));
        options.allow_private_addresses = true;
        options.connect_timeout = LONG;
        options.discovery_timeout = LONG;
        options.extra_roots = servers.iter().map(|server| server.root.clone()).collect();
        Self { clock, options, names: HashMap::new() }
    }

    /// `b.example` is at `server`, by the operator's word.
    fn with_override(server: &Server, host: &str) -> Self {
        let mut world = Self::new(&[server]);
        let host = format!("{host}:{}", server.address.port()).parse().unwrap();
        world.options.overrides.insert(domain("b.example"), host);
        world
    }

    fn name(mut self, name: &str, addresses: &[SocketAddr]) -> Self {
        self.names.insert(name.to_owned(), addresses.to_vec());
        self
    }

    fn https(self) -> Https {
        let names = self.names;
        let lookup = move |name: String| -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            let found = names.get(&name).cloned();
            let missing = || io::Error::new(io::ErrorKind::NotFound, "no such name");
            Box::pin(async move { found.ok_or_else(missing) })
        };
        Https::with_lookup(self.options, Arc::new(lookup)).unwrap()
    }
}

async fn post(https: &Https, bytes_max: usize) -> Result<HttpAnswer, CallError> {
    let body = b"question".to_vec();
    https.post(&domain("b.example"), "/deliver_message", body, bytes_max, LONG).await
}

fn is_unreachable(outcome: Result<HttpAnswer, CallError>, because: &str) {
    match outcome {
        Err(CallError::Unreachable(why)) => assert!(why.contains(because), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_comes_back_with_its_status_and_the_connection_is_kept() {
    let server = serve(&["localhost"], &[&TLS13], |asked, tls| {
        say(tls, "429 Slow", "retry-after: 3\r\n", &asked.body);
    });
    let https = World::with_override(&server, "localhost")
        .name("localhost", &[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))])
        .https();
    // hyper has a connection to give again a moment after its answer was read: until then a request may open another one
    let mut is_kept = false;
    while !is_kept || server.asked() < 3 {
        let answer = post(&https, 100).await.unwrap();
        assert_eq!(
            answer,
            HttpAnswer { status: 429, retry_after_ms: Some(3000), body: b"question".to_vec() }
        );
        let asked = server.asked.lock().unwrap();
        let used: HashSet<usize> = asked.iter().map(|asked| asked.connection).collect();
        is_kept = used.len() < asked.len();
        assert!(is_kept || asked.len() < 100, "each request has a connection of its own");
    }
    let head = server.asked.lock().unwrap()[0].head.clone();
    assert!(head.starts_with("post /deliver_message http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/octet-stream\r\n"), "{head}");
    assert!(!head.contains("accept-encoding") && !head.contains("referer"), "{head}");
    let heads: Vec<String> =
        server.asked.lock().unwrap().iter().map(|asked| asked.head.clone()).collect();
    let trace = |head: &String| {
        let sent = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap();
        TraceParent::parse(sent).unwrap().trace
    };
    let traces: HashSet<_> = heads.iter().map(trace).collect();
    assert_eq!(traces.len(), heads.len(), "a trace begins with each request");
    let got = https.get(&domain("b.example"), "/signature_key", 100, LONG).await.unwrap();
    assert!(got.body.is_empty());
}

#[tokio::test]
async fn http2_carries_many_requests_on_one_connection() {
    let (mut config, root) = tls(&["localhost"], &[&TLS13]);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connections = Arc::new(AtomicUsize::new(0));
    let (tell, told) = std::sync::mpsc::channel();
    let counted = Arc::clone(&connections);
    thread::spawn(move || {
        actix_rt::System::new().block_on(async move {
            let server = actix_web::HttpServer::new(|| {
                actix_web::App::new().default_service(actix_web::web::to(
                    |request: actix_web::HttpRequest, body: actix_web::web::Bytes| async move {
                        assert_eq!(request.version(), actix_web::http::Version::HTTP_2);
                        body
                    },
                ))
            })
            .workers(1)
            .on_connect(move |_, _| {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .bind_rustls_0_23((Ipv4Addr::LOCALHOST, 0), config)
            .unwrap();
            tell.send(server.addrs()[0]).unwrap();
            server.run().await.unwrap();
        });
    });
    let address = told.recv().unwrap();
    let server = Server { address, root, connections: Arc::default(), asked: Arc::default() };
    let https = World::with_override(&server, "localhost").name("localhost", &[address]).https();
    post(&https, 100).await.unwrap();
    for answer in join_all((0..20).map(|_| post(&https, 100))).await {
        assert_eq!(answer.unwrap().body, b"question");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_bound_whatever_it_declares() {
    let server = serve(&["127.0.0.1"], &[&TLS13], |asked, tls| match asked.head.as_str() {
        head if head.contains("/verification_key") => {
            // an endless body: until the client hangs up
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut written = tls.write_all(head);
            while written.is_ok() {
                written = tls.write_all(b"4\r\nmore\r\n").and_then(|()| tls.flush());
            }
        }
        head if head.contains("/signature_key") => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n";
            let _ = tls.write_all(head).and_then(|()| tls.flush());
        }
        _ => say(tls, "200 OK", "", &[7; 100]),
    });
    let https = World::with_override(&server, "127.0.0.1").https();
    assert_eq!(post(&https, 100).await.unwrap().body, [7; 100]);
    assert_eq!(post(&https, 99).await, Err(CallError::TooLarge));
    for path in ["/verification_key", "/signature_key"] {
        let answer = https.get(&domain("b.example"), path, 100_000, LONG).await;
        assert!(answer.is_err(), "{path}: {answer:?}");
        assert_ne!(answer, Err(CallError::Timeout), "{path}");
    }
}

#[tokio::test]
async fn a_redirect_leads_nowhere_and_a_coding_is_refused() {
    let elsewhere = serve(&["127.0.0.1"], &[&TLS13], |_, tls| say(tls, "200 OK", "", b"secret"));
    let target = format!("location: https://{}/x\r\n", elsewhere.address);
    let server = serve(&["127.0.0.1"], &[&TLS13], move |asked, tls| {
        if asked.head.contains("/deliver_message") {
            say(tls, "307 There", &target, b"");
        } else {
            say(tls, "200 OK", "content-encoding: gzip\r\n", b"packed");
        }
    });
    let https = World::with_override(&server, "127.0.0.1").https();
    assert_eq!(post(&https, 100).await.unwrap().status, 307);
    assert_eq!(elsewhere.connections.load(Ordering::SeqCst), 0);
    let coded = https.get(&domain("b.example"), "/signature_key", 100, LONG).await;
    assert!(matches!(coded, Err(CallError::BadAnswer(_))), "{coded:?}");
}

#[tokio::test]
async fn a_call_ends_in_time_wherever_the_peer_is_slow() {
    // a body that never ends, a head that never comes, a handshake that nobody answers
    let slow_body = serve(&["127.0.0.1"], &[&TLS13], |_, tls| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
        let _ = tls.write_all(head).and_then(|()| tls.flush());
    });
    let silent = serve(&["127.0.0.1"], &[&TLS13], |_, _| {});
    let deaf_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = deaf_listener.local_addr().unwrap();
    let root = silent.root.clone();
    let deaf = Server { address, root, connections: Arc::default(), asked: Arc::default() };
    for server in [&slow_body, &silent, &deaf] {
        let https = World::with_override(server, "127.0.0.1").https();
        let body = b"question".to_vec();
        let brief = Duration::from_millis(50);
        let answer = https.post(&domain("b.example"), "/deliver_message", body, 100, brief).await;
        assert_eq!(answer, Err(CallError::Timeout));
    }
    // the connection alone has its own time
    let mut world = World::with_override(&deaf, "127.0.0.1");
    world.options.connect_timeout = Duration::from_millis(50);
    is_unreachable(post(&world.https(), 100).await, "");
}

#[tokio::test]
async fn only_tls_13_with_a_trusted_certificate_for_the_right_name_will_do() {
    let old = serve(&["127.0.0.1"], &[&TLS12], |_, tls| say(tls, "200 OK", "", b""));
    is_unreachable(post(&World::with_override(&old, "127.0.0.1").https(), 100).await, "");
    assert_eq!(old.asked(), 0);

    let server = serve(&["127.0.0.1"], &[&TLS12, &TLS13], |_, tls| say(tls, "200 OK", "", b""));
    let mut untrusted = World::with_override(&server, "127.0.0.1");
    untrusted.options.extra_roots = vec![old.root.clone()];
    is_unreachable(post(&untrusted.https(), 100).await, "certificate");

    let other = World::with_override(&server, "other.example");
    let other = other.name("other.example", &[server.address]).https();
    is_unreachable(post(&other, 100).await, "certificate");
    assert_eq!(server.asked(), 0);
    assert!(post(&World::with_override(&server, "127.0.0.1").https(), 100).await.is_ok());
}

#[tokio::test]
async fn an_address_that_is_not_global_is_never_connected_to() {
    let server =
        serve(&["127.0.0.1", "b.example"], &[&TLS13], |_, tls| say(tls, "200 OK", "", b""));
    let mut literal = World::with_override(&server, "127.0.0.1");
    literal.options.allow_private_addresses = false;
    is_unreachable(post(&literal.https(), 100).await, "127.0.0.1 is not a global unicast address");

    let mut named = World::with_override(&server, "b.example").name("b.example", &[server.address]);
    named.options.allow_private_addresses = false;
    is_unreachable(post(&named.https(), 100).await, "127.0.0.1 is not a global unicast address");

    let mut found = World::new(&[&server]).name("b.example", &[server.address]);
    found.options.allow_private_addresses = false;
    let outcome = post(&found.https(), 100).await;
    let Err(CallError::Discovery(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("127.0.0.1 is not a global unicast address"), "{why}");

    for literal in ["127.0.0.1", "127.1", "1"] {
        let https = World::new(&[&server]).https();
        let outcome = https.get(&domain(literal), "/signature_key", 100, LONG).await;
        assert!(matches!(outcome, Err(CallError::Discovery(_))), "{literal}: {outcome:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn of_several_addresses_only_the_global_ones_are_given() {
    let all: Vec<SocketAddr> =
        ["10.0.0.1:0", "192.0.1.1:0", "[::1]:0", "[2a00::1]:0"].map(|a| a.parse().unwrap()).into();
    let expected = [all[1], all[3]];
    let lookup = move |_: String| -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let all = all.clone();
        Box::pin(async move { Ok(all) })
    };
    let judging = Judging { lookup: Arc::new(lookup), allow_private_addresses: false };
    let given: Vec<SocketAddr> =
        judging.resolve("b.example".parse().unwrap()).await.unwrap().collect();
    assert_eq!(given, expected);
}

#[tokio::test]
async fn a_domain_says_where_its_service_is_and_for_how_long() {
    let service = serve(&["mimi.b.example"], &[&TLS13], |_, tls| say(tls, "200 OK", "", b"here"));
    let answer = format!("mimi.b.example:{}\n", service.address.port());
    let web = serve(&["b.example"], &[&TLS13], move |_, tls| {
        say(tls, "200 OK", "cache-control: max-age=600\r\n", answer.as_bytes());
    });
    let world = World::new(&[&service, &web])
        .name("b.example", &[web.address])
        .name("mimi.b.example", &[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    let clock = Arc::clone(&world.clock);
    let https = world.https();
    for answer in join_all((0..10).map(|_| post(&https, 100))).await {
        assert_eq!(answer.unwrap().body, b"here");
    }
    assert_eq!(web.asked(), 1);
    let head = web.asked.lock().unwrap()[0].head.clone();
    assert!(head.starts_with("get /.well-known/mimi/ds-domain http/1.1\r\n"), "{head}");
    clock.fetch_add(600_000 - 1, Ordering::SeqCst);
    post(&https, 100).await.unwrap();
    assert_eq!(web.asked(), 1);
    clock.fetch_add(1, Ordering::SeqCst);
    post(&https, 100).await.unwrap();
    assert_eq!(web.asked(), 2);
}

#[tokio::test]
async fn a_failed_discovery_is_an_error_for_a_while_and_a_lost_host_is_looked_for_again() {
    let service = serve(&["mimi.b.example"], &[&TLS13], |_, tls| say(tls, "200 OK", "", b"here"));
    let port = service.address.port();
    // a closed port, then a redirect, then an address, then nothing, then the truth
    let nobody_listens = tokio::net::TcpSocket::new_v4().unwrap();
    nobody_listens.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let closed = nobody_listens.local_addr().unwrap().port();
    let answers = Mutex::new(vec![
        ("200 OK", String::new(), format!("mimi.b.example:{port}")),
        ("200 OK", String::new(), format!("mimi.b.example:{closed}")),
        ("404 None", String::new(), format!("mimi.b.example:{port}")),
        ("200 OK", String::new(), "127.0.0.1".to_owned()),
        ("200 OK", String::new(), "x".repeat(discovery::ANSWER_BYTES_MAX + 1)),
        ("302 There", "location: https://mimi.b.example/\r\n".to_owned(), String::new()),
    ]);
    let web = serve(&["b.example"], &[&TLS13], move |_, tls| {
        let (status, headers, body) = answers.lock().unwrap().pop().unwrap();
        say(tls, status, &headers, body.as_bytes());
    });
    let world = World::new(&[&service, &web])
        .name("b.example", &[web.address])
        .name("mimi.b.example", &[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    let clock = Arc::clone(&world.clock);
    let https = world.https();
    for asked in 1..=4 {
        for _ in 0..2 {
            let outcome = post(&https, 100).await;
            assert!(matches!(outcome, Err(CallError::Discovery(_))), "{outcome:?}");
        }
        assert_eq!(web.asked(), asked, "a failure is remembered");
        clock.fetch_add(discovery::FAILURE_MS, Ordering::SeqCst);
    }
    is_unreachable(post(&https, 100).await, "");
    is_unreachable(post(&https, 100).await, "");
    assert_eq!(web.asked(), 5, "what was said a moment ago is not asked for again");
    clock.fetch_add(discovery::LIFETIME_MIN_MS, Ordering::SeqCst);
    is_unreachable(post(&https, 100).await, "");
    assert_eq!(web.asked(), 5);
    assert_eq!(post(&https, 100).await.unwrap().body, b"here");
    assert_eq!(web.asked(), 6);
}

#[tokio::test]
async fn a_transport_may_be_dropped_by_async_code() {
    let silent = serve(&["127.0.0.1"], &[&TLS13], |_, _| {});
    let https = Arc::new(World::with_override(&silent, "127.0.0.1").https());
    let waiting = tokio::spawn({
        let https = Arc::clone(&https);
        async move { post(&https, 100).await }
    });
    while silent.asked() == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    drop(Arc::try_unwrap(https).ok().expect("nobody else has it"));
}

/// Also by a provider that runs and reads them again.
#[tokio::test]
async fn a_root_that_is_no_certificate_is_refused() {
    for bad in [
        &b""[..],
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let mut options = HttpsOptions::new(Arc::new(|| Timestamp(NOW)));
        options.extra_roots = vec![bad.to_vec()];
        assert!(Https::new(options).is_err());
    }
}
