//! Clients that read their queues while the load runs: what was accepted must also arrive, and acknowledging is load of its own.
//!
//! They read and acknowledge, and do not decrypt. A delivery's time is from the hub's `accepted_at` to when the entry is here, in whole
//! milliseconds: where the clocks of hub and generator differ, it is off by that.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::{
    LoadError,
    crew::Accounts,
    lines::{Lines, caller, now},
    progress::Progress,
    recorder::Recorder,
    result::DELIVERY,
    workload::Target,
};
use crate::{
    client::http::HttpError,
    wire::{
        client::{Dequeue, Dequeued},
        codec::List,
        encode,
        ids::{FeedId, Sequence, Timestamp},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};

/// How clients read their queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// One WebSocket each.
    Stream,
    /// Long polls, over few connections.
    Poll,
    None,
}

/// Clients at work. They end when this is dropped.
pub(super) struct Drains {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    accounts: Accounts,
    lines: Lines,
    recorder: Recorder,
    /// When the run began, by both clocks. Before, nothing is counted.
    began: OnceLock<(Instant, Timestamp)>,
    opening: Semaphore,
    opened: AtomicU64,
    /// Why one of them could not, last.
    trouble: Mutex<Option<String>>,
    delivered: AtomicU64,
    progress: Progress,
}

impl Drains {
    /// Has these accounts read their queues, and waits until all do.
    ///
    /// # Errors
    /// [`LoadError::Usage`] where some cannot.
    pub async fn open(
        how: Drain,
        who: &[u32],
        targets: &[Target],
        accounts: &Accounts,
        recorder: &Recorder,
        is_quiet: bool,
    ) -> Result<Self, LoadError> {
        // a long poll takes one of a connection's 128 requests for as long as it waits
        let connections = who.len().div_ceil(POLLS_PER_CONNECTION * targets.len()).max(1);
        let shared = Arc::new(Shared {
            accounts: Arc::clone(accounts),
            lines: Lines::new(targets, if how == Drain::Poll { connections } else { 1 })?,
            recorder: recorder.clone(),
            began: OnceLock::new(),
            opening: Semaphore::new(OPENING),
            opened: AtomicU64::new(0),
            trouble: Mutex::default(),
            delivered: AtomicU64::new(0),
            progress: Progress::begin("draining clients", who.len() as u64, is_quiet),
        });
        let mut tasks = JoinSet::new();
        for account in who {
            let (shared, account) = (Arc::clone(&shared), *account);
            match how {
                Drain::Stream => tasks.spawn(async move { shared.stream(account).await }),
                Drain::Poll => tasks.spawn(async move { shared.poll(account).await }),
                Drain::None => continue,
            };
        }
        let begun = Instant::now();
        while shared.opened.load(Ordering::Acquire) < tasks.len() as u64
            && begun.elapsed() < OPEN_PATIENCE
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shared.progress.finish();
        let opened = shared.opened.load(Ordering::Acquire);
        if opened < tasks.len() as u64 {
            let trouble = shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(LoadError::Usage(format!(
                "{opened} of {} draining clients could open their streams ({}): drain fewer (--drain-clients), or by --drain poll",
                tasks.len(),
                trouble.unwrap_or_else(|| "no answer in time".to_owned())
            )));
        }
        Ok(Self { tasks, shared })
    }

    /// The run begins now.
    #[must_use]
    pub fn begin(&self) -> Instant {
        self.shared.began.get_or_init(|| (Instant::now(), now())).0
    }

    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// Waits until nothing has come for a second, and no longer than `most`.
    pub async fn settle(&self, most: Duration) {
        if self.tasks.is_empty() {
            return;
        }
        let until = Instant::now() + most;
        let mut before = None;
        while before != Some(self.delivered()) && Instant::now() < until {
            before = Some(self.delivered());
            tokio::time::sleep(QUIET).await;
        }
    }
}

impl Shared {
    async fn stream(&self, account: u32) {
        let mut first = true;
        let mut pause = PAUSE_MIN;
        loop {
            let opened = {
                let Ok(_turn) = self.opening.acquire().await else { return };
                let began = self.sent(STREAM);
                let to = self.lines.to(self.lines.target_of(account));
                let opened = to.stream(&caller(&self.accounts[account as usize])).await;
                self.told(STREAM, opened.as_ref().err(), began);
                opened
            };
            if let Ok(mut stream) = opened {
                if std::mem::take(&mut first) {
                    self.is_open();
                }
                pause = PAUSE_MIN;
                let mut acks = Acks::default();
                loop {
                    // what has come is acknowledged when nothing more is there at once, or much is
                    let next = match acks.is_due() {
                        true => None,
                        false if acks.is_empty() => Some(stream.next().await),
                        false => tokio::time::timeout(ACK_AFTER, stream.next()).await.ok(),
                    };
                    match next {
                        Some(Ok(entry)) => {
                            self.came(&entry);
                            acks.take(&entry);
                        }
                        Some(Err(_)) => break,
                        None if stream.acknowledge(&acks.all()).await.is_err() => break,
                        None => {}
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn poll(&self, account: u32) {
        let who = &self.accounts[account as usize];
        let mut acks = Acks::default();
        self.is_open();
        loop {
            let request = Dequeue {
                acks: List::new(acks.all()).unwrap_or_default(),
                max: POLL_ENTRIES,
                wait_ms: POLL_WAIT_MS,
            };
            let began = self.sent(POLL);
            let to = self.lines.to(self.lines.target_of(account));
            let answer: Result<Dequeued, _> =
                to.call(&caller(who), "/v1/dequeue", encode(&request), POLL_WAIT_MS).await;
            match answer {
                Ok(answer) => {
                    self.told(POLL, None, began);
                    for entry in answer.entries.iter() {
                        self.came(entry);
                        acks.take(entry);
                    }
                }
                Err(error) => {
                    self.told(POLL, Some(&error), began);
                    tokio::time::sleep(PAUSE_MAX).await;
                }
            }
        }
    }

    fn since(&self) -> Option<Duration> {
        self.began.get().map(|(began, _)| began.elapsed())
    }

    /// A request was begun; where the run has, it is counted, and since when.
    fn sent(&self, operation: &'static str) -> Option<Duration> {
        let since = self.since()?;
        self.recorder.sent(operation);
        Some(since)
    }

    fn is_open(&self) {
        self.opened.fetch_add(1, Ordering::Release);
        self.progress.step();
    }

    fn told(&self, operation: &'static str, error: Option<&HttpError>, began: Option<Duration>) {
        if let Some(error) = error {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            *trouble = Some(error.to_string());
        }
        let Some(began) = began else { return };
        let took = self.since().unwrap_or_default().saturating_sub(began);
        match error {
            None => self.recorder.answered(operation, began, took),
            Some(HttpError::Refused(error)) => {
                self.recorder.refused(operation, error.name(), began, took);
            }
            Some(_) => self.recorder.unanswered(operation, "connection", began),
        }
    }

    fn came(&self, entry: &QueueEntry) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        let Some((began, began_at)) = self.began.get() else { return };
        // what is older was left by an earlier run, or by preparing
        if !matches!(entry.event, QueueEvent::MlsMessage { .. }) || entry.accepted_at < *began_at {
            return;
        }
        let took = Duration::from_millis(now().0.saturating_sub(entry.accepted_at.0));
        self.recorder.observed(DELIVERY, began.elapsed().saturating_sub(took), took);
    }
}

/// What has come and was not acknowledged.
#[derive(Default)]
struct Acks {
    feeds: HashMap<FeedId, Sequence>,
    entries: usize,
}

impl Acks {
    fn take(&mut self, entry: &QueueEntry) {
        let last = self.feeds.entry(entry.feed).or_insert(entry.sequence);
        *last = (*last).max(entry.sequence);
        self.entries += 1;
    }

    fn is_due(&self) -> bool {
        self.entries >= ACK_ENTRIES
    }

    fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    fn all(&mut self) -> Vec<FeedAck> {
        self.entries = 0;
        self.feeds.drain().map(|(feed, sequence)| FeedAck { feed, sequence }).collect()
    }
}

/// Opening a stream, as an operation of the result; and a long poll, which takes as long as nothing comes.
const STREAM: &str = "stream_open";
pub(super) const POLL: &str = "poll";
const OPENING: usize = 32;
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
const POLLS_PER_CONNECTION: usize = 100;
const POLL_ENTRIES: u32 = 256;
const POLL_WAIT_MS: u32 = 20_000;
const ACK_ENTRIES: usize = 64;
const ACK_AFTER: Duration = Duration::from_millis(50);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(1);
