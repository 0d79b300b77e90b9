//! What a run has measured so far, gathered from many tasks.
//!
//! Each task gets a clone, which writes to one of a few shards behind a mutex: an event is a look at a short list and a count in a
//! histogram. Once a second the run closes an interval ([`Recorder::close_interval`]): that is a point of the series and what a live view
//! shows. Memory does not grow with the run: names are bounded (further ones are counted as "other"), and when the
//! series is full, each two of its points become one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    latencies::Latencies,
    result::{ERRORS_MAX, InTime, OPERATIONS_MAX, Operation, POINTS_MAX, Point, PointOf},
};

/// A task's way to tell. All clones are one recorder.
pub struct Recorder {
    shared: Arc<Shared>,
    shard: usize,
}

/// What the run has measured in the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub operations: BTreeMap<String, Operation>,
    pub series: Vec<Point>,
}

/// What has happened since the interval before, and in all. For a live view.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Interval {
    pub at: Duration,
    pub width: Duration,
    pub in_flight: u64,
    pub operations: BTreeMap<&'static str, IntervalOf>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct IntervalOf {
    pub observed: bool,
    pub sent: u64,
    pub answered: u64,
    pub refused: u64,
    pub unanswered: u64,
    /// Of what was answered, to two digits.
    pub latencies: Option<Latencies>,
}

impl Recorder {
    /// What is due before `warm_up` has passed is in the series, and in no total.
    #[must_use]
    pub fn new(warm_up: Duration) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores.clamp(1, SHARDS_MAX)).map(|_| Mutex::default()).collect();
        let shared = Shared {
            warm_up,
            ends_us: AtomicU64::new(u64::MAX),
            shards,
            next: AtomicUsize::new(1),
            names: Mutex::default(),
            series: Mutex::default(),
        };
        Self { shared: Arc::new(shared), shard: 0 }
    }

    /// The measured time is over `at`, since the run's start, or has been before. What comes later is none of what was got done in it.
    pub fn ends_at(&self, at: Duration) {
        self.shared.ends_us.fetch_min(micros(at), Ordering::Relaxed);
    }

    /// A request was begun. Each one sent ends once: answered, refused or unanswered.
    pub fn sent(&self, operation: &'static str) {
        self.shard().of(&self.shared, operation).sent += 1;
    }

    /// An operation that is begun with this request was `due`, and began `late`.
    pub fn began(&self, operation: &'static str, due: Duration, late: Duration) {
        if due >= self.shared.warm_up {
            self.shard().of(&self.shared, operation).total.lag.record(late);
        }
    }

    /// A request got what it asked for. `due` is since the run's start: when the clock of an open loop wanted it to begin (in a
    /// closed loop: when it began); `latency` counts from there.
    pub fn answered(&self, operation: &'static str, due: Duration, latency: Duration) {
        let mut shard = self.shard();
        let of = shard.of(&self.shared, operation);
        of.interval.answered += 1;
        of.latencies.record(latency);
        of.in_time.answered += u64::from(self.shared.is_measured(due + latency));
        if due >= self.shared.warm_up {
            of.total.answered += 1;
            of.total.latencies.record(latency);
            of.in_time.late += u64::from(self.shared.is_late(due + latency));
        }
    }

    /// A request was answered with the protocol's `code`.
    pub fn refused(&self, operation: &'static str, code: &str, due: Duration, latency: Duration) {
        let mut shard = self.shard();
        let of = shard.of(&self.shared, operation);
        of.interval.refused += 1;
        of.in_time.refused += u64::from(self.shared.is_measured(due + latency));
        if due >= self.shared.warm_up {
            of.total.refused += 1;
            of.total.refusals.record(latency);
            count(&mut of.total.errors, code, 1);
        }
    }

    /// A request will get no answer: `why` is "timeout" or the like.
    pub fn unanswered(&self, operation: &'static str, why: &str, due: Duration) {
        let mut shard = self.shard();
        let of = shard.of(&self.shared, operation);
        of.interval.unanswered += 1;
        if due >= self.shared.warm_up {
            of.total.unanswered += 1;
            count(&mut of.total.errors, why, 1);
        }
    }

    /// Something that is no request took a time: a delivery, the generator's lateness. `since` is since the run's start.
    pub fn observed(&self, operation: &'static str, since: Duration, took: Duration) {
        let mut shard = self.shard();
        let of = shard.of(&self.shared, operation);
        of.total.observed = true;
        of.interval.answered += 1;
        of.latencies.record(took);
        of.in_time.answered += u64::from(self.shared.is_measured(since + took));
        if since >= self.shared.warm_up {
            of.total.answered += 1;
            of.total.latencies.record(took);
        }
    }

    /// Of what is observed so many never came, of the measured time: they are in no percentile, and told as errors.
    pub fn missed(&self, operation: &'static str, times: u64) {
        if times == 0 {
            return;
        }
        let mut shard = self.shard();
        let of = shard.of(&self.shared, operation);
        of.total.observed = true;
        of.interval.unanswered += times;
        of.total.unanswered += times;
        count(&mut of.total.errors, MISSING, times);
    }

    /// Ends an interval at `now`, since the run's start: about once a second, from one task, and once at the end.
    pub fn close_interval(&self, now: Duration) -> Interval {
        let mut series = lock(&self.shared.series);
        let mut interval = Interval {
            at: series.until,
            width: now.saturating_sub(series.until),
            ..Interval::default()
        };
        for shard in &self.shared.shards {
            for (name, of) in &mut lock(shard).operations {
                let sum = interval.operations.entry(*name).or_default();
                sum.observed |= of.total.observed;
                sum.sent += std::mem::take(&mut of.sent);
                let counts = std::mem::take(&mut of.interval);
                sum.answered += counts.answered;
                sum.refused += counts.refused;
                sum.unanswered += counts.unanswered;
                if of.latencies.count() > 0 {
                    sum.latencies.get_or_insert_with(Latencies::coarse).add(&of.latencies);
                    of.latencies.clear();
                }
            }
        }
        for of in interval.operations.values().filter(|of| !of.observed) {
            series.in_flight += i128::from(of.sent);
            series.in_flight -= i128::from(of.answered + of.refused + of.unanswered);
        }
        // an answer may be in a shard that was looked at before its request's
        interval.in_flight = u64::try_from(series.in_flight).unwrap_or_default();
        series.until = now.max(series.until);
        series.push(&interval);
        interval
    }

    /// All of it so far. Call [`Recorder::close_interval`] before, so that the last interval is in the series.
    #[must_use]
    pub fn measured(&self) -> Measured {
        let mut operations: BTreeMap<String, Operation> = BTreeMap::new();
        for shard in &self.shared.shards {
            for (name, of) in &lock(shard).operations {
                let sum = operations.entry((*name).to_owned()).or_default();
                sum.observed |= of.total.observed;
                sum.answered += of.total.answered;
                sum.refused += of.total.refused;
                sum.unanswered += of.total.unanswered;
                sum.latencies.add(&of.total.latencies);
                sum.refusals.add(&of.total.refusals);
                sum.lag.add(&of.total.lag);
                for (code, times) in &of.total.errors {
                    count(&mut sum.errors, code, *times);
                }
                let in_time = sum.in_time.get_or_insert_default();
                in_time.answered += of.in_time.answered;
                in_time.refused += of.in_time.refused;
                in_time.late += of.in_time.late;
            }
        }
        let series = lock(&self.shared.series).points.iter().map(Wide::point).collect();
        Measured { operations, series }
    }

    fn shard(&self) -> MutexGuard<'_, Shard> {
        lock(&self.shared.shards[self.shard])
    }
}

impl Clone for Recorder {
    /// Another task's: it writes to the next shard.
    fn clone(&self) -> Self {
        let next = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared), shard: next % self.shared.shards.len() }
    }
}

struct Shared {
    warm_up: Duration,
    ends_us: AtomicU64,
    shards: Vec<Mutex<Shard>>,
    next: AtomicUsize,
    /// Every name that a shard knows.
    names: Mutex<Vec<&'static str>>,
    series: Mutex<Series>,
}

impl Shared {
    /// Whether what happened `at` was in the measured time.
    fn is_measured(&self, at: Duration) -> bool {
        at >= self.warm_up && !self.is_late(at)
    }

    fn is_late(&self, at: Duration) -> bool {
        micros(at) >= self.ends_us.load(Ordering::Relaxed)
    }

    /// The name under which an operation is counted.
    fn name(&self, operation: &'static str) -> &'static str {
        let mut names = lock(&self.names);
        if names.contains(&operation) {
            return operation;
        }
        // the last place is for all that find none
        if names.len() + 1 >= OPERATIONS_MAX {
            return OTHER;
        }
        names.push(operation);
        operation
    }
}

/// What the tasks of one shard told, by operation: so few that a walk is quicker than a hash.
#[derive(Default)]
struct Shard {
    operations: Vec<(&'static str, Of)>,
}

struct Of {
    /// Since the run's start; without the warm-up.
    total: Operation,
    in_time: InTime,
    /// Since the last interval was closed.
    sent: u64,
    interval: Counts,
    latencies: Latencies,
}

#[derive(Default)]
struct Counts {
    answered: u64,
    refused: u64,
    unanswered: u64,
}

impl Shard {
    fn of(&mut self, shared: &Shared, operation: &'static str) -> &mut Of {
        let place = |shard: &Self, name| shard.operations.iter().position(|(it, _)| *it == name);
        let at = place(self, operation).unwrap_or_else(|| {
            let name = shared.name(operation);
            place(self, name).unwrap_or_else(|| {
                let of = Of {
                    total: Operation::default(),
                    in_time: InTime::default(),
                    sent: 0,
                    interval: Counts::default(),
                    latencies: Latencies::coarse(),
                };
                self.operations.push((name, of));
                self.operations.len() - 1
            })
        });
        &mut self.operations[at].1
    }
}

/// Points so far; their histograms are kept packed, so that two points can become one without a guess.
#[derive(Default)]
struct Series {
    until: Duration,
    in_flight: i128,
    points: Vec<Wide>,
    /// So many intervals make a point now.
    each: u32,
    /// Intervals that are in the last point already.
    within: u32,
}

struct Wide {
    at: Duration,
    width: Duration,
    in_flight: u64,
    operations: BTreeMap<&'static str, WideOf>,
}

#[derive(Default)]
struct WideOf {
    sent: u64,
    answered: u64,
    errors: u64,
    packed: Option<Vec<u8>>,
}

impl Series {
    fn push(&mut self, interval: &Interval) {
        let wide = Wide {
            at: interval.at,
            width: interval.width,
            in_flight: interval.in_flight,
            operations: interval.operations.iter().map(|(name, of)| (*name, of.into())).collect(),
        };
        match self.points.last_mut() {
            Some(last) if self.within < self.each => {
                last.join(wide);
                self.within += 1;
            }
            _ => {
                if self.points.len() == POINTS_MAX {
                    self.halve();
                }
                self.points.push(wide);
                self.within = 1;
            }
        }
    }

    fn halve(&mut self) {
        let mut points = std::mem::take(&mut self.points).into_iter();
        while let Some(mut point) = points.next() {
            if let Some(next) = points.next() {
                point.join(next);
            }
            self.points.push(point);
        }
        self.each = self.each.max(1).saturating_mul(2);
    }
}

impl Wide {
    /// `next` follows at once.
    fn join(&mut self, next: Self) {
        self.width += next.width;
        self.in_flight = next.in_flight;
        for (name, of) in next.operations {
            let sum = self.operations.entry(name).or_default();
            sum.sent += of.sent;
            sum.answered += of.answered;
            sum.errors += of.errors;
            sum.packed = match (sum.latencies(), of.latencies()) {
                (Some(mut all), Some(more)) => {
                    all.add(&more);
                    Some(all.encoded())
                }
                (None, Some(_)) => of.packed,
                (_, None) => sum.packed.take(),
            };
        }
    }

    fn point(&self) -> Point {
        Point {
            at_ms: millis(self.at),
            width_ms: millis(self.width),
            in_flight: self.in_flight,
            operations: self
                .operations
                .iter()
                .map(|(name, of)| ((*name).to_owned(), of.point()))
                .collect(),
        }
    }
}

impl From<&IntervalOf> for WideOf {
    fn from(of: &IntervalOf) -> Self {
        Self {
            sent: of.sent,
            answered: of.answered,
            errors: of.refused + of.unanswered,
            packed: of.latencies.as_ref().map(Latencies::encoded),
        }
    }
}

impl WideOf {
    fn latencies(&self) -> Option<Latencies> {
        self.packed.as_ref().and_then(|packed| Latencies::decoded(packed).ok())
    }

    fn point(&self) -> PointOf {
        let latencies = self.latencies().unwrap_or_else(Latencies::coarse);
        PointOf {
            sent: self.sent,
            answered: self.answered,
            errors: self.errors,
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            max_us: latencies.max_us(),
        }
    }
}

fn count(errors: &mut BTreeMap<String, u64>, code: &str, times: u64) {
    // the last place is for all that find none
    let is_full = errors.len() + 1 >= ERRORS_MAX && !errors.contains_key(code);
    *errors.entry(if is_full { OTHER } else { code }.to_owned()).or_default() += times;
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a panicking task held is only counts: they are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why what was to come is not there.
const MISSING: &str = "missing";
/// Where names go that have no place of their own.
const OTHER: &str = "other";
/// More than this many cores are not slowed down by one another here.
const SHARDS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_many_tasks_tell_is_there_once() {
        let recorder = Recorder::new(Duration::ZERO);
        std::thread::scope(|scope| {
            for task in 0..20_u64 {
                let recorder = recorder.clone();
                scope.spawn(move || {
                    for it in 0..100 {
                        recorder.sent("message");
                        match it % 10 {
                            0 => recorder.refused("message", "wrong_epoch", ms(it), ms(1)),
                            1 => recorder.unanswered("message", "timeout", ms(it)),
                            _ => recorder.answered("message", ms(it), ms(task + 1)),
                        }
                        recorder.observed("delivery", ms(it), ms(5));
                    }
                });
            }
        });
        let interval = recorder.close_interval(SECOND);
        let of = &interval.operations["message"];
        assert_eq!((of.sent, of.answered, of.refused, of.unanswered), (2000, 1600, 200, 200));
        assert_eq!(interval.in_flight, 0);
        let Measured { operations, series } = recorder.measured();
        let of = &operations["message"];
        assert_eq!((of.answered, of.refused, of.unanswered), (1600, 200, 200));
        assert_eq!((of.latencies.count(), of.refusals.count()), (1600, 200));
        assert_eq!(
            of.errors,
            BTreeMap::from([("timeout".into(), 200), ("wrong_epoch".into(), 200)])
        );
        assert_eq!((of.observed, operations["delivery"].observed), (false, true));
        assert_eq!(operations["delivery"].answered, 2000);
        let point = &series[0].operations["message"];
        assert_eq!((series.len(), series[0].width_ms), (1, 1000));
        assert_eq!((point.sent, point.answered, point.errors), (2000, 1600, 400));
        assert!((19_900..=20_300).contains(&point.max_us), "{point:?}");
    }

    #[test]
    fn the_warm_up_is_in_the_series_and_in_no_total() {
        let recorder = Recorder::new(SECOND);
        for due in [0, 999, 1000] {
            recorder.sent("add");
            recorder.answered("add", ms(due), ms(3000));
            recorder.refused("add", "busy", ms(due), ms(1));
            recorder.unanswered("add", "timeout", ms(due));
            recorder.observed("delivery", ms(due), ms(1));
        }
        recorder.close_interval(SECOND);
        let Measured { operations, series } = recorder.measured();
        let of = &operations["add"];
        assert_eq!((of.answered, of.refused, of.unanswered), (1, 1, 1));
        assert_eq!(of.errors.values().sum::<u64>(), 2);
        assert_eq!(operations["delivery"].answered, 1);
        assert_eq!(series[0].operations["add"].answered, 3);
    }

    #[test]
    fn what_was_got_done_in_the_measured_time_is_what_came_in_it_whenever_it_was_due() {
        let recorder = Recorder::new(SECOND);
        recorder.ends_at(3 * SECOND);
        recorder.ends_at(9 * SECOND);
        // due and answered, each in ms: before it, into it, within, out of it, behind it
        for (due, took) in [(0, 999), (500, 500), (1000, 10), (1500, 1500), (2999, 40_000)] {
            recorder.answered("message", ms(due), ms(took));
            recorder.refused("message", "busy", ms(due), ms(took));
            recorder.observed("delivery", ms(due), ms(took));
        }
        let operations = recorder.measured().operations;
        let of = &operations["message"];
        assert_eq!((of.answered, of.refused), (3, 3), "what was due in it");
        assert_eq!(of.in_time(), InTime { answered: 2, refused: 2, late: 2 });
        assert_eq!(operations["delivery"].in_time().answered, 2);
        // a run that is stopped ends earlier
        recorder.ends_at(2 * SECOND);
        recorder.answered("message", ms(1000), ms(1000));
        assert_eq!(recorder.measured().operations["message"].in_time().late, 3);
    }

    #[test]
    fn what_never_came_is_counted_and_is_no_request() {
        let recorder = Recorder::new(Duration::ZERO);
        recorder.missed("delivery", 0);
        assert!(recorder.measured().operations.is_empty());
        recorder.clone().observed("delivery", ms(1), ms(1));
        recorder.missed("delivery", 3);
        assert_eq!(recorder.close_interval(SECOND).in_flight, 0);
        let of = &recorder.measured().operations["delivery"];
        assert_eq!((of.observed, of.answered, of.unanswered), (true, 1, 3));
        assert_eq!(of.errors, BTreeMap::from([("missing".into(), 3)]));
    }

    #[test]
    fn requests_without_an_answer_are_in_flight_from_interval_to_interval() {
        let recorder = Recorder::new(Duration::ZERO);
        recorder.sent("add");
        recorder.sent("add");
        recorder.observed("delivery", ms(0), ms(1));
        assert_eq!(recorder.close_interval(SECOND).in_flight, 2);
        recorder.answered("add", ms(0), ms(1100));
        let second = recorder.close_interval(2 * SECOND);
        assert_eq!((second.in_flight, second.at, second.width), (1, SECOND, SECOND));
        assert_eq!(second.operations["add"].sent, 0, "an interval holds what happened in it");
    }

    #[test]
    fn a_series_of_any_length_is_bounded_and_loses_no_count() {
        let recorder = Recorder::new(Duration::ZERO);
        let seconds = u32::try_from(POINTS_MAX).unwrap() * 5 + 3;
        for second in 1..=seconds {
            recorder.sent("add");
            // the longest one is in the second minute
            let took = if second == 100 { ms(900) } else { ms(10) };
            recorder.answered("add", second * SECOND, took);
            recorder.close_interval(second * SECOND);
        }
        let series = recorder.measured().series;
        assert!(series.len() <= POINTS_MAX && series.len() > POINTS_MAX / 2, "{}", series.len());
        let mut until = 0;
        for point in &series {
            assert_eq!(point.at_ms, until, "one follows the other");
            until += point.width_ms;
        }
        assert_eq!(until, u64::from(seconds) * 1000);
        let counts = series.iter().map(|point| point.operations["add"].answered);
        assert_eq!(counts.sum::<u64>(), u64::from(seconds));
        let longest = series.iter().max_by_key(|point| point.operations["add"].max_us).unwrap();
        assert!(longest.at_ms <= 99_000 && longest.at_ms + longest.width_ms > 99_000);
        let median = longest.operations["add"].p50_us;
        assert!((9_900..=10_200).contains(&median), "joined exactly: {median}");
    }

    #[test]
    fn names_and_codes_beyond_the_bound_are_counted_as_other() {
        let recorder = Recorder::new(Duration::ZERO);
        let names = (0..OPERATIONS_MAX + 10).map(|at| -> &'static str { format!("n{at}").leak() });
        for name in names {
            for recorder in [recorder.clone(), recorder.clone()] {
                recorder.sent(name);
                recorder.answered(name, ms(0), ms(1));
            }
        }
        for code in 0..ERRORS_MAX + 10 {
            recorder.refused("n0", &format!("c{code}"), ms(0), ms(1));
        }
        let operations = recorder.measured().operations;
        assert_eq!(operations.len(), OPERATIONS_MAX);
        assert_eq!(operations["other"].answered, 22);
        let errors = &operations["n0"].errors;
        assert_eq!((errors.len(), errors["other"]), (ERRORS_MAX, 11));
        assert_eq!(errors.values().sum::<u64>(), operations["n0"].refused);
    }
}
