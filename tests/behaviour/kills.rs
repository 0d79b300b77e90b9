//! Three providers, each a process on a store on disk, that are killed at random instants while real clients do everything at
//! once; afterwards the harness's own record of what was answered is held against what every client was shown.
//!
//! `TEST_KILLS` says how many kills a run has, `TEST_SEED` repeats a run's plan (who does what, when who is killed; what
//! meets what in the processes is up to them), `ops/kills` is the long run.

mod crowd;
mod history;
mod links;
mod offers;
mod proposals;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::providers::PATIENCE;
use crowd::{Crowd, DOMAINS, USERS};
use offers::Answered;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_kills_on_sled() {
    run("sled", ["sled"; DOMAINS.len()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_kills_on_fjall() {
    run("fjall", ["fjall"; DOMAINS.len()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_kills_on_mixed() {
    run("mixed", ["sled", "fjall", "sled"]).await;
}

/// Each kill is a power cut: whatever no sync has made last is lost with it. A C compiler is all that it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_power_cuts_on_sled() {
    run_with("sled", ["sled"; DOMAINS.len()], Death::ByPower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_power_cuts_on_fjall() {
    run_with("fjall", ["fjall"; DOMAINS.len()], Death::ByPower).await;
}

/// Kills behind which everything is looked through, and groups are made anew.
const KILLS_PER_ROUND: u64 = 6;
/// Rounds behind which the stores are read as well.
const LOOKS_EVERY: u64 = 5;

/// Of a run.
#[derive(Default)]
struct Tally {
    kills: [u64; DOMAINS.len()],
    while_starting: u64,
    rounds: u64,
}

/// What a process of a provider ends by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: what was written is written.
    BySignal,
    /// What was written and not synced is lost.
    ByPower,
}

async fn run(engine: &str, engines: [&'static str; DOMAINS.len()]) {
    run_with(engine, engines, Death::BySignal).await;
}

async fn run_with(engine: &str, engines: [&'static str; DOMAINS.len()], death: Death) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TEST_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let kills = number("TEST_KILLS").unwrap_or(KILLS_PER_ROUND);
    println!("{engine}: TEST_SEED={seed} TEST_KILLS={kills}");
    let mut random = StdRng::seed_from_u64(seed);
    let crowd = Crowd::gather(engines, seed, death).await;
    let mut tally = Tally::default();
    while tally.kills.iter().sum::<u64>() < kills {
        let left = kills - tally.kills.iter().sum::<u64>();
        let maker = usize::try_from(tally.rounds).unwrap() % USERS;
        crowd.new_group(maker).await;
        crowd.new_group((maker + 2) % USERS).await;
        round(&crowd, &mut random, left.min(KILLS_PER_ROUND), &mut tally).await;
        // the stores are read while nobody has them open, which takes a restart of all
        let is_last = left <= KILLS_PER_ROUND;
        let looks = is_last || tally.rounds % LOOKS_EVERY == 0;
        if let Err(problems) = settles(&crowd, looks).await {
            let logs = crowd.providers.logs();
            let kept = crowd.providers.keep();
            panic!(
                "{engine}, TEST_SEED={seed}, round {}:\n{}\n{logs}everything is kept in {}",
                tally.rounds,
                problems.join("\n"),
                kept.display()
            );
        }
        tally.rounds += 1;
        println!("{}", summary(engine, seed, &tally, &crowd));
        crowd.leaves_groups().await;
    }
    if kills >= MANY {
        let counts = &crowd.counts;
        for (what, counter) in [
            ("joins", &counts.joins),
            ("additions", &counts.additions),
            ("removals", &counts.removals),
            ("departures", &counts.leaves),
            ("resyncs", &counts.resyncs),
            ("moves", &counts.moves),
            ("proposals", &counts.proposals),
            ("proposals that somebody saw", &counts.proposals_seen),
            ("words on consent", &counts.consents),
            ("accounts", &counts.accounts),
        ] {
            let answered = counter.load(Ordering::Relaxed);
            assert!(answered > 0, "no {what} among what was answered: that was not what is meant");
        }
        let Answered { published, handed_out } = crowd.answered_of_stock();
        assert!(published > 0 && handed_out > 0, "no KeyPackages among what was answered");
    }
}

/// Kills with which everything has come about.
const MANY: u64 = 100;

fn summary(engine: &str, seed: u64, tally: &Tally, crowd: &Crowd) -> String {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &crowd.counts;
    let (messages, commits) = (count(&counts.messages), count(&counts.commits));
    let Answered { published, handed_out } = crowd.answered_of_stock();
    format!(
        "{} kills (a {}, b {}, c {}; {} while starting), seed {seed}, {engine}: {} answered ({messages} messages, {commits} commits, \
         {} joins, {} additions, {} removals, {} resyncs and {} moves among them; {} proposals, {} of them to leave, seen {} times; {published} KeyPackages published, \
         {handed_out} given; {} of consent, {} of accounts and own groups), {} entries by streams, {} refused, {} without an answer at first; 0 lost, 0 doubled, \
         0 out of order, 0 epochs with two commits; all {} clients went on",
        tally.kills.iter().sum::<u64>(),
        tally.kills[0],
        tally.kills[1],
        tally.kills[2],
        tally.while_starting,
        messages + commits,
        count(&counts.joins),
        count(&counts.additions),
        count(&counts.removals),
        count(&counts.resyncs),
        count(&counts.moves),
        count(&counts.proposals),
        count(&counts.leaves),
        crowd.proposals_seen(),
        count(&counts.consents),
        count(&counts.accounts),
        crowd.streamed(),
        count(&counts.refused),
        count(&counts.unanswered),
        crowd.people.len(),
    )
}

/// Everyone lives while providers are killed.
async fn round(crowd: &Crowd, random: &mut StdRng, kills: u64, tally: &mut Tally) {
    let newcomers = crowd.comes_and_goes(tally.rounds);
    let over = AtomicBool::new(false);
    let lives = crowd.people.iter().map(|person| {
        let random = StdRng::seed_from_u64(random.random());
        crowd.lives(person, random, &over)
    });
    let lives = futures_util::future::join_all(lives.collect::<Vec<_>>());
    let killer = async {
        for _ in 0..kills {
            kill(crowd, random, tally).await;
        }
        // what the last one broke off is gone on with
        tokio::time::sleep(Duration::from_millis(300)).await;
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(lives, killer, newcomers);
}

/// One provider, two or all of them, at a random instant: any, or just behind a request. In between clients live long enough that most of
/// what they ask is answered.
async fn kill(crowd: &Crowd, random: &mut StdRng, tally: &mut Tally) {
    tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
    if random.random() {
        crowd.asked.notified().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..50))).await;
    }
    let victims: &[usize] = match random.random_range(0..10) {
        0..3 => &[0],
        3..6 => &[1],
        6..8 => &[2],
        8 => &[0, 1],
        _ => &[0, 1, 2],
    };
    for victim in victims {
        crowd.kill(*victim);
        tally.kills[*victim] += 1;
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
    for victim in victims {
        let provider = &crowd.providers.all[*victim];
        if random.random_range(0..6) == 0 {
            let starts_for = Duration::from_millis(random.random_range(0..200));
            let _ = tokio::time::timeout(starts_for, provider.start()).await;
            crowd.kill(*victim);
            tally.kills[*victim] += 1;
            tally.while_starting += 1;
        }
        provider.start().await;
    }
}

/// Kills are over: everyone drains, speaks once more, and everything is judged. What is wrong at last, where that does not end.
async fn settles(crowd: &Crowd, looks: bool) -> Result<(), Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut spoken, mut told) = (false, Instant::now());
    loop {
        let mut found = Vec::new();
        if let Err(problem) = crowd.goes_on().await {
            found.push(problem);
        }
        for group in crowd.groups.lock().unwrap().clone() {
            if let Err(problem) = crowd.together(&group) {
                found.push(problem);
            }
        }
        if found.is_empty() {
            found.extend(crowd.own_groups().await.err());
            found.extend(crowd.takes_stock().await.err());
        }
        if found.is_empty() && !spoken {
            match crowd.last_words().await {
                // what was said is taken in before anything is judged
                Ok(()) => {
                    spoken = true;
                    continue;
                }
                Err(problem) => found.push(problem),
            }
        }
        if found.is_empty() {
            found = crowd.judge();
        }
        if found.is_empty() && !crowd.moves_nothing().await {
            found.push("a group is on its way still".to_owned());
        }
        if found.is_empty() {
            if looks {
                found = crowd.stores_are_right().await;
            }
            return if found.is_empty() { Ok(()) } else { Err(found) };
        }
        if Instant::now() > deadline {
            found.truncate(40);
            return Err(found);
        }
        if told.elapsed() > Duration::from_secs(10) {
            println!("not settled yet: {}", found[0]);
            told = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
