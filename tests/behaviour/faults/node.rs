//! The built binary on a disk that can be told to fail, and real clients of it.

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
        core::{Event, Home, Member},
        system_clock,
    },
    server::Endpoints,
    wire::ids::{ClientUri, GroupId, UserUri},
};
use rand::{SeedableRng, rngs::StdRng};

use crate::serve::MIMID;

/// How long something may take that is waited for. Nothing is asserted of how long it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `mimid serve` on a disk that can be told to fail; it ends with this value.
pub struct Node {
    child: Child,
    folder: PathBuf,
    endpoints: Endpoints,
    runs: u64,
}

impl Node {
    /// # Errors
    /// What it said when it did not start.
    pub async fn start(
        engine: &str,
        folder: &Path,
        listen: SocketAddr,
        library: Option<&Path>,
    ) -> Result<Self, String> {
        Self::start_with(engine, folder, listen, library, &[]).await
    }

    /// As [`Self::start`], with further settings.
    pub async fn start_with(
        engine: &str,
        folder: &Path,
        listen: SocketAddr,
        library: Option<&Path>,
        settings: &[(&str, &str)],
    ) -> Result<Self, String> {
        let log = fs::File::options().create(true).append(true).open(folder.join(LOG)).unwrap();
        let mut serve = Command::new(MIMID);
        serve
            .args(["serve", "--listen", &listen.to_string(), "--ops-listen", "127.0.0.1:0"])
            .current_dir(folder)
            .env_remove("MIMID_CONFIG")
            .env("MIMID_DATA_DIR", folder.join(DATA))
            .env("MIMID_STORE__ENGINE", engine)
            .envs(settings.iter().copied())
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

    pub fn server(&self) -> Server {
        let certificate = fs::read_to_string(self.endpoints.certificate.as_ref().unwrap()).unwrap();
        Server { url: self.endpoints.client.clone(), certificate: Some(certificate) }
    }

    /// From now on the `nth` call of `kind` goes as `how` says, and those behind it, `times` in all.
    pub fn plan(&mut self, kind: &str, nth: u64, times: u64, how: &str, arg: u64) {
        self.runs += 1;
        let run = self.runs;
        let plan = format!("{run} {kind} {nth} {times} {how} {arg}");
        // at once: it is read at any moment
        fs::write(self.folder.join("plan.new"), plan).unwrap();
        fs::rename(self.folder.join("plan.new"), self.folder.join(PLAN)).unwrap();
    }

    /// From now on no call goes wrong. Gives the number of the plan that is over.
    pub fn calm(&mut self) -> u64 {
        let run = self.runs;
        self.plan("none", 0, 1, "none", 0);
        run
    }

    /// What was counted since the last plan.
    pub fn trace(&self) -> String {
        trace_of(&self.folder, self.runs)
    }

    pub fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.folder.join(LOG)).unwrap()
    }

    pub async fn ops(&self, path: &str) -> (u16, String) {
        // an error says that the process has one
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let answer = client.get(format!("{}{path}", self.endpoints.ops)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ops("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no metric {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// The value of a metric, summed over its labels.
    pub async fn sum(&self, name: &str) -> f64 {
        let (_, text) = self.ops("/metrics").await;
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(|line| line.starts_with(name)).filter_map(value).sum()
    }

    pub async fn until(&self, metric: &str, value: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(metric).await != value {
            assert!(Instant::now() < until, "{metric} does not get {value}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn is_read_only(&self) -> bool {
        self.metric("mimid_store_writable").await == 0.0
    }

    pub async fn says_that_it_is_read_only(&self, when: &str) {
        let (status, reason) = self.ops("/readyz").await;
        assert_eq!(status, 503, "{when}: {reason}");
        assert!(reason.contains("the store takes no writes"), "{when}: {reason}");
        let log = self.whole_log();
        assert!(log.contains("read-only until it is restarted"), "{when}: {log}");
        assert!(log.contains("check the disk"), "{when}: {log}");
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and it ends by itself, with whatever code.
    pub async fn stop(mut self) {
        let child = &mut self.child;
        let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        let until = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it does not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn kill(mut self) {
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

pub const DATA: &str = "data";
pub const LOG: &str = "log";
pub const PLAN: &str = "plan";
pub const TRACE: &str = "trace";

/// What was counted of a node in `folder` under its plan of this number.
fn trace_of(folder: &Path, run: u64) -> String {
    let run = format!("{run} ");
    let trace = fs::read_to_string(folder.join(TRACE)).unwrap_or_default();
    trace.lines().filter(|line| line.starts_with(&run)).map(|it| format!("{it}\n")).collect()
}

/// Whether a call of a node in `folder` went as `how` says under its plan of this number. A call that was under way when
/// the next plan came may be among them only a little later.
pub fn was_met(folder: &Path, run: u64, how: &str) -> bool {
    trace_of(folder, run).lines().any(|line| line.split(' ').nth(3) == Some(how))
}

pub fn seeded() -> (u64, StdRng) {
    let seed =
        std::env::var("TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    (seed, StdRng::seed_from_u64(seed))
}

pub fn reopen(folder: &Path, user: &str) -> Client {
    let home = Home::open(&home(folder, user)).unwrap();
    Client::open(Member::open(home).unwrap(), system_clock()).unwrap()
}

/// An error that says to come again, which alone is right when the disk fails.
pub fn passing(error: &ClientError, what: &str) -> String {
    assert!(error.passes(), "{what}: {error:?}");
    format!("{what}: {error}")
}

pub async fn timely<T>(work: impl Future<Output = T>, when: &str) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{when}: it hangs"))
}

pub async fn register(folder: &Path, server: &Server, user: &str) -> Result<Client, ClientError> {
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

pub fn home(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{user}.sqlite"))
}

pub fn user_of(client: &Client) -> UserUri {
    client.member().client().user()
}

pub fn events(client: &Client) -> Vec<Event> {
    let events = client.member().events(0, usize::MAX).unwrap();
    events.into_iter().map(|(_, event)| event).collect()
}

/// What no honest provider gives a reason for.
pub fn complaints(client: &Client) -> Vec<Event> {
    let mut events = events(client);
    events.retain(|event| {
        matches!(event, Event::Misbehaviour { .. } | Event::Lost { .. } | Event::Unreadable { .. })
    });
    events
}

pub fn texts(client: &Client, wanted: &GroupId) -> Vec<String> {
    let text = |event| match event {
        Event::Message { group, text, .. } if group == *wanted => text,
        _ => None,
    };
    events(client).into_iter().filter_map(text).collect()
}

pub fn copy_folder(from: &Path, to: &Path) {
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
