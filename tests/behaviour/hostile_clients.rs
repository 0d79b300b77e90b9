//! Clients that mean no good, against the built binary on its real store: each is refused or ended by a bound with a name,
//! and the node serves everybody else while it goes on. How long others wait is printed and judged by nobody.
//!
//! `TEST_HOSTILE=30` (a factor) makes the floods larger and longer; ops/README.md, "Hostile clients". With `TEST_BESIDE=1` the others
//! speak at a provider beside the one that is attacked: how long they wait there is what the machine makes of an attack that is
//! none of their provider's, and what the other figure is to be compared with.

mod complaints;
mod device;
mod floods;
mod http1;
mod http2;
mod inboxes;
mod kinds;
mod memory;
mod requests;
mod siege;
mod streams;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Client, Registration, Server,
        core::{Event, Home, SUITES},
        system_clock,
    },
    server::Endpoints,
    wire::ids::{ClientUri, GroupId, UserUri},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::serve::MIMID;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// How much larger than in every run.
fn factor() -> usize {
    std::env::var("TEST_HOSTILE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Whether the honest have a provider of their own.
fn is_beside() -> bool {
    std::env::var_os("TEST_BESIDE").is_some()
}

/// A provider's process with settings of its own; it ends with this value.
struct Node {
    child: Child,
    folder: tempfile::TempDir,
    endpoints: Endpoints,
}

impl Node {
    /// `settings` as variables: ("LIMITS__BACKLOG", "7").
    fn start(settings: &[(&str, &str)]) -> Self {
        Self::configured("", settings)
    }

    /// As [`Self::start`], with what is no variable in its configuration's file.
    fn configured(file: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(MIMID);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .current_dir(folder.path())
            .env_remove("MIMID_CONFIG")
            .env_remove("MIMID_DATA_DIR")
            .env("MIMID_FEDERATION__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        if !file.is_empty() {
            let config = folder.path().join("mimid.toml");
            fs::write(&config, file).unwrap();
            command.arg("--config").arg(config);
        }
        for (name, value) in settings {
            command.env(format!("MIMID_{name}"), value);
        }
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("Stop it") {
            line.clear();
            let read = out.read_line(&mut line).unwrap();
            let log = || fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(read > 0, "it ended: {}", log());
        }
        let endpoints = Endpoints::read(&folder.path().join("mimid-data")).unwrap();
        Self { child, folder, endpoints }
    }

    fn client_address(&self) -> SocketAddr {
        self.endpoints.client.strip_prefix("https://").unwrap().parse().unwrap()
    }

    fn federation_address(&self) -> SocketAddr {
        let address = self.endpoints.federation.as_ref().unwrap();
        address.strip_prefix("https://").unwrap().parse().unwrap()
    }

    fn pem(&self) -> Vec<u8> {
        fs::read(self.endpoints.certificate.as_ref().unwrap()).unwrap()
    }

    fn tls(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        tls_that_trusts(&self.pem(), alpn)
    }

    /// A TLS connection, handshake done.
    fn connect(&self, address: SocketAddr, alpn: &[&[u8]]) -> Tls {
        self.connect_with(address, self.tls(alpn)).unwrap()
    }

    fn connect_with(&self, address: SocketAddr, tls: Arc<ClientConfig>) -> std::io::Result<Tls> {
        connect_with(address, tls)
    }

    /// The answer to bytes, read to the connection's end.
    fn said(&self, address: SocketAddr, request: &[u8]) -> String {
        let mut tls = self.connect(address, &[]);
        // it may end before all of it is sent
        let _ = tls.write_all(request);
        read_to_end(&mut tls)
    }

    fn metrics(&self) -> String {
        let address = self.endpoints.ops.strip_prefix("http://").unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// What a series says; 0 where it is not there yet.
    fn metric(&self, series: &str) -> u64 {
        let text = self.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    fn cuts(&self, listener: &str, reason: &str) -> u64 {
        self.metric(&format!(
            "mimid_http_connections_cut_total{{listener=\"{listener}\",reason=\"{reason}\"}}"
        ))
    }

    /// Waits until it is so.
    fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is(self) {
            assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn memory_kib(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn server(&self) -> Server {
        let certificate = Some(String::from_utf8(self.pem()).unwrap());
        Server { url: self.endpoints.client.clone(), certificate }
    }

    async fn client(&self, user: &str) -> Client {
        let user = UserUri::new(format!("mimi://localhost/u/{user}")).unwrap();
        let registration = Registration {
            client: ClientUri::of(&user, "phone").unwrap(),
            server: self.server(),
            token: Vec::new(),
            authorization: None,
        };
        let home = Home::in_memory().unwrap();
        Client::register(home, registration, system_clock()).await.unwrap()
    }

    /// Two who know each other, with a group of their own.
    async fn group(&self, names: [&str; 2]) -> (Client, Client, GroupId) {
        let (one, other) = (self.client(names[0]).await, self.client(names[1]).await);
        let [a, b] = [&one, &other].map(|client| client.member().client().user());
        one.connect(&b).await.unwrap();
        other.receive(0).await.unwrap();
        other.accept(&a).await.unwrap();
        one.receive(0).await.unwrap();
        let group = one.create_group("group", SUITES[0], None).await.unwrap();
        one.add_users(&group, &[b]).await.unwrap();
        other.receive(0).await.unwrap();
        (one, other, group)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("the node's log ends with:\n{}", &log[log.len().saturating_sub(6000)..]);
        }
    }
}

/// TLS towards a listener with this certificate.
fn tls_that_trusts(pem: &[u8], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(tls)
}

fn connect_with(address: SocketAddr, tls: Arc<ClientConfig>) -> std::io::Result<Tls> {
    let name = ServerName::try_from("localhost").unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut tls = StreamOwned::new(ClientConnection::new(tls, name).unwrap(), socket);
    tls.conn.complete_io(&mut tls.sock)?;
    Ok(tls)
}

/// Everything until the connection ends, however it ends.
fn read_to_end(tls: &mut Tls) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match tls.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => said.extend_from_slice(&buffer[..len]),
            Err(error) => {
                let is_open = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!is_open, "open after {PATIENCE:?}: {}", String::from_utf8_lossy(&said));
                break;
            }
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Two honest clients that speak with each other, each message awaited, on a thread of their own.
struct Honest {
    /// How many messages are a measure.
    least: usize,
    ask: std::sync::mpsc::Sender<Ask>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Ask {
    /// So many messages at the least, and then until it says so.
    least: usize,
    enough: Arc<AtomicBool>,
    took: std::sync::mpsc::Sender<Vec<Duration>>,
}

impl Honest {
    fn start(node: &Node) -> Self {
        Self::paced(node, Duration::ZERO)
    }

    /// As [`Self::start`]; each message is followed by a pause, for a node whose members may say only so much.
    fn paced(node: &Node, pause: Duration) -> Self {
        let (ask, asked) = std::sync::mpsc::channel::<Ask>();
        let runtime = runtime();
        let beside = is_beside().then(|| Node::start(&[]));
        let at = beside.as_ref().unwrap_or(node);
        let (alice, bob, group) = runtime.block_on(at.group(["alice", "bob"]));
        let mut said = 0;
        let thread = thread::spawn(move || {
            let _beside = beside;
            while let Ok(Ask { least, enough, took }) = asked.recv() {
                let mut times = Vec::new();
                while times.len() < least || !enough.load(Ordering::SeqCst) {
                    let text = format!("number {said}");
                    let started = Instant::now();
                    runtime.block_on(async {
                        alice.send_text(&group, &text).await.unwrap();
                        while bob.receive(1000).await.unwrap() == 0 {}
                    });
                    times.push(started.elapsed());
                    thread::sleep(pause);
                    said += 1;
                    let heard = bob.member().events(0, usize::MAX >> 1).unwrap();
                    let texts: Vec<_> = heard
                        .iter()
                        .filter_map(|(_, event)| match event {
                            Event::Message { text, .. } => text.as_deref(),
                            _ => None,
                        })
                        .collect();
                    assert_eq!((texts.len(), *texts.last().unwrap()), (said, text.as_str()));
                }
                took.send(times).unwrap();
            }
        });
        let least = if pause.is_zero() { 30 } else { 10 };
        Self { least, ask, thread: Some(thread) }
    }

    fn begin(
        &self,
        least: usize,
        enough: &Arc<AtomicBool>,
    ) -> std::sync::mpsc::Receiver<Vec<Duration>> {
        let (took, times) = std::sync::mpsc::channel();
        self.ask.send(Ask { least, enough: Arc::clone(enough), took }).unwrap();
        times
    }

    fn times(&self, least: usize) -> Vec<Duration> {
        self.begin(least, &Arc::new(AtomicBool::new(true))).recv().expect("they speak")
    }

    /// They speak before `attack`, all through it, and after; says how long they waited.
    fn speak_through<T>(&self, name: &str, attack: impl FnOnce() -> T) -> T {
        let quiet = self.times(self.least * factor());
        let enough = Arc::new(AtomicBool::new(false));
        let times = self.begin(self.least, &enough);
        let until = Enough(enough);
        let done = attack();
        drop(until);
        let under = times.recv().expect("they speak while it goes on");
        let after = self.times(5);
        let ms = |times: &[Duration], percent: usize| {
            let mut times = times.to_vec();
            times.sort();
            times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0
        };
        println!(
            "{name}: others' p50/p99 in ms{}: quiet {:.1}/{:.1}, attacked {:.1}/{:.1} ({} messages), after {:.1}",
            if is_beside() { " at a provider beside it" } else { "" },
            ms(&quiet, 50),
            ms(&quiet, 99),
            ms(&under, 50),
            ms(&under, 99),
            under.len(),
            ms(&after, 50),
        );
        done
    }
}

/// Ends what goes on until then, also where a test fails.
struct Enough(Arc<AtomicBool>);

impl Drop for Enough {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        let (ask, _) = std::sync::mpsc::channel();
        self.ask = ask;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// How long anything may take that is to happen at all.
const PATIENCE: Duration = Duration::from_secs(60);
const OCTETS: &str = "Content-Type: application/octet-stream\r\n";
