//! A backup of a provider that runs, and what becomes of its clients when it goes back to it: each provider a process of its own.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mimid::{
    client::{
        Client, ClientError, Outcome, Registration, Server,
        core::{Event, GroupState, Home, SUITES},
        system_clock,
    },
    wire::{
        ds::DsError,
        ids::{ClientUri, GroupId, UserUri},
    },
};
use serde_json::Value;

use crate::{
    damage::{a_copy_without_its_log_is_named, every_damage_is_named},
    providers::{PATIENCE, Player, Providers, connect},
    serve::{MIMID, Serve},
};

struct Provider {
    process: Serve,
    folder: tempfile::TempDir,
}

impl Provider {
    fn start() -> Self {
        Self::start_on("sled")
    }

    fn start_on(engine: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { process: Serve::start_on(engine, folder.path()), folder }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn client(&self, user: &str) -> Client {
        let endpoints = &self.process.endpoints;
        let certificate = std::fs::read_to_string(endpoints.certificate.as_ref().unwrap()).unwrap();
        let registration = Registration {
            client: ClientUri::of(&user_uri(user), "phone").unwrap(),
            server: Server { url: endpoints.client.clone(), certificate: Some(certificate) },
            token: Vec::new(),
            authorization: None,
        };
        let home = Home::open(&self.place(&format!("{user}.sqlite"))).unwrap();
        let client = Client::register(home, registration, system_clock()).await.unwrap();
        client.with_patience(PATIENCE)
    }

    fn backup(&self, name: &str) -> PathBuf {
        let to = self.place(name);
        done(mimid(&["backup", "--data-dir", path(&self.process.data_dir()), path(&to)]));
        to
    }

    /// kill -9; then the backup in the place of what there was.
    fn go_back_to(&mut self, backup: &Path, flags: &[&str]) -> String {
        self.process.kill();
        let data = self.process.data_dir();
        std::fs::rename(&data, self.place("old")).unwrap();
        let told = done(mimid(&[&["restore", path(backup), path(&data)], flags].concat()));
        done(mimid(&["verify", path(&data)]));
        self.process.start_again();
        told
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mimid(args: &[&str]) -> Output {
    Command::new(MIMID)
        .args(args)
        .env_remove("MIMID_CONFIG")
        .env_remove("MIMID_DATA_DIR")
        .output()
        .unwrap()
}

fn done(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
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

fn events(client: &Client) -> Vec<Event> {
    client.member().events(0, usize::MAX).unwrap().into_iter().map(|(_, event)| event).collect()
}

fn texts(client: &Client) -> Vec<String> {
    let text = |event| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    events(client).into_iter().filter_map(text).collect()
}

/// How often each text came, so that none is taken for two.
fn counted(client: &Client) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    texts(client).into_iter().for_each(|text| *counted.entry(text).or_default() += 1);
    counted
}

/// Nobody does anything but the ordinary receive loop until all are in the same epoch of `group`.
async fn settled(clients: &[&Client], group: &GroupId) {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        for client in clients {
            // what does not work now is tried again with the next round
            let _ = client.receive(0).await;
        }
        let views: Vec<_> = clients.iter().map(|it| it.member().group(group).unwrap()).collect();
        let active = views.iter().all(|view| view.state == GroupState::Active);
        let epochs: BTreeSet<_> = views.iter().map(|view| view.authenticator.clone()).collect();
        if active && epochs.len() == 1 {
            return;
        }
        assert!(
            Instant::now() < until,
            "{:?}",
            views.iter().map(|view| (view.state, view.epoch)).collect::<Vec<_>>()
        );
    }
}

/// Each says something that all the others get, once.
async fn all_talk(clients: &[&Client], group: &GroupId, about: &str) {
    for client in clients {
        let text = format!("{about} from {}", client.member().client().user().name());
        let said = client.send_text(group, &text).await.unwrap();
        assert!(matches!(said, Outcome::Accepted(_)), "{said:?}");
        for other in clients.iter().filter(|it| !std::ptr::eq(**it, *client)) {
            other.receive(0).await.unwrap();
            assert_eq!(counted(other).get(&text), Some(&1), "{text}");
        }
    }
}

fn is_lost(event: &Event) -> bool {
    matches!(event, Event::Lost { .. })
}

#[tokio::test]
async fn a_provider_restored_where_nothing_came_since_goes_on_as_if_nothing_had_happened() {
    let mut provider = Provider::start();
    let (alice, bob) = (provider.client("alice").await, provider.client("bob").await);
    connected(&alice, &bob).await;
    let group = alice.create_group("team", SUITES[0], None).await.unwrap();
    alice.add_users(&group, &[user_uri("bob")]).await.unwrap();
    bob.receive(0).await.unwrap();
    all_talk(&[&alice, &bob], &group, "before").await;
    // one that waits for who gets it
    alice.send_text(&group, "in the queue").await.unwrap();
    let backup = provider.backup("backup");
    let looked = done(mimid(&["verify", "--json", path(&backup)]));
    let looked: Value = serde_json::from_str(looked.lines().last().unwrap()).unwrap();
    assert_eq!((&looked["whole"], &looked["problems"]), (&Value::from(true), &Value::from(0)));
    assert_eq!(looked["records"]["group"], 2);
    assert_eq!(looked["backup"]["live"], true);
    let running = refused(mimid(&["verify", path(&provider.process.data_dir())]));
    assert!(running.contains("runs: make a backup"), "{running}");

    let told = provider.go_back_to(&backup, &["--nothing-since"]);
    assert!(told.contains("it is whole"), "{told}");
    bob.receive(0).await.unwrap();
    assert_eq!(counted(&bob).get("in the queue"), Some(&1));
    all_talk(&[&alice, &bob], &group, "after").await;
    for client in [&alice, &bob] {
        assert!(!events(client).iter().any(is_lost), "{:?}", events(client));
    }
    // offline: of a provider that is stopped
    provider.process.kill();
    let stopped = provider.backup("stopped");
    done(mimid(&["verify", path(&stopped)]));
    let again = refused(mimid(&[
        "backup",
        "--data-dir",
        path(&provider.process.data_dir()),
        path(&stopped),
    ]));
    assert!(again.contains("is there already"), "{again}");
    let not_empty = refused(mimid(&["restore", path(&stopped), path(&provider.place("old"))]));
    assert!(not_empty.contains("holds something already"), "{not_empty}");
    // its store in the other engine: the same provider to its clients
    let (data, copied) = (provider.process.data_dir(), provider.place("copied"));
    let told = done(mimid(&["store", "copy", path(&data), path(&copied)]));
    assert!(told.contains("fjall"), "{told}");
    done(mimid(&["verify", path(&copied)]));
    std::fs::rename(&data, provider.place("in sled")).unwrap();
    std::fs::rename(&copied, &data).unwrap();
    provider.process.start_again_on("fjall");
    all_talk(&[&alice, &bob], &group, "in the other engine").await;
    provider.process.kill();
    done(mimid(&["verify", path(&data)]));
    for client in [&alice, &bob] {
        assert!(!events(client).iter().any(is_lost), "{:?}", events(client));
    }
    // and restored where it is, with the other engine
    let other = provider.place("other");
    let told = done(mimid(&["restore", path(&stopped), path(&other), "--engine", "fjall"]));
    assert!(told.contains("fjall"), "{told}");
    done(mimid(&["verify", path(&other)]));
    let keys = |folder: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(folder.join("keys"))
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(keys(&other), keys(&provider.process.data_dir()));
}

#[test]
fn a_backup_is_for_who_can_read_the_data_folder_and_leaves_keys_out_when_told() {
    let provider = Provider::start();
    let ops = provider.process.endpoints.ops.trim_start_matches("http://").to_owned();
    let ask = |key: &str| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(&ops).unwrap();
        let request = format!(
            "GET /v1/backup HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned()
    };
    assert!(ask("").contains("403"), "{}", ask(""));
    assert!(ask(&"0".repeat(64)).contains("403"));
    let key = provider.process.data_dir().join("backup.key");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(ask(&std::fs::read_to_string(&key).unwrap()).contains("200"));
    let to = provider.place("bare");
    let data = provider.process.data_dir();
    done(mimid(&["backup", "--without-keys", "--data-dir", path(&data), path(&to)]));
    let restored = provider.place("restored");
    let told = done(mimid(&["restore", path(&to), path(&restored)]));
    assert!(told.contains("has no keys"), "{told}");
    assert!(!restored.join("keys").exists() && restored.join("domain").exists());
}

/// What a client was answered, by group and text.
type Answered = RefCell<Vec<(GroupId, String)>>;

/// Talks, and changes its keys now and then, until told to stop.
async fn load(client: &Client, groups: &[GroupId], answered: &Answered, stop: &Cell<bool>) {
    let name = client.member().client().user().name().to_owned();
    for round in 0.. {
        for group in groups {
            if stop.get() {
                return;
            }
            let text = format!("{name} {round} in {group}");
            if let Ok(Outcome::Accepted(_)) = client.send_text(group, &text).await {
                answered.borrow_mut().push((group.clone(), text));
            }
            if round % 4 == 3 {
                // another may have been first, again and again
                let _ = client.update(group, false).await;
            }
            let _ = client.receive(0).await;
        }
    }
}

#[tokio::test]
async fn a_provider_that_goes_back_under_load_says_what_is_lost_and_all_its_clients_go_on() {
    goes_back_under_load("sled").await;
}

#[tokio::test]
async fn a_provider_on_the_other_engine_goes_back_under_load_and_all_its_clients_go_on() {
    goes_back_under_load("fjall").await;
}

async fn goes_back_under_load(engine: &'static str) {
    let mut provider = Provider::start_on(engine);
    let names = ["alice", "bob", "carol"];
    let clients = join_all(names.map(|name| provider.client(name))).await;
    let [alice, bob, carol] = [&clients[0], &clients[1], &clients[2]];
    // one that is away: it gets everything later
    let (late, dave) = (provider.client("late").await, provider.client("dave").await);
    for other in [bob, carol, &late, &dave] {
        connected(alice, other).await;
    }
    let mut groups = Vec::new();
    for name in ["one", "two"] {
        let group = alice.create_group(name, SUITES[0], None).await.unwrap();
        let others = ["bob", "carol", "late"].map(user_uri);
        alice.add_users(&group, &others).await.unwrap();
        groups.push(group);
    }
    join_all([bob, carol, &late].map(|it| it.receive(0))).await;
    settled(&[alice, bob, carol, &late], &groups[0]).await;
    settled(&[alice, bob, carol, &late], &groups[1]).await;

    let (answered, stop) = (Answered::default(), Cell::new(false));
    let enough = async |more: usize| {
        let there = answered.borrow().len();
        while answered.borrow().len() < there + more {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (data, to) = (provider.process.data_dir(), provider.place("backup"));
    let (before, behind) = (Cell::new(0), Cell::new(0));
    let scene = async {
        enough(20).await;
        before.set(answered.borrow().len());
        let args = [path(&data).to_owned(), path(&to).to_owned()];
        let made = tokio::task::spawn_blocking(move || {
            mimid(&["backup", "--data-dir", &args[0], &args[1]])
        });
        done(made.await.unwrap());
        behind.set(answered.borrow().len());
        // the load goes on, and the group with it
        enough(20).await;
        stop.set(true);
    };
    let loads = clients.iter().map(|client| load(client, &groups, &answered, &stop));
    tokio::join!(scene, join_all(loads));
    // behind the backup: a member more, a member less, a group and a user that the restored provider knows nothing of
    let dave_added = alice.add_users(&groups[0], &[user_uri("dave")]).await.unwrap();
    assert!(matches!(dave_added, Outcome::Accepted(_)));
    dave.receive(0).await.unwrap();
    assert_eq!(dave.member().group(&groups[0]).unwrap().state, GroupState::Active);
    alice.remove_users(&groups[1], vec![user_uri("carol")]).await.unwrap();
    let forgotten = alice.create_group("forgotten", SUITES[0], None).await.unwrap();
    let eve = provider.client("eve").await;
    join_all([alice, bob, carol].map(|it| it.receive(0))).await;
    assert_eq!(carol.member().group(&groups[1]).unwrap().state, GroupState::Left);
    let seen: Vec<_> = [alice, bob, carol].map(counted).into();
    let answered = answered.into_inner();
    let (before, behind) = (before.get(), behind.get());
    assert!(before >= 20 && behind < answered.len(), "{before} {behind} {}", answered.len());

    done(mimid(&["verify", path(&to)]));
    provider.go_back_to(&to, &[]);
    // who speaks first has not heard of it yet: its message must not go to an epoch that only looks like its own
    let hasty = alice.send_text(&groups[0], "hasty").await;
    settled(&[alice, bob, carol, &late], &groups[0]).await;
    settled(&[alice, bob, &late], &groups[1]).await;
    all_talk(&[alice, bob, carol, &late], &groups[0], "after, in one,").await;
    all_talk(&[alice, bob, &late], &groups[1], "after, in two,").await;

    for (client, seen) in [alice, bob, carol].iter().zip(&seen) {
        let said = events(client).iter().filter(|it| is_lost(it)).count();
        assert!(said >= 1, "what was lost is said");
        let now = counted(client);
        assert!(now.values().all(|times| *times == 1), "nothing comes twice: {now:?}");
        assert!(seen.keys().all(|text| now.contains_key(text)));
        assert!(!events(client).iter().any(|it| matches!(it, Event::Unreadable { .. })));
    }
    // what was answered before the backup began is there for who was away; what it gets behind that was answered before it ended
    let got = counted(&late);
    for (_, text) in &answered[..before] {
        assert_eq!(got.get(text), Some(&1), "{text} was answered before the backup");
    }
    // everybody has one request at a time: what is answered first behind the end may have been taken before it
    let mut under_way = BTreeSet::new();
    for (_, text) in &answered[behind..] {
        if !under_way.insert(text.split(' ').next()) {
            assert_eq!(got.get(text), None, "{text} was asked for behind the backup");
        }
    }
    assert!(events(&late).iter().any(is_lost));
    if hasty.is_ok() {
        for other in [bob, carol, &late] {
            assert_eq!(counted(other).get("hasty"), Some(&1), "it was answered");
        }
    }

    // who was removed behind the backup is in again, and everyone is told
    let told = |client: &Client| {
        events(client).iter().any(|event| {
            matches!(event, Event::Changed { by: None, added, .. }
                if added.iter().any(|it| it.user() == user_uri("carol")))
        })
    };
    assert!(told(alice) && told(bob), "carol is back: {:?}", events(alice));
    // who was added is not, knows it, and can be added again
    dave.receive(0).await.unwrap();
    assert_eq!(dave.member().group(&groups[0]).unwrap().state, GroupState::Left);
    alice.add_users(&groups[0], &[user_uri("dave")]).await.unwrap();
    dave.receive(0).await.unwrap();
    settled(&[alice, bob, carol, &late, &dave], &groups[0]).await;
    all_talk(&[alice, &dave], &groups[0], "again").await;
    // the group that it never heard of
    assert_ne!(alice.member().group(&forgotten).unwrap().state, GroupState::Active);
    // and the user
    let error = eve.receive(0).await.unwrap_err();
    let ClientError::Refused(refusal) = &error else { panic!("{error}") };
    assert!(matches!(refusal.0, DsError::Unauthenticated { .. }), "{error}");
    provider.process.kill();
    done(mimid(&["verify", path(&provider.process.data_dir())]));
    every_damage_is_named(
        &to,
        &[0x10, 0x11, 0x12, 0x21, 0x22, 0x23, 0x24, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0xf0],
    );
}

/// A hub `a` and a guest `b`; the one that goes back is `victim`.
async fn one_of_two_goes_back(victim: usize) {
    let providers = Providers::start(&["a.example", "b.example"], 7).await;
    let alice = providers.client("alice@a.example/phone").await;
    let anna = providers.client("anna@a.example/phone").await;
    let bob = providers.client("bob@b.example/phone").await;
    let ben = providers.client("ben@b.example/phone").await;
    for other in [&anna, &bob, &ben] {
        connect(&alice, other).await;
    }
    let group = alice.client.create_group("both", SUITES[0], None).await.unwrap();
    let others = [&anna, &bob].map(|it| it.user.clone());
    alice.client.add_users(&group, &others).await.unwrap();
    let members = [&alice, &anna, &bob];
    for member in [&anna, &bob] {
        member.until_in(&group).await;
    }
    let say_all = async |members: &[&Player], about: &str| {
        for member in members {
            let text = format!("{about} by {}", member.user.name());
            member.client.send_text(&group, &text).await.unwrap();
            for other in members.iter().filter(|it| !std::ptr::eq(**it, *member)) {
                other.until_hears(&group, &text).await;
                let times = other.said(&group).iter().filter(|(_, it)| *it == text).count();
                assert_eq!(times, 1, "{text}");
            }
        }
    };
    say_all(&members, "before").await;
    let provider = &providers.all[victim];
    let backup = provider.data().with_file_name("backup");
    done(mimid(&["backup", "--data-dir", path(&provider.data()), path(&backup)]));
    // behind the backup: messages, other epochs, and a member that the one that goes back knows nothing of
    for member in members {
        member.client.update(&group, false).await.unwrap();
        say_all(&members, &format!("behind, when {} had new keys,", member.user.name())).await;
    }
    alice.client.add_users(&group, std::slice::from_ref(&ben.user)).await.unwrap();
    ben.until_in(&group).await;
    say_all(&[&alice, &ben, &bob], "behind, with ben,").await;

    provider.kill();
    std::fs::rename(provider.data(), provider.data().with_file_name("old")).unwrap();
    done(mimid(&["restore", path(&backup), path(&provider.data())]));
    provider.start().await;
    let players = [&alice, &anna, &bob, &ben];
    let until = Instant::now() + PATIENCE;
    loop {
        for player in players {
            // what does not work now is tried again with the next round
            let _ = player.client.receive(200).await;
        }
        let views = players.map(|it| it.view(&group));
        let active: Vec<_> = views.iter().filter(|it| it.state == GroupState::Active).collect();
        let epochs: BTreeSet<_> = active.iter().map(|view| view.authenticator.clone()).collect();
        // a hub that went back does not know of ben; a guest that did is told of him by the hub
        let expected = if victim == 0 { 3 } else { 4 };
        let is_out = victim != 0 || views[3].state == GroupState::Left;
        if active.len() == expected && epochs.len() == 1 && is_out {
            break;
        }
        let states: Vec<_> = views.iter().map(|it| (it.state, it.epoch)).collect();
        assert!(Instant::now() < until, "{states:?} {}", providers.logs());
    }
    let now: &[&Player] = if victim == 0 { &members } else { &players };
    say_all(now, "after").await;
    // whoever was at the one that went back was told
    let told = if victim == 0 { [&alice, &anna] } else { [&bob, &ben] };
    for player in told {
        assert!(player.events().iter().any(is_lost), "{}", player.uri);
    }
    if victim == 1 {
        a_copy_without_its_log_is_named(&backup);
    }
    for provider in &providers.all {
        let to = provider.data().with_file_name("in the end");
        done(mimid(&["backup", "--data-dir", path(&provider.data()), path(&to)]));
        done(mimid(&["verify", path(&to)]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_goes_back_is_a_hub_again_to_its_guest_and_to_all_members() {
    one_of_two_goes_back(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_goes_back_gets_what_its_clients_lack_from_the_hub() {
    one_of_two_goes_back(1).await;
}
