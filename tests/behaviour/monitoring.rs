//! What operators watch a provider with: ops/prometheus, ops/grafana, ops/runbook.md. Every metric that they name is in a scrape of
//! real providers, every alert has its section and its tests, and a real Prometheus answers each panel's query with data.
//!
//! promtool and prometheus are Debian's package `prometheus`, the browser for the status page its `chromium`. Where one is not
//! installed, what needs it says so and is not run; with TEST_OPERATOR_TOOLS set, as in CI, both must be there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::Engine as _;
use mimid::{
    client::core::{Event, PolicyChange},
    load::{drain::Drain, run::Options},
    wire::{extensions::Role, ids::GroupId},
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    load,
    not_run::not_run,
    providers::{
        PATIENCE, Player, Provider, Providers, UNHURRIED, accepted, agree, eventually,
        free_address, team,
    },
    serve::MIMID,
};

const DASHBOARDS: [&str; 5] = ["overview", "groups", "delivery", "federation", "store"];

fn ops(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(ops(file)).unwrap_or_else(|error| panic!("ops/{file}: {error}"))
}

/// Words that are names of metrics of the provider, or of its process.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.starts_with("mimid_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The queries of a dashboard's panels, each with its panel's title, with every variable at "all".
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$job", ".*").replace("$instance", ".*");
            (title.clone(), query.replace("$__rate_interval", "1m"))
        })
    };
    panels.iter().flat_map(of_panel).collect()
}

fn dashboard(name: &str) -> Value {
    let file = format!("grafana/{name}.json");
    serde_json::from_str(&read(&file)).unwrap_or_else(|error| panic!("ops/{file}: {error}"))
}

/// alice of a.example and bob of b.example, who keep both providers at work.
struct Scene {
    providers: Providers,
    alice: Player,
    bob: Player,
    team: GroupId,
}

impl Scene {
    async fn start() -> Self {
        let providers = Providers::start_with(&["a.example", "b.example"], 1, UNHURRIED, &[]).await;
        let (alice, bob, team) = team(&providers).await;
        Self { providers, alice, bob, team }
    }

    /// A little of everything: messages both ways, commits, what is refused, a move there and back.
    async fn work(&self, round: usize) {
        let Self { providers, alice, bob, team } = self;
        for (player, other) in [(alice, bob), (bob, alice)] {
            let text = format!("{round}: {}", player.uri);
            accepted(player.client.send_text(team, &text).await);
            other.until_hears(team, &text).await;
        }
        // alice may not know of this yet: an epoch conflict, which her client mends by itself
        accepted(bob.client.update(team, false).await);
        accepted(alice.client.update(team, false).await);
        agree(team, &[alice, bob]).await;
        // as one who has lost a device's state
        accepted(bob.client.resync(team).await);
        agree(team, &[alice, bob]).await;
        let admin = PolicyChange::Role { user: bob.user.clone(), role: Role::Moderator };
        let refused = bob.client.change_policy(team, vec![admin]).await;
        assert!(refused.is_err(), "bob is no admin");
        let target = &providers.all[(round + 1) % 2].domain;
        accepted(alice.client.migrate(team, target).await);
        agree(team, &[alice, bob]).await;
        self.listen_for_a_moment(round).await;
        if round == 0 {
            self.lose_a_peer().await;
        }
        if round < 10 {
            self.come_and_go(round).await;
            self.back_up(round);
        }
        for provider in &providers.all {
            // no ClientMessage, and nothing that any listener has
            let url = provider.server().url;
            let answer = http().post(format!("{url}/v1/dequeue")).body("?").send().await.unwrap();
            assert!(answer.status().is_client_error());
            // no TLS
            let address = url.trim_start_matches("https://");
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// A further client of alice's comes in, says that it leaves, and is out when somebody commits that.
    async fn come_and_go(&self, round: usize) {
        let Self { providers, alice, bob, team } = self;
        let tablet = providers.further(alice, &format!("tablet{round}")).await;
        accepted(alice.client.add_own_clients(team, std::slice::from_ref(&tablet.uri)).await);
        tablet.until_in(team).await;
        accepted(tablet.client.leave(team).await);
        let both: Vec<&Provider> = providers.all.iter().collect();
        Self::until(&both, "mimid_group_pending_oldest_seconds", 2.0).await;
        agree(team, &[alice, bob]).await;
        accepted(alice.client.update(team, false).await);
        agree(team, &[alice, bob]).await;
    }

    /// Waits for a gauge of one of the providers: long enough for a scrape.
    async fn until(of: &[&Provider], metric: &str, least: f64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "{metric} does not come to {least}");
            for provider in of {
                if provider.metric(metric).await >= least {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn back_up(&self, round: usize) {
        for provider in &self.providers.all {
            let to = self.providers.folder().join(format!("{}-{round}.backup", provider.domain));
            let mut backup = Command::new(MIMID);
            backup.args(["backup", "--data-dir"]).arg(provider.data()).arg(to);
            let done = backup.env_remove("MIMID_CONFIG").output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
    }

    /// A peer is out of reach until this is noticed.
    async fn lose_a_peer(&self) {
        let [a, b] = &self.providers.all[..] else { panic!("two providers") };
        let hub = if self.alice.view(&self.team).hub == a.domain { a } else { b };
        let (guest, speaker) =
            if hub.domain == a.domain { (b, &self.alice) } else { (a, &self.bob) };
        guest.kill();
        accepted(speaker.client.send_text(&self.team, "is anybody there?").await);
        for metric in ["mimid_peer_failures_total", "mimid_peer_circuit"] {
            Self::until(&[hub], metric, 1.0).await;
        }
        Self::until(&[hub], "mimid_peer_oldest_undelivered_seconds", 3.0).await;
        guest.start().await;
    }

    /// bob's client opens a stream, hears something by it and goes away again.
    async fn listen_for_a_moment(&self, round: usize) {
        let text = format!("{round}: for who listens");
        accepted(self.alice.client.send_text(&self.team, &text).await);
        let heard = |event: &Event| format!("{event:?}").contains(&text);
        self.bob.client.follow(0, |_, event| !heard(event)).await.unwrap();
    }

    async fn scrapes(&self) -> String {
        let mut all = String::new();
        for provider in &self.providers.all {
            all += &provider.ops("/metrics").await;
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_that_operators_are_shown_exists_and_every_metric_is_shown() {
    let scene = Scene::start().await;
    for round in 0..2 {
        scene.work(round).await;
    }
    let scrape = scene.scrapes().await;
    let lines = || scrape.lines().filter(|line| !line.starts_with('#'));
    let exist: BTreeSet<&str> = lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let recorded = read("prometheus/recording.yml");

    let mut shown = BTreeSet::new();
    for name in DASHBOARDS {
        let queries = queries(&dashboard(name));
        assert!(queries.len() > 5, "{name} has panels");
        for (title, query) in queries {
            for metric in metrics_in(&query) {
                assert!(exist.contains(&*metric), "{name}, {title:?}: there is no {metric}");
                shown.insert(metric);
            }
        }
    }
    for file in ["prometheus/recording.yml", "prometheus/alerts.yml"] {
        let text = read(file);
        let rules = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for metric in metrics_in(&rules.collect::<Vec<_>>().join("\n")) {
            let is_recorded = || recorded.contains(&format!("record: {metric}\n"));
            assert!(exist.contains(&*metric) || is_recorded(), "{file}: there is no {metric}");
            shown.insert(metric);
        }
    }
    let unseen: Vec<&&str> = exist
        .iter()
        .filter(|metric| metric.starts_with("mimid_"))
        .filter(|metric| {
            // of a histogram one part suffices
            let parts = ["_bucket", "_sum", "_count"];
            let base = parts.iter().find_map(|part| metric.strip_suffix(part));
            let of_base =
                |base: &str| parts.iter().any(|part| shown.contains(&format!("{base}{part}")));
            !shown.contains(**metric) && !base.is_some_and(of_base)
        })
        .collect();
    assert!(unseen.is_empty(), "neither a panel nor a rule shows {unseen:?}");
    // names by Prometheus' conventions, each with its help
    for line in scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(scrape.contains(&format!("# HELP {name} ")), "{name} says what it is");
    }
    // no label tells who somebody is
    for line in lines().filter(|line| !line.contains("peer=")) {
        assert!(!line.contains("alice") && !line.contains(".example"), "{line}");
    }
}

#[test]
fn every_alert_has_its_tests_and_its_section_in_the_runbook() {
    let (alerts, tests, runbook) =
        (read("prometheus/alerts.yml"), read("prometheus/tests.yml"), read("runbook.md"));
    let names: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 15);
    for name in &names {
        for case in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("- name: {name} {case}\n")), "{name} {case}: no test");
        }
        assert!(runbook.contains(&format!("\n## {name}\n")), "{name} is not in the runbook");
        let link = format!("runbook: ops/runbook.md#{}\n", name.to_lowercase());
        assert!(alerts.contains(&link), "{name} says where to read on");
    }
    for section in runbook.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(names.contains(&section), "the runbook has {section}, and nothing calls it");
    }
}

#[test]
fn promtool_fires_every_alert() {
    if !are_installed(&PROMETHEUS) {
        return;
    }
    for arguments in [
        ["check", "config", "prometheus/prometheus.yml"],
        ["check", "rules", "prometheus/alerts.yml"],
        ["test", "rules", "prometheus/tests.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        let done = promtool.args(&arguments[..2]).arg(ops(arguments[2])).output().unwrap();
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "{arguments:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_answers_every_panel_with_data_and_calls_nobody() {
    if !are_installed(&PROMETHEUS) {
        return;
    }
    let scene = Scene::start().await;
    let targets: Vec<String> =
        scene.providers.all.iter().map(|provider| provider.ops.to_string()).collect();
    let prometheus = Prometheus::start(&targets).await;
    // what has counted before the first scrape is no rate
    eventually("both are scraped", async || prometheus.answer("sum(up) == 2").await == Data::Some)
        .await;
    // beside them the clients of five groups, who never rest
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    load::prepared(&scene.providers, load::shape(load::EVERYTHING, 2), &file).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let options = Options { drain: Drain::Stream, ..load::closed(u64::MAX) };
    let run = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        mimid::load::run::run(&file, options, stopped).await.unwrap()
    });
    let mut left: Vec<(String, String, String)> = DASHBOARDS
        .iter()
        .flat_map(|name| {
            let with_name = |(title, query)| ((*name).to_owned(), title, query);
            queries(&dashboard(name)).into_iter().map(with_name)
        })
        .collect();
    let count = left.len();
    for part in NOTHING_WHILE_ALL_IS_WELL {
        assert!(left.iter().any(|(_, _, query)| query.contains(part)), "no panel asks for {part}");
    }
    let mut deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        scene.work(round).await;
        let (count_left, mut unanswered) = (left.len(), Vec::new());
        for it in left {
            let answer = prometheus.answer(&it.2).await;
            let is_quiet = NOTHING_WHILE_ALL_IS_WELL.iter().any(|part| it.2.contains(part));
            if !(answer == Data::Some || answer == Data::Zero && is_quiet) {
                unanswered.push(it);
            }
        }
        if unanswered.len() < count_left {
            // one by one: all of them together take as long as there are many
            deadline = Instant::now() + PATIENCE;
        }
        left = unanswered;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no data for {left:#?}");
    }
    println!("{count} queries of {} dashboards answered with data", DASHBOARDS.len());
    drop(stop);
    let done = run.await.unwrap();
    assert!(done.broke.is_none() && done.result.operations["message"].answered > 100);
    let rules = prometheus.get("/api/v1/rules").await;
    let groups = rules["data"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(rules.len() > 20);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "nothing is wrong: {rule}");
    }
}

fn http() -> reqwest::Client {
    // an error says that the process has one
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_status_page_and_it_asks_nobody_else() {
    if !are_installed(&["chromium"]) {
        return;
    }
    let scene = Scene::start().await;
    // behind the first one of them was started anew
    for round in 0..2 {
        scene.work(round).await;
    }
    let provider = &scene.providers.all[0];
    let shown = chromium(&["--dump-dom", &format!("http://{}/", provider.ops)]);
    let page = String::from_utf8(shown.stdout).unwrap();
    let errors = String::from_utf8_lossy(&shown.stderr).into_owned();
    for shows in [
        "<p id=\"health\" class=\"health good\" role=\"status\">ready</p>",
        "<td>/v1/group_operation</td>",
        "<div class=\"title\">requests a second</div>",
        "<td>b.example</td>",
        // what the scene had refused
        "<td>client /v1/dequeue</td><td>HTTP 4",
    ] {
        assert!(page.contains(shows), "no {shows} in\n{page}\n{errors}");
    }
    for (path, status) in
        [("", 200), ("status.css", 200), ("metrics", 200), ("livez", 200), ("no", 404)]
    {
        let asked = http().head(format!("http://{}/{path}", provider.ops)).send().await.unwrap();
        assert_eq!(asked.status().as_u16(), status, "HEAD /{path}");
        assert!(asked.bytes().await.unwrap().is_empty());
    }
    let answer = http().get(format!("http://{}/", provider.ops)).send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
    for file in ["", "status.css", "status.js"] {
        let text = provider.ops(&format!("/{file}")).await;
        assert!(!text.is_empty());
        let svg = "http://www.w3.org/2000/svg";
        assert!(!text.replace(svg, "").contains("://"), "{file} names no other place");
    }
}

/// What a browser says when it is asked like this.
fn chromium(arguments: &[&str]) -> Output {
    let profile = tempfile::tempdir().unwrap();
    Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--virtual-time-budget=10000")
        .args(arguments)
        .output()
        .unwrap()
}

/// How bright a picture's corners are (0 to 255), how many of a thousand of its pixels stand out from them, and in how many colours.
fn looks(picture: &Path) -> (f64, f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let data = base64::engine::general_purpose::STANDARD.encode(fs::read(picture).unwrap());
    let page = format!(
        "<!doctype html><img src=\"data:image/png;base64,{data}\"><p></p><script>onload = () => {{
        const img = document.querySelector('img'), canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        const context = canvas.getContext('2d');
        context.drawImage(img, 0, 0);
        const {{ data }} = context.getImageData(0, 0, canvas.width, canvas.height);
        const light = (at) => 0.21 * data[at] + 0.72 * data[at + 1] + 0.07 * data[at + 2];
        const corners = [0, canvas.width - 1, data.length / 4 - canvas.width, data.length / 4 - 1];
        const ground = corners.reduce((sum, at) => sum + light(at * 4), 0) / 4;
        const colours = new Set();
        let out = 0;
        for (let at = 0; at < data.length; at += 4) {{
            colours.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
            out += Math.abs(light(at) - ground) > 80;
        }}
        document.querySelector('p').textContent = `${{ground}} ${{out * 4000 / data.length}} ${{colours.size}}`;
        }}</script>"
    );
    let file = folder.path().join("looks.html");
    fs::write(&file, page).unwrap();
    let shown = chromium(&["--dump-dom", &format!("file://{}", file.display())]);
    let dom = String::from_utf8(shown.stdout).unwrap();
    let said = dom.rsplit("<p>").next().unwrap().split("</p>").next().unwrap();
    let numbers: Vec<f64> = said.split(' ').filter_map(|it| it.parse().ok()).collect();
    let [ground, out, colours] = numbers[..] else { panic!("{said}") };
    (ground, out, colours)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_page_can_be_read_by_day_and_by_night() {
    if !are_installed(&["chromium"]) {
        return;
    }
    let scene = Scene::start().await;
    for round in 0..2 {
        scene.work(round).await;
    }
    let folder = tempfile::tempdir().unwrap();
    // who wants to look at them says where they shall be
    let keep = std::env::var_os("TEST_SCREENSHOTS").map(PathBuf::from);
    let folder = keep.as_deref().unwrap_or(folder.path());
    let url = format!("http://{}/", scene.providers.all[0].ops);
    let shown = |name: &str, scheme: u8, size: &str| {
        let picture = folder.join(format!("status-{name}.png"));
        let shown = chromium(&[
            &format!("--blink-settings=preferredColorScheme={scheme}"),
            &format!("--window-size={size}"),
            &format!("--screenshot={}", picture.display()),
            &url,
        ]);
        assert!(picture.exists(), "{}", String::from_utf8_lossy(&shown.stderr));
        looks(&picture)
    };
    for size in ["1280,1400", "500,1800"] {
        let (day, words, colours) = shown(&format!("light-{size}"), 1, size);
        assert!(day > 230.0 && words > 5.0 && colours > 20.0, "{size}: {day} {words} {colours}");
        let (night, words, colours) = shown(&format!("dark-{size}"), 0, size);
        assert!(night < 40.0 && words > 5.0 && colours > 20.0, "{size}: {night} {words} {colours}");
    }
}

const PROMETHEUS: [&str; 2] = ["promtool", "prometheus"];

pub(crate) fn are_installed(tools: &[&str]) -> bool {
    let is_missing = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
    let missing = tools.iter().find(is_missing);
    let Some(missing) = missing else { return true };
    assert!(std::env::var_os("TEST_OPERATOR_TOOLS").is_none(), "{missing} is not installed");
    not_run("what operators see", &format!("no {missing}: `apt-get install prometheus chromium`"));
    false
}

/// What a query has for an answer: no number, nothing but noughts (a counter that has not counted is one), or something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    None,
    Zero,
    Some,
}

/// Parts of queries that are answered with noughts as long as nothing goes wrong, or as nothing is old.
const NOTHING_WHILE_ALL_IS_WELL: [&str; 23] = [
    "status=~\"5..\"",
    "mimid_http_requests_slow_total",
    "mimid_requests_shed_total",
    "mimid_admission_rate",
    "mimid_config_waiting_for_restart",
    "mimid_key_packages_low_total",
    "mimid_complaints_total",
    "mimid_epochs_voided_total",
    "mimid_queue_gaps_total",
    "mimid_queue_overflows_total",
    "mimid_queue_acks_refused_total",
    // what is given is acknowledged within the second
    "mimid_queue_oldest_unacknowledged_seconds",
    "mimid_groups_isolated",
    "mimid_group_hub_keys_old",
    // nobody is quiet for minutes, and no sweep comes by
    "mimid_group_passivations_total",
    "mimid_queue_passivations_total",
    "mimid_groups_from_elsewhere",
    // a move is over too soon
    "mimid_migrations_leaving_oldest_seconds",
    "mimid_migrations_unconfirmed",
    "mimid_peer_groups_set_aside",
    "mimid_guest_full_total",
    "mimid_store_damaged_records",
    // each other's keys were asked for before the first scrape
    "mimid_federation_key_fetches_total",
];

/// Prometheus itself with the rules of ops/, scraping every second; it ends with this value.
struct Prometheus {
    child: Child,
    url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn start(targets: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["recording.yml", "alerts.yml"] {
            fs::write(folder.path().join(file), read(&format!("prometheus/{file}"))).unwrap();
        }
        let config = read("prometheus/prometheus.yml");
        let at = format!("[{}]", targets.join(", "));
        let config = config.replace("[\"127.0.0.1:9443\"]", &at).replace("15s", "1s");
        assert!(config.contains(&at), "{config}");
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let address = free_address();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("http://{address}");
        let made = Self { child, url, http: http(), _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        let asks = || made.http.get(format!("{}/-/ready", made.url)).send();
        while !asks().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(Instant::now() < deadline, "prometheus does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        made
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    /// What a panel that shows the last minutes has for a query.
    async fn answer(&self, query: &str) -> Data {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (start, end) = ((now - 300).to_string(), now.to_string());
        let url = reqwest::Url::parse_with_params(
            &format!("{}/api/v1/query_range", self.url),
            [("query", query), ("start", &start), ("end", &end), ("step", "1")],
        );
        let answer = self.http.get(url.unwrap()).send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap();
        let values = results.iter().flat_map(|result| result["values"].as_array().unwrap());
        let values = values.filter_map(|value| value[1].as_str()?.parse().ok());
        let values: Vec<f64> = values.collect();
        if values.iter().any(|it| it.is_finite() && *it != 0.0) {
            Data::Some
        } else if values.contains(&0.0) {
            Data::Zero
        } else {
            Data::None
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
