//! One provider: its disk, its clock, its keys, and the process that may be running on them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Write as _,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, LocalSet},
};

use super::{
    Mutation, Plan, Time,
    net::{Inside, Net, Road},
    oracle::ended_by,
    trace::{Chance, Trace},
};
use crate::{
    account::Registration,
    actors::{
        Clock, GroupOptions, Limits, Metrics, Node, NodeParts, ProviderKey, arbiters::ArbiterPool,
    },
    crypto::{BoxKey, SigningKey, random},
    federation::{Federation, FederationLimits, FederationMetrics, FederationParts},
    group::{HubKey, RetiredKey, keys::done_with},
    http::doors::Doors,
    queue::token::TokenKeys,
    server::run::{look_after_peers, sweep},
    store::{
        Batch, SharedStore, Write,
        faults::Fault,
        memory::Disk,
        records::{GroupStatus, InboxItem, LogRecord},
        writer::stepped::{Stepper, Tamper},
    },
    wire::{
        decode, encode,
        extensions::SignatureScheme,
        ids::{Domain, Sequence, Timestamp},
        queueing::QueueEvent,
    },
};

/// A clock that somebody may set.
pub(super) struct SetClock {
    time: Time,
    offset_ms: AtomicI64,
}

impl SetClock {
    pub fn new(time: Time) -> Arc<Self> {
        Arc::new(Self { time, offset_ms: AtomicI64::new(0) })
    }

    pub fn set_offset(&self, ms: i64) {
        self.offset_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        let offset_ms = self.offset_ms.load(Ordering::Relaxed);
        Timestamp(self.time.now().0.saturating_add_signed(offset_ms))
    }
}

pub(super) struct Provider {
    pub domain: Domain,
    pub clock: Arc<SetClock>,
    disk: Disk,
    /// As the disk was some time before: for [`Mutation::OldDisk`].
    old: Option<Disk>,
    /// As the disk was when it was synced last: for [`Mutation::AnswersBeforeSync`].
    synced: Arc<Mutex<Option<Disk>>>,
    keys: Keys,
    running: Option<Running>,
}

/// What is in files beside the store.
struct Keys {
    token_key: [u8; 32],
    s2s: SigningKey,
    senders: Rc<RefCell<Senders>>,
}

struct Senders {
    /// The newest first.
    held: Vec<ProviderKey>,
    retired: Vec<RetiredKey>,
}

struct Running {
    process: AbortHandle,
    store: SharedStore,
    failed: Arc<AtomicBool>,
}

impl Provider {
    pub fn new(domain: Domain, time: Time) -> Self {
        let key = || SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let held = vec![for_ever(key(), Timestamp(0))];
        let senders = Rc::new(RefCell::new(Senders { held, retired: Vec::new() }));
        Self {
            domain,
            clock: SetClock::new(time),
            disk: Disk::new(),
            old: None,
            synced: Arc::default(),
            keys: Keys { token_key: random(), s2s: key(), senders },
            running: None,
        }
    }

    /// What it has on its disk, as it can be read now.
    pub fn store(&self) -> Option<SharedStore> {
        self.running.as_ref().map(|running| Arc::clone(&running.store))
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether its disk takes no more writes until it is started again.
    pub fn has_failed(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.failed.load(Ordering::Relaxed))
    }

    pub fn fail_next_flush(&self, chance: &Chance, trace: &Trace) {
        let Some(running) = &self.running else { return };
        let fault = *chance.pick(&[Fault::Lost, Fault::Kept, Fault::Refused]);
        trace.note(|| format!("the disk of {} fails: {fault:?}", self.domain));
        trace.count(|counts| counts.failed_flushes += 1);
        running.failed.store(true, Ordering::Relaxed);
        self.disk.faults().fail_flush(1, fault);
    }

    /// The hub has a next key from now on, as `mimid keys rotate` makes one.
    pub fn rotate_hub_key(&self) {
        let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        self.keys.senders.borrow_mut().held.insert(0, for_ever(key, self.clock.now()));
    }

    /// Power is lost.
    pub fn crash(&mut self, net: &Net) {
        let Some(running) = self.running.take() else { return };
        net.leave(&self.domain);
        self.disk.crash();
        running.process.abort();
    }

    pub fn start(&mut self, plan: &Plan, net: &Arc<Net>, chance: &Chance, trace: &Trace) {
        if plan.has(Mutation::OldDisk) {
            let before = self.old.replace(self.disk.copy());
            if let Some(before) = before.filter(|_| chance.below(3) == 0) {
                trace.note(|| format!("{} starts on an old disk", self.domain));
                self.disk = before;
            }
        }
        if let Some(synced) = self.synced.lock().unwrap().take() {
            self.disk = synced;
        }
        let (store, stepper) = self.disk.open_stepped().unwrap();
        let (tamper, domain, seen) = (tampering(plan), self.domain.clone(), trace.clone());
        stepper.tamper(Box::new(move |batch| {
            let batch = match &tamper {
                Some(tamper) => tamper(batch),
                None => batch,
            };
            seen.note(|| format!("{domain} writes {}", listed(&batch)));
            batch
        }));
        let metrics = Metrics::new().unwrap();
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let asked = Arc::clone(&clock);
        let held = self.keys.senders.borrow().held.clone();
        let federation = Arc::new(Federation::new(FederationParts {
            domain: self.domain.clone(),
            signing: vec![for_ever(self.keys.s2s.clone(), Timestamp(0))],
            external_senders: held.clone(),
            transport: Arc::new(Road { from: self.domain.clone(), net: Arc::clone(net) }),
            allow: None,
            deny: Vec::new(),
            limits: FederationLimits::default(),
            metrics: FederationMetrics::register(&metrics.registry).unwrap(),
            clock: Arc::new(move || asked.now()),
        }));
        let box_key = BoxKey::from_bytes(self.keys.token_key).unwrap();
        let node = Node::new(NodeParts {
            domain: self.domain.clone(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            limits: limits(plan),
            groups: options(&self.domain, plan),
            registration: Registration::Open,
            token_keys: TokenKeys::new(vec![(1, box_key)]).unwrap(),
            external_senders: held,
            metrics,
            arbiters: ArbiterPool::inline(),
            federation: Some(Arc::clone(&federation)),
        });
        node.replace_retired_senders(self.keys.senders.borrow().retired.clone());
        let failed = Arc::new(AtomicBool::new(false));
        let (jobs, mut asked) = mpsc::unbounded_channel();
        let inside = Rc::new(Inside { doors: Doors::new(&node, &federation), node: node.clone() });
        let process = LocalSet::new();
        let synced = Arc::clone(&self.synced);
        process.spawn_local(write(
            self.disk.clone(),
            stepper,
            chance.clone(),
            plan.clone(),
            synced,
        ));
        process.spawn_local(async move {
            while let Some(job) = asked.recv().await {
                let job: super::net::Job = job;
                tokio::task::spawn_local(job(Rc::clone(&inside)));
            }
        });
        if !plan.has(Mutation::NeverSweeps) {
            // in the order of `server::run`
            let swept = node.clone();
            process.spawn_local(async move {
                let _ = swept.load_arrivals().await;
                sweep(swept).await;
            });
            process.spawn_local(look_after_peers(node.clone()));
            process.spawn_local(look_again(node, federation, clock, Rc::clone(&self.keys.senders)));
        }
        let process = tokio::task::spawn_local(process).abort_handle();
        net.enter(&self.domain, jobs);
        self.running = Some(Running { process, store, failed });
    }
}

/// Time for a disk: most flushes are quick, some are not.
async fn write(
    disk: Disk,
    mut stepper: Stepper,
    chance: Chance,
    plan: Plan,
    synced: Arc<Mutex<Option<Disk>>>,
) {
    let mut flushes = 0_u64;
    let pause = async || {
        let most = if chance.of_thousand(5) { 3_000_000 } else { 8_000 };
        tokio::time::sleep(Duration::from_micros(chance.between(50, most))).await;
    };
    loop {
        let queued = disk.faults().queued();
        if !stepper.has_work() {
            disk.faults().until_queued(queued + 1).await;
        }
        pause().await;
        stepper.apply();
        pause().await;
        stepper.sync();
        if chance.of_thousand(100) {
            pause().await;
        }
        stepper.answer();
        flushes += 1;
        if plan.has(Mutation::AnswersBeforeSync) && flushes.is_multiple_of(10) {
            *synced.lock().unwrap() = Some(disk.copy());
        }
    }
}

/// What `server::run` does every minute: the hub's keys, and what federation forgets. The rules are in `turn_hub_keys` and
/// `done_with`; that the keys are files there and memory here is why this is written again.
async fn look_again(
    node: Node,
    federation: Arc<Federation>,
    clock: Arc<dyn Clock>,
    senders: Rc<RefCell<Senders>>,
) {
    let mut known = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        federation.sweep();
        let hub = node.hub();
        if known != senders.borrow().held.len() {
            known = senders.borrow().held.len();
            node.replace_external_senders(senders.borrow().held.clone());
        }
        if !hub.keys.has_old() {
            continue;
        }
        let Ok(turned) = node.turn_hub_keys(256).await else { continue };
        let Some(in_use) = turned.keys else { continue };
        let now = clock.now();
        let old = done_with(&hub.keys.all(), &in_use, now);
        if old.is_empty() {
            continue;
        }
        let mut senders = senders.borrow_mut();
        let (done, held): (Vec<_>, Vec<_>) =
            std::mem::take(&mut senders.held).into_iter().partition(|it| {
                old.contains(&HubKey { key: it.key.clone(), since: it.not_before }.print())
            });
        senders.held = held;
        let until = now.plus_ms(30 * 24 * 3600 * 1000);
        senders.retired.extend(
            done.into_iter().map(|it| {
                RetiredKey::new(HubKey { key: it.key, since: it.not_before }, now, until)
            }),
        );
        node.replace_retired_senders(senders.retired.clone());
        node.replace_external_senders(senders.held.clone());
        known = senders.held.len();
    }
}

fn for_ever(key: SigningKey, not_before: Timestamp) -> ProviderKey {
    ProviderKey { key, not_before, not_after: Timestamp(u64::MAX) }
}

fn limits(plan: &Plan) -> Limits {
    let mut limits = Limits { key_packages_low_at: 2, ..Limits::default() };
    // so that a simulated night is enough for what takes a month
    limits.peers.unreachable_after_ms = 6 * HOUR_MS;
    let backoff = &mut limits.peers.schedule.backoff;
    if plan.has(Mutation::HammersDeadPeers) {
        backoff.max_ms = backoff.first_ms;
    }
    if plan.has(Mutation::WaitsForHours) {
        (backoff.first_ms, backoff.max_ms) = (3 * HOUR_MS, 3 * HOUR_MS);
    }
    limits
}

fn options(domain: &Domain, plan: &Plan) -> GroupOptions {
    let mut options = GroupOptions::new(domain.clone());
    options.settings.inactive_after_ms = (!plan.has_liar).then_some(10 * HOUR_MS);
    // so that those who are called see it before it is over; a client waits for no more than two minutes
    options.settings.complaint_wait_ms = 100 * 1000;
    options
}

/// Which records a batch changes, and where the engine's order of them would show.
fn listed(batch: &Batch) -> String {
    let mut listed = format!("{} conditions,", batch.conditions.len());
    for write in &batch.writes {
        // only the name is asked for: what follows it is refused, and not put into words
        let mut name = Name(&mut listed);
        let _ = write!(name, "{write:?}");
    }
    listed
}

/// Takes the first word of what is written to it.
struct Name<'a>(&'a mut String);

impl std::fmt::Write for Name<'_> {
    fn write_str(&mut self, words: &str) -> std::fmt::Result {
        self.0.push(' ');
        self.0.push_str(words);
        Err(std::fmt::Error)
    }
}

fn tampering(plan: &Plan) -> Option<Tamper> {
    let mutation = plan.mutation?;
    let gone = Mutex::new(BTreeMap::new());
    let commits = Mutex::new(BTreeMap::new());
    Some(Box::new(move |mut batch: Batch| {
        batch.writes.retain(|write| {
            !matches!(
                (mutation, write),
                (Mutation::ForgetsOutbound, Write::Outbound { .. })
                    | (Mutation::ForgetsClose, Write::Inbox { item: InboxItem::Close { .. }, .. })
                    | (Mutation::ForgetsNotices, Write::GroupNotice { .. })
                    | (Mutation::KeepsClosedFeeds, Write::DropSubscription { .. })
            )
        });
        for write in &mut batch.writes {
            let Write::Log { group, record: LogRecord { feed, .. } } = write else { continue };
            if mutation == Mutation::WritesTwice {
                let mut commits = commits.lock().unwrap();
                if ended_by(&feed.event).is_some() {
                    commits.insert(group.clone(), feed.event.clone());
                } else if let Some(commit) = commits.get(group) {
                    feed.event.clone_from(commit);
                }
            }
            if mutation == Mutation::VoidsUntold
                && let Ok(QueueEvent::EpochVoid { epoch, group_sequence, complaints }) =
                    decode(&feed.event)
            {
                // the one before
                let group_sequence = Sequence(group_sequence.0 - 1);
                feed.event = encode(&QueueEvent::EpochVoid { epoch, group_sequence, complaints });
            }
        }
        if mutation == Mutation::ThawsWhatHasGone {
            // what it was when it froze is what it is again
            for write in &mut batch.writes {
                let Write::GroupHead(head) = write else { continue };
                let mut gone = gone.lock().unwrap();
                if head.status == GroupStatus::Migrating {
                    gone.insert(head.group.clone(), ());
                } else if head.status == GroupStatus::Followed && gone.remove(&head.group).is_some()
                {
                    head.status = GroupStatus::Active;
                }
            }
        }
        batch
    }))
}

const HOUR_MS: u64 = 3600 * 1000;
