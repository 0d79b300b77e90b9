//! The one thread of a store that writes. It gathers the batches that wait into one change of the engine and **one
//! flush**, so that many actors share it, and answers them when it is durable. Where many do, the next flush begins [`GATHER`] later, so
//! that more do.
//!
//! Here: the two lanes, their bounds, group commit, and what a failure does. What a batch means in keys is in
//! [`stage`](super::stage); reads are in [`reader`](super::reader).
//!
//! **Bounds.** What waits or is being written is at most [`QUEUE_BATCHES_MAX`] batches and [`QUEUE_BYTES_MAX`] bytes a lane;
//! beyond it a batch is refused with [`StoreError::Busy`] (a single batch of any size is taken when its lane is
//! empty). One flush takes at most [`FLUSH_OPERATIONS_MAX`] keys and [`FLUSH_BYTES_MAX`] bytes of the normal lane, and behind
//! them [`LOW_BYTES_PER_FLUSH`] of the low-priority lane. A batch is never split, save for a large snapshot, which [`spread`](super::spread) brings in
//! over several flushes.
//!
//! **Failure.** A read that fails, or panics, while a batch is judged refuses that batch alone ([`judged`]). After an error or a panic
//! of the engine while it writes it is not known what is on the disk, and a flush that is
//! repeated may succeed without having written anything. So there is no second try: all that wait are
//! answered [`StoreError::Unavailable`], the thread ends, and every later write is [`StoreError::ReadOnly`].

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};

#[cfg(test)]
pub(crate) mod stepped;

use super::{
    Batch, StoreError, WriteTimes,
    damage::Damages,
    engine::{Changes, Engine, Failure},
    histograms::Histograms,
    keys,
    plan::Plan,
    spread::{Begun, Spread},
    stage::Stage,
    tee::{self, Piece, Tee},
};

/// Keys in one flush.
const FLUSH_OPERATIONS_MAX: usize = 8_000;
/// Bytes of the normal lane in one flush.
const FLUSH_BYTES_MAX: usize = 4 << 20;
/// Bytes of the low-priority lane in one flush.
pub(super) const LOW_BYTES_PER_FLUSH: usize = 256 << 10;
/// Batches that wait in one lane.
pub(super) const QUEUE_BATCHES_MAX: usize = 32_768;
/// Bytes that wait in one lane.
const QUEUE_BYTES_MAX: usize = 256 << 20;
/// A flush that so many batches shared is a sign of more to come: the next one is begun [`GATHER`] later, and more share it. A flush
/// costs processors as much as several batches do.
const SHARED: usize = 4;
/// What an answer may wait for others to share its flush with, while there are others.
const GATHER: Duration = Duration::from_millis(2);
/// How long nothing is written until the engine is told that it has time.
const IDLE: Duration = Duration::from_secs(1);
/// How long a copy that stands still is left alone where nothing is written.
const COPY_PAUSE: Duration = Duration::from_millis(2);

/// What the writer's thread shares with those who write and read.
pub(super) struct Shared {
    pub engine: Box<dyn Engine>,
    /// Held for reading during every read of the engine, for writing while it is changed.
    pub view: RwLock<View>,
    pub durable: Durability,
    lanes: Mutex<Lanes>,
    wake: Condvar,
    pub counters: Counters,
    #[cfg(test)]
    pub tamper: std::sync::OnceLock<stepped::Tamper>,
    pub damages: Damages,
}

/// What is visible in the engine, but not known to be durable.
#[derive(Default)]
pub(super) struct View {
    /// The sequence of `pending`, or of the last that is durable.
    pub applied: u64,
    /// Empty when everything is durable. After a failure it stays: what it touches is in doubt.
    pub pending: Changes,
}

/// Up to where everything is durable, and who waits for more. Who came first is woken first: a `watch` of tokio wakes in an order of
/// chance, and with it a simulation would not be the same run twice.
pub(super) struct Durability {
    state: Mutex<Durable>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Durable {
    sequence: u64,
    failed: bool,
}

impl Durability {
    fn new(sequence: u64) -> Self {
        let state = Mutex::new(Durable { sequence, failed: false });
        Self { state, changed: Notify::new() }
    }

    /// Waits until `sequence` is durable; false where it may never be.
    pub async fn reaches(&self, sequence: u64) -> bool {
        loop {
            // from here on a change is not missed
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let durable = *locked(&self.state);
            if durable.failed || durable.sequence >= sequence {
                return durable.sequence >= sequence;
            }
            changed.await;
        }
    }

    fn reach(&self, sequence: u64) {
        locked(&self.state).sequence = sequence;
        self.changed.notify_waiters();
    }

    fn fail(&self) {
        locked(&self.state).failed = true;
        self.changed.notify_waiters();
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub batches: AtomicU64,
    pub flushes: AtomicU64,
    pub flush_us_total: AtomicU64,
    pub writes: AtomicU64,
    pub bytes_written: AtomicU64,
    pub read_failures: AtomicU64,
    pub histograms: Histograms,
    /// How often the thread came back to see what there is to do.
    pub turns: AtomicU64,
    /// How long the last batch that was written had waited, beyond the flush before it.
    pub behind_us: AtomicU64,
}

impl Counters {
    /// Counts a read that failed: of the engine, not of a record that is damaged, nor a refusal.
    pub fn note_read<T>(&self, result: &Result<T, StoreError>) {
        if let Err(StoreError::Unavailable(_)) = result {
            self.read_failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Lanes {
    normal: Lane,
    low: Lane,
    phase: Phase,
    /// Wants a copy of the store; taken by the writer's thread.
    copy_to: Option<mpsc::Sender<Piece>>,
    /// A copy is wanted or being made: one at a time.
    copying: bool,
    /// Those who wait for the end.
    closing: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

#[derive(Default)]
struct Lane {
    jobs: VecDeque<Job>,
    /// Counts what is being written too.
    batches: usize,
    bytes: usize,
}

#[derive(Default)]
enum Phase {
    #[default]
    Open,
    Closing,
    Closed,
    Failed(String),
}

pub(super) struct Job {
    pub plan: Plan,
    pub answer: oneshot::Sender<Result<(), StoreError>>,
    pub queued: Instant,
}

impl Job {
    /// Its answer, where nothing of it was done.
    pub fn refused(self, error: StoreError) -> Staged {
        let Self { plan, answer, queued } = self;
        let Plan { low_priority, writes, bytes, times, .. } = plan;
        Staged { answer, result: Err(error), low_priority, bytes, writes, queued, times }
    }
}

impl Shared {
    /// Queues `batch`; the answer comes through the receiver.
    pub fn queue(
        &self,
        batch: Batch,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        #[cfg(test)]
        let batch = match self.tamper.get() {
            Some(tamper) => tamper(batch),
            None => batch,
        };
        let plan = Plan::of(batch)?;
        let (answer, answered) = oneshot::channel();
        {
            let mut lanes = locked(&self.lanes);
            lanes.writable().map_err(StoreError::ReadOnly)?;
            let lane = lanes.lane(plan.low_priority);
            let fits = lane.batches < QUEUE_BATCHES_MAX
                && lane.bytes.saturating_add(plan.bytes) <= QUEUE_BYTES_MAX;
            if !fits && lane.batches > 0 {
                return Err(StoreError::Busy);
            }
            lane.batches += 1;
            lane.bytes += plan.bytes;
            lane.jobs.push_back(Job { plan, answer, queued: Instant::now() });
        }
        self.wake.notify_one();
        self.engine.queued();
        Ok(answered)
    }

    pub fn writable(&self) -> Result<(), String> {
        locked(&self.lanes).writable()
    }

    pub fn queue_delay(&self) -> Duration {
        if locked(&self.lanes).normal.batches == 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(self.counters.behind_us.load(Ordering::Relaxed))
    }

    pub fn turn(&self) -> Option<u64> {
        let lanes = locked(&self.lanes);
        let ended = matches!(lanes.phase, Phase::Closed | Phase::Failed(_));
        let waited_for = lanes.normal.batches > 0 || lanes.low.batches > 0 || lanes.copying;
        (waited_for && !ended).then(|| self.counters.turns.load(Ordering::Relaxed))
    }

    pub fn batches_waiting(&self) -> u64 {
        let lanes = locked(&self.lanes);
        (lanes.normal.batches + lanes.low.batches) as u64
    }

    /// Begins a copy of the store as of one flush; see [`tee`].
    pub fn copy(&self) -> Result<mpsc::Receiver<Piece>, StoreError> {
        let mut lanes = locked(&self.lanes);
        lanes.writable().map_err(StoreError::ReadOnly)?;
        if lanes.copying {
            return Err(StoreError::Busy);
        }
        let (to, pieces) = mpsc::channel(tee::PIECES_AHEAD);
        (lanes.copy_to, lanes.copying) = (Some(to), true);
        self.wake.notify_one();
        Ok(pieces)
    }

    /// Lets no more batches in; the answer comes when all are written and the engine is closed.
    pub fn close(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        let (answer, answered) = oneshot::channel();
        let mut lanes = locked(&self.lanes);
        let at_once = match &lanes.phase {
            Phase::Open | Phase::Closing => None,
            Phase::Closed => Some(Ok(())),
            Phase::Failed(reason) => Some(Err(StoreError::ReadOnly(reason.clone()))),
        };
        match at_once {
            // who asked may have gone
            Some(result) => drop(answer.send(result)),
            None => {
                lanes.phase = Phase::Closing;
                lanes.closing.push(answer);
                self.wake.notify_one();
            }
        }
        answered
    }

    /// Why writes are refused since a failure.
    pub fn failure(&self) -> String {
        locked(&self.lanes).writable().err().unwrap_or_else(|| "the store failed".to_owned())
    }
}

impl Lanes {
    fn writable(&self) -> Result<(), String> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing | Phase::Closed => Err("the store is closed".to_owned()),
            Phase::Failed(reason) => Err(reason.clone()),
        }
    }

    fn lane(&mut self, low_priority: bool) -> &mut Lane {
        if low_priority { &mut self.low } else { &mut self.normal }
    }
}

/// Starts the thread that writes; `sequence` is that of the last group of batches that the engine holds.
pub(super) fn start(
    engine: Box<dyn Engine>,
    sequence: u64,
) -> std::io::Result<(Arc<Shared>, JoinHandle<()>)> {
    let writer = Writer::new(engine, sequence);
    let shared = Arc::clone(&writer.shared);
    let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(|| writer.run())?;
    Ok((shared, thread))
}

/// The thread's own state.
struct Writer {
    shared: Arc<Shared>,
    sequence: u64,
    /// Taken out of the lanes, not staged yet.
    normal: VecDeque<Job>,
    low: VecDeque<Job>,
    spread: Option<Spread>,
    /// A copy that is being made.
    tee: Option<Tee>,
    /// Who takes the copy has no room.
    tee_waits: bool,
    /// Staged; told when the flush is done.
    answers: Vec<Staged>,
    told_idle: bool,
    /// How long the last flush took, and what the next one waits for.
    flushed_in: Duration,
    /// How many batches shared the last flush.
    shared_by: usize,
}

pub(super) struct Staged {
    pub answer: oneshot::Sender<Result<(), StoreError>>,
    pub result: Result<(), StoreError>,
    pub low_priority: bool,
    pub bytes: usize,
    pub writes: u64,
    pub queued: Instant,
    pub times: Option<Arc<WriteTimes>>,
}

/// What is visible and not durable yet.
struct Applied {
    bytes: usize,
    started: Instant,
}

enum Turn {
    Write,
    Copy,
    Idle,
    Close,
}

impl Writer {
    fn new(engine: Box<dyn Engine>, sequence: u64) -> Self {
        let shared = Arc::new(Shared {
            engine,
            view: RwLock::new(View { applied: sequence, pending: Changes::new() }),
            durable: Durability::new(sequence),
            lanes: Mutex::default(),
            wake: Condvar::new(),
            counters: Counters::default(),
            #[cfg(test)]
            tamper: std::sync::OnceLock::new(),
            damages: Damages::default(),
        });
        Self {
            shared,
            sequence,
            normal: VecDeque::new(),
            low: VecDeque::new(),
            spread: None,
            tee: None,
            tee_waits: false,
            answers: Vec::new(),
            told_idle: true,
            flushed_in: Duration::ZERO,
            shared_by: 0,
        }
    }

    fn run(mut self) {
        loop {
            let turn = self.next();
            self.shared.counters.turns.fetch_add(1, Ordering::Relaxed);
            let done = catch_unwind(AssertUnwindSafe(|| match turn {
                Turn::Write => {
                    // what waits already may be more than one flush takes
                    if self.shared_by >= SHARED && self.normal.is_empty() {
                        thread::sleep(GATHER);
                    }
                    self.write()
                }
                Turn::Copy => {
                    self.copy();
                    Ok(())
                }
                Turn::Idle => self.shared.engine.idle(),
                Turn::Close => self.shared.engine.close(),
            }));
            let done =
                done.unwrap_or_else(|panic| Err(Failure(format!("a panic: {}", text(&*panic)))));
            match (done, turn) {
                (Err(Failure(reason)), _) => return self.fail(&reason),
                (Ok(()), Turn::Close) => return self.closed(),
                (Ok(()), Turn::Idle) => (self.told_idle, self.shared_by) = (true, 0),
                (Ok(()), Turn::Write | Turn::Copy) => self.told_idle = false,
            }
        }
    }

    /// Waits until there is something to do.
    fn next(&self) -> Turn {
        let mut lanes = locked(&self.shared.lanes);
        loop {
            let queued = !lanes.normal.jobs.is_empty() || !lanes.low.jobs.is_empty();
            let taken = !self.normal.is_empty() || !self.low.is_empty() || self.spread.is_some();
            if queued || taken {
                return Turn::Write;
            }
            if matches!(lanes.phase, Phase::Closing) {
                return Turn::Close;
            }
            let wake = &self.shared.wake;
            if lanes.copy_to.is_some() || self.tee.is_some() {
                if self.tee_waits {
                    let pause = wake.wait_timeout(lanes, COPY_PAUSE);
                    lanes = pause.unwrap_or_else(PoisonError::into_inner).0;
                    if !lanes.normal.jobs.is_empty() || !lanes.low.jobs.is_empty() {
                        continue;
                    }
                }
                return Turn::Copy;
            }
            if self.told_idle {
                lanes = wake.wait(lanes).unwrap_or_else(PoisonError::into_inner);
            } else {
                let (woken, timeout) =
                    wake.wait_timeout(lanes, IDLE).unwrap_or_else(PoisonError::into_inner);
                lanes = woken;
                if timeout.timed_out() {
                    return Turn::Idle;
                }
            }
        }
    }

    /// One flush.
    fn write(&mut self) -> Result<(), Failure> {
        if let Some(applied) = self.take()? {
            self.sync(&applied)?;
        }
        self.answer();
        self.copy();
        Ok(())
    }

    /// Makes what waits visible, as much as goes into one flush.
    fn take(&mut self) -> Result<Option<Applied>, Failure> {
        self.shared.engine.ready()?;
        {
            let mut lanes = locked(&self.shared.lanes);
            self.normal.append(&mut lanes.normal.jobs);
            self.low.append(&mut lanes.low.jobs);
        }
        if let Some(job) = self.normal.front() {
            // to wait for one flush is everybody's part; what waits for longer stands behind more than one flush takes
            let behind = job.queued.elapsed().saturating_sub(self.flushed_in);
            let behind = u64::try_from(behind.as_micros()).unwrap_or(u64::MAX);
            self.shared.counters.behind_us.store(behind, Ordering::Relaxed);
        }
        let mut changes = Changes::new();
        let mut bytes = 0;
        while changes.len() < FLUSH_OPERATIONS_MAX && bytes < FLUSH_BYTES_MAX {
            let Some(job) = self.normal.pop_front() else { break };
            bytes += job.plan.bytes;
            self.stage(job, &mut changes);
        }
        self.write_low(&mut changes);
        if changes.is_empty() {
            return Ok(None);
        }
        self.apply(changes).map(Some)
    }

    /// Goes on with the copy that somebody wants, if there is one. Everything that was applied is durable.
    fn copy(&mut self) {
        if self.tee.is_none() {
            self.tee = locked(&self.shared.lanes).copy_to.take().map(Tee::new);
        }
        let Some(tee) = &mut self.tee else { return };
        let (engine, sequence) = (&*self.shared.engine, self.sequence);
        // what cannot be read ends the copy and nothing else
        let step = catch_unwind(AssertUnwindSafe(|| tee.step(engine, sequence)))
            .unwrap_or_else(|panic| Err(Failure(format!("a panic: {}", text(&*panic)))));
        self.tee_waits = step == Ok(tee::Step::Wait);
        match step {
            Ok(tee::Step::Go | tee::Step::Wait) => {}
            Ok(tee::Step::Over) => self.end_copy(),
            Err(Failure(reason)) => {
                tracing::error!(reason, "a copy of the store is given up: it cannot be read");
                self.end_copy();
            }
        }
    }

    fn end_copy(&mut self) {
        (self.tee, self.tee_waits) = (None, false);
        locked(&self.shared.lanes).copying = false;
    }

    /// Checks a batch and adds what it changes. Its answer waits for the flush even where it is a refusal, since
    /// that may rest on a batch of the same flush.
    fn stage(&mut self, job: Job, changes: &mut Changes) {
        let Job { plan, answer, queued } = job;
        let Plan { checks, steps, low_priority, writes, bytes, times } = plan;
        let shared = &*self.shared;
        let result = judged(|| {
            let mut stage = Stage::new(&*shared.engine, changes);
            stage.check(&checks, &shared.damages)?;
            steps.into_iter().try_for_each(|step| stage.run(step))?;
            Ok(stage.done())
        });
        shared.counters.note_read(&result);
        let result = result.map(|own| self.merge(own, changes));
        // also where it could not be judged for a read that failed: nothing of it was put with the others then
        self.answers.push(Staged { answer, result, low_priority, bytes, writes, queued, times });
    }

    fn merge(&mut self, own: Changes, changes: &mut Changes) {
        if let Some(spread) = &mut self.spread {
            spread.meet(&own);
        }
        changes.extend(own);
    }

    /// Adds what the low-priority lane may have of this flush.
    fn write_low(&mut self, changes: &mut Changes) {
        let mut bytes = 0;
        while bytes < LOW_BYTES_PER_FLUSH {
            if let Some(spread) = &mut self.spread {
                bytes += spread.advance(changes, LOW_BYTES_PER_FLUSH - bytes);
                if bytes >= LOW_BYTES_PER_FLUSH && !spread.is_through() {
                    break;
                }
                if let Some(spread) = self.spread.take() {
                    let (engine, damages) = (&*self.shared.engine, &self.shared.damages);
                    self.answers.push(spread.finish(engine, damages, changes));
                }
                continue;
            }
            let Some(job) = self.low.pop_front() else { break };
            if job.plan.bytes <= LOW_BYTES_PER_FLUSH {
                if bytes > 0 && bytes + job.plan.bytes > LOW_BYTES_PER_FLUSH {
                    self.low.push_front(job);
                    break;
                }
                bytes += job.plan.bytes;
                self.stage(job, changes);
                continue;
            }
            let (engine, damages) = (&*self.shared.engine, &self.shared.damages);
            match Spread::begin(engine, damages, job, changes) {
                Begun::Spread(spread) => self.spread = Some(spread),
                Begun::Whole(job) => {
                    bytes += job.plan.bytes;
                    self.stage(job, changes);
                }
                Begun::Refused(staged) => self.answers.push(staged),
            }
        }
    }

    fn apply(&mut self, mut changes: Changes) -> Result<Applied, Failure> {
        let shared = &self.shared;
        self.sequence += 1;
        changes.insert(keys::commit_sequence(), Some(keys::encode_commit_sequence(self.sequence)));
        let bytes: usize =
            changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        let started = Instant::now();
        for staged in &self.answers {
            if let Some(times) = &staged.times {
                let _ = times.applied.set(started);
            }
            // snapshots wait behind all else, as they should
            if !staged.low_priority {
                let waited = started.saturating_duration_since(staged.queued);
                shared.counters.histograms.wait_seconds.observe(waited.as_secs_f64());
            }
        }
        {
            let mut view = shared.view.write().unwrap_or_else(PoisonError::into_inner);
            view.applied = self.sequence;
            view.pending = changes;
            shared.engine.apply(&view.pending)?;
        }
        Ok(Applied { bytes, started })
    }

    /// Makes durable what is visible.
    fn sync(&mut self, applied: &Applied) -> Result<(), Failure> {
        let shared = &self.shared;
        shared.engine.sync(self.sequence)?;
        let written = {
            let mut view = shared.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut view.pending)
        };
        // before who waits for it is woken: it reads its times at once
        let durable = Instant::now();
        for times in self.answers.iter().filter_map(|staged| staged.times.as_ref()) {
            let _ = times.durable.set(durable);
        }
        shared.durable.reach(self.sequence);
        let took = durable.saturating_duration_since(applied.started);
        self.shared_by = self.answers.len();
        self.flushed_in = took + if self.shared_by >= SHARED { GATHER } else { Duration::ZERO };
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let histograms = &shared.counters.histograms;
        histograms.flush_seconds.observe(took.as_secs_f64());
        histograms.flush_batches.observe(self.answers.len() as f64);
        histograms.flush_bytes.observe(applied.bytes as f64);
        shared.counters.flushes.fetch_add(1, Ordering::Relaxed);
        shared.counters.flush_us_total.fetch_add(us, Ordering::Relaxed);
        shared.counters.bytes_written.fetch_add(applied.bytes as u64, Ordering::Relaxed);
        if self.tee.as_mut().is_some_and(|tee| !tee.flushed(&written)) {
            tracing::warn!(
                "a copy of the store is given up: who takes it is slower than what is written"
            );
            self.end_copy();
        }
        Ok(())
    }

    fn answer(&mut self) {
        let mut lanes = locked(&self.shared.lanes);
        for staged in &self.answers {
            let lane = lanes.lane(staged.low_priority);
            lane.batches -= 1;
            lane.bytes -= staged.bytes;
        }
        drop(lanes);
        for Staged { answer, result, writes, .. } in self.answers.drain(..) {
            if result.is_ok() {
                self.shared.counters.batches.fetch_add(1, Ordering::Relaxed);
                self.shared.counters.writes.fetch_add(writes, Ordering::Relaxed);
            }
            // who asked may have gone
            let _ = answer.send(result);
        }
    }

    fn closed(self) {
        let closing = {
            let mut lanes = locked(&self.shared.lanes);
            lanes.phase = Phase::Closed;
            std::mem::take(&mut lanes.closing)
        };
        for answer in closing {
            let _ = answer.send(Ok(()));
        }
    }

    fn fail(self, reason: &str) {
        tracing::error!(
            reason,
            "the store failed: this node is read-only until it is restarted; check the disk first"
        );
        let lanes = {
            let mut lanes = locked(&self.shared.lanes);
            let failed = Lanes { phase: Phase::Failed(reason.to_owned()), ..Lanes::default() };
            std::mem::replace(&mut *lanes, failed)
        };
        self.shared.durable.fail();
        let staged = self.answers.into_iter().map(|staged| staged.answer);
        let spread = self.spread.into_iter().map(|spread| spread.into_job().answer);
        let taken = self.normal.into_iter().chain(self.low).map(|job| job.answer);
        let queued = lanes.normal.jobs.into_iter().chain(lanes.low.jobs).map(|job| job.answer);
        for answer in staged.chain(spread).chain(taken).chain(queued).chain(lanes.closing) {
            let _ = answer.send(Err(StoreError::Unavailable(reason.to_owned())));
        }
    }
}

/// What becomes of one batch. It has not changed anything yet, so a read that fails concerns nobody else, and neither does an
/// engine that panics over it.
pub(super) fn judged<T>(judge: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(judge))
        .unwrap_or_else(|panic| Err(StoreError::Unavailable(format!("a panic: {}", text(&*panic)))))
}

/// What a panic says.
pub(super) fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

/// A lock whose data is whole whoever has panicked: what it guards changes in single steps.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
