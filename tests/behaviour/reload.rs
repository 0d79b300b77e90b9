//! SIGHUP: a running provider reads its configuration again and takes all that it can of it, or nothing.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mimid::{
    server::Endpoints,
    wire::{
        codec::{Opaque, Text},
        ds::ProtocolVersion,
        encode,
        federation::{Event, EventType, S2SMessage, S2SPayload},
        ids::{Domain, RequestId},
    },
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::CertificateDer,
};

use crate::{providers::PATIENCE, serve::MIMID};

/// `mimid serve` with a file that tests change.
struct Node {
    child: Child,
    folder: tempfile::TempDir,
    endpoints: Endpoints,
    certificate: CertificateDer<'static>,
}

impl Node {
    fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = write_certificate(folder.path());
        write_config(folder.path(), settings);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(MIMID)
            .args(["serve", "--config", "mimid.toml"])
            .current_dir(folder.path())
            .env_remove("MIMID_CONFIG")
            .env_remove("MIMID_DATA_DIR")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let path = folder.path().join("data");
        let deadline = Instant::now() + PATIENCE;
        let log = folder.path().join("log");
        while !fs::read_to_string(&log).unwrap().contains("Stop it") {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        let endpoints = Endpoints::read(&path).unwrap();
        Self { child, folder, endpoints, certificate }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// SIGHUP, and returns when the log says `text` once more; where that is [`DONE`], of each listener.
    fn reload(&self, text: &str) {
        let is_two = text == DONE && self.endpoints.federation.is_some();
        let after = self.count(text) + if is_two { 2 } else { 1 };
        let sent = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        self.until(text, || self.count(text) >= after);
    }

    /// The same with another file.
    fn reload_with(&self, settings: &str, text: &str) {
        write_config(self.folder.path(), settings);
        self.reload(text);
    }

    fn metric(&self, name: &str) -> f64 {
        let address = self.endpoints.ops.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// What is said of a reload comes in several lines, and is counted between them.
    fn until(&self, what: &str, so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            assert!(Instant::now() < deadline, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn connect(&self) -> Connection {
        Connection::to(&self.endpoints.client, &self.certificate).expect("it has this certificate")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DONE: &str = "the certificate is the same as before";
const REPLACED: &str = "the certificate was replaced";
const REFUSED: &str = "everything is as it was";

fn write_config(folder: &Path, settings: &str) {
    let text = format!(
        "data_dir = \"data\"\n[client]\nlisten = \"127.0.0.1:0\"\ncertificate = \"chain.pem\"\nkey = \"key.pem\"\n\
         [ops]\nlisten = \"127.0.0.1:0\"\n{settings}"
    );
    fs::write(folder.join("mimid.toml"), text).unwrap();
}

fn write_certificate(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key: PathBuf = folder.join("key.pem");
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.join("chain.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// One connection, HTTP/1.1, kept open.
struct Connection(StreamOwned<ClientConnection, TcpStream>);

impl Connection {
    /// None where the other side has another certificate.
    fn to(url: &str, certificate: &CertificateDer<'static>) -> Option<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(url.trim_start_matches("https://")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).ok()?;
        }
        Some(Self(stream))
    }

    /// The status of the answer to a body of so many bytes that mean nothing.
    fn post(&mut self, bytes: usize) -> u16 {
        self.send("/v1/group_operation", &vec![0xff; bytes])
    }

    fn send(&mut self, path: &str, body: &[u8]) -> u16 {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes()).unwrap();
        self.0.write_all(body).unwrap();
        self.0.flush().unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        let text = String::from_utf8(text).unwrap().to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        self.0.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

#[test]
fn limits_that_are_read_again_hold_for_the_next_request_of_a_connection_that_was_open_before() {
    let node = Node::start("");
    let mut connection = node.connect();
    assert_eq!(connection.post(20_000), 400, "it means nothing");
    node.reload_with("[limits]\nrequest_bytes_max = \"16KiB\"\n", DONE);
    node.until("it is told", || node.log().contains("the configuration was read again"));
    assert_eq!(connection.post(20_000), 413);
    let mut connection = node.connect();
    assert_eq!(connection.post(10_000), 400);

    let rates =
        "[limits]\nloopback_is_proxy = false\n[rates]\naddress_per_second = 1\naddress_burst = 2\n";
    node.reload_with(rates, DONE);
    // who is refused before its body is read loses the connection
    assert!((0..50).any(|_| connection.post(10) == 429));
    // a rate that is gone is so at once, and what was another setting is its default again
    node.reload_with("", DONE);
    let mut connection = node.connect();
    let statuses: Vec<u16> = (0..5).map(|_| connection.post(20_000)).collect();
    assert_eq!(statuses, [400; 5]);
    assert_eq!(node.metric("mimid_config_last_reload_successful"), 1.0);
}

/// A message of a provider that there is not is refused for its sender alone, or looked into.
#[test]
fn with_whom_a_provider_speaks_is_for_the_next_message_as_the_lists_say() {
    let listens = "[federation]\nlisten = \"127.0.0.1:0\"\noverrides = { \"b.invalid\" = \"127.0.0.1:1\" }\nallow_private_addresses = true\n";
    let node = Node::start(listens);
    let payload = S2SPayload {
        timestamp: crate::support::synth::system_now(),
        request_id: RequestId([7; 16]),
        body: Opaque::new([]).unwrap(),
    };
    let message = encode(&S2SMessage {
        version: ProtocolVersion::MIMI10,
        sender_domain: Domain::new("b.invalid").unwrap(),
        recipient_domain: Domain::new("localhost").unwrap(),
        event: Event {
            event_type: Text::new(EventType::DeliverBatch.name()).unwrap(),
            event_payload: Opaque::new(encode(&payload)).unwrap(),
        },
        signature: Opaque::new([1; 64]).unwrap(),
    });
    let address = node.endpoints.federation.clone().unwrap();
    let answer = || {
        let mut peer = Connection::to(&address, &node.certificate).unwrap();
        peer.send("/deliver_message", &message)
    };
    assert_ne!(answer(), 403, "it is looked for its keys");
    node.reload_with(&format!("{listens}deny = [\"*.invalid\"]\n"), DONE);
    assert_eq!(answer(), 403);
    node.reload_with(&format!("{listens}allow = [\"c.invalid\"]\n"), DONE);
    assert_eq!(answer(), 403);
    node.reload_with(&format!("{listens}allow = [\"b.invalid\"]\n"), DONE);
    assert_ne!(answer(), 403);
    assert_eq!(node.metric("mimid_config_waiting_for_restart"), 0.0);
}

#[test]
fn a_file_or_a_certificate_with_a_mistake_changes_nothing_at_all() {
    let node = Node::start("");
    let mut connection = node.connect();
    let started = node.metric("mimid_config_last_reload_success_timestamp_seconds");
    assert!(started > 1.6e9, "{started}");
    // the certificate would be good, the first limit, too
    let other = write_certificate(node.folder.path());
    for (settings, place) in [
        ("[limits]\nrequest_bytes_max = \"16KiB\"\nwaiting_max = 0\n", "mimid.toml:10"),
        ("[limits]\nrequest_bytes_max = \"16KiB\"\n[log]\nlevel = \"loud\"\n", "mimid.toml:11"),
        ("[limits]\nrequest_bytes_max = \"16KiB\"\nwaiting = 5\n", "did you mean"),
        ("[limits\n", "not TOML"),
    ] {
        node.reload_with(settings, REFUSED);
        let log = node.log();
        let said = log.lines().filter(|line| line.contains(REFUSED)).count();
        assert!(said > 0 && log.contains(place), "{place}: {log}");
        assert_eq!(node.metric("mimid_config_last_reload_successful"), 0.0, "{settings}");
        assert_eq!(connection.post(20_000), 400, "{settings}");
        assert!(Connection::to(&node.endpoints.client, &other).is_none(), "{settings}");
        assert!(Connection::to(&node.endpoints.client, &node.certificate).is_some());
    }
    // the file is good, and the certificate is none
    let chain = node.folder.path().join("chain.pem");
    let good = fs::read(&chain).unwrap();
    fs::write(&chain, "nothing of the kind").unwrap();
    node.reload_with("[limits]\nrequest_bytes_max = \"16KiB\"\n", REFUSED);
    assert_eq!(connection.post(20_000), 400);
    assert_eq!(node.metric("mimid_config_last_reload_success_timestamp_seconds"), started);
    fs::write(&chain, good).unwrap();
    node.reload(REPLACED);
    node.until("it is shown", || node.metric("mimid_config_last_reload_successful") == 1.0);
    assert_eq!(connection.post(20_000), 413);
    assert!(Connection::to(&node.endpoints.client, &other).is_some());
    assert!(Connection::to(&node.endpoints.client, &node.certificate).is_none());
}

#[test]
fn the_log_says_more_when_it_is_told_to_and_which_settings_wait_for_a_restart() {
    let node = Node::start("[log]\nlevel = \"info\"\nformat = \"json\"\n");
    let mut connection = node.connect();
    let requests = || node.count("\"message\":\"request\"");
    assert_eq!((connection.post(10), requests()), (400, 0));
    node.reload_with("[log]\nlevel = \"debug\"\nformat = \"json\"\n", DONE);
    assert_eq!(connection.post(10), 400);
    node.until("the request is in the log", || requests() == 1);
    node.reload_with("[log]\nlevel = \"info\"\nformat = \"json\"\n", DONE);
    assert_eq!((connection.post(10), requests()), (400, 1));

    assert_eq!(node.metric("mimid_config_waiting_for_restart"), 0.0);
    let waits = "wait for a restart";
    node.reload_with("[log]\nformat = \"human\"\n[limits]\nworkers = 3\n", waits);
    let line = node.log().lines().rfind(|line| line.contains(waits)).unwrap().to_owned();
    assert!(line.contains("\"limits.workers, log.format\""), "{line}");
    assert_eq!(node.metric("mimid_config_waiting_for_restart"), 2.0);
    node.reload_with("[log]\nformat = \"json\"\n", DONE);
    node.until("nothing waits", || node.metric("mimid_config_waiting_for_restart") == 0.0);
}

/// A SIGHUP and not the look that is taken every minute: none has been taken before the first minute is over.
#[test]
fn keys_that_were_made_while_it_runs_are_taken_at_a_sighup() {
    // whether it had not looked by itself before it was told
    let tells = |node: &Node| {
        for purpose in ["s2s", "external-sender"] {
            let made = Command::new(MIMID)
                .args(["keys", "rotate", "--purpose", purpose, "--data-dir", "data"])
                .current_dir(node.folder.path())
                .env_remove("MIMID_CONFIG")
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let texts = ["the s2s keys were read again", "the hub's keys were read again"];
        if texts.map(|text| node.count(text)) != [0, 0] {
            return false;
        }
        node.reload(DONE);
        node.until("both are read again", || texts.iter().all(|text| node.count(text) > 0));
        assert_eq!(texts.map(|text| node.count(text)), [1, 1]);
        true
    };
    // on a machine that stands still for a minute this shows nothing: again, then
    for _ in 0..3 {
        let began = Instant::now();
        let node = Node::start("[federation]\nlisten = \"127.0.0.1:0\"\n");
        if tells(&node) && began.elapsed() < Duration::from_secs(55) {
            return;
        }
    }
    panic!("each of three times it took as long as what happens without a SIGHUP");
}
