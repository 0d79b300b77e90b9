//! When the next operation begins, and in which group. Pure: told the time since the run's start.
//!
//! An open loop goes by the clock alone: what is due begins then, or counts from then, whatever earlier ones are doing; so a provider that
//! stalls is seen by everyone who would have asked meanwhile (no coordinated omission). A closed loop begins one for each that ended.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::result::Load;

/// How arrivals of an open loop are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The same time between any two.
    Even,
    /// As independent users come (exponential gaps).
    Poisson,
}

/// How much, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Pacing {
    pub load: Load,
    pub spread: Spread,
    pub seed: u64,
    pub groups: usize,
    /// What is due before is not counted.
    pub warm_up: Duration,
    /// Nothing begins from here on.
    pub until: Duration,
    /// Operations behind the warm-up.
    pub count_max: Option<u64>,
}

/// One operation that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Since the run's start. Its latency counts from here.
    pub due: Duration,
    pub group: usize,
}

/// The run's clockwork.
pub struct Pace {
    pacing: Pacing,
    rng: StdRng,
    /// When the next one of an open loop is due.
    next: Duration,
    /// Of a closed loop: how many have begun and not ended.
    running: u64,
    counted: u64,
    groups: Vec<usize>,
}

impl Pace {
    #[must_use]
    pub fn new(pacing: Pacing) -> Self {
        let rng = StdRng::seed_from_u64(pacing.seed);
        let groups = (0..pacing.groups).collect();
        Self { pacing, rng, next: Duration::ZERO, running: 0, counted: 0, groups }
    }

    /// The next one that is due by `now`. Call it until there is none.
    pub fn due(&mut self, now: Duration) -> Option<Arrival> {
        if self.is_over(now) {
            return None;
        }
        let due = match self.pacing.load {
            Load::Open { per_second } => {
                if self.next > now || self.next >= self.pacing.until {
                    return None;
                }
                let due = self.next;
                let gap = self.gap(per_second);
                self.next = due + gap;
                due
            }
            Load::Closed { concurrency } => {
                if self.running >= concurrency || now >= self.pacing.until {
                    return None;
                }
                now
            }
        };
        let group = self.group()?;
        self.running += 1;
        self.counted += u64::from(due >= self.pacing.warm_up);
        Some(Arrival { due, group })
    }

    /// An operation is over, whatever came of it.
    pub fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// When something is due next by the clock; none where only an end makes it so.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        let over = self.next >= self.pacing.until || self.has_all() || self.groups.is_empty();
        (matches!(self.pacing.load, Load::Open { .. }) && !over).then_some(self.next)
    }

    /// Whether nothing begins any more.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        let past = match self.pacing.load {
            Load::Open { .. } => self.next >= self.pacing.until,
            Load::Closed { .. } => now >= self.pacing.until,
        };
        past || self.has_all() || self.groups.is_empty()
    }

    /// From when on nothing begins, for one that is over `now`.
    #[must_use]
    pub fn over_at(&self, now: Duration) -> Duration {
        // by the clock it is over with the last that was due before its end, and measured to that end
        if self.has_all() || self.groups.is_empty() { now } else { self.pacing.until }
    }

    /// When it is over by the clock.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.pacing.until
    }

    /// Nothing more happens in a group.
    pub fn lose(&mut self, group: usize) {
        if let Some(at) = self.groups.iter().position(|it| *it == group) {
            self.groups.swap_remove(at);
        }
    }

    /// A group for something that finds its own gone.
    pub fn group(&mut self) -> Option<usize> {
        if self.groups.is_empty() {
            return None;
        }
        Some(self.groups[self.rng.random_range(0..self.groups.len())])
    }

    fn has_all(&self) -> bool {
        self.pacing.count_max.is_some_and(|max| self.counted >= max)
    }

    fn gap(&mut self, per_second: f64) -> Duration {
        let even = 1.0 / per_second;
        let gap = match self.pacing.spread {
            Spread::Even => even,
            Spread::Poisson => -(1.0 - self.rng.random::<f64>()).ln() * even,
        };
        // a gap of nothing would never come to an end
        Duration::from_secs_f64(gap.clamp(1e-9, GAP_MAX_S))
    }
}

const GAP_MAX_S: f64 = 3600.0;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::load::recorder::Recorder;

    const MS: Duration = Duration::from_millis(1);

    fn pacing(load: Load) -> Pacing {
        Pacing {
            load,
            spread: Spread::Even,
            seed: 3,
            groups: 7,
            warm_up: Duration::ZERO,
            until: 10_000 * MS,
            count_max: None,
        }
    }

    /// A provider that answers each request a millisecond after it came or after the one before, and stands still from 4 s to 6 s.
    fn run_against_a_stall(load: Load) -> Recorder {
        let mut pace = Pace::new(pacing(load));
        let recorder = Recorder::new(Duration::ZERO);
        let mut free_at = Duration::ZERO;
        let mut ends: BTreeMap<(Duration, u64), Duration> = BTreeMap::new();
        for tick in 0..20_000_u32 {
            let now = MS * tick;
            while let Some(end) = ends.first_entry().filter(|end| end.key().0 <= now) {
                let (at, _) = *end.key();
                recorder.answered("message", *end.get(), at - end.remove());
                pace.ended();
            }
            while let Some(arrival) = pace.due(now) {
                recorder.sent("message");
                let mut at = free_at.max(now) + MS;
                if (4_000 * MS..6_000 * MS).contains(&at) {
                    at = 6_000 * MS;
                }
                free_at = at;
                ends.insert((at, ends.len() as u64 + u64::from(tick) * 1000), arrival.due);
            }
        }
        assert!(ends.is_empty());
        recorder
    }

    #[test]
    fn a_stall_is_seen_by_all_who_were_due_while_it_lasted() {
        let open = run_against_a_stall(Load::Open { per_second: 100.0 }).measured();
        let message = &open.operations["message"];
        assert_eq!(message.answered, 1000);
        // 200 of 1000 were due in the two seconds, and they waited from two seconds down to nothing
        let waited = message.latencies.quantile_us(0.9);
        assert!((950_000..1_250_000).contains(&waited), "{waited} µs");
        assert!(message.latencies.quantile_us(0.77) < 10_000);
        assert!(message.latencies.max_us() > 1_900_000);
    }

    #[test]
    fn a_closed_loop_hides_a_stall_and_says_so() {
        let closed = run_against_a_stall(Load::Closed { concurrency: 1 }).measured();
        let message = &closed.operations["message"];
        assert!(message.answered > 4_000);
        assert!(message.latencies.quantile_us(0.99) < 10_000, "one alone has seen it");
        assert!(message.latencies.max_us() > 1_900_000);
    }

    #[test]
    fn an_open_loop_that_was_not_looked_at_for_a_while_still_gives_each_its_own_time() {
        let mut pace = Pace::new(pacing(Load::Open { per_second: 10.0 }));
        let late: Vec<Duration> =
            std::iter::from_fn(|| pace.due(950 * MS)).map(|it| it.due).collect();
        let even: Vec<Duration> = (0..10).map(|it| 100 * MS * it).collect();
        assert_eq!(late, even);
        assert_eq!(pace.next_at(), Some(1_000 * MS));
    }

    #[test]
    fn poisson_arrivals_come_at_the_rate_and_not_evenly() {
        let load = Load::Open { per_second: 100.0 };
        let mut pace = Pace::new(Pacing { spread: Spread::Poisson, ..pacing(load) });
        let dues: Vec<Duration> =
            std::iter::from_fn(|| pace.due(10_000 * MS)).map(|it| it.due).collect();
        assert!((900..1100).contains(&dues.len()), "{}", dues.len());
        let gaps: Vec<Duration> = dues.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().filter(|gap| **gap < 3 * MS).count() > 150);
        assert!(gaps.iter().filter(|gap| **gap > 30 * MS).count() > 20);
        let mut again = Pace::new(Pacing { spread: Spread::Poisson, ..pacing(load) });
        let same: Vec<Duration> =
            std::iter::from_fn(|| again.due(10_000 * MS)).map(|it| it.due).collect();
        assert_eq!(dues, same, "of one seed");
    }

    #[test]
    fn a_run_ends_by_time_by_count_and_where_no_group_is_left() {
        let open = Load::Open { per_second: 100.0 };
        let all = |pacing: Pacing| {
            let mut pace = Pace::new(pacing);
            let begun = std::iter::from_fn(|| pace.due(60_000 * MS)).count();
            assert!(pace.is_over(60_000 * MS) && pace.next_at().is_none());
            begun
        };
        assert_eq!(all(pacing(open)), 1000);
        // what comes in the warm-up is not counted
        let counted = Pacing { count_max: Some(50), warm_up: 1_000 * MS, ..pacing(open) };
        assert_eq!(all(counted), 150);
        let mut pace = Pace::new(pacing(open));
        for group in 0..6 {
            pace.lose(group);
        }
        assert!(std::iter::from_fn(|| pace.due(500 * MS)).all(|it| it.group == 6));
        pace.lose(6);
        assert!(pace.due(1_000 * MS).is_none() && pace.is_over(1_000 * MS));
    }

    #[test]
    fn a_closed_loop_begins_one_for_each_that_ended() {
        let mut pace = Pace::new(pacing(Load::Closed { concurrency: 3 }));
        let begin = |pace: &mut Pace, now| std::iter::from_fn(|| pace.due(now)).count();
        assert_eq!(begin(&mut pace, MS), 3);
        assert_eq!(begin(&mut pace, 2 * MS), 0);
        pace.ended();
        assert_eq!(begin(&mut pace, 3 * MS), 1);
        assert_eq!(begin(&mut pace, 10_000 * MS), 0, "it is over");
    }
}
