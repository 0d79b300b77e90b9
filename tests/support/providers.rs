//! Several providers, each a process of the built binary with its own domain, store, keys and certificate, that know
//! where to find each other; and real clients of theirs.
//!
//! Every provider reaches every other one through a [`Proxy`] of its own, so that a test can disturb any link in
//! either direction. What chance decides comes from one seed.

#![allow(dead_code, reason = "each binary uses a part of it")]

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Authorization, Client, ClientError, Outcome, Registration, Server,
        core::{Event, GroupState, GroupView, Home, SUITES},
        system_clock,
    },
    wire::ids::{ClientUri, Domain, GroupId, UserUri},
};
use rand::Rng;

use super::{proxy::Proxy, unsynced::Unsynced};

const STOP_AT: &str = "stop_at";
const MIMID: &str = env!("CARGO_BIN_EXE_mimid");
/// How long something may take that is waited for. Nothing is asserted of how long it takes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until it is `so`, which may take [`PATIENCE`]; `what` is waited for.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// As [`eventually`], where nothing is async.
pub fn eventually_in_sync(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// How long whoever waits for something lets the machine do other work before it looks again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// One provider.
pub struct Provider {
    pub domain: Domain,
    folder: PathBuf,
    child: Mutex<Option<Child>>,
    client: SocketAddr,
    pub ops: SocketAddr,
    pub federation: SocketAddr,
    settings: String,
    power: OnceLock<Unsynced>,
}

/// Where a provider's federation listener is found by another one.
pub struct Peer {
    pub domain: Domain,
    pub address: SocketAddr,
    /// PEM
    pub root: PathBuf,
}

impl Provider {
    /// Not started yet. `settings` are further lines of its configuration.
    pub fn new(domain: &str, folder: &Path, settings: &str) -> Self {
        let folder = folder.join(domain);
        std::fs::create_dir_all(&folder).unwrap();
        let domain = Domain::new(domain).unwrap();
        certificate(&domain, &folder);
        let [client, ops, federation] = [(); 3].map(|()| free_address());
        let settings = settings.to_owned();
        let (child, power) = (Mutex::default(), OnceLock::new());
        Self { domain, folder, child, client, ops, federation, settings, power }
    }

    /// The certificate of its federation listener.
    pub fn root(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Says where the others are. Takes effect with the next start.
    pub fn configure(&self, peers: &[Peer]) {
        let overrides: String = peers
            .iter()
            .map(|peer| format!("\"{}\" = \"{}\"\n", peer.domain, peer.address))
            .collect();
        let roots: String = peers.iter().map(|peer| format!("{:?}, ", peer.root)).collect();
        let at = |file: &str| self.folder.join(file);
        let config = format!(
            "domain = \"{domain}\"\n\
             data_dir = {data:?}\n\
             [client]\nlisten = \"{client}\"\n\
             [ops]\nlisten = \"{ops}\"\n\
             [federation]\nlisten = \"{federation}\"\n\
             certificate = {certificate:?}\nkey = {key:?}\n\
             roots = [{roots}]\nallow_private_addresses = true\n\
             {settings}\n\
             [federation.overrides]\n{overrides}",
            domain = self.domain,
            data = at("data"),
            client = self.client,
            ops = self.ops,
            federation = self.federation,
            certificate = at(CERTIFICATE),
            key = at(KEY),
            settings = self.settings,
        );
        std::fs::write(at("mimid.toml"), config).unwrap();
    }

    /// Starts the process and waits until it serves. `TEST_MIMID` names another binary: what was before, to measure against.
    pub async fn start(&self) {
        assert!(self.child.lock().unwrap().is_none(), "{} runs already", self.domain);
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let built = std::env::var("TEST_MIMID").unwrap_or_else(|_| MIMID.to_owned());
        let mut process = Command::new(built);
        if let Some(power) = self.power.get() {
            power.load_into(&mut process);
        }
        let child = process
            .args(["serve", "--config"])
            .arg(self.folder.join("mimid.toml"))
            .env_remove("MIMID_CONFIG")
            .env("TEST_STOP_AT_FILE", self.folder.join(STOP_AT))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        *self.child.lock().unwrap() = Some(child);
        let endpoints = self.folder.join("data/endpoints.json");
        let deadline = Instant::now() + PATIENCE;
        loop {
            // the file of a process that was killed is still there
            let written = std::fs::read_to_string(&endpoints).unwrap_or_default();
            if written.contains(&format!("\"pid\": {pid}")) {
                return;
            }
            let ended = self.child.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                panic!("{} ended at once ({status}):\n{}", self.domain, self.log_tail());
            }
            assert!(Instant::now() < deadline, "{} does not start", self.domain);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Of the process that runs.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().as_ref().unwrap().id()
    }

    /// What its process has computed up to now, by the kernel's count.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // behind the name, which may hold anything: state is the third field, utime and stime the 14th and 15th
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2).map(|it| it.parse::<u64>().unwrap());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// From its next start on its machine loses its power whenever it is killed, and with that all that is not synced.
    pub fn lose_power_when_killed(&self) {
        let beside = self.folder.join("power");
        assert!(self.power.set(Unsynced::new(&self.data(), &beside, false)).is_ok());
    }

    /// SIGKILL, to this process and no other.
    pub fn kill(&self) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        match self.power.get() {
            Some(power) => {
                power.cut().unwrap();
                child.wait().unwrap();
                power.power_on();
                power.forget();
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    /// Ends the process as an operator does, and waits until it has gone.
    pub async fn stop(&self) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        let until = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "{} does not stop", self.domain);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has the process stand still at a step of a group's move, when it comes there; `step 2`: the second time that it does.
    pub fn stop_at(&self, step: &str) {
        std::fs::write(self.folder.join(STOP_AT), step).unwrap();
    }

    /// Whether it stands there.
    pub fn has_stopped(&self) -> bool {
        let told = std::fs::read_to_string(self.folder.join(STOP_AT)).unwrap_or_default();
        told.contains("stopped")
    }

    pub fn go_on(&self) {
        let _ = std::fs::remove_file(self.folder.join(STOP_AT));
    }

    /// Whether no group is on its way to or from it.
    pub async fn moves_nothing(&self) -> bool {
        self.ops("/v1/migrations").await == "{\"departures\":[],\"arrivals\":[]}"
    }

    /// What its ops listener answers.
    pub async fn ops(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.ops);
        // an error says that the process has one
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(url).send().await.unwrap().text().await.unwrap()
    }

    pub async fn ops_post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let url = format!("http://{}{path}", self.ops);
        // an error says that the process has one
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(url).header("content-type", "application/octet-stream");
        let answer = answer.body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Where it keeps everything.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Where its store is.
    pub fn store(&self) -> PathBuf {
        self.folder.join("data/store")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Panics that are in its log, and what it calls a bug.
    pub fn panics(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let is_one = |line: &&str| line.contains("panicked at");
        log.lines().filter(is_one).map(|line| format!("{}: {line}", self.domain)).collect()
    }

    /// All lines of its log.
    pub fn log_lines(&self) -> impl Iterator<Item = String> + use<> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn server(&self) -> Server {
        let certificate = std::fs::read_to_string(self.folder.join("data/certificate.pem"));
        Server { url: format!("https://{}", self.client), certificate: Some(certificate.unwrap()) }
    }

    /// The value of a metric, summed over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "").await
    }

    /// The same of those that have `label`, as in `outcome="ok"`.
    pub async fn metric_with(&self, name: &str, label: &str) -> f64 {
        let text = self.ops("/metrics").await;
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Settings with which no move is given up for time, however slow the machine is.
pub const UNHURRIED: &str = "[migration]\nfreeze_timeout = \"1h\"\nresponse_lifetime = \"1h\"";

/// Providers that federate with each other, each pair over two proxies.
pub struct Providers {
    pub all: Vec<Provider>,
    /// By (from, to): the way that requests of `from` to `to` take.
    pub links: BTreeMap<(usize, usize), Proxy>,
    folder: tempfile::TempDir,
}

impl Providers {
    /// Starts providers of these domains.
    pub async fn start(domains: &[&str], seed: u64) -> Self {
        Self::start_with(domains, seed, "", &[]).await
    }

    /// As [`Self::start`], with further settings, and with peers that are no processes of ours.
    pub async fn start_with(domains: &[&str], seed: u64, settings: &str, more: &[Peer]) -> Self {
        let each: Vec<(&str, &str)> = domains.iter().map(|domain| (*domain, settings)).collect();
        Self::start_each(&each, seed, more).await
    }

    /// As [`Self::start_with`], each with settings of its own.
    pub async fn start_each(each: &[(&str, &str)], seed: u64, more: &[Peer]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Provider> = each
            .iter()
            .map(|(domain, settings)| Provider::new(domain, folder.path(), settings))
            .collect();
        let mut links = BTreeMap::new();
        for from in 0..all.len() {
            for to in (0..all.len()).filter(|to| *to != from) {
                let seed = seed.wrapping_mul(31).wrapping_add((from * 16 + to) as u64);
                links.insert((from, to), Proxy::start(all[to].federation, seed).await);
            }
        }
        for (at, provider) in all.iter().enumerate() {
            let others = (0..all.len()).filter(|to| *to != at).map(|to| Peer {
                domain: all[to].domain.clone(),
                address: links[&(at, to)].address,
                root: all[to].root(),
            });
            let strangers = more.iter().map(|peer| Peer {
                domain: peer.domain.clone(),
                address: peer.address,
                root: peer.root.clone(),
            });
            provider.configure(&others.chain(strangers).collect::<Vec<_>>());
        }
        for provider in &all {
            provider.start().await;
        }
        Self { all, links, folder }
    }

    /// Where all of them keep everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn of(&self, domain: &Domain) -> &Provider {
        self.all.iter().find(|provider| provider.domain == *domain).unwrap()
    }

    /// A new user's first client: "alice@a.example/phone".
    pub async fn client(&self, name: &str) -> Player {
        self.register(name, None, Home::in_memory().unwrap()).await
    }

    /// As [`Self::client`], with its home in a file.
    pub async fn client_at(&self, name: &str, home: &Path) -> Player {
        self.register(name, None, Home::open(home).unwrap()).await
    }

    /// A further client of `other`'s user.
    pub async fn further(&self, other: &Player, device: &str) -> Player {
        let name = format!("{}@{}/{device}", other.user.name(), other.user.domain());
        let authorization = other.client.authorize_device().unwrap();
        self.register(&name, Some(authorization), Home::in_memory().unwrap()).await
    }

    async fn register(
        &self,
        name: &str,
        authorization: Option<Authorization>,
        home: Home,
    ) -> Player {
        let (user, device) = name.split_once('/').unwrap();
        let (user, domain) = user.split_once('@').unwrap();
        let domain = Domain::new(domain).unwrap();
        let user = UserUri::of(&domain, user).unwrap();
        let uri = ClientUri::of(&user, device).unwrap();
        let registration = Registration {
            client: uri.clone(),
            server: self.of(&domain).server(),
            token: Vec::new(),
            authorization,
        };
        let client = Client::register(home, registration, system_clock()).await;
        let client = client.unwrap_or_else(|error| panic!("{name} registers: {error}"));
        Player { client: client.with_patience(PATIENCE), user, uri }
    }

    /// The end of every log, for the message of a test that fails.
    pub fn logs(&self) -> String {
        let log = |it: &Provider| format!("--- {}\n{}\n", it.domain, it.log_tail());
        self.all.iter().map(log).collect()
    }

    /// Keeps stores and logs of a test that failed, and says where.
    pub fn keep(self) -> PathBuf {
        let Self { all, links, folder } = self;
        drop((all, links));
        folder.keep()
    }
}

/// A client and who it is.
pub struct Player {
    pub client: Client,
    pub user: UserUri,
    pub uri: ClientUri,
}

impl Player {
    /// Takes in what there is.
    pub async fn receive(&self) {
        let received = self.client.receive(0).await;
        received.unwrap_or_else(|error| panic!("{} receives: {error}", self.uri));
    }

    /// Takes in what comes until `so`.
    pub async fn until(&self, what: &str, mut so: impl FnMut(&Client) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.receive().await;
            if so(&self.client) {
                return;
            }
            if Instant::now() >= deadline {
                let events = self.events();
                let last = &events[events.len().saturating_sub(8)..];
                panic!("{}: {what}; last events: {last:#?}", self.uri);
            }
            let _ = self.client.receive(500).await;
        }
    }

    pub async fn until_in(&self, group: &GroupId) {
        self.until("is in the group", |client| {
            client.member().group(group).is_ok_and(|it| it.state == GroupState::Active)
        })
        .await;
    }

    pub async fn until_out(&self, group: &GroupId) {
        self.until("is out of the group", |client| {
            client
                .member()
                .group(group)
                .is_ok_and(|it| matches!(it.state, GroupState::Left | GroupState::Deleted))
        })
        .await;
    }

    pub async fn until_hears(&self, group: &GroupId, text: &str) {
        self.until(&format!("hears {text:?}"), |client| {
            said(client, group).iter().any(|(_, said)| said == text)
        })
        .await;
    }

    pub fn view(&self, group: &GroupId) -> GroupView {
        self.client.member().group(group).unwrap()
    }

    pub fn events(&self) -> Vec<Event> {
        let events = self.client.member().events(0, usize::MAX).unwrap();
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// Who said what in a group, in the order in which this client shows it.
    pub fn said(&self, group: &GroupId) -> Vec<(ClientUri, String)> {
        said(&self.client, group)
    }

    /// What no honest group and provider gives a reason for.
    pub fn complaints(&self) -> Vec<Event> {
        let mut events = self.events();
        events.retain(|event| {
            matches!(
                event,
                Event::Misbehaviour { .. } | Event::Lost { .. } | Event::Unreadable { .. }
            )
        });
        events
    }
}

fn said(client: &Client, wanted: &GroupId) -> Vec<(ClientUri, String)> {
    let events = client.member().events(0, usize::MAX).unwrap();
    let message = |(_, event)| {
        let Event::Message { group, sender, text, .. } = event else { return None };
        (group == *wanted).then(|| (sender, text.unwrap_or_default()))
    };
    events.into_iter().filter_map(message).collect()
}

/// Makes two users contacts of each other: each has the other's consent.
pub async fn connect(one: &Player, other: &Player) -> GroupId {
    let group = one.client.connect(&other.user).await.unwrap();
    other
        .until("has the request", |client| {
            client.member().requests().unwrap().iter().any(|it| it.from == one.user)
        })
        .await;
    other.client.accept(&one.user).await.unwrap();
    one.until("has the consent", |client| {
        client.member().contact(&other.user).unwrap().their_token.is_some()
    })
    .await;
    group
}

/// alice of a.example and bob of b.example, who know each other, in a group that she made.
pub async fn team(providers: &Providers) -> (Player, Player, GroupId) {
    let alice = providers.client("alice@a.example/phone").await;
    let bob = providers.client("bob@b.example/phone").await;
    connect(&alice, &bob).await;
    let team = alice.client.create_group("team", SUITES[0], None).await.unwrap();
    accepted(alice.client.add_users(&team, std::slice::from_ref(&bob.user)).await);
    bob.until_in(&team).await;
    (alice, bob, team)
}

/// What was accepted, of something that must have been.
pub fn accepted(outcome: Result<Outcome, ClientError>) -> Outcome {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

/// All of them take in what there is until they are in one epoch of `group`.
pub async fn agree(group: &GroupId, players: &[&Player]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for player in players {
            player.receive().await;
        }
        let views: Vec<GroupView> = players.iter().map(|it| it.view(group)).collect();
        if views.iter().all(|it| it.authenticator == views[0].authenticator) {
            return;
        }
        let epochs: Vec<_> = views.iter().map(|it| it.epoch).collect();
        assert!(Instant::now() < deadline, "epochs {epochs:?} of {group}");
    }
}

/// An address that nobody has, that this process has not given away already (to a provider that starts only later, or
/// is down at the moment), and that no connection gets by chance: its port is below those.
pub fn free_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicUsize> =
        LazyLock::new(|| AtomicUsize::new(rand::rng().random_range(0..PORTS.len())));
    for _ in 0..1_000 {
        let at = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len();
        let port = PORTS.start + u16::try_from(at).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free");
}

/// Beside those that `mimid demo` takes, which runs at the same time.
const PORTS: Range<u16> = 12_000..28_000;

/// A self-signed certificate of a federation listener, good for its domain and for this machine.
pub fn certificate(domain: &Domain, folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let names = vec![domain.as_str().to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join(CERTIFICATE), certificate.pem()).unwrap();
    let path = folder.join(KEY);
    std::fs::write(&path, key.serialize_pem()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub const CERTIFICATE: &str = "federation.pem";
pub const KEY: &str = "federation-key.pem";
