//! The seed's chance, and what happened: its hash, its last lines, its counts.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

/// What the simulation decides by. Clones are one.
#[derive(Clone)]
pub(super) struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed ^ 0x51_4D55_4C41_5445))))
    }

    /// Below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.0.lock().unwrap().random_range(0..end.max(1))
    }

    /// Of `from..to`, small numbers as often as large ones.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        let mut random = self.0.lock().unwrap();
        let bits = 64 - (to - from).max(1).leading_zeros();
        let bits = random.random_range(1..=bits);
        from + random.random_range(0..1_u64 << bits).min(to - from)
    }

    pub fn of_thousand(&self, so_many: u64) -> bool {
        self.below(1000) < so_many
    }

    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len() as u64);
        &of[usize::try_from(at).unwrap()]
    }
}

/// How often what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub crashes: u64,
    pub client_crashes: u64,
    pub failed_flushes: u64,
    pub partitions: u64,
    pub requests: u64,
    pub messages: u64,
    pub commits: u64,
    pub moves: u64,
    pub removals_by_hub: u64,
    pub resyncs: u64,
    /// Groups that a member has deleted.
    pub deletions: u64,
    /// Clients that came in from outside.
    pub joins: u64,
    /// Commits that were accepted and are not what they say.
    pub lies: u64,
    /// Lies that somebody has seen.
    pub lies_seen: u64,
    /// Commits that were taken back.
    pub voids: u64,
    pub heard: u64,
    /// Texts that somebody need not have heard, having come (back) in later.
    pub excused: u64,
    /// Texts that were said again when their hub did not remember them any more.
    pub said_again: u64,
    /// Deliveries to a peer within an hour that were not answered, at the most.
    pub attempts_an_hour_most: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.client_crashes += other.client_crashes;
        self.failed_flushes += other.failed_flushes;
        self.partitions += other.partitions;
        self.requests += other.requests;
        self.messages += other.messages;
        self.commits += other.commits;
        self.moves += other.moves;
        self.removals_by_hub += other.removals_by_hub;
        self.resyncs += other.resyncs;
        self.deletions += other.deletions;
        self.joins += other.joins;
        self.lies += other.lies;
        self.lies_seen += other.lies_seen;
        self.voids += other.voids;
        self.heard += other.heard;
        self.excused += other.excused;
        self.said_again += other.said_again;
        self.attempts_an_hour_most = self.attempts_an_hour_most.max(other.attempts_an_hour_most);
    }
}

/// What happened. Clones are one.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    start: Instant,
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    counts: Counts,
    shows: bool,
}

impl Trace {
    pub fn new(start: Instant) -> Self {
        let shows = std::env::var_os("TEST_TRACE").is_some();
        let (last, counts) = (VecDeque::new(), Counts::default());
        Self(Arc::new(Mutex::new(Inner { start, hash: FNV_BASIS, events: 0, last, counts, shows })))
    }

    /// Something happened.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let mut inner = self.0.lock().unwrap();
        let ms = inner.start.elapsed().as_millis();
        let (hours, minutes, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
        let line = format!("{hours:03}:{minutes:02}:{:02}.{:03} {}", ms / 1000, ms % 1000, what());
        for byte in line.bytes() {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        inner.events += 1;
        if inner.shows {
            println!("{line}");
        }
        if inner.last.len() == LAST_MAX {
            inner.last.pop_front();
        }
        inner.last.push_back(line);
    }

    pub fn count<T>(&self, count: impl FnOnce(&mut Counts) -> T) -> T {
        count(&mut self.0.lock().unwrap().counts)
    }

    pub fn end(&self) -> (u64, u64, Counts, Vec<String>) {
        let inner = self.0.lock().unwrap();
        (inner.hash, inner.events, inner.counts.clone(), inner.last.iter().cloned().collect())
    }
}

const FNV_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01B3;
const LAST_MAX: usize = 60;
