//! How many requests are taken in a second while there is more to do than can be done. Pure: times and randomness are told.
//!
//! **What is measured** is how long those wait who are taken up: in each [`Lane`] (a thread, or the store's writer) the *least*
//! wait of a while, as CoDel does (RFC 8289 §3): a burst passes, a queue that stands does not. **What follows**: while some lane's
//! wait is above [`OverloadSettings::delay_max`], no more is taken than was got done of late, a little less the longer the queue is; once it is
//! below, more by and by, and after a calm while everything. The queue is so kept short and never empty: work goes on at
//! full speed, and whoever is let in is answered soon.
//!
//! **Who is refused** is decided by [`Class`]: each class that asks has a share of what is taken that no other class takes from it,
//! and what one leaves goes to the others, the most valuable first.
//!
//! Deliberately absent: one group's own queue ([`Line`](super::Line)), and bounds that stand whatever the load (permits).

use std::time::Duration;

/// What a request is worth where not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Reading a queue and acknowledging, deleting a device or an account: memory and disk are freed by it.
    Relief,
    /// A change of a group, or what somebody needs who is half-way in: others wait for it.
    Commit,
    /// A message, a proposal, a new group.
    Message,
    /// Accounts, KeyPackages, tokens, keys: can wait.
    Account,
    /// From another provider.
    Peer,
}

impl Class {
    pub const ALL: [Self; 5] =
        [Self::Relief, Self::Commit, Self::Message, Self::Account, Self::Peer];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relief => "relief",
            Self::Commit => "commit",
            Self::Message => "message",
            Self::Account => "account",
            Self::Peer => "peer",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Relief => 0,
            Self::Commit => 1,
            Self::Message => 2,
            Self::Account => 3,
            Self::Peer => 4,
        }
    }

    /// Its part of what is taken, where all of them ask.
    fn weight(self) -> f64 {
        match self {
            Self::Relief | Self::Commit | Self::Peer => 4.0,
            Self::Message => 6.0,
            Self::Account => 2.0,
        }
    }

    /// How full the common bucket must be for this class to take of it: what others have left goes to the most valuable first.
    fn leaves(self) -> f64 {
        match self {
            Self::Relief | Self::Commit => 0.0,
            Self::Message | Self::Peer => 0.1,
            Self::Account => 0.4,
        }
    }
}

/// Where requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// For a thread that serves HTTP.
    Workers,
    /// For a thread that groups live on.
    Actors,
    /// For the store's writer, beyond the flush that is under way.
    Store,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Workers, Self::Actors, Self::Store];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Actors => "actors",
            Self::Store => "store",
        }
    }
}

/// One thread of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane {
    pub stage: Stage,
    /// Below [`LANES_MAX`]; those beyond share the last one.
    pub number: usize,
}

/// Lanes of a stage that are told apart.
pub const LANES_MAX: usize = 64;

/// What an operator may choose; can be replaced while requests are served. As it comes nothing is refused for waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OverloadSettings {
    /// A wait that stands above this is overload. None: nothing is refused for waits.
    pub delay_max: Option<Duration>,
}

/// One too many. It may come again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    pub retry_after: Duration,
}

/// The state of a node. All times are since some moment that stays the same.
#[derive(Debug, Clone)]
pub struct Overload {
    settings: OverloadSettings,
    lanes: [Vec<Waits>; 3],
    /// What is taken in a second; none while all of it is.
    rate: Option<f64>,
    /// What was got done in a second of late.
    done_rate: f64,
    buckets: Buckets,
    window: Window,
    /// Windows in a row without a refusal.
    calm: u32,
    /// Of what was asked for of late, the part that was refused.
    strain: f64,
}

/// The waits in one lane.
#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    since: Duration,
    least: Option<Duration>,
    samples: u32,
    /// The least wait of the last while.
    standing: Duration,
    judged_at: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    began: Duration,
    done: u32,
    admitted: u32,
    shed: u32,
}

impl Overload {
    #[must_use]
    pub fn new(settings: OverloadSettings) -> Self {
        Self {
            settings,
            lanes: Default::default(),
            rate: None,
            done_rate: 0.0,
            buckets: Buckets::default(),
            window: Window::default(),
            calm: 0,
            strain: 0.0,
        }
    }

    /// Goes by other settings from now on.
    pub fn set(&mut self, settings: OverloadSettings) {
        self.settings = settings;
        if settings.delay_max.is_none() {
            *self = Self::new(settings);
        }
    }

    /// Takes a request in, or not. `random` (all of its values alike) decides where the hint lies, so that those that are refused
    /// together do not come back together. What is taken in is told of by [`Self::done`] when it is over.
    ///
    /// # Errors
    /// [`Shed`]: it is one too many now.
    pub fn admit(
        &mut self,
        class: Class,
        now: Duration,
        random: impl FnOnce() -> u64,
    ) -> Result<(), Shed> {
        if self.settings.delay_max.is_none() {
            return Ok(());
        }
        self.turn(now);
        if let Some(rate) = self.rate
            && !self.buckets.take(class, rate, now)
        {
            self.window.shed = self.window.shed.saturating_add(1);
            return Err(Shed { retry_after: self.hint(random()) });
        }
        self.window.admitted = self.window.admitted.saturating_add(1);
        Ok(())
    }

    /// What was taken in has been answered, or goes on elsewhere.
    pub fn done(&mut self, now: Duration) {
        self.window.done = self.window.done.saturating_add(1);
        self.turn(now);
    }

    /// Something was taken up in `lane` after it had waited for so long.
    pub fn waited(&mut self, lane: Lane, waited: Duration, now: Duration) {
        let lanes = &mut self.lanes[lane.stage as usize];
        let number = lane.number.min(LANES_MAX - 1);
        if lanes.len() <= number {
            lanes.resize_with(number + 1, || Waits { since: now, ..Waits::default() });
        }
        lanes[number].took(waited, now);
        self.turn(now);
    }

    /// What is taken in a second; none while all of it is.
    #[must_use]
    pub fn rate_at(&mut self, now: Duration) -> Option<f64> {
        self.turn(now);
        self.rate
    }

    /// The wait that stands in `stage`, in its worst lane.
    #[must_use]
    pub fn standing(&self, stage: Stage, now: Duration) -> Duration {
        let lanes = self.lanes[stage as usize].iter();
        lanes.map(|lane| lane.standing(now)).max().unwrap_or_default()
    }

    fn turn(&mut self, now: Duration) {
        let (Some(delay_max), passed) =
            (self.settings.delay_max, now.saturating_sub(self.window.began))
        else {
            return;
        };
        if passed < WINDOW {
            return;
        }
        let window =
            std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
        let rate = f64::from(window.done) / passed.as_secs_f64();
        // after a pause the past says nothing
        let weight = if passed > LANE_MAX { 1.0 } else { SMOOTHING };
        self.done_rate += weight * (rate - self.done_rate);
        let asked = f64::from(window.shed) + f64::from(window.admitted);
        let refused = if asked > 0.0 { f64::from(window.shed) / asked } else { 0.0 };
        self.strain += weight * (refused - self.strain);
        self.calm = if window.shed > 0 { 0 } else { self.calm.saturating_add(1) };

        let standing = Stage::ALL.map(|stage| self.standing(stage, now));
        let standing = standing.into_iter().max().unwrap_or_default();
        let excess = standing.as_secs_f64() - delay_max.as_secs_f64();
        if excess > 0.0 && passed <= LANE_MAX {
            let slower = (1.0 - excess / DRAIN.as_secs_f64()).max(SLOWEST);
            let rate = (self.done_rate * slower).max(RATE_MIN);
            self.buckets.begin(self.rate.is_none(), rate, now);
            self.rate = Some(rate);
            self.calm = 0;
        } else if self.calm >= CALM_WINDOWS || passed > LANE_MAX {
            self.rate = None;
        } else if let Some(rate) = &mut self.rate
            && window.shed > 0
        {
            let room = (-excess / delay_max.as_secs_f64()).clamp(0.0, 1.0);
            *rate *= 1.0 + GROWTH * room;
        }
    }

    /// When who is refused may come again: as much later as more is refused than taken.
    fn hint(&self, random: u64) -> Duration {
        let times = 1.0 / (1.0 - self.strain).max(HINT_BASE.as_secs_f64() / HINT_MAX.as_secs_f64());
        let least = HINT_BASE.mul_f64(times.max(1.0)).min(HINT_MAX);
        let thousandths = u32::try_from(random % 1000).unwrap_or_default();
        least + least * thousandths / 1000
    }
}

impl Waits {
    fn took(&mut self, waited: Duration, now: Duration) {
        let passed = now.saturating_sub(self.since);
        if passed > LANE_MAX && self.samples < SAMPLES_MIN {
            // too few for a queue to stand
            *self = Self { since: now, ..Self::default() };
        }
        self.samples += 1;
        self.least = Some(self.least.map_or(waited, |least| least.min(waited)));
        if passed >= WINDOW && self.samples >= SAMPLES_MIN {
            let standing = self.least.unwrap_or_default();
            *self = Self { since: now, least: None, samples: 0, standing, judged_at: now };
        }
    }

    fn standing(&self, now: Duration) -> Duration {
        if now.saturating_sub(self.judged_at) > LANE_MAX { Duration::ZERO } else { self.standing }
    }
}

/// What may be taken at this moment, in requests: each class' own part, and what no class has taken of its own.
#[derive(Debug, Clone, Default)]
struct Buckets {
    own: [f64; 5],
    common: f64,
    filled_at: Duration,
    /// When each class asked last.
    asked_at: [Option<Duration>; 5],
}

impl Buckets {
    /// From here on the buckets are what is taken from; `is_first`: before, everything was taken.
    fn begin(&mut self, is_first: bool, rate: f64, now: Duration) {
        if is_first {
            (self.own, self.common, self.filled_at) = ([0.0; 5], 1.0, now);
            return;
        }
        self.fill(rate, now);
    }

    fn take(&mut self, class: Class, rate: f64, now: Duration) -> bool {
        self.asked_at[class.index()] = Some(now);
        self.fill(rate, now);
        let own = &mut self.own[class.index()];
        if *own >= 1.0 {
            *own -= 1.0;
            return true;
        }
        if self.common >= 1.0 + class.leaves() * capacity(rate) {
            self.common -= 1.0;
            return true;
        }
        false
    }

    /// What has come since the last time, to each class that asks its share; what a bucket does not hold goes to all.
    fn fill(&mut self, rate: f64, now: Duration) {
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = now.max(self.filled_at);
        let asks = |class: Class| {
            self.asked_at[class.index()].is_some_and(|at| now.saturating_sub(at) <= ASKS)
        };
        let asking = Class::ALL.map(asks);
        let weight = |class: Class| if asking[class.index()] { class.weight() } else { 0.0 };
        let weights: f64 = Class::ALL.into_iter().map(weight).sum();
        let comes = rate * passed.as_secs_f64();
        if weights == 0.0 {
            self.common += comes;
        }
        for class in Class::ALL {
            let own = &mut self.own[class.index()];
            if !asking[class.index()] {
                self.common += std::mem::take(own);
                continue;
            }
            let share = class.weight() / weights;
            *own += comes * share;
            let most = (capacity(rate) * share).max(1.0);
            if *own > most {
                self.common += *own - most;
                *own = most;
            }
        }
        self.common = self.common.min(capacity(rate));
    }
}

/// What the buckets hold.
fn capacity(rate: f64) -> f64 {
    (rate * BURST.as_secs_f64()).max(2.0)
}

/// How often it is judged.
const WINDOW: Duration = Duration::from_millis(100);
/// A lane's while has at least so many waits in it, or is no sign of anything.
const SAMPLES_MIN: u32 = 8;
/// What is older says nothing.
const LANE_MAX: Duration = Duration::from_secs(1);
/// What the last window counts for in what is known of late.
const SMOOTHING: f64 = 0.25;
/// A wait longer than the bound by this is answered by taking nothing, but for [`SLOWEST`].
const DRAIN: Duration = Duration::from_millis(500);
/// The least part of what is got done that is still taken.
const SLOWEST: f64 = 0.5;
/// The least that is taken in a second.
const RATE_MIN: f64 = 20.0;
/// More is taken by this part in each window while nothing waits.
const GROWTH: f64 = 0.1;
/// So many windows without a refusal, and everything is taken again.
const CALM_WINDOWS: u32 = 20;
/// A class that has not asked for so long has no share.
const ASKS: Duration = Duration::from_secs(1);
/// What comes at once is taken at once, up to what is taken in this time.
const BURST: Duration = Duration::from_millis(20);
/// The hint where next to nothing is refused, and the longest.
const HINT_BASE: Duration = Duration::from_millis(500);
const HINT_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
#[path = "overload_tests.rs"]
mod tests;
