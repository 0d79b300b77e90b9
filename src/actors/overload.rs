//! Who is let in while there is more to do than can be done: the node's one [`Overload`], told the time, and what it is told of.
//!
//! Waits are measured by what is in the way itself: a task that is put behind all others of a thread, again and again while there are
//! requests (`Probes`). Deliberately absent: how much is let in ([`crate::rate`]).

use std::{
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::{
    Gauge, GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::time::Instant;

use super::{arbiters::Duty, errors::detail, hints::locked, node::Node};
use crate::{
    crypto,
    rate::{Class, LANES_MAX, Lane, Overload, OverloadSettings, Stage},
    wire::ds::DsError,
};

/// The node's admission by measured waits. Clones are the same.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    overload: Mutex<Overload>,
    began: Instant,
    /// Of each thread of actors.
    probes: Vec<Probes>,
}

/// The probes of one thread. One is sent every so often whether the one before is back or not: where all wait for long, those that
/// are back would else be too few to say so.
#[derive(Default)]
struct Probes {
    out: AtomicUsize,
    /// When the next one is, in microseconds.
    due_us: AtomicU64,
}

/// Many for each time that waits are judged ([`crate::rate`]), and few against requests: each wakes a thread that may have nothing to do.
const PROBES_APART: Duration = Duration::from_millis(5);
/// Beyond, none is sent. Of waits of some seconds there are still enough.
const PROBES_OUT_MAX: usize = 64;

impl Probes {
    /// Whether to send one at `now`. It is told of by [`Self::is_back`].
    fn send(&self, now: Duration) -> bool {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let due = self.due_us.load(Ordering::Relaxed);
        let next = us(now + PROBES_APART);
        if us(now) < due || self.out.load(Ordering::Relaxed) >= PROBES_OUT_MAX {
            return false;
        }
        // of several threads that see that it is due one sends it
        let swap = self.due_us.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
        if swap.is_ok() {
            self.out.fetch_add(1, Ordering::Relaxed);
        }
        swap.is_ok()
    }

    fn is_back(&self) {
        self.out.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that was let in, until it is answered or goes on elsewhere.
pub struct Ticket(Admission);

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = self.0.now();
        locked(&self.0.0.overload).done(now);
    }
}

impl Admission {
    pub(super) fn new(settings: OverloadSettings, actor_threads: usize) -> Self {
        Self(Arc::new(Inner {
            overload: Mutex::new(Overload::new(settings)),
            began: Instant::now(),
            probes: (0..actor_threads).map(|_| Probes::default()).collect(),
        }))
    }

    /// Goes by other settings from now on.
    pub fn set(&self, settings: OverloadSettings) {
        locked(&self.0.overload).set(settings);
    }

    /// As if all that was taken up had waited for so long, an hour from now: until then nothing that passes changes it.
    #[cfg(test)]
    pub(crate) fn press(&self, waited: Duration) {
        let now = self.now() + Duration::from_secs(3600);
        for n in 0..20 {
            let lane = Lane { stage: Stage::Actors, number: 0 };
            let now = now + Duration::from_millis(50) * n;
            locked(&self.0.overload).waited(lane, waited, now);
        }
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn waited(&self, stage: Stage, number: usize, since: Instant) {
        let lane = Lane { stage, number };
        let now = self.now();
        locked(&self.0.overload).waited(lane, since.elapsed(), now);
    }
}

impl Node {
    /// Takes in a request of `class`, or says when it may come again. The node's waits are measured on the way.
    ///
    /// # Errors
    /// unavailable: nothing was done for it.
    pub fn admit(&self, class: Class) -> Result<Ticket, DsError> {
        self.probe_actors();
        let admission = &self.admission;
        let (behind, now) = (self.store.queue_delay(), admission.now());
        let admitted = {
            let mut overload = locked(&admission.0.overload);
            overload.waited(Lane { stage: Stage::Store, number: 0 }, behind, now);
            let random = || u64::from_be_bytes(crypto::random());
            // chance is only asked for where it is wanted
            overload.admit(class, now, random)
        };
        admitted.map(|()| Ticket(admission.clone())).map_err(|shed| {
            self.metrics.shed(class, "delay");
            DsError::Unavailable {
                detail: detail("this provider has more to do than it can; try again later"),
                retry_after_ms: u64::try_from(shed.retry_after.as_millis()).unwrap_or(u64::MAX),
            }
        })
    }

    /// Measures how long this thread, which serves HTTP, leaves something waiting. Called with each request.
    pub fn probe_worker(&self) {
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed) % LANES_MAX;
            static PROBES: Probes = Probes::default();
        }
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        static BEGAN: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
        // one thread can be several nodes': their times begin at different moments
        if !PROBES.with(|probes| probes.send(BEGAN.elapsed())) {
            return;
        }
        let (admission, since) = (self.admission.clone(), Instant::now());
        actix_rt::spawn(async move {
            PROBES.with(Probes::is_back);
            admission.waited(Stage::Workers, NUMBER.with(|number| *number), since);
        });
    }

    /// The same of the threads that groups live on. Queues live on others: what they deliver may wait, and refusing shortens it by nothing.
    fn probe_actors(&self) {
        let now = self.admission.now();
        for (number, probes) in self.admission.0.probes.iter().enumerate() {
            if !probes.send(now) {
                continue;
            }
            let (admission, since) = (self.admission.clone(), Instant::now());
            self.arbiters.spawn_on(Duty::Decide, number as u64, async move {
                admission.0.probes[number].is_back();
                admission.waited(Stage::Actors, number, since);
            });
        }
    }
}

/// What operators see of it: read at each scrape.
pub(super) struct AdmissionCollector {
    admission: Admission,
    descs: Vec<Desc>,
}

const DELAY: (&str, &str) = (
    "mimid_admission_delay_seconds",
    "The least wait of the last while in the worst thread of a stage; requests are refused while one is above limits.delay_max",
);
const RATE: (&str, &str) = (
    "mimid_admission_rate",
    "Requests that are let in in a second at most, because some waited too long; 0 while all are",
);

impl AdmissionCollector {
    pub fn new(admission: Admission) -> Result<Self, prometheus::Error> {
        let mut descs: Vec<Desc> = delays()?.desc().into_iter().cloned().collect();
        descs.extend(Gauge::new(RATE.0, RATE.1)?.desc().into_iter().cloned());
        Ok(Self { admission, descs })
    }

    fn read(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let now = self.admission.now();
        let mut overload = locked(&self.admission.0.overload).clone();
        let by_stage = delays()?;
        for stage in Stage::ALL {
            let delay = overload.standing(stage, now);
            by_stage.with_label_values(&[stage.name()]).set(delay.as_secs_f64());
        }
        let mut families = by_stage.collect();
        let gauge = Gauge::new(RATE.0, RATE.1)?;
        gauge.set(overload.rate_at(now).unwrap_or_default());
        families.extend(gauge.collect());
        Ok(families)
    }
}

fn delays() -> Result<GaugeVec, prometheus::Error> {
    GaugeVec::new(Opts::new(DELAY.0, DELAY.1), &["stage"])
}

impl Collector for AdmissionCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_than_a_second_are_seen_by_what_is_sent_before_the_first_is_back() {
        let probes = Probes::default();
        let mut overload =
            Overload::new(OverloadSettings { delay_max: Some(Duration::from_millis(50)) });
        let wait = Duration::from_millis(1500);
        let (mut out, mut standing) = (std::collections::VecDeque::new(), Duration::ZERO);
        for ms in 0..5_000 {
            let now = Duration::from_millis(ms);
            // a request each millisecond
            if probes.send(now) {
                out.push_back(now);
            }
            assert!(out.len() <= PROBES_OUT_MAX);
            while let Some(since) = out.front().copied().filter(|since| now - *since >= wait) {
                out.pop_front();
                probes.is_back();
                overload.waited(Lane { stage: Stage::Workers, number: 0 }, now - since, now);
            }
            standing = overload.standing(Stage::Workers, now);
        }
        assert_eq!(standing, wait);
        out.into_iter().for_each(|_| probes.is_back());
        let sent = (5_000..6_000).filter(|us| {
            let is_sent = probes.send(Duration::from_secs(10) + Duration::from_micros(*us * 100));
            if is_sent {
                probes.is_back();
            }
            is_sent
        });
        assert_eq!(sent.count(), 20, "of a thousand requests in 100 ms");
    }
}
