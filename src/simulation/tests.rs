//! The simulation, run.
//!
//! `TEST_SEED=…` runs one seed and shows how it ended; `TEST_TRACE=1` shows all of it, `TEST_LOG=1` what is logged as well;
//! `TEST_SIM_HOURS=…` runs seeds until so many hours were simulated, from `TEST_SIM_FROM=…` on, and goes on behind one that fails;
//! `TEST_SIM_SILENT=1` with nobody who does anything, to see
//! what idle hours cost; `TEST_SIM_TWICE=…` so many seeds twice here and once in another process, of `TEST_SIM_TWICE_HOURS=…`
//! each; `TEST_SIM_FAULT_SEEDS=…` tells which of so many seeds find each planted fault, `TEST_SIM_FAULT=…` of one.

use std::time::Duration;

use super::{Invariant, Mutation, Plan, Report, run, trace::Counts};

/// Seeds that have failed, so they come first. 17: a group left, came home and had no proof of that for a guest that nobody was in any
/// more. 62: a client resynced to another leaf, and what it said before was accepted again. 74: a hub sent the group on while a guest that
/// had not heard of it yet was set aside. What these three
/// draw has changed since. 13 and 18: a group moved away from its first provider and was deleted; there it was held to be damaged, and
/// who came in or was welcomed waited for ever.
const KEPT: [u64; 5] = [13, 18, 17, 62, 74];

#[test]
fn simulation_of_seeds() {
    let seed = std::env::var("TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let hours = std::env::var("TEST_SIM_HOURS").ok().map(|hours| hours.parse::<u64>().unwrap());
    let silent = std::env::var_os("TEST_SIM_SILENT");
    if std::env::var_os("TEST_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().init();
    }
    let hours_max = Duration::from_secs(3600 * hours.unwrap_or(240));
    let (mut total, mut took, mut events, mut seeds) = (Duration::ZERO, Duration::ZERO, 0, 0);
    let mut counts = Counts::default();
    let from = std::env::var("TEST_SIM_FROM").ok().map(|from| from.parse::<u64>().unwrap());
    let all: Box<dyn Iterator<Item = u64>> = match (seed, from) {
        (Some(seed), _) => Box::new(std::iter::once(seed)),
        (None, Some(from)) => Box::new(from..u64::MAX),
        (None, None) => {
            Box::new(KEPT.into_iter().chain((0..u64::MAX).filter(|seed| !KEPT.contains(seed))))
        }
    };
    let mut failed = Vec::new();
    for seed in all {
        let report = run(Plan { silent: silent.is_some(), ..Plan::of(seed) });
        if hours.is_none() {
            expect_good(&report);
        } else if let Some(failure) = &report.failure {
            println!("seed {seed}: {failure}");
            failed.push(seed);
        }
        (total, took) = (total + report.simulated, took + report.took);
        (events, seeds) = (events + report.events, seeds + 1);
        counts.add(&report.counts);
        if total >= hours_max {
            break;
        }
    }
    let (hours, seconds) = (total.as_secs_f64() / 3600.0, took.as_secs_f64());
    println!(
        "{seeds} seeds, {hours:.1} simulated hours in {seconds:.1} s ({:.1} hours/s), {events} events, {counts:?}",
        hours / seconds
    );
    assert!(failed.is_empty(), "these have failed; TEST_SEED=… runs one of them again: {failed:?}");
}

fn expect_good(report: &Report) {
    let Some(failure) = &report.failure else { return };
    let last = report.last.join("\n");
    panic!(
        "{last}\nseed {}: {failure}\nagain: TEST_SEED={} cargo test --lib simulation_of_seeds -- --nocapture",
        report.seed, report.seed
    );
}

/// What a fault breaks, and words of how that is told.
type Sign = (Invariant, &'static str);

/// What is gone from a disk is missed in one of these ways.
const LOST_ON_DISK: &[Sign] = &[
    (Invariant::NothingLost, "is not known to its provider any more"),
    (Invariant::NoGap, "was handed"),
    (Invariant::OneLog, "is not the same at"),
    (Invariant::OneCommit, "are in different epochs"),
];

/// What is planted, the seed to begin with, which has found it, and the signs by which it must be found: any of them.
const PLANTED: [(Mutation, u64, &[Sign]); 19] = [
    (Mutation::AnswersBeforeSync, 3, LOST_ON_DISK),
    (Mutation::OldDisk, 0, LOST_ON_DISK),
    (Mutation::ForgetsOutbound, 27, &[(Invariant::InTime, "is still owed")]),
    (Mutation::ForgetsClose, 0, &[(Invariant::NothingBehindRemoval, "was removed from")]),
    (Mutation::ForgetsNotices, 1, &[(Invariant::DeletedIsGone, "was deleted and is still in")]),
    (
        Mutation::DropsEntry,
        3,
        &[
            (Invariant::NoGap, "which follows"),
            (Invariant::NoComplaint, "the provider says that entry"),
        ],
    ),
    (Mutation::RefusesCommits, 0, &[(Invariant::ComesToRest, "to UpdateClient")]),
    (Mutation::NeverSweeps, 0, &[(Invariant::InTime, "has had something to do in")]),
    (Mutation::HammersDeadPeers, 7, &[(Invariant::Bounded, "within an hour in vain")]),
    (Mutation::WaitsForHours, 0, &[(Invariant::InTime, "is still owed")]),
    (Mutation::KeepsClosedFeeds, 0, &[(Invariant::ComesToRest, "that is over")]),
    (Mutation::AcceptsBoth, 2, &[(Invariant::OneCommit, "are in different epochs")]),
    (Mutation::WritesTwice, 0, &[(Invariant::OneCommit, "has a commit at")]),
    (Mutation::HandsBehindRemoval, 0, &[(Invariant::NothingBehindRemoval, "behind its removal")]),
    (Mutation::LiesUntold, 1, &[(Invariant::BlamesLiars, "Unusable")]),
    (Mutation::ForgivesLiars, 3, &[(Invariant::BlamesLiars, "who has not lied")]),
    (Mutation::VoidsUntold, 3, &[(Invariant::OneCommit, "has a commit at")]),
    (Mutation::ForgetsDeletion, 0, &[(Invariant::ComesToRest, "that is over")]),
    (Mutation::ThawsWhatHasGone, 0, &[(Invariant::OneHub, "is hosted by")]),
];

#[test]
fn the_simulation_finds_each_planted_fault() {
    let all = std::env::var("TEST_SIM_FAULT_SEEDS").ok().map(|seeds| seeds.parse().unwrap());
    let only = std::env::var("TEST_SIM_FAULT").ok();
    let is_asked = |it: &Mutation| only.as_ref().is_none_or(|only| *only == format!("{it:?}"));
    let mut not_found = Vec::new();
    for (mutation, first, signs) in PLANTED.into_iter().filter(|it| is_asked(&it.0)) {
        let seeds = all.unwrap_or(SEEDS_TO_FIND);
        let mut found = Vec::new();
        let others = (0..seeds).filter(|seed| all.is_some() || *seed != first);
        for seed in all.is_none().then_some(first).into_iter().chain(others) {
            let report = run(Plan::with(mutation, seed));
            let Some(failure) = report.failure else { continue };
            let is_sign =
                |(breaks, words): &Sign| failure.of == *breaks && failure.what.contains(words);
            let finds = signs.iter().any(is_sign);
            if all.is_some() || finds {
                println!("{mutation:?}: seed {seed}: {failure}");
            }
            // a fault may break something else as well, and a fault that nobody planted may be found: neither is what is asked for
            if finds {
                found.push(seed);
            }
            if finds && all.is_none() {
                break;
            }
        }
        if all.is_some() {
            println!("{mutation:?}: {} of {seeds} seeds: {found:?}", found.len());
        }
        if found.is_empty() {
            not_found.push(mutation);
        }
    }
    assert!(not_found.is_empty(), "not found within {SEEDS_TO_FIND} seeds: {not_found:?}");
}

/// Within so many seeds each planted fault is found. What a seed draws changes with the code: whoever changes what faults or people do
/// asks how many find each.
const SEEDS_TO_FIND: u64 = 64;

/// Seeds that are run twice.
const SEEDS_TWICE: u64 = 3;
/// What another process is asked for.
const ASKED: &str = "TEST_SIM_HASHES_OF";

#[test]
fn one_seed_of_the_simulation_is_one_run() {
    let (seeds, hours) = twice();
    let other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "simulation::tests::hashes_of_seeds", "--ignored", "--nocapture"])
        .env(ASKED, format!("{seeds} {hours}"))
        .output()
        .unwrap();
    let other = String::from_utf8(other.stdout).unwrap();
    let mut hashes = std::collections::BTreeSet::new();
    let mut failed = 0;
    for seed in 0..seeds {
        let plan = twice_of(seed, hours);
        // the date must make no difference, so that a seed is the same run tomorrow
        let report = run(Plan { days_back: plan.days_back + 1, ..plan.clone() });
        let line = hash_of(&report);
        println!("{line}");
        let must_fail = plan.mutation.is_some();
        let again = run(plan);
        assert_eq!(hash_of(&again), line, "seed {seed}, twice in one process");
        assert_eq!(again.last, report.last, "seed {seed}: its last events, twice in one process");
        assert!(!must_fail || report.failure.is_some(), "seed {seed} was to fail");
        failed += usize::from(report.failure.is_some());
        assert!(other.contains(&line), "seed {seed} is another run in another process:\n{other}");
        hashes.insert(report.hash);
    }
    assert_eq!(hashes.len() as u64, seeds, "one hash for different seeds");
    assert!(failed > 0, "that a failure comes again was not seen");
}

/// For [`one_seed_of_the_simulation_is_one_run`], which asks another process.
#[test]
#[ignore = "it is the other process of another test"]
fn hashes_of_seeds() {
    let asked = std::env::var(ASKED).unwrap();
    let (seeds, hours) = asked.split_once(' ').unwrap();
    let hours = hours.parse().unwrap();
    for seed in 0..seeds.parse().unwrap() {
        println!("{}", hash_of(&run(twice_of(seed, hours))));
    }
}

/// Every third one with a fault that is found in any of them: what fails is what must come again. Another third has a liar.
fn twice_of(seed: u64, hours: u64) -> Plan {
    let mutation = (seed % 3 == 1).then_some(Mutation::WritesTwice);
    Plan { hours, mutation, ..Plan::of(seed) }
}

fn hash_of(report: &Report) -> String {
    let ends = report.failure.as_ref().map_or("good".to_owned(), ToString::to_string);
    let Report { seed, events, hash, simulated, .. } = report;
    format!("seed {seed}: {events} events, {hash:016x}, {} ms, {ends}", simulated.as_millis())
}

/// How many seeds, and how many hours of each.
fn twice() -> (u64, u64) {
    let of = |name, other| std::env::var(name).map_or(other, |it| it.parse().unwrap());
    (of("TEST_SIM_TWICE", SEEDS_TWICE), of("TEST_SIM_TWICE_HOURS", 8))
}
