//! The client library against a provider with listeners, a store and TLS: what only both together show. What a
//! client makes of its state alone is tested beside it.

use std::{path::Path, sync::Arc};

use mimid::{
    client::{
        Client, ClientError, Clock, Outcome, Registration, Server,
        core::{Event, GroupState, Home, Member, SUITES},
        system_clock,
    },
    server::{self, Config, Running},
    wire::{
        extensions::KeyPackageClass,
        ids::{ClientUri, GroupId, Timestamp, UserUri},
    },
};

struct Provider {
    running: Option<Running>,
    folder: tempfile::TempDir,
}

impl Provider {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let running = server::start(config(folder.path(), "127.0.0.1:0")).unwrap();
        Self { running: Some(running), folder }
    }

    fn server(&self) -> Server {
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

    async fn client(&self, user: &str, device: &str, clock: Clock) -> Client {
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

    fn home(&self, user: &UserUri, device: &str) -> std::path::PathBuf {
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
    let data = folder.join("data");
    let settings = [
        ("MIMID_DATA_DIR", data.to_str().unwrap()),
        ("MIMID_CLIENT__LISTEN", listen),
        ("MIMID_OPS__LISTEN", "127.0.0.1:0"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Config::load(None, settings.to_vec()).unwrap()
}

fn user_uri(name: &str) -> UserUri {
    UserUri::new(format!("mimi://localhost/u/{name}")).unwrap()
}

async fn connected(one: &Client, other: &Client) {
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

fn texts(client: &Client) -> Vec<String> {
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
    let alice = provider.client("alice", "phone", system_clock()).await.with_attempts(1);
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
