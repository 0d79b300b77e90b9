//! The listeners from outside, over real sockets and TLS: what a stranger can and cannot do to them.

mod endless;
mod federation;
mod signed;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use mimid::{
    actors::{Clock, clock::SystemClock},
    server::{self, Config, Endpoints, Running, StartError, config::Engine},
    wire::{
        client::ClientResponse,
        decode,
        ds::{DsError, DsResponse, Outcome, ProtocolVersion},
        ids::Domain,
    },
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio_tungstenite::{
    Connector,
    tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
};

use crate::providers::{PATIENCE, eventually_in_sync};

/// A provider on loopback with a folder of its own, stopped when the test ends.
struct Provider {
    running: Option<Running>,
    folder: tempfile::TempDir,
}

impl Provider {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_at(Arc::new(SystemClock), change)
    }

    fn start_at(clock: Arc<dyn Clock>, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config_in(folder.path());
        change(&mut config);
        Self { running: Some(server::start_at(config, clock).unwrap()), folder }
    }

    fn endpoints(&self) -> &Endpoints {
        self.running.as_ref().unwrap().endpoints()
    }

    fn client_address(&self) -> SocketAddr {
        self.endpoints().client.strip_prefix("https://").unwrap().parse().unwrap()
    }

    fn tls(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let pem = fs::read(self.endpoints().certificate.as_ref().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    fn federation_address(&self) -> SocketAddr {
        let address = self.endpoints().federation.as_ref().unwrap();
        address.strip_prefix("https://").unwrap().parse().unwrap()
    }

    /// A TLS connection that speaks whatever bytes it is given.
    fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_to(self.client_address())
    }

    fn connect_to(&self, address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        let tls = Arc::new(self.tls(&[&rustls::version::TLS13]));
        let socket = TcpStream::connect(address).unwrap();
        StreamOwned::new(ClientConnection::new(tls, name).unwrap(), socket)
    }

    fn raw(&self, request: &[u8]) -> Answer {
        self.raw_to(self.client_address(), request)
    }

    fn raw_to(&self, address: SocketAddr, request: &[u8]) -> Answer {
        let mut stream = self.connect_to(address);
        stream.write_all(request).unwrap();
        Answer::read(&mut stream)
    }

    fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.raw(&request("POST", path, headers, body))
    }

    fn ops(&self, path: &str) -> (u16, String) {
        let address = self.endpoints().ops.strip_prefix("http://").unwrap().to_owned();
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let answer = Answer::read(&mut socket);
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    fn stop(mut self) -> tempfile::TempDir {
        self.running.take().unwrap().stop().unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let stopped = running.stop();
            if !std::thread::panicking() {
                stopped.unwrap();
            }
        }
    }
}

fn config_in(folder: &Path) -> Config {
    let mut config = Config { data_dir: folder.join("data"), ..Config::default() };
    config.client.listen.set_port(0);
    config.ops.listen.set_port(0);
    config.store.engine = Engine::Memory;
    config
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// Reads one answer; every one has a Content-Length.
    fn read(stream: &mut impl Read) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        Self { status, head, body }
    }

    fn has_header(&self, line: &str) -> bool {
        self.head.lines().any(|one| one == line)
    }

    fn client_error(&self) -> DsError {
        assert!(self.has_header("content-type: application/octet-stream"), "{}", self.head);
        match decode::<ClientResponse>(&self.body).unwrap().outcome {
            Outcome::Err(error) => error,
            Outcome::Ok(_) => panic!("an ok"),
        }
    }
}

fn until_metrics_say(provider: &Provider, line: &str) {
    eventually_in_sync(&format!("the metrics say {line}"), || {
        provider.ops("/metrics").1.lines().any(|one| one == line)
    });
}

const OCTETS: &str = "Content-Type: application/octet-stream\r\n";

#[test]
fn tls_1_2_is_refused() {
    let provider = Provider::start();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = Arc::new(provider.tls(&[&rustls::version::TLS12]));
    let mut socket = TcpStream::connect(provider.client_address()).unwrap();
    let mut connection = ClientConnection::new(tls, name).unwrap();
    let error = connection.complete_io(&mut socket).unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[test]
fn http_2_is_spoken() {
    let provider = Provider::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tls = provider.tls(&[&rustls::version::TLS13]);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        let url = format!("{}/v1/dequeue", provider.endpoints().client);
        let answer = client
            .post(url)
            .header("content-type", "application/octet-stream")
            .body(vec![1, 2, 3])
            .send()
            .await
            .unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert_eq!(answer.status().as_u16(), 400);
    });
}

#[test]
fn every_refusal_carries_a_client_response() {
    let provider = Provider::start();
    let cases = [
        (provider.post("/v1/nothing", OCTETS, b""), 404, "no such endpoint"),
        (provider.post("/v1/complaint", OCTETS, b""), 400, "not a valid ClientMessage"),
        (provider.post("/v1/stream", OCTETS, b""), 405, "GET"),
        (provider.post("/v1/dequeue", "", b"x"), 415, "Content-Type"),
        (provider.post("/v1/dequeue", "Content-Type: text/plain\r\n", b"x"), 415, "Content-Type"),
        (
            provider.post("/v1/dequeue", &format!("{OCTETS}Content-Encoding: gzip\r\n"), b"x"),
            415,
            "Content-Encoding",
        ),
        (provider.post("/v1/dequeue", OCTETS, b""), 400, "ClientMessage"),
        (provider.post("/v1/dequeue", OCTETS, &[0, 1, 2, 3]), 400, "ClientMessage"),
        (provider.post("/v1/migration_request", OCTETS, b""), 400, "ClientMessage"),
    ];
    for (answer, status, hint) in cases {
        let error = answer.client_error();
        assert_eq!((answer.status, error.name()), (status, "malformed"), "{error}");
        assert!(error.detail().contains(hint), "{error}");
    }
    let wrong_method =
        provider.raw(b"GET /v1/dequeue HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(wrong_method.status, 405);
    assert!(wrong_method.has_header("allow: post"), "{}", wrong_method.head);
    assert_eq!(wrong_method.client_error().name(), "malformed");
}

#[test]
fn another_version_is_told_which_ones_are_spoken() {
    let provider = Provider::start();
    let answer = provider.post("/v1/dequeue", OCTETS, &[0, 2, 0xff, 0xff]);
    assert_eq!(answer.status, 400);
    let DsError::UnsupportedVersion { versions, .. } = answer.client_error() else {
        panic!("another error")
    };
    assert_eq!(versions.to_vec(), [ProtocolVersion::MIMI10]);
}

#[test]
fn delivery_service_endpoints_refuse_in_ds_responses() {
    let provider = Provider::start();
    for path in
        ["/v1/group_operation", "/v1/welcome_information", "/v1/external_commit_information"]
    {
        let answer = provider.post(path, OCTETS, b"\x00\x01garbage");
        assert_eq!(answer.status, 400, "{path}");
        let response: DsResponse = decode(&answer.body).unwrap();
        assert!(matches!(response.outcome, Outcome::Err(DsError::Malformed { .. })), "{path}");
    }
}

#[test]
fn a_body_that_is_declared_too_large_is_refused_before_it_is_sent() {
    let provider = Provider::start();
    for (path, limit) in [("/v1/provider_keys", 16 * 1024), ("/v1/key_packages", 4224 * 1024)] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: 9999999999\r\n\r\n"
        );
        let answer = provider.raw(head.as_bytes());
        assert_eq!(answer.status, 413);
        let DsError::TooLarge { limit: told, .. } = answer.client_error() else {
            panic!("another error")
        };
        assert_eq!(told, limit);
    }
}

#[test]
fn a_body_that_grows_too_large_is_refused_and_a_configured_limit_holds_everywhere() {
    let provider = Provider::start_with(|config| {
        config.limits.request_bytes_max = server::config::Bytes(16 * 1024);
    });
    let mut request = format!(
        "POST /v1/key_packages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..5 {
        request.extend_from_slice(b"1000\r\n");
        request.extend_from_slice(&[0; 0x1000]);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let answer = provider.raw(&request);
    assert_eq!(answer.status, 413);
    assert_eq!(answer.client_error().name(), "too_large");
}

#[test]
fn a_body_that_does_not_come_times_out() {
    let provider = Provider::start_with(|config| {
        config.limits.body_timeout = Duration::from_millis(50);
    });
    let answer = provider.raw(
        format!(
            "POST /v1/dequeue HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: 10\r\n\r\nslow"
        )
        .as_bytes(),
    );
    assert_eq!(answer.status, 408);
    assert_eq!(answer.client_error().name(), "malformed");
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let provider = Provider::start_with(|config| {
        config.limits.header_timeout = Duration::from_secs(1);
    });
    let mut stream = provider.connect();
    // where the machine is slow it has ended by then: the TLS handshake may take no longer
    let _ = stream.write_all(b"POST /v1/dequeue HT");
    let mut rest = Vec::new();
    // a TLS goodbye or none: what matters is that it ends
    let _ = stream.read_to_end(&mut rest);
    let text = String::from_utf8_lossy(&rest);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");

    let mut silent = TcpStream::connect(provider.client_address()).unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(rest.is_empty(), "who does not even begin TLS is hung up on");
}

#[test]
fn operators_see_life_readiness_and_metrics() {
    let provider = Provider::start();
    assert_eq!(provider.ops("/livez"), (200, "alive\n".to_owned()));
    assert_eq!(provider.ops("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(provider.ops("/nothing").0, 404);
    for path in ["/a", "/b", "/c"] {
        provider.post(path, OCTETS, b"");
    }
    provider.post("/v1/dequeue", OCTETS, b"x");
    let (status, text) = provider.ops("/metrics");
    assert_eq!(status, 200);
    let mut names = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        let name = series.split('{').next().unwrap();
        assert!(name.starts_with("mimid_") || name.starts_with("process_"), "{name}");
        names.insert(name.to_owned());
    }
    let count = |labels: &str| {
        let series = format!("mimid_http_requests_total{{{labels}}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
    };
    let unknown = r#"endpoint="other",listener="client",status="404""#;
    assert_eq!(count(unknown).as_deref(), Some("3"), "paths that we do not know are one name");
    let dequeue = r#"endpoint="/v1/dequeue",listener="client",status="400""#;
    assert_eq!(count(dequeue).as_deref(), Some("1"));
    for name in [
        "mimid_build_info",
        "mimid_http_request_seconds_bucket",
        "mimid_http_requests_in_flight",
        "mimid_store_flushes_total",
        "mimid_store_writable",
        "process_resident_memory_bytes",
    ] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
}

async fn open_stream(
    provider: &Provider,
) -> tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>> {
    let url = provider.endpoints().client.replace("https://", "wss://") + "/v1/stream";
    let socket = tokio::net::TcpStream::connect(provider.client_address()).await.unwrap();
    let tls = Connector::Rustls(Arc::new(provider.tls(&[&rustls::version::TLS13])));
    let (stream, _) = tokio_tungstenite::client_async_tls_with_config(
        url.into_client_request().unwrap(),
        socket,
        None,
        Some(tls),
    )
    .await
    .unwrap();
    stream
}

/// Sends `frame`, if any, and waits for the stream's end.
async fn close_code(provider: &Provider, frame: Option<Message>) -> (u16, String) {
    let mut stream = open_stream(provider).await;
    if let Some(frame) = frame {
        stream.send(frame).await.unwrap();
    }
    closing(&mut stream).await
}

async fn closing(
    stream: &mut tokio_tungstenite::WebSocketStream<
        tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
    >,
) -> (u16, String) {
    while let Some(message) = stream.next().await {
        if let Message::Close(Some(CloseFrame { code, reason })) = message.unwrap() {
            return (code.into(), reason.to_string());
        }
    }
    panic!("the stream ended without a close frame")
}

#[test]
fn a_stream_that_does_not_begin_rightly_is_closed_with_a_reason() {
    let provider = Provider::start_with(|config| config.limits.stream_open_timeout = PATIENCE);
    let hurried = Provider::start_with(|config| {
        config.limits.stream_open_timeout = Duration::from_millis(200);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(close_code(&provider, Some(Message::text("hello"))).await.0, 1003);
        assert_eq!(close_code(&provider, Some(Message::binary(vec![0; 5000]))).await.0, 1009);
        let (code, reason) = close_code(&provider, Some(Message::binary(vec![1, 2]))).await;
        assert_eq!(code, 4002, "{reason}");
        let (code, reason) = close_code(&hurried, None).await;
        assert_eq!((code, reason.contains("first frame")), (4001, true), "{reason}");
    });
    for provider in [&provider, &hurried] {
        until_metrics_say(provider, "mimid_streams_open 0");
    }
}

#[test]
fn stopping_lets_requests_end_and_closes_streams() {
    let mut provider = Provider::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut half = provider.connect();
    half.write_all(
        format!(
            "POST /v1/dequeue HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: 4\r\n\r\nha"
        )
        .as_bytes(),
    )
    .unwrap();
    let mut stream = runtime.block_on(open_stream(&provider));
    // both are with the server once it counts them
    until_metrics_say(&provider, "mimid_http_requests_in_flight{listener=\"client\"} 1");
    until_metrics_say(&provider, "mimid_streams_open 1");

    let running = provider.running.take().unwrap();
    let ops: SocketAddr = running.endpoints().ops.strip_prefix("http://").unwrap().parse().unwrap();
    let stopping = std::thread::spawn(move || running.stop());
    let (code, reason) = runtime.block_on(closing(&mut stream));
    assert_eq!(code, 1001, "{reason}");
    drop(stream);

    let mut socket = TcpStream::connect(ops).unwrap();
    write!(socket, "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let not_ready = Answer::read(&mut socket);
    assert_eq!(not_ready.status, 503);
    assert!(String::from_utf8(not_ready.body).unwrap().contains("stopping"));

    half.write_all(b"lf").unwrap();
    assert_eq!(Answer::read(&mut half).status, 400, "what was begun is answered");
    stopping.join().unwrap().unwrap();
}

#[test]
fn endpoints_are_found_in_the_data_folder_while_the_node_runs() {
    let provider = Provider::start();
    let data = provider.folder.path().join("data");
    let found = Endpoints::read(&data).unwrap();
    assert_eq!(&found, provider.endpoints());
    assert_eq!(found.domain.as_str(), "localhost");
    assert_eq!(found.pid, std::process::id());
    assert!(found.certificate.unwrap().is_absolute());
    let folder = provider.stop();
    assert!(Endpoints::read(&data).is_err());
    drop(folder);
}

#[test]
fn a_node_starts_again_with_the_keys_that_it_had() {
    let first = Provider::start_with(|config| config.store.engine = Engine::Sled);
    let certificate = fs::read(first.endpoints().certificate.as_ref().unwrap()).unwrap();
    let folder = first.stop();
    let mut config = config_in(folder.path());
    config.store.engine = Engine::Sled;
    let again = Provider { running: Some(server::start(config.clone()).unwrap()), folder };
    assert_eq!(fs::read(again.endpoints().certificate.as_ref().unwrap()).unwrap(), certificate);
    config.domain = Domain::new("b.example").unwrap();
    let second = server::start(config).unwrap_err();
    assert!(matches!(second, StartError::Store(_)), "one store has one node: {second}");
    let path = again.endpoints().certificate.as_ref().unwrap();
    assert_eq!(fs::read(path).unwrap(), certificate, "it touches nothing of who is there");
}

#[test]
fn a_data_folder_is_of_one_domain() {
    let first = Provider::start_with(|config| config.store.engine = Engine::Sled);
    let certificate = fs::read(first.endpoints().certificate.as_ref().unwrap()).unwrap();
    let folder = first.stop();
    let mut config = config_in(folder.path());
    config.store.engine = Engine::Sled;
    config.domain = Domain::new("b.example").unwrap();
    let refused = server::start(config.clone()).unwrap_err();
    assert!(matches!(refused, StartError::OtherDomain { .. }), "{refused}");
    assert!(refused.to_string().contains("domain = \"localhost\""), "{refused}");
    config.domain = Domain::new("localhost").unwrap();
    let again = Provider { running: Some(server::start(config).unwrap()), folder };
    assert_eq!(fs::read(again.endpoints().certificate.as_ref().unwrap()).unwrap(), certificate);
}

#[test]
fn a_node_that_cannot_start_says_what_to_do() {
    let provider = Provider::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config_in(folder.path());
    config.client.listen = provider.client_address();
    let taken = server::start(config).unwrap_err().to_string();
    assert!(taken.starts_with("client.listen = 127.0.0.1:"), "{taken}");
    assert!(taken.contains("port 0"), "{taken}");

    let token = folder.path().join("data/keys/token.json");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let open = server::start(config_in(folder.path())).unwrap_err().to_string();
    assert!(open.contains("chmod 600"), "{open}");
}

#[test]
fn the_binary_serves_until_it_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mimid"))
        .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .env("MIMID_STORE__ENGINE", "memory")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("Ctrl-C") {
        assert!(std::io::BufRead::read_line(&mut out, &mut said).unwrap() > 0, "{said}");
    }
    let endpoints = Endpoints::read(&data).unwrap();
    assert_eq!(endpoints.pid, child.id());
    assert!(said.contains(&endpoints.client) && said.contains("mimid client"), "{said}");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert!(Endpoints::read(&data).is_err());
}

#[test]
fn a_wrong_configuration_is_told_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mimid.toml");
    fs::write(&file, "domain = \"a.example\"\n[client]\nlisen = \"127.0.0.1:0\"\n").unwrap();
    for command in ["serve", "check-config"] {
        let output = Command::new(env!("CARGO_BIN_EXE_mimid"))
            .args([command, "--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("mimid.toml:3"), "{said}");
        assert!(said.contains("did you mean \"client.listen\"?"), "{said}");
    }
    fs::write(&file, "domain = \"a.example\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mimid"))
        .args(["check-config", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("domain = \"a.example\"\n"));
}
