//! The simulation, run.
//!
//! `TEST_SEED=…` runs one seed and shows how it ended; `TEST_TRACE=1` shows all of it; `TEST_SIM_HOURS=…` runs seeds until so many hours were simulated.

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

#[test]
fn one_seed_of_the_simulation_is_one_run() {
    let plan = Plan { hours: 6, ..Plan::of(7) };
    let (one, other) = (run(plan.clone()), run(plan));
    assert_eq!((one.hash, one.events), (other.hash, other.events));
    assert_ne!(run(Plan { hours: 6, ..Plan::of(8) }).hash, one.hash);
}
