//! The client library against a provider with listeners, a store and TLS: what only both together show. What a
//! client makes of its state alone is tested beside it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, web::Bytes};

use mimid::{
    client::{
        Client, ClientError, Clock, Outcome, Registration, Server,
        core::{Content, Event, GroupState, Home, Member, Operation, PolicyChange, Right, SUITES},
        http::HttpError,
        system_clock,
    },
    server::{self, Config, Running},
    wire::{
        self,
        client::{ClientMessage, ClientResponse},
        decode,
        ds::{Detail, DsError, DsMessage, DsResponse, ProtocolVersion},
        encode,
        extensions::{KeyPackageClass, Role},
        ids::{ClientUri, Domain, GroupId, RequestId, Timestamp, UserUri},
    },
};
use rustls::pki_types::pem::PemObject;

use crate::providers::free_address;

pub(super) struct Provider {
    running: Option<Running>,
    folder: tempfile::TempDir,
}

impl Provider {
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further settings, by the names that they have in the environment.
    pub(super) fn start_with(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // nobody takes it while this one is down
        let config = config_with(folder.path(), &free_address().to_string(), more);
        Self { running: Some(server::start(config).unwrap()), folder }
    }

    pub(super) fn server(&self) -> Server {
        let endpoints = self.running.as_ref().unwrap().endpoints();
        let certificate = std::fs::read_to_string(endpoints.certificate.as_ref().unwrap()).unwrap();
        Server { url: endpoints.client.clone(), certificate: Some(certificate) }
    }

    /// Stops it and gives what it takes to start it where it was.
    fn stop(&mut self) -> Config {
        let running = self.running.take().unwrap();
        let address = running.endpoints().client.trim_start_matches("https://").to_owned();
        running.stop().unwrap();
        config(self.folder.path(), &address)
    }

    pub(super) async fn client(&self, user: &str, device: &str, clock: Clock) -> Client {
        let user = user_uri(user);
        let registration = Registration {
            client: ClientUri::of(&user, device).unwrap(),
            server: self.server(),
            token: Vec::new(),
            authorization: None,
        };
        let home = Home::open(&self.home(&user, device)).unwrap();
        Client::register(home, registration, clock).await.unwrap()
    }

    pub(super) fn home(&self, user: &UserUri, device: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{}-{device}.sqlite", user.name()))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop();
        }
    }
}

fn config(folder: &Path, listen: &str) -> Config {
    config_with(folder, listen, &[])
}

fn config_with(folder: &Path, listen: &str, more: &[(&str, &str)]) -> Config {
    let data = folder.join("data");
    let settings = [
        ("MIMID_DATA_DIR", data.to_str().unwrap()),
        ("MIMID_CLIENT__LISTEN", listen),
        ("MIMID_OPS__LISTEN", "127.0.0.1:0"),
    ];
    let settings = settings.iter().chain(more);
    let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(None, settings.collect::<Vec<_>>()).unwrap()
}

pub(super) fn user_uri(name: &str) -> UserUri {
    UserUri::new(format!("mimi://localhost/u/{name}")).unwrap()
}

pub(super) async fn connected(one: &Client, other: &Client) {
    let (a, b) = (one.member().client().user(), other.member().client().user());
    one.connect(&b).await.unwrap();
    other.receive(0).await.unwrap();
    other.accept(&a).await.unwrap();
    one.receive(0).await.unwrap();
}

async fn group_of(creator: &Client, added: &Client) -> GroupId {
    let group = creator.create_group("group", SUITES[0], None).await.unwrap();
    let user = added.member().client().user();
    creator.add_users(&group, &[user]).await.unwrap();
    added.receive(0).await.unwrap();
    group
}

pub(super) fn texts(client: &Client) -> Vec<String> {
    let events = client.member().events(0, usize::MAX).unwrap();
    let text = |(_, event)| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    events.into_iter().filter_map(text).collect()
}

#[tokio::test]
async fn clock_that_is_far_off_is_set_by_what_the_provider_says() {
    let provider = Provider::start();
    let now = system_clock();
    let late: Clock = Arc::new(move || Timestamp(now().0 - 3 * 3_600_000));
    let alice = provider.client("alice", "phone", late).await;
    let group = alice.create_group("group", SUITES[0], None).await.unwrap();
    assert!(matches!(alice.send_text(&group, "on time").await.unwrap(), Outcome::Accepted(_)));
}

#[tokio::test]
async fn request_without_an_answer_goes_on_in_the_next_process_and_is_delivered_once() {
    let mut provider = Provider::start();
    let alice =
        provider.client("alice", "phone", system_clock()).await.with_patience(Duration::ZERO);
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let config = provider.stop();
    let unanswered = alice.send_text(&group, "kept").await.unwrap_err();
    assert!(matches!(unanswered, ClientError::Unanswered { .. }), "{unanswered}");
    let path = provider.home(&user_uri("alice"), "phone");
    drop(alice);
    provider.running = Some(server::start(config).unwrap());
    let again = Member::open(Home::open(&path).unwrap()).unwrap();
    let alice = Client::open(again, system_clock()).unwrap();
    alice.resume().await.unwrap();
    alice.resume().await.unwrap();
    bob.receive(0).await.unwrap();
    assert_eq!(texts(&bob), ["kept"]);
}

#[tokio::test]
async fn device_whose_registration_is_cut_off_anywhere_ends_up_in_its_users_groups() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = alice.create_group("group", SUITES[0], None).await.unwrap();
    let mut whole = false;
    for calls in 1.. {
        let device = format!("laptop{calls}");
        let user = user_uri("alice");
        let path = provider.home(&user, &device);
        let registration = |authorization| Registration {
            client: ClientUri::of(&user, &device).unwrap(),
            server: provider.server(),
            token: Vec::new(),
            authorization,
        };
        // each call to the provider looks at the clock: the process ends in this one
        let cut = Arc::new(tokio::sync::Notify::new());
        let left = Arc::new(std::sync::atomic::AtomicUsize::new(calls));
        let (now, ends) = (system_clock(), Arc::clone(&cut));
        let clock: Clock = Arc::new(move || {
            if left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                ends.notify_one();
            }
            now()
        });
        let home = Home::open(&path).unwrap();
        let authorization = alice.authorize_device().unwrap();
        tokio::select! {
            biased;
            () = cut.notified() => {}
            done = Client::register(home, registration(Some(authorization)), clock) => {
                done.unwrap();
                whole = true;
            }
        }
        let home = Home::open(&path).unwrap();
        let laptop = match Client::register(home, registration(None), system_clock()).await {
            Ok(laptop) => laptop,
            Err(error) => {
                assert!(error.to_string().contains("registered already"), "{error}");
                let member = Member::open(Home::open(&path).unwrap()).unwrap();
                let laptop = Client::open(member, system_clock()).unwrap();
                laptop.join_groups_of_user().await.unwrap();
                laptop.resume().await.unwrap();
                laptop
            }
        };
        laptop.receive(0).await.unwrap();
        let view = laptop.member().group(&group).unwrap();
        assert_eq!(view.state, GroupState::Active, "cut off in call {calls}");
        assert_eq!(laptop.member().contacts().unwrap().len(), 1, "cut off in call {calls}");
        assert!(laptop.stock_up().await.unwrap().group_left > 0);
        if whole {
            break;
        }
    }
}

#[tokio::test]
async fn client_put_back_from_an_old_copy_enters_its_group_anew_by_itself() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let path = provider.home(&user_uri("bob"), "phone");
    drop(bob);
    let copy = std::fs::read(&path).unwrap();
    let reopened = |path: &Path| {
        Client::open(Member::open(Home::open(path).unwrap()).unwrap(), system_clock()).unwrap()
    };
    let bob = reopened(&path);
    for _ in 0..3 {
        alice.update(&group, false).await.unwrap();
    }
    bob.receive(0).await.unwrap();
    drop(bob);
    std::fs::write(&path, copy).unwrap();
    let bob = reopened(&path);
    alice.update(&group, false).await.unwrap();
    bob.receive(0).await.unwrap();
    let view = bob.member().group(&group).unwrap();
    assert_eq!(view.state, GroupState::Active, "{:?}", bob.member().events(0, 100).unwrap());
    alice.receive(0).await.unwrap();
    alice.send_text(&group, "welcome back").await.unwrap();
    bob.receive(0).await.unwrap();
    assert_eq!(texts(&bob), ["welcome back"]);
    assert_eq!(view.authenticator, alice.member().group(&group).unwrap().authenticator);
}

#[tokio::test]
async fn key_packages_that_run_low_are_published_anew() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let user = user_uri("bob");
    let seen = |client: &Client| {
        let events = client.member().events(0, usize::MAX).unwrap();
        events.iter().any(|(_, event)| matches!(event, Event::KeyPackagesLow { .. }))
    };
    for _ in 0..200 {
        alice.group_key_packages(&group, &user).await.unwrap();
        bob.receive(0).await.unwrap();
        if seen(&bob) {
            break;
        }
    }
    assert!(seen(&bob));
    let fetched = alice.group_key_packages(&group, &user).await.unwrap();
    let (owner, class) = alice.member().owner_of(&fetched[0].1).unwrap();
    assert_eq!((owner.user(), class), (user, KeyPackageClass::Group));
}

#[tokio::test]
async fn request_that_gets_no_answer_holds_up_nothing_else() {
    let provider = Provider::start();
    let alice =
        provider.client("alice", "phone", system_clock()).await.with_patience(Duration::ZERO);
    let elsewhere = Domain::new("elsewhere.example").unwrap();
    let mistyped = GroupId::of(&elsewhere, [7; 16]);
    alice.join(&mistyped, &elsewhere, "", None).await.unwrap_err();
    let group = alice.create_group("group", SUITES[0], None).await.unwrap();
    alice.receive(0).await.unwrap();
    assert!(matches!(alice.send_text(&group, "x").await.unwrap(), Outcome::Accepted(_)));
    let pending = alice.member().pending().unwrap();
    for (request, other, _) in pending {
        assert_eq!(other, mistyped);
        alice.member().give_up(request).unwrap();
    }
    assert!(alice.resume().await.unwrap().is_empty());
}

#[tokio::test]
async fn message_is_kept_before_anything_is_asked_of_the_provider() {
    let mut provider = Provider::start();
    let alice =
        provider.client("alice", "phone", system_clock()).await.with_patience(Duration::ZERO);
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let config = provider.stop();
    let content = Content::text("kept").encode();
    let request = alice.begin(&group, Operation::Send { content }).unwrap();
    let unanswered = alice.finish(request).await.unwrap_err();
    assert!(matches!(unanswered, ClientError::Unanswered { .. }), "{unanswered}");
    provider.running = Some(server::start(config).unwrap());
    alice.resume().await.unwrap();
    bob.receive(0).await.unwrap();
    assert_eq!(texts(&bob), ["kept"]);
}

#[tokio::test]
async fn answer_that_another_process_was_given_is_told_to_the_one_that_asked() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let home = provider.home(&user_uri("bob"), "phone");
    let other = Member::open(Home::open(&home).unwrap()).unwrap();
    let other = Client::open(other, system_clock()).unwrap();
    let begin = |text: &str| {
        let content = Content::text(text).encode();
        bob.begin(&group, Operation::Send { content }).unwrap()
    };
    let request = begin("may");
    other.receive(0).await.unwrap();
    assert_eq!(bob.member().pending().unwrap(), []);
    let sent = bob.finish(request).await.unwrap();
    assert!(matches!(sent, Outcome::Accepted(_)), "{sent:?}");

    let only_moderators = PolicyChange::May { what: Right::Send, role: Role::Moderator };
    alice.change_policy(&group, vec![only_moderators]).await.unwrap();
    let requests = [begin("may not"), begin("may not either")];
    other.receive(0).await.unwrap();
    assert_eq!(bob.member().pending().unwrap(), []);
    for request in requests {
        let refused = bob.finish(request).await.unwrap_err();
        let told = matches!(refused, ClientError::Refused(_) | ClientError::GivenUp(_));
        assert!(told, "{refused}");
    }
    alice.receive(0).await.unwrap();
    assert_eq!(texts(&alice), ["may"]);
}

#[tokio::test]
async fn requests_that_get_no_answer_hold_up_who_calls_for_a_while_altogether_and_not_each() {
    let mut provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    const KEPT: usize = 24;
    for n in 0..KEPT {
        let group = alice.create_group(&format!("group {n}"), SUITES[0], None).await.unwrap();
        let content = Content::text("kept").encode();
        alice.begin(&group, Operation::Send { content }).unwrap();
    }
    provider.stop();
    let full = FullProvider::start();
    alice.member().set("server", &full.server()).unwrap();
    let home = provider.home(&user_uri("alice"), "phone");
    drop(alice);
    let alice = Client::open(Member::open(Home::open(&home).unwrap()).unwrap(), system_clock());
    // who asks for a single thing may wait for ever; in passing nobody does
    let alice = alice.unwrap().with_patience(Duration::from_secs(3_600));
    let followed = tokio::time::timeout(Duration::from_secs(120), alice.follow(0, |_, _| true));
    let ended = followed.await.expect("what has no answer is left for later").unwrap_err();
    assert!(matches!(ended, ClientError::Http(HttpError::Status(404))), "{ended}");
    let asked = full.asked.lock().unwrap().len();
    // each is tried until its time is over, and all of them have not so much
    assert!((1..KEPT).contains(&asked), "{asked} were tried");
    assert_eq!(alice.member().pending().unwrap().len(), KEPT, "all are kept");
}

/// A provider that can write nothing: it says so to every call, and has no stream.
struct FullProvider {
    url: String,
    certificate: String,
    /// The requests that it was sent.
    asked: Arc<Mutex<BTreeSet<RequestId>>>,
    server: actix_web::dev::ServerHandle,
}

impl FullProvider {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = made.cert.pem();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(
            made.signing_key.serialize_pem().as_bytes(),
        );
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
        .unwrap();
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&asked);
        let (says, hears) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = actix_web::HttpServer::new(move || {
                    let seen = Arc::clone(&seen);
                    let says_no = move |request: HttpRequest, body: Bytes| {
                        let answer = full(&seen, request.path(), &body);
                        async move { answer }
                    };
                    // who asks for another protocol sends no body that ends
                    let no_stream = || async { HttpResponse::NotFound().finish() };
                    actix_web::App::new()
                        .route("/v1/stream", actix_web::web::to(no_stream))
                        .default_service(actix_web::web::to(says_no))
                })
                .workers(1)
                .disable_signals()
                .bind_rustls_0_23("127.0.0.1:0", tls)
                .unwrap();
                let port = server.addrs()[0].port();
                let running = server.run();
                says.send((port, running.handle())).unwrap();
                running.await.unwrap();
            });
        });
        let (port, server) = hears.recv().unwrap();
        Self { url: format!("https://localhost:{port}"), certificate, asked, server }
    }

    fn server(&self) -> Server {
        Server { url: self.url.clone(), certificate: Some(self.certificate.clone()) }
    }
}

impl Drop for FullProvider {
    fn drop(&mut self) {
        // the command is sent as this is called; the thread ends by it
        drop(self.server.stop(false));
    }
}

fn full(asked: &Mutex<BTreeSet<RequestId>>, path: &str, body: &[u8]) -> HttpResponse {
    let error = DsError::Unavailable { detail: Detail::truncated("full"), retry_after_ms: 1 };
    let answer = match path {
        "/v1/group_operation" => {
            let message: ClientMessage = decode(body).unwrap();
            let message: DsMessage = decode(message.body.as_slice()).unwrap();
            asked.lock().unwrap().insert(message.context.request_id);
            encode(&DsResponse {
                version: ProtocolVersion::MIMI10,
                outcome: wire::ds::Outcome::Err(error),
            })
        }
        _ => encode(&ClientResponse { outcome: wire::ds::Outcome::Err(error) }),
    };
    HttpResponse::Ok().body(answer)
}

#[tokio::test]
async fn consent_is_not_said_in_a_group_that_has_others_in_it() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    let carol = provider.client("carol", "phone", system_clock()).await;
    connected(&alice, &carol).await;
    let offered = alice.connect(&user_uri("bob")).await.unwrap();
    alice.add_users(&offered, &[user_uri("carol")]).await.unwrap();
    bob.receive(0).await.unwrap();
    let refused = bob.accept(&user_uri("alice")).await.unwrap_err();
    assert!(matches!(refused, ClientError::NotOfTwo { .. }), "{refused}");
    alice.receive(0).await.unwrap();
    assert_eq!(alice.member().contact(&user_uri("bob")).unwrap().their_token, None);
    assert_eq!(bob.member().contact(&user_uri("alice")).unwrap().our_token, None);
}

#[tokio::test]
async fn who_leaves_cannot_send_and_what_was_asked_for_is_given_up() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    bob.leave(&group).await.unwrap();
    let leaving = bob.send_text(&group, "one more thing").await.unwrap_err();
    assert!(leaving.to_string().contains("proposed to leave"), "{leaving}");
    assert_eq!(bob.member().pending().unwrap(), []);
}

#[tokio::test]
async fn device_of_somebody_else_is_removed_in_one_go() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let bob = provider.client("bob", "phone", system_clock()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    let phone = bob.member().client().clone();
    alice.remove_others_clients(&group, vec![phone]).await.unwrap();
    assert_eq!(alice.member().group(&group).unwrap().members.len(), 1);
    bob.receive(0).await.unwrap();
    assert_eq!(bob.member().group(&group).unwrap().state, GroupState::Left);
}

#[tokio::test]
async fn stream_of_a_deleted_device_ends_with_an_error() {
    let provider = Provider::start();
    let alice = provider.client("alice", "phone", system_clock()).await;
    let phone = alice.member().client().clone();
    alice.delete_device(&phone).await.unwrap();
    let ended = alice.follow(0, |_, _| true).await.unwrap_err();
    assert!(matches!(ended, ClientError::Refused(_)), "{ended}");
}

#[tokio::test]
async fn stream_of_a_client_whose_clock_is_off_sets_it_right() {
    let provider = Provider::start();
    let now = system_clock();
    let alice = provider.client("alice", "phone", now.clone()).await;
    let bob = provider.client("bob", "phone", now.clone()).await;
    connected(&alice, &bob).await;
    let group = group_of(&alice, &bob).await;
    alice.send_text(&group, "in time").await.unwrap();
    let path = provider.home(&user_uri("bob"), "phone");
    drop(bob);
    let late: Clock = Arc::new(move || Timestamp(now().0 - 3 * 3_600_000));
    let bob = Client::open(Member::open(Home::open(&path).unwrap()).unwrap(), late).unwrap();
    let is_it = |event: &Event| matches!(event, Event::Message { text: Some(text), .. } if text == "in time");
    bob.follow(0, |_, event| !is_it(event)).await.unwrap();
}

#[tokio::test]
async fn wrong_certificate_does_not_pass() {
    let (provider, other) = (Provider::start(), Provider::start());
    let mut server = provider.server();
    server.certificate = other.server().certificate;
    let registration = Registration {
        client: ClientUri::of(&user_uri("alice"), "phone").unwrap(),
        server,
        token: Vec::new(),
        authorization: None,
    };
    let path = provider.home(&user_uri("alice"), "phone");
    let home = Home::open(&path).unwrap();
    let error = Client::register(home, registration, system_clock()).await.unwrap_err();
    assert!(!error.passes() && error.to_string().contains("--ca"), "{error}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
