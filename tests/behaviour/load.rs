//! `mimid load` against real providers, over TLS: what is prepared is accepted when it is replayed, and what is counted adds up.

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mimid::load::{
    LoadError,
    drain::Drain,
    pace::Spread,
    plan::{Mix, Shape},
    prepare::{Prepare, Prepared, prepare},
    report::Report,
    result::{DELIVERY, Load, Operation, RunResult, SEND_LAG, Scraped},
    run::{Done, Options, run},
    workload::Target,
};

use crate::{
    providers::{Provider, Providers, eventually},
    proxy::{Proxy, Weather},
    serve::MIMID,
};

pub(crate) const EVERYTHING: &str = "messages=50,updates=10,adds=10,removes=10,joins=10";

pub(crate) fn shape(mix: &str, targets: u32) -> Shape {
    let mix: Mix = mix.parse().unwrap();
    Shape {
        seed: 11,
        groups: 5,
        members: 4,
        drivers: if mix.races > 0 { 3 } else { 2 },
        racers: if mix.races > 0 { 3 } else { 0 },
        losers_retry: false,
        mix,
        steps: 15,
        message_bytes: 100,
        users: 10,
        targets,
    }
}

fn targets(providers: &Providers) -> Vec<Target> {
    let of = |provider: &Provider| {
        let server = provider.server();
        Target { domain: provider.domain.clone(), url: server.url, certificate: server.certificate }
    };
    providers.all.iter().map(of).collect()
}

pub(crate) async fn prepared(providers: &Providers, shape: Shape, file: &Path) -> Prepared {
    let made = prepare(Prepare {
        name: "test".to_owned(),
        shape,
        targets: targets(providers),
        token: Vec::new(),
        file: file.to_owned(),
        adds_per_commit: 2,
        jobs: 3,
        is_quiet: true,
    });
    made.await.unwrap_or_else(|error| panic!("{error}\n{}", providers.logs()))
}

/// So many operations at a time; no warm-up, so that every one is counted.
pub(crate) fn closed(count: u64) -> Options {
    Options {
        targets: None,
        load: Load::Closed { concurrency: 4 },
        spread: Spread::Even,
        seed: 5,
        warm_up: Duration::ZERO,
        // the count ends it
        length: Duration::from_secs(600),
        count: Some(count),
        connections: 2,
        waiting_max: 1000,
        retries: true,
        drain: Drain::None,
        drain_clients: None,
        // where nothing is lost nobody waits for so long
        settle: Duration::from_secs(120),
        ops: Vec::new(),
        is_quiet: true,
        said: BTreeMap::new(),
    }
}

async fn replayed(file: &Path, options: Options) -> Done {
    run(file, options, std::future::pending()).await.unwrap_or_else(|error| panic!("{error}"))
}

fn of<'a>(done: &'a Done, name: &str) -> &'a Operation {
    let operations = &done.result.operations;
    operations.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", operations.keys()))
}

/// Waits until `provider` has accepted this much in all. Preparing has had some accepted.
async fn until_accepted(provider: &Provider, count: f64) {
    eventually(&format!("{count} are accepted"), async || {
        provider.metric("mimid_group_accepted_total").await >= count
    })
    .await;
}

/// Everything that was sent was accepted.
fn expect_no_errors(done: &Done) {
    for (name, of) in &done.result.operations {
        assert!(of.errors.is_empty(), "{name}: {:?}", of.errors);
    }
    assert_eq!(done.groups_lost, 0);
}

/// All that was due came, and nothing else.
fn expect_all_deliveries(done: &Done) {
    let drained = done.result.run.drained.unwrap();
    assert!(drained.due > 0);
    assert_eq!((drained.delivered, drained.untold), (drained.due, 0), "{drained:?}");
    assert_eq!((of(done, DELIVERY).answered, of(done, DELIVERY).unanswered), (drained.due, 0));
}

fn kept(done: &Done, folder: &Path) {
    let path = folder.join("result.json");
    done.result.write(&path).unwrap();
    assert_eq!(RunResult::read(&path).unwrap(), done.result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_of_everything_is_accepted_to_its_end_and_beyond() {
    let providers = Providers::start(&["a.example"], 1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    let made = prepared(&providers, shape(EVERYTHING, 1), &file).await;
    assert_eq!((made.live, std::fs::metadata(&file).unwrap().len()), (0, made.bytes));
    // more than there are steps: the groups go on talking
    let count = made.steps * 2;
    let done = replayed(&file, Options { drain: Drain::Stream, ..closed(count) }).await;
    expect_no_errors(&done);
    let operations = ["message", "update", "add", "remove", "join"];
    let begun: u64 = operations.iter().map(|name| of(&done, name).answered).sum();
    assert_eq!(begun, count);
    assert!(operations.iter().all(|name| of(&done, name).answered > 0));
    // whoever comes in asks for what it needs
    assert_eq!(of(&done, "welcome_info").answered, of(&done, "add").answered);
    assert_eq!(of(&done, "external_commit_info").answered, of(&done, "join").answered);
    for of in done.result.operations.values() {
        assert_eq!(of.latencies.count(), of.answered);
    }
    assert_eq!(of(&done, SEND_LAG).answered, count);
    // what follows in an operation begins none
    for name in ["message", "update", "add", "remove", "external_commit_info"] {
        assert_eq!(of(&done, name).lag.count(), of(&done, name).answered, "{name}");
    }
    assert!(of(&done, "join").lag.is_empty() && of(&done, "welcome_info").lag.is_empty());
    assert!(of(&done, DELIVERY).answered > of(&done, "message").answered);
    expect_all_deliveries(&done);
    kept(&done, folder.path());

    // its commits are spent now; the groups in which all were sent go on with their messages
    let alone = Options { load: Load::Closed { concurrency: 1 }, ..closed(40) };
    let again = replayed(&file, alone).await;
    let all = operations.iter().filter_map(|name| again.result.operations.get(*name));
    let (answered, refused) = all.fold((0, 0), |(answered, refused), of| {
        assert!(of.errors.keys().all(|code| code == "wrong_epoch"), "{:?}", of.errors);
        (answered + of.answered, refused + of.refused)
    });
    assert_eq!((answered + refused, again.groups_lost), (40, 0));
    // one refusal says to a group where it is
    assert!((1..=5).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wins_a_race_the_group_goes_on() {
    let providers = Providers::start(&["a.example"], 2).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    let mix = "messages=20,updates=5,adds=5,removes=5,joins=5,races=20";
    let made = prepared(&providers, shape(mix, 1), &file).await;
    assert_eq!(made.live, 5);
    let some = Options { drain: Drain::Stream, drain_clients: Some(6), ..closed(made.steps) };
    let done = replayed(&file, some).await;
    assert_eq!(done.groups_lost, 0);
    expect_all_deliveries(&done);
    let race = of(&done, "race");
    let races = of(&done, "race_settled").answered;
    // of three racers one wins, and the others hear why they did not
    assert!(races > 0);
    assert_eq!((race.answered, race.refused, race.unanswered), (races, races * 2, 0));
    assert_eq!(race.errors, BTreeMap::from([("wrong_epoch".to_owned(), races * 2)]));
    for name in ["message", "update", "add", "remove", "join"] {
        assert!(of(&done, name).errors.is_empty(), "{name}: {:?}", of(&done, name).errors);
    }

    // a storm: losers come again until each has had its turn
    let file = folder.path().join("storm");
    let storm = Shape { losers_retry: true, steps: 2, ..shape("races=1", 1) };
    prepared(&providers, storm, &file).await;
    let done = replayed(&file, closed(10)).await;
    let race = of(&done, "race");
    assert_eq!((race.answered, race.refused), (30, 30), "3 and 2 + 1 of them refused, ten times");
    assert_eq!(of(&done, "race_settled").answered, 30);
    // an operation is late once, whatever it takes
    assert_eq!((of(&done, SEND_LAG).answered, of(&done, "staging").answered), (10, 30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_generator_makes_live_is_in_no_latency_of_the_provider() {
    let providers = Providers::start(&["a.example"], 17).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    let racers = Shape { groups: 1, members: 12, drivers: 12, racers: 12, ..shape("races=1", 1) };
    let racers = Shape { users: 12, steps: 1, ..racers };
    prepared(&providers, racers, &file).await;
    let one = Options { load: Load::Closed { concurrency: 1 }, ..closed(1) };
    let done = replayed(&file, one).await;
    let longest = |name: &str| of(&done, name).latencies.max_us();
    assert_eq!((of(&done, "staging").answered, of(&done, "race").answered), (1, 1));
    // from when it was due: making it, and then what the provider took; a histogram has three digits
    let parts = longest("staging") + longest("race");
    assert!(parts <= longest("race_settled") * 101 / 100, "{:?}", done.result.operations);
    assert!(of(&done, SEND_LAG).latencies.max_us() <= longest("race"), "what it waited is in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_providers_that_federate_are_a_target_together() {
    let providers = Providers::start(&["a.example", "b.example"], 3).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    let made = prepared(&providers, shape(EVERYTHING, 2), &file).await;
    let ops = providers.all.iter().map(|it| format!("http://{}", it.ops)).collect();
    let poll = Options { drain: Drain::Poll, ops, ..closed(made.steps) };
    let done = replayed(&file, poll).await;
    expect_no_errors(&done);
    expect_all_deliveries(&done);
    let scrapes = &done.result.scrapes;
    assert_eq!(scrapes.len(), 2);
    let text = |it: &Scraped| scraped(it).1;
    assert!(scrapes.iter().all(|it| text(&it.before).contains("# TYPE")));
    assert!(scrapes.iter().all(|it| text(&it.after) != text(&it.before)));
    kept(&done, folder.path());
}

fn scraped(it: &Scraped) -> (u64, String) {
    match it {
        Scraped::Text { at_ms, text } => (*at_ms, text.clone()),
        failed => panic!("{failed:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_a_provider_refuses_are_not_open() {
    let few = "[limits]\nwaiting_max = 3";
    let providers = Providers::start_with(&["a.example"], 15, few, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let options =
        |clients| Options { drain: Drain::Stream, drain_clients: Some(clients), ..closed(20) };
    let refused = run(&file, options(8), std::future::pending()).await.map(|_| ()).unwrap_err();
    let said = refused.to_string();
    assert!(said.starts_with("3 of 8 draining clients could open their queues"), "{said}");
    assert!(said.contains("--drain-clients") && said.contains("config/load.toml"), "{said}");
    // as many as it takes
    let done = replayed(&file, options(3)).await;
    expect_no_errors(&done);
    expect_all_deliveries(&done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_due_and_never_came_is_missing_and_who_is_refused_counts_as_that() {
    let providers = Providers::start(&["a.example"], 16).await;
    let provider = &providers.all[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let url = provider.server().url;
    let proxy = Proxy::start(url.trim_start_matches("https://").parse().unwrap(), 1).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let options = Options {
        targets: Some(at(&providers, format!("https://{}", proxy.address))),
        drain: Drain::Stream,
        drain_clients: Some(8),
        settle: Duration::from_secs(1),
        ops: vec![format!("http://{}", provider.ops)],
        ..closed(u64::MAX)
    };
    let going = tokio::spawn(async move {
        let stop = async { stopped.await.unwrap_or_default() };
        run(&file, options, stop).await.unwrap_or_else(|error| panic!("{error}"))
    });
    until_accepted(provider, 200.0).await;
    // from here on it takes two streams at a time, and all of them are cut off
    let config = provider.root().with_file_name("mimid.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (head, rest) = text.split_once("[federation.overrides]").unwrap();
    let few = format!("{head}[limits]\nwaiting_max = 2\n[federation.overrides]{rest}");
    std::fs::write(&config, few).unwrap();
    let taken_at = "mimid_config_last_reload_success_timestamp_seconds";
    let before = provider.metric(taken_at).await;
    eventually("a second later, as it counts whole ones", async || {
        std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() >= before + 1.0
    })
    .await;
    let sent = Command::new("kill").args(["-s", "HUP", &provider.pid().to_string()]).status();
    assert!(sent.unwrap().success());
    eventually("the settings are taken", async || provider.metric(taken_at).await > before).await;
    proxy.set(Weather::Down);
    eventually("no stream is open", async || provider.metric("mimid_streams_open").await == 0.0)
        .await;
    proxy.set(Weather::Clear);
    eventually("streams are refused", async || {
        provider.metric_with("mimid_stream_closes_total", "reason=\"refused\"").await >= 12.0
    })
    .await;
    stop.send(()).unwrap();
    let done = going.await.unwrap();
    let streams = of(&done, "stream_open");
    assert!(streams.errors.get("unavailable").is_some_and(|it| *it >= 6), "{streams:?}");
    assert_eq!(streams.errors.get("unavailable"), Some(&streams.refused));
    assert!(streams.answered <= 8, "two at a time, and nobody gave one up: {streams:?}");
    let drained = done.result.run.drained.unwrap();
    assert_eq!((drained.clients, drained.interrupted), (8, 8), "{drained:?}");
    assert!(drained.delivered < drained.due && drained.settled_ms >= 1_000, "{drained:?}");
    let missing = drained.due - drained.delivered;
    assert_eq!(of(&done, DELIVERY).errors, BTreeMap::from([("missing".to_owned(), missing)]));
    let notes = Report::new(&done.result).notes;
    assert!(notes.iter().any(|it| it.contains("deliveries that were due had not come")));
    // whoever reads is waited for behind the load: that is no cost of what was accepted
    let last = done.result.series.last().unwrap();
    let (at_ms, _) = scraped(&done.result.scrapes[0].after);
    assert!(at_ms + 1_000 <= last.at_ms + last.width_ms, "{at_ms}, {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_nobody_can_follow_is_ended_when_it_is_asked_to_be() {
    let providers = Providers::start(&["a.example"], 18).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    // more is due than any machine can look at
    let open = Options {
        load: Load::Open { per_second: 1e9 },
        count: None,
        waiting_max: 100,
        ..closed(0)
    };
    // preparing has had some accepted
    let before = providers.all[0].metric("mimid_group_accepted_total").await;
    let done = run(&file, open, until_accepted(&providers.all[0], before + 1.0)).await.unwrap();
    assert!(done.interrupted && done.result.run.measured_ms < 600_000);
    assert!(of(&done, "not_begun").errors["generator_full"] > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_keeps_its_rate_and_counts_all_of_it() {
    let providers = Providers::start(&["a.example"], 4).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let open = Options {
        load: Load::Open { per_second: 50.0 },
        warm_up: Duration::from_secs(1),
        length: Duration::from_secs(3),
        count: None,
        ..closed(0)
    };
    let done = replayed(&file, open).await;
    let message = of(&done, "message");
    // how fast they were answered is the machine's affair; how many were due is not
    assert_eq!(message.answered + message.refused + message.unanswered, 150);
    assert_eq!(message.latencies.count(), message.answered);
    assert_eq!(of(&done, SEND_LAG).answered, 150);
    assert!(done.result.run.measured_ms >= 3_000);
    let sent: u64 = done
        .result
        .series
        .iter()
        .filter_map(|it| it.operations.get("message"))
        .map(|it| it.sent)
        .sum();
    assert!(sent >= 200, "the warm-up is in the series");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_still_says_what_it_measured() {
    let providers = Providers::start(&["a.example"], 5).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let before = providers.all[0].metric("mimid_group_accepted_total").await;
    let stop = until_accepted(&providers.all[0], before + 10.0);
    let done = run(&file, closed(u64::MAX), stop).await.unwrap();
    assert!(done.interrupted);
    let message = of(&done, "message");
    assert_eq!(message.latencies.count(), message.answered);
    assert!(message.answered > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_says_what_to_do() {
    let providers = Providers::start(&["a.example"], 6).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let error = async |file: PathBuf, targets: Option<Vec<Target>>| {
        let options = Options { targets, ..closed(1) };
        run(&file, options, std::future::pending()).await.map(|_| ()).unwrap_err().to_string()
    };

    let nobody = Target { url: "https://127.0.0.1:1".to_owned(), ..targets(&providers)[0].clone() };
    let away = error(file.clone(), Some(vec![nobody])).await;
    assert!(away.contains("no connection to https://127.0.0.1:1"), "{away}");
    let others = Providers::start(&["a.example", "b.example"], 7).await;
    let other = error(file.clone(), Some(vec![targets(&others)[0].clone()])).await;
    assert!(other.contains("does not know the clients") && other.contains("prepare"), "{other}");
    let domain = error(file.clone(), Some(vec![targets(&others)[1].clone()])).await;
    assert!(domain.contains("prepared for a.example") && domain.contains("b.example"), "{domain}");
    let stranger = Target {
        certificate: targets(&others)[0].certificate.clone(),
        ..targets(&providers)[0].clone()
    };
    let untrusted = error(file.clone(), Some(vec![stranger])).await;
    assert!(untrusted.contains("--ca"), "{untrusted}");

    let mut bytes = std::fs::read(&file).unwrap();
    bytes[400] ^= 1;
    let damaged = folder.path().join("damaged");
    std::fs::write(&damaged, &bytes).unwrap();
    let said = error(damaged, None).await;
    assert!(said.contains("is damaged at byte") && said.contains("prepare it anew"), "{said}");
    let text = folder.path().join("text");
    std::fs::write(&text, "hello").unwrap();
    assert!(error(text, None).await.contains("is no workload"));

    // preparing refuses to begin where it could not end, and leaves nothing behind
    let again = prepare(Prepare {
        name: "test".to_owned(),
        shape: shape("messages=1", 1),
        targets: targets(&providers),
        token: Vec::new(),
        file: file.clone(),
        adds_per_commit: 1000,
        jobs: 1,
        is_quiet: true,
    });
    assert!(matches!(again.await, Err(LoadError::File(_))));
    let closed_settings = "[registration]\nmode = \"closed\"";
    let strict = Providers::start_with(&["a.example"], 8, closed_settings, &[]).await;
    let refused = prepare(Prepare {
        name: "test".to_owned(),
        shape: shape("messages=1", 1),
        targets: targets(&strict),
        token: Vec::new(),
        file: folder.path().join("none"),
        adds_per_commit: 1000,
        jobs: 1,
        is_quiet: true,
    });
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("config/load.toml"), "{refused}");
    assert!(!folder.path().join("none").exists());
}

/// One target in place of the workload's only one.
fn at(providers: &Providers, url: String) -> Vec<Target> {
    vec![Target { url, ..targets(providers).remove(0) }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_answered_behind_the_measured_time_is_not_what_was_got_done_in_it() {
    let providers = Providers::start(&["a.example"], 9).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("messages=1", 1), &file).await;
    let url = providers.all[0].server().url;
    let proxy = Proxy::start(url.trim_start_matches("https://").parse().unwrap(), 1).await;
    let open = Options {
        targets: Some(at(&providers, format!("https://{}", proxy.address))),
        load: Load::Open { per_second: 250.0 },
        length: Duration::from_secs(4),
        count: None,
        connections: 1,
        ..closed(0)
    };
    let run = tokio::spawn(async move { replayed(&file, open).await });
    eventually("it has begun", async || proxy.bytes() >= 8_000).await;
    proxy.set(Weather::Silent);
    // past the end of the measured time, whenever that began
    tokio::time::sleep(Duration::from_secs(5)).await;
    proxy.set(Weather::Clear);
    let done = run.await.unwrap();
    let message = of(&done, "message");
    let in_time = message.in_time();
    assert_eq!((message.answered, done.result.run.measured_ms), (1_000, 4_000));
    assert_eq!(in_time.answered + in_time.late, 1_000, "each was due in it");
    assert!(in_time.late > 100 && done.result.run.tail_ms > 0, "{in_time:?}");
    let report = Report::new(&done.result);
    #[expect(clippy::cast_precision_loss, reason = "it is not many")]
    let got_done = in_time.answered as f64 / 4.0;
    assert!((report.requests.answered_per_second - got_done).abs() < 1e-6);
    let note = format!("{} of 1,000 answers came when the measured time was over", in_time.late);
    assert!(report.notes.iter().any(|it| it.starts_with(&note)), "{:?}", report.notes);
    // one connection takes 128: what is beyond waits here, and is told as that
    let lag = of(&done, SEND_LAG);
    assert!(lag.in_time().answered <= in_time.answered + 128, "{:?}", lag.in_time());
    assert_eq!(lag.answered, 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_in_an_operation_is_waited_for() {
    let providers = Providers::start(&["a.example"], 10).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    prepared(&providers, shape("adds=1", 1), &file).await;
    let done = replayed(&file, closed(3)).await;
    expect_no_errors(&done);
    assert_eq!((of(&done, "add").answered, of(&done, "welcome_info").answered), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_go_on_still_says_what_it_measured() {
    let providers = Providers::start(&["a.example"], 11).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    let made = prepared(&providers, shape("messages=1", 1), &file).await;
    let path = file.clone();
    let run = tokio::spawn(async move { replayed(&path, closed(u64::MAX)).await });
    until_accepted(&providers.all[0], 100.0).await;
    // its disk loses what was whole when it began
    let whole = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    let from = made.bytes / 10;
    whole.write_all_at(&vec![0; usize::try_from(made.bytes - from).unwrap()], from).unwrap();
    let done = run.await.unwrap();
    let broke = done.broke.unwrap();
    assert!(broke.contains("is damaged at byte"), "{broke}");
    assert!(!done.interrupted && done.result.run.measured_ms > 0);
    let message = &done.result.operations["message"];
    assert_eq!(message.latencies.count(), message.answered);
    assert!(message.answered > 0 && message.unanswered == 0, "what was sent was waited for");
}

/// `mimid load` as people type it, in a folder where w is a workload.
struct Typed {
    providers: Providers,
    folder: tempfile::TempDir,
    ca: String,
}

impl Typed {
    async fn new(seed: u64) -> Self {
        let providers = Providers::start(&["a.example"], seed).await;
        let folder = tempfile::tempdir().unwrap();
        prepared(&providers, shape("messages=1", 1), &folder.path().join("w")).await;
        let ca = providers.all[0].data().join("certificate.pem").display().to_string();
        Self { providers, folder, ca }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(MIMID);
        command.arg("load").args(arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Its code, and what it said.
    fn says(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let done = self.command(arguments).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8(said).unwrap())
    }

    /// Replays w, briefly.
    fn run(&self, more: &[&str]) -> (Option<i32>, String) {
        let run = ["run", "w", "--concurrency", "2", "--count", "10", "--warmup", "0s"];
        self.says(&[&run[..], &["--drain", "none", "--quiet"], more].concat())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn accepted(&self) -> f64 {
        self.providers.all[0].metric("mimid_group_accepted_total").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_cannot_be_made_again_is_written_over() {
    let typed = Typed::new(12).await;
    let workload = typed.read("w");
    for results in [&["w", "w.result.json"][..], &["w", "w.result-2.json", "w.result.json"]] {
        let (code, said) = typed.run(&[]);
        assert_eq!(
            (code, typed.names()),
            (Some(0), results.iter().map(|it| (*it).to_owned()).collect()),
            "{said}"
        );
    }
    let first = typed.read("w.result.json");
    assert_ne!(first, typed.read("w.result-2.json"));
    let sent = typed.accepted().await;
    // what has nowhere to go is told of before it begins
    for (result, says) in [
        ("w", "is there already: name another file with --result"),
        ("w.result.json", "is there already: name another file with --result"),
        ("no/where.json", "cannot be written"),
    ] {
        let (code, said) = typed.run(&["--result", result]);
        assert!(code == Some(1) && said.contains(says), "{result}: {said}");
    }
    assert_eq!(typed.accepted().await, sent);

    for output in ["w.result.json", "w.result-2.json", "w"] {
        for format in ["text", "html"] {
            let arguments = ["report", "w.result.json", "--format", format, "--output", output];
            let (code, said) = typed.says(&arguments);
            assert!(code == Some(1) && said.contains("name another file"), "{output}: {said}");
        }
    }
    let (code, said) = typed.says(&["report", "w.result.json", "--output", "r.pdf"]);
    assert!(code == Some(2) && said.contains(".txt, .json or .html"), "{said}");
    assert_eq!((typed.read("w"), typed.read("w.result.json")), (workload, first));
    assert_eq!(typed.names().len(), 3, "{:?}", typed.names());
    // a report can be made again
    for _ in 0..2 {
        let (code, said) = typed.says(&["report", "w.result.json", "--output", "r.html"]);
        assert_eq!(code, Some(0), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_before_anything_is_done() {
    let typed = Typed::new(13).await;
    let before = typed.accepted().await;
    for (more, code, says) in [
        (&["--for", "0s"][..], 2, "nothing to measure"),
        (
            &["--ops", "http://127.0.0.1:1"],
            1,
            "--ops http://127.0.0.1:1: its metrics cannot be read",
        ),
        (&["--ops", "ftp://a.example"], 1, "its metrics cannot be read"),
        (&["--target", "http://127.0.0.1:1"], 2, "DOMAIN=URL is meant"),
        // a certificate of nobody would be trusted by nobody
        (&["--ca", "no.pem"], 2, "--target <DOMAIN=URL>"),
        (
            &["--target", "a.example=https://127.0.0.1:1", "--ca", "no.pem"],
            1,
            "no.pem: No such file",
        ),
    ] {
        let (came, said) = typed.run(more);
        assert!(came == Some(code) && said.contains(says), "{more:?}: {said}");
    }
    let none = ["run", "w", "--concurrency", "1", "--count", "0"];
    assert_eq!(typed.says(&none).0, Some(2));
    let target = ["--target", "a.example=https://127.0.0.1:1"];
    for (wrong, says) in [
        (&["run", "w"][..], "how much?"),
        (&["run", "w", "--rate", "0"], "--rate: above 0"),
        (&["prepare", "more", "--members", "4000000000"], "4000000000 members: 1 to 10000 can be"),
        (&["prepare", "more", "--members", "4294967295"], "4294967295 members: 1 to 10000 can be"),
    ] {
        let (code, said) = typed.says(&[wrong, &target].concat());
        assert!(code == Some(2) && said.contains(says), "{wrong:?}: {said}");
    }
    // the file first: what is registered stays registered
    let nowhere = ["prepare", "no/where", "--target", "a.example=https://127.0.0.1:1"];
    let (code, said) = typed.says(&nowhere);
    assert!(code == Some(1) && said.contains("where.part: No such file"), "{said}");
    assert_eq!((typed.names(), typed.accepted().await), (vec!["w".to_owned()], before));
    // of one target there is no doubt
    let url = typed.providers.all[0].server().url;
    let ops = format!("http://{}", typed.providers.all[0].ops);
    let (code, said) = typed.run(&["--target", &url, "--ca", &typed.ca, "--ops", &ops]);
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preparing_that_is_ended_by_a_signal_leaves_nothing_behind() {
    let typed = Typed::new(19).await;
    let url = typed.providers.all[0].server().url;
    let target = format!("a.example={url}");
    let groups = ["--groups", "3000", "--users", "10", "--members", "4", "--jobs", "1"];
    let prepare = ["prepare", "p", "--quiet", "--target", &target, "--ca", &typed.ca];
    for signal in ["TERM", "INT"] {
        let child = typed.command(&[&prepare[..], &groups].concat()).spawn().unwrap();
        let begun = typed.folder.path().join("p.part");
        eventually("preparing has begun", async || begun.exists()).await;
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(1) && said.contains("interrupted"), "{signal}: {said}");
        assert_eq!(typed.names(), ["w"], "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_ended_by_a_signal_keeps_what_it_measured() {
    let typed = Typed::new(14).await;
    for signal in ["TERM", "INT"] {
        let before = typed.accepted().await;
        let endless = ["run", "w", "--concurrency", "2", "--for", "1h", "--warmup", "0s"];
        let name = format!("{signal}.json");
        let last = ["--drain", "none", "--quiet", "--result", &name];
        let mut run = typed.command(&[&endless[..], &last].concat()).spawn().unwrap();
        eventually("ten more are accepted", async || {
            assert!(run.try_wait().unwrap().is_none(), "it ended");
            typed.accepted().await >= before + 10.0
        })
        .await;
        let sent =
            Command::new("kill").args(["-s", signal, &run.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let done = run.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && said.contains("It was interrupted"), "{signal}: {said}");
        let result = RunResult::read(&typed.folder.path().join(&name)).unwrap();
        assert!(result.operations["message"].answered > 0);
    }
}
