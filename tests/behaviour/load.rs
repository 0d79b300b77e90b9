//! `mimid load` against real providers, over TLS: what is prepared is accepted when it is replayed, and what is counted adds up.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use mimid::load::{
    LoadError,
    drain::Drain,
    pace::Spread,
    plan::{Mix, Shape},
    prepare::{Prepare, Prepared, prepare},
    result::{DELIVERY, Load, Operation, RunResult, SEND_LAG, Scraped},
    run::{Done, Options, run},
    workload::Target,
};

use crate::providers::Providers;

const EVERYTHING: &str = "messages=50,updates=10,adds=10,removes=10,joins=10";

fn shape(mix: &str, targets: u32) -> Shape {
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
    let of = |provider: &crate::providers::Provider| {
        let server = provider.server();
        Target { domain: provider.domain.clone(), url: server.url, certificate: server.certificate }
    };
    providers.all.iter().map(of).collect()
}

async fn prepared(providers: &Providers, shape: Shape, file: &Path) -> Prepared {
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
fn closed(count: u64) -> Options {
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

/// Everything that was sent was accepted.
fn expect_no_errors(done: &Done) {
    for (name, of) in &done.result.operations {
        assert!(of.errors.is_empty(), "{name}: {:?}", of.errors);
    }
    assert_eq!(done.groups_lost, 0);
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
    let done = replayed(&file, closed(made.steps)).await;
    assert_eq!(done.groups_lost, 0);
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
    let scrapes = &done.result.scrapes;
    assert_eq!(scrapes.len(), 2);
    let scraped = |it: &Scraped| match it {
        Scraped::Text { at_ms, text } => (*at_ms, text.clone()),
        failed => panic!("{failed:?}"),
    };
    let text = |it: &Scraped| scraped(it).1;
    assert!(scrapes.iter().all(|it| text(&it.before).contains("# TYPE")));
    assert!(scrapes.iter().all(|it| text(&it.after) != text(&it.before)));
    // behind the load whoever reads is waited for, a second at least: that is no cost of what was accepted
    let last = done.result.series.last().unwrap();
    for it in scrapes {
        let (at_ms, over_ms) = (scraped(&it.after).0, last.at_ms + last.width_ms);
        assert!(at_ms + 1000 <= over_ms, "{at_ms}, and all was over at {over_ms}");
    }
    kept(&done, folder.path());
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
    let stop = tokio::time::sleep(Duration::from_millis(500));
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
