//! The federation listener from outside: what other providers get, and what strangers cannot do to it. TLS on loopback,
//! and a second provider whose keys sign.

use std::{
    io::{BufRead, BufReader},
    time::Instant,
};

use mimid::{
    actors::clock::ManualClock,
    crypto::{self, SigningKey},
    federation::message::{Outgoing, seal},
    http::peers::Peers,
    server::s2s_keys,
    wire::{
        client::VerificationKeyResponse,
        codec::{Opaque, ShortOpaque},
        ds::{
            CommitComplaint, ComplaintReason, DsContext, DsMessage, DsRequest, DsSenderId,
            WelcomeInfo,
        },
        encode,
        extensions::SignatureScheme,
        federation::EventType,
        ids::{Epoch, GroupId, LeafIndex, RequestId, Timestamp, UserUri},
        key_packages::{ConnectionKeyPackageRequest, ConnectionKeyPackageResponse},
    },
};

use super::*;

fn domain(name: &str) -> Domain {
    Domain::new(name).unwrap()
}

pub(super) fn federates(config: &mut Config, name: &str) {
    config.domain = domain(name);
    config.federation.listen = Some("127.0.0.1:0".parse().unwrap());
    config.federation.allow_private_addresses = true;
}

/// Provider a.example, and b.example, which it finds and trusts. The clock of the first stands still.
struct Two {
    a: Provider,
    b: Provider,
    clock: Arc<ManualClock>,
}

impl Two {
    fn start(change: impl FnOnce(&mut Config)) -> Self {
        let b = Provider::start_with(|config| federates(config, "b.example"));
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let a = Provider::start_at(clock.clone(), |config| {
            federates(config, "a.example");
            let host = format!("localhost:{}", b.federation_address().port());
            config.federation.overrides.insert(domain("b.example"), host.parse().unwrap());
            // this one is nobody: what it finds there are b's keys
            config.federation.overrides.insert(domain("c.example"), host.parse().unwrap());
            config.federation.roots = vec![b.endpoints().certificate.clone().unwrap()];
            change(config);
        });
        Self { a, b, clock }
    }

    fn key_of_b(&self) -> SigningKey {
        let keys = s2s_keys::list(&self.b.folder.path().join("data")).unwrap();
        keys[0].key.clone()
    }

    /// A message as b.example sends it.
    fn message(&self, event: EventType, body: Vec<u8>) -> Vec<u8> {
        self.message_of("b.example", &self.key_of_b(), event, body)
    }

    fn message_of(
        &self,
        sender: &str,
        key: &SigningKey,
        event: EventType,
        body: Vec<u8>,
    ) -> Vec<u8> {
        let outgoing = Outgoing {
            sender: &domain(sender),
            recipient: &domain("a.example"),
            event,
            request_id: RequestId(crypto::random()),
            body,
        };
        seal(outgoing, key, self.clock.now()).unwrap()
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let request = request(method, path, OCTETS, body);
        self.a.raw_to(self.a.federation_address(), &request)
    }

    fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.ask("POST", path, body)
    }
}

fn nobody() -> Vec<u8> {
    encode(&ConnectionKeyPackageRequest {
        target_user: UserUri::new("mimi://a.example/u/nobody").unwrap(),
        requester: UserUri::new("mimi://b.example/u/bob").unwrap(),
    })
}

/// A welcome_info for a group that there is not.
fn welcome_info(now: Timestamp) -> Vec<u8> {
    let group_id = GroupId::of(&domain("a.example"), [9; 16]);
    let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let info =
        WelcomeInfo { group_id: group_id.clone(), sender: key.public().clone(), epoch: Epoch(1) };
    encode(&DsMessage {
        sender_id: DsSenderId::LeafIndex(LeafIndex(0)),
        request: DsRequest::WelcomeInfo(info),
        signature: ShortOpaque::new(vec![1; 64]).unwrap(),
        context: DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: domain("a.example"),
            group_id,
            timestamp: now,
            request_id: RequestId([3; 16]),
        },
    })
}

/// About a commit in a group that there is not.
fn complaint() -> Vec<u8> {
    encode(&CommitComplaint {
        group_id: GroupId::of(&domain("a.example"), [9; 16]),
        epoch: Epoch(1),
        leaf_index: LeafIndex(0),
        commit_hash: Opaque::new(vec![1; 32]).unwrap(),
        reason: ComplaintReason::ConfirmationTag.into(),
        signature: Opaque::new(vec![1; 64]).unwrap(),
    })
}

const CONNECTION: &str = "/connection_key_packages";

fn ds_error(answer: &Answer) -> DsError {
    match decode::<DsResponse>(&answer.body).unwrap().outcome {
        Outcome::Err(error) => error,
        Outcome::Ok(_) => panic!("an ok"),
    }
}

#[test]
fn keys_and_the_place_are_shown_to_everybody() {
    let Two { a, .. } = &Two::start(|_| {});
    for (path, purpose) in
        [("/verification_key", &b"s2s"[..]), ("/signature_key", b"external-sender")]
    {
        let answer = a.raw_to(a.federation_address(), &request("GET", path, "", b""));
        assert_eq!(answer.status, 200);
        assert!(answer.has_header("content-type: application/octet-stream"), "{}", answer.head);
        assert!(answer.has_header("cache-control: max-age=3600"), "{}", answer.head);
        let keys: VerificationKeyResponse = decode(&answer.body).unwrap();
        assert_eq!(keys.domain, domain("a.example"));
        assert!(!keys.keys.is_empty());
        assert!(keys.keys.iter().all(|key| key.purpose.as_slice() == purpose));
        let posted = a.raw_to(a.federation_address(), &request("POST", path, OCTETS, b""));
        assert_eq!(posted.status, 405);
        assert!(posted.has_header("allow: get"), "{}", posted.head);
    }
    let place = format!("a.example:{}", a.federation_address().port());
    for address in [a.federation_address(), a.client_address()] {
        let answer = a.raw_to(address, &request("GET", "/.well-known/mimi/ds-domain", "", b""));
        assert_eq!((answer.status, answer.body.as_slice()), (200, place.as_bytes()));
        assert!(answer.has_header("content-type: text/plain; charset=utf-8"), "{}", answer.head);
        assert!(answer.has_header("cache-control: max-age=3600"), "{}", answer.head);
    }
    let alone = Provider::start();
    assert_eq!(alone.endpoints().federation, None);
    let answer = alone.raw(&request("GET", "/.well-known/mimi/ds-domain", "", b""));
    assert_eq!(answer.status, 404, "who does not federate is nowhere");
}

#[test]
fn a_configured_name_is_what_others_are_told() {
    let provider = Provider::start_with(|config| {
        federates(config, "a.example");
        config.federation.domain_name = Some("a.example:443".parse().unwrap());
        config.federation.domain_name_cached = Duration::from_secs(60);
    });
    let answer = provider.raw(&request("GET", "/.well-known/mimi/ds-domain", "", b""));
    assert_eq!(answer.body, b"a.example");
    assert!(answer.has_header("cache-control: max-age=60"), "{}", answer.head);
}

#[test]
fn only_tls_1_3_is_spoken_with_other_providers() {
    let provider = Provider::start_with(|config| federates(config, "a.example"));
    let name = ServerName::try_from("localhost").unwrap();
    let tls = Arc::new(provider.tls(&[&rustls::version::TLS12]));
    let mut socket = TcpStream::connect(provider.federation_address()).unwrap();
    let mut connection = ClientConnection::new(tls, name).unwrap();
    let error = connection.complete_io(&mut socket).unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[test]
fn a_signed_request_is_answered_in_the_form_of_its_endpoint() {
    let two = Two::start(|_| {});
    let answer = two.post(CONNECTION, &two.message(EventType::ConnectionKeyPackages, nobody()));
    assert_eq!(answer.status, 200);
    let response: ConnectionKeyPackageResponse = decode(&answer.body).unwrap();
    assert!(response.key_packages.is_empty());

    // TR lists these two as GET, with a body
    let event = EventType::DeliveryService("welcome-info");
    for method in ["GET", "POST"] {
        let message = two.message(event, welcome_info(two.clock.now()));
        let answer = two.ask(method, "/welcome_information", &message);
        assert_eq!(answer.status, 404, "{method}");
        assert_eq!(ds_error(&answer).name(), "group_not_found");
    }
    let message = two.message(EventType::Complaint, complaint());
    let answer = two.post("/complaint", &message);
    assert_eq!((answer.status, answer.client_error().name()), (404, "group_not_found"));
    let (status, shown) = two.a.ops("/v1/peers");
    let peers: Peers = serde_json::from_str(&shown).unwrap();
    assert_eq!((status, peers.federates, peers.peers.len()), (200, true, 1));
    let b = &peers.peers[0];
    assert!(b.domain == domain("b.example") && b.admitted && b.outbox.is_none(), "{b:?}");
    assert_eq!((b.keys[0].list.as_str(), b.keys[0].keys), ("verification", Some(1)));
    let (_, metrics) = two.a.ops("/metrics");
    for line in [
        r#"mimid_http_requests_total{endpoint="/connection_key_packages",listener="federation",status="200"} 1"#,
        r#"mimid_http_requests_total{endpoint="/welcome_information",listener="federation",status="404"} 2"#,
        r#"mimid_ds_requests_total{operation="welcome-info",status="group_not_found"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[test]
fn what_is_no_request_of_a_provider_is_refused_as_its_endpoint_answers() {
    let two = Two::start(|_| {});
    for (path, is_ds) in [
        ("/group_operation", true),
        ("/welcome_information", true),
        ("/external_commit_information", true),
        ("/connection_request", false),
        ("/deliver_message", false),
        (CONNECTION, false),
        ("/group_key_packages", false),
        ("/migration_request", false),
        ("/migration_content", false),
        ("/complaint", false),
    ] {
        let error = |answer: &Answer| if is_ds { ds_error(answer) } else { answer.client_error() };
        // what is nobody's message is answered to the provider that sent it, not to a client of its
        let garbage = two.post(path, b"\x00\x01garbage");
        let name = garbage.client_error().name().to_owned();
        assert_eq!((garbage.status, name.as_str()), (400, "malformed"), "{path}");
        let put = two.ask("PUT", path, b"");
        assert_eq!((put.status, error(&put).name()), (405, "malformed"), "{path}");
        let untyped =
            two.a.raw_to(two.a.federation_address(), &request("POST", path, "", b"garbage"));
        assert_eq!((untyped.status, error(&untyped).name()), (415, "malformed"), "{path}");
    }
    let get = two.ask("GET", "/group_operation", b"");
    assert!(get.status == 405 && get.has_header("allow: post"), "{}", get.head);
    let put = two.ask("PUT", "/welcome_information", b"");
    assert!(put.has_header("allow: get, post"), "{}", put.head);
    let answer = two.post("/v1/dequeue", b"");
    assert_eq!(answer.status, 404);
    assert!(answer.client_error().detail().contains("no such endpoint"));
}

#[test]
fn a_message_counts_for_its_own_endpoint_recipient_and_sender_only() {
    let two = Two::start(|config| {
        config.federation.deny = vec!["*.bad.example".parse().unwrap()];
    });
    let key = two.key_of_b();
    let event = EventType::ConnectionKeyPackages;
    let refused = |path: &str, message: &[u8]| {
        let answer = two.post(path, message);
        (answer.status, answer.client_error().name().to_owned())
    };
    let good = two.message(event, nobody());
    assert_eq!(refused("/group_key_packages", &good), (400, "malformed".to_owned()));
    let outgoing = Outgoing {
        sender: &domain("b.example"),
        recipient: &domain("c.example"),
        event,
        request_id: RequestId(crypto::random()),
        body: nobody(),
    };
    let elsewhere = seal(outgoing, &key, two.clock.now()).unwrap();
    assert_eq!(two.post(CONNECTION, &elsewhere).client_error().name(), "malformed");
    let stranger = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let forged = two.message_of("b.example", &stranger, event, nobody());
    let (status, name) = refused(CONNECTION, &forged);
    assert!(
        (status, name.as_str()) == (401, "unauthenticated")
            || (status, name.as_str()) == (429, "rate_limited"),
        "{status} {name}"
    );
    let denied = two.message_of("x.bad.example", &stranger, event, nobody());
    assert_eq!(refused(CONNECTION, &denied), (403, "not_authorized".to_owned()));
    let itself = two.message_of("a.example", &stranger, event, nobody());
    assert_eq!(refused(CONNECTION, &itself), (403, "not_authorized".to_owned()));
    // what is found under this name are another's keys
    let nobody_knows = two.message_of("c.example", &key, event, nobody());
    assert_eq!(refused(CONNECTION, &nobody_knows), (503, "unavailable".to_owned()));
    assert_eq!(two.post(CONNECTION, &good).status, 200, "the others stay unharmed");
}

#[test]
fn a_provider_that_asks_too_much_is_told_when_to_come_back() {
    let two = Two::start(|config| {
        config.rates.peer_per_second = 1;
        config.rates.peer_burst = 2;
    });
    let ask = || two.post(CONNECTION, &two.message(EventType::ConnectionKeyPackages, nobody()));
    let stranger = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    for _ in 0..5 {
        let event = EventType::ConnectionKeyPackages;
        let forged = two.message_of("b.example", &stranger, event, nobody());
        assert_ne!(two.post(CONNECTION, &forged).status, 200, "and nothing is taken from b");
    }
    assert_eq!((ask().status, ask().status), (200, 200));
    let answer = ask();
    assert_eq!(answer.status, 429);
    assert!(answer.has_header("retry-after: 1"), "{}", answer.head);
    let error = answer.client_error();
    assert!(matches!(error, DsError::RateLimited { retry_after_ms: 1000, .. }), "{error}");
    two.clock.advance_ms(1000);
    assert_eq!(ask().status, 200);
}

#[test]
fn senders_whose_keys_do_not_come_leave_room_for_those_that_are_known() {
    // accepts connections and says nothing
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("localhost:{}", silent.local_addr().unwrap().port());
    let two = Two::start(|config| {
        config.federation.requests_max = 8;
        // each worker has places of its own
        config.limits.workers = 1;
        // both must wait at one time, however slow the machine
        config.federation.connect_timeout = Duration::from_secs(60);
        for name in ["d.example", "e.example"] {
            config.federation.overrides.insert(domain(name), host.parse().unwrap());
        }
    });
    let event = EventType::ConnectionKeyPackages;
    let ask_as_b = || two.post(CONNECTION, &two.message(event, nobody()));
    assert_eq!(ask_as_b().status, 200, "b is known from now on");
    let stranger = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let forged = |name| two.message_of(name, &stranger, event, nobody());
    let mut waiting = Vec::new();
    // a domain has a share of the places for strangers
    for (name, count) in [("d.example", 1), ("e.example", 2)] {
        let mut stream = two.a.connect_to(two.a.federation_address());
        stream.write_all(&request("POST", CONNECTION, OCTETS, &forged(name))).unwrap();
        waiting.push(stream);
        let in_flight = format!("mimid_http_requests_in_flight{{listener=\"federation\"}} {count}");
        until_metrics_say(&two.a, &in_flight);
    }
    let one_more = two.post(CONNECTION, &forged("d.example"));
    assert_eq!((one_more.status, one_more.client_error().name()), (503, "unavailable"));
    assert_eq!(ask_as_b().status, 200);
    drop(silent);
    for stream in &mut waiting {
        assert_eq!(Answer::read(stream).status, 503);
    }
}

#[test]
fn a_body_of_another_provider_that_is_too_large_or_without_end_is_cut_off() {
    let two = Two::start(|_| {});
    let address = two.a.federation_address();
    for (path, limit) in
        [("/welcome_information", 16 * 1024), ("/group_operation", 4 * 1024 * 1024 + 68 * 1024)]
    {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: {}\r\n\r\n",
            limit + 1
        );
        let answer = two.a.raw_to(address, head.as_bytes());
        assert_eq!(answer.status, 413, "refused before a byte of it is sent");
        let DsError::TooLarge { limit: told, .. } = ds_error(&answer) else { panic!("another") };
        assert_eq!(told, limit);
    }
    let chunked = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Transfer-Encoding: chunked\r\n\r\n"
        )
        .into_bytes()
    };
    let mut grows = chunked("/connection_key_packages");
    for _ in 0..5 {
        grows.extend_from_slice(b"1000\r\n");
        grows.extend_from_slice(&[0; 0x1000]);
        grows.extend_from_slice(b"\r\n");
    }
    let answer = two.a.raw_to(address, &grows);
    assert_eq!((answer.status, answer.client_error().name()), (413, "too_large"));

    let two = Two::start(|config| config.limits.body_timeout = Duration::from_millis(200));
    let mut endless = two.a.connect_to(two.a.federation_address());
    endless.write_all(&chunked("/deliver_message")).unwrap();
    endless.write_all(b"1\r\nx\r\n").unwrap();
    let answer = Answer::read(&mut endless);
    assert_eq!((answer.status, answer.client_error().name()), (408, "malformed"));
}

#[test]
fn the_hubs_keys_rotate_on_the_command_line_while_the_node_runs() {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let mut provider = Provider::start_at(clock.clone(), |config| federates(config, "a.example"));
    let data = provider.folder.path().join("data");
    let listed = |provider: &Provider| {
        let request = request("GET", "/signature_key", "", b"");
        let answer = provider.raw_to(provider.federation_address(), &request);
        decode::<VerificationKeyResponse>(&answer.body).unwrap().keys.into_vec()
    };
    let shown = |provider: &Provider| {
        listed(provider).iter().map(|key| key.public_key.clone()).collect::<Vec<_>>()
    };
    let until = |provider: &Provider, count: usize| {
        eventually_in_sync(&format!("{count} keys"), || shown(provider).len() == count);
        shown(provider)
    };
    let before = shown(&provider);
    assert_eq!(before.len(), 2);
    let rotate = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_mimid"))
            .args(["keys", "rotate", "--purpose", "external-sender", "--data-dir"])
            .arg(&data)
            .args(more)
            .output()
            .unwrap()
    };
    let hurried = rotate(&["--now"]);
    assert_eq!(hurried.status.code(), Some(2));
    assert!(String::from_utf8(hurried.stderr).unwrap().contains("--now is for s2s keys"));
    assert_eq!(shown(&provider), before);
    let rotated = rotate(&[]);
    assert!(rotated.status.success(), "{rotated:?}");
    provider.running.as_ref().unwrap().reload();
    let during = until(&provider, 4);
    assert_eq!(during[2..], before, "the new ones first, and the old ones are still there");

    // another start changes nothing
    let folder = provider.stop();
    let start = || {
        let mut config = config_in(folder.path());
        federates(&mut config, "a.example");
        Provider {
            running: Some(server::start_at(config, clock.clone()).unwrap()),
            folder: tempfile::tempdir().unwrap(),
        }
    };
    provider = start();
    assert_eq!(shown(&provider), during);
    // no group has the old ones, and none can come with them any more: they are retired
    let day = 24 * 3600 * 1000;
    clock.advance_ms(day);
    let now = clock.now();
    provider.running.as_ref().unwrap().reload();
    let retired = |provider: &Provider| {
        let keys = listed(provider);
        keys[2..].iter().filter(|key| key.not_after <= now).count()
    };
    comes_true(|| retired(&provider) == 2);
    assert_eq!(shown(&provider), during, "they prove what they signed, for good");
    drop(provider);
    provider = start();
    assert_eq!((retired(&provider), shown(&provider)), (2, during.clone()));
    // what they promised is answered for a year
    let file = || fs::read_to_string(data.join("keys/external-senders.json")).unwrap();
    assert_eq!(file().matches("answers").count(), 2);
    clock.advance_ms(365 * day);
    provider.running.as_ref().unwrap().reload();
    comes_true(|| !file().contains("answers"));
    assert_eq!((retired(&provider), shown(&provider)), (2, during.clone()));
    // until they are forgotten
    let print = hex::encode(&crypto::sha256(during[2].as_slice())[..16]);
    let forgets = || {
        let mut forget = Command::new(env!("CARGO_BIN_EXE_mimid"));
        forget.args(["keys", "forget", &print, "--data-dir"]).arg(&data).output().unwrap()
    };
    assert!(forgets().status.success());
    provider.running.as_ref().unwrap().reload();
    assert_eq!(until(&provider, 3), [&during[..2], &during[3..]].concat());
    let again = forgets();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("no retired key"));
}

fn comes_true(mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < patience, "it never comes true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn certificates_are_read_again_without_a_restart() {
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
    let write = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&chain, made.cert.pem()).unwrap();
        made.cert.der().clone()
    };
    let first = write();
    let provider = Provider::start_with(|config| {
        federates(config, "a.example");
        config.federation.certificate = Some(chain.clone());
        config.federation.key = Some(key.clone());
    });
    assert!(shows(&provider, &first));
    let second = write();
    assert!(shows(&provider, &first), "not before it is told to");
    provider.running.as_ref().unwrap().reload();
    let patience = Instant::now() + Duration::from_secs(60);
    while !shows(&provider, &second) {
        assert!(Instant::now() < patience, "the certificate is not replaced");
    }
    fs::write(&chain, "nothing of the kind").unwrap();
    provider.running.as_ref().unwrap().reload();
    assert!(shows(&provider, &second), "what cannot be used changes nothing");
}

/// Whether the federation listener shows this very certificate.
fn shows(provider: &Provider, certificate: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(tls), name).unwrap();
    let mut socket = TcpStream::connect(provider.federation_address()).unwrap();
    while connection.is_handshaking() {
        if connection.complete_io(&mut socket).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn a_trace_of_a_client_goes_on_and_one_of_another_provider_ends_at_the_border() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mimid"))
        .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
        .current_dir(folder.path())
        .env_remove("MIMID_CONFIG")
        .env("MIMID_FEDERATION__LISTEN", "127.0.0.1:0")
        .env("MIMID_LOG__LEVEL", "warn,mimid::http=debug")
        .env("MIMID_LOG__FORMAT", "json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Stop it") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let endpoints = Endpoints::read(&folder.path().join("mimid-data")).unwrap();
    let certificate = fs::read(endpoints.certificate.as_ref().unwrap()).unwrap();
    let client = format!("{}/v1/dequeue", endpoints.client);
    let peer = format!("{}/deliver_message", endpoints.federation.as_ref().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = reqwest::Certificate::from_pem(&certificate).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
        for url in [client, peer] {
            let answer = http
                .post(url)
                .header("content-type", "application/octet-stream")
                .header("traceparent", TRACEPARENT)
                .body("garbage")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status().as_u16(), 400);
        }
    });
    child.kill().unwrap();
    let log = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let lines: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |endpoint: &str, message: &str| {
        let found = lines
            .iter()
            .find(|line| line["span"]["endpoint"] == endpoint && line["message"] == message);
        found.unwrap_or_else(|| panic!("{endpoint} {message}: {log}")).clone()
    };
    assert_eq!(of("/v1/dequeue", "request")["span"]["trace_id"], TRACE_ID);
    let answered = of("/deliver_message", "request");
    let link = of("/deliver_message", "a trace of another provider's goes on here");
    assert_eq!(link["received_trace_id"], TRACE_ID);
    assert_eq!(link["span"]["trace_id"], answered["span"]["trace_id"]);
    assert_ne!(answered["span"]["trace_id"], TRACE_ID, "it is not known by the other's id here");
}

/// `mimid` with a configuration that finds `two`'s b.example as a.example does, and what `change` adds.
fn mimid(two: &Two, args: &[&str], change: &[(&str, &str)]) -> (i32, String, String) {
    let port = two.b.federation_address().port();
    let root = two.b.endpoints().certificate.clone().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mimid"))
        .args(args)
        .current_dir(two.a.folder.path())
        .env_remove("MIMID_CONFIG")
        .env_remove("MIMID_DATA_DIR")
        .env("MIMID_DOMAIN", "a.example")
        .env("MIMID_FEDERATION__LISTEN", "127.0.0.1:0")
        .env(
            "MIMID_FEDERATION__OVERRIDES",
            format!("b.example=localhost:{port},c.example=127.0.0.1:{port}"),
        )
        .env("MIMID_FEDERATION__ROOTS", root)
        .env("MIMID_FEDERATION__ALLOW_PRIVATE_ADDRESSES", "true")
        .envs(change.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_doctor_walks_to_another_provider_and_says_what_is_in_the_way() {
    let two = Two::start(|_| {});
    let steps = |domain: &str, change: &[(&str, &str)]| {
        let (code, out, err) = mimid(&two, &["doctor", domain, "--json"], change);
        assert!(err.is_empty(), "{err}");
        let steps: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (code, steps)
    };
    let (code, good) = steps("b.example", &[]);
    let named: Vec<_> = good.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(named, ["lists", "discovery", "addresses", "tls", "clock", "keys", "keys"]);
    assert!(code == 0 && good.iter().all(|step| step["verdict"] == "ok"), "{good:?}");
    for (domain, change, step, found, advice) in [
        ("b.example", ("MIMID_FEDERATION__DENY", "*.example"), "lists", "*.example", "take it out"),
        (
            "b.example",
            ("MIMID_FEDERATION__ALLOW", "d.example"),
            "lists",
            "does not name it",
            "add it",
        ),
        (
            "b.example",
            ("MIMID_FEDERATION__ALLOW_PRIVATE_ADDRESSES", "false"),
            "addresses",
            "127.0.0.1",
            "allow_private_addresses",
        ),
        (
            "b.example",
            (
                "MIMID_FEDERATION__ROOTS",
                &*two.a.endpoints().certificate.as_ref().unwrap().to_string_lossy(),
            ),
            "tls",
            "nobody trusted vouches",
            "federation.roots",
        ),
        (
            "c.example",
            ("MIMID_LOG__LEVEL", "warn"),
            "keys",
            "the keys of b.example",
            "another provider",
        ),
    ] {
        let (code, steps) = steps(domain, &[change]);
        let failed = steps.iter().find(|step| step["verdict"] == "failed");
        let failed = failed.unwrap_or_else(|| panic!("{change:?}: {steps:?}"));
        let says = |key: &str, what: &str| failed[key].as_str().unwrap().contains(what);
        assert_eq!((code, failed["step"].as_str()), (1, Some(step)), "{steps:?}");
        assert!(says("found", found) && says("advice", advice), "{failed}");
    }
    let (code, told, _) = mimid(&two, &["doctor", "b.example"], &[]);
    assert!(code == 0 && told.ends_with("b.example can be spoken with.\n"), "{told}");
    assert_eq!(mimid(&two, &["doctor", "No Domain"], &[]).0, 2);
}

#[test]
fn operators_ask_for_other_providers_on_the_command_line() {
    let two = Two::start(|_| {});
    let ops = two.a.endpoints().ops.clone();
    let peers = |args: &[&str]| mimid(&two, &[&["peers", "--ops", &ops], args].concat(), &[]);
    assert_eq!(peers(&[]).1, "no other providers so far\n");
    let answer = two.post(CONNECTION, &two.message(EventType::ConnectionKeyPackages, nobody()));
    assert_eq!(answer.status, 200);
    let (code, told, _) = peers(&[]);
    assert!(code == 0 && told.starts_with("b.example  "), "{told}");
    assert!(told.contains("verification keys: 1 known"), "{told}");
    let json: Peers = serde_json::from_str(&peers(&["--json"]).1).unwrap();
    assert_eq!(json.peers[0].domain, domain("b.example"));
    let group = "mimi://a.example/g/0123456789abcdef012345";
    let (code, _, why) = peers(&["requeue", "b.example", group]);
    assert!(code == 1 && why.contains("was ever for b.example"), "{why}");
}

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
