//! A provider as queues: threads that read and verify, threads that groups live on, and the limit between them, under a told
//! time. What a request costs is made up; what follows from it is not.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// Chance, from a seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Of a Poisson process of so many a second, the time to the next.
    fn gap(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-self.unit().ln() / rate)
    }
}

/// What one request takes, and who does it.
#[derive(Clone, Copy)]
struct Machine {
    /// To read one and refuse it, or go on.
    read: Duration,
    /// To verify one that is let in.
    verify: Duration,
    /// For its group.
    stage: Duration,
    workers: usize,
    actors: usize,
    /// From there until it is durable.
    flush: Duration,
}

/// Groups are what there is too little of.
const ACTORS: Machine = Machine {
    read: Duration::from_micros(40),
    verify: Duration::from_micros(100),
    stage: Duration::from_micros(1000),
    workers: 2,
    actors: 2,
    flush: Duration::from_millis(5),
};
/// Reading and verifying are.
const WORKERS: Machine = Machine {
    read: Duration::from_micros(40),
    verify: Duration::from_micros(760),
    stage: Duration::from_micros(300),
    ..ACTORS
};

impl Machine {
    fn capacity(&self) -> f64 {
        let of = |threads: usize, each: Duration| threads as f64 / each.as_secs_f64();
        of(self.workers, self.read + self.verify).min(of(self.actors, self.stage))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrives(usize),
    /// A worker has it.
    Read {
        source: usize,
        arrived: Duration,
        waited: Duration,
    },
    /// Its group's thread has it.
    Staged {
        source: usize,
        arrived: Duration,
        waited: Duration,
        actor: usize,
    },
    Answered {
        source: usize,
        arrived: Duration,
    },
}

/// Who asks: what for, and how often.
#[derive(Clone, Copy)]
struct Source {
    class: Class,
    /// In a second, from `from` until `until`.
    rate: f64,
    from: Duration,
    until: Duration,
}

impl Source {
    fn of(class: Class, rate: f64) -> Self {
        Self { class, rate, from: Duration::ZERO, until: ms(LONG_MS) }
    }
}

const LONG_MS: u64 = 20_000;
/// The first seconds are the limit's to find its place.
const COUNTED_FROM: Duration = Duration::from_secs(5);
/// An answer after this is worth nothing.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Default, Clone)]
struct Report {
    /// Answered within the deadline, in a second.
    goodput: f64,
    shed: usize,
    latencies: Vec<Duration>,
    hints: Vec<Duration>,
}

impl Report {
    fn at(&self, part: f64) -> Duration {
        let index = ((self.latencies.len() as f64 * part) as usize).min(self.latencies.len() - 1);
        self.latencies[index]
    }
}

fn run(machine: Machine, delay_max: Option<Duration>, sources: &[Source]) -> Vec<Report> {
    let mut chance = Chance(7);
    let mut overload = Overload::new(OverloadSettings { delay_max });
    let mut events: BinaryHeap<Reverse<(Duration, u64, Step)>> = BinaryHeap::new();
    let mut number = 0;
    let mut push = |events: &mut BinaryHeap<_>, at: Duration, step: Step| {
        number += 1;
        events.push(Reverse((at, number, step)));
    };
    let mut worker_free = vec![Duration::ZERO; machine.workers];
    let mut actor_free = vec![Duration::ZERO; machine.actors];
    let mut reports = vec![Report::default(); sources.len()];
    for (index, source) in sources.iter().enumerate() {
        push(&mut events, source.from + chance.gap(source.rate), Step::Arrives(index));
    }
    while let Some(Reverse((now, _, step))) = events.pop() {
        match step {
            Step::Arrives(source) => {
                let next = now + chance.gap(sources[source].rate);
                if next < sources[source].until {
                    push(&mut events, next, Step::Arrives(source));
                }
                // whichever is free first: as much is refused there as here, so both cost the same
                let worker = (0..machine.workers).min_by_key(|it| worker_free[*it]).unwrap();
                let from = worker_free[worker].max(now);
                // whether it is let in is known only then; the worker is booked for reading, and below for more
                worker_free[worker] = from + machine.read;
                let read = Step::Read { source, arrived: now, waited: from - now };
                push(&mut events, from + machine.read, read);
            }
            Step::Read { source, arrived, waited } => {
                let lane = Lane { stage: Stage::Workers, number: 0 };
                overload.waited(lane, waited, now);
                let counted = now >= COUNTED_FROM;
                match overload.admit(sources[source].class, now, || chance.next()) {
                    Err(shed) => {
                        reports[source].shed += usize::from(counted);
                        reports[source].hints.push(shed.retry_after);
                    }
                    Ok(()) => {
                        let worker = (0..machine.workers).min_by_key(|it| worker_free[*it]);
                        let worker = worker.unwrap();
                        worker_free[worker] = worker_free[worker].max(now) + machine.verify;
                        let actor = (chance.next() % machine.actors as u64) as usize;
                        let sent = worker_free[worker];
                        let from = actor_free[actor].max(sent);
                        actor_free[actor] = from + machine.stage;
                        let staged = Step::Staged { source, arrived, waited: from - sent, actor };
                        push(&mut events, from, staged);
                    }
                }
            }
            Step::Staged { source, arrived, waited, actor } => {
                let lane = Lane { stage: Stage::Actors, number: actor };
                overload.waited(lane, waited, now);
                let answered = Step::Answered { source, arrived };
                push(&mut events, now + machine.stage + machine.flush, answered);
            }
            Step::Answered { source, arrived } => {
                overload.done(now);
                let latency = now - arrived;
                if arrived >= COUNTED_FROM && now < ms(LONG_MS) && latency <= DEADLINE {
                    reports[source].latencies.push(latency);
                }
            }
        }
    }
    let seconds = (ms(LONG_MS) - COUNTED_FROM).as_secs_f64();
    for report in &mut reports {
        report.latencies.sort();
        report.goodput = report.latencies.len() as f64 / seconds;
    }
    reports
}

const DELAY: Option<Duration> = Some(Duration::from_millis(50));

fn messages(machine: Machine, delay_max: Option<Duration>, times: f64) -> Report {
    let source = Source::of(Class::Message, machine.capacity() * times);
    run(machine, delay_max, &[source]).remove(0)
}

#[test]
fn at_twice_the_capacity_goodput_stays_and_who_is_let_in_is_answered_soon() {
    for machine in [ACTORS, WORKERS] {
        let loads = [0.5, 0.8, 0.9, 1.0, 1.5, 2.0, 3.0];
        let reports = loads.map(|times| messages(machine, DELAY, times));
        let most = reports.iter().map(|it| it.goodput).fold(0.0, f64::max);
        for (times, report) in loads.iter().zip(&reports) {
            println!(
                "{times}: goodput {:.0} of {:.0}, p50 {:?}, p99 {:?}, refused {}",
                report.goodput,
                machine.capacity(),
                report.at(0.5),
                report.at(0.99),
                report.shed
            );
            if *times <= 0.9 {
                assert_eq!(report.shed, 0, "nothing is refused below the capacity");
            } else {
                assert!(report.at(0.99) < ms(400), "{times}: {:?}", report.at(0.99));
            }
        }
        assert!(most > 0.95 * machine.capacity());
        assert!(reports[5].goodput >= 0.9 * most, "{} of {most}", reports[5].goodput);
        let without = messages(machine, None, 2.0);
        assert!(without.goodput < 0.2 * most, "without a limit all come too late");
    }
}

#[test]
fn no_class_starves_another_and_what_one_leaves_goes_to_the_others() {
    let capacity = ACTORS.capacity();
    let flood = Source::of(Class::Message, capacity * 4.0);
    let some = |class| Source::of(class, capacity * 0.1);
    let reports = run(
        ACTORS,
        DELAY,
        &[flood, some(Class::Relief), some(Class::Commit), some(Class::Peer), some(Class::Account)],
    );
    for (report, class) in reports.iter().zip(["message", "relief", "commit", "peer", "account"]) {
        println!("{class}: {:.0}, refused {}", report.goodput, report.shed);
    }
    // they ask for less than their shares
    for report in &reports[1..4] {
        let asked = capacity * 0.1;
        assert!(report.goodput > 0.9 * asked, "{} of {asked}", report.goodput);
    }
    // its share is a tenth as well, and no more
    assert!(reports[4].goodput > 0.05 * capacity, "{}", reports[4].goodput);
    assert!(reports[0].goodput > 0.45 * capacity, "{}", reports[0].goodput);
    let all: f64 = reports.iter().map(|it| it.goodput).sum();
    assert!(all > 0.85 * capacity, "{all} of {capacity}");
}

#[test]
fn two_classes_that_both_ask_too_much_share_by_weight() {
    let capacity = ACTORS.capacity();
    let sources = [Class::Peer, Class::Message].map(|class| Source::of(class, capacity * 2.0));
    let reports = run(ACTORS, DELAY, &sources);
    let part = reports[0].goodput / (reports[0].goodput + reports[1].goodput);
    assert!((0.3..0.5).contains(&part), "peers have {part}, four in ten are theirs");
}

#[test]
fn a_burst_passes_and_when_it_is_calm_again_everything_is_taken() {
    let capacity = ACTORS.capacity();
    let base = Source::of(Class::Message, capacity * 0.5);
    let burst =
        Source { from: ms(6_000), until: ms(9_000), ..Source::of(Class::Message, capacity * 3.0) };
    let later = Source { from: ms(13_000), ..Source::of(Class::Message, capacity * 0.1) };
    let reports = run(ACTORS, DELAY, &[base, burst, later]);
    assert!(reports[1].shed > 0);
    assert_eq!(reports[2].shed, 0, "it is over");
    let short = Source { from: ms(6_000), until: ms(6_030), ..burst };
    let reports = run(ACTORS, DELAY, &[base, short]);
    assert_eq!(reports[0].shed + reports[1].shed, 0, "a queue that goes away by itself");
}

#[test]
fn a_hint_rises_with_what_is_refused_and_spreads() {
    let middle = |times| {
        let mut hints = messages(ACTORS, DELAY, times).hints;
        let count = hints.len();
        hints.drain(..count / 2);
        hints.sort();
        (hints[0], hints[hints.len() / 2], hints[hints.len() - 1])
    };
    let (least, half, most) = middle(1.5);
    let (_, more, _) = middle(6.0);
    println!("1.5: {least:?} {half:?} {most:?}; 6: {more:?}");
    assert!(least >= ms(500) && most <= HINT_MAX * 2);
    assert!(most.as_secs_f64() > 1.5 * least.as_secs_f64(), "not all at one moment");
    assert!(more > half * 2, "{half:?}, {more:?}");
}

#[test]
fn a_wait_that_few_have_or_that_is_old_is_no_overload() {
    let mut overload = Overload::new(OverloadSettings { delay_max: DELAY });
    let lane = Lane { stage: Stage::Actors, number: 1_000_000 };
    let mut now = Duration::ZERO;
    for _ in 0..50 {
        // three at a time, each of which waits for long
        for _ in 0..3 {
            overload.waited(lane, ms(900), now);
            now += ms(400);
        }
        assert_eq!(overload.admit(Class::Account, now, || 0), Ok(()));
        assert_eq!(overload.rate_at(now), None);
    }
    for _ in 0..40 {
        overload.waited(lane, ms(900), now);
        overload.done(now);
        now += ms(10);
    }
    assert!(overload.rate_at(now).is_some());
    assert_eq!(overload.standing(Stage::Actors, now), ms(900));
    now += ms(1_200);
    assert_eq!(overload.standing(Stage::Actors, now), Duration::ZERO);
    assert_eq!(overload.admit(Class::Account, now, || 0), Ok(()));
    assert_eq!(overload.rate_at(now), None, "nobody has waited for a second");
}

#[test]
fn one_that_is_quick_in_a_while_says_that_no_queue_stands() {
    let mut overload = Overload::new(OverloadSettings { delay_max: DELAY });
    let lane = Lane { stage: Stage::Workers, number: 0 };
    for n in 0..2_000_u64 {
        let waited = if n % 8 == 0 { us(100) } else { ms(300) };
        overload.waited(lane, waited, ms(n * 5));
        assert_eq!(overload.admit(Class::Message, ms(n * 5), || n), Ok(()));
    }
    assert_eq!(overload.rate_at(ms(10_000)), None);
}

#[test]
fn switched_off_it_refuses_nothing_and_forgets() {
    let mut overload = Overload::new(OverloadSettings { delay_max: DELAY });
    let lane = Lane { stage: Stage::Store, number: 0 };
    let flood = |overload: &mut Overload, from: u64| {
        let mut refused = 0;
        for n in from..from + 3_000 {
            overload.waited(lane, ms(400), ms(n));
            refused += usize::from(overload.admit(Class::Message, ms(n), || n).is_err());
        }
        refused
    };
    assert!(flood(&mut overload, 0) > 1_000);
    overload.set(OverloadSettings { delay_max: None });
    assert_eq!(flood(&mut overload, 3_000), 0);
    overload.set(OverloadSettings { delay_max: DELAY });
    assert!(flood(&mut overload, 6_000) > 1_000);
}
