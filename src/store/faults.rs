//! An engine that fails on purpose, and that holds writes until a test lets them go.
//!
//! Here: [`Faults`], the handle, and the engine that obeys it around any other one. It is what
//! [`memory`](super::memory) stores are made of, so that every part of the node can be tested against a disk that breaks.

use std::sync::{
    Arc, Condvar, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::watch;

use super::{
    engine::{Changes, Engine, Failure, Visit},
    writer::locked,
};

/// How a write fails. Whichever it is, whoever waits is told that the outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is applied.
    Refused,
    /// It is applied, but the flush fails and it does not survive.
    Lost,
    /// The flush reports a failure, but everything survives.
    Kept,
    /// The engine panics.
    Panic,
}

/// Tells an engine when to fail and when to wait. Clones are one handle.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    queued: watch::Sender<u64>,
    reads: AtomicU64,
    scans: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// How many flushes may go on; `None`: all.
    allowed: Option<u64>,
    flushes: u64,
    /// The flush that fails, and how.
    failing: Option<(u64, Fault)>,
    reads: Reads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Fine,
    Fail,
    Panic,
}

impl Faults {
    #[must_use]
    pub fn new() -> Self {
        let state = State { allowed: None, flushes: 0, failing: None, reads: Reads::Fine };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Condvar::new(),
            queued: watch::Sender::new(0),
            reads: AtomicU64::new(0),
            scans: AtomicU64::new(0),
        }))
    }

    /// Nothing is written until [`Self::step`] or [`Self::release`]; reads see what was there before. A flush that is
    /// on its way already goes on.
    pub fn hold(&self) {
        locked(&self.0.state).allowed = Some(0);
    }

    /// Lets `flushes` more flushes go on, each with everything that is queued by then and fits.
    pub fn step(&self, flushes: u64) {
        let mut state = locked(&self.0.state);
        state.allowed = state.allowed.map(|allowed| allowed + flushes);
        self.0.changed.notify_all();
    }

    /// Lets everything go on.
    pub fn release(&self) {
        locked(&self.0.state).allowed = None;
        self.0.changed.notify_all();
    }

    /// The `nth` flush from now (1 is the next one) fails.
    pub fn fail_flush(&self, nth: u64, fault: Fault) {
        let mut state = locked(&self.0.state);
        state.failing = Some((state.flushes + nth, fault));
    }

    /// Whether reads fail from now on.
    pub fn fail_reads(&self, fail: bool) {
        locked(&self.0.state).reads = if fail { Reads::Fail } else { Reads::Fine };
    }

    /// Whether the engine panics from now on when it reads.
    pub fn panic_in_reads(&self, panic: bool) {
        locked(&self.0.state).reads = if panic { Reads::Panic } else { Reads::Fine };
    }

    /// Batches that were queued since this handle was made.
    #[must_use]
    pub fn queued(&self) -> u64 {
        *self.0.queued.borrow()
    }

    /// Waits until `batches` were queued since this handle was made.
    pub async fn until_queued(&self, batches: u64) {
        // the sender is in `self`, so it cannot be gone
        let _ = self.0.queued.subscribe().wait_for(|queued| *queued >= batches).await;
    }

    /// Values that were asked for by their keys, and ranges that were looked through, since this handle was made.
    #[must_use]
    pub fn looked_at(&self) -> (u64, u64) {
        (self.0.reads.load(Ordering::Relaxed), self.0.scans.load(Ordering::Relaxed))
    }

    /// A store is opened anew on what this breaks: what was planned for the last one is void.
    pub(super) fn reset(&self) {
        let mut state = locked(&self.0.state);
        state.allowed = None;
        state.failing = None;
        state.reads = Reads::Fine;
        self.0.changed.notify_all();
    }

    #[expect(clippy::panic, reason = "an injected panic is what is asked for")]
    fn read(&self) -> Result<(), Failure> {
        let reads = locked(&self.0.state).reads;
        match reads {
            Reads::Fine => Ok(()),
            Reads::Fail => Err(Failure("an injected read error".to_owned())),
            Reads::Panic => panic!("an injected panic"),
        }
    }

    /// The fault of the flush that begins now.
    fn next(&self) -> Option<Fault> {
        let mut state = locked(&self.0.state);
        state.flushes += 1;
        state.failing.filter(|(flush, _)| *flush == state.flushes).map(|(_, fault)| fault)
    }

    fn current(&self) -> Option<Fault> {
        let state = locked(&self.0.state);
        state.failing.filter(|(flush, _)| *flush == state.flushes).map(|(_, fault)| fault)
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

/// `E`, which fails as [`Faults`] has it.
pub(super) struct Faulty<E> {
    engine: E,
    faults: Faults,
    abandoned: AtomicBool,
}

impl<E> Faulty<E> {
    pub fn new(engine: E, faults: Faults) -> Self {
        Self { engine, faults, abandoned: AtomicBool::new(false) }
    }
}

impl<E: Engine> Engine for Faulty<E> {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        self.faults.read()?;
        self.faults.0.reads.fetch_add(1, Ordering::Relaxed);
        self.engine.read(key)
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
        self.faults.read()?;
        self.faults.0.scans.fetch_add(1, Ordering::Relaxed);
        self.engine.scan(from, until, visit)
    }

    #[expect(clippy::panic, reason = "an injected panic is what is asked for")]
    fn apply(&self, changes: &Changes) -> Result<(), Failure> {
        match self.faults.next() {
            None | Some(Fault::Lost | Fault::Kept) => self.engine.apply(changes),
            Some(Fault::Refused) => Err(Failure("an injected write error".to_owned())),
            Some(Fault::Panic) => panic!("an injected panic"),
        }
    }

    fn sync(&self, sequence: u64) -> Result<(), Failure> {
        match self.faults.current() {
            None => self.engine.sync(sequence),
            Some(Fault::Kept) => {
                self.engine.sync(sequence)?;
                Err(Failure("an injected flush error".to_owned()))
            }
            Some(Fault::Lost | Fault::Refused | Fault::Panic) => {
                Err(Failure("an injected flush error".to_owned()))
            }
        }
    }

    fn queued(&self) {
        self.faults.0.queued.send_modify(|queued| *queued += 1);
        self.engine.queued();
    }

    fn ready(&self) -> Result<(), Failure> {
        let inner = &self.faults.0;
        let mut state = locked(&inner.state);
        while state.allowed == Some(0) && !self.abandoned.load(Ordering::SeqCst) {
            state = inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.allowed == Some(0) {
            return Err(Failure("the store was dropped while its writes were held".to_owned()));
        }
        state.allowed = state.allowed.map(|allowed| allowed.saturating_sub(1));
        drop(state);
        self.engine.ready()
    }

    fn idle(&self) -> Result<(), Failure> {
        self.engine.idle()
    }

    fn close(&self) -> Result<(), Failure> {
        self.engine.close()
    }

    fn abandoned(&self) {
        // under the lock, or the writer could miss it between its look and its wait
        let state = locked(&self.faults.0.state);
        self.abandoned.store(true, Ordering::SeqCst);
        drop(state);
        self.faults.0.changed.notify_all();
        self.engine.abandoned();
    }

    fn bytes_on_disk(&self) -> u64 {
        self.engine.bytes_on_disk()
    }
}
