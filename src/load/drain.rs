//! Clients that read their queues while the load runs: what was accepted must also arrive, and acknowledging is load of its own.
//!
//! They read and acknowledge, and do not decrypt. A delivery's time is from the hub's `accepted_at` to when the entry is here, in whole
//! milliseconds: where the clocks of hub and generator differ, it is off by that. What should come, and what never did, is in a
//! `Ledger`: percentiles of what came would be best where most is lost.

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
    ledger::Ledger,
    lines::{Lines, caller, now},
    progress::Progress,
    recorder::Recorder,
    result::{DELIVERY, Drained},
    send::why,
    workload::Target,
};
use crate::{
    client::http::{HttpError, Stream},
    wire::{
        client::{Dequeue, Dequeued},
        codec::List,
        encode,
        ids::{FeedId, Sequence},
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
    ledger: Arc<Ledger>,
    /// When the run began. Before, nothing is counted.
    began: OnceLock<Instant>,
    opening: Semaphore,
    opened: AtomicU64,
    /// Clients that were refused so often that nobody waits for them.
    given_up: AtomicU64,
    /// Clients that read no more for a time in the run.
    interrupted: AtomicU64,
    /// Why one of them could not, last.
    trouble: Mutex<Option<String>>,
    delivered: AtomicU64,
    progress: Progress,
}

impl Drains {
    /// Has these accounts read their queues, and waits until all do.
    ///
    /// # Errors
    /// [`LoadError::Unfit`] where some cannot.
    pub async fn open(
        how: Drain,
        who: &[u32],
        targets: &[Target],
        accounts: &Accounts,
        recorder: &Recorder,
        ledger: &Arc<Ledger>,
        is_quiet: bool,
    ) -> Result<Self, LoadError> {
        // a long poll takes one of a connection's 128 requests for as long as it waits
        let connections = who.len().div_ceil(POLLS_PER_CONNECTION * targets.len()).max(1);
        let shared = Arc::new(Shared {
            accounts: Arc::clone(accounts),
            lines: Lines::new(targets, if how == Drain::Poll { connections } else { 1 })?,
            recorder: recorder.clone(),
            ledger: Arc::clone(ledger),
            began: OnceLock::new(),
            opening: Semaphore::new(OPENING),
            opened: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            interrupted: AtomicU64::new(0),
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
        let all = tasks.len() as u64;
        let opened = loop {
            let opened = shared.opened.load(Ordering::Acquire);
            let decided = opened + shared.given_up.load(Ordering::Acquire) >= all;
            if decided || begun.elapsed() >= OPEN_PATIENCE {
                break opened;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        shared.progress.finish();
        if opened < all {
            let trouble = shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(LoadError::Unfit(format!(
                "{opened} of {all} draining clients could open their queues ({}): drain fewer (--drain-clients), or raise the provider's \
                 limits (config/load.toml)",
                trouble.unwrap_or_else(|| "no answer in time".to_owned())
            )));
        }
        Ok(Self { tasks, shared })
    }

    /// The run begins now.
    #[must_use]
    pub fn begin(&self) -> Instant {
        self.shared.ledger.begin(now());
        *self.shared.began.get_or_init(Instant::now)
    }

    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// Waits until nothing has come for a second, and no longer than `most`: of what waits from before nobody knows how much it is.
    pub async fn read_backlog(&self, most: Duration) {
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

    /// Waits until all that is due has come, and no longer than `most`. Then nobody reads any more, and what did not come is counted as missing.
    pub async fn settle(&mut self, most: Duration) -> Option<Drained> {
        let clients = self.tasks.len() as u64;
        if clients == 0 {
            return None;
        }
        let (shared, since) = (&self.shared, Instant::now());
        while shared.ledger.missing() > 0 && since.elapsed() < most {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let settled_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tasks.shutdown().await;
        let sums = shared.ledger.measured();
        shared.recorder.missed(DELIVERY, sums.missing);
        Some(Drained {
            clients,
            interrupted: shared.interrupted.load(Ordering::Relaxed),
            due: sums.due,
            delivered: sums.due - sums.missing,
            untold: sums.untold,
            settled_ms,
        })
    }
}

impl Shared {
    async fn stream(&self, account: u32) {
        let mut client = Client::default();
        let mut pause = PAUSE_MIN;
        loop {
            let opened = {
                let Ok(_turn) = self.opening.acquire().await else { return };
                let began = self.sent(STREAM);
                let opened = self.open_stream(account).await;
                self.told(STREAM, opened.as_ref().err(), began);
                opened
            };
            let error = match opened {
                Ok(mut stream) => {
                    self.is_open(&mut client);
                    pause = PAUSE_MIN;
                    self.read(&mut stream, &mut client).await
                }
                Err(error) => {
                    self.is_refused(&mut client, &error);
                    error
                }
            };
            self.reads_no_more(&mut client);
            let asked = Duration::from_millis(error.passes().unwrap_or_default());
            tokio::time::sleep(pause.max(asked.min(PAUSE_MAX))).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A stream that the provider has opened: that its first frame could be sent says nothing.
    async fn open_stream(&self, account: u32) -> Result<Stream, HttpError> {
        let to = self.lines.to(self.lines.target_of(account));
        let mut stream = to.stream(&caller(&self.accounts[account as usize])).await?;
        stream.opened().await?;
        Ok(stream)
    }

    /// Reads until the stream ends, and says why it did.
    async fn read(&self, stream: &mut Stream, client: &mut Client) -> HttpError {
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
                    self.came(client, &entry);
                    acks.take(&entry);
                }
                Some(Err(error)) => return error,
                None => {
                    if let Err(error) = stream.acknowledge(&acks.all()).await {
                        return error;
                    }
                }
            }
        }
    }

    async fn poll(&self, account: u32) {
        let who = &self.accounts[account as usize];
        let mut client = Client::default();
        let mut acks = Acks::default();
        loop {
            // the first one says whether it may read at all
            let wait_ms = if client.is_open { POLL_WAIT_MS } else { 0 };
            let request = Dequeue {
                acks: List::new(acks.all()).unwrap_or_default(),
                max: POLL_ENTRIES,
                wait_ms,
            };
            let began = self.sent(POLL);
            let to = self.lines.to(self.lines.target_of(account));
            let answer: Result<Dequeued, _> =
                to.call(&caller(who), "/v1/dequeue", encode(&request), wait_ms).await;
            match answer {
                Ok(answer) => {
                    self.told(POLL, None, began);
                    self.is_open(&mut client);
                    for entry in answer.entries.iter() {
                        self.came(&mut client, entry);
                        acks.take(entry);
                    }
                }
                Err(error) => {
                    self.told(POLL, Some(&error), began);
                    self.is_refused(&mut client, &error);
                    self.reads_no_more(&mut client);
                    tokio::time::sleep(PAUSE_MAX).await;
                }
            }
        }
    }

    fn since(&self) -> Option<Duration> {
        self.began.get().map(Instant::elapsed)
    }

    /// A request was begun; where the run has, it is counted, and since when.
    fn sent(&self, operation: &'static str) -> Option<Duration> {
        let since = self.since()?;
        self.recorder.sent(operation);
        Some(since)
    }

    fn is_open(&self, client: &mut Client) {
        if client.refusals >= REFUSALS_MAX && !client.is_open {
            self.given_up.fetch_sub(1, Ordering::Release);
        }
        if !std::mem::replace(&mut client.is_open, true) {
            self.opened.fetch_add(1, Ordering::Release);
            self.progress.step();
        }
    }

    fn is_refused(&self, client: &mut Client, error: &HttpError) {
        if client.is_open || !matches!(error, HttpError::Refused(_)) {
            return;
        }
        client.refusals = client.refusals.saturating_add(1);
        if client.refusals == REFUSALS_MAX {
            self.given_up.fetch_add(1, Ordering::Release);
        }
    }

    fn reads_no_more(&self, client: &mut Client) {
        if self.began.get().is_some() && !std::mem::replace(&mut client.was_interrupted, true) {
            self.interrupted.fetch_add(1, Ordering::Relaxed);
        }
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
            Some(error) => self.recorder.unanswered(operation, why(error), began),
        }
    }

    fn came(&self, client: &mut Client, entry: &QueueEntry) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        if !matches!(entry.event, QueueEvent::MlsMessage { .. }) {
            return;
        }
        // what was not acknowledged comes again with the next stream
        let last = client.last.entry(entry.feed).or_default();
        if entry.sequence <= *last {
            return;
        }
        *last = entry.sequence;
        let (group, at) = (entry.group_id.as_slice(), entry.accepted_at);
        // what is older was left by an earlier run, or by preparing
        let Some(since) = self.ledger.came(group, entry.sequence, at) else { return };
        let took = Duration::from_millis(now().0.saturating_sub(at.0));
        self.recorder.observed(DELIVERY, since, took);
    }
}

/// What is known of one client that reads.
#[derive(Default)]
struct Client {
    is_open: bool,
    /// Before it was.
    refusals: u32,
    was_interrupted: bool,
    /// Of each feed, what came last.
    last: HashMap<FeedId, Sequence>,
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
/// Who is refused so often before the run is not waited for.
const REFUSALS_MAX: u32 = 5;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const POLLS_PER_CONNECTION: usize = 100;
const POLL_ENTRIES: u32 = 256;
const POLL_WAIT_MS: u32 = 20_000;
const ACK_ENTRIES: usize = 64;
const ACK_AFTER: Duration = Duration::from_millis(50);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(1);
