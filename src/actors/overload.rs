//! Who is let in while there is more to do than can be done: the node's one [`Overload`], told the time, and what it is told of.
//!
//! Waits are measured by what is in the way itself: a task that is put behind all others of a thread, one at a time for each, and
//! only while there are requests. Deliberately absent: how much is let in ([`crate::rate`]).

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
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
    /// A probe is on its way on each thread of actors.
    probes: Vec<std::sync::atomic::AtomicBool>,
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
            probes: (0..actor_threads).map(|_| false.into()).collect(),
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
            static IS_OUT: Cell<bool> = const { Cell::new(false) };
        }
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if IS_OUT.replace(true) {
            return;
        }
        let (admission, since) = (self.admission.clone(), Instant::now());
        actix_rt::spawn(async move {
            IS_OUT.set(false);
            admission.waited(Stage::Workers, NUMBER.with(|number| *number), since);
        });
    }

    /// The same of the threads that groups live on. Queues live on others: what they deliver may wait, and refusing shortens it by nothing.
    fn probe_actors(&self) {
        for (number, is_out) in self.admission.0.probes.iter().enumerate() {
            if is_out.swap(true, Ordering::Relaxed) {
                continue;
            }
            let (admission, since) = (self.admission.clone(), Instant::now());
            self.arbiters.spawn_on(Duty::Decide, number as u64, async move {
                admission.0.probes[number].store(false, Ordering::Relaxed);
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
