//! Faults in the store of the real binary: each write and each flush of a scene in turn fails, is torn or is slow, below the
//! engine and under real clients over TLS.
//!
//! `tests/support/faults.c`, preloaded into the provider's process, is the disk that fails. A scene is played once to count its
//! calls, then once per call that is to go wrong: a sample of them, by a seed that is printed (TEST_SEED repeats it). `TEST_FAULTS=all`
//! takes every call, `TEST_FAULTS=N` that many of each engine and way to fail.

use std::{
    fs,
    io::BufRead as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Client, ClientError, Registration, Server,
        core::{Event, Home, Member, SUITES},
        system_clock,
    },
    server::Endpoints,
    wire::ids::{ClientUri, GroupId, UserUri},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom as _};

use crate::{providers::free_address, serve::MIMID};

/// How long something may take that is waited for. Nothing is asserted of how long it takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn whatever_write_or_flush_fails_on_sled_nothing_that_was_answered_is_lost() {
    each_call_fails("sled").await;
}

#[tokio::test]
async fn whatever_write_or_flush_fails_on_fjall_nothing_that_was_answered_is_lost() {
    each_call_fails("fjall").await;
}

/// Slow is not broken: answers wait for their flush, nothing is read-only, and when the disk is well all is as before.
async fn flushes_are_slow(engine: &'static str) {
    const SLOW: Duration = Duration::from_millis(400);
    let rig = Rig::new(engine).await;
    let at = rig.copy();
    let mut node = rig.start(at.path()).await;
    let mut scene = Scene::open(at.path(), &rig.group);
    // the first request may be answered by what was durable before
    scene.sends(0, "alice at first").await;
    node.plan("flush", 1, 0, "slow", SLOW.as_millis() as u64);
    let started = Instant::now();
    let (alice, bob, carol) = (&scene.clients[0], &scene.clients[1], &scene.clients[2]);
    let (sent, said, read) = tokio::join!(
        timely(alice.send_text(&rig.group, "alice slowly"), engine),
        timely(bob.send_text(&rig.group, "bob slowly"), engine),
        timely(carol.receive(0), engine),
    );
    assert!(started.elapsed() >= SLOW, "answered before it was durable");
    assert!(sent.is_ok() && said.is_ok(), "{sent:?} {said:?}\n{}", node.log());
    assert!(read.is_ok(), "{read:?}\n{}", node.log());
    assert!(node.trace().contains(" slow "), "no flush was slow");
    assert!(!node.is_read_only().await, "{}", node.log());
    assert_eq!(node.ops("/readyz").await.0, 200);
    node.plan("none", 0, 1, "none", 0);
    scene.said = [
        vec!["alice at first".to_owned(), "alice slowly".to_owned()],
        vec!["bob slowly".to_owned()],
    ];
    scene.clients.clear();
    scene.ends_well(engine, &node).await;
}

#[tokio::test]
async fn slow_flushes_on_sled_are_waited_for() {
    flushes_are_slow("sled").await;
}

#[tokio::test]
async fn slow_flushes_on_fjall_are_waited_for() {
    flushes_are_slow("fjall").await;
}

/// How a call goes wrong.
const WAYS: [(&str, &str); 5] = [
    ("write", "eio"),
    ("write", "enospc"),
    ("write", "torn"),
    ("flush", "eio"),
    ("flush", "enospc"),
];

async fn each_call_fails(engine: &'static str) {
    let (seed, mut random) = seeded();
    let rig = Rig::new(engine).await;
    let asked = std::env::var("TEST_FAULTS").ok();
    let (mut met, mut tried) = (0, 0);
    let (writes, flushes) = (rig.count("write").await, rig.count("flush").await);
    for (kind, how) in WAYS {
        let calls = if kind == "write" { writes } else { flushes };
        assert!(calls > 0, "the scene makes no {kind} on {engine}");
        // what the engine does at a time of its own comes in another order in each run, and some is behind the scene
        let mut all: Vec<u64> = (1..=calls + 2).collect();
        all.shuffle(&mut random);
        let some = match asked.as_deref() {
            Some("all") => all.len(),
            Some(number) => number.parse().unwrap(),
            None => 1,
        };
        for nth in all.into_iter().take(some) {
            let when = format!("{engine}, TEST_SEED={seed}: {kind} {nth} of {calls}: {how}");
            met += u64::from(rig.fails(kind, nth, how, random.random(), &when).await);
            tried += 1;
        }
    }
    println!("{engine}, TEST_SEED={seed}: {tried} scenes, a fault in {met}");
    assert!(met * 2 > tried, "of {tried} faults only {met} were met");
}

fn seeded() -> (u64, StdRng) {
    let seed =
        std::env::var("TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    (seed, StdRng::seed_from_u64(seed))
}

/// A provider's data and its clients' homes, as every scene finds them.
struct Rig {
    engine: &'static str,
    folder: tempfile::TempDir,
    address: SocketAddr,
    group: GroupId,
    /// A group of Alice and Carol, which no scene touches.
    aside: GroupId,
}

const USERS: [&str; 3] = ["alice", "bob", "carol"];

impl Rig {
    /// Alice, Bob and Carol in a group; Carol has not read what Alice has told her aside.
    async fn new(engine: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(LIBRARY);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faults.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        let address = free_address();
        let node = Node::start(engine, &base, address, None).await.unwrap();
        let mut clients = Vec::new();
        for user in USERS {
            clients.push(register(&base, &node.server(), user).await.unwrap());
        }
        let [alice, bob, carol] = &clients[..] else { unreachable!() };
        let mut aside = None;
        for other in [bob, carol] {
            aside = Some(alice.connect(&user_of(other)).await.unwrap());
            other.receive(0).await.unwrap();
            other.accept(&user_of(alice)).await.unwrap();
            alice.receive(0).await.unwrap();
        }
        let group = alice.create_group("team", SUITES[0], None).await.unwrap();
        alice.add_users(&group, &[user_of(bob), user_of(carol)]).await.unwrap();
        for other in [bob, carol] {
            other.receive(0).await.unwrap();
            other.receive(0).await.unwrap();
        }
        let aside = aside.unwrap();
        alice.send_text(&aside, UNREAD).await.unwrap();
        drop(clients);
        node.stop().await;
        Self { engine, folder, address, group, aside }
    }

    /// A copy of it to play a scene in.
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir_in(self.folder.path()).unwrap();
        copy_folder(&self.folder.path().join("base"), copy.path());
        fs::remove_file(copy.path().join(LOG)).unwrap();
        copy
    }

    async fn start(&self, at: &Path) -> Node {
        let library = self.folder.path().join(LIBRARY);
        Node::start(self.engine, at, self.address, Some(&library)).await.unwrap()
    }

    /// How many calls of `kind` the scene makes.
    async fn count(&self, kind: &str) -> u64 {
        let at = self.copy();
        let mut node = self.start(at.path()).await;
        node.plan(kind, 0, 1, "none", 0);
        let mut scene = Scene::open(at.path(), &self.group);
        scene.play(&node).await;
        assert!(scene.unanswered.is_empty(), "{:?}", scene.unanswered);
        let calls = node.trace().lines().count() as u64;
        drop(scene);
        node.stop().await;
        calls
    }

    /// Plays the scene while the `nth` call goes wrong, then starts the node on a disk that is well. Whether it was met.
    async fn fails(&self, kind: &str, nth: u64, how: &str, kill: bool, when: &str) -> bool {
        println!("{when}");
        let at = self.copy();
        let mut node = self.start(at.path()).await;
        node.plan(kind, nth, 1, how, 0);
        let mut scene = Scene::open(at.path(), &self.group);
        scene.play(&node).await;
        let met = node.trace().lines().any(|line| line.split(' ').nth(3) == Some(how));
        node.plan("none", 0, 1, "none", 0);
        if node.is_read_only().await {
            assert!(met, "{when}: read-only without a fault\n{}", node.log());
            node.says_that_it_is_read_only(when).await;
            // what is not in doubt is read as before
            let carol = &scene.clients[2];
            let read = timely(carol.receive(0), when).await;
            let heard = texts(carol, &self.aside).iter().any(|it| it == UNREAD);
            // sled reads nothing from the disk any more after a write of its own has failed
            let refused = self.engine == "sled" && read.as_ref().is_err_and(ClientError::passes);
            assert!(heard || refused, "{when}: the bystander reads {read:?}\n{}", node.log());
        }
        assert!(node.is_alive(), "{when}: it ended\n{}", node.log());
        // it waits for connections that are open
        scene.clients.clear();
        scene.dave = scene.dave.is_some().then(|| reopen(at.path(), "dave"));
        if kill {
            node.kill();
        } else {
            node.stop().await;
        }
        let node = Node::start(self.engine, at.path(), self.address, None).await;
        let node = node.unwrap_or_else(|why| panic!("{when}: it does not start again: {why}"));
        scene.ends_well(when, &node).await;
        drop(scene);
        node.stop().await;
        met
    }
}

const LIBRARY: &str = "faults.so";
const UNREAD: &str = "not read yet";

/// What real clients do while the disk fails.
struct Scene {
    clients: Vec<Client>,
    group: GroupId,
    /// What was said, in order, by Alice and by Bob.
    said: [Vec<String>; 2],
    /// Of that, what was answered.
    answered: Vec<String>,
    /// The rest, and why.
    unanswered: Vec<String>,
    folder: PathBuf,
    dave: Option<Client>,
}

impl Scene {
    fn open(folder: &Path, group: &GroupId) -> Self {
        let clients = USERS.map(|user| {
            let home = Home::open(&home(folder, user)).unwrap();
            let client = Client::open(Member::open(home).unwrap(), system_clock()).unwrap();
            client.with_patience(Duration::ZERO)
        });
        let (clients, group, folder) = (clients.into(), group.clone(), folder.to_owned());
        let (said, answered, unanswered) = Default::default();
        Self { clients, group, said, answered, unanswered, folder, dave: None }
    }

    /// Messages, a commit, an account, KeyPackages, queues that are read and acknowledged.
    async fn play(&mut self, node: &Node) {
        for round in 0..2 {
            for who in 0..2 {
                self.sends(who, &format!("{} {round}", USERS[who])).await;
                self.receives(1 - who).await;
            }
        }
        // who registers tries for half a minute, which a node that is read-only says in vain
        let read_only = async {
            while !node.is_read_only().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let server = node.server();
        tokio::select! {
            biased;
            () = read_only => self.unanswered.push("dave registers".to_owned()),
            registered = timely(register(&self.folder, &server, "dave"), "dave") => {
                match registered {
                    Ok(dave) => self.dave = Some(dave),
                    Err(error) => self.unanswered.push(passing(&error, "dave registers")),
                }
            }
        }
        if self.unanswered.is_empty() {
            let updated = timely(self.clients[0].update(&self.group, false), "a commit").await;
            if let Err(error) = updated {
                self.unanswered.push(passing(&error, "a commit"));
            }
        }
        self.receives(1).await;
        self.receives(0).await;
    }

    /// After some that have no answer it is enough.
    async fn sends(&mut self, who: usize, text: &str) {
        if self.unanswered.len() > 2 {
            return;
        }
        self.said[who].push(text.to_owned());
        match timely(self.clients[who].send_text(&self.group, text), "a message").await {
            Ok(_) => self.answered.push(text.to_owned()),
            Err(error) => self.unanswered.push(passing(&error, text)),
        }
    }

    async fn receives(&mut self, who: usize) {
        if self.unanswered.len() > 2 {
            return;
        }
        if let Err(error) = timely(self.clients[who].receive(0), "receiving").await {
            self.unanswered.push(passing(&error, "receiving"));
        }
    }

    /// On a disk that is well: all that was answered is there, once and in order, and what was not goes on.
    async fn ends_well(&mut self, when: &str, node: &Node) {
        let failed = |what: &str, error: &dyn std::fmt::Display| -> ! {
            panic!("{when}: {what}: {error}\n{:?}\n{}", self.unanswered, node.log())
        };
        let calm: Vec<Client> = USERS.iter().map(|user| reopen(&self.folder, user)).collect();
        for client in &calm {
            if let Err(error) = timely(client.receive(0), when).await {
                failed("receives again", &error);
            }
            match timely(client.resume(), when).await {
                Ok(refused) if refused.is_empty() => {}
                Ok(refused) => failed("was refused", &format!("{refused:?}")),
                Err(error) => failed("goes on", &error),
            }
        }
        if self.dave.is_none() {
            let dave = timely(register(&self.folder, &node.server(), "dave"), when).await;
            self.dave = Some(dave.unwrap_or_else(|error| failed("dave registers again", &error)));
        }
        let dave = self.dave.as_ref().unwrap();
        timely(dave.receive(0), when).await.unwrap_or_else(|error| failed("dave", &error));
        let last = "after all of it";
        if let Err(error) = timely(calm[0].send_text(&self.group, last), when).await {
            failed("sends again", &error);
        }
        for client in &calm {
            for _ in 0..2 {
                if let Err(error) = timely(client.receive(0), when).await {
                    failed("receives at last", &error);
                }
            }
        }
        for (who, client) in calm.iter().enumerate() {
            let heard = texts(client, &self.group);
            for (other, said) in self.said.iter().enumerate().filter(|(other, _)| *other != who) {
                let of_them: Vec<_> =
                    heard.iter().filter(|it| it.starts_with(USERS[other])).collect();
                assert_eq!(of_them, said.iter().collect::<Vec<_>>(), "{when}\n{}", node.log());
            }
            let all = self.answered.iter().filter(|it| !it.starts_with(USERS[who]));
            for text in all {
                assert!(heard.contains(text), "{when}: {text:?} was answered and is lost");
            }
            assert!(who == 0 || heard.iter().any(|it| it == last), "{when}: {heard:?}");
            let complaints: Vec<Event> = events(client)
                .into_iter()
                .filter(|event| {
                    matches!(
                        event,
                        Event::Misbehaviour { .. } | Event::Lost { .. } | Event::Unreadable { .. }
                    )
                })
                .collect();
            assert!(complaints.is_empty(), "{when}: {complaints:?}");
        }
        let epochs: Vec<_> = calm.iter().map(|it| epoch(it, &self.group)).collect();
        assert!(epochs.iter().all(|it| *it == epochs[0]), "{when}: {epochs:?}");
    }
}

fn reopen(folder: &Path, user: &str) -> Client {
    let home = Home::open(&home(folder, user)).unwrap();
    Client::open(Member::open(home).unwrap(), system_clock()).unwrap()
}

fn epoch(client: &Client, group: &GroupId) -> String {
    let view = client.member().group(group).unwrap();
    format!("{:?} {:?}", view.epoch, view.authenticator)
}

/// An error that says to come again, which alone is right when the disk fails.
fn passing(error: &ClientError, what: &str) -> String {
    assert!(error.passes(), "{what}: {error:?}");
    format!("{what}: {error}")
}

async fn timely<T>(work: impl Future<Output = T>, when: &str) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{when}: it hangs"))
}

async fn register(folder: &Path, server: &Server, user: &str) -> Result<Client, ClientError> {
    let user = UserUri::new(format!("mimi://localhost/u/{user}")).unwrap();
    let registration = Registration {
        client: ClientUri::of(&user, "phone").unwrap(),
        server: server.clone(),
        token: Vec::new(),
        authorization: None,
    };
    let home = Home::open(&home(folder, user.name())).unwrap();
    Client::register(home, registration, system_clock()).await
}

fn home(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{user}.sqlite"))
}

fn user_of(client: &Client) -> UserUri {
    client.member().client().user()
}

fn events(client: &Client) -> Vec<Event> {
    let events = client.member().events(0, usize::MAX).unwrap();
    events.into_iter().map(|(_, event)| event).collect()
}

fn texts(client: &Client, wanted: &GroupId) -> Vec<String> {
    let text = |event| match event {
        Event::Message { group, text, .. } if group == *wanted => text,
        _ => None,
    };
    events(client).into_iter().filter_map(text).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// `mimid serve` on a disk that can be told to fail; it ends with this value.
struct Node {
    child: Child,
    folder: PathBuf,
    endpoints: Endpoints,
    runs: u64,
}

impl Node {
    /// # Errors
    /// What it said when it did not start.
    async fn start(
        engine: &str,
        folder: &Path,
        listen: SocketAddr,
        library: Option<&Path>,
    ) -> Result<Self, String> {
        let log = fs::File::options().create(true).append(true).open(folder.join(LOG)).unwrap();
        let mut serve = Command::new(MIMID);
        serve
            .args(["serve", "--listen", &listen.to_string(), "--ops-listen", "127.0.0.1:0"])
            .current_dir(folder)
            .env_remove("MIMID_CONFIG")
            .env("MIMID_DATA_DIR", folder.join(DATA))
            .env("MIMID_STORE__ENGINE", engine)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        if let Some(library) = library {
            fs::write(folder.join(PLAN), "0").unwrap();
            serve
                .env("LD_PRELOAD", library)
                .env("FAULTS_UNDER", folder.join(DATA).join("store"))
                .env("FAULTS_PLAN", folder.join(PLAN))
                .env("FAULTS_TRACE", folder.join(TRACE));
        }
        let mut child = serve.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let up = tokio::task::spawn_blocking(move || {
            let mut lines = std::io::BufReader::new(out).lines();
            lines.any(|line| line.unwrap().starts_with("Stop it"))
        });
        let up = timely(up, "the start").await.unwrap();
        if !up {
            let status = child.wait().unwrap();
            let log = fs::read_to_string(folder.join(LOG)).unwrap();
            return Err(format!("{status}: {log}"));
        }
        let endpoints = Endpoints::read(&folder.join(DATA)).unwrap();
        Ok(Self { child, folder: folder.to_owned(), endpoints, runs: 0 })
    }

    fn server(&self) -> Server {
        let certificate = fs::read_to_string(self.endpoints.certificate.as_ref().unwrap()).unwrap();
        Server { url: self.endpoints.client.clone(), certificate: Some(certificate) }
    }

    /// From now on the `nth` call of `kind` goes as `how` says, and those behind it, `times` in all.
    fn plan(&mut self, kind: &str, nth: u64, times: u64, how: &str, arg: u64) {
        self.runs += 1;
        let run = self.runs;
        let plan = format!("{run} {kind} {nth} {times} {how} {arg}");
        // at once: it is read at any moment
        fs::write(self.folder.join("plan.new"), plan).unwrap();
        fs::rename(self.folder.join("plan.new"), self.folder.join(PLAN)).unwrap();
    }

    /// What was counted since the last plan.
    fn trace(&self) -> String {
        let run = format!("{} ", self.runs);
        let trace = fs::read_to_string(self.folder.join(TRACE)).unwrap_or_default();
        trace.lines().filter(|line| line.starts_with(&run)).map(|it| format!("{it}\n")).collect()
    }

    fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn whole_log(&self) -> String {
        fs::read_to_string(self.folder.join(LOG)).unwrap()
    }

    async fn ops(&self, path: &str) -> (u16, String) {
        // an error says that the process has one
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let answer = client.get(format!("{}{path}", self.endpoints.ops)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ops("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no metric {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    async fn is_read_only(&self) -> bool {
        self.metric("mimid_store_writable").await == 0.0
    }

    async fn says_that_it_is_read_only(&self, when: &str) {
        let (status, reason) = self.ops("/readyz").await;
        assert_eq!(status, 503, "{when}: {reason}");
        assert!(reason.contains("the store takes no writes"), "{when}: {reason}");
        let log = self.whole_log();
        assert!(log.contains("read-only until it is restarted"), "{when}: {log}");
        assert!(log.contains("check the disk"), "{when}: {log}");
    }

    fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and it ends by itself, with whatever code.
    async fn stop(mut self) {
        let child = &mut self.child;
        let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        let until = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it does not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DATA: &str = "data";
const LOG: &str = "log";
const PLAN: &str = "plan";
const TRACE: &str = "trace";
