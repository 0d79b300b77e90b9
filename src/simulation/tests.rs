//! The simulation, run.
//!
//! `TEST_SEED=…` runs one seed and shows how it ended; `TEST_TRACE=1` shows all of it; `TEST_SIM_HOURS=…` runs seeds until so many hours were simulated; `TEST_SIM_TWICE=…` so many
//! seeds twice here and once in another process, of `TEST_SIM_TWICE_HOURS=…` each.

use std::time::Duration;

use super::{Mutation, Plan, Report, run, trace::Counts};

#[test]
fn simulation_of_seeds() {
    let seed = std::env::var("TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let hours = std::env::var("TEST_SIM_HOURS").ok().map(|hours| hours.parse::<u64>().unwrap());
    let hours_max = Duration::from_secs(3600 * hours.unwrap_or(192));
    let (mut total, mut took, mut events, mut seeds) = (Duration::ZERO, Duration::ZERO, 0, 0);
    let mut counts = Counts::default();
    for seed in seed.map_or(0..=u64::MAX, |seed| seed..=seed) {
        let report = run(Plan::of(seed));
        expect_good(&report);
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
}

fn expect_good(report: &Report) {
    let Some(failure) = &report.failure else { return };
    let last = report.last.join("\n");
    panic!(
        "{last}\nseed {}: {failure}\nagain: TEST_SEED={} cargo test --lib simulation_of_seeds -- --nocapture",
        report.seed, report.seed
    );
}

#[test]
fn the_simulation_finds_each_planted_fault() {
    let mutations = [
        Mutation::AnswersBeforeSync,
        Mutation::OldDisk,
        Mutation::ForgetsOutbound,
        Mutation::ForgetsClose,
        Mutation::ForgetsNotices,
        Mutation::DropsEntry,
        Mutation::RefusesCommits,
        Mutation::NeverSweeps,
        Mutation::ThawsWhatHasGone,
    ];
    let mut not_found = Vec::new();
    for mutation in mutations {
        let plan = |seed| Plan { hours: 24, mutation: Some(mutation), ..Plan::of(seed) };
        let found = (0..SEEDS_TO_FIND).map(|seed| run(plan(seed))).find(|it| it.failure.is_some());
        match found {
            Some(Report { seed, failure, .. }) => {
                println!("{mutation:?}: seed {seed}: {}", failure.unwrap_or_default());
            }
            None => not_found.push(mutation),
        }
    }
    assert!(not_found.is_empty(), "not found within {SEEDS_TO_FIND} seeds: {not_found:?}");
}

/// Within so many seeds each planted fault is found.
const SEEDS_TO_FIND: u64 = 6;

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
    for seed in 0..seeds {
        let plan = twice_of(seed, hours);
        // the date must make no difference, so that a seed is the same run tomorrow
        let report = run(Plan { days_back: plan.days_back + 1, ..plan.clone() });
        let line = hash_of(&report);
        println!("{line}");
        assert_eq!(hash_of(&run(plan)), line, "seed {seed}, twice in one process");
        assert!(other.contains(&line), "seed {seed} is another run in another process:\n{other}");
        hashes.insert(report.hash);
    }
    assert_eq!(hashes.len() as u64, seeds, "one hash for different seeds");
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

/// Every third one with a fault: what fails is what must come again.
fn twice_of(seed: u64, hours: u64) -> Plan {
    let mutation = (seed % 3 == 2).then_some(Mutation::AnswersBeforeSync);
    Plan { hours, mutation, ..Plan::of(seed) }
}

fn hash_of(report: &Report) -> String {
    let ends = report.failure.as_deref().unwrap_or("good");
    format!("seed {}: {} events, {:016x}, {ends}", report.seed, report.events, report.hash)
}

/// How many seeds, and how many hours of each.
fn twice() -> (u64, u64) {
    let of = |name, other| std::env::var(name).map_or(other, |it| it.parse().unwrap());
    (of("TEST_SIM_TWICE", SEEDS_TWICE), of("TEST_SIM_TWICE_HOURS", 8))
}
